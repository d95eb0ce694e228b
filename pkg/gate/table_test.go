package gate

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"winnow/pkg/schema"
)

var t0 = schema.EffectiveDate

// world is one question to the gate: the tenants topic, an event and a clock.
type world struct {
	opts    Options
	tenants []*schema.Tenant // the first is the event's
	event   schema.Envelope
	now     time.Time
}

// open is a world in which row 14 admits both streams.
func open() *world {
	return &world{
		tenants: []*schema.Tenant{record("s1", schema.Premium)},
		event: schema.Envelope{
			Time: t0.Add(time.Hour), Tenant: "s1", Product: schema.Jira, Host: "s1.example.net",
			Project: "OPS", Space: "DOCS", Scoped: true,
		},
		now: t0.Add(2 * time.Hour),
	}
}

func record(id string, plan schema.Plan) *schema.Tenant {
	return &schema.Tenant{
		ID: id, Org: "acme", Hosts: []string{id + ".example.net"}, Region: "eu", Revision: 1,
		History: []schema.Change{{At: t0.AddDate(-1, 0, 0), Set: schema.Settings{
			Plans:    &map[schema.Product]schema.Plan{schema.Jira: plan},
			Sector:   new("retail"),
			Metadata: new(schema.On),
			InApp:    new(schema.On),
		}}},
	}
}

// set is the first change of the event's tenant.
func (w *world) set() *schema.Settings { return &w.tenants[0].History[0].Set }

func (w *world) plan(p schema.Plan) {
	w.set().Plans = &map[schema.Product]schema.Plan{schema.Jira: p}
}

// change adds a later change, after those of the same instant.
func change(tn *schema.Tenant, at time.Time, s schema.Settings) {
	i := 0
	for i < len(tn.History) && !tn.History[i].At.After(at) {
		i++
	}
	if i == 0 && s.Org == nil { // where changes name organisations, the first does
		s.Org = tn.History[0].Set.Org
	}
	tn.History = slices.Insert(tn.History, i, schema.Change{At: at, Set: s})
}

func (w *world) policy(t require.TestingT) *Policy {
	p := NewPolicy(w.opts)
	for _, tn := range w.tenants {
		put(t, p, tn)
	}
	return p
}

func encode(t require.TestingT, tn *schema.Tenant) []byte {
	b, err := json.Marshal(tn)
	require.NoError(t, err)
	return b
}

func put(t require.TestingT, p *Policy, tn *schema.Tenant) {
	require.NoError(t, p.Put(tn.ID, encode(t, tn)))
}

func (w *world) decide(t require.TestingT) Decision {
	return w.policy(t).Decide(w.event, w.now)
}

