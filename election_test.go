package concurrency_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
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

// ballot is one election and what a test needs around it: a client under faults with
// one session, and an outside observer whose calls nobody counts.
type ballot struct {
	name     string
	client   *clientv3.Client
	faults   *fault.Faults
	session  *concurrency.Session
	election *concurrency.Election
	outside  *clientv3.Client
}

func newBallot(tb testing.TB, c *etcdtest.Cluster) *ballot {
	tb.Helper()
	b := &ballot{name: prefix(tb), client: c.Client(tb), outside: c.Client(tb)}
	b.faults = counted(tb, b.client)
	b.session = session(tb, b.client)
	b.election = b.handle()
	return b
}

// handle is another handle of the same session.
func (b *ballot) handle() *concurrency.Election {
	return concurrency.NewElection(b.session, b.name)
}

// rival is a handle of a session of its own, on the observer's client.
func (b *ballot) rival(tb testing.TB) *concurrency.Election {
	tb.Helper()
	return concurrency.NewElection(session(tb, b.outside), b.name)
}

// wins lets e campaign, and win.
func (b *ballot) wins(tb testing.TB, e *concurrency.Election, value string) {
	tb.Helper()
	require.NoError(tb, e.Campaign(context.Background(), value))
}

// waits starts a Campaign and returns when n candidates stand in line.
func (b *ballot) waits(
	tb testing.TB, ctx context.Context, e *concurrency.Election, value string, n int,
) *etcdtest.Call {
	tb.Helper()
	call := etcdtest.Go(func() error { return e.Campaign(ctx, value) })
	b.stand(tb, n)
	return call
}

// stand waits until n candidates stand in line.
func (b *ballot) stand(tb testing.TB, n int) []*mvccpb.KeyValue {
	tb.Helper()
	return etcdtest.WaitKeys(tb, b.outside, b.name+"/", n)
}

// head is the key of the leader, as the store has it at the revision, 0 for now.
func (b *ballot) head(tb testing.TB, rev int64) *mvccpb.KeyValue {
	tb.Helper()
	opts := append(clientv3.WithFirstCreate(), clientv3.WithRev(rev))
	resp, err := b.outside.Get(context.Background(), b.name+"/", opts...)
	require.NoError(tb, err)
	require.Len(tb, resp.Kvs, 1)
	return resp.Kvs[0]
}

// leads checks that the store has e as the leader, with the value.
func (b *ballot) leads(tb testing.TB, e *concurrency.Election, value string) {
	tb.Helper()
	kv := b.head(tb, 0)
	require.Equal(tb, e.Key(), string(kv.Key))
	require.Equal(tb, e.Rev(), kv.CreateRevision)
	require.Equal(tb, value, string(kv.Value))
}

// delete takes a key away by hand.
func (b *ballot) delete(tb testing.TB, key string) {
	tb.Helper()
	resp, err := b.outside.Delete(context.Background(), key)
	require.NoError(tb, err)
	require.EqualValues(tb, 1, resp.Deleted)
}

func TestNewElection(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	t.Run("its keys lie under the name and a slash", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "v")
		require.Equal(t, fmt.Sprintf("%s/%x", b.name, b.session.Lease()), b.election.Key())
		b.leads(t, b.election, "v")
	})
	t.Run("an empty name stands for a slash", func(t *testing.T) {
		t.Parallel()
		c := etcdtest.New(t).Client(t) // alone: this line is everybody's
		s := session(t, c)
		e := concurrency.NewElection(s, "")
		require.NoError(t, e.Campaign(ctx, "v"))
		require.Equal(t, fmt.Sprintf("/%x", s.Lease()), e.Key())
	})
	t.Run("makes no call", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.faults.Reset()
		b.handle()
		require.Equal(t, "no calls", b.faults.String())
	})
	t.Run("panics if s is nil", func(t *testing.T) {
		t.Parallel()
		requireOurPanic(t, func() { concurrency.NewElection(nil, "name") })
		requireOurPanic(t, func() { concurrency.ResumeElection(nil, "name", "name/1", 1) })
	})
	t.Run("on the zero session cannot be used", func(t *testing.T) {
		t.Parallel()
		e := concurrency.NewElection(&concurrency.Session{}, "name")
		require.Empty(t, e.Key())
		require.Zero(t, e.Rev())
		require.Nil(t, e.Header())
		require.Equal(t, concurrency.ErrElectionNotLeader, e.Proclaim(ctx, "v"))
		require.NoError(t, e.Resign(ctx))
		requireOurPanic(t, func() { e.Campaign(ctx, "v") })
	})
}

