package concurrency

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	v3 "go.etcd.io/etcd/client/v3"
)

// defaultTTL is the TTL in seconds of a session that asks for none.
const defaultTTL = 60

// Session is a lease that is kept alive. Locks and candidacies are bound to it:
// they end with it at the latest.
//
// A Session may be copied, and the copies are one session. The zero Session is a
// placeholder that no lock or election can use; its Ctx and Done are nil.
// All methods may be called from any goroutine.
type Session struct {
	client *v3.Client
	id     v3.LeaseID
	ctx    context.Context
	done   <-chan struct{}
	lease  *lease
}

// SessionOption configures [NewSession].
type SessionOption func(*sessionOptions)

type sessionOptions struct {
	ttl     int
	leaseID v3.LeaseID
	ctx     context.Context
	margin  time.Duration
}

// WithTTL sets the time to live, in seconds, of the lease that [NewSession]
// asks for. It is the time for which a session that has died keeps others out.
// The server may grant more: never less than one and a half of its election
// timeout. A ttl of zero or less asks for the default of 60 seconds.
func WithTTL(ttl int) SessionOption {
	return func(o *sessionOptions) {
		if ttl > 0 {
			o.ttl = ttl
		} else {
			o.ttl = defaultTTL
		}
	}
}

// WithLease makes the session keep an existing lease alive, for instance that of
// a process which led before it was restarted, instead of a new one. Its TTL is
// the one with which it was granted. Sessions on one lease are one participant; those of
// different clients or processes don't know what the others are doing, and must not use one
// name at the same time.
func WithLease(leaseID v3.LeaseID) SessionOption {
	return func(o *sessionOptions) { o.leaseID = leaseID }
}

// WithContext bounds the session by ctx instead of by the client's context.
// When ctx ends, NewSession gives up, and an open session ends as if it had been
// orphaned, with the cause of ctx; [Session.Close] then abandons the lease,
// which expires by itself, instead of revoking it.
func WithContext(ctx context.Context) SessionOption {
	if ctx == nil {
		panic("concurrency: WithContext: nil context")
	}
	return func(o *sessionOptions) { o.ctx = ctx }
}

// WithSafetyMargin makes the session give up this much before its lease could end: it
// is the time that a holder who hears of the loss has to stop, and what clocks may
// differ and processes pause without two owning at once. It shortens by as much the
// time over which faults are ridden out.
func WithSafetyMargin(d time.Duration) SessionOption {
	return func(o *sessionOptions) { o.margin = d }
}

// NewSession opens a session: it has a lease granted, in one call, and keeps it
// alive in the background until the session is closed or orphaned, the client is
// closed, or the lease is lost.
//
// It blocks until a server answers, at most for the TTL asked for (60 s if none was, with
// [WithLease] too), and ends with the context given with [WithContext]. Its errors are
// those of the environment: the context's, [context.Canceled] when the client is closed,
// and etcd's, of which rpctypes.ErrLeaseNotFound says that the lease given with
// [WithLease] does not exist. A failed NewSession revokes a lease that it was granted; one
// whose grant was never answered may leave a lease, without keys, that expires by itself.
// A safety margin that is negative, or not shorter than the TTL, is an error too.
//
// NewSession panics if client is nil.
func NewSession(client *v3.Client, opts ...SessionOption) (*Session, error) {
	if client == nil {
		panic("concurrency: NewSession: nil client")
	}
	o := optionsOf(client, opts)
	return open(o.ctx, client, o)
}

func optionsOf(client *v3.Client, opts []SessionOption) sessionOptions {
	o := sessionOptions{ttl: defaultTTL, ctx: client.Ctx()}
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// open opens a session that lives at most as long as o.ctx; ctx bounds the opening.
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
	return &Session{client: client, id: l.id, ctx: l.ctx, done: l.done, lease: l}, nil
}

// Client returns the client that the session was opened with.
func (s *Session) Client() *v3.Client { return s.client }

// Lease returns the ID of the session's lease.
func (s *Session) Lease() v3.LeaseID { return s.id }

// Ctx returns a context that is cancelled when the session ends, just before
// [Session.Done] closes. [context.Cause] tells why: [ErrSessionExpired] when the
// lease was lost; [context.Canceled] after Close, Orphan or the closing of the
// client; and otherwise the cause of the context given with [WithContext].
func (s *Session) Ctx() context.Context { return s.ctx }

