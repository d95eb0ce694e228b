package scrub

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"winnow/pkg/schema"
)

const (
	cloudID = "557058:0f3a7c11-2b4d-4e6f-8a90-b1c2d3e4f506"
	qmID    = "qm:0f3a7c11-2b4d-4e6f-8a90-b1c2d3e4f506:99b430e4-c46f-483d-b11a-c51f04485115"
	hexID   = "5f3a7c112b4d4e6f8a90b1c2"
)

// people of the tables: each with what one user object would declare.
var people = [][]byte{
	[]byte("Jane Roe\x00~jroe\x00jane.roe@corp.example\x00" + cloudID),
	[]byte("Björn O'Neill-Ås\x00~test\x00bjorn@corp.example"),
	[]byte("佐藤 遥"),
	[]byte("~p.d-q"),
}

func TestText(t *testing.T) {
	for _, c := range []struct{ name, in, out string }{
		// E-mail addresses.
		{"address", "mail x@y.example now", "mail [EMAIL_1] now"},
		{"same address, other case", "a@b.example A@B.example", "[EMAIL_1] [EMAIL_1]"},
		{"two addresses", "a@b.example, c@b.example", "[EMAIL_1], [EMAIL_2]"},
		{"plus tag and dots", "a.b+c_d@sub.host.example.", "[EMAIL_1]."},
		{"angle brackets", "<a@b.example>", "<[EMAIL_1]>"},
		{"mailto", "[write|mailto:a@b.example]", "[write|mailto:[EMAIL_1]]"},
		{"international", "jürgen@münchen.example", "[EMAIL_1]"},
		{"percent-encoded at sign", "?to=a%40b.example", "?to=[EMAIL_1]"},
		{"HTML reference", "a&#64;b.example", "[EMAIL_1]"},
		{"NBSP ends it", "a@b.example\u00a0next", "[EMAIL_1]\u00a0next"},
		{"annotation", "@Override public", "@Override public"},
		{"scope", "npm i @types/node", "npm i @types/node"},
		{"host without a dot", "root@localhost", "root@localhost"},
		{"version", "left-pad@1.3.0", "left-pad@1.3.0"},
		{"at sign alone", "a @ b.example", "a @ b.example"},
		// Mentions.
		{"mention of nobody declared", "[~someone]", "[USERNAME_1]"},
		{"mention of a declared login", "[~jroe] [~JROE]", "[PERSON_1] [PERSON_1]"},
		{"mention by account id", "[~accountid:" + cloudID + "]", "[PERSON_1]"},
		{"mention by unknown id", "[~accountid:100:internal-id]", "[ACCOUNT_ID_1]"},
		{"mention by address", "[~a@b.example]", "[EMAIL_1]"},
		{"mention over a line", "[~a\nb]", "[~a\nb]"},
		{"handle of a declared login", "@jroe, @p.d-q.", "@[PERSON_1], @[PERSON_2]."},
		// Account ids.
		{"number and UUID", cloudID, "[PERSON_1]"},
		{"percent-encoded", "?accountId=" + strings.ReplaceAll(cloudID, ":", "%3A"), "?accountId=[PERSON_1]"},
		{"portal customer", qmID, "[ACCOUNT_ID_1]"},
		{"24 hexadecimal digits", hexID, "[ACCOUNT_ID_1]"},
		{"git commit", "0f3a7c112b4d4e6f8a90b1c2d3e4f5060718293a", "0f3a7c112b4d4e6f8a90b1c2d3e4f5060718293a"},
		{"UUID alone", "0f3a7c11-2b4d-4e6f-8a90-b1c2d3e4f506", "0f3a7c11-2b4d-4e6f-8a90-b1c2d3e4f506"},
		{"clock", "12:30:45", "12:30:45"},
		// Names.
		{"name", "Thanks Jane Roe!", "Thanks [PERSON_1]!"},
		{"cases", "JANE ROE jane roe", "[PERSON_1] [PERSON_1]"},
		{"possessive", "Jane Roe's and Jane Roe’s", "[PERSON_1]'s and [PERSON_1]’s"},
		{"wiki emphasis", "*Jane Roe* _Jane Roe_ *Jane* *Roe*", "*[PERSON_1]* _[PERSON_1]_ *[PERSON_1]*"},
		{"line break and NBSP", "Jane\nRoe Jane\u00a0Roe", "[PERSON_1] [PERSON_1]"},
		{"curly apostrophe", "Björn O’Neill-Ås", "[PERSON_1]"},
		{"part of a longer word", "Jane Roebuck, Maryjane Roe", "Jane Roebuck, Maryjane Roe"},
		{"no word borders", "佐藤遥さんへ", "[PERSON_1]さんへ"},
		{"name, login, address, id are one", "Jane Roe jroe jane.roe@corp.example " + cloudID, "[PERSON_1] [PERSON_1] [PERSON_1] [PERSON_1]"},
		{"order of appearance", "Björn O'Neill-Ås and Jane Roe", "[PERSON_1] and [PERSON_2]"},
		// Logins.
		{"login in a text", "assigned to jroe.", "assigned to [PERSON_1]."},
		{"login in a URL", "/secure/ViewProfile.jspa?name=jroe", "/secure/ViewProfile.jspa?name=[PERSON_1]"},
		{"login within a word", "jroes jroe2", "jroes jroe2"},
		{"punctuation to the letter", "p.d-q but p d q and p-d-q", "[PERSON_1] but p d q and p-d-q"},
		{"English word as a word", "run the test again", "run the test again"},
		{"English word as a user", "[~test] @test /home/test/x", "[PERSON_1] @[PERSON_1] /home/[PERSON_1]/x"},
		// Overlaps.
		{"name in an address", "jroe@other.example", "[EMAIL_1]"},
		{"address after a name", "Jane Roe@corp.example", "[EMAIL_1]"},
		// Look-alikes.
		{"look-alike", "see [PERSON_1] and [EMAIL_22]", `see [\PERSON_1] and [\EMAIL_22]`},
		{"escaped look-alike", `[\PERSON_1] [\\IP_2]`, `[\\PERSON_1] [\\\IP_2]`},
		{"no look-alike", "[PERSON_] [PERSON_x] [USER_1] [PERSON_1", "[PERSON_] [PERSON_x] [USER_1] [PERSON_1"},
		{"look-alike beside a name", "[PERSON_1] Jane Roe", `[\PERSON_1] [PERSON_1]`},
		{"empty", "", ""},
		{"one byte", "@", "@"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := New()
			require.Equal(t, c.out, string(s.AppendText(nil, []byte(c.in), people)))
			require.Equal(t, c.out, string(s.AppendText(nil, []byte(c.in), people)), "the second document")
			require.Equal(t, "x"+c.out, string(s.AppendText([]byte("x"), []byte(c.in), people)))
		})
	}
}

