package concurrency_test

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

func TestSemaphore(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	a, b, c := l.permit(2), concurrency.NewSemaphore(session(t, l.outside), l.name, 2), l.permit(2)
	require.NoError(t, a.Acquire(ctx))
	require.NoError(t, b.Acquire(ctx))
	require.NoError(t, a.Acquire(ctx), "it has its permit already")
	l.stand(t, 2)
	require.True(t, strings.HasPrefix(a.Key(), fmt.Sprintf("%s/~p/%x/", l.name, l.session.Lease())), a.Key())
	require.Greater(t, b.Rev(), a.Rev())
	require.Equal(t, b.Header().Revision, b.Rev())
	third := l.waits(t, 3, func() error { return c.Acquire(ctx) })
	l.watched(t, 1)
	require.True(t, third.Running())
	require.NoError(t, b.Release(ctx))
	require.NoError(t, third.Wait(t))
	require.Equal(t, concurrency.ErrLockReleased, b.Release(ctx))
	for _, s := range []*concurrency.Semaphore{a, c} {
		require.NoError(t, s.Ctx().Err())
		resp, err := l.outside.Txn(ctx).If(s.IsOwner()).Commit()
		require.NoError(t, err)
		require.True(t, resp.Succeeded)
		require.NoError(t, s.Release(ctx))
		require.Equal(t, concurrency.ErrLockReleased, context.Cause(s.Ctx()))
	}
	l.stand(t, 0)
}

func TestSemaphoreCalls(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	own := etcdtest.New(t)
	l := lineOn(t, own)
	s, beside := l.permit(2), l.permit(2)
	try := func(s *concurrency.Semaphore, expected error) func(context.Context) error {
		return func(ctx context.Context) error {
			if err := s.TryAcquire(ctx); err != expected {
				return fmt.Errorf("not %v: %w", expected, err)
			}
			return nil
		}
	}
	for _, tc := range []struct {
		what    string
		call    func(context.Context) error
		entries int
		calls   string
	}{
		{"Acquire, free", s.Acquire, 1, "Txn 1"},
		{"Release", s.Release, 1, "Txn 1"},
		{"TryAcquire, free", try(s, nil), 1, "Txn 1"},
		{"TryAcquire of a handle that has its permit", try(s, nil), 1, "Get 1, Txn 1"},
		{"TryAcquire of the last permit", try(beside, nil), 2, "Txn 2"},
		{"TryAcquire, full", try(l.permit(2), concurrency.ErrLocked), 1, "Txn 1"},
		{"Release of one", s.Release, 1, "Txn 1"},
		{"Acquire of the last permit", s.Acquire, 1, "Txn 1"},
	} {
		l.faults.Reset()
		entries, rev := own.CommittedIndex(), l.revision(t)
		require.NoError(t, tc.call(ctx), tc.what)
		require.Equal(t, tc.calls, l.faults.String(), tc.what)
		require.EqualValues(t, tc.entries, own.CommittedIndex()-entries, tc.what)
		if strings.Contains(tc.what, "full") {
			require.Equal(t, rev, l.revision(t), "nothing was written")
		}
	}
	// A wait for one of several holders, on a store where nobody else writes.
	l.faults.Reset()
	behind := l.permit(2)
	begun := watchBegins(l.faults, 1)
	call := l.waits(t, 3, func() error { return behind.Acquire(ctx) })
	ended(t, begun, "the watch")
	require.NoError(t, s.Release(ctx))
	require.NoError(t, call.Wait(t))
	require.Equal(t, "Txn 2, Watch 1", l.faults.String(), "a join; and the Release")
}

