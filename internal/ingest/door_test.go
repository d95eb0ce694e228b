package ingest

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"winnow/internal/kafkaio"
	"winnow/pkg/gate"
	"winnow/pkg/schema"
)

var now = time.Date(2026, 11, 1, 8, 0, 0, 0, time.UTC)

const (
	comment = `{"id":"5","self":"https://acme.example/rest/api/2/issue/1/comment/5","author":{"displayName":"Ann Lee"},"body":"canary"}`
	sprint  = `{"timestamp":1788256800123,"webhookEvent":"sprint_closed","sprint":{"id":3,"self":"https://acme.example/x","name":"canary"}}`
)

// wrapped is a delivery in structured mode.
func wrapped(attributes, data string) string {
	return `{"specversion":"1.0","id":"delivery-1","source":"/hooks"` + attributes + `,"data":` + data + `}`
}

// policy knows one tenant of acme.example and two of shared.example.
func policy(t testing.TB) *gate.Policy {
	t.Helper()
	p := gate.NewPolicy(gate.Options{})
	for id, hosts := range map[string]string{"t-acme": `"acme.example"`, "t-one": `"one.example","shared.example"`, "t-two": `"shared.example"`} {
		require.NoError(t, p.Put(id, []byte(`{"tenant":"`+id+`","org":"o","hosts":[`+hosts+`],"region":"eu","revision":1,"history":[{"at":"2025-01-01T00:00:00Z","set":{}}]}`)))
	}
	return p
}

// made is what a door made of one record.
type made struct {
	at  Place
	m   kafkaio.Message
	e   schema.Envelope // of the message's headers
	err error
}

func unwrap(t testing.TB, d *Door, at Place, raw string) []made {
	t.Helper()
	var out []made
	d.Unwrap(at, []byte(raw), func(at Place, m kafkaio.Message, err error) {
		x := made{at: at, m: m, err: err}
		if err == nil {
			x.e, err = schema.ParseHeaders(m.Headers)
			require.NoError(t, err, "a door must not produce what a worker can't read")
		} else {
			require.NotContains(t, err.Error(), "canary")
			require.Zero(t, m)
		}
		out = append(out, x)
	})
	return out
}

func one(t testing.TB, d *Door, at Place, raw string) made {
	t.Helper()
	out := unwrap(t, d, at, raw)
	require.Len(t, out, 1)
	return out[0]
}

func TestDoorTenant(t *testing.T) {
	host := func(h string) string { return strings.ReplaceAll(comment, "acme.example", h) }
	two := `{"timestamp":1788256800123,"webhookEvent":"comment_created","comment":{"id":"1","self":"https://acme.example/1","body":"canary"},"issue":{"self":"https://one.example/1"}}`
	for name, c := range map[string]struct {
		raw           string
		noPolicy      bool
		assumeConsent bool
		want          string // empty: tenant_unknown
	}{
		"by attribute":                         {raw: wrapped(`,"tenant":"t-named"`, host("elsewhere.example")), want: "t-named"},
		"attribute before host":                {raw: wrapped(`,"tenant":"t-named"`, comment), want: "t-named"},
		"attribute, consent assumed":           {raw: wrapped(`,"tenant":"t-named"`, comment), assumeConsent: true, want: "t-named"},
		"by host":                              {raw: comment, want: "t-acme"},
		"by host, wrapped":                     {raw: wrapped("", comment), want: "t-acme"},
		"by host, consent assumed":             {raw: comment, assumeConsent: true, want: "t-acme"},
		"by host in capitals":                  {raw: host("ACME.Example"), want: "t-acme"},
		"host of nobody":                       {raw: host("elsewhere.example")},
		"host of two tenants":                  {raw: host("shared.example")},
		"links of two hosts":                   {raw: two},
		"no host":                              {raw: `{"author":{},"body":"canary"}`},
		"no policy":                            {raw: comment, noPolicy: true},
		"empty attribute, host of nobody":      {raw: wrapped(`,"tenant":""`, host("elsewhere.example"))},
		"consent assumed, host of nobody":      {raw: host("elsewhere.example"), assumeConsent: true, want: gate.LocalTenant},
		"consent assumed, no host":             {raw: `{"author":{},"body":"canary"}`, assumeConsent: true, want: gate.LocalTenant},
		"consent assumed, host of two tenants": {raw: host("shared.example"), assumeConsent: true},
		"consent assumed, links of two hosts":  {raw: two, assumeConsent: true},
		"no tenants, links of two hosts":       {raw: two, noPolicy: true, assumeConsent: true, want: gate.LocalTenant},
		"consent assumed without a policy":     {raw: comment, noPolicy: true, assumeConsent: true, want: gate.LocalTenant},
	} {
		t.Run(name, func(t *testing.T) {
			d := &Door{Policy: policy(t), AssumeConsent: c.assumeConsent, Now: now, Name: "replay"}
			if c.noPolicy {
				d.Policy = nil
			}
			got := one(t, d, Place{File: "a.json"}, c.raw)
			if c.want == "" {
				require.Equal(t, gate.TenantUnknown, schema.ReasonOf(got.err))
				return
			}
			require.NoError(t, got.err)
			require.Equal(t, c.want, got.e.Tenant)
		})
	}
}

