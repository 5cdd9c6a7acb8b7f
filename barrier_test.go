package concurrency_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
	"example.com/etcd/concurrency/internal/virtual"
)

// yard is a double barrier in virtual time, and its participants.
type yard struct {
	t    *testing.T
	b    *virtual.Bubble
	name string
	n    int
}

type participant struct {
	*concurrency.DoubleBarrier

	session *concurrency.Session
	client  *clientv3.Client
	faults  *fault.Faults
	net     *virtual.Network
}

func (y *yard) participant() participant {
	y.t.Helper()
	c, net := y.b.Client(fmt.Sprint("client ", prefixes.Add(1)))
	f := counted(y.t, c)
	s := session(y.t, c, concurrency.WithTTL(5))
	return participant{concurrency.NewDoubleBarrier(s, y.name, y.n), s, c, f, net}
}

func (y *yard) participants(n int) (all []participant) {
	for range n {
		all = append(all, y.participant())
	}
	return all
}

// enter starts an Enter.
func (p participant) enter(ctx context.Context) *etcdtest.Call {
	call := etcdtest.Go(func() error { return p.Enter(ctx) })
	return call
}

func (p participant) leave(ctx context.Context) *etcdtest.Call {
	return etcdtest.Go(func() error { return p.Leave(ctx) })
}

// stand waits until n keys stand at the barrier.
func (y *yard) stand(c *clientv3.Client, n int) {
	y.t.Helper()
	etcdtest.WaitKeys(y.t, c, y.name+"/waiters/", n)
}

// inYard runs tests of a double barrier for n, one after the other, in one piece of virtual time.
func inYard(t *testing.T, n int, tests ...func(y *yard)) {
	t.Helper()
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		for i, test := range tests {
			test(&yard{b.T(), b, fmt.Sprint("yard ", i), n})
		}
	})
}

func (y *yard) blocked(calls ...*etcdtest.Call) {
	y.t.Helper()
	<-time.After(time.Second) // of virtual time: all that can happen has happened
	synctest.Wait()
	for _, call := range calls {
		require.True(y.t, call.Running())
	}
}

func (y *yard) returned(calls ...*etcdtest.Call) {
	y.t.Helper()
	for _, call := range calls {
		require.NoError(y.t, call.Wait(y.t))
	}
}

func TestDoubleBarrier(t *testing.T) {
	inYard(t, 3,
		(*yard).togetherAgainAndAgain,
		(*yard).moreThanN,
		(*yard).slowToBeginTheNextRound,
		(*yard).quickAndSlow,
	)
}

// togetherAgainAndAgain has all go in together and out together, again and again, at a price.
func (y *yard) togetherAgainAndAgain() {
	all := y.participants(3)
	ctx := y.t.Context()
	for round := range 3 {
		for _, p := range all {
			p.faults.Reset()
		}
		one := all[0].enter(ctx)
		y.blocked(one)
		two := all[1].enter(ctx)
		y.blocked(one, two)
		require.Equal(y.t, concurrency.ErrHeld, all[0].Enter(ctx))
		require.NoError(y.t, all[0].Leave(ctx), "who is not inside has nothing to leave")
		y.returned(all[2].enter(ctx), one, two)
		require.Equal(y.t, concurrency.ErrHeld, all[0].Enter(ctx))
		require.Equal(y.t, 4, all[0].faults.KV(), "round %d: %v", round, all[0].faults)
		require.Equal(y.t, 3, all[2].faults.KV(), "round %d: %v", round, all[2].faults)
		one = all[1].leave(ctx)
		y.blocked(one)
		two = all[2].leave(ctx)
		y.blocked(one, two)
		y.returned(all[0].leave(ctx), one, two)
		require.NoError(y.t, all[0].Leave(ctx))
	}
	require.Len(y.t, etcdtest.Keys(y.t, all[0].client, y.name+"/"), 1, "the key that says who was inside")
}

