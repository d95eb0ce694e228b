package ingest

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"winnow/pkg/gate"
)

// endpoint is one address that webhooks are delivered to. Its path names the
// tenant before anything of a body is looked at.
type endpoint struct {
	Path    string   `json:"path"`    // after /hooks/
	Tenant  string   `json:"tenant"`  // the site, as the tenants topic keys it
	Secrets []string `json:"secrets"` // any of them may sign; none: the path is the secret
}

// minPath is the least length of a path that stands for a secret, in bytes:
// 32 characters of base64 are 192 bits.
const minPath = 32

// Endpoints are the addresses of a webhook door. They are found by the SHA-256
// of their path, so that the time a lookup takes tells nothing about paths.
type Endpoints struct {
	byPath map[[sha256.Size]byte]*endpoint
}

// ReadEndpoints reads endpoints, one JSON object a line: path, tenant, and
// secrets, which may be left out if the path has 32 characters or more. Every
// bad line is in the error, by number and field, never with its values.
func ReadEndpoints(r io.Reader) (*Endpoints, error) {
	es := &Endpoints{map[[sha256.Size]byte]*endpoint{}}
	if err := eachLine(r, func(line []byte, _ bool) error { return es.add(line) }); err != nil {
		return nil, err
	}
	return es, nil
}

func (es *Endpoints) add(line []byte) error {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	var e endpoint
	if d.Decode(&e) != nil || d.More() {
		return errors.New("not a JSON object with path, tenant and secrets")
	}
	switch {
	case e.Path == "" || strings.Trim(e.Path, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "":
		return errors.New("field path must be letters, digits, '-' and '_'")
	case e.Tenant == "" || e.Tenant == gate.LocalTenant || strings.ContainsAny(e.Tenant, "|\x00"):
		return errors.New("field tenant is empty, built in, or no tenant's id")
	case len(e.Secrets) == 0 && len(e.Path) < minPath:
		return fmt.Errorf("without secrets the path is the secret: it needs at least %d characters that nobody can guess", minPath)
	}
	for _, s := range e.Secrets {
		if s == "" {
			return errors.New("field secrets holds an empty one")
		}
	}
	return es.put(&e)
}

func (es *Endpoints) put(e *endpoint) error {
	key := sha256.Sum256([]byte(e.Path))
	if es.byPath[key] != nil {
		return errors.New("field path is another line's, too")
	}
	es.byPath[key] = e
	return nil
}

// AddLocal adds /hooks/local, of the tenant of one's own records, without a
// secret: for a door that nobody else can reach.
func (es *Endpoints) AddLocal() error {
	if es.byPath == nil {
		es.byPath = map[[sha256.Size]byte]*endpoint{}
	}
	return es.put(&endpoint{Path: "local", Tenant: gate.LocalTenant})
}

// Len returns how many there are.
func (es *Endpoints) Len() int { return len(es.byPath) }

func (es *Endpoints) find(path string) *endpoint { return es.byPath[sha256.Sum256([]byte(path))] }

// signed reports whether one of the secrets signed the body
// (https://www.w3.org/TR/websub/#signing-content, as Atlassian sends it:
// X-Hub-Signature: sha256= and the HMAC in hex). It compares in constant time.
func (e *endpoint) signed(signature string, body []byte) bool {
	if len(e.Secrets) == 0 {
		return true
	}
	method, digits, _ := strings.Cut(signature, "=")
	got, err := hex.DecodeString(digits)
	ok := false
	for _, s := range e.Secrets {
		mac := hmac.New(sha256.New, []byte(s))
		mac.Write(body)
		ok = hmac.Equal(mac.Sum(nil), got) || ok
	}
	return ok && err == nil && method == "sha256"
}
