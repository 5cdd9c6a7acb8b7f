package worlds

import (
	"time"

	"example.com/etcd/concurrency/internal/history"
	"example.com/etcd/concurrency/internal/virtual"
)

// kept is how many events of the networks are kept as evidence.
const kept = 1 << 17

// trace keeps an event, and knows from it when the request was sent that arrived last.
func (w *world) trace(e virtual.Event) {
	if len(w.events) == 2*kept {
		w.events = append(w.events[:0], w.events[kept:]...)
	}
	w.events = append(w.events, e)
	if e.Kind == virtual.KeepAlive && e.What == virtual.Sent {
		w.renewals[second{e.Client, int(e.At / time.Second)}]++
	}
	if e.Kind != virtual.Txn {
		return
	}
	call := callOf{e.Client, e.Call}
	switch e.What {
	case virtual.Sent:
		w.sent[call] = e.At
	case virtual.Arrived:
		w.newest.Store(&arrival{e.At, e.At - w.sent[call]})
		delete(w.sent, call)
	}
}

// second is a second of a client.
type second struct {
	client string
	number int
}

// repeats is how often etcd's client repeats a call for a renewal, without a pause, before this package
// calls it off. Where a program has a Lease of its own, the package lets it ask that often.
const repeats = 8

// storms finds clients that call for renewals more often than four times a second for each
// session.
func (w *world) storms() (found []history.Violation) {
	sessions := w.plan.Workers + len(w.plan.Residents) + 1 // one may be on its way out
	most := 5 * sessions                                   // four, and one at the edge
	if w.plan.Foreign {
		most *= repeats
	}
	for _, s := range w.stations {
		worst := second{s.name, 0}
		for at, n := range w.renewals {
			if top := w.renewals[worst]; at.client == s.name && (n > top || n == top && at.number < worst.number) {
				worst = at
			}
		}
		if n := w.renewals[worst]; n > most {
			found = append(found, w.violation("storm", time.Duration(worst.number)*time.Second,
				"%v with at most %d sessions called %d times for renewals in a second", s.who, sessions, n))
		}
	}
	return found
}

// callOf is a call of a client.
type callOf struct {
	client string
	number int
}

// arrival is when a request arrived, and how long it was under way.
type arrival struct{ at, late time.Duration }

// lateness is how long the transaction was under way that arrived in this instant: no two
// do in one.
func (w *world) lateness() time.Duration {
	last := w.newest.Load()
	if last == nil || last.at != w.Now() {
		return 0
	}
	return last.late
}
