package concurrency_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
	"example.com/etcd/concurrency/internal/virtual"
)

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

func TestElectionCampaignMakesACandidateWithTheValue(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := newBallot(t, server(t))
	b.wins(t, b.rival(t), "first")
	call := b.waits(t, ctx, b.election, "second", 2)
	kv := b.stand(t, 2)[1]
	require.Equal(t, "second", string(kv.Value))
	require.Equal(t, int64(b.session.Lease()), kv.Lease)
	require.NoError(t, b.session.Close())
	require.Equal(t, concurrency.ErrSessionExpired, call.Wait(t))
}

func TestElectionCandidatesLeadInTheOrderInWhichTheyCame(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
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
}

func TestElectionCampaignThatLeavesTheMiddleLetsNobodyPast(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
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
}

func TestElectionCampaignLedAtTheRevisionOfItsHeader(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := newBallot(t, server(t))
	leader := b.rival(t)
	b.wins(t, leader, "leader")
	call := b.waits(t, ctx, b.election, "next", 2)
	require.NoError(t, leader.Resign(ctx))
	require.NoError(t, call.Wait(t))
	rev := b.election.Header().Revision
	require.GreaterOrEqual(t, rev, leader.Header().Revision, "Resign's")
	require.Equal(t, b.election.Key(), string(b.head(t, rev).Key))
}

func TestElectionCampaignRidesOutTransientFaults(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := newBallot(t, server(t))
	b.faults.Refuse(fault.Txn, 2, codes.Unavailable, "etcdserver: leader changed")
	b.faults.LoseAnswer(fault.Txn, 3, nil)
	b.wins(t, b.election, "v")
	b.leads(t, b.election, "v")
	require.NoError(t, b.election.Proclaim(ctx, "w"))
}

func TestElectionCampaignAgainByALeaderChangesTheValueAlone(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
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
}

func TestElectionCampaignAgainByOneThatWaitsChangesTheValueAlone(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
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
}

func TestElectionCampaignAgainWithTheSameValueWritesNothing(t *testing.T) {
	t.Parallel()
	b := newBallot(t, server(t))
	b.wins(t, b.election, "same")
	b.wins(t, b.election, "same")
	require.EqualValues(t, 1, b.head(t, 0).Version)
}

func TestElectionCampaignAgainThatFailsEndsNoLeadership(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
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
}

func TestElectionCampaignAgainThatFailsEndsNoResumedLeadership(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := newBallot(t, server(t))
	b.wins(t, b.election, "old")
	s := session(t, b.outside, concurrency.WithLease(b.session.Lease()))
	e := concurrency.ResumeElection(s, b.name, b.election.Key(), b.election.Rev())
	require.Equal(t, context.Canceled, e.Campaign(cancelled(), "new"))
	require.NoError(t, e.Proclaim(ctx, "newer"))
	b.leads(t, e, "newer")
}

func TestElectionCampaignAgainAfterAFailedResignDrawsANewTicket(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
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
}

// A write of Campaign's that comes late finds that somebody has written since.
func TestElectionCampaignAgainComesLate(t *testing.T) {
	t.Parallel()
	b := &ballot{name: prefix(t), client: client(t), outside: client(t)}
	kv := &late{KV: b.client.KV, err: rpctypes.ErrLeaderChanged}
	b.client.KV = kv
	b.faults = counted(t, b.client)
	b.session = session(t, b.client)
	b.election = b.handle()
	b.wins(t, b.election, "first")
	b.faults.After(fault.Txn, 1, func(error) {
		kv.mu.Lock()
		defer kv.mu.Unlock()
		kv.next = true // of the call that gives the key its value
	})
	b.wins(t, b.election, "second")
	require.True(t, kv.sent())
	require.NoError(t, b.election.Proclaim(t.Context(), "third"))
	kv.land(t)
	b.leads(t, b.election, "third")
}

// candidacy is a ballot whose election waits behind a leader.
func candidacy(t *testing.T, ctx context.Context) (b *ballot, leader *concurrency.Election, call *etcdtest.Call) {
	t.Helper()
	b = newBallot(t, server(t))
	leader = b.rival(t)
	b.wins(t, leader, "leader")
	return b, leader, b.waits(t, ctx, b.election, "waits", 2)
}

func TestElectionCampaignFailsWithItsContextAndWithdraws(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	under, cancel := context.WithCancel(ctx)
	b, _, call := candidacy(t, under)
	require.Empty(t, b.election.Key(), "nothing is led while it waits")
	require.Zero(t, b.election.Rev())
	require.Nil(t, b.election.Header())
	cancel()
	require.Equal(t, context.Canceled, call.Wait(t))
	b.stand(t, 1)
	require.Empty(t, b.election.Key())
	require.NoError(t, b.election.Resign(ctx))
}

