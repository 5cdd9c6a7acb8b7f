package concurrency_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// panicOf is the error that call panics with.
func panicOf(tb testing.TB, call func()) (err error) {
	tb.Helper()
	defer func() {
		tb.Helper()
		var ok bool
		err, ok = recover().(error)
		require.True(tb, ok, "it must panic, with an error")
		require.Regexp(tb, `^concurrency: `, err.Error())
	}()
	call()
	return nil
}

func TestLockerExcludesOtherSessions(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	lock := concurrency.NewLocker(l.session, l.name)
	held := l.held(t)
	call := etcdtest.Go(func() error { lock.Lock(); return nil })
	l.stand(t, 2)
	require.True(t, call.Running())
	require.NoError(t, held.Unlock(ctx))
	require.NoError(t, call.Wait(t))
	require.Equal(t, concurrency.ErrLocked, held.TryLock(ctx))
	lock.Unlock()
	require.NoError(t, held.TryLock(ctx))
}

func TestLockerExcludesTheGoroutinesThatShareIt(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	mine := concurrency.NewLocker(l.session, l.name)
	theirs := concurrency.NewLocker(session(t, l.outside), l.name)
	inside, passed := 0, 0 // guarded by the lock alone: the race detector looks on
	var wg sync.WaitGroup
	for _, lock := range []sync.Locker{mine, theirs} {
		for range 4 {
			wg.Go(func() {
				for range 5 {
					lock.Lock()
					inside++
					assert.Equal(t, 1, inside)
					passed++
					inside--
					lock.Unlock()
				}
			})
		}
	}
	wg.Wait()
	require.Equal(t, 40, passed)
	l.stand(t, 0)
}

func TestLockersOfOneSessionDoNotExcludeEachOther(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	one, two := concurrency.NewLocker(l.session, l.name), concurrency.NewLocker(l.session, l.name)
	one.Lock()
	two.Lock()
	one.Unlock()
	two.Unlock()
	l.stand(t, 0)
}

func TestLockerLockPanicsWhenTheSessionHasExpiredAndLeavesItUnlocked(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	lock := concurrency.NewLocker(l.session, l.name)
	l.held(t)
	call := etcdtest.Go(func() error { return panicOf(t, lock.Lock) })
	l.stand(t, 2)
	require.NoError(t, l.session.Close())
	require.ErrorIs(t, call.Wait(t), concurrency.ErrSessionExpired)
	require.Error(t, panicOf(t, lock.Lock), "and does not block")
}

func TestLockerPanicsWhenTheClientIsClosed(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	revokedAtEnd(t, l.outside, l.session.Lease())
	lock := concurrency.NewLocker(l.session, l.name)
	lock.Lock()
	l.client.Close()
	require.ErrorIs(t, panicOf(t, lock.Unlock), context.Canceled)
	require.ErrorIs(t, panicOf(t, lock.Lock), context.Canceled)
}

func TestLockerUnlockPanicsWhenItIsNotLocked(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	lock := concurrency.NewLocker(l.session, l.name)
	require.ErrorIs(t, panicOf(t, lock.Unlock), concurrency.ErrLockReleased)
	lockAndUnlock(lock)
	require.ErrorIs(t, panicOf(t, lock.Unlock), concurrency.ErrLockReleased)
	lock.Lock()
}

func TestLockerUnlockThatFailedLeavesItUnlocked(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	lock := concurrency.NewLocker(l.session, l.name)
	lock.Lock()
	l.faults.Refuse(fault.Txn, 1, codes.PermissionDenied, "etcdserver: permission denied")
	require.Error(t, panicOf(t, lock.Unlock))
	lockAndUnlock(lock)
	l.stand(t, 0)
}

func TestLockerThatIsLostIsToldByDoneAlone(t *testing.T) {
	t.Parallel()
	l := newLine(t, concurrency.WithTTL(6))
	lock := concurrency.NewLocker(l.session, l.name)
	lock.Lock()
	revoke(t, l.outside, l.session)
	ended(t, l.session.Done(), "the session")
	lock.Unlock()
}

func TestNewLockerPanicsIfTheSessionIsNil(t *testing.T) {
	t.Parallel()
	require.PanicsWithValue(t, "concurrency: nil session", func() {
		concurrency.NewLocker(nil, "name")
	})
}

func TestLockerOnTheZeroSessionCannotBeUsed(t *testing.T) {
	t.Parallel()
	lock := concurrency.NewLocker(&concurrency.Session{}, "name")
	requireOurPanic(t, lock.Lock)
	requireOurPanic(t, lock.Lock) // and does not block
	requireOurPanic(t, lock.Unlock)
}

// Who has the lock makes a call under it: time for others to come in, if they could.
func TestLockerExcludesGoroutines(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	lock := concurrency.NewLocker(l.session, l.name)
	var inside atomic.Int32
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 3 {
				lock.Lock()
				assert.EqualValues(t, 1, inside.Add(1))
				_, err := l.outside.Get(t.Context(), l.name)
				assert.NoError(t, err)
				inside.Add(-1)
				lock.Unlock()
			}
		})
	}
	wg.Wait()
}

func lockAndUnlock(lock sync.Locker) {
	lock.Lock()
	defer lock.Unlock()
}