func TestTable(t *testing.T) {
	const y = schema.Reason("") // collected
	unset := func(w *world) { w.set().InApp = nil }
	vendor := func(w *world) { w.opts.Unset = Vendor }
	plan := func(p schema.Plan) func(*world) { return func(w *world) { w.plan(p) } }
	inApp := func(s schema.Setting) func(*world) { return func(w *world) { w.set().InApp = &s } }
	metadata := func(s schema.Setting) func(*world) { return func(w *world) { w.set().Metadata = &s } }
	later := func(at time.Duration, s schema.Settings) func(*world) {
		return func(w *world) { change(w.tenants[0], t0.Add(at), s) }
	}
	sibling := func(edit func(*schema.Tenant)) func(*world) {
		return func(w *world) {
			tn := record("s2", schema.Premium)
			edit(tn)
			w.tenants = append(w.tenants, tn)
		}
	}
	do := func(edits ...func(*world)) []func(*world) { return edits }
	const half, hour = 30 * time.Minute, time.Hour

	for _, c := range []struct {
		name            string
		edits           []func(*world)
		row             int
		metadata, inApp schema.Reason
		warn            bool
	}{
		{"row 01 unknown", do(func(w *world) { w.event.Tenant = "s9" }), 1, TenantUnknown, TenantUnknown, false},
		{"row 01 no tenant named", do(func(w *world) { w.event.Tenant = "" }), 1, TenantUnknown, TenantUnknown, false},
		{"row 01 local without the option", do(func(w *world) { w.event.Tenant = LocalTenant }), 1, TenantUnknown, TenantUnknown, false},
		{"row 01 history begins later", do(func(w *world) { w.tenants[0].History[0].At = t0.Add(hour + 1) }), 1, TenantUnknown, TenantUnknown, false},
		{"row 01 history begins at the event", do(func(w *world) { w.tenants[0].History[0].At = t0.Add(hour) }), 14, y, y, false},
		{"row 01 history begins after now, event later still", do(func(w *world) {
			w.tenants[0].History[0].At = w.now.Add(1)
			w.event.Time = w.now.Add(hour)
		}), 1, TenantUnknown, TenantUnknown, false},
		{"row 01 expired", do(func(w *world) { w.tenants[0].Expires = w.now.Add(-1) }), 1, TenantStale, TenantStale, false},
		{"row 01 expires now", do(func(w *world) { w.tenants[0].Expires = w.now }), 14, y, y, false},
		{"row 01 expired at another site", do(sibling(func(tn *schema.Tenant) { tn.Expires = t0 })), 1, TenantStale, TenantStale, false},
		{"row 01 expired at the first of two to expire", do(func(w *world) { w.tenants[0].Expires = t0.AddDate(1, 0, 0) },
			sibling(func(tn *schema.Tenant) { tn.Expires = t0 })), 1, TenantStale, TenantStale, false},
		{"row 01 expired at another organisation", do(sibling(func(tn *schema.Tenant) { tn.Expires, tn.Org = t0, "other" })), 14, y, y, false},
		{"row 01 foreign host", do(func(w *world) { w.event.Host = "s2.example.net" }), 1, TenantMismatch, TenantMismatch, false},
		{"row 01 host of another site", do(sibling(func(*schema.Tenant) {}), func(w *world) { w.event.Host = "s2.example.net" }), 1, TenantMismatch, TenantMismatch, false},
		{"row 01 no hosts listed", do(func(w *world) { w.tenants[0].Hosts = nil }), 1, TenantMismatch, TenantMismatch, false},
		{"row 01 no host named", do(func(w *world) { w.event.Host = "" }), 14, y, y, false},

		{"row 02 cmek", do(func(w *world) { w.set().CMEK = new(true) }), 2, ExemptCMEK, ExemptCMEK, false},
		{"row 02 government cloud", do(func(w *world) { w.set().GovernmentCloud = new(true) }), 2, ExemptGovernmentCloud, ExemptGovernmentCloud, false},
		{"row 02 isolated cloud", do(func(w *world) { w.set().IsolatedCloud = new(true) }), 2, ExemptIsolatedCloud, ExemptIsolatedCloud, false},
		{"row 02 hipaa", do(func(w *world) { w.set().HIPAA = new(true) }), 2, ExemptHIPAA, ExemptHIPAA, false},
		{"row 02 explicitly none", do(func(w *world) {
			s := w.set()
			s.CMEK, s.GovernmentCloud, s.IsolatedCloud, s.HIPAA = new(false), new(false), new(false), new(false)
		}), 14, y, y, false},
		{"row 02 at another site", do(sibling(func(tn *schema.Tenant) { tn.History[0].Set.HIPAA = new(true) })), 2, ExemptHIPAA, ExemptHIPAA, false},
		{"row 02 since T0", do(later(0, schema.Settings{CMEK: new(true)})), 2, ExemptCMEK, ExemptCMEK, false},

		{"row 03 government", do(func(w *world) { w.set().Sector = new(schema.SectorGovernment) }), 3, ExemptSector, ExemptSector, false},
		{"row 03 financial services", do(func(w *world) { w.set().Sector = new(schema.SectorFinancial) }), 3, ExemptSector, ExemptSector, false},
		{"row 03 other spelling", do(func(w *world) { w.set().Sector = new(" Government") }), 3, ExemptSector, ExemptSector, false},
		{"row 03 never said", do(func(w *world) { w.set().Sector = nil }), 3, ExemptSector, ExemptSector, false},
		{"row 03 unknown", do(func(w *world) { w.set().Sector = new("") }), 3, ExemptSector, ExemptSector, false},
		{"row 03 unknown, marked not exempt", do(func(w *world) { w.set().Sector, w.set().SectorNotExempt = new(""), new(true) }), 3, ExemptSector, ExemptSector, false},
		{"row 03 marked not exempt", do(func(w *world) {
			w.set().Sector, w.set().SectorNotExempt = new(schema.SectorFinancial), new(true)
		}), 14, y, y, false},
		{"row 03 the mark of another site", do(
			func(w *world) { w.set().Sector = new(schema.SectorFinancial) },
			sibling(func(tn *schema.Tenant) { tn.History[0].Set.SectorNotExempt = new(true) }),
		), 3, ExemptSector, ExemptSector, false},

		{"row 04 cmek after T0", do(later(1, schema.Settings{CMEK: new(true)})), 4, ExemptCMEK, ExemptCMEK, false},
		{"row 04 sector after T0", do(later(half, schema.Settings{Sector: new(schema.SectorGovernment)})), 4, ExemptSector, ExemptSector, false},
		{"row 04 after the event", do(later(hour+half, schema.Settings{HIPAA: new(true)})), 4, ExemptHIPAA, ExemptHIPAA, false},
		{"row 04 again after a break", do(func(w *world) { w.set().CMEK = new(true) },
			later(1, schema.Settings{CMEK: new(false)}), later(half, schema.Settings{CMEK: new(true)})), 4, ExemptCMEK, ExemptCMEK, false},
		{"row 04 not when another site held it on", do(func(w *world) { w.set().CMEK = new(true) },
			later(2, schema.Settings{CMEK: new(false)}),
			sibling(func(tn *schema.Tenant) { change(tn, t0.Add(1), schema.Settings{CMEK: new(true)}) })), 2, ExemptCMEK, ExemptCMEK, false},
		{"row 04 first reason is the newer", do(func(w *world) { w.set().HIPAA = new(true) }, later(half, schema.Settings{CMEK: new(true)})), 4, ExemptCMEK, ExemptCMEK, false},
		{"row 04 scheduled after now", do(later(3*hour, schema.Settings{CMEK: new(true)})), 14, y, y, false},

		{"row 05 other product", do(func(w *world) { w.event.Product = "bitbucket" }), 5, ProductOutOfScope, ProductOutOfScope, false},
		{"row 05 no product", do(func(w *world) { w.event.Product = "" }), 5, ProductOutOfScope, ProductOutOfScope, false},
		{"row 05 confluence", do(func(w *world) { w.event.Product = schema.Confluence }), 14, y, y, false},
		{"row 05 service management", do(func(w *world) { w.event.Product = schema.ServiceManagement }), 14, y, y, false},

		{"row 06 event before", do(func(w *world) { w.event.Time = t0.Add(-1) }), 6, BeforeEffectiveDate, BeforeEffectiveDate, false},
		{"row 06 processing before", do(func(w *world) { w.now = t0.Add(-1) }), 6, BeforeEffectiveDate, BeforeEffectiveDate, false},
		{"row 06 both at T0", do(func(w *world) { w.event.Time, w.now = t0, t0 }), 14, y, y, false},

		{"row 07 ended at T0", do(later(0, schema.Settings{ContractEnded: new(true)})), 7, EndedBeforeEffectiveDate, EndedBeforeEffectiveDate, false},
		{"row 07 reactivated after T0", do(func(w *world) { w.set().ContractEnded = new(true) },
			later(1, schema.Settings{ContractEnded: new(false)})), 7, EndedBeforeEffectiveDate, EndedBeforeEffectiveDate, false},
		{"row 07 reactivated before T0", do(func(w *world) { w.set().ContractEnded = new(true) },
			later(-1, schema.Settings{ContractEnded: new(false)})), 14, y, y, false},
		{"row 07 at another site", do(sibling(func(tn *schema.Tenant) {
			tn.History[0].Set.ContractEnded = new(true)
			change(tn, t0.Add(1), schema.Settings{ContractEnded: new(false)})
		})), 7, EndedBeforeEffectiveDate, EndedBeforeEffectiveDate, false},

		{"row 08 ended", do(later(half, schema.Settings{ContractEnded: new(true)})), 8, Ended, Ended, false},
		{"row 08 ended after the event", do(later(2*hour, schema.Settings{ContractEnded: new(true)})), 8, Ended, Ended, false},
		{"row 08 ended at another site", do(sibling(func(tn *schema.Tenant) { change(tn, t0.Add(half), schema.Settings{ContractEnded: new(true)}) })), 8, Ended, Ended, false},
		{"row 08 app deleted", do(later(half, schema.Settings{DeletedApps: &[]schema.Product{schema.Confluence, schema.Jira}})), 8, Ended, Ended, false},
		{"row 08 other app deleted", do(later(half, schema.Settings{DeletedApps: &[]schema.Product{schema.Confluence}})), 14, y, y, false},
		{"row 08 app deleted at another site", do(sibling(func(tn *schema.Tenant) { tn.History[0].Set.DeletedApps = &[]schema.Product{schema.Jira} })), 14, y, y, false},
		{"row 08 new contract, event before it", do(later(half, schema.Settings{ContractEnded: new(true)}),
			later(hour+half, schema.Settings{ContractEnded: new(false)})), 21, Ended, Ended, false},
		{"row 08 new contract, event after it", do(later(1, schema.Settings{ContractEnded: new(true)}),
			later(half, schema.Settings{ContractEnded: new(false)})), 14, y, y, false},

		{"row 09 never said", do(func(w *world) { w.set().Plans = nil }), 9, PlanUnknown, PlanUnknown, false},
		{"row 09 no plan", do(func(w *world) { w.set().Plans = &map[schema.Product]schema.Plan{} }), 9, PlanUnknown, PlanUnknown, false},
		{"row 09 unknown word", do(plan("ultimate")), 9, PlanUnknown, PlanUnknown, false},
		{"row 09 unknown word beside a known one", do(func(w *world) { (*w.set().Plans)[schema.Confluence] = "ultimate" }), 9, PlanUnknown, PlanUnknown, false},
		{"row 09 no plan at another site", do(sibling(func(tn *schema.Tenant) { tn.History[0].Set.Plans = nil })), 9, PlanUnknown, PlanUnknown, false},
		{"row 09 to an unknown plan", do(func(w *world) { w.set().TransitionTo = new(schema.Plan("ultimate")) }), 9, PlanUnknown, PlanUnknown, false},
		{"row 09 to a stricter plan", do(plan(schema.Free), metadata(schema.Absent), func(w *world) { w.set().TransitionTo = new(schema.Enterprise) }), 9, SettingsUnset, SettingsUnset, false},
		{"row 09 from a stricter plan", do(plan(schema.Enterprise), metadata(schema.Absent), func(w *world) { w.set().TransitionTo = new(schema.Free) }), 17, SettingsUnset, SettingsUnset, false},
		{"row 09 stricter in one stream", do(vendor, unset, plan(schema.Free), func(w *world) { w.set().TransitionTo = new(schema.Premium) }), 9, y, InAppUnset, false},
		{"row 09 to a plan no stricter", do(plan(schema.Free), func(w *world) { w.set().TransitionTo = new(schema.Enterprise) }), 11, y, y, false},
		{"row 09 settled", do(func(w *world) { w.set().TransitionTo = new(schema.Plan("")) }), 14, y, y, false},
		{"row 09 in transition at another site", do(plan(schema.Free), metadata(schema.Absent),
			sibling(func(tn *schema.Tenant) { tn.History[0].Set.TransitionTo = new(schema.Enterprise) })), 9, SettingsUnset, SettingsUnset, false},
		{"row 09 an opt-out outlives the downgrade", do(plan(schema.Enterprise), func(w *world) { w.set().OptedOut = new(true) },
			later(half, schema.Settings{Plans: &map[schema.Product]schema.Plan{schema.Jira: schema.Free}})), 16, OptedOut, OptedOut, false},

		{"row 10 free", do(plan(schema.Free), inApp(schema.Off)), 10, y, InAppOff, false},
		{"row 10 standard", do(plan(schema.Standard), inApp(schema.Off)), 10, y, InAppOff, false},
		{"row 10 off at another site", do(plan(schema.Free), sibling(func(tn *schema.Tenant) {
			tn.History[0].Set.InApp = new(schema.Off)
			(*tn.History[0].Set.Plans)[schema.Jira] = schema.Standard
		})), 10, y, InAppOff, false},
		{"row 10 off at one site, absent at another", do(plan(schema.Standard), unset, sibling(func(tn *schema.Tenant) {
			tn.History[0].Set.InApp = new(schema.Off)
			(*tn.History[0].Set.Plans)[schema.Jira] = schema.Free
		})), 10, y, InAppOff, false},
		{"row 10 vendor", do(vendor, plan(schema.Free), inApp(schema.Off)), 10, y, InAppOff, false},
		{"row 11 free", do(plan(schema.Free)), 11, y, y, false},
		{"row 11 standard", do(plan(schema.Standard)), 11, y, y, false},
		{"row 11 metadata absent", do(plan(schema.Free), metadata(schema.Absent)), 11, y, y, false},
		{"row 12 free", do(plan(schema.Free), unset), 12, y, InAppUnset, false},
		{"row 12 standard, withdrawn", do(plan(schema.Standard), later(half, schema.Settings{InApp: new(schema.Absent)})), 12, y, InAppUnset, false},
		{"row 12 vendor free", do(vendor, plan(schema.Free), unset), 12, y, y, false},
		{"row 12 vendor standard", do(vendor, plan(schema.Standard), unset), 12, y, y, false},
		{"row 12 absent at another site", do(plan(schema.Free), sibling(func(tn *schema.Tenant) {
			tn.History[0].Set.InApp = nil
			(*tn.History[0].Set.Plans)[schema.Jira] = schema.Free
		})), 12, y, InAppUnset, false},
		{"row 13 off", do(inApp(schema.Off)), 13, y, InAppOff, false},
		{"row 13 absent", do(unset), 13, y, InAppUnset, false},
		{"row 13 vendor absent", do(vendor, unset), 13, y, InAppUnset, false},
		{"row 14 on", nil, 14, y, y, false},
		{"row 14 the highest plan of any site", do(plan(schema.Free), sibling(func(*schema.Tenant) {})), 14, y, y, false},

		{"row 15 in-app on", do(plan(schema.Enterprise), metadata(schema.Off)), 15, OptedOutMetadata, y, false},
		{"row 15 in-app off", do(plan(schema.Enterprise), metadata(schema.Off), inApp(schema.Off)), 15, OptedOutMetadata, InAppOff, false},
		{"row 15 in-app absent", do(plan(schema.Enterprise), metadata(schema.Off), unset), 15, OptedOutMetadata, InAppUnset, false},
		{"row 15 vendor, in-app absent", do(vendor, plan(schema.Enterprise), metadata(schema.Off), unset), 15, OptedOutMetadata, InAppUnset, false},
		{"row 16 enterprise", do(plan(schema.Enterprise), func(w *world) { w.set().OptedOut = new(true) }), 16, OptedOut, OptedOut, false},
		{"row 16 at another site", do(sibling(func(tn *schema.Tenant) { tn.History[0].Set.OptedOut = new(true) })), 16, OptedOut, OptedOut, false},
		{"row 17 all absent", do(plan(schema.Enterprise), metadata(schema.Absent), unset), 17, SettingsUnset, SettingsUnset, false},
		{"row 17 in-app on", do(plan(schema.Enterprise), metadata(schema.Absent)), 17, SettingsUnset, SettingsUnset, false},
		{"row 17 in-app off", do(plan(schema.Enterprise), metadata(schema.Absent), inApp(schema.Off)), 17, SettingsUnset, SettingsUnset, false},
		{"row 17 vendor, all absent", do(vendor, plan(schema.Enterprise), metadata(schema.Absent), unset), 17, y, InAppUnset, false},
		{"row 17 vendor, in-app on", do(vendor, plan(schema.Enterprise), metadata(schema.Absent)), 17, y, y, false},
		{"row 18 in-app on", do(plan(schema.Enterprise)), 18, y, y, false},
		{"row 18 in-app off", do(plan(schema.Enterprise), inApp(schema.Off)), 18, y, InAppOff, false},
		{"row 18 in-app absent", do(plan(schema.Enterprise), unset), 18, y, InAppUnset, false},
		{"row 18 vendor, in-app absent", do(vendor, plan(schema.Enterprise), unset), 18, y, InAppUnset, false},

		{"row 19 free", do(plan(schema.Free), metadata(schema.Off), inApp(schema.Off)), 10, OptedOutMetadata, InAppOff, true},
		{"row 19 standard", do(plan(schema.Standard), metadata(schema.Off)), 11, OptedOutMetadata, y, true},
		{"row 19 premium", do(metadata(schema.Off), unset), 13, OptedOutMetadata, InAppUnset, true},
		{"row 19 vendor", do(vendor, metadata(schema.Off)), 14, OptedOutMetadata, y, true},
		{"row 19 on the way to a plan that offers none", do(plan(schema.Enterprise), metadata(schema.Off), func(w *world) { w.set().TransitionTo = new(schema.Free) }), 15, OptedOutMetadata, y, true},
		{"row 19 on the way from one", do(metadata(schema.Off), func(w *world) { w.set().TransitionTo = new(schema.Enterprise) }), 14, OptedOutMetadata, y, true},
		{"row 20 project", do(func(w *world) { w.set().Excluded = &schema.Excluded{Projects: []string{"WEB", "Ops"}} }), 14, y, ScopeExcluded, false},
		{"row 20 space", do(func(w *world) { w.set().Excluded = &schema.Excluded{Spaces: []string{"docs"}} }), 14, y, ScopeExcluded, false},
		{"row 20 app", do(func(w *world) {
			w.set().Excluded = &schema.Excluded{Apps: []schema.Product{schema.Confluence, schema.Jira}}
		}), 14, y, ScopeExcluded, false},
		{"row 20 another kind of scope", do(func(w *world) {
			w.set().Excluded = &schema.Excluded{Projects: []string{"DOCS"}, Spaces: []string{"OPS"}, Apps: []schema.Product{"ops"}}
		}), 14, y, y, false},
		{"row 20 the payload has not been read", do(func(w *world) {
			w.set().Excluded = &schema.Excluded{Projects: []string{"", "WEB"}, Spaces: []string{"", "WEB"}}
			w.event.Project, w.event.Space, w.event.Scoped = "", "", false
		}), 14, y, y, false},
		{"row 20 the payload names no project", do(func(w *world) {
			w.set().Excluded = &schema.Excluded{Projects: []string{"WEB"}}
			w.event.Project = ""
		}), 14, y, ScopeExcluded, false},
		{"row 20 the payload names no project, spaces are excluded", do(func(w *world) {
			w.set().Excluded = &schema.Excluded{Spaces: []string{"WEB"}}
			w.event.Project, w.event.Space = "", ""
		}), 14, y, y, false},
		{"row 20 the page names no space", do(func(w *world) {
			w.set().Excluded = &schema.Excluded{Spaces: []string{"WEB"}}
			w.event.Product, w.event.Project, w.event.Space = schema.Confluence, "", ""
		}), 14, y, ScopeExcluded, false},
		{"row 20 the page names no space, projects are excluded", do(func(w *world) {
			w.set().Excluded = &schema.Excluded{Projects: []string{"WEB"}}
			w.event.Product, w.event.Project, w.event.Space = schema.Confluence, "", ""
		}), 14, y, y, false},
		{"row 20 in-app off already", do(inApp(schema.Off), func(w *world) { w.set().Excluded = &schema.Excluded{Projects: []string{"OPS"}} }), 13, y, InAppOff, false},
		{"row 20 at another site", do(sibling(func(tn *schema.Tenant) { tn.History[0].Set.Excluded = &schema.Excluded{Projects: []string{"OPS"}} })), 14, y, y, false},

		{"row 21 opted in again after the event", do(func(w *world) { w.set().OptedOut = new(true) },
			later(hour+half, schema.Settings{OptedOut: new(false)})), 21, OptedOut, OptedOut, false},
		{"row 21 opted in again at the event", do(func(w *world) { w.set().OptedOut = new(true) },
			later(hour, schema.Settings{OptedOut: new(false)})), 14, y, y, false},
		{"row 21 opted out and in between event and now", do(later(hour+1, schema.Settings{OptedOut: new(true)}),
			later(hour+2, schema.Settings{OptedOut: new(false)})), 21, OptedOut, OptedOut, false},
		{"row 21 one stream", do(inApp(schema.Off), later(2*hour, schema.Settings{InApp: new(schema.On)})), 21, y, InAppOff, false},
		{"row 21 each stream for its own reason", do(later(hour+1, schema.Settings{InApp: new(schema.Off)}),
			later(hour+2, schema.Settings{InApp: new(schema.On), Metadata: new(schema.Off)}),
			later(hour+3, schema.Settings{Metadata: new(schema.On)})), 21, OptedOutMetadata, InAppOff, false},
		{"row 21 the latest denial names the reason", do(later(hour+1, schema.Settings{OptedOut: new(true)}),
			later(hour+2, schema.Settings{OptedOut: new(false), InApp: new(schema.Off)}),
			later(hour+3, schema.Settings{InApp: new(schema.On)})), 21, OptedOut, InAppOff, false},
		{"row 21 the current denial stands", do(func(w *world) { w.set().OptedOut = new(true) },
			later(hour+half, schema.Settings{OptedOut: new(false), CMEK: new(true)})), 4, ExemptCMEK, ExemptCMEK, false},
		{"row 21 out and in at one instant", do(later(hour+half, schema.Settings{OptedOut: new(true)}),
			later(hour+half, schema.Settings{OptedOut: new(false)})), 14, y, y, false},
		{"row 21 opted out at another site", do(sibling(func(tn *schema.Tenant) {
			change(tn, t0.Add(hour+1), schema.Settings{OptedOut: new(true)})
			change(tn, t0.Add(hour+2), schema.Settings{OptedOut: new(false)})
		})), 21, OptedOut, OptedOut, false},
		{"row 21 scope no longer excluded", do(func(w *world) { w.set().Excluded = &schema.Excluded{Projects: []string{"OPS"}} },
			later(2*hour, schema.Settings{Excluded: &schema.Excluded{}})), 21, y, ScopeExcluded, false},
		{"row 21 another site joins later", do(sibling(func(tn *schema.Tenant) { tn.History[0].At = t0.Add(hour + 1) })), 14, y, y, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := open()
			for _, edit := range c.edits {
				edit(w)
			}
			got := w.decide(t)
			want := Decision{
				Metadata: c.metadata == y, MetadataReason: c.metadata, InApp: c.inApp == y, InAppReason: c.inApp,
				Row: c.row, Warn: c.warn,
			}
			if c.metadata != TenantUnknown || w.event.Tenant == "s1" {
				want.Org, want.Region = "acme", "eu"
			}
			require.Equal(t, want, got)
			require.Equal(t, Decision(w.model().Decide(w.event, w.now)), got, "the reference reads the table otherwise")
		})
	}
}

