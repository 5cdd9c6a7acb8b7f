package concurrency_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	upstream "go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// TestInspect shows what is told of a line, at what cost.
func TestInspect(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	name := prefix(t)
	looking := client(t)
	calls := counted(t, looking)
	inspect := func(opts ...concurrency.InspectOption) concurrency.Line {
		t.Helper()
		line, err := concurrency.Inspect(ctx, looking, name, opts...)
		require.NoError(t, err)
		return line
	}

	line := inspect()
	require.Equal(t, name, line.Name)
	require.Empty(t, line.Participants)
	require.Equal(t, 1, calls.KV(), calls)

	c := client(t)
	holder := session(t, c, concurrency.WithTTL(50), concurrency.WithIdentity("host-1"))
	m := concurrency.NewMutex(holder, name)
	require.NoError(t, m.Lock(ctx))
	waiter := session(t, c)
	campaign := etcdtest.Go(func() error {
		return concurrency.NewElection(waiter, name).Campaign(ctx, "host-2")
	})
	etcdtest.WaitKeys(t, c, name, 2)
	foreign := name + "/config"
	put, err := c.Put(ctx, foreign, "data", clientv3.WithLease(waiter.Lease()))
	require.NoError(t, err)

	calls.Reset()
	line = inspect()
	require.Equal(t, 1, calls.KV(), calls)
	require.Zero(t, calls.Count(fault.TimeToLive))
	require.GreaterOrEqual(t, line.Revision, put.Header.Revision)
	require.Len(t, line.Participants, 3)
	require.Equal(t, concurrency.Participant{
		Key: m.Key(), Rev: m.Rev(), Kind: concurrency.KindExclusive, Value: "host-1", Lease: holder.Lease(), Owns: true,
	}, line.Participants[0])
	second := line.Participants[1]
	require.Equal(t, concurrency.Participant{
		Key: fmt.Sprintf("%s/%x", name, waiter.Lease()), Rev: second.Rev, Kind: concurrency.KindExclusive,
		Value: "host-2", Lease: waiter.Lease(), Ahead: 1,
	}, second)
	require.Equal(t, concurrency.Participant{
		Key: foreign, Rev: put.Header.Revision, Kind: concurrency.KindForeign, Value: "data", Lease: waiter.Lease(), Ahead: 2,
	}, line.Participants[2])

	calls.Reset()
	line = inspect(concurrency.WithLeases())
	require.Equal(t, 1, calls.KV(), calls)
	require.Equal(t, 2, calls.Count(fault.TimeToLive), "one for each lease: %v", calls)
	for i, ttl := range []time.Duration{50 * time.Second, 60 * time.Second, 60 * time.Second} {
		require.Equal(t, ttl, line.Participants[i].TTL)
		require.Positive(t, line.Participants[i].Left)
		require.LessOrEqual(t, line.Participants[i].Left, ttl)
	}

	require.NoError(t, m.Unlock(ctx))
	require.NoError(t, campaign.Wait(t))
	require.Equal(t, second.Rev, inspect().Participants[0].Rev)
	require.True(t, inspect().Participants[0].Owns)
}

// TestInspectKinds shows all kinds of locks in their lines, as they hold and wait.
func TestInspectKinds(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := client(t)
	type seen struct {
		kind  concurrency.ParticipantKind
		ahead int
		owns  bool
	}
	inspect := func(name string) (all []seen) {
		line, err := concurrency.Inspect(ctx, c, name)
		require.NoError(t, err)
		for _, p := range line.Participants {
			all = append(all, seen{p.Kind, p.Ahead, p.Owns})
		}
		return all
	}
	s1, s2, s3 := session(t, c), session(t, c), session(t, c)

	name := prefix(t)
	reader1, reader2, reader3 := concurrency.NewRWMutex(s1, name), concurrency.NewRWMutex(s1, name), concurrency.NewRWMutex(s3, name)
	writer := concurrency.NewRWMutex(s2, name)
	require.NoError(t, reader1.RLock(ctx))
	require.NoError(t, reader2.RLock(ctx))
	writing := etcdtest.Go(func() error { return writer.Lock(ctx) })
	etcdtest.WaitKeys(t, c, name, 3)
	reading := etcdtest.Go(func() error { return reader3.RLock(ctx) })
	etcdtest.WaitKeys(t, c, name, 4)
	require.Equal(t, []seen{
		{concurrency.KindReader, 0, true},
		{concurrency.KindReader, 0, true},
		{concurrency.KindExclusive, 2, false},
		{concurrency.KindReader, 1, false},
	}, inspect(name))
	require.NoError(t, reader1.RUnlock(ctx))
	require.NoError(t, reader2.RUnlock(ctx))
	require.NoError(t, writing.Wait(t))
	require.Equal(t, []seen{{concurrency.KindExclusive, 0, true}, {concurrency.KindReader, 1, false}}, inspect(name))
	require.NoError(t, writer.Unlock(ctx))
	require.NoError(t, reading.Wait(t))
	require.Equal(t, []seen{{concurrency.KindReader, 0, true}}, inspect(name))
	require.NoError(t, reader3.RUnlock(ctx))

	name = prefix(t)
	permit1, permit2 := concurrency.NewSemaphore(s1, name, 2), concurrency.NewSemaphore(s2, name, 2)
	require.NoError(t, permit1.Acquire(ctx))
	require.NoError(t, permit2.Acquire(ctx))
	require.Equal(t, []seen{{concurrency.KindPermit, 0, true}, {concurrency.KindPermit, 1, false}}, inspect(name))
	require.NoError(t, permit1.Release(ctx))
	require.NoError(t, permit2.Release(ctx))

	name = prefix(t)
	both := concurrency.NewMultiMutex(s1, name, name+"/within")
	require.NoError(t, both.Lock(ctx))
	require.ElementsMatch(t, []seen{{concurrency.KindExclusive, 0, true}, {concurrency.KindForeign, 0, false}}, inspect(name))
	require.Equal(t, []seen{{concurrency.KindExclusive, 0, true}}, inspect(name+"/within"))
	require.NoError(t, both.Unlock(ctx))
}

