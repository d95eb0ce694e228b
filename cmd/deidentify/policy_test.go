package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"winnow/internal/broker"
	"winnow/internal/failpoint"
	"winnow/internal/ingest"
	"winnow/internal/kafkaio"
	"winnow/internal/tenants"
	"winnow/internal/testkit/policy"
	"winnow/pkg/batch"
	"winnow/pkg/gate"
	"winnow/pkg/schema"
	"winnow/pkg/scrub"
)

// world is a tenants topic that changes while events go through the line of a
// worker, and what is remembered of both.
type world struct {
	t       *rapid.T
	topic   string
	tenants *kafkaio.Producer
	table   *tenants.Table
	now     time.Time
	log     []tenantRecord
	latest  map[string]*schema.Tenant // by key
	events  []happened                // by offset
}

// tenantRecord is a record of the tenants topic, by offset.
type tenantRecord struct {
	key   string
	value []byte // empty is a tombstone
}

// happened is an event, with what the policy said when it was read.
type happened struct {
	envelope schema.Envelope
	at       time.Time // when it was read
	obeyed   int64     // tenants offset then
}

// said is what the tenants topic says up to an offset, by the reference.
func (w *world) said(offset int64) *policy.Topic {
	p := &policy.Topic{Tenants: map[string]*schema.Tenant{}, Unreadable: map[string][]string{}}
	orgs := map[string][]string{}
	for _, r := range w.log[:offset+1] {
		delete(p.Unreadable, r.key)
		if len(r.value) == 0 {
			delete(p.Tenants, r.key)
			delete(orgs, r.key)
			continue
		}
		tn, err := schema.ParseTenant(r.value)
		if err != nil {
			delete(p.Tenants, r.key)
			orgs[r.key] = append(slices.Clone(orgs[r.key]), "org-a") // which broken records claim
			p.Unreadable[r.key] = orgs[r.key]
			continue
		}
		p.Tenants[r.key], orgs[r.key] = tn, tn.Orgs()
	}
	return p
}

func (w *world) put(key string, value []byte) {
	m := kafkaio.Message{Key: []byte(key), Value: value}
	require.NoError(w.t, w.tenants.Produce(w.t.Context(), m))
	w.log = append(w.log, tenantRecord{key, value})
}

// sync lets the table catch up, so that what the line obeys is known.
func (w *world) sync() int64 {
	at, err := w.table.Sync(w.t.Context())
	require.NoError(w.t, err)
	require.EqualValues(w.t, len(w.log)-1, at)
	return at
}

var (
	sites = []string{"s1", "s2", "s3", "s4", "s5"}
	orgs  = []string{"org-a", "org-a", "org-b", "org-b", "org-c"} // where each begins
	begin = schema.EffectiveDate.AddDate(0, 1, 0)
)

// settings are what a change may say.
func drawSettings(t *rapid.T) schema.Settings {
	on, off, absent, yes, no := schema.On, schema.Off, schema.Absent, true, false
	enterprise, premium, settled := schema.Enterprise, schema.Premium, schema.Plan("")
	plans := func(p schema.Plan) *map[schema.Product]schema.Plan {
		return &map[schema.Product]schema.Plan{schema.Jira: p}
	}
	sector, retail := "government", "retail"
	return rapid.SampledFrom([]schema.Settings{
		{OptedOut: &yes}, {OptedOut: &no}, {InApp: &on}, {InApp: &off}, {InApp: &absent}, {Metadata: &on}, {Metadata: &off}, {Metadata: &absent},
		{Plans: plans(schema.Free)}, {Plans: plans(schema.Premium)}, {Plans: plans(schema.Enterprise)}, {Plans: plans("ultimate")},
		{TransitionTo: &enterprise}, {TransitionTo: &premium}, {TransitionTo: &settled}, {HIPAA: &yes}, {HIPAA: &no}, {CMEK: &yes}, {CMEK: &no},
		{Sector: &sector}, {Sector: &retail}, {ContractEnded: &yes}, {ContractEnded: &no},
		{DeletedApps: &[]schema.Product{schema.Jira}}, {DeletedApps: &[]schema.Product{}},
		{Excluded: &schema.Excluded{Projects: []string{"OPS"}, Spaces: []string{"DOCS"}}}, {Excluded: &schema.Excluded{}},
	}).Draw(t, "set")
}

