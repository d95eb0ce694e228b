package kafkaio

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"winnow/internal/broker"
)

func franz(t testing.TB, k *kfake.Cluster, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	f, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(k.ListenAddrs()...), kgo.DefaultProduceTopic("t")}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(f.Close)
	return f
}

// Each codec, and each field of a record, as another client wrote them.
func TestFetchReadsWhatOthersWrite(t *testing.T) {
	for name, codec := range map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
		"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	} {
		t.Run(name, func(t *testing.T) {
			k, c := cluster(t, quick, kfake.SeedTopics(1, "t"))
			f := franz(t, k, kgo.ProducerBatchCompression(codec), kgo.RequiredAcks(kgo.AllISRAcks()))
			at := time.UnixMilli(1_790_000_000_123).UTC()
			sent := []*kgo.Record{
				{Key: []byte("k0"), Value: bytes.Repeat([]byte("long "), 5000), Timestamp: at, Headers: []kgo.RecordHeader{{Key: "ce_id", Value: []byte("1")}, {Key: "empty", Value: []byte{}}, {Key: "null"}}},
				{Key: []byte("k1"), Timestamp: at.Add(time.Second)}, // a tombstone
				{Value: []byte{}, Timestamp: at.Add(-time.Second)},
				{Key: []byte("k3"), Value: []byte("v3"), Timestamp: at, Headers: []kgo.RecordHeader{{Key: "ce_id", Value: []byte("2")}}},
			}
			require.NoError(t, f.ProduceSync(t.Context(), sent...).FirstErr())

			var b Batch
			for from := range len(sent) + 1 {
				require.NoError(t, c.Fetch(t.Context(), "t", 0, int64(from), &b))
				require.EqualValues(t, 4, b.Next)
				require.EqualValues(t, 4, b.HighWatermark)
				require.EqualValues(t, 4, b.LastStable)
				require.EqualValues(t, 0, b.LogStart)
				require.Len(t, b.Records, len(sent)-from, "records below the asked offset come in the same batch")
				for i, r := range b.Records {
					want := sent[from+i]
					require.EqualValues(t, from+i, r.Offset)
					require.Equal(t, want.Key, r.Key)
					require.Equal(t, want.Value, r.Value)
					require.Equal(t, want.Timestamp, r.Time)
					require.Len(t, r.Headers, len(want.Headers))
					for j, h := range r.Headers {
						require.Equal(t, want.Headers[j].Key, h.Key)
						require.Equal(t, want.Headers[j].Value, h.Value)
					}
				}
			}
		})
	}
}

func TestFetchLargestRecord(t *testing.T) {
	br, err := broker.Start(t.TempDir(), broker.Options{})
	require.NoError(t, err)
	defer br.Close()
	o := quick
	o.MaxBytes = 1 << 16
	c, err := Dial([]string{br.Addr()}, o)
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.EnsureTopic(t.Context(), "t", 1, nil))
	large := make([]byte, 8<<20) // schema's largest value, of bytes that zstd can't pack
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(large)
	p := c.Producer("t")
	defer p.Close()
	require.NoError(t, p.Produce(t.Context(), Message{Value: []byte("a")}))
	require.NoError(t, p.Produce(t.Context(), Message{Value: large}))
	require.NoError(t, p.Produce(t.Context(), Message{Value: []byte("b")}))

	got := drain(t, c, "t", 0, 0)
	require.Len(t, got, 3)
	require.Equal(t, "a", got[0])
	require.True(t, got[1] == string(large))
	require.Equal(t, "b", got[2])
}