func TestTwoPeopleOfOneName(t *testing.T) {
	two := [][]byte{[]byte("Kim Li\x00~kim1"), []byte("Kim Li\x00~kim2")}
	require.Equal(t, "[PERSON_1] [PERSON_2] [PERSON_3] [PERSON_2]", string(New().AppendText(nil, []byte("kim1 Kim Li kim2 Kim Li"), two)),
		"the shared name has a number of its own")
}

func TestPeopleWithoutSense(t *testing.T) {
	odd := [][]byte{nil, []byte("\x00\x00"), []byte("~"), []byte("...!"), []byte(strings.Repeat("a b ", 3000)), []byte("\xff\xfe")}
	require.Equal(t, "one two. a", string(New().AppendText(nil, []byte("one two. a"), odd)))
}

func TestSpans(t *testing.T) {
	text := []byte("[~jroe] wrote to x@y.example, cc Jane Roe [~accountid:" + hexID + "]")
	var got []string
	for _, sp := range New().AppendSpans(nil, text, people) {
		got = append(got, sp.Label.String()+" "+string(text[sp.Start:sp.End]))
	}
	require.Equal(t, []string{"USERNAME jroe", "EMAIL x@y.example", "PERSON Jane Roe", "ACCOUNT_ID " + hexID}, got)
}

