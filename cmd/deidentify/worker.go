package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"winnow/internal/failpoint"
	"winnow/internal/kafkaio"
	"winnow/internal/tenants"
	"winnow/pkg/batch"
	"winnow/pkg/gate"
	"winnow/pkg/schema"
	"winnow/pkg/scrub"
)

// worker carries the partitions it is assigned through the straight line:
// gate, decode, scrub, split, batch.
type worker struct {
	client *kafkaio.Client
	store  *batch.Store
	policy *gate.Policy
	table  *tenants.Table // keeps policy up to date; nil if it cannot change
	log    *slog.Logger
	now    func() time.Time

	topic string
	group string
	opts  batch.Options
	flush flushLimits

	// When drain is set, a partition ends at the offset the log had when the
	// worker began, and the worker when all its partitions have.
	drain    map[int]int64
	progress func(records int64)
	noted    func(origin string, at schema.Source, err error) // may be nil; see line
}

// flushLimits end a batch at the first that is reached. They bound the memory
// of one partition: a batch holds at most FlushBytes and one record (8 MiB),
// and takes as much again, at worst, while it is encoded; a fetch holds 1 MiB
// as the broker sends it and what that unpacks to; batch.Horizon says what the
// memory of repeats takes.
type flushLimits struct {
	FlushBytes   int64         `default:"33554432" help:"Commit a batch at this many bytes of text."`
	FlushRecords int64         `default:"10000" help:"Commit a batch at this many records."`
	FlushAge     time.Duration `default:"1m" help:"Commit a batch at this age."`
}

// run works until ctx ends, having committed what was read, or, draining, until
// every partition is done. It ends with an error when the policy can no longer
// be relied on; what is not committed then stays so.
func (w *worker) run(parent context.Context) error {
	guarded := parent
	if w.table != nil {
		var stop func()
		guarded, stop = w.table.Guard(parent) // the last commits ask the policy too
		defer stop()
	}
	ctx, cancel := context.WithCancel(guarded)
	defer cancel()
	var mu sync.Mutex
	drained := map[int]bool{} // a rebalance may hand a partition out again
	err := w.client.Consume(ctx, w.group, w.topic, func(ctx context.Context, a *kafkaio.Assignment) error {
		if err := w.partition(ctx, a); err != nil || w.drain == nil {
			return err
		}
		mu.Lock()
		if drained[a.Partition] = true; len(drained) == len(w.drain) {
			cancel()
		}
		mu.Unlock()
		<-ctx.Done() // stay a member, or the group would hand the partition on
		return nil
	})
	if cause := context.Cause(guarded); err == nil && cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause // the policy's
	}
	if err == nil && len(drained) < len(w.drain) {
		err = parent.Err()
	}
	return err
}

// partition consumes one partition from its chain's tip. The group's offset is
// only a hint for lag; the position is what the data set says.
func (w *worker) partition(ctx context.Context, a *kafkaio.Assignment) error {
	for {
		tip, err := w.store.Next(w.topic, a.Partition)
		if err == nil {
			err = w.batches(ctx, a)
		}
		if !errors.Is(err, batch.ErrCommitted) {
			return err
		}
		// Another worker, which held the partition before us or does not yet
		// know that it lost it, took the range. Its commit stands; go on after it.
		w.log.Info("another worker committed first", "topic", w.topic, "partition", a.Partition)
		if next, e := w.store.Next(w.topic, a.Partition); e == nil && next <= tip {
			return fmt.Errorf("%s/%d: %v does not list the commit that it says is there after offset %d: %w", w.topic, a.Partition, w.store, tip, err)
		}
	}
}

// sweep removes what dead attempts left of a partition, and reports whether
// there are attempts over which the next commit decides.
func (w *worker) sweep(partition int) (pending bool, err error) {
	n, left, err := w.store.Sweep(w.topic, partition)
	if n > 0 {
		w.log.Info("removed files of attempts that can no longer commit", "topic", w.topic, "partition", partition, "files", n)
	}
	return left > 0, err
}

// consent asks the policy again about what is in a batch, right before it is
// committed.
func (w *worker) consent() batch.Consent {
	c := batch.Consent{
		Sync: func(context.Context) (int64, error) { return w.opts.Provenance.TenantsOffset, nil },
		Decide: func(e schema.Envelope) (schema.Streams, schema.Withheld) {
			d := w.policy.Decide(e, w.now())
			return d.Streams(), d.Withheld()
		},
	}
	if w.table != nil {
		c.Sync = w.table.Sync
	}
	return c
}

