package schema

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// wrapperIssue is a record that any wrapper may hold.
const wrapperIssue = `{"id":"10001","key":"ABC-7","self":"https://acme.example/rest/api/2/issue/10001","fields":{"summary":"Export fails"}}`

func TestUnwrapConnectors(t *testing.T) {
	const ms, sec = "1788256800123", "2026-09-01T10:00:00.123Z"
	const found = "0 jira.rest.issue jira 10001 acme.example " + sec
	quoted, err := json.Marshal(wrapperIssue)
	require.NoError(t, err)
	old := strings.Replace(wrapperIssue, "Export fails", "canary", 1)
	webhook := `{"timestamp":1788256800999,"webhookEvent":"jira:issue_updated","issue":` + wrapperIssue + `}`
	for name, c := range map[string]struct{ raw, want string }{
		"airbyte":                         {`{"type":"RECORD","record":{"stream":"issues","data":` + wrapperIssue + `,"emitted_at":` + ms + `}}`, found},
		"airbyte, data is a string":       {`{"type":"RECORD","record":{"stream":"issues","data":` + string(quoted) + `,"emitted_at":` + ms + `}}`, found},
		"airbyte, a webhook's own time":   {`{"type":"RECORD","record":{"data":` + webhook + `,"emitted_at":` + ms + `}}`, "0 jira.webhook.issue_updated jira 10001 acme.example 2026-09-01T10:00:00.999Z"},
		"airbyte state":                   {`{"type":"STATE","state":{"canary":1}}`, "0 type_not_listed"},
		"airbyte log":                     {`{"type":"LOG","log":{"level":"INFO","message":"canary"}}`, "0 type_not_listed"},
		"airbyte without a time":          {`{"type":"RECORD","record":{"data":` + wrapperIssue + `}}`, "0 no_event_time record.data"},
		"airbyte, time in seconds":        {`{"type":"RECORD","record":{"data":` + wrapperIssue + `,"emitted_at":1788256800}}`, "0 no_event_time record.data"},
		"airbyte without data":            {`{"type":"RECORD","record":{"emitted_at":` + ms + `}}`, "0 empty_value record.data"},
		"airbyte, data is a list":         {`{"type":"RECORD","record":{"data":[` + wrapperIssue + `],"emitted_at":` + ms + `}}`, "0 wrong_type record.data"},
		"airbyte, data is no JSON":        {`{"type":"RECORD","record":{"data":"canary {","emitted_at":` + ms + `}}`, "0 malformed_json record.data"},
		"airbyte, unknown data":           {`{"type":"RECORD","record":{"data":{"canary":1},"emitted_at":` + ms + `}}`, "0 wrapper_unknown"},
		"airbyte in airbyte":              {`{"type":"RECORD","record":{"data":{"type":"RECORD","record":{"data":` + wrapperIssue + `,"emitted_at":` + ms + `}},"emitted_at":` + ms + `}}`, "0 wrapper_unknown"},
		"a key twice in a string":         {`{"type":"RECORD","record":{"data":"{\"id\":\"1\",\"id\":\"2\",\"fields\":{\"summary\":\"canary\"}}","emitted_at":` + ms + `}}`, "0 duplicate_key record.data"},
		"a change as a search result":     {`{"results":[{"entityType":"content","content":{"op":"u","before":{"displayName":"canary"},"after":{},"id":"7","type":"page","title":"t"}}]}`, "0 wrapper_unknown"},
		"a change beside a search result": {`{"type":"RECORD","record":{"emitted_at":` + ms + `,"data":{"op":"u","before":{"displayName":"canary"},"entityType":"content","content":{"id":"7","type":"page","title":"t"}}}}`, "0 wrapper_unknown"},
		"a search result in airbyte":      {`{"type":"RECORD","record":{"emitted_at":` + ms + `,"data":{"entityType":"content","content":{"id":"7","type":"page","title":"t"}}}}`, "0 confluence.rest.page confluence 7 - " + sec},
		"a state with a record beside":    {`{"type":"STATE","state":{},"record":{"data":` + wrapperIssue + `,"emitted_at":` + ms + `}}`, "0 type_not_listed"},
		"a change with a page's members":  {`{"type":"RECORD","record":{"emitted_at":` + ms + `,"data":{"op":"u","before":{"displayName":"canary"},"after":{},"id":"7","type":"page","title":"t"}}}`, "0 wrapper_unknown"},
		"cloudevent in airbyte":           {`{"type":"RECORD","record":{"emitted_at":` + ms + `,"data":{"specversion":"1.0","id":"a","source":"/s","data":` + wrapperIssue + `}}}`, "0 wrapper_unknown"},
		"cloudevent of a page's members":  {`{"specversion":"1.0","id":"a","source":"/s","type":"t","data":{"op":"u","before":{"displayName":"canary"},"after":{},"id":"7","type":"page","title":"t"}}`, "0 wrapper_unknown"},
		"a delete with a list beside":     {`{"op":"d","before":` + old + `,"after":null,"source":{},"values":[` + wrapperIssue + `]}`, "0 empty_value after"},
		"debezium tombstone with schema":  {`{"schema":null,"payload":null}`, "0 empty_value payload"},
		"a time of no zone":               {`{"_airbyte_raw_id":"u","_airbyte_extracted_at":"2026-08-17 13:00:00","_airbyte_data":` + wrapperIssue + `}`, "0 no_event_time _airbyte_data"},
		"RECORD without a record":         {`{"type":"RECORD","canary":1}`, "0 wrapper_unknown"},
		"airbyte row":                     {`{"_airbyte_ab_id":"u","_airbyte_emitted_at":` + ms + `,"_airbyte_data":` + wrapperIssue + `}`, found},
		"airbyte row, a string, RFC 3339": {`{"_airbyte_raw_id":"u","_airbyte_extracted_at":"` + sec + `","_airbyte_data":` + string(quoted) + `}`, found},
		"airbyte row, a warehouse's time": {`{"_airbyte_raw_id":"u","_airbyte_extracted_at":"2026-09-01 10:00:00.123+0000","_airbyte_data":` + wrapperIssue + `}`, found},
		"airbyte row, BigQuery's time":    {`{"_airbyte_raw_id":"u","_airbyte_extracted_at":"2026-09-01 10:00:00.123 UTC","_airbyte_data":` + wrapperIssue + `}`, found},
		"airbyte row, Snowflake's time":   {`{"_airbyte_raw_id":"u","_airbyte_extracted_at":"2026-09-01 03:00:00.123 -0700","_airbyte_data":` + wrapperIssue + `}`, found},
		"airbyte row, PostgreSQL's time":  {`{"_airbyte_raw_id":"u","_airbyte_extracted_at":"2026-09-01 12:00:00.123+02","_airbyte_data":` + wrapperIssue + `}`, found},
		"airbyte row, a zone's name":      {`{"_airbyte_raw_id":"u","_airbyte_extracted_at":"2026-09-01 10:00:00.123 EST","_airbyte_data":` + wrapperIssue + `}`, "0 no_event_time _airbyte_data"},
		"airbyte row without a time":      {`{"_airbyte_raw_id":"u","_airbyte_data":` + wrapperIssue + `}`, "0 no_event_time _airbyte_data"},

		"debezium create":              {`{"before":null,"after":` + wrapperIssue + `,"source":{"ts_ms":` + ms + `},"op":"c","ts_ms":1788256899999}`, found},
		"debezium update":              {`{"before":` + old + `,"after":` + wrapperIssue + `,"source":{"ts_ms":` + ms + `},"op":"u","ts_ms":1788256899999}`, found},
		"debezium without source time": {`{"after":` + wrapperIssue + `,"source":{},"op":"u","ts_ms":` + ms + `}`, found},
		"debezium snapshot":            {`{"before":null,"after":` + wrapperIssue + `,"source":{"ts_ms":1},"op":"r","ts_ms":` + ms + `}`, found},
		"debezium with its schema":     {`{"schema":{"type":"struct"},"payload":{"before":` + old + `,"after":` + wrapperIssue + `,"source":{"ts_ms":` + ms + `},"op":"u"}}`, found},
		"debezium, a document":         {`{"after":` + string(quoted) + `,"source":{"ts_ms":` + ms + `},"op":"u"}`, found},
		"debezium delete":              {`{"before":` + old + `,"after":null,"source":{"ts_ms":` + ms + `},"op":"d"}`, "0 empty_value after"},
		"debezium delete with after":   {`{"before":` + old + `,"after":` + old + `,"source":{"ts_ms":` + ms + `},"op":"d"}`, "0 empty_value after"},
		"debezium update to nothing":   {`{"before":` + old + `,"after":null,"source":{"ts_ms":` + ms + `},"op":"u"}`, "0 empty_value after"},
		"debezium truncate":            {`{"source":{"ts_ms":` + ms + `},"op":"t"}`, "0 type_not_listed"},
		"debezium message":             {`{"source":{"ts_ms":` + ms + `},"op":"m","message":{"content":"canary"}}`, "0 type_not_listed"},
		"debezium of an unknown kind":  {`{"after":` + wrapperIssue + `,"source":{},"op":"canary"}`, "0 wrapper_unknown op"},
		"debezium without a time":      {`{"after":` + wrapperIssue + `,"op":"u"}`, "0 no_event_time ts_ms"},
		"debezium, a row of a table":   {`{"before":null,"after":{"summary":"canary","issuenum":4},"source":{"ts_ms":` + ms + `},"op":"c"}`, "0 wrapper_unknown"},
		"debezium in airbyte":          {`{"type":"RECORD","record":{"data":{"after":` + wrapperIssue + `,"op":"u","source":{"ts_ms":` + ms + `}},"emitted_at":` + ms + `}}`, "0 wrapper_unknown"},
		"cloudevent of debezium":       {`{"specversion":"1.0","id":"a","source":"/s","type":"t","data":{"after":` + wrapperIssue + `,"op":"u","source":{"ts_ms":` + ms + `}}}`, "0 wrapper_unknown"},

		"workflow":           {`{"values":[{"id":{"name":"Ann's way","entityId":"4f"},"transitions":[],"statuses":[],"isDefault":false}]}`, "0 jira.rest.workflow jira 4f - -"},
		"default workflow":   {`{"id":{"name":"jira","entityId":"4f"},"transitions":[],"statuses":[],"isDefault":true}`, "0 type_not_listed"},
		"status":             {`[{"self":"https://acme.example/rest/api/3/status/10","name":"Waiting for Ann","id":"10","statusCategory":{"key":"new"}}]`, "0 jira.rest.status jira 10 acme.example -"},
		"status, new search": {`{"values":[{"id":"10","name":"Waiting","statusCategory":"TODO","scope":{"type":"GLOBAL"}}]}`, "0 jira.rest.status jira 10 - -"},
		"emoji":              {`{"id":"e1","shortName":":ann:","type":"SITE","fallback":":ann:"}`, "0 confluence.rest.emoji confluence e1 - -"},
		"everybody's emoji":  {`{"id":"1f600","shortName":":grinning:","type":"STANDARD","fallback":"x"}`, "0 type_not_listed"},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, []string{c.want}, unwrapped(t, c.raw)) })
	}
}

