package batch

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"winnow/internal/failpoint"
)

// toErase makes a dataset of two commits: [0, 3) has three documents of two
// parts in eu and one of one part in us, and [4, 5) one in eu.
func toErase(t testing.TB, f Format) (*Store, []Commit) {
	t.Helper()
	s, sc := dataset(t), newSource(t)
	w := open(t, s, Options{Format: f})
	for o := range int64(3) {
		require.NoError(t, w.Add(sc.parts(o, []string{fmt.Sprint("summary ", o), fmt.Sprint("body ", o)})))
	}
	require.NoError(t, w.Add(sc.record(3, "alone", inRegion("us"))))
	_, err := w.Commit(3)
	require.NoError(t, err)
	require.NoError(t, w.Add(sc.record(4, "next")))
	_, err = w.Commit(4)
	require.NoError(t, err)
	chain, err := s.Chain(topic, 0)
	require.NoError(t, err)
	require.Equal(t, []string{StreamInApp, StreamInApp, StreamMetadata, StreamSeen}, streams(chain[0]))
	return s, chain
}

// newGeneration is the n-th generation of a commit, without a replacement.
func newGeneration(c *Commit, n int) Generation {
	return Generation{Version: Version, Topic: c.Topic, Partition: c.Partition, Start: c.Start, Commit: c.Attempt, Generation: n,
		Attempt: uuid.NewString(), Created: time.Now().UTC().Truncate(time.Second), Replaced: []Replacement{}}
}

// replace writes the file that stands for a commit's file i in a generation.
func (g *Generation) replace(t testing.TB, s *Store, c *Commit, i int, b []byte, rows int64) *Replacement {
	t.Helper()
	f := c.Files[i]
	sum := sha256.Sum256(b)
	f.Path, f.Rows, f.Bytes, f.SHA256 = c.path(&f, g.Generation, g.Attempt), rows, int64(len(b)), hex.EncodeToString(sum[:])
	require.NoError(t, s.storage.write(t.Context(), f.Path, b))
	g.Replaced = append(g.Replaced, Replacement{Path: c.Files[i].Path, File: &f})
	return &g.Replaced[len(g.Replaced)-1]
}

// without rewrites the in-app file i of a commit without the documents whose
// first text is one of those, as an erasure does.
func (g *Generation) without(t testing.TB, s *Store, c *Commit, i int, texts ...string) {
	t.Helper()
	b, err := s.load(t.Context(), c, &c.Files[i], 0, c.Attempt)
	require.NoError(t, err)
	var left []Row
	gone := map[string]bool{}
	rows := int64(0)
	require.NoError(t, decode(c.Format, b, func(r Row) error {
		if gone[r.ID] = gone[r.ID] || r.Part == 0 && slices.Contains(texts, r.Text); gone[r.ID] {
			rows++
		} else {
			left = append(left, r)
		}
		return nil
	}))
	documents := int64(0)
	for _, out := range gone {
		if out {
			documents++
		}
	}
	var r *Replacement
	if len(left) == 0 {
		g.Replaced = append(g.Replaced, Replacement{Path: c.Files[i].Path})
		r = &g.Replaced[len(g.Replaced)-1]
	} else {
		b, err := new(encoder).encodeRows(c.Format, left)
		require.NoError(t, err)
		r = g.replace(t, s, c, i, b, int64(len(left)))
	}
	r.Rows, r.Documents = rows, documents
}

// uncount rewrites a metadata file with fewer records of an issue.
func (g *Generation) uncount(t testing.TB, s *Store, c *Commit, i int, left, gone int64) {
	t.Helper()
	b, err := new(encoder).encodeCounts(c.Format, []count{{c.Files[i].Month, "jira", "issue", left}})
	require.NoError(t, err)
	g.replace(t, s, c, i, b, 1).Counted = gone
}

func putGeneration(t testing.TB, s *Store, c *Commit, g Generation) {
	t.Helper()
	b, err := json.Marshal(g)
	require.NoError(t, err)
	require.NoError(t, s.storage.write(t.Context(), c.generationFile(g.Generation), b))
}

