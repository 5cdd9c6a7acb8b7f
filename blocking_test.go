package concurrency_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// waiting starts a transaction that waits until seen returns "" no more, and then writes what it
// has returned to "out".
func (s *space) waiting(seen func(stm concurrency.STM) string, opts ...concurrency.STMOption) *etcdtest.Call {
	return etcdtest.Go(func() error {
		_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
			value := seen(stm)
			stm.Put(s.key("out"), value)
			if value == "" {
				stm.Retry()
			}
			return nil
		}, opts...)
		return err
	})
}

// blocked waits until the transaction waits, by n watches.
func (s *space) blocked(t *testing.T, n int) {
	t.Helper()
	etcdtest.Eventually(t, func() bool { return s.faults.Count(fault.Watch) == n }, "%d watches", n)
}

// two, full and vacant are what the transactions of the table below wait for. Each returns "" until
// it has come.
func (s *space) two(stm concurrency.STM) string { return stm.Get(s.key("a")) + stm.Get(s.key("b")) }

func (s *space) full(stm concurrency.STM) string {
	if kvs := stm.Range(s.key("a"), s.key("c")); len(kvs) != 1 {
		return string(kvs[0].Value)
	}
	return ""
}

func (s *space) vacant(stm concurrency.STM) string {
	if _, found := stm.Lookup(s.key("a")); found {
		return ""
	}
	return "gone"
}

var retries = map[string]struct {
	seen    func(s *space, stm concurrency.STM) string
	watches int
	before  []string
	change  func(t *testing.T, s *space)
	want    string
	calls   string // after the change, at levels with a snapshot
}{
	"a key comes": {
		(*space).two, 2, nil,
		func(t *testing.T, s *space) { s.put(t, "b", "1") },
		"1",
		"Get 2, Txn 1",
	},
	"a key comes to lie in a range": {
		(*space).full, 1,
		[]string{"b", "1"},
		func(t *testing.T, s *space) { s.put(t, "a", "2") },
		"2",
		"Txn 1",
	},
	"a key goes": {
		(*space).vacant, 1,
		[]string{"a", "1"},
		func(t *testing.T, s *space) { s.del(t, "a") },
		"gone",
		"Txn 1",
	},
	"several revisions at once": {
		(*space).full, 1,
		[]string{"b", "1"},
		func(t *testing.T, s *space) { s.put(t, "b", "2"); s.put(t, "a", "3") },
		"3",
		"",
	},
}

func TestRetry(t *testing.T) {
	t.Parallel()
	cluster := etcdtest.New(t) // on which nobody else writes
	for name, tc := range retries {
		for _, l := range levels[:3] {
			t.Run(name+", at "+l.name, func(t *testing.T) {
				s := newSpace(t, cluster)
				if tc.before != nil {
					s.put(t, tc.before...)
				}
				var begun sync.WaitGroup
				for i := range tc.watches {
					begun.Add(1)
					s.faults.After(fault.Watch, i+1, func(error) { begun.Done() })
				}
				call := s.waiting(func(stm concurrency.STM) string { return tc.seen(s, stm) }, concurrency.WithIsolation(l.level))
				begun.Wait()
				s.put(t, "out", "somebody else's", "other", "x")
				require.True(t, call.Running())
				s.faults.Reset()
				tc.change(t, s)
				require.NoError(t, call.Wait(t))
				require.Equal(t, tc.want, s.value(t, "out"))
				if tc.calls != "" && l.snapshot {
					require.Equal(t, tc.calls, s.faults.String())
				}
			})
		}
	}
}

