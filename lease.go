package concurrency

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	v3 "go.etcd.io/etcd/client/v3"
)

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
