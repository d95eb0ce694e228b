package schema

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func someEnvelope() Envelope {
	return Envelope{
		ID: "5f0c4d1e-0000-5000-8000-000000000001", Origin: "/door/export.jsonl#L7", Type: "winnow.jira.rest.issue",
		Time: time.Date(2026, 9, 1, 10, 0, 0, 123456789, time.UTC), Tenant: "t-1", Product: Jira,
	}
}

func TestHeadersRoundTrip(t *testing.T) {
	for name, change := range map[string]func(*Envelope){
		"all":            func(*Envelope) {},
		"no tenant":      func(e *Envelope) { e.Tenant = "" },
		"no product":     func(e *Envelope) { e.Product = "" },
		"whole second":   func(e *Envelope) { e.Time = EffectiveDate },
		"first year":     func(e *Envelope) { e.Time = time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC) },
		"last instant":   func(e *Envelope) { e.Time = time.Date(2200, 12, 31, 23, 59, 59, 999999999, time.UTC) },
		"512 bytes":      func(e *Envelope) { e.Tenant = strings.Repeat("é", 256) },
		"unknown to us":  func(e *Envelope) { e.Product, e.Type = "bitbucket", "com.example.push" },
		"not only ASCII": func(e *Envelope) { e.Origin = "/Größe/日本" },
	} {
		t.Run(name, func(t *testing.T) {
			want := someEnvelope()
			change(&want)
			got, err := ParseHeaders(want.AppendHeaders(nil))
			require.NoError(t, err)
			require.Equal(t, want, got)
		})
	}
	e := someEnvelope()
	e.Time = e.Time.In(time.FixedZone("", 3600))
	e.Host, e.Project, e.Space, e.Scoped = "site.example", "ABC", "DOC", true
	got, err := ParseHeaders(e.AppendHeaders([]Header{{Key: "traceparent", Value: []byte("\xff")}}))
	require.NoError(t, err, "headers of others are not ours to judge")
	require.Equal(t, someEnvelope(), got, "what the payload says is not in the headers; times are UTC")
}

func TestParseHeadersErrors(t *testing.T) {
	type change = func([]Header, int) []Header
	setTo := func(v string) change {
		return func(hs []Header, i int) []Header { hs[i].Value = []byte(v); return hs }
	}
	remove := func(hs []Header, i int) []Header { return slices.Delete(hs, i, i+1) }
	repeat := func(hs []Header, i int) []Header { return append(hs, hs[i]) }
	for _, attribute := range []struct {
		name                  string
		mayBeAbsent, anyValue bool
	}{
		{name: "ce_specversion"}, {name: "ce_id"}, {name: "ce_source"}, {name: "ce_type"}, {name: "ce_time"},
		{name: "ce_tenant", mayBeAbsent: true}, {name: "ce_product", mayBeAbsent: true},
	} {
		for what, c := range map[string]struct {
			change change
			good   bool
		}{
			"missing":       {remove, attribute.mayBeAbsent},
			"empty":         {setTo(""), attribute.mayBeAbsent},
			"nil":           {func(hs []Header, i int) []Header { hs[i].Value = nil; return hs }, attribute.mayBeAbsent},
			"twice":         {repeat, false},
			"513 bytes":     {setTo(strings.Repeat("9", 513)), false},
			"not UTF-8":     {setTo("canary\xff"), false},
			"in capitals":   {func(hs []Header, i int) []Header { hs[i].Key = strings.ToUpper(hs[i].Key); return hs }, attribute.mayBeAbsent},
			"empty, set on": {func(hs []Header, i int) []Header { return append(hs, Header{Key: hs[i].Key}) }, false},
		} {
			t.Run(attribute.name+" "+what, func(t *testing.T) {
				e := someEnvelope()
				hs := e.AppendHeaders(nil)
				i := slices.IndexFunc(hs, func(h Header) bool { return h.Key == attribute.name })
				got, err := ParseHeaders(c.change(hs, i))
				if c.good {
					require.NoError(t, err)
					return
				}
				require.Equal(t, &Error{Reason: ReasonBadHeaders, Path: attribute.name, Offset: -1}, err)
				require.Zero(t, got)
			})
		}
	}
	for attribute, values := range map[string][]string{
		"ce_specversion": {"0.3", "1", "1.0 ", "2.0"},
		"ce_time": {"canary", "2026-09-01", "2026-09-01T10:00:00", "1788256800", "2026-13-01T00:00:00Z", "1989-12-31T23:59:59Z",
			"1990-01-01T00:30:00+01:00", "2201-01-01T00:00:00Z", "2200-12-31T23:30:00-01:00", "0001-01-01T00:00:00Z"},
	} {
		for _, v := range values {
			e := someEnvelope()
			hs := e.AppendHeaders(nil)
			hs[slices.IndexFunc(hs, func(h Header) bool { return h.Key == attribute })].Value = []byte(v)
			_, err := ParseHeaders(hs)
			require.Equal(t, &Error{Reason: ReasonBadHeaders, Path: attribute, Offset: -1}, err, v)
		}
	}
	_, err := ParseHeaders(nil)
	require.Equal(t, ReasonBadHeaders, ReasonOf(err))
}

