package batch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/klauspost/compress/zstd"
	"github.com/parquet-go/parquet-go"
	"github.com/stretchr/testify/require"

	"winnow/pkg/schema"
)

// three makes a dataset of three commits, [0, 4), [4, 8) and [8, 12), each
// with documents, a drop, a reject and a hole.
func three(t *testing.T, f Format) (*Store, []Commit) {
	s, in := dataset(t), newSource(t)
	w := open(t, s, Options{Format: f, TopicID: "id"})
	for o := int64(0); o < 12; o += 4 {
		require.NoError(t, w.Add(in.parts(o, []string{"one", "two"})))
		w.Drop(src(o+1), schema.Withheld{Metadata: "opted_out", InApp: "opted_out"})
		w.Reject(src(o+2), &schema.Error{Reason: schema.ReasonMalformedJSON, Offset: 3})
		_, err := w.Commit(o + 3)
		require.NoError(t, err)
	}
	chain, err := s.Chain(topic, 0)
	require.NoError(t, err)
	require.Len(t, chain, 3)
	return s, chain
}

func commitPath(start int64) string { return commitFile(Partition{topic, 0}, start) }

// put writes a file of the dataset, as someone who tampers with it would.
func put(t *testing.T, s *Store, rel string, b []byte) {
	t.Helper()
	require.NoError(t, os.MkdirAll(s.abs(path.Dir(rel)), 0o755))
	require.NoError(t, os.WriteFile(s.abs(rel), b, 0o644))
}

func putCommit(t *testing.T, s *Store, rel string, c Commit) {
	t.Helper()
	b, err := json.Marshal(c)
	require.NoError(t, err)
	put(t, s, rel, b)
}

// refile replaces the content of a file and makes the commit agree with it.
func refile(t *testing.T, s *Store, c *Commit, i int, b []byte) {
	t.Helper()
	sum := sha256.Sum256(b)
	c.Files[i].Bytes, c.Files[i].SHA256 = int64(len(b)), hex.EncodeToString(sum[:])
	put(t, s, c.Files[i].Path, b)
	putCommit(t, s, commitPath(c.extends()), *c)
}

func parquetOf[T any](t *testing.T, rows ...T) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, parquet.Write(&b, rows))
	return b.Bytes()
}

// Indexes of the files of each commit that three makes.
const (
	inAppFile = iota
	metadataFile
	quarantineFile
)

