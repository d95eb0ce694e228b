package batch

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Horizon is how far back a Writer remembers what it has written, in offsets
// of its partition: a repeat is told as one when it lies at most this far
// behind. The rule counts offsets, not time, so that a replay tells the same
// repeats. Jira gives a webhook up after five retries, at most 15 minutes
// apart, so retries are told up to 110 records a second on one partition.
// A writer's memory of a full horizon takes about 45 MB.
const Horizon = 1 << 19

// key is a schema.Key of an event, or of the change that it tells of.
type key = [16]byte

// seenAt is one key and the offset of the record that brought it.
type seenAt struct {
	offset int64
	key    key
}

// memory holds the keys of the last horizon offsets, in two halves: when young
// covers a horizon it becomes old, and what was old is forgotten as a whole.
// So nothing is deleted key by key, and in the steady state nothing allocated.
type memory struct {
	horizon    int64
	young, old map[key]int64 // → the latest offset that brought the key
	since      int64         // young holds what was added from this offset on
}

func newMemory(horizon int64) *memory {
	return &memory{horizon: horizon, young: map[key]int64{}, old: map[key]int64{}}
}

// has reports whether the key was added at most a horizon before the offset.
func (m *memory) has(k key, offset int64) bool {
	at, ok := m.young[k]
	if !ok {
		at, ok = m.old[k]
	}
	return ok && offset-at <= m.horizon
}

// add adds a key; offsets must not fall.
func (m *memory) add(s seenAt) {
	if s.offset-m.since > m.horizon {
		m.old, m.young, m.since = m.young, m.old, s.offset
		clear(m.young)
	}
	m.young[s.key] = s.offset
}

// appendSeen appends the file of a commit's keys: for each, the distance of
// its offset from the one before it (from start, for the first) as a uvarint,
// and its 16 bytes.
func appendSeen(dst []byte, start int64, seen []seenAt) []byte {
	for _, s := range seen {
		dst = binary.AppendUvarint(dst, uint64(s.offset-start))
		dst = append(dst, s.key[:]...)
		start = s.offset
	}
	return dst
}

// decodeSeen yields what appendSeen wrote.
func decodeSeen(b []byte, start, end int64, yield func(seenAt)) error {
	for n := 1; len(b) > 0; n++ {
		d, size := binary.Uvarint(b)
		if size <= 0 || len(b) < size+len(key{}) {
			return errors.New("the file ends within an entry")
		}
		if d >= uint64(end-start) {
			return fmt.Errorf("entry %d is of no offset of the commit", n)
		}
		start += int64(d)
		yield(seenAt{start, key(b[size:])})
		b = b[size+len(key{}):]
	}
	return nil
}