func TestDoorEventTime(t *testing.T) {
	hook, earlier := time.Date(2026, 9, 1, 10, 0, 0, 123e6, time.UTC), time.Date(2026, 8, 20, 0, 0, 0, 0, time.UTC)
	const at = `,"time":"2026-08-20T02:00:00+02:00"`
	for name, c := range map[string]struct {
		raw              string
		ofRecord, ofPlay time.Time
	}{
		"webhook":          {sprint, hook, now},
		"webhook, wrapped": {wrapped(at, sprint), earlier, now},
		"REST":             {comment, now, now},
		"REST, wrapped":    {wrapped(at, comment), earlier, now},
	} {
		t.Run(name, func(t *testing.T) {
			for mode, want := range map[EventTime]time.Time{OfRecord: c.ofRecord, OfReplay: c.ofPlay} {
				got := one(t, &Door{AssumeConsent: true, EventTime: mode, Now: now, Name: "replay"}, Place{File: "a.json"}, c.raw)
				require.NoError(t, got.err)
				require.Equal(t, want, got.e.Time, mode)
				require.Equal(t, now, got.m.Time, "the broker's time is that of producing")
			}
		})
	}
}

func TestEventID(t *testing.T) {
	d := &Door{AssumeConsent: true, Now: now, Name: "replay"}
	id := func(at Place, raw string) string {
		got := one(t, d, at, raw)
		require.NoError(t, got.err)
		u, err := uuid.Parse(got.e.ID)
		require.NoError(t, err)
		require.Equal(t, uuid.Version(5), u.Version())
		require.Equal(t, uuid.RFC4122, u.Variant())
		return got.e.ID
	}
	here := Place{File: "export.jsonl", Line: 7}
	// Data sets remember ids, so they must be the same in every version.
	require.Equal(t, "72ecac97-9d99-5b6b-877e-0fddeaa14198", id(here, wrapped("", comment)))
	require.Equal(t, "90417e31-8885-5eac-8cbd-38551144a26b", id(here, comment))

	again := Door{Policy: policy(t), EventTime: OfReplay, Now: now.Add(time.Hour), Name: "webhook"}
	require.Equal(t, id(here, comment), one(t, &again, here, comment).e.ID, "when and by which door it is read does not count")
	require.Equal(t, id(here, wrapped("", comment)), id(Place{File: "other.json"}, wrapped(`,"tenant":"t"`, sprint)), "a delivery is itself wherever it stands")

	require.NotEqual(t, id(here, comment), id(here, strings.Replace(comment, "{", `{"x":1,`, 1)), "tomorrow's export has the same file and lines")

	distinct := map[string]bool{}
	for _, at := range []Place{here, {File: "export.jsonl", Line: 8}, {File: "export.jsonl"}, {File: "b/export.jsonl", Line: 7}} {
		distinct[id(at, comment)] = true
	}
	for _, x := range unwrap(t, d, here, `[`+comment+`,`+comment+`,`+comment+`]`)[1:] {
		distinct[x.e.ID] = true
	}
	distinct[id(here, wrapped("", comment))] = true
	distinct[id(here, strings.Replace(wrapped("", comment), "/hooks", "/other", 1))] = true
	distinct[id(here, strings.Replace(wrapped("", comment), "delivery-1", "delivery-2", 1))] = true
	require.Len(t, distinct, 9, "two records have one id")
}

