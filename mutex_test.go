package concurrency_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

func TestNewMutex(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	t.Run("its keys lie under the name and a slash, in one way", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		require.NoError(t, l.mutex.Lock(ctx))
		require.Equal(t, fmt.Sprintf("%s/%x", l.name, l.session.Lease()), l.mutex.Key())
		require.Equal(t, l.mutex.Key(), string(etcdtest.Keys(t, l.outside, l.name+"/")[0].Key))
	})
	t.Run("an empty name stands for a slash", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		m := concurrency.NewMutex(l.session, "")
		require.NoError(t, m.Lock(ctx))
		require.Equal(t, fmt.Sprintf("/%x", l.session.Lease()), m.Key())
		require.NoError(t, m.Unlock(ctx))
		require.Empty(t, etcdtest.Keys(t, l.outside, "/"))
	})
	t.Run("makes no call", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.faults.Reset()
		l.handle()
		require.Equal(t, "no calls", l.faults.String())
	})
	t.Run("panics if s is nil", func(t *testing.T) {
		t.Parallel()
		require.PanicsWithValue(t, "concurrency: nil session", func() {
			concurrency.NewMutex(nil, "name")
		})
	})
	t.Run("on the zero session cannot be used", func(t *testing.T) {
		t.Parallel()
		m := concurrency.NewMutex(&concurrency.Session{}, "name")
		require.Empty(t, m.Key())
		require.Nil(t, m.Header())
		require.Equal(t, concurrency.ErrLockReleased, m.Unlock(ctx))
		for _, use := range []func(context.Context) error{m.Lock, m.TryLock} {
			requireOurPanic(t, func() { use(ctx) })
		}
	})
}

func TestMutexIsTakenInTurnFirstComeFirstServed(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	require.NoError(t, l.mutex.Lock(ctx))
	var waiting []*concurrency.Mutex
	var calls []*etcdtest.Call
	for i := range 3 {
		m := l.rival(t)
		waiting = append(waiting, m)
		calls = append(calls, etcdtest.Go(func() error { return m.Lock(ctx) }))
		l.stand(t, 2+i)
	}
	before := l.mutex
	for i, m := range waiting {
		for _, call := range calls[i:] {
			require.True(t, call.Running())
		}
		require.NoError(t, before.Unlock(ctx))
		require.NoError(t, calls[i].Wait(t))
		before = m
	}
}

func TestMutexIsSharedByTwoHandlesOfOneSession(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	second := l.handle()
	require.NoError(t, l.mutex.Lock(ctx))
	require.NoError(t, second.Lock(ctx))
	require.Equal(t, l.mutex.Key(), second.Key())
	l.stand(t, 1)
	require.NoError(t, l.mutex.Unlock(ctx))
	require.False(t, l.owns(t, second), "shared means released for both")
	require.NoError(t, second.Unlock(ctx))
}

func TestMutexMethodsFromAnyGoroutine(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	rival := l.rival(t)
	var wg sync.WaitGroup
	for _, m := range []*concurrency.Mutex{l.mutex, rival} {
		for range 3 {
			wg.Go(func() {
				for range 5 {
					if assert.NoError(t, m.Lock(ctx)) {
						m.IsOwner()
						m.Key()
						m.Header()
						m.Unlock(ctx)
					}
				}
			})
		}
	}
	wg.Wait()
	l.stand(t, 0)
}

func TestMutexHasOneWinnerInALineOfMany(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	inside, passed := 0, 0 // guarded by the lock alone: the race detector looks on
	var wg sync.WaitGroup
	for range 6 {
		m := l.rival(t)
		wg.Go(func() {
			for range 5 {
				if !assert.NoError(t, m.Lock(ctx)) {
					return
				}
				inside++
				assert.Equal(t, 1, inside)
				passed++
				inside--
				assert.NoError(t, m.Unlock(ctx))
			}
		})
	}
	wg.Wait()
	require.Equal(t, 30, passed)
}

func TestTryLockTakesAFreeLockInOneCall(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.faults.Reset()
	require.NoError(t, l.mutex.TryLock(t.Context()))
	require.Equal(t, "Txn 1", l.faults.String())
	require.True(t, l.owns(t, l.mutex))
}

