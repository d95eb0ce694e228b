package gate

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"winnow/internal/testkit/policy"
	"winnow/pkg/schema"
)

// model is the tenants topic as the reference sees it.
func (w *world) model() *policy.Topic {
	m := &policy.Topic{Vendor: w.opts.Unset == Vendor, Tenants: map[string]*schema.Tenant{}}
	for _, tn := range w.tenants {
		m.Tenants[tn.ID] = tn
	}
	return m
}

// TestFullProduct compares with the reference every base row under every
// subset of vetoes and subtractions.
func TestFullProduct(t *testing.T) {
	record := []func(*world){ // conditions of the record
		func(w *world) { w.tenants[0].Expires = t0 },
		func(w *world) { w.set().CMEK = new(true) },
		func(w *world) { change(w.tenants[0], t0.Add(1), schema.Settings{HIPAA: new(true)}) },
		func(w *world) { w.set().Sector = new(schema.SectorFinancial) },
		func(w *world) { w.set().ContractEnded = new(true) },
		func(w *world) { change(w.tenants[0], t0.Add(1), schema.Settings{ContractEnded: new(true)}) },
		func(w *world) { (*w.set().Plans)[schema.Confluence] = "ultimate" },
		func(w *world) { w.set().TransitionTo = new(schema.Enterprise) },
		func(w *world) { w.set().OptedOut = new(true) },
	}
	event := []func(*world){ // conditions of the event, under the same record
		func(w *world) { w.event.Host = "elsewhere.example.net" },
		func(w *world) { w.event.Product = "trello" },
		func(w *world) { w.event.Product = schema.ServiceManagement }, // deleted below
		func(w *world) { w.event.Time = t0.Add(-time.Hour) },
		func(w *world) { w.event.Project = "SECRET" }, // excluded below
	}
	decided := 0
	bases(func(name string, base *world) {
		for held := range 1 << len(record) {
			w := &world{opts: base.opts, event: base.event, now: base.now}
			tn := *base.tenants[0]
			tn.History = slices.Clone(tn.History)
			plans := maps.Clone(*tn.History[0].Set.Plans)
			tn.History[0].Set.Plans = &plans
			w.tenants = []*schema.Tenant{&tn}
			w.set().DeletedApps = &[]schema.Product{schema.ServiceManagement}
			w.set().Excluded = &schema.Excluded{Projects: []string{"secret"}}
			for i, hold := range record {
				if held>>i&1 == 1 {
					hold(w)
				}
			}
			p, m, e := w.policy(t), w.model(), w.event
			for of := range 1 << len(event) {
				w.event = e
				for i, hold := range event {
					if of>>i&1 == 1 {
						hold(w)
					}
				}
				got, want := p.Decide(w.event, w.now), Decision(m.Decide(w.event, w.now))
				if got != want {
					require.Equal(t, want, got, "%s, record %b, event %b", name, held, of)
				}
				decided++
			}
		}
	})
	require.Equal(t, 2*4*3*3<<(len(record)+len(event)), decided)
}

// grid is the instants of random histories and questions: so few that they
// often coincide. Rapid prefers what stands first, here and in single.
var grid = func() (ts []time.Time) {
	for _, hours := range []int{3, 4, 2, 1, 5, 0, 6, -1, -2} {
		ts = append(ts, t0.Add(time.Duration(hours)*time.Hour))
	}
	return ts
}()

var keys = []string{"s1", "s2", "s3"}

// single is every setting by itself, for random changes.
var single = func() (all []schema.Settings) {
	for _, v := range []schema.Setting{schema.On, schema.Off, schema.Absent} {
		all = append(all, schema.Settings{Metadata: &v}, schema.Settings{InApp: &v}, schema.Settings{InApp: &v, Metadata: &v})
	}
	all = append(all, schema.Settings{OptedOut: new(true)}, schema.Settings{OptedOut: new(false)},
		schema.Settings{Excluded: &schema.Excluded{Projects: []string{"ops"}}}, schema.Settings{Excluded: &schema.Excluded{}},
		schema.Settings{DeletedApps: &[]schema.Product{schema.Jira}}, schema.Settings{DeletedApps: &[]schema.Product{}},
		schema.Settings{Plans: &map[schema.Product]schema.Plan{}})
	for _, v := range []schema.Plan{"", "free", "standard", "premium", "enterprise", "ultimate"} {
		all = append(all, schema.Settings{TransitionTo: &v}, schema.Settings{Plans: &map[schema.Product]schema.Plan{schema.Jira: v, schema.Confluence: "standard"}})
	}
	for _, v := range []string{"", "retail", schema.SectorGovernment} {
		all = append(all, schema.Settings{Sector: &v})
	}
	for _, v := range []bool{false, true} {
		all = append(all, schema.Settings{ContractEnded: &v}, schema.Settings{CMEK: &v}, schema.Settings{GovernmentCloud: &v},
			schema.Settings{IsolatedCloud: &v}, schema.Settings{HIPAA: &v}, schema.Settings{SectorNotExempt: &v})
	}
	return all
}()

