package ingest

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"winnow/internal/broker"
	"winnow/internal/kafkaio"
	"winnow/pkg/schema"
)

// topic is an events topic with one partition on an embedded broker.
type topic struct {
	*kafkaio.Producer
	broker *broker.Broker
	client *kafkaio.Client
}

func newTopic(t testing.TB) *topic {
	t.Helper()
	b, err := broker.Start(t.TempDir(), broker.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { b.Close() })
	c, err := kafkaio.Dial([]string{b.Addr()}, kafkaio.Options{DeliveryTimeout: 5 * time.Second})
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	// As the commands make it: a value of MaxValue must fit.
	require.NoError(t, c.EnsureTopic(t.Context(), "events", 1, map[string]string{"max.message.bytes": "16777216"}))
	p := c.Producer("events")
	t.Cleanup(func() { p.Close() })
	return &topic{p, b, c}
}

// origins lists the events on the topic by the place in their ce_source.
func (k *topic) origins(t testing.TB) []string {
	t.Helper()
	out := []string{}
	_, err := k.client.ReadAll(t.Context(), "events", func(_ int, r kafkaio.Record) error {
		e, err := schema.ParseHeaders(r.Headers)
		require.NoError(t, err)
		out = append(out, strings.TrimPrefix(e.Origin, "replay/"))
		ev := schema.Event{Envelope: e, Value: bytes.Clone(r.Value)}
		require.NoError(t, ev.Parse())
		return nil
	})
	require.NoError(t, err)
	return out
}

// write makes files in a new directory called "in" and returns its path.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "in")
	require.NoError(t, os.Mkdir(dir, 0o755))
	for name, text := range files {
		p := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o755))
		require.NoError(t, os.WriteFile(p, []byte(text), 0o644))
	}
	return dir
}

// replay replays the paths and returns what was counted, the drops as
// "place: detail +more", and the bytes of which progress was told.
func replay(t testing.TB, k *topic, paths ...string) (s Summary, drops []string, read int64) {
	t.Helper()
	files, err := Files(paths)
	require.NoError(t, err)
	d := Door{AssumeConsent: true, EventTime: OfRecord, Now: now, Name: "replay"}
	s, err = d.Replay(t.Context(), files, k.Producer, func(n int64) { read += n })
	require.NoError(t, err)
	dropped := int64(0)
	drops = []string{}
	for _, x := range s.Drops {
		more := ""
		if dropped += 1 + x.More; x.More > 0 {
			more = fmt.Sprintf(" +%d", x.More)
		}
		drops = append(drops, x.Place.String()+": "+x.Detail+more)
		require.NotContains(t, x.Detail, "canary")
	}
	require.Equal(t, s.Records, s.Produced+dropped, "a record is neither produced nor counted as dropped")
	for _, n := range s.Dropped {
		dropped -= n
	}
	require.Zero(t, dropped)
	return s, drops, read
}

func compressed(t testing.TB, ext, text string) string {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser = gzip.NewWriter(&b)
	if ext == ".zst" {
		z, err := zstd.NewWriter(&b)
		require.NoError(t, err)
		w = z
	}
	_, err := io.WriteString(w, text)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.String()
}

