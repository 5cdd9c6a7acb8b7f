package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/bench/report"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
	"example.com/etcd/concurrency/internal/library"
)

const (
	// ttl, in seconds, is long enough that no renewal falls into a run.
	ttl = 3600
	// patience bounds one run. No healthy one comes near it.
	patience = 5 * time.Minute
	// rate is how many other keys are put in a second on a busy store: enough that
	// hardly a watch begins at the latest revision, and far from what a server bears.
	rate = 500
)

// lab is where workloads are measured.
type lab struct {
	*cluster
	rounds int
	beds   int // prepared so far
}

// bed is what one library needs for one workload: clients, and what is open on them.
type bed struct {
	library.Library
	*cluster
	ctx     context.Context // for what is prepared
	prefix  string          // of all keys
	clients []*clientv3.Client
	counts  []*fault.Faults // of the calls of each client, until count is done
	open    []library.Session
	mutexes []mutex // of the workers, in their order
	local   mutex   // that the workers share; nil: they share none
	workers []work

	mu       sync.Mutex // guards the fields below
	attempts int        // the most that a transaction took
	slowness []float64  // of transactions, in nanoseconds
}

// prepare makes the bed of a library for a workload. The caller closes it, also when
// that failed.
func (l *lab) prepare(ctx context.Context, w workload, lib library.Library) (*bed, error) {
	l.beds++
	b := &bed{Library: lib, cluster: l.cluster, ctx: ctx, prefix: fmt.Sprintf("bench-%04d", l.beds)}
	clients := w.clients
	if clients == 0 {
		clients = w.workers
	}
	for range clients {
		client, err := etcdtest.NewClient(l.Far...)
		if err != nil {
			return b, err
		}
		b.clients = append(b.clients, client)
		b.counts = append(b.counts, fault.Wrap(client))
	}
	for i := range w.workers {
		work, err := w.hire(b, i)
		if err != nil {
			return b, err
		}
		b.workers = append(b.workers, work)
	}
	return b, nil
}

func (b *bed) client(worker int) *clientv3.Client { return b.clients[worker%len(b.clients)] }

// session opens one that is closed with the bed.
func (b *bed) session(worker int) (library.Session, error) {
	s, err := b.Open(b.client(worker), library.SessionOptions{TTL: ttl})
	if err == nil {
		b.open = append(b.open, s)
	}
	return s, err
}

// keys are n names with numbers as values.
func (b *bed) keys(n int) ([]string, error) {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = b.prefix + "/" + strconv.Itoa(i)
		if _, err := b.plain.Put(b.ctx, keys[i], "100"); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// transaction is f as the work of a worker, with a note of how hard it was.
func (b *bed) transaction(worker int, o library.TxnOptions, f func(library.STM) error) work {
	client := b.client(worker)
	return func(ctx context.Context) error {
		o := o
		o.Ctx = ctx
		attempts, begin := 0, time.Now()
		_, err := b.Transact(client, func(s library.STM) error {
			attempts++
			return f(s)
		}, o)
		took := time.Since(begin)
		b.mu.Lock()
		defer b.mu.Unlock()
		b.attempts = max(b.attempts, attempts)
		b.slowness = append(b.slowness, float64(took))
		return err
	}
}

// close closes what is open, the clients last.
func (b *bed) close() {
	_ = closeAll(b.open) // where that fails the lease ends by itself
	for _, client := range b.clients {
		client.Close()
	}
}

// do does the workload once and returns the time that it took.
func (b *bed) do(ctx context.Context, w workload) (time.Duration, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("not done within "+patience.String()))
	defer cancel()
	if w.busy {
		defer b.disturb(ctx)()
	}
	if w.drain {
		return b.drain(ctx, w.beside)
	}
	begin := time.Now()
	run := together
	if w.byTurns {
		run = evenly
	}
	err := run(ctx, w.ops, b.workers)
	return time.Since(begin), err
}

// figures are what one library needed.
type figures struct {
	times        []float64 // of the runs, for one operation, in nanoseconds
	allocs       []float64 // of the runs, for one operation
	entries, ops uint64    // of the raft log, and operations, in all runs
	calls        float64   // of KV for one operation, in a run that is not timed

	attempts int     // the most that any transaction took
	p99      float64 // of the times of transactions, in nanoseconds
}

// raft is how many entries of the log an operation cost.
func (f figures) raft() float64 { return float64(f.entries) / float64(f.ops) }

// count does the workload once to warm up and to count its calls. Nothing stands
// between a library and its client after that.
func (f *figures) count(ctx context.Context, w workload, b *bed) error {
	for _, c := range b.counts {
		c.Reset()
	}
	_, err := b.do(ctx, w)
	for _, c := range b.counts {
		f.calls += float64(c.KV()) / float64(w.ops)
		c.Unwrap()
	}
	b.attempts, b.slowness = 0, nil
	return err
}

// sample adds one run.
func (f *figures) sample(ctx context.Context, w workload, b *bed) error {
	before, err := b.applied(ctx)
	if err != nil {
		return err
	}
	runtime.GC() // neither pays for the other's garbage
	var start, end runtime.MemStats
	runtime.ReadMemStats(&start)
	took, err := b.do(ctx, w)
	runtime.ReadMemStats(&end)
	if err != nil {
		return err
	}
	after, err := b.applied(ctx)
	f.times = append(f.times, float64(took)/float64(w.ops))
	f.allocs = append(f.allocs, float64(end.Mallocs-start.Mallocs)/float64(w.ops))
	f.entries += after - before
	f.ops += uint64(w.ops)
	f.attempts, f.p99 = b.attempts, report.Quantile(b.slowness, 0.99)
	return err
}

// row is what came out for one workload.
type row struct {
	workload
	base, here figures
}

// contest measures a workload with both libraries, in pairs of runs.
func (l *lab) contest(ctx context.Context, w workload) (row, error) {
	r := row{workload: w}
	sides := [2]*figures{&r.base, &r.here}
	var beds [2]*bed
	for i, lib := range [2]library.Library{w.rival(), library.Here} {
		b, err := l.prepare(ctx, w, lib)
		defer b.close()
		if err == nil {
			err = sides[i].count(ctx, w, b)
		}
		if err != nil {
			return r, fmt.Errorf("%s, %s: %w", w.name, lib.Name, err)
		}
		beds[i] = b
	}
	rounds := l.rounds
	if w.workers == 1 || w.tries {
		rounds *= 3 // they are short, and chance has much to say in the latter
	}
	for round := range rounds {
		for _, i := range order(round) {
			if err := sides[i].sample(ctx, w, beds[i]); err != nil {
				return r, fmt.Errorf("%s, %s: %w", w.name, beds[i].Name, err)
			}
		}
	}
	return r, nil
}
