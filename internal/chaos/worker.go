package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/history"
	"example.com/etcd/concurrency/internal/library"
)

// worker is one participant that locks and elects, one thing after the other.
type worker struct {
	*run
	*station
	rnd     *rand.Rand
	session library.Session
	open    bool
	number  int  // of the values that it has campaigned with
	dawdles bool // holds for long one time in two, so that what is rare meets a hold
}

// work goes on until ctx ends.
func (w *worker) work(ctx context.Context) {
	for pause(ctx, between(w.rnd, 5*time.Millisecond, 60*time.Millisecond)) {
		if !w.reopen(ctx) {
			continue
		}
		switch n := w.rnd.IntN(100); {
		case n < 18:
			w.lock(ctx, pick(w.rnd, locks), false)
		case n < 24:
			w.lock(ctx, pick(w.rnd, locks), true)
		case n < 30:
			w.do(ctx)
		case n < 50:
			w.lockOfAKind(ctx)
		case n < 75:
			w.campaign(ctx)
		case n < 85:
			w.lead(ctx)
		case n < 96:
			w.resume(ctx)
		default:
			w.shut() // whatever still stands in line
		}
	}
	w.shut()
}

// reopen sees to an open session.
func (w *worker) reopen(ctx context.Context) bool {
	if w.open && !ended(w.session.Done()) {
		return true
	}
	w.shut()
	return w.adopt(ctx, clientv3.NoLease)
}

// adopt opens a session, on a lease that exists or on a new one.
func (w *worker) adopt(ctx context.Context, lease clientv3.LeaseID) bool {
	err := w.call(ctx, "NewSession", "", 0, func(context.Context) (err error) {
		w.session, err = w.lib.Open(w.client, library.SessionOptions{TTL: ttl, Lease: lease})
		return err
	})
	w.open = err == nil
	return w.open
}

func (w *worker) shut() {
	if w.open {
		_ = w.call(context.Background(), "Close", "", 0, func(context.Context) error { return w.session.Close() })
	}
	w.open = false
}

// call makes a call and records it. A limit of 0 is none: this package's NewSession and
// Close have one of their own.
func (w *worker) call(
	ctx context.Context, op, name string, limit time.Duration, f func(context.Context) error,
) error {
	c := history.Call{Who: w.who, Op: op, Name: name, Call: w.rec.Now()}
	if w.open && op != guardedOp && op != staleOp { // which need no session
		c.Lease = int64(w.session.Lease())
	}
	if limit == 0 && w.who.Package == history.Here {
		c.Due = c.Call + lifetime
		if op == "NewSession" { // for the grant, for a renewal, and to give the lease back
			c.Due += lifetime + time.Second
		}
	}
	if limit > 0 {
		bound, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		ctx = bound
	}
	err := f(ctx)
	c.Return = w.rec.Now()
	if ctx.Err() != nil && limit > 0 {
		c.Ended = min(c.Call+limit, w.stopped(w.who.Package))
	}
	if err != nil {
		c.Error = err.Error()
	}
	w.rec.Add(history.Record{Call: &c})
	return err
}

// patience is a limit for a wait: often shorter than the wait.
func (w *worker) patience() time.Duration {
	if w.rnd.IntN(3) == 0 {
		return between(w.rnd, time.Millisecond, 100*time.Millisecond)
	}
	return between(w.rnd, time.Second, 4*time.Second)
}

// brief is the longest hold when the faults are over.
const brief = 50 * time.Millisecond

// duration is how long to hold: mostly short, sometimes long enough for a fault to end it.
func (w *worker) duration() time.Duration {
	rarely := 8
	if w.dawdles {
		rarely = 2
	}
	if w.rnd.IntN(rarely) == 0 {
		return between(w.rnd, 500*time.Millisecond, 2*lifetime)
	}
	return between(w.rnd, 0, brief)
}

// lock takes a lock, holds it and releases it. When the release fails, it comes back for the
// same lock, and dawdles, so that a release that comes late finds it there; or it gives the
// session up, now and then.
func (w *worker) lock(ctx context.Context, name string, try bool) {
	m := w.session.NewMutex(name)
	op, acquire := "Lock", m.Lock
	if try {
		op, acquire = "TryLock", m.TryLock
	}
	if w.call(ctx, op, name, w.patience(), acquire) != nil {
		return
	}
	w.hold(ctx, w.claim(name, tokenOf(m.IsOwner()), m), w.alive(m), m.IsOwner())
	former := m.IsOwner()
	err := w.call(ctx, "Unlock", name, w.patience(), m.Unlock)
	if w.rnd.IntN(4) == 0 {
		w.guarded(ctx, guardedOp, name, former)
	}
	switch {
	case err == nil:
	case w.rnd.IntN(2) == 0:
		usual := w.dawdles
		w.dawdles = true
		w.lock(ctx, name, try)
		w.dawdles = usual
	case w.rnd.IntN(2) == 0:
		w.shut()
	}
}

