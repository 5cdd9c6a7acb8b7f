package concurrency

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	v3 "go.etcd.io/etcd/client/v3"
)

// silentStore is a KV whose only key changes at a time. A comparison is true up to then.
type silentStore struct {
	v3.KV
	changes time.Time
}

func (s silentStore) rev() int64 {
	if time.Now().Before(s.changes) {
		return 7
	}
	return 8
}

func (s silentStore) Get(_ context.Context, key string, _ ...v3.OpOption) (*v3.GetResponse, error) {
	kv := &mvccpb.KeyValue{Key: []byte(key), ModRevision: s.rev()}
	return &v3.GetResponse{Header: &pb.ResponseHeader{Revision: s.rev()}, Kvs: []*mvccpb.KeyValue{kv}}, nil
}

func (s silentStore) Txn(context.Context) v3.Txn { return silentTxn{s} }

type silentTxn struct{ silentStore }

func (s silentTxn) If(...v3.Cmp) v3.Txn  { return s }
func (s silentTxn) Then(...v3.Op) v3.Txn { return s }
func (s silentTxn) Else(...v3.Op) v3.Txn { return s }

func (s silentTxn) Commit() (*v3.TxnResponse, error) {
	return &v3.TxnResponse{Header: &pb.ResponseHeader{Revision: s.rev()}, Succeeded: s.rev() == 7}, nil
}

// A member that is silent keeps nobody for longer than the patience.
func TestSilenceEndsABlockedTransactionsWatch(t *testing.T) {
	watching(t, func(t *testing.T, c *v3.Client, served *wire) {
		served.serve = func(ctx context.Context, n int, say func(v3.WatchResponse)) {
			say(v3.WatchResponse{Header: &pb.ResponseHeader{Revision: 7}, Created: true})
			<-ctx.Done()
		}
		begin := time.Now()
		c.KV = silentStore{changes: begin.Add(time.Second)}
		attempts := 0
		_, err := NewSTM(c, func(s STM) error {
			if attempts++; s.Rev("key") == 7 {
				s.Retry()
			}
			return nil
		})
		require.NoError(t, err)
		require.Equal(t, 2, attempts)
		require.LessOrEqual(t, time.Since(begin), time.Minute)
	})
}

// Each of two watches tells what happened to its own part. What happened to the other one before
// is not known yet.
func TestTheNewsOfOneOfSeveralWatchesAreNoSnapshot(t *testing.T) {
	put := &v3.Event{Kv: &mvccpb.KeyValue{Key: []byte("a"), ModRevision: 9}}
	news := v3.WatchResponse{Header: &pb.ResponseHeader{Revision: 9}, Events: []*v3.Event{put}}
	for n, whole := range map[int]bool{1: true, 2: false} {
		a := &attempt{level: levels[Serializable], reads: newFacts()}
		a.reads.insert(span{interval{"", unbounded}, 5, nil})
		b := &blocked{attempt: a, watched: make([]want, n), rev: 5}
		next, changed, err := b.hear(t.Context(), news)
		require.NoError(t, err)
		require.True(t, changed)
		require.Equal(t, whole, next.header != nil)
		if kv, known := next.known.get("a"); whole {
			require.True(t, known)
			require.EqualValues(t, 9, kv.ModRevision)
			require.EqualValues(t, 9, next.header.Revision)
		}
		b.rev = 9
		_, changed, err = b.hear(t.Context(), news)
		require.NoError(t, err)
		require.False(t, changed, "a member that lags tells what was read already")
	}
}
