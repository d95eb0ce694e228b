package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/alecthomas/kong"

	"winnow/internal/ingest"
	"winnow/internal/kafkaio"
	"winnow/internal/progress"
	"winnow/internal/tenants"
	"winnow/pkg/gate"
)

const description = `Puts Jira, Confluence and Jira Service Management records on the events topic, and tenant records on the tenants topic.

  ingest tenants fixtures/tenants.jsonl --brokers localhost:9092
  ingest replay fixtures/events --brokers localhost:9092
  ingest webhook --endpoints endpoints.jsonl --brokers localhost:9092
  ingest kafka --from connector-topic --brokers localhost:9092

Exit codes: 0 done, 1 failure, 2 usage.`

type cli struct {
	Replay  replayCmd  `cmd:"" help:"Produce the records in files to the events topic."`
	Kafka   kafkaCmd   `cmd:"" help:"Produce the records on a raw topic to the events topic, or some of them again."`
	Webhook webhookCmd `cmd:"" help:"Receive webhooks over HTTP and produce them to the events topic."`
	Tenants tenantsCmd `cmd:"" help:"Validate a file of tenant records and produce it to the tenants topic."`
}

type session struct {
	ctx            context.Context
	stdout, stderr io.Writer
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c cli
	code := -1
	s := &session{ctx, stdout, stderr}
	p, err := kong.New(&c, kong.Name("ingest"), kong.Description(description), kong.Writers(stdout, stderr),
		kong.Exit(func(n int) { code = n }), kong.Bind(s), kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}))
	if err != nil {
		fmt.Fprintln(stderr, "ingest:", err)
		return 1
	}
	k, err := p.Parse(args)
	if code >= 0 { // --help has been printed
		return code
	}
	if err != nil {
		fmt.Fprintf(stderr, "ingest: %v\ntry: ingest --help\n", err)
		return 2
	}
	if err := k.Run(s); err != nil {
		fmt.Fprintln(stderr, "ingest:", err)
		return 1
	}
	return 0
}

// options says on stderr when the brokers keep us waiting.
func options(s *session) kafkaio.Options {
	return kafkaio.Options{ClientID: "winnow-ingest", OnRetry: func(err error) {
		fmt.Fprintln(s.stderr, "ingest: trying again:", err)
	}}
}

// target is where the doors put events, and by whose consent.
type target struct {
	Topic           string `default:"events" help:"Topic of events; made when absent."`
	Partitions      int    `default:"12" help:"Partitions of the topic when it is made."`
	TenantsTopic    string `default:"tenants" help:"Topic of tenant records; names the tenant of a record that carries only its host, and decides what is let in."`
	kafkaio.Connect `embed:""`
}

// connection is what a door works with.
type connection struct {
	*kafkaio.Client
	ctx   context.Context // ends with the session's, or when table can't be relied on any more, which is its cause then
	table *tenants.Table
	close func()
}

// maxAge is how long a door may go without having seen the end of the tenants
// topic.
const maxAge = time.Minute

// open connects, reads the tenants topic, follows it until the connection is
// closed, and makes the topic of events.
func (t *target) open(s *session, o gate.Options) (*connection, error) {
	client, err := t.Dial(options(s))
	if err != nil {
		return nil, err
	}
	table, err := tenants.Load(s.ctx, client, t.TenantsTopic, tenants.Options{Gate: o, MaxAge: maxAge, Log: slog.New(slog.NewTextHandler(s.stderr, nil))})
	if err == nil {
		err = ingest.EnsureEvents(s.ctx, client, t.Topic, t.Partitions)
	}
	if err != nil {
		return nil, errors.Join(err, client.Close())
	}
	ctx, stop := table.Guard(s.ctx)
	return &connection{client, ctx, table, func() {
		stop()
		client.Close()
	}}, nil
}

type replayCmd struct {
	Paths []string `arg:"" name:"path" help:"Files or directories of records: .json, .jsonl, .ndjson, each also .zst or .gz."`
	Rate  int      `placeholder:"N" help:"Produce at most this many events a second."`
	target
}

func (c *replayCmd) Run(s *session) error {
	files, err := ingest.Files(c.Paths)
	if err != nil {
		return err
	}
	conn, err := c.open(s, gate.Options{})
	if err != nil {
		return err
	}
	defer conn.close()
	p := conn.Producer(c.Topic)
	door := ingest.Door{Policy: conn.table.Policy, Admit: true, Rate: c.Rate, EventTime: ingest.OfRecord, Now: time.Now().UTC(), Name: "replay"}
	bar := progress.New(s.stderr, "load", ingest.Size(files), true)
	sum, err := door.Replay(conn.ctx, files, p, bar.Add)
	if err := errors.Join(cause(conn.ctx, err), p.Close()); err != nil {
		return err
	}
	bar.Done(fmt.Sprintf("%d records of %d files acknowledged", sum.Produced, sum.Files))
	sum.Write(s.stdout)
	return nil
}

// cause is why ctx ended, where err only says that it did.
func cause(ctx context.Context, err error) error {
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

type tenantsCmd struct {
	File            string `arg:"" help:"Tenant records, one JSON object a line." type:"existingfile"`
	Topic           string `default:"tenants" help:"Compacted topic of tenant records; made when absent."`
	kafkaio.Connect `embed:""`
}

func (c *tenantsCmd) Run(s *session) error {
	client, err := c.Dial(options(s))
	if err != nil {
		return err
	}
	defer client.Close()
	n, err := ingest.ProduceTenants(s.ctx, client, c.Topic, c.File, time.Now())
	if err != nil {
		return err
	}
	fmt.Fprintf(s.stdout, "%d tenant records acknowledged\n", n)
	return nil
}
