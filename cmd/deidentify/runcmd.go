package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"winnow/internal/ingest"
	"winnow/internal/kafkaio"
	"winnow/internal/tenants"
	"winnow/pkg/batch"
	"winnow/pkg/gate"
)

type runCmd struct {
	Out                string           `required:"" placeholder:"DIR|s3://BUCKET/PREFIX" help:"The data set; made when it does not exist, gone on with when it does. Credentials of a bucket come from where the AWS tools look for them; ?region=, ?endpoint= and ?use_path_style=true may follow."`
	Topic              string           `default:"events" help:"Topic of events."`
	TenantsTopic       string           `default:"tenants" help:"Compacted topic of tenant records, keyed by tenant."`
	TenantsMaxAge      time.Duration    `default:"1m" help:"Stop when the end of the tenants topic has not been seen for this long: an opt-out may lie there."`
	Group              string           `default:"winnow" help:"Consumer group."`
	Format             batch.Format     `enum:"parquet,jsonl" default:"parquet" help:"Format of data files: parquet or jsonl (zstd JSON Lines)."`
	UnsetSettings      gate.Unset       `enum:"closed,vendor" default:"closed" help:"Reading of settings that nobody has set: closed, or the vendor's published defaults. Recorded in every commit."`
	AssumeConsent      bool             `help:"Admit the records of your own that a door took with --assume-consent. Recorded in every commit."`
	EventTime          ingest.EventTime `enum:"record,replay" default:"record" help:"The time that the doors gave to events of your own: theirs, or that of the replay, which needs --assume-consent. Recorded in every commit."`
	AcceptTenantsTopic string           `placeholder:"ID" help:"Id of a tenants topic that was made again, to go on with; the error that asks for it names it."`
	SessionTimeout     time.Duration    `default:"30s" help:"A worker that the group does not hear from for this long loses its partitions to the others."`
	LogLevel           slog.Level       `default:"INFO" help:"DEBUG, INFO, WARN or ERROR. No level logs content."`
	flushLimits        `embed:""`
	kafkaio.Connect    `embed:""`
}

func (c *runCmd) Run(s *session) error {
	err := c.run(s)
	if errors.Is(err, context.Canceled) && s.ctx.Err() != nil {
		return nil // asked to stop before it had begun: there was nothing to commit
	}
	return err
}

func (c *runCmd) run(s *session) error {
	if c.EventTime == ingest.OfReplay && !c.AssumeConsent {
		return usageError("--event-time replay is for one's own records: it needs --assume-consent")
	}
	log := slog.New(slog.NewTextHandler(s.stderr, &slog.HandlerOptions{Level: c.LogLevel}))
	store, err := batch.Create(c.Out)
	if err != nil {
		return err
	}
	client, err := c.Dial(kafkaio.Options{ClientID: "winnow", SessionTimeout: c.SessionTimeout, OnRetry: func(err error) {
		log.Warn("the brokers do not answer as they should; trying again", "error", err)
	}})
	if err != nil {
		return err
	}
	defer client.Close()
	log.Info("probing the store", "out", store.String())
	if err := store.Probe(s.ctx); err != nil {
		return err
	}
	table, err := tenants.Load(s.ctx, client, c.TenantsTopic, tenants.Options{Gate: gate.Options{Unset: c.UnsetSettings, AssumeConsent: c.AssumeConsent}, MaxAge: c.TenantsMaxAge, Log: log})
	if err != nil {
		return err
	}
	info, err := client.Topic(s.ctx, c.Topic)
	for errors.Is(err, kafkaio.ErrUnknownTopic) {
		log.Warn("the topic does not exist yet; waiting for it", "topic", c.Topic)
		select {
		case <-time.After(2 * time.Second):
			info, err = client.Topic(s.ctx, c.Topic)
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
	}
	if err != nil {
		return err
	}
	log.Info("working", "topic", c.Topic, "partitions", len(info.Partitions), "group", c.Group, "tenants", table.Policy.Len(), "tenants_offset", table.Offset(), "out", store.String())
	w := &worker{
		client: client, store: store, policy: table.Policy, table: table, log: log, now: s.now,
		topic: c.Topic, group: c.Group, flush: c.flushLimits,
		opts: batch.Options{Format: c.Format, TopicID: info.ID, Provenance: batch.Provenance{
			TenantsTopicID: table.TopicID, UnsetSettings: c.UnsetSettings.String(), AssumeConsent: c.AssumeConsent, EventTime: string(c.EventTime)}, AcceptTenantsTopic: c.AcceptTenantsTopic},
	}
	if err := w.run(s.ctx); err != nil {
		if other := (*batch.TenantsTopicError)(nil); errors.As(err, &other) {
			return fmt.Errorf("%w. If it holds every record that the old one held, with the same revisions or higher, start once with --accept-tenants-topic %s", err, other.Is)
		}
		return err
	}
	log.Info("stopped; what was read is committed")
	return nil
}
