package concurrency_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
	"example.com/etcd/concurrency/internal/virtual"
)

// Transient faults don't end a Lock; permanent ones do.

func TestLockRidesOutLostAnswersAndElectionsWhileItJoins(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.faults.LoseAnswer(fault.Txn, 1, nil)
	l.faults.Refuse(fault.Txn, 2, codes.Unavailable, "etcdserver: request timed out")
	l.faults.LoseAnswer(fault.Txn, 3, rpctypes.ErrGRPCRequestTooManyRequests)
	l.faults.LoseAnswer(fault.Txn, 4, context.DeadlineExceeded)
	require.NoError(t, l.mutex.Lock(t.Context()))
	require.Equal(t, 5, l.faults.Count(fault.Txn))
	require.True(t, l.owns(t, l.mutex))
	l.stand(t, 1)
}

func TestLockRidesOutAnElectionWhileItLooks(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	held := l.held(t)
	gate := l.faults.BreakWatch(1, nil)
	l.faults.Refuse(fault.Get, 2, codes.Unavailable, "etcdserver: no leader")
	call := l.waiting(t, ctx, l.mutex, 2)
	gate.Open()
	etcdtest.Eventually(t, func() bool { return l.faults.Count(fault.Get) > 2 }, "the third look")
	require.NoError(t, held.Unlock(ctx))
	require.NoError(t, call.Wait(t))
}

func TestLockRidesOutWatchesThatBreakByCompactionToo(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	held := l.held(t)
	l.faults.BrokenWatch(1, rpctypes.ErrGRPCNoLeader)
	l.faults.BrokenWatch(2, nil)
	l.faults.BrokenWatch(3, rpctypes.ErrGRPCCompacted)
	call := etcdtest.Go(func() error { return l.mutex.Lock(ctx) })
	etcdtest.Eventually(t, func() bool { return l.faults.Count(fault.Watch) > 3 }, "it watches again")
	require.True(t, call.Running())
	require.NoError(t, held.Unlock(ctx))
	require.NoError(t, call.Wait(t))
}

func TestLockRidesOutACutWithAReleaseAndACompactionBehindItsBack(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	own := etcdtest.New(t)
	p, c := proxied(t, own)
	outside := own.Client(t)
	held := concurrency.NewMutex(session(t, outside), "lock")
	require.NoError(t, held.Lock(ctx))
	m := concurrency.NewMutex(session(t, c), "lock")
	call := etcdtest.Go(func() error { return m.Lock(ctx) })
	etcdtest.WaitKeys(t, outside, "lock/", 2)
	p.Refuse()
	p.Cut()
	require.NoError(t, held.Unlock(ctx))
	put, err := outside.Put(ctx, "elsewhere", "")
	require.NoError(t, err)
	_, err = outside.Compact(ctx, put.Header.Revision)
	require.NoError(t, err)
	p.Accept()
	require.NoError(t, call.Wait(t))
}

func TestLockRidesOutARestartOfTheServerWhileItWaits(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	own := etcdtest.New(t)
	held := concurrency.NewMutex(session(t, own.Client(t)), "lock")
	require.NoError(t, held.Lock(ctx))
	c := own.Client(t)
	m := concurrency.NewMutex(session(t, c), "lock")
	call := etcdtest.Go(func() error { return m.Lock(ctx) })
	etcdtest.WaitKeys(t, c, "lock/", 2)
	require.NoError(t, own.Restart(0))
	etcdtest.WaitKeys(t, c, "lock/", 2)
	require.True(t, call.Running())
	require.NoError(t, held.Unlock(ctx))
	require.NoError(t, call.Wait(t))
}

func TestLockRidesOutAChangeOfTheLeaderWhileItWaits(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	own := etcdtest.New(t, etcdtest.Members(3))
	held := concurrency.NewMutex(session(t, own.Client(t)), "lock")
	require.NoError(t, held.Lock(ctx))
	c := own.Client(t)
	m := concurrency.NewMutex(session(t, c), "lock")
	call := etcdtest.Go(func() error { return m.Lock(ctx) })
	etcdtest.WaitKeys(t, c, "lock/", 2)
	own.Stop(own.Leader())
	require.GreaterOrEqual(t, own.Leader(), 0)
	require.NoError(t, held.Unlock(ctx))
	require.NoError(t, call.Wait(t))
	require.NoError(t, m.Unlock(ctx))
}

