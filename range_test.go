package concurrency_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/server/v3/embed"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// all is the interval of the space's keys.
func (s *space) all() (begin, end string) {
	return s.key(""), clientv3.GetPrefixRangeEnd(s.key(""))
}

// fill puts n keys, whose names have their order.
func (s *space) fill(tb testing.TB, n int, value string) {
	tb.Helper()
	for i := 0; i < n; i += 128 {
		var ops []clientv3.Op
		for j := i; j < min(i+128, n); j++ {
			ops = append(ops, clientv3.OpPut(s.key(fmt.Sprintf("%06d", j)), value))
		}
		_, err := s.outside.Txn(context.Background()).Then(ops...).Commit()
		require.NoError(tb, err)
	}
}

func TestRangeShowsOwnWritesOverWhatTheStoreHas(t *testing.T) {
	t.Parallel()
	for _, l := range levels {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t, server(t))
			s.put(t, "b", "1", "d", "2", "f", "3", "h", "4")
			s.run(t, func(stm concurrency.STM, _ int) {
				begin, end := s.all()
				require.Equal(t, []string{"b=1", "d=2", "f=3", "h=4"}, s.shown(stm.Range(begin, end)))
				require.Equal(t, []string{"d=2", "f=3"}, s.shown(stm.Range(s.key("c"), s.key("h"))))
				require.Empty(t, stm.Range(s.key("i"), s.key("z")))
				stm.Put(s.key("a"), "mine")
				stm.Put(s.key("d"), "mine")
				stm.Put(s.key("z"), "mine")
				stm.Del(s.key("f"))
				stm.Del(s.key("none"))
				require.Equal(t, []string{"a=mine", "b=1", "d=mine", "h=4", "z=mine"}, s.shown(stm.Range(begin, end)))
				require.Equal(t, []string{"b=1", "d=mine", "h=4"}, s.shown(stm.Range(s.key("b"), s.key("i"))))
				stm.Put(s.key("f"), "again")
				require.Equal(t, []string{"f=again"}, s.shown(stm.Range(s.key("e"), s.key("h"))))
				kvs := stm.Range(begin, end)
				clear(kvs) // the slice is the caller's
				require.Len(t, s.shown(stm.Range(begin, end)), 6)
			}, concurrency.WithIsolation(l.level))
			require.Equal(t, "mine", s.value(t, "d"))
		})
	}
}

func TestRangeIsReadOnce(t *testing.T) {
	t.Parallel()
	for _, l := range levels {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t, server(t))
			s.put(t, "b", "1", "d", "2")
			s.run(t, func(stm concurrency.STM, attempt int) {
				begin, end := s.all()
				first := s.shown(stm.Range(begin, end))
				calls := s.faults.KV()
				if attempt == 1 {
					s.put(t, "b", "3", "c", "4")
					s.del(t, "d")
				}
				require.Equal(t, first, s.shown(stm.Range(begin, end)))
				require.Equal(t, len(first) == 2 && first[1] == "d=2", stm.Get(s.key("d")) == "2")
				require.Equal(t, attempt == 1, stm.Get(s.key("c")) == "")
				require.Equal(t, attempt == 1, len(stm.Range(s.key("c"), s.key("d"))) == 0)
				require.Equal(t, calls, s.faults.KV())
			}, concurrency.WithIsolation(l.level))
		})
	}
}

func TestRangeWithWhatWasReadBefore(t *testing.T) {
	t.Parallel()
	for _, l := range levels {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t, server(t))
			s.put(t, "b", "1", "d", "2")
			var seen []string
			attempts := s.run(t, func(stm concurrency.STM, attempt int) {
				stm.Get(s.key("b"), s.key("c"), s.key("d"))
				if attempt == 1 {
					s.put(t, "b", "3", "c", "4")
					s.del(t, "d")
				}
				begin, end := s.all()
				seen = s.shown(stm.Range(begin, end))
				if attempt == 1 {
					require.Equal(t, []string{"b=1", "d=2"}, seen, "what was read first")
				}
				stm.Put("other/"+s.key(""), "x")
			}, concurrency.WithIsolation(l.level))
			require.Equal(t, l.checkReads, attempts == 2)
			require.Equal(t, l.checkReads, slices.Equal(seen, []string{"b=3", "c=4"}))
		})
	}
}

