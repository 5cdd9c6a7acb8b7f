package concurrency

import (
	"context"
	"strings"
	"time"
)

// This file tells the Trace of a session what happens on the way of a ticket. What stands on
// the path of a call is told on the goroutine of that call. A clean-up has no caller, so its
// events go by [tracing.later]. An event for which there is no function is not made.

// event is what the trace is told of the session in its line, with the ticket t. Who stands in
// several lines has all their names. A ticket whose revision is not known has the token 0.
func (q queue) event(t ticket) LineEvent {
	names := []string{strings.TrimSuffix(q.prefix, "/")}
	for _, prefix := range q.also.all() {
		names = append(names, strings.TrimSuffix(prefix, "/"))
	}
	return LineEvent{Name: strings.Join(names, ", "), Lease: q.session.id, Key: t.key, Token: t.rev}
}

// tellJoined tells of a ticket that was drawn or found.
func (q queue) tellJoined(v view) {
	if t := q.lease().trace; t != nil && t.Joined != nil {
		e := q.event(v.mine)
		// The view of a ticket that is not near may leave out some of those ahead.
		if e.Ahead = v.next().key; v.near {
			e.Position = len(v.ahead) + 1
		}
		t.Joined(e)
	}
}

// tellWaiting tells which ticket is directly ahead, unless that was told before. It returns
// that ticket. The caller hands it back with the next view, so that nothing is told twice.
func (q queue) tellWaiting(v view, told ticket) ticket {
	ahead := v.next()
	if t := q.lease().trace; t != nil && t.Waiting != nil && ahead != told {
		e := q.event(v.mine)
		e.Ahead = ahead.key
		t.Waiting(e)
	}
	return ahead
}

// tellGranted has the trace told what becomes of the grant from now on. It is called under the
// mutex of the seats, and tells nothing itself.
func (q queue) tellGranted(g *grant) {
	// What is told of an ownership is kept with the grant. A trace that asks for none of it keeps
	// nothing.
	t := q.lease().trace
	if t == nil || t.Acquired == nil && t.Lost == nil && t.Released == nil {
		return
	}
	// Handles that share a grant share its holding. The first of them makes it.
	if g != nil && g.holding == nil {
		g.holding = &holding{tracing: t, event: q.event(g.ticket)}
	}
}

// tellTaken tells what came of an acquisition that began at the time. The key is that of the
// session, whether it was drawn or not.
func (q queue) tellTaken(begun time.Time, key string, g *grant, err error) {
	t := q.lease().trace
	switch {
	case t == nil:
	case err == nil:
		// Of several handles that were granted the ticket, the first tells it.
		g.holding.begin(time.Since(begun))
	case t.GaveUp != nil:
		// The ticket may be gone, or may never have been drawn. So the event has no token.
		e := q.event(ticket{key: key})
		e.Waited, e.Err = time.Since(begun), err
		t.GaveUp(e)
	}
}

// lossOf is why an ownership is lost whose ticket was seen to be gone. The clock is asked first: a
// key that is missed after the deadline went with its lease, and a timer may be late.
func (q queue) lossOf() error {
	q.lease().expire()
	if cause := context.Cause(q.lease().lost); cause != nil {
		return cause
	}
	// As far as this process knows, the lease lives and the key alone is gone.
	return ErrKeyDeleted
}

// tellLeftBehind tells of a key that the clean-up has not taken away at once, because of err. It is
// nil if there was no error, and a join without an answer may still put the key.
func (q queue) tellLeftBehind(t ticket, err error) {
	if l := q.lease(); l.trace != nil && l.trace.LeftBehind != nil {
		e := q.event(t)
		e.Err = err
		l.trace.later(func() { l.trace.LeftBehind(e) })
	}
}

// tellCleanedUp tells that such a key is in nobody's way any more. If the lease is lost first,
// nothing is told, because the key goes with the lease.
func (q queue) tellCleanedUp(t ticket) {
	if l := q.lease(); l.trace != nil && l.trace.CleanedUp != nil {
		e := q.event(t)
		l.trace.later(func() { l.trace.CleanedUp(e) })
	}
}
