package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"winnow/internal/broker"
	"winnow/internal/kafkaio"
	"winnow/pkg/batch"
	"winnow/pkg/gate"
	"winnow/pkg/schema"
)

// canary is in every bad record and must be in nothing that leaves.
const canary = "Xanthippe-Canary"

// TestBadRecordsOnTheTopic puts what no door would let in straight onto the
// topic, each between good neighbours: it is dropped and counted with its
// coordinates, never printed, and the neighbours arrive.
func TestBadRecordsOnTheTopic(t *testing.T) {
	dir := t.TempDir()
	b, err := broker.Start(filepath.Join(dir, "broker"), broker.Options{})
	require.NoError(t, err)
	defer b.Close()
	client, err := kafkaio.Dial([]string{b.Addr()}, kafkaio.Options{ClientID: "test"})
	require.NoError(t, err)
	defer client.Close()
	require.NoError(t, client.EnsureTopic(t.Context(), eventsTopic, 1, map[string]string{"max.message.bytes": fmt.Sprint(2 * schema.MaxValue)}))

	id := 0
	headers := func(edit func(*schema.Envelope)) []schema.Header {
		id++
		e := schema.Envelope{ID: strconv.Itoa(id), Origin: "test", Type: "winnow.jira.rest.issue", Time: fixedNow, Tenant: gate.LocalTenant, Product: schema.Jira}
		if edit != nil {
			edit(&e)
		}
		return e.AppendHeaders(nil)
	}
	issue := func(summary string) []byte {
		return []byte(`{"id":"1","key":"A-1","fields":{"summary":` + summary + `}}`)
	}
	bad := []struct {
		name    string
		headers []schema.Header
		value   []byte
		reason  schema.Reason
		gate    bool // dropped by the gate, so no quarantine
	}{
		{"truncated JSON", headers(nil), issue(`"` + canary + `"`)[:40], schema.ReasonMalformedJSON, false},
		{"wrong type", headers(nil), issue(`{"x":"` + canary + `"}`), schema.ReasonWrongType, false},
		{"wrong type of the whole", headers(nil), []byte(`["` + canary + `"]`), schema.ReasonWrongType, false},
		{"too large", headers(nil), issue(`"` + canary + strings.Repeat(" ", schema.MaxValue) + `"`), schema.ReasonTooLarge, false},
		{"invalid UTF-8", headers(nil), issue("\"" + canary + "\xff\""), schema.ReasonInvalidUTF8, false},
		{"1,000 deep", headers(nil), []byte(strings.Repeat("[", 1000) + `"` + canary + `"` + strings.Repeat("]", 1000)), schema.ReasonTooDeep, false},
		{"unknown wrapper", headers(func(e *schema.Envelope) { e.Type = "winnow.jira.rest." + canary }), issue(`"` + canary + `"`), schema.ReasonWrapperUnknown, false},
		{"no type of ours", headers(func(e *schema.Envelope) { e.Type = canary }), issue(`"` + canary + `"`), schema.ReasonWrapperUnknown, false},
		{"unknown tenant", headers(func(e *schema.Envelope) { e.Tenant = canary }), issue(`"` + canary + `"`), gate.TenantUnknown, true},
		{"no tenant", headers(func(e *schema.Envelope) { e.Tenant = "" }), issue(`"` + canary + `"`), gate.TenantUnknown, true},
		{"tombstone", headers(nil), nil, schema.ReasonEmptyValue, false},
		{"tombstone without headers", nil, nil, schema.ReasonEmptyValue, false},
		{"no headers", nil, issue(`"` + canary + `"`), schema.ReasonBadHeaders, false},
		{"two tenants", append(headers(nil), schema.Header{Key: "ce_tenant", Value: []byte(canary)}), issue(`"` + canary + `"`), schema.ReasonBadHeaders, false},
		{"duplicate key", headers(nil), []byte(`{"id":"1","fields":{"summary":"a","summary":"` + canary + `"}}`), schema.ReasonDuplicateKey, false},
		{"malformed ADF", headers(nil), []byte(`{"id":"1","fields":{"description":{"type":"` + canary + `"}}}`), schema.ReasonMalformedADF, false},
		{"malformed storage", headers(func(e *schema.Envelope) { e.Type, e.Product = "winnow.confluence.rest.page", schema.Confluence }),
			[]byte(`{"id":"1","title":"t","body":{"storage":{"value":"<p>` + canary + `"}}}`), schema.ReasonMalformedXHTML, false},
	}
	var msgs []kafkaio.Message
	good := func(i int) {
		msgs = append(msgs, kafkaio.Message{Key: []byte("k"), Value: issue(fmt.Sprintf(`"good %d"`, i)), Headers: headers(nil), Time: fixedNow})
	}
	wantDrops := map[schema.Reason]int64{}
	for i, c := range bad {
		good(i)
		msgs = append(msgs, kafkaio.Message{Key: []byte("k"), Value: c.value, Headers: c.headers, Time: fixedNow})
		wantDrops[c.reason]++
	}
	good(len(bad))
	p := client.Producer(eventsTopic)
	require.NoError(t, p.Produce(t.Context(), msgs...))
	require.NoError(t, p.Close())

	out := filepath.Join(dir, "out")
	store, err := batch.Create(out)
	require.NoError(t, err)
	var log bytes.Buffer
	w := &worker{
		client: client, store: store, policy: gate.NewPolicy(gate.Options{AssumeConsent: true}), now: fixedClock,
		log:   slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		topic: eventsTopic, group: "test", flush: flushLimits{FlushBytes: 1 << 20, FlushRecords: 7, FlushAge: 1 << 40},
		drain: map[int]int64{0: int64(len(msgs))},
	}
	require.NoError(t, w.run(t.Context()))

	s, err := sum(store)
	require.NoError(t, err)
	require.Equal(t, int64(len(msgs)), s.records)
	require.Equal(t, wantDrops, s.inAppDrops)
	require.Equal(t, wantDrops, s.metadataDrops)
	rows := rowsOf(t, out)
	require.Len(t, rows, len(bad)+1)
	for i, r := range rows {
		require.Equal(t, fmt.Sprintf("good %d", i), r.Text)
	}

	// Coordinates of all that an operator can act on, and content of none.
	var lists bytes.Buffer
	require.NoError(t, filepath.WalkDir(out, func(path string, d os.DirEntry, err error) error {
		require.NoError(t, err)
		if !d.IsDir() && (strings.Contains(path, "_quarantine") || strings.Contains(path, "_commits")) {
			b, err := os.ReadFile(path)
			require.NoError(t, err)
			if strings.Contains(path, "_quarantine") {
				lists.Write(b)
			}
			require.NotContains(t, string(b), canary, path)
		}
		return nil
	}))
	for i, c := range bad {
		at := fmt.Sprintf(`"partition":0,"offset":%d,"reason":"%s"`, 2*i+1, c.reason)
		if c.gate {
			require.NotContains(t, lists.String(), at, c.name)
		} else {
			require.Contains(t, lists.String(), at, c.name)
		}
	}
	require.NotContains(t, log.String(), canary)
}

