package concurrency_test

import (
	"context"
	"errors"
	"math"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
	"example.com/etcd/concurrency/internal/virtual"
)

// grantedTTL is the TTL in seconds with which the lease was granted.
func grantedTTL(tb testing.TB, s *concurrency.Session) int64 {
	tb.Helper()
	resp, err := s.Client().TimeToLive(context.Background(), s.Lease())
	require.NoError(tb, err)
	return resp.GrantedTTL
}

func TestSession(t *testing.T) {
	t.Parallel()
	ctx := t.Context()

	t.Run("a lease that is kept alive", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		s := session(t, c, concurrency.WithTTL(5))
		etcdtest.Eventually(t, func() bool { return f.Count(fault.KeepAliveOnce) > 4 }, "five renewals")
		require.NoError(t, s.Ctx().Err())
		require.True(t, lives(t, c, s.Lease()))
	})
	t.Run("locks are bound to it", func(t *testing.T) {
		t.Parallel()
		c, name := client(t), prefix(t)
		s := session(t, c)
		require.NoError(t, concurrency.NewMutex(s, name).Lock(ctx))
		kvs := etcdtest.WaitKeys(t, c, name, 1)
		require.Equal(t, int64(s.Lease()), kvs[0].Lease)
		revoke(t, c, s)
		etcdtest.WaitKeys(t, c, name, 0)
	})
	t.Run("copies are one session", func(t *testing.T) {
		t.Parallel()
		c, name := client(t), prefix(t)
		s := session(t, c)
		twin := *s
		require.NoError(t, concurrency.NewMutex(s, name).Lock(ctx))
		require.NoError(t, concurrency.NewMutex(&twin, name).TryLock(ctx))
		etcdtest.WaitKeys(t, c, name, 1)
		require.NoError(t, twin.Close())
		ended(t, s.Done(), "the original has ended")
		require.NoError(t, s.Close())
	})
	t.Run("the zero Session is a placeholder", func(t *testing.T) {
		t.Parallel()
		var s concurrency.Session
		require.Nil(t, s.Client())
		require.Nil(t, s.Ctx())
		require.Nil(t, s.Done())
		require.Zero(t, s.Lease())
		require.Zero(t, s.TTL())
		require.Zero(t, s.Deadline())
		s.Orphan()
		require.NoError(t, s.Close())
	})
	t.Run("methods may be called from any goroutine", func(t *testing.T) {
		t.Parallel()
		s := session(t, client(t))
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				assert.NotNil(t, s.Client())
				assert.NotZero(t, s.Lease())
				s.Orphan()
				<-s.Done()
				assert.Error(t, s.Ctx().Err())
				assert.NoError(t, s.Close())
			})
		}
		wg.Wait()
	})
}

func TestWithTTL(t *testing.T) {
	t.Parallel()
	t.Run("the time to live in seconds", func(t *testing.T) {
		t.Parallel()
		s := session(t, client(t), concurrency.WithTTL(7))
		require.EqualValues(t, 7, grantedTTL(t, s))
	})
	t.Run("zero or less asks for the default of 60 seconds", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		for _, opts := range [][]concurrency.SessionOption{
			nil,
			{concurrency.WithTTL(0)},
			{concurrency.WithTTL(-1)},
			{concurrency.WithTTL(5), concurrency.WithTTL(math.MinInt)},
		} {
			require.EqualValues(t, 60, grantedTTL(t, session(t, c, opts...)))
		}
	})
	t.Run("the server may grant more", func(t *testing.T) {
		t.Parallel()
		if !server(t).Embedded() { // only those can be configured
			return
		}
		c := etcdtest.New(t, etcdtest.Config(func(_ int, cfg *embed.Config) {
			cfg.TickMs, cfg.ElectionMs = 100, 2000
		}))
		s := session(t, c.Client(t), concurrency.WithTTL(2))
		require.EqualValues(t, 3, grantedTTL(t, s))
	})
	t.Run("the longest there is", func(t *testing.T) {
		t.Parallel()
		longest := int64(9_000_000_000) // of etcd's, which is more than an int of 32 bits holds
		ttl := int(min(longest, math.MaxInt))
		s := session(t, client(t), concurrency.WithTTL(ttl))
		require.EqualValues(t, ttl, grantedTTL(t, s))
		require.NoError(t, concurrency.NewMutex(s, prefix(t)).Lock(t.Context()))
		require.NoError(t, s.Ctx().Err())
	})
	t.Run("more than a lease can have", func(t *testing.T) {
		t.Parallel()
		s, err := concurrency.NewSession(client(t), concurrency.WithTTL(math.MaxInt))
		require.Equal(t, rpctypes.ErrLeaseTTLTooLarge, err)
		require.Nil(t, s)
	})
}

