package concurrency

import (
	"context"
	"sync"
	"time"
)

// seat is a place of a session, and what the session knows of its key there. The handles of the
// session share one place in a line. A place with a number, such as that of a reader, is of one
// handle. The seat settles who may own by the key, and who may delete it:
//
//   - A ticket that a handle was granted is deleted by the release alone. An acquisition
//     that fails leaves it.
//   - A ticket for which a handle waits stays. The clean-up comes when the last of them has
//     failed.
//   - A deletion is decided before it is sent. From then on nobody is granted the ticket,
//     however late the deletion arrives.
//
// A seat makes no calls. Each decision is one method, under the mutex of the seats, so that
// no two decisions cross.
type seat struct {
	waiting int             // acquisitions under way that may come to wait with the ticket
	users   int             // all acquisitions under way: what they have read may be old
	granted *grant          // the newest; nil: none, or it is over
	doomed  int64           // create revision of the newest ticket whose deletion was decided
	unsure  time.Time       // until then a ticket may come to stand that no handle wants; zero: none is expected
	cleaner <-chan struct{} // stands for the clean-up that looks until that time; nil: none does
	missing time.Time       // when the latest call of a join was given up without an answer
	later   *time.Timer     // has somebody look for it from time to time; nil: all such calls were answered
}

// grant is the ownership that came with a ticket. All handles that were granted it share it.
type grant struct {
	ticket
	over    context.Context // ends when the ticket is being deleted, or was seen to be gone
	setOver context.CancelFunc
	holding *holding // what its trace is told; nil: there is no trace
	claimed bool     // by [ResumeMutex] or [ResumeElection], and not proven
}

func newGrant(t ticket) *grant {
	g := &grant{ticket: t}
	g.over, g.setOver = context.WithCancel(context.Background())
	return g
}

// seats are those of one lease on one client.
type seats struct {
	keeps any // what finds the seats of a lease; kept alive, so that the lease gets no second set

	mu sync.Mutex       // guards of and all seats; never held across a call
	of map[string]*seat // by key
}

// at lets f look at the seat of the key, and change it. A seat is forgotten when nothing
// rests on it.
func (s *seats) at(key string, f func(*seat)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.of[key]
	if p == nil {
		p = &seat{}
		s.of[key] = p
	}
	// No seat leaves this function, so nobody can look at one without the mutex.
	f(p)
	if p.idle() {
		delete(s.of, key)
	}
}

// tellLost tells the traces that everything granted on the lease is lost.
func (s *seats) tellLost(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.of {
		if p.granted != nil {
			p.granted.holding.lose(cause)
		}
	}
}

// idle reports whether nothing rests on the seat.
func (s *seat) idle() bool {
	return s.users == 0 && s.granted == nil && s.unsure.IsZero() && s.later == nil
}

// grant makes t own. It returns nil if the deletion of t was decided, or a newer ticket
// was granted, so that t is gone.
func (s *seat) grant(t ticket) *grant {
	switch {
	// A place has one key in a line. So a newer ticket of it means that t was deleted. A program that
	// claims a newer ticket proves nothing: its revision may be that of another store.
	case t.rev <= s.doomed || s.granted != nil && s.granted.rev > t.rev && !s.granted.claimed:
		return nil
	case s.granted == nil || s.granted.rev != t.rev:
		if g := s.granted; g != nil {
			// A release that is under way tells what has become of the ticket. Otherwise nobody has
			// noticed its loss yet.
			if g.over.Err() == nil {
				g.holding.lose(ErrKeyDeleted)
			}
			s.forget(g.rev)
		}
		s.granted = newGrant(t)
	}
	return s.granted
}

// doom decides the deletion of t. Whoever was granted t does not own from now on.
func (s *seat) doom(t ticket) {
	s.doomed = max(s.doomed, t.rev)
	if s.granted != nil && s.granted.rev <= t.rev {
		s.granted.setOver()
	}
}

// doomUnwanted decides the deletion of a ticket for which no handle waits and which none
// was granted. It reports whether the caller may delete the ticket: one that is being
// released is left to the release, which would take it for lost otherwise.
func (s *seat) doomUnwanted(t ticket) bool {
	if s.granted != nil && s.granted.rev >= t.rev {
		return false
	}
	// A handle that waits may be granted t at any moment. It cleans up itself if it fails.
	if s.waiting == 0 {
		s.doom(t)
	}
	return t.rev <= s.doomed
}

// forget notes that the tickets up to the revision are gone, or left to the clean-up.
func (s *seat) forget(rev int64) {
	if s.granted != nil && s.granted.rev <= rev {
		s.granted.setOver()
		s.granted = nil
	}
}

// doubt notes that a ticket which no handle wants may stand, or come to stand before until.
func (s *seat) doubt(until time.Time) {
	if s.unsure.Before(until) {
		s.unsure = until
	}
}

// miss notes that a call of a join has no answer. Another call of the same join may have one. For a
// while a clean-up looks all the time. Then look is called from time to time, because a member that
// was stopped may carry out the call whenever it goes on.
func (s *seat) miss(now time.Time, while time.Duration, look func()) {
	s.doubt(now.Add(while))
	s.missing = now
	if s.later == nil {
		s.later = time.AfterFunc(while, look)
	} else {
		s.later.Reset(while)
	}
}

// lookLater notes that it is time to look for a join that was not answered. The next look
// comes when twice the time has passed. A key thus stands no longer than its join was late.
func (s *seat) lookLater(now time.Time) {
	if s.later == nil { // another look has found that the lease has ended
		return
	}
	s.doubt(now)
	s.later.Reset(now.Sub(s.missing))
}

// lookNoMore notes that the lease has ended, and such a join with it.
func (s *seat) lookNoMore() { s.later = nil }

// dirty reports whether a clean-up has to look. While a handle waits, no clean-up looks, because the
// handle wants the ticket. The last handle that waits looks.
func (s *seat) dirty() bool { return !s.unsure.IsZero() && s.waiting == 0 }

// cleanAgain takes in that a clean-up has looked since it began, with what error. It
// reports whether the clean-up has to look again. One at a time does so for all.
func (s *seat) cleanAgain(cleaner <-chan struct{}, began time.Time, err error) bool {
	// A look counts only if it did not begin before the time until which the seat is unsure. While a
	// handle waits, the look has left the ticket alone, so it does not count either.
	if err == nil && s.dirty() && !began.Before(s.unsure) {
		s.unsure = time.Time{}
	}
	// After an error this goes on even if a handle waits. The ticket may have been doomed before.
	if err == nil && !s.dirty() {
		// The place is free at once. The goroutine of this clean-up may take its time to end, and the
		// next clean-up must not leave its work to it.
		s.endCleaning(cleaner)
		return false
	}
	if s.cleaner != nil && s.cleaner != cleaner {
		return false
	}
	s.cleaner = cleaner
	return true
}

// endCleaning leaves the place of the clean-up to the next one.
func (s *seat) endCleaning(cleaner <-chan struct{}) {
	if s.cleaner == cleaner {
		s.cleaner = nil
	}
}
