package tenants

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"

	"winnow/internal/broker"
	"winnow/internal/kafkaio"
	"winnow/pkg/gate"
	"winnow/pkg/schema"
)

const topic = "tenants"

var now = schema.EffectiveDate.AddDate(0, 3, 0)

// site is a tenant record of a standard plan with in-app data on, or opted out.
func site(id string, revision int, optedOut bool) string {
	return fmt.Sprintf(`{"tenant":%q,"org":"org-%s","hosts":["%s.example"],"region":"eu","revision":%d,"history":[{"at":"2026-01-01T00:00:00Z","set":{"plans":{"jira":"standard"},"sector":"retail","in_app":"on","opted_out":%t}}]}`,
		id, id, id, revision, optedOut)
}

// world is a broker with a tenants topic.
type world struct {
	t        testing.TB
	dir      string
	b        *broker.Broker
	client   *kafkaio.Client
	producer *kafkaio.Producer
	log      bytes.Buffer
}

func newWorld(t testing.TB, partitions int) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir()}
	var err error
	w.b, err = broker.Start(w.dir, broker.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { w.b.Close() })
	w.client, err = kafkaio.Dial([]string{w.b.Addr()}, kafkaio.Options{MaxWait: 100 * time.Millisecond, RequestTimeout: time.Second})
	require.NoError(t, err)
	t.Cleanup(func() { w.client.Close() })
	require.NoError(t, w.client.EnsureTopic(t.Context(), topic, partitions, map[string]string{"cleanup.policy": "compact"}))
	w.producer = w.client.Producer(topic)
	t.Cleanup(func() { w.producer.Close() })
	return w
}

func (w *world) put(key, value string) {
	w.t.Helper()
	m := kafkaio.Message{Key: []byte(key), Value: []byte(value)}
	if value == "" {
		m.Value = nil
	}
	require.NoError(w.t, w.producer.Produce(w.t.Context(), m))
}

func (w *world) load(maxAge time.Duration) (*Table, error) {
	return Load(w.t.Context(), w.client, topic, Options{MaxAge: maxAge, Log: slog.New(slog.NewTextHandler(&w.log, nil))})
}

// followed loads a table and follows until the test ends, or until stop is
// called, which returns what Follow returned.
func (w *world) followed(maxAge time.Duration) (t *Table, stop func() error, ended <-chan struct{}) {
	w.t.Helper()
	table, err := w.load(maxAge)
	require.NoError(w.t, err)
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan struct{})
	go func() { err = table.Follow(ctx); close(done) }()
	stop = sync.OnceValue(func() error { cancel(); <-done; return err })
	w.t.Cleanup(func() { _ = stop() })
	return table, stop, done
}

func streams(t *Table, tenant string) schema.Streams {
	return t.Policy.Decide(schema.Envelope{Tenant: tenant, Product: schema.Jira, Time: now}, now).Streams()
}

const both = schema.Metadata | schema.InApp

func TestLoadReadsToTheEnd(t *testing.T) {
	w := newWorld(t, 1)
	table, err := w.load(time.Minute)
	require.NoError(t, err)
	require.EqualValues(t, -1, table.Offset())
	require.Zero(t, streams(table, "a"))

	w.put("a", site("a", 1, false))
	w.put("b", site("b", 1, false))
	w.put("a", site("a", 2, true))
	w.put("b", site("b", 1, false)) // the same record again
	w.put("c", `{"tenant":"c","org":"org-c"`)
	table, err = w.load(time.Minute)
	require.NoError(t, err)
	require.EqualValues(t, 4, table.Offset())
	require.NotEmpty(t, table.TopicID)
	require.Zero(t, streams(table, "a"))
	require.Equal(t, both, streams(table, "b"))
	require.Equal(t, gate.TenantStale, table.Policy.Decide(schema.Envelope{Tenant: "c", Product: schema.Jira, Time: now}, now).InAppReason)
	require.Contains(t, w.log.String(), "offset=4")
	require.NotContains(t, w.log.String(), "org-c")
}

func TestLoadRefuses(t *testing.T) {
	t.Run("several partitions", func(t *testing.T) {
		_, err := newWorld(t, 2).load(time.Minute)
		require.ErrorContains(t, err, "2 partitions")
	})
	t.Run("a revision that falls", func(t *testing.T) {
		w := newWorld(t, 1)
		w.put("a", site("a", 2, true))
		w.put("a", site("a", 1, false))
		_, err := w.load(time.Minute)
		require.ErrorIs(t, err, gate.ErrRevision)
		require.ErrorContains(t, err, "offset 1")
	})
	t.Run("no topic", func(t *testing.T) {
		w := newWorld(t, 1)
		_, err := Load(t.Context(), w.client, "other", Options{})
		require.ErrorIs(t, err, kafkaio.ErrUnknownTopic)
	})
}

