package etcdtest_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"example.com/etcd/concurrency/internal/etcdtest"
)

// binary says whether the tests run against an etcd binary.
var binary = os.Getenv("ETCD_BINARY") != ""

func put(t *testing.T, client *clientv3.Client, key string) int64 {
	t.Helper()
	resp, err := client.Put(t.Context(), key, "v")
	require.NoError(t, err)
	return resp.Header.Revision
}

// stuck writes where nothing can be written.
func stuck(t *testing.T, client *clientv3.Client, key, why string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := client.Put(ctx, key, "")
	require.Error(t, err, why)
}

func TestStart(t *testing.T) {
	for _, members := range []int{1, 3} {
		begin := time.Now()
		c := etcdtest.New(t, etcdtest.Members(members))
		t.Logf("%d members started in %v", members, time.Since(begin))
		require.Equal(t, !binary, c.Embedded())
		require.Len(t, c.Endpoints(), members)
		leader := c.Leader()
		require.GreaterOrEqual(t, leader, 0)
		for i := range members {
			require.Equal(t, c.Endpoint(i), c.Endpoints()[i])
			client := c.MemberClient(t, i)
			require.Equal(t, []string{c.Endpoint(i)}, client.Endpoints())
			put(t, client, "k")
		}
		require.ElementsMatch(t, c.Endpoints(), c.Client(t).Endpoints())
	}
}

func TestLeasesAreGrantedAsAsked(t *testing.T) {
	for _, members := range []int{1, 3} {
		client := etcdtest.New(t, etcdtest.Members(members)).Client(t)
		for _, ttl := range []int64{1, 2, 7} {
			lease, err := client.Grant(t.Context(), ttl)
			require.NoError(t, err)
			require.Equal(t, ttl, lease.TTL, "%d members", members)
		}
	}
}

func TestRestartKeepsTheData(t *testing.T) {
	c := etcdtest.New(t)
	client, endpoint := c.Client(t), c.Endpoint(0)
	put(t, client, "k")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watch := client.Watch(ctx, "watched", clientv3.WithCreatedNotify())
	<-watch
	begin := time.Now()
	c.Stop(0)
	t.Logf("stopped, beside an open watch, in %v", time.Since(begin))
	c.Stop(0)
	require.Zero(t, c.CommittedIndex(), "nobody answers")
	require.NoError(t, c.Restart(0))
	require.Equal(t, endpoint, c.Endpoint(0))
	require.Len(t, etcdtest.Keys(t, client, "k"), 1)
	rev := put(t, client, "watched")
	resp := <-watch
	require.Equal(t, rev, resp.Events[0].Kv.ModRevision, "the watch went on")
}

func TestQuorum(t *testing.T) {
	c := etcdtest.New(t, etcdtest.Members(3))
	first := c.Leader()
	client := c.MemberClient(t, (first+1)%3)
	put(t, client, "k")
	c.Stop(first)
	second := c.Leader()
	require.NotEqual(t, first, second)
	require.GreaterOrEqual(t, second, 0)
	etcdtest.WaitKeys(t, client, "k", 1)

	last := 3 - first - second
	c.Stop(second)
	lone := c.MemberClient(t, last)
	stuck(t, lone, "k", "no quorum")
	require.NoError(t, c.Restart(first))
	put(t, lone, "k")
	require.NoError(t, c.Restart(second))
}

// A member that starts without a majority can't be ready, and isn't waited for.
func TestRestartWithoutMajority(t *testing.T) {
	c := etcdtest.New(t, etcdtest.Members(3))
	for i := range 3 {
		c.Stop(i)
	}
	require.NoError(t, c.Restart(0))
	require.NoError(t, c.Restart(1))
	put(t, c.MemberClient(t, 0), "k")
}

func TestMoveLeader(t *testing.T) {
	c := etcdtest.New(t, etcdtest.Members(3))
	for i := range 3 {
		require.NoError(t, c.MoveLeader(i))
		require.Equal(t, i, c.Leader())
	}
	require.NoError(t, c.MoveLeader(2), "to where it is")
}

