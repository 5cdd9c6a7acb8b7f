package concurrency_test

import (
	"context"
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
)

// A server that runs out of space carries the call out and complains then. TestSTMErrors
// has the same of a commit.
func TestNoSpaceIsNoAnswer(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.faults.LoseAnswer(fault.Txn, 1, rpctypes.ErrNoSpace)
	require.Equal(t, rpctypes.ErrNoSpace, l.mutex.Lock(t.Context()))
	l.stand(t, 0)
}

// A handle may be made of a placeholder that is filled in later.
func TestPlaceholderFilledIn(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	var placeholder concurrency.Session
	m := concurrency.NewMutex(&placeholder, l.name)
	placeholder = *l.session
	require.NoError(t, m.Lock(t.Context()))
	require.NoError(t, l.mutex.Lock(t.Context()))
	require.Equal(t, l.mutex.Key(), m.Key())
	require.EqualValues(t, l.session.Lease(), etcdtest.WaitKeys(t, l.outside, l.name+"/", 1)[0].Lease)
}

// One that gives up leaves the key to another handle of the session, which is about to
// join and fails without ever having seen it.
func TestATicketLeftToASibling(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.held(t)
	giveUp, cancel := context.WithCancel(t.Context())
	first := l.waiting(t, giveUp, l.mutex, 2)
	gate := l.faults.Hold(fault.Txn, 1)
	l.faults.Refuse(fault.Txn, 1, codes.PermissionDenied, "etcdserver: permission denied")
	second := etcdtest.Go(func() error { return l.handle().Lock(t.Context()) })
	ended(t, gate.Reached(), "the sibling joins")
	cancel()
	require.Equal(t, context.Canceled, first.Wait(t))
	l.stand(t, 2)
	gate.Open()
	require.Equal(t, rpctypes.ErrPermissionDenied, second.Wait(t))
	l.stand(t, 1)
}

// deaf is a Watcher whose connection is dead without anybody's knowing.
type deaf struct{ clientv3.Watcher }

func (deaf) Watch(ctx context.Context, _ string, _ ...clientv3.OpOption) clientv3.WatchChan {
	never := make(chan clientv3.WatchResponse)
	context.AfterFunc(ctx, func() { close(never) })
	return never
}

func TestAWaitDoesNotTrustInSilence(t *testing.T) {
	t.Parallel()
	l := &line{name: prefix(t), client: client(t), outside: client(t)}
	l.client.Watcher = deaf{l.client.Watcher}
	l.faults = counted(t, l.client)
	l.session = session(t, l.client, concurrency.WithTTL(2))
	l.mutex = l.handle()
	held := l.held(t)
	call := l.waiting(t, t.Context(), l.mutex, 2)
	require.NoError(t, held.Unlock(t.Context()))
	require.NoError(t, call.Wait(t))
}

func TestACallThatIsNotAnsweredIsRepeated(t *testing.T) {
	t.Parallel()
	l := newLine(t, concurrency.WithTTL(2))
	l.faults.Hold(fault.Txn, 1)
	require.NoError(t, l.mutex.Lock(t.Context()))
	l.faults.Hold(fault.Txn, 1)
	require.NoError(t, l.mutex.Unlock(t.Context()))
	n := l.faults.Count(fault.Txn)
	require.True(t, n >= 4 && n <= 6, "%d calls: the first, and one or two beside it, each time", n)
}

// keyed counts the watches of one key.
type keyed struct {
	clientv3.Watcher
	key     string
	watches atomic.Int64
}

func (k *keyed) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	if key == k.key {
		k.watches.Add(1)
	}
	return k.Watcher.Watch(ctx, key, opts...)
}

// Ten waits in quick succession, and the contexts of their ownerships, take one watch of the
// line, or few on a machine that is busy elsewhere: not one each.
func TestWaitsInOneLineShareAWatch(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	rival := l.held(t)
	k := &keyed{Watcher: l.client.Watcher, key: l.name + "/"}
	l.client.Watcher = k
	for range 10 {
		call := etcdtest.Go(func() error { return l.mutex.Lock(t.Context()) })
		l.stand(t, 2)
		require.NoError(t, rival.Unlock(t.Context()))
		require.NoError(t, call.Wait(t))
		require.NoError(t, l.mutex.Ctx().Err())
		require.NoError(t, l.mutex.Unlock(t.Context()))
		require.NoError(t, rival.Lock(t.Context()))
	}
	require.Positive(t, k.watches.Load())
	require.Less(t, k.watches.Load(), int64(5))
}

// A write of Campaign's that comes late finds that somebody has written since.
func TestElectionCampaignAgainComesLate(t *testing.T) {
	t.Parallel()
	b := &ballot{name: prefix(t), client: client(t), outside: client(t)}
	kv := &late{KV: b.client.KV, err: rpctypes.ErrLeaderChanged}
	b.client.KV = kv
	b.faults = counted(t, b.client)
	b.session = session(t, b.client)
	b.election = b.handle()
	b.wins(t, b.election, "first")
	b.faults.After(fault.Txn, 1, func(error) {
		kv.mu.Lock()
		defer kv.mu.Unlock()
		kv.next = true // of the call that gives the key its value
	})
	b.wins(t, b.election, "second")
	require.True(t, kv.sent())
	require.NoError(t, b.election.Proclaim(t.Context(), "third"))
	kv.land(t)
	b.leads(t, b.election, "third")
}

// The release of a Do whose context lives goes on for longer than a TTL: 14 repetitions
// pause for more than two seconds.
func TestDoReleasesForAsLongAsItsContextLives(t *testing.T) {
	t.Parallel()
	l := newLine(t, concurrency.WithTTL(2))
	require.NoError(t, l.mutex.Do(t.Context(), func(context.Context) error {
		l.faults.Refuse(fault.Txn, 14, codes.Unavailable, "etcdserver: no leader")
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
