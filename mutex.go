package concurrency

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	v3 "go.etcd.io/etcd/client/v3"
)

var lockReleased = ended(ErrLockReleased)

// Mutex is a lock that sessions take in turn, first come, first served. It is
// held by a session: two handles of one session and one name share the lock, and
// each can take it while the other holds it. For exclusion between goroutines use
// [NewLocker], or a session each.
//
// All methods may be called from any goroutine.
type Mutex struct {
	ownership
	made *joinTxn // see joining
}

// NewMutex returns a handle of the lock that pfx names. Its keys lie under
// pfx + "/", where no other keys may lie; an empty pfx stands for "/". It makes no
// call. NewMutex panics if s is nil.
func NewMutex(s *Session, pfx string) *Mutex {
	q := newQueue(s, pfx)
	join := q.joinTxn("")
	return &Mutex{ownership{queue: q, released: lockReleased}, &join}
}

// TryLock takes the lock if nobody holds it or stands in line for it, and returns
// [ErrLocked] otherwise, having changed nothing: it writes no key. If the handle's
// session holds the lock already, TryLock succeeds.
//
// It costs one call, repeated over transient faults until ctx or the lease ends.
// Its other errors are those of [Mutex.Lock]; what failure leaves behind, likewise.
func (m *Mutex) TryLock(ctx context.Context) error {
	_, err := m.acquire(ctx, m.joining().ifAlone(m.queue.prefix))
	return err
}

// Lock takes the lock, waiting for all who came before. When it returns nil the
// session held the lock at the revision of [Mutex.Header], and holds it until it
// is unlocked, its key is deleted, or the lease is lost; the last is told by
// [Session.Done]. If the handle's session holds the lock already, Lock succeeds.
//
// It blocks until the turn has come. It returns earlier, within a second even if
// no server can be reached, with ctx's error when ctx ends, and with
// [ErrSessionExpired] when its key is gone or the lease is lost. Transient faults
// don't end it: lost connections, elections among the servers, compactions, lost
// answers, slow or silent members. Permanent errors of etcd do and are returned as they
// are: rpctypes.ErrLeaseNotFound says that the lease was gone before, and
// rpctypes.ErrPermissionDenied that the user may not write here. The closing of the
// client ends it with [context.Canceled].
//
// After an error, [Session.Ctx] tells whether to open a new session: if it has ended, the
// lease is gone or can't be used any more. If it lives after [ErrSessionExpired], the key
// alone was deleted, and Lock may be called again.
//
// A Lock that fails takes its key away again, in the background if that takes long:
// at the latest the key goes with the lease.
//
// It costs one call on a free lock; a wait for one holder costs two, and one more
// for everybody who leaves the line directly ahead, or on a store that is written
// to meanwhile.
func (m *Mutex) Lock(ctx context.Context) error {
	_, err := m.lock(ctx)
	return err
}

func (m *Mutex) lock(ctx context.Context) (*grant, error) {
	return m.acquire(ctx, m.joining())
}

// joining is the join of the handle's session. It is made once, because that costs 36
// allocations. It is made again if the session was a placeholder then.
func (m *Mutex) joining() joinTxn {
	m.queue.made()
	if m.made.leaseID != m.queue.session.id {
		return m.queue.joinTxn("")
	}
	return *m.made
}

// Unlock releases the lock: it deletes the key of this handle's last Lock, and no
// later one of the same session. Another handle of the session that was given the lock
// by the same key has lost it then. It returns [ErrLockReleased] if the handle holds
// no lock, and nil if the lock was lost meanwhile, which the session tells.
//
// It costs one call, repeated over transient faults until ctx ends, which is then
// its error; others are etcd's. After an error the key may or may not be deleted yet. The
// session will not be given the lock by it again, and the deletion goes on in the
// background until it is carried out or the lease is gone. Unlock can be repeated.
func (m *Mutex) Unlock(ctx context.Context) error {
	held, _ := m.state()
	if held == nil {
		return ErrLockReleased
	}
	_, err := m.release(ctx, held)
	if err == ErrSessionExpired {
		return nil
	}
	return err
}

// IsOwner returns a comparison that is true in a transaction only while this
// handle holds the lock. A write guarded by it is refused once the lock is lost,
// which no check of the client's can do as surely. If the handle holds no lock
// it is false.
func (m *Mutex) IsOwner() v3.Cmp { return m.stands() }

// Key returns the key in etcd by which the lock is held, "" if it is not. A lock is not held
// any more as soon as this process knows of the loss: the session has ended by a loss or by
// Close, a call or the watch of [Mutex.Ctx] has seen that the key is gone, or another handle of
// the session has begun to release it.
func (m *Mutex) Key() string { return m.ticket().key }

// Rev returns the create revision of the key by which the lock is held, 0 if it is
// not. It rises with every change of the owner: a store that refuses writes under a
// smaller one than it has seen is safe from former owners.
func (m *Mutex) Rev() int64 { return m.ticket().rev }

// Header returns the header of the answer that proved the ownership when the lock
// was last taken; nil before that.
func (m *Mutex) Header() *pb.ResponseHeader {
	_, header := m.state()
	return header
}

// Ctx returns a context that ends with this handle's ownership: when the lock is
// released, with the cause [ErrLockReleased], just before the deletion is sent; when
// its key is deleted by anybody, with [ErrSessionExpired], as soon as the server
// reports it; and when the session ends, with the cause of [Session.Ctx], whether a
// server can be reached or not. If the handle holds no lock, it has ended already; that
// of an orphaned session too, since nobody here knows when its lease ends.
//
// Its Err looks at the clock, so that a process which was stopped past the deadline sees the
// end at once. Contexts that are derived from it end when a timer runs, a moment later.
//
// The first call after the lock was taken reads the key once and watches it, in the
// background, until the context ends. A member that falls silent is noticed within the TTL. A key that can't be watched for a permanent reason,
// such as a missing permission, ends the context with that error.
func (m *Mutex) Ctx() context.Context { return m.context() }

// Do runs work while the lock is held: it takes the lock as [Mutex.Lock] does, calls
// work with a context that ends with ctx and with the ownership, as [Mutex.Ctx] does,
// and releases the lock when work has returned, never under it. If ctx has ended by
// then, the release goes on in the background after half a second at the latest. A release
// that is refused goes on in the background too.
//
// Its error is that of Lock, with which work was not run, or else work's, the cause of a
// loss of the lock while work ran, and the release's, joined if there are several. It
// is [ErrHeld] if this handle holds the lock already or another Do of it is under way.
// A panic of work's passes through after the release. Do panics if work is nil.
func (m *Mutex) Do(ctx context.Context, work func(context.Context) error) error {
	return m.during(ctx, func() (*grant, error) { return m.lock(ctx) }, work)
}
