package concurrency_test

import (
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// increment adds one to a number in the store.
func increment(s concurrency.STM, key string) {
	n, _ := strconv.Atoi(s.Get(key))
	s.Put(key, strconv.Itoa(n+1))
}

// It runs alone: beside other tests, a commit may take so long that waits end before their turn.
func TestTransactionsOfOneClientTakeTurns(t *testing.T) {
	for _, l := range levels {
		if !l.checkReads {
			continue
		}
		t.Run(l.name, func(t *testing.T) {
			s := newSpace(t, server(t))
			const workers, each = 6, 30
			var wg sync.WaitGroup
			for range workers {
				wg.Go(func() {
					for range each {
						_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
							increment(stm, s.key("n"))
							return nil
						}, concurrency.WithIsolation(l.level))
						if err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			resp, err := s.outside.Get(t.Context(), s.key("n"))
			require.NoError(t, err)
			require.Equal(t, strconv.Itoa(workers*each), string(resp.Kvs[0].Value))
			if l.snapshot {
				// One proposal each if all take turns, about two without.
				require.Less(t, s.faults.Count(fault.Txn), workers*each*8/5)
			}
		})
	}
}

// hog starts a transaction that takes the turn at a key by a conflict, and keeps it, in
// its second attempt, until the test ends.
func hog(t *testing.T, s *space, key string) (attempts *int, leave func()) {
	t.Helper()
	inside, out := make(chan struct{}), make(chan struct{})
	attempts = new(int)
	call := etcdtest.Go(func() error {
		_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
			increment(stm, key)
			switch *attempts++; *attempts {
			case 1:
				_, err := s.outside.Put(t.Context(), key, "7")
				return err
			case 2:
				close(inside)
				<-out
			}
			return nil
		})
		return err
	})
	ended(t, inside, "the second attempt did not begin")
	return attempts, func() {
		close(out)
		require.NoError(t, call.Wait(t))
	}
}

func TestASlowFunctionHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	for key, attempts := range map[string]int{
		"the same key": 3, // the other one gets tired of waiting, and makes it conflict
		"another key":  2,
	} {
		t.Run(key, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t, server(t))
			made, leave := hog(t, s, s.key("the same key"))
			_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
				increment(stm, s.key(key))
				return nil
			})
			require.NoError(t, err)
			leave()
			require.Equal(t, attempts, *made)
		})
	}
}

func TestAPanicGivesTheTurnBack(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	for range 3 {
		attempts := 0
		require.PanicsWithValue(t, "out", func() {
			concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
				increment(stm, s.key("n"))
				if attempts++; attempts == 1 {
					_, err := s.outside.Put(t.Context(), s.key("n"), "7")
					return err
				}
				panic("out")
			})
		})
		require.Equal(t, 2, attempts)
	}
}
