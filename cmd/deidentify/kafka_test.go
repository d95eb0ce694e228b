//go:build kafka

package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"winnow/internal/testkit/apache"
	"winnow/pkg/batch"
)

func startApache(t *testing.T, nodes int) *apache.Cluster {
	t.Helper()
	k, err := apache.Start(t.Context(), filepath.Join(t.TempDir(), "kafka"), apache.Options{Nodes: nodes})
	require.NoError(t, err)
	t.Cleanup(func() { k.Close() })
	return k
}

// TestOwnKafkaChaos is TestChaos on Apache Kafka.
func TestOwnKafkaChaos(t *testing.T) {
	k := startApache(t, 1)
	c := newChaos(t, k.Brokers(), 4, chaosFlags...)
	c.run(chaosTime(t), func(ctx context.Context, rng *rand.Rand) {
		for waitFor(ctx, 10*time.Second+upTo(rng, 10*time.Second)) == nil {
			c.count("broker killed")
			err := k.Kill(0)
			_ = waitFor(ctx, upTo(rng, time.Second))
			if err = errors.Join(err, k.Restart(0)); err != nil {
				t.Errorf("the broker can't be killed and started again: %v", err)
				return
			}
		}
	})
}

// TestOwnKafkaRebalance is TestRebalance on Apache Kafka.
func TestOwnKafkaRebalance(t *testing.T) {
	c := newChaos(t, startApache(t, 1).Brokers(), 12, rebalanceFlags...)
	require.Less(t, c.rebalance(rebalanceSession), rebalanceSession)
}

// TestOwnKafkaBrokerLost stops one of three brokers in the middle of a stream, first as
// an operator does and then by SIGKILL: nothing is lost, and the pause is
// measured on the partition that stood still for longest.
func TestOwnKafkaBrokerLost(t *testing.T) {
	k := startApache(t, 3)
	c := newChaos(t, k.Brokers(), 12, rebalanceFlags...)
	store, err := batch.Create(c.out)
	require.NoError(t, err)
	producing, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); c.produce(producing, rand.New(rand.NewPCG(1, 2))) }()
	w := c.worker(nil)
	<-w.working

	var longest atomic.Int64
	watching, unwatch := context.WithCancel(t.Context())
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		tips, moved := map[int]int64{}, map[int]time.Time{}
		for waitFor(watching, 20*time.Millisecond) == nil {
			for _, p := range c.partitions {
				next, err := store.Next(chaosTopic, p)
				if err == nil && (next != tips[p] || next == 0) {
					tips[p], moved[p] = next, time.Now()
				}
				if d := time.Since(moved[p]); int64(d) > longest.Load() {
					longest.Store(int64(d))
				}
			}
		}
	}()
	measure := func(what string, d time.Duration) {
		longest.Store(0)
		require.NoError(t, waitFor(t.Context(), d))
		pause := time.Duration(longest.Load())
		t.Logf("%s: longest pause of a partition %v", what, pause.Round(time.Millisecond))
		require.Less(t, pause, 25*time.Second, what)
	}
	require.NoError(t, waitFor(t.Context(), 5*time.Second))
	measure("three brokers", 5*time.Second)
	require.NoError(t, k.Stop(1))
	measure("one stopped by SIGTERM", 8*time.Second)
	require.NoError(t, k.Restart(1))
	measure("started again", 6*time.Second)
	require.NoError(t, k.Kill(2))
	measure("another killed by SIGKILL", 18*time.Second)
	require.NoError(t, k.Restart(2))
	measure("started again", 6*time.Second)
	unwatch()
	<-watched
	stop()
	<-done
	w.stop(t)
	c.drain()
	c.verify()
}
