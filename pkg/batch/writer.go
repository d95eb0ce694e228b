package batch

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
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
	Consent    Consent

	// AcceptTenantsTopic is the id of a tenants topic that may follow another
	// one in the chain; the zero value accepts none.
	AcceptTenantsTopic string
}

// Consent is how a Writer asks the policy again, right before a commit, about
// every record that it holds. The zero Consent asks nothing: the policy cannot
// change while the writer runs.
type Consent struct {
	// Sync returns when Decide obeys every record of the tenants topic that was
	// acknowledged before the call, and the offset up to which it does.
	Sync func(context.Context) (offset int64, err error)
	// Decide returns the streams that a record may feed now, and why not the
	// others.
	Decide func(schema.Envelope) (schema.Streams, schema.Withheld)
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
// largest file; the memory of what was written takes what Horizon says.
type Writer struct {
	store     *Store
	partition Partition
	options   Options
	genesis   bool
	obeyed    int64 // tenants-topic offset of the chain's last commit, or -1
	start     int64 // first offset of the batch being gathered
	last      int64 // highest offset taken; start-1 before the first
	err       error // why the writer is finished

	inApp   map[place][]Row
	counts  map[count]int64   // by a key whose Count is 0
	held    []held            // what feeds a stream, by offset
	general map[key]int       // edit → index in held of the general event that told of it
	seen    []seenAt          // keys of the batch, by offset
	memory  *memory           // of them and of the batches before
	listed  []schema.Rejected // for the quarantine file
	bytes   int64
	sums    Commit // the counts so far; the rest is set by Commit
	encoder encoder

	lastTime  time.Time // see month
	lastMonth string
}

// place is where the rows of one in-app file belong.
type place struct{ region, month string }

// held is a record of the batch that may still have to leave it.
type held struct {
	source    schema.Source
	envelope  schema.Envelope
	kind      string
	streams   schema.Streams // that it feeds; one without text feeds no in-app stream
	at        place
	row, rows int // where its rows are in inApp[at]
	spans     [scrub.NumLabels]int
}

// What a row and a record take beside their text, roughly, in bytes.
const (
	rowBytes      = 192
	recordBytes   = 768
	rejectedBytes = 192
)

// Writer returns a writer that continues the partition's chain at its tip,
// having read what the chain has seen; ctx ends only that. It refuses a chain
// whose commits name another topic id: offsets of a topic that was made anew
// mean other records. Close the writer, whatever became of it.
func (s *Store) Writer(ctx context.Context, topic string, partition int, o Options) (*Writer, error) {
	p := Partition{topic, partition}
	tip, err := s.tip(ctx, p)
	if err != nil {
		return nil, err
	}
	if int(o.Format) >= len(formatNames) {
		return nil, errors.New("batch: unknown format")
	}
	if tip.End > 0 && tip.TopicID != o.TopicID {
		return nil, fmt.Errorf("batch: %v: the chain was written from a topic with another id (%q, now %q): the topic was deleted and made again, or this is another cluster; write to another directory", p, tip.TopicID, o.TopicID)
	}
	obeyed := int64(-1)
	if was, is := tip.Provenance.TenantsTopicID, o.Provenance.TenantsTopicID; tip.End > 0 && was == is {
		obeyed = tip.Provenance.TenantsOffset
	} else if tip.End > 0 && (is == "" || is != o.AcceptTenantsTopic) {
		return nil, &TenantsTopicError{p, was, is}
	}
	w := &Writer{store: s, partition: p, options: o, genesis: tip.End == 0, obeyed: obeyed,
		inApp: map[place][]Row{}, counts: map[count]int64{}, general: map[key]int{}}
	if w.memory, err = s.remember(ctx, p, tip.End); err != nil {
		return nil, fmt.Errorf("batch: %v: what the chain has seen: %w", p, err)
	}
	w.reset(tip.End)
	return w, nil
}

// TenantsTopicError says that a chain obeyed another tenants topic than the one
// it is to go on with: an opt-out that was on that one may not be on this.
type TenantsTopicError struct {
	Partition Partition
	Was, Is   string // topic ids
}

func (e *TenantsTopicError) Error() string {
	return fmt.Sprintf("batch: %v: the chain obeyed the tenants topic with id %q, this one has %q: it was deleted and made again, or this is another cluster", e.Partition, e.Was, e.Is)
}

// Close gives the writer's memory to the next writer of the partition in this
// process, which then reads only what others have committed since. What was
// added and not committed is dropped; the writer must not be used any more.
func (w *Writer) Close() {
	if w.memory == nil {
		return
	}
	// The next batch may come to another end: another worker's may, for one.
	for _, s := range w.seen {
		w.memory.forget(s)
	}
	w.store.keep(w.partition, kept{w.memory, w.start})
	w.memory = nil
	w.err = cmp.Or(w.err, errors.New("batch: the writer is closed"))
}

func (w *Writer) reset(start int64) {
	w.start, w.last = start, start-1
	clear(w.inApp)
	clear(w.counts)
	clear(w.held)
	w.held, w.seen = w.held[:0], w.seen[:0]
	clear(w.general)
	w.listed, w.bytes = w.listed[:0], 0
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

// document is a record as the writer takes it.
type document struct {
	source   schema.Source
	envelope schema.Envelope
	kind     string
	region   string
	streams  schema.Streams
	withheld schema.Withheld
	edit     schema.Edit
	parts    []scrub.Part
	spans    [scrub.NumLabels]int
}

// Add takes one scrubbed record. It copies what it keeps. The zero Record is
// refused.
//
// A record whose event id was added before, at most Horizon offsets ago, is a
// repeat: it is dropped from both streams. Of two events that tell of one
// change, the more specific feeds the in-app stream; if the general one is
// committed when the specific one comes, it stays, so there is one either way.
func (w *Writer) Add(r scrub.Record) error {
	return w.add(&document{r.Source(), r.Envelope(), r.Kind(), r.Region(), r.Streams(), r.Withheld(), r.Edit(), r.Parts(), r.Counts()})
}

func (w *Writer) add(d *document) error {
	if d.streams == 0 {
		return w.fail(d.source, "a record that may feed no stream was added")
	}
	if err := w.take(d.source); err != nil {
		return err
	}
	id := d.envelope.Key()
	if w.memory.has(id, d.source.Offset) {
		w.drop(d.source, w.sums.InApp.Drops, schema.ReasonRepeat)
		w.drop(d.source, w.sums.Metadata.Drops, schema.ReasonRepeat)
		return w.err
	}
	w.see(id, d.source.Offset)
	h := held{source: d.source, envelope: d.envelope, kind: d.kind, streams: d.streams, spans: d.spans,
		at: place{d.region, w.month(d.envelope.Time)}}
	switch {
	case d.envelope.Product == "" || d.kind == "":
		return w.fail(d.source, "the record names no product or no kind")
	case d.streams&schema.InApp == 0:
		w.drop(d.source, w.sums.InApp.Drops, d.withheld.InApp)
	case len(d.parts) == 0:
		w.drop(d.source, w.sums.InApp.Drops, schema.ReasonNoText)
		h.streams &^= schema.InApp
	case !schema.ValidRegion(d.region):
		// It names a directory; and without one the residency is unknown.
		return w.fail(d.source, "the region is not a word of a-z, 0-9 and '-'")
	case w.told(d):
		w.drop(d.source, w.sums.InApp.Drops, schema.ReasonToldTwice)
		h.streams &^= schema.InApp
	default:
		w.document(d, &h)
	}
	if d.streams&schema.Metadata == 0 {
		w.drop(d.source, w.sums.Metadata.Drops, d.withheld.Metadata)
	} else {
		w.sums.Metadata.Counted++
		w.counts[h.count()]++
	}
	w.held = append(w.held, h)
	w.bytes += recordBytes
	return w.err
}

// month returns the event's calendar month, UTC. Nothing finer leaves. Most
// records are of the month of the record before.
func (w *Writer) month(t time.Time) string {
	if t = t.UTC(); w.lastMonth == "" || t.Year() != w.lastTime.Year() || t.Month() != w.lastTime.Month() {
		w.lastTime, w.lastMonth = t, t.Format("2006-01")
	}
	return w.lastMonth
}

func (w *Writer) see(k key, offset int64) {
	s := seenAt{offset, k}
	w.seen = append(w.seen, s)
	w.memory.add(s)
}

// told reports whether an event before this one told of its change, and does
// so still: a general one leaves the open batch when a specific one comes.
func (w *Writer) told(d *document) bool {
	k := d.edit.Key
	if k == (key{}) {
		return false
	}
	if w.memory.has(k, d.source.Offset) {
		i, open := w.general[k]
		if !open || !d.edit.Specific {
			return true
		}
		w.withdraw(&w.held[i], schema.InApp, schema.Withheld{InApp: schema.ReasonToldTwice})
		delete(w.general, k)
		return false
	}
	w.see(k, d.source.Offset)
	delete(w.general, k) // one that the memory has forgotten stays
	if !d.edit.Specific {
		w.general[k] = len(w.held)
	}
	return false
}

func (h *held) count() count {
	return count{Month: h.at.month, Product: string(h.envelope.Product), Kind: h.kind}
}

func (w *Writer) document(d *document, h *held) {
	rows, id := w.inApp[h.at], uuid.NewString()
	h.row, h.rows = len(rows), len(d.parts)
	for i, p := range d.parts {
		rows = append(rows, Row{
			ID: id, Part: int32(i), Product: string(d.envelope.Product), Kind: d.kind, Role: p.Role, Format: p.Format.String(),
			Text: string(p.Text), Month: h.at.month, ScrubVersion: scrub.Version,
		})
		w.bytes += int64(len(p.Text)) + rowBytes
	}
	w.inApp[h.at] = rows
	w.sums.InApp.Documents++
	w.sums.InApp.Rows += int64(len(d.parts))
	for l, n := range d.spans {
		if n > 0 {
			w.sums.Spans[scrub.Label(l).String()] += int64(n)
		}
	}
}

// withdraw takes a record out of streams that it feeds, and counts it as
// dropped from them.
func (w *Writer) withdraw(h *held, streams schema.Streams, why schema.Withheld) {
	streams &= h.streams
	h.streams &^= streams
	if streams&schema.InApp != 0 {
		rows := w.inApp[h.at][h.row : h.row+h.rows]
		for i := range rows {
			w.bytes -= int64(len(rows[i].Text))
			rows[i] = Row{} // left out by attempt
		}
		w.sums.InApp.Documents--
		w.sums.InApp.Rows -= int64(h.rows)
		for l, n := range h.spans {
			if n > 0 {
				subtract(w.sums.Spans, scrub.Label(l).String(), int64(n))
			}
		}
		w.drop(h.source, w.sums.InApp.Drops, why.InApp)
	}
	if streams&schema.Metadata != 0 {
		w.sums.Metadata.Counted--
		subtract(w.counts, h.count(), 1)
		w.drop(h.source, w.sums.Metadata.Drops, why.Metadata)
	}
}

// subtract takes n off a count, and the count away when nothing is left.
func subtract[K comparable](m map[K]int64, k K, n int64) {
	if m[k] -= n; m[k] == 0 {
		delete(m, k)
	}
}

// review asks the policy again about every record of the batch, takes out what
// it no longer admits, and reports whether there was any. It sets the
// provenance to the offset that all that is left obeys.
func (w *Writer) review(ctx context.Context) (changed bool, err error) {
	c := &w.options.Consent
	if c.Decide == nil {
		return false, nil
	}
	// The offset first: what Decide obeys by then is at least that far.
	offset, err := c.Sync(ctx)
	switch {
	case err != nil:
		return false, fmt.Errorf("asking the policy again: %w", err)
	case offset < w.obeyed:
		return false, fmt.Errorf("the tenants topic ends at offset %d, but the chain's last commit obeyed it up to %d: records of it were lost", offset, w.obeyed)
	}
	w.options.Provenance.TenantsOffset = offset
	open := map[int64]bool{} // offsets that may come again
	for i := range w.held {
		h := &w.held[i]
		if h.streams == 0 {
			continue
		}
		streams, why := c.Decide(h.envelope)
		if h.streams&^streams == 0 {
			continue
		}
		w.withdraw(h, h.streams&^streams, why)
		if changed = true; why.Undecided {
			w.list(h.source, &schema.Error{Reason: why.InApp, Offset: -1})
			open[h.source.Offset] = true
		}
	}
	if len(open) > 0 {
		w.seen = slices.DeleteFunc(w.seen, func(s seenAt) bool {
			if open[s.offset] {
				w.memory.forget(s) // so that it is no repeat when it is driven again
			}
			return open[s.offset]
		})
	}
	return changed, nil
}

// drop counts one stream of a record that was already taken.
func (w *Writer) drop(src schema.Source, drops map[schema.Reason]int64, why schema.Reason) {
	if why == "" {
		w.fail(src, "a stream was dropped without a reason")
		return
	}
	drops[why]++
}

// Drop counts a record that feeds neither stream; both reasons must be set. One
// that is undecided is listed in the quarantine file as well.
func (w *Writer) Drop(src schema.Source, why schema.Withheld) {
	if w.take(src) != nil {
		return
	}
	w.drop(src, w.sums.InApp.Drops, why.InApp)
	w.drop(src, w.sums.Metadata.Drops, why.Metadata)
	if why.Undecided {
		w.list(src, &schema.Error{Reason: why.InApp, Offset: -1})
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
	why := schema.ReasonOf(err)
	w.drop(src, w.sums.InApp.Drops, why)
	w.drop(src, w.sums.Metadata.Drops, why)
	w.list(src, err)
}

// list puts the coordinates of a record on the quarantine list.
func (w *Writer) list(src schema.Source, err error) {
	w.listed = append(w.listed, schema.Reject(src, err, time.Now()))
	w.bytes += rejectedBytes
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
	c, err := w.commit(last)
	if err != nil {
		w.err = fmt.Errorf("commit %v [%d, %d): %w", w.partition, w.start, last+1, err)
		return Commit{}, w.err
	}
	w.genesis, w.obeyed = false, c.Provenance.TenantsOffset
	w.reset(c.End)
	return c, nil
}

func (w *Writer) commit(last int64) (Commit, error) {
	ctx := context.Background() // a commit that has begun is not given up half-way
	if _, err := w.review(ctx); err != nil {
		return Commit{}, err
	}
	for w.err == nil { // a review that withholds without a reason is a fault, as in Add
		c, rows := w.attempt(last)
		err := w.writeFiles(ctx, &c, rows)
		if err == nil {
			// A change that arrived while the files were written bites before
			// the commit. Each turn takes a record out, so this ends.
			var changed bool
			if changed, err = w.review(ctx); changed {
				if err = w.abandon(ctx, &c); err == nil {
					continue
				}
			}
		}
		if err != nil {
			return c, errors.Join(err, w.abandon(ctx, &c))
		}
		c.Provenance = w.options.Provenance
		switch err := w.store.create(ctx, &c); {
		case err == nil:
			// The commit is durable. If this fails, Sweep does it.
			_ = w.store.storage.remove(ctx, c.intentFile())
			return c, nil
		case errors.Is(err, ErrCommitted):
			return c, errors.Join(err, w.abandon(ctx, &c))
		default:
			return c, err // our commit may stand, and names the files
		}
	}
	return Commit{}, w.err
}

func (w *Writer) abandon(ctx context.Context, c *Commit) error {
	var files []string
	for _, f := range c.Files {
		files = append(files, f.Path)
	}
	return w.store.abandon(ctx, c.intentFile(), files)
}

// attempt returns the commit of a new try, its files named but not yet made,
// and the rows of its in-app files, which lead the list.
func (w *Writer) attempt(last int64) (Commit, [][]Row) {
	c := w.sums
	c.Version, c.Topic, c.TopicID, c.Partition = Version, w.partition.Topic, w.options.TopicID, w.partition.Partition
	c.Start, c.End, c.Genesis = w.start, last+1, w.genesis
	c.Attempt, c.Created = uuid.NewString(), time.Now().UTC().Truncate(time.Second)
	c.Format, c.Files, c.Provenance, c.ScrubVersion = w.options.Format, []File{}, w.options.Provenance, scrub.Version
	c.Holes = c.End - c.Start - c.Records
	name := func(f File) {
		f.Path = c.path(&f, 0, c.Attempt)
		c.Files = append(c.Files, f)
	}
	var inApp [][]Row
	for _, to := range slices.SortedFunc(maps.Keys(w.inApp), func(a, b place) int {
		return cmp.Or(cmp.Compare(a.region, b.region), cmp.Compare(a.month, b.month))
	}) {
		rows := w.inApp[to]
		if withdrawn := func(r Row) bool { return r.ID == "" }; slices.ContainsFunc(rows, withdrawn) {
			rows = slices.DeleteFunc(slices.Clone(rows), withdrawn) // those of held stay where it says
		}
		if len(rows) > 0 {
			inApp = append(inApp, rows)
			name(File{Stream: StreamInApp, Region: to.region, Month: to.month, Rows: int64(len(rows))})
		}
	}
	months := map[string]int64{}
	for k := range w.counts {
		months[k.Month]++
	}
	for _, m := range slices.Sorted(maps.Keys(months)) {
		name(File{Stream: StreamMetadata, Month: m, Rows: months[m]})
	}
	if n := len(w.listed); n > 0 {
		name(File{Stream: StreamQuarantine, Rows: int64(n)})
	}
	if len(w.seen) > 0 {
		name(File{Stream: StreamSeen, Rows: int64(len(w.seen))})
	}
	return c, inApp
}

// writeFiles writes the commit's data files and makes them durable, after the
// intent that lists them.
func (w *Writer) writeFiles(ctx context.Context, c *Commit, inApp [][]Row) error {
	if err := w.store.intend(ctx, c); err != nil {
		return err
	}
	var names []string
	for i := range c.Files {
		f := &c.Files[i]
		var b []byte
		var err error
		switch f.Stream {
		case StreamInApp:
			b, err = w.encoder.encodeRows(c.Format, inApp[i])
		case StreamMetadata:
			b, err = w.encoder.encodeCounts(c.Format, w.countsOf(f.Month))
		case StreamQuarantine:
			b, err = encodeRejected(w.listed)
		case StreamSeen:
			b = appendSeen(nil, c.Start, w.seen)
		}
		if err != nil {
			return err
		}
		sum := sha256.Sum256(b)
		f.Bytes, f.SHA256 = int64(len(b)), hex.EncodeToString(sum[:])
		if err := w.store.storage.write(ctx, f.Path, b); err != nil {
			return err
		}
		names = append(names, f.Path)
	}
	return w.store.storage.settle(ctx, names...)
}

// countsOf returns the rows of one month's metadata file.
func (w *Writer) countsOf(month string) (rows []count) {
	for k, n := range w.counts {
		if k.Month == month {
			k.Count = n
			rows = append(rows, k)
		}
	}
	slices.SortFunc(rows, func(a, b count) int {
		return cmp.Or(cmp.Compare(a.Product, b.Product), cmp.Compare(a.Kind, b.Kind))
	})
	return rows
}
