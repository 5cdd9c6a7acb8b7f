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
func (p *Plan) killStreams(rnd *rand.Rand, _ Options) {
	p.clearUp()
	// What is late lets streams die that have answered nothing. An answer would close the dead ones.
	p.Faults, p.Lull = []string{"stream-dead", "message-late"}, 2*time.Minute
	// So many that some session is always open. The last one that ends takes all streams with it.
	p.Workers, p.TTLs = 4+rnd.IntN(3), []int{1 + rnd.IntN(4)}
	p.Busy = true
}
