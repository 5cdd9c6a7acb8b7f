package concurrency

import (
	"context"
	"slices"
	"sync"
	"time"

	v3 "go.etcd.io/etcd/client/v3"
)

// This file decides by the times that it is given. It reads no clock and makes no call, so a test
// can try any order of sendings, answers and breaks. renewal.go does what is decided here.

// renewal is one lease that is kept alive.
type renewal struct {
	id       v3.LeaseID
	interval time.Duration // between two sendings: a third of the session's life
	ctx      context.Context

	// answer is told when a renewal that was answered had been sent, and how long the lease
	// lives from then on: zero if the server does not have it. It is called without locks.
	answer func(sent time.Time, ttl time.Duration)
	// failed is told why a renewal is sent again. It is called with the mutex of the renewals
	// held, so it only takes note. nil: there is no trace.
	failed func(err error)

	// The renewals of the client guard what follows.
	byCalls  bool // by calls of its own, and not on a stream
	due      time.Time
	proven   time.Time // when the newest renewal was sent that was answered
	heard    time.Time // when the last answer came
	pending  time.Time // when the newest renewal was sent; zero: it was answered, or has failed
	failures int       // calls that failed in a row
	suspect  bool      // the first that a stream had not answered when it broke
	over     bool      // nothing is to be sent any more

	calls sync.WaitGroup  // if it is alone
	last  *sync.WaitGroup // what ran for all leases of the client, if this was the last
}

// soon is when k may be sent together with others, a tenth of its interval before it is due. Calls
// gain nothing from that. In silence they lose by it: the two calls for a lease are to reach two
// members, so no calls for other leases should come between them. Nor is the pause after a failed
// call to be cut short.
func (k *renewal) soon() time.Time {
	if k.byCalls {
		return k.due
	}
	return k.due.Add(-k.interval / 10)
}

// step is the time between two renewals of k on streams. It is the interval, or half of it while no
// member answers k. A shorter step lets more members be asked while the lease lives.
//
// If the renewal before this one was answered soon, k has heard about an interval ago. If it was not
// answered, k has heard two intervals ago. What other leases have heard since tells nothing, because
// the member may have fallen silent after that.
func (k *renewal) step(now time.Time) time.Duration {
	if now.Sub(k.heard) < k.interval*3/2 {
		return k.interval
	}
	return k.interval / 2
}

// sends notes that a renewal is sent, and that the one before has no answer yet if so.
func (k *renewal) sends(now time.Time) {
	k.fails(k.pending, ErrNoAnswer)
	k.pending = now
}

// fails notes that the renewal that was sent at the time has failed. If a newer one was sent, or
// it was told before, that is no news. Nor is it once nothing is to be renewed any more.
func (k *renewal) fails(sent time.Time, err error) {
	if k.over || sent.IsZero() || !sent.Equal(k.pending) {
		return
	}
	if k.pending = (time.Time{}); k.failed != nil {
		k.failed(err)
	}
}

// succeeds notes that the renewal that was sent at the time was answered.
func (k *renewal) succeeds(sent time.Time) {
	if !sent.Before(k.pending) {
		k.pending = time.Time{}
	}
}

// wait returns when nothing runs that renews k, after it has left.
func (k *renewal) wait() {
	if k == nil {
		return
	}
	k.calls.Wait()
	if k.last != nil {
		k.last.Wait()
	}
}

// stream is a stream of renewals to one member.
type stream struct {
	opened int // for the nth renewal of the client
	cancel context.CancelFunc
	wake   chan struct{} // the sender has work

	// The renewals of the client guard what follows.
	unsent []sending                // to be sent, in this order
	owed   map[v3.LeaseID][]sending // not answered, in the order of sending; the queue is part of it
}

// sending is a renewal that is or will be sent, at this time or later.
type sending struct {
	of  *renewal
	at  time.Time
	nth int // of all renewals of the client
}

