package compat

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"example.com/etcd/concurrency/internal/library"
	"example.com/etcd/concurrency/internal/virtual"
)

// row is one promise of the contract.
type row struct {
	id    string
	story string
	parts []part
}

// part is one case of a row. It returns nil if what the row promises holds, and an
// error that says how it failed.
type part struct {
	name string // "" when the row has one case only
	run  func(*env) error

	// upstream is how upstream's package fails today: words of the error. "" if it
	// holds.
	upstream string

	// What the case takes from the server: members makes it one of its own, with
	// that many; auth one of its own, with authentication; embedded one inside the
	// process, for any other reason.
	members  int
	auth     bool
	embedded bool

	// On which paths this package runs it: directly, in a namespace, and on the
	// server's in-process client, with these exemptions. A wire case is not run
	// in-process, where there is no connection to break, and one member only; nor is
	// one with authentication, which those who are inside the process have passed. A
	// plain case is run directly only: S7, which goes the other paths by itself.
	wire, plain bool
	// queue marks a case about the queue, which this package also runs as the other
	// form and with two handles a session. alone exempts one from the two handles:
	// those that bring second handles of a session themselves, and are about what one
	// does to the other (L2, L9, E9); and L8, which measures one hand-over at a time.
	// Cases that are not about the queue have one handle: what they ask is about that
	// handle (E5 to E8, L11), about TryLock, which does not wait and whose story with
	// a sibling is told by L3 and L4, about the session, or a transaction.
	queue, alone bool
	form         form

	// child has upstream run in a process of its own, because it would take this one
	// with it, or have data races; both has this package do so too.
	child, both bool
	// race marks a case that only the race detector can decide for upstream.
	race bool
	// bubble has a case run in virtual time, on a server of its own there: what the machine
	// does meanwhile is nothing to its sessions.
	bubble bool
}

// company is what a case runs beside.
type company string

const (
	// others is the company of all cases that wait for states: each other, all at once.
	others company = "others"
	// timed is that of cases whose sessions have to be renewed in time: the rows run at once, and
	// the cases of a row one after the other. They hardly work. All others would take the machine
	// from them.
	timed company = "timed"
	// alone is that of cases which measure time, or have a time of their own: none.
	alone company = "alone"
)

// with is the company of the rows whose company is not others.
var with = map[string]company{
	"L8": alone, "T15": alone, "T16": alone,
	"S1": timed, "S9": timed, "S11": timed,
}

func (r row) company(p *part) company {
	if p.bubble {
		return alone
	}
	return cmp.Or(with[r.id], others)
}

// rows is the contract, in its order.
var rows = slices.Concat(lockRows, electionRows, sessionRows, transactionRows, kindRows, barrierRows)

// variants are how this package runs a part.
func (p *part) variants(embeddedServer bool) []variant {
	paths := []path{direct, namespaced}
	if !p.wire && !p.auth && embeddedServer {
		paths = append(paths, inProcess)
	}
	if p.plain {
		paths = []path{direct}
	}
	var vs []variant
	for _, path := range paths {
		first := cmp.Or(p.form, lock)
		vs = append(vs, variant{path: path, form: first})
		if !p.queue {
			continue
		}
		forms := []form{first}
		if p.form == "" {
			forms = append(forms, candidacy)
			vs = append(vs, variant{path: path, form: candidacy})
		}
		for _, form := range forms {
			if !p.alone {
				vs = append(vs, variant{path: path, form: form, pair: true})
			}
		}
	}
	return vs
}

// outside reports whether the part can run against a server in another process. A part in a bubble
// has its own server there.
func (p *part) outside() bool { return !p.embedded && !p.auth && p.members < 3 && !p.bubble }

// result is what became of a part with one library.
type result struct {
	err  error
	note string
	runs int
}

// outcome is what became of a part.
type outcome struct{ theirs, here result }

// board collects the outcomes of a run of the table.
type board struct {
	mu       sync.Mutex // guards the field below
	outcomes map[*part]*outcome
}

func (b *board) set(p *part, lib library.Library, r result) {
	b.mu.Lock()
	defer b.mu.Unlock()
	o := b.outcomes[p]
	if o == nil {
		o = &outcome{}
		b.outcomes[p] = o
	}
	side := &o.theirs
	if ours(lib) {
		side = &o.here
	}
	side.runs++
	side.err = errors.Join(side.err, r.err)
	side.note = cmp.Or(r.note, side.note)
}

