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

type replayCmd struct {
	Paths           []string `arg:"" name:"path" help:"Files or directories of records: .json, .jsonl, .ndjson, each also .zst or .gz."`
	Topic           string   `default:"events" help:"Topic of events; made when absent."`
	Partitions      int      `default:"12" help:"Partitions of the topic when it is made."`
	Rate            int      `placeholder:"N" help:"Produce at most this many events a second."`
	TenantsTopic    string   `default:"tenants" help:"Topic of tenant records; names the tenant of a record that carries only its host."`
	kafkaio.Connect `embed:""`
}

func (c *replayCmd) Run(s *session) error {
	client, err := c.Dial(options(s))
	if err != nil {
		return err
	}
	defer client.Close()
	table, ctx, stop, err := follow(s, client, c.TenantsTopic, gate.Options{})
	if err != nil {
		return err
	}
	defer stop()
	if err := ingest.EnsureEvents(s.ctx, client, c.Topic, c.Partitions); err != nil {
		return err
	}
	files, err := ingest.Files(c.Paths)
	if err != nil {
		return err
	}
	p := client.Producer(c.Topic)
	door := ingest.Door{Policy: table.Policy, Admit: true, Rate: c.Rate, EventTime: ingest.OfRecord, Now: time.Now().UTC(), Name: "replay"}
	bar := progress.New(s.stderr, "load", ingest.Size(files), true)
	sum, err := door.Replay(ctx, files, p, bar.Add)
	if err := errors.Join(cause(ctx, err), p.Close()); err != nil {
		return err
	}
	bar.Done(fmt.Sprintf("%d records of %d files acknowledged", sum.Produced, sum.Files))
	sum.Write(s.stdout)
	return nil
}

// maxAge is how long a door may go without having seen the end of the tenants
// topic.
const maxAge = time.Minute

// follow reads the tenants topic and follows it until stop is called. If it
// can't be relied on any more the returned context ends, with the reason as its
// cause.
func follow(s *session, client *kafkaio.Client, topic string, o gate.Options) (table *tenants.Table, ctx context.Context, stop func(), err error) {
	table, err = tenants.Load(s.ctx, client, topic, tenants.Options{Gate: o, MaxAge: maxAge, Log: slog.New(slog.NewTextHandler(s.stderr, nil))})
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, fail := context.WithCancelCause(s.ctx)
	following, enough := context.WithCancel(context.WithoutCancel(s.ctx)) // also while a door drains
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := table.Follow(following); err != nil {
			fail(err)
		}
	}()
	return table, ctx, func() { enough(); <-done; fail(nil) }, nil
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
