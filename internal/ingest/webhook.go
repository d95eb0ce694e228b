package ingest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"winnow/internal/kafkaio"
	"winnow/pkg/gate"
	"winnow/pkg/schema"
)

// Webhook is the door for webhooks: POST /hooks/PATH, where the path is an
// endpoint's. The answer is 202 when the brokers have acknowledged the event,
// or when the record is dropped for a reason that a repeat would not change;
// 400, 401, 404, 405, 408 and 413 say what is wrong with the request; 503, with
// Retry-After, that the door can't take it now. No answer holds content.
//
// Delivery is at least once: a sender that is told 503, or nothing, sends again,
// with the same X-Atlassian-Webhook-Identifier, and the event gets the same id.
//
// Set the exported fields before Serve.
type Webhook struct {
	Endpoints *Endpoints
	Policy    *gate.Policy
	Out       *kafkaio.Producer // to the events topic
	EventTime EventTime         // of events of gate.LocalTenant; the others have their own
	Now       func() time.Time
	Log       *slog.Logger

	Memory        int64         // bytes of requests that are read at once
	Connections   int           // open at once; more wait to be accepted
	HeaderTimeout time.Duration // for a request's header
	BodyTimeout   time.Duration // for its body
	DrainTimeout  time.Duration // for requests under way when the door closes

	memory   *semaphore.Weighted
	draining atomic.Bool
	once     singleflight.Group // one delivery at a time of each name
	recent   recent

	mu     sync.Mutex
	counts map[string]int64 // by outcome
	logged map[string]time.Time
}

// recentDeliveries is how many acknowledged deliveries a door remembers. What
// falls out of it and comes again is dropped by the worker, as a repeat.
const recentDeliveries = 1 << 16

// Serve answers requests until ctx ends, finishes those under way, and returns
// when the brokers have what was acknowledged. It closes the listener.
func (h *Webhook) Serve(ctx context.Context, l net.Listener) error {
	h.memory = semaphore.NewWeighted(h.Memory)
	h.counts, h.logged = map[string]int64{}, map[string]time.Time{}
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: h.HeaderTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // it would quote requests
	}
	closed := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		h.draining.Store(true)
		draining, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.DrainTimeout)
		defer cancel()
		err := server.Shutdown(draining)
		if errors.Is(err, context.DeadlineExceeded) {
			err = errors.Join(fmt.Errorf("requests were under way for longer than %v; their senders will send them again", h.DrainTimeout), server.Close())
		}
		closed <- err
	})
	err := server.Serve(netutil.LimitListener(l, h.Connections))
	if stop() {
		return err // the listener failed
	}
	return <-closed
}

// answer is what becomes of a request.
type answer struct {
	status  int
	text    string // our own words
	outcome string // that is counted; the text if empty
	tenant  string // of the endpoint, for the log
}

// Codes of requests that were refused before they named an endpoint.
var (
	notFound   = answer{status: http.StatusNotFound, text: "no such endpoint"}
	notAllowed = answer{status: http.StatusMethodNotAllowed, text: "only POST"}
	closing    = answer{status: http.StatusServiceUnavailable, text: "closing"}
	tooLarge   = answer{status: http.StatusRequestEntityTooLarge, text: "too large"}
	tooMuch    = answer{status: http.StatusServiceUnavailable, text: "too much at once"}
	tooSlow    = answer{status: http.StatusRequestTimeout, text: "too slow"}
	brokenOff  = answer{status: http.StatusBadRequest, text: "broken off"}
	notSigned  = answer{status: http.StatusUnauthorized, text: "not signed by a secret of this endpoint"}
	failure    = answer{status: http.StatusInternalServerError, text: "internal failure"}
	unwell     = answer{status: http.StatusServiceUnavailable, text: "not acknowledged by the brokers"}
	accepted   = answer{status: http.StatusAccepted, text: "acknowledged"}
	repeated   = answer{status: http.StatusAccepted, text: "acknowledged", outcome: "acknowledged before"}
)