// vetoes are the conditions of rows 1-9 and 16 in the table's order, such that
// any two can hold at once.
var vetoes = []struct {
	name   string
	row    int
	reason schema.Reason
	hold   func(*world)
}{
	{"unknown", 1, TenantUnknown, func(w *world) { w.event.Tenant = "s9" }},
	{"stale", 1, TenantStale, func(w *world) { w.tenants[0].Expires = t0.Add(-2 * time.Hour) }},
	{"mismatch", 1, TenantMismatch, func(w *world) { w.event.Host = "elsewhere.example.net" }},
	{"cmek", 2, ExemptCMEK, func(w *world) { w.set().CMEK = new(true) }},
	{"government cloud", 2, ExemptGovernmentCloud, func(w *world) { w.set().GovernmentCloud = new(true) }},
	{"isolated cloud", 2, ExemptIsolatedCloud, func(w *world) { w.set().IsolatedCloud = new(true) }},
	{"hipaa", 2, ExemptHIPAA, func(w *world) { w.set().HIPAA = new(true) }},
	{"sector", 3, ExemptSector, func(w *world) { w.set().Sector = nil }},
	{"product", 5, ProductOutOfScope, func(w *world) { w.event.Product = "trello" }},
	{"event before T0", 6, BeforeEffectiveDate, func(w *world) { w.event.Time = t0.Add(-time.Hour) }},
	{"processing before T0", 6, BeforeEffectiveDate, func(w *world) { w.now = t0.Add(-time.Hour) }},
	{"ended before T0", 7, EndedBeforeEffectiveDate, func(w *world) { w.set().ContractEnded = new(true) }},
	{"ended", 8, Ended, func(w *world) { change(w.tenants[0], t0.Add(1), schema.Settings{ContractEnded: new(true)}) }},
	{"app deleted", 8, Ended, func(w *world) {
		w.set().DeletedApps = &[]schema.Product{schema.Jira, "trello"}
	}},
	{"plan unknown", 9, PlanUnknown, func(w *world) { (*w.set().Plans)["extra"] = "ultimate" }},
	{"target unknown", 9, PlanUnknown, func(w *world) { w.set().TransitionTo = new(schema.Plan("ultimate")) }},
	{"opted out", 16, OptedOut, func(w *world) { w.set().OptedOut = new(true) }},
}

