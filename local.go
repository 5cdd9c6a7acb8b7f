package concurrency

import (
	"context"
	"slices"
	"sync"
	"time"

	v3 "go.etcd.io/etcd/client/v3"
)

// This file passes a lock on from goroutine to goroutine, without a call. A turn of a goroutine
// goes through these states. locals.now is one turn at most, and no other turn has a hold:
//
//	state        is now   has a hold   until
//	----------   ------   ----------   ---------------------------------------------------
//	waits        no       no           the turn before it is over
//	acquires     yes      no           the session owns in etcd's line, or has failed to
//	holds        yes      yes          Unlock, after which the next turn holds or acquires
//	gives back   yes      no           the release has returned
//
// No goroutine joins etcd's line while the release is under way, because locals.now is taken.
//
// The mutex of locals comes first. Those of the ownership, the seats and the lease are taken
// while it is held, and never the other way round.

// locals are the goroutines that share a [LocalMutex], and stand in a line of their own for it.
// The goroutine whose turn it is stands in etcd's line for all of them.
type locals struct {
	mutex *Mutex

	mu   sync.Mutex    // guards the fields below; never held across a call
	now  *turn         // of who acquires, holds or releases; nil: nobody does
	line []*turn       // who waits for that to end, in order
	call time.Duration // the shortest that etcd has taken for an answer; 0: not known
}

// turn is one goroutine's use of the lock. The goroutine waits for it, acquires the lock unless the
// lock was handed to it, and holds the lock.
type turn struct {
	come   chan struct{} // closed when the turn has come
	handed bool          // the lock came with the turn
	hold   *hold         // nil: it does not hold the lock
	term   *term         // once somebody has asked for the context
}

// hold is an ownership of the session, which goroutines pass on.
type hold struct {
	*grant
	passed int64 // how often it was passed on

	// What is known of other sessions. Nobody else waited at the time of the join, or the lock
	// was acquired just now.
	asked  time.Time // when etcd was asked last
	asking bool      // etcd has not answered yet
	alone  int64     // what passed was at the latest question whose answer was that nobody waits
	wanted bool      // another session waits, or may
}

const (
	// askEvery is how many times the time of a call lies between two questions. Questions are
	// thus a small part of the load, and those who wait in other sessions hardly notice.
	askEvery = 10
	// mostPasses is how often the lock is passed on without an answer. The two calls of giving
	// it back are then a ten thousandth of two calls for each goroutine.
	mostPasses = 10_000
)

// queue is the line as the session stands in it.
func (m *locals) queue() queue {
	m.made()
	return m.mutex.queue
}

// made panics for the zero LocalMutex.
func (m *locals) made() {
	if m.mutex == nil {
		panic("concurrency: a LocalMutex that NewLocalMutex did not return")
	}
}

// held reports whether a goroutine holds the lock.
func (m *locals) held() bool {
	m.made()
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now != nil && m.now.hold != nil
}

// seq is how often the lock was passed on that a goroutine holds, or 0.
func (m *locals) seq() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.now == nil || m.now.hold == nil {
		return 0
	}
	return m.now.hold.passed
}

// lock returns the turn with which the goroutine holds the lock. [locals.finish] ends it. It
// costs no call if the lock is handed on.
func (m *locals) lock(ctx context.Context) (t *turn, err error) {
	need(ctx)
	q := m.queue()
	// A session that NewSession did not return panics here, before the turn stands in line.
	q.lease()
	t = &turn{come: make(chan struct{})}
	if m.begin(t) {
		// The seat counts those who wait here. The ticket of the goroutine whose turn it is
		// then stays for them if that one gives up. The exit names no ticket, because this
		// goroutine has drawn none.
		defer func() { q.exit(m.mutex.joining(), ticket{}, err) }()
		if err = m.await(ctx, t); err != nil {
			return nil, err
		}
	}
	if t.handed {
		return t, nil
	}
	if err = m.acquire(t, func() (*grant, error) { return m.mutex.lock(ctx) }); err != nil {
		return nil, err
	}
	return t, nil
}

// begin makes it the turn of t, or puts t in line and reports that it has to wait. A turn that
// waits has entered the seat, and the caller has to exit from it.
func (m *locals) begin(t *turn) (waits bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.now == nil {
		m.now = t
		return false
	}
	m.queue().enter(m.mutex.joining())
	m.line = append(m.line, t)
	return true
}

