package winnow

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/stretchr/testify/require"

	"winnow/internal/broker"
	"winnow/pkg/batch"
)

// project loads docker-compose.yml, which validates it against the schema of
// the Compose Specification.
func project(t *testing.T) *types.Project {
	t.Helper()
	b, err := os.ReadFile("docker-compose.yml")
	require.NoError(t, err)
	p, err := loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir:  t.TempDir(),
		ConfigFiles: []types.ConfigFile{{Filename: "docker-compose.yml", Content: b}},
	}, func(o *loader.Options) { o.SetProjectName("winnow", true) })
	require.NoError(t, err)
	return p
}

func TestComposeFileIsValid(t *testing.T) {
	p := project(t)
	require.ElementsMatch(t, []string{"kafka", "tenants", "ingest", "deidentify"}, p.ServiceNames())
	require.NotNil(t, p.Services["kafka"].HealthCheck)
	require.Contains(t, p.Services["kafka"].Environment, "KAFKA_PROCESS_ROLES", "KRaft mode")
	mounts := p.Services["deidentify"].Volumes
	require.Len(t, mounts, 1)
	require.Equal(t, "/batches", mounts[0].Target)

	// The schema check can fail.
	_, err := loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir:  t.TempDir(),
		ConfigFiles: []types.ConfigFile{{Filename: "docker-compose.yml", Content: []byte("services: {a: {image: x, comand: y}}")}},
	}, func(o *loader.Options) { o.SetProjectName("winnow", true) })
	require.Error(t, err)
}

// TestComposeCommandsRun runs the commands of our services as plain processes,
// in the order of their dependencies, against the embedded broker.
func TestComposeCommandsRun(t *testing.T) {
	p := project(t)
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	build := exec.Command("go", "build", "-o", bin+"/", "./cmd/...")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	b, err := broker.Start(filepath.Join(dir, "broker"), broker.Options{})
	require.NoError(t, err)
	defer b.Close()
	batches := filepath.Join(dir, "batches")

	// What the image and the network give a service, on this machine.
	local := strings.NewReplacer("kafka:9092", b.Addr(), "/fixtures", "fixtures", "/batches", batches)
	command := func(ctx context.Context, service string) *exec.Cmd {
		args := p.Services[service].Command
		require.NotEmpty(t, args, service)
		for i := range args {
			args[i] = local.Replace(args[i])
		}
		cmd := exec.CommandContext(ctx, filepath.Join(bin, args[0]), args[1:]...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
		return cmd
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var produced int
	for _, service := range []string{"tenants", "ingest"} {
		out, err := command(ctx, service).CombinedOutput()
		require.NoError(t, err, "%s: %s", service, out)
		t.Logf("%s: %s", service, out)
		if _, rest, ok := strings.Cut(string(out), "acknowledged   "); ok {
			_, err := fmt.Sscan(rest, &produced)
			require.NoError(t, err)
		}
	}
	require.Greater(t, produced, 1000)

	worker := command(ctx, "deidentify")
	worker.Args = append(worker.Args, "--flush-age", "200ms", "--log-level", "DEBUG") // what it writes by the minute
	stderr, err := worker.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, worker.Start())
	lines := bufio.NewScanner(stderr)
	for done := 0; done < produced; {
		require.True(t, lines.Scan(), "the worker ended after %d of %d records", done, produced)
		if _, attrs, ok := strings.Cut(lines.Text(), " start="); ok && strings.Contains(lines.Text(), "msg=committed") {
			var start, end int
			_, err := fmt.Sscanf(attrs, "%d end=%d", &start, &end)
			require.NoError(t, err, lines.Text())
			done += end - start
		}
	}
	require.NoError(t, worker.Process.Signal(syscall.SIGTERM))
	var last string
	for lines.Scan() {
		last = lines.Text()
	}
	require.NoError(t, worker.Wait(), "SIGTERM ends the worker in order")
	require.Contains(t, last, "stopped")

	store, err := batch.Open(batches)
	require.NoError(t, err)
	report, err := store.Check(ctx)
	require.NoError(t, err)
	require.Empty(t, report.Faults)
	require.Greater(t, report.Documents, int64(700), fmt.Sprint(report))
}
