package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/scanner"
	"go/token"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// edit changes one declaration: the tokens of find become those of replace. White space, line
// ends and comments do not count, so that neither gofmt nor a reworded comment breaks an edit.
type edit struct {
	in      string // the declaration, see tree.decls
	all     bool   // wherever find stands in it; otherwise find must stand there once
	find    string
	replace string
}

// tree is the production files of one package.
type tree struct {
	dir   string
	fset  *token.FileSet
	files map[string]*source   // by name, without the folder
	decls map[string][]span    // "f", "T.method", "type T", "var v", "const c", and "package" for all
	names map[string]string    // the packages that an edit can use without an import of its own: name to path
	tests map[string]*ast.File // the test files that are part of the package
}

// source is a file, with its tokens.
type source struct {
	text   []byte
	tokens []lexeme
	syntax *ast.File
}

// lexeme is a token and the bytes where it stands.
type lexeme struct {
	text     string
	from, to int
}

// span is a part of a file.
type span struct {
	file     string
	from, to int
}

// std is the packages of the standard library that an edit can use in a tree that does not.
var std = []string{
	"bytes", "context", "errors", "fmt", "maps", "math", "math/rand/v2", "os", "runtime", "slices", "sort",
	"strconv", "strings", "sync", "sync/atomic", "time",
}

