//go:build unix

package apache

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// An empty cache and a PATH that leads to dir alone.
func isolate(t *testing.T) (cache, dir string) {
	t.Helper()
	home, dir := t.TempDir(), t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CACHE_HOME", filepath.Join(home, "cache"))
	t.Setenv("PATH", dir)
	t.Setenv("WINNOW_KAFKA_VERSION", "")
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	return filepath.Join(cache, "winnow"), dir
}

func script(t *testing.T, dir, name, body string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+body), 0o755))
}

// Kafka's tool takes an id that begins with "-" for an option.
func TestClusterID(t *testing.T) {
	for b := range 256 {
		id := clusterID(uuid.UUID{byte(b), 0xff, 15: byte(b)})
		require.Len(t, id, 22)
		require.NotEqual(t, byte('-'), id[0], id)
	}
}

func TestJars(t *testing.T) {
	cache, bin := isolate(t)
	_, err := Jars(t.Context())
	require.ErrorContains(t, err, "apache: Kafka 3.9.1: its jars are fetched with Maven: ")

	script(t, bin, "mvn", "echo no such artifact; exit 1")
	_, err = Jars(t.Context())
	require.EqualError(t, err, "apache: Kafka 3.9.1: mvn: exit status 1\nno such artifact")
	left, err := os.ReadDir(cache)
	require.NoError(t, err)
	require.Empty(t, left, "a failure leaves nothing that could be taken for the jars")

	script(t, bin, "mvn", `for a; do case $a in -DoutputDirectory=*) /bin/mkdir "${a#*=}"; echo "$*" > "${a#*=}/args";; esac; done`)
	t.Setenv("WINNOW_KAFKA_VERSION", "4.0.0")
	dir, err := Jars(t.Context())
	require.NoError(t, err)
	require.Equal(t, filepath.Join(cache, "kafka-4.0.0"), dir)
	args, err := os.ReadFile(filepath.Join(dir, "args"))
	require.NoError(t, err)
	require.Contains(t, string(args), "-Dkafka.version=4.0.0 ")

	script(t, bin, "mvn", "exit 1")
	again, err := Jars(t.Context())
	require.NoError(t, err, "what is there is not fetched again")
	require.Equal(t, dir, again)
}

func TestStartErrors(t *testing.T) {
	cache, bin := isolate(t)
	require.NoError(t, os.MkdirAll(filepath.Join(cache, "kafka-3.9.1"), 0o755))
	_, err := Start(t.Context(), t.TempDir(), Options{})
	require.ErrorContains(t, err, "apache: Kafka runs on Java: ")

	script(t, bin, "java", "echo bad setting; exit 1")
	_, err = Start(t.Context(), t.TempDir(), Options{})
	require.EqualError(t, err, "apache: format node 1: exit status 1\nbad setting\n")

	script(t, bin, "java", `case "$*" in *StorageTool*) ;; *) echo the port is taken; exit 1;; esac`)
	dir := t.TempDir()
	_, err = Start(t.Context(), dir, Options{})
	log := filepath.Join(dir, "node1", "log")
	require.EqualError(t, err, "apache: node 1 ended before it was ready; its log, "+log+", ends:\nthe port is taken")
}