// What happens between the read and the watch is not missed, and costs no pause: it is found by
// a look.
func TestRetryLooksAfterTheGap(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(t *testing.T, s *space){
		"put":     func(t *testing.T, s *space) { s.put(t, "a", "changed") },
		"deleted": func(t *testing.T, s *space) { s.del(t, "a") },
		"in front": func(t *testing.T, s *space) {
			s.put(t, "A", "comes to lie in the range")
		},
	} {
		for _, l := range levels[:3] {
			t.Run(name+", at "+l.name, func(t *testing.T) {
				t.Parallel()
				s := newSpace(t, server(t))
				s.put(t, "a", "1", "b", "2")
				s.faults.Before(fault.Watch, 1, func() { change(t, s) })
				call := s.waiting(func(stm concurrency.STM) string {
					kvs := stm.Range(s.key("A"), s.key("c"))
					if s.shown(kvs)[0] == "a=1" {
						return ""
					}
					return "seen"
				}, concurrency.WithIsolation(l.level))
				require.NoError(t, call.Wait(t))
				require.Equal(t, "seen", s.value(t, "out"))
				require.Equal(t, 1, s.faults.Count(fault.Watch))
			})
		}
	}
	t.Run("other writes in the gap end nothing", func(t *testing.T) {
		t.Parallel()
		s := newSpace(t, server(t))
		s.faults.Before(fault.Watch, 1, func() { s.put(t, "other", "x") })
		call := s.waiting(func(stm concurrency.STM) string { return stm.Get(s.key("a")) })
		etcdtest.Eventually(t, func() bool { return s.faults.Count(fault.Txn) == 1 }, "the look")
		require.True(t, call.Running())
		s.put(t, "a", "1")
		require.NoError(t, call.Wait(t))
		require.Equal(t, 1, s.faults.Count(fault.Watch))
	})
}

func TestRetryIsNotWokenByWhatWasOnlyWritten(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	// Between the read and the watch, so that the watch calls for a look.
	s.faults.Before(fault.Watch, 1, func() { s.put(t, "written", "by somebody else") })
	runs := 0
	call := etcdtest.Go(func() error {
		_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
			runs++
			stm.Put(s.key("written"), "here")
			if stm.Get(s.key("read")) == "" {
				stm.Retry()
			}
			return nil
		})
		return err
	})
	etcdtest.Eventually(t, func() bool { return s.faults.Count(fault.Txn) == 1 }, "the look")
	s.put(t, "read", "1")
	require.NoError(t, call.Wait(t))
	require.Equal(t, 2, runs)
	require.Equal(t, "here", s.value(t, "written"))
}

func TestRetryRidesOut(t *testing.T) {
	t.Parallel()
	wait := func(s *space) *etcdtest.Call {
		return s.waiting(func(stm concurrency.STM) string { return stm.Get(s.key("a")) })
	}
	t.Run("a watch that breaks, and a look without an answer", func(t *testing.T) {
		t.Parallel()
		s := newSpace(t, server(t))
		gate := s.faults.BreakWatch(1, rpctypes.ErrNoLeader)
		call := wait(s)
		ended(t, gate.Reached(), "the watch")
		s.put(t, "other", "x")
		s.faults.Reset()
		s.faults.LoseAnswers(fault.Txn, 2)
		gate.Open()
		etcdtest.Eventually(t, func() bool { return s.faults.Count(fault.Txn) >= 3 }, "the looks")
		require.True(t, call.Running())
		s.put(t, "a", "1")
		require.NoError(t, call.Wait(t))
	})
	t.Run("a compaction", func(t *testing.T) {
		t.Parallel()
		s := newSpace(t, etcdtest.New(t))
		s.faults.CompactBeforeWatch(1, s.key("other"))
		call := wait(s)
		etcdtest.Eventually(t, func() bool { return s.faults.Count(fault.Txn) == 1 }, "the look")
		s.put(t, "a", "1")
		require.NoError(t, call.Wait(t))
	})
	t.Run("a lower limit of operations", func(t *testing.T) {
		t.Parallel()
		s := newSpace(t, server(t))
		s.faults.Before(fault.Watch, 1, func() { s.put(t, "199", "1") })
		call := s.waiting(func(stm concurrency.STM) string {
			if stm.Get(s.keys(200)...); stm.Get(s.key("199")) == "" {
				return ""
			}
			stm.Put(s.key("done"), "")
			return ""
		}, concurrency.WithPrefetch(s.keys(200)...))
		etcdtest.Eventually(t, func() bool { return s.faults.Count(fault.Watch) >= 400 }, "the next wait")
		require.True(t, call.Running())
		s.client.Close()
		require.Equal(t, context.Canceled, call.Wait(t))
	})
	t.Run("no fault that stays", func(t *testing.T) {
		t.Parallel()
		s := newSpace(t, server(t))
		s.faults.Before(fault.Watch, 1, func() { s.put(t, "other", "x") })
		s.faults.Refuse(fault.Txn, 1, codes.PermissionDenied, "etcdserver: permission denied")
		require.Equal(t, rpctypes.ErrPermissionDenied, wait(s).Wait(t))
	})
}

