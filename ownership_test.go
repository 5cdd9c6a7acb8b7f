package concurrency_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// holder is a handle of a lock or of a leadership: what is said of the one holds for
// the other.
type holder struct {
	accessors
	take     func(context.Context) error
	giveBack func(context.Context) error
	owns     func() clientv3.Cmp
	during   func(context.Context, func(context.Context) error) error // Do or Lead
	released error                                                    // the cause with which Ctx ends by giveBack
}

type accessors interface {
	Ctx() context.Context
	Key() string
	Rev() int64
}

func lockOf(s *concurrency.Session, name string) holder {
	m := concurrency.NewMutex(s, name)
	return holder{m, m.Lock, m.Unlock, m.IsOwner, m.Do, concurrency.ErrLockReleased}
}

func leadershipOf(s *concurrency.Session, name string) holder {
	e := concurrency.NewElection(s, name)
	campaign := func(ctx context.Context) error { return e.Campaign(ctx, "value") }
	lead := func(ctx context.Context, work func(context.Context) error) error {
		return e.Lead(ctx, "value", work)
	}
	return holder{e, campaign, e.Resign, e.IsLeader, lead, concurrency.ErrElectionNotLeader}
}

// eachKind runs a test for both kinds of holders.
func eachKind(t *testing.T, test func(t *testing.T, kind func(*concurrency.Session, string) holder)) {
	t.Helper()
	t.Parallel()
	t.Run("lock", func(t *testing.T) {
		t.Parallel()
		test(t, lockOf)
	})
	t.Run("leadership", func(t *testing.T) {
		t.Parallel()
		test(t, leadershipOf)
	})
}

// taken is a line at whose head stands the handle that it returns.
func taken(
	tb testing.TB, kind func(*concurrency.Session, string) holder, opts ...concurrency.SessionOption,
) (*line, holder) {
	tb.Helper()
	l := newLine(tb, opts...)
	h := kind(l.session, l.name)
	require.NoError(tb, h.take(context.Background()))
	return l, h
}

// farLine is a line whose client reaches the server through a proxy alone.
func farLine(tb testing.TB, own *etcdtest.Cluster, opts ...concurrency.SessionOption) (*fault.Proxy, *line) {
	tb.Helper()
	p, c := proxied(tb, own)
	l := &line{name: prefix(tb), client: c, outside: own.Client(tb), faults: counted(tb, c)}
	l.session = session(tb, c, opts...)
	l.mutex = l.handle()
	tb.Cleanup(func() { p.Accept(); p.Resume() }) // before the session is closed
	return p, l
}

// watched waits until the own key is watched: at the nth watch of the client.
func (l *line) watched(tb testing.TB, n int) {
	tb.Helper()
	etcdtest.Eventually(tb, func() bool { return l.faults.Count(fault.Watch) >= n }, "watch %d", n)
}

// cause waits for the end of ctx and says why it came.
func cause(tb testing.TB, ctx context.Context) error {
	tb.Helper()
	ended(tb, ctx.Done(), "the end of a context")
	require.Error(tb, ctx.Err())
	return context.Cause(ctx)
}

// compacted writes n keys and compacts all that was before.
func compacted(tb testing.TB, c *clientv3.Client, key string, n int) {
	tb.Helper()
	ctx := context.Background()
	var rev int64
	for range n {
		resp, err := c.Put(ctx, key, "noise")
		require.NoError(tb, err)
		rev = resp.Header.Revision
	}
	_, err := c.Compact(ctx, rev)
	require.NoError(tb, err)
}

func TestCtxOfNothingHeld(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		l := newLine(t)
		h := kind(l.session, l.name)
		has := func(when string) {
			require.Error(t, h.Ctx().Err(), when)
			require.Equal(t, h.released, context.Cause(h.Ctx()), when)
			require.Empty(t, h.Key(), when)
			require.Zero(t, h.Rev(), when)
		}
		has("before the first time")
		require.NoError(t, h.take(t.Context()))
		require.NoError(t, h.Ctx().Err())
		require.NoError(t, h.giveBack(t.Context()))
		has("after it was given back")
		rival := kind(session(t, l.outside), l.name)
		require.NoError(t, rival.take(t.Context()))
		call := etcdtest.Go(func() error { return h.take(t.Context()) })
		l.stand(t, 2)
		has("while it waits")
		require.NoError(t, rival.giveBack(t.Context()))
		require.NoError(t, call.Wait(t))
		require.NoError(t, h.Ctx().Err())
	})
}