// An isolated follower answers from a store that falls behind.
func TestIsolatedFollowerLags(t *testing.T) {
	c := etcdtest.New(t, etcdtest.Members(3), etcdtest.PeerProxies())
	if !c.Embedded() {
		require.Error(t, c.Isolate(0))
		require.Error(t, c.Rejoin(0))
		return
	}
	leader := c.Leader()
	follower := (leader + 1) % 3
	client, lagging := c.MemberClient(t, leader), c.MemberClient(t, follower)
	old := put(t, client, "k")
	etcdtest.Eventually(t, func() bool {
		resp, err := lagging.Get(t.Context(), "k", clientv3.WithSerializable())
		return err == nil && resp.Header.Revision == old
	}, "the follower has the key")

	require.NoError(t, c.Isolate(follower))
	rev := put(t, client, "k")
	_, err := lagging.Get(t.Context(), "k", clientv3.WithSerializable(), clientv3.WithRev(rev))
	require.Equal(t, rpctypes.ErrFutureRev, err)
	resp, err := lagging.Get(t.Context(), "k", clientv3.WithSerializable())
	require.NoError(t, err)
	require.Equal(t, old, resp.Header.Revision)
	require.Equal(t, leader, c.Leader(), "the others go on")

	require.NoError(t, c.Rejoin(follower))
	etcdtest.Eventually(t, func() bool {
		_, err := lagging.Get(t.Context(), "k", clientv3.WithSerializable(), clientv3.WithRev(rev))
		return err == nil
	}, "the follower has caught up")
}

// One that the leader can't reach is left without, whatever it hears from the third: that
// one has a leader and lets nobody else be elected.
func TestPartialPartition(t *testing.T) {
	c := etcdtest.New(t, etcdtest.Members(3), etcdtest.PeerProxies())
	if !c.Embedded() {
		require.Nil(t, c.Link(0, 1))
		return
	}
	leader := c.Leader()
	lost, third := (leader+1)%3, (leader+2)%3
	c.Link(leader, lost).Sever()
	c.Link(lost, leader).Sever()
	rev := put(t, c.MemberClient(t, third), "k")
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(t.Context()))
	defer cancel()
	etcdtest.Eventually(t, func() bool {
		resp := <-c.MemberClient(t, lost).Watch(ctx, "k")
		return errors.Is(resp.Err(), rpctypes.ErrNoLeader)
	}, "it knows no leader")
	_, err := c.MemberClient(t, lost).Get(ctx, "k", clientv3.WithSerializable(), clientv3.WithRev(rev))
	require.Error(t, err)
	require.Equal(t, leader, c.Leader())
	require.NoError(t, c.Rejoin(lost))
	put(t, c.MemberClient(t, lost), "k")
}

// The followers of a leader that they don't hear elect another; it hears that one, and follows.
func TestMutedLeaderFollows(t *testing.T) {
	c := etcdtest.New(t, etcdtest.Members(3), etcdtest.PeerProxies())
	if !c.Embedded() {
		require.Error(t, c.Mute(0))
		return
	}
	leader := c.Leader()
	require.NoError(t, c.Mute(leader))
	etcdtest.Eventually(t, func() bool { return c.Leader() != leader }, "another leads")
	client := c.MemberClient(t, leader)
	etcdtest.Eventually(t, func() bool {
		here, err := client.Status(t.Context(), c.Endpoint(leader))
		return err == nil && here.Leader != here.Header.MemberId && here.Leader != 0
	}, "it hears of that")
	stuck(t, client, "k", "nobody hears what it proposes")
	require.NoError(t, c.Rejoin(leader))
	put(t, client, "k")
}

func TestIsolatedLeaderLeadsNobody(t *testing.T) {
	c := etcdtest.New(t, etcdtest.Members(3), etcdtest.PeerProxies())
	if !c.Embedded() {
		return // TestIsolatedFollowerLags says what Isolate does there
	}
	leader := c.Leader()
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(t.Context()))
	defer cancel()
	watch := c.MemberClient(t, leader).Watch(ctx, "k", clientv3.WithCreatedNotify())
	<-watch
	require.NoError(t, c.Isolate(leader))
	etcdtest.Eventually(t, func() bool { return c.Leader() != leader }, "another leads")
	resp := <-watch
	require.Equal(t, rpctypes.ErrNoLeader, resp.Err())
	require.NoError(t, c.Rejoin(leader))
	put(t, c.MemberClient(t, leader), "k")
}

func TestCommittedIndexCountsProposals(t *testing.T) {
	c := etcdtest.New(t)
	client := c.Client(t)
	put(t, client, "k")
	before := c.CommittedIndex()
	for range 10 {
		put(t, client, "k")
	}
	etcdtest.Keys(t, client, "k")
	require.EqualValues(t, 10, c.CommittedIndex()-before, "a proposal for each write, none for the read")
}

func TestInProcess(t *testing.T) {
	c := etcdtest.New(t)
	if !c.Embedded() {
		return // there is no such client
	}
	client := c.InProcess(t)
	require.Nil(t, client.ActiveConnection())
	put(t, client, "k")
	require.Len(t, etcdtest.Keys(t, c.Client(t), "k"), 1)
}

