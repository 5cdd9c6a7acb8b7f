package concurrency

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	v3 "go.etcd.io/etcd/client/v3"
)

// MultiMutex is several locks that are taken together, all or none. One transaction stands in
// all their lines at once. So those who take several locks by a MultiMutex never wait for each
// other in a circle, in whatever order they name the locks. Who takes them one after the other
// by Mutexes, or holds one and asks for a MultiMutex, can still do so.
//
// Each lock excludes a [Mutex] of its name, of this package or of upstream's, and the writers
// and readers of an [RWMutex]. A MultiMutex stands in line with keys of its own. So it
// excludes every other handle of its session too, and waits for itself behind a Mutex that the
// session holds.
//
// The locks are one ownership. When one of them is lost, all count as lost. The keys of the
// others stay until Unlock, because what they guard may still be worked on.
//
// All methods may be called from any goroutine.
type MultiMutex struct{ ownership }

// NewMultiMutex returns a handle of the locks with the names. Their keys lie under each name +
// "/", as those of a [Mutex] do. A name may lie within another one. The servers bound how many
// names there may be: by default 64, because there are two operations for each and 128 in a
// transaction at most. NewMultiMutex makes no call. It panics if s is nil, if there are no
// names, or if a name is given twice.
func NewMultiMutex(s *Session, names ...string) *MultiMutex {
	if len(names) == 0 {
		panic("concurrency: a MultiMutex without names")
	}
	q, known := newQueue(s, names[0]).numbered(rule{several: true}), map[string]bool{}
	q.also = &further{}
	for i, name := range names {
		if known[name] {
			panic("concurrency: a MultiMutex that has a name twice: " + name)
		}
		if known[name] = true; i > 0 {
			q.also.prefixes = append(q.also.prefixes, name+"/")
		}
	}
	return &MultiMutex{ownership{queue: q, released: lockReleased}}
}

// Lock takes all locks. It waits until nobody who came before stands in any of their lines. It
// holds none of them before it holds all. When it returns nil, all were held at the revision of
// [MultiMutex.Header].
//
// It blocks and fails as [Mutex.Lock] does. If there are more names than the servers allow, it
// returns rpctypes.ErrTooManyOps. If all locks are free it costs one call. A wait costs one watch for
// each name. For each participant that it has waited for, it costs one call and one watch more.
func (m *MultiMutex) Lock(ctx context.Context) error {
	_, err := m.lock(ctx)
	return err
}

func (m *MultiMutex) lock(ctx context.Context) (*grant, error) {
	return m.acquire(ctx, m.queue.lockTxn())
}

// TryLock takes all locks if nobody holds one of them or stands in line for it. Otherwise it
// returns [ErrLocked] and has changed nothing, because it has written no key. If this handle
// holds the locks already, TryLock succeeds. It costs one call, or two then. Its other errors
// are those of [MultiMutex.Lock].
func (m *MultiMutex) TryLock(ctx context.Context) error {
	_, err := m.acquire(ctx, m.queue.lockTxn().ifAlone(0))
	return err
}

// Unlock releases all locks, in one call. It returns [ErrLockReleased] if the handle holds
// none, and nil if they were lost meanwhile. Those that are left are released then, too. For
// all else see [Mutex.Unlock].
func (m *MultiMutex) Unlock(ctx context.Context) error { return m.unlock(ctx, m.queue) }

// IsOwner returns comparisons that are true in a transaction only while this handle holds all
// locks. They are for If and [WithGuard]. See [Mutex.IsOwner].
func (m *MultiMutex) IsOwner() []v3.Cmp {
	t := m.ticket()
	if t == (ticket{}) {
		return []v3.Cmp{m.stands()} // which is false
	}
	present, _, _ := m.queue.removal(t)
	return present
}

// Keys returns the keys in etcd by which the locks are held, in the order of the names, or none
// if they are not held. See [Mutex.Key].
func (m *MultiMutex) Keys() []string {
	t := m.ticket()
	if t == (ticket{}) {
		return nil
	}
	return m.queue.keys(t.key)
}

// Rev returns the create revision that all the keys have, or 0 if the locks are not held. For
// each of the locks the number rises with every change of the owner.
func (m *MultiMutex) Rev() int64 { return m.ticket().rev }

// Header returns the header of the answer that proved the ownership when the locks were last
// taken. It is nil before that.
func (m *MultiMutex) Header() *pb.ResponseHeader {
	_, header := m.state()
	return header
}

// Ctx returns a context that ends when this handle does not hold all the locks any more, as
// [Mutex.Ctx] does with one lock.
func (m *MultiMutex) Ctx() context.Context { return m.context() }

// Do runs work while all the locks are held. It takes them as [MultiMutex.Lock] does. For all
// else see [Mutex.Do].
func (m *MultiMutex) Do(ctx context.Context, work func(context.Context) error) error {
	return m.during(ctx, func() (*grant, error) { return m.lock(ctx) }, work)
}
