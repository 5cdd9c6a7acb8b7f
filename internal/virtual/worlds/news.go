package worlds

import (
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
		for i, life := range line.lives[:len(line.freed)] {
			led := span{max(line.freed[i], life.Created, f.during.from), f.during.to}
			if life.Deleted != 0 {
				led.to = min(led.to, life.Gone)
			}
			bound, trip, ok := f.newsIn(led)
			if !ok || led.to-led.from <= bound {
				continue
			}
			if last, ok := latestAt(told[f.stream], led.from+bound); !ok || last.Token != life.Token {
				found = append(found, w.violation("stale", led.from+bound,
					"%v: %s of %q had not told of token %d, which led since %v, %v later, without a fault and with round trips of up to %v",
					f.who, f.how, f.name, life.Token, led.from, bound, trip))
			}
		}
		if f.how == "Leaders" {
			found = append(found, w.unvacant(f, line, told[f.stream])...)
		}
	}
	return found
}

// unvacant finds times in which nobody led for longer than the news need, and of which Leaders had not
// told.
func (w *world) unvacant(f followed, line *turns, told []history.Sighting) (found []history.Violation) {
	for i, freed := range line.freed[1:] {
		nobody := span{max(freed, f.during.from), min(line.lives[i+1].Created, f.during.to)}
		bound, trip, ok := f.newsIn(nobody)
		if !ok || nobody.to-nobody.from <= bound {
			continue
		}
		if last, ok := latestAt(told, nobody.from+bound); !ok || last.Token != 0 {
			found = append(found, w.violation("stale", nobody.from+bound,
				"%v: Leaders of %q had not told that nobody led since %v, %v later, without a fault and with round trips of up to %v",
				f.who, f.name, nobody.from, bound, trip))
		}
	}
	return found
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
