package concurrency_test

import (
	"context"
	"fmt"
	"iter"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// observe is what e observes until the test ends.
func observe(tb testing.TB, e *concurrency.Election) <-chan *clientv3.GetResponse {
	tb.Helper()
	observed := e.Observe(tb.Context()) // which ends before the clean-ups
	tb.Cleanup(func() { closes(tb, observed) })
	return observed
}

// closes waits until the channel is closed, whatever is still in it.
func closes(tb testing.TB, observed <-chan *clientv3.GetResponse) {
	tb.Helper()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case _, ok := <-observed:
			if !ok {
				return
			}
		case <-timeout:
			require.FailNow(tb, "the channel was not closed within 30 s")
		}
	}
}

// next is the next response, which holds one key.
func next(tb testing.TB, observed <-chan *clientv3.GetResponse) (kv *mvccpb.KeyValue, rev int64) {
	tb.Helper()
	select {
	case resp, ok := <-observed:
		require.True(tb, ok, "the channel is closed")
		require.Len(tb, resp.Kvs, 1)
		require.EqualValues(tb, 1, resp.Count)
		return resp.Kvs[0], resp.Header.Revision
	case <-time.After(30 * time.Second):
		require.FailNow(tb, "nothing observed within 30 s")
		return nil, 0
	}
}

// until reads up to the value and gives the values before it. Each response is
// checked: it names who led, with that value, at the revision of its header.
func (b *ballot) until(tb testing.TB, observed <-chan *clientv3.GetResponse, value string) (before []string) {
	tb.Helper()
	last := int64(0)
	for {
		kv, rev := next(tb, observed)
		require.Greater(tb, rev, last, "in the order of revisions")
		head := b.head(tb, rev)
		require.Equal(tb, string(head.Key), string(kv.Key))
		require.Equal(tb, string(head.Value), string(kv.Value))
		require.Equal(tb, head.ModRevision, kv.ModRevision)
		if last = rev; string(kv.Value) == value {
			return before
		}
		before = append(before, string(kv.Value))
	}
}

func TestElectionObserveTellsThePresentLeaderThenEachChangeInOrder(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := newBallot(t, server(t))
	b.wins(t, b.election, "0")
	observed := observe(t, b.election)
	require.Empty(t, b.until(t, observed, "0"))
	for i := 1; i < 10; i++ {
		require.NoError(t, b.election.Proclaim(ctx, strconv.Itoa(i)))
		require.Empty(t, b.until(t, observed, strconv.Itoa(i)))
	}
	rival := b.rival(t)
	call := b.waits(t, ctx, rival, "rival", 2)
	require.NoError(t, b.election.Resign(ctx))
	require.NoError(t, call.Wait(t))
	require.Empty(t, b.until(t, observed, "rival"))
}

func TestElectionObserveWaitsForALeader(t *testing.T) {
	t.Parallel()
	b := newBallot(t, server(t))
	observed := observe(t, b.election)
	etcdtest.Eventually(t, func() bool { return b.faults.Count(fault.Watch) == 1 }, "it watches")
	b.wins(t, b.election, "first")
	require.Empty(t, b.until(t, observed, "first"))
	require.NoError(t, b.election.Resign(t.Context()))
	b.wins(t, b.election, "second") // the same key, another life
	require.Empty(t, b.until(t, observed, "second"), "that nobody leads is not told")
}

func TestElectionObserveDeliversNoCandidates(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := newBallot(t, server(t))
	b.wins(t, b.election, "leader")
	observed := observe(t, b.election)
	require.Empty(t, b.until(t, observed, "leader"))
	s := session(t, b.outside)
	call := b.waits(t, ctx, concurrency.NewElection(s, b.name), "candidate", 2)
	again := etcdtest.Go(func() error {
		return concurrency.NewElection(s, b.name).Campaign(ctx, "candidate again")
	})
	etcdtest.Eventually(t, func() bool {
		return string(b.stand(t, 2)[1].Value) == "candidate again"
	}, "a candidate's new value")
	require.NoError(t, b.election.Proclaim(ctx, "still leader"))
	require.Empty(t, b.until(t, observed, "still leader"))
	require.NoError(t, b.election.Resign(ctx))
	require.NoError(t, call.Wait(t))
	require.NoError(t, again.Wait(t))
	require.Empty(t, b.until(t, observed, "candidate again"))
}

