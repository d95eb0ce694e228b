package kafkaio

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// working counts the runs by partition and tells of every change.
type working struct {
	mu      sync.Mutex
	now     map[int]int
	overlap bool
	changed chan struct{}
}

func (w *working) add(p, n int) {
	w.mu.Lock()
	w.now[p] += n
	w.overlap = w.overlap || w.now[p] > 1
	w.mu.Unlock()
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

func (w *working) await(t *testing.T, partitions int) {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		w.mu.Lock()
		n := 0
		for _, c := range w.now {
			n += c
		}
		w.mu.Unlock()
		if n == partitions {
			return
		}
		select {
		case <-w.changed:
		case <-deadline:
			require.FailNow(t, "timed out", "%d of %d runs", n, partitions)
		}
	}
}

// start consumes until stop is called, which returns what Consume returned.
func start(t *testing.T, c *Client, run func(context.Context, *Assignment) error) (stop func() error) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Consume(ctx, "g", "t", run) }()
	return sync.OnceValue(func() error { cancel(); return <-done })
}

func TestConsumeSharesPartitions(t *testing.T) {
	k, c := cluster(t, quick, kfake.SeedTopics(4, "t"))
	all := &working{now: map[int]int{}, changed: make(chan struct{}, 1)}
	member := func() (*working, func() error) {
		w := &working{now: map[int]int{}, changed: make(chan struct{}, 1)}
		return w, start(t, c, func(ctx context.Context, a *Assignment) error {
			w.add(a.Partition, 1)
			all.add(a.Partition, 1)
			<-ctx.Done()
			all.add(a.Partition, -1)
			w.add(a.Partition, -1)
			return ctx.Err()
		})
	}
	leaves := k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.LeaveGroup}, Observe: true, Count: -1})
	one, stopOne := member()
	defer stopOne()
	one.await(t, 4)
	two, stopTwo := member()
	defer stopTwo()
	two.await(t, 2)
	one.await(t, 2)
	require.NoError(t, stopOne())
	one.await(t, 0)
	two.await(t, 4)
	g, err := k.WaitGroupStable(t.Context(), "g", 1)
	require.NoError(t, err)
	require.Equal(t, 4, g.NumAssigned())
	require.NoError(t, stopTwo())
	require.Equal(t, 2, leaves.Hits(), "members leave, rather than expire")
	require.False(t, all.overlap, "a partition was handed over while still worked on")
}

func TestConsumeNewPartitions(t *testing.T) {
	k, c := cluster(t, quick, kfake.SeedTopics(1, "t"))
	w := &working{now: map[int]int{}, changed: make(chan struct{}, 1)}
	stop := start(t, c, func(ctx context.Context, a *Assignment) error {
		w.add(a.Partition, 1)
		<-ctx.Done()
		w.add(a.Partition, -1)
		return nil
	})
	defer stop()
	w.await(t, 1)
	grow(t, k, 3)
	w.await(t, 3)
	require.NoError(t, stop())
}

// grow gives topic t more partitions.
func grow(t *testing.T, k *kfake.Cluster, partitions int32) {
	t.Helper()
	req := kmsg.NewPtrCreatePartitionsRequest()
	topic := kmsg.NewCreatePartitionsRequestTopic()
	topic.Topic, topic.Count = "t", partitions
	req.Topics = append(req.Topics, topic)
	req.TimeoutMillis = 1000
	_, err := req.RequestWith(t.Context(), franz(t, k))
	require.NoError(t, err)
}

// Partitions that are added once the assignments of a join are made, and before
// any count is taken after it, are noticed all the same.
func TestConsumeNewPartitionsDuringJoin(t *testing.T) {
	k, c := cluster(t, quick, kfake.SeedTopics(1, "t"))
	k.ControlKey(int16(kmsg.SyncGroup), func(kmsg.Request) (kmsg.Response, error, bool) {
		k.SleepControl(func() { grow(t, k, 3) })
		return nil, nil, false
	})
	w := &working{now: map[int]int{}, changed: make(chan struct{}, 1)}
	stop := start(t, c, func(ctx context.Context, a *Assignment) error {
		w.add(a.Partition, 1)
		<-ctx.Done()
		w.add(a.Partition, -1)
		return nil
	})
	defer stop()
	w.await(t, 3)
	require.NoError(t, stop())
}

func TestConsumeHint(t *testing.T) {
	k, c := cluster(t, quick, kfake.SeedTopics(2, "t"))
	for _, want := range []int64{-1, 41} { // the second member sees the first one's
		hinted := make(chan int64, 1)
		var old *Assignment
		stop := start(t, c, func(ctx context.Context, a *Assignment) error {
			if a.Partition == 1 {
				old = a
				hinted <- a.Hinted
				return a.Hint(41)
			}
			return nil // done early: the member keeps its partitions
		})
		require.Equal(t, want, <-hinted)
		_, err := k.WaitGroupInfo(t.Context(), "g", func(g *kfake.GroupInfo) bool { return g != nil && g.Commits["t"][1].Offset == 41 })
		require.NoError(t, err)
		require.NoError(t, stop())
		require.ErrorContains(t, old.Hint(50), "hint of t/1@50: ", "the generation has ended")
	}
}

