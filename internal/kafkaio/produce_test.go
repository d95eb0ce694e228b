package kafkaio

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestProducePartitionsAsOthersDo(t *testing.T) {
	k, c := cluster(t, quick, kfake.SeedTopics(7, "t"))
	f := franz(t, k)
	var msgs []Message
	want := map[string]int{}
	for i := range 100 {
		key := fmt.Sprintf("tenant-%d|issue-%d", i%9, i)
		r := &kgo.Record{Key: []byte(key), Value: []byte("theirs")}
		require.NoError(t, f.ProduceSync(t.Context(), r).FirstErr())
		want[key] = int(r.Partition)
		msgs = append(msgs, Message{Key: []byte(key), Value: []byte("ours")})
	}
	require.NoError(t, c.Producer("t").Produce(t.Context(), msgs...))
	got := map[string]int{}
	_, err := c.ReadAll(t.Context(), "t", func(p int, r Record) error {
		if string(r.Value) == "ours" {
			got[string(r.Key)] = p
		}
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, want, got)
}

func TestProduceKeepsFieldsAndOrder(t *testing.T) {
	_, c := cluster(t, quick, kfake.SeedTopics(1, "t"))
	p := c.Producer("t")
	at := time.UnixMilli(1_790_000_000_000).UTC()
	require.NoError(t, p.Produce(t.Context(),
		Message{Key: []byte("k"), Value: []byte("v"), Time: at, Headers: []Header{{"ce_id", []byte("1")}, {"x", nil}}},
		Message{Key: []byte("k")},
	))
	before := time.Now()
	var b Batch
	require.NoError(t, c.Fetch(t.Context(), "t", 0, 0, &b))
	require.Len(t, b.Records, 2)
	require.Equal(t, Record{0, at, []byte("k"), []byte("v"), []Header{{"ce_id", []byte("1")}, {"x", nil}}}, b.Records[0])
	require.Nil(t, b.Records[1].Value, "a tombstone")
	require.Nil(t, b.Records[1].Headers)
	require.WithinDuration(t, before, b.Records[1].Time, time.Minute)

	// Three batches' worth in one call, and many callers at once.
	var msgs []Message
	for i := range 300 {
		msgs = append(msgs, Message{Value: fmt.Appendf(nil, "%09d%10000s", i, "")})
	}
	require.NoError(t, p.Produce(t.Context(), msgs...))
	errs := make(chan error, 200)
	for i := range 200 {
		go func() { errs <- p.Produce(t.Context(), Message{Key: fmt.Append(nil, i), Value: []byte("c")}) }()
	}
	for range 200 {
		require.NoError(t, <-errs)
	}
	got := drain(t, c, "t", 0, 2)
	require.Len(t, got, 500)
	for i, v := range got[:300] {
		require.Equal(t, fmt.Sprintf("%09d", i), v[:9])
	}
	require.NoError(t, p.Produce(t.Context()))
	require.NoError(t, p.Close())
	require.ErrorIs(t, p.Produce(t.Context(), Message{}), ErrClosed)
}

func TestProduceTooLarge(t *testing.T) {
	_, c := cluster(t, quick)
	require.NoError(t, c.EnsureTopic(t.Context(), "t", 1, map[string]string{"max.message.bytes": "50000"}))
	random := rand.NewChaCha8([32]byte{2})
	var msgs []Message
	for i := range 20 {
		v := make([]byte, 8000) // together more than one batch may hold
		if i == 4 || i == 17 {
			v = make([]byte, 60000)
		}
		_, _ = random.Read(v)
		msgs = append(msgs, Message{Value: v})
	}
	err := c.Producer("t").Produce(t.Context(), msgs...)
	var errs MessageErrors
	require.ErrorAs(t, err, &errs)
	require.Len(t, errs, 2)
	require.Equal(t, []int{4, 17}, []int{errs[0].Index, errs[1].Index})
	require.Greater(t, errs[0].Size, 60000)
	require.ErrorIs(t, err, ErrTooLarge)
	require.EqualError(t, err, "topic t: message 4 of 60024 bytes: larger than the broker accepts (and 1 more)")
	got := drain(t, c, "t", 0, 0)
	require.Len(t, got, 18, "the others are there")
	require.Equal(t, string(msgs[5].Value), got[4])
}

func TestProduceFaults(t *testing.T) {
	o := quick
	o.DeliveryTimeout = 300 * time.Millisecond
	k, c := cluster(t, o, kfake.SeedTopics(1, "t"))
	p := c.Producer("t")
	ctx := t.Context()
	produce := []kmsg.Key{kmsg.Produce}

	// Applied, but the acknowledgement is an error: at least once is twice here.
	h := k.Fault(kfake.Fault{Keys: produce, Err: kerr.RequestTimedOut})
	require.NoError(t, p.Produce(ctx, Message{Value: []byte("twice")}))
	require.Equal(t, 1, h.Hits())
	require.Equal(t, []string{"twice", "twice"}, drain(t, c, "t", 0, 0))

	h = k.Fault(kfake.Fault{Keys: produce, Err: kerr.TopicAuthorizationFailed})
	err := p.Produce(ctx, Message{Value: []byte("refused")})
	require.EqualError(t, err, "topic t: message 0 of 31 bytes: [29] Topic Authorization Failed: the client is not authorized to access the requested topic")
	require.Equal(t, 1, h.Hits())

	h = k.Fault(kfake.Fault{Keys: produce, Err: kerr.NotEnoughReplicas, Count: -1})
	err = p.Produce(ctx, Message{Value: []byte("given up")})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "Not Enough Replicas")
	require.Greater(t, h.Hits(), 1)

	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	err = p.Produce(short, Message{Value: []byte("left")})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "produce to t: ")
	require.NoError(t, p.Close())
	h.Remove()
	require.Equal(t, []string{"twice", "twice"}, drain(t, c, "t", 0, 0))
}

// A caller who leaves takes along what was not sent yet.
func TestProduceGivenUpInTheQueue(t *testing.T) {
	k, c := cluster(t, quick, kfake.SeedTopics(1, "t"))
	p := c.Producer("t")
	h := k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: -1})
	first := make(chan error, 1)
	go func() { first <- p.Produce(t.Context(), Message{Value: []byte("first")}) }()
	require.NoError(t, h.Wait(t.Context(), 1))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, p.Produce(ctx, Message{Value: []byte("second")}), context.DeadlineExceeded)
	h.Remove()
	require.NoError(t, <-first)
	require.NoError(t, p.Close())
	require.Equal(t, []string{"first"}, drain(t, c, "t", 0, 0))
}

func BenchmarkProduce(b *testing.B) {
	_, c := cluster(b, Options{}, kfake.SeedTopics(1, "t"), kfake.BlackholeProduce())
	random := rand.NewChaCha8([32]byte{3})
	msgs := make([]Message, 900)
	for i := range msgs {
		v := make([]byte, 1024)
		_, _ = random.Read(v[:512])
		msgs[i] = Message{Value: v}
	}
	p := c.Producer("t")
	b.ReportAllocs()
	b.SetBytes(int64(len(msgs)) * 1024)
	for b.Loop() {
		if err := p.Produce(b.Context(), msgs...); err != nil {
			b.Fatal(err)
		}
	}
}
