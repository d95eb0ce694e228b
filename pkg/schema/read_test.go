package schema

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// said lists an event's texts as "role format: value".
func said(e *Event) []string {
	out := []string{}
	for _, x := range e.Texts() {
		out = append(out, x.Role+" "+x.Format.String()+": "+string(x.Value.Bytes())+string(x.Value.Raw()))
	}
	return out
}

func parse(t testing.TB, typ, payload string) *Event {
	t.Helper()
	e := &Event{Envelope: Envelope{Type: TypePrefix + typ}, Value: []byte(payload)}
	require.NoError(t, e.Parse())
	return e
}

const (
	smallIssue = `{"id":"10001","key":"ABC-7","self":"https://acme.example/rest/api/2/issue/10001","fields":{
		"project":{"key":"ABC","name":"Alphabet"},"reporter":{"displayName":"Ann Lee"},
		"summary":"Export fails","description":"h1. Steps\r\n# open","environment":"Linux","labels":["late"],
		"status":{"name":"Waiting for Ann","statusCategory":{"key":"new"}},"customfield_10050":"secret",
		"comment":{"comments":[{"author":{"displayName":"Bo Kim"},"body":"First"},{"body":"Second"}]},
		"worklog":{"worklogs":[{"comment":"Looked into it","timeSpent":"1h"}]},
		"attachment":[{"filename":"a.txt"}]},"renderedFields":{"description":"<h1>Steps</h1>"},"names":{"summary":"Summary"}}`
	adfDoc = `{"type":"doc","version":1,"content":[]}`
)

var issueTexts = []string{"summary plain: Export fails", "description wiki: h1. Steps\r\n# open", "environment wiki: Linux",
	"comment wiki: First", "comment wiki: Second", "worklog wiki: Looked into it"}

type formCase struct {
	name, types, payload       string // types share a form and are separated by spaces
	kind, host, project, space string
	texts                      []string
}

