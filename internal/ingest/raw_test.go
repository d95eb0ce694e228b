package ingest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"

	"winnow/internal/kafkaio"
	"winnow/pkg/gate"
	"winnow/pkg/schema"
)

// rawTopics are a topic raw and a topic events on one broker.
type rawTopics struct {
	cluster *kfake.Cluster
	client  *kafkaio.Client
	id      string // of raw
	in      *kafkaio.Producer
}

func newRawTopics(t testing.TB, partitions int, o kafkaio.Options) *rawTopics {
	t.Helper()
	k, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DataDir(t.TempDir()), kfake.GroupMinSessionTimeout(100*time.Millisecond))
	require.NoError(t, err)
	t.Cleanup(k.Close)
	o.MaxWait, o.SessionTimeout = 50*time.Millisecond, 2*time.Second
	c, err := kafkaio.Dial(k.ListenAddrs(), o)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	for _, topic := range []string{"raw", "events"} {
		require.NoError(t, EnsureEvents(t.Context(), c, topic, partitions))
	}
	info, err := c.Topic(t.Context(), "raw")
	require.NoError(t, err)
	in := c.Producer("raw")
	t.Cleanup(func() { in.Close() })
	return &rawTopics{k, c, info.ID, in}
}

// door returns a door from raw to events; what it warns of fails the test
// unless warn takes it.
func (k *rawTopics) door(t testing.TB, p *gate.Policy) *Raw {
	out := k.client.Producer("events")
	t.Cleanup(func() { out.Close() })
	return &Raw{Client: k.client, Policy: p, From: "raw", Out: out, Name: "kafka", Now: func() time.Time { return now },
		Progress: func(int64) {}, Warn: func(err error) { t.Error(err) }}
}

// ends returns where each partition of raw ends.
func (k *rawTopics) ends(t testing.TB) map[int]int64 {
	t.Helper()
	info, err := k.client.Topic(t.Context(), "raw")
	require.NoError(t, err)
	ranges, err := k.client.Offsets(t.Context(), "raw", info.Partitions)
	require.NoError(t, err)
	ends := map[int]int64{}
	for p, r := range ranges {
		ends[p] = r.End
	}
	return ends
}

func (k *rawTopics) put(t testing.TB, msgs ...kafkaio.Message) {
	t.Helper()
	for i := range msgs {
		if msgs[i].Key == nil {
			msgs[i].Key = []byte("k") // one partition, so that offsets are known
		}
	}
	require.NoError(t, k.in.Produce(t.Context(), msgs...))
}

// arrived is an event on the events topic.
type arrived struct {
	e          schema.Envelope
	key, value string
	headers    int
}

func (k *rawTopics) events(t testing.TB) (out []arrived) {
	t.Helper()
	_, err := k.client.ReadAll(t.Context(), "events", func(_ int, r kafkaio.Record) error {
		e, err := schema.ParseHeaders(r.Headers)
		require.NoError(t, err)
		out = append(out, arrived{e, string(r.Key), string(r.Value), len(r.Headers)})
		return nil
	})
	require.NoError(t, err)
	return out
}

// whole fails unless each record was either produced or counted as dropped.
func whole(t testing.TB, s Summary) {
	t.Helper()
	dropped, listed := int64(0), int64(0)
	for _, n := range s.Dropped {
		dropped += n
	}
	for _, d := range s.Drops {
		listed += 1 + d.More
		require.NotContains(t, d.Detail, "canary")
	}
	require.Equal(t, s.Records, s.Produced+dropped)
	require.Equal(t, dropped, listed)
	var out bytes.Buffer
	s.Write(&out)
	s.WriteRedriven(&out)
	require.NotContains(t, out.String(), "canary")
}

const agreed = `{"plans":{"jira":"standard","confluence":"standard","jira_service_management":"standard"},"sector":"retail","in_app":"on"`

// tell puts a tenant with one host, id + ".example", which has agreed to both
// streams; more is appended to its settings.
func tell(t testing.TB, p *gate.Policy, id, more string) {
	t.Helper()
	require.NoError(t, p.Put(id, []byte(`{"tenant":"`+id+`","org":"o-`+id+`","hosts":["`+id+`.example"],"region":"eu","revision":1,"history":[{"at":"2025-01-01T00:00:00Z","set":`+agreed+more+`}}]}`)))
}

