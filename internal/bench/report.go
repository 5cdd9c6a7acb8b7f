package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"example.com/etcd/concurrency/internal/bench/report"
	"example.com/etcd/concurrency/internal/library"
)

// comparison is the table of the rows. Goals are set for no added round trip; with one
// the calls that are saved show. What is compared with stands above, as it is in the first row.
func comparison(title string, rows []row, goals bool) report.Table {
	base := library.Upstream
	if len(rows) > 0 {
		base = rows[0].rival()
	}
	t := report.Table{Title: title, Head: []string{
		"workload", base.Name, "here", "ratio", "quartiles", "goal", "met",
		"raft/op", "here", "calls/op", "here", "allocs/op", "here",
	}}
	for _, r := range rows {
		pairs := report.Ratios(r.base.times, r.here.times)
		goal, met := "–", "–"
		if goals && r.goal > 0 {
			goal, met = report.Number(r.goal), "yes"
			if report.Median(pairs) > r.goal {
				met = "no"
			}
		}
		t.Rows = append(t.Rows, []string{
			r.name, report.Duration(report.Median(r.base.times)), report.Duration(report.Median(r.here.times)),
			report.Number(report.Median(pairs)), report.Number(report.Quantile(pairs, 0.25)) + " to " + report.Number(report.Quantile(pairs, 0.75)), goal, met,
			report.Number(r.base.raft()), report.Number(r.here.raft()), report.Number(r.base.calls), report.Number(r.here.calls),
			r.allocations(r.base), r.allocations(r.here),
		})
	}
	return t
}

// allocations are left out where those of who keeps the store busy are among them.
func (r row) allocations(f figures) string {
	if r.busy {
		return "–"
	}
	return report.Number(report.Median(f.allocs))
}

// contention is the table of what single transactions met with.
func contention(title string, rows []row) report.Table {
	t := report.Table{Title: title, Head: []string{
		"workload", "most attempts, upstream", "here", "p99, upstream", "here",
	}}
	for _, r := range rows {
		if r.tries {
			t.Rows = append(t.Rows, []string{
				r.name, strconv.Itoa(r.base.attempts), strconv.Itoa(r.here.attempts),
				report.Duration(r.base.p99), report.Duration(r.here.p99),
			})
		}
	}
	return t
}

// breaches are what no noise excuses.
func breaches(rows []row) (found []string) {
	for _, r := range rows {
		if r.limits == nil {
			continue
		}
		check := func(what string, got, limit float64) {
			if got > limit {
				found = append(found, fmt.Sprintf("%s: %s %s, at most %s", r.name, report.Number(got), what, report.Number(limit)))
			}
		}
		check("KV calls", r.here.calls, r.limits.calls)
		// The servers write an entry of their own now and then, as after an election.
		check("raft entries", r.here.raft(), r.limits.raft+0.05)
		if r.limits.ratio > 0 {
			check("of upstream's time", report.Median(report.Ratios(r.base.times, r.here.times)), r.limits.ratio)
		}
	}
	return found
}

// provenance says when, on what and with which settings the figures came about.
func provenance(now time.Time, c *cluster, o options) string {
	disk := "without fsync"
	if o.fsync {
		disk = "with fsync"
	}
	extent := fmt.Sprintf("rounds: %d, thrice for a single worker and for transactions that conflict", o.rounds)
	switch {
	case o.sessions != nil:
		extent = "one run each"
	case o.profile:
		extent = fmt.Sprintf("one run of %v each", profiling)
	}
	return fmt.Sprintf("%s · etcd %s, members: %d, %s · %s", report.Machine(now), c.version, o.members, disk, extent)
}

// publish writes the tables to a file of their own in o.out, and to their place in
// o.update, where these are given.
func (o options) publish(tables []report.Table, facts string) error {
	var text bytes.Buffer
	fmt.Fprintf(&text, "\n%s\n", facts)
	for _, t := range tables {
		t.Markdown(&text)
	}
	text.WriteByte('\n')
	if o.out != "" {
		if err := os.WriteFile(filepath.Join(o.out, o.name+".md"), text.Bytes(), 0o644); err != nil {
			return err
		}
	}
	if o.update == "" {
		return nil
	}
	return report.SpliceFile(o.update, o.name, text.String())
}
