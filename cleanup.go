package concurrency

import (
	"context"
	"sync"
	"time"
)

// A key that no handle wants keeps everybody behind it out for as long as the lease lives. This file
// has the one loop that takes such keys away. When it has to look is decided in seat.go.

// cleanUpWait is how long a call that has failed waits for its own clean-up. A caller who
// gives up then usually leaves no key behind when the call returns. The call still returns
// within a second.
const cleanUpWait = 500 * time.Millisecond

// enter notes that an acquisition begins. A join that must be alone does not wait with a
// ticket. It keeps no clean-up of an earlier acquisition from its work.
func (q queue) enter(txn joinTxn) {
	q.lease().seats.at(txn.key, func(s *seat) {
		s.users++
		if !txn.alone {
			s.waiting++
		}
	})
}

// exit notes that an acquisition has ended, with the ticket t. It starts the clean-up if
// there is something to clean away. After an error it waits a moment for the clean-up, until
// the key was seen to be wanted or gone.
func (q queue) exit(txn joinTxn, t ticket, err error) {
	dirty := false
	q.lease().seats.at(txn.key, func(s *seat) {
		s.users--
		if !txn.alone {
			s.waiting--
		}
		// The acquisition that failed leaves a ticket, or may.
		if err != nil && t != (ticket{}) {
			s.doubt(time.Now())
		}
		dirty = s.dirty()
	})
	if !dirty {
		return
	}
	// After a success there may be something to clean away too, of an earlier call that failed. It
	// needs no wait.
	if cleaned := q.clean(ticket{txn.key, t.rev}); err != nil {
		select {
		case <-cleaned:
		case <-time.After(cleanUpWait):
		}
	}
}

// clean takes a ticket that no handle of the session wants out of the line. It looks at the
// key, and deletes the ticket if it may. It goes on, whatever error a call meets, with a
// pause that grows. It ends when no such ticket is expected any more, or when the lease is
// lost. A key that nobody owns would keep all others out. A ticket without a
// revision is looked for.
//
// The channel is closed when a look, and the deletion after it, have met no error. The work
// has a context of its own, because the caller's has usually ended.
func (q queue) clean(t ticket) <-chan struct{} {
	// The channel also names this clean-up: the seat lets one of them look at a time.
	l, tidied := q.lease(), make(chan struct{})
	settle := sync.OnceFunc(func() { close(tidied) })
	ended := l.background(func(ctx context.Context) {
		defer settle()
		defer l.seats.at(t.key, func(s *seat) { s.endCleaning(tidied) })
		reported := false // the trace was told of it
		for n := 0; l.loss() == nil; n++ {
			// What counts is when the look began. A join that lands after it is for the
			// next look.
			began, again := time.Now(), false
			err := q.tidy(ctx, t)
			switch {
			case err == nil:
				settle()
			// Nobody else tells an orphaned session that its lease, and the key with it, is gone.
			case l.ctx.Err() != nil:
				_ = q.askForLease(ctx)
			}
			l.seats.at(t.key, func(s *seat) { again = s.cleanAgain(tidied, began, err) })
			switch {
			case !again && reported:
				q.tellCleanedUp(t)
				return
			case !again:
				return
			case !reported:
				reported = true
				q.tellLeftBehind(t, err)
			}
			// At first a join may land soon. Later only a member that was stopped for long can carry it
			// out, so a look every few seconds is enough, or every TTL if that is shorter.
			sleep(ctx, l.lost, jitter(min(l.clock.ttl, 50*time.Millisecond<<min(n, 6))))
			// The ticket that stands next time may be a later one, of a join that was not
			// answered.
			t.rev = 0
		}
	})
	select {
	case <-ended: // at once if the session was closed
		return ended
	default:
		return tidied
	}
}

// lookLater looks for the key of a join that was given up without an answer long ago. It looks for as
// long as the lease lives, and not only the session: after Orphan another session may keep the lease,
// here or elsewhere. Nobody tells an orphaned session that its lease is gone, so it asks.
func (q queue) lookLater(key string) {
	l := q.lease()
	l.background(func(ctx context.Context) {
		if l.ctx.Err() != nil {
			_ = q.askForLease(ctx)
		}
		if l.loss() != nil {
			l.seats.at(key, (*seat).lookNoMore)
			return
		}
		l.seats.at(key, func(s *seat) { s.lookLater(time.Now()) })
		q.clean(ticket{key: key})
	})
}

// tidy deletes the ticket if no handle wants it. A ticket without a revision is looked for.
func (q queue) tidy(ctx context.Context, t ticket) (err error) {
	strange := false
	if t.rev == 0 {
		if t, err = q.find(ctx, t.key); err != nil || t == (ticket{}) {
			return err
		}
		// No join of this session has drawn a ticket that is older than the session. Whoever has,
		// such as an earlier call of etcd's lock service, may own by it.
		strange = t.rev <= q.lease().since
	}
	doomed := false
	// The look may be old by now: a handle may have joined meanwhile. The seat knows.
	q.lease().seats.at(t.key, func(s *seat) {
		if !strange || t.rev <= s.doomed {
			doomed = s.doomUnwanted(t)
		}
	})
	if !doomed {
		return nil
	}
	// A ticket that has gone by itself needs no deletion.
	if _, err = q.remove(ctx, t); err == ErrSessionExpired {
		err = nil
	}
	return err
}
