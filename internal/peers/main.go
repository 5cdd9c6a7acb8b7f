// Command peers compares the lock of this module's package with its peers: with upstream's
// package, with ZooKeeper, and with two libraries of locks in Redis.
//
// Each server is a process of its own, on a free loopback port, without waiting for a disk.
// The clients run in this process. Every round measures one library after the other, so that
// what else the machine is doing falls on all. The medians of the rounds' ratios tell more
// than the times.
//
// It is a module of its own, so that the peers' clients are no business of those who use the
// package. It ends with status 3 if the program of a server is missing.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"example.com/etcd/concurrency/internal/bench/report"
)

// The statuses with which the program ends when it fails.
const (
	failed  = 1
	lacking = 3 // the program of a server
)

// options are the flags.
type options struct {
	rounds    int
	window    time.Duration
	warm      time.Duration
	rtts      []time.Duration
	crowds    []int
	line      int
	workloads *regexp.Regexp
	libraries *regexp.Regexp
	data      string
	jars      string
	out       string
	update    string
	serve     bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	fmt.Fprintln(os.Stderr, "peers:", err)
	if errors.Is(err, errMissing) {
		os.Exit(lacking)
	}
	os.Exit(failed)
}

func parse(args []string) (options, error) {
	o := options{workloads: new(regexp.Regexp), libraries: new(regexp.Regexp), rtts: []time.Duration{0, 5 * time.Millisecond}, crowds: []int{2, 8, 16, 32}}
	f := flag.NewFlagSet("peers", flag.ContinueOnError)
	f.IntVar(&o.rounds, "rounds", 9, "`number` of runs of each library")
	f.DurationVar(&o.window, "window", 2*time.Second, "`time` for which a lock goes round in one run")
	f.DurationVar(&o.warm, "warm", 5*time.Second, "`time` for which each library works before anything is measured")
	f.Func("rtt", "round trips added between client and server (default 0,5ms)", func(s string) (err error) {
		o.rtts, err = report.List(s, time.ParseDuration)
		return err
	})
	f.Func("contenders", "`numbers` of those among whom a lock goes round (default 2,8,16,32)", func(s string) (err error) {
		o.crowds, err = report.List(s, strconv.Atoi)
		return err
	})
	f.IntVar(&o.line, "line", 200, "`number` of those who wait in a line")
	f.TextVar(o.workloads, "workloads", regexp.MustCompile(""), "measure those that match a regular `expression`")
	f.TextVar(o.libraries, "libraries", regexp.MustCompile(""), "measure those beside \"here\" that match a regular `expression`")
	f.StringVar(&o.data, "data", memory(), "`folder` of the servers' data")
	f.StringVar(&o.jars, "zookeeper", "/usr/share/java/zookeeper.jar", "class `path` of ZooKeeper's server")
	f.StringVar(&o.out, "out", "", "`folder` for the points of the pictures, peers.csv")
	f.StringVar(&o.update, "update", "", "Markdown `file` whose place \"peers\" is brought up to date")
	f.BoolVar(&o.serve, "serve", false, "run etcd only, which the program itself asks for")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("%q is no flag", f.Arg(0))
	case o.rounds < 1 || len(o.rtts) == 0 || o.window <= 0 || o.line < 1:
		return o, errors.New("nothing to measure")
	}
	return o, nil
}

// run is the program but for its exit status.
func run(ctx context.Context, args []string, out io.Writer) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if o.serve {
		return serve(ctx, out)
	}
	servers, err := start(ctx, o)
	defer servers.close()
	if err != nil {
		return err
	}
	rows, err := o.measure(ctx, servers)
	if err != nil {
		return err
	}
	facts, tables := provenance(time.Now(), o, servers), tables(rows)
	fmt.Fprintln(out, facts)
	for _, t := range tables {
		if err := t.Print(out); err != nil {
			return err
		}
	}
	return o.publish(facts, tables, rows)
}

// publish writes the points to o.out and the tables to their place in o.update, where these
// are given. The page shows the pictures that internal/bench/chart draws of the points.
func (o options) publish(facts string, tables []report.Table, rows []row) error {
	points := encode(rows)
	if o.out != "" {
		if err := os.MkdirAll(o.out, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(o.out, "peers.csv"), points, 0o644); err != nil {
			return err
		}
	}
	if o.update == "" {
		return nil
	}
	var text bytes.Buffer
	fmt.Fprintf(&text, "\n%s\n", facts)
	for _, t := range tables {
		t.Markdown(&text)
	}
	for _, p := range pictures {
		if o.out != "" && bytes.Contains(points, []byte(p.name+",")) {
			fmt.Fprintf(&text, "\n![%s](%s)\n", p.title, filepath.ToSlash(filepath.Join(o.out, p.name+".svg")))
		}
	}
	text.WriteByte('\n')
	return report.SpliceFile(o.update, "peers", text.String())
}
