package concurrency_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

func TestTokens(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		l := newLine(t)
		owner, rival := kind(l.session, l.name), kind(session(t, l.outside), l.name)
		holds := func(h holder) bool {
			resp, err := l.outside.Txn(t.Context()).If(h.owns()).Commit()
			require.NoError(t, err)
			return resp.Succeeded
		}
		last := int64(0)
		for range 3 {
			for _, turn := range [][2]holder{{owner, rival}, {rival, owner}} {
				require.NoError(t, turn[0].take(t.Context()))
				require.Equal(t, etcdtest.Keys(t, l.outside, l.name+"/")[0].CreateRevision, turn[0].Rev())
				require.Greater(t, turn[0].Rev(), last, "it rises with every change of the owner")
				require.Zero(t, turn[1].Rev())
				require.True(t, holds(turn[0]))
				require.False(t, holds(turn[1]))
				last = turn[0].Rev()
				require.NoError(t, turn[0].giveBack(t.Context()))
			}
		}
		require.NoError(t, owner.take(t.Context()))
		l.delete(t, owner.Key())
		require.NoError(t, rival.take(t.Context()))
		require.False(t, holds(owner), "lost, and not known yet")
		require.Less(t, owner.Rev(), rival.Rev())
	})
}

func TestSTMGuard(t *testing.T) {
	t.Parallel()
	// A guard on a key of the test's, as IsOwner and IsLeader are on theirs.
	exists := func(s *space, k string) clientv3.Cmp {
		return clientv3.Compare(clientv3.CreateRevision(s.key(k)), "!=", 0)
	}
	for _, l := range levels {
		level := concurrency.WithIsolation(l.level)
		t.Run("true at "+l.name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t, server(t))
			s.put(t, "guard", "g", "x", "0")
			attempts := s.run(t, func(stm concurrency.STM, attempt int) {
				stm.Put(s.key("z"), stm.Get(s.key("x")))
				if attempt == 1 {
					s.put(t, "x", "1", "guard", "changed")
				}
			}, level, concurrency.WithGuard(exists(s, "guard"), exists(s, "x")))
			require.Equal(t, l.checkReads, attempts == 2, "a conflict is told from the guard")
			require.Equal(t, strconv.Itoa(attempts-1), s.value(t, "z"))
		})
		t.Run("false at "+l.name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t, server(t))
			for name, apply := range map[string]func(stm concurrency.STM){
				"an update":    func(stm concurrency.STM) { stm.Put(s.key("z"), stm.Get(s.key("x"))) },
				"a blind one":  func(stm concurrency.STM) { stm.Put(s.key("z"), "1") },
				"that reads":   func(stm concurrency.STM) { stm.Get(s.key("x")) },
				"of nothing":   func(concurrency.STM) {},
				"a conflict":   func(stm concurrency.STM) { stm.Put(s.key("z"), stm.Get(s.key("x"))); s.put(t, "x", "changed") },
				"a lost guard": func(stm concurrency.STM) { stm.Put(s.key("guard"), stm.Get(s.key("x"))); s.del(t, "guard") },
			} {
				s.put(t, "x", "0", "guard", "g")
				attempts := 0
				resp, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
					attempts++
					apply(stm)
					if name != "a lost guard" {
						s.del(t, "guard")
					}
					return nil
				}, level, concurrency.WithGuard(exists(s, "x")), concurrency.WithGuard(exists(s, "guard")))
				require.Equal(t, concurrency.ErrGuardFailed, err, name)
				require.Nil(t, resp)
				require.Equal(t, 1, attempts)
				require.Nil(t, s.kv(t, "z"))
				require.Nil(t, s.kv(t, "guard"))
			}
		})
	}
	t.Run("nothing to compare is the caller's bug", func(t *testing.T) {
		t.Parallel()
		requireOurPanic(t, func() { concurrency.WithGuard() })
	})
}

// Comparisons with a key that is never there.
var (
	always = clientv3.Compare(clientv3.CreateRevision("no such key"), "=", 0)
	never  = clientv3.Compare(clientv3.CreateRevision("no such key"), ">", 0)
)

// eachLevel runs a test at all isolation levels, with a client under faults and another,
// and a key of its own.
func eachLevel(t *testing.T, test func(t *testing.T, g *guarded)) {
	t.Helper()
	t.Parallel()
	for level, name := range []string{"SerializableSnapshot", "Serializable", "RepeatableReads", "ReadCommitted"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := client(t)
			g := &guarded{
				client: c, faults: counted(t, c), outside: client(t), key: prefix(t),
				level: concurrency.Isolation(level), limit: 128,
			}
			test(t, g)
		})
	}
}