func TestReplayForms(t *testing.T) {
	k := newTopic(t)
	lines := comment + "\n" + sprint + "\n"
	dir := write(t, map[string]string{
		"a.json":             comment,
		"b.json":             "[" + comment + ",\n" + sprint + "]\n",
		"c.jsonl":            lines,
		"d.ndjson":           lines,
		"e no end.jsonl":     strings.TrimSuffix(lines, "\n"),
		"f crlf.jsonl":       strings.ReplaceAll(lines, "\n", "\r\n"),
		"g blank.jsonl":      "\n" + comment + "\n\n  \n" + sprint + "\n\r\n",
		"h.jsonl.zst":        compressed(t, ".zst", lines),
		"i.jsonl.gz":         compressed(t, ".gz", lines),
		"j.json.zst":         compressed(t, ".zst", comment),
		"k.json.gz":          compressed(t, ".gz", comment),
		"sub/deeper/l.jsonl": lines,
		"m two.jsonl.zst":    compressed(t, ".zst", comment+"\n") + compressed(t, ".zst", sprint+"\n"), // frames one after another
		"n two.jsonl.gz":     compressed(t, ".gz", comment+"\n") + compressed(t, ".gz", sprint+"\n"),
		".hidden.jsonl":      "canary",
		".git/config.json":   "canary",
		"sub/.x/y.jsonl":     lines,
	})
	s, drops, read := replay(t, k, dir)
	require.Equal(t, []string{"in/g blank.jsonl:1: empty_value +3"}, drops)
	require.Equal(t, []string{
		"in/a.json", "in/b.json", "in/b.json#.1", "in/c.jsonl#L1", "in/c.jsonl#L2", "in/d.ndjson#L1", "in/d.ndjson#L2",
		"in/e%20no%20end.jsonl#L1", "in/e%20no%20end.jsonl#L2", "in/f%20crlf.jsonl#L1", "in/f%20crlf.jsonl#L2", "in/g%20blank.jsonl#L2", "in/g%20blank.jsonl#L5",
		"in/h.jsonl.zst#L1", "in/h.jsonl.zst#L2", "in/i.jsonl.gz#L1", "in/i.jsonl.gz#L2", "in/j.json.zst", "in/k.json.gz",
		"in/m%20two.jsonl.zst#L1", "in/m%20two.jsonl.zst#L2", "in/n%20two.jsonl.gz#L1", "in/n%20two.jsonl.gz#L2", "in/sub/deeper/l.jsonl#L1", "in/sub/deeper/l.jsonl#L2",
	}, k.origins(t))
	require.Equal(t, 14, s.Files)
	require.EqualValues(t, 29, s.Records)
	require.EqualValues(t, 25, s.Produced)
	require.EqualValues(t, 14*len(comment)+11*len(sprint), s.Bytes)
	files, err := Files([]string{dir})
	require.NoError(t, err)
	size := int64(0)
	for _, f := range files {
		size += f.Size
	}
	require.Equal(t, size, read)
}

func TestReplayBadInput(t *testing.T) {
	k := newTopic(t)
	var long strings.Builder // more than what one read of a decoder holds
	for range 20_000 {
		fmt.Fprintln(&long, strings.Replace(comment, "canary", fmt.Sprintf("%x", rand.Uint64()), 1))
	}
	cut := compressed(t, ".zst", long.String())
	flipped := []byte(compressed(t, ".gz", comment+"\n"))
	flipped[len(flipped)-8] ^= 1 // the checksum
	dir := write(t, map[string]string{
		"a lines.jsonl":      comment + "\n{\"canary\":\n" + sprint + "\n{\"canary\":1}\n{\"canary\":2}\n\"canary\xff\"\n" + comment + "\n",
		"b cut.jsonl.zst":    cut[:len(cut)/2],
		"c cut.json.gz":      compressed(t, ".gz", comment)[:60],
		"d no zst.jsonl.zst": "canary, not compressed",
		"e no gz.json.gz":    "canary, not compressed",
		"f empty.jsonl":      "",
		"g empty.json":       "",
		"h prose.txt":        "canary",
		"i noext":            comment,
		"j table.csv.gz":     "canary",
		"k flipped.json.gz":  string(flipped),
		"l cut.jsonl.gz":     compressed(t, ".gz", comment+"\n"+strings.Repeat("x", 1000))[:80],
		"m empty.json.gz":    "",
		"z good.json":        comment,
	})
	require.NoError(t, os.Symlink("nowhere", filepath.Join(dir, "n link to nothing.json")))
	require.NoError(t, os.Symlink("z good.json", filepath.Join(dir, "o link.json")))
	require.NoError(t, os.Symlink(".", filepath.Join(dir, "p loop")))
	s, drops, _ := replay(t, k, dir)

	var broke string // the line at which the decoder noticed
	for i, d := range drops {
		if strings.HasPrefix(d, "in/b cut.jsonl.zst:") {
			broke, drops = d, slices.Delete(drops, i, i+1)
			break
		}
	}
	var line int
	_, err := fmt.Sscanf(broke, "in/b cut.jsonl.zst:%d: unreadable_file", &line)
	require.NoError(t, err, broke)
	require.Greater(t, line, 1000)
	require.Equal(t, []string{
		"in/a lines.jsonl:2: malformed_json (byte 10)",
		"in/a lines.jsonl:4: wrapper_unknown +1",
		"in/a lines.jsonl:6: invalid_utf8 (byte 7)",
		"in/c cut.json.gz: unreadable_file",
		"in/d no zst.jsonl.zst:1: unreadable_file",
		"in/e no gz.json.gz: unreadable_file",
		"in/g empty.json: empty_value",
		"in/h prose.txt: not_a_json_file",
		"in/i noext: not_a_json_file",
		"in/j table.csv.gz: not_a_json_file",
		"in/k flipped.json.gz: unreadable_file",
		"in/l cut.jsonl.gz:1: unreadable_file",
		"in/m empty.json.gz: unreadable_file",
		"in/n link to nothing.json: unreadable_file",
	}, drops)
	require.Equal(t, 16, s.Files)
	var others []string
	for _, o := range k.origins(t) {
		if strings.HasPrefix(o, "in/b%20cut") {
			line--
		} else {
			others = append(others, o)
		}
	}
	require.Equal(t, 1, line, "the lines before the cut, all of them and none else")
	require.Equal(t, []string{"in/a%20lines.jsonl#L1", "in/a%20lines.jsonl#L3", "in/a%20lines.jsonl#L7", "in/o%20link.json", "in/z%20good.json"}, others)

	var out bytes.Buffer
	s.Write(&out)
	require.NotContains(t, out.String(), "canary")
	require.Contains(t, out.String(), "acknowledged   ")
	require.Contains(t, out.String(), "not taken      3 not_a_json_file\n")
	require.Contains(t, out.String(), "in/a lines.jsonl:4: wrapper_unknown, and 1 more in this file\n")
}