func TestElectionObserveTellsTheNextWhenALeaderIsDeletedByHand(t *testing.T) {
	t.Parallel()
	b := newBallot(t, server(t))
	b.wins(t, b.election, "leader")
	observed := observe(t, b.election)
	require.Empty(t, b.until(t, observed, "leader"))
	rival := b.rival(t)
	call := b.waits(t, t.Context(), rival, "rival", 2)
	b.delete(t, b.election.Key())
	require.Empty(t, b.until(t, observed, "rival"))
	require.NoError(t, call.Wait(t))
}

// The deletion and the put come between two looks.
func TestElectionObserveTellsALeaderWhoseKeyWasDeletedAndPutAgain(t *testing.T) {
	t.Parallel()
	b := newBallot(t, server(t))
	b.wins(t, b.election, "leader")
	observed := observe(t, b.election)
	require.Empty(t, b.until(t, observed, "leader"))
	b.delete(t, b.election.Key())
	b.wins(t, b.handle(), "again")
	require.Empty(t, b.until(t, observed, "again"))
}

func TestElectionObserveOfASlowReaderMissesSomeNeverTheLatest(t *testing.T) {
	t.Parallel()
	b := newBallot(t, server(t))
	b.wins(t, b.election, "leader")
	slow, quick := observe(t, b.election), observe(t, b.election)
	require.Empty(t, b.until(t, slow, "leader"))
	const changes = 50
	for i := range changes {
		require.NoError(t, b.election.Proclaim(t.Context(), strconv.Itoa(i)))
	}
	last := strconv.Itoa(changes - 1)
	b.until(t, quick, last) // so that the changes have arrived
	require.Less(t, len(b.until(t, slow, last)), changes/2)
}

func TestElectionObserveFaults(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	t.Run("a cut, behind which the leader changes and all is compacted", func(t *testing.T) {
		t.Parallel()
		cluster := etcdtest.New(t) // compaction is everybody's
		b := newBallot(t, cluster)
		p, c := proxied(t, cluster)
		b.wins(t, b.election, "leader")
		observed := observe(t, concurrency.NewElection(session(t, c), b.name))
		require.Empty(t, b.until(t, observed, "leader"))
		p.Refuse()
		p.Cut()
		rival := b.rival(t)
		call := b.waits(t, ctx, rival, "rival", 2)
		require.NoError(t, b.election.Resign(ctx))
		require.NoError(t, call.Wait(t))
		for i := range 20 {
			require.NoError(t, rival.Proclaim(ctx, strconv.Itoa(i)))
		}
		_, err := b.outside.Compact(ctx, rival.Header().Revision)
		require.NoError(t, err)
		p.Accept()
		require.Empty(t, b.until(t, observed, "19"))
		require.NoError(t, rival.Proclaim(ctx, "goes on"))
		require.Empty(t, b.until(t, observed, "goes on"))
	})
	t.Run("watches that break, and looks that are refused", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "leader")
		b.faults.BrokenWatch(1, rpctypes.ErrCompacted)
		b.faults.BrokenWatch(2, rpctypes.ErrNoLeader)
		b.faults.BrokenWatch(3, nil)
		b.faults.Refuse(fault.Get, 2, codes.Unavailable, "etcdserver: leader changed")
		gate := b.faults.BreakWatch(4, rpctypes.ErrCompacted)
		observed := observe(t, b.election)
		require.Empty(t, b.until(t, observed, "leader"))
		ended(t, gate.Reached(), "the fourth watch")
		gate.Open()
		etcdtest.Eventually(t, func() bool { return b.faults.Count(fault.Watch) == 5 }, "a fifth watch")
		require.NoError(t, b.election.Proclaim(ctx, "goes on"))
		require.Empty(t, b.until(t, observed, "goes on"), "nothing is delivered twice")
	})
	t.Run("a change between a look and its watch", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "leader")
		gate := b.faults.Hold(fault.Watch, 1)
		observed := observe(t, b.election)
		require.Empty(t, b.until(t, observed, "leader"))
		ended(t, gate.Reached(), "the watch is about to begin")
		require.NoError(t, b.election.Proclaim(ctx, "in the gap"))
		gate.Open()
		require.Empty(t, b.until(t, observed, "in the gap"))
	})
	t.Run("a leader that comes between a look and its watch", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		gate := b.faults.Hold(fault.Watch, 1)
		observed := observe(t, b.election)
		ended(t, gate.Reached(), "the watch is about to begin")
		b.wins(t, b.election, "in the gap")
		gate.Open()
		require.Empty(t, b.until(t, observed, "in the gap"))
	})
}

