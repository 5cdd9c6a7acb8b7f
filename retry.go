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

// retry repeats call while its fault is transient. It ends with the call's
// answer, with a permanent error, with the client, or with ctx: then its error
// is exactly the context's. A call may have been carried out by a server that
// could not say so, hence only calls that may be repeated belong here.
//
// A call is given half the TTL: a server that keeps silent on a connection that stands may
// be the only one that does, and a repetition asks another.
func (l *lease) retry(ctx context.Context, call func(context.Context) error) error {
	for n := 0; ctx.Err() == nil; n++ {
		// The client itself repeats a Get for seconds after it was closed.
		if l.client.Ctx().Err() != nil {
			return context.Canceled
		}
		bound, cancel := context.WithTimeout(ctx, l.timeToLive()/2)
		err := call(bound)
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() == nil && !transient(err):
			return err
		}
		pause(ctx, n)
	}
	return ctx.Err()
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
// reports whether ctx still lives.
func pause(ctx context.Context, n int) bool {
	return sleep(ctx, jitter(min(10*time.Millisecond<<min(n, 10), 500*time.Millisecond)))
}

func jitter(d time.Duration) time.Duration { return d - rand.N(d/2+1) }

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

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
