package concurrency

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	v3 "go.etcd.io/etcd/client/v3"
)

// A renewal is sent every third of the session's life, whether the one before was answered
// or not. Every answer counts, however late it comes, from the moment at which its own
// renewal was sent.
//
// That is safe. The server renews a lease that it has, for its whole TTL, some time after
// the renewal was sent. So an answer proves two things. The lease had not ended when the
// server renewed it. It does not end before sent + TTL. No other answer, earlier or later,
// makes that false. The session may live until the latest sent + TTL of all answers.
//
// Which renewal an answer belongs to follows from the order. A member answers the renewals
// of one stream one after the other, and a stream keeps the order both ways
// (leaseKeepAlive in server/etcdserver/api/v3rpc/lease.go). etcd's gRPC proxy mixes the
// leases of a stream, but not the answers for one lease. So the oldest renewal of a lease
// that a stream has not answered is the one that the next answer for that lease is for. If
// somebody in between swallowed an answer, the next would be taken for an older renewal,
// which makes the deadline early and never late.
//
// etcd's gRPC proxy renews by itself and answers with what its own renewal gave. That
// renewal may be older than the client's by as much as the answer takes from the member to
// the proxy. The deadline may then be late by that much; see WithSafetyMargin.

// renewals are those of all sessions of one client. They share one stream, which costs the
// servers and the client a twentieth of a call for each renewal.
// One timer serves all leases. When the first of them is due, send renews every lease that is
// soon due.
type renewals struct {
	client *v3.Client

	mu    sync.Mutex // guards what follows, the renewals and the streams; never held across a call
	kept  map[*renewal]struct{}
	timer *time.Timer
	wake  time.Time // when the timer fires

	streams  []*stream // the one in use and those beside it, see another; the oldest first
	sent     int       // renewals
	broken   int       // streams that broke in a row
	trouble  error     // the reason of the last one that did
	reopenAt time.Time // no stream is opened before
	running  *sync.WaitGroup
}

// keeper is one renewal among those of its client. The zero keeper renews nothing.
type keeper struct {
	all *renewals
	*renewal
}

// keep renews the lease with the others of the client, from its due time on, until it leaves.
func (k keeper) keep() {
	r := k.all
	r.mu.Lock()
	defer r.mu.Unlock()
	// The first lease of the client starts the timer, and the last one stops it.
	if len(r.kept) == 0 {
		r.kept, r.running = map[*renewal]struct{}{}, &sync.WaitGroup{}
		r.wake = k.due
		r.timer = time.AfterFunc(time.Until(k.due), r.send)
	}
	// The servers were asked for the lease, and have answered. A lease that was given is due at once. It
	// is renewed by calls first, which set the time anew.
	k.heard = k.due.Add(-k.interval)
	r.kept[k.renewal] = struct{}{}
	r.schedule(k.due)
}

// leave ends the renewals of k. It does not wait.
func (k keeper) leave() {
	r := k.all
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// A session that ends in two ways, such as Orphan and then Close, leaves twice.
	if k.over {
		return
	}
	k.over = true
	delete(r.kept, k.renewal)
	if len(r.kept) > 0 {
		return
	}
	r.timer.Stop()
	for _, s := range r.streams {
		s.cancel()
	}
	// Nothing is renewed any more. The next lease begins without streams and without a pause.
	k.last, r.streams, r.broken, r.reopenAt = r.running, nil, 0, time.Time{}
}

// trouble is the last error of a renewal that any lease of the client has met.
func (k keeper) trouble() error {
	k.all.mu.Lock()
	defer k.all.mu.Unlock()
	return k.all.trouble
}

// schedule has the timer fire when something is due, if it would fire later.
func (r *renewals) schedule(due time.Time) {
	if due.Before(r.wake) {
		r.wake = due
		r.timer.Reset(time.Until(due))
	}
}

// send sends what is due, and with it what will soon be due. The renewals of many sessions
// then cost a few writes to the connection, and not one each. The suspects come last.
func (r *renewals) send() {
	r.mu.Lock()
	defer r.mu.Unlock()
	// The timer had fired when the last lease left. Set again, it would keep the client alive.
	if len(r.kept) == 0 {
		return
	}
	now := time.Now()
	// The loop below sets the timer to the earliest that is due.
	r.wake = now.Add(time.Hour)
	r.timer.Reset(time.Hour)
	// A member may refuse the renewal of a suspect by breaking the stream. Sent last, it breaks the
	// stream after the answers to the others.
	for _, suspects := range []bool{false, true} {
		for k := range r.kept {
			if k.suspect != suspects {
				continue
			}
			if !now.Before(k.soon()) {
				r.renew(k, now)
			}
			r.schedule(k.due)
		}
	}
}

