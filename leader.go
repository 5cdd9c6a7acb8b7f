package concurrency

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	v3 "go.etcd.io/etcd/client/v3"
)

// LeaderOption configures [RunLeader]. Every [SessionOption] is one, for the sessions that
// RunLeader opens.
type LeaderOption interface{ ofLeader(o *leaderOptions) }

type leaderOptions struct {
	session []SessionOption
	leaders func(Leader) // nil: nobody wants to know
}

func (opt SessionOption) ofLeader(o *leaderOptions) { o.session = append(o.session, opt) }

type leaderOption func(*leaderOptions)

func (opt leaderOption) ofLeader(o *leaderOptions) { opt(o) }

// WithLeaders makes [RunLeader] tell who leads, others included. It calls tell with the present
// leader and with every change, as [LeadersOf] tells them, one at a time, beside the work. That
// nobody leads is the zero [Leader]. RunLeader returns after the last tell has. If the election
// may not be read, tell is not called any more. WithLeaders panics if tell is nil.
func WithLeaders(tell func(Leader)) LeaderOption {
	if tell == nil {
		panic("concurrency: nil function")
	}
	return leaderOption(func(o *leaderOptions) { o.leaders = tell })
}

// RunLeader runs work whenever it leads the election that prefix names. It opens a session
// with opts and campaigns with value. Then it calls work with a context that ends with ctx
// and with the leadership, and with the election that it leads. The election gives work its token and
// its guard, proclaims other values, and shows the session. The leadership ends when the session is
// lost, when the key is deleted, or when work resigns. RunLeader then
// waits for work to return and starts again with a new session. It pauses before that, longer
// each time that it did not come to lead. It never runs work twice at once. It resigns only
// after work has returned, and the next candidate leads at once.
//
// It blocks until one of these, and returns
//
//   - nil when work returned nil while it led;
//   - work's error, if that is not about the loss. An error is about the loss if it is the
//     cause of work's context, or [context.Canceled], after a loss. RunLeader starts again
//     then;
//   - ctx's error when ctx ended, and [context.Canceled] when the client was closed;
//   - a permanent error of etcd's, with which the session or the campaign failed, or the
//     error of a bad option.
//
// When ctx has ended, RunLeader waits for work. It waits for the servers for a second at
// most. What they did not answer ends with the lease. A panic of work passes through after
// the resignation. RunLeader panics if client, work or an option is nil.
func RunLeader(
	ctx context.Context, client *v3.Client, prefix, value string,
	work func(context.Context, *Election) error, opts ...LeaderOption,
) error {
	if client == nil {
		panic("concurrency: RunLeader: nil client")
	}
	if work == nil {
		panic("concurrency: nil function")
	}
	need(ctx)
	var o leaderOptions
	for _, opt := range opts {
		if opt == nil {
			panic("concurrency: RunLeader: nil option")
		}
		opt.ofLeader(&o)
	}
	if o.leaders != nil {
		defer tellLeaders(ctx, client, prefix, o.leaders)()
	}
	run := leading{client, prefix, value, work, o.session}
	for n := 0; ; n++ {
		led, again, err := run.once(ctx)
		switch {
		case !again:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case client.Ctx().Err() != nil:
			return context.Canceled
		case led:
			n = 0
		}
		pause(ctx, forever, n)
	}
}

// tellLeaders tells who leads until the function that it returns is called. That function waits for
// the last tell, because nothing may run on when RunLeader has returned.
func tellLeaders(ctx context.Context, client *v3.Client, prefix string, tell func(Leader)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var telling sync.WaitGroup
	telling.Go(func() {
		for leader, err := range LeadersOf(ctx, client, prefix) {
			if err == nil {
				tell(leader)
			}
		}
	})
	return func() {
		cancel()
		telling.Wait()
	}
}

// leading is what RunLeader does with each session.
type leading struct {
	client        *v3.Client
	prefix, value string
	work          func(context.Context, *Election) error
	opts          []SessionOption
}

// once runs work for the life of one session at most. It reports whether work was run,
// and whether to try again. If not, err is what to return.
func (r leading) once(ctx context.Context) (led, again bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, false, err
	}
	o := optionsOf(r.client, r.opts)
	// Only a context that was given with WithContext can have ended. That of the client is told below.
	if err := o.ctx.Err(); err != nil && o.ctx != r.client.Ctx() {
		return false, false, err
	}
	// The session outlives ctx, until work has returned and the candidacy is withdrawn. The
	// opening of the session does not outlive ctx.
	opening, opened := context.WithCancel(ctx)
	defer context.AfterFunc(o.ctx, opened)()
	var cancel context.CancelFunc
	o.ctx, cancel = context.WithCancel(o.ctx)
	defer cancel()
	s, err := open(opening, r.client, o)
	opened()
	if err != nil {
		return false, transient(err), err
	}
	defer func() {
		// The wait for the revocation ends with the session's context, half a second later.
		time.AfterFunc(cleanUpWait, cancel)
		_ = s.Close() // what is not answered in time ends with the lease
	}()
	// The session may end before its turn comes, with the context of WithContext. It shall not
	// stand in line for the rest of its lease then. The wait ends because closed ends lost,
	// which contextEnded does not.
	detach := context.AfterFunc(s.ctx, func() { s.lease.finish(closed) })
	defer detach()
	var failure error
	var lost bool
	e := NewElection(s, r.prefix)
	err = e.Lead(ctx, r.value, func(ctx context.Context) error {
		// From here on the lease is needed for the resignation, even if the session ends.
		detach()
		led = true
		failure = r.work(ctx, e)
		cause := context.Cause(ctx)
		lost = cause != nil &&
			(failure == nil || tellsLoss(failure, cause) || errors.Is(failure, context.Canceled))
		// Lead would join its own errors to work's. RunLeader returns work's error alone.
		return nil
	})
	if led {
		return true, lost, failure // what the resignation has met does not matter: the lease ends, too
	}
	lost = errors.Is(err, ErrSessionExpired) || errors.Is(err, rpctypes.ErrLeaseNotFound)
	return false, lost || transient(err), err
}