func TestRangeShowsAllThatIsStoredWithAKey(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	id := granted(t, s.outside, 60)
	_, err := s.outside.Put(t.Context(), s.key("a"), "1", clientv3.WithLease(id))
	require.NoError(t, err)
	s.put(t, "b", "1")
	s.put(t, "b", "2")
	s.run(t, func(stm concurrency.STM, _ int) {
		begin, end := s.all()
		for i, kv := range stm.Range(begin, end) {
			want := s.kv(t, string('a'+rune(i)))
			require.Equal(t, want.String(), kv.String())
			require.Equal(t, want.String(), stm.Entry(string(kv.Key)).String())
		}
		stm.Put(s.key("b"), "3")
		require.Equal(t, &mvccpb.KeyValue{Key: []byte(s.key("b")), Value: []byte("3")}, stm.Entry(s.key("b")))
	})
}

func TestRangeOfAllKeys(t *testing.T) {
	t.Parallel()
	s := newSpace(t, etcdtest.New(t))
	s.put(t, "a", "1")
	_, err := s.outside.Put(t.Context(), "\xff", "2")
	require.NoError(t, err)
	for _, begin := range []string{"", "\x00"} {
		s.run(t, func(stm concurrency.STM, _ int) {
			kvs := stm.Range(begin, clientv3.GetPrefixRangeEnd(""))
			require.Len(t, kvs, 2)
			stm.Put("\x00", "least")
			require.Equal(t, "least", string(stm.RangeN(begin, "\x00", 1)[0].Value))
			stm.DelRange("", "\x00")
			stm.Put("\x00", "least")
			stm.Put("m", "")
		})
		resp, err := s.outside.Get(t.Context(), "", clientv3.WithFromKey())
		require.NoError(t, err)
		require.Len(t, resp.Kvs, 2)
		_, err = s.outside.Txn(t.Context()).Then(clientv3.OpPut(s.key("a"), "1"), clientv3.OpPut("\xff", "2"),
			clientv3.OpDelete("\x00"), clientv3.OpDelete("m")).Commit()
		require.NoError(t, err)
	}
}

func TestLookup(t *testing.T) {
	t.Parallel()
	for _, l := range levels {
		s := newSpace(t, server(t))
		s.put(t, "empty", "", "a", "1")
		look := func(stm concurrency.STM, k, want string, found bool) {
			value, ok := stm.Lookup(s.key(k))
			require.Equal(t, want, value)
			require.Equal(t, found, ok)
			require.Equal(t, found, stm.Entry(s.key(k)) != nil)
		}
		attempts := s.run(t, func(stm concurrency.STM, attempt int) {
			look(stm, "none", "", false)
			look(stm, "empty", "", attempt == 1 || !l.checkReads)
			look(stm, "a", "1", true)
			stm.Put(s.key("new"), "")
			look(stm, "new", "", true)
			stm.Del(s.key("a"))
			look(stm, "a", "", false)
			if attempt == 1 {
				s.del(t, "empty")
			}
		}, concurrency.WithIsolation(l.level))
		require.Equal(t, l.checkReads, attempts == 2, l.name)
	}
}

