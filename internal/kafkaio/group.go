package kafkaio

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
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
// rebalances, or ctx ends, run's context ends; all calls must return before the
// member asks for new partitions, or leaves. In a rebalance they have nine
// tenths of Options.SessionTimeout for that: the member sends no heartbeats
// then. Until another member noticed, two may work on one partition: run must
// bear that.
//
// A run that returns nil is not called again before the next rebalance. One
// that fails, other than by its ended context, ends Consume with that error.
// What keeps the member out of the group is retried, and told to
// Options.OnRetry, unless the broker refuses (authorisation, configuration).
// When ctx ends Consume leaves the group and returns nil, all runs having
// returned. After them that takes no longer than Options.RequestTimeout, unless
// the coordinator is out of reach; if it interrupts the first join, the group
// may find out about the leaving only after SessionTimeout.
func (c *Client) Consume(ctx context.Context, group, topic string, run func(ctx context.Context, a *Assignment) error) error {
	known := partitionCount{c: c, topic: topic}
	known.look(ctx)
	var evicting sync.WaitGroup
	defer evicting.Wait()
	running, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	connected, cut := context.WithCancel(context.Background())
	defer cut()
	g, err := kafka.NewConsumerGroup(kafka.ConsumerGroupConfig{
		ID: group, Brokers: c.brokers, Topics: []string{topic},
		Dialer:            c.groupDialer(connected),
		SessionTimeout:    c.o.SessionTimeout,
		RebalanceTimeout:  c.o.SessionTimeout,
		HeartbeatInterval: c.o.SessionTimeout / 10,
		JoinGroupBackoff:  time.Millisecond, // the pauses are ours, below
		StartOffset:       kafka.FirstOffset,
	})
	if err != nil {
		return fmt.Errorf("group %s: %w", group, err)
	}
	var last *generation
	evicted := "" // the member id that evict was called for
	defer func() { c.leave(g, cut, group, last) }()
	for failures, logins := 0, 0; ; {
		gen, err := g.Next(running)
		if err == nil {
			failures, logins = 0, 0
			last = c.runAll(running, fail, gen, &known, run)
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		if running.Err() != nil {
			return context.Cause(running) // a run's error
		}
		err = fmt.Errorf("group %s: %w", group, c.explainLogin(err))
		if logins++; !errors.Is(err, ErrLogin) {
			logins = 0
		}
		if refused(err) || logins == maxLogins {
			return err
		}
		if last != nil && !errors.Is(err, kafka.RebalanceInProgress) && evicted != last.memberID {
			member := last.memberID
			evicted = member
			evicting.Go(func() { c.evict(running, group, member) })
		}
		c.o.OnRetry(err)
		_ = wait(running, backoff(failures)) // Next sees the end of running
		failures++
	}
}

// evict takes a member that kafka-go has forgotten out of the group. kafka-go
// forgets it with every error of the connection, joins as another, and then
// waits with the rest of the group until the session of the forgotten one is
// over: its own attempt to leave goes to the coordinator that is out of reach.
func (c *Client) evict(ctx context.Context, group, member string) {
	_ = c.retry(ctx, func() error { return c.leaveGroup(ctx, group, member) })
}

// leaveGroup asks the coordinator once to take a member out of the group.
//
// From version 1 of the reply on, the throttle time stands before the error.
// kafka-go (protocol/leavegroup, v0.4.51) reads them the other way round, so an
// error arrives as the low 16 bits of a throttle time, and a coordinator that
// is not one any more seems to agree.
func (c *Client) leaveGroup(ctx context.Context, group, member string) error {
	ctx, cancel := context.WithTimeout(ctx, c.o.RequestTimeout)
	defer cancel()
	kc := kafka.Client{Addr: c.addr, Transport: c.transport}
	res, err := kc.LeaveGroup(ctx, &kafka.LeaveGroupRequest{GroupID: group, Members: []kafka.LeaveGroupRequestMember{{ID: member}}})
	if err != nil {
		return err
	}
	if err := codeError(int16(res.Throttle.Milliseconds())); err != nil {
		return err
	}
	if res.Error != nil {
		return res.Error
	}
	for _, m := range res.Members {
		if m.Error != nil {
			return m.Error
		}
	}
	return nil
}

// refused reports whether an error of the group is final.
func refused(err error) bool {
	var ke kafka.Error
	if !errors.As(err, &ke) {
		return hopeless(err)
	}
	return !temporary(err) && !rejoin(ke)
}

// rejoin reports whether an error only says that the member has to join anew.
func rejoin(e kafka.Error) bool {
	return e == kafka.RebalanceInProgress || e == kafka.UnknownMemberId || e == kafka.IllegalGeneration || e == kafka.MemberIDRequired
}

// groupDialer makes the connections of a group, which stop to listen when ctx
// ends. kafka-go can't be told to give up a JoinGroup, which is answered when
// every member has handed its partitions over.
//
// Nor can it be told to try another broker: it takes the first of the list that
// accepts a connection, which a frozen one does. So an address that did not
// answer in time is refused for as long again.
func (c *Client) groupDialer(ctx context.Context) *kafka.Dialer {
	var frozen sync.Map // address → until when, a time.Time
	return &kafka.Dialer{
		ClientID: c.o.ClientID, Timeout: c.o.RequestTimeout, TLS: c.o.TLS, SASLMechanism: c.transport.SASL,
		DialFunc: func(dialing context.Context, network, address string) (net.Conn, error) {
			if until, ok := frozen.Load(address); ok && time.Now().Before(until.(time.Time)) && len(c.brokers) > 1 {
				return nil, fmt.Errorf("%s did not answer a moment ago: %w", address, kafka.BrokerNotAvailable)
			}
			var d net.Dialer
			conn, err := d.DialContext(dialing, network, address)
			if err != nil {
				return nil, err
			}
			return groupConn{conn, ctx, context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) }), func() {
				if ctx.Err() == nil {
					frozen.Store(address, time.Now().Add(c.o.RequestTimeout))
				}
			}}, nil
		},
	}
}

