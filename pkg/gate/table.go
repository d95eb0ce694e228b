package gate

import (
	"slices"
	"strings"
	"time"

	"winnow/pkg/schema"
)

// state is what one site's record says from an instant until its next change.
type state struct {
	at  time.Time
	set schema.Settings
}

// facts is what the records of an organisation say together from an instant
// until the next change of any of them.
type facts struct {
	at              time.Time
	exempt          schema.Reason // rows 2-4; empty if none holds
	exemptRow       int
	ended           bool
	planUnknown     bool
	plan            schema.Plan   // the highest active plan
	targets         []schema.Plan // plans being changed to, lowest first
	optedOut        bool
	metadata, inApp schema.Setting
}

// plans in rising order; a plan's index is its rank.
var plans = []schema.Plan{schema.Free, schema.Standard, schema.Premium, schema.Enterprise}

// exemptions are rows 2 and 3 in the order in which they name the reason.
var exemptions = [...]struct {
	row    int
	reason schema.Reason
	holds  func(*schema.Settings) bool
}{
	{2, ExemptCMEK, func(s *schema.Settings) bool { return is(s.CMEK) }},
	{2, ExemptGovernmentCloud, func(s *schema.Settings) bool { return is(s.GovernmentCloud) }},
	{2, ExemptIsolatedCloud, func(s *schema.Settings) bool { return is(s.IsolatedCloud) }},
	{2, ExemptHIPAA, func(s *schema.Settings) bool { return is(s.HIPAA) }},
	{3, ExemptSector, func(s *schema.Settings) bool {
		if s.Sector == nil {
			return true
		}
		switch strings.ToLower(strings.TrimSpace(*s.Sector)) {
		case "":
			return true // SectorNotExempt speaks of a sector that is known
		case schema.SectorGovernment, schema.SectorFinancial:
			return !is(s.SectorNotExempt)
		}
		return false
	}},
}

func is(b *bool) bool { return b != nil && *b }

// fold returns the states of a history, one per distinct instant, ascending.
func fold(history []schema.Change) []state {
	states := make([]state, 0, len(history))
	for i, c := range history {
		next := schema.Tenant{History: history[i : i+1]}
		n := len(states)
		if n > 0 {
			last := states[n-1]
			next.History = []schema.Change{{At: last.at, Set: last.set}, c}
		}
		set, _ := next.At(c.At)
		if n > 0 && states[n-1].at.Equal(c.At) {
			states[n-1].set = set
		} else {
			states = append(states, state{c.At, set})
		}
	}
	return states
}

// stay is what a site says while it belongs to an organisation.
type stay struct {
	states []state   // ascending, never empty; the first at the beginning of the stay
	end    time.Time // the site belongs to another from here on; zero: it does not
}

// stayOf cuts the states of a site to a stay, which begins with one of them.
func stayOf(states []state, at, end time.Time) stay {
	first, last := 0, len(states)
	for states[first].at.Before(at) {
		first++
	}
	for !end.IsZero() && !states[last-1].at.Before(end) {
		last--
	}
	return stay{states[first:last], end}
}

// timeline merges what the sites of an organisation say: the facts at each
// instant at which any of them changes, joins or leaves, ascending.
func timeline(stays []stay) []facts {
	var instants []time.Time
	for _, y := range stays {
		for _, s := range y.states {
			instants = append(instants, s.at)
		}
		if !y.end.IsZero() {
			instants = append(instants, y.end)
		}
	}
	slices.SortFunc(instants, time.Time.Compare)
	instants = slices.CompactFunc(instants, time.Time.Equal)

	line := make([]facts, 0, len(instants))
	next := make([]int, len(stays)) // per stay, the first state not yet in force
	var since [len(exemptions)]time.Time
	for _, at := range instants {
		var now []*schema.Settings
		for i, y := range stays {
			for next[i] < len(y.states) && !y.states[next[i]].at.After(at) {
				next[i]++
			}
			if next[i] > 0 && (y.end.IsZero() || at.Before(y.end)) {
				now = append(now, &y.states[next[i]-1].set)
			}
		}
		f := combine(now)
		f.at = at
		for i, x := range exemptions {
			if !slices.ContainsFunc(now, x.holds) {
				since[i] = time.Time{}
				continue
			}
			if since[i].IsZero() {
				since[i] = at
			}
			if f.exempt != "" {
				continue
			}
			f.exempt, f.exemptRow = x.reason, x.row
			if since[i].After(schema.EffectiveDate) {
				f.exemptRow = 4
			}
		}
		line = append(line, f)
	}
	return line
}

