package concurrency

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	v3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// repeat makes a call until it is answered. The answer is a result, or an error that will
// not change. After a fault that passes, repeat calls again, after a pause.
//
// While no call comes back, the call is sent again beside the first. That happens after a
// third of the patience, then at intervals that double up to the patience. The first answer
// counts, and the others are called off. If nothing were sent again, a silent member would
// hold its caller up, although other members answer. If the second call replaced the first,
// a slow server would never answer in time.
//
// The call is sent twice each time, without a pause, because the members take turns. One of
// the two then reaches another member than the silent one, whatever calls of others have
// come in between since the first. Calls that began together are repeated a little apart, so that
// no call of another repetition comes between the two. While calls come back with faults, none is
// sent beside them, because their own repetitions reach all members in turn. A client that is
// refused for an hour thus calls no more often than at first.
//
// A call may have been carried out although it was not answered. So only calls that may be
// repeated belong here.
//
// repeat ends without an answer when ctx or until ends. It then returns ctx's error or
// [context.Canceled]. The trace is told of every call that is sent again.
func repeat[R any](
	ctx, until context.Context, patience time.Duration, trace *tracing, call func(context.Context) (R, error),
) (R, error) {
	r := &repetition[R]{call: call, next: againAfter(patience), most: patience, trace: trace, err: context.Canceled}
	if until.Err() != nil {
		return r.answer, r.err
	}
	r.ctx, r.cancel = context.WithCancel(ctx)
	detach := context.AfterFunc(until, r.cancel)
	defer detach()
	r.mu.Lock() // again uses the timer, and may run before the assignment
	r.timer = time.AfterFunc(spread(r.next), r.again)
	r.mu.Unlock()
	func() {
		defer r.end() // after a panic of the client's too
		r.insist()
	}()
	// All calls have ended, so nobody writes any more.
	if !r.answered && ctx.Err() != nil {
		return r.answer, ctx.Err()
	}
	return r.answer, r.err
}

// againAfter is how long the first call may be without an answer. It leaves the others
// twice that time.
func againAfter(patience time.Duration) time.Duration { return patience / 3 }

// repetition is one call of [repeat] under way.
type repetition[R any] struct {
	call   func(context.Context) (R, error)
	trace  *tracing
	ctx    context.Context // ends with the first answer
	cancel context.CancelFunc
	others sync.WaitGroup // those that were sent beside the first

	mu       sync.Mutex // guards the fields below; never held across a call
	timer    *time.Timer
	resent   time.Time     // when the last call that came back with a fault is sent again
	next     time.Duration // after which the call is sent again
	most     time.Duration // the longest that next gets
	answered bool
	answer   R
	err      error // context.Canceled before the answer
}

// insist makes the call until there is an answer, to this call or to another one.
func (r *repetition[R]) insist() {
	for n := 0; r.ctx.Err() == nil; n++ {
		answer, err := r.call(r.ctx)
		// An error after the end of ctx is of that end, and no answer.
		passes := err != nil && (r.ctx.Err() != nil || transient(err))
		d := afterFault(n)
		r.mu.Lock()
		switch {
		case passes:
			r.resent = time.Now().Add(d)
		case !r.answered: // another call may have been answered first
			r.answered, r.answer, r.err = true, answer, err
		}
		r.mu.Unlock()
		switch {
		case !passes:
			r.cancel()
		case r.ctx.Err() == nil:
			r.trace.repeated(err)
			sleep(r.ctx, forever, d)
		}
	}
}

// again makes the call twice beside those under way, if none of them has come back for a
// while.
func (r *repetition[R]) again() {
	r.mu.Lock()
	defer r.mu.Unlock()
	quiet := time.Since(r.resent)
	switch {
	case r.ctx.Err() != nil: // nobody would wait for these calls, or stop the timer
	case quiet < r.next:
		r.timer.Reset(r.next - quiet)
	default:
		r.trace.repeated(ErrNoAnswer)
		r.others.Go(r.insist)
		r.others.Go(r.insist)
		r.next = min(2*r.next, r.most)
		r.timer.Reset(spread(r.next))
	}
}

// end calls off what is under way and waits for it.
func (r *repetition[R]) end() {
	r.cancel()
	r.mu.Lock()
	r.timer.Stop() // and again, if it is about to run, sees the end of ctx
	r.mu.Unlock()
	r.others.Wait()
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

// longestPause bounds a pause, so that a server that is back is asked soon. Upstream's client
// waits that long before it asks for renewals again (retryConnWait in client/v3's lease.go).
const longestPause = 500 * time.Millisecond

// pause waits before the n-th repetition. It ends with ctx and with until.
func pause(ctx, until context.Context, n int) { sleep(ctx, until, afterFault(n)) }

// afterFault is the pause before the n-th repetition, counted from zero: 10 ms at first, twice
// as long each time, half a second at most. A client that is refused at once so calls seven times
// within two thirds of a second, and then two to four times a second. Up to a half of a pause is left
// out at random, so that those who failed together do not return together.
func afterFault(n int) time.Duration {
	return jitter(min(10*time.Millisecond<<min(n, 10), longestPause))
}

// spread leaves up to a tenth of the time out at random, so that what began together parts.
func spread(d time.Duration) time.Duration { return d - rand.N(d/10+1) }

// jitter leaves up to a half of the time out.
func jitter(d time.Duration) time.Duration { return d - rand.N(d/2+1) }

// sleep waits for the time, or until one of the contexts ends.
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

// transient tells a fault that passes, such as a lost connection or an election among the
// servers, from an answer that will not change. The caller asks about its own context
// first. A timeout that is not the caller's is the server's.
func transient(err error) bool {
	var answer rpctypes.EtcdError
	if errors.As(err, &answer) {
		// etcd reports a lost or changed leader, a stopping server and its own timeouts as
		// Unavailable (rpctypes/error.go).
		return answer.Code() == codes.Unavailable || errors.Is(err, rpctypes.ErrTooManyRequests)
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return true
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.Internal, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	// The servers have no code for it: raft.ErrProposalDropped.
	return strings.HasSuffix(err.Error(), "raft proposal dropped")
}

// definite reports whether err is an answer of etcd's that rules out that the call was
// carried out. A server that has just run out of space carries the call out and complains
// then (server/etcdserver/apply/quota.go).
func definite(err error) bool {
	var answer rpctypes.EtcdError
	return errors.As(err, &answer) && answer.Code() != codes.Unavailable && !errors.Is(err, rpctypes.ErrNoSpace)
}
