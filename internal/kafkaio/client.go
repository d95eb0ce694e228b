// Package kafkaio is the only room that speaks to Kafka. It takes connections,
// encoding and group membership from kafka-go, and reads record batches itself.
//
// kafka-go's own readers are not used, for they lose or invent records: none
// checks that every record of a batch was decoded; Reader and Conn deliver
// aborted records and control markers, skip silently over records that
// retention removed, do not check the CRC, and panic on a compacted topic with
// empty batches; and no API of it tells where a batch ends, so that a log that
// ends in a control batch can't be read to its end. So the bytes of a fetch
// are exchanged over kafka-go's connections (see exchange) and decoded in
// decode.go, by the rules of https://kafka.apache.org/documentation/#messageformat.
//
// Errors name topic, partition and offset, and never the content of a record.
package kafkaio

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/listoffsets"
	"github.com/segmentio/kafka-go/sasl"
)

// Header is one message header. It is an alias of an unnamed struct so that
// packages which must not import each other can share it.
type Header = struct {
	Key   string
	Value []byte
}

// Options of a Client. A zero field takes the default named beside it.
type Options struct {
	ClientID        string        // "winnow": how brokers name us in logs and quotas
	MaxBytes        int           // 1 MiB: batches that one fetch asks for; a larger batch still arrives, alone
	MaxWait         time.Duration // 250 ms: how long a fetch waits for a first record
	RequestTimeout  time.Duration // 10 s: for one request and its answer, on top of MaxWait
	DeliveryTimeout time.Duration // 2 min: how long Produce tries to get a batch acknowledged
	SessionTimeout  time.Duration // 30 s: a group member silent for longer loses its partitions
	TLS             *tls.Config   // nil: connections are not encrypted; its ServerName is by default the broker's host
	Login           *Login        // nil: none
	OnRetry         func(error)   // nil: called, from any goroutine, with each error that is retried
}

// ErrUnknownTopic is returned for a topic that the cluster doesn't have.
var ErrUnknownTopic = errors.New("the cluster has no such topic")

// Client speaks to one cluster. It may be used by several goroutines.
type Client struct {
	o         Options // but for the Login, lest it be printed along with the Client
	login     string  // how the Login prints
	brokers   []string
	addr      net.Addr
	transport *kafka.Transport

	replies sync.Pool // of *reply

	mu      sync.Mutex
	leaders map[topicPartition]int32
	queues  map[int32]*fetchQueue // by leader
	topics  map[string]topicIDs
}

// topicIDs are the first and the last id that a topic was seen with.
type topicIDs struct{ first, last string }

type topicPartition struct {
	topic     string
	partition int
}

func (tp topicPartition) String() string { return fmt.Sprintf("%s/%d", tp.topic, tp.partition) }

// Dial returns a client of the cluster that the brokers (HOST:PORT) belong to.
// It opens no connection yet: an unreachable cluster shows in the first call.
func Dial(brokers []string, o Options) (*Client, error) {
	if len(brokers) == 0 {
		return nil, errors.New("kafka: no broker address")
	}
	for _, b := range brokers {
		if _, _, err := net.SplitHostPort(b); err != nil {
			return nil, fmt.Errorf("kafka: broker address: %w", err)
		}
	}
	setDefault(&o.ClientID, "winnow")
	setDefault(&o.MaxBytes, 1<<20)
	setDefault(&o.MaxWait, 250*time.Millisecond)
	setDefault(&o.RequestTimeout, 10*time.Second)
	setDefault(&o.DeliveryTimeout, 2*time.Minute)
	setDefault(&o.SessionTimeout, 30*time.Second)
	if o.OnRetry == nil {
		o.OnRetry = func(error) {}
	}
	var mechanism sasl.Mechanism
	login := ""
	if o.Login != nil {
		l, err := *o.Login, error(nil)
		if mechanism, err = l.mechanism(); err != nil {
			return nil, fmt.Errorf("kafka: login: %w", err)
		}
		mechanism = watched{mechanism}
		login, o.Login = fmt.Sprint(l), nil
	}
	return &Client{
		o:       o,
		login:   login,
		brokers: slices.Clone(brokers),
		addr:    kafka.TCP(brokers...),
		// The transport looks its list of brokers up again every few seconds;
		// which of them leads a partition we find out ourselves (see leader).
		transport: &kafka.Transport{
			ClientID: o.ClientID, DialTimeout: o.RequestTimeout, MetadataTTL: 4 * time.Second, TLS: o.TLS, SASL: mechanism,
		},
		leaders: make(map[topicPartition]int32),
		queues:  make(map[int32]*fetchQueue),
		topics:  make(map[string]topicIDs),
	}, nil
}

func setDefault[T comparable](v *T, d T) {
	if *v == *new(T) {
		*v = d
	}
}

// Close closes the connections that no call is using.
func (c *Client) Close() error {
	c.transport.CloseIdleConnections()
	return nil
}