func TestTryLockReturnsErrLockedInOneCallHavingChangedNothing(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	// The store's revision takes a server that nobody else writes to.
	c := etcdtest.New(t).Client(t)
	f := counted(t, c)
	held := concurrency.NewMutex(session(t, c), "lock")
	require.NoError(t, held.Lock(ctx))
	m := concurrency.NewMutex(session(t, c), "lock")
	f.Reset()
	require.Equal(t, concurrency.ErrLocked, m.TryLock(ctx))
	require.Equal(t, "Txn 1", f.String())
	now, err := c.Get(ctx, "lock")
	require.NoError(t, err)
	require.Equal(t, held.Header().Revision, now.Header.Revision)
	require.Equal(t, concurrency.ErrLockReleased, m.Unlock(ctx))
	require.Empty(t, m.Key())
	require.Nil(t, m.Header())
}

func TestTryLockReturnsErrLockedIfOthersStandInLine(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	held, behind := l.held(t), l.rival(t)
	call := etcdtest.Go(func() error { return behind.Lock(ctx) })
	l.stand(t, 2)
	require.Equal(t, concurrency.ErrLocked, l.mutex.TryLock(ctx))
	require.NoError(t, held.Unlock(ctx))
	require.NoError(t, call.Wait(t))
}

func TestTryLockSucceedsIfTheSessionHoldsTheLock(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	require.NoError(t, l.mutex.Lock(ctx))
	require.NoError(t, l.mutex.TryLock(ctx))
	require.NoError(t, l.handle().TryLock(ctx))
	l.stand(t, 1)
}

func TestTryLockOfManyAtOnceIsWonByOne(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	var calls []*etcdtest.Call
	for range 6 {
		m := l.rival(t)
		calls = append(calls, etcdtest.Go(func() error { return m.TryLock(t.Context()) }))
	}
	won := 0
	for _, call := range calls {
		if err := call.Wait(t); err == nil {
			won++
		} else {
			require.Equal(t, concurrency.ErrLocked, err)
		}
	}
	require.Equal(t, 1, won)
	l.stand(t, 1)
}

func TestTryLockLeavesASiblingsWaitAlone(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	held := l.held(t)
	call := l.waiting(t, ctx, l.mutex, 2)
	require.Equal(t, concurrency.ErrLocked, l.handle().TryLock(ctx))
	l.stand(t, 2)
	require.NoError(t, held.Unlock(ctx))
	require.NoError(t, call.Wait(t))
}

func TestTryLockRepeatsOverTransientFaultsALostAnswerToo(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.faults.LoseAnswer(fault.Txn, 1, nil)
	l.faults.Refuse(fault.Txn, 2, codes.Unavailable, "etcdserver: leader changed")
	require.NoError(t, l.mutex.TryLock(t.Context()))
	require.True(t, l.owns(t, l.mutex))
}

func TestTryLockEndsWithItsContextAndLeavesNoKey(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.givesUp(t, 1, l.mutex.TryLock)
	l.stand(t, 0)
}

func TestTryLockNoticesALoss(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	require.NoError(t, l.mutex.Lock(ctx))
	l.delete(t, l.mutex.Key())
	l.held(t)
	require.Equal(t, concurrency.ErrLocked, l.mutex.TryLock(ctx))
	require.Equal(t, concurrency.ErrLockReleased, l.mutex.Unlock(ctx))
}

func TestLockOfAFreeLockIsOneCall(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.faults.Reset()
	require.NoError(t, l.mutex.Lock(t.Context()))
	require.Equal(t, "Txn 1", l.faults.String())
}

// A wait costs a watch, and no call more.
func TestLockBehindOneHolderOnAQuietStore(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	// A server of its own, where nobody else writes.
	c := etcdtest.New(t).Client(t)
	outside := etcdtest.Dial(t, c.Endpoints()...)
	f := counted(t, c)
	held := concurrency.NewMutex(session(t, outside), "lock")
	m := concurrency.NewMutex(session(t, c), "lock")
	require.NoError(t, held.Lock(ctx))
	f.Reset()
	begun := watchBegins(f, 1)
	call := etcdtest.Go(func() error { return m.Lock(ctx) })
	ended(t, begun, "the watch")
	require.NoError(t, held.Unlock(ctx))
	require.NoError(t, call.Wait(t))
	require.Equal(t, "Txn 1, Watch 1", f.String())
}

