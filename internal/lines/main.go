// Command lines shows who owns locks and elections, who waits for them, and who waits for
// each other. It only reads, and so disturbs nobody.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"reflect"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"example.com/etcd/concurrency"
)

const usage = `usage: go run ./internal/lines [-f] [-every 1s] [-timeout 5s] NAME...

Prints the line of each lock or election that is named, the oldest first. Given
several names, it also tells which sessions wait for each other in a circle.

  -f         go on, and print what has changed
  -every     with -f, the time from one look to the next
  -timeout   of one look

Environment, the variables of etcdctl:
  ENDPOINTS or ETCDCTL_ENDPOINTS     host:port,... ; localhost:2379 by default
  ETCDCTL_CACERT, ETCDCTL_CERT, ETCDCTL_KEY   files, for TLS
  ETCDCTL_USER                       name:password, and also ETCDCTL_PASSWORD

Columns:
  STATE   owns, or how many are ahead. A permit also owns if only permits are
          ahead, and fewer than the semaphore has: no key tells how many it has.
          A foreign key is nobody's place, but all wait for its deletion
  TOKEN   the create revision: what Rev tells, what the data was fenced with
  LEFT    of the lease's life. "not renewed" is a session that has missed a
          renewal, because it died or can't reach the servers
  SINCE   with -f: when the state was first seen. etcd itself keeps no times
  VALUE   WithIdentity of the session, or the value of the candidate
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process at once
	switch err := run(ctx, os.Stdout, os.Args[1:]); {
	case err == nil || errors.Is(err, flag.ErrHelp):
	case ctx.Err() != nil:
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, "lines:", err)
		os.Exit(1)
	}
}

// viewer looks at lines and prints them.
type viewer struct {
	out     io.Writer
	client  *clientv3.Client
	names   []string
	follows bool
	every   time.Duration
	timeout time.Duration

	shown []concurrency.Line // as far as a change of it is worth another table
	since map[state]time.Time
	first time.Time // of the first look; zero: there was none
}

// run is the program but for its exit status.
func run(ctx context.Context, out io.Writer, args []string) error {
	v := &viewer{out: out}
	flags := flag.NewFlagSet("lines", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.Usage = func() { fmt.Fprint(out, usage) }
	flags.BoolVar(&v.follows, "f", false, "")
	flags.DurationVar(&v.every, "every", time.Second, "")
	flags.DurationVar(&v.timeout, "timeout", 5*time.Second, "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if v.names = flags.Args(); len(v.names) == 0 {
		flags.Usage()
		return errors.New("no name was given")
	}
	if v.every <= 0 || v.timeout <= 0 {
		return errors.New("a time that is not positive")
	}
	var err error
	if v.client, err = connect(); err != nil {
		return err
	}
	defer v.client.Close()
	if v.follows {
		return v.follow(ctx)
	}
	return v.show(ctx)
}

// connect makes a client of what the environment says.
func connect() (*clientv3.Client, error) {
	endpoints := os.Getenv("ENDPOINTS")
	if endpoints == "" {
		endpoints = os.Getenv("ETCDCTL_ENDPOINTS")
	}
	if endpoints == "" {
		endpoints = "localhost:2379"
	}
	spec := clientv3.ConfigSpec{Endpoints: strings.Split(endpoints, ",")}
	secure := clientv3.SecureConfig{
		Cert: os.Getenv("ETCDCTL_CERT"), Key: os.Getenv("ETCDCTL_KEY"), Cacert: os.Getenv("ETCDCTL_CACERT"),
	}
	if secure != (clientv3.SecureConfig{}) {
		spec.Secure = &secure
	}
	if user := os.Getenv("ETCDCTL_USER"); user != "" {
		name, password, found := strings.Cut(user, ":")
		if !found {
			password = os.Getenv("ETCDCTL_PASSWORD")
		}
		spec.Auth = &clientv3.AuthConfig{Username: name, Password: password}
	}
	config, err := clientv3.NewClientConfig(&spec, zap.NewNop())
	if err != nil {
		return nil, err
	}
	config.Logger = zap.NewNop()
	return clientv3.New(*config)
}

// follow shows what changes until ctx ends. It looks again and again instead of watching. A
// person reads no more than a table a second, and a lease that is not renewed changes no key.
func (v *viewer) follow(ctx context.Context) error {
	tick := time.NewTicker(v.every)
	defer tick.Stop()
	for failing := false; ; {
		err := v.show(ctx)
		switch {
		case ctx.Err() != nil:
			return nil // which is how this ends
		case err != nil && v.first.IsZero():
			return err // it may never work
		case err != nil && !failing:
			fmt.Fprintf(v.out, "%s: %v; looking again\n\n", clock(time.Now()), err)
		}
		failing = err != nil
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// show prints the lines, and with -f those that have changed since the last time.
func (v *viewer) show(ctx context.Context) error {
	lines, err := v.look(ctx, concurrency.WithLeases())
	if err != nil {
		return err
	}
	now := time.Now()
	if v.first.IsZero() {
		v.first = now
	}
	v.note(lines, now)
	cycles := cyclesOf(lines)
	if len(cycles) > 0 {
		again, err := v.look(ctx)
		if err != nil {
			return err
		}
		cycles = cyclesOf(standing(lines, again))
	}
	worth := worthShowing(lines)
	for i, line := range lines {
		if v.shown == nil || !reflect.DeepEqual(v.shown[i].Participants, worth[i].Participants) {
			fmt.Fprintln(v.out, v.table(line, now))
		}
	}
	if !reflect.DeepEqual(v.shown, worth) {
		for _, c := range cycles {
			fmt.Fprintf(v.out, "a circle, in which nobody goes on if each session is one task:\n%s\n", c)
		}
	}
	v.shown = worth
	return nil
}

// look reads all lines, each at a revision of its own.
func (v *viewer) look(ctx context.Context, opts ...concurrency.InspectOption) ([]concurrency.Line, error) {
	bound, cancel := context.WithTimeout(ctx, v.timeout)
	defer cancel()
	var lines []concurrency.Line
	for _, name := range v.names {
		line, err := concurrency.Inspect(bound, v.client, name, opts...)
		if err != nil {
			if bound.Err() != nil && ctx.Err() == nil {
				err = fmt.Errorf("no etcd answers at %s within %v", strings.Join(v.client.Endpoints(), ", "), v.timeout)
			}
			return nil, err
		}
		lines = append(lines, line)
	}
	return lines, nil
}