func TestSemaphoreOrder(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	t.Run("first come, first served", func(t *testing.T) {
		t.Parallel()
		const n, participants = 3, 12
		l := newLine(t)
		permits := make([]*concurrency.Semaphore, participants)
		calls := make([]*etcdtest.Call, participants)
		for i := range permits {
			permits[i] = l.permit(n)
			calls[i] = l.waits(t, i+1, func() error { return permits[i].Acquire(ctx) })
		}
		// The holders leave in an order that is not the order in which they came.
		for i, leaves := range []int{1, 0, 2, 5, 3, 4, 6, 8, 7} {
			for j := range n + i {
				require.NoError(t, calls[j].Wait(t))
			}
			for j := n + i; j < participants; j++ {
				require.True(t, calls[j].Running(), "%d of %d, after %d releases", j, participants, i)
			}
			require.NoError(t, permits[leaves].Release(ctx))
		}
		for _, call := range calls {
			require.NoError(t, call.Wait(t))
		}
	})
	t.Run("who waits counts for those behind", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		require.NoError(t, l.permit(1).Acquire(ctx))
		narrow := l.permit(1)
		giveUp, cancel := context.WithCancel(ctx)
		call := l.waits(t, 2, func() error { return narrow.Acquire(giveUp) })
		require.Equal(t, concurrency.ErrLocked, l.permit(2).TryAcquire(ctx))
		require.NoError(t, l.permit(3).TryAcquire(ctx), "n is each one's own")
		l.stand(t, 3)
		cancel()
		require.Equal(t, context.Canceled, call.Wait(t))
		l.stand(t, 2)
	})
	t.Run("of many that try at once, n win", func(t *testing.T) {
		t.Parallel()
		const n = 3
		l := newLine(t)
		var won atomic.Int64
		var calls []*etcdtest.Call
		for range 9 {
			s := concurrency.NewSemaphore(session(t, l.outside), l.name, n)
			calls = append(calls, etcdtest.Go(func() error {
				err := s.TryAcquire(ctx)
				if err == nil {
					won.Add(1)
				}
				return err
			}))
		}
		for _, call := range calls {
			if err := call.Wait(t); err != nil {
				require.Equal(t, concurrency.ErrLocked, err)
			}
		}
		require.EqualValues(t, n, won.Load())
		l.stand(t, n)
	})
}

// Who stands far back is let in though one holder stays for good, whichever of the permits that
// holder has.
func TestSemaphoreFarBack(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	const n, ahead = 2, 24
	// The first two own at first. Of those ahead, the fourth from behind is where a waiter for a
	// Mutex would begin to follow.
	for _, stays := range []int{0, 1, ahead - 4} {
		t.Run(fmt.Sprint(stays), func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			var permits []*concurrency.Semaphore
			var calls []*etcdtest.Call
			for i := range ahead {
				permits = append(permits, concurrency.NewSemaphore(l.session, l.name, n))
				calls = append(calls, l.waits(t, i+1, func() error { return permits[i].Acquire(ctx) }))
			}
			far := concurrency.NewSemaphore(session(t, l.outside), l.name, n)
			last := l.waits(t, ahead+1, func() error { return far.Acquire(ctx) })
			for i, call := range calls {
				require.NoError(t, call.Wait(t))
				if i != stays {
					require.NoError(t, permits[i].Release(ctx))
				}
			}
			require.NoError(t, last.Wait(t))
			require.NoError(t, permits[stays].Ctx().Err())
		})
	}
}

func TestAcquireFaults(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for what, take := range map[string]func(*concurrency.Semaphore, context.Context) error{
		"Acquire": (*concurrency.Semaphore).Acquire, "TryAcquire": (*concurrency.Semaphore).TryAcquire,
	} {
		t.Run(what+" finds the key of a join whose answer was lost", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			s := l.permit(2)
			require.NoError(t, l.permit(2).Acquire(ctx))
			l.faults.LoseAnswers(fault.Txn, 2)
			require.NoError(t, take(s, ctx))
			l.stand(t, 2)
			require.NoError(t, s.Ctx().Err())
		})
		t.Run(what+" whose ctx ends leaves no key", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			s := l.permit(2)
			l.givesUp(t, 1, func(ctx context.Context) error { return take(s, ctx) })
			l.stand(t, 0)
		})
	}
	t.Run("TryAcquire looks again when somebody comes in between", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		require.NoError(t, l.permit(2).Acquire(ctx))
		rival, s := concurrency.NewSemaphore(session(t, l.outside), l.name, 2), l.permit(2)
		l.faults.Before(fault.Txn, 2, func() { require.NoError(t, rival.Acquire(ctx)) })
		require.Equal(t, concurrency.ErrLocked, s.TryAcquire(ctx))
		l.stand(t, 2)
	})
	t.Run("a watch that breaks ends no wait", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		held := []*concurrency.Semaphore{
			concurrency.NewSemaphore(session(t, l.outside), l.name, 2), concurrency.NewSemaphore(session(t, l.outside), l.name, 2),
		}
		for _, s := range held {
			require.NoError(t, s.Acquire(ctx))
		}
		broken := l.faults.BreakWatch(1, nil)
		s := l.permit(2)
		call := l.waits(t, 3, func() error { return s.Acquire(ctx) })
		l.watched(t, 1)
		require.NoError(t, held[1].Release(ctx))
		broken.Open()
		require.NoError(t, call.Wait(t))
	})
	t.Run("errors that do not pass are returned bare", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.faults.Refuse(fault.Txn, 1, codes.PermissionDenied, "etcdserver: permission denied")
		require.Equal(t, rpctypes.ErrPermissionDenied, l.permit(2).Acquire(ctx))
		l.stand(t, 0)
	})
}

