package worlds

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"example.com/etcd/concurrency/internal/history"
	"example.com/etcd/concurrency/internal/virtual"
)

// trip is a kind of round trips, in hundredths of the shortest TTL of the world.
type trip struct {
	name     string
	min, max int
}

var trips = []trip{
	{"none", 0, 0},
	{"near", 0, 1},
	{"a tenth of the TTL", 10, 10},
	{"a third of the TTL", 33, 33},
	{"half the TTL", 50, 55},
	{"jumping", 0, 60},
}

// tripsOf are those that a world is to have.
func tripsOf(has func(t trip) bool) []trip {
	return slices.DeleteFunc(slices.Clone(trips), func(t trip) bool { return !has(t) })
}

// short are those after which several in a row have a place in the life of a session.
func short(t trip) bool { return t.max <= 10 }

// blow is what befalls a network at once.
type blow struct {
	name string
	deal func(n *virtual.Network, length time.Duration)
}

var blows = []blow{
	{"cut", func(n *virtual.Network, _ time.Duration) { n.Cut() }},
	{"stall", func(n *virtual.Network, length time.Duration) { n.Stall(length) }},
	{"silent link", func(n *virtual.Network, length time.Duration) { n.Silence(length) }},
}

// weather is what befalls one client. It knows when nothing did.
type weather struct {
	net *virtual.Network

	mu       sync.Mutex // guards the fields below
	renewals []span     // in which they may have failed
	calls    []span     // in which others may have failed
	silences []span     // of one of two links, in mild worlds
	trips    []tripped
}

// span is a stretch of time.
type span struct{ from, to time.Duration }

// tripped is the longest round trip from a moment on.
type tripped struct{ from, length time.Duration }

// disturb notes that renewals, or else all other calls, may fail in a span.
func (w *weather) disturb(s span, renewals bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if renewals {
		w.renewals = append(w.renewals, s)
	} else {
		w.calls = append(w.calls, s)
	}
}

// disturbAll notes that anything may fail in a span.
func (w *weather) disturbAll(s span) {
	w.disturb(s, false)
	w.disturb(s, true)
}

// hush notes that one of the two links is silent in a span.
func (w *weather) hush(s span) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silences = append(w.silences, s)
}

// hushed reports whether a link was silent at some time of a span.
func (w *weather) hushed(s span) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return longestFree(s, w.silences) < s.to-s.from
}

// fair reports whether nothing in a span has kept a renewal from being answered within a round
// trip that is not longer than the limit.
func (w *weather) fair(s span, limit time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return longestFree(s, w.renewals) == s.to-s.from && w.longestTrip(s) <= limit
}

// undisturbed reports whether nothing has befallen anything in a span, but for a silent link.
func (w *weather) undisturbed(s span) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return longestFree(s, slices.Concat(w.calls, w.renewals)) == s.to-s.from
}

// clearest is the longest stretch of a span in which nothing befell any call, but for round trips
// and a silent link.
func (w *weather) clearest(s span) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return longestFree(s, w.calls)
}

// calmest is the longest stretch of a span in which nothing befell any call, but for round trips
// of up to the limit.
func (w *weather) calmest(s span, limit time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	taken := slices.Concat(w.calls, w.silences)
	for i, t := range w.trips {
		until := s.to
		if i+1 < len(w.trips) {
			until = w.trips[i+1].from
		}
		if t.length > limit { // what is under way then arrives later
			taken = append(taken, span{t.from, until + t.length})
		}
	}
	return longestFree(s, taken)
}

// farthest is the longest round trip in a span.
func (w *weather) farthest(s span) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.longestTrip(s)
}

// longestTrip is the longest round trip in a span. The caller holds mu.
func (w *weather) longestTrip(s span) (longest time.Duration) {
	for i, t := range w.trips {
		if t.from <= s.to && (i+1 == len(w.trips) || w.trips[i+1].from >= s.from) {
			longest = max(longest, t.length)
		}
	}
	return longest
}

