package batch

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"winnow/internal/failpoint"
	"winnow/pkg/schema"
)

// drawing lets the helpers of this package run under rapid: a failure is
// rapid's, so that it looks for a smaller one; the rest is the outer test's.
type drawing struct {
	testing.TB
	draw *rapid.T
}

func (d drawing) Helper()                        {}
func (d drawing) Errorf(format string, a ...any) { d.draw.Errorf(format, a...) }
func (d drawing) FailNow()                       { d.draw.FailNow() }

func setHorizon(t testing.TB, offsets int64) {
	t.Helper()
	before := horizon
	horizon = offsets
	t.Cleanup(func() { horizon = before })
}

func keyOf(n int) key { return key{15: byte(n), 14: byte(n >> 8), 13: byte(n >> 16)} }

func TestMemoryAgainstReference(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMemory(rapid.Int64Range(1, 12).Draw(t, "horizon"))
		var added []seenAt
		at := rapid.Int64Range(0, 1<<40).Draw(t, "start")
		for range rapid.IntRange(1, 80).Draw(t, "n") {
			at += rapid.Int64Range(0, rapid.SampledFrom([]int64{1, 1, 2, 2 * m.horizon}).Draw(t, "stride")).Draw(t, "step")
			for k := range 6 {
				want := slices.ContainsFunc(added, func(s seenAt) bool { return s.key == keyOf(k) && at-s.offset <= m.horizon })
				require.Equal(t, want, m.has(keyOf(k), at), "key %d at %d of %v", k, at, added)
			}
			s := seenAt{at, keyOf(rapid.IntRange(0, 5).Draw(t, "key"))}
			added = append(added, s)
			m.add(s)
		}
	})
}

// Two horizons of keys are all that is kept, however long a chain grows.
func TestMemoryForgets(t *testing.T) {
	const h = 100
	m := newMemory(h)
	for o := range int64(20 * h) {
		m.add(seenAt{o, keyOf(int(o))})
		require.LessOrEqual(t, len(m.young)+len(m.old), 2*(h+1))
		require.True(t, m.has(keyOf(int(max(0, o-h))), o))
	}
}

func TestSeenRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := rapid.Int64Range(0, 1<<50).Draw(t, "start")
		var want, got []seenAt
		at := start
		for i := range rapid.IntRange(0, 40).Draw(t, "n") {
			at += rapid.Int64Range(0, rapid.SampledFrom([]int64{1, 127, 128, 1 << 40}).Draw(t, "stride")).Draw(t, "step")
			want = append(want, seenAt{at, keyOf(i)})
		}
		b := appendSeen([]byte("before"), start, want)
		require.True(t, bytes.HasPrefix(b, []byte("before")))
		b = b[len("before"):]
		require.NoError(t, decodeSeen(b, start, at+1, func(s seenAt) { got = append(got, s) }))
		require.Equal(t, want, got)
		if len(want) > 0 {
			n := rapid.IntRange(1, len(b)-1).Draw(t, "cut")
			whole := 0
			err := decodeSeen(b[:n], start, at+1, func(seenAt) { whole++ })
			require.Less(t, whole, len(want))
			require.Equal(t, len(appendSeen(nil, start, want[:whole])) != n, err != nil, "cut within an entry")
		}
		if at > start { // the last entry lies past the end
			require.ErrorContains(t, decodeSeen(b, start, at, func(seenAt) {}), "no offset of the commit")
		}
	})
}

