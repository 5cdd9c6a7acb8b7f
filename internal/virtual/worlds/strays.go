package worlds

import (
	"time"

	"example.com/etcd/concurrency/internal/history"
)

// place is a session's place in a line.
type place struct {
	name  string
	lease int64
}

// use is what was done with a place.
type use struct {
	span
	station int
	token   int64 // that was held; who holds a ticket has waited with it before. 0: not known
}

// strays finds keys that stood in line for nobody, and blocked those behind them, for longer
// than their session needs that has nothing in its way. Nobody is asked for the key of a request
// that came later than the TTL after it was sent: its session has stopped to look for it.
func (w *world) strays(h history.History, end time.Duration) (found []history.Violation) {
	used := map[place][]use{}
	for _, r := range h {
		switch {
		case r.Call != nil && r.Call.Lease != 0:
			at := place{r.Call.Name, r.Call.Lease}
			used[at] = append(used[at], use{span{r.Call.Call, r.Call.Return}, r.Call.Client, 0})
		case r.Hold != nil:
			at := place{r.Hold.Name, r.Hold.Lease}
			used[at] = append(used[at], use{span{r.Hold.Start, r.Hold.End}, r.Hold.Client, r.Hold.Token})
		}
	}
	for _, r := range h {
		if r.Life == nil || len(used[place{r.Life.Name, r.Life.Lease}]) == 0 {
			continue
		}
		life, last := *r.Life, use{span: span{to: r.Life.Created}}
		if life.Deleted == 0 {
			life.Gone = end
		}
		for _, u := range used[place{life.Name, life.Lease}] {
			if (u.from < life.Gone || u.token == life.Token) && u.to >= last.to {
				last = u
			}
			last.station = u.station // the same for all
		}
		s, idle := w.stations[last.station], span{last.to, life.Gone}
		// The clean-up may have to look, to delete and to look again.
		bound := 2*w.longest() + 5*time.Second + 6*s.farthest(idle) + w.audit.lateness(life.Token)
		if calm := s.calmest(idle, w.longest()); calm > bound {
			found = append(found, w.violation("stray", life.Gone,
				"token %d of client %d, lease %x, stood in line of %q for %v after its last use, %v of them without a fault",
				life.Token, last.station, life.Lease, life.Name, idle.to-idle.from, calm))
		}
	}
	return found
}
