package concurrency_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

func TestNewSTMWritesTakeEffectTogether(t *testing.T) {
	t.Parallel()
	for _, l := range levels {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t, server(t))
			s.put(t, "a", "1", "b", "2")
			resp, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
				stm.Put(s.key("a"), stm.Get(s.key("a"))+"+")
				stm.Del(s.key("b"))
				stm.Put(s.key("c"), "3")
				return nil
			}, concurrency.WithIsolation(l.level))
			require.NoError(t, err)
			require.True(t, resp.Succeeded)
			require.Equal(t, "1+", s.value(t, "a"))
			require.Nil(t, s.kv(t, "b"))
			require.Equal(t, resp.Header.Revision, s.kv(t, "a").ModRevision)
			require.Equal(t, resp.Header.Revision, s.kv(t, "c").ModRevision)
		})
	}
}

func TestNewSTMRunsOnTheCallersGoroutine(t *testing.T) {
	t.Parallel()
	goroutine := func() string {
		buf := make([]byte, 64)
		id, _, _ := strings.Cut(string(buf[:runtime.Stack(buf, false)]), " [")
		return id
	}
	s, caller := newSpace(t, server(t)), goroutine()
	s.run(t, func(concurrency.STM, int) { require.Equal(t, caller, goroutine()) })
}

func TestNewSTMRespondsInTheOrderOfTheFirstWrites(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	keys := s.keys(9)
	rand.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	for _, key := range keys {
		_, err := s.outside.Put(t.Context(), key, "old "+key)
		require.NoError(t, err)
	}
	resp, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
		for _, key := range keys {
			stm.Put(key, "new", clientv3.WithPrevKV())
		}
		stm.Put(keys[0], "newer", clientv3.WithPrevKV())
		return nil
	})
	require.NoError(t, err)
	require.Len(t, resp.Responses, len(keys))
	for i, key := range keys {
		require.Equal(t, "old "+key, string(resp.Responses[i].GetResponsePut().PrevKv.Value))
	}
}

func TestNewSTMLosesNoUpdateAtLevelsThatCheckReads(t *testing.T) {
	t.Parallel()
	for _, l := range levels {
		if !l.checkReads {
			continue
		}
		s := newSpace(t, server(t))
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 5 {
					_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
						n, _ := strconv.Atoi(stm.Get(s.key("n")))
						stm.Put(s.key("n"), strconv.Itoa(n+1))
						return nil
					}, concurrency.WithIsolation(l.level))
					assert.NoError(t, err)
				}
			})
		}
		wg.Wait()
		require.Equal(t, "20", s.value(t, "n"), l.name)
	}
}

// The figures are exact, on a server on which nothing else happens.
func TestSTMCosts(t *testing.T) {
	t.Parallel()
	s := newSpace(t, etcdtest.New(t))
	s.put(t, "a", "1", "b", "2")
	costs := func(what string, level concurrency.Isolation, calls int, entries uint64, apply func(stm concurrency.STM)) {
		t.Helper()
		before := s.cluster.CommittedIndex()
		s.faults.Reset()
		s.run(t, func(stm concurrency.STM, _ int) { apply(stm) }, concurrency.WithIsolation(level))
		require.Equal(t, calls, s.faults.KV(), "%s at level %d made %v", what, level, s.faults)
		require.Equal(t, entries, s.cluster.CommittedIndex()-before, "entries of %s at level %d", what, level)
	}
	for _, l := range levels {
		reads := 1
		if l.checkReads && !l.snapshot {
			reads = 2 // the commit asks whether the values still hold
		}
		costs("one Get", l.level, reads, 0, func(stm concurrency.STM) { stm.Get(s.key("a")) })
		costs("one Rev", l.level, reads, 0, func(stm concurrency.STM) { stm.Rev(s.key("a")) })
		costs("the same, again and again", l.level, reads, 0, func(stm concurrency.STM) {
			for range 3 {
				stm.Get(s.key("a"), s.key("a"))
				stm.Rev(s.key("a"))
			}
		})
		costs("many keys in one Get", l.level, reads, 0, func(stm concurrency.STM) { stm.Get(s.keys(50)...) })
		costs("two Gets", l.level, reads+1, 0, func(stm concurrency.STM) { stm.Get(s.key("a")); stm.Get(s.key("b")) })
		costs("a read and a write", l.level, 2, 1, func(stm concurrency.STM) {
			stm.Put(s.key("a"), stm.Get(s.key("a")))
		})
		costs("a blind write", l.level, 1, 1, func(stm concurrency.STM) { stm.Put(s.key("a"), "1") })
		costs("a written key that is read", l.level, 1, 1, func(stm concurrency.STM) {
			stm.Put(s.key("a"), "1")
			stm.Get(s.key("a"))
		})
		// There is no key to ask for: what makes the answer a new one is an entry of the log.
		costs("no keys", l.level, 1, 1, func(stm concurrency.STM) { stm.Get() })
		costs("nothing", l.level, 1, 1, func(concurrency.STM) {})
	}
}

