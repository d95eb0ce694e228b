// Package policy is the decision table said again, slowly: what package gate
// must answer, for tests. It shares no code with it. Every instant since the
// event is decided from the whole history, with one if per row.
package policy

import (
	"maps"
	"slices"
	"strings"
	"time"

	"winnow/pkg/schema"
)

// Decision has the fields of gate.Decision.
type Decision struct {
	Metadata, InApp             bool
	MetadataReason, InAppReason schema.Reason
	Row                         int
	Warn                        bool
	Org, Region                 string
}

// Topic is what the tenants topic says.
type Topic struct {
	Vendor     bool                      // the reading of absent settings
	Tenants    map[string]*schema.Tenant // readable records
	Unreadable map[string][]string       // key of an unreadable one → organisations that it may speak for
}

func no(row int, why schema.Reason) Decision {
	return Decision{Row: row, MetadataReason: why, InAppReason: why}
}

// orgAt is the organisation that a site belongs to at an instant, "" before its
// history begins.
func orgAt(tn *schema.Tenant, at time.Time) string {
	s, ok := tn.At(at)
	switch {
	case !ok:
		return ""
	case s.Org == nil:
		return tn.Org
	}
	return *s.Org
}

// changes are the instants after from, and not after now, at which any record
// changes; latest first.
func (p *Topic) changes(from, now time.Time) []time.Time {
	var instants []time.Time
	for _, tn := range p.Tenants {
		for _, c := range tn.History {
			if c.At.After(from) && !c.At.After(now) {
				instants = append(instants, c.At)
			}
		}
	}
	slices.SortFunc(instants, func(a, b time.Time) int { return b.Compare(a) })
	return instants
}

// Decide answers for an event at an instant.
func (p *Topic) Decide(e schema.Envelope, now time.Time) Decision {
	if _, ok := p.Unreadable[e.Tenant]; ok {
		return no(1, "tenant_stale")
	}
	own, ok := p.Tenants[e.Tenant]
	if !ok {
		return no(1, "tenant_unknown")
	}
	answer := func(d Decision) Decision {
		d.Org, d.Region = own.Org, own.Region
		return d
	}
	from := e.Time
	if now.Before(from) {
		from = now
	}
	if orgAt(own, from) == "" {
		return answer(no(1, "tenant_unknown"))
	}
	instants := append(p.changes(from, now), from)
	for _, at := range instants {
		org := orgAt(own, at)
		for _, orgs := range p.Unreadable {
			if slices.Contains(orgs, org) {
				return answer(no(1, "tenant_stale"))
			}
		}
		for _, tn := range p.Tenants {
			if tn.Org == org && !tn.Expires.IsZero() && tn.Expires.Before(now) {
				return answer(no(1, "tenant_stale"))
			}
		}
	}
	if e.Host != "" && !slices.Contains(own.Hosts, e.Host) {
		return answer(no(1, "tenant_mismatch"))
	}
	d := p.decideAt(own, e, now, instants[0])
	for _, at := range instants[1:] {
		was := p.decideAt(own, e, now, at)
		if d.Metadata && !was.Metadata {
			d.Metadata, d.MetadataReason, d.Row = false, was.MetadataReason, 21
		}
		if d.InApp && !was.InApp {
			d.InApp, d.InAppReason, d.Row = false, was.InAppReason, 21
		}
	}
	return answer(d)
}

