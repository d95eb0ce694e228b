package kafkaio

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/segmentio/kafka-go/compress"
)

// Record is one record. Its bytes belong to the Batch that it came in.
type Record struct {
	Offset     int64
	Time       time.Time // UTC, to the millisecond; zero if the record has none
	Key, Value []byte    // nil is null: a nil Value is a tombstone
	Headers    []Header
}

// CorruptError is a record batch that breaks the format or its checksum.
// Nothing of it was delivered; everything below Offset was.
type CorruptError struct {
	Topic     string
	Partition int
	Offset    int64 // the batch's first offset
	Reason    string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s/%d@%d: corrupt record batch: %s", e.Topic, e.Partition, e.Offset, e.Reason)
}

// Batch is what one Fetch returned. Its memory, records included, is reused by
// the next Fetch with the same Batch: copy what must last longer. The zero
// value is ready to use. It must not be copied.
type Batch struct {
	Records       []Record // ascending by offset, none below the asked one; may be empty
	Next          int64    // the offset to ask for next
	HighWatermark int64    // the offset that the next replicated record will get
	LastStable    int64    // no record at or above it is readable yet: where an open transaction starts, else HighWatermark
	LogStart      int64    // the first offset that the partition still holds

	reply   *reply            // the broker's reply, shared with other Batches, or nil
	borrows bool              // records point into reply: they were not compressed
	plain   [][]byte          // one decompressed batch each
	headers []Header          // of all records
	keys    map[string]string // header keys seen before, so that each is allocated once
}

func (b *Batch) reset(offset int64) {
	b.Records, b.headers, b.Next = b.Records[:0], b.headers[:0], offset
	b.giveBack()
}

// giveBack ends the use of the reply.
func (b *Batch) giveBack() {
	b.reply.release()
	b.reply, b.borrows = nil, false
}

const (
	batchHeader    = 61 // bytes before the records of a v2 batch
	batchUncounted = 12 // of which the batch's own length field counts not these
	attrCodec      = 0x07
	attrAppendTime = 0x08
	attrTxn        = 0x10
	attrControl    = 0x20

	maxPlain = 128 << 20 // bytes that one batch may unpack to
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	unzstd     = newDecoder()
)

func newDecoder() *zstd.Decoder {
	// The checksum of the batch covers what the frame's own would.
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxPlain), zstd.IgnoreChecksum(true))
	if err != nil {
		panic(err) // only for options that contradict each other
	}
	return d
}

// abortedTxn says that the transactional records of Producer from First on, up
// to its next abort marker, were rolled back.
type abortedTxn struct{ Producer, First int64 }

// decoding is the state of one pass over a fetched set of batches.
type decoding struct {
	*Batch
	offset  int64          // asked for
	aborted []abortedTxn   // not reached yet, ascending by First
	open    map[int64]bool // producers whose records are being rolled back
	packed  int            // buffers of plain in use
}

// decode appends the committed records of a fetched set of batches, from offset
// on, and moves Next past every batch that it has read, whatever was in it. A
// bad batch is an error only if it is what Next points to; after good ones it
// is left for the next fetch, so that what is good gets delivered.
func (b *Batch) decode(tp topicPartition, set []byte, offset int64, aborted []abortedTxn) error {
	b.Records, b.headers, b.Next = b.Records[:0], b.headers[:0], offset
	slices.SortFunc(aborted, func(x, y abortedTxn) int { return cmp.Compare(x.First, y.First) })
	d := decoding{Batch: b, offset: offset, aborted: aborted, open: make(map[int64]bool)}
	for len(set) > 0 {
		records, headers := len(b.Records), len(b.headers)
		n, next, err := d.batch(set)
		if err == nil && n == 0 && b.Next == offset {
			// Brokers cut the set at the size that was asked for, but not
			// within its first batch (KIP-74).
			err = errors.New("truncated")
		}
		if err != nil {
			b.Records, b.headers = b.Records[:records], b.headers[:headers]
			if b.Next > offset {
				return nil
			}
			h := cursor{b: set}
			return &CorruptError{tp.topic, tp.partition, h.i64(), err.Error()}
		}
		if n == 0 {
			return nil
		}
		b.Next = max(b.Next, next)
		set = set[n:]
	}
	return nil
}

