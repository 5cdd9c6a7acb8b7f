package concurrency_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
	"example.com/etcd/concurrency/internal/virtual"
)

func TestRWMutexKeys(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	m, other := l.rw(), l.rw()
	require.NoError(t, m.Lock(ctx))
	require.Equal(t, fmt.Sprintf("%s/%x", l.name, l.session.Lease()), m.Key(), "a Mutex has the same")
	require.NoError(t, m.Unlock(ctx))
	require.NoError(t, m.RLock(ctx))
	require.NoError(t, other.RLock(ctx))
	under := fmt.Sprintf("%s/~r/%x/", l.name, l.session.Lease())
	require.True(t, strings.HasPrefix(m.Key(), under), m.Key())
	require.True(t, strings.HasPrefix(other.Key(), under), other.Key())
	require.NotEqual(t, m.Key(), other.Key())
	require.Greater(t, other.Rev(), m.Rev())
	require.Equal(t, other.Header().Revision, other.Rev())
}

func TestRWMutexReadersShare(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	a, b, c := l.rw(), l.rw(), concurrency.NewRWMutex(session(t, l.outside), l.name)
	for _, m := range []*concurrency.RWMutex{a, b, c} {
		require.NoError(t, m.RLock(ctx))
	}
	require.NoError(t, a.RLock(ctx), "a handle that reads already")
	l.stand(t, 3)
	require.NoError(t, a.RUnlock(ctx))
	l.stand(t, 2)
	require.Equal(t, concurrency.ErrLockReleased, a.RUnlock(ctx))
	for _, m := range []*concurrency.RWMutex{b, c} {
		require.NoError(t, m.Ctx().Err())
		resp, err := l.outside.Txn(ctx).If(m.IsOwner()).Commit()
		require.NoError(t, err)
		require.True(t, resp.Succeeded)
	}
	require.Error(t, a.Ctx().Err())
	require.Equal(t, concurrency.ErrLockReleased, context.Cause(a.Ctx()))
}

// The calls of one reader, on a server where nobody else writes.
func TestRWMutexCalls(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	own := etcdtest.New(t)
	l := lineOn(t, own)
	m, beside := l.rw(), l.rw()
	require.NoError(t, beside.RLock(ctx))
	for _, tc := range []struct {
		what    string
		call    func(context.Context) error
		entries int
		calls   string
	}{
		{"RLock", m.RLock, 1, "Txn 1"},
		{"RUnlock", m.RUnlock, 1, "Txn 1"},
		{"TryRLock", m.TryRLock, 1, "Txn 1"},
		{"TryRLock again", m.TryRLock, 1, "Txn 2"},
		{"RUnlock of TryRLock", m.RUnlock, 1, "Txn 1"},
		{"TryLock beside a reader", func(ctx context.Context) error {
			if err := m.TryLock(ctx); err != concurrency.ErrLocked {
				return fmt.Errorf("not locked: %w", err)
			}
			return nil
		}, 1, "Txn 1"},
	} {
		l.faults.Reset()
		before := own.CommittedIndex()
		require.NoError(t, tc.call(ctx), tc.what)
		require.Equal(t, tc.calls, l.faults.String(), tc.what)
		require.EqualValues(t, tc.entries, own.CommittedIndex()-before, tc.what)
	}
}

// Readers that wait behind one writer come in together, with one read each. It takes them no
// longer than it takes one.
func TestRWMutexReadersComeInTogether(t *testing.T) {
	trip := 10 * time.Millisecond
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		t, c, n := remote(b)
		n.SetRoundTrip(virtual.RoundTrip{Min: trip, Max: trip})
		f := counted(t, c)
		writer := concurrency.NewRWMutex(session(t, c), "lock")
		s := session(t, c)
		var mu sync.Mutex
		took := map[int]time.Duration{}
		for _, readers := range []int{1, 16} {
			require.NoError(t, writer.Lock(t.Context()))
			var calls []*etcdtest.Call
			var inside []*concurrency.RWMutex
			for range readers {
				m := concurrency.NewRWMutex(s, "lock")
				inside = append(inside, m)
				calls = append(calls, etcdtest.Go(func() error {
					if err := m.RLock(t.Context()); err != nil {
						return err
					}
					mu.Lock()
					defer mu.Unlock()
					took[readers] = max(took[readers], b.Now())
					return nil
				}))
			}
			<-time.After(time.Second) // of virtual time, in which all have come to rest
			f.Reset()
			began := b.Now()
			require.NoError(t, writer.Unlock(t.Context()))
			for _, call := range calls {
				require.NoError(t, call.Wait(t))
			}
			took[readers] -= began
			require.Equal(t, 1+readers, f.KV(), "the release, and a look each: nobody waits for a reader ahead")
			for _, m := range inside {
				require.NoError(t, m.RUnlock(t.Context()))
			}
		}
		require.LessOrEqual(t, took[16], took[1]*3/2)
	})
}

