package kafkaio

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/apiversions"
	"github.com/segmentio/kafka-go/protocol/saslauthenticate"
	"github.com/segmentio/kafka-go/protocol/saslhandshake"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const canary = "swordfish"

// certificates returns what a broker on loopback needs, and what trusts it.
func certificates(t testing.TB) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "broker"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, &tls.Config{RootCAs: roots}
}

// secured is a cluster with one superuser, and options that let a client in.
func secured(t *testing.T, mechanism string, encrypted bool) (*kfake.Cluster, Options) {
	t.Helper()
	opts := []kfake.Opt{
		kfake.NumBrokers(1), kfake.SeedTopics(2, "t"), kfake.GroupMinSessionTimeout(100 * time.Millisecond),
		kfake.EnableSASL(), kfake.Superuser(mechanism, "winnow", canary),
	}
	o := quick
	o.Login = &Login{Mechanism: mechanism, User: "winnow", Password: canary}
	if encrypted {
		var server *tls.Config
		server, o.TLS = certificates(t)
		opts = append(opts, kfake.TLS(server))
	}
	k, err := kfake.NewCluster(opts...)
	require.NoError(t, err)
	t.Cleanup(k.Close)
	return k, o
}

// Everything that a Client does works over TLS and with each mechanism.
func TestSecured(t *testing.T) {
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		for _, encrypted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, encrypted %v", mechanism, encrypted), func(t *testing.T) {
				k, o := secured(t, mechanism, encrypted)
				c, err := Dial(k.ListenAddrs(), o)
				require.NoError(t, err)
				defer c.Close()
				require.NoError(t, c.EnsureTopic(t.Context(), "t2", 1, nil))
				require.NoError(t, c.Producer("t").Produce(t.Context(), Message{Key: []byte("k"), Value: []byte("v")}))
				got := make(chan string, 2)
				stop := start(t, c, func(ctx context.Context, a *Assignment) error {
					var b Batch
					for {
						if err := c.Fetch(ctx, "t", a.Partition, b.Next, &b); err != nil {
							return err
						}
						for _, v := range values(&b) {
							got <- v
						}
						if len(b.Records) > 0 {
							if err := a.Hint(b.Next); err != nil {
								return err
							}
						}
					}
				})
				require.Equal(t, "v", <-got)
				require.NoError(t, stop())
			})
		}
	}
}

// A wrong password, or a certificate that we don't trust, is told soon, by
// every call, and without the password.
func TestRefusedAtTheDoor(t *testing.T) {
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		k, o := secured(t, mechanism, false)
		var retried atomic.Int64
		o.OnRetry = func(err error) {
			retried.Add(1)
			if strings.Contains(err.Error(), canary) {
				t.Error(err)
			}
		}
		o.Login = &Login{Mechanism: mechanism, User: "winnow", Password: "wrong " + canary}
		c, err := Dial(k.ListenAddrs(), o)
		require.NoError(t, err)
		closeLater(t, c)
		for name, call := range calls(t, c) {
			retried.Store(0)
			err := call()
			require.ErrorIs(t, err, ErrLogin, "%s %s", mechanism, name)
			require.ErrorContains(t, err, mechanism+` login of "winnow": [58] SASL Authentication Failed`, name)
			require.NotContains(t, err.Error(), canary)
			require.EqualValues(t, maxLogins-1, retried.Load(), "%s %s", mechanism, name)
		}
	}

	server, _ := certificates(t)
	_, stranger := certificates(t)
	k, _ := cluster(t, quick, kfake.SeedTopics(1, "t"), kfake.TLS(server))
	o := quick
	o.TLS = stranger
	o.OnRetry = func(err error) { t.Error("retried: ", err) }
	c, err := Dial(k.ListenAddrs(), o)
	require.NoError(t, err)
	closeLater(t, c)
	for name, call := range calls(t, c) {
		var untrusted *tls.CertificateVerificationError
		require.ErrorAs(t, call(), &untrusted, name)
	}

	server, o.TLS = certificates(t)
	server.ClientAuth = tls.RequireAnyClientCert
	k, _ = cluster(t, quick, kfake.SeedTopics(1, "t"), kfake.TLS(server))
	mutual := o
	mutual.OnRetry = nil // the alert may come after the reset of the connection
	c, err = Dial(k.ListenAddrs(), mutual)
	require.NoError(t, err)
	closeLater(t, c)
	for name, call := range calls(t, c) {
		require.ErrorContains(t, call(), "certificate required", name)
	}

	missing := &fs.PathError{Op: "open", Path: "token", Err: syscall.ENOENT}
	o.TLS = nil
	o.Login = &Login{Mechanism: "OAUTHBEARER", Token: func(context.Context) (string, error) { return "", missing }}
	k, _ = cluster(t, quick, kfake.SeedTopics(1, "t"))
	c, err = Dial(k.ListenAddrs(), o)
	require.NoError(t, err)
	closeLater(t, c)
	k.ControlKey(int16(kmsg.SASLHandshake), func(r kmsg.Request) (kmsg.Response, error, bool) {
		k.KeepControl()
		return r.ResponseKind(), nil, true
	})
	for name, call := range calls(t, c) {
		require.ErrorIs(t, call(), missing, name)
	}

	k, o = secured(t, "PLAIN", false)
	o.Login.Mechanism = "SCRAM-SHA-512" // for which the broker knows no user
	c, err = Dial(k.ListenAddrs(), o)
	require.NoError(t, err)
	closeLater(t, c)
	for name, call := range calls(t, c) {
		require.Error(t, call(), name)
	}
}

