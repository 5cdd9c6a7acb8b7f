package concurrency_test

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	upstream "go.etcd.io/etcd/client/v3/concurrency"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// plain is a Mutex of either package, on a session and a client of its own.
type plain struct {
	mutex interface {
		Lock(ctx context.Context) error
		TryLock(ctx context.Context) error
		Unlock(ctx context.Context) error
	}
	faults  *fault.Faults
	session interface{ Close() error }
}

// plainOf is a Mutex of one of the packages in the line.
func (l *line) plainOf(tb testing.TB, ofUpstream bool) plain {
	tb.Helper()
	c := client(tb)
	p := plain{faults: counted(tb, c)}
	if ofUpstream {
		s, err := upstream.NewSession(c)
		require.NoError(tb, err)
		tb.Cleanup(func() { s.Close() })
		p.mutex, p.session = upstream.NewMutex(s, l.name), s
	} else {
		s := session(tb, c)
		p.mutex, p.session = concurrency.NewMutex(s, l.name), s
	}
	return p
}

// watching waits until the Mutex has begun more than n watches.
func (p plain) watching(tb testing.TB, n int) {
	tb.Helper()
	etcdtest.Eventually(tb, func() bool { return p.faults.Count(fault.Watch) > n }, "more than %d watches", n)
}

// eachMutex runs a test with a plain Mutex of this package, and with one of upstream's.
func eachMutex(t *testing.T, test func(t *testing.T, l *line, m plain)) {
	t.Helper()
	t.Parallel()
	for which, ofUpstream := range map[string]bool{"here": false, "upstream": true} {
		t.Run(which, func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			test(t, l, l.plainOf(t, ofUpstream))
		})
	}
}

// A plain Mutex in the line, of either package, is a writer, and readers are holders to it.
func TestRWMutexAmongPlainMutexes(t *testing.T) {
	eachMutex(t, func(t *testing.T, l *line, plain plain) {
		ctx := t.Context()
		a, b, late := l.rw(), l.rw(), l.rw()
		require.NoError(t, a.RLock(ctx))
		require.NoError(t, b.RLock(ctx))
		held := l.waits(t, 3, func() error { return plain.mutex.Lock(ctx) })
		plain.watching(t, 0)
		require.Equal(t, concurrency.ErrLocked, late.TryRLock(ctx), "behind a writer that waits")
		read := l.waits(t, 4, func() error { return late.RLock(ctx) })

		// The reader directly ahead leaves, and the other one does not.
		require.NoError(t, b.RUnlock(ctx))
		l.stand(t, 3)
		require.True(t, held.Running())
		require.NoError(t, a.RUnlock(ctx))
		require.NoError(t, held.Wait(t))
		require.Error(t, a.TryRLock(ctx))
		require.True(t, read.Running(), "a reader behind a Mutex waits")
		require.NoError(t, plain.mutex.Unlock(ctx))
		require.NoError(t, read.Wait(t))

		require.Error(t, plain.mutex.TryLock(ctx))
		require.NoError(t, late.RUnlock(ctx))
		require.NoError(t, plain.mutex.TryLock(ctx))
		require.Equal(t, concurrency.ErrLocked, a.TryRLock(ctx))
		require.Equal(t, concurrency.ErrLocked, a.TryLock(ctx))
		write := l.waits(t, 2, func() error { return a.Lock(ctx) })
		require.NoError(t, plain.mutex.Unlock(ctx))
		require.NoError(t, write.Wait(t))
	})
}

// A Mutex whose session ends lets the readers behind it in, and readers whose session ends let
// the Mutex in.
func TestRWMutexAfterALostSession(t *testing.T) {
	eachMutex(t, func(t *testing.T, l *line, plain plain) {
		ctx := t.Context()
		require.NoError(t, plain.mutex.Lock(ctx))
		reader := l.rw()
		read := l.waits(t, 2, func() error { return reader.RLock(ctx) })
		require.NoError(t, plain.session.Close())
		require.NoError(t, read.Wait(t))
		inside := reader.Ctx()

		next := l.plainOf(t, false)
		held := l.waits(t, 2, func() error { return next.mutex.Lock(ctx) })
		_, err := l.outside.Revoke(ctx, l.session.Lease())
		require.NoError(t, err)
		require.NoError(t, held.Wait(t))
		require.ErrorIs(t, cause(t, inside), concurrency.ErrSessionExpired)
		require.Empty(t, reader.Key())
		require.Zero(t, reader.Rev())
		require.NoError(t, reader.RUnlock(ctx), "lost, which the session tells")
	})
}

