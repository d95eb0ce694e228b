package kafkaio

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
)

// Connect says how to reach a cluster, in the flags of every command that does.
// Secrets are read from files, never from flags or the environment, which other
// users of a machine can see.
type Connect struct {
	Brokers  []string `required:"" env:"KAFKA_BROKERS" help:"Kafka bootstrap servers, HOST:PORT."`
	Security `embed:""`
}

// Security are the flags that say how brokers are talked to.
type Security struct {
	TLS     bool   `name:"tls" group:"security" help:"Encrypt connections to the brokers, and verify theirs."`
	TLSCA   string `name:"tls-ca" group:"security" placeholder:"FILE" help:"Certificates (PEM) to trust brokers by, in place of the system's."`
	TLSCert string `name:"tls-cert" group:"security" placeholder:"FILE" help:"Our certificate (PEM), where brokers ask for one."`
	TLSKey  string `name:"tls-key" group:"security" placeholder:"FILE" help:"Its key (PEM)."`

	SASL       string `name:"sasl" group:"security" placeholder:"MECHANISM" help:"Log in by plain, scram-sha-256, scram-sha-512 or oauthbearer. Without --tls the secret can be overheard."`
	SASLUser   string `name:"sasl-user" group:"security" placeholder:"NAME" help:"User to log in as; oauthbearer takes none."`
	SASLSecret string `name:"sasl-secret" group:"security" placeholder:"FILE" help:"File that holds the password, or the token for oauthbearer, which is read again for each connection."`
}

// Dial is the package's Dial, with the options that the flags set.
func (f *Connect) Dial(o Options) (*Client, error) { return f.Security.Dial(f.Brokers, o) }

// Dial is the package's Dial, with the options that the flags set.
func (f *Security) Dial(brokers []string, o Options) (*Client, error) {
	var err error
	if o.TLS, err = f.tls(); err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	if o.Login, err = f.login(); err != nil {
		return nil, fmt.Errorf("SASL: %w", err)
	}
	return Dial(brokers, o)
}

func (f *Security) tls() (*tls.Config, error) {
	if !f.TLS {
		if f.TLSCA+f.TLSCert+f.TLSKey != "" {
			return nil, errors.New("certificates are given, but not --tls")
		}
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.TLSCA != "" {
		pem, err := os.ReadFile(f.TLSCA)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no PEM certificate", f.TLSCA)
		}
	}
	if f.TLSCert != "" || f.TLSKey != "" {
		pair, err := tls.LoadX509KeyPair(f.TLSCert, f.TLSKey)
		if err != nil {
			return nil, err
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

func (f *Security) login() (*Login, error) {
	if f.SASL == "" {
		if f.SASLUser+f.SASLSecret != "" {
			return nil, errors.New("a user or a secret is given, but not --sasl")
		}
		return nil, nil
	}
	secret := func() (string, error) {
		b, err := os.ReadFile(f.SASLSecret)
		return string(bytes.TrimSpace(b)), err
	}
	l := &Login{Mechanism: strings.ToUpper(f.SASL), User: f.SASLUser}
	first, err := secret()
	if err != nil {
		return nil, fmt.Errorf("--sasl-secret: %w", err)
	}
	if l.Mechanism == "OAUTHBEARER" {
		l.Token = func(context.Context) (string, error) { return secret() }
	} else {
		l.Password = first
	}
	return l, nil
}