func TestRWMutexOrder(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	t.Run("first come, first served", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		first, writer, second, last := l.rw(), l.rw(), l.rw(), concurrency.NewRWMutex(session(t, l.outside), l.name)
		require.NoError(t, first.RLock(ctx))
		write := l.waits(t, 2, func() error { return writer.Lock(ctx) })
		read := l.waits(t, 3, func() error { return second.RLock(ctx) })
		again := l.waits(t, 4, func() error { return last.Lock(ctx) })
		require.NoError(t, first.RUnlock(ctx))
		require.NoError(t, write.Wait(t))
		require.True(t, read.Running())
		require.NoError(t, writer.Unlock(ctx))
		require.NoError(t, read.Wait(t))
		require.True(t, again.Running())
		rev := second.Rev()
		require.NoError(t, second.RUnlock(ctx))
		require.NoError(t, again.Wait(t))
		require.Greater(t, last.Rev(), rev)
	})
	t.Run("a writer that leaves lets nobody past the one who holds", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		held, reader := l.held(t), l.rw()
		giveUp, cancel := context.WithCancel(ctx)
		middle := l.rival(t)
		write := l.waits(t, 2, func() error { return middle.Lock(giveUp) })
		read := l.waits(t, 3, func() error { return reader.RLock(ctx) })
		l.watched(t, 2)
		cancel()
		require.Equal(t, context.Canceled, write.Wait(t))
		l.watched(t, 3) // the ticket ahead of the writer, which only a look has shown
		require.True(t, read.Running())
		require.NoError(t, held.Unlock(ctx))
		require.NoError(t, read.Wait(t))
	})
	t.Run("TryRLock passes no writer, and takes a free lock", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		reader, other := l.rw(), l.rw()
		require.NoError(t, reader.TryRLock(ctx))
		require.NoError(t, other.TryRLock(ctx), "beside a reader")
		behind := l.rival(t)
		write := l.waits(t, 3, func() error { return behind.Lock(ctx) })
		require.Equal(t, concurrency.ErrLocked, l.rw().TryRLock(ctx))
		require.NoError(t, reader.TryRLock(ctx), "holds it already")
		require.NoError(t, reader.RLock(ctx), "holds it already")
		l.stand(t, 3)
		require.NoError(t, reader.RUnlock(ctx))
		require.NoError(t, other.RUnlock(ctx))
		require.NoError(t, write.Wait(t))
	})
}

// The writer and the readers of one session, or of one handle, exclude each other.
func TestRWMutexBothWays(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	m := l.rw()
	require.NoError(t, m.RLock(ctx))
	require.Equal(t, concurrency.ErrLocked, m.TryLock(ctx))
	require.NotEmpty(t, m.Key(), "it still reads")
	require.NoError(t, m.Ctx().Err())
	require.Equal(t, concurrency.ErrLockReleased, m.Unlock(ctx), "it holds no write lock")
	l.stand(t, 1)
	write := l.waits(t, 2, func() error { return m.Lock(ctx) })
	require.NoError(t, m.RUnlock(ctx))
	require.NoError(t, write.Wait(t))
	require.Equal(t, concurrency.ErrLocked, m.TryRLock(ctx))
	require.Equal(t, concurrency.ErrLockReleased, m.RUnlock(ctx), "it holds no read lock")
	l.stand(t, 1)
	require.NotEmpty(t, m.Key())
	giveUp, cancel := context.WithCancel(ctx)
	read := l.waits(t, 2, func() error { return m.RLock(giveUp) })
	cancel()
	require.Equal(t, context.Canceled, read.Wait(t))
	require.NoError(t, m.Ctx().Err(), "what failed was another place of the handle")
	l.stand(t, 1)
	require.NoError(t, m.Unlock(ctx))
	l.stand(t, 0)
}