const docOpen = `{"type":"doc","version":1,"content":[`

func adf(content string) string {
	return docOpen + `{"type":"paragraph","content":[` + content + `]}]}`
}

func TestADF(t *testing.T) {
	for _, c := range []struct{ name, in, out string }{
		{"name over two nodes", adf(`{"type":"text","text":"Ask Ja"},{"type":"text","text":"ne Roe!","marks":[{"type":"strong"}]}`),
			adf(`{"type":"text","text":"Ask [PERSON_1]"},{"type":"text","text":"!","marks":[{"type":"strong"}]}`)},
		{"address over three nodes", adf(`{"type":"text","text":"x@"},{"type":"text","text":"y","marks":[{"type":"em"}]},{"type":"text","text":".example."}`),
			adf(`{"type":"text","text":"[EMAIL_1]"},{"type":"text","text":"."}`)},
		{"mention", adf(`{"type":"mention","attrs":{"id":"` + cloudID + `","text":"@Jane Roe","localId":"CANARY"}},{"type":"text","text":" ok"}`),
			adf(`{"type":"text","text":"[PERSON_1]"},{"type":"text","text":" ok"}`)},
		{"link", adf(`{"type":"text","text":"here","marks":[{"type":"link","attrs":{"href":"http://CANARY"}},{"type":"code"}]}`),
			adf(`{"type":"text","text":"here","marks":[{"type":"code"}]}`)},
		{"card", adf(`{"type":"text","text":"a"},{"type":"inlineCard","attrs":{"url":"http://CANARY"}},{"type":"text","text":"b"}`),
			adf(`{"type":"text","text":"a"},{"type":"text","text":" "},{"type":"text","text":"b"}`)},
		{"unknown block", docOpen + `{"type":"CANARY","content":[{"type":"text","text":"CANARY"}]},{"type":"rule","CANARY":1}]}`, docOpen + `{"type":"rule"}]}`},
		{"code", docOpen + `{"type":"codeBlock","attrs":{"language":"go","uniqueId":"CANARY"},"content":[{"type":"text","text":"a \"<b>\"\n\tjroe"}]}]}`,
			docOpen + `{"type":"codeBlock","attrs":{"language":"go"},"content":[{"type":"text","text":"a \"<b>\"\n\t[PERSON_1]"}]}]}`},
		{"login as language", docOpen + `{"type":"codeBlock","attrs":{"language":"jroe"},"content":[{"type":"text","text":"x"}]}]}`,
			docOpen + `{"type":"codeBlock","content":[{"type":"text","text":"x"}]}]}`},
		{"expand title", docOpen + `{"type":"expand","attrs":{"title":"By Jane Roe"},"content":[]}]}`, docOpen + `{"type":"expand","attrs":{"title":"By [PERSON_1]"},"content":[]}]}`},
		{"emoji", adf(`{"type":"emoji","attrs":{"shortName":":CANARY:","text":"🎉"}},{"type":"emoji","attrs":{"shortName":":CANARY:"}}`), adf(`{"type":"text","text":"🎉"}`)},
		{"names do not cross paragraphs", docOpen + `{"type":"paragraph","content":[{"type":"text","text":"Jane"}]},{"type":"paragraph","content":[{"type":"text","text":"Roe"}]}]}`,
			docOpen + `{"type":"paragraph","content":[{"type":"text","text":"Jane"}]},{"type":"paragraph","content":[{"type":"text","text":"Roe"}]}]}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := New().AppendFormat(nil, []byte(c.in), schema.ADF, people)
			require.NoError(t, err)
			require.Equal(t, c.out, string(out))
			require.NotContains(t, string(out), "CANARY")
			again, err := New().AppendFormat(nil, out, schema.ADF, nil)
			require.NoError(t, err, "the output is ADF again")
			require.True(t, json.Valid(again))
		})
	}
	for _, in := range []string{``, `CANARY`, `[]`, `{"type":"CANARY"}`, docOpen + `7]}`, adf(`{"type":"text","text":{"CANARY":1}}`), docOpen + `{"type":"paragraph","content":{}}]}`} {
		_, err := New().AppendFormat(nil, []byte(in), schema.ADF, people)
		require.Equal(t, schema.ReasonMalformedADF, schema.ReasonOf(err), in)
		require.NotContains(t, err.Error(), "CANARY")
	}
}

func TestStorage(t *testing.T) {
	for _, c := range []struct{ name, in, out string }{
		{"name over tags", `<p>Ja<strong>ne</strong> Roe</p>`, `<p>[PERSON_1]<strong></strong></p>`},
		{"address over a comment marker", `<p>x@<ac:inline-comment-marker ac:ref="CANARY">y</ac:inline-comment-marker>.example</p>`, `<p>[EMAIL_1]</p>`},
		{"entities", `<p>Bj&ouml;rn O&#39;Neill-&Aring;s &amp; &lt;b&gt;&nbsp;x</p>`, "<p>[PERSON_1] &amp; &lt;b&gt;\u00a0x</p>"},
		{"user link", `<p><ac:link><ri:user ri:account-id="` + cloudID + `"/></ac:link> and <ac:link><ri:user ri:userkey="CANARY"></ri:user></ac:link></p>`, `<p>[PERSON_1] and [ACCOUNT_ID_1]</p>`},
		{"page link", `<p><ac:link><ri:page ri:content-title="CANARY"/><ac:plain-text-link-body><![CDATA[by jroe]]></ac:plain-text-link-body></ac:link></p>`, `<p><![CDATA[by [PERSON_1]]]></p>`},
		{"code", `<ac:structured-macro ac:name="code" ac:macro-id="CANARY"><ac:parameter ac:name="title">CANARY</ac:parameter><ac:plain-text-body><![CDATA[if a < b && jroe {}]]></ac:plain-text-body></ac:structured-macro>`,
			`<ac:structured-macro ac:name="code"><ac:plain-text-body><![CDATA[if a < b && [PERSON_1] {}]]></ac:plain-text-body></ac:structured-macro>`},
		{"unknown macro", `<ac:structured-macro ac:name="CANARY"><ac:parameter ac:name="user"><ri:user ri:userkey="CANARY"/></ac:parameter></ac:structured-macro>`, `<ac:structured-macro></ac:structured-macro>`},
		{"attributes", `<table class="CANARY"><tr><td colspan='2' style="CANARY">x</td></tr></table>`, `<table><tr><td>x</td></tr></table>`},
		{"anchor", `<p><a href="http://CANARY">x@y.example</a></p>`, `<p>[EMAIL_1]</p>`},
		{"image, unknown element, comment", `<p>a<ac:image><ri:attachment ri:filename="CANARY"/></ac:image>b<CANARY>CANARY</CANARY><!-- CANARY --></p>`, `<p>a b</p>`},
		{"break", `<p>a<br/>b</p><hr />`, `<p>a<br/>b</p><hr/>`},
		{"no tags", `a &amp; b`, `a &amp; b`},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := New().AppendFormat(nil, []byte(c.in), schema.Storage, people)
			require.NoError(t, err)
			require.Equal(t, c.out, string(out))
			require.NotContains(t, strings.ToUpper(string(out)), "CANARY")
			wellFormed(t, out)
		})
	}
	for _, in := range []string{`<p>`, `</p>`, `<p></q>`, `<p CANARY>`, `<p a=CANARY>`, `<`, `<p`, `a & b`, `&CANARY;`, `<![CDATA[CANARY`, `<!-- CANARY`, `<p a="CANARY`, "<p>\x01</p>"} {
		_, err := New().AppendFormat(nil, []byte(in), schema.Storage, people)
		require.Equal(t, schema.ReasonMalformedXHTML, schema.ReasonOf(err), in)
		require.NotContains(t, err.Error(), "CANARY")
	}
	_, err := New().AppendFormat(nil, []byte(strings.Repeat("<p>", 1000)), schema.Storage, nil)
	require.Equal(t, schema.ReasonTooDeep, schema.ReasonOf(err))
}

