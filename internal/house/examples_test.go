package house

import (
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestExamples fails if the documentation of an exported type shows no example: of the type, of a
// function that returns it, or of a method. A type that is only handed to functions of the caller
// may be named in the example of something else. A function that belongs to no type needs an
// example of its own, unless it is deprecated. So do those which a newcomer meets first.
func TestExamples(t *testing.T) {
	shown := documentation(t)
	for _, kind := range shown.Types {
		n := len(kind.Examples) + examplesOf(kind.Funcs) + examplesOf(kind.Methods)
		if n == 0 && !named(t, kind) {
			t.Errorf("type %s has no example", kind.Name)
		}
	}
	for _, f := range shown.Funcs {
		if len(f.Examples) == 0 && !strings.Contains(f.Doc, "Deprecated: ") {
			t.Errorf("function %s has no example", f.Name)
		}
	}
	for _, name := range []string{
		"NewSession", "NewLocker", "NewSTM", "RunLeader", "WithGuard", "WithIdentity", "Inspect",
		"Mutex.Lock", "Mutex.Do", "Mutex.IsOwner", "Mutex.Rev", "Election.Campaign", "Election.Observe", "Election.Leaders",
	} {
		if !hasExample(shown, name) {
			t.Errorf("%s has no example", name)
		}
	}
}

// TestExamplesAreShown fails if the documentation does not show an example. That is so if its name
// is not that of a type, a function or a method, with a suffix in lower case if there is one. The
// methods of an interface have no examples, so those are the interface's.
func TestExamplesAreShown(t *testing.T) {
	shown := documentation(t)
	seen := map[string]bool{}
	see := func(all []*doc.Example) {
		for _, e := range all {
			seen[e.Name] = true
		}
	}
	see(shown.Examples)
	functions := func(all []*doc.Func) {
		for _, f := range all {
			see(f.Examples)
		}
	}
	functions(shown.Funcs)
	for _, kind := range shown.Types {
		see(kind.Examples)
		functions(kind.Funcs)
		functions(kind.Methods)
	}
	files := read(t, token.NewFileSet())
	for _, example := range doc.Examples(files...) {
		if !seen[example.Name] {
			t.Errorf("Example%s is not shown", example.Name)
		}
	}
}

// documentation is that of the package in the root, with its examples.
func documentation(t *testing.T) *doc.Package {
	fset := token.NewFileSet()
	shown, err := doc.NewFromFiles(fset, read(t, fset), "example.com/etcd/concurrency")
	require.NoError(t, err)
	require.NotEmpty(t, shown.Types)
	return shown
}

// read reads all files of the package in the root, its tests too.
func read(t *testing.T, fset *token.FileSet) (files []*ast.File) {
	names, err := filepath.Glob(filepath.Join(root, "*.go"))
	require.NoError(t, err)
	for _, name := range names {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		file, err := parser.ParseFile(fset, name, text, parser.ParseComments)
		require.NoError(t, err)
		files = append(files, file)
	}
	return files
}

// named reports whether a file with examples names the type, or a function that returns it.
func named(t *testing.T, kind *doc.Type) bool {
	names, err := filepath.Glob(filepath.Join(root, "example_*_test.go"))
	require.NoError(t, err)
	wanted := []string{kind.Name}
	for _, f := range kind.Funcs {
		wanted = append(wanted, f.Name)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		for _, word := range wanted {
			if regexp.MustCompile(`\bconcurrency\.` + word + `\b`).Match(text) {
				return true
			}
		}
	}
	return false
}

func examplesOf(all []*doc.Func) (n int) {
	for _, f := range all {
		n += len(f.Examples)
	}
	return n
}

// hasExample reports whether the function, or the method of a type, has an example.
func hasExample(shown *doc.Package, name string) bool {
	of, method, isMethod := strings.Cut(name, ".")
	all := shown.Funcs
	for _, kind := range shown.Types {
		switch {
		case isMethod && kind.Name == of:
			all = append(all, kind.Methods...)
		case !isMethod:
			all = append(all, kind.Funcs...)
		}
	}
	if isMethod {
		name = method
	}
	for _, f := range all {
		if f.Name == name && len(f.Examples) > 0 {
			return true
		}
	}
	return false
}
