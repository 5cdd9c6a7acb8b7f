package concurrency_test

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
	"example.com/etcd/concurrency/internal/virtual"
)

// team is a LocalMutex in virtual time, where a test can wait until nobody has anything to do:
// goroutines that are to wait do wait then.
type team struct {
	*line
	lock *concurrency.LocalMutex
}

// teamTest is a test of a LocalMutex.
type teamTest struct {
	says string
	run  func(t *testing.T, m team)
}

// inTeam runs tests of a LocalMutex, one after the other, in one piece of virtual time, with that
// round trip for its client.
func inTeam(t *testing.T, trip time.Duration, tests ...teamTest) {
	t.Helper()
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		for _, test := range tests {
			c, n := b.Client(test.says)
			outside, _ := b.Client("outside of " + test.says)
			n.SetRoundTrip(virtual.RoundTrip{Min: trip, Max: trip})
			b.T().Log(test.says)
			l := &line{name: test.says, client: c, faults: counted(b.T(), c), outside: outside}
			l.session = session(b.T(), c, concurrency.WithTTL(10))
			l.mutex = l.handle()
			test.run(b.T(), team{l, concurrency.NewLocalMutex(l.session, l.name)})
		}
	})
}

// asks starts a Lock that waits.
func (m team) asks(tb testing.TB, ctx context.Context) *etcdtest.Call {
	tb.Helper()
	call := etcdtest.Go(func() error { return m.lock.Lock(ctx) })
	settled(tb, call)
	return call
}

// settled waits until the call waits.
func settled(tb testing.TB, call *etcdtest.Call) {
	tb.Helper()
	synctest.Wait()
	require.True(tb, call.Running())
}

func TestLocalMutexPassesOn(t *testing.T) {
	inTeam(t, 0,
		teamTest{"without a call, first come first served, and Rev and Seq rise", func(t *testing.T, m team) {
			ctx := t.Context()
			require.NoError(t, m.lock.Lock(ctx))
			rev, header := m.lock.Rev(), m.lock.Header()
			require.NotZero(t, rev)
			require.Zero(t, m.lock.Seq())
			var calls []*etcdtest.Call
			for range 16 {
				calls = append(calls, m.asks(t, ctx))
			}
			m.faults.Reset()
			for i, call := range calls {
				require.NoError(t, m.lock.Unlock(ctx))
				require.NoError(t, call.Wait(t))
				require.Equal(t, rev, m.lock.Rev())
				require.EqualValues(t, i+1, m.lock.Seq())
				require.Equal(t, header, m.lock.Header())
				require.NotEmpty(t, m.lock.Key())
			}
			synctest.Wait()
			require.Equal(t, "Get 1", m.calls(), "in the background")
			require.NoError(t, m.lock.Unlock(ctx))
			require.Equal(t, "Get 1, Txn 1", m.calls())
			m.stand(t, 0)
			require.Zero(t, m.lock.Rev())
			require.Zero(t, m.lock.Seq())
			require.Empty(t, m.lock.Key())
		}},
		teamTest{"also if the context of Unlock has ended", func(t *testing.T, m team) {
			require.NoError(t, m.lock.Lock(t.Context()))
			next := m.asks(t, t.Context())
			require.NoError(t, m.lock.Unlock(cancelled()))
			require.NoError(t, next.Wait(t))
			require.NoError(t, m.lock.Unlock(t.Context()))
		}},
		teamTest{"and gives the lock back if nobody waits", func(t *testing.T, m team) {
			rival := m.rival(t)
			for range 3 {
				require.NoError(t, m.lock.Lock(t.Context()))
				require.Equal(t, concurrency.ErrLocked, rival.TryLock(t.Context()))
				require.NoError(t, m.lock.Unlock(t.Context()))
				require.NoError(t, rival.TryLock(t.Context()))
				require.NoError(t, rival.Unlock(t.Context()))
			}
			require.Equal(t, 6, m.faults.Count(fault.Txn))
			require.Zero(t, m.faults.Count(fault.Get))
		}},
	)
}

