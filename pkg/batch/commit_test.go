package batch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"winnow/internal/failpoint"
)

// raceOnce lets n writers, each with a store of its own, commit batches that
// extend the same tip at the same time.
func raceOnce(t *testing.T, dir string, n int, prepare func(i int, w *Writer), last func(i int) int64) (won Commit) {
	t.Helper()
	var ready, done sync.WaitGroup
	start, errs, commits := make(chan struct{}), make([]error, n), make([]Commit, n)
	for i := range n {
		s, err := Open(dir)
		require.NoError(t, err)
		w := open(t, s, Options{Format: JSONL})
		prepare(i, w)
		ready.Add(1)
		done.Go(func() {
			ready.Done()
			<-start
			commits[i], errs[i] = w.Commit(last(i))
		})
	}
	ready.Wait()
	close(start)
	done.Wait()
	winners := 0
	for i, err := range errs {
		if err == nil {
			winners++
			won = commits[i]
			continue
		}
		require.ErrorIs(t, err, ErrCommitted)
	}
	require.Equal(t, 1, winners)
	return won
}

func TestRace(t *testing.T) {
	const writers, rounds = 8, 40
	s, in := dataset(t), newSource(t)
	var want []string
	var named []string
	for range rounds {
		next, err := s.Next(topic, 0)
		require.NoError(t, err)
		won := raceOnce(t, s.dir(), writers, func(i int, w *Writer) {
			require.NoError(t, w.Add(in.record(next, fmt.Sprint("writer ", i))))
		}, func(i int) int64 { return next + int64(i) })
		want = append(want, fmt.Sprint("writer ", won.End-won.Start-1))
		for _, f := range won.Files {
			named = append(named, f.Path)
		}
	}
	require.Equal(t, want, allTexts(t, s))
	require.ElementsMatch(t, named, slices.Concat(files(t, s, inAppDir), files(t, s, metadataDir), files(t, s, seenDir)), "losers remove their files")
	r := clean(t, s)
	require.Zero(t, r.Orphans)
	require.EqualValues(t, rounds, r.Commits)
}

// Writers that saw the log begin at different offsets race for the first
// commit: names by start would let all of them win.
func TestGenesisRace(t *testing.T) {
	for range 20 {
		s := dataset(t)
		raceOnce(t, s.dir(), 8, func(i int, w *Writer) { require.NoError(t, w.StartAt(int64(i))) }, func(i int) int64 { return 10 })
		require.EqualValues(t, 1, clean(t, s).Commits)
	}
}

func setHook(t testing.TB, f func(failpoint.Point) error) {
	t.Helper()
	failpoint.Hook = f
	t.Cleanup(func() { failpoint.Hook = nil })
}

// isLink reports whether a point is before the link of a commit.
func isLink(p failpoint.Point) bool {
	return p.Op == "link" && !p.After && strings.HasPrefix(p.Name, commitsDir)
}

// The link was made but its success was not reported, so it is tried and found
// to exist: the commit is the writer's own.
func TestOwnCommitExists(t *testing.T) {
	s, in := dataset(t), newSource(t)
	w := open(t, s, Options{})
	require.NoError(t, w.Add(in.record(0, "x")))
	setHook(t, func(p failpoint.Point) error {
		if isLink(p) {
			tmp, err := filepath.Glob(s.abs("_commits/events/0/.*.tmp"))
			require.NoError(t, err)
			require.Len(t, tmp, 1)
			require.NoError(t, os.Link(tmp[0], s.abs(commitFile(Partition{topic, 0}, 0))))
		}
		return nil
	})
	c, err := w.Commit(0)
	require.NoError(t, err)
	require.EqualValues(t, 1, c.End)
	require.Equal(t, []string{"x"}, allTexts(t, s))
	require.Zero(t, clean(t, s).Orphans)
}

// A Sweep between a loser's temporary file and its link takes the file away.
func TestSweepBeforeLink(t *testing.T) {
	s, in := dataset(t), newSource(t)
	w, other := open(t, s, Options{}), open(t, s, Options{})
	require.NoError(t, w.Add(in.record(0, "loser")))
	require.NoError(t, other.Add(in.record(0, "winner")))
	setHook(t, func(p failpoint.Point) error {
		if isLink(p) {
			failpoint.Hook = nil
			_, err := other.Commit(0)
			require.NoError(t, err)
			n, pending, err := s.Sweep(topic, 0)
			require.NoError(t, err)
			require.Equal(t, 4, n, "three data files and the temporary one")
			require.Zero(t, pending)
		}
		return nil
	})
	_, err := w.Commit(0)
	require.ErrorIs(t, err, ErrCommitted)
	require.Equal(t, []string{"winner"}, allTexts(t, s))
	require.Zero(t, clean(t, s).Orphans)
}

