package worlds

import (
	"fmt"
	"math"
	"slices"
	"time"

	"example.com/etcd/concurrency/internal/history"
)

// followed is a call of Observe or of Leaders.
type followed struct {
	*station
	name, how string
	stream    int64
	during    span
}

// stale finds observers that were not told of a leader, although the leadership had lasted for longer
// than the news need, and nothing was in the way. That nobody leads is told by Leaders alone.
func (w *world) stale(h history.History) (found []history.Violation) {
	told := map[int64][]history.Sighting{} // by stream, in the order of telling
	for _, r := range h {
		if s := r.Sighting; s != nil && s.Stream != 0 {
			told[s.Stream] = append(told[s.Stream], *s)
		}
	}
	lines := turnsOf(h)
	for _, f := range w.followed {
		line := lines[f.name]
		if line == nil {
			continue
		}
		for _, l := range line.leads() {
			if l.token == 0 && f.how != "Leaders" {
				continue
			}
			during := span{max(l.from, f.during.from), min(l.to, f.during.to)}
			bound, trip, ok := f.newsIn(during)
			if !ok || during.to-during.from <= bound {
				continue
			}
			if last, ok := latestAt(told[f.stream], during.from+bound); !ok || last.Token != l.token {
				found = append(found, w.violation("stale", during.from+bound,
					"%v: %s of %q had not told %s since %v, %v later, without a fault and with round trips of up to %v",
					f.who, f.how, f.name, l, during.from, bound, trip))
			}
		}
	}
	return found
}

// lead is a time in which a ticket led, or nobody if that is 0.
type lead struct {
	span
	token int64
}

// String is what is to be told of it.
func (l lead) String() string {
	if l.token == 0 {
		return "that nobody led"
	}
	return fmt.Sprintf("of token %d, which led", l.token)
}

// leads are the leaders of a line, and the times between them.
func (t *turns) leads() (all []lead) {
	for i, freed := range t.freed {
		life := t.lives[i]
		if i > 0 {
			all = append(all, lead{span{freed, life.Created}, 0})
		}
		led := lead{span{max(freed, life.Created), math.MaxInt64}, life.Token}
		if life.Deleted != 0 {
			led.to = life.Gone
		}
		all = append(all, led)
	}
	return all
}

// latestAt is what was told last at a moment.
func latestAt(told []history.Sighting, at time.Duration) (last history.Sighting, ok bool) {
	i := slices.IndexFunc(told, func(s history.Sighting) bool { return s.At > at })
	if i < 0 {
		i = len(told)
	}
	if i == 0 {
		return last, false
	}
	return told[i-1], true
}