// batch decodes the first batch of set and returns its length, 0 if it is cut
// off, and the offset after it.
func (d *decoding) batch(set []byte) (n int, next int64, err error) {
	if len(set) < batchUncounted+5 {
		return 0, 0, nil
	}
	h := cursor{b: set}
	base, length := h.i64(), int(h.i32())
	h.i32() // leader epoch
	if magic := h.i8(); magic != 2 {
		return 0, 0, fmt.Errorf("message format %d; 2, of Kafka 0.11, is the oldest that is read", magic)
	}
	n = batchUncounted + length
	if length < batchHeader-batchUncounted {
		return 0, 0, fmt.Errorf("length %d", length)
	}
	if n > len(set) {
		return 0, 0, nil
	}
	if crc := uint32(h.i32()); crc != crc32.Checksum(set[21:n], castagnoli) {
		return 0, 0, errors.New("checksum mismatch")
	}
	attrs := h.i16()
	last := base + int64(h.i32())
	first, latest := h.i64(), h.i64() // timestamps
	producer := h.i64()
	h.take(6) // producer epoch, base sequence
	count := int(h.i32())
	next = last + 1
	if last < base || count < 0 {
		return 0, 0, fmt.Errorf("%d records, last offset %d", count, last)
	}
	for producer >= 0 && len(d.aborted) > 0 && d.aborted[0].First <= last {
		d.open[d.aborted[0].Producer] = true
		d.aborted = d.aborted[1:]
	}
	control := attrs&attrControl != 0
	if !control && (next <= d.offset || count == 0 || attrs&attrTxn != 0 && d.open[producer]) {
		return n, next, nil
	}
	body := cursor{b: set[batchHeader:n]}
	if codec := attrs & attrCodec; codec != 0 {
		if len(d.plain) == d.packed {
			// Batches of a topic are much alike, and do not tell their size.
			size := 0
			if d.packed > 0 {
				size = cap(d.plain[d.packed-1])
			}
			d.plain = append(d.plain, make([]byte, 0, size))
		}
		plain := &d.plain[d.packed]
		if *plain, err = unpack((*plain)[:0], body.b, compress.Compression(codec)); err != nil {
			return 0, 0, err
		}
		body.b = *plain
		d.packed++
	}
	if control {
		if abort, err := isAbort(body, count); err != nil {
			return 0, 0, err
		} else if abort {
			delete(d.open, producer)
		}
		return n, next, nil
	}
	d.borrows = d.borrows || attrs&attrCodec == 0
	d.Records = slices.Grow(d.Records, min(count, len(body.b)/7)) // 7: the smallest record
	prev, before := base-1, len(d.headers)
	for range count {
		r := cursor{b: body.take(body.varint())}
		r.i8() // attributes: unused
		millis := first + int64(r.varint())
		if attrs&attrAppendTime != 0 {
			millis = latest
		}
		rec := Record{Offset: base + int64(r.varint()), Key: r.nullable(), Value: r.nullable()}
		headers, more := len(d.headers), r.varint()
		for ; more > 0 && !r.bad; more-- {
			d.headers = append(d.headers, Header{d.intern(r.take(r.varint())), r.nullable()})
		}
		if body.bad || r.bad || more != 0 || len(r.b) != 0 {
			return 0, 0, fmt.Errorf("malformed record after offset %d", prev)
		}
		if rec.Offset <= prev || rec.Offset > last {
			return 0, 0, fmt.Errorf("record offset %d after %d in a batch that ends at %d", rec.Offset, prev, last)
		}
		if prev = rec.Offset; rec.Offset < d.offset {
			d.headers = d.headers[:headers]
			continue
		}
		if headers == before {
			// So have records. 2: the smallest header.
			d.headers = slices.Grow(d.headers, min((len(d.headers)-headers)*count, len(body.b)/2))
		}
		if len(d.headers) > headers {
			rec.Headers = d.headers[headers:len(d.headers):len(d.headers)]
		}
		if millis >= 0 {
			rec.Time = time.UnixMilli(millis).UTC()
		}
		d.Records = append(d.Records, rec)
	}
	if len(body.b) != 0 {
		return 0, 0, fmt.Errorf("%d bytes after the last of %d records", len(body.b), count)
	}
	return n, next, nil
}

