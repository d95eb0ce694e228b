package gate

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"winnow/pkg/schema"
)

func TestZeroPolicy(t *testing.T) {
	var p Policy
	e := open().event
	require.Equal(t, Decision{MetadataReason: TenantUnknown, InAppReason: TenantUnknown, Row: 1}, p.Decide(e, t0))
	require.Zero(t, p.Len())
	_, ok := p.TenantOf(e.Host)
	require.False(t, ok)
	require.NoError(t, p.Put("s1", nil), "a tombstone of an unknown key")
	put(t, &p, record("s1", schema.Premium))
	require.Equal(t, schema.Metadata|schema.InApp, p.Decide(e, open().now).Streams())
}

func TestTombstone(t *testing.T) {
	w := open()
	p := w.policy(t)
	require.NoError(t, p.Put("s1", []byte{}))
	require.Equal(t, Decision{MetadataReason: TenantUnknown, InAppReason: TenantUnknown, Row: 1}, p.Decide(w.event, w.now))
	require.Zero(t, p.Len())
	_, ok := p.TenantOf("s1.example.net")
	require.False(t, ok)

	require.ErrorIs(t, p.Put("s1", encode(t, w.tenants[0])), ErrRevision, "a tombstone does not forget the revision")
	require.Equal(t, TenantUnknown, p.Decide(w.event, w.now).InAppReason)
	w.tenants[0].Revision++
	put(t, p, w.tenants[0])
	require.True(t, p.Decide(w.event, w.now).InApp)
}

func TestRevision(t *testing.T) {
	w := open()
	w.tenants[0].Revision = 7
	p := w.policy(t)
	old := *w.tenants[0]
	old.History = []schema.Change{{At: t0, Set: schema.Settings{OptedOut: new(true)}}}
	for _, r := range []int64{1, 6, 7} {
		old.Revision = r
		require.ErrorIs(t, p.Put("s1", encode(t, &old)), ErrRevision)
		require.True(t, p.Decide(w.event, w.now).InApp, "what was known stays")
	}
	old.Revision = 8
	put(t, p, &old)
	require.False(t, p.Decide(w.event, w.now).InApp)
}

func TestUnreadable(t *testing.T) {
	const secret = "hunter2"
	good := string(encode(t, record("s1", schema.Premium)))
	for name, value := range map[string]string{
		"not JSON":         secret,
		"truncated":        good[:len(good)/2],
		"wrong type":       `{"tenant":"s1","org":"acme","region":"eu","revision":"` + secret + `"}`,
		"unknown field":    `{"tenant":"s1","org":"acme","` + secret + `":true}`,
		"bad setting":      `{"tenant":"s1","org":"acme","region":"eu","revision":2,"history":[{"at":"2026-01-01T00:00:00Z","set":{"in_app":"` + secret + `"}}]}`,
		"key of another":   `{"tenant":"` + secret + `","org":"acme","region":"eu","revision":2,"history":[{"at":"2026-01-01T00:00:00Z","set":{}}]}`,
		"data after it":    good + secret,
		"only white space": " ",
	} {
		t.Run(name, func(t *testing.T) {
			w := open()
			w.tenants = append(w.tenants, record("s2", schema.Premium), record("s3", schema.Premium))
			w.tenants[2].Org = "other"
			p := w.policy(t)
			err := p.Put("s1", []byte(value))
			require.Error(t, err)
			require.Contains(t, err.Error(), `tenant "s1"`)
			require.NotContains(t, err.Error(), secret)
			require.False(t, errors.Is(err, ErrRevision))

			stale := Decision{MetadataReason: TenantStale, InAppReason: TenantStale, Row: 1}
			require.Equal(t, stale, p.Decide(w.event, w.now))
			e := w.event
			e.Tenant, e.Host = "s2", "s2.example.net"
			require.Equal(t, TenantStale, p.Decide(e, w.now).InAppReason, "its organisation is stale with it")
			e.Tenant, e.Host = "s3", "s3.example.net"
			require.True(t, p.Decide(e, w.now).InApp, "other organisations are not")
			require.Equal(t, 3, p.Len())
			tenant, ok := p.TenantOf("s1.example.net")
			require.True(t, ok)
			require.Equal(t, "s1", tenant)

			require.ErrorIs(t, p.Put("s1", []byte(good)), ErrRevision)
			require.Equal(t, stale, p.Decide(w.event, w.now), "an old revision does not heal")
			w.tenants[0].Revision = 2
			put(t, p, w.tenants[0])
			require.True(t, p.Decide(w.event, w.now).InApp)
			e.Tenant, e.Host = "s2", "s2.example.net"
			require.True(t, p.Decide(e, w.now).InApp)
		})
	}
}

