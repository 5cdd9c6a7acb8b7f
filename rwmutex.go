package concurrency

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	v3 "go.etcd.io/etcd/client/v3"
)

// RWMutex is a lock that one writer or any number of readers hold, first come, first served.
// Readers that stand next to each other in line hold the lock together. A writer waits for
// all who came before, and those who come later wait for the writer. So neither kind can
// starve the other.
//
// A writer is what a [Mutex] of the same name is, of this package or of upstream's. Both
// kinds of program can share a name. The Mutex excludes writers and readers, and they
// exclude the Mutex.
//
// A reader is a handle. Each RWMutex stands in line with a key of its own when it reads, so
// that several of one session read together, and none can release another's lock. A writer
// is a session, as with Mutex. Two handles of one session share the write lock. A handle
// holds the lock for writing or for reading, and not twice. Goroutines that read at the same
// time need a handle each.
//
// A session that holds the lock in one way and asks for it in the other way, by whatever
// handle, waits for itself. RLock behind the own Lock, and Lock behind the own RLock, block
// until ctx ends or another goroutine releases. There is no upgrade. TryLock and TryRLock
// return [ErrLocked] then.
//
// All methods may be called from any goroutine.
type RWMutex struct {
	ownership       // its queue is the writer's
	reader    queue // the same line, as this handle stands in it to read
}

// NewRWMutex returns a handle of the lock that pfx names. The keys of the lock lie under pfx
// + "/", where no other keys may lie. A key of a stranger counts as a writer, and so does
// the key of a lock whose name lies within this one. Readers lie under pfx + "/~r/". A key
// there counts as a reader, also that of a Mutex named pfx + "/~r". That Mutex keeps writers
// out and no reader, and it waits for each reader that came before. NewRWMutex makes no call.
// It panics if s is nil.
func NewRWMutex(s *Session, pfx string) *RWMutex {
	q := newQueue(s, pfx)
	return &RWMutex{ownership{queue: q, released: lockReleased}, q.numbered(readers)}
}

// Lock takes the lock for writing. It waits for all who came before. It blocks, fails and
// costs as [Mutex.Lock] does.
func (m *RWMutex) Lock(ctx context.Context) error {
	_, err := m.lock(ctx)
	return err
}

func (m *RWMutex) lock(ctx context.Context) (*grant, error) {
	return m.acquire(ctx, m.queue.lockTxn())
}

// TryLock takes the lock for writing if nobody holds it or stands in line for it. Otherwise
// it returns [ErrLocked] and has changed nothing. For all else see [Mutex.TryLock].
func (m *RWMutex) TryLock(ctx context.Context) error {
	_, err := m.acquire(ctx, m.queue.lockTxn().ifAlone(0))
	return err
}

// RLock takes the lock for reading. It waits for the writers who came before, and for nobody
// else. Whoever waits behind the same writer is let in together. If the handle holds the
// lock for reading already, RLock succeeds.
//
// It blocks and fails as [Mutex.Lock] does. It costs one call if no writer is in line. A
// wait for one writer costs two, and two watches.
func (m *RWMutex) RLock(ctx context.Context) error {
	_, err := m.rlock(ctx)
	return err
}

func (m *RWMutex) rlock(ctx context.Context) (*grant, error) {
	return m.acquireIn(ctx, m.reader, m.reader.lockTxn())
}

// TryRLock takes the lock for reading if no writer holds it or stands in line for it.
// Otherwise it returns [ErrLocked] and has changed nothing, because it has written no key. If
// the handle holds the lock for reading already, TryRLock succeeds. It costs one call. Its
// other errors are those of [Mutex.Lock].
func (m *RWMutex) TryRLock(ctx context.Context) error {
	_, err := m.acquireIn(ctx, m.reader, m.reader.lockTxn().ifAlone(0))
	return err
}

// Unlock releases the lock that this handle holds for writing. It returns [ErrLockReleased]
// if the handle does not, also if it holds the lock for reading. For all else see
// [Mutex.Unlock].
func (m *RWMutex) Unlock(ctx context.Context) error { return m.unlock(ctx, m.queue) }

// RUnlock releases the lock that this handle holds for reading. It returns [ErrLockReleased]
// if the handle does not, also if it holds the lock for writing. It costs one call. For all
// else see [Mutex.Unlock].
func (m *RWMutex) RUnlock(ctx context.Context) error { return m.unlock(ctx, m.reader) }

// IsOwner returns a comparison that is true in a transaction only while this handle holds
// the lock as it does now, for writing or for reading. See [Mutex.IsOwner].
func (m *RWMutex) IsOwner() v3.Cmp { return m.stands() }

// Key returns the key in etcd by which the lock is held, or "" if it is not held. See
// [Mutex.Key].
func (m *RWMutex) Key() string { return m.ticket().key }

// Rev returns the create revision of the key by which the lock is held, or 0 if it is not
// held. The number of a writer is greater than those of all who held the lock before. Those
// of readers who hold it together differ.
func (m *RWMutex) Rev() int64 { return m.ticket().rev }

// Header returns the header of the answer that proved the ownership when the lock was last
// taken, for writing or for reading. It is nil before that.
func (m *RWMutex) Header() *pb.ResponseHeader {
	_, header := m.state()
	return header
}

// Ctx returns a context that ends with this handle's ownership, as [Mutex.Ctx] does.
func (m *RWMutex) Ctx() context.Context { return m.context() }

// Do runs work while the lock is held for writing. See [Mutex.Do].
func (m *RWMutex) Do(ctx context.Context, work func(context.Context) error) error {
	return m.during(ctx, func() (*grant, error) { return m.lock(ctx) }, work)
}

// RDo runs work while the lock is held for reading. It takes the lock as [RWMutex.RLock]
// does. For all else see [Mutex.Do].
func (m *RWMutex) RDo(ctx context.Context, work func(context.Context) error) error {
	return m.during(ctx, func() (*grant, error) { return m.rlock(ctx) }, work)
}