func TestRLockFaults(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for what, take := range map[string]func(*concurrency.RWMutex, context.Context) error{
		"RLock": (*concurrency.RWMutex).RLock, "TryRLock": (*concurrency.RWMutex).TryRLock,
	} {
		t.Run(what+" finds the key of a join whose answer was lost", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			m := l.rw()
			l.faults.LoseAnswer(fault.Txn, 1, nil)
			l.faults.Refuse(fault.Txn, 2, codes.Unavailable, "etcdserver: leader changed")
			require.NoError(t, take(m, ctx))
			l.stand(t, 1)
			require.NoError(t, m.Ctx().Err())
		})
		t.Run(what+" whose ctx ends leaves no key", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			m := l.rw()
			l.givesUp(t, 1, func(ctx context.Context) error { return take(m, ctx) })
			l.stand(t, 0)
			require.NoError(t, take(m, ctx), "and can be repeated")
		})
		t.Run(what+" does not go on with the ticket of a release without an answer", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			m := l.rw()
			require.NoError(t, take(m, ctx))
			rev := m.Rev()
			l.faults.Refuse(fault.Txn, 1, codes.PermissionDenied, "etcdserver: permission denied")
			cleanUp := l.faults.Hold(fault.Txn, 2)
			require.Equal(t, rpctypes.ErrPermissionDenied, m.RUnlock(ctx))
			ended(t, cleanUp.Reached(), "the clean-up")
			require.NoError(t, take(m, ctx))
			require.Greater(t, m.Rev(), rev)
		})
	}
}

// Whatever key a stranger puts into the line is a writer to a reader, wherever it comes in the
// order of keys.
func TestRWMutexAndStrangers(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, key := range []string{"", "!", "0/0", "zz", "~q", "~s", "~~", "\xff", "é/694d81"} {
		t.Run(fmt.Sprintf("%q", key), func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			m := l.rw()
			_, err := l.outside.Put(ctx, l.name+"/"+key, "")
			require.NoError(t, err)
			require.Equal(t, concurrency.ErrLocked, m.TryRLock(ctx))
			require.Equal(t, concurrency.ErrLocked, m.TryLock(ctx))
			read := l.waits(t, 2, func() error { return m.RLock(ctx) })
			l.watched(t, 1)
			require.True(t, read.Running())
			l.delete(t, l.name+"/"+key)
			require.NoError(t, read.Wait(t))
			_, err = l.outside.Put(ctx, l.name+"/"+key, "")
			require.NoError(t, err)
			require.NoError(t, m.RLock(ctx), "what comes later is behind")
			l.delete(t, l.name+"/"+key)
		})
	}
}

func TestRWMutexDo(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	a, b := l.rw(), l.rw()
	err := a.RDo(ctx, func(ctx context.Context) error {
		require.Equal(t, concurrency.ErrHeld, a.RDo(ctx, func(context.Context) error { return nil }))
		require.Equal(t, concurrency.ErrHeld, a.Do(ctx, func(context.Context) error { return nil }))
		return b.RDo(ctx, func(ctx context.Context) error {
			l.stand(t, 2)
			l.delete(t, a.Key())
			return nil
		})
	})
	require.ErrorIs(t, err, concurrency.ErrSessionExpired)
	require.NoError(t, a.Do(ctx, func(ctx context.Context) error {
		require.Equal(t, concurrency.ErrLocked, b.TryRLock(ctx))
		return nil
	}))
	l.stand(t, 0)
}

func TestRWMutexBadInput(t *testing.T) {
	t.Parallel()
	requireOurPanic(t, func() { concurrency.NewRWMutex(nil, "name") })
	var noCtx context.Context
	l := newLine(t)
	m := l.rw()
	var none concurrency.RWMutex
	for _, bug := range []func(){
		func() { m.RLock(noCtx) }, func() { m.TryRLock(noCtx) }, func() { m.Lock(noCtx) }, func() { m.TryLock(noCtx) },
		func() { m.RDo(t.Context(), nil) }, func() { m.Do(t.Context(), nil) },
		func() { none.RLock(t.Context()) }, func() { none.Lock(t.Context()) }, func() { none.Ctx() },
		func() { concurrency.NewRWMutex(&concurrency.Session{}, "name").RLock(t.Context()) },
	} {
		requireOurPanic(t, bug)
	}
	require.Equal(t, concurrency.ErrLockReleased, m.Unlock(t.Context()))
	require.Equal(t, concurrency.ErrLockReleased, m.RUnlock(t.Context()))
	require.Empty(t, m.Key())
	require.Nil(t, m.Header())
	resp, err := l.outside.Txn(t.Context()).If(m.IsOwner()).Commit()
	require.NoError(t, err)
	require.False(t, resp.Succeeded)
	l.stand(t, 0)
}