// After a restart the compacted topic holds the unreadable record only, so its
// organisation has to come from the record itself.
func TestUnreadableFromTheStart(t *testing.T) {
	w := open()
	p := w.policy(t)
	value := []byte(`{"tenant":"s2","org":"acme","region":"eu","revision":1,"history":[{"at":"2026-01-01T00:00:00Z","set":{"new_opt_out":true}}]}`)
	require.Error(t, p.Put("s2", value))
	require.Equal(t, TenantStale, p.Decide(w.event, w.now).InAppReason)
	require.NoError(t, p.Put("s2", nil))
	require.True(t, p.Decide(w.event, w.now).InApp)
}

func TestOrganisationChange(t *testing.T) {
	w := open()
	s2 := record("s2", schema.Premium)
	s2.History[0].Set.OptedOut = new(true)
	w.tenants = append(w.tenants, s2)
	p := w.policy(t)
	require.Equal(t, OptedOut, p.Decide(w.event, w.now).InAppReason)
	s2.Org, s2.Revision = "other", 2
	put(t, p, s2)
	require.True(t, p.Decide(w.event, w.now).InApp)
	s2.Org, s2.Revision = "acme", 3
	put(t, p, s2)
	require.Equal(t, OptedOut, p.Decide(w.event, w.now).InAppReason)
}

func TestLocalTenantHasNoRecord(t *testing.T) {
	for _, opts := range []Options{{}, {AssumeConsent: true}} {
		p := NewPolicy(opts)
		require.Error(t, p.Put(LocalTenant, encode(t, record(LocalTenant, schema.Premium))))
		require.Zero(t, p.Len())
		e := open().event
		e.Tenant = LocalTenant
		require.Equal(t, opts.AssumeConsent, p.Decide(e, open().now).InApp)
	}
}

func TestTenantOf(t *testing.T) {
	var p Policy
	a, b := record("s1", schema.Free), record("s2", schema.Free)
	a.Hosts = []string{"one.example.net", "both.example.net", "both.example.net"}
	b.Hosts = []string{"two.example.net", "both.example.net"}
	put(t, &p, a)
	of := func(host string) string {
		tenant, ok := p.TenantOf(host)
		require.Equal(t, ok, tenant != "")
		return tenant
	}
	require.Equal(t, "s1", of("both.example.net"), "listed twice by one tenant")
	put(t, &p, b)
	require.Equal(t, "", of("both.example.net"), "two tenants list it")
	require.Equal(t, "s1", of("one.example.net"))
	require.Equal(t, "s2", of("two.example.net"))
	require.Equal(t, "", of("three.example.net"))
	require.Equal(t, "", of(""))
	require.Error(t, p.Put("s2", []byte("?")))
	require.Equal(t, "", of("both.example.net"), "an unreadable record does not hand its host over")
	b.Hosts, b.Revision = []string{"three.example.net"}, 2
	put(t, &p, b)
	require.Equal(t, "s1", of("both.example.net"))
	require.Equal(t, "", of("two.example.net"))
	require.Equal(t, "s2", of("three.example.net"))
}

func FuzzPut(f *testing.F) {
	good := encode(f, record("s1", schema.Free))
	f.Add("s1", good)
	f.Add("s2", good)
	f.Add("s1", good[:len(good)-2])
	f.Add("local", good)
	f.Add("s1", []byte{})
	f.Add("s1", []byte(`{"tenant":"s1","org":"acme","region":"eu","revision":1,"history":[{"at":"2026-01-01T00:00:00Z","set":{"plans":null,"in_app":""}}]}`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		p := NewPolicy(Options{Unset: Vendor})
		put(t, p, record("s0", schema.Enterprise))
		before := p.Len()
		putErr := p.Put(key, value)
		tn, parseErr := schema.ParseTenant(value)
		for _, host := range []string{"", "s1.example.net"} {
			e := schema.Envelope{Tenant: key, Time: t0, Product: schema.Jira, Host: host}
			for _, now := range []time.Time{t0, t0.AddDate(1, 0, 0)} {
				d := p.Decide(e, now)
				require.Equal(t, d.Metadata, d.MetadataReason == "")
				require.Equal(t, d.InApp, d.InAppReason == "")
				if d.Streams() == 0 || key == "s0" {
					continue
				}
				require.NoError(t, putErr)
				require.NoError(t, parseErr)
				require.Equal(t, key, tn.ID)
				require.Equal(t, tn.Org, d.Org)
				require.Equal(t, tn.Region, d.Region)
			}
		}
		if key != "s0" {
			if err := p.Put(key, nil); key == LocalTenant {
				require.Error(t, err)
			} else {
				require.NoError(t, err)
			}
			require.Equal(t, before, p.Len())
		}
	})
}