func FuzzDecodeSeen(f *testing.F) {
	f.Add([]byte{}, int64(0), uint32(1))
	f.Add(appendSeen(nil, 7, []seenAt{{7, keyOf(1)}, {7, keyOf(2)}, {300, keyOf(3)}}), int64(7), uint32(400))
	f.Add(appendSeen(nil, 0, []seenAt{{0, keyOf(1)}, {9, keyOf(2)}}), int64(0), uint32(9)) // past the end
	f.Add(append(bytes.Repeat([]byte{0xff}, 9), make([]byte, 17)...), int64(1)<<62, uint32(5))
	f.Add(append(bytes.Repeat([]byte{0xff}, 10), make([]byte, 17)...), int64(3), uint32(5)) // more than 64 bits
	f.Fuzz(func(t *testing.T, b []byte, start int64, length uint32) {
		start = max(0, min(start, 1<<63-1-int64(length)))
		end := start + int64(length)
		var got []seenAt
		last := start
		err := decodeSeen(b, start, end, func(s seenAt) {
			if s.offset < last || s.offset >= end {
				t.Errorf("offset %d after %d in [%d, %d)", s.offset, last, start, end)
			}
			last = s.offset
			got = append(got, s)
		})
		require.LessOrEqual(t, len(got)*17, len(b))
		if err == nil {
			var again []seenAt
			require.NoError(t, decodeSeen(appendSeen(nil, start, got), start, end, func(s seenAt) { again = append(again, s) }))
			require.Equal(t, got, again)
		}
	})
}

func withID(id string) func(*schema.Event)     { return func(e *schema.Event) { e.ID = id } }
func inRegion(name string) func(*schema.Event) { return func(e *schema.Event) { e.Region = name } }
func ofTenant(name string) func(*schema.Event) { return func(e *schema.Event) { e.Tenant = name } }
func droppedRepeats(n int64) map[schema.Reason]int64 {
	return map[schema.Reason]int64{schema.ReasonRepeat: n}
}
func toldTwice(n int64) map[schema.Reason]int64 {
	return map[schema.Reason]int64{schema.ReasonToldTwice: n}
}

// between is what lies between a record and its repeat.
var between = map[string]func(t *testing.T, s *Store, w *Writer, last int64) *Writer{
	"in the open batch": func(t *testing.T, s *Store, w *Writer, last int64) *Writer { return w },
	"over two commits": func(t *testing.T, s *Store, w *Writer, last int64) *Writer {
		_, err := w.Commit(last)
		require.NoError(t, err)
		return w
	},
	"over a restart": func(t *testing.T, s *Store, w *Writer, last int64) *Writer {
		_, err := w.Commit(last)
		require.NoError(t, err)
		s, err = Open(s.dir())
		require.NoError(t, err)
		return open(t, s, Options{})
	},
}

// totals adds up the counts of the whole chain.
func totals(t testing.TB, s *Store) (inApp InAppCounts, metadata MetadataCounts, spans map[string]int64) {
	t.Helper()
	inApp.Drops, metadata.Drops, spans = map[schema.Reason]int64{}, map[schema.Reason]int64{}, map[string]int64{}
	chain, err := s.Chain(topic, 0)
	require.NoError(t, err)
	for _, c := range chain {
		inApp.Documents += c.InApp.Documents
		inApp.Rows += c.InApp.Rows
		metadata.Counted += c.Metadata.Counted
		for r, n := range c.InApp.Drops {
			inApp.Drops[r] += n
		}
		for r, n := range c.Metadata.Drops {
			metadata.Drops[r] += n
		}
		for l, n := range c.Spans {
			spans[l] += n
		}
	}
	return inApp, metadata, spans
}

func TestRepeat(t *testing.T) {
	for name, pause := range between {
		t.Run(name, func(t *testing.T) {
			s, in := dataset(t), newSource(t)
			w := open(t, s, Options{})
			require.NoError(t, w.Add(in.record(0, "once, mail joe@example.org", withID("a"))))
			metadata := only(schema.Metadata, schema.Withheld{InApp: "in_app_off"})
			require.NoError(t, w.Add(in.record(1, "withheld", withID("b"), metadata)))
			// What was not added is not in the dataset.
			w.Drop(src(2), schema.Withheld{Metadata: "opted_out", InApp: "opted_out"})
			w = pause(t, s, w, 2)
			require.NoError(t, w.Add(in.record(3, "once, mail joe@example.org", withID("a"))))
			require.NoError(t, w.Add(in.record(4, "withheld", withID("b"))))
			require.NoError(t, w.Add(in.record(5, "of another tenant", withID("a"), ofTenant("other-tenant"))))
			require.NoError(t, w.Add(in.record(6, "event 2 was dropped", withID("event 2"))))
			require.NoError(t, w.Add(in.record(7, "again", withID("a"), metadata)))
			_, err := w.Commit(7)
			require.NoError(t, err)

			require.Equal(t, []string{"once, mail [EMAIL_1]", "of another tenant", "event 2 was dropped"}, allTexts(t, s))
			inApp, counted, spans := totals(t, s)
			require.Equal(t, InAppCounts{3, 3, map[schema.Reason]int64{schema.ReasonRepeat: 3, "in_app_off": 1, "opted_out": 1}}, inApp)
			require.Equal(t, MetadataCounts{4, map[schema.Reason]int64{schema.ReasonRepeat: 3, "opted_out": 1}}, counted)
			require.Equal(t, map[string]int64{"EMAIL": 1}, spans)
			clean(t, s)
		})
	}
}