func TestLocalMutexServesOtherSessions(t *testing.T) {
	const trip, work = 10 * time.Millisecond, 3 * time.Millisecond
	// passing has 16 goroutines pass the lock on, with work in between, until stop is called.
	passing := func(t *testing.T, m team, work time.Duration) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for range 16 {
			all.Go(func() {
				for ctx.Err() == nil {
					assert.NoError(t, m.lock.Lock(t.Context()))
					if work > 0 {
						<-time.After(work)
					}
					assert.NoError(t, m.lock.Unlock(t.Context()))
				}
			})
		}
		return func() { cancel(); all.Wait() }
	}
	inTeam(t, trip,
		teamTest{"within the bound", func(t *testing.T, m team) {
			stop := passing(t, m, work)
			defer stop()
			<-time.After(time.Second)
			m.faults.Reset()
			<-time.After(time.Second)
			require.Zero(t, m.faults.Count(fault.Txn), "while nobody else waits the session keeps the lock")
			require.LessOrEqual(t, m.faults.Count(fault.Get), 10, "and asks a tenth of the time")
			require.NotZero(t, m.faults.Count(fault.Get))
			rival := m.rival(t) // it has no way to go to the server
			for range 5 {
				begin := time.Now()
				require.NoError(t, rival.Lock(t.Context()))
				require.LessOrEqual(t, time.Since(begin), 11*trip+2*work+trip, "and the way of the release")
				require.NoError(t, rival.Unlock(t.Context()))
				<-time.After(50 * time.Millisecond)
			}
		}},
		teamTest{"also when etcd has no time for an answer", func(t *testing.T, m team) {
			// Virtual time stands still while the goroutines pass the lock on.
			stop := passing(t, m, 0)
			defer stop()
			rival := m.rival(t)
			for range 3 {
				require.NoError(t, rival.Lock(t.Context()))
				require.NoError(t, rival.Unlock(t.Context()))
			}
		}},
		teamTest{"also when it may not read", func(t *testing.T, m team) {
			ctx := t.Context()
			m.faults.Refuse(fault.Get, 1, codes.PermissionDenied, "etcdserver: permission denied")
			require.NoError(t, m.lock.Lock(ctx))
			one, two := m.asks(t, ctx), m.asks(t, ctx)
			require.NoError(t, m.lock.Unlock(ctx))
			require.NoError(t, one.Wait(t))
			rival := m.rival(t)
			call := etcdtest.Go(func() error { return rival.Lock(ctx) })
			m.stand(t, 2)
			<-time.After(trip)
			require.NoError(t, m.lock.Unlock(ctx))
			require.NoError(t, call.Wait(t))
			settled(t, two)
			require.NoError(t, rival.Unlock(ctx))
			require.NoError(t, two.Wait(t))
			require.NoError(t, m.lock.Unlock(ctx))
		}},
	)
}

// Goroutines pass the lock on 10,000 times without an answer, and then give it back.
func TestLocalMutexIsPassedOnSoOften(t *testing.T) {
	inTeam(t, 0, teamTest{t.Name(), func(t *testing.T, m team) {
		ctx := t.Context()
		question := m.faults.Hold(fault.Get, 1)
		defer question.Open()
		require.NoError(t, m.lock.Lock(ctx))
		for range 10_000 {
			next := m.asks(t, ctx)
			require.NoError(t, m.lock.Unlock(ctx))
			require.NoError(t, next.Wait(t))
		}
		require.EqualValues(t, 10_000, m.lock.Seq())
		require.Equal(t, 1, m.faults.Count(fault.Txn))
		next := m.asks(t, ctx)
		require.NoError(t, m.lock.Unlock(ctx))
		require.NoError(t, next.Wait(t))
		require.Zero(t, m.lock.Seq())
		require.Equal(t, 3, m.faults.Count(fault.Txn))
		require.NoError(t, m.lock.Unlock(ctx))
	}})
}