var errKilled = errors.New("killed")

// commitUntil commits and dies at the n-th point it reaches, counted from 1; it
// returns the points it passed and whether it died.
func commitUntil(t *testing.T, w *Writer, last int64, n int) (reached []failpoint.Point, died bool) {
	t.Helper()
	setHook(t, func(p failpoint.Point) error {
		reached = append(reached, p)
		if len(reached) == n {
			panic(errKilled)
		}
		return nil
	})
	defer func() {
		failpoint.Hook = nil
		if r := recover(); r != nil {
			require.Equal(t, errKilled, r)
			died = true
		}
	}()
	_, err := w.Commit(last)
	require.NoError(t, err)
	return reached, false
}

// A process that dies before or after any call that a batch makes, and one that
// takes over from what it left, write every row exactly once.
func TestKill(t *testing.T) {
	in := newSource(t)
	var want []string
	for o := range 9 {
		want = append(want, fmt.Sprint("text ", o))
	}
	fill := func(t *testing.T, s *Store, end int64) *Writer {
		w := open(t, s, Options{})
		next, err := s.Next(topic, 0)
		require.NoError(t, err)
		for o := next; o < end; o++ {
			require.NoError(t, w.Add(in.record(o, want[o])))
		}
		return w
	}
	for _, batch := range []int64{0, 1} { // the genesis commit, and one that follows
		prepare := func(t *testing.T) (*Store, *Writer) {
			s := dataset(t)
			if batch > 0 {
				_, err := fill(t, s, 3).Commit(2)
				require.NoError(t, err)
			}
			w := fill(t, s, 3+3*batch)
			if batch > 0 {
				w.Reject(src(6), errors.New("so that there is a quarantine file")) // the resumed run adds it
			}
			return s, w
		}
		last := 2 + 4*batch
		_, w := prepare(t)
		points, died := commitUntil(t, w, last, 0)
		require.False(t, died)
		linked := slices.IndexFunc(points, func(p failpoint.Point) bool {
			return p.Op == "link" && p.After && strings.HasPrefix(p.Name, commitsDir)
		})
		require.Greater(t, linked, 0)
		for i, p := range points {
			if !sampled(i) {
				continue
			}
			t.Run(fmt.Sprintf("batch %d, point %d, %s %t", batch, i, p.Op, p.After), func(t *testing.T) {
				s, w := prepare(t)
				_, died := commitUntil(t, w, last, i+1)
				require.True(t, died)

				s, err := Open(s.dir())
				require.NoError(t, err)
				clean(t, s)
				next, err := s.Next(topic, 0)
				require.NoError(t, err)
				n, _, err := s.Sweep(topic, 0)
				require.NoError(t, err)
				if i < linked {
					require.Equal(t, 3*batch, next)
					require.Zero(t, n, "the start is not taken, so the attempt is not known to be dead")
				} else {
					require.Equal(t, last+1, next)
				}

				w = fill(t, s, 9)
				_, err = w.Commit(8)
				require.NoError(t, err)
				got := allTexts(t, s)
				if batch > 0 && i >= linked {
					require.Equal(t, slices.Delete(slices.Clone(want), 6, 7), got) // 6 was rejected, and committed so
				} else {
					require.Equal(t, want, got)
				}
				_, pending, err := s.Sweep(topic, 0)
				require.NoError(t, err)
				require.Zero(t, pending)
				require.Zero(t, clean(t, s).Orphans, "every start is taken: what is left over is swept")
			})
		}
	}
}

// An attempt whose disk fails ends its writer; what it wrote is removed.
func TestWriteFails(t *testing.T) {
	s, in := dataset(t), newSource(t)
	w := open(t, s, Options{})
	require.NoError(t, w.Add(in.record(0, "x")))
	require.NoError(t, os.WriteFile(s.abs(metadataDir), nil, 0o644)) // where a directory must be made
	_, err := w.Commit(0)
	require.Error(t, err)
	_, again := w.Commit(0)
	require.Equal(t, err, again)
	require.NoError(t, os.Remove(s.abs(metadataDir)))
	require.Zero(t, clean(t, s).Orphans)

	w = open(t, s, Options{})
	require.NoError(t, w.Add(in.record(0, "x")))
	_, err = w.Commit(0)
	require.NoError(t, err)
	require.Equal(t, []string{"x"}, allTexts(t, s))
}

