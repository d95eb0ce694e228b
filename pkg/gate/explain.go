package gate

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"winnow/pkg/schema"
)

// Because is one thing that a decision rests on.
type Because struct {
	Tenant string    `json:"tenant"`
	Field  string    `json:"field"`          // of the tenant's record, such as history[2].set.in_app
	Value  string    `json:"value"`          // as JSON, or in words what is not there
	Since  time.Time `json:"since,omitzero"` // the change's date
}

// Cause is what one stream's part of a decision rests on: the state in force at
// an instant, which is the present unless an earlier one took the stream away.
type Cause struct {
	At      time.Time `json:"at"`
	Because []Because `json:"because"`
}

// Explanation is a Decision with what it rests on.
type Explanation struct {
	Decision
	Sentence string // the row's condition, in the words of the decision table

	MetadataCause, InAppCause Cause
}

// Sentences are the conditions of the decision table's rows.
var Sentences = map[int]string{
	1:  "tenant unknown; its record absent, expired or unreadable; payload host not the tenant's",
	2:  "customer-managed keys (CMEK), Government Cloud, Isolated Cloud, or HIPAA on any product → the whole organisation",
	3:  "government or financial services, unless explicitly marked not exempt; sector unknown",
	4:  "an exemption acquired after T0",
	5:  "product outside Jira, Confluence, Jira Service Management",
	6:  "event or processing before T0",
	7:  "contract ended before T0",
	8:  "contract ended or app deleted after T0",
	9:  "plan unknown; plan in transition → the stricter of old and new; an Enterprise opt-out stays after a downgrade until re-decided",
	10: "Free or Standard, in-app Off",
	11: "Free or Standard, in-app explicitly On",
	12: "Free or Standard, in-app setting absent",
	13: "Premium, in-app Off or absent",
	14: "Premium, in-app explicitly On",
	15: "Enterprise, metadata Off",
	16: "Enterprise, opted out entirely",
	17: "Enterprise, settings absent",
	18: "Enterprise, explicitly On",
	19: "a metadata opt-out recorded on Free, Standard or Premium: the policy offers none; collecting is never compulsory",
	20: "space, project or app excluded",
	21: "opted out, later opts in again",
}

// reasonFields are the settings that a reason rests on, by the names that they
// have in records.
var reasonFields = map[schema.Reason][]string{
	ExemptCMEK: {"cmek"}, ExemptGovernmentCloud: {"government_cloud"}, ExemptIsolatedCloud: {"isolated_cloud"}, ExemptHIPAA: {"hipaa"},
	ExemptSector: {"sector", "sector_not_exempt"}, EndedBeforeEffectiveDate: {"contract_ended"}, Ended: {"contract_ended", "deleted_apps"},
	PlanUnknown: {"plans", "transition_to"}, OptedOut: {"opted_out"}, ScopeExcluded: {"excluded"},
	InAppOff: {"in_app", "plans", "transition_to"}, InAppUnset: {"in_app", "plans", "transition_to"},
	OptedOutMetadata: {"metadata", "plans", "transition_to"}, SettingsUnset: {"metadata", "plans", "transition_to"},
}

// Explain decides as Decide does, and says why. It is not quick.
func (p *Policy) Explain(e schema.Envelope, now time.Time) Explanation {
	p.mu.RLock()
	defer p.mu.RUnlock()
	x := Explanation{Decision: p.decide(&e, now)}
	x.Sentence = Sentences[x.Row]
	x.MetadataCause, x.InAppCause = p.cause(&e, now, x.Metadata, x.MetadataReason, "metadata"), p.cause(&e, now, x.InApp, x.InAppReason, "in_app")
	return x
}

