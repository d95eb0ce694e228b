package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"winnow/internal/broker"
	"winnow/internal/failpoint"
	"winnow/internal/ingest"
	"winnow/internal/kafkaio"
	"winnow/internal/testkit/s3"
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
		decided bool // the policy decided against it, so there is nothing to mend
	}{
		{"truncated JSON", headers(nil), issue(`"` + canary + `"`)[:40], schema.ReasonMalformedJSON, false},
		{"wrong type", headers(nil), issue(`{"x":"` + canary + `"}`), schema.ReasonWrongType, false},
		{"wrong type of the whole", headers(nil), []byte(`["` + canary + `"]`), schema.ReasonWrongType, false},
		{"too large", headers(nil), issue(`"` + canary + strings.Repeat(" ", schema.MaxValue) + `"`), schema.ReasonTooLarge, false},
		{"invalid UTF-8", headers(nil), issue("\"" + canary + "\xff\""), schema.ReasonInvalidUTF8, false},
		{"1,000 deep", headers(nil), []byte(strings.Repeat("[", 1000) + `"` + canary + `"` + strings.Repeat("]", 1000)), schema.ReasonTooDeep, false},
		{"unknown wrapper", headers(func(e *schema.Envelope) { e.Type = "winnow.jira.rest." + canary }), issue(`"` + canary + `"`), schema.ReasonWrapperUnknown, false},
		{"no type of ours", headers(func(e *schema.Envelope) { e.Type = canary }), issue(`"` + canary + `"`), schema.ReasonWrapperUnknown, false},
		{"unknown tenant", headers(func(e *schema.Envelope) { e.Tenant = canary }), issue(`"` + canary + `"`), gate.TenantUnknown, false},
		{"another product", headers(func(e *schema.Envelope) { e.Product = "trello" }), issue(`"` + canary + `"`), gate.ProductOutOfScope, true},
		{"no tenant", headers(func(e *schema.Envelope) { e.Tenant = "" }), issue(`"` + canary + `"`), gate.TenantUnknown, false},
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
		if c.decided {
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
	wr, err := store.Writer(context.Background(), eventsTopic, 0, batch.Options{})
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
		l, _, _ = strings.Cut(l, "8.0 MB")
		if l = strings.Join(strings.Fields(l), " "); l != "…" && !strings.HasPrefix(l, "committed") {
			require.Contains(t, printed, l)
		}
	}
}

// TestSecondExport: tomorrow's export of the same name and lines holds other
// records; they are not repeats of today's.
func TestSecondExport(t *testing.T) {
	dir := t.TempDir()
	b, err := broker.Start(filepath.Join(dir, "broker"), broker.Options{})
	require.NoError(t, err)
	defer b.Close()
	client, err := kafkaio.Dial([]string{b.Addr()}, kafkaio.Options{ClientID: "test"})
	require.NoError(t, err)
	defer client.Close()
	require.NoError(t, ingest.EnsureEvents(t.Context(), client, eventsTopic, 1))
	policy := gate.NewPolicy(gate.Options{AssumeConsent: true})
	door := ingest.Door{Policy: policy, AssumeConsent: true, EventTime: ingest.OfRecord, Now: fixedNow, Name: "replay"}
	for _, day := range []string{"today", "tomorrow", "tomorrow"} {
		file := filepath.Join(dir, "export.jsonl")
		require.NoError(t, os.WriteFile(file, []byte(`{"id":"1","key":"A-1","fields":{"summary":"text of `+day+`"}}`+"\n"), 0o644))
		files, err := ingest.Files([]string{file})
		require.NoError(t, err)
		p := client.Producer(eventsTopic)
		_, err = door.Replay(t.Context(), files, p, func(int64) {})
		require.NoError(t, err)
		require.NoError(t, p.Close())
	}
	out := filepath.Join(dir, "out")
	store, err := batch.Create(out)
	require.NoError(t, err)
	w := &worker{
		client: client, store: store, policy: policy, now: fixedClock, log: slog.New(slog.DiscardHandler),
		topic: eventsTopic, group: "test", flush: flushLimits{FlushBytes: 1 << 20, FlushRecords: 300, FlushAge: time.Hour}, drain: map[int]int64{0: 3},
	}
	require.NoError(t, w.run(t.Context()))
	rows := rowsOf(t, out)
	require.Len(t, rows, 2, "the last was loaded twice")
	require.Equal(t, []string{"text of today", "text of tomorrow"}, []string{rows[0].Text, rows[1].Text})
}

