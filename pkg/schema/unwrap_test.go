package schema

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// unwrapped is what Unwrap yields, one line each: "index type product entity
// host time", or "index reason path" for a drop.
func unwrapped(t testing.TB, raw string) []string {
	t.Helper()
	out := []string{}
	var d Doc
	Unwrap(&d, []byte(raw), func(index int, it Item, err error) {
		if err != nil {
			var e *Error
			require.ErrorAs(t, err, &e)
			require.NotContains(t, err.Error(), "canary")
			require.Zero(t, it.Envelope)
			out = append(out, strings.TrimSpace(fmt.Sprint(index, " ", e.Reason, " ", e.Path)))
			return
		}
		at := "-"
		if !it.Time.IsZero() {
			require.Equal(t, time.UTC, it.Time.Location())
			at = it.Time.Format(time.RFC3339Nano)
		}
		or := func(s string) string {
			if s == "" {
				return "-"
			}
			return s
		}
		out = append(out, strings.Join([]string{fmt.Sprint(index), strings.TrimPrefix(it.Type, TypePrefix), string(it.Product), or(it.Entity), or(it.Host), at}, " "))
	})
	return out
}

func TestUnwrapWrappers(t *testing.T) {
	const ms, at = `"timestamp":1788256800123`, "2026-09-01T10:00:00.123Z"
	for name, c := range map[string]struct{ raw, want string }{
		"issue webhook":               {`{` + ms + `,"webhookEvent":"jira:issue_updated","issue":{"id":"10001","self":"https://ACME.example/rest/api/2/10001"}}`, "0 jira.webhook.issue_updated jira 10001 acme.example " + at},
		"issue webhook, service desk": {`{` + ms + `,"webhookEvent":"jira:issue_created","issue":{"id":"10001","fields":{"project":{"projectTypeKey":"service_desk"}}}}`, "0 jira.webhook.issue_created jira_service_management 10001 - " + at},
		"comment webhook":             {`{` + ms + `,"webhookEvent":"comment_created","comment":{"id":"5"},"issue":{"self":"https://acme.example/1"}}`, "0 jira.webhook.comment_created jira 5 acme.example " + at},
		"comment webhook, its issue":  {`{` + ms + `,"webhookEvent":"comment_updated","comment":{"id":"5"},"issue":{"id":"10001"}}`, "0 jira.webhook.comment_updated jira 10001 - " + at},
		"comment of a numbered issue": {`{` + ms + `,"webhookEvent":"comment_deleted","comment":{"id":5},"issue":{"id":10001}}`, "0 jira.webhook.comment_deleted jira 10001 - " + at},
		"comment of an empty id":      {`{` + ms + `,"webhookEvent":"comment_created","comment":{"id":"5"},"issue":{"id":"","key":"ABC-1"}}`, "0 jira.webhook.comment_created jira 5 - " + at},
		"comment of nothing":          {`{` + ms + `,"webhookEvent":"comment_created","comment":{"body":"b"},"issue":{"id":null}}`, "0 jira.webhook.comment_created jira - - " + at},
		"issue webhook and a comment": {`{` + ms + `,"webhookEvent":"jira:issue_updated","comment":{"id":"5"},"issue":{"id":"10001"}}`, "0 jira.webhook.issue_updated jira 10001 - " + at},
		"issue webhook, no issue id":  {`{` + ms + `,"webhookEvent":"jira:issue_updated","comment":{"id":"5"},"issue":{"key":"ABC-1"}}`, "0 jira.webhook.issue_updated jira - - " + at},
		"worklog webhook":             {`{` + ms + `,"webhookEvent":"worklog_deleted","worklog":{"id":"6"}}`, "0 jira.webhook.worklog_deleted jira 6 - " + at},
		"sprint webhook":              {`{` + ms + `,"webhookEvent":"sprint_closed","sprint":{"id":3}}`, "0 jira.webhook.sprint_closed jira 3 - " + at},
		"two hosts":                   {`{` + ms + `,"webhookEvent":"comment_updated","comment":{"id":"5","self":"https://acme.example/1"},"issue":{"self":"https://other.example/1"}}`, "0 jira.webhook.comment_updated jira 5 two hosts " + at},
		"timestamp in a string":       {`{"timestamp":"1788256800123","webhookEvent":"sprint_created","sprint":{"id":3}}`, "0 jira.webhook.sprint_created jira 3 - " + at},
		"page webhook":                {`{` + ms + `,"page":{"id":7,"spaceKey":"DOC","self":"https://acme.example/wiki/x"}}`, "0 confluence.webhook.page confluence 7 acme.example " + at},
		"blog webhook":                {`{` + ms + `,"blog":{"id":8,"spaceKey":"DOC"}}`, "0 confluence.webhook.blog confluence 8 - " + at},
		"blogpost webhook":            {`{` + ms + `,"blogpost":{"id":8,"contentType":"blogpost"}}`, "0 confluence.webhook.blogpost confluence 8 - " + at},
		"page's comment webhook":      {`{` + ms + `,"comment":{"id":9,"spaceKey":"DOC","parent":{"self":"https://acme.example/wiki/x"}}}`, "0 confluence.webhook.comment confluence 9 acme.example " + at},

		"issue":                     {`{"id":"10001","key":"ABC-1","self":"https://acme.example/rest/api/2/issue/10001","fields":{"summary":"s"}}`, "0 jira.rest.issue jira 10001 acme.example -"},
		"issue of a service desk":   {`{"id":"10001","fields":{"project":{"projectTypeKey":"service_desk"}}}`, "0 jira.rest.issue jira_service_management 10001 - -"},
		"issue of chosen fields":    {`{"fields":{"summary":"s"}}`, "0 jira.rest.issue jira - - -"},
		"comment":                   {`{"id":"5","author":{"displayName":"Ann"},"body":"b"}`, "0 jira.rest.comment jira 5 - -"},
		"worklog":                   {`{"id":"6","author":{"displayName":"Ann"},"comment":"c","timeSpentSeconds":60}`, "0 jira.rest.worklog jira 6 - -"},
		"sprint":                    {`{"id":3,"state":"active","name":"n","goal":"g"}`, "0 jira.rest.sprint jira 3 - -"},
		"request":                   {`{"issueId":"1","issueKey":"HELP-1","requestTypeId":"9"}`, "0 jira.rest.request jira_service_management 1 - -"},
		"comment on a request":      {`{"id":"5","public":false,"body":"b","author":{"displayName":"Ann"}}`, "0 jira.rest.request_comment jira_service_management 5 - -"},
		"page":                      {`{"id":"7","type":"page","title":"t","_links":{"base":"https://acme.example/wiki"}}`, "0 confluence.rest.page confluence 7 acme.example -"},
		"blog post":                 {`{"id":"8","type":"blogpost","title":"t"}`, "0 confluence.rest.blogpost confluence 8 - -"},
		"page's comment":            {`{"id":"9","type":"comment","title":"Re: t"}`, "0 confluence.rest.comment confluence 9 - -"},
		"page, version 2":           {`{"id":"7","spaceId":"1","title":"t"}`, "0 confluence.rest.page confluence 7 - -"},
		"page's comment, version 2": {`{"id":"9","pageId":"7","body":{}}`, "0 confluence.rest.comment confluence 9 - -"},
		"row of a search":           {`{"content":{"id":"7","type":"page","title":"t"},"excerpt":"e","entityType":"content"}`, "0 confluence.rest.page confluence 7 - -"},
		"space around it":           {"\r\n {\"id\":\"7\",\"type\":\"page\",\"title\":\"t\"}\n", "0 confluence.rest.page confluence 7 - -"},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, []string{c.want}, unwrapped(t, c.raw)) })
	}
}

