package concurrency_test

import (
	"context"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// Two handles of one session have one place in line.

func TestHandlesOfOneSessionOfWhichOneWaitsAndOneGivesUp(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	held := l.held(t)
	call := l.waiting(t, ctx, l.mutex, 2)
	short, cancel := context.WithCancel(ctx)
	other := l.waiting(t, short, l.handle(), 2)
	cancel()
	require.Equal(t, context.Canceled, other.Wait(t))
	l.stand(t, 2)
	require.NoError(t, held.Unlock(ctx))
	require.NoError(t, call.Wait(t))
	require.True(t, l.owns(t, l.mutex))
}

func TestHandlesOfOneSessionThatBothGiveUp(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.held(t)
	short, cancel := context.WithCancel(t.Context())
	one := l.waiting(t, short, l.mutex, 2)
	other := l.waiting(t, short, l.handle(), 2)
	cancel()
	require.Equal(t, context.Canceled, one.Wait(t))
	require.Equal(t, context.Canceled, other.Wait(t))
	l.stand(t, 1)
}

func TestHandlesOfOneSessionOfWhichOneHoldsAndOneGivesUp(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	require.NoError(t, l.mutex.Lock(ctx))
	require.Equal(t, context.Canceled, l.handle().Lock(cancelled()))
	l.givesUp(t, 1, l.handle().Lock)
	require.True(t, l.owns(t, l.mutex))
}

// Who waits draws a new ticket.
func TestHandlesOfOneSessionOfWhichOneReleasesAndOneStillWaits(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	held := l.held(t)
	waits := l.waiting(t, ctx, l.mutex, 2)
	broken := l.faults.BreakWatch(1, nil)
	sibling := l.handle()
	other := l.waiting(t, ctx, sibling, 2)
	look := l.faults.Hold(fault.Get, 1)
	broken.Open()
	ended(t, look.Reached(), "the sibling is about to look")
	require.NoError(t, held.Unlock(ctx))
	require.NoError(t, waits.Wait(t))
	require.NoError(t, l.mutex.Unlock(ctx))
	look.Open()
	require.NoError(t, other.Wait(t))
	require.True(t, l.owns(t, sibling))
	l.stand(t, 1)
}

// Who joins draws a new ticket.
func TestHandlesOfOneSessionOfWhichOneReleasesAndOneJoins(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t, concurrency.WithTTL(600)) // after a third of it the release is sent again
	require.NoError(t, l.mutex.Lock(ctx))
	old := l.mutex.IsOwner()
	sibling := l.handle()
	join := l.faults.HoldAnswer(fault.Txn, 1) // finds the key
	call := etcdtest.Go(func() error { return sibling.Lock(ctx) })
	ended(t, join.Reached(), "the join")
	removal := l.faults.Hold(fault.Txn, 1)
	release := etcdtest.Go(func() error { return l.mutex.Unlock(ctx) })
	ended(t, removal.Reached(), "the release")
	join.Open()
	require.NoError(t, call.Wait(t))
	removal.Open()
	require.NoError(t, release.Wait(t))
	require.True(t, l.owns(t, sibling))
	resp, err := l.outside.Txn(ctx).If(old).Commit()
	require.NoError(t, err)
	require.False(t, resp.Succeeded)
}

// One that gives up leaves the key to another handle of the session, which is about to
// join and fails without ever having seen it.
func TestATicketLeftToASibling(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.held(t)
	giveUp, cancel := context.WithCancel(t.Context())
	first := l.waiting(t, giveUp, l.mutex, 2)
	gate := l.faults.Hold(fault.Txn, 1)
	l.faults.Refuse(fault.Txn, 1, codes.PermissionDenied, "etcdserver: permission denied")
	second := etcdtest.Go(func() error { return l.handle().Lock(t.Context()) })
	ended(t, gate.Reached(), "the sibling joins")
	cancel()
	require.Equal(t, context.Canceled, first.Wait(t))
	l.stand(t, 2)
	gate.Open()
	require.Equal(t, rpctypes.ErrPermissionDenied, second.Wait(t))
	l.stand(t, 1)
}

// Two handles of a session own by one ticket. The deletion is known here before it is sent.
func TestCtxEndsWhenASiblingReleases(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		l, h := taken(t, kind)
		sibling := kind(l.session, l.name)
		require.NoError(t, sibling.take(t.Context()))
		ctx := h.Ctx()
		sent := l.faults.Hold(fault.Txn, 1)
		call := etcdtest.Go(func() error { return sibling.giveBack(t.Context()) })
		ended(t, sent.Reached(), "the deletion is about to be sent")
		require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
		l.stand(t, 1)
		sent.Open()
		require.NoError(t, call.Wait(t))
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
