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

// A watch that follows a read without a gap is too late; one from the present, and
// the one after it, are not.
func TestCompactBeforeWatch(t *testing.T) {
	client, f, plain := wrapped(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f.CompactBeforeWatch(1, t.Name()+"-other")
	f.CompactBeforeWatch(3, t.Name()+"-other")
	read, err := client.Get(ctx, t.Name())
	require.NoError(t, err)
	next := clientv3.WithRev(read.Header.Revision + 1)
	resp := <-client.Watch(ctx, t.Name(), next)
	require.Equal(t, rpctypes.ErrCompacted, resp.Err())
	require.Equal(t, read.Header.Revision+2, resp.CompactRevision, "the latest")

	read, err = client.Get(ctx, t.Name())
	require.NoError(t, err)
	next = clientv3.WithRev(read.Header.Revision + 1)
	second := client.Watch(ctx, t.Name(), next)
	require.True(t, (<-client.Watch(ctx, t.Name(), clientv3.WithCreatedNotify())).Created)
	_, err = plain.Put(ctx, t.Name(), "v")
	require.NoError(t, err)
	resp = <-second
	require.NoError(t, resp.Err(), "it had begun before the compaction")
	require.Len(t, resp.Events, 1)
}

// What keeps the fault from working ends the watch.
func TestCompactBeforeWatchThatFails(t *testing.T) {
	client, f, _ := wrapped(t)
	f.CompactBeforeWatch(1, "") // which can't be put
	resp := <-client.Watch(t.Context(), t.Name())
	require.Equal(t, rpctypes.ErrEmptyKey, resp.Err())
}

// overtaken is a KV whose compactions come after one of somebody else's.
type overtaken struct{ clientv3.KV }

func (o overtaken) Compact(
	ctx context.Context, rev int64, opts ...clientv3.CompactOption,
) (*clientv3.CompactResponse, error) {
	resp, err := o.Put(ctx, "somebody else's", "")
	if err != nil {
		return nil, err
	}
	if _, err := o.KV.Compact(ctx, resp.Header.Revision); err != nil {
		return nil, err
	}
	return o.KV.Compact(ctx, rev, opts...)
}

func TestCompactBeforeWatchBehindAnother(t *testing.T) {
	clean(t)
	client := server.Client(t)
	client.KV = overtaken{client.KV}
	fault.Wrap(client).CompactBeforeWatch(1, t.Name()+"-other")
	read, err := client.Get(t.Context(), t.Name())
	require.NoError(t, err)
	resp := <-client.Watch(t.Context(), t.Name(), clientv3.WithRev(read.Header.Revision+1))
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
