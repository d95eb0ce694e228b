//go:build kafka

package kafkaio

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/segmentio/kafka-go/compress"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"winnow/internal/testkit/apache"
)

// TestKafka is what kafkaio relies on, told by Apache Kafka rather than by the
// embedded broker: by the cluster that KAFKA_BROKERS names, else by one node
// that the test starts. The tests that end processes are TestOwnKafka….
func TestKafka(t *testing.T) {
	var brokers []string
	if list := os.Getenv("KAFKA_BROKERS"); list != "" {
		brokers = strings.Split(list, ",")
	} else {
		brokers = startKafka(t, apache.Options{}).Brokers()
	}
	for _, tt := range []struct {
		name string
		test func(*testing.T, *kafkaTopic)
	}{
		{"each codec as the broker writes it", codecsOfTheBroker},
		{"each codec as other clients write it", codecsOfOthers},
		{"append time", appendTime},
		{"large and too large", largeMessages},
		{"only committed records", onlyCommitted},
		{"a compacted topic with emptied batches", compacted},
		{"retention", retention},
		{"a topic made again", madeAgain},
		{"members share partitions", shared},
		{"a silent member expires", silentMember},
		{"partitions are added", addedPartitions},
		{"hints", hints},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // most of them wait most of the time
			tt.test(t, newKafkaTopic(t, brokers))
		})
	}
}

// ofKafka are options that the defaults of Apache Kafka allow.
var ofKafka = Options{MaxWait: 50 * time.Millisecond, RequestTimeout: 5 * time.Second, SessionTimeout: 6 * time.Second}

func startKafka(t *testing.T, o apache.Options) *apache.Cluster {
	t.Helper()
	k, err := apache.Start(t.Context(), t.TempDir(), o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, k.Close()) })
	return k
}

// kafkaTopic is a topic, not made yet, of a name that nobody else has, which is
// also the name of a group.
type kafkaTopic struct {
	*Client
	name    string
	brokers []string
}

func newKafkaTopic(t *testing.T, brokers []string) *kafkaTopic {
	t.Helper()
	c, err := Dial(brokers, ofKafka)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	k := &kafkaTopic{c, "winnow-test-" + uuid.NewString(), brokers}
	t.Cleanup(func() { _ = k.delete(context.Background(), k.franz(t)) })
	return k
}

func (k *kafkaTopic) make(t *testing.T, partitions int, config map[string]string) {
	t.Helper()
	require.NoError(t, k.EnsureTopic(t.Context(), k.name, partitions, config))
}

// franz is another client, to do what kafkaio can't.
func (k *kafkaTopic) franz(t *testing.T, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	f, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(k.brokers...), kgo.DefaultProduceTopic(k.name), kgo.ProducerLinger(0)}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(f.Close)
	return f
}

func (k *kafkaTopic) delete(ctx context.Context, f *kgo.Client) error {
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.TopicNames = []string{k.name}
	topic := kmsg.NewDeleteTopicsRequestTopic()
	topic.Topic = &k.name
	req.Topics = append(req.Topics, topic)
	res, err := req.RequestWith(ctx, f)
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(res.Topics[0].ErrorCode)
}

// stored returns the batches of partition 0 as the broker holds them, from the
// log's start on, each with its header. They must fit in one fetch.
func (k *kafkaTopic) stored(t *testing.T) (batches [][]byte) {
	t.Helper()
	f := k.franz(t, kgo.MaxVersions(kversion.V3_0_0())) // later ones name topics by id
	defer f.Close()
	meta := kmsg.NewPtrMetadataRequest()
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = &k.name
	meta.Topics = append(meta.Topics, topic)
	m, err := meta.RequestWith(t.Context(), f)
	require.NoError(t, err)
	p := kmsg.NewFetchRequestTopicPartition()
	p.PartitionMaxBytes = 16 << 20
	req := kmsg.NewPtrFetchRequest()
	req.MaxBytes, req.SessionEpoch = p.PartitionMaxBytes, -1
	req.Topics = []kmsg.FetchRequestTopic{{Topic: k.name, Partitions: []kmsg.FetchRequestTopicPartition{p}}}
	res, err := req.RequestWith(t.Context(), f.Broker(int(m.Topics[0].Partitions[0].Leader)))
	require.NoError(t, err)
	require.Zero(t, res.Topics[0].Partitions[0].ErrorCode)
	for set := res.Topics[0].Partitions[0].RecordBatches; len(set) > 0; {
		n := batchUncounted + int(binary.BigEndian.Uint32(set[8:]))
		batches = append(batches, set[:n])
		set = set[n:]
	}
	return batches
}

