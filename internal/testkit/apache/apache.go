//go:build unix

// Package apache runs Apache Kafka for tests: brokers that are controllers too
// (KRaft), each a process of its own on the loopback interface, that can be
// stopped, killed, paused and started again. It needs a Java runtime of 17 or
// later and, the first time, Maven.
//
// The nodes are small and quick: little heap, short sessions, a log cleaner that
// looks twice a second for work. Topics are never created by being asked for.
package apache

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/google/uuid"
)

// Options of Start; the zero value is one node without security.
type Options struct {
	Nodes  int  // 1 if 0. Topics are replicated to min(3, Nodes), of which 2 must be in sync if there are 3.
	Secure bool // also listen for SASL and TLS: see SASL and TLS of Cluster
}

// Cluster is a running cluster. Methods of the same node must not be called at
// the same time; those of different nodes may be.
type Cluster struct {
	nodes  []*node
	ports  []ports
	secure bool
	ca     []byte
}

// ports of one node, on 127.0.0.1.
type ports struct{ plain, controller, sasl, tls, saslTLS int }

// Start runs a cluster whose settings, logs and data are under dir, which must
// be empty, and returns when all its brokers serve. The caller must Close it.
// On Linux the nodes also end when the calling process does, however that ends.
func Start(ctx context.Context, dir string, o Options) (*Cluster, error) {
	jars, err := Jars(ctx)
	if err != nil {
		return nil, err
	}
	java, err := exec.LookPath("java")
	if err != nil {
		return nil, fmt.Errorf("apache: Kafka runs on Java: %w", err)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, fmt.Errorf("apache: %w", err)
	}
	c := &Cluster{secure: o.Secure}
	if c.ports, err = freePorts(max(1, o.Nodes)); err != nil {
		return nil, fmt.Errorf("apache: %w", err)
	}
	for i := range c.ports {
		c.nodes = append(c.nodes, newNode(i+1, filepath.Join(dir, fmt.Sprintf("node%d", i+1)), java, jars))
	}
	if err := c.prepare(); err != nil {
		return nil, fmt.Errorf("apache: %w", err)
	}
	if err := c.each((*node).start); err != nil {
		return nil, errors.Join(fmt.Errorf("apache: %w", err), c.Close())
	}
	return c, nil
}

// Brokers are the addresses, HOST:PORT, of the listeners without security, by
// node.
func (c *Cluster) Brokers() []string { return c.addresses(func(p ports) int { return p.plain }) }

// Stop ends node i, from 0, in order: it hands its partitions over first.
func (c *Cluster) Stop(i int) error { return named(c.nodes[i].stop()) }

// Kill ends node i at once (SIGKILL).
func (c *Cluster) Kill(i int) error { return named(c.nodes[i].kill()) }

// Pause stops node i from running (SIGSTOP), its connections left open.
func (c *Cluster) Pause(i int) error { return named(c.nodes[i].signal(syscall.SIGSTOP)) }

// Resume lets a paused node run on.
func (c *Cluster) Resume(i int) error { return named(c.nodes[i].signal(syscall.SIGCONT)) }

// Restart runs node i again, on its ports and data, after Stop or Kill, and
// returns when it serves. Without a majority of the nodes it can't.
func (c *Cluster) Restart(i int) error { return named(c.nodes[i].start()) }

// Close kills what runs. The files under the cluster's folder are the caller's.
func (c *Cluster) Close() error {
	return named(c.each(func(n *node) error {
		if n.run == nil {
			return nil
		}
		return n.kill()
	}))
}

func named(err error) error {
	if err != nil {
		return fmt.Errorf("apache: %w", err)
	}
	return nil
}

