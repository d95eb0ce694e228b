package ingest

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"winnow/internal/broker"
	"winnow/internal/kafkaio"
	"winnow/pkg/gate"
	"winnow/pkg/schema"
)

// hooks is a webhook door on loopback with an embedded broker behind it.
type hooks struct {
	*Webhook
	dir    string
	port   int
	broker *broker.Broker
	client *kafkaio.Client
	url    string
	log    bytes.Buffer
	close  func() error // drains it, and returns what Serve returned
}

const longPath = "0123456789abcdefghijklmnopqrstuv"

const endpointsFile = `{"path":"acme","tenant":"acme","secrets":["new secret","old secret"]}
{"path":"` + longPath + `","tenant":"acme"}
{"path":"closed","tenant":"closed","secrets":["s"]}
{"path":"other","tenant":"nobody","secrets":["s"]}
`

func newHooks(t testing.TB, change func(*Webhook)) *hooks {
	t.Helper()
	h := &hooks{dir: t.TempDir()}
	var err error
	h.broker, err = broker.Start(h.dir, broker.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { h.broker.Close() })
	_, err = fmt.Sscanf(h.broker.Addr(), "127.0.0.1:%d", &h.port)
	require.NoError(t, err)
	h.client, err = kafkaio.Dial([]string{h.broker.Addr()}, kafkaio.Options{RequestTimeout: 2 * time.Second, DeliveryTimeout: 2 * time.Second})
	require.NoError(t, err)
	t.Cleanup(func() { h.client.Close() })
	require.NoError(t, EnsureEvents(t.Context(), h.client, "events", 4))
	es, err := ReadEndpoints(strings.NewReader(endpointsFile))
	require.NoError(t, err)
	h.Webhook = &Webhook{
		Endpoints: es, Policy: two(t), Out: h.client.Producer("events"), EventTime: OfRecord, Now: func() time.Time { return now }, Log: slog.New(slog.NewTextHandler(&h.log, nil)),
		Memory: 64 << 20, Connections: 256, HeaderTimeout: 500 * time.Millisecond, BodyTimeout: 2 * time.Second, DrainTimeout: 5 * time.Second, notice: 10 * time.Millisecond,
	}
	if change != nil {
		change(h.Webhook)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	h.url = "http://" + l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Serve(ctx, l) }()
	h.close = sync.OnceValue(func() error {
		cancel()
		err := <-done
		if h.Out != nil {
			h.Out.Close()
		}
		return err
	})
	t.Cleanup(func() { _ = h.close() })
	return h
}

func sign(secret, body string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(body))
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

// post sends a body, signed by a secret unless that is empty, and returns the
// status and the text of the answer.
func (h *hooks) post(t testing.TB, path, secret, id, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), http.MethodPost, h.url+path, strings.NewReader(body))
	require.NoError(t, err)
	if secret != "" {
		r.Header.Set("X-Hub-Signature", sign(secret, body))
	}
	if id != "" {
		r.Header.Set("X-Atlassian-Webhook-Identifier", id)
	}
	return h.send(t, r)
}

func (h *hooks) send(t testing.TB, r *http.Request) (int, string) {
	t.Helper()
	res, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.NotContains(t, string(b), "canary")
	if res.StatusCode == http.StatusServiceUnavailable {
		require.NotEmpty(t, res.Header.Get("Retry-After"))
	}
	return res.StatusCode, strings.TrimSpace(string(b))
}

// arrivals are the envelopes on the events topic.
func (h *hooks) arrivals(t testing.TB) (es []schema.Envelope) {
	t.Helper()
	_, err := h.client.ReadAll(t.Context(), "events", func(_ int, r kafkaio.Record) error {
		e, err := schema.ParseHeaders(r.Headers)
		require.NoError(t, err)
		es = append(es, e)
		return nil
	})
	require.NoError(t, err)
	return es
}

// hook is an issue webhook of the host of acme, unless text replaces it.
func hook(n int, more string) string {
	return fmt.Sprintf(`{"timestamp":1788256800000,"webhookEvent":"jira:issue_updated","issue":{"id":"%d","key":"A-%d","self":"https://acme.example/rest/api/2/issue/%d","fields":{"summary":"canary %d"%s}}}`, n, n, n, n, more)
}