// two knows acme, which has agreed, and closed, which is exempt.
func two(t testing.TB) *gate.Policy {
	p := gate.NewPolicy(gate.Options{})
	tell(t, p, "acme", "")
	tell(t, p, "closed", `,"cmek":true`)
	return p
}

func binary(attributes ...string) (hs []schema.Header) {
	hs = []schema.Header{{Key: "ce_specversion", Value: []byte("1.0")}, {Key: "ce_id", Value: []byte("delivery-1")}, {Key: "ce_source", Value: []byte("/hooks")},
		{Key: "ce_type", Value: []byte("com.example.changed")}, {Key: "ce_time", Value: []byte("2026-09-01T10:00:00Z")}}
	for i := 0; i < len(attributes); i += 2 {
		h := schema.Header{Key: attributes[i], Value: []byte(attributes[i+1])}
		if at := slices.IndexFunc(hs, func(o schema.Header) bool { return o.Key == h.Key }); at >= 0 {
			hs[at] = h
		} else {
			hs = append(hs, h)
		}
	}
	return hs
}

// TestRawFixtures puts every fixture on the raw topic as it is. What arrives is
// what the tenants, asked one by one, have agreed to.
func TestRawFixtures(t *testing.T) {
	k := newRawTopics(t, 3, kafkaio.Options{})
	p := gate.NewPolicy(gate.Options{})
	f, err := os.Open("../../fixtures/tenants.jsonl")
	require.NoError(t, err)
	defer f.Close()
	records, err := Tenants(f, nil, now)
	require.NoError(t, err)
	for _, m := range records {
		require.NoError(t, p.Put(string(m.Key), m.Value))
	}
	files, err := filepath.Glob("../../fixtures/*/*.json*")
	require.NoError(t, err)
	n := 0
	for _, file := range files {
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		lines := [][]byte{b}
		if strings.HasSuffix(file, "l") {
			lines = bytes.Split(b, []byte("\n"))
		}
		for _, l := range lines {
			require.NoError(t, k.in.Produce(t.Context(), kafkaio.Message{Key: []byte(strconv.Itoa(n)), Value: l, Time: now}))
			n++
		}
	}

	want := map[string]arrived{} // by id
	events, drops := int64(0), map[schema.Reason]int64{}
	_, err = k.client.ReadAll(t.Context(), "raw", func(partition int, r kafkaio.Record) error {
		var d schema.Doc
		schema.Unwrap(&d, bytes.Clone(r.Value), func(index int, it schema.Item, err error) {
			if err != nil {
				drops[schema.ReasonOf(err)]++
				return
			}
			e := it.Envelope
			if e.Time.IsZero() {
				e.Time = now
			}
			if e.Tenant == "" {
				e.Tenant, _ = p.TenantOf(e.Host)
			}
			if d := p.Decide(e, now); !d.Metadata && !d.InApp {
				drops[d.InAppReason]++
				return
			}
			name := fmt.Sprintf("%s\x00%d\x00%d\x00%d", k.id, partition, r.Offset, index)
			if it.ID != "" {
				name = it.ID
			}
			e.ID, e.Origin, e.Host = EventID(name), fmt.Sprintf("kafka/raw/%d#%d", partition, r.Offset), ""
			if index > 0 {
				e.Origin += "." + strconv.Itoa(index)
			}
			want[e.ID] = arrived{e: e, value: string(it.Value)}
			events++
		})
		return nil
	})
	require.NoError(t, err)
	require.Greater(t, len(want), 100)
	require.Greater(t, len(drops), 15, "the fixtures hold something for most reasons")

	s, err := k.door(t, p).Consume(t.Context(), "g", k.ends(t))
	require.NoError(t, err)
	whole(t, s)
	require.Equal(t, drops, s.Dropped)
	require.Equal(t, events, s.Produced)
	got := k.events(t)
	require.Len(t, got, int(events))
	for _, a := range got {
		require.True(t, strings.HasPrefix(a.key, a.e.Tenant+"|"))
		a.key, a.headers = "", 0
		if w := want[a.e.ID]; w.e.Origin != a.e.Origin {
			continue // one delivery that the fixtures hold twice
		}
		require.Equal(t, want[a.e.ID], a)
	}

	// The group is at the end: nothing comes again.
	s, err = k.door(t, p).Consume(t.Context(), "g", k.ends(t))
	require.NoError(t, err)
	require.Zero(t, s.Records)
	require.Len(t, k.events(t), int(events))
}

