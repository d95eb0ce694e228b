package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"winnow/pkg/batch"
	"winnow/pkg/schema"
)

// totals are sums over the commits of a data set.
type totals struct {
	commits, records, documents, rows, metadata int64
	files, bytes                                int64
	inAppDrops, metadataDrops                   map[schema.Reason]int64
	spans                                       map[string]int64
}

func sum(store *batch.Store) (totals, error) {
	t := totals{inAppDrops: map[schema.Reason]int64{}, metadataDrops: map[schema.Reason]int64{}, spans: map[string]int64{}}
	ps, err := store.Partitions()
	if err != nil {
		return t, err
	}
	for _, p := range ps {
		chain, err := store.Chain(p.Topic, p.Partition)
		if err != nil {
			return t, err
		}
		for _, c := range chain {
			t.commits++
			t.records += c.Records
			t.documents += c.InApp.Documents
			t.rows += c.InApp.Rows
			t.metadata += c.Metadata.Counted
			for r, n := range c.InApp.Drops {
				t.inAppDrops[r] += n
			}
			for r, n := range c.Metadata.Drops {
				t.metadataDrops[r] += n
			}
			for l, n := range c.Spans {
				t.spans[l] += n
			}
			t.files += int64(len(c.Files))
			for _, f := range c.Files {
				t.bytes += f.Bytes
			}
		}
	}
	return t, nil
}

// summarize prints what came of a replay, from what is committed.
func summarize(w io.Writer, store *batch.Store, l *loaded, took time.Duration) error {
	door := &l.door
	s, err := sum(store)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "\nrecords found        %8d  in %d files\n", door.Records, door.Files)
	for _, r := range slices.Sorted(maps.Keys(door.Dropped)) {
		fmt.Fprintf(w, "  not taken          %8d  %s\n", door.Dropped[r], r)
	}
	fmt.Fprintf(w, "read from the topic  %8d  %s in %s: %.0f records/s, %.1f MB/s\n", s.records, bytesOf(door.Bytes), took.Round(10*time.Millisecond),
		float64(s.records)/took.Seconds(), float64(door.Bytes)/1e6/took.Seconds())
	fmt.Fprintf(w, "  admitted in-app    %8d  documents, %d rows\n", s.documents, s.rows)
	fmt.Fprintf(w, "  admitted metadata  %8d  records\n", s.metadata)
	fmt.Fprintf(w, "committed            %8d  commits, %d files, %s\n\n", s.commits, s.files, bytesOf(s.bytes))

	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "in-app\tmetadata\t\t")
	for _, r := range slices.Sorted(maps.Keys(union(s.inAppDrops, s.metadataDrops))) {
		fmt.Fprintf(t, "%d\t%d\tdropped\t %s\n", s.inAppDrops[r], s.metadataDrops[r], r)
	}
	for _, l := range slices.Sorted(maps.Keys(s.spans)) {
		fmt.Fprintf(t, "%d\t\tremoved\t %s\n", s.spans[l], l)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	door.WriteDrops(w)
	l.writeNotes(w)
	return nil
}

func union[K comparable, V any](a, b map[K]V) map[K]V {
	u := maps.Clone(a)
	maps.Copy(u, b)
	return u
}

// writeNotes lists where admitted records left no text: the first of each
// reason in each file.
func (l *loaded) writeNotes(w io.Writer) {
	if len(l.notes) == 0 {
		return
	}
	fmt.Fprintf(w, "\nAdmitted, but without text to write (coordinates and reason):\n")
	slices.SortFunc(l.notes, func(a, b note) int {
		return cmp.Or(strings.Compare(a.file(), b.file()), strings.Compare(string(schema.ReasonOf(a.err)), string(schema.ReasonOf(b.err))),
			cmp.Compare(a.at.Partition, b.at.Partition), cmp.Compare(a.at.Offset, b.at.Offset))
	})
	for i := 0; i < len(l.notes); {
		n, j := l.notes[i], i+1
		for j < len(l.notes) && l.notes[j].file() == n.file() && schema.ReasonOf(l.notes[j].err) == schema.ReasonOf(n.err) {
			j++
		}
		more := ""
		if j > i+1 {
			more = fmt.Sprintf(", and %d more in this file", j-i-1)
		}
		fmt.Fprintf(w, "  %s (%s): %v%s\n", n.origin, n.at, n.err, more)
		i = j
	}
}

// bytesOf writes a number of bytes for people, in powers of ten.
func bytesOf(n int64) string {
	f, unit := float64(n), 0
	for f >= 1000 && unit < 4 {
		f /= 1000
		unit++
	}
	if unit == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %cB", f, " kMGT"[unit])
}
