package concurrency

import (
	"testing"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	v3 "go.etcd.io/etcd/client/v3"
)

func stateAt(rev int64, keys ...string) snapshot {
	s := snapshot{header: &pb.ResponseHeader{Revision: rev}, known: map[string]*mvccpb.KeyValue{}}
	for _, key := range keys {
		s.known[key] = &mvccpb.KeyValue{Key: []byte(key), Value: []byte("old"), ModRevision: rev}
	}
	return s
}

func TestWhatACommitLeaves(t *testing.T) {
	a := &attempt{reads: stateAt(5, "read", "put", "deleted", "renewed").known}
	a.reads["missing"] = nil
	a.Put("put", "new")
	a.Del("deleted")
	a.Put("renewed", "", v3.WithIgnoreValue()) // keeps a value that nobody here knows
	a.Put("blind", "new")
	left := a.left(&v3.TxnResponse{Header: &pb.ResponseHeader{Revision: 9}})

	require.EqualValues(t, 9, left.header.Revision)
	require.Equal(t, a.reads["read"], left.known["read"])
	for _, key := range []string{"put", "blind"} {
		require.Equal(t, "new", string(left.known[key].GetValue()), key)
		require.EqualValues(t, 9, left.known[key].GetModRevision(), key)
	}
	for _, key := range []string{"deleted", "missing"} {
		kv, known := left.known[key]
		require.True(t, known, key)
		require.Nil(t, kv, key)
	}
	require.NotContains(t, left.known, "renewed")
	require.NotNil(t, a.reads["deleted"], "the read set is the attempt's own")
}

func TestOutdated(t *testing.T) {
	read := stateAt(5, "k")
	for name, c := range map[string]struct {
		turn *turn
		want bool
	}{
		"no turn":                   {nil, false},
		"a turn that knows nothing": {&turn{}, false},
		"changed since":             {&turn{last: stateAt(7, "k")}, true},
		"another key changed":       {&turn{last: stateAt(7, "other")}, false},
		"unchanged since":           {&turn{last: snapshot{stateAt(7).header, read.known}}, false},
		"older than what was read":  {&turn{last: stateAt(3, "k")}, false},
	} {
		a := &attempt{carried: carried{snapshot: snapshot{header: read.header}, turn: c.turn}, reads: read.known}
		require.Equal(t, c.want, a.outdated(), name)
	}
}

func TestTurnsThatNobodyUsesAreForgotten(t *testing.T) {
	var client *v3.Client
	none, inVain := takeTurn(t.Context(), client, []string{"none"}, false)
	require.Nil(t, none)
	require.False(t, inVain)
	first, _ := takeTurn(t.Context(), client, []string{"a", "b"}, true)
	require.NotNil(t, first)
	// The second waits in vain for the first, and leaves the turn to it.
	none, inVain = takeTurn(t.Context(), client, []string{"none", "a"}, false)
	require.Nil(t, none)
	require.True(t, inVain)
	first.release()
	require.Nil(t, joinTurn(client, []string{"a", "b"}, false))
}

func TestATurnIsWaitedForInVainOnce(t *testing.T) {
	var client *v3.Client
	keys := []string{"once"}
	taken, _ := takeTurn(t.Context(), client, keys, true)
	a := &attempt{client: client, options: stmOptions{ctx: t.Context()}}
	a.Put(keys[0], "")
	a.wantTurn(keys, true)
	require.Nil(t, a.turn)
	taken.release()
	a.wantTurn(keys, true)
	require.Nil(t, a.turn, "its transaction has waited before")
	next := &attempt{client: client, options: a.options, writes: a.writes}
	next.wantTurn(keys, true)
	require.NotNil(t, next.turn)
	next.turn.release()
}
