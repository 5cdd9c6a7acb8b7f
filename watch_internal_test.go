package concurrency

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	v3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"

	"example.com/etcd/concurrency/internal/etcdtest"
)

// wire is a Watcher whose watches the test serves.
type wire struct {
	v3.Watcher
	mu    sync.Mutex // guards began, revs and on
	began []time.Time
	revs  []int64  // with which the watches began
	on    []string // the streams on which they began
	serve func(ctx context.Context, n int, say func(v3.WatchResponse))
}

// Watch serves the n-th watch, counted from one, until serve returns.
func (w *wire) Watch(ctx context.Context, key string, opts ...v3.OpOption) v3.WatchChan {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.began = append(w.began, time.Now())
	w.revs = append(w.revs, v3.OpGet(key, opts...).Rev())
	md, _ := metadata.FromOutgoingContext(ctx)
	w.on = append(w.on, fmt.Sprint(md))
	out, n := make(chan v3.WatchResponse), len(w.began)
	go func() {
		defer close(out)
		w.serve(ctx, n, func(resp v3.WatchResponse) {
			select {
			case out <- resp:
			case <-ctx.Done():
			}
		})
	}()
	return out
}

// watching runs a test in virtual time with a client whose watches it serves.
func watching(t *testing.T, test func(t *testing.T, c *v3.Client, w *wire)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w, c := &wire{}, v3.NewCtxClient(ctx)
		c.Watcher = w
		test(t, c, w)
	})
}

// At least half of 10, 20, 40, ... ms; after a watch that has worked, 10 ms at most.
func TestWatchesThatBreakPauseLongerEachTime(t *testing.T) {
	watching(t, func(t *testing.T, c *v3.Client, served *wire) {
		const worked = time.Second
		served.serve = func(ctx context.Context, n int, _ func(v3.WatchResponse)) {
			if n == 6 {
				sleep(ctx, forever, worked)
			}
		}
		w := new(watches).watch(t.Context(), c, time.Hour, "key", 7)
		for range 7 {
			require.True(t, (<-w.heard()).Canceled)
		}
		w.stop()
		for n := range 5 {
			require.GreaterOrEqual(t, served.began[n+1].Sub(served.began[n]), 5*time.Millisecond<<n)
		}
		require.LessOrEqual(t, served.began[6].Sub(served.began[5]), worked+10*time.Millisecond)
		require.Equal(t, []int64{7, 0, 0}, served.revs[:3], "after a break it begins with the present")
	})
}

// What a watch says, and the time for which nobody listens to it, are no silence.
func TestAWatchThatIsHeardIsNotSilent(t *testing.T) {
	watching(t, func(t *testing.T, c *v3.Client, served *wire) {
		const patience, often = 6 * time.Second, 3 * time.Second
		require.Equal(t, 4*time.Second, silence(patience), "a look that is sent again takes the rest")
		served.serve = func(ctx context.Context, _ int, say func(v3.WatchResponse)) {
			for range 5 {
				sleep(ctx, forever, often)
				say(v3.WatchResponse{Created: true})
			}
			<-ctx.Done()
		}
		w := new(watches).watch(t.Context(), c, patience, "key", 0)
		for range 3 {
			require.False(t, (<-w.heard()).Canceled)
		}
		pass(10 * patience) // nobody listens
		for range 2 {
			require.False(t, (<-w.heard()).Canceled)
		}
		begin := time.Now()
		require.True(t, (<-w.heard()).Canceled)
		require.WithinRange(t, time.Now(), begin.Add(4*time.Second), begin.Add(patience))
		w.stop()
	})
}

// The client sends watches with the same metadata over one stream, which may be dead.
func TestWatchesLeaveASilentStream(t *testing.T) {
	const patience = 3 * time.Second
	watching(t, func(t *testing.T, c *v3.Client, served *wire) {
		end := make(chan struct{})
		defer close(end)
		served.serve = func(ctx context.Context, n int, say func(v3.WatchResponse)) {
			if say(v3.WatchResponse{Created: true}); n != 3 {
				<-ctx.Done() // and the third breaks
			}
			if n == 4 {
				<-end // the client tells of no end of a watch that was stopped
			}
		}
		var all watches
		first := all.watch(t.Context(), c, patience, "key", 0)
		<-first.heard()
		pass(time.Second)
		second := all.watch(t.Context(), c, patience, "key", 0)
		<-second.heard()
		for _, w := range []*watcher{first, second} { // silent, one after the other
			require.True(t, (<-w.heard()).Canceled)
			require.True(t, (<-w.heard()).Created)
		}
		require.True(t, (<-first.heard()).Canceled) // broken
		require.True(t, (<-first.heard()).Created)
		second.stop()
		last := all.watch(t.Context(), c, patience, "key", 0)
		<-last.heard()
		require.Len(t, served.on, 6)
		require.Equal(t, served.on[0], served.on[1])
		require.NotEqual(t, served.on[1], served.on[2], "another stream after a silence")
		for _, on := range served.on[3:] {
			require.Equal(t, served.on[2], on, "who left the old stream later, broke, or was stopped, opens none")
		}
		first.stop()
		last.stop()
	})
}

