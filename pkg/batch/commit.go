package batch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"time"

	"winnow/pkg/schema"
)

// Version is the version of the commit file that this package writes, and the
// only one that it reads.
const Version = 3

// ErrCommitted is returned by Writer.Commit when another writer has committed
// the range first. The writer is finished and its files are gone; resume at
// Store.Next with a new one.
var ErrCommitted = errors.New("batch: another writer committed this range")

// Format is the format of data files.
type Format uint8

// The formats. Both hold the same columns; JSONL is compressed with zstd.
const (
	Parquet Format = iota
	JSONL
)

var formatNames = [...]string{"parquet", "jsonl"}
var extensions = [...]string{".parquet", ".jsonl.zst"}

func (f Format) String() string { return formatNames[f] }

// MarshalText writes the format's word, as it stands in commits and flags.
func (f Format) MarshalText() ([]byte, error) { return []byte(formatNames[f]), nil }

// UnmarshalText reads what MarshalText writes.
func (f *Format) UnmarshalText(b []byte) error {
	i := slices.Index(formatNames[:], string(b))
	if i < 0 {
		return errors.New("the format is neither parquet nor jsonl")
	}
	*f = Format(i)
	return nil
}

// Provenance says how a run read the policy. It is recorded in every commit,
// so that a choice an operator made by flag can be found from the data.
type Provenance struct {
	TenantsTopicID string `json:"tenants_topic_id"` // the broker's id of the tenants topic, "" if unknown
	TenantsOffset  int64  `json:"tenants_offset"`   // the last offset of it that the commit obeyed, -1 if none
	UnsetSettings  string `json:"unset_settings"`   // reading of absent settings: closed, vendor
	AssumeConsent  bool   `json:"assume_consent"`   // replay of the operator's own records
	EventTime      string `json:"event_time"`       // record, replay
}

// Commit is one link of a partition's chain. It never changes once created.
//
// Its counts are a double entry, which Check verifies: every offset of the
// range is a record or a hole, and every record is, once for each stream,
// either in it or dropped for one reason.
type Commit struct {
	Version      int              `json:"version"`
	Topic        string           `json:"topic"`
	TopicID      string           `json:"topic_id"`
	Partition    int              `json:"partition"`
	Start        int64            `json:"start"`   // first offset
	End          int64            `json:"end"`     // one past the last offset
	Genesis      bool             `json:"genesis"` // first of its chain; [0, Start) was never read
	Attempt      string           `json:"attempt"` // UUIDv4 of the try that won
	Created      time.Time        `json:"created"` // UTC
	Format       Format           `json:"format"`
	Files        []File           `json:"files"`
	Records      int64            `json:"records"` // offsets added, dropped or rejected
	Holes        int64            `json:"holes"`   // offsets without a record: control batches, compaction
	InApp        InAppCounts      `json:"in_app"`
	Metadata     MetadataCounts   `json:"metadata"`
	Spans        map[string]int64 `json:"spans"` // identifiers removed, by label
	ScrubVersion string           `json:"scrub_version"`
	Provenance   Provenance       `json:"provenance"`
}

// InAppCounts are a commit's counts of the in-app stream.
type InAppCounts struct {
	Documents int64                   `json:"documents"`
	Rows      int64                   `json:"rows"` // one for each part of a document
	Drops     map[schema.Reason]int64 `json:"drops"`
}

// MetadataCounts are a commit's counts of the metadata stream.
type MetadataCounts struct {
	Counted int64                   `json:"counted"` // records in the metadata files
	Drops   map[schema.Reason]int64 `json:"drops"`
}

// The streams that a File may belong to.
const (
	StreamInApp      = "in-app"
	StreamMetadata   = "metadata"
	StreamQuarantine = "quarantine"
	StreamSeen       = "seen"
)

