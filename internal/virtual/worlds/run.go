package worlds

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"example.com/etcd/concurrency/internal/library"
)

// command is what [Command] was told.
type command struct {
	Options
	hours     float64 // virtual
	seed      uint64
	processes int
	evidence  string        // folder
	failFast  bool          // stop after the first world with a violation
	limit     time.Duration // of real time; 0: none
}

// parse reads flags, the values of which come from a user's environment.
func parse(args []string, errs io.Writer) (c command, err error) {
	f := flag.NewFlagSet("virtual", flag.ContinueOnError)
	f.SetOutput(errs)
	hours := f.String("hours", "1", "how many virtual `hours` are to be played")
	seed := f.String("seed", "", "`seed` of the first world; those of the others count up from it; drawn if empty")
	upstream := f.String("upstream", "", "1: play upstream's package, and fail unless violations are found")
	f.StringVar(&c.Work, "world", "", "the `name` of the only set of work to be played")
	f.StringVar(&c.evidence, "evidence", "", "the `folder` for the evidence of violations")
	f.IntVar(&c.processes, "processes", 2, "how many processes play, one world each at a time")
	f.BoolVar(&c.failFast, "fail-fast", false, "stop after the first world with a violation")
	f.DurationVar(&c.limit, "limit", 0, "begin no world later than that, in real time")
	if err := f.Parse(args); err != nil {
		return c, err
	}
	c.Library = library.Here
	switch *upstream {
	case "", "0":
	case "1":
		c.Library = library.Upstream
	default:
		return c, fmt.Errorf("UPSTREAM is %q: it is 1, or nothing", *upstream)
	}
	if c.hours, err = strconv.ParseFloat(*hours, 64); err != nil || !(c.hours > 0) || math.IsInf(c.hours, 0) {
		return c, fmt.Errorf("HOURS is %q: a number of hours above zero is needed, such as 100 or 0.5", *hours)
	}
	if c.seed = rand.Uint64N(1e9) + 1; *seed != "" {
		if c.seed, err = strconv.ParseUint(*seed, 10, 64); err != nil {
			return c, fmt.Errorf("SEED is %q: a whole number is needed, or nothing", *seed)
		}
	}
	if f.NArg() > 0 {
		return c, fmt.Errorf("%q is no flag", f.Arg(0))
	}
	return c, Playable(c.Options)
}

// Command is a program: it plays worlds, each in a process of its own, and prints what came of
// them. It returns the exit status: 2 if the arguments are no good, 1 if there are violations,
// or none of upstream's.
func Command(args []string, out, errs io.Writer) int {
	c, err := parse(args, errs)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(errs, "virtual:", err)
		return 2
	}
	fmt.Fprintf(out, "%s, seed %d, %g virtual hours, %s\n",
		c.Library.Name, c.seed, c.hours, time.Now().UTC().Format(time.DateOnly))
	// Who has seen enough ends the run early, and is told of what was played.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	began := time.Now()
	total := c.play(ctx, out)
	total.Print(out)
	real := time.Since(began)
	fmt.Fprintf(out, "%v of real time: %.0f times; %v of processor time: %.0f times\n",
		real.Round(time.Second), total.Virtual.Seconds()/real.Seconds(),
		total.Processor.Round(time.Second), total.Virtual.Seconds()/total.Processor.Seconds())
	switch found := len(total.Violations); {
	case c.upstream() && found == 0:
		fmt.Fprintln(errs, "virtual: no violation of upstream's: what do the checks see?")
		return 1
	case !c.upstream() && found > 0:
		return 1
	}
	return 0
}