// What makes an attempt conflict that has read a range, at each level: two attempts instead of one.
func TestRangeConflicts(t *testing.T) {
	t.Parallel()
	reads := func(l concurrency.Isolation) bool { return l != concurrency.ReadCommitted }
	never := func(concurrency.Isolation) bool { return false }
	strictly := func(l concurrency.Isolation) bool { return l == concurrency.SerializableSnapshot }
	whole := func(s *space, stm concurrency.STM) { stm.Range(s.all()) }
	first := func(s *space, stm concurrency.STM) { stm.RangeN(s.key(""), s.key("z"), 1) }
	pieces := func(s *space, stm concurrency.STM) {
		stm.Range(s.key("e"), s.key("g"))
		stm.Get(s.key("c"))
		stm.Range(s.all())
	}
	clears := func(s *space, stm concurrency.STM) { stm.Get("other"); stm.DelRange(s.all()) }
	blind := func(s *space, stm concurrency.STM) { stm.DelRange(s.all()) }
	for _, tc := range []struct {
		name      string
		apply     func(s *space, stm concurrency.STM)
		interfere string
		conflicts func(l concurrency.Isolation) bool
	}{
		{"a key comes to lie in a range", whole, "c put", reads},
		{"a key of it is changed", whole, "d put", reads},
		{"a key of it is put again with the same value", whole, "d same", reads},
		{"a key of it is deleted", whole, "d del", reads},
		{"a key of it is deleted and put again", whole, "d again", reads},
		{"the first key of it is deleted", whole, "b del", reads},
		{"a key comes to lie behind the first", first, "c put", never},
		{"a key comes to lie before the first", first, "a put", reads},
		{"the first key is deleted", first, "b del", reads},
		{"the second key is deleted", first, "d del", never},
		{"a key comes to lie in a gap", pieces, "a put", reads},
		{"a key comes to lie in a part", pieces, "ee put", reads},
		{"a key read before is put", pieces, "c put", reads},
		{"a key of a part is deleted", pieces, "f del", reads},
		{"a key comes to lie in a range that is deleted", clears, "c put", strictly},
		{"a key of it is deleted by others", clears, "d del", never},
		{"a range is deleted before anything is read", blind, "c put", never},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			for _, l := range levels {
				s := newSpace(t, server(t))
				s.put(t, "b", "1", "d", "2", "f", "3")
				k, how, _ := strings.Cut(tc.interfere, " ")
				attempts := s.run(t, func(stm concurrency.STM, attempt int) {
					tc.apply(s, stm)
					stm.Put("out of "+s.key("z"), "z")
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

func TestRangeN(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	s.put(t, "b", "1", "d", "2", "f", "3", "h", "4")
	s.run(t, func(stm concurrency.STM, _ int) {
		begin, end := s.all()
		n := func(n int) []string { return s.shown(stm.RangeN(begin, end, n)) }
		require.Equal(t, []string{"b=1"}, n(1))
		require.Equal(t, []string{"b=1", "d=2"}, n(2))
		require.Equal(t, 2, s.faults.KV(), "only what is new is read")
		stm.Del(s.key("b"))
		require.Equal(t, []string{"d=2"}, n(1))
		require.Equal(t, 2, s.faults.KV())
		stm.Put(s.key("a"), "mine")
		stm.Put(s.key("g"), "mine")
		require.Equal(t, []string{"a=mine", "d=2", "f=3"}, n(3))
		stm.DelRange(s.key("a"), s.key("g"))
		require.Equal(t, []string{"g=mine", "h=4"}, n(9))
		require.Equal(t, []string{"g=mine"}, n(1))
	})
}

func TestRangeNOfAnyNumber(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1000, math.MaxInt} {
		s := newSpace(t, server(t))
		s.put(t, "a", "1", "b", "2", "c", "3", "d", "4")
		s.run(t, func(stm concurrency.STM, _ int) {
			stm.Range(s.key("b"), s.key("c")) // the range is then read in pieces
			stm.Del(s.key("a"))
			begin, end := s.all()
			require.Equal(t, []string{"b=2", "c=3", "d=4"}, s.shown(stm.RangeN(begin, end, n)))
		})
	}
}

// Ranges that lie in a range that is known are compared with it, however many they are.
func TestRangesWithinARangeThatIsKnown(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	attempts := s.run(t, func(stm concurrency.STM, attempt int) {
		for i := range 200 {
			p := s.key(fmt.Sprintf("%03d/", i))
			require.Len(t, stm.Range(p, clientv3.GetPrefixRangeEnd(p)), (attempt-1)*max(0, i-198))
		}
		if attempt == 1 {
			s.put(t, "199/new", "")
		}
		stm.Put(s.key("out"), "")
	}, concurrency.WithPrefetchRange(s.all()), concurrency.WithMaxTxnOps(2))
	require.Equal(t, 2, attempts)
}

func TestDelRange(t *testing.T) {
	t.Parallel()
	for _, l := range levels {
		s := newSpace(t, server(t))
		s.put(t, "b", "1", "d", "2", "f", "3", "h", "4")
		begin, end := s.all()
		resp, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
			stm.Put(s.key("before"), "is dropped")
			stm.DelRange(s.key("a"), s.key("h"))
			require.Empty(t, stm.Get(s.key("b")))
			_, found := stm.Lookup(s.key("d"))
			require.False(t, found)
			require.Zero(t, s.faults.KV(), "what was deleted is not read")
			s.put(t, "e", "deleted at the commit")
			require.Equal(t, []string{"h=4"}, s.shown(stm.Range(begin, end)))
			require.Equal(t, s.kv(t, "d").ModRevision, stm.Rev(s.key("d")), "as it is in the store")
			stm.Put(s.key("d"), "mine")
			stm.Del(s.key("f"))
			require.Equal(t, []string{"d=mine", "h=4"}, s.shown(stm.Range(begin, end)))
			require.Equal(t, "mine", stm.Get(s.key("d")))
			return nil
		}, concurrency.WithIsolation(l.level))
		require.NoError(t, err, l.name)
		require.Equal(t, []string{"d=mine", "h=4"}, s.shown(etcdtest.Keys(t, s.outside, begin)))
		require.Len(t, resp.Responses, 5, "three parts of the range, and two keys")
		s.run(t, func(stm concurrency.STM, _ int) {
			stm.DelRange(s.key("c"), s.key("e"))
			stm.Put(s.key("d"), "is dropped")
			stm.DelRange(begin, end)
		}, concurrency.WithIsolation(l.level))
		require.Empty(t, etcdtest.Keys(t, s.outside, begin))
	}
}

// The figures are exact.
func TestRangeCosts(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	s.fill(t, 5000, "v")
	costs := func(what string, calls int, apply func(stm concurrency.STM, attempt int), opts ...concurrency.STMOption) {
		t.Helper()
		s.faults.Reset()
		s.run(t, apply, opts...)
		require.Equal(t, calls, s.faults.KV(), "%s made %v", what, s.faults)
	}
	first := func(n int) (begin, end string) { return s.key(""), s.key(fmt.Sprintf("%06d", n)) }
	for _, l := range levels {
		level := concurrency.WithIsolation(l.level)
		if !l.checkReads || l.snapshot {
			costs("a range of 1000, read", 1, func(stm concurrency.STM, _ int) {
				require.Len(t, stm.Range(first(1000)), 1000)
			}, level)
			costs("a range of 5000, read", 2, func(stm concurrency.STM, _ int) {
				require.Len(t, stm.Range(s.all()), 5000)
			}, level)
		}
		costs("a range of 50, read and written", 2, func(stm concurrency.STM, _ int) {
			for _, kv := range stm.Range(first(50)) {
				stm.Put(string(kv.Key), "new")
			}
		}, level)
		costs("two ranges and a key, prefetched", 2, func(stm concurrency.STM, _ int) {
			require.Len(t, stm.Range(first(50)), 50)
			require.Len(t, stm.Range(s.key("000070"), s.key("000080")), 10)
			stm.Put("out of "+s.key(""), stm.Get("out of "+s.key(""))+".")
		}, level, concurrency.WithPrefetchRange(first(50)), concurrency.WithPrefetch("out of "+s.key("")),
			concurrency.WithPrefetchRange(s.key("000070"), s.key("000080")))
		calls := 2
		if l.checkReads {
			calls += 1
		}
		if l.checkReads && !l.snapshot {
			calls += 1
		}
		costs("a range and a conflict", calls, func(stm concurrency.STM, attempt int) {
			require.Len(t, stm.Range(first(20)), 20)
			require.Len(t, stm.RangeN(s.key("000030"), s.key("1"), 2), 2)
			stm.Put("out of "+s.key(""), "")
			if attempt == 1 {
				s.put(t, "000003", "changed")
			}
		}, level, concurrency.WithPrefetchRange(first(40)))
	}
}

// Other writes come between the parts.
func TestRangeInPartsIsOfOneRevision(t *testing.T) {
	t.Parallel()
	for _, l := range levels {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t, server(t))
			s.fill(t, 4100, "old")
			s.put(t, "000000", "old", "004099", "old")
			change := func() { s.put(t, "000000", "new", "004099", "new") }
			s.faults.Before(fault.Get, 2, change)
			attempts := 0
			_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
				attempts++
				kvs := stm.Range(s.all())
				require.Len(t, kvs, 4100)
				require.Equal(t, string(kvs[0].Value), string(kvs[4099].Value))
				return nil
			}, concurrency.WithIsolation(l.level))
			if l.checkReads && !l.snapshot { // it has to check them all in its commit
				require.Equal(t, rpctypes.ErrTooManyOps, err)
			} else {
				require.NoError(t, err)
			}
			require.Equal(t, 1, attempts)
			s.faults.Before(fault.Get, s.faults.Count(fault.Get)+1, change)
			require.Equal(t, "new", s.value(t, "000000"))
		})
	}
	t.Run("a compaction between them starts another attempt", func(t *testing.T) {
		t.Parallel()
		for _, l := range levels {
			s := newSpace(t, etcdtest.New(t))
			s.fill(t, 4100, "old")
			s.faults.Before(fault.Get, 2, func() {
				_, err := s.outside.Compact(t.Context(), s.put(t, "000000", "new", "004099", "new"))
				require.NoError(t, err)
			})
			_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
				kvs := stm.Range(s.all())
				require.Equal(t, "new", string(kvs[0].Value))
				require.Equal(t, "new", string(kvs[4099].Value))
				return nil
			}, concurrency.WithIsolation(l.level))
			if l.checkReads && !l.snapshot {
				require.Equal(t, rpctypes.ErrTooManyOps, err)
			} else {
				require.NoError(t, err)
			}
			require.Equal(t, 4, s.faults.Count(fault.Get))
		}
	})
}