// Done returns a channel that is closed when the session ends: it is closed,
// orphaned, or its lease is lost. A lease is lost when the server says so, or when its
// TTL, less the margin given with [WithSafetyMargin], has passed since the last answered
// renewal was sent. No other client can be given what the lease guards before that time,
// provided that the clocks of this process and of the servers run at the same rate.
func (s *Session) Done() <-chan struct{} { return s.done }

// TTL returns the time to live of the session's lease as the server granted it, which
// may be more than was asked for; 0 for the zero Session.
func (s *Session) TTL() time.Duration {
	if s.lease == nil {
		return 0
	}
	return s.lease.timeToLive()
}

// Deadline returns the time at which the session will end unless a renewal is answered
// before: the sending of the last answered one, plus the TTL, less the margin given with
// [WithSafetyMargin]. That of a session which has ended means nothing.
func (s *Session) Deadline() time.Time {
	if s.lease == nil {
		return time.Time{}
	}
	s.lease.mu.Lock()
	defer s.lease.mu.Unlock()
	return s.lease.deadline
}

// Orphan ends the session but leaves the lease, which expires after at most its
// TTL unless somebody else renews it. Locks and elections of an orphaned session
// go on working, for as long as the lease lives. No goroutine that renews is left
// when Orphan returns; it makes no call.
func (s *Session) Orphan() {
	if s.lease != nil {
		s.lease.orphan(context.Canceled)
		<-s.lease.stopped
		<-s.done
	}
}

// Close ends the session and revokes its lease, whereby etcd deletes the keys of
// all its locks and candidacies, in one call. Waiting calls on the session return
// [ErrSessionExpired].
//
// It blocks until the revocation is answered, repeats it over transient faults,
// and ends with the context given with [WithContext], or when the lease must
// have expired by itself: with the context's error, in both cases. A lease that
// is gone already is no error, so that Close may be called twice. Nothing of the
// session runs when Close has returned.
func (s *Session) Close() error {
	if s.lease == nil {
		return nil
	}
	s.Orphan()
	return s.lease.revoke()
}

// lease keeps one lease alive and knows the tickets bound to it. It is the state
// that all copies of a Session share.
type lease struct {
	client *v3.Client
	id     v3.LeaseID
	parent context.Context // given with WithContext, or the client's
	margin time.Duration

	// ctx ends with the session, done is closed after it, and stopped when the
	// renewing goroutine has returned.
	ctx           context.Context
	end           context.CancelCauseFunc
	done, stopped chan struct{}

	// lost ends when nothing can be done on the lease any more: it is known to be
	// lost, or the client was closed while the session was open. It is not the same as
	// ctx: an orphaned session still has a living lease. See [lease.lose].
	lost    context.Context
	setLost context.CancelFunc

	places *places // what its sessions know of their tickets

	work sync.WaitGroup // counts what runs in the background

	mu       sync.Mutex    // guards the fields below; never held across a call
	ttl      time.Duration // as granted
	deadline time.Time     // when the session gives up: the margin before the lease may have expired
	expiry   *time.Timer   // fires at the deadline
	calls    timers        // end the calls under way that need the lease, see attempt
	closed   bool          // nothing may be started in the background any more
	revoked  bool          // the server has said that the lease is gone

	spare     *watcher // see keepSpare; nil: none, or it is in use
	spareRev  int64    // what happened up to it, the spare one does not tell again
	spareUsed bool     // a spare one was kept since dropSpare last looked
	spareKept bool     // dropSpare runs
}

type timers map[*time.Timer]struct{}

