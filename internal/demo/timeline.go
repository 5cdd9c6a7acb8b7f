package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// A timeline prints what happens, with the time since the start. It may be used
// from any goroutine.
type timeline struct {
	start           time.Time
	verbose, colour bool

	mu     sync.Mutex // guards the fields below
	out    io.Writer
	failed int
	checks []string // as the report shows them
}

func newTimeline(out io.Writer, verbose bool) *timeline {
	return &timeline{start: time.Now(), verbose: verbose, colour: coloured(out), out: out}
}

// coloured says whether out is a terminal that wants colour.
func coloured(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// Colours, as terminals call them.
const (
	bold  = "1"
	faint = "2"
	red   = "31"
	green = "32"
)

func (t *timeline) paint(colour, text string) string {
	if !t.colour {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// now is the time since the start.
func (t *timeline) now() time.Duration { return time.Since(t.start) }

func (t *timeline) printf(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.out, format, args...)
}

// heading begins a part.
func (t *timeline) heading(title, text string, args ...any) {
	t.printf("\n%s\n%s\n\n", t.paint(bold, title), fmt.Sprintf(text, args...))
}

// event prints what happened to whom.
func (t *timeline) event(who, what string, args ...any) {
	at := t.paint(faint, fmt.Sprintf("%10s", ms(t.now())))
	t.printf("%s  %-12s %s\n", at, who, fmt.Sprintf(what, args...))
}

// detail is an event that only -v shows.
func (t *timeline) detail(who, what string, args ...any) {
	if t.verbose {
		t.event(who, what, args...)
	}
}

// check notes for the report whether a promise was kept.
func (t *timeline) check(promise string, kept bool, figures string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	verdict := t.paint(green, "ok    ")
	if !kept {
		verdict = t.paint(red, "FAILED")
		t.failed++
	}
	line := fmt.Sprintf("  %s  %-30s %s", verdict, promise, fmt.Sprintf(figures, args...))
	t.checks = append(t.checks, line)
}

// report prints the checks. The error is nil if none failed.
func (t *timeline) report() error {
	t.heading("Checks", "what was promised, and what was seen, after %.1fs", t.now().Seconds())
	for _, line := range t.checks {
		t.printf("%s\n", line)
	}
	if t.failed > 0 {
		return fmt.Errorf("%d of %d checks failed", t.failed, len(t.checks))
	}
	return nil
}

// ms writes a duration in milliseconds.
func ms(d time.Duration) string { return fmt.Sprintf("%.1fms", d.Seconds()*1000) }
