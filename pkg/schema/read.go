package schema

import (
	"bytes"
	"strings"
)

// Text is one in-app text of an event, before scrubbing.
type Text struct {
	Role   string
	Format Format
	Value  Value // a string; for ADF an object, or a string that holds one
}

// Parse reads the value by the form that the event's type names: it fills in
// the envelope's Host, Project and Space, and finds the texts and the
// people. Nothing of the record is looked at before it. The error is an
// *Error; the event must then be dropped.
//
// An Event that is reused keeps its memory.
func (e *Event) Parse() error {
	e.form, e.texts = nil, e.texts[:0]
	e.Host, e.Project, e.Space, e.Scoped = "", "", "", false
	switch {
	case len(e.Value) == 0:
		return &Error{Reason: ReasonEmptyValue, Offset: -1}
	case len(e.Value) > MaxValue:
		return &Error{Reason: ReasonTooLarge, Offset: -1}
	}
	name, ok := strings.CutPrefix(e.Type, TypePrefix)
	f := forms[name]
	if !ok || f == nil {
		return &Error{Reason: ReasonWrapperUnknown, Offset: -1}
	}
	if e.doc == nil {
		e.doc = new(Doc)
	}
	if err := e.doc.Parse(e.Value); err != nil {
		return err
	}
	root := e.doc.Root()
	if root.Kind() != Object {
		return &Error{Reason: ReasonWrongType, Offset: 0}
	}
	e.Host = f.host(root)
	e.Project = string(walk(root, f.project).Bytes())
	if e.Project == "" {
		// An export of chosen fields leaves the project out; the issue's key names it.
		key := walk(root, f.issue).Bytes()
		e.Project = string(key[:max(0, bytes.LastIndexByte(key, '-'))])
	}
	e.Space, e.Scoped = string(walk(root, f.space).Bytes()), true
	for i := range f.content {
		c := &f.content[i]
		if err := e.collect(root, c, c.steps); err != nil {
			return err
		}
	}
	if e.doc.Ambiguous() {
		return &Error{Reason: ReasonDuplicateKey, Offset: -1}
	}
	e.form = f
	return nil
}

// host returns the host that the links of a payload name: "" if they name none,
// TwoHosts if they name more than one, for then it is not one site's.
func (f *form) host(root Value) (host string) {
	for _, p := range f.hosts {
		if h := string(hostOf(walk(root, p).Bytes())); h != "" && h != host {
			if host != "" {
				h = TwoHosts
			}
			host = h
		}
	}
	return host
}

// Kind returns what the document is (issue, comment, page, …); it is empty
// before Parse.
func (e *Event) Kind() string {
	if e.form == nil {
		return ""
	}
	return e.form.kind
}

// Vocabulary reports whether a parsed event is a custom name of a status, a
// workflow or an emoji: it has no texts, and leaves, if at all, as a counted
// word.
func (e *Event) Vocabulary() bool { return e.form != nil && e.form.vocabulary }

// Texts returns the in-app texts in the order of the catalog's rows, those of
// one row in document order. They are valid until the next Parse.
func (e *Event) Texts() []Text { return e.texts }

// Edit is a change of one text that more than one event may tell of. The zero
// Edit is that of an event whose text no other tells.
type Edit struct {
	Key      [16]byte
	Specific bool // the event is about this text alone, not about what it is part of
}

// Edit returns the change that a parsed event tells of. Jira reports a new or
// edited comment by comment_created or comment_updated and, with the comment
// beside the issue, by issue_updated. One of these that has a changelog tells
// of more than the comment, and a comment without the time of its last change
// can't be told from an earlier one: then there is no Edit.
func (e *Event) Edit() Edit {
	if e.form == nil || e.form.comment == "" {
		return Edit{}
	}
	root := e.doc.Root()
	c := walk(root, e.form.comment)
	id, at := c.Get("id").Scalar(), c.Get("updated").Bytes()
	if _, more := root.Path("changelog", "items").First(); more || len(id) == 0 || len(at) == 0 {
		return Edit{}
	}
	return Edit{hash("comment", string(e.Product), e.Tenant, string(id), string(at)), e.form.kind == "comment"}
}

// walk follows a dotted path without arrays; the empty path is missing.
func walk(v Value, path string) Value {
	if path == "" {
		return Value{}
	}
	for more := true; more; {
		var k string
		k, path, more = strings.Cut(path, ".")
		v = v.Get(k)
	}
	return v
}

func (e *Event) collect(v Value, c *contentPath, steps []string) error {
	wrong := func() error { return &Error{Reason: ReasonWrongType, Path: c.Path, Offset: -1} }
	for i, s := range steps {
		if k := v.Kind(); k != Object {
			if k <= Null {
				return nil
			}
			return wrong()
		}
		name, each := strings.CutSuffix(s, "[]")
		v = v.Get(name)
		if !each {
			continue
		}
		if v.Absent() {
			return nil
		}
		if v.Kind() != Array {
			return wrong()
		}
		for el, ok := v.First(); ok; el, ok = el.Next(v) {
			if err := e.collect(el, c, steps[i+1:]); err != nil {
				return err
			}
		}
		return nil
	}
	t := Text{Role: c.Role, Format: c.Format, Value: v}
	switch v.Kind() {
	case Missing, Null:
		return nil
	case String:
		if len(bytes.TrimSpace(v.Bytes())) == 0 {
			return nil
		}
	case Object:
		if c.Format != Wiki {
			return wrong()
		}
		t.Format = ADF
	default:
		return wrong()
	}
	// A second body, and an old server's comment that stands both beside and
	// inside its issue, are copies. Only a row for one value is compared with the
	// texts before it, for a list may be as long as the record.
	earlier := e.texts
	if strings.Contains(c.Path, "[]") {
		earlier = nil
	}
	for _, o := range earlier {
		if o.Role != t.Role {
			continue
		}
		if o.Format == Storage || o.Format == t.Format && bytes.Equal(o.Value.Bytes(), v.Bytes()) && bytes.Equal(o.Value.Raw(), v.Raw()) {
			return nil
		}
	}
	e.texts = append(e.texts, t)
	return nil
}
