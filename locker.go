package concurrency

import (
	"fmt"
	"sync"
)

// NewLocker returns the lock that pfx names as a [sync.Locker]. It excludes other sessions,
// and the goroutines that share this Locker. Two Lockers of one session don't exclude each
// other.
//
// A [sync.Locker] has no errors to return. Its methods panic with an error whose text
// begins with "concurrency: ". It wraps what [Mutex.Lock] or [Mutex.Unlock] returned. Lock
// panics when the session has expired or the client is closed. Unlock panics when the lock
// is not locked or the client is closed. A panic leaves the Locker unlocked for other
// goroutines. If the lock is lost while it is locked, only [Session.Done] tells. NewLocker
// panics if s is nil.
func NewLocker(s *Session, pfx string) sync.Locker { return &locker{mutex: NewMutex(s, pfx)} }

type locker struct {
	local sync.Mutex // held as long as the lock is, and before it
	mutex *Mutex

	mu     sync.Mutex // guards locked; never held across a call
	locked bool       // local is held by who has the lock
}

// Lock takes the lock; see NewLocker.
func (l *locker) Lock() {
	ctx := l.mutex.queue.lease().client.Ctx()
	l.local.Lock()
	if err := l.mutex.Lock(ctx); err != nil {
		l.local.Unlock()
		panic(fmt.Errorf("concurrency: Locker.Lock: %w", err))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.locked = true
}

// Unlock releases the lock, and the goroutines of this process even if that fails.
func (l *locker) Unlock() {
	err := l.mutex.Unlock(l.mutex.queue.lease().client.Ctx())
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.locked {
		l.locked = false
		l.local.Unlock()
	}
	if err != nil {
		panic(fmt.Errorf("concurrency: Locker.Unlock: %w", err))
	}
}