func TestRangeThatGrowsPastTheServersLimitBetweenAttempts(t *testing.T) {
	t.Parallel()
	for _, l := range levels[:2] {
		s, attempts := newSpace(t, server(t)), 0
		s.fill(t, 126, "v")
		_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
			attempts++
			require.Len(t, stm.Range(s.all()), 124+2*attempts)
			stm.Put("out of "+s.key(""), "")
			if attempts == 1 {
				s.put(t, "x", "128 keys and their range are", "y", "129 comparisons")
			}
			return nil
		}, concurrency.WithIsolation(l.level))
		require.Equal(t, rpctypes.ErrTooManyOps, err)
		require.Equal(t, 2, attempts)
	}
}

func TestRangePastALimitThatTheCallerHasSet(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	s.fill(t, 10, "v")
	_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
		stm.Range(s.all())
		stm.Put("out of "+s.key(""), "")
		return nil
	}, concurrency.WithMaxTxnOps(10))
	require.ErrorIs(t, err, rpctypes.ErrTooManyOps)
	for _, number := range []string{"1 writes", "12 checked keys and ranges", "limit of 10"} {
		require.ErrorContains(t, err, number)
	}
}

// small is a client of the space whose messages are small.
func (s *space) small(tb testing.TB) *clientv3.Client {
	tb.Helper()
	config := etcdtest.ClientConfig(server(tb).Endpoints()...)
	config.MaxCallSendMsgSize, config.MaxCallRecvMsgSize = 4<<10, 8<<10
	c, err := clientv3.New(config)
	require.NoError(tb, err)
	tb.Cleanup(func() { c.Close() })
	s.faults = counted(tb, c)
	return c
}

