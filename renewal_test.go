package concurrency_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
	"example.com/etcd/concurrency/internal/virtual"
)

// sessions are n that are opened at the same time.
func sessions(tb testing.TB, c *clientv3.Client, n int, opts ...concurrency.SessionOption) []*concurrency.Session {
	tb.Helper()
	all := make([]*concurrency.Session, n)
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			for i := worker; i < n; i += 16 {
				s, err := concurrency.NewSession(c, opts...)
				if assert.NoError(tb, err) {
					all[i] = s
					tb.Cleanup(func() { s.Close() })
				}
			}
		})
	}
	wg.Wait()
	require.False(tb, tb.Failed())
	return all
}

// streams counts the keep-alive streams of a bubble, and the renewals on them.
type streams struct{ opened, ended, asked atomic.Int64 }

// note is the trace of the bubble.
func (s *streams) note(e virtual.Event) {
	switch {
	case e.Kind == virtual.KeepAlive && e.What == virtual.Sent:
		s.opened.Add(1)
	case e.Kind == virtual.KeepAlive && e.What == virtual.Answered:
		s.ended.Add(1)
	case e.What == virtual.Asked:
		s.asked.Add(1)
	}
}

func (s *streams) open() int { return int(s.opened.Load() - s.ended.Load()) }

func TestTheSessionsOfAClientShareAStream(t *testing.T) {
	var shared streams
	virtual.Run(t, virtual.Options{Trace: shared.note}, func(b *virtual.Bubble) {
		t, c, _ := remote(b)
		all := sessions(t, c, 50, concurrency.WithTTL(6))
		etcdtest.Eventually(t, func() bool { return shared.asked.Load() > 150 }, "each renewed a few times")
		for _, s := range all {
			require.NoError(t, s.Ctx().Err())
		}
		require.EqualValues(t, 1, shared.opened.Load())
		for _, s := range all[1:] {
			s.Orphan()
		}
		require.Equal(t, 1, shared.open())
		require.NoError(t, all[0].Close())
		etcdtest.Eventually(t, func() bool { return shared.open() == 0 }, "none is left when the last session has ended")
		s := session(t, c, concurrency.WithTTL(3))
		etcdtest.Eventually(t, func() bool { return shared.open() == 1 }, "and the next session has one")
		survives(t, s, 2)
	})
}

func TestALeaseThatWasGivenSharesTheStream(t *testing.T) {
	var shared streams
	virtual.Run(t, virtual.Options{Trace: shared.note}, func(b *virtual.Bubble) {
		t, c, _ := remote(b)
		s := session(t, c, concurrency.WithTTL(6))
		s.Orphan()
		opened := shared.opened.Load()
		heir := session(t, c, concurrency.WithLease(s.Lease()))
		survives(t, heir, 10)
		require.EqualValues(t, 2, shared.opened.Load()-opened, "one for a call, and one to share")
	})
}

func TestASessionIsRenewedEveryThirdOfItsLife(t *testing.T) {
	const thirds = 300
	var shared streams
	virtual.Run(t, virtual.Options{Trace: shared.note}, func(b *virtual.Bubble) {
		t, c, _ := remote(b)
		survives(t, session(t, c, concurrency.WithTTL(3)), thirds/3)
	})
	require.GreaterOrEqual(t, shared.asked.Load(), int64(thirds-1))
	require.LessOrEqual(t, shared.asked.Load(), int64(thirds*10/9+1), "each may be a tenth early")
}

func TestRoundTrips(t *testing.T) {
	const ttl = 6
	for _, trip := range []time.Duration{
		0, 2 * time.Millisecond, 10 * time.Millisecond, 40 * time.Millisecond,
		ttl * time.Second / 10, ttl * time.Second * 3 / 10, ttl * time.Second / 2, ttl * time.Second * 55 / 100,
	} {
		t.Run(trip.String(), func(t *testing.T) {
			virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
				t, c, n := remote(b)
				n.SetRoundTrip(virtual.RoundTrip{Min: trip, Max: trip})
				survives(t, session(t, c, concurrency.WithTTL(ttl)), 30)
			})
		})
	}
}

