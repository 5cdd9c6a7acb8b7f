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

	"example.com/etcd/concurrency/internal/bench/report"
	"example.com/etcd/concurrency/internal/library"
)

// contest is a number of workers that increment one key, each as fast as it can.
type contest struct {
	workers int
	clients int // on which the workers are
	apart   int // the last of the workers, which increment keys of their own
}

var contests = []contest{
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

func (c contest) String() string {
	who := fmt.Sprintf("%d clients", c.workers)
	if c.clients == 1 {
		who = fmt.Sprintf("%d goroutines of one client", c.workers)
	}
	if c.apart > 0 {
		who += ", half of them on keys of their own"
	}
	return who
}

// hire gives a worker its key.
func (c contest) hire(b *bed, worker int) (work, error) {
	key := b.prefix
	if worker >= c.workers-c.apart {
		key += "/" + strconv.Itoa(worker)
	}
	return b.transaction(worker, library.TxnOptions{}, func(s library.STM) error {
		n, _ := strconv.Atoi(s.Get(key)) // no value yet counts as 0
		s.Put(key, strconv.Itoa(n+1))
		return nil
	}), nil
}

// outcome is what one run of a contest came to.
type outcome struct {
	rate        float64 // commits in a second
	p99, max    float64 // of the times of transactions, in nanoseconds
	entries     float64 // of the raft log, for one commit
	least, most int     // commits of a worker on the shared key
	attempts    int     // the most that a transaction took
}

// run lets the workers of a library work for the window, on clients of their own. Who has
// begun a transaction by then ends it, so that one that starves counts in full.
func (c contest) run(ctx context.Context, l *lab, lib library.Library, window time.Duration) (o outcome, err error) {
	b, err := l.prepare(ctx, workload{workers: c.workers, clients: c.clients, hire: c.hire}, lib)
	defer b.close()
	if err != nil {
		return o, err
	}
	for i, client := range b.clients {
		b.counts[i].Unwrap()
		if _, err := client.Get(ctx, b.prefix); err != nil { // it is connected then
			return o, err
		}
	}
	before, err := b.applied(ctx)
	if err != nil {
		return o, err
	}
	var wg sync.WaitGroup
	done, errs := make([]int, c.workers), make([]error, c.workers)
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
	total, shared := float64(len(b.slowness)), done[:c.workers-c.apart]
	return outcome{
		rate: total / took.Seconds(), entries: float64(after-before) / total,
		p99: report.Quantile(b.slowness, 0.99), max: slices.Max(b.slowness),
		least: slices.Min(shared), most: slices.Max(shared), attempts: b.attempts,
	}, errors.Join(append(errs, err)...)
}

// rivalry is the table of all contests.
func (l *lab) rivalry(ctx context.Context, o options) (report.Table, error) {
	t := report.Table{Title: "Transactions on one key, by the added round trip", Head: []string{
		"who", "round trip", "commits/s", "here", "ratio", "p99", "here", "ratio", "slowest", "here", "ratio",
		"raft/op", "here", "least and most commits", "here", "most attempts", "here",
	}}
	for _, c := range contests {
		if !o.workloads.MatchString(c.String()) {
			continue
		}
		var sides [2][]outcome
		for round := range l.rounds {
			for _, i := range order(round) {
				out, err := c.run(ctx, l, [2]library.Library{library.Upstream, library.Here}[i], o.window)
				if err != nil {
					return t, fmt.Errorf("%v: %w", c, err)
				}
				sides[i] = append(sides[i], out)
			}
		}
		row := append([]string{c.String(), l.rtt.String()}, columns(sides)...)
		fmt.Fprintln(os.Stderr, row)
		t.Rows = append(t.Rows, row)
	}
	return t, nil
}

// columns are what the table says of the runs: medians, and the medians of the pairs' ratios.
func columns(sides [2][]outcome) (row []string) {
	values := func(of func(outcome) float64) (v [2][]float64) {
		for i, side := range sides {
			for _, out := range side {
				v[i] = append(v[i], of(out))
			}
		}
		return v
	}
	compared := func(show func(float64) string, of func(outcome) float64) {
		v := values(of)
		row = append(row, show(report.Median(v[0])), show(report.Median(v[1])),
			report.Number(report.Median(report.Ratios(v[0], v[1]))))
	}
	compared(report.Number, func(o outcome) float64 { return o.rate })
	compared(report.Duration, func(o outcome) float64 { return o.p99 })
	compared(report.Duration, func(o outcome) float64 { return o.max })
	entries := values(func(o outcome) float64 { return o.entries })
	least, most := values(func(o outcome) float64 { return float64(o.least) }), values(func(o outcome) float64 { return float64(o.most) })
	attempts := values(func(o outcome) float64 { return float64(o.attempts) })
	for i := range sides {
		row = append(row, report.Number(report.Median(entries[i])))
	}
	for i := range sides {
		row = append(row, fmt.Sprintf("%.0f, %.0f", report.Median(least[i]), report.Median(most[i])))
	}
	for i := range sides {
		row = append(row, report.Number(slices.Max(attempts[i])))
	}
	return row
}
