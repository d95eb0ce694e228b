//go:build bench

package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"

	"winnow/internal/ingest"
	"winnow/internal/kafkaio"
	"winnow/pkg/batch"
	"winnow/pkg/gate"
	"winnow/pkg/schema"
	"winnow/pkg/scrub"
)

const (
	benchPartitions = 4
	benchBytes      = 96 << 20 // of values on each topic
)

// benchTopic fills a topic with a tenant's issues of about size bytes, whose
// texts and people are those of the fixtures, and returns how many there are
// and their bytes.
func benchTopic(b *testing.B, client *kafkaio.Client, topic, tenant string, size int) (records, total int64) {
	b.Helper()
	require.NoError(b, ingest.EnsureEvents(b.Context(), client, topic, benchPartitions))
	raw, err := os.ReadFile("../../fixtures/events/jira-rest.jsonl")
	require.NoError(b, err)
	var texts []string
	var people []any
	for _, line := range bytes.Split(bytes.TrimSpace(raw), []byte("\n")) {
		var e struct {
			Data   json.RawMessage
			Fields map[string]any
		}
		if json.Unmarshal(line, &e) != nil {
			continue
		}
		v := e
		if e.Data != nil && json.Unmarshal(e.Data, &v) != nil {
			continue
		}
		if s, ok := v.Fields["description"].(string); ok {
			texts = append(texts, s)
		}
		if p, ok := v.Fields["reporter"].(map[string]any); ok {
			for k := range p {
				if !slices.Contains([]string{"accountId", "displayName", "emailAddress", "name"}, k) {
					delete(p, k)
				}
			}
			people = append(people, p)
		}
	}
	require.NotEmpty(b, texts)
	require.NotEmpty(b, people)
	rng := rand.New(rand.NewPCG(1, uint64(size)))
	p := client.Producer(topic)
	var ms []kafkaio.Message
	flush := func() {
		require.NoError(b, p.Produce(b.Context(), ms...))
		ms = ms[:0]
	}
	for total < benchBytes {
		records++
		fields := map[string]any{"summary": "Benchmark", "reporter": people[rng.IntN(len(people))], "assignee": people[rng.IntN(len(people))]}
		issue := map[string]any{"id": fmt.Sprint(records), "key": "B-1", "fields": fields}
		empty, err := json.Marshal(issue)
		require.NoError(b, err)
		var text strings.Builder
		for text.Len() < size-len(empty)-20 {
			text.WriteString(texts[rng.IntN(len(texts))])
			text.WriteString("\n")
		}
		fields["description"] = strings.ToValidUTF8(text.String()[:max(1, size-len(empty)-20)], "")
		value, err := json.Marshal(issue)
		require.NoError(b, err)
		e := schema.Envelope{ID: ingest.EventID(fmt.Sprint(topic, records)), Origin: "bench", Type: "winnow.jira.rest.issue", Time: fixedNow.Add(-time.Hour), Tenant: tenant, Product: schema.Jira}
		ms = append(ms, kafkaio.Message{Key: []byte(fmt.Sprint(records)), Value: value, Headers: e.AppendHeaders(nil), Time: fixedNow})
		total += int64(len(value))
		if len(ms) == 4000 {
			flush()
		}
	}
	flush()
	require.NoError(b, p.Close())
	return records, total
}

// cpu returns the processor time that this process has used; the broker is
// another process.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLine measures, over the same records, what consuming costs, what the
// frame costs (consume, write, commit), what the whole line costs, and what a
// plain consumer costs that passes records through to gzip JSON; and what the
// line costs when the tenant of all of them is exempt, so that nothing is
// parsed. Figures per core are per second of processor time of this process.
func BenchmarkLine(b *testing.B) {
	broker := startBroker(b, filepath.Join(b.TempDir(), "broker"))
	client, err := kafkaio.Dial([]string{broker.addr()}, kafkaio.Options{ClientID: "bench"})
	require.NoError(b, err)
	defer client.Close()
	for _, size := range []int{1 << 10, 4 << 10} {
		topic := fmt.Sprint("bench-", size)
		records, total := benchTopic(b, client, topic, gate.LocalTenant, size)
		dropped := topic + "-exempt"
		exempt, exemptTotal := benchTopic(b, client, dropped, "exempt", size)
		require.InEpsilon(b, total, exemptTotal, 0.001)
		require.InEpsilon(b, records, exempt, 0.001)
		run := func(name string, records, total int64, pass func(b *testing.B) (got int64)) {
			b.Run(fmt.Sprintf("%s/%dKiB", name, size>>10), func(b *testing.B) {
				b.SetBytes(total)
				b.ReportAllocs()
				began := cpu()
				for b.Loop() {
					require.Equal(b, records, pass(b))
				}
				used := (cpu() - began).Seconds()
				b.ReportMetric(float64(total)*float64(b.N)/1e6/used, "MB/core-s")
				b.ReportMetric(float64(records)*float64(b.N)/used, "records/core-s")
			})
		}
		run("consume", records, total, func(b *testing.B) int64 {
			return consume(b, client, topic, func(int) func(*kafkaio.Batch) { return func(*kafkaio.Batch) {} })
		})
		for _, f := range []batch.Format{batch.Parquet, batch.JSONL} {
			run("frame-"+f.String(), records, total, func(b *testing.B) int64 { return frame(b, client, topic, f) })
			run("line-"+f.String(), records, total, func(b *testing.B) int64 {
				s := wholeLine(b, client, topic, f)
				require.Equal(b, s.records, s.documents)
				return s.records
			})
		}
		run("line-dropped", exempt, exemptTotal, func(b *testing.B) int64 {
			s := wholeLine(b, client, dropped, batch.Parquet)
			require.Equal(b, s.records, s.inAppDrops[gate.ExemptHIPAA])
			require.Zero(b, s.metadata)
			return s.records
		})
		run("peer-reader-gzip", records, total, func(b *testing.B) int64 { return peer(b, broker.addr(), topic) })
	}
}

