package schema

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func ptr[T any](v T) *T { return &v }

func instant(s string) time.Time {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		panic(err)
	}
	return t
}

func someTenant() Tenant {
	return Tenant{
		ID: "t-1", Org: "org-1", Hosts: []string{"acme.example"}, Region: "eu-west1", Revision: 3, Expires: instant("2027-01-01T00:00:00Z"),
		History: []Change{
			{At: instant("2025-01-01T00:00:00Z"), Received: instant("2025-01-01T00:02:00Z"), Set: Settings{
				Org: ptr("org-0"), ContractEnded: ptr(false), DeletedApps: &[]Product{Confluence}, Plans: &map[Product]Plan{Jira: Premium, Confluence: "starter"},
				TransitionTo: ptr(Enterprise), CMEK: ptr(false), GovernmentCloud: ptr(true), IsolatedCloud: ptr(false), HIPAA: ptr(true),
				Sector: ptr(SectorFinancial), SectorNotExempt: ptr(true), OptedOut: ptr(false), Metadata: ptr(On), InApp: ptr(Off),
				Excluded: &Excluded{Projects: []string{"ABC"}, Spaces: []string{"DOC"}, Apps: []Product{Confluence}},
			}},
			{At: instant("2026-01-01T00:00:00Z"), Set: Settings{Org: ptr("org-1"), InApp: ptr(Absent)}},
		},
		Fields: []CustomField{{ID: "customfield_10016", Custom: "com.pyxis.greenhopper.jira:jsw-story-points", Name: "Story Points"}},
	}
}

func TestTenantRoundTrip(t *testing.T) {
	want := someTenant()
	text := mustJSON(want)
	got, err := ParseTenant([]byte(" " + text + "\n"))
	require.NoError(t, err)
	require.Equal(t, &want, got)
	require.Contains(t, text, `"in_app":""`, "a decision that was withdrawn must be written")

	small := `{"tenant":"t","org":"o","hosts":[],"region":"eu","revision":1,"history":[{"at":"2025-01-01T00:00:00Z","set":{}}]}`
	got, err = ParseTenant([]byte(small))
	require.NoError(t, err)
	require.Equal(t, small, mustJSON(got))
}

func TestTenantFixtures(t *testing.T) {
	for _, l := range fixtureLines(t, "tenants.jsonl") {
		got, err := ParseTenant(l.text)
		require.NoError(t, err, l.at)
		require.JSONEq(t, string(l.text), mustJSON(got), l.at)
	}
}

func TestTenantAt(t *testing.T) {
	tn := Tenant{History: []Change{
		{At: instant("2025-01-01T00:00:00Z"), Set: Settings{InApp: ptr(On), HIPAA: ptr(false), Plans: &map[Product]Plan{Jira: Free, Confluence: Free}}},
		{At: instant("2025-06-01T00:00:00Z"), Set: Settings{InApp: ptr(Off)}},
		{At: instant("2025-06-01T00:00:00Z"), Set: Settings{HIPAA: ptr(true)}},
		{At: instant("2026-01-01T00:00:00Z"), Set: Settings{InApp: ptr(Absent), Plans: &map[Product]Plan{Jira: Standard}}},
	}}
	for name, c := range map[string]struct {
		at    string
		ok    bool
		inApp Setting
		hipaa bool
		plans map[Product]Plan
	}{
		"before the history":     {at: "2024-12-31T23:59:59Z"},
		"at the first":           {"2025-01-01T00:00:00Z", true, On, false, map[Product]Plan{Jira: Free, Confluence: Free}},
		"just before the second": {"2025-05-31T23:59:59Z", true, On, false, map[Product]Plan{Jira: Free, Confluence: Free}},
		"two at one instant":     {"2025-06-01T00:00:00Z", true, Off, true, map[Product]Plan{Jira: Free, Confluence: Free}},
		"withdrawn; plans whole": {"2026-01-01T00:00:00Z", true, Absent, true, map[Product]Plan{Jira: Standard}},
		"long after":             {"2030-01-01T00:00:00Z", true, Absent, true, map[Product]Plan{Jira: Standard}},
	} {
		t.Run(name, func(t *testing.T) {
			s, ok := tn.At(instant(c.at))
			require.Equal(t, c.ok, ok)
			if !ok {
				require.Zero(t, s)
				return
			}
			require.Equal(t, c.inApp, *s.InApp)
			require.Equal(t, c.hipaa, *s.HIPAA)
			require.Equal(t, c.plans, *s.Plans)
			require.Nil(t, s.OptedOut, "nobody has said")
		})
	}
	full := someTenant()
	s, ok := full.At(instant("2025-06-01T00:00:00Z"))
	require.True(t, ok)
	require.Equal(t, full.History[0].Set, s, "a field is left out of the fold")
	require.Equal(t, Off, *full.History[0].Set.InApp, "At wrote to the history")
}