func TestHorizonIsExact(t *testing.T) {
	const h = 5
	setHorizon(t, h)
	for name, pause := range between {
		for _, first := range []int64{0, 3, 1000} {
			for distance, repeats := range map[int64]int64{h: 1, h + 1: 0} {
				t.Run(fmt.Sprintf("%s, from %d over %d", name, first, distance), func(t *testing.T) {
					t.Parallel() // the time goes to fsync
					s, in := dataset(t), newSource(t)
					w := open(t, s, Options{Format: JSONL})
					require.NoError(t, w.Add(in.record(first, "x", withID("a"))))
					w = pause(t, s, w, first)
					require.NoError(t, w.Add(in.record(first+distance, "x", withID("a"))))
					_, err := w.Commit(first + distance)
					require.NoError(t, err)
					inApp, metadata, _ := totals(t, s)
					require.Equal(t, 2-repeats, inApp.Documents)
					require.Equal(t, 2-repeats, metadata.Counted)
					require.Equal(t, repeats, inApp.Drops[schema.ReasonRepeat])
					require.Equal(t, repeats, metadata.Drops[schema.ReasonRepeat])
					require.Len(t, allTexts(t, s), int(2-repeats))
					clean(t, s)
				})
			}
		}
	}
}

// Payloads as a server sends them: when a comment is written, comment_created
// tells of it, and issue_updated with the comment beside the issue.
const (
	someone = `{"self":"https://tidewater.example/rest/api/2/user?username=quill","name":"quill","key":"JIRAUSER10100",
		"emailAddress":"quill@tidewater.example","displayName":"Quentin Ill","active":true,"timeZone":"Etc/UTC"}`
	tide    = `{"self":"https://tidewater.example/rest/api/2/project/10300","id":"10300","key":"TIDE","name":"Tide","projectTypeKey":"software"}`
	wording = "It fails again, write to joe@example.org"
	written = "2026-09-14T10:11:12.345+0000"
)

// theComment is one comment, in the words of its edit at a time.
func theComment(id, updated, body string) map[string]any {
	return map[string]any{
		"self": "https://tidewater.example/rest/api/2/issue/20417/comment/" + id, "id": id, "body": body,
		"author": json.RawMessage(someone), "updateAuthor": json.RawMessage(someone), "created": written, "updated": updated,
	}
}

func webhook(name string, members map[string]any) func(*schema.Event) {
	return func(e *schema.Event) {
		members["timestamp"], members["webhookEvent"] = 1789380672345, name
		b, err := json.Marshal(members)
		if err != nil {
			panic(err)
		}
		e.Type, e.Value = "winnow.jira.webhook."+strings.TrimPrefix(name, "jira:"), b
	}
}

// commentCreated is about the comment alone; issueUpdated is about its issue.
func commentCreated(id, updated, body string) func(*schema.Event) {
	return webhook("comment_created", map[string]any{
		"comment": theComment(id, updated, body),
		"issue": map[string]any{"id": "20417", "self": "https://tidewater.example/rest/api/2/issue/20417", "key": "TIDE-7",
			"fields": map[string]any{"summary": "The import stops", "project": json.RawMessage(tide), "issuetype": map[string]any{"name": "Bug"}}},
	})
}

