// Command demo shows at work what this module is for: workers whose counter only
// a lock keeps right, candidates that succeed leaders which died, and transfers
// between accounts that lose no money. It watches what happens and says at the
// end which promises held.
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
	"strings"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
)

const usage = `usage: go run ./internal/demo [-v]

Runs locks, an election and transactions on etcd, and checks what they promise.
Ends with status 0 if all checks held, 130 after Ctrl-C, and 1 otherwise.

  -v    print every event, with what the sessions and transactions are traced to do

Environment:
  ENDPOINTS     host:port,... of a cluster to use, where all keys lie under a
                random prefix and are removed at the end; by default an embedded
                etcd is started for the run
  ETCD_BINARY   path of an etcd to start instead of the embedded one
  NO_COLOR      any value: no colour, of which there is none outside a terminal
`

const (
	ttl      = 5               // seconds that a dead session may go unnoticed
	patience = 3 * time.Second // with a cluster that does not answer
	limit    = time.Minute     // for the whole run
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process at once
	err := run(ctx, os.Stdout, os.Args[1:], newMutex)
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "demo: interrupted")
		os.Exit(130)
	}
	fmt.Fprintln(os.Stderr, "demo:", err)
	os.Exit(1)
}

// A demo is one run.
type demo struct {
	*timeline
	client  *clientv3.Client // for what is done on nobody's behalf
	prefix  string           // of every key of the run
	newLock newLock

	sessions []*concurrency.Session // all that were opened, each with a client of its own
}

// newLock makes the lock of a session; all locks of one name exclude each other.
type newLock func(s *concurrency.Session, name string) lock

// run is the program but for its exit status. Whatever its end, it has removed
// its keys and its sessions by then. The error is nil if every check held.
func run(ctx context.Context, out io.Writer, args []string, locks newLock) error {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.Usage = func() { fmt.Fprint(out, usage) }
	verbose := flags.Bool("v", false, "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	endpoints := strings.Split(os.Getenv("ENDPOINTS"), ",")
	if endpoints[0] == "" {
		cluster, err := etcdtest.Start()
		if err != nil {
			return err
		}
		defer cluster.Close()
		endpoints = cluster.Endpoints()
	}
	client, err := connect(ctx, endpoints)
	if err != nil {
		return fmt.Errorf("no etcd answers at %s: %w", strings.Join(endpoints, ", "), err)
	}
	defer client.Close()

	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done after %v", limit))
	defer cancel()
	prefix := fmt.Sprintf("demo-%016x/", rand.Uint64())
	d := &demo{timeline: newTimeline(out, *verbose), client: client, prefix: prefix, newLock: locks}
	d.printf("etcd at %s, all keys under %s\n", strings.Join(endpoints, ", "), prefix)
	for _, part := range []func(context.Context) error{d.locks, d.election, d.transfers} {
		if err = part(ctx); err != nil {
			break
		}
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	d.tidy(context.WithoutCancel(ctx))
	return errors.Join(err, d.report())
}

// connect makes a client and sees that somebody answers it.
func connect(ctx context.Context, endpoints []string) (*clientv3.Client, error) {
	client, err := etcdtest.NewClient(endpoints...)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if _, err = client.Get(ctx, "demo"); err != nil {
		client.Close()
		return nil, err
	}
	return client, nil
}

// join opens n sessions, each as if in a process of its own. Their owners are called kind and a
// number from 1 on.
func (d *demo) join(n int, kind string) ([]*concurrency.Session, error) {
	for i := range n {
		client, err := etcdtest.NewClient(d.client.Endpoints()...)
		if err != nil {
			return nil, err
		}
		s, err := concurrency.NewSession(client, concurrency.WithTTL(ttl),
			concurrency.WithTrace(d.trace(fmt.Sprintf("%s %d", kind, i+1))))
		if err != nil {
			client.Close()
			return nil, err
		}
		d.sessions = append(d.sessions, s)
	}
	return d.sessions[len(d.sessions)-n:], nil
}

// tidy ends the sessions, which takes their places in every line with them,
// removes the other keys, and looks for what is left.
func (d *demo) tidy(ctx context.Context) {
	together(ctx, len(d.sessions), func(_ context.Context, i int) error {
		d.sessions[i].Close() // a failure shows as a lease that is left
		return d.sessions[i].Client().Close()
	})
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var failure error
	left := func(prefix string) int64 {
		resp, err := d.client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			failure = err
			return 0
		}
		return resp.Count
	}
	inLine := left(d.prefix+lockName) + left(d.prefix+electionName)
	d.client.Delete(ctx, d.prefix, clientv3.WithPrefix())
	keys, leases := left(d.prefix), 0
	for _, s := range d.sessions {
		resp, err := d.client.TimeToLive(ctx, s.Lease())
		if err != nil {
			failure = err
		} else if resp.TTL > 0 {
			leases++
		}
	}
	if failure != nil {
		d.check("nothing left behind", false, "not known: %v", failure)
		return
	}
	d.check("nothing left behind", inLine == 0 && keys == 0 && leases == 0,
		"%d places in line, %d keys, %d of %d leases", inLine, keys, leases, len(d.sessions))
}

// together calls f with 0 to n-1 at once and waits for all of them. The first
// error ends the context of the others.
func together(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := f(ctx, i); err != nil {
				fail(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}