var formCases = []formCase{
	{"issue", "jira.rest.issue", smallIssue, "issue", "acme.example", "ABC", "", issueTexts},
	{"issue webhook", "jira.webhook.issue_created jira.webhook.issue_updated jira.webhook.issue_deleted",
		`{"timestamp":1788256800000,"user":{"displayName":"Ann Lee","self":"https://acme.example/rest/api/2/user?accountId=1"},
		"changelog":{"items":[{"field":"description","fromString":"old words","toString":"new words"}]},"issue":` + smallIssue + `}`,
		"issue", "acme.example", "ABC", "", issueTexts},
	{"comment", "jira.rest.comment", `{"id":"5","self":"https://acme.example/rest/api/2/issue/1/comment/5","author":{"displayName":"Ann Lee"},"body":"Done","renderedBody":"<p>Done</p>"}`,
		"comment", "acme.example", "", "", []string{"comment wiki: Done"}},
	{"comment on a request", "jira.rest.request_comment", `{"id":"5","public":true,"_links":{"self":"https://acme.example/rest/servicedeskapi/request/1/comment/5"},"body":"Done"}`,
		"comment", "acme.example", "", "", []string{"comment wiki: Done"}},
	{"comment webhook", "jira.webhook.comment_created jira.webhook.comment_updated jira.webhook.comment_deleted",
		`{"comment":{"id":"5","self":"https://acme.example/rest/api/2/issue/1/comment/5","body":"Done"},"issue":` + smallIssue + `}`,
		"comment", "acme.example", "ABC", "", []string{"comment wiki: Done"}},
	{"worklog", "jira.rest.worklog", `{"id":"6","self":"https://acme.example/rest/api/2/issue/1/worklog/6","comment":` + adfDoc + `,"timeSpentSeconds":60}`,
		"worklog", "acme.example", "", "", []string{"worklog adf: " + adfDoc}},
	{"worklog webhook", "jira.webhook.worklog_created jira.webhook.worklog_updated jira.webhook.worklog_deleted",
		`{"worklog":{"id":"6","issueId":"1","self":"https://acme.example/rest/api/2/issue/1/worklog/6","comment":"Fixed"}}`,
		"worklog", "acme.example", "", "", []string{"worklog wiki: Fixed"}},
	{"sprint", "jira.rest.sprint", `{"id":3,"self":"https://acme.example/rest/agile/1.0/sprint/3","name":"Sprint of Ann","goal":"Ship","state":"active","endDate":"2026-09-01"}`,
		"sprint", "acme.example", "", "", nil},
	{"sprint webhook", "jira.webhook.sprint_created jira.webhook.sprint_updated jira.webhook.sprint_started jira.webhook.sprint_closed jira.webhook.sprint_deleted",
		`{"sprint":{"id":3,"self":"https://acme.example/rest/agile/1.0/sprint/3","name":"Sprint of Ann","goal":"Ship"},"oldValue":{"goal":"Ship it"}}`,
		"sprint", "acme.example", "", "", nil},
	{"request", "jira.rest.request", `{"issueId":"1","issueKey":"HELP-DESK-3","requestTypeId":"9","requestFieldValues":[{"value":"My laptop"}],"_links":{"web":"https://acme.example/servicedesk/customer/portal/1/HELP-3"}}`,
		"request", "acme.example", "HELP-DESK", "", nil},
	{"page", "confluence.rest.page", `{"id":"7","type":"page","title":"Release notes","space":{"key":"DOC"},"body":{"storage":{"value":"<p>a</p>","representation":"storage"}},"_links":{"base":"https://acme.example/wiki","webui":"/x"}}`,
		"page", "acme.example", "", "DOC", []string{"title plain: Release notes", "body storage: <p>a</p>"}},
	{"blog post", "confluence.rest.blogpost", `{"id":"8","title":"News","space":{"key":"~ann"},"body":{"atlas_doc_format":{"value":"{\"type\":\"doc\",\"content\":[]}"}},"_links":{"self":"https://acme.example/wiki/rest/api/content/8"}}`,
		"blogpost", "acme.example", "", "~ann", []string{"title plain: News", `body adf: {"type":"doc","content":[]}`}},
	{"page's comment", "confluence.rest.comment", `{"id":"9","type":"comment","title":"Re: Release notes","body":{"storage":{"value":"<p>ok</p>"}},"_links":{"self":"https://acme.example/wiki/rest/api/content/9"}}`,
		"comment", "acme.example", "", "", []string{"comment storage: <p>ok</p>"}},
	{"page webhook", "confluence.webhook.page", `{"timestamp":1788256800000,"page":{"id":7,"title":"Release notes","spaceKey":"DOC","self":"https://acme.example/wiki/spaces/DOC/pages/7","creatorAccountId":"1"}}`,
		"page", "acme.example", "", "DOC", []string{"title plain: Release notes"}},
	{"blog webhook", "confluence.webhook.blog", `{"blog":{"id":8,"title":"News","spaceKey":"DOC","self":"https://acme.example/wiki/x"}}`,
		"blogpost", "acme.example", "", "DOC", []string{"title plain: News"}},
	{"blogpost webhook", "confluence.webhook.blogpost", `{"blogpost":{"id":8,"title":"News","spaceKey":"DOC","self":"https://acme.example/wiki/x"}}`,
		"blogpost", "acme.example", "", "DOC", []string{"title plain: News"}},
	{"status", "jira.rest.status", `{"id":"10","self":"https://acme.example/rest/api/2/status/10","name":"Waiting for Ann","description":"Ann looks","statusCategory":{"key":"new"}}`,
		"status", "acme.example", "", "", nil},
	{"workflow", "jira.rest.workflow", `{"id":{"name":"Ann's way","entityId":"4f"},"description":"how","transitions":[],"statuses":[{"name":"Waiting for Ann"}],"isDefault":false}`,
		"workflow", "", "", "", nil},
	{"emoji", "confluence.rest.emoji", `{"id":"e1","shortName":":ann:","name":"ann","type":"SITE","creatorUserId":"5b","fallback":":ann:"}`,
		"emoji", "", "", "", nil},
	{"page's comment webhook", "confluence.webhook.comment", `{"comment":{"id":9,"spaceKey":"DOC","title":"Re: Release notes","parent":{"self":"https://acme.example/wiki/x","title":"Release notes"}}}`,
		"comment", "acme.example", "", "DOC", nil},
}