func TestConsumeErrors(t *testing.T) {
	o := quick
	retried := make(chan error, 100)
	o.OnRetry = func(err error) { retried <- err }
	k, c := cluster(t, o, kfake.SeedTopics(2, "t"))
	idle := func(ctx context.Context, _ *Assignment) error { <-ctx.Done(); return ctx.Err() }

	t.Run("a run's error ends it, and the other runs", func(t *testing.T) {
		boom := errors.New("boom")
		returned := make(chan int, 2)
		err := c.Consume(t.Context(), "g", "t", func(ctx context.Context, a *Assignment) error {
			defer func() { returned <- a.Partition }()
			if a.Partition == 0 {
				return boom
			}
			<-ctx.Done()
			return ctx.Err()
		})
		require.Equal(t, boom, err)
		require.Len(t, returned, 2)
	})
	t.Run("what passes is retried", func(t *testing.T) {
		for _, key := range []kmsg.Key{kmsg.FindCoordinator, kmsg.JoinGroup, kmsg.SyncGroup, kmsg.Heartbeat} {
			ran := make(chan struct{}, 10)
			h := k.Fault(kfake.Fault{Keys: []kmsg.Key{key}, Err: kerr.NotCoordinator})
			stop := start(t, c, func(ctx context.Context, a *Assignment) error { ran <- struct{}{}; return idle(ctx, a) })
			<-ran
			require.NoError(t, h.Wait(t.Context(), 1), key.Name())
			<-ran // the other partition; after the heartbeat's, another generation
			require.NoError(t, stop(), key.Name())
		}
		require.GreaterOrEqual(t, len(retried), 3)
		require.ErrorContains(t, <-retried, "group g: ")
	})
	t.Run("what is refused is not", func(t *testing.T) {
		k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.JoinGroup}, Err: kerr.GroupAuthorizationFailed})
		require.ErrorContains(t, c.Consume(t.Context(), "g", "t", idle), "group g: [30] Group Authorization Failed")
	})
	t.Run("no group", func(t *testing.T) {
		require.ErrorContains(t, c.Consume(t.Context(), "", "t", idle), "without an ID")
	})
}

// Whatever a coordinator says to a member's leaving is heard, in every version
// of its reply: one that is no coordinator must not seem to agree.
func TestLeaveGroup(t *testing.T) {
	versions := kversion.Stable()
	for v := range int16(5) {
		versions.SetMaxKeyVersion(int16(kmsg.LeaveGroup), v)
		k, c := cluster(t, quick, kfake.SeedTopics(1, "t"), kfake.MaxVersions(versions))
		var says kmsg.LeaveGroupResponse
		k.ControlKey(int16(kmsg.LeaveGroup), func(req kmsg.Request) (kmsg.Response, error, bool) {
			k.KeepControl()
			res := req.ResponseKind().(*kmsg.LeaveGroupResponse)
			require.Equal(t, v, res.Version)
			res.ErrorCode, res.ThrottleMillis, res.Members = says.ErrorCode, says.ThrottleMillis, says.Members
			return res, nil, true
		})
		for _, throttle := range []int32{0, 9, 30_000, 40_000} {
			for _, code := range []int16{-1, 0, 14, 15, 16, 25} {
				says = kmsg.LeaveGroupResponse{ErrorCode: code, ThrottleMillis: throttle}
				require.Equal(t, codeError(code), c.leaveGroup(t.Context(), "g", "m"), "version %d, throttled for %d ms", v, throttle)
			}
			if v >= 3 {
				says = kmsg.LeaveGroupResponse{ThrottleMillis: throttle, Members: []kmsg.LeaveGroupResponseMember{{MemberID: "m", ErrorCode: 25}}}
				require.Equal(t, kafka.UnknownMemberId, c.leaveGroup(t.Context(), "g", "m"))
			}
		}
	}
}

// It runs in a process of its own: a client of another test whose request was
// abandoned, to a broker that hangs, is still waiting for it.
func TestNothingIsLeftRunning(t *testing.T) {
	if alone := "KAFKAIO_TEST_ALONE"; os.Getenv(alone) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), alone+"=1")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Contains(t, string(out), "--- PASS: "+t.Name())
		return
	}
	k, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, "t"), kfake.GroupMinSessionTimeout(100*time.Millisecond))
	require.NoError(t, err)
	defer k.Close()
	c, err := Dial(k.ListenAddrs(), quick)
	require.NoError(t, err)
	p := c.Producer("t")
	require.NoError(t, p.Produce(t.Context(), Message{Key: []byte("k"), Value: []byte("v")}))
	require.NoError(t, p.Close())
	read := make(chan struct{}, 2)
	stop := start(t, c, func(ctx context.Context, a *Assignment) error {
		var b Batch
		for ctx.Err() == nil {
			if err := c.Fetch(ctx, "t", a.Partition, b.Next, &b); err != nil {
				return err
			}
			if len(b.Records) > 0 {
				read <- struct{}{}
			}
		}
		return nil
	})
	<-read
	require.NoError(t, stop())
	require.NoError(t, c.Close())
	left := func() string {
		var s strings.Builder
		require.NoError(t, pprof.Lookup("goroutine").WriteTo(&s, 2))
		var ours []string
		for _, g := range strings.Split(s.String(), "\n\n") {
			if (strings.Contains(g, "segmentio/kafka-go") || strings.Contains(g, "kafkaio.(")) && !strings.Contains(g, "testing.tRunner") {
				ours = append(ours, g)
			}
		}
		return strings.Join(ours, "\n\n")
	}
	require.Eventually(t, func() bool { return left() == "" }, 10*time.Second, 20*time.Millisecond, "%s", left())
}