func TestCtxLasts(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		t.Run("while it is owned, one for all who ask", func(t *testing.T) {
			t.Parallel()
			l, h := taken(t, kind)
			ctx := h.Ctx()
			require.NoError(t, ctx.Err())
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() { assert.Same(t, ctx, h.Ctx()) })
			}
			wg.Wait()
			require.NoError(t, h.take(t.Context()), "taken again by the same handle")
			require.Same(t, ctx, h.Ctx())
			l.watched(t, 1)
			require.NoError(t, ctx.Err())
		})
		t.Run("who takes it again has a new one", func(t *testing.T) {
			t.Parallel()
			_, h := taken(t, kind)
			first := h.Ctx()
			require.NoError(t, h.giveBack(t.Context()))
			require.NoError(t, h.take(t.Context()))
			second := h.Ctx()
			require.NotSame(t, first, second)
			require.Error(t, first.Err())
			require.NoError(t, second.Err())
		})
		t.Run("who doesn't ask doesn't pay", func(t *testing.T) {
			t.Parallel()
			l := lineOn(t, etcdtest.New(t)) // where nobody else writes, and calls for a look
			h := kind(l.session, l.name)
			require.NoError(t, h.take(t.Context()))
			require.Equal(t, "Txn 1", l.calls())
			h.Ctx()
			l.watched(t, 1)
			require.Equal(t, "Txn 1, Watch 1", l.calls())
			h.Ctx()
			require.NoError(t, h.giveBack(t.Context()))
			require.Equal(t, "Txn 2, Watch 1", l.calls())
		})
		t.Run("the watch ends with it", func(t *testing.T) {
			t.Parallel()
			c := client(t)
			spy := &watchSpy{Watcher: c.Watcher}
			c.Watcher = spy
			h := kind(session(t, c), prefix(t))
			require.NoError(t, h.take(t.Context()))
			h.Ctx()
			etcdtest.Eventually(t, func() bool { return len(spy.all()) == 1 }, "a watch")
			require.NoError(t, spy.all()[0].Err())
			require.NoError(t, h.giveBack(t.Context()))
			ended(t, spy.all()[0].Done(), "the end of the watch")
		})
	})
}

// calls lists the calls of KV and the watches that the line's client has made.
func (l *line) calls() string {
	var all []string
	for _, kind := range []fault.Kind{fault.Get, fault.Txn, fault.Watch} {
		if n := l.faults.Count(kind); n > 0 {
			all = append(all, kind.String()+" "+strconv.Itoa(n))
		}
	}
	return strings.Join(all, ", ")
}

// watchSpy remembers the contexts of watches.
type watchSpy struct {
	clientv3.Watcher
	mu   sync.Mutex // guards ctxs
	ctxs []context.Context
}

func (w *watchSpy) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	w.mu.Lock()
	w.ctxs = append(w.ctxs, ctx)
	w.mu.Unlock()
	return w.Watcher.Watch(ctx, key, opts...)
}

func (w *watchSpy) all() []context.Context {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ctxs
}

func TestCtxEnds(t *testing.T) {
	type loss struct {
		how   string
		lose  func(t *testing.T, l *line, h holder)
		cause error // nil: that of a release
	}
	losses := []loss{
		{"by the release", func(t *testing.T, l *line, h holder) {
			require.NoError(t, h.giveBack(t.Context()))
		}, nil},
		{"when anybody deletes the key", func(t *testing.T, l *line, h holder) {
			l.delete(t, h.Key())
		}, concurrency.ErrKeyDeleted},
		{"when another handle of the session gives it back", func(t *testing.T, l *line, h holder) {
			twin := l.handle()
			require.NoError(t, twin.Lock(t.Context()))
			require.NoError(t, twin.Unlock(t.Context()))
		}, concurrency.ErrKeyDeleted},
		{"when the lease is revoked, long before the next renewal", func(t *testing.T, l *line, h holder) {
			revoke(t, l.outside, l.session)
		}, concurrency.ErrSessionExpired},
		{"when the session is closed", func(t *testing.T, l *line, h holder) {
			require.NoError(t, l.session.Close())
		}, context.Canceled},
		{"when the session is orphaned", func(t *testing.T, l *line, h holder) {
			revokedAtEnd(t, l.outside, l.session.Lease())
			l.session.Orphan()
		}, context.Canceled},
		{"when the client is closed", func(t *testing.T, l *line, h holder) {
			revokedAtEnd(t, l.outside, l.session.Lease())
			l.client.Close()
		}, concurrency.ErrClientClosed},
	}
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		for _, loss := range losses {
			t.Run(loss.how, func(t *testing.T) {
				t.Parallel()
				l, h := taken(t, kind)
				ctx := h.Ctx()
				loss.lose(t, l, h)
				want := loss.cause
				if want == nil {
					want = h.released
				}
				if got := cause(t, ctx); want == concurrency.ErrSessionExpired {
					require.ErrorIs(t, got, want, "the watch tells of the key, or a renewal of the lease")
				} else {
					require.Equal(t, want, got)
				}
			})
		}
	})
}

