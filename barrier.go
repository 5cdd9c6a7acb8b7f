package concurrency

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	v3 "go.etcd.io/etcd/client/v3"
)

// This file has barriers, as transactions that wait by Retry. A Barrier is one key. The tickets
// of a DoubleBarrier stand in a line, as those of a lock do. But [DoubleBarrier.enter] has the
// rule that decides who is inside.

// Barrier holds up all who wait at it, for as long as its key exists. The key is the name, as in
// etcd's recipes, so that programs with either can share a barrier.
//
// All methods may be called from any goroutine.
type Barrier struct {
	client *v3.Client
	key    string
}

// NewBarrier returns the barrier that name names. It makes no call. It panics if client is nil.
func NewBarrier(client *v3.Client, name string) *Barrier {
	if client == nil {
		panic("concurrency: nil client")
	}
	return &Barrier{client, name}
}

// Hold closes the barrier until it is released, in one call. If somebody holds it already, it
// stays closed, for as long as this Hold says from now on.
//
// Hold is not repeated. Its errors are ctx's and etcd's. One that wraps [ErrCommitUnknown] says
// that there was no answer, so that the barrier may be closed. Hold may be called again.
func (b *Barrier) Hold(ctx context.Context) error { return b.hold(ctx) }

// HoldWith is Hold, but the barrier also opens when the session s ends, at the latest with its
// lease. It returns rpctypes.ErrLeaseNotFound if the lease is gone. It panics if s is nil.
func (b *Barrier) HoldWith(ctx context.Context, s *Session) error {
	// The queue only finds the lease, and panics for a session that has none. It joins nothing.
	l := newQueue(s, b.key).lease()
	err := b.hold(ctx, v3.WithLease(l.id))
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		// The session has ended before the caller hears that its lease is gone.
		l.heardGone()
	}
	return err
}

func (b *Barrier) hold(ctx context.Context, opts ...v3.OpOption) error {
	return b.write(ctx, func(stm STM) { stm.Put(b.key, "", opts...) })
}

// Release opens the barrier, whoever holds it, in one call. All who wait go on. It returns nil if
// nobody holds it. Its errors are those of [Barrier.Hold].
func (b *Barrier) Release(ctx context.Context) error {
	return b.write(ctx, func(stm STM) { stm.Del(b.key) })
}

// write is not repeated, because it would undo what others have done meanwhile.
func (b *Barrier) write(ctx context.Context, apply func(STM)) error {
	b.made(ctx)
	_, err := NewSTM(b.client, func(stm STM) error { apply(stm); return nil }, WithAbortContext(ctx))
	return err
}

// Wait returns nil when the barrier is open, at once if nobody holds it. It blocks until then,
// and rides out what a wait for a lock rides out. Its errors are ctx's, permanent ones of etcd, and
// [context.Canceled] when the client is closed. It costs one call, and one watch if it has to wait.
// If the member that it watches on falls silent, it may return up to a minute late.
func (b *Barrier) Wait(ctx context.Context) error {
	b.made(ctx)
	return transact(ctx, b.client, func(stm STM) error {
		if _, held := stm.Lookup(b.key); held {
			stm.Retry()
		}
		return nil
	})
}

func (b *Barrier) made(ctx context.Context) {
	need(ctx)
	if b.client == nil {
		panic("concurrency: a Barrier that NewBarrier did not return")
	}
}

// DoubleBarrier lets n participants begin together, and end together. Each participant has a
// session. Enter returns when n have come, and Leave when all of them have left or died. Then the
// barrier can be used again. If more than n come, the first n are let in, and the others wait for
// the next round.
//
// A participant who dies before n have come is not counted. A participant who dies inside keeps
// nobody from leaving. He is dead when his lease has expired.
//
// A session is one participant. The participants must agree on the name and on n. Their keys lie
// under the name + "/", where no other keys may lie. They are not those of etcd's recipes.
//
// All methods may be called from any goroutine.
type DoubleBarrier struct {
	queue queue  // of those who have come and not left
	name  string // + "/"
	n     int

	mu    sync.Mutex // guards the field below; never held across a call
	round *round     // that this handle takes part in; nil: none
}

// round is one use of a double barrier. Whose ticket is not newer than the last is inside.
// Nobody can come to be inside later, because create revisions only rise. An example, for two
// participants:
//
//	name/waiters/1f   created at 5   is inside
//	name/waiters/2a   created at 8   is inside
//	name/waiters/3c   created at 9   waits for the next round
//	name/ready        8              the last ticket of this round
type round struct {
	mine     ticket
	last     int64        // 0: has not begun
	removals atomic.Int64 // calls that may have deleted mine; from 0 again after a question in vain for the lease
}

