// Package leaks asks etcd's own checker of leaked goroutines, which etcd's tests end with,
// about programs that use this module. Its tests run one after the other, because the
// checker sees all goroutines of the process, and calls leaked what it sees at one look.
package leaks

import (
	"fmt"
	"runtime"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/client/pkg/v3/testutil"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
)

const sessions = 120

func TestEtcdsLeakCheckerSeesNothing(t *testing.T) {
	cluster, err := etcdtest.Start()
	require.NoError(t, err)
	client, err := cluster.NewClient()
	require.NoError(t, err)
	before := callbacks()
	for i := range sessions {
		use(t, client, i)
	}
	for range 3 { // what is found to be gone by one collection may free more for the next
		runtime.GC()
	}
	// A callback that the runtime runs for a value that has gone is a goroutine, and is seen
	// while it runs: by chance. None is there to be seen, but for those of others.
	require.Less(t, callbacks()-before, uint64(sessions/3), "callbacks, of %d sessions", sessions)

	require.NoError(t, client.Close()) // which ends the sessions that are neither closed nor orphaned
	cluster.Close()
	require.NoError(t, testutil.CheckAfterTest(5*time.Second))
	runtime.GC()
	require.False(t, testutil.CheckLeakedGoroutine(), "what it has seen stands above")
}

// callbacks is how many callbacks for values that have gone were to be run until now.
func callbacks() uint64 {
	samples := []metrics.Sample{
		{Name: "/gc/cleanups/queued:cleanups"}, {Name: "/gc/finalizers/queued:finalizers"},
	}
	metrics.Read(samples)
	return samples[0].Value.Uint64() + samples[1].Value.Uint64()
}

// use opens a session, works with it and drops it; every third is orphaned before and every
// third closed.
func use(t *testing.T, client *clientv3.Client, i int) {
	t.Helper()
	s, err := concurrency.NewSession(client, concurrency.WithTTL(60))
	require.NoError(t, err)
	if i%3 == 1 {
		s.Orphan()
	}
	name := fmt.Sprint("name-", i)
	m := concurrency.NewMutex(s, name)
	require.NoError(t, m.Lock(t.Context()))
	_ = m.Ctx()
	require.NoError(t, m.Unlock(t.Context()))
	e := concurrency.NewElection(s, name)
	require.NoError(t, e.Campaign(t.Context(), "value"))
	require.NoError(t, e.Resign(t.Context()))
	if i%3 == 2 {
		require.NoError(t, s.Close())
	}
}

// etcd's services orphan the session of each call before they wait on it.
func TestAWaitOnAnOrphanedSessionLeavesNothing(t *testing.T) {
	cluster := etcdtest.New(t)
	client := cluster.Client(t)
	open := func() *concurrency.Session {
		s, err := concurrency.NewSession(client)
		require.NoError(t, err)
		return s
	}
	s, orphan := open(), open()
	orphan.Orphan()
	m := concurrency.NewMutex(s, "name")
	require.NoError(t, m.Lock(t.Context()))
	call := etcdtest.Go(func() error { return concurrency.NewMutex(orphan, "name").Lock(t.Context()) })
	etcdtest.Eventually(t, func() bool {
		n, err := cluster.Watchers()
		return err == nil && n > 0
	}, "the orphaned session waits")
	require.NoError(t, m.Unlock(t.Context()))
	require.NoError(t, call.Wait(t))
	require.NoError(t, s.Close())
	stacks := make([]byte, 1<<20)
	require.NotContains(t, string(stacks[:runtime.Stack(stacks, true)]), "example.com/etcd/concurrency.watch")
}