func TestElectionObserveCloses(t *testing.T) {
	t.Parallel()
	t.Run("when ctx ends, whether or not anybody reads or leads", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		closes(t, b.election.Observe(cancelled()))
		for _, lead := range []bool{false, true} {
			if lead {
				b.wins(t, b.election, "leader")
			}
			ctx, cancel := context.WithCancel(t.Context())
			watches := b.faults.Count(fault.Watch)
			observed := b.election.Observe(ctx)
			etcdtest.Eventually(t, func() bool { return b.faults.Count(fault.Watch) > watches }, "it watches")
			cancel()
			closes(t, observed)
		}
	})
	t.Run("when ctx ends while no server can be reached", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "leader")
		p, c := proxied(t, server(t))
		ctx, cancel := context.WithCancel(t.Context())
		observed := concurrency.NewElection(session(t, c), b.name).Observe(ctx)
		require.Empty(t, b.until(t, observed, "leader"))
		p.Stall()
		cancel()
		closes(t, observed)
		p.Resume()
	})
	t.Run("when the client is closed", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "leader")
		c := client(t)
		s, err := concurrency.NewSession(c)
		require.NoError(t, err)
		revokedAtEnd(t, b.outside, s.Lease())
		observed := concurrency.NewElection(s, b.name).Observe(t.Context())
		require.Empty(t, b.until(t, observed, "leader"))
		require.NoError(t, c.Close())
		closes(t, observed)
	})
	t.Run("when the user may not read the election", func(t *testing.T) {
		t.Parallel()
		c := guest(t, etcdtest.New(t), "allowed/")
		s := session(t, c)
		closes(t, concurrency.NewElection(s, "forbidden").Observe(t.Context()))
		ctx, cancel := context.WithCancel(t.Context())
		allowed := concurrency.NewElection(s, "allowed")
		require.NoError(t, allowed.Campaign(ctx, "leader"))
		observed := allowed.Observe(ctx)
		next(t, observed)
		cancel()
		closes(t, observed)
		require.Equal(t, rpctypes.ErrPermissionDenied,
			concurrency.NewElection(s, "forbidden").Campaign(t.Context(), "v"))
		_, err := concurrency.NewElection(s, "forbidden").Leader(t.Context())
		require.Equal(t, rpctypes.ErrPermissionDenied, err)
	})
}