func TestLockEndsAtOnceIfPermissionIsDenied(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	own := etcdtest.New(t)
	c := guest(t, own, "mine/")
	s := session(t, c)
	for _, lock := range []func(context.Context) error{
		concurrency.NewMutex(s, "theirs").Lock, concurrency.NewMutex(s, "theirs").TryLock,
	} {
		require.Equal(t, rpctypes.ErrPermissionDenied, within(t, 5*time.Second, func() error { return lock(ctx) }))
	}
	m := concurrency.NewMutex(s, "mine")
	require.NoError(t, m.Lock(ctx))
	require.NoError(t, m.Unlock(ctx))
	require.NoError(t, s.Close())
}

func TestLockEndsIfPermissionIsDeniedWhileItWaits(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := lineOn(t, etcdtest.New(t)) // or a write of others calls for a look before
	held := l.held(t)
	gate := l.faults.BreakWatch(1, nil)
	call := l.waiting(t, ctx, l.mutex, 2)
	l.faults.Refuse(fault.Get, 1, codes.PermissionDenied, "etcdserver: permission denied")
	gate.Open()
	require.Equal(t, rpctypes.ErrPermissionDenied, call.Wait(t))
	require.NoError(t, held.Unlock(ctx))
	l.stand(t, 0)
}

// A server that runs out of space carries the call out and complains then.
// TestSTMErrorsThatLeaveTheCommitUnknown has the same of a commit.
func TestNoSpaceIsNoAnswer(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.faults.LoseAnswer(fault.Txn, 1, rpctypes.ErrNoSpace)
	require.Equal(t, rpctypes.ErrNoSpace, l.mutex.Lock(t.Context()))
	l.stand(t, 0)
}

// At least half of 10, 20, 40, 80, 160 and 320 ms: a lower bound, which no noise breaks.
func TestRepetitionsPauseLongerEachTime(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.faults.Refuse(fault.Txn, 6, codes.Unavailable, "etcdserver: no leader")
	start := time.Now()
	require.NoError(t, l.mutex.Lock(t.Context()))
	require.GreaterOrEqual(t, time.Since(start), 315*time.Millisecond)
	require.Equal(t, 7, l.faults.Count(fault.Txn))
	require.NoError(t, l.mutex.Unlock(t.Context()))
}

// Who is refused for long calls no more often at the end than at the beginning: after a pause of a
// quarter of a second at least, for each call under way.
func TestWhoIsRefusedForLongCallsNoMoreOften(t *testing.T) {
	for _, c := range []struct {
		who   string
		calls int // under way at a time
		is    func(ctx context.Context, b *virtual.Bubble, c *clientv3.Client, n *virtual.Network, refuse func())
	}{
		{"an observer", 1, func(ctx context.Context, b *virtual.Bubble, c *clientv3.Client, _ *virtual.Network, refuse func()) {
			refuse()
			for leader, err := range concurrency.LeadersOf(ctx, c, "election") {
				require.Equal(b.T(), context.DeadlineExceeded, err, leader)
			}
		}},
		{"a waiter, an owner, and whose key was deleted", 3, isRefused},
	} {
		t.Run(c.who, func(t *testing.T) {
			sent := map[time.Duration]int{}
			var refused atomic.Bool
			virtual.Run(t, virtual.Options{Trace: func(e virtual.Event) {
				ours := e.Client == "client" && (e.Kind == virtual.Range || e.Kind == virtual.TimeToLive)
				if refused.Load() && ours && e.What == virtual.Sent {
					sent[e.At/time.Minute]++
				}
			}}, func(b *virtual.Bubble) {
				_, client, n := remote(b)
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
				defer cancel()
				c.is(ctx, b, client, n, func() {
					n.SetScope(virtual.AllButRenewals)
					n.Set("refused-Unavailable", 1)
					refused.Store(true)
				})
				refused.Store(false)
				n.Calm()
			})
			require.GreaterOrEqual(t, len(sent), 10)
			for minute, n := range sent {
				require.LessOrEqual(t, n, c.calls*60*4, "in minute %d", minute)
			}
		})
	}
}

