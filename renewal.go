package concurrency

import (
	"context"
	"errors"
	"math/rand/v2"
	"reflect"
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

// renewal is one lease that is kept alive.
type renewal struct {
	id       v3.LeaseID
	interval time.Duration // between two sendings: a third of the session's life
	ctx      context.Context

	all *renewals // of the client

	// answer is told when a renewal that was answered had been sent, and how long the lease
	// lives from then on: zero if the server does not have it. It is called without locks.
	answer func(sent time.Time, ttl time.Duration)

	// once renews the lease by a call of its own; nil: on a stream. An answer is of no use
	// after useful.
	once   func(ctx context.Context) (ttl time.Duration, err error)
	useful time.Duration

	// The renewals of the client guard what follows.
	due      time.Time
	nth      int  // of all renewals of the client, the latest of this lease
	failures int  // calls that failed in a row
	suspect  bool // the first that a stream had not answered when it broke
	over     bool // nothing is to be sent any more

	calls sync.WaitGroup  // by once
	last  *sync.WaitGroup // what ran for all leases of the client, if this was the last
}

// renewals are those of all sessions of one client. They share one stream, which costs the
// servers and the client a twentieth of a call for each renewal.
type renewals struct {
	mu     sync.Mutex // guards what follows, the renewals and the streams; never held across a call
	client *v3.Client
	kept   map[*renewal]struct{}
	timer  *time.Timer
	wake   time.Time // when the timer fires

	streams []*stream // the one in use and those beside it, see another; the oldest first
	sent    int       // renewals
	heard   time.Time // when a stream has last answered; at first, when the first lease came
	broken  int       // streams that broke in a row
	trouble error     // the reason of the last one that did
	again   time.Time // no stream is opened before
	running *sync.WaitGroup
}

// keep renews k with the others of the client, from its due time on, until it leaves.
func (k *renewal) keep(client *v3.Client, r *renewals) {
	k.all = r
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.kept) == 0 {
		r.client, r.kept, r.running, r.heard = client, map[*renewal]struct{}{}, &sync.WaitGroup{}, time.Now()
		r.wake = k.due
		r.timer = time.AfterFunc(time.Until(k.due), r.send)
	}
	r.kept[k] = struct{}{}
	r.schedule(k.due)
}

// leave ends the renewals of k. It does not wait. A nil renewal is none.
func (k *renewal) leave() {
	if k == nil {
		return
	}
	r := k.all
	r.mu.Lock()
	defer r.mu.Unlock()
	if k.over {
		return
	}
	k.over = true
	delete(r.kept, k)
	if len(r.kept) > 0 {
		return
	}
	r.timer.Stop()
	for _, s := range r.streams {
		s.cancel()
	}
	k.last, r.streams, r.broken, r.again = r.running, nil, 0, time.Time{}
}

// trouble is the last error of a renewal that any lease of the client has met.
func (k *renewal) trouble() error {
	k.all.mu.Lock()
	defer k.all.mu.Unlock()
	return k.all.trouble
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

func (r *renewals) schedule(due time.Time) {
	if due.Before(r.wake) {
		r.wake = due
		r.timer.Reset(time.Until(due))
	}
}

// send sends what is due, and with it what will soon be: the renewals of many sessions
// then cost a few writes to the connection, and not one each. The suspects come last.
func (r *renewals) send() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.wake = now.Add(time.Hour)
	r.timer.Reset(time.Hour)
	var suspects []*renewal
	for k := range r.kept {
		if !now.Before(k.soon()) {
			if k.suspect {
				suspects = append(suspects, k)
				continue
			}
			r.renew(k, now)
		}
		r.schedule(k.due)
	}
	for _, k := range suspects {
		r.renew(k, now)
		r.schedule(k.due)
	}
}

// soon is when k may be sent together with others, a tenth of its interval before it is due.
func (k *renewal) soon() time.Time {
	if k.failures > 0 { // the pause is not to be cut short
		return k.due
	}
	return k.due.Add(-k.interval / 10)
}

// renew sends one renewal, on all streams that are open.
func (r *renewals) renew(k *renewal, now time.Time) {
	r.sent++
	k.nth = r.sent
	switch {
	case k.once != nil:
		k.calls.Go(func() { r.call(k, now) })
	case r.choose(k, now):
		for _, s := range r.streams {
			s.add(k, now)
		}
		k.due = now.Add(r.step(k, now))
		return
	default:
		k.due = r.again
		return
	}
	k.due = now.Add(k.interval)
}

// step is the time between two renewals of k on streams. It is the interval, or half of it
// while no member answers anything. The next stream may then go to a silent member again,
// because gRPC picks the members in turn and other calls come in between. A step less means
// that more members are asked while the lease lives.
func (r *renewals) step(k *renewal, now time.Time) time.Duration {
	if now.Sub(r.heard) < k.interval*9/10 {
		return k.interval
	}
	return k.interval / 2
}

