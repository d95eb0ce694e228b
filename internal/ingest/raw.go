package ingest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"winnow/internal/kafkaio"
	"winnow/pkg/gate"
	"winnow/pkg/schema"
)

// ReasonGone counts records that retention or compaction removed before they
// were read.
const ReasonGone schema.Reason = "gone"

// Raw is the door for a topic that connectors write: records in any of the
// forms that package schema unwraps, CloudEvents in binary mode, and events of
// ours, which keep their id. What the policy gives no stream is not produced.
//
// An event has its own CloudEvents id, or one made from the topic's id and the
// record's coordinates: a record that is read again gives the same. One without
// a time has that of its record, for its content is no younger.
type Raw struct {
	Client     *kafkaio.Client
	Policy     *gate.Policy      // names tenants and admits their events
	From       string            // the raw topic
	Out        *kafkaio.Producer // to the events topic
	Quarantine *Quarantine       // lists the records that an operator can act on; may be nil
	Name       string            // ce_source of its events, before the place of each
	Now        func() time.Time
	Progress   func(offsets int64) // told what is done
	Warn       func(error)         // told of what the door goes on after

	topic kafkaio.TopicInfo // of From
	mu    sync.Mutex        // guards parts
	parts map[int]*rawPart  // by partition; a rebalance may hand one out again
}

// rawPart is what the door keeps of one partition. One goroutine at a time has
// it: the runs of two assignments of a partition do not overlap in a process.
type rawPart struct {
	door   Door
	s      Summary
	out    sender
	lines  []byte // for the quarantine
	listed int64  // offset of the last of them
}

// Consume works as a member of a consumer group until ctx ends, and returns
// what it counted. Delivery is at least once: the group's offset is hinted only
// when the brokers have acknowledged each event of what lies below it, and the
// quarantine's lines are on disk. It is the position to go on from, or the
// log's start if the group has none. When ctx ends, records that were read are
// given drainTime to be acknowledged and hinted.
//
// If drain is set a partition ends at the offset that drain names for it, and
// Consume when all have; ending sooner is then an error.
func (d *Raw) Consume(parent context.Context, group string, drain map[int]int64) (Summary, error) {
	if err := d.begin(parent); err != nil {
		return Summary{}, err
	}
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	var mu sync.Mutex
	drained := map[int]bool{}
	err := d.Client.Consume(ctx, group, d.From, func(ctx context.Context, a *kafkaio.Assignment) error {
		if err := d.partition(ctx, a, drain); err != nil || drain == nil {
			return err
		}
		mu.Lock()
		if drained[a.Partition] = true; len(drained) == len(drain) {
			cancel()
		}
		mu.Unlock()
		<-ctx.Done() // stay a member, or the group would hand the partition on
		return nil
	})
	if err == nil && len(drained) < len(drain) {
		err = parent.Err()
	}
	return d.summary(), err
}

func (d *Raw) begin(ctx context.Context) error {
	var err error
	d.topic, err = d.Client.Topic(ctx, d.From)
	d.parts = map[int]*rawPart{}
	return err
}

// part returns what is kept of a partition.
func (d *Raw) part(ctx context.Context, partition int) *rawPart {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.parts[partition]
	if p == nil {
		p = &rawPart{door: Door{Policy: d.Policy, EventTime: OfRecord, Name: d.Name, TopicID: d.topic.ID, Admit: true}}
		d.parts[partition] = p
	}
	p.lines, p.listed = nil, -1
	p.out = sender{ctx: ctx, p: d.Out, s: &p.s, list: func(at Place, err error) {
		if d.Quarantine != nil && at.Source.Offset != p.listed && actionable(err) {
			p.lines, p.listed = appendLine(p.lines, at.Source, err, p.door.Now), at.Source.Offset
		}
	}}
	return p
}

// actionable reports whether an operator can act on a record that was not
// taken. A tombstone, a type that the policy does not list and what it decided
// against are as they should be.
func actionable(err error) bool {
	r := schema.ReasonOf(err)
	return r != schema.ReasonEmptyValue && r != schema.ReasonNotListed && !errors.As(err, new(decided))
}

// summary adds up what was counted of the partitions.
func (d *Raw) summary() (s Summary) {
	s.Dropped = map[schema.Reason]int64{}
	for _, n := range slices.Sorted(maps.Keys(d.parts)) {
		p := &d.parts[n].s
		s.Records += p.Records
		s.Produced += p.Produced
		s.Bytes += p.Bytes
		for r, n := range p.Dropped {
			s.Dropped[r] += n
		}
		s.Drops = append(s.Drops, p.Drops...)
	}
	return s
}

