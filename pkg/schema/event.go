// Package schema defines what flows through Winnow: the event and its
// coordinates, the tenant record, the readers for the forms Jira and
// Confluence data arrives in, and the field catalog that says of every path
// whether it is an identifier, metadata, in-app content, or dropped.
//
// It imports the standard library only.
package schema

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// EffectiveDate is T0 of the policy: the first instant at which it is 17
// August 2026 in every time zone. Nothing whose event time or processing time
// lies before it is collected.
var EffectiveDate = time.Date(2026, 8, 17, 12, 0, 0, 0, time.UTC)

// MaxValue is the largest event value, in bytes, that the doors produce and
// the worker reads. Brokers must allow a little more (headers and framing).
const MaxValue = 8 << 20

// Source is where a record came from; it is the record's identity in errors,
// logs, quarantine lists and commits, none of which ever hold content.
type Source struct {
	Topic     string
	Partition int
	Offset    int64
}

func (s Source) String() string {
	return fmt.Sprintf("%s/%d@%d", s.Topic, s.Partition, s.Offset)
}

// Product is a product of the policy's scope, or any other word for one that
// is outside of it.
type Product string

// The products in scope (POLICY row 5).
const (
	Jira              Product = "jira"
	Confluence        Product = "confluence"
	ServiceManagement Product = "jira_service_management"
)

// InScope reports whether the policy covers the product.
func (p Product) InScope() bool {
	return p == Jira || p == Confluence || p == ServiceManagement
}

// Streams says which of the two streams an event may feed. The zero value
// feeds none.
type Streams uint8

// The two streams of the policy.
const (
	Metadata Streams = 1 << iota
	InApp
)

// Withheld says, for each stream that an event may not feed, why. The reason
// of a stream that it may feed is empty.
type Withheld struct {
	Metadata, InApp Reason

	// Undecided is set when nothing could be decided for want of something that
	// an operator can mend, such as a tenant's record: the coordinates go to the
	// quarantine list.
	Undecided bool
}

// Reason says why a record, or one stream of it, was dropped. Reasons are
// stable words: they name counters, commits and quarantine entries.
type Reason string

// Reasons for which a record is dropped before or after the gate because it
// cannot be read. The gate's own reasons are in package gate.
const (
	ReasonEmptyValue     Reason = "empty_value"      // a tombstone, or an empty file or line
	ReasonTooLarge       Reason = "too_large"        // more than MaxValue bytes
	ReasonBadHeaders     Reason = "bad_headers"      // not a CloudEvents 1.0 binary-mode message
	ReasonMalformedJSON  Reason = "malformed_json"   // truncated or not JSON
	ReasonInvalidUTF8    Reason = "invalid_utf8"     // bytes that are not UTF-8
	ReasonTooDeep        Reason = "too_deep"         // nested deeper than MaxDepth
	ReasonDuplicateKey   Reason = "duplicate_key"    // one object names a catalogued key twice
	ReasonWrongType      Reason = "wrong_type"       // a catalogued path holds another JSON type
	ReasonWrapperUnknown Reason = "wrapper_unknown"  // no reader knows this form
	ReasonNotListed      Reason = "type_not_listed"  // a known form that the policy does not list (users, boards, filters, …)
	ReasonMalformedADF   Reason = "malformed_adf"    // a document that is not ADF
	ReasonMalformedXHTML Reason = "malformed_xhtml"  // a storage-format body that is not well-formed
	ReasonNoText         Reason = "no_text"          // admitted, but nothing in it is in-app content
	ReasonVocabulary     Reason = "vocabulary_only"  // a custom name, which leaves only as a counted word of many
	ReasonNoTime         Reason = "no_event_time"    // a webhook without a usable timestamp
	ReasonNotJSON        Reason = "not_a_json_file"  // a file that is no form the doors read
	ReasonUnreadable     Reason = "unreadable_file"  // a file that ends in a read or decompression error
	ReasonRepeat         Reason = "repeated_event"   // an event of this id is in the dataset (package batch)
	ReasonToldTwice      Reason = "told_twice"       // another event told of the same change (package batch)
	ReasonInternal       Reason = "internal_failure" // our own fault (a recovered panic); see the log
)

// Error is a record that cannot be read: a reason, and the path in the
// catalog's own words. It never holds content of the record.
type Error struct {
	Reason Reason
	Path   string // a catalog path such as issue.fields.summary, or empty
	Offset int    // byte offset in the value where the fault was seen, or -1
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(string(e.Reason))
	if e.Path != "" {
		b.WriteString(" at ")
		b.WriteString(e.Path)
	}
	if e.Offset >= 0 {
		fmt.Fprintf(&b, " (byte %d)", e.Offset)
	}
	return b.String()
}

// ReasonOf returns the reason that err carries, or ReasonInternal.
func ReasonOf(err error) Reason {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ReasonInternal
}

// TwoHosts is the Host of an event whose links name more than one. It is no
// host's name, so it belongs to no tenant.
const TwoHosts = "two hosts"

// Envelope is what an event's headers say. It is all that the gate needs to
// admit or drop a record; the last fields are filled in by Event.Parse, when
// the payload has been read, for the gate's second look.
type Envelope struct {
	ID      string    // ce_id: a UUIDv5, see package internal/ingest
	Origin  string    // ce_source: a URI reference that names the door
	Type    string    // ce_type: winnow.<product>.<form>.<name>
	Time    time.Time // ce_time: when the event happened, UTC
	Tenant  string    // ce_tenant: the site (cloudId) as the tenants topic keys it
	Product Product   // ce_product

	Host    string // the host that the payload's own links name, lower case; "" if it names none
	Project string // project key, for scope exclusions (row 20)
	Space   string // space key, likewise
	Scoped  bool   // the payload has been read: it names no other project or space than these
}