func TestLocalMutexIsLost(t *testing.T) {
	inTeam(t, time.Millisecond,
		teamTest{"with the lease: those who wait return ErrSessionExpired", lostWithTheLease},
		teamTest{"with the client, of an orphaned session too", lostWithTheClient},
		teamTest{"with its key, which Ctx tells: the next takes it anew", lostWithItsKey},
		teamTest{"with its key, which a question shows that nobody else asks", lostWithItsKeyByAQuestion},
		teamTest{"a question also shows that the lease is gone", lostWithTheLeaseByAQuestion},
	)
}

func lostWithTheLease(t *testing.T, m team) {
	ctx := t.Context()
	require.NoError(t, m.lock.Lock(ctx))
	owned := m.lock.Ctx()
	calls := []*etcdtest.Call{m.asks(t, ctx), m.asks(t, ctx)}
	revoke(t, m.outside, m.session)
	require.ErrorIs(t, cause(t, owned), concurrency.ErrSessionExpired)
	for _, call := range calls {
		require.Equal(t, concurrency.ErrSessionExpired, call.Wait(t))
	}
	require.Zero(t, m.lock.Rev())
	require.Zero(t, m.lock.Seq())
	require.NoError(t, m.lock.Unlock(ctx))
	require.Equal(t, concurrency.ErrLockReleased, m.lock.Unlock(ctx))
	require.Equal(t, rpctypes.ErrLeaseNotFound, m.lock.Lock(ctx))
	require.Equal(t, rpctypes.ErrLeaseNotFound, m.lock.TryLock(ctx))
}

func lostWithTheClient(t *testing.T, m team) {
	revokedAtEnd(t, m.outside, m.session.Lease())
	m.session.Orphan()
	require.NoError(t, m.lock.Lock(t.Context()))
	require.Error(t, m.lock.Ctx().Err(), "nobody knows when its lease ends")
	next := m.asks(t, t.Context())
	m.client.Close()
	require.Equal(t, context.Canceled, next.Wait(t))
}

func lostWithItsKey(t *testing.T, m team) {
	ctx := t.Context()
	require.NoError(t, m.lock.Lock(ctx))
	before, owned := m.lock.Rev(), m.lock.Ctx()
	next := m.asks(t, ctx)
	m.watched(t, 1)
	rival := m.rival(t)
	m.delete(t, m.lock.Key())
	require.ErrorIs(t, cause(t, owned), concurrency.ErrSessionExpired)
	require.NoError(t, rival.Lock(ctx))
	require.NoError(t, m.lock.Unlock(ctx))
	settled(t, next)
	require.NoError(t, rival.Unlock(ctx))
	require.NoError(t, next.Wait(t))
	require.Greater(t, m.lock.Rev(), before)
	require.Zero(t, m.lock.Seq())
	require.NoError(t, m.lock.Unlock(ctx))
}

func lostWithItsKeyByAQuestion(t *testing.T, m team) {
	ctx := t.Context()
	require.NoError(t, m.lock.Lock(ctx))
	before := m.lock.Rev()
	one, two := m.asks(t, ctx), m.asks(t, ctx)
	m.delete(t, m.lock.Key())
	require.NoError(t, m.lock.Unlock(ctx))
	require.NoError(t, one.Wait(t))
	require.Equal(t, before, m.lock.Rev(), "as nobody knows yet")
	etcdtest.Eventually(t, func() bool { return m.lock.Rev() == 0 }, "until etcd has answered")
	require.Zero(t, m.lock.Seq())
	require.NoError(t, m.lock.Unlock(ctx))
	require.NoError(t, two.Wait(t))
	require.Greater(t, m.lock.Rev(), before)
	require.NoError(t, m.lock.Unlock(ctx))
	require.NoError(t, m.session.Ctx().Err())
}

func lostWithTheLeaseByAQuestion(t *testing.T, m team) {
	ctx := t.Context()
	require.NoError(t, m.lock.Lock(ctx))
	one, two := m.asks(t, ctx), m.asks(t, ctx)
	revoke(t, m.outside, m.session)
	require.NoError(t, m.lock.Unlock(ctx))
	require.NoError(t, one.Wait(t))
	begin := time.Now()
	require.Equal(t, concurrency.ErrSessionExpired, two.Wait(t))
	require.Less(t, time.Since(begin), time.Second, "and not by a renewal alone")
	require.Error(t, m.session.Ctx().Err())
}