// drainTime is how long records that were read may take to be acknowledged
// when their partition is to be handed over. It is well within the time that
// kafkaio.Client.Consume gives for that.
const drainTime = 10 * time.Second

// lasting returns a context that ends drainTime after ctx.
func lasting(ctx context.Context) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-time.After(drainTime):
			cancel()
		case <-longer.Done():
		}
	})
	return longer, func() { stop(); cancel() }
}

// partition carries one partition from the group's offset on.
func (d *Raw) partition(ctx context.Context, a *kafkaio.Assignment, drain map[int]int64) error {
	delivering, cancel := lasting(ctx)
	defer cancel()
	p := d.part(delivering, a.Partition)
	pos := a.Hinted
	if pos < 0 {
		r, err := d.Client.Offsets(ctx, d.From, []int{a.Partition})
		if err != nil {
			return err
		}
		pos = r[a.Partition].Start
	}
	end, draining := drain[a.Partition]
	var b kafkaio.Batch
	for !draining || pos < end {
		next := pos
		err := d.Client.Fetch(ctx, d.From, a.Partition, pos, &b)
		var removed *kafkaio.RetentionError
		var beyond *kafkaio.BeyondEndError
		switch {
		case errors.As(err, &beyond):
			return fmt.Errorf("%w; another consumer group reads it from its start", err)
		case errors.As(err, &removed):
			d.Warn(err)
			p.gone(schema.Source{Topic: d.From, Partition: a.Partition, Offset: pos}, removed.LogStart-pos)
			next = removed.LogStart
		case err != nil:
			return err
		default:
			if next, err = d.take(p, a.Partition, &b, end, draining); err != nil {
				return err
			}
		}
		if next == pos {
			continue
		}
		if err := d.deliver(p); err != nil {
			return err
		}
		if err := a.Hint(next); err != nil {
			d.Warn(err) // the next covers it; without one the records come again
		}
		d.Progress(next - pos)
		pos = next
	}
	return nil
}

// take unwraps the records of a fetch, those below end if draining, and
// returns the offset to go on from.
func (d *Raw) take(p *rawPart, partition int, b *kafkaio.Batch, end int64, draining bool) (int64, error) {
	for i := range b.Records {
		r := &b.Records[i]
		if draining && r.Offset >= end {
			return end, nil
		}
		if err := p.record(schema.Source{Topic: d.From, Partition: partition, Offset: r.Offset}, r, d.Now()); err != nil {
			return 0, err
		}
	}
	return b.Next, nil
}

// deliver returns when the brokers have acknowledged what was unwrapped and
// the lines of what was not taken are on disk.
func (d *Raw) deliver(p *rawPart) error {
	if err := p.out.flush(); err != nil {
		return err
	}
	if len(p.lines) == 0 {
		return nil
	}
	err := d.Quarantine.add(p.lines)
	p.lines = p.lines[:0]
	return err
}

// gone counts n records from src on that can not be read any more.
func (p *rawPart) gone(src schema.Source, n int64) {
	p.s.Records += n
	p.s.dropMany(Place{Source: src}, &schema.Error{Reason: ReasonGone, Offset: -1}, n)
}

// record unwraps one record. An error means that an event of it, or of one
// before it, could not be delivered.
func (p *rawPart) record(src schema.Source, r *kafkaio.Record, now time.Time) (failed error) {
	// As in the worker: a fault of ours in one record must not stop those
	// around it, and its value might quote the record.
	defer func() {
		if recover() != nil {
			p.s.Records++
			p.out.drop(Place{Source: src}, &schema.Error{Reason: schema.ReasonInternal, Offset: -1})
		}
	}()
	p.door.Now = now.UTC()
	p.door.UnwrapRecord(src, r, func(at Place, m kafkaio.Message, err error) {
		if failed != nil {
			return
		}
		p.s.Records++
		if err != nil {
			p.out.drop(at, err)
			return
		}
		failed = p.out.add(at, m)
	})
	return failed
}