// Two producers' transactions interleave; half of them abort. From any offset,
// what is read is what was committed at or above it.
func TestFetchReadsOnlyCommitted(t *testing.T) {
	k, c := cluster(t, quick, kfake.SeedTopics(1, "t"))
	ctx := t.Context()
	fs := []*kgo.Client{franz(t, k, kgo.TransactionalID("x")), franz(t, k, kgo.TransactionalID("y"))}
	committed := map[int64]string{}
	for round := range 6 {
		var sent []*kgo.Record
		for i, f := range fs {
			require.NoError(t, f.BeginTransaction())
			for j := range 2 {
				r := kgo.StringRecord(fmt.Sprintf("round %d producer %d record %d", round, i, j))
				require.NoError(t, f.ProduceSync(ctx, r).FirstErr())
				sent = append(sent, r)
			}
		}
		for i, f := range fs {
			commit := (round>>i)&1 == 0
			require.NoError(t, f.EndTransaction(ctx, kgo.TransactionEndTry(commit)))
			for _, r := range sent[2*i : 2*i+2] {
				if commit {
					committed[r.Offset] = string(r.Value)
				}
			}
		}
	}
	require.NoError(t, fs[0].BeginTransaction())
	require.NoError(t, fs[0].ProduceSync(ctx, kgo.StringRecord("still open")).FirstErr())

	ranges, err := c.Offsets(ctx, "t", []int{0})
	require.NoError(t, err)
	require.Equal(t, Range{0, 36}, ranges[0], "6 rounds of 4 records and 2 markers; an open transaction is not readable")
	for from := int64(0); from < 36; from++ {
		want := []string{}
		for o := from; o < 36; o++ {
			if v, ok := committed[o]; ok {
				want = append(want, v)
			}
		}
		require.Equal(t, want, drain(t, c, "t", 0, from), "from %d", from)
	}
	n := 0
	next, err := c.ReadAll(ctx, "t", func(_ int, r Record) error {
		require.Equal(t, committed[r.Offset], string(r.Value))
		n++
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, len(committed), n)
	require.Equal(t, map[int]int64{0: 36}, next)
	require.NoError(t, fs[0].EndTransaction(ctx, kgo.TryAbort))
}

func TestFetchDecoding(t *testing.T) {
	x := rawBatch{producer: -1, records: []rawRecord{{0, "secret"}}}
	at := func(base int64, r rawBatch) rawBatch { r.base = base; return r }
	empty := func(base int64, last int32) []byte { return rawBatch{base: base, last: last, producer: 7}.bytes() }
	edit := func(b []byte, i int, v byte) []byte { b = bytes.Clone(b); b[i] = v; return b }
	cat := func(bs ...[]byte) []byte { return bytes.Join(bs, nil) }
	for _, tt := range []struct {
		name    string
		set     []byte
		offset  int64
		aborted []abortedTxn
		want    []string
		next    int64
		fails   string
	}{
		{name: "nothing", offset: 3, next: 3},
		{name: "holes in a batch and between batches", set: cat(
			rawBatch{base: 2, last: 9, producer: -1, records: []rawRecord{{1, "3"}, {5, "7"}}}.bytes(), at(20, x).bytes()),
			want: []string{"3", "7", "secret"}, next: 21},
		{name: "two empty batches, then data", set: cat(empty(0, 4), empty(5, 4), at(10, x).bytes()), want: []string{"secret"}, next: 11},
		{name: "only empty batches", set: cat(empty(0, 4), empty(5, 4)), next: 10},
		{name: "begins below the asked offset", set: cat(at(0, x).bytes(), empty(1, 3)), offset: 3, next: 5},
		{name: "lies below the asked offset", set: at(0, x).bytes(), offset: 3, next: 3},
		{name: "commit marker last", set: cat(
			rawBatch{base: 0, producer: 7, attrs: attrTxn, records: []rawRecord{{0, "in"}}}.bytes(), marker(1, 7, 1)),
			want: []string{"in"}, next: 2},
		{name: "abort ends at its marker", aborted: []abortedTxn{{7, 0}}, set: cat(
			rawBatch{base: 0, producer: 7, attrs: attrTxn, records: []rawRecord{{0, "out"}}}.bytes(),
			rawBatch{base: 1, producer: 8, attrs: attrTxn, records: []rawRecord{{0, "other producer"}}}.bytes(),
			marker(2, 7, 0),
			rawBatch{base: 3, producer: 7, attrs: attrTxn, records: []rawRecord{{0, "in"}}}.bytes()),
			want: []string{"other producer", "in"}, next: 4},
		{name: "aborted list in any order", aborted: []abortedTxn{{8, 2}, {7, 0}}, set: cat(
			rawBatch{base: 0, producer: 7, attrs: attrTxn, records: []rawRecord{{0, "out"}}}.bytes(), marker(1, 7, 0),
			rawBatch{base: 2, producer: 8, attrs: attrTxn, records: []rawRecord{{0, "out"}}}.bytes(), marker(3, 8, 0),
			rawBatch{base: 4, producer: 8, attrs: attrTxn, records: []rawRecord{{0, "in"}}}.bytes()),
			want: []string{"in"}, next: 5},
		{name: "not transactional, though the producer aborts elsewhere", aborted: []abortedTxn{{7, 0}},
			set: rawBatch{producer: 7, records: []rawRecord{{0, "in"}}}.bytes(), want: []string{"in"}, next: 1},
		{name: "cut off after a whole batch", set: cat(x.bytes(), at(1, x).bytes()[:50]), want: []string{"secret"}, next: 1},
		{name: "cut off in a length", set: cat(x.bytes(), at(1, x).bytes()[:10]), want: []string{"secret"}, next: 1},

		{name: "a flipped bit", set: edit(at(5, x).bytes(), 70, 'z'), offset: 5, fails: "t/3@5: corrupt record batch: checksum mismatch"},
		{name: "bad after good", set: cat(x.bytes(), edit(at(1, x).bytes(), 70, 'z')), want: []string{"secret"}, next: 1},
		{name: "cut off at once", set: x.bytes()[:50], fails: "t/3@0: corrupt record batch: truncated"},
		{name: "an old format", set: edit(x.bytes(), 16, 1), fails: "t/3@0: corrupt record batch: message format 1; 2, of Kafka 0.11, is the oldest that is read"},
		{name: "an absurd length", set: edit(x.bytes(), 11, 3), fails: "t/3@0: corrupt record batch: length 3"},
		{name: "fewer records than counted", set: rawBatch{producer: -1, last: 1, count: 2, records: x.records}.bytes(),
			fails: "t/3@0: corrupt record batch: malformed record after offset 0"},
		{name: "more records than counted", set: rawBatch{producer: -1, last: 1, count: 1, records: []rawRecord{{0, "secret"}, {1, "secret"}}}.bytes(),
			fails: "t/3@0: corrupt record batch: 13 bytes after the last of 1 records"},
		{name: "a negative count", set: rawBatch{producer: -1, count: -5, records: x.records}.bytes(),
			fails: "t/3@0: corrupt record batch: -5 records, last offset 0"},
		{name: "an offset outside", set: rawBatch{producer: -1, records: []rawRecord{{1, "secret"}}}.bytes(),
			fails: "t/3@0: corrupt record batch: record offset 1 after -1 in a batch that ends at 0"},
		{name: "an offset twice", set: rawBatch{producer: -1, last: 1, records: []rawRecord{{0, "secret"}, {0, "secret"}}}.bytes(),
			fails: "t/3@0: corrupt record batch: record offset 0 after 0 in a batch that ends at 1"},
		{name: "zstd that is none", set: rawBatch{producer: -1, attrs: 4, records: x.records}.bytes(),
			fails: "t/3@0: corrupt record batch: zstd data that can't be unpacked into 134217728 bytes"},
		{name: "gzip that is none", set: rawBatch{producer: -1, attrs: 1, records: x.records}.bytes(),
			fails: "t/3@0: corrupt record batch: gzip data that can't be unpacked into 134217728 bytes"},
		{name: "unknown codec", set: rawBatch{producer: -1, attrs: 7, records: x.records}.bytes(),
			fails: "t/3@0: corrupt record batch: unknown compression codec 7"},
		{name: "malformed control record", set: rawBatch{producer: 7, attrs: attrTxn | attrControl, records: x.records}.bytes(),
			fails: "t/3@0: corrupt record batch: malformed control record"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := Batch{Records: []Record{{Offset: 99}}, Next: 99} // of an earlier fetch
			err := b.decode(topicPartition{"t", 3}, tt.set, tt.offset, tt.aborted)
			if tt.fails != "" {
				var ce *CorruptError
				require.ErrorAs(t, err, &ce)
				require.EqualError(t, err, tt.fails)
				require.Empty(t, b.Records)
				return
			}
			require.NoError(t, err)
			require.Equal(t, append([]string{}, tt.want...), values(&b))
			require.Equal(t, tt.next, b.Next)
		})
	}
	t.Run("append time", func(t *testing.T) {
		var b Batch
		require.NoError(t, b.decode(topicPartition{}, rawBatch{attrs: attrAppendTime, producer: -1, records: x.records}.bytes(), 0, nil))
		require.Equal(t, time.UnixMilli(1_790_000_000_777).UTC(), b.Records[0].Time)
	})
}

