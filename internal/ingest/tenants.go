package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strconv"
	"strings"
	"time"

	"winnow/internal/kafkaio"
	"winnow/pkg/gate"
	"winnow/pkg/schema"
)

// EnsureTenants makes the tenants topic when it is absent: one partition, so that
// its records have one order, and compacted.
func EnsureTenants(ctx context.Context, c *kafkaio.Client, topic string) error {
	return c.EnsureTopic(ctx, topic, 1, map[string]string{"cleanup.policy": "compact"})
}

// EnsureEvents makes the events topic when it is absent, with room for the
// largest event.
func EnsureEvents(ctx context.Context, c *kafkaio.Client, topic string, partitions int) error {
	return c.EnsureTopic(ctx, topic, partitions, map[string]string{"max.message.bytes": strconv.Itoa(2 * schema.MaxValue)})
}

// ProduceTenants puts a file of tenant records on the tenants topic, which it
// makes when absent, and returns how many were acknowledged. Of a file with a
// fault nothing is produced. A record that the topic holds already is left out;
// one that does not extend what the topic holds of its tenant (see
// schema.Tenant.Extends) is a fault: it would take back what was once said.
func ProduceTenants(ctx context.Context, c *kafkaio.Client, topic, path string, now time.Time) (int, error) {
	if err := EnsureTenants(ctx, c, topic); err != nil {
		return 0, err
	}
	known := map[string][]byte{}
	if _, err := c.ReadAll(ctx, topic, func(_ int, r kafkaio.Record) error {
		known[string(r.Key)] = bytes.Clone(r.Value)
		return nil
	}); err != nil {
		return 0, fmt.Errorf("reading topic %s: %w", topic, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	msgs, err := Tenants(f, known, now)
	if err != nil {
		return 0, fmt.Errorf("%s: nothing of it was taken:\n  %s", path, strings.ReplaceAll(err.Error(), "\n", "\n  "))
	}
	p := c.Producer(topic)
	return len(msgs), errors.Join(p.Produce(ctx, msgs...), p.Close())
}

// Tenants reads tenant records, one JSON object a line, and returns a message
// for each, keyed by its tenant. Every bad line is in the error, by number and
// field, never with its values; the messages are then nil, so that nothing of
// a file with a fault is produced. known is what the topic holds, by key; each
// record must extend its tenant's, as must one that another of the file follows.
func Tenants(r io.Reader, known map[string][]byte, now time.Time) ([]kafkaio.Message, error) {
	known = maps.Clone(known)
	if known == nil {
		known = map[string][]byte{}
	}
	var msgs []kafkaio.Message
	err := eachLine(r, func(line []byte, long bool) error {
		if long {
			return fmt.Errorf("longer than %d bytes", schema.MaxValue)
		}
		t, err := schema.ParseTenant(line)
		if err != nil {
			return err
		}
		if t.ID == gate.LocalTenant {
			return errors.New("tenant record: the tenant id \"local\" is built in")
		}
		if bytes.Equal(known[t.ID], line) {
			return nil
		}
		// What can't be read can't be taken back; a higher revision mends it.
		if old, err := schema.ParseTenant(known[t.ID]); err == nil {
			if err := t.Extends(old); err != nil {
				return fmt.Errorf("tenant record: %w", err)
			}
		}
		known[t.ID] = line
		msgs = append(msgs, kafkaio.Message{Key: []byte(t.ID), Value: line, Time: now})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return msgs, nil
}