func TestElectionMethodsFromAnyGoroutine(t *testing.T) {
	t.Parallel()
	b := newBallot(t, server(t))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	observed := b.election.Observe(ctx)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 5 {
				assert.NoError(t, b.election.Campaign(ctx, strconv.Itoa(i)))
				b.election.Key()
				b.election.Rev()
				b.election.Header()
				if err := b.election.Proclaim(ctx, strconv.Itoa(i)); err != nil {
					assert.Equal(t, concurrency.ErrElectionNotLeader, err) // another has resigned
				}
				if _, err := b.election.Leader(ctx); err != nil {
					assert.Equal(t, concurrency.ErrElectionNoLeader, err)
				}
				assert.NoError(t, b.election.Resign(ctx))
			}
		})
	}
	wg.Wait()
	b.stand(t, 0)
	cancel()
	for range observed { // until it is closed
	}
}

func TestElectionCampaign(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	t.Run("makes the session a candidate with the value", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.rival(t), "first")
		call := b.waits(t, ctx, b.election, "second", 2)
		kv := b.stand(t, 2)[1]
		require.Equal(t, "second", string(kv.Value))
		require.Equal(t, int64(b.session.Lease()), kv.Lease)
		require.NoError(t, b.session.Close())
		require.Equal(t, concurrency.ErrSessionExpired, call.Wait(t))
	})
	t.Run("candidates lead in the order in which they came", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		candidates := []*concurrency.Election{b.election, b.rival(t), b.rival(t), b.rival(t)}
		calls := make([]*etcdtest.Call, len(candidates))
		for i, e := range candidates {
			calls[i] = b.waits(t, ctx, e, strconv.Itoa(i), i+1)
		}
		rev := int64(0)
		for i, e := range candidates {
			require.NoError(t, calls[i].Wait(t))
			b.leads(t, e, strconv.Itoa(i))
			require.Greater(t, e.Rev(), rev, "the revision rises with every change of the leader")
			rev = e.Rev()
			for j, call := range calls[i+1:] {
				require.True(t, call.Running(), "candidate %d while %d leads", i+1+j, i)
			}
			require.NoError(t, e.Resign(ctx))
		}
	})
	t.Run("one in the middle that gives up lets nobody past the leader", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		leader := b.rival(t)
		b.wins(t, leader, "leader")
		middle, cancel := context.WithCancel(ctx)
		call := b.waits(t, middle, b.rival(t), "middle", 2)
		last := b.waits(t, ctx, b.election, "last", 3)
		cancel()
		require.Equal(t, context.Canceled, call.Wait(t))
		b.stand(t, 2)
		b.leads(t, leader, "leader")
		require.True(t, last.Running())
		require.NoError(t, leader.Resign(ctx))
		require.NoError(t, last.Wait(t))
		b.leads(t, b.election, "last")
	})
	t.Run("when it returns nil the session led at the revision of Header", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		leader := b.rival(t)
		b.wins(t, leader, "leader")
		call := b.waits(t, ctx, b.election, "next", 2)
		require.NoError(t, leader.Resign(ctx))
		require.NoError(t, call.Wait(t))
		rev := b.election.Header().Revision
		require.GreaterOrEqual(t, rev, leader.Header().Revision, "Resign's")
		require.Equal(t, b.election.Key(), string(b.head(t, rev).Key))
	})
	t.Run("rides out transient faults", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.faults.Refuse(fault.Txn, 2, codes.Unavailable, "etcdserver: leader changed")
		b.faults.LoseAnswer(fault.Txn, 3, nil)
		b.wins(t, b.election, "v")
		b.leads(t, b.election, "v")
		require.NoError(t, b.election.Proclaim(ctx, "w"))
	})
}

