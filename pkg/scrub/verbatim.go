//go:build bench

package scrub

import "winnow/pkg/schema"

// Verbatim makes a Record of an event's value as it is. It exists in
// benchmarks alone, which are built by tag, to measure what a batch costs
// without the scrub.
func Verbatim(e *schema.Event, kind string, parts []Part) Record {
	return Record{source: e.Source, envelope: e.Envelope, kind: kind, region: e.Region, streams: e.Streams, withheld: e.Withheld,
		parts: append(parts[:0], Part{Role: "description", Format: schema.Plain, Text: e.Value})}
}
