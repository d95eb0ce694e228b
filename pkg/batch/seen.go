package batch

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"
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

// forget takes back what add added last under the key.
func (m *memory) forget(s seenAt) {
	if m.young[s.key] == s.offset {
		delete(m.young, s.key)
	}
	if m.old[s.key] == s.offset {
		delete(m.old, s.key)
	}
}

// kept is a memory that no writer uses: of all keys below an offset that the
// chain reached, and of none above it.
type kept struct {
	*memory
	end int64
}

// keep keeps a memory for the next writer of the partition.
func (s *Store) keep(p Partition, k kept) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.memories == nil {
		s.memories = map[Partition]kept{}
	}
	s.memories[p] = k
}

// horizon is Horizon; tests make it short.
var horizon int64 = Horizon

// readers is how many files are read at once where there may be thousands.
const readers = 32

// remember returns the memory of the last horizon offsets below the tip of the
// chain: a kept one, with what was committed since, or a new one.
func (s *Store) remember(ctx context.Context, p Partition, tip int64) (*memory, error) {
	s.mu.Lock()
	k, ok := s.memories[p]
	delete(s.memories, p)
	s.mu.Unlock()
	if !ok || k.end > tip || k.horizon != horizon {
		k = kept{newMemory(horizon), 0}
	}
	ns, _, err := s.names(ctx, p)
	if err != nil {
		return nil, err
	}
	// A commit is named by its start, so the one that reaches over the bound is
	// the last with a name at or below it.
	from := max(k.end, tip-horizon)
	first := len(ns)
	for first > 0 && ns[first-1] >= from {
		first--
	}
	if first > 0 && from > k.end {
		first--
	}
	ns = ns[first:]
	found := make([][]seenAt, len(ns))
	g, reading := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for i, n := range ns {
		read := func() (err error) { found[i], err = s.seenBy(reading, p, n); return err }
		if len(ns) > readers {
			g.Go(read)
		} else if err := read(); err != nil {
			return nil, err
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, keys := range found {
		for _, x := range keys {
			k.add(x)
		}
	}
	return k.memory, nil
}

// seenBy returns the keys of one commit.
func (s *Store) seenBy(ctx context.Context, p Partition, extends int64) (keys []seenAt, err error) {
	c, err := s.readCommit(ctx, p, extends)
	if err != nil {
		return nil, err
	}
	for i := range c.Files {
		f := &c.Files[i]
		if f.Stream != StreamSeen {
			continue
		}
		b, err := s.load(ctx, &c, f, 0, c.Attempt)
		if err == nil {
			err = decodeSeen(b, c.Start, c.End, func(x seenAt) { keys = append(keys, x) })
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	return keys, nil
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