// What happens to the watch must not hide the loss, nor make one up.
func TestCtxRidesOut(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		t.Run("a deletion between the look and the watch is seen", func(t *testing.T) {
			t.Parallel()
			l, h := taken(t, kind)
			held := l.faults.Hold(fault.Watch, 1)
			ctx := h.Ctx()
			ended(t, held.Reached(), "the watch is about to begin")
			l.delete(t, h.Key())
			require.NoError(t, ctx.Err())
			held.Open()
			require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
		})
		t.Run("a watch that breaks is begun again", func(t *testing.T) {
			t.Parallel()
			l, h := taken(t, kind)
			l.faults.BrokenWatch(1, rpctypes.ErrCompacted)
			l.faults.BrokenWatch(2, nil)
			later := l.faults.BreakWatch(3, rpctypes.ErrNoLeader)
			ctx := h.Ctx()
			ended(t, later.Reached(), "the third")
			later.Open()
			l.watched(t, 4)
			require.NoError(t, ctx.Err())
			l.delete(t, h.Key())
			require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
		})
		t.Run("the same key put again meanwhile is another ticket", func(t *testing.T) {
			t.Parallel()
			l, h := taken(t, kind)
			broken := l.faults.BreakWatch(1, nil)
			held := l.faults.Hold(fault.Watch, 2)
			ctx := h.Ctx()
			ended(t, broken.Reached(), "the watch")
			look := l.faults.Hold(fault.Get, 1)
			broken.Open()
			ended(t, look.Reached(), "it looks again")
			l.delete(t, h.Key())
			_, err := l.outside.Put(t.Context(), h.Key(), "", clientv3.WithLease(l.session.Lease()))
			require.NoError(t, err)
			look.Open()
			require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
			held.Open()
		})
		t.Run("transient faults of the first look", func(t *testing.T) {
			t.Parallel()
			l, h := taken(t, kind)
			l.faults.Refuse(fault.Get, 2, codes.Unavailable, "away")
			ctx := h.Ctx()
			l.watched(t, 1)
			require.NoError(t, ctx.Err())
		})
		t.Run("a cut with a compaction", func(t *testing.T) {
			t.Parallel()
			own := etcdtest.New(t) // others on the shared server read what was
			for _, deleted := range []bool{false, true} {
				p, l := farLine(t, own)
				h := kind(l.session, l.name)
				require.NoError(t, h.take(t.Context()))
				ctx := h.Ctx()
				l.watched(t, 1)
				p.Refuse()
				p.Cut()
				if deleted {
					l.delete(t, h.Key())
				}
				compacted(t, l.outside, l.name+"-noise", 20)
				p.Accept()
				if !deleted {
					// What the watch hears next is the deletion, and nothing before.
					require.NoError(t, concurrency.NewMutex(l.session, l.name+"-other").Lock(t.Context()))
					require.NoError(t, ctx.Err())
					l.delete(t, h.Key())
				}
				require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
				require.NoError(t, l.session.Ctx().Err())
			}
		})
		t.Run("a compaction between the look and the watch", func(t *testing.T) {
			t.Parallel()
			own := etcdtest.New(t) // compaction is everybody's
			for _, deleted := range []bool{false, true} {
				l := &line{name: prefix(t), client: own.Client(t), outside: own.Client(t)}
				l.faults = counted(t, l.client)
				l.session = session(t, l.client)
				h := kind(l.session, l.name)
				require.NoError(t, h.take(t.Context()))
				if deleted {
					l.faults.Before(fault.Watch, 1, func() { l.delete(t, h.Key()) })
				}
				l.faults.CompactBeforeWatch(1, l.name+"-noise")
				ctx := h.Ctx()
				if !deleted {
					l.watched(t, 1)
					require.NoError(t, ctx.Err())
					l.delete(t, h.Key())
				}
				require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
				require.NoError(t, l.session.Ctx().Err())
			}
		})
		t.Run("reports of progress, which others may ask for on the same client", func(t *testing.T) {
			t.Parallel()
			l, h := taken(t, kind)
			ctx := h.Ctx()
			l.watched(t, 1)
			// A watch of our own on the same stream hears of the progress too.
			bound, cancel := context.WithCancel(clientv3.WithRequireLeader(t.Context()))
			defer cancel()
			mine := l.client.Watch(bound, l.name+"-mine", clientv3.WithCreatedNotify())
			require.True(t, (<-mine).Created)
			// A server whose watches are not all up to date does not answer. A report goes to
			// all watches of the stream, a second one after the first.
			reports := 0
			etcdtest.Eventually(t, func() bool {
				require.NoError(t, l.client.RequestProgress(bound))
				select {
				case report := <-mine:
					require.True(t, report.IsProgressNotify())
					reports++
				default:
				}
				return reports == 2
			}, "reports of progress")
			require.NoError(t, ctx.Err())
			l.delete(t, h.Key())
			require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
		})
	})
}

