package kafkaio

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"winnow/internal/broker"
)

// stubborn is a run that hands over only when let go.
func stubborn(w *working, letGo <-chan struct{}) func(context.Context, *Assignment) error {
	return func(ctx context.Context, a *Assignment) error {
		w.add(a.Partition, 1)
		<-ctx.Done()
		<-letGo
		w.add(a.Partition, -1)
		return ctx.Err()
	}
}

func newWorking() *working { return &working{now: map[int]int{}, changed: make(chan struct{}, 1)} }

// A member that has handed over waits in JoinGroup for one that has not. Its
// context ends: it leaves at once, and the group does not wait for it.
func TestConsumeEndsWhileJoiningAgain(t *testing.T) {
	o := quick
	o.SessionTimeout, o.RequestTimeout = 10*time.Second, 8*time.Second
	k, c := cluster(t, o, kfake.SeedTopics(4, "t"))
	slow, prompt, third := newWorking(), newWorking(), newWorking()
	letGo, free := make(chan struct{}), make(chan struct{})
	close(free)
	one := start(t, c, stubborn(slow, letGo))
	slow.await(t, 4)
	two := start(t, c, stubborn(prompt, free))
	for range 4 {
		letGo <- struct{}{}
	}
	slow.await(t, 2)
	prompt.await(t, 2)

	joins := k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.JoinGroup}, Observe: true, Count: -1})
	three := start(t, c, stubborn(third, free))
	prompt.await(t, 0)
	require.NoError(t, joins.Wait(t.Context(), 2), "three and two")
	began := time.Now()
	require.NoError(t, two())
	took := time.Since(began)
	t.Logf("left in %v", took)
	require.Less(t, took, 3*time.Second)
	close(letGo)
	third.await(t, 2) // the two that go on share the partitions
	require.NoError(t, one())
	third.await(t, 4)
	require.NoError(t, three())
}

// The same in the first join, when kafka-go does not know yet as whom to leave:
// it is given up after RequestTimeout.
func TestConsumeEndsInItsFirstJoin(t *testing.T) {
	o := quick
	o.SessionTimeout, o.RequestTimeout = 20*time.Second, time.Second
	k, c := cluster(t, o, kfake.SeedTopics(2, "t"))
	letGo := make(chan struct{})
	slow := newWorking()
	one := start(t, c, stubborn(slow, letGo))
	slow.await(t, 2)
	joins := k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.JoinGroup}, Observe: true, Count: -1})
	two := start(t, c, stubborn(newWorking(), letGo))
	require.NoError(t, joins.Wait(t.Context(), 1))
	began := time.Now()
	require.NoError(t, two())
	took := time.Since(began)
	t.Logf("left in %v", took)
	require.Less(t, took, o.RequestTimeout+2*time.Second)
	close(letGo)
	require.NoError(t, one())
}

// When its context ends a member stays until its runs have returned, be that
// longer than SessionTimeout, and nobody gets its partitions before.
func TestConsumeHandsOverInItsTime(t *testing.T) {
	k, c := cluster(t, quick, kfake.SeedTopics(2, "t"))
	slow := newWorking()
	hinted := make(chan error, 2)
	beats := k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Heartbeat}, Observe: true, Count: -1})
	stop := start(t, c, func(ctx context.Context, a *Assignment) error {
		slow.add(a.Partition, 1)
		<-ctx.Done()
		seen := beats.Hits()
		if err := beats.Wait(t.Context(), seen+25); err != nil { // two sessions and a half
			return err
		}
		hinted <- a.Hint(7)
		slow.add(a.Partition, -1)
		return ctx.Err()
	})
	slow.await(t, 2)
	began := time.Now()
	require.NoError(t, stop())
	require.Greater(t, time.Since(began), 2*quick.SessionTimeout)
	for range 2 {
		require.NoError(t, <-hinted, "still a member")
	}
	g, err := k.WaitGroupInfo(t.Context(), "g", func(g *kfake.GroupInfo) bool { return g != nil && g.NumAssigned() == 0 })
	require.NoError(t, err)
	require.EqualValues(t, 7, g.Commits["t"][0].Offset)
}