func TestErrorWords(t *testing.T) {
	require.EqualError(t, &Error{Reason: ReasonEmptyValue, Offset: -1}, "empty_value")
	require.EqualError(t, &Error{Reason: ReasonMalformedJSON, Offset: 0}, "malformed_json (byte 0)")
	require.EqualError(t, &Error{Reason: ReasonWrongType, Path: "issue.fields.summary", Offset: 12}, "wrong_type at issue.fields.summary (byte 12)")
	require.Equal(t, ReasonTooDeep, ReasonOf(fmt.Errorf("wrapped: %w", &Error{Reason: ReasonTooDeep})))
	require.Equal(t, ReasonInternal, ReasonOf(errors.New("of no known kind")))
	require.Equal(t, "events/3@17", Source{"events", 3, 17}.String())
}

func TestEffectiveDate(t *testing.T) {
	for _, hours := range []int{-12, 14} { // the last time zone to enter a day, and the first
		local := EffectiveDate.In(time.FixedZone("", hours*3600))
		require.False(t, local.Before(time.Date(2026, 8, 17, 0, 0, 0, 0, local.Location())))
	}
	before := EffectiveDate.Add(-1).In(time.FixedZone("", -12*3600))
	require.Equal(t, 16, before.Day())
}

func FuzzParseHeaders(f *testing.F) {
	f.Add("1.0", "id", "/door", "winnow.jira.rest.issue", "2026-09-01T10:00:00Z", "t", "jira", "ce_id", "")
	f.Add("1.0", "id", "/door", "t", "2200-12-31T23:59:59.5-12:00", "t", "jira", "other", "x")
	f.Add("1.0", "id", "/door", "t", "1990-01-01T00:00:00,5Z", "", "", "ce_tenant", "x")
	f.Fuzz(func(t *testing.T, spec, id, origin, typ, at, tenant, product, key, value string) {
		hs := []Header{
			{headerSpecVersion, []byte(spec)}, {headerID, []byte(id)}, {headerSource, []byte(origin)}, {headerType, []byte(typ)},
			{headerTime, []byte(at)}, {headerTenant, []byte(tenant)}, {headerProduct, []byte(product)}, {key, []byte(value)},
		}
		e, err := ParseHeaders(hs)
		if err != nil {
			var bad *Error
			require.ErrorAs(t, err, &bad)
			require.Equal(t, ReasonBadHeaders, bad.Reason)
			require.True(t, slices.Contains([]string{headerSpecVersion, headerID, headerSource, headerType, headerTime, headerTenant, headerProduct}, bad.Path))
			require.Zero(t, e)
			return
		}
		again, err := ParseHeaders(e.AppendHeaders(nil))
		require.NoError(t, err)
		require.Equal(t, e, again)
		require.Equal(t, time.UTC, e.Time.Location())
	})
}

// Whoever chooses tenants and ids can not make two pairs of them one.
func TestEventKey(t *testing.T) {
	key := func(tenant, id string) [16]byte { e := Envelope{Tenant: tenant, ID: id}; return e.Key() }
	long := strings.Repeat("x", 255)
	for name, pairs := range map[string][2][2]string{
		"a byte further on":         {{"ab", "c"}, {"a", "bc"}},
		"all in one":                {{"abc", ""}, {"", "abc"}},
		"the other way round":       {{"a", "b"}, {"b", "a"}},
		"a NUL between":             {{"a\x00b", "c"}, {"a", "b\x00c"}},
		"a bar between":             {{"a|b", "c"}, {"a", "b|c"}},
		"a length inside":           {{"a\x01b", ""}, {"a", "b\x00"}},
		"lengths modulo 256":        {{"a\x00" + long, ""}, {"a", long + "\x00"}},
		"lengths modulo 128":        {{"a\x00" + long[:127], ""}, {"a", long[:127] + "\x00"}},
		"the kind of the key":       {{"", "event"}, {"event", ""}},
		"one id at another's place": {{"t-1", "5f0c"}, {"t-2", "5f0c"}},
	} {
		require.NotEqual(t, key(pairs[0][0], pairs[0][1]), key(pairs[1][0], pairs[1][1]), name)
	}
	e := someEnvelope()
	want := e.Key()
	e.Origin, e.Type, e.Time, e.Product, e.Host = "/other", "x", EffectiveDate, Confluence, "h"
	require.Equal(t, want, e.Key(), "an event is itself by its tenant and id alone")
	// Data sets hold keys, so they must be the same in every version: the first
	// half of the SHA-256 of "\x05event\x03t-1\x24" and the id.
	sum := sha256.Sum256([]byte("\x05event\x03t-1\x24" + e.ID))
	require.Equal(t, sum[:16], want[:])

	rapid.Check(t, func(t *rapid.T) {
		words := rapid.StringMatching(`[ab\x00-\x03]{0,5}`)
		a, b := [2]string{words.Draw(t, "tenant"), words.Draw(t, "id")}, [2]string{words.Draw(t, "other tenant"), words.Draw(t, "other id")}
		require.Equal(t, a == b, key(a[0], a[1]) == key(b[0], b[1]))
	})
}
