package main

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"winnow/internal/broker"
	"winnow/internal/ingest"
	"winnow/internal/kafkaio"
	"winnow/pkg/batch"
	"winnow/pkg/gate"
	"winnow/pkg/schema"
)

// TestRedriveOfQuarantine: what a worker quarantined is shown, and produced
// again by what was shown, with the ids that it had. What was mended since
// arrives, once; the rest is quarantined again.
func TestRedriveOfQuarantine(t *testing.T) {
	dir := t.TempDir()
	b, err := broker.Start(filepath.Join(dir, "broker"), broker.Options{})
	require.NoError(t, err)
	defer b.Close()
	client, err := kafkaio.Dial([]string{b.Addr()}, kafkaio.Options{ClientID: "test"})
	require.NoError(t, err)
	defer client.Close()
	require.NoError(t, ingest.EnsureEvents(t.Context(), client, eventsTopic, 1))
	policy := gate.NewPolicy(gate.Options{})
	agrees := func(tenant string) {
		require.NoError(t, policy.Put(tenant, []byte(`{"tenant":"`+tenant+`","org":"o-`+tenant+`","hosts":["`+tenant+`.example"],"region":"eu","revision":1,"history":[{"at":"2025-01-01T00:00:00Z","set":`+
			`{"plans":{"jira":"standard"},"sector":"retail","in_app":"on"}}]}`)))
	}
	agrees("acme")

	message := func(id, tenant, value string) kafkaio.Message {
		e := schema.Envelope{ID: id, Origin: "test", Type: "winnow.jira.rest.issue", Time: fixedNow, Tenant: tenant, Product: schema.Jira}
		return kafkaio.Message{Key: []byte(tenant + "|jira/" + id), Value: []byte(value), Headers: e.AppendHeaders(nil), Time: fixedNow}
	}
	issue := func(id, summary string) string { return `{"id":"` + id + `","fields":{"summary":` + summary + `}}` }
	p := client.Producer(eventsTopic)
	defer p.Close()
	require.NoError(t, p.Produce(t.Context(),
		message("a", "acme", issue("1", `"first"`)),
		message("b", "later", issue("2", `"second"`)),
		message("c", "acme", issue("3", `{"x":"`+canary+`"}`)),
		message("d", "acme", `{"id":"`+canary),
		message("e", "acme", issue("5", `"last"`))))

	out := filepath.Join(dir, "out")
	store, err := batch.Create(out)
	require.NoError(t, err)
	work := func(end int64) {
		w := &worker{
			client: client, store: store, policy: policy, now: fixedClock, log: slog.New(slog.DiscardHandler),
			topic: eventsTopic, group: "test", flush: flushLimits{FlushBytes: 1 << 20, FlushRecords: 100, FlushAge: 1 << 40}, drain: map[int]int64{0: end},
		}
		require.NoError(t, w.run(t.Context()))
	}
	show := func(args ...string) string {
		r := deidentify(t, "", append([]string{"show", "quarantine", out}, args...)...)
		require.Zero(t, r.code, r.stderr)
		require.NotContains(t, r.stdout, canary)
		return r.stdout
	}
	offsetsOf := func(lines string) map[int][]int64 {
		offsets, others, err := ingest.ReadOffsets(strings.NewReader(lines), eventsTopic)
		require.NoError(t, err)
		require.Zero(t, others)
		return offsets
	}
	texts := func() (list []string) {
		for _, r := range rowsOf(t, out) {
			list = append(list, r.Text)
		}
		return list
	}
	work(5)
	require.Equal(t, []string{"first", "last"}, texts())

	all := show()
	require.Equal(t, map[int][]int64{0: {1, 2, 3}}, offsetsOf(all))
	require.Equal(t, map[int][]int64{0: {1}}, offsetsOf(show("--reason", "tenant_unknown")))
	require.Equal(t, all, show("--topic", eventsTopic, "--since", "2026-01-01T00:00:00Z"))
	require.Empty(t, show("--topic", "other"))
	require.Empty(t, show("--since", "9999-01-01T00:00:00Z"))
	summary := strings.Split(show("--summary"), "\n")
	require.Len(t, summary, 5)
	for i, starts := range []string{"reason ", "malformed_json  events/0   1  ", "tenant_unknown  events/0   1  ", "wrong_type      events/0   1  ", ""} {
		require.Equal(t, strings.Fields(starts), strings.Fields(summary[i])[:len(strings.Fields(starts))])
	}

	agrees("later")
	redrive := func(offsets map[int][]int64) ingest.Summary {
		d := &ingest.Raw{Client: client, Policy: policy, From: eventsTopic, Out: p, Name: "kafka", Now: func() time.Time { return fixedNow },
			Progress: func(int64) {}, Warn: func(err error) { t.Error(err) }}
		s, err := d.Redrive(t.Context(), offsets)
		require.NoError(t, err)
		return s
	}
	s := redrive(offsetsOf(all))
	require.EqualValues(t, 3, s.Produced)
	require.Empty(t, s.Drops)
	var was []kafkaio.Record
	_, err = client.ReadAll(t.Context(), eventsTopic, func(_ int, r kafkaio.Record) error {
		r.Key, r.Value = []byte(string(r.Key)), []byte(string(r.Value))
		was = append(was, r)
		return nil
	})
	require.NoError(t, err)
	require.Len(t, was, 8)
	for i, r := range was[5:] {
		first := was[1+i]
		require.Equal(t, string(first.Key), string(r.Key))
		require.Equal(t, string(first.Value), string(r.Value))
		before, err := schema.ParseHeaders(first.Headers)
		require.NoError(t, err)
		after, err := schema.ParseHeaders(r.Headers)
		require.NoError(t, err)
		require.Equal(t, before, after)
	}
	work(8)
	require.Equal(t, []string{"first", "last", "second"}, texts())
	require.Equal(t, map[int][]int64{0: {1, 2, 3, 6, 7}}, offsetsOf(show()))

	// Once more: the worker has seen it.
	require.EqualValues(t, 1, redrive(map[int][]int64{0: {1}}).Produced)
	work(9)
	require.Equal(t, []string{"first", "last", "second"}, texts())
	total, err := sum(store)
	require.NoError(t, err)
	require.EqualValues(t, 1, total.inAppDrops[schema.ReasonRepeat])
	require.Equal(t, map[int][]int64{0: {1, 2, 3, 6, 7}}, offsetsOf(show()))
}

func TestShowOfNoDataSet(t *testing.T) {
	r := deidentify(t, "", "show", "quarantine", t.TempDir())
	require.Equal(t, exitFailure, r.code)
	require.Contains(t, r.stderr, "dataset")
	require.Empty(t, r.stdout)
}