func TestElectionOnWrappedClients(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	work := func(t *testing.T, c *clientv3.Client, seen string) {
		b := &ballot{name: prefix(t), client: c, outside: c, session: session(t, c)}
		b.election = b.handle()
		observed := observe(t, b.election)
		b.wins(t, b.election, "first")
		require.Empty(t, b.until(t, observed, "first"))
		rival := b.rival(t)
		call := b.waits(t, ctx, rival, "second", 2)
		b.wins(t, b.election, "still first")
		require.NoError(t, b.election.Proclaim(ctx, "and still"))
		require.Len(t, etcdtest.Keys(t, client(t), seen+b.name+"/"), 2)
		resumed := concurrency.ResumeElection(b.session, b.name, b.election.Key(), b.election.Rev())
		require.NoError(t, resumed.Resign(ctx))
		require.NoError(t, call.Wait(t))
		b.until(t, observed, "second")
		b.leads(t, rival, "second")
	}
	t.Run("in a namespace", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		c.KV = namespace.NewKV(c.KV, "space/")
		c.Lease = namespace.NewLease(c.Lease, "space/")
		c.Watcher = namespace.NewWatcher(c.Watcher, "space/")
		work(t, c, "space/")
	})
	t.Run("the server's own", func(t *testing.T) {
		t.Parallel()
		if !server(t).Embedded() { // only those can be spoken to without a connection
			return
		}
		work(t, server(t).InProcess(t), "")
	})
}

// early is a Watcher on a member that lags: its watches begin in the past, and tell of one
// event at a time.
type early struct {
	clientv3.Watcher
	from  int64
	begun chan struct{} // closed when a watch has told that it has begun
}

func (w *early) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	out := make(chan clientv3.WatchResponse)
	go func() {
		defer close(out)
		for resp := range w.Watcher.Watch(ctx, key, append(opts, clientv3.WithRev(w.from))...) {
			all := resp.Events
			for n := range max(len(all), 1) {
				if len(all) > 0 {
					resp.Events = all[n : n+1]
				}
				select {
				case out <- resp:
				case <-ctx.Done():
					return
				}
			}
			if resp.Created {
				close(w.begun)
			}
		}
	}()
	return out
}

// A look shows more than its watch has delivered so far: what comes late is not told. In a line of
// which it does not know the end, a late deletion would take the leader's key out for good.
func TestObserveDoesNotGoBack(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	own := etcdtest.New(t) // where nobody else writes, and calls for looks
	b := newBallot(t, own)
	b.wins(t, b.election, "leader")
	watching := own.Client(t)
	begun := make(chan struct{})
	watching.Watcher = &early{watching.Watcher, b.election.Rev(), begun}
	b.delete(t, b.election.Key())
	b.wins(t, b.election, "again")
	for n := range 20 { // more than an observer knows
		_, err := b.outside.Put(ctx, fmt.Sprintf("%s/stranger %d", b.name, n), "behind")
		require.NoError(t, err)
	}
	for _, value := range []string{"1", "2", "3"} {
		require.NoError(t, b.election.Proclaim(ctx, value))
	}
	observed := observe(t, concurrency.NewElection(session(t, watching), b.name))
	require.Empty(t, b.until(t, observed, "3"))
	ended(t, begun, "the watch")
	seen := etcdtest.Go(func() error {
		if resp := <-observed; string(resp.Kvs[0].Value) != "4" {
			return fmt.Errorf("after 3 came %s", resp.Kvs[0].Value)
		}
		return nil
	})
	require.NoError(t, b.election.Proclaim(ctx, "4"))
	require.NoError(t, seen.Wait(t))
}

// An observer hears of a new leader without a call, and looks again when it knows nobody of a
// long line any more.
func TestAnObserverFollowsTheLine(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	own := etcdtest.New(t) // where nobody else writes, and calls for looks
	b := newBallot(t, own)
	b.wins(t, b.election, "0")
	const candidates = 40 // more than an observer knows
	calls := make([]*etcdtest.Call, candidates)
	all := make([]*concurrency.Election, candidates)
	for n := range candidates {
		all[n] = concurrency.NewElection(session(t, b.outside), b.name)
		calls[n] = b.waits(t, ctx, all[n], strconv.Itoa(n+1), n+2)
	}
	watching := own.Client(t)
	f := counted(t, watching)
	observed := observe(t, concurrency.NewElection(session(t, watching), b.name))
	b.until(t, observed, "0")
	require.NoError(t, b.election.Resign(ctx))
	for n, e := range all {
		require.NoError(t, calls[n].Wait(t))
		require.Empty(t, b.until(t, observed, strconv.Itoa(n+1)))
		if n == 3 {
			b.waits(t, ctx, b.election, "late", candidates-n+1)
		}
		require.NoError(t, e.Resign(ctx))
	}
	require.Empty(t, b.until(t, observed, "late"))
	require.LessOrEqual(t, f.KV(), 4, "one for each 16 candidates: %v", f)
}