// awaitEnd waits until partition 0 is readable up to an offset: the broker
// writes a transaction's markers after it has acknowledged its end.
func (k *kafkaTopic) awaitEnd(t *testing.T, end int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		ranges, err := k.Offsets(ctx, k.name, []int{0})
		require.NoError(t, err)
		if ranges[0].End == end {
			return
		}
		require.Less(t, ranges[0].End, end)
		require.NoError(t, wait(ctx, 10*time.Millisecond), "readable up to %d only", ranges[0].End)
	}
}

func storedCodec(batch []byte) compress.Compression {
	return compress.Compression(batch[22] & attrCodec)
}
func storedCount(batch []byte) int { return int(binary.BigEndian.Uint32(batch[57:])) }

var codecs = map[string]compress.Compression{
	"uncompressed": compress.None, "gzip": compress.Gzip, "snappy": compress.Snappy, "lz4": compress.Lz4, "zstd": compress.Zstd,
}

// The broker packs anew what we send, with the codecs of Java.
func codecsOfTheBroker(t *testing.T, k *kafkaTopic) {
	at := time.UnixMilli(1_790_000_000_123).UTC()
	sent := []Message{
		{Key: []byte("k0"), Value: bytes.Repeat([]byte("long "), 50_000), Time: at, Headers: []Header{{"ce_id", []byte("1")}, {"null", nil}}},
		{Key: []byte("k1"), Time: at.Add(time.Second)}, // a tombstone
		{Value: []byte("v"), Time: at.Add(-time.Second)},
	}
	for name, codec := range codecs {
		one := newKafkaTopic(t, k.brokers)
		one.make(t, 1, map[string]string{"compression.type": name})
		require.NoError(t, one.Producer(one.name).Produce(t.Context(), sent...), name)
		batches := one.stored(t)
		require.Len(t, batches, 1, name)
		require.Equal(t, codec, storedCodec(batches[0]), name)
		var b Batch
		require.NoError(t, one.Fetch(t.Context(), one.name, 0, 0, &b), name)
		require.Equal(t, [4]int64{3, 3, 3, 0}, [4]int64{b.Next, b.HighWatermark, b.LastStable, b.LogStart}, name)
		require.Len(t, b.Records, len(sent), name)
		for i, r := range b.Records {
			require.Equal(t, Record{int64(i), sent[i].Time, sent[i].Key, sent[i].Value, sent[i].Headers}, r, name)
		}
	}
}

func codecsOfOthers(t *testing.T, k *kafkaTopic) {
	k.make(t, 1, nil)
	var want []string
	for i, codec := range []kgo.CompressionCodec{
		kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression(),
	} {
		v := fmt.Sprint(i, strings.Repeat(" long", 1000))
		require.NoError(t, k.franz(t, kgo.ProducerBatchCompression(codec)).ProduceSync(t.Context(), kgo.StringRecord(v)).FirstErr())
		want = append(want, v)
	}
	seen := map[compress.Compression]bool{}
	for _, b := range k.stored(t) {
		seen[storedCodec(b)] = true
	}
	require.Len(t, seen, len(codecs))
	require.Equal(t, want, drain(t, k.Client, k.name, 0, 0))
}

func appendTime(t *testing.T, k *kafkaTopic) {
	k.make(t, 1, map[string]string{"message.timestamp.type": "LogAppendTime"})
	before := time.Now().Add(-time.Minute)
	require.NoError(t, k.Producer(k.name).Produce(t.Context(), Message{Time: time.UnixMilli(1), Value: []byte("v")}))
	var b Batch
	require.NoError(t, k.Fetch(t.Context(), k.name, 0, 0, &b))
	require.Len(t, b.Records, 1)
	require.WithinRange(t, b.Records[0].Time, before, before.Add(2*time.Minute))
}

