package schema

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// tree is the value as encoding/json decodes it with UseNumber.
func tree(v Value) any {
	switch v.Kind() {
	case Bool:
		return v.True()
	case Number:
		return json.Number(v.Raw())
	case String:
		return string(v.Bytes())
	case Array:
		out := []any{}
		for c, ok := v.First(); ok; c, ok = c.Next(v) {
			out = append(out, tree(c))
		}
		return out
	case Object:
		out := map[string]any{}
		for c, ok := v.First(); ok; c, ok = c.Next(v) {
			out[string(c.Key())] = tree(c)
		}
		return out
	}
	return nil
}

// reference is what encoding/json makes of the text, nil if it refuses it.
func reference(t testing.TB, text []byte) any {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var out any
	require.NoError(t, d.Decode(&out))
	return out
}

// nesting is how deep a valid JSON text nests.
func nesting(text []byte) int {
	depth, most, quoted := 0, 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{', c == '[':
			depth++
			most = max(most, depth)
		case c == '}', c == ']':
			depth--
		}
	}
	return most
}

var jsonTexts = []struct {
	name, text string
	reason     Reason // empty if valid
	offset     int
}{
	{name: "object", text: `{"a":1,"b":[true,false,null],"c":{"d":"e"}}`},
	{name: "space everywhere", text: " \t\r\n{ \"a\" : [ 1 , 2 ] , \"b\" : { } } \n"},
	{name: "scalar", text: `"text"`},
	{name: "empty containers", text: `[{},[],"",{"":""}]`},
	{name: "numbers", text: `[0,-0,1,-1,10,0.5,-0.5,1e1,1E1,1e+1,1e-1,0e0,1.5E-07,12345678901234567890,1e400]`},
	{name: "escapes", text: `"\"\\\/\b\f\n\r\t\u0041\u00e9\u20AC\u0000"`},
	{name: "escapes after text", text: `{"k\u0065y":"ab\ncd","plain":"x"}`},
	{name: "UTF-8", text: `"Zürich, 東京, 😀, \u007f` + "\u007f" + `"`},
	{name: "noncharacters", text: "\"\uffff\U0010ffff\u2028\""},
	{name: "surrogate pair", text: `"\ud83d\ude00 \uD83D\uDE00"`},
	{name: "high surrogate alone", text: `"\ud83d"`},
	{name: "high surrogate before text", text: `"\ud83dx"`},
	{name: "high surrogate before another escape", text: `"\ud83d\n"`},
	{name: "high surrogate before a letter's escape", text: `"\ud83d\u0041"`},
	{name: "two high surrogates", text: `"\ud83d\ud83d\ude00"`},
	{name: "low surrogate alone", text: `"\ude00\ud83d"`},
	{name: "repeated key", text: `{"a":1,"a":2}`},
	{name: "MaxDepth", text: strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth)},
	{name: "MaxDepth of objects", text: strings.Repeat(`{"a":`, MaxDepth) + "1" + strings.Repeat("}", MaxDepth)},

	{name: "empty", text: "", reason: ReasonEmptyValue, offset: -1},
	{name: "spaces", text: " \n\t", reason: ReasonEmptyValue, offset: -1},
	{name: "one too deep", text: strings.Repeat("[", MaxDepth+1) + strings.Repeat("]", MaxDepth+1), reason: ReasonTooDeep, offset: MaxDepth},
	{name: "1,000 deep", text: strings.Repeat(`{"a":[`, 500) + strings.Repeat("]}", 500), reason: ReasonTooDeep, offset: MaxDepth * 3},
	{name: "byte order mark", text: "\ufeff{}", reason: ReasonMalformedJSON},
	{name: "unclosed object", text: `{"a":1`, reason: ReasonMalformedJSON, offset: 6},
	{name: "unclosed array", text: `[1,2`, reason: ReasonMalformedJSON, offset: 4},
	{name: "unclosed string", text: `"abc`, reason: ReasonMalformedJSON, offset: 4},
	{name: "unclosed string after an escape", text: `"a\nbc`, reason: ReasonMalformedJSON, offset: 6},
	{name: "ends in a backslash", text: `"a\`, reason: ReasonMalformedJSON, offset: 2},
	{name: "escaped quote at the end", text: `"a\"`, reason: ReasonMalformedJSON, offset: 4},
	{name: "unknown escape", text: `"\x41"`, reason: ReasonMalformedJSON, offset: 2},
	{name: "short \\u", text: `"\u00"`, reason: ReasonMalformedJSON, offset: 6},
	{name: "\\u at the end", text: `"\u00`, reason: ReasonMalformedJSON, offset: 5},
	{name: "\\u without digits", text: `"\u00g0"`, reason: ReasonMalformedJSON, offset: 3},
	{name: "broken second half", text: `"\ud83d\u12"`, reason: ReasonMalformedJSON, offset: 12},
	{name: "raw newline", text: "\"a\nb\"", reason: ReasonMalformedJSON, offset: 2},
	{name: "raw tab after an escape", text: "\"\\n\tb\"", reason: ReasonMalformedJSON, offset: 3},
	{name: "raw NUL", text: "\"\x00\"", reason: ReasonMalformedJSON, offset: 1},
	{name: "raw U+001F", text: "\"\x1f\"", reason: ReasonMalformedJSON, offset: 1},
	{name: "raw U+001F after an escape", text: "\"\\n\x1f\"", reason: ReasonMalformedJSON, offset: 3},
	{name: "leading zero", text: `01`, reason: ReasonMalformedJSON, offset: 1},
	{name: "leading plus", text: `+1`, reason: ReasonMalformedJSON},
	{name: "minus alone", text: `-`, reason: ReasonMalformedJSON, offset: 1},
	{name: "no digit after the point", text: `1.`, reason: ReasonMalformedJSON, offset: 2},
	{name: "no digit before the point", text: `.5`, reason: ReasonMalformedJSON},
	{name: "no digit in the exponent", text: `1e+`, reason: ReasonMalformedJSON, offset: 3},
	{name: "hexadecimal", text: `0x10`, reason: ReasonMalformedJSON, offset: 1},
	{name: "NaN", text: `NaN`, reason: ReasonMalformedJSON},
	{name: "literal in capitals", text: `True`, reason: ReasonMalformedJSON},
	{name: "literal cut off", text: `nul`, reason: ReasonMalformedJSON},
	{name: "literal run on", text: `[nullx]`, reason: ReasonMalformedJSON, offset: 5},
	{name: "single quotes", text: `{'a':1}`, reason: ReasonMalformedJSON, offset: 1},
	{name: "bare key", text: `{a:1}`, reason: ReasonMalformedJSON, offset: 1},
	{name: "no colon", text: `{"a" 1}`, reason: ReasonMalformedJSON, offset: 5},
	{name: "no value", text: `{"a":}`, reason: ReasonMalformedJSON, offset: 5},
	{name: "comma at the end of an object", text: `{"a":1,}`, reason: ReasonMalformedJSON, offset: 7},
	{name: "comma at the end of an array", text: `[1,]`, reason: ReasonMalformedJSON, offset: 3},
	{name: "no comma", text: `[1 2]`, reason: ReasonMalformedJSON, offset: 3},
	{name: "wrong bracket", text: `[1}`, reason: ReasonMalformedJSON, offset: 2},
	{name: "two values", text: `{} {}`, reason: ReasonMalformedJSON, offset: 3},
	{name: "comment", text: `/* */ {}`, reason: ReasonMalformedJSON},
	{name: "no-break space", text: "\u00a0{}", reason: ReasonMalformedJSON},
	{name: "Latin-1", text: "{\"a\":\"M\xfcller\"}", reason: ReasonInvalidUTF8, offset: 7},
	{name: "Latin-1 after UTF-8", text: "\"é€\xe9\"", reason: ReasonInvalidUTF8, offset: 6},
	{name: "U+FFFD before the fault", text: "\"\ufffd\xff\"", reason: ReasonInvalidUTF8, offset: 4},
	{name: "overlong", text: "\"\xc0\xae\"", reason: ReasonInvalidUTF8, offset: 1},
	{name: "surrogate in UTF-8", text: "\"\xed\xa0\x80\"", reason: ReasonInvalidUTF8, offset: 1},
	{name: "cut inside a rune", text: "\"\xe2\x82", reason: ReasonInvalidUTF8, offset: 1},
}

