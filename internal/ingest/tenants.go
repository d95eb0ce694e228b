package ingest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"winnow/internal/kafkaio"
	"winnow/pkg/gate"
	"winnow/pkg/schema"
)

// Tenants reads tenant records, one JSON object a line, and returns a message
// for each, keyed by its tenant. Every bad line is in the error, by number and
// field, never with its values; the messages are then nil, so that nothing of
// a file with a fault is produced.
func Tenants(r io.Reader, now time.Time) ([]kafkaio.Message, error) {
	var msgs []kafkaio.Message
	var faults []error
	br := bufio.NewReaderSize(r, 1<<20)
	for line := 1; ; line++ {
		text, long, err := readLine(br)
		if err != nil && err != io.EOF {
			return nil, err
		}
		if err == io.EOF && len(text) == 0 && !long {
			break
		}
		if long {
			faults = append(faults, fmt.Errorf("line %d: longer than %d bytes", line, schema.MaxValue))
			continue
		}
		if len(bytes.TrimSpace(text)) == 0 {
			continue
		}
		t, err := schema.ParseTenant(text)
		if err == nil && t.ID == gate.LocalTenant {
			err = errors.New("tenant record: the tenant id \"local\" is built in")
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("line %d: %w", line, err))
			continue
		}
		msgs = append(msgs, kafkaio.Message{Key: []byte(t.ID), Value: text, Time: now})
	}
	if faults != nil {
		return nil, errors.Join(faults...)
	}
	return msgs, nil
}