func TestRangeOverTheClientsSizeIsReadInSmallerParts(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	s.fill(t, 50, strings.Repeat("x", 1<<10))
	c := s.small(t)
	for _, opts := range [][]concurrency.STMOption{nil, {
		concurrency.WithPrefetchRange(s.all()), concurrency.WithPrefetch(s.key("000001"), s.key("000002")),
	}} {
		_, err := concurrency.NewSTM(c, func(stm concurrency.STM) error {
			require.Len(t, stm.Range(s.all()), 50)
			return nil
		}, opts...)
		require.NoError(t, err)
	}
}

func TestRangeOfAKeyThatFitsIntoNoAnswerIsToldWithTheNumbers(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	s.put(t, "a", "1", "b", strings.Repeat("x", 9<<10))
	_, err := concurrency.NewSTM(s.small(t), func(stm concurrency.STM) error {
		stm.Range(s.all())
		return nil
	})
	require.ErrorContains(t, err, "a single key of the range")
	require.ErrorContains(t, err, "vs. 8192")
}

func TestRangeOfThousandsOfKeysWhereTheServerAllowsIt(t *testing.T) {
	t.Parallel()
	if !server(t).Embedded() { // only those can be configured
		return
	}
	c := etcdtest.New(t, etcdtest.Config(func(_ int, cfg *embed.Config) { cfg.MaxTxnOps = 3000 }))
	s := newSpace(t, c)
	s.fill(t, 2000, "v")
	attempts := s.run(t, func(stm concurrency.STM, attempt int) {
		require.Len(t, stm.Range(s.all()), 2000)
		stm.DelRange(s.all())
		if attempt == 1 {
			s.put(t, "000007", "changed")
		}
	})
	require.Equal(t, 2, attempts)
	require.Empty(t, etcdtest.Keys(t, s.outside, s.key("")))
}