// moreThanN shows that the first n come in, and the others wait for the next round.
func (y *yard) moreThanN() {
	all := y.participants(6)
	ctx := y.t.Context()
	var calls []*etcdtest.Call
	for i, p := range all[:5] {
		calls = append(calls, p.enter(ctx))
		y.stand(p.client, i+1)
	}
	y.returned(calls[:3]...)
	y.blocked(calls[3], calls[4])
	one, two := all[0].leave(ctx), all[1].leave(ctx)
	y.blocked(one, two, calls[3], calls[4])
	six := all[5].enter(ctx)
	y.blocked(one, two, calls[3], calls[4], six)
	y.returned(all[2].leave(ctx), one, two, calls[3], calls[4], six)
	y.returned(all[3].leave(ctx), all[4].leave(ctx), all[5].leave(ctx))
}

// slowToBeginTheNextRound shows that the n-th begins the next round, however slow he is.
func (y *yard) slowToBeginTheNextRound() {
	all := y.participants(7)
	ctx, cancel := context.WithCancel(y.t.Context())
	defer cancel()
	var calls []*etcdtest.Call
	for i, p := range all {
		calls = append(calls, p.enter(ctx))
		y.stand(p.client, i+1)
	}
	y.returned(calls[:3]...)
	y.blocked(calls[3:]...)
	slow := all[5].faults.Hold(fault.Txn, 1)
	y.returned(all[0].leave(ctx), all[1].leave(ctx), all[2].leave(ctx))
	ended(y.t, slow.Reached(), "he is about to begin it")
	y.blocked(calls[3:]...)
	slow.Open()
	y.returned(calls[3:6]...)
	y.blocked(calls[6])
	y.returned(all[3].leave(ctx), all[4].leave(ctx), all[5].leave(ctx))
	cancel()
	require.Equal(y.t, context.Canceled, calls[6].Wait(y.t))
}

// quickAndSlow shows that a quick one that is back before a slow one has looked does not hold him.
func (y *yard) quickAndSlow() {
	all := y.participants(3)
	ctx := y.t.Context()
	y.returned(all[0].enter(ctx), all[1].enter(ctx), all[2].enter(ctx))
	slow := all[0].faults.Hold(fault.Get, 1) // the look of the slow one, after he has left
	one := all[0].leave(ctx)
	ended(y.t, slow.Reached(), "the slow one has left, and is about to look")
	y.returned(all[1].leave(ctx), all[2].leave(ctx))
	two, three := all[1].enter(ctx), all[2].enter(ctx)
	y.stand(all[1].client, 2)
	slow.Open()
	y.returned(one)
	y.returned(all[0].enter(ctx), two, three)
	y.returned(all[0].leave(ctx), all[1].leave(ctx), all[2].leave(ctx))
}

func TestDoubleBarrierAndTheDead(t *testing.T) {
	inYard(t, 2,
		(*yard).deadBeforeAllAreIn,
		(*yard).deadInside,
		(*yard).deadInsideAndToldLater,
		(*yard).notDead,
		(*yard).allDeadInside,
		(*yard).deadBeforeItOpensTheBarrier,
		(*yard).goneBeforeItOpensTheBarrier,
		(*yard).deadByItsKey,
	)
}

// deadBeforeAllAreIn shows that who dies before all are in is not counted.
func (y *yard) deadBeforeAllAreIn() {
	all := y.participants(3)
	ctx := y.t.Context()
	dead := all[0].enter(ctx)
	y.blocked(dead)
	require.NoError(y.t, all[0].session.Close())
	require.Equal(y.t, concurrency.ErrSessionExpired, dead.Wait(y.t))
	one := all[1].enter(ctx)
	y.blocked(one)
	y.returned(all[2].enter(ctx), one)
	y.returned(all[1].leave(ctx), all[2].leave(ctx))
	require.Equal(y.t, rpctypes.ErrLeaseNotFound, all[0].Enter(ctx))
}

// deadInside shows that who dies inside keeps nobody from leaving.
func (y *yard) deadInside() {
	all := y.participants(2)
	ctx := y.t.Context()
	y.returned(all[0].enter(ctx), all[1].enter(ctx))
	one := all[0].leave(ctx)
	y.blocked(one)
	revoke(y.t, all[0].client, all[1].session)
	y.returned(one)
	require.Equal(y.t, concurrency.ErrSessionExpired, all[1].Leave(ctx))
	require.Error(y.t, all[1].session.Ctx().Err())
	require.NoError(y.t, all[1].Leave(ctx), "it is not inside any more")
}