func TestLocalMutexCtx(t *testing.T) {
	inTeam(t, 0, teamTest{t.Name(), func(t *testing.T, m team) {
		ctx := t.Context()
		require.Equal(t, concurrency.ErrLockReleased, context.Cause(m.lock.Ctx()), "of nothing held")
		require.NoError(t, m.lock.Lock(ctx))
		first := m.lock.Ctx()
		require.Equal(t, first, m.lock.Ctx())
		m.watched(t, 1)
		next := m.asks(t, ctx)
		require.NoError(t, first.Err())
		require.NoError(t, m.lock.Unlock(ctx))
		require.Equal(t, concurrency.ErrLockReleased, cause(t, first))
		require.NoError(t, next.Wait(t))
		second := m.lock.Ctx()
		require.NoError(t, second.Err())
		require.True(t, m.owns(t))
		require.NoError(t, m.lock.Unlock(ctx))
		require.Equal(t, concurrency.ErrLockReleased, cause(t, second))
		require.False(t, m.owns(t))
		require.Equal(t, 1, m.faults.Count(fault.Watch), "they share it")
	}})
}

// owns says what IsOwner says in a transaction.
func (m team) owns(tb testing.TB) bool {
	tb.Helper()
	resp, err := m.outside.Txn(context.Background()).If(m.lock.IsOwner()).Commit()
	require.NoError(tb, err)
	return resp.Succeeded
}

// A context of the ownership that has ended for whatever reason is not passed on: the next
// goroutine would work in vain.
func TestLocalMutexWhoseCtxHasEndedIsNotPassedOn(t *testing.T) {
	inTeam(t, 0, teamTest{t.Name(), func(t *testing.T, m team) {
		ctx := t.Context()
		require.NoError(t, m.lock.Lock(ctx))
		m.faults.Refuse(fault.Get, 1, codes.PermissionDenied, "etcdserver: permission denied")
		require.Equal(t, rpctypes.ErrPermissionDenied, cause(t, m.lock.Ctx()))
		next := m.asks(t, ctx)
		require.NoError(t, m.lock.Unlock(ctx))
		require.NoError(t, next.Wait(t))
		require.NoError(t, m.lock.Ctx().Err())
		require.NoError(t, m.lock.Unlock(ctx))
	}})
}

func TestLocalMutexWaitsEndWithTheirContexts(t *testing.T) {
	inTeam(t, 0,
		teamTest{"behind another goroutine", func(t *testing.T, m team) {
			ctx := t.Context()
			require.NoError(t, m.lock.Lock(ctx))
			bound, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			one, two, three := m.asks(t, ctx), m.asks(t, bound), m.asks(t, ctx)
			require.Equal(t, context.DeadlineExceeded, two.Wait(t))
			require.NoError(t, m.lock.Unlock(ctx))
			require.NoError(t, one.Wait(t))
			settled(t, three)
			require.NoError(t, m.lock.Unlock(ctx))
			require.NoError(t, three.Wait(t))
			require.NoError(t, m.lock.Unlock(ctx))
			require.Equal(t, context.Canceled, m.lock.Lock(cancelled()))
			m.stand(t, 0)
		}},
		teamTest{"behind another session: the next goroutine has the place", func(t *testing.T, m team) {
			ctx := t.Context()
			holder, last := m.held(t), m.rival(t)
			bound, cancel := context.WithCancel(ctx)
			one, two := m.asks(t, bound), m.asks(t, ctx)
			m.stand(t, 2)
			ticket := etcdtest.Keys(t, m.outside, m.name+"/")
			call := etcdtest.Go(func() error { return last.Lock(ctx) })
			m.stand(t, 3)
			cancel()
			require.Equal(t, context.Canceled, one.Wait(t))
			settled(t, two)
			require.NoError(t, holder.Unlock(ctx))
			require.NoError(t, two.Wait(t))
			require.Contains(t, []int64{ticket[0].CreateRevision, ticket[1].CreateRevision}, m.lock.Rev())
			settled(t, call)
			require.NoError(t, m.lock.Unlock(ctx))
			require.NoError(t, call.Wait(t))
			require.NoError(t, last.Unlock(ctx))
		}},
		teamTest{"all of them leave nothing", func(t *testing.T, m team) {
			holder := m.held(t)
			bound, cancel := context.WithCancel(t.Context())
			calls := []*etcdtest.Call{m.asks(t, bound), m.asks(t, bound), m.asks(t, bound)}
			m.stand(t, 2)
			cancel()
			for _, call := range calls {
				require.Equal(t, context.Canceled, call.Wait(t))
			}
			require.Len(t, etcdtest.Keys(t, m.outside, m.name+"/"), 1)
			require.NoError(t, holder.Unlock(t.Context()))
			require.NoError(t, m.lock.Lock(t.Context()))
			require.NoError(t, m.lock.Unlock(t.Context()))
		}},
	)
}

