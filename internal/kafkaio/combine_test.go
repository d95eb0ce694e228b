package kafkaio

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// put writes records of the given values to one partition, uncompressed and in
// one batch.
func put(t testing.TB, k *kfake.Cluster, partition int32, values ...string) {
	t.Helper()
	f := franz(t, k, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerBatchMaxBytes(8<<20))
	defer f.Close()
	var rs []*kgo.Record
	for _, v := range values {
		rs = append(rs, &kgo.Record{Partition: partition, Value: []byte(v)})
	}
	require.NoError(t, f.ProduceSync(t.Context(), rs...).FirstErr())
}

// fetches tells of each Fetch request before it is served, by its partitions.
func fetches(k *kfake.Cluster, see func(wait time.Duration, partitions []int32)) {
	k.ControlKey(int16(kmsg.Fetch), func(r kmsg.Request) (kmsg.Response, error, bool) {
		k.KeepControl()
		req := r.(*kmsg.FetchRequest)
		var ps []int32
		for _, t := range req.Topics {
			for _, p := range t.Partitions {
				ps = append(ps, p.Partition)
			}
		}
		see(time.Duration(req.MaxWaitMillis)*time.Millisecond, ps)
		return nil, nil, false
	})
}

// parts waits until so many parts are on the list of the leader's queue.
func parts(t *testing.T, c *Client, n int) {
	t.Helper()
	q := c.fetchQueue(0)
	require.Eventually(t, func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return len(q.waiting) == n
	}, 10*time.Second, time.Millisecond)
}

// Two requests are under way and held; whoever asks meanwhile is in the third.
func TestFetchCombines(t *testing.T) {
	k, c := cluster(t, quick, kfake.SeedTopics(8, "t"))
	for p := range int32(8) {
		put(t, k, p, fmt.Sprint("of ", p))
	}
	release := make(chan struct{})
	requests := make(chan []int32, 20)
	fetches(k, func(_ time.Duration, ps []int32) {
		requests <- ps
		k.SleepControl(func() { <-release })
	})
	var all sync.WaitGroup
	fetch := func(p int) {
		all.Go(func() {
			var b Batch
			if err := c.Fetch(t.Context(), "t", p, 0, &b); err != nil || len(b.Records) != 1 || string(b.Records[0].Value) != fmt.Sprint("of ", p) {
				t.Errorf("partition %d: %v, %q", p, err, values(&b))
			}
		})
	}
	fetch(0)
	require.Equal(t, []int32{0}, <-requests)
	fetch(1)
	require.Equal(t, []int32{1}, <-requests)
	for p := 2; p < 8; p++ {
		fetch(p)
		parts(t, c, p-1) // so in this order
	}
	require.Empty(t, requests, "two at once, no more")
	close(release)
	all.Wait()
	require.Equal(t, []int32{2, 3, 4, 5, 6, 7}, <-requests)
	require.Empty(t, requests)
}

// While idle partitions wait for records, one that has some is served at once,
// over and over; the idle ones wait their time, all in one request, and notice
// what arrives. Nothing spins.
func TestFetchIdleAndBusy(t *testing.T) {
	o := quick
	o.MaxWait = 2 * time.Second
	k, c := cluster(t, o, kfake.SeedTopics(5, "t"))
	for range 30 {
		put(t, k, 4, "v")
	}
	var requests atomic.Int64
	var polls sync.Map // of all four idle partitions
	fetches(k, func(wait time.Duration, ps []int32) {
		requests.Add(1)
		if wait > 0 {
			polls.Store(len(ps), true)
		}
	})
	start := time.Now()
	idle := make(chan time.Duration, 4)
	for p := range 4 {
		go func() {
			var b Batch
			if err := c.Fetch(t.Context(), "t", p, 0, &b); err != nil {
				t.Error(err)
			}
			if len(b.Records) > 0 != (p == 3) {
				t.Errorf("partition %d: %q", p, values(&b))
			}
			idle <- time.Since(start)
		}()
	}
	require.Eventually(t, func() bool { _, ok := polls.Load(4); return ok }, 10*time.Second, time.Millisecond, "one poll for all")
	before := requests.Load()
	busy := time.Now()
	var b Batch
	for b.Next < 30 { // a batch each, were it not for the broker's packing
		require.NoError(t, c.Fetch(t.Context(), "t", 4, b.Next, &b))
		require.NotEmpty(t, b.Records)
		b.Next = b.Records[0].Offset + 1
	}
	require.Less(t, time.Since(busy), o.MaxWait/pollSlices, "30 fetches, none of which waits for a poll")
	require.LessOrEqual(t, requests.Load()-before, int64(30+2))

	put(t, k, 3, "late")
	require.Less(t, <-idle, o.MaxWait/2, "what arrives is noticed")
	for range 3 {
		require.GreaterOrEqual(t, <-idle, o.MaxWait)
	}
	require.LessOrEqual(t, requests.Load(), int64(30+20), "nothing spins")
}