func TestConfig(t *testing.T) {
	var seen []int
	c, err := etcdtest.Start(etcdtest.Config(func(i int, cfg *embed.Config) {
		seen = append(seen, i)
		cfg.MaxTxnOps = 1
	}))
	if binary {
		require.Error(t, err)
		return
	}
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Client(t).Txn(t.Context()).
		Then(clientv3.OpGet("a"), clientv3.OpGet("b")).Commit()
	require.Equal(t, rpctypes.ErrTooManyOps, err)
	require.NoError(t, c.Restart(0))
	require.Equal(t, []int{0, 0}, seen)
}

func TestFsync(t *testing.T) {
	for _, on := range []bool{false, true} {
		opts := []etcdtest.Option{etcdtest.Fsync(on)}
		if !binary {
			opts = append(opts, etcdtest.Config(func(_ int, cfg *embed.Config) {
				require.Equal(t, !on, cfg.UnsafeNoFsync)
			}))
		}
		put(t, etcdtest.New(t, opts...).Client(t), "k")
	}
}

func TestNothingIsLeft(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	left := func() []string {
		names, err := filepath.Glob(filepath.Join(os.TempDir(), "*"))
		require.NoError(t, err)
		return names
	}
	c, err := etcdtest.Start()
	require.NoError(t, err)
	require.Len(t, left(), 1)
	client, err := c.NewClient()
	require.NoError(t, err)
	put(t, client, "k")
	require.NoError(t, client.Close())
	c.Close()
	c.Close()
	require.Empty(t, left(), "after Close")

	if binary {
		t.Setenv("ETCD_BINARY", "/bin/false")
		_, err = etcdtest.Start()
		require.ErrorContains(t, err, "exit status 1")
	} else {
		_, err = etcdtest.Start(etcdtest.Members(3), etcdtest.Config(func(i int, cfg *embed.Config) {
			if i == 1 {
				cfg.Name = "stranger"
			}
		}))
		require.ErrorContains(t, err, "stranger")
	}
	require.Empty(t, left(), "after a start that failed")
}

func TestWatchers(t *testing.T) {
	c := etcdtest.New(t)
	client := c.Client(t)
	c.WaitWatchers(t, 0)
	ctx, cancel := context.WithCancel(t.Context())
	for range 3 {
		<-client.Watch(ctx, "k", clientv3.WithCreatedNotify())
	}
	n, err := c.Watchers()
	require.NoError(t, err)
	require.Equal(t, 3, n)
	cancel()
	c.WaitWatchers(t, 0)
}

func TestBarriers(t *testing.T) {
	client := etcdtest.New(t).Client(t)
	etcdtest.WaitKeys(t, client, "q/", 0)
	etcdtest.WaitLeases(t, client, 0)
	lease, err := client.Grant(t.Context(), 60)
	require.NoError(t, err)
	waiting := etcdtest.Go(func() error {
		kvs := etcdtest.WaitKeys(t, client, "q/", 3)
		order := make([]string, len(kvs))
		for i, kv := range kvs {
			order[i] = string(kv.Key)
		}
		if !slices.Equal(order, []string{"q/c", "q/b", "q/a"}) {
			return errors.New(strings.Join(order, " "))
		}
		return nil
	})
	put(t, client, "q/c")
	put(t, client, "q/b")
	put(t, client, "other")
	require.True(t, waiting.Running(), "two of three")
	_, err = client.Put(t.Context(), "q/a", "", clientv3.WithLease(lease.ID))
	require.NoError(t, err)
	put(t, client, "q/c") // changed, and still the oldest
	require.NoError(t, waiting.Wait(t))

	etcdtest.WaitLeases(t, client, 1)
	gone := etcdtest.Go(func() error {
		etcdtest.WaitGone(t, client, "q/a")
		etcdtest.WaitLeases(t, client, 0)
		return nil
	})
	require.True(t, gone.Running())
	_, err = client.Revoke(t.Context(), lease.ID)
	require.NoError(t, err)
	require.NoError(t, gone.Wait(t))
	require.Len(t, etcdtest.Keys(t, client, "q/"), 2)
}

func TestCall(t *testing.T) {
	release := make(chan struct{})
	want := errors.New("own")
	c := etcdtest.Go(func() error {
		<-release
		return want
	})
	require.True(t, c.Running())
	require.NoError(t, c.Err())
	close(release)
	<-c.Done()
	require.False(t, c.Running())
	require.Equal(t, want, c.Err())
	require.Equal(t, want, c.Wait(t))
	require.NoError(t, etcdtest.Go(func() error { return nil }).Wait(t))
}
