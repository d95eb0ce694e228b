package gate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"winnow/pkg/schema"
)

// ErrRevision is a record whose revision is not above the one already known of
// its key. Topics may hold a record twice, so it need not be a fault.
var ErrRevision = errors.New("revision is not above the known one")

// Policy holds the records of all tenants. The zero Policy is ready to use and
// has the zero Options. Its methods may be called by several goroutines.
type Policy struct {
	opts Options

	mu    sync.RWMutex
	sites map[string]*site
	orgs  map[string]*org
	hosts map[string][]*site // the sites that list a host
}

// site is what is known of one key of the tenants topic.
type site struct {
	key        string
	revision   int64 // the highest accepted, kept over a tombstone
	unreadable bool
	record     *schema.Tenant // the last accepted, also while unreadable; nil after a tombstone
	states     []state        // of record, never empty beside one
	homes      []home         // of record, likewise; the first begins with states
	orgs       []string       // the organisations that the site speaks for, or may
}

// home is an organisation that a site belongs to, until the next one's.
type home struct {
	at  time.Time
	org *org
}

// org is an organisation: its sites, also those that have left, and what they
// say together.
type org struct {
	name        string
	sites       []*site
	line        []facts
	endedBefore bool      // row 7
	unreadable  bool      // some site's record is unreadable
	expires     time.Time // the earliest expiry of any record of a site that has not left; zero: never
}

// NewPolicy returns a Policy that knows no tenant.
func NewPolicy(opts Options) *Policy {
	return &Policy{opts: opts}
}

