package virtual

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// garbage is the size of the heap, in bytes, from which it is collected.
	garbage = 32 << 20
	// limit is the size from which Go does so by itself.
	limit = 4 << 30
	// aside is a part of a second at which no timer of the server is due.
	aside = 123457 * time.Nanosecond
)

// holdGarbage keeps Go from collecting garbage by itself, until release is called: it would stop
// goroutines in the middle of what they do, and others would come first.
func holdGarbage() (release func()) {
	prepareHeap()
	runtime.GC() // so that it is free
	percent, most := debug.SetGCPercent(-1), debug.SetMemoryLimit(limit)
	return func() {
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(most)
	}
}

// collect collects garbage if there may be enough.
func collect() {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	if sample[0].Value.Uint64() > garbage {
		runtime.GC()
	}
}