func TestParseForms(t *testing.T) {
	untested := map[string]bool{}
	for _, typ := range Forms() {
		untested[typ] = true
	}
	var reused Event
	for _, c := range formCases {
		for _, typ := range strings.Fields(c.types) {
			delete(untested, TypePrefix+typ)
			t.Run(c.name+" "+typ, func(t *testing.T) {
				reused.Type, reused.Value = TypePrefix+typ, []byte(c.payload)
				require.NoError(t, reused.Parse())
				for _, e := range []*Event{parse(t, typ, c.payload), &reused} {
					require.Equal(t, c.kind, e.Kind())
					require.Equal(t, c.host, e.Host)
					require.Equal(t, c.project, e.Project)
					require.Equal(t, c.space, e.Space)
					require.True(t, e.Scoped)
					require.Equal(t, slices.Contains([]string{"status", "workflow", "emoji"}, c.kind), e.Vocabulary())
					require.ElementsMatch(t, c.texts, said(e))
					require.Equal(t, strings.Join(c.texts, "\n"), strings.Join(said(e), "\n"), "the order")
				}
			})
		}
	}
	require.Empty(t, untested)
}

func TestParseShapes(t *testing.T) {
	const issue, updated, page, pageComment = "jira.rest.issue", "jira.webhook.issue_updated", "confluence.rest.page", "confluence.rest.comment"
	adfString := mustJSON(adfDoc)
	for name, c := range map[string]struct {
		typ, payload string
		texts        []string
	}{
		"storage before the copies": {page, `{"body":{"view":{"value":"<p>v</p>"},"export_view":{"value":"<p>e</p>"},"styled_view":{"value":"<p>s</p>"},"editor":{"value":"<p>d</p>"},
			"atlas_doc_format":{"value":` + adfString + `},"storage":{"value":"<p>s</p>"}}}`, []string{"body storage: <p>s</p>"}},
		"ADF where storage is empty":    {page, `{"body":{"storage":{"value":" "},"atlas_doc_format":{"value":` + adfString + `}}}`, []string{"body adf: " + adfDoc}},
		"ADF where storage is null":     {page, `{"body":{"storage":null,"atlas_doc_format":{"value":` + adfString + `}}}`, []string{"body adf: " + adfDoc}},
		"only a rendered copy":          {page, `{"title":"t","body":{"view":{"value":"<p>v</p>"}}}`, []string{"title plain: t"}},
		"page comment with both bodies": {pageComment, `{"body":{"storage":{"value":"<p>c</p>"},"atlas_doc_format":{"value":` + adfString + `}}}`, []string{"comment storage: <p>c</p>"}},
		"excerpt and ancestors":         {page, `{"title":"t","excerpt":"e","ancestors":[{"title":"a","body":{"storage":{"value":"x"}}}],"children":{"page":{"results":[{"title":"c"}]}}}`, []string{"title plain: t"}},

		"comment inside and beside":            {updated, `{"issue":{"fields":{"comment":{"comments":[{"body":"a"},{"body":"b"}]}}},"comment":{"body":"b"}}`, []string{"comment wiki: a", "comment wiki: b"}},
		"comment only beside":                  {updated, `{"issue":{"fields":{"summary":"s"}},"comment":{"body":"b"}}`, []string{"summary plain: s", "comment wiki: b"}},
		"another comment beside":               {updated, `{"issue":{"fields":{"comment":{"comments":[{"body":"a"}]}}},"comment":{"body":"b"}}`, []string{"comment wiki: a", "comment wiki: b"}},
		"ADF comment inside and beside":        {updated, `{"issue":{"fields":{"comment":{"comments":[{"body":` + adfDoc + `}]}}},"comment":{"body":` + adfDoc + `}}`, []string{"comment adf: " + adfDoc}},
		"other ADF comment beside":             {updated, `{"issue":{"fields":{"comment":{"comments":[{"body":` + adfDoc + `}]}}},"comment":{"body":{"type":"doc"}}}`, []string{"comment adf: " + adfDoc, `comment adf: {"type":"doc"}`}},
		"two people write the same":            {issue, `{"fields":{"comment":{"comments":[{"body":"+1"},{"body":"+1"}]}}}`, []string{"comment wiki: +1", "comment wiki: +1"}},
		"same words in two roles":              {issue, `{"fields":{"summary":"s","description":"s","environment":"s"}}`, []string{"summary plain: s", "description wiki: s", "environment wiki: s"}},
		"rendered, versioned, expanded copies": {issue, `{"fields":{"summary":"s"},"renderedFields":{"summary":"r","comment":{"comments":[{"body":"r"}]}},"versionedRepresentations":{"summary":{"1":"v"}},"transitions":[{"fields":{"summary":"t"}}]}`, []string{"summary plain: s"}},

		"ADF by type":             {issue, `{"fields":{"description":` + adfDoc + `,"environment":` + adfDoc + `}}`, []string{"description adf: " + adfDoc, "environment adf: " + adfDoc}},
		"empty texts":             {issue, `{"fields":{"summary":"","description":" \r\n\t","environment":"\u00a0","comment":{"comments":[{"body":""}]}}}`, nil},
		"nulls":                   {issue, `{"fields":{"summary":null,"description":null,"comment":null,"worklog":{"worklogs":null}}}`, nil},
		"null in a list":          {issue, `{"fields":{"comment":{"comments":[null,{"body":null},{},{"body":"a"}]}}}`, []string{"comment wiki: a"}},
		"empty lists":             {issue, `{"fields":{"comment":{"comments":[],"total":0},"worklog":{"worklogs":[]}}}`, nil},
		"null fields":             {issue, `{"key":"ABC-1","fields":null}`, nil},
		"empty object":            {issue, `{}`, nil},
		"escaped key":             {issue, `{"fields":{"s\u0075mmary":"s"}}`, []string{"summary plain: s"}},
		"escaped text":            {issue, `{"fields":{"summary":"a\u0020\ud83d\ude00\n"}}`, []string{"summary plain: a 😀\n"}},
		"unknown key twice":       {issue, `{"fields":{"summary":"s","customfield_1":1,"customfield_1":2}}`, []string{"summary plain: s"}},
		"unknown key of any type": {issue, `{"fields":{"summary":"s","customfield_1":[[{"a":1}],"b",null],"status":"open","priority":7}}`, []string{"summary plain: s"}},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, strings.Join(c.texts, "\n"), strings.Join(said(parse(t, c.typ, c.payload)), "\n"))
		})
	}
}

