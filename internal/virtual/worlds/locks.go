package worlds

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/history"
	"example.com/etcd/concurrency/internal/library"
)

// tokenOf reads the create revision out of the comparison that both packages give.
func tokenOf(owner clientv3.Cmp) int64 { return owner.GetCompare().GetCreateRevision() }

// handle is a Mutex or an Election.
type handle interface {
	Key() string
	Header() *pb.ResponseHeader
}

// holding is an ownership that is about to begin: what is recorded of it, what tells its end,
// and by which comparison it can write.
type holding struct {
	history.Hold
	belief context.Context // for as long as it lives; nil: for as long as over is open
	over   <-chan struct{}
	owner  clientv3.Cmp
	stay   *stay         // nil: not known
	by     handle        // is asked after a loss; nil: not
	ttl    time.Duration // 0: the end of the context is no promise about deletions
	also   []string      // further names that are held by the same token
}

// owning begins a holding. The participant believes in its ownership for as long as the
// context of the ownership lives, if it asks for that, or its session.
func (w *worker) owning(s *stay, name string, token int64, owner clientv3.Cmp, by handle) holding {
	h := holding{
		Hold: history.Hold{Who: w.who, Name: name, Token: token, Lease: int64(s.lease)},
		over: s.Done(), owner: owner, stay: s, by: by,
	}
	if w.here() {
		h.Rev = by.Header().GetRevision() // upstream's is older than the ownership
		if o, ok := by.(library.Owned); ok && w.rnd.IntN(2) == 0 {
			h.belief, h.ttl = o.Ctx(), s.ttl
			h.over = h.belief.Done()
		}
	}
	return h
}

// within is a holding whose end is told by the context of Do, Lead or RunLeader.
func (h holding) within(ctx context.Context, ttl time.Duration) holding {
	h.belief, h.over, h.ttl, h.by = ctx, ctx.Done(), ttl, nil
	return h
}

// hold holds for a while, at the longest until it is known that it was lost or ctx ends. Now
// and then it writes. It returns the context of the ownership if that lives when all is written, or nil.
func (w *worker) hold(ctx context.Context, h holding) (term context.Context) {
	if ended(h.over) {
		return nil
	}
	defer func() {
		if h.belief != nil && h.belief.Err() == nil {
			term = h.belief
		}
	}()
	h.Start = w.rec.Now()
	if h.belief != nil && h.by != nil && h.Passed == 0 { // who releases may believe until the end of the context, and no longer
		believed := h // a copy, since the end of h is written in the instant in which this may run
		context.AfterFunc(h.belief, func() { w.held(believed) })
	}
	length := w.duration()
	timer := time.NewTimer(length)
	defer timer.Stop()
	calm := w.calm
	var writing sync.WaitGroup
	defer writing.Wait()
	var writes <-chan time.Time
	if w.rnd.IntN(4) == 0 {
		writes = time.After(between(w.rnd, 0, length+1))
	}
	for holds := true; holds; {
		select {
		case <-h.over:
			holds = false
		case <-timer.C:
			holds = false
		case <-ctx.Done():
			holds = false
		case <-calm:
			calm = nil
			timer.Reset(brief)
		case <-writes: // beside, since the end must be noticed in its instant
			writing.Go(func() { w.guarded(ctx, h.Name, h.owner) })
		}
	}
	if h.End = w.held(h); ended(h.over) {
		w.askLoss(h)
	} else if gone, ok := w.audit.goneAt(h.Token); ok && h.ttl > 0 { // and its context lives
		w.askNews(h, span{max(gone, h.Start), h.End})
	}
	return nil
}

// held records a holding that has lasted until now.
func (w *worker) held(h holding) (until time.Duration) {
	until = w.rec.Now()
	for _, name := range append([]string{h.Name}, h.also...) {
		held := h.Hold
		held.Name, held.End = name, until
		w.rec.Add(history.Record{Hold: &held})
	}
	return until
}

// askLoss asks whether an ownership was lost that is told so, how late it was told, and what its
// handle says.
func (w *worker) askLoss(h holding) {
	gone, ok := w.audit.goneAt(h.Token)
	if ok && h.ttl > 0 {
		// The answer that let it hold may have been late, and tells of an earlier time.
		known := span{max(gone, h.Start), h.End}
		// The watch was silent from half a round trip after the loss on, and the look that
		// followed took a whole one. A fault may have befallen the look.
		bound := h.ttl + time.Second + w.weather.farthest(known)*3/2
		if calm := w.clearest(known); calm > bound {
			w.violate("told", "%v: token %d of %q was gone for %v before its context ended, %v of them without a fault",
				w.who, h.Token, h.Name, known.to-known.from, calm)
		}
		w.askNews(h, known)
	}
	// A context also ends with an error that keeps it from looking: that is no loss.
	lost := h.belief == nil || errors.Is(context.Cause(h.belief), w.lib.ErrSessionExpired)
	if lost && !ok && h.belief != nil && h.stay != nil && h.stay.Ctx().Err() == nil {
		w.violate("told", "%v: token %d of %q stands, its session lives, and its context has ended with %v",
			w.who, h.Token, h.Name, context.Cause(h.belief))
	}
	if w.here() && lost && h.by != nil && h.by.Key() != "" {
		w.violate("handle", "%v: the handle of %q has the key %q after token %d was lost",
			w.who, h.Name, h.by.Key(), h.Token)
	}
}