// TestDrainOverRebalance: a partition that is done and is handed out again, for
// another member came and went, is not counted for one that is not done.
func TestDrainOverRebalance(t *testing.T) {
	dir := t.TempDir()
	b, err := broker.Start(filepath.Join(dir, "broker"), broker.Options{})
	require.NoError(t, err)
	defer b.Close()
	options := kafkaio.Options{ClientID: "test", MaxBytes: 1500, SessionTimeout: 2 * time.Second}
	client, err := kafkaio.Dial([]string{b.Addr()}, options)
	require.NoError(t, err)
	defer client.Close()
	require.NoError(t, client.EnsureTopic(t.Context(), eventsTopic, 2, nil))
	p := client.Producer(eventsTopic)
	for i := range 200 {
		e := schema.Envelope{ID: strconv.Itoa(i), Origin: "test", Type: "winnow.jira.rest.issue", Time: fixedNow, Tenant: gate.LocalTenant, Product: schema.Jira}
		require.NoError(t, p.Produce(t.Context(), kafkaio.Message{Key: []byte(strconv.Itoa(i)), Value: []byte(`{"id":"1","key":"A-1","fields":{"summary":"x"}}`), Headers: e.AppendHeaders(nil), Time: fixedNow}))
	}
	require.NoError(t, p.Close())
	ranges, err := client.Offsets(t.Context(), eventsTopic, []int{0, 1})
	require.NoError(t, err)
	store, err := batch.Create(filepath.Join(dir, "out"))
	require.NoError(t, err)

	// Partition 1 is slow, and waits for the other member before it ends.
	came := make(chan struct{})
	failpoint.Hook = func(p failpoint.Point) error {
		if p.Op == "open" && strings.HasPrefix(p.Name, "_intents/"+eventsTopic+"/1/") {
			time.Sleep(50 * time.Millisecond)
		}
		return nil
	}
	defer func() { failpoint.Hook = nil }()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		defer close(came)
		for end := int64(0); end < ranges[0].End; {
			if waitFor(ctx, 10*time.Millisecond) != nil {
				return
			}
			end, _ = store.Next(eventsTopic, 0)
		}
		other, err := kafkaio.Dial([]string{b.Addr()}, options)
		if err != nil {
			return
		}
		defer other.Close()
		_ = other.Consume(ctx, "test", eventsTopic, func(ctx context.Context, _ *kafkaio.Assignment) error {
			cancel() // and away again
			<-ctx.Done()
			return ctx.Err()
		})
	}()
	w := &worker{
		client: client, store: store, policy: gate.NewPolicy(gate.Options{AssumeConsent: true}), now: fixedClock, log: slog.New(slog.DiscardHandler),
		topic: eventsTopic, group: "test", flush: flushLimits{FlushBytes: 1 << 20, FlushRecords: 2, FlushAge: time.Hour},
		drain: map[int]int64{0: ranges[0].End, 1: ranges[1].End},
	}
	require.NoError(t, w.run(t.Context()))
	cancel()
	<-came
	for p, r := range ranges {
		end, err := store.Next(eventsTopic, p)
		require.NoError(t, err)
		require.Equal(t, r.End, end, "partition %d", p)
	}
}

// TestReplayIntoABucket: the commands take a bucket where they take a
// directory, and what is in it is the same.
func TestReplayIntoABucket(t *testing.T) {
	server := s3.Start(t)
	t.Setenv("AWS_ACCESS_KEY_ID", server.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", server.SecretKey)
	const fixtures = "../../fixtures"
	at := "s3://" + server.Bucket + "/data/set?region=" + server.Region + "&use_path_style=true&endpoint=" + server.Endpoint
	r := deidentify(t, "", "replay", fixtures+"/events", "--tenants", fixtures+"/tenants.jsonl", "--out", at)
	require.Zero(t, r.code, r.stderr)
	dir := filepath.Join(t.TempDir(), "out")
	require.Zero(t, deidentify(t, "", "replay", fixtures+"/events", "--tenants", fixtures+"/tenants.jsonl", "--out", dir).code)
	texts := func(at string) (out []string) {
		for _, r := range rowsOf(t, at) {
			out = append(out, r.Text)
		}
		return out
	}
	require.Equal(t, texts(dir), texts(at))
	r = deidentify(t, "", "check", at, "--sweep")
	require.Zero(t, r.code, r.stdout+r.stderr)
	require.Contains(t, r.stdout, "whole")
	require.Contains(t, r.stdout, "swept: 0 files")
	r = deidentify(t, "", "replay", fixtures+"/events", "--tenants", fixtures+"/tenants.jsonl", "--out", at)
	require.Equal(t, exitFailure, r.code)
	require.Contains(t, r.stderr, "s3://"+server.Bucket+"/data/set already holds a data set")
	require.NotContains(t, r.stdout+r.stderr, server.SecretKey)
}
