package concurrency_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/goleak"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
	"example.com/etcd/concurrency/internal/virtual"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// Most tests wait, for a lease or an answer, so that more of them can run at
	// once than there are processors. It can be overruled from outside.
	fuzzing := flag.Lookup("test.fuzz").Value.String() != "" // each worker has a server of its own
	if parallel := flag.Lookup("test.parallel"); !fuzzing && parallel.Value.String() == parallel.DefValue {
		parallel.Value.Set("12")
	}
	goleak.VerifyTestMain(suite{m}, etcdtest.IgnoreServer()...)
}

// suite runs the tests and stops the shared server before goleak looks.
type suite struct{ *testing.M }

func (s suite) Run() int {
	defer closeShared()
	code := s.M.Run()
	if left := leftovers(); len(left) > 0 {
		fmt.Fprintln(os.Stderr, "left behind:", strings.Join(left, ", "))
		return max(code, 1)
	}
	return code
}

// shared is the server that the tests of this package share. It is started by the
// first test that asks for it.
var shared struct {
	sync.Mutex
	cluster *etcdtest.Cluster
}

// server is the shared server, of one member. Tests that change it, or count all
// that happens to it, start one of their own with etcdtest.New.
func server(tb testing.TB) *etcdtest.Cluster {
	tb.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.cluster == nil {
		c, err := etcdtest.Start()
		require.NoError(tb, err)
		shared.cluster = c
	}
	return shared.cluster
}

func closeShared() {
	if shared.cluster != nil {
		shared.cluster.Close()
	}
}

