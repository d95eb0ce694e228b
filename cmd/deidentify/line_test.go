package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"winnow/pkg/batch"
)

var update = flag.Bool("update", false, "write the expected output again")

// fixedNow is when tests say they run, so that expected output does not age.
var fixedNow = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func fixedClock() time.Time { return fixedNow }

// result is what a command left.
type result struct {
	code           int
	stdout, stderr string
}

func deidentify(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	s := &session{t.Context(), bytes.NewBufferString(stdin), &out, &errs, fixedClock}
	return result{runAt(s, args), out.String(), errs.String()}
}

// row is an in-app row as it is compared: everything but the random id, in
// place of which stands the document's number within its partition.
type row struct {
	Partition int    `json:"partition"`
	Document  int    `json:"document"`
	Part      int32  `json:"part"`
	Region    string `json:"region"`
	Product   string `json:"product"`
	Kind      string `json:"kind"`
	Role      string `json:"role"`
	Format    string `json:"format"`
	Month     string `json:"month"`
	Text      string `json:"text"`
}

// rowsOf reads every committed row through the chains, in order.
func rowsOf(t *testing.T, dir string) []row {
	t.Helper()
	store, err := batch.Open(dir)
	require.NoError(t, err)
	report, err := store.Check(context.Background())
	require.NoError(t, err)
	require.Empty(t, report.Faults)
	ps, err := store.Partitions()
	require.NoError(t, err)
	var rows []row
	for _, p := range ps {
		chain, err := store.Chain(p.Topic, p.Partition)
		require.NoError(t, err)
		numbers := map[string]int{}
		for _, c := range chain {
			require.NoError(t, store.ReadRows(c, func(f batch.File, r batch.Row) error {
				n, ok := numbers[r.ID]
				if !ok {
					n = len(numbers)
					numbers[r.ID] = n
				}
				rows = append(rows, row{p.Partition, n, r.Part, f.Region, r.Product, r.Kind, r.Role, r.Format, r.Month, r.Text})
				return nil
			}))
		}
	}
	return rows
}

// compare holds got against a file of expected output, or writes it.
func compare(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, got, 0o644))
		return
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	if !bytes.Equal(want, got) {
		w, g := bytes.Split(want, []byte("\n")), bytes.Split(got, []byte("\n"))
		for i := range min(len(w), len(g)) {
			require.Equal(t, string(w[i]), string(g[i]), "%s, line %d", path, i+1)
		}
		require.Equal(t, len(w), len(g), "%s: number of lines", path)
	}
}

// TestFixtures carries the fixtures through the line in both formats and
// compares every row and every count with fixtures/want.
func TestFixtures(t *testing.T) {
	const fixtures = "../../fixtures"
	for _, format := range []string{"jsonl", "parquet"} {
		t.Run(format, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			r := deidentify(t, "", "replay", fixtures+"/events", fixtures+"/bad", "--tenants", fixtures+"/tenants.jsonl", "--out", out,
				"--format", format, "--flush-records", "150")
			require.Zero(t, r.code, r.stderr)

			var rows bytes.Buffer
			e := json.NewEncoder(&rows)
			e.SetEscapeHTML(false)
			for _, r := range rowsOf(t, out) {
				require.NoError(t, e.Encode(r))
			}
			compare(t, fixtures+"/want/in-app.jsonl", rows.Bytes())

			store, err := batch.Open(out)
			require.NoError(t, err)
			s, err := sum(store)
			require.NoError(t, err)
			counts, err := json.MarshalIndent(map[string]any{
				"records": s.records, "documents": s.documents, "rows": s.rows, "in_app_drops": s.inAppDrops,
				"metadata": s.metadata, "metadata_drops": s.metadataDrops, "spans": s.spans,
			}, "", "  ")
			require.NoError(t, err)
			compare(t, fixtures+"/want/counts.json", append(counts, '\n'))
		})
	}
}
