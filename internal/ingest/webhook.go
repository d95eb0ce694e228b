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
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/semaphore"

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

	memory        *semaphore.Weighted
	draining      atomic.Bool
	notice        time.Duration   // 1 s: between the first word of the end and the end
	answerTimeout time.Duration   // 25 s: Jira waits for 30
	producing     context.Context // ends when the door has closed
	flying        sync.WaitGroup

	parsing sync.Mutex
	doc     schema.Doc // guarded by parsing

	mu      sync.Mutex
	flights map[deliveryKey]*flight
	recent  recent
	counts  map[string]int64 // requests by outcome
	beside  map[schema.Reason]int64
	logged  map[string]time.Time
}

// recentDeliveries is how many acknowledged deliveries a door remembers. What
// falls out of it and comes again is dropped by the worker, as a repeat.
const recentDeliveries = 1 << 16

// Serve answers requests until ctx ends, finishes those under way, and returns
// when the brokers have what was acknowledged. It closes the listener.
func (h *Webhook) Serve(ctx context.Context, l net.Listener) error {
	h.memory = semaphore.NewWeighted(h.Memory)
	h.counts, h.beside, h.logged = map[string]int64{}, map[schema.Reason]int64{}, map[string]time.Time{}
	h.flights = map[deliveryKey]*flight{}
	h.notice, h.answerTimeout = cmp.Or(h.notice, time.Second), cmp.Or(h.answerTimeout, 25*time.Second)
	producing, cancel := context.WithCancel(context.WithoutCancel(ctx))
	h.producing = producing
	defer func() {
		// Nobody waits for what is still under way. Under mu, so that no delivery
		// takes off when its end is no longer waited for.
		h.mu.Lock()
		cancel()
		h.mu.Unlock()
		h.flying.Wait()
	}()
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: h.HeaderTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // it would quote requests
	}
	closed := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		// Once Shutdown has begun net/http answers nobody, so whoever asks for our
		// health is told before, while requests are still served.
		h.draining.Store(true)
		time.Sleep(h.notice)
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
	// net/http reads what is left of a body when a request has been answered,
	// also one that never comes: so its time begins here, and not where we read.
	if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(h.BodyTimeout)); err != nil {
		http.Error(w, failure.text, failure.status)
		return
	}
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
	}
	if a.status != http.StatusAccepted {
		w.Header().Set("Connection", "close") // nobody who is refused holds one, nor is the rest of the body read
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
	defer func() { a.tenant = tenant }()
	defer h.survive(&a)
	path, ok := strings.CutPrefix(r.URL.Path, "/hooks/")
	e := h.Endpoints.find(path)
	switch {
	case !ok || e == nil:
		return notFound
	case r.Method != http.MethodPost:
		return notAllowed
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
	release := sync.OnceFunc(func() { h.memory.Release(size) })
	mine := true // to release
	defer func() {
		if mine {
			release()
		}
	}()
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
	mine = false
	return h.deliver(sha256.Sum256([]byte(name)), release, func() answer { return h.take(&d, e.Tenant, id, name, body) })
}

// survive makes a panic an answer. Its value might quote the request, so only
// its place is logged.
func (h *Webhook) survive(a *answer) {
	if recover() != nil {
		h.Log.Error("internal failure; the request is refused", "stack", string(debug.Stack()))
		*a = failure
	}
}

type deliveryKey = [sha256.Size]byte

// flight is a delivery that is under way.
type flight struct {
	done   chan struct{} // closed when answer is known
	answer answer
}

// deliver carries out take, which may go on when the sender has been told to
// come again: release is called when the memory of the body is free.
//
// A sender that has waited for too long repeats a delivery that is under way.
// The repeat finds its flight, and has the same answer; or, when that has ended
// well, finds it among the recent ones. There is no moment between: under mu a
// flight ends and is remembered, and under mu a repeat looks for both.
func (h *Webhook) deliver(key deliveryKey, release func(), take func() answer) answer {
	h.mu.Lock()
	f := h.flights[key]
	switch {
	case f != nil:
		release()
	case h.recent.has(key):
		h.mu.Unlock()
		release()
		return repeated
	case h.producing.Err() != nil:
		h.mu.Unlock()
		release()
		return closing
	default:
		f = &flight{done: make(chan struct{})}
		h.flights[key] = f
		h.flying.Go(func() {
			f.answer = h.fly(take)
			release()
			h.mu.Lock()
			delete(h.flights, key)
			if f.answer == accepted { // what was dropped may be sent again, when its tenant is known
				h.recent.add(key)
			}
			h.mu.Unlock()
			close(f.done)
		})
	}
	h.mu.Unlock()
	late := time.NewTimer(h.answerTimeout)
	defer late.Stop()
	select {
	case <-f.done:
		return f.answer
	case <-late.C:
		return unwell
	}
}

func (h *Webhook) fly(take func() answer) (a answer) {
	defer h.survive(&a)
	return take()
}

// read reads the body.
func (h *Webhook) read(w http.ResponseWriter, r *http.Request) ([]byte, *answer) {
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

// maxRecords bounds the records in one body; senders of webhooks put one there.
const maxRecords = 1000

// take unwraps a body and produces what is in it.
func (h *Webhook) take(d *Door, tenant, id, name string, body []byte) answer {
	msgs, errs, n := h.messages(d, tenant, id, name, body)
	switch {
	case n > maxRecords:
		return tooLarge
	case len(msgs) == 0:
		return dropped(errs[0])
	}
	h.mu.Lock()
	for _, err := range errs {
		h.beside[schema.ReasonOf(err)]++
	}
	h.mu.Unlock()
	return produced(h.Out.Produce(h.producing, msgs...))
}

// messages are the events in a body, of n records, of which it gives no more
// than maxRecords, and the reasons why others are none.
func (h *Webhook) messages(d *Door, tenant, id, name string, body []byte) (msgs []kafkaio.Message, errs []error, n int) {
	// One at a time: parsed, a text may be 20 times as large, which Memory does
	// not count.
	h.parsing.Lock()
	defer h.parsing.Unlock()
	schema.Unwrap(&h.doc, body, func(index int, it schema.Item, err error) {
		if n = index + 1; n > maxRecords {
			return
		}
		if err == nil && (it.Tenant != "" && it.Tenant != tenant || tenant == gate.LocalTenant && d.anothers(it.Host)) {
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
			errs = append(errs, err)
			return
		}
		msgs = append(msgs, m)
	})
	if len(body) > 1<<20 {
		h.doc = schema.Doc{} // or the largest of all would be held for ever
	}
	return msgs, errs, n
}

// produced answers for what Produce returned. If some messages were too large
// and others can be sent again, all are: those acknowledged keep their ids.
func produced(err error) answer {
	var each kafkaio.MessageErrors
	switch {
	case err == nil:
		return accepted
	case errors.As(err, &each) && !slices.ContainsFunc(each, func(m *kafkaio.MessageError) bool { return !errors.Is(m, kafkaio.ErrTooLarge) }):
		return tooLarge
	}
	return unwell
}

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
	for _, r := range slices.Sorted(maps.Keys(h.beside)) {
		fmt.Fprintf(w, "%20d  dropped beside others: %s\n", h.beside[r], r)
	}
}

// recent holds the keys of the last deliveries, in two halves: when the young
// one is full it becomes the old one.
type recent struct {
	young, old map[deliveryKey]bool
}

func (r *recent) has(key deliveryKey) bool {
	return r.young[key] || r.old[key]
}

func (r *recent) add(key deliveryKey) {
	if r.young == nil || len(r.young) >= recentDeliveries/2 {
		r.young, r.old = map[deliveryKey]bool{}, r.young
	}
	r.young[key] = true
}
