package virtual

import (
	"runtime"
	"runtime/debug"
	"time"
)

const (
	// collected is how often garbage is collected, in virtual time. It does not depend on the size of
	// the heap, which is not the same in each run: a collection empties the pools of sync.Pool.
	collected = time.Minute
	// limit is the size of the heap in bytes from which Go collects by itself.
	limit = 4 << 30
	// aside is a part of a second at which no timer of the server is due.
	aside = 123457 * time.Nanosecond
)

// holdGarbage keeps Go from collecting garbage by itself, until release is called: it would stop
// goroutines in the middle of what they do, and others would come first.
func holdGarbage() (release func()) {
	percent, most := debug.SetGCPercent(-1), debug.SetMemoryLimit(limit)
	prepareHeap()
	runtime.GC() // so that it is free
	return func() {
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(most)
	}
}
