// Command chaos lets many clients lock, elect and transact on a cluster of three members
// while connections, members, leases and keys fail at random, and checks what it has
// recorded. RELIABILITY.md, in the root of the tree, says what is done and what is checked.
//
// A seed gives the order of each client's work and that of the faults; how they meet is
// up to the scheduler, so that a seed makes a run alike, not the same.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	duration time.Duration
	grace    time.Duration
	seed     uint64
	upstream bool
	evidence string
	faults   *regexp.Regexp // of their names; nil: all
	failFast bool
}

// roundLength is the longest time for which one cluster is tormented. A longer run is made
// of rounds, each on a cluster of its own and checked at its end, with seeds that count up.
const roundLength = 2 * time.Minute

func main() {
	if spec := os.Getenv(childEnv); spec != "" {
		if err := child(spec, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "chaos: child:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process at once
	if err := torment(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("chaos", flag.ContinueOnError)
	f.DurationVar(&o.duration, "duration", time.Minute, "how long the faults go on, all rounds together")
	f.Uint64Var(&o.seed, "seed", 0, "`seed` of the first round; 0 takes one at random")
	f.BoolVar(&o.upstream, "upstream", false,
		"let all clients run upstream's package, and fail unless violations are found")
	f.StringVar(&o.evidence, "evidence", "", "`folder` in which the evidence of violations is left (default: a temporary one)")
	f.DurationVar(&o.grace, "grace", 0, "`time` added to twice the TTL in which every name must be free, for a machine that is busy")
	f.BoolVar(&o.failFast, "fail-fast", false, "stop after the first round with a violation of the package in question")
	f.Func("faults", "do only that harm whose name matches the `regexp`", func(text string) (err error) {
		if o.faults, err = regexp.Compile(text); err != nil {
			return err
		}
		if !slices.ContainsFunc(chosen(o.faults), func(p pair) bool { return len(p.harms) > 0 }) {
			return errors.New("no fault has such a name")
		}
		return nil
	})
	if err := f.Parse(args); err != nil {
		return o, err
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("%q is no flag", f.Arg(0))
	case o.duration < time.Second:
		return o, fmt.Errorf("a duration of %v is too short to show anything", o.duration)
	}
	if o.seed == 0 {
		o.seed = rand.Uint64N(1e9) + 1
	}
	return o, nil
}

// torment is the program but for its exit status.
func torment(ctx context.Context, args []string, out io.Writer) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "seed %d, %v, %s\n", o.seed, o.duration, time.Now().UTC().Format(time.DateOnly))
	total := newTally()
	for seed, left := o.seed, o.duration; left > 0 && ctx.Err() == nil; seed++ {
		length := min(left, roundLength)
		left -= length
		report, err := round(ctx, seed, length, o)
		if report != nil {
			report.print(out)
			total.add(report.tally)
		}
		if err != nil {
			total.print(out)
			return fmt.Errorf("seed %d: %w", seed, err)
		}
		if o.failFast && len(report.own) > 0 {
			break
		}
	}
	total.print(out)
	switch found := total.violations[o.upstream]; {
	case ctx.Err() != nil:
		return ctx.Err()
	case o.upstream && found == 0:
		return errors.New("no violation of upstream's: what do the checks see?")
	case !o.upstream && found > 0:
		return fmt.Errorf("%d violations", found)
	}
	return nil
}
