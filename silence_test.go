package concurrency_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// links is a client with two links to one server. The first carries all that was begun
// before silence is called.
type links struct {
	client  *clientv3.Client
	outside *clientv3.Client
	first   *fault.Proxy
	both    []string
}

func newLinks(tb testing.TB) *links {
	tb.Helper()
	first, c := proxied(tb, server(tb))
	second, err := fault.NewProxy(server(tb).Endpoint(0))
	require.NoError(tb, err)
	tb.Cleanup(second.Close)
	tb.Cleanup(first.Resume) // before it is closed, so that what is stuck ends
	return &links{c, client(tb), first, []string{first.Endpoint(), second.Endpoint()}}
}

// silence silences the first link, which stands, and lets the second answer.
func (l *links) silence(tb testing.TB) {
	tb.Helper()
	l.client.SetEndpoints(l.both...)
	l.first.Stall()
	etcdtest.Answers(tb, l.client)
}

// far is the TTL of those on a link that falls silent, and heard how long the member may hold
// anything up: a TTL and a second. The rest is for a busy machine.
const (
	far   = 4
	heard = far*time.Second + time.Second + 2*time.Second
)

// hears fails the test if the channel is not closed while a silent member may hold it up.
func hears(tb testing.TB, done <-chan struct{}, msg string) {
	tb.Helper()
	select {
	case <-done:
	case <-time.After(heard):
		require.FailNow(tb, msg)
	}
}

// A member that falls silent, its connection standing, holds nothing up for longer than a
// TTL and a second. The contract's table has Lock, Campaign and Observe.
func TestSilentMember(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		t.Run("and Ctx", func(t *testing.T) {
			t.Parallel()
			l, name := newLinks(t), prefix(t)
			f := counted(t, l.client)
			h := kind(session(t, l.client, concurrency.WithTTL(far)), name)
			require.NoError(t, h.take(t.Context()))
			ctx := h.Ctx()
			etcdtest.Eventually(t, func() bool { return f.Count(fault.Watch) == 1 }, "the watch")
			l.silence(t)
			_, err := l.outside.Delete(t.Context(), h.Key())
			require.NoError(t, err)
			hears(t, ctx.Done(), "the ownership lives beside a rival's")
			require.ErrorIs(t, context.Cause(ctx), concurrency.ErrSessionExpired)
		})
		t.Run("and Do", func(t *testing.T) {
			t.Parallel()
			l, name := newLinks(t), prefix(t)
			f := counted(t, l.client)
			h := kind(session(t, l.client, concurrency.WithTTL(far)), name)
			err := h.during(t.Context(), func(ctx context.Context) error {
				etcdtest.Eventually(t, func() bool { return f.Count(fault.Watch) == 1 }, "the watch")
				l.silence(t)
				_, err := l.outside.Delete(t.Context(), h.Key())
				require.NoError(t, err)
				hears(t, ctx.Done(), "the work goes on beside a rival's")
				return nil
			})
			require.Equal(t, concurrency.ErrKeyDeleted, err)
		})
	})
}

func TestSilentMemberAndLeaders(t *testing.T) {
	t.Parallel()
	t.Run("RunLeader never runs beside a rival for longer", func(t *testing.T) {
		t.Parallel()
		l, name := newLinks(t), prefix(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		terms := make(chan context.Context)
		f := counted(t, l.client)
		call := etcdtest.Go(func() error {
			return concurrency.RunLeader(ctx, l.client, name, "value", func(ctx context.Context, _ *concurrency.Election) error {
				terms <- ctx
				<-ctx.Done()
				return ctx.Err()
			}, concurrency.WithTTL(far))
		})
		term := <-terms
		etcdtest.Eventually(t, func() bool { return f.Count(fault.Watch) == 1 }, "the watch")
		l.silence(t)
		key := etcdtest.WaitKeys(t, l.outside, name+"/", 1)[0].Key
		_, err := l.outside.Delete(t.Context(), string(key))
		require.NoError(t, err)
		hears(t, term.Done(), "the work goes on")
		cancel()
		require.Equal(t, context.Canceled, call.Wait(t))
	})
	t.Run("Leaders tells that nobody leads", func(t *testing.T) {
		t.Parallel()
		l := newLinks(t)
		b := newBallot(t, server(t))
		b.wins(t, b.election, "leader")
		e := concurrency.NewElection(session(t, l.client, concurrency.WithTTL(far)), b.name)
		first, seen, vacant := make(chan struct{}), make(chan struct{}), make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		call := etcdtest.Go(func() error {
			for leader, err := range e.Leaders(ctx) {
				switch {
				case err != nil:
					return err
				case leader.Value == "leader":
					close(first)
				case leader.Value == "proclaimed": // which the watch has told: it has begun
					close(seen)
				default:
					close(vacant)
				}
			}
			return nil
		})
		ended(t, first, "the leader")
		require.NoError(t, b.election.Proclaim(t.Context(), "proclaimed"))
		ended(t, seen, "its new value")
		l.silence(t)
		require.NoError(t, b.election.Resign(t.Context()))
		hears(t, vacant, "the leader of before is believed in")
		cancel()
		require.Equal(t, context.Canceled, call.Wait(t))
	})
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

// The look of an observer that is not answered is sent again, to another member perhaps.
func TestLooksOfAnObserverAreRepeated(t *testing.T) {
	t.Parallel()
	l := newLine(t, concurrency.WithTTL(2))
	e := concurrency.NewElection(l.session, l.name)
	require.NoError(t, e.Campaign(t.Context(), "v"))
	l.faults.Hold(fault.Get, 1)
	for leader, err := range e.Leaders(t.Context()) {
		require.NoError(t, err)
		require.Equal(t, e.Key(), leader.Key)
		break
	}
}
