//go:build corpora

package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestCorporaNoDeclaredIdentityIsWritten is the search over an archive of real
// records, which stays outside of the repository.
func TestCorporaNoDeclaredIdentityIsWritten(t *testing.T) {
	corpora := os.Getenv("CORPORA")
	require.NotEmpty(t, corpora, "CORPORA names the folder of real records")
	l, r := searchLeaks(t, filepath.Join(corpora, "jira-archive", "issues.jsonl.zst"), "--assume-consent", "--event-time", "replay")
	t.Logf("%d documents, %d identities searched, %d logins that are dictionary words searched as users only, %d found",
		l.documents, l.identities, l.excluded, len(l.found))
	t.Log(r.stdout)
	require.Greater(t, l.documents, 22000)
	for i, f := range l.found {
		if i == 20 {
			break
		}
		t.Log(f)
	}
	require.Empty(t, l.found)
}
