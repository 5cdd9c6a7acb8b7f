package concurrency

import (
	"sync"
	"time"

	v3 "go.etcd.io/etcd/client/v3"
)

// Trace is what a program is told of its sessions and transactions while they are at work. A
// function that is nil is not called. A Trace without functions, or none at all, costs nothing.
//
// [WithTrace] gives a Trace to a session, for all locks and elections on it. [WithSTMTrace] gives
// a Trace to a transaction. The same Trace may serve many of both. Its functions may be called
// from any goroutine, and at the same time for different sessions. They are never called under a
// mutex of this package.
//
// The functions of the first group run on the goroutine of the call that they tell of. Such a
// function holds up this call and nothing else. The functions of the second group run one after
// the other, on a goroutine of their session or transaction. However slow they are, they hold up
// no renewal, no wait, no clean-up and no end of a context. [Session.Close] and [NewSTM] wait for
// them, so they must not call Close themselves. If they fall behind by 64 events, the next renewals
// and repeated calls are not told. An end and a loss always are.
type Trace struct {
	// Joined is called when a session has drawn a ticket for a lock or an election, or has found
	// the ticket that it had.
	Joined func(LineEvent)
	// Waiting is called when a ticket is directly ahead, and again when the ticket ahead is
	// another one.
	Waiting func(LineEvent)
	// Acquired is called when the session owns. If several handles of the session share the
	// ownership, it is called for the first of them. Released or Lost follows, once.
	Acquired func(LineEvent)
	// GaveUp is called when an acquisition has failed. Err is what it returns.
	GaveUp func(LineEvent)
	// Released is called when an ownership was given back, after the answer. If Err is not nil,
	// the deletion of the key was not answered, and goes on in the background. If another handle is
	// still being told of the acquisition, Released is called after that, on the goroutine of that call.
	Released func(LineEvent)
	// Attempt is called after every attempt of a transaction. It is not called after an attempt
	// that ended with a panic or runtime.Goexit.
	Attempt func(Attempt)

	// Lost is called when an ownership has ended without a release. Err is [ErrKeyDeleted], the
	// cause with which the session was lost, or [context.Canceled] if the session was closed.
	Lost func(LineEvent)
	// LeftBehind is called when a key stands, or may come to stand, that no handle wants, and
	// the clean-up could not take it away at once. Everybody behind such a key waits for it.
	LeftBehind func(LineEvent)
	// CleanedUp is called when what was told with LeftBehind is in nobody's way any more. It is
	// not called if the session ends before, because the key goes with the lease then.
	CleanedUp func(LineEvent)
	// Renewed is called when a renewal of the lease was answered.
	Renewed func(SessionEvent)
	// RenewalFailed is called when a renewal was refused, or its stream broke, or the next renewal
	// is due and this one has no answer. Err is the reason or [ErrNoAnswer].
	RenewalFailed func(SessionEvent)
	// Ended is called when the session ends. Err is the cause of [Session.Ctx].
	Ended func(SessionEvent)
	// Repeated is called when a call is sent again. Err is the fault that it met, or
	// [ErrNoAnswer] if it is sent beside one that has no answer yet.
	Repeated func(CallEvent)
}

// LineEvent is something that has happened to a session in the line of a lock or an election.
// Each field says where it is set.
type LineEvent struct {
	// Name is that of the lock or the election, and Lease is that of the session. A [MultiMutex]
	// has its names separated by ", ".
	Name  string
	Lease v3.LeaseID
	// Key is the session's key, and Token its create revision, as [Mutex.Rev] returns it. Token
	// is 0 in GaveUp, and wherever it is not known.
	Key   string
	Token int64
	// Position, in Joined, is the place among those who count: 1, if nobody is ahead, and so on. It
	// is 0 if nobody has counted them. That is so with more than 16 ahead, and for a reader or a
	// [MultiMutex] with anybody ahead.
	Position int
	// Ahead, in Joined and Waiting, is the key directly ahead, or "" if there is none.
	Ahead string
	// Waited, in Acquired and GaveUp, is the time since the call began.
	Waited time.Duration
	// Held, in Released and Lost, is the time since Acquired. In Lost it ends when the loss
	// becomes known.
	Held time.Duration
	// Err is set in GaveUp and Lost, and in Released if the answer did not come. In LeftBehind it is
	// what the clean-up has met, or nil if a join without an answer may still put the key.
	Err error
}

// SessionEvent is something that has happened to a session.
type SessionEvent struct {
	Lease v3.LeaseID
	// RoundTrip, in Renewed, is the time from the sending of the renewal to its answer.
	RoundTrip time.Duration
	// Left, in Renewed and RenewalFailed, is what is left until [Session.Deadline].
	Left time.Duration
	// Err is set in RenewalFailed and Ended.
	Err error
}

// CallEvent is a call that is sent again.
type CallEvent struct {
	Lease v3.LeaseID // of the session; 0: a transaction
	Err   error      // why
}

// Attempt is what one attempt at a transaction has met with.
type Attempt struct {
	// Number counts the attempts of one NewSTM from 1.
	Number int
	// Err is nil if the attempt was committed, [ErrConflict] if it conflicted, and
	// [ErrBlocked] if it ended with Retry. Another attempt follows these two. Any other error
	// is that of NewSTM.
	Err error
	// Keys are those that have changed since they were read, if the attempt conflicted. If
	// nothing tells which of them it was, as at [RepeatableReads], they are all that was
	// checked. The name of a range is "[begin, end)". If none of them has changed, they are the keys
	// that were written, and a deleted range goes by its begin. There is none if the snapshot was
	// compacted away.
	Keys []string
	// Paused is the time before the attempt, and before its commit, in which the transaction
	// made way for others or was blocked. Reading and Committing are those of the calls. What
	// is left of the time of an attempt is that of its function.
	Paused, Reading, Committing time.Duration
}