func TestReplayFixturesOfBadInput(t *testing.T) {
	_, drops, _ := replay(t, newTopic(t), "../../fixtures/bad")
	require.Equal(t, []string{
		"bad/README.md: not_a_json_file",
		"bad/deep.json: too_deep",
		"bad/empty-lines.jsonl:2: empty_value +2",
		"bad/invalid-utf8.jsonl:2: invalid_utf8 +2",
		"bad/no-time.jsonl:2: no_event_time",
		"bad/not-json.txt: not_a_json_file",
		"bad/truncated.json: malformed_json",
		"bad/unknown-wrapper.json: wrapper_unknown",
		"bad/wrapper-in-wrapper.jsonl:2: wrapper_unknown +1",
		"bad/wrong-types.jsonl:7: wrong_type at data",
	}, withoutBytes(drops))
}

// withoutBytes leaves byte positions out.
func withoutBytes(drops []string) []string {
	out := slices.Clone(drops)
	for i, d := range out {
		if from, rest, ok := strings.Cut(d, " (byte "); ok {
			_, more, _ := strings.Cut(rest, ")")
			out[i] = from + more
		}
	}
	return out
}

func TestReplayHugeRecords(t *testing.T) {
	k := newTopic(t)
	body := func(n int) string {
		return strings.Replace(comment, "canary", strings.Repeat("x", n-len(comment)+6), 1)
	}
	huge := body(50 << 20)
	list := "[" + strings.Repeat(body(1<<20)+",", 12) + comment + "]" // larger than one value may be, but none in it is
	dir := write(t, map[string]string{
		"a.jsonl":     sprint + "\n" + huge + "\n" + sprint + "\n" + huge, // the last without its end
		"b.json":      huge,
		"c.jsonl":     body(schema.MaxValue) + "\r\n" + body(schema.MaxValue+1) + "\n" + body(schema.MaxValue+100) + "\n" + sprint + "\n",
		"d.json":      list,
		"e.jsonl.zst": compressed(t, ".zst", sprint+"\n"+huge+"\n"+sprint+"\n"),
		"f.json.gz":   compressed(t, ".gz", huge),
	})
	_, drops, _ := replay(t, k, dir)
	require.Equal(t, []string{"in/a.jsonl:2: too_large +1", "in/b.json: too_large", "in/c.jsonl:2: too_large +1", "in/e.jsonl.zst:2: too_large", "in/f.json.gz: too_large"}, drops)
	want := []string{"in/a.jsonl#L1", "in/a.jsonl#L3", "in/c.jsonl#L1", "in/c.jsonl#L4", "in/d.json"}
	for i := range 12 {
		want = append(want, fmt.Sprintf("in/d.json#.%d", i+1))
	}
	require.Equal(t, append(want, "in/e.jsonl.zst#L1", "in/e.jsonl.zst#L3"), k.origins(t))
}