// update puts a record of one site: a change of it, dated anywhere since T0 and
// some time to come, a move, a record that expires or cannot be read, a
// tombstone, or the record that was there.
func (w *world) update() { w.updateOf(rapid.IntRange(0, len(sites)-1).Draw(w.t, "site")) }

func (w *world) updateOf(i int) {
	t := w.t
	key, old := sites[i], w.latest[sites[i]]
	if old == nil {
		w.record(key, &schema.Tenant{ID: key, Org: orgs[i], Hosts: []string{key + ".example"}, Region: "eu", History: []schema.Change{{
			At: schema.EffectiveDate.AddDate(0, -1, 0), Set: schema.Settings{
				Org: &orgs[i], Plans: &map[schema.Product]schema.Plan{schema.Jira: rapid.SampledFrom([]schema.Plan{"standard", "premium", "enterprise"}).Draw(t, "plan")},
				Sector: new("retail"), InApp: new(schema.On), Metadata: new(schema.On)}}}})
		return
	}
	next := *old
	next.History = slices.Clone(old.History)
	next.Expires = time.Time{}
	set := schema.Settings{}
	switch what := rapid.IntRange(0, 29).Draw(t, "what"); what {
	case 0:
		w.put(key, nil)
		return
	case 1:
		w.put(key, []byte(`{"org":"org-a","history":[`))
		return
	case 2:
		for _, r := range slices.Backward(w.log) {
			if r.key == key && len(r.value) > 0 {
				w.put(key, r.value) // the same again, as at-least-once delivery does
			}
			if r.key == key {
				return
			}
		}
	case 3:
		next.Expires = w.now.Add(rapid.SampledFrom([]time.Duration{-time.Hour, time.Minute, time.Hour}).Draw(t, "expires"))
	case 4, 5:
		set.Org = new(rapid.SampledFrom([]string{"org-a", "org-b", "org-c"}).Draw(t, "to"))
	default:
		set = drawSettings(t)
	}
	at := w.now.Add(rapid.SampledFrom([]time.Duration{0, -time.Minute, -time.Hour, -10 * 24 * time.Hour, -60 * 24 * time.Hour, 30 * time.Second, time.Hour}).Draw(t, "at"))
	n := len(next.History)
	for n > 1 && next.History[n-1].At.After(at) {
		n--
	}
	if at.Before(next.History[0].At) {
		at = next.History[0].At
	}
	next.History = slices.Insert(next.History, n, schema.Change{At: at, Set: set})
	end, _ := next.At(w.now.AddDate(10, 0, 0))
	next.Org = *end.Org
	require.NoError(t, func() error { next.Revision++; return next.Extends(old) }())
	next.Revision--
	w.record(key, &next)
}

func (w *world) encoded(tn *schema.Tenant) []byte {
	b, err := json.Marshal(tn)
	require.NoError(w.t, err)
	return b
}

func (w *world) record(key string, tn *schema.Tenant) {
	tn.Revision++
	w.latest[key] = tn
	w.put(key, w.encoded(tn))
}

