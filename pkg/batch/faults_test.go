package batch

import (
	"context"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"winnow/internal/failpoint"
	"winnow/pkg/schema"
)

// logBatch is how many offsets one batch of a testLog takes: two records that
// become rows, one that is dropped, one that can not be read, and one that
// repeats a record of the batch before. So every batch has files of all four
// kinds, and who forgets what the chain has seen adds a row.
const logBatch = 5

// testLog is a partition of the log and the processes that carry it into a
// dataset. Every process that reads an offset gets the same record.
type testLog struct {
	t        testing.TB
	location string // of the dataset
	end      int64  // of the log
	in       source
	options  Options

	acked []string // attempts whose Commit returned without an error
	swept bool     // a sweep ran beside writers: see finish
}

func newLog(in source, location string, batches int64) *testLog {
	return &testLog{t: in.t, location: location, end: batches * logBatch, in: in, options: Options{Format: JSONL}}
}

// memoryDir returns a directory that lies in memory where the system has such,
// for tests of thousands of fsyncs that are not about the disk.
func memoryDir(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "batch-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

func text(offset int64) string { return fmt.Sprint("text ", offset) }

// batchEnd returns the end of the batch that holds an offset, whoever asks.
func batchEnd(offset int64) int64 { return offset - offset%logBatch + logBatch }

// want returns the texts of the offsets below end, in order.
func (l *testLog) want(end int64) (texts []string) {
	for o := range end {
		if o%logBatch < 2 {
			texts = append(texts, text(o))
		}
	}
	return texts
}

// fill gives the writer what lies from its start to the end of its batch, and
// returns the last offset.
func (l *testLog) fill(w *Writer) int64 {
	end := batchEnd(w.Start())
	for o := w.Start(); o < end; o++ {
		switch o % logBatch {
		case 0, 1:
			require.NoError(l.t, w.Add(l.in.record(o, text(o))))
		case 2:
			w.Drop(src(o), schema.Withheld{Metadata: "opted_out", InApp: "opted_out"})
		case 3:
			w.Reject(src(o), &schema.Error{Reason: schema.ReasonMalformedJSON, Path: "issue", Offset: 1})
		case 4:
			if o > logBatch {
				before := l.in.record(o-logBatch-4, "")
				require.NoError(l.t, w.Add(l.in.record(o, text(o), func(e *schema.Event) { e.ID = before.Envelope().ID })))
			}
		}
	}
	return end - 1
}

// commit commits and takes down what was reported as durable.
func (l *testLog) commit(w *Writer, last int64) error {
	c, err := w.Commit(last)
	if err == nil {
		l.acked = append(l.acked, c.Attempt)
	}
	return err
}

// process is the life of one process: it opens the dataset, making it if it
// must, and carries the log up to an offset. Like the worker's it goes on with
// a new Writer when another one was faster, and ends with any other error.
// race, if set, is called with every batch that is ready to be committed.
func (l *testLog) process(to int64, race func(*Store, *Writer) error) error {
	s, err := Create(l.location)
	if err != nil {
		return err
	}
	var w *Writer
	for next := int64(0); next < to; {
		if w == nil {
			if w, err = s.Writer(context.Background(), topic, 0, l.options); err != nil {
				return err
			}
			if next = w.Start(); next >= to {
				break
			}
		}
		last := l.fill(w)
		if race != nil {
			if err := race(s, w); err != nil {
				return err
			}
		}
		switch err := l.commit(w, last); {
		case errors.Is(err, ErrCommitted):
			w = nil
		case err != nil:
			return err
		default:
			next = w.Start()
		}
		if _, _, err := s.Sweep(topic, 0); err != nil {
			return err
		}
	}
	return nil
}

// verify demands of a dataset to which nobody writes that what was reported as
// durable is there and that every offset below its tip is in it exactly once.
func (l *testLog) verify(s *Store) Report {
	l.t.Helper()
	r := clean(l.t, s)
	chain, err := s.Chain(topic, 0)
	require.NoError(l.t, err)
	var attempts []string
	end := int64(0)
	for _, c := range chain {
		attempts, end = append(attempts, c.Attempt), c.End
	}
	require.Subset(l.t, attempts, l.acked)
	require.Equal(l.t, l.want(end), allTexts(l.t, s))
	return r
}

// finish lets a process that nothing happens to carry the whole log, and
// demands that it leaves what commits name and nothing else.
func (l *testLog) finish() {
	l.t.Helper()
	s, err := Create(l.location)
	require.NoError(l.t, err)
	next, err := s.Next(topic, 0)
	require.NoError(l.t, err)
	require.Less(l.t, next, l.end, "only a commit decides over what extends the tip")
	require.NoError(l.t, l.process(l.end, nil))
	next, err = s.Next(topic, 0)
	require.NoError(l.t, err)
	require.Equal(l.t, l.end, next)
	r := l.verify(s)
	if l.swept {
		// A loser may have written files after the sweep that took its intent,
		// and died before it removed them. They are dead by their names.
		require.EqualValues(l.t, r.Orphans, len(r.Dead))
		require.NoError(l.t, s.Discard(l.t.Context(), r.Dead))
		r = l.verify(s)
	}
	require.Zero(l.t, r.Orphans)

	named := []string{marker}
	chain, err := s.Chain(topic, 0)
	require.NoError(l.t, err)
	for _, c := range chain {
		named = append(named, commitFile(Partition{topic, 0}, c.extends()))
		for _, f := range c.Files {
			named = append(named, f.Path)
		}
	}
	var there []string
	require.NoError(l.t, s.storage.list(l.t.Context(), ".", true, func(e entry) error {
		if !strings.HasPrefix(e.name, marker+".tmp-") { // of a Create that died
			there = append(there, e.name)
		}
		return nil
	}))
	require.ElementsMatch(l.t, named, there)
}

// raceOf returns a race for the batch that starts at an offset: one other
// writer writes its files and is never seen again, and one commits first.
func (l *testLog) raceOf(start int64) func(*Store, *Writer) error {
	return func(_ *Store, w *Writer) error {
		if w.Start() != start {
			return nil
		}
		s, err := Open(l.location)
		if err != nil {
			return err
		}
		dead, err := s.Writer(context.Background(), topic, 0, l.options)
		if err != nil {
			return err
		}
		c, rows := dead.attempt(l.fill(dead))
		if err := dead.writeFiles(context.Background(), &c, rows); err != nil {
			return err
		}
		first, err := s.Writer(context.Background(), topic, 0, l.options)
		if err != nil {
			return err
		}
		if err := l.commit(first, l.fill(first)); err != nil && !errors.Is(err, ErrCommitted) {
			return err
		}
		return nil
	}
}

// run carries the log, but for its last batch, through a lost race, and checks
// the dataset; what Check finds counts as an error.
func (l *testLog) run(checking *bool) error {
	if err := l.process(l.end-logBatch, l.raceOf(logBatch)); err != nil {
		return err
	}
	*checking = true
	s, err := Open(l.location)
	if err != nil {
		return err
	}
	r, err := s.Check(l.t.Context())
	if err == nil && len(r.Faults) > 0 {
		err = errors.New(r.Faults[0].String())
	}
	return err
}

// Every call to the file system fails, one in each run: before it is made, or
// after it was made; alone, or with all that follow until the process gives
// up. Whoever comes next carries on, and every row is there once.
func TestEveryCallFails(t *testing.T) {
	var points []failpoint.Point
	ops, checking := map[string]bool{}, false
	in := newSource(t)
	l := newLog(in, filepath.Join(memoryDir(t), "volume", "out"), 3)
	setHook(t, func(p failpoint.Point) error {
		points = append(points, p)
		ops[p.Op] = true
		return nil
	})
	require.NoError(t, l.run(&checking))
	failpoint.Hook = nil
	l.finish()
	for _, op := range []string{"open", "write", "fsync", "close", "mkdir", "fsyncdir", "link", "remove", "read", "readdir"} {
		require.True(t, ops[op], "the run makes no %s", op)
	}
	swallowed := map[string]int{}
	for i := range points {
		if !sampled(i) {
			continue
		}
		for _, lasting := range []bool{false, true} {
			p, fault := points[i], []error{syscall.ENOSPC, syscall.EIO}[i/2%2]
			if lasting && p.After {
				continue // as good as the point before
			}
			name := fmt.Sprintf("point %d, %s, after %t, lasting %t", i, p.Op, p.After, lasting)
			l := newLog(in, filepath.Join(memoryDir(t), "volume", "out"), 3)
			n, checking, failedChecking := -1, false, false
			setHook(t, func(q failpoint.Point) error {
				n++
				if n == i {
					require.Equal(t, p.Op, q.Op, name)
					failedChecking = checking
				}
				if n == i || n > i && lasting {
					return fault
				}
				return nil
			})
			err := l.run(&checking)
			failpoint.Hook = nil
			require.GreaterOrEqual(t, n, i, name)
			switch {
			case failedChecking:
				require.Error(t, err, "%s: what can not be read was not reported", name)
			case err != nil:
				require.ErrorIs(t, err, fault, name)
			case !p.After:
				swallowed[p.Op]++
			}
			l.finish()
		}
	}
	t.Log(len(points), "points;", swallowed)
}

// Calls fail at random, several in one process, until a process is through.
func TestCallsFailAtRandom(t *testing.T) {
	in, died := newSource(t), 0
	for seed := range uint64(200) {
		l := newLog(in, filepath.Join(memoryDir(t), "volume", "out"), 3)
		draw := rand.New(rand.NewPCG(seed, 0))
		setHook(t, func(failpoint.Point) error {
			if draw.IntN(400) == 0 {
				return syscall.EIO
			}
			return nil
		})
		for {
			err := l.process(l.end-logBatch, l.raceOf(logBatch))
			if err == nil {
				break
			}
			require.ErrorIs(t, err, syscall.EIO, "seed %d", seed)
			died++
			require.Less(t, died, 100_000, "it makes no progress")
		}
		failpoint.Hook = nil
		l.finish()
	}
	t.Log("died", died, "times")
}

// A commit that can not be read does not make its own attempt a loser.
func TestSweepCannotRead(t *testing.T) {
	l := newLog(newSource(t), filepath.Join(t.TempDir(), "out"), 2)
	setHook(t, func(p failpoint.Point) error {
		switch {
		case p.Op == "remove" && strings.HasPrefix(p.Name, intentsDir),
			p.Op == "read" && strings.HasPrefix(p.Name, commitsDir):
			return syscall.EIO
		}
		return nil
	})
	require.ErrorIs(t, l.process(logBatch, nil), syscall.EIO, "the sweep after the commit")
	require.Len(t, l.acked, 1)
	failpoint.Hook = nil
	l.finish()
}

// Nothing of the package goes past disk to the file system, so nothing past the
// points that the tests stand at.
func TestOnlyDiskTouchesFiles(t *testing.T) {
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	var importers []string
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		ast, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.ImportsOnly)
		require.NoError(t, err)
		for _, i := range ast.Imports {
			if p, err := strconv.Unquote(i.Path.Value); err != nil || p == "os" || strings.HasPrefix(p, "os/") || p == "io/ioutil" || p == "unsafe" {
				importers = append(importers, f)
			}
		}
	}
	require.Equal(t, []string{"disk.go"}, importers)
}