func TestCtxEndsWithTheDeadline(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		for _, asked := range []string{"before", "while"} {
			t.Run("when nothing can be heard, asked for "+asked, func(t *testing.T) {
				t.Parallel()
				p, l := farLine(t, server(t), concurrency.WithTTL(2))
				h := kind(l.session, l.name)
				require.NoError(t, h.take(t.Context()))
				rival := kind(session(t, l.outside), l.name)
				call := etcdtest.Go(func() error { return rival.take(t.Context()) })
				l.stand(t, 2)
				if asked == "before" {
					h.Ctx()
					l.watched(t, 1)
				}
				p.Stall()
				ctx := h.Ctx()
				require.NoError(t, ctx.Err())
				require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
				require.True(t, call.Running(), "a rival is in")
				require.False(t, time.Now().Before(l.session.Deadline()), "too early")
				require.NoError(t, call.Wait(t))
			})
		}
		t.Run("and with the cause of the context given to the session", func(t *testing.T) {
			t.Parallel()
			reason := errors.New("enough")
			bound, cancel := context.WithCancelCause(t.Context())
			l, h := taken(t, kind, concurrency.WithContext(bound))
			revokedAtEnd(t, l.outside, l.session.Lease())
			ctx := h.Ctx()
			cancel(reason)
			require.Equal(t, reason, cause(t, ctx))
		})
	})
}

func TestCtxAndTheRelease(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		t.Run("ends just before the deletion is sent", func(t *testing.T) {
			t.Parallel()
			l, h := taken(t, kind)
			ctx := h.Ctx()
			sent := l.faults.Hold(fault.Txn, 1)
			call := etcdtest.Go(func() error { return h.giveBack(t.Context()) })
			ended(t, sent.Reached(), "the deletion is about to be sent")
			require.Error(t, ctx.Err())
			require.Equal(t, h.released, context.Cause(ctx))
			l.stand(t, 1)
			sent.Open()
			require.NoError(t, call.Wait(t))
		})
		t.Run("has ended for who asks meanwhile", func(t *testing.T) {
			t.Parallel()
			l, h := taken(t, kind)
			sent := l.faults.Hold(fault.Txn, 1)
			call := etcdtest.Go(func() error { return h.giveBack(t.Context()) })
			ended(t, sent.Reached(), "the deletion is about to be sent")
			require.Error(t, h.Ctx().Err())
			require.Equal(t, h.released, context.Cause(h.Ctx()))
			sent.Open()
			require.NoError(t, call.Wait(t))
			require.Zero(t, l.faults.Count(fault.Watch))
		})
		t.Run("and stays so when the release fails, until it is taken again", func(t *testing.T) {
			t.Parallel()
			l, h := taken(t, kind)
			ctx := h.Ctx()
			rev := h.Rev()
			l.faults.Refuse(fault.Txn, 1, codes.PermissionDenied, "etcdserver: permission denied")
			l.faults.Hold(fault.Txn, 2) // that of the clean-up
			require.Equal(t, rpctypes.ErrPermissionDenied, h.giveBack(t.Context()))
			require.Equal(t, h.released, cause(t, ctx))
			require.Error(t, h.Ctx().Err())
			l.stand(t, 1)
			require.NoError(t, h.take(t.Context()))
			require.NoError(t, h.Ctx().Err())
			require.Greater(t, h.Rev(), rev, "another ticket")
		})
		t.Run("also when its context has ended before", func(t *testing.T) {
			t.Parallel()
			_, h := taken(t, kind)
			ctx := h.Ctx()
			require.Equal(t, context.Canceled, h.giveBack(cancelled()))
			require.Equal(t, h.released, cause(t, ctx))
			require.NoError(t, h.take(t.Context()))
			require.NoError(t, h.Ctx().Err(), "it is held")
			require.NoError(t, h.giveBack(t.Context()))
		})
		t.Run("and when the server can't be reached", func(t *testing.T) {
			t.Parallel()
			p, l := farLine(t, server(t))
			h := kind(l.session, l.name)
			require.NoError(t, h.take(t.Context()))
			ctx := h.Ctx()
			p.Stall()
			bound, cancel := context.WithCancel(t.Context())
			call := etcdtest.Go(func() error { return h.giveBack(bound) })
			require.Equal(t, h.released, cause(t, ctx))
			cancel()
			require.Equal(t, context.Canceled, call.Wait(t))
			p.Resume()
			require.NoError(t, h.giveBack(t.Context()))
			l.stand(t, 0)
		})
	})
}