type guarded struct {
	client, outside *clientv3.Client
	faults          *fault.Faults
	key             string
	level           concurrency.Isolation
	limit           int // of operations, the server's own
	runs            int
}

// run runs a transaction with guards, and counts the runs of its function.
func (g *guarded) run(apply func(concurrency.STM) error, guards ...clientv3.Cmp) (*clientv3.TxnResponse, error) {
	g.runs = 0
	g.faults.Reset()
	return concurrency.NewSTM(g.client, func(stm concurrency.STM) error {
		g.runs++
		return apply(stm)
	}, concurrency.WithIsolation(g.level), concurrency.WithGuard(guards...), concurrency.WithMaxTxnOps(g.limit))
}

// increment reads and writes.
func (g *guarded) increment(stm concurrency.STM) error {
	n, _ := strconv.Atoi(stm.Get(g.key))
	stm.Put(g.key, strconv.Itoa(n+1))
	return nil
}

func (g *guarded) put(tb testing.TB, value string) {
	tb.Helper()
	_, err := g.outside.Put(context.Background(), g.key, value)
	require.NoError(tb, err)
}

// value is what the key has in the store, "" for none.
func (g *guarded) value(tb testing.TB) string {
	tb.Helper()
	kvs := etcdtest.Keys(tb, g.outside, g.key)
	if len(kvs) == 0 {
		return ""
	}
	return string(kvs[0].Value)
}

func TestWithGuard(t *testing.T) {
	eachLevel(t, func(t *testing.T, g *guarded) {
		// One that holds.
		resp, err := g.run(g.increment, always)
		require.NoError(t, err)
		require.True(t, resp.Succeeded)
		require.Equal(t, "Get 1, Txn 1", g.faults.String())
		require.Equal(t, "1", g.value(t))

		// One that does not: no second run, one call, nothing committed.
		for _, guards := range [][]clientv3.Cmp{{never}, {always, never}, {never, always}} {
			resp, err = g.run(g.increment, guards...)
			require.Equal(t, concurrency.ErrGuardFailed, err)
			require.Nil(t, resp)
			require.Equal(t, 1, g.runs)
			require.Equal(t, "Get 1, Txn 1", g.faults.String())
			require.Equal(t, "1", g.value(t))
		}

		// A blind write.
		blind := func(stm concurrency.STM) error { stm.Put(g.key, "blind"); return nil }
		_, err = g.run(blind, never)
		require.Equal(t, concurrency.ErrGuardFailed, err)
		require.Equal(t, "Txn 1", g.faults.String())
		require.Equal(t, "1", g.value(t))
		_, err = g.run(blind, always)
		require.NoError(t, err)
		require.Equal(t, "blind", g.value(t))

		// The options add up.
		_, err = concurrency.NewSTM(g.client, blind, concurrency.WithIsolation(g.level),
			concurrency.WithGuard(never), concurrency.WithGuard(always))
		require.Equal(t, concurrency.ErrGuardFailed, err)

		// A function that fails is not guarded.
		_, err = g.run(func(concurrency.STM) error { return errWork }, never)
		require.Equal(t, errWork, err)
		require.Equal(t, "no calls", g.faults.String())
	})
}

func TestWithGuardAndConflicts(t *testing.T) {
	eachLevel(t, func(t *testing.T, g *guarded) {
		g.put(t, "10")
		conflict := func(stm concurrency.STM) error {
			err := g.increment(stm)
			if g.runs == 1 {
				g.put(t, "20")
			}
			return err
		}
		runs, want := 2, "21"
		if g.level == concurrency.ReadCommitted { // which conflicts with nothing
			runs, want = 1, "11"
		}
		_, err := g.run(conflict, always)
		require.NoError(t, err)
		require.Equal(t, runs, g.runs, "a conflict is no failed guard")
		require.Equal(t, want, g.value(t))

		g.put(t, "10")
		_, err = g.run(conflict, never)
		require.Equal(t, concurrency.ErrGuardFailed, err, "both")
		require.Equal(t, 1, g.runs)
		require.Equal(t, "20", g.value(t))

		// The guard fails at the second attempt.
		flag := g.key + "-flag"
		_, err = g.outside.Put(t.Context(), flag, "")
		require.NoError(t, err)
		g.put(t, "10")
		_, err = g.run(func(stm concurrency.STM) error {
			if g.runs == 2 || g.level == concurrency.ReadCommitted {
				_, err := g.outside.Delete(t.Context(), flag)
				require.NoError(t, err)
			}
			return conflict(stm)
		}, clientv3.Compare(clientv3.CreateRevision(flag), ">", 0))
		require.Equal(t, concurrency.ErrGuardFailed, err)
		require.Equal(t, runs, g.runs)
		require.Equal(t, "20", g.value(t))
	})
}

