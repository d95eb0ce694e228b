package batch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"
	"github.com/stretchr/testify/require"

	"winnow/pkg/schema"
	"winnow/pkg/scrub"
)

const topic = "events"

// sampled reports whether the i-th of many cases of one kind is to be run: each
// of them, but only every fourth under -short, as make race has it.
func sampled(i int) bool { return !testing.Short() || i%4 == 0 }

var formats = []Format{Parquet, JSONL}

// source makes real records: an issue whose summary and description are given.
type source struct {
	t testing.TB
	s *scrub.Scrubber
}

func newSource(t testing.TB) source { return source{t, scrub.New()} }

func (s source) record(offset int64, text string, change ...func(*schema.Event)) scrub.Record {
	return s.parts(offset, []string{text}, change...)
}

func (s source) parts(offset int64, texts []string, change ...func(*schema.Event)) scrub.Record {
	s.t.Helper()
	fields := map[string]any{"issuetype": map[string]any{"name": "Bug"}, "project": map[string]any{"key": "A"}}
	for i, text := range texts {
		fields[[]string{"summary", "description"}[i]] = text
	}
	value, err := json.Marshal(map[string]any{"id": "1", "key": "A-1", "fields": fields})
	require.NoError(s.t, err)
	e := &schema.Event{
		Envelope: schema.Envelope{
			ID: fmt.Sprint("event ", offset), Origin: "test", Type: "winnow.jira.rest.issue", Product: schema.Jira,
			Tenant: "acme-tenant", Time: time.Date(2026, 9, 14, 10, 11, 12, 0, time.UTC),
		},
		Source: schema.Source{Topic: topic, Partition: 0, Offset: offset}, Value: value,
		Streams: schema.Metadata | schema.InApp, Region: "eu",
	}
	for _, f := range change {
		f(e)
	}
	require.NoError(s.t, e.Parse())
	r, err := s.s.Record(e)
	require.NoError(s.t, err)
	return r
}

func only(streams schema.Streams, why schema.Withheld) func(*schema.Event) {
	return func(e *schema.Event) { e.Streams, e.Withheld = streams, why }
}

func in(region string, month time.Month) func(*schema.Event) {
	return func(e *schema.Event) {
		e.Region, e.Time = region, time.Date(2026, month, 30, 23, 59, 59, 0, time.UTC)
	}
}

func dataset(t testing.TB) *Store {
	t.Helper()
	s, err := Create(filepath.Join(t.TempDir(), "out"))
	require.NoError(t, err)
	return s
}

// abs returns where a file of a dataset on disk lies.
func (s *Store) abs(rel string) string { return s.storage.(*disk).abs(rel) }

func (s *Store) dir() string { return s.storage.(*disk).root }

func open(t testing.TB, s *Store, o Options) *Writer {
	t.Helper()
	w, err := s.Writer(context.Background(), topic, 0, o)
	require.NoError(t, err)
	return w
}

func src(offset int64) schema.Source { return schema.Source{Topic: topic, Offset: offset} }

func rows(t testing.TB, s *Store, c Commit) (out []Row) {
	t.Helper()
	require.NoError(t, s.ReadRows(c, func(_ File, r Row) error { out = append(out, r); return nil }))
	return out
}

// allTexts returns the texts of the whole chain in order.
func allTexts(t testing.TB, s *Store) (out []string) {
	t.Helper()
	chain, err := s.Chain(topic, 0)
	require.NoError(t, err)
	for _, c := range chain {
		for _, r := range rows(t, s, c) {
			out = append(out, r.Text)
		}
	}
	return out
}

func check(t testing.TB, s *Store) Report {
	t.Helper()
	r, err := s.Check(t.Context())
	require.NoError(t, err)
	return r
}

func clean(t testing.TB, s *Store) Report {
	t.Helper()
	r := check(t, s)
	require.Empty(t, r.Faults)
	return r
}

// files lists what lies under a directory of the dataset.
func files(t testing.TB, s *Store, dir string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(s.abs(dir), func(p string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			rel, _ := filepath.Rel(s.dir(), p)
			out = append(out, filepath.ToSlash(rel))
		}
		return err
	})
	if !errors.Is(err, fs.ErrNotExist) {
		require.NoError(t, err)
	}
	return out
}