// load reads the package in the folder.
func load(dir string) (*tree, error) {
	pkg, err := build.ImportDir(dir, 0)
	if err != nil {
		return nil, err
	}
	t := &tree{
		dir: dir, fset: token.NewFileSet(), files: map[string]*source{}, decls: map[string][]span{},
		names: map[string]string{}, tests: map[string]*ast.File{},
	}
	for _, path := range std {
		t.names[nameOf(path)] = path
	}
	for _, name := range pkg.GoFiles {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		if err := t.add(name, text); err != nil {
			return nil, err
		}
	}
	for _, name := range pkg.TestGoFiles {
		if t.tests[name], err = parser.ParseFile(t.fset, filepath.Join(dir, name), nil, 0); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// add makes a file part of the tree.
func (t *tree) add(name string, text []byte) error {
	syntax, err := parser.ParseFile(t.fset, filepath.Join(t.dir, name), text, 0)
	if err != nil {
		return err
	}
	tokens, err := scan(text, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	t.files[name] = &source{text, tokens, syntax}
	declare := func(as string, node ast.Node) {
		from := t.fset.Position(node.Pos()).Offset
		t.decls[as] = append(t.decls[as], span{name, from, from + int(node.End()-node.Pos())})
	}
	t.decls["package"] = append(t.decls["package"], span{name, 0, len(text)})
	for _, spec := range syntax.Imports {
		if path := strings.Trim(spec.Path.Value, `"`); spec.Name == nil {
			t.names[nameOf(path)] = path
		}
	}
	for _, decl := range syntax.Decls {
		switch decl := decl.(type) {
		case *ast.FuncDecl:
			declare(funcName(decl), decl)
		case *ast.GenDecl:
			for _, spec := range decl.Specs {
				node := ast.Node(spec)
				if !decl.Lparen.IsValid() {
					node = decl // with the keyword
				}
				for _, as := range specNames(spec) {
					declare(decl.Tok.String()+" "+as, node)
				}
			}
		}
	}
	return nil
}

// specNames returns the names that a declaration of types, variables or constants gives.
func specNames(spec ast.Spec) []string {
	var names []string
	switch spec := spec.(type) {
	case *ast.TypeSpec:
		names = append(names, spec.Name.Name)
	case *ast.ValueSpec:
		for _, ident := range spec.Names {
			names = append(names, ident.Name)
		}
	}
	return names
}

// funcName is the name of a function, or of a method with its type: "T.method".
func funcName(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return f.Name.Name
	}
	of := f.Recv.List[0].Type
	for {
		switch t := of.(type) {
		case *ast.StarExpr:
			of = t.X
		case *ast.IndexExpr:
			of = t.X
		case *ast.IndexListExpr:
			of = t.X
		default:
			return of.(*ast.Ident).Name + "." + f.Name.Name
		}
	}
}

var version = regexp.MustCompile(`^v[0-9]+$`)

// nameOf is the name that a package of this path probably has.
func nameOf(importPath string) string {
	if base := path.Base(importPath); !version.MatchString(base) {
		return base
	}
	return path.Base(path.Dir(importPath))
}

// scan splits Go code into tokens. It leaves out the semicolons that line ends stand for, and
// comments unless the mode asks for them.
func scan(text []byte, mode scanner.Mode) ([]lexeme, error) {
	var (
		s      scanner.Scanner
		failed error
		out    []lexeme
	)
	file := token.NewFileSet().AddFile("", -1, len(text))
	s.Init(file, text, func(_ token.Position, msg string) { failed = cmp.Or(failed, errors.New(msg)) }, mode)
	for {
		pos, tok, lit := s.Scan()
		if tok == token.EOF {
			return out, failed
		}
		if tok == token.SEMICOLON && lit != ";" {
			continue
		}
		from, word := file.Offset(pos), cmp.Or(lit, tok.String())
		out = append(out, lexeme{word, from, from + len(word)})
	}
}

func hasComment(code string) bool {
	tokens, _ := scan([]byte(code), scanner.ScanComments)
	return slices.ContainsFunc(tokens, func(l lexeme) bool {
		return strings.HasPrefix(l.text, "//") || strings.HasPrefix(l.text, "/*")
	})
}

// find returns where the tokens stand one after the other in the parts.
func (t *tree) find(tokens []lexeme, parts []span) []span {
	same := func(a, b lexeme) bool { return a.text == b.text }
	var found []span
	for _, part := range parts {
		all := t.files[part.file].tokens
		for i := 0; i+len(tokens) <= len(all); i++ {
			here := all[i : i+len(tokens)]
			from, to := here[0].from, here[len(here)-1].to
			if from >= part.from && to <= part.to && slices.EqualFunc(here, tokens, same) {
				found = append(found, span{part.file, from, to})
				i += len(tokens) - 1
			}
		}
	}
	return found
}

// locate returns where an edit has to be made.
func (t *tree) locate(e edit) ([]span, error) {
	parts, ok := t.decls[e.in]
	if !ok {
		return nil, fmt.Errorf("no %s; did you mean %s?", e.in, strings.Join(nearest(e.in, t.decls), ", "))
	}
	tokens, err := scan([]byte(e.find), 0)
	if err != nil {
		return nil, fmt.Errorf("in %s: %w: %q", e.in, err, e.find)
	}
	if len(tokens) == 0 {
		return nil, fmt.Errorf("in %s: the edit has to find something: add a line that stays", e.in)
	}
	found := t.find(tokens, parts)
	switch {
	case len(found) == 0:
		return nil, fmt.Errorf("not in %s: %q; it stands in: %s", e.in, e.find, cmp.Or(t.holders(tokens), "nothing"))
	case len(found) > 1 && !e.all:
		return nil, fmt.Errorf("%d times in %s: %q; add a line that stays, or write \"all in:\"", len(found), e.in, e.find)
	}
	return found, nil
}

// holders names the declarations in which the tokens stand.
func (t *tree) holders(tokens []lexeme) string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(t.decls)) {
		if name != "package" && len(t.find(tokens, t.decls[name])) > 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// nearest returns the three names that are most like this one: methods and functions of the
// same last name first, then by the letters.
func nearest[V any](name string, names map[string]V) []string {
	last := func(name string) string { return name[strings.LastIndexAny(name, ". ")+1:] }
	far := func(other string) int {
		if last(other) == last(name) {
			return 0
		}
		return 1 + distance(strings.ToLower(name), strings.ToLower(other))
	}
	near := slices.SortedFunc(maps.Keys(names), func(a, b string) int {
		return cmp.Or(far(a)-far(b), cmp.Compare(a, b))
	})
	return near[:min(3, len(near))]
}

// distance counts the letters to add, to drop or to change on the way from a to b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// apply returns the files that the edits change, as they are then. All edits are found in the
// tree as it is, and none of them may overlap.
func (t *tree) apply(edits []edit) (map[string][]byte, error) {
	type change struct {
		span
		text string
	}
	changes := map[string][]change{}
	for _, e := range edits {
		if hasComment(e.find) || hasComment(e.replace) {
			return nil, fmt.Errorf("in %s: an edit has no comments: they do not count", e.in)
		}
		found, err := t.locate(e)
		if err != nil {
			return nil, err
		}
		for _, at := range found {
			changes[at.file] = append(changes[at.file], change{at, strings.TrimSpace(e.replace)})
		}
	}
	out := map[string][]byte{}
	for name, list := range changes {
		slices.SortFunc(list, func(a, b change) int { return a.from - b.from })
		var text bytes.Buffer
		done, old := 0, t.files[name]
		for _, c := range list {
			if c.from < done {
				return nil, fmt.Errorf("%s: two edits overlap at %q", name, c.text)
			}
			text.Write(old.text[done:c.from])
			text.WriteString(c.text)
			done = c.to
		}
		text.Write(old.text[done:])
		fixed, err := t.fixImports(name, text.Bytes())
		if err != nil {
			return nil, err
		}
		out[name] = fixed
	}
	return out, nil
}

// fixImports adds to a file the imports that it lacks, and blanks those that it has no more use
// for. The lines keep their numbers.
func (t *tree) fixImports(name string, text []byte) ([]byte, error) {
	file, err := parser.ParseFile(t.fset, filepath.Join(t.dir, name), text, 0)
	if err != nil {
		return nil, err
	}
	before, after := selected(t.files[name].syntax), selected(file)
	type insertion struct {
		at   int
		text string
	}
	var insertions []insertion // from the back of the file to its front
	for _, spec := range slices.Backward(file.Imports) {
		path := strings.Trim(spec.Path.Value, `"`)
		as := nameOf(path)
		if spec.Name != nil {
			as = spec.Name.Name
		}
		if before[as] && !after[as] {
			at := t.fset.Position(spec.Pos()).Offset
			if spec.Name != nil { // the blank takes the place of the name
				text = slices.Delete(text, at, at+len(spec.Name.Name))
			}
			insertions = append(insertions, insertion{at, "_ "})
		}
		delete(after, as)
	}
	for _, as := range slices.Sorted(maps.Keys(after)) {
		if path, ok := t.names[as]; ok {
			insertions = append(insertions, insertion{t.fset.Position(file.Name.End()).Offset, fmt.Sprintf("; import %q", path)})
		}
	}
	for _, i := range insertions {
		text = slices.Insert(text, i.at, []byte(i.text)...)
	}
	return text, nil
}

// selected returns the names before a dot that nothing in the file declares, which may be packages.
func selected(file *ast.File) map[string]bool {
	foreign := map[*ast.Ident]bool{}
	for _, ident := range file.Unresolved {
		foreign[ident] = true
	}
	names := map[string]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		if selector, ok := n.(*ast.SelectorExpr); ok {
			if ident, ok := selector.X.(*ast.Ident); ok && foreign[ident] {
				names[ident.Name] = true
			}
		}
		return true
	})
	return names
}
