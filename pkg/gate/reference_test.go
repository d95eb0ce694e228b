package gate

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"winnow/pkg/schema"
)

// model is the tenants topic as the reference sees it.
type model struct {
	opts       Options
	records    map[string]*schema.Tenant // readable ones
	unreadable map[string][]string       // key → organisations it may speak for
}

func (w *world) model() model {
	m := model{opts: w.opts, records: map[string]*schema.Tenant{}}
	for _, tn := range w.tenants {
		m.records[tn.ID] = tn
	}
	return m
}

// reference is the decision table said again, slowly: every instant is decided
// from the whole history, with one if per row. It shares no code with decide.
func reference(m model, e schema.Envelope, now time.Time) Decision {
	no := func(row int, why schema.Reason) Decision {
		return Decision{Row: row, MetadataReason: why, InAppReason: why}
	}
	if _, ok := m.unreadable[e.Tenant]; ok {
		return no(1, TenantStale)
	}
	own, ok := m.records[e.Tenant]
	if !ok {
		return no(1, TenantUnknown)
	}
	var org []*schema.Tenant
	for _, tn := range m.records {
		if tn.Org == own.Org {
			org = append(org, tn)
		}
	}
	answer := func(d Decision) Decision {
		d.Org, d.Region = own.Org, own.Region
		return d
	}
	from := e.Time
	if now.Before(from) {
		from = now
	}
	if _, ok := own.At(from); !ok {
		return answer(no(1, TenantUnknown))
	}
	for _, orgs := range m.unreadable {
		if slices.Contains(orgs, own.Org) {
			return answer(no(1, TenantStale))
		}
	}
	for _, tn := range org {
		if !tn.Expires.IsZero() && tn.Expires.Before(now) {
			return answer(no(1, TenantStale))
		}
	}
	if e.Host != "" && !slices.Contains(own.Hosts, e.Host) {
		return answer(no(1, TenantMismatch))
	}

	// Every instant since the event at which something changed, latest first.
	instants := []time.Time{from}
	for _, tn := range org {
		for _, c := range tn.History {
			if c.At.After(from) && !c.At.After(now) {
				instants = append(instants, c.At)
			}
		}
	}
	slices.SortFunc(instants, func(a, b time.Time) int { return b.Compare(a) })
	d := referenceAt(m.opts, org, own, e, now, instants[0])
	for _, at := range instants[1:] {
		was := referenceAt(m.opts, org, own, e, now, at)
		if d.Metadata && !was.Metadata {
			d.Metadata, d.MetadataReason, d.Row = false, was.MetadataReason, 21
		}
		if d.InApp && !was.InApp {
			d.InApp, d.InAppReason, d.Row = false, was.InAppReason, 21
		}
	}
	return answer(d)
}