// bases calls f with a world for every plan, in-app setting, metadata setting
// and reading of absent settings.
func bases(f func(name string, w *world)) {
	settings := []*schema.Setting{nil, new(schema.Off), new(schema.On)}
	for _, unset := range []Unset{Closed, Vendor} {
		for _, plan := range []schema.Plan{schema.Free, schema.Standard, schema.Premium, schema.Enterprise} {
			for i, inApp := range settings {
				for m, metadata := range settings {
					w := open()
					w.opts.Unset = unset
					w.plan(plan)
					w.set().InApp, w.set().Metadata = inApp, metadata
					f(fmt.Sprintf("%v %s in-app %d metadata %d", unset, plan, i, m), w)
				}
			}
		}
	}
}

func TestFirstVetoOfTwoNamesTheReason(t *testing.T) {
	for i, a := range vetoes {
		for _, b := range vetoes[i:] {
			t.Run(a.name+" and "+b.name, func(t *testing.T) {
				bases(func(name string, w *world) {
					a.hold(w)
					b.hold(w)
					got := w.decide(t)
					got.Org, got.Region = "", ""
					require.Equal(t, Decision{MetadataReason: a.reason, InAppReason: a.reason, Row: a.row}, got, name)
				})
			})
		}
	}
}

func TestAssumedConsent(t *testing.T) {
	p := NewPolicy(Options{AssumeConsent: true})
	e := schema.Envelope{Tenant: LocalTenant, Product: schema.Jira, Time: t0, Host: "any.example.net"}
	require.Equal(t, Decision{Metadata: true, InApp: true, Org: "local", Region: "local"}, p.Decide(e, t0))

	early := Decision{MetadataReason: BeforeEffectiveDate, InAppReason: BeforeEffectiveDate, Row: 6, Org: "local", Region: "local"}
	require.Equal(t, early, p.Decide(e, t0.Add(-1)))
	e.Time = t0.Add(-1)
	require.Equal(t, early, p.Decide(e, t0))
	e.Product = "trello"
	require.Equal(t, Decision{MetadataReason: ProductOutOfScope, InAppReason: ProductOutOfScope, Row: 5, Org: "local", Region: "local"}, p.Decide(e, t0))

	w := open()
	w.opts.AssumeConsent = true
	w.set().OptedOut = new(true)
	require.Zero(t, w.decide(t).Streams(), "a tenant with a record is decided by it")
	w.event.Tenant = "s9"
	require.Zero(t, w.decide(t).Streams(), "an unknown tenant is not local")
}