func TestWebhookAnswers(t *testing.T) {
	h := newHooks(t, nil)
	good := hook(1, "")
	for name, c := range map[string]struct {
		path, secret, id, body string
		status                 int
		text                   string
		arrives                bool
	}{
		"signed":                         {"/hooks/acme", "new secret", "d1", good, 202, "acknowledged", true},
		"signed by the old secret":       {"/hooks/acme", "old secret", "d2", hook(2, ""), 202, "acknowledged", true},
		"a path that is a secret":        {"/hooks/" + longPath, "", "d3", hook(3, ""), 202, "acknowledged", true},
		"without an identifier":          {"/hooks/acme", "new secret", "", hook(4, ""), 202, "acknowledged", true},
		"with one that is none":          {"/hooks/acme", "new secret", strings.Repeat("x", 200), hook(5, ""), 202, "acknowledged", true},
		"another secret":                 {"/hooks/acme", "s", "d6", good, 401, "not signed by a secret of this endpoint", false},
		"no signature":                   {"/hooks/acme", "", "d7", good, 401, "not signed by a secret of this endpoint", false},
		"no such path":                   {"/hooks/canary", "new secret", "d8", good, 404, "no such endpoint", false},
		"no path":                        {"/hooks/", "new secret", "d8", good, 404, "no such endpoint", false},
		"elsewhere":                      {"/acme", "new secret", "d8", good, 404, "no such endpoint", false},
		"not JSON":                       {"/hooks/acme", "new secret", "d9", `{"canary`, 400, "dropped: malformed_json", false},
		"nothing":                        {"/hooks/acme", "new secret", "d10", "", 400, "dropped: empty_value", false},
		"a type that is not listed":      {"/hooks/acme", "new secret", "d11", `{"timestamp":1788256800000,"webhookEvent":"user_created","user":{"displayName":"canary"}}`, 202, "dropped: type_not_listed", false},
		"an unknown form":                {"/hooks/acme", "new secret", "d12", `{"canary":1}`, 202, "dropped: wrapper_unknown", false},
		"another site's":                 {"/hooks/acme", "new secret", "d13", strings.ReplaceAll(good, "acme.example", "closed.example"), 202, "dropped: tenant_mismatch", false},
		"another tenant's, it says":      {"/hooks/acme", "new secret", "d14", `{"specversion":"1.0","id":"a","source":"/s","type":"t","tenant":"closed","data":` + hook(1, "") + `}`, 202, "dropped: tenant_mismatch", false},
		"before T0":                      {"/hooks/acme", "new secret", "d15", strings.Replace(good, "1788256800000", "1755000000000", 1), 202, "dropped: before_effective_date", false},
		"an exempt customer":             {"/hooks/closed", "s", "d16", good, 202, "dropped: exempt_cmek", false},
		"… whose content is not parsed":  {"/hooks/closed", "s", "d17", `{"canary`, 202, "dropped: exempt_cmek", false},
		"… but has to be signed":         {"/hooks/closed", "", "d18", good, 401, "not signed by a secret of this endpoint", false},
		"a tenant that nobody knows":     {"/hooks/other", "s", "d19", good, 202, "dropped: tenant_unknown", false},
		"as large as may be":             {"/hooks/acme", "new secret", "d20", hook(20, `,"description":"`+strings.Repeat("a", schema.MaxValue-1000)+`"`), 202, "acknowledged", true},
		"too large":                      {"/hooks/acme", "new secret", "d21", hook(21, `,"description":"`+strings.Repeat("a", schema.MaxValue)+`"`), 413, "too large", false},
		"deep":                           {"/hooks/acme", "new secret", "d22", strings.Repeat("[", 10_000), 400, "dropped: too_deep", false},
		"a structured one":               {"/hooks/acme", "new secret", "d23", `{"specversion":"1.0","id":"a","source":"/s","type":"t","tenant":"acme","data":` + hook(23, "") + `}`, 202, "acknowledged", true},
		"a confluence webhook":           {"/hooks/acme", "new secret", "d24", `{"timestamp":1788256800000,"page":{"id":7,"title":"canary","spaceKey":"D","self":"https://acme.example/wiki/x"}}`, 202, "acknowledged", true},
		"a confluence page of elsewhere": {"/hooks/acme", "new secret", "d25", `{"timestamp":1788256800000,"page":{"id":7,"title":"canary","spaceKey":"D","self":"https://other.example/wiki/x"}}`, 202, "dropped: tenant_mismatch", false},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(h.arrivals(t))
			status, text := h.post(t, c.path, c.secret, c.id, c.body)
			require.Equal(t, c.status, status, text)
			require.Equal(t, c.text, text)
			got := h.arrivals(t)
			if !c.arrives {
				require.Len(t, got, before)
				return
			}
			require.Len(t, got, before+1)
			for _, e := range got {
				require.Equal(t, "acme", e.Tenant)
			}
		})
	}
	for _, m := range []string{http.MethodGet, http.MethodPut, http.MethodHead} {
		r, err := http.NewRequest(m, h.url+"/hooks/acme", nil)
		require.NoError(t, err)
		res, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		res.Body.Close()
		require.Equal(t, 405, res.StatusCode)
		require.Equal(t, "POST", res.Header.Get("Allow"))
	}
	r, err := http.NewRequest(http.MethodGet, h.url+"/healthz", nil)
	require.NoError(t, err)
	status, text := h.send(t, r)
	require.Equal(t, 200, status)
	require.Equal(t, "ok", text)
	require.NoError(t, h.close())
	var counts strings.Builder
	h.WriteCounts(&counts)
	require.Contains(t, counts.String(), "8  acknowledged\n")
	require.Contains(t, counts.String(), "2  dropped: exempt_cmek\n")
	require.NotContains(t, counts.String()+h.log.String(), "canary")
	require.NotContains(t, h.log.String(), "secret\"")
}

