//go:build !linux

package virtual

// prepareHeap does nothing where there is nothing to win.
func prepareHeap() {}
