package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Tenant is one site's record on the tenants topic, keyed by ID. A compacted
// topic keeps only the last record of a key, so each record carries its whole
// dated history; what holds at an instant is the fold of the changes up to it
// (see At). The unit of consent is the organisation: all records that name the
// same Org are decided together (package gate).
type Tenant struct {
	ID       string    `json:"tenant"`           // the site (cloudId); equals the message key
	Org      string    `json:"org"`              // the organisation, the unit of consent: the one that History ends with
	Hosts    []string  `json:"hosts"`            // hosts that the site's payloads may name, lower case
	Region   string    `json:"region"`           // data residency: lower-case letters, digits and '-'
	Revision int64     `json:"revision"`         // rises with every record of this key
	Expires  time.Time `json:"expires,omitzero"` // after this instant the record is stale; zero: never
	History  []Change  `json:"history"`          // ascending by At, never empty

	// Fields says what the site's custom fields are. A field that is not listed
	// is none that anything is measured by.
	Fields []CustomField `json:"fields,omitempty"`
}

// Change is one dated change of an organisation's settings. Settings that the
// change does not name stay as they were.
type Change struct {
	At       time.Time `json:"at"`                // when it takes effect
	Received time.Time `json:"received,omitzero"` // when it reached us; the 30- and 90-day clocks start here
	Set      Settings  `json:"set"`
}

// Plan is a subscription plan, from the least to the most that an
// organisation may decide for itself.
type Plan string

// The plans of the policy. Any other word is an unknown plan (row 9).
const (
	Free       Plan = "free"
	Standard   Plan = "standard"
	Premium    Plan = "premium"
	Enterprise Plan = "enterprise"
)

// Setting is a consent switch. The zero value is absent: nobody decided.
type Setting string

// The values of a Setting. Absent can be written to withdraw a decision.
const (
	Absent Setting = ""
	On     Setting = "on"
	Off    Setting = "off"
)

// Sector words that POLICY row 3 names; any other non-empty word is a sector
// without an exemption of its own, and the empty word is an unknown one.
const (
	SectorGovernment = "government"
	SectorFinancial  = "financial_services"
)

// Settings are the facts that the decision table asks for. In a Change a nil
// field is one that did not change; in the State that At returns, nil means
// that nobody has ever said.
type Settings struct {
	Org             *string           `json:"org,omitempty"`              // the organisation that the site belongs to; a history that names none means Tenant.Org throughout
	ContractEnded   *bool             `json:"contract_ended,omitempty"`   // rows 7, 8
	DeletedApps     *[]Product        `json:"deleted_apps,omitempty"`     // row 8: products removed from the site
	Plans           *map[Product]Plan `json:"plans,omitempty"`            // active plan by product
	TransitionTo    *Plan             `json:"transition_to,omitempty"`    // row 9: the plan being changed to; "" when settled
	CMEK            *bool             `json:"cmek,omitempty"`             // row 2
	GovernmentCloud *bool             `json:"government_cloud,omitempty"` // row 2
	IsolatedCloud   *bool             `json:"isolated_cloud,omitempty"`   // row 2
	HIPAA           *bool             `json:"hipaa,omitempty"`            // row 2
	Sector          *string           `json:"sector,omitempty"`           // row 3; nil or "" is unknown
	SectorNotExempt *bool             `json:"sector_not_exempt,omitempty"`
	OptedOut        *bool             `json:"opted_out,omitempty"` // row 16: of everything
	Metadata        *Setting          `json:"metadata,omitempty"`
	InApp           *Setting          `json:"in_app,omitempty"`
	Excluded        *Excluded         `json:"excluded,omitempty"` // row 20
}

// Excluded lists scopes whose content the organisation keeps out of the in-app
// stream: project keys, space keys, and apps, which is the vendor's word for
// products.
type Excluded struct {
	Projects []string  `json:"projects,omitempty"`
	Spaces   []string  `json:"spaces,omitempty"`
	Apps     []Product `json:"apps,omitempty"`
}

