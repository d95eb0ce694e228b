// Package broker is the embedded Kafka broker of `make run`, of replays and of
// the tests: kfake, one broker on the loopback interface, its log on disk.
//
// It speaks the real protocol but is not Kafka: one goroutine serves every
// request, there is no replication, and a write is acknowledged when it is in
// the page cache, as with Kafka's default flush settings. It survives a killed
// process; it may lose the last writes in a power failure.
package broker

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// Options of Start; the zero value is ready to use.
type Options struct {
	Port int // TCP port on 127.0.0.1; 0 picks a free one
}

// Broker is a running broker.
type Broker struct {
	cluster *kfake.Cluster
	addr    string
}

// Start runs a broker whose topics, records and group offsets live under dir,
// which is created if absent and continued if a broker used it before. Two
// brokers must not share a dir. Topics are never created by being asked for.
// The caller must Close it.
func Start(dir string, o Options) (*Broker, error) {
	if dir == "" {
		return nil, errors.New("broker: no data directory")
	}
	c, err := kfake.NewCluster(
		kfake.Ports(o.Port),
		kfake.DataDir(dir),
		kfake.ListenFn(listen),
		// Small enough for a test to watch a silent member expire.
		kfake.GroupMinSessionTimeout(100*time.Millisecond),
		// An 8 MiB value with its key, headers and framing, with room to spare.
		kfake.BrokerConfigs(map[string]string{"message.max.bytes": "16777216"}),
	)
	if err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	return &Broker{cluster: c, addr: c.ListenAddrs()[0]}, nil
}

// Addr is the bootstrap address, HOST:PORT.
func (b *Broker) Addr() string { return b.addr }

// Close stops the broker and writes its state to disk. It may be called twice.
func (b *Broker) Close() error {
	b.cluster.Close()
	return nil
}

// linger is how long a broken connection seems to stand: longer than any
// rebalance of ours takes, so that its members get their answer.
//
// kfake starts the session of a member when it has given it the answer to its
// JoinGroup, and never if the connection broke while the member waited for the
// others (kfake's group.reply). Such a member would stay, with the partitions
// that it is then assigned, until the next rebalance.
const linger = time.Minute

func listen(network, address string) (net.Listener, error) {
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, err
	}
	return listener{l}, nil
}

type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &lingering{Conn: c, closed: make(chan struct{})}, nil
}

// lingering is a connection whose end is told late, and only to its reader.
type lingering struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (c *lingering) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		select {
		case <-time.After(linger):
		case <-c.closed:
		}
	}
	return n, err
}

func (c *lingering) Write(b []byte) (int, error) {
	_, _ = c.Conn.Write(b)
	return len(b), nil
}

func (c *lingering) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