// add puts a renewal into the queue. From that time on an answer is owed, and the session's life is
// counted from then if the answer comes. The renewal is sent no earlier.
func (s *stream) add(x sending) {
	s.unsent = append(s.unsent, x)
	s.owed[x.of.id] = append(s.owed[x.of.id], x)
	// One token is enough, because the sender empties the queue each time that it wakes.
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// next takes the next lease to be renewed from the queue, or none. A lease that nobody keeps
// alive any more is left out.
func (s *stream) next() v3.LeaseID {
	for len(s.unsent) > 0 {
		x := s.unsent[0]
		if s.unsent = s.unsent[1:]; len(s.unsent) == 0 {
			s.unsent = nil // the array would keep renewals that were sent
		}
		// If the session has ended, its renewal would keep the lease and its keys for another TTL.
		if !x.of.over {
			return x.of.id
		}
		s.remove(x)
	}
	return v3.NoLease
}

// answered returns the renewal to which the next answer for a lease belongs.
func (s *stream) answered(id v3.LeaseID) (sending, bool) {
	if len(s.owed[id]) == 0 {
		return sending{}, false
	}
	x := s.owed[id][0]
	s.remove(x)
	return x, true
}

// remove forgets a renewal that was answered, or is not sent.
func (s *stream) remove(x sending) {
	id := x.of.id
	s.owed[id] = slices.DeleteFunc(s.owed[id], func(other sending) bool { return other.nth == x.nth })
	if len(s.owed[id]) == 0 {
		delete(s.owed, id)
	}
}

// owes reports whether the stream has owed the lease an answer for a span. A tenth may be missing,
// because renewals go out up to a tenth of an interval before they are due, see renewal.soon.
func (s *stream) owes(id v3.LeaseID, span time.Duration, now time.Time) bool {
	return len(s.owed[id]) > 0 && !s.owed[id][0].at.After(now.Add(-span*9/10))
}

// owesAlone reports whether the stream owes an answer that still counts and that other cannot
// give, because other was opened after the renewal was sent.
func (s *stream) owesAlone(other *stream) bool {
	for _, sent := range s.owed {
		for _, x := range sent {
			// An answer to a renewal before the proven one moves no deadline, so nobody misses it. Nor
			// does a session that has ended.
			if !x.of.over && x.nth < other.opened && x.at.After(x.of.proven) {
				return true
			}
		}
	}
	return false
}

// dead reports whether the oldest answer that the stream owes has been due for as long as any lease
// lives that waits for it. A member answers in order, so what was sent later would come too late for
// each of them. A lease that has just begun to wait does not make the stream younger. Otherwise sessions
// that come and go would keep dead streams for ever.
func (s *stream) dead(now time.Time) bool {
	life := time.Duration(0)
	for _, sent := range s.owed {
		if k := sent[0].of; !k.over {
			life = max(life, 3*k.interval)
		}
	}
	return len(s.owed) > 0 && s.owes(s.oldest().of.id, life, now)
}

// oldest is the renewal that was sent first of those that are not answered, if there is any.
func (s *stream) oldest() (oldest sending) {
	for _, sent := range s.owed {
		if oldest.of == nil || sent[0].nth < oldest.nth {
			oldest = sent[0]
		}
	}
	return oldest
}

// mostStreams bounds the streams of a client. In silence a lease opens two beside the one in use
// after two thirds of its life, and two more after five sixths:
//
//	part of the life   0      1/3    2/3         5/6
//	renewals go to     use    use    use, a, b   use, a, b, c, d
//
// Where nobody answers, four of five members may be silent, or cut off from this client.
const mostStreams = 6

// another says whether k needs another stream, and which one is to be closed for it.
//
// A stream that owes k an answer for a step, see renewal.step, may be slow or dead. Nobody
// can tell. So it stays, and another stream is opened beside it, for which gRPC picks the
// next member. All renewals are then sent on all streams, until one is quicker, see
// [slower]. The newest streams get a step for their answer, and older ones get two.
//
// No stream is closed because it is too slow for k. It may be in time for the other leases,
// which live longer. Only if there are too many streams, one that is dead makes room.
func another(streams []*stream, k *renewal, step time.Duration, now time.Time) (open bool, instead *stream) {
	for _, s := range streams {
		span := 2 * step
		if s.opened == streams[len(streams)-1].opened {
			span = step // the newest, or both of the newest pair, were opened that much later
		}
		if !s.owes(k.id, span, now) {
			return false, nil
		}
	}
	if len(streams) < mostStreams {
		return true, nil
	}
	i := slices.IndexFunc(streams, func(s *stream) bool { return s.dead(now) })
	if i < 0 {
		return false, nil
	}
	return true, streams[i]
}

// slower are the streams to be closed now that s has answered x. They owe the answer to x too,
// so s is quicker. A stream stays if it owes an answer that s cannot give. A lease may have
// nothing else to hope for.
func slower(streams []*stream, s *stream, x sending) []*stream {
	if !slices.Contains(streams, s) {
		return nil // it was closed
	}
	var slow []*stream
	for _, other := range streams {
		// A stream that was opened after x owes no answer to x. Nothing is known of its speed yet.
		owes := slices.ContainsFunc(other.owed[x.of.id], func(y sending) bool { return y.nth == x.nth })
		if owes && !other.owesAlone(s) {
			slow = append(slow, other)
		}
	}
	return slow
}