// A key that a stranger puts into the line holds all permits.
func TestSemaphoreAndStrangers(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, key := range []string{"", "0/0", "zz", "~r/1/1", "~~", "\xff"} {
		t.Run(fmt.Sprintf("%q", key), func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			s := l.permit(3)
			_, err := l.outside.Put(ctx, l.name+"/"+key, "")
			require.NoError(t, err)
			require.Equal(t, concurrency.ErrLocked, s.TryAcquire(ctx))
			call := l.waits(t, 2, func() error { return s.Acquire(ctx) })
			l.watched(t, 1)
			require.True(t, call.Running())
			l.delete(t, l.name+"/"+key)
			require.NoError(t, call.Wait(t))
		})
	}
	t.Run("one among the permits takes one of them", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		_, err := l.outside.Put(ctx, l.name+"/~p/stranger", "")
		require.NoError(t, err)
		require.NoError(t, l.permit(2).TryAcquire(ctx))
		require.Equal(t, concurrency.ErrLocked, l.permit(2).TryAcquire(ctx))
	})
}

func TestSemaphoreDo(t *testing.T) {
	t.Parallel()
	const n = 3
	l := newLine(t)
	var inside, most atomic.Int64
	var calls []*etcdtest.Call
	for range 8 {
		s := l.permit(n)
		calls = append(calls, etcdtest.Go(func() error {
			return s.Do(t.Context(), func(context.Context) error {
				defer inside.Add(-1)
				now := inside.Add(1)
				for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
				}
				return nil
			})
		}))
	}
	for _, call := range calls {
		require.NoError(t, call.Wait(t))
	}
	require.LessOrEqual(t, most.Load(), int64(n))
	l.stand(t, 0)
}

func TestSemaphoreBadInput(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	var none concurrency.Semaphore
	var noCtx context.Context
	s := l.permit(1)
	for _, bug := range []func(){
		func() { concurrency.NewSemaphore(nil, "name", 1) },
		func() { concurrency.NewSemaphore(l.session, "name", 0) },
		func() { concurrency.NewSemaphore(l.session, "name", -1) },
		func() { s.Acquire(noCtx) }, func() { s.TryAcquire(noCtx) }, func() { s.Do(t.Context(), nil) },
		func() { none.Acquire(t.Context()) }, func() { none.Ctx() },
	} {
		requireOurPanic(t, bug)
	}
	require.Equal(t, concurrency.ErrLockReleased, s.Release(t.Context()))
	require.Empty(t, s.Key())
	require.Zero(t, s.Rev())
	require.Nil(t, s.Header())
	l.stand(t, 0)
}

func TestSemaphoreOfAnyNumber(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	one, two := l.permit(math.MaxInt), concurrency.NewSemaphore(session(t, l.outside), l.name, math.MaxInt)
	require.NoError(t, one.TryAcquire(t.Context()))
	require.NoError(t, within(t, 10*time.Second, func() error { return two.Acquire(t.Context()) }))
	require.NoError(t, one.Release(t.Context()))
	require.NoError(t, two.Release(t.Context()))
}
