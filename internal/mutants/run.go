package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// runner runs mutants.
type runner struct {
	options
	tree *tree
	tmp  string
}

// bed is where a mutant is built and run: its folders, and the environment of all commands.
type bed struct {
	dir string
	env []string
}

// errBuild says that a mutant does not build.
var errBuild = errors.New("does not build")

// complaint is a line of the go command's that says more than which package it is about.
var complaint = regexp.MustCompile(`(?m)^[^#\n].*`)

// run runs those of the mutants that are wanted, and writes the results down.
func (r *runner) run(ctx context.Context, all []mutant) error {
	wanted := slices.DeleteFunc(slices.Clone(all), func(m mutant) bool {
		return m.beyond[r.under] != "" || r.only != nil && !r.only.MatchString(m.name)
	})
	if r.under == "" {
		fmt.Println("== the same tests on the tree as it is")
		if err := r.unmutated(ctx, wanted); err != nil {
			return err
		}
	}
	fmt.Printf("== %d mutants\n", len(wanted))
	results := r.each(ctx, wanted)
	killed := 0
	for _, result := range results {
		if isKill(result) {
			killed++
		}
	}
	fmt.Printf("killed %d of %d\n", killed, len(wanted))
	if err := r.report(all, results); err != nil {
		return err
	}
	if killed < len(wanted) {
		return fmt.Errorf("%d are not killed", len(wanted)-killed)
	}
	return nil
}

// each runs the mutants, as many at a time as is wanted, and returns what became of them. Those
// that an interrupt ended, or kept from being run, have no result.
func (r *runner) each(ctx context.Context, wanted []mutant) map[string]string {
	var (
		mu      sync.Mutex // guards results and the output
		results = map[string]string{}
		work    sync.WaitGroup
		free    = make(chan struct{}, r.jobs)
	)
	for _, m := range wanted {
		free <- struct{}{}
		work.Go(func() {
			defer func() { <-free }()
			result := r.result(ctx, m)
			if ctx.Err() != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			results[m.name] = result
			fmt.Printf("%-28s %-88s %s\n", m.name, m.rule, result)
		})
	}
	work.Wait()
	return results
}

// unmutated runs the tests of the mutants on the tree as it is: what fails there kills nothing.
func (r *runner) unmutated(ctx context.Context, wanted []mutant) error {
	b, err := r.bed("unmutated", nil)
	if err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	regexps := map[string][]string{}
	for _, m := range wanted {
		for _, k := range m.kills {
			if !slices.Contains(regexps[k.pkg], k.run) {
				regexps[k.pkg] = append(regexps[k.pkg], k.run)
			}
		}
	}
	for pkg, runs := range regexps {
		if out, err := b.tests(ctx, kill{pkg, strings.Join(runs, "|")}, 10*time.Minute); err != nil {
			return fmt.Errorf("%s\nthe tests fail without a mutant, so that nothing can be said: %w", out, err)
		}
	}
	return nil
}

// result returns what became of a mutant: what noticed it, LIVES, or an error.
func (r *runner) result(ctx context.Context, m mutant) string {
	files, err := r.tree.apply(m.edits)
	if err != nil {
		return "ERROR: does not apply: " + err.Error()
	}
	b, err := r.bed(m.name, files)
	if err != nil {
		return "ERROR: " + err.Error()
	}
	defer os.RemoveAll(b.dir)
	var (
		out  []byte
		tell = culprit
	)
	if r.under == "" {
		out, err = r.tested(ctx, b, m)
	} else {
		if r.found != nil {
			tell = r.discovery
		}
		out, err = r.commanded(ctx, b, m.under[r.under])
	}
	switch {
	case err == nil:
		return "LIVES"
	case errors.Is(err, errBuild):
		line := strings.ReplaceAll(complaint.FindString(string(out)), b.dir+string(filepath.Separator), "")
		return fmt.Sprintf("ERROR: %v: %s", err, line)
	}
	return cmp.Or(tell(out), "ERROR: failed without a word")
}

// tested runs the tests that are to notice a mutant, and all of them if that is wanted.
func (r *runner) tested(ctx context.Context, b *bed, m mutant) (out []byte, err error) {
	for _, k := range m.kills {
		if out, err = b.tests(ctx, k, r.limit); err != nil {
			return out, err
		}
	}
	if r.full {
		return b.do(ctx, time.Hour, ".", "go", "test", "-count=1", "-timeout=20m", "./...")
	}
	return nil, nil
}

// commanded builds and runs the command that is run instead of tests.
func (r *runner) commanded(ctx context.Context, b *bed, flags string) ([]byte, error) {
	b.env = append(b.env, "BIN="+filepath.Join(b.dir, "program"), "FLAGS="+flags)
	if r.build != "" {
		if out, err := b.do(ctx, time.Hour, ".", "sh", "-c", r.build); err != nil {
			return out, errBuild
		}
	}
	// No file names from patterns: flags have regexps.
	return b.do(ctx, r.limit, ".", "sh", "-f", "-c", r.command)
}

// bed makes the folders of a mutant, and the overlay that puts these files over the tree's.
func (r *runner) bed(name string, files map[string][]byte) (*bed, error) {
	b := &bed{dir: filepath.Join(r.tmp, name)}
	data := filepath.Join(b.dir, "data")
	if err := os.MkdirAll(data, 0o755); err != nil {
		return nil, err
	}
	var overlay struct{ Replace map[string]string }
	overlay.Replace = map[string]string{}
	for name, text := range files {
		path, err := filepath.Abs(filepath.Join(r.tree.dir, name))
		if err != nil {
			return nil, err
		}
		overlay.Replace[path] = filepath.Join(b.dir, name)
		if err := os.WriteFile(overlay.Replace[path], text, 0o644); err != nil {
			return nil, err
		}
	}
	text, err := json.Marshal(overlay)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(b.dir, "overlay.json")
	b.env = append(os.Environ(), "TMPDIR="+data, "GOFLAGS="+os.Getenv("GOFLAGS")+" -overlay="+file)
	return b, os.WriteFile(file, text, 0o644)
}

// tests builds the tests of a package, once, and runs those that match. A test that hangs is
// named by its binary, which has a limit of its own.
func (b *bed) tests(ctx context.Context, k kill, limit time.Duration) ([]byte, error) {
	binary := filepath.Join(b.dir, strings.NewReplacer("/", "-", ".", "-").Replace(k.pkg)+".test")
	if _, err := os.Stat(binary); err != nil {
		out, err := b.do(ctx, time.Hour, ".", "go", "test", "-c", "-ldflags=-s -w", "-o", binary, k.pkg)
		if err != nil {
			return out, errBuild
		}
	}
	return b.do(ctx, limit+10*time.Second, k.pkg, binary, "-test.run="+k.run, "-test.timeout="+limit.String())
}

// do runs a command and returns what it prints. At the limit, or when ctx ends, it is killed
// with all the processes that it has started.
func (b *bed) do(ctx context.Context, limit time.Duration, dir, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, b.env, &out, &out
	killWithChildren(cmd)
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	return out.Bytes(), err
}