func TestElectionCampaignFailsWhenItsKeyIsDeleted(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b, leader, call := candidacy(t, ctx)
	b.delete(t, string(b.stand(t, 2)[1].Key))
	require.Equal(t, concurrency.ErrSessionExpired, call.Wait(t))
	b.leads(t, leader, "leader")
}

func TestElectionCampaignFailsWhenItsLeaseIsRevoked(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b, leader, call := candidacy(t, ctx)
	revoke(t, b.outside, b.session)
	require.Equal(t, concurrency.ErrSessionExpired, call.Wait(t))
	third := b.rival(t)
	next := b.waits(t, ctx, third, "third", 2)
	require.NoError(t, leader.Resign(ctx))
	require.NoError(t, next.Wait(t))
	b.leads(t, third, "third")
	require.Empty(t, b.election.Key())
}

func TestElectionCampaignFailsWhenItsLeaseWasGoneBefore(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := newBallot(t, server(t))
	require.NoError(t, b.session.Close())
	require.Equal(t, rpctypes.ErrLeaseNotFound, b.election.Campaign(ctx, "v"))

	unaware := session(t, b.outside)
	revoke(t, b.outside, unaware)
	e := concurrency.NewElection(unaware, b.name)
	require.Equal(t, rpctypes.ErrLeaseNotFound, e.Campaign(ctx, "v"))
	b.stand(t, 0)
}

func TestElectionCampaignFailsWithAPermanentErrorAndWithdraws(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
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
}

func TestElectionCampaignFailsWithoutAnAnswerAndWithdraws(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := newBallot(t, server(t))
	gate := b.faults.HoldAnswer(fault.Txn, 1)
	under, cancel := context.WithCancel(ctx)
	call := etcdtest.Go(func() error { return b.election.Campaign(under, "v") })
	ended(t, gate.Reached(), "the key is put")
	b.stand(t, 1)
	cancel()
	require.Equal(t, context.Canceled, call.Wait(t))
	b.stand(t, 0)
}

func TestElectionCampaignOfALeaderWhoseKeyWasDeletedDrawsANewTicket(t *testing.T) {
	t.Parallel()
	b := newBallot(t, server(t))
	b.wins(t, b.election, "v")
	rev := b.election.Rev()
	b.delete(t, b.election.Key())
	b.wins(t, b.election, "v")
	require.Greater(t, b.election.Rev(), rev)
}

func TestElectionCampaignFailsIfALeaderWaitsAgainAndLosesItsKey(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := newBallot(t, server(t))
	b.wins(t, b.election, "v")
	rival := b.rival(t)
	rivals := b.waits(t, ctx, rival, "rival", 2)
	b.delete(t, b.election.Key())
	call := b.waits(t, ctx, b.election, "again", 2)
	b.delete(t, string(b.stand(t, 2)[1].Key))
	require.Equal(t, concurrency.ErrSessionExpired, call.Wait(t))
	require.Empty(t, b.election.Key())
	require.NoError(t, rivals.Wait(t))
	b.leads(t, rival, "rival")
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
		begun := watchBegins(b.faults, 1)
		call := b.waits(t, ctx, b.election, "v", 2)
		ended(t, begun, "the watch")
		require.NoError(t, leader.Resign(ctx))
		return call.Wait(t)
	})
}

func TestElectionProclaimGivesTheLeadersKeyANewValue(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := newBallot(t, server(t))
	b.wins(t, b.election, "old")
	require.NoError(t, b.election.Proclaim(ctx, "new"))
	b.leads(t, b.election, "new")
	require.Equal(t, int64(b.session.Lease()), b.head(t, 0).Lease)
}

func TestElectionProclaimFailsBeforeAnyCampaign(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := newBallot(t, server(t))
	b.faults.Reset()
	require.Equal(t, concurrency.ErrElectionNotLeader, b.election.Proclaim(ctx, "v"))
	require.Zero(t, b.faults.KV())
}

func TestElectionProclaimFailsWhileTheCandidateWaits(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := newBallot(t, server(t))
	b.wins(t, b.rival(t), "leader")
	b.waits(t, ctx, b.election, "waits", 2)
	require.Equal(t, concurrency.ErrElectionNotLeader, b.election.Proclaim(ctx, "new"))
	require.Equal(t, "waits", string(b.stand(t, 2)[1].Value))
}

func TestElectionProclaimFailsEveryTimeAfterTheLossOfTheKey(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := newBallot(t, server(t))
	b.wins(t, b.election, "v")
	b.delete(t, b.election.Key())
	for range 3 {
		require.Equal(t, concurrency.ErrElectionNotLeader, b.election.Proclaim(ctx, "new"))
	}
	require.Empty(t, b.election.Key())
	b.stand(t, 0)
}