// wellFormed reads out with a foreign XML parser.
func wellFormed(t require.TestingT, out []byte) {
	d := xml.NewDecoder(strings.NewReader(`<r xmlns:ac="a" xmlns:ri="r">` + string(out) + `</r>`))
	for {
		_, err := d.Token()
		if err == io.EOF {
			return
		}
		require.NoError(t, err)
	}
}

// TestPlanted builds texts of known pieces: what was planted is replaced, what
// was not stays.
func TestPlanted(t *testing.T) {
	plain := []string{"the build", "Jackson 2.9", "released on 3 May", "{code}x{code}", "ok?", "h2. Plan"}
	planted := []string{"Jane Roe", "JANE ROE", "jroe", "[~jroe]", "jane.roe@corp.example", cloudID, "Björn O'Neill-Ås"}
	s := New()
	rapid.Check(t, func(t *rapid.T) {
		var in, want strings.Builder
		numbers := map[bool]string{}
		for range rapid.IntRange(0, 12).Draw(t, "n") {
			if rapid.Bool().Draw(t, "plant") {
				p := rapid.SampledFrom(planted).Draw(t, "planted")
				second := p == planted[len(planted)-1]
				if numbers[second] == "" {
					numbers[second] = []string{"[PERSON_1]", "[PERSON_2]"}[len(numbers)]
				}
				in.WriteString(p)
				want.WriteString(numbers[second])
			} else {
				p := rapid.SampledFrom(plain).Draw(t, "plain")
				in.WriteString(p)
				want.WriteString(p)
			}
			sep := rapid.SampledFrom([]string{" , ", "\r\n", " – ", "; ", " | "}).Draw(t, "separator")
			in.WriteString(sep)
			want.WriteString(sep)
		}
		require.Equal(t, want.String(), string(s.AppendText(nil, []byte(in.String()), people)))
	})
}

