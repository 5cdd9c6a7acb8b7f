package concurrency_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// The numbers of the levels are part of the API.
func TestIsolationNumbers(t *testing.T) {
	t.Parallel()
	for i, l := range levels {
		require.EqualValues(t, i, l.level, l.name)
	}
	s := newSpace(t, server(t))
	attempts := s.run(t, func(stm concurrency.STM, attempt int) { // SerializableSnapshot by default
		stm.Get(s.key("x"))
		stm.Put(s.key("z"), "z")
		if attempt == 1 {
			s.put(t, "z", "outside")
		}
	})
	require.Equal(t, 2, attempts)
}

// What makes an attempt conflict, at each level: two attempts instead of one.
func TestSTMConflicts(t *testing.T) {
	t.Parallel()
	never := func(concurrency.Isolation) bool { return false }
	reads := func(l concurrency.Isolation) bool { return l != concurrency.ReadCommitted }
	strictly := func(l concurrency.Isolation) bool { return l == concurrency.SerializableSnapshot }
	get := func(stm concurrency.STM, key string) { stm.Get(key) }
	update := func(stm concurrency.STM, key string) { stm.Put(key, stm.Get(key)+"+") }
	remove := func(stm concurrency.STM, key string) { stm.Get(key); stm.Del(key) }
	blind := func(stm concurrency.STM, key string) { stm.Put(key, "blind") }
	blindAfter := func(stm concurrency.STM, key string) { stm.Get(key + "'"); stm.Put(key, "blind") }
	blindDel := func(stm concurrency.STM, key string) { stm.Get(key + "'"); stm.Del(key) }
	for _, tc := range []struct {
		name      string
		apply     func(stm concurrency.STM, key string)
		interfere string
		conflicts func(l concurrency.Isolation) bool
	}{
		{"a key read is changed", get, "a put", reads},
		{"a key read is put again with the same value", get, "a same", reads},
		{"a key read is deleted", get, "a del", reads},
		{"a key read, that did not exist, is created", get, "none put", reads},
		{"a key read is deleted and put again", get, "a again", reads},
		{"a key read and written is changed", update, "a put", reads},
		{"a key read and written is deleted", update, "a del", reads},
		{"a key read and deleted is changed", remove, "a put", reads},
		{"a key read and deleted is deleted", remove, "a del", reads},
		{"a key only written is changed before anything is read", blind, "a put", never},
		{"a key only written is deleted before anything is read", blind, "a del", never},
		{"a key only written is changed", blindAfter, "a put", strictly},
		{"a key only written is created", blindAfter, "none put", strictly},
		{"a key only written is deleted", blindAfter, "a del", never},
		{"a key only deleted is changed", blindDel, "a put", strictly},
		{"a key only deleted is deleted", blindDel, "a del", never},
		{"another key is changed", update, "a other", never},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t, server(t))
			for _, l := range levels {
				s.put(t, "a", "old", "a'", "old")
				k, how, _ := strings.Cut(tc.interfere, " ")
				none := s.key("none")
				_, err := s.outside.Delete(t.Context(), none)
				require.NoError(t, err)
				attempts := s.run(t, func(stm concurrency.STM, attempt int) {
					tc.apply(stm, s.key(k))
					stm.Put(s.key("z"), "z")
					if attempt == 1 {
						s.interfere(t, k, how)
					}
				}, concurrency.WithIsolation(l.level))
				want := 1
				if tc.conflicts(l.level) {
					want = 2
				}
				require.Equal(t, want, attempts, "attempts at %s", l.name)
			}
		})
	}
}

