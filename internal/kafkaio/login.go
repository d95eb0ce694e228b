package kafkaio

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/scram"
)

// Login is how we prove to a broker who we are (SASL). Only TLS keeps what it
// sends secret: PLAIN and OAUTHBEARER show the secret itself to who can listen,
// SCRAM something that allows to guess it. It prints without the secrets.
type Login struct {
	Mechanism string // PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER
	User      string
	Password  string `json:"-"`

	// Token returns the bearer token, for OAUTHBEARER, which uses neither User
	// nor Password. It is called for every connection, by any goroutine, so a
	// token may be renewed; its error ends the call that needs the connection.
	Token func(ctx context.Context) (string, error) `json:"-"`
}

// ErrLogin is returned when the broker refuses the Login.
var ErrLogin error = kafka.SASLAuthenticationFailed

// maxLogins is how many refusals in a row are believed. One that is merely a
// connection that broke looks the same to us, as kafka-go tells it.
const maxLogins = 3

// Format implements fmt.Formatter, for every verb.
func (l Login) Format(s fmt.State, _ rune) {
	fmt.Fprintf(s, "%s login of %q", l.Mechanism, l.User)
}

func (l *Login) mechanism() (sasl.Mechanism, error) {
	oauth := l.Mechanism == "OAUTHBEARER"
	switch {
	case oauth && (l.Token == nil || l.User != "" || l.Password != ""):
		return nil, errors.New("OAUTHBEARER takes a token, and neither user nor password")
	case !oauth && (l.Token != nil || l.User == "" || l.Password == ""):
		return nil, fmt.Errorf("%q takes a user and a password, and no token", l.Mechanism)
	case strings.Contains(l.User+l.Password, "\x00"):
		return nil, errors.New("a user or password with a zero byte")
	}
	switch l.Mechanism {
	case "OAUTHBEARER":
		return bearer{l}, nil
	case "PLAIN":
		return plain{l}, nil
	case "SCRAM-SHA-256":
		return scram.Mechanism(scram.SHA256, l.User, l.Password)
	case "SCRAM-SHA-512":
		return scram.Mechanism(scram.SHA512, l.User, l.Password)
	}
	return nil, fmt.Errorf("unknown mechanism %q", l.Mechanism)
}

// explainLogin says whose login was refused. The broker's own words are left
// out: they are about the secret.
func (c *Client) explainLogin(err error) error {
	if errors.Is(err, ErrLogin) {
		return fmt.Errorf("%s: %w", c.login, ErrLogin)
	}
	return err
}

// watched is a mechanism that notices how far a login got. A broker may refuse
// one by closing the connection, and kafka-go then tells of the connection only.
type watched struct{ sasl.Mechanism }

type loginBegun struct{} // key of a context, for an *atomic.Bool

func (w watched) Start(ctx context.Context) (sasl.StateMachine, []byte, error) {
	s, first, err := w.Mechanism.Start(ctx)
	begun, ok := ctx.Value(loginBegun{}).(*atomic.Bool)
	if err != nil || !ok {
		return s, first, err
	}
	begun.Store(true)
	return watchedSession{s, begun}, first, nil
}

type watchedSession struct {
	sasl.StateMachine
	begun *atomic.Bool
}

func (w watchedSession) Next(ctx context.Context, challenge []byte) (bool, []byte, error) {
	done, answer, err := w.StateMachine.Next(ctx, challenge)
	w.begun.Store(!done && err == nil)
	return done, answer, err
}

// watchLogin calls do, whose error is an ErrLogin if a connection that it needed
// was closed on us in the middle of the login.
func watchLogin(ctx context.Context, do func(ctx context.Context) error) error {
	var begun atomic.Bool
	err := do(context.WithValue(ctx, loginBegun{}, &begun))
	if begun.Load() && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)) {
		return fmt.Errorf("%w: %w", ErrLogin, err)
	}
	return err
}

// tokenError is an error of Login.Token, or a token that can't be one.
type tokenError struct{ error }

func (e tokenError) Unwrap() error { return e.error }

// hopeless reports whether a connection fails in a way that trying again won't
// mend: one side does not trust the other's certificate, the broker speaks no
// TLS, or there is no token.
func hopeless(err error) bool {
	var cert *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var op *net.OpError
	var token tokenError
	return errors.As(err, &cert) || errors.As(err, &record) || errors.As(err, &token) || errors.As(err, &op) && op.Op == "remote error"
}

// plain is RFC 4616.
type plain struct{ *Login }

func (plain) Name() string { return "PLAIN" }

func (p plain) Start(context.Context) (sasl.StateMachine, []byte, error) {
	return p, []byte("\x00" + p.User + "\x00" + p.Password), nil
}

func (plain) Next(context.Context, []byte) (bool, []byte, error) { return true, nil, nil }

// bearer is RFC 7628, section 3.
type bearer struct{ *Login }

func (bearer) Name() string { return "OAUTHBEARER" }

func (b bearer) Start(ctx context.Context) (sasl.StateMachine, []byte, error) {
	token, err := b.Token(ctx)
	if err != nil {
		return nil, nil, tokenError{fmt.Errorf("OAUTHBEARER token: %w", err)}
	}
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, nil, tokenError{errors.New("OAUTHBEARER token: empty, or with a character that no token has")}
	}
	return &bearerSession{}, []byte("n,,\x01auth=Bearer " + token + "\x01\x01"), nil
}

type bearerSession struct{ failed bool }

// Next sees nothing if the token was taken, else the reason why not. The broker
// fails the exchange when it has our answer to that.
func (s *bearerSession) Next(_ context.Context, challenge []byte) (bool, []byte, error) {
	if s.failed {
		return false, nil, ErrLogin // it took the answer for a success
	}
	s.failed = len(challenge) > 0
	return !s.failed, []byte{1}, nil
}