func drawTenant(t *rapid.T, id string, revision int64) *schema.Tenant {
	tn := record(id, rapid.SampledFrom(plans).Draw(t, "plan"))
	tn.Org = rapid.SampledFrom([]string{"acme", "acme", "acme", "other"}).Draw(t, "org")
	tn.Revision = revision
	tn.Hosts = append(tn.Hosts, rapid.SliceOfN(rapid.SampledFrom([]string{"a.example.net", "b.example.net"}), 0, 2).Draw(t, "hosts")...)
	tn.History[0].At = rapid.SampledFrom([]time.Time{t0.AddDate(-1, 0, 0), t0.AddDate(-1, 0, 0), t0.AddDate(-1, 0, 0), t0, t0.Add(time.Hour)}).Draw(t, "begins")
	tn.Expires = rapid.SampledFrom([]time.Time{{}, {}, {}, {}, {}, {}, {}, t0.Add(2 * time.Hour), t0.Add(5 * time.Hour)}).Draw(t, "expires")
	for range 6 - rapid.IntRange(0, 6).Draw(t, "without") {
		change(tn, rapid.SampledFrom(grid).Draw(t, "at"), rapid.SampledFrom(single).Draw(t, "set"))
	}
	if rapid.IntRange(0, 2).Draw(t, "moves") == 0 {
		for range rapid.IntRange(1, 2).Draw(t, "times") {
			change(tn, rapid.SampledFrom(grid).Draw(t, "at"), schema.Settings{Org: new(rapid.SampledFrom([]string{"acme", "other", "third"}).Draw(t, "to"))})
		}
		if tn.History[0].Set.Org == nil {
			tn.History[0].Set.Org = new(tn.Org)
		}
		end, _ := tn.At(t0.AddDate(1, 0, 0))
		tn.Org = *end.Org
	}
	return tn
}

// questions calls f with every event time and clock of the grid.
func questions(f func(e schema.Envelope, now time.Time)) {
	for _, key := range keys {
		for _, at := range grid {
			for _, now := range grid {
				f(schema.Envelope{Tenant: key, Time: at, Product: schema.Jira, Host: key + ".example.net", Project: "OPS"}, now)
			}
		}
	}
}