// tracing is the Trace of one session or transaction at work. If it is nil, there is no trace, and
// its methods do nothing.
//
// Each event is told at one place. What stands on the path of a call is told on its goroutine, see
// telling.go. What comes from a timer, a watch, a stream or a clean-up is told by later.
type tracing struct {
	Trace
	lease v3.LeaseID

	mu     sync.Mutex    // guards what follows; never held while a function of the Trace runs
	untold []func()      // in the order in which it happened; the first is being told
	told   chan struct{} // closed when nothing is left to tell; nil: nothing was ever told
}

// tracingOf is the tracing of a Trace that a program has given, or nil. It keeps a copy, so that
// the program may go on to change its own.
func tracingOf(t *Trace, id v3.LeaseID) *tracing {
	if t == nil {
		return nil
	}
	return &tracing{Trace: *t, lease: id}
}

// now is the time, if anybody wants to know how long something takes.
func (t *tracing) now() (now time.Time) {
	if t != nil {
		now = time.Now()
	}
	return now
}

// later has the event told after those before it. Whoever calls it is never held up, may hold a
// mutex, and may be the end of a context.
func (t *tracing) later(tell func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.untold = append(t.untold, tell); len(t.untold) > 1 {
		return
	}
	told := make(chan struct{})
	t.told = told
	go func() {
		defer close(told)
		for tell != nil {
			tell()
			tell = t.next()
		}
	}()
}

// next forgets the event that was told and returns the one after it, or nil.
func (t *tracing) next() (tell func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.untold = t.untold[1:]; len(t.untold) > 0 {
		return t.untold[0]
	}
	t.untold = nil
	return nil
}

// mostUntold bounds what is kept for functions that are too slow.
const mostUntold = 64

// behind reports whether the functions have fallen so far behind that what may be left out is.
func (t *tracing) behind() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.untold) >= mostUntold
}

// wait returns when everything was told.
func (t *tracing) wait() {
	if t == nil {
		return
	}
	t.mu.Lock()
	told := t.told
	t.mu.Unlock()
	if told != nil {
		<-told
	}
}

// renewed tells of the answer to a renewal that was sent at the time.
func (t *tracing) renewed(sent, deadline time.Time) {
	if t != nil && t.Renewed != nil && !t.behind() {
		e := SessionEvent{Lease: t.lease, RoundTrip: time.Since(sent), Left: time.Until(deadline)}
		t.later(func() { t.Renewed(e) })
	}
}

// renewalFailed tells why a renewal will be sent again.
func (t *tracing) renewalFailed(err error, deadline time.Time) {
	if t != nil && t.RenewalFailed != nil && !t.behind() {
		e := SessionEvent{Lease: t.lease, Left: time.Until(deadline), Err: err}
		t.later(func() { t.RenewalFailed(e) })
	}
}

// ended tells of the end of the session.
func (t *tracing) ended(cause error) {
	if t != nil && t.Ended != nil {
		e := SessionEvent{Lease: t.lease, Err: cause}
		t.later(func() { t.Ended(e) })
	}
}

// repeated tells why a call is sent again.
func (t *tracing) repeated(err error) {
	if t != nil && t.Repeated != nil && !t.behind() {
		e := CallEvent{Lease: t.lease, Err: err}
		t.later(func() { t.Repeated(e) })
	}
}

// holding is an ownership as its trace is told of it: once that it was acquired, and then once
// that it was released or lost. If it is nil, there is no trace.
type holding struct {
	*tracing
	event LineEvent

	mu    sync.Mutex // guards the fields below; never held while a function of the Trace runs
	since time.Time  // the acquisition; zero: it is not known yet
	begun bool       // Acquired has been called
	end   func()     // tells of the release or the loss, after Acquired; nil: it is neither
}

// begin tells that the ownership was acquired, if nobody has told it. A loss that came meanwhile
// is told after it.
func (h *holding) begin(waited time.Duration) {
	if h == nil || !h.claim() {
		return
	}
	if h.Acquired != nil {
		e := h.event
		e.Waited = waited
		h.Acquired(e)
	}
	h.mu.Lock()
	h.begun = true
	end := h.end
	h.mu.Unlock()
	if end != nil {
		end()
	}
}

// claim reports whether the caller is the one to tell of the acquisition.
func (h *holding) claim() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	first := h.since.IsZero()
	if first {
		h.since = time.Now()
	}
	return first
}

// lose tells that the ownership was lost. An acquisition that fails because of that has told
// nothing, and then neither does lose.
func (h *holding) lose(cause error) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.end != nil {
		return
	}
	h.end = h.loss(cause)
	if h.begun {
		h.end()
	}
}

// loss tells that the ownership was lost by now.
func (h *holding) loss(cause error) func() {
	lost := time.Now()
	return func() {
		if h.Lost != nil {
			e := h.event
			e.Held, e.Err = max(0, lost.Sub(h.since)), cause
			h.later(func() { h.Lost(e) })
		}
	}
}

// release tells that the ownership was given back, and which error the call has met. If Acquired
// is still running, for another handle, that handle tells it after that.
func (h *holding) release(err error) {
	if h == nil {
		return
	}
	h.mu.Lock()
	over, begun, released := h.end != nil, h.begun, time.Now()
	end := func() {
		if h.Released != nil {
			e := h.event
			e.Held, e.Err = max(0, released.Sub(h.since)), err
			h.Released(e)
		}
	}
	if !over {
		h.end = end
	}
	h.mu.Unlock()
	if !over && begun {
		end()
	}
}