// NewDoubleBarrier returns a handle of the double barrier that name names, for n participants. It
// makes no call. It panics if s is nil or n is less than one.
//
// The servers limit what a commit compares (--max-txn-ops, 128 by default). If n is not less than half of
// that, a participant who gives up or dies in the moment in which a round begins may be counted.
func NewDoubleBarrier(s *Session, name string, n int) *DoubleBarrier {
	if n < 1 {
		panic("concurrency: a double barrier for less than one participant")
	}
	return &DoubleBarrier{queue: newQueue(s, name+"/waiters"), name: name + "/", n: n}
}

// Enter waits until n participants have come, this one included. It returns [ErrHeld] if this
// handle has come already, and no Leave has returned nil or [ErrSessionExpired] since. It blocks and
// fails as [Mutex.Lock] does, with the same errors, and takes its key away then. The others don't
// count it any more.
//
// It costs three calls for the last one to come, and four calls and two watches for the others. It
// costs more if the store is written to while the watches begin, or a round is under way.
func (d *DoubleBarrier) Enter(ctx context.Context) error {
	need(ctx)
	if err := d.queue.lossBefore(); err != nil {
		return err
	}
	r := &round{}
	// A second Enter of the handle would find the ticket of the first, and come in with it.
	if !d.begin(r) {
		return ErrHeld
	}
	entered := false
	defer func() {
		if !entered {
			d.forget(r)
		}
	}()
	txn, last := d.queue.lockTxn(), int64(0)
	v, err := d.queue.participate(ctx, txn, func() (v view, err error) {
		v, last, err = d.obtain(ctx, txn)
		return v, err
	})
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	// With a last ticket, Leave takes the handle for inside.
	r.mine, r.last, entered = v.mine, last, true
	return nil
}

// obtain draws a ticket and waits until it is inside. Its view has the ticket after an error too.
func (d *DoubleBarrier) obtain(ctx context.Context, txn joinTxn) (view, int64, error) {
	l := d.queue.lease()
	v, err := d.queue.join(ctx, txn)
	if err != nil {
		return v, 0, err
	}
	// A transaction knows nothing of the lease, so its context ends with the lease.
	bound, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.lost, cancel)()
	last, err := d.await(bound, v.mine)
	switch {
	case ctx.Err() != nil && err != nil:
		return v, 0, ctx.Err()
	case err != nil && l.loss() != nil:
		return v, 0, l.loss()
	case err != nil:
		return v, 0, err
	}
	// Nobody deletes the ticket from now on but Leave.
	l.seats.at(txn.key, func(s *seat) {
		if s.grant(v.mine) == nil {
			err = ErrSessionExpired
		}
	})
	return v, last, err
}

// await returns the newest ticket of the round when mine is inside.
func (d *DoubleBarrier) await(ctx context.Context, mine ticket) (last int64, err error) {
	for many := false; ; {
		var begins []v3.Cmp
		err = d.transact(ctx, func(stm STM) (err error) {
			last, begins, err = d.enter(stm, mine)
			return err
		})
		if err != nil || last >= mine.rev {
			return last, err
		}
		if begins == nil {
			break
		}
		// Of more participants than a commit can compare, those who die while the round begins count as
		// dead inside.
		if many {
			begins = begins[:2]
		}
		err = d.transact(ctx, func(stm STM) error {
			stm.Put(d.ready(), strconv.FormatInt(mine.rev, 10))
			return nil
		}, WithGuard(begins...))
		switch {
		case err == rpctypes.ErrTooManyOps && !many:
			many = true
		case err != ErrGuardFailed:
			return mine.rev, err
		}
	}
	// Nobody wakes for all who come, only to see that they are not enough.
	return last, d.transact(ctx, func(stm STM) error {
		if kv := stm.Entry(mine.key); kv == nil || kv.CreateRevision != mine.rev {
			return ErrSessionExpired
		}
		if last = newestOf(stm.Entry(d.ready())); last < mine.rev {
			stm.Retry()
		}
		return nil
	}, WithPrefetch(mine.key, d.ready()))
}

// enter is the rule of the barrier. If nobody of the round before is inside any more, and n have
// come, the n-th begins the next round. He alone does. begins are what must still be true then: no
// other round has begun, and all n stand, mine first. Who stands behind them is not compared, because
// a long line would be more than a commit can compare. For everybody else begins is nil.
//
// enter returns the newest ticket of the latest round. It blocks until mine is inside, may begin a
// round, or has fewer than n-1 ahead. Such a ticket can't come to be the n-th, because nobody comes in
// ahead.
func (d *DoubleBarrier) enter(stm STM, mine ticket) (last int64, begins []v3.Cmp, err error) {
	line, last := d.read(stm)
	ahead := slices.Index(line, mine)
	switch {
	case ahead < 0:
		return 0, nil, ErrSessionExpired
	case mine.rev <= last || ahead < d.n-1:
		return last, nil, nil
	case ahead == d.n-1 && line[0].rev > last:
		begins = []v3.Cmp{v3.Compare(v3.ModRevision(d.ready()), "=", stm.Rev(d.ready()))}
		for _, t := range slices.Backward(line[:d.n]) {
			begins = append(begins, t.stands())
		}
		return last, begins, nil
	}
	stm.Retry()
	return 0, nil, nil
}