func TestRetryEnds(t *testing.T) {
	t.Parallel()
	t.Run("with the abort context", func(t *testing.T) {
		t.Parallel()
		s := newSpace(t, server(t))
		ctx, cancel := context.WithCancel(t.Context())
		// A watch that ends with the context may tell so by chance, and the look after that ends. So
		// there are many.
		const many = 8
		var calls []*etcdtest.Call
		for range many {
			calls = append(calls, s.waiting(func(stm concurrency.STM) string { return stm.Get(s.key("a")) },
				concurrency.WithAbortContext(ctx)))
		}
		s.blocked(t, many)
		cancel()
		for _, call := range calls {
			require.Equal(t, context.Canceled, call.Wait(t))
		}
		require.Nil(t, s.kv(t, "out"))
	})
	t.Run("with an error at ReadCommitted, and nothing is committed", func(t *testing.T) {
		t.Parallel()
		s, attempts := newSpace(t, server(t)), 0
		resp, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
			attempts++
			stm.Put(s.key("out"), stm.Get(s.key("a")))
			stm.Retry()
			return nil
		}, concurrency.WithIsolation(concurrency.ReadCommitted))
		require.ErrorContains(t, err, "Retry waits for a change of what was read, of which ReadCommitted takes no notice")
		require.Nil(t, resp)
		require.Equal(t, 1, attempts)
		require.Zero(t, s.faults.Count(fault.Txn)+s.faults.Count(fault.Watch))
	})
	t.Run("no attempt that recovers it in a commit", func(t *testing.T) {
		t.Parallel()
		s := newSpace(t, server(t))
		call := s.waiting(func(stm concurrency.STM) string {
			if stm.Get(s.key("a")) != "" {
				return "1"
			}
			func() {
				defer func() { require.NotNil(t, recover()) }()
				stm.Retry()
			}()
			return "recovered"
		})
		s.blocked(t, 1)
		s.put(t, "a", "1")
		require.NoError(t, call.Wait(t))
		require.Equal(t, "1", s.value(t, "out"))
	})
}

// attempts has f called after every attempt.
func attempts(f func(concurrency.Attempt)) concurrency.STMOption {
	return concurrency.WithSTMTrace(&concurrency.Trace{Attempt: f})
}

