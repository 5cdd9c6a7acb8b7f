package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/history"
)

// healed waits until the cluster is as it was before the faults.
func (r *run) healed() error {
	for _, s := range r.stations {
		s.heal()
	}
	ctx, cancel := context.WithTimeout(context.Background(), settling)
	defer cancel()
	for {
		if _, err := r.admin.Put(ctx, endKey, ""); err == nil {
			return nil
		} else if !pause(ctx, retryPause) {
			return fmt.Errorf("the cluster did not recover within %v: %w", settling, err)
		}
	}
}

// leadsAgain waits for RunLeader to run its function again now that the faults are over.
func (r *run) leadsAgain() {
	if r.upstream {
		return
	}
	before, since := r.led.Load(), r.rec.Now()
	for r.led.Load() == before {
		if r.rec.Now()-since > settling {
			r.violate("liveness", history.Here, "no RunLeader of %q led within %v after the last fault", runElection, settling)
			return
		}
		pause(context.Background(), retryPause)
	}
}

// everyNameIsFree takes every lock and wins every election within twice the TTL of the end
// of the work. What the dead left behind has expired by then.
func (r *run) everyNameIsFree() {
	limit := 2*lifetime + r.stopped() - r.rec.Now()
	ctx, cancel := context.WithTimeout(context.Background(), max(limit, lifetime))
	defer cancel()
	s, err := concurrency.NewSession(r.admin, concurrency.WithTTL(int(settling/time.Second)))
	if err != nil {
		r.violate("liveness", history.Here, "NewSession: %v", err)
		return
	}
	defer s.Close()
	var wg sync.WaitGroup
	for _, name := range slices.Concat(locks, elections, []string{runElection}) {
		wg.Go(func() {
			if err := concurrency.NewMutex(s, name).Lock(ctx); err != nil {
				r.violate("liveness", r.here(), "%q could not be locked within %v of the end of the work: %v", name, limit, err)
			}
		})
	}
	wg.Wait()
}

// observersKnow makes one more leader for each election, of whom every observer must hear.
func (r *run) observersKnow(latests map[string][]*latest) {
	s, err := concurrency.NewSession(r.admin)
	if err != nil {
		r.violate("liveness", history.Here, "NewSession: %v", err)
		return
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(context.Background(), settling)
	defer cancel()
	for name, observers := range latests {
		value := "the last leader of " + name
		if err := concurrency.NewElection(s, name).Campaign(ctx, value); err != nil {
			r.violate("liveness", history.Here, "Campaign for %q: %v", name, err)
			continue
		}
		for _, o := range observers {
			for o.get() != value {
				if !pause(ctx, retryPause) {
					r.violate("observer", o.who.Package, "%v observes %q, was told %q last, and not %q",
						o.who, name, o.get(), value)
					break
				}
			}
		}
	}
}

// nothingIsLeft checks that sessions that have ended leave nothing in etcd: no key that
// stands in line, no lease, and no watcher.
func (r *run) nothingIsLeft() error {
	for _, s := range r.stations {
		s.client.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), settling)
	defer cancel()
	end, err := r.admin.Put(ctx, endKey, "")
	if err != nil {
		return err
	}
	if err := r.audit.until(ctx, end.Header.Revision); err != nil {
		return err
	}
	for {
		left, err := r.left(ctx)
		switch {
		case err != nil:
			return err
		case left == "":
			return nil
		case !pause(ctx, 5*retryPause):
			r.violate("leftover", r.here(), "%v after the end there are still %s", settling, left)
			return nil
		}
	}
}

// left says what is left in etcd. The auditor has a watcher.
func (r *run) left(ctx context.Context) (string, error) {
	keys, err := r.admin.Get(ctx, root+lineArea, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return "", err
	}
	leases, err := r.admin.Leases(ctx)
	if err != nil {
		return "", err
	}
	watchers, err := r.cluster.Watchers()
	if err != nil {
		return "", err
	}
	if keys.Count == 0 && len(leases.Leases) == 0 && watchers <= 1 {
		return "", nil
	}
	return fmt.Sprintf("%d keys, %d leases, %d watchers", keys.Count, len(leases.Leases), watchers-1), nil
}

// leftGoroutines looks for goroutines of the package when all clients are closed.
func (r *run) leftGoroutines() {
	const frame = "example.com/etcd/concurrency."
	ctx, cancel := context.WithTimeout(context.Background(), settling)
	defer cancel()
	for {
		text := stacks()
		if !strings.Contains(text, frame) {
			return
		}
		if !pause(ctx, retryPause) {
			_ = os.WriteFile(filepath.Join(r.dir, "stacks.txt"), []byte(text), 0o644)
			r.violate("leftover", history.Here, "goroutines go on after the end of all clients; see stacks.txt")
			return
		}
	}
}

