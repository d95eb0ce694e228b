package kafkaio

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/segmentio/kafka-go"
)

// RetentionError says that records were removed before they were read: on a
// topic that is not compacted, records from Asked to LogStart are lost to us.
type RetentionError struct {
	Topic     string
	Partition int
	Asked     int64
	LogStart  int64
}

func (e *RetentionError) Error() string {
	return fmt.Sprintf("%s/%d@%d: the log starts at %d: retention removed records that were not read", e.Topic, e.Partition, e.Asked, e.LogStart)
}

// BeyondEndError says that the log ends before an offset that was reached
// earlier: it was truncated, or the topic was deleted and made again.
type BeyondEndError struct {
	Topic     string
	Partition int
	Asked     int64
	End       int64
}

func (e *BeyondEndError) Error() string {
	return fmt.Sprintf("%s/%d@%d: the log ends at %d: it was truncated or the topic was made again", e.Topic, e.Partition, e.Asked, e.End)
}

// TopicChangedError says that a topic was deleted and made again since this
// Client first saw it: its offsets mean other records now.
type TopicChangedError struct {
	Topic   string
	Was, Is string // ids, as in TopicInfo
}

func (e *TopicChangedError) Error() string {
	return fmt.Sprintf("topic %s was deleted and made again: its id was %s and is %s", e.Topic, e.Was, e.Is)
}

// Fetch reads the partition from offset on, into b, whose memory it reuses, and
// moves b.Next past everything that it read: records, and the batches that hold
// none for us (of aborted transactions, control markers, and what compaction
// emptied). Only committed records are delivered.
//
// Concurrent calls share requests: those that wait for one leader are sent to
// it as one, of which at most two are on their way. An answer holds up to
// Options.MaxBytes of batches for each call and 8 times that in all, or one
// batch if it is larger; none starves. Batches of one answer share its memory
// while they hold records that were not compressed.
//
// A call waits up to Options.MaxWait for something to read, and one that leaves
// b.Next at offset took about that long, so a caller may loop. What is there is
// returned at once, whatever else is waited for; what arrives while the call
// waits, within about a quarter of MaxWait. Errors that pass (a leader that
// moved, a broker that is away) it retries until ctx ends. The others are
// *RetentionError, *BeyondEndError, *TopicChangedError, *CorruptError,
// ErrUnknownTopic, ctx's own, and what the broker refuses; with any of them b
// holds nothing.
func (c *Client) Fetch(ctx context.Context, topic string, partition int, offset int64, b *Batch) error {
	tp, start := topicPartition{topic, partition}, time.Now()
	if err := c.fetch(ctx, tp, offset, b); err != nil {
		b.reset(offset)
		return c.fetchError(tp, offset, err)
	}
	if b.Next == offset && offset < b.LastStable {
		if err := c.probe(ctx, tp, offset, b); err != nil {
			b.reset(offset)
			return c.fetchError(tp, offset, err)
		}
	}
	if b.Next == offset {
		if err := wait(ctx, c.o.MaxWait-time.Since(start)); err != nil {
			return c.fetchError(tp, offset, err)
		}
	}
	return nil
}

func (c *Client) fetchError(tp topicPartition, offset int64, err error) error {
	var re *RetentionError
	var be *BeyondEndError
	var te *TopicChangedError
	var ce *CorruptError
	if errors.As(err, &re) || errors.As(err, &be) || errors.As(err, &te) || errors.As(err, &ce) {
		return err // names the coordinates itself
	}
	return fmt.Errorf("fetch %v@%d: %w", tp, offset, err)
}

// probe settles an empty answer to a fetch below the last stable offset. The
// log cleaner may have removed all that lay between, down to the batches. If
// so, nothing covers the last of these offsets either, and reading goes on
// behind it. If that offset can be read, the two answers contradict each other:
// nothing is skipped, and the caller asks again.
func (c *Client) probe(ctx context.Context, tp topicPartition, offset int64, b *Batch) error {
	end := b.LastStable
	if err := c.fetch(ctx, tp, end-1, b); err != nil {
		return err
	}
	empty := b.Next == end-1 && b.LastStable >= end
	b.reset(offset)
	if empty {
		b.Next = end
	}
	return nil
}

// fetch is one answered request for one partition.
func (c *Client) fetch(ctx context.Context, tp topicPartition, offset int64, b *Batch) error {
	look := false
	return c.retry(ctx, func() error {
		node, err := c.leader(ctx, tp, look)
		if err == nil {
			err = c.sameTopic(tp.topic)
		}
		if err != nil {
			return err
		}
		look = true // as in atLeader
		b.reset(offset)
		p, err := c.fetchQueue(node).fetch(ctx, tp, offset)
		if errors.Is(err, kafka.OffsetOutOfRange) {
			err = c.outOfRange(ctx, tp, offset)
		}
		if err != nil {
			return err
		}
		b.HighWatermark, b.LastStable, b.LogStart = p.answer.highWatermark, p.answer.lastStable, p.answer.logStart
		b.reply = p.reply
		err = b.decode(tp, p.answer.set, offset, p.answer.aborted)
		if !b.borrows {
			b.giveBack()
		}
		return err
	})
}