func TestSTMReadsAreOfOneRevision(t *testing.T) {
	t.Parallel()
	// In the store, x and y are always equal.
	for _, l := range levels {
		for name, first := range map[string]func(stm concurrency.STM, key string){
			"Get": func(stm concurrency.STM, key string) { stm.Get(key) },
			"Rev": func(stm concurrency.STM, key string) { stm.Rev(key) },
		} {
			t.Run(l.name+", "+name+" first", func(t *testing.T) {
				t.Parallel()
				s := newSpace(t, server(t))
				s.put(t, "x", "0", "y", "0")
				var seen []string
				attempts := s.run(t, func(stm concurrency.STM, attempt int) {
					first(stm, s.key("x"))
					if attempt == 1 {
						s.put(t, "x", "1", "y", "1")
					}
					y := stm.Get(s.key("y"))
					seen = append(seen, stm.Get(s.key("x"))+y)
					stm.Put(s.key("z"), "z")
				}, concurrency.WithIsolation(l.level))
				switch {
				case l.snapshot:
					require.Equal(t, []string{"00", "11"}, seen)
				case l.checkReads:
					require.Equal(t, []string{"01", "11"}, seen, "reads at revisions of their own, checked")
				default:
					require.Equal(t, []string{"01"}, seen, "reads at revisions of their own, not checked")
				}
				require.Len(t, seen, attempts)
			})
		}
		t.Run(l.name+", each key is read once", func(t *testing.T) {
			t.Parallel()
			s := newSpace(t, server(t))
			rev := s.put(t, "x", "0")
			s.run(t, func(stm concurrency.STM, attempt int) {
				before := stm.Get(s.key("x"))
				if attempt == 1 {
					s.put(t, "x", "1")
					require.Equal(t, rev, stm.Rev(s.key("x")))
				}
				require.Equal(t, before, stm.Get(s.key("x"), s.key("y")))
			}, concurrency.WithIsolation(l.level))
		})
	}
}

func TestSTMThatOnlyReadsChecksItsReads(t *testing.T) {
	t.Parallel()
	// In the store, x and y are always equal.
	for _, l := range levels {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t, server(t))
			s.put(t, "x", "0", "y", "0")
			var seen []string
			s.run(t, func(stm concurrency.STM, attempt int) {
				x := stm.Get(s.key("x"))
				if attempt == 1 {
					s.put(t, "x", "1", "y", "1")
				}
				seen = append(seen, x+stm.Get(s.key("y")))
			}, concurrency.WithIsolation(l.level))
			switch {
			case l.snapshot:
				require.Equal(t, []string{"00"}, seen)
			case l.checkReads:
				require.Equal(t, []string{"01", "11"}, seen)
			default:
				require.Equal(t, []string{"01"}, seen)
			}
		})
	}
}

// strict is a KV that notes which reads may be answered by a member that lags behind.
type strict struct {
	clientv3.KV
	serializable []bool
}

func (k *strict) Get(
	ctx context.Context, key string, opts ...clientv3.OpOption,
) (*clientv3.GetResponse, error) {
	k.serializable = append(k.serializable, clientv3.OpGet(key, opts...).IsSerializable())
	return k.KV.Get(ctx, key, opts...)
}

func TestSTMReadsThatAreNotPinnedAreLinearizable(t *testing.T) {
	t.Parallel()
	for _, l := range levels {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t, server(t))
			kv := &strict{KV: s.client.KV}
			s.client.KV = kv
			s.run(t, func(stm concurrency.STM, _ int) {
				stm.Get(s.key("x"))
				stm.Get(s.key("y"))
			}, concurrency.WithIsolation(l.level))
			require.Equal(t, []bool{false, l.snapshot}, kv.serializable)
		})
	}
}

func TestSTMAfterAConflictHasItsReadsFromTheAnswer(t *testing.T) {
	t.Parallel()
	for _, l := range levels[:2] {
		s := newSpace(t, server(t))
		s.put(t, "x", "0", "y", "0")
		attempts := s.run(t, func(stm concurrency.STM, attempt int) {
			require.Equal(t, strconv.Itoa(attempt-1), stm.Get(s.key("x"), s.key("y"), s.key("none")))
			require.Equal(t, stm.Get(s.key("x")), stm.Get(s.key("y")))
			require.Equal(t, stm.Rev(s.key("x")), stm.Rev(s.key("y")))
			stm.Put(s.key("z"), "z")
			if attempt == 1 {
				s.put(t, "x", "1", "y", "1")
			}
		}, concurrency.WithIsolation(l.level))
		require.Equal(t, 2, attempts)
		require.Equal(t, 3, s.faults.Count(fault.Txn), "one read and two commits at %s", l.name)
		require.Equal(t, 3, s.faults.KV())
	}
}

func TestSTMAfterAConflictFreshReadsAgreeWithTheCarriedOnes(t *testing.T) {
	t.Parallel()
	for _, l := range levels[:2] {
		s := newSpace(t, server(t))
		s.put(t, "x", "0", "y", "0")
		var seen []string
		attempts := s.run(t, func(stm concurrency.STM, attempt int) {
			x := stm.Get(s.key("x"))
			if attempt < 3 {
				s.put(t, "x", strconv.Itoa(attempt), "y", strconv.Itoa(attempt))
			}
			if attempt > 1 { // a key that the first attempt had not read
				seen = append(seen, x+stm.Get(s.key("y")))
			}
			stm.Put(s.key("z"), "z")
		}, concurrency.WithIsolation(l.level))
		require.Equal(t, 3, attempts)
		require.Equal(t, []string{"11", "22"}, seen, l.name)
	}
}