func TestWithLease(t *testing.T) {
	t.Parallel()
	t.Run("keeps an existing lease alive", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		id := granted(t, c, 60)
		f := counted(t, c)
		s := session(t, c, concurrency.WithLease(id))
		require.Equal(t, id, s.Lease())
		require.Zero(t, f.Count(fault.Grant))
		etcdtest.Eventually(t, func() bool { return f.Count(fault.KeepAliveOnce) == 1 }, "renewed at once")
		require.NoError(t, s.Close())
		require.False(t, lives(t, c, id))
	})
	t.Run("of which less than a second is left", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		id := granted(t, c, 3)
		etcdtest.Eventually(t, func() bool {
			resp, err := c.TimeToLive(t.Context(), id)
			return err == nil && resp.TTL == 0
		}, "the last second")
		f := counted(t, c)
		s := session(t, c, concurrency.WithLease(id))
		require.NotZero(t, f.Count(fault.KeepAliveOnce), "nobody knows how much is left")
		require.NoError(t, s.Ctx().Err())
		require.Greater(t, time.Until(s.Deadline()), time.Second)
	})
	t.Run("its TTL is the one with which it was granted", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		id := granted(t, c, 9)
		s := session(t, c, concurrency.WithLease(id), concurrency.WithTTL(33))
		require.EqualValues(t, 9, grantedTTL(t, s))
	})
	t.Run("its last second, and a renewal that fails at first", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		id := granted(t, c, 1)
		f := counted(t, c)
		f.Refuse(fault.KeepAliveOnce, 1, codes.Unavailable, "away")
		s := session(t, c, concurrency.WithLease(id))
		require.NoError(t, s.Ctx().Err())
	})
	t.Run("NoLease is none", func(t *testing.T) {
		t.Parallel()
		require.NotZero(t, session(t, client(t), concurrency.WithLease(clientv3.NoLease)).Lease())
	})
}

// A renewal a third of the TTL later would be too late for it.
func TestWithLeaseThatIsNearlyOver(t *testing.T) {
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		t, c, _ := remote(b)
		id := granted(t, c, 30)
		b.Sleep(24 * time.Second)
		survives(t, session(t, c, concurrency.WithLease(id)), 3)
	})
}

