package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/bench/report"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/library"
)

// idleness is what sessions cost that nobody uses.
type idleness struct {
	goroutines, peak int     // at the beginning, and the most seen, beyond those of a bare client
	memory           float64 // heap and stacks, in bytes a session
	cpu              float64 // seconds of this process a minute
	renewals         float64 // a second, as the servers count them
	late             int     // sessions with less than a third of their lease left
}

// idle opens n sessions on one client, watches them for the window, and then looks for
// late renewals over a whole TTL.
func (l *lab) idle(ctx context.Context, lib library.Library, n, ttl int, window time.Duration) (_ idleness, err error) {
	client, err := etcdtest.NewClient(l.cluster.Far...)
	if err != nil {
		return idleness{}, err
	}
	defer client.Close()
	if _, err := client.Get(ctx, "connect"); err != nil {
		return idleness{}, err
	}
	goroutines, memory := runtime.NumGoroutine(), inUse()
	open, err := openAll(ctx, lib, client, n, ttl)
	defer func() { err = errors.Join(err, closeAll(open)) }()
	if err != nil {
		return idleness{}, err
	}
	i := idleness{goroutines: runtime.NumGoroutine() - goroutines, memory: (inUse() - memory) / float64(n)}
	before, err := l.cluster.renewals()
	if err != nil {
		return i, err
	}
	begin, used := time.Now(), processTime()
	for time.Since(begin) < window {
		i.peak = max(i.peak, runtime.NumGoroutine()-goroutines)
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return i, err
		}
	}
	took := time.Since(begin)
	i.cpu = (processTime() - used).Seconds() / took.Minutes()
	after, err := l.cluster.renewals()
	if err != nil {
		return i, err
	}
	i.renewals = float64(after-before) / took.Seconds()
	i.late, err = l.cluster.late(ctx, open, time.Duration(ttl)*time.Second)
	return i, err
}

// late counts the leases of which the servers say, within one TTL, that less than a
// third is left: a renewal is due at a third of the TTL, and has another to be late.
func (c *cluster) late(ctx context.Context, open []library.Session, ttl time.Duration) (int, error) {
	found := map[clientv3.LeaseID]bool{}
	for begin := time.Now(); time.Since(begin) < ttl; {
		for _, s := range open {
			resp, err := c.plain.TimeToLive(ctx, s.Lease())
			if err != nil {
				return 0, err
			}
			// The server rounds down to seconds, so none is blamed for less.
			if resp.TTL+1 <= resp.GrantedTTL/3 {
				found[s.Lease()] = true
			}
		}
		if err := wait(ctx, ttl/20); err != nil {
			return 0, err
		}
	}
	return len(found), nil
}

// openAll opens n sessions, some at a time. It returns those that were opened, also
// when it failed.
func openAll(
	ctx context.Context, lib library.Library, client *clientv3.Client, n, ttl int,
) (open []library.Session, err error) {
	var mu sync.Mutex
	err = together(ctx, n, slices.Repeat([]work{func(context.Context) error {
		s, err := lib.Open(client, library.SessionOptions{TTL: ttl})
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			open = append(open, s)
		}
		return err
	}}, 16))
	return open, err
}

func closeAll(open []library.Session) error {
	var next atomic.Int64
	return together(context.Background(), len(open), slices.Repeat([]work{func(context.Context) error {
		return open[next.Add(1)-1].Close()
	}}, 16))
}

// inUse is the memory that is in use after a collection. What was in use before is given back
// to the system now, and not at the expense of what is measured next.
func inUse() float64 {
	runtime.GC()
	debug.FreeOSMemory() // collects what the first one has freed from pools, too
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc + m.StackInuse)
}

// idlers is the table of idle sessions.
func (l *lab) idlers(ctx context.Context, o options) (report.Table, error) {
	t := report.Table{
		Title: fmt.Sprintf("Idle sessions on one client, TTL %d s, watched for %v", o.ttl, o.window),
		Head:  []string{"sessions", "goroutines", "most", "KiB/session", "CPU s/min", "renewals/s", "late"},
	}
	for _, n := range o.sessions {
		for _, lib := range []library.Library{library.Upstream, library.Here} {
			i, err := l.idle(ctx, lib, n, o.ttl, o.window)
			if err != nil {
				return t, fmt.Errorf("%d sessions, %s: %w", n, lib.Name, err)
			}
			t.Rows = append(t.Rows, []string{
				fmt.Sprintf("%d, %s", n, lib.Name), strconv.Itoa(i.goroutines), strconv.Itoa(i.peak),
				report.Number(i.memory / 1024), report.Number(i.cpu), report.Number(i.renewals), strconv.Itoa(i.late),
			})
		}
	}
	return t, nil
}