func issueUpdated(id, updated, body string) func(*schema.Event) {
	return webhook("jira:issue_updated", map[string]any{
		"issue_event_type_name": "issue_commented", "user": json.RawMessage(someone),
		"comment": theComment(id, updated, body),
		"issue": map[string]any{"id": "20417", "self": "https://tidewater.example/rest/api/2/issue/20417", "key": "TIDE-7",
			"fields": map[string]any{"summary": "The import stops", "description": "At the third file.", "project": json.RawMessage(tide),
				"issuetype": map[string]any{"name": "Bug"}, "reporter": json.RawMessage(someone),
				"comment": map[string]any{"comments": []any{theComment(id, updated, body)}, "total": 1}}},
	})
}

const scrubbed = "It fails again, write to [EMAIL_1]"

var generalTexts = []string{"The import stops", "At the third file.", scrubbed}

func TestOneChangeToldTwice(t *testing.T) {
	for order, tc := range map[string]struct {
		first, second func(id, updated, body string) func(*schema.Event)
		open, chain   []string // the texts that are kept, when the first is not committed and when it is
	}{
		"general first":  {issueUpdated, commentCreated, []string{scrubbed}, generalTexts},
		"specific first": {commentCreated, issueUpdated, []string{scrubbed}, []string{scrubbed}},
		"general twice":  {issueUpdated, issueUpdated, generalTexts, generalTexts},
		"specific twice": {commentCreated, commentCreated, []string{scrubbed}, []string{scrubbed}},
	} {
		for name, pause := range between {
			t.Run(order+" "+name, func(t *testing.T) {
				s, in := dataset(t), newSource(t)
				w := open(t, s, Options{})
				require.NoError(t, w.Add(in.record(0, "", tc.first("31012", written, wording))))
				w = pause(t, s, w, 0)
				require.NoError(t, w.Add(in.record(1, "", tc.second("31012", written, wording))))
				c, err := w.Commit(1)
				require.NoError(t, err)
				want := tc.chain
				if name == "in the open batch" {
					want = tc.open
				}
				require.Equal(t, want, allTexts(t, s))
				inApp, metadata, spans := totals(t, s)
				require.Equal(t, InAppCounts{1, int64(len(want)), toldTwice(1)}, inApp)
				require.Equal(t, MetadataCounts{2, map[schema.Reason]int64{}}, metadata, "both happened")
				require.Equal(t, map[string]int64{"EMAIL": 1}, spans)
				if name != "in the open batch" {
					require.Empty(t, c.Spans)
					require.NotContains(t, streams(c), StreamInApp, "no empty file")
				}
				clean(t, s)

				// A repeat of either, and what the comment says after an edit.
				require.NoError(t, w.Add(in.record(2, "", tc.first("31012", written, wording), withID("event 0"))))
				require.NoError(t, w.Add(in.record(3, "", commentCreated("31012", "2026-09-14T11:00:00.000+0000", "It works now."))))
				require.NoError(t, w.Add(in.record(4, "", commentCreated("31013", written, "Another comment."))))
				require.NoError(t, w.Add(in.record(5, "", commentCreated("31012", written, "Of another tenant."), ofTenant("other-tenant"))))
				c, err = w.Commit(5)
				require.NoError(t, err)
				require.Equal(t, InAppCounts{3, 3, droppedRepeats(1)}, c.InApp)
				require.Equal(t, MetadataCounts{3, droppedRepeats(1)}, c.Metadata)
				require.Equal(t, append(slices.Clone(want), "It works now.", "Another comment.", "Of another tenant."), allTexts(t, s))
				clean(t, s)
			})
		}
	}
}

// streams lists the streams of a commit's files.
func streams(c Commit) (out []string) {
	for _, f := range c.Files {
		out = append(out, f.Stream)
	}
	return out
}

