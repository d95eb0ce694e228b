// Package batch is the dataset store: it writes scrubbed records to files,
// commits them exactly once, and checks that a dataset is what its commits say.
//
// A dataset lies in a directory or in a bucket. For each partition of the
// source topic it holds a linear chain of commits; a commit covers the
// half-open range of offsets that begins where the commit before it ended, and
// is created only if absent, so the chain can neither fork nor skip. Where to
// resume is in the chain, in the same atomic object as the data, and nowhere
// else: a Kafka group's offset is only a hint. docs/batch-format.md is the page
// of the format.
//
// What a reader may read is what commits name. Other files under the data
// directories belong to writers that run, crashed, or lost a race.
package batch

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
)

const (
	marker       = "_dataset.json"
	datasetValue = 2 // of the marker's member winnow_dataset: the version of the layout

	commitsDir     = "_commits"
	intentsDir     = "_intents"
	seenDir        = "_seen"
	generationsDir = "_generations"
	quarantineDir  = "_quarantine"
	inAppDir       = "in-app"
	metadataDir    = "metadata"
)

// dataDirs are the directories of the files that commits name.
var dataDirs = []string{seenDir, quarantineDir, inAppDir, metadataDir}

// Store is a dataset. It is safe for concurrent use, also by several
// processes; a Writer is not.
type Store struct {
	storage storage

	mu       sync.Mutex
	memories map[Partition]kept // of partitions that have no writer in this process
}

// bucketScheme begins the location of a dataset in a bucket.
const bucketScheme = "s3://"

// Create opens the dataset at a location, making it first if nothing is there:
// a directory, or s3://BUCKET/PREFIX. A place that holds anything else is
// refused.
func Create(location string) (*Store, error) {
	s, err := at(location, true)
	if err != nil {
		return nil, fmt.Errorf("create dataset: %w", err)
	}
	ctx := context.Background()
	if err := s.open(ctx); !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	es, err := s.entries(ctx, ".")
	if err != nil {
		return nil, fmt.Errorf("create dataset: %w", err)
	}
	for _, e := range es {
		// Another process may be creating the same dataset: its marker, or the
		// temporary name of it, can appear after we looked.
		if !strings.HasPrefix(e.name, marker) {
			return nil, fmt.Errorf("create dataset: %v is not empty and has no %s: not a dataset", s.storage, marker)
		}
	}
	if _, err := s.claim(ctx, marker, marker+".tmp-"+uuid.NewString(), fmt.Appendf(nil, "{\"winnow_dataset\":%d}\n", datasetValue)); err != nil {
		return nil, fmt.Errorf("create dataset: %w", err)
	}
	return s, s.open(ctx)
}

// Open opens an existing dataset. The error wraps fs.ErrNotExist when nothing
// is at the location, or something else.
func Open(location string) (*Store, error) {
	s, err := at(location, false)
	if err != nil {
		return nil, fmt.Errorf("open dataset: %w", err)
	}
	return s, s.open(context.Background())
}

// at names the storage of a location; a directory is made if make is set.
func at(location string, make bool) (*Store, error) {
	if strings.HasPrefix(location, bucketScheme) {
		b, err := openBucket(location)
		return &Store{storage: b}, err
	}
	d := newDisk(location)
	if make {
		if err := d.makeRoot(); err != nil {
			return nil, err
		}
	}
	return &Store{storage: d}, nil
}

func (s *Store) open(ctx context.Context) error {
	b, err := s.storage.read(ctx, marker)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open dataset: %v is not a dataset: %w", s.storage, err)
	} else if err != nil {
		return fmt.Errorf("open dataset: %w", err)
	}
	var m struct {
		Dataset int `json:"winnow_dataset"`
	}
	if err := decodeStrict(b, &m); err != nil {
		return fmt.Errorf("open dataset: %s: %w", marker, err)
	}
	if m.Dataset != datasetValue {
		return fmt.Errorf("open dataset: %v has layout version %d, this program reads %d", s.storage, m.Dataset, datasetValue)
	}
	return nil
}

// String returns where the dataset lies.
func (s *Store) String() string { return s.storage.String() }

// Partition names one partition of a source topic; it has one chain.
type Partition struct {
	Topic     string
	Partition int
}

func (p Partition) String() string { return fmt.Sprintf("%s/%d", p.Topic, p.Partition) }

// maxTopic keeps the longest data file name within the 255 bytes that file
// systems allow.
const maxTopic = 255 - len("-2147483647-00000000000000000000-g000000-00000000-0000-0000-0000-000000000000.jsonl.zst")

