package concurrency_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// farBack is a line of n sessions on a server where nobody else writes. The first of them holds the
// lock, and the others wait for it. Behind them waits the session of l.
func farBack(tb testing.TB, n int) (l *line, locks []*concurrency.Mutex, calls []*etcdtest.Call, last *etcdtest.Call) {
	tb.Helper()
	ctx := tb.Context()
	l = lineOn(tb, etcdtest.New(tb))
	for range n {
		m := l.rival(tb)
		locks = append(locks, m)
		calls = append(calls, etcdtest.Go(func() error { return m.Lock(ctx) }))
		l.stand(tb, len(locks))
	}
	l.faults.Reset()
	own, far := watchBegins(l.faults, 1), watchBegins(l.faults, 2) // in any order
	last = etcdtest.Go(func() error { return l.mutex.Lock(ctx) })
	ended(tb, own, "a watch")
	ended(tb, far, "another watch")
	return l, locks, calls, last
}

func TestNamesThatEndInASlash(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	key := fmt.Sprintf("%s//%x", l.name, l.session.Lease())
	m := concurrency.NewMutex(l.session, l.name+"/")
	require.NoError(t, m.Lock(t.Context()))
	require.Equal(t, key, m.Key())
	require.NoError(t, m.Unlock(t.Context()))
	e := concurrency.NewElection(l.session, l.name+"/")
	require.NoError(t, e.Campaign(t.Context(), "v"))
	require.Equal(t, key, e.Key())
	require.NoError(t, e.Resign(t.Context()))
}

// Three in line, of whom the last has looked again: it makes no call when the others leave.
func TestAWaitNearTheHeadMakesNoCall(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	first, second := l.held(t), l.rival(t)
	next := etcdtest.Go(func() error { return second.Lock(ctx) })
	l.stand(t, 2)
	l.faults.Before(fault.Watch, 1, func() {
		_, err := l.outside.Put(ctx, l.name+"-other", "") // so that the watch begins later
		assert.NoError(t, err)
	})
	last := l.waiting(t, ctx, l.mutex, 3)
	etcdtest.Eventually(t, func() bool { return l.faults.Count(fault.Get) == 1 }, "the look")
	require.NoError(t, first.Unlock(ctx))
	require.NoError(t, next.Wait(t))
	require.NoError(t, second.Unlock(ctx))
	require.NoError(t, last.Wait(t))
	require.Equal(t, 1, l.faults.Count(fault.Get))
}

// Who stands far back makes one call more, when it comes near. No release is told to it before.
func TestAWaitFarBack(t *testing.T) {
	t.Parallel()
	l, locks, calls, last := farBack(t, 20)
	for n, m := range locks {
		require.NoError(t, calls[n].Wait(t))
		if n == 16 { // behind the key that is watched there are 3 more
			require.Equal(t, "Txn 1, Watch 2", l.calls())
			near := watchBegins(l.faults, 1)
			require.NoError(t, m.Unlock(t.Context()))
			ended(t, near, "the watch of the line")
			continue
		}
		require.NoError(t, m.Unlock(t.Context()))
	}
	require.NoError(t, last.Wait(t))
	require.Equal(t, "Get 1, Txn 1, Watch 3", l.calls())
}

func TestAWaitFarBackHearsOfItsOwnKey(t *testing.T) {
	t.Parallel()
	l, _, _, last := farBack(t, 20)
	keys := etcdtest.WaitKeys(t, l.outside, l.name+"/", 21)
	l.delete(t, string(keys[20].Key))
	require.Equal(t, concurrency.ErrSessionExpired, last.Wait(t))
}

// The tickets between may go in any order. Who is far back and comes near by that is no worse
// off than before.
func TestAWaitFarBackWhoseLineShrinks(t *testing.T) {
	t.Parallel()
	l, locks, _, last := farBack(t, 20)
	keys := etcdtest.WaitKeys(t, l.outside, l.name+"/", 21)
	for _, kv := range keys[1:20] {
		l.delete(t, string(kv.Key))
	}
	require.True(t, last.Running())
	require.NoError(t, locks[0].Unlock(t.Context()))
	require.NoError(t, last.Wait(t))
	require.True(t, l.owns(t, l.mutex))
}

// The own deletion and that of the last one ahead come together. Who hears of them owns nothing.
func TestADeletionOfTheWholeLine(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.held(t)
	call := l.waiting(t, t.Context(), l.mutex, 2)
	_, err := l.outside.Delete(t.Context(), l.name+"/", clientv3.WithPrefix())
	require.NoError(t, err)
	require.Equal(t, concurrency.ErrSessionExpired, call.Wait(t))
	l.stand(t, 0)
}

// The value of a candidate that waits is written after the view was read. What happened between
// is not in the view.
func TestACampaignThatGivesItsKeyAValueMissesNothing(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := newBallot(t, etcdtest.New(t)) // where nobody else writes, and calls for looks
	leader := b.rival(t)
	b.wins(t, leader, "leader")
	first := b.waits(t, ctx, b.election, "v", 2)
	value := b.faults.Hold(fault.Txn, 2)
	again := etcdtest.Go(func() error { return b.handle().Campaign(ctx, "w") })
	ended(t, value.Reached(), "the new value")
	require.NoError(t, leader.Resign(ctx))
	require.NoError(t, first.Wait(t))
	value.Open()
	require.NoError(t, within(t, 20*time.Second, func() error { return again.Wait(t) }))
	b.leads(t, b.election, "w")
}