func TestRawForms(t *testing.T) {
	ours := schema.Envelope{ID: "0b7d3a4e-0000-5000-8000-000000000001", Origin: "kafka/raw/0#1", Type: "winnow.jira.rest.comment", Time: now.Add(-time.Hour), Tenant: "acme", Product: schema.Jira}
	of := func(tenant string) []schema.Header {
		e := ours
		e.Tenant = tenant
		return append(e.AppendHeaders(nil), schema.Header{Key: "traceparent", Value: []byte("canary")})
	}
	acme := comment
	closed := strings.ReplaceAll(comment, "acme", "closed")
	nobody := strings.ReplaceAll(comment, "acme", "nobody")
	for _, c := range []struct {
		name   string
		m      kafkaio.Message
		reason schema.Reason // or none
		listed bool
		id     string // empty: of the coordinates
		key    string
		time   time.Time
	}{
		{name: "REST", m: kafkaio.Message{Value: []byte(acme)}, key: "acme|jira/5", time: now.Add(-time.Minute)},
		{name: "its time is in the future", m: kafkaio.Message{Value: []byte(acme), Time: now.Add(time.Hour)}, key: "acme|jira/5", time: now},
		{name: "structured", m: kafkaio.Message{Value: []byte(wrapped("", acme))}, id: EventID("/hooks\x00delivery-1"), key: "acme|jira/5", time: now.Add(-time.Minute)},
		{name: "binary", m: kafkaio.Message{Value: []byte(acme), Headers: binary("ce_tenant", "acme")}, id: EventID("/hooks\x00delivery-1"), key: "acme|jira/5", time: time.Date(2026, 9, 1, 10, 0, 0, 0, time.UTC)},
		{name: "binary, tenant by host", m: kafkaio.Message{Value: []byte(acme), Headers: binary()}, id: EventID("/hooks\x00delivery-1"), key: "acme|jira/5", time: time.Date(2026, 9, 1, 10, 0, 0, 0, time.UTC)},
		{name: "binary of another's host", m: kafkaio.Message{Value: []byte(closed), Headers: binary("ce_tenant", "acme")}, reason: gate.TenantMismatch, listed: true},
		{name: "binary of an exempt tenant is not parsed", m: kafkaio.Message{Value: []byte(`{"canary`), Headers: binary("ce_tenant", "closed")}, reason: gate.ExemptCMEK},
		{name: "binary of no tenant is not parsed", m: kafkaio.Message{Value: []byte(`{"canary`), Headers: binary("ce_tenant", "canary")}, reason: gate.TenantUnknown, listed: true},
		{name: "malformed binary", m: kafkaio.Message{Value: []byte(`{"canary`), Headers: binary("ce_tenant", "acme")}, reason: schema.ReasonMalformedJSON, listed: true},
		{name: "binary in a bad version", m: kafkaio.Message{Value: []byte(acme), Headers: binary("ce_specversion", "canary")}, reason: schema.ReasonBadHeaders, listed: true},
		{name: "ours", m: kafkaio.Message{Key: []byte("acme|jira/77"), Value: []byte(acme), Headers: of("acme")}, id: ours.ID, key: "acme|jira/77", time: ours.Time},
		{name: "ours, not readable", m: kafkaio.Message{Key: []byte("acme|jira/77"), Value: []byte(`{"canary`), Headers: of("acme")}, id: ours.ID, key: "acme|jira/77", time: ours.Time},
		{name: "ours under another's key", m: kafkaio.Message{Key: []byte("closed|jira/77"), Value: []byte(acme), Headers: of("acme")}, id: ours.ID, key: "acme|jira/" + ours.ID, time: ours.Time},
		{name: "ours of an exempt tenant", m: kafkaio.Message{Value: []byte(acme), Headers: of("closed")}, reason: gate.ExemptCMEK},
		{name: "ours of no tenant", m: kafkaio.Message{Value: []byte(acme), Headers: of("")}, reason: gate.TenantUnknown, listed: true},
		{name: "ours with two tenants", m: kafkaio.Message{Value: []byte(acme), Headers: append(of("acme"), of("closed")...)}, reason: schema.ReasonBadHeaders, listed: true},
		{name: "ours, too large", m: kafkaio.Message{Value: make([]byte, schema.MaxValue+1), Headers: of("acme")}, reason: schema.ReasonTooLarge, listed: true},
		{name: "too large", m: kafkaio.Message{Value: bytes.Repeat([]byte("x"), schema.MaxValue+1)}, reason: schema.ReasonTooLarge, listed: true},
		{name: "exempt", m: kafkaio.Message{Value: []byte(closed)}, reason: gate.ExemptCMEK},
		{name: "the built-in tenant", m: kafkaio.Message{Value: []byte(acme), Headers: binary("ce_tenant", gate.LocalTenant)}, reason: gate.TenantUnknown, listed: true},
		{name: "host of nobody", m: kafkaio.Message{Value: []byte(nobody)}, reason: gate.TenantUnknown, listed: true},
		{name: "read before the policy", m: kafkaio.Message{Value: []byte(acme), Time: schema.EffectiveDate.Add(-time.Second)}, reason: gate.BeforeEffectiveDate},
		{name: "tombstone", m: kafkaio.Message{}, reason: schema.ReasonEmptyValue},
		{name: "tombstone of ours", m: kafkaio.Message{Headers: of("acme")}, reason: schema.ReasonEmptyValue},
		{name: "empty value", m: kafkaio.Message{Value: []byte(" ")}, reason: schema.ReasonEmptyValue},
		{name: "unknown wrapper", m: kafkaio.Message{Value: []byte(`{"canary":1}`)}, reason: schema.ReasonWrapperUnknown, listed: true},
		{name: "not listed", m: kafkaio.Message{Value: []byte(`{"accountId":"canary","displayName":"canary"}`)}, reason: schema.ReasonNotListed},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newRawTopics(t, 1, kafkaio.Options{})
			if c.m.Time.IsZero() {
				c.m.Time = now.Add(-time.Minute)
			}
			k.put(t, c.m)
			d := k.door(t, two(t))
			list := filepath.Join(t.TempDir(), "q.jsonl")
			var err error
			d.Quarantine, err = OpenQuarantine(list)
			require.NoError(t, err)
			defer d.Quarantine.Close()
			s, err := d.Consume(t.Context(), "g", k.ends(t))
			require.NoError(t, err)
			whole(t, s)
			lines, err := os.ReadFile(list)
			require.NoError(t, err)
			require.NotContains(t, string(lines), "canary")
			got := k.events(t)
			if c.reason != "" {
				require.Equal(t, map[schema.Reason]int64{c.reason: 1}, s.Dropped)
				require.Empty(t, got)
				require.Equal(t, c.listed, len(lines) > 0)
				return
			}
			require.Empty(t, s.Drops)
			require.Empty(t, lines)
			require.Len(t, got, 1)
			if c.id == "" {
				c.id = EventID(k.id + "\x000\x000\x000")
			}
			require.Equal(t, c.id, got[0].e.ID)
			require.Equal(t, c.key, got[0].key)
			require.Equal(t, c.time, got[0].e.Time)
			require.Equal(t, "acme", got[0].e.Tenant)
			require.Equal(t, len(ours.AppendHeaders(nil)), got[0].headers, "no header that nobody listed")
			if c.m.Headers != nil {
				require.Equal(t, string(c.m.Value), got[0].value)
			}
		})
	}
}