// leaders steps through a loop over Leaders by hand.
type leaders struct {
	b    *ballot
	next func() (concurrency.Leader, error, bool)
	rev  int64 // of the last Leader
}

func (b *ballot) leaders(tb testing.TB, ctx context.Context, e *concurrency.Election) *leaders {
	tb.Helper()
	next, stop := iter.Pull2(e.Leaders(ctx))
	tb.Cleanup(stop)
	return &leaders{b: b, next: next}
}

// tells checks that the next is this leader, and that it was so; nil: nobody.
func (l *leaders) tells(tb testing.TB, e *concurrency.Election, value string) {
	tb.Helper()
	got, err, ok := l.next()
	require.True(tb, ok)
	require.NoError(tb, err)
	if e == nil {
		require.Zero(tb, got)
		return
	}
	require.Equal(tb, e.Key(), got.Key)
	require.Equal(tb, e.Rev(), got.Rev)
	require.Equal(tb, value, got.Value)
	l.holds(tb, got)
}

// holds checks that the leader led at its revision, which is later than the last. What was is
// looked up: nothing of it may have been compacted.
func (l *leaders) holds(tb testing.TB, got concurrency.Leader) {
	tb.Helper()
	require.Greater(tb, got.Revision, l.rev)
	l.rev = got.Revision
	kv := l.b.head(tb, got.Revision)
	require.Equal(tb, concurrency.Leader{
		Key: string(kv.Key), Rev: kv.CreateRevision, Value: string(kv.Value), Revision: got.Revision,
	}, got)
}

// ends checks that the next is the last, with the error alone.
func (l *leaders) ends(tb testing.TB, want error) {
	tb.Helper()
	got, err, ok := l.next()
	require.True(tb, ok)
	require.Equal(tb, want, err)
	require.Zero(tb, got)
	_, _, ok = l.next()
	require.False(tb, ok, "there are no more")
}

func TestLeadersTellsEveryChangeInOrderBeginningWithThePresent(t *testing.T) {
	t.Parallel()
	b := newBallot(t, server(t))
	l := b.leaders(t, t.Context(), b.election)
	l.tells(t, nil, "")
	b.wins(t, b.election, "first")
	l.tells(t, b.election, "first")
	late := b.leaders(t, t.Context(), b.rival(t))
	late.tells(t, b.election, "first")
	require.NoError(t, b.election.Proclaim(t.Context(), "second"))
	l.tells(t, b.election, "second")
	late.tells(t, b.election, "second")
	rival := b.rival(t)
	call := b.waits(t, t.Context(), rival, "third", 2)
	require.NoError(t, b.election.Resign(t.Context()))
	require.NoError(t, call.Wait(t))
	l.tells(t, rival, "third")
	b.delete(t, rival.Key())
	l.tells(t, nil, "")
	b.wins(t, b.election, "fourth")
	l.tells(t, b.election, "fourth")
	revoke(t, b.outside, b.session)
	l.tells(t, nil, "")
}

func TestLeadersBeginsAfreshWithEveryLoop(t *testing.T) {
	t.Parallel()
	b := newBallot(t, server(t))
	changes := b.election.Leaders(t.Context())
	for _, value := range []string{"one", "two"} {
		b.wins(t, b.election, value)
		for leader, err := range changes {
			require.NoError(t, err)
			require.Equal(t, value, leader.Value)
			break
		}
	}
}