// TestContract runs every row on upstream's package, which must do what its row
// says, and on this one, which must hold in every variant. It ends with the table.
func TestContract(t *testing.T) {
	b := &board{outcomes: map[*part]*outcome{}}
	t.Cleanup(func() { fmt.Print(b) })
	embeddedServer := shared().Embedded()
	for _, c := range []company{alone, timed, others} {
		t.Run(string(c), func(t *testing.T) {
			for _, r := range rows {
				if ps := r.in(c, embeddedServer); len(ps) > 0 {
					t.Run(r.id, func(t *testing.T) { r.test(t, b, c, ps, embeddedServer) })
				}
			}
		})
	}
}

// in are the parts of a row that run in a company.
func (r row) in(c company, embeddedServer bool) (ps []*part) {
	for i := range r.parts {
		p := &r.parts[i]
		if r.company(p) == c && (embeddedServer || p.outside()) {
			ps = append(ps, p)
		}
	}
	return ps
}

// test runs parts of a row.
func (r row) test(t *testing.T, b *board, c company, ps []*part, embeddedServer bool) {
	if c == timed || c == others {
		t.Parallel()
	}
	for _, p := range ps {
		t.Run(cmp.Or(p.name, "all"), func(t *testing.T) {
			if c == others {
				t.Parallel()
			}
			p.test(t, b, r, embeddedServer)
		})
	}
}

// test runs a part with both libraries.
func (p *part) test(t *testing.T, b *board, r row, embeddedServer bool) {
	one := func(lib library.Library, v variant) func(t *testing.T) {
		return func(t *testing.T) {
			if r.company(p) != alone {
				t.Parallel()
			}
			res := p.once(t, lib, v, r)
			b.set(p, lib, res)
			p.judge(t, lib, res)
		}
	}
	if raceEnabled || !p.race {
		t.Run(library.Upstream.Name, one(library.Upstream, variant{path: direct, form: cmp.Or(p.form, lock)}))
	}
	for _, v := range p.variants(embeddedServer) {
		t.Run(library.Here.Name+" "+v.String(), one(library.Here, v))
	}
}

// judge compares a result with the row.
func (p *part) judge(t *testing.T, lib library.Library, r result) {
	switch {
	case ours(lib) && r.err != nil:
		t.Errorf("does not hold here: %v", r.err)
	case ours(lib):
	case p.upstream == "" && r.err != nil:
		t.Errorf("the row says that upstream holds; it fails: %v", r.err)
	case p.upstream != "" && r.err == nil:
		t.Errorf("the row says that upstream fails, %q; it holds", p.upstream)
	case p.upstream != "" && !strings.Contains(r.err.Error(), p.upstream):
		t.Errorf("the row says that upstream fails, %q; it fails in another way: %v", p.upstream, r.err)
	}
}

// once runs a part in one variant, in this process or in one of its own.
func (p *part) once(t *testing.T, lib library.Library, v variant, r row) result {
	if p.both || p.child && !ours(lib) {
		return p.inChild(t, lib, v, r)
	}
	if p.bubble {
		return p.inBubble(t, lib, v)
	}
	e := newEnv(t, lib, v, p)
	err := p.run(e)
	return result{err: err, note: e.note}
}

// inBubble runs a part in virtual time.
func (p *part) inBubble(t *testing.T, lib library.Library, v variant) (r result) {
	virtual.Run(t, virtual.Options{Seed: rand.Uint64()}, func(b *virtual.Bubble) {
		e := &env{T: b.T(), variant: v, lib: lib, name: "compat", early: dwell, bubble: b}
		e.plain = e.client()
		r.err = p.run(e)
		r.note = e.note
	})
	return r
}

// The environment of a child process: the part that it runs, and the file that it
// writes the result to.
const (
	childPart   = "COMPAT_CHILD"
	childResult = "COMPAT_RESULT"
)

func childName(r row, p *part, lib library.Library, v variant) string {
	return strings.Join([]string{r.id, p.name, lib.Name, v.String()}, "|")
}

// inChild runs a part in a process of its own, and makes an error of what ends it.
func (p *part) inChild(t *testing.T, lib library.Library, v variant, r row) result {
	file := filepath.Join(t.TempDir(), "result")
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChild$", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), childPart+"="+childName(r, p, lib, v), childResult+"="+file)
	out, err := cmd.CombinedOutput()
	said, unsaid := os.ReadFile(file)
	switch {
	case unsaid != nil:
		return result{err: fmt.Errorf("the process died: %w: %s", err, firstPanic(string(out)))}
	case string(said) != "":
		return result{err: errors.New(string(said))}
	case p.race && strings.Contains(string(out), "WARNING: DATA RACE"):
		return result{err: errors.New("data race")}
	case ours(lib) && err != nil:
		return result{err: fmt.Errorf("%w: %s", err, out)}
	}
	return result{}
}

