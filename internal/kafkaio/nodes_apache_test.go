//go:build kafka

package kafkaio

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"

	"winnow/internal/testkit/apache"
)

// flow is a topic that is written to and read from at the same time.
type flow struct {
	*kafkaTopic
	mu      sync.Mutex
	acked   map[string]bool
	read    map[string]int
	next    map[int]int64         // by partition: where reading goes on
	seen    map[int]time.Time     // by partition: when records last came
	pause   map[int]time.Duration // by partition: the longest time without, since it was last reset
	wrong   error
	changed chan struct{}
}

// newFlow writes, until stop is called, once, with several senders of a key each, and
// reads as a member of a group. stop returns what the two returned.
func newFlow(t *testing.T, k *kafkaTopic) (f *flow, stop func() error) {
	t.Helper()
	f = &flow{kafkaTopic: k, acked: map[string]bool{}, read: map[string]int{}, next: map[int]int64{},
		seen: map[int]time.Time{}, pause: map[int]time.Duration{}, changed: make(chan struct{}, 1)}
	leave := k.consume(t, f.consumePartition)
	ctx, cancel := context.WithCancel(t.Context())
	p := k.Producer(k.name)
	const senders = 12
	sent := make(chan error, senders)
	for i := range senders {
		go func() { sent <- f.send(ctx, p, fmt.Sprint("key-", i)) }()
	}
	return f, func() error {
		cancel()
		var err error
		for range senders {
			if e := <-sent; e != nil {
				err = e
			}
		}
		f.await(t, "all that was acknowledged", func() bool { return f.missing() == 0 })
		if e := leave(); e != nil {
			err = e
		}
		return err
	}
}

func (f *flow) send(ctx context.Context, p *Producer, key string) error {
	for n := 0; wait(ctx, 5*time.Millisecond) == nil; n++ {
		v := fmt.Sprintf("%s %d", key, n)
		// Not ctx: a message that was given up may or may not be in the log.
		if err := p.Produce(context.Background(), Message{Key: []byte(key), Value: []byte(v)}); err != nil {
			return err
		}
		f.mu.Lock()
		f.acked[v] = true
		f.mu.Unlock()
	}
	return nil
}

func (f *flow) consumePartition(ctx context.Context, a *Assignment) error {
	f.mu.Lock()
	at := f.next[a.Partition]
	f.mu.Unlock()
	var b Batch
	for {
		if err := f.Fetch(ctx, f.name, a.Partition, at, &b); err != nil {
			return err
		}
		f.took(a.Partition, &b)
		at = b.Next
	}
}

// took notes what a fetch returned. Nothing of the topic is compacted or in a
// transaction, so offsets follow each other.
func (f *flow) took(partition int, b *Batch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range b.Records {
		if r.Offset != f.next[partition] && f.wrong == nil {
			f.wrong = fmt.Errorf("%s/%d: offset %d after %d", f.name, partition, r.Offset, f.next[partition]-1)
		}
		f.next[partition] = r.Offset + 1
		f.read[string(r.Value)]++
	}
	if now := time.Now(); len(b.Records) > 0 {
		if last, ok := f.seen[partition]; ok {
			f.pause[partition] = max(f.pause[partition], now.Sub(last))
		}
		f.seen[partition] = now
	}
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

func (f *flow) missing() (n int) {
	for v := range f.acked {
		if f.read[v] == 0 {
			n++
		}
	}
	return n
}

// await waits for a condition of what was read.
func (f *flow) await(t *testing.T, what string, met func() bool) {
	t.Helper()
	for deadline := time.After(time.Minute); ; {
		f.mu.Lock()
		ok, wrong := met(), f.wrong
		f.mu.Unlock()
		require.NoError(t, wrong)
		if ok {
			return
		}
		select {
		case <-f.changed:
		case <-deadline:
			require.FailNow(t, "timed out", "waiting for %s", what)
		}
	}
}

// awaitMore waits for n more records of every partition.
func (f *flow) awaitMore(t *testing.T, partitions int, n int64) {
	t.Helper()
	f.mu.Lock()
	from := maps.Clone(f.next)
	f.mu.Unlock()
	f.await(t, fmt.Sprintf("%d records of each partition", n), func() bool {
		for p := range partitions {
			if f.next[p] < from[p]+n {
				return false
			}
		}
		return true
	})
}

func (f *flow) resetPauses() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.pause)
}

func (f *flow) report(t *testing.T, what string, leaderless int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	twice := 0
	for _, n := range f.read {
		twice += n - 1
	}
	t.Logf("%s: no record of partition %d for %v, of the others for %v; %d acknowledged, %d read, %d of them sent twice",
		what, leaderless, f.pause[leaderless], f.pause, len(f.acked), len(f.read)+twice, twice)
}

