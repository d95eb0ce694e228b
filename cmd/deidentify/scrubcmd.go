package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"winnow/pkg/schema"
	"winnow/pkg/scrub"
)

type scrubCmd struct {
	Spans  bool     `help:"Print the spans instead of the text: {\"id\",\"text\",\"spans\":[{\"start\",\"end\",\"label\"}]}, byte offsets into UTF-8. For plain, wiki and jsonl."`
	Format string   `enum:"plain,wiki,adf,storage,jsonl" default:"plain" help:"Format of stdin: plain, wiki, adf, storage, or jsonl with {\"id\",\"text\"} a line."`
	Person []string `placeholder:"NAME" help:"A person that the text may name, as a user object would declare them; a login after a '~'. May be repeated."`
}

// textLine is one line of --format jsonl.
type textLine struct {
	ID   json.RawMessage `json:"id,omitempty"`
	Text *string         `json:"text"`
	Span []spanOut       `json:"spans,omitempty"`
}

type spanOut struct {
	Start int    `json:"start"`
	End   int    `json:"end"`
	Label string `json:"label"`
}

func (c *scrubCmd) Run(s *session) error {
	if c.Spans && (c.Format == "adf" || c.Format == "storage") {
		return usageError("--spans gives offsets into the text as it stands; with --format adf or storage there is no such text")
	}
	people := make([][]byte, len(c.Person))
	for i, p := range c.Person {
		people[i] = []byte(p)
	}
	sc := scrub.New()
	out := bufio.NewWriter(s.stdout)
	if c.Format == "jsonl" {
		return errors.Join(c.lines(s.stdin, out, sc, people), out.Flush())
	}
	text, err := io.ReadAll(s.stdin)
	if err != nil {
		return err
	}
	if !utf8.Valid(text) {
		return &schema.Error{Reason: schema.ReasonInvalidUTF8, Offset: -1}
	}
	if c.Spans {
		return errors.Join(writeLine(out, nil, text, sc.AppendSpans(nil, text, people)), out.Flush())
	}
	var f schema.Format
	for i, name := range schema.FormatNames {
		if name == c.Format {
			f = schema.Format(i)
		}
	}
	clean, err := sc.AppendFormat(nil, text, f, people)
	if err != nil {
		return err
	}
	_, err = out.Write(clean)
	return errors.Join(err, out.Flush())
}

func (c *scrubCmd) lines(in io.Reader, out *bufio.Writer, sc *scrub.Scrubber, people [][]byte) error {
	br := bufio.NewReaderSize(in, 1<<20)
	var clean []byte
	var spans []scrub.Span
	for n := 1; ; n++ {
		line, err := br.ReadBytes('\n')
		if err == io.EOF && len(line) == 0 {
			return nil
		}
		if err != nil && err != io.EOF {
			return err
		}
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		var t textLine
		if !utf8.Valid(line) || json.Unmarshal(line, &t) != nil || t.Text == nil {
			return fmt.Errorf("line %d is not {\"id\",\"text\"}", n)
		}
		text := []byte(*t.Text)
		if c.Spans {
			spans = sc.AppendSpans(spans[:0], text, people)
			err = writeLine(out, t.ID, text, spans)
		} else {
			clean = sc.AppendText(clean[:0], text, people)
			err = writeLine(out, t.ID, clean, nil)
		}
		if err != nil {
			return err
		}
	}
}

func writeLine(out io.Writer, id json.RawMessage, text []byte, spans []scrub.Span) error {
	s := string(text)
	t := textLine{ID: id, Text: &s}
	for _, sp := range spans {
		t.Span = append(t.Span, spanOut{sp.Start, sp.End, sp.Label.String()})
	}
	e := json.NewEncoder(out)
	e.SetEscapeHTML(false)
	return e.Encode(t)
}
