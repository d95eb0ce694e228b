package batch

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"
	"github.com/parquet-go/parquet-go"

	"winnow/pkg/schema"
)

// Row is one in-app row: one scrubbed text of a document. It names no tenant,
// person, key or offset.
type Row struct {
	ID           string `parquet:"id" json:"id"`                            // UUIDv4 of the document, drawn at random: its parts share it, nothing else does
	Part         int32  `parquet:"part" json:"part"`                        // order in the document, from 0
	Product      string `parquet:"product,dict" json:"product"`             // jira, confluence, jira_service_management
	Kind         string `parquet:"kind,dict" json:"kind"`                   // issue, comment, page, …
	Role         string `parquet:"role,dict" json:"role"`                   // summary, description, body, …
	Format       string `parquet:"format,dict" json:"format"`               // markup of text: plain, wiki, adf, storage
	Text         string `parquet:"text" json:"text"`                        // scrubbed
	Month        string `parquet:"month,dict" json:"month"`                 // YYYY-MM of the event, UTC
	ScrubVersion string `parquet:"scrub_version,dict" json:"scrub_version"` // scrub.Version
}

// count is one row of a metadata file: how many records of a month feed the
// metadata stream.
type count struct {
	Month   string `parquet:"month,dict" json:"month"`
	Product string `parquet:"product,dict" json:"product"`
	Kind    string `parquet:"kind,dict" json:"kind"`
	Count   int64  `parquet:"count" json:"count"`
}

// encodeRejected encodes the lines of a quarantine file, by offset: those that a
// review listed come after those of later records.
func encodeRejected(list []schema.Rejected) ([]byte, error) {
	slices.SortFunc(list, func(a, b schema.Rejected) int { return cmp.Compare(a.Offset, b.Offset) })
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	for i := range list {
		if err := e.Encode(&list[i]); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// rowGroupBytes is the text that a row group of a Parquet file holds before
// the next one begins; a row group is encoded in memory.
const rowGroupBytes = 16 << 20

// encoder makes files of rows, one at a time, and keeps its memory.
type encoder struct {
	buf    bytes.Buffer // the file
	rows   *parquet.GenericWriter[Row]
	counts *parquet.GenericWriter[count]
	zstd   *zstd.Encoder
}

// encodeRows returns the file that holds the rows, valid until the next call.
func (e *encoder) encodeRows(f Format, rows []Row) ([]byte, error) {
	e.buf.Reset()
	if f == JSONL {
		return encodeJSONL(e, rows)
	}
	if e.rows == nil {
		// Bounds of ids and texts would be copies of both in the footer that
		// no query can use.
		e.rows = parquet.NewGenericWriter[Row](&e.buf, parquet.Compression(&parquet.Zstd),
			parquet.DataPageStatistics(false), parquet.SkipPageBounds("id"), parquet.SkipPageBounds("text"))
	}
	e.rows.Reset(&e.buf)
	for len(rows) > 0 {
		n, size := 0, 0
		for n < len(rows) && size < rowGroupBytes {
			size += len(rows[n].Text)
			n++
		}
		if _, err := e.rows.Write(rows[:n]); err != nil {
			return nil, err
		}
		if err := e.rows.Flush(); err != nil {
			return nil, err
		}
		rows = rows[n:]
	}
	err := e.rows.Close()
	return e.buf.Bytes(), err
}

// encodeCounts is encodeRows for a metadata file.
func (e *encoder) encodeCounts(f Format, rows []count) ([]byte, error) {
	e.buf.Reset()
	if f == JSONL {
		return encodeJSONL(e, rows)
	}
	if e.counts == nil {
		e.counts = parquet.NewGenericWriter[count](&e.buf, parquet.Compression(&parquet.Zstd))
	}
	e.counts.Reset(&e.buf)
	if _, err := e.counts.Write(rows); err != nil {
		return nil, err
	}
	err := e.counts.Close()
	return e.buf.Bytes(), err
}

func encodeJSONL[T any](e *encoder, rows []T) ([]byte, error) {
	if e.zstd == nil {
		var err error
		if e.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1)); err != nil {
			return nil, err
		}
	}
	e.zstd.Reset(&e.buf)
	j := json.NewEncoder(e.zstd)
	j.SetEscapeHTML(false)
	for i := range rows {
		if err := j.Encode(&rows[i]); err != nil {
			return nil, err
		}
	}
	err := e.zstd.Close()
	return e.buf.Bytes(), err
}

