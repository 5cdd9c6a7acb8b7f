package concurrency_test

import (
	"context"
	"fmt"
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