func TestParseErrors(t *testing.T) {
	const issue, updated, page = "jira.rest.issue", "jira.webhook.issue_updated", "confluence.rest.page"
	for name, c := range map[string]struct {
		typ, payload string
		reason       Reason
		path         string
	}{
		"summary is a number":           {issue, `{"fields":{"summary":42}}`, ReasonWrongType, "fields.summary"},
		"summary is a document":         {issue, `{"fields":{"summary":` + adfDoc + `}}`, ReasonWrongType, "fields.summary"},
		"description is a list":         {issue, `{"fields":{"description":["canary"]}}`, ReasonWrongType, "fields.description"},
		"environment is a switch":       {issue, `{"fields":{"environment":true}}`, ReasonWrongType, "fields.environment"},
		"fields is a string":            {issue, `{"fields":"canary"}`, ReasonWrongType, "fields.summary"},
		"fields is a list":              {issue, `{"fields":[{"summary":"canary"}]}`, ReasonWrongType, "fields.summary"},
		"comment is a string":           {issue, `{"fields":{"comment":"canary"}}`, ReasonWrongType, "fields.comment.comments[].body"},
		"comments is an object":         {issue, `{"fields":{"comment":{"comments":{"body":"canary"}}}}`, ReasonWrongType, "fields.comment.comments[].body"},
		"comments is a list of strings": {issue, `{"fields":{"comment":{"comments":["canary"]}}}`, ReasonWrongType, "fields.comment.comments[].body"},
		"second comment's body":         {issue, `{"fields":{"comment":{"comments":[{"body":"a"},{"body":7}]}}}`, ReasonWrongType, "fields.comment.comments[].body"},
		"worklogs is a number":          {issue, `{"fields":{"worklog":{"worklogs":3}}}`, ReasonWrongType, "fields.worklog.worklogs[].comment"},
		"issue is a string":             {updated, `{"issue":"canary"}`, ReasonWrongType, "issue.fields.summary"},
		"comment beside is a string":    {updated, `{"comment":"canary"}`, ReasonWrongType, "comment.body"},
		"title is a number":             {page, `{"title":7}`, ReasonWrongType, "title"},
		"body is a string":              {page, `{"body":"canary"}`, ReasonWrongType, "body.storage.value"},
		"storage is a string":           {page, `{"body":{"storage":"canary"}}`, ReasonWrongType, "body.storage.value"},
		"body is a document":            {page, `{"body":{"storage":{"value":` + adfDoc + `}}}`, ReasonWrongType, "body.storage.value"},
		"ADF is no string":              {page, `{"body":{"atlas_doc_format":{"value":` + adfDoc + `}}}`, ReasonWrongType, "body.atlas_doc_format.value"},
		"root is a list":                {issue, `[{"fields":{"summary":"canary"}}]`, ReasonWrongType, ""},
		"root is a string":              {issue, `"canary"`, ReasonWrongType, ""},
		"root is null":                  {issue, `null`, ReasonWrongType, ""},
		"content key twice":             {issue, `{"fields":{"summary":"canary","summary":"s"}}`, ReasonDuplicateKey, ""},
		"content key twice, escaped":    {issue, `{"fields":{"summary":"canary","s\u0075mmary":"s"}}`, ReasonDuplicateKey, ""},
		"key on the way twice":          {issue, `{"fields":{"summary":"s"},"fields":{"description":"canary"}}`, ReasonDuplicateKey, ""},
		"project twice":                 {issue, `{"fields":{"project":{"key":"ABC"},"project":{"key":"DEF"},"summary":"canary"}}`, ReasonDuplicateKey, ""},
		"link twice":                    {issue, `{"self":"https://a.example/","self":"https://b.example/"}`, ReasonDuplicateKey, ""},
		"space twice":                   {page, `{"space":{"key":"A","key":"B"}}`, ReasonDuplicateKey, ""},
		"empty":                         {issue, "", ReasonEmptyValue, ""},
		"spaces":                        {issue, " \n", ReasonEmptyValue, ""},
		"cut off":                       {issue, `{"fields":{"summary":"canary`, ReasonMalformedJSON, ""},
		"not UTF-8":                     {issue, "{\"fields\":{\"summary\":\"canary\xff\"}}", ReasonInvalidUTF8, ""},
		"too deep":                      {issue, strings.Repeat(`{"fields":`, 300) + `"canary"` + strings.Repeat("}", 300), ReasonTooDeep, ""},
		"too large":                     {issue, `{"fields":{"summary":"` + strings.Repeat("a", MaxValue) + `"}}`, ReasonTooLarge, ""},
		"unknown type":                  {"jira.rest.user", `{"displayName":"canary"}`, ReasonWrapperUnknown, ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := parse(t, issue, smallIssue) // what an earlier record left must not show
			e.Type, e.Value = TypePrefix+c.typ, []byte(c.payload)
			err := e.Parse()
			var bad *Error
			require.ErrorAs(t, err, &bad)
			require.Equal(t, c.reason, bad.Reason)
			require.Equal(t, c.path, bad.Path)
			require.NotContains(t, err.Error(), "canary")
			require.Empty(t, e.Kind())
		})
	}
	e := Event{Envelope: Envelope{Type: "jira.rest.issue"}, Value: []byte(smallIssue)}
	require.Equal(t, ReasonWrapperUnknown, ReasonOf(e.Parse()), "a type without the prefix is not ours")
	e = Event{Envelope: Envelope{Type: TypePrefix + issue}, Value: []byte(smallIssue + strings.Repeat(" ", MaxValue-len(smallIssue)))}
	require.NoError(t, e.Parse(), "MaxValue itself is allowed")
}

