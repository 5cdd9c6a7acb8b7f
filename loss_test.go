package concurrency_test

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

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

// The member to which the holder is connected answers, but nothing that takes a quorum.
func TestLossByPartition(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		eachIsland(t, func(t *testing.T, i *island) {
			l := i.line(t)
			h, rival := kind(l.session, l.name), kind(session(t, l.outside), l.name)
			require.NoError(t, h.take(t.Context()))
			ctx := h.Ctx()
			l.watched(t, 1)
			call := etcdtest.Go(func() error { return rival.take(t.Context()) })
			l.stand(t, 2)
			i.part(t)
			require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
			require.True(t, call.Running(), "a rival is in")
			require.False(t, time.Now().Before(l.session.Deadline()), "too early")
			require.NoError(t, call.Wait(t))
			i.rejoin(t)
			require.NoError(t, h.giveBack(t.Context()))
			require.NoError(t, rival.Ctx().Err(), "what the former holder does is nothing to it")
			l.stand(t, 1)
		})
	})
}

func TestDoAndAPartition(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		eachIsland(t, func(t *testing.T, i *island) {
			l := i.line(t)
			h, rival := kind(l.session, l.name), kind(session(t, l.outside), l.name)
			var call *etcdtest.Call
			err := h.during(t.Context(), func(ctx context.Context) error {
				call = etcdtest.Go(func() error { return rival.take(t.Context()) })
				l.stand(t, 2)
				i.part(t)
				require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
				require.True(t, call.Running(), "a rival is in")
				return errWork
			})
			require.ErrorIs(t, err, errWork)
			require.ErrorIs(t, err, concurrency.ErrSessionExpired)
			require.NoError(t, call.Wait(t))
			require.NoError(t, rival.Ctx().Err())
		})
	})
}

func TestRunLeaderAndAPartition(t *testing.T) {
	t.Parallel()
	eachIsland(t, func(t *testing.T, i *island) {
		r := runs(t, i.MemberClient(t, i.member), i.mainland, leaderOptions(i.options())...)
		ctx := r.term(t)
		rival := concurrency.NewElection(session(t, i.mainland), r.name)
		call := etcdtest.Go(func() error { return rival.Campaign(t.Context(), "rival") })
		etcdtest.WaitKeys(t, i.mainland, r.name+"/", 2)
		i.part(t)
		require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
		require.True(t, call.Running(), "a rival is in")
		require.NoError(t, call.Wait(t))
		i.rejoin(t)
		etcdtest.WaitKeys(t, i.mainland, r.name+"/", 2)
		require.Zero(t, r.running.Load(), "it waits for the rival")
		require.NoError(t, rival.Resign(t.Context()))
		require.NoError(t, r.term(t).Err(), "it leads again")
		r.cancel()
		require.Equal(t, context.Canceled, r.call.Wait(t))
		etcdtest.WaitKeys(t, i.mainland, r.name+"/", 0)
	})
}

// A transaction whose later reads reach a member that has not come as far as its first.
// That member refuses the revision, and is asked again in the way that makes it catch up.
func TestSTMOnAMemberThatLags(t *testing.T) {
	t.Parallel()
	if !server(t).Embedded() { // only those can be parted
		return
	}
	i := newIsland(t, false)
	for _, level := range []concurrency.Isolation{concurrency.SerializableSnapshot, concurrency.Serializable} {
		name := prefix(t)
		c := i.Dial(t, i.Endpoint((i.member+1)%3))
		f := counted(t, c)
		put := func(value string, keys ...string) {
			var ops []clientv3.Op
			for _, key := range keys {
				ops = append(ops, clientv3.OpPut(name+key, value))
			}
			_, err := i.mainland.Txn(t.Context()).Then(ops...).Commit()
			require.NoError(t, err)
		}
		i.part(t)
		put("1", "x", "y")
		var seen []string
		call := etcdtest.Go(func() error {
			_, err := concurrency.NewSTM(c, func(stm concurrency.STM) error {
				x := stm.Get(name + "x")
				if seen == nil {
					put("2", "y")
					c.SetEndpoints(i.Endpoint(i.member))
				}
				seen = append(seen, x+stm.Get(name+"y"))
				stm.Put(name+"z", "")
				return nil
			}, concurrency.WithIsolation(level))
			return err
		})
		// The first read, that of the pinned revision, and the one that follows its refusal.
		etcdtest.Eventually(t, func() bool { return f.Count(fault.Get) == 3 }, "it asks again")
		require.True(t, call.Running())
		i.rejoin(t)
		require.NoError(t, call.Wait(t))
		require.Equal(t, []string{"11", "12"}, seen, "what was there with x, and what has changed since")
	}
}

// The child of TestLossByPause: what it is told in its environment, and what it says.
const childEnv = "LOSS_CHILD"

type childTask struct {
	Kind, Name, Key string
	Endpoints       []string
}

type childReport struct {
	Rev    int64
	Cause  string // of the end of Ctx; "" while it lives
	Commit string // the error of a guarded transaction
}