// reader consumes group g and tells what it reads, going on where it was. It
// reads each record once, as long as this process is the only member.
func reader(t *testing.T, c *Client, partitions int) (got chan string, stop func() error) {
	got = make(chan string, 1000)
	positions := make([]atomic.Int64, partitions)
	return got, start(t, c, func(ctx context.Context, a *Assignment) error {
		var b Batch
		for {
			if err := c.Fetch(ctx, "t", a.Partition, positions[a.Partition].Load(), &b); err != nil {
				return err
			}
			for _, v := range values(&b) {
				got <- v
			}
			positions[a.Partition].Store(b.Next)
			_ = a.Hint(b.Next)
		}
	})
}

func receive(t *testing.T, got <-chan string, n int) map[string]int {
	t.Helper()
	out := map[string]int{}
	deadline := time.After(60 * time.Second)
	for range n {
		select {
		case v := <-got:
			out[v]++
		case <-deadline:
			require.FailNow(t, "timed out", "%d of %d", len(out), n)
		}
	}
	return out
}

// The broker, which is also the coordinator, goes away and comes back with its
// log, twice. Nothing is lost, nothing is read twice, and the member is in.
func TestConsumeOverABrokerRestart(t *testing.T) {
	dir := t.TempDir()
	b, err := broker.Start(dir, broker.Options{})
	require.NoError(t, err)
	_, port, err := net.SplitHostPort(b.Addr())
	require.NoError(t, err)
	o := quick
	failing := make(chan error, 10_000)
	o.OnRetry = func(err error) { failing <- err }
	c, err := Dial([]string{b.Addr()}, o)
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.EnsureTopic(t.Context(), "t", 3, nil))
	got, stop := reader(t, c, 3)
	p := c.Producer("t")
	want := map[string]int{}
	produce := func(round int) {
		var msgs []Message
		for i := range 30 {
			v := fmt.Sprint(round, "/", i)
			msgs = append(msgs, Message{Key: []byte(v), Value: []byte(v)})
			want[v] = 1
		}
		require.NoError(t, p.Produce(t.Context(), msgs...))
	}
	seen := map[string]int{}
	for round := range 3 {
		if round > 0 {
			require.NoError(t, b.Close())
			drained(failing)
			<-failing
			var n int
			_, err = fmt.Sscan(port, &n)
			require.NoError(t, err)
			b, err = broker.Start(dir, broker.Options{Port: n})
			require.NoError(t, err)
		}
		produce(round)
		for v, n := range receive(t, got, 30) {
			seen[v] += n
		}
	}
	require.Equal(t, want, seen)
	require.Empty(t, got)
	require.NoError(t, stop())
	require.NoError(t, p.Close())
	require.NoError(t, b.Close())
}

// The coordinator, and leader of some partitions, is gone for good.
func TestConsumeWithoutItsCoordinator(t *testing.T) {
	k, c := cluster(t, quick, kfake.NumBrokers(3), kfake.SeedTopics(6, "t"))
	got, stop := reader(t, c, 6)
	produce := func(v string) {
		for p := range int32(6) {
			put(t, k, p, fmt.Sprint(v, p))
		}
	}
	produce("before")
	receive(t, got, 6)
	for range 2 {
		generation := k.GroupInfo("g").Epoch
		gone := k.CoordinatorFor("g")
		require.NoError(t, k.RemoveNode(gone))
		require.NotEqual(t, gone, k.CoordinatorFor("g"))
		produce("after")
		require.Len(t, receive(t, got, 6), 6)
		_, err := k.WaitGroupInfo(t.Context(), "g", func(g *kfake.GroupInfo) bool { return g != nil && g.Epoch > generation && g.NumAssigned() == 6 })
		require.NoError(t, err)
	}
	require.NoError(t, stop())
}