func TestRoundTrip(t *testing.T) {
	for _, f := range formats {
		t.Run(f.String(), func(t *testing.T) {
			s, in1 := dataset(t), newSource(t)
			prov := Provenance{TenantsOffset: 7, UnsetSettings: "vendor", AssumeConsent: true, EventTime: "replay"}
			w := open(t, s, Options{Format: f, TopicID: "topic-id"})
			// The Scrubber reuses the texts of a Record at its next call, so
			// this also shows that Add copies.
			require.NoError(t, w.Add(in1.parts(0, []string{"first <summary>", "mail joe@example.org"})))
			require.NoError(t, w.Add(in1.record(1, "second", in("us", time.October))))
			w.Drop(src(2), schema.Withheld{Metadata: "opted_out", InApp: "opted_out"})
			require.NoError(t, w.Add(in1.record(4, "third é\u2028", in("eu", time.September)))) // 3 is a hole
			w.Reject(src(5), &schema.Error{Reason: schema.ReasonMalformedJSON, Path: "issue.fields", Offset: 12})
			bytes, records := w.Buffered()
			require.EqualValues(t, 5, records)
			require.Greater(t, bytes, int64(len("first <summary>")+len("second")+len("third")))
			w.SetProvenance(prov)
			c, err := w.Commit(6) // 6 is a hole as well
			require.NoError(t, err)

			bytes, records = w.Buffered()
			require.Zero(t, bytes)
			require.Zero(t, records)
			chain, err := s.Chain(topic, 0)
			require.NoError(t, err)
			require.Equal(t, []Commit{c}, chain)
			require.EqualValues(t, 0, c.Start)
			require.EqualValues(t, 7, c.End)
			require.True(t, c.Genesis)
			require.Equal(t, prov, c.Provenance)
			require.Equal(t, "topic-id", c.TopicID)
			require.Equal(t, scrub.Version, c.ScrubVersion)
			require.EqualValues(t, 5, c.Records)
			require.EqualValues(t, 2, c.Holes)
			require.Equal(t, InAppCounts{Documents: 3, Rows: 4, Drops: map[schema.Reason]int64{"opted_out": 1, schema.ReasonMalformedJSON: 1}}, c.InApp)
			require.Equal(t, MetadataCounts{Counted: 3, Drops: map[schema.Reason]int64{"opted_out": 1, schema.ReasonMalformedJSON: 1}}, c.Metadata)
			require.Equal(t, map[string]int64{"EMAIL": 1}, c.Spans)

			got := rows(t, s, c)
			ids := []string{got[0].ID, got[2].ID, got[3].ID}
			require.Equal(t, got[0].ID, got[1].ID, "the parts of a document share its id")
			slices.Sort(ids)
			require.Len(t, slices.Compact(ids), 3)
			for i := range got {
				got[i].ID = ""
			}
			row := func(part int32, role, format, text, month string) Row {
				return Row{"", part, "jira", "issue", role, format, text, month, scrub.Version}
			}
			require.Equal(t, []Row{
				row(0, "summary", "plain", "first <summary>", "2026-09"),
				row(1, "description", "wiki", "mail [EMAIL_1]", "2026-09"),
				row(0, "summary", "plain", "third é\u2028", "2026-09"),
				row(0, "summary", "plain", "second", "2026-10"),
			}, got)

			name := fmt.Sprintf("events-0-%020d-%s%s", 0, c.Attempt, extensions[f])
			var paths []string
			for _, f := range c.Files {
				paths = append(paths, f.Path)
			}
			require.Equal(t, []string{
				"in-app/region=eu/dt=2026-09-01/" + name, "in-app/region=us/dt=2026-10-01/" + name,
				"metadata/window=2026-09/" + name, "metadata/window=2026-10/" + name,
				fmt.Sprintf("_quarantine/events/0/%020d-%s.jsonl", 0, c.Attempt),
				fmt.Sprintf("_seen/events/0/%020d-%s.ids", 0, c.Attempt),
			}, paths)
			require.ElementsMatch(t, append(paths, "_dataset.json", fmt.Sprintf("_commits/events/0/%020d.json", 0)), files(t, s, "."))

			r := clean(t, s)
			r.Bytes = 0
			require.Equal(t, Report{Partitions: 1, Commits: 1, Files: 6, Rows: 4, Documents: 3}, r)

			var q map[string]any
			b, err := os.ReadFile(s.abs(paths[4]))
			require.NoError(t, err)
			require.NoError(t, json.Unmarshal(b, &q))
			require.NotEmpty(t, q["time"])
			delete(q, "time")
			require.Equal(t, map[string]any{"topic": topic, "partition": 0., "offset": 5., "reason": "malformed_json", "path": "issue.fields", "byte": 12.}, q)
		})
	}
}