// consume reads the topic to its end, a goroutine for each partition.
func consume(b *testing.B, client *kafkaio.Client, topic string, open func(partition int) func(*kafkaio.Batch)) int64 {
	ranges, err := client.Offsets(b.Context(), topic, []int{0, 1, 2, 3})
	require.NoError(b, err)
	var n atomic.Int64
	var all sync.WaitGroup
	for p, r := range ranges {
		take := open(p)
		all.Go(func() {
			var batch kafkaio.Batch
			for at := r.Start; at < r.End; at = batch.Next {
				if err := client.Fetch(b.Context(), topic, p, at, &batch); err != nil {
					panic(err)
				}
				n.Add(int64(len(batch.Records)))
				take(&batch)
			}
			batch.Records = batch.Records[:0]
			take(&batch)
		})
	}
	all.Wait()
	return n.Load()
}

var benchLimits = flushLimits{FlushBytes: 32 << 20, FlushRecords: 10_000, FlushAge: time.Minute}

// frame writes each value as the text of a row.
func frame(b *testing.B, client *kafkaio.Client, topic string, f batch.Format) int64 {
	store, err := batch.Create(filepath.Join(b.TempDir(), "out"))
	require.NoError(b, err)
	defer os.RemoveAll(store.String())
	return consume(b, client, topic, func(p int) func(*kafkaio.Batch) {
		w, err := store.Writer(context.Background(), topic, p, batch.Options{Format: f})
		require.NoError(b, err)
		var e schema.Event
		var parts [1]scrub.Part
		return func(in *kafkaio.Batch) {
			for i := range in.Records {
				r := &in.Records[i]
				var err error
				if e.Envelope, err = schema.ParseHeaders(r.Headers); err != nil {
					panic(err)
				}
				e.Source, e.Value = schema.Source{Topic: topic, Partition: p, Offset: r.Offset}, r.Value
				e.Streams, e.Region = schema.Metadata|schema.InApp, "eu"
				if err := w.Add(scrub.Verbatim(&e, "issue", parts[:])); err != nil {
					panic(err)
				}
			}
			if bytes, records := w.Buffered(); records > 0 && (len(in.Records) == 0 || bytes >= benchLimits.FlushBytes || records >= benchLimits.FlushRecords) {
				if _, err := w.Commit(in.Next - 1); err != nil {
					panic(err)
				}
			}
		}
	})
}

// exemptTenant is the tenant of events that are dropped.
const exemptTenant = `{"tenant":"exempt","org":"org-exempt","hosts":["exempt.example"],"region":"eu","revision":1,"history":[{"at":"2026-01-01T00:00:00Z","set":{"plans":{"jira":"standard"},"sector":"retail","in_app":"on","hipaa":true}}]}`

// wholeLine runs the worker until it has drained the topic.
func wholeLine(b *testing.B, client *kafkaio.Client, topic string, f batch.Format) totals {
	store, err := batch.Create(filepath.Join(b.TempDir(), "out"))
	require.NoError(b, err)
	defer os.RemoveAll(store.String())
	ranges, err := client.Offsets(b.Context(), topic, []int{0, 1, 2, 3})
	require.NoError(b, err)
	drain := map[int]int64{}
	for p, r := range ranges {
		drain[p] = r.End
	}
	policy := gate.NewPolicy(gate.Options{AssumeConsent: true})
	require.NoError(b, policy.Put("exempt", []byte(exemptTenant)))
	w := &worker{
		client: client, store: store, policy: policy, now: time.Now,
		log: slog.New(slog.DiscardHandler), topic: topic, group: fmt.Sprint("bench-", rand.Int64()), flush: benchLimits,
		opts: batch.Options{Format: f}, drain: drain,
	}
	w.now = fixedClock
	require.NoError(b, w.run(b.Context()))
	s, err := sum(store)
	require.NoError(b, err)
	return s
}

// peer is what one writes without us: kafka-go's Reader, and each record as a
// line of gzip JSON. No scrub, no commit.
func peer(b *testing.B, addr, topic string) int64 {
	var n atomic.Int64
	var all sync.WaitGroup
	for p := range benchPartitions {
		all.Go(func() {
			out, err := os.Create(filepath.Join(b.TempDir(), fmt.Sprint(p)))
			if err != nil {
				panic(err)
			}
			defer out.Close()
			z := gzip.NewWriter(out)
			j := json.NewEncoder(z)
			r := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{addr}, Topic: topic, Partition: p, MinBytes: 1, MaxBytes: 10 << 20, MaxWait: 250 * time.Millisecond})
			defer r.Close()
			for {
				ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
				m, err := r.ReadMessage(ctx)
				cancel()
				if err != nil {
					panic(err)
				}
				if err := j.Encode(map[string]any{"key": string(m.Key), "value": string(m.Value)}); err != nil {
					panic(err)
				}
				n.Add(1)
				if m.Offset+1 >= m.HighWaterMark {
					break
				}
			}
			if err := z.Close(); err != nil {
				panic(err)
			}
		})
	}
	all.Wait()
	return n.Load()
}
