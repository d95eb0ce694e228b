package batch

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"time"

	"github.com/google/uuid"

	"winnow/pkg/schema"
	"winnow/pkg/scrub"
)

// Options are the choices of one Writer.
type Options struct {
	Format     Format
	TopicID    string     // the broker's id of the topic, "" if unknown; a chain has one
	Provenance Provenance // how this run reads the policy
}

// Writer gathers the records of one partition and commits them in batches. It
// is for one goroutine.
//
// Records come in the order of their offsets, each to exactly one of Add, Drop
// and Reject. A call that breaks this is a fault of the program that would
// turn a record into an uncounted hole, so it ends the writer: every later
// Commit returns the error, and the chain stays where it was.
//
// Rows are held until Commit: Buffered bytes. Commit encodes one file after
// the other and needs for it, besides, a row group (16 MiB of text) and the
// largest file.
type Writer struct {
	store     *Store
	partition Partition
	options   Options
	genesis   bool
	start     int64 // first offset of the batch being gathered
	last      int64 // highest offset taken; start-1 before the first
	err       error // why the writer is finished

	inApp      map[place][]Row
	counts     map[count]int64 // by a key whose Count is 0
	quarantine bytes.Buffer
	rejects    int64
	bytes      int64
	sums       Commit // the counts so far; the rest is set by Commit
	encoder    encoder
}

// place is where the rows of one in-app file belong.
type place struct{ region, month string }

// rowBytes is what a row takes beside its text, roughly.
const rowBytes = 192

// Writer returns a writer that continues the partition's chain at its tip. It
// refuses a chain whose commits name another topic id: offsets of a topic that
// was made anew mean other records.
func (s *Store) Writer(topic string, partition int, o Options) (*Writer, error) {
	p := Partition{topic, partition}
	tip, err := s.tip(p)
	if err != nil {
		return nil, err
	}
	if int(o.Format) >= len(formatNames) {
		return nil, errors.New("batch: unknown format")
	}
	if tip.End > 0 && tip.TopicID != o.TopicID {
		return nil, fmt.Errorf("batch: %v: the chain was written from a topic with another id (%q, now %q): the topic was deleted and made again, or this is another cluster; write to another directory", p, tip.TopicID, o.TopicID)
	}
	w := &Writer{store: s, partition: p, options: o, genesis: tip.End == 0, inApp: map[place][]Row{}, counts: map[count]int64{}}
	w.reset(tip.End)
	return w, nil
}

func (w *Writer) reset(start int64) {
	w.start, w.last = start, start-1
	clear(w.inApp)
	clear(w.counts)
	w.quarantine.Reset()
	w.rejects, w.bytes = 0, 0
	w.sums = Commit{
		InApp:    InAppCounts{Drops: map[schema.Reason]int64{}},
		Metadata: MetadataCounts{Drops: map[schema.Reason]int64{}},
		Spans:    map[string]int64{},
	}
}

// StartAt sets the offset at which an empty chain begins, because the log begins
// there. It is an error when the chain has commits or records were added.
func (w *Writer) StartAt(start int64) error {
	switch {
	case w.err != nil:
		return w.err
	case !w.genesis:
		return fmt.Errorf("batch: %v: start at %d: the chain has commits", w.partition, start)
	case w.sums.Records > 0:
		return fmt.Errorf("batch: %v: start at %d: records were added", w.partition, start)
	case start < 0:
		return fmt.Errorf("batch: %v: a chain can not start at a negative offset", w.partition)
	}
	w.start, w.last = start, start-1
	return nil
}

// Start returns the first offset of the batch being gathered: where to consume
// from. It is the chain's tip, or what StartAt set.
func (w *Writer) Start() int64 { return w.start }

// SetProvenance replaces the provenance, from the next Commit on.
func (w *Writer) SetProvenance(p Provenance) { w.options.Provenance = p }

// Buffered returns about how many bytes the writer holds, and how many records
// were added, dropped and rejected since the last Commit.
func (w *Writer) Buffered() (bytes, records int64) { return w.bytes, w.sums.Records }

func (w *Writer) fail(src schema.Source, why string) error {
	if w.err == nil {
		w.err = fmt.Errorf("batch: %v: %s", src, why)
	}
	return w.err
}