// A plain Mutex in the line, of either package, waits for all permits and keeps later ones out.
func TestSemaphoreAmongPlainMutexes(t *testing.T) {
	eachMutex(t, func(t *testing.T, l *line, plain plain) {
		ctx := t.Context()
		a, b, late := l.permit(3), l.permit(3), l.permit(3)
		require.NoError(t, a.Acquire(ctx))
		require.NoError(t, b.Acquire(ctx))
		held := l.waits(t, 3, func() error { return plain.mutex.Lock(ctx) })
		plain.watching(t, 0)
		require.Equal(t, concurrency.ErrLocked, late.TryAcquire(ctx), "behind a Mutex that waits")
		third := l.waits(t, 4, func() error { return late.Acquire(ctx) })
		require.NoError(t, b.Release(ctx))
		l.stand(t, 3)
		require.True(t, held.Running())
		require.NoError(t, a.Release(ctx))
		require.NoError(t, held.Wait(t))
		require.True(t, third.Running(), "a permit behind a Mutex waits")
		require.NoError(t, plain.mutex.Unlock(ctx))
		require.NoError(t, third.Wait(t))
		require.Error(t, plain.mutex.TryLock(ctx))
		require.NoError(t, late.Release(ctx))
		require.NoError(t, plain.mutex.TryLock(ctx))
		require.Equal(t, concurrency.ErrLocked, a.TryAcquire(ctx))
		again := l.waits(t, 2, func() error { return a.Acquire(ctx) })
		require.NoError(t, plain.session.Close())
		require.NoError(t, again.Wait(t))
	})
}

// A MultiMutex waits for plain Mutexes of either package, in each of its lines, and they wait
// for it.
func TestMultiMutexAmongPlainMutexes(t *testing.T) {
	eachMutex(t, func(t *testing.T, l *line, plain plain) {
		ctx := t.Context()
		ls := lines{l}
		first, last := l.name+"x", l.name+"y"
		m := concurrency.NewMultiMutex(l.session, first, l.name, last)
		behind := concurrency.NewMutex(session(t, l.outside), last)
		require.NoError(t, plain.mutex.Lock(ctx))
		both := l.waits(t, 2, func() error { return m.Lock(ctx) })
		l.watched(t, 4) // the key ahead, and own ones
		next := etcdtest.Go(func() error { return behind.Lock(ctx) })
		etcdtest.WaitKeys(t, l.outside, last+"/", 2)
		require.True(t, next.Running(), "who waits for all keeps its place in each line")
		require.NoError(t, plain.mutex.Unlock(ctx))
		require.NoError(t, both.Wait(t))
		require.True(t, ls.all(t, m))
		require.Error(t, plain.mutex.TryLock(ctx))
		held := l.waits(t, 2, func() error { return plain.mutex.Lock(ctx) })
		require.NoError(t, m.Unlock(ctx))
		require.NoError(t, held.Wait(t))
		require.NoError(t, next.Wait(t))
		require.NoError(t, plain.session.Close())
		require.NoError(t, behind.Unlock(ctx))
		require.NoError(t, m.TryLock(ctx))
	})
}

// The name of a lock may lie where another line has its readers or its permits. Its places count
// there as such, and theirs count in its line as a stranger's.
func TestANameAmongReadersOrPermits(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, within := range []string{"/~r", "/~r/report", "/~p", "/~p/report"} {
		t.Run(within, func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			inner := concurrency.NewMutex(session(t, l.outside), l.name+within)
			reader, permit := l.rw(), l.permit(2)
			require.NoError(t, inner.Lock(ctx))
			require.Equal(t, concurrency.ErrLocked, l.mutex.TryLock(ctx), "as of every name within its own")
			if strings.HasPrefix(within, "/~r") {
				require.Equal(t, concurrency.ErrLocked, permit.TryAcquire(ctx))
				require.NoError(t, reader.TryRLock(ctx), "a reader reads beside it")
				require.NoError(t, reader.RUnlock(ctx))
			} else {
				require.Equal(t, concurrency.ErrLocked, reader.TryRLock(ctx))
				require.NoError(t, permit.TryAcquire(ctx), "it takes one permit of two")
				require.Equal(t, concurrency.ErrLocked, l.permit(2).TryAcquire(ctx))
				require.NoError(t, permit.Release(ctx))
			}
			require.NoError(t, inner.Unlock(ctx))
			l.stand(t, 0)
		})
	}
	t.Run("waits for the readers", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		inner, reader := concurrency.NewMutex(session(t, l.outside), l.name+"/~r"), l.rw()
		require.NoError(t, reader.RLock(ctx))
		require.Equal(t, concurrency.ErrLocked, inner.TryLock(ctx))
		require.NoError(t, reader.RUnlock(ctx))
		require.NoError(t, inner.TryLock(ctx))
	})
	t.Run("waits for the permits", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		inner, permit := concurrency.NewMutex(session(t, l.outside), l.name+"/~p"), l.permit(2)
		require.NoError(t, permit.Acquire(ctx))
		require.Equal(t, concurrency.ErrLocked, inner.TryLock(ctx))
		require.NoError(t, permit.Release(ctx))
		require.NoError(t, inner.TryLock(ctx))
	})
}

