package main

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Each library goes first as often as second, and is never left out.
func TestOrder(t *testing.T) {
	first := [2]int{}
	for round := range 10 {
		o := order(round)
		require.Equal(t, 1, o[0]+o[1])
		first[o[0]]++
	}
	require.Equal(t, [2]int{5, 5}, first)
}

// sampleRow is a workload of which upstream needs a time of 100 and this package one of 30.
func sampleRow(goal float64, l *limits) row {
	return row{
		workload: workload{name: "work", goal: goal, limits: l, tries: true},
		base:     figures{times: []float64{100, 100}, allocs: []float64{7}, entries: 5, ops: 5, calls: 3, attempts: 9, p99: 5},
		here:     figures{times: []float64{30, 30}, allocs: []float64{8}, entries: 5, ops: 5, calls: 2, attempts: 2, p99: 4},
	}
}

func TestTables(t *testing.T) {
	missed := comparison("title", []row{sampleRow(0.2, nil), sampleRow(0.3, nil)}, true)
	require.Equal(t, []string{
		"work", "100ns", "30ns", "0.3", "0.3 to 0.3", "0.2", "no", "1", "1", "3", "2", "7", "8",
	}, missed.Rows[0])
	require.Equal(t, []string{"0.3", "yes"}, missed.Rows[1][5:7], "a goal is reached by what equals it")
	require.Equal(t, "–", comparison("", []row{sampleRow(0.2, nil)}, false).Rows[0][5])
	require.Equal(t, "upstream", missed.Head[1])
	beside := sampleRow(0, nil)
	beside.base.times, beside.workload.base = nil, &bareLine
	require.Equal(t, "bare", comparison("", []row{beside}, true).Head[1])
	busy := sampleRow(0.2, nil)
	busy.busy = true
	require.Equal(t, []string{"–", "–"}, comparison("", []row{busy}, true).Rows[0][11:])
	for _, row := range missed.Rows {
		require.Len(t, row, len(missed.Head))
	}
	tried := contention("title", []row{sampleRow(0, nil), {}})
	require.Equal(t, [][]string{{"work", "9", "2", "5ns", "4ns"}}, tried.Rows)

	var text, page strings.Builder
	require.NoError(t, tried.Print(&text))
	tried.Markdown(&page)
	require.Equal(t, "\ntitle\n\nworkload  most attempts, upstream  here  p99, upstream  here\n"+
		"work      9                        2     5ns            4ns\n", text.String())
	require.Equal(t, "\ntitle\n\n| workload | most attempts, upstream | here | p99, upstream | here |\n"+
		"|---|---:|---:|---:|---:|\n| work | 9 | 2 | 5ns | 4ns |\n", page.String())
}

// What go tool pprof prints, by layers.
func TestShares(t *testing.T) {
	total, spent, err := shares("File: bench\nShowing nodes\n      flat  flat%   sum%        cum   cum%\n" +
		"20000000ns 40.00% 40.00% 20000000ns 40.00%  internal/runtime/syscall/linux.Syscall6\n" +
		"10000000ns 20.00% 60.00% 10000000ns 20.00%  runtime.futex\n" +
		"10000000ns 20.00% 80.00% 10000000ns 20.00%  example.com/etcd/concurrency.(*lease).edit (inline)\n" +
		"5000000ns 10.00% 90.00% 5000000ns 10.00%  go.etcd.io/etcd/client/v3.(*txn).Commit\n" +
		"5000000ns 10.00%   100% 5000000ns 10.00%  runtime.mallocgcTiny\n" +
		"0     0%   100% 50000000ns   100%  runtime.schedule\n")
	require.NoError(t, err)
	require.Equal(t, 50*time.Millisecond, total)
	require.Equal(t, map[string]time.Duration{
		"system calls": 30 * time.Millisecond, "this package": 10 * time.Millisecond,
		"etcd's client": 5 * time.Millisecond, "memory": 5 * time.Millisecond, "goroutines, timers, maps": 0,
	}, spent)
	for _, wrong := range []string{"", "cum%\nno profile\n", "cum%\n5x 1% 1% 5x 1%  main.main\n"} {
		_, _, err := shares(wrong)
		require.Error(t, err)
	}
	p := profiled{
		workload: workload{name: "work"}, wall: time.Second / 2, ops: 500, total: total, spent: spent,
	}
	table := breakdown("", []profiled{p})
	require.Len(t, table.Rows[0], len(table.Head))
	require.Equal(t, []string{"work", "1ms", "100µs"}, table.Rows[0][:3])
	require.Equal(t, []string{"20.0 %", "10.0 %"}, table.Rows[0][4:6], "this package, etcd's client")
}

func TestBreaches(t *testing.T) {
	require.Empty(t, breaches([]row{sampleRow(0, nil), sampleRow(0, &limits{calls: 2, raft: 1, ratio: 0.3})}))
	require.Empty(t, breaches([]row{sampleRow(0.1, &limits{calls: 2, raft: 1})}), "a missed goal may be noise")
	require.Equal(t, []string{
		"work: 2 KV calls, at most 1", "work: 1 raft entries, at most 0.05", "work: 0.3 of upstream's time, at most 0.2",
	}, breaches([]row{sampleRow(0, &limits{calls: 1, ratio: 0.2})}))
}

func TestSeries(t *testing.T) {
	r := sampleRow(0, nil)
	r.shows = series()[0].shows
	r.base.times = []float64{float64(25 * time.Millisecond)}
	r.here.times = []float64{float64(time.Millisecond / 2)}
	require.Equal(t, "hand-over,\"upstream, quiet\",2,25\nhand-over,\"here, quiet\",2,0.5\n", string(encode([]row{r})))
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"-rtt=0,5ms", "-sessions=1000,5000", "-workloads=STM", "-quick"})
	require.NoError(t, err)
	require.Equal(t, []time.Duration{0, 5 * time.Millisecond}, o.rtts)
	require.Equal(t, []int{1000, 5000}, o.sessions)
	require.True(t, o.workloads.MatchString("STM, blind write"))
	require.Equal(t, 3, o.rounds)
	for _, wrong := range []string{"more", "-rtt=fast", "-rounds=0", "-charts", "-places", "-workloads=("} {
		_, err = parse([]string{wrong})
		require.Error(t, err, wrong)
	}
}

// Every workload has a name of its own, by which it is chosen, and work to do; what is
// done in parts is done wholly.
func TestWorkloads(t *testing.T) {
	names := map[string]bool{}
	for _, w := range append(workloads(), series()...) {
		require.False(t, names[w.name] && w.shows == nil, w.name)
		names[w.name] = true
		require.Positive(t, w.ops, w.name)
		require.Positive(t, w.workers, w.name)
		require.NotNil(t, w.hire, w.name)
		require.True(t, !w.drain || w.workers > w.ops, w.name)
	}
}
