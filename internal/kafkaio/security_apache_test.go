//go:build kafka

package kafkaio

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"winnow/internal/testkit/apache"
)

// unsigned is a token that the unsecured validator of Kafka takes.
func unsigned(expires time.Time) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		enc := base64.RawURLEncoding.EncodeToString
		claims := fmt.Sprintf(`{"sub":"winnow","iat":%d,"exp":%d}`, expires.Add(-2*time.Hour).Unix(), expires.Unix())
		return enc([]byte(`{"alg":"none"}`)) + "." + enc([]byte(claims)) + ".", nil
	}
}

func TestOwnKafkaSecurity(t *testing.T) {
	cluster := startKafka(t, apache.Options{Secure: true})
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(cluster.CA()))
	trusting := &tls.Config{RootCAs: pool}
	logins := map[string]*Login{
		"PLAIN":         {Mechanism: "PLAIN", User: apache.User, Password: apache.Password},
		"SCRAM-SHA-256": {Mechanism: "SCRAM-SHA-256", User: apache.User, Password: apache.Password},
		"SCRAM-SHA-512": {Mechanism: "SCRAM-SHA-512", User: apache.User, Password: apache.Password},
		"OAUTHBEARER":   {Mechanism: "OAUTHBEARER", Token: unsigned(time.Now().Add(time.Hour))},
	}
	dial := func(t *testing.T, brokers []string, config *tls.Config, login *Login) *kafkaTopic {
		k := newKafkaTopic(t, cluster.Brokers())
		o := ofKafka
		o.TLS, o.Login = config, login
		c, err := Dial(brokers, o)
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		k.Client = c
		return k
	}
	t.Run("TLS", func(t *testing.T) { roundTrip(t, dial(t, cluster.TLS(), trusting, nil)) })
	for name, login := range logins {
		t.Run(name, func(t *testing.T) { roundTrip(t, dial(t, cluster.SASL(), nil, login)) })
		t.Run(name+" over TLS", func(t *testing.T) { roundTrip(t, dial(t, cluster.SASLTLS(), trusting, login)) })
	}

	for name, login := range logins {
		wrong := *login
		if wrong.Token != nil {
			wrong.Token = unsigned(time.Now().Add(-time.Hour))
		} else {
			wrong.Password = "another"
		}
		t.Run(name+" refused", func(t *testing.T) {
			k := dial(t, cluster.SASL(), nil, &wrong)
			for _, err := range refusals(t, k) {
				require.ErrorIs(t, err, ErrLogin)
				require.NotContains(t, err.Error(), apache.Password)
				require.NotContains(t, err.Error(), "another")
			}
		})
	}
	t.Run("a certificate that is not trusted", func(t *testing.T) {
		for _, err := range refusals(t, dial(t, cluster.TLS(), &tls.Config{RootCAs: x509.NewCertPool()}, nil)) {
			require.ErrorContains(t, err, "certificate")
		}
	})
}

// roundTrip uses all doors to a cluster.
func roundTrip(t *testing.T, k *kafkaTopic) {
	k.make(t, 1, nil)
	require.NoError(t, k.Producer(k.name).Produce(t.Context(), Message{Value: []byte("v")}))
	got := make(chan string, 1)
	stop := k.consume(t, func(ctx context.Context, a *Assignment) error {
		var b Batch
		if err := k.Fetch(ctx, k.name, a.Partition, 0, &b); err != nil {
			return err
		}
		got <- string(b.Records[0].Value)
		return a.Hint(1)
	})
	select {
	case v := <-got:
		require.Equal(t, "v", v)
	case <-time.After(20 * time.Second):
		require.NoError(t, stop(), "the member got no partition")
		require.FailNow(t, "the member got no partition")
	}
	require.NoError(t, stop())
}

// refusals are the errors of the doors of a cluster that does not let us in.
func refusals(t *testing.T, k *kafkaTopic) []error {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, topic := k.Topic(ctx, k.name)
	group := k.Consume(ctx, k.name, k.name, func(context.Context, *Assignment) error { return nil })
	require.NoError(t, ctx.Err(), "it was tried again and again")
	require.Error(t, topic)
	require.Error(t, group)
	return []error{topic, group}
}