func TestElectionCampaignAgain(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	t.Run("a leader keeps its place and has the new value", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "old")
		rev, header := b.election.Rev(), b.election.Header()
		call := b.waits(t, ctx, b.rival(t), "rival", 2)
		b.wins(t, b.election, "new")
		b.leads(t, b.election, "new")
		require.Equal(t, rev, b.election.Rev())
		require.Equal(t, int64(b.session.Lease()), b.head(t, 0).Lease, "the lease is kept")
		require.Greater(t, b.election.Header().Revision, header.Revision)
		require.Equal(t, "new", string(b.head(t, b.election.Header().Revision).Value))
		require.True(t, call.Running())
		require.NoError(t, b.election.Resign(ctx))
		require.NoError(t, call.Wait(t))
	})
	t.Run("one that waits keeps its place and has the new value", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		leader := b.rival(t)
		b.wins(t, leader, "leader")
		first := b.waits(t, ctx, b.election, "old", 2)
		b.waits(t, ctx, b.rival(t), "behind", 3)
		again, twin := b.stand(t, 3)[1].CreateRevision, b.handle()
		second := etcdtest.Go(func() error { return twin.Campaign(ctx, "new") })
		etcdtest.Eventually(t, func() bool { return string(b.stand(t, 3)[1].Value) == "new" }, "the value")
		require.Equal(t, again, b.stand(t, 3)[1].CreateRevision)
		require.NoError(t, leader.Resign(ctx))
		require.NoError(t, first.Wait(t))
		require.NoError(t, second.Wait(t))
		b.leads(t, twin, "new")
		require.Equal(t, b.election.Key(), twin.Key())
	})
	t.Run("with the value it has already, it writes nothing", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "same")
		b.wins(t, b.election, "same")
		require.EqualValues(t, 1, b.head(t, 0).Version)
	})
	t.Run("a leader stays leader when it fails", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "old")
		require.Equal(t, context.Canceled, b.election.Campaign(cancelled(), "new"))
		b.leads(t, b.election, "old")

		gate := b.faults.HoldAnswer(fault.Txn, 2)
		under, cancel := context.WithCancel(ctx)
		call := etcdtest.Go(func() error { return b.election.Campaign(under, "new") })
		ended(t, gate.Reached(), "the call that gives the key its value is answered")
		cancel()
		require.Equal(t, context.Canceled, call.Wait(t))
		b.leads(t, b.election, "new") // it was carried out
		require.NoError(t, b.election.Proclaim(ctx, "newer"))
		b.leads(t, b.election, "newer")
	})
	t.Run("a resumed leader stays leader when it fails", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "old")
		s := session(t, b.outside, concurrency.WithLease(b.session.Lease()))
		e := concurrency.ResumeElection(s, b.name, b.election.Key(), b.election.Rev())
		require.Equal(t, context.Canceled, e.Campaign(cancelled(), "new"))
		require.NoError(t, e.Proclaim(ctx, "newer"))
		b.leads(t, e, "newer")
	})
	t.Run("after a Resign that failed it draws a new ticket", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "old")
		rev := b.election.Rev()
		b.faults.Hold(fault.Txn, 1) // the deletion is never sent
		under, cancel := context.WithCancel(ctx)
		call := etcdtest.Go(func() error { return b.election.Resign(under) })
		etcdtest.Eventually(t, func() bool { return b.faults.Count(fault.Txn) == 2 }, "Resign has begun")
		cancel()
		require.Equal(t, context.Canceled, call.Wait(t))
		b.wins(t, b.election, "new")
		require.Greater(t, b.election.Rev(), rev)
		b.leads(t, b.election, "new")
	})
}