// play plays worlds until enough virtual time has been handed out, or ctx ends.
func (c command) play(ctx context.Context, out io.Writer) *Report {
	var mu sync.Mutex // guards the variables below
	total, next, left, began := NewReport(), c.seed, time.Duration(c.hours*float64(time.Hour)), time.Now()
	take := func() (seed uint64, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		if left <= 0 || ctx.Err() != nil || c.limit > 0 && time.Since(began) > c.limit {
			return 0, false
		}
		seed, next = next, next+1
		left -= NewPlan(seed, c.Options).Length
		return seed, true
	}
	var wg sync.WaitGroup
	for range c.processes {
		wg.Go(func() {
			for seed, ok := take(); ok; seed, ok = take() {
				r := c.playOne(seed)
				mu.Lock()
				for _, v := range r.Violations {
					if total.Kinds[v.Property]++; total.Kinds[v.Property] <= shown && !c.upstream() {
						fmt.Fprintln(out, v)
					}
				}
				for _, v := range r.Violations {
					total.Kinds[v.Property]--
				}
				total.Add(r)
				if c.failFast && len(r.Violations) > 0 {
					left = 0
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return total
}

// The environment of a process that plays one world.
const (
	seedEnv     = "VIRTUAL_SEED"
	upstreamEnv = "VIRTUAL_UPSTREAM"
	worldEnv    = "VIRTUAL_WORLD"
	evidenceEnv = "VIRTUAL_EVIDENCE"
	reportMark  = "virtual report: "
)

// playOne plays a world in a process of its own: what it does to that process, such as a
// panic, is the violation of one seed.
func (c command) playOne(seed uint64) *Report {
	var out bytes.Buffer
	cmd := exec.CommandContext(context.Background(), os.Args[0], "-test.run=^TestWorld$", "-test.timeout=15m")
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1,gcstoptheworld=2",
		seedEnv+"="+strconv.FormatUint(seed, 10), worldEnv+"="+c.Work, evidenceEnv+"="+c.evidence)
	if c.upstream() {
		cmd.Env = append(cmd.Env, upstreamEnv+"=1")
	}
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	r := NewReport()
	for line := range strings.Lines(out.String()) {
		if text, ok := strings.CutPrefix(line, reportMark); ok {
			if err := json.Unmarshal([]byte(text), r); err == nil {
				r.Processor = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
				return r
			}
		}
	}
	if interrupted(cmd.ProcessState) {
		return r
	}
	v := Found{Seed: seed, Property: "crash", Text: fmt.Sprintf("%v: %s", err, firstLine(out.String()))}
	if c.evidence != "" {
		v.Evidence = filepath.Join(c.evidence, fmt.Sprintf("%s-%d.txt", c.Library.Name, seed))
		if err := os.MkdirAll(c.evidence, 0o755); err == nil {
			_ = os.WriteFile(v.Evidence, out.Bytes(), 0o644)
		}
	}
	fmt.Fprintf(os.Stderr, "%s\n", bytes.TrimSpace(out.Bytes()))
	r.Worlds, r.Kinds[v.Property], r.Violations = 1, 1, []Found{v}
	return r
}

// interrupted reports whether somebody has ended the process: a terminal interrupts the worlds, too.
func interrupted(p *os.ProcessState) bool {
	if p == nil {
		return false
	}
	status, ok := p.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && (status.Signal() == syscall.SIGINT || status.Signal() == syscall.SIGTERM)
}

func firstLine(text string) string {
	scanner := bufio.NewScanner(strings.NewReader(text))
	scanner.Scan()
	return scanner.Text()
}

// Given is what a process that plays one world was told, false if this is none.
func Given() (seed uint64, o Options, evidence string, ok bool) {
	text, ok := os.LookupEnv(seedEnv)
	if !ok {
		return 0, o, "", false
	}
	seed, _ = strconv.ParseUint(text, 10, 64)
	o = Options{Library: library.Here, Work: os.Getenv(worldEnv)}
	if os.Getenv(upstreamEnv) != "" {
		o.Library = library.Upstream
	}
	return seed, o, os.Getenv(evidenceEnv), true
}

// Tell hands a report to the process that asked for it.
func (r *Report) Tell(out io.Writer) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s%s\n", reportMark, text)
	return err
}