func TestWithContext(t *testing.T) {
	t.Parallel()
	t.Run("when ctx ends NewSession gives up", func(t *testing.T) {
		t.Parallel()
		_, c := stalled(t)
		ctx, cancel := context.WithCancel(t.Context())
		call := etcdtest.Go(func() error {
			_, err := concurrency.NewSession(c, concurrency.WithContext(ctx))
			return err
		})
		cancel()
		require.Equal(t, context.Canceled, call.Wait(t))
	})
	t.Run("an open session ends as if it had been orphaned, and Close abandons the lease", func(t *testing.T) {
		t.Parallel()
		c, cause := client(t), errors.New("the cause")
		ctx, cancel := context.WithCancelCause(t.Context())
		s := session(t, c, concurrency.WithContext(ctx))
		revokedAtEnd(t, c, s.Lease())
		cancel(cause)
		ended(t, s.Done(), "the session")
		require.Equal(t, cause, context.Cause(s.Ctx()))
		require.NoError(t, concurrency.NewMutex(s, prefix(t)).Lock(t.Context()), "as an orphan")
		require.Equal(t, context.Canceled, s.Close())
		require.True(t, lives(t, c, s.Lease()))
	})
	t.Run("an ended context", func(t *testing.T) {
		t.Parallel()
		s, err := concurrency.NewSession(client(t), concurrency.WithContext(cancelled()))
		require.Equal(t, context.Canceled, err)
		require.Nil(t, s)
	})
	t.Run("its own deadline", func(t *testing.T) {
		t.Parallel()
		_, c := stalled(t)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := concurrency.NewSession(c, concurrency.WithContext(ctx))
		require.Equal(t, context.DeadlineExceeded, err)
	})
	t.Run("nil panics", func(t *testing.T) {
		t.Parallel()
		require.PanicsWithValue(t, "concurrency: WithContext: nil context", func() {
			//lint:ignore SA1012 the caller's bug is what is tested
			concurrency.WithContext(nil)
		})
	})
}

func TestNewSessionNamesTheServersThatDoNotAnswer(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and never answers
	require.NoError(t, err)
	defer silent.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, closed.Close()) // refuses
	for _, endpoint := range []string{silent.Addr().String(), closed.Addr().String()} {
		_, err = concurrency.NewSession(etcdtest.Dial(t, endpoint), concurrency.WithTTL(1))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "no server of ["+endpoint+"]")
		require.ErrorContains(t, err, "grant a lease within 1s")
	}
}

func TestSessionTTL(t *testing.T) {
	t.Parallel()
	c := client(t)
	require.Equal(t, 7*time.Second, session(t, c, concurrency.WithTTL(7)).TTL())
	s := session(t, c, concurrency.WithLease(granted(t, c, 9)), concurrency.WithTTL(33))
	require.Equal(t, 9*time.Second, s.TTL())
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

// A zero handle is a bug of the caller's, whatever is asked of it.
func TestZeroHandles(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var m concurrency.Mutex
	var e concurrency.Election
	work := func(context.Context) error { return nil }
	for what, call := range map[string]func(){
		"Lock":     func() { _ = m.Lock(ctx) },
		"TryLock":  func() { _ = m.TryLock(ctx) },
		"Do":       func() { _ = m.Do(ctx, work) },
		"Ctx":      func() { m.Ctx() },
		"IsOwner":  func() { m.IsOwner() },
		"Campaign": func() { _ = e.Campaign(ctx, "") },
		"Lead":     func() { _ = e.Lead(ctx, "", work) },
		"Leader":   func() { _, _ = e.Leader(ctx) },
		"Leaders":  func() { e.Leaders(ctx) },
		"Observe":  func() { e.Observe(ctx) },
		"IsLeader": func() { e.IsLeader() },
		"Unlock":   func() { _ = m.Unlock(ctx) },
		"Key":      func() { m.Key() },
		"Rev":      func() { e.Rev() },
		"Header":   func() { m.Header() },
		"Proclaim": func() { _ = e.Proclaim(ctx, "") },
		"Resign":   func() { _ = e.Resign(ctx) },
		"Session":  func() { e.Session() },
		"RUnlock":  func() { _ = new(concurrency.RWMutex).RUnlock(ctx) },
		"Release":  func() { _ = new(concurrency.Semaphore).Release(ctx) },
		"Keys":     func() { new(concurrency.MultiMutex).Keys() },
	} {
		require.PanicsWithValue(t, "concurrency: a lock or an election that its constructor did not return", call, what)
	}
}

// A handle may be made of a placeholder that is filled in later.
func TestPlaceholderFilledIn(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	var placeholder concurrency.Session
	m := concurrency.NewMutex(&placeholder, l.name)
	placeholder = *l.session
	require.NoError(t, m.Lock(t.Context()))
	require.NoError(t, l.mutex.Lock(t.Context()))
	require.Equal(t, l.mutex.Key(), m.Key())
	require.EqualValues(t, l.session.Lease(), etcdtest.WaitKeys(t, l.outside, l.name+"/", 1)[0].Lease)
}

func TestNewSessionIsOneCall(t *testing.T) {
	t.Parallel()
	c := client(t)
	f := counted(t, c)
	session(t, c)
	require.Equal(t, "Grant 1", f.String())
}

func TestNewSessionBlocksAtMostForTheTTL(t *testing.T) {
	t.Parallel()
	p, c := stalled(t)
	err := within(t, 3*time.Second, func() error {
		_, err := concurrency.NewSession(c, concurrency.WithTTL(1))
		return err
	})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	for _, fact := range []string{"concurrency: NewSession: ", p.Endpoint(), "grant a lease within 1s"} {
		require.ErrorContains(t, err, fact)
	}
}

func TestNewSessionWhereNothingListens(t *testing.T) {
	t.Parallel()
	c := etcdtest.Dial(t, "http://127.0.0.1:1")
	err := within(t, 3*time.Second, func() error {
		s, err := concurrency.NewSession(c, concurrency.WithTTL(1))
		assert.Nil(t, s)
		return err
	})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "[http://127.0.0.1:1] (connection TRANSIENT_FAILURE)")
}