func TestElectionCampaignFails(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	waiting := func(t *testing.T, ctx context.Context) (b *ballot, leader *concurrency.Election, call *etcdtest.Call) {
		b = newBallot(t, server(t))
		leader = b.rival(t)
		b.wins(t, leader, "leader")
		return b, leader, b.waits(t, ctx, b.election, "waits", 2)
	}
	t.Run("with ctx's error, and withdraws the candidacy", func(t *testing.T) {
		t.Parallel()
		under, cancel := context.WithCancel(ctx)
		b, _, call := waiting(t, under)
		require.Empty(t, b.election.Key(), "nothing is led while it waits")
		require.Zero(t, b.election.Rev())
		require.Nil(t, b.election.Header())
		cancel()
		require.Equal(t, context.Canceled, call.Wait(t))
		b.stand(t, 1)
		require.Empty(t, b.election.Key())
		require.NoError(t, b.election.Resign(ctx))
	})
	t.Run("with ErrSessionExpired when its key is deleted, while the leader leads", func(t *testing.T) {
		t.Parallel()
		b, leader, call := waiting(t, ctx)
		b.delete(t, string(b.stand(t, 2)[1].Key))
		require.Equal(t, concurrency.ErrSessionExpired, call.Wait(t))
		b.leads(t, leader, "leader")
	})
	t.Run("with ErrSessionExpired when its lease is revoked, and leads nothing later", func(t *testing.T) {
		t.Parallel()
		b, leader, call := waiting(t, ctx)
		revoke(t, b.outside, b.session)
		require.Equal(t, concurrency.ErrSessionExpired, call.Wait(t))
		third := b.rival(t)
		next := b.waits(t, ctx, third, "third", 2)
		require.NoError(t, leader.Resign(ctx))
		require.NoError(t, next.Wait(t))
		b.leads(t, third, "third")
		require.Empty(t, b.election.Key())
	})
	t.Run("with ErrLeaseNotFound when the lease was gone before", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		require.NoError(t, b.session.Close())
		require.Equal(t, rpctypes.ErrLeaseNotFound, b.election.Campaign(ctx, "v"))

		unaware := session(t, b.outside)
		revoke(t, b.outside, unaware)
		e := concurrency.NewElection(unaware, b.name)
		require.Equal(t, rpctypes.ErrLeaseNotFound, e.Campaign(ctx, "v"))
		b.stand(t, 0)
	})
	t.Run("with a permanent error as it is, and withdraws the candidacy", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, etcdtest.New(t)) // where nobody else writes, and calls for a look before
		leader := b.rival(t)
		b.wins(t, leader, "leader")
		gate := b.faults.BreakWatch(1, nil)
		call := b.waits(t, ctx, b.election, "waits", 2)
		ended(t, gate.Reached(), "the watch")
		b.faults.Refuse(fault.Get, 1, codes.PermissionDenied, "etcdserver: permission denied")
		gate.Open()
		require.Equal(t, rpctypes.ErrPermissionDenied, call.Wait(t))
		require.NoError(t, leader.Resign(ctx))
		b.stand(t, 0)
		require.Empty(t, b.election.Key())
	})
	t.Run("withdraws a candidacy of which it had no answer", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		gate := b.faults.HoldAnswer(fault.Txn, 1)
		under, cancel := context.WithCancel(ctx)
		call := etcdtest.Go(func() error { return b.election.Campaign(under, "v") })
		ended(t, gate.Reached(), "the key is put")
		b.stand(t, 1)
		cancel()
		require.Equal(t, context.Canceled, call.Wait(t))
		b.stand(t, 0)
	})
	t.Run("a leader whose key was deleted leads again with a new ticket", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "v")
		rev := b.election.Rev()
		b.delete(t, b.election.Key())
		b.wins(t, b.election, "v")
		require.Greater(t, b.election.Rev(), rev)
	})
	t.Run("a leader that has to wait again and loses its key leads no more", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "v")
		rival := b.rival(t)
		b.waits(t, ctx, rival, "rival", 2)
		b.delete(t, b.election.Key())
		call := b.waits(t, ctx, b.election, "again", 2)
		b.delete(t, string(b.stand(t, 2)[1].Key))
		require.Equal(t, concurrency.ErrSessionExpired, call.Wait(t))
		require.Empty(t, b.election.Key())
		b.leads(t, rival, "rival")
	})
}

