package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/build"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// check applies all mutants, type-checks each with the tests that are part of the package, and
// looks whether the tests exist that are to notice. It reports all that is wrong.
func check(t *tree, mutants []mutant) error {
	types, err := newChecker(t)
	if err != nil {
		return err
	}
	if err := types.check(nil); err != nil {
		return fmt.Errorf("the tree as it is: %w", err)
	}
	tests := map[string][]string{}
	var wrong []error
	for _, m := range mutants {
		files, err := t.apply(m.edits)
		if err == nil {
			err = types.check(files)
		}
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", m.name, err))
		}
		for _, k := range m.kills {
			if tests[k.pkg] == nil {
				if tests[k.pkg], err = testsOf(filepath.Join(t.dir, k.pkg)); err != nil {
					return err
				}
			}
			if name := missing(k.run, tests[k.pkg]); name != "" {
				wrong = append(wrong, fmt.Errorf("%s: %s has no test %s", m.name, k.pkg, name))
			}
		}
	}
	return errors.Join(wrong...)
}

// checker type-checks the package as it is after an edit.
type checker struct {
	tree *tree
	from types.Importer
}

func newChecker(t *tree) (*checker, error) {
	list := exec.Command("go", "list", "-export", "-deps", "-test", "-f", "{{.ImportPath}}\t{{.Export}}", ".")
	list.Dir, list.Stderr = t.dir, os.Stderr
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	exports := map[string]string{}
	for line := range strings.Lines(string(out)) {
		path, file, _ := strings.Cut(strings.TrimSpace(line), "\t")
		exports[path] = file
	}
	c := &checker{tree: t}
	c.from = importer.ForCompiler(t.fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })
	return c, nil
}

// check type-checks the tree with these files in place of its own.
func (c *checker) check(changed map[string][]byte) error {
	all := slices.Collect(maps.Values(c.tree.tests))
	for name, old := range c.tree.files {
		file := old.syntax
		if text, ok := changed[name]; ok {
			var err error
			if file, err = parser.ParseFile(c.tree.fset, name, text, parser.SkipObjectResolution); err != nil {
				return err
			}
		}
		all = append(all, file)
	}
	_, err := (&types.Config{Importer: c.from}).Check("", c.tree.fset, all, nil)
	return err
}

// testsOf returns the names of the tests in a folder.
func testsOf(dir string) ([]string, error) {
	pkg, err := build.ImportDir(dir, 0)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, name := range slices.Concat(pkg.TestGoFiles, pkg.XTestGoFiles) {
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil {
				names = append(names, f.Name.Name)
			}
		}
	}
	return names, nil
}

// missing returns the first alternative of a regexp for -run that no test matches.
func missing(run string, tests []string) string {
	for alternative := range strings.SplitSeq(run, "|") {
		name, _, _ := strings.Cut(alternative, "/")
		matches, err := regexp.Compile(name)
		if err != nil || !slices.ContainsFunc(tests, func(test string) bool {
			return strings.HasPrefix(test, "Test") && matches.MatchString(test)
		}) {
			return alternative
		}
	}
	return ""
}
