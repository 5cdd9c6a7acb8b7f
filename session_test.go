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

// proxied is a client that reaches the server through a proxy alone.
func proxied(tb testing.TB, c *etcdtest.Cluster) (*fault.Proxy, *clientv3.Client) {
	tb.Helper()
	p, err := fault.NewProxy(c.Endpoint(0))
	require.NoError(tb, err)
	tb.Cleanup(p.Close)
	return p, etcdtest.Dial(tb, p.Endpoint())
}

// cancelled is a context that has ended.
func cancelled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// lives says whether the server has the lease.
func lives(tb testing.TB, client *clientv3.Client, id clientv3.LeaseID) bool {
	tb.Helper()
	resp, err := client.TimeToLive(context.Background(), id)
	require.NoError(tb, err)
	return resp.TTL >= 0
}

// grantedTTL is the TTL in seconds with which the lease was granted.
func grantedTTL(tb testing.TB, s *concurrency.Session) int64 {
	tb.Helper()
	resp, err := s.Client().TimeToLive(context.Background(), s.Lease())
	require.NoError(tb, err)
	return resp.GrantedTTL
}

// granted is a lease of the test's own, revoked at its end.
func granted(tb testing.TB, client *clientv3.Client, ttl int64) clientv3.LeaseID {
	tb.Helper()
	resp, err := client.Grant(context.Background(), ttl)
	require.NoError(tb, err)
	revokedAtEnd(tb, client, resp.ID)
	return resp.ID
}

// revokedAtEnd revokes a lease that no session closes.
func revokedAtEnd(tb testing.TB, client *clientv3.Client, id clientv3.LeaseID) {
	tb.Cleanup(func() { client.Revoke(context.Background(), id) })
}

// revoke takes a session's lease away from outside.
func revoke(tb testing.TB, client *clientv3.Client, s *concurrency.Session) {
	tb.Helper()
	_, err := client.Revoke(context.Background(), s.Lease())
	require.NoError(tb, err)
}

// within fails the test if the call takes longer, and gives its error.
func within(tb testing.TB, bound time.Duration, call func() error) error {
	tb.Helper()
	began := time.Now()
	err := etcdtest.Go(call).Wait(tb)
	require.Less(tb, time.Since(began), bound, "the call took too long")
	return err
}

func TestSession(t *testing.T) {
	t.Parallel()
	ctx := t.Context()

	t.Run("a lease that is kept alive", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		s := session(t, c, concurrency.WithTTL(2))
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

// stalled is a client of an endpoint that accepts connections and never answers.
func stalled(tb testing.TB) (*fault.Proxy, *clientv3.Client) {
	tb.Helper()
	p, c := proxied(tb, server(tb))
	p.Stall()
	return p, c
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

func TestWithSafetyMargin(t *testing.T) {
	t.Parallel()
	t.Run("gives up this much before the lease could end", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		f.Refuse(fault.KeepAliveOnce, 1000, codes.Unavailable, "away")
		before := time.Now()
		s := session(t, c, concurrency.WithTTL(30), concurrency.WithSafetyMargin(29*time.Second))
		require.WithinRange(t, s.Deadline(), before.Add(time.Second), time.Now().Add(time.Second))
		ended(t, s.Done(), "the session")
		require.False(t, time.Now().Before(s.Deadline()))
		require.Equal(t, concurrency.ErrDeadline, context.Cause(s.Ctx()))
		require.True(t, lives(t, c, s.Lease()))
	})
	t.Run("that of a lease brought along", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		id := granted(t, c, 3)
		f := counted(t, c)
		s := session(t, c, concurrency.WithLease(id), concurrency.WithSafetyMargin(2*time.Second))
		etcdtest.Eventually(t, func() bool { return f.Count(fault.KeepAliveOnce) > 3 }, "renewals")
		require.NoError(t, s.Ctx().Err())
	})
	t.Run("negative, or not shorter than the TTL, is an error", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		for _, opts := range [][]concurrency.SessionOption{
			{concurrency.WithSafetyMargin(-1)},
			{concurrency.WithSafetyMargin(5 * time.Second), concurrency.WithTTL(5)},
			{concurrency.WithSafetyMargin(5 * time.Second), concurrency.WithLease(granted(t, c, 5))},
			{concurrency.WithSafetyMargin(-1), concurrency.WithLease(granted(t, c, 5))},
		} {
			s, err := concurrency.NewSession(c, opts...)
			require.ErrorContains(t, err, "concurrency: a safety margin of ")
			require.Nil(t, s)
		}
	})
}