// The figures are exact, on a server on which nothing else happens.
func TestElectionCosts(t *testing.T) {
	t.Parallel()
	ctx, b := t.Context(), newBallot(t, etcdtest.New(t))
	costs := func(what string, calls int, call func() error) {
		t.Helper()
		b.faults.Reset()
		require.NoError(t, call(), what)
		require.Equal(t, calls, b.faults.KV(), "%s made %v", what, b.faults)
	}
	costs("Campaign without a rival", 1, func() error { return b.election.Campaign(ctx, "v") })
	require.Zero(t, b.faults.Count(fault.Watch))
	costs("Campaign of a leader with the same value", 1, func() error { return b.election.Campaign(ctx, "v") })
	costs("Campaign of a leader with another value", 2, func() error { return b.election.Campaign(ctx, "w") })
	costs("Proclaim", 1, func() error { return b.election.Proclaim(ctx, "x") })
	costs("Leader", 1, func() error { _, err := b.election.Leader(ctx); return err })
	costs("Resign", 1, func() error { return b.election.Resign(ctx) })
	costs("Resign of nothing", 0, func() error { return b.election.Resign(ctx) })

	leader := b.rival(t)
	b.wins(t, leader, "leader")
	costs("Campaign that waited for one leader", 1, func() error {
		begun := watchBegins(b.faults)
		call := b.waits(t, ctx, b.election, "v", 2)
		ended(t, begun, "the watch")
		require.NoError(t, leader.Resign(ctx))
		return call.Wait(t)
	})
}

func TestElectionProclaim(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	t.Run("gives the leader's key a new value", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "old")
		require.NoError(t, b.election.Proclaim(ctx, "new"))
		b.leads(t, b.election, "new")
		require.Equal(t, int64(b.session.Lease()), b.head(t, 0).Lease)
	})
	t.Run("ErrElectionNotLeader before any Campaign", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.faults.Reset()
		require.Equal(t, concurrency.ErrElectionNotLeader, b.election.Proclaim(ctx, "v"))
		require.Zero(t, b.faults.KV())
	})
	t.Run("ErrElectionNotLeader by a candidate that waits", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.rival(t), "leader")
		b.waits(t, ctx, b.election, "waits", 2)
		require.Equal(t, concurrency.ErrElectionNotLeader, b.election.Proclaim(ctx, "new"))
		require.Equal(t, "waits", string(b.stand(t, 2)[1].Value))
	})
	t.Run("ErrElectionNotLeader every time after the loss", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "v")
		b.delete(t, b.election.Key())
		for range 3 {
			require.Equal(t, concurrency.ErrElectionNotLeader, b.election.Proclaim(ctx, "new"))
		}
		require.Empty(t, b.election.Key())
		b.stand(t, 0)
	})
	t.Run("ErrElectionNotLeader after the loss of the lease", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "v")
		revoke(t, b.outside, b.session)
		require.Equal(t, concurrency.ErrElectionNotLeader, b.election.Proclaim(ctx, "new"))
		require.Equal(t, concurrency.ErrElectionNotLeader, b.election.Proclaim(ctx, "new"))
	})
	t.Run("ErrElectionNotLeader when another life of the key leads", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "v")
		b.delete(t, b.election.Key())
		twin := b.handle()
		b.wins(t, twin, "twin")
		require.Equal(t, concurrency.ErrElectionNotLeader, b.election.Proclaim(ctx, "new"))
		b.leads(t, twin, "twin")
	})
	t.Run("ctx's error, and the leadership stays", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "v")
		require.Equal(t, context.Canceled, b.election.Proclaim(cancelled(), "new"))
		expired, cancel := context.WithDeadline(ctx, time.Unix(0, 0))
		defer cancel()
		require.Equal(t, context.DeadlineExceeded, b.election.Proclaim(expired, "new"))
		b.leads(t, b.election, "v")
	})
	t.Run("is not repeated", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "v")
		b.faults.Reset()
		b.faults.LoseAnswer(fault.Txn, 1, nil)
		require.Equal(t, fault.ErrLostAnswer, b.election.Proclaim(ctx, "new"))
		require.Equal(t, 1, b.faults.KV())
		b.leads(t, b.election, "new")
		b.faults.Refuse(fault.Txn, 1, codes.Unavailable, "etcdserver: no leader")
		require.Equal(t, rpctypes.ErrNoLeader, b.election.Proclaim(ctx, "newer"))
		b.leads(t, b.election, "new")
		require.NoError(t, b.election.Proclaim(ctx, "newer"))
	})
}