func TestSTMReadOnly(t *testing.T) {
	t.Parallel()
	for _, l := range levels {
		t.Run("at "+l.name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t, server(t))
			rev := s.put(t, "a", "1")
			var got string
			resp, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
				got = stm.Get(s.key("a"))
				rev = max(rev, s.put(t, "other", "x")) // after the first read
				stm.Get(s.key("b"))
				return nil
			}, concurrency.WithIsolation(l.level))
			require.NoError(t, err)
			require.Equal(t, "1", got)
			require.True(t, resp.Succeeded)
			require.Empty(t, resp.Responses)
			if l.snapshot {
				require.Less(t, resp.Header.Revision, rev, "the header of its first read")
			} else {
				require.GreaterOrEqual(t, resp.Header.Revision, rev, "the header of its commit")
			}
		})
	}
}

func TestSTMGet(t *testing.T) {
	t.Parallel()
	t.Run("the value of the first key", func(t *testing.T) {
		t.Parallel()
		s := newSpace(t, server(t))
		s.put(t, "a", "1", "b", "2")
		a, b, none := s.key("a"), s.key("b"), s.key("none")
		s.run(t, func(stm concurrency.STM, _ int) {
			require.Equal(t, "2", stm.Get(b, none))
			require.Equal(t, "1", stm.Get(a, b), "also when the others were read before")
			require.Equal(t, "2", stm.Get(b, a))
			require.Equal(t, "1", stm.Get(a, a, a))
			require.Empty(t, stm.Get(none, a))
			require.Empty(t, stm.Get())
		})
	})
	t.Run("of a written key, what was written", func(t *testing.T) {
		t.Parallel()
		s := newSpace(t, server(t))
		s.put(t, "a", "1", "b", "2")
		a, b := s.key("a"), s.key("b")
		s.run(t, func(stm concurrency.STM, _ int) {
			stm.Put(a, "mine")
			require.Equal(t, "mine", stm.Get(a))
			require.Equal(t, "2", stm.Get(b, a), "not that of a later key")
			require.Equal(t, "mine", stm.Get(a, b))
			stm.Del(a)
			require.Empty(t, stm.Get(a))
			stm.Put(a, "again")
			require.Equal(t, "again", stm.Get(a))
			require.Equal(t, "2", stm.Get(b))
			stm.Put(b, "after it was read")
			require.Equal(t, "after it was read", stm.Get(b))
		})
		require.Equal(t, "again", s.value(t, "a"))
	})
	protected := map[string]func(stm concurrency.STM, a, b string){
		"the first":                         func(stm concurrency.STM, a, b string) { stm.Get(a, b) },
		"a later one":                       func(stm concurrency.STM, a, b string) { stm.Get(b, a) },
		"the first, the other read before":  func(stm concurrency.STM, a, b string) { stm.Get(b); stm.Get(a, b) },
		"the first, written before":         func(stm concurrency.STM, a, b string) { stm.Put(a, "w"); stm.Get(a, b) },
		"a later one, the first written":    func(stm concurrency.STM, a, b string) { stm.Put(b, "w"); stm.Get(b, a) },
		"the only one, written after":       func(stm concurrency.STM, a, b string) { stm.Get(a); stm.Put(a, "w") },
		"one of which the revision is read": func(stm concurrency.STM, a, b string) { stm.Rev(a) },
	}
	for what, read := range protected {
		t.Run("adds to the read set "+what, func(t *testing.T) {
			t.Parallel()
			for _, l := range levels {
				s := newSpace(t, server(t))
				s.put(t, "a", "1", "b", "2")
				attempts := s.run(t, func(stm concurrency.STM, attempt int) {
					read(stm, s.key("a"), s.key("b"))
					stm.Put(s.key("c"), "3")
					if attempt == 1 {
						s.put(t, "a", "changed")
					}
				}, concurrency.WithIsolation(l.level))
				require.Equal(t, l.checkReads, attempts == 2, "%d attempts at %s", attempts, l.name)
			}
		})
	}
}

