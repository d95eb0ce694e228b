//go:build unix

package apache

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// User and Password are the account that PLAIN and SCRAM accept.
const (
	User     = "winnow"
	Password = "a test's password"
)

// Listeners of a cluster that was started with Options.Secure, by node.
// SASL takes PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, and OAUTHBEARER with an
// unsigned token (alg none) of any subject, over a plain connection, and
// SASLTLS the same over TLS. The certificate of TLS is for 127.0.0.1 and
// localhost, and signed by CA.
func (c *Cluster) SASL() []string    { return c.addresses(func(p ports) int { return p.sasl }) }
func (c *Cluster) TLS() []string     { return c.addresses(func(p ports) int { return p.tls }) }
func (c *Cluster) SASLTLS() []string { return c.addresses(func(p ports) int { return p.saslTLS }) }

// CA is the certificate that a client has to trust, in PEM.
func (c *Cluster) CA() []byte { return c.ca }

func (c *Cluster) keystore(i int) string { return filepath.Join(c.nodes[i].dir, "keystore.pem") }

func (c *Cluster) secureSettings(i int) string {
	s := "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER\n" +
		"ssl.keystore.type=PEM\nssl.keystore.location=" + c.keystore(i) + "\n"
	const security = "org.apache.kafka.common.security."
	for _, listener := range []string{"sasl", "sasl_tls"} {
		for mechanism, module := range map[string]string{
			"plain":         security + fmt.Sprintf(`plain.PlainLoginModule required user_%s="%s"`, User, Password),
			"scram-sha-256": security + "scram.ScramLoginModule required",
			"scram-sha-512": security + "scram.ScramLoginModule required",
			"oauthbearer":   security + `oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker"`,
		} {
			s += fmt.Sprintf("listener.name.%s.%s.sasl.jaas.config=%s;\n", listener, mechanism, module)
		}
	}
	return s
}

// scramUsers are arguments of StorageTool's format.
func scramUsers() (args []string) {
	for _, mechanism := range []string{"SCRAM-SHA-256", "SCRAM-SHA-512"} {
		args = append(args, "--add-scram", fmt.Sprintf("%s=[name=%s,password=%s]", mechanism, User, Password))
	}
	return args
}

// writeCertificate gives all nodes one certificate, which is its own authority.
func (c *Cluster) writeCertificate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "winnow test"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	c.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	store := bytes.Join([][]byte{pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), c.ca}, nil)
	for i := range c.nodes {
		if err := os.WriteFile(c.keystore(i), store, 0o600); err != nil {
			return err
		}
	}
	return nil
}
