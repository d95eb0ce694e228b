// Package batch is the dataset store: it writes scrubbed records to files,
// commits them exactly once, and checks that a dataset is what its commits say.
//
// A dataset is a directory. For each partition of the source topic it holds a
// linear chain of commits; a commit covers the half-open range of offsets that
// begins where the commit before it ended, and is created only if absent, so
// the chain can neither fork nor skip. Where to resume is in the chain, in the
// same atomic object as the data, and nowhere else: a Kafka group's offset is
// only a hint. docs/batch-format.md is the page of the on-disk format.
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
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
)

const (
	marker       = "_dataset.json"
	datasetValue = 1 // of the marker's member winnow_dataset: the version of the directory's layout

	commitsDir    = "_commits"
	quarantineDir = "_quarantine"
	inAppDir      = "in-app"
	metadataDir   = "metadata"
)

// Store is a dataset directory. It is safe for concurrent use, also by several
// processes; a Writer is not.
type Store struct{ dir string }

// Create opens the dataset in dir, making it first if dir is missing or empty.
// A directory that holds anything else is refused.
func Create(dir string) (*Store, error) {
	if err := makeDir(filepath.Clean(dir)); err != nil {
		return nil, fmt.Errorf("create dataset: %w", err)
	}
	if s, err := Open(dir); !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("create dataset: %w", err)
	}
	for _, e := range entries {
		// Another process may be creating the same dataset: its marker, or the
		// temporary name of it, can appear after Open looked.
		if !strings.HasPrefix(e.Name(), marker) {
			return nil, fmt.Errorf("create dataset: %s is not empty and has no %s: not a dataset", dir, marker)
		}
	}
	tmp, name := filepath.Join(dir, marker+".tmp-"+uuid.NewString()), filepath.Join(dir, marker)
	if err := writeFile(tmp, fmt.Appendf(nil, "{\"winnow_dataset\":%d}\n", datasetValue), "marker"); err != nil {
		return nil, fmt.Errorf("create dataset: %w", err)
	}
	err = os.Link(tmp, name)
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	if err = errors.Join(err, os.Remove(tmp), syncDir(dir)); err != nil {
		return nil, fmt.Errorf("create dataset: %w", err)
	}
	return Open(dir)
}

// Open opens an existing dataset. The error wraps fs.ErrNotExist when dir is
// missing or is not a dataset.
func Open(dir string) (*Store, error) {
	b, err := os.ReadFile(filepath.Join(dir, marker))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open dataset: %s is not a dataset: %w", dir, err)
	} else if err != nil {
		return nil, fmt.Errorf("open dataset: %w", err)
	}
	var m struct {
		Dataset int `json:"winnow_dataset"`
	}
	if err := decodeStrict(b, &m); err != nil {
		return nil, fmt.Errorf("open dataset: %s: %w", marker, err)
	}
	if m.Dataset != datasetValue {
		return nil, fmt.Errorf("open dataset: %s has layout version %d, this program reads %d", dir, m.Dataset, datasetValue)
	}
	return &Store{dir: dir}, nil
}

// Partition names one partition of a source topic; it has one chain.
type Partition struct {
	Topic     string
	Partition int
}

func (p Partition) String() string { return fmt.Sprintf("%s/%d", p.Topic, p.Partition) }

// maxTopic keeps the longest data file name within the 255 bytes that file
// systems allow.
const maxTopic = 255 - len("-2147483647-00000000000000000000-00000000-0000-0000-0000-000000000000.jsonl.zst")

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

func (s *Store) abs(rel string) string { return filepath.Join(s.dir, filepath.FromSlash(rel)) }

// Partitions lists the partitions that have a chain, by topic and number.
func (s *Store) Partitions() ([]Partition, error) {
	ps, _, err := s.partitions()
	return ps, err
}