// deadInsideAndToldLater shows that who is dead inside is told so when it asks again.
func (y *yard) deadInsideAndToldLater() {
	all := y.participants(2)
	ctx := y.t.Context()
	y.returned(all[0].enter(ctx), all[1].enter(ctx))
	key := fmt.Sprintf("%s/waiters/%x", y.name, all[1].session.Lease())
	_, err := all[0].client.Delete(ctx, key)
	require.NoError(y.t, err)
	all[1].faults.Hold(fault.TimeToLive, 1)
	bound, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	require.Equal(y.t, context.DeadlineExceeded, all[1].Leave(bound))
	require.Equal(y.t, concurrency.ErrSessionExpired, all[1].Leave(ctx))
	require.NoError(y.t, all[1].session.Ctx().Err())
	require.NoError(y.t, all[1].Leave(ctx), "it is not inside any more")
	y.returned(all[0].leave(ctx))
}

// notDead shows that nobody inside is taken for dead because it leaves twice at once.
func (y *yard) notDead() {
	all := y.participants(2)
	ctx := y.t.Context()
	y.returned(all[0].enter(ctx), all[1].enter(ctx))
	first := all[0].faults.Hold(fault.Txn, 1)
	one := all[0].leave(ctx)
	<-first.Reached()
	two := all[0].leave(ctx)
	y.blocked(one, two)
	y.stand(all[0].client, 1)
	first.Open()
	y.blocked(one, two)
	y.returned(all[1].leave(ctx), one, two)
}

// allDeadInside shows that the next round begins when all of them inside are dead.
func (y *yard) allDeadInside() {
	all := y.participants(2)
	ctx := y.t.Context()
	y.returned(all[0].enter(ctx), all[1].enter(ctx))
	require.NoError(y.t, all[0].session.Close())
	require.NoError(y.t, all[1].session.Close())
	next := y.participants(2)
	one := next[0].enter(ctx)
	y.blocked(one)
	y.returned(next[1].enter(ctx), one)
	y.returned(next[0].leave(ctx), next[1].leave(ctx))
}

// deadBeforeItOpensTheBarrier is of the n-th, which dies before it has opened the barrier.
func (y *yard) deadBeforeItOpensTheBarrier() {
	all := y.participants(3)
	ctx := y.t.Context()
	one := all[0].enter(ctx)
	y.stand(all[0].client, 1)
	opening := all[1].faults.Hold(fault.Txn, 2)
	dead := all[1].enter(ctx)
	ended(y.t, opening.Reached(), "it is about to open the barrier")
	three := all[2].enter(ctx)
	y.stand(all[0].client, 3)
	y.blocked(one, dead, three) // nobody else opens it
	revoke(y.t, all[0].client, all[1].session)
	y.returned(one, three)
	opening.Open()
	require.Equal(y.t, concurrency.ErrSessionExpired, dead.Wait(y.t))
	y.returned(all[0].leave(ctx), all[2].leave(ctx))
}

// The last to come for the second round gives up. Its opening lands after that.
func (y *yard) goneBeforeItOpensTheBarrier() {
	all := y.participants(4)
	ctx := y.t.Context()
	one, two := all[0].enter(ctx), all[1].enter(ctx)
	y.returned(one, two)
	waits := all[2].enter(ctx)
	y.stand(all[0].client, 3)
	kv := &late{KV: all[3].client.KV}
	all[3].client.KV = kv
	short, cancel := context.WithCancel(ctx)
	gone := all[3].enter(short)
	left := all[0].leave(ctx)
	y.blocked(waits, gone, left)
	kv.next = true
	y.returned(all[1].leave(ctx), left)
	etcdtest.Eventually(y.t, kv.sent, "it is about to open the barrier")
	cancel()
	require.Equal(y.t, context.Canceled, gone.Wait(y.t))
	y.stand(all[0].client, 1)
	require.False(y.t, kv.land(y.t).Succeeded)
	y.blocked(waits)
	y.returned(waits, all[0].enter(ctx))
	y.returned(all[2].leave(ctx), all[0].leave(ctx))
}