// isRefused is somebody who waits for a lock, owns another one, and has lost a third, until ctx ends.
func isRefused(ctx context.Context, b *virtual.Bubble, c *clientv3.Client, n *virtual.Network, refuse func()) {
	t := b.T()
	other, _ := b.Client("other")
	rival, s := session(t, other), session(t, c, concurrency.WithTTL(1))
	require.NoError(t, concurrency.NewMutex(rival, "line").Lock(ctx))
	own, deleted := concurrency.NewMutex(s, "own"), concurrency.NewMutex(s, "deleted")
	require.NoError(t, own.Lock(ctx))
	require.NoError(t, deleted.Lock(ctx))
	_, gone := own.Ctx(), deleted.Ctx()
	var waiter sync.WaitGroup
	defer waiter.Wait()
	waiter.Go(func() {
		require.Equal(t, context.DeadlineExceeded, concurrency.NewMutex(s, "line").Lock(ctx))
	})
	b.Sleep(time.Second)
	refuse()
	_, err := other.Delete(ctx, deleted.Key())
	require.NoError(t, err)
	<-gone.Done()
	n.Cut() // the others look
	require.Equal(t, context.DeadlineExceeded, deleted.Lock(ctx))
	require.NoError(t, s.Ctx().Err())
}

// Calls that change nothing are repeated, by a Get that the client repeats in between.
func TestSTMRidesOut(t *testing.T) {
	t.Parallel()
	repeatable := concurrency.WithIsolation(concurrency.RepeatableReads)
	t.Run("a fault of a read of several keys", func(t *testing.T) {
		t.Parallel()
		for _, l := range levels {
			s := newSpace(t, server(t))
			s.put(t, "x", "1", "y", "2")
			s.faults.LoseAnswers(fault.Txn, 2)
			s.run(t, func(stm concurrency.STM, _ int) {
				require.Equal(t, "1", stm.Get(s.key("x"), s.key("y")))
				require.Equal(t, "Get 2, Txn 3", s.faults.String())
			}, concurrency.WithIsolation(l.level))
		}
	})
	t.Run("a fault of a commit that only compares", func(t *testing.T) {
		t.Parallel()
		s := newSpace(t, server(t))
		s.faults.LoseAnswers(fault.Txn, 2)
		s.run(t, func(stm concurrency.STM, _ int) { stm.Get(s.key("x")) }, repeatable)
		require.Equal(t, "Get 3, Txn 3", s.faults.String())
	})
	t.Run("no fault that stays", func(t *testing.T) {
		t.Parallel()
		s := newSpace(t, server(t))
		s.faults.LoseAnswers(fault.Txn, 1000)
		for _, apply := range []func(stm concurrency.STM){
			func(stm concurrency.STM) { stm.Get(s.key("x"), s.key("y")) },
			func(stm concurrency.STM) { stm.Get(s.key("x")) },
			func(concurrency.STM) {},
		} {
			_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error { apply(stm); return nil }, repeatable)
			require.Equal(t, fault.ErrLostAnswer, err, "nothing can have been changed")
		}
	})
	t.Run("no fault of a commit that writes", func(t *testing.T) {
		t.Parallel()
		s := newSpace(t, server(t))
		s.faults.LoseAnswer(fault.Txn, 1, nil)
		_, err := concurrency.NewSTM(s.client, write([]string{s.key("x")}))
		require.ErrorIs(t, err, concurrency.ErrCommitUnknown)
		require.Equal(t, "Txn 1", s.faults.String())
	})
	t.Run("the end of a Get that fails too", func(t *testing.T) {
		t.Parallel()
		s := newSpace(t, server(t))
		s.faults.LoseAnswers(fault.Txn, 1)
		s.faults.Refuse(fault.Get, 1, codes.PermissionDenied, "etcdserver: permission denied")
		_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
			stm.Get(s.key("x"), s.key("y"))
			return nil
		})
		require.Equal(t, rpctypes.ErrPermissionDenied, err)
	})
	t.Run("until the context ends", func(t *testing.T) {
		t.Parallel()
		s := newSpace(t, server(t))
		ctx, cancel := context.WithCancel(t.Context())
		s.faults.After(fault.Txn, 2, func(error) { cancel() })
		s.faults.LoseAnswers(fault.Txn, 1000)
		_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
			stm.Get(s.key("x"), s.key("y"))
			return nil
		}, concurrency.WithAbortContext(ctx))
		require.Equal(t, context.Canceled, err)
		require.Equal(t, 2, s.faults.Count(fault.Txn))
	})
}