func TestParseHostAndProject(t *testing.T) {
	const updated = "jira.webhook.issue_updated"
	for name, c := range map[string]struct{ typ, payload, host, project string }{
		"all of one host":              {updated, `{"issue":{"self":"https://acme.example/1"},"comment":{"self":"https://ACME.example:443/2"},"user":{"self":"http://acme.example/3"}}`, "acme.example", ""},
		"two hosts":                    {updated, `{"issue":{"self":"https://acme.example/1"},"user":{"self":"https://other.example/3"}}`, "two hosts", ""},
		"two hosts, the first again":   {updated, `{"issue":{"self":"https://acme.example/1"},"comment":{"self":"https://other.example/2"},"user":{"self":"https://acme.example/3"}}`, "two hosts", ""},
		"a second host in capitals":    {updated, `{"issue":{"self":"https://acme.example/1"},"user":{"self":"HTTPS://other.example/3"}}`, "two hosts", ""},
		"no link":                      {updated, `{"issue":{"id":"1"}}`, "", ""},
		"links without a host":         {updated, `{"issue":{"self":"/rest/api/2/issue/1"},"user":{"self":7}}`, "", ""},
		"a link elsewhere is no claim": {updated, `{"issue":{"self":"https://acme.example/1","fields":{"customfield_1":{"self":"https://other.example/"}}}}`, "acme.example", ""},
		"a name cannot pass for two":   {updated, `{"issue":{"self":"https://two hosts/1"}}`, "two hosts", ""},
		"project":                      {updated, `{"issue":{"key":"ABC-1","fields":{"project":{"key":"DEF"}}}}`, "", "DEF"},
		"project of the issue's key":   {updated, `{"issue":{"key":"ABC-1","fields":{"summary":"s"}}}`, "", "ABC"},
		"key without a number":         {updated, `{"issue":{"key":"ABC"}}`, "", ""},
		"project that is no string":    {updated, `{"issue":{"key":"ABC-1","fields":{"project":{"key":7}}}}`, "", "ABC"},
	} {
		t.Run(name, func(t *testing.T) {
			e := parse(t, c.typ, c.payload)
			require.Equal(t, c.host, e.Host)
			require.Equal(t, c.project, e.Project)
		})
	}
}

