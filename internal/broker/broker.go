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