// crowd is a policy of n organisations of three sites with five changes each,
// and an event that both streams of the last admit.
func crowd(t require.TestingT, n int) (*Policy, schema.Envelope) {
	p := NewPolicy(Options{})
	e := open().event
	for i := range n {
		for j := range 3 {
			tn := record(fmt.Sprintf("s%d-%d", i, j), schema.Premium)
			tn.Org = fmt.Sprintf("org%d", i)
			for k := range 4 {
				change(tn, t0.Add(time.Duration(10*k+j)*24*time.Hour), schema.Settings{InApp: new(schema.On)})
			}
			put(t, p, tn)
			e.Tenant, e.Host = tn.ID, tn.Hosts[0]
		}
	}
	return p, e
}

func TestDecideAllocatesNothing(t *testing.T) {
	p, e := crowd(t, 2)
	now := t0.AddDate(0, 0, 60)
	require.True(t, p.Decide(e, now).InApp)
	require.Zero(t, testing.AllocsPerRun(100, func() { p.Decide(e, now) }))
}

func BenchmarkDecide(b *testing.B) {
	p, e := crowd(b, 1000)
	now := t0.AddDate(0, 0, 60)
	for _, c := range []struct {
		name  string
		event time.Time
	}{
		{"current", now.Add(-time.Minute)}, // one state
		{"replay", t0.Add(time.Hour)},      // twelve states: all of the history
	} {
		b.Run(c.name, func(b *testing.B) {
			e.Time = c.event
			require.Equal(b, schema.Metadata|schema.InApp, p.Decide(e, now).Streams())
			b.ReportAllocs()
			for b.Loop() {
				p.Decide(e, now)
			}
		})
	}
}

func BenchmarkPut(b *testing.B) {
	p, _ := crowd(b, 1000)
	tn := record("s0-0", schema.Premium)
	tn.Org = "org0"
	b.ReportAllocs()
	for b.Loop() {
		tn.Revision++
		put(b, p, tn)
	}
}

