package concurrency_test

import (
	"context"
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

// The key is gone when the call returns, while a server answers: not only later.
func TestLockWithoutAnAnswerTakesItsKeyAway(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.givesUp(t, 1, l.mutex.Lock)
	require.Empty(t, etcdtest.Keys(t, l.outside, l.name+"/"))
}

// lateJoin is a line whose next join is under way for as long as the test wants.
func lateJoin(tb testing.TB, err error, opts ...concurrency.SessionOption) (*line, *late) {
	tb.Helper()
	l := &line{name: prefix(tb), client: client(tb), outside: client(tb)}
	kv := &late{KV: l.client.KV, err: err, next: true}
	l.client.KV = kv
	l.faults = counted(tb, l.client)
	l.session = session(tb, l.client, opts...)
	l.mutex = l.handle()
	return l, kv
}

// giveUp ends a Lock while its join is under way.
func giveUp(tb testing.TB, l *line, kv *late) {
	tb.Helper()
	short, cancel := context.WithCancel(context.Background())
	call := etcdtest.Go(func() error { return l.mutex.Lock(short) })
	etcdtest.Eventually(tb, kv.sent, "the join is under way")
	cancel()
	require.Equal(tb, context.Canceled, call.Wait(tb))
}

// A Lock that fails takes its key away again, however late the key comes. Here its answer is
// lost with the context.
func TestLockThatFailsLeavesNoKey(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.givesUp(t, 1, l.mutex.Lock)
	l.stand(t, 0)
}

func TestJoinThatLandsAfterItsCallerHasGone(t *testing.T) {
	t.Parallel()
	l, kv := lateJoin(t, nil)
	giveUp(t, l, kv)
	require.True(t, kv.land(t).Succeeded)
	l.stand(t, 0)
}

func TestJoinThatLandsWhenTheTTLHasPassed(t *testing.T) {
	t.Parallel()
	l, kv := lateJoin(t, nil, concurrency.WithTTL(1))
	giveUp(t, l, kv)
	<-time.After(1500 * time.Millisecond) // from here on looks are rare
	require.True(t, kv.land(t).Succeeded)
	l.stand(t, 0)
	require.NoError(t, l.session.Ctx().Err(), "the key did not go with the lease")
}

func TestJoinThatLandsWhenAnotherSessionHasTheLease(t *testing.T) {
	t.Parallel()
	l, kv := lateJoin(t, nil, concurrency.WithTTL(1))
	giveUp(t, l, kv)
	l.session.Orphan()
	heir := session(t, l.client, concurrency.WithLease(l.session.Lease()))
	<-time.After(1500 * time.Millisecond) // from here on looks are rare
	require.True(t, kv.land(t).Succeeded)
	l.stand(t, 0)
	require.NoError(t, heir.Ctx().Err(), "the key did not go with the lease")
}

// It becomes the sibling's ticket.
func TestJoinThatLandsWhileASiblingWaits(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l, kv := lateJoin(t, nil)
	held := l.held(t)
	giveUp(t, l, kv)
	call := l.waiting(t, ctx, l.handle(), 2)
	require.False(t, kv.land(t).Succeeded)
	require.NoError(t, held.Unlock(ctx))
	require.NoError(t, call.Wait(t))
}

func TestJoinThatLandsAfterASiblingHasComeAndGone(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l, kv := lateJoin(t, nil)
	giveUp(t, l, kv)
	sibling := l.handle()
	require.NoError(t, sibling.Lock(ctx))
	looks := l.faults.Count(fault.Get)
	etcdtest.Eventually(t, func() bool { return l.faults.Count(fault.Get) > looks }, "the clean-up has seen it")
	require.NoError(t, sibling.Unlock(ctx))
	require.True(t, kv.land(t).Succeeded)
	l.stand(t, 0)
}

func TestCleanUpBesideAnotherSessionOnTheLease(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l, kv := lateJoin(t, nil)
	giveUp(t, l, kv)
	l.session.Orphan()
	resumed := concurrency.NewMutex(session(t, l.client, concurrency.WithLease(l.session.Lease())), l.name)
	require.NoError(t, resumed.Lock(ctx))
	looks := l.faults.Count(fault.Get)
	etcdtest.Eventually(t, func() bool { return l.faults.Count(fault.Get) > looks+1 }, "the clean-up has seen it")
	require.True(t, l.owns(t, resumed))
	require.NoError(t, resumed.Unlock(ctx))
	require.True(t, kv.land(t).Succeeded)
	l.stand(t, 0)
}

func TestFirstOfTwoJoinsLandsAfterTheRelease(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l, kv := lateJoin(t, rpctypes.ErrTimeout)
	require.NoError(t, l.mutex.Lock(ctx))
	require.NoError(t, l.mutex.Unlock(ctx))
	require.True(t, kv.land(t).Succeeded)
	l.stand(t, 0)
}

func TestCleanUpLeavesALaterAcquisitionAlone(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	l.held(t)
	short, cancel := context.WithCancel(ctx)
	call := l.waiting(t, short, l.mutex, 2)
	removal := l.faults.Hold(fault.Txn, 1)
	cancel()
	ended(t, removal.Reached(), "the clean-up")
	require.Equal(t, context.Canceled, call.Wait(t))
	begun := watchBegins(l.faults, 1)
	again := etcdtest.Go(func() error { return l.mutex.Lock(ctx) })
	ended(t, begun, "it waits")
	removal.Open()
	for _, kv := range etcdtest.WaitKeys(t, l.outside, l.name+"/", 2)[:1] {
		l.delete(t, string(kv.Key))
	}
	require.NoError(t, again.Wait(t))
	require.True(t, l.owns(t, l.mutex))
	require.NoError(t, l.mutex.Unlock(ctx))
}

// An orphaned session looks for a join without an answer for as long as its lease lives, and is told
// by nobody when that ends.
func TestAnOrphanedSessionLooksNoLongerThanItsLeaseLives(t *testing.T) {
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		t, c, _ := remote(b)
		kv := &late{KV: c.KV, next: true}
		c.KV = kv
		f := counted(t, c)
		s := session(t, c, concurrency.WithTTL(3))
		short, cancel := context.WithCancel(t.Context())
		call := etcdtest.Go(func() error { return concurrency.NewMutex(s, "name").Lock(short) })
		etcdtest.Eventually(t, kv.sent, "the join is under way")
		cancel()
		require.Equal(t, context.Canceled, call.Wait(t))
		s.Orphan()
		etcdtest.Eventually(t, func() bool { return f.Count(fault.TimeToLive) == 1 }, "it asks for the lease")
		<-time.After(time.Minute)
		calls := f.Count(fault.Get) + f.Count(fault.TimeToLive)
		<-time.After(time.Hour)
		require.Equal(t, calls, f.Count(fault.Get)+f.Count(fault.TimeToLive))
	})
}

