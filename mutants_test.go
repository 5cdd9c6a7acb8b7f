package concurrency_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// Rules that a mutant outlived before they had a test here.

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

// The key is gone when the call returns, while a server answers: not only later.
func TestLockWithoutAnAnswerTakesItsKeyAway(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	join := l.faults.HoldAnswer(fault.Txn, 1)
	ctx, cancel := context.WithCancel(t.Context())
	call := etcdtest.Go(func() error { return l.mutex.Lock(ctx) })
	ended(t, join.Reached(), "the join")
	cancel()
	require.Equal(t, context.Canceled, call.Wait(t))
	require.Empty(t, etcdtest.Keys(t, l.outside, l.name+"/"))
}

// Who has the lock makes a call under it: time for others to come in, if they could.
func TestLockerExcludesGoroutines(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	lock := concurrency.NewLocker(l.session, l.name)
	var inside atomic.Int32
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 3 {
				lock.Lock()
				assert.EqualValues(t, 1, inside.Add(1))
				_, err := l.outside.Get(t.Context(), l.name)
				assert.NoError(t, err)
				inside.Add(-1)
				lock.Unlock()
			}
		})
	}
	wg.Wait()
}

func TestFirstDeadline(t *testing.T) {
	t.Parallel()
	c := client(t)
	f := counted(t, c)
	var answered time.Time
	f.After(fault.Grant, 1, func(error) { answered = time.Now() })
	s := session(t, c)
	require.False(t, s.Deadline().After(answered.Add(s.TTL())), "the lease counts from earlier")
}

func TestRevokedLeaseEndsTheSessionBeforeItsDeadline(t *testing.T) {
	t.Parallel()
	s := session(t, client(t), concurrency.WithTTL(4))
	revoke(t, client(t), s)
	ended(t, s.Done(), "the next renewal is refused")
	require.True(t, time.Now().Before(s.Deadline()))
	require.ErrorIs(t, context.Cause(s.Ctx()), concurrency.ErrSessionExpired)
}

// stubborn is a KV whose reads don't end with their context, but when the gate is opened.
type stubborn struct {
	clientv3.KV
	reached, gate chan struct{}
	once          sync.Once
	running       atomic.Int32
}

func (k *stubborn) Get(
	ctx context.Context, key string, opts ...clientv3.OpOption,
) (*clientv3.GetResponse, error) {
	k.running.Add(1)
	defer k.running.Add(-1)
	k.once.Do(func() { close(k.reached) })
	<-k.gate
	return k.KV.Get(context.WithoutCancel(ctx), key, opts...)
}

func TestCloseWaitsForWhatRunsInTheBackground(t *testing.T) {
	t.Parallel()
	c, name := client(t), prefix(t)
	kv := &stubborn{KV: c.KV, reached: make(chan struct{}), gate: make(chan struct{})}
	c.KV = kv
	f := counted(t, c)
	s := session(t, c)
	join := f.HoldAnswer(fault.Txn, 1)
	ctx, cancel := context.WithCancel(t.Context())
	call := etcdtest.Go(func() error { return concurrency.NewMutex(s, name).Lock(ctx) })
	ended(t, join.Reached(), "the join")
	cancel()
	ended(t, kv.reached, "the clean-up")
	require.Equal(t, context.Canceled, call.Wait(t))
	var running int32
	f.Before(fault.Revoke, 1, func() { running = kv.running.Load() })
	closing := etcdtest.Go(s.Close)
	ended(t, s.Done(), "the session ends")
	close(kv.gate)
	require.NoError(t, closing.Wait(t))
	require.Zero(t, running, "the lease was revoked under the clean-up")
}

// The leader has proclaimed since the candidate came: its key is the one modified last.
func TestLeaderIsTheOldestTicket(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := newBallot(t, server(t))
	b.wins(t, b.election, "leader")
	rival := b.rival(t)
	call := b.waits(t, ctx, rival, "rival", 2)
	require.NoError(t, b.election.Proclaim(ctx, "proclaimed"))

	resp, err := rival.Leader(ctx)
	require.NoError(t, err)
	require.Equal(t, b.election.Key(), string(resp.Kvs[0].Key))
	for leader, err := range rival.Leaders(ctx) {
		require.NoError(t, err)
		require.Equal(t, b.election.Key(), leader.Key)
		break
	}
	again := etcdtest.Go(func() error { return b.election.Campaign(ctx, "again") })
	require.NoError(t, again.Wait(t))
	require.True(t, call.Running())
	require.NoError(t, b.election.Resign(ctx))
	require.NoError(t, call.Wait(t))
}

