package scrub

import "winnow/pkg/schema"

// Record is one scrubbed document: the only thing that package batch writes.
// Only Scrubber.Record makes a Record that is not zero, and batch refuses the
// zero Record, so unscrubbed text cannot reach a file.
//
// The texts belong to the Scrubber and are valid until its next call.
type Record struct {
	source   schema.Source
	envelope schema.Envelope
	edit     schema.Edit
	kind     string
	region   string
	streams  schema.Streams
	withheld schema.Withheld
	parts    []Part
	counts   [NumLabels]int
}

// Part is one scrubbed text of a document, such as its summary or a comment.
type Part struct {
	Role   string // summary, description, environment, comment, title, body
	Format Format // the markup that Text is in
	Text   []byte
}

// Source returns the coordinates of the event that the record was made of.
func (r *Record) Source() schema.Source { return r.source }

// Envelope returns what the event's headers and ids say, by which the gate
// decides. None of it is for output.
func (r *Record) Envelope() schema.Envelope { return r.envelope }

// Edit returns the change that the event tells of.
func (r *Record) Edit() schema.Edit { return r.edit }

// Kind returns what the document is: issue, comment, worklog, page, blogpost,
// sprint and so on, in the words of the readers of package schema.
func (r *Record) Kind() string { return r.kind }

// Region returns the data residency that the document must stay in.
func (r *Record) Region() string { return r.region }

// Streams returns the streams that the record may feed; zero for a zero
// Record.
func (r *Record) Streams() schema.Streams { return r.streams }

// Withheld returns why the record may not feed a stream.
func (r *Record) Withheld() schema.Withheld { return r.withheld }

// Parts returns the scrubbed texts in document order. It is empty when the
// record may not feed the in-app stream.
func (r *Record) Parts() []Part { return r.parts }

// Counts returns how many spans of each label were removed.
func (r *Record) Counts() [NumLabels]int { return r.counts }
