package virtual

import (
	"cmp"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"time"
)

// watchdog looks at a bubble from outside, in real time.
type watchdog struct {
	beats atomic.Int64 // virtual seconds that have passed
	done  chan struct{}
}

// newWatchdog starts to watch. It ends the process if virtual time stands still, or
// the run takes too long.
func newWatchdog(o Options) *watchdog {
	w := &watchdog{done: make(chan struct{})}
	still, whole := cmp.Or(o.Still, time.Minute), cmp.Or(o.RealTime, 5*time.Minute)
	go w.run(o.Seed, still, whole)
	return w
}

// stop ends the watching.
func (w *watchdog) stop() { close(w.done) }

func (w *watchdog) run(seed uint64, still, whole time.Duration) {
	ticker := time.NewTicker(min(still, time.Second))
	defer ticker.Stop()
	begin, moved, last := time.Now(), time.Now(), int64(0)
	for {
		select {
		case <-w.done:
			return
		case <-ticker.C:
		}
		now := w.beats.Load()
		if now != last {
			moved, last = time.Now(), now
		}
		switch {
		case time.Since(moved) > still:
			w.bark(seed, "virtual time has stood still for %v", still)
		case time.Since(begin) > whole:
			w.bark(seed, "the run has taken more than %v", whole)
		}
	}
}

// bark prints what the goroutines of the bubble wait for and ends the process: a goroutine
// that waits for something outside the bubble can't be made to end.
func (w *watchdog) bark(seed uint64, why string, args ...any) {
	fmt.Fprintf(os.Stderr, "virtual: seed %d, virtual second %d: %s\n%s",
		seed, w.beats.Load(), fmt.Sprintf(why, args...), stacks())
	os.Exit(1)
}

// stacks are the stacks of the goroutines that are in a bubble. First come those that keep time
// from moving: they run, or wait for what only somebody outside the bubble can bring about.
func stacks() string {
	buf := make([]byte, 1<<20)
	for runtime.Stack(buf, true) == len(buf) {
		buf = make([]byte, 2*len(buf))
	}
	all, _, _ := strings.Cut(string(buf), "\x00")
	var moving, waiting []string
	for stack := range strings.SplitSeq(all, "\n\n") {
		head, _, _ := strings.Cut(stack, "\n")
		switch {
		case !strings.Contains(head, "synctest bubble"):
		case strings.Contains(head, "(durable)"):
			waiting = append(waiting, stack)
		default:
			moving = append(moving, stack)
		}
	}
	return fmt.Sprintf("%d goroutines keep time from moving:\n\n%s\n\n%d wait:\n\n%s\n",
		len(moving), strings.Join(moving, "\n\n"), len(waiting), strings.Join(waiting, "\n\n"))
}
