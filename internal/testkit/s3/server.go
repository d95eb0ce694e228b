// Package s3 runs a real S3 server for tests, and a proxy in front of it that
// fails as networks and stores do.
//
// The server is versitygw, a program of its own in the module below server/.
// The first Start on a machine builds it, which takes a minute or two; after
// that it lies in Go's build cache. It needs Go, as the tests do, and nothing
// else.
package s3

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Server is a running S3 server with one empty bucket, which the account owns.
// Clients address the bucket in the path, not in the host name.
type Server struct {
	Endpoint  string // http://HOST:PORT
	Region    string
	AccessKey string
	SecretKey string
	Bucket    string
}

// Creates is what a server makes of If-None-Match: *.
type Creates string

const (
	// Atomic creates an object once, however many clients ask at once.
	Atomic Creates = "atomic"
	// Checked looks whether there is one and then writes: clients that ask at
	// once are all told that they created it. So did versitygw until 1.8.0.
	Checked Creates = "checked"
	// Ignored writes in any case, like a store that doesn't know the header.
	Ignored Creates = "ignored"
)

// patience bounds the start of a server that is built.
const patience = time.Minute

// Start runs a server until the test ends. Its objects go with it.
func Start(t testing.TB) Server {
	t.Helper()
	return StartWith(t, Atomic)
}

// StartWith is Start of a server that may break the promise of If-None-Match.
func StartWith(t testing.TB, c Creates) Server {
	t.Helper()
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	s := Server{Region: "eu-central-1", AccessKey: "tester", SecretKey: "a secret of the tests", Bucket: "batches"}
	cmd := exec.Command(bin, "-dir", t.TempDir(), "-bucket", s.Bucket, "-region", s.Region, "-creates", string(c))
	cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID="+s.AccessKey, "AWS_SECRET_ACCESS_KEY="+s.SecretKey)
	addr, err := start(t, cmd)
	if err != nil {
		t.Fatalf("s3 server: %v", err)
	}
	s.Endpoint = "http://" + addr
	return s
}

// start runs the server until the test ends and returns the address it says.
func start(t testing.TB, cmd *exec.Cmd) (addr string, err error) {
	var log bytes.Buffer // read only after Wait
	cmd.Stderr = &log
	// The server ends when this pipe does. The kernel closes it with our
	// process, so a killed test leaves no server.
	if _, err := cmd.StdinPipe(); err != nil {
		return "", err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	end := sync.OnceValue(func() string {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		return log.String()
	})
	t.Cleanup(func() {
		if said := end(); t.Failed() && said != "" {
			t.Logf("s3 server:\n%s", said)
		}
	})
	late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "127.0.0.1:") {
			go func() { // a full pipe would hold the server up
				for lines.Scan() {
				}
			}()
			return lines.Text(), nil
		}
	}
	return "", fmt.Errorf("it ended, or did not start within %v:\n%s", patience, end())
}

// binary builds the server, unless it is in Go's build cache, and returns its
// path there.
var binary = sync.OnceValues(func() (string, error) {
	mod, err := goCommand(".", "env", "GOMOD")
	if err != nil {
		return "", err
	}
	// The module's folder, not that of this file: -trimpath hides the latter.
	dir := filepath.Join(filepath.Dir(mod), "internal", "testkit", "s3", "server")
	return goCommand(dir, "tool", "-n", "server")
})

// goCommand returns the one line that the go command prints.
func goCommand(dir string, args ...string) (string, error) {
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w\n%s", err, exit.Stderr)
		}
		return "", fmt.Errorf("s3 server: go %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}
