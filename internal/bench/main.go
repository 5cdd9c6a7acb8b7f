// Command bench compares this module's package with upstream's: the time, the raft
// entries, the calls and the allocations of one operation, for every workload that a
// goal is set for.
//
// Both libraries run in this process, in pairs of runs that directly follow each other,
// first the one, then the other, against one etcd in a child process. What else a
// machine is doing then falls on both, and the median of the pairs' ratios tells
// more than the times.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"example.com/etcd/concurrency/internal/bench/report"
)

// options are the flags.
type options struct {
	setting
	rtts      []time.Duration
	rounds    int
	workloads *regexp.Regexp
	without   *regexp.Regexp
	quick     bool
	profile   bool
	charts    bool
	places    bool
	rivalry   bool
	sessions  []int
	ttl       int
	window    time.Duration
	out       string
	update    string
	name      string
	serve     bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	o := options{workloads: new(regexp.Regexp), without: new(regexp.Regexp), rtts: []time.Duration{0}}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.IntVar(&o.members, "members", 1, "`number` of servers: 1 or 3")
	f.BoolVar(&o.fsync, "fsync", false, "let the servers wait for the disk")
	f.Func("rtt", "round trips added between client and server, such as 0,1ms,5ms,20ms", func(s string) (err error) {
		o.rtts, err = report.List(s, time.ParseDuration)
		return err
	})
	f.IntVar(&o.rounds, "rounds", 9, "`number` of pairs of runs; three times as many where one worker is alone or transactions conflict")
	f.TextVar(o.workloads, "workloads", regexp.MustCompile(""), "measure those that match a regular `expression`")
	f.TextVar(o.without, "without", regexp.MustCompile("^$"), "but not those that match this `expression`")
	f.BoolVar(&o.profile, "profile", false, "show where this package's side of the workloads spends processor time instead")
	f.BoolVar(&o.quick, "quick", false, "three rounds of what has limits that no noise excuses; fail beyond them")
	f.BoolVar(&o.charts, "charts", false, "measure what the pictures show, into out/series.csv")
	f.BoolVar(&o.places, "places", false, "measure what the number of places decides, into out/series.csv, as the program in places asks for")
	f.BoolVar(&o.rivalry, "contention", false, "measure transactions on one key instead, each for the window")
	f.Func("sessions", "watch idle sessions instead, such as 1000,5000", func(s string) (err error) {
		o.sessions, err = report.List(s, strconv.Atoi)
		return err
	})
	f.IntVar(&o.ttl, "ttl", 60, "`seconds` for which idle sessions live without a renewal")
	f.DurationVar(&o.window, "window", time.Minute, "`time` for which idle sessions are watched, or workers of -contention work")
	f.StringVar(&o.out, "out", "", "`folder` for the tables as Markdown, and the series")
	f.StringVar(&o.update, "update", "", "Markdown `file` in which the tables are brought up to date")
	f.StringVar(&o.name, "name", "table", "`name` of the place in that file, and of the file in the folder")
	f.BoolVar(&o.serve, "serve", false, "run the servers only, which the program itself asks for")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("%q is no flag", f.Arg(0))
	case (o.charts || o.places) && o.out == "":
		return o, errors.New("-charts and -places take a folder, -out")
	case o.rounds < 1 || len(o.rtts) == 0:
		return o, errors.New("nothing to measure")
	}
	if o.quick {
		o.rounds = 3
	}
	o.rtt = o.rtts[0]
	return o, nil
}

// run is the program but for its exit status.
func run(ctx context.Context, args []string, out io.Writer) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if o.serve {
		return serve(o.setting, os.Stdin, out)
	}
	if o.out != "" {
		if err := os.MkdirAll(o.out, 0o755); err != nil {
			return err
		}
	}
	var tables []report.Table
	var found []string
	var facts string
	for _, o.rtt = range o.rtts {
		c, err := launch(ctx, o.setting)
		if err != nil {
			return err
		}
		facts = provenance(time.Now(), c, o)
		more, beyond, err := o.measure(ctx, &lab{cluster: c, rounds: o.rounds})
		c.close()
		if err != nil {
			return err
		}
		if o.rivalry && len(tables) > 0 { // the round trip is a column
			tables[0].Rows = append(tables[0].Rows, more[0].Rows...)
		} else {
			tables = append(tables, more...)
		}
		found = append(found, beyond...)
	}
	fmt.Fprintln(out, facts)
	for _, t := range tables {
		if err := t.Print(out); err != nil {
			return err
		}
	}
	if err := o.publish(tables, facts); err != nil {
		return err
	}
	if o.quick && len(found) > 0 {
		return errors.New("beyond what noise explains:\n" + strings.Join(found, "\n"))
	}
	return nil
}

// measure gives the tables of one setting, and what breaks a limit there.
func (o options) measure(ctx context.Context, l *lab) (tables []report.Table, found []string, err error) {
	if o.sessions != nil {
		t, err := l.idlers(ctx, o)
		return []report.Table{t}, nil, err
	}
	if o.rivalry {
		t, err := l.rivalry(ctx, o)
		return []report.Table{t}, nil, err
	}
	chosen := workloads()
	switch {
	case o.charts:
		chosen = series()
	case o.places:
		chosen = places()
	}
	chosen = slices.DeleteFunc(chosen, func(w workload) bool {
		return !o.workloads.MatchString(w.name) || o.without.MatchString(w.name) || o.quick && w.limits == nil
	})
	if o.profile {
		t, err := l.profiles(ctx, chosen)
		return []report.Table{t}, nil, err
	}
	var rows []row
	for _, w := range chosen {
		r, err := l.contest(ctx, w)
		if err != nil {
			return nil, nil, err
		}
		fmt.Fprintf(os.Stderr, "%s: %s\n", w.name, report.Number(report.Median(report.Ratios(r.base.times, r.here.times))))
		rows = append(rows, r)
	}
	title := fmt.Sprintf("Added round trip: %v", o.rtt)
	tables = append(tables, comparison(title, rows, o.rtt == 0))
	if t := contention(title+"; what single transactions met with", rows); len(t.Rows) > 0 {
		tables = append(tables, t)
	}
	if o.charts || o.places {
		err = os.WriteFile(filepath.Join(o.out, "series.csv"), encode(rows), 0o644)
	}
	return tables, breaches(rows), err
}
