package worlds

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	upstream "go.etcd.io/etcd/client/v3/concurrency"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/history"
	"example.com/etcd/concurrency/internal/library"
)

// The kinds of locks that only this package has stand in the lines of the plain ones.

// member is a handle of one of the kinds.
type member interface {
	handle
	library.Owned
	library.Doer
	Rev() int64
}

// turn is how a worker comes to hold by a handle of one of the kinds.
type turn struct {
	by                member
	take, try, back   string // the names of the operations
	acquire, acquires func(context.Context) error
	release           func(context.Context) error
	owner             func() clientv3.Cmp
	kind              string // see history.Hold
	most              int
	also              []string // further names
}

func bare(s *stay) *concurrency.Session { return s.Session.(library.Bare).Bare() }

// write holds an RWMutex for writing.
func (w *worker) write(ctx context.Context) {
	name := w.anyLock()
	m := concurrency.NewRWMutex(bare(w.stay), name)
	w.takeTurn(ctx, name, turn{
		by: m, take: "Lock", try: "TryLock", back: "Unlock",
		acquire: m.Lock, acquires: m.TryLock, release: m.Unlock, owner: m.IsOwner,
	})
}

// reader is an RWMutex that is held for reading.
type reader struct{ *concurrency.RWMutex }

func (r reader) Do(ctx context.Context, work func(context.Context) error) error {
	return r.RDo(ctx, work)
}

// readShared holds an RWMutex for reading.
func (w *worker) readShared(ctx context.Context) {
	name := w.anyLock()
	m := concurrency.NewRWMutex(bare(w.stay), name)
	w.takeTurn(ctx, name, turn{
		by: reader{m}, take: "RLock", try: "TryRLock", back: "RUnlock",
		acquire: m.RLock, acquires: m.TryRLock, release: m.RUnlock, kind: "r",
	})
}

// permits is how many permits a lock has as a semaphore, to all.
func permits(name string) int { return 2 + int(name[len(name)-1]-'0') }

// permit holds a permit of a Semaphore.
func (w *worker) permit(ctx context.Context) {
	name := w.anyLock()
	s := concurrency.NewSemaphore(bare(w.stay), name, permits(name))
	w.takeTurn(ctx, name, turn{
		by: s, take: "Acquire", try: "TryAcquire", back: "Release",
		acquire: s.Acquire, acquires: s.TryAcquire, release: s.Release, kind: "p", most: permits(name),
	})
}

// together is a MultiMutex.
type together struct{ *concurrency.MultiMutex }

// Key is one of the keys.
func (m together) Key() string {
	if keys := m.Keys(); len(keys) > 0 {
		return keys[0]
	}
	return ""
}

// several holds several locks at once, in any order.
func (w *worker) several(ctx context.Context) {
	var names []string
	for _, i := range w.rnd.Perm(w.plan.Locks)[:1+w.rnd.IntN(w.plan.Locks)] {
		names = append(names, w.lock(i))
	}
	m := concurrency.NewMultiMutex(bare(w.stay), names...)
	w.takeTurn(ctx, names[0], turn{
		by: together{m}, take: "Lock of all", try: "TryLock all", back: "Unlock of all",
		acquire: m.Lock, acquires: m.TryLock, release: m.Unlock,
		owner: func() clientv3.Cmp { return m.IsOwner()[0] }, also: names[1:],
	})
}

// takeTurn takes, holds and releases, once or several times, by the handle or by its Do.
func (w *worker) takeTurn(ctx context.Context, name string, t turn) {
	s := w.stay
	for range 1 + w.rnd.IntN(3) {
		var err error
		switch w.rnd.IntN(3) {
		case 0:
			err = w.stand(ctx, s, name, t, "Do", func(ctx context.Context) error {
				return t.by.Do(ctx, func(ctx context.Context) error {
					w.hold(ctx, w.holdingOf(s, name, t).within(ctx, s.ttl))
					return nil
				})
			})
		case 1:
			err = w.holdAndRelease(ctx, s, name, t, t.try, t.acquires)
		default:
			err = w.holdAndRelease(ctx, s, name, t, t.take, t.acquire)
		}
		if err != nil && w.rnd.IntN(2) == 0 || ended(w.rest) || w.stay != s || !pause(ctx, w.think()/4) {
			return
		}
	}
}

func (w *worker) holdAndRelease(
	ctx context.Context, s *stay, name string, t turn, op string, acquire func(context.Context) error,
) error {
	if err := w.stand(ctx, s, name, t, op, acquire); err != nil {
		return err
	}
	term := w.hold(ctx, w.holdingOf(s, name, t))
	err := w.stand(ctx, s, name, t, t.back, t.release)
	w.askReleased(t.back, name, term)
	return err
}

// stand makes a call that uses the places of the session in all lines of the handle.
func (w *worker) stand(
	ctx context.Context, s *stay, name string, t turn, op string, f func(context.Context) error,
) error {
	began := w.rec.Now()
	err := w.call(ctx, call{op: op, name: name, lease: s.lease, limit: w.patience()}, f)
	for _, other := range t.also {
		r := history.Call{Who: w.who, Op: history.Beside, Name: other, Lease: int64(s.lease), Call: began, Return: w.rec.Now()}
		if err != nil {
			r.Error = err.Error()
		}
		w.rec.Add(history.Record{Call: &r})
	}
	return err
}

// holdingOf is a holding by the handle. Nothing is written under those that others may hold
// beside, since their tokens come in no order.
func (w *worker) holdingOf(s *stay, name string, t turn) holding {
	var owner clientv3.Cmp
	if t.owner != nil {
		owner = t.owner()
	}
	h := w.owning(s, name, t.by.Rev(), owner, t.by)
	h.Kind, h.Most, h.also = t.kind, t.most, t.also
	return h
}

// neighbour is a program on upstream's package that takes a lock in the same line. What goes
// wrong for it is not asked. Its session does not outlive its patience for longer than a TTL.
func (w *worker) neighbour(ctx context.Context) {
	ttl := w.station.ttl()
	limit, length, name := between(w.rnd, time.Millisecond, ttl), w.duration(), w.anyLock()
	bound, cancel := context.WithTimeout(ctx, limit)
	go func() {
		defer cancel()
		s, err := upstream.NewSession(w.client, upstream.WithTTL(int(ttl/time.Second)), upstream.WithContext(bound))
		if err != nil {
			return
		}
		m := upstream.NewMutex(s, name)
		if m.Lock(bound) == nil {
			pause(bound, length)
			_ = m.Unlock(bound)
		}
		_ = s.Close()
	}()
	<-bound.Done()
}
