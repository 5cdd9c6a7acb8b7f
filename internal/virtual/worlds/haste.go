package worlds

import (
	"math/rand/v2"
	"time"
)

// A hasty world has one lock, and handles of few sessions that give up about as soon as answers come.
// So its calls fail, are cleaned up after, and are made again, while others of the same session wait
// or hold. What takes several such accidents is rare elsewhere.

// hasty selects what several handles of a session do with a lock.
func hasty(k string) bool {
	return k == "lock/siblings" || k == "lock/try" || k == "lock/orphan" || k == "context/do"
}

// hurry makes a plan hasty.
func (p *Plan) hurry(rnd *rand.Rand, o Options) {
	p.Hasty = true
	p.Kinds = kindsOf(o, Set{Kinds: hasty})
	p.Locks, p.Workers = 1, 1
	p.TTLs = []int{1 + rnd.IntN(4)}
	p.Think = between(rnd, 50*time.Millisecond, 500*time.Millisecond)
	// An answer takes a while.
	p.Trips = tripsOf(func(t trip) bool { return t.max >= 10 })
}

// hastily is the time after which a hasty call gives up: about that of one to three round trips.
func (w *worker) hastily() time.Duration { return between(w.rnd, time.Millisecond, w.station.ttl()) }
