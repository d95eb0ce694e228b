package scrub

import (
	"slices"
	"strconv"

	"winnow/pkg/schema"
)

// The nodes, attributes and marks of the Atlassian Document Format that leave
// (https://developer.atlassian.com/cloud/jira/platform/apis/document/structure/).
// A node that is not listed goes with all it holds: media and cards (file
// names, addresses), extensions (macro parameters), dates, and what a later
// version of the format brings.
var adfBlocks = map[string][]string{
	"doc": nil, "paragraph": nil, "heading": {"level"}, "blockquote": nil, "rule": nil,
	"bulletList": nil, "orderedList": {"order"}, "listItem": nil,
	"taskList": nil, "taskItem": {"state"}, "blockTaskItem": {"state"}, "decisionList": nil, "decisionItem": {"state"},
	"codeBlock": {"language"}, "panel": {"panelType"},
	"table": nil, "tableRow": nil, "tableHeader": {"colspan", "rowspan"}, "tableCell": {"colspan", "rowspan"},
	"expand": nil, "nestedExpand": nil, "layoutSection": nil, "layoutColumn": nil, "bodiedExtension": nil,
}

var adfMarks = []string{"strong", "em", "strike", "underline", "code"}

// adfWords are the values that a listed string attribute may have.
var adfWords = map[string][]string{
	"state":     {"TODO", "DONE", "DECIDED", "UNDECIDED"},
	"panelType": {"info", "note", "warning", "success", "error", "tip"},
}

func malformedADF() error {
	return &schema.Error{Reason: schema.ReasonMalformedADF, Offset: -1}
}

// appendADF appends the document as ADF again: the listed nodes, with their
// text scrubbed across the text nodes of each block. The output is valid JSON.
func (s *Scrubber) appendADF(dst []byte, v schema.Value) ([]byte, error) {
	if string(v.Get("type").Bytes()) != "doc" {
		return dst, malformedADF()
	}
	return s.appendBlock(dst, v)
}

func (s *Scrubber) appendBlock(dst []byte, v schema.Value) ([]byte, error) {
	kind := string(v.Get("type").Bytes())
	dst = append(dst, `{"type":"`...)
	dst = append(dst, kind...)
	dst = append(dst, '"')
	attrs := v.Get("attrs")
	if kind == "doc" {
		dst = append(dst, `,"version":1`...)
	}
	first := true
	for _, name := range adfBlocks[kind] {
		a := attrs.Get(name)
		var val []byte
		switch {
		case a.Kind() == schema.Number && name != "language":
			if n, ok := a.Int(); ok && n >= 0 && n < 1000 {
				val = strconv.AppendInt(nil, n, 10)
			}
		case a.Kind() == schema.String && (name == "language" && s.isLanguage(a.Bytes()) || slices.Contains(adfWords[name], string(a.Bytes()))):
			val = appendQuoted(nil, a.Bytes())
		}
		if val == nil {
			continue
		}
		if first {
			dst = append(dst, `,"attrs":{`...)
		} else {
			dst = append(dst, ',')
		}
		first = false
		dst = append(dst, '"')
		dst = append(dst, name...)
		dst = append(dst, '"', ':')
		dst = append(dst, val...)
	}
	if t := attrs.Get("title"); (kind == "expand" || kind == "nestedExpand") && t.Kind() == schema.String {
		s.run.text(t.Bytes(), 0, schema.Value{})
		s.flush(func(_ piece, b []byte) {
			dst = append(dst, `,"attrs":{"title":`...)
			dst = appendQuoted(dst, b)
		})
		first = false
	}
	if !first {
		dst = append(dst, '}')
	}
	content := v.Get("content")
	if content.Absent() {
		return append(dst, '}'), nil
	}
	if content.Kind() != schema.Array {
		return dst, malformedADF()
	}
	dst = append(dst, `,"content":[`...)
	open := len(dst)
	var err error
	for c, ok := content.First(); ok; c, ok = c.Next(content) {
		if c.Kind() != schema.Object {
			return dst, malformedADF()
		}
		child := string(c.Get("type").Bytes())
		if _, block := adfBlocks[child]; !block || child == "doc" {
			if err := s.addInline(c, child); err != nil {
				return dst, err
			}
			continue
		}
		dst = s.endInline(dst, open)
		if len(dst) > open {
			dst = append(dst, ',')
		}
		if dst, err = s.appendBlock(dst, c); err != nil {
			return dst, err
		}
	}
	dst = s.endInline(dst, open)
	return append(dst, ']', '}'), nil
}