// Once the link may have been made, an error must leave the data in place: the
// commit names it.
func TestSyncFailsAfterLink(t *testing.T) {
	s, in := dataset(t), newSource(t)
	w := open(t, s, Options{})
	require.NoError(t, w.Add(in.record(0, "x")))
	fault := errors.New("no space left on device")
	linked := false
	setHook(t, func(p failpoint.Point) error {
		linked = linked || p.Op == "link" && p.After && strings.HasPrefix(p.Name, commitsDir)
		if linked && p.Op == "fsyncdir" && !p.After {
			return fault
		}
		return nil
	})
	_, err := w.Commit(0)
	require.ErrorIs(t, err, fault)
	require.NotErrorIs(t, err, ErrCommitted)
	failpoint.Hook = nil
	next, err := s.Next(topic, 0)
	require.NoError(t, err)
	require.EqualValues(t, 1, next)
	require.Equal(t, []string{"x"}, allTexts(t, s))
	_, _, err = s.Sweep(topic, 0)
	require.NoError(t, err)
	require.Zero(t, clean(t, s).Orphans)
}

func TestSweep(t *testing.T) {
	s, in := dataset(t), newSource(t)
	w := open(t, s, Options{})
	for o := range int64(2) {
		require.NoError(t, w.Add(in.record(o, "x")))
		_, err := w.Commit(o)
		require.NoError(t, err)
	}
	put := func(rel, content string) string {
		require.NoError(t, os.MkdirAll(filepath.Dir(s.abs(rel)), 0o755))
		require.NoError(t, os.WriteFile(s.abs(rel), []byte(content), 0o644))
		return rel
	}
	// An attempt of a partition that left two files, their intent, and its
	// temporary commit.
	attempt := func(partition int, start int64) []string {
		c := Commit{Topic: topic, Partition: partition, Start: start, Attempt: uuid.NewString(), Genesis: start == 0}
		c.Files = []File{{Stream: StreamInApp, Region: "eu", Month: "2026-09"}, {Stream: StreamQuarantine}}
		for i := range c.Files {
			c.Files[i].Path = put(c.path(&c.Files[i], 0, c.Attempt), "x")
		}
		require.NoError(t, s.intend(t.Context(), &c))
		return []string{c.Files[0].Path, c.Files[1].Path, c.intentFile(),
			put(fmt.Sprintf("_commits/%s/%d/.%020d-%s.tmp", topic, partition, start, c.Attempt), "x")}
	}
	dead := slices.Concat(attempt(0, 0), attempt(0, 1))
	alive := slices.Concat(attempt(0, 2), attempt(1, 0)) // the tip: a running writer's; another partition's
	half := put("_intents/events/0/"+fmt.Sprintf("%020d-%s.json", 1, uuid.NewString()), `{"files":["in-app/reg`)
	r := clean(t, s)
	require.EqualValues(t, len(dead)+len(alive)+1, r.Orphans)
	n, pending, err := s.Sweep(topic, 0)
	require.NoError(t, err)
	require.Equal(t, 6, n, "beside the intents")
	require.Equal(t, 1, pending)
	for _, f := range append(dead, half) {
		require.NoFileExists(t, s.abs(f))
	}
	for _, f := range alive {
		require.FileExists(t, s.abs(f))
	}
	require.Equal(t, []string{"x", "x"}, allTexts(t, s))
	require.EqualValues(t, len(alive), clean(t, s).Orphans)

	// They may lie for a month.
	r, err = s.check(t.Context(), time.Now().Add(OrphanAge-time.Hour))
	require.NoError(t, err)
	require.Empty(t, r.Faults)
	r, err = s.check(t.Context(), time.Now().Add(OrphanAge+time.Hour))
	require.NoError(t, err)
	require.Len(t, r.Faults, 6, "temporary commits hold no rows")
}

func TestCreateRace(t *testing.T) {
	for range 20 {
		dir := filepath.Join(t.TempDir(), "a", "b")
		var wg sync.WaitGroup
		errs := make([]error, 8)
		for i := range errs {
			wg.Go(func() { _, errs[i] = Create(dir) })
		}
		wg.Wait()
		require.NoError(t, errors.Join(errs...))
		es, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Len(t, es, 1)
	}
}