// File is one data file of a commit.
type File struct {
	Path   string `json:"path"` // relative to the dataset's root, with slashes
	Stream string `json:"stream"`
	Region string `json:"region,omitempty"` // of in-app files
	Month  string `json:"month,omitempty"`  // YYYY-MM, of in-app and metadata files
	Rows   int64  `json:"rows"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"` // lower-case hex
}

// extends returns the tip of the chain that the commit was added to; it is the
// number in the names of the commit and of its files. A genesis commit extends
// the empty chain, whose tip is 0, even when the log began later: two workers
// that read different log starts (retention moved in between) must collide on
// one name, or both would create a first commit and the chain would fork.
func (c *Commit) extends() int64 {
	if c.Genesis {
		return 0
	}
	return c.Start
}

func (c *Commit) partition() Partition { return Partition{c.Topic, c.Partition} }

// Source returns the coordinates of the commit's first offset.
func (c *Commit) Source() schema.Source {
	return schema.Source{Topic: c.Topic, Partition: c.Partition, Offset: c.Start}
}

// path returns the only path that the file may have if the attempt wrote it:
// the commit's own attempt, or that of one of its generations, else 0.
func (c *Commit) path(f *File, generation int, attempt string) string {
	name := fmt.Sprintf("%020d-%s", c.extends(), attempt)
	if generation > 0 {
		name = fmt.Sprintf("%020d-g%06d-%s", c.extends(), generation, attempt)
	}
	switch f.Stream {
	case StreamQuarantine:
		return path.Join(quarantineDir, c.Topic, strconv.Itoa(c.Partition), name+".jsonl")
	case StreamSeen:
		return path.Join(seenDir, c.Topic, strconv.Itoa(c.Partition), name+".ids")
	}
	name = fmt.Sprintf("%s-%d-%s%s", c.Topic, c.Partition, name, extensions[c.Format])
	if f.Stream == StreamMetadata {
		return path.Join(metadataDir, "window="+f.Month, name)
	}
	return path.Join(inAppDir, "region="+f.Region, "dt="+f.Month+"-01", name)
}

var (
	commitName = regexp.MustCompile(`^(\d{20})\.json$`)
	tmpName    = regexp.MustCompile(`^\.(\d{20})-` + uuidPattern + `\.tmp$`)
)

func commitFile(p Partition, extends int64) string {
	return path.Join(p.commits(), fmt.Sprintf("%020d.json", extends))
}

// readCommit reads the commit that extends the chain at an offset; the error
// wraps fs.ErrNotExist when there is none.
func (s *Store) readCommit(ctx context.Context, p Partition, extends int64) (Commit, error) {
	name := commitFile(p, extends)
	b, err := s.storage.read(ctx, name)
	if err != nil {
		return Commit{}, err
	}
	var v struct{ Version int }
	if err := json.Unmarshal(b, &v); err != nil {
		return Commit{}, fmt.Errorf("commit %s does not parse: %w", name, err)
	}
	if v.Version != Version {
		return Commit{}, fmt.Errorf("commit %s has version %d, this program reads %d", name, v.Version, Version)
	}
	var c Commit
	if err := decodeStrict(b, &c); err != nil {
		return Commit{}, fmt.Errorf("commit %s does not parse: %w", name, err)
	}
	switch {
	case c.partition() != p:
		err = fmt.Errorf("commit %s says that it is of %v", name, c.partition())
	case c.extends() != extends:
		err = fmt.Errorf("commit %s says that it starts at %d", name, c.Start)
	case c.Start < 0 || c.End <= c.Start:
		err = fmt.Errorf("commit %s covers no offsets: [%d, %d)", name, c.Start, c.End)
	}
	return c, err
}

// names returns the numbers of the partition's commits, ascending, and the
// entries of its directory that are none.
func (s *Store) names(ctx context.Context, p Partition) (extends []int64, others []string, err error) {
	err = s.storage.list(ctx, p.commits(), false, func(e entry) error {
		if m := commitName.FindStringSubmatch(path.Base(e.name)); m != nil {
			if n, err := strconv.ParseInt(m[1], 10, 64); err == nil {
				extends = append(extends, n)
				return nil
			}
		}
		others = append(others, e.name)
		return nil
	})
	slices.Sort(extends) // not every store lists in order
	return extends, others, err
}

