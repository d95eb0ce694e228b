// Package ingest is the doors that records come in by: it unwraps what it is
// handed to events, names each one's tenant and id, and produces them to the
// events topic. Delivery is at least once; the id of an event is the same
// whenever its record is read again, so that a reader can tell a repeat.
package ingest

import (
	"crypto/sha256"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/google/uuid"

	"winnow/internal/kafkaio"
	"winnow/pkg/gate"
	"winnow/pkg/schema"
)

// Place says where a door was handed a record; it names the record in errors
// and lists, and is what its event id is made from.
type Place struct {
	File   string        // as the caller named it, relative to the argument it was found under
	Line   int           // from 1; 0 for a file that is one JSON text
	Source schema.Source // in place of both, of a record on a topic
	Index  int           // among the records of one JSON text, from 0
}

func (p Place) String() string {
	s := p.File
	if p.Source.Topic != "" {
		s = p.Source.String()
	}
	if p.Line > 0 {
		s += ":" + strconv.Itoa(p.Line)
	}
	if p.Index > 0 {
		s += "#" + strconv.Itoa(p.Index)
	}
	return s
}

// holder is the place without the position in it: a file, or a partition.
func (p Place) holder() Place {
	p.Line, p.Source.Offset, p.Index = 0, 0, 0
	return p
}

// EventTime says which time an event is given.
type EventTime string

// The two readings of event time. Of the record, a webhook has its own
// timestamp and a REST export, which has none, the time of the replay. Under
// Replay every event has the time of the replay; it is for one's own archives,
// which are older than the policy, and is recorded in every commit.
const (
	OfRecord EventTime = "record"
	OfReplay EventTime = "replay"
)

// Door turns records into messages for the events topic.
type Door struct {
	Policy        *gate.Policy // names the tenant of a host; may be nil
	AssumeConsent bool         // a record without a tenant is the built-in tenant's
	EventTime     EventTime
	Now           time.Time // the time of the replay
	Name          string    // ce_source of its events, before the place of each
	TopicID       string    // of the topic that its Places name; see kafkaio.TopicInfo
	Rate          int       // events that Replay produces in a second at most; 0: as fast as the brokers take them
	Admit         bool      // refuse an event to which Policy, which must be set, gives no stream at Now

	doc schema.Doc
}

// namespace is the UUIDv5 name space of event ids (RFC 9562 §5.5).
var namespace = uuid.NewSHA1(uuid.NameSpaceURL, []byte("urn:winnow:event"))

// EventID returns the id of the event that a door calls by name: a delivery id
// or source coordinates.
func EventID(name string) string { return uuid.NewSHA1(namespace, []byte(name)).String() }

// Unwrap yields a message for each event in one JSON text, or the reason why a
// record in it is not one. The error holds no content of the record. Key,
// value and headers are the caller's to keep; the value is a slice of raw.
func (d *Door) Unwrap(at Place, raw []byte, yield func(at Place, m kafkaio.Message, err error)) {
	schema.Unwrap(&d.doc, raw, func(index int, it schema.Item, err error) {
		at.Index = index
		if err != nil {
			yield(at, kafkaio.Message{}, err)
			return
		}
		m, err := d.message(at, it)
		yield(at, m, err)
	})
}

// origin is the ce_source of the record at a place: a URI reference, in which
// the file's name is escaped and the line, or offset, and index stand as the
// fragment.
func (d *Door) origin(at Place) string {
	u := url.URL{Path: d.Name + "/" + at.File}
	if at.Source.Topic != "" {
		u.Path = d.Name + "/" + at.Source.Topic + "/" + strconv.Itoa(at.Source.Partition)
		u.Fragment = strconv.FormatInt(at.Source.Offset, 10)
	}
	if at.Line > 0 {
		u.Fragment = "L" + strconv.Itoa(at.Line)
	}
	if at.Index > 0 {
		u.Fragment += "." + strconv.Itoa(at.Index)
	}
	if s := u.String(); len(s) <= maxOrigin {
		return s
	}
	return d.Name
}

// maxOrigin bounds ce_source, in bytes; a header has its own bound.
const maxOrigin = 400

// anothers reports whether a record may belong to a tenant that the policy
// knows: its host is one that several list, or its links name two hosts, of
// which either may be a tenant's. Consent is not assumed for such a record.
func (d *Door) anothers(host string) bool {
	return d.Policy != nil && (d.Policy.Claimed(host) || host == schema.TwoHosts && d.Policy.Len() > 0)
}

// decided is an error of a record that the policy decided against: there is
// nothing that an operator could mend.
type decided struct{ error }

func (d decided) Unwrap() error { return d.error }

// admit gates an event: an error, which wraps a *schema.Error, says that the
// policy gives it no stream. Where the streams have two reasons, it is that of
// the in-app stream. It is a decided one unless more may become known.
func (d *Door) admit(e schema.Envelope) error {
	if !d.Admit {
		return nil
	}
	dec := d.Policy.Decide(e, d.Now)
	if dec.Streams() != 0 {
		return nil
	}
	err := &schema.Error{Reason: dec.InAppReason, Offset: -1}
	if dec.Withheld().Undecided {
		return err
	}
	return decided{err}
}

// coordinates is what the id of an event is made from that has none of its own.
func (d *Door) coordinates(at Place, value []byte) string {
	if s := at.Source; s.Topic != "" && d.TopicID != "" {
		// A topic made again has another id, so its offsets give other events.
		return fmt.Sprintf("%s\x00%d\x00%d\x00%d", d.TopicID, s.Partition, s.Offset, at.Index)
	} else if s.Topic != "" {
		return fmt.Sprintf("%v\x00%d\x00%x", s, at.Index, sha256.Sum256(value))
	}
	// The content belongs to the name: tomorrow's export has the same file and
	// lines, and other records.
	return fmt.Sprintf("%s\x00%d\x00%d\x00%x", at.File, at.Line, at.Index, sha256.Sum256(value))
}

func (d *Door) message(at Place, it schema.Item) (kafkaio.Message, error) {
	e := it.Envelope
	if e.Tenant == "" && d.Policy != nil {
		e.Tenant, _ = d.Policy.TenantOf(e.Host)
	}
	if e.Tenant == "" && d.AssumeConsent && !d.anothers(e.Host) {
		e.Tenant = gate.LocalTenant
	}
	if e.Tenant == "" {
		return kafkaio.Message{}, &schema.Error{Reason: gate.TenantUnknown, Offset: -1}
	}
	if e.Time.IsZero() || d.EventTime == OfReplay {
		e.Time = d.Now
	}
	if err := d.admit(e); err != nil {
		return kafkaio.Message{}, err
	}
	name := e.ID
	if name == "" {
		name = d.coordinates(at, it.Value)
	}
	e.ID, e.Origin = EventID(name), d.origin(at)
	key := it.Entity
	if key == "" {
		key = e.ID
	}
	// Events of one entity stay in order: they share a partition.
	return d.produced(e, []byte(e.Tenant+"|"+string(e.Product)+"/"+key), it.Value)
}

// produced is the message of an event.
func (d *Door) produced(e schema.Envelope, key, value []byte) (kafkaio.Message, error) {
	headers := e.AppendHeaders(nil)
	if _, err := schema.ParseHeaders(headers); err != nil {
		return kafkaio.Message{}, err // what no worker can read is better refused where it stands
	}
	return kafkaio.Message{Key: key, Value: value, Headers: headers, Time: d.Now}, nil
}