// TestRandomHistories puts random records, tombstones and unreadable values,
// and compares every answer with the reference.
func TestRandomHistories(t *testing.T) {
	rows := map[int]int{}
	history := func(t *rapid.T) {
		opts := Options{Unset: rapid.SampledFrom([]Unset{Closed, Vendor}).Draw(t, "unset")}
		m := &policy.Topic{Vendor: opts.Unset == Vendor, Tenants: map[string]*schema.Tenant{}, Unreadable: map[string][]string{}}
		p := NewPolicy(opts)
		speaks := map[string][]string{}      // key → organisations
		hosts := map[string]*schema.Tenant{} // key → record that lists hosts
		revision, next := map[string]int64{}, int64(1)
		for i := range rapid.IntRange(3, 6).Draw(t, "puts") {
			key, kind := keys[i%len(keys)], "record"
			if i >= len(keys) {
				kind = rapid.SampledFrom([]string{"record", "tombstone", "garbage", "newer version", "misfiled", "replay"}).Draw(t, "kind")
			}
			switch kind {
			case "record":
				tn := drawTenant(t, key, next)
				put(t, p, tn)
				m.Tenants[key], hosts[key], speaks[key], revision[key] = tn, tn, tn.Orgs(), next
				delete(m.Unreadable, key)
				next++
			case "tombstone":
				require.NoError(t, p.Put(key, nil))
				delete(m.Tenants, key)
				delete(m.Unreadable, key)
				delete(hosts, key)
				delete(speaks, key)
			case "garbage":
				require.Error(t, p.Put(key, []byte(`{"org":"acme","history":[`)))
				delete(m.Tenants, key)
				speaks[key] = append(slices.Clone(speaks[key]), "acme") // what it got to say
				m.Unreadable[key] = speaks[key]
			case "newer version":
				require.Error(t, p.Put(key, fmt.Appendf(nil, `{"tenant":%q,"org":"other","region":"eu","revision":99,"new_setting":true}`, key)))
				delete(m.Tenants, key)
				speaks[key] = append(slices.Clone(speaks[key]), "other")
				m.Unreadable[key] = speaks[key]
			case "misfiled":
				tn := drawTenant(t, "s9", next)
				require.Error(t, p.Put(key, encode(t, tn)))
				delete(m.Tenants, key)
				speaks[key] = append(slices.Clone(speaks[key]), tn.Orgs()...) // what it claims
				m.Unreadable[key] = speaks[key]
			case "replay":
				if revision[key] > 0 {
					require.ErrorIs(t, p.Put(key, encode(t, drawTenant(t, key, revision[key]))), ErrRevision)
				}
			}
		}
		require.Equal(t, len(m.Tenants)+len(m.Unreadable), p.Len())
		for _, h := range []string{"s1.example.net", "s2.example.net", "a.example.net", "b.example.net"} {
			var owners []string
			for key, tn := range hosts {
				if slices.Contains(tn.Hosts, h) {
					owners = append(owners, key)
				}
			}
			got, ok := p.TenantOf(h)
			require.Equal(t, len(owners) == 1, ok)
			if ok {
				require.Equal(t, owners[0], got)
			}
		}
		questions(func(e schema.Envelope, now time.Time) {
			got, want := p.Decide(e, now), Decision(m.Decide(e, now))
			if got != want {
				require.Equal(t, want, got, "event %v now %v", e.Time.Sub(t0), now.Sub(t0))
			}
			rows[got.Row]++
			x := p.Explain(e, now)
			require.Equal(t, got, x.Decision)
			require.Equal(t, Sentences[got.Row], x.Sentence)
			for _, c := range []Cause{x.MetadataCause, x.InAppCause} {
				require.NotEmpty(t, c.Because, "event %v now %v: %+v", e.Time.Sub(t0), now.Sub(t0), got)
				require.False(t, c.At.After(now))
			}
		})
	}
	// One history in five or six reaches the rarest of these rows, and -short
	// draws twenty of them; a thousand that all miss one is a fault.
	reached := func() bool {
		return !slices.ContainsFunc([]int{1, 4, 6, 11, 14, 18, 21}, func(row int) bool { return rows[row] == 0 })
	}
	for round := 0; round < 50 && !reached(); round++ {
		rapid.Check(t, history)
	}
	require.True(t, reached(), "decisions by row: %v", rows)
}

// TestOptingOutOpensNothing adds a change against collection to a random
// history: no stream that was closed may open.
func TestOptingOutOpensNothing(t *testing.T) {
	out := map[string]schema.Settings{
		"opted out":        {OptedOut: new(true)},
		"in-app off":       {InApp: new(schema.Off)},
		"in-app withdrawn": {InApp: new(schema.Absent)},
		"contract ended":   {ContractEnded: new(true)},
		"cmek":             {CMEK: new(true)},
		"hipaa":            {HIPAA: new(true)},
		"sector unknown":   {Sector: new("")},
		"plan unknown":     {Plans: &map[schema.Product]schema.Plan{}},
	}
	for name, s := range out {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				w := open()
				w.tenants = nil
				for _, key := range keys[:rapid.IntRange(1, len(keys)).Draw(t, "sites")] {
					w.tenants = append(w.tenants, drawTenant(t, key, 1))
				}
				before := w.policy(t)
				change(rapid.SampledFrom(w.tenants).Draw(t, "site"), rapid.SampledFrom(grid).Draw(t, "when"), s)
				after := w.policy(t)
				questions(func(e schema.Envelope, now time.Time) {
					b, a := before.Decide(e, now).Streams(), after.Decide(e, now).Streams()
					if a&^b != 0 {
						require.Equal(t, b, a, "event %v now %v", e.Time.Sub(t0), now.Sub(t0))
					}
				})
			})
		})
	}
}
