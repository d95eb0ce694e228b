package batch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"

	"github.com/google/uuid"

	"winnow/pkg/schema"
)

// Report is what Check found.
type Report struct {
	Partitions, Commits, Files, Rows, Documents, Bytes int64

	// Orphans counts files that no commit names and that a crash, a lost race
	// or a running writer explains: their start is the tip of a chain, or
	// another attempt took it. Sweep removes the latter.
	Orphans int64
	Faults  []Fault
}

// Fault is one thing in a dataset that is not as its commits say.
type Fault struct {
	Coordinates string // a file's path, a partition, or a commit's first offset
	Problem     string // never content
}

func (f Fault) String() string { return f.Coordinates + ": " + f.Problem }

// Check reads the whole dataset and verifies it: every commit parses, has a
// known version and the name that its range gives; each chain joins without
// gap or fork; the double entry adds up; every file is there once, with the
// size, hash, columns, rows and documents that its commit says; and no file
// lies where no writer could have left it.
//
// It is safe beside running writers. The error says that the check could not
// be made or was cancelled; what is wrong with the dataset is in
// Report.Faults.
func (s *Store) Check(ctx context.Context) (Report, error) {
	// Data files are listed before the chains are read: a file that is
	// committed in between is then found in its chain. The other way round it
	// would look like an orphan of a start that is neither taken nor the tip.
	data, err := s.dataFiles(ctx)
	if err != nil {
		return Report{}, fmt.Errorf("check: %w", err)
	}
	ps, strays, err := s.partitions()
	if err != nil {
		return Report{}, fmt.Errorf("check: %w", err)
	}
	k := checker{store: s, named: map[string]string{}, chains: map[Partition]chainNames{}}
	for _, name := range strays {
		k.fault(name, "not a partition's chain")
	}
	for _, p := range ps {
		if err := k.chain(ctx, p); err != nil {
			return k.Report, fmt.Errorf("check %v: %w", p, err)
		}
	}
	for _, f := range data {
		k.unnamed(f)
	}
	return k.Report, nil
}

type checker struct {
	Report
	store  *Store
	named  map[string]string // data file → the commit that names it
	chains map[Partition]chainNames
}

// chainNames is what decides over a file that no commit names.
type chainNames struct {
	attempts map[int64]string // of the commits, by what they extend
	tip      int64
}

func (k *checker) fault(coordinates, format string, args ...any) {
	k.Faults = append(k.Faults, Fault{coordinates, fmt.Sprintf(format, args...)})
}

func (k *checker) chain(ctx context.Context, p Partition) error {
	extends, others, err := k.store.names(p)
	if err != nil {
		return err
	}
	k.Partitions++
	for _, name := range others {
		if tmpName.MatchString(name) {
			k.Orphans++
		} else {
			k.fault(path.Join(p.commits(), name), "not a commit")
		}
	}
	names := chainNames{attempts: map[int64]string{}}
	var chain []Commit // the commit before, if any
	for _, n := range extends {
		if err := ctx.Err(); err != nil {
			return err
		}
		c, err := k.store.readCommit(p, n)
		if err != nil {
			k.fault(commitFile(p, n), "%v", err)
			continue
		}
		k.Commits++
		if problem := joins(chain, &c); problem != "" {
			k.fault(c.Source().String(), "%s", problem)
		}
		chain = append(chain[:0], c)
		names.attempts[n], names.tip = c.Attempt, max(names.tip, c.End)
		if err := k.commit(ctx, &c); err != nil {
			return err
		}
	}
	k.chains[p] = names
	return nil
}

