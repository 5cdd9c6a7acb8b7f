package concurrency

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	v3 "go.etcd.io/etcd/client/v3"
)

// lease is a lease that a session keeps alive. All copies of a Session share it.
// What uses a lease asks loss before an acquisition, and after a call that has failed. What has to
// go on after such a call has returned runs in the background of the lease.
type lease struct {
	client *v3.Client
	id     v3.LeaseID
	parent context.Context // given with WithContext, or the client's without its end
	since  int64           // the store's revision when a lease that was given was taken over; 0: granted

	ends
	clock   clock
	renewal keeper
	seats   *seats   // what its sessions know of their tickets
	watches *watches // of the client
	kept    keptWatch
	trace   *tracing
	revoked atomic.Bool // the server has said that the lease is gone

	mu sync.Mutex // held while the session ends, and guards what follows; never held across a call
	tasks
}

// tasks are what is under way on a lease.
type tasks struct {
	work   sync.WaitGroup // in the background
	closed bool           // nothing may be started in the background any more

	users  int         // the session while it is open, calls, and what runs in the background
	detach func() bool // forgets what the end of the client would end
}

// finish ends the session. When it returns, Ctx has ended and Done is closed.
func (l *lease) finish(e ending) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// The order counts. Who sees Done closed, or lost ended, finds Ctx ended.
	l.end(e.cause)
	if e.gone {
		l.revoked.Store(true)
	}
	if e.lost {
		l.setLost(e.cause)
	}
	// In each ending the renewals end. An orphaned lease lives for its TTL, or is renewed by somebody else.
	l.renewal.leave()
	l.clock.stop()
	select {
	case <-l.done:
	default:
		close(l.done)
		l.trace.ended(context.Cause(l.ctx))
	}
	// What is owned on the lease is lost with it. An orphaned session loses nothing.
	if e.lost && l.trace != nil {
		l.seats.tellLost(e.cause)
	}
}

// expire ends the session if the deadline has passed or the client was closed. It asks nobody
// and waits for nothing, so that a call that hangs can't delay it.
func (l *lease) expire() {
	switch {
	// The closing of the client is no loss, and comes first.
	case l.client.Ctx().Err() != nil && l.lost.Err() == nil:
		l.finish(clientClosed)
	case l.clock.passed():
		l.finish(expired)
	}
}

// use lets the end of the client end lost, until unuse. A client remembers no lease that is
// not in use. etcd's own services open a session for each call, orphan it and forget it.
func (l *lease) use() {
	l.mu.Lock()
	defer l.mu.Unlock()
	// The client's context keeps an entry, and with it the lease, until detach is called.
	if l.users++; l.users == 1 {
		l.detach = context.AfterFunc(l.client.Ctx(), func() { l.finish(clientClosed) })
	}
}

// unuse takes back one use. The client forgets the lease with the last one.
func (l *lease) unuse() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users--; l.users == 0 {
		l.detach()
	}
}

// heardGone is for whoever hears from the server that it does not have the lease. Session.Ctx
// has ended when it returns.
//
// A member that was cut off may say so of a lease that was granted meanwhile, because it
// does not know of the lease yet. The session ends then for nothing, which is safe.
//
// The cause of a session whose deadline has passed is the deadline, whoever speaks first.
func (l *lease) heardGone() {
	l.expire()
	l.finish(toldGone)
}

// loss says why nothing can be done on the lease any more. It returns nil while something
// can be done. It looks at the clock itself, because a timer may be late. Its word is
// final, because an answer that comes after the deadline revives nothing.
func (l *lease) loss() error {
	l.expire()
	switch {
	// The closing of the client is no loss, and comes first.
	case l.client.Ctx().Err() != nil:
		return context.Canceled
	// The cause of lost is not returned: the errors of calls are bare, see [ErrSessionExpired].
	case l.lost.Err() != nil:
		return ErrSessionExpired
	}
	return nil
}

// answered notes that a renewal was answered that was sent at this time.
func (l *lease) answered(sent time.Time, ttl time.Duration) {
	// etcd answers the renewal of a lease that it does not have with a TTL of zero.
	if ttl <= 0 {
		l.heardGone()
		return
	}
	l.clock.extend(sent, ttl)
	l.trace.renewed(sent, l.clock.until())
}

// watch watches a key, as [watches.watch] does.
func (l *lease) watch(ctx context.Context, key string, from int64, opts ...v3.OpOption) *watcher {
	return l.watches.watch(ctx, l.client, l.patience(), key, from, opts...)
}

// patience is the TTL. It is the patience of all calls on the lease: within it they have to reach a
// member that answers.
func (l *lease) patience() time.Duration { return l.clock.ttl }

// revoke ends everything that still runs on the lease and revokes it.
func (l *lease) revoke() error {
	// A program may rely on it that its trace is told nothing after Close.
	defer l.trace.wait()
	l.mu.Lock()
	// From here on nothing new begins in the background. What runs ends with lost.
	l.closed = true
	l.mu.Unlock()
	// No handle owns from here on, so a rival may be let in.
	l.finish(closed)
	l.renewal.wait()
	l.work.Wait()
	// Nothing uses the kept watch any more, and no renewal or clean-up runs.
	l.kept.close()
	if l.revoked.Load() {
		return nil
	}
	// A revocation is of use for as long as the lease may live. A lease that may have ended
	// a moment ago is given a second, because the server's clock decides.
	ctx, stop := untilClosed(l.parent, l.client)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, max(l.clock.left(), time.Second))
	defer cancel()
	// ask would not do here: it makes no call for a session that has ended.
	_, err := repeat(ctx, forever, l.patience(), l.trace, func(ctx context.Context) (*v3.LeaseRevokeResponse, error) {
		return leasesOnce(l.client).Revoke(ctx, l.id)
	})
	// An earlier call whose answer was lost may have revoked the lease.
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return err
	}
	l.revoked.Store(true)
	return nil
}

// background runs work on a goroutine for which [Session.Close] waits. It closes the
// channel when work has returned. After Close it does nothing. The work has to end when
// lost does, as [repeat] and sleep do with it.
//
// The context of the work is the client's, because a clean-up outlives the session. A key that nobody
// wants blocks others for as long as the lease lives.
func (l *lease) background(work func(ctx context.Context)) <-chan struct{} {
	done := make(chan struct{})
	l.mu.Lock()
	defer l.mu.Unlock()
	// The work is not run. Whoever waits for it must not wait for ever.
	if l.closed {
		close(done)
		return done
	}
	l.work.Go(func() {
		defer close(done)
		l.use()
		defer l.unuse()
		work(l.client.Ctx())
	})
	return done
}
