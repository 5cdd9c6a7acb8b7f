package concurrency_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

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

// Nobody looks at the clock here, or asks whether the client is closed.
func TestTheClosingOfTheClientEndsAnIdleSession(t *testing.T) {
	t.Parallel()
	s := session(t, client(t), concurrency.WithTTL(600)) // the deadline is far away
	revokedAtEnd(t, client(t), s.Lease())
	over, done := s.Ctx().Done(), s.Done()
	s.Client().Close()
	ended(t, over, "the context")
	ended(t, done, "the session")
	require.Equal(t, concurrency.ErrClientClosed, context.Cause(s.Ctx()))
}

func TestSessionDoneWhenTheServerSaysSo(t *testing.T) {
	t.Parallel()
	c := client(t)
	s := session(t, c, concurrency.WithTTL(3))
	revoke(t, client(t), s)
	ended(t, s.Done(), "the next renewal is refused")
	require.NoError(t, s.Close())
}

func TestSessionDoneBeforeAnybodyElseIsGivenWhatTheLeaseGuards(t *testing.T) {
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
}

func TestSessionDoneIsCountedFromWhenARenewalWasSent(t *testing.T) {
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
}

func TestSessionDoneIsNotClosedByFaultsThatPass(t *testing.T) {
	t.Parallel()
	p, c := proxied(t, server(t))
	f := counted(t, c)
	s := session(t, c, concurrency.WithTTL(5))
	f.Refuse(fault.KeepAliveOnce, 2, codes.Unavailable, "away")
	p.Cut()
	n := f.Count(fault.KeepAliveOnce)
	etcdtest.Eventually(t, func() bool { return f.Count(fault.KeepAliveOnce) > n+4 }, "renewed again")
	require.NoError(t, s.Ctx().Err())
}

func TestSessionDoneIsNotClosedByAServerThatIsAwayForLessThanTheTTL(t *testing.T) {
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
}

func TestSessionDoneIsClosedByAServerThatStaysAway(t *testing.T) {
	t.Parallel()
	p, c := proxied(t, server(t))
	f := counted(t, c)
	s := session(t, c, concurrency.WithTTL(2))
	p.Refuse()
	p.Cut()
	ended(t, s.Done(), "the TTL has passed")
	require.ErrorIs(t, context.Cause(s.Ctx()), concurrency.ErrSessionExpired)
	require.Less(t, f.Count(fault.KeepAliveOnce), 100, "no busy loop")
}

func TestRevokedLeaseEndsTheSessionBeforeItsDeadline(t *testing.T) {
	t.Parallel()
	s := session(t, client(t), concurrency.WithTTL(4))
	revoke(t, client(t), s)
	ended(t, s.Done(), "the next renewal is refused")
	require.True(t, time.Now().Before(s.Deadline()))
	require.ErrorIs(t, context.Cause(s.Ctx()), concurrency.ErrSessionExpired)
}

// An error that says that the session is over comes after its end; one that does not, because
// the key alone is gone, leaves the session alone.
func TestTheSessionHasEndedWhenAnErrorSaysSo(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		t.Run("from Do", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			h := kind(l.session, l.name)
			require.ErrorIs(t, h.during(t.Context(), func(ctx context.Context) error {
				revoke(t, l.outside, l.session)
				return cause(t, ctx)
			}), concurrency.ErrSessionExpired)
			require.Error(t, l.session.Ctx().Err())
		})
		t.Run("from Do that is told by the release", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			l.faults.Hold(fault.Watch, 1)
			require.Equal(t, concurrency.ErrSessionExpired, kind(l.session, l.name).during(t.Context(), func(context.Context) error {
				revoke(t, l.outside, l.session)
				return nil
			}))
			require.Error(t, l.session.Ctx().Err())
		})
		t.Run("by Ctx, a little later", func(t *testing.T) {
			t.Parallel()
			l, h := taken(t, kind, concurrency.WithTTL(600)) // the next renewal is far away
			ctx := h.Ctx()
			revoke(t, l.outside, l.session)
			require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
			ended(t, l.session.Done(), "the session")
		})
		t.Run("not when the lease can't be asked for in time", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			l.held(t)
			h := kind(l.session, l.name)
			bound, cancel := context.WithCancel(t.Context())
			call := etcdtest.Go(func() error { return h.take(bound) })
			l.stand(t, 2)
			l.watched(t, 1)
			asked := l.faults.Hold(fault.TimeToLive, 1)
			revoke(t, l.outside, l.session)
			ended(t, asked.Reached(), "the question for the lease")
			cancel()
			require.Equal(t, context.Canceled, call.Wait(t))
		})
	})
	t.Run("from Proclaim", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "value")
		b.faults.Refuse(fault.Txn, 1, codes.NotFound, "etcdserver: requested lease not found")
		require.Equal(t, rpctypes.ErrLeaseNotFound, b.election.Proclaim(t.Context(), "new"))
		require.Error(t, b.session.Ctx().Err())
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