func TestLeadersOfASlowLoopMissesSomeNeverTheLatest(t *testing.T) {
	t.Parallel()
	b := newBallot(t, server(t))
	b.wins(t, b.election, "0")
	const changes = 50
	seen, last := 0, &leaders{b: b}
	for leader, err := range b.election.Leaders(t.Context()) {
		require.NoError(t, err)
		last.holds(t, leader)
		if seen == 0 {
			for i := range changes {
				require.NoError(t, b.election.Proclaim(t.Context(), strconv.Itoa(i+1)))
			}
		}
		if seen++; leader.Value == strconv.Itoa(changes) {
			break
		}
	}
	require.Less(t, seen, changes/2, "they were queued")
}

func TestLeadersTellsAlsoOfAVacancyThatItWasTooSlowFor(t *testing.T) {
	t.Parallel()
	b := newBallot(t, server(t))
	l := b.leaders(t, t.Context(), b.election)
	l.tells(t, nil, "")
	for range 5 {
		b.wins(t, b.election, "value")
		require.NoError(t, b.election.Resign(t.Context()))
	}
	b.wins(t, b.election, "last")
	for {
		got, err, ok := l.next()
		require.True(t, ok)
		require.NoError(t, err)
		if got.Value == "last" {
			break
		}
	}
}

func TestLeadersGoesOnThroughCutsAndCompactions(t *testing.T) {
	t.Parallel()
	own := etcdtest.New(t)
	b := newBallot(t, own)
	p, c := proxied(t, own)
	l := b.leaders(t, t.Context(), concurrency.NewElection(session(t, c), b.name))
	l.tells(t, nil, "")
	for range 2 {
		p.Refuse()
		p.Cut()
		b.wins(t, b.election, "cut")
		compacted(t, b.outside, b.name+"-noise", 20)
		p.Accept()
		l.tells(t, b.election, "cut")
		p.Cut()
		require.NoError(t, b.election.Proclaim(t.Context(), "again"))
		l.tells(t, b.election, "again")
		p.Refuse()
		p.Cut()
		require.NoError(t, b.election.Resign(t.Context()))
		compacted(t, b.outside, b.name+"-noise", 20)
		p.Accept()
		l.tells(t, nil, "")
	}
}

func TestLeadersEnd(t *testing.T) {
	t.Parallel()
	t.Run("with the context's error", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.leaders(t, cancelled(), b.election).ends(t, context.Canceled)
		ctx, cancel := context.WithCancel(t.Context())
		l := b.leaders(t, ctx, b.election)
		l.tells(t, nil, "")
		cancel()
		l.ends(t, context.Canceled)
	})
	t.Run("with that of a deadline", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		var last error
		for leader, err := range b.election.Leaders(ctx) {
			require.NoError(t, last, "the last alone has an error")
			require.Zero(t, leader)
			last = err
		}
		require.Equal(t, context.DeadlineExceeded, last)
	})
	t.Run("also if no server can be reached", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		p, c := proxied(t, server(t))
		s := session(t, c)
		t.Cleanup(p.Resume)
		ctx, cancel := context.WithCancel(t.Context())
		l := b.leaders(t, ctx, concurrency.NewElection(s, b.name))
		l.tells(t, nil, "")
		p.Stall()
		cancel()
		require.NoError(t, within(t, 3*time.Second, func() error { l.ends(t, context.Canceled); return nil }))
	})
	t.Run("with context.Canceled when the client is closed", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		revokedAtEnd(t, b.outside, b.session.Lease())
		l := b.leaders(t, t.Context(), b.election)
		l.tells(t, nil, "")
		b.client.Close()
		l.ends(t, context.Canceled)
	})
	t.Run("with a permanent error", func(t *testing.T) {
		t.Parallel()
		c := guest(t, authServer(t), "mine/")
		b := &ballot{name: "theirs", session: session(t, c)}
		b.leaders(t, t.Context(), b.handle()).ends(t, rpctypes.ErrPermissionDenied)
	})
	t.Run("not with the session", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		l := b.leaders(t, t.Context(), b.election)
		l.tells(t, nil, "")
		require.NoError(t, b.session.Close())
		rival := b.rival(t)
		b.wins(t, rival, "value")
		l.tells(t, rival, "value")
	})
}

