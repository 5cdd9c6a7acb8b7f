package virtual_test

import (
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/virtual"
)

// weather gives all faults one rate.
func weather(n *virtual.Network, rate float64) {
	for _, f := range virtual.Table() {
		n.Set(f.Name, rate)
	}
}

// locker locks and unlocks, on one session after another, until then.
func locker(b *virtual.Bubble, name string, bare bool, until time.Duration) (locked int) {
	open := b.Client
	if bare {
		open = b.BareClient
	}
	client, n := open(name)
	n.SetRoundTrip(virtual.RoundTrip{Max: 400 * time.Millisecond})
	weather(n, 0.001)
	rng := b.Rand("locker " + name)
	pause := func(d time.Duration) { b.Sleep(time.Duration(rng.Int64N(int64(d)))) }
	turn := func(m *concurrency.Mutex) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if m.Lock(ctx) != nil {
			pause(100 * time.Millisecond)
			return
		}
		locked++
		pause(time.Second)
		m.Unlock(ctx)
	}
	for b.Now() < until {
		s, err := concurrency.NewSession(client, concurrency.WithTTL(2))
		if err != nil {
			pause(time.Second)
			continue
		}
		m := concurrency.NewMutex(s, "lock")
		for s.Ctx().Err() == nil && b.Now() < until {
			turn(m)
		}
		s.Close()
	}
	return locked
}

// hours is how long a run takes in virtual time: HOURS, or what the test asks for.
func hours(t *testing.T, otherwise float64) time.Duration {
	if text := os.Getenv("HOURS"); text != "" {
		var err error
		otherwise, err = strconv.ParseFloat(text, 64)
		require.NoError(t, err)
	}
	return time.Duration(otherwise * float64(time.Hour))
}

// Six clients lock under faults of all kinds. The log tells how many times faster than
// real time that was, and the sum of the trace, which is equal if the runs are.
// HOURS changes the five minutes; TRACE names a file for the trace.
func TestBusy(t *testing.T) {
	t.Run("clients", func(t *testing.T) { busy(t, false) })
	t.Run("bare clients", func(t *testing.T) { busy(t, true) })
}

func busy(t *testing.T, bare bool) {
	const clients = 6
	span, begin, sum := hours(t, 1./12), time.Now(), fnv.New64a()
	trace := io.Writer(sum)
	if name := os.Getenv("TRACE"); name != "" {
		file, err := os.Create(name)
		require.NoError(t, err)
		defer file.Close()
		trace = io.MultiWriter(sum, file)
	}
	locked := make([]int, clients)
	var calls, hits int
	virtual.Run(t, virtual.Options{
		Seed: 1, Trace: func(e virtual.Event) { fmt.Fprintln(trace, e) },
	}, func(b *virtual.Bubble) {
		var wg sync.WaitGroup
		for i := range locked {
			wg.Go(func() { locked[i] = locker(b, fmt.Sprint("c", i), bare, span) })
		}
		wg.Wait()
		for _, n := range b.Calls() {
			calls += n
		}
		for _, n := range b.Faults() {
			hits += n
		}
	})
	took := time.Since(begin)
	t.Logf("%v in %v, %.0f times real time; %d calls, %d faults, locked %v; trace %x",
		span, took, span.Seconds()/took.Seconds(), calls, hits, locked, sum.Sum64())
	require.Positive(t, hits)
	for i, n := range locked {
		require.Positive(t, n, "client %d", i)
	}
}

// A server with nothing to do costs next to nothing.
func TestIdle(t *testing.T) {
	span, begin := hours(t, 1), time.Now()
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) { b.Sleep(span) })
	t.Logf("%.0f times real time", span.Seconds()/time.Since(begin).Seconds())
}