// each calls f for all nodes at the same time.
func (c *Cluster) each(f func(*node) error) error {
	errs := make([]error, len(c.nodes))
	var wg sync.WaitGroup
	for i, n := range c.nodes {
		wg.Go(func() { errs[i] = f(n) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (c *Cluster) addresses(port func(ports) int) []string {
	var out []string
	for _, p := range c.ports {
		out = append(out, address(port(p)))
	}
	return out
}

func address(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

func newNode(id int, dir, java, jars string) *node {
	return &node{id: id, dir: dir, jvm: []string{java,
		"-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
		// What a killed process leaves stays in its folder.
		"-XX:-UsePerfData", "-Djava.io.tmpdir=" + dir,
		"-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
		"-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info", // startedLine
		"-Dorg.slf4j.simpleLogger.showDateTime=true",
		"-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
		"-cp", filepath.Join(jars, "*"),
	}}
}

// prepare writes the nodes' settings and formats their data folders.
func (c *Cluster) prepare() error {
	for i, n := range c.nodes {
		if err := os.MkdirAll(n.dir, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(n.settings(), []byte(c.settings(i)), 0o600); err != nil {
			return err
		}
	}
	if c.secure {
		if err := c.writeCertificate(); err != nil {
			return err
		}
	}
	args := []string{"format", "-t", clusterID(uuid.New())}
	if c.secure {
		args = append(args, scramUsers()...)
	}
	return c.each(func(n *node) error {
		out, err := n.command("kafka.tools.StorageTool", append(args[:len(args):len(args)], "-c", n.settings())...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("format node %d: %w\n%s", n.id, err, out[max(0, len(out)-tailBytes):])
		}
		return nil
	})
}

// clusterID is id as Kafka spells one. Its first bit is cleared, for an id that
// begins with "-" (one in 64) would be read as an option of the tool that
// formats; Kafka's own Uuid.randomUuid throws such ids away.
func clusterID(id uuid.UUID) string {
	id[0] &= 0x7f
	return base64.RawURLEncoding.EncodeToString(id[:])
}

// settings of node i, as a Java properties file.
func (c *Cluster) settings(i int) string {
	var voters []string
	for j, p := range c.ports {
		voters = append(voters, fmt.Sprintf("%d@%s", j+1, address(p.controller)))
	}
	replicas := min(3, len(c.nodes))
	inSync := max(1, replicas-1)
	p := c.ports[i]
	listeners := []string{"PLAINTEXT://" + address(p.plain)}
	protocols := []string{"PLAINTEXT:PLAINTEXT", "CONTROLLER:PLAINTEXT"}
	if c.secure {
		listeners = append(listeners, "SASL://"+address(p.sasl), "TLS://"+address(p.tls), "SASL_TLS://"+address(p.saslTLS))
		protocols = append(protocols, "SASL:SASL_PLAINTEXT", "TLS:SSL", "SASL_TLS:SASL_SSL")
	}
	s := fmt.Sprintf(`process.roles=broker,controller
node.id=%d
log.dirs=%s
controller.quorum.voters=%s
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
advertised.listeners=%[4]s
listeners=%[4]s,CONTROLLER://%s
listener.security.protocol.map=%s
default.replication.factor=%[7]d
offsets.topic.replication.factor=%[7]d
transaction.state.log.replication.factor=%[7]d
min.insync.replicas=%[8]d
transaction.state.log.min.isr=%[8]d
`, c.nodes[i].id, c.nodes[i].data(), strings.Join(voters, ","), strings.Join(listeners, ","), address(p.controller),
		strings.Join(protocols, ","), replicas, inSync) + common
	if c.secure {
		s += c.secureSettings(i)
	}
	return s
}

const common = `auto.create.topics.enable=false
unclean.leader.election.enable=false
message.max.bytes=16777216
replica.fetch.max.bytes=16777216
offsets.topic.num.partitions=3
transaction.state.log.num.partitions=3
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
log.retention.check.interval.ms=500
log.cleaner.backoff.ms=500
log.cleaner.min.cleanable.ratio=0.01
log.cleaner.dedupe.buffer.size=4194304
broker.heartbeat.interval.ms=300
broker.session.timeout.ms=3000
num.network.threads=2
num.io.threads=4
`

// freePorts finds ports for n nodes. They lie below the range that systems give
// to outgoing connections: a client that dials a node which is down could be
// given the node's own port otherwise, and keep it from coming back.
func freePorts(n int) ([]ports, error) {
	var held []net.Listener
	defer func() {
		for _, l := range held {
			l.Close()
		}
	}()
	pick := func() (int, error) {
		for range 100 {
			port := 20000 + rand.IntN(12000)
			if l, err := net.Listen("tcp", address(port)); err == nil {
				held = append(held, l)
				return port, nil
			}
		}
		return 0, errors.New("no free ports")
	}
	out := make([]ports, n)
	for i := range out {
		for _, p := range []*int{&out[i].plain, &out[i].controller, &out[i].sasl, &out[i].tls, &out[i].saslTLS} {
			var err error
			if *p, err = pick(); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}