// renew sends one renewal, on all streams that are open.
func (r *renewals) renew(k *renewal, now time.Time) {
	r.sent++
	// The interval counts from now, and not from when k was due. A process that was stopped thus
	// does not send all that it has missed.
	k.due = now.Add(k.interval)
	switch {
	case k.byCalls:
		calls := 1
		// In silence there are two, see choose. For a short interval, two would be too often.
		if !k.pending.IsZero() && k.interval >= 2*refusalPause {
			calls = 2
		}
		k.sends(now)
		for range calls {
			k.calls.Go(func() { r.call(k, now) })
		}
	case r.choose(k, now):
		k.sends(now)
		for _, s := range r.streams {
			s.add(sending{k, now, r.sent})
		}
		// In silence the next one comes after half the interval, so that it may open further streams.
		k.due = now.Add(k.step(now))
	default:
		// There is no stream, and the pause before the next opening is not over.
		k.due = r.reopenAt
	}
}

// choose opens a stream if k needs one, and reports whether there is a stream.
//
// In silence it opens two streams. gRPC picks the members in turn, so one of the two goes to
// another member than the silent one, whatever calls have come in between since the last
// stream. See [repeat], which makes calls in pairs for that reason.
func (r *renewals) choose(k *renewal, now time.Time) bool {
	// Until the pause is over, the streams that are open have to do.
	if now.Before(r.reopenAt) {
		return len(r.streams) > 0
	}
	step, inUse := k.step(now), len(r.streams) > 0
	open, instead := another(r.streams, k, step, now)
	if instead != nil {
		r.drop(instead)
	}
	if open {
		r.open(now)
	}
	// Where no stream was in use, there is no silent member to get away from.
	if open && inUse && step < k.interval && len(r.streams) < mostStreams {
		r.open(now)
	}
	return true
}

// refusalPause is the least time from one opening of streams to the next, and between two calls
// for a lease after a failure. The n-th failure in a row makes the pause longer, up to half
// a second and an eighth. Upstream's client waits half a second. A server that comes back in time for
// upstream's sessions therefore does so for these.
const refusalPause = 250 * time.Millisecond

// afterFailures is the pause after n failures in a row. A part of it is random, so that
// clients that failed together part.
func afterFailures(n int) time.Duration {
	d := min(refusalPause+refusalPause/2*time.Duration(n-1), 2*refusalPause)
	return d + rand.N(d/8)
}

// open opens a stream, last in r.streams, for the renewal that is about to be sent.
func (r *renewals) open(now time.Time) {
	// The stream outlives the session that needs it, because the others use it too. A
	// member without a leader refuses the stream, and so does not keep the sessions
	// waiting.
	ctx, cancel := context.WithCancel(v3.WithRequireLeader(r.client.Ctx()))
	s := &stream{opened: r.sent, owed: map[v3.LeaseID][]sending{}, wake: make(chan struct{}, 1), cancel: cancel}
	// Whether this opening succeeds or not, the next one waits for the pause.
	r.streams, r.reopenAt = append(r.streams, s), now.Add(refusalPause)
	service := pb.NewLeaseClient(r.client.ActiveConnection())
	r.running.Go(func() {
		defer cancel()
		remote, err := service.LeaseKeepAlive(ctx)
		if err == nil {
			err = r.run(ctx, s, remote)
		}
		r.broke(s, rpctypes.Error(err))
	})
}

// run sends and receives until the stream breaks or is closed, and returns the reason.
func (r *renewals) run(ctx context.Context, s *stream, remote pb.Lease_LeaseKeepAliveClient) error {
	// Sending may block where receiving goes on, so each has a goroutine.
	var sender sync.WaitGroup
	defer sender.Wait()
	defer s.cancel()
	sender.Go(func() {
		for {
			select {
			case <-s.wake:
			case <-ctx.Done():
				return
			}
			for id := r.next(s); id != v3.NoLease; id = r.next(s) {
				if remote.Send(&pb.LeaseKeepAliveRequest{ID: int64(id)}) != nil {
					return // Recv has the reason
				}
			}
		}
	})
	for {
		resp, err := remote.Recv()
		if err != nil {
			return err
		}
		r.answered(s, v3.LeaseID(resp.ID), seconds(resp.TTL))
	}
}

// next takes the next lease to be renewed from the queue of the stream.
func (r *renewals) next(s *stream) v3.LeaseID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return s.next()
}

