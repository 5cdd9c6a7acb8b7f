// Command demo shows at work what this module is for: workers whose counter only
// a lock keeps right, candidates that succeed leaders which died, and transfers
// between accounts that lose no money. It says at the end which promises held, and
// ends with status 0 if all did, 130 after Ctrl-C, and 1 otherwise.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"os/signal"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
)

const (
	usage = `print what the sessions and transactions are traced to do
ENDPOINTS=host:port,... uses that cluster, with all keys under a prefix, and removes them.
ETCD_BINARY=path starts that etcd. By default one is embedded.`
	ttl      = 5               // seconds that a dead session may go unnoticed
	patience = 3 * time.Second // with a cluster that does not answer
	limit    = time.Minute     // for the whole run
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process at once
	err := run(ctx, os.Stdout, os.Args[1:], newMutex)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	fmt.Fprintln(os.Stderr, "demo:", err)
	if ctx.Err() != nil {
		os.Exit(130)
	}
	os.Exit(1)
}

// A demo is one run.
type demo struct {
	*log.Logger
	verbose bool
	start   time.Time
	client  *clientv3.Client
	prefix  string                  // of every key
	ctx     context.Context         // ends with the first failure
	fail    context.CancelCauseFunc // of ctx
	checks  []string                // as the report shows them
	failed  int                     // of the checks
	leases  []clientv3.LeaseID      // of all sessions
}

// run is the program but for its exit status. Whatever its end, it has removed
// its keys and its sessions by then. The error is nil if every check held.
func run(ctx context.Context, out io.Writer, args []string, newLock func(*concurrency.Session, string) lock) error {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(out)
	verbose := flags.Bool("v", false, usage)
	if err := flags.Parse(args); err != nil {
		return err
	}
	endpoints := os.Getenv("ENDPOINTS")
	if endpoints == "" {
		cluster, err := etcdtest.Start()
		if err != nil {
			return err
		}
		defer cluster.Close()
		endpoints = cluster.Endpoint(0)
	}
	client, err := etcdtest.NewClient(strings.Split(endpoints, ",")...)
	if err != nil {
		return err
	}
	defer client.Close()
	asking, answered := context.WithTimeout(ctx, patience)
	defer answered()
	if _, err := client.Get(asking, "demo"); err != nil {
		return fmt.Errorf("no etcd answers at %s: %w", endpoints, err)
	}

	d := &demo{Logger: log.New(out, "", 0), verbose: *verbose, start: time.Now(), client: client}
	d.prefix = fmt.Sprintf("demo-%016x/", rand.Uint64())
	d.Printf("etcd at %s, all keys under %s", endpoints, d.prefix)
	limited, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done after %v", limit))
	defer cancel()
	d.ctx, d.fail = context.WithCancelCause(limited)
	var parts sync.WaitGroup
	parts.Go(func() { d.locks(newLock); d.election(); d.transfers() })
	parts.Wait()
	err = context.Cause(d.ctx)
	d.tidy(context.WithoutCancel(ctx))
	d.Printf("\nChecks, after %.1fs\n\n%s", time.Since(d.start).Seconds(), strings.Join(d.checks, "\n"))
	if d.failed > 0 {
		err = errors.Join(err, fmt.Errorf("%d of %d checks failed", d.failed, len(d.checks)))
	}
	return err
}

// must ends the run if err is not nil: this goroutine at once, as a failed test
// does, and the others by their context.
func (d *demo) must(err error) {
	if err != nil {
		d.fail(err)
		runtime.Goexit()
	}
}

// together has n of a kind at work, each in a session, and an observer. It waits for
// all of them. A session that ends takes its places in every line with it.
func (d *demo) together(kind string, n int, work func(who string, s *concurrency.Session), observe func()) {
	var all sync.WaitGroup
	defer all.Wait()
	for i := range n {
		who := fmt.Sprintf("%s %d", kind, i+1)
		s, err := concurrency.NewSession(d.client, concurrency.WithTTL(ttl), concurrency.WithTrace(d.trace(who)))
		d.must(err)
		d.leases = append(d.leases, s.Lease())
		all.Go(func() {
			defer s.Close() // a failure shows as a lease that is left
			work(who, s)
		})
	}
	all.Go(observe)
	all.Wait()
	d.must(context.Cause(d.ctx))
}

// tidy removes the keys, and checks what the sessions have left behind.
func (d *demo) tidy(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	left, failure := 0, error(nil)
	for _, lease := range d.leases {
		resp, err := d.client.TimeToLive(ctx, lease)
		if failure = cmp.Or(failure, err); err == nil && resp.TTL > 0 {
			left++
		}
	}
	places, err1 := d.client.Delete(ctx, d.prefix+"line/", clientv3.WithPrefix())
	_, err2 := d.client.Delete(ctx, d.prefix, clientv3.WithPrefix())
	if failure = cmp.Or(failure, err1, err2); failure != nil {
		d.check("nothing left behind", false, "not known: %v", failure)
		return
	}
	d.check("nothing left behind", places.Deleted == 0 && left == 0,
		"%d places in line, %d of %d leases", places.Deleted, left, len(d.leases))
}

// event prints what happened to whom, with the time since the start.
func (d *demo) event(who, what string, args ...any) {
	d.Printf("%8.1fms  %-12s %s", time.Since(d.start).Seconds()*1000, who, fmt.Sprintf(what, args...))
}

// trace has each function of a Trace print its name and what it is told, with -v.
func (d *demo) trace(who string) *concurrency.Trace {
	if !d.verbose {
		return nil
	}
	trace := new(concurrency.Trace)
	for function, value := range reflect.ValueOf(trace).Elem().Fields() {
		value.Set(reflect.MakeFunc(function.Type, func(args []reflect.Value) []reflect.Value {
			told := strings.ReplaceAll(fmt.Sprintf("%+v", args[0]), d.prefix, "")
			d.event(who, "%s %s", function.Name, told)
			return nil
		}))
	}
	return trace
}

// check notes for the report whether a promise was kept.
func (d *demo) check(promise string, kept bool, figures string, args ...any) {
	verdict := "ok"
	if !kept {
		verdict = "FAILED"
		d.failed++
	}
	d.checks = append(d.checks, fmt.Sprintf("  %-6s  %-30s %s", verdict, promise, fmt.Sprintf(figures, args...)))
}
