package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"winnow/internal/broker"
	"winnow/internal/failpoint"
	"winnow/internal/ingest"
	"winnow/internal/kafkaio"
	"winnow/pkg/batch"
	"winnow/pkg/schema"
)

// The test binary is also the programs that the tests kill.
const roleEnv, chaosEnv = "WINNOW_TEST_ROLE", "WINNOW_TEST_CHAOS"

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "deidentify":
		os.Exit(deidentifyRole())
	case "broker":
		os.Exit(brokerRole())
	}
	os.Exit(m.Run())
}

// deidentifyRole is the real command, with the clock of the tests and, at each
// of its failpoints, a chance to die or to be stopped.
func deidentifyRole() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if s := os.Getenv(chaosEnv); s != "" {
		var c chances
		if err := json.Unmarshal([]byte(s), &c); err != nil {
			panic(err)
		}
		failpoint.Hook = c.strike
	}
	started := time.Now()
	s := &session{ctx, os.Stdin, os.Stdout, os.Stderr, func() time.Time { return fixedNow.Add(time.Since(started)) }}
	return runAt(s, os.Args[1:])
}

func brokerRole() int {
	port, err := strconv.Atoi(os.Args[2])
	if err != nil {
		panic(err)
	}
	b, err := broker.Start(os.Args[1], broker.Options{Port: port})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("ready", b.Addr())
	select {} // until it is killed
}

// chances are what may happen at each failpoint of a worker.
type chances struct {
	Kill   float64       // it dies
	Stop   float64       // it is stopped, until the driver lets it go on as a zombie
	Slow   time.Duration // it waits up to this, so that others overtake it
	Target string        // a place at which the first two are 50 times as likely
}

// places are the failpoints that a worker passes on its way to a commit.
var places = func() (all []string) {
	for _, op := range []string{"polled", "hint", "read", "readdir", "mkdir", "open", "write", "fsync", "close", "fsyncdir", "link", "remove"} {
		all = append(all, op)
		if op != "polled" && op != "hint" {
			all = append(all, "after "+op)
		}
	}
	return all
}()

// strike writes to stderr what it does, with one write, before it does it.
func (c *chances) strike(p failpoint.Point) error {
	place := p.Op
	if p.After {
		place = "after " + place
	}
	x := rand.Float64()
	if place == c.Target {
		x /= 50
	}
	switch {
	case x < c.Kill:
		fmt.Fprintf(os.Stderr, "CHAOS kill %s\n", place)
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case x < c.Kill+c.Stop:
		fmt.Fprintf(os.Stderr, "CHAOS stop %s\n", place)
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	}
	if c.Slow > 0 {
		time.Sleep(rand.N(c.Slow))
	}
	return nil
}