func TestStreamsAndWithheld(t *testing.T) {
	require.Zero(t, Decision{}.Streams())
	d := Decision{Metadata: true, InAppReason: InAppOff}
	require.Equal(t, schema.Metadata, d.Streams())
	require.Equal(t, schema.Withheld{InApp: InAppOff}, d.Withheld())
	d = Decision{InApp: true, MetadataReason: OptedOutMetadata}
	require.Equal(t, schema.InApp, d.Streams())
	require.Equal(t, schema.Withheld{Metadata: OptedOutMetadata}, d.Withheld())
	require.Equal(t, schema.Metadata|schema.InApp, Decision{Metadata: true, InApp: true}.Streams())
}

func TestUnsetWords(t *testing.T) {
	for _, u := range []Unset{Closed, Vendor} {
		got, err := ParseUnset(u.String())
		require.NoError(t, err)
		require.Equal(t, u, got)
	}
	for _, s := range []string{"", "open", "Vendor", "vendor "} {
		got, err := ParseUnset(s)
		require.Error(t, err, s)
		require.Equal(t, Closed, got)
	}
	w := open()
	w.set().InApp = nil
	w.plan(schema.Free)
	w.opts.Unset = Vendor + 1
	require.Equal(t, schema.Metadata, w.decide(t).Streams(), "a reading that does not exist opens nothing")
}