// leftovers lists the keys that a lease holds on the shared server, each of which
// has the name of its test in it. What goes away in the background has some time.
func leftovers() (names []string) {
	if shared.cluster == nil {
		return nil
	}
	client, err := shared.cluster.NewClient()
	if err != nil {
		return []string{err.Error()}
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		names = nil
		resp, err := client.Get(ctx, "", clientv3.WithPrefix(), clientv3.WithKeysOnly())
		if err != nil {
			return []string{err.Error()}
		}
		for _, kv := range resp.Kvs {
			if kv.Lease != 0 {
				names = append(names, string(kv.Key))
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return names
		}
		if len(names) == 0 {
			return nil
		}
	}
}

// client is a client of the shared server, for this test alone.
func client(tb testing.TB) *clientv3.Client {
	tb.Helper()
	return server(tb).Client(tb)
}

// proxied is a client that reaches the server through a proxy alone.
func proxied(tb testing.TB, c *etcdtest.Cluster) (*fault.Proxy, *clientv3.Client) {
	tb.Helper()
	p, err := fault.NewProxy(c.Endpoint(0))
	require.NoError(tb, err)
	tb.Cleanup(p.Close)
	return p, etcdtest.Dial(tb, p.Endpoint())
}

// stalled is a client of an endpoint that accepts connections and never answers.
func stalled(tb testing.TB) (*fault.Proxy, *clientv3.Client) {
	tb.Helper()
	p, c := proxied(tb, server(tb))
	p.Stall()
	return p, c
}

// guest enables authentication on the cluster and is a client of a user who may read
// and write under one prefix alone.
func guest(tb testing.TB, c *etcdtest.Cluster, prefix string) *clientv3.Client {
	tb.Helper()
	ctx, root := context.Background(), c.Client(tb)
	var err error
	do := func(_ any, e error) { err = firstOf(err, e) }
	do(root.UserAdd(ctx, "root", "secret"))
	do(root.UserGrantRole(ctx, "root", "root"))
	do(root.RoleAdd(ctx, "guest"))
	do(root.RoleGrantPermission(ctx, "guest", prefix, clientv3.GetPrefixRangeEnd(prefix),
		clientv3.PermissionType(clientv3.PermReadWrite)))
	do(root.UserAdd(ctx, "guest", "secret"))
	do(root.UserGrantRole(ctx, "guest", "guest"))
	do(root.AuthEnable(ctx))
	require.NoError(tb, err)
	cfg := etcdtest.ClientConfig(c.Endpoints()...)
	cfg.Username, cfg.Password = "guest", "secret"
	client, err := clientv3.New(cfg)
	require.NoError(tb, err)
	tb.Cleanup(func() { client.Close() })
	return client
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// authServer is a server whose passwords are cheap to check, if it can be configured.
func authServer(tb testing.TB) *etcdtest.Cluster {
	tb.Helper()
	if !server(tb).Embedded() {
		return etcdtest.New(tb)
	}
	return etcdtest.New(tb, etcdtest.Config(func(_ int, cfg *embed.Config) { cfg.BcryptCost = 4 }))
}

// rootOf is a client of the user that guest has made root.
func rootOf(tb testing.TB, c *etcdtest.Cluster) *clientv3.Client {
	tb.Helper()
	cfg := etcdtest.ClientConfig(c.Endpoints()...)
	cfg.Username, cfg.Password = "root", "secret"
	root, err := clientv3.New(cfg)
	require.NoError(tb, err)
	tb.Cleanup(func() { root.Close() })
	return root
}

// compacted writes n keys and compacts all that was before.
func compacted(tb testing.TB, c *clientv3.Client, key string, n int) {
	tb.Helper()
	ctx := context.Background()
	var rev int64
	for range n {
		resp, err := c.Put(ctx, key, "noise")
		require.NoError(tb, err)
		rev = resp.Header.Revision
	}
	_, err := c.Compact(ctx, rev)
	require.NoError(tb, err)
}

// session is a session that is closed at the end of the test, unless the test has
// done so.
func session(
	tb testing.TB, client *clientv3.Client, opts ...concurrency.SessionOption,
) *concurrency.Session {
	tb.Helper()
	s, err := concurrency.NewSession(client, opts...)
	require.NoError(tb, err)
	tb.Cleanup(func() { s.Close() })
	return s
}

// lives says whether the server has the lease.
func lives(tb testing.TB, client *clientv3.Client, id clientv3.LeaseID) bool {
	tb.Helper()
	resp, err := client.TimeToLive(context.Background(), id)
	require.NoError(tb, err)
	return resp.TTL >= 0
}

// granted is a lease of the test's own, revoked at its end.
func granted(tb testing.TB, client *clientv3.Client, ttl int64) clientv3.LeaseID {
	tb.Helper()
	resp, err := client.Grant(context.Background(), ttl)
	require.NoError(tb, err)
	revokedAtEnd(tb, client, resp.ID)
	return resp.ID
}

// revokedAtEnd revokes a lease that no session closes.
func revokedAtEnd(tb testing.TB, client *clientv3.Client, id clientv3.LeaseID) {
	tb.Cleanup(func() { client.Revoke(context.Background(), id) })
}

// revoke takes a session's lease away from outside.
func revoke(tb testing.TB, client *clientv3.Client, s *concurrency.Session) {
	tb.Helper()
	_, err := client.Revoke(context.Background(), s.Lease())
	require.NoError(tb, err)
}

// survives fails the test if the session ends before it has lived for n times its TTL.
func survives(tb testing.TB, s *concurrency.Session, n int) {
	tb.Helper()
	timer := time.NewTimer(time.Duration(n) * s.TTL())
	defer timer.Stop()
	select {
	case <-s.Done():
		require.FailNow(tb, "the session has ended", "cause %v", context.Cause(s.Ctx()))
	case <-timer.C:
	}
}

var prefixes atomic.Int64

// prefix is a name that no other test has, nor another run of this one.
func prefix(tb testing.TB) string {
	tb.Helper()
	name := strings.NewReplacer("/", ".", " ", "_").Replace(tb.Name())
	return fmt.Sprintf("%s-%d", name, prefixes.Add(1))
}

// counted puts faults, and counters of calls, between the test and its client. The
// test must be the only user of the client, and have no sessions on it yet.
func counted(tb testing.TB, client *clientv3.Client) *fault.Faults {
	tb.Helper()
	f := fault.Wrap(client)
	tb.Cleanup(f.Clear)
	return f
}

// ended fails the test if the channel is not closed in time.
func ended(tb testing.TB, done <-chan struct{}, msg string, args ...any) {
	tb.Helper()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		require.FailNow(tb, "not within 30 s: "+fmt.Sprintf(msg, args...))
	}
}

// cancelled is a context that has ended.
func cancelled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// within fails the test if the call takes longer, and gives its error.
func within(tb testing.TB, bound time.Duration, call func() error) error {
	tb.Helper()
	began := time.Now()
	err := etcdtest.Go(call).Wait(tb)
	require.Less(tb, time.Since(began), bound, "the call took too long")
	return err
}

// soon gives the error of a call that returns within a second, or fails the test: a busy
// machine is given a few more.
func soon(tb testing.TB, call *etcdtest.Call) error {
	tb.Helper()
	select {
	case <-call.Done():
	case <-time.After(4 * time.Second):
		require.FailNow(tb, "it should have returned")
	}
	return call.Err()
}

// requireOurPanic checks that a caller's bug is told as one.
func requireOurPanic(tb testing.TB, bug func()) {
	tb.Helper()
	defer func() {
		tb.Helper()
		text := fmt.Sprint(recover())
		require.True(tb, strings.HasPrefix(text, "concurrency: "), "the panic is %q", text)
	}()
	bug()
}

// remote is what a test in virtual time works with: its own T, a client, and the network
// before that.
func remote(b *virtual.Bubble) (*testing.T, *clientv3.Client, *virtual.Network) {
	c, n := b.Client("client")
	return b.T(), c, n
}

// line is one lock and what a test needs around it: a client under faults with one
// session, and an outside observer whose calls nobody counts.
type line struct {
	name    string
	client  *clientv3.Client
	faults  *fault.Faults
	session *concurrency.Session
	mutex   *concurrency.Mutex
	outside *clientv3.Client
}

func newLine(tb testing.TB, opts ...concurrency.SessionOption) *line {
	tb.Helper()
	return lineOn(tb, server(tb), opts...)
}

// lineOn is a line on a cluster, such as one on which nobody else writes.
func lineOn(tb testing.TB, on *etcdtest.Cluster, opts ...concurrency.SessionOption) *line {
	tb.Helper()
	l := &line{name: prefix(tb), client: on.Client(tb), outside: on.Client(tb)}
	l.faults = counted(tb, l.client)
	l.session = session(tb, l.client, opts...)
	l.mutex = l.handle()
	return l
}

// farLine is a line whose client reaches the server through a proxy alone.
func farLine(tb testing.TB, own *etcdtest.Cluster, opts ...concurrency.SessionOption) (*fault.Proxy, *line) {
	tb.Helper()
	p, c := proxied(tb, own)
	l := &line{name: prefix(tb), client: c, outside: own.Client(tb), faults: counted(tb, c)}
	l.session = session(tb, c, opts...)
	l.mutex = l.handle()
	tb.Cleanup(func() { p.Accept(); p.Resume() }) // before the session is closed
	return p, l
}

// handle is another handle of the same session.
func (l *line) handle() *concurrency.Mutex { return concurrency.NewMutex(l.session, l.name) }

// rival is a handle of a session of its own, on the observer's client.
func (l *line) rival(tb testing.TB) *concurrency.Mutex {
	tb.Helper()
	return concurrency.NewMutex(session(tb, l.outside), l.name)
}

// held is a rival that holds the lock.
func (l *line) held(tb testing.TB) *concurrency.Mutex {
	tb.Helper()
	m := l.rival(tb)
	require.NoError(tb, m.Lock(context.Background()))
	return m
}

// stand waits until n keys stand in line.
func (l *line) stand(tb testing.TB, n int) {
	tb.Helper()
	etcdtest.WaitKeys(tb, l.outside, l.name+"/", n)
}

// delete takes a handle's key away by hand.
func (l *line) delete(tb testing.TB, key string) {
	tb.Helper()
	resp, err := l.outside.Delete(context.Background(), key)
	require.NoError(tb, err)
	require.EqualValues(tb, 1, resp.Deleted)
}

// owns says what the handle's IsOwner says in a transaction.
func (l *line) owns(tb testing.TB, m *concurrency.Mutex) bool {
	tb.Helper()
	resp, err := l.outside.Txn(context.Background()).If(m.IsOwner()).Commit()
	require.NoError(tb, err)
	return resp.Succeeded
}

// revision is the store's.
func (l *line) revision(tb testing.TB) int64 {
	tb.Helper()
	resp, err := l.outside.Get(context.Background(), l.name)
	require.NoError(tb, err)
	return resp.Header.Revision
}

// waits begins a call and returns when n tickets stand in line.
func (l *line) waits(tb testing.TB, n int, call func() error) *etcdtest.Call {
	tb.Helper()
	c := etcdtest.Go(call)
	l.stand(tb, n)
	return c
}

// givesUp makes a call that joins the line, and ends its context when n keys stand there and the call
// knows nothing of it, because the join is not answered.
func (l *line) givesUp(tb testing.TB, n int, take func(context.Context) error) {
	tb.Helper()
	join := l.faults.HoldAnswer(fault.Txn, 1)
	ctx, cancel := context.WithCancel(tb.Context())
	call := etcdtest.Go(func() error { return take(ctx) })
	ended(tb, join.Reached(), "the join")
	l.stand(tb, n)
	cancel()
	require.Equal(tb, context.Canceled, call.Wait(tb))
}

// waiting starts a Lock and returns when it waits, on a watch that has begun.
func (l *line) waiting(tb testing.TB, ctx context.Context, m *concurrency.Mutex, n int) *etcdtest.Call {
	tb.Helper()
	begun := watchBegins(l.faults, 1)
	call := etcdtest.Go(func() error { return m.Lock(ctx) })
	l.stand(tb, n)
	ended(tb, begun, "the watch")
	return call
}

// watchBegins is closed when a server has answered the nth watch from now.
func watchBegins(f *fault.Faults, nth int) <-chan struct{} {
	begun := make(chan struct{})
	f.After(fault.Watch, nth, func(error) { close(begun) })
	return begun
}

// watched waits until the own key is watched: at the nth watch of the client.
func (l *line) watched(tb testing.TB, n int) {
	tb.Helper()
	etcdtest.Eventually(tb, func() bool { return l.faults.Count(fault.Watch) >= n }, "watch %d", n)
}

// calls lists the calls of KV and the watches that the line's client has made.
func (l *line) calls() string {
	var all []string
	for _, kind := range []fault.Kind{fault.Get, fault.Txn, fault.Watch} {
		if n := l.faults.Count(kind); n > 0 {
			all = append(all, kind.String()+" "+strconv.Itoa(n))
		}
	}
	return strings.Join(all, ", ")
}

// watchSpy remembers the contexts of watches.
type watchSpy struct {
	clientv3.Watcher
	mu   sync.Mutex // guards ctxs
	ctxs []context.Context
}

func (w *watchSpy) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	w.mu.Lock()
	w.ctxs = append(w.ctxs, ctx)
	w.mu.Unlock()
	return w.Watcher.Watch(ctx, key, opts...)
}