func TestDocParse(t *testing.T) {
	var reused Doc
	for _, c := range jsonTexts {
		t.Run(c.name, func(t *testing.T) {
			text := []byte(c.text)
			require.Equal(t, c.reason == "", json.Valid(text) && utf8.Valid(text) && nesting(text) <= MaxDepth, "the table is wrong")
			for _, d := range []*Doc{new(Doc), &reused} {
				err := d.Parse(text)
				if c.reason != "" {
					require.Equal(t, &Error{Reason: c.reason, Offset: c.offset}, err)
					continue
				}
				require.NoError(t, err)
				require.Equal(t, reference(t, text), tree(d.Root()))
			}
		})
	}
}

func TestDocErrorsHoldNoInput(t *testing.T) {
	const text = `{"canary":["canary\u0020canary",{"a":canary}],"b":-1.5e3,"canary":tru`
	var d Doc
	for i := range len(text) {
		for _, in := range []string{text[:i], text[i:], text[:i] + "\xff" + text[i:], text[:i] + "\x01" + text[i:]} {
			err := d.Parse([]byte(in))
			if json.Valid([]byte(in)) {
				require.NoError(t, err)
				continue
			}
			var e *Error
			require.ErrorAs(t, err, &e)
			require.NotContains(t, err.Error(), "canary")
			require.Equal(t, strings.TrimSpace(in) == "", e.Offset < 0)
			require.LessOrEqual(t, e.Offset, len(in))
		}
	}
}