func (c *Client) fetchQueue(node int32) *fetchQueue {
	c.mu.Lock()
	defer c.mu.Unlock()
	q := c.queues[node]
	if q == nil {
		q = &fetchQueue{c: c, node: node}
		c.queues[node] = q
	}
	return q
}

// outOfRange says which end of the log an offset is past.
func (c *Client) outOfRange(ctx context.Context, tp topicPartition, offset int64) error {
	if _, err := c.leader(ctx, tp, true); err != nil {
		return err
	}
	if err := c.sameTopic(tp.topic); err != nil {
		return err
	}
	r, err := c.offsets(ctx, tp, readUncommitted)
	switch {
	case err != nil:
		return err
	case offset < r.Start:
		return &RetentionError{tp.topic, tp.partition, offset, r.Start}
	case offset > r.End:
		return &BeyondEndError{tp.topic, tp.partition, offset, r.End}
	}
	return kafka.OffsetNotAvailable // back in range: ask again
}

// fetched is the answer for one partition.
type fetched struct {
	found                               bool
	code                                int16
	highWatermark, lastStable, logStart int64
	aborted                             []abortedTxn
	set                                 []byte // points into the reply
}

// parseFetch reads a Fetch response of version 4 to 11 and returns the answer
// to each of the parts that were asked for.
func parseFetch(reply []byte, version int16, asked []*part) ([]fetched, error) {
	d := cursor{b: reply}
	d.i32() // throttle: the broker, not we, holds it
	if version >= 7 {
		if code := d.i16(); code != 0 {
			return nil, kafka.Error(code)
		}
		d.i32() // session
	}
	index := make(map[topicPartition]int, len(asked))
	for i, p := range asked {
		index[p.tp] = i
	}
	answers := make([]fetched, len(asked))
	for range d.i32() {
		topic := string(d.take(int(d.i16())))
		for range d.i32() {
			i, ok := index[topicPartition{topic, int(d.i32())}]
			a := fetched{found: true, code: d.i16(), highWatermark: d.i64(), lastStable: d.i64(), logStart: -1}
			if version >= 5 {
				a.logStart = d.i64()
			}
			for range d.i32() { // -1, none, like 0
				a.aborted = append(a.aborted, abortedTxn{Producer: d.i64(), First: d.i64()})
				if d.bad {
					break
				}
			}
			if version >= 11 {
				d.i32() // preferred replica: none, for we name no rack
			}
			if n := int(d.i32()); n > 0 {
				a.set = d.take(n)
			}
			if d.bad || !ok || answers[i].found {
				return nil, errMalformed
			}
			answers[i] = a
		}
		if d.bad {
			break
		}
	}
	if d.bad {
		return nil, errMalformed
	}
	return answers, nil
}

// correlation is the id of every request that we write: a connection carries
// one at a time.
const correlation = 1

// maxReply bounds what a broker may make us allocate, in bytes.
const maxReply = 256 << 20

// readReply reads one reply and returns what follows its correlation id, in
// buf's memory if it fits.
func readReply(r io.Reader, buf []byte) ([]byte, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := int(int32(binary.BigEndian.Uint32(head[:]))) - 4
	if n < 0 || n > maxReply || binary.BigEndian.Uint32(head[4:]) != correlation {
		return nil, errMalformed
	}
	buf = slices.Grow(buf[:0], n)[:n]
	_, err := io.ReadFull(r, buf)
	return buf, err
}

// ReadAll reads every partition of a topic, one after the other, from where its
// log starts to where it ended when ReadAll began, and hands each record to
// yield; it is how a compacted topic is loaded. It returns the offset of each
// partition to go on from. The record is yield's only during the call. An error
// of yield ends it, and is returned as it is.
func (c *Client) ReadAll(ctx context.Context, topic string, yield func(partition int, r Record) error) (map[int]int64, error) {
	info, err := c.Topic(ctx, topic)
	if err != nil {
		return nil, err
	}
	ranges, err := c.Offsets(ctx, topic, info.Partitions)
	if err != nil {
		return nil, err
	}
	next := make(map[int]int64, len(ranges))
	var b Batch
	for _, p := range info.Partitions {
		at := ranges[p].Start
		for at < ranges[p].End {
			err := c.Fetch(ctx, topic, p, at, &b)
			var removed *RetentionError
			if errors.As(err, &removed) {
				// The start moved on meanwhile. A reader that began now would
				// begin there, so nothing that still counts is missed.
				at = removed.LogStart
				continue
			}
			if err != nil {
				return nil, err
			}
			for _, r := range b.Records {
				if err := yield(p, r); err != nil {
					return nil, err
				}
			}
			at = b.Next
		}
		next[p] = at
	}
	return next, nil
}