// Put takes one record of the tenants topic, in the topic's order. It keeps no
// reference to value.
//
// An empty value is a tombstone: the tenant is unknown afterwards. A record
// that cannot be read, or that names another tenant than its key, is an error
// and makes the key, and the organisations that it is known or claims to belong
// to, tenant_stale until a readable record or a tombstone follows. A revision
// that is not above the highest accepted of the key is refused with
// ErrRevision, also after a tombstone; what was known stays. LocalTenant is
// refused. Errors hold the key and a field or position, no other value.
func (p *Policy) Put(key string, value []byte) error {
	if key == LocalTenant {
		return fmt.Errorf("tenant %q: the key is reserved for records replayed without a tenant", key)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.sites[key]
	if len(value) == 0 {
		if s != nil {
			p.list(s, nil)
			s.unreadable = false
			p.join(s)
		}
		return nil
	}
	if s == nil {
		if p.sites == nil {
			p.sites, p.orgs, p.hosts = map[string]*site{}, map[string]*org{}, map[string][]*site{}
		}
		s = &site{key: key}
		p.sites[key] = s
	}
	t, err := schema.ParseTenant(value)
	if err == nil && t.ID != key {
		err = errors.New("tenant record: field tenant is not the message key")
	}
	if err != nil {
		s.unreadable = true
		// Often only one field is the trouble, such as a setting of a newer
		// version. Without the claimed organisations a restart would forget
		// which sites the record speaks for, and open them.
		orgs := append(slices.Clone(s.orgs), claimed(value)...)
		p.join(s, orgs...)
		return fmt.Errorf("tenant %q: %w", key, err)
	}
	if t.Revision <= s.revision {
		return fmt.Errorf("tenant %q: field revision: %w", key, ErrRevision)
	}
	p.list(s, t)
	s.revision, s.unreadable = t.Revision, false
	p.join(s, t.Orgs()...)
	return nil
}

// claimed returns the organisations that a record names which cannot be read,
// as far as it is JSON.
func claimed(value []byte) (orgs []string) {
	d := json.NewDecoder(bytes.NewReader(value))
	named := false // the last token was the key org
	for {
		t, err := d.Token()
		if err != nil {
			return orgs
		}
		s, ok := t.(string)
		if ok && named && s != "" {
			orgs = append(orgs, s)
		}
		named = ok && !named && s == "org"
	}
}

// list makes t, or nothing if nil, the record of s and its hosts findable.
func (p *Policy) list(s *site, t *schema.Tenant) {
	if s.record != nil {
		for _, h := range s.record.Hosts {
			rest := slices.DeleteFunc(p.hosts[h], func(o *site) bool { return o == s })
			if len(rest) == 0 {
				delete(p.hosts, h)
			} else {
				p.hosts[h] = rest
			}
		}
	}
	s.record, s.states, s.homes = t, nil, nil
	if t == nil {
		return
	}
	s.states = fold(t.History)
	for _, h := range t.Hosts {
		if !slices.Contains(p.hosts[h], s) {
			p.hosts[h] = append(p.hosts[h], s)
		}
	}
}

// join makes s speak for the named organisations and no others, and brings
// those it joins, stays in or leaves up to date.
func (p *Policy) join(s *site, orgs ...string) {
	left := s.orgs
	for _, name := range left {
		o := p.orgs[name]
		o.sites = slices.DeleteFunc(o.sites, func(x *site) bool { return x == s })
	}
	slices.Sort(orgs)
	s.orgs = slices.Compact(orgs)
	for _, name := range s.orgs {
		o := p.orgs[name]
		if o == nil {
			o = &org{name: name}
			p.orgs[name] = o
		}
		o.sites = append(o.sites, s)
	}
	if s.record != nil && !s.unreadable {
		s.homes = s.homes[:0]
		for _, st := range s.states {
			o := p.orgs[s.record.Org]
			if st.set.Org != nil {
				o = p.orgs[*st.set.Org]
			}
			if n := len(s.homes); n == 0 || s.homes[n-1].org != o {
				s.homes = append(s.homes, home{st.at, o})
			}
		}
	}
	for _, name := range s.orgs {
		p.orgs[name].update()
	}
	for _, name := range left {
		if o := p.orgs[name]; len(o.sites) == 0 {
			delete(p.orgs, name)
		} else {
			o.update()
		}
	}
}

// update works out what the sites of o say together.
func (o *org) update() {
	o.unreadable, o.expires, o.endedBefore = false, time.Time{}, false
	var stays []stay
	for _, s := range o.sites {
		if s.unreadable {
			o.unreadable = true
			continue
		}
		for i, h := range s.homes {
			switch {
			case h.org != o:
			case i+1 < len(s.homes):
				stays = append(stays, stayOf(s.states, h.at, s.homes[i+1].at))
			default:
				stays = append(stays, stayOf(s.states, h.at, time.Time{}))
				if x := s.record.Expires; !x.IsZero() && (o.expires.IsZero() || x.Before(o.expires)) {
					o.expires = x
				}
			}
		}
	}
	o.line = timeline(stays)
	if i := inForce(o.line, schema.EffectiveDate); i >= 0 {
		o.endedBefore = o.line[i].ended
	}
}

// Decide applies the decision table to an event at the instant now, the
// processing time. It allocates nothing and does not fail: what cannot be
// decided is dropped.
func (p *Policy) Decide(e schema.Envelope, now time.Time) Decision {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.decide(&e, now)
}

func (p *Policy) decide(e *schema.Envelope, now time.Time) Decision {
	if e.Tenant == LocalTenant && p.opts.AssumeConsent {
		d := Decision{Metadata: true, InApp: true}
		switch {
		case !e.Product.InScope():
			d = drop(5, ProductOutOfScope)
		case early(e, now):
			d = drop(6, BeforeEffectiveDate)
		}
		d.Org, d.Region = LocalTenant, LocalTenant
		return d
	}
	s := p.sites[e.Tenant]
	switch {
	case s == nil:
		return drop(1, TenantUnknown)
	case s.unreadable:
		return drop(1, TenantStale)
	case s.record == nil:
		return drop(1, TenantUnknown)
	}
	d := decide(s, e, now, p.opts.Unset)
	d.Org, d.Region = s.record.Org, s.record.Region
	return d
}

// TenantOf returns the only tenant that lists the host, which must be in lower
// case. If none does, or several do, ok is false. A tenant whose record became
// unreadable keeps its hosts, so that its events are still told from others'.
func (p *Policy) TenantOf(host string) (tenant string, ok bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if s := p.hosts[host]; len(s) == 1 {
		return s[0].key, true
	}
	return "", false
}

// Claimed reports whether any tenant lists the host, which must be in lower
// case.
func (p *Policy) Claimed(host string) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return len(p.hosts[host]) > 0
}

// Len returns the number of tenants that have a record, readable or not.
func (p *Policy) Len() int {
	p.mu.RLock()
	defer p.mu.RUnlock()
	n := 0
	for _, s := range p.sites {
		if s.record != nil || s.unreadable {
			n++
		}
	}
	return n
}