// self starts the test binary in another role. It dies with us.
func self(role string, env []string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(append(os.Environ(), roleEnv+"="+role), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// brokerProcess is the embedded broker as a process of its own.
type brokerProcess struct {
	dir  string
	port int
	cmd  *exec.Cmd
}

func startBroker(t testing.TB, dir string) *brokerProcess {
	t.Helper()
	b := &brokerProcess{dir: dir}
	// Below the ports that connections are given: one of these, dialling while
	// the broker is away, could meet itself there and keep the port.
	for b.port == 0 {
		port := 15_000 + rand.IntN(15_000)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			require.NoError(t, l.Close())
			b.port = port
		}
	}
	require.NoError(t, b.start())
	t.Cleanup(b.kill)
	return b
}

func (b *brokerProcess) addr() string { return fmt.Sprintf("127.0.0.1:%d", b.port) }

func (b *brokerProcess) start() error {
	b.cmd = self("broker", nil, b.dir, strconv.Itoa(b.port))
	b.cmd.Stderr = os.Stderr
	out, err := b.cmd.StdoutPipe()
	if err == nil {
		err = b.cmd.Start()
	}
	if err != nil {
		return err
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return fmt.Errorf("the broker did not start: %q %w", line, err)
	}
	return nil
}

func (b *brokerProcess) kill() {
	_ = b.cmd.Process.Kill()
	_ = b.cmd.Wait()
}

// chaos drives workers, a producer and the faults between them.
type chaos struct {
	t       testing.TB
	brokers []string
	out     string
	flags   []string
	tally   struct {
		sync.Mutex
		n map[string]int
	}
	client     *kafkaio.Client
	partitions []int

	sent  atomic.Int64 // tokens given out
	mu    sync.Mutex
	acked map[int64]bool
}

const (
	chaosTopic  = "chaos-events"
	chaosTenant = `{"tenant":"chaos","org":"org-chaos","hosts":["chaos.example"],"region":"eu","revision":1,"history":[{"at":"2025-01-12T09:00:00Z","received":"2025-01-12T09:02:00Z","set":{"plans":{"confluence":"standard","jira":"standard","jira_service_management":"standard"},"sector":"retail","in_app":"on"}}]}` + "\n"
)

func (c *chaos) count(what string) {
	c.tally.Lock()
	defer c.tally.Unlock()
	c.tally.n[what]++
}

func newChaos(t testing.TB, brokers []string, partitions int, flags ...string) *chaos {
	t.Helper()
	c := &chaos{t: t, brokers: brokers, out: filepath.Join(t.TempDir(), "out"), flags: flags, acked: map[int64]bool{}}
	for p := range partitions {
		c.partitions = append(c.partitions, p)
	}
	c.tally.n = map[string]int{}
	var err error
	c.client, err = kafkaio.Dial(brokers, kafkaio.Options{ClientID: "chaos", RequestTimeout: 2 * time.Second})
	require.NoError(t, err)
	t.Cleanup(func() { c.client.Close() })
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.tally.n)
		}
	})
	tenants := filepath.Join(t.TempDir(), "tenants.jsonl")
	require.NoError(t, os.WriteFile(tenants, []byte(chaosTenant), 0o644))
	require.NoError(t, ingest.EnsureTenants(t.Context(), c.client, tenantsTopic))
	_, err = ingest.ProduceTenants(t.Context(), c.client, tenantsTopic, tenants, fixedNow)
	require.NoError(t, err)
	require.NoError(t, ingest.EnsureEvents(t.Context(), c.client, chaosTopic, partitions))
	return c
}

// message is an event of the chaos tenant.
func (c *chaos) message(id, kind, entity string, value any) kafkaio.Message {
	b, err := json.Marshal(value)
	require.NoError(c.t, err)
	e := schema.Envelope{ID: ingest.EventID(id), Origin: "chaos", Type: schema.TypePrefix + kind, Time: fixedNow.Add(-time.Hour), Tenant: "chaos", Product: schema.Jira}
	return kafkaio.Message{Key: []byte("chaos|jira/" + entity), Value: b, Headers: e.AppendHeaders(nil), Time: fixedNow}
}

type object = map[string]any

var padding = strings.Repeat("The pump on the second floor was inspected and runs within its limits. ", 5)

// events returns the messages of the next token, which must come to one row
// whatever happens: one event, sometimes one that is sent twice, sometimes the
// two that tell of one comment, in either order.
func (c *chaos) events(rng *rand.Rand) (token int64, ms []kafkaio.Message) {
	token = c.sent.Add(1)
	text := fmt.Sprintf("token %d of the run. %s", token, padding[:rng.IntN(len(padding))])
	id, entity := fmt.Sprint("event ", token), fmt.Sprint(token)
	issue := object{"id": entity, "key": "RUN-1", "fields": object{"summary": "without a number", "issuetype": object{"name": "Bug"}}}
	switch p := rng.IntN(100); {
	case p < 10:
		comment := object{"id": entity, "body": text, "updated": "2026-11-25T11:00:00.000+0000"}
		ms = []kafkaio.Message{
			c.message(id+" a", "jira.webhook.comment_created", entity, object{"webhookEvent": "comment_created", "timestamp": 1, "comment": comment, "issue": issue}),
			c.message(id+" b", "jira.webhook.issue_updated", entity, object{"webhookEvent": "jira:issue_updated", "timestamp": 1, "comment": comment, "issue": issue}),
		}
		if p < 5 {
			slices.Reverse(ms)
		}
	default:
		issue["fields"] = object{"summary": text}
		m := c.message(id, "jira.rest.issue", entity, issue)
		ms = []kafkaio.Message{m}
		if p < 20 {
			ms = append(ms, m)
		}
	}
	return token, ms
}