// A session whose grant has an answer that is later than that of the next renewal would be
// lasts from the first renewal that is answered.
func TestALateGrantIsRenewedFirst(t *testing.T) {
	virtual.Run(t, virtual.Options{}, lateGrantIsRenewedFirst)
}

func lateGrantIsRenewedFirst(b *virtual.Bubble) {
	t, c, _ := remote(b)
	f := counted(t, c)
	grant, renewal := f.HoldAnswer(fault.Grant, 1), f.HoldAnswer(fault.KeepAliveOnce, 1)
	var s *concurrency.Session
	call := etcdtest.Go(func() (err error) {
		s, err = concurrency.NewSession(c, concurrency.WithTTL(4))
		return err
	})
	ended(t, grant.Reached(), "granted")
	<-time.After(2200 * time.Millisecond)
	grant.Open()
	ended(t, renewal.Reached(), "renewed at once")
	sent := time.Now()
	require.True(t, call.Running())
	renewal.Open()
	require.NoError(t, call.Wait(t))
	t.Cleanup(func() { s.Close() })
	require.WithinDuration(t, sent.Add(4*time.Second), s.Deadline(), time.Millisecond)
	survives(t, s, 2)
}

func TestALateGrantThatIsNotRenewedIsGivenBack(t *testing.T) {
	virtual.Run(t, virtual.Options{}, lateGrantIsGivenBack)
}

// A renewal that is not answered is no reason to wait for it when NewSession has failed.
func TestALateGrantThatIsNotRenewedIsGivenBackAtOnce(t *testing.T) {
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		t, c, _ := remote(b)
		f := counted(t, c)
		grant := f.HoldAnswer(fault.Grant, 1)
		for nth := range 10 {
			f.HoldAnswer(fault.KeepAliveOnce, nth+1)
		}
		call := etcdtest.Go(func() error {
			_, err := concurrency.NewSession(c, concurrency.WithTTL(4))
			return err
		})
		ended(t, grant.Reached(), "granted")
		<-time.After(2200 * time.Millisecond)
		grant.Open()
		answered := time.Now()
		require.ErrorContains(t, call.Wait(t), "renew its lease within 4s")
		require.Less(t, time.Since(answered), 4100*time.Millisecond)
	})
}

func lateGrantIsGivenBack(b *virtual.Bubble) {
	t, c, _ := remote(b)
	f := counted(t, c)
	grant := f.HoldAnswer(fault.Grant, 1)
	f.Refuse(fault.KeepAliveOnce, 1000, codes.Unknown, "renewals are refused")
	call := etcdtest.Go(func() error {
		_, err := concurrency.NewSession(c, concurrency.WithTTL(4))
		return err
	})
	ended(t, grant.Reached(), "granted")
	<-time.After(2200 * time.Millisecond)
	grant.Open()
	err := call.Wait(t)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "renew its lease within 4s")
	require.ErrorContains(t, err, "renewals are refused")
	resp, err := c.Leases(t.Context())
	require.NoError(t, err)
	require.Empty(t, resp.Leases)
	require.Equal(t, 1, f.Count(fault.Revoke), "it is not left to run out")
}

func TestRenewalsThroughEtcdsProxy(t *testing.T) {
	t.Parallel()
	c := etcdtest.Dial(t, etcdtest.GRPCProxy(t, server(t).Endpoint(0)))
	s := session(t, c, concurrency.WithTTL(2))
	survives(t, s, 4)
	require.NoError(t, s.Close())
	require.False(t, lives(t, c, s.Lease()))
}

