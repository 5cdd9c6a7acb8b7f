// Command mutants takes the rules of the package out, one at a time, and runs the tests that
// are to notice. It is run in the root of the tree.
//
// The mutants stand in testdata/mutants/*.txt. A mutant has a name, the rule that it takes
// out, the tests that are expected to notice ("kill", as for go test's -run, of the package in
// the root unless another is named), and edits:
//
//	mutant: campaign-again
//	rule: a repeated Campaign gives the key its value
//	kill: TestElectionCampaignAgain
//	kill: ./internal/compat TestContract//E5
//	under chaos: -faults stall
//	in: queue.join
//	- if found != nil {
//	+ if false {
//	  	v, err = q.setValue(ctx, v, found, txn.value)
//
// An edit names the declaration that it changes: a function, a method as Type.name, "type T",
// "var v", "const c", or "package" for the whole package. The file does not matter. Then come
// lines that go (-), lines that come (+), and lines that stay (a space). The lines that go or
// stay are looked for in the declaration and have to stand there once; "all in:" changes them
// wherever they stand. Code is compared token by token: white space, line ends and comments do
// not count. A line may be a part of a line of the code. Imports are added and dropped as needed.
//
// A mutant that does not apply or build is an error, not a kill. A mutant that no test notices
// lives, and a test is missing. -check finds the former, in seconds; make lint runs it.
//
// The tree itself is never changed: mutants are built with an overlay of the go command, which is
// in GOFLAGS for all that is run, so that it holds for a go command inside a test as well. What is
// compiled is the tree as it is at that moment, so leave it alone while the mutants run.
//
// -under NAME runs another command than the tests, for the mutants that have a line "under NAME:".
// The shell runs what -build says, if anything, and then what -command says, both with
//
//	$BIN    a path for a program that -build makes and -command runs
//	$FLAGS  what the mutant has in its line "under NAME:"
//
// A mutant under which -command succeeds lives. Otherwise the first line that -found matches
// tells what was found; without -found it is the first test that failed, as for tests. So a test
// binary with flags of its own, here one that runs worlds in virtual time, is
//
//	mutants -under virtual -build 'go test -c -o $BIN ./internal/virtual' \
//		-command '$BIN -test.run TestWorlds -hours 10 $FLAGS'
//
// -every runs it on the others as well, with no flags: who hunts at random wants that. But it
// leaves out those that have a line "beyond NAME:", which says why the command can't find them.
//
// The results are in README.md beside the mutants, and those of -under NAME in NAME.md, in capital
// letters. A mutant that was not run keeps its last result. The command fails unless all that
// were run are killed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"
)

// folder is where mutants and results are, from the root of the tree.
const folder = "testdata/mutants"

// options are the flags.
type options struct {
	check   bool
	only    *regexp.Regexp
	full    bool
	limit   time.Duration
	jobs    int
	under   string
	every   bool
	build   string
	command string
	found   *regexp.Regexp
	round   *regexp.Regexp
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process at once
	err := mutate(ctx, os.Args[1:])
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func flags(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("mutants", flag.ContinueOnError)
	pattern := func(p **regexp.Regexp) func(string) error {
		return func(text string) (err error) {
			*p, err = regexp.Compile(text)
			return err
		}
	}
	f.BoolVar(&o.check, "check", false, "only apply and type-check all mutants, and look whether their tests exist")
	f.Func("only", "run only the mutants whose names match the `regexp`", pattern(&o.only))
	f.BoolVar(&o.full, "full", false, "run those that live against all tests")
	f.DurationVar(&o.limit, "limit", 0, "the time for the tests of one mutant, or for -command (default 1m, or 1h)")
	f.IntVar(&o.jobs, "jobs", 1,
		"run so many mutants at a time; tests fail when they have to wait for a processor, so more than 1 is for idle machines")
	f.StringVar(&o.under, "under", "", "run -command instead of tests, on the mutants with a line \"under `name`:\"")
	f.BoolVar(&o.every, "every", false, "with -under, run the mutants without such a line too")
	f.StringVar(&o.build, "build", "", "a `command` of the shell that builds $BIN, for -under")
	f.StringVar(&o.command, "command", "", "the `command` of the shell that is to fail, for -under, with $BIN and $FLAGS")
	f.Func("found", "what -command found is the first line that the `regexp` matches", pattern(&o.found))
	f.Func("round", "the lines of -command's output that match the `regexp` begin rounds, which are counted", pattern(&o.round))
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if o.limit == 0 {
		o.limit = time.Minute
		if o.under != "" {
			o.limit = time.Hour
		}
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("%q is no flag", f.Arg(0))
	case o.jobs < 1:
		return o, errors.New("-jobs has to be 1 or more")
	case (o.under == "") != (o.command == ""):
		return o, errors.New("-under and -command need each other")
	}
	return o, nil
}

func mutate(ctx context.Context, args []string) error {
	o, err := flags(args)
	if err != nil {
		return err
	}
	all, err := read(filepath.FromSlash(folder))
	if err != nil {
		return err
	}
	tree, err := load(".")
	if err != nil {
		return err
	}
	if o.check {
		return check(tree, all)
	}
	if o.under != "" && !o.every {
		all = slices.DeleteFunc(all, func(m mutant) bool {
			_, marked := m.under[o.under]
			return !marked
		})
	}
	r := &runner{options: o, tree: tree}
	if r.tmp, err = os.MkdirTemp("", "mutants"); err != nil {
		return err
	}
	defer os.RemoveAll(r.tmp)
	return r.run(ctx, all)
}
