package kafkaio

import (
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/fetch"
)

const (
	maxInFlight = 2 // Fetch requests to one leader
	replyParts  = 8 // a reply holds at most so many times Options.MaxBytes, or one larger batch
	pollSlices  = 4 // a request waits for records for at most this part of Options.MaxWait
)

// fetchQueue combines the fetches from one leader, by group commit: a call puts
// its part on the list; if fewer than maxInFlight requests are on their way the
// whole list is sent at once, else as soon as one returns.
//
// A part that comes from its caller is fresh. A request with a fresh part does
// not wait at the broker, so whoever has records to read gets them in one
// round trip. Parts that found nothing stay on the list, without waking their
// callers. A request of none but those waits for records (it polls), and only
// if no other request is on its way: so at most one slot polls, the other is
// always free for fresh parts, and all idle partitions get into the same poll.
// A part that found nothing while a poll was on its way waits for the end of
// that poll; hence pollSlices.
type fetchQueue struct {
	c    *Client
	node int32

	mu       sync.Mutex
	waiting  []*part
	inFlight int
}

// part is what one caller asks for in a Fetch request.
type part struct {
	tp       topicPartition
	offset   int64
	deadline time.Time     // from then on, nothing to read is an answer
	done     chan struct{} // closed when the answer is set

	// Guarded by the queue's mutex; of the caller alone once done is closed.
	idle   bool // found nothing to read, not fresh
	gone   bool // the caller has left
	err    error
	answer fetched
	reply  *reply // answer.set points into it; nil if that is empty
}

// fetch asks for the records of one partition. A nil error comes with the
// part's answer; whoever takes it must release its reply.
func (q *fetchQueue) fetch(ctx context.Context, tp topicPartition, offset int64) (*part, error) {
	p := &part{tp: tp, offset: offset, deadline: time.Now().Add(q.c.o.MaxWait), done: make(chan struct{})}
	q.mu.Lock()
	q.waiting = append(q.waiting, p)
	q.start()
	q.mu.Unlock()
	select {
	case <-p.done:
		return p, p.err
	case <-ctx.Done():
		// The request, if it is on its way, is not ours alone.
		q.mu.Lock()
		p.gone = true
		q.waiting = slices.DeleteFunc(q.waiting, func(other *part) bool { return other == p })
		q.mu.Unlock()
		p.reply.release() // if it was answered meanwhile
		return nil, ctx.Err()
	}
}

// start sends what may be sent. The mutex is held.
func (q *fetchQueue) start() {
	for len(q.waiting) > 0 && q.inFlight < maxInFlight {
		poll := !slices.ContainsFunc(q.waiting, func(p *part) bool { return !p.idle })
		if poll && q.inFlight > 0 {
			return
		}
		batch := q.take()
		q.inFlight++
		go q.send(batch, poll)
	}
}

// take takes the list, but for second parts of one partition: a request names
// each once. The parts of a topic are brought together, which leaves the first
// part first. The mutex is held.
func (q *fetchQueue) take() []*part {
	seen := make(map[topicPartition]bool, len(q.waiting))
	topics := make(map[string]int)
	var batch, left []*part
	for _, p := range q.waiting {
		if seen[p.tp] {
			left = append(left, p)
			continue
		}
		seen[p.tp] = true
		if _, ok := topics[p.tp.topic]; !ok {
			topics[p.tp.topic] = len(topics)
		}
		batch = append(batch, p)
	}
	if len(topics) > 1 {
		slices.SortStableFunc(batch, func(x, y *part) int { return topics[x.tp.topic] - topics[y.tp.topic] })
	}
	q.waiting = left
	return batch
}

