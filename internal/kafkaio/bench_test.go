package kafkaio

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// brokerProcess is the variable by which a benchmark starts this test binary
// again, as its broker: "RECORDS BYTES CODEC" of the batch that it serves.
const brokerProcess = "KAFKAIO_BENCHMARK_BROKER"

func TestMain(m *testing.M) {
	if spec := os.Getenv(brokerProcess); spec != "" {
		serveSynthetic(spec)
		return
	}
	os.Exit(m.Run())
}

// serveSynthetic serves until stdin ends, and tells its address on stdout. Half
// of each value repeats and half is random: zstd packs it to about half.
func serveSynthetic(spec string) {
	var records, bytes int
	var codec string
	if _, err := fmt.Sscan(spec, &records, &bytes, &codec); err != nil {
		panic(err)
	}
	c := kgo.NoCompression()
	if codec == "zstd" {
		c = kgo.ZstdCompression()
	}
	k, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(4, "t"), kfake.SyntheticFetch(kfake.SyntheticBatch{
		Records: records, RecordBytes: bytes, RandomFrac: 0.5, Compression: c,
	}))
	if err != nil {
		panic(err)
	}
	defer k.Close()
	fmt.Println(k.ListenAddrs()[0])
	_, _ = os.Stdin.Read(make([]byte, 1))
}

func startSynthetic(b *testing.B, records, bytes int, codec string) string {
	cmd := exec.CommandContext(b.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d %s", brokerProcess, records, bytes, codec))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	require.NoError(b, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(b, err)
	require.NoError(b, cmd.Start())
	b.Cleanup(func() {
		require.NoError(b, stdin.Close())
		_ = cmd.Wait()
	})
	addr, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(b, err)
	return strings.TrimSpace(addr)
}

// next returns the offset and the value of the next record of a partition.
type next func() (int64, []byte, error)

// BenchmarkFetch reads four partitions at once from a broker that is another
// process, so that its CPU is not in "MB/cpu-s": megabytes of values for each
// second that our CPUs were busy. The peer is kafka-go's Reader, which checks
// less: no checksums, no aborted transactions.
func BenchmarkFetch(b *testing.B) {
	for _, codec := range []string{"none", "zstd"} {
		for _, size := range []int{1 << 10, 4 << 10} {
			b.Run(fmt.Sprintf("%s/%dKiB", codec, size>>10), func(b *testing.B) {
				addr := startSynthetic(b, 256<<10/size, size, codec)
				b.Run("client=winnow", func(b *testing.B) {
					c, err := Dial([]string{addr}, Options{})
					require.NoError(b, err)
					defer c.Close()
					benchmarkReaders(b, size, func(p int) next { return ours(b.Context(), c, p) })
				})
				b.Run("client=kafka-go.Reader", func(b *testing.B) {
					benchmarkReaders(b, size, func(p int) next {
						r := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{addr}, Topic: "t", Partition: p, MaxBytes: 1 << 20, MaxWait: 250 * time.Millisecond})
						b.Cleanup(func() { r.Close() })
						return func() (int64, []byte, error) {
							m, err := r.ReadMessage(b.Context())
							return m.Offset, m.Value, err
						}
					})
				})
			})
		}
	}
}

func ours(ctx context.Context, c *Client, p int) next {
	var batch Batch
	i := 0
	return func() (int64, []byte, error) {
		for i == len(batch.Records) {
			if err := c.Fetch(ctx, "t", p, batch.Next, &batch); err != nil {
				return 0, nil, err
			}
			i = 0
		}
		r := &batch.Records[i]
		i++
		return r.Offset, r.Value, nil
	}
}

// benchmarkReaders reads 32 MiB of values in each iteration, from 4 partitions.
func benchmarkReaders(b *testing.B, size int, open func(partition int) next) {
	const partitions = 4
	records := 32 << 20 / size / partitions
	readers := make([]next, partitions)
	at := make([]int64, partitions)
	for p := range readers {
		readers[p] = open(p)
	}
	read := func() {
		var all sync.WaitGroup
		for p, next := range readers {
			all.Go(func() {
				for range records {
					offset, value, err := next()
					if err != nil || offset != at[p] || len(value) != size {
						b.Errorf("partition %d: offset %d, not %d; %d bytes; %v", p, offset, at[p], len(value), err)
						return
					}
					at[p]++
				}
			})
		}
		all.Wait()
	}
	read() // and verified: every record, in order
	require.False(b, b.Failed())
	b.SetBytes(32 << 20)
	b.ReportAllocs()
	before := cpuTime(b)
	for b.Loop() {
		read()
	}
	b.ReportMetric(float64(b.N)*(32<<20)/1e6/(cpuTime(b)-before).Seconds(), "MB/cpu-s")
}

// cpuTime is what this process has used, in user and kernel mode.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