// ServeHTTP answers one request.
func (h *Webhook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/healthz" {
		if h.draining.Load() {
			http.Error(w, "closing", http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
		return
	}
	a := h.answer(w, r)
	h.count(a)
	switch a.status {
	case http.StatusMethodNotAllowed:
		w.Header().Set("Allow", http.MethodPost)
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "5")
	case http.StatusRequestEntityTooLarge, http.StatusRequestTimeout:
		w.Header().Set("Connection", "close") // the rest of the body is not read
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(a.status)
	_, _ = io.WriteString(w, a.text+"\n")
}

func (h *Webhook) count(a answer) {
	what := cmp.Or(a.outcome, a.text)
	h.mu.Lock()
	h.counts[what]++
	n := h.counts[what]
	quiet := a.status == http.StatusAccepted || time.Since(h.logged[what]) < time.Second
	if !quiet {
		h.logged[what] = time.Now()
	}
	h.mu.Unlock()
	if !quiet {
		h.Log.Warn("refused", "status", a.status, "why", what, "tenant", a.tenant, "so_far", n)
	}
}

func (h *Webhook) answer(w http.ResponseWriter, r *http.Request) (a answer) {
	tenant := ""
	defer func() {
		// The panic's value might quote the request.
		if recover() != nil {
			a = failure
		}
		a.tenant = tenant
	}()
	path, ok := strings.CutPrefix(r.URL.Path, "/hooks/")
	e := h.Endpoints.find(path)
	switch {
	case !ok || e == nil:
		return notFound
	case r.Method != http.MethodPost:
		return notAllowed
	case h.draining.Load():
		return closing
	case r.ContentLength > schema.MaxValue:
		return tooLarge
	}
	tenant = e.Tenant
	size := r.ContentLength
	if size < 0 {
		size = 2 * schema.MaxValue // of an unknown length, and read into memory that doubles
	}
	size += 64 << 10
	if !h.memory.TryAcquire(size) {
		return tooMuch
	}
	defer h.memory.Release(size)
	body, bad := h.read(w, r)
	switch {
	case bad != nil:
		return *bad
	case !e.signed(r.Header.Get("X-Hub-Signature"), body):
		return notSigned
	}
	now := h.Now().UTC()
	d := Door{Policy: h.Policy, Admit: true, EventTime: OfRecord, Now: now, Name: "webhook"}
	if e.Tenant == gate.LocalTenant {
		d.EventTime = h.EventTime
	}
	// Nothing of it is parsed if there is no way in for its tenant.
	if err := d.hopeless(e.Tenant); err != nil {
		return dropped(err)
	}
	id := delivery(r.Header.Get("X-Atlassian-Webhook-Identifier"), body)
	name := "webhook\x00" + e.Tenant + "\x00" + id
	key := sha256.Sum256([]byte(name))
	// A sender may repeat a delivery that is under way. Both would find that it
	// is not among the recent ones; so the second waits for the first, and one
	// that comes when the first has gone finds it there.
	v, _, _ := h.once.Do(string(key[:]), func() (any, error) {
		if h.recent.has(key) {
			return repeated, nil
		}
		a := h.take(&d, e.Tenant, id, name, body)
		if a == accepted { // what was dropped may be sent again, when its tenant is known
			h.recent.add(key)
		}
		return a, nil
	})
	return v.(answer)
}

// read reads the body.
func (h *Webhook) read(w http.ResponseWriter, r *http.Request) ([]byte, *answer) {
	if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(h.BodyTimeout)); err != nil {
		return nil, &failure
	}
	var b bytes.Buffer
	if r.ContentLength > 0 {
		b.Grow(int(r.ContentLength) + bytes.MinRead)
	}
	_, err := b.ReadFrom(http.MaxBytesReader(w, r.Body, schema.MaxValue))
	switch {
	case err == nil:
		return b.Bytes(), nil
	case errors.As(err, new(*http.MaxBytesError)):
		return nil, &tooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, &tooSlow
	}
	return nil, &brokenOff
}

// delivery names a delivery: by the identifier that its sender gave it and keeps
// over repeats, else by its content.
func delivery(identifier string, body []byte) string {
	if identifier != "" && len(identifier) <= 128 && !strings.ContainsFunc(identifier, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return identifier
	}
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// take unwraps a body and produces what is in it.
func (h *Webhook) take(d *Door, tenant, id, name string, body []byte) answer {
	var msgs []kafkaio.Message
	var first error
	schema.Unwrap(&d.doc, body, func(index int, it schema.Item, err error) {
		if err == nil && it.Tenant != "" && it.Tenant != tenant {
			err = &schema.Error{Reason: gate.TenantMismatch, Offset: -1}
		}
		var m kafkaio.Message
		if err == nil {
			it.Tenant = tenant
			if it.ID == "" {
				it.ID = fmt.Sprintf("%s\x00%d", name, index)
			}
			m, err = d.message(Place{File: id, Index: index}, it)
		}
		if err != nil {
			first = cmp.Or(first, err)
			return
		}
		msgs = append(msgs, m)
	})
	if len(msgs) == 0 {
		return dropped(first)
	}
	// The sender may have gone, and another of the same delivery may wait.
	ctx, cancel := context.WithTimeout(context.Background(), produceTimeout)
	defer cancel()
	switch err := h.Out.Produce(ctx, msgs...); {
	case errors.Is(err, kafkaio.ErrTooLarge):
		return tooLarge
	case err != nil:
		return unwell
	}
	return accepted
}

// produceTimeout bounds how long a sender waits for the brokers. Jira gives up
// after 30 seconds.
const produceTimeout = 25 * time.Second

// dropped answers for a record that no event was made of. What is not even JSON
// is the sender's fault; what would be dropped again must not be sent again,
// nor make the sender disable its webhook.
func dropped(err error) answer {
	a := answer{status: http.StatusAccepted, text: "dropped: " + string(schema.ReasonOf(err))}
	switch schema.ReasonOf(err) {
	case schema.ReasonMalformedJSON, schema.ReasonInvalidUTF8, schema.ReasonTooDeep, schema.ReasonEmptyValue:
		a.status = http.StatusBadRequest
	case schema.ReasonTooLarge:
		a.status = http.StatusRequestEntityTooLarge
	}
	return a
}

// WriteCounts prints how many requests came to which end.
func (h *Webhook) WriteCounts(w io.Writer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	total := int64(0)
	for _, n := range h.counts {
		total += n
	}
	fmt.Fprintf(w, "requests %11d\n", total)
	for _, what := range slices.Sorted(maps.Keys(h.counts)) {
		fmt.Fprintf(w, "%20d  %s\n", h.counts[what], what)
	}
}

// recent holds the keys of the last deliveries, in two halves: when the young
// one is full it becomes the old one.
type recent struct {
	mu         sync.Mutex
	young, old map[[sha256.Size]byte]bool
}

func (r *recent) has(key [sha256.Size]byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.young[key] || r.old[key]
}

func (r *recent) add(key [sha256.Size]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.young == nil || len(r.young) >= recentDeliveries/2 {
		r.young, r.old = map[[sha256.Size]byte]bool{}, r.young
	}
	r.young[key] = true
}