func TestWithGuardAndNoWrites(t *testing.T) {
	eachLevel(t, func(t *testing.T, g *guarded) {
		g.put(t, "value")
		read := func(stm concurrency.STM) error {
			require.Equal(t, "value", stm.Get(g.key))
			return nil
		}
		resp, err := g.run(read, always)
		require.NoError(t, err)
		require.True(t, resp.Succeeded)
		require.Equal(t, "Get 1, Txn 1", g.faults.String(), "committed by a call")
		_, err = g.run(read, never)
		require.Equal(t, concurrency.ErrGuardFailed, err)
		require.Equal(t, 1, g.runs)

		nothing := func(concurrency.STM) error { return nil }
		_, err = g.run(nothing, always)
		require.NoError(t, err)
		_, err = g.run(nothing, never)
		require.Equal(t, concurrency.ErrGuardFailed, err)
		require.Equal(t, "Txn 1", g.faults.String())
	})
}

// The server counts the guards twice: beside the other comparisons, and where they are
// compared by themselves.
func TestWithGuardCountsInTheLimit(t *testing.T) {
	eachLevel(t, func(t *testing.T, g *guarded) {
		keys := make([]string, 130)
		for i := range keys {
			keys[i] = fmt.Sprintf("%s-%03d", g.key, i)
		}
		for _, size := range []struct{ reads, writes, guards int }{
			{1, 1, 1},
			{126, 1, 1},
			{127, 1, 1},
			{128, 1, 1},
			{0, 127, 1},
			{0, 128, 1},
			{0, 1, 64},
			{0, 1, 65},
			{0, 1, 129},
			{30, 1, 49},
			{30, 1, 50},
		} {
			guards := make([]clientv3.Cmp, size.guards)
			for i := range guards {
				guards[i] = always
			}
			_, err := g.run(func(stm concurrency.STM) error {
				if size.reads > 0 {
					stm.Get(keys[:size.reads]...)
				}
				if size.reads > 0 && g.runs == 1 {
					g.faults.Reset()
					_, err := g.outside.Put(t.Context(), keys[0], "conflict")
					require.NoError(t, err)
				}
				for _, key := range keys[:size.writes] {
					stm.Put(key, "value")
				}
				return nil
			}, guards...)
			if err == nil {
				continue
			}
			require.ErrorIs(t, err, rpctypes.ErrTooManyOps, "%+v", size)
			require.NotEqual(t, rpctypes.ErrTooManyOps, err, "without the numbers: %+v", size)
			require.ErrorContains(t, err, "128")
			require.Equal(t, "no calls", g.faults.String(), "it was sent: %+v", size)
			require.False(t, size.reads+2*size.guards <= 128 && size.writes+size.guards <= 128, "refused: %+v", size)
		}
	})
}

func TestWithGuardBadInput(t *testing.T) {
	t.Parallel()
	require.PanicsWithValue(t, "concurrency: WithGuard: nothing to compare", func() { concurrency.WithGuard() })
	_, err := concurrency.NewSTM(client(t), func(stm concurrency.STM) error {
		stm.Put(prefix(t), "value")
		return nil
	}, concurrency.WithGuard(clientv3.Compare(clientv3.Value(""), "=", "")))
	require.Equal(t, rpctypes.ErrEmptyKey, err)
}

func TestWithGuardAndALostAnswer(t *testing.T) {
	eachLevel(t, func(t *testing.T, g *guarded) {
		_, err := g.run(func(stm concurrency.STM) error {
			g.faults.LoseAnswer(fault.Txn, 1, nil)
			stm.Put(g.key, "value")
			return nil
		}, always)
		require.ErrorIs(t, err, concurrency.ErrCommitUnknown)
		require.Equal(t, 1, g.runs)
	})
}

