package worlds

import (
	"context"
	"errors"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/lease"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/history"
	"example.com/etcd/concurrency/internal/library"
)

// stay is an open session.
type stay struct {
	library.Session
	lease clientv3.LeaseID
	since time.Duration // for certain
	life  time.Duration // the TTL less the margin
	ttl   time.Duration // as asked for
	left  chan struct{} // closed before it is closed or orphaned by its owner
	given bool          // it was opened on a lease that existed
}

// reopen sees to an open session.
func (w *worker) reopen(ctx context.Context) bool {
	if w.stay != nil && !ended(w.stay.Done()) {
		return true
	}
	w.shut()
	ttl := pick(w.rnd, w.plan.TTLs)
	o := library.SessionOptions{TTL: ttl}
	if w.plan.Margins && w.rnd.IntN(2) == 0 {
		o.Margin = between(w.rnd, time.Millisecond, time.Duration(ttl)*time.Second/2)
	}
	w.stay = w.open(ctx, o)
	return w.stay != nil
}

// open opens a session, nil if that fails. Its context is the client's, unless it was given one.
func (w *worker) open(ctx context.Context, o library.SessionOptions) *stay {
	asked := time.Duration(o.TTL) * time.Second
	longest := 2*asked + time.Second // for the grant, for a renewal, and to give the lease back
	if o.Lease != 0 {
		asked = time.Minute // the package's default
		longest = asked + w.longest()
	}
	var s library.Session
	alone := context.WithoutCancel(ctx) // NewSession is not given it
	err := w.call(alone, call{op: "NewSession", due: longest}, func(context.Context) (err error) {
		s, err = w.lib.Open(w.client, o)
		return err
	})
	if err != nil {
		return nil
	}
	ttl := asked
	if t, ok := s.(interface{ TTL() time.Duration }); ok {
		ttl = t.TTL()
	}
	opened := &stay{Session: s, lease: s.Lease(), since: w.rec.Now(), left: make(chan struct{}), given: o.Lease != 0}
	opened.ttl, opened.life = ttl, ttl-o.Margin
	go w.attend(opened)
	return opened
}

// attend waits for the end of a session, and asks whether it had to come.
func (w *worker) attend(s *stay) {
	select {
	case <-s.left:
		return
	case <-s.Done():
	}
	if ended(s.left) {
		return
	}
	now := w.rec.Now()
	r := w.revocationOf(int64(s.lease))
	switch {
	case !w.here():
	case r.done != 0:
		known := span{max(r.done, s.since), now}
		late := known.to - known.from
		told := func() {
			w.violateAt("told", now, "%v: a session of %v was lost %v after its lease was revoked, and %v after it was opened",
				w.who, s.ttl, now-r.done, now-s.since)
		}
		if late > s.ttl {
			told()
			break
		}
		w.untroubledIn(known, func(trip, silent time.Duration) {
			if late > s.life/3+idleTrips*trip+silent { // the next renewal tells
				told()
			}
		})
	case r.ordered != 0: // and perhaps carried out
	default:
		w.lose(ending{w.station, now, s})
	}
	if w.here() && !errors.Is(context.Cause(s.Ctx()), concurrency.ErrSessionExpired) {
		w.violate("told", "%v: a session was lost with the cause %v", w.who, context.Cause(s.Ctx()))
	}
	if r.ordered == 0 {
		w.askMargin(s)
	}
}

// askMargin asks whether the lease of a session that has just ended may live for the margin still.
func (w *worker) askMargin(s *stay) {
	margin := s.ttl - s.life
	if margin == 0 {
		return
	}
	// In whole seconds, rounded down.
	if left, ok := w.leftOf(s.lease); ok && left+time.Second <= margin {
		w.violate("margin", "%v: a session was lost %v before its lease could end, and has a margin of %v", w.who, left, margin)
	}
}

// leftOf is how long a lease lives by what the server says. It is negative if there is no such lease.
func (w *world) leftOf(id clientv3.LeaseID) (left time.Duration, ok bool) {
	etcd := w.Server().Etcd()
	if etcd == nil {
		return 0, false
	}
	ctx, cancel := bounded()
	defer cancel()
	resp, err := etcd.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: int64(id)})
	switch {
	case errors.Is(err, lease.ErrLeaseNotFound):
		return -time.Second, true
	case err != nil:
		return 0, false
	}
	return time.Duration(resp.TTL) * time.Second, true
}

// leaseLives reports whether the server has a lease.
func (w *world) leaseLives(id clientv3.LeaseID) bool {
	left, ok := w.leftOf(id)
	return ok && left >= 0
}

// ending is the loss of a session that no stranger has ended.
type ending struct {
	*station
	at   time.Duration
	stay *stay
}

// unfounded finds sessions that were lost though nothing has hindered a renewal for as long as they
// live by one. It is asked when all is known that befell their clients.
func (w *world) unfounded() (found []history.Violation) {
	for _, e := range w.endings {
		s, last := e.stay, span{max(e.at-e.stay.life, 0), e.at}
		// A lease that was taken over may have little left, until a renewal was answered. In a mild world
		// that may be too little for the trouble.
		lived, open := e.at-s.since, span{s.since, e.at}
		troubled := w.plan.Mild && (e.hushed(open) || !e.undisturbed(open))
		if s.given && lived < s.life && (troubled || lived <= 3*e.farthest(last)+idleSync) {
			continue
		}
		if e.fair(last, s.life*55/100) {
			found = append(found, w.violation("session", e.at,
				"%v: a session of %v, lease %x, was lost though no renewal was hindered for all its life",
				e.who, s.life, int64(s.lease)))
		}
	}
	return found
}

// shut closes the session, if there is one.
func (w *worker) shut() {
	if s := w.stay; s != nil {
		w.stay = nil
		w.close(s)
	}
}

func (w *worker) close(s *stay) {
	w.leave(s)
	c := call{op: "Close", lease: s.lease, due: s.ttl}
	_ = w.call(context.Background(), c, func(context.Context) error { return s.Close() })
}

// leave notes that the owner ends the session.
func (w *worker) leave(s *stay) {
	if !ended(s.left) {
		close(s.left)
	}
}