// A call that comes while others are being polled for sees what arrives before
// MaxWait is over, though it is not in that poll.
func TestFetchNotInThePoll(t *testing.T) {
	o := quick
	o.MaxWait = 4 * time.Second
	k, c := cluster(t, o, kfake.SeedTopics(2, "t"))
	polled := make(chan []int32, 100)
	fetches(k, func(wait time.Duration, ps []int32) {
		if wait > 0 {
			polled <- ps
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	left := make(chan error, 1)
	go func() { left <- c.Fetch(ctx, "t", 0, 0, new(Batch)) }()
	require.Equal(t, []int32{0}, <-polled)
	start := time.Now()
	got := make(chan error, 1)
	var b Batch
	go func() { got <- c.Fetch(t.Context(), "t", 1, 0, &b) }()
	parts(t, c, 1) // it was looked at, and found empty
	put(t, k, 1, "v")
	require.NoError(t, <-got)
	require.Equal(t, []string{"v"}, values(&b))
	require.Less(t, time.Since(start), o.MaxWait/2)
	cancel()
	require.ErrorIs(t, <-left, context.Canceled)
}

// Each batch is larger than what one fetch asks for, so a reply holds one, of
// the first partition that has any. However many others read without a pause,
// each partition gets its turn.
func TestFetchNothingStarves(t *testing.T) {
	o := quick
	o.MaxBytes = 10_000
	k, c := cluster(t, o, kfake.SeedTopics(6, "t"))
	large := string(bytes.Repeat([]byte{'x'}, 90_000))
	for p := range 6 {
		put(t, k, int32(p), large)
	}
	var requests, named atomic.Int64 // named: those with partition 5
	fetches(k, func(_ time.Duration, ps []int32) {
		requests.Add(1)
		if slices.Contains(ps, 5) {
			named.Add(1)
		}
	})
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer func() { stop(); all.Wait() }()
	var answers atomic.Int64
	fetch := func(ctx context.Context, p int, b *Batch) {
		if err := c.Fetch(ctx, "t", p, 0, b); ctx.Err() == nil && (err != nil || len(b.Records) != 1 || string(b.Records[0].Value) != large) {
			t.Errorf("%d: %v, %d records", p, err, len(b.Records))
		}
		answers.Add(1)
	}
	for p := range 5 {
		all.Go(func() {
			for b := new(Batch); ctx.Err() == nil; {
				fetch(ctx, p, b)
			}
		})
	}
	var b Batch
	for range 50 {
		named.Store(0)
		fetch(t.Context(), 5, &b)
		require.LessOrEqual(t, named.Load(), int64(6), "each of the others was before it once, at most")
	}
	require.LessOrEqual(t, requests.Load(), answers.Load()+8, "each request brings a partition on")
}

// A reply is bounded, whatever the number of partitions.
func TestFetchReplySize(t *testing.T) {
	o := quick
	o.MaxBytes = 10_000
	k, c := cluster(t, o, kfake.SeedTopics(20, "t"))
	for p := range int32(20) {
		put(t, k, p, string(bytes.Repeat([]byte{'x'}, 9_000)))
	}
	var parts []*part
	for p := range 20 {
		parts = append(parts, &part{tp: topicPartition{"t", p}})
	}
	_, err := c.Topic(t.Context(), "t")
	require.NoError(t, err)
	r, version, err := c.fetchQueue(0).exchange(parts, 0)
	require.NoError(t, err)
	require.Less(t, len(r.bytes), 8*o.MaxBytes+20*100)
	answers, err := parseFetch(r.bytes, version, parts)
	require.NoError(t, err)
	require.NotEmpty(t, answers[7].set)
	require.Empty(t, answers[8].set)
	r.release()
	var all sync.WaitGroup
	for p := range 20 {
		all.Go(func() {
			var b Batch
			if err := c.Fetch(t.Context(), "t", p, 0, &b); err != nil || len(b.Records) != 1 {
				t.Errorf("%d: %v, %d records", p, err, len(b.Records))
			}
		})
	}
	all.Wait()
}

// A request names each partition once, even if several read it.
func TestFetchSamePartitionTwice(t *testing.T) {
	k, c := cluster(t, quick, kfake.SeedTopics(2, "t"))
	put(t, k, 0, "v")
	release := make(chan struct{})
	requests := make(chan []int32, 20)
	fetches(k, func(_ time.Duration, ps []int32) {
		requests <- ps
		k.SleepControl(func() { <-release })
	})
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			var b Batch
			if err := c.Fetch(t.Context(), "t", 0, 0, &b); err != nil || len(b.Records) != 1 {
				t.Errorf("%v, %q", err, values(&b))
			}
		})
	}
	parts(t, c, 3)
	close(release)
	all.Wait()
	for range 5 {
		require.Equal(t, []int32{0}, <-requests)
	}
}