// report is what came of a round.
type report struct {
	*tally
	seed    uint64
	length  time.Duration
	history history.History
	txns    history.Txns
	own     []history.Violation // of the package in question
	others  []history.Violation
	child   childReport
}

// searchLimit is how long the order of the transactions is searched for.
const searchLimit = 2 * time.Minute

// judge checks what was recorded.
func (r *run) judge(length time.Duration) *report {
	rep := &report{tally: newTally(), seed: r.seed, length: length, history: history.Resolve(r.rec.History())}
	rep.txns = history.CheckTxns(rep.history, searchLimit)
	rep.child = r.child.report
	if r.child.err != nil {
		r.violate("child", r.here(), "the paused process: %v", r.child.err)
	}
	found := slices.Concat(r.violations, history.Check(rep.history), rep.txns.Violations)
	slices.SortStableFunc(found, func(a, b history.Violation) int { return cmp.Compare(a.At, b.At) })
	for _, v := range found {
		theirs := v.Package == history.Upstream
		rep.violations[theirs]++
		if theirs != r.upstream {
			rep.others = append(rep.others, v)
		} else {
			rep.own = append(rep.own, v)
		}
		rep.kinds[v.Property+" by "+v.Package]++
	}
	rep.count()
	return rep
}

// count fills the tally.
func (rep *report) count() {
	rep.rounds, rep.length2 = 1, rep.length
	for _, record := range rep.history {
		switch {
		case record.Call != nil:
			c := record.Call
			rep.calls[c.Package+" "+c.Op]++
			if c.Error != "" {
				rep.failed[c.Package+" "+c.Op]++
			}
		case record.Fault != nil && record.Fault.Error == "":
			rep.faults[record.Fault.What]++
		case record.Hold != nil:
			rep.holds[record.Hold.Package]++
		case record.Txn != nil:
			rep.txnsSeen[record.Txn.Package]++
		}
	}
	rep.paused.Written += rep.child.Written
	rep.paused.Refused += rep.child.Refused
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
	return write(filepath.Join(dir, "transactions.html"), rep.txns.Draw)
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
		rep.seed, rep.length, sum(rep.calls), sum(rep.faults), sum(rep.holds), sum(rep.txnsSeen),
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
	length2    time.Duration
	calls      map[string]int // by package and operation
	failed     map[string]int // those of them that returned an error
	faults     map[string]int
	holds      map[string]int // by package
	txnsSeen   map[string]int // by package, attempts included
	violations map[bool]int   // by upstream or not
	kinds      map[string]int // violations by property and package
	paused     childReport
	kept       string // the folder with the evidence
}

func newTally() *tally {
	return &tally{
		calls: map[string]int{}, failed: map[string]int{}, faults: map[string]int{}, holds: map[string]int{},
		txnsSeen: map[string]int{}, violations: map[bool]int{}, kinds: map[string]int{},
	}
}

func sum(m map[string]int) (total int) {
	for _, n := range m {
		total += n
	}
	return total
}

// add adds up.
func (t *tally) add(u *tally) {
	t.rounds += u.rounds
	t.length2 += u.length2
	for _, pair := range [][2]map[string]int{
		{t.calls, u.calls}, {t.failed, u.failed}, {t.faults, u.faults}, {t.holds, u.holds},
		{t.txnsSeen, u.txnsSeen}, {t.kinds, u.kinds},
	} {
		for key, n := range pair[1] {
			pair[0][key] += n
		}
	}
	for key, n := range u.violations {
		t.violations[key] += n
	}
	t.paused.Written += u.paused.Written
	t.paused.Refused += u.paused.Refused
}

// print writes the counts, as Markdown.
func (t *tally) print(out io.Writer) {
	fmt.Fprintf(out, "\n%d rounds, %v of faults. Violations: %d here, %d upstream.\n",
		t.rounds, t.length2, t.violations[false], t.violations[true])
	fmt.Fprintf(out, "Guarded writes of the process that was paused: %d carried out, %d refused.\n",
		t.paused.Written, t.paused.Refused)
	for _, part := range []struct {
		title  string
		counts map[string]int
	}{{"fault", t.faults}, {"call", t.calls}, {"holds by", t.holds}, {"transactions and attempts by", t.txnsSeen}, {"violation", t.kinds}} {
		fmt.Fprintf(out, "\n| %s | count | failed |\n|---|---|---|\n", part.title)
		for _, key := range slices.Sorted(maps.Keys(part.counts)) {
			fmt.Fprintf(out, "| %s | %d | %d |\n", key, part.counts[key], t.failed[key])
		}
	}
}