// intern returns k as a string. Header keys are few and repeat in every record.
func (b *Batch) intern(k []byte) string {
	if s, ok := b.keys[string(k)]; ok {
		return s
	}
	s := string(k)
	if b.keys == nil {
		b.keys = make(map[string]string)
	}
	if len(b.keys) < 256 && len(s) <= 64 {
		b.keys[s] = s
	}
	return s
}

// isAbort reads the one record of a control batch. Its key is a version and a
// type: 0 aborts, 1 commits, others concern the brokers.
func isAbort(body cursor, count int) (bool, error) {
	if count == 0 {
		return false, nil // the log cleaner emptied it, and the transaction with it
	}
	r := cursor{b: body.take(body.varint())}
	r.i8()
	r.varint()
	r.varint()
	key := cursor{b: r.nullable()}
	key.i16()
	kind := key.i16()
	if r.bad || key.bad {
		return false, errors.New("malformed control record")
	}
	return kind == 0, nil
}

// unpack decompresses src into dst's memory. The errors of the codecs are not
// passed on, for we do not know that they never quote what they read.
func unpack(dst, src []byte, codec compress.Compression) ([]byte, error) {
	if codec == compress.Zstd {
		out, err := unzstd.DecodeAll(src, dst)
		if err != nil {
			return dst, fmt.Errorf("zstd data that can't be unpacked into %d bytes", maxPlain)
		}
		return out, nil
	}
	c := codec.Codec()
	if c == nil {
		return dst, fmt.Errorf("unknown compression codec %d", codec)
	}
	r := c.NewReader(bytes.NewReader(src))
	defer r.Close()
	w := bytes.NewBuffer(dst)
	if n, err := w.ReadFrom(io.LimitReader(r, maxPlain+1)); err != nil || n > maxPlain {
		return dst, fmt.Errorf("%s data that can't be unpacked into %d bytes", c.Name(), maxPlain)
	}
	return w.Bytes(), nil
}

// cursor reads big-endian fields off the front of b. A read past the end, or of
// a malformed number, returns zero and sets bad, for good.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if n < 0 || n > len(c.b) || c.bad {
		c.b, c.bad = nil, true
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) number(size int) uint64 {
	var v uint64
	for _, x := range c.take(size) {
		v = v<<8 | uint64(x)
	}
	return v
}

func (c *cursor) i8() int8   { return int8(c.number(1)) }
func (c *cursor) i16() int16 { return int16(c.number(2)) }
func (c *cursor) i32() int32 { return int32(c.number(4)) }
func (c *cursor) i64() int64 { return int64(c.number(8)) }

// varint is Kafka's, and encoding/binary's, zigzag encoding.
func (c *cursor) varint() int {
	v, n := binary.Varint(c.b)
	if c.take(n); n <= 0 {
		c.bad = true
	}
	return int(v)
}

func (c *cursor) uvarint() int {
	v, n := binary.Uvarint(c.b)
	if c.take(n); n <= 0 || v > 1<<31 {
		c.bad = true
		return 0
	}
	return int(v)
}

// nullable is a varint length, -1 for null, and that many bytes.
func (c *cursor) nullable() []byte {
	if n := c.varint(); n != -1 {
		return c.take(n)
	}
	return nil
}

// compact is a string or bytes of a flexible version; null reads as nil.
func (c *cursor) compact() []byte {
	if n := c.uvarint(); n > 0 {
		return c.take(n - 1)
	}
	return nil
}

// tags skips the tagged fields that end every structure of a flexible version.
func (c *cursor) tags() {
	for range c.uvarint() {
		c.uvarint()
		c.take(c.uvarint())
		if c.bad {
			return
		}
	}
}