func textsOf(t testing.TB, s *Store, c Commit) (out []string) {
	t.Helper()
	for _, r := range rows(t, s, c) {
		out = append(out, r.Text)
	}
	return out
}

func TestGenerations(t *testing.T) {
	for _, f := range formats {
		t.Run(f.String(), func(t *testing.T) {
			s, cs := toErase(t, f)
			c := &cs[0]
			g := newGeneration(c, 1)
			g.without(t, s, c, 0, "summary 1")
			g.uncount(t, s, c, 2, 3, 1)
			// Until the generation is there, its files are strays and the rows
			// are those of the commit.
			require.Len(t, textsOf(t, s, *c), 7)
			before := clean(t, s)
			require.EqualValues(t, 2, before.Orphans)
			require.Empty(t, before.Dead, "the generation may come yet")
			putGeneration(t, s, c, g)
			want := []string{"summary 0", "body 0", "summary 2", "body 2", "alone"}
			require.Equal(t, want, textsOf(t, s, *c))
			require.Equal(t, append(want, "next"), allTexts(t, s))
			r := clean(t, s)
			require.EqualValues(t, 1, r.Generations)
			require.EqualValues(t, 2, r.Orphans, "the files that were replaced")
			require.EqualValues(t, 6, r.Rows)
			require.EqualValues(t, 4, r.Documents)
			require.NoError(t, s.ReadRows(*c, func(f File, _ Row) error {
				require.Contains(t, []string{g.Replaced[0].File.Path, c.Files[1].Path}, f.Path)
				return nil
			}))

			// The newest alone counts: it says all that is gone, of one file by now.
			g = newGeneration(c, 2)
			g.without(t, s, c, 0, "summary 1", "summary 2")
			g.without(t, s, c, 1, "alone")
			g.uncount(t, s, c, 2, 1, 3)
			putGeneration(t, s, c, g)
			require.Nil(t, g.Replaced[1].File)
			require.Equal(t, []string{"summary 0", "body 0"}, textsOf(t, s, *c))
			r = clean(t, s)
			require.EqualValues(t, 1, r.Generations)
			require.EqualValues(t, 5, r.Orphans, "of the commit and of the generation before")
			require.EqualValues(t, 2, r.Documents)

			// All of it, and a second commit.
			g = newGeneration(c, 3)
			g.without(t, s, c, 0, "summary 0", "summary 1", "summary 2")
			g.without(t, s, c, 1, "alone")
			g.Replaced = append(g.Replaced, Replacement{Path: c.Files[2].Path, Counted: 4})
			putGeneration(t, s, c, g)
			h := newGeneration(&cs[1], 1)
			h.without(t, s, &cs[1], 0, "next")
			putGeneration(t, s, &cs[1], h)
			require.Empty(t, allTexts(t, s))
			r = clean(t, s)
			require.EqualValues(t, 2, r.Generations)
			require.Zero(t, r.Rows)

			// What was replaced may go, and nobody misses it.
			for _, f := range append(files(t, s, inAppDir), c.Files[2].Path) {
				require.NoError(t, os.Remove(s.abs(f)))
			}
			require.Empty(t, allTexts(t, s))
			require.EqualValues(t, 2, clean(t, s).Orphans, "metadata of generations 1 and 2")

			// A chain goes on behind its generations.
			w := open(t, s, Options{Format: f})
			require.NoError(t, w.Add(newSource(t).record(5, "later")))
			_, err := w.Commit(5)
			require.NoError(t, err)
			require.Equal(t, []string{"later"}, allTexts(t, s))
			clean(t, s)
		})
	}
}