// commit checks one commit by itself: its double entry and its files.
func (k *checker) commit(ctx context.Context, c *Commit) error {
	at := c.Source().String()
	if id, err := uuid.Parse(c.Attempt); err != nil || id.String() != c.Attempt {
		k.fault(at, "the attempt is not a UUID")
	}
	sum := func(drops map[schema.Reason]int64) (n int64) {
		for _, r := range slices.Sorted(maps.Keys(drops)) {
			if r == "" || drops[r] < 1 {
				k.fault(at, "a drop without a reason or without a count")
			}
			n += drops[r]
		}
		return n
	}
	equal := func(what string, got, want int64) {
		if got != want || got < 0 {
			k.fault(at, "double entry: %s: %d is not %d", what, got, want)
		}
	}
	equal("records + holes = end - start", c.Records+c.Holes, c.End-c.Start)
	equal("in-app documents + drops = records", c.InApp.Documents+sum(c.InApp.Drops), c.Records)
	equal("metadata counted + drops = records", c.Metadata.Counted+sum(c.Metadata.Drops), c.Records)
	if min(c.Records, c.Holes, c.InApp.Documents, c.Metadata.Counted) < 0 {
		k.fault(at, "double entry: a count is negative")
	}
	var found tally
	for i := range c.Files {
		if err := ctx.Err(); err != nil {
			return err
		}
		f := &c.Files[i]
		if other, ok := k.named[f.Path]; ok {
			k.fault(f.Path, "named by %s and by %s", other, at)
			continue
		}
		k.named[f.Path] = at
		b, err := k.store.load(c, f)
		if errors.Is(err, fs.ErrNotExist) {
			err = errors.New("the file is missing")
		}
		var t tally
		if err == nil {
			t, err = c.tally(f, b)
		}
		if err != nil {
			k.fault(f.Path, "%v", err)
			continue
		}
		if t.rows != f.Rows {
			k.fault(f.Path, "the file has %d rows, its commit says %d", t.rows, f.Rows)
		}
		k.Files++
		k.Bytes += f.Bytes
		if f.Stream == StreamInApp {
			found.rows += t.rows
		}
		found.documents += t.documents
		found.counted += t.counted
	}
	k.Rows += found.rows
	k.Documents += found.documents
	equal("in-app rows = rows of its files", c.InApp.Rows, found.rows)
	equal("in-app documents = documents of its files", c.InApp.Documents, found.documents)
	equal("metadata counted = counts of its files", c.Metadata.Counted, found.counted)
	return nil
}

// tally is what a file was found to hold.
type tally struct{ rows, documents, counted int64 }

// tally decodes a file and checks its rows against the commit.
func (c *Commit) tally(f *File, b []byte) (t tally, err error) {
	switch f.Stream {
	case StreamInApp:
		var prev Row
		err = decode(c.Format, b, func(r Row) error {
			t.rows++
			if r.Part == 0 {
				t.documents++
			}
			id, err := uuid.Parse(r.ID)
			switch {
			case err != nil || id.Version() != 4 || id.String() != r.ID:
				return fmt.Errorf("row %d: the id is not a UUIDv4", t.rows)
			case r.Part == 0 && r.ID == prev.ID, r.Part != 0 && (r.ID != prev.ID || r.Part != prev.Part+1):
				return fmt.Errorf("row %d: the parts of a document are not in order", t.rows)
			case r.Product == "" || r.Kind == "" || r.Role == "" || r.Format == "":
				return fmt.Errorf("row %d: a column is empty", t.rows)
			case r.Month != f.Month:
				return fmt.Errorf("row %d: the month is not the file's", t.rows)
			case r.ScrubVersion != c.ScrubVersion:
				return fmt.Errorf("row %d: the scrub version is not the commit's", t.rows)
			}
			prev = r
			return nil
		})
	case StreamMetadata:
		err = decode(c.Format, b, func(r count) error {
			t.rows++
			t.counted += r.Count
			if r.Month != f.Month || r.Product == "" || r.Kind == "" || r.Count < 1 {
				return fmt.Errorf("row %d: not a count of the file's month", t.rows)
			}
			return nil
		})
	case StreamQuarantine:
		last := c.Start - 1
		err = decodeLines(bytes.NewReader(b), func(r rejected) error {
			t.rows++
			if r.Topic != c.Topic || r.Partition != c.Partition || r.Offset <= last || r.Offset >= c.End || r.Reason == "" {
				return fmt.Errorf("line %d: not a record of the commit's range, in order", t.rows)
			}
			last = r.Offset
			return nil
		})
	default:
		err = errors.New("the stream is not one of the format's")
	}
	return t, err
}

// unnamed decides over a data file that no commit names.
func (k *checker) unnamed(f dataFile) {
	if _, ok := k.named[f.path]; ok {
		return
	}
	chain := k.chains[f.part]
	attempt, taken := chain.attempts[f.extends]
	switch {
	case f.foreign:
		k.fault(f.path, "not a data file of this format")
	case taken && attempt == f.attempt:
		k.fault(f.path, "not named by the commit of its own attempt")
	case taken || f.extends == chain.tip:
		k.Orphans++
	default:
		k.fault(f.path, "no commit starts at its offset, which is not the tip of the chain either")
	}
}