// A repeat gets the id of the first, and is not produced again.
func TestWebhookRepeats(t *testing.T) {
	h := newHooks(t, nil)
	for range 3 {
		status, text := h.post(t, "/hooks/acme", "new secret", "same", hook(1, ""))
		require.Equal(t, 202, status)
		require.Equal(t, "acknowledged", text)
	}
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			status, _ := h.post(t, "/hooks/acme", "new secret", "at-once", hook(2, ""))
			require.Equal(t, 202, status)
		})
	}
	all.Wait()
	got := h.arrivals(t)
	require.Len(t, got, 2)
	require.ElementsMatch(t, []string{EventID("webhook\x00acme\x00same\x000"), EventID("webhook\x00acme\x00at-once\x000")}, []string{got[0].ID, got[1].ID})

	// What was dropped may come again, when its tenant has become known.
	status, text := h.post(t, "/hooks/other", "s", "later", strings.ReplaceAll(hook(3, ""), "acme", "nobody"))
	require.Equal(t, "202 dropped: tenant_unknown", fmt.Sprint(status, " ", text))
	tell(t, h.Policy, "nobody", "")
	status, text = h.post(t, "/hooks/other", "s", "later", strings.ReplaceAll(hook(3, ""), "acme", "nobody"))
	require.Equal(t, "202 acknowledged", fmt.Sprint(status, " ", text))

	// The same identifier of another tenant is another delivery.
	status, _ = h.post(t, "/hooks/other", "s", "same", strings.ReplaceAll(hook(4, ""), "acme", "nobody"))
	require.Equal(t, 202, status)
	require.Len(t, h.arrivals(t), 4)
}

func TestRecentForgets(t *testing.T) {
	var r recent
	key := func(i int) [32]byte { return sha256.Sum256(fmt.Append(nil, i)) }
	for i := range 3 * recentDeliveries {
		r.add(key(i))
		require.LessOrEqual(t, len(r.young)+len(r.old), recentDeliveries)
	}
	last := 3*recentDeliveries - 1
	require.True(t, r.has(key(last)) && r.has(key(last-recentDeliveries/2+1)))
	require.False(t, r.has(key(0)))
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// A body of 100 MB, whose length is told or not, is refused without being held.
func TestWebhookHugeBody(t *testing.T) {
	h := newHooks(t, nil)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for _, told := range []bool{true, false} {
		r, err := http.NewRequest(http.MethodPost, h.url+"/hooks/acme", io.LimitReader(endless{}, 100<<20))
		require.NoError(t, err)
		if told {
			r.ContentLength = 100 << 20
		}
		res, err := http.DefaultClient.Do(r)
		if err == nil { // else the door closed the connection before its answer was read
			require.Equal(t, 413, res.StatusCode)
			res.Body.Close()
		}
	}
	runtime.ReadMemStats(&after)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(80<<20))
	require.NoError(t, h.close())
	require.EqualValues(t, 2, h.counts["too large"])
	require.Empty(t, h.arrivals(t))
}

