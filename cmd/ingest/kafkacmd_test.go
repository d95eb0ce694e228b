package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"winnow/internal/broker"
	"winnow/internal/ingest"
	"winnow/internal/kafkaio"
)

// TestKafkaCommand runs ingest kafka on records that are refused whatever the
// time is: to the end that the topic has, until it is stopped, and once more by
// the list that it wrote.
func TestKafkaCommand(t *testing.T) {
	dir := t.TempDir()
	b, err := broker.Start(filepath.Join(dir, "broker"), broker.Options{})
	require.NoError(t, err)
	defer b.Close()
	client, err := kafkaio.Dial([]string{b.Addr()}, kafkaio.Options{ClientID: "test"})
	require.NoError(t, err)
	defer client.Close()
	require.NoError(t, ingest.EnsureTenants(t.Context(), client, "tenants"))
	require.NoError(t, ingest.EnsureEvents(t.Context(), client, "raw", 1))
	raw := client.Producer("raw")
	defer raw.Close()
	const bad = `{"canary`
	require.NoError(t, raw.Produce(t.Context(), kafkaio.Message{Value: []byte(bad)}, kafkaio.Message{Key: []byte("k")}, kafkaio.Message{Value: []byte(bad)}))

	list := filepath.Join(dir, "refused.jsonl")
	command := func(ctx context.Context, args ...string) (code int, stdout, stderr string) {
		var out, errs bytes.Buffer
		code = run(ctx, append([]string{"kafka", "--brokers", b.Addr()}, args...), &out, &errs)
		require.NotContains(t, out.String()+errs.String(), "canary")
		return code, out.String(), errs.String()
	}
	lines := func() int {
		b, err := os.ReadFile(list)
		if err != nil {
			require.ErrorIs(t, err, os.ErrNotExist)
		}
		require.NotContains(t, string(b), "canary")
		return bytes.Count(b, []byte("\n"))
	}

	code, stdout, stderr := command(t.Context(), "--from", "raw", "--drain", "--quarantine", list)
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "raw/0@0: malformed_json")
	require.Contains(t, stdout, "empty_value")
	require.Equal(t, 2, lines(), "a tombstone is nothing to mend")

	// It goes on where it ended, and ends well when it is stopped.
	require.NoError(t, raw.Produce(t.Context(), kafkaio.Message{Value: []byte(bad)}))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan string, 1)
	go func() {
		defer close(ended)
		var out, errs bytes.Buffer
		if code := run(ctx, []string{"kafka", "--brokers", b.Addr(), "--from", "raw", "--quarantine", list}, &out, &errs); code != 0 {
			t.Errorf("exit code %d: %s", code, errs.String())
		}
		ended <- out.String()
	}()
	require.Eventually(t, func() bool { return lines() == 3 }, 30*time.Second, 10*time.Millisecond)
	stop()
	stdout = <-ended
	require.Contains(t, stdout, "raw/0@3: malformed_json")
	require.NotContains(t, stdout, "raw/0@0")

	// Refused again is not a failure, nor is what is not there.
	f, err := os.OpenFile(list, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString(`{"topic":"raw","partition":0,"offset":99}` + "\n" + `{"topic":"other","partition":0,"offset":0}` + "\n")
	require.NoError(t, err)
	require.NoError(t, f.Close())
	code, stdout, stderr = command(t.Context(), "--from", "raw", "--offsets", list)
	require.Zero(t, code, stderr)
	for _, says := range []string{"records listed 4, and 1 lines of other topics", "re-driven      0 events", "gone           1 records", "refused again  3 malformed_json"} {
		require.Contains(t, stdout, says)
	}

	// A list with a bad line is not begun.
	require.NoError(t, os.WriteFile(list, []byte(`{"topic":"raw","partition":0,"offset":0}`+"\n"+bad+"\n"), 0o644))
	code, stdout, stderr = command(t.Context(), "--from", "raw", "--offsets", list)
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "line 2: ")
	require.Empty(t, stdout)
}

func TestKafkaUsage(t *testing.T) {
	list := filepath.Join(t.TempDir(), "l.jsonl")
	require.NoError(t, os.WriteFile(list, nil, 0o644))
	for says, args := range map[string]string{
		"come again for ever": "--from events",
		"one topic":           "--from raw --topic raw --drain",
		"--drain":             "--from raw --drain --offsets " + list,
		"--from":              "--drain",
	} {
		var out, errs bytes.Buffer
		require.Equal(t, 2, run(t.Context(), append([]string{"kafka", "--brokers", "localhost:1"}, strings.Fields(args)...), &out, &errs), args)
		require.Contains(t, errs.String(), says)
	}
}
