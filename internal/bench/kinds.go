package main

import (
	"context"
	"fmt"

	upstream "go.etcd.io/etcd/client/v3/concurrency"
	recipe "go.etcd.io/etcd/client/v3/experimental/recipes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/library"
)

// otherLocks are the workloads of locks other than the plain one. Upstream has read-write locks,
// among its recipes. What a permit is compared with are the two writes that it takes at the
// least, and several locks at once with as many locks one after the other.
func otherLocks() []workload {
	cycle := &limits{calls: 2, raft: 2}
	free := func(name string, hire func(*bed, int) (work, error)) workload {
		return workload{name: name, ops: 10, workers: 1, hire: hire, limits: cycle}
	}
	permit := free("free permit and release, beside bare Put and Delete", cycles(func(k kinds, name string) mutex {
		return k.permit(name)
	}))
	permit.base, permit.goal = &bare, 1.35
	letIn := func(name string, base *library.Library, goal float64) workload {
		return workload{name: name, goal: goal, base: base, ops: 1, workers: readers + 1, hire: letsIn, drain: true, beside: true}
	}
	oneReader := library.Here
	oneReader.Name = "one reader"
	return []workload{
		free("free read lock and release", cycles(func(k kinds, name string) mutex { return k.reader(name) })),
		letIn(fmt.Sprintf("a writer lets %d readers in", readers), nil, 1),
		letIn(fmt.Sprintf("a writer lets %d readers in, beside one reader", readers), &oneReader, 1.5),
		permit,
		free("five free locks at once, and release", cycles(func(k kinds, name string) mutex {
			var names []string
			for i := range 5 {
				names = append(names, fmt.Sprint(name, "-", i))
			}
			return k.several(names)
		})),
	}
}

// readers is how many wait for a writer.
const readers = 16

// cycles are workers that take and release a lock.
func cycles(newMutex func(k kinds, name string) mutex) func(b *bed, worker int) (work, error) {
	return func(b *bed, worker int) (work, error) {
		s, err := b.session(worker)
		if err != nil {
			return nil, err
		}
		return cycle(newMutex(kindsOf(s), b.prefix)), nil
	}
}

// letsIn is a writer, the first worker, and the readers behind it; or one reader, for whom the
// release is one hand-over.
func letsIn(b *bed, worker int) (work, error) {
	if b.Name == "one reader" && worker > 1 {
		return nil, nil
	}
	s, err := b.session(worker)
	if err != nil {
		return nil, err
	}
	k := kindsOf(s)
	newMutex := k.reader
	if worker == 0 {
		newMutex = k.writer
	}
	b.mutexes = append(b.mutexes, newMutex(b.prefix))
	return nil, nil
}

// kinds make other locks on a session. A field is nil where the library has no such lock.
type kinds struct {
	writer, reader func(name string) mutex
	permit         func(name string) mutex
	several        func(names []string) mutex
}

func kindsOf(s library.Session) kinds {
	switch s := s.(type) {
	case library.Bare:
		return ourKinds(s.Bare())
	case library.BareUpstream:
		return theirKinds(s.Bare())
	}
	return kinds{permit: func(name string) mutex { return s.NewMutex(name) }} // bare calls
}

func ourKinds(s *concurrency.Session) kinds {
	return kinds{
		writer:  func(name string) mutex { return concurrency.NewRWMutex(s, name) },
		reader:  func(name string) mutex { return ourReader{concurrency.NewRWMutex(s, name)} },
		permit:  func(name string) mutex { return permit{concurrency.NewSemaphore(s, name, 4)} },
		several: func(names []string) mutex { return concurrency.NewMultiMutex(s, names...) },
	}
}

func theirKinds(s *upstream.Session) kinds {
	return kinds{
		writer: func(name string) mutex { return theirWriter{recipe.NewRWMutex(s, name)} },
		reader: func(name string) mutex { return theirReader{recipe.NewRWMutex(s, name)} },
		several: func(names []string) mutex {
			var all inTurn
			for _, name := range names {
				all = append(all, upstream.NewMutex(s, name))
			}
			return all
		},
	}
}

type ourReader struct{ *concurrency.RWMutex }

func (r ourReader) Lock(ctx context.Context) error    { return r.RLock(ctx) }
func (r ourReader) TryLock(ctx context.Context) error { return r.TryRLock(ctx) }
func (r ourReader) Unlock(ctx context.Context) error  { return r.RUnlock(ctx) }

type permit struct{ *concurrency.Semaphore }

func (p permit) Lock(ctx context.Context) error    { return p.Acquire(ctx) }
func (p permit) TryLock(ctx context.Context) error { return p.TryAcquire(ctx) }
func (p permit) Unlock(ctx context.Context) error  { return p.Release(ctx) }

// Upstream's recipes know no contexts, and have no TryLock.
type (
	theirWriter struct{ *recipe.RWMutex }
	theirReader struct{ *recipe.RWMutex }
)

func (w theirWriter) Lock(context.Context) error    { return w.RWMutex.Lock() }
func (w theirWriter) TryLock(context.Context) error { return errNotThere }
func (w theirWriter) Unlock(context.Context) error  { return w.RWMutex.Unlock() }
func (r theirReader) Lock(context.Context) error    { return r.RLock() }
func (r theirReader) TryLock(context.Context) error { return errNotThere }
func (r theirReader) Unlock(context.Context) error  { return r.RUnlock() }

var errNotThere = fmt.Errorf("upstream's recipes have no TryLock")

// inTurn are several locks, taken one after the other.
type inTurn []mutex

func (all inTurn) Lock(ctx context.Context) error    { return all.each(ctx, mutex.Lock) }
func (all inTurn) TryLock(ctx context.Context) error { return all.each(ctx, mutex.TryLock) }
func (all inTurn) Unlock(ctx context.Context) error  { return all.each(ctx, mutex.Unlock) }

func (all inTurn) each(ctx context.Context, do func(mutex, context.Context) error) error {
	for _, m := range all {
		if err := do(m, ctx); err != nil {
			return err
		}
	}
	return nil
}