// A wait costs one more call on a store that is written to meanwhile.
func TestLockBehindOneHolderOnABusyStore(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	held := l.held(t)
	l.faults.Reset()
	l.faults.Before(fault.Watch, 1, func() {
		_, err := l.outside.Put(ctx, "elsewhere/"+l.name, "")
		assert.NoError(t, err)
	})
	looked := make(chan struct{})
	l.faults.After(fault.Get, 1, func(error) { close(looked) })
	call := etcdtest.Go(func() error { return l.mutex.Lock(ctx) })
	ended(t, looked, "looked again")
	require.NoError(t, held.Unlock(ctx))
	require.NoError(t, call.Wait(t))
	require.Equal(t, 2, l.faults.KV())
}

func TestLockHoldsAtTheRevisionOfItsHeader(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	held := l.held(t)
	call := l.waiting(t, ctx, l.mutex, 2)
	require.NoError(t, held.Unlock(ctx))
	require.NoError(t, call.Wait(t))
	header := l.mutex.Header()
	resp, err := l.outside.Get(ctx, l.name+"/",
		append(clientv3.WithFirstCreate(), clientv3.WithRev(header.Revision))...)
	require.NoError(t, err)
	require.Equal(t, l.mutex.Key(), string(resp.Kvs[0].Key))
	require.Greater(t, header.Revision, held.Header().Revision)
}

func TestLockOfASessionThatHoldsTheLock(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	require.NoError(t, l.mutex.Lock(ctx))
	require.NoError(t, l.mutex.Lock(ctx))
	behind := l.rival(t)
	call := etcdtest.Go(func() error { return behind.Lock(ctx) })
	l.stand(t, 2)
	l.faults.Reset()
	require.NoError(t, l.handle().Lock(ctx))
	require.Equal(t, "Txn 1", l.calls(), "in one call")
	require.NoError(t, l.mutex.Unlock(ctx))
	require.NoError(t, call.Wait(t))
}

func TestLockHoldsUntilItsKeyIsDeleted(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	require.NoError(t, l.mutex.Lock(ctx))
	l.delete(t, l.mutex.Key())
	l.held(t)
	require.False(t, l.owns(t, l.mutex))
	require.NoError(t, l.mutex.Unlock(ctx))
	l.stand(t, 1)
}

// The key is gone when Lock returns.
func TestLockEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	l.held(t)
	for cause, give := range map[error]func() (context.Context, context.CancelFunc){
		context.Canceled: func() (context.Context, context.CancelFunc) { return context.WithCancel(ctx) },
		context.DeadlineExceeded: func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, time.Second)
		},
	} {
		giveUp, cancel := give()
		call := l.waiting(t, giveUp, l.mutex, 2)
		if cause == context.Canceled {
			cancel()
		}
		require.Equal(t, cause, call.Wait(t))
		require.Len(t, etcdtest.Keys(t, l.outside, l.name+"/"), 1, "at once, on a server that answers")
		cancel()
	}
}

func TestLockWithAnEndedContextSendsNothing(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.faults.Reset()
	require.Equal(t, context.Canceled, l.mutex.Lock(cancelled()))
	require.Equal(t, context.Canceled, l.mutex.TryLock(cancelled()))
	require.Equal(t, "no calls", l.faults.String())
}

// That is the caller's bug, and harms nobody.
func TestLockWithANilContext(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	held := l.held(t)
	for _, call := range []func(context.Context) error{l.mutex.Lock, l.mutex.TryLock} {
		requireOurPanic(t, func() { call(nil) })
	}
	giveUp, cancel := context.WithCancel(ctx)
	call := l.waiting(t, giveUp, l.mutex, 2)
	cancel()
	require.Equal(t, context.Canceled, call.Wait(t))
	l.stand(t, 1)
	require.NoError(t, held.Unlock(ctx))
	require.NoError(t, l.mutex.Lock(ctx))
	//lint:ignore SA1012 the caller's bug is what is tested
	requireOurPanic(t, func() { l.mutex.Unlock(nil) })
}