// The columns are a promise to readers and to privacy: none names a tenant,
// person, key or offset.
func TestColumns(t *testing.T) {
	var names []string
	for _, f := range parquet.SchemaOf(Row{}).Fields() {
		names = append(names, f.Name())
	}
	want := []string{"id", "part", "product", "kind", "role", "format", "text", "month", "scrub_version"}
	require.Equal(t, want, names)
	var m map[string]any
	b, err := json.Marshal(Row{})
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(b, &m))
	require.Len(t, m, len(want))
	for _, n := range want {
		require.Contains(t, m, n)
	}
}

func TestResume(t *testing.T) {
	s, in := dataset(t), newSource(t)
	w := open(t, s, Options{})
	var want []string
	for o := int64(0); o < 9; o++ {
		if o == 3 || o == 6 { // one writer takes two batches, a reopened store the third
			_, err := w.Commit(o - 1)
			require.NoError(t, err)
		}
		if o == 6 {
			var err error
			s, err = Open(s.dir())
			require.NoError(t, err)
			w = open(t, s, Options{})
			next, err := s.Next(topic, 0)
			require.NoError(t, err)
			require.Equal(t, o, next)
		}
		want = append(want, fmt.Sprint("text ", o))
		require.NoError(t, w.Add(in.record(o, want[o])))
	}
	_, err := w.Commit(8)
	require.NoError(t, err)
	require.Equal(t, want, allTexts(t, s))
	require.EqualValues(t, 3, clean(t, s).Commits)

	ps, err := s.Partitions()
	require.NoError(t, err)
	require.Equal(t, []Partition{{topic, 0}}, ps)
	next, err := s.Next(topic, 1)
	require.NoError(t, err)
	require.Zero(t, next)
}

// A log whose beginning retention removed: the gap is explicit, and the name
// of the first commit does not depend on where a worker saw the log begin.
func TestGenesis(t *testing.T) {
	s, in := dataset(t), newSource(t)
	a, b := open(t, s, Options{}), open(t, s, Options{})
	require.NoError(t, a.StartAt(5))
	require.NoError(t, b.StartAt(7))
	require.NoError(t, a.Add(in.record(5, "a")))
	require.NoError(t, b.Add(in.record(7, "b")))
	require.Error(t, a.StartAt(6), "records were added")
	c, err := a.Commit(9)
	require.NoError(t, err)
	require.True(t, c.Genesis)
	require.EqualValues(t, 5, c.Start)
	require.EqualValues(t, 4, c.Holes)
	_, err = b.Commit(11)
	require.ErrorIs(t, err, ErrCommitted, "two first commits would be a fork")
	require.Error(t, a.StartAt(20), "the chain has commits")
	require.Error(t, open(t, s, Options{}).StartAt(20))

	next, err := s.Next(topic, 0)
	require.NoError(t, err)
	require.EqualValues(t, 10, next)
	_, err = a.Commit(10)
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, allTexts(t, s))
	require.EqualValues(t, 2, clean(t, s).Commits)
	require.FileExists(t, s.abs(commitFile(Partition{topic, 0}, 0)))
}