// TestRawQuarantine: the lines name what can be acted on, once for each record,
// and are what ReadOffsets reads.
func TestRawQuarantine(t *testing.T) {
	k := newRawTopics(t, 1, kafkaio.Options{})
	k.put(t, kafkaio.Message{Value: []byte(comment)}, kafkaio.Message{Value: []byte(`{"canary`)}, kafkaio.Message{},
		kafkaio.Message{Value: []byte(`[{"canary":1},` + comment + `,{"canary":2},{"id":7,"body":{},"author":{}}]`)}, kafkaio.Message{Value: []byte(strings.ReplaceAll(comment, "acme", "nobody"))})
	d := k.door(t, two(t))
	list := filepath.Join(t.TempDir(), "q.jsonl")
	const before = `{"topic":"other","partition":0,"offset":0}` + "\n"
	require.NoError(t, os.WriteFile(list, []byte(before+`{"topic":"raw","parti`), 0o644)) // a crash cut it
	var err error
	d.Quarantine, err = OpenQuarantine(list)
	require.NoError(t, err)
	_, err = OpenQuarantine(list)
	require.ErrorContains(t, err, "another process writes to it", "it would take a line that is being written for one that a crash cut")
	s, err := d.Consume(t.Context(), "g", k.ends(t))
	require.NoError(t, err)
	require.NoError(t, d.Quarantine.Close())
	whole(t, s)
	b, err := os.ReadFile(list)
	require.NoError(t, err)
	const at = `,"time":"2026-11-01T08:00:00Z"}` + "\n"
	require.Equal(t, before+
		`{"topic":"raw","partition":0,"offset":1,"reason":"malformed_json","byte":8`+at+
		`{"topic":"raw","partition":0,"offset":3,"reason":"wrapper_unknown","byte":-1`+at+
		`{"topic":"raw","partition":0,"offset":4,"reason":"tenant_unknown","byte":-1`+at, string(b))
	offsets, others, err := ReadOffsets(bytes.NewReader(b), "raw")
	require.NoError(t, err)
	require.Equal(t, map[int][]int64{0: {1, 3, 4}}, offsets)
	require.Equal(t, 1, others)
	require.EqualValues(t, 2, s.Produced, "what stands beside a bad record in one text goes on")
}