func TestLockEndsWithinASecondThoughNoServerAnswers(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	name := prefix(t)
	p, c := proxied(t, server(t))
	outside := client(t)
	f := counted(t, c)
	s := session(t, c)
	require.NoError(t, concurrency.NewMutex(session(t, outside), name).Lock(ctx))
	for _, stall := range []string{"while it joins", "while it waits"} {
		giveUp, cancel := context.WithCancel(ctx)
		if stall == "while it joins" {
			p.Stall()
		}
		joined := f.Count(fault.Txn)
		call := etcdtest.Go(func() error { return concurrency.NewMutex(s, name).Lock(giveUp) })
		etcdtest.Eventually(t, func() bool { return f.Count(fault.Txn) > joined }, "the join")
		if stall == "while it waits" {
			etcdtest.WaitKeys(t, outside, name+"/", 2)
			p.Stall()
		}
		cancel()
		require.Equal(t, context.Canceled, within(t, time.Second, func() error { return call.Wait(t) }), stall)
		p.Resume()
		etcdtest.WaitKeys(t, outside, name+"/", 1)
	}
}

func TestLockWhoseKeyIsGone(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.held(t)
	call := l.waiting(t, t.Context(), l.mutex, 2)
	l.delete(t, fmt.Sprintf("%s/%x", l.name, l.session.Lease()))
	require.Equal(t, concurrency.ErrSessionExpired, call.Wait(t))
	require.NoError(t, l.session.Ctx().Err(), "the session is well")
	l.stand(t, 1)
}

func TestLockWhoseLeaseIsLost(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	name := prefix(t)
	p, c := proxied(t, server(t))
	s := session(t, c, concurrency.WithTTL(1))
	outside := client(t)
	require.NoError(t, concurrency.NewMutex(session(t, outside), name).Lock(ctx))
	call := etcdtest.Go(func() error { return concurrency.NewMutex(s, name).Lock(ctx) })
	etcdtest.WaitKeys(t, outside, name+"/", 2)
	p.Stall()
	require.Equal(t, concurrency.ErrSessionExpired, call.Wait(t))
	ended(t, s.Done(), "the session")
}

func TestLockWhoseLeaseIsFoundLostWhenTheTurnComes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	l.faults.After(fault.Txn, 1, func(error) {
		_, err := l.outside.Revoke(ctx, l.session.Lease())
		assert.NoError(t, err)
		// Another call hears of it first.
		assert.Error(t, concurrency.NewMutex(l.session, l.name+"-other").Lock(ctx))
		assert.Error(t, l.session.Ctx().Err())
	})
	require.Equal(t, concurrency.ErrSessionExpired, l.mutex.Lock(ctx))
}

func TestLockOnALeaseThatIsGone(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	revoke(t, l.outside, l.session)
	require.Equal(t, rpctypes.ErrLeaseNotFound, l.mutex.Lock(ctx))
	require.Equal(t, rpctypes.ErrLeaseNotFound, l.mutex.TryLock(ctx))
	ended(t, l.session.Done(), "the session has heard of it")
	require.Equal(t, rpctypes.ErrLeaseNotFound, l.mutex.Lock(ctx))
	l.stand(t, 0)
}

func TestLockEndsWithItsClient(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	revokedAtEnd(t, l.outside, l.session.Lease())
	l.held(t)
	call := l.waiting(t, ctx, l.mutex, 2)
	l.client.Close()
	require.Equal(t, context.Canceled, within(t, time.Second, func() error { return call.Wait(t) }))
	require.Equal(t, concurrency.ErrClientClosed, context.Cause(l.session.Ctx()))
	for _, again := range []func(context.Context) error{l.mutex.Lock, l.mutex.TryLock} {
		require.Equal(t, context.Canceled, within(t, time.Second, func() error { return again(ctx) }))
	}
}

func TestLockOfAnOrphanEndsWithItsClient(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	revokedAtEnd(t, l.outside, l.session.Lease())
	l.held(t)
	l.session.Orphan()
	call := l.waiting(t, t.Context(), l.mutex, 2)
	l.client.Close()
	require.Equal(t, context.Canceled, within(t, time.Second, func() error { return call.Wait(t) }))
}

func TestLockThatLeavesTheMiddleLetsNobodyPast(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	held, last := l.held(t), l.rival(t)
	giveUp, cancel := context.WithCancel(ctx)
	middle := l.waiting(t, giveUp, l.mutex, 2)
	call := etcdtest.Go(func() error { return last.Lock(ctx) })
	l.stand(t, 3)
	cancel()
	require.Equal(t, context.Canceled, middle.Wait(t))
	l.stand(t, 2)
	require.Equal(t, concurrency.ErrLocked, l.mutex.TryLock(ctx))
	require.True(t, call.Running())
	require.NoError(t, held.Unlock(ctx))
	require.NoError(t, call.Wait(t))
}

