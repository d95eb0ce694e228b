package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"winnow/internal/ingest"
	"winnow/internal/progress"
	"winnow/pkg/gate"
)

type kafkaCmd struct {
	From       string `required:"" placeholder:"TOPIC" help:"Topic to read: connectors' output, CloudEvents in binary mode, or events of ours."`
	Offsets    string `xor:"mode" placeholder:"FILE" type:"existingfile" help:"Only produce again the records that these quarantine lines name (JSON Lines with topic, partition, offset), outside of the group. Those refused again are counted: the exit code is 0."`
	Drain      bool   `xor:"mode" help:"Stop at the end that each partition has now. It must be alone in its group, for it reads every partition."`
	Group      string `default:"winnow-ingest" help:"Consumer group; its offsets are where it goes on."`
	Quarantine string `placeholder:"FILE" help:"Append the coordinates and reasons of records that could not be taken, ready for --offsets. Each process needs a file of its own."`
	target
}

// Validate refuses a loop that feeds itself.
func (c *kafkaCmd) Validate() error {
	if c.From == c.Topic && c.Offsets == "" {
		return errors.New("--from and --topic are one topic, so each event would come again for ever; give --offsets FILE to produce some of them again")
	}
	return nil
}

func (c *kafkaCmd) Run(s *session) error {
	conn, err := c.open(s, gate.Options{})
	if err != nil {
		return err
	}
	defer conn.close()
	d := &ingest.Raw{
		Client: conn.Client, Policy: conn.table.Policy, From: c.From, Out: conn.Producer(c.Topic), Name: "kafka", Now: time.Now,
		Progress: func(int64) {}, Warn: func(err error) { fmt.Fprintln(s.stderr, "ingest: going on after:", err) },
	}
	if c.Quarantine != "" {
		if d.Quarantine, err = ingest.OpenQuarantine(c.Quarantine); err != nil {
			return err
		}
		defer d.Quarantine.Close()
	}
	if c.Offsets != "" {
		err = c.redrive(conn.ctx, s, d)
	} else {
		err = c.consume(conn.ctx, s, d)
	}
	return errors.Join(cause(conn.ctx, err), d.Out.Close())
}

// consume works in the group until it is stopped or, with --drain, done. What
// was counted is printed whatever ended it.
func (c *kafkaCmd) consume(ctx context.Context, s *session, d *ingest.Raw) error {
	var drain map[int]int64
	var bar *progress.Bar
	if c.Drain {
		info, err := d.Client.Topic(s.ctx, c.From)
		if err != nil {
			return err
		}
		ranges, err := d.Client.Offsets(s.ctx, c.From, info.Partitions)
		if err != nil {
			return err
		}
		total := int64(0)
		drain = map[int]int64{}
		for p, r := range ranges {
			drain[p] = r.End
			total += r.End - r.Start
		}
		bar = progress.New(s.stderr, "load", total, false)
		d.Progress = bar.Add
	} else {
		fmt.Fprintf(s.stderr, "ingest: reading topic %s in group %s; stop with SIGTERM\n", c.From, c.Group)
	}
	sum, err := d.Consume(ctx, c.Group, drain)
	if err == nil && s.ctx.Err() == nil {
		err = context.Cause(ctx) // Consume ends with its context, whatever ended that
	}
	if bar != nil {
		bar.Done(fmt.Sprintf("%d records, %d events acknowledged", sum.Records, sum.Produced))
	}
	sum.Write(s.stdout)
	return err
}

func (c *kafkaCmd) redrive(ctx context.Context, s *session, d *ingest.Raw) error {
	f, err := os.Open(c.Offsets)
	if err != nil {
		return err
	}
	defer f.Close()
	offsets, others, err := ingest.ReadOffsets(f, c.From)
	if err != nil {
		return fmt.Errorf("%s: nothing of it was read:\n%w", c.Offsets, err)
	}
	total := int64(0)
	for _, list := range offsets {
		total += int64(len(list))
	}
	bar := progress.New(s.stderr, "re-drive", total, false)
	d.Progress = bar.Add
	sum, err := d.Redrive(ctx, offsets)
	bar.Done(fmt.Sprintf("%d events acknowledged", sum.Produced))
	fmt.Fprintf(s.stdout, "records listed %d, and %d lines of other topics\n", total, others)
	sum.WriteRedriven(s.stdout)
	return err
}