func TestRenewalsThatAreRefused(t *testing.T) {
	for _, code := range []codes.Code{codes.Unavailable, codes.Internal, codes.ResourceExhausted, codes.Unknown, codes.Unauthenticated} {
		t.Run(code.String(), func(t *testing.T) {
			var shared streams
			virtual.Run(t, virtual.Options{Trace: shared.note}, func(b *virtual.Bubble) {
				t, c, n := remote(b)
				all := sessions(t, c, 20, concurrency.WithTTL(12))
				first, began := shared.opened.Load(), time.Now()
				n.SetScope(virtual.RenewalsOnly)
				n.Set("refused-"+code.String(), 1)
				n.Cut() // the stream that stands
				etcdtest.Eventually(t, func() bool { return shared.opened.Load() > first+7 }, "asked again and again")
				require.GreaterOrEqual(t, time.Since(began), 7*250*time.Millisecond)
				shared.areRenewed(t, all, n)
			})
		})
	}
	t.Run("where the client is wrapped and repeats itself", func(t *testing.T) {
		var shared streams
		virtual.Run(t, virtual.Options{Trace: shared.note}, func(b *virtual.Bubble) {
			t, c, n := remote(b)
			f := counted(t, c)
			pauses := &pausing{Lease: c.Lease, least: time.Hour, failed: map[clientv3.LeaseID]time.Time{}}
			c.Lease = pauses
			all := sessions(t, c, 4, concurrency.WithTTL(12))
			n.SetRoundTrip(virtual.RoundTrip{Max: 100 * time.Millisecond})
			n.SetScope(virtual.RenewalsOnly)
			n.Set("refused-Unavailable", 1)
			etcdtest.Eventually(t, func() bool { return f.Count(fault.KeepAliveOnce) > 0 }, "the first renewal")
			first, began := shared.opened.Load(), time.Now()
			etcdtest.Eventually(t, func() bool { return f.Count(fault.KeepAliveOnce) > 5*len(all) }, "asked again and again")
			require.GreaterOrEqual(t, time.Since(began), 4*250*time.Millisecond)
			require.Less(t, shared.opened.Load()-first, int64(10*6*len(all)), "a few for each call")
			shared.areRenewed(t, all, n)
			pauses.mu.Lock()
			defer pauses.mu.Unlock()
			require.GreaterOrEqual(t, pauses.least, 250*time.Millisecond, "those of others cut no pause short")
		})
	})
}

// pausing measures the pauses between a renewal that failed and the next of the same lease.
type pausing struct {
	clientv3.Lease

	mu     sync.Mutex // guards the fields below
	least  time.Duration
	failed map[clientv3.LeaseID]time.Time
}

// KeepAliveOnce renews.
func (p *pausing) KeepAliveOnce(ctx context.Context, id clientv3.LeaseID) (*clientv3.LeaseKeepAliveResponse, error) {
	p.mu.Lock()
	if at, ok := p.failed[id]; ok {
		p.least = min(p.least, time.Since(at))
		delete(p.failed, id)
	}
	p.mu.Unlock()
	resp, err := p.Lease.KeepAliveOnce(ctx, id)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.failed[id] = time.Now()
	}
	return resp, err
}

// areRenewed lifts the faults, and fails the test if a session has not lived through them.
func (s *streams) areRenewed(t *testing.T, all []*concurrency.Session, n *virtual.Network) {
	t.Helper()
	n.Calm()
	asked := s.asked.Load()
	etcdtest.Eventually(t, func() bool { return s.asked.Load() > asked+int64(len(all)) }, "renewed again")
	for _, s := range all {
		require.NoError(t, s.Ctx().Err())
	}
}

// A client has two links to the servers, of which one falls silent while it stands. Which one,
// the seed decides: that of the stream as often as the other. What else the client sends, when
// its watches have been silent for as long as its renewals, takes turns with the new streams.
func TestAMemberThatFallsSilentBesideWatches(t *testing.T) {
	for _, by := range []string{"stream", "calls"} {
		t.Run("renewed by "+by, func(t *testing.T) {
			virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
				t, c, n := remote(b)
				if by == "calls" {
					counted(t, c)
				}
				other, _ := b.Client("other")
				rival := session(t, other)
				ctx, cancel := context.WithCancel(context.Background())
				var waiters sync.WaitGroup
				defer waiters.Wait()
				defer cancel()
				s := session(t, c, concurrency.WithTTL(6))
				for i := range 3 {
					line := fmt.Sprint("line ", i)
					require.NoError(t, concurrency.NewMutex(rival, line).Lock(ctx))
					waiters.Go(func() { _ = concurrency.NewMutex(s, line).Lock(ctx) })
					own := concurrency.NewMutex(s, fmt.Sprint("own ", i))
					require.NoError(t, own.Lock(ctx))
					own.Ctx()
				}
				phase := b.Rand("phases")
				for range 100 {
					b.Sleep(time.Duration(phase.Int64N(int64(s.TTL()))))
					n.Silence(2 * s.TTL())
					survives(t, s, 3)
				}
			})
		})
	}
}