func closeLater(t *testing.T, c *Client) { t.Cleanup(func() { c.Close() }) }

func calls(t *testing.T, c *Client) map[string]func() error {
	return map[string]func() error{
		"fetch":   func() error { return c.Fetch(t.Context(), "t", 0, 0, new(Batch)) },
		"topic":   func() error { _, err := c.Topic(t.Context(), "t"); return err },
		"create":  func() error { return c.EnsureTopic(t.Context(), "t", 1, nil) },
		"produce": func() error { return c.Producer("t").Produce(t.Context(), Message{Value: []byte("v")}) },
		"consume": func() error {
			return c.Consume(t.Context(), "g", "t", func(ctx context.Context, _ *Assignment) error { <-ctx.Done(); return ctx.Err() })
		},
	}
}

// A connection that breaks during a login is not a refusal.
func TestLoginInterrupted(t *testing.T) {
	k, o := secured(t, "SCRAM-SHA-256", false)
	broken := make(chan error, 10)
	o.OnRetry = func(err error) { broken <- err }
	var cut atomic.Int64
	k.ControlKey(int16(protocol.SaslAuthenticate), func(kmsg.Request) (kmsg.Response, error, bool) {
		k.KeepControl()
		if cut.Add(1) < maxLogins {
			return nil, errors.New("the connection breaks"), true
		}
		return nil, nil, false
	})
	c, err := Dial(k.ListenAddrs(), o)
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Topic(t.Context(), "t")
	require.NoError(t, err)
	require.NotEmpty(t, broken)
}

func TestLoginOptions(t *testing.T) {
	token := func(context.Context) (string, error) { return canary, nil }
	for _, tt := range []struct {
		login Login
		fails string
	}{
		{Login{}, `kafka: login: "" takes a user and a password, and no token`},
		{Login{Mechanism: "PLAIN", User: "u"}, `kafka: login: "PLAIN" takes a user and a password, and no token`},
		{Login{Mechanism: "PLAIN", User: "u", Password: canary, Token: token}, `kafka: login: "PLAIN" takes a user and a password, and no token`},
		{Login{Mechanism: "PLAIN", User: "u\x00x", Password: canary}, "kafka: login: a user or password with a zero byte"},
		{Login{Mechanism: "GSSAPI", User: "u", Password: canary}, `kafka: login: unknown mechanism "GSSAPI"`},
		{Login{Mechanism: "OAUTHBEARER"}, "kafka: login: OAUTHBEARER takes a token, and neither user nor password"},
		{Login{Mechanism: "OAUTHBEARER", User: "u", Token: token}, "kafka: login: OAUTHBEARER takes a token, and neither user nor password"},
	} {
		_, err := Dial([]string{"localhost:9092"}, Options{Login: &tt.login})
		require.EqualError(t, err, tt.fails)
	}
}

// However a Login, or what holds it, is printed, the password is not there.
func TestLoginPrints(t *testing.T) {
	l := &Login{Mechanism: "PLAIN", User: "winnow", Password: canary}
	o := Options{Login: l}
	c, err := Dial([]string{"localhost:9092"}, o)
	require.NoError(t, err)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, v := range []any{l, *l, o, &o, c, *c.transport.SASL.(watched).Mechanism.(plain).Login} {
			printed := fmt.Sprintf(verb, v)
			require.NotContains(t, printed, canary, "%s of %T", verb, v)
			require.NotContains(t, printed, fmt.Sprintf("%x", canary), "%s of %T", verb, v)
		}
	}
	require.Equal(t, `PLAIN login of "winnow"`, fmt.Sprint(l))
	text, err := json.Marshal(l)
	require.NoError(t, err)
	require.NotContains(t, string(text), canary)
	var logged strings.Builder
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("m", "login", l, "value", *l)
	slog.New(slog.NewTextHandler(&logged, nil)).Info("m", "login", l, "value", *l)
	require.NotContains(t, logged.String(), canary)
}

