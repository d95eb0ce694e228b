package winnow

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"winnow/pkg/gate"
)

// declared lists what each package declares, tests included: pkg.Name,
// pkg.Type.Method.
func declared(t *testing.T) (names map[string]bool, reasons []string) {
	names = map[string]bool{}
	sources(t, func(file string) {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		require.NoError(t, err)
		pkg := f.Name.Name
		if strings.HasPrefix(file, "cmd/") {
			pkg = strings.Split(file, "/")[1]
		}
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				name := d.Name.Name
				if d.Recv != nil {
					r := d.Recv.List[0].Type
					if star, ok := r.(*ast.StarExpr); ok {
						r = star.X
					}
					if id, ok := r.(*ast.Ident); ok {
						name = id.Name + "." + name
					}
				}
				names[pkg+"."+name] = true
			case *ast.GenDecl:
				for _, s := range d.Specs {
					switch s := s.(type) {
					case *ast.TypeSpec:
						names[pkg+"."+s.Name.Name] = true
					case *ast.ValueSpec:
						for i, n := range s.Names {
							names[pkg+"."+n.Name] = true
							if sel, ok := s.Type.(*ast.SelectorExpr); ok && pkg == "gate" && sel.Sel.Name == "Reason" {
								reasons = append(reasons, strings.Trim(s.Values[i].(*ast.BasicLit).Value, `"`))
							}
						}
					}
				}
			}
		}
	})
	return names, reasons
}

// TestPolicyPage holds docs/policy.md against the code.
func TestPolicyPage(t *testing.T) {
	b, err := os.ReadFile("docs/policy.md")
	require.NoError(t, err)
	page := string(b)
	names, reasons := declared(t)
	found := 0
	for _, m := range regexp.MustCompile("`([a-z]+\\.[A-Za-z.]+)`").FindAllStringSubmatch(page, -1) {
		if strings.HasSuffix(m[1], ".go") {
			continue
		}
		require.True(t, names[m[1]], "%s is not in the code", m[1])
		found++
	}
	require.Greater(t, found, 100)
	for row := 1; row <= 21; row++ {
		require.Regexp(t, `(?m)^\| `+regexp.QuoteMeta(strings.Join([]string{strconv.Itoa(row), gate.Sentences[row]}, " | "))+` \|`, page, "row %d", row)
	}
	require.Len(t, reasons, 19)
	for _, r := range reasons {
		require.Contains(t, page, "`"+r+"`", "a reason of the gate")
	}
	for _, line := range strings.Split(page, "\n") {
		cells := strings.Split(line, " | ")
		if !strings.HasPrefix(line, "| ") || len(cells) < 3 || strings.HasPrefix(line, "| row") || strings.HasPrefix(line, "| sentence") || strings.Contains(line, "not built yet") {
			continue
		}
		shown := cells[len(cells)-1]
		require.Regexp(t, "`[a-z]+\\.(Test|Fuzz)[A-Za-z]+`", shown, "no test is named: %s", line)
	}
}
