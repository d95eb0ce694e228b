// Package scrub removes identifiers from texts and records: it finds spans,
// replaces them by placeholders numbered within one document, and keeps the
// structure of the markup they stand in. Only this package can make a Record,
// and only a Record can be written by package batch.
//
// What a text has been cleaned of is stated by Version. Placeholders are the
// label of what was found and a number, such as [PERSON_1] or [EMAIL_2]; the
// numbers count within one document in order of appearance and mean nothing
// outside of it. Whoever the record declares is one [PERSON_n] throughout the
// document, whether the text has the name, login, e-mail address or account
// id; a name that two people share has a number of its own. Where the source
// already holds what looks like a placeholder, a backslash is put after its
// bracket: [PERSON_1] becomes [\PERSON_1], and [\PERSON_1] becomes [\\PERSON_1].
package scrub

import (
	"bytes"
	"errors"
	"strconv"

	"winnow/pkg/schema"
)

// Scrubber scrubs one document after another, reusing its memory. It is not
// safe for concurrent use; each partition has its own.
type Scrubber struct {
	find   finder
	people [][]byte
	spans  []Span
	edits  []edit
	arena  []byte
	parts  []Part
	run    run
	doc    numbering
	inner  schema.Doc // an ADF document that stands in a string
}

// New returns a Scrubber.
func New() *Scrubber { return &Scrubber{} }

// numbering gives the identities of one document their placeholders.
type numbering struct {
	person []int32          // by index into the people; 0 is not yet numbered
	other  map[string]int32 // label and folded identity -> number
	last   [NumLabels]int32
	counts [NumLabels]int
}

func (n *numbering) reset(people int) {
	if n.other == nil {
		n.other = map[string]int32{}
	}
	clear(n.other)
	n.person = append(n.person[:0], make([]int32, people)...)
	n.last, n.counts = [NumLabels]int32{}, [NumLabels]int{}
}

// appendPlaceholder appends the placeholder of what stands in the span.
func (n *numbering) appendPlaceholder(dst, identity []byte, s Span) []byte {
	n.counts[s.Label]++
	label, num := s.Label, int32(0)
	if s.Person >= 0 {
		label = Person
		if n.person[s.Person] == 0 {
			n.last[Person]++
			n.person[s.Person] = n.last[Person]
		}
		num = n.person[s.Person]
	} else {
		k := string(rune('0'+label)) + plainID(identity)
		if num = n.other[k]; num == 0 {
			n.last[label]++
			num = n.last[label]
			n.other[k] = num
		}
	}
	dst = append(dst, '[')
	dst = append(dst, labelNames[label]...)
	dst = append(dst, '_')
	dst = strconv.AppendInt(dst, int64(num), 10)
	return append(dst, ']')
}

// AppendSpans appends the spans of text, in order and without overlaps, as
// half-open byte ranges. Each of people holds the identities of one person
// separated by NUL: names, e-mail addresses and account ids as they stand,
// logins after a '~'. Markup stays outside of a span: in [~jroe] it is jroe.
func (s *Scrubber) AppendSpans(dst []Span, text []byte, people [][]byte) []Span {
	s.find.setPeople(people)
	return s.find.appendSpans(dst, text)
}

// AppendText appends text, plain or wiki markup, with its spans replaced. The
// numbering begins anew at each call: the text is one document.
func (s *Scrubber) AppendText(dst, text []byte, people [][]byte) []byte {
	s.begin(people)
	return s.appendText(dst, text)
}

// AppendFormat is AppendText for a text in any format. An ADF or storage text
// that is not well-formed is an error, an *schema.Error without its content.
func (s *Scrubber) AppendFormat(dst, text []byte, f Format, people [][]byte) ([]byte, error) {
	s.begin(people)
	return s.appendFormat(dst, text, f)
}

func (s *Scrubber) begin(people [][]byte) {
	s.find.setPeople(people)
	s.doc.reset(len(people))
	s.run.reset() // an earlier document may have ended in an error
}

func (s *Scrubber) appendFormat(dst, text []byte, f Format) ([]byte, error) {
	switch f {
	case schema.ADF:
		if err := s.inner.Parse(text); err != nil {
			return dst, &schema.Error{Reason: schema.ReasonMalformedADF, Offset: -1}
		}
		return s.appendADF(dst, s.inner.Root())
	case schema.Storage:
		return s.appendStorage(dst, text)
	}
	return s.appendText(dst, text), nil
}