// Two handles of a session own by one ticket. The deletion is known here before it is sent.
func TestCtxEndsWhenASiblingReleases(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		l, h := taken(t, kind)
		sibling := kind(l.session, l.name)
		require.NoError(t, sibling.take(t.Context()))
		ctx := h.Ctx()
		sent := l.faults.Hold(fault.Txn, 1)
		call := etcdtest.Go(func() error { return sibling.giveBack(t.Context()) })
		ended(t, sent.Reached(), "the deletion is about to be sent")
		require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
		l.stand(t, 1)
		sent.Open()
		require.NoError(t, call.Wait(t))
	})
}

// What a call proves about the key ends the context, if the watch has not yet.
func TestCtxEndsByWhatACallShows(t *testing.T) {
	t.Parallel()
	t.Run("Lock is given another ticket", func(t *testing.T) {
		t.Parallel()
		l, h := taken(t, lockOf)
		l.faults.Hold(fault.Watch, 1)
		ctx, rev := h.Ctx(), h.Rev()
		l.delete(t, h.Key())
		require.NoError(t, h.take(t.Context()))
		require.Greater(t, h.Rev(), rev)
		require.Error(t, ctx.Err())
		require.ErrorIs(t, context.Cause(ctx), concurrency.ErrSessionExpired)
		require.NoError(t, h.Ctx().Err())
	})
	t.Run("TryLock finds another owner", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		require.NoError(t, l.mutex.Lock(t.Context()))
		l.faults.Hold(fault.Watch, 1)
		ctx := l.mutex.Ctx()
		l.delete(t, l.mutex.Key())
		l.held(t)
		require.Equal(t, concurrency.ErrLocked, l.mutex.TryLock(t.Context()))
		require.Error(t, ctx.Err())
		require.ErrorIs(t, context.Cause(ctx), concurrency.ErrSessionExpired)
		require.Equal(t, concurrency.ErrLockReleased, context.Cause(l.mutex.Ctx()))
	})
	t.Run("Proclaim finds that it does not lead", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "value")
		b.faults.Hold(fault.Watch, 1)
		ctx := b.election.Ctx()
		b.delete(t, b.election.Key())
		require.Equal(t, concurrency.ErrElectionNotLeader, b.election.Proclaim(t.Context(), "new"))
		require.Error(t, ctx.Err())
		require.ErrorIs(t, context.Cause(ctx), concurrency.ErrSessionExpired)
	})
	t.Run("not by what leaves the leader the leader", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "value")
		ctx := b.election.Ctx()
		require.NoError(t, b.election.Proclaim(t.Context(), "new"))
		b.wins(t, b.election, "newer")
		require.NoError(t, ctx.Err())
		require.Same(t, ctx, b.election.Ctx())
		twin := concurrency.ResumeElection(b.session, b.name, b.election.Key(), b.election.Rev())
		require.NoError(t, twin.Ctx().Err(), "resumed")
		b.delete(t, b.election.Key())
		require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
		require.ErrorIs(t, cause(t, twin.Ctx()), concurrency.ErrSessionExpired)
	})
}

func TestCtxThatMayNotWatch(t *testing.T) {
	t.Parallel()
	t.Run("ends with that error", func(t *testing.T) {
		t.Parallel()
		own := authServer(t)
		c := guest(t, own, "mine/")
		s := session(t, c)
		m := concurrency.NewMutex(s, "mine")
		require.NoError(t, m.Lock(t.Context()))
		root := rootOf(t, own)
		_, err := root.RoleRevokePermission(t.Context(), "guest", "mine/", clientv3.GetPrefixRangeEnd("mine/"))
		require.NoError(t, err)
		require.Equal(t, rpctypes.ErrPermissionDenied, cause(t, m.Ctx()))
	})
	t.Run("also when it comes later", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		require.NoError(t, l.mutex.Lock(t.Context()))
		watch := l.faults.BreakWatch(1, rpctypes.ErrPermissionDenied)
		ctx := l.mutex.Ctx()
		ended(t, watch.Reached(), "the watch")
		l.faults.Refuse(fault.Get, 1, codes.PermissionDenied, "etcdserver: permission denied")
		watch.Open()
		require.Equal(t, rpctypes.ErrPermissionDenied, cause(t, ctx))
	})
}

// authServer is a server whose passwords are cheap to check, if it can be configured.
func authServer(tb testing.TB) *etcdtest.Cluster {
	tb.Helper()
	if !server(tb).Embedded() {
		return etcdtest.New(tb)
	}
	return etcdtest.New(tb, etcdtest.Config(func(_ int, cfg *embed.Config) { cfg.BcryptCost = 4 }))
}