// load reads a data file of a commit whole and compares it with what the
// commit says of it: nothing that differs is decoded.
func (s *Store) load(ctx context.Context, c *Commit, f *File, generation int, attempt string) ([]byte, error) {
	if f.Path != c.path(f, generation, attempt) {
		return nil, errors.New("the path is not the one that its commit, stream, region and month give")
	}
	b, err := s.storage.read(ctx, f.Path)
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != f.Bytes {
		return nil, fmt.Errorf("the file has %d bytes, its commit says %d", len(b), f.Bytes)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != f.SHA256 {
		return nil, errors.New("the file's sha256 is not the one in its commit")
	}
	return b, nil
}

// decode yields the rows of a data file in order.
func decode[T any](f Format, b []byte, yield func(T) error) error {
	if f == JSONL {
		z, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return err
		}
		defer z.Close()
		return decodeLines(bufio.NewReader(z), yield)
	}
	return decodeParquet(b, yield)
}

func decodeLines[T any](r io.Reader, yield func(T) error) error {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	for {
		var row T
		if err := d.Decode(&row); err == io.EOF {
			return nil
		} else if err != nil {
			return jsonError(err)
		}
		if err := yield(row); err != nil {
			return err
		}
	}
}

// jsonError keeps the position of a fault and not the text that some of
// encoding/json's messages quote.
func jsonError(err error) error {
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("a line is not JSON (byte %d)", syntax.Offset)
	case errors.As(err, &typ):
		return fmt.Errorf("column %s holds another type (byte %d)", typ.Field, typ.Offset)
	}
	return errors.New("a line is not a row with the format's columns")
}

func decodeParquet[T any](b []byte, yield func(T) error) error {
	var r *parquet.GenericReader[T]
	err := guard(func() error {
		f, err := parquet.OpenFile(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return err
		}
		if !parquet.EqualNodes(f.Schema(), parquet.SchemaOf(new(T))) {
			return errors.New("the columns are not the format's")
		}
		r = parquet.NewGenericReader[T](f)
		return nil
	})
	if err != nil {
		return err
	}
	defer r.Close()
	rows := make([]T, 64)
	for {
		n := 0
		err := guard(func() (err error) { n, err = r.Read(rows); return err })
		for _, row := range rows[:n] {
			if err := yield(row); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// guard turns a panic of the Parquet library, which has some for malformed
// files, into an error. A file can be malformed although its hash was
// compared: whoever wrote the commit may have written both.
func guard(f func() error) (err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("not readable as Parquet")
		}
	}()
	return f()
}

// ReadRows yields the in-app rows of one commit that are left after erasures,
// each with the file that holds it, by region and month and then in the order
// of offsets. It stops at the first error, its own or one that yield returns.
// Each file is compared with its hash before a row of it is yielded.
func (s *Store) ReadRows(c Commit, yield func(File, Row) error) error {
	ctx := context.Background()
	g, err := s.generation(ctx, &c)
	if err != nil {
		return fmt.Errorf("read %v: %w", c.Source(), err)
	}
	files, _ := c.current(g)
	for i := range files {
		f := &files[i]
		if f.Stream != StreamInApp {
			continue
		}
		b, err := s.load(ctx, &c, &f.File, f.generation, f.attempt)
		if err == nil {
			err = decode(c.Format, b, func(r Row) error { return yield(f.File, r) })
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", f.Path, err)
		}
	}
	return nil
}

// ReadQuarantine yields every line of the data set's quarantine files: the
// records that could not be read, by topic and partition and then in the order
// of offsets. It stops at the first error, its own or one that yield returns.
// Each file is compared with its hash before a line of it is yielded.
func (s *Store) ReadQuarantine(ctx context.Context, yield func(schema.Rejected) error) error {
	ps, _, err := s.partitions(ctx)
	if err != nil {
		return fmt.Errorf("read quarantine: %w", err)
	}
	for _, p := range ps {
		chain, err := s.Chain(p.Topic, p.Partition)
		if err != nil {
			return fmt.Errorf("read quarantine: %w", err)
		}
		for i := range chain {
			if err := s.quarantine(ctx, &chain[i], yield); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Store) quarantine(ctx context.Context, c *Commit, yield func(schema.Rejected) error) error {
	if !slices.ContainsFunc(c.Files, func(f File) bool { return f.Stream == StreamQuarantine }) {
		return nil
	}
	g, err := s.generation(ctx, c)
	if err != nil {
		return fmt.Errorf("read %v: %w", c.Source(), err)
	}
	files, _ := c.current(g)
	for i := range files {
		f := &files[i]
		if f.Stream != StreamQuarantine {
			continue
		}
		b, err := s.load(ctx, c, &f.File, f.generation, f.attempt)
		if err == nil {
			err = decodeLines(bytes.NewReader(b), yield)
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", f.Path, err)
		}
	}
	return nil
}