// produce sends events until ctx ends, in small groups. What was not
// acknowledged may be on the topic or not.
func (c *chaos) produce(ctx context.Context, rng *rand.Rand) {
	p := c.client.Producer(chaosTopic)
	defer p.Close()
	for ctx.Err() == nil {
		var group []kafkaio.Message
		var tokens []int64
		for range 1 + rng.IntN(100) {
			token, ms := c.events(rng)
			tokens = append(tokens, token)
			group = append(group, ms...)
		}
		if err := p.Produce(ctx, group...); err == nil {
			c.mu.Lock()
			for _, t := range tokens {
				c.acked[t] = true
			}
			c.mu.Unlock()
		} else {
			c.count("groups not acknowledged")
		}
		_ = waitFor(ctx, upTo(rng, 20*time.Millisecond))
	}
}

func upTo(rng *rand.Rand, d time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(d))) }

func waitFor(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// workerProcess is a worker, and says when it has begun to work.
type workerProcess struct {
	*exec.Cmd
	working chan struct{}
	mu      sync.Mutex
	said    []byte // the end of what it wrote to stderr
}

// saidBytes bounds what is kept of a worker's words: enough for a dump of its
// goroutines.
const saidBytes = 1 << 20

func (w *workerProcess) hear(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(append(w.said, line...), '\n')
	if len(w.said) > 2*saidBytes {
		w.said = slices.Clone(w.said[len(w.said)-saidBytes:])
	}
}

// dump ends a worker that does not get on, and returns its last words: its log
// and where each of its goroutines stands.
func (w *workerProcess) dump() string {
	_ = w.Process.Signal(syscall.SIGQUIT)
	_ = w.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.said)
}

// stop asks the worker to stop, once it works, and waits until it did.
func (w *workerProcess) stop(t testing.TB) {
	t.Helper()
	select {
	case <-w.working:
	case <-time.After(time.Minute):
		t.Fatal("a worker does not begin to work")
	}
	require.NoError(t, w.Process.Signal(syscall.SIGTERM))
	require.NoError(t, w.Wait(), "a worker that is asked to stop")
}

// worker starts one worker.
func (c *chaos) worker(ch *chances) *workerProcess {
	var env []string
	if ch != nil {
		b, err := json.Marshal(ch)
		require.NoError(c.t, err)
		env = append(env, chaosEnv+"="+string(b))
	}
	cmd := self("deidentify", env, append([]string{"run", "--brokers", strings.Join(c.brokers, ","), "--out", c.out, "--topic", chaosTopic, "--group", "chaos"}, c.flags...)...)
	w := &workerProcess{Cmd: cmd, working: make(chan struct{})}
	cmd.Stderr = &lines{take: func(l string) {
		w.hear(l)
		switch {
		case strings.Contains(l, "msg=working "):
			close(w.working)
		case strings.HasPrefix(l, "CHAOS kill "):
			c.count("worker killed itself: " + strings.TrimPrefix(l, "CHAOS kill "))
		case strings.HasPrefix(l, "CHAOS stop "):
			c.count("worker stopped itself: " + strings.TrimPrefix(l, "CHAOS stop "))
			// It comes back as a zombie, when its session is over.
			time.AfterFunc(2*time.Second+rand.N(3*time.Second), func() { _ = cmd.Process.Signal(syscall.SIGCONT) })
		case strings.Contains(l, "another worker committed first"):
			c.count("lost race")
		case strings.Contains(l, "removed files of attempts"):
			c.count("sweep of a dead attempt")
		case strings.HasPrefix(l, "deidentify: "):
			c.count("worker gave up: " + l)
		case strings.Contains(l, "panic"):
			c.count("panic: " + l)
		}
	}}
	require.NoError(c.t, cmd.Start())
	return w
}