// rootOf is a client of the user that guest has made root.
func rootOf(tb testing.TB, c *etcdtest.Cluster) *clientv3.Client {
	tb.Helper()
	cfg := etcdtest.ClientConfig(c.Endpoints()...)
	cfg.Username, cfg.Password = "root", "secret"
	root, err := clientv3.New(cfg)
	require.NoError(tb, err)
	tb.Cleanup(func() { root.Close() })
	return root
}

func TestTokens(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		l := newLine(t)
		owner, rival := kind(l.session, l.name), kind(session(t, l.outside), l.name)
		holds := func(h holder) bool {
			resp, err := l.outside.Txn(t.Context()).If(h.owns()).Commit()
			require.NoError(t, err)
			return resp.Succeeded
		}
		last := int64(0)
		for range 3 {
			for _, turn := range [][2]holder{{owner, rival}, {rival, owner}} {
				require.NoError(t, turn[0].take(t.Context()))
				require.Equal(t, etcdtest.Keys(t, l.outside, l.name+"/")[0].CreateRevision, turn[0].Rev())
				require.Greater(t, turn[0].Rev(), last, "it rises with every change of the owner")
				require.Zero(t, turn[1].Rev())
				require.True(t, holds(turn[0]))
				require.False(t, holds(turn[1]))
				last = turn[0].Rev()
				require.NoError(t, turn[0].giveBack(t.Context()))
			}
		}
		require.NoError(t, owner.take(t.Context()))
		l.delete(t, owner.Key())
		require.NoError(t, rival.take(t.Context()))
		require.False(t, holds(owner), "lost, and not known yet")
		require.Less(t, owner.Rev(), rival.Rev())
	})
}

// cutOff is a holder that is parted from the servers, and a rival that waits behind it.
// What the holder could know is looked at when the rival's acquisition returns. The witness
// is a bare timer for the same deadline: when even that has not fired by then, this process
// was not run, which no timeout survives.
type cutOff struct {
	proxy   *fault.Proxy
	session *concurrency.Session
	calls   []*etcdtest.Call

	known, isIn     time.Time // each written before its call has returned
	told, witnessed bool      // when the rival was in
}

// listening is how a holder hears of its end.
type listening struct {
	how string
	to  func(tb testing.TB, l *line, h holder) <-chan struct{}
}

var listenings = []listening{
	{"by the session alone", func(_ testing.TB, l *line, _ holder) <-chan struct{} {
		return l.session.Done()
	}},
	{"by Ctx, its own-key watch working", func(tb testing.TB, l *line, h holder) <-chan struct{} {
		ctx := h.Ctx()
		etcdtest.Eventually(tb, func() bool {
			return l.faults.Count(fault.Watch) >= 1 || ctx.Err() != nil
		}, "the watch, of %v", l.faults)
		return ctx.Done()
	}},
	{"by Ctx, its watch held back", func(tb testing.TB, l *line, h holder) <-chan struct{} {
		held := l.faults.Hold(fault.Watch, 1)
		ctx := h.Ctx()
		select {
		case <-held.Reached():
		case <-ctx.Done():
		}
		return ctx.Done()
	}},
}

