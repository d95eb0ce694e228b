package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"winnow/internal/ingest"
	"winnow/internal/kafkaio"
	"winnow/pkg/batch"
	"winnow/pkg/gate"
)

type runCmd struct {
	Out             string        `required:"" placeholder:"DIR|s3://BUCKET/PREFIX" help:"The data set; made when it does not exist, gone on with when it does. Credentials of a bucket come from where the AWS tools look for them; ?region=, ?endpoint= and ?use_path_style=true may follow."`
	Topic           string        `default:"events" help:"Topic of events."`
	TenantsTopic    string        `default:"tenants" help:"Compacted topic of tenant records, keyed by tenant."`
	Group           string        `default:"winnow" help:"Consumer group."`
	Format          batch.Format  `enum:"parquet,jsonl" default:"parquet" help:"Format of data files: parquet or jsonl (zstd JSON Lines)."`
	UnsetSettings   gate.Unset    `enum:"closed,vendor" default:"closed" help:"Reading of settings that nobody has set: closed, or the vendor's published defaults. Recorded in every commit."`
	SessionTimeout  time.Duration `default:"30s" help:"A worker that the group does not hear from for this long loses its partitions to the others."`
	LogLevel        slog.Level    `default:"INFO" help:"DEBUG, INFO, WARN or ERROR. No level logs content."`
	flushLimits     `embed:""`
	kafkaio.Connect `embed:""`
}

func (c *runCmd) Run(s *session) error {
	err := c.run(s)
	if errors.Is(err, context.Canceled) && s.ctx.Err() != nil {
		return nil // asked to stop before it had begun: there was nothing to commit
	}
	return err
}

func (c *runCmd) run(s *session) error {
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
	policy, offset, err := readPolicy(s.ctx, client, c.TenantsTopic, gate.Options{Unset: c.UnsetSettings})
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
	log.Info("working", "topic", c.Topic, "partitions", len(info.Partitions), "group", c.Group, "tenants", policy.Len(), "tenants_offset", offset, "out", store.String())
	w := &worker{
		client: client, store: store, policy: policy, log: log, now: s.now,
		topic: c.Topic, group: c.Group, flush: c.flushLimits,
		opts: batch.Options{Format: c.Format, TopicID: info.ID, Provenance: batch.Provenance{
			TenantsOffset: offset, UnsetSettings: c.UnsetSettings.String(), EventTime: string(ingest.OfRecord)}},
	}
	if err := w.run(s.ctx); err != nil {
		return err
	}
	log.Info("stopped; what was read is committed")
	return nil
}