var topicName = regexp.MustCompile(`^[a-zA-Z0-9._-]+$`) // Kafka's own rule

func (p Partition) validate() error {
	switch {
	case !topicName.MatchString(p.Topic) || p.Topic == "." || p.Topic == "..":
		return errors.New("batch: the topic's name is not one that Kafka allows")
	case len(p.Topic) > maxTopic:
		return fmt.Errorf("batch: the topic's name is longer than %d bytes", maxTopic)
	case p.Partition < 0 || p.Partition > 1<<31-1:
		return fmt.Errorf("batch: %v: the partition is out of range", p)
	}
	return nil
}

// commits returns the directory of the partition's chain, relative to the root.
func (p Partition) commits() string { return path.Join(commitsDir, p.Topic, strconv.Itoa(p.Partition)) }

// Partitions lists the partitions that have a chain, by topic and number.
func (s *Store) Partitions() ([]Partition, error) {
	ps, _, err := s.partitions(context.Background())
	return ps, err
}

// partitions also returns the paths under _commits that are no partition's.
func (s *Store) partitions(ctx context.Context) (ps []Partition, strays []string, err error) {
	topics, err := s.entries(ctx, commitsDir)
	if err != nil {
		return nil, nil, err
	}
	for _, t := range topics {
		if !t.dir {
			strays = append(strays, t.name)
			continue
		}
		nums, err := s.entries(ctx, t.name)
		if err != nil {
			return nil, nil, err
		}
		for _, n := range nums {
			base := path.Base(n.name)
			i, err := strconv.Atoi(base)
			p := Partition{path.Base(t.name), i}
			if err != nil || strconv.Itoa(i) != base || !n.dir || p.validate() != nil {
				strays = append(strays, n.name)
				continue
			}
			ps = append(ps, p)
		}
	}
	slices.SortFunc(ps, func(a, b Partition) int {
		return cmp.Or(strings.Compare(a.Topic, b.Topic), a.Partition-b.Partition)
	})
	return ps, strays, nil
}

// dataFile is a file that lies under the data directories, read from its path.
type dataFile struct {
	path       string // relative to the root, with slashes
	part       Partition
	extends    int64 // see Commit.extends
	generation int   // that it was written for, or 0
	attempt    string
	foreign    bool // the path is not one that a writer makes; only path and modified are set

	modified time.Time
}

const uuidPattern = `[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}`

// The topic may itself hold '-' and digits; what follows it has a fixed shape
// up to the end, so there is one way to read a name.
var dataNames = []*regexp.Regexp{
	regexp.MustCompile(`^(?:in-app/region=[a-z0-9-]+/dt=\d{4}-\d\d-01|metadata/window=\d{4}-\d\d)/([^/]+)-(\d+)-(\d{20})(?:-g(\d{6}))?-(` + uuidPattern + `)\.(?:parquet|jsonl\.zst)$`),
	regexp.MustCompile(`^_quarantine/([^/]+)/(\d+)/(\d{20})()-(` + uuidPattern + `)\.jsonl$`),
	regexp.MustCompile(`^_seen/([^/]+)/(\d+)/(\d{20})()-(` + uuidPattern + `)\.ids$`),
}

func parseDataFile(rel string) dataFile {
	for _, re := range dataNames {
		m := re.FindStringSubmatch(rel)
		if m == nil {
			continue
		}
		num, err1 := strconv.Atoi(m[2])
		ext, err2 := strconv.ParseInt(m[3], 10, 64)
		gen, _ := strconv.Atoi(m[4]) // six digits, or none
		p := Partition{m[1], num}
		if err1 != nil || err2 != nil || strconv.Itoa(num) != m[2] || p.validate() != nil || m[4] != "" && gen == 0 {
			break
		}
		return dataFile{path: rel, part: p, extends: ext, generation: gen, attempt: m[5]}
	}
	return dataFile{path: rel, foreign: true}
}

// dataFiles lists what lies under the data directories.
func (s *Store) dataFiles(ctx context.Context) (out []dataFile, err error) {
	for _, d := range dataDirs {
		err := s.storage.list(ctx, d, true, func(e entry) error {
			f := parseDataFile(e.name)
			f.modified = e.modified
			out = append(out, f)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// decodeStrict decodes exactly one JSON value without unknown members.
func decodeStrict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("data after the JSON value")
	}
	return nil
}