func (w *watchSpy) all() []context.Context {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ctxs
}

// late is a KV whose next transaction is answered with err, and reaches the server
// only when land is called: a request that was under way when its caller gave up.
type late struct {
	clientv3.KV
	err  error
	mu   sync.Mutex // guards held
	held clientv3.Txn
	next bool
}

func (l *late) Txn(ctx context.Context) clientv3.Txn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.next {
		return l.KV.Txn(ctx)
	}
	l.next = false
	return &lateTxn{Txn: l.KV.Txn(context.WithoutCancel(ctx)), ctx: ctx, late: l}
}

func (l *late) land(tb testing.TB) *clientv3.TxnResponse {
	tb.Helper()
	l.mu.Lock()
	txn := l.held
	l.mu.Unlock()
	resp, err := txn.Commit()
	require.NoError(tb, err)
	return resp
}

// sent says whether the transaction is under way.
func (l *late) sent() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held != nil
}

type lateTxn struct {
	clientv3.Txn
	ctx  context.Context
	late *late
}

func (t *lateTxn) If(cmps ...clientv3.Cmp) clientv3.Txn { t.Txn = t.Txn.If(cmps...); return t }
func (t *lateTxn) Then(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Then(ops...); return t }
func (t *lateTxn) Else(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Else(ops...); return t }

