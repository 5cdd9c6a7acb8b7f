package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/library"
)

// workload is something that both libraries do.
type workload struct {
	name    string
	ops     int              // of one run
	workers int              // who do them at the same time, until all are done
	clients int              // on which the workers are; 0: each on one of its own
	busy    bool             // somebody else writes other keys all the while
	base    *library.Library // what is compared with; nil: upstream
	goal    float64          // for the ratio of the times; 0: none
	limits  *limits          // that no noise excuses; nil: none
	byTurns bool             // each of the workers waits for the others
	tries   bool             // attempts and slowest transactions tell something

	hire func(b *bed, worker int) (work, error)
	// drain is for the workloads whose time is not that of work done in turn: those of a line
	// that stands behind a holder.
	drain bool
	// beside is for those of them who own at once. They leave when all have come in.
	beside bool

	shows []view // what pictures show of it
}

func (w workload) rival() library.Library {
	if w.base != nil {
		return *w.base
	}
	return library.Upstream
}

// work is one operation of a worker.
type work func(ctx context.Context) error

// limits are exact counts for one operation, and a ratio far from any goal.
type limits struct {
	calls, raft float64
	ratio       float64 // 0: not looked at
}

// workloads are those of the table, with the goals set for them.
func workloads() []workload {
	cycle, handing := &limits{calls: 2, raft: 2}, &limits{calls: 4, raft: 2, ratio: 0.2}
	alone := func(name string, goal float64, hire func(*bed, int) (work, error), l *limits) workload {
		return workload{name: name, goal: goal, ops: 100, workers: 1, hire: hire, limits: l}
	}
	besideBare := alone("the same, beside bare Put and Delete", 1.35, locks, nil)
	besideBare.base = &bare
	besideCalls := func(w workload) workload {
		w.name, w.base, w.goal = w.name+", beside bare calls", &bareLine, 0
		return w
	}
	leading := workload{name: "leadership hand-over among 4", goal: 0.022, ops: 60, workers: 4, hire: leads}
	return append([]workload{
		alone("free lock and release", 1.03, locks, cycle),
		besideBare,
		handOver(2, 40, false, 0.01, handing),
		handOver(2, 40, true, 0.025, nil),
		handOver(16, 160, false, 0.12, nil),
		handOver(16, 160, true, 0.16, nil),
		{name: "goroutines of one process, 16", goal: 0.01, ops: 1600, workers: 16, clients: 1, hire: passesOn},
		draining(100, 0.70),
		draining(1000, 0.50),
		alone("TryLock on a held lock", 0.55, fails, &limits{calls: 1, raft: 1}),
		alone("free Campaign and Resign", 0.80, leads, cycle),
		leading,
		alone("STM that reads one key", 0.55, reads(1), &limits{calls: 1}),
		alone("STM that reads ten, prefetched", 0.55, reads(10), &limits{calls: 1}),
		alone("STM, blind write", 0, writes, &limits{calls: 1, raft: 1}),
		alone("STM, read-modify-write, one client", 1, counts, &limits{calls: 2, raft: 1}),
		counting(16, 0.6),
		{name: "STM on one key, 16 goroutines of one client", goal: 0.35, ops: 320, workers: 16, clients: 1, hire: counts, tries: true},
		{name: "STM, 16 clients, 64 accounts", goal: 1.05, ops: 640, workers: 16, hire: moves(64), tries: true},
		{name: "STM at RepeatableReads, 16 clients, 1000 keys", ops: 640, workers: 16, hire: strews(1000), tries: true},
		alone("session, open and close", 1.1, opens, nil),
		besideCalls(handOver(2, 40, false, 0, nil)),
		besideCalls(handOver(16, 160, false, 0, nil)),
		besideCalls(draining(100, 0)),
		besideCalls(draining(1000, 0)),
		besideCalls(leading),
	}, slices.Concat(ranged(), otherLocks())...)
}

// handOver is the lock that goes round among contenders, as fast as they can.
func handOver(contenders, ops int, busy bool, goal float64, l *limits) workload {
	store := "quiet"
	if busy {
		store = "busy"
	}
	return workload{
		name: fmt.Sprintf("hand-over among %d, %s", contenders, store),
		goal: goal, ops: ops, workers: contenders, busy: busy, hire: locks, limits: l,
	}
}