// edit replaces the bytes [start, end) of a text.
type edit struct {
	start, end int
	to         text
}

// text is a half-open range of the Scrubber's placeholder bytes.
type text struct{ start, end int }

// plan finds the spans and look-alikes of text as edits in order; their
// replacements lie in s.run.placeholders.
func (s *Scrubber) plan(t []byte) []edit {
	s.spans = s.find.appendSpans(s.spans[:0], t)
	s.edits = s.edits[:0]
	ph := &s.run.placeholders
	*ph = (*ph)[:0]
	next := 0
	lookAlikes := func(to int) {
		for next < to {
			i := bytes.IndexByte(t[next:to], '[')
			if i < 0 {
				break
			}
			next += i + 1
			if isLookAlike(t[next:to]) {
				at := len(*ph)
				*ph = append(*ph, '\\')
				s.edits = append(s.edits, edit{next, next, text{at, at + 1}})
			}
		}
		next = max(next, to)
	}
	for _, sp := range s.spans {
		e := edit{start: sp.Start, end: sp.End}
		// The markup of a mention goes with its user.
		before := t[:sp.Start]
		if n := len(before) - len(accountPrefix); n >= 0 && bytes.EqualFold(before[n:], []byte(accountPrefix)) {
			before = before[:n]
		}
		if bytes.HasSuffix(before, []byte("[~")) && sp.End < len(t) && t[sp.End] == ']' {
			e.start, e.end = len(before)-2, sp.End+1
		}
		lookAlikes(e.start)
		at := len(*ph)
		*ph = s.doc.appendPlaceholder(*ph, t[sp.Start:sp.End], sp)
		e.to = text{at, len(*ph)}
		s.edits = append(s.edits, e)
		next = max(next, e.end)
	}
	lookAlikes(len(t))
	return s.edits
}

// isLookAlike reports whether t, which follows a '[', reads as a placeholder
// or as an escaped one.
func isLookAlike(t []byte) bool {
	t = bytes.TrimLeft(t, `\`)
	for _, l := range labelNames {
		if rest, ok := bytes.CutPrefix(t, []byte(l+"_")); ok {
			n := 0
			for n < len(rest) && rest[n]-'0' <= 9 {
				n++
			}
			if n > 0 && n < len(rest) && rest[n] == ']' {
				return true
			}
		}
	}
	return false
}

func (s *Scrubber) appendText(dst, t []byte) []byte {
	at := 0
	for _, e := range s.plan(t) {
		dst = append(dst, t[at:e.start]...)
		dst = append(dst, s.run.placeholders[e.to.start:e.to.end]...)
		at = e.end
	}
	return append(dst, t[at:]...)
}

// ErrNoStream is returned for an event that may feed neither stream.
var ErrNoStream = errors.New("scrub: the event may feed neither stream")

// Record scrubs a parsed event. It is the only maker of Records that are not
// zero. The event's Streams must have been set from the gate's decision;
// without the in-app stream no text is looked at or kept. An error means that
// the record must be dropped; it is ErrNoStream or an *schema.Error.
func (s *Scrubber) Record(e *schema.Event) (Record, error) {
	if e.Streams == 0 || e.Kind() == "" {
		return Record{}, ErrNoStream
	}
	r := Record{
		source:   e.Source,
		envelope: e.Envelope,
		edit:     e.Edit(),
		kind:     e.Kind(),
		region:   e.Region,
		streams:  e.Streams,
		withheld: e.Withheld,
	}
	if e.Streams&schema.InApp == 0 {
		return r, nil
	}
	s.people = e.People(s.people[:0])
	s.begin(s.people)
	s.arena, s.parts = s.arena[:0], s.parts[:0]
	for _, t := range e.Texts() {
		from := len(s.arena)
		var err error
		if t.Format == schema.ADF && t.Value.Kind() == schema.Object {
			s.arena, err = s.appendADF(s.arena, t.Value)
		} else {
			s.arena, err = s.appendFormat(s.arena, t.Value.Bytes(), t.Format)
		}
		if err != nil {
			return Record{}, err
		}
		if len(s.arena) > from {
			s.parts = append(s.parts, Part{Role: t.Role, Format: t.Format, Text: s.arena[from:]})
		}
	}
	// The arena may have moved while it grew.
	at := 0
	for i := range s.parts {
		n := len(s.parts[i].Text)
		s.parts[i].Text = s.arena[at : at+n : at+n]
		at += n
	}
	r.parts, r.counts = s.parts, s.doc.counts
	return r, nil
}