// longestFree is the longest stretch of a span that none of the others touches.
func longestFree(s span, taken []span) (longest time.Duration) {
	taken = slices.Clone(taken)
	slices.SortFunc(taken, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	free := s.from
	for _, t := range taken {
		if t.to < free || t.from > s.to {
			continue
		}
		longest = max(longest, t.from-free)
		free = max(free, t.to)
	}
	return max(longest, s.to-free)
}

// torment lets the weather of a station change until ctx ends.
func (s *station) torment(ctx context.Context, rnd *rand.Rand) {
	for pause(ctx, s.lull(rnd)) {
		s.draw(ctx, rnd)
	}
	s.clear()
}

// lull is how long a weather lasts that troubles nobody.
func (s *station) lull(rnd *rand.Rand) time.Duration {
	longest := s.plan.Lull
	if longest == 0 {
		longest = pick(rnd, []time.Duration{5 * time.Second, 20 * time.Second, time.Minute})
	}
	return between(rnd, 0, longest)
}

// draw makes a weather, and lets it last.
func (s *station) draw(ctx context.Context, rnd *rand.Rand) {
	if s.plan.Mild {
		s.bother(ctx, rnd)
		return
	}
	length := between(rnd, time.Second, 30*time.Second)
	if rnd.IntN(2) == 0 {
		s.change(pick(rnd, s.plan.Trips), rnd)
	}
	if len(s.plan.Blows) > 0 && rnd.IntN(3) == 0 {
		s.strike(ctx, rnd)
		return
	}
	faults := few(rnd, s.plan.Faults, 0.5)
	if len(faults) == 0 {
		pause(ctx, length)
		return
	}
	scope := pick(rnd, []virtual.Scope{
		virtual.Everything, virtual.Everything, virtual.RenewalsOnly, virtual.AllButRenewals,
	})
	f := history.Fault{From: s.rec.Now(), On: s.name}
	s.net.SetScope(scope)
	for _, name := range faults {
		s.expect(name, scope, span{f.From, f.From + length})
		rate := pick(rnd, []float64{0.02, 0.1, 0.3, 0.7, 1})
		s.net.Set(name, rate)
		f.What += fmt.Sprintf("%s (%g) ", name, rate)
	}
	pause(ctx, length)
	for _, name := range faults {
		s.net.Set(name, 0)
	}
	s.net.SetScope(virtual.Everything)
	f.To = s.rec.Now()
	s.rec.Add(history.Record{Fault: &f})
}

// linger is what a fault leaves when it is lifted, and for how long.
var linger = map[string]struct {
	calls, renewals time.Duration
}{
	"stall":        {virtual.Longest, virtual.Longest},
	"silent-link":  {virtual.Longest, virtual.Longest},
	"dying-link":   {virtual.Longest, virtual.Longest},
	"slow-server":  {virtual.Longest, virtual.Longest},
	"refusing":     {time.Minute, time.Minute},
	"stream-cut":   {0, virtual.Longest},
	"stream-dead":  {0, virtual.Longest},
	"message-late": {0, virtual.Longest},
}

// slowest is more than a slow server takes for a call that arrived while it was slow.
const slowest = 5 * time.Second

// expect notes what may fail because of a fault that is set for a while. What begins something,
// such as a stall, then befalls all calls, whatever the scope.
func (s *station) expect(fault string, scope virtual.Scope, set span) {
	l := linger[fault]
	calls := span{set.from, set.to + l.calls + slowest}
	renewals := span{set.from, set.to + max(l.calls, l.renewals) + slowest}
	for _, other := range s.stations {
		if other != s && fault != "slow-server" {
			continue
		}
		if scope != virtual.RenewalsOnly || l.calls > 0 {
			other.disturb(calls, false)
		}
		if scope != virtual.AllButRenewals || l.calls > 0 {
			other.disturb(renewals, true)
		}
	}
}

func (s *station) strike(ctx context.Context, rnd *rand.Rand) {
	b := pick(rnd, s.plan.Blows)
	length := between(rnd, 100*time.Millisecond, 15*time.Second)
	f := history.Fault{What: b.name, On: s.name, From: s.rec.Now()}
	s.disturbAll(span{f.From, f.From + length + time.Millisecond})
	b.deal(s.net, length)
	pause(ctx, length)
	f.To = s.rec.Now()
	s.rec.Add(history.Record{Fault: &f})
}

// change changes the round trips. A steady one of a kind differs from client to client.
func (s *station) change(t trip, rnd *rand.Rand) {
	part := func(hundredths int) time.Duration { return s.ttl() * time.Duration(hundredths) / 100 }
	r := virtual.RoundTrip{Min: part(t.min), Max: part(t.max)}
	if t.min == t.max || t.name == "half the TTL" {
		r.Min += time.Duration(rnd.Int64N(int64(r.Max-r.Min) + 1))
		r.Max = r.Min
	}
	s.trip(r)
	s.rec.Add(history.Record{Fault: &history.Fault{
		What: fmt.Sprintf("round trip %v to %v", r.Min, r.Max), On: s.name, From: s.rec.Now(), To: s.rec.Now(),
	}})
}

// trip sets the round trip.
func (s *station) trip(r virtual.RoundTrip) {
	s.weather.mu.Lock()
	s.trips = append(s.trips, tripped{s.rec.Now(), r.Max})
	s.weather.mu.Unlock()
	s.net.SetRoundTrip(r)
}

// ttl is the shortest TTL of the world.
func (s *station) ttl() time.Duration {
	shortest := s.plan.TTLs[0]
	for _, ttl := range s.plan.TTLs {
		shortest = min(shortest, ttl)
	}
	return time.Duration(shortest) * time.Second
}

// clear ends all bad weather.
func (s *station) clear() {
	s.trip(virtual.RoundTrip{})
	s.net.Calm()
}