func marker(base, producer int64, kind byte) []byte {
	body := []byte{0, 0, 0, 8, 0, 0, 0, kind, 0, 0} // attributes, deltas, key length 4, version, type, value length 0, headers
	body = append(binary.AppendVarint(nil, int64(len(body))), body...)
	return rawBatch{base: base, producer: producer, attrs: attrTxn | attrControl, count: 1, tail: body}.bytes()
}

// However a batch is broken, decoding ends without a panic, and never with
// records outside of what it says that it read.
func FuzzDecode(f *testing.F) {
	f.Add(rawBatch{producer: -1, last: 5, records: []rawRecord{{0, "a"}, {5, "b"}}}.bytes(), int64(1))
	f.Add(append(marker(0, 7, 0), rawBatch{base: 1, producer: 7, attrs: attrTxn, records: []rawRecord{{0, "a"}}}.bytes()...), int64(0))
	f.Add(rawBatch{producer: -1, attrs: 2, records: []rawRecord{{0, "a"}}}.bytes(), int64(0))
	f.Fuzz(func(t *testing.T, set []byte, offset int64) {
		if len(set) > batchHeader { // a checksum that fits, or nothing else would be reached
			if n := batchUncounted + int(int32(binary.BigEndian.Uint32(set[8:]))); n >= batchHeader && n <= len(set) {
				binary.BigEndian.PutUint32(set[17:], crc32.Checksum(set[21:n], castagnoli))
			}
		}
		var b Batch
		if err := b.decode(topicPartition{}, set, offset, []abortedTxn{{7, 0}}); err != nil {
			require.Empty(t, b.Records)
			return
		}
		for _, r := range b.Records {
			require.GreaterOrEqual(t, r.Offset, offset)
			require.Less(t, r.Offset, b.Next)
		}
	})
}