// answered takes in the answer of a stream.
func (r *renewals) answered(s *stream, id v3.LeaseID, ttl time.Duration) {
	r.mu.Lock()
	x, ok := s.answered(id)
	// The answer was not asked for, or the session has ended meanwhile.
	if !ok || x.of.over {
		r.mu.Unlock()
		return
	}
	// Any answer shows that a stream works. The suspicion of a lease ends with its own answer only.
	r.broken, r.trouble, x.of.heard, x.of.suspect = 0, nil, time.Now(), false
	if x.at.After(x.of.proven) {
		x.of.proven = x.at
	}
	x.of.succeeds(x.at)
	for _, other := range slower(r.streams, s, x) {
		r.drop(other)
	}
	r.mu.Unlock()
	// The session ends here if the lease is gone, and then leaves the renewals, which locks.
	x.of.answer(x.at, ttl)
}

// broke removes a stream that broke. The first renewal that is not answered may be the
// reason, whatever the error says. A member refuses the renewal of one lease by breaking
// the stream, for instance if the user may no longer write a key of that lease. Sent last,
// that renewal keeps no answer from the others.
func (r *renewals) broke(s *stream, reason error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.streams, s) {
		return // it was closed
	}
	r.broken++
	r.trouble = reason
	r.reopenAt = time.Now().Add(afterFailures(r.broken))
	if oldest := s.oldest(); oldest.of != nil {
		oldest.of.suspect = true
	}
	for _, sent := range s.owed {
		// Of the older ones the trace was told when the next one was sent, see sends.
		newest := sent[len(sent)-1]
		newest.of.fails(newest.at, reason)
	}
	r.drop(s)
}

// drop closes a stream. A renewal that no other stream owes an answer for is sent again.
func (r *renewals) drop(s *stream) {
	s.cancel()
	r.streams = slices.DeleteFunc(r.streams, func(other *stream) bool { return other == s })
	now := time.Now()
	for id, sent := range s.owed {
		// A stream that owes the lease an answer may still give it. If none does, to wait until the
		// lease is due would cost it a third of its life.
		if !slices.ContainsFunc(r.streams, func(other *stream) bool { return other.owes(id, 0, now) }) {
			sent[len(sent)-1].of.due = now
		}
	}
	r.schedule(now)
}

// call renews a lease by a call of its own. The call goes on beside those that were made
// for this lease before and are not answered yet. It ends when its answer would be of no
// use.
func (r *renewals) call(k *renewal, sent time.Time) {
	ctx, cancel := context.WithDeadline(k.ctx, sent.Add(3*k.interval))
	defer cancel()
	once, direct := &impatient{Context: ctx, cancel: cancel}, ownLease(r.client)
	// A failure of the first try ends the call. The pause before the next one is made below.
	if direct { // nobody but the client asks
		once.asked.Store(mostAsked)
	}
	resp, err := r.client.KeepAliveOnce(once, k.id)
	// This is an answer: the server does not have the lease.
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		resp, err = &v3.LeaseKeepAliveResponse{}, nil
	}
	r.mu.Lock()
	if err != nil {
		// A failed call is the news of the member that refused. Other calls of k may still succeed.
		k.failures++
		r.trouble = err
		k.fails(sent, err)
		// The failed call is made again soon, but never later than the next one would be.
		if again := time.Now().Add(afterFailures(k.failures)); !k.over && again.Before(k.due) {
			k.due = again
			r.schedule(again)
		}
	} else {
		k.failures, k.heard, r.trouble = 0, time.Now(), nil
		k.succeeds(sent)
		// The answer shows that the lease has not expired, so it may share a stream, see newRenewal. A
		// Lease that a program has put in the client's place has no stream.
		k.byCalls = !direct
	}
	// A call is called off by the end of the session, but its answer may be there already.
	over := k.over
	r.mu.Unlock()
	if err == nil && !over {
		k.answer(sent, seconds(resp.TTL))
	}
}

// impatient is the context of a call that repeats itself. KeepAliveOnce does, without a
// pause, for as long as the member refuses with certain codes, or cannot be reached. But it
// asks its context for its error after each failure (isHaltErr in client/v3/client.go). So
// the context ends when it was asked often enough.
type impatient struct {
	context.Context
	cancel context.CancelFunc
	asked  atomic.Int32
}

// mostAsked is how often the context of a call may be asked. A few times may be those of a
// program that has wrapped the client.
const mostAsked = 8

// Err counts the questions, and ends the context after the last one that a call may ask.
func (c *impatient) Err() error {
	if c.asked.Add(1) > mostAsked {
		c.cancel()
	}
	return c.Context.Err()
}