func TestDoorMessage(t *testing.T) {
	d := &Door{Policy: policy(t), Now: now, Name: "replay"}
	got := one(t, d, Place{File: "in box/ex:port#1.jsonl", Line: 7}, wrapped("", comment))
	require.NoError(t, got.err)
	require.Equal(t, comment, string(got.m.Value), "the wrapper stays outside")
	require.Equal(t, "t-acme|jira/5", string(got.m.Key))
	require.Equal(t, "winnow.jira.rest.comment", got.e.Type)
	require.Equal(t, schema.Jira, got.e.Product)
	require.Equal(t, "replay/in%20box/ex:port%231.jsonl#L7", got.e.Origin)

	// What is of one entity shares a key, and so a partition.
	update := strings.Replace(sprint, "sprint_closed", "sprint_updated", 1)
	require.Equal(t, one(t, d, Place{File: "a"}, sprint).m.Key, one(t, d, Place{File: "b"}, update).m.Key)
	// What names none has a key of its own.
	nameless := one(t, d, Place{File: "a"}, strings.Replace(comment, `"id":"5",`, "", 1))
	require.Equal(t, "t-acme|jira/"+nameless.e.ID, string(nameless.m.Key))
	// Nothing but this: neither host nor text.
	for _, h := range got.m.Headers {
		require.NotContains(t, string(h.Value), "canary")
		require.NotContains(t, string(h.Value), "acme.example")
	}

	long := one(t, d, Place{File: strings.Repeat("ü", 250) + ".jsonl", Line: 1}, comment)
	require.NoError(t, long.err)
	require.Equal(t, "replay", long.e.Origin)
}

func TestDoorPlaces(t *testing.T) {
	d := &Door{AssumeConsent: true, Now: now, Name: "replay"}
	out := unwrap(t, d, Place{File: "a.jsonl", Line: 3}, `[`+comment+`,{"canary":1},null,`+sprint+`]`)
	var places, reasons, origins []string
	for _, x := range out {
		places, origins = append(places, x.at.String()), append(origins, x.e.Origin)
		reason := ""
		if x.err != nil {
			reason = string(schema.ReasonOf(x.err))
		}
		reasons = append(reasons, reason)
	}
	require.Equal(t, []string{"a.jsonl:3", "a.jsonl:3#1", "a.jsonl:3#2", "a.jsonl:3#3"}, places)
	require.Equal(t, []string{"", "wrapper_unknown", "empty_value", ""}, reasons)
	require.Equal(t, []string{"replay/a.jsonl#L3", "", "", "replay/a.jsonl#L3.3"}, origins)
	require.Equal(t, "a.json", Place{File: "a.json"}.String())
	require.Equal(t, "a.json#2", Place{File: "a.json", Index: 2}.String())
}