// A clean-up goes on for as long as the session lives, however long no server answers:
// nobody else could end the wait of those behind.
func TestCleanUpLastsAsLongAsTheSession(t *testing.T) {
	const ttl = 2
	silent := func(l *line, kind fault.Kind) {
		l.faults.Refuse(kind, 1000, codes.Unavailable, "etcdserver: no leader")
	}
	for what, leave := range map[string]func(t *testing.T, l *line){
		"a wait that is given up": func(t *testing.T, l *line) {
			ctx, cancel := context.WithCancel(t.Context())
			l.held(t)
			call := l.waiting(t, ctx, l.mutex, 2)
			silent(l, fault.Txn)
			cancel()
			require.Equal(t, context.Canceled, call.Wait(t))
		},
		"a join without an answer": func(t *testing.T, l *line) {
			ctx, cancel := context.WithCancel(t.Context())
			l.held(t)
			l.faults.After(fault.Txn, 1, func(error) {
				silent(l, fault.Get)
				cancel()
			})
			l.faults.LoseAnswers(fault.Txn, 1)
			require.Equal(t, context.Canceled, l.mutex.Lock(ctx))
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			l := newLine(t, concurrency.WithTTL(ttl))
			leave(t, l)
			l.stand(t, 2)
			begun := time.Now()
			etcdtest.Eventually(t, func() bool {
				return l.session.Deadline().Sub(begun) > 3*ttl*time.Second
			}, "a renewal two TTLs later")
			l.faults.Clear()
			l.stand(t, 1)
		})
	}
}

// A clean-up leaves a release alone: one that finds its ticket gone would take it for lost.
func TestCleanUpLeavesAReleaseAlone(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.faults.LoseAnswer(fault.Txn, 1, nil) // so that the key is looked for, for a TTL
	require.NoError(t, l.mutex.Do(t.Context(), func(context.Context) error {
		deletion := l.faults.Hold(fault.Txn, 1)
		looks := l.faults.Count(fault.Get)
		go func() {
			<-deletion.Reached()
			etcdtest.Eventually(t, func() bool { return l.faults.Count(fault.Get) > looks+2 }, "three looks")
			deletion.Open()
		}()
		return nil
	}))
	l.stand(t, 0)
}

// Who gives up a release leaves nobody to wait for the end of the session.
func TestAReleaseThatWasGivenUpGoesOn(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		l := newLine(t)
		h := kind(l.session, l.name)
		require.NoError(t, h.take(t.Context()))
		require.Equal(t, context.Canceled, h.giveBack(cancelled()))
		l.stand(t, 0)
		require.NoError(t, h.giveBack(t.Context()), "it can be repeated")
		require.NoError(t, h.take(t.Context()))
		require.NoError(t, h.giveBack(t.Context()))
	})
}

// A server with auth may refuse what has no caller, such as a clean-up, for good.
func TestAnOrphanedSessionCleansUpNoLongerThanItsLeaseLives(t *testing.T) {
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		t, c, _ := remote(b)
		outside, _ := b.Client("outside")
		f := counted(t, c)
		holder := concurrency.NewMutex(session(t, outside), "lock")
		require.NoError(t, holder.Lock(t.Context()))
		s := session(t, c, concurrency.WithTTL(6))
		s.Orphan()
		short, cancel := context.WithCancel(t.Context())
		call := etcdtest.Go(func() error { return concurrency.NewMutex(s, "lock").Lock(short) })
		b.Sleep(time.Second) // it waits
		f.Refuse(fault.Txn, 1e6, codes.PermissionDenied, "made up")
		f.Refuse(fault.Get, 1e6, codes.PermissionDenied, "made up")
		cancel()
		require.Equal(t, context.Canceled, call.Wait(t))
		b.Sleep(time.Minute)
		etcdtest.WaitKeys(t, outside, "lock/", 1) // the lease has expired
		f.Reset()
		b.Sleep(time.Hour)
		require.Zero(t, f.KV()+f.Count(fault.TimeToLive))
		f.Clear()
		require.NoError(t, holder.Unlock(t.Context()))
	})
}