// Callers of one request, of which one gets an error, one leaves and one gets
// records.
func TestFetchSharedFates(t *testing.T) {
	o := quick
	var retried atomic.Int64
	o.OnRetry = func(error) { retried.Add(1) }
	k, c := cluster(t, o, kfake.SeedTopics(5, "t"))
	for p := range int32(5) {
		put(t, k, p, fmt.Sprint("of ", p))
	}
	release := make(chan struct{})
	requests := make(chan []int32, 20)
	fetches(k, func(_ time.Duration, ps []int32) {
		requests <- ps
		k.SleepControl(func() { <-release })
	})
	k.Fault(
		kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Partitions: []int32{2}, Err: kerr.TopicAuthorizationFailed},
		kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Partitions: []int32{3}, Err: kerr.NotLeaderForPartition},
	)
	results := make([]chan error, 5)
	batches := make([]Batch, 5)
	ctx, cancel := context.WithCancel(t.Context())
	fetch := func(p int) {
		ctx := ctx
		if p != 4 {
			ctx = t.Context()
		}
		results[p] = make(chan error, 1)
		go func() { results[p] <- c.Fetch(ctx, "t", p, 0, &batches[p]) }()
	}
	fetch(0)
	<-requests
	fetch(1)
	<-requests
	for p := 2; p < 5; p++ {
		fetch(p)
		parts(t, c, p-1)
	}
	release <- struct{}{} // one of the two
	require.Equal(t, []int32{2, 3, 4}, <-requests)
	cancel()
	require.ErrorIs(t, <-results[4], context.Canceled, "while its request is under way")
	close(release)
	require.ErrorContains(t, <-results[2], "fetch t/2@0: [29] Topic Authorization Failed")
	require.NoError(t, <-results[3])
	for _, p := range []int{0, 1, 3} {
		if p < 2 {
			require.NoError(t, <-results[p])
		}
		require.Equal(t, []string{fmt.Sprint("of ", p)}, values(&batches[p]))
	}
	require.EqualValues(t, 1, retried.Load(), "only by the one whose leader moved")
}

