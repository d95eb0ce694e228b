package batch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"winnow/pkg/schema"
)

// Report is what Check found.
type Report struct {
	Partitions, Commits, Files, Rows, Documents, Bytes int64

	Generations int64 // commits of which a generation replaces files
	// Orphans counts files that no commit names and that a crash, a lost race,
	// a running writer or an erasure explains: an intent lists them, or a
	// generation of their commit replaced them. None may be one for longer than
	// OrphanAge.
	Orphans int64
	// Dead are those of the orphans that nothing can make part of the dataset:
	// another attempt has committed their start, or a generation replaced
	// them. Discard removes them.
	Dead   []string
	Faults []Fault
}

// OrphanAge is how long a file that is no part of the dataset may lie about.
// It may hold text of an organisation that has opted out since, which no
// erasure finds; the policy gives 30 days to remove it. A worker that is
// assigned the partition and commits once removes what is older, or makes it
// one of the dead.
const OrphanAge = 30 * 24 * time.Hour

// Fault is one thing in a dataset that is not as its commits say.
type Fault struct {
	Coordinates string // a file's path, a partition, or a commit's first offset
	Problem     string // never content
}

func (f Fault) String() string { return f.Coordinates + ": " + f.Problem }

// Check reads the whole dataset and verifies it: every commit parses, has a
// known version and the name that its range gives; each chain joins without
// gap or fork; the double entry adds up, with what erasures removed; every file
// is there once, with the size, hash, columns, rows and documents that its
// commit or the commit's newest generation says; and every other file is
// explained and not too old.
//
// It is safe beside running writers. The error says that the check could not
// be made or was cancelled; what is wrong with the dataset is in
// Report.Faults.
func (s *Store) Check(ctx context.Context) (Report, error) { return s.check(ctx, time.Now()) }

func (s *Store) check(ctx context.Context, now time.Time) (Report, error) {
	k := checker{store: s, now: now, named: map[string]string{}, replaced: map[string]time.Time{}, intended: map[string]bool{}, newest: map[string]int{}, chains: map[Partition]chainNames{}}
	// Files are listed first, then intents, and the chains are read last. A
	// writer goes the other way: intent, files, commit, and then the intent
	// goes. So a file that is listed is, if its intent is gone by then, in the
	// chain; or its writer lost a race, and it is gone as well (see unnamed).
	data, err := s.dataFiles(ctx)
	if err == nil {
		err = k.intents(ctx)
	}
	var ps []Partition
	var strays []string
	if err == nil {
		ps, strays, err = s.partitions(ctx)
	}
	if err != nil {
		return Report{}, fmt.Errorf("check: %w", err)
	}
	for _, name := range strays {
		k.fault(name, "not a partition's chain")
	}
	for _, p := range ps {
		if err := k.chain(ctx, p); err != nil {
			return k.Report, fmt.Errorf("check %v: %w", p, err)
		}
	}
	if err := k.generations(ctx); err != nil {
		return k.Report, fmt.Errorf("check: %w", err)
	}
	for _, f := range data {
		if err := k.unnamed(ctx, f); err != nil {
			return k.Report, fmt.Errorf("check: %w", err)
		}
	}
	return k.Report, nil
}

type checker struct {
	Report
	store    *Store
	now      time.Time
	named    map[string]string    // data file → the commit that names it
	replaced map[string]time.Time // files that a generation replaced → when
	intended map[string]bool      // files that an intent lists
	newest   map[string]int       // directory of a commit's generations → the newest
	chains   map[Partition]chainNames
}

// chainNames is what decides over a file that no commit names.
type chainNames struct {
	attempts map[int64]string // of the commits, by what they extend
	tip      int64
}

func (k *checker) fault(coordinates, format string, args ...any) {
	k.Faults = append(k.Faults, Fault{coordinates, fmt.Sprintf(format, args...)})
}