// deadByItsKey is of one whose key was deleted.
func (y *yard) deadByItsKey() {
	all := y.participants(3)
	ctx := y.t.Context()
	lost := all[0].enter(ctx)
	y.stand(all[0].client, 1)
	_, err := all[1].client.Delete(ctx, y.name+"/waiters/", clientv3.WithPrefix())
	require.NoError(y.t, err)
	require.Equal(y.t, concurrency.ErrSessionExpired, lost.Wait(y.t))
	require.NoError(y.t, all[0].session.Ctx().Err())
	y.returned(all[0].enter(ctx), all[1].enter(ctx))
	y.returned(all[0].leave(ctx), all[1].leave(ctx))
}

func TestDoubleBarrierContexts(t *testing.T) {
	inYard(t, 2, func(y *yard) { // Enter that gives up is not counted, and can be called again
		all := y.participants(2)
		ctx := y.t.Context()
		bound, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		require.Equal(y.t, context.DeadlineExceeded, all[0].Enter(bound))
		require.Empty(y.t, etcdtest.Keys(y.t, all[0].client, y.name+"/waiters/"))
		one := all[1].enter(ctx)
		y.blocked(one)
		y.returned(all[0].enter(ctx), one)
		// Leave that gives up has left, and can be called again.
		bound, cancel = context.WithTimeout(ctx, time.Second)
		defer cancel()
		require.Equal(y.t, context.DeadlineExceeded, all[0].Leave(bound))
		y.stand(all[0].client, 1)
		again := all[0].leave(ctx)
		y.blocked(again)
		y.returned(all[1].leave(ctx), again)
		require.Equal(y.t, context.Canceled, all[0].Enter(cancelled()))
	}, func(y *yard) { // without an answer
		all := y.participants(2)
		ctx := y.t.Context()
		one := all[0].enter(ctx)
		y.stand(all[0].client, 1)
		all[1].faults.LoseAnswer(fault.Txn, 1, rpctypes.ErrTimeout)
		all[1].faults.LoseAnswer(fault.Txn, 3, errors.New("lost")) // of the commit
		y.returned(all[1].enter(ctx), one)
		<-time.After(30 * time.Second) // clean-ups leave those who are inside alone
		y.stand(all[0].client, 2)
		all[1].faults.LoseAnswer(fault.Txn, 1, rpctypes.ErrTimeout)
		y.returned(all[0].leave(ctx), all[1].leave(ctx))
	}, func(y *yard) { // permanent errors
		all := y.participants(1)
		all[0].faults.Refuse(fault.Txn, 1, codes.PermissionDenied, "etcdserver: permission denied")
		require.Equal(y.t, rpctypes.ErrPermissionDenied, all[0].Enter(y.t.Context()))
		all[0].faults.Refuse(fault.Get, 1, codes.PermissionDenied, "etcdserver: permission denied")
		require.Equal(y.t, rpctypes.ErrPermissionDenied, all[0].Enter(y.t.Context()))
		require.Empty(y.t, etcdtest.Keys(y.t, all[0].client, y.name+"/waiters/"))
	}, func(y *yard) { // the client is closed
		all := y.participants(1)
		revokedAtEnd(y.t, y.participant().client, all[0].session.Lease())
		call := all[0].enter(y.t.Context())
		y.blocked(call)
		all[0].client.Close()
		require.Equal(y.t, context.Canceled, call.Wait(y.t))
	})
}

// A watch whose stream is dead holds up who comes, and who leaves, for no longer than the TTL.
func TestDoubleBarrierDoesNotTrustInSilence(t *testing.T) {
	inYard(t, 2, func(y *yard) {
		all := y.participants(2)
		ctx := y.t.Context()
		// late is how long after the one call the other one returns, which has waited by a watch
		// that is dead.
		late := func(wait, end func(context.Context) *etcdtest.Call) time.Duration {
			all[0].net.SetScope(virtual.AllButRenewals)
			all[0].net.Set("stream-dead", 1)
			call := wait(ctx)
			y.blocked(call)
			all[0].net.Set("stream-dead", 0)
			<-time.After(virtual.Longest) // by now it is dead
			y.returned(end(ctx))
			begin := time.Now()
			y.returned(call)
			return time.Since(begin)
		}
		bound := all[0].session.TTL() + time.Second
		require.LessOrEqual(y.t, late(all[0].enter, all[1].enter), bound)
		y.returned(all[1].leave(ctx), all[0].leave(ctx))
		y.returned(all[0].enter(ctx), all[1].enter(ctx))
		require.LessOrEqual(y.t, late(all[0].leave, all[1].leave), bound)
	})
}