// EnsureTopic creates a topic with the cluster's default replication unless it
// exists; an existing topic is left as it is, whatever its partitions and
// configuration. It returns when every partition has a leader.
func (c *Client) EnsureTopic(ctx context.Context, name string, partitions int, config map[string]string) error {
	t := kafka.TopicConfig{Topic: name, NumPartitions: partitions, ReplicationFactor: -1}
	for k, v := range config {
		t.ConfigEntries = append(t.ConfigEntries, kafka.ConfigEntry{ConfigName: k, ConfigValue: v})
	}
	err := c.retry(ctx, func() error {
		ctx, cancel := context.WithTimeout(ctx, c.o.RequestTimeout)
		defer cancel()
		// Asking first needs no right to create; and kafka-go does not say why
		// it can't reach the controller.
		if _, err := c.metadata(ctx, name); !errors.Is(err, kafka.UnknownTopicOrPartition) {
			return err
		}
		kc := kafka.Client{Addr: c.addr, Transport: c.transport, Timeout: c.o.RequestTimeout}
		res, err := kc.CreateTopics(ctx, &kafka.CreateTopicsRequest{Addr: c.addr, Topics: []kafka.TopicConfig{t}})
		if err == nil {
			err = res.Errors[name]
		}
		if errors.Is(err, kafka.TopicAlreadyExists) {
			return nil
		}
		return err
	})
	if err == nil {
		err = c.retry(ctx, func() error { _, err := c.metadata(ctx, name); return err })
	}
	if err != nil {
		return fmt.Errorf("create topic %s: %w", name, err)
	}
	return nil
}

// TopicInfo is a topic as the cluster sees it now.
type TopicInfo struct {
	Cluster    string // the cluster's id; empty if it has none
	ID         string // 32 hex digits that change when a topic is deleted and made again; empty before Kafka 2.8
	Partitions []int  // ascending
}

// Topic asks the cluster, not a cache. The error is ErrUnknownTopic if there is
// no such topic, which is also what a broker says for a moment after another
// one created it.
func (c *Client) Topic(ctx context.Context, name string) (TopicInfo, error) {
	var info TopicInfo
	err := c.retry(ctx, func() (err error) {
		info, err = c.metadata(ctx, name)
		if errors.Is(err, kafka.UnknownTopicOrPartition) {
			err = ErrUnknownTopic
		}
		return err
	})
	if err != nil {
		return TopicInfo{}, fmt.Errorf("topic %s: %w", name, err)
	}
	return info, nil
}

// Range is a partition's readable log: Start is the first offset that it still
// holds and End the one that the next record will get. End stops short of a
// transaction that is still open (the last stable offset).
type Range struct{ Start, End int64 }

// Offsets returns the range of each of the partitions.
func (c *Client) Offsets(ctx context.Context, topic string, partitions []int) (map[int]Range, error) {
	out := make(map[int]Range, len(partitions))
	for _, p := range partitions {
		r, err := c.offsets(ctx, topicPartition{topic, p}, readCommitted)
		if err != nil {
			return nil, err
		}
		out[p] = r
	}
	return out, nil
}

const (
	readUncommitted int8 = 0
	readCommitted   int8 = 1
)

func (c *Client) offsets(ctx context.Context, tp topicPartition, isolation int8) (r Range, err error) {
	if r.Start, err = c.listOffset(ctx, tp, isolation, kafka.FirstOffset); err == nil {
		r.End, err = c.listOffset(ctx, tp, isolation, kafka.LastOffset)
	}
	if err != nil {
		return Range{}, fmt.Errorf("offsets of %v: %w", tp, err)
	}
	return r, nil
}

func (c *Client) listOffset(ctx context.Context, tp topicPartition, isolation int8, which int64) (int64, error) {
	var offset int64
	err := c.atLeader(ctx, tp, protocol.ListOffsets, c.o.RequestTimeout, func() (call, result) {
		var res *listoffsets.Response
		return func(rw io.ReadWriter, version int16) error {
				m, err := protocol.RoundTrip(rw, version, 1, c.o.ClientID, &listoffsets.Request{
					ReplicaID: -1, IsolationLevel: isolation,
					Topics: []listoffsets.RequestTopic{{Topic: tp.topic, Partitions: []listoffsets.RequestPartition{
						{Partition: int32(tp.partition), CurrentLeaderEpoch: -1, Timestamp: which},
					}}},
				})
				res, _ = m.(*listoffsets.Response)
				return err
			}, func() error {
				if len(res.Topics) != 1 || len(res.Topics[0].Partitions) != 1 {
					return errMalformed
				}
				offset = res.Topics[0].Partitions[0].Offset
				return codeError(res.Topics[0].Partitions[0].ErrorCode)
			}
	})
	return offset, err
}

// errMalformed is a reply that does not follow the protocol.
var errMalformed = errors.New("malformed reply")

func codeError(code int16) error {
	if code == 0 {
		return nil
	}
	return kafka.Error(code)
}