func (p *Topic) decideAt(own *schema.Tenant, e schema.Envelope, now, at time.Time) Decision {
	org := orgAt(own, at)
	yes := func(b *bool) bool { return b != nil && *b }
	// any reports whether ask holds at the instant at any site that belonged to
	// the organisation then.
	any := func(at time.Time, ask func(s schema.Settings) bool) bool {
		for _, tn := range p.Tenants {
			if s, ok := tn.At(at); ok && orgAt(tn, at) == org && ask(s) {
				return true
			}
		}
		return false
	}
	// joined is when the site came from another organisation, if it did.
	var joined time.Time
	for i, c := range own.History {
		if i > 0 && !c.At.After(at) && orgAt(own, c.At) == org && orgAt(own, c.At.Add(-1)) != org && orgAt(own, c.At.Add(-1)) != "" {
			joined = c.At
		}
	}
	// exempt is no, with row 4 if what is asked for held neither at T0 nor at
	// some moment before that from which it held on, or if the site joined later.
	exempt := func(row int, why schema.Reason, ask func(s schema.Settings) bool) Decision {
		if at.After(schema.EffectiveDate) { // nothing begins after T0 before T0
			gap := !any(schema.EffectiveDate, ask)
			for _, then := range p.changes(schema.EffectiveDate, at) {
				gap = gap || !any(then, ask)
			}
			if gap || joined.After(schema.EffectiveDate) {
				row = 4
			}
		}
		return no(row, why)
	}

	cmek := func(s schema.Settings) bool { return yes(s.CMEK) }
	if any(at, cmek) {
		return exempt(2, "exempt_cmek", cmek)
	}
	government := func(s schema.Settings) bool { return yes(s.GovernmentCloud) }
	if any(at, government) {
		return exempt(2, "exempt_government_cloud", government)
	}
	isolated := func(s schema.Settings) bool { return yes(s.IsolatedCloud) }
	if any(at, isolated) {
		return exempt(2, "exempt_isolated_cloud", isolated)
	}
	hipaa := func(s schema.Settings) bool { return yes(s.HIPAA) }
	if any(at, hipaa) {
		return exempt(2, "exempt_hipaa", hipaa)
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
		return exempt(3, "exempt_sector", sector)
	}
	if e.Product != schema.Jira && e.Product != schema.Confluence && e.Product != schema.ServiceManagement {
		return no(5, "product_out_of_scope")
	}
	if e.Time.Before(schema.EffectiveDate) || now.Before(schema.EffectiveDate) {
		return no(6, "before_effective_date")
	}
	ended := func(s schema.Settings) bool { return yes(s.ContractEnded) }
	if any(schema.EffectiveDate, ended) {
		return no(7, "ended_before_effective_date")
	}
	if any(at, ended) {
		return no(8, "ended")
	}
	mine, _ := own.At(at)
	if mine.DeletedApps != nil {
		for _, app := range *mine.DeletedApps {
			if app == e.Product {
				return no(8, "ended")
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
		return no(9, "plan_unknown")
	}
	if any(at, func(s schema.Settings) bool {
		for _, p := range *s.Plans {
			if !known(p) {
				return true
			}
		}
		return s.TransitionTo != nil && *s.TransitionTo != "" && !known(*s.TransitionTo)
	}) {
		return no(9, "plan_unknown")
	}
	if any(at, func(s schema.Settings) bool { return yes(s.OptedOut) }) {
		return no(16, "opted_out")
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
	vendor := p.Vendor

	row := func(plan schema.Plan) Decision {
		yes := Decision{Metadata: true, InApp: true}
		d := yes
		if plan == "free" || plan == "standard" {
			if inApp == "off" {
				d = Decision{Metadata: true, InAppReason: "in_app_off", Row: 10}
			}
			if inApp == "on" {
				d.Row = 11
			}
			if inApp == "unset" && !vendor {
				d = Decision{Metadata: true, InAppReason: "in_app_unset", Row: 12}
			}
			if inApp == "unset" && vendor {
				d.Row = 12
			}
		}
		if plan == "premium" {
			if inApp == "off" {
				d = Decision{Metadata: true, InAppReason: "in_app_off", Row: 13}
			}
			if inApp == "unset" {
				d = Decision{Metadata: true, InAppReason: "in_app_unset", Row: 13}
			}
			if inApp == "on" {
				d.Row = 14
			}
		}
		if plan == "enterprise" {
			if metadata == "off" {
				d.Row = 15
				d.Metadata, d.MetadataReason = false, "opted_out_metadata"
			}
			if metadata == "unset" {
				d.Row = 17
			}
			if metadata == "on" {
				d.Row = 18
			}
			if inApp == "off" {
				d.InApp, d.InAppReason = false, "in_app_off"
			}
			if inApp == "unset" {
				d.InApp, d.InAppReason = false, "in_app_unset"
			}
			if metadata == "unset" && !vendor {
				d = no(17, "settings_unset")
			}
		}
		if plan != "enterprise" && metadata == "off" { // row 19
			d.Metadata, d.MetadataReason, d.Warn = false, "opted_out_metadata", true
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
		x := mine.Excluded
		if in(x.Projects, e.Project) || in(x.Spaces, e.Space) {
			d.InApp, d.InAppReason = false, "scope_excluded"
		}
		for _, app := range x.Apps {
			if app == e.Product {
				d.InApp, d.InAppReason = false, "scope_excluded"
			}
		}
		// The payload does not say what it is of.
		if e.Scoped && e.Product == schema.Confluence && e.Space == "" && len(x.Spaces) > 0 {
			d.InApp, d.InAppReason = false, "scope_excluded"
		}
		if e.Scoped && e.Product != schema.Confluence && e.Project == "" && len(x.Projects) > 0 {
			d.InApp, d.InAppReason = false, "scope_excluded"
		}
	}
	return d
}