func TestDocEqualsEncodingJSONOnFixtures(t *testing.T) {
	var d Doc
	for _, l := range fixtureLines(t, "events/*.jsonl", "bad/*.json*") {
		if !json.Valid(l.text) || !utf8.Valid(l.text) || nesting(l.text) > MaxDepth {
			require.Error(t, d.Parse(l.text), l.at)
			continue
		}
		require.NoError(t, d.Parse(l.text), l.at)
		require.Equal(t, reference(t, l.text), tree(d.Root()), l.at)
	}
}

func TestDocReuse(t *testing.T) {
	var d Doc
	require.NoError(t, d.Parse([]byte(`{"a":"\u0041long text that is escaped","a":[1,2,3]}`)))
	d.Root().Get("a")
	require.True(t, d.Ambiguous())
	require.Error(t, d.Parse([]byte(`{"a":"\u0042`)))
	require.NoError(t, d.Parse([]byte(`{"b":"\u0043"}`)))
	require.False(t, d.Ambiguous(), "the mark outlives its text")
	require.Equal(t, map[string]any{"b": "C"}, tree(d.Root()))
	require.Error(t, d.Parse(nil))
	require.Equal(t, Missing, d.Root().Kind(), "an earlier text is still there")
}

func TestValue(t *testing.T) {
	var d Doc
	require.NoError(t, d.Parse([]byte(`{"s":"a\tb","n":12,"f":1.5,"big":92233720368547758070,"digits":"34","t":true,"z":null,"o":{"p":{"q":[1,{"r":2}]}},"k\u0065y":0}`)))
	root := d.Root()
	require.Equal(t, "a\tb", string(root.Get("s").Bytes()))
	require.Nil(t, root.Get("s").Raw())
	require.Equal(t, "12", string(root.Get("n").Raw()))
	require.Equal(t, "12", string(root.Get("n").Scalar()))
	require.Nil(t, root.Get("t").Scalar())
	require.Nil(t, root.Get("n").Bytes())
	require.Equal(t, `{"q":[1,{"r":2}]}`, string(root.Path("o", "p").Raw()))
	require.True(t, root.Get("t").True())
	require.False(t, root.Get("z").True())
	require.True(t, root.Get("z").Absent())
	require.True(t, root.Has("z"))
	require.True(t, root.Has("key"))
	require.Equal(t, Missing, root.Get("k\\u0065y").Kind())
	require.Equal(t, Missing, root.Path("o", "p", "q", "r").Kind(), "an array has no members")
	for name, want := range map[string]struct {
		n  int64
		ok bool
	}{"n": {12, true}, "digits": {34, true}, "f": {}, "s": {}, "t": {}, "nowhere": {}} {
		n, ok := root.Get(name).Int()
		require.Equal(t, want.ok, ok, name)
		require.Equal(t, want.n, n, name)
	}
	_, ok := root.Get("big").Int()
	require.False(t, ok)

	var zero Value
	require.Equal(t, Missing, zero.Get("a").Path("b", "c").Kind())
	require.Nil(t, zero.Raw())
	require.False(t, zero.True())
	_, ok = zero.First()
	require.False(t, ok)
	zero.all(func(Value) { t.Fatal("nothing to visit") })
}

