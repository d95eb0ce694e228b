package schema

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// declared lists the people of a payload, their identities separated by '|'.
func declared(e *Event) []string {
	out := []string{}
	for _, p := range e.People(nil) {
		out = append(out, strings.ReplaceAll(string(p), "\x00", "|"))
	}
	return out
}

func TestPeople(t *testing.T) {
	const issue, page = "jira.rest.issue", "confluence.rest.page"
	longest := strings.Repeat("é", maxIdentity/2)
	for name, c := range map[string]struct {
		typ, payload string
		want         []string
	}{
		"Cloud user":   {issue, `{"fields":{"reporter":{"accountId":"712020:aa-bb","displayName":"Ann Lee","emailAddress":"ann@acme.example","avatarUrls":{"48x48":"x"}}}}`, []string{"712020:aa-bb|Ann Lee|ann@acme.example"}},
		"old Cloud id": {issue, `{"fields":{"reporter":{"accountId":"5b10ac8d82e05b22cc7d4ef5","displayName":"Ann Lee"}}}`, []string{"5b10ac8d82e05b22cc7d4ef5|Ann Lee"}},
		"Server user":  {issue, `{"fields":{"assignee":{"name":"alee","key":"JIRAUSER10100","displayName":"Ann Lee","emailAddress":"ann@acme.example","self":"https://acme.example/rest/api/2/user?username=alee"}}}`, []string{"~alee|~JIRAUSER10100|Ann Lee|ann@acme.example"}},
		"JSM customer": {"jira.rest.request", `{"reporter":{"accountId":"qm:1:2","name":"ann","key":"ann","emailAddress":"ann@acme.example","displayName":"Ann Lee"},"participants":{"values":[{"displayName":"Bo Kim"}]}}`,
			[]string{"qm:1:2|~ann|ann@acme.example|Ann Lee", "Bo Kim"}},
		"Confluence user":       {page, `{"history":{"createdBy":{"type":"known","accountId":"1:a","email":"ann@acme.example","publicName":"Ann L","displayName":"Ann Lee"}}}`, []string{"1:a|ann@acme.example|Ann L|Ann Lee"}},
		"Confluence Server":     {page, `{"version":{"by":{"type":"known","username":"alee","userKey":"8a8181","displayName":"Ann Lee"}}}`, []string{"~alee|~8a8181|Ann Lee"}},
		"in an unknown field":   {issue, `{"fields":{"customfield_1":[{"value":[{"displayName":"Ann Lee"}]}]}}`, []string{"Ann Lee"}},
		"at the root":           {issue, `{"displayName":"Ann Lee"}`, []string{"Ann Lee"}},
		"escaped key and name":  {issue, `{"fields":{"reporter":{"d\u0069splayName":"Ann\u0020Lee"}}}`, []string{"Ann Lee"}},
		"both of a doubled key": {issue, `{"fields":{"reporter":{"displayName":"Ann Lee","displayName":"Bo Kim"}}}`, []string{"Ann Lee|Bo Kim"}},
		"no user":               {issue, `{"fields":{"project":{"name":"Ann Lee","key":"ABC"},"priority":{"name":"High"}}}`, nil},
		"displayName no string": {issue, `{"fields":{"x":{"displayName":{"en":"Ann Lee"},"name":"form"}}}`, nil},
		"person without a name": {issue, `{"fields":{"reporter":{"accountId":"1:a","displayName":null}}}`, []string{"1:a"}},
		"nothing said of them":  {issue, `{"fields":{"reporter":{"displayName":null},"creator":{"displayName":"  "},"assignee":{"displayName":"!!!"}}}`, nil},

		"account id fields":  {"confluence.webhook.page", `{"userAccountId":"1:a","page":{"creatorAccountId":"1:b","lastModifierAccountId":"1:c","creatorName":"alee","creatorKey":"8a81"}}`, []string{"1:a", "1:b", "1:c", "~alee", "~8a81"}},
		"version 2 fields":   {page, `{"authorId":"1:a","ownerId":"1:b","lastOwnerId":"1:a","version":{"authorId":"1:c"}}`, []string{"1:a", "1:b", "1:c"}},
		"field joins user":   {page, `{"authorId":"1:a","x":{"accountId":"1:a","displayName":"Ann Lee"}}`, []string{"1:a|Ann Lee"}},
		"field that is null": {page, `{"authorId":null,"ownerId":7,"userKey":{}}`, nil},

		"changelog, Cloud":         {issue, `{"changelog":{"items":[{"field":"assignee","from":"1:a","fromString":"Ann Lee","to":"1:b","toString":"Bo Kim","tmpFromAccountId":"1:a","tmpToAccountId":"1:b"},{"field":"assignee","from":null,"fromString":"Cy Day","tmpFromAccountId":"1:c","to":null,"toString":"Di Fox","tmpToAccountId":"1:d"}]}}`, []string{"Ann Lee|1:a", "Bo Kim|1:b", "Cy Day|1:c", "Di Fox|1:d"}},
		"changelog, Server":        {issue, `{"changelog":{"items":[{"field":"reporter","from":"alee","fromString":"Ann Lee","to":null,"toString":null}]}}`, []string{"Ann Lee|~alee"}},
		"changelog, custom picker": {issue, `{"changelog":{"items":[{"field":"Approver","fromString":null,"toString":"Bo Kim","tmpToAccountId":"1:b"}]}}`, []string{"Bo Kim|1:b"}},
		"changelog of texts":       {issue, `{"changelog":{"items":[{"field":"summary","fromString":"Ask Ann","toString":"Ask Bo"},{"field":"status","from":"1","to":"2","toString":"Done"}]}}`, nil},

		"mention in a document": {issue, `{"fields":{"description":{"type":"doc","content":[{"type":"paragraph","content":[{"type":"mention","attrs":{"id":"1:a","text":"@Ann Lee"}}]}]}}}`, []string{"Ann Lee|1:a"}},
		"mention without '@'":   {issue, `{"x":{"type":"mention","attrs":{"id":"1:a","text":"Ann Lee"}}}`, []string{"Ann Lee|1:a"}},
		"mention without text":  {issue, `{"x":{"type":"mention","attrs":{"id":"1:a"}}}`, []string{"1:a"}},
		"mention without attrs": {issue, `{"x":{"type":"mention"}}`, nil},
		"mention of everybody":  {issue, `{"x":{"type":"mention","attrs":{"id":"","text":"@"}}}`, nil},
		"mention in a string":   {page, `{"body":{"atlas_doc_format":{"value":` + mustJSON(`{"type":"doc","content":[{"type":"mention","attrs":{"id":"1:a","text":"@Ann Lee"}}]}`) + `}}}`, []string{"Ann Lee|1:a"}},
		"mention joins user": {page, `{"history":{"createdBy":{"accountId":"1:a","displayName":"Ann Lee"}},"body":{"atlas_doc_format":{"value":` + mustJSON(`{"type":"doc","content":[{"type":"mention","attrs":{"id":"1:a","text":"@Annie"}}]}`) + `}}}`,
			[]string{"1:a|Ann Lee|Annie"}},
		"string that is no document": {page, `{"body":{"atlas_doc_format":{"value":"{\"type\":\"mention\""}}}`, nil},

		"login(login)":        {issue, `{"fields":{"customfield_1":"alee(alee)","customfield_2":["bkim(bkim)"]}}`, []string{"~alee", "~bkim"}},
		"address(address)":    {issue, `{"x":"ann@acme.example(ann@acme.example)"}`, []string{"ann@acme.example"}},
		"login joins user":    {issue, `{"fields":{"reporter":{"name":"alee","displayName":"Ann Lee"},"customfield_1":"alee(alee)"}}`, []string{"~alee|Ann Lee"}},
		"not login(login)":    {issue, `{"a":"alee(bkim)","b":"alee(alee","c":"a b(a b)","d":"(())","e":"f(f)","g":"alee(alee) x","h":"x(x)(x(x))"}`, nil},
		"suffix in brackets":  {issue, `{"a":{"displayName":"Ann Lee (Unlicensed)"},"b":{"displayName":"Bo Kim [Acme]"},"c":{"displayName":"(Bot)"}}`, []string{"Ann Lee (Unlicensed)|Ann Lee", "Bo Kim [Acme]|Bo Kim", "(Bot)"}},
		"name is an address":  {issue, `{"a":{"displayName":"ann@acme.example","accountId":"1:a"},"b":{"displayName":"Ann Lee","emailAddress":"ann@acme.example"}}`, []string{"ann@acme.example|1:a|Ann Lee"}},
		"login is an address": {issue, `{"a":{"name":"ann@acme.example","displayName":"Ann Lee"}}`, []string{"ann@acme.example|Ann Lee"}},
		"login of two words":  {issue, `{"a":{"name":"Ann Lee","displayName":null}}`, []string{"Ann Lee"}},
		"spaces around":       {issue, `{"a":{"displayName":" Ann Lee\n","emailAddress":" ann@acme.example "}}`, []string{"Ann Lee|ann@acme.example"}},
		"256 bytes":           {issue, `{"a":{"displayName":"` + longest + `"}}`, []string{longest}},
		"257 bytes":           {issue, `{"a":{"displayName":"a` + longest + `","accountId":"1:a"}}`, []string{"1:a"}},
		"NUL in a name":       {issue, `{"a":{"displayName":"Ann\u0000Lee","accountId":"1:a"}}`, []string{"Ann Lee|1:a"}},

		"same id in two places":    {issue, `{"a":{"accountId":"1:a","displayName":"Ann Lee"},"b":{"accountId":"1:a","displayName":"Ann Lee-Ray"},"c":{"accountId":"1:a","displayName":"Ann Lee"}}`, []string{"1:a|Ann Lee|Ann Lee-Ray"}},
		"same id in another case":  {issue, `{"a":{"emailAddress":"Ann@acme.example","displayName":"Ann Lee"},"b":{"emailAddress":"ann@acme.example"}}`, []string{"Ann@acme.example|Ann Lee|ann@acme.example"}},
		"same address, other id":   {issue, `{"a":{"accountId":"1:a","emailAddress":"ann@acme.example"},"b":{"accountId":"1:b","emailAddress":"ann@acme.example"}}`, []string{"1:a|ann@acme.example|1:b"}},
		"one name, two people":     {issue, `{"a":{"accountId":"1:a","displayName":"Ann Lee"},"b":{"accountId":"1:b","displayName":"Ann Lee"}}`, []string{"1:a|Ann Lee", "1:b|Ann Lee"}},
		"name alone, then with id": {issue, `{"a":{"displayName":"Ann Lee"},"b":{"accountId":"1:b","displayName":"Ann Lee"},"c":{"accountId":"1:c","displayName":"Ann Lee"}}`, []string{"Ann Lee|1:b", "1:c|Ann Lee"}},
		"name with id, then alone": {issue, `{"a":{"accountId":"1:a","displayName":"Ann Lee"},"b":{"displayName":"ANN LEE"}}`, []string{"1:a|Ann Lee|ANN LEE"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := declared(parse(t, c.typ, c.payload))
			require.Equal(t, strings.Join(c.want, "\n"), strings.Join(got, "\n"))
		})
	}
}

