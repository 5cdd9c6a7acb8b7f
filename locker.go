package concurrency

import (
	"fmt"
	"sync"
)

// NewLocker returns the lock that pfx names as a [sync.Locker]: it excludes other
// sessions, and the goroutines that share this Locker. Two Lockers of one session
// don't exclude each other.
//
// A [sync.Locker] has no errors to return. Its methods panic with one, whose text
// begins with "concurrency: " and which wraps what [Mutex.Lock] or [Mutex.Unlock]
// returned: Lock when the session has expired or the client is closed; Unlock when
// the lock is not locked or the client is closed. A panic leaves the Locker
// unlocked for other goroutines. A lock that is lost while it is locked is told
// by [Session.Done] alone. NewLocker panics if s is nil.
func NewLocker(s *Session, pfx string) sync.Locker { return &locker{mutex: NewMutex(s, pfx)} }

type locker struct {
	local sync.Mutex // held as long as the lock is, and before it
	mutex *Mutex
}

func (l *locker) Lock() {
	l.local.Lock()
	if err := l.mutex.Lock(l.mutex.queue.session.client.Ctx()); err != nil {
		l.local.Unlock()
		panic(fmt.Errorf("concurrency: Locker.Lock: %w", err))
	}
}

func (l *locker) Unlock() {
	err := l.mutex.Unlock(l.mutex.queue.session.client.Ctx())
	if err != ErrLockReleased { // else it is not ours to unlock
		l.local.Unlock()
	}
	if err != nil {
		panic(fmt.Errorf("concurrency: Locker.Unlock: %w", err))
	}
}
