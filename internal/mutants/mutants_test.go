package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// house is a package to take rules out of, in two files.
var house = map[string]string{
	"go.mod": "module house\n\ngo 1.26\n",
	"door.go": `package house

import "errors"

type door struct{ open, locked bool }

var tries = 3

// enter opens the door.
func (d *door) enter() error {
	if d.locked {
		return errors.New("locked") // nobody is in
	}
	d.open = true
	return nil
}
`,
	"room.go": `package house

const (
	least = 1
	most  = 4
)

type room[T any] struct{ things []T }

func (r *room[T]) add(thing T) {
	r.things = append(r.things, thing)
	r.things = append(r.things, thing)
}

func full(n int) bool { return n >= most }
`,
	"house_test.go": `package house

import (
	"runtime"
	"testing"
)

func TestEnter(t *testing.T) {
	t.Run("locked", func(t *testing.T) {
		if (&door{locked: true}).enter() == nil {
			t.Error("entered")
		}
	})
}

func TestFull(*testing.T) {
	for full(3) {
		runtime.Gosched()
	}
}

func TestTries(t *testing.T) {
	if tries != 3 {
		t.Fail()
	}
}

func TestBroken(t *testing.T) { t.Fail() }
`,
}

// folderOf writes the files of a package into a folder.
func folderOf(t *testing.T, files map[string]string) string {
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	return dir
}

// edited applies the edits of one mutant to the house.
func edited(t *testing.T, edits string) (map[string][]byte, error) {
	tree, err := load(folderOf(t, house))
	require.NoError(t, err)
	mutants, err := parse("mutant: m\nrule: r\nkill: TestEnter\n" + edits)
	require.NoError(t, err)
	return tree.apply(mutants[0].edits)
}

func TestEdit(t *testing.T) {
	for name, c := range map[string]struct{ edits, file, want string }{
		"a line that goes":                 {"in: full\n- return n >= most\n", "room.go", "func full(n int) bool {}"},
		"a line that comes behind another": {"in: door.enter\n  d.open = true\n+ d.locked = true\n", "door.go", "\td.open = true\nd.locked = true\n"},
		"white space and comments do not count": {
			"in: door.enter\n- if d . locked\n- {\n- return errors.New(\"locked\")\n- }\n", "door.go", "error {\n\t\n\td.open",
		},
		"a part of a line":           {"in: door.enter\n- \"locked\"\n+ \"shut\"\n", "door.go", `errors.New( "shut") // nobody`},
		"everywhere":                 {"all in: room.add\n- append(r.things, thing)\n+ nil\n", "room.go", "\tr.things = nil\n\n\tr.things = nil\n"},
		"two edits of one function":  {"in: door.enter\n- if d.locked {\n+ if true {\n\nin: door.enter\n- true\n+ false\n", "door.go", "d.open =  false"},
		"a type":                     {"in: type door\n- locked\n+ shut\n", "door.go", "open,  shut\n bool"},
		"a variable, with its word":  {"in: var tries\n- var tries = 3\n+ var tries = 9\n", "door.go", "var tries = 9"},
		"a constant among others":    {"in: const most\n- 4\n+ 5\n", "room.go", "most  =  5"},
		"whatever declares it":       {"in: package\n- open, locked bool\n+ locked, open bool\n", "door.go", "locked, open bool"},
		"an import that is needed":   {"in: full\n- n >= most\n+ fmt.Sprint(n) == \"4\"\n", "room.go", `package house; import "fmt"`},
		"an import without use":      {"in: door.enter\n- errors.New(\"locked\")\n+ nil\n", "door.go", `import _ "errors"`},
		"an import for another":      {"in: door.enter\n- errors.New(\"locked\")\n+ fmt.Errorf(\"\")\n", "door.go", `package house; import "fmt"`},
		"a variable is no import":    {"in: full\n+ time := struct{ now int }{n}\n+ n = time.now\n  return\n", "room.go", "package house\n"},
		"a file that has been moved": {"in: room.add\n- add(thing T)\n+ add(thing, other T)\n", "room.go", "add(thing, other T)"},
	} {
		t.Run(name, func(t *testing.T) {
			files, err := edited(t, c.edits)
			require.NoError(t, err)
			require.Len(t, files, 1)
			got, err := scan(files[c.file], 0)
			require.NoError(t, err)
			want, err := scan([]byte(c.want), 0)
			require.NoError(t, err)
			tree := &tree{files: map[string]*source{"": {tokens: got}}}
			assert.NotEmpty(t, tree.find(want, []span{{"", 0, len(files[c.file])}}), "%s", files[c.file])
		})
	}
}

