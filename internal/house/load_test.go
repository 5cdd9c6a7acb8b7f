package house

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// root is the folder of the package that is looked at.
const root = "../.."

// source is the production files of the package in the root.
type source struct {
	fset  *token.FileSet
	files map[string]*ast.File // by name, without the folder
	texts map[string][]byte    // likewise
}

// names are the names of the files, sorted.
func (s *source) names() []string { return slices.Sorted(maps.Keys(s.files)) }

// offset is where a position stands in its file.
func (s *source) offset(pos token.Pos) int { return s.fset.Position(pos).Offset }

// listed is what the go command tells of a package.
type listed struct {
	ImportPath, Dir, Export string
	GoFiles                 []string
}

// list asks the go command for a package of the root. With all it tells of the packages that it
// imports, too, and where their types are.
func list(t *testing.T, args ...string) (all []listed) {
	run := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,Export,GoFiles"}, args...)...)
	run.Dir, run.Stderr = root, os.Stderr
	out, err := run.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, run.Start())
	for decoder := json.NewDecoder(out); ; {
		var l listed
		err := decoder.Decode(&l)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		all = append(all, l)
	}
	require.NoError(t, run.Wait())
	return all
}

// load reads the production files.
func load(t *testing.T) *source {
	s := &source{fset: token.NewFileSet(), files: map[string]*ast.File{}, texts: map[string][]byte{}}
	for _, name := range list(t, ".")[0].GoFiles {
		text, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		s.texts[name] = text
		s.files[name], err = parser.ParseFile(s.fset, name, text, parser.ParseComments)
		require.NoError(t, err)
	}
	return s
}

// check finds out what each name in the files stands for. What is imported is read as the
// compiler left it.
func (s *source) check(t *testing.T) (*types.Package, *types.Info) {
	exports := map[string]string{}
	for _, l := range list(t, "-export", "-deps", ".") {
		exports[l.ImportPath] = l.Export
	}
	imports := importer.ForCompiler(s.fset, "gc", func(path string) (io.ReadCloser, error) {
		if exports[path] == "" {
			return nil, fmt.Errorf("nothing is known of package %s", path)
		}
		return os.Open(exports[path])
	})
	info := &types.Info{
		Defs: map[*ast.Ident]types.Object{}, Uses: map[*ast.Ident]types.Object{},
		Selections: map[*ast.SelectorExpr]*types.Selection{}, Types: map[ast.Expr]types.TypeAndValue{},
	}
	var files []*ast.File
	for _, name := range s.names() {
		files = append(files, s.files[name])
	}
	pkg, err := (&types.Config{Importer: imports}).Check("root", s.fset, files, info)
	require.NoError(t, err)
	return pkg, info
}
