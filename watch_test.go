package concurrency_test

import (
	"context"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/virtual"
)

func TestWatchesAskForALeader(t *testing.T) {
	t.Parallel()
	ctx, c, name := t.Context(), client(t), prefix(t)
	require.NoError(t, concurrency.NewMutex(session(t, client(t)), name).Lock(ctx))
	spy := &watchSpy{Watcher: c.Watcher}
	c.Watcher = spy
	giveUp, cancel := context.WithCancel(ctx)
	m := concurrency.NewMutex(session(t, c), name)
	call := etcdtest.Go(func() error { return m.Lock(giveUp) })
	etcdtest.Eventually(t, func() bool { return len(spy.all()) == 1 }, "the watch")
	cancel()
	require.Equal(t, context.Canceled, call.Wait(t))
	for _, watch := range spy.all() {
		sent, _ := metadata.FromOutgoingContext(watch)
		require.Equal(t, []string{rpctypes.MetadataHasLeader}, sent.Get(rpctypes.MetadataRequireLeaderKey))
	}
}

// Ten waits in quick succession take one stream of watches, or few on a machine that is busy
// elsewhere: not one each.
func TestQuickWaitsShareAStreamOfWatches(t *testing.T) {
	t.Parallel()
	ctx, name := t.Context(), prefix(t)
	var streams atomic.Int64
	cfg := etcdtest.ClientConfig(server(t).Endpoints()...)
	cfg.DialOptions = append(cfg.DialOptions, grpc.WithChainStreamInterceptor(func(
		ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption,
	) (grpc.ClientStream, error) {
		if method == "/etcdserverpb.Watch/Watch" {
			streams.Add(1)
		}
		return next(ctx, desc, conn, method, opts...)
	}))
	c, err := clientv3.New(cfg)
	require.NoError(t, err)
	defer c.Close()
	m, rival := concurrency.NewMutex(session(t, c), name), concurrency.NewMutex(session(t, client(t)), name)
	for range 10 {
		require.NoError(t, rival.Lock(ctx))
		call := etcdtest.Go(func() error { return m.Lock(ctx) })
		etcdtest.WaitKeys(t, c, name+"/", 2)
		require.NoError(t, rival.Unlock(ctx))
		require.NoError(t, call.Wait(t))
		require.NoError(t, m.Unlock(ctx))
	}
	require.Less(t, streams.Load(), int64(5))
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

func TestAKeptWatchEndsWithItsSession(t *testing.T) {
	t.Parallel()
	c, name := client(t), prefix(t)
	spy := &watchSpy{Watcher: c.Watcher}
	c.Watcher = spy
	s := session(t, c)
	rival := concurrency.NewMutex(session(t, client(t)), name)
	require.NoError(t, rival.Lock(t.Context()))
	call := etcdtest.Go(func() error { return concurrency.NewMutex(s, name).Lock(t.Context()) })
	etcdtest.WaitKeys(t, c, name+"/", 2)
	require.NoError(t, rival.Unlock(t.Context()))
	require.NoError(t, call.Wait(t))
	require.NoError(t, s.Close())
	for _, watch := range spy.all() {
		require.Error(t, watch.Err())
	}
}

// etcd's own services open a session for each call, orphan it, and wait.
func TestASessionThatHasEndedKeepsNoWatch(t *testing.T) {
	t.Parallel()
	c, name := client(t), prefix(t)
	spy := &watchSpy{Watcher: c.Watcher}
	c.Watcher = spy
	s := session(t, c)
	s.Orphan()
	rival := concurrency.NewMutex(session(t, client(t)), name)
	require.NoError(t, rival.Lock(t.Context()))
	m := concurrency.NewMutex(s, name)
	call := etcdtest.Go(func() error { return m.Lock(t.Context()) })
	etcdtest.Eventually(t, func() bool { return len(spy.all()) == 1 }, "the watch")
	require.NoError(t, rival.Unlock(t.Context()))
	require.NoError(t, call.Wait(t))
	for _, watch := range spy.all() {
		require.Error(t, watch.Err())
	}
	require.NoError(t, m.Unlock(t.Context()))
}

// A watch that is kept for the next wait ends when the client is closed, and not a second later.
func TestAKeptWatchEndsWithItsClient(t *testing.T) {
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		t, c, _ := remote(b)
		other, _ := b.Client("other")
		ctx := context.Background()
		rival, s := session(t, other), session(t, c)
		held, m := concurrency.NewMutex(rival, "line"), concurrency.NewMutex(s, "line")
		require.NoError(t, held.Lock(ctx))
		call := etcdtest.Go(func() error { return m.Lock(ctx) })
		etcdtest.WaitKeys(t, other, "line/", 2)
		b.Sleep(time.Second)
		require.NoError(t, held.Unlock(ctx))
		require.NoError(t, call.Wait(t))
		synctest.Wait()
		require.Equal(t, 1, watching())
		require.NoError(t, c.Close())
		synctest.Wait()
		require.Zero(t, watching())
	})
}

// watching counts the goroutines of watches in a bubble.
func watching() (n int) {
	stacks := make([]byte, 1<<20)
	for stack := range strings.SplitSeq(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
		if strings.Contains(stack, "synctest bubble") && strings.Contains(stack, "concurrency.(*watches).watchInto") {
			n++
		}
	}
	return n
}

// lagging is a Watcher whose watches tell nothing while they lag.
type lagging struct {
	clientv3.Watcher
	mu  sync.Mutex    // guards the field below
	lag chan struct{} // closed when it is over; nil: there is none
}

func (w *lagging) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	from, to := w.Watcher.Watch(ctx, key, opts...), make(chan clientv3.WatchResponse)
	go func() {
		defer close(to)
		for news := range from {
			w.mu.Lock()
			lag := w.lag
			w.mu.Unlock()
			if lag != nil {
				<-lag
			}
			select {
			case to <- news:
			case <-ctx.Done():
				return
			}
		}
	}()
	return to
}

// lags has all that comes from now on wait until over is called.
func (w *lagging) lags() (over func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	lag := make(chan struct{})
	w.lag = lag
	return func() { close(lag) }
}

// A watch that lags tells of the turn after the lease has expired. An orphaned session has no
// deadline by which it would know that.
func TestAnOrphanedSessionTrustsNoWatch(t *testing.T) {
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		t, c, _ := remote(b)
		outside, _ := b.Client("outside")
		ctx := t.Context()
		w := &lagging{Watcher: c.Watcher}
		c.Watcher = w
		holder := concurrency.NewMutex(session(t, outside), "lock")
		require.NoError(t, holder.Lock(ctx))
		s := session(t, c, concurrency.WithTTL(10))
		s.Orphan()
		b.Sleep(7 * time.Second) // the silence of a watch would come after the end of the lease
		call := etcdtest.Go(func() error { return concurrency.NewMutex(s, "lock").Lock(ctx) })
		b.Sleep(time.Second)
		over := w.lags()
		require.NoError(t, holder.Unlock(ctx)) // so the orphaned session owns
		rival := concurrency.NewMutex(session(t, outside), "lock")
		require.NoError(t, rival.Lock(ctx)) // its lease has expired
		over()
		require.Equal(t, concurrency.ErrSessionExpired, call.Wait(t))
		require.NoError(t, rival.Unlock(ctx))
	})
}