// What other sessions of the client have heard, just before the silence, tells nothing of it.
func TestAMemberThatFallsSilentBesideOtherSessions(t *testing.T) {
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		t, c, n := remote(b)
		phase := b.Rand("phases")
		n.SetRoundTrip(virtual.RoundTrip{Min: 500 * time.Millisecond, Max: 500 * time.Millisecond})
		for range 30 {
			var all []*concurrency.Session
			for range 4 {
				b.Sleep(time.Duration(phase.Int64N(int64(3 * time.Second))))
				all = append(all, session(t, c, concurrency.WithTTL(6)))
			}
			b.Sleep(time.Duration(phase.Int64N(int64(6 * time.Second))))
			n.Silence(12 * time.Second)
			survives(t, all[0], 3)
			for _, s := range all {
				require.NoError(t, s.Ctx().Err())
				require.NoError(t, s.Close())
			}
		}
	})
}

// A session that lives for less than a round trip asks all members in vain. It takes no stream from
// the sessions that live for longer.
func TestASessionOfLessThanARoundTripCostsTheOthersNothing(t *testing.T) {
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		t, c, n := remote(b)
		all := sessions(t, c, 8, concurrency.WithTTL(6))
		n.SetRoundTrip(virtual.RoundTrip{Min: 3100 * time.Millisecond, Max: 3100 * time.Millisecond})
		for range 20 {
			_, err := concurrency.NewSession(c, concurrency.WithTTL(6), concurrency.WithSafetyMargin(3*time.Second))
			require.ErrorContains(t, err, "renew its lease")
			for _, s := range all {
				require.NoError(t, s.Ctx().Err())
			}
		}
	})
}

// The two calls that a session makes in silence take turns with those of others that are renewed in the
// same instant. Still one of the two reaches the other member.
func TestAMemberThatFallsSilentBesideOtherSessionsThatAreRenewedByCalls(t *testing.T) {
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		t, c, n := remote(b)
		counted(t, c)
		phase := b.Rand("phases")
		for range 30 {
			all := sessions(t, c, 2+phase.IntN(4), concurrency.WithTTL(6))
			b.Sleep(time.Duration(phase.Int64N(int64(6 * time.Second))))
			n.Silence(12 * time.Second)
			survives(t, all[0], 3)
			for _, s := range all {
				require.NoError(t, s.Ctx().Err())
				require.NoError(t, s.Close())
			}
		}
	})
}

// A lease that has just expired is not renewed before it is revoked. Who goes on with it does not
// hold up the other sessions of the client.
func TestALeaseThatHasExpiredHoldsNobodyUp(t *testing.T) {
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		t, c, n := remote(b)
		other, _ := b.Client("other")
		n.SetRoundTrip(virtual.RoundTrip{Min: 530 * time.Millisecond, Max: 530 * time.Millisecond})
		s := session(t, c, concurrency.WithTTL(1))
		resumed, expired := 0, 0
		for i := range 400 {
			lease, err := other.Grant(context.Background(), 1)
			require.NoError(t, err)
			b.Sleep(time.Duration(i%100) * 10 * time.Millisecond)
			heir, err := concurrency.NewSession(c, concurrency.WithLease(lease.ID))
			if err == nil {
				resumed++
				require.NoError(t, heir.Close())
			} else {
				expired++
			}
			require.NoError(t, s.Ctx().Err())
		}
		require.Positive(t, resumed)
		require.Positive(t, expired)
	})
}