// What a generation replaced may lie for a month from then on, however old it
// was.
func TestReplacedFilesGrowOld(t *testing.T) {
	s, cs := toErase(t, JSONL)
	c := &cs[0]
	old := time.Now().Add(-3 * OrphanAge)
	for _, f := range c.Files {
		require.NoError(t, os.Chtimes(s.abs(f.Path), old, old))
	}
	g := newGeneration(c, 1)
	g.without(t, s, c, 0, "summary 1")
	putGeneration(t, s, c, g)
	require.EqualValues(t, 1, clean(t, s).Orphans)
	first := g.Replaced[0].File.Path
	g = newGeneration(c, 2)
	g.Created = g.Created.Add(10 * 24 * time.Hour)
	g.without(t, s, c, 0, "summary 1", "summary 2")
	putGeneration(t, s, c, g)

	at := func(age time.Duration) (paths []string) {
		r, err := s.check(t.Context(), time.Now().Add(age))
		require.NoError(t, err)
		require.EqualValues(t, 2, r.Orphans)
		for _, f := range r.Faults {
			require.Contains(t, f.Problem, "older than the 30")
			paths = append(paths, f.Coordinates)
		}
		return paths
	}
	require.Empty(t, at(OrphanAge-time.Hour))
	require.Equal(t, []string{c.Files[0].Path}, at(OrphanAge+time.Hour))
	require.ElementsMatch(t, []string{c.Files[0].Path, first}, at(OrphanAge+10*24*time.Hour+time.Hour))
}

