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
	known := partitionCount{c: c, topic: topic}
	known.look(ctx)
	g, err := kafka.NewConsumerGroup(kafka.ConsumerGroupConfig{
		ID: group, Brokers: c.brokers, Topics: []string{topic},
		Dialer:            &kafka.Dialer{ClientID: c.o.ClientID, Timeout: c.o.RequestTimeout, DualStack: true},
		SessionTimeout:    c.o.SessionTimeout,
		RebalanceTimeout:  c.o.SessionTimeout,
		HeartbeatInterval: c.o.SessionTimeout / 10,
		JoinGroupBackoff:  time.Millisecond, // the pauses are ours, below
		StartOffset:       kafka.FirstOffset,
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
			c.runAll(running, fail, gen, &known, run)
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
func (c *Client) runAll(running context.Context, fail context.CancelCauseFunc, gen *kafka.Generation, known *partitionCount, run func(context.Context, *Assignment) error) {
	gen.Start(func(genCtx context.Context) {
		if genCtx.Err() != nil {
			return // ended before it began; kafka-go does not wait for us then
		}
		ctx, cancel := context.WithCancel(running)
		defer cancel()
		defer context.AfterFunc(genCtx, cancel)()
		var runs, watch sync.WaitGroup
		changed := make(chan struct{})
		watch.Go(func() {
			if known.changes(genCtx) {
				cancel() // the runs hand over, as at any rebalance
				close(changed)
			}
		})
		for _, p := range gen.Assignments[known.topic] {
			a := &Assignment{Topic: known.topic, Partition: p.ID, Hinted: max(p.Offset, -1), gen: gen}
			runs.Go(func() {
				if err := run(ctx, a); err != nil && (ctx.Err() == nil || !errors.Is(err, ctx.Err())) {
					fail(err)
				}
			})
		}
		runs.Wait()
		// Returning ends the generation, and with it the membership. Stay in
		// until the group, or g.Close, ends it: when running ends, returning
		// here would let kafka-go rejoin between the end of it and g.Close.
		select {
		case <-genCtx.Done():
		case <-changed:
			if running.Err() != nil {
				<-genCtx.Done()
			}
		}
		watch.Wait()
		known.look(running) // the join that follows sees at least these
	})
}

// partitionCount is how many partitions a topic had at some moment before the
// join that gave the current assignments; 0 if that is not known.
//
// kafka-go's own watcher takes its count after the join. Partitions that are
// added between the two are then in no assignment, and nothing tells: they lie
// unread until something else makes the group rebalance. A count from before
// the join can at worst ask for one rebalance that was not needed.
type partitionCount struct {
	c     *Client
	topic string
	n     int
}

// look takes the count anew, unless the cluster does not say.
func (k *partitionCount) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, k.c.o.SessionTimeout/6)
	defer cancel()
	if info, err := k.c.metadata(ctx, k.topic); err == nil {
		k.n = len(info.Partitions)
	}
}

// changes waits until the count is another, and reports false when ctx ends
// first.
func (k *partitionCount) changes(ctx context.Context) bool {
	for before := k.n; k.n == before; k.look(ctx) {
		if wait(ctx, k.c.o.SessionTimeout/6) != nil {
			return false
		}
	}
	return true
}
