//go:build unix

package apache

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// patience bounds the start of a node and its orderly end.
const patience = time.Minute

// node is one broker and controller. A method must not run along with another
// of the same node.
type node struct {
	id  int
	dir string   // holds its settings, log and data
	jvm []string // the command but for the main class
	run *running // nil when there is no process
}

// running is the process of a node.
type running struct {
	process *os.Process
	out     *output
	exited  chan struct{}
}

// start runs the node and waits until the cluster has admitted it.
func (n *node) start() error {
	if n.run != nil {
		return fmt.Errorf("node %d is running", n.id)
	}
	log, err := os.OpenFile(n.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	r := &running{out: &output{w: log, started: make(chan struct{})}, exited: make(chan struct{})}
	cmd := n.command("kafka.Kafka", n.settings())
	cmd.Stdout, cmd.Stderr = r.out, r.out
	began := make(chan error)
	go func() {
		// Pdeathsig goes by the thread, so this one has to outlive the process.
		runtime.LockOSThread()
		defer log.Close()
		err := cmd.Start()
		r.process = cmd.Process
		began <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in its log
			close(r.exited)
		}
	}()
	if err := <-began; err != nil {
		return err
	}
	n.run = r
	select {
	case <-r.out.started:
		return nil
	case <-r.exited:
		n.run = nil
		return n.failed("ended before it was ready", r)
	case <-time.After(patience):
		err := n.kill()
		return errors.Join(n.failed("was not ready in time", r), err)
	}
}

// stop ends the node in order, its partitions handed over.
func (n *node) stop() error {
	r := n.run
	if err := n.signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-r.exited:
		n.run = nil
		return nil
	case <-time.After(patience):
		err := n.kill()
		return errors.Join(n.failed("did not stop in time", r), err)
	}
}

func (n *node) kill() error {
	r := n.run
	if err := n.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-r.exited
	n.run = nil
	return nil
}

func (n *node) signal(s os.Signal) error {
	if n.run == nil {
		return fmt.Errorf("node %d is not running", n.id)
	}
	if err := n.run.process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("node %d: %w", n.id, err)
	}
	return nil
}

func (n *node) failed(what string, r *running) error {
	return fmt.Errorf("node %d %s; its log, %s, ends:\n%s", n.id, what, n.log(), r.out.end())
}

func (n *node) log() string      { return filepath.Join(n.dir, "log") }
func (n *node) data() string     { return filepath.Join(n.dir, "data") }
func (n *node) settings() string { return filepath.Join(n.dir, "server.properties") }

func (n *node) command(main string, args ...string) *exec.Cmd {
	cmd := exec.Command(n.jvm[0], append(append(n.jvm[1:len(n.jvm):len(n.jvm)], main), args...)...)
	cmd.Dir, cmd.SysProcAttr = n.dir, attached()
	return cmd
}

// startedLine is what Kafka logs once the controllers have let the broker
// serve.
var startedLine = []byte("] Kafka Server started")

// output copies what a process writes to w and keeps the end of it.
type output struct {
	w       io.Writer
	started chan struct{} // closed at startedLine

	mu   sync.Mutex
	tail []byte
	seen bool
}

const tailBytes = 4 << 10

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tail = append(o.tail, p...)
	if !o.seen && bytes.Contains(o.tail, startedLine) {
		o.seen = true
		close(o.started)
	}
	o.tail = o.tail[max(0, len(o.tail)-tailBytes):]
	return o.w.Write(p)
}

func (o *output) end() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return bytes.TrimSpace(o.tail)
}