// partitions also returns the paths under _commits that are no partition's.
func (s *Store) partitions() (ps []Partition, strays []string, err error) {
	topics, err := readDir(s.abs(commitsDir))
	if err != nil {
		return nil, nil, err
	}
	for _, t := range topics {
		if !t.IsDir() {
			strays = append(strays, path.Join(commitsDir, t.Name()))
			continue
		}
		nums, err := readDir(s.abs(path.Join(commitsDir, t.Name())))
		if err != nil {
			return nil, nil, err
		}
		for _, n := range nums {
			i, err := strconv.Atoi(n.Name())
			p := Partition{t.Name(), i}
			if err != nil || strconv.Itoa(i) != n.Name() || !n.IsDir() || p.validate() != nil {
				strays = append(strays, path.Join(commitsDir, t.Name(), n.Name()))
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

// readDir is os.ReadDir that takes a missing directory for an empty one.
func readDir(dir string) ([]fs.DirEntry, error) {
	es, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return es, err
}

// dataFile is a file that lies under the data directories, read from its path.
type dataFile struct {
	path    string // relative to the root, with slashes
	part    Partition
	extends int64 // see Commit.extends
	attempt string
	foreign bool // the path is not one that a writer makes; only path is set
}

const uuidPattern = `[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}`

// The topic may itself hold '-' and digits; what follows it has a fixed shape
// up to the end, so there is one way to read a name.
var dataNames = []*regexp.Regexp{
	regexp.MustCompile(`^(?:in-app/region=[a-z0-9-]+/dt=\d{4}-\d\d-01|metadata/window=\d{4}-\d\d)/([^/]+)-(\d+)-(\d{20})-(` + uuidPattern + `)\.(?:parquet|jsonl\.zst)$`),
	regexp.MustCompile(`^_quarantine/([^/]+)/(\d+)/(\d{20})-(` + uuidPattern + `)\.jsonl$`),
}

func parseDataFile(rel string) dataFile {
	for _, re := range dataNames {
		m := re.FindStringSubmatch(rel)
		if m == nil {
			continue
		}
		num, err1 := strconv.Atoi(m[2])
		ext, err2 := strconv.ParseInt(m[3], 10, 64)
		p := Partition{m[1], num}
		if err1 != nil || err2 != nil || strconv.Itoa(num) != m[2] || p.validate() != nil {
			break
		}
		return dataFile{path: rel, part: p, extends: ext, attempt: m[4]}
	}
	return dataFile{path: rel, foreign: true}
}

// dataFiles lists what lies under the data directories, in lexical order.
func (s *Store) dataFiles(ctx context.Context) ([]dataFile, error) {
	var out []dataFile
	for _, d := range []string{quarantineDir, inAppDir, metadataDir} {
		err := filepath.WalkDir(s.abs(d), func(name string, e fs.DirEntry, err error) error {
			if err == nil {
				err = ctx.Err()
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // no data yet, or a loser of a race removed its file
			}
			if err != nil || e.IsDir() {
				return err
			}
			rel, err := filepath.Rel(s.dir, name)
			out = append(out, parseDataFile(filepath.ToSlash(rel)))
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Sweep removes what dead attempts left of one partition and returns how many
// files it removed. An attempt is dead when another attempt has committed
// under the name that it would have to create: it can never commit. Age proves
// nothing (a writer may be paused for any time between its data and its
// commit), so files of an uncommitted start are never touched.
//
// Sweep is safe beside running writers. One that loses its temporary commit
// file to it finds the other's commit when its link fails.
func (s *Store) Sweep(topic string, partition int) (removed int, err error) {
	p := Partition{topic, partition}
	if err := p.validate(); err != nil {
		return 0, err
	}
	files, err := s.dataFiles(context.Background())
	if err != nil {
		return 0, fmt.Errorf("sweep %v: %w", p, err)
	}
	entries, err := readDir(s.abs(p.commits()))
	if err != nil {
		return 0, fmt.Errorf("sweep %v: %w", p, err)
	}
	for _, e := range entries {
		if m := tmpName.FindStringSubmatch(e.Name()); m != nil {
			n, _ := strconv.ParseInt(m[1], 10, 64)
			// Once the name is taken the temporary file is of no use to its
			// own attempt either, so the attempt is not compared for it.
			files = append(files, dataFile{path: path.Join(p.commits(), e.Name()), part: p, extends: n})
		}
	}
	// A commit that is seen may not be durable yet: its writer is between link
	// and fsync. Removing the loser's files first would leave nobody's after a
	// power loss.
	if len(entries) > 0 {
		if err := syncDir(s.abs(p.commits())); err != nil {
			return 0, fmt.Errorf("sweep %v: %w", p, err)
		}
	}
	taken := map[int64]string{} // name → attempt of its commit
	for _, f := range files {
		if f.foreign || f.part != p {
			continue
		}
		attempt, ok := taken[f.extends]
		if !ok {
			c, err := s.readCommit(p, f.extends)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return removed, fmt.Errorf("sweep %v: %w", p, err)
			}
			attempt = c.Attempt // "" when the name is free
			taken[f.extends] = attempt
		}
		if attempt == "" || attempt == f.attempt {
			continue
		}
		switch err := os.Remove(s.abs(f.path)); {
		case err == nil:
			removed++
		case !errors.Is(err, fs.ErrNotExist):
			return removed, fmt.Errorf("sweep %v: %w", p, err)
		}
	}
	return removed, nil
}

// failpoint is called, when set, at every named point of a commit at which a
// process may die. Tests set it; it is nil in production.
var failpoint func(name string)

func reach(name string) {
	if failpoint != nil {
		failpoint(name)
	}
}

// writeFile writes a new file and makes its content durable; the entry in its
// directory is not. what names the failpoints.
func writeFile(name string, b []byte, what string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err = f.Write(b[:len(b)/2]); err == nil {
		reach(what + "-half-written")
		_, err = f.Write(b[len(b)/2:])
	}
	if err == nil {
		reach(what + "-before-fsync")
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// makeDir is os.MkdirAll that makes the entries it adds durable.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	parent := filepath.Dir(dir)
	if err := makeDir(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// syncDirs makes the entries of the directories durable, and those of every
// directory above them up to the root, each once. Directories that exist are
// not left out: the process that made one may have died before it synced.
func (s *Store) syncDirs(rels []string) error {
	done := map[string]bool{}
	for _, d := range rels {
		for ; !done[d]; d = path.Dir(d) {
			if err := syncDir(s.abs(d)); err != nil {
				return err
			}
			done[d] = true
			if d == "." {
				break
			}
		}
	}
	return nil
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