func TestDoorErrorsHoldNoContent(t *testing.T) {
	d := &Door{Policy: policy(t), Now: now, Name: "replay"}
	long := strings.Repeat("canary", 100)
	for raw, path := range map[string]string{
		wrapped(`,"tenant":"`+long+`"`, comment):                 "ce_tenant",
		wrapped(`,"product":"`+long+`","type":"com.x"`, comment): "ce_product",
		wrapped(`,"product":"trello","type":"`+long+`"`, `{}`):   "ce_type",
	} {
		d := &Door{AssumeConsent: true, Now: now, Name: "replay"}
		require.Equal(t, &schema.Error{Reason: schema.ReasonBadHeaders, Path: path, Offset: -1}, one(t, d, Place{File: "a.json"}, raw).err)
	}
	for _, raw := range []string{"", "canary", `{"canary":"canary"}`, `"canary"`, "\"canary\xff\"", wrapped("", `"canary"`), wrapped(`,"time":"canary"`, comment),
		strings.Repeat(`{"canary":`, 300) + "1" + strings.Repeat("}", 300), `{"id":"canary","fields":{"summary":"canary"}}`, `{"webhookEvent":"canary"}`,
		strings.Replace(sprint, "1788256800123", `"canary"`, 1), `{"id":"5","id":"6","author":{},"body":"canary"}`} {
		require.Error(t, one(t, d, Place{File: "a.json"}, raw).err, raw) // one looks for the canary in the error
	}
}

// Two pairs of source and id that would read the same once joined by NUL: a
// CloudEvents string holds no control character, so neither is an event.
func TestDoorControlCharacters(t *testing.T) {
	d := &Door{AssumeConsent: true, Now: now, Name: "replay"}
	for _, c := range [][3]string{{`a\u0000b`, `c`, "source"}, {`a`, `b\u0000c`, "id"}} {
		raw := `{"specversion":"1.0","source":"` + c[0] + `","id":"` + c[1] + `","data":` + comment + `}`
		got := one(t, d, Place{File: "a.json"}, raw)
		require.Equal(t, schema.ReasonBadHeaders, schema.ReasonOf(got.err))
		require.ErrorContains(t, got.err, c[2])
	}
}

// The two events that tell of one comment meet on one partition, where the
// writer can see that they are one change.
func TestDoorKeyOfAComment(t *testing.T) {
	d := &Door{Policy: policy(t), Now: now, Name: "replay"}
	key := func(payload string) string {
		got := one(t, d, Place{File: "a.json"}, payload)
		require.NoError(t, got.err)
		return string(got.m.Key)
	}
	hook := func(name, comment, issue string) string {
		return `{"timestamp":1789380672345,"webhookEvent":"` + name + `","comment":` + comment + `,"issue":` + issue + `}`
	}
	const (
		self  = `"self":"https://acme.example/rest/api/2/issue/10001"`
		said  = `{"id":"5","self":"https://acme.example/rest/api/2/issue/10001/comment/5","body":"canary","updated":"2026-09-14T10:11:12.345+0000"}`
		small = `{"id":"10001",` + self + `,"key":"ABC-7","fields":{"summary":"canary","project":{"key":"ABC","projectTypeKey":"software"}}}`
		large = `{"id":"10001",` + self + `,"key":"ABC-7","fields":{"summary":"canary","description":"canary","project":{"key":"ABC","projectTypeKey":"software"},"comment":{"comments":[` + said + `]}}}`
	)
	const want = "t-acme|jira/10001"
	for _, name := range []string{"comment_created", "comment_updated", "comment_deleted"} {
		require.Equal(t, want, key(hook(name, said, small)))
	}
	for _, name := range []string{"jira:issue_created", "jira:issue_updated"} {
		require.Equal(t, want, key(hook(name, said, large)))
	}
	require.Equal(t, want, key(wrapped("", hook("comment_created", said, small))))
	desk := func(issue string) string { return strings.Replace(issue, "software", "service_desk", 1) }
	require.Equal(t, "t-acme|jira_service_management/10001", key(hook("comment_created", said, desk(small))))
	require.Equal(t, "t-acme|jira_service_management/10001", key(hook("jira:issue_updated", said, desk(large))))
	// A comment whose issue is not named keeps at least its own events in order.
	require.Equal(t, "t-acme|jira/5", key(hook("comment_updated", said, `{"key":"ABC-7"}`)))
	require.Equal(t, "t-acme|jira/5", key(strings.Replace(hook("comment_deleted", said, `null`), `,"issue":null`, "", 1)))
}