func (t *lateTxn) Commit() (*clientv3.TxnResponse, error) {
	t.late.mu.Lock()
	t.late.held = t.Txn
	t.late.mu.Unlock()
	if t.late.err != nil {
		return nil, t.late.err
	}
	<-t.ctx.Done()
	return nil, t.ctx.Err()
}

// rw is another handle of the line's session.
func (l *line) rw() *concurrency.RWMutex { return concurrency.NewRWMutex(l.session, l.name) }

// permit is a handle of a semaphore of n on the line's session.
func (l *line) permit(n int) *concurrency.Semaphore {
	return concurrency.NewSemaphore(l.session, l.name, n)
}

// lines are several locks, a to e, beside one another.
type lines struct {
	*line
}

func newLines(tb testing.TB) lines {
	tb.Helper()
	return lines{newLine(tb)}
}

// all reports what IsOwner says.
func (l lines) all(tb testing.TB, m *concurrency.MultiMutex) bool {
	tb.Helper()
	resp, err := l.outside.Txn(context.Background()).If(m.IsOwner()...).Commit()
	require.NoError(tb, err)
	return resp.Succeeded
}

// holder is a handle of a lock or of a leadership: what is said of the one holds for
// the other.
type holder struct {
	accessors
	take     func(context.Context) error
	giveBack func(context.Context) error
	owns     func() clientv3.Cmp
	during   func(context.Context, func(context.Context) error) error // Do or Lead
	released error                                                    // the cause with which Ctx ends by giveBack
}

