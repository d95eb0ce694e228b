package winnow

import (
	"bytes"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// allowed are the directions of ARCHITECTURE.md: which of our own packages a
// room may import. Tests may import more.
var allowed = map[string][]string{
	"pkg/schema":                 {},
	"pkg/gate":                   {"pkg/schema"},
	"pkg/scrub":                  {"pkg/schema"},
	"pkg/batch":                  {"internal/failpoint", "pkg/schema", "pkg/scrub"},
	"internal/failpoint":         {},
	"internal/kafkaio":           {},
	"internal/broker":            {},
	"internal/progress":          {},
	"internal/testkit/apache":    {},
	"internal/testkit/policy":    {"pkg/schema"},
	"internal/testkit/s3":        {},
	"internal/testkit/s3/server": {}, // a module of its own
	"internal/ingest":            {"internal/kafkaio", "pkg/gate", "pkg/schema"},
	"internal/tenants":           {"internal/kafkaio", "pkg/gate"},
	"cmd/ingest":                 {"internal/ingest", "internal/kafkaio", "internal/progress", "internal/tenants", "pkg/gate", "pkg/schema"},
	"cmd/deidentify": {"internal/broker", "internal/failpoint", "internal/ingest", "internal/kafkaio", "internal/progress", "internal/tenants",
		"pkg/batch", "pkg/gate", "pkg/schema", "pkg/scrub"},
	"fixtures/gen": {"pkg/schema"},
}

// only are libraries that one room alone may import.
var only = map[string]string{
	"github.com/segmentio/kafka-go": "internal/kafkaio",
	"github.com/twmb/franz-go":      "internal/broker",
	"github.com/parquet-go":         "pkg/batch",
}

// sources calls f for every Go file of the repository.
func sources(t *testing.T, f func(file string)) {
	t.Helper()
	require.NoError(t, fs.WalkDir(os.DirFS("."), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && p != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "out" || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if strings.HasSuffix(p, ".go") {
			f(p)
		}
		return nil
	}))
}

func TestDependencyDirections(t *testing.T) {
	rooms := map[string]bool{}
	sources(t, func(file string) {
		if strings.HasSuffix(file, "_test.go") {
			return
		}
		room := path.Dir(file)
		rooms[room] = true
		mine, known := allowed[room]
		require.True(t, known, "%s is a room that ARCHITECTURE.md and this test do not know", room)
		ast, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		require.NoError(t, err)
		for _, i := range ast.Imports {
			p, err := strconv.Unquote(i.Path.Value)
			require.NoError(t, err)
			if own, ok := strings.CutPrefix(p, "winnow/"); ok {
				require.Contains(t, mine, own, "%s imports %s", file, p)
				continue
			}
			if strings.Contains(p, ".") {
				require.NotEqual(t, "pkg/schema", room, "%s: schema is standard library only, not %s", file, p)
			}
			for lib, at := range only {
				if strings.HasPrefix(p, lib) {
					require.Equal(t, at, room, "%s imports %s", file, p)
				}
			}
		}
	})
	for room := range allowed {
		require.True(t, rooms[room], "%s is gone", room)
	}
}

// main only starts run: at most 15 lines of function.
func TestThinMains(t *testing.T) {
	for _, file := range []string{"cmd/ingest/main.go", "cmd/deidentify/main.go"} {
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		_, body, ok := bytes.Cut(b, []byte("func main() {"))
		require.True(t, ok)
		require.LessOrEqual(t, bytes.Count(body, []byte("\n")), 15, file)
	}
}