// UnwrapRecord is Unwrap for a record on a topic. Headers that name the tenant
// are decided on before the value is looked at. The record of an event of ours,
// whose ce_type begins with schema.TypePrefix, is yielded with the id, time and
// value that it has, be it readable or not: the worker judges it again. Key and
// value may be slices of the record's.
func (d *Door) UnwrapRecord(src schema.Source, r *kafkaio.Record, yield func(at Place, m kafkaio.Message, err error)) {
	at := Place{Source: src}
	refuse := func(err error) { yield(at, kafkaio.Message{}, err) }
	made := func(at Place, it schema.Item) {
		if it.Time.IsZero() && r.Time.Before(d.Now) {
			it.Time = r.Time // zero if the record has none
		}
		m, err := d.message(at, it)
		yield(at, m, err)
	}
	if len(bytes.TrimSpace(r.Value)) == 0 {
		refuse(&schema.Error{Reason: schema.ReasonEmptyValue, Offset: -1})
		return
	}
	if !schema.IsBinary(r.Headers) {
		schema.Unwrap(&d.doc, r.Value, func(index int, it schema.Item, err error) {
			if at.Index = index; err != nil {
				refuse(err)
				return
			}
			made(at, it)
		})
		return
	}
	if strings.HasPrefix(header(r.Headers, "ce_type"), schema.TypePrefix) {
		m, err := d.again(r)
		yield(at, m, err)
		return
	}
	if err := d.hopeless(header(r.Headers, "ce_tenant")); err != nil {
		refuse(err)
		return
	}
	it, err := schema.UnwrapBinary(&d.doc, r.Headers, r.Value)
	if err != nil {
		refuse(err)
		return
	}
	made(at, it)
}

// header returns the first header of the name.
func header(hs []schema.Header, name string) string {
	for _, h := range hs {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}

// hopeless is admit for a tenant of whose event no more is known: it is refused
// if none of any product, at any time, would be admitted. The time that admits
// most is now, for every state since an event's time must allow it.
func (d *Door) hopeless(tenant string) (err error) {
	if tenant == "" {
		return nil
	}
	for _, product := range []schema.Product{schema.Jira, schema.Confluence, schema.ServiceManagement} {
		if err = d.admit(schema.Envelope{Tenant: tenant, Product: product, Time: d.Now}); err == nil {
			return nil
		}
	}
	return err
}

// again makes the message of a record that is an event of ours. Its key stays
// unless it is another tenant's, or none.
func (d *Door) again(r *kafkaio.Record) (kafkaio.Message, error) {
	e, err := schema.ParseHeaders(r.Headers)
	switch {
	case err != nil:
		return kafkaio.Message{}, err
	case len(r.Value) > schema.MaxValue:
		return kafkaio.Message{}, &schema.Error{Reason: schema.ReasonTooLarge, Offset: -1}
	}
	if err := d.admit(e); err != nil {
		return kafkaio.Message{}, err
	}
	key := r.Key
	if !strings.HasPrefix(string(key), e.Tenant+"|") {
		key = []byte(e.Tenant + "|" + string(e.Product) + "/" + e.ID)
	}
	return d.produced(e, key, r.Value)
}

// Redrive reads the records at the offsets, ascending by partition, and
// produces their events again. It belongs to no group and hints nothing. Those
// that are not there any more are counted as gone, and those that the door does
// not take as in Consume; the error says that some could not be read or
// delivered. What was counted as produced by then was acknowledged.
func (d *Raw) Redrive(ctx context.Context, offsets map[int][]int64) (Summary, error) {
	if err := d.begin(ctx); err != nil {
		return Summary{}, err
	}
	for _, n := range slices.Sorted(maps.Keys(offsets)) {
		if err := d.redrive(ctx, n, offsets[n]); err != nil {
			return d.summary(), err
		}
	}
	return d.summary(), nil
}

func (d *Raw) redrive(ctx context.Context, partition int, offsets []int64) error {
	p := d.part(ctx, partition)
	var b kafkaio.Batch
	end := int64(0) // what lies below it is in b, or gone
	if !slices.Contains(d.topic.Partitions, partition) {
		end = math.MaxInt64
	}
	for _, at := range offsets {
		if at >= end {
			// What is to be sent lies in b's memory, so it goes first.
			err := d.deliver(p)
			if err == nil {
				end, err = d.fetch(ctx, partition, at, &b)
			}
			if err != nil {
				return err
			}
		}
		src := schema.Source{Topic: d.From, Partition: partition, Offset: at}
		i, found := slices.BinarySearchFunc(b.Records, at, func(r kafkaio.Record, at int64) int { return cmp.Compare(r.Offset, at) })
		if !found {
			p.gone(src, 1)
		} else if err := p.record(src, &b.Records[i], d.Now()); err != nil {
			return err
		}
		d.Progress(1)
	}
	return d.deliver(p)
}

// fetch reads into b from an offset on, and returns up to where the log holds
// nothing but that.
func (d *Raw) fetch(ctx context.Context, partition int, at int64, b *kafkaio.Batch) (end int64, err error) {
	err = d.Client.Fetch(ctx, d.From, partition, at, b)
	var removed *kafkaio.RetentionError
	var beyond *kafkaio.BeyondEndError
	switch {
	case errors.As(err, &removed):
		return removed.LogStart, nil
	case errors.As(err, &beyond):
		return math.MaxInt64, nil
	}
	return max(b.Next, at+1), err
}