// openLease has a lease granted or takes over the one in o, and starts to keep
// it alive.
func openLease(ctx context.Context, client *v3.Client, o sessionOptions) (*lease, error) {
	asked := seconds(min(int64(o.ttl), math.MaxInt32))
	if o.margin < 0 || o.leaseID == v3.NoLease && o.margin >= asked {
		return nil, marginError(o.margin, asked)
	}
	l := &lease{
		client: client, id: o.leaseID, parent: o.ctx, margin: o.margin,
		done: make(chan struct{}), stopped: make(chan struct{}), calls: timers{},
	}
	l.ctx, l.end = context.WithCancelCause(o.ctx)
	l.lost, l.setLost = context.WithCancel(context.Background())
	obtain := l.create
	if l.id != v3.NoLease {
		obtain = l.adopt
	}
	ctx, cancel := context.WithTimeout(ctx, asked)
	defer cancel()
	sent := time.Now()
	left, err := obtain(ctx, int64(o.ttl))
	if err != nil {
		l.end(err)
		return nil, err
	}
	l.places = sharedOf(client).placesOf(l.id)
	l.deadline = sent.Add(left - l.margin)
	l.expiry = time.AfterFunc(time.Until(l.deadline), l.expire)
	// Whatever ends ctx, Done is closed after it: this is the only place that does.
	detach := context.AfterFunc(client.Ctx(), func() { l.orphan(context.Canceled) })
	context.AfterFunc(l.ctx, func() {
		detach()
		if client.Ctx().Err() != nil {
			l.lose()
		}
		close(l.done)
	})
	go l.keepAlive(sent, o.leaseID != v3.NoLease)
	return l, nil
}

func marginError(margin, ttl time.Duration) error {
	return fmt.Errorf("concurrency: a safety margin of %v does not lie within the TTL of %v", margin, ttl)
}

// create asks for a lease of ttl seconds and returns its remaining life. An answer that
// comes too late is as good as none: that lease is given back.
func (l *lease) create(ctx context.Context, ttl int64) (left time.Duration, err error) {
	resp, err := l.client.Grant(ctx, ttl)
	if err != nil {
		return 0, err
	}
	l.id, l.ttl = resp.ID, seconds(resp.TTL)
	if err := ctx.Err(); err != nil {
		ctx, cancel := context.WithTimeout(l.client.Ctx(), time.Second)
		defer cancel()
		_, _ = l.client.Revoke(ctx, l.id) // the first error is the one to tell
		return 0, err
	}
	return l.ttl, nil
}

// adopt asks for the remaining life of a lease that exists. The server tells it in whole
// seconds, rounded down; a lease that has no more left than the margin is renewed
// first.
func (l *lease) adopt(ctx context.Context, _ int64) (left time.Duration, err error) {
	resp, err := l.client.TimeToLive(ctx, l.id)
	if err != nil {
		return 0, err
	}
	l.ttl, left = seconds(resp.GrantedTTL), seconds(resp.TTL)
	switch {
	case left < 0: // what the server says of a lease it does not have
		return 0, rpctypes.ErrLeaseNotFound
	case l.margin >= l.ttl:
		return 0, marginError(l.margin, l.ttl)
	case left <= l.margin:
		err = l.retry(ctx, forever, func(ctx context.Context) (err error) {
			left, err = l.renew(ctx)
			return err
		})
	}
	return left, err
}

func seconds(n int64) time.Duration { return time.Duration(n) * time.Second }

// keepAlive renews the lease a third of its life after the last answered renewal was
// sent, and soon again after one that failed, until the session ends.
func (l *lease) keepAlive(sent time.Time, atOnce bool) {
	defer close(l.stopped)
	for failures := 0; ; {
		if failures > 0 {
			pause(l.ctx, forever, failures)
		} else if !atOnce {
			third := l.life() / 3
			sleep(l.ctx, forever, time.Until(sent.Add(third-third/10+jitter(third/10))))
		}
		if l.ctx.Err() != nil {
			return
		}
		attempt := time.Now()
		ttl, err := l.renew(l.ctx)
		switch {
		case err == nil:
			sent, failures, atOnce = attempt, 0, false
			l.extend(sent, ttl)
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			l.gone()
			return
		default:
			// Whatever it is, it may pass before the deadline, and the deadline is
			// what ends the session.
			failures++
		}
	}
}

