package virtual_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/virtual"
)

// script does one thing after another with a client, and notes what comes of it: without
// what differs from run to run, which is where the revisions begin and how leases are called.
type script struct {
	t      *testing.T
	ctx    context.Context
	client *clientv3.Client
	base   int64 // revision at the beginning
	leases []clientv3.LeaseID
	lines  []string
}

// note adds a line.
func (s *script) note(what string, resp proto.Message, err error) {
	line := what + ": "
	switch {
	case err != nil:
		line += fmt.Sprintf("%T, code %v, %v", err, status.Code(err), err)
	case resp != nil:
		resp = proto.Clone(resp)
		s.level(resp.ProtoReflect())
		line += fmt.Sprintf("%T %v", resp, text(resp))
	}
	s.lines = append(s.lines, line)
}

// text is the text of a message; the library prints with spaces that differ from build to build.
func text(m proto.Message) string { return strings.Join(strings.Fields(fmt.Sprint(m)), " ") }

// level makes the revisions in a message relative, and gives leases their numbers.
func (s *script) level(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := string(f.Name())
		switch {
		case f.IsList() && f.Kind() == protoreflect.MessageKind:
			for i := range v.List().Len() {
				s.level(v.List().Get(i).Message())
			}
		case f.IsMap(), f.IsList():
		case f.Kind() == protoreflect.MessageKind:
			s.level(v.Message())
		case strings.HasSuffix(name, "revision"):
			m.Set(f, protoreflect.ValueOfInt64(v.Int()-s.base))
		case name == "ID" || name == "lease":
			m.Set(f, protoreflect.ValueOfInt64(s.number(v.Int())))
		case name == "raft_term":
			m.Clear(f)
		}
		return true
	})
}

// number is the number of a lease, in the order of their granting.
func (s *script) number(id int64) int64 {
	for i, lease := range s.leases {
		if int64(lease) == id {
			return int64(i + 1)
		}
	}
	return id
}

// watched notes the next response of a watch.
func (s *script) watched(what string, ch clientv3.WatchChan) {
	var resp clientv3.WatchResponse
	var ok bool
	select {
	case resp, ok = <-ch:
	case <-time.After(30 * time.Second):
		s.t.Fatalf("%s: nothing came", what)
	}
	if !ok {
		s.note(what+", closed", nil, nil)
		return
	}
	compacted := resp.CompactRevision
	if compacted != 0 {
		compacted -= s.base
	}
	if resp.Header.GetRevision() != 0 {
		s.note(what+", header", resp.Header, nil)
	}
	s.note(fmt.Sprintf("%s, created %t, canceled %t, compacted %d, progress %t, %q", what,
		resp.Created, resp.Canceled, compacted, resp.IsProgressNotify(), resp.CancelReason), nil, resp.Err())
	for _, ev := range resp.Events {
		s.note(what+fmt.Sprintf(", event, create %t, modify %t", ev.IsCreate(), ev.IsModify()),
			(*mvccpb.Event)(ev), nil)
	}
}

// parts of the script, in this order.
var parts = []struct {
	name string
	run  func(s *script)
}{
	{"keys", keys},
	{"transactions", transactions},
	{"leases", leases},
	{"watches", watches},
	{"compaction", compaction},
	{"maintenance", maintenance},
	{"contexts", contexts},
	{"closing", closing},
}

// Property: what the clients of a bubble say of a real server is what a client with a
// connection says.
func TestNoFake(t *testing.T) {
	cluster := etcdtest.New(t)
	want := play(t, cluster.Client(t))
	for name, bare := range map[string]bool{"client": false, "bare client": true} {
		client, end := virtual.Outside(cluster.Server(t), bare)
		defer end()
		got := play(t, client)
		for _, p := range parts {
			require.NotEmpty(t, want[p.name])
			require.Equal(t, strings.Join(want[p.name], "\n"), strings.Join(got[p.name], "\n"), "%s, %s", name, p.name)
		}
	}
}