func TestNewSessionOnAClosedClient(t *testing.T) {
	t.Parallel()
	c := client(t)
	c.Close()
	for _, opt := range []concurrency.SessionOption{
		concurrency.WithTTL(0), concurrency.WithContext(t.Context()),
	} {
		err := within(t, time.Second, func() error {
			_, err := concurrency.NewSession(c, opt)
			return err
		})
		require.Equal(t, context.Canceled, err)
	}
}

func TestNewSessionOnAClientThatIsClosedMeanwhile(t *testing.T) {
	t.Parallel()
	_, c := stalled(t)
	f := counted(t, c)
	sent := f.Hold(fault.Grant, 1)
	call := etcdtest.Go(func() error {
		_, err := concurrency.NewSession(c, concurrency.WithContext(t.Context()))
		return err
	})
	ended(t, sent.Reached(), "asked for a lease")
	sent.Open()
	c.Close()
	require.Equal(t, context.Canceled, within(t, 5*time.Second, func() error { return call.Wait(t) }))
}

func TestNewSessionOnALeaseThatDoesNotExist(t *testing.T) {
	t.Parallel()
	s, err := concurrency.NewSession(client(t), concurrency.WithLease(404))
	require.Equal(t, rpctypes.ErrLeaseNotFound, err)
	require.Nil(t, s)
}

func TestNewSessionOnALeaseThatCannotExistHasEnded(t *testing.T) {
	t.Parallel()
	ctx, c, name := t.Context(), client(t), prefix(t)
	f := counted(t, c)
	s := session(t, c, concurrency.WithLease(-1))
	require.EqualValues(t, -1, s.Lease())
	ended(t, s.Done(), "the session")
	require.ErrorIs(t, context.Cause(s.Ctx()), concurrency.ErrSessionExpired)
	s.Orphan()
	require.NoError(t, s.Close())
	require.Equal(t, "no calls", f.String())
	require.Equal(t, rpctypes.ErrLeaseNotFound, concurrency.NewMutex(s, name).Lock(ctx))
	require.Equal(t, rpctypes.ErrLeaseNotFound, concurrency.NewElection(s, name).Campaign(ctx, "a"))

	e := concurrency.NewElection(s, name)
	_, err := e.Leader(ctx)
	require.Equal(t, concurrency.ErrElectionNoLeader, err)
	observed := e.Observe(ctx)
	leader := concurrency.NewElection(session(t, client(t)), name)
	require.NoError(t, leader.Campaign(ctx, "a"))
	require.Equal(t, "a", string((<-observed).Kvs[0].Value))
	resp, err := e.Leader(ctx)
	require.NoError(t, err)
	require.Equal(t, leader.Key(), string(resp.Kvs[0].Key))
	require.NoError(t, leader.Proclaim(ctx, "b"))
	require.Equal(t, "b", string((<-observed).Kvs[0].Value))
}

