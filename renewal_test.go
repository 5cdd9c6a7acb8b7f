package concurrency_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// renewing is a server of the test's own, whose keep-alive streams are counted.
func renewing(tb testing.TB) (*etcdtest.Cluster, *fault.Renewals) {
	tb.Helper()
	r := &fault.Renewals{}
	return etcdtest.New(tb, etcdtest.Config(func(_ int, cfg *embed.Config) {
		cfg.GRPCAdditionalServerOptions = append(cfg.GRPCAdditionalServerOptions, r.Option())
	})), r
}

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

// survives fails the test if the session ends before it has lived for n times its TTL.
func survives(tb testing.TB, s *concurrency.Session, n int) {
	tb.Helper()
	timer := time.NewTimer(time.Duration(n) * s.TTL())
	defer timer.Stop()
	select {
	case <-s.Done():
		require.FailNow(tb, "the session has ended", "cause %v", context.Cause(s.Ctx()))
	case <-timer.C:
	}
}

func TestTheSessionsOfAClientShareAStream(t *testing.T) {
	t.Parallel()
	own, renewals := renewing(t)
	c := own.Client(t)
	all := sessions(t, c, 50, concurrency.WithTTL(6))
	etcdtest.Eventually(t, func() bool { return renewals.Asked() > 3*len(all) }, "each renewed a few times")
	for _, s := range all {
		require.NoError(t, s.Ctx().Err())
	}
	require.Equal(t, 1, renewals.Streams())
	for _, s := range all[1:] {
		s.Orphan()
	}
	require.Equal(t, 1, renewals.Open())
	require.NoError(t, all[0].Close())
	etcdtest.Eventually(t, func() bool { return renewals.Open() == 0 }, "none is left when the last session has ended")
	s := session(t, c, concurrency.WithTTL(3))
	etcdtest.Eventually(t, func() bool { return renewals.Open() == 1 }, "and the next session has one")
	survives(t, s, 2)
}

func TestASessionIsRenewedEveryThirdOfItsLife(t *testing.T) {
	t.Parallel()
	own, renewals := renewing(t)
	began := time.Now()
	s := session(t, own.Client(t), concurrency.WithTTL(3))
	survives(t, s, 3)
	asked, streams := renewals.Asked(), renewals.Streams()
	// A third of a life, which may be a tenth shorter, lies between any two.
	apart := s.TTL() / 3 * 9 / 10
	if streams > 1 { // On a busy machine answers are late: renewals go over all streams, twice as often.
		apart /= 2
	}
	require.LessOrEqual(t, asked, streams*(1+int(time.Since(began)/apart)))
}

func TestRoundTrips(t *testing.T) {
	t.Parallel()
	const ttl = 6
	for _, trip := range []time.Duration{
		0, 2 * time.Millisecond, 10 * time.Millisecond, 40 * time.Millisecond,
		ttl * time.Second / 10, ttl * time.Second * 3 / 10, ttl * time.Second / 2, ttl * time.Second * 55 / 100,
	} {
		t.Run(trip.String(), func(t *testing.T) {
			t.Parallel()
			p, c := proxied(t, server(t))
			_, err := c.Get(t.Context(), "connect")
			require.NoError(t, err)
			p.Delay(trip / 2)
			s := session(t, c, concurrency.WithTTL(ttl))
			t.Cleanup(p.Heal)
			survives(t, s, 3)
		})
	}
}

// A session whose grant has an answer that is later than that of the next renewal would be
// lasts from the first renewal that is answered.
func TestALateGrantIsRenewedFirst(t *testing.T) {
	t.Parallel()
	c := client(t)
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
	require.Greater(t, time.Until(s.Deadline()), 4*time.Second-time.Since(sent)-time.Second)
	survives(t, s, 2)
}