// A record may hold as many texts as fit into it.
func TestParseLinearTime(t *testing.T) {
	took := func(n int) time.Duration {
		e := &Event{Envelope: Envelope{Type: "winnow.jira.webhook.issue_updated"}}
		e.Value = []byte(`{"issue":{"fields":{"comment":{"comments":[` + strings.Repeat(`{"body":"x"},`, n) + `{"body":"y"}]}}},"comment":{"body":"y"}}`)
		return fastest(t, func() {
			require.NoError(t, e.Parse())
			require.Len(t, e.Texts(), n+1)
		})
	}
	requireLinear(t, took, 20_000)
}

// fastest is the shortest of a few runs.
func fastest(t testing.TB, f func()) time.Duration {
	t.Helper()
	best := time.Duration(1 << 62)
	for range 3 {
		start := time.Now()
		f()
		best = min(best, time.Since(start))
	}
	return best
}

// requireLinear compares n and 16n: in quadratic time it is 256 times as long.
func requireLinear(t testing.TB, took func(n int) time.Duration, n int) {
	t.Helper()
	small, large := took(n), took(16*n)
	require.Less(t, large, 16*4*small+20*time.Millisecond, "%d take %v, %d take %v", n, small, 16*n, large)
}

func BenchmarkEvent(b *testing.B) {
	events, _ := fixtureEvents(b, "events/*.jsonl")
	var e Event
	var people [][]byte
	size, texts := 0, 0
	for _, x := range events {
		size += len(x.Value)
	}
	run := func() {
		for _, x := range events {
			e.Envelope, e.Value = x.Envelope, x.Value
			if e.Parse() == nil {
				people = e.People(people[:0])
				texts += len(e.Texts())
			}
		}
	}
	run()
	require.Greater(b, texts, len(events)/2)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		run()
	}
}

// A comment as Jira tells of it twice: by an event of its own, and beside the
// issue that it was written to.
const (
	editAt      = `"updated":"2026-09-14T10:11:12.345+0000"`
	editComment = `{"self":"https://acme.example/rest/api/2/issue/10001/comment/5","id":"5","body":"Done, see the log.","created":"2026-09-14T10:11:12.345+0000",` + editAt + `}`
)

func edits(t testing.TB, event, comment string) (ownEvent, besideIssue Edit) {
	t.Helper()
	edit := func(typ, payload string) Edit {
		e := parse(t, typ, payload)
		e.Tenant, e.Product = "t-1", Jira
		return e.Edit()
	}
	return edit("jira.webhook.comment_"+event, `{"timestamp":1789380672345,"webhookEvent":"comment_`+event+`","comment":`+comment+`,"issue":{"id":"10001","key":"ABC-7","fields":{"summary":"Export fails"}}}`),
		edit("jira.webhook.issue_updated", `{"timestamp":1789380672399,"webhookEvent":"jira:issue_updated","issue_event_type_name":"issue_commented","comment":`+comment+`,"issue":`+smallIssue+`}`)
}