func TestCheckFindsBrokenGenerations(t *testing.T) {
	const at0 = "events/0@0"
	// made is a dataset, the first commit and its first generation, which is
	// not there yet; the file it writes is.
	type made struct {
		s *Store
		c *Commit
		g Generation
	}
	file := func(m *made) string { return m.g.Replaced[0].File.Path }
	is := func(s string) func(*made) string { return func(*made) string { return s } }
	edit := func(f func(*made)) func(*testing.T, *made) {
		return func(t *testing.T, m *made) { f(m); putGeneration(t, m.s, m.c, m.g) }
	}
	rewrite := func(f func([]Row) []Row) func(*testing.T, *made) {
		return func(t *testing.T, m *made) {
			putGeneration(t, m.s, m.c, m.g)
			b, err := new(encoder).encodeRows(m.c.Format, f(rows(t, m.s, *m.c)[:4]))
			require.NoError(t, err)
			sum := sha256.Sum256(b)
			r := m.g.Replaced[0]
			r.File.Bytes, r.File.SHA256 = int64(len(b)), hex.EncodeToString(sum[:])
			put(t, m.s, r.File.Path, b)
			require.NoError(t, os.Remove(m.s.abs(m.c.generationFile(1))))
			putGeneration(t, m.s, m.c, m.g)
		}
	}
	for name, tc := range map[string]struct {
		breaks   func(*testing.T, *made)
		at       func(*made) string
		want     string
		readable bool // ReadRows finds nothing wrong: only sums are
	}{
		"the second without a first": {edit(func(m *made) { m.g.Generation = 2 }), is(at0), "generation 1 is missing", false},
		"a gap": {func(t *testing.T, m *made) {
			putGeneration(t, m.s, m.c, m.g)
			m.g.Generation = 3
			putGeneration(t, m.s, m.c, m.g)
		}, is(at0), "generation 2 is missing", false},
		"another number": {func(t *testing.T, m *made) {
			m.g.Generation = 2
			b, err := json.Marshal(m.g)
			require.NoError(t, err)
			put(t, m.s, m.c.generationFile(1), b)
		}, is(at0), "says that it is generation 2", false},
		"an older one that does not parse": {func(t *testing.T, m *made) {
			putGeneration(t, m.s, m.c, m.g)
			putGeneration(t, m.s, m.c, newGeneration(m.c, 2))
			put(t, m.s, m.c.generationFile(1), []byte("{"))
		}, is(at0), "does not parse", true},
		"rows that come back": {func(t *testing.T, m *made) {
			putGeneration(t, m.s, m.c, m.g)
			putGeneration(t, m.s, m.c, newGeneration(m.c, 2))
		}, func(m *made) string { return m.c.Files[0].Path }, "generation 2 brings back", true},
		"counts that come back": {func(t *testing.T, m *made) {
			m.g.uncount(t, m.s, m.c, 2, 2, 2)
			putGeneration(t, m.s, m.c, m.g)
			g := newGeneration(m.c, 2)
			g.without(t, m.s, m.c, 0, "summary 1")
			g.uncount(t, m.s, m.c, 2, 3, 1)
			putGeneration(t, m.s, m.c, g)
		}, func(m *made) string { return m.c.Files[2].Path }, "generation 2 brings back", true},
		"of another attempt":   {edit(func(m *made) { m.g.Commit = uuid.NewString() }), is(at0), "of another commit", false},
		"of another start":     {edit(func(m *made) { m.g.Start = 4 }), is(at0), "of another commit", false},
		"of another partition": {edit(func(m *made) { m.g.Partition = 1 }), is(at0), "of another commit", false},
		"of another topic":     {edit(func(m *made) { m.g.Topic = "other" }), is(at0), "of another commit", false},
		"another version":      {edit(func(m *made) { m.g.Version = 99 }), is(at0), "version 99", false},
		"no UUID": {edit(func(m *made) {
			m.g.Attempt = "x"
			m.g.Replaced[0].File.Path = m.c.path(m.g.Replaced[0].File, m.g.Generation, "x")
		}), is(at0), "the attempt is not a UUID of its own", false},
		"the commit's attempt": {edit(func(m *made) {
			m.g.Attempt = m.c.Attempt
			m.g.Replaced[0].File.Path = m.c.Files[0].Path
		}), is(at0), "the attempt is not a UUID of its own", false},
		"not JSON": {func(t *testing.T, m *made) { put(t, m.s, m.c.generationFile(1), []byte("{")) }, is(at0), "does not parse", false},
		"an unknown member": {func(t *testing.T, m *made) {
			b, err := json.Marshal(m.g)
			require.NoError(t, err)
			put(t, m.s, m.c.generationFile(1), bytes.Replace(b, []byte("{"), []byte(`{"note":1,`), 1))
		}, is(at0), "does not parse", false},
		"a file that the commit does not name": {edit(func(m *made) { m.g.Replaced[0].Path = "in-app/region=eu/dt=2026-09-01/x" }), is(at0), "no file of the commit", false},
		"a file of another commit": {edit(func(m *made) {
			chain, _ := m.s.Chain(topic, 0)
			m.g.Replaced[0].Path = chain[1].Files[0].Path
		}), is(at0), "no file of the commit", false},
		"the file of keys":      {edit(func(m *made) { m.g.Replaced[0].Path = m.c.Files[3].Path }), is(at0), "can be replaced", false},
		"a file twice":          {edit(func(m *made) { m.g.Replaced = append(m.g.Replaced, Replacement{Path: m.c.Files[0].Path}) }), is(at0), "replaced twice", false},
		"a negative count":      {edit(func(m *made) { m.g.Replaced[0].Rows = -2 }), is(at0), "a count is negative", false},
		"a file of a region":    {edit(func(m *made) { m.g.Replaced[0].File.Region = "us" }), is(at0), "another stream, region or month", false},
		"a file of a month":     {edit(func(m *made) { m.g.Replaced[0].File.Month = "2026-10" }), is(at0), "another stream, region or month", false},
		"a file of a stream":    {edit(func(m *made) { m.g.Replaced[0].File.Stream = StreamMetadata }), is(at0), "another stream, region or month", false},
		"a path of another try": {edit(func(m *made) { m.g.Attempt = uuid.NewString() }), file, "the path is not", false},
		"a missing file": {func(t *testing.T, m *made) {
			putGeneration(t, m.s, m.c, m.g)
			require.NoError(t, os.Remove(m.s.abs(file(m))))
		}, file, "missing", false},
		"another hash":                       {edit(func(m *made) { m.g.Replaced[0].File.SHA256 = m.c.Files[0].SHA256 }), file, "sha256", false},
		"another size":                       {edit(func(m *made) { m.g.Replaced[0].File.Bytes++ }), file, "bytes", false},
		"rows of the file":                   {edit(func(m *made) { m.g.Replaced[0].File.Rows++ }), file, "the file has 4 rows", true},
		"rows removed":                       {edit(func(m *made) { m.g.Replaced[0].Rows++ }), is(at0), "in-app rows", true},
		"of which file":                      {edit(func(m *made) { m.g.Replaced[0].Rows++ }), file, "4 rows are left and 3 were removed, of 6", true},
		"documents removed":                  {edit(func(m *made) { m.g.Replaced[0].Documents-- }), is(at0), "in-app documents", true},
		"counts removed":                     {edit(func(m *made) { m.g.Replaced[0].Counted++ }), is(at0), "metadata counted", true},
		"a file gone of which rows are left": {edit(func(m *made) { m.g.Replaced[0].File = nil }), is(at0), "in-app rows", true},
		"a row more removed than it says":    {rewrite(func(rs []Row) []Row { return rs[:3] }), file, "the file has 3 rows", true},
		"a part of a document removed":       {rewrite(func(rs []Row) []Row { return rs[1:] }), file, "not in order", true},
		"a row that was changed":             {rewrite(func(rs []Row) []Row { rs[0].Kind = ""; return rs }), file, "a column is empty", true},
		"without a commit": {func(t *testing.T, m *made) {
			m.c.Start, m.c.Genesis = 2, false
			putGeneration(t, m.s, m.c, m.g)
		}, is("_generations/events/0/00000000000000000002/000001.json"), "there is no commit", true},
		"without a partition": {func(t *testing.T, m *made) {
			m.c.Partition = 7
			putGeneration(t, m.s, m.c, m.g)
		}, is("_generations/events/7/00000000000000000000/000001.json"), "there is no commit", true},
		"a stray": {func(t *testing.T, m *made) { put(t, m.s, m.c.generations()+"/1.json", nil) },
			is("_generations/events/0/00000000000000000000/1.json"), "not a generation", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // the time goes to fsync
			s, cs := toErase(t, JSONL)
			m := &made{s, &cs[0], newGeneration(&cs[0], 1)}
			m.g.without(t, s, m.c, 0, "summary 1")
			at := *m.c
			tc.breaks(t, m)
			r := check(t, s)
			require.Condition(t, func() bool {
				return slices.ContainsFunc(r.Faults, func(f Fault) bool { return f.Coordinates == tc.at(m) && strings.Contains(f.Problem, tc.want) })
			}, "want %s: …%s…, got %v", tc.at(m), tc.want, r.Faults)
			err := s.ReadRows(at, func(File, Row) error { return nil })
			require.Equal(t, tc.readable, err == nil, "%v", err)
		})
	}
}