// The specific event takes the place of one general event only, and once.
func TestSpecificWinsOnce(t *testing.T) {
	s, in := dataset(t), newSource(t)
	w := open(t, s, Options{})
	edit := func(of func(id, updated, body string) func(*schema.Event), o int64, more ...func(*schema.Event)) {
		require.NoError(t, w.Add(in.record(o, "", append(more, of("31012", written, wording))...)))
	}
	edit(issueUpdated, 0, inRegion("us"))
	edit(issueUpdated, 1)
	require.NoError(t, w.Add(in.record(2, "between")))
	held, _ := w.Buffered()
	edit(commentCreated, 3)
	less, _ := w.Buffered()
	require.Less(t, less, held+recordBytes+rowBytes+int64(len(scrubbed)), "the text that left is not held")
	edit(commentCreated, 4)
	edit(issueUpdated, 5)
	c, err := w.Commit(5)
	require.NoError(t, err)
	require.Equal(t, []string{"between", scrubbed}, allTexts(t, s))
	require.Equal(t, InAppCounts{2, 2, toldTwice(4)}, c.InApp)
	require.Equal(t, MetadataCounts{6, map[schema.Reason]int64{}}, c.Metadata)
	require.Equal(t, map[string]int64{"EMAIL": 1}, c.Spans)
	require.Empty(t, files(t, s, inAppDir+"/region=us"), "no row is left for it")
	clean(t, s)

	// An event that feeds no in-app stream tells nobody of the change.
	edit(issueUpdated, 6, only(schema.Metadata, schema.Withheld{InApp: "in_app_off"}), ofTenant("third-tenant"))
	edit(issueUpdated, 7, ofTenant("third-tenant"))
	c, err = w.Commit(7)
	require.NoError(t, err)
	require.Equal(t, InAppCounts{1, 3, map[schema.Reason]int64{"in_app_off": 1}}, c.InApp)
	clean(t, s)
}

// step is one record of a drawn stream.
type step struct {
	offset  int64
	id      string
	tenant  string
	edit    int // 0: it tells of none
	general bool
}

func (s step) text() string { return fmt.Sprint("text ", s.offset) }

func (s step) changes() (changes []func(*schema.Event)) {
	changes = []func(*schema.Event){withID(s.id), ofTenant(s.tenant)}
	of := commentCreated
	if s.general {
		of = issueUpdated
	}
	if s.edit > 0 {
		changes = append(changes, of(fmt.Sprint(31000+s.edit), written, s.text()))
	}
	return changes
}

func drawSteps(t *rapid.T, edits int) (out []step) {
	at := rapid.Int64Range(0, 30).Draw(t, "start")
	for range rapid.IntRange(1, 25).Draw(t, "n") {
		out = append(out, step{
			offset: at, id: fmt.Sprint("id ", rapid.IntRange(0, 6).Draw(t, "id")), tenant: rapid.SampledFrom([]string{"one", "one", "two"}).Draw(t, "tenant"),
			edit: rapid.IntRange(0, edits).Draw(t, "edit"), general: rapid.Bool().Draw(t, "general"),
		})
		at += rapid.Int64Range(1, 4).Draw(t, "step")
	}
	return out
}

// writeSteps commits the steps, cut where cuts says and with a new Writer where
// restarts does.
func writeSteps(t testing.TB, in source, steps []step, cut, restart []bool) *Store {
	s, err := Create(memoryDir(t))
	require.NoError(t, err)
	w := open(t, s, Options{Format: JSONL})
	require.NoError(t, w.StartAt(steps[0].offset))
	for i, x := range steps {
		require.NoError(t, w.Add(in.record(x.offset, x.text(), x.changes()...)))
		if i < len(steps)-1 && !cut[i] {
			continue
		}
		_, err := w.Commit(x.offset)
		require.NoError(t, err)
		if restart[i] {
			w = open(t, s, Options{Format: JSONL})
			require.Equal(t, x.offset+1, w.Start())
		}
	}
	return s
}

// wantOf says again, slowly, what writeSteps must leave: the last text of each
// document, by offset, and the drops.
func wantOf(steps []step, cut []bool, horizon int64) (kept []string, repeats, told int64) {
	var ids, edits []step // those that the dataset remembers
	type document struct {
		step
		batch int
	}
	var docs []document
	batch := 0
	for i, x := range steps {
		near := func(y step) bool { return y.tenant == x.tenant && x.offset-y.offset <= horizon }
		switch {
		case slices.ContainsFunc(ids, func(y step) bool { return near(y) && y.id == x.id }):
			repeats++
		case x.edit > 0 && slices.ContainsFunc(edits, func(y step) bool { return near(y) && y.edit == x.edit }):
			ids = append(ids, x)
			told++
			of := func(d document) bool {
				return d.batch == batch && d.general && !x.general && d.edit == x.edit && near(d.step)
			}
			if j := slices.IndexFunc(docs, of); j >= 0 {
				docs = append(slices.Delete(docs, j, j+1), document{x, batch})
			}
		default:
			ids, edits = append(ids, x), append(edits, x)
			docs = append(docs, document{x, batch})
		}
		if cut[i] {
			batch++
		}
	}
	for _, d := range docs {
		if d.edit > 0 && d.general {
			kept = append(kept, "The import stops", "At the third file.")
		}
		kept = append(kept, d.text())
	}
	return kept, repeats, told
}

