package broker_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"

	"winnow/internal/broker"
	"winnow/internal/kafkaio"
)

func TestStartContinuesWhereItStopped(t *testing.T) {
	dir := t.TempDir()
	var id string
	for run := range 2 {
		b, err := broker.Start(dir, broker.Options{})
		require.NoError(t, err)
		c, err := kafkaio.Dial([]string{b.Addr()}, kafkaio.Options{})
		require.NoError(t, err)
		if run == 0 {
			_, err = c.Topic(t.Context(), "events")
			require.ErrorIs(t, err, kafkaio.ErrUnknownTopic, "asking must not create it")
			require.NoError(t, c.EnsureTopic(t.Context(), "events", 2, map[string]string{"cleanup.policy": "compact"}))
		}
		info, err := c.Topic(t.Context(), "events")
		require.NoError(t, err)
		require.Equal(t, []int{0, 1}, info.Partitions)
		require.Len(t, info.ID, 32)
		if run == 1 {
			require.Equal(t, id, info.ID)
		}
		id = info.ID
		p := c.Producer("events")
		require.NoError(t, p.Produce(t.Context(), kafkaio.Message{Key: []byte("k"), Value: []byte{byte(run)}}))
		require.NoError(t, p.Close())

		var values []byte
		next, err := c.ReadAll(t.Context(), "events", func(_ int, r kafkaio.Record) error {
			values = append(values, r.Value...)
			return nil
		})
		require.NoError(t, err)
		require.Equal(t, []byte{0, 1}[:run+1], values)
		require.EqualValues(t, run+1, next[0]+next[1])
		require.NoError(t, c.Close())
		require.NoError(t, b.Close())
		require.NoError(t, b.Close())
	}
}

func TestStartFails(t *testing.T) {
	_, err := broker.Start("", broker.Options{})
	require.ErrorContains(t, err, "no data directory")
	b, err := broker.Start(t.TempDir(), broker.Options{})
	require.NoError(t, err)
	defer b.Close()
	_, err = broker.Start(t.TempDir(), broker.Options{Port: portOf(t, b.Addr())})
	require.ErrorContains(t, err, "address already in use")
}

func portOf(t *testing.T, addr string) int {
	a, err := net.ResolveTCPAddr("tcp", addr)
	require.NoError(t, err)
	return a.Port
}

// A client rides out a broker that is away for a while and comes back.
func TestRestartUnderAClient(t *testing.T) {
	dir := t.TempDir()
	b, err := broker.Start(dir, broker.Options{})
	require.NoError(t, err)
	failing := make(chan error, 1)
	c, err := kafkaio.Dial([]string{b.Addr()}, kafkaio.Options{MaxWait: 50 * time.Millisecond, OnRetry: func(err error) {
		select {
		case failing <- err:
		default:
		}
	}})
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.EnsureTopic(t.Context(), "events", 1, nil))
	p := c.Producer("events")
	require.NoError(t, p.Produce(t.Context(), kafkaio.Message{Value: []byte("before")}))
	require.NoError(t, b.Close())

	produced := make(chan error, 1)
	go func() { produced <- p.Produce(t.Context(), kafkaio.Message{Value: []byte("meanwhile")}) }()
	require.Error(t, <-failing)
	b, err = broker.Start(dir, broker.Options{Port: portOf(t, b.Addr())})
	require.NoError(t, err)
	defer b.Close()
	require.NoError(t, <-produced)
	var got []string
	_, err = c.ReadAll(t.Context(), "events", func(_ int, r kafkaio.Record) error {
		got = append(got, string(r.Value))
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, []string{"before", "meanwhile"}, got)
}

// A member dies while it waits for the others to join: it is given partitions
// all the same, and loses them when its session is over.
func TestMemberDiesJoining(t *testing.T) {
	b, err := broker.Start(t.TempDir(), broker.Options{})
	require.NoError(t, err)
	defer b.Close()
	const session = time.Second
	c, err := kafkaio.Dial([]string{b.Addr()}, kafkaio.Options{SessionTimeout: session, MaxWait: 50 * time.Millisecond})
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.EnsureTopic(t.Context(), "events", 2, nil))

	var working atomic.Int32
	begun, asked, letGo := make(chan struct{}, 8), make(chan struct{}, 8), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- c.Consume(ctx, "group", "events", func(ctx context.Context, _ *kafkaio.Assignment) error {
			working.Add(1)
			begun <- struct{}{}
			<-ctx.Done()
			asked <- struct{}{}
			<-letGo
			working.Add(-1)
			return nil
		})
	}()
	<-begun
	<-begun

	meta := kmsg.NewConsumerMemberMetadata()
	meta.Topics = []string{"events"}
	join := kmsg.NewPtrJoinGroupRequest()
	join.Version = 2 // from 4 on a member first asks for its name
	join.Group, join.ProtocolType = "group", "consumer"
	join.Protocols = []kmsg.JoinGroupRequestProtocol{{Name: "range", Metadata: meta.AppendTo(nil)}}
	join.SessionTimeoutMillis, join.RebalanceTimeoutMillis = int32(session.Milliseconds()), int32(session.Milliseconds())
	conn, err := net.Dial("tcp", b.Addr())
	require.NoError(t, err)
	_, err = conn.Write(kmsg.NewRequestFormatter().AppendRequest(nil, join, 1))
	require.NoError(t, err)
	<-asked
	<-asked
	require.NoError(t, conn.Close())
	time.Sleep(session / 10) // the broker sees it
	close(letGo)

	require.Eventually(t, func() bool { return working.Load() == 1 }, 5*time.Second, time.Millisecond, "shared with the dead")
	require.Eventually(t, func() bool { return working.Load() == 2 }, 5*time.Second, time.Millisecond, "the dead member's session is over")
	cancel()
	require.NoError(t, <-ended)
}