// At returns the settings in force at instant t: the fold of every change
// whose At is not after it. ok is false when the history begins later.
func (tn *Tenant) At(t time.Time) (s Settings, ok bool) {
	for i := range tn.History {
		if tn.History[i].At.After(t) {
			break
		}
		s.apply(&tn.History[i].Set)
		ok = true
	}
	return s, ok
}

// Orgs returns the organisations that the site has belonged to, by its history.
func (tn *Tenant) Orgs() []string {
	orgs := []string{tn.Org}
	for i := range tn.History {
		if o := tn.History[i].Set.Org; o != nil && !slices.Contains(orgs, *o) {
			orgs = append(orgs, *o)
		}
	}
	return orgs
}

func (s *Settings) apply(c *Settings) {
	set(&s.Org, c.Org)
	set(&s.ContractEnded, c.ContractEnded)
	set(&s.DeletedApps, c.DeletedApps)
	set(&s.Plans, c.Plans)
	set(&s.TransitionTo, c.TransitionTo)
	set(&s.CMEK, c.CMEK)
	set(&s.GovernmentCloud, c.GovernmentCloud)
	set(&s.IsolatedCloud, c.IsolatedCloud)
	set(&s.HIPAA, c.HIPAA)
	set(&s.Sector, c.Sector)
	set(&s.SectorNotExempt, c.SectorNotExempt)
	set(&s.OptedOut, c.OptedOut)
	set(&s.Metadata, c.Metadata)
	set(&s.InApp, c.InApp)
	set(&s.Excluded, c.Excluded)
}

func set[T any](dst **T, v *T) {
	if v != nil {
		*dst = v
	}
}

