package concurrency

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	v3 "go.etcd.io/etcd/client/v3"
)

// Semaphore is a line of permits, of which a number is given at once, first come, first
// served. A handle stands for one permit. A program that wants several has as many handles.
// The handles of one session are participants of their own. None can release the permit of
// another.
//
// How many permits there are is each participant's own word. It is given its permit when
// fewer than that many stand ahead of it. So all participants should be told the same number.
// If the number changes, then those with the smaller one wait for longer, and nobody is sent
// away.
//
// A [Mutex] of the same name, of this package or of upstream's, takes the whole semaphore. It
// waits for all permits that were asked for before, and those who come later wait for it.
//
// All methods may be called from any goroutine.
type Semaphore struct{ ownership }

// NewSemaphore returns a handle of one permit of the semaphore that pfx names, of which n are
// given at once. The keys of the semaphore lie under pfx + "/", where no other keys may lie.
// A key of a stranger counts as a Mutex that holds, and so does the key of a lock whose name
// lies within this one. Permits lie under pfx + "/~p/". A key there counts as one permit, also
// that of a Mutex named pfx + "/~p". That Mutex waits for each permit that was asked for
// before. NewSemaphore makes no call. It panics if s is nil or n is less than 1.
func NewSemaphore(s *Session, pfx string, n int) *Semaphore {
	if n < 1 {
		panic("concurrency: a semaphore with fewer than one permit")
	}
	return &Semaphore{ownership{queue: newQueue(s, pfx).numbered(permits(n)), released: lockReleased}}
}

// Acquire takes a permit. It waits until fewer than n of those who came before hold a permit
// or wait for one. If this handle holds its permit already, Acquire succeeds.
//
// It blocks and fails as [Mutex.Lock] does. It costs one call if there is a permit left. A wait
// costs what a wait of [Mutex.Lock] does, for 16 participants more than have a permit.
func (s *Semaphore) Acquire(ctx context.Context) error {
	_, err := s.take(ctx)
	return err
}

func (s *Semaphore) take(ctx context.Context) (*grant, error) {
	return s.acquire(ctx, s.queue.lockTxn())
}

// TryAcquire takes a permit if there is one left and nobody waits. Otherwise it returns
// [ErrLocked] and has changed nothing, because it has written no key. If this handle holds
// its permit already, TryAcquire succeeds.
//
// It costs one call if nobody or everybody holds a permit. Otherwise it costs two, and one
// more for each other participant that comes in between. Its other errors are those of
// [Mutex.Lock].
func (s *Semaphore) TryAcquire(ctx context.Context) error {
	_, err := s.acquire(ctx, s.queue.lockTxn().ifAlone(0))
	return err
}

// Release gives the permit of this handle back. It returns [ErrLockReleased] if the handle
// holds none, and nil if the permit was lost meanwhile. It costs one call. For all else see
// [Mutex.Unlock].
func (s *Semaphore) Release(ctx context.Context) error { return s.unlock(ctx, s.queue) }

// IsOwner returns a comparison that is true in a transaction only while this handle holds its
// permit. See [Mutex.IsOwner].
func (s *Semaphore) IsOwner() v3.Cmp { return s.stands() }

// Key returns the key in etcd of the permit that this handle holds, or "" if it holds none.
// See [Mutex.Key].
func (s *Semaphore) Key() string { return s.ticket().key }

// Rev returns the create revision of that key, or 0 if this handle holds no permit. The number
// rises with every permit that is asked for.
func (s *Semaphore) Rev() int64 { return s.ticket().rev }

// Header returns the header of the answer that proved the permit when it was last taken. It is
// nil before that.
func (s *Semaphore) Header() *pb.ResponseHeader {
	_, header := s.state()
	return header
}

// Ctx returns a context that ends when this handle does not hold its permit any more, as
// [Mutex.Ctx] does with a lock.
func (s *Semaphore) Ctx() context.Context { return s.context() }

// Do runs work while this handle holds a permit. It takes the permit as [Semaphore.Acquire]
// does. For all else see [Mutex.Do].
func (s *Semaphore) Do(ctx context.Context, work func(context.Context) error) error {
	return s.during(ctx, func() (*grant, error) { return s.take(ctx) }, work)
}
