package ingest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"winnow/internal/broker"
	"winnow/internal/kafkaio"
	"winnow/pkg/gate"
)

// A body that is announced and never comes is waited for when a request has
// been refused, too: net/http reads what is left of it.
func TestWebhookBodyThatNobodyReads(t *testing.T) {
	h := newHooks(t, func(h *Webhook) { h.BodyTimeout = 300 * time.Millisecond })
	var all sync.WaitGroup
	for name, first := range map[string]string{
		"no endpoint": "POST /hooks/canary HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n",
		"chunked":     "POST /hooks/canary HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
		"method":      "PUT /hooks/acme HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n",
		"health":      "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n",
	} {
		all.Go(func() {
			c, err := net.Dial("tcp", strings.TrimPrefix(h.url, "http://"))
			require.NoError(t, err)
			defer c.Close()
			_, err = io.WriteString(c, first)
			require.NoError(t, err)
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			_, err = io.ReadAll(c)
			require.NoError(t, err, "%s: the connection stays open", name)
		})
	}
	all.Wait()
}

// Consent is not assumed for a record of a site that the policy knows.
func TestWebhookLocalIsNobodyElses(t *testing.T) {
	h := newHooks(t, func(h *Webhook) {
		h.Policy = gate.NewPolicy(gate.Options{AssumeConsent: true})
		tell(t, h.Policy, "closed", `,"cmek":true`)
		require.NoError(t, h.Endpoints.AddLocal())
	})
	status, text := h.post(t, "/hooks/local", "", "", strings.ReplaceAll(hook(1, ""), "acme.example", "closed.example"))
	require.Equal(t, "202 dropped: tenant_mismatch", fmt.Sprint(status, " ", text))
	status, text = h.post(t, "/hooks/local", "", "", `{"timestamp":1788256800000,"webhookEvent":"comment_created","comment":{"id":"1","self":"https://closed.example/1","body":"canary"},"issue":{"self":"https://acme.example/1"}}`)
	require.Equal(t, "202 dropped: tenant_mismatch", fmt.Sprint(status, " ", text))
	require.Empty(t, h.arrivals(t))
	status, text = h.post(t, "/hooks/local", "", "", hook(2, ""))
	require.Equal(t, "202 acknowledged", fmt.Sprint(status, " ", text))
	require.Len(t, h.arrivals(t), 1)
}

// What a text unpacks to, many times its size, is not held by every request.
func TestWebhookMemoryOfParsing(t *testing.T) {
	// They are parsed one after another, which takes a while.
	h := newHooks(t, func(h *Webhook) { h.answerTimeout = time.Minute })
	defer debug.SetGCPercent(debug.SetGCPercent(20))
	var stop atomic.Bool
	peak := make(chan uint64)
	go func() {
		most := uint64(0)
		m := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}}
		for !stop.Load() {
			metrics.Read(m)
			most = max(most, m[0].Value.Uint64()+m[1].Value.Uint64())
			time.Sleep(time.Millisecond)
		}
		peak <- most
	}()
	body := "[0" + strings.Repeat(",0", 2<<20) + "]"
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			status, text := h.post(t, "/hooks/acme", "new secret", fmt.Sprint(i), body)
			require.Equal(t, 413, status, text)
		})
	}
	all.Wait()
	stop.Store(true)
	most := <-peak
	t.Logf("%d MB at most", most/1e6)
	require.Less(t, most, uint64(450e6))
}

// Each record of a body is counted, also beside one that is taken.
func TestWebhookListOfRecords(t *testing.T) {
	h := newHooks(t, nil)
	status, text := h.post(t, "/hooks/acme", "new secret", "d", `[`+hook(1, "")+`,{"canary":1},`+hook(2, "")+`]`)
	require.Equal(t, "202 acknowledged", fmt.Sprint(status, " ", text))
	require.Len(t, h.arrivals(t), 2)
	status, text = h.post(t, "/hooks/acme", "new secret", "e", `[`+hook(1, "")+strings.Repeat(`,`+hook(2, ""), maxRecords)+`]`)
	require.Equal(t, "413 too large", fmt.Sprint(status, " ", text))
	require.Len(t, h.arrivals(t), 2)
	var counts strings.Builder
	h.WriteCounts(&counts)
	require.Contains(t, counts.String(), "1  dropped beside others: wrapper_unknown\n")
	require.Contains(t, counts.String(), fmt.Sprintf("requests %11d\n", 2))
}