// All streams of a client die without a word, while sessions come and go. When new streams work,
// new sessions live.
func TestSessionsThatComeAndGoKeepNoDeadStream(t *testing.T) {
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		t, c, n := remote(b)
		ctx, cancel := context.WithCancel(context.Background())
		var guests sync.WaitGroup
		defer guests.Wait()
		defer cancel()
		for i := range 8 {
			rnd := b.Rand(fmt.Sprintf("guest %d", i))
			guests.Go(func() {
				for ctx.Err() == nil {
					s, err := concurrency.NewSession(c, concurrency.WithTTL(3))
					if !assert.NoError(t, err) {
						return
					}
					b.Sleep(time.Duration(rnd.Int64N(int64(s.TTL()))))
					assert.NoError(t, s.Close())
				}
			})
		}
		n.Set("stream-dead", 1)
		b.Sleep(time.Minute)
		n.Set("stream-dead", 0)
		b.Sleep(virtual.Longest + 3*time.Second) // by then each of them has died, and has been silent for a life
		for range 10 {
			s := session(t, c, concurrency.WithTTL(3))
			survives(t, s, 2)
			require.NoError(t, s.Close())
		}
	})
}

// The same with nothing beside. The stream is on the silent link a few times.
func TestAMemberThatFallsSilent(t *testing.T) {
	var shared streams
	virtual.Run(t, virtual.Options{Trace: shared.note}, func(b *virtual.Bubble) {
		t, c, n := remote(b)
		s := session(t, c, concurrency.WithTTL(6))
		for range 20 {
			asked := shared.asked.Load()
			etcdtest.Eventually(t, func() bool { return shared.asked.Load() > asked }, "renewed")
			n.Silence(2 * s.TTL())
			survives(t, s, 2)
		}
		etcdtest.Eventually(t, func() bool { return shared.open() <= 2 }, "two streams at most")
	})
	require.Greater(t, shared.opened.Load(), int64(5), "the stream was on the silent link a few times")
}

// The renewal of one lease is refused for good, by the end of the stream that it shares
// with the others.
func TestARefusedLeaseKeepsTheOthersAlive(t *testing.T) {
	t.Parallel()
	if !server(t).Embedded() { // older servers ask for no permission to renew
		return
	}
	own := etcdtest.New(t)
	root, ctx := own.Client(t), t.Context()
	must := func(_ any, err error) {
		t.Helper()
		require.NoError(t, err)
	}
	for _, name := range []string{"root", "user"} {
		must(root.UserAdd(ctx, name, "secret"))
		must(root.RoleAdd(ctx, name))
		must(root.UserGrantRole(ctx, name, name))
	}
	readWrite := clientv3.PermissionType(clientv3.PermReadWrite)
	for _, name := range []string{"mine/", "theirs/"} {
		must(root.RoleGrantPermission(ctx, "user", name, clientv3.GetPrefixRangeEnd(name), readWrite))
	}
	must(root.AuthEnable(ctx))
	as := func(user string) *clientv3.Client {
		cfg := etcdtest.ClientConfig(own.Endpoints()...)
		cfg.Username, cfg.Password = user, "secret"
		c, err := clientv3.New(cfg)
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		return c
	}
	c := as("user")
	all := sessions(t, c, 12, concurrency.WithTTL(6))
	refused, others := all[:4], all[4:]
	for i, s := range refused {
		must(c.Put(ctx, fmt.Sprintf("theirs/%d", i), "", clientv3.WithLease(s.Lease())))
	}
	must(as("root").RoleRevokePermission(ctx, "user", "theirs/", clientv3.GetPrefixRangeEnd("theirs/")))
	for _, s := range refused {
		ended(t, s.Done(), "the session that may not renew its lease")
		require.ErrorIs(t, context.Cause(s.Ctx()), concurrency.ErrSessionExpired)
	}
	survives(t, others[0], 2)
	for _, s := range others {
		require.NoError(t, s.Ctx().Err())
	}
}