// draining is a line of waiters, each of which leaves when its turn has come. They
// share a few clients.
func draining(waiters int, goal float64) workload {
	return workload{
		name: fmt.Sprintf("draining a line of %d", waiters), goal: goal,
		ops: waiters, workers: waiters + 1, clients: 8, hire: locks, drain: true,
	}
}

// counting is one key that clients write all at once.
func counting(clients int, goal float64) workload {
	return workload{
		name: fmt.Sprintf("STM on one key, clients: %d", clients),
		goal: goal, ops: 320, workers: clients, hire: counts, tries: true,
	}
}

// mutex is what a lock of any kind does.
type mutex interface {
	Lock(ctx context.Context) error
	TryLock(ctx context.Context) error
	Unlock(ctx context.Context) error
}

// cycle takes and releases a lock.
func cycle(m mutex) work {
	return func(ctx context.Context) error {
		if err := m.Lock(ctx); err != nil {
			return err
		}
		return m.Unlock(ctx)
	}
}

func locks(b *bed, worker int) (work, error) {
	s, err := b.session(worker)
	if err != nil {
		return nil, err
	}
	m := s.NewMutex(b.prefix)
	b.mutexes = append(b.mutexes, m)
	return cycle(m), nil
}

// passesOn is a lock that the goroutines of a process share. On upstream's package each goroutine
// needs a session of its own.
func passesOn(b *bed, worker int) (work, error) {
	if b.Name != library.Here.Name {
		return locks(b, worker)
	}
	if b.local == nil {
		s, err := b.Open(b.clients[0], library.SessionOptions{})
		if err != nil {
			return nil, err
		}
		b.open = append(b.open, s)
		b.local = concurrency.NewLocalMutex(s.(library.Bare).Bare(), b.prefix)
	}
	m := b.local
	return cycle(m), nil
}

// fails tries a lock that somebody else holds.
func fails(b *bed, worker int) (work, error) {
	holder, err := b.session(worker)
	if err != nil {
		return nil, err
	}
	rival, err := b.session(worker)
	if err != nil {
		return nil, err
	}
	m := rival.NewMutex(b.prefix)
	return func(ctx context.Context) error {
		if err := m.TryLock(ctx); err != b.ErrLocked {
			return fmt.Errorf("TryLock on a held lock: %w", err)
		}
		return nil
	}, holder.NewMutex(b.prefix).Lock(b.ctx)
}

func leads(b *bed, worker int) (work, error) {
	s, err := b.session(worker)
	if err != nil {
		return nil, err
	}
	e := s.NewElection(b.prefix)
	return func(ctx context.Context) error {
		if err := e.Campaign(ctx, "value"); err != nil {
			return err
		}
		return e.Resign(ctx)
	}, nil
}

func opens(b *bed, worker int) (work, error) {
	return func(context.Context) error {
		s, err := b.Open(b.client(worker), library.SessionOptions{TTL: ttl})
		if err != nil {
			return err
		}
		return s.Close()
	}, nil
}

// reads reads n keys; more than one are prefetched.
func reads(n int) func(b *bed, worker int) (work, error) {
	return func(b *bed, worker int) (work, error) {
		keys, err := b.keys(n)
		if err != nil {
			return nil, err
		}
		var prefetch []string
		if n > 1 {
			prefetch = keys
		}
		return b.transaction(worker, library.TxnOptions{Prefetch: prefetch}, func(s library.STM) error {
			for _, key := range keys {
				s.Get(key)
			}
			return nil
		}), nil
	}
}

func writes(b *bed, worker int) (work, error) {
	return b.transaction(worker, library.TxnOptions{}, func(s library.STM) error {
		s.Put(b.prefix, "value")
		return nil
	}), nil
}

// counts adds one to a counter.
func counts(b *bed, worker int) (work, error) {
	return b.transaction(worker, library.TxnOptions{}, func(s library.STM) error {
		n, _ := strconv.Atoi(s.Get(b.prefix)) // no value yet counts as 0
		s.Put(b.prefix, strconv.Itoa(n+1))
		return nil
	}), nil
}