func TestAccounting(t *testing.T) {
	type drops = map[schema.Reason]int64
	both := schema.Metadata | schema.InApp
	for name, tc := range map[string]struct {
		feed     func(t *testing.T, w *Writer, in source)
		inApp    InAppCounts
		metadata MetadataCounts
	}{
		"both": {func(t *testing.T, w *Writer, in source) { require.NoError(t, w.Add(in.record(0, "x"))) },
			InAppCounts{1, 1, drops{}}, MetadataCounts{1, drops{}}},
		"metadata only": {func(t *testing.T, w *Writer, in source) {
			require.NoError(t, w.Add(in.record(0, "x", only(schema.Metadata, schema.Withheld{InApp: "in_app_off"}))))
		}, InAppCounts{0, 0, drops{"in_app_off": 1}}, MetadataCounts{1, drops{}}},
		"in-app only": {func(t *testing.T, w *Writer, in source) {
			require.NoError(t, w.Add(in.record(0, "x", only(schema.InApp, schema.Withheld{Metadata: "opted_out_metadata"}))))
		}, InAppCounts{1, 1, drops{}}, MetadataCounts{0, drops{"opted_out_metadata": 1}}},
		"no text": {func(t *testing.T, w *Writer, in source) {
			require.NoError(t, w.Add(in.parts(0, nil, only(both, schema.Withheld{}))))
		}, InAppCounts{0, 0, drops{"no_text": 1}}, MetadataCounts{1, drops{}}},
		"drop": {func(t *testing.T, w *Writer, in source) {
			w.Drop(src(0), schema.Withheld{Metadata: "tenant_unknown", InApp: "exempt_hipaa"})
		}, InAppCounts{0, 0, drops{"exempt_hipaa": 1}}, MetadataCounts{0, drops{"tenant_unknown": 1}}},
		"reject": {func(t *testing.T, w *Writer, in source) {
			w.Reject(src(0), &schema.Error{Reason: schema.ReasonTooDeep})
		},
			InAppCounts{0, 0, drops{"too_deep": 1}}, MetadataCounts{0, drops{"too_deep": 1}}},
		"reject of our own fault": {func(t *testing.T, w *Writer, in source) { w.Reject(src(0), errors.New("a name: J. Roe")) },
			InAppCounts{0, 0, drops{"internal_failure": 1}}, MetadataCounts{0, drops{"internal_failure": 1}}},
		"holes only": {func(t *testing.T, w *Writer, in source) {}, InAppCounts{0, 0, drops{}}, MetadataCounts{0, drops{}}},
	} {
		t.Run(name, func(t *testing.T) {
			s := dataset(t)
			w := open(t, s, Options{})
			tc.feed(t, w, newSource(t))
			c, err := w.Commit(2)
			require.NoError(t, err)
			require.Equal(t, tc.inApp, c.InApp)
			require.Equal(t, tc.metadata, c.Metadata)
			require.EqualValues(t, 3, c.Records+c.Holes)
			clean(t, s)
			for _, f := range files(t, s, quarantineDir) {
				b, err := os.ReadFile(s.abs(f))
				require.NoError(t, err)
				require.NotContains(t, string(b), "Roe")
			}
		})
	}
}

func TestWriterRefuses(t *testing.T) {
	why := schema.Withheld{Metadata: "opted_out", InApp: "opted_out"}
	for name, tc := range map[string]struct {
		misuse func(w *Writer, in source) error
		want   string
	}{
		"the zero Record": {func(w *Writer, in source) error { return w.Add(scrub.Record{}) }, "may feed no stream"},
		"an offset twice": {func(w *Writer, in source) error { return w.Add(in.record(3, "again")) }, "does not follow 3"},
		"a lower offset":  {func(w *Writer, in source) error { w.Drop(src(2), why); return nil }, "does not follow 3"},
		"an offset below the batch": {func(w *Writer, in source) error { w.Reject(src(1), errors.New("x")); return nil },
			"lies before the batch"},
		"another partition": {func(w *Writer, in source) error {
			w.Drop(schema.Source{Topic: topic, Partition: 1, Offset: 4}, why)
			return nil
		}, "the writer is of events/0"},
		"a drop without a reason": {func(w *Writer, in source) error { w.Drop(src(4), schema.Withheld{InApp: "opted_out"}); return nil },
			"without a reason"},
		"a stream withheld without a reason": {func(w *Writer, in source) error {
			return w.Add(in.record(4, "x", only(schema.Metadata, schema.Withheld{})))
		}, "without a reason"},
		"a region that is a path": {func(w *Writer, in source) error {
			return w.Add(in.record(4, "x", func(e *schema.Event) { e.Region = "../eu" }))
		}, "region"},
		"no region": {func(w *Writer, in source) error {
			return w.Add(in.record(4, "x", func(e *schema.Event) { e.Region = "" }))
		}, "region"},
		"no product": {func(w *Writer, in source) error {
			return w.Add(in.record(4, "x", func(e *schema.Event) { e.Product = "" }))
		}, "product"},
	} {
		t.Run(name, func(t *testing.T) {
			s, in := dataset(t), newSource(t)
			w := open(t, s, Options{})
			require.NoError(t, w.Add(in.record(1, "kept")))
			_, err := w.Commit(1)
			require.NoError(t, err)
			require.NoError(t, w.Add(in.record(3, "not committed")))
			if err := tc.misuse(w, in); err != nil {
				require.ErrorContains(t, err, tc.want)
			}
			_, err = w.Commit(9)
			require.ErrorContains(t, err, tc.want)
			require.Error(t, w.Add(in.record(5, "later")))
			next, err := s.Next(topic, 0)
			require.NoError(t, err)
			require.EqualValues(t, 2, next)
			require.Equal(t, []string{"kept"}, allTexts(t, s))
			require.Zero(t, clean(t, s).Orphans)
		})
	}
}

