package scrub

import "winnow/pkg/schema"

// Format is the markup of a text.
type Format = schema.Format

// Label says what a span is.
type Label uint8

// The labels that spans carry, in the order of their counters.
const (
	Person Label = iota
	Email
	Username
	AccountID
	Phone
	IP
	URLAccount
	Credential
	NumLabels
)

var labelNames = [NumLabels]string{"PERSON", "EMAIL", "USERNAME", "ACCOUNT_ID", "PHONE", "IP", "URL_ACCOUNT", "CREDENTIAL"}

func (l Label) String() string { return labelNames[l] }

// Span is one identifier in a text: the half-open range of byte offsets
// [Start, End).
type Span struct {
	Start, End int
	Label      Label
	Person     int32 // index into the people that the text was scrubbed with, or -1
}

// Version names the rules that a text was scrubbed by. It is written into
// every row and every commit, and changes with anything that changes output.
const Version = "1"
