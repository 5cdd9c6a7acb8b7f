package main

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// mutant is a rule taken out of the package.
type mutant struct {
	name   string
	rule   string
	kills  []kill
	under  map[string]string // the other commands that are to find it, with the flags it has for them
	beyond map[string]string // the other commands that can't find it, with the reason
	edits  []edit
}

// kill is the tests of a package that are expected to notice.
type kill struct {
	pkg string
	run string // a regexp, as of go test's -run
}

// read returns the mutants of a folder's *.txt, by name.
func read(dir string) ([]mutant, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil {
		return nil, err
	}
	all := map[string]mutant{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		mutants, err := parse(string(text))
		if err != nil {
			return nil, fmt.Errorf("%s:%w", file, err)
		}
		for _, m := range mutants {
			if _, twice := all[m.name]; twice {
				return nil, fmt.Errorf("%s: two mutants are called %s", file, m.name)
			}
			all[m.name] = m
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no mutants in %s", dir)
	}
	return slices.SortedFunc(maps.Values(all), func(a, b mutant) int { return cmp.Compare(a.name, b.name) }), nil
}

var (
	keyed     = regexp.MustCompile(`^(mutant|rule|kill|in|all in|(?:under|beyond) [a-z]+):\s*(.*?)\s*$`)
	mutantIs  = regexp.MustCompile(`^[a-z0-9-]+$`)
	inPackage = regexp.MustCompile(`^(\./\S*)\s+(\S.*)$`)
)

// parse reads mutants; the help of the program shows their form. An error begins with the line.
func parse(text string) ([]mutant, error) {
	var out []mutant
	for i, line := range strings.Split(text, "\n") {
		var err error
		switch found := keyed.FindStringSubmatch(line); {
		case strings.TrimSpace(line) == "" || line[0] == '#':
		case found != nil && found[1] == "mutant":
			if !mutantIs.MatchString(found[2]) {
				err = fmt.Errorf("%q is no name", found[2])
			}
			out = append(out, mutant{name: found[2], under: map[string]string{}, beyond: map[string]string{}})
		case len(out) == 0:
			err = fmt.Errorf("%q before the first mutant", line)
		case found != nil:
			err = out[len(out)-1].set(found[1], found[2])
		default:
			err = out[len(out)-1].diff(line)
		}
		if err != nil {
			return nil, fmt.Errorf("%d: %w", i+1, err)
		}
	}
	for _, m := range out {
		if m.rule == "" || len(m.kills) == 0 || len(m.edits) == 0 {
			return nil, fmt.Errorf(" %s has to have a rule, a kill and an edit", m.name)
		}
		for name := range m.beyond {
			if _, both := m.under[name]; both {
				return nil, fmt.Errorf(" %s is both under and beyond %s", m.name, name)
			}
		}
	}
	return out, nil
}

// set takes a line with a key.
func (m *mutant) set(key, value string) error {
	under, isUnder := strings.CutPrefix(key, "under ")
	beyond, isBeyond := strings.CutPrefix(key, "beyond ")
	switch {
	case isUnder:
		m.under[under] = value
		return nil
	case value == "":
		return fmt.Errorf("%s of what?", key)
	case isBeyond:
		m.beyond[beyond] = value
	case key == "rule":
		m.rule = value
	case key == "kill":
		k := kill{".", value}
		if parts := inPackage.FindStringSubmatch(value); parts != nil {
			k = kill{parts[1], parts[2]}
		}
		if _, err := regexp.Compile(k.run); err != nil {
			return err
		}
		m.kills = append(m.kills, k)
	default: // in, all in
		m.edits = append(m.edits, edit{in: value, all: key == "all in"})
	}
	return nil
}

// diff takes a line of an edit: one that goes, comes or stays.
func (m *mutant) diff(line string) error {
	if len(m.edits) == 0 || !strings.Contains("-+ \t", line[:1]) {
		return fmt.Errorf("what is %q?", line)
	}
	e, code := &m.edits[len(m.edits)-1], line[1:]+"\n"
	if line[0] != '+' {
		e.find += code
	}
	if line[0] != '-' {
		e.replace += code
	}
	return nil
}