func TestDocAmbiguous(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		path []string
		want bool
	}{
		"asked key twice":      {`{"a":1,"a":1}`, []string{"a"}, true},
		"escaped spelling":     {`{"a":1,"\u0061":2}`, []string{"a"}, true},
		"another key twice":    {`{"a":1,"b":1,"b":2}`, []string{"a"}, false},
		"on the way":           {`{"a":{"b":1},"a":{"b":2}}`, []string{"a", "b"}, true},
		"in a nested object":   {`{"a":{"b":1,"b":2}}`, []string{"a", "b"}, true},
		"in an object not met": {`{"a":1,"c":{"b":1,"b":2}}`, []string{"a"}, false},
		"same key in two":      {`{"a":{"b":1},"c":{"b":2}}`, []string{"a", "b"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var d Doc
			require.NoError(t, d.Parse([]byte(c.text)))
			require.NotEqual(t, Missing, d.Root().Path(c.path...).Kind())
			require.Equal(t, c.want, d.Ambiguous())
		})
	}
}

func TestHostOf(t *testing.T) {
	for url, want := range map[string]string{
		"https://Site.Example/rest/api":         "site.example",
		"http://site.example":                   "site.example",
		"HTTPS://site.example/x":                "site.example",
		"https://site.example:8443/x":           "site.example",
		"https://user:pass@site.example/x":      "site.example",
		"https://other.example@site.example?a":  "site.example",
		"https://site.example\\@other.example/": "site.example",
		"https://site.example#@other.example":   "site.example",
		"/rest/api":                             "",
		"ftp://site.example/":                   "",
		"httpx://site.example/":                 "",
		"":                                      "",
	} {
		require.Equal(t, want, string(hostOf([]byte(url))), url)
	}
}

