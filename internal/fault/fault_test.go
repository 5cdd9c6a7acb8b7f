package fault_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// call makes one call of a kind on a key and a lease.
func call(
	ctx context.Context, client *clientv3.Client, kind fault.Kind, key string, id clientv3.LeaseID,
) (err error) {
	switch kind {
	case fault.Get:
		_, err = client.Get(ctx, key)
	case fault.Put:
		_, err = client.Put(ctx, key, "v")
	case fault.Delete:
		_, err = client.Delete(ctx, key)
	case fault.Txn:
		_, err = client.Txn(ctx).If(clientv3.Compare(clientv3.Version(key), "=", -1)).
			Then(clientv3.OpDelete(key)).Else(clientv3.OpPut(key, "v")).Commit()
	case fault.Do:
		_, err = client.Do(ctx, clientv3.OpPut(key, "v"))
	case fault.Grant:
		_, err = client.Grant(ctx, 60)
	case fault.Revoke:
		_, err = client.Revoke(ctx, id)
	case fault.TimeToLive:
		_, err = client.TimeToLive(ctx, id)
	case fault.KeepAliveOnce:
		_, err = client.KeepAliveOnce(ctx, id)
	case fault.KeepAlive:
		_, err = client.KeepAlive(ctx, id)
	case fault.Watch:
		resp, ok := <-client.Watch(ctx, key, clientv3.WithCreatedNotify())
		if err = resp.Err(); !ok {
			err = ctx.Err()
		}
	}
	return err
}

// all kinds, in an order in which Revoke comes after what needs the lease.
var all = []fault.Kind{
	fault.Get, fault.Put, fault.Delete, fault.Txn, fault.Do, fault.Grant, fault.TimeToLive,
	fault.KeepAliveOnce, fault.KeepAlive, fault.Watch, fault.Revoke,
}

func grant(t *testing.T, client *clientv3.Client) clientv3.LeaseID {
	t.Helper()
	lease, err := client.Grant(t.Context(), 60)
	require.NoError(t, err)
	return lease.ID
}

func TestCountsEveryKind(t *testing.T) {
	client, f, plain := wrapped(t)
	id := grant(t, plain)
	require.Equal(t, "no calls", f.String())
	for _, kind := range all {
		require.NoError(t, call(t.Context(), client, kind, t.Name(), id), kind)
		require.Equal(t, 1, f.Count(kind), kind)
	}
	require.Equal(t, 5, f.KV())
	require.Equal(t, "Get 1, Put 1, Delete 1, Txn 1, Do 1, Grant 1, Revoke 1, TimeToLive 1, "+
		"KeepAliveOnce 1, KeepAlive 1, Watch 1", f.String())
	f.Reset()
	require.Equal(t, "no calls", f.String())
	require.Zero(t, f.KV())
}

func TestRefuseSendsNothing(t *testing.T) {
	client, f, plain := wrapped(t)
	id := grant(t, plain)
	key := t.Name()
	_, err := plain.Put(t.Context(), key, "before")
	require.NoError(t, err)
	for _, kind := range all {
		f.Refuse(kind, 2, codes.Unavailable, "etcdserver: leader changed")
		for range 2 {
			err := call(t.Context(), client, kind, key, id)
			require.Equal(t, rpctypes.ErrLeaderChanged.Error(), err.Error(), kind)
			if kind != fault.Watch {
				require.Equal(t, rpctypes.ErrLeaderChanged, err, kind)
			}
		}
	}
	kvs := etcdtest.Keys(t, plain, key)
	require.Len(t, kvs, 1)
	require.EqualValues(t, 1, kvs[0].Version, "nothing was written")
	ttl, err := plain.TimeToLive(t.Context(), id)
	require.NoError(t, err)
	require.Positive(t, ttl.TTL, "the lease was not revoked")
	for _, kind := range all {
		require.NoError(t, call(t.Context(), client, kind, key, id), "the third %v", kind)
	}
}

func TestRefuseWithAnUnknownText(t *testing.T) {
	client, f, _ := wrapped(t)
	f.Refuse(fault.Put, 1, codes.ResourceExhausted, "enough")
	_, err := client.Put(t.Context(), t.Name(), "")
	require.Equal(t, status.Error(codes.ResourceExhausted, "enough"), err)
}

func TestLoseAnswerIsCarriedOut(t *testing.T) {
	client, f, plain := wrapped(t)
	for _, kind := range []fault.Kind{fault.Put, fault.Txn, fault.Do} {
		key := t.Name() + kind.String()
		f.LoseAnswer(kind, 1, nil)
		require.Equal(t, fault.ErrLostAnswer, call(t.Context(), client, kind, key, 0))
		require.Len(t, etcdtest.Keys(t, plain, key), 1, kind)
	}
	key, id := t.Name()+"Put", grant(t, plain)
	f.LoseAnswer(fault.Delete, 1, nil)
	require.Equal(t, fault.ErrLostAnswer, call(t.Context(), client, fault.Delete, key, 0))
	require.Empty(t, etcdtest.Keys(t, plain, key))

	f.LoseAnswer(fault.Revoke, 1, nil)
	require.Equal(t, fault.ErrLostAnswer, call(t.Context(), client, fault.Revoke, key, id))
	_, err := plain.Revoke(t.Context(), id)
	require.Equal(t, rpctypes.ErrLeaseNotFound, err, "the lease was revoked")

	before, err := plain.Leases(t.Context())
	require.NoError(t, err)
	f.LoseAnswer(fault.Grant, 1, nil)
	require.Equal(t, fault.ErrLostAnswer, call(t.Context(), client, fault.Grant, key, 0))
	etcdtest.WaitLeases(t, plain, len(before.Leases)+1)
}