func TestRangeOnWrappedClients(t *testing.T) {
	t.Parallel()
	work := func(t *testing.T, c *clientv3.Client, from, to string) {
		for _, l := range levels {
			attempts := 0
			_, err := concurrency.NewSTM(c, func(stm concurrency.STM) error {
				attempts++
				n := len(stm.Range(from, to))
				require.Equal(t, attempts, n+1)
				if attempts == 1 {
					_, err := c.Put(t.Context(), from+"a", "1")
					require.NoError(t, err)
				}
				if n == 0 && l.checkReads {
					stm.Retry()
				}
				stm.DelRange(from, to)
				stm.Put(from+"b", "2")
				return nil
			}, concurrency.WithIsolation(l.level))
			require.NoError(t, err)
			require.Equal(t, l.checkReads, attempts == 2)
			resp, err := c.Get(t.Context(), from+"a")
			require.NoError(t, err)
			require.Empty(t, resp.Kvs)
			_, err = c.Delete(t.Context(), from+"b")
			require.NoError(t, err)
		}
	}
	t.Run("in a namespace", func(t *testing.T) {
		t.Parallel()
		for _, all := range [][2]string{{"a", "z"}, {"", "\x00"}} {
			c, space := client(t), prefix(t)+"/"
			c.KV, c.Watcher = namespace.NewKV(c.KV, space), namespace.NewWatcher(c.Watcher, space)
			work(t, c, all[0], all[1])
		}
	})
	t.Run("the server's own", func(t *testing.T) {
		t.Parallel()
		if !server(t).Embedded() { // only those can be spoken to without a connection
			return
		}
		name := prefix(t)
		work(t, server(t).InProcess(t), name+"/", name+"0")
	})
}

func TestRangeBadInput(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	for name, bug := range map[string]func(stm concurrency.STM){
		"the end before the begin": func(stm concurrency.STM) { stm.Range("b", "a") },
		"an empty range":           func(stm concurrency.STM) { stm.Range("a", "a") },
		"no end":                   func(stm concurrency.STM) { stm.Range("a", "") },
		"RangeN":                   func(stm concurrency.STM) { stm.RangeN("b", "a", 1) },
		"no keys":                  func(stm concurrency.STM) { stm.RangeN("a", "b", 0) },
		"DelRange":                 func(stm concurrency.STM) { stm.DelRange("b", "a") },
		"WithPrefetchRange":        func(concurrency.STM) { concurrency.WithPrefetchRange("b", "a") },
		"Retry":                    func(stm concurrency.STM) { stm.Put("a", ""); stm.Get("a"); stm.Retry() },
		"no attempts":              func(concurrency.STM) { concurrency.WithMaxAttempts(0) },
	} {
		t.Run(name, func(t *testing.T) {
			requireOurPanic(t, func() {
				concurrency.NewSTM(s.client, func(stm concurrency.STM) error { bug(stm); return nil })
			})
			require.Zero(t, s.faults.KV(), "nothing is sent")
		})
	}
	var kept concurrency.STM
	s.run(t, func(stm concurrency.STM, _ int) { kept = stm })
	for _, use := range []func(){
		func() { kept.Range("a", "b") },
		func() { kept.RangeN("a", "b", 1) },
		func() { kept.DelRange("a", "b") },
		func() { kept.Lookup("a") },
		func() { kept.Entry("a") },
		func() { kept.Retry() },
	} {
		requireOurPanic(t, use)
	}
}