func TestEdit(t *testing.T) {
	replace := func(old, to string) string {
		require.Contains(t, editComment, old)
		return strings.Replace(editComment, old, to, 1)
	}
	distinct := map[[16]byte]string{}
	for name, comment := range map[string]string{
		"server":                    editComment,
		"cloud, ADF":                replace(`"Done, see the log."`, adfDoc),
		"edited later":              replace(editAt, `"updated":"2026-09-14T10:11:12.346+0000"`),
		"another comment":           replace(`"id":"5"`, `"id":"6"`),
		"id like another's updated": replace(`"id":"5"`, `"id":"52026-09-14T10:11:12.345+0000"`),
	} {
		own, beside := edits(t, "created", comment)
		require.NotZero(t, own.Key, name)
		require.Equal(t, own.Key, beside.Key, name)
		require.True(t, own.Specific, name)
		require.False(t, beside.Specific, name)
		changed, _ := edits(t, "updated", comment)
		require.Equal(t, own, changed, "the kind of the event does not count")
		if name == "cloud, ADF" {
			server, _ := edits(t, "created", editComment)
			require.Equal(t, server, own, "two forms of one body are one edit, while it has a time")
			continue
		}
		require.Empty(t, distinct[own.Key], name)
		distinct[own.Key] = name
	}
	// A number is the id that it spells, as a string does.
	number, _ := edits(t, "created", replace(`"id":"5"`, `"id":5`))
	text, _ := edits(t, "created", editComment)
	require.Equal(t, text, number)

	for name, comment := range map[string]string{
		"no id": replace(`"id":"5",`, ``), "id is null": replace(`"id":"5"`, `"id":null`), "id is empty": replace(`"id":"5"`, `"id":""`),
		"id is an object": replace(`"id":"5"`, `"id":{"id":"5"}`), "no comment": `null`,
		"no updated": replace(`,`+editAt, ``), "null updated": replace(editAt, `"updated":null`), "neither updated nor body": `{"id":"5"}`,
	} {
		own, beside := edits(t, "created", comment)
		require.Zero(t, own, name)
		require.Zero(t, beside, name)
	}
}

// An issue_updated with a changelog tells of more than its comment.
func TestEditBesideOthers(t *testing.T) {
	for log, told := range map[string]bool{
		`{"items":[{"field":"description","toString":"New"}]}`: false,
		`{"items":[]}`: true, `{}`: true, `null`: true,
	} {
		e := parse(t, "jira.webhook.issue_updated", `{"timestamp":1789380672399,"webhookEvent":"jira:issue_updated","changelog":`+log+`,"comment":`+editComment+`,"issue":`+smallIssue+`}`)
		require.Equal(t, told, e.Edit() != Edit{}, log)
	}
}

// Only webhooks tell of a change twice, and nobody tells of another's.
func TestEditIsOfItsTenant(t *testing.T) {
	for _, c := range formCases {
		for _, typ := range strings.Fields(c.types) {
			e := parse(t, typ, c.payload)
			tells := strings.HasPrefix(typ, "jira.webhook.comment_") && strings.Contains(c.payload, `"updated":"2`)
			require.Equal(t, tells, e.Edit() != Edit{}, typ)
		}
	}
	var zero Event
	require.Zero(t, zero.Edit(), "before Parse")

	e := parse(t, "jira.webhook.comment_created", `{"comment":`+editComment+`}`)
	keys := map[[16]byte]bool{}
	for _, x := range []struct {
		tenant  string
		product Product
	}{{"t-1", Jira}, {"t-2", Jira}, {"t-1", ServiceManagement}, {"", Jira}, {"jirat-1", ""}, {"rat-1", "ji"}} {
		e.Tenant, e.Product = x.tenant, x.product
		require.False(t, keys[e.Edit().Key], "%v", x)
		keys[e.Edit().Key] = true
		keys[e.Key()] = true
	}
	// A reused event tells of what it was parsed from last.
	e.Type, e.Value = TypePrefix+"jira.rest.issue", []byte(smallIssue)
	require.NoError(t, e.Parse())
	require.Zero(t, e.Edit())
}