// stray writes a data file that no commit names: of an attempt that extends
// the chain where the file of the commit does.
func stray(t *testing.T, s *Store, c *Commit) string {
	t.Helper()
	f := c.path(&c.Files[0], 0, uuid.NewString())
	put(t, s, f, []byte("x"))
	return f
}

// A file that nothing explains is a fault: an intent goes before each file and
// stays until all are gone, so none is left by a crash.
func TestOrphanNeedsAnIntent(t *testing.T) {
	s, cs := toErase(t, JSONL)
	tip := cs[1]
	tip.Start = tip.End
	f := stray(t, s, &tip)
	require.Equal(t, []Fault{{f, "neither a commit nor an intent names it"}}, check(t, s).Faults)
	intend := func(c *Commit, attempt string, files ...string) {
		b, err := json.Marshal(intent{files})
		require.NoError(t, err)
		put(t, s, path.Join(intentsDir, topic, "0", fmt.Sprintf("%020d-%s.json", c.extends(), attempt)), b)
	}
	intend(&tip, parseDataFile(f).attempt, f)
	r := clean(t, s)
	require.EqualValues(t, 2, r.Orphans, "the file and the intent")
	require.Empty(t, r.Dead, "its writer may be running")

	// An intent explains the files that it lists and no other, and gives a
	// commit no licence to leave out a file of its own.
	s, cs = toErase(t, JSONL)
	listed, other := stray(t, s, &tip), stray(t, s, &tip)
	own := cs[0].Files[0].Path
	intend(&tip, uuid.NewString(), listed, own)
	require.Equal(t, []Fault{{other, "neither a commit nor an intent names it"}}, check(t, s).Faults)
	c := cs[0]
	c.Files = c.Files[1:]
	putCommit(t, s, commitPath(0), c)
	require.Contains(t, check(t, s).Faults, Fault{own, "not named by the commit of its own attempt"})
}

