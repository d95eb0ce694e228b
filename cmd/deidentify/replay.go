package main

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"winnow/internal/broker"
	"winnow/internal/ingest"
	"winnow/internal/kafkaio"
	"winnow/internal/progress"
	"winnow/internal/tenants"
	"winnow/pkg/batch"
	"winnow/pkg/gate"
	"winnow/pkg/schema"
)

type replayCmd struct {
	Paths         []string         `arg:"" name:"path" help:"Files or directories of records: .json, .jsonl, .ndjson, each also .zst or .gz."`
	Out           string           `required:"" placeholder:"DIR|s3://BUCKET/PREFIX" help:"The data set to make; the place must be new or empty."`
	Tenants       string           `help:"File of tenant records, one JSON object a line." type:"existingfile"`
	AssumeConsent bool             `help:"The records are your own: those that carry no tenant belong to a built-in tenant that has agreed to everything. Recorded in every commit."`
	EventTime     ingest.EventTime `enum:"record,replay" default:"record" help:"Time of an event: of the record (a webhook's timestamp; the replay's for a REST export), or of the replay for all, which needs --assume-consent. Recorded in every commit."`
	Format        batch.Format     `enum:"parquet,jsonl" default:"parquet" help:"Format of data files: parquet or jsonl (zstd JSON Lines)."`
	UnsetSettings gate.Unset       `enum:"closed,vendor" default:"closed" help:"Reading of settings that nobody has set: closed, or the vendor's published defaults. Recorded in every commit."`
	Partitions    int              `default:"4" help:"Partitions of the events topic."`
	KeepBroker    string           `placeholder:"DIR" help:"Keep the embedded broker's data in this directory."`
	flushLimits   `embed:""`
}

const (
	eventsTopic  = "events"
	tenantsTopic = "tenants"
)

func (c *replayCmd) Run(s *session) error {
	switch {
	case c.EventTime == ingest.OfReplay && !c.AssumeConsent:
		return usageError("--event-time replay is for one's own records: it needs --assume-consent")
	case c.Tenants == "" && !c.AssumeConsent:
		return usageError("without --tenants no tenant is known and every record would be dropped; give --tenants FILE, or --assume-consent for records of your own")
	case c.Partitions < 1 || c.Partitions > 1000:
		return usageError("--partitions must be between 1 and 1000")
	}
	if c.AssumeConsent {
		fmt.Fprintln(s.stdout, "Consent is assumed: records that carry no tenant are taken as your own (tenant \"local\", both streams on).")
	}
	files, err := ingest.Files(c.Paths)
	if err != nil {
		return err
	}
	store, err := batch.Create(c.Out)
	if err != nil {
		return err
	}
	if ps, err := store.Partitions(); err != nil {
		return err
	} else if len(ps) > 0 {
		return fmt.Errorf("%v already holds a data set; a replay starts offsets of its own, so give it a new directory", store)
	}
	dir := c.KeepBroker
	if dir == "" {
		if dir, err = os.MkdirTemp("", "winnow-broker-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	b, err := broker.Start(dir, broker.Options{})
	if err != nil {
		return err
	}
	defer b.Close()
	client, err := kafkaio.Dial([]string{b.Addr()}, kafkaio.Options{ClientID: "winnow-replay"})
	if err != nil {
		return err
	}
	defer client.Close()

	t, err := c.load(s, client, files)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := c.work(s, client, store, t); err != nil {
		return err
	}
	return summarize(s.stdout, store, t, time.Since(began))
}

// loaded is what the first stage leaves for the second.
type loaded struct {
	table *tenants.Table
	door  ingest.Summary

	mu    sync.Mutex
	notes []note
}

// note is an admitted record that left no text, and why.
type note struct {
	origin string
	at     schema.Source
	err    error
}

// file is the origin without the line.
func (n *note) file() string {
	f, _, _ := strings.Cut(n.origin, "#")
	return f
}

// maxNotes bounds the memory of the list; the counts are always complete.
const maxNotes = 100_000

func (l *loaded) note(origin string, at schema.Source, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.notes) < maxNotes {
		l.notes = append(l.notes, note{origin, at, err})
	}
}

func (c *replayCmd) log(s *session) *slog.Logger {
	return slog.New(slog.NewTextHandler(s.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// load fills the topics through the door's own code.
func (c *replayCmd) load(s *session, client *kafkaio.Client, files []ingest.File) (*loaded, error) {
	if err := ingest.EnsureTenants(s.ctx, client, tenantsTopic); err != nil {
		return nil, err
	}
	if err := ingest.EnsureEvents(s.ctx, client, eventsTopic, c.Partitions); err != nil {
		return nil, err
	}
	if c.Tenants != "" {
		if _, err := ingest.ProduceTenants(s.ctx, client, tenantsTopic, c.Tenants, s.now()); err != nil {
			return nil, err
		}
	}
	l := &loaded{}
	var err error
	if l.table, err = tenants.Load(s.ctx, client, tenantsTopic, tenants.Options{
		Gate: gate.Options{Unset: c.UnsetSettings, AssumeConsent: c.AssumeConsent}, MaxAge: time.Minute, Log: c.log(s)}); err != nil {
		return nil, err
	}
	p := client.Producer(eventsTopic)
	defer p.Close()
	door := ingest.Door{Policy: l.table.Policy, AssumeConsent: c.AssumeConsent, EventTime: c.EventTime, Now: s.now().UTC(), Name: "replay"}
	bar := progress.New(s.stderr, "load", ingest.Size(files), true)
	l.door, err = door.Replay(s.ctx, files, p, bar.Add)
	if err != nil {
		return nil, err
	}
	bar.Done(fmt.Sprintf("%d records of %d files, %s", l.door.Produced, l.door.Files, bytesOf(l.door.Bytes)))
	return l, p.Close()
}

// work runs the worker until the topic is drained.
func (c *replayCmd) work(s *session, client *kafkaio.Client, store *batch.Store, l *loaded) error {
	info, err := client.Topic(s.ctx, eventsTopic)
	if err != nil {
		return err
	}
	ranges, err := client.Offsets(s.ctx, eventsTopic, info.Partitions)
	if err != nil {
		return err
	}
	drain, total := map[int]int64{}, int64(0)
	for p, r := range ranges {
		drain[p] = r.End
		total += r.End - r.Start
	}
	bar := progress.New(s.stderr, "work", total, false)
	w := &worker{
		client: client, store: store, policy: l.table.Policy, table: l.table, now: s.now, log: c.log(s),
		topic: eventsTopic, group: "winnow-replay", flush: c.flushLimits,
		opts: batch.Options{Format: c.Format, TopicID: info.ID, Provenance: batch.Provenance{
			TenantsTopicID: l.table.TopicID, UnsetSettings: c.UnsetSettings.String(), AssumeConsent: c.AssumeConsent, EventTime: string(c.EventTime)}},
		drain: drain, progress: bar.Add, noted: l.note,
	}
	if err := w.run(s.ctx); err != nil {
		return err
	}
	bar.Done(fmt.Sprintf("%d records", total))
	return nil
}
