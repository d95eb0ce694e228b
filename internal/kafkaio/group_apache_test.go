//go:build kafka

package kafkaio

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// consume runs a member of the topic's group until stop is called, which
// returns what Consume returned.
func (k *kafkaTopic) consume(t *testing.T, run func(context.Context, *Assignment) error) (stop func() error) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Consume(ctx, k.name, k.name, run) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = stop() })
	return stop
}

// idle counts its partitions and works on none.
func (w *working) idle(ctx context.Context, a *Assignment) error {
	w.add(a.Partition, 1)
	<-ctx.Done()
	w.add(a.Partition, -1)
	return ctx.Err()
}

func shared(t *testing.T, k *kafkaTopic) {
	k.make(t, 4, nil)
	all, one, two := newWorking(), newWorking(), newWorking()
	member := func(w *working) func() error {
		return k.consume(t, func(ctx context.Context, a *Assignment) error {
			all.add(a.Partition, 1)
			defer all.add(a.Partition, -1)
			return w.idle(ctx, a)
		})
	}
	stopOne := member(one)
	one.await(t, 4)
	stopTwo := member(two)
	two.await(t, 2)
	one.await(t, 2)
	start := time.Now()
	require.NoError(t, stopOne())
	one.await(t, 0)
	two.await(t, 4)
	require.Less(t, time.Since(start), ofKafka.SessionTimeout, "members leave, rather than expire")
	require.NoError(t, stopTwo())
	require.False(t, all.overlap, "a partition was handed over while still worked on")
}

// A member that joined and was never heard of again holds its partitions for
// its session, and no longer.
func silentMember(t *testing.T, k *kafkaTopic) {
	k.make(t, 2, nil)
	k.joinSilently(t, k.franz(t))
	start := time.Now()
	w := newWorking()
	stop := k.consume(t, w.idle)
	w.await(t, 2)
	t.Logf("the partitions of a silent member came after %v of its session of %v", time.Since(start), ofKafka.SessionTimeout)
	require.Greater(t, time.Since(start), ofKafka.SessionTimeout/2, "it was a member")
	require.NoError(t, stop())
}

func (k *kafkaTopic) joinSilently(t *testing.T, f *kgo.Client) {
	t.Helper()
	meta := kmsg.NewConsumerMemberMetadata()
	meta.Topics = []string{k.name}
	protocol := kmsg.NewJoinGroupRequestProtocol()
	protocol.Name, protocol.Metadata = "range", meta.AppendTo(nil)
	join := kmsg.NewPtrJoinGroupRequest()
	join.Group, join.ProtocolType, join.Protocols = k.name, "consumer", append(join.Protocols, protocol)
	join.SessionTimeoutMillis = int32(ofKafka.SessionTimeout.Milliseconds())
	join.RebalanceTimeoutMillis = join.SessionTimeoutMillis
	res, err := join.RequestWith(t.Context(), f)
	require.NoError(t, err)
	require.Equal(t, kerr.MemberIDRequired.Code, res.ErrorCode)
	join.MemberID = res.MemberID
	res, err = join.RequestWith(t.Context(), f)
	require.NoError(t, err)
	require.Zero(t, res.ErrorCode)

	owned := kmsg.NewConsumerMemberAssignmentTopic()
	owned.Topic, owned.Partitions = k.name, []int32{0, 1}
	assignment := kmsg.NewConsumerMemberAssignment()
	assignment.Topics = append(assignment.Topics, owned)
	mine := kmsg.NewSyncGroupRequestGroupAssignment()
	mine.MemberID, mine.MemberAssignment = res.MemberID, assignment.AppendTo(nil)
	sync := kmsg.NewPtrSyncGroupRequest()
	sync.Group, sync.Generation, sync.MemberID = k.name, res.Generation, res.MemberID
	sync.ProtocolType, sync.Protocol = kmsg.StringPtr("consumer"), kmsg.StringPtr("range")
	sync.GroupAssignment = append(sync.GroupAssignment, mine)
	synced, err := sync.RequestWith(t.Context(), f)
	require.NoError(t, err)
	require.Zero(t, synced.ErrorCode)
}

func addedPartitions(t *testing.T, k *kafkaTopic) {
	k.make(t, 1, nil)
	w := newWorking()
	stop := k.consume(t, w.idle)
	w.await(t, 1)
	req := kmsg.NewPtrCreatePartitionsRequest()
	topic := kmsg.NewCreatePartitionsRequestTopic()
	topic.Topic, topic.Count = k.name, 3
	req.Topics, req.TimeoutMillis = append(req.Topics, topic), 5000
	res, err := req.RequestWith(t.Context(), k.franz(t))
	require.NoError(t, err)
	require.Zero(t, res.Topics[0].ErrorCode)
	w.await(t, 3)
	require.NoError(t, stop())
}

func hints(t *testing.T, k *kafkaTopic) {
	k.make(t, 2, nil)
	for _, want := range []int64{-1, 41} { // the second member sees the first one's
		var old *Assignment
		hinted := make(chan error, 1)
		stop := k.consume(t, func(ctx context.Context, a *Assignment) error {
			if a.Partition == 1 {
				old = a
				hinted <- a.Hint(41)
			}
			return nil // done early: the member keeps its partitions
		})
		require.NoError(t, <-hinted)
		require.Equal(t, want, old.Hinted)
		require.NoError(t, stop())
		require.ErrorContains(t, old.Hint(50), "/1@50: ", "the generation has ended")
	}
}
