package concurrency

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	v3 "go.etcd.io/etcd/client/v3"
)

// free is a store whose locks are all free. It answers every transaction in the same way, at
// once and without an allocation: as a join that took the lock, which is also a deletion that
// was carried out.
type free struct {
	v3.KV
	resp *v3.TxnResponse
}

func newFree() *free {
	put := &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{}}}
	line := &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: &pb.RangeResponse{}}}
	return &free{resp: &v3.TxnResponse{
		Header: &pb.ResponseHeader{Revision: 1}, Succeeded: true, Responses: []*pb.ResponseOp{put, line},
	}}
}

func (f *free) Txn(context.Context) v3.Txn {
	f.resp.Header.Revision++ // each lock has a ticket of its own
	return f
}
func (f *free) If(...v3.Cmp) v3.Txn              { return f }
func (f *free) Then(...v3.Op) v3.Txn             { return f }
func (f *free) Else(...v3.Op) v3.Txn             { return f }
func (f *free) Commit() (*v3.TxnResponse, error) { return f.resp, nil }

// allocations are those of a Lock and an Unlock in a session with the options.
func allocations(t *testing.T, opts ...SessionOption) float64 {
	t.Helper()
	client := v3.NewCtxClient(t.Context())
	client.Lease, client.KV = &granting{}, newFree()
	s, err := NewSession(client, opts...)
	require.NoError(t, err)
	defer s.Orphan()
	m := NewMutex(s, "name")
	return testing.AllocsPerRun(1000, func() {
		if m.Lock(t.Context()) != nil || m.Unlock(t.Context()) != nil {
			panic("the lock was not free")
		}
	})
}

func TestATraceThatIsNotUsedAllocatesNothing(t *testing.T) {
	without := allocations(t)
	require.Positive(t, without)
	require.Equal(t, without, allocations(t, WithTrace(nil)))
	require.Equal(t, without, allocations(t, WithTrace(&Trace{})))
	told := 0
	require.Less(t, without, allocations(t, WithTrace(&Trace{Acquired: func(LineEvent) { told++ }})))
	require.Equal(t, 1001, told)
}

func TestNothingIsToldWithoutATrace(t *testing.T) {
	var none *tracing
	empty := tracingOf(&Trace{}, 1)
	for _, trace := range []*tracing{none, empty} {
		require.Zero(t, testing.AllocsPerRun(100, func() {
			trace.renewed(time.Time{}, time.Time{})
			trace.renewalFailed(ErrNoAnswer, time.Time{})
			trace.ended(ErrDeadline)
			trace.repeated(ErrNoAnswer)
			trace.wait()
		}))
	}
	require.Zero(t, none.now())
	require.Nil(t, empty.told)
}

// A loss may become known before the acquisition was told. It is told after it all the same, and
// not at all if the acquisition fails because of it.
func TestALossIsToldAfterItsAcquisition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		trace := tracingOf(&Trace{
			Acquired: func(LineEvent) { told = append(told, "acquired") },
			Lost:     func(e LineEvent) { told = append(told, e.Err.Error()) },
			Released: func(LineEvent) { told = append(told, "released") },
		}, 1)
		h := &holding{tracing: trace}
		h.lose(ErrDeadline)
		trace.wait()
		require.Empty(t, told)
		h.begin(0)
		h.begin(0)
		h.lose(ErrKeyDeleted)
		h.release(nil)
		trace.wait()
		require.Equal(t, []string{"acquired", ErrDeadline.Error()}, told)
		told = nil
		h = &holding{tracing: trace}
		h.begin(0)
		h.release(nil)
		h.release(nil)
		h.lose(ErrDeadline)
		trace.wait()
		require.Equal(t, []string{"acquired", "released"}, told)
	})
}

func TestEventsAreToldInOrderByOneGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trace, slow := tracingOf(&Trace{}, 1), make(chan struct{})
		var told []int
		for n := range mostUntold {
			require.False(t, trace.behind())
			trace.later(func() {
				<-slow
				told = append(told, n)
			})
		}
		require.True(t, trace.behind())
		close(slow)
		trace.wait()
		require.False(t, trace.behind())
		require.Len(t, told, mostUntold)
		require.IsIncreasing(t, told)
		trace.later(func() { told = nil })
		trace.wait()
		require.Nil(t, told)
	})
}
