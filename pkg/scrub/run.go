package scrub

import "winnow/pkg/schema"

// run is a stretch of text that markup has cut into pieces, such as the text
// nodes of one ADF paragraph. It is scrubbed as a whole, so that a name or
// address is found across the pieces, and then written piece by piece: a
// replacement stands in the piece where its span begins, and the pieces that
// the span goes on into lose their part of it.
type run struct {
	buf          []byte // the pieces' text, one after the other
	pieces       []piece
	out          []byte
	placeholders []byte
	parted       bool // an element that leaves nothing stood after the last piece
}

type piece struct {
	end   int          // of the piece's text in buf; it begins where the last one ended
	fixed text         // output of a piece without text of its own, in out
	kind  int          // of a piece with text: how the caller writes it
	node  schema.Value // of a piece with text, where the caller needs it
}

// gap is what a piece that separates words leaves in buf, so that nothing is
// found across it: no letters, and longer than maxSeparator.
const gap = "\uFFFC\uFFFC\uFFFC"

func (r *run) reset() { r.buf, r.pieces, r.out, r.parted = r.buf[:0], r.pieces[:0], r.out[:0], false }

func (r *run) empty() bool { return len(r.pieces) == 0 }

// text adds a piece with text of its own.
func (r *run) text(t []byte, kind int, node schema.Value) {
	r.part()
	r.buf = append(r.buf, t...)
	r.pieces = append(r.pieces, piece{end: len(r.buf), kind: kind, node: node})
}

// part puts a space where an element that leaves nothing stood between two
// texts. Without it "jane@", an image and "example.org" would be scrubbed apart
// and grow together to an address in the output.
func (r *run) part() {
	if r.parted && len(r.pieces) > 0 {
		r.buf = append(r.buf, ' ')
		r.pieces = append(r.pieces, piece{end: len(r.buf)})
	}
	r.parted = false
}

// fixedFrom adds a piece whose output was appended to r.out from offset from
// on. A piece that separates words leaves a gap.
func (r *run) fixedFrom(from int, separates bool) {
	if separates {
		r.buf = append(r.buf, gap...)
	}
	r.pieces = append(r.pieces, piece{end: len(r.buf), fixed: text{from, len(r.out)}, kind: -1})
}

// flush scrubs the run and calls write for each piece in order: with the
// scrubbed text of a piece that has text (kind ≥ 0), else with its fixed
// output. The text is valid during the call.
func (s *Scrubber) flush(write func(p piece, t []byte)) {
	r := &s.run
	edits := s.plan(r.buf)
	var scratch []byte
	at, next := 0, 0
	for _, p := range r.pieces {
		if p.kind < 0 {
			write(p, r.out[p.fixed.start:p.fixed.end])
			at = max(at, p.end)
			continue
		}
		scratch = scratch[:0]
		for at < p.end || next < len(edits) && edits[next].start < p.end {
			if next == len(edits) || edits[next].start >= p.end {
				scratch = append(scratch, r.buf[at:p.end]...)
				at = p.end
				break
			}
			e := edits[next]
			next++
			if e.start > at { // else it begins in a piece that is fixed
				scratch = append(scratch, r.buf[at:e.start]...)
			}
			scratch = append(scratch, r.placeholders[e.to.start:e.to.end]...)
			at = e.end
		}
		write(p, scratch)
	}
	r.reset()
}