func TestElectionProclaimFailsAfterTheLossOfTheLease(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := newBallot(t, server(t))
	b.wins(t, b.election, "v")
	revoke(t, b.outside, b.session)
	require.Equal(t, concurrency.ErrElectionNotLeader, b.election.Proclaim(ctx, "new"))
	require.Equal(t, concurrency.ErrElectionNotLeader, b.election.Proclaim(ctx, "new"))
}

func TestElectionProclaimFailsWhenAnotherLifeOfTheKeyLeads(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := newBallot(t, server(t))
	b.wins(t, b.election, "v")
	b.delete(t, b.election.Key())
	twin := b.handle()
	b.wins(t, twin, "twin")
	require.Equal(t, concurrency.ErrElectionNotLeader, b.election.Proclaim(ctx, "new"))
	b.leads(t, twin, "twin")
}

func TestElectionProclaimWithAnEndedContextEndsNoLeadership(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := newBallot(t, server(t))
	b.wins(t, b.election, "v")
	require.Equal(t, context.Canceled, b.election.Proclaim(cancelled(), "new"))
	expired, cancel := context.WithDeadline(ctx, time.Unix(0, 0))
	defer cancel()
	require.Equal(t, context.DeadlineExceeded, b.election.Proclaim(expired, "new"))
	b.leads(t, b.election, "v")
}

func TestElectionProclaimIsNotRepeated(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
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
}

func TestElectionResignLetsTheNextCandidateLead(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
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
}

func TestElectionResignOfAHandleThatDoesNotLead(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := newBallot(t, server(t))
	b.wins(t, b.election, "v")
	require.NoError(t, b.handle().Resign(ctx))
	require.NoError(t, b.rival(t).Resign(ctx))
	b.leads(t, b.election, "v")
}

func TestElectionResignAfterTheLossTouchesNobody(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := newBallot(t, server(t))
	b.wins(t, b.election, "v")
	b.delete(t, b.election.Key())
	twin := b.handle()
	b.wins(t, twin, "twin")
	require.NoError(t, b.election.Resign(ctx))
	require.Empty(t, b.election.Key())
	b.leads(t, twin, "twin")
}

func TestElectionResignAfterTheSessionIsClosed(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := newBallot(t, server(t))
	b.wins(t, b.election, "v")
	header := b.election.Header()
	require.NoError(t, b.session.Close())
	require.NoError(t, b.election.Resign(ctx))
	require.Equal(t, header, b.election.Header(), "no answer ended the leadership")
}

func TestElectionResignRepeatsOverTransientFaults(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := newBallot(t, server(t))
	b.wins(t, b.election, "v")
	b.faults.Reset()
	b.faults.Refuse(fault.Txn, 2, codes.Unavailable, "etcdserver: leader changed")
	b.faults.LoseAnswer(fault.Txn, 3, nil)
	require.NoError(t, b.election.Resign(ctx))
	require.Equal(t, 4, b.faults.KV())
	b.stand(t, 0)
}

func TestElectionResignThatWasGivenUpCanBeRepeated(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
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
}

func TestElectionResignThatWasRefusedCanBeRepeated(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
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
	b.faults.Reset()
	again := etcdtest.Go(func() error { return b.election.Campaign(ctx, "again") })
	require.NoError(t, again.Wait(t))
	require.Equal(t, 2, b.faults.KV(), "the join shows that the ticket is the head, and the value is written")
	require.True(t, call.Running())
	require.NoError(t, b.election.Resign(ctx))
	require.NoError(t, call.Wait(t))
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

// The deletion of the earlier ticket is answered when the handle leads by a newer one.
func TestALateAnswerToResignIsNotOfTheNewTerm(t *testing.T) {
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		t, c, _ := remote(b)
		outside, _ := b.Client("outside")
		ctx, f := t.Context(), counted(t, c)
		e := concurrency.NewElection(session(t, c), "team")
		rival := concurrency.NewElection(session(t, outside), "team")
		require.NoError(t, e.Campaign(ctx, "one"))
		gate := f.Hold(fault.Txn, 1)
		resign := etcdtest.Go(func() error { return e.Resign(ctx) })
		<-gate.Reached()
		require.NoError(t, e.Campaign(ctx, "two"))
		_, err := outside.Delete(ctx, e.Key()) // by a stranger
		require.NoError(t, err)
		gate.Open()
		require.NoError(t, resign.Wait(t))
		term := e.Ctx() // watches from the revision of the campaign on
		require.NoError(t, rival.Campaign(ctx, "rival"))
		b.Sleep(time.Second)
		require.ErrorIs(t, context.Cause(term), concurrency.ErrKeyDeleted)
		require.NoError(t, e.Resign(ctx))
		require.NoError(t, rival.Resign(ctx))
	})
}