func TestCheckFindsTampering(t *testing.T) {
	edit := func(f func(c *Commit)) func(*testing.T, *Store, []Commit) {
		return func(t *testing.T, s *Store, cs []Commit) { f(&cs[1]); putCommit(t, s, commitPath(4), cs[1]) }
	}
	onFile := func(i int, f func(b []byte) []byte) func(*testing.T, *Store, []Commit) {
		return func(t *testing.T, s *Store, cs []Commit) {
			b, err := os.ReadFile(s.abs(cs[1].Files[i].Path))
			require.NoError(t, err)
			put(t, s, cs[1].Files[i].Path, f(b))
		}
	}
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	rewrite := func(i int, b func(t *testing.T, s *Store, c *Commit) []byte) func(*testing.T, *Store, []Commit) {
		return func(t *testing.T, s *Store, cs []Commit) { refile(t, s, &cs[1], i, b(t, s, &cs[1])) }
	}
	// A row of the file that stays, for cases that change it.
	changed := func(f func(r *Row)) func(*testing.T, *Store, []Commit) {
		return rewrite(inAppFile, func(t *testing.T, s *Store, c *Commit) []byte {
			rs := rows(t, s, *c)
			f(&rs[1])
			return parquetOf(t, rs...)
		})
	}
	const commit1 = "events/0@4"
	file1 := func(i int) func([]Commit) string { return func(cs []Commit) string { return cs[1].Files[i].Path } }
	is := func(s string) func([]Commit) string { return func([]Commit) string { return s } }

	for name, tc := range map[string]struct {
		tamper func(t *testing.T, s *Store, cs []Commit)
		at     func(cs []Commit) string
		want   string
	}{
		"a flipped byte, in-app":     {onFile(inAppFile, flip), file1(inAppFile), "sha256"},
		"a flipped byte, metadata":   {onFile(metadataFile, flip), file1(metadataFile), "sha256"},
		"a flipped byte, quarantine": {onFile(quarantineFile, flip), file1(quarantineFile), "sha256"},
		"a truncated file":           {onFile(inAppFile, func(b []byte) []byte { return b[:len(b)-1] }), file1(inAppFile), "its commit says"},
		"a longer file":              {onFile(inAppFile, func(b []byte) []byte { return append(b, 0) }), file1(inAppFile), "its commit says"},
		"a missing file": {func(t *testing.T, s *Store, cs []Commit) {
			require.NoError(t, os.Remove(s.abs(cs[1].Files[inAppFile].Path)))
		},
			file1(inAppFile), "missing"},

		"edited records":             {edit(func(c *Commit) { c.Records++ }), is(commit1), "records + holes"},
		"edited holes":               {edit(func(c *Commit) { c.Holes-- }), is(commit1), "records + holes"},
		"edited records and holes":   {edit(func(c *Commit) { c.Records++; c.Holes-- }), is(commit1), "in-app documents + drops = records"},
		"edited documents":           {edit(func(c *Commit) { c.InApp.Documents++ }), is(commit1), "in-app documents + drops"},
		"edited in-app rows":         {edit(func(c *Commit) { c.InApp.Rows-- }), is(commit1), "in-app rows"},
		"an edited in-app drop":      {edit(func(c *Commit) { c.InApp.Drops["opted_out"]++ }), is(commit1), "in-app documents + drops"},
		"a drop made a document":     {edit(func(c *Commit) { delete(c.InApp.Drops, "opted_out"); c.InApp.Documents++ }), is(commit1), "in-app documents = documents of its files"},
		"a document made a drop":     {edit(func(c *Commit) { c.InApp.Drops["x"]++; c.InApp.Documents-- }), is(commit1), "in-app documents = documents of its files"},
		"an edited metadata drop":    {edit(func(c *Commit) { c.Metadata.Drops["opted_out"]++ }), is(commit1), "metadata counted + drops"},
		"edited metadata counted":    {edit(func(c *Commit) { c.Metadata.Counted++ }), is(commit1), "metadata counted + drops"},
		"a metadata drop counted":    {edit(func(c *Commit) { delete(c.Metadata.Drops, "opted_out"); c.Metadata.Counted++ }), is(commit1), "counts of its files"},
		"a drop without a reason":    {edit(func(c *Commit) { c.InApp.Drops[""] = 0 }), is(commit1), "without a reason"},
		"negative holes":             {edit(func(c *Commit) { c.Holes, c.Records = -1, 5; c.InApp.Drops["x"] = 2; c.Metadata.Drops["x"] = 2 }), is(commit1), "negative"},
		"edited rows of a file":      {edit(func(c *Commit) { c.Files[inAppFile].Rows++ }), file1(inAppFile), "the file has 2 rows"},
		"edited quarantine rows":     {edit(func(c *Commit) { c.Files[quarantineFile].Rows++ }), file1(quarantineFile), "the file has 1 rows"},
		"an edited path":             {edit(func(c *Commit) { c.Files[inAppFile].Path = "../elsewhere" }), is("../elsewhere"), "the path is not"},
		"a file moved to a region":   {edit(func(c *Commit) { c.Files[inAppFile].Region = "us" }), file1(inAppFile), "the path is not"},
		"an unknown stream":          {edit(func(c *Commit) { c.Files[inAppFile].Stream = "notes" }), file1(inAppFile), "stream"},
		"a file named twice":         {edit(func(c *Commit) { c.Files = append(c.Files, c.Files[inAppFile]) }), file1(inAppFile), "named by events/0@4 and by events/0@4"},
		"a file left out":            {edit(func(c *Commit) { c.Files = c.Files[1:] }), file1(inAppFile), "not named by the commit"},
		"another topic id":           {edit(func(c *Commit) { c.TopicID = "other" }), is(commit1), "topic's id"},
		"another topic":              {edit(func(c *Commit) { c.Topic = "other" }), is(commitPath(4)), "says that it is of other/0"},
		"an attempt that is no UUID": {edit(func(c *Commit) { c.Attempt = "x" }), is(commit1), "not a UUID"},
		"an unknown version":         {edit(func(c *Commit) { c.Version = 99 }), is(commitPath(4)), "has version 99"},
		"an empty range":             {edit(func(c *Commit) { c.End = 4 }), is(commitPath(4)), "covers no offsets"},
		"a second genesis":           {edit(func(c *Commit) { c.Genesis = true }), is(commitPath(4)), "says that it starts at"},
		"an unknown member": {func(t *testing.T, s *Store, cs []Commit) {
			b, err := os.ReadFile(s.abs(commitPath(4)))
			require.NoError(t, err)
			put(t, s, commitPath(4), bytes.Replace(b, []byte("{"), []byte(`{"note":1,`), 1))
		}, is(commitPath(4)), "does not parse"},
		"a commit that is not JSON": {func(t *testing.T, s *Store, cs []Commit) { put(t, s, commitPath(4), []byte("{")) },
			is(commitPath(4)), "does not parse"},

		"a deleted commit in the middle": {func(t *testing.T, s *Store, cs []Commit) { require.NoError(t, os.Remove(s.abs(commitPath(4)))) },
			is("events/0@8"), "gap: offsets [4, 8) are in no commit"},
		"a deleted first commit": {func(t *testing.T, s *Store, cs []Commit) { require.NoError(t, os.Remove(s.abs(commitPath(0)))) },
			is(commit1), "no genesis"},
		"two deleted last commits": {func(t *testing.T, s *Store, cs []Commit) {
			require.NoError(t, os.Remove(s.abs(commitPath(8))))
			require.NoError(t, os.Remove(s.abs(commitPath(4))))
		}, func(cs []Commit) string { return cs[2].Files[inAppFile].Path }, "no commit starts at its offset"},
		"a renamed commit": {func(t *testing.T, s *Store, cs []Commit) {
			require.NoError(t, os.Rename(s.abs(commitPath(4)), s.abs(commitPath(5))))
		}, is(commitPath(5)), "says that it starts at 4"},
		"a moved first commit": {func(t *testing.T, s *Store, cs []Commit) { cs[0].Start = 2; putCommit(t, s, commitPath(0), cs[0]) },
			is("events/0@2"), "records + holes"},
		"a forked commit": {func(t *testing.T, s *Store, cs []Commit) {
			fork := cs[1]
			fork.Start, fork.Attempt = 6, uuid.NewString()
			putCommit(t, s, commitPath(6), fork)
		}, is("events/0@6"), "fork: offsets [6, 8) are in two commits"},
		"a longer commit": {edit(func(c *Commit) { c.End, c.Holes = 10, c.Holes+2 }), is("events/0@8"), "fork: offsets [8, 10) are in two commits"},
		"two commits that name one file": {func(t *testing.T, s *Store, cs []Commit) {
			cs[2].Files = append(cs[2].Files, cs[1].Files[inAppFile])
			putCommit(t, s, commitPath(8), cs[2])
		}, file1(inAppFile), "named by events/0@4 and by events/0@8"},

		"a foreign orphan": {func(t *testing.T, s *Store, cs []Commit) {
			put(t, s, "in-app/region=eu/dt=2026-09-01/events-0-00000000000000000006-01234567-89ab-4cde-8f01-23456789abcd.parquet", nil)
		}, is("in-app/region=eu/dt=2026-09-01/events-0-00000000000000000006-01234567-89ab-4cde-8f01-23456789abcd.parquet"), "no commit starts at its offset"},
		"an orphan of an unknown partition": {func(t *testing.T, s *Store, cs []Commit) {
			put(t, s, "_quarantine/events/7/00000000000000000006-01234567-89ab-4cde-8f01-23456789abcd.jsonl", nil)
		}, is("_quarantine/events/7/00000000000000000006-01234567-89ab-4cde-8f01-23456789abcd.jsonl"), "no commit starts at its offset"},
		"a file of another format": {func(t *testing.T, s *Store, cs []Commit) { put(t, s, "in-app/region=eu/notes.csv", nil) },
			is("in-app/region=eu/notes.csv"), "not a data file"},
		"a file among the commits": {func(t *testing.T, s *Store, cs []Commit) { put(t, s, "_commits/events/0/5.json", nil) },
			is("_commits/events/0/5.json"), "not a commit"},
		"a file among the partitions": {func(t *testing.T, s *Store, cs []Commit) { put(t, s, "_commits/events/x", nil) },
			is("_commits/events/x"), "not a partition's chain"},
		"a file among the topics": {func(t *testing.T, s *Store, cs []Commit) { put(t, s, "_commits/x", nil) },
			is("_commits/x"), "not a partition's chain"},

		// Files that were replaced together with what the commit says of them.
		"other columns": {rewrite(inAppFile, func(t *testing.T, s *Store, c *Commit) []byte {
			return parquetOf(t, struct {
				Row
				Tenant string
			}{rows(t, s, *c)[0], "t"})
		}), file1(inAppFile), "the columns are not"},
		"not Parquet": {rewrite(inAppFile, func(t *testing.T, s *Store, c *Commit) []byte { return []byte("PAR1 no PAR1") }),
			file1(inAppFile), "arquet"},
		"a row removed": {rewrite(inAppFile, func(t *testing.T, s *Store, c *Commit) []byte { return parquetOf(t, rows(t, s, *c)[:1]...) }),
			file1(inAppFile), "the file has 1 rows, its commit says 2"},
		"a document split":       {changed(func(r *Row) { r.ID, r.Part = uuid.NewString(), 0 }), is(commit1), "documents of its files"},
		"parts out of order":     {changed(func(r *Row) { r.Part = 2 }), file1(inAppFile), "not in order"},
		"a part of no document":  {changed(func(r *Row) { r.ID = uuid.NewString() }), file1(inAppFile), "not in order"},
		"an id of two documents": {changed(func(r *Row) { r.Part = 0 }), file1(inAppFile), "not in order"},
		"an id that is a key":    {changed(func(r *Row) { r.ID = "A-1" }), file1(inAppFile), "not a UUIDv4"},
		"an empty role":          {changed(func(r *Row) { r.Role = "" }), file1(inAppFile), "a column is empty"},
		"another month":          {changed(func(r *Row) { r.Month = "2026-10" }), file1(inAppFile), "month"},
		"another version's rows": {changed(func(r *Row) { r.ScrubVersion = "0" }), file1(inAppFile), "scrub version"},
		"a metadata count edited": {rewrite(metadataFile, func(t *testing.T, s *Store, c *Commit) []byte {
			return parquetOf(t, count{"2026-09", "jira", "issue", 2})
		}), is(commit1), "counts of its files"},
		"a metadata count of another month": {rewrite(metadataFile, func(t *testing.T, s *Store, c *Commit) []byte {
			return parquetOf(t, count{"2026-10", "jira", "issue", 1})
		}), file1(metadataFile), "month"},
		"a quarantine line of another range": {rewrite(quarantineFile, func(t *testing.T, s *Store, c *Commit) []byte {
			return []byte(`{"topic":"events","partition":0,"offset":8,"reason":"x","byte":-1,"time":"2026-09-01T00:00:00Z"}`)
		}), file1(quarantineFile), "range"},
		"a quarantine line with more in it": {rewrite(quarantineFile, func(t *testing.T, s *Store, c *Commit) []byte {
			return []byte(`{"topic":"events","partition":0,"offset":6,"reason":"x","byte":-1,"text":"Roe","time":"2026-09-01T00:00:00Z"}`)
		}), file1(quarantineFile), "not a row"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // the time goes to fsync
			s, cs := three(t, Parquet)
			require.Empty(t, check(t, s).Faults)
			at := tc.at(cs)
			tc.tamper(t, s, cs)
			r := check(t, s)
			for _, f := range r.Faults {
				require.NotContains(t, f.String(), "Roe")
				if f.Coordinates == at && strings.Contains(f.Problem, tc.want) {
					return
				}
			}
			require.Fail(t, "not found", "want %s: …%s…, got %v", at, tc.want, r.Faults)
		})
	}
}