type groupConn struct {
	net.Conn
	ctx    context.Context
	forget func() bool
	late   func() // is called when the other side did not answer in time
}

// SetReadDeadline and SetDeadline are called before each answer that kafka-go
// waits for. If ctx ended between the request and this, the deadline that its
// end set must not be moved again; and if it ends beside this, whichever comes
// last sets that.
func (c groupConn) SetReadDeadline(t time.Time) error {
	err := c.Conn.SetReadDeadline(t)
	if c.ctx.Err() != nil {
		err = c.Conn.SetReadDeadline(time.Now())
	}
	return err
}

func (c groupConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetWriteDeadline(t), c.SetReadDeadline(t))
}

func (c groupConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.late()
	}
	return n, err
}

func (c groupConn) Close() error {
	c.forget()
	return c.Conn.Close()
}

// generation is one set of assignments.
type generation struct {
	memberID string
	handed   chan struct{}   // closed when all runs have returned
	ctx      context.Context // kafka-go's; set when handed is closed
}

// leave ends the membership, when the runs of the last generation, if any, have
// returned: until then kafka-go sends heartbeats for it. cut ends what kafka-go
// waits for.
func (c *Client) leave(g *kafka.ConsumerGroup, cut func(), group string, last *generation) {
	if last != nil {
		<-last.handed
	}
	defer time.AfterFunc(c.o.RequestTimeout, cut).Stop()
	var leaving sync.WaitGroup
	if last != nil && last.ctx.Err() != nil {
		// kafka-go is joining again, and would leave once all others have
		// joined too. Leave in its stead; its join is then of no account.
		leaving.Go(func() {
			if c.leaveGroup(context.Background(), group, last.memberID) == nil {
				cut()
			}
		})
	}
	_ = g.Close()
	leaving.Wait()
}

// runAll starts the runs of one generation. kafka-go joins the next one only
// after the function given to Start has returned, hence after all runs have.
func (c *Client) runAll(running context.Context, fail context.CancelCauseFunc, gen *kafka.Generation, known *partitionCount, run func(context.Context, *Assignment) error) *generation {
	last := &generation{memberID: gen.MemberID, handed: make(chan struct{})}
	gen.Start(func(genCtx context.Context) {
		last.ctx = genCtx
		if genCtx.Err() != nil {
			close(last.handed)
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
		close(last.handed)
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
	return last
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