// newCutOff has a holder that listens, and a rival in line behind it. Where a machine does
// not run this process for a TTL, a session may end before it holds anything: then another
// is opened.
func newCutOff(
	tb testing.TB, kind func(*concurrency.Session, string) holder, how listening,
	outside *clientv3.Client, ttl int,
) *cutOff {
	tb.Helper()
	p, c := proxied(tb, server(tb))
	l := &line{name: prefix(tb), client: c, outside: outside, faults: counted(tb, c)}
	var h holder
	etcdtest.Eventually(tb, func() (held bool) {
		s, err := concurrency.NewSession(c, concurrency.WithTTL(ttl))
		if err != nil {
			return false
		}
		tb.Cleanup(func() { s.Close() })
		l.session, h = s, kind(s, l.name)
		if err := h.take(context.Background()); err != nil {
			tb.Logf("ended before it was cut off: %v", err)
			s.Close()
			return false
		}
		return true
	}, "a holder")
	l.faults.Reset()
	s, end := l.session, how.to(tb, l, h)
	rival := kind(session(tb, outside), l.name)
	o := &cutOff{proxy: p, session: s}
	witness := make(chan struct{})
	var look func()
	look = func() {
		if left := time.Until(s.Deadline()); left > 0 { // it is moved on by every renewal
			time.AfterFunc(left, look)
		} else {
			close(witness)
		}
	}
	look()
	o.calls = append(o.calls, etcdtest.Go(func() error {
		<-end
		o.known = time.Now()
		return nil
	}), etcdtest.Go(func() error {
		err := rival.take(context.Background())
		o.told, o.witnessed = isClosed(end), isClosed(witness)
		o.isIn = time.Now()
		return err
	}))
	etcdtest.Eventually(tb, func() bool {
		return len(etcdtest.Keys(tb, outside, l.name+"/")) == 2 || !o.calls[1].Running()
	}, "the rival stands in line")
	return o
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// verdict is what became of a cut-off: lead is by how much the holder knew before the
// rival was in, at least.
type verdict struct {
	overlap, excused bool
	lead             time.Duration
}

func (o *cutOff) verdict(tb testing.TB) verdict {
	tb.Helper()
	for _, call := range o.calls {
		require.NoError(tb, call.Wait(tb))
	}
	o.proxy.Accept()
	o.proxy.Resume()
	deadline := o.session.Deadline()
	require.False(tb, o.isIn.Before(deadline), "a rival is in before the deadline")
	if !o.told {
		tb.Logf("the rival was in %v after the deadline, the holder knew after %v, the witness by then: %v",
			o.isIn.Sub(deadline), o.known.Sub(deadline), o.witnessed)
	}
	return verdict{!o.told && o.witnessed, !o.told && !o.witnessed, max(o.isIn.Sub(o.known), 0)}
}

// cut parts the holder at a random phase of its renewals, in one of three ways.
func (o *cutOff) cut() {
	ways := []func(){o.proxy.Stall, o.proxy.StallDown, o.proxy.Sever}
	time.AfterFunc(rand.N(o.session.TTL()/2), ways[rand.IntN(len(ways))])
}

// cutOffs are n at the same time, half of them with a TTL of 5 s if the run is long.
func cutOffs(
	t *testing.T, kind func(*concurrency.Session, string) holder, how listening,
	outside *clientv3.Client, n int, long bool,
) (verdicts []verdict) {
	t.Helper()
	t.Run("together", func(t *testing.T) { // so that what they used is closed
		var all []*cutOff
		for i := range n {
			ttl := 2
			if long && i%2 == 1 {
				ttl = 5
			}
			all = append(all, newCutOff(t, kind, how, outside, ttl))
		}
		for _, o := range all {
			o.cut()
		}
		for _, o := range all {
			verdicts = append(verdicts, o.verdict(t))
		}
	})
	require.Len(t, verdicts, n)
	return verdicts
}

// TRIALS sets the number of cut-offs of each kind; in a long run every other one has a
// TTL of 5 s instead of 2. Overlaps that the witness excuses prove nothing, neither way:
// a fiftieth of the trials may be lost to them, and one of a short run.
func TestCtxEndsBeforeARivalIsIn(t *testing.T) {
	const batch = 24 // at the same time, so that the machine can run them
	trials := 24
	if n, err := strconv.Atoi(os.Getenv("TRIALS")); err == nil && n > 0 {
		trials = n
	}
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		for _, how := range listenings {
			t.Run(how.how, func(t *testing.T) {
				t.Parallel()
				overlaps, excused, outside, least := 0, 0, client(t), time.Hour
				for done := 0; done < trials; done += batch {
					n := min(batch, trials-done)
					for _, v := range cutOffs(t, kind, how, outside, n, trials >= 100) {
						least = min(least, v.lead)
						switch {
						case v.overlap:
							overlaps++
						case v.excused:
							excused++
						}
					}
				}
				t.Logf("%s: %d cut-offs, %d overlaps, %d more excused by a process that was not run, the closest by %v",
					t.Name(), trials, overlaps, excused, least.Round(time.Millisecond))
				require.Zero(t, overlaps, "of %d", trials)
				require.LessOrEqual(t, excused, max(trials/50, 1), "too many are excused to prove anything")
			})
		}
	})
}

