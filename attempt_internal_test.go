package concurrency

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	v3 "go.etcd.io/etcd/client/v3"
)

func stateAt(rev int64, keys ...string) snapshot {
	s := snapshot{header: &pb.ResponseHeader{Revision: rev}, known: newFacts()}
	for _, key := range keys {
		s.known.keys[key] = &mvccpb.KeyValue{Key: []byte(key), Value: []byte("old"), ModRevision: rev, CreateRevision: 2, Version: 3}
	}
	return s
}

func TestWhatACommitLeaves(t *testing.T) {
	a := &attempt{reads: stateAt(5, "read", "put", "deleted", "renewed").known, written: map[string]*write{}}
	a.reads.keys["missing"] = nil
	a.Put("put", "new")
	a.Del("deleted")
	a.Put("renewed", "", v3.WithIgnoreValue()) // keeps a value that nobody here knows
	a.Put("blind", "new")
	left := a.stateAfter(&v3.TxnResponse{Header: &pb.ResponseHeader{Revision: 9}})

	require.EqualValues(t, 9, left.header.Revision)
	require.Equal(t, a.reads.keys["read"], left.known.keys["read"])
	require.Equal(t, &mvccpb.KeyValue{
		Key: []byte("put"), Value: []byte("new"), CreateRevision: 2, ModRevision: 9, Version: 4,
	}, left.known.keys["put"])
	for _, key := range []string{"deleted", "missing"} {
		kv, known := left.known.keys[key]
		require.True(t, known, key)
		require.Nil(t, kv, key)
	}
	for _, key := range []string{"renewed", "blind"} { // not all of them is known
		require.NotContains(t, left.known.keys, key)
	}
	require.NotNil(t, a.reads.keys["deleted"], "the read set is the attempt's own")
}

func TestWhatACommitWithRangesLeaves(t *testing.T) {
	a := &attempt{reads: stateAt(5, "single").known, written: map[string]*write{}}
	seen := stateAt(5, "a", "b", "c").known.keys
	a.reads.insert(span{interval{"a", "d"}, 5, []*mvccpb.KeyValue{seen["a"], seen["b"], seen["c"]}})
	a.Put("a", "new")
	a.DelRange("b", "d")
	a.Put("c", "new")
	a.Put("bb", "created")
	left := a.stateAfter(&v3.TxnResponse{Header: &pb.ResponseHeader{Revision: 9}}).known.keys
	require.Len(t, left, 5)
	require.NotNil(t, left["single"])
	require.Nil(t, left["b"])
	for key, create := range map[string]int64{"a": 2, "c": 2, "bb": 9} {
		require.EqualValues(t, 9, left[key].GetModRevision(), key)
		require.Equal(t, create, left[key].GetCreateRevision(), key)
	}
}

func TestOutdated(t *testing.T) {
	read := stateAt(5, "k")
	read.known.insert(span{interval{"r", "t"}, 5, []*mvccpb.KeyValue{stateAt(5, "s").known.keys["s"]}})
	for name, c := range map[string]struct {
		news snapshot
		want bool
	}{
		"no news":                  {snapshot{}, false},
		"changed since":            {stateAt(7, "k"), true},
		"another key changed":      {stateAt(7, "other"), false},
		"unchanged since":          {snapshot{stateAt(7).header, read.known}, false},
		"older than what was read": {stateAt(3, "k"), false},
		"in a range, new":          {stateAt(7, "r"), true},
		"in a range, changed":      {stateAt(7, "s"), true},
		"behind the range":         {stateAt(7, "t"), false},
	} {
		a := &attempt{carried: carried{snapshot: snapshot{header: read.header}}, reads: read.known}
		require.Equal(t, c.want, a.outdated(c.news), name)
	}
	require.False(t, (&attempt{}).outdated(stateAt(7, "k")), "nothing was read")
}

// present is a KV in which each key has been modified at revision 9.
type present struct{ v3.KV }

func (present) Get(_ context.Context, key string, _ ...v3.OpOption) (*v3.GetResponse, error) {
	kv := &mvccpb.KeyValue{Key: []byte(key), Value: []byte("new"), ModRevision: 9}
	return &v3.GetResponse{Header: &pb.ResponseHeader{Revision: 9}, Kvs: []*mvccpb.KeyValue{kv}}, nil
}

func TestAKeyThatWasWrittenIsNotRead(t *testing.T) {
	client := v3.NewCtxClient(t.Context())
	client.KV = present{}
	a := &attempt{client: client, options: stmOptions{ctx: t.Context()}, level: levels[Serializable]}
	a.part, a.chunk, a.contender = 1, 1, sharedOf(client).contention.newContender()
	err := a.run(func(s STM) error {
		s.Put("k", "mine")
		require.Equal(t, "mine", s.Get("k"))
		require.True(t, a.reads.empty())
		require.Equal(t, "mine", s.Get("k", "other"))
		require.Len(t, a.reads.keys, 2, "all of several keys are protected")
		return context.Canceled
	})
	require.Equal(t, context.Canceled, err)
}

// What the answer to a conflict said has grown old in a pause, and only then.
func TestATransactionThatHasPausedReadsAnew(t *testing.T) {
	for rested, want := range map[bool]string{true: "new", false: "old"} {
		client := v3.NewCtxClient(t.Context())
		client.KV = present{}
		a := &attempt{client: client, options: stmOptions{ctx: t.Context()}, level: levels[Serializable]}
		a.carried = carried{snapshot: stateAt(5, "k"), part: 1, madeWay: rested, contender: sharedOf(client).contention.newContender()}
		err := a.run(func(s STM) error {
			require.Equal(t, want, s.Get("k"))
			return nil
		})
		require.NoError(t, err)
	}
}

// Transactions contend about keys that they read, check and write.
func TestContested(t *testing.T) {
	for i, l := range levels {
		a := &attempt{level: l, reads: stateAt(5, "read", "both").known, written: map[string]*write{}}
		a.Put("both", "")
		a.Put("written", "")
		want := []string{"both"}
		if Isolation(i) == ReadCommitted {
			want = nil
		}
		require.Equal(t, want, a.contested())
	}
}