// What a row was before its change is not passed on, whatever it is named.
func TestBeforeIsNotPassedOn(t *testing.T) {
	for _, after := range []string{wrapperIssue, string(mustJSON(wrapperIssue))} {
		var d Doc
		found := 0
		Unwrap(&d, []byte(`{"before":{"id":"1","fields":{"summary":"canary"}},"after":`+after+`,"op":"u","ts_ms":1788256800123}`), func(_ int, it Item, err error) {
			require.NoError(t, err)
			require.JSONEq(t, wrapperIssue, string(it.Value))
			found++
		})
		require.Equal(t, 1, found)
	}
}

// A door keeps values in a batch while it reads on with the same Doc.
func TestValueOutOfAStringStays(t *testing.T) {
	line := func(issue string) []byte {
		return []byte(`{"type":"RECORD","record":{"emitted_at":1788256800123,"data":` + mustJSON(issue) + `}}`)
	}
	var d Doc
	var first []byte
	Unwrap(&d, line(wrapperIssue), func(_ int, it Item, err error) {
		require.NoError(t, err)
		first = it.Value
	})
	Unwrap(&d, line(strings.ReplaceAll(wrapperIssue, "1", "2")), func(_ int, it Item, err error) { require.NoError(t, err) })
	require.Equal(t, wrapperIssue, string(first))
}

