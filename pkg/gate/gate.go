// Package gate decides what an event may feed. It is the decision table of
// the policy (its rows are the cases of table_test.go) as one pure function of the records on the tenants topic, an
// event's envelope and the clock; it reads nothing else and logs nothing.
//
// It fails closed: the zero Decision drops both streams, the zero Policy knows
// no tenant, and whatever the table cannot decide is dropped with a Reason.
//
// The organisation is the unit of consent, so all records that name one Org
// are decided together. The table is silent on some points; they are read thus:
//
//   - An exemption, an opt-out or an ended contract at any site holds for every
//     site of the organisation. Row 3 is asked of each site by itself: what
//     one site says of its sector does not speak for a site that is silent.
//   - A setting is Off if any site says Off, On if every site says On, and
//     absent otherwise.
//   - The plan is the highest active plan of any site. A site that names no
//     plan, or a plan with an unknown word, makes it unknown (row 9).
//   - A site takes part from the start of its own history. An event older than
//     the history of its own site is tenant_unknown: nobody can say what held.
//   - Deleted apps, excluded scopes and hosts are the event's site's own. A
//     record that is expired or unreadable at any site makes the whole
//     organisation tenant_stale.
//   - A site speaks for an organisation, against it and for it, while its
//     history says that it belongs to it. So what an organisation recorded at
//     one of its sites goes on to hold for the events of that time, also when
//     the site, or the event's own, has moved since. A site that leaves by a
//     tombstone no longer speaks at all: the topic is the truth, and after
//     compaction nothing else is left of such a record.
//   - An event is asked of each organisation that its site belonged to from the
//     event's time to now, for the time that it did. What a site recorded
//     itself goes with it when it moves.
//   - A stream is collected only if every state in force at any moment from the
//     event's time to now allows it. The current state names the reason if it
//     denies; else the latest state that denied does, and the row is 21.
//   - A change dated after now is not in force. An event dated after now is
//     judged by the state at now.
//   - Row 4 is an exemption that has held without a break only since after T0,
//     or that of an organisation which the site joined after T0. Where several hold, the first in the table's order names the reason, and
//     its own beginning tells row 2 or 3 from row 4.
//   - Row 7 asks for the state at T0, so an end dated exactly T0 counts, and a
//     contract that ended and was renewed before T0 does not.
//   - Row 9: while a plan is changing, the old plan's row stands, and each
//     target plan may take a stream away, with its own reason and Row 9.
//   - Row 16 holds on every plan, so an opt-out outlives a downgrade.
//   - Row 17 is Enterprise with the metadata setting absent: both streams are
//     dropped whatever the in-app setting says. Under the vendor's reading
//     metadata is collected and in-app follows its setting.
//   - Rows 12, 13 and 17 keep their number and reason under the vendor's
//     reading: it changes their outcome, not what was recorded.
//   - Row 20 compares keys without regard to case; an app is a product, as in
//     the vendor's words. Before the payload has been read no project and no
//     space is excluded, so content is admitted only by a second look. A payload
//     that names no project, at a site that excludes one, may be of it: its
//     content is dropped. Likewise for spaces.
package gate

import (
	"errors"
	"fmt"

	"winnow/pkg/schema"
)

// The gate's reasons, with the rows of the decision table that give them.
const (
	TenantUnknown            schema.Reason = "tenant_unknown"              // 1
	TenantStale              schema.Reason = "tenant_stale"                // 1
	TenantMismatch           schema.Reason = "tenant_mismatch"             // 1
	ExemptCMEK               schema.Reason = "exempt_cmek"                 // 2, 4
	ExemptGovernmentCloud    schema.Reason = "exempt_government_cloud"     // 2, 4
	ExemptIsolatedCloud      schema.Reason = "exempt_isolated_cloud"       // 2, 4
	ExemptHIPAA              schema.Reason = "exempt_hipaa"                // 2, 4
	ExemptSector             schema.Reason = "exempt_sector"               // 3, 4
	ProductOutOfScope        schema.Reason = "product_out_of_scope"        // 5
	BeforeEffectiveDate      schema.Reason = "before_effective_date"       // 6
	EndedBeforeEffectiveDate schema.Reason = "ended_before_effective_date" // 7
	Ended                    schema.Reason = "ended"                       // 8
	PlanUnknown              schema.Reason = "plan_unknown"                // 9
	InAppOff                 schema.Reason = "in_app_off"                  // 10, 13, 15, 18
	InAppUnset               schema.Reason = "in_app_unset"                // 12, 13, 15, 18
	OptedOutMetadata         schema.Reason = "opted_out_metadata"          // 15, 19
	OptedOut                 schema.Reason = "opted_out"                   // 16
	SettingsUnset            schema.Reason = "settings_unset"              // 17
	ScopeExcluded            schema.Reason = "scope_excluded"              // 20
)

