package concurrency

import (
	"context"
	"slices"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	v3 "go.etcd.io/etcd/client/v3"
)

// A handle holds a grant until it has given the grant back, or a call of its own has met the loss. A
// watch that sees the loss leaves the grant. So Unlock after a loss finds what to release, and
// IsOwner goes by owns and not by held.
// The term is the context of that ownership. A release ends the term before it sends anything.

// ownership is what a Mutex and an Election have in common: a place in a line, and the
// grant by which the handle owns.
type ownership struct {
	queue    queue
	released *term // a term that has ended by a release; all handles share it

	mu     sync.Mutex // guards the fields below; never held across a call
	held   *grant     // what the handle has to give back, lost or not; nil: nothing
	header *pb.ResponseHeader
	term   *term // of held, once somebody has asked for its context
	busy   bool  // a Do or Lead is under way
}

// resume makes the handle own by a ticket that the lease was granted before, unless key or rev
// is none.
func (o *ownership) resume(key string, rev int64) {
	// grant refuses a ticket whose deletion this process has decided. Whether the ticket stands is
	// not known, see [ResumeMutex]. So it is claimed, unless another handle was granted it before.
	if key != "" && rev != 0 {
		o.queue.lease().seats.at(key, func(s *seat) {
			before := s.granted
			if o.held = s.grant(ticket{key, rev}); o.held != nil && o.held != before {
				o.held.claimed = true
			}
		})
	}
}

// acquire stands in line for the turn, see [queue.acquire]. What was held before is not
// held any more if somebody else is proven to own.
func (o *ownership) acquire(ctx context.Context, txn joinTxn) (*grant, error) {
	return o.acquireIn(ctx, o.queue, txn)
}

// acquireIn acquires by one of the places of a handle that has several.
func (o *ownership) acquireIn(ctx context.Context, q queue, txn joinTxn) (*grant, error) {
	// What the call tells of a loss is of this ownership, and not of a newer one.
	before, _ := o.state()
	if before != nil && before.key != txn.key {
		before = nil // nor of one by another place
	}
	begun := q.lease().trace.now()
	g, header, err := q.acquire(ctx, txn)
	// Somebody else is in line or owns, or the session has lost its key. The handle does not own by the
	// earlier grant any more. Other errors tell nothing about it. A newer grant has ended it, see seat.
	if err == ErrLocked || err == ErrSessionExpired {
		o.lose(before) // and not what another call has acquired meanwhile
	}
	if err == nil {
		o.take(g, header)
	}
	// The trace may take its time, or panic. The handle holds g by now, so that g can be given back.
	q.tellTaken(begun, txn.key, g, err)
	return g, err
}

// take notes what an acquisition was given, unless another one was given a newer ticket since. The
// acquisitions of one handle may come here in any order.
func (o *ownership) take(g *grant, header *pb.ResponseHeader) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.held == nil || o.held.rev <= g.rev || o.held.over.Err() != nil {
		o.replace(g)
		o.header = header
	}
}

// release gives back what the handle holds by held. The term ends before anything is sent.
// For its results see [queue.leave]. It may be repeated after an error.
func (o *ownership) release(ctx context.Context, held *grant) (*pb.ResponseHeader, error) {
	need(ctx)
	// Whatever becomes of the call, who asks from here on learns that the ownership is
	// over.
	o.end(held)
	header, err := o.queue.leave(ctx, held.ticket)
	// The key was gone, so the trace is told of a loss and not of a release.
	if err == ErrSessionExpired {
		held.holding.lose(o.queue.lossOf())
	} else {
		held.holding.release(err)
	}
	// After any other error the handle still holds the grant, so that the release can be repeated.
	if err == nil || err == ErrSessionExpired {
		o.drop(held)
	}
	return header, err
}

// unlock releases what the handle holds by its place in q. A lock that was lost meanwhile needs
// no release.
func (o *ownership) unlock(ctx context.Context, q queue) error {
	held, _ := o.state()
	// A handle of two places, such as an RWMutex, holds by one of them at most.
	if held == nil || held.key != q.key() {
		return ErrLockReleased
	}
	_, err := o.release(ctx, held)
	if err == ErrSessionExpired {
		return nil
	}
	return err
}

// lose notes that held was seen to be gone, for the siblings too. nil is nothing.
func (o *ownership) lose(held *grant) {
	if held != nil {
		o.queue.lease().seats.at(held.key, func(s *seat) { s.forget(held.rev) })
		held.holding.lose(o.queue.lossOf())
		o.drop(held)
	}
}

// drop notes that there is nothing to give back of held, and keeps a newer grant.
func (o *ownership) drop(held *grant) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.held == held {
		o.replace(nil)
	}
}

// replace sets the grant. If the term was of another grant, it has ended. The caller has
// mu.
func (o *ownership) replace(held *grant) {
	// The caller of context has been given the old term, and must learn that it is over.
	if o.held != held && o.term != nil {
		o.term.end(o.queue.lossOf())
		o.term = nil
	}
	o.held = held
}

// state is what the handle holds, and the latest header. What is held may be lost already, see
// [ownership.owns].
func (o *ownership) state() (*grant, *pb.ResponseHeader) {
	o.queue.made()
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.held, o.header
}