func (w *worker) batches(ctx context.Context, a *kafkaio.Assignment) error {
	p := a.Partition
	unswept, err := w.sweep(p)
	if err != nil {
		return err
	}
	opts := w.opts
	opts.Consent = w.consent()
	wr, err := w.store.Writer(ctx, w.topic, p, opts)
	if err != nil {
		return err
	}
	defer wr.Close()
	start := wr.Start()
	r, err := w.client.Offsets(ctx, w.topic, []int{p})
	if err != nil {
		return err
	}
	if start == 0 && r[p].Start > 0 {
		start = r[p].Start
		if err := wr.StartAt(start); err != nil {
			return err
		}
	}
	l := line{policy: w.policy, scrub: scrub.New(), w: wr, log: w.log, noted: w.noted}
	end, draining := w.drain[p]
	pos := start // what lies below it is in the writer or committed
	var began time.Time
	commit := func() error {
		c, err := wr.Commit(pos - 1)
		if err != nil {
			return err
		}
		w.log.Debug("committed", "topic", w.topic, "partition", p, "start", c.Start, "end", c.End, "documents", c.InApp.Documents)
		if unswept {
			if unswept, err = w.sweep(p); err != nil {
				return err
			}
		}
		_ = failpoint.At(failpoint.Point{Op: "hint", Name: a.Topic})
		if err := a.Hint(pos); err != nil {
			w.log.Debug("lag hint not taken", "topic", w.topic, "partition", p, "error", err)
		}
		start, began = pos, time.Time{}
		return nil
	}
	var b kafkaio.Batch
	for {
		if pos > start && (!began.IsZero() && w.now().Sub(began) >= w.flush.FlushAge || draining && pos >= end || ctx.Err() != nil) {
			if err := commit(); err != nil {
				return err
			}
		}
		if draining && pos >= end {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		// Nothing is fetched while a batch is committed: a slow store slows the
		// reading of its partition. A fetch that brokers keep waiting ends when
		// the batch is due.
		fetching, cancel := ctx, context.CancelFunc(func() {})
		if !began.IsZero() {
			fetching, cancel = context.WithTimeout(ctx, w.flush.FlushAge-w.now().Sub(began))
		}
		err := w.client.Fetch(fetching, w.topic, p, pos, &b)
		late := fetching.Err() != nil
		cancel()
		if err != nil && late {
			continue // commit what is buffered, then leave or go on
		}
		if err != nil && pos > start {
			// What was read counts, whatever became of what follows it.
			err = errors.Join(err, commit())
		}
		if err != nil {
			return err
		}
		_ = failpoint.At(failpoint.Point{Op: "polled", Name: a.Topic})
		for i := range b.Records {
			now := w.now()
			if began.IsZero() {
				began = now
			}
			src := schema.Source{Topic: w.topic, Partition: p, Offset: b.Records[i].Offset}
			if err := l.record(src, &b.Records[i], now); err != nil {
				return fmt.Errorf("%s: %w", src, err)
			}
			pos = src.Offset + 1
			if bytes, records := wr.Buffered(); bytes >= w.flush.FlushBytes || records >= w.flush.FlushRecords {
				if err := commit(); err != nil {
					return err
				}
				if ctx.Err() != nil {
					break // the partition is another's: leave the rest of the fetch
				}
			}
		}
		if ctx.Err() == nil {
			pos = b.Next
		}
		if began.IsZero() && pos > start {
			began = w.now() // only holes so far
		}
		if w.progress != nil {
			w.progress(int64(len(b.Records)))
		}
	}
}

// line is the straight line of one partition.
type line struct {
	policy *gate.Policy
	scrub  *scrub.Scrubber
	w      *batch.Writer
	log    *slog.Logger
	noted  func(origin string, at schema.Source, err error) // told of admitted records that left no text
	event  schema.Event
}

// reject drops a record that cannot be read.
func (l *line) reject(src schema.Source, err error) {
	l.w.Reject(src, err)
	l.note(src, err)
}

func (l *line) note(src schema.Source, err error) {
	if l.noted != nil {
		l.noted(l.event.Origin, src, err)
	}
}

// record carries one record through the line. What cannot be decided, read or
// scrubbed is dropped and counted; an error means that the batch cannot go on.
func (l *line) record(src schema.Source, r *kafkaio.Record, now time.Time) (err error) {
	// A fault of ours in one record must not stop the records around it. The
	// panic's value might quote the record, so only its place is logged.
	defer func() {
		if p := recover(); p != nil {
			l.log.Error("internal failure; the record is dropped", "source", src.String(), "stack", string(debug.Stack()))
			l.reject(src, &schema.Error{Reason: schema.ReasonInternal, Offset: -1})
		}
	}()
	e := &l.event
	e.Source, e.Value = src, r.Value
	if len(r.Value) == 0 {
		e.Envelope = schema.Envelope{}
		l.reject(src, &schema.Error{Reason: schema.ReasonEmptyValue, Offset: -1})
		return nil
	}
	if err := e.ReadHeaders(r.Headers); err != nil {
		l.reject(src, err)
		return nil
	}
	// Gate: by headers alone, before anything of the value is looked at.
	d := l.policy.Decide(e.Envelope, now)
	if d.Streams() == 0 {
		l.w.Drop(src, d.Withheld())
		return nil
	}
	// Decode, and let the gate see the payload's own host and scope.
	if err := e.Parse(); err != nil {
		l.reject(src, err)
		return nil
	}
	d = l.policy.Decide(e.Envelope, now)
	if d.Streams() == 0 {
		l.w.Drop(src, d.Withheld())
		return nil
	}
	if e.Vocabulary() {
		// Nothing counts such names yet.
		l.w.Drop(src, schema.Withheld{Metadata: schema.ReasonVocabulary, InApp: cmp.Or(d.InAppReason, schema.ReasonVocabulary)})
		return nil
	}
	e.Streams, e.Withheld, e.Region = d.Streams(), d.Withheld(), d.Region
	// Scrub.
	rec, err := l.scrub.Record(e)
	if err != nil {
		l.reject(src, err)
		return nil
	}
	if rec.Streams()&schema.InApp != 0 && len(rec.Parts()) == 0 {
		l.note(src, &schema.Error{Reason: schema.ReasonNoText, Offset: -1})
	}
	// Split and batch: the record says which streams it may feed.
	return l.w.Add(rec)
}