func TestUnlockDeletesTheKeyInOneCall(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	require.NoError(t, l.mutex.Lock(ctx))
	l.faults.Reset()
	require.NoError(t, l.mutex.Unlock(ctx))
	require.Equal(t, "Txn 1", l.faults.String())
	l.stand(t, 0)
}

// The session has drawn a later key of the same name.
func TestUnlockDeletesNoLaterKey(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	require.NoError(t, l.mutex.Lock(ctx))
	l.faults.LoseAnswer(fault.Txn, 1, rpctypes.ErrGRPCNoSpace) // carried out, and not repeated
	require.Equal(t, rpctypes.ErrNoSpace, l.mutex.Unlock(ctx))
	later := l.handle()
	require.NoError(t, later.Lock(ctx))
	require.NoError(t, l.mutex.Unlock(ctx))
	require.True(t, l.owns(t, later))
}

func TestUnlockOfWhatIsNotHeld(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	require.Equal(t, concurrency.ErrLockReleased, l.mutex.Unlock(ctx))
	require.NoError(t, l.mutex.Lock(ctx))
	require.Equal(t, concurrency.ErrLockReleased, l.handle().Unlock(ctx))
	require.NoError(t, l.mutex.Unlock(ctx))
	require.Equal(t, concurrency.ErrLockReleased, l.mutex.Unlock(ctx))
}

func TestUnlockOfWhatWasLost(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for how, lose := range map[string]func(l *line){
		"deleted": func(l *line) { l.delete(t, l.mutex.Key()) },
		"revoked": func(l *line) { revoke(t, l.outside, l.session) },
		"closed":  func(l *line) { require.NoError(t, l.session.Close()) },
	} {
		l := newLine(t)
		require.NoError(t, l.mutex.Lock(ctx))
		lose(l)
		rival := l.held(t)
		require.NoError(t, l.mutex.Unlock(ctx), how)
		require.True(t, l.owns(t, rival), how)
	}
}

func TestUnlockRepeatsOverTransientFaults(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	require.NoError(t, l.mutex.Lock(ctx))
	l.faults.Refuse(fault.Txn, 1, codes.Unavailable, "etcdserver: leader changed")
	l.faults.LoseAnswer(fault.Txn, 2, nil)
	require.NoError(t, l.mutex.Unlock(ctx))
	l.stand(t, 0)
}

func TestUnlockThatWasGivenUpCanBeRepeated(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	require.NoError(t, l.mutex.Lock(ctx))
	require.Equal(t, context.Canceled, l.mutex.Unlock(cancelled()))
	l.stand(t, 0) // the deletion went on
	require.NoError(t, l.mutex.Unlock(ctx))
	require.Equal(t, concurrency.ErrLockReleased, l.mutex.Unlock(ctx))

	require.NoError(t, l.mutex.Lock(ctx))
	removal := l.faults.Hold(fault.Txn, 1)
	short, cancel := context.WithCancel(ctx)
	call := etcdtest.Go(func() error { return l.mutex.Unlock(short) })
	ended(t, removal.Reached(), "the release")
	l.stand(t, 1)
	cancel()
	require.Equal(t, context.Canceled, call.Wait(t))
	l.stand(t, 0)
	require.NoError(t, l.mutex.Unlock(ctx))
}

func TestUnlockEndsWithinASecondThoughTheServerIsSilent(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	p, c := proxied(t, server(t))
	m := concurrency.NewMutex(session(t, c, concurrency.WithTTL(20)), prefix(t))
	require.NoError(t, m.Lock(ctx))
	p.Stall()
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	require.Equal(t, context.DeadlineExceeded, within(t, time.Second, func() error { return m.Unlock(short) }))
	p.Resume()
	require.NoError(t, m.Unlock(ctx))
}