func TestCommitRange(t *testing.T) {
	s, in := dataset(t), newSource(t)
	w := open(t, s, Options{})
	_, err := w.Commit(-1)
	require.ErrorContains(t, err, "empty range")
	require.NoError(t, w.Add(in.record(3, "x")))
	_, err = w.Commit(2)
	require.ErrorContains(t, err, "3 was added")
	_, err = w.Commit(3) // neither ended the writer
	require.NoError(t, err)
	_, err = w.Commit(3)
	require.ErrorContains(t, err, "empty range")
	require.Equal(t, []string{"x"}, allTexts(t, s))
}

func TestCreateOpen(t *testing.T) {
	write := func(t *testing.T, dir, name, content string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
	}
	for name, tc := range map[string]struct {
		prepare      func(t *testing.T, dir string)
		create, open string // the error, or nothing
	}{
		"missing":         {func(t *testing.T, dir string) { require.NoError(t, os.Remove(dir)) }, "", "is not a dataset"},
		"empty":           {func(t *testing.T, dir string) {}, "", "is not a dataset"},
		"a dataset":       {func(t *testing.T, dir string) { _, err := Create(dir); require.NoError(t, err) }, "", ""},
		"other files":     {func(t *testing.T, dir string) { write(t, dir, "thesis.tex", "") }, "not empty", "is not a dataset"},
		"a later layout":  {func(t *testing.T, dir string) { write(t, dir, marker, `{"winnow_dataset":99}`) }, "layout version 99", "layout version 99"},
		"a broken marker": {func(t *testing.T, dir string) { write(t, dir, marker, `{`) }, marker, marker},
		"a creator that died": {func(t *testing.T, dir string) { write(t, dir, marker+".tmp-1", `{"win`) },
			"", "is not a dataset"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			tc.prepare(t, dir)
			expect := func(want string, f func(string) (*Store, error)) {
				t.Helper()
				if s, err := f(dir); want == "" {
					require.NoError(t, err)
					clean(t, s)
				} else {
					require.ErrorContains(t, err, want)
				}
			}
			expect(tc.open, Open)
			expect(tc.create, Create)
			if tc.create == "" {
				expect("", Open)
			}
		})
	}
}

func TestPartitionNames(t *testing.T) {
	s, in := dataset(t), newSource(t)
	for _, name := range []string{"", ".", "..", "a/b", "a b", "événements", strings.Repeat("t", maxTopic+1)} {
		_, err := s.Writer(context.Background(), name, 0, Options{})
		require.Error(t, err, "topic %q", name)
		_, err = s.Next(name, 0)
		require.Error(t, err, "topic %q", name)
	}
	_, err := s.Writer(context.Background(), topic, -1, Options{})
	require.Error(t, err)
	// The longest name, and names that only the shape of the rest tells apart.
	var want []Partition
	for _, p := range []Partition{{strings.Repeat("t", maxTopic), 1<<31 - 1}, {"a", 1}, {"a-1-00000000000000000000", 1}, {"a-1", 2}, {"a-1", 10}} {
		w, err := s.Writer(context.Background(), p.Topic, p.Partition, Options{Format: JSONL})
		require.NoError(t, err)
		r := in.record(0, "x", func(e *schema.Event) { e.Source = schema.Source{Topic: p.Topic, Partition: p.Partition} })
		require.NoError(t, w.Add(r))
		c, err := w.Commit(0)
		require.NoError(t, err)
		for _, f := range c.Files {
			require.Equal(t, dataFile{path: f.Path, part: p, attempt: c.Attempt}, parseDataFile(f.Path))
		}
		want = append(want, p)
	}
	ps, err := s.Partitions()
	require.NoError(t, err)
	require.ElementsMatch(t, want, ps)
	require.EqualValues(t, 5, clean(t, s).Commits)
}