// Who observes an election needs no session.
func TestLeadersOf(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := concurrency.LeaderOf(ctx, l.outside, l.name)
	require.Equal(t, concurrency.ErrElectionNoLeader, err)
	e := concurrency.NewElection(l.session, l.name)
	f := counted(t, l.outside)
	steps := []struct {
		value string
		then  func() error
	}{
		{"", func() error { return e.Campaign(ctx, "first") }},
		{"first", func() error { return e.Proclaim(ctx, "second") }},
		{"second", func() error { return e.Resign(ctx) }},
		{"", func() error { cancel(); return nil }},
	}
	for leader, err := range concurrency.LeadersOf(ctx, l.outside, l.name) {
		if len(steps) == 0 {
			require.Equal(t, context.Canceled, err)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, steps[0].value, leader.Value)
		require.Equal(t, e.Rev(), leader.Rev)
		require.NoError(t, steps[0].then())
		steps = steps[1:]
	}
	require.Empty(t, steps)
	require.Zero(t, f.Count(fault.Grant), "no lease is needed")
	_, err = concurrency.LeaderOf(ctx, l.outside, l.name)
	require.Equal(t, context.Canceled, err)
	f.Refuse(fault.Get, 1, codes.PermissionDenied, "etcdserver: permission denied")
	_, err = concurrency.LeaderOf(t.Context(), l.outside, l.name)
	require.Equal(t, rpctypes.ErrPermissionDenied, err)
	for _, err := range concurrency.LeadersOf(t.Context(), l.outside, l.name) {
		if err == nil {
			break // a loop that is left early leaves nothing running: goleak looks
		}
	}
}

func TestLeadersOfMisuse(t *testing.T) {
	t.Parallel()
	var missing context.Context
	c := client(t)
	for _, call := range []func(){
		func() { concurrency.LeadersOf(t.Context(), nil, "name") },
		func() { concurrency.LeadersOf(missing, c, "name") },
		func() { _, _ = concurrency.LeaderOf(t.Context(), nil, "name") },
		func() { _, _ = concurrency.LeaderOf(missing, c, "name") },
		func() { concurrency.WithLeaders(nil) },
		func() { _ = concurrency.RunLeader(t.Context(), c, "name", "value", unled(t), nil) },
		func() { (&concurrency.Election{}).Session() },
	} {
		requireOurPanic(t, call)
	}
}

// observing reports whether an observer, or any watch, is running in this process.
func observing() bool {
	stacks := make([]byte, 4<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	return strings.Contains(string(stacks), "concurrency.(*observer).observe(") ||
		strings.Contains(string(stacks), "concurrency.(*watches).watchInto.func")
}

// It runs alone, so that all goroutines of this package are its own.
func TestElectionObserveLeavesNoGoroutine(t *testing.T) {
	b := newBallot(t, server(t))
	b.wins(t, b.election, "leader")
	ctx, cancel := context.WithCancel(t.Context())
	observed := b.election.Observe(ctx)
	require.Empty(t, b.until(t, observed, "leader"))
	etcdtest.Eventually(t, observing, "the observer's goroutines")
	cancel()
	closes(t, observed)
	etcdtest.Eventually(t, func() bool { return !observing() }, "their end")
}

// Not parallel, since it looks at all goroutines.
func TestLeadersLeavesNothingRunning(t *testing.T) {
	ends := func(when string) { // a goroutine has stopped a moment before it is gone
		t.Helper()
		etcdtest.Eventually(t, func() bool { return !observing() }, "%s", when)
	}
	b := newBallot(t, server(t))
	b.wins(t, b.election, "leader")
	for range b.election.Leaders(t.Context()) {
		etcdtest.Eventually(t, observing, "its goroutines")
		break
	}
	ends("after a loop that was left")
	require.PanicsWithValue(t, "stop", func() {
		for range b.election.Leaders(t.Context()) {
			panic("stop")
		}
	})
	ends("after a panic in the loop")
	for range b.election.Leaders(cancelled()) {
	}
	ends("after a loop that ended")
}
