package kafkaio

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/produce"
)

// Message is a record to be. A nil Key goes to a partition by chance, a nil
// Value is a tombstone, and a zero Time is replaced by the time of sending.
type Message struct {
	Key, Value []byte
	Headers    []Header
	Time       time.Time
}

// size is about what the message takes in a batch, before compression.
func (m *Message) size() int {
	n := len(m.Key) + len(m.Value) + 24
	for _, h := range m.Headers {
		n += len(h.Key) + len(h.Value) + 4
	}
	return n
}

var (
	// ErrTooLarge is in a MessageError for a message that the broker refuses
	// for its size.
	ErrTooLarge = errors.New("larger than the broker accepts")
	// ErrClosed is returned by Produce on a closed Producer.
	ErrClosed = errors.New("the producer is closed")
)

// MessageError is one message that was not acknowledged.
type MessageError struct {
	Topic string
	Index int // among the messages of the call
	Size  int // bytes, before compression
	Err   error
}

func (e *MessageError) Error() string {
	return fmt.Sprintf("topic %s: message %d of %d bytes: %v", e.Topic, e.Index, e.Size, e.Err)
}

func (e *MessageError) Unwrap() error { return e.Err }

// MessageErrors are the messages of one call to Produce that were not
// acknowledged, ascending by index. All others were.
type MessageErrors []*MessageError

func (e MessageErrors) Error() string {
	if len(e) == 1 {
		return e[0].Error()
	}
	return fmt.Sprintf("%v (and %d more)", e[0], len(e)-1)
}

// Unwrap lets errors.Is and errors.As look at each of them.
func (e MessageErrors) Unwrap() []error {
	errs := make([]error, len(e))
	for i, m := range e {
		errs[i] = m
	}
	return errs
}

const (
	batchBytes   = 1_000_000   // of messages in a batch, before compression: under the default limit of brokers and topics
	partitionTTL = time.Minute // after which the number of partitions is looked up again
)

// Producer sends messages to one topic, at least once: a batch whose
// acknowledgement was lost is sent again, so a consumer may see it twice. The
// partition is murmur2(key) modulo their number, as with Java's producer and
// librdkafka's murmur2_random. It may be used by several goroutines.
//
// A partition has one batch of up to ~1 MB on its way at a time; what arrives
// meanwhile is the next one. So one caller waits for no timer, and many share
// batches. Order within a partition holds among messages of one call, unless
// some of them fail.
type Producer struct {
	c     *Client
	topic string

	mu         sync.Mutex
	partitions []int
	looked     time.Time           // when partitions was
	queues     map[int][]*outgoing // by partition; an entry, even an empty one, has a goroutine sending
	closed     bool
	senders    sync.WaitGroup
}

type outgoing struct {
	Message
	index int
	call  *produceCall
}

// produceCall collects what became of the messages of one call.
type produceCall struct {
	done chan struct{} // closed when waiting reaches 0

	mu      sync.Mutex
	waiting int
	failed  MessageErrors
	gone    bool // the caller has left: send no more of it
}

// Producer returns a producer for a topic, which must exist when it is used.
func (c *Client) Producer(topic string) *Producer {
	return &Producer{c: c, topic: topic, queues: make(map[int][]*outgoing)}
}

// Produce sends the messages and returns when every in-sync replica has each of
// them, or after Options.DeliveryTimeout of trying. If some failed the error is
// a MessageErrors. If ctx ends first it is ctx's, and any of the messages may
// or may not be in the log. After an error, the messages' bytes must not be
// written to: they may still be being sent.
func (p *Producer) Produce(ctx context.Context, msgs ...Message) error {
	if len(msgs) == 0 {
		return nil
	}
	partitions, err := p.look(ctx)
	if err != nil {
		return fmt.Errorf("produce to %s: %w", p.topic, err)
	}
	call := &produceCall{done: make(chan struct{}), waiting: len(msgs)}
	var hash kafka.Murmur2Balancer
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return ErrClosed
	}
	for i, m := range msgs {
		part := hash.Balance(kafka.Message{Key: m.Key}, partitions...)
		queue, sending := p.queues[part]
		p.queues[part] = append(queue, &outgoing{m, i, call})
		if !sending {
			p.senders.Go(func() { p.send(part) })
		}
	}
	p.mu.Unlock()
	select {
	case <-call.done:
	case <-ctx.Done():
		call.mu.Lock()
		call.gone = true
		call.mu.Unlock()
		return fmt.Errorf("produce to %s: %w", p.topic, ctx.Err())
	}
	if len(call.failed) == 0 {
		return nil
	}
	slices.SortFunc(call.failed, func(a, b *MessageError) int { return cmp.Compare(a.Index, b.Index) })
	return call.failed
}

