package scrub

import (
	"bytes"
	"html"
	"unicode/utf8"

	"winnow/pkg/schema"
)

// What an element of Confluence's storage format becomes
// (https://confluence.atlassian.com/doc/confluence-storage-format-790796544.html).
// The zero value is for elements that are not listed: they go with all they
// hold. Attributes go in every case but the name of a listed macro.
type element uint8

const (
	drop   element = iota
	block          // kept; ends the run of text
	inline         // kept; text before, in and after it is one run
	unwrap         // its tags go, its content stays in the run
	user           // becomes a placeholder
)

var elements = map[string]element{
	"p": block, "h1": block, "h2": block, "h3": block, "h4": block, "h5": block, "h6": block,
	"ul": block, "ol": block, "li": block, "dl": block, "dt": block, "dd": block,
	"table": block, "thead": block, "tbody": block, "tfoot": block, "tr": block, "th": block, "td": block, "caption": block,
	"blockquote": block, "pre": block, "div": block, "hr": block, "br": inline,
	"strong": inline, "b": inline, "em": inline, "i": inline, "u": inline, "s": inline, "del": inline, "ins": inline,
	"sub": inline, "sup": inline, "code": inline, "small": inline, "big": inline, "tt": inline, "q": inline, "cite": inline,
	"a": unwrap, "span": unwrap, "font": unwrap, "ac:inline-comment-marker": unwrap,
	"ac:link": unwrap, "ac:link-body": unwrap, "ac:plain-text-link-body": unwrap,
	"ac:structured-macro": block, "ac:macro": block, "ac:rich-text-body": block, "ac:plain-text-body": block,
	"ac:task-list": block, "ac:task": block, "ac:task-body": block, "ac:task-status": block,
	"ac:layout": block, "ac:layout-section": block, "ac:layout-cell": block,
	"ri:user": user,
}

// macros are the macros whose name may stay: Confluence's own, with a body.
var macros = map[string]bool{
	"code": true, "noformat": true, "info": true, "note": true, "warning": true, "tip": true, "panel": true,
	"expand": true, "quote": true, "excerpt": true, "details": true, "section": true, "column": true,
}

// Kinds of pieces with text, by how they are written.
const (
	pcdata = iota // entities for & < >
	cdata
)

func malformedXHTML(at int) error {
	return &schema.Error{Reason: schema.ReasonMalformedXHTML, Offset: at}
}

// appendStorage appends a storage-format body as storage format again: the
// listed elements without their attributes, their text scrubbed across inline
// elements, entities and CDATA. The output is well-formed.
func (s *Scrubber) appendStorage(dst, t []byte) ([]byte, error) {
	r := &s.run
	r.reset()
	var stack []string // names of the open elements
	dropped := 0       // depth from which everything goes, 0 if nothing does
	end := func() {
		if r.empty() {
			return
		}
		s.flush(func(p piece, b []byte) {
			switch p.kind {
			case pcdata:
				dst = appendEscaped(dst, b)
			case cdata:
				dst = append(dst, "<![CDATA["...)
				dst = append(dst, bytes.ReplaceAll(b, []byte("]]>"), []byte("]]]]><![CDATA[>"))...)
				dst = append(dst, "]]>"...)
			default:
				dst = append(dst, b...)
			}
		})
	}
	tag := func(e element, parts ...string) {
		if e == block {
			end()
			for _, p := range parts {
				dst = append(dst, p...)
			}
			return
		}
		from := len(r.out)
		for _, p := range parts {
			r.out = append(r.out, p...)
		}
		r.fixedFrom(from, false)
	}
	for i := 0; i < len(t); {
		if t[i] != '<' {
			n := bytes.IndexByte(t[i:], '<')
			if n < 0 {
				n = len(t) - i
			}
			if dropped == 0 {
				r.part()
				from, ok := len(r.buf), false
				if r.buf, ok = appendUnescaped(r.buf, t[i:i+n]); !ok || !isXML(r.buf[from:]) {
					return dst, malformedXHTML(i)
				}
				r.pieces = append(r.pieces, piece{end: len(r.buf), kind: pcdata})
			}
			i += n
			continue
		}
		rest := t[i:]
		switch {
		case bytes.HasPrefix(rest, []byte("<![CDATA[")):
			n := bytes.Index(rest, []byte("]]>"))
			if n < 0 {
				return dst, malformedXHTML(i)
			}
			if dropped == 0 {
				if b := rest[len("<![CDATA["):n]; isXML(b) {
					r.text(b, cdata, schema.Value{})
				} else {
					return dst, malformedXHTML(i)
				}
			}
			i += n + 3
			continue
		case bytes.HasPrefix(rest, []byte("<!--")):
			n := bytes.Index(rest[4:], []byte("-->"))
			if n < 0 {
				return dst, malformedXHTML(i)
			}
			i += 4 + n + 3
			continue
		}
		tg, n, ok := parseTag(rest)
		if !ok {
			return dst, malformedXHTML(i)
		}
		e := elements[tg.name]
		switch {
		case tg.closing:
			if len(stack) == 0 || stack[len(stack)-1] != tg.name {
				return dst, malformedXHTML(i)
			}
			stack = stack[:len(stack)-1]
			if dropped > 0 {
				if len(stack) < dropped {
					dropped = 0
				}
			} else if e == block || e == inline {
				tag(e, "</", tg.name, ">")
			}
		default:
			empty := tg.empty || tg.name == "br" || tg.name == "hr" || tg.name == "img" || tg.name == "col"
			if len(stack) >= schema.MaxDepth {
				return dst, &schema.Error{Reason: schema.ReasonTooDeep, Offset: i}
			}
			switch {
			case dropped > 0:
			case e == user:
				from := len(r.out)
				r.out = s.appendMention(r.out, tg.user)
				r.fixedFrom(from, true)
			case e == drop:
				if !empty {
					dropped = len(stack) + 1
				}
				r.parted = true
			case e == unwrap:
			case tg.name == "ac:structured-macro" || tg.name == "ac:macro":
				slash := ""
				if empty {
					slash = "/"
				}
				if macros[string(tg.macro)] {
					tag(e, "<", tg.name, ` ac:name="`, string(tg.macro), `"`, slash, ">")
				} else {
					tag(e, "<", tg.name, slash, ">")
				}
			case tg.name == "br":
				r.buf = append(r.buf, '\n')
				tag(e, "<br/>")
			case empty:
				tag(e, "<", tg.name, "/>")
			default:
				tag(e, "<", tg.name, ">")
			}
			if !empty {
				stack = append(stack, tg.name)
			}
		}
		i += n
	}
	if len(stack) > 0 {
		return dst, malformedXHTML(len(t))
	}
	end()
	return dst, nil
}