// TestRawCrashBeforeHint dies after the brokers acknowledged and before the
// group is told, for the quarantine can not be written. What comes again has
// the same ids.
func TestRawCrashBeforeHint(t *testing.T) {
	k := newRawTopics(t, 1, kafkaio.Options{MaxBytes: 1000})
	bad := kafkaio.Message{Value: []byte("canary")}
	for i := range 30 {
		k.put(t, kafkaio.Message{Value: []byte(strings.Replace(comment, `"5"`, strconv.Itoa(i), 1))})
		if i == 20 {
			k.put(t, bad)
		}
	}
	d := k.door(t, two(t))
	q, err := OpenQuarantine(filepath.Join(t.TempDir(), "q.jsonl"))
	require.NoError(t, err)
	require.NoError(t, q.Close())
	d.Quarantine = q
	_, err = d.Consume(t.Context(), "g", k.ends(t))
	require.ErrorIs(t, err, os.ErrClosed)
	first := k.events(t)
	require.NotEmpty(t, first)
	require.Less(t, len(first), 30)

	d = k.door(t, two(t))
	s, err := d.Consume(t.Context(), "g", k.ends(t))
	require.NoError(t, err)
	whole(t, s)
	all := k.events(t)
	require.Greater(t, len(all), 30, "what was not hinted comes again")
	require.Less(t, s.Produced, int64(30), "what was hinted does not")
	require.EqualValues(t, 1, s.Dropped[schema.ReasonMalformedJSON])
	ids := map[string]string{}
	for _, a := range all {
		if v, ok := ids[a.e.ID]; ok {
			require.Equal(t, v, a.value)
		}
		ids[a.e.ID] = a.value
	}
	require.Len(t, ids, 30)
}

// TestRawStops: a door that is told to stop has hinted what it produced, so
// that nothing comes twice.
func TestRawStops(t *testing.T) {
	k := newRawTopics(t, 2, kafkaio.Options{MaxBytes: 1000})
	for i := range 100 {
		k.put(t, kafkaio.Message{Key: []byte(strconv.Itoa(i)), Value: []byte(comment)})
	}
	for produced := int64(0); produced < 100; {
		ctx, cancel := context.WithCancel(t.Context())
		d := k.door(t, two(t))
		d.Progress = func(int64) { cancel() }
		s, err := d.Consume(ctx, "g", nil)
		require.NoError(t, err)
		require.Positive(t, s.Produced)
		produced += s.Produced
		require.Len(t, k.events(t), int(produced))
	}
	require.Len(t, k.events(t), 100)
}

