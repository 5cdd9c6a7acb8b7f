package worlds

import (
	"context"
	"math/rand/v2"
	"time"

	"example.com/etcd/concurrency/internal/history"
)

// A mild world has troubles that cost nobody a session: one of the two links of a client falls
// silent, or its connections break and it is refused for a while. They come one at a time, and what
// one has left is over before the next.

// soften makes a plan mild.
func (p *Plan) soften(rnd *rand.Rand, _ Options) {
	p.clearUp()
	p.Mild, p.Margins = true, false
	p.TTLs = []int{3 + rnd.IntN(8)}
	// A renewal may need several round trips in a row.
	p.Trips = tripsOf(short)
}

// bother changes the round trips of the station, and troubles it for a while. It comes when all is over
// that the trouble before has left. A call that is made again then would need the longer round trips.
func (s *station) bother(ctx context.Context, rnd *rand.Rand) {
	if !pause(ctx, 2*s.longest()) {
		return
	}
	s.change(pick(rnd, s.plan.Trips), rnd)
	from := s.rec.Now()
	trouble := pick(rnd, []func(*rand.Rand) (string, time.Duration, func()){s.silence, s.silence, s.refuse})
	what, length, end := trouble(rnd)
	pause(ctx, length)
	end()
	s.rec.Add(history.Record{Fault: &history.Fault{What: what, On: s.name, From: from, To: s.rec.Now()}})
}

// silence lets one of the two links fall silent for a while. That ends by itself.
func (s *station) silence(rnd *rand.Rand) (what string, length time.Duration, end func()) {
	length = between(rnd, 100*time.Millisecond, 2*s.longest())
	now := s.rec.Now()
	s.hush(span{now, now + length})
	s.net.Silence(length)
	return "silent link", length, func() {}
}

// refuse breaks all connections, and has every call refused with one code until end. Of a life two
// thirds are left at the worst. They have to do for the refusals, for an attempt that is refused late, a
// pause of half a second, and another attempt.
func (s *station) refuse(rnd *rand.Rand) (what string, length time.Duration, end func()) {
	_, refusals := faultNames()
	code := pick(rnd, refusals)
	now := s.rec.Now()
	trip := s.farthest(span{now - s.longest(), now})
	length = between(rnd, 0, max(s.ttl()/4, s.ttl()*2/3-3*trip-700*time.Millisecond))
	s.disturb(span{now, now + length + s.longest()}, false)
	s.net.Set(code, 1)
	s.net.Cut()
	return "cut, then " + code, length, func() { s.net.Set(code, 0) }
}