// event carries an event of one site through the line.
func (w *world) event(l *line) {
	t := w.t
	site := rapid.SampledFrom(slices.Concat(sites, sites, []string{"unknown"})).Draw(t, "of")
	offset := int64(len(w.events))
	text := fmt.Sprintf("number %d of all", offset)
	host := rapid.SampledFrom([]string{site + ".example", site + ".example", site + ".example", "", "elsewhere.example"}).Draw(t, "host")
	scope := rapid.SampledFrom([]string{"OPS", "WEB", ""}).Draw(t, "scope")
	e := schema.Envelope{
		ID: ingest.EventID(fmt.Sprint(offset)), Origin: "test", Type: "winnow.jira.rest.issue", Tenant: site, Product: schema.Jira,
		Time: w.now.Add(-rapid.SampledFrom([]time.Duration{0, time.Minute, time.Hour, 20 * 24 * time.Hour, 50 * 24 * time.Hour, -time.Minute}).Draw(t, "ago")),
	}
	value := object{"id": fmt.Sprint(offset), "fields": object{"summary": text}}
	if scope != "" {
		value["key"] = scope + "-1"
	}
	if rapid.Bool().Draw(t, "page") {
		e.Type, e.Product = "winnow.confluence.rest.page", schema.Confluence
		value = object{"id": fmt.Sprint(offset), "type": "page", "title": text}
		if scope = strings.ReplaceAll(scope, "OPS", "DOCS"); scope != "" {
			value["space"] = object{"key": scope}
		}
	}
	if host != "" {
		value["self"] = "https://" + host + "/x"
	}
	b, err := json.Marshal(value)
	require.NoError(t, err)
	src := schema.Source{Topic: w.topic, Offset: offset}
	require.NoError(t, l.record(src, &kafkaio.Record{Offset: offset, Value: b, Headers: e.AppendHeaders(nil)}, w.now))
	// As the payload says it.
	e.Host, e.Scoped = host, true
	if e.Product == schema.Confluence {
		e.Space = scope
	} else {
		e.Project = scope
	}
	w.events = append(w.events, happened{e, w.now, w.table.Offset()})
}