// A part leaves with its caller, from the list and from what is polled for.
func TestFetchLeavesTheList(t *testing.T) {
	k, c := cluster(t, quick, kfake.SeedTopics(3, "t"))
	q := c.fetchQueue(0)
	listed := func() int {
		q.mu.Lock()
		defer q.mu.Unlock()
		return len(q.waiting)
	}
	release := make(chan struct{})
	requests := make(chan []int32, 20)
	fetches(k, func(_ time.Duration, ps []int32) {
		requests <- ps
		k.SleepControl(func() { <-release })
	})
	var all sync.WaitGroup
	for p := range 2 {
		all.Go(func() { _ = c.Fetch(t.Context(), "t", p, 0, new(Batch)) })
		<-requests
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Fetch(ctx, "t", 2, 0, new(Batch)) }()
	parts(t, c, 1)
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	require.Zero(t, listed())
	close(release)
	all.Wait()

	polls := make(chan time.Duration, 20)
	fetches(k, func(wait time.Duration, _ []int32) {
		if wait > 0 {
			polls <- wait
		}
	})
	ctx, cancel = context.WithCancel(t.Context())
	go func() { done <- c.Fetch(ctx, "t", 2, 0, new(Batch)) }()
	<-polls
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	require.Eventually(t, func() bool { q.mu.Lock(); defer q.mu.Unlock(); return q.inFlight == 0 }, 10*time.Second, time.Millisecond)
	require.Zero(t, listed())
	require.Empty(t, polls, "no other poll for it")
}

// A leader hangs, and another takes over. Those who wait for a request of the
// first to return look for the second as soon as it has timed out.
func TestFetchFromALeaderThatHangs(t *testing.T) {
	o := quick
	o.RequestTimeout = time.Second
	k, c := cluster(t, o, kfake.NumBrokers(2), kfake.SeedTopics(3, "t"))
	for p := range int32(3) {
		put(t, k, p, "v")
		require.NoError(t, k.MoveTopicPartition("t", p, 0))
	}
	release := make(chan struct{})
	defer close(release)
	hung := make(chan struct{}, 20)
	k.ControlKey(int16(kmsg.Fetch), func(kmsg.Request) (kmsg.Response, error, bool) {
		k.KeepControl()
		if k.CurrentNode() == 0 {
			hung <- struct{}{}
			k.SleepControl(func() { <-release })
		}
		return nil, nil, false
	})
	var all sync.WaitGroup
	fetch := func(p int) {
		all.Go(func() {
			var b Batch
			if err := c.Fetch(t.Context(), "t", p, 0, &b); err != nil || len(b.Records) != 1 {
				t.Errorf("%d: %v, %q", p, err, values(&b))
			}
		})
	}
	fetch(0)
	<-hung
	fetch(1)
	<-hung
	fetch(2)
	parts(t, c, 1)
	for p := range int32(3) {
		require.NoError(t, k.MoveTopicPartition("t", p, 1))
	}
	all.Wait()
	require.Empty(t, hung, "no third request")
}

// Batches share the memory of a reply. However their fetches interleave, each
// keeps its records until its own next fetch.
func TestFetchSharedMemory(t *testing.T) {
	const partitions, records = 6, 40
	k, c := cluster(t, quick, kfake.SeedTopics(partitions, "t"))
	value := func(p int, i int64) string { return fmt.Sprintf("%d/%d/%0200d", p, i, i*int64(p+1)) }
	for p := range partitions {
		for i := range int64(records) {
			if i%8 == 0 {
				var vs []string
				for j := range int64(8) {
					vs = append(vs, value(p, i+j))
				}
				put(t, k, int32(p), vs...)
			}
		}
	}
	var all sync.WaitGroup
	for p := range partitions {
		all.Go(func() {
			var b Batch
			for round := range 60 {
				from := rand.Int64N(records)
				if err := c.Fetch(t.Context(), "t", p, from, &b); err != nil || len(b.Records) == 0 {
					t.Errorf("%d@%d: %v", p, from, err)
					return
				}
				if round%3 == p%3 { // others go on meanwhile
					_, _ = c.Topic(t.Context(), "t")
				}
				for _, r := range b.Records {
					if string(r.Value) != value(p, r.Offset) {
						t.Errorf("%d@%d: %.20q", p, r.Offset, r.Value)
						return
					}
				}
			}
		})
	}
	all.Wait()
}