func TestAKeptWatch(t *testing.T) {
	watching(t, func(t *testing.T, c *v3.Client, served *wire) {
		served.serve = func(ctx context.Context, _ int, say func(v3.WatchResponse)) {
			say(v3.WatchResponse{Created: true})
			<-ctx.Done()
		}
		begin := func() *watcher {
			w := new(watches).watch(t.Context(), c, time.Hour, "key", 0)
			<-w.heard()
			return w
		}
		ended := func(w *watcher) bool {
			select {
			case <-w.done:
				return true
			default:
				return false
			}
		}
		var k keptWatch
		require.Nil(t, k.take("key", 5))
		first := begin()
		k.keep(first, 5)
		require.Nil(t, k.take("other", 5))
		require.Nil(t, k.take("key", 4), "it has told of a later revision")
		require.Same(t, first, k.take("key", 5))
		require.Nil(t, k.take("key", 5), "one user at a time")
		k.keep(first, 5)
		second := begin()
		k.keep(second, 6)
		require.True(t, ended(first), "the latest is kept")
		require.Same(t, second, k.take("key", 6))
		k.keep(second, 6)
		pass(keptFor - time.Millisecond)
		require.Same(t, second, k.take("key", 6))
		k.keep(second, 6)
		pass(keptFor - time.Millisecond)
		require.False(t, ended(second), "it was kept anew")
		pass(time.Millisecond)
		require.True(t, ended(second))
		require.Nil(t, k.take("key", 6))
		third, fourth := begin(), begin()
		k.keep(third, 7)
		k.close()
		k.keep(fourth, 7)
		require.True(t, ended(third) && ended(fourth), "the session was closed")
		require.Nil(t, k.take("key", 7))

		var once keptWatch
		alone := begin()
		once.keep(alone, 8)
		pass(keptFor)
		require.True(t, ended(alone))
		served.serve = func(ctx context.Context, _ int, _ func(v3.WatchResponse)) { <-ctx.Done() }
		silent := new(watches).watch(t.Context(), c, time.Hour, "key", 0)
		synctest.Wait()
		once.keep(silent, 8)
		require.True(t, ended(silent), "no server has answered yet")
	})
}

// The watch of an ownership tells of others in the line, too. The next wait that goes on with it
// must have seen what it has told.
func TestTheWatchOfAnOwnershipIsLeftAsFarAsItHasTold(t *testing.T) {
	ended := make(chan struct{})
	close(ended)
	w := &watcher{key: "line/", news: make(chan v3.WatchResponse), cancel: func() {}, done: ended}
	w.begun.Store(true)
	l := &lease{ends: ends{ctx: t.Context()}}
	q := queue{session: &Session{id: 0xa, lease: l}, prefix: "line/"}
	stands := func() (*etcdtest.Call, context.CancelFunc) {
		l.kept.keep(w, 5)
		ctx, cancel := context.WithCancel(t.Context())
		return etcdtest.Go(func() error {
			return q.untilGone(ctx, ticket{"line/a", 9}, 10)
		}), cancel
	}
	tell := func(keys ...string) {
		news := v3.WatchResponse{Header: &pb.ResponseHeader{Revision: 20}}
		for _, key := range keys {
			rev := int64(12)
			if key == "line/later" {
				rev = 14
			}
			news.Events = append(news.Events, &v3.Event{
				Type: v3.EventTypeDelete, Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: rev},
			})
		}
		w.news <- news
	}
	call, cancel := stands()
	tell("line/b")
	cancel()
	require.Equal(t, context.Canceled, call.Wait(t))
	require.Nil(t, l.kept.take("line/", 11))
	require.Same(t, w, l.kept.take("line/", 12))

	call, cancel = stands()
	defer cancel()
	tell("line/b", "line/a")
	require.Equal(t, ErrSessionExpired, call.Wait(t))

	call, cancel = stands()
	defer cancel()
	tell("line/a", "line/later")
	require.Equal(t, ErrSessionExpired, call.Wait(t))
	require.Nil(t, l.kept.take("line/", 13))
	require.Same(t, w, l.kept.take("line/", 14))
}

// Where no server answers, the client's Watch returns when its context ends, with a closed channel.
func TestAWatchThatNoServerAnswersLeavesItsStream(t *testing.T) {
	const patience, often = 3 * time.Second, 20
	watching(t, func(t *testing.T, c *v3.Client, _ *wire) {
		var all watches
		c.Watcher = mute{}
		w := all.watch(t.Context(), c, patience, "key", 0)
		for range often {
			require.True(t, (<-w.heard()).Canceled)
		}
		require.EqualValues(t, often, all.stream.Load())
		w.stop()
	})
}

// mute is a Watcher whose servers answer nothing.
type mute struct{ v3.Watcher }

func (mute) Watch(ctx context.Context, _ string, _ ...v3.OpOption) v3.WatchChan {
	<-ctx.Done()
	none := make(chan v3.WatchResponse)
	close(none)
	return none
}