// early is a Watcher on a member that lags: its watches begin in the past, and tell of one
// event at a time.
type early struct {
	clientv3.Watcher
	from int64
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
		}
	}()
	return out
}

// A look shows more than its watch has delivered so far: what comes late is not told.
func TestObserveDoesNotGoBack(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	own := etcdtest.New(t) // where nobody else writes, and calls for looks
	b := newBallot(t, own)
	b.wins(t, b.election, "leader")
	watching := own.Client(t)
	watching.Watcher = &early{watching.Watcher, b.election.Rev()}
	b.delete(t, b.election.Key())
	b.wins(t, b.election, "again")
	for _, value := range []string{"1", "2", "3"} {
		require.NoError(t, b.election.Proclaim(ctx, value))
	}
	observed := observe(t, concurrency.NewElection(session(t, watching), b.name))
	require.Empty(t, b.until(t, observed, "3"))
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

// strict is a KV that notes which reads may be answered by a member that lags behind.
type strict struct {
	clientv3.KV
	serializable []bool
}

func (k *strict) Get(
	ctx context.Context, key string, opts ...clientv3.OpOption,
) (*clientv3.GetResponse, error) {
	k.serializable = append(k.serializable, clientv3.OpGet(key, opts...).IsSerializable())
	return k.KV.Get(ctx, key, opts...)
}

func TestSTMReadsThatAreNotPinnedAreLinearizable(t *testing.T) {
	t.Parallel()
	for _, l := range levels {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t, server(t))
			kv := &strict{KV: s.client.KV}
			s.client.KV = kv
			s.run(t, func(stm concurrency.STM, _ int) {
				stm.Get(s.key("x"))
				stm.Get(s.key("y"))
			}, concurrency.WithIsolation(l.level))
			require.Equal(t, []bool{false, l.snapshot}, kv.serializable)
		})
	}
}

func TestResumeElectionBelievesTheKey(t *testing.T) {
	t.Parallel()
	ctx, c, name := t.Context(), client(t), prefix(t)
	// An older election, among whose keys those of name + "/" would seem to be.
	outer := concurrency.NewElection(session(t, c), name)
	require.NoError(t, outer.Campaign(ctx, "outer"))
	s := session(t, c)
	inner := concurrency.NewElection(s, name+"/")
	require.NoError(t, inner.Campaign(ctx, "inner"))
	again := concurrency.ResumeElection(s, name+"/", inner.Key(), inner.Rev())
	resp, err := again.Leader(ctx)
	require.NoError(t, err)
	require.Equal(t, inner.Key(), string(resp.Kvs[0].Key))
}

// A process that took its leadership over knows of it from ResumeElection alone.
func TestResumedLeaderStaysLeaderWhenItsCampaignFails(t *testing.T) {
	t.Parallel()
	ctx, name := t.Context(), prefix(t)
	before := session(t, client(t))
	e := concurrency.NewElection(before, name)
	require.NoError(t, e.Campaign(ctx, "v"))
	before.Orphan()

	c := client(t)
	faults := counted(t, c)
	s := session(t, c, concurrency.WithLease(before.Lease()))
	again := concurrency.ResumeElection(s, name, e.Key(), e.Rev())
	lost := errors.New("lost for good")
	faults.LoseAnswer(fault.Txn, 1, lost)
	require.ErrorIs(t, again.Campaign(ctx, "w"), lost)
	// What may have been left behind is looked for, and found to be in use.
	etcdtest.Eventually(t, func() bool { return faults.Count(fault.Get) >= 3 }, "three looks")
	require.NoError(t, again.Proclaim(ctx, "x"))
}

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

// At least half of 10, 20, 40, 80, 160 and 320 ms: a lower bound, which no noise breaks.
func TestRepetitionsPauseLongerEachTime(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.faults.Refuse(fault.Txn, 6, codes.Unavailable, "etcdserver: no leader")
	start := time.Now()
	require.NoError(t, l.mutex.Lock(t.Context()))
	require.GreaterOrEqual(t, time.Since(start), 315*time.Millisecond)
	require.Equal(t, 7, l.faults.Count(fault.Txn))
	require.NoError(t, l.mutex.Unlock(t.Context()))
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

func TestAReleaseOfAnOrphanEndsWithItsClient(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	revokedAtEnd(t, l.outside, l.session.Lease())
	require.NoError(t, l.mutex.Lock(t.Context()))
	l.session.Orphan()
	deletion := l.faults.Hold(fault.Txn, 1)
	call := etcdtest.Go(func() error { return l.mutex.Unlock(t.Context()) })
	ended(t, deletion.Reached(), "the deletion")
	_ = l.client.Close() // what it says of the wrapped client is not the matter
	require.Equal(t, context.Canceled, call.Wait(t))
}
