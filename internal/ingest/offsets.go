package ingest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"winnow/pkg/schema"
)

// Quarantine is a file that lists the records which a door did not take and an
// operator can act on: JSON Lines with the fields of a data set's quarantine
// files, coordinates and reason and never content. ReadOffsets reads it. A
// record is listed once, with its first fault; after a crash it may be again.
// A file belongs to one process at a time, which holds a lock on it.
type Quarantine struct {
	mu sync.Mutex
	f  *os.File
}

// OpenQuarantine opens the file to go on with it, and makes it when absent. A
// last line that a crash cut off goes: its record was not done, and comes again.
func OpenQuarantine(path string) (*Quarantine, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: another process writes to it, give this one a file of its own: %w", path, err)
	}
	err = cutTail(f)
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &Quarantine{f: f}, nil
}

// cutTail removes what follows the last line's end.
func cutTail(f *os.File) error {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	for buf := make([]byte, 4096); size > 0; {
		n := min(size, int64(len(buf)))
		if _, err := f.ReadAt(buf[:n], size-n); err != nil {
			return err
		}
		i := bytes.LastIndexByte(buf[:n], '\n')
		size -= n - int64(i+1)
		if i >= 0 {
			break
		}
	}
	return f.Truncate(size)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// add appends whole lines, which are durable when it returns.
func (q *Quarantine) add(lines []byte) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, err := q.f.Write(lines); err != nil {
		return err
	}
	return q.f.Sync()
}

// Close closes the file, of which each line is durable already.
func (q *Quarantine) Close() error { return q.f.Close() }

// appendLine appends the line of a record.
func appendLine(dst []byte, at schema.Source, err error, now time.Time) []byte {
	line, err := json.Marshal(schema.Reject(at, err, now))
	if err != nil {
		return dst // none of its fields can fail
	}
	return append(append(dst, line...), '\n')
}

// ReadOffsets reads coordinates, JSON objects with topic, partition and offset,
// one a line, as quarantine files have them; other members are passed over, as
// are blank lines. It returns the offsets on the topic, each once and ascending,
// by partition, and how many lines name other topics. Every bad line is in the
// error, by number, never with its values.
func ReadOffsets(r io.Reader, topic string) (offsets map[int][]int64, others int, err error) {
	offsets = map[int][]int64{}
	err = eachLine(r, func(line []byte, _ bool) error {
		at, ok := parseCoordinates(line)
		switch {
		case !ok:
			return errors.New("not a JSON object with topic, partition and offset")
		case at.Topic != topic:
			others++
		default:
			offsets[at.Partition] = append(offsets[at.Partition], at.Offset)
		}
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	for p, list := range offsets {
		slices.Sort(list)
		offsets[p] = slices.Compact(list)
	}
	return offsets, others, nil
}

func parseCoordinates(line []byte) (at schema.Source, ok bool) {
	var c struct {
		Topic     *string `json:"topic"`
		Partition *int32  `json:"partition"`
		Offset    *int64  `json:"offset"`
	}
	if json.Unmarshal(line, &c) != nil || c.Topic == nil || *c.Topic == "" || c.Partition == nil || *c.Partition < 0 || c.Offset == nil || *c.Offset < 0 {
		return at, false
	}
	return schema.Source{Topic: *c.Topic, Partition: int(*c.Partition), Offset: *c.Offset}, true
}
