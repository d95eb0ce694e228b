//go:build corpora

package main

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"winnow/internal/ingest"
	"winnow/internal/kafkaio"
	"winnow/pkg/batch"
	"winnow/pkg/schema"
)

// TestCorporaWebhooksByCurl sends each real webhook with curl to a running
// `ingest webhook`, and runs a worker over the topic. No text of a payload is
// in what it prints.
func TestCorporaWebhooksByCurl(t *testing.T) {
	corpora := os.Getenv("CORPORA")
	require.NotEmpty(t, corpora, "CORPORA names the folder of real records")
	b := startBroker(t, filepath.Join(t.TempDir(), "broker"))
	client, err := kafkaio.Dial([]string{b.addr()}, kafkaio.Options{})
	require.NoError(t, err)
	defer client.Close()
	require.NoError(t, ingest.EnsureTenants(t.Context(), client, tenantsTopic))

	bin := filepath.Join(t.TempDir(), "ingest")
	out, err := exec.Command("go", "build", "-o", bin, "winnow/cmd/ingest").CombinedOutput()
	require.NoError(t, err, string(out))
	door := exec.Command(bin, "webhook", "--brokers", b.addr(), "--listen", "127.0.0.1:0", "--assume-consent", "--event-time", "replay", "--partitions", "2")
	door.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	address := make(chan string, 1)
	door.Stderr = &lines{take: func(l string) {
		if _, rest, ok := strings.Cut(l, "msg=listening address="); ok {
			a, _, _ := strings.Cut(rest, " ")
			address <- a
		}
	}}
	var counts strings.Builder
	door.Stdout = &counts
	require.NoError(t, door.Start())
	url := "http://" + <-address + "/hooks/local"

	// What a file holds is for the reader to say, and for the door to say the same.
	var doc schema.Doc
	acknowledged, texts, types := 0, 0, map[string]int{}
	require.NoError(t, filepath.WalkDir(filepath.Join(corpora, "payloads"), func(path string, f fs.DirEntry, err error) error {
		if err != nil || f.IsDir() || filepath.Ext(path) != ".json" {
			return err
		}
		raw, err := os.ReadFile(path)
		require.NoError(t, err)
		hook := strings.Contains(string(raw), `"webhookEvent"`)
		want := ""
		schema.Unwrap(&doc, raw, func(_ int, it schema.Item, err error) {
			switch {
			case err != nil:
				want = "dropped: " + string(schema.ReasonOf(err))
			case strings.Contains(it.Type, ".webhook."):
				hook, want = true, "acknowledged"
				types[it.Type]++
				e := schema.Event{Envelope: it.Envelope, Value: it.Value}
				if e.Parse() == nil && len(e.Texts()) > 0 {
					texts++
				}
			}
		})
		if !hook {
			return nil
		}
		id := fmt.Sprintf("corpus-%d-%d", acknowledged, len(raw))
		got, err := exec.Command("curl", "--silent", "--show-error", "--data-binary", "@"+path, "--header", "Content-Type: application/json", "--header", "X-Atlassian-Webhook-Identifier: "+id, url).CombinedOutput()
		require.NoError(t, err, "curl")
		require.Equal(t, want, strings.TrimSpace(string(got)), "%s", filepath.Base(path))
		if want == "acknowledged" {
			acknowledged++
		}
		return nil
	}))
	require.NoError(t, door.Process.Signal(syscall.SIGTERM))
	require.NoError(t, door.Wait())
	t.Logf("%d webhooks acknowledged, %d with text: %v\n%s", acknowledged, texts, types, counts.String())
	require.Greater(t, acknowledged, 10)

	dataset := filepath.Join(t.TempDir(), "out")
	worker := exec.Command(filepath.Join(filepath.Dir(bin), "deidentify"), "run", "--brokers", b.addr(), "--out", dataset, "--assume-consent", "--event-time", "replay", "--flush-age", "200ms")
	out, err = exec.Command("go", "build", "-o", worker.Path, "winnow/cmd/deidentify").CombinedOutput()
	require.NoError(t, err, string(out))
	worker.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, worker.Start())
	store, err := batch.Create(dataset)
	require.NoError(t, err)
	ends, err := client.Offsets(t.Context(), eventsTopic, []int{0, 1})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		for p, r := range ends {
			if next, err := store.Next(eventsTopic, p); err != nil || next < r.End {
				return false
			}
		}
		return true
	}, time.Minute, 50*time.Millisecond)
	require.NoError(t, worker.Process.Signal(syscall.SIGTERM))
	require.NoError(t, worker.Wait())
	s, err := sum(store)
	require.NoError(t, err)
	t.Logf("%d records, %d documents, dropped in-app: %v", s.records, s.documents, s.inAppDrops)
	require.EqualValues(t, acknowledged, s.records)
	require.EqualValues(t, acknowledged, s.metadata)
	require.EqualValues(t, texts, s.documents+s.inAppDrops[schema.ReasonToldTwice])
	report, err := store.Check(t.Context())
	require.NoError(t, err)
	require.Empty(t, report.Faults)
}