func TestLoseAnswerMeansOneCall(t *testing.T) {
	client, f, _ := wrapped(t)
	require.NoError(t, call(t.Context(), client, fault.Put, t.Name(), 0))
	own := errors.New("own")
	f.LoseAnswer(fault.Put, 2, own)
	require.NoError(t, call(t.Context(), client, fault.Put, t.Name(), 0))
	require.NoError(t, call(t.Context(), client, fault.Get, t.Name(), 0))
	require.Equal(t, own, call(t.Context(), client, fault.Put, t.Name(), 0))
	require.NoError(t, call(t.Context(), client, fault.Put, t.Name(), 0))

	f.LoseAnswers(fault.Get, 2)
	for range 2 {
		require.Equal(t, fault.ErrLostAnswer, call(t.Context(), client, fault.Get, t.Name(), 0))
	}
	require.NoError(t, call(t.Context(), client, fault.Get, t.Name(), 0))
}

func TestLoseAnswerKeepsAFailure(t *testing.T) {
	client, f, _ := wrapped(t)
	f.LoseAnswer(fault.Revoke, 1, nil)
	require.Equal(t, rpctypes.ErrLeaseNotFound, call(t.Context(), client, fault.Revoke, "", 1))
	f.LoseAnswer(fault.Put, 1, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.Equal(t, context.Canceled, call(ctx, client, fault.Put, t.Name(), 0))
}

// A lost answer must look like one that the wire lost.
func TestLostAnswerOnTheWire(t *testing.T) {
	plain := server.Client(t)
	proxy := newProxy(t)
	client := etcdtest.Dial(t, proxy.Endpoint())
	_, err := client.Get(t.Context(), t.Name())
	require.NoError(t, err, "connected")
	proxy.StallDown()
	put := etcdtest.Go(func() error {
		return call(t.Context(), client, fault.Txn, t.Name(), 0)
	})
	etcdtest.WaitKeys(t, plain, t.Name(), 1)
	require.True(t, put.Running())
	proxy.Cut()
	err = put.Wait(t)
	require.IsType(t, fault.ErrLostAnswer, err)
	require.Equal(t, status.Code(fault.ErrLostAnswer), status.Code(err))
	require.Contains(t, err.Error(), "error reading from server")
}

func TestHold(t *testing.T) {
	client, f, plain := wrapped(t)
	id := grant(t, plain)
	for _, kind := range all {
		key := t.Name() + kind.String()
		gate := f.Hold(kind, 1)
		held := etcdtest.Go(func() error { return call(t.Context(), client, kind, key, id) })
		await(t, gate.Reached(), "the call is held")
		require.Empty(t, etcdtest.Keys(t, plain, key), "not sent")
		require.True(t, held.Running(), kind)
		gate.Open()
		gate.Open()
		require.NoError(t, held.Wait(t), kind)
	}
	require.NotEmpty(t, etcdtest.Keys(t, plain, t.Name()+"Put"))
}

func TestHoldEndsWithTheContext(t *testing.T) {
	client, f, plain := wrapped(t)
	id := grant(t, plain)
	for _, kind := range all {
		gate := f.Hold(kind, 1)
		ctx, cancel := context.WithCancel(t.Context())
		held := etcdtest.Go(func() error { return call(ctx, client, kind, t.Name(), id) })
		await(t, gate.Reached(), "the call is held")
		cancel()
		require.Equal(t, context.Canceled, held.Wait(t), kind)
	}
	require.Empty(t, etcdtest.Keys(t, plain, t.Name()), "not sent")
}

func TestHoldAnswer(t *testing.T) {
	client, f, plain := wrapped(t)
	for _, open := range []bool{true, false} {
		key := t.Name() + map[bool]string{true: "open", false: "ended"}[open]
		gate := f.HoldAnswer(fault.Put, 1)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		held := etcdtest.Go(func() error { return call(ctx, client, fault.Put, key, 0) })
		await(t, gate.Reached(), "the answer is held")
		require.Len(t, etcdtest.Keys(t, plain, key), 1, "carried out")
		require.True(t, held.Running())
		if open {
			gate.Open()
			require.NoError(t, held.Wait(t))
		} else {
			cancel()
			require.Equal(t, context.Canceled, held.Wait(t))
		}
	}
}

func TestHooks(t *testing.T) {
	client, f, plain := wrapped(t)
	var order []string
	see := func(what string) {
		order = append(order, what)
		require.Len(t, etcdtest.Keys(t, plain, t.Name()), len(order)-1)
	}
	f.Before(fault.Put, 1, func() { see("before") })
	f.After(fault.Put, 1, func(err error) {
		require.NoError(t, err)
		see("after")
	})
	require.NoError(t, call(t.Context(), client, fault.Put, t.Name(), 0))
	require.Equal(t, []string{"before", "after"}, order)

	var got error
	f.After(fault.Revoke, 1, func(err error) { got = err })
	err := call(t.Context(), client, fault.Revoke, "", 1)
	require.Equal(t, rpctypes.ErrLeaseNotFound, got)
	require.Equal(t, got, err)
}

func TestFaultsOnOneCallCombine(t *testing.T) {
	client, f, plain := wrapped(t)
	var hooked bool
	f.Before(fault.Put, 1, func() { hooked = true })
	gate := f.HoldAnswer(fault.Put, 1)
	f.LoseAnswer(fault.Put, 1, nil)
	held := etcdtest.Go(func() error { return call(t.Context(), client, fault.Put, t.Name(), 0) })
	await(t, gate.Reached(), "the answer is held")
	require.Len(t, etcdtest.Keys(t, plain, t.Name()), 1)
	gate.Open()
	require.Equal(t, fault.ErrLostAnswer, held.Wait(t))
	require.True(t, hooked)
}

func TestFutureRevision(t *testing.T) {
	client, f, _ := wrapped(t)
	put, err := client.Put(t.Context(), t.Name(), "")
	require.NoError(t, err)
	pinned := clientv3.OpGet(t.Name(), clientv3.WithSerializable(), clientv3.WithRev(put.Header.Revision))
	get := func() error {
		_, err := client.Get(t.Context(), t.Name(),
			clientv3.WithSerializable(), clientv3.WithRev(put.Header.Revision))
		return err
	}
	txn := func() error {
		_, err := client.Txn(t.Context()).Then(pinned, pinned).Commit()
		return err
	}
	do := func(op clientv3.Op) error {
		_, err := client.Do(t.Context(), op)
		return err
	}
	f.FutureRevision(4)
	require.NoError(t, do(clientv3.OpGet(t.Name(), clientv3.WithSerializable())), "not pinned")
	require.NoError(t, do(clientv3.OpGet(t.Name(), clientv3.WithRev(put.Header.Revision))), "linearizable")
	require.NoError(t, do(clientv3.OpTxn(nil, []clientv3.Op{pinned, clientv3.OpPut("k", "")}, nil)), "writes")
	require.NoError(t, call(t.Context(), client, fault.Put, t.Name(), 0))
	require.Equal(t, rpctypes.ErrFutureRev, get())
	require.Equal(t, rpctypes.ErrFutureRev, txn())
	require.Equal(t, rpctypes.ErrFutureRev, do(pinned))
	require.Equal(t, rpctypes.ErrFutureRev, do(clientv3.OpTxn(nil, []clientv3.Op{pinned}, nil)))
	require.NoError(t, get())

	_, err = client.Get(t.Context(), t.Name(), clientv3.WithSerializable(), clientv3.WithRev(1<<40))
	require.Equal(t, rpctypes.ErrFutureRev, err, "the server's own error is the same")
}

func TestClearLetsHeldCallsGo(t *testing.T) {
	client, f, _ := wrapped(t)
	gate := f.Hold(fault.Put, 1)
	held := etcdtest.Go(func() error { return call(t.Context(), client, fault.Put, t.Name(), 0) })
	await(t, gate.Reached(), "the call is held")
	f.Refuse(fault.Get, 1, codes.Unavailable, "")
	f.Clear()
	require.NoError(t, held.Wait(t))
	require.NoError(t, call(t.Context(), client, fault.Get, t.Name(), 0))
}

func TestUnwrap(t *testing.T) {
	client := server.Client(t)
	kv, lease, watcher := client.KV, client.Lease, client.Watcher
	f := fault.Wrap(client)
	require.NotSame(t, kv, client.KV)
	f.LoseAnswers(fault.Put, 1)
	f.Unwrap()
	require.Same(t, kv, client.KV)
	require.Same(t, lease, client.Lease)
	require.Same(t, watcher, client.Watcher)
	require.NoError(t, call(t.Context(), client, fault.Put, t.Name(), 0))
	require.Zero(t, f.Count(fault.Put))
}

func TestFaultsFromManyGoroutines(t *testing.T) {
	client, f, _ := wrapped(t)
	f.LoseAnswers(fault.Put, 20)
	var calls []*etcdtest.Call
	for range 8 {
		calls = append(calls, etcdtest.Go(func() error {
			lost := 0
			for range 5 {
				if call(t.Context(), client, fault.Put, t.Name(), 0) != nil {
					lost++
				}
				_ = f.String()
				f.Before(fault.Get, 1, func() {})
			}
			for range lost {
				if err := call(t.Context(), client, fault.Get, t.Name(), 0); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	for _, c := range calls {
		require.NoError(t, c.Wait(t))
	}
	require.Equal(t, 40, f.Count(fault.Put))
	require.Equal(t, 20, f.Count(fault.Get), "as many as answers were lost")
}