func TestWithGuardOfAFormerOwner(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		t.Run("can't commit", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			h, rival := kind(l.session, l.name), kind(session(t, l.outside), l.name)
			key := l.name + "-data"
			write := func(h holder, value string) error {
				_, err := concurrency.NewSTM(l.client, func(stm concurrency.STM) error {
					stm.Put(key, value)
					return nil
				}, concurrency.WithGuard(h.owns()))
				return err
			}
			require.Equal(t, concurrency.ErrGuardFailed, write(h, "nobody"))
			require.NoError(t, h.take(t.Context()))
			require.NoError(t, write(h, "first"))
			stale := h.owns()
			l.delete(t, h.Key())
			require.Equal(t, concurrency.ErrGuardFailed, write(h, "nobody's"))
			require.NoError(t, rival.take(t.Context()))
			require.Equal(t, concurrency.ErrGuardFailed, write(h, "late"))
			require.NoError(t, write(rival, "second"))
			require.NoError(t, rival.giveBack(t.Context()))
			require.NoError(t, h.take(t.Context()))
			_, err := concurrency.NewSTM(l.client, func(stm concurrency.STM) error {
				stm.Put(key, "of another ticket of the same key")
				return nil
			}, concurrency.WithGuard(stale))
			require.Equal(t, concurrency.ErrGuardFailed, err)
			require.NoError(t, write(h, "third"))
			require.Equal(t, "third", string(etcdtest.Keys(t, l.outside, key)[0].Value))
		})
		t.Run("nor between those of the others", func(t *testing.T) {
			t.Parallel()
			former(t, kind)
		})
	})
}

// former lets owners write their tokens, each for longer than it owns: whoever holds the
// lock has its key deleted from outside after some writes. No token that was committed
// is smaller than one before.
func former(t *testing.T, kind func(*concurrency.Session, string) holder) {
	own := etcdtest.New(t) // of which nothing is compacted
	name, c := prefix(t), own.Client(t)
	key := name + "-token"
	start, err := c.Put(t.Context(), key, "0")
	require.NoError(t, err)
	var refused atomic.Int64
	var wg sync.WaitGroup
	for range 3 {
		h := kind(session(t, own.Client(t)), name)
		wg.Go(func() {
			for range 5 {
				if !assert.NoError(t, h.take(t.Context())) {
					return
				}
				for n := range 6 {
					if n == 3 {
						_, err := c.Delete(t.Context(), h.Key())
						assert.NoError(t, err)
					}
					_, err := concurrency.NewSTM(c, func(stm concurrency.STM) error {
						stm.Put(key, strconv.FormatInt(h.Rev(), 10))
						return nil
					}, concurrency.WithGuard(h.owns()))
					if n < 3 {
						assert.NoError(t, err)
					} else if assert.Equal(t, concurrency.ErrGuardFailed, err) {
						refused.Add(1)
					}
				}
			}
		})
	}
	wg.Wait()
	require.Equal(t, int64(3*5*3), refused.Load())
	end, err := c.Put(t.Context(), key, strconv.FormatInt(1<<62, 10))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	last, writes := int64(0), 0
	for resp := range c.Watch(ctx, key, clientv3.WithRev(start.Header.Revision)) {
		require.NoError(t, resp.Err())
		for _, ev := range resp.Events {
			token, err := strconv.ParseInt(string(ev.Kv.Value), 10, 64)
			require.NoError(t, err)
			require.GreaterOrEqual(t, token, last)
			last = token
			writes++
		}
		if resp.Header.Revision >= end.Header.Revision && last == 1<<62 {
			break
		}
	}
	require.Equal(t, 3*5*3+2, writes)
}

func TestWithGuardOnWrappedClients(t *testing.T) {
	t.Parallel()
	work := func(t *testing.T, c *clientv3.Client) {
		name := prefix(t)
		m := concurrency.NewMutex(session(t, c), name)
		runs := 0
		increment := func(stm concurrency.STM) error {
			runs++
			n, _ := strconv.Atoi(stm.Get(name + "-data"))
			if runs == 1 {
				_, err := c.Put(t.Context(), name+"-data", "10")
				require.NoError(t, err)
			}
			stm.Put(name+"-data", strconv.Itoa(n+1))
			return nil
		}
		require.NoError(t, m.Lock(t.Context()))
		_, err := concurrency.NewSTM(c, increment, concurrency.WithGuard(m.IsOwner()))
		require.NoError(t, err)
		require.Equal(t, 2, runs)
		require.Equal(t, "11", string(etcdtest.Keys(t, c, name+"-data")[0].Value))
		guard := m.IsOwner()
		require.NoError(t, m.Unlock(t.Context()))
		_, err = concurrency.NewSTM(c, increment, concurrency.WithGuard(guard))
		require.Equal(t, concurrency.ErrGuardFailed, err)
	}
	t.Run("in a namespace", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		space := prefix(t) + "/"
		c.KV = namespace.NewKV(c.KV, space)
		c.Watcher = namespace.NewWatcher(c.Watcher, space)
		c.Lease = namespace.NewLease(c.Lease, space)
		work(t, c)
	})
	t.Run("in the server's process", func(t *testing.T) {
		t.Parallel()
		if !server(t).Embedded() { // only those can be spoken to without a connection
			return
		}
		work(t, server(t).InProcess(t))
	})
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