func TestUnwrapLists(t *testing.T) {
	const issue, page, comment, worklog, sprint, request = `{"id":"1","key":"A-1","fields":{}}`, `{"id":"7","type":"page","title":"t"}`,
		`{"id":"5","author":{},"body":"b"}`, `{"id":"6","timeSpent":"1h"}`, `{"id":3,"state":"active","name":"n","goal":"g"}`, `{"issueId":"2","issueKey":"A-2","requestTypeId":"9"}`
	for name, c := range map[string]struct {
		raw  string
		want []string
	}{
		"array":      {`[` + issue + `,` + page + `]`, []string{"0 jira.rest.issue jira 1 - -", "1 confluence.rest.page confluence 7 - -"}},
		"search":     {`{"startAt":0,"total":1,"issues":[` + issue + `]}`, []string{"0 jira.rest.issue jira 1 - -"}},
		"content":    {`{"results":[` + page + `],"_links":{"base":"https://acme.example"}}`, []string{"0 confluence.rest.page confluence 7 - -"}},
		"CQL search": {`{"results":[{"content":` + page + `,"entityType":"content"}]}`, []string{"0 confluence.rest.page confluence 7 - -"}},
		"comments":   {`{"comments":[` + comment + `,` + comment + `]}`, []string{"0 jira.rest.comment jira 5 - -", "1 jira.rest.comment jira 5 - -"}},
		"worklogs":   {`{"worklogs":[` + worklog + `]}`, []string{"0 jira.rest.worklog jira 6 - -"}},
		"values":     {`{"values":[` + sprint + `,` + request + `]}`, []string{"0 jira.rest.sprint jira 3 - -", "1 jira.rest.request jira_service_management 2 - -"}},
		"bad ones between": {`[` + issue + `,null,7,{"canary":1},` + page + `,[` + page + `]]`,
			[]string{"0 jira.rest.issue jira 1 - -", "1 empty_value", "2 wrapper_unknown", "3 wrapper_unknown", "4 confluence.rest.page confluence 7 - -", "5 wrapper_unknown"}},
		"doubled key in one":        {`[{"id":"1","id":"2","type":"page","title":"canary"},` + page + `]`, []string{"0 duplicate_key", "1 confluence.rest.page confluence 7 - -"}},
		"doubled list":              {`{"issues":[` + issue + `],"issues":[` + issue + `,` + issue + `]}`, []string{"0 duplicate_key"}},
		"events in structured mode": {`[{"specversion":"1.0","id":"a","source":"/s","data":` + page + `},{"specversion":"0.3"}]`, []string{"0 confluence.rest.page confluence 7 - -", "1 bad_headers specversion"}},
		"empty array":               {`[]`, []string{"0 empty_value"}},
		"empty list":                {`{"issues":[],"total":0}`, []string{"0 empty_value"}},
		"webhook with a list":       {`{"webhookEvent":"user_created","timestamp":1788256800123,"values":[` + page + `]}`, []string{"0 type_not_listed"}},
		"issue with a list":         {`{"id":"1","fields":{"summary":"s"},"comments":[` + comment + `]}`, []string{"0 jira.rest.issue jira 1 - -"}},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.want, unwrapped(t, c.raw)) })
	}
}