func TestSTMRev(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	rev := s.put(t, "a", "1")
	a := s.key("a")
	s.run(t, func(stm concurrency.STM, _ int) {
		require.Zero(t, stm.Rev(s.key("none")))
		require.Equal(t, rev, stm.Rev(a))
		stm.Put(a, "2")
		require.Equal(t, rev, stm.Rev(a), "as it is in the store")
		stm.Del(a)
		require.Equal(t, rev, stm.Rev(a))
		require.Empty(t, stm.Get(a))
		stm.Put(s.key("new"), "n")
		require.Zero(t, stm.Rev(s.key("new")))
		require.Equal(t, "n", stm.Get(s.key("new")))
	})
	require.Nil(t, s.kv(t, "a"))
}

func TestSTMPut(t *testing.T) {
	t.Parallel()
	t.Run("the last write of a key counts", func(t *testing.T) {
		t.Parallel()
		s := newSpace(t, server(t))
		s.put(t, "b", "old", "c", "old")
		s.run(t, func(stm concurrency.STM, _ int) {
			stm.Put(s.key("a"), "1")
			stm.Put(s.key("a"), "2")
			stm.Del(s.key("b"))
			stm.Put(s.key("b"), "3")
			stm.Put(s.key("c"), "4")
			stm.Del(s.key("c"))
		})
		require.Equal(t, "2", s.value(t, "a"))
		require.EqualValues(t, 1, s.kv(t, "a").Version)
		require.Equal(t, "3", s.value(t, "b"))
		require.Nil(t, s.kv(t, "c"))
	})
	t.Run("with options", func(t *testing.T) {
		t.Parallel()
		s := newSpace(t, server(t))
		id := granted(t, s.outside, 60)
		s.run(t, func(stm concurrency.STM, _ int) {
			stm.Put(s.key("a"), "1", clientv3.WithLease(id))
			stm.Put(s.key("b"), "1", clientv3.WithLease(id))
			stm.Put(s.key("b"), "2")
		})
		require.Equal(t, int64(id), s.kv(t, "a").Lease)
		require.Zero(t, s.kv(t, "b").Lease, "the options of the last write count")
	})
}

// The function is not called.
func TestSTMAbortContextThatHasEnded(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	_, err := concurrency.NewSTM(s.client, func(concurrency.STM) error {
		t.Error("the function was run")
		return nil
	}, concurrency.WithAbortContext(cancelled()))
	require.Equal(t, context.Canceled, err)
	require.Zero(t, s.faults.KV())
}

// The context ends a pause, too.
func TestSTMAbortContextEndsConflicts(t *testing.T) {
	t.Parallel()
	for _, l := range levels {
		for _, last := range []int{1, 3, 4, 6, 10} { // pauses follow some of the second to the sixth
			if !l.checkReads {
				continue
			}
			s, attempts := newSpace(t, server(t)), 0
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
				stm.Put(s.key("z"), stm.Get(s.key("x")))
				if attempts++; attempts == last {
					s.faults.After(fault.Txn, 1, func(error) { cancel() })
				}
				s.put(t, "x", strconv.Itoa(attempts))
				return nil
			}, concurrency.WithAbortContext(ctx), concurrency.WithIsolation(l.level))
			require.Equal(t, context.Canceled, err, "the conflict was answered: nothing is unknown")
			require.Equal(t, last, attempts)
			require.Nil(t, s.kv(t, "z"))
		}
	}
}