// A corrupt batch stops the reader at its offset, after all before it.
func TestFetchCorruptOnTheWire(t *testing.T) {
	k, c := cluster(t, quick, kfake.SeedTopics(1, "t"))
	good := rawBatch{producer: -1, records: []rawRecord{{0, "good"}}}.bytes()
	bad := rawBatch{base: 1, producer: -1, records: []rawRecord{{0, "secret"}}}.bytes()
	bad[len(bad)-3] ^= 1
	serve(k, 2, func(offset int64) []byte { return slices.Concat(good, bad)[int(offset)*len(good):] })
	var b Batch
	require.NoError(t, c.Fetch(t.Context(), "t", 0, 0, &b))
	require.Equal(t, []string{"good"}, values(&b))
	err := c.Fetch(t.Context(), "t", 0, b.Next, &b)
	require.EqualError(t, err, "t/0@1: corrupt record batch: checksum mismatch")
	require.Empty(t, b.Records)
}

// The log ends in offsets that compaction removed, batches and all.
func TestFetchHoleAtTheEnd(t *testing.T) {
	k, c := cluster(t, quick, kfake.SeedTopics(1, "t"))
	data := rawBatch{base: 10, producer: -1, records: []rawRecord{{0, "v"}}}.bytes()
	t.Run("is passed", func(t *testing.T) {
		n := serve(k, 20, func(offset int64) []byte {
			if offset <= 10 {
				return data
			}
			return nil
		})
		require.Equal(t, []string{"v"}, drain(t, c, "t", 0, 5))
		require.Equal(t, 3, *n)
	})
	t.Run("is not believed if its end can be read", func(t *testing.T) {
		k, c := cluster(t, quick, kfake.SeedTopics(1, "t"))
		n := serve(k, 11, func(offset int64) []byte {
			if offset == 10 {
				return data
			}
			return nil
		})
		var b Batch
		start := time.Now()
		require.NoError(t, c.Fetch(t.Context(), "t", 0, 5, &b))
		require.Empty(t, b.Records)
		require.EqualValues(t, 5, b.Next)
		require.GreaterOrEqual(t, time.Since(start), quick.MaxWait, "must not spin")
		require.Equal(t, 2, *n)
	})
}