// play runs the script, on an empty store, and gives the lines of each part.
func play(t *testing.T, client *clientv3.Client) map[string][]string {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	_, err := client.Delete(ctx, "", clientv3.WithPrefix())
	require.NoError(t, err)
	lines := make(map[string][]string)
	for _, p := range parts {
		resp, err := client.Get(ctx, "none")
		require.NoError(t, err)
		s := &script{t: t, ctx: ctx, client: client, base: resp.Header.Revision}
		p.run(s)
		lines[p.name] = s.lines
	}
	return lines
}

func (s *script) put(key, value string, opts ...clientv3.OpOption) {
	resp, err := s.client.Put(s.ctx, key, value, opts...)
	s.note("put "+key, pb(resp, err), err)
}

func (s *script) get(key string, opts ...clientv3.OpOption) {
	resp, err := s.client.Get(s.ctx, key, opts...)
	s.note("get "+key, pb(resp, err), err)
}

func (s *script) del(key string, opts ...clientv3.OpOption) {
	resp, err := s.client.Delete(s.ctx, key, opts...)
	s.note("delete "+key, pb(resp, err), err)
}

// pb is a response as a message of protobuf.
func pb(resp any, err error) proto.Message {
	if err != nil {
		return nil
	}
	switch r := resp.(type) {
	case *clientv3.PutResponse:
		return (*etcdserverpb.PutResponse)(r)
	case *clientv3.GetResponse:
		return (*etcdserverpb.RangeResponse)(r)
	case *clientv3.DeleteResponse:
		return (*etcdserverpb.DeleteRangeResponse)(r)
	case *clientv3.TxnResponse:
		return (*etcdserverpb.TxnResponse)(r)
	case *clientv3.CompactResponse:
		return (*etcdserverpb.CompactionResponse)(r)
	case *clientv3.LeaseRevokeResponse:
		return (*etcdserverpb.LeaseRevokeResponse)(r)
	}
	panic(fmt.Sprintf("%T", resp))
}

func keys(s *script) {
	s.put("a", "1")
	s.put("a", "2", clientv3.WithPrevKV())
	s.put("b/1", "x")
	s.put("b/2", "y")
	s.get("a")
	s.get("b/", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortDescend))
	s.get("b/", clientv3.WithPrefix(), clientv3.WithLimit(1), clientv3.WithKeysOnly())
	s.get("b/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	s.get("b/", clientv3.WithLastCreate()...)
	s.get("a", clientv3.WithRev(s.base+1))
	s.get("a", clientv3.WithRev(s.base+1000))
	s.get("a", clientv3.WithSerializable())
	s.get("")
	s.put("", "x")
	s.put("none", "", clientv3.WithIgnoreValue())
	s.put("c", "x", clientv3.WithLease(4711))
	s.put("large", strings.Repeat("x", 1600*1024))
	s.put("larger", strings.Repeat("x", 3<<20))
	s.del("b/", clientv3.WithPrefix(), clientv3.WithPrevKV())
	s.del("none")
	s.del("")
}

func transactions(s *script) {
	commit := func(what string, txn clientv3.Txn) {
		resp, err := txn.Commit()
		s.note(what, pb(resp, err), err)
	}
	absent := clientv3.Compare(clientv3.CreateRevision("t"), "=", 0)
	for range 2 {
		commit("put if absent", s.client.Txn(s.ctx).If(absent).Then(clientv3.OpPut("t", "1")).
			Else(clientv3.OpGet("t"), clientv3.OpGet("t", clientv3.WithPrefix())))
	}
	commit("nested", s.client.Txn(s.ctx).Then(
		clientv3.OpTxn([]clientv3.Cmp{absent}, nil, []clientv3.Op{clientv3.OpDelete("t", clientv3.WithPrevKV())}),
	))
	commit("empty", s.client.Txn(s.ctx))
	commit("twice", s.client.Txn(s.ctx).Then(clientv3.OpPut("t", "1"), clientv3.OpPut("t", "2")))
	var many []clientv3.Op
	for i := range 129 {
		many = append(many, clientv3.OpPut(fmt.Sprint("many", i), ""))
	}
	commit("too many", s.client.Txn(s.ctx).Then(many...))
	commit("empty key", s.client.Txn(s.ctx).If(clientv3.Compare(clientv3.Value(""), "=", "")))
	commit("future", s.client.Txn(s.ctx).Then(clientv3.OpGet("t", clientv3.WithRev(s.base+1000))))
}