// zeros is a line of n bytes without an end.
type zeros struct{ n int }

func (z *zeros) Read(p []byte) (int, error) {
	if z.n == 0 {
		return 0, io.EOF
	}
	n := min(len(p), z.n)
	clear(p[:n])
	z.n -= n
	return n, nil
}

func TestReadLine(t *testing.T) {
	const size = 1 << 30
	br := bufio.NewReaderSize(io.MultiReader(strings.NewReader("before\r\n"), &zeros{size}, strings.NewReader("\nafter")), 1<<20)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	want := []struct {
		text string
		long bool
		err  error
	}{{"before", false, nil}, {"", true, nil}, {"after", false, io.EOF}, {"", false, io.EOF}}
	for i, w := range want {
		text, long, err := readLine(br)
		require.Equal(t, w.text, string(text), i)
		require.Equal(t, w.long, long, i)
		require.Equal(t, w.err, err, i)
	}
	runtime.ReadMemStats(&after)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(16*schema.MaxValue), "memory in proportion to the line")
}

func TestFiles(t *testing.T) {
	dir := write(t, map[string]string{"b/2.json": "22", "b/10.json": "", "a.json": "1", ".x/c.json": "", "b/.c.json": ""})
	require.NoError(t, os.Symlink(filepath.Join(dir, "b"), filepath.Join(dir, "link")))
	names := func(paths ...string) []string {
		files, err := Files(paths)
		require.NoError(t, err)
		var out []string
		for _, f := range files {
			info, err := os.Stat(f.Path)
			require.NoError(t, err)
			require.Equal(t, info.Size(), f.Size)
			out = append(out, f.Name)
		}
		return out
	}
	require.Equal(t, []string{"in/a.json", "in/b/10.json", "in/b/2.json"}, names(dir), "a link to a directory may lead in a circle")
	require.Equal(t, []string{"in/a.json", "in/b/10.json", "in/b/2.json"}, names(dir+"/"))
	require.Equal(t, []string{"link/10.json", "link/2.json"}, names(filepath.Join(dir, "link")), "but one that was asked for is followed")
	require.Equal(t, []string{"a.json", "b/10.json", "b/2.json"}, names(filepath.Join(dir, "b"), filepath.Join(dir, "a.json")))
	require.Equal(t, []string{".x/c.json"}, names(filepath.Join(dir, ".x")), "hidden, but named")
	require.Equal(t, []string{".c.json"}, names(filepath.Join(dir, "b/.c.json")))
	require.Empty(t, names())

	_, err := Files([]string{filepath.Join(dir, "nothing")})
	require.ErrorIs(t, err, os.ErrNotExist)
	other := write(t, map[string]string{"a.json": "1"})
	_, err = Files([]string{dir, other})
	require.ErrorContains(t, err, "both are called in/a.json")
	_, err = Files([]string{filepath.Join(dir, "a.json"), filepath.Join(dir, "a.json")})
	require.ErrorContains(t, err, "both are called a.json")

	// The name of a link says what is in it, not the name of what it leads to.
	require.NoError(t, os.WriteFile(filepath.Join(other, "blob"), []byte(compressed(t, ".gz", comment+"\n")), 0o644))
	require.NoError(t, os.Symlink(filepath.Join(other, "blob"), filepath.Join(other, "l.jsonl.gz")))
	k := newTopic(t)
	_, drops, _ := replay(t, k, filepath.Join(other, "l.jsonl.gz"))
	require.Empty(t, drops)
	require.Equal(t, []string{"l.jsonl.gz#L1"}, k.origins(t))
}