func TestFetchWaits(t *testing.T) {
	o := quick
	o.MaxWait = 200 * time.Millisecond
	_, c := cluster(t, o, kfake.SeedTopics(1, "t"))
	p := c.Producer("t")
	require.NoError(t, p.Produce(t.Context(), Message{Value: []byte("v0")}))
	var b Batch
	require.NoError(t, c.Fetch(t.Context(), "t", 0, 0, &b))
	start := time.Now()
	require.NoError(t, c.Fetch(t.Context(), "t", 0, 1, &b))
	require.GreaterOrEqual(t, time.Since(start), o.MaxWait)
	require.EqualValues(t, 1, b.Next)

	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	start = time.Now()
	require.ErrorIs(t, c.Fetch(ctx, "t", 0, 1, &b), context.Canceled)
	require.Less(t, time.Since(start), o.MaxWait)
}

// A request that was given up is answered while its Batch is in use again. It
// must not be reading into the Batch's buffer.
func TestFetchAbandoned(t *testing.T) {
	k, c := cluster(t, quick, kfake.SeedTopics(1, "t"))
	f := franz(t, k, kgo.ProducerBatchCompression(kgo.NoCompression())) // such records lie in that buffer
	for _, v := range []string{"v0", "v1"} {
		require.NoError(t, f.ProduceSync(t.Context(), kgo.StringRecord(v)).FirstErr())
	}
	var b Batch
	require.NoError(t, c.Fetch(t.Context(), "t", 0, 0, &b))

	arrived, answer := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	k.ControlKey(int16(kmsg.Fetch), func(kmsg.Request) (kmsg.Response, error, bool) {
		if once.CompareAndSwap(false, true) {
			close(arrived)
			k.SleepControl(func() { <-answer })
		}
		return nil, nil, false
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	require.ErrorIs(t, c.Fetch(ctx, "t", 0, 1, &b), context.Canceled)
	require.NoError(t, c.Fetch(t.Context(), "t", 0, 0, &b))
	close(answer)
	for range 50 {
		require.Equal(t, []string{"v0", "v1"}, values(&b))
		_, err := c.Topic(t.Context(), "t") // time for the answer to arrive
		require.NoError(t, err)
	}
}

func TestFetchOutOfRange(t *testing.T) {
	k, c := cluster(t, quick, kfake.SeedTopics(1, "t"))
	p := c.Producer("t")
	for range 10 {
		require.NoError(t, p.Produce(t.Context(), Message{Value: []byte("v")}))
	}
	require.NoError(t, k.DeleteRecords("t", 0, 4))
	var b Batch
	var re *RetentionError
	err := c.Fetch(t.Context(), "t", 0, 3, &b)
	require.ErrorAs(t, err, &re)
	require.Equal(t, &RetentionError{"t", 0, 3, 4}, re)
	require.EqualError(t, err, "t/0@3: the log starts at 4: retention removed records that were not read")

	require.NoError(t, c.Fetch(t.Context(), "t", 0, 4, &b))
	require.Len(t, b.Records, 6)
	require.EqualValues(t, 4, b.LogStart)

	var be *BeyondEndError
	require.ErrorAs(t, c.Fetch(t.Context(), "t", 0, 11, &b), &be)
	require.Equal(t, &BeyondEndError{"t", 0, 11, 10}, be)
	require.NoError(t, c.Fetch(t.Context(), "t", 0, 10, &b), "the end itself is where the next record will be")
}

func TestFetchUnknown(t *testing.T) {
	o := quick
	o.RequestTimeout = 300 * time.Millisecond
	_, c := cluster(t, o, kfake.SeedTopics(1, "t"))
	var b Batch
	for _, tt := range []struct {
		topic     string
		partition int
	}{{"nope", 0}, {"t", 1}} {
		require.ErrorIs(t, c.Fetch(t.Context(), tt.topic, tt.partition, 0, &b), ErrUnknownTopic)
		require.ErrorIs(t, c.Producer("nope").Produce(t.Context(), Message{Value: []byte("v")}), ErrUnknownTopic)
	}
	_, err := c.ReadAll(t.Context(), "nope", nil)
	require.ErrorIs(t, err, ErrUnknownTopic)
	for _, brokers := range [][]string{nil, {"localhost"}} {
		_, err := Dial(brokers, Options{})
		require.Error(t, err)
	}
}

// Leaders move while a producer and a reader work; connections break, brokers
// answer with errors that pass. Nothing is lost, and order holds.
func TestLeaderMoves(t *testing.T) {
	o := quick
	var retried atomic.Int64
	o.OnRetry = func(error) { retried.Add(1) }
	k, c := cluster(t, o, kfake.NumBrokers(3), kfake.SeedTopics(1, "t"))
	p := c.Producer("t")
	var b Batch
	next := int64(0)
	for i := range 8 {
		require.NoError(t, k.MoveTopicPartition("t", 0, int32(i%3)))
		if i%2 == 1 {
			k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Err: kerr.KafkaStorageError})
			k.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
				return nil, errors.New("the connection breaks"), true
			})
		}
		require.NoError(t, p.Produce(t.Context(), Message{Value: []byte{byte(i)}}))
		require.NoError(t, c.Fetch(t.Context(), "t", 0, next, &b))
		require.Len(t, b.Records, 1)
		require.Equal(t, []byte{byte(i)}, b.Records[0].Value)
		next = b.Next
	}
	// The first move may lead to where the leader is; a broken connection may
	// be to a broker that no longer leads, and then costs no retry of its own.
	require.GreaterOrEqual(t, retried.Load(), int64(7+4), "each move, and each fault, must have been felt")
}