// owns reports whether the handle owns by held. It does not as soon as this process knows
// that the ownership is over. The ticket was released, by whichever handle, or it was seen
// to be gone, or the lease is lost.
func (o *ownership) owns(held *grant) bool {
	if held == nil || held.over.Err() != nil {
		return false
	}
	l := o.queue.lease()
	l.expire()
	// The closing of the client is no loss. The handle may still own, and its key stands. A session that
	// was lost or closed before stays so.
	cause := context.Cause(l.lost)
	return cause == nil || cause == ErrClientClosed
}

// ticket is the ticket by which the handle owns, or none.
func (o *ownership) ticket() ticket {
	if held, _ := o.state(); o.owns(held) {
		return held.ticket
	}
	return ticket{}
}

// stands is true in a transaction only while the handle owns what it owns now.
func (o *ownership) stands() v3.Cmp {
	if held := o.ticket(); held != (ticket{}) {
		return held.stands()
	}
	return o.queue.never()
}

// context returns the context of the term, which the first caller starts. If nothing is
// held, the context has ended, with the cause of a release.
func (o *ownership) context() context.Context {
	o.queue.made()
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.held == nil:
		return o.released.ctx
	// The loss is known before anybody asked. Nothing has to be watched.
	case o.term == nil && o.held.over.Err() != nil:
		o.term = ended(o.queue.lossOf())
	case o.term == nil:
		// A term is followed only when somebody asks, because a watch costs as much as a
		// call.
		o.term = o.queue.follow(o.held, o.header.GetRevision())
	}
	return o.term.ctx
}

// end ends the term of held. A caller who asks from now on, while the release is under way,
// is given a context that has ended.
func (o *ownership) end(held *grant) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.held != held {
		return
	}
	if o.term != nil {
		o.term.end(o.released.cause())
	}
	o.term = o.released
}

// term is the time for which a handle owns by a grant.
type term struct {
	ctx *punctual
	end context.CancelCauseFunc
}

// ended is a term that has ended with the cause. Any number of handles may share it.
func ended(cause error) *term {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(cause)
	return &term{&punctual{ctx, func() {}}, cancel}
}

// cause tells why the term has ended.
func (t *term) cause() error { return context.Cause(t.ctx) }

// follow starts the term of a grant, whose ticket stood at the revision rev. It ends with the
// session, and with the deletion of the key, which it watches for. A deletion by another handle
// of the session is known before it is sent.
func (q queue) follow(g *grant, rev int64) *term {
	l := q.lease()
	// As a child of the session's context, the term ends with the session and has its cause.
	ctx, cancel := context.WithCancelCause(q.session.ctx)
	detach := context.AfterFunc(g.over, func() { cancel(q.lossOf()) })
	// After Close nothing is watched. The context has ended with the session then.
	l.background(func(life context.Context) {
		defer detach()
		// The watch may outlive the caller of context, but not the session or the release.
		if err := q.untilGone(ctx, g.ticket, rev); err != ErrSessionExpired {
			// A key that can't be read for a permanent reason ends the term as well.
			cancel(err)
			return
		}
		l.seats.at(g.key, func(s *seat) { s.forget(g.rev) })
		cancel(q.lossOf())
		// The whole lease may have been revoked. The term has ended before that is known, and
		// the trace is told when it is.
		_ = q.askForLease(life)
		g.holding.lose(q.lossOf())
	})
	// The session's deadline may have passed, or a sibling may have released the ticket.
	look := func() {
		if l.expire(); g.over.Err() != nil {
			cancel(q.lossOf())
		}
	}
	// Err looks by itself, because the goroutine above may run late, see punctual.
	return &term{&punctual{ctx, look}, cancel}
}

// untilGone returns [ErrSessionExpired] when the ticket is seen to be gone, in any of its lines.
// It stood at the revision rev; 0 is none. It ends earlier when ctx does. It also ends with a
// permanent error that keeps it from reading the key, because a process that can't know does
// not own.
//
// The place that a session's handles share goes on with the watch of its wait, and leaves it to the
// next wait. So one watch serves a session from turn to turn. A watch that begins here is not left,
// because nobody else may want the lock. Other places watch their own keys, because many of them may
// own at once. They look first, because the watch begins at the revision of a look.
func (q queue) untilGone(ctx context.Context, t ticket, rev int64) error {
	var w *watcher
	kept, own := false, q.keys(t.key)
	if q.rule == (rule{}) && t.key == q.key() {
		w, kept = q.watchLine(rev)
	}
	defer func() {
		if kept {
			q.keep(w, rev)
		} else {
			w.stop()
		}
	}()
	for stale := w == nil; ; {
		if stale {
			read, header, err := q.read(ctx, q.ownParts(t.key), 0)
			switch {
			case err != nil:
				return err
			case !q.among(t, read):
				return ErrSessionExpired
			}
			if rev = header.Revision; w == nil {
				w = q.watchOwn(ctx, t, rev)
			}
		}
		var news v3.WatchResponse
		select {
		case news = <-w.heard():
		case <-ctx.Done():
			return ctx.Err()
		}
		// All events of one answer are compared with the revision before it, because several can be of
		// one revision.
		seen, gone := rev, false
		for _, ev := range news.Events {
			if ev.Kv.ModRevision > seen {
				gone = gone || slices.Contains(own, string(ev.Kv.Key))
				// A wait that takes this watch over needs a view of this revision or a later one.
				rev = ev.Kv.ModRevision
			}
		}
		if gone {
			return ErrSessionExpired
		}
		// A watch that began later, broke, or fell silent, has told nothing of what happened
		// before. A look does.
		stale = news.Canceled || news.Created && missed(news, rev)
	}
}