// What was acknowledged before Sync is obeyed after it.
func TestSync(t *testing.T) {
	w := newWorld(t, 1)
	w.put("a", site("a", 1, false))
	table, stop, _ := w.followed(time.Minute)
	for i := range 50 {
		off := i%2 == 0
		w.put("a", site("a", 2+i, off))
		at, err := table.Sync(t.Context())
		require.NoError(t, err)
		require.GreaterOrEqual(t, at, int64(1+i))
		require.Equal(t, off, streams(table, "a") == 0)
	}
	w.put("a", "") // a tombstone
	at, err := table.Sync(t.Context())
	require.NoError(t, err)
	require.Equal(t, table.Offset(), at)
	require.Equal(t, gate.TenantUnknown, table.Policy.Decide(schema.Envelope{Tenant: "a", Product: schema.Jira, Time: now}, now).InAppReason)
	require.NoError(t, stop())
	_, err = table.Sync(t.Context())
	require.ErrorIs(t, err, context.Canceled, "a table that is not followed any more")
}

// A topic that breaks while it is followed ends Follow and Sync.
func TestFollowEnds(t *testing.T) {
	t.Run("a revision that falls", func(t *testing.T) {
		w := newWorld(t, 1)
		w.put("a", site("a", 5, true))
		table, stop, ended := w.followed(time.Minute)
		w.put("a", site("a", 4, false))
		_, err := table.Sync(t.Context())
		require.ErrorIs(t, err, gate.ErrRevision)
		<-ended
		require.ErrorIs(t, stop(), gate.ErrRevision)
		require.Zero(t, streams(table, "a"))
	})
	t.Run("the brokers are away for longer than the bound", func(t *testing.T) {
		w := newWorld(t, 1)
		w.put("a", site("a", 1, false))
		table, stop, ended := w.followed(1500 * time.Millisecond)
		_, err := table.Sync(t.Context())
		require.NoError(t, err)
		w.b.Close()
		began := time.Now()
		_, err = table.Sync(t.Context())
		require.ErrorIs(t, err, ErrStale)
		<-ended
		require.ErrorIs(t, stop(), ErrStale)
		require.Less(t, time.Since(began), 4*time.Second)
		require.Greater(t, time.Since(began), time.Second)
	})
	t.Run("the topic is made again", func(t *testing.T) {
		k, err := kfake.NewCluster(kfake.NumBrokers(1))
		require.NoError(t, err)
		defer k.Close()
		client, err := kafkaio.Dial(k.ListenAddrs(), kafkaio.Options{MaxWait: 100 * time.Millisecond, RequestTimeout: time.Second})
		require.NoError(t, err)
		defer client.Close()
		require.NoError(t, client.EnsureTopic(t.Context(), topic, 1, nil))
		w := &world{t: t, client: client, producer: client.Producer(topic)}
		defer w.producer.Close()
		w.put("a", site("a", 1, true))
		table, stop, ended := w.followed(5 * time.Second)
		require.NoError(t, k.DeleteTopic(topic))
		require.NoError(t, client.EnsureTopic(t.Context(), topic, 1, nil))
		<-ended
		require.Error(t, stop())
		_, err = table.Sync(t.Context())
		require.Error(t, err)
		require.Zero(t, streams(table, "a"))
	})
}

// The brokers are away for less than the bound: nothing is lost, and what was
// written meanwhile is obeyed.
func TestFollowBearsAnOutage(t *testing.T) {
	w := newWorld(t, 1)
	w.put("a", site("a", 1, false))
	table, _, ended := w.followed(20 * time.Second)
	var port int
	_, err := fmt.Sscanf(w.b.Addr(), "127.0.0.1:%d", &port)
	require.NoError(t, err)
	require.NoError(t, w.b.Close())
	w.b, err = broker.Start(w.dir, broker.Options{Port: port})
	require.NoError(t, err)
	w.put("a", site("a", 2, true))
	_, err = table.Sync(t.Context())
	require.NoError(t, err)
	require.Zero(t, streams(table, "a"))
	select {
	case <-ended:
		t.Fatal("it does not follow any more")
	default:
	}
}

// A caller that gives up is not told that the table is stale.
func TestSyncGivesUp(t *testing.T) {
	w := newWorld(t, 1)
	table, _, _ := w.followed(time.Minute)
	w.b.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := table.Sync(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.False(t, errors.Is(err, ErrStale))
}
