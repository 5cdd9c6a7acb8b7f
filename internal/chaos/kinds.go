package main

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/history"
	"example.com/etcd/concurrency/internal/library"
)

// The kinds of locks that only this package has stand in the lines of the plain ones, those of
// upstream's package included.

// kind is a handle of one of the kinds, and how a worker comes to hold by it.
type kind struct {
	names  []string
	handle interface { // that is asked
		headed
		library.Owned
		library.Doer
		Rev() int64
	}
	take, try, back string // the names of the operations
	acquire, ifFree func(context.Context) error
	release         func(context.Context) error
	owner           func() clientv3.Cmp // nil: others may hold beside, whose tokens come in no order
	kind            string              // see history.Hold
	most            int
}

// writer is an RWMutex that is held for writing.
func writer(s *concurrency.Session, name string) kind {
	m := concurrency.NewRWMutex(s, name)
	return kind{
		names: []string{name}, handle: m, take: "Lock", try: "TryLock", back: "Unlock",
		acquire: m.Lock, ifFree: m.TryLock, release: m.Unlock, owner: m.IsOwner,
	}
}

// reading is an RWMutex that is held for reading.
type reading struct{ *concurrency.RWMutex }

func (r reading) Do(ctx context.Context, work func(context.Context) error) error {
	return r.RDo(ctx, work)
}

func reader(s *concurrency.Session, name string) kind {
	m := concurrency.NewRWMutex(s, name)
	return kind{
		names: []string{name}, handle: reading{m}, take: "RLock", try: "TryRLock", back: "RUnlock",
		acquire: m.RLock, ifFree: m.TryRLock, release: m.RUnlock, kind: "r",
	}
}

// permits is how many permits a lock has as a semaphore, to all.
func permits(name string) int { return 2 + int(name[len(name)-1]-'0') }

func permit(s *concurrency.Session, name string) kind {
	n := permits(name)
	m := concurrency.NewSemaphore(s, name, n)
	return kind{
		names: []string{name}, handle: m, take: "Acquire", try: "TryAcquire", back: "Release",
		acquire: m.Acquire, ifFree: m.TryAcquire, release: m.Release, kind: "p", most: n,
	}
}

func together(s *concurrency.Session, names ...string) kind {
	m := concurrency.NewMultiMutex(s, names...)
	return kind{
		names: names, handle: m, take: "Lock of all", try: "TryLock all", back: "Unlock of all",
		acquire: m.Lock, ifFree: m.TryLock, release: m.Unlock,
		owner: func() clientv3.Cmp { return m.IsOwner()[0] },
	}
}

// lockOfAKind takes, holds and releases by one of the kinds, where there are any.
func (w *worker) lockOfAKind(ctx context.Context) {
	name := pick(w.rnd, locks)
	own, ok := w.session.(library.Bare)
	if !ok {
		w.lock(ctx, name, false)
		return
	}
	s := own.Bare()
	var k kind
	switch w.rnd.IntN(4) {
	case 0:
		k = writer(s, name)
	case 1:
		k = reader(s, name)
	case 2:
		k = permit(s, name)
	default:
		var names []string
		for _, i := range w.rnd.Perm(len(locks))[:1+w.rnd.IntN(len(locks))] {
			names = append(names, locks[i])
		}
		k = together(s, names...)
	}
	switch w.rnd.IntN(4) {
	case 0:
		_ = w.stand(ctx, k, "Do", func(ctx context.Context) error {
			return k.handle.Do(ctx, func(ctx context.Context) error {
				w.holdBy(ctx, k, func() bool { return ctx.Err() == nil })
				return nil
			})
		})
		return
	case 1:
		if w.stand(ctx, k, k.try, k.ifFree) != nil {
			return
		}
	default:
		if w.stand(ctx, k, k.take, k.acquire) != nil {
			return
		}
	}
	w.holdBy(ctx, k, w.alive(k.handle))
	if w.stand(ctx, k, k.back, k.release) != nil && w.rnd.IntN(2) == 0 {
		w.shut()
	}
}

// stand makes a call that uses the places of the session in all lines of the handle.
func (w *worker) stand(ctx context.Context, k kind, op string, f func(context.Context) error) error {
	r := history.Call{Who: w.who, Op: history.Beside, Lease: int64(w.session.Lease()), Call: w.rec.Now()}
	err := w.call(ctx, op, k.names[0], w.patience(), f)
	if r.Return = w.rec.Now(); err != nil {
		r.Error = err.Error()
	}
	for _, name := range k.names[1:] {
		beside := r
		beside.Name = name
		w.rec.Add(history.Record{Call: &beside})
	}
	return err
}

// holdBy holds all that the handle has locked.
func (w *worker) holdBy(ctx context.Context, k kind, alive func() bool) {
	var owner clientv3.Cmp
	if k.owner != nil {
		owner = k.owner()
	}
	h := w.claim(k.names[0], k.handle.Rev(), k.handle)
	if h.Token == 0 {
		return // lost already
	}
	h.Kind, h.Most = k.kind, k.most
	w.hold(ctx, h, alive, owner)
	for _, name := range k.names[1:] {
		if h.Start > 0 {
			beside := *h
			beside.Name = name
			w.rec.Add(history.Record{Hold: &beside})
		}
	}
}