// The last to give its part back frees the reply, and not before.
func TestReplyIsFreedByTheLast(t *testing.T) {
	_, c := cluster(t, quick, kfake.SeedTopics(1, "t"))
	r := c.newReply()
	one, two := Batch{reply: r.share()}, Batch{reply: r.share()}
	r.release()
	one.reset(0)
	require.EqualValues(t, 1, r.users.Load())
	one.reset(0) // has none to give
	require.EqualValues(t, 1, r.users.Load())
	two.reset(0)
	require.Zero(t, r.users.Load())
}

// What a fetch allocates does not grow with the records that it returns.
func TestFetchAllocations(t *testing.T) {
	allocations := func(records int) float64 {
		_, c := cluster(t, quick, kfake.SeedTopics(1, "t"), kfake.SyntheticFetch(kfake.SyntheticBatch{
			Records: records, RecordBytes: 100, Compression: kgo.NoCompression(),
		}))
		var b Batch
		fetch := func() {
			require.NoError(t, c.Fetch(t.Context(), "t", 0, b.Next, &b))
			require.GreaterOrEqual(t, len(b.Records), records)
		}
		for range 20 {
			fetch()
		}
		return testing.AllocsPerRun(100, fetch)
	}
	few, many := allocations(1), allocations(5000)
	t.Logf("%v and %v", few, many)
	require.Less(t, many, few+100, "the broker's own are among them")
}

// A topic that was made again is not read on at the old offsets.
func TestFetchTopicChanged(t *testing.T) {
	k, c := cluster(t, quick, kfake.SeedTopics(1, "t"))
	put(t, k, 0, "a", "b")
	var b Batch
	require.NoError(t, c.Fetch(t.Context(), "t", 0, 0, &b))
	was, err := c.Topic(t.Context(), "t")
	require.NoError(t, err)
	again := func(values ...string) TopicInfo {
		require.NoError(t, k.DeleteTopic("t"))
		require.NoError(t, k.CreateTopic("t", 1, nil))
		if len(values) > 0 {
			put(t, k, 0, values...)
		}
		d, err := Dial(k.ListenAddrs(), quick)
		require.NoError(t, err)
		defer d.Close()
		info, err := d.Topic(t.Context(), "t")
		require.NoError(t, err)
		return info
	}
	is := again("c")
	var te *TopicChangedError
	require.ErrorAs(t, c.Fetch(t.Context(), "t", 0, 2, &b), &te, "rather than a BeyondEndError")
	require.Equal(t, &TopicChangedError{"t", was.ID, is.ID}, te)
	require.EqualError(t, te, "topic t was deleted and made again: its id was "+was.ID+" and is "+is.ID)
	require.ErrorAs(t, c.Fetch(t.Context(), "t", 0, 0, &b), &te, "ever after")

	// In a group it is noticed even if the old offset exists in the new topic.
	c, err = Dial(k.ListenAddrs(), quick)
	require.NoError(t, err)
	defer c.Close()
	reading := make(chan struct{}, 1)
	done := make(chan error, 1)
	go func() {
		done <- c.Consume(t.Context(), "g", "t", func(ctx context.Context, a *Assignment) error {
			var b Batch
			for {
				if err := c.Fetch(ctx, "t", 0, 1, &b); err != nil {
					return err
				}
				select {
				case reading <- struct{}{}:
				default:
				}
			}
		})
	}()
	<-reading
	again("d", "e", "f")
	require.ErrorAs(t, <-done, &te)
}