// TestRawRebalance: while one member works another joins, and then the first
// leaves. Each record arrives.
func TestRawRebalance(t *testing.T) {
	k := newRawTopics(t, 4, kafkaio.Options{MaxBytes: 1000})
	for i := range 400 {
		k.put(t, kafkaio.Message{Key: []byte(strconv.Itoa(i)), Value: []byte(strings.Replace(comment, `"5"`, strconv.Itoa(i), 1))})
	}
	var mu sync.Mutex
	done := int64(0)
	waits := map[int64]chan struct{}{50: make(chan struct{}), 200: make(chan struct{}), 400: make(chan struct{})}
	member := func(ctx context.Context, mine chan<- int64) {
		c, err := kafkaio.Dial(k.cluster.ListenAddrs(), kafkaio.Options{MaxBytes: 1000, MaxWait: 50 * time.Millisecond, SessionTimeout: 2 * time.Second})
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		d := k.door(t, two(t))
		d.Client, d.Warn = c, func(error) {} // a hint may come too late
		d.Progress = func(n int64) {
			mu.Lock()
			defer mu.Unlock()
			done += n
			for at, w := range waits {
				if done >= at {
					close(w)
					delete(waits, at)
				}
			}
		}
		s, err := d.Consume(ctx, "g", nil)
		if err != nil {
			t.Error(err)
		}
		mine <- s.Produced
	}
	reached := func(n int64) <-chan struct{} {
		mu.Lock()
		defer mu.Unlock()
		return waits[n]
	}
	half, all := reached(200), reached(400)
	first, cancelFirst := context.WithCancel(t.Context())
	second, cancelSecond := context.WithCancel(t.Context())
	defer cancelFirst()
	defer cancelSecond()
	counts := make(chan int64, 2)
	joined := reached(50)
	go member(first, counts)
	<-joined
	go member(second, counts)
	<-half
	cancelFirst()
	a := <-counts
	<-all
	// Progress counts what came twice as well, so the end is asked for.
	require.Eventually(t, func() bool {
		ids := map[string]bool{}
		for _, a := range k.events(t) {
			ids[a.e.ID] = true
		}
		return len(ids) == 400
	}, 20*time.Second, 50*time.Millisecond)
	cancelSecond()
	b := <-counts
	require.Len(t, k.events(t), int(a+b))
}

// TestRawRetention: records that retention took before they were read are
// counted, warned of, and no reason to stop.
func TestRawRetention(t *testing.T) {
	k := newRawTopics(t, 1, kafkaio.Options{})
	for range 10 {
		k.put(t, kafkaio.Message{Value: []byte(comment)})
	}
	s, err := k.door(t, two(t)).Consume(t.Context(), "g", map[int]int64{0: 4})
	require.NoError(t, err)
	require.EqualValues(t, 4, s.Produced)
	require.NoError(t, k.cluster.DeleteRecords("raw", 0, 7))
	d := k.door(t, two(t))
	var warned error
	d.Warn = func(err error) { warned = err }
	s, err = d.Consume(t.Context(), "g", k.ends(t))
	require.NoError(t, err)
	whole(t, s)
	require.ErrorContains(t, warned, "raw/0@4: the log starts at 7")
	require.EqualValues(t, 3, s.Produced)
	require.Equal(t, map[schema.Reason]int64{ReasonGone: 3}, s.Dropped)
}

// TestRawShorterTopic: a topic that ends before what its group was told of lost
// records, or is another; the door says so and does not go on.
func TestRawShorterTopic(t *testing.T) {
	k := newRawTopics(t, 1, kafkaio.Options{})
	k.put(t, kafkaio.Message{Value: []byte(comment)})
	ctx, cancel := context.WithCancel(t.Context())
	require.NoError(t, k.client.Consume(ctx, "g", "raw", func(_ context.Context, a *kafkaio.Assignment) error {
		defer cancel()
		return a.Hint(5)
	}))
	s, err := k.door(t, two(t)).Consume(t.Context(), "g", map[int]int64{0: 6})
	require.ErrorAs(t, err, new(*kafkaio.BeyondEndError))
	require.ErrorContains(t, err, "another consumer group")
	require.Zero(t, s.Records)
}

// TestRawTopicMadeAgain: the same coordinates of a topic made again are other
// events.
func TestRawTopicMadeAgain(t *testing.T) {
	id := func(topicID string) string {
		d := Door{Policy: two(t), Admit: true, Now: now, TopicID: topicID, Name: "kafka"}
		var id string
		d.UnwrapRecord(schema.Source{Topic: "raw", Offset: 7}, &kafkaio.Record{Value: []byte(comment)}, func(_ Place, m kafkaio.Message, err error) {
			require.NoError(t, err)
			id = header(m.Headers, "ce_id")
		})
		return id
	}
	require.Equal(t, id("a"), id("a"))
	require.NotEqual(t, id("a"), id("b"))
	require.NotEqual(t, id(""), id("a"))
	require.Equal(t, id(""), id(""), "before Kafka 2.8 topics have no id")
}

