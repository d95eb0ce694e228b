package schema

import (
	"bytes"
	"math"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// MaxDepth is how deep objects and arrays may nest. Real payloads stay under
// 60; the bound keeps hostile input from using stack in proportion to it.
const MaxDepth = 256

// Kind is the JSON type of a Value.
type Kind uint8

// The kinds of a Value. Missing is the kind of the zero Value.
const (
	Missing Kind = iota
	Null
	Bool
	Number
	String
	Array
	Object
)

// Doc is a parsed JSON text: one flat array of nodes in document order, each
// knowing where its subtree ends. Strings without escapes are slices of the
// source; the others are decoded once into an arena. A Doc can be parsed into
// again and then allocates only what it has not yet grown to.
type Doc struct {
	src   []byte
	nodes []node
	arena []byte
	dup   bool
}

type node struct {
	key, val text
	next     int32 // index of the first node after this subtree
	kind     Kind
}

// text is a half-open byte range of the source, or of the arena when escaped.
type text struct {
	start, end int32
	escaped    bool
}

// Parse parses src, which must stay unchanged while the Doc is in use. It
// accepts exactly RFC 8259, in UTF-8, within MaxDepth; the error is an *Error
// with a position and never quotes the input. Time is linear in len(src).
func (d *Doc) Parse(src []byte) error {
	d.src, d.nodes, d.arena, d.dup = src, d.nodes[:0], d.arena[:0], false
	if len(src) > math.MaxInt32 {
		return &Error{Reason: ReasonTooLarge, Offset: -1}
	}
	if !utf8.Valid(src) {
		i := 0
		for i < len(src) {
			r, n := utf8.DecodeRune(src[i:])
			if r == utf8.RuneError && n == 1 {
				break
			}
			i += n
		}
		return &Error{Reason: ReasonInvalidUTF8, Offset: i}
	}
	p := parser{d: d}
	p.space()
	if p.i == len(src) {
		return &Error{Reason: ReasonEmptyValue, Offset: -1}
	}
	if !p.value(text{}, 0) {
		if p.reason == "" {
			p.reason = ReasonMalformedJSON
		}
		return &Error{Reason: p.reason, Offset: p.i}
	}
	if p.space(); p.i != len(src) {
		return &Error{Reason: ReasonMalformedJSON, Offset: p.i}
	}
	return nil
}

// Root returns the value of the whole text.
func (d *Doc) Root() Value {
	if len(d.nodes) == 0 {
		return Value{}
	}
	return Value{d, 0}
}

// Ambiguous reports whether any lookup by Get met an object that holds the
// asked key more than once. Two readers of such an object may see different
// values, so the record that holds it is dropped.
func (d *Doc) Ambiguous() bool { return d.dup }

func (d *Doc) bytes(t text) []byte {
	if t.escaped {
		return d.arena[t.start:t.end]
	}
	return d.src[t.start:t.end]
}

type parser struct {
	d      *Doc
	i      int
	reason Reason
}

func (p *parser) space() {
	s := p.d.src
	for p.i < len(s) && (s[p.i] == ' ' || s[p.i] == '\n' || s[p.i] == '\r' || s[p.i] == '\t') {
		p.i++
	}
}

// value parses one value into a node that carries key, and reports success.
func (p *parser) value(key text, depth int) bool {
	s := p.d.src
	if p.i >= len(s) {
		return false
	}
	at := len(p.d.nodes)
	p.d.nodes = append(p.d.nodes, node{key: key})
	kind, val, ok := Missing, text{start: int32(p.i)}, false
	switch c := s[p.i]; {
	case c == '{' || c == '[':
		if depth >= MaxDepth {
			p.reason = ReasonTooDeep
			return false
		}
		kind = Array
		if c == '{' {
			kind = Object
		}
		ok = p.members(kind == Object, depth+1)
		val.end = int32(p.i)
	case c == '"':
		kind = String
		val, ok = p.str()
	case c == 't':
		kind, ok = Bool, p.literal("true")
		val.end = int32(p.i)
	case c == 'f':
		kind, ok = Bool, p.literal("false")
		val.end = int32(p.i)
	case c == 'n':
		kind, ok = Null, p.literal("null")
		val.end = int32(p.i)
	default:
		kind, ok = Number, p.number()
		val.end = int32(p.i)
	}
	n := &p.d.nodes[at]
	n.kind, n.val, n.next = kind, val, int32(len(p.d.nodes))
	return ok
}

func (p *parser) members(object bool, depth int) bool {
	s := p.d.src
	end := byte(']')
	if object {
		end = '}'
	}
	p.i++
	p.space()
	if p.i < len(s) && s[p.i] == end {
		p.i++
		return true
	}
	for {
		var key text
		if object {
			if p.i >= len(s) || s[p.i] != '"' {
				return false
			}
			var ok bool
			if key, ok = p.str(); !ok {
				return false
			}
			if p.space(); p.i >= len(s) || s[p.i] != ':' {
				return false
			}
			p.i++
			p.space()
		}
		if !p.value(key, depth) {
			return false
		}
		p.space()
		if p.i >= len(s) {
			return false
		}
		switch s[p.i] {
		case ',':
			p.i++
			p.space()
		case end:
			p.i++
			return true
		default:
			return false
		}
	}
}

func (p *parser) literal(w string) bool {
	if len(p.d.src)-p.i < len(w) || string(p.d.src[p.i:p.i+len(w)]) != w {
		return false
	}
	p.i += len(w)
	return true
}

func (p *parser) digits() bool {
	from := p.i
	for p.i < len(p.d.src) && p.d.src[p.i]-'0' <= 9 {
		p.i++
	}
	return p.i > from
}

func (p *parser) number() bool {
	s := p.d.src
	if s[p.i] == '-' {
		p.i++
	}
	switch {
	case p.i < len(s) && s[p.i] == '0':
		p.i++
	case !p.digits():
		return false
	}
	if p.i < len(s) && s[p.i] == '.' {
		p.i++
		if !p.digits() {
			return false
		}
	}
	if p.i < len(s) && (s[p.i] == 'e' || s[p.i] == 'E') {
		p.i++
		if p.i < len(s) && (s[p.i] == '+' || s[p.i] == '-') {
			p.i++
		}
		return p.digits()
	}
	return true
}

// str parses a string at the opening quote.
func (p *parser) str() (text, bool) {
	s := p.d.src
	p.i++
	from := p.i
	for p.i < len(s) {
		switch c := s[p.i]; {
		case c == '"':
			p.i++
			return text{start: int32(from), end: int32(p.i - 1)}, true
		case c == '\\':
			return p.escaped(from)
		case c < 0x20:
			return text{}, false
		default:
			p.i++
		}
	}
	return text{}, false
}

// escaped goes on with a string whose first backslash is at p.i.
func (p *parser) escaped(from int) (text, bool) {
	s, d := p.d.src, p.d
	at := len(d.arena)
	d.arena = append(d.arena, s[from:p.i]...)
	for p.i < len(s) {
		c := s[p.i]
		switch {
		case c == '"':
			p.i++
			return text{int32(at), int32(len(d.arena)), true}, true
		case c < 0x20:
			return text{}, false
		case c != '\\':
			d.arena = append(d.arena, c)
			p.i++
			continue
		}
		if p.i+1 >= len(s) {
			return text{}, false
		}
		p.i += 2
		switch s[p.i-1] {
		case '"', '\\', '/':
			d.arena = append(d.arena, s[p.i-1])
		case 'b':
			d.arena = append(d.arena, '\b')
		case 'f':
			d.arena = append(d.arena, '\f')
		case 'n':
			d.arena = append(d.arena, '\n')
		case 'r':
			d.arena = append(d.arena, '\r')
		case 't':
			d.arena = append(d.arena, '\t')
		case 'u':
			r, ok := p.hex4()
			if !ok {
				return text{}, false
			}
			if utf16.IsSurrogate(r) {
				// A surrogate without its other half becomes U+FFFD, as
				// in encoding/json; the escape after it stands for itself.
				hi := r
				r = utf8.RuneError
				if p.i+1 < len(s) && s[p.i] == '\\' && s[p.i+1] == 'u' {
					save := p.i
					p.i += 2
					lo, ok := p.hex4()
					if !ok {
						return text{}, false
					}
					if r = utf16.DecodeRune(hi, lo); r == utf8.RuneError {
						p.i = save
					}
				}
			}
			d.arena = utf8.AppendRune(d.arena, r)
		default:
			p.i--
			return text{}, false
		}
	}
	return text{}, false
}

func (p *parser) hex4() (rune, bool) {
	if p.i+4 > len(p.d.src) {
		p.i = len(p.d.src)
		return 0, false
	}
	var r rune
	for _, c := range p.d.src[p.i : p.i+4] {
		switch {
		case c-'0' <= 9:
			c -= '0'
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	p.i += 4
	return r, true
}

// Value is one value of a Doc. The zero Value is missing, and every method
// may be called on it.
type Value struct {
	d *Doc
	i int32
}

func (v Value) node() *node { return &v.d.nodes[v.i] }

// Kind returns the JSON type, Missing for the zero Value.
func (v Value) Kind() Kind {
	if v.d == nil {
		return Missing
	}
	return v.node().kind
}

// Absent reports whether the value is missing or null.
func (v Value) Absent() bool { return v.Kind() <= Null }

// Key returns the decoded name of an object member.
func (v Value) Key() []byte { return v.d.bytes(v.node().key) }

// Bytes returns the decoded bytes of a string, nil for any other kind. They
// are owned by the Doc.
func (v Value) Bytes() []byte {
	if v.Kind() != String {
		return nil
	}
	return v.d.bytes(v.node().val)
}

// Raw returns the bytes of the value as they stand in the source, for every
// kind but String.
func (v Value) Raw() []byte {
	if k := v.Kind(); k == Missing || k == String {
		return nil
	}
	return v.d.bytes(v.node().val)
}

// Int returns the value of an integer number, or of a string of digits, which
// some forms use for ids.
func (v Value) Int() (int64, bool) {
	switch v.Kind() {
	case Number, String:
		n, err := strconv.ParseInt(string(v.d.bytes(v.node().val)), 10, 64)
		return n, err == nil
	}
	return 0, false
}

// Scalar returns the bytes of a string or number, nil for any other kind.
func (v Value) Scalar() []byte {
	if v.Kind() == Number {
		return v.Raw()
	}
	return v.Bytes()
}

// True reports whether the value is the literal true.
func (v Value) True() bool { return v.Kind() == Bool && v.d.src[v.node().val.start] == 't' }

// Get returns the member of an object, the zero Value when there is none. If
// the key stands there twice it returns the first and marks the Doc Ambiguous.
func (v Value) Get(key string) Value {
	var found Value
	for c, ok := v.First(); ok; c, ok = c.Next(v) {
		if v.Kind() == Object && string(c.Key()) == key {
			if found.d != nil {
				v.d.dup = true
				break
			}
			found = c
		}
	}
	return found
}

// Path follows one key after another.
func (v Value) Path(keys ...string) Value {
	for _, k := range keys {
		v = v.Get(k)
	}
	return v
}

// First returns the first element of an array or member of an object.
func (v Value) First() (Value, bool) {
	if k := v.Kind(); (k != Array && k != Object) || v.node().next == v.i+1 {
		return Value{}, false
	}
	return Value{v.d, v.i + 1}, true
}

// Next returns the sibling after v inside parent.
func (v Value) Next(parent Value) (Value, bool) {
	n := v.node().next
	if n >= parent.node().next {
		return Value{}, false
	}
	return Value{v.d, n}, true
}

// Has reports whether an object has the key.
func (v Value) Has(key string) bool { return v.Get(key).d != nil }

// equal reports whether the string value is exactly s.
func (v Value) equal(s string) bool { return v.Kind() == String && string(v.Bytes()) == s }

// all calls f for every node of the subtree in document order.
func (v Value) all(f func(Value)) {
	if v.d == nil {
		return
	}
	for i := v.i; i < v.node().next; i++ {
		f(Value{v.d, i})
	}
}

// hostOf returns the lower-case host name of an absolute http(s) URL, without
// port or user, or nil.
func hostOf(url []byte) []byte {
	scheme, rest, ok := bytes.Cut(url, []byte("://"))
	if !ok || !bytes.EqualFold(scheme, []byte("http")) && !bytes.EqualFold(scheme, []byte("https")) {
		return nil
	}
	if i := bytes.IndexAny(rest, "/?#\\"); i >= 0 {
		rest = rest[:i]
	}
	if i := bytes.LastIndexByte(rest, '@'); i >= 0 {
		rest = rest[i+1:]
	}
	if i := bytes.IndexByte(rest, ':'); i >= 0 {
		rest = rest[:i]
	}
	return bytes.ToLower(rest)
}