func TestElectionResign(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	t.Run("the next candidate leads", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "v")
		next := b.rival(t)
		call := b.waits(t, ctx, next, "next", 2)
		require.True(t, call.Running())
		require.NoError(t, b.election.Resign(ctx))
		require.NoError(t, call.Wait(t))
		b.leads(t, next, "next")
		require.Empty(t, b.election.Key())
		require.Zero(t, b.election.Rev())
		require.Equal(t, concurrency.ErrElectionNotLeader, b.election.Proclaim(ctx, "v"))
	})
	t.Run("nil if this handle does not lead", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "v")
		require.NoError(t, b.handle().Resign(ctx))
		require.NoError(t, b.rival(t).Resign(ctx))
		b.leads(t, b.election, "v")
	})
	t.Run("nil if it does not lead any more, and touches nobody", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "v")
		b.delete(t, b.election.Key())
		twin := b.handle()
		b.wins(t, twin, "twin")
		require.NoError(t, b.election.Resign(ctx))
		require.Empty(t, b.election.Key())
		b.leads(t, twin, "twin")
	})
	t.Run("nil if the session is closed", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "v")
		header := b.election.Header()
		require.NoError(t, b.session.Close())
		require.NoError(t, b.election.Resign(ctx))
		require.Equal(t, header, b.election.Header(), "no answer ended the leadership")
	})
	t.Run("is repeated over transient faults", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "v")
		b.faults.Reset()
		b.faults.Refuse(fault.Txn, 2, codes.Unavailable, "etcdserver: leader changed")
		b.faults.LoseAnswer(fault.Txn, 3, nil)
		require.NoError(t, b.election.Resign(ctx))
		require.Equal(t, 4, b.faults.KV())
		b.stand(t, 0)
	})
	t.Run("ctx's error, after which it can be repeated", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "v")
		require.Equal(t, context.Canceled, b.election.Resign(cancelled()))
		b.stand(t, 0) // the deletion went on
		require.NoError(t, b.election.Resign(ctx))

		b.wins(t, b.election, "v")
		gate := b.faults.HoldAnswer(fault.Txn, 1)
		under, cancel := context.WithCancel(ctx)
		call := etcdtest.Go(func() error { return b.election.Resign(under) })
		ended(t, gate.Reached(), "the deletion is answered")
		cancel()
		require.Equal(t, context.Canceled, call.Wait(t))
		b.stand(t, 0)
		require.NoError(t, b.election.Resign(ctx))
		require.Empty(t, b.election.Key())
	})
	t.Run("etcd's error, after which it can be repeated", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "v")
		b.faults.Refuse(fault.Txn, 1, codes.PermissionDenied, "etcdserver: permission denied")
		b.faults.Hold(fault.Txn, 2) // that of the clean-up
		key, rev := b.election.Key(), b.election.Rev()
		require.Equal(t, rpctypes.ErrPermissionDenied, b.election.Resign(ctx))
		kv := b.head(t, 0)
		require.Equal(t, key, string(kv.Key))
		require.Equal(t, rev, kv.CreateRevision)
		require.Empty(t, b.election.Key(), "whoever has begun to resign does not lead")
		require.NoError(t, b.election.Resign(ctx))
		b.stand(t, 0)
	})
}

