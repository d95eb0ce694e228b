package kafkaio

import (
	"encoding/binary"
	"hash/crc32"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// quick are options under which waiting, for what a test waits for, is short.
var quick = Options{MaxWait: 50 * time.Millisecond, RequestTimeout: 5 * time.Second, SessionTimeout: time.Second}

func cluster(t testing.TB, o Options, opts ...kfake.Opt) (*kfake.Cluster, *Client) {
	t.Helper()
	k, err := kfake.NewCluster(append([]kfake.Opt{
		kfake.NumBrokers(1), kfake.DataDir(t.TempDir()), kfake.GroupMinSessionTimeout(100 * time.Millisecond),
	}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(k.Close)
	c, err := Dial(k.ListenAddrs(), o)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return k, c
}

// rawBatch is a v2 record batch, written by hand so that it can be wrong.
type rawBatch struct {
	base     int64
	last     int32 // offset delta of the last record, also of those that compaction removed
	attrs    uint16
	producer int64
	records  []rawRecord
	count    int32 // if not 0, lies about the number of records
	tail     []byte
}

type rawRecord struct {
	delta int64
	value string
}

func (r rawBatch) bytes() []byte {
	body := []byte{}
	for _, rec := range r.records {
		x := []byte{0, 0} // attributes, timestamp delta
		x = binary.AppendVarint(x, rec.delta)
		x = binary.AppendVarint(x, -1) // key
		x = binary.AppendVarint(x, int64(len(rec.value)))
		x = append(x, rec.value...)
		x = append(x, 0) // headers
		body = append(binary.AppendVarint(body, int64(len(x))), x...)
	}
	body = append(body, r.tail...)
	count := int32(len(r.records))
	if r.count != 0 {
		count = r.count
	}
	b := make([]byte, batchHeader, batchHeader+len(body))
	binary.BigEndian.PutUint64(b[0:], uint64(r.base))
	binary.BigEndian.PutUint32(b[8:], uint32(batchHeader-batchUncounted+len(body)))
	b[16] = 2
	binary.BigEndian.PutUint16(b[21:], r.attrs)
	binary.BigEndian.PutUint32(b[23:], uint32(r.last))
	binary.BigEndian.PutUint64(b[27:], 1_790_000_000_000)
	binary.BigEndian.PutUint64(b[35:], 1_790_000_000_777)
	binary.BigEndian.PutUint64(b[43:], uint64(r.producer))
	binary.BigEndian.PutUint32(b[57:], uint32(count))
	b = append(b, body...)
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], castagnoli))
	return b
}

// serve makes the broker answer every fetch of a partition with what log
// returns for the offset, and with that high watermark. It counts the fetches.
func serve(k *kfake.Cluster, end int64, log func(offset int64) []byte) *int {
	n := new(int)
	k.ControlKey(int16(kmsg.Fetch), func(r kmsg.Request) (kmsg.Response, error, bool) {
		k.KeepControl()
		*n++
		req := r.(*kmsg.FetchRequest)
		res := req.ResponseKind().(*kmsg.FetchResponse)
		t := kmsg.NewFetchResponseTopic()
		t.Topic = req.Topics[0].Topic
		p := kmsg.NewFetchResponseTopicPartition()
		p.HighWatermark, p.LastStableOffset, p.LogStartOffset = end, end, 0
		p.RecordBatches = log(req.Topics[0].Partitions[0].FetchOffset)
		t.Partitions = append(t.Partitions, p)
		res.Topics = append(res.Topics, t)
		return res, nil, true
	})
	return n
}

func values(b *Batch) []string {
	out := []string{}
	for _, r := range b.Records {
		out = append(out, string(r.Value))
	}
	return out
}

// drain fetches from offset until the log's readable end.
func drain(t testing.TB, c *Client, topic string, partition int, offset int64) []string {
	t.Helper()
	out := []string{}
	var b Batch
	for {
		require.NoError(t, c.Fetch(t.Context(), topic, partition, offset, &b))
		out = append(out, values(&b)...)
		if b.Next >= b.LastStable {
			return out
		}
		offset = b.Next
	}
}