// take counts one record, whose offset must follow those before it.
func (w *Writer) take(src schema.Source) error {
	switch {
	case w.err != nil:
	case Partition{src.Topic, src.Partition} != w.partition:
		return w.fail(src, fmt.Sprintf("the writer is of %v", w.partition))
	case src.Offset < w.start:
		return w.fail(src, fmt.Sprintf("the offset lies before the batch, which starts at %d", w.start))
	case src.Offset <= w.last:
		return w.fail(src, fmt.Sprintf("the offset does not follow %d", w.last))
	default:
		w.last = src.Offset
		w.sums.Records++
	}
	return w.err
}

// Add takes one scrubbed record. It copies what it keeps. The zero Record is
// refused.
func (w *Writer) Add(r scrub.Record) error {
	if r.Streams() == 0 {
		return w.fail(r.Source(), "a record that may feed no stream was added")
	}
	if err := w.take(r.Source()); err != nil {
		return err
	}
	month := r.Month().Format("2006-01")
	switch {
	case r.Product() == "" || r.Kind() == "":
		return w.fail(r.Source(), "the record names no product or no kind")
	case r.Streams()&schema.InApp == 0:
		w.drop(r.Source(), w.sums.InApp.Drops, r.Withheld().InApp)
	case len(r.Parts()) == 0:
		w.drop(r.Source(), w.sums.InApp.Drops, schema.ReasonNoText)
	case !schema.ValidRegion(r.Region()):
		// It names a directory; and without one the residency is unknown.
		return w.fail(r.Source(), "the region is not a word of a-z, 0-9 and '-'")
	default:
		w.document(&r, month)
	}
	if r.Streams()&schema.Metadata == 0 {
		w.drop(r.Source(), w.sums.Metadata.Drops, r.Withheld().Metadata)
	} else {
		w.sums.Metadata.Counted++
		w.counts[count{Month: month, Product: string(r.Product()), Kind: r.Kind()}]++
	}
	return w.err
}

func (w *Writer) document(r *scrub.Record, month string) {
	to, id := place{r.Region(), month}, uuid.NewString()
	rows := w.inApp[to]
	for i, p := range r.Parts() {
		rows = append(rows, Row{
			ID: id, Part: int32(i), Product: string(r.Product()), Kind: r.Kind(), Role: p.Role, Format: p.Format.String(),
			Text: string(p.Text), Month: month, ScrubVersion: scrub.Version,
		})
		w.bytes += int64(len(p.Text)) + rowBytes
	}
	w.inApp[to] = rows
	w.sums.InApp.Documents++
	w.sums.InApp.Rows += int64(len(r.Parts()))
	for l, n := range r.Counts() {
		if n > 0 {
			w.sums.Spans[scrub.Label(l).String()] += int64(n)
		}
	}
}

// drop counts one stream of a record that was already taken.
func (w *Writer) drop(src schema.Source, drops map[schema.Reason]int64, why schema.Reason) {
	if why == "" {
		w.fail(src, "a stream was dropped without a reason")
		return
	}
	drops[why]++
}

// Drop counts a record that feeds neither stream; both reasons must be set.
func (w *Writer) Drop(src schema.Source, why schema.Withheld) {
	if w.take(src) == nil {
		w.drop(src, w.sums.InApp.Drops, why.InApp)
		w.drop(src, w.sums.Metadata.Drops, why.Metadata)
	}
}

// Reject counts a record that could not be read, in both streams, by the
// reason that err carries, and lists its coordinates in the quarantine file.
// Of err, only what a *schema.Error holds is written: other errors may quote
// the record.
func (w *Writer) Reject(src schema.Source, err error) {
	if w.take(src) != nil {
		return
	}
	q := rejected{Topic: src.Topic, Partition: src.Partition, Offset: src.Offset, Reason: schema.ReasonOf(err), Byte: -1, Time: time.Now().UTC().Truncate(time.Second)}
	if e := (*schema.Error)(nil); errors.As(err, &e) {
		q.Path, q.Byte = e.Path, e.Offset
	}
	line, e := json.Marshal(q)
	if e != nil {
		w.fail(src, "the quarantine line could not be made")
		return
	}
	w.quarantine.Write(append(line, '\n'))
	w.rejects++
	w.bytes += int64(len(line))
	w.drop(src, w.sums.InApp.Drops, q.Reason)
	w.drop(src, w.sums.Metadata.Drops, q.Reason)
}