// While the brokers are away, what the producer still holds counts as memory
// after its sender was told to come again; and what is acknowledged after that
// is not produced a second time.
func TestWebhookOutage(t *testing.T) {
	h := newHooks(t, func(h *Webhook) {
		h.Memory, h.answerTimeout = 2500<<10, 100*time.Millisecond
	})
	large := func(n int) string { return hook(n, `,"description":"`+strings.Repeat("a", 1<<20)+`"`) }
	status, _ := h.post(t, "/hooks/acme", "new secret", "before", hook(0, ""))
	require.Equal(t, 202, status)
	require.NoError(t, h.broker.Close())
	for n := 1; n <= 2; n++ {
		status, text := h.post(t, "/hooks/acme", "new secret", fmt.Sprint("away-", n), large(n))
		require.Equal(t, "503 not acknowledged by the brokers", fmt.Sprint(status, " ", text))
	}
	status, text := h.post(t, "/hooks/acme", "new secret", "away-3", large(3))
	require.Equal(t, "503 too much at once", fmt.Sprint(status, " ", text))

	var err error
	h.broker, err = broker.Start(h.dir, broker.Options{Port: h.port})
	require.NoError(t, err)
	t.Cleanup(func() { h.broker.Close() })
	for n := 1; n <= 3; n++ {
		require.Eventually(t, func() bool {
			status, _ := h.post(t, "/hooks/acme", "new secret", fmt.Sprint("away-", n), large(n))
			return status == 202
		}, 20*time.Second, 20*time.Millisecond)
	}
	require.NoError(t, h.close())
	require.Len(t, h.arrivals(t), 4, "one that was produced and not waited for was produced again")
}

// A fault of ours is one answer, and the log says where it was.
func TestWebhookPanic(t *testing.T) {
	h := newHooks(t, func(h *Webhook) { h.Out = nil })
	status, text := h.post(t, "/hooks/acme", "new secret", "d", hook(1, ""))
	require.Equal(t, "500 internal failure", fmt.Sprint(status, " ", text))
	status, _ = h.post(t, "/hooks/acme", "new secret", "d", hook(1, ""))
	require.Equal(t, 500, status, "nor does the next wait for the one that failed")
	require.Contains(t, h.log.String(), "kafkaio.(*Producer).Produce")
	require.NotContains(t, h.log.String(), "canary")
}

// A balancer that asks while the door closes is told so, and what it has sent
// until then is taken.
func TestWebhookHealthWhileClosing(t *testing.T) {
	h := newHooks(t, func(h *Webhook) { h.notice = 2 * time.Second })
	closed := make(chan error, 1)
	go func() { closed <- h.close() }()
	require.Eventually(t, func() bool {
		r, err := http.NewRequest(http.MethodGet, h.url+"/healthz", nil)
		require.NoError(t, err)
		res, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		res.Body.Close()
		return res.StatusCode == 503
	}, 2*time.Second, time.Millisecond)
	status, _ := h.post(t, "/hooks/acme", "new secret", "d", hook(1, ""))
	require.Equal(t, 202, status)
	require.NoError(t, <-closed)
	require.Len(t, h.arrivals(t), 1)
	_, err := net.Dial("tcp", strings.TrimPrefix(h.url, "http://"))
	require.Error(t, err, "the listener is closed")
}

// One message that may be sent again is enough for the whole to be sent again.
func TestWebhookProduced(t *testing.T) {
	large := &kafkaio.MessageError{Err: kafkaio.ErrTooLarge}
	lost := &kafkaio.MessageError{Index: 1, Err: context.DeadlineExceeded}
	require.Equal(t, accepted, produced(nil))
	require.Equal(t, tooLarge, produced(kafkaio.MessageErrors{large}))
	require.Equal(t, unwell, produced(kafkaio.MessageErrors{lost}))
	require.Equal(t, unwell, produced(kafkaio.MessageErrors{large, lost}))
	require.Equal(t, unwell, produced(fmt.Errorf("produce to events: %w", context.Canceled)))
}