func TestEditOfCodeThatMoved(t *testing.T) {
	moved := map[string]string{
		"all.go": "package house\n\ntype gate struct{ locked bool }\n\nfunc (g gate) enter() bool { return !g.locked }\n" +
			"\nfunc (g gate) leave() bool { return g.locked }\n",
	}
	tree, err := load(folderOf(t, moved))
	require.NoError(t, err)
	for in, want := range map[string]string{
		"gate.enter": "",
		"door.enter": "no door.enter; did you mean gate.enter, ",
		"gate.leave": `not in gate.leave: "!g.locked"; it stands in: gate.enter`,
		"type gat":   "no type gat; did you mean type gate, ",
	} {
		_, err := tree.apply([]edit{{in: in, find: "!g.locked", replace: "true"}})
		if want == "" {
			assert.NoError(t, err)
		} else {
			assert.ErrorContains(t, err, want)
		}
	}
}

func TestEditThatDoesNotApply(t *testing.T) {
	for edits, want := range map[string]string{
		"in: room.add\n- append(r.things, thing)\n":                            "2 times in room.add",
		"in: full\n- n > most\n":                                               "not in full",
		"in: full\n- n >= mos\n":                                               "not in full", // a part of a word
		"in: full\n+ return true\n":                                            "has to find something",
		"in: full\n- return n >= most\n+ return true // always\n":              "has no comments",
		"in: full\n- \"n\n":                                                    "not terminated",
		"in: full\n- return n >= most\n+ return )\n":                           "expected operand",
		"in: full\n- return n >= most\nin: full\n- n >= most\n+ true\n":        "two edits overlap",
		"in: package\n- return nil\n+ return\nin: fulll\n- return n >= most\n": "no fulll; did you mean full, ",
	} {
		_, err := edited(t, edits)
		assert.ErrorContains(t, err, want, edits)
	}
}

func TestParse(t *testing.T) {
	mutants, err := parse("# a theme\n\nmutant: a-1\nrule:  r\nkill: TestA/b c|TestD\nkill: ./internal/x TestE\n" +
		"under chaos:\nunder virtual: -hours 1\nin: f\n  stays\n-\tgoes\n+ comes\n\nmutant: b\nrule: s\nkill: TestB\nbeyond chaos: nobody sees\nall in: T.m\n- gone\n")
	require.NoError(t, err)
	assert.Equal(t, []mutant{{
		name: "a-1", rule: "r", kills: []kill{{".", "TestA/b c|TestD"}, {"./internal/x", "TestE"}},
		under: map[string]string{"chaos": "", "virtual": "-hours 1"}, beyond: map[string]string{},
		edits: []edit{{in: "f", find: " stays\n\tgoes\n", replace: " stays\n comes\n"}},
	}, {
		name: "b", rule: "s", kills: []kill{{".", "TestB"}}, under: map[string]string{}, beyond: map[string]string{"chaos": "nobody sees"},
		edits: []edit{{in: "T.m", all: true, find: " gone\n"}},
	}}, mutants)

	for text, want := range map[string]string{
		"rule: r\n":                         "1: \"rule: r\" before the first mutant",
		"mutant: A b\n":                     `1: "A b" is no name`,
		"mutant: a\nrule:\n":                "2: rule of what?",
		"mutant: a\nrules: r\n":             "2: what is",
		"mutant: a\n- gone\n":               "2: what is",
		"mutant: a\nkill: (\n":              "2: error parsing regexp",
		"mutant: a\nrule: r\nkill: TestA\n": "a has to have a rule, a kill and an edit",
		"mutant: a\nbeyond x:\n":            "2: beyond x of what?",
		"mutant: a\nrule: r\nkill: TestA\nunder x:\nbeyond x: y\nin: f\n- gone\n": "a is both under and beyond x",
	} {
		_, err := parse(text)
		assert.ErrorContains(t, err, want)
	}
}

const mutantsOfTheHouse = `
mutant: killed
rule: a locked door stays shut
kill: TestEnter
in: door.enter
- d.locked
+ false

mutant: hangs
rule: there is an end
kill: TestFull
beyond gate: it has no end
in: full
- >=
+ <

mutant: lives
rule: nobody looks
kill: TestEnter
under gate: a* b
in: var tries
- 3
+ 9

mutant: unbuilt
rule: types fit
kill: TestEnter/locked
in: full
- n >= most
+ n
`