func TestReplayStops(t *testing.T) {
	k := newTopic(t)
	files, err := Files([]string{write(t, map[string]string{"a.jsonl": comment + "\n"})})
	require.NoError(t, err)
	d := Door{AssumeConsent: true, Now: now, Name: "replay"}

	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	s, err := d.Replay(ctx, files, k.Producer, func(int64) {})
	require.ErrorIs(t, err, context.Canceled)
	require.Zero(t, s.Produced)

	require.NoError(t, k.Close())
	s, err = d.Replay(t.Context(), files, k.Producer, func(int64) {})
	require.ErrorIs(t, err, kafkaio.ErrClosed, "what can't be delivered is an error, not a drop")
	require.Zero(t, s.Produced)
	require.Empty(t, s.Dropped)
	require.Empty(t, k.origins(t))

	c, err := kafkaio.Dial([]string{k.broker.Addr()}, kafkaio.Options{DeliveryTimeout: 200 * time.Millisecond})
	require.NoError(t, err)
	defer c.Close()
	p := c.Producer("events")
	defer p.Close()
	s, err = d.Replay(t.Context(), files, p, func(int64) {})
	require.NoError(t, err)
	require.EqualValues(t, 1, s.Produced)
	require.NoError(t, k.broker.Close())
	s, err = d.Replay(t.Context(), files, p, func(int64) {})
	var each kafkaio.MessageErrors
	require.ErrorAs(t, err, &each)
	require.NotContains(t, err.Error(), "canary")
	require.Zero(t, s.Produced)
	require.Empty(t, s.Dropped)
}

// A value within our bound but not within the broker's is one drop; what was
// sent beside it arrives.
func TestReplayBrokerRefuses(t *testing.T) {
	k := newTopic(t)
	require.NoError(t, k.client.EnsureTopic(t.Context(), "small", 1, map[string]string{"max.message.bytes": "65536"}))
	p := k.client.Producer("small")
	defer p.Close()
	large := make([]byte, 1<<18) // that no compression makes small
	for i := range large {
		large[i] = "abcdefghijklmnopqrstuvwxyz0123456789"[rand.IntN(36)]
	}
	dir := write(t, map[string]string{"a.jsonl": sprint + "\n" + strings.Replace(comment, "canary", string(large), 1) + "\n" + sprint + "\n"})
	_, drops, _ := replay(t, &topic{p, k.broker, k.client}, dir)
	require.Equal(t, []string{"in/a.jsonl:2: too_large"}, drops)
	got := 0
	_, err := k.client.ReadAll(t.Context(), "small", func(_ int, r kafkaio.Record) error {
		require.Equal(t, sprint, string(r.Value))
		got++
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, 2, got)
}

func BenchmarkReplay(b *testing.B) {
	k := newTopic(b)
	files, err := Files([]string{"../../fixtures/events"})
	require.NoError(b, err)
	size := int64(0)
	for _, f := range files {
		size += f.Size
	}
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		d := Door{AssumeConsent: true, Now: now, Name: "replay"}
		s, err := d.Replay(b.Context(), files, k.Producer, func(int64) {})
		require.NoError(b, err)
		require.Greater(b, s.Produced, s.Records*8/10)
	}
}

// A rate is kept, and nothing is lost for it.
func TestReplayRate(t *testing.T) {
	k := newTopic(t)
	var lines strings.Builder
	for i := range 60 {
		fmt.Fprintf(&lines, `{"id":"%d","fields":{"summary":"s"}}`+"\n", i)
	}
	files, err := Files([]string{write(t, map[string]string{"a.jsonl": lines.String()})})
	require.NoError(t, err)
	d := Door{AssumeConsent: true, EventTime: OfReplay, Now: now, Name: "replay", Rate: 100}
	began := time.Now()
	s, err := d.Replay(t.Context(), files, k.Producer, func(int64) {})
	require.NoError(t, err)
	require.EqualValues(t, 60, s.Produced)
	require.GreaterOrEqual(t, time.Since(began), 600*time.Millisecond)
	require.Len(t, k.origins(t), 60)
}
