package concurrency

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	v3 "go.etcd.io/etcd/client/v3"
)

var lockReleased = ended(ErrLockReleased)

// Mutex is a lock that sessions take in turn, first come, first served. A session holds it.
// Two handles of one session and one name share the lock, and each can take it while the
// other holds it. To exclude goroutines, use [LocalMutex], or give each a session.
//
// All methods may be called from any goroutine.
type Mutex struct {
	ownership
	prepared *joinTxn // see joining
}

// NewMutex returns a handle of the lock that pfx names. The keys of the lock lie under pfx
// + "/", where no other keys may lie. An empty pfx stands for "/". NewMutex makes no call.
// It panics if s is nil.
func NewMutex(s *Session, pfx string) *Mutex {
	q := newQueue(s, pfx)
	join := q.lockTxn()
	return &Mutex{ownership{queue: q, released: lockReleased}, &join}
}

// ResumeMutex returns a handle that holds the lock already. myKey and myRev are the key and the
// create revision that [Mutex.Key] and [Mutex.Rev] gave before, for instance to a process that was
// restarted and kept its lease with [WithLease]. With an empty key or a revision of zero the handle
// holds nothing.
//
// ResumeMutex makes no call, so it does not know whether the lock is still held. A transaction
// that is guarded by [Mutex.IsOwner] shows it, and so does [Mutex.Ctx], whose context ends if the
// key is gone. [Mutex.Lock] makes sure in one call. If the key stands at the head of the line, Lock
// returns with the same Rev, and otherwise waits for the lock anew. ResumeMutex panics if s is nil.
func ResumeMutex(s *Session, pfx string, myKey string, myRev int64) *Mutex {
	m := NewMutex(s, pfx)
	m.resume(myKey, myRev)
	return m
}

// TryLock takes the lock if nobody holds it or stands in line for it. Otherwise it returns
// [ErrLocked] and has changed nothing, because it has written no key. If the session of the
// handle holds the lock already, TryLock succeeds.
//
// It costs one call, which is repeated over transient faults until ctx or the lease ends.
// The other errors, and what a failure leaves behind, are those of [Mutex.Lock].
func (m *Mutex) TryLock(ctx context.Context) error {
	_, err := m.acquire(ctx, m.joining().ifAlone(0))
	return err
}

// Lock takes the lock. It waits for all who came before. When it returns nil, the session
// held the lock at the revision of [Mutex.Header]. The session holds the lock until it
// unlocks the lock, the key is deleted, or the lease is lost. [Session.Done] tells of a
// lost lease. If the session of the handle holds the lock already, Lock succeeds.
//
// Lock blocks until the turn has come. It returns earlier in two cases:
//
//   - ctx has ended. Lock returns ctx's error.
//   - The key is gone or the lease is lost. Lock returns [ErrSessionExpired].
//
// It does so within a second, even if no server can be reached. Transient faults don't end
// Lock: lost connections, elections among the servers, compactions, lost answers, slow or
// silent members. Permanent errors of etcd end it and are returned as they are.
// rpctypes.ErrLeaseNotFound says that the lease was gone before.
// rpctypes.ErrPermissionDenied says that the user may not write here. If the client is
// closed, Lock returns [context.Canceled].
//
// After an error, [Session.Ctx] tells whether to open a new session. If it has ended, the
// lease is gone or can't be used any more. If it lives after [ErrSessionExpired], only the
// key was deleted, and Lock may be called again.
//
// A Lock that fails takes its key away again. If that takes long, it goes on in the
// background. The key goes with the lease at the latest.
//
// A free lock costs one call. A wait costs one watch, which the next wait takes over, and no
// further call while at most 16 stand ahead. It costs one call more if more stand ahead, and
// one if the store is written to before the watch begins.
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
	if m.prepared.leaseID != m.queue.session.id {
		return m.queue.lockTxn()
	}
	return *m.prepared
}

// Unlock releases the lock. It deletes the key of this handle's last Lock, and no later key
// of the session. If another handle of the session was given the lock by the same key, that
// handle has lost it then. Unlock returns [ErrLockReleased] if the handle holds no lock. It
// returns nil if the lock was lost meanwhile, because the session tells of that.
//
// It costs one call, which is repeated over transient faults until ctx ends. Its errors are
// ctx's and etcd's. After an error the key may or may not be deleted yet. The session will
// not be given the lock by that key again. The deletion goes on in the background until it
// is carried out or the lease is gone. Unlock can be repeated.
func (m *Mutex) Unlock(ctx context.Context) error { return m.unlock(ctx, m.queue) }

// IsOwner returns a comparison that is true in a transaction only while this handle holds
// the lock. A write guarded by it is refused once the lock is lost. No check on the
// client's side can be as sure. The comparison is false if the handle holds no lock.
func (m *Mutex) IsOwner() v3.Cmp { return m.stands() }

// Key returns the key in etcd by which the lock is held, or "" if it is not held. The lock
// is not held any more as soon as this process knows of the loss:
//
//   - the session has ended by a loss or by Close;
//   - a call, or the watch of [Mutex.Ctx], has seen that the key is gone;
//   - another handle of the session has begun to release it.
func (m *Mutex) Key() string { return m.ticket().key }

// Rev returns the create revision of the key by which the lock is held, or 0 if it is not
// held. The number rises with every change of the owner. A store that refuses a smaller
// number than it has seen is safe from former owners.
func (m *Mutex) Rev() int64 { return m.ticket().rev }

// Header returns the header of the answer that proved the ownership when the lock was last
// taken. It is nil before that.
func (m *Mutex) Header() *pb.ResponseHeader {
	_, header := m.state()
	return header
}

// Ctx returns a context that ends with this handle's ownership:
//
//   - when the lock is released, just before the deletion is sent, with the cause
//     [ErrLockReleased];
//   - when anybody deletes its key, as soon as the server reports it, with the cause
//     [ErrKeyDeleted];
//   - when the session ends, whether a server can be reached or not, with the cause of
//     [Session.Ctx];
//   - when the key can't be watched for a permanent reason, such as a missing permission,
//     with that error.
//
// If the handle holds no lock, the context has ended already. The same holds for an
// orphaned session, because nobody here knows when its lease ends.
//
// Err of the context looks at the clock. A process that was stopped past the deadline
// therefore sees the end at once. Contexts that are derived from it end when a timer runs,
// a moment later.
//
// The first call after the lock was taken watches the line in the background until the context
// ends. It reads the key once if the store was written to since. A member that falls silent is
// noticed within the TTL.
func (m *Mutex) Ctx() context.Context { return m.context() }

// Do runs work while the lock is held. It takes the lock as [Mutex.Lock] does. It calls
// work with a context that ends with ctx and with the ownership, as [Mutex.Ctx] does. It
// releases the lock after work has returned, and never before. If ctx has ended by then, Do
// waits for the release for half a second at most. The release then goes on in the
// background, and so does a release that is refused.
//
// If Lock fails, Do returns its error, and work was not run. Otherwise the error of Do
// joins what there is of three: work's error, the cause of a loss of the lock while work
// ran, and the release's error. Do returns [ErrHeld] if this handle holds the lock already,
// or if another Do of it is under way. A panic of work passes through after the release. Do
// panics if work is nil.
func (m *Mutex) Do(ctx context.Context, work func(context.Context) error) error {
	return m.during(ctx, func() (*grant, error) { return m.lock(ctx) }, work)
}