func leases(s *script) {
	grant := func(ttl int64) clientv3.LeaseID {
		resp, err := s.client.Grant(s.ctx, ttl)
		require.NoError(s.t, err)
		s.leases = append(s.leases, resp.ID)
		s.note(fmt.Sprint("grant ", resp.TTL, resp.Error), resp.ResponseHeader, nil)
		return resp.ID
	}
	first, second := grant(100), grant(200)
	s.put("l", "x", clientv3.WithLease(first))
	for i, id := range []clientv3.LeaseID{first, second, 4711} {
		ttl, err := s.client.TimeToLive(s.ctx, id, clientv3.WithAttachedKeys())
		require.NoError(s.t, err)
		s.note(fmt.Sprint("ttl ", i, ttl.TTL > 90 || ttl.TTL == -1, ttl.GrantedTTL, ttl.Keys), ttl.ResponseHeader, nil)
		resp, err := s.client.KeepAliveOnce(s.ctx, id)
		if err != nil {
			s.note(fmt.Sprint("keep alive once ", i), nil, err)
			continue
		}
		s.note(fmt.Sprint("keep alive once ", i, resp.TTL, s.number(int64(resp.ID))), resp.ResponseHeader, nil)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	ch, err := s.client.KeepAlive(ctx, first)
	s.note("keep alive", nil, err)
	resp := <-ch
	s.note(fmt.Sprint("keep alive ", resp.TTL, s.number(int64(resp.ID))), resp.ResponseHeader, nil)
	cancel()
	_, ok := <-ch
	s.note(fmt.Sprint("kept alive ", ok), nil, nil)
	all, err := s.client.Leases(s.ctx)
	require.NoError(s.t, err)
	s.note(fmt.Sprint("leases ", len(all.Leases)), nil, nil)
	for range 2 {
		resp, err := s.client.Revoke(s.ctx, first)
		s.note("revoke", pb(resp, err), err)
	}
	s.get("l")
	revoked, err := s.client.Revoke(s.ctx, second)
	s.note("revoke", pb(revoked, err), err)
	_, err = s.client.Grant(s.ctx, 9_000_000_001)
	s.note("grant too long", nil, err)
}

func watches(s *script) {
	ctx, cancel := context.WithCancel(s.ctx)
	watch := func(key string, opts ...clientv3.OpOption) clientv3.WatchChan {
		return s.client.Watch(ctx, key, opts...)
	}
	created := watch("w", clientv3.WithPrefix(), clientv3.WithCreatedNotify(), clientv3.WithPrevKV())
	s.watched("created", created)
	deletions := watch("w1", clientv3.WithFilterPut())
	puts := watch("w1", clientv3.WithFilterDelete())
	leader := s.client.Watch(clientv3.WithRequireLeader(ctx), "w1")
	s.put("w1", "1")
	s.put("w1", "2")
	s.del("w1")
	s.del("w1")
	s.put("w2", "3")
	for range 4 {
		s.watched("created", created)
	}
	s.watched("deletions", deletions)
	s.watched("puts", puts)
	s.watched("puts", puts)
	for range 3 {
		s.watched("leader", leader)
	}
	// How many responses the past comes in is the server's choice.
	past := watch("w", clientv3.WithPrefix(), clientv3.WithRev(s.base+1))
	s.watched("past", past)
	future := watch("w", clientv3.WithPrefix(), clientv3.WithRev(s.base+6))
	s.put("w3", "in the past of that watch")
	s.put("w3", "seen")
	s.watched("future", future)
	require.NoError(s.t, s.client.RequestProgress(ctx))
	s.watched("progress", deletions)
	_, err := s.client.Txn(ctx).Then(clientv3.OpPut("w4", "x"), clientv3.OpPut("w5", "x"), clientv3.OpDelete("w3")).Commit()
	require.NoError(s.t, err)
	cancel()
	s.ended("deletions", deletions)
	s.ended("leader", leader)
	s.watched("ended before", s.client.Watch(ctx, "w"))
	s.watched("negative", s.client.Watch(s.ctx, "w", clientv3.WithRev(-1)))
}

// ended notes that a watch closes its channel, whatever it said before.
func (s *script) ended(what string, ch clientv3.WatchChan) {
	for range ch {
	}
	s.watched(what, ch)
}

func compaction(s *script) {
	for i := range 5 {
		s.put("c", fmt.Sprint(i))
	}
	compact := func(rev int64) {
		resp, err := s.client.Compact(s.ctx, rev)
		s.note("compact", pb(resp, err), err)
	}
	compact(s.base + 3)
	compact(s.base + 2)
	compact(s.base + 1000)
	s.get("c", clientv3.WithRev(s.base+2))
	s.get("c", clientv3.WithRev(s.base+3))
	ch := s.client.Watch(s.ctx, "c", clientv3.WithRev(s.base+1), clientv3.WithCreatedNotify())
	s.watched("compacted", ch)
	s.watched("compacted", ch)
	s.watched("compacted", ch)
}

func maintenance(s *script) {
	alarms, err := s.client.AlarmList(s.ctx)
	require.NoError(s.t, err)
	s.note(fmt.Sprint("alarms ", len(alarms.Alarms)), nil, nil)
	members, err := s.client.MemberList(s.ctx)
	require.NoError(s.t, err)
	s.note(fmt.Sprint("members ", len(members.Members), members.Members[0].Name), nil, nil)
	_, err = s.client.Authenticate(s.ctx, "nobody", "nothing")
	s.note("authenticate", nil, err)
	_, err = s.client.MoveLeader(s.ctx, 4711)
	s.note("move leader", nil, err)
}

func contexts(s *script) {
	over, cancel := context.WithCancel(s.ctx)
	cancel()
	late, cancel := context.WithDeadline(s.ctx, time.Now().Add(-time.Second))
	defer cancel()
	for what, ctx := range map[string]context.Context{"over": over, "late": late} {
		_, err := s.client.Get(ctx, "x")
		same(s, what, "get", err, ctx)
		_, err = s.client.Put(ctx, "x", "")
		same(s, what, "put", err, ctx)
		_, err = s.client.Txn(ctx).Commit()
		same(s, what, "txn", err, ctx)
		_, err = s.client.Grant(ctx, 10)
		same(s, what, "grant", err, ctx)
		_, err = s.client.KeepAliveOnce(ctx, 4711)
		same(s, what, "keep alive once", err, ctx)
	}
	s.note("no leader is missed", nil, leaderless(s))
}

// same requires the bare error of the context: the order of the map must not count.
func same(s *script, what, call string, err error, ctx context.Context) {
	require.Equal(s.t, ctx.Err(), err, "%s %s", what, call)
}

func leaderless(s *script) error {
	_, err := s.client.Get(clientv3.WithRequireLeader(s.ctx), "x")
	return err
}

func closing(s *script) {
	ch := s.client.Watch(s.ctx, "w")
	s.client.Close()
	// client/v3 tells of the closing before it closes the channel, or does not: its goroutines race.
	for resp := range ch {
		require.True(s.t, resp.Canceled)
	}
	s.note("watch, closed", nil, nil)
	_, err := s.client.Get(s.ctx, "x")
	s.note("get", nil, err)
	_, err = s.client.Txn(s.ctx).Commit()
	s.note("txn", nil, err)
	_, err = s.client.KeepAliveOnce(s.ctx, 4711)
	s.note("keep alive once", nil, err)
	s.watched("watch anew", s.client.Watch(s.ctx, "w"))
}