// Clients that send slowly, or nothing, are cut off; others are served meanwhile.
func TestWebhookSlowClients(t *testing.T) {
	h := newHooks(t, nil)
	addr := strings.TrimPrefix(h.url, "http://")
	var slow sync.WaitGroup
	ended := func(first string, dribble string) {
		slow.Go(func() {
			c, err := net.Dial("tcp", addr)
			require.NoError(t, err)
			defer c.Close()
			_, err = io.WriteString(c, first)
			require.NoError(t, err)
			for began := time.Now(); time.Since(began) < 10*time.Second; {
				_, _ = io.WriteString(c, dribble)
				_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				b, err := io.ReadAll(c)
				if err == nil || !strings.Contains(err.Error(), "timeout") {
					if strings.Contains(first, "Content-Length") && len(b) > 0 {
						require.Contains(t, string(b), "408")
					}
					return // closed
				}
			}
			t.Error("a slow client was not cut off")
		})
	}
	for range 100 {
		ended("POST /hooks/acme HTTP/1.1\r\nHost: x\r\n", "A: b\r\n")
		ended("POST /hooks/acme HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{", " ")
	}
	for i := range 50 {
		status, _ := h.post(t, "/hooks/acme", "new secret", fmt.Sprint("d", i), hook(i, ""))
		require.Equal(t, 202, status)
	}
	slow.Wait()
	require.Len(t, h.arrivals(t), 50)
	require.NoError(t, h.close())
	require.EqualValues(t, 100, h.counts["too slow"])
}

// More at once than there is memory for is told to come again.
func TestWebhookBackpressure(t *testing.T) {
	h := newHooks(t, func(h *Webhook) { h.Memory = 1 << 20 })
	pr, pw := io.Pipe()
	r, err := http.NewRequest(http.MethodPost, h.url+"/hooks/acme", pr)
	require.NoError(t, err)
	body := hook(1, `,"description":"`+strings.Repeat("a", 900<<10)+`"`)
	r.ContentLength = int64(len(body))
	r.Header.Set("X-Hub-Signature", sign("new secret", body))
	done := make(chan int, 1)
	go func() {
		status, _ := h.send(t, r)
		done <- status
	}()
	_, err = io.WriteString(pw, body[:64<<10])
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		status, _ := h.post(t, "/hooks/acme", "new secret", "d", hook(2, `,"description":"`+strings.Repeat("a", 900<<10)+`"`))
		return status == 503
	}, 2*time.Second, 10*time.Millisecond)
	go func() { _, _ = io.WriteString(pw, body[64<<10:]); pw.Close() }()
	require.Equal(t, 202, <-done)
	status, _ := h.post(t, "/hooks/acme", "new secret", "e", hook(3, `,"description":"`+strings.Repeat("a", 900<<10)+`"`))
	require.Equal(t, 202, status)
}

// A flood while the broker is away for a while: each is acknowledged, and on the
// topic, or told to come again.
func TestWebhookFlood(t *testing.T) {
	h := newHooks(t, nil)
	const clients = 64
	requests := int64(10_000)
	if testing.Short() {
		requests = 2000
	}
	var next, acknowledged, refused atomic.Int64
	var mu sync.Mutex
	ids := map[string]bool{}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for n := next.Add(1); n <= requests; n = next.Add(1) {
				body, id := hook(int(n), ""), fmt.Sprint("flood-", n)
				r, err := http.NewRequest(http.MethodPost, h.url+"/hooks/acme", strings.NewReader(body))
				require.NoError(t, err)
				r.Header.Set("X-Hub-Signature", sign("new secret", body))
				r.Header.Set("X-Atlassian-Webhook-Identifier", id)
				res, err := client.Do(r)
				require.NoError(t, err)
				_, _ = io.Copy(io.Discard, res.Body)
				res.Body.Close()
				switch res.StatusCode {
				case 202:
					acknowledged.Add(1)
					mu.Lock()
					ids[EventID("webhook\x00acme\x00"+id+"\x000")] = true
					mu.Unlock()
				case 503:
					refused.Add(1)
				default:
					t.Errorf("status %d", res.StatusCode)
				}
				if n == requests/2 {
					require.NoError(t, h.broker.Close())
					time.AfterFunc(2500*time.Millisecond, func() {
						b, err := broker.Start(h.dir, broker.Options{Port: h.port})
						require.NoError(t, err)
						h.broker = b
					})
				}
			}
		})
	}
	all.Wait()
	require.EqualValues(t, requests, acknowledged.Load()+refused.Load())
	require.Greater(t, acknowledged.Load(), requests/2)
	require.NoError(t, h.close())
	on := map[string]bool{}
	for _, e := range h.arrivals(t) {
		on[e.ID] = true
	}
	for id := range ids {
		require.True(t, on[id], "acknowledged, and not on the topic")
	}
	t.Logf("%d requests: %d acknowledged, %d told to come again; %d events on the topic", requests, acknowledged.Load(), refused.Load(), len(on))
}

