package concurrency

import (
	"context"
	"time"

	v3 "go.etcd.io/etcd/client/v3"
)

// Session is a lease that is kept alive. Locks and candidacies are bound to the lease, and
// end with it at the latest.
//
// A Session may be copied, and the copies are one session. The zero Session is a
// placeholder that no lock or election can use. Its Ctx and Done are nil. All methods may
// be called from any goroutine.
type Session struct {
	client *v3.Client
	id     v3.LeaseID
	ctx    context.Context
	done   <-chan struct{}
	lease  *lease

	identity string // the value of the keys of its locks
}

// SessionOption configures [NewSession].
type SessionOption func(*sessionOptions)

// WithTTL sets the time to live, in seconds, of the lease that [NewSession] asks for. A
// session that has died keeps others out for that time. The server may grant more, because
// it grants never less than one and a half of its election timeout. A ttl of zero or less
// asks for the default of 60 seconds.
func WithTTL(ttl int) SessionOption {
	return func(o *sessionOptions) {
		if ttl > 0 {
			o.ttl = ttl
		} else {
			o.ttl = defaultTTL
		}
	}
}

// WithLease makes the session keep an existing lease alive, and not a new one. A process
// that was restarted can so go on with the lease of the time before. The TTL is the one
// with which the lease was granted. Sessions on one lease are one participant. Sessions of
// different clients or processes don't know what the others are doing, and must not use one
// name at the same time.
//
// A session that has lost its lease deletes no key any more. The key of a call that has failed may
// then stand for as long as another session keeps the lease. So close the first session, which
// revokes the lease, rather than go on with its lease in the same process.
//
// No lease has a negative ID. A session on such an ID has ended from the start, without an
// error and without a call. Its elections can still be observed.
func WithLease(leaseID v3.LeaseID) SessionOption {
	return func(o *sessionOptions) { o.leaseID = leaseID }
}

// WithContext bounds the session by ctx, and not by the client's context. When ctx ends,
// NewSession gives up. An open session ends as if it had been orphaned, with the cause of
// ctx. [Session.Close] does not revoke the lease then. The lease expires by itself.
func WithContext(ctx context.Context) SessionOption {
	if ctx == nil {
		panic("concurrency: WithContext: nil context")
	}
	return func(o *sessionOptions) { o.ctx = ctx }
}

// WithSafetyMargin makes the session give up this much before its lease could end. A holder
// who hears of the loss has the margin to stop. Clocks may differ, and processes may pause,
// by as much without two owning at once. The margin shortens the time over which faults are
// ridden out by as much.
func WithSafetyMargin(d time.Duration) SessionOption {
	return func(o *sessionOptions) { o.margin = d }
}

// WithIdentity makes the session write who it is, such as a host and a process, as the value of
// the keys of its locks and double barriers. [Inspect] shows it to whoever wonders who holds a
// lock. Nothing else depends on it, and clients that know nothing of it pay no attention to it.
// Candidates have the value of their campaign instead. The identity may be any text that the
// servers take for a value. If it is too large for them, each Lock fails with their error.
func WithIdentity(identity string) SessionOption {
	return func(o *sessionOptions) { o.identity = identity }
}

// WithTrace has the functions of t called for all that happens to the session, and to the locks
// and elections on it. Changes that are made to t later have no effect. A nil t is no trace.
func WithTrace(t *Trace) SessionOption {
	return func(o *sessionOptions) { o.trace = t }
}

// NewSession opens a session. It has a lease granted, in one call, and keeps the lease
// alive in the background. It does so until the session is closed or orphaned, the client
// is closed, or the lease is lost.
//
// It blocks until a server answers, and at most for the TTL asked for. That is 60 s if none
// was, with [WithLease] too. If the answer took more than half of the session's life,
// NewSession also waits for the first renewal, at most for the TTL once more. Giving the
// lease back may then take another second. NewSession ends with the context given with
// [WithContext].
//
// Its errors are those of the environment:
//
//   - the context's, exactly, and [context.Canceled] when the client is closed;
//   - one that names the endpoints and wraps [context.DeadlineExceeded], if no server has
//     answered in time;
//   - etcd's, of which rpctypes.ErrLeaseNotFound says that the lease given with [WithLease]
//     does not exist.
//
// A safety margin that is negative, or not shorter than the TTL, is an error too. A
// NewSession that fails revokes the lease that it was granted. If the grant was never
// answered, a lease without keys may be left, which expires by itself.
//
// NewSession panics if client or an option is nil.
func NewSession(client *v3.Client, opts ...SessionOption) (*Session, error) {
	if client == nil {
		panic("concurrency: NewSession: nil client")
	}
	o := optionsOf(client, opts)
	return open(o.ctx, client, o)
}