func TestPeopleOfPlainFields(t *testing.T) {
	for _, key := range []string{"userAccountId", "creatorAccountId", "lastModifierAccountId", "authorAccountId", "ownerAccountId", "leadAccountId", "authorId", "ownerId", "lastOwnerId",
		"creatorKey", "lastModifierKey", "creatorName", "lastModifierName", "userName"} {
		require.Equal(t, []string{"~alee"}, declared(parse(t, "confluence.rest.page", `{"x":{"`+key+`":"alee"}}`)), key)
	}
	for _, field := range []string{"assignee", "reporter", "creator", "Assignee", "Reporter", "Creator"} {
		require.Equal(t, []string{"Ann Lee|~alee"}, declared(parse(t, "jira.rest.issue", `{"x":{"field":"`+field+`","fromString":"Ann Lee","from":"alee"}}`)), field)
	}
}

func TestPeopleAppends(t *testing.T) {
	e := parse(t, "jira.rest.issue", `{"a":{"displayName":"Ann Lee"}}`)
	got := e.People([][]byte{[]byte("Ann Lee")})
	require.Equal(t, [][]byte{[]byte("Ann Lee"), []byte("Ann Lee")}, got, "what dst holds is not ours")
	require.Equal(t, got[1:], e.People(nil))
	require.Equal(t, `{"a":{"displayName":"Ann Lee"}}`, string(e.Value))
}