// TestInspectTellsOfLeasesThatAreGone shows a key without a lease, and a lease that ends before
// it is asked for.
func TestInspectTellsOfLeasesThatAreGone(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	name := prefix(t)
	looking, c := client(t), client(t)
	calls := counted(t, looking)

	_, err := c.Put(ctx, name+"/1f", "")
	require.NoError(t, err)
	lease, err := c.Grant(ctx, 60)
	require.NoError(t, err)
	_, err = c.Put(ctx, fmt.Sprintf("%s/%x", name, lease.ID), "", clientv3.WithLease(lease.ID))
	require.NoError(t, err)
	calls.Before(fault.TimeToLive, 1, func() {
		_, err := c.Revoke(ctx, lease.ID)
		require.NoError(t, err)
	})

	line, err := concurrency.Inspect(ctx, looking, name, concurrency.WithLeases())
	require.NoError(t, err)
	require.Equal(t, 1, calls.Count(fault.TimeToLive), "a key without a lease has none to ask for: %v", calls)
	require.Len(t, line.Participants, 2)
	require.Equal(t, concurrency.KindForeign, line.Participants[0].Kind)
	require.Equal(t, concurrency.KindExclusive, line.Participants[1].Kind)
	for _, p := range line.Participants {
		require.Zero(t, p.TTL)
		require.Zero(t, p.Left)
	}
}

// TestInspectErrors shows what fails, and whose error is told.
func TestInspectErrors(t *testing.T) {
	t.Parallel()
	name := prefix(t)
	c := client(t)
	inspect := func(ctx context.Context) error {
		line, err := concurrency.Inspect(ctx, c, name, concurrency.WithLeases())
		require.Zero(t, line)
		return err
	}
	holder := session(t, client(t))
	require.NoError(t, concurrency.NewMutex(holder, name).Lock(t.Context()))
	calls := counted(t, c)

	t.Run("of the caller", func(t *testing.T) {
		require.PanicsWithValue(t, "concurrency: Inspect: nil client", func() {
			concurrency.Inspect(t.Context(), nil, name)
		})
		var none context.Context
		require.PanicsWithValue(t, "concurrency: nil context", func() { concurrency.Inspect(none, c, name) })
		require.PanicsWithValue(t, "concurrency: Inspect: nil option", func() {
			concurrency.Inspect(t.Context(), c, name, nil)
		})
	})
	t.Run("of etcd, as they are", func(t *testing.T) {
		calls.Refuse(fault.Get, 1, codes.PermissionDenied, rpctypes.ErrorDesc(rpctypes.ErrPermissionDenied))
		require.Equal(t, rpctypes.ErrPermissionDenied, inspect(t.Context()))
		calls.Refuse(fault.TimeToLive, 1, codes.PermissionDenied, rpctypes.ErrorDesc(rpctypes.ErrPermissionDenied))
		require.Equal(t, rpctypes.ErrPermissionDenied, inspect(t.Context()))
	})
	t.Run("of the context", func(t *testing.T) {
		for _, kind := range []fault.Kind{fault.Get, fault.TimeToLive} {
			calls.Reset()
			gate := calls.Hold(kind, 1)
			ctx, cancel := context.WithCancel(t.Context())
			call := etcdtest.Go(func() error { return inspect(ctx) })
			ended(t, gate.Reached(), "the call is sent")
			cancel()
			require.Equal(t, context.Canceled, call.Wait(t))
			gate.Open()
		}
		ctx, cancel := context.WithDeadline(t.Context(), time.Now())
		defer cancel()
		require.Equal(t, context.DeadlineExceeded, inspect(ctx))
	})
	t.Run("of the client", func(t *testing.T) {
		calls.Reset()
		gate := calls.Hold(fault.TimeToLive, 1)
		call := etcdtest.Go(func() error { return inspect(context.Background()) })
		ended(t, gate.Reached(), "the call is sent")
		require.NoError(t, c.Close())
		require.Equal(t, context.Canceled, call.Wait(t))
		require.Equal(t, context.Canceled, inspect(context.Background()))
	})
}