// book enters a booking of a room, from one hour to another, unless the room is taken then.
// The bookings are found by list.
func book(stm concurrency.STM, room string, from, to int, list func() []string) error {
	for _, booked := range list() {
		if other := booking(booked); from < other.to && other.from < to {
			return errTaken
		}
	}
	stm.Put(fmt.Sprintf("%s/%02d-%02d", room, from, to), "")
	return nil
}

var errTaken = errors.New("taken")

type hours struct{ from, to int }

func booking(key string) (h hours) {
	from, to, _ := strings.Cut(key[strings.LastIndexByte(key, '/')+1:], "-")
	h.from, _ = strconv.Atoi(from)
	h.to, _ = strconv.Atoi(to)
	return h
}

// Two transactions read the same range and write different keys. A version that lists first
// and reads the keys that it has found commits both. It shows that the test can tell.
func TestRangePreventsWriteSkew(t *testing.T) {
	t.Parallel()
	lists := map[string]func(s *space, stm concurrency.STM) []string{
		"Range": func(s *space, stm concurrency.STM) []string {
			return slices.Collect(maps.Keys(byKey(stm.Range(s.all()))))
		},
		"list, then Get": func(s *space, stm concurrency.STM) (keys []string) {
			for _, kv := range etcdtest.Keys(t, s.outside, s.key("")) {
				stm.Get(string(kv.Key))
				keys = append(keys, string(kv.Key))
			}
			return keys
		},
	}
	for name, list := range lists {
		t.Run("of a booking, by "+name, func(t *testing.T) {
			t.Parallel()
			for _, l := range levels[:3] {
				s := newSpace(t, server(t))
				attempts := 0
				_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
					attempts++
					return book(stm, s.key("room"), 10, 12, func() []string {
						found := list(s, stm)
						if attempts == 1 { // a rival books in between
							_, err := concurrency.NewSTM(s.outside, func(stm concurrency.STM) error {
								return book(stm, s.key("room"), 11, 13, func() []string { return nil })
							})
							require.NoError(t, err)
						}
						return found
					})
				}, concurrency.WithIsolation(l.level))
				if kvs := etcdtest.Keys(t, s.outside, s.key("")); name == "Range" {
					require.Equal(t, errTaken, err)
					require.Len(t, kvs, 1)
				} else {
					require.NoError(t, err)
					require.Len(t, kvs, 2, "a double booking")
				}
			}
		})
	}
	t.Run("of two doctors on call", func(t *testing.T) {
		t.Parallel()
		for _, l := range levels[:3] {
			s := newSpace(t, server(t))
			s.put(t, "alice", "", "bob", "")
			leave := func(c *clientv3.Client, who string, meanwhile func()) (*clientv3.TxnResponse, error) {
				return concurrency.NewSTM(c, func(stm concurrency.STM) error {
					if len(stm.Range(s.all())) < 2 {
						return errTaken
					}
					meanwhile()
					stm.Del(s.key(who))
					return nil
				}, concurrency.WithIsolation(l.level))
			}
			_, err := leave(s.client, "alice", func() {
				_, err := leave(s.outside, "bob", func() {})
				require.NoError(t, err)
			})
			require.Equal(t, errTaken, err)
			require.Len(t, etcdtest.Keys(t, s.outside, s.key("")), 1)
		}
	})
}

func byKey(kvs []*mvccpb.KeyValue) map[string]*mvccpb.KeyValue {
	m := map[string]*mvccpb.KeyValue{}
	for _, kv := range kvs {
		m[string(kv.Key)] = kv
	}
	return m
}