func TestLocalMutexTryLock(t *testing.T) {
	inTeam(t, 0, teamTest{t.Name(), func(t *testing.T, m team) {
		ctx := t.Context()
		rival := m.rival(t)
		require.NoError(t, rival.Lock(ctx))
		require.Equal(t, concurrency.ErrLocked, m.lock.TryLock(ctx), "another session holds it")
		require.Equal(t, 1, m.faults.Count(fault.Txn))
		require.NoError(t, rival.Unlock(ctx))
		require.NoError(t, m.lock.TryLock(ctx))
		calls := m.faults.KV()
		require.Equal(t, concurrency.ErrLocked, m.lock.TryLock(ctx), "another goroutine holds it")
		require.Equal(t, context.Canceled, m.lock.TryLock(cancelled()))
		require.Equal(t, calls, m.faults.KV(), "without a call")
		next := m.asks(t, ctx)
		require.NoError(t, m.lock.Unlock(ctx))
		require.NoError(t, next.Wait(t))
		require.Equal(t, concurrency.ErrLocked, m.lock.TryLock(ctx))
		require.NoError(t, m.lock.Unlock(ctx))
		m.faults.Refuse(fault.Txn, 1, codes.PermissionDenied, "etcdserver: permission denied")
		require.Equal(t, rpctypes.ErrPermissionDenied, m.lock.TryLock(ctx))
		require.NoError(t, m.lock.TryLock(ctx), "a failure leaves it unlocked")
		require.NoError(t, m.lock.Unlock(ctx))
	}})
}

func TestLocalMutexUnlock(t *testing.T) {
	inTeam(t, 0, teamTest{t.Name(), func(t *testing.T, m team) {
		ctx := t.Context()
		require.Equal(t, concurrency.ErrLockReleased, m.lock.Unlock(ctx))
		require.NoError(t, m.lock.Lock(ctx))
		require.NoError(t, m.lock.Unlock(ctx))
		require.Equal(t, concurrency.ErrLockReleased, m.lock.Unlock(ctx))
		// An Unlock that fails leaves the lock to the others.
		require.NoError(t, m.lock.Lock(ctx))
		m.faults.Refuse(fault.Txn, 1, codes.PermissionDenied, "etcdserver: permission denied")
		require.Equal(t, rpctypes.ErrPermissionDenied, m.lock.Unlock(ctx))
		require.Equal(t, concurrency.ErrLockReleased, m.lock.Unlock(ctx))
		require.NoError(t, m.lock.Lock(ctx))
		require.NoError(t, m.lock.Unlock(ctx))
		m.stand(t, 0)
		// Until the lock is given back it is held.
		require.NoError(t, m.lock.Lock(ctx))
		deletion := m.faults.Hold(fault.Txn, 1)
		call := etcdtest.Go(func() error { return m.lock.Unlock(ctx) })
		ended(t, deletion.Reached(), "the deletion")
		require.Equal(t, concurrency.ErrLocked, m.lock.TryLock(ctx))
		require.Zero(t, m.lock.Rev())
		require.Equal(t, concurrency.ErrLockReleased, context.Cause(m.lock.Ctx()))
		next := m.asks(t, ctx)
		deletion.Open()
		require.NoError(t, call.Wait(t))
		require.NoError(t, next.Wait(t))
		require.NoError(t, m.lock.Unlock(ctx))
	}})
}

