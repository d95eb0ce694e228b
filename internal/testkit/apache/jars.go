//go:build unix

package apache

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// defaultVersion of Apache Kafka; the environment's WINNOW_KAFKA_VERSION
// overrides it. 3.9 and 4.1 are known to work.
const defaultVersion = "3.9.1"

//go:embed pom.xml
var pom []byte

// Jars returns a folder with Apache Kafka and all that it needs to run. It is
// kept in the user's cache; the first call has Maven fetch it (50 MB).
func Jars(ctx context.Context) (dir string, err error) {
	version := defaultVersion
	if v := os.Getenv("WINNOW_KAFKA_VERSION"); v != "" {
		version = v
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("apache: %w", err)
	}
	cache = filepath.Join(cache, "winnow")
	dir = filepath.Join(cache, "kafka-"+version)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", fmt.Errorf("apache: %w", err)
	}
	tmp, err := os.MkdirTemp(cache, "fetching-")
	if err != nil {
		return "", fmt.Errorf("apache: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := resolve(ctx, tmp, version); err != nil {
		return "", fmt.Errorf("apache: Kafka %s: %w", version, err)
	}
	// Another process may have been quicker; a folder that is there is whole.
	if err := os.Rename(filepath.Join(tmp, "lib"), dir); err != nil {
		if _, there := os.Stat(dir); there != nil {
			return "", fmt.Errorf("apache: %w", err)
		}
	}
	return dir, nil
}

// resolve has Maven copy the jars to tmp/lib.
func resolve(ctx context.Context, tmp, version string) error {
	mvn, err := exec.LookPath("mvn")
	if err != nil {
		return fmt.Errorf("its jars are fetched with Maven: %w", err)
	}
	file := filepath.Join(tmp, "pom.xml")
	if err := os.WriteFile(file, pom, 0o644); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, mvn, "-q", "-B", "-f", file, "-Dkafka.version="+version,
		"org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies",
		"-DincludeScope=runtime", "-DoutputDirectory="+filepath.Join(tmp, "lib")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mvn: %w\n%s", err, bytes.TrimSpace(out))
	}
	return nil
}