// Discard removes files that Check found to be dead.
func (s *Store) Discard(ctx context.Context, dead []string) error {
	for _, f := range dead {
		if err := s.storage.remove(ctx, f); err != nil {
			return fmt.Errorf("discard: %w", err)
		}
	}
	return nil
}

// intents reads what attempts that are not done intend to write, and counts
// the intents themselves as orphans.
func (k *checker) intents(ctx context.Context) error {
	return k.store.storage.list(ctx, intentsDir, true, func(e entry) error {
		b, err := k.store.storage.read(ctx, e.name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // done meanwhile
		} else if err != nil {
			return err
		}
		var i intent
		if decodeStrict(b, &i) == nil { // one that was not written whole has no files
			for _, f := range i.Files {
				k.intended[f] = true
			}
		}
		k.orphan(e.name, e.modified)
		return nil
	})
}

// orphan counts a file that is no part of the dataset and is explained.
func (k *checker) orphan(name string, modified time.Time) {
	k.Orphans++
	if age := k.now.Sub(modified); age > OrphanAge {
		k.fault(name, "no commit names it, and at %d days it is older than the %d that it may lie: let a worker run on its partition until it has committed, and sweep",
			age/(24*time.Hour), OrphanAge/(24*time.Hour))
	}
}

func (k *checker) chain(ctx context.Context, p Partition) error {
	extends, others, err := k.store.linked(ctx, p)
	if err != nil {
		return err
	}
	k.Partitions++
	for _, name := range others {
		if tmpName.MatchString(path.Base(name)) {
			k.Orphans++
		} else {
			k.fault(name, "not a commit")
		}
	}
	names := chainNames{attempts: map[int64]string{}}
	var chain []Commit // the commit before, if any
	for _, n := range extends {
		if err := ctx.Err(); err != nil {
			return err
		}
		c, err := k.store.readCommit(ctx, p, n)
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
	if !isUUID(c.Attempt) {
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
	g, err := k.store.generation(ctx, c)
	if err != nil {
		k.fault(at, "%v", err)
	}
	if g != nil {
		k.Generations++
		k.newest[c.generations()] = g.Generation
		k.replacements(ctx, c, g.Generation)
	}
	files, gone := c.current(g)
	var found, removed tally
	for _, r := range gone {
		removed.documents += r.Documents
		removed.counted += r.Counted
		if c.file(r.Path).Stream == StreamInApp {
			removed.rows += r.Rows
		}
	}
	for i := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		f := &files[i]
		if other, ok := k.named[f.Path]; ok {
			k.fault(f.Path, "named by %s and by %s", other, at)
			continue
		}
		k.named[f.Path] = at
		b, err := k.store.load(ctx, c, &f.File, f.generation, f.attempt)
		if errors.Is(err, fs.ErrNotExist) {
			err = errors.New("the file is missing")
		}
		var t tally
		if err == nil {
			t, err = c.tally(&f.File, b)
		}
		if err != nil {
			k.fault(f.Path, "%v", err)
			continue
		}
		if t.rows != f.Rows {
			k.fault(f.Path, "the file has %d rows, its commit says %d", t.rows, f.Rows)
		}
		if old := f.gone.Path; old != "" && t.rows+f.gone.Rows != c.file(old).Rows && f.Stream == StreamInApp {
			k.fault(f.Path, "%d rows are left and %d were removed, of %d", t.rows, f.gone.Rows, c.file(old).Rows)
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
	equal("in-app rows = rows of its files + erased", c.InApp.Rows, found.rows+removed.rows)
	equal("in-app documents = documents of its files + erased", c.InApp.Documents, found.documents+removed.documents)
	equal("metadata counted = counts of its files + erased", c.Metadata.Counted, found.counted+removed.counted)
	return nil
}

// replacements notes which files the generations of a commit, up to the newest,
// replaced: its own, and those that the generation before put in their place.
// None may bring back what the one before removed.
func (k *checker) replacements(ctx context.Context, c *Commit, newest int) {
	before := new(Generation)
	for n := 1; n <= newest; n++ {
		g, err := k.store.readGeneration(ctx, c, n)
		if err != nil {
			k.fault(c.Source().String(), "%v", err)
			return
		}
		now := map[string]Replacement{}
		for _, r := range g.Replaced {
			now[r.Path] = r
			if _, ok := k.replaced[r.Path]; !ok {
				k.replaced[r.Path] = g.Created
			}
		}
		for _, r := range before.Replaced {
			if r.File != nil {
				k.replaced[r.File.Path] = g.Created
			}
			if n := now[r.Path]; min(n.Rows-r.Rows, n.Documents-r.Documents, n.Counted-r.Counted) < 0 {
				k.fault(r.Path, "generation %d brings back what the one before it removed", g.Generation)
			}
		}
		before = g
	}
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
		err = decodeLines(bytes.NewReader(b), func(r schema.Rejected) error {
			t.rows++
			if r.Topic != c.Topic || r.Partition != c.Partition || r.Offset <= last || r.Offset >= c.End || r.Reason == "" {
				return fmt.Errorf("line %d: not a record of the commit's range, in order", t.rows)
			}
			last = r.Offset
			return nil
		})
	case StreamSeen:
		err = decodeSeen(b, c.Start, c.End, func(seenAt) { t.rows++ })
	default:
		err = errors.New("the stream is not one of the format's")
	}
	return t, err
}

// generations finds generations of which there is no commit.
func (k *checker) generations(ctx context.Context) error {
	return k.store.storage.list(ctx, generationsDir, true, func(e entry) error {
		m := generationPath.FindStringSubmatch(e.name)
		if m == nil {
			k.fault(e.name, "not a generation of a commit")
			return nil
		}
		num, err := strconv.Atoi(m[2])
		n, err2 := strconv.ParseInt(m[3], 10, 64)
		if errors.Join(err, err2) != nil || k.chains[Partition{m[1], num}].attempts[n] == "" {
			k.fault(e.name, "there is no commit of which it could be a generation")
		}
		return nil
	})
}

var generationPath = regexp.MustCompile(`^_generations/([^/]+)/(\d+)/(\d{20})/\d{6}\.json$`)

// unnamed decides over a data file that no commit names.
func (k *checker) unnamed(ctx context.Context, f dataFile) error {
	if _, ok := k.named[f.path]; ok {
		return nil
	}
	chain := k.chains[f.part]
	attempt, taken := chain.attempts[f.extends]
	since, replaced := k.replaced[f.path]
	problem := ""
	switch {
	case f.foreign:
		problem = "not a data file of this format"
	case replaced:
		f.modified = since // it was part of the dataset until then
		k.Dead = append(k.Dead, f.path)
	case taken && f.generation > 0:
		// An erasure may be about to create the generation; else it is dead
		// once another attempt has.
		c := Commit{Topic: f.part.Topic, Partition: f.part.Partition, Start: f.extends}
		if f.generation <= k.newest[c.generations()] {
			k.Dead = append(k.Dead, f.path)
		}
	case taken && attempt == f.attempt:
		problem = "not named by the commit of its own attempt"
	case taken:
		// Its name tells that it is dead, also without an intent: a writer that
		// was paused before it wrote, while another committed and Sweep removed
		// its intent, may have gone on and died before it removed its files.
		k.Dead = append(k.Dead, f.path)
	case !taken && f.extends != chain.tip:
		problem = "no commit starts at its offset, which is not the tip of the chain either"
	case !k.intended[f.path]:
		problem = "neither a commit nor an intent names it"
	}
	if problem == "" {
		k.orphan(f.path, f.modified)
		return nil
	}
	// Its writer may have lost a race while we looked, and removed it.
	if _, err := k.store.storage.read(ctx, f.path); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	k.fault(f.path, "%s", problem)
	return nil
}
