package fault_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

func TestBrokenWatch(t *testing.T) {
	client, f, _ := wrapped(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, want := range []error{
		rpctypes.ErrNoLeader, rpctypes.ErrCompacted, rpctypes.ErrPermissionDenied, rpctypes.ErrGRPCNoLeader,
	} {
		f.BrokenWatch(1, want)
		ch := client.Watch(ctx, t.Name(), clientv3.WithCreatedNotify())
		resp, ok := <-ch
		require.True(t, ok)
		require.True(t, resp.Canceled)
		require.Empty(t, resp.Events)
		require.Equal(t, rpctypes.Error(want), resp.Err())
		require.Equal(t, want == rpctypes.ErrCompacted, resp.CompactRevision != 0)
		_, ok = <-ch
		require.False(t, ok, "closed")
	}
	f.BrokenWatch(1, nil)
	_, ok := <-client.Watch(ctx, t.Name())
	require.False(t, ok, "closed without a word")

	f.BrokenWatch(1, errors.New("own"))
	resp := <-client.Watch(ctx, t.Name())
	require.ErrorContains(t, resp.Err(), "own")
}

func TestBrokenWatchMeansOneWatch(t *testing.T) {
	client, f, _ := wrapped(t)
	f.BrokenWatch(2, rpctypes.ErrNoLeader)
	for i, broken := range []bool{false, true, false} {
		ctx, cancel := context.WithCancel(t.Context())
		resp := <-client.Watch(ctx, t.Name(), clientv3.WithCreatedNotify())
		require.Equal(t, broken, resp.Canceled, "watch %d", i)
		require.Equal(t, !broken, resp.Created, "watch %d", i)
		cancel()
	}
}

func TestBreakWatch(t *testing.T) {
	client, f, plain := wrapped(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	gate := f.BreakWatch(1, rpctypes.ErrNoLeader)
	ch := client.Watch(ctx, t.Name(), clientv3.WithCreatedNotify())
	await(t, gate.Reached(), "the watch has begun")
	resp := <-ch
	require.True(t, resp.Created)
	_, err := plain.Put(ctx, t.Name(), "")
	require.NoError(t, err)
	resp = <-ch
	require.Len(t, resp.Events, 1, "real events are delivered")
	gate.Open()
	resp = <-ch
	require.Equal(t, rpctypes.ErrNoLeader, resp.Err())
	_, ok := <-ch
	require.False(t, ok)
}

// A watch that is to be broken, and never is, ends like any other, whether or
// not somebody reads it.
func TestBreakWatchEndsWithItsContext(t *testing.T) {
	client, f, plain := wrapped(t)
	ctx, cancel := context.WithCancel(t.Context())
	f.BreakWatch(1, rpctypes.ErrNoLeader)
	ch := client.Watch(ctx, t.Name())
	_, err := plain.Put(ctx, t.Name(), "")
	require.NoError(t, err)
	cancel()
	for resp := range ch {
		require.NoError(t, resp.Err())
	}
	ctx, cancel = context.WithCancel(t.Context())
	f.BreakWatch(1, rpctypes.ErrNoLeader)
	client.Watch(ctx, t.Name(), clientv3.WithCreatedNotify()) // goleak looks for what it leaves
	cancel()
}

func TestHeldWatchMissesNothing(t *testing.T) {
	client, f, plain := wrapped(t)
	read, err := client.Get(t.Context(), t.Name())
	require.NoError(t, err)
	f.Before(fault.Watch, 1, func() {
		_, err := plain.Put(t.Context(), t.Name(), "between")
		require.NoError(t, err)
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	resp := <-client.Watch(ctx, t.Name(), clientv3.WithRev(read.Header.Revision+1))
	require.Equal(t, "between", string(resp.Events[0].Kv.Value))
}

// A compaction between a read and the watch that follows it.
func TestCompactBeforeWatch(t *testing.T) {
	client, f, plain := wrapped(t)
	first, err := plain.Put(t.Context(), t.Name(), "1")
	require.NoError(t, err)
	last, err := plain.Put(t.Context(), t.Name(), "2")
	require.NoError(t, err)
	f.Before(fault.Watch, 1, func() {
		_, err := plain.Compact(t.Context(), last.Header.Revision)
		require.NoError(t, err)
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	resp := <-client.Watch(ctx, t.Name(), clientv3.WithRev(first.Header.Revision))
	require.Equal(t, rpctypes.ErrCompacted, resp.Err())
}

func TestLostWatchSaysNothing(t *testing.T) {
	client, f, _ := wrapped(t)
	gate := f.HoldAnswer(fault.Watch, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	held := etcdtest.Go(func() error {
		resp := <-client.Watch(ctx, t.Name(), clientv3.WithCreatedNotify())
		if !resp.Created {
			return errors.New("not created")
		}
		return nil
	})
	await(t, gate.Reached(), "the watch is held")
	gate.Open()
	require.NoError(t, held.Wait(t))

	f.LoseAnswer(fault.Watch, 1, nil)
	resp := <-client.Watch(ctx, t.Name())
	require.True(t, resp.Canceled)
	require.ErrorContains(t, resp.Err(), "error reading from server: EOF")
}