// Nothing is sent then.
func TestSTMAbortContextThatEndsInTheFunction(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	ctx, cancel := context.WithCancel(t.Context())
	_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
		stm.Put(s.key("z"), stm.Get(s.key("x")))
		cancel()
		return nil
	}, concurrency.WithAbortContext(ctx))
	require.Equal(t, context.Canceled, err)
	require.Zero(t, s.faults.Count(fault.Txn))
}

func TestSTMAbortContextBoundsARead(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	gate := s.faults.Hold(fault.Get, 1)
	ctx, cancel := context.WithCancel(t.Context())
	call := etcdtest.Go(func() error {
		_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
			stm.Get(s.key("x"))
			return errors.New("Get has returned")
		}, concurrency.WithAbortContext(ctx))
		return err
	})
	ended(t, gate.Reached(), "the read is under way")
	require.True(t, call.Running())
	cancel()
	require.Equal(t, context.Canceled, call.Wait(t))
}

func TestSTMAbortContextThatEndsDuringTheCommit(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	gate := s.faults.HoldAnswer(fault.Txn, 1)
	ctx, cancel := context.WithCancel(t.Context())
	call := etcdtest.Go(func() error {
		_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
			stm.Put(s.key("x"), "1")
			return nil
		}, concurrency.WithAbortContext(ctx))
		return err
	})
	ended(t, gate.Reached(), "the commit is answered")
	cancel()
	err := call.Wait(t)
	require.ErrorIs(t, err, concurrency.ErrCommitUnknown)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, "1", s.value(t, "x"))
}

// The commit has an error of its own.
func TestSTMAbortContextIsToldWhateverTheCommitSays(t *testing.T) {
	t.Parallel()
	for told, cause := range map[error]error{
		rpctypes.ErrTimeoutDueToLeaderFail:                         context.Canceled,         // it ends meanwhile
		status.Error(codes.DeadlineExceeded, "told by the server"): context.DeadlineExceeded, // first
	} {
		s := newSpace(t, server(t))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if cause == context.Canceled {
			s.faults.After(fault.Txn, 1, func(error) { cancel() })
		}
		s.faults.LoseAnswer(fault.Txn, 1, told)
		_, err := concurrency.NewSTM(s.client, write([]string{s.key("x")}), concurrency.WithAbortContext(ctx))
		require.ErrorIs(t, err, concurrency.ErrCommitUnknown)
		require.ErrorIs(t, err, cause)
		require.ErrorIs(t, err, told)
	}
}

// Nothing is sent, nor after the client was closed.
func TestSTMAbortContextThatEndsBeforeTheCommit(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
		stm.Put(s.key("x"), "1")
		return s.client.Close()
	}, concurrency.WithAbortContext(t.Context()))
	require.Equal(t, context.Canceled, err)
	require.Zero(t, s.faults.KV())
	_, err = concurrency.NewSTM(s.client, func(concurrency.STM) error {
		t.Error("the function was run")
		return nil
	}, concurrency.WithAbortContext(t.Context()))
	require.Equal(t, context.Canceled, err)
}

func TestSTMAbortContextOfAClientMadeByHand(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	for _, opts := range [][]concurrency.STMOption{nil, {concurrency.WithAbortContext(t.Context())}} {
		_, err := concurrency.NewSTM(&clientv3.Client{KV: s.client.KV}, write([]string{s.key("x")}), opts...)
		require.NoError(t, err)
	}
}

func TestSTMAbortContextIsTheClientsByDefault(t *testing.T) {
	t.Parallel()
	c := client(t)
	require.NoError(t, c.Close())
	_, err := concurrency.NewSTM(c, func(concurrency.STM) error { return nil })
	require.Equal(t, context.Canceled, err)
}