// firstPanic is the line with which a process says that it dies.
func firstPanic(out string) string {
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
			return strings.TrimSpace(line)
		}
	}
	return out
}

// TestChild is what a child process runs: one part, with one library.
func TestChild(t *testing.T) {
	name := os.Getenv(childPart)
	for _, r := range rows {
		for i := range r.parts {
			p := &r.parts[i]
			for _, lib := range []library.Library{library.Upstream, library.Here} {
				for _, v := range p.variants(true) {
					if childName(r, p, lib, v) != name {
						continue
					}
					said := ""
					if err := p.run(newEnv(t, lib, v, p)); err != nil {
						said = err.Error()
					}
					if err := os.WriteFile(os.Getenv(childResult), []byte(said), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
}

// String is the table, of the rows that were run, ready for Markdown.
func (b *board) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	lines := [][4]string{{"id", "case", "upstream", "here"}, {"-", "-", "-", "-"}}
	for _, r := range rows {
		up, own, ran := column{}, column{}, false
		for i := range r.parts {
			o := b.outcomes[&r.parts[i]]
			if o == nil {
				continue
			}
			ran = true
			up.add(&r.parts[i], o.theirs)
			own.add(&r.parts[i], o.here)
		}
		if ran {
			lines = append(lines, [4]string{r.id, r.story, up.String(), own.String()})
		}
	}
	var width [4]int
	for _, line := range lines {
		for i, cell := range line {
			width[i] = max(width[i], len(cell))
		}
	}
	var s strings.Builder
	for n, line := range lines {
		for i, cell := range line {
			fill := " "
			if n == 1 {
				fill = "-"
			}
			fmt.Fprintf(&s, "| %s%s ", cell, strings.Repeat(fill, width[i]-len(cell)))
		}
		s.WriteString("|\n")
	}
	return s.String()
}

// column is one side of a row: what failed, what was noted, how much was run.
type column struct {
	failed []failure
	notes  []string
	runs   int
}

// failure is one way to fail, and the cases that failed so.
type failure struct {
	said  string
	names []string
}

// add takes in a result. A failure that the row foretells is told in the row's words.
func (c *column) add(p *part, r result) {
	c.runs += r.runs
	if r.note != "" {
		c.notes = append(c.notes, r.note)
	}
	if r.err == nil {
		return
	}
	said, _, _ := strings.Cut(r.err.Error(), "\n")
	if p.upstream != "" && strings.Contains(said, p.upstream) {
		said = p.upstream
	}
	if last := len(c.failed) - 1; last >= 0 && c.failed[last].said == said {
		c.failed[last].names = append(c.failed[last].names, p.name)
		return
	}
	c.failed = append(c.failed, failure{said, []string{p.name}})
}

func (c column) String() string {
	if c.runs == 0 {
		return "not run"
	}
	s := "holds"
	var ways []string
	for _, f := range c.failed {
		way := f.said
		if names := strings.Join(f.names, ", "); names != "" {
			way = names + ": " + way
		}
		ways = append(ways, strings.ReplaceAll(way, "|", "/"))
	}
	if ways != nil {
		s = "fails: " + strings.Join(ways, "; ")
	}
	if c.notes != nil {
		s += " (" + strings.Join(c.notes, ", ") + ")"
	}
	return s
}

// TestTable looks after the table: every id once, in the order of the contract.
func TestTable(t *testing.T) {
	var want, got []string
	for _, group := range []struct {
		letter string
		n      int
	}{{"L", 22}, {"E", 9}, {"S", 12}, {"T", 17}, {"K", 4}, {"B", 4}} {
		for i := range group.n {
			want = append(want, fmt.Sprintf("%s%d", group.letter, i+1))
		}
	}
	for _, r := range rows {
		got = append(got, r.id)
		if r.story == "" || len(r.parts) == 0 {
			t.Errorf("%s has no story or no case", r.id)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the rows are %v", got)
	}
}

// parallel is how many cases run at the same time: they mostly wait, many of them for a cluster.
const parallel = 40

// TestMain lets more cases run at the same time than there are processors.
func TestMain(m *testing.M) {
	flag.Parse()
	set := false
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == "test.parallel" })
	if !set {
		if err := flag.Set("test.parallel", fmt.Sprint(parallel)); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	closeClusters()
	os.Exit(code)
}