func TestLocalMutexDo(t *testing.T) {
	inTeam(t, 0,
		teamTest{"passes on, and ends the context of the work before", func(t *testing.T, m team) {
			ctx := t.Context()
			var former context.Context
			working, stop := make(chan struct{}), make(chan struct{})
			one := etcdtest.Go(func() error {
				return m.lock.Do(ctx, func(ctx context.Context) error {
					former = ctx
					close(working)
					<-stop
					return errWork
				})
			})
			ended(t, working, "the work")
			two := etcdtest.Go(func() error {
				return m.lock.Do(ctx, func(ctx context.Context) error {
					assert.Error(t, former.Err())
					assert.NoError(t, ctx.Err())
					assert.EqualValues(t, 1, m.lock.Seq())
					return nil
				})
			})
			settled(t, two)
			close(stop)
			require.Equal(t, errWork, one.Wait(t))
			require.NoError(t, two.Wait(t))
			require.Equal(t, 2, m.faults.Count(fault.Txn))
			m.stand(t, 0)
		}},
		teamTest{"tells a loss", func(t *testing.T, m team) {
			err := m.lock.Do(t.Context(), func(ctx context.Context) error {
				m.delete(t, m.lock.Key())
				require.Equal(t, concurrency.ErrKeyDeleted, cause(t, ctx))
				return errWork
			})
			require.ErrorIs(t, err, errWork)
			require.ErrorIs(t, err, concurrency.ErrSessionExpired)
			revoke(t, m.outside, m.session)
			require.ErrorIs(t, m.lock.Do(t.Context(), none(t)), rpctypes.ErrLeaseNotFound)
		}},
		teamTest{"work that unlocks is told so", func(t *testing.T, m team) {
			require.Equal(t, concurrency.ErrLockReleased, m.lock.Do(t.Context(), func(context.Context) error {
				return m.lock.Unlock(t.Context())
			}))
			m.stand(t, 0)
		}},
	)
}

func TestLocalMutexDoThatIsLeft(t *testing.T) {
	passesOn := func(leave func(), recovered any) func(t *testing.T, m team) {
		return func(t *testing.T, m team) {
			ctx := t.Context()
			working, stop := make(chan struct{}), make(chan struct{})
			var passed any
			one := etcdtest.Go(func() error {
				defer func() { passed = recover() }()
				return m.lock.Do(ctx, func(context.Context) error {
					close(working)
					<-stop
					leave()
					return nil
				})
			})
			ended(t, working, "the work")
			next := m.asks(t, ctx)
			close(stop)
			require.NoError(t, next.Wait(t))
			<-one.Done()
			require.Equal(t, recovered, passed)
			require.NoError(t, m.lock.Unlock(ctx))
			m.stand(t, 0)
		}
	}
	inTeam(t, 0,
		teamTest{"by a panic", passesOn(func() { panic("of the work") }, "of the work")},
		teamTest{"by Goexit", passesOn(runtime.Goexit, nil)},
	)
}

// A panic in the layers of the client passes through, and strands nobody.
func TestLocalMutexPanicOfTheClient(t *testing.T) {
	inTeam(t, 0, teamTest{t.Name(), func(t *testing.T, m team) {
		ctx := t.Context()
		m.faults.Before(fault.Txn, 1, func() { panic("of the client") })
		require.PanicsWithValue(t, "of the client", func() { _ = m.lock.Lock(ctx) })
		require.NoError(t, m.lock.Lock(ctx))
		m.faults.Before(fault.Txn, 1, func() { panic("of the client") })
		require.PanicsWithValue(t, "of the client", func() { _ = m.lock.Unlock(ctx) })
		require.NoError(t, m.lock.Lock(ctx))
		require.NoError(t, m.lock.Unlock(ctx))
	}})
}

