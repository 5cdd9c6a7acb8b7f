package concurrency

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	v3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"
)

// watches are those of one client. The client sends all watches whose contexts have the same
// outgoing metadata over one stream (streamKeyFromCtx in client/v3's watch.go). It closes the
// stream when the last of them has ended. So a watch that comes back after a silence would
// stand on the same silent stream, as long as any other watch does. It is sent over another
// stream instead, which has a number of its own in its metadata.
type watches struct {
	stream atomic.Int64 // number of the stream for those that begin now
}

// watcher is one watch that comes back by itself: after a break, with a pause that grows, and
// after a silence. Silence proves nothing, because the member that serves the watch may have
// stopped, or be cut off, on a connection that stands.
//
// Every watch asks for a member with a leader. A member that has lost its quorum breaks such
// a watch, instead of keeping silent.
type watcher struct {
	key    string
	news   chan v3.WatchResponse
	cancel context.CancelFunc
	done   chan struct{}
	begun  atomic.Bool // a server has answered, and the watch has not broken since
	beside []*watcher  // of further keys, whose news come on the same channel
}

// watch starts a watch of the key for events of the revision from and later. If from is 0, the watch
// starts with the present, and its first news say at which revision that was. Its user has
// looked at some revision before. If the watch began at a later one, its user has to look
// again, see [missed].
//
// What happens around a break is not told. The first news after it have Canceled set. From
// then on the watch starts with the present.
//
// patience is the time within which its user is to know what has happened, whoever is
// silent. The user has to stop the watcher.
func (s *watches) watch(
	ctx context.Context, client *v3.Client, patience time.Duration, key string, from int64, opts ...v3.OpOption,
) *watcher {
	return s.watchInto(ctx, make(chan v3.WatchResponse), client, patience, key, from, opts...)
}

// watchInto starts a watch whose news come on a channel that it may share with others.
func (s *watches) watchInto(
	ctx context.Context, news chan v3.WatchResponse, client *v3.Client, patience time.Duration,
	key string, from int64, opts ...v3.OpOption,
) *watcher {
	ctx, cancel := context.WithCancel(v3.WithRequireLeader(ctx))
	// The goroutine ends with ctx alone. So stop cancels ctx, and nobody else has to be told.
	w := &watcher{key: key, news: news, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		start := []v3.OpOption{v3.WithRev(from)}
		now := []v3.OpOption{v3.WithCreatedNotify()}
		if from == 0 {
			start = now
		}
		for breaks := 0; ; breaks++ {
			started, stream := time.Now(), s.stream.Load()
			// Every attempt looks at the number anew. Another watch may have found the stream dead.
			on := metadata.AppendToOutgoingContext(ctx, streamKey, strconv.FormatInt(stream, 10))
			if w.forward(on, client, silence(patience), append(start, opts...)) {
				// The stream may be dead. Others may have left it before.
				s.stream.CompareAndSwap(stream, stream+1)
			}
			if time.Since(started) > longestPause {
				breaks = 0 // the watch had worked
			}
			pause(ctx, forever, breaks)
			if !w.tell(ctx, v3.WatchResponse{Canceled: true}) {
				return
			}
			start = now
		}
	}()
	return w
}

// defaultTTL is the TTL in seconds of a session that asks for none.
const defaultTTL = 60

// patience is for how long a blocked transaction, or an observer without a session, may miss a
// change, because the member that it watches on is silent. Neither has a lease from which that
// could follow. So it is the patience of a session whose TTL is the default.
const patience = defaultTTL * time.Second

// streamKey names the metadata by which streams differ. Servers ignore it.
const streamKey = "concurrency-watches"

// silence is how long a watch may be silent before its user looks. It is less than the
// patience by the time after which a look is sent again, because the first one may reach
// the silent member too.
func silence(patience time.Duration) time.Duration { return patience - againAfter(patience) }

