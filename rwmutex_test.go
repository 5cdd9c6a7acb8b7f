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
	upstream "go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
	"example.com/etcd/concurrency/internal/virtual"
)

// rw is another handle of the line's session.
func (l *line) rw() *concurrency.RWMutex { return concurrency.NewRWMutex(l.session, l.name) }

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

// waits begins a call and returns when n tickets stand in line.
func (l *line) waits(tb testing.TB, n int, call func() error) *etcdtest.Call {
	tb.Helper()
	c := etcdtest.Go(call)
	l.stand(tb, n)
	return c
}

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
		looks := l.faults.KV()
		cancel()
		require.Equal(t, context.Canceled, write.Wait(t))
		etcdtest.Eventually(t, func() bool { return l.faults.KV() > looks }, "another look")
		l.watched(t, 3)
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
			join := l.faults.HoldAnswer(fault.Txn, 1)
			giveUp, cancel := context.WithCancel(ctx)
			call := etcdtest.Go(func() error { return take(m, giveUp) })
			ended(t, join.Reached(), "the join")
			l.stand(t, 1)
			cancel()
			require.Equal(t, context.Canceled, call.Wait(t))
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
