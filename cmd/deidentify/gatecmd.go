package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"winnow/internal/ingest"
	"winnow/internal/kafkaio"
	"winnow/internal/tenants"
	"winnow/pkg/gate"
	"winnow/pkg/schema"
)

type gateCmd struct {
	Tenant        string         `required:"" help:"The site, as the tenants topic keys it."`
	At            time.Time      `placeholder:"TIME" help:"The present that is asked for, such as 2026-11-25T12:00:00Z; now if left out."`
	EventTime     time.Time      `placeholder:"TIME" help:"When the event happened; --at if left out."`
	Product       schema.Product `placeholder:"NAME" help:"jira, confluence or jira_service_management; all three if left out."`
	Project       string         `help:"Key of the event's project."`
	Space         string         `help:"Key of the event's space."`
	Host          string         `help:"Host that the event's links name."`
	Brokers       []string       `xor:"from" required:"" env:"KAFKA_BROKERS" help:"Kafka bootstrap servers, HOST:PORT."`
	Tenants       string         `type:"existingfile" xor:"from" required:"" placeholder:"FILE" help:"File of tenant records, in place of the tenants topic."`
	TenantsTopic  string         `default:"tenants" help:"Topic of tenant records."`
	UnsetSettings gate.Unset     `enum:"closed,vendor" default:"closed" help:"Reading of settings that nobody has set."`
	JSON          bool           `help:"Print JSON, a line for each product."`

	kafkaio.Security `embed:""`
}

// Help is printed below the summary by --help.
func (c *gateCmd) Help() string {
	return `Prints for each product which streams are collected, the row of the decision table that decided, and the fields of
tenant records that it rests on. It reads the tenants topic as the worker does, or a file:

  deidentify gate --tenant t-row21-reoptin --event-time 2026-09-15T00:00:00Z --tenants fixtures/tenants.jsonl

Exits 3 if no stream of any product is collected.`
}

func (c *gateCmd) Run(s *session) error {
	policy, err := c.policy(s)
	if err != nil {
		return err
	}
	at := c.At
	if at.IsZero() {
		at = s.now()
	}
	happened := c.EventTime
	if happened.IsZero() {
		happened = at
	}
	products := []schema.Product{schema.Jira, schema.Confluence, schema.ServiceManagement}
	if c.Product != "" {
		products = []schema.Product{c.Product}
	}
	collected := false
	for _, p := range products {
		e := schema.Envelope{Tenant: c.Tenant, Product: p, Time: happened.UTC(), Project: c.Project, Space: c.Space, Host: strings.ToLower(c.Host), Scoped: c.Project != "" || c.Space != ""}
		x := policy.Explain(e, at.UTC())
		collected = collected || x.Streams() != 0
		if c.JSON {
			err = json.NewEncoder(s.stdout).Encode(explained{p, x})
		} else {
			err = explain(s.stdout, p, x)
		}
		if err != nil {
			return err
		}
	}
	if !collected {
		return errGate
	}
	return nil
}

// policy reads the records from where the flags say.
func (c *gateCmd) policy(s *session) (*gate.Policy, error) {
	o := gate.Options{Unset: c.UnsetSettings}
	if c.Tenants == "" {
		client, err := c.Dial(c.Brokers, kafkaio.Options{ClientID: "winnow-gate"})
		if err != nil {
			return nil, err
		}
		defer client.Close()
		table, err := tenants.Load(s.ctx, client, c.TenantsTopic, tenants.Options{Gate: o, Log: slog.New(slog.NewTextHandler(s.stderr, nil))})
		if err != nil {
			return nil, err
		}
		return table.Policy, nil
	}
	f, err := os.Open(c.Tenants)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	msgs, err := ingest.Tenants(bufio.NewReader(f), nil, s.now())
	if err != nil {
		return nil, fmt.Errorf("%s:\n%w", c.Tenants, err)
	}
	policy := gate.NewPolicy(o)
	for _, m := range msgs {
		if err := policy.Put(string(m.Key), m.Value); err != nil && !errors.Is(err, gate.ErrRevision) {
			return nil, fmt.Errorf("%s: %w", c.Tenants, err)
		}
	}
	return policy, nil
}

// explained is what --json prints.
type explained struct {
	Product schema.Product
	gate.Explanation
}

func explain(w io.Writer, p schema.Product, x gate.Explanation) error {
	fmt.Fprintf(w, "%s: row %d, %s\n", p, x.Row, x.Sentence)
	if x.Org != "" {
		fmt.Fprintf(w, "  organisation %s, region %s\n", x.Org, x.Region)
	}
	if x.Warn {
		fmt.Fprintln(w, "  warning: a metadata opt-out is recorded on a plan that offers none (row 19)")
	}
	for _, stream := range []struct {
		name  string
		yes   bool
		why   schema.Reason
		cause gate.Cause
	}{{"metadata", x.Metadata, x.MetadataReason, x.MetadataCause}, {"in-app", x.InApp, x.InAppReason, x.InAppCause}} {
		verdict := "collected"
		if !stream.yes {
			verdict = "dropped, " + string(stream.why)
		}
		fmt.Fprintf(w, "  %-8s  %s, by what held on %s:\n", stream.name, verdict, stream.cause.At.UTC().Format(time.RFC3339))
		for _, b := range stream.cause.Because {
			since := ""
			if !b.Since.IsZero() {
				since = ", since " + b.Since.UTC().Format(time.RFC3339)
			}
			if _, err := fmt.Fprintf(w, "      %s: %s = %s%s\n", b.Tenant, b.Field, b.Value, since); err != nil {
				return err
			}
		}
	}
	return nil
}