func event(typ, value string) *schema.Event {
	e := &schema.Event{Value: []byte(value), Streams: schema.InApp | schema.Metadata, Region: "eu", Source: schema.Source{Topic: "t", Partition: 1, Offset: 2}}
	e.Type, e.Product, e.Time = typ, schema.Jira, time.Date(2026, 9, 30, 23, 0, 0, 0, time.UTC)
	return e
}

func TestRecord(t *testing.T) {
	const value = `{"id":"1","fields":{"summary":"Jane Roe and x@y.example","description":"[~jroe] x@y.example z@y.example",
		"reporter":{"accountId":"` + cloudID + `","displayName":"Jane Roe","name":"jroe"},
		"comment":{"comments":[{"body":` + `{"type":"doc","version":1,"content":[]}` + `},{"body":"by jroe"}]}}}`
	s := New()
	e := event("winnow.jira.rest.issue", value)
	_, err := s.Record(e)
	require.ErrorIs(t, err, ErrNoStream, "an event that was not parsed")
	require.NoError(t, e.Parse())
	r, err := s.Record(e)
	require.NoError(t, err)
	require.Equal(t, "issue", r.Kind())
	require.Equal(t, "eu", r.Region())
	require.Equal(t, e.Source, r.Source())
	require.Equal(t, e.Envelope, r.Envelope())
	var got []string
	for _, p := range r.Parts() {
		got = append(got, p.Role+" "+p.Format.String()+" "+string(p.Text))
	}
	require.Equal(t, []string{
		"summary plain [PERSON_1] and [EMAIL_1]",
		"description wiki [PERSON_1] [EMAIL_1] [EMAIL_2]",
		`comment adf {"type":"doc","version":1,"content":[]}`,
		"comment wiki by [PERSON_1]",
	}, got, "numbers run on through the document")
	require.Equal(t, [NumLabels]int{Person: 1, Email: 3, Username: 2}, r.Counts())

	// Without the in-app stream no text is kept.
	e.Streams, e.Withheld = schema.Metadata, schema.Withheld{InApp: "in_app_off"}
	r, err = s.Record(e)
	require.NoError(t, err)
	require.Empty(t, r.Parts())
	require.Equal(t, schema.Reason("in_app_off"), r.Withheld().InApp)
	e.Streams = 0
	r, err = s.Record(e)
	require.ErrorIs(t, err, ErrNoStream)
	require.Zero(t, r.Streams())
	require.Zero(t, (&Record{}).Streams())

	// One text that cannot be scrubbed drops the whole record.
	bad := event("winnow.jira.rest.issue", `{"id":"1","fields":{"summary":"s","description":{"type":"nothing"}}}`)
	require.NoError(t, bad.Parse())
	r, err = s.Record(bad)
	require.Equal(t, schema.ReasonMalformedADF, schema.ReasonOf(err))
	require.Zero(t, r.Streams())
}

