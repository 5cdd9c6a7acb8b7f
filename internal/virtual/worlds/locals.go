package worlds

import (
	"context"
	"maps"
	"slices"
	"time"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/history"
)

// local is a few goroutines that share a LocalMutex. Two of them exclude each other, and the pair
// of numbers rises from one to the next.
func (w *worker) local(ctx context.Context) {
	s, name, since := w.stay, w.anyLock(), w.rec.Now()
	m := concurrency.NewLocalMutex(bare(s), name)
	w.beside(2+w.rnd.IntN(4), func(sibling *worker) {
		for range 1 + sibling.rnd.IntN(12) {
			if !pause(ctx, sibling.think()/20) || ended(sibling.rest) || ended(s.Done()) {
				return
			}
			sibling.takeLocal(ctx, s, name, m, since)
		}
	})
}

// takeLocal takes, holds and releases.
func (w *worker) takeLocal(ctx context.Context, s *stay, name string, m *concurrency.LocalMutex, since time.Duration) {
	c := call{op: "Do", name: name, lease: s.lease, limit: w.patience()}
	var term context.Context
	hold := func(ctx context.Context, within bool) {
		h := w.owning(s, name, m.Rev(), m.IsOwner(), m)
		if h.Passed = 1 + m.Seq(); h.Token == 0 || m.Rev() == 0 {
			return // lost already
		}
		if within {
			h = h.within(ctx, s.ttl)
		}
		w.share(h.Token, since)
		term = w.hold(ctx, h)
	}
	switch w.rnd.IntN(4) {
	case 0:
		_ = w.call(ctx, c, func(ctx context.Context) error {
			return m.Do(ctx, func(ctx context.Context) error {
				hold(ctx, true)
				return nil
			})
		})
		return
	case 1:
		c.op = "LocalMutex.TryLock"
		if w.call(ctx, c, m.TryLock) != nil {
			return
		}
	default:
		c.op = "LocalMutex.Lock"
		if w.call(ctx, c, m.Lock) != nil {
			return
		}
	}
	hold(ctx, false)
	c.op, c.limit = "LocalMutex.Unlock", w.patience()
	_ = w.call(ctx, c, m.Unlock)
	w.askReleased(c.op, name, term)
}

// share notes since when there is the handle that passes a token on.
func (w *world) share(token int64, since time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.shared[token] = since
}

// questions is how many times a round trip lies between two questions whether others wait.
const questions = 10

// unserved finds sessions that waited while goroutines of another one passed the lock on for
// longer than they may: eleven round trips, the rest of a turn, and a turn. Faults since there
// is the handle excuse them.
func (w *world) unserved(h history.History) (found []history.Violation) {
	holds := map[int64][]history.Hold{} // by token
	for _, list := range h.Holds() {
		for _, hold := range list {
			if hold.Passed > 0 {
				holds[hold.Token] = append(holds[hold.Token], hold)
			}
		}
	}
	waiting := map[string][]history.Life{}
	for _, r := range h {
		if r.Life != nil {
			waiting[r.Life.Name] = append(waiting[r.Life.Name], *r.Life)
		}
	}
	for _, token := range slices.Sorted(maps.Keys(holds)) {
		list := holds[token]
		if list[0].Passed != 1 {
			continue // nobody knows since when
		}
		for _, life := range waiting[list[0].Name] {
			if life.Token > token {
				found = append(found, w.passedTooLong(list, life)...)
			}
		}
	}
	return found
}

// passedTooLong judges those who passed a token on while a ticket waited. The question that the
// first of them has put who came by it ten round trips later has been answered a round trip on.
func (w *world) passedTooLong(list []history.Hold, life history.Life) []history.Violation {
	s, since := w.stations[list[0].Client], w.shared[list[0].Token]
	begun := max(life.Created, list[0].Start)
	asked := time.Duration(-1)
	for _, pass := range list[1:] {
		all := span{since, pass.Start}
		if life.Deleted != 0 && life.Gone <= pass.Start || s.calmest(all, 1<<60) != all.to-all.from {
			return nil
		}
		trip := s.farthest(all) + time.Millisecond // of which a call takes a part where there is no round trip
		switch {
		case asked < 0 && pass.Start >= begun+questions*trip:
			asked = pass.Start
		case asked >= 0 && pass.Start > asked+trip:
			return []history.Violation{w.violation("served", pass.Start,
				"%v: %q was passed on by token %d, to number %d, when token %d had waited for %v, with round trips of %v",
				pass.Who, pass.Name, pass.Token, pass.Passed, life.Token, pass.Start-begun, trip)}
		}
	}
	return nil
}