func TestSTMAfterAConflictMayBeReadOnly(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	s.put(t, "x", "0")
	var rev int64
	resp, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
		if stm.Get(s.key("x")) == "0" {
			stm.Put(s.key("z"), "z")
			rev = s.put(t, "x", "1")
		}
		return nil
	})
	require.NoError(t, err)
	require.True(t, resp.Succeeded)
	require.GreaterOrEqual(t, resp.Header.Revision, rev)
	require.Nil(t, s.kv(t, "z"))
	require.Equal(t, 2, s.faults.KV(), "a read and a commit that conflicted")
}

func TestSTMAfterAConflictMayReadNothing(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	s.put(t, "x", "0")
	attempts := s.run(t, func(stm concurrency.STM, attempt int) {
		if attempt == 1 {
			stm.Get(s.key("x"))
			s.put(t, "x", "1")
		} else {
			s.put(t, "z", "outside") // no conflict: nothing was read
		}
		stm.Put(s.key("z"), "z")
	})
	require.Equal(t, 2, attempts)
	require.Equal(t, "z", s.value(t, "z"))
}

func TestSTMCompaction(t *testing.T) {
	t.Parallel()
	cluster := etcdtest.New(t) // compaction is everybody's
	compact := func(t *testing.T, s *space, rev int64) {
		_, err := s.outside.Compact(t.Context(), rev)
		require.NoError(t, err)
	}
	t.Run("between two reads is a conflict", func(t *testing.T) {
		for _, l := range levels {
			s := newSpace(t, cluster)
			s.put(t, "x", "0", "y", "0")
			var seen []string
			attempts := s.run(t, func(stm concurrency.STM, attempt int) {
				x := stm.Get(s.key("x"))
				if attempt == 1 {
					compact(t, s, s.put(t, "x", "1", "y", "1"))
				}
				seen = append(seen, x+stm.Get(s.key("y")))
			}, concurrency.WithIsolation(l.level))
			switch {
			case l.snapshot:
				require.Equal(t, []string{"11"}, seen, "the first attempt does not come so far")
				require.Equal(t, 2, attempts)
			case l.checkReads:
				require.Equal(t, []string{"01", "11"}, seen)
			default:
				require.Equal(t, []string{"01"}, seen)
			}
		}
	})
	t.Run("between a conflict and a fresh read is one too", func(t *testing.T) {
		s := newSpace(t, cluster)
		s.put(t, "x", "0", "y", "0")
		attempts := s.run(t, func(stm concurrency.STM, attempt int) {
			x := stm.Get(s.key("x"))
			switch attempt {
			case 1:
				s.put(t, "x", "1", "y", "1")
			case 2:
				compact(t, s, s.put(t, "x", "2", "y", "2"))
				fallthrough
			default:
				require.Equal(t, x, stm.Get(s.key("y"), s.key("z")))
				require.Equal(t, 3, attempt)
			}
			stm.Put(s.key("w"), x)
		})
		require.Equal(t, 3, attempts)
	})
	t.Run("a function that recovers it is run again", func(t *testing.T) {
		s := newSpace(t, cluster)
		s.put(t, "x", "0")
		attempts := s.run(t, func(stm concurrency.STM, attempt int) {
			stm.Get(s.key("x"))
			if attempt == 1 {
				compact(t, s, s.put(t, "x", "1"))
				func() {
					defer func() { require.NotNil(t, recover()) }()
					stm.Get(s.key("y"))
				}()
			}
		})
		require.Equal(t, 2, attempts)
	})
}

func TestSTMFutureRevision(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	s.put(t, "x", "0", "y", "0", "z", "0")
	s.faults.FutureRevision(2) // what a lagging member says of pinned reads
	attempts := s.run(t, func(stm concurrency.STM, _ int) {
		stm.Get(s.key("x"))
		s.put(t, "x", "1", "y", "1", "z", "1")
		require.Equal(t, "0", stm.Get(s.key("y")), "repeated at the same revision")
		require.Equal(t, "0", stm.Get(s.key("z"), s.key("none")))
	})
	require.Equal(t, 1, attempts)
	require.Equal(t, 3, s.faults.Count(fault.Get))
	require.Equal(t, 2, s.faults.Count(fault.Txn))
}

