package worlds

import (
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// A calm world has no faults but round trips, so all that is promised for such times is asked all along.
// Strangers act often: they delete keys and revoke leases, of which everybody has to be told soon.

// calmDown makes a plan calm. Its work is that of two groups.
func (p *Plan) calmDown(rnd *rand.Rand, o Options) {
	var groups []string
	for _, k := range kindsOf(o, Set{Kinds: everything}) {
		if group, _, _ := strings.Cut(k.Name, "/"); !slices.Contains(groups, group) {
			groups = append(groups, group)
		}
	}
	one, other := under(pick(rnd, groups)), under(pick(rnd, groups))
	p.Kinds = kindsOf(o, Set{Kinds: func(k string) bool { return one(k) || other(k) }})
	p.Strangers = some(rnd, strangers, 0.7)
	p.clearUp()
	p.Foreign, p.Peace = rnd.IntN(4) == 0, between(rnd, 500*time.Millisecond, 5*time.Second)
	p.Think = between(rnd, 100*time.Millisecond, 2*time.Second)
	p.Holds = 1 + rnd.IntN(4)
	if rnd.IntN(4) == 0 {
		p.Strangers = nil
	}
}

// A crowd stands at one lock, in a line that is longer than what a waiter looks at.

// crowding selects what stands in a line.
func crowding(k string) bool {
	return k == "lock/lock" || k == "kinds/write" || k == "kinds/read" || k == "kinds/permit" || k == "lock/try"
}

// crowd makes the plan of a crowd. In some of them all want permits, and some hold them for long.
func (p *Plan) crowd(rnd *rand.Rand, o Options) {
	p.Locks, p.Workers = 1, 4+rnd.IntN(2)
	if rnd.IntN(3) == 0 && !o.upstream() {
		p.Kinds = kindsOf(o, Set{Kinds: func(k string) bool { return k == "kinds/permit" }})
		// Many are served while one holds, if turns come quickly.
		p.Workers, p.Holds = 6, 4+rnd.IntN(8)
		p.Trips = tripsOf(short)
	}
	p.Think = between(rnd, 200*time.Millisecond, 2*time.Second)
	if rnd.IntN(2) == 0 {
		p.clearUp()
	}
}