// TestMoves: s1 belongs to acme, with s2, until it joins other, with s3.
func TestMoves(t *testing.T) {
	const day = 24 * time.Hour
	moved := t0.Add(10 * day)
	world := func(edit func(s1, s2, s3 *schema.Tenant)) *world {
		w := open()
		s1, s2, s3 := w.tenants[0], record("s2", schema.Premium), record("s3", schema.Premium)
		s1.Org, s3.Org = "other", "other"
		s1.History[0].Set.Org = new("acme")
		change(s1, moved, schema.Settings{Org: new("other")})
		w.tenants = append(w.tenants, s2, s3)
		edit(s1, s2, s3)
		w.now = t0.Add(20 * day)
		return w
	}
	out, in, hipaa := schema.Settings{OptedOut: new(true)}, schema.Settings{OptedOut: new(false)}, schema.Settings{HIPAA: new(true)}
	ended := schema.Settings{ContractEnded: new(true)}
	before, after := 5*day, 15*day
	for _, c := range []struct {
		name string
		edit func(s1, s2, s3 *schema.Tenant)
		site string
		at   time.Duration // of the event, after T0
		row  int
		why  schema.Reason
	}{
		{"nothing else happens", func(_, _, _ *schema.Tenant) {}, "s1", before, 14, ""},
		{"the old one opted out meanwhile", func(_, s2, _ *schema.Tenant) { change(s2, t0.Add(7*day), out) }, "s1", before, 21, OptedOut},
		{"… and in again", func(_, s2, _ *schema.Tenant) { change(s2, t0.Add(7*day), out); change(s2, t0.Add(8*day), in) }, "s1", before, 21, OptedOut},
		{"… which does not concern what comes after", func(_, s2, _ *schema.Tenant) { change(s2, t0.Add(7*day), out) }, "s1", after, 14, ""},
		{"the old one opts out when the site has gone", func(_, s2, _ *schema.Tenant) { change(s2, t0.Add(11*day), out) }, "s1", before, 14, ""},
		{"the old one's opt-out ends with the move", func(_, s2, _ *schema.Tenant) { change(s2, t0.Add(7*day), out); change(s2, moved, in) }, "s1", before, 21, OptedOut},
		{"the new one has opted out", func(_, _, s3 *schema.Tenant) { change(s3, t0.Add(11*day), out) }, "s1", before, 16, OptedOut},
		{"the new one had, until the move", func(_, _, s3 *schema.Tenant) { change(s3, t0.Add(4*day), out); change(s3, moved, in) }, "s1", before, 14, ""},
		{"the old one's contract ended before the move", func(_, s2, _ *schema.Tenant) { change(s2, t0.Add(7*day), ended) }, "s1", before, 21, Ended},
		{"… of which the site is free", func(_, s2, _ *schema.Tenant) { change(s2, t0.Add(7*day), ended) }, "s1", after, 14, ""},
		{"the old one ended before T0", func(_, s2, _ *schema.Tenant) { change(s2, t0.Add(-day), ended) }, "s1", before, 21, EndedBeforeEffectiveDate},
		{"… of which the site is free, too", func(_, s2, _ *schema.Tenant) { change(s2, t0.Add(-day), ended) }, "s1", after, 14, ""},
		{"into an organisation exempt since before T0", func(_, _, s3 *schema.Tenant) { change(s3, t0.Add(-day), hipaa) }, "s1", after, 4, ExemptHIPAA},
		{"… whose own site was always so", func(_, _, s3 *schema.Tenant) { change(s3, t0.Add(-day), hipaa) }, "s3", after, 2, ExemptHIPAA},
		{"out of an exempt one", func(_, s2, _ *schema.Tenant) { change(s2, t0.Add(-day), hipaa) }, "s1", before, 21, ExemptHIPAA},
		{"… and after", func(_, s2, _ *schema.Tenant) { change(s2, t0.Add(-day), hipaa) }, "s1", after, 14, ""},
		{"the site's own opt-out held for the old one", func(s1, _, _ *schema.Tenant) { change(s1, t0.Add(7*day), out); change(s1, t0.Add(8*day), in) }, "s2", before, 21, OptedOut},
		{"… also when it leaves opted out", func(s1, _, _ *schema.Tenant) { change(s1, t0.Add(7*day), out) }, "s2", before, 21, OptedOut},
		{"… but not longer", func(s1, _, _ *schema.Tenant) { change(s1, t0.Add(7*day), out) }, "s2", after, 14, ""},
		{"… and for the new one since the move", func(s1, _, _ *schema.Tenant) { change(s1, t0.Add(7*day), out) }, "s3", after, 16, OptedOut},
		{"what it said elsewhere is not the new one's", func(s1, _, _ *schema.Tenant) { change(s1, t0.Add(7*day), out); change(s1, moved, in) }, "s3", before, 14, ""},
		{"a plan counts from the move on", func(s1, _, s3 *schema.Tenant) {
			s1.History[0].Set.Plans = &map[schema.Product]schema.Plan{schema.Jira: schema.Enterprise}
			s3.History[0].Set.Plans = &map[schema.Product]schema.Plan{schema.Jira: schema.Standard}
			s3.History[0].Set.Metadata, s1.History[0].Set.Metadata = nil, nil
		}, "s3", after, 17, SettingsUnset},
		{"there and back", func(s1, s2, s3 *schema.Tenant) {
			s1.Org = "acme"
			change(s1, t0.Add(12*day), schema.Settings{Org: new("acme")})
			change(s3, t0.Add(11*day), out)
		}, "s1", before, 21, OptedOut},
		{"a move that is to come", func(s1, _, s3 *schema.Tenant) {
			s1.History[1].At = t0.Add(30 * day)
			change(s3, t0.Add(day), out)
		}, "s1", before, 14, ""},
	} {
		t.Run(c.name+", "+c.site, func(t *testing.T) {
			w := world(c.edit)
			w.event.Tenant, w.event.Host, w.event.Time = c.site, c.site+".example.net", t0.Add(c.at)
			d := w.decide(t)
			require.Equal(t, Decision(w.model().Decide(w.event, w.now)), d, "the reference reads it otherwise")
			require.Equal(t, c.row, d.Row)
			require.Equal(t, c.why, d.InAppReason)
			require.Equal(t, c.why == "", d.InApp)
		})
	}

	// A record that cannot be read closes each organisation that its site was
	// ever of, for the events of the time.
	w := world(func(_, _, _ *schema.Tenant) {})
	p := w.policy(t)
	require.Error(t, p.Put("s2", []byte("{")))
	w.event.Time = t0.Add(before)
	require.Equal(t, TenantStale, p.Decide(w.event, w.now).InAppReason)
	w.event.Time = t0.Add(after)
	require.True(t, p.Decide(w.event, w.now).InApp)
	require.NoError(t, p.Put("s2", nil))
	require.Error(t, p.Put("s1", []byte("{")))
	for _, site := range []string{"s1", "s3"} {
		w.event.Tenant, w.event.Host = site, ""
		require.Equal(t, TenantStale, p.Decide(w.event, w.now).InAppReason)
	}
}

// Records are put while others decide; run with -race.
func TestPutBesideDecide(t *testing.T) {
	p, e := crowd(t, 50)
	now := e.Time.Add(time.Hour)
	stop := make(chan struct{})
	var deciding sync.WaitGroup
	for range 2 {
		deciding.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					p.Decide(e, now)
					p.TenantOf(e.Host)
					p.Claimed(e.Host)
					p.Len()
				}
			}
		})
	}
	for i := range int64(200) {
		tn := record(e.Tenant, schema.Premium)
		tn.Revision = 1000 + i
		put(t, p, tn)
	}
	close(stop)
	deciding.Wait()
}