func TestSafetyMargin(t *testing.T) {
	t.Parallel()
	t.Run("ends the session this much before the lease could end", func(t *testing.T) {
		t.Parallel()
		c, outside := client(t), client(t)
		f := counted(t, c)
		f.Refuse(fault.KeepAliveOnce, 1000, codes.Unavailable, "away")
		before := time.Now()
		s := session(t, c, concurrency.WithTTL(6), concurrency.WithSafetyMargin(5*time.Second))
		opened := time.Now()
		require.WithinRange(t, s.Deadline(), before.Add(time.Second), opened.Add(time.Second))
		m := concurrency.NewMutex(s, prefix(t))
		require.NoError(t, m.Lock(t.Context()))
		require.ErrorIs(t, cause(t, m.Ctx()), concurrency.ErrSessionExpired)
		require.False(t, time.Now().Before(s.Deadline()))
		require.Less(t, time.Since(opened), 4*time.Second)
		ended(t, s.Done(), "the session")
		require.True(t, lives(t, outside, s.Lease()), "the lease has the margin left")
		require.NoError(t, s.Close())
		require.False(t, lives(t, outside, s.Lease()), "Close revokes it")
	})
	t.Run("leaves time for renewals", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		s := session(t, c, concurrency.WithTTL(5), concurrency.WithSafetyMargin(3*time.Second))
		etcdtest.Eventually(t, func() bool { return f.Count(fault.KeepAliveOnce) > 5 }, "renewals for longer than it would live by one")
		require.NoError(t, s.Ctx().Err())
		require.Equal(t, 5*time.Second, s.TTL())
	})
	t.Run("that is negative, or not shorter than the TTL, is an error", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		for _, opts := range [][]concurrency.SessionOption{
			{concurrency.WithSafetyMargin(-1)},
			{concurrency.WithTTL(2), concurrency.WithSafetyMargin(2 * time.Second)},
			{concurrency.WithTTL(2), concurrency.WithSafetyMargin(time.Hour)},
			{concurrency.WithSafetyMargin(time.Minute), concurrency.WithTTL(0)},
			{concurrency.WithLease(granted(t, c, 5)), concurrency.WithSafetyMargin(-time.Second)},
			{concurrency.WithLease(granted(t, c, 5)), concurrency.WithSafetyMargin(5 * time.Second)},
		} {
			f.Reset()
			s, err := concurrency.NewSession(c, opts...)
			require.Nil(t, s)
			require.ErrorContains(t, err, "concurrency: ")
			require.ErrorContains(t, err, "margin")
			require.Zero(t, f.Count(fault.Grant), "no lease is left")
			require.Zero(t, f.Count(fault.Revoke), "nor a lease of the caller's taken away")
		}
	})
}

func TestSafetyMarginAndWithLease(t *testing.T) {
	t.Parallel()
	t.Run("counts from what is left of the lease", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		id := granted(t, c, 30)
		f.Refuse(fault.KeepAliveOnce, 1000, codes.Unavailable, "away")
		s := session(t, c, concurrency.WithLease(id), concurrency.WithSafetyMargin(10*time.Second))
		require.Equal(t, 30*time.Second, s.TTL())
		// The server tells whole seconds, rounded down.
		require.WithinRange(t, s.Deadline(), time.Now().Add(10*time.Second), time.Now().Add(20*time.Second))
		s.Orphan()
	})
	t.Run("a lease with less left than the margin is renewed first", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		id := granted(t, c, 4)
		etcdtest.Eventually(t, func() bool {
			resp, err := c.TimeToLive(t.Context(), id)
			return err == nil && resp.TTL <= 2
		}, "little is left")
		s := session(t, c, concurrency.WithLease(id), concurrency.WithSafetyMargin(2*time.Second))
		require.NotZero(t, f.Count(fault.KeepAliveOnce))
		require.NoError(t, s.Ctx().Err())
		require.Greater(t, time.Until(s.Deadline()), time.Second/2)
		etcdtest.Eventually(t, func() bool { return f.Count(fault.KeepAliveOnce) > 5 }, "more renewals")
		require.NoError(t, s.Ctx().Err())
	})
	t.Run("or else NewSession fails, and leaves the lease", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		id := granted(t, c, 4)
		etcdtest.Eventually(t, func() bool {
			resp, err := c.TimeToLive(t.Context(), id)
			return err == nil && resp.TTL <= 3
		}, "little is left")
		f.Refuse(fault.KeepAliveOnce, 1000, codes.PermissionDenied, "etcdserver: permission denied")
		_, err := concurrency.NewSession(c, concurrency.WithLease(id), concurrency.WithSafetyMargin(3500*time.Millisecond))
		require.ErrorIs(t, err, rpctypes.ErrPermissionDenied)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Zero(t, f.Count(fault.Revoke))
	})
}

func TestTTLIsWhatTheServerGranted(t *testing.T) {
	t.Parallel()
	if !server(t).Embedded() { // only those can be configured
		return
	}
	c := etcdtest.New(t, etcdtest.Config(func(_ int, cfg *embed.Config) {
		cfg.TickMs, cfg.ElectionMs = 100, 1500
	})).Client(t)
	before := time.Now()
	s := session(t, c, concurrency.WithTTL(1))
	require.Equal(t, 3*time.Second, s.TTL())
	require.Equal(t, int64(3), grantedTTL(t, s))
	require.WithinRange(t, s.Deadline(), before.Add(3*time.Second), time.Now().Add(3*time.Second))
	require.NoError(t, s.Close())

	var none concurrency.Session
	require.Zero(t, none.TTL())
	require.Zero(t, none.Deadline())
}
