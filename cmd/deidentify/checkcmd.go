package main

import (
	"fmt"
	"text/tabwriter"

	"winnow/pkg/batch"
)

type checkCmd struct {
	Dir   string `arg:"" name:"dir|s3://bucket/prefix" help:"The data set."`
	Sweep bool   `help:"Then remove the orphan files that can no longer become part of it."`
}

func (c *checkCmd) Run(s *session) error {
	store, err := batch.Open(c.Dir)
	if err != nil {
		return err
	}
	r, err := store.Check(s.ctx)
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(s.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "partitions\t%d\ncommits\t%d\nfiles\t%d\ndocuments\t%d\nrows\t%d\nbytes\t%s\nrewritten commits\t%d\norphan files\t%d\n",
		r.Partitions, r.Commits, r.Files, r.Documents, r.Rows, bytesOf(r.Bytes), r.Generations, r.Orphans)
	if err := t.Flush(); err != nil {
		return err
	}
	for _, f := range r.Faults {
		fmt.Fprintf(s.stdout, "FAULT %s: %s\n", f.Coordinates, f.Problem)
	}
	if n := len(r.Faults); n > 0 {
		return fmt.Errorf("%w: %d in %s; the data set must not be used until they are explained", errCheck, n, c.Dir)
	}
	if c.Sweep {
		if err := store.Discard(s.ctx, r.Dead); err != nil {
			return err
		}
		fmt.Fprintf(s.stdout, "swept: %d files\n", len(r.Dead))
	}
	fmt.Fprintln(s.stdout, "whole: every chain joins, every hash and row count agrees")
	return nil
}