func TestLocalMutexExcludes(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	ctx := t.Context()
	name := l.name
	type taker struct{ lock, unlock func(context.Context) error }
	var takers []taker
	for _, s := range []*concurrency.Session{l.session, session(t, l.outside)} {
		m := concurrency.NewLocalMutex(s, name)
		for range 4 {
			takers = append(takers, taker{m.Lock, m.Unlock})
		}
	}
	plain := concurrency.NewMutex(session(t, l.outside), name)
	takers = append(takers, taker{plain.Lock, plain.Unlock})
	inside, passed := 0, 0 // guarded by the lock alone: the race detector looks on
	var gaveUp atomic.Int64
	var wg sync.WaitGroup
	for i, m := range takers {
		wg.Go(func() {
			for n := range 50 {
				bound, cancel := context.WithCancel(ctx)
				if n%7 == i%7 {
					time.AfterFunc(time.Millisecond, cancel)
				}
				err := m.lock(bound)
				cancel()
				if err != nil {
					assert.Equal(t, context.Canceled, err)
					gaveUp.Add(1)
					continue
				}
				inside++
				assert.Equal(t, 1, inside)
				passed++
				inside--
				assert.NoError(t, m.unlock(ctx))
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 50*len(takers), int64(passed)+gaveUp.Load())
	l.stand(t, 0)
}

func TestLocalMutexMisuse(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	m := concurrency.NewLocalMutex(l.session, l.name)
	require.PanicsWithValue(t, "concurrency: nil session", func() { concurrency.NewLocalMutex(nil, "name") })
	var none context.Context
	for _, call := range []func(){
		func() { _ = m.Lock(none) },
		func() { _ = m.TryLock(none) },
		func() { _ = m.Unlock(none) },
		func() { _ = m.Do(none, func(context.Context) error { return nil }) },
		func() { _ = m.Do(t.Context(), nil) },
	} {
		requireOurPanic(t, call)
	}
	for _, m := range []*concurrency.LocalMutex{{}, concurrency.NewLocalMutex(&concurrency.Session{}, "name")} {
		requireOurPanic(t, func() { _ = m.Lock(t.Context()) })
		requireOurPanic(t, func() { _ = m.TryLock(t.Context()) })
	}
	zero := &concurrency.LocalMutex{}
	for _, call := range []func(){
		func() { _ = zero.Unlock(t.Context()) },
		func() { zero.Ctx() },
		func() { zero.IsOwner() },
		func() { zero.Key() },
		func() { zero.Rev() },
		func() { zero.Seq() },
	} {
		requireOurPanic(t, call)
	}
	require.Nil(t, m.Header())
	require.Zero(t, l.faults.KV())
	resp, err := l.client.Txn(t.Context()).If(m.IsOwner()).Else(clientv3.OpGet(l.name)).Commit()
	require.NoError(t, err)
	require.False(t, resp.Succeeded)
	require.NoError(t, m.Lock(t.Context()))
	require.True(t, errors.Is(m.TryLock(t.Context()), concurrency.ErrLocked))
	require.NoError(t, m.Unlock(t.Context()))
}

// An orphaned session has no deadline, so nothing here tells when its lock is lost.
func TestLocalMutexOfAnOrphanedSessionIsNotPassedOn(t *testing.T) {
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		t, c, n := remote(b)
		outside, _ := b.Client("outside")
		ctx, s := t.Context(), session(t, c, concurrency.WithTTL(6))
		m := concurrency.NewLocalMutex(s, "lock")
		require.NoError(t, m.Lock(ctx))
		next := etcdtest.Go(func() error { return m.Lock(ctx) })
		b.Sleep(time.Second) // it waits
		s.Orphan()
		n.Stall(time.Minute)
		rival := concurrency.NewMutex(session(t, outside), "lock")
		require.NoError(t, rival.Lock(ctx)) // the lease has expired
		require.NoError(t, m.Unlock(ctx))
		require.Equal(t, rpctypes.ErrLeaseNotFound, next.Wait(t), "the rival has the lock")
		require.NoError(t, rival.Unlock(ctx))
	})
}