// claim begins the record of a hold.
func (w *worker) claim(name string, token int64, proof headed) *history.Hold {
	h := &history.Hold{Who: w.who, Name: name, Token: token, Lease: int64(w.session.Lease())}
	if w.who.Package == history.Here {
		h.Rev = proof.Header().Revision // upstream's is older than the ownership
	}
	return h
}

// alive tells whether the participant believes that it holds: by the context of its
// ownership, where there is one, or by its session alone.
func (w *worker) alive(handle any) func() bool {
	if o, ok := handle.(library.Owned); ok && w.rnd.IntN(2) == 0 {
		ctx := o.Ctx()
		return func() bool { return ctx.Err() == nil }
	}
	done := w.session.Done()
	return func() bool { return !ended(done) }
}

// hold holds for a while, and at the longest until it is known that it was lost. It
// notes the time before it asks whether it still holds, so that the answer was true then.
//
// If more than the TTL has passed since it last asked, the process was paused, and does what
// is feared of such a one: it writes first.
func (w *worker) hold(ctx context.Context, h *history.Hold, alive func() bool, owner clientv3.Cmp) {
	look := func() bool {
		now := w.rec.Now()
		if h.Start > 0 && now-h.End > lifetime {
			w.guarded(ctx, staleOp, h.Name, owner)
			now = w.rec.Now()
		}
		if s, ok := w.session.(library.Timed); ok {
			h.Deadline = w.rec.When(s.Deadline())
			h.Known = w.rec.When(w.leases.end(w.session.Lease()))
		}
		if !alive() {
			return false
		}
		if h.Start == 0 {
			h.Start = now
		}
		h.End = now
		return true
	}
	for begun, length := w.rec.Now(), w.duration(); look() && w.rec.Now() < begun+length; {
		if !pause(ctx, 3*time.Millisecond) {
			break
		}
		if w.rnd.IntN(15) == 0 {
			w.guarded(ctx, guardedOp, h.Name, owner)
		}
		if ended(w.calm) {
			length = min(length, brief)
		}
	}
	look() // right before it is released
	if h.Start > 0 {
		w.rec.Add(history.Record{Hold: h})
	}
}

// tokenOf reads the create revision out of the comparison that both packages give.
func tokenOf(owner clientv3.Cmp) int64 { return owner.GetCompare().GetCreateRevision() }

const (
	guardedOp = "guarded write"
	staleOp   = "guarded write after a pause"
)

// errRefused is what a guarded write ends with when its guard does not hold.
var errRefused = errors.New("refused")

// guarded writes under the guard of an ownership, present or former. The auditor sees
// whether it was carried out.
func (w *worker) guarded(ctx context.Context, op, name string, owner clientv3.Cmp) {
	token := tokenOf(owner)
	if token == 0 {
		return
	}
	key, value := guardedKey(name), fmt.Sprintf(guardedFormat, token, w.who.Client, w.who.Package)
	byNewSTM := w.who.Package == history.Here && w.rnd.IntN(2) == 0
	_ = w.call(ctx, op, name, time.Second, func(ctx context.Context) error {
		if byNewSTM {
			_, err := concurrency.NewSTM(w.client, func(s concurrency.STM) error {
				s.Put(key, value)
				return nil
			}, concurrency.WithAbortContext(ctx), concurrency.WithGuard(owner))
			if err == concurrency.ErrGuardFailed {
				return errRefused
			}
			return err
		}
		resp, err := w.client.Txn(ctx).If(owner).Then(clientv3.OpPut(key, value)).Commit()
		if err == nil && !resp.Succeeded {
			return errRefused
		}
		return err
	})
}

// do holds a lock by Mutex.Do, where there is one.
func (w *worker) do(ctx context.Context) {
	name := pick(w.rnd, locks)
	m := w.session.NewMutex(name)
	d, ok := m.(library.Doer)
	if !ok {
		w.lock(ctx, name, false)
		return
	}
	_ = w.call(ctx, "Do", name, w.patience(), func(ctx context.Context) error {
		return d.Do(ctx, func(ctx context.Context) error {
			h := w.claim(name, tokenOf(m.IsOwner()), m)
			w.hold(ctx, h, func() bool { return ctx.Err() == nil }, m.IsOwner())
			return nil
		})
	})
}