const identity = "host-1 1234"

// identified is a client and its session with the identity. Its tests show which keys have the
// identity, and that nothing depends on it.
type identified struct {
	client  *clientv3.Client
	session *concurrency.Session
}

func newIdentified(tb testing.TB) identified {
	tb.Helper()
	c := client(tb)
	return identified{c, session(tb, c, concurrency.WithIdentity(identity))}
}

// value is that of the only key in a line, which is the session's.
func (i identified) value(tb testing.TB, name string) string {
	tb.Helper()
	line, err := concurrency.Inspect(tb.Context(), i.client, name)
	require.NoError(tb, err)
	require.Len(tb, line.Participants, 1)
	require.Equal(tb, i.session.Lease(), line.Participants[0].Lease)
	return line.Participants[0].Value
}

func TestWithIdentityAndLocksHoweverTheyAreTaken(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, name := newIdentified(t), prefix(t)
	m := concurrency.NewMutex(s.session, name)
	require.NoError(t, m.TryLock(ctx))
	require.Equal(t, identity, s.value(t, name))
	require.NoError(t, m.Unlock(ctx))
	require.NoError(t, m.Lock(ctx))
	require.Equal(t, identity, s.value(t, name))
	require.NoError(t, m.Unlock(ctx))
	l := concurrency.NewLocker(s.session, name)
	l.Lock()
	require.Equal(t, identity, s.value(t, name))
	l.Unlock()
}

func TestWithIdentityAndTheOtherKindsOfLock(t *testing.T) {
	t.Parallel()
	ctx, s := t.Context(), newIdentified(t)
	for i, take := range []func(name string) (release func() error){
		func(name string) func() error {
			m := concurrency.NewRWMutex(s.session, name)
			require.NoError(t, m.Lock(ctx))
			return func() error { return m.Unlock(ctx) }
		},
		func(name string) func() error {
			m := concurrency.NewRWMutex(s.session, name)
			require.NoError(t, m.RLock(ctx))
			return func() error { return m.RUnlock(ctx) }
		},
		func(name string) func() error {
			m := concurrency.NewSemaphore(s.session, name, 2)
			require.NoError(t, m.Acquire(ctx))
			return func() error { return m.Release(ctx) }
		},
		func(name string) func() error {
			m := concurrency.NewMultiMutex(s.session, name, name+"-other")
			require.NoError(t, m.Lock(ctx))
			require.Equal(t, identity, s.value(t, name+"-other"))
			return func() error { return m.Unlock(ctx) }
		},
	} {
		name := prefix(t)
		release := take(name)
		require.Equal(t, identity, s.value(t, name), i)
		require.NoError(t, release())
	}
}

func TestWithIdentityAndAPlaceholder(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, name := newIdentified(t), prefix(t)
	var placeholder concurrency.Session
	m := concurrency.NewMutex(&placeholder, name)
	placeholder = *s.session
	require.NoError(t, m.Lock(ctx))
	require.Equal(t, identity, s.value(t, name))
	require.NoError(t, m.Unlock(ctx))
}

func TestWithIdentityLeavesCandidatesTheirOwnValue(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, name := newIdentified(t), prefix(t)
	e := concurrency.NewElection(s.session, name)
	require.NoError(t, e.Campaign(ctx, "candidate"))
	require.Equal(t, "candidate", s.value(t, name))
	require.NoError(t, e.Resign(ctx))
}

func TestWithIdentityAmongUpstreamsMutexes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, name := newIdentified(t), prefix(t)
	other, err := upstream.NewSession(s.client)
	require.NoError(t, err)
	defer other.Close()
	theirs, ours := upstream.NewMutex(other, name), concurrency.NewMutex(s.session, name)
	require.NoError(t, ours.Lock(ctx))
	require.Equal(t, upstream.ErrLocked, theirs.TryLock(ctx))
	waiting := etcdtest.Go(func() error { return theirs.Lock(ctx) })
	etcdtest.WaitKeys(t, s.client, name, 2)
	require.NoError(t, ours.Unlock(ctx))
	require.NoError(t, waiting.Wait(t))
	require.Equal(t, concurrency.ErrLocked, ours.TryLock(ctx))
	waiting = etcdtest.Go(func() error { return ours.Lock(ctx) })
	etcdtest.WaitKeys(t, s.client, name, 2)
	require.NoError(t, theirs.Unlock(ctx))
	require.NoError(t, waiting.Wait(t))
	require.Equal(t, identity, s.value(t, name))
	require.NoError(t, ours.Unlock(ctx))
}

func TestWithIdentityThatIsTooLargeFailsEachLock(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	large := session(t, client(t), concurrency.WithIdentity(strings.Repeat("x", 16<<20/10)))
	require.Equal(t, rpctypes.ErrRequestTooLarge, concurrency.NewMutex(large, prefix(t)).Lock(ctx))
}
