package concurrency_test

import (
	"context"
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

// It runs alone: beside other tests, a function may take longer than a commit.
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
			require.Equal(t, strconv.Itoa(workers*each), s.value(t, "n"))
			// One proposal each if all take turns, about five without.
			require.Less(t, s.faults.Count(fault.Txn), workers*each*3/2)
		})
	}
}

// hog starts a transaction that conflicts over a key, and whose function runs, in its second
// attempt, until leave is called.
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

func TestARunningFunctionHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	for key, attempts := range map[string]int{
		"the same key": 3, // the others make it conflict
		"another key":  2,
	} {
		t.Run(key, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t, server(t))
			made, leave := hog(t, s, s.key("the same key"))
			for range 10 {
				s.run(t, func(stm concurrency.STM, _ int) { increment(stm, s.key(key)) })
			}
			leave()
			require.Equal(t, attempts, *made)
		})
	}
}

// What another transaction of the client has left is used without a call.
func TestATransactionHearsOfTheOneBefore(t *testing.T) {
	t.Parallel()
	for _, l := range levels {
		if !l.checkReads {
			continue
		}
		s := newSpace(t, server(t))
		made, leave := hog(t, s, s.key("n"))
		s.run(t, func(stm concurrency.STM, _ int) { increment(stm, s.key("n")) }, concurrency.WithIsolation(l.level))
		s.faults.Reset()
		leave()
		require.Equal(t, 3, *made)
		require.Equal(t, "Txn 1", s.faults.String(), "no proposal in vain, and no read")
		require.Equal(t, "9", s.value(t, "n"))
	}
}

func TestATransactionWithinATransaction(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	attempts := s.run(t, func(outer concurrency.STM, attempt int) {
		increment(outer, s.key("n"))
		if attempt < 3 {
			s.run(t, func(inner concurrency.STM, _ int) { increment(inner, s.key("n")) })
		}
	})
	require.Equal(t, 3, attempts)
	require.Equal(t, "3", s.value(t, "n"))
}

func TestAPanicStrandsNobody(t *testing.T) {
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
	// Nor does one in the client's own layers.
	_, leave := hog(t, s, s.key("n")) // keeps the line
	s.faults.Before(fault.Txn, 1, func() { panic("in the client") })
	require.PanicsWithValue(t, "in the client", func() {
		concurrency.NewSTM(s.client, func(stm concurrency.STM) error { increment(stm, s.key("n")); return nil })
	})
	s.run(t, func(stm concurrency.STM, _ int) { increment(stm, s.key("n")) })
	leave()
}

// A member is silent on a connection that stands, so the commit of a transaction has no answer.
func TestACommitWithoutAnAnswerHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	s := newSpace(t, server(t))
	_, leave := hog(t, s, s.key("n")) // there is a contest for as long as this runs
	add := func(ctx context.Context) error {
		_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
			increment(stm, s.key("n"))
			return nil
		}, concurrency.WithAbortContext(ctx))
		return err
	}
	silent := s.faults.Hold(fault.Txn, 1)
	ctx, cancel := context.WithCancel(t.Context())
	stuck := etcdtest.Go(func() error { return add(ctx) })
	ended(t, silent.Reached(), "the commit")
	var others []*etcdtest.Call
	for range 3 {
		others = append(others, etcdtest.Go(func() error { return add(t.Context()) }))
	}
	for _, other := range others {
		require.NoError(t, other.Wait(t))
	}
	require.True(t, stuck.Running())
	cancel()
	require.ErrorIs(t, stuck.Wait(t), context.Canceled)
	silent.Open()
	leave()
}

// A long transaction that has lost takes a lock. The short ones look at that lock's line, so that
// those under way conflict and the others wait, whatever client they are of.
func TestALongTransactionAmongShortOnes(t *testing.T) {
	t.Parallel()
	const lost = 3
	s := newSpace(t, server(t))
	mutex := concurrency.NewMutex(session(t, s.client), s.key("priority"))
	begin, end := s.key("priority/"), s.key("priority0")
	shorts := make(chan struct{}, 1) // tells of a commit
	ctx, cancel := context.WithCancel(t.Context())
	var others sync.WaitGroup
	for range 3 {
		others.Go(func() {
			for ctx.Err() == nil {
				_, err := concurrency.NewSTM(s.outside, func(stm concurrency.STM) error {
					if len(stm.Range(begin, end)) > 0 {
						stm.Retry()
					}
					increment(stm, s.key("n"))
					return nil
				}, concurrency.WithAbortContext(ctx), concurrency.WithPrefetchRange(begin, end),
					concurrency.WithPrefetch(s.key("n")))
				if err == nil {
					select {
					case shorts <- struct{}{}:
					default:
					}
				}
			}
		})
	}
	attempts, held := 0, false
	long := func(opts ...concurrency.STMOption) error {
		_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
			attempts++
			stm.Get(s.key("n"))
			if !held { // it is long: others commit meanwhile
				for range 2 {
					<-shorts
				}
			}
			increment(stm, s.key("n"))
			return nil
		}, opts...)
		return err
	}
	require.ErrorIs(t, long(concurrency.WithMaxAttempts(lost)), concurrency.ErrConflict)
	require.Equal(t, lost, attempts)
	require.NoError(t, mutex.Lock(t.Context()))
	held = true
	require.NoError(t, long(concurrency.WithGuard(mutex.IsOwner())))
	require.Equal(t, lost+1, attempts, "nobody commits beside it")
	require.NoError(t, mutex.Unlock(t.Context()))
	for len(shorts) > 0 {
		<-shorts
	}
	<-shorts // the others go on
	cancel()
	others.Wait()
}