// await waits until the turn of t has come. If it returns an error, t has left the line. A turn
// that has come may have the lock already.
func (m *locals) await(ctx context.Context, t *turn) (err error) {
	l := m.queue().lease()
	select {
	case <-t.come:
		return nil
	case <-ctx.Done():
		err = ctx.Err()
	// The end of the client ends lost only while a call is under way, if the session is orphaned.
	case <-l.client.Ctx().Done():
		err = l.loss()
	case <-l.lost.Done():
		err = l.loss()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := slices.Index(m.line, t); i >= 0 {
		m.line = slices.Delete(m.line, i, i+1)
		return err
	}
	// The turn has come meanwhile. Who was handed the lock has it.
	if t.handed {
		return nil
	}
	// The turn came without the lock, so the next in line may acquire it.
	m.next(t)
	return err
}

// acquire takes the lock for t. If that fails, or panics, the turn of t is over.
func (m *locals) acquire(t *turn, take func() (*grant, error)) error {
	taken := false
	defer func() {
		if !taken {
			m.leave(t)
		}
	}()
	g, err := take()
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t.hold = &hold{grant: g, asked: time.Now()}
	taken = true
	return nil
}

// finish ends the ownership of t, or of the turn that holds the lock if t is nil. It returns the turn
// that it has ended, or nil, and the hold to give back. If there is no hold to give back, the next
// goroutine has it already. finish makes no call.
func (m *locals) finish(t *turn) (*turn, *hold) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.now == nil || m.now.hold == nil || t != nil && t != m.now {
		return nil, nil
	}
	t = m.now
	h := t.hold
	// A caller who asks from here on learns that the ownership is over.
	t.hold = nil
	if t.term != nil {
		t.term.end(lockReleased.cause())
	}
	// The lock goes back if no goroutine waits, or if another session does. It also goes back
	// if etcd has not answered for too many passes, or if the ownership may be over.
	if len(m.line) == 0 || h.wanted || h.passed-h.alone >= mostPasses || !m.mutex.lasts(h.grant) {
		return t, h
	}
	// [LocalMutex.Seq] is a part of the token. It rises before the next goroutine holds.
	h.passed++
	m.ask(h)
	// The next goroutine holds from here on, even if its ctx ends before it wakes, see await.
	m.line[0].hold, m.line[0].handed = h, true
	m.next(t)
	return t, nil
}

// leave ends the turn of t.
func (m *locals) leave(t *turn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.next(t)
}

// next makes it the turn of the next in line, if it is that of t. The caller has mu.
func (m *locals) next(t *turn) {
	if m.now != t {
		return
	}
	m.now = nil
	if len(m.line) > 0 {
		m.now, m.line = m.line[0], m.line[1:]
		close(m.now.come)
	}
}

// contextOf is the context of the ownership of t. It has ended if t does not hold the lock. t
// may be nil, for nobody's turn.
func (m *locals) contextOf(t *turn) context.Context {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t == nil || t.hold == nil {
		return lockReleased.ctx
	}
	if t.term == nil {
		// The context of the Mutex lasts for as long as the session owns. So one watch serves
		// all goroutines that pass the lock on.
		owned := m.mutex.context()
		ctx, cancel := context.WithCancelCause(owned)
		// Err of owned looks at the clock.
		look := func() {
			if owned.Err() != nil {
				cancel(context.Cause(owned))
			}
		}
		t.term = &term{&punctual{ctx, look}, cancel}
	}
	return t.term.ctx
}

// ask asks etcd in the background whether another session waits for h, if it is time. The
// caller has mu.
//
// A question that is not answered delays nobody more than the release would, which needs an
// answer too. A question is one read. The first question is asked at once, because no call was
// timed yet.
func (m *locals) ask(h *hold) {
	if h.asking || time.Since(h.asked) < askEvery*m.call {
		return
	}
	h.asking, h.asked = true, time.Now()
	// The answer says nothing of what is passed on while the question is under way.
	passed := h.passed
	q := m.queue()
	q.lease().background(func(life context.Context) {
		others, err := q.behind(h.over, h.ticket)
		m.mu.Lock()
		h.asking = false
		// The shortest call counts. A slow answer would make the questions rarer, and so the
		// waits of other sessions longer.
		if took := time.Since(h.asked); err == nil && (m.call == 0 || took < m.call) {
			m.call = took
		}
		// Who can't know whether others wait gives the lock back.
		if h.wanted = others || err != nil; !h.wanted {
			h.alone = passed
		}
		m.mu.Unlock()
		// The key is gone. No goroutine is passed the lock any more, and the contexts of the
		// ownership end.
		if err == ErrSessionExpired {
			q.lease().seats.at(h.key, func(s *seat) { s.forget(h.rev) })
			_ = q.askForLease(life) // because the whole lease may have been revoked
		}
	})
}

// behind reports whether a ticket stands in line that is newer than t. It returns
// [ErrSessionExpired] if t does not stand. One read shows both, because t is the oldest of
// those that are not older than t.
func (q queue) behind(ctx context.Context, t ticket) (bool, error) {
	resp, err := q.get(ctx, q.prefix, v3.WithPrefix(), v3.WithKeysOnly(), v3.WithMinCreateRev(t.rev),
		v3.WithSort(v3.SortByCreateRevision, v3.SortAscend), v3.WithLimit(2))
	switch {
	case err != nil:
		return false, err
	case !t.firstOf(resp.Kvs):
		return false, ErrSessionExpired
	}
	return len(resp.Kvs) > 1, nil
}

// lasts reports whether held may be passed on: as far as this process knows, the ownership is
// not over, and its context has not ended for another reason. It makes no call. An orphaned session
// passes nothing on, because nobody here knows when its lease ends.
func (o *ownership) lasts(held *grant) bool {
	o.mu.Lock()
	t := o.term
	o.mu.Unlock()
	return o.owns(held) && o.queue.lease().ctx.Err() == nil && (t == nil || t.ctx.Err() == nil)
}