// What Kafka's error says about waiting decides; here it says that it is final.
func TestFetchRefused(t *testing.T) {
	k, c := cluster(t, quick, kfake.SeedTopics(1, "t"))
	h := k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Err: kerr.TopicAuthorizationFailed, Count: -1})
	var b Batch
	require.ErrorContains(t, c.Fetch(t.Context(), "t", 0, 7, &b), "fetch t/0@7: [29] Topic Authorization Failed")
	require.Equal(t, 1, h.Hits())
}

func TestReadAllOfACompactedTopic(t *testing.T) {
	k, c := cluster(t, quick)
	require.NoError(t, c.EnsureTopic(t.Context(), "tenants", 3, map[string]string{
		"cleanup.policy": "compact", "segment.bytes": "1048576", "delete.retention.ms": "0", "min.cleanable.dirty.ratio": "0",
	}))
	p := c.Producer("tenants")
	for rev := range 4 {
		for i := range 20 {
			m := Message{Key: fmt.Appendf(nil, "tenant-%d", i), Value: fmt.Appendf(nil, "%d", rev)}
			if rev == 3 && i%2 == 0 {
				m.Value = nil
			}
			require.NoError(t, p.Produce(t.Context(), m))
		}
		k.Compact()
	}
	table := map[string]string{}
	last := map[int]int64{}
	next, err := c.ReadAll(t.Context(), "tenants", func(partition int, r Record) error {
		require.GreaterOrEqual(t, r.Offset, last[partition])
		last[partition] = r.Offset + 1
		table[string(r.Key)] = string(r.Value)
		if r.Value == nil {
			delete(table, string(r.Key))
		}
		return nil
	})
	require.NoError(t, err)
	require.Len(t, table, 10)
	for key, v := range table {
		require.Equal(t, "3", v, key)
	}
	ranges, err := c.Offsets(t.Context(), "tenants", []int{0, 1, 2})
	require.NoError(t, err)
	for p, r := range ranges {
		require.Equal(t, r.End, next[p])
	}
	stop := errors.New("stop")
	_, err = c.ReadAll(t.Context(), "tenants", func(int, Record) error { return stop })
	require.Equal(t, stop, err)
}

// The tail, a tombstone, is gone after compaction: the end must still be reached.
func TestReadAllReachesAnEmptiedEnd(t *testing.T) {
	k, c := cluster(t, quick, kfake.SeedTopics(1, "t"))
	serve(k, 8, func(offset int64) []byte {
		if offset <= 2 {
			return rawBatch{base: 2, producer: -1, records: []rawRecord{{0, "kept"}}}.bytes()
		}
		return nil
	})
	k.ControlKey(int16(kmsg.ListOffsets), func(r kmsg.Request) (kmsg.Response, error, bool) {
		k.KeepControl()
		req := r.(*kmsg.ListOffsetsRequest)
		res := req.ResponseKind().(*kmsg.ListOffsetsResponse)
		topic := kmsg.NewListOffsetsResponseTopic()
		topic.Topic = "t"
		p := kmsg.NewListOffsetsResponseTopicPartition()
		p.Offset = map[int64]int64{-2: 0, -1: 8}[req.Topics[0].Partitions[0].Timestamp]
		topic.Partitions = append(topic.Partitions, p)
		res.Topics = append(res.Topics, topic)
		return res, nil, true
	})
	got := []string{}
	next, err := c.ReadAll(t.Context(), "t", func(_ int, r Record) error { got = append(got, string(r.Value)); return nil })
	require.NoError(t, err)
	require.Equal(t, []string{"kept"}, got)
	require.Equal(t, map[int]int64{0: 8}, next)
}

