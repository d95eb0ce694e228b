package batch

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"winnow/internal/testkit/s3"
)

// raced lets writers claim one name after the other, all at once, and returns
// how many names have not exactly one winner that finds its own content there.
func raced(t testing.TB, s *Store, dir string, writers, rounds int) (bad int) {
	for round := range rounds {
		name := fmt.Sprintf("%s/%d", dir, round)
		won, errs, start := make([]bool, writers), make([]error, writers), make(chan struct{})
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				<-start
				mine := []byte(uuid.NewString())
				if won[i], errs[i] = s.claim(t.Context(), name, fmt.Sprint(name, ".tmp-", i), mine); won[i] && errs[i] == nil {
					b, err := s.storage.read(t.Context(), name)
					won[i], errs[i] = bytes.Equal(b, mine), err
				}
			})
		}
		close(start)
		wg.Wait()
		require.NoError(t, errors.Join(errs...))
		winners := 0
		for _, w := range won {
			if w {
				winners++
			}
		}
		if winners != 1 {
			bad++
		}
	}
	return bad
}

func TestCreateRaceOnDisk(t *testing.T) {
	s := &Store{storage: newDisk(filepath.Join(memoryDir(t), "out"))}
	require.NoError(t, s.storage.(*disk).makeRoot())
	require.Zero(t, raced(t, s, "names", 16, 2000))
}

func TestCreateRaceInBucket(t *testing.T) {
	server := s3.Start(t)
	setAccount(t, server)
	b, err := openBucket(bucketAt(server, "race"))
	require.NoError(t, err)
	require.Zero(t, raced(t, &Store{storage: b}, "names", 16, 300))
}

// overwriting is a broken storage: it looks whether a name is free and renames
// to it if so. Of two that find it free at once both believe that they won.
type overwriting struct{ *disk }

func (d overwriting) create(ctx context.Context, name, tmp string, b []byte) error {
	if _, err := os.Stat(d.abs(name)); err == nil {
		return fs.ErrExist
	}
	time.Sleep(time.Millisecond) // on a busy machine the window may never be met
	if err := d.write(ctx, tmp, b); err != nil {
		return err
	}
	return os.Rename(d.abs(tmp), d.abs(name))
}

// The race finds the storage that is broken; creating a name twice in turn does
// not, which is why Probe races.
func TestOverwritingStorage(t *testing.T) {
	d := newDisk(filepath.Join(memoryDir(t), "out"))
	require.NoError(t, d.makeRoot())
	s := &Store{storage: overwriting{d}}
	first, err := s.claim(t.Context(), "twice", "tmp-1", []byte("1"))
	require.NoError(t, err)
	second, err := s.claim(t.Context(), "twice", "tmp-2", []byte("2"))
	require.NoError(t, err)
	require.True(t, first && !second, "one after the other it looks sound")
	require.NotZero(t, raced(t, s, "names", 16, 200))
	require.ErrorContains(t, s.Probe(t.Context()), "creation is not atomic")
}

func TestProbe(t *testing.T) {
	s := dataset(t)
	require.NoError(t, s.Probe(t.Context()))
	require.Empty(t, files(t, s, probeDir))
	for creates, message := range map[s3.Creates]string{s3.Atomic: "", s3.Checked: "creation is not atomic", s3.Ignored: "creation is not atomic"} {
		t.Run(string(creates), func(t *testing.T) {
			server := s3.StartWith(t, creates)
			setAccount(t, server)
			s, err := Create(bucketAt(server, "out"))
			require.NoError(t, err)
			if err := s.Probe(t.Context()); message == "" {
				require.NoError(t, err)
				es, err := s.entries(t.Context(), probeDir)
				require.NoError(t, err)
				require.Empty(t, es)
			} else {
				require.ErrorContains(t, err, message)
				require.ErrorContains(t, err, "s3://"+server.Bucket+"/out can not hold a data set")
			}
		})
	}
}

// racer is what a process of TestCreateRaceOfProcesses is told by its
// environment: the directory and its own name.
const racer = "BATCH_TEST_RACER"

// Several processes race for one name after the other; each is told to go by a
// byte and answers with a line.
func TestCreateRaceOfProcesses(t *testing.T) {
	if job := os.Getenv(racer); job != "" {
		race(t, job)
		return
	}
	const processes, rounds = 4, 2000
	dir := filepath.Join(memoryDir(t), "out")
	require.NoError(t, newDisk(dir).makeRoot())
	var cmds [processes]*exec.Cmd
	var starts [processes]io.WriteCloser
	var answers [processes]*bufio.Scanner
	for i := range processes {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d", racer, dir, i))
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		require.NoError(t, err)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		cmds[i], starts[i], answers[i] = cmd, in, bufio.NewScanner(out)
	}
	won := map[int]int{}
	for round := range rounds {
		for _, s := range starts {
			_, err := s.Write([]byte{0})
			require.NoError(t, err)
		}
		winner, winners := 0, 0
		for i, a := range answers {
			require.True(t, a.Scan(), "process %d ended", i)
			if a.Text() == "won" {
				winner, winners = i, winners+1
			} else {
				require.Equal(t, "lost", a.Text())
			}
		}
		require.Equal(t, 1, winners, "round %d", round)
		b, err := os.ReadFile(filepath.Join(dir, "names", strconv.Itoa(round)))
		require.NoError(t, err)
		require.Equal(t, strconv.Itoa(winner), string(b))
		won[winner]++
	}
	for i, cmd := range cmds {
		require.NoError(t, starts[i].Close())
		for answers[i].Scan() {
		}
		require.NoError(t, cmd.Wait())
	}
	require.Greater(t, len(won), 1, "they did not race")
	t.Log("won by each:", won)
}

func race(t *testing.T, job string) {
	var dir, me string
	_, err := fmt.Sscan(job, &dir, &me)
	require.NoError(t, err)
	s := &Store{storage: newDisk(dir)}
	for round := 0; ; round++ {
		if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
			return
		}
		won, err := s.claim(t.Context(), fmt.Sprint("names/", round), fmt.Sprint("names/tmp-", me, "-", round), []byte(me))
		require.NoError(t, err)
		fmt.Println(map[bool]string{true: "won", false: "lost"}[won])
	}
}