// cause is what one stream's part of a decision rests on; setting is the switch
// that a collected stream rests on.
func (p *Policy) cause(e *schema.Envelope, now time.Time, collected bool, why schema.Reason, setting string) Cause {
	c := Cause{At: now}
	say := func(tenant, field, value string, since time.Time) {
		c.Because = append(c.Because, Because{tenant, field, value, since})
	}
	s := p.sites[e.Tenant]
	switch {
	case e.Tenant == LocalTenant && p.opts.AssumeConsent:
		say(LocalTenant, "--assume-consent", "your own records", time.Time{})
		return c
	case why == ProductOutOfScope:
		say(e.Tenant, "the event's product", string(e.Product), time.Time{})
		return c
	case why == BeforeEffectiveDate:
		say(e.Tenant, "the event's time, and the present", e.Time.UTC().Format(time.RFC3339)+", "+now.UTC().Format(time.RFC3339), time.Time{})
		return c
	case s == nil || s.record == nil && !s.unreadable:
		say(e.Tenant, "record", "none", time.Time{})
		return c
	case why == TenantMismatch:
		say(s.key, "hosts", text(s.record.Hosts), time.Time{})
		return c
	case why == TenantUnknown:
		say(s.key, "history[0].at", "later than the event", s.states[0].at)
		return c
	case why == TenantStale:
		for _, name := range s.orgs {
			for _, o := range p.orgs[name].sites {
				if o.unreadable {
					say(o.key, "record", "cannot be read", time.Time{})
				} else if x := o.record.Expires; !x.IsZero() && now.After(x) {
					say(o.key, "expires", text(x), x)
				}
			}
		}
		return c
	}
	c.At = p.since(s, e, now, collected, why, setting)
	o := s.homes[s.homeAt(c.At)].org
	fields := reasonFields[why]
	if collected {
		fields = []string{setting, "plans"}
	}
	at := c.At
	if why == EndedBeforeEffectiveDate {
		at = schema.EffectiveDate
	}
	sites := slices.Clone(o.sites)
	slices.SortFunc(sites, func(a, b *site) int { return strings.Compare(a.key, b.key) })
	for _, f := range fields {
		for _, other := range sites {
			own := f == "excluded" || f == "deleted_apps" // of the event's site alone
			if own && other != s || other.states[0].at.After(at) || other.homes[other.homeAt(at)].org != o {
				continue
			}
			field, value, since := saidLast(other.record, f, at)
			silent := value == "" || value == "false" || value == `""`
			switch {
			case silent && (f == "in_app" || f == "metadata" || f == "plans" || f == "sector"):
				say(other.key, f, "nobody has said", since)
			case !silent:
				say(other.key, field, value, since)
			}
		}
	}
	return c
}

// since returns the instant of the state that decided over a stream: now, unless
// an earlier state took it away.
func (p *Policy) since(s *site, e *schema.Envelope, now time.Time, collected bool, why schema.Reason, setting string) time.Time {
	if collected {
		return now
	}
	from := e.Time
	if from.After(now) {
		from = now
	}
	instants := []time.Time{now, from}
	for _, h := range s.homes {
		for _, f := range h.org.line {
			if f.at.After(from) && !f.at.After(now) {
				instants = append(instants, f.at)
			}
		}
	}
	slices.SortFunc(instants, func(a, b time.Time) int { return b.Compare(a) })
	for _, at := range instants {
		h := s.homes[s.homeAt(at)]
		i, j := inForce(h.org.line, at), len(s.states)-1
		for s.states[j].at.After(at) {
			j--
		}
		d := judge(h.org, &h.org.line[i], &s.states[j].set, e, now, p.opts.Unset)
		if setting == "metadata" && d.MetadataReason == why || setting == "in_app" && d.InAppReason == why {
			return at
		}
	}
	return now
}

// saidLast returns the last change of a setting up to an instant, and its value
// as JSON, "" if nobody ever said.
func saidLast(tn *schema.Tenant, name string, at time.Time) (field, value string, since time.Time) {
	for i := range tn.History {
		c := &tn.History[i]
		if c.At.After(at) {
			break
		}
		set := reflect.ValueOf(&c.Set).Elem()
		for j := range set.NumField() {
			tag, _, _ := strings.Cut(set.Type().Field(j).Tag.Get("json"), ",")
			if tag == name && !set.Field(j).IsNil() {
				field, value, since = fmt.Sprintf("history[%d].set.%s", i, name), text(set.Field(j).Interface()), c.At
			}
		}
	}
	return field, value, since
}

func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return "cannot be shown"
	}
	return string(b)
}