func TestALateGrantThatIsNotRenewedIsGivenBack(t *testing.T) {
	t.Parallel()
	own := etcdtest.New(t)
	c := own.Client(t)
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
	etcdtest.WaitLeases(t, c, 0)
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
	t.Parallel()
	const n = 20
	for _, code := range []codes.Code{codes.Unavailable, codes.Internal, codes.ResourceExhausted, codes.Unknown, codes.Unauthenticated} {
		t.Run(code.String(), func(t *testing.T) {
			t.Parallel()
			own, renewals := renewing(t)
			all := sessions(t, own.Client(t), n, concurrency.WithTTL(12))
			renewals.Refuse(code)
			first, began := renewals.Streams(), time.Now()
			etcdtest.Eventually(t, func() bool { return renewals.Streams() > first+7 }, "asked again and again")
			require.GreaterOrEqual(t, time.Since(began), 7*250*time.Millisecond)
			renewals.Refuse(codes.OK)
			asked := renewals.Asked()
			etcdtest.Eventually(t, func() bool { return renewals.Asked() > asked+n }, "renewed again")
			for _, s := range all {
				require.NoError(t, s.Ctx().Err())
			}
		})
	}
	t.Run("where the client is wrapped and repeats itself", func(t *testing.T) {
		t.Parallel()
		own, renewals := renewing(t)
		c := own.Client(t)
		f := counted(t, c)
		const n = 4
		all := sessions(t, c, n, concurrency.WithTTL(12))
		renewals.Refuse(codes.Unavailable)
		etcdtest.Eventually(t, func() bool { return f.Count(fault.KeepAliveOnce) > 0 }, "the first renewal")
		first, began := renewals.Streams(), time.Now()
		etcdtest.Eventually(t, func() bool { return f.Count(fault.KeepAliveOnce) > 5*n }, "asked again and again")
		require.GreaterOrEqual(t, time.Since(began), 4*250*time.Millisecond)
		require.Less(t, renewals.Streams()-first, 10*6*n, "a few for each call")
		renewals.Refuse(codes.OK)
		asked := renewals.Asked()
		etcdtest.Eventually(t, func() bool { return renewals.Asked() > asked+n }, "renewed again")
		for _, s := range all {
			require.NoError(t, s.Ctx().Err())
		}
	})
}

// One server behind two links: gRPC takes them for two members, of which one falls silent
// while its connection stands.
func TestAMemberThatFallsSilent(t *testing.T) {
	t.Parallel()
	own, renewals := renewing(t)
	var links []*fault.Proxy
	for range 2 {
		p, err := fault.NewProxy(own.Endpoint(0))
		require.NoError(t, err)
		t.Cleanup(p.Close)
		links = append(links, p)
	}
	c := etcdtest.Dial(t, links[0].Endpoint(), links[1].Endpoint())
	s := session(t, c, concurrency.WithTTL(6))
	t.Cleanup(func() {
		links[0].Heal()
		links[1].Heal()
	})
	for _, silent := range []*fault.Proxy{links[0], links[1], links[0]} { // one of them has the stream
		asked := renewals.Asked()
		etcdtest.Eventually(t, func() bool { return renewals.Asked() > asked }, "renewed")
		silent.Stall()
		survives(t, s, 2)
		silent.Resume()
	}
	etcdtest.Eventually(t, func() bool { return renewals.Open() <= 2 }, "two streams at most")
}

// The renewal of one lease is refused for good, by the end of the stream that it shares
// with the others.
func TestARefusedLeaseKeepsTheOthersAlive(t *testing.T) {
	t.Parallel()
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
		require.Equal(t, concurrency.ErrSessionExpired, context.Cause(s.Ctx()))
	}
	survives(t, others[0], 2)
	for _, s := range others {
		require.NoError(t, s.Ctx().Err())
	}
}

// Where a client has no stream of its own, calls stand beside each other.
func TestRenewalsByCalls(t *testing.T) {
	t.Parallel()
	t.Run("an answer that is missing keeps no other back", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		s := session(t, c, concurrency.WithTTL(3))
		silent := f.HoldAnswer(fault.KeepAliveOnce, 1)
		ended(t, silent.Reached(), "the first renewal")
		survives(t, s, 2)
		silent.Open()
	})
	t.Run("a late answer counts, from its own sending", func(t *testing.T) {
		t.Parallel()
		c := client(t)
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
	})
	t.Run("no more are under way than can be of use", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		s := session(t, c, concurrency.WithTTL(3))
		for n := range 10 {
			f.Hold(fault.KeepAliveOnce, n+1)
		}
		ended(t, s.Done(), "the session")
		require.LessOrEqual(t, f.Count(fault.KeepAliveOnce), 4)
	})
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