func TestElectionLeader(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	t.Run("the leader's key and value, not a candidate's", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		leader := b.rival(t)
		b.wins(t, leader, "leader")
		b.waits(t, ctx, b.election, "waits", 2)
		resp, err := b.election.Leader(ctx)
		require.NoError(t, err)
		require.Len(t, resp.Kvs, 1)
		require.Equal(t, leader.Key(), string(resp.Kvs[0].Key))
		require.Equal(t, "leader", string(resp.Kvs[0].Value))
	})
	t.Run("ErrElectionNoLeader when nobody leads", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		resp, err := b.election.Leader(ctx)
		require.Equal(t, concurrency.ErrElectionNoLeader, err)
		require.Nil(t, resp)
	})
	t.Run("other errors are ctx's and etcd's", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		_, err := b.election.Leader(cancelled())
		require.Equal(t, context.Canceled, err)
		b.faults.Refuse(fault.Get, 1, codes.PermissionDenied, "etcdserver: permission denied")
		_, err = b.election.Leader(ctx)
		require.Equal(t, rpctypes.ErrPermissionDenied, err)
	})
}

func TestElectionHeader(t *testing.T) {
	t.Parallel()
	ctx, b := t.Context(), newBallot(t, server(t))
	require.Nil(t, b.election.Header())
	rev := int64(0)
	advances := func(what string, err error) {
		t.Helper()
		require.NoError(t, err, what)
		require.Greater(t, b.election.Header().Revision, rev, what)
		rev = b.election.Header().Revision
	}
	advances("Campaign", b.election.Campaign(ctx, "a"))
	require.Equal(t, b.election.Rev(), rev)
	advances("Campaign again", b.election.Campaign(ctx, "b"))
	advances("Proclaim", b.election.Proclaim(ctx, "c"))
	require.Equal(t, b.head(t, 0).ModRevision, rev)
	_, err := b.election.Leader(ctx)
	require.NoError(t, err)
	require.Equal(t, rev, b.election.Header().Revision, "Leader is not an answer to this handle's leadership")
	advances("Resign", b.election.Resign(ctx))
	require.NoError(t, b.election.Resign(ctx))
	require.Equal(t, rev, b.election.Header().Revision)
}

func TestResumeElection(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	t.Run("leads already, and makes no call", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "v")
		b.faults.Reset()
		e := concurrency.ResumeElection(b.session, b.name, b.election.Key(), b.election.Rev())
		require.Equal(t, "no calls", b.faults.String())
		require.Equal(t, b.election.Key(), e.Key())
		require.Equal(t, b.election.Rev(), e.Rev())
		require.Nil(t, e.Header())
		require.NoError(t, e.Proclaim(ctx, "w"))
		b.leads(t, b.election, "w")
		require.NoError(t, e.Resign(ctx))
		b.stand(t, 0)
	})
	t.Run("in a process that was restarted and kept its lease", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "v")
		call := b.waits(t, ctx, b.rival(t), "rival", 2)
		b.session.Orphan()
		s := session(t, b.outside, concurrency.WithLease(b.session.Lease()))
		e := concurrency.ResumeElection(s, b.name, b.election.Key(), b.election.Rev())
		b.wins(t, e, "w")
		b.leads(t, e, "w")
		require.Equal(t, b.election.Rev(), e.Rev())
		require.True(t, call.Running())
		require.NoError(t, e.Resign(ctx))
		require.NoError(t, call.Wait(t))
	})
	t.Run("with a dead ticket, which the next Proclaim shows", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "v")
		key, rev := b.election.Key(), b.election.Rev()
		require.NoError(t, b.election.Resign(ctx))
		b.wins(t, b.election, "v") // another life of the same key
		e := concurrency.ResumeElection(b.session, b.name, key, rev)
		require.Equal(t, concurrency.ErrElectionNotLeader, e.Proclaim(ctx, "w"))
		require.Empty(t, e.Key())
		require.NoError(t, concurrency.ResumeElection(b.session, b.name, key, rev).Resign(ctx))
		b.leads(t, b.election, "v")
	})
	t.Run("without a key or a revision does not lead", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "v")
		for _, e := range []*concurrency.Election{
			concurrency.ResumeElection(b.session, b.name, "", b.election.Rev()),
			concurrency.ResumeElection(b.session, b.name, b.election.Key(), 0),
			concurrency.ResumeElection(b.session, b.name, "", 0),
		} {
			require.Empty(t, e.Key())
			require.Zero(t, e.Rev())
			require.Equal(t, concurrency.ErrElectionNotLeader, e.Proclaim(ctx, "w"))
			require.NoError(t, e.Resign(ctx))
			b.leads(t, b.election, "v")
		}
	})
}