func TestTopicIdentity(t *testing.T) {
	k, c := cluster(t, quick)
	ctx := t.Context()
	require.NoError(t, c.EnsureTopic(ctx, "t", 3, nil))
	require.NoError(t, c.EnsureTopic(ctx, "t", 5, nil), "an existing topic is left alone")
	first, err := c.Topic(ctx, "t")
	require.NoError(t, err)
	require.Equal(t, []int{0, 1, 2}, first.Partitions)
	require.NotEmpty(t, first.Cluster)
	require.Len(t, first.ID, 32)
	require.NotEqual(t, strings.Repeat("0", 32), first.ID)
	require.NoError(t, k.DeleteTopic("t"))
	_, err = c.Topic(ctx, "t")
	require.ErrorIs(t, err, ErrUnknownTopic)
	require.NoError(t, c.EnsureTopic(ctx, "t", 1, nil))
	again, err := c.Topic(ctx, "t")
	require.NoError(t, err)
	require.NotEqual(t, first.ID, again.ID)
	require.Equal(t, first.Cluster, again.Cluster)
	k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.CreateTopics}, Err: kerr.NotController}, kfake.Fault{Keys: []kmsg.Key{kmsg.CreateTopics}, Err: kerr.PolicyViolation})
	require.ErrorContains(t, c.EnsureTopic(ctx, "t2", 1, nil), "create topic t2: [44] Policy Violation", "after a retry")
}

// Brokers before 2.8 know no topic ids; everything else works with them.
func TestOldBroker(t *testing.T) {
	_, c := cluster(t, quick, kfake.SeedTopics(2, "t"), kfake.MaxVersions(kversion.V2_1_0()))
	info, err := c.Topic(t.Context(), "t")
	require.NoError(t, err)
	require.Empty(t, info.ID)
	require.Equal(t, []int{0, 1}, info.Partitions)
	require.NoError(t, c.Producer("t").Produce(t.Context(), Message{Key: []byte("k"), Value: []byte("v")}))
	got := append(drain(t, c, "t", 0, 0), drain(t, c, "t", 1, 0)...)
	require.Equal(t, []string{"v"}, got)
}

// One broker does not hear of a topic: another is asked.
func TestTopicUnknownToOneBroker(t *testing.T) {
	k, c := cluster(t, quick, kfake.NumBrokers(3), kfake.SeedTopics(2, "t"))
	late := int32(-1) // whoever is asked first
	k.ControlKey(int16(kmsg.Metadata), func(r kmsg.Request) (kmsg.Response, error, bool) {
		k.KeepControl()
		if late < 0 {
			late = k.CurrentNode()
		}
		if k.CurrentNode() != late {
			return nil, nil, false
		}
		req := r.(*kmsg.MetadataRequest)
		res := req.ResponseKind().(*kmsg.MetadataResponse)
		res.ControllerID = late
		for i, addr := range k.ListenAddrs() {
			host, port, err := net.SplitHostPort(addr)
			require.NoError(t, err)
			b := kmsg.NewMetadataResponseBroker()
			b.NodeID, b.Host = int32(i), host
			n, err := strconv.Atoi(port)
			require.NoError(t, err)
			b.Port = int32(n)
			res.Brokers = append(res.Brokers, b)
		}
		for _, topic := range req.Topics {
			x := kmsg.NewMetadataResponseTopic()
			x.Topic, x.ErrorCode = topic.Topic, 3 // UNKNOWN_TOPIC_OR_PARTITION
			res.Topics = append(res.Topics, x)
		}
		return res, nil, true
	})
	info, err := c.Topic(t.Context(), "t")
	require.NoError(t, err)
	require.Len(t, info.Partitions, 2)
	require.GreaterOrEqual(t, late, int32(0))
}