// askNews asks whether a loss was told as soon as the news need, in a span in which it was known to
// the servers.
func (w *worker) askNews(h holding, known span) {
	w.untroubledIn(known, func(trip, silent time.Duration) {
		if late := known.to - known.from; late > w.news(trip, silent) {
			w.violateAt("told", known.to, "%v: token %d of %q was gone for %v, and its context lived, without a fault and with round trips of up to %v",
				w.who, h.Token, h.Name, late, trip)
		}
	})
}

// errRefused is what a guarded write ends with when its guard does not hold.
var errRefused = errors.New("refused")

// guarded writes under the guard of an ownership, present or former. The auditor sees whether
// it was carried out.
func (w *worker) guarded(ctx context.Context, name string, owner clientv3.Cmp) {
	token := tokenOf(owner)
	if token == 0 {
		return
	}
	key, value := guardedKey(name), fmt.Sprintf(guardedFormat, token, w.who.Client, w.who.Package)
	byTxn := w.here() && w.rnd.IntN(2) == 0
	_ = w.call(ctx, call{op: "guarded write", name: name, limit: time.Second}, func(ctx context.Context) error {
		if byTxn {
			_, err := w.lib.Transact(w.client, func(s library.STM) error {
				s.Put(key, value)
				return nil
			}, library.TxnOptions{Ctx: ctx, Guards: []clientv3.Cmp{owner}})
			return err
		}
		resp, err := w.client.Txn(ctx).If(owner).Then(clientv3.OpPut(key, value)).Commit()
		if err == nil && !resp.Succeeded {
			return errRefused
		}
		return err
	})
}

func (w *worker) anyLock() string { return w.lock(w.rnd.IntN(w.plan.Locks)) }

func (w *worker) lockAndUnlock(ctx context.Context) { w.take(ctx, w.stay, w.anyLock(), false) }
func (w *worker) tryAndUnlock(ctx context.Context)  { w.take(ctx, w.stay, w.anyLock(), true) }

// take takes a lock, holds it and releases it. When the release fails it comes back for the
// same lock, so that a release that comes late finds it there, or gives the session up.
func (w *worker) take(ctx context.Context, s *stay, name string, try bool) {
	m := s.NewMutex(name)
	op, acquire := "Lock", m.Lock
	if try {
		op, acquire = "TryLock", m.TryLock
	}
	if w.call(ctx, call{op: op, name: name, lease: s.lease, limit: w.patience()}, acquire) != nil {
		return
	}
	owner := m.IsOwner()
	term := w.hold(ctx, w.owning(s, name, tokenOf(owner), owner, m))
	err := w.release(ctx, call{op: "Unlock", name: name, lease: s.lease}, m.Unlock)
	w.askReleased("Unlock", name, term)
	if w.rnd.IntN(4) == 0 {
		w.guarded(ctx, name, owner)
	}
	switch {
	case err == nil || ctx.Err() != nil:
	case w.rnd.IntN(2) == 0:
		w.take(ctx, s, name, try)
	case w.rnd.IntN(2) == 0 && s == w.stay:
		w.shut()
	default: // what it has left behind shows
		pause(ctx, w.patient())
	}
}

// release gives back what was acquired, or has been lost since: both are no error.
func (w *worker) release(ctx context.Context, c call, f func(context.Context) error) error {
	return w.insist(ctx, c, func(ctx context.Context) error {
		err := f(ctx)
		if w.here() && (errors.Is(err, w.lib.ErrLockReleased) || errors.Is(err, w.lib.ErrSessionExpired)) {
			w.violate("handle", "%v: %s of %q after it was acquired: %v", w.who, c.op, c.name, err)
		}
		return err
	})
}

// insist makes a release, and now and then repeats one that failed.
func (w *worker) insist(ctx context.Context, c call, f func(context.Context) error) (err error) {
	for again := true; again; again = err != nil && w.rnd.IntN(2) == 0 {
		c.limit = w.impatience()
		err = w.call(ctx, c, f)
	}
	return err
}

// siblings are goroutines that use one name of one session by handles of their own. They share
// the lock: whoever unlocks takes it from the others. The contexts of their ownerships have ended
// then. Without such contexts they can't know, as if a stranger had taken it.
func (w *worker) siblings(ctx context.Context) {
	s, name := w.stay, w.anyLock()
	n, turns := 2+w.rnd.IntN(2), 1
	if w.plan.Hasty {
		n, turns = n+w.rnd.IntN(3), 1+w.rnd.IntN(6)
	}
	w.beside(n, func(sibling *worker) {
		for range turns {
			sibling.takeShared(ctx, s, name)
		}
	})
}