// After an error the session is not given the lock by this key again.
func TestUnlockThatFailedGivesTheKeyToNobody(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	require.NoError(t, l.mutex.Lock(ctx))
	old := l.mutex.IsOwner()
	l.faults.Refuse(fault.Txn, 1, codes.PermissionDenied, "etcdserver: permission denied")
	l.faults.Hold(fault.Txn, 2) // that of the clean-up
	require.Equal(t, rpctypes.ErrPermissionDenied, l.mutex.Unlock(ctx))
	l.stand(t, 1)
	require.NoError(t, l.mutex.Lock(ctx))
	require.True(t, l.owns(t, l.mutex))
	resp, err := l.outside.Txn(ctx).If(old).Commit()
	require.NoError(t, err)
	require.False(t, resp.Succeeded)
	require.NoError(t, l.mutex.Unlock(ctx))
	l.stand(t, 0)
}

func TestUnlockWithAnEndedContextGivesTheKeyToNobody(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	require.NoError(t, l.mutex.Lock(ctx))
	rev := l.mutex.Rev()
	require.Equal(t, context.Canceled, l.mutex.Unlock(cancelled()))
	require.NoError(t, l.mutex.Lock(ctx))
	require.Greater(t, l.mutex.Rev(), rev)
	require.NoError(t, l.mutex.Ctx().Err())
	require.NoError(t, l.mutex.Unlock(ctx))
	l.stand(t, 0)
}

func TestUnlockOfAKeyThatCannotBeDeletedGivesItToNobody(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	require.NoError(t, l.mutex.Lock(ctx))
	const denied = "etcdserver: permission denied"
	l.faults.Refuse(fault.Txn, 1, codes.PermissionDenied, denied)
	cleaning := l.faults.Hold(fault.Txn, 2)
	require.Error(t, l.mutex.Unlock(ctx))
	ended(t, cleaning.Reached(), "the clean-up")
	l.faults.Before(fault.Txn, 1, func() { l.faults.Refuse(fault.Txn, 1, codes.PermissionDenied, denied) })
	require.ErrorIs(t, l.handle().Lock(ctx), rpctypes.ErrPermissionDenied)
	require.NoError(t, l.mutex.Unlock(ctx))
	l.stand(t, 0)
}

func TestUnlockOnAClosedClient(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	revokedAtEnd(t, l.outside, l.session.Lease())
	require.NoError(t, l.mutex.Lock(ctx))
	l.client.Close()
	require.Equal(t, context.Canceled, within(t, time.Second, func() error { return l.mutex.Unlock(ctx) }))
}

// The resumed handle is on a session of another client, as in another process.
func TestResumeMutex(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	// resumed is a lock that is held by a process that has ended, and its lease in another one.
	resumed := func(t *testing.T) (l *line, f *fault.Faults, s *concurrency.Session, key string, rev int64) {
		l = newLine(t)
		f = counted(t, l.outside)
		require.NoError(t, l.mutex.Lock(ctx))
		key, rev = l.mutex.Key(), l.mutex.Rev()
		l.session.Orphan()
		s = session(t, l.outside, concurrency.WithLease(l.session.Lease()))
		return l, f, s, key, rev
	}
	t.Run("holds without a call, and can be given back", func(t *testing.T) {
		t.Parallel()
		l, f, s, key, rev := resumed(t)
		m := concurrency.ResumeMutex(s, l.name, key, rev)
		require.Equal(t, key, m.Key())
		require.Equal(t, rev, m.Rev())
		require.Zero(t, f.KV())
		require.True(t, l.owns(t, m))
		require.NoError(t, m.Ctx().Err())
		require.Equal(t, concurrency.ErrHeld, m.Do(ctx, none(t)))
		rival := concurrency.NewMutex(session(t, l.client), l.name)
		require.Equal(t, concurrency.ErrLocked, rival.TryLock(ctx))
		require.NoError(t, m.Unlock(ctx))
		require.Equal(t, concurrency.ErrLockReleased, m.Unlock(ctx))
		require.NoError(t, rival.TryLock(ctx))
		require.NoError(t, rival.Unlock(ctx))
	})
	t.Run("Lock makes sure in one call", func(t *testing.T) {
		t.Parallel()
		l, f, s, key, rev := resumed(t)
		m := concurrency.ResumeMutex(s, l.name, key, rev)
		require.NoError(t, m.Lock(ctx))
		require.Equal(t, rev, m.Rev())
		require.NoError(t, m.TryLock(ctx))
		require.Equal(t, 2, f.KV())
		require.NoError(t, m.Unlock(ctx))
		l.stand(t, 0)
	})
	t.Run("which was lost meanwhile is told by Ctx, IsOwner and Lock", func(t *testing.T) {
		t.Parallel()
		l, _, s, key, rev := resumed(t)
		l.delete(t, key)
		m := concurrency.ResumeMutex(s, l.name, key, rev)
		require.False(t, l.owns(t, m))
		require.Equal(t, concurrency.ErrKeyDeleted, cause(t, m.Ctx()))
		require.Empty(t, m.Key())
		require.NoError(t, m.Lock(ctx))
		require.Greater(t, m.Rev(), rev)
		require.NoError(t, m.Unlock(ctx))
	})
	t.Run("of nothing holds nothing", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		for _, m := range []*concurrency.Mutex{
			concurrency.ResumeMutex(l.session, l.name, "", 1), concurrency.ResumeMutex(l.session, l.name, l.name+"/1", 0),
		} {
			require.Empty(t, m.Key())
			require.Equal(t, concurrency.ErrLockReleased, m.Unlock(ctx))
		}
		require.PanicsWithValue(t, "concurrency: nil session", func() { concurrency.ResumeMutex(nil, l.name, "key", 1) })
	})
}