// Time must not grow faster than the input, whatever it holds.
func TestDocLinearTime(t *testing.T) {
	const size = 8 << 20
	fill := func(before, unit, after string) []byte {
		return []byte(before + strings.Repeat(unit, (size-len(before)-len(after))/len(unit)) + after)
	}
	var d Doc
	took := func(text []byte) time.Duration {
		start := time.Now()
		_ = d.Parse(text)
		return time.Since(start)
	}
	took(fill("[", "1,", "1]")) // so that it has its memory: nodes, and below the arena
	took(fill(`"`, `\\`, `"`))
	plain := took(fill("[", `{"key":"some text"},`, "0]"))
	for name, text := range map[string][]byte{
		"backslashes":       fill(`"`, `\\`, `"`),
		"unclosed escapes":  fill(`"`, `\\`, ``),
		"open brackets":     fill("", "[", ""),
		"open objects":      fill("", `{"":`, ""),
		"quotes":            fill("", `"`, ""),
		"empty strings":     fill("[", `"",`, "0]"),
		"digits":            fill("", "1", ""),
		"digits in a list":  fill("[", "1,", "1]"),
		"fraction":          fill("0.", "0", ""),
		"spaces":            fill("", " ", "1"),
		"lone surrogates":   fill(`"`, `\ud83d`, `"`),
		"escaped keys":      fill("{", `"\u0061":0,`, `"b":0}`),
		"siblings":          fill("[", "[],", "0]"),
		"fault at the end":  fill(`"`, "é", "\xff\""),
		"runs of the depth": fill("[", strings.Repeat("[", 200)+strings.Repeat("]", 200)+",", "0]"),
	} {
		require.Less(t, took(text), 20*plain+100*time.Millisecond, name)
	}

	d = Doc{}
	require.Equal(t, &Error{Reason: ReasonTooDeep, Offset: MaxDepth}, d.Parse(bytes.Repeat([]byte("["), 10<<20)))
	require.LessOrEqual(t, cap(d.nodes), 4*MaxDepth, "memory in proportion to what is refused")
}

func TestDocAllocatesNothingWhenWarm(t *testing.T) {
	lines := fixtureLines(t, "events/*.jsonl")
	var d Doc
	parse := func() {
		for _, l := range lines {
			if d.Parse(l.text) != nil {
				t.Fatal(l.at)
			}
		}
	}
	require.Zero(t, testing.AllocsPerRun(1, parse))
}

func FuzzDoc(f *testing.F) {
	for _, c := range jsonTexts {
		f.Add([]byte(c.text))
	}
	var reused Doc
	f.Fuzz(func(t *testing.T, text []byte) {
		before := bytes.Clone(text)
		var d Doc
		err := d.Parse(text)
		again := reused.Parse(text)
		require.Equal(t, err, again)
		require.Equal(t, before, text, "the input was written to")
		valid := json.Valid(text) && utf8.Valid(text) && nesting(text) <= MaxDepth
		require.Equal(t, valid, err == nil)
		if !valid {
			var e *Error
			require.ErrorAs(t, err, &e)
			require.LessOrEqual(t, e.Offset, len(text))
			return
		}
		want := reference(t, text)
		require.Equal(t, want, tree(d.Root()))
		require.Equal(t, want, tree(reused.Root()))
	})
}

// line is one line of a fixture file.
type line struct {
	at   string // file:line
	text []byte
}

func fixtureLines(t testing.TB, patterns ...string) []line {
	t.Helper()
	var out []line
	for _, p := range patterns {
		files, err := filepath.Glob(filepath.Join("../../fixtures", p))
		require.NoError(t, err)
		require.NotEmpty(t, files, "no fixtures")
		for _, f := range files {
			b, err := os.ReadFile(f)
			require.NoError(t, err)
			for i, l := range bytes.Split(bytes.TrimSuffix(b, []byte("\n")), []byte("\n")) {
				out = append(out, line{filepath.Base(f) + ":" + strconv.Itoa(i+1), l})
			}
		}
	}
	return out
}

func BenchmarkDoc(b *testing.B) {
	files, err := filepath.Glob("../../fixtures/events/*.jsonl")
	require.NoError(b, err)
	for _, f := range files {
		b.Run(strings.TrimSuffix(filepath.Base(f), ".jsonl"), func(b *testing.B) {
			lines := fixtureLines(b, "events/"+filepath.Base(f))
			var d Doc
			size := 0
			for _, l := range lines {
				require.NoError(b, d.Parse(l.text))
				size += len(l.text)
			}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				for _, l := range lines {
					_ = d.Parse(l.text)
				}
			}
		})
	}
}

// mustJSON encodes what tests make of maps, slices and strings.
func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}