func TestUnwrapDrops(t *testing.T) {
	const sprint = `"webhookEvent":"sprint_created","sprint":{"id":3,"name":"canary"}`
	for name, c := range map[string]struct{ raw, want string }{
		"empty":                       {"", "empty_value"},
		"spaces":                      {" \r\n", "empty_value"},
		"null":                        {"null", "empty_value"},
		"cut off":                     {`{"id":"canary`, "malformed_json"},
		"prose":                       {`canary says hello`, "malformed_json"},
		"not UTF-8":                   {"{\"id\":\"canary\xff\"}", "invalid_utf8"},
		"too deep":                    {`{"canary":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `}`, "too_deep"},
		"number":                      {`7`, "wrapper_unknown"},
		"string":                      {`"canary"`, "wrapper_unknown"},
		"empty object":                {`{}`, "wrapper_unknown"},
		"unknown object":              {`{"message":"canary","payload":{"text":"canary"}}`, "wrapper_unknown"},
		"user":                        {`{"accountId":"1:a","displayName":"canary"}`, "type_not_listed"},
		"project":                     {`{"id":"1","self":"https://canary.example/","key":"ABC","name":"canary"}`, "type_not_listed"},
		"unlisted webhook":            {`{"timestamp":1788256800123,"webhookEvent":"user_created","user":{"displayName":"canary"}}`, "type_not_listed"},
		"webhook of no kind":          {`{"timestamp":1788256800123,"webhookEvent":"","x":"canary"}`, "type_not_listed"},
		"content of another type":     {`{"id":"1","type":"com.example.canary","title":"canary"}`, "type_not_listed"},
		"no timestamp":                {`{` + sprint + `}`, "no_event_time"},
		"timestamp is null":           {`{"timestamp":null,` + sprint + `}`, "no_event_time"},
		"timestamp is a date":         {`{"timestamp":"2026-09-01T10:00:00Z",` + sprint + `}`, "no_event_time"},
		"timestamp in seconds":        {`{"timestamp":1788256800,` + sprint + `}`, "no_event_time"},
		"timestamp in microseconds":   {`{"timestamp":1788256800123456,` + sprint + `}`, "no_event_time"},
		"timestamp is the zero time":  {`{"timestamp":-62135596800000,` + sprint + `}`, "no_event_time"},
		"largest timestamp":           {`{"timestamp":9223372036854775807,` + sprint + `}`, "no_event_time"},
		"timestamp of a page":         {`{"timestamp":1788256800,"page":{"id":7,"spaceKey":"DOC"}}`, "no_event_time"},
		"timestamp twice":             {`{"timestamp":1788256800123,"timestamp":1788256800124,` + sprint + `}`, "duplicate_key"},
		"kind twice":                  {`{"timestamp":1788256800123,"webhookEvent":"sprint_closed",` + sprint + `}`, "duplicate_key"},
		"larger than a value may be":  {`{"id":"1","fields":{"summary":"` + strings.Repeat("a", MaxValue) + `"}}`, "too_large"},
		"larger, behind spaces":       {strings.Repeat(" ", MaxValue) + `{"id":"1","fields":{}}`, "too_large"},
		"larger list than any":        {"[" + strings.Repeat(" ", 16*MaxValue) + "]", "too_large"},
		"one too large in a list":     {`[{"id":"1","fields":{"summary":"` + strings.Repeat("a", MaxValue) + `"}}]`, "too_large"},
		"one whose key is not UTF-8":  {"{\"\xed\xa0\x80\":1}", "invalid_utf8"},
		"two texts":                   {`{"id":"7","type":"page","title":"t"}{"id":"7"}`, "malformed_json"},
		"structured: no version":      {`{"specversion":null,"id":"canary","source":"/s","data":{}}`, "bad_headers specversion"},
		"structured: other version":   {`{"specversion":"2.0","id":"canary","source":"/s","data":{}}`, "bad_headers specversion"},
		"structured: no id":           {`{"specversion":"1.0","source":"/canary","data":{}}`, "bad_headers id"},
		"structured: id is a number":  {`{"specversion":"1.0","id":7,"source":"/canary","data":{}}`, "bad_headers id"},
		"structured: no source":       {`{"specversion":"1.0","id":"canary","data":{}}`, "bad_headers source"},
		"structured: no data":         {`{"specversion":"1.0","id":"canary","source":"/s"}`, "empty_value data"},
		"structured: data is null":    {`{"specversion":"1.0","id":"canary","source":"/s","data":null}`, "empty_value data"},
		"structured: data is a text":  {`{"specversion":"1.0","id":"a","source":"/s","data":"canary"}`, "wrong_type data"},
		"structured: unknown data":    {`{"specversion":"1.0","id":"a","source":"/s","type":"winnow.jira.rest.issue","data":{"canary":1}}`, "wrapper_unknown"},
		"structured: time is a word":  {`{"specversion":"1.0","id":"a","source":"/s","time":"canary","data":{"id":"7","type":"page","title":"t"}}`, "bad_headers time"},
		"structured: time is ms":      {`{"specversion":"1.0","id":"a","source":"/s","time":1788256800123,"data":{"id":"7","type":"page","title":"t"}}`, "bad_headers time"},
		"structured: time zero":       {`{"specversion":"1.0","id":"a","source":"/s","time":"0001-01-01T00:00:00Z","data":{"id":"7","type":"page","title":"t"}}`, "bad_headers time"},
		"structured: no type":         {`{"specversion":"1.0","id":"a","source":"/s","product":"trello","data":{"canary":1}}`, "bad_headers type"},
		"structured: id twice":        {`{"specversion":"1.0","id":"a","id":"b","source":"/s","data":{"id":"7","type":"page","title":"t"}}`, "duplicate_key"},
		"structured: data twice":      {`{"specversion":"1.0","id":"a","source":"/s","data":{"id":"7","type":"page","title":"t"},"data":{"canary":1}}`, "duplicate_key"},
		"structured: product twice":   {`{"specversion":"1.0","id":"a","source":"/s","product":"jira","product":"trello","data":{"id":"7","type":"page","title":"t"}}`, "duplicate_key"},
		"structured: tenant twice":    {`{"specversion":"1.0","id":"a","source":"/s","tenant":"t","tenant":"u","data":{"id":"7","type":"page","title":"t"}}`, "duplicate_key"},
		"structured: webhook no time": {`{"specversion":"1.0","id":"a","source":"/s","data":{` + sprint + `}}`, "no_event_time"},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, []string{"0 " + c.want}, unwrapped(t, c.raw)) })
	}
}

func TestUnwrapStructured(t *testing.T) {
	const page = `{"id":"7","type":"page","title":"t"}`
	hook := func(attributes, data string) Item {
		var got []Item
		var d Doc
		Unwrap(&d, []byte(`{"specversion":"1.0","id":"delivery-1","source":"/hooks"`+attributes+`,"data":`+data+`}`), func(_ int, it Item, err error) {
			require.NoError(t, err)
			got = append(got, it)
		})
		require.Len(t, got, 1)
		require.Equal(t, data, string(got[0].Value))
		return got[0]
	}
	it := hook(`,"type":"winnow.jira.rest.issue","tenant":"t-1","product":"confluence","time":"2026-09-01T12:00:00.5+02:00"`, page)
	require.Equal(t, "t-1", it.Tenant)
	require.Equal(t, "/hooks\x00delivery-1", it.ID, "an id is unique within its source")
	require.Equal(t, "winnow.confluence.rest.page", it.Type, "the form is read off the data, whatever the wrapper says")
	require.Equal(t, Confluence, it.Product)
	require.Equal(t, time.Date(2026, 9, 1, 10, 0, 0, 5e8, time.UTC), it.Time)

	it = hook("", page)
	require.Empty(t, it.Tenant)
	require.Equal(t, Confluence, it.Product)
	require.True(t, it.Time.IsZero())

	const sprint = `{"timestamp":1788256800123,"webhookEvent":"sprint_closed","sprint":{"id":3}}`
	require.Equal(t, time.Date(2026, 9, 1, 10, 0, 0, 123e6, time.UTC), hook("", sprint).Time)
	require.Equal(t, EffectiveDate, hook(`,"time":"2026-08-17T12:00:00Z"`, sprint).Time, "the wrapper's time goes before the payload's")
	require.Equal(t, ServiceManagement, hook(`,"product":"jira_service_management"`, sprint).Product)

	it = hook(`,"product":"trello","type":"com.example.card"`, `{"card":{"name":"c"}}`)
	require.False(t, it.Product.InScope())
	require.Equal(t, "com.example.card", it.Type, "the gate names the reason, not the door")
}

// Every line of the fixtures must be found or dropped as their pages say.
func TestUnwrapFixtures(t *testing.T) {
	for _, l := range fixtureLines(t, "events/*.jsonl") {
		for _, got := range unwrapped(t, string(l.text)) {
			if strings.Count(got, " ") < 3 {
				require.Contains(t, []string{"0 type_not_listed", "0 wrapper_unknown", "0 empty_value after"}, got, l.at)
			}
		}
	}
	for file, want := range map[string]string{"truncated.json": "malformed_json", "deep.json": "too_deep", "unknown-wrapper.json": "wrapper_unknown"} {
		for _, l := range fixtureLines(t, "bad/"+file) {
			require.Equal(t, []string{"0 " + want}, unwrapped(t, string(l.text)))
		}
	}
}

// within reports whether b is a part of all, not a copy.
func within(all, b []byte) bool {
	start, at := uintptr(unsafe.Pointer(unsafe.SliceData(all))), uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	return at >= start && at+uintptr(len(b)) <= start+uintptr(len(all))
}

func FuzzUnwrap(f *testing.F) {
	f.Add([]byte(`{"specversion":"1.0","id":"a","source":"/s","product":"trello","type":"winnow.jira.rest.issue","data":` + smallIssue + `}`))
	for _, c := range formCases {
		f.Add([]byte(c.payload))
		f.Add([]byte(`{"results":[` + c.payload + `,` + c.payload + `]}`))
		f.Add([]byte(`{"specversion":"1.0","id":"a","source":"/s","time":"2026-09-01T10:00:00Z","product":"jira","data":` + c.payload + `}`))
		f.Add([]byte(`{"type":"RECORD","record":{"emitted_at":1788256800123,"data":` + c.payload + `}}`))
		f.Add([]byte(`{"_airbyte_emitted_at":1788256800123,"_airbyte_data":` + mustJSON(c.payload) + `}`))
		f.Add([]byte(`{"before":` + c.payload + `,"after":` + c.payload + `,"op":"u","source":{"ts_ms":1788256800123}}`))
	}
	var reused Event
	f.Fuzz(func(t *testing.T, raw []byte) {
		before := bytes.Clone(raw)
		var d Doc
		calls := 0
		Unwrap(&d, raw, func(index int, it Item, err error) {
			require.Equal(t, calls, index)
			calls++
			var e *Error
			if err != nil {
				require.ErrorAs(t, err, &e)
				return
			}
			require.True(t, within(raw, it.Value) || bytes.ContainsRune(raw, '\\'), "it was no string, either")
			require.LessOrEqual(t, len(it.Value), len(raw))
			require.True(t, json.Valid(it.Value))
			require.Equal(t, byte('{'), it.Value[0])
			require.NotEmpty(t, it.Type)
			require.True(t, it.Time.IsZero() || usable(it.Time))
			reused.Envelope, reused.Value = it.Envelope, it.Value
			if err := reused.Parse(); err != nil {
				require.ErrorAs(t, err, &e)
				return
			}
			if it.Product.InScope() {
				require.Equal(t, it.Host, reused.Host, "the gate's two looks must see one host")
			}
			for _, x := range reused.Texts() {
				require.True(t, x.Value.Kind() == String || x.Format == ADF && x.Value.Kind() == Object)
			}
			for _, p := range reused.People(nil) {
				for id := range bytes.SplitSeq(p, []byte{0}) {
					require.NotEmpty(t, id)
				}
			}
		})
		require.Positive(t, calls, "a record that is neither found nor dropped")
		require.Equal(t, before, raw)
	})
}

func BenchmarkUnwrap(b *testing.B) {
	lines := fixtureLines(b, "events/*.jsonl")
	var d Doc
	size, found := 0, 0
	for _, l := range lines {
		size += len(l.text)
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		for _, l := range lines {
			Unwrap(&d, l.text, func(_ int, _ Item, err error) {
				if err == nil {
					found++
				}
			})
		}
	}
	require.Positive(b, found)
}