func TestSTMPrefetch(t *testing.T) {
	t.Parallel()
	t.Run("adds the keys to the read set of every attempt, in one call", func(t *testing.T) {
		t.Parallel()
		for _, l := range levels {
			s := newSpace(t, server(t))
			s.put(t, "x", "0", "y", "0")
			attempts := s.run(t, func(stm concurrency.STM, attempt int) {
				calls := s.faults.KV()
				x := stm.Get(s.key("x"))
				require.Equal(t, x, stm.Get(s.key("y")))
				require.Equal(t, calls, s.faults.KV(), "fetched before")
				stm.Put(s.key("z"), x)
				if attempt == 1 {
					s.put(t, "x", "1", "y", "1")
				}
			}, concurrency.WithPrefetch(s.key("x")), concurrency.WithPrefetch(s.key("y"), s.key("x")),
				concurrency.WithIsolation(l.level))
			require.Equal(t, l.checkReads, attempts == 2, l.name)
		}
	})
	t.Run("protects keys that the function does not read", func(t *testing.T) {
		t.Parallel()
		s := newSpace(t, server(t))
		attempts := s.run(t, func(stm concurrency.STM, attempt int) {
			stm.Put(s.key("z"), "z")
			if attempt == 1 {
				s.put(t, "x", "1")
			}
		}, concurrency.WithPrefetch(s.key("x")))
		require.Equal(t, 2, attempts)
	})
	t.Run("300 keys, in three calls", func(t *testing.T) {
		t.Parallel()
		for _, l := range levels {
			s := newSpace(t, server(t))
			keys := s.keys(300)
			s.put(t, "0", "first", "299", "last")
			opts := []concurrency.STMOption{concurrency.WithPrefetch(keys...), concurrency.WithIsolation(l.level)}
			read := func(stm concurrency.STM) error {
				require.Equal(t, "first", stm.Get(keys...))
				require.Equal(t, "last", stm.Get(keys[299]))
				require.Equal(t, 3, s.faults.KV())
				return nil
			}
			_, err := concurrency.NewSTM(s.client, read, opts...)
			if l.checkReads && !l.snapshot { // it has to check them all in its commit
				require.ErrorIs(t, err, rpctypes.ErrTooManyOps)
			} else {
				require.NoError(t, err)
			}
		}
	})
	t.Run("a failing one is the transaction's error, and the function is not run", func(t *testing.T) {
		t.Parallel()
		s := newSpace(t, server(t))
		_, err := concurrency.NewSTM(s.client, func(concurrency.STM) error {
			t.Error("the function was run")
			return nil
		}, concurrency.WithPrefetch(""))
		require.Equal(t, rpctypes.ErrEmptyKey, err)
	})
	t.Run("nothing", func(t *testing.T) {
		t.Parallel()
		s := newSpace(t, server(t))
		s.run(t, func(stm concurrency.STM, _ int) { stm.Put(s.key("x"), "1") }, concurrency.WithPrefetch())
		require.Equal(t, 1, s.faults.KV())
	})
}

func TestSTMErrorsOfItsFunctionAreReturnedAsTheyAre(t *testing.T) {
	t.Parallel()
	s, own := newSpace(t, server(t)), errors.New("own")
	resp, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
		stm.Put(s.key("x"), stm.Get(s.key("x"))+"1")
		return own
	})
	require.Same(t, own, err)
	require.Nil(t, resp)
	require.Nil(t, s.kv(t, "x"))
	require.Zero(t, s.faults.Count(fault.Txn))
}

func TestSTMErrorsOfAReadAreReturnedAsTheyAre(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	reads := map[fault.Kind]func(stm concurrency.STM){
		fault.Get: func(stm concurrency.STM) { stm.Rev(s.key("x")) },
		fault.Txn: func(stm concurrency.STM) { stm.Get(s.key("x"), s.key("y")) },
	}
	for kind, read := range reads {
		s.faults.Refuse(kind, 1, codes.PermissionDenied, "etcdserver: permission denied")
		resp, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
			stm.Put(s.key("x"), "1")
			read(stm)
			t.Error("the read has returned")
			return nil
		})
		require.Equal(t, rpctypes.ErrPermissionDenied, err)
		require.Nil(t, resp)
		require.Nil(t, s.kv(t, "x"))
	}
}

func TestSTMErrorsOfACommitAreReturnedAsTheyAre(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	for want, write := range map[error]func(stm concurrency.STM){
		rpctypes.ErrEmptyKey:      func(stm concurrency.STM) { stm.Put("", "v") },
		rpctypes.ErrLeaseNotFound: func(stm concurrency.STM) { stm.Put(s.key("x"), "v", clientv3.WithLease(1)) },
	} {
		_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error { write(stm); return nil })
		require.Equal(t, want, err)
		require.NotErrorIs(t, err, concurrency.ErrCommitUnknown)
	}
}