var kinds = map[string]func(*concurrency.Session, string) holder{"lock": lockOf, "leadership": leadershipOf}

// guardedPut writes a key while the guard holds.
func guardedPut(ctx context.Context, c *clientv3.Client, key, value string, guard clientv3.Cmp) error {
	_, err := concurrency.NewSTM(c, func(stm concurrency.STM) error {
		stm.Put(key, value)
		return nil
	}, concurrency.WithGuard(guard), concurrency.WithAbortContext(ctx))
	return err
}

// A process is stopped past the TTL of what it holds, as a hypervisor, a debugger or a
// laptop's lid may do it. It can't know, and no clock can tell it in time: what it has to
// be kept from is the write that it was about to make.
func TestLossByPause(t *testing.T) {
	t.Parallel()
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := client(t)
			task := childTask{Kind: name, Name: prefix(t), Endpoints: server(t).Endpoints()}
			task.Key = task.Name + "-data"
			rival := kind(session(t, c), task.Name)
			p := startChild(t, task)
			first := p.report(t)
			call := etcdtest.Go(func() error { return rival.take(t.Context()) })
			etcdtest.WaitKeys(t, c, task.Name+"/", 2)
			require.NoError(t, etcdtest.Suspend(p.cmd.Process))
			require.NoError(t, call.Wait(t), "its lease expires")
			require.Greater(t, rival.Rev(), first.Rev)
			require.NoError(t, guardedPut(t.Context(), c, task.Key, "the rival's", rival.owns()))
			require.NoError(t, etcdtest.Resume(p.cmd.Process))
			p.goOn(t)
			then := p.report(t)
			require.Equal(t, concurrency.ErrDeadline.Error(), then.Cause)
			require.Equal(t, concurrency.ErrGuardFailed.Error(), then.Commit)
			require.Equal(t, "the rival's", string(etcdtest.Keys(t, c, task.Key)[0].Value))
			require.NoError(t, p.cmd.Wait())
			require.NoError(t, rival.Ctx().Err(), "the child has closed its session")
		})
	}
}

// TestPausedChild is what the child runs; it does nothing in any other process.
func TestPausedChild(t *testing.T) {
	env, told := os.LookupEnv(childEnv)
	if !told {
		return
	}
	var task childTask
	require.NoError(t, json.Unmarshal([]byte(env), &task))
	out := json.NewEncoder(os.Stdout)
	c := etcdtest.Dial(t, task.Endpoints...)
	h := kinds[task.Kind](session(t, c, concurrency.WithTTL(2)), task.Name)
	require.NoError(t, h.take(t.Context()))
	ctx, guard := h.Ctx(), h.owns()
	require.NoError(t, guardedPut(t.Context(), c, task.Key, "the child's", guard))
	require.NoError(t, out.Encode(childReport{Rev: h.Rev()}))

	_, err := os.Stdin.Read(make([]byte, 1)) // here it is stopped
	require.NoError(t, err)
	// A step of its work, then the look: a timer that is due has run when an answer has
	// come. The instruction after the pause could come before any timer.
	_, err = c.Get(t.Context(), task.Key)
	require.NoError(t, err)
	report := childReport{Rev: h.Rev()}
	if ctx.Err() != nil {
		report.Cause = context.Cause(ctx).Error()
	}
	if err := guardedPut(t.Context(), c, task.Key, "late", guard); err != nil {
		report.Commit = err.Error()
	}
	require.NoError(t, out.Encode(report))
}

// paused is the child as its parent sees it.
type paused struct {
	cmd  *exec.Cmd
	in   io.Writer
	out  io.Reader
	json *json.Decoder
}

func startChild(tb testing.TB, task childTask) *paused {
	tb.Helper()
	env, err := json.Marshal(task)
	require.NoError(tb, err)
	self, err := os.Executable()
	require.NoError(tb, err)
	cmd := exec.CommandContext(tb.Context(), self, "-test.run=^TestPausedChild$", "-test.timeout=60s")
	etcdtest.DieWithParent(cmd)
	cmd.Env = append(os.Environ(), childEnv+"="+string(env))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(tb, err)
	out, err := cmd.StdoutPipe()
	require.NoError(tb, err)
	require.NoError(tb, cmd.Start())
	tb.Cleanup(func() { _ = cmd.Wait() }) // the end of the context has killed it, stopped or not
	return &paused{cmd, in, out, json.NewDecoder(out)}
}

// goOn lets a child that runs again go on.
func (p *paused) goOn(tb testing.TB) {
	tb.Helper()
	_, err := io.WriteString(p.in, "\n")
	require.NoError(tb, err)
}

// report is the next that the child says.
func (p *paused) report(tb testing.TB) (r childReport) {
	tb.Helper()
	if err := p.json.Decode(&r); err != nil {
		rest, _ := io.ReadAll(io.MultiReader(p.json.Buffered(), p.out))
		require.FailNow(tb, "the child did not report: "+strconv.Quote(string(rest)), "%v", err)
	}
	return r
}
