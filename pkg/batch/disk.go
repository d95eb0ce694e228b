package batch

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"
	"syscall"

	"winnow/internal/failpoint"
)

// disk is storage in a directory of a POSIX file system that has link(2) and
// whose fsync is honest. It is the only place of this package that changes
// files, so that a test which stands at its failpoints sees every such call.
type disk struct {
	root string

	mu    sync.Mutex
	known map[string]bool // directories whose own entries, up to the root, are durable
}

func newDisk(root string) *disk { return &disk{root: root, known: map[string]bool{".": true}} }

func (d *disk) String() string { return d.root }

func (d *disk) abs(name string) string { return filepath.Join(d.root, filepath.FromSlash(name)) }

func (d *disk) read(ctx context.Context, name string) (b []byte, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = failpoint.Around("read", name, func() error { b, err = os.ReadFile(d.abs(name)); return err })
	return b, err
}

func (d *disk) write(_ context.Context, name string, b []byte) error {
	if err := d.makeDir(path.Dir(name)); err != nil {
		return err
	}
	return d.writeFile(name, b)
}

// writeFile writes a new file and makes its content durable; the entry in its
// directory is not.
func (d *disk) writeFile(name string, b []byte) error {
	var f *os.File
	err := failpoint.Around("open", name, func() (err error) {
		f, err = os.OpenFile(d.abs(name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		return err
	})
	if f == nil {
		return err
	}
	// In two halves, so that a test finds a file that is half written.
	for _, half := range [][]byte{b[:len(b)/2], b[len(b)/2:]} {
		if err == nil {
			err = failpoint.Around("write", name, func() error { _, err := f.Write(half); return err })
		}
	}
	if err == nil {
		err = failpoint.Around("fsync", name, f.Sync)
	}
	return errors.Join(err, failpoint.Around("close", name, f.Close))
}

// makeDir makes a directory and its parents, and their entries durable. Once
// for each directory and process: one that exists may have been made by a
// process that died before it synced.
func (d *disk) makeDir(dir string) error {
	d.mu.Lock()
	known := d.known[dir]
	d.mu.Unlock()
	if known {
		return nil
	}
	parent := path.Dir(dir)
	if err := d.makeDir(parent); err != nil {
		return err
	}
	err := failpoint.Around("mkdir", dir, func() error { _, err := mkdir(d.abs(dir)); return err })
	if err == nil {
		err = d.syncDir(parent)
	}
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.known[dir] = true
	d.mu.Unlock()
	return nil
}

// mkdir makes a directory, unless there is one, and reports whether it did.
func mkdir(abs string) (made bool, err error) {
	err = os.Mkdir(abs, 0o755)
	if errors.Is(err, fs.ErrExist) {
		if info, e := os.Stat(abs); e == nil && info.IsDir() {
			return false, nil
		}
	}
	return err == nil, err
}

func (d *disk) syncDir(dir string) error {
	return failpoint.Around("fsyncdir", dir, func() error { return fsyncDir(d.abs(dir)) })
}

func fsyncDir(abs string) error {
	f, err := os.Open(abs)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// create writes tmp and links it to the name. Creating the name exclusively
// would show readers a half-written file, and stat-then-rename lets two writers
// both win: A and B find the name free, A renames, B renames over it. link(2)
// does both at once.
func (d *disk) create(ctx context.Context, name, tmp string, b []byte) error {
	if err := d.write(ctx, tmp, b); err != nil {
		return err
	}
	err := failpoint.Around("link", name, func() error { return os.Link(d.abs(tmp), d.abs(name)) })
	if e := d.remove(ctx, tmp); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return d.settle(ctx, name)
}

func (d *disk) settle(_ context.Context, names ...string) error {
	done := map[string]bool{}
	for _, n := range names {
		dir := path.Dir(n)
		if done[dir] {
			continue
		}
		if err := d.syncDir(dir); err != nil {
			return err
		}
		done[dir] = true
	}
	return nil
}

func (d *disk) remove(_ context.Context, name string) error {
	return failpoint.Around("remove", name, func() error {
		err := os.Remove(d.abs(name))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			return nil
		}
		return err
	})
}

func (d *disk) list(ctx context.Context, dir string, deep bool, yield func(entry) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var es []fs.DirEntry
	err := failpoint.Around("readdir", dir, func() (err error) { es, err = os.ReadDir(d.abs(dir)); return err })
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for i := 0; i < len(es) && err == nil; i++ {
		e := entry{name: path.Join(dir, es[i].Name()), dir: es[i].IsDir()}
		if e.dir && deep {
			err = d.list(ctx, e.name, true, yield)
			continue
		}
		if !e.dir {
			info, e2 := es[i].Info()
			if errors.Is(e2, fs.ErrNotExist) {
				continue // removed meanwhile
			} else if e2 != nil {
				return e2
			}
			e.modified = info.ModTime()
		}
		err = yield(e)
	}
	return err
}

// makeRoot makes the directory of a dataset and those above it that are
// missing, and the entries of all of them durable: one that exists may have
// been made by a process that died, or has yet to come, to its sync. Points
// name directories relative to the root: .., ../.. and so on.
func (d *disk) makeRoot() error {
	root, err := filepath.Abs(d.root)
	if err != nil {
		return err
	}
	return makeAbove(root, ".")
}

func makeAbove(root, rel string) error {
	dir, above := filepath.Join(root, rel), path.Join(rel, "..")
	parent := filepath.Dir(dir)
	if parent == dir {
		return nil
	}
	if err := makeAbove(root, above); err != nil {
		return err
	}
	made := false
	if err := failpoint.Around("mkdir", rel, func() (err error) { made, err = mkdir(dir); return err }); err != nil {
		return err
	}
	err := failpoint.Around("fsyncdir", above, func() error { return fsyncDir(parent) })
	if !made && (errors.Is(err, fs.ErrPermission) || errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.EINVAL)) {
		return nil // another's directory, on a file system of another kind: no run of ours made what is in it
	}
	return err
}