// blocked is a handle of the session of l that waits behind n others, who are of another session.
type blocked struct {
	*line
	n      int
	call   *etcdtest.Call
	cancel context.CancelFunc // ends the context of the call
	again  func(context.Context) error
}

// blocks has a handle wait by take behind n others, on so many watches.
func (l *line) blocks(tb testing.TB, n, watches int, take func(context.Context) error) blocked {
	tb.Helper()
	bound, cancel := context.WithCancel(tb.Context())
	tb.Cleanup(cancel)
	call := l.waits(tb, n+1, func() error { return take(bound) })
	l.watched(tb, watches)
	return blocked{l, n, call, cancel, take}
}

// waitEnds tests what ends the wait of a kind of handle.
func waitEnds(t *testing.T, begin func(*testing.T) blocked) {
	t.Helper()
	t.Run("with ctx, and leaves nothing", func(t *testing.T) {
		t.Parallel()
		b := begin(t)
		b.cancel()
		require.Equal(t, context.Canceled, b.call.Wait(t))
		require.Len(t, etcdtest.Keys(t, b.outside, b.name+"/"), b.n)
	})
	t.Run("when its key is deleted", func(t *testing.T) {
		t.Parallel()
		b := begin(t)
		for _, kv := range etcdtest.Keys(t, b.outside, b.name+"/") {
			if kv.Lease == int64(b.session.Lease()) {
				b.delete(t, string(kv.Key))
			}
		}
		require.Equal(t, concurrency.ErrSessionExpired, b.call.Wait(t))
		require.NoError(t, b.session.Ctx().Err())
	})
	t.Run("when its lease is revoked", func(t *testing.T) {
		t.Parallel()
		b := begin(t)
		_, err := b.outside.Revoke(t.Context(), b.session.Lease())
		require.NoError(t, err)
		require.Equal(t, concurrency.ErrSessionExpired, b.call.Wait(t))
		require.Error(t, b.session.Ctx().Err())
		require.Equal(t, rpctypes.ErrLeaseNotFound, b.again(t.Context()))
	})
}

func TestRLockEnds(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	begin := func(t *testing.T) blocked {
		l := newLine(t)
		l.held(t)
		return l.blocks(t, 1, 2, l.rw().RLock)
	}
	waitEnds(t, begin)
	t.Run("not when a key ahead is deleted and another one stands ahead", func(t *testing.T) {
		t.Parallel()
		l := begin(t)
		writer := l.rival(t)
		behind := l.waits(t, 3, func() error { return writer.Lock(ctx) })
		l.delete(t, string(etcdtest.Keys(t, l.outside, l.name+"/")[0].Key))
		require.NoError(t, l.call.Wait(t), "the writer that waits is behind")
		require.True(t, behind.Running())
		_, err := l.outside.Revoke(ctx, l.session.Lease())
		require.NoError(t, err)
		require.NoError(t, behind.Wait(t))
	})
}

func TestAcquireEnds(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	waitEnds(t, func(t *testing.T) blocked { // for one of two permits
		l := newLine(t)
		for range 2 {
			require.NoError(t, concurrency.NewSemaphore(session(t, l.outside), l.name, 2).Acquire(ctx))
		}
		return l.blocks(t, 2, 1, l.permit(2).Acquire)
	})
	t.Run("when a holder's session is lost, which is told to the holder", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		holder := session(t, l.outside)
		held := concurrency.NewSemaphore(holder, l.name, 1)
		require.NoError(t, held.Acquire(ctx))
		s, inside := l.permit(1), held.Ctx()
		call := l.waits(t, 2, func() error { return s.Acquire(ctx) })
		_, err := l.client.Revoke(ctx, holder.Lease())
		require.NoError(t, err)
		require.NoError(t, call.Wait(t))
		require.ErrorIs(t, cause(t, inside), concurrency.ErrSessionExpired)
		require.Empty(t, held.Key())
	})
}
