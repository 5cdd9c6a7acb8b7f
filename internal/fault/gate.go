package fault

import (
	"context"
	"sync"
)

// Gate is where a held call waits.
type Gate struct {
	reached, open         chan struct{}
	reachedOnce, openOnce sync.Once
}

func newGate() *Gate {
	return &Gate{reached: make(chan struct{}), open: make(chan struct{})}
}

// Reached is closed when the held call stands at the gate.
func (g *Gate) Reached() <-chan struct{} { return g.reached }

// Open lets the call go on, now or when it comes. It may be called again.
func (g *Gate) Open() { g.openOnce.Do(func() { close(g.open) }) }

// reach tells that the call stands at the gate.
func (g *Gate) reach() { g.reachedOnce.Do(func() { close(g.reached) }) }

// wait stands at the gate until it is open or ctx ends.
func (g *Gate) wait(ctx context.Context) error {
	g.reach()
	select {
	case <-g.open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