type accessors interface {
	Ctx() context.Context
	Key() string
	Rev() int64
}

func lockOf(s *concurrency.Session, name string) holder {
	m := concurrency.NewMutex(s, name)
	return holder{m, m.Lock, m.Unlock, m.IsOwner, m.Do, concurrency.ErrLockReleased}
}

func leadershipOf(s *concurrency.Session, name string) holder {
	e := concurrency.NewElection(s, name)
	campaign := func(ctx context.Context) error { return e.Campaign(ctx, "value") }
	lead := func(ctx context.Context, work func(context.Context) error) error {
		return e.Lead(ctx, "value", work)
	}
	return holder{e, campaign, e.Resign, e.IsLeader, lead, concurrency.ErrElectionNotLeader}
}

// eachKind runs a test for both kinds of holders.
func eachKind(t *testing.T, test func(t *testing.T, kind func(*concurrency.Session, string) holder)) {
	t.Helper()
	t.Parallel()
	t.Run("lock", func(t *testing.T) {
		t.Parallel()
		test(t, lockOf)
	})
	t.Run("leadership", func(t *testing.T) {
		t.Parallel()
		test(t, leadershipOf)
	})
}

// taken is a line at whose head stands the handle that it returns.
func taken(
	tb testing.TB, kind func(*concurrency.Session, string) holder, opts ...concurrency.SessionOption,
) (*line, holder) {
	tb.Helper()
	l := newLine(tb, opts...)
	h := kind(l.session, l.name)
	require.NoError(tb, h.take(context.Background()))
	return l, h
}

// cause waits for the end of ctx and says why it came.
func cause(tb testing.TB, ctx context.Context) error {
	tb.Helper()
	ended(tb, ctx.Done(), "the end of a context")
	require.Error(tb, ctx.Err())
	return context.Cause(ctx)
}

var errWork = errors.New("the work has failed")

// none is work that must not be run.
func none(tb testing.TB) func(context.Context) error {
	return func(context.Context) error {
		tb.Error("work was run")
		return nil
	}
}

// unled is none for RunLeader.
func unled(tb testing.TB) func(context.Context, *concurrency.Election) error {
	return func(ctx context.Context, _ *concurrency.Election) error { return none(tb)(ctx) }
}

// ballot is one election and what a test needs around it: a client under faults with
// one session, and an outside observer whose calls nobody counts.
type ballot struct {
	name     string
	client   *clientv3.Client
	faults   *fault.Faults
	session  *concurrency.Session
	election *concurrency.Election
	outside  *clientv3.Client
}

func newBallot(tb testing.TB, c *etcdtest.Cluster) *ballot {
	tb.Helper()
	b := &ballot{name: prefix(tb), client: c.Client(tb), outside: c.Client(tb)}
	b.faults = counted(tb, b.client)
	b.session = session(tb, b.client)
	b.election = b.handle()
	return b
}

// handle is another handle of the same session.
func (b *ballot) handle() *concurrency.Election {
	return concurrency.NewElection(b.session, b.name)
}

