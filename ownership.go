package concurrency

import (
	"context"
	"errors"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	v3 "go.etcd.io/etcd/client/v3"
)

// ownership is what a Mutex and an Election have in common: a place in a line, and the
// ticket by which it owns.
type ownership struct {
	queue    queue
	released *term // of what is given back: has ended, with the cause for that; of all handles

	mu     sync.Mutex // guards the fields below; never held across a call
	held   ticket     // none: not owned
	header *pb.ResponseHeader
	term   *term // of held, once somebody has asked for its context
	busy   bool  // a Do or Lead is under way
}

// term is the time for which a ticket owns.
type term struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
}

// newTerm ends with parent at the latest.
func newTerm(parent context.Context) *term {
	ctx, cancel := context.WithCancelCause(parent)
	return &term{ctx, cancel}
}

// ended is a term that has ended with the cause. Any number of handles may share it.
func ended(cause error) *term {
	t := newTerm(context.Background())
	t.cancel(cause)
	return t
}

func (t *term) cause() error { return context.Cause(t.ctx) }

// acquire stands in line for the turn, see [queue.acquire], and returns the ticket. What
// was held before is not held any more if somebody else is proven to own.
func (o *ownership) acquire(ctx context.Context, join joinTxn, patient bool) (ticket, error) {
	before := o.ticket()
	v, err := o.queue.acquire(ctx, join, patient)
	switch err {
	case nil:
		o.mu.Lock()
		defer o.mu.Unlock()
		o.replace(v.mine)
		o.header = v.header
	case ErrLocked, ErrSessionExpired:
		o.drop(before) // and not what another call has acquired meanwhile
	}
	return v.mine, err
}

// release gives back what is owned by the ticket held. The term ends before anything
// is sent. For its results see [queue.leave].
func (o *ownership) release(ctx context.Context, held ticket) (*pb.ResponseHeader, error) {
	o.end(held)
	header, err := o.queue.leave(ctx, held)
	if err == nil || err == ErrSessionExpired {
		o.drop(held)
	}
	return header, err
}

// giveBack is release for a caller who may give up. Nobody will own by this ticket again,
// and all who stand behind it wait: when ctx has ended the deletion goes on without the
// caller.
func (o *ownership) giveBack(ctx context.Context, held ticket) (*pb.ResponseHeader, error) {
	header, err := o.release(ctx, held)
	if err != nil && err != ErrSessionExpired && ctx.Err() != nil {
		o.queue.lease().background(func(ctx context.Context) { _, _ = o.queue.remove(ctx, held) })
	}
	return header, err
}

// drop notes that held is gone, and keeps a newer ticket.
func (o *ownership) drop(held ticket) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.held == held {
		o.replace(ticket{})
	}
}

// replace sets the ticket; the term of another one has ended. The caller has mu.
func (o *ownership) replace(held ticket) {
	if o.term != nil && o.held != held {
		o.term.cancel(ErrSessionExpired)
		o.term = nil
	}
	o.held = held
}

func (o *ownership) state() (ticket, *pb.ResponseHeader) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.held, o.header
}

func (o *ownership) ticket() ticket {
	held, _ := o.state()
	return held
}

// stands is true in a transaction only while what this handle owns is owned by it.
func (o *ownership) stands() v3.Cmp {
	if held := o.ticket(); held != (ticket{}) {
		return held.stands()
	}
	return v3.Compare(v3.CreateRevision(o.queue.key()), "<", 0)
}

// context returns the context of the term, which the first caller starts. Nothing held
// has one that has ended, with the cause of a release.
func (o *ownership) context() context.Context {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.held == (ticket{}) {
		return o.released.ctx
	}
	if o.term == nil {
		o.term = o.queue.follow(o.held)
	}
	return o.term.ctx
}

// end ends the term of held. Who asks from now on, while the release is under way, is
// given a context that has ended.
func (o *ownership) end(held ticket) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.held != held {
		return
	}
	if o.term != nil {
		o.term.cancel(o.released.cause())
	}
	o.term = o.released
}

// follow starts the term of a ticket. It ends with the session, and with the deletion of
// the key, which it watches for.
func (q queue) follow(t ticket) *term {
	term := newTerm(q.session.ctx)
	q.lease().background(func(context.Context) { term.cancel(q.standing(term.ctx, t)) })
	return term
}

// standing returns [ErrSessionExpired] when the ticket is seen to be gone. It ends earlier
// when ctx does, and with a permanent error that keeps it from reading the key: who
// can't know does not own.
func (q queue) standing(ctx context.Context, t ticket) error {
	for breaks := 0; ; breaks++ {
		resp, err := q.get(ctx, q.lease().lost, t.key, v3.WithKeysOnly())
		switch {
		case err != nil:
			return err
		case !t.firstOf(resp.Kvs):
			return ErrSessionExpired
		}
		// From the revision after one at which it stood: no gap.
		w := watch(ctx, q.client(), t.key, v3.WithFilterPut(), v3.WithRev(resp.Header.Revision+1))
		select {
		case news := <-w.news:
			if len(news.Events) > 0 {
				w.stop()
				return ErrSessionExpired
			}
		case <-ctx.Done():
		}
		w.stop()
		pause(ctx, forever, breaks)
	}
}

// during runs work while the turn lasts that acquire waits for, on a context that ends
// with the term or with ctx, and in any case before the turn is given back.
func (o *ownership) during(ctx context.Context, acquire func() (ticket, error), work func(context.Context) error) (err error) {
	if work == nil {
		panic("concurrency: nil function")
	}
	if !o.reserve() {
		return ErrHeld
	}
	defer o.unreserve()
	held, err := acquire()
	if err != nil {
		return err
	}
	owned := o.context()
	workCtx, cancel := context.WithCancelCause(ctx)
	detach := context.AfterFunc(owned, func() { cancel(context.Cause(owned)) })
	// Deferred, so that a panic of work's passes through after the release.
	defer func() {
		loss := context.Cause(owned)
		detach()
		cancel(o.released.cause())
		released := o.surrender(ctx, held)
		if loss != nil && released == ErrSessionExpired {
			released = nil // told by its cause
		}
		err = join(err, loss, released)
	}()
	return work(workCtx)
}

// surrender releases held even if ctx has ended: then it goes on in the background, and is
// waited for as long as the clean-up of a failed acquisition. It is [ErrSessionExpired] if
// the release showed that held was lost before.
func (o *ownership) surrender(ctx context.Context, held ticket) error {
	l := o.queue.lease()
	var err error
	released := false
	done := l.background(func(ctx context.Context) {
		_, err = o.release(ctx, held)
		released = true
	})
	select {
	case <-done:
	case <-ctx.Done():
		awaitCleanUp(done)
	}
	select {
	case <-done:
	default:
		return ctx.Err()
	}
	if !released { // the session was closed, which has deleted the key
		o.end(held)
		o.drop(held)
	}
	return err
}

// join is errors.Join, but a single error stays as it is and is told once.
func join(errs ...error) error {
	var all []error
	for _, err := range errs {
		if err != nil && !errors.Is(errors.Join(all...), err) {
			all = append(all, err)
		}
	}
	if len(all) == 1 {
		return all[0]
	}
	return errors.Join(all...)
}

// reserve reports whether nothing is held, and no Do or Lead under way. A ticket whose
// deletion was decided and may have failed is not held.
func (o *ownership) reserve() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.busy || o.held != (ticket{}) && !o.queue.lease().condemned(o.held) {
		return false
	}
	o.busy = true
	return true
}

func (o *ownership) unreserve() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.busy = false
}
