package concurrency

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	v3 "go.etcd.io/etcd/client/v3"
)

// A session is opened in one call, and the deadline counts from before that call. Only if the call
// was slow does the session wait for a renewal as well, because the next answer may be as slow.

// sessionOptions are what a session is opened with.
type sessionOptions struct {
	ttl      int
	leaseID  v3.LeaseID
	ctx      context.Context
	margin   time.Duration
	identity string
	trace    *Trace
}

// openLease has a lease granted or takes over the one in o, and keeps it alive.
func openLease(ctx context.Context, client *v3.Client, o sessionOptions) (*lease, error) {
	// A bound keeps the time from overflowing. The server decides about the TTL itself.
	asked := seconds(min(int64(o.ttl), math.MaxInt32))
	if o.margin < 0 || o.leaseID == v3.NoLease && o.margin >= asked {
		return nil, marginError(o.margin, asked)
	}
	// What finish touches has to be set before the first renewal, because its answer may end the
	// session while it is being opened.
	l := &lease{client: client, id: o.leaseID, parent: o.ctx, trace: tracingOf(o.trace, o.leaseID)}
	l.done = make(chan struct{})
	l.clock.ttl, l.clock.margin = asked, o.margin
	// ctx is a child of the context given, and ends with its cause. lost is not, because
	// the lease outlives that context.
	l.ctx, l.end = context.WithCancelCause(o.ctx)
	l.ctx = &punctual{l.ctx, l.expire}
	l.lost, l.setLost = context.WithCancelCause(context.Background())
	// No lease has a negative ID. Such a session makes no call.
	if l.id >= v3.NoLease {
		if err := l.obtain(ctx, int64(o.ttl), asked); err != nil {
			l.end(err)
			return nil, err
		}
	}
	if l.id < v3.NoLease {
		l.bindID()
		l.heardGone()
		return l, nil
	}
	// From here on three things end the session by themselves: the deadline, the end of the
	// context given, and the end of the client.
	l.clock.start(l.expire)
	l.use()
	// The end of ctx comes here, whatever ended it. This is where the context given with WithContext
	// ends the session. That may be a child of the client's context.
	context.AfterFunc(l.ctx, func() {
		if client.Ctx().Err() != nil {
			l.finish(clientClosed)
		}
		l.finish(contextEnded)
		l.unuse()
	})
	return l, nil
}

// obtain has a lease granted, or asks what is left of the one given, and begins to renew
// it. A lease that was given is not revoked if that fails.
//
// The answer may have taken so long that another one would come after the deadline, which may
// even have passed. Then obtain waits for the answer to a renewal. All later answers come a third of a life apart,
// however long each of them takes.
func (l *lease) obtain(ctx context.Context, ttl int64, asked time.Duration) error {
	begun, given := time.Now(), l.id != v3.NoLease
	left, err := l.remaining(ctx, ttl, asked)
	if err != nil {
		return err
	}
	l.bindID()
	// The server has granted the lease, or told what is left of it, after begun.
	l.clock.deadline = begun.Add(left - l.clock.margin)
	took := time.Since(begun)
	renewed := make(chan struct{}, 1)
	// The channel has room for one answer: only whether there was one since the last look
	// matters.
	l.renewal = l.newRenewal(given, func(sent time.Time, ttl time.Duration) {
		l.answered(sent, ttl)
		select {
		case renewed <- struct{}{}:
		default:
		}
	})
	l.renewal.due = begun.Add(spread(l.renewal.interval))
	if given { // less than a third of its life may be left
		l.renewal.due = begun
	}
	l.renewal.keep()
	// The next answer may take about as long as this one did.
	if time.Until(l.clock.until()) > took {
		return nil
	}
	if err = l.firstRenewal(ctx, renewed); err == nil {
		return nil
	}
	// The lease can't be kept alive. What renews it ends before the lease is given back. A call that
	// is not answered would otherwise end with the life of the lease only.
	l.end(err)
	l.renewal.leave()
	l.renewal.wait()
	if given {
		return err
	}
	if errors.Is(err, rpctypes.ErrLeaseNotFound) { // of a lease that was granted just now
		err = noAnswer(l.client, l.clock.ttl, "renew its lease in time", context.DeadlineExceeded)
	}
	// The server may have said that the lease is gone. Otherwise nobody else would end it
	// before its TTL.
	if !l.revoked.Load() {
		l.revokeUnused()
	}
	return err
}

// bindID sets what depends on the ID of the lease. A lease that is granted has no ID before. The seats
// are those of all sessions on the lease.
func (l *lease) bindID() {
	s := sharedOf(l.client)
	l.seats, l.watches = s.seatsOf(l.id), &s.watches
	if l.trace != nil {
		l.trace.lease = l.id
	}
}