func TestSTMErrorsOfAnUnknownCommitThatIsNotRepeated(t *testing.T) {
	t.Parallel()
	for _, l := range levels {
		s, attempts := newSpace(t, server(t)), 0
		s.faults.LoseAnswer(fault.Txn, 1, nil)
		resp, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
			attempts++
			stm.Put(s.key("x"), stm.Get(s.key("x"))+"1")
			return nil
		}, concurrency.WithIsolation(l.level))
		require.ErrorIs(t, err, concurrency.ErrCommitUnknown)
		require.ErrorIs(t, err, fault.ErrLostAnswer)
		require.Nil(t, resp)
		require.Equal(t, 1, attempts)
		require.Equal(t, 1, s.faults.Count(fault.Txn))
		require.Equal(t, "1", s.value(t, "x"))
	}
}

func TestSTMErrorsThatLeaveTheCommitUnknown(t *testing.T) {
	t.Parallel()
	for what, cause := range map[string]error{
		"an election among the servers":   rpctypes.ErrTimeoutDueToLeaderFail,
		"a server that runs out of space": rpctypes.ErrNoSpace,
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t, server(t))
			s.faults.LoseAnswer(fault.Txn, 1, cause)
			_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
				stm.Put(s.key("x"), "1")
				return nil
			})
			require.ErrorIs(t, err, concurrency.ErrCommitUnknown)
			require.ErrorIs(t, err, cause)
			require.Equal(t, "1", s.value(t, "x"))
		})
	}
}

func TestSTMErrorsWhereNothingListens(t *testing.T) {
	t.Parallel()
	p, err := fault.NewProxy(server(t).Endpoint(0))
	require.NoError(t, err)
	p.Close()
	c := etcdtest.Dial(t, p.Endpoint())
	name := prefix(t)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	for _, apply := range []func(stm concurrency.STM) error{
		func(stm concurrency.STM) error { stm.Get(name); return nil },
		func(stm concurrency.STM) error { stm.Put(name, "v"); return nil },
	} {
		err := within(t, 5*time.Second, func() error {
			_, err := concurrency.NewSTM(c, apply, concurrency.WithAbortContext(ctx))
			return err
		})
		require.Error(t, err)
	}
}

func TestSTMFunctionPanics(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]any{
		"a text": "text", "an error": errors.New("own"), "a pointer": new(int), "a slice": []int{1},
	} {
		t.Run("with "+name+", which passes through as it is", func(t *testing.T) {
			t.Parallel()
			s := newSpace(t, server(t))
			require.Equal(t, value, panicked(func() {
				concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
					stm.Put(s.key("x"), stm.Get(s.key("x"))+"1")
					panic(value)
				})
			}))
			require.Nil(t, s.kv(t, "x"))
			require.Zero(t, s.faults.Count(fault.Txn))
		})
	}
	t.Run("with its own panic's stack", func(t *testing.T) {
		t.Parallel()
		s := newSpace(t, server(t))
		defer func() {
			_, ok := recover().(runtime.Error)
			require.True(t, ok)
			stack := make([]byte, 1<<16)
			require.Contains(t, string(stack[:runtime.Stack(stack, false)]), "concurrency_test.divide")
		}()
		concurrency.NewSTM(s.client, func(s concurrency.STM) error { s.Put("quotient", strconv.Itoa(divide(1, 0))); return nil })
	})
	t.Run("after a read that failed", func(t *testing.T) {
		t.Parallel()
		s := newSpace(t, server(t))
		for _, value := range []any{"own", []int{1}} {
			s.faults.Refuse(fault.Get, 1, codes.PermissionDenied, "etcdserver: permission denied")
			require.Equal(t, value, panicked(func() {
				concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
					defer func() { recover(); panic(value) }()
					stm.Get(s.key("x"))
					return nil
				})
			}))
		}
	})
}

// panicked gives what f panics with, nil if it does not.
func panicked(f func()) (value any) {
	defer func() { value = recover() }()
	f()
	return nil
}

