package virtual_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/virtual"
)

// weather is a little of everything.
func weather(n *virtual.Network, rate float64) {
	for _, f := range virtual.Table() {
		n.Set(f.Name, rate)
	}
}

func locker(b *virtual.Bubble, i int, until time.Duration, locked *int) {
	client, n := b.Client(fmt.Sprint("c", i))
	rng := b.Rand(fmt.Sprint("work", i))
	n.SetRoundTrip(virtual.RoundTrip{Max: 400 * time.Millisecond})
	weather(n, 0.001)
	ctx := context.Background()
	pause := func(d time.Duration) { time.Sleep(time.Duration(rng.Int64N(int64(d)))) }
	for b.Now() < until {
		s, err := concurrency.NewSession(client, concurrency.WithTTL(2))
		if err != nil {
			pause(time.Second)
			continue
		}
		m := concurrency.NewMutex(s, "lock")
		for s.Ctx().Err() == nil && b.Now() < until {
			lctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			if err := m.Lock(lctx); err == nil {
				*locked++
				pause(time.Second)
				m.Unlock(lctx)
			} else {
				pause(100*time.Millisecond)
			}
			cancel()
		}
		s.Close()
	}
}

func TestSpeed(t *testing.T) {
	hours := 1.0
	if s := os.Getenv("HOURS"); s != "" {
		var err error
		hours, err = strconv.ParseFloat(s, 64)
		require.NoError(t, err)
	}
	real := time.Now()
	locks := make([]int, 6)
	var faults map[string]int
	var calls map[virtual.Kind]int
	virtual.Run(t, virtual.Options{Seed: 1}, func(b *virtual.Bubble) {
		var wg sync.WaitGroup
		for i := range locks {
			wg.Go(func() { locker(b, i, time.Duration(hours*float64(time.Hour)), &locks[i]) })
		}
		wg.Wait()
		faults, calls = b.Faults(), b.Calls()
	})
	took := time.Since(real)
	t.Logf("%v, %.0f times real time; locks %v, faults %v, calls %v", took, hours*3600/took.Seconds(), locks, faults, calls)
}
