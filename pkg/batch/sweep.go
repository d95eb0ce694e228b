package batch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strconv"
	"syscall"
)

// intent lists the files that an attempt is going to write. It is durable
// before the first of them, so whatever a crash leaves behind can be found
// without a walk through the dataset.
type intent struct {
	Files []string `json:"files"`
}

var intentName = regexp.MustCompile(`^(\d{20})-(` + uuidPattern + `)\.json$`)

// intents returns the directory of the partition's intents.
func (p Partition) intents() string { return path.Join(intentsDir, p.Topic, strconv.Itoa(p.Partition)) }

func (c *Commit) intentFile() string {
	return path.Join(c.partition().intents(), fmt.Sprintf("%020d-%s.json", c.extends(), c.Attempt))
}

// intend makes the intent of an attempt durable.
func (s *Store) intend(ctx context.Context, c *Commit) error {
	i := intent{Files: []string{}}
	for _, f := range c.Files {
		i.Files = append(i.Files, f.Path)
	}
	b, err := json.Marshal(i)
	if err != nil {
		return err
	}
	if err := s.storage.write(ctx, c.intentFile(), b); err != nil {
		return err
	}
	return s.storage.settle(ctx, c.intentFile())
}

// abandon removes the files of an attempt that can not commit any more, and
// then its intent. The order is kept over a power failure, so that no file is
// left of which nothing tells.
func (s *Store) abandon(ctx context.Context, intent string, files []string) error {
	for _, f := range files {
		// The first that fails ends it, or a store that is down would be waited
		// for once for each file. Sweep removes what is left.
		if err := s.storage.remove(ctx, f); err != nil {
			return err
		}
	}
	for _, f := range files {
		// A directory that was not made holds no file of ours.
		if err := s.storage.settle(ctx, f); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return err
		}
	}
	return s.storage.remove(ctx, intent)
}

// Sweep removes what dead attempts left of one partition. It returns how many
// files it removed, and how many attempts are not known to be dead: they extend
// the chain's tip, so their writers may be running, or have crashed. The next
// commit decides over them; call Sweep again after it.
//
// An attempt is dead when another attempt has committed under the name that it
// would have to create: it can never commit. Age proves nothing (a writer may
// be paused for any time between its data and its commit), so files of an
// uncommitted start are never touched. Sweep is safe beside running writers.
func (s *Store) Sweep(topic string, partition int) (removed, pending int, err error) {
	ctx, p := context.Background(), Partition{topic, partition}
	if err := p.validate(); err != nil {
		return 0, 0, err
	}
	fail := func(err error) (int, int, error) { return removed, pending, fmt.Errorf("sweep %v: %w", p, err) }
	intents, err := s.entries(ctx, p.intents())
	if err != nil {
		return fail(err)
	}
	commits, err := s.entries(ctx, p.commits())
	if err != nil {
		return fail(err)
	}
	// A commit that is listed may not be durable yet: its writer is between link
	// and fsync. Removing the loser's files first would leave nobody's after a
	// power loss. So only those count that were listed before this.
	if len(commits) > 0 {
		if err := s.storage.settle(ctx, commits[0].name); err != nil {
			return fail(err)
		}
	}
	taken := map[string]bool{}
	for _, e := range commits {
		taken[e.name] = true
	}
	for _, e := range intents {
		m := intentName.FindStringSubmatch(path.Base(e.name))
		if m == nil {
			continue
		}
		n, _ := strconv.ParseInt(m[1], 10, 64)
		if !taken[commitFile(p, n)] {
			pending++
			continue
		}
		c, err := s.readCommit(ctx, p, n)
		if err != nil {
			return fail(err)
		}
		var left intent
		if c.Attempt != m[2] {
			b, err := s.storage.read(ctx, e.name)
			if errors.Is(err, fs.ErrNotExist) {
				continue // its writer has just cleaned up
			} else if err != nil {
				return fail(err)
			}
			if decodeStrict(b, &left) != nil {
				left = intent{} // not written whole, so no file followed it
			}
		}
		if err := s.abandon(ctx, e.name, left.Files); err != nil {
			return fail(err)
		}
		removed += len(left.Files)
	}
	for _, e := range commits {
		// Once the name is taken a temporary file is of no use to its own
		// attempt either, so the attempt is not compared for it. A writer that
		// loses it to us finds the commit when its link fails.
		m := tmpName.FindStringSubmatch(path.Base(e.name))
		if m == nil {
			continue
		}
		if n, _ := strconv.ParseInt(m[1], 10, 64); !taken[commitFile(p, n)] {
			continue
		}
		if err := s.storage.remove(ctx, e.name); err != nil {
			return fail(err)
		}
		removed++
	}
	return removed, pending, nil
}