func TestDoubleBarrierForMany(t *testing.T) {
	t.Parallel()
	const members, rounds = 5, 6
	c, name := client(t), prefix(t)
	var inside, most atomic.Int64
	var all sync.WaitGroup
	for range members {
		d := concurrency.NewDoubleBarrier(session(t, c), name, members)
		all.Go(func() {
			for round := range int64(rounds) {
				assert.NoError(t, d.Enter(t.Context()))
				n := inside.Add(1)
				assert.LessOrEqual(t, n, (round+1)*members, "nobody begins before all have left")
				assert.Greater(t, n, round*members)
				most.Store(max(most.Load(), n))
				assert.NoError(t, d.Leave(t.Context()))
			}
		})
	}
	all.Wait()
	require.EqualValues(t, members*rounds, inside.Load())
}

// The second of three is about to open the barrier for the first and itself. The first dies, so the
// third opens it. The server compares fewer keys than there are participants.
func TestDoubleBarrierBeginsARoundOnce(t *testing.T) {
	t.Parallel()
	own := etcdtest.New(t, etcdtest.Config(func(_ int, cfg *embed.Config) { cfg.MaxTxnOps = 4 }))
	outside, c, name, ctx := own.Client(t), own.Client(t), prefix(t), t.Context()
	f := counted(t, c)
	enter := func(s *concurrency.Session) (*concurrency.DoubleBarrier, *etcdtest.Call) {
		d := concurrency.NewDoubleBarrier(s, name, 2)
		return d, etcdtest.Go(func() error { return d.Enter(ctx) })
	}
	dies := session(t, outside)
	_, dead := enter(dies)
	etcdtest.WaitKeys(t, outside, name+"/waiters/", 1)
	opening := f.Hold(fault.Txn, 3) // after the join, and a commit that the server refuses
	two, second := enter(session(t, c))
	ended(t, opening.Reached(), "it is about to open the barrier")
	three, third := enter(session(t, outside))
	etcdtest.WaitKeys(t, outside, name+"/waiters/", 3)
	revoke(t, outside, dies)
	require.Equal(t, concurrency.ErrSessionExpired, dead.Wait(t))
	require.NoError(t, third.Wait(t))
	opened := etcdtest.WaitKeys(t, outside, name+"/ready", 1)[0].ModRevision
	opening.Open()
	require.NoError(t, second.Wait(t))
	require.Equal(t, opened, etcdtest.WaitKeys(t, outside, name+"/ready", 1)[0].ModRevision)
	left := etcdtest.Go(func() error { return two.Leave(ctx) })
	require.NoError(t, three.Leave(ctx))
	require.NoError(t, left.Wait(t))
}

// A commit of etcd's compares 128 keys at most.
func TestDoubleBarrierForMoreThanACommitCompares(t *testing.T) {
	t.Parallel()
	const members = 130
	c, name := client(t), prefix(t)
	var calls []*etcdtest.Call
	for range members {
		d := concurrency.NewDoubleBarrier(session(t, c), name, members)
		calls = append(calls, etcdtest.Go(func() error { return d.Enter(t.Context()) }))
	}
	for _, call := range calls {
		require.NoError(t, call.Wait(t))
	}
}