// Commit commits the offsets from the end of the chain to last, inclusive. An
// offset of the range that no call named is counted as a hole. When it returns
// without an error, the data and the commit are durable and the writer gathers
// the next batch, which starts at the commit's End.
//
// An empty range, and one that ends before a record that was taken, are errors
// that change nothing. After any other error the writer is finished: whether
// the commit exists is for Store.Next to say, and a new Writer to go on from.
// ErrCommitted is one of them.
func (w *Writer) Commit(last int64) (Commit, error) {
	switch {
	case w.err != nil:
		return Commit{}, w.err
	case last < w.start:
		return Commit{}, fmt.Errorf("batch: %v: commit of an empty range: %d to %d", w.partition, w.start, last)
	case last < w.last:
		return Commit{}, fmt.Errorf("batch: %v: commit to %d, but %d was added", w.partition, last, w.last)
	}
	c := w.sums
	c.Version, c.Topic, c.TopicID, c.Partition = Version, w.partition.Topic, w.options.TopicID, w.partition.Partition
	c.Start, c.End, c.Genesis = w.start, last+1, w.genesis
	c.Attempt, c.Created = uuid.NewString(), time.Now().UTC().Truncate(time.Second)
	c.Format, c.Files, c.Provenance, c.ScrubVersion = w.options.Format, []File{}, w.options.Provenance, scrub.Version
	c.Holes = c.End - c.Start - c.Records

	linked := false // or it can't be told
	err := w.writeFiles(&c)
	if err == nil {
		err = w.store.create(&c)
		linked = !errors.Is(err, ErrCommitted)
	}
	if err != nil {
		if !linked {
			err = errors.Join(err, w.store.remove(c.Files))
		}
		w.err = fmt.Errorf("commit %v [%d, %d): %w", w.partition, c.Start, c.End, err)
		return Commit{}, w.err
	}
	w.genesis = false
	w.reset(c.End)
	return c, nil
}

// writeFiles writes the commit's data files and makes them durable, with every
// directory that leads to them and to the commit.
func (w *Writer) writeFiles(c *Commit) error {
	for _, to := range slices.SortedFunc(maps.Keys(w.inApp), func(a, b place) int {
		return cmp.Or(cmp.Compare(a.region, b.region), cmp.Compare(a.month, b.month))
	}) {
		rows := w.inApp[to]
		b, err := w.encoder.encodeRows(c.Format, rows)
		if err == nil {
			err = w.writeFile(c, File{Stream: StreamInApp, Region: to.region, Month: to.month, Rows: int64(len(rows))}, b)
		}
		if err != nil {
			return err
		}
	}
	reach("one-stream-written")
	windows := map[string][]count{}
	for k, n := range w.counts {
		k.Count = n
		windows[k.Month] = append(windows[k.Month], k)
	}
	for _, month := range slices.Sorted(maps.Keys(windows)) {
		rows := windows[month]
		slices.SortFunc(rows, func(a, b count) int {
			return cmp.Or(cmp.Compare(a.Product, b.Product), cmp.Compare(a.Kind, b.Kind))
		})
		b, err := w.encoder.encodeCounts(c.Format, rows)
		if err == nil {
			err = w.writeFile(c, File{Stream: StreamMetadata, Month: month, Rows: int64(len(rows))}, b)
		}
		if err != nil {
			return err
		}
	}
	if w.rejects > 0 {
		if err := w.writeFile(c, File{Stream: StreamQuarantine, Rows: w.rejects}, w.quarantine.Bytes()); err != nil {
			return err
		}
	}
	dirs := []string{w.partition.commits()}
	if err := os.MkdirAll(w.store.abs(dirs[0]), 0o755); err != nil {
		return err
	}
	for _, f := range c.Files {
		dirs = append(dirs, path.Dir(f.Path))
	}
	reach("data-before-dirsync")
	if err := w.store.syncDirs(dirs); err != nil {
		return err
	}
	reach("data-after-dirsync")
	return nil
}

// writeFile writes one data file under the name that belongs to this attempt
// alone, and enters it in the commit, before it writes, so that a failure
// leaves nothing that is not listed.
func (w *Writer) writeFile(c *Commit, f File, b []byte) error {
	sum := sha256.Sum256(b)
	f.Path, f.Bytes, f.SHA256 = c.path(&f), int64(len(b)), hex.EncodeToString(sum[:])
	c.Files = append(c.Files, f)
	name := w.store.abs(f.Path)
	if err := os.MkdirAll(w.store.abs(path.Dir(f.Path)), 0o755); err != nil {
		return err
	}
	return writeFile(name, b, "data")
}

// remove removes the files of an attempt that did not and can not commit.
func (s *Store) remove(files []File) error {
	var errs []error
	for _, f := range files {
		if err := os.Remove(s.abs(f.Path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