// An exchange is one request whose bytes we write and read ourselves, over a
// connection that kafka-go opened, authenticated and pooled. The connection
// carries one exchange at a time; do must read exactly one reply. An error of
// do closes the connection, so it returns only errors of the connection.
type exchange struct {
	key     protocol.ApiKey
	node    int32 // the broker's id, or -1 for any
	do      call
	version int16 // of the request, as negotiated by kafka-go
}

type (
	call   func(rw io.ReadWriter, version int16) error
	result func() error // judges the reply that a call has read
)

func (e *exchange) ApiKey() protocol.ApiKey               { return e.key }
func (e *exchange) Prepare(version int16)                 { e.version = version }
func (*exchange) Required(map[protocol.ApiKey]int16) bool { return true }
func (e *exchange) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	return nil, e.do(rw, e.version)
}

func (e *exchange) Broker(cluster protocol.Cluster) (protocol.Broker, error) {
	b, ok := cluster.Brokers[e.node]
	if !ok && e.node >= 0 {
		return b, kafka.BrokerNotAvailable
	}
	if !ok {
		b.ID = -1
	}
	return b, nil
}

// exchange runs do on a connection to the node. When ctx ends first it returns
// while do may still be running, so what do writes to is ours again only after
// a nil error.
func (c *Client) exchange(ctx context.Context, key protocol.ApiKey, node int32, timeout time.Duration, do call) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return watchLogin(ctx, func(ctx context.Context) error {
		_, err := c.transport.RoundTrip(ctx, c.addr, &exchange{key: key, node: node, do: do})
		return err
	})
}

// atLeader makes a call to the partition's leader and returns what its result
// says. Each attempt gets a call of its own from attempt, because an abandoned
// one may still be writing to its variables.
func (c *Client) atLeader(ctx context.Context, tp topicPartition, key protocol.ApiKey, timeout time.Duration, attempt func() (call, result)) error {
	look := false
	return c.retry(ctx, func() error {
		node, err := c.leader(ctx, tp, look)
		if err != nil {
			return err
		}
		look = true // whatever goes wrong now, a new leader may be the cure
		do, judge := attempt()
		if err := c.exchange(ctx, key, node, timeout, do); err != nil {
			return err
		}
		return judge()
	})
}

// leader returns the node that leads the partition, from memory or, if look,
// from the cluster.
func (c *Client) leader(ctx context.Context, tp topicPartition, look bool) (int32, error) {
	if !look {
		c.mu.Lock()
		node, ok := c.leaders[tp]
		c.mu.Unlock()
		if ok {
			return node, nil
		}
	}
	info, err := c.metadata(ctx, tp.topic)
	if err != nil {
		return -1, err
	}
	if !slices.Contains(info.Partitions, tp.partition) {
		return -1, kafka.UnknownTopicOrPartition
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaders[tp], nil
}

// sameTopic returns a *TopicChangedError if the topic was seen with two ids.
func (c *Client) sameTopic(topic string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ids := c.topics[topic]; ids.first != ids.last {
		return &TopicChangedError{topic, ids.first, ids.last}
	}
	return nil
}

// retry calls do until it succeeds, fails in a way that waiting won't mend, or
// ctx ends; then the error is ctx's, along with the one that was being retried.
func (c *Client) retry(ctx context.Context, do func() error) error {
	start := time.Now()
	var last error
	logins := 0
	for n := 0; ; n++ {
		err := c.explainLogin(do())
		if logins++; !errors.Is(err, ErrLogin) {
			logins = 0
		}
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
		// A topic made a moment ago is not known to every broker yet; one that
		// stays unknown does not exist.
		case errors.Is(err, kafka.UnknownTopicOrPartition) && time.Since(start) > c.o.RequestTimeout:
			return ErrUnknownTopic
		case !temporary(err), logins == maxLogins:
			return err
		default:
			last = err
			c.o.OnRetry(err)
			_ = wait(ctx, backoff(n))
		}
		if err := ctx.Err(); err != nil && last != nil {
			return fmt.Errorf("%w, after: %w", err, last)
		} else if err != nil {
			return err
		}
	}
}

// temporary reports whether an error may go away: Kafka calls it retriable, or
// it is one of the connection rather than of what was asked. A refused login may
// (see maxLogins).
func temporary(err error) bool {
	var ke kafka.Error
	var ne net.Error
	var errno syscall.Errno
	switch {
	case hopeless(err):
		return false
	case errors.As(err, &ke):
		return ke.Temporary() || ke == kafka.BrokerNotAvailable || ke == kafka.ReplicaNotAvailable || ke == ErrLogin
	case errors.As(err, &ne), errors.As(err, &errno):
		return true
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, context.DeadlineExceeded)
}

// backoff grows from 50 ms to 3.2 s; half of it is chance, so that clients
// that failed together don't return together.
func backoff(n int) time.Duration {
	d := 50 * time.Millisecond << min(n, 6)
	return d/2 + rand.N(d/2)
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
