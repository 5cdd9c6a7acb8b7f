package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// crowdOf is a number of workers that increment one key, each as fast as it can.
type contenders struct {
	workers int
	clients int // on which the workers are
	apart   int // workers, the last of all, that increment keys of their own
}

func (c contenders) String() string {
	who := fmt.Sprintf("%d clients", c.workers)
	if c.clients == 1 {
		who = fmt.Sprintf("%d goroutines of one client", c.workers)
	}
	if c.apart > 0 {
		who += ", half of them on keys of their own"
	}
	return who
}

var contests = []contenders{
	{workers: 2, clients: 2},
	{workers: 4, clients: 4},
	{workers: 8, clients: 8},
	{workers: 16, clients: 16},
	{workers: 16, clients: 16, apart: 8},
	{workers: 4, clients: 1},
	{workers: 8, clients: 1},
	{workers: 16, clients: 1},
	{workers: 16, clients: 1, apart: 8},
}

// clash is what one run came to.
type clash struct {
	rate        float64   // commits in a second
	latencies   []float64 // of transactions, in nanoseconds
	least, most int       // commits of a worker on the shared key
	entries     float64   // of the raft log, for one commit
	attempts    int       // the most that a transaction took
}

func (l *lab) clash(ctx context.Context, c contenders, lib library, window time.Duration) (r clash, err error) {
	b, err := l.prepare(ctx, workload{workers: c.workers, clients: c.clients, hire: func(b *bed, i int) (work, error) {
		key := b.prefix
		if i >= c.workers-c.apart {
			key += "/" + strconv.Itoa(i)
		}
		client := b.client(i)
		b.counts[i%c.clients].Unwrap()
		return increments(b, client, key), nil
	}}, lib)
	defer b.close()
	if err != nil {
		return r, err
	}
	for _, client := range b.clients { // connect
		if _, err := client.Get(ctx, b.prefix); err != nil {
			return r, err
		}
	}
	before, err := b.applied(ctx)
	if err != nil {
		return r, err
	}
	var wg sync.WaitGroup
	done := make([]int, c.workers)
	errs := make([]error, c.workers)
	begin := time.Now()
	for i, work := range b.workers {
		wg.Go(func() {
			for time.Since(begin) < window && errs[i] == nil {
				errs[i] = work(ctx)
				done[i]++
			}
		})
	}
	wg.Wait()
	took := time.Since(begin)
	after, err := b.applied(ctx)
	total := 0
	for _, n := range done {
		total += n
	}
	hot := done[:c.workers-c.apart]
	return clash{
		rate: float64(total) / took.Seconds(), latencies: b.slowness, attempts: b.attempts,
		least: slices.Min(hot), most: slices.Max(hot), entries: float64(after-before) / float64(total),
	}, errors.Join(append(errs, err)...)
}

func increments(b *bed, client *clientv3.Client, key string) work {
	f := func(s stm) error {
		n, _ := strconv.Atoi(s.Get(key))
		s.Put(key, strconv.Itoa(n+1))
		return nil
	}
	return func(ctx context.Context) error {
		attempts, begin := 0, time.Now()
		err := b.transact(ctx, client, func(s stm) error { attempts++; return f(s) }, nil)
		took := time.Since(begin)
		b.mu.Lock()
		defer b.mu.Unlock()
		b.attempts = max(b.attempts, attempts)
		b.slowness = append(b.slowness, float64(took))
		return err
	}
}

func (l *lab) clashes(ctx context.Context, o options) (t table, err error) {
	t = table{title: "Transactions on one key", head: []string{
		"who", "round trip", "commits/s", "here", "ratio", "p99", "here", "ratio", "slowest", "here", "ratio",
		"raft/op", "here", "least and most commits", "here", "most attempts", "here",
	}}
	for _, c := range contests {
		if !o.workloads.MatchString(c.String()) {
			continue
		}
		sides := [2][]clash{}
		for round := range l.rounds {
			for _, i := range order(round) {
				r, err := l.clash(ctx, c, [2]library{theirs, here}[i], o.window)
				if err != nil {
					return t, err
				}
				sides[i] = append(sides[i], r)
			}
		}
		row := []string{c.String(), l.rtt.String()}
		each := func(show func(float64) string, value func(clash) float64) {
			var v [2][]float64
			for i := range sides {
				for _, r := range sides[i] {
					v[i] = append(v[i], value(r))
				}
			}
			row = append(row, show(median(v[0])), show(median(v[1])), number(median(ratios(v[0], v[1]))))
		}
		each(number, func(r clash) float64 { return r.rate })
		each(duration, func(r clash) float64 { return quantile(r.latencies, 0.99) })
		each(duration, func(r clash) float64 { return slices.Max(r.latencies) })
		each(number, func(r clash) float64 { return r.entries })
		row = row[:len(row)-1]
		for i := range sides {
			lo, hi := 1<<30, 0
			for _, r := range sides[i] {
				lo, hi = min(lo, r.least), max(hi, r.most)
			}
			row = append(row, fmt.Sprintf("%d, %d", lo, hi))
		}
		for i := range sides {
			m := 0
			for _, r := range sides[i] {
				m = max(m, r.attempts)
			}
			row = append(row, strconv.Itoa(m))
		}
		fmt.Fprintln(os.Stderr, row)
		t.rows = append(t.rows, row)
	}
	return t, nil
}
