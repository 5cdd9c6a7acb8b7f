package concurrency

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	v3 "go.etcd.io/etcd/client/v3"
)

// retry repeats call while its fault is transient. It ends with the call's answer, with a
// permanent error, or when it is over: with ctx, with the client, or with until, which is
// the lease's lost for all that is of no use without the lease. A call may have been
// carried out by a server that could not say so, hence only calls that may be repeated
// belong here.
func (l *lease) retry(ctx, until context.Context, call func(context.Context) error) error {
	for n := 0; ; n++ {
		err := l.attempt(ctx, until, call)
		over := l.over(ctx, until)
		switch {
		case err == nil:
			return nil
		case over != nil:
			return over
		case !transient(err):
			return err
		}
		pause(ctx, until, n)
	}
}

// over says why what goes on until ctx or until ends can't go on: exactly ctx's error, that
// of the client's end, or the loss. It is nil while it can.
func (l *lease) over(ctx, until context.Context) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case l.client.Ctx().Err() != nil:
		return context.Canceled
	case until.Err() != nil:
		return l.loss()
	}
	return nil
}

// attempt is one call, on a context that ends with ctx, and after half the TTL: a server that
// keeps silent on a connection that stands may be the only one that does, and a repetition
// asks another. If until is the lease's lost, [lease.lose] lets the timer fire early: one
// timer costs less than a context more, on the path of every lock.
func (l *lease) attempt(ctx, until context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if l.ctx.Err() != nil { // orphaned: the end of the client no longer ends lost
		defer context.AfterFunc(l.client.Ctx(), cancel)()
	}
	l.mu.Lock()
	timer := time.AfterFunc(l.timeToLive()/2, cancel)
	if until == l.lost {
		l.calls[timer] = struct{}{}
	}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.calls, timer)
		l.mu.Unlock()
		timer.Stop()
	}()
	// Now that a loss would find the timer: is it over already? The client, for one, repeats a
	// Get for seconds after it was closed.
	if err := l.over(ctx, until); err != nil {
		return err
	}
	return call(ctx)
}

// untilClosed returns a context that ends with ctx and with the client.
func untilClosed(ctx context.Context, client *v3.Client) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	detach := context.AfterFunc(client.Ctx(), cancel)
	return ctx, func() {
		detach()
		cancel()
	}
}

// pause waits before the n-th repetition, counted from zero: 10 ms at first,
// twice as long each time, half a second at most, of which up to a half is left
// out at random so that those who failed together do not return together. It
// ends with ctx and with until.
func pause(ctx, until context.Context, n int) {
	sleep(ctx, until, jitter(min(10*time.Millisecond<<min(n, 10), 500*time.Millisecond)))
}

func jitter(d time.Duration) time.Duration { return d - rand.N(d/2+1) }

func sleep(ctx, until context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-until.Done():
	}
}

// forever is the until of what ends with its ctx alone.
var forever = context.Background()

// unavailable is gRPC's code of that name, under which etcd reports a lost or
// changed leader, a stopping server and its own timeouts (rpctypes/error.go).
var unavailable = rpctypes.ErrNoLeader.(rpctypes.EtcdError).Code()

// transient tells a fault that passes, such as a lost connection or an election
// among the servers, from an answer that will not change. The caller asks about
// its own context first: a timeout that is not its own is the server's.
//
// What does not come from etcd itself is a gRPC status, told by its text, since
// this package imports the client and nothing below it.
func transient(err error) bool {
	var answer rpctypes.EtcdError
	if errors.As(err, &answer) {
		return answer.Code() == unavailable || errors.Is(err, rpctypes.ErrTooManyRequests)
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return true
	}
	text := err.Error()
	for _, code := range []string{"Unavailable", "Internal", "DeadlineExceeded", "Canceled"} {
		if strings.HasPrefix(text, "rpc error: code = "+code+" ") {
			return true
		}
	}
	return strings.HasSuffix(text, "raft proposal dropped")
}

// definite reports whether err is an answer of etcd's that rules out that the
// call was carried out. A server that has just run out of space carries it out and
// complains then (server/etcdserver/apply/quota.go).
func definite(err error) bool {
	var answer rpctypes.EtcdError
	return errors.As(err, &answer) && answer.Code() != unavailable && !errors.Is(err, rpctypes.ErrNoSpace)
}

// watcher is one watch and the goroutine that forwards it.
type watcher struct {
	key    string
	news   chan v3.WatchResponse
	cancel context.CancelFunc
	done   chan struct{}
}

// watch forwards to its news what client.Watch delivers, beside its caller, because
// client.Watch blocks until a server has answered. A watch that breaks is told by
// a last response with Canceled set; a member that has lost its quorum breaks its
// watches, instead of keeping silent. The caller has to stop the watcher.
func watch(ctx context.Context, client *v3.Client, key string, opts ...v3.OpOption) *watcher {
	ctx, cancel := context.WithCancel(v3.WithRequireLeader(ctx))
	w := &watcher{key, make(chan v3.WatchResponse), cancel, make(chan struct{})}
	go func() {
		defer close(w.done)
		for intact, events := true, client.Watch(ctx, key, opts...); intact; {
			var resp v3.WatchResponse
			select {
			case resp, intact = <-events:
				intact = intact && resp.Err() == nil
				resp.Canceled = !intact
			case <-ctx.Done():
				return
			}
			select {
			case w.news <- resp:
			case <-ctx.Done():
				return
			}
		}
	}()
	return w
}

// heard is where the news come from. A nil watcher is no watch and has none.
func (w *watcher) heard() <-chan v3.WatchResponse {
	if w == nil {
		return nil
	}
	return w.news
}

// stop ends the watch and waits for its goroutine.
func (w *watcher) stop() {
	if w != nil {
		w.cancel()
		<-w.done
	}
}
