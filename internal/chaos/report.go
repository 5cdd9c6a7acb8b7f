package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"example.com/etcd/concurrency/internal/history"
)

// report is what came of a round.
type report struct {
	*tally
	seed        uint64
	history     history.History
	order       history.Txns
	own, others []history.Violation // of the package in question, and of the other one
	kept        string              // the folder with the evidence, if any was left
}

// searchLimit is how long the order of the transactions is searched for.
const searchLimit = 2 * time.Minute

// judge checks what was recorded.
func (r *run) judge(length time.Duration) *report {
	rep := &report{tally: newTally(), seed: r.seed, history: history.Resolve(r.rec.History())}
	rep.order = history.CheckTxns(rep.history, searchLimit)
	rep.rounds, rep.tormented, rep.paused = 1, length, r.child.report
	rep.count(rep.history)
	if r.child.err != nil {
		r.violate("child", r.here(), "the paused process: %v", r.child.err)
	}
	found := slices.Concat(r.violations, history.Check(rep.history), history.CheckStore(rep.history), rep.order.Violations)
	slices.SortStableFunc(found, func(a, b history.Violation) int { return cmp.Compare(a.At, b.At) })
	for _, v := range found {
		theirs := v.Package == history.Upstream
		rep.violations[theirs]++
		if theirs != r.upstream {
			rep.others = append(rep.others, v)
		} else {
			rep.own = append(rep.own, v)
		}
		kind := v.Property + " by " + v.Package
		rep.kinds[kind]++
		rep.sooner(kind, v.At)
	}
	return rep
}

// keep leaves the evidence.
func (rep *report) keep(dir string) error {
	var text strings.Builder
	rep.print(&text)
	if err := os.WriteFile(filepath.Join(dir, "report.txt"), []byte(text.String()), 0o644); err != nil {
		return err
	}
	rep.kept = dir
	if err := write(filepath.Join(dir, "history.jsonl"), rep.history.Encode); err != nil {
		return err
	}
	return write(filepath.Join(dir, "transactions.html"), rep.order.Draw)
}

func write(path string, content func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return content(f)
}

// shown is how many violations of each side are printed.
const shown = 10

func (rep *report) print(out io.Writer) {
	fmt.Fprintf(out, "== seed %d, %v: %d calls, %d faults, %d holds, %d transactions; violations: %d here, %d upstream\n",
		rep.seed, rep.tormented, sum(rep.calls), sum(rep.faults), sum(rep.holds), sum(rep.txns),
		rep.violations[false], rep.violations[true])
	for _, list := range [][]history.Violation{rep.own, rep.others} {
		for i, v := range list {
			if i == shown {
				fmt.Fprintf(out, "   and %d more\n", len(list)-i)
				break
			}
			fmt.Fprintln(out, "  ", v)
		}
	}
	if rep.kept != "" {
		fmt.Fprintln(out, "   evidence:", rep.kept)
	}
}

// tally counts what happened in a round, or in many.
type tally struct {
	rounds     int
	tormented  time.Duration
	calls      map[string]int // by package and operation
	failed     map[string]int // those of them that returned an error
	faults     map[string]int
	holds      map[string]int           // by package
	txns       map[string]int           // by package, attempts that were not committed included
	violations map[bool]int             // by whether they are upstream's
	kinds      map[string]int           // violations by property and package
	first      map[string]time.Duration // of each kind, after the beginning of its round
	paused     childReport
}

func newTally() *tally {
	return &tally{
		calls: map[string]int{}, failed: map[string]int{}, faults: map[string]int{}, holds: map[string]int{},
		txns: map[string]int{}, violations: map[bool]int{}, kinds: map[string]int{},
		first: map[string]time.Duration{},
	}
}

// count adds what a history tells of.
func (t *tally) count(h history.History) {
	for _, record := range h {
		switch {
		case record.Call != nil:
			op := record.Call.Package + " " + record.Call.Op
			t.calls[op]++
			if record.Call.Error != "" {
				t.failed[op]++
			}
		case record.Fault != nil && record.Fault.Error == "" && record.Fault.On != "":
			t.faults[record.Fault.What]++
		case record.Hold != nil:
			t.holds[record.Hold.Package]++
		case record.Txn != nil:
			t.txns[record.Txn.Package]++
		}
	}
}

// add adds another tally.
func (t *tally) add(u *tally) {
	t.rounds += u.rounds
	t.tormented += u.tormented
	t.paused.Calls += u.paused.Calls
	t.paused.Written += u.paused.Written
	t.paused.Refused += u.paused.Refused
	t.paused.StaleWritten += u.paused.StaleWritten
	t.paused.StaleRefused += u.paused.StaleRefused
	addUp(t.calls, u.calls)
	addUp(t.failed, u.failed)
	addUp(t.faults, u.faults)
	addUp(t.holds, u.holds)
	addUp(t.txns, u.txns)
	addUp(t.violations, u.violations)
	addUp(t.kinds, u.kinds)
	for kind, at := range u.first {
		t.sooner(kind, at)
	}
}

// sooner notes when a violation of a kind came, if it was the first.
func (t *tally) sooner(kind string, at time.Duration) {
	if first, ok := t.first[kind]; !ok || at < first {
		t.first[kind] = at
	}
}

func addUp[K comparable](to, from map[K]int) {
	for key, n := range from {
		to[key] += n
	}
}

func sum[K comparable](m map[K]int) (total int) {
	for _, n := range m {
		total += n
	}
	return total
}

// print writes the counts, as Markdown.
func (t *tally) print(out io.Writer) {
	fmt.Fprintf(out, "\n%d rounds, %v of faults. Violations: %d here, %d upstream.\n",
		t.rounds, t.tormented, t.violations[false], t.violations[true])
	fmt.Fprintf(out, "The process that was paused made %d calls. Its guarded writes: %d carried out, %d refused; "+
		"right after a pause: %d carried out, %d refused.\n",
		t.paused.Calls, t.paused.Written, t.paused.Refused, t.paused.StaleWritten, t.paused.StaleRefused)
	for _, part := range []struct {
		title  string
		counts map[string]int
	}{
		{"fault", t.faults}, {"holds by", t.holds}, {"transactions and attempts by", t.txns},
	} {
		fmt.Fprintf(out, "\n| %s | count |\n|---|---|\n", part.title)
		for _, key := range slices.Sorted(maps.Keys(part.counts)) {
			fmt.Fprintf(out, "| %s | %d |\n", key, part.counts[key])
		}
	}
	fmt.Fprint(out, "\n| violation | count | first, within its round |\n|---|---|---|\n")
	for _, kind := range slices.Sorted(maps.Keys(t.kinds)) {
		fmt.Fprintf(out, "| %s | %d | %v |\n", kind, t.kinds[kind], t.first[kind].Round(time.Millisecond))
	}
	fmt.Fprint(out, "\n| call | count | failed |\n|---|---|---|\n")
	for _, op := range slices.Sorted(maps.Keys(t.calls)) {
		fmt.Fprintf(out, "| %s | %d | %d |\n", op, t.calls[op], t.failed[op])
	}
}
