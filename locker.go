package concurrency

import (
	"fmt"
	"sync"
)

// NewLocker returns the lock that pfx names as a [sync.Locker]. It is a [LocalMutex]: it
// excludes other sessions, and the goroutines that share this Locker, which pass the lock on
// without a call. Two Lockers of one session don't exclude each other.
//
// A [sync.Locker] has no errors to return. Its methods panic with an error whose text
// begins with "concurrency: ". It wraps what [LocalMutex.Lock] or [LocalMutex.Unlock] returned.
// Lock panics when the session has expired or the client is closed. Unlock panics when the lock
// is not locked or the client is closed. A panic leaves the Locker unlocked for other
// goroutines. If the lock is lost while it is locked, only [Session.Done] tells. NewLocker
// panics if s is nil.
func NewLocker(s *Session, pfx string) sync.Locker { return locker{NewLocalMutex(s, pfx)} }

type locker struct{ local *LocalMutex }

// Lock takes the lock; see NewLocker.
func (l locker) Lock() {
	if err := l.local.Lock(l.local.queue().lease().client.Ctx()); err != nil {
		panic(fmt.Errorf("concurrency: Locker.Lock: %w", err))
	}
}

// Unlock releases the lock. If that fails, waiting goroutines of this process go on all the same.
func (l locker) Unlock() {
	if err := l.local.Unlock(l.local.queue().lease().client.Ctx()); err != nil {
		panic(fmt.Errorf("concurrency: Locker.Unlock: %w", err))
	}
}