// Every person of the fixtures' user objects must be declared, by each thing
// that they are called.
func TestPeopleOfFixtures(t *testing.T) {
	events, at := fixtureEvents(t, "events/*.jsonl")
	people := 0
	for i, e := range events {
		if !e.Product.InScope() || e.Parse() != nil {
			continue
		}
		all := map[string]bool{}
		for _, p := range e.People(nil) {
			for id := range strings.SplitSeq(string(p), "\x00") {
				all[strings.TrimPrefix(id, "~")] = true
			}
		}
		e.doc.Root().all(func(v Value) {
			if !IsUser(v) {
				return
			}
			people++
			for _, k := range []string{"displayName", "publicName", "accountId", "emailAddress", "email", "name", "key", "userKey", "username"} {
				if id := strings.TrimSpace(string(v.Get(k).Bytes())); id != "" && hasWordRune([]byte(id)) {
					require.True(t, all[id], "%s: a %s is not declared", at[i], k)
				}
			}
		})
	}
	require.Greater(t, people, 1000)
}

// A record may declare as many people as fit into it, however they are related.
func TestPeopleLinearTime(t *testing.T) {
	for name, person := range map[string]func(i int) string{
		"all different":   func(i int) string { return fmt.Sprintf(`{"accountId":"1:%d","displayName":"Ann %d"}`, i, i) },
		"one id":          func(i int) string { return fmt.Sprintf(`{"accountId":"1:a","displayName":"Ann %d"}`, i) },
		"one name":        func(i int) string { return fmt.Sprintf(`{"accountId":"1:%d","displayName":"Ann Lee"}`, i) },
		"one name, no id": func(int) string { return `{"displayName":"Ann Lee"}` },
		"changelog items": func(i int) string {
			return fmt.Sprintf(`{"fromString":"A%d","toString":"B%d","tmpFromAccountId":"1:a"}`, i, i)
		},
		"mentions":          func(i int) string { return fmt.Sprintf(`{"type":"mention","attrs":{"id":"1:a","text":"@Ann %d"}}`, i) },
		"strings of people": func(i int) string { return fmt.Sprintf(`"ann%d(ann%d)"`, i, i) },
		"suffixes":          func(i int) string { return fmt.Sprintf(`{"displayName":"Ann (%d)"}`, i) },
	} {
		t.Run(name, func(t *testing.T) {
			requireLinear(t, func(n int) time.Duration {
				all := make([]string, n)
				for i := range all {
					all[i] = person(i)
				}
				e := parse(t, "jira.rest.issue", `{"x":[`+strings.Join(all, ",")+`]}`)
				return fastest(t, func() { require.NotEmpty(t, e.People(nil)) })
			}, 50_000/16)
		})
	}
}
