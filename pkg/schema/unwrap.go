package schema

import (
	"bytes"
	"strings"
	"time"
	"unicode"
)

// Item is one event found in what a door was handed. Time is zero when the
// form has no event time of its own (REST exports), ID and Tenant are empty
// when the wrapper names none.
type Item struct {
	Envelope
	Entity string // id of the issue, page, … that the event is about; orders events of one entity
	Value  []byte // the event's own JSON, a slice of the input
}

// Unwrap recognises the form of one JSON text and yields each event in it, or
// the reason why there is none, with its index among the text's records. It
// knows Jira webhooks, Confluence webhooks, REST issues, pages, comments,
// worklogs, sprints and service requests, REST result lists and arrays of
// these, and CloudEvents 1.0 in structured mode. Unknown forms are dropped,
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
	if root.Has("webhookEvent") || root.Has("fields") || root.Has("specversion") {
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
	if v.Has("specversion") {
		return structured(v)
	}
	if c := v.Get("content"); c.Kind() == Object && v.Has("entityType") {
		v = c // a row of a search result; its excerpt is a rendered copy
	}
	name, at, err := sniff(v)
	if err != nil {
		return Item{}, err
	}
	return describe(v, name, at), nil
}

// structured unwraps a CloudEvents 1.0 event in structured JSON mode
// (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md).
// Its own attributes name the tenant, the time and the product; the form is
// still read off the data.
func structured(v Value) (Item, error) {
	bad := func(path string) (Item, error) {
		return Item{}, &Error{Reason: ReasonBadHeaders, Path: path, Offset: -1}
	}
	if !v.Get("specversion").equal("1.0") {
		return bad("specversion")
	}
	id, source := v.Get("id").Bytes(), v.Get("source").Bytes()
	if len(id) == 0 || hasControl(id) {
		return bad("id")
	}
	if len(source) == 0 || hasControl(source) {
		return bad("source")
	}
	data := v.Get("data")
	if data.Absent() {
		return Item{}, &Error{Reason: ReasonEmptyValue, Path: "data", Offset: -1}
	}
	if data.Kind() != Object {
		return Item{}, &Error{Reason: ReasonWrongType, Path: "data", Offset: -1}
	}
	product := Product(v.Get("product").Bytes())
	var it Item
	if product != "" && !product.InScope() {
		// Not ours to read; the gate names the reason.
		it = Item{Value: data.Raw()}
		it.Type = string(v.Get("type").Bytes())
		if it.Type == "" {
			return bad("type")
		}
	} else {
		name, at, err := sniff(data)
		if err != nil {
			return Item{}, err
		}
		it = describe(data, name, at)
	}
	if product != "" {
		it.Product = product
	}
	it.ID = string(source) + "\x00" + string(id) // neither holds a NUL, so no two pairs are one
	it.Tenant = string(v.Get("tenant").Bytes())
	if t := v.Get("time"); !t.Absent() {
		at, err := time.Parse(time.RFC3339Nano, string(t.Bytes()))
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
	case v.Has("state") && v.Has("name") && (v.Has("originBoardId") || v.Has("startDate") || v.Has("goal")):
		return rest("jira.rest.sprint")
	case IsUser(v), v.Has("self"), v.Has("_links"), v.Has("id"):
		return no(ReasonNotListed)
	}
	return no(ReasonWrapperUnknown)
}