// Where a client has no stream of its own, calls stand beside each other.
func TestRenewalsByCalls(t *testing.T) {
	inBubble := func(f func(t *testing.T, c *clientv3.Client)) func(*testing.T) {
		return func(t *testing.T) {
			virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
				t, c, _ := remote(b)
				f(t, c)
			})
		}
	}
	t.Run("an answer that is missing keeps no other back", inBubble(func(t *testing.T, c *clientv3.Client) {
		f := counted(t, c)
		s := session(t, c, concurrency.WithTTL(3))
		silent := f.HoldAnswer(fault.KeepAliveOnce, 1)
		ended(t, silent.Reached(), "the first renewal")
		survives(t, s, 2)
		silent.Open()
	}))
	t.Run("a late answer counts, from its own sending", inBubble(func(t *testing.T, c *clientv3.Client) {
		f := counted(t, c)
		s := session(t, c, concurrency.WithTTL(6))
		before := s.Deadline()
		late := f.HoldAnswer(fault.KeepAliveOnce, 1)
		ended(t, late.Reached(), "the first renewal")
		sent := time.Now()
		f.Hold(fault.KeepAliveOnce, 1)
		f.Hold(fault.KeepAliveOnce, 2)
		<-time.After(time.Until(before.Add(-time.Second)))
		require.Equal(t, before, s.Deadline())
		late.Open()
		etcdtest.Eventually(t, func() bool { return s.Deadline().After(before) }, "the answer counts")
		require.WithinRange(t, s.Deadline(), before, sent.Add(6*time.Second))
	}))
	t.Run("no more are under way than can be of use", inBubble(func(t *testing.T, c *clientv3.Client) {
		f := counted(t, c)
		s := session(t, c, concurrency.WithTTL(3))
		for n := range 10 {
			f.Hold(fault.KeepAliveOnce, n+1)
		}
		ended(t, s.Done(), "the session")
		require.LessOrEqual(t, f.Count(fault.KeepAliveOnce), 1+2+2, "after each third of its life")
	}))
	t.Run("one whose answer would be of no use ends", inBubble(func(t *testing.T, c *clientv3.Client) {
		silent := &silentOnce{Lease: c.Lease, lasted: make(chan time.Duration, 1)}
		c.Lease = silent
		s := session(t, c, concurrency.WithTTL(3))
		survives(t, s, 3)
		require.Equal(t, 3*time.Second, <-silent.lasted)
	}))
}

// silentOnce never answers the first renewal, and tells how long it was waited for.
type silentOnce struct {
	clientv3.Lease

	asked  atomic.Bool
	lasted chan time.Duration
}

// KeepAliveOnce renews.
func (s *silentOnce) KeepAliveOnce(ctx context.Context, id clientv3.LeaseID) (*clientv3.LeaseKeepAliveResponse, error) {
	if s.asked.Swap(true) {
		return s.Lease.KeepAliveOnce(ctx, id)
	}
	began := time.Now()
	<-ctx.Done()
	s.lasted <- time.Since(began)
	return nil, ctx.Err()
}

// Many sessions of one client, on a server that others use too.
func TestManySessions(t *testing.T) {
	t.Parallel()
	own := etcdtest.New(t)
	all := sessions(t, own.Client(t), 300, concurrency.WithTTL(6))
	survives(t, all[0], 2)
	for _, s := range all {
		require.NoError(t, s.Ctx().Err())
	}
}

// Where the margin leaves next to nothing of the TTL, no renewal comes in time.
func TestAMarginThatLeavesNothingFloodsNobody(t *testing.T) {
	all := &streams{}
	virtual.Run(t, virtual.Options{Trace: all.note}, func(b *virtual.Bubble) {
		t, c, n := remote(b)
		n.SetRoundTrip(virtual.RoundTrip{Min: 2 * time.Millisecond, Max: 2 * time.Millisecond})
		_, err := concurrency.NewSession(c, concurrency.WithTTL(10), concurrency.WithSafetyMargin(10*time.Second-time.Microsecond))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Less(t, all.asked.Load(), int64(10*4*3+3))
	})
}
