package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
	"time"
)

// Fault is what a proxy does to a request.
type Fault int

// The faults. An error reply is S3's, body included, and the server doesn't see
// its request. A cut closes the connection to the client.
const (
	Pass          Fault = iota // forwarded
	Delayed                    // forwarded, after Delay
	Conflict                   // 409 ConditionalRequestConflict
	Exists                     // 412 PreconditionFailed
	Denied                     // 403 AccessDenied
	InternalError              // 500 InternalError
	SlowDown                   // 503 SlowDown
	LoseReply                  // forwarded and done by the server; the client sees a cut and no reply
	CutRequest                 // the server sees half of the body, the client a cut
	CutReply                   // forwarded; the client sees the headers, half of the body and a cut; of a body below 2 bytes only the cut
)

var replies = map[Fault]struct {
	status        int
	code, message string
}{
	Conflict:      {http.StatusConflict, "ConditionalRequestConflict", "The conditional request cannot succeed due to a conflicting operation against this resource."},
	Exists:        {http.StatusPreconditionFailed, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold"},
	Denied:        {http.StatusForbidden, "AccessDenied", "Access Denied"},
	InternalError: {http.StatusInternalServerError, "InternalError", "We encountered an internal error. Please try again."},
	SlowDown:      {http.StatusServiceUnavailable, "SlowDown", "Please reduce your request rate."},
}

// Rule names the fault of a request. Many goroutines call it at once. It must
// not read the body. One that blocks holds its request up, as Delay does.
type Rule func(r *http.Request) Fault

// Delay waits for d, or until the client gives up, and returns Delayed.
func Delay(r *http.Request, d time.Duration) Fault {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
	}
	return Delayed
}

// IsCreate reports whether r is to create an object only if it is absent: a
// PutObject, or the CompleteMultipartUpload that ends an upload in parts.
func IsCreate(r *http.Request) bool {
	return r.Header.Get("If-None-Match") == "*" && (r.Method == http.MethodPut || r.Method == http.MethodPost)
}

// Proxy stands between clients and a server. Its own Server is the one to give
// to clients: it differs in the endpoint.
type Proxy struct {
	Server
	target *url.URL
	wire   *http.Transport

	mu    sync.Mutex
	rule  Rule
	count map[Fault]int
}

// StartProxy runs a proxy to s until the test ends. It passes everything until
// Set.
func StartProxy(t testing.TB, s Server) *Proxy {
	t.Helper()
	target, err := url.Parse(s.Endpoint)
	if err != nil {
		t.Fatalf("s3 proxy: %v", err)
	}
	p := &Proxy{Server: s, target: target, wire: &http.Transport{DisableCompression: true}}
	p.Set(nil)
	front := httptest.NewServer(p)
	t.Cleanup(func() {
		front.CloseClientConnections() // ends those that a rule delays
		front.Close()
		p.wire.CloseIdleConnections()
	})
	p.Endpoint = front.URL
	return p
}

// Set makes rule the one of all requests from now on and counts from 0; nil
// passes everything.
func (p *Proxy) Set(rule Rule) {
	if rule == nil {
		rule = func(*http.Request) Fault { return Pass }
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rule, p.count = rule, map[Fault]int{}
}

// Count is the number of requests since Set that f was done to.
func (p *Proxy) Count(f Fault) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count[f]
}

// ServeHTTP serves one request of a client.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	rule := p.rule
	p.mu.Unlock()
	f := rule(r)
	p.mu.Lock()
	p.count[f]++
	p.mu.Unlock()
	if reply, ok := replies[f]; ok {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(reply.status)
		fmt.Fprintf(w, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>%s</Code><Message>%s</Message></Error>", reply.code, reply.message)
		return
	}
	p.forward(w, r, f)
}

var errCut = errors.New("s3 proxy: cut")

func (p *Proxy) forward(w http.ResponseWriter, r *http.Request, f Fault) {
	if f == LoseReply {
		// The server is to do it even if the client leaves first.
		r = r.WithContext(context.WithoutCancel(r.Context()))
	}
	if f == CutRequest {
		r.Body = half(r.Body, r.ContentLength)
	}
	forward := httputil.ReverseProxy{
		Transport:     p.wire,
		FlushInterval: -1, // what comes before a cut reaches the client
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(p.target)
			// The client's signature covers the host that it asked, which is
			// ours, and the server takes its part of it from this header.
			pr.Out.Host = pr.In.Host
		},
		ModifyResponse: func(reply *http.Response) error {
			switch f {
			case LoseReply:
				// Its end tells that the server is done.
				_, _ = io.Copy(io.Discard, reply.Body)
				return errCut
			case CutReply:
				reply.Body = half(reply.Body, reply.ContentLength)
			}
			return nil
		},
		// Also of what failed without our doing: no reply is made up.
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		ErrorLog:     log.New(io.Discard, "", 0), // cuts are no news
	}
	forward.ServeHTTP(w, r)
}

// half is the first half of a body of n bytes, and then an error.
func half(body io.ReadCloser, n int64) io.ReadCloser {
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(body, n/2), errReader{}), body}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errCut }
