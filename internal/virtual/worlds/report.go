package worlds

import (
	"cmp"
	"encoding/json"
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

// Report is what came of one world, or of many.
type Report struct {
	Worlds     int
	Virtual    time.Duration // with the end of each world
	Processor  time.Duration // that it took
	Operations map[string]int
	Steps      int64          // calls that the functions of transactions have made
	Failed     map[string]int // those of the operations that returned an error
	Faults     map[string]int // of the networks, and of strangers
	Kinds      map[string]int // violations by property
	Violations []Found

	history history.History
	world   *world
}

// Found is a violation and where to find it again.
type Found struct {
	Seed     uint64
	Property string
	At       time.Duration
	Text     string
	Evidence string // a folder, if it was kept
}

// NewReport is one of no worlds.
func NewReport() *Report {
	return &Report{
		Operations: map[string]int{}, Failed: map[string]int{}, Faults: map[string]int{}, Kinds: map[string]int{},
	}
}

// overdue is how much later than its context a call may end.
const overdue = time.Second

// judge checks what was recorded.
func (w *world) judge(lasted time.Duration) *Report {
	r := NewReport()
	r.world, r.history = w, history.Resolve(w.rec.History())
	r.Worlds, r.Virtual, r.Steps = 1, lasted, w.steps.Load()
	maps.Copy(r.Faults, w.Faults())
	for _, record := range r.history {
		switch {
		case record.Call != nil:
			r.Operations[record.Call.Op]++
			if record.Call.Error != "" {
				r.Failed[record.Call.Op]++
			}
		case record.Fault != nil && record.Fault.On != "" && !strings.Contains(record.Fault.What, "("):
			name, _, _ := strings.Cut(record.Fault.What, " to ")
			if strings.HasPrefix(name, "round trip") {
				name = "round trip changed"
			}
			r.Faults[name]++
		}
	}
	for _, ask := range w.asks {
		ask()
	}
	found := slices.Concat(w.violations, check(r.history), w.unfounded(), w.storms(), w.strays(r.history, lasted), w.unserved(r.history), w.idle(r.history), w.stale(r.history),
		w.carriedOut(r.history), w.besideItself(r.history))
	slices.SortStableFunc(found, func(a, b history.Violation) int { return cmp.Compare(a.At, b.At) })
	for _, v := range found {
		r.Kinds[v.Property]++
		r.Violations = append(r.Violations, Found{Seed: w.plan.Seed, Property: v.Property, At: v.At, Text: v.Text})
	}
	return r
}

// check asks internal/history.
func check(h history.History) (found []history.Violation) {
	for _, check := range []func(history.History) []history.Violation{
		history.CheckOverlaps, history.CheckCrowds, history.CheckTokens,
		history.CheckRounds, history.CheckVisits, history.CheckClaims, history.CheckOverstays, history.CheckOrder,
		history.CheckWrites, history.CheckSightings, history.CheckStreams, history.CheckErrors,
		history.CheckCommits, history.CheckStore,
	} {
		found = append(found, check(h)...)
	}
	return append(found, history.CheckCallsWithin(h, overdue)...)
}

// Keep leaves the evidence in a folder of its own.
func (r *Report) Keep(folder string) error {
	dir := filepath.Join(folder, fmt.Sprintf("%s-%d", r.world.lib.Name, r.world.plan.Seed))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for i := range r.Violations {
		r.Violations[i].Evidence = dir
	}
	for name, content := range map[string]func(io.Writer) error{
		"history.jsonl": r.history.Encode,
		"trace.jsonl": func(w io.Writer) error {
			enc := json.NewEncoder(w)
			for _, e := range r.world.events {
				if err := enc.Encode(e); err != nil {
					return err
				}
			}
			return nil
		},
		"report.txt": func(w io.Writer) error {
			fmt.Fprintln(w, "seed", r.world.plan.Seed, r.world.plan)
			for _, v := range r.Violations {
				fmt.Fprintln(w, v)
			}
			return nil
		},
	} {
		if err := write(filepath.Join(dir, name), content); err != nil {
			return err
		}
	}
	return nil
}

func write(path string, content func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := content(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// String is one line of a report.
func (f Found) String() string {
	return fmt.Sprintf("seed %d, at %v: %s: %s", f.Seed, f.At.Round(time.Microsecond), f.Property, f.Text)
}

// Add adds another report.
func (r *Report) Add(o *Report) {
	r.Worlds += o.Worlds
	r.Virtual += o.Virtual
	r.Processor += o.Processor
	r.Steps += o.Steps
	for _, m := range [][2]map[string]int{
		{r.Operations, o.Operations}, {r.Failed, o.Failed}, {r.Faults, o.Faults}, {r.Kinds, o.Kinds},
	} {
		for key, n := range m[1] {
			m[0][key] += n
		}
	}
	r.Violations = append(r.Violations, o.Violations...)
}

// shown is how many violations of a kind are printed.
const shown = 5

// Print writes the counts as Markdown, and the first violations of each kind.
func (r *Report) Print(out io.Writer) {
	hours := r.Virtual.Hours()
	operations := 0
	for _, n := range r.Operations {
		operations += n
	}
	fmt.Fprintf(out, "\n%.1f virtual hours in %d worlds, %d operations (%.0f an hour), %d violations.\n",
		hours, r.Worlds, operations, float64(operations)/hours, len(r.Violations))
	fmt.Fprintf(out, "The functions of transactions have made %d calls.\n", r.Steps)
	fmt.Fprint(out, "\n| operation | count | failed |\n|---|---:|---:|\n")
	for _, op := range slices.Sorted(maps.Keys(r.Operations)) {
		fmt.Fprintf(out, "| %s | %d | %d |\n", op, r.Operations[op], r.Failed[op])
	}
	fmt.Fprint(out, "\n| fault | count |\n|---|---:|\n")
	for _, name := range slices.Sorted(maps.Keys(r.Faults)) {
		fmt.Fprintf(out, "| %s | %d |\n", name, r.Faults[name])
	}
	fmt.Fprint(out, "\n| violation | count | per virtual hour |\n|---|---:|---:|\n")
	for _, kind := range slices.Sorted(maps.Keys(r.Kinds)) {
		fmt.Fprintf(out, "| %s | %d | %.2f |\n", kind, r.Kinds[kind], float64(r.Kinds[kind])/hours)
	}
	told := map[string]int{}
	fmt.Fprintln(out)
	for _, v := range r.Violations {
		if told[v.Property]++; told[v.Property] > shown {
			continue
		}
		fmt.Fprintln(out, v)
		if v.Evidence != "" {
			fmt.Fprintln(out, "   evidence:", v.Evidence)
		}
	}
}