func TestRedrive(t *testing.T) {
	k := newRawTopics(t, 2, kafkaio.Options{MaxBytes: 1000})
	p := two(t)
	later := strings.ReplaceAll(comment, "acme", "later")
	for i := range 40 {
		v := comment
		if i%4 == 1 {
			v = later
		}
		k.put(t, kafkaio.Message{Value: []byte(strings.Replace(v, `"5"`, strconv.Itoa(i), 1)), Time: now.Add(-time.Hour)})
	}
	part := 0
	if k.ends(t)[0] == 0 {
		part = 1
	}
	d := k.door(t, p)
	list := filepath.Join(t.TempDir(), "q.jsonl")
	var err error
	d.Quarantine, err = OpenQuarantine(list)
	require.NoError(t, err)
	defer d.Quarantine.Close()
	s, err := d.Consume(t.Context(), "g", k.ends(t))
	require.NoError(t, err)
	require.EqualValues(t, 30, s.Produced)
	require.EqualValues(t, 10, s.Dropped[gate.TenantUnknown])
	read := func() map[int][]int64 {
		b, err := os.ReadFile(list)
		require.NoError(t, err)
		offsets, others, err := ReadOffsets(bytes.NewReader(b), "raw")
		require.NoError(t, err)
		require.Zero(t, others)
		return offsets
	}
	offsets := read()
	require.Equal(t, map[int][]int64{part: {1, 5, 9, 13, 17, 21, 25, 29, 33, 37}}, offsets)

	// Refused again, and listed again, which changes nothing.
	s, err = d.Redrive(t.Context(), offsets)
	require.NoError(t, err)
	whole(t, s)
	require.Equal(t, map[schema.Reason]int64{gate.TenantUnknown: 10}, s.Dropped)
	require.Equal(t, offsets, read())

	// The tenant becomes known.
	tell(t, p, "later", "")
	require.NoError(t, k.cluster.DeleteRecords("raw", int32(part), 6))
	done := int64(0)
	d.Progress = func(n int64) { done += n }
	offsets[part] = append(offsets[part], 40, 41, 1<<40) // at the end, and behind it
	offsets[7] = []int64{3}                              // no such partition
	s, err = d.Redrive(t.Context(), offsets)
	require.NoError(t, err)
	whole(t, s)
	require.EqualValues(t, 14, done)
	require.EqualValues(t, 8, s.Produced)
	require.Equal(t, map[schema.Reason]int64{ReasonGone: 6}, s.Dropped)
	var out bytes.Buffer
	s.WriteRedriven(&out)
	require.Contains(t, out.String(), fmt.Sprintf("raw/%d@1: gone, and 4 more in this partition\n", part))
	require.Contains(t, out.String(), "raw/7@3: gone\n")
	require.Len(t, k.events(t), 38)
	want := map[string]string{} // value by id: what was fetched next must not have taken its place
	for at := 9; at < 40; at += 4 {
		want[EventID(fmt.Sprintf("%s\x00%d\x00%d\x000", k.id, part, at))] = strings.Replace(later, `"5"`, strconv.Itoa(at), 1)
	}
	// Again: the same ids.
	_, err = d.Redrive(t.Context(), offsets)
	require.NoError(t, err)
	times := map[string]int{}
	for _, a := range k.events(t) {
		if a.e.Tenant == "later" {
			times[a.e.ID]++
			require.Equal(t, want[a.e.ID], a.value)
			require.Equal(t, now.Add(-time.Hour), a.e.Time, "when it was read first, not when again")
		}
	}
	require.Len(t, times, len(want))
	for _, n := range times {
		require.Equal(t, 2, n)
	}

	// The group has moved on as before.
	s, err = k.door(t, p).Consume(t.Context(), "g", k.ends(t))
	require.NoError(t, err)
	require.Zero(t, s.Records)
}

func TestReadOffsets(t *testing.T) {
	const fine = `{"topic":"raw","partition":1,"offset":7,"reason":"x","byte":-1,"extra":{"a":[1]}}`
	in := strings.Join([]string{fine, "", `{"topic":"raw","partition":1,"offset":5}`, fine, ` {"offset":0,"partition":0,"topic":"raw"} ` + "\r", `{"topic":"events","partition":1,"offset":5}`}, "\n")
	offsets, others, err := ReadOffsets(strings.NewReader(in), "raw")
	require.NoError(t, err)
	require.Equal(t, map[int][]int64{0: {0}, 1: {5, 7}}, offsets)
	require.Equal(t, 1, others)

	bad := []string{`canary`, `{"topic":"canary"`, `["canary"]`, `{"topic":"canary","partition":1}`, `{"topic":"canary","partition":-1,"offset":1}`, `{"topic":"canary","partition":1,"offset":-1}`,
		`{"topic":"canary","partition":1,"offset":1.5}`, `{"topic":"canary","partition":"canary","offset":1}`, `{"topic":"","partition":1,"offset":1}`, `{"topic":"canary","partition":4294967296,"offset":1}`,
		`{"topic":"canary","partition":1,"offset":null}`, fine + fine, `"` + strings.Repeat("x", schema.MaxValue+10) + `"`}
	_, _, err = ReadOffsets(strings.NewReader(fine+"\n"+strings.Join(bad, "\n")), "raw")
	require.Error(t, err)
	faults := strings.Split(err.Error(), "\n")
	require.Len(t, faults, len(bad))
	for i, f := range faults {
		require.Contains(t, f, fmt.Sprintf("line %d: ", i+2))
		require.NotContains(t, f, "canary")
	}
	_, _, err = ReadOffsets(io.MultiReader(strings.NewReader(fine+"\n"), broken{}), "raw")
	require.ErrorIs(t, err, os.ErrInvalid)
}