// rival is a handle of a session of its own, on the observer's client.
func (b *ballot) rival(tb testing.TB) *concurrency.Election {
	tb.Helper()
	return concurrency.NewElection(session(tb, b.outside), b.name)
}

// wins lets e campaign, and win.
func (b *ballot) wins(tb testing.TB, e *concurrency.Election, value string) {
	tb.Helper()
	require.NoError(tb, e.Campaign(context.Background(), value))
}

// waits starts a Campaign and returns when n candidates stand in line.
func (b *ballot) waits(
	tb testing.TB, ctx context.Context, e *concurrency.Election, value string, n int,
) *etcdtest.Call {
	tb.Helper()
	call := etcdtest.Go(func() error { return e.Campaign(ctx, value) })
	b.stand(tb, n)
	return call
}

// stand waits until n candidates stand in line.
func (b *ballot) stand(tb testing.TB, n int) []*mvccpb.KeyValue {
	tb.Helper()
	return etcdtest.WaitKeys(tb, b.outside, b.name+"/", n)
}

// head is the key of the leader, as the store has it at the revision, 0 for now.
func (b *ballot) head(tb testing.TB, rev int64) *mvccpb.KeyValue {
	tb.Helper()
	opts := append(clientv3.WithFirstCreate(), clientv3.WithRev(rev))
	resp, err := b.outside.Get(context.Background(), b.name+"/", opts...)
	require.NoError(tb, err)
	require.Len(tb, resp.Kvs, 1)
	return resp.Kvs[0]
}

// leads checks that the store has e as the leader, with the value.
func (b *ballot) leads(tb testing.TB, e *concurrency.Election, value string) {
	tb.Helper()
	kv := b.head(tb, 0)
	require.Equal(tb, e.Key(), string(kv.Key))
	require.Equal(tb, e.Rev(), kv.CreateRevision)
	require.Equal(tb, value, string(kv.Value))
}

// delete takes a key away by hand.
func (b *ballot) delete(tb testing.TB, key string) {
	tb.Helper()
	resp, err := b.outside.Delete(context.Background(), key)
	require.NoError(tb, err)
	require.EqualValues(tb, 1, resp.Deleted)
}

// island is a cluster of three, of which one member can be parted from the other two.
type island struct {
	*etcdtest.Cluster
	member   int
	mainland *clientv3.Client // connected to the other two
}

// newIsland chooses a follower or the leader.
func newIsland(tb testing.TB, leader bool) *island {
	tb.Helper()
	c := etcdtest.New(tb, etcdtest.Members(3), etcdtest.PeerProxies())
	member := c.Leader()
	if !leader {
		member = (member + 1) % 3
	}
	others := slices.Delete(c.Endpoints(), member, member+1)
	return &island{Cluster: c, member: member, mainland: c.Dial(tb, others...)}
}

// margin is how much earlier than its lease a session on the island ends: a machine that
// is late by less does not fail the test that looks who came first.
const margin = time.Second

func (i *island) options() []concurrency.SessionOption {
	return []concurrency.SessionOption{concurrency.WithTTL(4), concurrency.WithSafetyMargin(margin)}
}

// line has its own client on the island, and the observer on the mainland.
func (i *island) line(tb testing.TB) *line {
	tb.Helper()
	l := &line{name: prefix(tb), client: i.MemberClient(tb, i.member), outside: i.mainland}
	l.faults = counted(tb, l.client)
	l.session = session(tb, l.client, i.options()...)
	l.mutex = l.handle()
	return l
}

// part parts the island, until rejoin or the end of the test.
func (i *island) part(tb testing.TB) {
	tb.Helper()
	require.NoError(tb, i.Isolate(i.member))
	tb.Cleanup(func() { i.Rejoin(i.member) }) // before clients and sessions are closed
}

func (i *island) rejoin(tb testing.TB) {
	tb.Helper()
	require.NoError(tb, i.Rejoin(i.member))
}

// eachIsland runs a test on a follower that is parted and on a leader, who does not know
// at once that it leads nobody. Only embedded members can be parted.
func eachIsland(t *testing.T, test func(t *testing.T, i *island)) {
	t.Helper()
	if !server(t).Embedded() {
		return
	}
	for where, leader := range map[string]bool{"a follower": false, "the leader": true} {
		t.Run("on "+where, func(t *testing.T) {
			t.Parallel()
			test(t, newIsland(t, leader))
		})
	}
}

