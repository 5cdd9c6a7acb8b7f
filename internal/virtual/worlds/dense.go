package worlds

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"
)

// A dense world has no faults and hardly a pause: its workers are at work nearly all the time,
// so that their transactions meet at every step. It says nothing about faults. What it is for
// are numbers of operations that no other world comes to.

// densify makes a plan dense. The world lasts for seconds only, because all that happens in it
// is kept for the checks.
func (p *Plan) densify(rnd *rand.Rand, o Options) {
	p.Dense = true
	p.Faults, p.Blows, p.Trips = nil, nil, []trip{{name: "none"}}
	p.Strangers = slices.DeleteFunc(p.Strangers, func(s stranger) bool { return s.name != "compact" })
	if p.Length = o.Length; p.Length == 0 {
		p.Length = between(rnd, time.Second, 4*time.Second)
	}
	p.Workers = 1 + rnd.IntN(4)
	p.Think = between(rnd, time.Millisecond, 10*time.Millisecond)
}

// flush has the store written every few milliseconds, until ctx ends. Each read copies what
// was not written yet. So a longer pause would cost the square of what happens in it.
func (w *world) flush(ctx context.Context) {
	for pause(ctx, 20*time.Millisecond) {
		if etcd := w.Server().Etcd(); etcd != nil {
			etcd.KV().Commit()
		}
	}
}