// Whatever is resumed, with either form of the name, is the election of that name
// and never the one whose name begins with it.
func TestResumeElectionName(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, form := range []string{"", "/"} {
		for _, key := range []string{"the leader's key", "no key"} {
			t.Run(fmt.Sprintf("the name with %q added and %s", form, key), func(t *testing.T) {
				t.Parallel()
				b := newBallot(t, server(t))
				other := concurrency.NewElection(b.session, b.name+"-2")
				b.wins(t, other, "other")
				b.wins(t, b.election, "v")
				leaderKey, leaderRev := b.election.Key(), b.election.Rev()
				if key == "no key" {
					leaderKey, leaderRev = "", 0
				}
				e := concurrency.ResumeElection(b.session, b.name+form, leaderKey, leaderRev)
				resp, err := e.Leader(ctx)
				require.NoError(t, err)
				require.Equal(t, b.election.Key(), string(resp.Kvs[0].Key))
				b.wins(t, e, "w")
				require.Equal(t, b.election.Key(), e.Key())
				b.leads(t, b.election, "w")
				require.NoError(t, e.Resign(ctx))
				_, err = e.Leader(ctx)
				require.Equal(t, concurrency.ErrElectionNoLeader, err)
			})
		}
	}
}

// observe is what e observes until the test ends.
func observe(tb testing.TB, e *concurrency.Election) <-chan *clientv3.GetResponse {
	tb.Helper()
	observed := e.Observe(tb.Context()) // which ends before the clean-ups
	tb.Cleanup(func() { closes(tb, observed) })
	return observed
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

func TestElectionObserve(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	t.Run("the present leader first, then each change in order", func(t *testing.T) {
		t.Parallel()
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
	})
	t.Run("when nobody leads, waits for a leader", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		observed := observe(t, b.election)
		etcdtest.Eventually(t, func() bool { return b.faults.Count(fault.Watch) == 1 }, "it watches")
		b.wins(t, b.election, "first")
		require.Empty(t, b.until(t, observed, "first"))
		require.NoError(t, b.election.Resign(ctx))
		b.wins(t, b.election, "second") // the same key, another life
		require.Empty(t, b.until(t, observed, "second"), "that nobody leads is not told")
	})
	t.Run("candidates are not delivered", func(t *testing.T) {
		t.Parallel()
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
	})
	t.Run("the next one when a leader is deleted by hand", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "leader")
		observed := observe(t, b.election)
		require.Empty(t, b.until(t, observed, "leader"))
		rival := b.rival(t)
		call := b.waits(t, ctx, rival, "rival", 2)
		b.delete(t, b.election.Key())
		require.Empty(t, b.until(t, observed, "rival"))
		require.NoError(t, call.Wait(t))
	})
	t.Run("a leader whose key was deleted and put again between two looks", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "leader")
		observed := observe(t, b.election)
		require.Empty(t, b.until(t, observed, "leader"))
		b.delete(t, b.election.Key())
		b.wins(t, b.handle(), "again")
		require.Empty(t, b.until(t, observed, "again"))
	})
	t.Run("a slow reader misses some, never the latest", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "leader")
		slow, quick := observe(t, b.election), observe(t, b.election)
		require.Empty(t, b.until(t, slow, "leader"))
		const changes = 50
		for i := range changes {
			require.NoError(t, b.election.Proclaim(ctx, strconv.Itoa(i)))
		}
		last := strconv.Itoa(changes - 1)
		b.until(t, quick, last) // so that the changes have arrived
		require.Less(t, len(b.until(t, slow, last)), changes/2)
	})
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
