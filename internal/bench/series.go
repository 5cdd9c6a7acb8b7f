package main

import (
	"bytes"
	"encoding/csv"
	"strconv"
	"time"

	"example.com/etcd/concurrency/internal/bench/report"
	"example.com/etcd/concurrency/internal/library"
)

// view is what a picture shows of a workload: one point for each library.
type view struct {
	picture string
	line    string // what is said of it after the library's name
	n       int    // how many take part
	y       func(f figures) float64
}

// series are the workloads that the pictures show, over the number of those who take
// part.
func series() (all []workload) {
	add := func(w workload, shows ...view) {
		w.shows = shows
		all = append(all, w)
	}
	for _, n := range []int{2, 4, 8, 16, 32, 64} {
		latency := func(f figures) float64 { return report.Median(f.times) / float64(time.Millisecond) }
		ops := max(40, 4*n)
		add(handOver(n, ops, false, 0, nil), view{"hand-over", ", quiet", n, latency})
		add(handOver(n, ops, true, 0, nil), view{"hand-over", ", busy", n, latency})
	}
	for _, n := range []int{100, 300, 1000, 3000} {
		add(draining(n, 0), view{"drain", "", n, func(f figures) float64 {
			return report.Median(f.times) * float64(n) / float64(time.Second)
		}})
	}
	for _, n := range []int{1, 2, 4, 8, 16, 32} {
		rate := func(f figures) float64 { return float64(time.Second) / report.Median(f.times) }
		add(counting(n, 0), view{"stm-commits", "", n, rate}, view{"stm-entries", "", n, figures.raft})
	}
	return all
}

// places are the workloads which the number of places decides from which a waiter follows its line.
func places() (all []workload) {
	add := func(w workload) {
		w.base = &bareLine
		w.shows = []view{{"places", ": " + w.name, w.workers, func(f figures) float64 {
			return report.Median(f.times) / float64(time.Millisecond)
		}}}
		all = append(all, w)
	}
	for _, n := range []int{2, 4, 8, 16, 32, 64} {
		add(handOver(n, max(40, 4*n), false, 0, nil))
	}
	add(draining(100, 0))
	add(draining(1000, 0))
	return all
}

// encode writes the points of rows as the program in chart reads them.
func encode(rows []row) []byte {
	var out bytes.Buffer
	w := csv.NewWriter(&out)
	for _, r := range rows {
		for _, v := range r.shows {
			point := func(name string, f figures) {
				y := strconv.FormatFloat(v.y(f), 'g', 6, 64)
				_ = w.Write([]string{v.picture, name + v.line, strconv.Itoa(v.n), y}) // to memory
			}
			point(r.rival().Name, r.base)
			point(library.Here.Name, r.here)
		}
	}
	w.Flush()
	return out.Bytes()
}