// firstRenewal waits for the first answer to a renewal that comes in time.
func (l *lease) firstRenewal(ctx context.Context, renewed <-chan struct{}) error {
	// A lease that was not renewed for its whole TTL is gone, so a longer wait is in vain.
	bound, cancel := context.WithTimeout(ctx, l.clock.ttl)
	defer cancel()
	for {
		select {
		case <-renewed:
			// The answer to a renewal that was sent too long ago leaves no life. Only one
			// that leaves some counts.
			if time.Now().Before(l.clock.until()) {
				return nil
			}
		// A renewal was answered that the lease is gone, or the program or the client has ended it.
		case <-l.ctx.Done():
			return rpctypes.ErrLeaseNotFound // or the end of a context, which is told instead
		// A member answers, but no renewal. What the last renewal met is told along.
		case <-bound.Done():
			err := bound.Err()
			if trouble := l.renewal.trouble(); trouble != nil {
				err = fmt.Errorf("%w, after %w", err, trouble)
			}
			return noAnswer(l.client, l.clock.ttl, "renew its lease", err)
		}
	}
}

// remaining returns the remaining life of the lease when the call was begun. It tells a server
// that did not answer from the end of ctx.
func (l *lease) remaining(ctx context.Context, ttl int64, within time.Duration) (left time.Duration, err error) {
	bound, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	what := "grant a lease"
	if l.id == v3.NoLease {
		left, err = l.create(bound, ttl)
	} else {
		what = "tell of the lease"
		left, err = l.adopt(bound)
	}
	// ctx may have ended too. The caller looks at ctx first, and tells its error.
	if err != nil && bound.Err() != nil {
		err = noAnswer(l.client, within, what, bound.Err())
	}
	return left, err
}

// create asks for a lease of ttl seconds and returns its remaining life. An answer that
// comes too late is as good as none, and that lease is given back.
func (l *lease) create(ctx context.Context, ttl int64) (left time.Duration, err error) {
	resp, err := l.client.Grant(ctx, ttl)
	if err != nil {
		return 0, err
	}
	// The server may have granted more than was asked for.
	// The call is not made again here, because each Grant that arrives grants another lease.
	l.id, l.clock.ttl = resp.ID, seconds(resp.TTL)
	if err := ctx.Err(); err != nil {
		l.revokeUnused()
		return 0, err
	}
	return l.clock.ttl, nil
}

// adopt asks for the remaining life of a lease that exists. The server tells it in whole
// seconds, rounded down.
func (l *lease) adopt(ctx context.Context) (left time.Duration, err error) {
	resp, err := repeat(ctx, forever, l.clock.ttl, l.trace, func(ctx context.Context) (*v3.LeaseTimeToLiveResponse, error) {
		return leasesOnce(l.client).TimeToLive(ctx, l.id)
	})
	if err != nil {
		return 0, err
	}
	l.clock.ttl, left, l.since = seconds(resp.GrantedTTL), seconds(resp.TTL), resp.GetRevision()
	switch {
	case left < 0: // what the server says of a lease it does not have
		return 0, rpctypes.ErrLeaseNotFound
	// Only now the TTL of a lease that was brought is known.
	case l.clock.margin >= l.clock.ttl:
		return 0, marginError(l.clock.margin, l.clock.ttl)
	}
	return left, nil
}

// revokeUnused revokes a lease that was granted for nothing. Its own error is not told, because
// the first error is the one to tell.
func (l *lease) revokeUnused() {
	// The caller's context may have ended, so this has a bound of its own: the second in which
	// a call obeys its context.
	ctx, cancel := context.WithTimeout(l.client.Ctx(), time.Second)
	defer cancel()
	// If it fails too, the lease ends after its TTL. No key hangs on it.
	_, _ = l.client.Revoke(ctx, l.id)
}

// newRenewal renews every third of the session's life. A round trip of half the TTL is then
// enough to keep the lease. Clients without streams of their own renew by calls, one beside
// the other.
//
// A lease that was given is renewed by calls until one of them is answered. It may have expired.
// The server answers such a renewal when it has revoked the lease, which may take half a second,
// and all renewals behind it on a stream wait (Renew in server/lease/lessor.go).
func (l *lease) newRenewal(given bool, answer func(sent time.Time, ttl time.Duration)) keeper {
	// The session lives for the TTL less the margin, so a third of that is the interval. A margin may
	// leave next to nothing. That must not flood the servers.
	life := max(l.clock.ttl-l.clock.margin, refusalPause)
	byCalls := given || !ownLease(l.client)
	k := &renewal{id: l.id, interval: life / 3, ctx: l.ctx, answer: answer, byCalls: byCalls}
	if l.trace != nil {
		k.failed = func(err error) { l.trace.renewalFailed(err, l.clock.until()) }
	}
	return keeper{&sharedOf(l.client).renewals, k}
}
