package batch

import (
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"time"

	"github.com/google/uuid"
)

// Generation says which files of a commit were written anew, without the rows
// that had to go. A commit never changes, so an erasure adds a generation
// beside it: created if absent under the next number, complete in itself. The
// newest alone counts.
type Generation struct {
	Version    int           `json:"version"`
	Topic      string        `json:"topic"`
	Partition  int           `json:"partition"`
	Start      int64         `json:"start"`      // of the commit
	Commit     string        `json:"commit"`     // the commit's attempt
	Generation int           `json:"generation"` // from 1, without a gap
	Attempt    string        `json:"attempt"`    // UUIDv4; names the new files
	Created    time.Time     `json:"created"`    // UTC
	Replaced   []Replacement `json:"replaced"`
}

// Replacement is one file of a commit that a generation replaces.
type Replacement struct {
	Path      string `json:"path"`      // as the commit names it
	File      *File  `json:"file"`      // what stands for it now; null when no row is left
	Rows      int64  `json:"rows"`      // rows of the commit's file that are gone
	Documents int64  `json:"documents"` // of an in-app file: documents that are gone
	Counted   int64  `json:"counted"`   // of a metadata file: records that are no longer counted
}

var generationName = regexp.MustCompile(`^(\d{6})\.json$`)

// generations returns the directory of a commit's generations.
func (c *Commit) generations() string {
	return path.Join(generationsDir, c.Topic, strconv.Itoa(c.Partition), fmt.Sprintf("%020d", c.extends()))
}

func (c *Commit) generationFile(n int) string {
	return path.Join(c.generations(), fmt.Sprintf("%06d.json", n))
}

// generation returns the newest generation of a commit, or nil.
func (s *Store) generation(ctx context.Context, c *Commit) (*Generation, error) {
	es, err := s.entries(ctx, c.generations())
	if err != nil {
		return nil, err
	}
	n := 0
	for _, e := range es {
		if m := generationName.FindStringSubmatch(path.Base(e.name)); m != nil {
			i, _ := strconv.Atoi(m[1])
			if n++; i != n {
				return nil, fmt.Errorf("%s: generation %d is missing", c.generations(), n)
			}
		}
	}
	if n == 0 {
		return nil, nil
	}
	return s.readGeneration(ctx, c, n)
}

// readGeneration reads the n-th generation of a commit.
func (s *Store) readGeneration(ctx context.Context, c *Commit, n int) (*Generation, error) {
	b, err := s.storage.read(ctx, c.generationFile(n))
	if err != nil {
		return nil, err
	}
	g := new(Generation)
	if err := decodeStrict(b, g); err != nil {
		return nil, fmt.Errorf("%s does not parse: %w", c.generationFile(n), err)
	}
	if err := c.resolves(g, n); err != nil {
		return nil, fmt.Errorf("%s: %w", c.generationFile(n), err)
	}
	return g, nil
}

// resolves says why g can not be the commit's n-th generation, or nothing.
func (c *Commit) resolves(g *Generation, n int) error {
	switch {
	case g.Version != Version:
		return fmt.Errorf("version %d, this program reads %d", g.Version, Version)
	case g.Topic != c.Topic || g.Partition != c.Partition || g.Start != c.Start || g.Commit != c.Attempt:
		return errors.New("it is of another commit")
	case g.Generation != n:
		return fmt.Errorf("it says that it is generation %d", g.Generation)
	case !isUUID(g.Attempt) || g.Attempt == c.Attempt:
		return errors.New("the attempt is not a UUID of its own")
	}
	named := map[string]bool{}
	for _, r := range g.Replaced {
		old := c.file(r.Path)
		switch {
		case old == nil || old.Stream != StreamInApp && old.Stream != StreamMetadata:
			return fmt.Errorf("%s is no file of the commit that can be replaced", r.Path)
		case named[r.Path]:
			return fmt.Errorf("%s is replaced twice", r.Path)
		case min(r.Rows, r.Documents, r.Counted) < 0:
			return fmt.Errorf("%s: a count is negative", r.Path)
		case r.File != nil && (r.File.Stream != old.Stream || r.File.Region != old.Region || r.File.Month != old.Month):
			return fmt.Errorf("%s is replaced by a file of another stream, region or month", r.Path)
		}
		named[r.Path] = true
	}
	return nil
}

func isUUID(s string) bool {
	id, err := uuid.Parse(s)
	return err == nil && id.String() == s
}

func (c *Commit) file(path string) *File {
	for i := range c.Files {
		if c.Files[i].Path == path {
			return &c.Files[i]
		}
	}
	return nil
}

// current is a file that stands for one of a commit: the commit's own, or the
// one that its newest generation put in its place.
type current struct {
	File
	generation int         // that wrote it, or 0
	attempt    string      // of it, whose name the file bears
	gone       Replacement // what was removed from it
}

// current returns the files that hold a commit's rows now, and nothing for
// those of which no row is left. g may be nil.
func (c *Commit) current(g *Generation) (files []current, gone []Replacement) {
	replaced := map[string]Replacement{}
	if g != nil {
		for _, r := range g.Replaced {
			replaced[r.Path] = r
		}
	}
	for _, f := range c.Files {
		r, ok := replaced[f.Path]
		switch {
		case !ok:
			files = append(files, current{File: f, attempt: c.Attempt})
		case r.File != nil:
			files = append(files, current{File: *r.File, generation: g.Generation, attempt: g.Attempt, gone: r})
		}
		if ok {
			gone = append(gone, r)
		}
	}
	return files, gone
}