//go:noinline
func divide(a, b int) int { return a / b }

func TestSTMFunctionExits(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	call := etcdtest.Go(func() error {
		defer s.put(t, "deferred", "has run")
		concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
			stm.Put(s.key("x"), stm.Get(s.key("x"))+"1")
			runtime.Goexit()
			return nil
		})
		t.Error("NewSTM has returned")
		return nil
	})
	require.Error(t, call.Wait(t), "its goroutine has ended")
	require.Equal(t, "has run", s.value(t, "deferred"))
	require.Nil(t, s.kv(t, "x"))
	require.Zero(t, s.faults.Count(fault.Txn))
}

func TestSTMFunctionRecovers(t *testing.T) {
	t.Parallel()
	// swallow reads in vain, and hides it.
	swallow := func(stm concurrency.STM, key string) {
		defer func() { recover() }()
		stm.Get(key)
	}
	newRefused := func(t *testing.T) *space {
		s := newSpace(t, server(t))
		s.faults.Refuse(fault.Get, 1, codes.PermissionDenied, "etcdserver: permission denied")
		return s
	}
	t.Run("and returns nil: the read's error, and no commit", func(t *testing.T) {
		t.Parallel()
		s := newRefused(t)
		_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
			stm.Put(s.key("z"), "z")
			swallow(stm, s.key("x"))
			return nil
		})
		require.Equal(t, rpctypes.ErrPermissionDenied, err)
		require.Nil(t, s.kv(t, "z"))
		require.Zero(t, s.faults.Count(fault.Txn))
	})
	t.Run("and goes on: the next use ends it", func(t *testing.T) {
		t.Parallel()
		s := newRefused(t)
		_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
			swallow(stm, s.key("x"))
			stm.Put(s.key("z"), "z")
			t.Error("Put has returned")
			return nil
		})
		require.Equal(t, rpctypes.ErrPermissionDenied, err)
		require.Nil(t, s.kv(t, "z"))
	})
	t.Run("and returns an error of its own: the read's comes first", func(t *testing.T) {
		t.Parallel()
		s := newRefused(t)
		_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
			swallow(stm, s.key("x"))
			return errors.New("own")
		})
		require.Equal(t, rpctypes.ErrPermissionDenied, err)
	})
	t.Run("inside another transaction: the outer read's error is the outer's", func(t *testing.T) {
		t.Parallel()
		s := newRefused(t)
		_, err := concurrency.NewSTM(s.client, func(outer concurrency.STM) error {
			concurrency.NewSTM(s.client, func(inner concurrency.STM) error {
				inner.Put(s.key("z"), "z")
				outer.Get(s.key("x"))
				return nil
			})
			t.Error("the inner transaction has returned")
			return nil
		})
		require.Equal(t, rpctypes.ErrPermissionDenied, err)
		require.Nil(t, s.kv(t, "z"))
	})
}

func TestSTMUsedAfterItsFunction(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	var kept concurrency.STM
	s.run(t, func(stm concurrency.STM, _ int) { kept = stm })
	for _, use := range []func(){
		func() { kept.Get(s.key("x")) },
		func() { kept.Get() },
		func() { kept.Rev(s.key("x")) },
		func() { kept.Put(s.key("x"), "1") },
		func() { kept.Del(s.key("x")) },
	} {
		requireOurPanic(t, use)
	}
	require.Error(t, etcdtest.Go(func() error {
		requireOurPanic(t, func() { kept.Put(s.key("x"), "1") })
		return errors.New("on another goroutine")
	}).Wait(t))
	requireOurPanic(t, func() { // that of the attempt before
		concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
			kept.Get(s.key("x"))
			return nil
		})
	})
}

