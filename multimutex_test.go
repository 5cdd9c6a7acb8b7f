package concurrency_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// named are the names of the locks.
func (l lines) named(which ...string) (names []string) {
	for _, name := range which {
		names = append(names, l.name+"/"+name)
	}
	return names
}

// multi is a handle of several of the locks, on the session of the line.
func (l lines) multi(which ...string) *concurrency.MultiMutex {
	return concurrency.NewMultiMutex(l.session, l.named(which...)...)
}

// one is a handle of one lock, on a session of its own.
func (l lines) one(tb testing.TB, which string) *concurrency.Mutex {
	tb.Helper()
	return concurrency.NewMutex(session(tb, l.outside), l.named(which)[0])
}

func TestMultiMutex(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLines(t)
	m := l.multi("a", "b", "c")
	require.False(t, l.all(t, m))
	require.Empty(t, m.Keys())
	require.NoError(t, m.Lock(ctx))
	require.True(t, l.all(t, m))
	l.stand(t, 3)
	var keys []string
	for _, kv := range etcdtest.Keys(t, l.outside, l.name+"/") {
		require.Equal(t, m.Rev(), kv.CreateRevision, "one transaction")
		keys = append(keys, string(kv.Key))
	}
	require.ElementsMatch(t, keys, m.Keys())
	require.Contains(t, m.Keys()[1], fmt.Sprintf("%s/%x/", l.named("b")[0], l.session.Lease()))
	require.Equal(t, m.Rev(), m.Header().Revision)
	require.NoError(t, m.Lock(ctx), "it holds them already")
	require.NoError(t, m.TryLock(ctx), "it holds them already")
	l.stand(t, 3)

	// Each of the locks is held, to whoever wants it alone.
	for _, which := range []string{"a", "b", "c"} {
		require.Equal(t, concurrency.ErrLocked, l.one(t, which).TryLock(ctx))
		require.Equal(t, concurrency.ErrLocked, concurrency.NewMutex(l.session, l.named(which)[0]).TryLock(ctx),
			"of the same session too")
	}
	require.Equal(t, concurrency.ErrLocked, l.multi("c", "d").TryLock(ctx))
	require.Equal(t, concurrency.ErrLocked, concurrency.NewRWMutex(l.session, l.named("a")[0]).TryRLock(ctx))
	inside := m.Ctx()
	require.NoError(t, inside.Err())
	require.NoError(t, m.Unlock(ctx))
	require.Equal(t, concurrency.ErrLockReleased, cause(t, inside))
	require.Equal(t, concurrency.ErrLockReleased, m.Unlock(ctx))
	require.False(t, l.all(t, m))
	l.stand(t, 0)
}

func TestMultiMutexCalls(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	own := etcdtest.New(t)
	l := lines{lineOn(t, own)}
	m := l.multi("a", "b", "c", "d", "e")
	entries := func(n int, calls string, call func(context.Context) error) {
		t.Helper()
		l.faults.Reset()
		before := own.CommittedIndex()
		require.NoError(t, call(ctx))
		require.Equal(t, calls, l.faults.String())
		require.EqualValues(t, n, own.CommittedIndex()-before)
	}
	entries(1, "Txn 1", m.Lock)
	entries(1, "Txn 1", m.Unlock)
	entries(1, "Txn 1", m.TryLock)
	entries(1, "Txn 1", m.Unlock)
	require.NoError(t, l.one(t, "d").Lock(ctx))
	before := l.revision(t)
	entries(1, "Txn 1", func(ctx context.Context) error {
		if err := m.TryLock(ctx); err != concurrency.ErrLocked {
			return fmt.Errorf("not locked: %w", err)
		}
		return nil
	})
	require.Equal(t, before, l.revision(t), "nothing was written")
}