// linked is names for who reads the whole chain. A directory that is listed
// while commits are added may show a later one and not an earlier one. What the
// first listing shows last was made after all before it, so the second shows
// those.
func (s *Store) linked(ctx context.Context, p Partition) (extends []int64, others []string, err error) {
	first, others, err := s.names(ctx, p)
	if err != nil || len(first) == 0 {
		return nil, others, err
	}
	extends, others, err = s.names(ctx, p)
	n, found := slices.BinarySearch(extends, first[len(first)-1])
	if found {
		n++
	}
	return extends[:n], others, err
}

// tip returns the last commit of the chain, or a Commit with End 0 when there
// is none. It reads names and one commit; only Chain and Check read them all.
func (s *Store) tip(ctx context.Context, p Partition) (Commit, error) {
	if err := p.validate(); err != nil {
		return Commit{}, err
	}
	ns, _, err := s.names(ctx, p)
	if err != nil || len(ns) == 0 {
		return Commit{}, err
	}
	return s.readCommit(ctx, p, ns[len(ns)-1])
}

// Next returns the offset to resume at: the end of the partition's last
// commit, or 0 for an empty chain.
func (s *Store) Next(topic string, partition int) (int64, error) {
	c, err := s.tip(context.Background(), Partition{topic, partition})
	return c.End, err
}

// Chain returns the partition's commits in order, after checking that they
// join: each starts where the one before it ended. Read data through it (or
// through Next's range), never by listing the data directories.
func (s *Store) Chain(topic string, partition int) ([]Commit, error) {
	ctx, p := context.Background(), Partition{topic, partition}
	if err := p.validate(); err != nil {
		return nil, err
	}
	ns, _, err := s.linked(ctx, p)
	if err != nil {
		return nil, err
	}
	chain := make([]Commit, 0, len(ns))
	for _, n := range ns {
		c, err := s.readCommit(ctx, p, n)
		if err != nil {
			return nil, err
		}
		if problem := joins(chain, &c); problem != "" {
			return nil, fmt.Errorf("chain of %v is broken at %d: %s", p, c.Start, problem)
		}
		chain = append(chain, c)
	}
	return chain, nil
}

// joins says why c can not follow the chain, or nothing.
func joins(chain []Commit, c *Commit) string {
	if len(chain) == 0 {
		if !c.Genesis {
			return "the chain has no genesis commit: its first commits are missing"
		}
		return ""
	}
	last := &chain[len(chain)-1]
	switch {
	case c.Start > last.End:
		return fmt.Sprintf("gap: offsets [%d, %d) are in no commit", last.End, c.Start)
	case c.Start < last.End:
		return fmt.Sprintf("fork: offsets [%d, %d) are in two commits", c.Start, min(c.End, last.End))
	case c.TopicID != last.TopicID:
		return "the topic's id differs from the commit before it"
	case c.Provenance.TenantsTopicID == last.Provenance.TenantsTopicID && c.Provenance.TenantsOffset < last.Provenance.TenantsOffset:
		return fmt.Sprintf("it obeyed the tenants topic up to offset %d, the commit before it up to %d", c.Provenance.TenantsOffset, last.Provenance.TenantsOffset)
	}
	return ""
}

// create makes the commit visible and durable, or returns ErrCommitted. Its
// data must be durable already.
func (s *Store) create(ctx context.Context, c *Commit) error {
	b, err := json.MarshalIndent(c, "", " ")
	if err != nil {
		return err
	}
	tmp := path.Join(c.partition().commits(), fmt.Sprintf(".%020d-%s.tmp", c.extends(), c.Attempt))
	won, err := s.claim(ctx, commitFile(c.partition(), c.extends()), tmp, append(b, '\n'))
	if err == nil && !won {
		err = ErrCommitted
	}
	return err
}