func TestCheck(t *testing.T) {
	tree, err := load(folderOf(t, house))
	require.NoError(t, err)
	mutants, err := parse(mutantsOfTheHouse)
	require.NoError(t, err)
	mutants[0].kills = append(mutants[0].kills, kill{".", "TestEnter|TestGone$/x"})
	mutants[2].edits[0].in = "var tris"
	err = check(tree, mutants)
	assert.ErrorContains(t, err, "killed: . has no test TestGone$/x\nlives: no var tris; did you mean var tries, ")
	assert.ErrorContains(t, err, "unbuilt: room.go:15:32: cannot use n (variable of type int) as bool value")
	assert.NotContains(t, err.Error(), "hangs")
}

func TestRun(t *testing.T) {
	dir := folderOf(t, house)
	t.Chdir(dir)
	require.NoError(t, os.MkdirAll(folder, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(folder, "all.txt"), []byte(mutantsOfTheHouse), 0o644))
	report := func(name string) string {
		text, err := os.ReadFile(filepath.Join(folder, name))
		require.NoError(t, err)
		return string(text)
	}

	assert.ErrorContains(t, mutate(t.Context(), []string{"-only", "killed|lives|unbuilt", "-jobs", "2"}), "2 are not killed")
	assert.Contains(t, report("README.md"), ": killed 1 of 4.\n")
	assert.Contains(t, report("README.md"), "\n| hangs | there is an end | ERROR: not run |\n"+
		"| killed | a locked door stays shut | TestEnter/locked |\n| lives | nobody looks | LIVES |\n"+
		"| unbuilt | types fit | ERROR: does not build: room.go:15:32: cannot use n ")

	// What was not run keeps its result.
	assert.NoError(t, mutate(t.Context(), []string{"-only", "hangs", "-limit", "1s"}))
	assert.Contains(t, report("README.md"), "\n| hangs | there is an end | TestFull (hung) |\n| killed | a locked door stays shut | TestEnter/locked |\n")

	// All tests look, when that is wanted.
	assert.NoError(t, mutate(t.Context(), []string{"-only", "lives", "-full"}))
	assert.Contains(t, report("README.md"), "\n| lives | nobody looks | TestTries |\n")

	// A test that fails without the mutant kills nothing.
	broken := "mutant: broken\nrule: r\nkill: TestBroken\nin: full\n- >=\n+ >\n"
	require.NoError(t, os.WriteFile(filepath.Join(folder, "broken.txt"), []byte(broken), 0o644))
	assert.ErrorContains(t, mutate(t.Context(), []string{"-only", "broken"}), "fail without a mutant")

	// Under another command: the overlay is there for whatever it builds.
	under := []string{"-under", "gate", "-found", "flags", "-round", "^==", "-command"}
	gate := `$BIN -test.run TestTries || { echo == && echo "flags $FLAGS|" && false; }`
	assert.NoError(t, mutate(t.Context(), append(under, gate, "-build", "go test -c -o $BIN .")))
	assert.Contains(t, report("GATE.md"), ": found 1 of 1.\n")
	assert.Contains(t, report("GATE.md"), "| lives | nobody looks | round 1: flags a* b\\| |")
	assert.ErrorContains(t, mutate(t.Context(), append(under, "true")), "1 are not killed")

	// Those that it can't find are not looked for.
	every := append([]string{"-every", "-only", "hangs|lives", "-build", "go test -c -o $BIN ."}, under...)
	assert.NoError(t, mutate(t.Context(), append(every, gate)))
	assert.Contains(t, report("GATE.md"), ": found 1 of 4.\n")
	assert.Contains(t, report("GATE.md"), "\n## Not looked for\n")
	assert.Contains(t, report("GATE.md"), "\n| hangs | there is an end | it has no end |\n")

	assert.Error(t, mutate(t.Context(), append(under, "exit 3")))
	assert.Contains(t, report("GATE.md"), "| ERROR: failed otherwise |")
}

func TestCulprit(t *testing.T) {
	for out, want := range map[string]string{
		"--- FAIL: TestA (1s)\n    --- FAIL: TestA/b (1s)\n--- FAIL: TestB (0s)\n": "TestA/b",
		"panic: test timed out\n\trunning tests:\n\t\tTestA/c (1s)\n":              "TestA/c (hung)",
		"goleak: one goroutine\npanic: x\n":                                        "TestMain (goleak: one goroutine)",
		"fatal error: all asleep\npanic: y\n":                                      "fatal error: all asleep",
		"ok\n":                                                                     "",
	} {
		assert.Equal(t, want, culprit([]byte(out)))
	}
}
