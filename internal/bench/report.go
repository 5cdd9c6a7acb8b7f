package main

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// table is what is printed, and written as Markdown.
type table struct {
	title string
	head  []string
	rows  [][]string
}

// print writes the table with aligned columns.
func (t table) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\n%s\n\n%s\n", t.title, strings.Join(t.head, "\t"))
	for _, row := range t.rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

// markdown writes it as GitHub shows it: text to the left, figures to the right.
func (t table) markdown(out io.Writer) {
	rule := "|---|" + strings.Repeat("---:|", len(t.head)-1)
	fmt.Fprintf(out, "\n%s\n\n| %s |\n%s\n", t.title, strings.Join(t.head, " | "), rule)
	for _, row := range t.rows {
		fmt.Fprintf(out, "| %s |\n", strings.Join(row, " | "))
	}
}

// comparison is the table of the rows. Goals are set for no added round trip; with one
// the calls that are saved show. What is compared with stands above, as it is in the first row.
func comparison(title string, rows []row, goals bool) table {
	base := theirs
	if len(rows) > 0 {
		base = rows[0].rival()
	}
	t := table{title: title, head: []string{
		"workload", base.name, "here", "ratio", "quartiles", "goal",
		"raft/op", "here", "calls/op", "here", "allocs/op", "here",
	}}
	for _, r := range rows {
		pairs := ratios(r.base.times, r.here.times)
		goal := "–"
		if goals && r.goal > 0 {
			goal = number(r.goal)
			if median(pairs) > r.goal {
				goal += " missed"
			}
		}
		t.rows = append(t.rows, []string{
			r.name, duration(median(r.base.times)), duration(median(r.here.times)),
			number(median(pairs)), number(quantile(pairs, 0.25)) + " to " + number(quantile(pairs, 0.75)), goal,
			number(r.base.raft()), number(r.here.raft()), number(r.base.calls), number(r.here.calls),
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
	return number(median(f.allocs))
}

// contention is the table of what single transactions met with.
func contention(title string, rows []row) table {
	t := table{title: title, head: []string{
		"workload", "most attempts, upstream", "here", "p99, upstream", "here",
	}}
	for _, r := range rows {
		if r.tries {
			t.rows = append(t.rows, []string{
				r.name, strconv.Itoa(r.base.attempts), strconv.Itoa(r.here.attempts),
				duration(r.base.p99), duration(r.here.p99),
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
				found = append(found, fmt.Sprintf("%s: %s %s, at most %s", r.name, number(got), what, number(limit)))
			}
		}
		check("KV calls", r.here.calls, r.limits.calls)
		// The servers write an entry of their own now and then, as after an election.
		check("raft entries", r.here.raft(), r.limits.raft+0.05)
		if r.limits.ratio > 0 {
			check("of upstream's time", median(ratios(r.base.times, r.here.times)), r.limits.ratio)
		}
	}
	return found
}

// duration has three digits.
func duration(nanoseconds float64) string {
	d := time.Duration(nanoseconds)
	unit := time.Duration(1)
	for d/unit >= 1000 {
		unit *= 10
	}
	return d.Round(unit).String()
}

// number has three digits, or as many as stand before the point.
func number(x float64) string {
	if math.Abs(x) >= 100 {
		return strconv.FormatFloat(x, 'f', 0, 64)
	}
	return strconv.FormatFloat(x, 'g', 3, 64)
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
	return fmt.Sprintf("%s · %s, %d cores, %s · %s · etcd %s, members: %d, %s · %s",
		now.UTC().Format("2006-01-02"), processor(), runtime.NumCPU(), kernel(), runtime.Version(),
		c.version, o.members, disk, extent)
}

// processor is the model of the processor, where the system tells it.
func processor() string {
	info, _ := os.ReadFile("/proc/cpuinfo") // empty elsewhere
	_, rest, _ := strings.Cut(string(info), "model name")
	line, _, _ := strings.Cut(rest, "\n")
	if _, model, ok := strings.Cut(line, ":"); ok {
		return strings.TrimSpace(model)
	}
	return runtime.GOARCH
}

func kernel() string {
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease") // empty elsewhere
	return strings.TrimSpace(runtime.GOOS + " " + string(release))
}

// splice puts text between the two comments that name it, which stay.
func splice(doc, name, text string) (string, error) {
	begin, end := "<!-- "+name+": begin -->\n", "<!-- "+name+": end -->"
	before, rest, ok := strings.Cut(doc, begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		return "", fmt.Errorf("no place for %q: it takes the lines %q and %q", name, strings.TrimSpace(begin), end)
	}
	return before + begin + text + end + after, nil
}

// publish writes the tables to a file of their own in o.out, and to their place in
// o.update, where these are given.
func (o options) publish(tables []table, facts string) error {
	var text bytes.Buffer
	fmt.Fprintf(&text, "\n%s\n", facts)
	for _, t := range tables {
		t.markdown(&text)
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
	doc, err := os.ReadFile(o.update)
	if err != nil {
		return err
	}
	updated, err := splice(string(doc), o.name, text.String())
	if err != nil {
		return fmt.Errorf("%s: %w", o.update, err)
	}
	return os.WriteFile(o.update, []byte(updated), 0o644)
}