func binaryHeaders(change func(map[string]string)) []Header {
	h := map[string]string{"ce_specversion": "1.0", "ce_id": "a", "ce_source": "/s", "ce_type": "com.example.issue", "ce_time": "2026-09-01T10:00:00Z", "ce_tenant": "t", "ce_product": "jira"}
	change(h)
	var hs []Header
	for _, k := range []string{"ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time", "ce_tenant", "ce_product", "content-type", "traceparent"} {
		if v, ok := h[k]; ok {
			hs = append(hs, Header{k, []byte(v)})
		}
	}
	return hs
}

func TestUnwrapBinary(t *testing.T) {
	nothing := func(map[string]string) {}
	set := func(k, v string) func(map[string]string) { return func(h map[string]string) { h[k] = v } }
	without := func(k string) func(map[string]string) { return func(h map[string]string) { delete(h, k) } }
	var d Doc
	it, err := UnwrapBinary(&d, binaryHeaders(nothing), []byte(wrapperIssue))
	require.NoError(t, err)
	require.Equal(t, Item{Envelope: Envelope{ID: "/s\x00a", Type: "winnow.jira.rest.issue", Time: time.Date(2026, 9, 1, 10, 0, 0, 0, time.UTC), Tenant: "t", Product: Jira, Host: "acme.example"},
		Entity: "10001", Value: []byte(wrapperIssue)}, it)
	// The structured mode says the same.
	Unwrap(&d, []byte(`{"specversion":"1.0","id":"a","source":"/s","type":"com.example.issue","time":"2026-09-01T10:00:00Z","tenant":"t","product":"jira","data":`+wrapperIssue+`}`), func(_ int, same Item, err error) {
		require.NoError(t, err)
		require.Equal(t, it, same)
	})
	for name, c := range map[string]struct {
		change func(map[string]string)
		value  string
		want   string // the fault, or the product and time
	}{
		"no time":               {without("ce_time"), wrapperIssue, "jira 0001-01-01"},
		"no product":            {without("ce_product"), wrapperIssue, "jira 2026-09-01"},
		"no tenant":             {without("ce_tenant"), wrapperIssue, "jira 2026-09-01"},
		"no type":               {without("ce_type"), wrapperIssue, "jira 2026-09-01"},
		"of another product":    {set("ce_product", "trello"), `{"canary":1}`, "trello 2026-09-01"},
		"… without a type":      {func(h map[string]string) { h["ce_product"] = "trello"; delete(h, "ce_type") }, `{"canary":1}`, "bad_headers at ce_type"},
		"another version":       {set("ce_specversion", "0.3"), wrapperIssue, "bad_headers at ce_specversion"},
		"no id":                 {without("ce_id"), wrapperIssue, "bad_headers at ce_id"},
		"control character":     {set("ce_source", "a\x00b"), wrapperIssue, "bad_headers at ce_source"},
		"no source":             {without("ce_source"), wrapperIssue, "bad_headers at ce_source"},
		"a long header":         {set("ce_id", strings.Repeat("a", 513)), wrapperIssue, "bad_headers at ce_id"},
		"not UTF-8":             {set("ce_tenant", "\xff"), wrapperIssue, "bad_headers at ce_tenant"},
		"a time that is none":   {set("ce_time", "yesterday"), wrapperIssue, "bad_headers at ce_time"},
		"a time in the future":  {set("ce_time", "2990-01-01T00:00:00Z"), wrapperIssue, "bad_headers at ce_time"},
		"others' headers":       {set("traceparent", "\xff"), wrapperIssue, "jira 2026-09-01"},
		"JSON by its type":      {set("content-type", "Application/Vnd.Example+JSON; charset=utf-8"), wrapperIssue, "jira 2026-09-01"},
		"another content type":  {set("content-type", "application/avro"), wrapperIssue, "bad_headers at content-type"},
		"no value":              {nothing, " ", "empty_value"},
		"too large":             {nothing, `{"canary":"` + strings.Repeat("a", MaxValue) + `"}`, "too_large"},
		"not JSON":              {nothing, `{"canary`, "malformed_json (byte 8)"},
		"not an object":         {nothing, `["canary"]`, "wrong_type (byte 0)"},
		"a form nobody knows":   {nothing, `{"canary":1}`, "wrapper_unknown"},
		"a key twice":           {nothing, `{"id":"1","id":"2","fields":{"summary":"canary"}}`, "duplicate_key"},
		"a wrapper in the data": {nothing, `{"type":"RECORD","record":{"data":` + wrapperIssue + `,"emitted_at":1788256800123}}`, "wrapper_unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			hs := binaryHeaders(c.change)
			it, err := UnwrapBinary(&d, hs, []byte(c.value))
			if err != nil {
				require.Equal(t, c.want, err.Error())
				require.Zero(t, it)
				return
			}
			require.Equal(t, c.want, fmt.Sprint(it.Product, " ", it.Time.Format(time.DateOnly)))
		})
	}
	require.True(t, IsBinary(binaryHeaders(nothing)))
	require.True(t, IsBinary(binaryHeaders(without("ce_specversion"))), "it names a tenant; the fault is found when it is unwrapped")
	require.False(t, IsBinary([]Header{{"traceparent", nil}}))
	require.False(t, IsBinary(append(binaryHeaders(nothing), Header{"content-type", []byte("Application/CloudEvents+JSON; charset=utf-8")})))
	twice := append(binaryHeaders(nothing), Header{"ce_tenant", []byte("u")})
	_, err = UnwrapBinary(&d, twice, []byte(wrapperIssue))
	require.EqualError(t, err, "bad_headers at ce_tenant")
}