func largeMessages(t *testing.T, k *kafkaTopic) {
	const limit = 9 << 20
	k.make(t, 1, map[string]string{"max.message.bytes": fmt.Sprint(limit)})
	random := rand.NewChaCha8([32]byte{1})
	value := func(n int) []byte { v := make([]byte, n); _, _ = random.Read(v); return v }
	large := value(8 << 20) // schema's largest value, of bytes that zstd can't pack
	p := k.Producer(k.name)
	require.NoError(t, p.Produce(t.Context(), Message{Value: []byte("a")}, Message{Value: large}, Message{Value: []byte("b")}))
	err := p.Produce(t.Context(), Message{Value: []byte("c")}, Message{Value: value(limit + 1)}, Message{Value: []byte("d")})
	var errs MessageErrors
	require.ErrorAs(t, err, &errs)
	require.Len(t, errs, 1)
	require.Equal(t, 1, errs[0].Index)
	require.ErrorIs(t, err, ErrTooLarge)
	got := drain(t, k.Client, k.name, 0, 0)
	require.Len(t, got, 5)
	require.Equal(t, []string{"a", "b", "c", "d"}, []string{got[0], got[2], got[3], got[4]})
	require.True(t, got[1] == string(large))
}

// Two producers' transactions interleave; half of them abort. From any offset,
// what is read is what was committed at or above it.
func onlyCommitted(t *testing.T, k *kafkaTopic) {
	k.make(t, 1, nil)
	ctx := t.Context()
	fs := []*kgo.Client{k.franz(t, kgo.TransactionalID(k.name+"-x")), k.franz(t, kgo.TransactionalID(k.name+"-y"))}
	committed := map[int64]string{}
	for round := range 4 {
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

	const end = 24 // 4 rounds of 4 records and 2 markers; an open transaction is not readable
	k.awaitEnd(t, end)
	for from := range int64(end) {
		want := []string{}
		for o := from; o < end; o++ {
			if v, ok := committed[o]; ok {
				want = append(want, v)
			}
		}
		require.Equal(t, want, drain(t, k.Client, k.name, 0, from), "from %d", from)
	}
	require.NoError(t, fs[0].EndTransaction(ctx, kgo.TryAbort))
	k.awaitEnd(t, 26)
	next, err := k.ReadAll(ctx, k.name, func(_ int, r Record) error {
		require.Equal(t, committed[r.Offset], string(r.Value))
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, map[int]int64{0: 26}, next, "past the records and the marker that end the log")
}

// Kafka's cleaner keeps the last batch of each idempotent producer, empty if it
// must be, and so leaves batches without records at the head of the log and in
// the middle; an aborted transaction ends it with a marker.
func compacted(t *testing.T, k *kafkaTopic) {
	k.make(t, 1, map[string]string{
		"cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.01", "delete.retention.ms": "0",
	})
	ctx := t.Context()
	want := map[string]string{}
	for round := range 4 {
		f := k.franz(t) // a producer of its own, hence an empty batch
		for i := range 5 {
			key, value := fmt.Sprint("tenant-", i), fmt.Sprint("round ", round)
			// The times roll the segments: only what lies before the last one is cleaned.
			r := &kgo.Record{Key: []byte(key), Value: []byte(value), Timestamp: time.Now().Add(time.Duration(round*5+i-100) * time.Second)}
			if round == 3 && i == 2 {
				r.Value = nil
				delete(want, key)
			} else {
				want[key] = value
			}
			require.NoError(t, f.ProduceSync(ctx, r).FirstErr())
		}
	}
	f := k.franz(t, kgo.TransactionalID(k.name))
	require.NoError(t, f.BeginTransaction())
	require.NoError(t, f.ProduceSync(ctx, &kgo.Record{Key: []byte("tenant-0"), Value: []byte("aborted")}).FirstErr())
	require.NoError(t, f.EndTransaction(ctx, kgo.TryAbort))

	k.awaitEnd(t, 22)
	k.o.MaxBytes = 1 // one batch a fetch: an empty one comes alone

	// What the cleaner has not reached is superseded by what follows it, so a
	// reader has the same table before and after. Emptied batches at the head
	// and behind it say that it has been there.
	cleaned := func() bool {
		got, records := map[string]string{}, 0
		next, err := k.ReadAll(ctx, k.name, func(_ int, r Record) error {
			records++
			if got[string(r.Key)] = string(r.Value); r.Value == nil {
				delete(got, string(r.Key))
			}
			return nil
		})
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.Equal(t, map[int]int64{0: 22}, next)
		empty := 0
		batches := k.stored(t)
		for _, b := range batches {
			if storedCount(b) == 0 {
				empty++
			}
		}
		return records <= 5 && storedCount(batches[0]) == 0 && empty >= 3
	}
	for deadline := time.Now().Add(2 * time.Minute); !cleaned(); {
		require.True(t, time.Now().Before(deadline), "the log cleaner does nothing")
		require.NoError(t, wait(ctx, 100*time.Millisecond)) // it tells nobody
	}

	var all []Record
	var b Batch
	for at := int64(0); at < 22; at = b.Next {
		require.NoError(t, k.Fetch(ctx, k.name, 0, at, &b))
		require.EqualValues(t, 0, b.LogStart, "compaction does not move it")
		for _, r := range b.Records {
			all = append(all, Record{Offset: r.Offset, Value: bytes.Clone(r.Value)})
		}
	}
	for from := range int64(22) {
		want := []string{}
		for _, r := range all {
			if r.Offset >= from {
				want = append(want, string(r.Value))
			}
		}
		require.Equal(t, want, drain(t, k.Client, k.name, 0, from), "from %d", from)
	}
}

func retention(t *testing.T, k *kafkaTopic) {
	k.make(t, 1, nil)
	var msgs []Message // one batch: its first records are removed, though stored
	for i := range 10 {
		msgs = append(msgs, Message{Value: fmt.Append(nil, i)})
	}
	require.NoError(t, k.Producer(k.name).Produce(t.Context(), msgs...))
	req := kmsg.NewPtrDeleteRecordsRequest()
	topic := kmsg.NewDeleteRecordsRequestTopic()
	partition := kmsg.NewDeleteRecordsRequestTopicPartition()
	partition.Offset = 7
	topic.Topic, topic.Partitions = k.name, append(topic.Partitions, partition)
	req.Topics, req.TimeoutMillis = append(req.Topics, topic), 5000
	for _, r := range k.franz(t).RequestSharded(t.Context(), req) {
		require.NoError(t, r.Err)
		require.Zero(t, r.Resp.(*kmsg.DeleteRecordsResponse).Topics[0].Partitions[0].ErrorCode)
	}
	var b Batch
	err := k.Fetch(t.Context(), k.name, 0, 3, &b)
	require.Equal(t, &RetentionError{k.name, 0, 3, 7}, err)
	require.Equal(t, []string{"7", "8", "9"}, drain(t, k.Client, k.name, 0, 7))
	err = k.Fetch(t.Context(), k.name, 0, 11, &b)
	require.Equal(t, &BeyondEndError{k.name, 0, 11, 10}, err)
	n := 0
	next, err := k.ReadAll(t.Context(), k.name, func(int, Record) error { n++; return nil })
	require.NoError(t, err)
	require.Equal(t, 3, n)
	require.Equal(t, map[int]int64{0: 10}, next)
}

func madeAgain(t *testing.T, k *kafkaTopic) {
	k.make(t, 1, nil)
	ctx := t.Context()
	require.NoError(t, k.Producer(k.name).Produce(ctx, Message{Value: []byte("a")}, Message{Value: []byte("b")}))
	before, err := k.Topic(ctx, k.name)
	require.NoError(t, err)
	require.Len(t, before.ID, 32)
	require.NotEmpty(t, before.Cluster)
	require.NoError(t, k.delete(ctx, k.franz(t)))
	var b Batch
	require.ErrorIs(t, k.Fetch(ctx, k.name, 0, 2, &b), ErrUnknownTopic)
	k.make(t, 1, nil)
	other := newKafkaTopic(t, k.brokers) // has not seen the topic that was
	after, err := other.Topic(ctx, k.name)
	require.NoError(t, err)
	require.Equal(t, before.Cluster, after.Cluster)
	require.NotEqual(t, before.ID, after.ID)
	require.Equal(t, &TopicChangedError{k.name, before.ID, after.ID}, k.Fetch(ctx, k.name, 0, 2, &b))
	require.Equal(t, &BeyondEndError{k.name, 0, 2, 0}, other.Fetch(ctx, k.name, 0, 2, &b))
}
