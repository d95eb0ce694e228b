package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"winnow/internal/kafkaio"
	"winnow/pkg/batch"
	"winnow/pkg/gate"
	"winnow/pkg/schema"
)

// leaver is an organisation that opts out while its events flow. Every fifth
// has a second site, and says it there.
type leaver struct {
	site, sister string
	after        int       // events
	told         time.Time // the brokers acknowledged the opt-out
	offset       int64     // of the record
}

func (l *leaver) record(site string, revision int, optedOut bool) kafkaio.Message {
	out := ""
	if optedOut {
		out = `,{"at":"2026-11-25T11:45:00Z","received":"2026-11-25T11:45:00Z","set":{"opted_out":true}}`
	}
	return kafkaio.Message{Key: []byte(site), Value: fmt.Appendf(nil,
		`{"tenant":%q,"org":"org-%s","hosts":["%s.example"],"region":"eu","revision":%d,"history":[{"at":"2026-01-01T00:00:00Z","set":{"plans":{"jira":"standard"},"sector":"retail","in_app":"on"}}%s]}`,
		site, l.site, site, revision, out)}
}

// TestOptOutsWhileEventsFlow: 50 organisations opt out at random points while
// events of 60 flow through two workers. A commit that obeyed an opt-out holds
// nothing of its organisation, and one that had not yet to holds every event.
func TestOptOutsWhileEventsFlow(t *testing.T) {
	events, partitions := 200_000, 4
	if testing.Short() {
		events = 40_000
	}
	b := startBroker(t, filepath.Join(t.TempDir(), "broker"))
	c := newChaos(t, []string{b.addr()}, partitions, "--flush-records", "500", "--flush-age", "200ms", "--format", "jsonl")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))

	leavers := make([]*leaver, 60) // the last ten stay
	var records []kafkaio.Message
	for i := range leavers {
		l := &leaver{site: fmt.Sprint("site-", i), after: events + 1, offset: -1}
		if i < 50 {
			l.after = rng.IntN(events)
		}
		records = append(records, l.record(l.site, 1, false))
		if i%5 == 0 {
			l.sister = fmt.Sprint("sister-", i)
			records = append(records, l.record(l.sister, 1, false))
		}
		leavers[i] = l
	}
	tenants := c.client.Producer(tenantsTopic)
	defer tenants.Close()
	require.NoError(t, tenants.Produce(t.Context(), records...))

	store, err := batch.Create(c.out)
	require.NoError(t, err)
	workers := []*workerProcess{c.worker(nil), c.worker(nil)}
	for _, w := range workers {
		<-w.working
	}
	p := c.client.Producer(chaosTopic)
	defer p.Close()
	due := slices.SortedFunc(slices.Values(leavers[:50]), func(a, b *leaver) int { return a.after - b.after })
	for sent := 0; sent < events; {
		for len(due) > 0 && due[0].after <= sent {
			l := due[0]
			due = due[1:]
			site := l.site
			if l.sister != "" {
				site = l.sister
			}
			require.NoError(t, tenants.Produce(t.Context(), l.record(site, 2, true)))
			l.told = time.Now()
		}
		var group []kafkaio.Message
		for range min(100, events-sent) {
			l := leavers[rng.IntN(len(leavers))]
			sent++
			id := strconv.Itoa(sent)
			m := c.message("event "+id, "jira.rest.issue", id, object{"id": id, "key": "RUN-1", "fields": object{"summary": "number " + id + " of the run", "issuetype": object{"name": "Bug"}}})
			e, err := schema.ParseHeaders(m.Headers)
			require.NoError(t, err)
			e.Tenant = l.site
			m.Headers = e.AppendHeaders(nil)
			group = append(group, m)
		}
		require.NoError(t, p.Produce(t.Context(), group...))
	}
	c.awaitEnd(store, workers...)
	for _, w := range workers {
		w.stop(t)
	}
	report, err := store.Check(t.Context())
	require.NoError(t, err)
	require.Empty(t, report.Faults)

	// What was on the topics.
	byOrg := map[string]*leaver{}
	for _, l := range leavers {
		byOrg[l.site] = l
	}
	_, err = c.client.ReadAll(t.Context(), tenantsTopic, func(_ int, r kafkaio.Record) error {
		if strings.Contains(string(r.Value), `"opted_out":true`) {
			tn, err := schema.ParseTenant(r.Value)
			require.NoError(t, err)
			byOrg[strings.TrimPrefix(tn.Org, "org-")].offset = r.Offset
		}
		return nil
	})
	require.NoError(t, err)
	of := map[schema.Source]*leaver{}
	number := map[schema.Source]string{}
	_, err = c.client.ReadAll(t.Context(), chaosTopic, func(partition int, r kafkaio.Record) error {
		e, err := schema.ParseHeaders(r.Headers)
		at := schema.Source{Topic: chaosTopic, Partition: partition, Offset: r.Offset}
		of[at] = byOrg[e.Tenant]
		_, number[at], _ = strings.Cut(string(r.Key), "chaos|jira/")
		return err
	})
	require.NoError(t, err)

	var held, dropped, commits int64
	lag := map[*leaver]time.Duration{} // how long after the acknowledgement a commit held its data
	for _, partition := range c.partitions {
		chain, err := store.Chain(chaosTopic, partition)
		require.NoError(t, err)
		for _, cm := range chain {
			commits++
			path := filepath.Join(c.out, "_commits", chaosTopic, strconv.Itoa(partition), fmt.Sprintf("%020d.json", cm.Start))
			made, err := os.Stat(path)
			require.NoError(t, err)
			want := map[string]bool{}
			for offset := cm.Start; offset < cm.End; offset++ {
				at := schema.Source{Topic: chaosTopic, Partition: partition, Offset: offset}
				l := of[at]
				if l.offset >= 0 && l.offset <= cm.Provenance.TenantsOffset {
					dropped++
					continue
				}
				want["number "+number[at]+" of the run"] = true
				if after := made.ModTime().Sub(l.told); l.offset >= 0 && after > lag[l] {
					lag[l] = after
				}
			}
			held += int64(len(want))
			require.EqualValues(t, len(want), cm.InApp.Documents, "%v", cm.Source())
			require.EqualValues(t, len(want), cm.Metadata.Counted, "%v", cm.Source())
			require.EqualValues(t, cm.Records-int64(len(want)), cm.InApp.Drops[gate.OptedOut], "%v", cm.Source())
			require.NoError(t, store.ReadRows(cm, func(_ batch.File, r batch.Row) error {
				require.True(t, want[r.Text], "%v holds what it should not, or twice", cm.Source())
				delete(want, r.Text)
				return nil
			}))
			require.Empty(t, want, "%v", cm.Source())
		}
	}
	require.EqualValues(t, events, held+dropped)
	require.Positive(t, dropped)
	lags := make([]time.Duration, 50)
	for i, l := range leavers[:50] {
		require.GreaterOrEqual(t, l.offset, int64(0))
		lags[i] = lag[l]
	}
	slices.Sort(lags)
	t.Logf("%d events: %d in %d commits, %d dropped; time from the acknowledgement of an opt-out to the last commit that held its data: median %v, longest %v",
		events, held, commits, dropped, lags[25].Round(time.Millisecond), lags[49].Round(time.Millisecond))
	require.Less(t, lags[49], 5*time.Second)
}