// Key identifies the event among all events, by its tenant and its id: 128 bits
// of a SHA-256, so two events share one by no accident, and no tenant can name
// another's.
func (e *Envelope) Key() [16]byte { return hash("event", e.Tenant, e.ID) }

// hash returns 128 bits of the SHA-256 of the words, each behind its length.
func hash(words ...string) [16]byte {
	var b []byte
	for _, w := range words {
		b = append(binary.AppendUvarint(b, uint64(len(w))), w...)
	}
	sum := sha256.Sum256(b)
	return [16]byte(sum[:])
}

// Event is one record: its envelope, its coordinates and its raw value.
type Event struct {
	Envelope
	Source Source
	Value  []byte // the raw Jira or Confluence JSON; owned by the caller

	// Set by the worker from the gate's decision. The zero value lets nothing
	// through: scrub.Record refuses an event that may feed no stream.
	Streams  Streams
	Withheld Withheld
	Region   string // data residency of the tenant; batches of two regions never mix

	doc   *Doc // set by Parse, as are form and texts
	form  *form
	texts []Text
}

// Header is one Kafka message header. It is an alias of an unnamed struct so
// that packages which must not import each other can share it.
type Header = struct {
	Key   string
	Value []byte
}

// CloudEvents attribute names in Kafka's binary content mode: the
// specification's "ce_" prefix before each
// (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md §3.2.3).
const (
	headerSpecVersion = "ce_specversion"
	headerID          = "ce_id"
	headerSource      = "ce_source"
	headerType        = "ce_type"
	headerTime        = "ce_time"
	headerTenant      = "ce_tenant"
	headerProduct     = "ce_product"
	headerContentType = "content-type"
)

// AppendHeaders appends the envelope as CloudEvents 1.0 binary-mode headers.
func (e *Envelope) AppendHeaders(dst []Header) []Header {
	return append(dst,
		Header{headerSpecVersion, []byte("1.0")},
		Header{headerID, []byte(e.ID)},
		Header{headerSource, []byte(e.Origin)},
		Header{headerType, []byte(e.Type)},
		Header{headerTime, e.Time.UTC().AppendFormat(nil, time.RFC3339Nano)},
		Header{headerTenant, []byte(e.Tenant)},
		Header{headerProduct, []byte(e.Product)},
		Header{headerContentType, []byte("application/json")},
	)
}

// usable reports whether an event may bear the time t: what lies further off is
// a clock in other units, or none.
func usable(t time.Time) bool {
	y := t.UTC().Year()
	return y >= 1990 && y <= 2200
}

// ParseHeaders reads an envelope from message headers. The error is an *Error
// with ReasonBadHeaders when an attribute is missing, repeated or unusable. A
// missing tenant is not an error here: the gate names it.
func ParseHeaders(hs []Header) (Envelope, error) {
	var e Envelope
	err := e.ReadHeaders(hs)
	return e, err
}

// ReadHeaders is ParseHeaders into an envelope that was used before: what is as
// it was there is kept, so a run of similar events allocates little. After an
// error e is empty.
func (e *Envelope) ReadHeaders(hs []Header) error {
	was := *e
	*e = Envelope{}
	var seen uint
	bad := func(key string) error {
		*e = Envelope{}
		return &Error{Reason: ReasonBadHeaders, Path: key, Offset: -1}
	}
	for _, h := range hs {
		var bit uint
		switch h.Key {
		case headerSpecVersion:
			bit = 1
		case headerID:
			bit = 2
		case headerSource:
			bit = 4
		case headerType:
			bit = 8
		case headerTime:
			bit = 16
		case headerTenant:
			bit = 32
		case headerProduct:
			bit = 64
		default:
			continue
		}
		// A second tenant or time header would let two readers of one message
		// disagree about whose it is.
		ok := seen&bit == 0 && len(h.Value) <= 512
		seen |= bit
		switch {
		case !ok:
		case bit == 1:
			ok = string(h.Value) == "1.0"
		case bit == 2:
			ok = keep(&e.ID, was.ID, h.Value)
		case bit == 4:
			ok = keep(&e.Origin, was.Origin, h.Value)
		case bit == 8:
			ok = keep(&e.Type, was.Type, h.Value)
		case bit == 16:
			t, err := time.Parse(time.RFC3339Nano, string(h.Value))
			ok = err == nil && usable(t)
			e.Time = t.UTC()
		case bit == 32:
			ok = keep(&e.Tenant, was.Tenant, h.Value)
		case bit == 64:
			ok = keep((*string)(&e.Product), string(was.Product), h.Value)
		}
		if !ok {
			return bad(h.Key)
		}
	}
	switch {
	case seen&1 == 0:
		return bad(headerSpecVersion)
	case e.ID == "":
		return bad(headerID)
	case e.Origin == "":
		return bad(headerSource)
	case e.Type == "":
		return bad(headerType)
	case e.Time.IsZero():
		return bad(headerTime)
	}
	return nil
}

// keep sets to to b, which is was if it is the same, and reports whether b is
// UTF-8.
func keep(to *string, was string, b []byte) bool {
	if was == string(b) {
		*to = was
		return true
	}
	*to = string(b)
	return utf8.Valid(b)
}