// choose opens a stream if k needs one, and reports whether there is a stream.
func (r *renewals) choose(k *renewal, now time.Time) bool {
	if now.Before(r.again) {
		return len(r.streams) > 0
	}
	open, instead := another(r.streams, k, r.step(k, now), now)
	if instead != nil {
		r.drop(instead)
	}
	if open {
		r.open(k, now)
	}
	return true
}

// mostStreams bounds the streams of a client. A lease lives for three intervals. In silence it
// opens a stream at the beginning, after one interval, and after each half of those that follow.
const mostStreams = 6

// another says whether k needs another stream, and which one is to be closed for it.
//
// A stream that owes k an answer for a step, see [renewals.step], may be slow or dead. Nobody can tell, so
// it stays, and another stream is opened beside it, for which gRPC picks the next member. All
// renewals are then sent on all streams, until one is quicker, see [slower].
//
// No stream is closed because it is too slow for k. It may be in time for the other leases,
// which live longer. Only if there are too many streams, one that has owed k an answer for
// its whole life makes room.
func another(streams []*stream, k *renewal, step time.Duration, now time.Time) (open bool, instead *stream) {
	owes := func(s *stream, span time.Duration) bool { return s.owes(k.id, now.Add(-span*9/10)) }
	for i, s := range streams {
		span := 2 * step
		if i == len(streams)-1 {
			span = step // the newest was opened that much later
		}
		if !owes(s, span) {
			return false, nil
		}
	}
	if len(streams) < mostStreams {
		return true, nil
	}
	i := slices.IndexFunc(streams, func(s *stream) bool { return owes(s, 3*k.interval) })
	if i < 0 {
		return false, nil
	}
	return true, streams[i]
}

// slower are the streams to be closed now that s has answered x:
//
//   - An older stream that still owes this answer, unless it also owes an answer to a lease
//     that was not renewed on s yet. The lease may have nothing else to hope for.
//   - All newer streams if s is quick again. What they owe was sent on s too.
func slower(streams []*stream, s *stream, x sending, now time.Time) []*stream {
	i := slices.Index(streams, s)
	if i < 0 {
		return nil // it was closed
	}
	var slow []*stream
	for _, older := range streams[:i] {
		if older.owes(x.of.id, x.at) && !older.owesBefore(s.opened) {
			slow = append(slow, older)
		}
	}
	for _, newer := range streams[i+1:] {
		if now.Sub(x.at) < newer.patience {
			slow = append(slow, newer)
		}
	}
	return slow
}

// refusalPause is the least time between two openings of a stream, and between two calls
// for a lease after a failure. The n-th failure in a row makes the pause longer, up to half
// a second, which is what upstream's client waits: a server that comes back in time for
// upstream's sessions does so for these.
const refusalPause = 250 * time.Millisecond

func afterFailures(n int) time.Duration {
	d := refusalPause
	for range min(n-1, 2) {
		d += d / 2
	}
	d = min(d, 2*refusalPause)
	return d + rand.N(d/8)
}

// open opens a stream, last in r.streams, because k needs it.
func (r *renewals) open(k *renewal, now time.Time) {
	ctx, cancel := context.WithCancel(v3.WithRequireLeader(r.client.Ctx()))
	s := &stream{
		patience: k.interval, opened: k.nth, owed: map[v3.LeaseID][]sending{},
		wake: make(chan struct{}, 1), cancel: cancel,
	}
	r.streams, r.again = append(r.streams, s), now.Add(refusalPause)
	lease := pb.NewLeaseClient(r.client.ActiveConnection())
	r.running.Go(func() {
		defer cancel()
		remote, err := lease.LeaseKeepAlive(ctx)
		if err == nil {
			err = r.run(ctx, s, remote)
		}
		r.broke(s, rpctypes.Error(err))
	})
}

// run sends and receives until the stream breaks or is closed, and returns the reason.
func (r *renewals) run(ctx context.Context, s *stream, remote pb.Lease_LeaseKeepAliveClient) error {
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
	if !ok || x.of.over {
		r.mu.Unlock()
		return
	}
	r.heard, r.broken, r.trouble, x.of.suspect = time.Now(), 0, nil, false
	for _, other := range slower(r.streams, s, x, time.Now()) {
		r.drop(other)
	}
	r.mu.Unlock()
	x.of.answer(x.at, ttl)
}

// broke removes a stream that broke. Whatever the reason was, it may have been the first
// renewal that is not answered: a member refuses that of one lease by breaking the stream,
// for instance if the user may no longer write one of its keys. Sent last, that renewal keeps
// no answer from the others.
func (r *renewals) broke(s *stream, reason error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.streams, s) {
		return // it was closed
	}
	r.broken++
	r.trouble = reason
	r.again = time.Now().Add(afterFailures(r.broken))
	if k := s.first(); k != nil {
		k.suspect = true
	}
	r.drop(s)
}