func referenceAt(opts Options, org []*schema.Tenant, own *schema.Tenant, e schema.Envelope, now, at time.Time) Decision {
	yes := func(b *bool) bool { return b != nil && *b }
	// any reports whether ask holds at the instant at any site.
	any := func(at time.Time, ask func(s schema.Settings) bool) bool {
		for _, tn := range org {
			if s, ok := tn.At(at); ok && ask(s) {
				return true
			}
		}
		return false
	}
	no := func(row int, why schema.Reason) Decision {
		return Decision{Row: row, MetadataReason: why, InAppReason: why}
	}
	// exempt is no, with row 4 if what is asked for held neither at T0 nor at
	// some moment before that from which it held on.
	exempt := func(row int, why schema.Reason, ask func(s schema.Settings) bool) Decision {
		if !any(schema.EffectiveDate, ask) {
			row = 4
		}
		for _, tn := range org {
			for _, c := range tn.History {
				if c.At.After(schema.EffectiveDate) && !c.At.After(at) && !any(c.At, ask) {
					row = 4
				}
			}
		}
		if !at.After(schema.EffectiveDate) { // nothing begins after T0 before T0
			row = map[bool]int{true: 3, false: 2}[why == ExemptSector]
		}
		return no(row, why)
	}

	cmek := func(s schema.Settings) bool { return yes(s.CMEK) }
	if any(at, cmek) {
		return exempt(2, ExemptCMEK, cmek)
	}
	government := func(s schema.Settings) bool { return yes(s.GovernmentCloud) }
	if any(at, government) {
		return exempt(2, ExemptGovernmentCloud, government)
	}
	isolated := func(s schema.Settings) bool { return yes(s.IsolatedCloud) }
	if any(at, isolated) {
		return exempt(2, ExemptIsolatedCloud, isolated)
	}
	hipaa := func(s schema.Settings) bool { return yes(s.HIPAA) }
	if any(at, hipaa) {
		return exempt(2, ExemptHIPAA, hipaa)
	}
	sector := func(s schema.Settings) bool {
		if s.Sector == nil || strings.TrimSpace(*s.Sector) == "" {
			return true
		}
		w := strings.TrimSpace(*s.Sector)
		listed := strings.EqualFold(w, "government") || strings.EqualFold(w, "financial_services")
		return listed && !yes(s.SectorNotExempt)
	}
	if any(at, sector) {
		return exempt(3, ExemptSector, sector)
	}
	if e.Product != schema.Jira && e.Product != schema.Confluence && e.Product != schema.ServiceManagement {
		return no(5, ProductOutOfScope)
	}
	if e.Time.Before(schema.EffectiveDate) || now.Before(schema.EffectiveDate) {
		return no(6, BeforeEffectiveDate)
	}
	ended := func(s schema.Settings) bool { return yes(s.ContractEnded) }
	if any(schema.EffectiveDate, ended) {
		return no(7, EndedBeforeEffectiveDate)
	}
	if any(at, ended) {
		return no(8, Ended)
	}
	mine, _ := own.At(at)
	if mine.DeletedApps != nil {
		for _, app := range *mine.DeletedApps {
			if app == e.Product {
				return no(8, Ended)
			}
		}
	}
	has := func(p schema.Plan) bool {
		return any(at, func(s schema.Settings) bool { return slices.Contains(slices.Collect(maps.Values(*s.Plans)), p) })
	}
	known := func(p schema.Plan) bool {
		return p == "free" || p == "standard" || p == "premium" || p == "enterprise"
	}
	if any(at, func(s schema.Settings) bool { return s.Plans == nil || len(*s.Plans) == 0 }) {
		return no(9, PlanUnknown)
	}
	if any(at, func(s schema.Settings) bool {
		for _, p := range *s.Plans {
			if !known(p) {
				return true
			}
		}
		return s.TransitionTo != nil && *s.TransitionTo != "" && !known(*s.TransitionTo)
	}) {
		return no(9, PlanUnknown)
	}
	if any(at, func(s schema.Settings) bool { return yes(s.OptedOut) }) {
		return no(16, OptedOut)
	}

	setting := func(of func(s schema.Settings) *schema.Setting) schema.Setting {
		if any(at, func(s schema.Settings) bool { return of(s) != nil && *of(s) == "off" }) {
			return "off"
		}
		if any(at, func(s schema.Settings) bool { return of(s) == nil || *of(s) == "" }) {
			return "unset"
		}
		return "on"
	}
	metadata := setting(func(s schema.Settings) *schema.Setting { return s.Metadata })
	inApp := setting(func(s schema.Settings) *schema.Setting { return s.InApp })
	vendor := opts.Unset == Vendor

	row := func(plan schema.Plan) Decision {
		yes := Decision{Metadata: true, InApp: true}
		d := yes
		if plan == "free" || plan == "standard" {
			if inApp == "off" {
				d = Decision{Metadata: true, InAppReason: InAppOff, Row: 10}
			}
			if inApp == "on" {
				d.Row = 11
			}
			if inApp == "unset" && !vendor {
				d = Decision{Metadata: true, InAppReason: InAppUnset, Row: 12}
			}
			if inApp == "unset" && vendor {
				d.Row = 12
			}
		}
		if plan == "premium" {
			if inApp == "off" {
				d = Decision{Metadata: true, InAppReason: InAppOff, Row: 13}
			}
			if inApp == "unset" {
				d = Decision{Metadata: true, InAppReason: InAppUnset, Row: 13}
			}
			if inApp == "on" {
				d.Row = 14
			}
		}
		if plan == "enterprise" {
			if metadata == "off" {
				d.Row = 15
				d.Metadata, d.MetadataReason = false, OptedOutMetadata
			}
			if metadata == "unset" {
				d.Row = 17
			}
			if metadata == "on" {
				d.Row = 18
			}
			if inApp == "off" {
				d.InApp, d.InAppReason = false, InAppOff
			}
			if inApp == "unset" {
				d.InApp, d.InAppReason = false, InAppUnset
			}
			if metadata == "unset" && !vendor {
				d = no(17, SettingsUnset)
			}
		}
		if plan != "enterprise" && metadata == "off" { // row 19
			d.Metadata, d.MetadataReason, d.Warn = false, OptedOutMetadata, true
		}
		return d
	}

	var plan schema.Plan
	for _, p := range []schema.Plan{"free", "standard", "premium", "enterprise"} {
		if has(p) {
			plan = p
		}
	}
	d := row(plan)
	for _, p := range []schema.Plan{"free", "standard", "premium", "enterprise"} {
		if any(at, func(s schema.Settings) bool { return s.TransitionTo != nil && *s.TransitionTo == p }) {
			to := row(p)
			if d.Metadata && !to.Metadata {
				d.Metadata, d.MetadataReason, d.Row = false, to.MetadataReason, 9
			}
			if d.InApp && !to.InApp {
				d.InApp, d.InAppReason, d.Row = false, to.InAppReason, 9
			}
			d.Warn = d.Warn || to.Warn
		}
	}
	if mine.Excluded != nil && d.InApp {
		in := func(keys []string, key string) bool {
			return key != "" && slices.ContainsFunc(keys, func(k string) bool { return strings.EqualFold(k, key) })
		}
		if in(mine.Excluded.Projects, e.Project) || in(mine.Excluded.Spaces, e.Space) || in(mine.Excluded.Apps, e.App) {
			d.InApp, d.InAppReason = false, ScopeExcluded
		}
	}
	return d
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
				got, want := p.Decide(w.event, w.now), reference(m, w.event, w.now)
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
		m := model{
			opts:       Options{Unset: rapid.SampledFrom([]Unset{Closed, Vendor}).Draw(t, "unset")},
			records:    map[string]*schema.Tenant{},
			unreadable: map[string][]string{},
		}
		p := NewPolicy(m.opts)
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
				m.records[key], hosts[key], speaks[key], revision[key] = tn, tn, []string{tn.Org}, next
				delete(m.unreadable, key)
				next++
			case "tombstone":
				require.NoError(t, p.Put(key, nil))
				delete(m.records, key)
				delete(m.unreadable, key)
				delete(hosts, key)
				delete(speaks, key)
			case "garbage":
				require.Error(t, p.Put(key, []byte(`{"org":"acme","history":[`)))
				delete(m.records, key)
				m.unreadable[key] = speaks[key]
			case "newer version":
				require.Error(t, p.Put(key, fmt.Appendf(nil, `{"tenant":%q,"org":"other","region":"eu","revision":99,"new_setting":true}`, key)))
				delete(m.records, key)
				speaks[key] = append(slices.Clone(speaks[key]), "other")
				m.unreadable[key] = speaks[key]
			case "misfiled":
				tn := drawTenant(t, "s9", next)
				require.Error(t, p.Put(key, encode(t, tn)))
				delete(m.records, key)
				speaks[key] = append(slices.Clone(speaks[key]), tn.Org)
				m.unreadable[key] = speaks[key]
			case "replay":
				if revision[key] > 0 {
					require.ErrorIs(t, p.Put(key, encode(t, drawTenant(t, key, revision[key]))), ErrRevision)
				}
			}
		}
		require.Equal(t, len(m.records)+len(m.unreadable), p.Len())
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
			got, want := p.Decide(e, now), reference(m, e, now)
			if got != want {
				require.Equal(t, want, got, "event %v now %v", e.Time.Sub(t0), now.Sub(t0))
			}
			rows[got.Row]++
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
