// Package tenants keeps a gate's policy up to date with the tenants topic: it
// is read to its end before the first decision, and then followed.
//
// What is not known for certain stops the reader; it never opens the gate. A
// record that cannot be read closes its organisation (package gate), and the
// topic goes on. A topic that cannot be read, that went back, or that has not
// been confirmed for longer than Options.MaxAge, ends Follow and every Sync
// with an error.
package tenants

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"winnow/internal/kafkaio"
	"winnow/pkg/gate"
)

// ErrStale says that the end of the tenants topic has not been seen for longer
// than Options.MaxAge: an opt-out may lie there unread.
var ErrStale = errors.New("the tenants topic has not been read to its end for too long")

// Options of Load.
type Options struct {
	Gate   gate.Options
	MaxAge time.Duration // how long the table may go without having seen the topic's end
	Log    *slog.Logger  // told of records that cannot be read, by key and field
}

// Table is a policy that follows a topic. Its methods may be called by several
// goroutines, beside one call of Follow.
type Table struct {
	Policy  *gate.Policy
	TopicID string // as in kafkaio.TopicInfo

	client *kafkaio.Client
	topic  string
	o      Options
	last   map[string][sha256.Size]byte // key → hash of its last accepted record

	mu        sync.Mutex
	moved     sync.Cond // next or err changed
	next      int64     // all below it is in Policy
	confirmed time.Time // a moment at which the topic ended at or below next
	err       error     // why Follow ended
}

// Load reads the topic to its high watermark. It must have one partition, for
// its records have one order and a commit names one offset.
func Load(ctx context.Context, c *kafkaio.Client, topic string, o Options) (*Table, error) {
	t := &Table{Policy: gate.NewPolicy(o.Gate), client: c, topic: topic, o: o, last: map[string][sha256.Size]byte{}, confirmed: time.Now()}
	t.moved.L = &t.mu
	info, err := c.Topic(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("reading topic %s: %w", topic, err)
	}
	if n := len(info.Partitions); n != 1 {
		return nil, fmt.Errorf("topic %s has %d partitions; tenant records need one order, hence a topic of one partition", topic, n)
	}
	t.TopicID = info.ID
	next, err := c.ReadAll(ctx, topic, func(_ int, r kafkaio.Record) error { return t.take(&r) })
	if err != nil {
		return nil, fmt.Errorf("reading topic %s: %w", topic, err)
	}
	t.next = next[info.Partitions[0]]
	return t, nil
}

// take puts one record into the policy. A revision that falls is an error: which
// of two records holds is then not known, and a gate that does not know must
// not run. The same record twice is what at-least-once delivery does.
func (t *Table) take(r *kafkaio.Record) error {
	key, sum := string(r.Key), sha256.Sum256(r.Value)
	err := t.Policy.Put(key, r.Value)
	switch {
	case errors.Is(err, gate.ErrRevision) && t.last[key] != sum:
		return fmt.Errorf("offset %d: %w; produce the tenant's record again with a higher revision", r.Offset, err)
	case errors.Is(err, gate.ErrRevision):
	case err != nil:
		t.o.Log.Warn("a tenant record cannot be read; its organisation is closed", "topic", t.topic, "offset", r.Offset, "error", err)
		fallthrough
	default:
		t.last[key] = sum
	}
	return nil
}

// Offset returns the last offset of the topic that Policy obeys, -1 if none.
func (t *Table) Offset() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.next - 1
}

// Follow keeps the policy up to date until ctx ends, and then returns nil. An
// error says why the policy can no longer be relied on; every Sync, also one
// that waits, then returns it too.
func (t *Table) Follow(ctx context.Context) error {
	err := t.follow(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err = err; err == nil {
		t.err = context.Cause(ctx)
	}
	t.moved.Broadcast()
	return err
}

// Guard calls Follow, until stop is called, and returns a context that ends
// with parent, or when the policy can no longer be relied on: that is its cause
// then. The end of parent does not end Follow, for what is under way by then
// asks the policy too. stop returns when Follow has.
func (t *Table) Guard(parent context.Context) (ctx context.Context, stop func()) {
	ctx, fail := context.WithCancelCause(parent)
	following, enough := context.WithCancel(context.WithoutCancel(parent))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := t.Follow(following); err != nil {
			fail(err)
		}
	}()
	return ctx, func() {
		enough()
		<-done
		fail(nil)
	}
}

func (t *Table) follow(ctx context.Context) error {
	var b kafkaio.Batch
	for {
		asked := time.Now()
		// A process that was stopped for longer than MaxAge finds itself stale; it
		// may ask once before it gives up.
		due := t.confirmed.Add(t.o.MaxAge)
		if again := asked.Add(t.o.MaxAge / 2); due.Before(again) {
			due = again
		}
		fetching, cancel := context.WithDeadline(ctx, due)
		err := t.client.Fetch(fetching, t.topic, 0, t.next, &b)
		late := fetching.Err() != nil
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && late:
			return fmt.Errorf("%w (%v): %w", ErrStale, t.o.MaxAge, err)
		case err != nil:
			return fmt.Errorf("following topic %s: %w", t.topic, err)
		}
		for i := range b.Records {
			if err := t.take(&b.Records[i]); err != nil {
				return fmt.Errorf("following topic %s: %w", t.topic, err)
			}
		}
		t.mu.Lock()
		t.next = b.Next
		if b.Next >= b.LastStable {
			t.confirmed = asked
		}
		t.moved.Broadcast()
		t.mu.Unlock()
		if time.Since(t.confirmed) > t.o.MaxAge {
			return fmt.Errorf("%w (%v): more is written to it than is read", ErrStale, t.o.MaxAge)
		}
	}
}

// Sync returns when Policy obeys every record that was acknowledged before the
// call, and the offset of the last one. It takes one exchange with the leader
// and what Follow, which must be running, needs to read the rest; after MaxAge
// it gives up with ErrStale.
//
// The leader's word is final but for a leader that has lost the partition and
// does not know it yet, which may be one broker session (9 s by default) behind.
func (t *Table) Sync(ctx context.Context) (offset int64, err error) {
	asking, cancel := context.WithTimeout(ctx, t.o.MaxAge)
	defer cancel()
	r, err := t.client.Offsets(asking, t.topic, []int{0})
	if err == nil {
		offset, err = t.await(asking, r[0].End)
	}
	if err != nil && ctx.Err() == nil && asking.Err() != nil {
		err = fmt.Errorf("%w (%v): %w", ErrStale, t.o.MaxAge, err)
	}
	return offset, err
}

// await waits until all below end is in the policy, and returns the last offset
// that is.
func (t *Table) await(ctx context.Context, end int64) (offset int64, err error) {
	defer context.AfterFunc(ctx, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.moved.Broadcast()
	})()
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.next < end && t.err == nil && ctx.Err() == nil {
		t.moved.Wait()
	}
	if t.err != nil {
		return 0, t.err
	}
	return t.next - 1, ctx.Err()
}