// TestPanicIsOneRecordsLoss: a fault of ours in one record drops it and leaves
// the rest; the log has the place in the code and no content.
func TestPanicIsOneRecordsLoss(t *testing.T) {
	store, err := batch.Create(filepath.Join(t.TempDir(), "out"))
	require.NoError(t, err)
	wr, err := store.Writer(eventsTopic, 0, batch.Options{})
	require.NoError(t, err)
	var log bytes.Buffer
	l := line{policy: nil, w: wr, log: slog.New(slog.NewTextHandler(&log, nil))} // a nil policy is the fault
	e := schema.Envelope{ID: "1", Origin: "o", Type: "winnow.jira.rest.issue", Time: fixedNow, Tenant: canary, Product: schema.Jira}
	src := schema.Source{Topic: eventsTopic, Offset: 0}
	require.NoError(t, l.record(src, &kafkaio.Record{Value: []byte(canary), Headers: e.AppendHeaders(nil)}, fixedNow))
	c, err := wr.Commit(0)
	require.NoError(t, err)
	require.Equal(t, map[schema.Reason]int64{schema.ReasonInternal: 1}, c.InApp.Drops)
	require.Contains(t, log.String(), "events/0@0")
	require.Contains(t, log.String(), "worker.go")
	require.NotContains(t, log.String(), canary)
}