// drop closes a stream. What nobody else owes an answer for is sent again.
func (r *renewals) drop(s *stream) {
	s.cancel()
	r.streams = slices.DeleteFunc(r.streams, func(other *stream) bool { return other == s })
	now := time.Now()
	for id, sent := range s.owed {
		last := sent[len(sent)-1]
		if !last.of.over && !slices.ContainsFunc(r.streams, func(other *stream) bool { return other.owes(id, now) }) {
			last.of.due = now
		}
	}
	r.schedule(now)
}

// stream is a stream of renewals to one member.
type stream struct {
	patience time.Duration // the interval of the lease for which it was opened
	opened   int           // for the nth renewal of the client
	cancel   context.CancelFunc
	wake     chan struct{} // the sender has work

	// The renewals of the client guard what follows.
	sent  int                      // renewals that were put into the queue
	queue []sending                // to be sent, in this order
	owed  map[v3.LeaseID][]sending // not answered, in the order of sending; the queue is part of it
}

// sending is a renewal that is or will be sent, at this time or later.
type sending struct {
	of     *renewal
	at     time.Time
	number int // on its stream
}

// add puts a renewal into the queue. What counts is this time: from then on an answer is
// owed, and the session lives from then on if it comes.
func (s *stream) add(k *renewal, at time.Time) {
	s.sent++
	x := sending{k, at, s.sent}
	s.queue = append(s.queue, x)
	s.owed[x.of.id] = append(s.owed[x.of.id], x)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// next takes the next lease to be renewed from the queue, or none. A lease that nobody keeps
// alive any more is left out.
func (s *stream) next() v3.LeaseID {
	for len(s.queue) > 0 {
		x := s.queue[0]
		if s.queue = s.queue[1:]; len(s.queue) == 0 {
			s.queue = nil
		}
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

func (s *stream) remove(x sending) {
	id := x.of.id
	s.owed[id] = slices.DeleteFunc(s.owed[id], func(other sending) bool { return other.number == x.number })
	if len(s.owed[id]) == 0 {
		delete(s.owed, id)
	}
}

// owes reports whether a renewal of the lease is not answered that was sent at the time or
// before.
func (s *stream) owes(id v3.LeaseID, at time.Time) bool {
	return len(s.owed[id]) > 0 && !s.owed[id][0].at.After(at)
}

// owesBefore reports whether the stream owes an answer to a lease that was not renewed any
// more since the nth renewal of the client.
func (s *stream) owesBefore(nth int) bool {
	for _, sent := range s.owed {
		if sent[0].of.nth < nth {
			return true
		}
	}
	return false
}

// first is the lease whose renewal was sent first of those that are not answered.
func (s *stream) first() *renewal {
	var first sending
	for _, sent := range s.owed {
		if first.of == nil || sent[0].number < first.number {
			first = sent[0]
		}
	}
	return first.of
}

// ownStreams reports whether the client can be asked for a stream: it has a connection, and
// its Lease is the client's own and not one that a program has put there.
func ownStreams(client *v3.Client) bool {
	return client.ActiveConnection() != nil && reflect.TypeOf(client.Lease) == clientsOwn
}

var clientsOwn = reflect.TypeOf(v3.NewLeaseFromLeaseClient(nil, nil, 0))

// call renews a lease by a call of its own. It goes on beside those that were made for this
// lease before and are not answered yet, until its answer would be of no use.
func (r *renewals) call(k *renewal, sent time.Time) {
	ctx, cancel := context.WithDeadline(k.ctx, sent.Add(k.useful))
	defer cancel()
	ttl, err := k.once(&impatient{Context: ctx, cancel: cancel})
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		ttl, err = 0, nil
	}
	r.mu.Lock()
	if err != nil {
		k.failures++
		r.trouble = err
		if again := time.Now().Add(afterFailures(k.failures)); !k.over && again.Before(k.due) {
			k.due = again
			r.schedule(again)
		}
	} else {
		k.failures, r.trouble = 0, nil
	}
	over := k.over
	r.mu.Unlock()
	if err == nil && !over {
		k.answer(sent, ttl)
	}
}

// impatient is the context of a call that repeats itself. KeepAliveOnce does, without a
// pause, for as long as the member refuses with certain codes, or cannot be reached. But it
// looks at its context after each failure (isHaltErr in client/v3/client.go). So a context
// that was looked at often enough ends.
type impatient struct {
	context.Context
	cancel context.CancelFunc
	looks  atomic.Int32
}

// looksOfACall is how often the context of a call may be looked at. A few looks may be those
// of a program that has wrapped the client.
const looksOfACall = 8

// Err counts the looks, and ends the context after the last one that a call may have.
func (c *impatient) Err() error {
	if c.looks.Add(1) > looksOfACall {
		c.cancel()
	}
	return c.Context.Err()
}