func TestSessionTTL(t *testing.T) {
	t.Parallel()
	c := client(t)
	require.Equal(t, 7*time.Second, session(t, c, concurrency.WithTTL(7)).TTL())
	s := session(t, c, concurrency.WithLease(granted(t, c, 9)), concurrency.WithTTL(33))
	require.Equal(t, 9*time.Second, s.TTL())
}

func TestSessionDeadline(t *testing.T) {
	t.Parallel()
	t.Run("the sending of the last answered renewal, plus the TTL", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		before := time.Now()
		s := session(t, c, concurrency.WithTTL(2))
		first := s.Deadline()
		require.WithinRange(t, first, before.Add(2*time.Second), time.Now().Add(2*time.Second))
		answer := f.HoldAnswer(fault.KeepAliveOnce, 1)
		ended(t, answer.Reached(), "renewed")
		require.Equal(t, first, s.Deadline(), "without an answer")
		sent := time.Now()
		answer.Open()
		etcdtest.Eventually(t, func() bool { return s.Deadline().After(first) }, "with the answer")
		require.True(t, s.Deadline().Before(sent.Add(2*time.Second)))
	})
	t.Run("at which the session ends unless a renewal is answered before", func(t *testing.T) {
		t.Parallel()
		p, c := proxied(t, server(t))
		s := session(t, c, concurrency.WithTTL(1))
		p.Stall()
		ended(t, s.Done(), "the session")
		require.False(t, time.Now().Before(s.Deadline()))
	})
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