func TestNewSessionPanicsIfAnOptionIsNil(t *testing.T) {
	t.Parallel()
	c := client(t)
	require.PanicsWithValue(t, "concurrency: NewSession: nil option", func() {
		concurrency.NewSession(c, concurrency.WithTTL(5), nil)
	})
}

func TestNewSessionPanicsIfTheClientIsNil(t *testing.T) {
	t.Parallel()
	require.PanicsWithValue(t, "concurrency: NewSession: nil client", func() {
		concurrency.NewSession(nil)
	})
}

// What counts all leases has a server of its own.
func TestNewSessionThatFailsLeavesNoLease(t *testing.T) {
	t.Parallel()
	own := etcdtest.New(t)
	c := own.Client(t)

	t.Run("revokes a lease that it was granted", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		f := fault.Wrap(c)
		defer f.Unwrap()
		f.After(fault.Grant, 1, func(error) {
			etcdtest.WaitLeases(t, c, 1)
			cancel()
		})
		_, err := concurrency.NewSession(c, concurrency.WithContext(ctx))
		require.Equal(t, context.Canceled, err)
		require.Equal(t, 1, f.Count(fault.Revoke))
		etcdtest.WaitLeases(t, c, 0)
	})
	t.Run("without an answer it expires by itself", func(t *testing.T) {
		f := fault.Wrap(c)
		defer f.Unwrap()
		f.LoseAnswer(fault.Grant, 1, nil)
		_, err := concurrency.NewSession(c, concurrency.WithTTL(1))
		require.Equal(t, fault.ErrLostAnswer, err)
		etcdtest.WaitLeases(t, c, 0)
	})
	t.Run("and for a refused one none is left", func(t *testing.T) {
		_, err := concurrency.NewSession(c, concurrency.WithTTL(math.MaxInt))
		require.Error(t, err)
		etcdtest.WaitLeases(t, c, 0)
	})
}

// A client may be wrapped: all calls go through its interfaces.
func TestWrappedClients(t *testing.T) {
	t.Parallel()
	work := func(t *testing.T, c, outside *clientv3.Client, name, key string) {
		ctx := t.Context()
		f := counted(t, c)
		s, rival := session(t, c, concurrency.WithTTL(3)), session(t, c)
		m, behind := concurrency.NewMutex(s, name), concurrency.NewMutex(rival, name)
		require.NoError(t, m.Lock(ctx))
		require.Equal(t, concurrency.ErrLocked, behind.TryLock(ctx))
		etcdtest.WaitKeys(t, outside, key, 1)
		call := etcdtest.Go(func() error { return behind.Lock(ctx) })
		etcdtest.WaitKeys(t, outside, key, 2)
		etcdtest.Eventually(t, func() bool { return f.Count(fault.KeepAliveOnce) > 1 }, "renewed")
		require.NoError(t, m.Unlock(ctx))
		require.NoError(t, call.Wait(t))
		require.NoError(t, s.Close())
		s.Orphan()
		require.NoError(t, rival.Close())
		etcdtest.WaitKeys(t, outside, key, 0)
	}
	t.Run("in a namespace", func(t *testing.T) {
		t.Parallel()
		c, name := client(t), prefix(t)
		c.KV = namespace.NewKV(c.KV, "space/")
		c.Lease = namespace.NewLease(c.Lease, "space/")
		c.Watcher = namespace.NewWatcher(c.Watcher, "space/")
		work(t, c, client(t), name, "space/"+name+"/")
	})
	t.Run("the server's own", func(t *testing.T) {
		t.Parallel()
		if !server(t).Embedded() { // only those can be spoken to without a connection
			return
		}
		name := prefix(t)
		work(t, server(t).InProcess(t), client(t), name, name+"/")
	})
}