// renew is one renewal; it is given a quarter of the lease's life to be answered, so that
// there is time for others on another connection.
//
// KeepAliveOnce repeats itself without a pause for as long as no server can be
// reached (client/v3 lease.go). So it is called only when the connection is not
// known to be broken, and is called off when it breaks.
func (l *lease) renew(ctx context.Context) (time.Duration, error) {
	if l.disconnected() {
		return 0, errDisconnected
	}
	ctx, cancel := context.WithTimeout(ctx, l.life()/4)
	defer cancel()
	var look func()
	look = func() {
		if l.disconnected() {
			cancel()
		} else if ctx.Err() == nil {
			time.AfterFunc(100*time.Millisecond, look)
		}
	}
	first := time.AfterFunc(100*time.Millisecond, look)
	defer first.Stop()
	resp, err := l.client.KeepAliveOnce(ctx, l.id)
	if err != nil {
		return 0, err
	}
	return seconds(resp.TTL), nil
}

var errDisconnected = fmt.Errorf("no server can be reached: %w", context.DeadlineExceeded)

// disconnected reports whether the last attempts to connect to every server have
// failed: gRPC stays in this state until one succeeds. The server's in-process
// client has no connection.
func (l *lease) disconnected() bool {
	conn := l.client.ActiveConnection()
	return conn != nil && conn.GetState().String() == "TRANSIENT_FAILURE"
}

func (l *lease) timeToLive() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ttl
}

// life is how long the session lives by one renewal.
func (l *lease) life() time.Duration { return l.timeToLive() - l.margin }

// extend moves the deadline to the lease's life after the time at which the answered
// renewal was sent: the server cannot have counted from an earlier moment.
func (l *lease) extend(sent time.Time, ttl time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ttl, l.deadline = ttl, sent.Add(ttl-l.margin)
	l.expiry.Reset(time.Until(l.deadline))
}

// expire runs at the deadline, which may have been moved since. It asks nobody
// and waits for nothing: a call that hangs can't delay it.
func (l *lease) expire() {
	l.mu.Lock()
	due := !time.Now().Before(l.deadline)
	l.mu.Unlock()
	if due && l.ctx.Err() == nil {
		l.end(ErrSessionExpired)
		l.lose()
	}
}

// gone notes that the server no longer has the lease.
func (l *lease) gone() {
	l.mu.Lock()
	l.revoked = true
	l.mu.Unlock()
	l.expiry.Stop()
	l.end(ErrSessionExpired)
	l.lose()
}

// orphan ends the session, and with it the deadline: who renews the lease from
// now on is not for this client to know.
func (l *lease) orphan(cause error) {
	l.end(cause)
	l.expiry.Stop()
}

// lose ends lost, and at once the calls under way that need the lease.
func (l *lease) lose() {
	l.setLost()
	l.mu.Lock()
	defer l.mu.Unlock()
	for timer := range l.calls {
		timer.Reset(0)
	}
}

// loss says why nothing can be done on the lease any more, or nil while something
// can. It looks at the clock itself, since a timer may be late, and its word is final: an
// answer that comes after the deadline revives nothing.
func (l *lease) loss() error {
	l.expire()
	switch {
	case l.client.Ctx().Err() != nil:
		return context.Canceled
	case l.lost.Err() != nil:
		return ErrSessionExpired
	}
	return nil
}

// revoke ends everything that still runs on the lease and revokes it.
func (l *lease) revoke() error {
	l.mu.Lock()
	l.closed = true
	revoked, left := l.revoked, time.Until(l.deadline)+l.margin
	l.mu.Unlock()
	l.lose()
	l.work.Wait()
	if revoked {
		return nil
	}
	ctx, closed := untilClosed(l.parent, l.client)
	defer closed()
	ctx, cancel := context.WithTimeout(ctx, max(left, time.Second))
	defer cancel()
	err := l.retry(ctx, forever, func(ctx context.Context) error {
		_, err := l.client.Revoke(ctx, l.id)
		return err
	})
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return err
	}
	l.mu.Lock()
	l.revoked = true
	l.mu.Unlock()
	return nil
}

// background runs work on a goroutine for which [Session.Close] waits, and closes the
// channel when it has returned. After Close it does nothing. The work has to end when lost
// does, as [lease.retry] and sleep do with it. The context that it is given is the client's,
// for clean-ups: what they are to clean away blocks others for as long as the lease lives.
func (l *lease) background(work func(ctx context.Context)) <-chan struct{} {
	done := make(chan struct{})
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		close(done)
		return done
	}
	l.work.Go(func() {
		defer close(done)
		work(l.client.Ctx())
	})
	return done
}