// TestUsage: combinations that would lose or leak are refused with what to do.
func TestUsage(t *testing.T) {
	file := filepath.Join(t.TempDir(), "r.jsonl")
	require.NoError(t, os.WriteFile(file, []byte(`{"id":"1","fields":{"summary":"s"}}`+"\n"), 0o644))
	for _, c := range []struct {
		name, says string
		code       int
		args       []string
	}{
		{"no tenants, no consent", "--assume-consent", exitUsage, []string{"replay", file, "--out", "x"}},
		{"replay time without consent", "--assume-consent", exitUsage, []string{"replay", file, "--out", "x", "--event-time", "replay", "--tenants", file}},
		{"unknown format", "parquet", exitUsage, []string{"replay", file, "--out", "x", "--format", "csv"}},
		{"no such file", "no such file", exitFailure, []string{"replay", file + "x", "--out", "x", "--assume-consent"}},
		{"check of no data set", "dataset", exitFailure, []string{"check", filepath.Dir(file)}},
		{"a directory with something else in it", "dataset", exitFailure, []string{"replay", file, "--assume-consent", "--out", filepath.Dir(file)}},
		{"a bad tenants file", "line 1", exitFailure, []string{"replay", file, "--out", filepath.Join(t.TempDir(), "o"), "--tenants", file}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := deidentify(t, "", c.args...)
			require.Equal(t, c.code, r.code, r.stderr)
			require.Contains(t, r.stderr, c.says)
		})
	}
	out := filepath.Join(t.TempDir(), "out")
	require.Zero(t, deidentify(t, "", "replay", file, "--assume-consent", "--out", out).code)
	again := deidentify(t, "", "replay", file, "--assume-consent", "--out", out)
	require.Equal(t, exitFailure, again.code)
	require.Contains(t, again.stderr, "already holds")

	// A fault in the data set is exit code 3, with its coordinates.
	files, err := filepath.Glob(filepath.Join(out, "in-app", "*", "*", "*.parquet"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	require.NoError(t, os.Truncate(files[0], 10))
	r := deidentify(t, "", "check", out)
	require.Equal(t, exitCheck, r.code)
	require.Contains(t, r.stdout, "FAULT in-app/region=local/")
}

// TestReadmeExamples runs the examples of README.md that have their output
// beneath them.
func TestReadmeExamples(t *testing.T) {
	b, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	lines := strings.Split(string(b), "\n")
	ran := 0
	for i, l := range lines {
		if !strings.HasPrefix(l, "$ echo '") {
			continue
		}
		text, args, ok := strings.Cut(strings.TrimPrefix(l, "$ echo '"), "' | deidentify ")
		require.True(t, ok, l)
		var words []string
		for j, quoted := range strings.Split(args, "'") {
			if j%2 == 1 {
				words = append(words, quoted)
			} else {
				words = append(words, strings.Fields(quoted)...)
			}
		}
		r := deidentify(t, text+"\n", words...)
		require.Zero(t, r.code, r.stderr)
		require.Equal(t, lines[i+1]+"\n", r.stdout)
		ran++
	}
	require.Positive(t, ran)

	// The sample of what make run prints, but for its times.
	const fixtures = "../../fixtures"
	r := deidentify(t, "", "replay", fixtures+"/events", fixtures+"/bad", "--tenants", fixtures+"/tenants.jsonl", "--out", filepath.Join(t.TempDir(), "out"))
	require.Zero(t, r.code, r.stderr)
	printed := strings.Join(strings.Fields(r.stdout), " ")
	_, sample, ok := strings.Cut(string(b), "records found")
	require.True(t, ok)
	sample, _, ok = strings.Cut("records found"+sample, "whole:")
	require.True(t, ok)
	for _, l := range strings.Split(sample, "\n") {
		l, _, _ = strings.Cut(l, "7.4 MB")
		if l = strings.Join(strings.Fields(l), " "); l != "…" && !strings.HasPrefix(l, "committed") {
			require.Contains(t, printed, l)
		}
	}
}