func TestAttempts(t *testing.T) {
	t.Parallel()
	for _, l := range levels {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			s, own := newSpace(t, server(t)), errors.New("own")
			s.put(t, "a", "1", "r/1", "1", "r/2", "2")
			var met []concurrency.Attempt
			_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
				n := len(met)
				stm.Get(s.key("a"))
				stm.Range(s.key("r/"), s.key("r0"))
				stm.Put(s.key("out"), "1")
				switch {
				case n == 0:
					s.put(t, "a", "2", "r/3", "3")
					s.del(t, "r/1")
				case n == 1 && l.checkReads:
					change := etcdtest.Go(func() error { s.blocked(t, 2); s.put(t, "a", "3"); return nil })
					t.Cleanup(func() { require.NoError(t, change.Wait(t)) })
					stm.Retry()
				case n == 2:
					return own
				}
				return nil
			}, concurrency.WithIsolation(l.level), attempts(func(a concurrency.Attempt) { met = append(met, a) }))
			for i, a := range met {
				require.Equal(t, i+1, a.Number)
			}
			last := met[len(met)-1]
			require.Equal(t, err, last.Err)
			if !l.checkReads {
				require.NoError(t, err)
				require.Len(t, met, 1)
				require.Positive(t, last.Reading)
				require.Positive(t, last.Committing)
				return
			}
			require.Same(t, own, err)
			require.Len(t, met, 3)
			require.Equal(t, concurrency.ErrConflict, met[0].Err)
			changed := []string{s.key("a"), s.key("r/1"), s.key("r/3")}
			if !l.snapshot {
				changed = []string{s.key("a"), "[" + s.key("r/") + ", " + s.key("r0") + ")"}
			}
			require.Equal(t, changed, met[0].Keys)
			require.Positive(t, met[0].Reading)
			require.Positive(t, met[0].Committing)
			require.Equal(t, concurrency.ErrBlocked, met[1].Err)
			require.Empty(t, met[1].Keys)
			require.Positive(t, met[2].Paused)
		})
	}
	t.Run("of a key that is only written", func(t *testing.T) {
		t.Parallel()
		s := newSpace(t, server(t))
		var met []concurrency.Attempt
		s.run(t, func(stm concurrency.STM, attempt int) {
			stm.Get(s.key("a"))
			stm.Put(s.key("b"), "")
			if attempt == 1 {
				s.put(t, "b", "1")
			}
		}, attempts(func(a concurrency.Attempt) { met = append(met, a) }))
		require.Equal(t, []string{s.key("b")}, met[0].Keys)
		require.NoError(t, met[1].Err)
	})
}

func TestWithMaxAttempts(t *testing.T) {
	t.Parallel()
	for _, l := range levels[:3] {
		s, attempts := newSpace(t, server(t)), 0
		_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
			attempts++
			stm.Put(s.key("out"), stm.Get(s.key("a")))
			s.put(t, "a", "changed")
			return nil
		}, concurrency.WithIsolation(l.level), concurrency.WithMaxAttempts(3))
		require.ErrorIs(t, err, concurrency.ErrConflict)
		require.ErrorContains(t, err, "3 attempts, the last one over "+s.key("a"))
		require.Equal(t, 3, attempts)
		require.Nil(t, s.kv(t, "out"))
		s.run(t, func(stm concurrency.STM, attempt int) {
			if stm.Get(s.key("a")); attempt < 3 {
				s.put(t, "a", "changed")
			}
			stm.Put(s.key("out"), "")
		}, concurrency.WithIsolation(l.level), concurrency.WithMaxAttempts(3))
		require.NotNil(t, s.kv(t, "out"))
	}
}

// A transaction within a transaction is one of its own.
func TestTransactionsNest(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	var inner []concurrency.Attempt
	outer := s.run(t, func(stm concurrency.STM, attempt int) {
		stm.Get(s.key("a"))
		stm.Put(s.key("b"), "outer")
		if attempt == 1 {
			_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
				require.Empty(t, stm.Get(s.key("b")), "it does not see what the outer one writes")
				stm.Put(s.key("a"), "inner")
				return nil
			}, attempts(func(a concurrency.Attempt) { inner = append(inner, a) }))
			require.NoError(t, err)
		}
	})
	require.Equal(t, 2, outer, "it conflicts with the inner one")
	require.Len(t, inner, 1)
	_, err := concurrency.NewSTM(s.client, func(concurrency.STM) error {
		_, err := s.client.Put(t.Context(), s.key("c"), "")
		require.NoError(t, err)
		_, err = concurrency.NewSTM(s.client, func(stm concurrency.STM) error { stm.Put(s.key("d"), ""); return nil })
		require.NoError(t, err)
		return errOwn
	})
	require.Equal(t, errOwn, err)
	require.NotNil(t, s.kv(t, "d"), "it stays committed when the outer one fails")
}