// A member that lags behind is asked for what the others have, where the client has heard of it.
func TestSTMHeaders(t *testing.T) {
	t.Parallel()
	if !server(t).Embedded() { // only those can be parted
		return
	}
	i := newIsland(t, false)
	c := i.MemberClient(t, i.member)
	f := counted(t, c)
	key := prefix(t)
	none := clientv3.Compare(clientv3.CreateRevision(key+"none"), "=", 0)
	for name, apply := range map[string]struct {
		f    func(stm concurrency.STM)
		opts []concurrency.STMOption
	}{
		"nothing":          {f: func(concurrency.STM) {}},
		"a guard":          {f: func(concurrency.STM) {}, opts: []concurrency.STMOption{concurrency.WithGuard(none)}},
		"a read, snapshot": {f: func(stm concurrency.STM) { stm.Get(key) }},
		"a read, repeatable": {
			f:    func(stm concurrency.STM) { stm.Get(key) },
			opts: []concurrency.STMOption{concurrency.WithIsolation(concurrency.RepeatableReads)},
		},
		"a read, committed": {
			f:    func(stm concurrency.STM) { stm.Get(key) },
			opts: []concurrency.STMOption{concurrency.WithIsolation(concurrency.ReadCommitted)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, from := range []int{(i.member + 1) % 3, (i.member + 2) % 3} {
				i.Link(from, i.member).Delay(300 * time.Millisecond)
				i.Link(i.member, from).Delay(300 * time.Millisecond)
			}
			put, err := i.mainland.Put(t.Context(), key, "new")
			require.NoError(t, err)
			resp, err := concurrency.NewSTM(c, func(stm concurrency.STM) error { apply.f(stm); return nil }, apply.opts...)
			require.NoError(t, err)
			require.GreaterOrEqual(t, resp.Header.Revision, put.Header.Revision)
			require.Empty(t, resp.Responses)
			require.NotZero(t, f.KV())
			i.rejoin(t)
		})
	}
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

// Every attempt sees one state of the store, also those that come to nothing.
func TestSTMTransfers(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	const accounts, each = 4, 100
	for _, key := range s.keys(accounts) {
		_, err := s.outside.Put(t.Context(), key, strconv.Itoa(each))
		require.NoError(t, err)
	}
	total := func(stm concurrency.STM) (sum int) {
		for _, key := range s.keys(accounts) {
			n, err := strconv.Atoi(stm.Get(key))
			assert.NoError(t, err)
			sum += n
		}
		return sum
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for range 5 {
				from, to := s.keys(accounts)[i], s.keys(accounts)[rand.IntN(accounts)]
				_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
					if sum := total(stm); sum != accounts*each {
						return fmt.Errorf("an attempt saw a total of %d", sum)
					}
					a, _ := strconv.Atoi(stm.Get(from))
					stm.Put(from, strconv.Itoa(a-1))
					b, _ := strconv.Atoi(stm.Get(to))
					stm.Put(to, strconv.Itoa(b+1))
					return nil
				}, concurrency.WithIsolation(levels[i%2].level))
				assert.NoError(t, err)
			}
		})
	}
	wg.Wait()
	s.run(t, func(stm concurrency.STM, _ int) { require.Equal(t, accounts*each, total(stm)) })
}

// behind answers a read at a revision as a member does that has come no further.
type behind struct {
	clientv3.KV
	before func() // comes before the second read
	reads  int
}

func (b *behind) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if b.reads++; b.reads == 2 {
		b.before()
	}
	resp, err := b.KV.Get(ctx, key, opts...)
	if at := clientv3.OpGet(key, opts...).Rev(); err == nil && at != 0 {
		resp.Header.Revision = at
	}
	return resp, err
}

// The first range is read in parts, the second of which comes after the second range.
func TestReadCommittedOfTwoRangesHasTheNewestHeader(t *testing.T) {
	t.Parallel()
	s, second := newSpace(t, server(t)), newSpace(t, server(t))
	s.fill(t, 4100, "")
	c := s.cluster.Client(t)
	c.KV = &behind{KV: s.client.KV, before: func() { second.put(t, "key", "new") }}
	rev := int64(0)
	resp, err := concurrency.NewSTM(c, func(stm concurrency.STM) error {
		rev = stm.Rev(second.key("key"))
		return nil
	}, concurrency.WithIsolation(concurrency.ReadCommitted), concurrency.WithMaxTxnOps(1),
		concurrency.WithPrefetchRange(s.all()), concurrency.WithPrefetchRange(second.all()))
	require.NoError(t, err)
	require.NotZero(t, rev)
	require.GreaterOrEqual(t, resp.Header.Revision, rev)
}