// moves moves one between two of n accounts.
func moves(n int) func(b *bed, worker int) (work, error) {
	return func(b *bed, worker int) (work, error) {
		keys, err := b.keys(n)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) error {
			from := rand.IntN(n)
			to := (from + 1 + rand.IntN(n-1)) % n
			return b.transaction(worker, library.TxnOptions{}, func(s library.STM) error {
				for key, add := range map[string]int{keys[from]: -1, keys[to]: 1} {
					have, err := strconv.Atoi(s.Get(key))
					if err != nil {
						return err
					}
					s.Put(key, strconv.Itoa(have+add))
				}
				return nil
			})(ctx)
		}, nil
	}
}

// strews writes one of n keys at random, at the level at which upstream reads from any member.
func strews(n int) func(b *bed, worker int) (work, error) {
	return func(b *bed, worker int) (work, error) {
		return func(ctx context.Context) error {
			key := b.prefix + "/" + strconv.Itoa(rand.IntN(n))
			o := library.TxnOptions{Level: int(concurrency.RepeatableReads)}
			return b.transaction(worker, o, func(s library.STM) error {
				s.Put(key, s.Get(key)+"+")
				return nil
			})(ctx)
		}, nil
	}
}

// together lets the workers do n operations between them, as fast as they can. The
// first error ends all.
func together(ctx context.Context, n int, workers []work) error {
	var begun atomic.Int64
	return while(ctx, workers, func(int) bool { return begun.Add(1) <= int64(n) })
}

// evenly lets each of the workers do its share of n operations. If each waits for the others, who
// did one more might wait for somebody who has done the last one.
func evenly(ctx context.Context, n int, workers []work) error {
	return while(ctx, workers, func(done int) bool { return done < n/len(workers) })
}

// while lets each worker go on while goOn says so, which is told how many operations it has done.
func while(ctx context.Context, workers []work, goOn func(done int) bool) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var wg sync.WaitGroup
	for _, work := range workers {
		wg.Go(func() {
			for done := 0; goOn(done); done++ {
				if err := work(ctx); err != nil {
					fail(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// settled is how long a line stands before it is drained. Every watch has begun by
// then, upstream's too, whose servers look after late ones every 100 ms.
const settled = time.Second

// drain has all but the first stand in line behind the first, and takes the time from its
// release until the last one's turn has come.
func (b *bed) drain(ctx context.Context, beside bool) (time.Duration, error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	holder, waiters := b.mutexes[0], b.mutexes[1:]
	var out sync.WaitGroup // of the line
	out.Add(len(waiters))
	if err := holder.Lock(ctx); err != nil {
		return 0, err
	}
	var wg sync.WaitGroup
	turns := make([]time.Duration, len(waiters)) // after begin
	begin := time.Now()
	for i, m := range waiters {
		if i%crowd == 0 && i > 0 {
			if err := b.stand(ctx, i+1); err != nil {
				fail(err)
				out.Add(i - len(waiters)) // those who have not been sent
				break
			}
		}
		wg.Go(func() {
			err := m.Lock(ctx)
			turns[i] = time.Since(begin)
			out.Done()
			if err == nil {
				if beside {
					out.Wait()
				}
				err = m.Unlock(ctx)
			}
			if err != nil {
				fail(err)
			}
		})
	}
	if err := b.stand(ctx, len(b.mutexes)); err != nil {
		fail(err)
	} else if err := wait(ctx, settled); err != nil { // for all watches to begin
		fail(err)
	}
	released := time.Since(begin)
	if err := holder.Unlock(ctx); err != nil {
		fail(err)
	}
	wg.Wait()
	return slices.Max(turns) - released, context.Cause(ctx)
}

// crowd is how many may come to a line at once: the server sorts the whole line for each of
// them, and lets those wait in vain who come by the thousand.
const crowd = 200

// stand waits until n keys stand in line.
func (b *bed) stand(ctx context.Context, n int) error {
	for {
		resp, err := b.plain.Get(ctx, b.prefix+"/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		switch {
		case err != nil:
			return err
		case resp.Count > int64(n):
			return errors.New("more stand in line than were sent")
		case resp.Count == int64(n):
			return nil
		}
		if err := wait(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
