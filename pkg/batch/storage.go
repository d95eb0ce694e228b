package batch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
)

// storage is where the bytes of a dataset lie: disk or bucket. Names are
// relative to the dataset's root, with slashes. Missing files are
// fs.ErrNotExist. All methods are safe for concurrent use.
type storage interface {
	// read returns a file whole.
	read(ctx context.Context, name string) ([]byte, error)

	// write makes a file under a name that nobody else uses. Its content is
	// durable when write returns, its entry only after settle.
	write(ctx context.Context, name string, b []byte) error

	// create makes a file, whole and durable, unless the name is taken. Of any
	// number of calls for one name at most one returns nil, whatever process
	// it is in. fs.ErrExist says that the name is taken, maybe by this very
	// call, whose first reply was lost; after any other error it may be. tmp is
	// a name of the caller's own that may be used, and left behind, on the way.
	create(ctx context.Context, name, tmp string, b []byte) error

	// settle makes durable what was done to the entries of the files: that
	// they were written, created or removed.
	settle(ctx context.Context, names ...string) error

	// remove removes a file; that it is missing is not an error.
	remove(ctx context.Context, name string) error

	// list yields what lies in a directory in lexical order, or with deep all
	// files below it, in any order; a missing directory is empty. Files that
	// come or go meanwhile may be yielded or not.
	list(ctx context.Context, dir string, deep bool, yield func(entry) error) error

	String() string
}

// entry is one file, or directory, of a listing.
type entry struct {
	name     string // relative to the dataset's root
	dir      bool
	modified time.Time // of files
}

// entries collects a listing that is not deep.
func (s *Store) entries(ctx context.Context, dir string) (es []entry, err error) {
	err = s.storage.list(ctx, dir, false, func(e entry) error { es = append(es, e); return nil })
	return es, err
}

// claim creates a file under a name that several may want and reports whether
// it is the caller's. The content must be the caller's own, unlike any other's.
//
// An error does not say that the file was not made: a network file system or a
// bucket can apply a request, lose the reply, and find its own file on the
// retry. What stands under the name tells. When claim returns without an
// error the file is durable, whosever it is.
func (s *Store) claim(ctx context.Context, name, tmp string, b []byte) (bool, error) {
	err := s.storage.create(ctx, name, tmp, b)
	if err == nil {
		return true, nil
	}
	cur, e := s.storage.read(ctx, name)
	// A store may say that a name is taken a moment before it can be read:
	// versitygw does.
	for d := 10 * time.Millisecond; d < 500*time.Millisecond && errors.Is(err, fs.ErrExist) && errors.Is(e, fs.ErrNotExist); d *= 2 {
		time.Sleep(d)
		cur, e = s.storage.read(ctx, name)
	}
	switch {
	case errors.Is(err, fs.ErrExist) && errors.Is(e, fs.ErrNotExist):
		// Not a lost race: nobody has committed. A proxy may answer so.
		return false, fmt.Errorf("%v says that %s is there when it is created, and that it is not when it is read", s.storage, name)
	case errors.Is(e, fs.ErrNotExist):
		return false, err
	case e != nil:
		return false, errors.Join(err, e)
	default:
		// The maker of what we see may not have settled it yet. Whoever acts
		// on it, removing its own files, must not lose both to a power failure.
		if err := s.storage.settle(ctx, name); err != nil {
			return false, err
		}
		return bytes.Equal(cur, b), nil
	}
}

const (
	probeDir     = "_probe"
	probeWriters = 8
	probeRounds  = 12
)

// Probe proves that the storage creates a name for one writer only, by racing
// for it: a sequential double create would pass on a store that looks first and
// writes afterwards. It also requires that a file which was made is at once
// there to be read and listed. A store that fails can lose commits, and nothing
// may be committed to it. Probe writes a few hundred small files under _probe
// and removes them.
func (s *Store) Probe(ctx context.Context) error {
	dir := path.Join(probeDir, uuid.NewString())
	var err error
	for round := 0; round < probeRounds && err == nil; round++ {
		name := path.Join(dir, strconv.Itoa(round))
		err = s.probe(ctx, name)
		// Also what a failed round left. On disk, names are files or
		// directories, which go when they are empty.
		_ = s.storage.remove(context.WithoutCancel(ctx), name)
	}
	_ = s.storage.remove(context.WithoutCancel(ctx), dir)
	if err != nil {
		return fmt.Errorf("%v can not hold a data set: %w", s.storage, err)
	}
	return nil
}

func (s *Store) probe(ctx context.Context, name string) error {
	var writers sync.WaitGroup
	start := make(chan struct{})
	won, errs := make([]bool, probeWriters), make([]error, probeWriters)
	mine := make([][]byte, probeWriters)
	for i := range probeWriters {
		mine[i] = []byte(uuid.NewString())
		writers.Go(func() {
			<-start
			won[i], errs[i] = s.claim(ctx, name, name+".tmp-"+strconv.Itoa(i), mine[i])
		})
	}
	close(start)
	writers.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("racing for a new name: %w", err)
	}
	b, err := s.storage.read(ctx, name)
	if err != nil {
		return fmt.Errorf("reading what was just created: %w", err)
	}
	winners := 0
	for i := range won {
		if won[i] {
			winners++
			if !bytes.Equal(b, mine[i]) {
				return errors.New("one writer was told that it created a name, which another's content then stood under: creation is not atomic")
			}
		}
	}
	if winners != 1 {
		return fmt.Errorf("%d of %d concurrent writers were told that they created one name: creation is not atomic", winners, probeWriters)
	}
	es, err := s.entries(ctx, path.Dir(name))
	if err != nil {
		return fmt.Errorf("listing what was just created: %w", err)
	}
	listed := false
	for _, e := range es {
		listed = listed || e.name == name
	}
	if !listed {
		return errors.New("a name that was just created is not listed")
	}
	if err := s.storage.remove(ctx, name); err != nil {
		return fmt.Errorf("removing what was just created: %w", err)
	}
	return nil
}