// takeShared is the turn of a sibling.
func (w *worker) takeShared(ctx context.Context, s *stay, name string) {
	pause(ctx, w.think()/4)
	m := s.NewMutex(name)
	op, acquire := "Lock", m.Lock
	if w.rnd.IntN(4) == 0 {
		op, acquire = "TryLock", m.TryLock
	}
	if w.call(ctx, call{op: op, name: name, lease: s.lease, limit: w.patience()}, acquire) != nil {
		return
	}
	token := tokenOf(m.IsOwner())
	h := w.owning(s, name, token, m.IsOwner(), m)
	h.by, h.stay = nil, nil // a sibling may have unlocked
	if o, ok := m.(library.Owned); ok {
		h = h.within(o.Ctx(), s.ttl)
	}
	w.hold(ctx, h)
	if h.belief == nil {
		w.rec.Add(history.Record{Loss: &history.Loss{Token: token, At: w.rec.Now()}})
	}
	_ = w.insist(ctx, call{op: "Unlock", name: name, lease: s.lease}, m.Unlock)
}

// beside lets n goroutines of the worker's work on its session, and waits for them.
func (w *worker) beside(n int, f func(sibling *worker)) {
	var wg sync.WaitGroup
	siblings := make([]*worker, n)
	for i := range siblings {
		rnd := w.rand(fmt.Sprint("sibling of ", w.index, " at ", w.rec.Now()), i)
		siblings[i] = &worker{station: w.station, rnd: rnd, index: w.index, stay: w.stay}
		wg.Go(func() { f(siblings[i]) })
	}
	wg.Wait()
	w.failed = w.failed || slices.ContainsFunc(siblings, func(s *worker) bool { return s.failed })
}

// locker locks by a Locker, several times. Goroutines don't share it here: those that wait for
// each other by a sync.Mutex, as Locker lets them, keep virtual time from moving.
func (w *worker) locker(ctx context.Context) {
	s, name := w.stay, w.anyLock()
	l := s.NewLocker(name)
	for range 1 + w.rnd.IntN(3) {
		if w.callLocker("Locker.Lock", name, s, l.Lock) != nil {
			return
		}
		w.keep(ctx, s, name)
		if w.callLocker("Locker.Unlock", name, s, l.Unlock) != nil || !pause(ctx, w.think()) {
			return
		}
	}
}

// keep keeps a lock for a while, without a look whether it lasts.
func (w *worker) keep(ctx context.Context, s *stay, name string) {
	_ = w.call(ctx, call{op: "keep", name: name, lease: s.lease}, func(ctx context.Context) error {
		pause(ctx, w.duration())
		return nil
	})
}

// callLocker makes the error of a panic.
func (w *worker) callLocker(op, name string, s *stay, f func()) error {
	return w.call(context.Background(), call{op: op, name: name, lease: s.lease}, func(context.Context) (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic: %v", p)
			}
		}()
		f()
		return nil
	})
}

// orphaned locks with a session that nobody renews any more. Nobody knows how long it holds.
func (w *worker) orphaned(ctx context.Context) {
	s, name := w.stay, w.anyLock()
	w.stay = nil
	lost := ended(s.Done())
	w.leave(s)
	s.Orphan()
	m := s.NewMutex(name)
	err := w.call(ctx, call{op: "Lock", name: name, lease: s.lease, limit: w.patience()}, m.Lock)
	if lives := !lost && w.here() && w.leaseLives(s.lease); lives && errors.Is(err, rpctypes.ErrLeaseNotFound) {
		w.violate("told", "%v: Lock of %q by an orphaned session says %q, and its lease lives", w.who, name, err)
	}
	if err == nil {
		w.keep(ctx, s, name)
		_ = w.call(ctx, call{op: "Unlock", name: name, lease: s.lease, limit: w.patience()}, m.Unlock)
	}
	w.close(s)
}

// do holds a lock by Mutex.Do.
func (w *worker) do(ctx context.Context) {
	name := w.anyLock()
	w.doWith(ctx, name, w.stay.NewMutex(name))
}

// doAgain uses one handle for several Do.
func (w *worker) doAgain(ctx context.Context) {
	s, name := w.stay, w.anyLock()
	m := s.NewMutex(name)
	for range 2 + w.rnd.IntN(4) {
		w.doWith(ctx, name, m)
		if ended(w.rest) || w.stay != s || !pause(ctx, w.think()) {
			return
		}
	}
}

func (w *worker) doWith(ctx context.Context, name string, m library.Mutex) {
	s := w.stay
	var term context.Context
	var returned time.Duration
	over := func() time.Duration { return 0 }
	_ = w.call(ctx, call{op: "Do", name: name, lease: s.lease, limit: w.patience()}, func(ctx context.Context) error {
		return m.(library.Doer).Do(ctx, func(ctx context.Context) error {
			owner := m.IsOwner()
			over = w.endOf(ctx)
			term = w.hold(ctx, w.owning(s, name, tokenOf(owner), owner, m).within(ctx, s.ttl))
			returned = w.rec.Now()
			return nil
		})
	})
	w.askReleased("Do", name, term)
	if late := over() - returned; w.here() && late > 0 {
		w.violate("handle", "%v: the context of Do of %q lived for %v after its work had returned", w.who, name, late)
	}
}