// A door that closes finishes what it has begun.
func TestWebhookDrains(t *testing.T) {
	h := newHooks(t, nil)
	var sending sync.WaitGroup
	var mu sync.Mutex
	acknowledged := map[string]bool{}
	stop := make(chan struct{})
	for c := range 8 {
		sending.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				id := fmt.Sprint("drain-", c, "-", n)
				body := hook(n, "")
				r, err := http.NewRequest(http.MethodPost, h.url+"/hooks/acme", strings.NewReader(body))
				require.NoError(t, err)
				r.Header.Set("X-Hub-Signature", sign("new secret", body))
				r.Header.Set("X-Atlassian-Webhook-Identifier", id)
				res, err := http.DefaultClient.Do(r)
				if err != nil {
					continue // nobody listens any more
				}
				res.Body.Close()
				if res.StatusCode == 202 {
					mu.Lock()
					acknowledged[EventID("webhook\x00acme\x00"+id+"\x000")] = true
					mu.Unlock()
				}
			}
		})
	}
	require.Eventually(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(acknowledged) > 200 }, 10*time.Second, time.Millisecond)
	require.NoError(t, h.close())
	close(stop)
	sending.Wait()
	on := map[string]bool{}
	for _, e := range h.arrivals(t) {
		on[e.ID] = true
	}
	for id := range acknowledged {
		require.True(t, on[id])
	}
	require.Zero(t, h.counts["internal failure"])
}

// One's own records, of their own time or of that of their receipt.
func TestWebhookLocal(t *testing.T) {
	for _, at := range []EventTime{OfRecord, OfReplay} {
		h := newHooks(t, func(h *Webhook) {
			h.Policy, h.EventTime = gate.NewPolicy(gate.Options{AssumeConsent: true}), at
			require.NoError(t, h.Endpoints.AddLocal())
		})
		old := strings.Replace(hook(1, ""), "1788256800000", "1400000000000", 1)
		status, text := h.post(t, "/hooks/local", "", "", old)
		require.Equal(t, 202, status)
		if at == OfRecord {
			require.Equal(t, "dropped: before_effective_date", text)
			continue
		}
		got := h.arrivals(t)
		require.Len(t, got, 1)
		require.Equal(t, now, got[0].Time)
		require.Equal(t, gate.LocalTenant, got[0].Tenant)
	}
}

func TestReadEndpoints(t *testing.T) {
	es, err := ReadEndpoints(strings.NewReader("\n" + endpointsFile))
	require.NoError(t, err)
	require.Equal(t, 4, es.Len())
	require.Nil(t, es.find(""))
	require.Equal(t, "closed", es.find("closed").Tenant)

	const fine = `{"path":"a","tenant":"t","secrets":["s"]}`
	_, err = ReadEndpoints(strings.NewReader(strings.Join([]string{
		fine,
		`{"path":"canary","tenant":"t"}`,
		`{"path":"canary/","tenant":"t","secrets":["s"]}`,
		`{"path":"b","tenant":"","secrets":["s"]}`,
		`{"path":"b","tenant":"local","secrets":["s"]}`,
		`{"path":"b","tenant":"t","secrets":["canary",""]}`,
		`{"path":"a","tenant":"u","secrets":["canary"]}`,
		`{"path":"b","tenant":"t","secrets":["canary"],"canary":1}`,
		`canary`,
	}, "\n")))
	require.EqualError(t, err, strings.Join([]string{
		"line 2: without secrets the path is the secret: it needs at least 32 characters that nobody can guess",
		"line 3: field path must be letters, digits, '-' and '_'",
		"line 4: field tenant is empty, built in, or no tenant's id",
		"line 5: field tenant is empty, built in, or no tenant's id",
		"line 6: field secrets holds an empty one",
		"line 7: field path is another line's, too",
		"line 8: not a JSON object with path, tenant and secrets",
		"line 9: not a JSON object with path, tenant and secrets",
	}, "\n"))
}
