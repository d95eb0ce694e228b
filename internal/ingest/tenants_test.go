package ingest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"winnow/internal/kafkaio"
	"winnow/pkg/gate"
	"winnow/pkg/schema"
)

func tenant(id string, revision int) string {
	return fmt.Sprintf(`{"tenant":%q,"org":"o","hosts":["acme.example"],"region":"eu","revision":%d,"history":[{"at":"2025-01-01T00:00:00Z","set":{"in_app":"on"}}]}`, id, revision)
}

func TestTenants(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want []string // keys
	}{
		"none":          {"", nil},
		"blank lines":   {"\n \r\n\n", nil},
		"two":           {tenant("a", 1) + "\n" + tenant("b", 1) + "\n", []string{"a", "b"}},
		"no last line":  {tenant("a", 1) + "\n" + tenant("b", 1), []string{"a", "b"}},
		"CRLF, blanks":  {"\r\n" + tenant("a", 1) + "\r\n\r\n" + tenant("b", 1) + "\r\n", []string{"a", "b"}},
		"two revisions": {tenant("a", 1) + "\n" + tenant("a", 2), []string{"a", "a"}},
	} {
		t.Run(name, func(t *testing.T) {
			msgs, err := Tenants(strings.NewReader(c.text), nil, now)
			require.NoError(t, err)
			var keys []string
			for _, m := range msgs {
				keys = append(keys, string(m.Key))
				require.Equal(t, now, m.Time)
				tn, err := schema.ParseTenant(m.Value)
				require.NoError(t, err)
				require.Equal(t, string(m.Key), tn.ID)
			}
			require.Equal(t, c.want, keys)
		})
	}
}

func TestTenantsFixtures(t *testing.T) {
	f, err := os.Open("../../fixtures/tenants.jsonl")
	require.NoError(t, err)
	defer f.Close()
	msgs, err := Tenants(f, nil, now)
	require.NoError(t, err)
	require.Greater(t, len(msgs), 40)
	p := gate.NewPolicy(gate.Options{})
	for _, m := range msgs {
		require.NoError(t, p.Put(string(m.Key), m.Value))
	}
	require.Equal(t, len(msgs), p.Len())
}

func TestTenantsFaults(t *testing.T) {
	text := strings.Join([]string{
		tenant("a", 1),
		`{"tenant":"canary`,
		"",
		tenant("local", 1),
		tenant("b", 0),
		strings.Replace(tenant("c", 1), `"on"`, `"canary"`, 1),
		strings.Replace(tenant("d", 1), `"org"`, `"canary":1,"org"`, 1),
		`{"tenant":"` + strings.Repeat("canary", schema.MaxValue/6) + `"}`,
		tenant("e", 1),
		strings.Replace(tenant("f", 1), `"on"`, `"off","in_app":"on"`, 1),
	}, "\n")
	msgs, err := Tenants(strings.NewReader(text), nil, now)
	require.Nil(t, msgs, "a part of a file with a fault must not be produced")
	require.EqualError(t, err, strings.Join([]string{
		"line 2: tenant record: malformed_json (byte 17)",
		`line 4: tenant record: the tenant id "local" is built in`,
		"line 5: tenant record: field revision must be at least 1",
		`line 6: tenant record: field history[0].set: a setting is "on", "off" or ""`,
		"line 7: tenant record: a field that this version does not know",
		"line 8: longer than 8388608 bytes",
		"line 10: tenant record: an object names a key twice, or not in lower case",
	}, "\n"))

	broken := errors.New("broken pipe")
	msgs, err = Tenants(io.MultiReader(strings.NewReader(tenant("a", 1)+"\n"), iotest.ErrReader(broken)), nil, now)
	require.ErrorIs(t, err, broken)
	require.Nil(t, msgs)
}

// A file is held against the topic: what is there already is left out, and
// nothing that was once said is taken back.
func TestProduceTenants(t *testing.T) {
	k := newTopic(t)
	produce := func(lines ...string) (int, error) {
		path := filepath.Join(t.TempDir(), "tenants.jsonl")
		require.NoError(t, os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o644))
		return ProduceTenants(t.Context(), k.client, "tenants", path, now)
	}
	out := func(revision int) string {
		return strings.Replace(tenant("a", revision), `}}]`, `}},{"at":"2026-09-01T00:00:00Z","set":{"opted_out":true}}]`, 1)
	}
	n, err := produce(tenant("a", 1), tenant("b", 1))
	require.NoError(t, err)
	require.Equal(t, 2, n)
	n, err = produce(tenant("a", 1), tenant("b", 1))
	require.NoError(t, err)
	require.Zero(t, n, "all of it is there")
	n, err = produce(out(2), tenant("b", 1))
	require.NoError(t, err)
	require.Equal(t, 1, n)
	_, err = produce(tenant("b", 2), tenant("a", 3))
	require.ErrorContains(t, err, "line 2: tenant record: field history lacks the change history[1]")
	_, err = produce(out(2) + " ")
	require.ErrorContains(t, err, "line 1: tenant record: field revision is 2, the record before has 2")
	_, err = produce(out(3), tenant("a", 4))
	require.ErrorContains(t, err, "line 2: tenant record: field history lacks", "within a file, too")
	_, err = produce(strings.Replace(out(3), `"org":"o"`, `"org":"p"`, 1))
	require.ErrorContains(t, err, "field org changes")

	// A record that cannot be read is mended by a higher revision.
	require.NoError(t, k.client.Producer("tenants").Produce(t.Context(), kafkaio.Message{Key: []byte("a"), Value: []byte(`{"canary`)}))
	n, err = produce(out(3))
	require.NoError(t, err)
	require.Equal(t, 1, n)
	held := 0
	_, err = k.client.ReadAll(t.Context(), "tenants", func(int, kafkaio.Record) error { held++; return nil })
	require.NoError(t, err)
	require.Equal(t, 5, held)
}