// The turn has come when it has come in all lines, whichever becomes free last.
func TestMultiMutexWaitsInAllLines(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, order := range [][]string{{"a", "b", "c"}, {"c", "b", "a"}, {"b", "c", "a"}} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			t.Parallel()
			l := newLines(t)
			held := map[string]*concurrency.Mutex{}
			for _, which := range order {
				held[which] = l.one(t, which)
				require.NoError(t, held[which].Lock(ctx))
			}
			m := l.multi("a", "b", "c")
			call := l.waits(t, 6, func() error { return m.Lock(ctx) })
			l.watched(t, 4)
			for _, which := range order {
				require.True(t, call.Running(), "%s is held", which)
				require.False(t, l.all(t, m))
				require.NoError(t, held[which].Unlock(ctx))
			}
			require.NoError(t, call.Wait(t))
			require.True(t, l.all(t, m))
		})
	}
	t.Run("proven at one revision", func(t *testing.T) {
		t.Parallel()
		l := newLines(t)
		a := l.one(t, "a")
		require.NoError(t, a.Lock(ctx))
		m := l.multi("a", "b")
		call := l.waits(t, 3, func() error { return m.Lock(ctx) })
		require.NoError(t, a.Unlock(ctx))
		require.NoError(t, call.Wait(t))
		for _, name := range l.named("a", "b") {
			resp, err := l.outside.Get(ctx, name+"/",
				append(clientv3.WithFirstCreate(), clientv3.WithRev(m.Header().Revision))...)
			require.NoError(t, err)
			require.Contains(t, m.Keys(), string(resp.Kvs[0].Key))
		}
	})
}