func TestTopicMadeAnew(t *testing.T) {
	s := dataset(t)
	_, err := open(t, s, Options{TopicID: "one"}).Commit(0)
	require.NoError(t, err)
	_, err = s.Writer(context.Background(), topic, 0, Options{TopicID: "two"})
	require.ErrorContains(t, err, "another id")
	_, err = open(t, s, Options{TopicID: "one"}).Commit(1)
	require.NoError(t, err)
}

func TestDeterminism(t *testing.T) {
	type result struct {
		Rows  []Row
		Files []File
	}
	run := func(f Format) (out result) {
		s, src := dataset(t), newSource(t)
		w := open(t, s, Options{Format: f})
		for o := int64(0); o < 60; o++ {
			r := src.parts(o, []string{fmt.Sprint("summary ", o), fmt.Sprint("body of ", o)}, in([]string{"eu", "us", "au"}[o%3], time.September+time.Month(o%4)))
			require.NoError(t, w.Add(r))
		}
		c, err := w.Commit(59)
		require.NoError(t, err)
		for _, r := range rows(t, s, c) {
			r.ID = ""
			out.Rows = append(out.Rows, r)
		}
		for _, f := range c.Files {
			out.Files = append(out.Files, File{Stream: f.Stream, Region: f.Region, Month: f.Month, Rows: f.Rows})
		}
		return out
	}
	a := run(Parquet)
	require.Len(t, a.Rows, 120)
	require.Equal(t, a, run(Parquet))
	require.Equal(t, a, run(JSONL), "the formats hold the same rows")
}

// Row groups bound what Parquet holds; the order of rows crosses them.
func TestRowGroups(t *testing.T) {
	s, in := dataset(t), newSource(t)
	w := open(t, s, Options{})
	big := strings.Repeat("lorem ipsum ", rowGroupBytes/3/12)
	var want []string
	for o := range int64(7) {
		want = append(want, fmt.Sprint(big, o))
		require.NoError(t, w.Add(in.record(o, want[o])))
	}
	c, err := w.Commit(6)
	require.NoError(t, err)
	require.True(t, slices.Equal(want, allTexts(t, s)))
	b, err := s.load(t.Context(), &c, &c.Files[0], 0, c.Attempt)
	require.NoError(t, err)
	f, err := parquet.OpenFile(strings.NewReader(string(b)), int64(len(b)))
	require.NoError(t, err)
	require.Greater(t, len(f.RowGroups()), 1)
	clean(t, s)
}

func TestReadRowsStops(t *testing.T) {
	for _, f := range formats {
		s, in := dataset(t), newSource(t)
		w := open(t, s, Options{Format: f})
		require.NoError(t, w.Add(in.parts(0, []string{"a", "b"})))
		c, err := w.Commit(0)
		require.NoError(t, err)
		n, stop := 0, errors.New("enough")
		require.ErrorIs(t, s.ReadRows(c, func(File, Row) error { n++; return stop }), stop)
		require.Equal(t, 1, n)
	}
}

func BenchmarkCommit(b *testing.B) {
	const records = 2000
	words := strings.Fields("the import job stops after third file and queue grows until someone restarts it again while every " +
		"request for a new export waits behind its lock so that users see an empty page with no hint of what went wrong yesterday")
	rnd := rand.New(rand.NewPCG(1, 2))
	var size int64
	text := func() string { // 20 to 300 words, without identifiers
		var b strings.Builder
		for range 20 + rnd.IntN(280) {
			b.WriteString(words[rnd.IntN(len(words))])
			b.WriteByte(' ')
		}
		return b.String()
	}
	for _, f := range formats {
		b.Run(f.String(), func(b *testing.B) {
			s, in := dataset(b), newSource(b)
			w := open(b, s, Options{Format: f})
			b.ReportAllocs()
			var offset, commits int64
			size = 0
			for b.Loop() {
				b.StopTimer() // scrubbing is not what is measured
				rs := make([]scrub.Record, records)
				for i := range rs {
					in.s = scrub.New() // a Record's texts are its Scrubber's
					rs[i] = in.record(offset+int64(i), text())
					size += int64(len(rs[i].Parts()[0].Text))
				}
				commits++
				b.SetBytes(size / commits)
				b.StartTimer()
				for i := range rs {
					if err := w.Add(rs[i]); err != nil {
						b.Fatal(err)
					}
				}
				offset += records
				if _, err := w.Commit(offset - 1); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			require.EqualValues(b, offset, clean(b, s).Rows)
		})
	}
}
