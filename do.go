package concurrency

import (
	"context"
	"errors"
	"slices"
	"time"
)

// during acquires the ownership and runs work while it lasts. The context of work ends with
// the term or with ctx, and in any case before the ownership is given back.
func (o *ownership) during(ctx context.Context, acquire func() (*grant, error), work func(context.Context) error) error {
	if work == nil {
		panic("concurrency: nil function")
	}
	// A second Do of this handle would release the ownership under the first one. So the handle
	// is reserved until after the release.
	if !o.reserve() {
		return ErrHeld
	}
	defer o.unreserve()
	held, err := acquire()
	if err != nil {
		return err
	}
	// The context of work costs what a first call of [Mutex.Ctx] costs.
	giveBack := func(loss error) error { return o.giveBack(ctx, held, loss) }
	return whileOwned(ctx, o.context(), o.released.cause(), giveBack, work)
}

// whileOwned runs work with a context that ends with ctx and with owned. When work has
// returned, that context ends with the cause released, and then giveBack is called. giveBack is
// given the cause with which owned has ended by then, or nil.
func whileOwned(
	ctx, owned context.Context, released error, giveBack func(loss error) error, work func(context.Context) error,
) (err error) {
	// The context of work ends with ctx because it is derived from it. The end of the term
	// is carried over by hand. Its Err looks at the term first, and so at the clock.
	inner, cancel := context.WithCancelCause(ctx)
	carryOver := func() {
		if owned.Err() != nil {
			cancel(context.Cause(owned))
		}
	}
	detach := context.AfterFunc(owned, carryOver)
	// Deferred, so that a panic of work's passes through after the release.
	defer func() {
		// The term may have ended although no timer has run yet. What is found now counts
		// as a loss, and not as the release that follows.
		carryOver()
		loss := context.Cause(owned)
		detach()
		// The context of work ends before the release is sent. What still runs on it stops
		// in time.
		cancel(released)
		err = joinErrors(err, loss, giveBack(loss))
	}()
	return work(&punctual{inner, carryOver})
}

// giveBack releases the ownership after work has returned. loss is why the term ended before
// that, or nil if it did not. giveBack returns the error of the release, unless loss tells it. It waits for
// the answer, and after the end of ctx for cleanUpWait at most.
func (o *ownership) giveBack(ctx context.Context, held *grant, loss error) error {
	// The release is sent even if ctx has ended, because the others wait for it.
	bound, release := lingering(ctx)
	defer release()
	_, err := o.release(bound, held)
	switch {
	case err == ErrSessionExpired && loss != nil:
		err = nil // told by its cause
	// The release was called off because ctx had ended. The clean-up goes on with it.
	case err != nil && ctx.Err() != nil && bound.Err() != nil:
		err = ctx.Err()
	}
	if errors.Is(loss, ErrSessionExpired) || err == ErrSessionExpired {
		// An error that tells of a lost session has to come after the end of Session.Ctx.
		_ = o.queue.askForLease(bound)
	}
	return err
}

// lingering returns a context that ends soon after ctx, for a release that is to be sent
// even if ctx has ended. The release gets a moment, so that it has usually been carried out
// when Do returns.
func lingering(ctx context.Context) (context.Context, context.CancelFunc) {
	bound, cancel := context.WithCancel(context.WithoutCancel(ctx))
	// Nobody stops the timer. It cancels a context that is of no use any more by then.
	detach := context.AfterFunc(ctx, func() { time.AfterFunc(cleanUpWait, cancel) })
	return bound, func() {
		detach()
		cancel()
	}
}

// joinErrors is errors.Join, but a single error stays as it is, and what another error tells is
// told once. Programs compare the errors of this package with ==.
func joinErrors(errs ...error) error {
	var all []error
	for _, err := range errs {
		if err != nil && !errors.Is(errors.Join(all...), err) {
			// An error that err wraps is told by err.
			all = slices.DeleteFunc(all, func(told error) bool { return errors.Is(err, told) })
			all = append(all, err)
		}
	}
	if len(all) == 1 {
		return all[0]
	}
	return errors.Join(all...)
}

// reserve reports whether nothing is owned, and no Do or Lead is under way. It keeps others out
// until unreserve. What is known to be lost does not count, so a Do after a loss acquires anew.
func (o *ownership) reserve() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.busy || o.owns(o.held) {
		return false
	}
	o.busy = true
	return true
}

// unreserve lets the next Do or Lead in.
func (o *ownership) unreserve() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.busy = false
}