// A revision that the store has not reached is of another store, such as the one from before a restore.
func TestResumeMutexWithARevisionOfAnotherStore(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	require.NoError(t, l.mutex.Lock(t.Context()))
	rev := l.mutex.Rev()
	m := concurrency.ResumeMutex(l.session, l.name, l.mutex.Key(), rev+1_000_000)
	l.faults.Reset()
	require.NoError(t, m.Lock(t.Context()))
	require.Equal(t, 1, l.faults.KV())
	require.Equal(t, rev, m.Rev())
	require.NoError(t, m.Unlock(t.Context()))
	l.stand(t, 0)
}

func TestMutexAccessors(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	t.Run("IsOwner is true only while this handle holds the lock", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		require.False(t, l.owns(t, l.mutex))
		require.NoError(t, l.mutex.Lock(ctx))
		require.True(t, l.owns(t, l.mutex))
		require.False(t, l.owns(t, l.handle()))
		require.NoError(t, l.mutex.Unlock(ctx))
		require.False(t, l.owns(t, l.mutex))
	})
	t.Run("a write guarded by it is refused once the lock is lost", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		require.NoError(t, l.mutex.Lock(ctx))
		revoke(t, l.outside, l.session)
		l.held(t)
		require.False(t, l.owns(t, l.mutex))
	})
	t.Run("nor by a key that the session took anew", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		require.NoError(t, l.mutex.Lock(ctx))
		l.delete(t, l.mutex.Key())
		require.NoError(t, l.handle().Lock(ctx))
		require.False(t, l.owns(t, l.mutex))
	})
	t.Run("Key is empty if the lock is not held", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		held := l.held(t)
		require.Empty(t, l.mutex.Key())
		call := l.waiting(t, ctx, l.mutex, 2)
		require.Empty(t, l.mutex.Key())
		require.NoError(t, held.Unlock(ctx))
		require.NoError(t, call.Wait(t))
		require.NotEmpty(t, l.mutex.Key())
		require.NoError(t, l.mutex.Unlock(ctx))
		require.Empty(t, l.mutex.Key())
	})
	t.Run("Rev is the create revision of the key, 0 if it is not held", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		require.Zero(t, l.mutex.Rev())
		require.NoError(t, l.mutex.Lock(ctx))
		rev := l.mutex.Rev()
		require.Equal(t, etcdtest.Keys(t, l.outside, l.name+"/")[0].CreateRevision, rev)
		require.NoError(t, l.mutex.Unlock(ctx))
		require.Zero(t, l.mutex.Rev())
		require.Greater(t, l.held(t).Rev(), rev, "it rises with every change of the owner")
	})
	t.Run("Header is nil before the lock was taken, and stays when it is released", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		var none *etcdserverpb.ResponseHeader
		require.Equal(t, none, l.mutex.Header())
		before := l.revision(t)
		require.NoError(t, l.mutex.Lock(ctx))
		header := l.mutex.Header()
		require.Greater(t, header.Revision, before)
		require.NoError(t, l.mutex.Unlock(ctx))
		require.Same(t, header, l.mutex.Header())
	})
}