func optionsOf(client *v3.Client, opts []SessionOption) sessionOptions {
	// The end of the client ends the session too, but with a cause of its own.
	o := sessionOptions{ttl: defaultTTL, ctx: context.WithoutCancel(client.Ctx())}
	configure("NewSession", &o, opts)
	return o
}

// open opens a session that lives at most as long as o.ctx. ctx bounds the opening.
func open(ctx context.Context, client *v3.Client, o sessionOptions) (*Session, error) {
	if client.Ctx().Err() != nil {
		return nil, context.Canceled
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	bound, cancel := untilClosed(ctx, client)
	defer cancel()
	l, err := openLease(bound, client, o)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case client.Ctx().Err() != nil:
		return nil, context.Canceled
	default:
		return nil, err
	}
	return &Session{client: client, id: l.id, ctx: l.ctx, done: l.done, lease: l, identity: o.identity}, nil
}

// Client returns the client that the session was opened with.
func (s *Session) Client() *v3.Client { return s.client }

// Lease returns the ID of the session's lease.
func (s *Session) Lease() v3.LeaseID { return s.id }

// Ctx returns a context that is cancelled when the session ends, just before [Session.Done]
// closes. [context.Cause] tells why:
//
//   - [ErrDeadline] or [ErrLeaseGone] when the lease was lost, both of which wrap
//     [ErrSessionExpired];
//   - [context.Canceled] after Close or Orphan;
//   - [ErrClientClosed], which wraps context.Canceled, when the client was closed;
//   - the cause of the context given with [WithContext], when that has ended.
//
// Err of the context looks at the clock. A process that was stopped beyond the deadline
// learns of it with its first look, before any timer has run. A context that is derived
// from it learns of it a moment later, when the timer has run.
func (s *Session) Ctx() context.Context { return s.ctx }

// Done returns a channel that is closed when the session ends: it is closed or orphaned, or
// its lease is lost. A lease is lost in two cases:
//
//   - The server says so, in answer to a renewal or to any other call of the session.
//   - The TTL has passed since the last answered renewal was sent, less the margin given
//     with [WithSafetyMargin].
//
// A renewal is sent every third of that time, and its answer counts however late it comes.
// No other client can be given what the lease guards before Done closes, provided that the
// clocks of this process and of the servers run at the same rate.
func (s *Session) Done() <-chan struct{} {
	if s.lease != nil {
		s.lease.expire()
	}
	return s.done
}

// TTL returns the time to live of the session's lease. The server may have granted more
// than was asked for. TTL is 0 for the zero Session. For a lease that cannot exist, TTL is
// what was asked for.
func (s *Session) TTL() time.Duration {
	if s.lease == nil {
		return 0
	}
	return s.lease.clock.ttl
}

// Deadline returns the time at which the session will end unless a renewal is answered
// before. It is the sending of the last answered renewal, plus the TTL, less the margin
// given with [WithSafetyMargin]. The deadline of a session that has ended means nothing.
func (s *Session) Deadline() time.Time {
	if s.lease == nil {
		return time.Time{}
	}
	return s.lease.clock.until()
}

// Orphan ends the session but leaves the lease. The lease expires after at most its TTL
// unless somebody else renews it. Locks and elections of an orphaned session go on working
// for as long as the lease lives. Orphan makes no call. No goroutine that renews is left
// when it returns.
func (s *Session) Orphan() {
	if s.lease != nil {
		s.lease.finish(orphaned)
		s.lease.renewal.wait()
	}
}

// Close ends the session and revokes its lease, in one call. etcd then deletes the keys of
// all its locks and candidacies. Waiting calls on the session return [ErrSessionExpired].
//
// It blocks until the revocation is answered, and repeats it over transient faults. It
// gives up when the context given with [WithContext] ends, or when the lease must have
// expired by itself, and returns the error of the context that has ended. A lease that is
// gone already is no error, so Close may be called twice. Nothing of the session runs when
// Close has returned.
func (s *Session) Close() error {
	if s.lease == nil {
		return nil
	}
	return s.lease.revoke()
}