func TestParseTenantErrors(t *testing.T) {
	// edit is a valid record with one change; canary stands where a value may be quoted.
	edit := func(f func(*Tenant)) string {
		tn := someTenant()
		f(&tn)
		return mustJSON(tn)
	}
	replace := func(old, new string) string {
		s := mustJSON(someTenant())
		require.Contains(t, s, old)
		return strings.Replace(s, old, new, 1)
	}
	for name, c := range map[string]struct{ text, want string }{
		"empty":                       {"", "empty_value"},
		"cut off":                     {`{"tenant":"canary`, "malformed_json (byte 17)"},
		"no JSON":                     {`canary`, "malformed_json (byte 0)"},
		"not an object":               {`["canary"]`, "holds a JSON array"},
		"string":                      {`"canary"`, "holds a JSON string"},
		"two records":                 {mustJSON(someTenant()) + `{"tenant":"canary"}`, "malformed_json"},
		"text after it":               {mustJSON(someTenant()) + `canary`, "malformed_json"},
		"unknown field":               {replace(`"org":`, `"canary":1,"org":`), "a field that this version does not know"},
		"unknown setting":             {replace(`"cmek":`, `"canary":true,"cmek":`), "a field that this version does not know"},
		"field twice":                 {replace(`"org":`, `"org":"canary","org":`), "an object names a key twice"},
		"setting twice":               {replace(`"in_app":""`, `"in_app":"off","in_app":"on"`), "an object names a key twice"},
		"setting twice, another case": {replace(`"in_app":""`, `"in_app":"off","In_App":"on"`), "an object names a key twice"},
		"setting twice, folded":       {replace(`"plans":`, `"plan\u017f":{},"plans":`), "an object names a key twice"},
		"plan twice":                  {replace(`"confluence":"starter"`, `"confluence":"canary","confluence":"free"`), "an object names a key twice"},
		"key in capitals":             {replace(`"in_app":""`, `"In_App":""`), "or not in lower case"},
		"key that folds":              {replace(`"plans":`, `"plan\u017f":`), "or not in lower case"},
		"product in capitals":         {replace(`"confluence":"starter"`, `"Canary":"free"`), "or not in lower case"},
		"product with a space":        {replace(`"confluence":"starter"`, `"canary x":"free"`), "field history[0].set: a product is"},
		"deleted product in capitals": {replace(`["confluence"]`, `["Canary"]`), "field history[0].set: a product is"},
		"deleted product is empty":    {replace(`["confluence"]`, `[""]`), "field history[0].set: a product is"},
		"not UTF-8":                   {replace(`"starter"`, "\"canary\xff\""), "invalid_utf8"},
		"number for a tenant":         {replace(`"t-1"`, `4711`), `field "tenant" holds a JSON number`},
		"string for a revision":       {replace(`"revision":3`, `"revision":"canary"`), `field "revision" holds a JSON string`},
		"fraction for a revision":     {replace(`"revision":3`, `"revision":4711.5`), `field "revision" holds a JSON number`},
		"string for a switch":         {replace(`"hipaa":true`, `"hipaa":"canary"`), `field "history.set.hipaa" holds a JSON string`},
		"number for a plan":           {replace(`"starter"`, `4711`), "holds a JSON number"},
		"list for a setting":          {replace(`"in_app":""`, `"in_app":["canary"]`), `field "history.set.in_app" holds a JSON array`},
		"no time":                     {replace(`"at":"2025-01-01T00:00:00Z"`, `"at":"canary"`), "not readable as a tenant"},
		"date for a time":             {replace(`"expires":"2027-01-01T00:00:00Z"`, `"expires":"2027-01-01"`), "not readable as a tenant"},
		"no tenant":                   {edit(func(t *Tenant) { t.ID = "" }), "field tenant is empty"},
		"bar in the tenant":           {edit(func(t *Tenant) { t.ID = "canary|x" }), "field tenant holds '|' or NUL"},
		"NUL in the tenant":           {edit(func(t *Tenant) { t.ID = "canary\x00x" }), "field tenant holds '|' or NUL"},
		"no organisation":             {edit(func(t *Tenant) { t.Org = "" }), "field org is empty"},
		"no region":                   {edit(func(t *Tenant) { t.Region = "" }), "field region"},
		"region in capitals":          {edit(func(t *Tenant) { t.Region = "CANARY" }), "field region"},
		"region that is a path":       {edit(func(t *Tenant) { t.Region = "../canary" }), "field region"},
		"long region":                 {edit(func(t *Tenant) { t.Region = strings.Repeat("canary", 6) }), "field region"},
		"revision 0":                  {edit(func(t *Tenant) { t.Revision = 0 }), "field revision must be at least 1"},
		"no history":                  {edit(func(t *Tenant) { t.History = nil }), "field history is empty"},
		"empty history":               {edit(func(t *Tenant) { t.History = []Change{} }), "field history is empty"},
		"change without a time":       {edit(func(t *Tenant) { t.History[1].At = time.Time{} }), "field history[1].at is missing"},
		"history out of order":        {edit(func(t *Tenant) { t.History[1].At = instant("2024-01-01T00:00:00Z") }), "field history[1].at lies before the one above it"},
		"in-app is a word":            {edit(func(t *Tenant) { t.History[1].Set.InApp = ptr(Setting("canary")) }), "field history[1].set: a setting is"},
		"metadata is a word":          {edit(func(t *Tenant) { t.History[0].Set.Metadata = ptr(Setting("ON")) }), "field history[0].set: a setting is"},
		"empty host":                  {edit(func(t *Tenant) { t.Hosts = append(t.Hosts, "") }), "field hosts"},
		"host in capitals":            {edit(func(t *Tenant) { t.Hosts = []string{"Canary.example"} }), "field hosts"},
		"host with a port":            {edit(func(t *Tenant) { t.Hosts = []string{"canary.example:443"} }), "field hosts"},
		"host that is a URL":          {edit(func(t *Tenant) { t.Hosts = []string{"https://canary.example"} }), "field hosts"},
		"host with a user":            {edit(func(t *Tenant) { t.Hosts = []string{"canary@example"} }), "field hosts"},
		"host with a space":           {edit(func(t *Tenant) { t.Hosts = []string{"two hosts"} }), "field hosts"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseTenant([]byte(c.text))
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, "tenant record: ")
			require.Nil(t, got)
			for _, v := range []string{"canary", "4711", "acme", "org-1", "t-1"} {
				require.NotContains(t, strings.ToLower(err.Error()), v)
			}
		})
	}
}