func TestCheckFindsTamperingJSONL(t *testing.T) {
	for name, tc := range map[string]struct {
		lines []string
		want  string
	}{
		"an added column":  {[]string{`{"id":"x","tenant":"Roe"}`}, "not a row"},
		"a missing column": {[]string{`{"id":"01234567-89ab-4cde-8f01-23456789abcd","part":0,"text":"x"}`}, "a column is empty"},
		"another type":     {[]string{`{"id":7}`}, "column id holds another type"},
		"not JSON":         {[]string{`Roe`}, "not JSON"},
		"no rows":          {nil, "the file has 0 rows"},
	} {
		t.Run(name, func(t *testing.T) {
			s, cs := three(t, JSONL)
			require.Empty(t, check(t, s).Faults)
			z, err := zstd.NewWriter(nil)
			require.NoError(t, err)
			refile(t, s, &cs[1], inAppFile, z.EncodeAll([]byte(strings.Join(tc.lines, "\n")), nil))
			r := check(t, s)
			require.NotEmpty(t, r.Faults)
			require.Equal(t, cs[1].Files[inAppFile].Path, r.Faults[0].Coordinates)
			require.Contains(t, r.Faults[0].Problem, tc.want)
			require.NotContains(t, fmt.Sprint(r.Faults), "Roe")
		})
	}
}

