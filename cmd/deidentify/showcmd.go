package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"winnow/pkg/batch"
	"winnow/pkg/schema"
)

type showCmd struct {
	Quarantine showQuarantineCmd `cmd:"" help:"List the records that could not be read, one JSON object a line, as ingest kafka --offsets takes them."`
}

type showQuarantineCmd struct {
	Out     string        `arg:"" name:"dir|s3://bucket/prefix" help:"The data set."`
	Reason  schema.Reason `help:"Only this reason."`
	Topic   string        `help:"Only this topic."`
	Since   time.Time     `placeholder:"TIME" help:"Only what was read at or after this time, such as 2026-11-25T12:00:00Z."`
	Summary bool          `help:"Print how many there are of each reason and partition instead, and when the first and the last was read."`
}

func (c *showQuarantineCmd) Run(s *session) error {
	store, err := batch.Open(c.Out)
	if err != nil {
		return err
	}
	lines := json.NewEncoder(s.stdout)
	counts := map[quarantineGroup]quarantineCount{}
	err = store.ReadQuarantine(s.ctx, func(r schema.Rejected) error {
		switch {
		case c.Reason != "" && r.Reason != c.Reason, c.Topic != "" && r.Topic != c.Topic, r.Time.Before(c.Since):
			return nil
		case !c.Summary:
			return lines.Encode(r)
		}
		g := quarantineGroup{r.Reason, batch.Partition{Topic: r.Topic, Partition: r.Partition}}
		n, ok := counts[g]
		if !ok || r.Time.Before(n.first) {
			n.first = r.Time
		}
		if r.Time.After(n.last) {
			n.last = r.Time
		}
		n.records++
		counts[g] = n
		return nil
	})
	if err != nil || !c.Summary {
		return err
	}
	groups := slices.SortedFunc(maps.Keys(counts), func(a, b quarantineGroup) int {
		return cmp.Or(cmp.Compare(a.reason, b.reason), cmp.Compare(a.at.Topic, b.at.Topic), a.at.Partition-b.at.Partition)
	})
	t := tabwriter.NewWriter(s.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "reason\tpartition\trecords\tfirst\tlast")
	for _, g := range groups {
		n := counts[g]
		fmt.Fprintf(t, "%s\t%v\t%d\t%s\t%s\n", g.reason, g.at, n.records, n.first.Format(time.RFC3339), n.last.Format(time.RFC3339))
	}
	return t.Flush()
}

type quarantineGroup struct {
	reason schema.Reason
	at     batch.Partition
}

type quarantineCount struct {
	records     int64
	first, last time.Time
}