func FuzzParseTenant(f *testing.F) {
	f.Add([]byte(mustJSON(someTenant())))
	for _, l := range fixtureLines(f, "tenants.jsonl")[:5] {
		f.Add(l.text)
	}
	f.Add([]byte(`{"tenant":{"canary":1},"org":"canary"}`))
	f.Add([]byte(`{"history":[{"set":{"plans":{"canary":1}}}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		tn, err := ParseTenant(text)
		if err != nil {
			require.Nil(t, tn)
			require.NotContains(t, strings.ToLower(err.Error()), "canary")
			return
		}
		_, ok := tn.At(tn.History[0].At)
		require.True(t, ok)
		out, err := json.Marshal(tn)
		require.NoError(t, err)
		again, err := ParseTenant(out)
		require.NoError(t, err)
		require.JSONEq(t, string(out), mustJSON(again))
	})
}

func TestExtends(t *testing.T) {
	day := func(n int) time.Time { return instant("2026-01-01T00:00:00Z").AddDate(0, 0, n) }
	record := func(org string, revision int64, history ...Change) *Tenant {
		return &Tenant{ID: "t", Org: org, Region: "eu", Revision: revision, History: history}
	}
	begins := Change{At: day(0), Set: Settings{InApp: ptr(On)}}
	out := Change{At: day(10), Received: day(11), Set: Settings{OptedOut: ptr(true)}}
	in := Change{At: day(20), Set: Settings{OptedOut: ptr(false)}}
	named := func(c Change, org string) Change { c.Set.Org = &org; return c }
	for name, c := range map[string]struct {
		old, next *Tenant
		fault     string // "" if it may
	}{
		"a later change":                    {record("a", 1, begins), record("a", 2, begins, out), ""},
		"an earlier change":                 {record("a", 1, begins, in), record("a", 7, begins, out, in), ""},
		"a change before the first":         {record("a", 1, out), record("a", 2, begins, out), ""},
		"nothing new":                       {record("a", 1, begins), record("a", 2, begins), ""},
		"the same change twice":             {record("a", 1, begins, out, out), record("a", 2, begins, out, out), ""},
		"the same revision":                 {record("a", 2, begins), record("a", 2, begins, out), "revision is 2, the record before has 2"},
		"a change is gone":                  {record("a", 1, begins, out), record("a", 2, begins, in), "history[1]"},
		"one of two equal changes is gone":  {record("a", 1, begins, out, out), record("a", 2, begins, out), "history[2]"},
		"a change has another date":         {record("a", 1, begins, out), record("a", 2, begins, Change{At: day(9), Received: day(11), Set: out.Set}), "history[1]"},
		"a change was received otherwise":   {record("a", 1, begins, out), record("a", 2, begins, Change{At: day(10), Received: day(1), Set: out.Set}), "history[1]"},
		"a change says something else":      {record("a", 1, begins, out), record("a", 2, begins, Change{At: day(10), Received: day(11), Set: in.Set}), "history[1]"},
		"two of one instant change places":  {record("a", 1, begins, Change{At: day(5), Set: out.Set}, Change{At: day(5), Set: in.Set}), record("a", 2, begins, Change{At: day(5), Set: in.Set}, Change{At: day(5), Set: out.Set}), "history[2]"},
		"another organisation, not dated":   {record("a", 1, begins), record("b", 2, begins, out), "field org changes"},
		"a move":                            {record("a", 1, begins, out), record("b", 2, named(begins, "a"), out, named(in, "b")), ""},
		"a move from somewhere else":        {record("a", 1, begins, out), record("b", 2, named(begins, "c"), out, named(in, "b")), "history[0].set.org"},
		"a second move":                     {record("b", 1, named(begins, "a"), named(out, "b")), record("c", 2, named(begins, "a"), named(out, "b"), named(in, "c")), ""},
		"a move that is no longer named":    {record("b", 1, named(begins, "a"), named(out, "b")), record("b", 2, begins, out), "history[0]"},
		"a move that is said to be another": {record("b", 1, named(begins, "a"), named(out, "b")), record("c", 2, named(begins, "a"), named(out, "c")), "history[1]"},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, c.old.validate())
			require.NoError(t, c.next.validate())
			err := c.next.Extends(c.old)
			if c.fault == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, c.fault)
			}
		})
	}
	other := record("a", 9, begins)
	other.ID = "u"
	require.ErrorContains(t, other.Extends(record("a", 1, begins)), "field tenant")
}

func TestOrgs(t *testing.T) {
	tn := someTenant()
	require.ElementsMatch(t, []string{"org-0", "org-1"}, tn.Orgs())
	tn.History[0].Set.Org, tn.History[1].Set.Org = nil, nil
	require.Equal(t, []string{"org-1"}, tn.Orgs())
}

func TestFieldKinds(t *testing.T) {
	for _, c := range []struct {
		custom, name string
		want         FieldKind
	}{
		{"com.pyxis.greenhopper.jira:jsw-story-points", "Puntos de historia", FieldStoryPoints},
		{"com.atlassian.jira.plugin.system.customfieldtypes:float", "Story Points", FieldStoryPoints},
		{"com.atlassian.jira.plugin.system.customfieldtypes:float", "story point Estimate", FieldStoryPoints},
		{"com.atlassian.jira.plugin.system.customfieldtypes:float", "Price", FieldUnknown},
		{"com.atlassian.jira.plugin.system.customfieldtypes:textfield", "Story Points", FieldUnknown},
		{"com.pyxis.greenhopper.jira:gh-sprint", "Sprint", FieldSprint},
		{"com.atlassian.servicedesk:sd-sla-field", "Time to resolution", FieldSLA},
		{"com.atlassian.jira.plugin.system.customfieldtypes:userpicker", "Reviewer", FieldUnknown},
	} {
		tn := Tenant{Fields: []CustomField{{ID: "customfield_1", Custom: "x:y"}, {ID: "customfield_2", Custom: c.custom, Name: c.name}}}
		require.Equal(t, c.want, tn.Field("customfield_2"), c)
		require.Equal(t, FieldUnknown, tn.Field("customfield_1"))
		require.Equal(t, FieldUnknown, tn.Field("customfield_3"))
	}
}
