package kafkaio

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
)

// Assignment is a partition that the group gave to this member, until the
// context that came with it ends.
type Assignment struct {
	Topic     string
	Partition int
	Hinted    int64 // what Hint last told the group, from any member; -1 if nothing

	gen *kafka.Generation
}

// Hint tells the group that everything below next is done, for lag monitors to
// see. It is not where a consumer goes on: that is what it has stored along
// with its data, since the group accepts a hint even from a member that is
// about to lose the partition. After a rebalance it is an error, to be ignored.
func (a *Assignment) Hint(next int64) error {
	if err := a.gen.CommitOffsets(map[string]map[int]int64{a.Topic: {a.Partition: next}}); err != nil {
		return fmt.Errorf("hint of %s/%d@%d: %w", a.Topic, a.Partition, next, err)
	}
	return nil
}

// Consume joins a group and calls run, in a goroutine of its own, for each
// partition of the topic that the group assigns to this member. When the group
// rebalances, or ctx ends, run's context ends; all calls must return, within
// Options.SessionTimeout, before the member asks for new partitions. Until
// another member noticed, two may work on one partition: run must bear that.
//
// A run that returns nil is not called again before the next rebalance. One
// that fails, other than by its ended context, ends Consume with that error.
// What keeps the member out of the group is retried, and told to
// Options.OnRetry, unless the broker refuses (authorisation, configuration).
// When ctx ends Consume leaves the group and returns nil, all runs having
// returned.
func (c *Client) Consume(ctx context.Context, group, topic string, run func(ctx context.Context, a *Assignment) error) error {
	g, err := kafka.NewConsumerGroup(kafka.ConsumerGroupConfig{
		ID: group, Brokers: c.brokers, Topics: []string{topic},
		Dialer:                 &kafka.Dialer{ClientID: c.o.ClientID, Timeout: c.o.RequestTimeout, DualStack: true},
		SessionTimeout:         c.o.SessionTimeout,
		RebalanceTimeout:       c.o.SessionTimeout,
		HeartbeatInterval:      c.o.SessionTimeout / 10,
		WatchPartitionChanges:  true,
		PartitionWatchInterval: c.o.SessionTimeout / 6,
		JoinGroupBackoff:       time.Millisecond, // the pauses are ours, below
		StartOffset:            kafka.FirstOffset,
	})
	if err != nil {
		return fmt.Errorf("group %s: %w", group, err)
	}
	defer g.Close() // leaves the group and waits for the runs
	running, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	for failures := 0; ; {
		gen, err := g.Next(running)
		if err == nil {
			failures = 0
			c.runAll(running, fail, gen, topic, run)
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		if running.Err() != nil {
			return context.Cause(running) // a run's error
		}
		var ke kafka.Error
		if errors.As(err, &ke) && !ke.Temporary() && !rejoin(ke) {
			return fmt.Errorf("group %s: %w", group, err)
		}
		c.o.OnRetry(fmt.Errorf("group %s: %w", group, err))
		_ = wait(running, backoff(failures)) // Next sees the end of running
		failures++
	}
}

// rejoin reports whether an error only says that the member has to join anew.
func rejoin(e kafka.Error) bool {
	return e == kafka.RebalanceInProgress || e == kafka.UnknownMemberId || e == kafka.IllegalGeneration ||
		e == kafka.MemberIDRequired || e == kafka.BrokerNotAvailable || e == kafka.ReplicaNotAvailable
}

// runAll starts the runs of one generation. kafka-go joins the next one only
// after the function given to Start has returned, hence after all runs have.
func (c *Client) runAll(ctx context.Context, fail context.CancelCauseFunc, gen *kafka.Generation, topic string, run func(context.Context, *Assignment) error) {
	gen.Start(func(genCtx context.Context) {
		if genCtx.Err() != nil {
			return // ended before it began; kafka-go does not wait for us then
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(genCtx, cancel)()
		var runs sync.WaitGroup
		for _, p := range gen.Assignments[topic] {
			a := &Assignment{Topic: topic, Partition: p.ID, Hinted: max(p.Offset, -1), gen: gen}
			runs.Go(func() {
				if err := run(ctx, a); err != nil && (ctx.Err() == nil || !errors.Is(err, ctx.Err())) {
					fail(err)
				}
			})
		}
		runs.Wait()
		// Returning ends the generation, and with it the membership. Stay in
		// until the group, or g.Close, ends it: when ctx ends, returning here
		// would let kafka-go rejoin between the end of ctx and g.Close.
		<-genCtx.Done()
	})
}