func TestChainBroken(t *testing.T) {
	for name, start := range map[string]int64{"middle": 4, "first": 0} {
		t.Run(name, func(t *testing.T) {
			s, _ := three(t, JSONL)
			require.NoError(t, os.Remove(s.abs(commitPath(start))))
			_, err := s.Chain(topic, 0)
			require.ErrorContains(t, err, "broken")
		})
	}
}

func TestReadRowsChecksTheFile(t *testing.T) {
	s, cs := three(t, Parquet)
	name := s.abs(cs[1].Files[inAppFile].Path)
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	b[len(b)/2] ^= 1
	require.NoError(t, os.WriteFile(name, b, 0o644))
	err = s.ReadRows(cs[1], func(File, Row) error { t.Error("a row of a file that is not the committed one"); return nil })
	require.ErrorContains(t, err, "sha256")
	cs[1].Files[inAppFile].Path = "../../etc/passwd"
	require.ErrorContains(t, s.ReadRows(cs[1], nil), "the path is not")
}

func TestCheckCancelled(t *testing.T) {
	s, _ := three(t, JSONL)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Check(ctx)
	require.ErrorIs(t, err, context.Canceled)
}

// A check beside running writers finds nothing wrong: they only ever add.
func TestCheckBesideWriters(t *testing.T) {
	s := dataset(t)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	errs := make([]error, 2)
	for i := range errs {
		in := newSource(t)
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				next, err := s.Next(topic, 0)
				w, err2 := s.Writer(context.Background(), topic, 0, Options{Format: JSONL})
				if errs[i] = errors.Join(err, err2); errs[i] != nil {
					return
				}
				// next may be behind the writer's start by now: then it is a
				// lost race that the writer notices.
				if w.start != next {
					continue
				}
				if errs[i] = w.Add(in.record(next, "x")); errs[i] != nil {
					return
				}
				if _, err := w.Commit(next); err != nil && !errors.Is(err, ErrCommitted) {
					errs[i] = err
					return
				}
			}
		})
	}
	for commits := int64(0); commits < 30; {
		r, err := s.Check(t.Context())
		if err != nil || len(r.Faults) > 0 {
			close(stop)
			wg.Wait()
			require.NoError(t, err)
			require.Empty(t, r.Faults)
		}
		commits = r.Commits
	}
	close(stop)
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	require.Zero(t, clean(t, s).Orphans)
}