// forward tells what one watch of the client delivers, until it breaks or is silent for too
// long. It reports whether it was silent. client.Watch itself blocks until a server has
// answered.
func (w *watcher) forward(
	ending context.Context, client *v3.Client, silence time.Duration, opts []v3.OpOption,
) (silent bool) {
	ctx, cancel := context.WithCancel(ending)
	defer cancel()
	timer := time.AfterFunc(silence, cancel)
	defer timer.Stop()
	defer w.begun.Store(false)
	for told := client.Watch(ctx, w.key, opts...); ; {
		select {
		case resp, open := <-told:
			// While the user takes the news, the watch is not silent.
			timer.Stop()
			w.begun.Store(true)
			if !open || resp.Err() != nil || !w.tell(ctx, resp) {
				// A watch that no server has answered is closed when the silence ends it.
				return !open && ctx.Err() != nil && ending.Err() == nil
			}
			timer.Reset(silence)
		case <-ctx.Done():
			// The client closes the channel only when its next attempt to reach a server ends.
			return ending.Err() == nil
		}
	}
}

// tell blocks until the user has taken the news, and reports whether it has.
func (w *watcher) tell(ctx context.Context, news v3.WatchResponse) bool {
	select {
	case w.news <- news:
		return true
	case <-ctx.Done():
		return false
	}
}

// missed reports whether the news of a watch call for a look by a user whose last look was
// at rev.
func missed(news v3.WatchResponse, rev int64) bool {
	return news.Canceled || news.Header.GetRevision() > rev
}

// headerAt is the header of an earlier revision. That of a watch's news may be newer than what
// they tell.
func headerAt(h *pb.ResponseHeader, rev int64) *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: h.ClusterId, MemberId: h.MemberId, Revision: rev, RaftTerm: h.RaftTerm}
}

// heard is where the news come from. A nil watcher is no watch and has none.
func (w *watcher) heard() <-chan v3.WatchResponse {
	if w == nil {
		return nil
	}
	return w.news
}

// stop ends the watch and those beside it, and waits for their goroutines.
func (w *watcher) stop() {
	if w != nil {
		w.cancel()
		<-w.done
		for _, other := range w.beside {
			other.stop()
		}
	}
}

// keptFor is for how long a watch is kept that nobody needs. A session that comes back later than that
// saves less than one watch a second. The servers would tell it of every release meanwhile.
const keptFor = time.Second

// keptWatch keeps the latest watch of a session that has done its work, for the session's
// next wait behind the same key. Where few sessions pass a lock round, each stands behind
// the same key every time. To begin and to end a watch costs the servers and the client as
// much as a call.
type keptWatch struct {
	mu     sync.Mutex // guards the fields below; held while a watch is stopped, which waits for no server
	watch  *watcher   // nil: none is kept
	rev    int64      // all that the watch has told happened at or before it
	expiry *time.Timer
	closed bool
}

// keep keeps w, whose user has looked at rev last. A watch that has not begun may never begin, and
// is still inside a call that the program does not know of. So it is stopped.
func (k *keptWatch) keep(w *watcher, rev int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed || !w.begun.Load() {
		w.stop()
		return
	}
	k.watch.stop()
	k.watch, k.rev = w, rev
	if k.expiry == nil {
		k.expiry = time.AfterFunc(keptFor, k.drop)
	} else {
		k.expiry.Reset(keptFor)
	}
}

// take returns the kept watch if it is one of the key, and will tell all that happens after
// rev; otherwise nil.
func (k *keptWatch) take(key string, rev int64) (w *watcher) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.watch != nil && k.watch.key == key && k.rev <= rev {
		w, k.watch = k.watch, nil
	}
	return w
}

// drop ends the kept watch. Its goroutine has ended when the mutex is free again.
func (k *keptWatch) drop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.watch.stop()
	k.watch = nil
}

// close ends the kept watch, and every one that comes later.
func (k *keptWatch) close() {
	k.mu.Lock()
	k.closed = true
	if k.expiry != nil {
		k.expiry.Stop()
	}
	k.mu.Unlock()
	k.drop()
}
