package concurrency_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

func TestSTMLimitOfTheServerIs128Writes(t *testing.T) {
	t.Parallel()
	for _, l := range levels {
		s := newSpace(t, server(t))
		_, err := concurrency.NewSTM(s.client, write(s.keys(128)), concurrency.WithIsolation(l.level))
		require.NoError(t, err)
		require.Equal(t, "v", s.value(t, "127"))
		_, err = concurrency.NewSTM(s.client, write(s.keys(129)), concurrency.WithIsolation(l.level))
		require.Equal(t, rpctypes.ErrTooManyOps, err)
	}
}

func TestSTMLimitOfTheCallerIsCheckedBeforeAnythingIsSent(t *testing.T) {
	t.Parallel()
	limit := concurrency.WithMaxTxnOps
	for _, l := range levels {
		s := newSpace(t, server(t))
		_, err := concurrency.NewSTM(s.client, write(s.keys(3)), limit(2), concurrency.WithIsolation(l.level))
		require.ErrorIs(t, err, rpctypes.ErrTooManyOps)
		for _, number := range []string{"3 writes", "0 checked keys", "the limit of 2"} {
			require.ErrorContains(t, err, number)
		}
		require.Zero(t, s.faults.KV())
		_, err = concurrency.NewSTM(s.client, write(s.keys(2)), limit(2), concurrency.WithIsolation(l.level))
		require.NoError(t, err)
	}
}

func TestSTMLimitCountsCheckedKeys(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
		stm.Get(s.keys(5)...)
		stm.Put(s.key("z"), "v") // checked too, at this level
		return nil
	}, concurrency.WithMaxTxnOps(5))
	require.ErrorIs(t, err, rpctypes.ErrTooManyOps)
	for _, number := range []string{" 1 writes", "6 checked keys", "the limit of 5"} {
		require.ErrorContains(t, err, number)
	}
	require.Equal(t, 1, s.faults.KV())
}

func TestSTMLimitHasReadsFetchedInParts(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	s.run(t, func(stm concurrency.STM, _ int) { stm.Get(s.keys(5)...) }, concurrency.WithMaxTxnOps(2))
	require.Equal(t, 3, s.faults.KV())
}

// limited is a space on a server that has a limit of its own.
func limited(tb testing.TB, n uint) *space {
	tb.Helper()
	return newSpace(tb, etcdtest.New(tb, etcdtest.Config(func(_ int, cfg *embed.Config) { cfg.MaxTxnOps = n })))
}

func TestSTMLimitOfTheServerThatIsHigherIsUsed(t *testing.T) {
	t.Parallel()
	if !server(t).Embedded() { // only those can be configured
		return
	}
	s := limited(t, 300)
	_, err := concurrency.NewSTM(s.client, write(s.keys(300)))
	require.NoError(t, err)
	s.faults.Reset()
	s.run(t, func(stm concurrency.STM, _ int) { stm.Put("z", stm.Get(s.keys(299)...)) })
	require.Equal(t, "Txn 4", s.faults.String(), "reads in three parts, and the commit")
	s.faults.Reset()
	s.run(t, func(stm concurrency.STM, _ int) { stm.Get(s.keys(200)...) }, concurrency.WithMaxTxnOps(300))
	require.Equal(t, 1, s.faults.KV(), "in one part")
}

func TestSTMLimitOfTheServerThatIsLowerMakesPartsSmaller(t *testing.T) {
	t.Parallel()
	if !server(t).Embedded() { // only those can be configured
		return
	}
	for _, n := range []uint{1, 20} {
		s := limited(t, n)
		_, err := s.outside.Put(t.Context(), s.key("49"), "last")
		require.NoError(t, err)
		attempts := s.run(t, func(stm concurrency.STM, attempt int) {
			before := s.faults.Count(fault.Txn)
			require.Equal(t, "last", stm.Get(s.keys(50)[49], s.keys(50)[0]))
			stm.Get(s.keys(50)...)
			if attempt == 2 && n > 1 {
				require.Equal(t, before+5, s.faults.Count(fault.Txn), "12 at most in each")
			}
		}, concurrency.WithIsolation(concurrency.ReadCommitted))
		require.Equal(t, 1, attempts)
	}
}

// What is beyond a server's or the client's size is refused, and certainly not carried out.
func TestSTMSizes(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		size int
		want func(t *testing.T, err error)
	}{
		"over the server's limit": {1600 << 10, func(t *testing.T, err error) {
			require.Equal(t, rpctypes.ErrRequestTooLarge, err)
		}},
		"over the client's limit": {3 << 20, func(t *testing.T, err error) {
			require.Equal(t, codes.ResourceExhausted, status.Code(err))
			require.NotErrorIs(t, err, concurrency.ErrCommitUnknown)
		}},
	} {
		large := strings.Repeat("x", tc.size)
		for what, apply := range map[string]func(stm concurrency.STM, key string){
			"a value":             func(stm concurrency.STM, key string) { stm.Put(key, large) },
			"a key":               func(stm concurrency.STM, key string) { stm.Put(key+large, "") },
			"values of many keys": func(stm concurrency.STM, key string) { putParts(stm, key, large) },
			"a value with options": func(stm concurrency.STM, key string) {
				stm.Put(key, large, clientv3.WithPrevKV())
			},
			"a key that is read": func(stm concurrency.STM, key string) { stm.Get(key + large) },
		} {
			if what == "a key that is read" && tc.size < 2<<20 {
				continue // no limit of the server's is on reads
			}
			t.Run(what+" "+name, func(t *testing.T) {
				t.Parallel()
				s := newSpace(t, server(t))
				_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error { apply(stm, s.key("x")); return nil })
				tc.want(t, err)
				require.Empty(t, etcdtest.Keys(t, s.outside, s.name))
			})
		}
	}
	t.Run("an answer over the client's limit leaves the commit unknown", func(t *testing.T) {
		t.Parallel()
		s := newSpace(t, server(t))
		s.put(t, "x", strings.Repeat("x", 4<<10))
		config := etcdtest.ClientConfig(server(t).Endpoints()...)
		config.MaxCallSendMsgSize, config.MaxCallRecvMsgSize = 1<<10, 1<<10
		c, err := clientv3.New(config)
		require.NoError(t, err)
		defer c.Close()
		_, err = concurrency.NewSTM(c, func(stm concurrency.STM) error {
			stm.Put(s.key("x"), "new", clientv3.WithPrevKV())
			return nil
		})
		require.ErrorIs(t, err, concurrency.ErrCommitUnknown)
		require.Equal(t, "new", s.value(t, "x"))
	})
}

// putParts puts a text in parts of 20 KiB.
func putParts(stm concurrency.STM, key, text string) {
	for i := 0; i < len(text); i += 20 << 10 {
		stm.Put(key+strconv.Itoa(i), text[i:min(i+20<<10, len(text))])
	}
}