// xmlTag is one tag of the source.
type xmlTag struct {
	name           string
	closing, empty bool
	macro          []byte // ac:name
	user           []byte // the user that ri:user names
}

// parseTag reads the tag that t begins with and returns its length.
func parseTag(t []byte) (tg xmlTag, n int, ok bool) {
	i := 1
	if i < len(t) && t[i] == '/' {
		tg.closing = true
		i++
	}
	from := i
	for i < len(t) && isName(t[i]) {
		i++
	}
	if i == from {
		return tg, 0, false
	}
	tg.name = string(bytes.ToLower(t[from:i]))
	for {
		for i < len(t) && (t[i] == ' ' || t[i] == '\n' || t[i] == '\t' || t[i] == '\r') {
			i++
		}
		if i >= len(t) {
			return tg, 0, false
		}
		switch t[i] {
		case '>':
			return tg, i + 1, true
		case '/':
			if i+1 >= len(t) || t[i+1] != '>' || tg.closing {
				return tg, 0, false
			}
			tg.empty = true
			return tg, i + 2, true
		}
		from := i
		for i < len(t) && isName(t[i]) {
			i++
		}
		attr := t[from:i]
		if i == from || tg.closing || i+1 >= len(t) || t[i] != '=' || t[i+1] != '"' && t[i+1] != '\'' {
			return tg, 0, false
		}
		q := t[i+1]
		i += 2
		m := bytes.IndexByte(t[i:], q)
		if m < 0 {
			return tg, 0, false
		}
		switch string(attr) {
		case "ac:name":
			tg.macro = t[i : i+m]
		case "ri:account-id", "ri:userkey", "ri:username":
			tg.user = t[i : i+m]
		}
		i += m + 1
	}
}

func isName(c byte) bool {
	return 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || c == ':' || c == '-' || c == '_' || c == '.' || c >= utf8.RuneSelf
}

// appendUnescaped appends t with its character references resolved. An '&'
// that begins none is not well-formed.
func appendUnescaped(dst, t []byte) ([]byte, bool) {
	for {
		i := bytes.IndexByte(t, '&')
		if i < 0 {
			return append(dst, t...), true
		}
		dst = append(dst, t[:i]...)
		t = t[i:]
		n := bytes.IndexByte(t[:min(len(t), 40)], ';')
		if n < 2 {
			return dst, false
		}
		ref := string(t[:n+1])
		s := html.UnescapeString(ref)
		if s == ref || s != ";" && s[len(s)-1] == ';' {
			// Unknown, or "&ampx;", of which HTML reads the beginning.
			return dst, false
		}
		dst = append(dst, s...)
		t = t[n+1:]
	}
}

// isXML reports whether XML 1.0 can hold the characters of t.
func isXML(t []byte) bool {
	for _, c := range t {
		if c < 0x20 && c != '\t' && c != '\n' && c != '\r' {
			return false
		}
	}
	return !bytes.Contains(t, []byte("\uFFFE")) && !bytes.Contains(t, []byte("\uFFFF"))
}

func appendEscaped(dst, t []byte) []byte {
	for _, c := range t {
		switch c {
		case '&':
			dst = append(dst, "&amp;"...)
		case '<':
			dst = append(dst, "&lt;"...)
		case '>':
			dst = append(dst, "&gt;"...)
		default:
			dst = append(dst, c)
		}
	}
	return dst
}