// TestReasonsAreUnique reads the constants from the sources, so that a new one
// cannot be left out: two meanings of one word would share a counter.
func TestReasonsAreUnique(t *testing.T) {
	seen := map[string]string{}
	here := 0
	for _, dir := range []string{".", "../schema"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		require.NoError(t, err)
		for _, name := range files {
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
			require.NoError(t, err)
			ast.Inspect(file, func(n ast.Node) bool {
				v, ok := n.(*ast.ValueSpec)
				if !ok || len(v.Values) != 1 {
					return true
				}
				switch typ := v.Type.(type) {
				case *ast.Ident:
					ok = typ.Name == "Reason"
				case *ast.SelectorExpr:
					ok = typ.Sel.Name == "Reason"
				default:
					ok = false
				}
				lit, isLit := v.Values[0].(*ast.BasicLit)
				if !ok || !isLit {
					return true
				}
				word, err := strconv.Unquote(lit.Value)
				require.NoError(t, err)
				require.Regexp(t, `^[a-z]+(_[a-z0-9]+)*$`, word, v.Names[0].Name)
				require.NotContains(t, seen, word, v.Names[0].Name)
				seen[word] = v.Names[0].Name
				if dir == "." {
					here++
				}
				return true
			})
		}
	}
	require.Equal(t, 19, here, "reasons of the decision table")
}