func TestDoubleBarrierWithALongLine(t *testing.T) {
	t.Parallel()
	const waiting = 130
	c, name := client(t), prefix(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	one, two := concurrency.NewDoubleBarrier(session(t, c), name, 2), concurrency.NewDoubleBarrier(session(t, c), name, 2)
	call := etcdtest.Go(func() error { return one.Enter(ctx) })
	require.NoError(t, two.Enter(ctx))
	require.NoError(t, call.Wait(t))
	entered := make(chan error, waiting)
	for range waiting {
		d := concurrency.NewDoubleBarrier(session(t, c), name, 2)
		go func() { entered <- d.Enter(ctx) }()
	}
	etcdtest.WaitKeys(t, c, name+"/waiters/", waiting+2)
	call = etcdtest.Go(func() error { return one.Leave(ctx) })
	require.NoError(t, two.Leave(ctx))
	require.NoError(t, call.Wait(t))
	for range 2 { // the next round
		require.NoError(t, <-entered)
	}
	cancel()
	for range waiting - 2 {
		require.Equal(t, context.Canceled, <-entered)
	}
}

// The key was copied from a store whose revisions are higher.
func TestDoubleBarrierOfAnotherStore(t *testing.T) {
	inYard(t, 2, func(y *yard) {
		two := y.participants(2)
		_, err := two[0].client.Put(y.t.Context(), y.name+"/ready", "1000000000")
		require.NoError(y.t, err)
		first := two[0].enter(y.t.Context())
		y.blocked(first)
		y.returned(first, two[1].enter(y.t.Context()))
		y.returned(two[0].leave(y.t.Context()), two[1].leave(y.t.Context()))
	})
}

func TestBarrier(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c, name := client(t), prefix(t)
	f := counted(t, c)
	b, theirs := concurrency.NewBarrier(c, name), concurrency.NewBarrier(client(t), name)
	require.NoError(t, b.Wait(ctx), "nobody holds it")
	require.Equal(t, 1, f.KV())
	require.NoError(t, b.Hold(ctx))
	require.NoError(t, b.Hold(ctx), "again")
	require.Equal(t, 3, f.KV())
	wait := func() *etcdtest.Call {
		watches := f.Count(fault.Watch)
		call := etcdtest.Go(func() error { return b.Wait(ctx) })
		etcdtest.Eventually(t, func() bool { return f.Count(fault.Watch) > watches }, "it waits")
		return call
	}
	call := wait()
	bound, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	require.Equal(t, context.DeadlineExceeded, theirs.Wait(bound))
	require.True(t, call.Running())
	require.NoError(t, theirs.Release(ctx))
	require.NoError(t, call.Wait(t))
	require.NoError(t, theirs.Release(ctx), "nobody holds it")

	// Held by a session, it opens when the session ends.
	s := session(t, c)
	require.NoError(t, b.HoldWith(ctx, s))
	call = wait()
	require.NoError(t, s.Close())
	require.NoError(t, call.Wait(t))
	require.Equal(t, rpctypes.ErrLeaseNotFound, b.HoldWith(ctx, s))

	// The latest Hold counts.
	s = session(t, c)
	require.NoError(t, b.HoldWith(ctx, s))
	require.NoError(t, theirs.Hold(ctx))
	require.NoError(t, s.Close())
	require.Len(t, etcdtest.Keys(t, c, name), 1)
	require.NoError(t, theirs.Release(ctx))

	// A hold of a lease that is gone tells the session.
	s = session(t, c)
	revoke(t, c, s)
	require.Equal(t, rpctypes.ErrLeaseNotFound, b.HoldWith(ctx, s))
	require.Error(t, s.Ctx().Err())

	f.LoseAnswer(fault.Txn, 1, rpctypes.ErrTimeout)
	require.ErrorIs(t, b.Hold(ctx), concurrency.ErrCommitUnknown)
	require.Len(t, etcdtest.Keys(t, c, name), 1)
	require.NoError(t, b.Release(ctx))
	require.Equal(t, context.Canceled, b.Wait(cancelled()))
}

func TestBarrierMisuse(t *testing.T) {
	t.Parallel()
	c := client(t)
	s := session(t, c)
	var missing context.Context
	for _, call := range []func(){
		func() { concurrency.NewBarrier(nil, "name") },
		func() { _ = concurrency.NewBarrier(c, "name").Wait(missing) },
		func() { _ = concurrency.NewBarrier(c, "name").Hold(missing) },
		func() { _ = concurrency.NewBarrier(c, "name").HoldWith(t.Context(), nil) },
		func() { _ = (&concurrency.Barrier{}).Wait(t.Context()) },
		func() { _ = (&concurrency.Barrier{}).Release(t.Context()) },
		func() { concurrency.NewDoubleBarrier(nil, "name", 1) },
		func() { concurrency.NewDoubleBarrier(s, "name", 0) },
		func() { _ = concurrency.NewDoubleBarrier(s, "name", 1).Enter(missing) },
		func() { _ = concurrency.NewDoubleBarrier(s, "name", 1).Leave(missing) },
		func() { _ = (&concurrency.DoubleBarrier{}).Enter(t.Context()) },
		func() { _ = (&concurrency.DoubleBarrier{}).Leave(t.Context()) },
	} {
		requireOurPanic(t, call)
	}
}