// ParseTenant reads and validates one tenant record. Unknown fields are an
// error: a setting that this version does not know must not be ignored. The
// error names the field, never a value.
func ParseTenant(b []byte) (*Tenant, error) {
	// encoding/json takes the last of two equal keys and any case of a key; on
	// consent neither may pass.
	var doc Doc
	if err := doc.Parse(b); err != nil {
		return nil, fmt.Errorf("tenant record: %w", err)
	}
	if !plainKeys(doc.Root()) {
		return nil, errors.New("tenant record: an object names a key twice, or not in lower case")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var t Tenant
	if err := d.Decode(&t); err != nil {
		return nil, tenantField(err)
	}
	if err := t.validate(); err != nil {
		return nil, fmt.Errorf("tenant record: %w", err)
	}
	return &t, nil
}

// plainKeys reports whether every key of every object is lower case and there
// once.
func plainKeys(root Value) bool {
	ok := true
	root.all(func(v Value) {
		if v.Kind() != Object {
			return
		}
		seen := map[string]bool{}
		for c, more := v.First(); more; c, more = c.Next(v) {
			k := string(c.Key())
			ok = ok && !seen[k] && k == strings.ToLower(strings.ToUpper(k)) // encoding/json also takes ſ for s
			seen[k] = true
		}
	})
	return ok
}

// tenantField keeps encoding/json's position and field but not the value that
// some of its messages quote.
func tenantField(err error) error {
	var ute *json.UnmarshalTypeError
	switch {
	case errors.As(err, &ute):
		return fmt.Errorf("tenant record: field %q holds a JSON %s, byte %d", ute.Field, strings.Fields(ute.Value + " value")[0], ute.Offset)
	case strings.HasPrefix(err.Error(), "json: unknown field "):
		return errors.New("tenant record: a field that this version does not know")
	}
	return errors.New("tenant record: not readable as a tenant")
}

func (t *Tenant) validate() error {
	switch {
	case t.ID == "":
		return errors.New("field tenant is empty")
	case strings.ContainsAny(t.ID, "|\x00"):
		return errors.New("field tenant holds '|' or NUL, which the message key reserves")
	case t.Org == "":
		return errors.New("field org is empty")
	case !ValidRegion(t.Region):
		return errors.New("field region must be lower-case letters, digits and '-'")
	case t.Revision < 1:
		return errors.New("field revision must be at least 1")
	case len(t.History) == 0:
		return errors.New("field history is empty")
	}
	for _, h := range t.Hosts {
		if h == "" || h != strings.ToLower(h) || strings.ContainsAny(h, "/:@ ") {
			return errors.New("field hosts must hold bare lower-case host names")
		}
	}
	org := ""
	for i := range t.History {
		c := &t.History[i]
		if c.At.IsZero() {
			return fmt.Errorf("field history[%d].at is missing", i)
		}
		if i > 0 && c.At.Before(t.History[i-1].At) {
			return fmt.Errorf("field history[%d].at lies before the one above it", i)
		}
		switch named := c.Set.Org; {
		case named == nil:
		case *named == "":
			return fmt.Errorf("field history[%d].set.org is empty", i)
		case i > 0 && org == "":
			return fmt.Errorf("field history[%d].set.org names an organisation, history[0] must then name the first one", i)
		default:
			org = *named
		}
		var products []Product
		if c.Set.Plans != nil {
			products = slices.AppendSeq(products, maps.Keys(*c.Set.Plans))
		}
		if c.Set.DeletedApps != nil {
			products = append(products, *c.Set.DeletedApps...)
		}
		if c.Set.Excluded != nil {
			products = append(products, c.Set.Excluded.Apps...)
		}
		for _, p := range products {
			// A product that is spelled otherwise would match nothing.
			if p == "" || strings.Trim(string(p), "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
				return fmt.Errorf("field history[%d].set: a product is lower-case letters, digits and '_'", i)
			}
		}
		for _, s := range []*Setting{c.Set.Metadata, c.Set.InApp} {
			if s != nil && *s != On && *s != Off && *s != Absent {
				return fmt.Errorf("field history[%d].set: a setting is \"on\", \"off\" or \"\"", i)
			}
		}
	}
	if org != "" && org != t.Org {
		return errors.New("field org is not the organisation that the history ends with")
	}
	return validateFields(t.Fields)
}

// Extends returns an error, which names the field, unless t may replace old as
// the record of a tenant: its revision is higher, and its history keeps every
// change of the old one. More changes may come anywhere; only what was once
// said stays said, for consent in the past is decided from the last record
// alone. A history that did not name organisations may come to name them,
// beginning with the old one.
func (t *Tenant) Extends(old *Tenant) error {
	if t.ID != old.ID {
		return errors.New("field tenant is another's")
	}
	if t.Revision <= old.Revision {
		return fmt.Errorf("field revision is %d, the record before has %d", t.Revision, old.Revision)
	}
	if first := t.History[0].Set.Org; old.Org != t.Org && first == nil {
		return errors.New("field org changes, but no change in field history says when: name it in history[].set.org, and the old one in the first")
	} else if first != nil && old.History[0].Set.Org == nil && *first != old.Org {
		return errors.New("field history[0].set.org is not the organisation of the record before")
	}
	next := 0
	for i := range old.History {
		for next < len(t.History) && !keeps(&t.History[next], &old.History[i], old.History[0].Set.Org == nil) {
			next++
		}
		if next == len(t.History) {
			return fmt.Errorf("field history lacks the change history[%d] of the record before, or has it changed or out of order", i)
		}
		next++
	}
	return nil
}

// keeps reports whether c says what old said. If old's history names no
// organisation, c's may.
func keeps(c, old *Change, unnamed bool) bool {
	if !c.At.Equal(old.At) || !c.Received.Equal(old.Received) {
		return false
	}
	a, b := c.Set, old.Set
	if unnamed {
		a.Org = nil
	}
	return reflect.DeepEqual(a, b)
}

// ValidRegion reports whether s can be a region: 1 to 32 lower-case letters,
// digits and '-'. It names a directory.
func ValidRegion(s string) bool {
	if s == "" || len(s) > 32 {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