// combine reads the settings of the sites of one organisation as its own, but
// for the exemptions.
func combine(sites []*schema.Settings) facts {
	var f facts
	highest := -1
	target := make([]bool, len(plans))
	for _, s := range sites {
		f.ended = f.ended || is(s.ContractEnded)
		f.optedOut = f.optedOut || is(s.OptedOut)
		if s.Plans == nil || len(*s.Plans) == 0 {
			f.planUnknown = true
		} else {
			for _, p := range *s.Plans {
				rank := slices.Index(plans, p)
				f.planUnknown = f.planUnknown || rank < 0
				highest = max(highest, rank)
			}
		}
		if s.TransitionTo != nil && *s.TransitionTo != "" {
			if rank := slices.Index(plans, *s.TransitionTo); rank < 0 {
				f.planUnknown = true
			} else {
				target[rank] = true
			}
		}
	}
	if highest >= 0 {
		f.plan = plans[highest]
	}
	for rank, p := range plans {
		if target[rank] && rank != highest {
			f.targets = append(f.targets, p)
		}
	}
	f.metadata = together(sites, func(s *schema.Settings) *schema.Setting { return s.Metadata })
	f.inApp = together(sites, func(s *schema.Settings) *schema.Setting { return s.InApp })
	return f
}

func together(sites []*schema.Settings, of func(*schema.Settings) *schema.Setting) schema.Setting {
	all := schema.On
	for _, s := range sites {
		switch v := of(s); {
		case v == nil || *v == schema.Absent:
			all = schema.Absent
		case *v != schema.On:
			return schema.Off
		}
	}
	return all
}

// decide carries out the decision table for an event of site s. It is a pure
// function and allocates nothing.
func decide(s *site, e *schema.Envelope, now time.Time, unset Unset) Decision {
	from := e.Time
	if from.After(now) {
		from = now
	}
	// Row 1, and no history to apply the other rows to.
	if s.states[0].at.After(from) {
		return drop(1, TenantUnknown)
	}
	h := s.homeAt(now)
	for i := h; ; i-- {
		if o := s.homes[i].org; o.unreadable || !o.expires.IsZero() && now.After(o.expires) {
			return drop(1, TenantStale)
		}
		if !s.homes[i].at.After(from) {
			break
		}
	}
	if e.Host != "" && !slices.Contains(s.record.Hosts, e.Host) {
		return drop(1, TenantMismatch)
	}
	// From the state at now back to the one in force at the event's time. It
	// exists: the site's own changes, and its moves, are in its organisations'
	// lines.
	o := s.homes[h].org
	i, j := inForce(o.line, now), len(s.states)-1
	var d Decision
	for first := true; ; first = false {
		f := &o.line[i]
		for s.states[j].at.After(f.at) {
			j--
		}
		then := judge(o, f, &s.states[j].set, e, now, unset)
		if then.Row == 2 || then.Row == 3 {
			if h > 0 && s.homes[h].at.After(schema.EffectiveDate) {
				then.Row = 4
			}
		}
		if first {
			d = then
		} else if d.deny(then) {
			d.Row = 21
		}
		switch {
		case !f.at.After(from), !d.Metadata && !d.InApp:
			return d
		case f.at.After(s.homes[h].at):
			i--
		default: // before this the site was another's
			until := s.homes[h].at
			h--
			o = s.homes[h].org
			i = len(o.line) - 1
			for !o.line[i].at.Before(until) {
				i--
			}
		}
	}
}