func TestSTMBadInput(t *testing.T) {
	t.Parallel()
	c := client(t)
	apply := func(concurrency.STM) error {
		t.Error("the function was run")
		return nil
	}
	var none context.Context
	for name, bug := range map[string]func(){
		"nil client":          func() { concurrency.NewSTM(nil, apply) },
		"nil function":        func() { concurrency.NewSTM(c, nil) },
		"nil option":          func() { concurrency.NewSTM(c, apply, nil) },
		"nil context":         func() { concurrency.NewSTM(c, apply, concurrency.WithAbortContext(none)) },
		"level -1":            func() { concurrency.NewSTM(c, apply, concurrency.WithIsolation(-1)) },
		"level 4":             func() { concurrency.NewSTM(c, apply, concurrency.WithIsolation(4)) },
		"limit 0":             func() { concurrency.NewSTM(c, apply, concurrency.WithMaxTxnOps(0)) },
		"limit -1":            func() { concurrency.NewSTM(c, apply, concurrency.WithMaxTxnOps(-1)) },
		"deprecated, nil ctx": func() { concurrency.NewSTMSerializable(none, c, apply) },
		"deprecated, client":  func() { concurrency.NewSTMRepeatable(t.Context(), nil, apply) },
		"deprecated, apply":   func() { concurrency.NewSTMReadCommitted(t.Context(), c, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			requireOurPanic(t, bug)
		})
	}
}

// Each deprecated constructor runs at its level and is ended by its context.
func TestSTMDeprecated(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		run  func(context.Context, *clientv3.Client, func(concurrency.STM) error) (*clientv3.TxnResponse, error)
		seen []string
	}{
		"Repeatable":    {concurrency.NewSTMRepeatable, []string{"01", "11"}},
		"Serializable":  {concurrency.NewSTMSerializable, []string{"00", "11"}},
		"ReadCommitted": {concurrency.NewSTMReadCommitted, []string{"01"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t, server(t))
			s.put(t, "x", "0", "y", "0")
			var seen []string
			resp, err := tc.run(t.Context(), s.client, func(stm concurrency.STM) error {
				x := stm.Get(s.key("x"))
				if len(seen) == 0 {
					s.put(t, "x", "1", "y", "1", "z", "blind writes don't conflict")
				}
				seen = append(seen, x+stm.Get(s.key("y")))
				stm.Put(s.key("z"), "z")
				return nil
			})
			require.NoError(t, err)
			require.True(t, resp.Succeeded)
			require.Equal(t, tc.seen, seen)
			require.Equal(t, "z", s.value(t, "z"))
			_, err = tc.run(cancelled(), s.client, func(concurrency.STM) error { return nil })
			require.Equal(t, context.Canceled, err)
		})
	}
	t.Run("Serializable does not check blind writes", func(t *testing.T) {
		t.Parallel()
		s, attempts := newSpace(t, server(t)), 0
		_, err := concurrency.NewSTMSerializable(t.Context(), s.client, func(stm concurrency.STM) error {
			attempts++
			stm.Get(s.key("x"))
			s.put(t, "z", "outside")
			stm.Put(s.key("z"), "z")
			return nil
		})
		require.NoError(t, err)
		require.Equal(t, 1, attempts)
	})
}

func TestSTMOnWrappedClients(t *testing.T) {
	t.Parallel()
	work := func(t *testing.T, c *clientv3.Client, seen string) {
		name := prefix(t)
		for i, l := range levels {
			attempts := 0
			resp, err := concurrency.NewSTM(c, func(stm concurrency.STM) error {
				attempts++
				n, _ := strconv.Atoi(stm.Get(name, name+"'"))
				require.NotZero(t, stm.Rev(name)+1)
				if attempts == 1 {
					_, err := c.Put(t.Context(), name, strconv.Itoa(10*i))
					require.NoError(t, err)
				}
				stm.Put(name+"'", strconv.Itoa(n))
				return nil
			}, concurrency.WithIsolation(l.level))
			require.NoError(t, err)
			require.Len(t, resp.Responses, 1)
			require.Equal(t, l.checkReads, attempts == 2)
		}
		resp, err := client(t).Get(t.Context(), seen+name)
		require.NoError(t, err)
		require.Equal(t, "30", string(resp.Kvs[0].Value))
	}
	t.Run("in a namespace", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		c.KV = namespace.NewKV(c.KV, "space/")
		work(t, c, "space/")
	})
	t.Run("the server's own", func(t *testing.T) {
		t.Parallel()
		if !server(t).Embedded() { // only those can be spoken to without a connection
			return
		}
		work(t, server(t).InProcess(t), "")
	})
}