func TestNewSession(t *testing.T) {
	t.Parallel()
	t.Run("in one call", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		session(t, c)
		require.Equal(t, "Grant 1", f.String())
	})
	t.Run("blocks at most for the TTL", func(t *testing.T) {
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
	})
	t.Run("where nothing listens", func(t *testing.T) {
		t.Parallel()
		c := etcdtest.Dial(t, "http://127.0.0.1:1")
		err := within(t, 3*time.Second, func() error {
			s, err := concurrency.NewSession(c, concurrency.WithTTL(1))
			assert.Nil(t, s)
			return err
		})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "[http://127.0.0.1:1] (connection TRANSIENT_FAILURE)")
	})
	t.Run("a closed client", func(t *testing.T) {
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
	})
	t.Run("a client that is closed meanwhile", func(t *testing.T) {
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
	})
	t.Run("a lease that does not exist", func(t *testing.T) {
		t.Parallel()
		s, err := concurrency.NewSession(client(t), concurrency.WithLease(404))
		require.Equal(t, rpctypes.ErrLeaseNotFound, err)
		require.Nil(t, s)
	})
	t.Run("a lease that cannot exist is a session that has ended", func(t *testing.T) {
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
	})
	t.Run("panics if an option is nil", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		require.PanicsWithValue(t, "concurrency: NewSession: nil option", func() {
			concurrency.NewSession(c, concurrency.WithTTL(5), nil)
		})
	})
	t.Run("panics if client is nil", func(t *testing.T) {
		t.Parallel()
		require.PanicsWithValue(t, "concurrency: NewSession: nil client", func() {
			concurrency.NewSession(nil)
		})
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

func TestSessionCtx(t *testing.T) {
	t.Parallel()
	other := client(t)
	for _, end := range []struct {
		how   string
		end   func(t *testing.T, s *concurrency.Session)
		cause error
	}{
		{"the lease was lost", func(t *testing.T, s *concurrency.Session) {
			revoke(t, other, s)
		}, concurrency.ErrLeaseGone},
		{"Close", func(t *testing.T, s *concurrency.Session) {
			require.NoError(t, s.Close())
		}, context.Canceled},
		{"Orphan", func(t *testing.T, s *concurrency.Session) {
			revokedAtEnd(t, other, s.Lease())
			s.Orphan()
		}, context.Canceled},
		{"the closing of the client", func(t *testing.T, s *concurrency.Session) {
			revokedAtEnd(t, other, s.Lease())
			s.Client().Close()
		}, concurrency.ErrClientClosed},
	} {
		for more, opts := range map[string][]concurrency.SessionOption{
			"": {concurrency.WithTTL(5)},
			", with a context": {
				concurrency.WithTTL(5), concurrency.WithContext(context.Background()),
			},
		} {
			t.Run("cancelled before Done closes, with a cause: "+end.how+more, func(t *testing.T) {
				t.Parallel()
				s := session(t, client(t), opts...)
				require.NoError(t, s.Ctx().Err())
				end.end(t, s)
				ended(t, s.Done(), "the session")
				require.Error(t, s.Ctx().Err())
				require.Equal(t, end.cause, context.Cause(s.Ctx()))
			})
		}
	}
}

func TestSessionDone(t *testing.T) {
	t.Parallel()
	t.Run("when the server says so", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		s := session(t, c, concurrency.WithTTL(3))
		revoke(t, client(t), s)
		ended(t, s.Done(), "the next renewal is refused")
		require.NoError(t, s.Close())
	})
	t.Run("before anybody else can be given what the lease guards", func(t *testing.T) {
		t.Parallel()
		ctx, name, other := t.Context(), prefix(t), client(t)
		p, c := proxied(t, server(t))
		s := session(t, c, concurrency.WithTTL(2))
		require.NoError(t, concurrency.NewMutex(s, name).Lock(ctx))
		rival := concurrency.NewMutex(session(t, other), name)
		call := etcdtest.Go(func() error { return rival.Lock(ctx) })
		etcdtest.WaitKeys(t, other, name, 2)
		p.Stall()
		ended(t, s.Done(), "the lease may have expired")
		require.True(t, call.Running())
		require.NoError(t, call.Wait(t))
	})
	t.Run("counted from when a renewal was sent", func(t *testing.T) {
		t.Parallel()
		// The answer is kept back for most of the TTL: what counts is the time of
		// sending, after which the lease is not renewed any more.
		c := client(t)
		f := counted(t, c)
		f.Refuse(fault.KeepAliveOnce, 1000, codes.Unavailable, "away")
		began := time.Now()
		s := session(t, c, concurrency.WithTTL(2))
		ended(t, s.Done(), "the TTL has passed since the grant")
		require.Less(t, time.Since(began), 4*time.Second)
		require.ErrorIs(t, context.Cause(s.Ctx()), concurrency.ErrSessionExpired)
	})
	t.Run("not by faults that pass", func(t *testing.T) {
		t.Parallel()
		p, c := proxied(t, server(t))
		f := counted(t, c)
		s := session(t, c, concurrency.WithTTL(5))
		f.Refuse(fault.KeepAliveOnce, 2, codes.Unavailable, "away")
		p.Cut()
		n := f.Count(fault.KeepAliveOnce)
		etcdtest.Eventually(t, func() bool { return f.Count(fault.KeepAliveOnce) > n+4 }, "renewed again")
		require.NoError(t, s.Ctx().Err())
	})
	t.Run("nor by a server that is away for less than the TTL", func(t *testing.T) {
		t.Parallel()
		own := etcdtest.New(t)
		c := own.Client(t)
		f := counted(t, c)
		s := session(t, c, concurrency.WithTTL(6))
		own.Stop(0)
		n := f.Count(fault.KeepAliveOnce)
		require.NoError(t, own.Restart(0))
		etcdtest.Eventually(t, func() bool { return f.Count(fault.KeepAliveOnce) > n+1 }, "renewed again")
		require.NoError(t, s.Ctx().Err())
	})
	t.Run("by a server that stays away", func(t *testing.T) {
		t.Parallel()
		p, c := proxied(t, server(t))
		f := counted(t, c)
		s := session(t, c, concurrency.WithTTL(2))
		p.Refuse()
		p.Cut()
		ended(t, s.Done(), "the TTL has passed")
		require.ErrorIs(t, context.Cause(s.Ctx()), concurrency.ErrSessionExpired)
		require.Less(t, f.Count(fault.KeepAliveOnce), 100, "no busy loop")
	})
}

func TestOrphan(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	t.Run("leaves the lease, which expires after at most its TTL", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		s := session(t, c, concurrency.WithTTL(1))
		f.Reset()
		s.Orphan()
		ended(t, s.Done(), "the session")
		require.Equal(t, "no calls", f.String())
		require.True(t, lives(t, c, s.Lease()))
		etcdtest.Eventually(t, func() bool { return !lives(t, c, s.Lease()) }, "the lease has expired")
		require.Zero(t, f.Count(fault.KeepAliveOnce))
		require.Equal(t, rpctypes.ErrLeaseNotFound, concurrency.NewMutex(s, prefix(t)).Lock(ctx))
	})
	t.Run("locks go on working for as long as the lease lives", func(t *testing.T) {
		t.Parallel()
		c, name := client(t), prefix(t)
		s, holder := session(t, c), session(t, c)
		s.Orphan()
		m, held := concurrency.NewMutex(s, name), concurrency.NewMutex(holder, name)
		require.NoError(t, m.Lock(ctx))
		require.NoError(t, m.Unlock(ctx))
		require.NoError(t, held.Lock(ctx))
		call := etcdtest.Go(func() error { return m.Lock(ctx) })
		etcdtest.WaitKeys(t, c, name, 2)
		require.NoError(t, held.Unlock(ctx))
		require.NoError(t, call.Wait(t))
		require.NoError(t, s.Close())
		etcdtest.WaitKeys(t, c, name, 0)
	})
	t.Run("and a call that hangs ends with the client", func(t *testing.T) {
		t.Parallel()
		c, name := client(t), prefix(t)
		f := counted(t, c)
		s := session(t, c)
		revokedAtEnd(t, client(t), s.Lease())
		s.Orphan()
		join := f.Hold(fault.Txn, 1)
		call := etcdtest.Go(func() error { <-join.Reached(); return c.Close() })
		err := within(t, 5*time.Second, func() error { return concurrency.NewMutex(s, name).Lock(ctx) })
		require.Equal(t, context.Canceled, err)
		_ = call.Wait(t) // what Close says of the wrapped client is not the matter
	})
	t.Run("and a wait ends when it does", func(t *testing.T) {
		t.Parallel()
		c, name := client(t), prefix(t)
		s := session(t, c)
		require.NoError(t, concurrency.NewMutex(session(t, c), name).Lock(ctx))
		call := etcdtest.Go(func() error { return concurrency.NewMutex(s, name).Lock(ctx) })
		etcdtest.WaitKeys(t, c, name, 2)
		s.Orphan()
		revoke(t, c, s)
		require.Equal(t, concurrency.ErrSessionExpired, call.Wait(t))
	})
}