// send makes one request and hands its reply out.
func (q *fetchQueue) send(batch []*part, poll bool) {
	var wait time.Duration
	if poll {
		wait = q.c.o.MaxWait / pollSlices
		for _, p := range batch {
			wait = min(wait, time.Until(p.deadline))
		}
		// To the next millisecond, which is the unit on the wire: the reply
		// then comes after the deadline.
		wait = max(0, wait+time.Millisecond-1).Truncate(time.Millisecond)
	}
	sent := time.Now()
	r, version, err := q.exchange(batch, wait)
	lost := err != nil
	var answers []fetched
	if err == nil && version < 4 {
		err = fmt.Errorf("the broker speaks Fetch up to version %d; committed reads need 4", version)
	} else if err == nil {
		answers, err = parseFetch(r.bytes, version, batch)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if lost {
		// What waits for this leader had better look for another one, like
		// the batch, than wait for a second request to time out.
		batch, q.waiting = append(batch, q.waiting...), nil
	}
	if err != nil {
		for _, p := range batch {
			p.finish(err)
		}
	} else {
		q.handOut(batch, answers, r, poll && time.Since(sent) < wait)
	}
	r.release()
	q.inFlight--
	q.start()
}

// handOut gives each part its answer, or puts it back on the list. The mutex is
// held. early says that the reply to a poll came before its time, for which
// there should be a reason in it.
func (q *fetchQueue) handOut(batch []*part, answers []fetched, r *reply, early bool) {
	full := slices.IndexFunc(answers, func(a fetched) bool { return len(a.set) > 0 }) // the first with records
	if full < 0 {
		full = len(batch)
	}
	if full < len(batch) || slices.ContainsFunc(answers, func(a fetched) bool { return a.code != 0 }) {
		early = false
	}
	now := time.Now()
	var passed []*part
	for i, p := range batch {
		a := answers[i]
		switch {
		case p.gone:
		case a.found && a.code != 0:
			p.finish(kafka.Error(a.code))
		case len(a.set) > 0:
			p.answer, p.reply = a, r.share()
			p.finish(nil)
		// Only the first partition with records is sure to get some: the
		// others are cut at what is left of the reply's size, to nothing if
		// their first batch does not fit (KIP-74; some brokers leave them
		// out). They go first in the next request, so each gets its turn.
		case i > full && (!a.found || p.offset < a.lastStable):
			p.idle = false
			passed = append(passed, p)
		case !a.found: // a broker that throttles us answers without partitions
			p.finish(kafka.ThrottlingQuotaExceeded)
		case p.offset < a.lastStable, early, !now.Before(p.deadline):
			p.answer = a
			p.finish(nil)
		default:
			p.idle = true
			q.waiting = append(q.waiting, p)
		}
	}
	q.waiting = append(passed, q.waiting...)
}

func (p *part) finish(err error) {
	if !p.gone {
		p.err = err
		close(p.done)
	}
}

// exchange makes a Fetch request for the parts, in their order. The reply, nil
// after an error, is the caller's to release.
func (q *fetchQueue) exchange(batch []*part, wait time.Duration) (*reply, int16, error) {
	o := &q.c.o
	req := &fetch.Request{
		ReplicaID: -1, MaxWaitTime: int32(wait.Milliseconds()), MinBytes: 1, MaxBytes: int32(min(replyParts*o.MaxBytes, math.MaxInt32)),
		IsolationLevel: readCommitted, SessionEpoch: -1,
	}
	for i, p := range batch {
		if i == 0 || p.tp.topic != batch[i-1].tp.topic {
			req.Topics = append(req.Topics, fetch.RequestTopic{Topic: p.tp.topic})
		}
		t := &req.Topics[len(req.Topics)-1]
		t.Partitions = append(t.Partitions, fetch.RequestPartition{
			Partition: int32(p.tp.partition), CurrentLeaderEpoch: -1, FetchOffset: p.offset, LogStartOffset: -1, PartitionMaxBytes: int32(o.MaxBytes),
		})
	}
	r := q.c.newReply()
	var version int16
	err := q.c.exchange(context.Background(), protocol.Fetch, q.node, wait+o.RequestTimeout, func(rw io.ReadWriter, v int16) error {
		version = v
		err := protocol.WriteRequest(rw, v, correlation, o.ClientID, req)
		if err == nil {
			r.bytes, err = readReply(rw, r.bytes)
		}
		return err
	})
	if err != nil {
		return nil, 0, err // the call may still be reading into r, and writing version
	}
	return r, version, nil
}

// reply is the memory of one reply. The Batches that it has records for share
// it; the last to release it gives it back to the Client. A Batch that nobody
// uses again never does: the garbage collector takes the reply along with it.
type reply struct {
	c     *Client
	bytes []byte
	users atomic.Int32
}

func (c *Client) newReply() *reply {
	r, ok := c.replies.Get().(*reply)
	if !ok {
		r = &reply{c: c}
	}
	r.users.Store(1)
	return r
}

func (r *reply) share() *reply {
	r.users.Add(1)
	return r
}

func (r *reply) release() {
	if r != nil && r.users.Add(-1) == 0 {
		r.c.replies.Put(r)
	}
}