// The wait does not depend on what the servers tell of the key, nor on the revocation.
func TestCloseEndsWaitsBeforeItIsAnswered(t *testing.T) {
	t.Parallel()
	l := newLine(t, concurrency.WithTTL(600)) // after a third of it the revocation is sent again
	l.held(t)
	call := l.waiting(t, t.Context(), l.mutex, 2)
	revocation := l.faults.Hold(fault.Revoke, 1)
	closing := etcdtest.Go(l.session.Close)
	require.Equal(t, concurrency.ErrSessionExpired, call.Wait(t))
	l.stand(t, 2)
	revocation.Open()
	require.NoError(t, closing.Wait(t))
	l.stand(t, 1)
}

func TestCloseRevokesTheLeaseInOneCall(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
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
}

func TestCloseEndsCallsThatWait(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c, name := client(t), prefix(t)
	s := session(t, c)
	require.NoError(t, concurrency.NewMutex(session(t, c), name).Lock(ctx))
	call := etcdtest.Go(func() error { return concurrency.NewMutex(s, name).Lock(ctx) })
	etcdtest.WaitKeys(t, c, name, 2)
	require.NoError(t, s.Close())
	require.Equal(t, concurrency.ErrSessionExpired, call.Wait(t))
	etcdtest.WaitKeys(t, c, name, 1)
}

func TestCloseEndsCallsThatHang(t *testing.T) {
	t.Parallel()
	c, name := client(t), prefix(t)
	f := counted(t, c)
	s := session(t, c)
	join := f.Hold(fault.Txn, 1)
	call := etcdtest.Go(func() error { <-join.Reached(); return s.Close() })
	err := within(t, 5*time.Second, func() error { return concurrency.NewMutex(s, name).Lock(t.Context()) })
	require.Equal(t, concurrency.ErrSessionExpired, err)
	require.NoError(t, call.Wait(t))
}

func TestCloseTwiceAtOnce(t *testing.T) {
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
}

func TestCloseRepeatsOverTransientFaults(t *testing.T) {
	t.Parallel()
	c := client(t)
	f := counted(t, c)
	s := session(t, c)
	f.Refuse(fault.Revoke, 1, codes.Unavailable, "etcdserver: leader changed")
	f.LoseAnswer(fault.Revoke, 2, nil)
	require.NoError(t, s.Close())
	require.Equal(t, 3, f.Count(fault.Revoke))
	require.False(t, lives(t, c, s.Lease()))
}

func TestCloseThatFailedCanBeRepeated(t *testing.T) {
	t.Parallel()
	c := client(t)
	f := counted(t, c)
	s := session(t, c)
	f.Refuse(fault.Revoke, 1, codes.PermissionDenied, "etcdserver: permission denied")
	require.ErrorIs(t, s.Close(), rpctypes.ErrPermissionDenied)
	require.NoError(t, s.Close())
	require.False(t, lives(t, c, s.Lease()))
}

func TestCloseEndsWhenTheLeaseMustHaveExpired(t *testing.T) {
	t.Parallel()
	p, c := proxied(t, server(t))
	s := session(t, c, concurrency.WithTTL(2))
	p.Stall()
	require.Equal(t, context.DeadlineExceeded, within(t, 4*time.Second, s.Close))
	require.Equal(t, context.DeadlineExceeded, within(t, 4*time.Second, s.Close), "and again")
}

func TestCloseEndsWithTheContextOfTheSession(t *testing.T) {
	t.Parallel()
	p, c := proxied(t, server(t))
	given, cancel := context.WithCancel(t.Context())
	s := session(t, c, concurrency.WithContext(given))
	revokedAtEnd(t, client(t), s.Lease())
	p.Stall()
	call := etcdtest.Go(s.Close)
	ended(t, s.Done(), "Close has begun")
	cancel()
	require.Equal(t, context.Canceled, call.Wait(t))
}

func TestCloseOfALeaseThatIsGone(t *testing.T) {
	t.Parallel()
	c := client(t)
	s := session(t, c)
	revoke(t, c, s)
	require.NoError(t, s.Close())
}

func TestCloseTwice(t *testing.T) {
	t.Parallel()
	c := client(t)
	f := counted(t, c)
	s := session(t, c)
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	require.Equal(t, 1, f.Count(fault.Revoke))
}

func TestCloseOnAClosedClient(t *testing.T) {
	t.Parallel()
	for _, opt := range []concurrency.SessionOption{
		concurrency.WithTTL(5), concurrency.WithContext(t.Context()),
	} {
		c := client(t)
		s := session(t, c, opt)
		revokedAtEnd(t, client(t), s.Lease())
		c.Close()
		require.Equal(t, context.Canceled, within(t, 2*time.Second, s.Close))
	}
}

func TestCloseWhileAFailedAcquisitionCleansUp(t *testing.T) {
	t.Parallel()
	c, name := client(t), prefix(t)
	f := counted(t, c)
	s := session(t, c)
	join := f.Hold(fault.Txn, 1)
	giveUp, cancel := context.WithCancel(t.Context())
	call := etcdtest.Go(func() error { return concurrency.NewMutex(s, name).Lock(giveUp) })
	ended(t, join.Reached(), "the join")
	looking := f.Hold(fault.Get, 1)
	cancel()
	ended(t, looking.Reached(), "the clean-up")
	require.NoError(t, within(t, 5*time.Second, s.Close))
	require.Equal(t, context.Canceled, call.Wait(t))
	require.False(t, lives(t, c, s.Lease()))
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
