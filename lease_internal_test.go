package concurrency

import (
	"context"
	"runtime"
	"testing"
	"time"
	"weak"

	"github.com/stretchr/testify/require"
	v3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// stopped is a lease of a session as it is in a process that was stopped: the deadline has
// passed, and no timer has run.
func stopped(t *testing.T) *lease {
	l := &lease{client: v3.NewCtxClient(t.Context()), ends: ends{done: make(chan struct{})}}
	l.ctx, l.end = context.WithCancelCause(t.Context())
	l.ctx = &punctual{l.ctx, l.expire}
	l.lost, l.setLost = context.WithCancelCause(t.Context())
	l.clock.deadline = time.Now().Add(time.Hour)
	l.clock.start(l.expire)
	l.clock.deadline = time.Now().Add(-time.Second)
	return l
}

func TestTheFirstLookAtASession(t *testing.T) {
	s, err := NewSession(etcdtest.New(t).Client(t))
	require.NoError(t, err)
	require.NoError(t, s.Ctx().Err())
	s.lease.clock.mu.Lock()
	s.lease.clock.deadline = time.Now().Add(-time.Second)
	s.lease.clock.mu.Unlock()
	require.Error(t, s.Ctx().Err())
	require.ErrorIs(t, context.Cause(s.Ctx()), ErrSessionExpired)
	s.Orphan()
}

// Otherwise the timer of the looks would keep the session for ever.
func TestALeaseThatHasEndedIsLookedAtOnceMore(t *testing.T) {
	l := stopped(t)
	l.seats = &seats{of: map[string]*seat{}}
	l.seats.at("name/1", func(s *seat) { s.miss(time.Now(), time.Hour, func() {}) })
	queue{session: &Session{lease: l}}.lookLater("name/1")
	l.work.Wait()
	l.seats.at("name/1", func(s *seat) { require.Nil(t, s.later) })
}

func TestALateTimerKeepsNothingAlive(t *testing.T) {
	t.Run("the first look of each kind says that the session has ended", func(t *testing.T) {
		for how, look := range map[string]func(l *lease) error{
			"Err":           func(l *lease) error { require.Error(t, l.ctx.Err()); return context.Cause(l.ctx) },
			"context.Cause": func(l *lease) error { return context.Cause(l.ctx) },
			"a key that is missed": func(l *lease) error {
				return queue{session: &Session{lease: l}}.lossOf()
			},
			"a server that says the lease is gone": func(l *lease) error { l.heardGone(); return context.Cause(l.ctx) },
			"a call": func(l *lease) error {
				require.Equal(t, ErrSessionExpired, l.loss())
				return context.Cause(l.ctx)
			},
			"Done of the session": func(l *lease) error {
				s := Session{lease: l, done: l.done}
				select {
				case <-s.Done():
				default:
					require.Fail(t, "Done is open")
				}
				return context.Cause(l.ctx)
			},
		} {
			l := stopped(t)
			require.Equal(t, ErrDeadline, look(l), how)
			require.Error(t, l.lost.Err(), how)
			select {
			case <-l.ctx.Done():
			default:
				require.Fail(t, "the look has not closed Done", how)
			}
		}
	})
	t.Run("an answer that comes after the deadline revives nothing", func(t *testing.T) {
		l := stopped(t)
		l.answered(time.Now(), time.Hour)
		require.Equal(t, ErrSessionExpired, l.loss())
		l.answered(time.Now(), time.Hour)
		require.Equal(t, ErrSessionExpired, l.loss())
	})
}

// granting grants leases, and does nothing else.
type granting struct {
	v3.Lease
	granted v3.LeaseID
}

func (g *granting) Grant(_ context.Context, ttl int64) (*v3.LeaseGrantResponse, error) {
	g.granted++
	return &v3.LeaseGrantResponse{ID: g.granted, TTL: ttl}, nil
}

// etcd's own services open a session for each call, on a client that lives as long as the
// server does, orphan it and forget it.
func TestAClientForgetsOrphanedSessions(t *testing.T) {
	client := v3.NewCtxClient(t.Context())
	client.Lease = &granting{}
	heap := func() int64 {
		runtime.GC()
		runtime.GC() // what the first one has freed from pools
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	open := func(n int) {
		for range n {
			s, err := NewSession(client)
			require.NoError(t, err)
			s.Orphan()
			s.lease.use()
			s.lease.unuse()
		}
	}
	const n = 10_000
	open(n) // the registry of what a client shares has its size then
	before := heap()
	open(n)
	require.Less(t, (heap()-before)/n, int64(50), "bytes for each")
}

// idle waits until the client of an orphaned session has forgotten it.
func idle(s *Session) {
	for used := true; used; {
		runtime.Gosched()
		s.lease.mu.Lock()
		used = s.lease.users > 0
		s.lease.mu.Unlock()
	}
}

func TestTheClientsEndEndsWhatIsUnderWayOnAnOrphanedLease(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	client := v3.NewCtxClient(ctx)
	client.Lease = &granting{}
	s, err := NewSession(client)
	require.NoError(t, err)
	s.Orphan()
	idle(s)
	require.NoError(t, s.lease.lost.Err())
	s.lease.use()
	defer s.lease.unuse()
	cancel()
	<-s.lease.lost.Done()
	require.Equal(t, context.Canceled, s.lease.loss())
}

func TestAReleaseOfAnOrphanEndsWithItsClient(t *testing.T) {
	client := etcdtest.New(t).Client(t)
	faults := fault.Wrap(client)
	t.Cleanup(faults.Clear)
	s, err := NewSession(client)
	require.NoError(t, err)
	m := NewMutex(s, "lock")
	require.NoError(t, m.Lock(t.Context()))
	s.Orphan()
	idle(s)
	deletion := faults.Hold(fault.Txn, 1)
	call := etcdtest.Go(func() error { return m.Unlock(t.Context()) })
	<-deletion.Reached()
	_ = client.Close() // what it says of the wrapped client is not the matter
	require.Equal(t, context.Canceled, call.Wait(t))
}

// The end of a client comes to its sessions on a goroutine, which may be late.
func TestTheFirstLookAfterTheEndOfTheClient(t *testing.T) {
	for range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		client := v3.NewCtxClient(ctx)
		client.Lease = &granting{}
		s, err := NewSession(client)
		require.NoError(t, err)
		require.NoError(t, s.Ctx().Err())
		cancel()
		require.Error(t, s.Ctx().Err())
		require.Equal(t, ErrClientClosed, context.Cause(s.Ctx()))
		<-s.Done()
	}
}

// Programs compare contexts, and keep things by them.
func TestContextsCanBeCompared(t *testing.T) {
	l := stopped(t)
	s := Session{ctx: l.ctx, lease: l}
	require.True(t, s.Ctx() == s.Ctx())
	require.Contains(t, map[context.Context]bool{s.Ctx(): true}, s.Ctx())
}

// etcd's lock service opens a session for each call and forgets it. Another call, whose join has no
// answer, finds the key by which the first one holds.
func TestCleanUpLeavesTheLockOfAnEarlierCallAlone(t *testing.T) {
	client, ctx := etcdtest.New(t).Client(t), t.Context()
	f := fault.Wrap(client)
	lease, err := client.Grant(ctx, 60)
	require.NoError(t, err)
	call := func() *Mutex {
		s, err := NewSession(client, WithLease(lease.ID))
		require.NoError(t, err)
		s.Orphan()
		return NewMutex(s, "lock")
	}
	token, known := func() (int64, weak.Pointer[seats]) {
		m := call()
		require.NoError(t, m.Lock(ctx))
		return m.Rev(), weak.Make(m.queue.lease().seats)
	}()
	etcdtest.Eventually(t, func() bool {
		runtime.GC()
		return known.Value() == nil
	}, "what the first call knew is forgotten")
	join := f.HoldAnswer(fault.Txn, 1)
	short, cancel := context.WithCancel(ctx)
	second := call()
	lock := etcdtest.Go(func() error { return second.Lock(short) })
	<-join.Reached()
	cancel()
	require.Equal(t, context.Canceled, lock.Wait(t))
	looks := f.Count(fault.Get)
	etcdtest.Eventually(t, func() bool { return f.Count(fault.Get) > looks }, "the clean-up has looked")
	keys := etcdtest.Keys(t, client, "lock/")
	require.Len(t, keys, 1)
	require.Equal(t, token, keys[0].CreateRevision)
	_, err = client.Revoke(ctx, lease.ID)
	require.NoError(t, err)
}