// addInline adds an inline node to the run of its block.
func (s *Scrubber) addInline(v schema.Value, kind string) error {
	r := &s.run
	attrs := v.Get("attrs")
	from := len(r.out)
	switch kind {
	case "text":
		t := v.Get("text")
		if t.Kind() != schema.String {
			return malformedADF()
		}
		r.text(t.Bytes(), 0, v)
	case "status":
		r.parted = true
		r.text(attrs.Get("text").Bytes(), 0, schema.Value{})
		r.parted = true
	case "hardBreak":
		r.out = append(r.out, `{"type":"hardBreak"}`...)
		r.buf = append(r.buf, '\n')
		r.fixedFrom(from, false)
	case "mention":
		r.out = append(r.out, `{"type":"text","text":"`...)
		r.out = s.appendMention(r.out, attrs.Get("id").Bytes())
		r.out = append(r.out, `"}`...)
		r.fixedFrom(from, true)
	case "emoji":
		// A standard emoji is its character; a custom one is known only by a
		// name, which leaves by the vocabulary alone.
		t := attrs.Get("text").Bytes()
		if !isEmoji(t) {
			r.parted = true
			break
		}
		r.out = append(r.out, `{"type":"text","text":`...)
		r.out = appendQuoted(r.out, t)
		r.out = append(r.out, '}')
		r.fixedFrom(from, true)
	default:
		r.parted = true
	}
	return nil
}

// appendMention appends the placeholder of an account id or user key.
func (s *Scrubber) appendMention(dst, id []byte) []byte {
	return s.doc.appendPlaceholder(dst, id, Span{0, len(id), AccountID, s.find.personOf(id)})
}

// endInline writes the run of inline nodes gathered so far, if any.
func (s *Scrubber) endInline(dst []byte, open int) []byte {
	if s.run.empty() {
		return dst
	}
	s.flush(func(p piece, t []byte) {
		if len(t) == 0 {
			return // ADF has no empty text nodes
		}
		if len(dst) > open {
			dst = append(dst, ',')
		}
		if p.kind < 0 {
			dst = append(dst, t...)
			return
		}
		dst = append(dst, `{"type":"text","text":`...)
		dst = appendQuoted(dst, t)
		first := true
		marks := p.node.Get("marks")
		for m, ok := marks.First(); ok; m, ok = m.Next(marks) {
			name := string(m.Get("type").Bytes())
			if !slices.Contains(adfMarks, name) {
				continue // a link's address, a colour, an annotation's id
			}
			if first {
				dst = append(dst, `,"marks":[`...)
			} else {
				dst = append(dst, ',')
			}
			first = false
			dst = append(dst, `{"type":"`...)
			dst = append(dst, name...)
			dst = append(dst, `"}`...)
		}
		if !first {
			dst = append(dst, ']')
		}
		dst = append(dst, '}')
	})
	return dst
}

// isEmoji reports whether t is one short symbol without letters or ASCII.
func isEmoji(t []byte) bool {
	if len(t) == 0 || len(t) > 40 {
		return false
	}
	for _, r := range string(t) {
		if r < 0x80 || isWord(r) && r != 0xFE0F && r != 0x20E3 {
			return false
		}
	}
	return true
}

// isLanguage reports whether t can be the name of a programming language, and
// is not the document's name for a person.
func (s *Scrubber) isLanguage(t []byte) bool {
	if len(t) == 0 || len(t) > 20 {
		return false
	}
	for _, c := range t {
		if (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') && c != '+' && c != '-' && c != '#' && c != '.' {
			return false
		}
	}
	s.spans = s.find.appendSpans(s.spans[:0], t)
	return len(s.spans) == 0
}

// appendQuoted appends t as a JSON string. t is valid UTF-8.
func appendQuoted(dst, t []byte) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for _, c := range t {
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\t':
			dst = append(dst, '\\', 't')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		case c < 0x20:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			dst = append(dst, c)
		}
	}
	return append(dst, '"')
}