func TestClose(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	t.Run("revokes the lease in one call, whereby its keys go", func(t *testing.T) {
		t.Parallel()
		c, name := client(t), prefix(t)
		f := counted(t, c)
		s := session(t, c)
		require.NoError(t, concurrency.NewMutex(s, name).Lock(ctx))
		f.Reset()
		require.NoError(t, s.Close())
		require.Equal(t, "Revoke 1", f.String())
		etcdtest.WaitKeys(t, c, name, 0)
		require.False(t, lives(t, c, s.Lease()))
		require.Equal(t, rpctypes.ErrLeaseNotFound, concurrency.NewMutex(s, name).Lock(ctx))
	})
	t.Run("waiting calls return ErrSessionExpired", func(t *testing.T) {
		t.Parallel()
		c, name := client(t), prefix(t)
		s := session(t, c)
		require.NoError(t, concurrency.NewMutex(session(t, c), name).Lock(ctx))
		call := etcdtest.Go(func() error { return concurrency.NewMutex(s, name).Lock(ctx) })
		etcdtest.WaitKeys(t, c, name, 2)
		require.NoError(t, s.Close())
		require.Equal(t, concurrency.ErrSessionExpired, call.Wait(t))
		etcdtest.WaitKeys(t, c, name, 1)
	})
	t.Run("calls that hang too", func(t *testing.T) {
		t.Parallel()
		c, name := client(t), prefix(t)
		f := counted(t, c)
		s := session(t, c)
		join := f.Hold(fault.Txn, 1)
		call := etcdtest.Go(func() error { <-join.Reached(); return s.Close() })
		err := within(t, 5*time.Second, func() error { return concurrency.NewMutex(s, name).Lock(ctx) })
		require.Equal(t, concurrency.ErrSessionExpired, err)
		require.NoError(t, call.Wait(t))
	})
	t.Run("twice at once", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		s := session(t, c)
		revocation := f.HoldAnswer(fault.Revoke, 1)
		first := etcdtest.Go(s.Close)
		ended(t, revocation.Reached(), "the revocation")
		require.NoError(t, s.Close())
		revocation.Open()
		require.NoError(t, first.Wait(t))
		require.Equal(t, 2, f.Count(fault.Revoke), "none is called off")
	})
	t.Run("repeats the revocation over transient faults", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		s := session(t, c)
		f.Refuse(fault.Revoke, 1, codes.Unavailable, "etcdserver: leader changed")
		f.LoseAnswer(fault.Revoke, 2, nil)
		require.NoError(t, s.Close())
		require.Equal(t, 3, f.Count(fault.Revoke))
		require.False(t, lives(t, c, s.Lease()))
	})
	t.Run("a permanent error can be tried again", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		s := session(t, c)
		f.Refuse(fault.Revoke, 1, codes.PermissionDenied, "etcdserver: permission denied")
		require.ErrorIs(t, s.Close(), rpctypes.ErrPermissionDenied)
		require.NoError(t, s.Close())
		require.False(t, lives(t, c, s.Lease()))
	})
	t.Run("ends when the lease must have expired", func(t *testing.T) {
		t.Parallel()
		p, c := proxied(t, server(t))
		s := session(t, c, concurrency.WithTTL(2))
		p.Stall()
		require.Equal(t, context.DeadlineExceeded, within(t, 4*time.Second, s.Close))
		require.Equal(t, context.DeadlineExceeded, within(t, 4*time.Second, s.Close), "and again")
	})
	t.Run("ends with the context given", func(t *testing.T) {
		t.Parallel()
		p, c := proxied(t, server(t))
		given, cancel := context.WithCancel(ctx)
		s := session(t, c, concurrency.WithContext(given))
		revokedAtEnd(t, client(t), s.Lease())
		p.Stall()
		call := etcdtest.Go(s.Close)
		ended(t, s.Done(), "Close has begun")
		cancel()
		require.Equal(t, context.Canceled, call.Wait(t))
	})
	t.Run("a lease that is gone already is no error", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		s := session(t, c)
		revoke(t, c, s)
		require.NoError(t, s.Close())
	})
	t.Run("may be called twice", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		s := session(t, c)
		require.NoError(t, s.Close())
		require.NoError(t, s.Close())
		require.Equal(t, 1, f.Count(fault.Revoke))
	})
	t.Run("on a closed client", func(t *testing.T) {
		t.Parallel()
		for _, opt := range []concurrency.SessionOption{
			concurrency.WithTTL(5), concurrency.WithContext(ctx),
		} {
			c := client(t)
			s := session(t, c, opt)
			revokedAtEnd(t, client(t), s.Lease())
			c.Close()
			require.Equal(t, context.Canceled, within(t, 2*time.Second, s.Close))
		}
	})
	t.Run("while a failed acquisition cleans up", func(t *testing.T) {
		t.Parallel()
		c, name := client(t), prefix(t)
		f := counted(t, c)
		s := session(t, c)
		join := f.Hold(fault.Txn, 1)
		giveUp, cancel := context.WithCancel(ctx)
		call := etcdtest.Go(func() error { return concurrency.NewMutex(s, name).Lock(giveUp) })
		ended(t, join.Reached(), "the join")
		looking := f.Hold(fault.Get, 1)
		cancel()
		ended(t, looking.Reached(), "the clean-up")
		require.NoError(t, within(t, 5*time.Second, s.Close))
		require.Equal(t, context.Canceled, call.Wait(t))
		require.False(t, lives(t, c, s.Lease()))
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