// levels are the isolation levels, and what each of them does.
var levels = []struct {
	name                             string
	level                            concurrency.Isolation
	snapshot, checkReads, checkBlind bool
}{
	{"SerializableSnapshot", concurrency.SerializableSnapshot, true, true, true},
	{"Serializable", concurrency.Serializable, true, true, false},
	{"RepeatableReads", concurrency.RepeatableReads, false, true, false},
	{"ReadCommitted", concurrency.ReadCommitted, false, false, false},
}

// space is a part of the store of a test's own: a client under faults that runs
// transactions, and an outside one that interferes with them and is not counted.
type space struct {
	name    string
	cluster *etcdtest.Cluster
	client  *clientv3.Client
	faults  *fault.Faults
	outside *clientv3.Client
}

func newSpace(tb testing.TB, c *etcdtest.Cluster) *space {
	tb.Helper()
	s := &space{name: prefix(tb), cluster: c, client: c.Client(tb), outside: c.Client(tb)}
	s.faults = counted(tb, s.client)
	return s
}

// key is the full name of a key.
func (s *space) key(k string) string { return s.name + "/" + k }

// keys are n keys, named by numbers.
func (s *space) keys(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = s.key(strconv.Itoa(i))
	}
	return keys
}

// put writes keys and values from outside, in one revision, which it gives.
func (s *space) put(tb testing.TB, pairs ...string) int64 {
	tb.Helper()
	var ops []clientv3.Op
	for pair := range slices.Chunk(pairs, 2) {
		ops = append(ops, clientv3.OpPut(s.key(pair[0]), pair[1]))
	}
	resp, err := s.outside.Txn(context.Background()).Then(ops...).Commit()
	require.NoError(tb, err)
	return resp.Header.Revision
}

// del deletes a key from outside.
func (s *space) del(tb testing.TB, k string) {
	tb.Helper()
	resp, err := s.outside.Delete(context.Background(), s.key(k))
	require.NoError(tb, err)
	require.EqualValues(tb, 1, resp.Deleted)
}

// kv is a key as the store has it, nil if it does not exist.
func (s *space) kv(tb testing.TB, k string) *mvccpb.KeyValue {
	tb.Helper()
	resp, err := s.outside.Get(context.Background(), s.key(k))
	require.NoError(tb, err)
	if len(resp.Kvs) == 0 {
		return nil
	}
	return resp.Kvs[0]
}

// value is a key's value as the store has it.
func (s *space) value(tb testing.TB, k string) string {
	tb.Helper()
	return string(s.kv(tb, k).GetValue())
}

// shown are the keys and values of a range, without the space's name.
func (s *space) shown(kvs []*mvccpb.KeyValue) (pairs []string) {
	for _, kv := range kvs {
		pairs = append(pairs, strings.TrimPrefix(string(kv.Key), s.key(""))+"="+string(kv.Value))
	}
	return pairs
}

// run runs apply as a transaction, which is to succeed, and gives the number of its
// attempts. apply is told which of them it is, from 1 on.
func (s *space) run(
	tb testing.TB, apply func(stm concurrency.STM, attempt int), opts ...concurrency.STMOption,
) (attempts int) {
	tb.Helper()
	resp, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
		attempts++
		apply(stm, attempts)
		return nil
	}, opts...)
	require.NoError(tb, err)
	require.True(tb, resp.Succeeded)
	return attempts
}

// interfere changes a key from outside.
func (s *space) interfere(tb testing.TB, k, how string) {
	tb.Helper()
	switch how {
	case "put":
		s.put(tb, k, "changed")
	case "same":
		s.put(tb, k, s.value(tb, k))
	case "del":
		s.del(tb, k)
	case "again":
		old := s.value(tb, k)
		s.del(tb, k)
		s.put(tb, k, old)
	case "other":
		s.put(tb, k+" other", "changed")
	}
}

// write puts the keys.
func write(keys []string) func(stm concurrency.STM) error {
	return func(stm concurrency.STM) error {
		for _, key := range keys {
			stm.Put(key, "v")
		}
		return nil
	}
}

var errOwn = errors.New("the function's own")