// Wrappers of wrappers take linear time, and end.
func TestWrappersLinearTime(t *testing.T) {
	requireLinear(t, func(n int) time.Duration {
		raw := []byte(`{"type":"RECORD","record":{"emitted_at":1788256800123,"data":` + mustJSON(`{"fields":{"summary":`+mustJSON(strings.Repeat("\\\"", n))+`}}`) + `}}`)
		return fastest(t, func() {
			var d Doc
			Unwrap(&d, raw, func(int, Item, error) {})
		})
	}, 50_000)
}

func FuzzUnwrapBinary(f *testing.F) {
	f.Add("1.0", "a", "/s", "t", "2026-09-01T10:00:00Z", "acme", "jira", []byte(wrapperIssue))
	f.Add("1.0", "a", "/s", "t", "", "", "trello", []byte(`{}`))
	for _, c := range formCases {
		f.Add("1.0", "a", "/s", "t", "", "", "", []byte(c.payload))
	}
	f.Fuzz(func(t *testing.T, version, id, source, kind, at, tenant, product string, raw []byte) {
		before := bytes.Clone(raw)
		hs := []Header{{"ce_specversion", []byte(version)}, {"ce_id", []byte(id)}, {"ce_source", []byte(source)}, {"ce_type", []byte(kind)}, {"ce_time", []byte(at)}, {"ce_tenant", []byte(tenant)}, {"ce_product", []byte(product)}}
		var d Doc
		it, err := UnwrapBinary(&d, hs, raw)
		require.Equal(t, before, raw)
		if err != nil {
			var e *Error
			require.ErrorAs(t, err, &e)
			require.Zero(t, it)
			return
		}
		require.Equal(t, tenant, it.Tenant)
		require.True(t, json.Valid(it.Value))
		if it.Product.InScope() {
			require.NotNil(t, forms[strings.TrimPrefix(it.Type, TypePrefix)])
		}
	})
}
