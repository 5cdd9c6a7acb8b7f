package worlds

import (
	"math/rand/v2"
	"time"
)

// In a world of streams, streams die without a word for a while. Nothing else befalls anybody, for minutes
// then. What stood on the dead streams must come back.

// waiting selects what needs renewals and watches.
func waiting(k string) bool {
	return under("lock")(k) || under("context")(k) || under("election")(k)
}

// killStreams makes the plan of such a world.
func (p *Plan) killStreams(rnd *rand.Rand, o Options) {
	p.clearUp()
	p.Faults, p.Lull = []string{"stream-dead"}, 4*time.Minute
	p.Workers = 2 + rnd.IntN(4)
	p.Think = between(rnd, 100*time.Millisecond, 2*time.Second)
	if o.Length == 0 {
		p.Length *= 2
	}
}
