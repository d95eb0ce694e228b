package schema

import (
	"bytes"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Item is one event found in what a door was handed. Time is zero when the
// form has no event time of its own (REST exports), ID and Tenant are empty
// when the wrapper names none.
type Item struct {
	Envelope
	Entity string // id of the issue, page, … that the event is about; orders events of one entity
	Value  []byte // the event's own JSON: a slice of the input, or new memory where the input holds it as a string
}

// Unwrap recognises the form of one JSON text and yields each event in it, or
// the reason why there is none, with its index among the text's records. It
// knows Jira webhooks, Confluence webhooks, REST issues, pages, comments,
// worklogs, sprints, service requests, workflows, statuses and emoji, REST
// result lists and arrays of these; and as wrappers of one of these, CloudEvents
// 1.0 in structured mode, Airbyte's messages and raw rows, and Debezium's change
// events. A wrapper in a wrapper is none of these. Unknown forms are dropped,
// never guessed. The texts and people in the payload are not looked at.
func Unwrap(d *Doc, raw []byte, yield func(index int, it Item, err error)) {
	switch {
	case len(bytes.TrimSpace(raw)) == 0:
		yield(0, Item{}, &Error{Reason: ReasonEmptyValue, Offset: -1})
		return
	case len(raw) > MaxValue && (len(raw) > 16*MaxValue || !isList(raw)):
		yield(0, Item{}, &Error{Reason: ReasonTooLarge, Offset: -1})
		return
	}
	if err := d.Parse(raw); err != nil {
		yield(0, Item{}, err)
		return
	}
	index := 0
	list := listOf(d.Root())
	shared := d.dup
	one := func(v Value) {
		d.dup = shared // what one record names twice is not held against the next
		it, err := item(v)
		if err == nil && len(it.Value) > MaxValue {
			err = &Error{Reason: ReasonTooLarge, Offset: -1}
		}
		if err == nil && d.Ambiguous() {
			err = &Error{Reason: ReasonDuplicateKey, Offset: -1}
		}
		if err != nil {
			it = Item{}
		}
		yield(index, it, err)
		index++
	}
	if list.d == nil {
		one(d.Root())
		return
	}
	for el, ok := list.First(); ok; el, ok = el.Next(list) {
		one(el)
	}
	if index == 0 {
		yield(0, Item{}, &Error{Reason: ReasonEmptyValue, Offset: -1})
	}
}

// isList says by its first byte whether a large text may hold many records; a
// single record above MaxValue is refused unread.
func isList(raw []byte) bool { return bytes.HasPrefix(bytes.TrimSpace(raw), []byte("[")) }

// listOf returns the array of records in a REST result list, or the zero Value.
func listOf(root Value) Value {
	if root.Kind() == Array {
		return root
	}
	if root.Has("webhookEvent") || root.Has("fields") || isWrapper(root) {
		return Value{}
	}
	for _, k := range []string{"issues", "results", "worklogs", "comments", "values"} {
		if v := root.Get(k); v.Kind() == Array {
			return v
		}
	}
	return Value{}
}

func item(v Value) (Item, error) {
	if v.Kind() == Null {
		return Item{}, &Error{Reason: ReasonEmptyValue, Offset: -1}
	}
	if v.Kind() != Object {
		return Item{}, &Error{Reason: ReasonWrapperUnknown, Offset: -1}
	}
	switch {
	case v.Has("specversion"):
		return structured(v)
	case isAirbyte(v):
		return airbyte(v)
	case isDebezium(v):
		return debezium(v)
	case isDebeziumWithSchema(v):
		return debezium(v.Get("payload"))
	}
	return bare(v)
}

// isWrapper reports whether v is of a form that holds a record, whatever stands
// beside it.
func isWrapper(v Value) bool {
	return v.Has("specversion") || isAirbyte(v) || isDebezium(v) || isDebeziumWithSchema(v)
}

// bare is a record that stands in no wrapper, or in the only one.
func bare(v Value) (Item, error) {
	outer := v
	if c := v.Get("content"); c.Kind() == Object && v.Has("entityType") {
		v = c // a row of a search result; its excerpt is a rendered copy
	}
	if isWrapper(outer) || isWrapper(v) {
		// Also one with the members of a record: what it wraps would go along.
		return Item{}, &Error{Reason: ReasonWrapperUnknown, Offset: -1}
	}
	name, at, err := sniff(v)
	if err != nil {
		return Item{}, err
	}
	return describe(v, name, at), nil
}

// wrapped is the record that a wrapper holds at a path, as an object or as a
// string of JSON. It has the wrapper's time unless it has its own.
func wrapped(v Value, path string, at time.Time) (Item, error) {
	if v.Kind() == String {
		var d Doc // v's own is being read
		if err := d.Parse(bytes.Clone(v.Bytes())); err != nil {
			return Item{}, &Error{Reason: ReasonOf(err), Path: path, Offset: -1}
		}
		v = d.Root()
	}
	switch v.Kind() {
	case Missing, Null:
		return Item{}, &Error{Reason: ReasonEmptyValue, Path: path, Offset: -1}
	case Object:
	default:
		return Item{}, &Error{Reason: ReasonWrongType, Path: path, Offset: -1}
	}
	it, err := bare(v)
	if err == nil && v.d.Ambiguous() {
		err = &Error{Reason: ReasonDuplicateKey, Path: path, Offset: -1}
	}
	if it.Time.IsZero() {
		it.Time = at
	}
	return it, err
}

// airbyteTypes are the messages of the Airbyte protocol, and the member that each
// has
// (https://docs.airbyte.com/understanding-airbyte/airbyte-protocol).
var airbyteTypes = map[string]string{
	"RECORD": "record", "DESTINATION_CATALOG": "destination_catalog",
	"STATE": "state", "LOG": "log", "TRACE": "trace", "SPEC": "spec", "CATALOG": "catalog", "CONNECTION_STATUS": "connectionStatus", "CONTROL": "control",
}

// isAirbyte reports whether v is a message of the Airbyte protocol, or a row
// that one of its destinations writes.
func isAirbyte(v Value) bool {
	if v.Has("_airbyte_data") {
		return true
	}
	t := v.Get("type")
	if t.Kind() != String {
		return false
	}
	member := airbyteTypes[string(t.Bytes())]
	return member != "" && v.Get(member).Kind() == Object
}

// airbyte unwraps a RECORD, or a raw row. What it holds was read at the time
// that it names: like a REST export, it has no other.
func airbyte(v Value) (Item, error) {
	data, read, path := v.Get("_airbyte_data"), v.Get("_airbyte_extracted_at"), "_airbyte_data"
	if read.Absent() {
		read = v.Get("_airbyte_emitted_at")
	}
	if !v.Has("_airbyte_data") {
		if !v.Get("type").equal("RECORD") {
			return Item{}, &Error{Reason: ReasonNotListed, Offset: -1}
		}
		r := v.Get("record")
		data, read, path = r.Get("data"), r.Get("emitted_at"), "record.data"
	}
	at, ok := moment(read)
	if !ok {
		return Item{}, &Error{Reason: ReasonNoTime, Path: path, Offset: -1}
	}
	return wrapped(data, path, at)
}

// moment reads milliseconds since 1970, or RFC 3339 as warehouses write it: with
// a space for the T or before the offset, an offset of hours alone, or UTC. A
// time without an offset could be of either side of T0, and is none.
func moment(v Value) (at time.Time, ok bool) {
	if ms, ok := v.Int(); ok {
		at = time.UnixMilli(ms).UTC()
		return at, usable(at)
	}
	s := strings.Replace(string(v.Bytes()), " ", "T", 1)
	s = strings.Replace(s, " ", "", 1)
	if local, ok := strings.CutSuffix(s, "UTC"); ok {
		s = local + "Z"
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999Z0700", "2006-01-02T15:04:05.999999999Z07"} {
		if at, err := time.Parse(layout, s); err == nil {
			return at.UTC(), usable(at)
		}
	}
	return at, false
}

// isDebezium reports whether v is the payload of a change event
// (https://debezium.io/documentation/reference/stable/connectors/postgresql.html#postgresql-change-events-value).
func isDebezium(v Value) bool {
	return v.Get("op").Kind() == String && (v.Has("before") || v.Has("after") || v.Get("source").Kind() == Object)
}

// isDebeziumWithSchema reports whether v is a change event beside its schema. One
// without a payload is a tombstone.
func isDebeziumWithSchema(v Value) bool {
	return v.Has("schema") && v.Has("payload") && (isDebezium(v.Get("payload")) || v.Get("payload").Absent())
}

// debezium unwraps the state after a change. The state before it may hold what
// its people have had removed: it is never looked at.
func debezium(v Value) (Item, error) {
	if v.Absent() {
		return Item{}, &Error{Reason: ReasonEmptyValue, Path: "payload", Offset: -1}
	}
	when := v.Get("ts_ms")
	switch op := v.Get("op"); {
	case op.equal("c"), op.equal("u"):
		if s := v.Path("source", "ts_ms"); !s.Absent() {
			when = s // of the change; ts_ms is that of the connector
		}
	case op.equal("r"):
	case op.equal("d"):
		return Item{}, &Error{Reason: ReasonEmptyValue, Path: "after", Offset: -1}
	case op.equal("t"), op.equal("m"):
		return Item{}, &Error{Reason: ReasonNotListed, Offset: -1}
	default:
		return Item{}, &Error{Reason: ReasonWrapperUnknown, Path: "op", Offset: -1}
	}
	after := v.Get("after")
	if after.Absent() {
		return Item{}, &Error{Reason: ReasonEmptyValue, Path: "after", Offset: -1}
	}
	at, ok := moment(when)
	if !ok {
		return Item{}, &Error{Reason: ReasonNoTime, Path: "ts_ms", Offset: -1}
	}
	return wrapped(after, "after", at)
}

// structured unwraps a CloudEvents 1.0 event in structured JSON mode
// (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md).
// Its own attributes name the tenant, the time and the product; the form is
// still read off the data.
func structured(v Value) (Item, error) {
	data := v.Get("data")
	text := func(k string) string { return string(v.Get(k).Bytes()) }
	a := attributes{version: text("specversion"), id: text("id"), source: text("source"), kind: text("type"), tenant: text("tenant"), product: text("product"), time: text("time")}
	if t := v.Get("time"); !t.Absent() && t.Kind() != String {
		a.time = "not a string"
	}
	if err := a.check(""); err != nil {
		return Item{}, err
	}
	if data.Absent() {
		return Item{}, &Error{Reason: ReasonEmptyValue, Path: "data", Offset: -1}
	}
	if data.Kind() != Object {
		return Item{}, &Error{Reason: ReasonWrongType, Path: "data", Offset: -1}
	}
	return a.event(data, "")
}

// IsBinary reports whether headers are those of a CloudEvents message in binary
// mode, whole or not: one that names a tenant must not be taken for a message
// that names none. In structured mode the headers only repeat what the value
// says.
func IsBinary(hs []Header) bool {
	structured := slices.ContainsFunc(hs, func(h Header) bool {
		return h.Key == headerContentType && strings.HasPrefix(strings.ToLower(string(h.Value)), "application/cloudevents")
	})
	return !structured && slices.ContainsFunc(hs, func(h Header) bool { return strings.HasPrefix(h.Key, "ce_") })
}

// UnwrapBinary unwraps a CloudEvents 1.0 message in binary mode
// (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md §3.2),
// by the rules of the structured one: its headers name the id, the tenant, the
// time and the product, and the form is read off the value. A content type, if
// there is one, must be of JSON.
func UnwrapBinary(d *Doc, hs []Header, raw []byte) (Item, error) {
	var a attributes
	content := "application/json"
	places := map[string]*string{headerSpecVersion: &a.version, headerID: &a.id, headerSource: &a.source, headerType: &a.kind,
		headerTime: &a.time, headerTenant: &a.tenant, headerProduct: &a.product, headerContentType: &content}
	seen := map[string]bool{}
	for _, h := range hs {
		to, ok := places[h.Key]
		if !ok {
			continue
		}
		if seen[h.Key] || len(h.Value) > 512 || !utf8.Valid(h.Value) {
			return Item{}, &Error{Reason: ReasonBadHeaders, Path: h.Key, Offset: -1}
		}
		seen[h.Key] = true
		*to = string(h.Value)
	}
	if err := a.check("ce_"); err != nil {
		return Item{}, err
	}
	switch {
	case !isJSON(content):
		return Item{}, &Error{Reason: ReasonBadHeaders, Path: headerContentType, Offset: -1}
	case len(bytes.TrimSpace(raw)) == 0:
		return Item{}, &Error{Reason: ReasonEmptyValue, Offset: -1}
	case len(raw) > MaxValue:
		return Item{}, &Error{Reason: ReasonTooLarge, Offset: -1}
	}
	if err := d.Parse(raw); err != nil {
		return Item{}, err
	}
	if d.Root().Kind() != Object {
		return Item{}, &Error{Reason: ReasonWrongType, Offset: 0}
	}
	it, err := a.event(d.Root(), "ce_")
	if err == nil && d.Ambiguous() {
		err = &Error{Reason: ReasonDuplicateKey, Offset: -1}
	}
	if err != nil {
		return Item{}, err
	}
	return it, nil
}

// isJSON reports whether a media type is one of JSON
// (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md §3.1).
func isJSON(content string) bool {
	media, _, _ := strings.Cut(strings.ToLower(content), ";")
	media = strings.TrimSpace(media)
	return strings.HasSuffix(media, "/json") || strings.HasSuffix(media, "+json")
}

// attributes are those of a CloudEvent that we read.
type attributes struct{ version, id, source, kind, time, tenant, product string }

// check refuses attributes that are missing or malformed; prefix stands before
// their names in the error.
func (a *attributes) check(prefix string) error {
	bad := ""
	switch {
	case a.version != "1.0":
		bad = "specversion"
	case a.id == "" || hasControl([]byte(a.id)):
		bad = "id"
	case a.source == "" || hasControl([]byte(a.source)):
		bad = "source"
	default:
		return nil
	}
	return &Error{Reason: ReasonBadHeaders, Path: prefix + bad, Offset: -1}
}

// event is the event of a CloudEvent whose data is an object.
func (a *attributes) event(data Value, prefix string) (Item, error) {
	bad := func(path string) (Item, error) {
		return Item{}, &Error{Reason: ReasonBadHeaders, Path: prefix + path, Offset: -1}
	}
	product := Product(a.product)
	var it Item
	if product != "" && !product.InScope() {
		// Not ours to read; the gate names the reason.
		it = Item{Value: data.Raw()}
		if it.Type = a.kind; it.Type == "" {
			return bad("type")
		}
	} else {
		var err error
		if it, err = bare(data); err != nil {
			return Item{}, err
		}
	}
	if product != "" {
		it.Product = product
	}
	it.ID = a.source + "\x00" + a.id // neither holds a NUL, so no two pairs are one
	it.Tenant = a.tenant
	if a.time != "" {
		at, err := time.Parse(time.RFC3339Nano, a.time)
		if err != nil || !usable(at) {
			return bad("time")
		}
		it.Time = at.UTC()
	}
	return it, nil
}

// hasControl reports whether b holds a control character, which CloudEvents
// forbids in a string.
func hasControl(b []byte) bool {
	return bytes.ContainsFunc(b, unicode.IsControl)
}

func describe(v Value, name string, at time.Time) Item {
	f := forms[name]
	it := Item{Value: v.Raw()}
	for _, p := range f.entity {
		if it.Entity = string(walk(v, p).Scalar()); it.Entity != "" {
			break
		}
	}
	it.Type, it.Time = TypePrefix+name, at
	it.Product = Jira
	switch {
	case strings.HasPrefix(name, "confluence."):
		it.Product = Confluence
	case strings.HasPrefix(name, "jira.rest.request"),
		v.Path("fields", "project", "projectTypeKey").equal("service_desk"),
		v.Path("issue", "fields", "project", "projectTypeKey").equal("service_desk"):
		it.Product = ServiceManagement
	}
	it.Host = f.host(v)
	return it
}

// sniff names the form of one record, and its own event time if it has one.
func sniff(v Value) (string, time.Time, error) {
	no := func(r Reason) (string, time.Time, error) {
		return "", time.Time{}, &Error{Reason: r, Offset: -1}
	}
	if e := v.Get("webhookEvent"); e.Kind() == String {
		name := "jira.webhook." + strings.TrimPrefix(string(e.Bytes()), "jira:")
		if forms[name] == nil {
			return no(ReasonNotListed)
		}
		ms, ok := v.Get("timestamp").Int()
		if at := time.UnixMilli(ms).UTC(); ok && usable(at) {
			return name, at, nil
		}
		return no(ReasonNoTime)
	}
	if ms, ok := v.Get("timestamp").Int(); ok && v.Kind() == Object {
		at := time.UnixMilli(ms).UTC()
		for _, k := range []string{"comment", "page", "blogpost", "blog"} {
			if o := v.Get(k); o.Kind() == Object && (o.Has("spaceKey") || o.Has("contentType")) {
				if !usable(at) {
					return no(ReasonNoTime)
				}
				return "confluence.webhook." + k, at, nil
			}
		}
	}
	rest := func(name string) (string, time.Time, error) { return name, time.Time{}, nil }
	kind := string(v.Get("type").Bytes())
	switch {
	case v.Get("fields").Kind() == Object && (v.Has("key") || v.Has("id") || v.Path("fields", "summary").Kind() == String):
		return rest("jira.rest.issue")
	case v.Has("timeSpentSeconds") || v.Has("timeSpent"):
		return rest("jira.rest.worklog")
	case v.Has("issueKey") && v.Has("requestTypeId"):
		return rest("jira.rest.request")
	case v.Get("public").Kind() == Bool && v.Has("body"):
		return rest("jira.rest.request_comment")
	case (kind == "page" || kind == "blogpost" || kind == "comment") && v.Get("title").Kind() == String:
		return rest("confluence.rest." + kind)
	case v.Has("body") && (v.Has("pageId") || v.Has("blogPostId")):
		return rest("confluence.rest.comment")
	case v.Has("spaceId") && v.Get("title").Kind() == String:
		return rest("confluence.rest.page")
	case v.Has("body") && (v.Has("author") || v.Has("updateAuthor")) && kind == "":
		return rest("jira.rest.comment")
	// Names that are the product's own tell nothing, and are not custom.
	case v.Has("transitions") && v.Has("statuses") && !v.Get("isDefault").True():
		return rest("jira.rest.workflow")
	case v.Has("statusCategory") && v.Get("name").Kind() == String:
		return rest("jira.rest.status")
	case kind == "SITE" && v.Get("shortName").Kind() == String:
		return rest("confluence.rest.emoji")
	case v.Has("state") && v.Has("name") && (v.Has("originBoardId") || v.Has("startDate") || v.Has("goal")):
		return rest("jira.rest.sprint")
	case v.Has("shortName") && v.Has("fallback"):
		return no(ReasonNotListed)
	case IsUser(v), v.Has("self"), v.Has("_links"), v.Has("id"):
		return no(ReasonNotListed)
	}
	return no(ReasonWrapperUnknown)
}