// Close waits for the batches that are on their way. It leaves the Client open.
func (p *Producer) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.senders.Wait()
	return nil
}

// look returns the topic's partitions, ascending, asking for them now and then.
func (p *Producer) look(ctx context.Context) ([]int, error) {
	p.mu.Lock()
	partitions := p.partitions
	if time.Since(p.looked) > partitionTTL {
		partitions = nil
	}
	p.mu.Unlock()
	if partitions != nil {
		return partitions, nil
	}
	err := p.c.retry(ctx, func() error {
		info, err := p.c.metadata(ctx, p.topic)
		partitions = info.Partitions
		return err
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.partitions, p.looked = partitions, time.Now()
	}
	return partitions, err
}

// send empties one partition's queue, batch by batch.
func (p *Producer) send(part int) {
	for {
		p.mu.Lock()
		queue := p.queues[part]
		if len(queue) == 0 {
			delete(p.queues, part)
			p.mu.Unlock()
			return
		}
		n, size := 0, 0
		for n < len(queue) && (n == 0 || size+queue[n].size() <= batchBytes) {
			size += queue[n].size()
			n++
		}
		p.queues[part] = queue[n:]
		p.mu.Unlock()
		p.deliver(part, queue[:n])
	}
}

// deliver sends one batch and tells its callers. A batch that is too large for
// the broker is halved until what is too large stands alone.
func (p *Producer) deliver(part int, batch []*outgoing) {
	batch = slices.DeleteFunc(batch, func(m *outgoing) bool {
		m.call.mu.Lock()
		defer m.call.mu.Unlock()
		return m.call.gone
	})
	if len(batch) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), p.c.o.DeliveryTimeout)
	defer cancel()
	err := p.c.produce(ctx, topicPartition{p.topic, part}, batch)
	if errors.Is(err, kafka.MessageSizeTooLarge) || errors.Is(err, kafka.RecordListTooLarge) {
		if half := len(batch) / 2; half > 0 {
			p.deliver(part, batch[:half])
			p.deliver(part, batch[half:])
			return
		}
		err = ErrTooLarge
	}
	for _, m := range batch {
		m.call.mu.Lock()
		if err != nil {
			m.call.failed = append(m.call.failed, &MessageError{p.topic, m.index, m.size(), err})
		}
		if m.call.waiting--; m.call.waiting == 0 {
			close(m.call.done)
		}
		m.call.mu.Unlock()
	}
}

// produce sends one batch until it is acknowledged.
func (c *Client) produce(ctx context.Context, tp topicPartition, batch []*outgoing) error {
	return c.atLeader(ctx, tp, protocol.Produce, c.o.RequestTimeout, func() (call, result) {
		var res *produce.Response
		return func(rw io.ReadWriter, version int16) error {
				req := &produce.Request{
					Acks: int16(kafka.RequireAll), Timeout: int32(c.o.RequestTimeout.Milliseconds()),
					Topics: []produce.RequestTopic{{Topic: tp.topic, Partitions: []produce.RequestPartition{{
						Partition: int32(tp.partition),
						RecordSet: protocol.RecordSet{Attributes: protocol.Attributes(compress.Zstd), Records: &batchReader{batch: batch}},
					}}}},
				}
				req.Prepare(version)
				m, err := protocol.RoundTrip(rw, version, correlation, c.o.ClientID, req)
				res, _ = m.(*produce.Response)
				return err
			}, func() error {
				if len(res.Topics) != 1 || len(res.Topics[0].Partitions) != 1 {
					return errMalformed
				}
				return codeError(res.Topics[0].Partitions[0].ErrorCode)
			}
	})
}

// batchReader hands a batch to kafka-go's encoder.
type batchReader struct {
	batch  []*outgoing
	record protocol.Record
}

func (r *batchReader) ReadRecord() (*protocol.Record, error) {
	if len(r.batch) == 0 {
		return nil, io.EOF
	}
	m := r.batch[0]
	r.batch = r.batch[1:]
	r.record = protocol.Record{Time: m.Time, Key: protocol.NewBytes(m.Key), Value: protocol.NewBytes(m.Value), Headers: r.record.Headers[:0]}
	for _, h := range m.Headers {
		r.record.Headers = append(r.record.Headers, protocol.Header(h))
	}
	return &r.record, nil
}