// TestCommitsObeyThePolicy: over random tenants, settings, times and orders of
// updates, a commit holds of each event exactly the streams that the reference
// admits: when it was read, at each review, and by the tenants offset that the
// commit records. That offset is the end of the topic at the last review.
func TestCommitsObeyThePolicy(t *testing.T) {
	b, err := broker.Start(t.TempDir(), broker.Options{})
	require.NoError(t, err)
	defer b.Close()
	client, err := kafkaio.Dial([]string{b.Addr()}, kafkaio.Options{MaxWait: 50 * time.Millisecond})
	require.NoError(t, err)
	defer client.Close()
	defer func() { failpoint.Hook = nil }()
	var commits, held, withheld, rewritten int64
	reasons := map[schema.Reason]int64{}
	cases := 0
	history := func(t *rapid.T) {
		cases++
		w := &world{t: t, topic: "tenants-" + strconv.Itoa(cases), now: begin, latest: map[string]*schema.Tenant{}}
		require.NoError(t, ingest.EnsureTenants(t.Context(), client, w.topic))
		w.tenants = client.Producer(w.topic)
		defer w.tenants.Close()
		w.table, err = tenants.Load(t.Context(), client, w.topic, tenants.Options{MaxAge: time.Minute, Log: slog.New(slog.DiscardHandler)})
		require.NoError(t, err)
		following := make(chan error, 1)
		go func() { following <- w.table.Follow(t.Context()) }()
		dir, err := os.MkdirTemp("", "winnow-policy-")
		require.NoError(t, err)
		defer os.RemoveAll(dir)
		store, err := batch.Create(dir)
		require.NoError(t, err)
		wk := &worker{policy: w.table.Policy, table: w.table, now: func() time.Time { return w.now }}
		wr, err := store.Writer(t.Context(), w.topic, 0, batch.Options{Consent: wk.consent(), Provenance: batch.Provenance{TenantsTopicID: w.table.TopicID}})
		require.NoError(t, err)
		defer wr.Close()
		l := &line{policy: w.table.Policy, scrub: scrub.New(), w: wr, log: slog.New(slog.DiscardHandler)}

		start := int64(0)
		commit := func(meanwhile bool) {
			reviews := []int64{int64(len(w.log)) - 1} // what the topic held at each
			failpoint.Hook = func(p failpoint.Point) error {
				if meanwhile && p.Op == "open" && strings.HasPrefix(p.Name, "_seen/") {
					meanwhile = false
					w.update()
					reviews = append(reviews, int64(len(w.log))-1)
				}
				return nil
			}
			c, err := wr.Commit(int64(len(w.events)) - 1)
			failpoint.Hook = nil
			require.NoError(t, err)
			commits++
			rewritten += int64(len(reviews)) - 1
			require.EqualValues(t, reviews[len(reviews)-1], c.Provenance.TenantsOffset, "the commit obeys all that was acknowledged before its last review")
			texts, counts := map[string]bool{}, map[string]int64{}
			require.NoError(t, store.ReadRows(c, func(_ batch.File, r batch.Row) error {
				require.False(t, texts[r.Text], "twice")
				texts[r.Text] = true
				return nil
			}))
			drops := map[schema.Reason]int64{}
			for offset := start; offset < c.End; offset++ {
				ev := w.events[offset]
				headers := ev.envelope // what the first look sees
				headers.Host, headers.Project, headers.Space, headers.Scoped = "", "", "", false
				d := w.said(ev.obeyed).Decide(headers, ev.at)
				if d.InApp || d.Metadata {
					d = w.said(ev.obeyed).Decide(ev.envelope, ev.at)
				}
				for _, r := range reviews {
					then := w.said(r).Decide(ev.envelope, w.now)
					if d.InApp && !then.InApp {
						d.InApp, d.InAppReason = false, then.InAppReason
					}
					d.Metadata = d.Metadata && then.Metadata
				}
				require.Equal(t, d.InApp, texts[fmt.Sprintf("number %d of all", offset)], "offset %d, %v: %+v", offset, ev.envelope.Tenant, d)
				if d.InApp {
					held++
				} else {
					drops[d.InAppReason]++
					withheld++
				}
				if d.Metadata {
					counts[ev.envelope.Time.UTC().Format("2006-01")+string(ev.envelope.Product)]++
				}
			}
			require.Equal(t, drops, c.InApp.Drops)
			for r, n := range drops {
				reasons[r] += n
			}
			var metadata int64
			for _, n := range counts {
				metadata += n
			}
			require.Equal(t, metadata, c.Metadata.Counted)
			start = c.End
		}
		for i := range sites {
			w.updateOf(i)
		}
		w.sync()
		for range rapid.IntRange(5, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0, 1:
				w.update()
				w.sync()
			case 2:
				if len(w.events) > int(start) {
					commit(rapid.Bool().Draw(t, "meanwhile"))
				}
			case 3:
				w.now = w.now.Add(rapid.SampledFrom([]time.Duration{time.Second, time.Minute, 2 * time.Hour}).Draw(t, "later"))
			default:
				w.event(l)
			}
		}
		if len(w.events) > int(start) {
			w.update() // not waited for: the writer has to
			commit(true)
		}
		report, err := store.Check(t.Context())
		require.NoError(t, err)
		require.Empty(t, report.Faults)
		select {
		case err := <-following:
			require.NoError(t, err)
		default:
		}
	}
	// -short draws twenty cases, of which some miss a reason; a thousand that
	// all miss it are a fault.
	missed := func() bool {
		return held == 0 || rewritten == 0 || slices.ContainsFunc([]schema.Reason{gate.TenantUnknown, gate.TenantStale, gate.TenantMismatch, gate.InAppOff, gate.OptedOut},
			func(r schema.Reason) bool { return reasons[r] == 0 })
	}
	for round := 0; round == 0 || round < 50 && missed(); round++ {
		rapid.Check(t, history)
	}
	t.Logf("%d cases, %d commits (an update came during %d), %d events held in-app, %d withheld: %v", cases, commits, rewritten, held, withheld, reasons)
	require.False(t, missed(), "no case came to a reason, a commit or an update beside one")
}