// broken is a file that can not be read.
type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, os.ErrInvalid }

func TestQuarantineFile(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct{ before, after string }{
		"new":       {"", ""},
		"whole":     {"a\nb\n", "a\nb\n"},
		"cut":       {"a\nb\nc", "a\nb\n"},
		"cut first": {"abc", ""},
		"cut long":  {"a\n" + strings.Repeat("x", 10_000), "a\n"},
	} {
		path := filepath.Join(dir, name)
		if name != "new" {
			require.NoError(t, os.WriteFile(path, []byte(c.before), 0o644))
		}
		q, err := OpenQuarantine(path)
		require.NoError(t, err)
		require.NoError(t, q.add([]byte("d\n")))
		require.NoError(t, q.Close())
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, c.after+"d\n", string(b), name)
	}
	_, err := OpenQuarantine(filepath.Join(dir, "no", "where"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

// FuzzRaw hands arbitrary headers and bytes to a door that knows two tenants.
func FuzzRaw(f *testing.F) {
	e := schema.Envelope{ID: "a", Origin: "o", Type: "winnow.jira.rest.issue", Time: now, Tenant: "acme", Product: schema.Jira}
	pack := func(hs []schema.Header) string {
		var b strings.Builder
		for _, h := range hs {
			b.WriteString(h.Key + "=" + string(h.Value) + "\n")
		}
		return b.String()
	}
	for _, v := range []string{comment, sprint, wrapped("", comment), wrapped(`,"tenant":"acme"`, sprint), "[" + comment + "," + sprint + "]", "", "{", strings.ReplaceAll(comment, "acme", "closed")} {
		f.Add("", []byte(v))
		f.Add(pack(e.AppendHeaders(nil)), []byte(v))
		f.Add(pack(binary("ce_tenant", "acme")), []byte(v))
		f.Add(pack(binary("ce_tenant", "closed")), []byte(v))
		f.Add(pack(binary("ce_product", "trello")), []byte(v))
	}
	p := two(f)
	f.Fuzz(func(t *testing.T, headers string, value []byte) {
		r := kafkaio.Record{Value: value, Key: []byte("closed|x"), Time: now.Add(-time.Hour)}
		for l := range strings.SplitSeq(headers, "\n") {
			if k, v, ok := strings.Cut(l, "="); ok {
				r.Headers = append(r.Headers, schema.Header{Key: k, Value: []byte(v)})
			}
		}
		before := bytes.Clone(value)
		d := Door{Policy: p, Admit: true, Now: now, TopicID: "t", Name: "kafka"}
		calls := 0
		d.UnwrapRecord(schema.Source{Topic: "raw"}, &r, func(at Place, m kafkaio.Message, err error) {
			calls++
			if err != nil {
				var e *schema.Error
				require.ErrorAs(t, err, &e)
				// The words of an error are ours, whatever the input: reasons,
				// paths of the catalog, and numbers.
				require.Regexp(t, `^[a-z0-9_]+( at [A-Za-z0-9_.*\[\]-]+)?( \(byte \d+\))?$`, err.Error())
				require.Zero(t, m)
				return
			}
			got, err := schema.ParseHeaders(m.Headers)
			require.NoError(t, err)
			require.Equal(t, "acme", got.Tenant)
			require.NotZero(t, p.Decide(got, now).Streams())
			require.True(t, strings.HasPrefix(string(m.Key), "acme|"))
		})
		require.Positive(t, calls)
		require.Equal(t, before, value, "the record was written to")
	})
}
