package concurrency

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	v3 "go.etcd.io/etcd/client/v3"
)

// LocalMutex is a lock that excludes other sessions, and the goroutines that share the handle.
// It is a [Mutex] for other sessions, in the same line, on upstream's package too. Within the
// process, the lock goes from one goroutine to the next without a call.
//
// The goroutines take the lock first come, first served. So do the sessions. When the lock is
// unlocked and another goroutine waits, the session keeps the lock for that goroutine, unless
// another session waits. While goroutines pass the lock on, etcd is asked in the background
// whether another session waits. It is asked at most a tenth of the time. If another session
// waits, the lock goes to that session with the next Unlock, and the goroutines stand in line
// again. So a session that comes to wait is served after
//
//   - eleven times the time of a short call to etcd,
//   - and the rest of the turn of a goroutine, and one whole turn.
//
// The lock is also given back when it was passed on 10,000 times without an answer of etcd's.
//
// A LocalMutex is not reentrant. A goroutine that asks for the lock while it holds the lock
// waits for itself. Two handles of one session and one name do not exclude each other.
//
// All methods may be called from any goroutine. Those that tell of the ownership speak of the
// goroutine that holds the lock now, so only that goroutine can use what they return.
type LocalMutex struct{ locals }

// NewLocalMutex returns a handle of the lock that pfx names, see [NewMutex]. The goroutines
// that are to exclude each other share it. NewLocalMutex makes no call. It panics if s is nil.
func NewLocalMutex(s *Session, pfx string) *LocalMutex {
	return &LocalMutex{locals{mutex: NewMutex(s, pfx)}}
}

// Lock takes the lock. It waits for all goroutines and all sessions that came before. When it
// returns nil, the session held the lock at the revision of [LocalMutex.Header]. The goroutine
// holds the lock until it unlocks the lock, the key is deleted, or the lease is lost.
//
// It costs no call if another goroutine passes the lock on, and what [Mutex.Lock] costs
// otherwise. It blocks and fails as Mutex.Lock does, with the same errors. A failure leaves the
// other goroutines their places, in this process and in etcd. If the key is deleted while they
// wait, those who are not told of it acquire the lock anew.
func (m *LocalMutex) Lock(ctx context.Context) error {
	_, err := m.lock(ctx)
	return err
}

// TryLock takes the lock if no goroutine and no session holds it or waits for it. Otherwise it
// returns [ErrLocked] and has changed nothing. It costs no call if a goroutine has the lock,
// and is [Mutex.TryLock] otherwise.
func (m *LocalMutex) TryLock(ctx context.Context) error {
	need(ctx)
	m.queue().lease()
	if err := ctx.Err(); err != nil {
		return err
	}
	t := &turn{}
	m.mu.Lock()
	free := m.now == nil
	if free {
		m.now = t
	}
	m.mu.Unlock()
	if !free {
		return ErrLocked
	}
	return m.acquire(t, func() (*grant, error) {
		return m.mutex.acquire(ctx, m.mutex.joining().ifAlone(0))
	})
}

// Unlock ends the ownership of the goroutine that holds the lock. It passes the lock on to the
// next goroutine, without a call, or gives it back as [Mutex.Unlock] does, in one call. It
// returns [ErrLockReleased] if no goroutine holds the lock, and nil if the lock was lost.
//
// Other errors are ctx's and etcd's. After an error the goroutine does not hold the lock, and
// the next goroutine may. So an Unlock is not to be repeated. The deletion of the key goes on in
// the background, as with Mutex.Unlock.
func (m *LocalMutex) Unlock(ctx context.Context) error {
	need(ctx)
	m.made()
	t, h := m.finish(nil)
	switch {
	case t == nil:
		return ErrLockReleased
	case h == nil:
		return nil
	}
	defer m.leave(t)
	_, err := m.mutex.release(ctx, h.grant)
	if err == ErrSessionExpired {
		return nil
	}
	return err
}

// Do runs work while the goroutine holds the lock, as [Mutex.Do] does. Another Do of the handle
// waits. The context of work ends with ctx and with the ownership, and before the lock is
// passed on.
func (m *LocalMutex) Do(ctx context.Context, work func(context.Context) error) error {
	if work == nil {
		panic("concurrency: nil function")
	}
	t, err := m.lock(ctx)
	if err != nil {
		return err
	}
	giveBack := func(loss error) error {
		t, h := m.finish(t)
		if h == nil {
			return nil // passed on, or unlocked by work
		}
		defer m.leave(t)
		return m.mutex.giveBack(ctx, h.grant, loss)
	}
	return whileOwned(ctx, m.contextOf(t), lockReleased.cause(), giveBack, work)
}

// Ctx returns a context that ends with the ownership of the goroutine that holds the lock, as
// [Mutex.Ctx] does. It ends when the lock is passed on to another goroutine, too, with the
// cause [ErrLockReleased].
//
// The first call after the session has taken the lock costs what the first call of Mutex.Ctx
// costs. Those who are passed the lock share that watch.
func (m *LocalMutex) Ctx() context.Context {
	m.made()
	m.mu.Lock()
	t := m.now
	m.mu.Unlock()
	return m.contextOf(t)
}

// IsOwner returns a comparison that is true in a transaction only while the session holds the
// lock by which the goroutine holds it, see [Mutex.IsOwner]. It does not tell one goroutine of
// this process from another. The comparison is false if no goroutine holds the lock.
func (m *LocalMutex) IsOwner() v3.Cmp {
	if !m.held() {
		return m.queue().never()
	}
	return m.mutex.IsOwner()
}

// Key returns the key in etcd by which the lock is held, or "" if it is not held, see
// [Mutex.Key].
func (m *LocalMutex) Key() string {
	if !m.held() {
		return ""
	}
	return m.mutex.Key()
}

// Rev returns the create revision of the key by which the lock is held, or 0 if it is not
// held. The number rises with every change of the owning session. The goroutines of a session
// that pass the lock on have the same number, and differ in [LocalMutex.Seq].
func (m *LocalMutex) Rev() int64 {
	if !m.held() {
		return 0
	}
	return m.mutex.Rev()
}

// Seq returns how often goroutines have passed the lock on since the session has taken it, or 0
// if it is not held. The pair of Rev and Seq rises with every goroutine that holds the lock. A
// store that refuses a smaller pair than it has seen is safe from former owners. It compares
// Rev first, and Seq if Rev is the same.
func (m *LocalMutex) Seq() int64 {
	if m.Rev() == 0 {
		return 0
	}
	return m.seq()
}

// Header returns the header of the answer that proved the ownership when the session last took
// the lock. It is nil before that.
func (m *LocalMutex) Header() *pb.ResponseHeader { return m.mutex.Header() }