// fixtureEvents calls f with every event of the fixtures that can be parsed.
func fixtureEvents(t testing.TB, f func(e *schema.Event)) {
	files, err := filepath.Glob("../../fixtures/events/*.jsonl")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	var d schema.Doc
	for _, file := range files {
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, line := range strings.Split(string(b), "\n") {
			schema.Unwrap(&d, []byte(line), func(_ int, it schema.Item, err error) {
				if err != nil {
					return
				}
				e := event(it.Type, string(it.Value))
				if e.Parse() == nil {
					f(e)
				}
			})
		}
	}
}

// TestReuse: a Scrubber that has seen other documents gives what a new one gives.
func TestReuse(t *testing.T) {
	s, n := New(), 0
	fixtureEvents(t, func(e *schema.Event) {
		a, errA := s.Record(e)
		b, errB := New().Record(e)
		require.Equal(t, errB, errA)
		require.Equal(t, b.Counts(), a.Counts())
		require.Equal(t, len(b.Parts()), len(a.Parts()))
		for i, p := range b.Parts() {
			require.Equal(t, p, a.Parts()[i])
			require.True(t, utf8.Valid(p.Text))
			switch p.Format {
			case schema.ADF:
				require.True(t, json.Valid(p.Text))
			case schema.Storage:
				wellFormed(t, p.Text)
			}
		}
		n++
	})
	require.Greater(t, n, 1500)
}

// TestHostileTime: 4 MB made to be slow take at most 40 times as long as 4 MB
// of prose.
func TestHostileTime(t *testing.T) {
	const size = 4 << 20
	many := make([][]byte, 20000)
	for i := range many {
		many[i] = []byte("Jane Jane Jane Jane " + strings.Repeat("x", i%7) + "\x00~jane" + string(rune('a'+i%26)) + strings.Repeat("y", i/26%50))
	}
	run := func(unit string, people [][]byte, f schema.Format) time.Duration {
		text := []byte(strings.Repeat(unit, size/len(unit)))
		best := time.Hour
		for range 2 { // the faster of two, for the machine has other work
			began := time.Now()
			_, err := New().AppendFormat(nil, text, f, people)
			if f == schema.Plain {
				require.NoError(t, err)
			}
			best = min(best, time.Since(began))
		}
		return best
	}
	prose := run("We should pin the dependency before the release on Friday, as Jane said. ", people, schema.Plain)
	for _, c := range []struct {
		unit   string
		people [][]byte
		format schema.Format
	}{
		{"@", people, 0}, {"a@", people, 0}, {"a.", people, 0}, {"a@b.", people, 0}, {"%40", people, 0}, {"&", people, 0}, {"[~", people, 0}, {"[", people, 0}, {"[\\", people, 0}, {"[PERSON_1", people, 0},
		{"Jane ", many, 0}, {"jane ", people, 0}, {hexID + " ", people, 0}, {"1:", people, 0}, {cloudID + " ", people, 0}, {"王", people, 0}, {"\u0301", people, 0},
		{"<p>", people, schema.Storage}, {"<", people, schema.Storage}, {"&amp;", people, schema.Storage}, {"<![CDATA[", people, schema.Storage}, {"<!--", people, schema.Storage}, {"<p a='", people, schema.Storage},
	} {
		took := run(c.unit, c.people, c.format)
		require.Less(t, took, 40*prose+time.Second, "%q", c.unit)
	}
}