// Decision says which streams an event may feed and, of each stream that it
// may not, why. The zero Decision drops both.
type Decision struct {
	Metadata, InApp bool

	// A reason is empty exactly when its stream is collected.
	MetadataReason, InAppReason schema.Reason

	// Row of the decision table that decided: the first veto, else the base
	// row, which rows 19 and 20 leave in place; 9 or 21 if a plan in transition
	// or an earlier state took a stream away; 0 under assumed consent.
	Row int

	Warn bool // row 19: a metadata opt-out on a plan that offers none; tell the operator

	// Of the tenant's record; empty if none is readable.
	Org, Region string
}

// Streams returns the streams that the event may feed.
func (d Decision) Streams() schema.Streams {
	var s schema.Streams
	if d.Metadata {
		s |= schema.Metadata
	}
	if d.InApp {
		s |= schema.InApp
	}
	return s
}

// Withheld returns the reasons of the streams that the event may not feed.
func (d Decision) Withheld() schema.Withheld {
	return schema.Withheld{Metadata: d.MetadataReason, InApp: d.InAppReason, Undecided: d.Streams() == 0 && undecided(d.InAppReason)}
}

// undecided reports whether a reason is want of something that an operator can
// mend: a tenant's record, or a plan in it.
func undecided(why schema.Reason) bool {
	switch why {
	case TenantUnknown, TenantStale, TenantMismatch, PlanUnknown:
		return true
	}
	return false
}

func drop(row int, why schema.Reason) Decision {
	return Decision{MetadataReason: why, InAppReason: why, Row: row}
}

// deny takes from d every stream that by denies, for by's reason, and reports
// whether there was one to take.
func (d *Decision) deny(by Decision) (took bool) {
	if d.Metadata && !by.Metadata {
		d.Metadata, d.MetadataReason, took = false, by.MetadataReason, true
	}
	if d.InApp && !by.InApp {
		d.InApp, d.InAppReason, took = false, by.InAppReason, true
	}
	return took
}

// Unset is how a setting that nobody has decided is read (rows 12, 13, 17).
type Unset uint8

// The readings of an absent setting.
const (
	Closed Unset = iota // absent is not consent
	Vendor              // in-app On for Free and Standard, Off for Premium and Enterprise; metadata On
)

// String returns the word that ParseUnset reads.
func (u Unset) String() string {
	switch u {
	case Closed:
		return "closed"
	case Vendor:
		return "vendor"
	}
	return fmt.Sprintf("Unset(%d)", uint8(u))
}

// ParseUnset reads "closed" or "vendor". On an error it returns Closed.
func ParseUnset(s string) (Unset, error) {
	switch s {
	case "closed":
		return Closed, nil
	case "vendor":
		return Vendor, nil
	}
	return Closed, errors.New(`reading of unset settings: want "closed" or "vendor"`)
}

// LocalTenant is the tenant of one's own records, replayed without a tenants
// topic. No record may be keyed by it.
const LocalTenant = "local"

// UnmarshalText reads what String writes, for flags.
func (u *Unset) UnmarshalText(b []byte) (err error) {
	*u, err = ParseUnset(string(b))
	return err
}

// Options are an operator's choices. The zero value opens nothing.
type Options struct {
	Unset Unset

	// AssumeConsent decides LocalTenant without a record: rows 5 and 6 apply
	// and no other, with Org and Region "local".
	AssumeConsent bool
}