// awaitReplicas waits until n replicas of each partition are in sync.
func (k *kafkaTopic) awaitReplicas(t *testing.T, n int) {
	t.Helper()
	client := k.franz(t)
	req := kmsg.NewPtrMetadataRequest()
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = &k.name
	req.Topics = append(req.Topics, topic)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		res, err := req.RequestWith(ctx, client)
		require.NoError(t, err)
		least := n
		for _, p := range res.Topics[0].Partitions {
			least = min(least, len(p.ISR))
		}
		if least == n {
			return
		}
		require.NoError(t, wait(ctx, 50*time.Millisecond), "%d of %d replicas in sync", least, n)
	}
}

// The only broker is killed under a running Consume, and comes back.
func TestOwnKafkaBrokerKilled(t *testing.T) {
	cluster := startKafka(t, apache.Options{})
	k := newKafkaTopic(t, cluster.Brokers())
	k.make(t, 3, nil)
	f, stop := newFlow(t, k)
	for range 2 {
		f.awaitMore(t, 3, 100)
		f.resetPauses()
		require.NoError(t, cluster.Kill(0))
		down := time.Now()
		require.NoError(t, cluster.Restart(0))
		t.Logf("the broker was away for %v", time.Since(down))
		f.awaitMore(t, 3, 100)
		f.report(t, "killed", 0)
	}
	require.NoError(t, stop())
}

// The leader of a partition goes, in each of the ways in which one can. The
// others take over; nothing that was acknowledged is lost, and nothing is read
// out of order.
func TestOwnKafkaLeaderGone(t *testing.T) {
	cluster := startKafka(t, apache.Options{Nodes: 3})
	k := newKafkaTopic(t, cluster.Brokers())
	k.make(t, 3, nil)
	f, stop := newFlow(t, k)
	for _, tt := range []struct {
		name         string
		lose, regain func(node int) error
	}{
		{"stopped", cluster.Stop, cluster.Restart},
		{"killed", cluster.Kill, cluster.Restart},
		{"frozen", cluster.Pause, cluster.Resume},
	} {
		k.awaitReplicas(t, 3)
		f.awaitMore(t, 3, 100)
		leader, err := k.leader(t.Context(), topicPartition{k.name, 0}, true)
		require.NoError(t, err)
		f.resetPauses()
		require.NoError(t, tt.lose(int(leader)-1))
		f.awaitMore(t, 3, 100)
		f.report(t, tt.name, 0)
		require.NoError(t, tt.regain(int(leader)-1))
	}
	k.awaitReplicas(t, 3)
	f.awaitMore(t, 3, 100)
	require.NoError(t, stop())
}

// A group whose coordinator is killed goes on with the next one. It does not
// wait for the session of a member that is there all the time.
func TestOwnKafkaCoordinatorKilled(t *testing.T) {
	cluster := startKafka(t, apache.Options{Nodes: 3})
	k := newKafkaTopic(t, cluster.Brokers())
	k.o.SessionTimeout = 45 * time.Second
	k.make(t, 3, nil)
	w := newWorking()
	stop := k.consume(t, w.idle)
	w.await(t, 3)
	req := kmsg.NewPtrFindCoordinatorRequest()
	req.CoordinatorKey, req.CoordinatorKeys = k.name, []string{k.name}
	res, err := req.RequestWith(t.Context(), k.franz(t))
	require.NoError(t, err)
	require.Len(t, res.Coordinators, 1)

	require.NoError(t, cluster.Kill(int(res.Coordinators[0].NodeID)-1))
	killed := time.Now()
	w.await(t, 0)
	away := time.Now()
	w.await(t, 3)
	t.Logf("nobody worked for %v, from %v after the coordinator was killed", time.Since(away), away.Sub(killed))
	require.Less(t, time.Since(killed), k.o.SessionTimeout/2)
	require.NoError(t, stop())
}

// The first broker of the list takes connections and never answers: a member
// joins through the others.
func TestOwnKafkaFirstBrokerFrozen(t *testing.T) {
	cluster := startKafka(t, apache.Options{Nodes: 3})
	k := newKafkaTopic(t, cluster.Brokers())
	k.make(t, 3, nil)
	k.awaitReplicas(t, 3)
	// The cluster makes its topic of groups when the first one is asked for, and
	// cannot with a broker missing.
	w := newWorking()
	stop := k.consume(t, w.idle)
	w.await(t, 3)
	require.NoError(t, stop())
	require.NoError(t, cluster.Pause(0))
	t.Cleanup(func() { require.NoError(t, cluster.Resume(0)) }) // the topic is deleted through it
	w = newWorking()
	stop = k.consume(t, w.idle)
	w.await(t, 3)
	require.NoError(t, stop())
}