// A writer is paused before it writes its files, another commits, Sweep removes
// the intent of the first, and that goes on and dies: the names of its files
// tell that they are dead.
func TestDeadByName(t *testing.T) {
	s, in := dataset(t), newSource(t)
	w, other := open(t, s, Options{}), open(t, s, Options{})
	require.NoError(t, w.Add(in.record(0, "loser")))
	require.NoError(t, other.Add(in.record(0, "winner")))
	setHook(t, func(p failpoint.Point) error {
		switch {
		case p.Op == "open" && strings.HasPrefix(p.Name, inAppDir) && !p.After:
			failpoint.Hook = nil
			_, err := other.Commit(0)
			require.NoError(t, err)
			_, _, err = s.Sweep(topic, 0)
			require.NoError(t, err)
			require.Empty(t, files(t, s, intentsDir))
			setHook(t, func(p failpoint.Point) error {
				if p.Op == "link" {
					panic(errKilled)
				}
				return nil
			})
		}
		return nil
	})
	require.PanicsWithValue(t, errKilled, func() { _, _ = w.Commit(0) })
	failpoint.Hook = nil
	r := clean(t, s)
	require.Len(t, r.Dead, 3)
	require.NoError(t, s.Discard(t.Context(), r.Dead))
	_, _, err := s.Sweep(topic, 0) // the temporary commit
	require.NoError(t, err)
	require.Zero(t, clean(t, s).Orphans)
	require.Equal(t, []string{"winner"}, allTexts(t, s))
}

// Check lists the files, and a writer that lost its race removes its own, and
// then the intent, before the intents are read.
func TestFilesThatVanishDuringCheck(t *testing.T) {
	for name, moment := range map[string]func(failpoint.Point) bool{
		"before the intents are read": func(p failpoint.Point) bool { return p.Op == "readdir" && p.Name == intentsDir && !p.After },
		"before the chains are read":  func(p failpoint.Point) bool { return p.Op == "readdir" && p.Name == commitsDir && !p.After },
		"before it is looked for":     func(p failpoint.Point) bool { return p.Op == "read" && strings.HasPrefix(p.Name, inAppDir) && !p.After },
	} {
		t.Run(name, func(t *testing.T) {
			s, cs := toErase(t, JSONL)
			tip := cs[1]
			tip.Start = tip.End
			f := stray(t, s, &tip)
			vanish := func(name string) {
				setHook(t, func(p failpoint.Point) error {
					if moment(p) {
						_ = os.Remove(s.abs(name))
					}
					return nil
				})
			}
			require.Len(t, check(t, s).Faults, 1)
			vanish(f)
			require.Zero(t, clean(t, s).Orphans)
			require.NoFileExists(t, s.abs(f))
			// What a commit names is missed nevertheless.
			vanish(cs[0].Files[0].Path)
			require.Contains(t, check(t, s).Faults, Fault{cs[0].Files[0].Path, "the file is missing"})
		})
	}
	// One that can not be read is no file that is gone.
	s, cs := toErase(t, JSONL)
	cs[1].Start = cs[1].End
	f := stray(t, s, &cs[1])
	setHook(t, func(p failpoint.Point) error {
		if p.Op == "read" && p.Name == f {
			return os.ErrPermission
		}
		return nil
	})
	_, err := s.Check(t.Context())
	require.ErrorIs(t, err, os.ErrPermission)
}
