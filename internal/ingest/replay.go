package ingest

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"winnow/internal/kafkaio"
	"winnow/pkg/schema"
)

// Summary counts what a door was handed.
type Summary struct {
	Files    int   // read; 0 for a door on a topic
	Records  int64 // found in them
	Produced int64 // acknowledged by the broker
	Bytes    int64 // of the values produced
	Dropped  map[schema.Reason]int64
	Drops    []Drop // where; the first of each reason in each file
}

// Drop is a record that no event was made of.
type Drop struct {
	Place  Place
	Reason schema.Reason
	Detail string // the error's own words: path and position, never content
	More   int64  // further records of the same file, or partition, with the same reason
}

func (s *Summary) drop(at Place, err error) { s.dropMany(at, err, 1) }

// dropMany counts n records, of which the first is at the place.
func (s *Summary) dropMany(at Place, err error, n int64) {
	r := schema.ReasonOf(err)
	if s.Dropped == nil {
		s.Dropped = map[schema.Reason]int64{}
	}
	s.Dropped[r] += n
	for i := len(s.Drops) - 1; i >= 0 && s.Drops[i].Place.holder() == at.holder(); i-- {
		if s.Drops[i].Reason == r {
			s.Drops[i].More += n
			return
		}
	}
	s.Drops = append(s.Drops, Drop{Place: at, Reason: r, Detail: err.Error(), More: n - 1})
}

// File is one file to replay.
type File struct {
	Path string // to open
	Name string // in coordinates: relative to the argument it was found under
	Size int64  // bytes on disk
}