// lines hands on what is written to it, line by line.
type lines struct {
	take func(string)
	rest []byte
}

func (w *lines) Write(b []byte) (int, error) {
	w.rest = append(w.rest, b...)
	for {
		line, rest, ok := bytes.Cut(w.rest, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		w.take(string(line))
		w.rest = rest
	}
}

// keep keeps one worker running through faults until ctx ends.
func (c *chaos) keep(ctx context.Context, rng *rand.Rand) {
	for ctx.Err() == nil {
		cmd := c.worker(&chances{Kill: 0.0002, Stop: 0.0004, Slow: 500 * time.Microsecond, Target: places[rng.IntN(len(places))]})
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		running := true
		for running {
			select {
			case <-done:
				running = false
			case <-ctx.Done():
				_ = cmd.Process.Kill()
				<-done
				return
			case <-time.After(upTo(rng, 4*time.Second)):
				switch x := rng.IntN(20); {
				case x < 2:
					c.count("worker killed from outside")
					_ = cmd.Process.Kill()
				case x < 4:
					c.count("worker stopped from outside")
					_ = cmd.Process.Signal(syscall.SIGSTOP)
					_ = waitFor(ctx, upTo(rng, 5*time.Second))
					_ = cmd.Process.Signal(syscall.SIGCONT)
				case x < 5:
					c.count("worker asked to stop")
					_ = cmd.Process.Signal(syscall.SIGTERM)
				}
			}
		}
	}
}

// run lets everything happen for a while, lets workers without faults finish,
// and compares what is in the dataset with what was sent.
func (c *chaos) run(d time.Duration, outage func(ctx context.Context, rng *rand.Rand)) {
	t := c.t
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, %v", seed, d)
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	var all sync.WaitGroup
	for i := range uint64(3) {
		all.Go(func() { c.keep(ctx, rand.New(rand.NewPCG(seed, i))) })
	}
	producing, stop := context.WithCancel(t.Context())
	var sending sync.WaitGroup
	sending.Go(func() { c.produce(producing, rand.New(rand.NewPCG(seed, 100))) })
	all.Go(func() { outage(ctx, rand.New(rand.NewPCG(seed, 200))) })
	all.Wait()
	stop()
	sending.Wait()

	c.drain()
	c.verify()
}

// drain runs workers without faults until the chains have reached the ends of
// the log, and stops them as an operator does.
func (c *chaos) drain() {
	workers := []*workerProcess{c.worker(nil), c.worker(nil)}
	store, err := batch.Open(c.out)
	require.NoError(c.t, err)
	c.awaitEnd(store, workers...)
	for _, w := range workers {
		w.stop(c.t)
	}
}

// awaitEnd waits until the chains have reached the ends of the log. If they do
// not, it tells where they and the workers stand.
func (c *chaos) awaitEnd(store *batch.Store, workers ...*workerProcess) {
	t := c.t
	ends, err := c.client.Offsets(t.Context(), chaosTopic, c.partitions)
	require.NoError(t, err)
	atEnd := func() bool {
		for p, r := range ends {
			if next, err := store.Next(chaosTopic, p); err != nil || next < r.End {
				return false
			}
		}
		return true
	}
	for began := time.Now(); !atEnd(); time.Sleep(50 * time.Millisecond) {
		if time.Since(began) < 2*time.Minute {
			continue
		}
		for p, r := range ends {
			next, err := store.Next(chaosTopic, p)
			t.Logf("partition %d: at %d of %d (%v)", p, next, r.End, err)
		}
		for i, w := range workers {
			t.Logf("worker %d:\n%s", i, w.dump())
		}
		t.Fatal("the workers do not reach the end of the log")
	}
}

func (c *chaos) verify() {
	t := c.t
	store, err := batch.Open(c.out)
	require.NoError(t, err)
	report, err := store.Check(t.Context())
	require.NoError(t, err)
	require.Empty(t, report.Faults)
	times := map[int64]int{}
	var records, repeats, twice, counted int64
	for _, p := range c.partitions {
		chain, err := store.Chain(chaosTopic, p)
		require.NoError(t, err)
		for _, cm := range chain {
			records += cm.Records
			counted += cm.Metadata.Counted
			repeats += cm.InApp.Drops[schema.ReasonRepeat]
			twice += cm.InApp.Drops[schema.ReasonToldTwice]
			require.NoError(t, store.ReadRows(cm, func(_ batch.File, r batch.Row) error {
				if rest, ok := strings.CutPrefix(r.Text, "token "); ok {
					number, _, _ := strings.Cut(rest, " ")
					token, err := strconv.ParseInt(number, 10, 64)
					require.NoError(t, err)
					times[token]++
				}
				return nil
			}))
		}
	}
	events := map[string]bool{}
	_, err = c.client.ReadAll(t.Context(), chaosTopic, func(_ int, r kafkaio.Record) error {
		e, err := schema.ParseHeaders(r.Headers)
		events[e.ID] = true
		return err
	})
	require.NoError(t, err)
	var lost, duplicated, unknown []int64
	for token := range c.acked {
		if times[token] == 0 {
			lost = append(lost, token)
		}
	}
	for token, n := range times {
		if n > 1 {
			duplicated = append(duplicated, token)
		}
		if token > c.sent.Load() {
			unknown = append(unknown, token)
		}
	}
	sum := map[string]int{}
	for _, what := range slices.Sorted(maps.Keys(c.tally.n)) {
		kind, _, _ := strings.Cut(what, ":")
		sum[kind] += c.tally.n[what]
	}
	t.Logf("%d records on the topic, %d tokens acknowledged, %d in the dataset; %d repeats and %d second tellings dropped; %d commits, %d orphans",
		records, len(c.acked), len(times), repeats, twice, report.Commits, report.Orphans)
	for _, what := range slices.Sorted(maps.Keys(sum)) {
		t.Logf("%6d  %s", sum[what], what)
	}
	for _, what := range slices.Sorted(maps.Keys(c.tally.n)) {
		if strings.Contains(what, ":") {
			t.Logf("%6d    %s", c.tally.n[what], what)
		}
	}
	t.Logf("%d lost, %d duplicated", len(lost), len(duplicated))
	require.Empty(t, lost)
	require.Empty(t, duplicated)
	require.Empty(t, unknown)
	require.EqualValues(t, len(events), counted, "every event is counted in metadata once")
	require.Zero(t, sum["panic"])
	require.Zero(t, sum["worker gave up"])

	// What the dead left behind goes with the next sweep, but for attempts at
	// the end of the log, which are not known to be dead.
	for _, p := range c.partitions {
		_, _, err := store.Sweep(chaosTopic, p)
		require.NoError(t, err)
	}
	report, err = store.Check(t.Context())
	require.NoError(t, err)
	require.NoError(t, store.Discard(t.Context(), report.Dead))
	report, err = store.Check(t.Context())
	require.NoError(t, err)
	require.Empty(t, report.Faults)
	require.Empty(t, report.Dead)
}

// chaosTime is how long a chaos test goes on; `make chaos` sets CHAOS.
func chaosTime(t testing.TB) time.Duration {
	t.Helper()
	s := os.Getenv("CHAOS")
	if s == "" {
		return time.Minute
	}
	d, err := time.ParseDuration(s)
	require.NoError(t, err)
	return d
}

// chaosFlags make batches small and zombies frequent.
var chaosFlags = []string{"--session-timeout", "1500ms", "--flush-records", "300", "--flush-bytes", "300000", "--flush-age", "200ms", "--format", "jsonl"}

// TestChaos: a broker and three workers as processes, killed, stopped and
// resumed at random and at their failpoints. Nothing is lost or duplicated.
func TestChaos(t *testing.T) {
	b := startBroker(t, filepath.Join(t.TempDir(), "broker"))
	c := newChaos(t, []string{b.addr()}, 4, chaosFlags...)
	c.run(chaosTime(t), func(ctx context.Context, rng *rand.Rand) {
		for waitFor(ctx, 4*time.Second+upTo(rng, 4*time.Second)) == nil {
			c.count("broker killed")
			b.kill()
			_ = waitFor(ctx, upTo(rng, time.Second))
			if err := b.start(); err != nil {
				panic(errors.Join(errors.New("the broker can't be started again"), err))
			}
		}
	})
}

// rebalance runs two workers on 12 partitions, adds one and takes one away, and
// returns how long a partition that had records to read did not move.
func (c *chaos) rebalance(session time.Duration) (idle time.Duration) {
	t := c.t
	store, err := batch.Create(c.out)
	require.NoError(t, err)
	producing, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { c.produce(producing, rand.New(rand.NewPCG(1, 2))) })
	workers := []*workerProcess{c.worker(nil), c.worker(nil)}

	watching, unwatch := context.WithCancel(t.Context())
	var longest, at atomic.Int64
	all.Go(func() {
		moved, last, began := map[int]time.Time{}, map[int]int64{}, time.Now()
		for waitFor(watching, 100*time.Millisecond) == nil {
			ends, err := c.client.Offsets(watching, chaosTopic, c.partitions)
			if err != nil {
				return
			}
			for _, p := range c.partitions {
				next, err := store.Next(chaosTopic, p)
				if err != nil {
					c.count("tip not read: " + err.Error())
				}
				// A batch is up to its flush age old.
				if next != last[p] || next >= ends[p].End || moved[p].IsZero() {
					moved[p], last[p] = time.Now(), next
				}
				if d := time.Since(moved[p]); next > 0 && int64(d) > longest.Load() {
					longest.Store(int64(d))
					at.Store(int64(time.Since(began)))
				}
			}
		}
	})
	require.NoError(t, waitFor(t.Context(), session))
	workers = append(workers, c.worker(nil))
	require.NoError(t, waitFor(t.Context(), 2*session))
	workers[0].stop(t)
	require.NoError(t, waitFor(t.Context(), 2*session))
	unwatch()
	stop()
	all.Wait()
	for _, w := range workers[1:] {
		w.stop(t)
	}
	c.drain()
	c.verify()
	t.Logf("longest time that a partition with records to read did not move: %v, %v after the start (session timeout %v)",
		time.Duration(longest.Load()).Round(time.Millisecond), time.Duration(at.Load()).Round(time.Second), session)
	return time.Duration(longest.Load())
}

const rebalanceSession = 6 * time.Second

var rebalanceFlags = []string{"--session-timeout", rebalanceSession.String(), "--flush-age", "200ms", "--format", "jsonl"}

// TestRebalance: a member that joins or leaves keeps no partition idle for
// longer than the session timeout.
func TestRebalance(t *testing.T) {
	b := startBroker(t, filepath.Join(t.TempDir(), "broker"))
	c := newChaos(t, []string{b.addr()}, 12, rebalanceFlags...)
	require.Less(t, c.rebalance(rebalanceSession), rebalanceSession)
}