// Whatever names are taken in whatever order, nobody waits in a circle.
func TestMultiMutexesDoNotDeadlock(t *testing.T) {
	t.Parallel()
	const participants, rounds = 5, 8
	l := newLines(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	holders := map[string]*concurrency.MultiMutex{}
	mutex := make(chan struct{}, 1)
	var calls []*etcdtest.Call
	for i := range participants {
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		s := session(t, l.client)
		calls = append(calls, etcdtest.Go(func() error {
			for range rounds {
				which := []string{"a", "b", "c", "d"}
				random.Shuffle(len(which), func(i, j int) { which[i], which[j] = which[j], which[i] })
				which = which[:2+random.IntN(3)]
				m := concurrency.NewMultiMutex(s, l.named(which...)...)
				if err := m.Do(t.Context(), func(context.Context) error {
					defer func() {
						mutex <- struct{}{}
						for _, name := range which {
							delete(holders, name)
						}
						<-mutex
					}()
					mutex <- struct{}{}
					defer func() { <-mutex }()
					for _, name := range which {
						if holders[name] != nil {
							return fmt.Errorf("two hold %s", name)
						}
						holders[name] = m
					}
					return nil
				}); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	for _, call := range calls {
		require.NoError(t, call.Wait(t))
	}
	l.stand(t, 0)
}

func TestMultiMutexLossOfOneIsTheLossOfAll(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for i, which := range []string{"a", "b", "c"} {
		t.Run("of "+which, func(t *testing.T) {
			t.Parallel()
			l := newLines(t)
			m := l.multi("a", "b", "c")
			require.NoError(t, m.Lock(ctx))
			inside := m.Ctx()
			l.watched(t, 3)
			l.delete(t, m.Keys()[i])
			require.ErrorIs(t, cause(t, inside), concurrency.ErrSessionExpired)
			etcdtest.Eventually(t, func() bool { return len(m.Keys()) == 0 }, "the handle says so")
			require.Zero(t, m.Rev())
			require.False(t, l.all(t, m))
			l.stand(t, 2) // what the others guard may still be worked on
			require.NoError(t, m.Unlock(ctx))
			l.stand(t, 0)
		})
	}
}

func TestMultiMutexLossThatNobodySawAndAnotherLock(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for i, which := range []string{"a", "b", "c"} {
		t.Run("of "+which, func(t *testing.T) {
			t.Parallel()
			l := newLines(t)
			m := l.multi("a", "b", "c")
			require.NoError(t, m.Lock(ctx))
			rev := m.Rev()
			l.delete(t, m.Keys()[i])
			require.False(t, l.all(t, m))
			require.NoError(t, m.Lock(ctx))
			require.Greater(t, m.Rev(), rev)
			require.True(t, l.all(t, m))
			require.NoError(t, m.Unlock(ctx))
			l.stand(t, 0)
		})
	}
}

// The Lock that finds the keys that are left decides their deletion. So it has to see to it.
func TestMultiMutexLeavesNothingWhenALockAfterALossIsGivenUp(t *testing.T) {
	t.Parallel()
	eachTake(t, func(t *testing.T, l lines, m *concurrency.MultiMutex, take multiTake) {
		require.NoError(t, m.Lock(t.Context()))
		l.delete(t, m.Keys()[1])
		ctx, giveUp := context.WithCancel(t.Context())
		l.faults.Before(fault.Txn, 3, giveUp) // the deletion: the first finds the keys, the second reads the lines
		require.Equal(t, context.Canceled, take(m, ctx))
		l.stand(t, 0)
	})
}

func TestMultiMutexLossWhileItWaits(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, which := range []string{"a", "b", "c"} {
		t.Run("of "+which, func(t *testing.T) {
			t.Parallel()
			l := newLines(t)
			require.NoError(t, l.one(t, "b").Lock(ctx))
			m := l.multi("a", "b", "c")
			call := l.waits(t, 4, func() error { return m.Lock(ctx) })
			l.watched(t, 4)
			kvs := etcdtest.Keys(t, l.outside, l.named(which)[0]+"/")
			l.delete(t, string(kvs[len(kvs)-1].Key))
			require.Equal(t, concurrency.ErrSessionExpired, call.Wait(t))
			require.NoError(t, l.session.Ctx().Err())
			l.stand(t, 1)
		})
	}
}

func TestMultiMutexLossOfTheSession(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLines(t)
	m := l.multi("a", "b")
	require.NoError(t, m.Lock(ctx))
	inside, next := m.Ctx(), l.one(t, "b")
	call := l.waits(t, 3, func() error { return next.Lock(ctx) })
	_, err := l.outside.Revoke(ctx, l.session.Lease())
	require.NoError(t, err)
	require.NoError(t, call.Wait(t))
	require.ErrorIs(t, cause(t, inside), concurrency.ErrSessionExpired)
	require.NoError(t, m.Unlock(ctx))
	require.ErrorIs(t, cause(t, l.session.Ctx()), concurrency.ErrSessionExpired)
	require.Equal(t, rpctypes.ErrLeaseNotFound, m.Lock(ctx))
}

func TestMultiMutexLossOfAKeyUnderDo(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLines(t)
	m := l.multi("a", "b")
	require.ErrorIs(t, m.Do(ctx, func(ctx context.Context) error {
		l.delete(t, m.Keys()[1])
		return nil
	}), concurrency.ErrSessionExpired, "the watch tells, or the release")
	l.stand(t, 0)
}

func TestMultiMutexLeavesNothingWhenCtxEndsWhileItWaits(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLines(t)
	require.NoError(t, l.one(t, "b").Lock(ctx))
	m := l.multi("a", "b", "c")
	giveUp, cancel := context.WithCancel(ctx)
	call := l.waits(t, 4, func() error { return m.Lock(giveUp) })
	l.watched(t, 1)
	cancel()
	require.Equal(t, context.Canceled, call.Wait(t))
	require.Len(t, etcdtest.Keys(t, l.outside, l.name+"/"), 1)
}

// multiTake is a way to take several locks.
type multiTake = func(*concurrency.MultiMutex, context.Context) error

// eachTake runs a test with each of these ways, on three names of its own.
func eachTake(t *testing.T, try func(t *testing.T, l lines, m *concurrency.MultiMutex, take multiTake)) {
	for what, take := range map[string]multiTake{
		"Lock": (*concurrency.MultiMutex).Lock, "TryLock": (*concurrency.MultiMutex).TryLock,
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			l := newLines(t)
			try(t, l, l.multi("a", "b", "c"), take)
		})
	}
}

func TestMultiMutexLeavesNothingWhenCtxEndsBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	eachTake(t, func(t *testing.T, l lines, m *concurrency.MultiMutex, take multiTake) {
		l.givesUp(t, 3, func(ctx context.Context) error { return take(m, ctx) })
		l.stand(t, 0)
	})
}

func TestMultiMutexFindsTheKeysOfAJoinWhoseAnswerWasLost(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	eachTake(t, func(t *testing.T, l lines, m *concurrency.MultiMutex, take multiTake) {
		l.faults.LoseAnswer(fault.Txn, 1, nil)
		require.NoError(t, take(m, ctx))
		l.stand(t, 3)
		require.True(t, l.all(t, m))
	})
}

func TestMultiMutexLeavesNothingWhenTheAnswerToUnlockIsLost(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLines(t)
	m := l.multi("a", "b", "c")
	require.NoError(t, m.Lock(ctx))
	l.faults.LoseAnswer(fault.Txn, 1, nil)
	require.NoError(t, m.Unlock(ctx))
	l.stand(t, 0)
}

func TestMultiMutexLeavesNothingAfterAnUnlockThatWasRefused(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLines(t)
	m := l.multi("a", "b", "c")
	require.NoError(t, m.Lock(ctx))
	l.faults.Refuse(fault.Txn, 1, codes.PermissionDenied, "etcdserver: permission denied")
	require.Equal(t, rpctypes.ErrPermissionDenied, m.Unlock(ctx))
	l.stand(t, 0)
}

func TestMultiMutexLeavesNothingOfMoreNamesThanTheServerAllows(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLines(t)
	var names []string
	for i := range 65 {
		names = append(names, fmt.Sprintf("%s/%d", l.name, i))
	}
	require.NoError(t, concurrency.NewMultiMutex(l.session, names[:64]...).Do(ctx, func(context.Context) error {
		l.stand(t, 64)
		return nil
	}))
	m := concurrency.NewMultiMutex(l.session, names...)
	require.Equal(t, rpctypes.ErrTooManyOps, m.Lock(ctx))
	require.Equal(t, rpctypes.ErrTooManyOps, m.TryLock(ctx))
	l.stand(t, 0)
}

// A name may lie within another one. Its keys stand in the line of the other, too.
func TestMultiMutexOfNamesWithin(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	names := []string{l.name, l.name + "/b", l.name + "/b/c"}
	outer := concurrency.NewMutex(session(t, l.outside), l.name)
	m := concurrency.NewMultiMutex(l.session, names...)
	require.NoError(t, outer.Lock(ctx))
	require.Equal(t, concurrency.ErrLocked, m.TryLock(ctx))
	call := l.waits(t, 4, func() error { return m.Lock(ctx) })
	l.watched(t, 4)
	require.True(t, call.Running(), "own keys in the line hide nobody ahead")
	require.NoError(t, outer.Unlock(ctx))
	require.NoError(t, call.Wait(t))
	require.NoError(t, m.Unlock(ctx))
	l.stand(t, 0)
}

func TestMultiMutexBadInput(t *testing.T) {
	t.Parallel()
	l := newLines(t)
	var none concurrency.MultiMutex
	var noCtx context.Context
	m := l.multi("a")
	for _, bug := range []func(){
		func() { concurrency.NewMultiMutex(nil, "name") },
		func() { concurrency.NewMultiMutex(l.session) },
		func() { concurrency.NewMultiMutex(l.session, "a", "b", "a") },
		func() { m.Lock(noCtx) }, func() { m.TryLock(noCtx) }, func() { m.Do(t.Context(), nil) },
		func() { none.Lock(t.Context()) }, func() { none.Ctx() },
	} {
		requireOurPanic(t, bug)
	}
	require.Equal(t, concurrency.ErrLockReleased, m.Unlock(t.Context()))
	require.Nil(t, m.Header())
	require.NoError(t, m.Lock(t.Context()), "one name is enough")
	require.NoError(t, m.Lock(t.Context()))
	require.NoError(t, m.TryLock(t.Context()))
	l.stand(t, 1)
	require.NoError(t, m.Unlock(t.Context()))
	l.stand(t, 0)
}
