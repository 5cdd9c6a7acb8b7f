package worlds

import (
	"cmp"
	"math"
	"slices"
	"time"

	"example.com/etcd/concurrency/internal/history"
)

// The longest that a line stands idle, in round trips. At worst a turn comes when a look of a repeated
// Campaign has just been answered. The rest of the look, the value of the Campaign, the opening of a
// watch, and a second look are on their way one after the other. etcd's server looks ten times a
// second for what a watch has missed that was opened meanwhile. What others of the client open comes
// on top, see openings.
const (
	idleTrips = 4
	idleSync  = 250 * time.Millisecond
)

// turns tells when the turn of each ticket of a line had come.
type turns struct {
	lives []history.Life  // in the order of arrival
	freed []time.Duration // when all before the one with this index were gone; shorter where one never was
}

// turnsOf orders the lines by name.
func turnsOf(h history.History) map[string]*turns {
	lines := map[string]*turns{}
	for _, r := range h {
		if r.Life == nil {
			continue
		}
		if lines[r.Life.Name] == nil {
			lines[r.Life.Name] = &turns{}
		}
		lines[r.Life.Name].lives = append(lines[r.Life.Name].lives, *r.Life)
	}
	for _, line := range lines {
		slices.SortFunc(line.lives, func(a, b history.Life) int { return cmp.Compare(a.Token, b.Token) })
		freed := time.Duration(0)
		for _, life := range line.lives {
			line.freed = append(line.freed, freed)
			if freed = max(freed, life.Gone); life.Deleted == 0 {
				break // nobody behind has a turn
			}
		}
	}
	return lines
}

// of is when the turn came of the ticket by which something was held. Those ahead of another kind had to
// be gone, and of its own kind there may be fewer than most beside it.
func (t *turns) of(hold history.Hold) (at time.Duration, ok bool) {
	const never = time.Duration(math.MaxInt64)
	i, found := slices.BinarySearchFunc(t.lives, hold.Token, func(l history.Life, token int64) int { return cmp.Compare(l.Token, token) })
	if !found {
		return 0, false
	}
	at = t.lives[i].Created
	var beside []time.Duration // ends of those of its kind
	for _, life := range t.lives[:i] {
		gone := life.Gone
		if life.Deleted == 0 {
			gone = never
		}
		if hold.Kind != "" && life.Kind == hold.Kind {
			beside = append(beside, gone)
		} else {
			at = max(at, gone)
		}
	}
	if free := len(beside) - hold.Most; hold.Most > 0 && free >= 0 { // so many have to end first, and one more
		slices.Sort(beside)
		at = max(at, beside[free])
	}
	return at, at < never
}

// awaiting are the operations that wait for a turn in one line.
var awaiting = []string{"Lock", "Campaign", "RLock", "Acquire"}

// idle finds locks and leaderships that nobody had although the turn of a waiter had come: its Lock
// or Campaign returned later than the news needs. A fault excuses it, even long before, for as long
// as a watch may be silent after it.
func (w *world) idle(h history.History) (found []history.Violation) {
	type grant struct {
		name  string
		lease int64
		at    time.Duration
	}
	holds := map[grant]history.Hold{}
	for _, r := range h {
		if r.Hold != nil {
			holds[grant{r.Hold.Name, r.Hold.Lease, r.Hold.Start}] = *r.Hold
		}
	}
	lines := turnsOf(h)
	for _, r := range h {
		c := r.Call
		if c == nil || c.Error != "" || !slices.Contains(awaiting, c.Op) {
			continue
		}
		hold, held := holds[grant{c.Name, c.Lease, c.Return}]
		line := lines[c.Name]
		if !held || line == nil {
			continue
		}
		turn, ok := line.of(hold)
		if !ok {
			continue
		}
		turn = max(turn, c.Call)
		if bound, trip, ok := w.stations[c.Client].newsIn(span{turn, c.Return}); ok && c.Return-turn > bound {
			found = append(found, w.violation("idle", c.Return,
				"%v: %s of %q with token %d, whose turn came at %v, returned %v later, without a fault and with round trips of up to %v",
				c.Who, c.Op, c.Name, hold.Token, turn, c.Return-turn, trip))
		}
	}
	return found
}

// besideItself finds calls of Lock that waited, although their session held the lock all the time by
// another handle.
func (w *world) besideItself(h history.History) (found []history.Violation) {
	holds := map[place][]history.Hold{}
	for _, r := range h {
		if r.Hold != nil && r.Hold.Kind == "" {
			at := place{r.Hold.Name, r.Hold.Lease}
			holds[at] = append(holds[at], *r.Hold)
		}
	}
	for _, r := range h {
		c := r.Call
		if c == nil || c.Op != "Lock" && c.Op != "Campaign" {
			continue
		}
		for _, hold := range holds[place{c.Name, c.Lease}] {
			if hold.Start > c.Call || hold.End <= c.Call {
				continue
			}
			until := min(hold.End, c.Return)
			waited := until - c.Call
			if bound, trip, ok := w.stations[c.Client].newsIn(span{c.Call, until}); ok && waited > bound {
				found = append(found, w.violation("idle", c.Return,
					"%v: %s of %q waited for %v beside token %d of its own session, without a fault and with round trips of up to %v",
					c.Who, c.Op, c.Name, waited, hold.Token, trip))
			}
		}
	}
	return found
}

// newsIn is the longest that news of something may take in a span, and the longest round trip. For
// ok see untroubled.
func (s *station) newsIn(during span) (bound, trip time.Duration, ok bool) {
	trip, silent, ok := s.untroubled(during)
	return s.news(trip, silent), trip, ok
}

// news is the longest that news may take at a round trip, and beside a link that is silent for so long.
func (s *station) news(trip, silent time.Duration) time.Duration {
	return (idleTrips+s.openings())*trip + idleSync + silent
}

// openings is how many watches of others may be opened before one of a client's, each in a round trip.
// etcd's client opens those of one stream one after the other (watchGRPCStream.run in client/v3's watch.go).
func (s *station) openings() time.Duration {
	return time.Duration(s.plan.Workers + len(s.plan.Residents) - 1)
}

// untroubled reports whether nothing befell a client in a span, nor before for as long as a watch may
// be silent after a fault. It tells the longest round trip, and how long a call waited for a silent
// link at the longest before it asked by the other one.
func (s *station) untroubled(during span) (trip, silent time.Duration, ok bool) {
	all := span{max(during.from-patience, 0), during.to}
	if s.hushed(all) {
		silent = s.longest()
	}
	return s.farthest(all), silent, s.undisturbed(all)
}