func FuzzText(f *testing.F) {
	for _, s := range []string{"Jane Roe x@y.example", "[~jroe] [PERSON_1]", cloudID, "a%40b.example", "佐藤 遥", "[~accountid:" + hexID + "]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		s := New()
		text := []byte(in)
		spans, last := s.AppendSpans(nil, text, people), 0
		for _, sp := range spans {
			require.True(t, last <= sp.Start && sp.Start < sp.End && sp.End <= len(text), "%v of %d bytes", spans, len(text))
			require.True(t, sp.Label < NumLabels && sp.Person < int32(len(people)))
			last = sp.End
		}
		out := s.AppendText(nil, text, people)
		require.Equal(t, in, string(text), "the input is not written to")
		if utf8.ValidString(in) {
			require.True(t, utf8.Valid(out))
			// What the output still says to a second look is nobody declared.
			for _, sp := range s.AppendSpans(nil, out, people) {
				if !strings.Contains(in, "[") && !strings.Contains(in, "]") {
					require.Negative(t, sp.Person, "%q", out)
				}
			}
		}
	})
}

func FuzzADF(f *testing.F) {
	f.Add(adf(`{"type":"text","text":"Ja"},{"type":"text","text":"ne Roe"},{"type":"mention","attrs":{"id":"1"}},{"type":"emoji","attrs":{"text":"🎉"}}`))
	f.Add(docOpen + `{"type":"expand","attrs":{"title":"x"}},{"type":"codeBlock","attrs":{"language":"go"}},{"type":"status","attrs":{"text":"s"}}]}`)
	f.Fuzz(func(t *testing.T, in string) {
		out, err := New().AppendFormat(nil, []byte(in), schema.ADF, people)
		if err != nil {
			require.True(t, errors.As(err, new(*schema.Error)))
			return
		}
		require.True(t, json.Valid(out), "%q", out)
		_, err = New().AppendFormat(nil, out, schema.ADF, people)
		require.NoError(t, err)
	})
}

func FuzzStorage(f *testing.F) {
	f.Add(`<p>Ja<b>ne</b> Roe &lt; <![CDATA[x]]> <br/><ac:link><ri:user ri:userkey="k"/></ac:link></p>`)
	f.Add(`<ac:structured-macro ac:name="code"><ac:plain-text-body><![CDATA[a]]]]><![CDATA[>b]]></ac:plain-text-body></ac:structured-macro>`)
	f.Fuzz(func(t *testing.T, in string) {
		if !utf8.ValidString(in) {
			return // the parser of events lets none through
		}
		out, err := New().AppendFormat(nil, []byte(in), schema.Storage, people)
		if err != nil {
			require.True(t, errors.As(err, new(*schema.Error)))
			return
		}
		wellFormed(t, out)
	})
}

func BenchmarkRecord(b *testing.B) {
	var events []*schema.Event
	var size int64
	fixtureEvents(b, func(e *schema.Event) { events, size = append(events, e), size+int64(len(e.Value)) })
	s := New()
	spans := 0
	for _, e := range events {
		r, _ := s.Record(e)
		for _, n := range r.Counts() {
			spans += n
		}
	}
	require.Greater(b, spans, 3000)
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		for _, e := range events {
			if e.Parse() == nil {
				_, _ = s.Record(e)
			}
		}
	}
}

func BenchmarkText(b *testing.B) {
	for _, c := range []struct {
		name, unit string
		spans      int
	}{
		{"clean", "We should pin the dependency before the release on Friday. The log shows nothing.\r\n", 0},
		{"typical", "Assigned to [~jroe]: the build on node 4 fails since the merge, see the log. Jane Roe will look at it.\r\n", 2},
		{"dense", "[~jroe] Jane Roe x@y.example " + cloudID + " ", 4},
		{"hostile", "a@a@a@a@", 0},
	} {
		b.Run(c.name, func(b *testing.B) {
			text := []byte(strings.Repeat(c.unit, 2048/len(c.unit)))
			s := New()
			require.Len(b, s.AppendSpans(nil, text, people), c.spans*(2048/len(c.unit)))
			var dst []byte
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				dst = s.AppendText(dst[:0], text, people)
			}
		})
	}
}