// Files lists the files under each path, directories in lexical order. Hidden
// files and directories are left out, and so are links to directories other
// than the paths themselves. Two files of one name are an error, for the name
// is what ids are made from.
func Files(paths []string) ([]File, error) {
	var out []File
	for _, root := range paths {
		base := filepath.Base(filepath.Clean(root))
		root, err := filepath.EvalSymlinks(root) // WalkDir would pass over a link to a directory
		if err != nil {
			return nil, err
		}
		err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if p != root && strings.HasPrefix(d.Name(), ".") {
				if d.IsDir() {
					return filepath.SkipDir
				}
				return nil
			}
			rel, err := filepath.Rel(root, p)
			if err != nil {
				return err
			}
			file := File{Path: p, Name: filepath.ToSlash(filepath.Join(base, rel))}
			if info, err := os.Stat(p); err == nil { // follows a link to a file
				if !info.Mode().IsRegular() {
					return nil
				}
				file.Size = info.Size()
			} // else a link to nothing, which Replay counts as unreadable
			out = append(out, file)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	for i := 1; i < len(out); i++ {
		if out[i].Name == out[i-1].Name {
			return nil, fmt.Errorf("%s and %s: both are called %s, so their events would get the same ids", out[i-1].Path, out[i].Path, out[i].Name)
		}
	}
	return out, nil
}

// Size returns the bytes on disk of all files, for progress.
func Size(files []File) (n int64) {
	for _, f := range files {
		n += f.Size
	}
	return n
}

// maxText bounds a file that is one JSON text, in bytes; a larger export must
// be JSON Lines.
const maxText = 128 << 20

// produceBatch is how many bytes of values are handed to the producer at once.
const produceBatch = 4 << 20

// Replay reads the files and produces their records: .json is one JSON text,
// .jsonl and .ndjson one a line, each also as .zst or .gz; anything else is
// counted as no file for a door. progress is told the bytes read of the files
// on disk. Bad records and files that break off are counted and what is around
// them goes on; an error means that a record could not be delivered.
func (d *Door) Replay(ctx context.Context, files []File, p *kafkaio.Producer, progress func(bytes int64)) (Summary, error) {
	var s Summary
	out := sender{ctx: ctx, p: p, s: &s, rate: d.Rate, began: time.Now()}
	for _, f := range files {
		if err := d.replayFile(f, &out, progress); err != nil {
			return s, fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return s, out.flush()
}

func (d *Door) replayFile(f File, out *sender, progress func(int64)) error {
	if err := out.ctx.Err(); err != nil {
		return err
	}
	out.s.Files++
	name, lines := f.Name, false
	for _, ext := range []string{".zst", ".gz"} {
		name = strings.TrimSuffix(name, ext)
	}
	switch filepath.Ext(name) {
	case ".jsonl", ".ndjson":
		lines = true
	case ".json":
	default:
		out.s.Records++
		out.s.drop(Place{File: f.Name}, &schema.Error{Reason: schema.ReasonNotJSON, Offset: -1})
		progress(f.Size)
		return nil
	}
	file, err := os.Open(f.Path)
	if err != nil {
		out.unreadable(Place{File: f.Name})
		return nil
	}
	defer file.Close()
	var r io.Reader = &counter{file, progress}
	switch {
	case strings.HasSuffix(f.Name, ".zst"):
		z, err := zstd.NewReader(r)
		if err != nil {
			out.unreadable(Place{File: f.Name})
			return nil
		}
		defer z.Close()
		r = z
	case strings.HasSuffix(f.Name, ".gz"):
		z, err := gzip.NewReader(r)
		if err != nil {
			out.unreadable(Place{File: f.Name})
			return nil
		}
		r = z
	}
	if lines {
		return d.replayLines(f, r, out)
	}
	text, err := io.ReadAll(io.LimitReader(r, maxText+1))
	if err != nil {
		out.unreadable(Place{File: f.Name})
		return nil
	}
	return d.replayText(Place{File: f.Name}, text, out)
}

func (d *Door) replayLines(f File, r io.Reader, out *sender) error {
	br := bufio.NewReaderSize(r, 1<<20)
	for line := 1; ; line++ {
		if err := out.ctx.Err(); err != nil {
			return err
		}
		text, long, err := readLine(br)
		if err == io.EOF && len(text) == 0 && !long {
			return nil
		}
		at := Place{File: f.Name, Line: line}
		if err != nil && err != io.EOF {
			out.unreadable(at)
			return nil
		}
		if long {
			out.s.Records++
			out.s.drop(at, &schema.Error{Reason: schema.ReasonTooLarge, Offset: -1})
			continue
		}
		if err := d.replayText(at, text, out); err != nil {
			return err
		}
	}
}

// readLine reads a line without its end. A line longer than MaxValue is
// skipped in pieces, never held whole, and reported as long.
func readLine(br *bufio.Reader) (text []byte, long bool, err error) {
	for {
		part, err := br.ReadSlice('\n')
		if !long {
			text = append(text, part...)
		}
		if len(text) > schema.MaxValue+2 {
			text, long = nil, true
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		return bytes.TrimRight(text, "\r\n"), long, err
	}
}

// eachLine calls f for each line that is not blank; long is one that was passed
// over, for it is longer than schema.MaxValue. f may keep text. The errors of f, with the numbers
// of their lines, are joined.
func eachLine(r io.Reader, f func(text []byte, long bool) error) error {
	var faults []error
	br := bufio.NewReaderSize(r, 1<<16)
	for line := 1; ; line++ {
		text, long, err := readLine(br)
		if err != nil && err != io.EOF {
			return err
		}
		if long || len(bytes.TrimSpace(text)) > 0 {
			if fault := f(text, long); fault != nil {
				faults = append(faults, fmt.Errorf("line %d: %w", line, fault))
			}
		}
		if err == io.EOF {
			return errors.Join(faults...)
		}
	}
}

func (d *Door) replayText(at Place, text []byte, out *sender) error {
	var failed error
	d.Unwrap(at, text, func(at Place, m kafkaio.Message, err error) {
		if failed != nil {
			return
		}
		out.s.Records++
		if err != nil {
			out.s.drop(at, err)
			return
		}
		failed = out.add(at, m)
	})
	return failed
}

// sender gathers messages and produces them together.
type sender struct {
	ctx    context.Context
	p      *kafkaio.Producer
	s      *Summary
	batch  []kafkaio.Message
	places []Place // of the messages in batch
	bytes  int
	list   func(at Place, err error) // told of each record that is not taken; may be nil

	rate  int // messages a second at most, since began; 0: no bound
	began time.Time
}

func (o *sender) drop(at Place, err error) {
	o.s.drop(at, err)
	if o.list != nil {
		o.list(at, err)
	}
}

// unreadable counts a file that cannot be opened or breaks off at a place.
func (o *sender) unreadable(at Place) {
	o.s.Records++
	o.s.drop(at, &schema.Error{Reason: schema.ReasonUnreadable, Offset: -1})
}

func (o *sender) add(at Place, m kafkaio.Message) error {
	o.batch, o.places = append(o.batch, m), append(o.places, at)
	o.bytes += len(m.Value)
	switch {
	case o.rate > 0 && len(o.batch) >= max(1, o.rate/10): // ten times a second
		if err := o.flush(); err != nil {
			return err
		}
		due := o.began.Add(time.Duration(float64(o.s.Produced) / float64(o.rate) * float64(time.Second)))
		select {
		case <-time.After(time.Until(due)):
			return nil
		case <-o.ctx.Done():
			return o.ctx.Err()
		}
	case o.bytes >= produceBatch:
		return o.flush()
	}
	return nil
}

func (o *sender) flush() error {
	if len(o.batch) == 0 {
		return nil
	}
	produced, bytes := len(o.batch), o.bytes
	if err := o.p.Produce(o.ctx, o.batch...); err != nil {
		var each kafkaio.MessageErrors
		if !errors.As(err, &each) {
			return err
		}
		for _, m := range each {
			if !errors.Is(m, kafkaio.ErrTooLarge) {
				return err
			}
			// Within our bound but not within the broker's.
			o.drop(o.places[m.Index], &schema.Error{Reason: schema.ReasonTooLarge, Offset: -1})
			produced--
			bytes -= len(o.batch[m.Index].Value)
		}
	}
	o.s.Produced += int64(produced)
	o.s.Bytes += int64(bytes)
	// The producer may still hold the messages, so the batch is not reused.
	o.batch, o.places, o.bytes = nil, nil, 0
	return nil
}

// counter tells how many bytes of a file have been read.
type counter struct {
	r    io.Reader
	tell func(int64)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.tell(int64(n))
	return n, err
}

// maxListed is how many places Write lists; the counts are always complete.
const maxListed = 1000

// Write prints the counts and the first places of what was not taken:
// coordinates and reasons, never content.
func (s *Summary) Write(w io.Writer) {
	in := ""
	if s.Files > 0 {
		in = fmt.Sprintf(" in %d files", s.Files)
	}
	fmt.Fprintf(w, "records found  %d%s\n", s.Records, in)
	fmt.Fprintf(w, "acknowledged   %d\n", s.Produced)
	for _, r := range slices.Sorted(maps.Keys(s.Dropped)) {
		fmt.Fprintf(w, "not taken      %d %s\n", s.Dropped[r], r)
	}
	s.WriteDrops(w)
}

// WriteRedriven is Write for Raw.Redrive.
func (s *Summary) WriteRedriven(w io.Writer) {
	fmt.Fprintf(w, "re-driven      %d events\n", s.Produced)
	fmt.Fprintf(w, "gone           %d records\n", s.Dropped[ReasonGone])
	for _, r := range slices.Sorted(maps.Keys(s.Dropped)) {
		if r != ReasonGone {
			fmt.Fprintf(w, "refused again  %d %s\n", s.Dropped[r], r)
		}
	}
	s.WriteDrops(w)
}

// WriteDrops prints the first places of what was not taken.
func (s *Summary) WriteDrops(w io.Writer) {
	if len(s.Drops) == 0 {
		return
	}
	fmt.Fprintf(w, "\nNot taken at the door (coordinates and reason):\n")
	for i, d := range s.Drops {
		if i == maxListed {
			fmt.Fprintf(w, "  … and %d more places\n", len(s.Drops)-i)
			return
		}
		more := ""
		if d.More > 0 {
			holder := "file"
			if d.Place.Source.Topic != "" {
				holder = "partition"
			}
			more = fmt.Sprintf(", and %d more in this %s", d.More, holder)
		}
		fmt.Fprintf(w, "  %s: %s%s\n", d.Place, d.Detail, more)
	}
}