// Leave waits until all who are inside have left or died. It returns nil at once if this handle
// is not inside.
//
// It blocks until ctx ends, and then returns ctx's error. The participant has left then, and
// nobody waits for him. Leave may be called again to go on waiting. It returns
// [ErrSessionExpired] if the participant's own key was gone, because others have taken him for
// dead. Other errors are etcd's permanent ones. It costs two calls, and a look for each who leaves meanwhile.
func (d *DoubleBarrier) Leave(ctx context.Context) error {
	need(ctx)
	d.queue.lease()
	d.mu.Lock()
	r := d.round
	inside := r != nil && r.last != 0
	d.mu.Unlock()
	if !inside {
		return nil
	}
	r.removals.Add(1)
	_, err := d.queue.leave(ctx, r.mine)
	switch {
	// The only deletion that was sent has found nothing. So somebody else has deleted the key.
	case err == ErrSessionExpired && r.removals.Load() == 1:
		return d.takenForDead(ctx, r)
	case err == ErrSessionExpired: // another deletion of this handle may have been carried out
	case err != nil:
		return err
	}
	err = d.transact(ctx, func(stm STM) error {
		// Newer tickets are those of the next round, and hold nobody up.
		if line, _ := d.read(stm); len(line) > 0 && line[0].rev <= r.last {
			stm.Retry()
		}
		return nil
	})
	if err == nil {
		d.forget(r)
	}
	return err
}

// takenForDead asks about the lease of a participant whose key was gone. If ctx ends before the
// answer comes, the next Leave finds the key gone as well, and asks again.
func (d *DoubleBarrier) takenForDead(ctx context.Context, r *round) error {
	err := d.queue.askForLease(ctx)
	if err == ErrSessionExpired {
		d.forget(r)
	} else {
		// The deletion of the next Leave is the first again.
		r.removals.Store(0)
	}
	return err
}

// begin notes that this handle takes part in the round, unless it does in another one.
func (d *DoubleBarrier) begin(r *round) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.round != nil {
		return false
	}
	d.round = r
	return true
}

// forget notes that this handle takes no part in the round any more.
func (d *DoubleBarrier) forget(r *round) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.round == r {
		d.round = nil
	}
}

// ready is the key whose value is the newest ticket of the latest round.
func (d *DoubleBarrier) ready() string { return d.name + "ready" }

// newestOf reads that key. A foreign value says that nobody is inside. A number may be foreign, too,
// such as one that was copied from another store. A ticket is older than the key that names it.
func newestOf(ready *mvccpb.KeyValue) int64 {
	last, _ := strconv.ParseInt(string(ready.GetValue()), 10, 64)
	if last >= ready.GetModRevision() {
		return 0
	}
	return last
}

// read returns the tickets that stand, the oldest first, and the create revision of the newest
// ticket of the latest round. All of it is one range, so a wait costs one watch.
func (d *DoubleBarrier) read(stm STM) (line []ticket, last int64) {
	for _, kv := range stm.Range(d.name, v3.GetPrefixRangeEnd(d.name)) {
		switch key := string(kv.Key); {
		case strings.HasPrefix(key, d.queue.prefix):
			line = append(line, ticketOf(kv))
		case key == d.ready():
			last = newestOf(kv)
		}
	}
	// The range comes in the order of the keys, and those are the numbers of leases.
	slices.SortFunc(line, func(a, b ticket) int { return cmp.Compare(a.rev, b.rev) })
	return line, last
}

// transact has the patience of the session: a silent member holds up nobody for longer than a TTL.
func (d *DoubleBarrier) transact(ctx context.Context, apply func(STM) error, opts ...STMOption) error {
	l := d.queue.lease()
	return transact(ctx, l.client, apply, append(opts, withPatience(l.patience()))...)
}

// transact runs a transaction that may be repeated: its commit is refused unless all is as it was
// read. So a commit without an answer is no problem, because the next attempt sees what it did.
// It ends with an error when ctx or the client ends, or with one that stays.
func transact(ctx context.Context, client *v3.Client, apply func(STM) error, opts ...STMOption) error {
	opts = append(opts, WithAbortContext(ctx))
	for n := 0; ; n++ {
		_, err := NewSTM(client, apply, opts...)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case client.Ctx().Err() != nil:
			return context.Canceled
		case !errors.Is(err, ErrCommitUnknown) && !transient(err):
			return err
		}
		pause(ctx, client.Ctx(), n)
	}
}