// The rows of a chain are those that the reference says, wherever it was cut
// into commits and a writer began anew; and the cuts decide at most which of
// two events that tell of one change stays, never whether one does.
func TestCutsDecideNothing(t *testing.T) {
	scrubber := newSource(t).s
	defer func() { horizon = Horizon }()
	rapid.Check(t, func(rt *rapid.T) {
		d := drawing{t, rt}
		horizon = rapid.Int64Range(1, 15).Draw(rt, "horizon")
		edits := rapid.SampledFrom([]int{0, 3}).Draw(rt, "edits")
		steps := drawSteps(rt, edits)
		cut, restart, uncut := make([]bool, len(steps)), make([]bool, len(steps)), make([]bool, len(steps))
		for range rapid.IntRange(0, 3).Draw(rt, "cuts") { // a commit costs time
			i := rapid.IntRange(0, len(steps)-1).Draw(rt, "cut")
			cut[i], restart[i] = true, rapid.Bool().Draw(rt, "restart")
		}
		want, repeats, told := wantOf(steps, cut, horizon)
		whole, repeats2, told2 := wantOf(steps, uncut, horizon)
		require.Equal(d, []int64{repeats, told}, []int64{repeats2, told2})
		if edits == 0 {
			require.Equal(d, whole, want)
		}

		s := writeSteps(d, source{d, scrubber}, steps, cut, restart)
		require.Equal(d, want, allTexts(d, s))
		inApp, metadata, _ := totals(d, s)
		require.Equal(d, int64(len(steps))-repeats-told, inApp.Documents)
		require.Equal(d, int64(len(steps))-repeats, metadata.Counted)
		require.Equal(d, []int64{repeats, told}, []int64{inApp.Drops[schema.ReasonRepeat], inApp.Drops[schema.ReasonToldTwice]})
		require.Equal(d, repeats, metadata.Drops[schema.ReasonRepeat])
		clean(d, s)
	})
}

// A file of keys that is not as it was written is found by a check and stops
// the writer that would remember by it.
func TestSeenFileBroken(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(b []byte) []byte
		want   string
	}{
		"cut within an entry":       {func(b []byte) []byte { return b[:len(b)-1] }, "ends within an entry"},
		"an offset past the commit": {func(b []byte) []byte { b[0] = 4; return b }, "entry 1 is of no offset of the commit"},
		"fewer entries":             {func(b []byte) []byte { return nil }, "0 rows"},
	} {
		t.Run(name, func(t *testing.T) {
			s, cs := three(t, JSONL)
			i := slices.Index(streams(cs[1]), StreamSeen)
			f := cs[1].Files[i].Path
			b, err := os.ReadFile(s.abs(f))
			require.NoError(t, err)
			refile(t, s, &cs[1], i, tc.change(b))
			r := check(t, s)
			require.Len(t, r.Faults, 1)
			require.Equal(t, f, r.Faults[0].Coordinates)
			require.Contains(t, r.Faults[0].Problem, tc.want)
			if name != "fewer entries" {
				_, err = s.Writer(context.Background(), topic, 0, Options{TopicID: "id"})
				require.ErrorContains(t, err, tc.want)
				require.ErrorContains(t, err, f)
			}
			// One that lies past the horizon is not read any more.
			setHorizon(t, 3)
			_, err = s.Writer(context.Background(), topic, 0, Options{TopicID: "id"})
			require.NoError(t, err)
		})
	}
	s, cs := three(t, JSONL)
	require.NoError(t, os.Remove(s.abs(cs[2].Files[slices.Index(streams(cs[2]), StreamSeen)].Path)))
	_, err := s.Writer(context.Background(), topic, 0, Options{TopicID: "id"})
	require.ErrorIs(t, err, os.ErrNotExist)
}

