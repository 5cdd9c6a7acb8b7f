package worlds

import (
	"context"
	"math/rand/v2"
	"strings"
	"time"

	"example.com/etcd/concurrency/internal/history"
	"example.com/etcd/concurrency/internal/virtual"
)

// A mild world has troubles that cost nobody a session: one of the two links of a client falls
// silent, or its connections break and it is refused for a while. They come one at a time, and what
// one has left is over before the next.

// soften makes a plan mild.
func (p *Plan) soften(rnd *rand.Rand, _ Options) {
	p.clearUp()
	p.Mild, p.Margins = true, false
	p.TTLs = []int{3 + rnd.IntN(8)}
	p.Trips = nil
	for _, t := range trips {
		if t.max <= 10 { // a renewal may need several in a row
			p.Trips = append(p.Trips, t)
		}
	}
}

// bother troubles the station, or changes its round trips.
func (s *station) bother(ctx context.Context, rnd *rand.Rand) {
	s.change(pick(rnd, s.plan.Trips), rnd)
	if !pause(ctx, 2*s.longest()) {
		return
	}
	f := history.Fault{What: "silent link", On: s.name, From: s.rec.Now()}
	length := between(rnd, 100*time.Millisecond, 2*s.longest())
	refusal := ""
	if rnd.IntN(3) == 0 {
		// A third of a life is left at the least, for an attempt that is refused late, a pause of
		// half a second, and another attempt.
		length = between(rnd, 0, s.ttl()/4)
		refusal = refusalOf(rnd)
		f.What = "cut, then " + refusal
	}
	if refusal == "" {
		s.hush(span{f.From, f.From + length})
		s.net.Silence(length)
	} else {
		s.disturb(span{f.From, f.From + length + s.longest()}, false)
		s.net.Set(refusal, 1)
		s.net.Cut()
	}
	pause(ctx, length)
	if refusal != "" {
		s.net.Set(refusal, 0)
	}
	f.To = s.rec.Now()
	s.rec.Add(history.Record{Fault: &f})
}

// refusalOf is a refusal with any code.
func refusalOf(rnd *rand.Rand) string {
	var names []string
	for _, f := range virtual.Table() {
		if strings.HasPrefix(f.Name, "refused-") {
			names = append(names, f.Name)
		}
	}
	return pick(rnd, names)
}