// The conversation of RFC 7677, section 3, and others that must not be believed.
func TestBearer(t *testing.T) {
	var token string
	var fails error
	b := bearer{&Login{Token: func(context.Context) (string, error) { return token, fails }}}
	require.Equal(t, "OAUTHBEARER", b.Name())
	token = "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg=="
	s, first, err := b.Start(t.Context())
	require.NoError(t, err)
	require.Equal(t, "n,,\x01auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\x01\x01", string(first))
	done, _, err := s.Next(t.Context(), nil)
	require.NoError(t, err)
	require.True(t, done)

	s, _, err = b.Start(t.Context())
	require.NoError(t, err)
	done, answer, err := s.Next(t.Context(), []byte(`{"status":"invalid_token"}`))
	require.NoError(t, err)
	require.False(t, done)
	require.Equal(t, "\x01", string(answer))
	done, _, err = s.Next(t.Context(), nil)
	require.ErrorIs(t, err, ErrLogin)
	require.False(t, done)

	for _, bad := range []string{"", canary + "\n", canary + "\x01auth=x", "Bearer " + canary, canary + "é"} {
		token = bad
		_, _, err = b.Start(t.Context())
		require.ErrorContains(t, err, "OAUTHBEARER token: ", "%q", bad)
		require.NotContains(t, err.Error(), canary)
	}
	fails = io.ErrNoProgress
	_, _, err = b.Start(t.Context())
	require.ErrorIs(t, err, fails)
}

// A listener that speaks as much of Kafka as a login needs, by RFC 7628. It
// takes the second token only, which the Client asks for when it connects anew.
func TestBearerOnTheWire(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	answers := make(chan string, 20)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if err := serveBearer(conn, "token-2", answers); err != nil && !errors.Is(err, io.EOF) {
					t.Error(err)
				}
			}()
		}
	}()
	var tokens atomic.Int64
	retried := make(chan error, 20)
	c, err := Dial([]string{l.Addr().String()}, Options{
		RequestTimeout: 2 * time.Second,
		Login:          &Login{Mechanism: "OAUTHBEARER", Token: func(context.Context) (string, error) { return fmt.Sprint("token-", tokens.Add(1)), nil }},
		OnRetry:        func(err error) { retried <- err },
	})
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Topic(t.Context(), "t")
	require.ErrorIs(t, err, ErrLogin, "all but one were refused")
	require.ErrorContains(t, err, `OAUTHBEARER login of "": [58]`)
	for _, err := range drained(retried) {
		require.NotContains(t, err.Error(), "token-")
	}
	seen := map[string]bool{}
	for _, a := range drained(answers) {
		seen[a] = true
	}
	require.True(t, seen["refused"] && seen["acknowledged"] && seen["taken"], "%v", seen)
}

// drained is what lies in a channel.
func drained[T any](c chan T) (all []T) {
	for len(c) > 0 {
		all = append(all, <-c)
	}
	return all
}

// serveBearer serves one connection until a login succeeds, then closes it.
func serveBearer(conn net.Conn, good string, answers chan<- string) error {
	refused := false
	for {
		version, id, _, m, err := protocol.ReadRequest(conn)
		if err != nil {
			return io.EOF
		}
		var res protocol.Message
		switch req := m.(type) {
		case *apiversions.Request:
			v := &apiversions.Response{}
			for key, top := range map[protocol.ApiKey]int16{protocol.ApiVersions: 0, protocol.SaslHandshake: 1, protocol.SaslAuthenticate: 1, protocol.Metadata: 8} {
				v.ApiKeys = append(v.ApiKeys, apiversions.ApiKeyResponse{ApiKey: int16(key), MaxVersion: top})
			}
			res = v
		case *saslhandshake.Request:
			res = &saslhandshake.Response{Mechanisms: []string{"OAUTHBEARER"}}
		case *saslauthenticate.Request:
			v := &saslauthenticate.Response{}
			switch {
			case string(req.AuthBytes) == "n,,\x01auth=Bearer "+good+"\x01\x01":
				answers <- "taken"
			case refused && string(req.AuthBytes) == "\x01":
				answers <- "acknowledged"
				v.ErrorCode, v.ErrorMessage = 58, "token-1 is no good"
			case !refused && strings.HasPrefix(string(req.AuthBytes), "n,,\x01auth=Bearer token-"):
				answers <- "refused"
				refused = true
				v.AuthBytes = []byte(`{"status":"invalid_token"}`)
			default:
				return fmt.Errorf("unexpected %q", req.AuthBytes)
			}
			res = v
		default:
			return io.EOF // logged in, and all that follows is not ours
		}
		if err := protocol.WriteResponse(conn, version, id, res); err != nil {
			return err
		}
	}
}