// BenchmarkMemory is one record's look and note, in the steady state of a full
// horizon.
func BenchmarkMemory(b *testing.B) {
	m := newMemory(Horizon)
	o := int64(0)
	add := func() {
		k := keyOf(int(o))
		k[0], k[1] = byte(o>>32), byte(o>>24)
		if m.has(k, o) {
			b.Fatal("a new key is known")
		}
		m.add(seenAt{o, k})
		o++
	}
	for range 3 * Horizon {
		add()
	}
	b.ReportAllocs()
	for b.Loop() {
		add()
	}
}

// A writer that is closed leaves its memory to the next one in its process,
// which reads only what others have committed since; what was added and not
// committed is not remembered, for it may come to another end.
func TestMemoryIsKept(t *testing.T) {
	s, in := dataset(t), newSource(t)
	id := func(i int) func(*schema.Event) { return func(e *schema.Event) { e.ID = fmt.Sprint("id ", i) } }
	w := open(t, s, Options{})
	for o := range int64(3) {
		require.NoError(t, w.Add(in.record(o, fmt.Sprint("text ", o), id(int(o)))))
	}
	_, err := w.Commit(2)
	require.NoError(t, err)
	require.NoError(t, w.Add(in.record(3, "not committed", id(3))))
	w.Close()
	w.Close()
	_, err = w.Commit(3)
	require.ErrorContains(t, err, "closed")

	// Another process decides otherwise over offset 3.
	elsewhere, err := Open(s.dir())
	require.NoError(t, err)
	other := open(t, elsewhere, Options{})
	other.Drop(src(3), schema.Withheld{Metadata: "opted_out", InApp: "opted_out"})
	require.NoError(t, other.Add(in.record(4, "text 4", id(4))))
	_, err = other.Commit(4)
	require.NoError(t, err)

	read := 0
	setHook(t, func(p failpoint.Point) error {
		if p.Op == "read" && p.After && strings.HasPrefix(p.Name, seenDir) {
			read++
		}
		return nil
	})
	w = open(t, s, Options{})
	failpoint.Hook = nil
	require.Equal(t, 1, read, "the other's commit alone")
	for i, of := range []int{3, 0, 4, 5} {
		require.NoError(t, w.Add(in.record(int64(5+i), fmt.Sprint("again ", of), id(of))))
	}
	c, err := w.Commit(8)
	require.NoError(t, err)
	require.EqualValues(t, 2, c.InApp.Drops[schema.ReasonRepeat], "of 0 and 4")
	require.Equal(t, []string{"text 0", "text 1", "text 2", "text 4", "again 3", "again 5"}, allTexts(t, s))
	clean(t, s)
}

// Thousands of commits are read side by side, and no more of them than the
// horizon reaches.
func TestRememberReadsTheHorizon(t *testing.T) {
	s, in := dataset(t), newSource(t)
	w := open(t, s, Options{Format: JSONL})
	const commits = 3 * readers
	for o := range int64(commits) {
		require.NoError(t, w.Add(in.record(o, "x", func(e *schema.Event) { e.ID = fmt.Sprint(o) })))
		_, err := w.Commit(o)
		require.NoError(t, err)
	}
	setHorizon(t, 2*readers)
	for back, repeat := range map[int64]bool{2 * readers: true, 2*readers + 1: false, 1: true} {
		fresh, err := Open(s.dir())
		require.NoError(t, err)
		var read atomic.Int64
		setHook(t, func(p failpoint.Point) error {
			if p.Op == "read" && p.After && strings.HasPrefix(p.Name, seenDir) {
				read.Add(1)
			}
			return nil
		})
		w := open(t, fresh, Options{})
		failpoint.Hook = nil
		require.LessOrEqual(t, read.Load(), int64(2*readers+1))
		require.NoError(t, w.Add(in.record(commits, "again", func(e *schema.Event) { e.ID = fmt.Sprint(commits - back) })))
		require.Equal(t, repeat, w.sums.InApp.Drops[schema.ReasonRepeat] == 1, "%d back", back)
	}
}