// homeAt returns the index of the organisation that the site belonged to at an
// instant, or first.
func (s *site) homeAt(at time.Time) int {
	h := len(s.homes) - 1
	for h > 0 && s.homes[h].at.After(at) {
		h--
	}
	return h
}

// inForce returns the index of the last facts not after t, or -1.
func inForce(line []facts, t time.Time) int {
	i := len(line) - 1
	for i >= 0 && line[i].at.After(t) {
		i--
	}
	return i
}

// judge applies rows 2-20 to one state: f of the organisation, set of the
// event's site.
func judge(o *org, f *facts, set *schema.Settings, e *schema.Envelope, now time.Time, unset Unset) Decision {
	switch {
	case f.exempt != "":
		return drop(f.exemptRow, f.exempt)
	case !e.Product.InScope():
		return drop(5, ProductOutOfScope)
	case early(e, now):
		return drop(6, BeforeEffectiveDate)
	case o.endedBefore:
		return drop(7, EndedBeforeEffectiveDate)
	case f.ended, deleted(set.DeletedApps, e.Product):
		return drop(8, Ended)
	case f.planUnknown:
		return drop(9, PlanUnknown)
	case f.optedOut:
		return drop(16, OptedOut)
	}
	d := base(f.plan, f.metadata, f.inApp, unset)
	for _, p := range f.targets {
		target := base(p, f.metadata, f.inApp, unset)
		d.Warn = d.Warn || target.Warn
		if d.deny(target) {
			d.Row = 9
		}
	}
	if d.InApp && set.Excluded != nil && excluded(set.Excluded, e) {
		d.InApp, d.InAppReason = false, ScopeExcluded
	}
	return d
}

// base is rows 10-15 and 17-19.
func base(plan schema.Plan, metadata, inApp schema.Setting, unset Unset) Decision {
	var d Decision
	small := plan == schema.Free || plan == schema.Standard
	switch {
	case inApp == schema.On, inApp == schema.Absent && small && unset == Vendor:
		d.InApp = true
	case inApp == schema.Absent:
		d.InAppReason = InAppUnset
	default:
		d.InAppReason = InAppOff
	}
	if metadata == schema.Off {
		d.MetadataReason, d.Warn = OptedOutMetadata, plan != schema.Enterprise
	} else {
		d.Metadata = true
	}
	switch {
	case small && inApp == schema.On:
		d.Row = 11
	case small && inApp == schema.Absent:
		d.Row = 12
	case small:
		d.Row = 10
	case plan == schema.Premium && inApp == schema.On:
		d.Row = 14
	case plan == schema.Premium:
		d.Row = 13
	case metadata == schema.Off:
		d.Row = 15
	case metadata == schema.On:
		d.Row = 18
	case unset == Vendor:
		d.Row = 17
	default:
		return drop(17, SettingsUnset)
	}
	return d
}

// early is row 6.
func early(e *schema.Envelope, now time.Time) bool {
	return e.Time.Before(schema.EffectiveDate) || now.Before(schema.EffectiveDate)
}

func deleted(apps *[]schema.Product, p schema.Product) bool {
	return apps != nil && slices.Contains(*apps, p)
}

// excluded is row 20.
func excluded(x *schema.Excluded, e *schema.Envelope) bool {
	scopes, key := x.Projects, e.Project
	if e.Product == schema.Confluence {
		scopes, key = x.Spaces, e.Space
	}
	return slices.Contains(x.Apps, e.Product) || e.Scoped && key == "" && len(scopes) > 0 || names(x.Projects, e.Project) || names(x.Spaces, e.Space)
}

func names(keys []string, key string) bool {
	for _, k := range keys {
		if key != "" && strings.EqualFold(k, key) {
			return true
		}
	}
	return false
}
