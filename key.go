package concurrency

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	v3 "go.etcd.io/etcd/client/v3"
)

// ticket is one life of a key: the same name deleted and put again is another
// ticket. The zero ticket is none.
//
// Create revisions are the numbers on the tickets: etcd gives them in the order
// of commits and never twice. The smallest one under a prefix is the head and
// owns what the prefix names. Since nobody can ever come in ahead of a ticket
// that exists, who is seen with nobody ahead owns for as long as the ticket lives.
type ticket struct {
	key string
	rev int64 // create revision; 0 for a ticket that may have been drawn, by a call whose answer was lost
}

// stands is true in a transaction only while the ticket exists.
func (t ticket) stands() v3.Cmp { return v3.Compare(v3.CreateRevision(t.key), "=", t.rev) }

func ticketOf(kv *mvccpb.KeyValue) ticket { return ticket{string(kv.Key), kv.CreateRevision} }

// firstOf reports whether the first of the keys that were read is the ticket's, in this life.
func (t ticket) firstOf(kvs []*mvccpb.KeyValue) bool { return len(kvs) > 0 && ticketOf(kvs[0]) == t }

// queue is the line under a prefix as one session stands in it. A session has one
// place in a line, whichever handles use it.
type queue struct {
	session  *Session
	prefix   string
	deletion *[1]v3.Op // of the place, made once, see deletionOf; a Mutex can be compared: no slice
}

func newQueue(s *Session, name string) queue {
	if s == nil {
		panic("concurrency: nil session")
	}
	q := queue{session: s, prefix: name + "/"}
	q.deletion = (*[1]v3.Op)(q.deletionOf(q.key()))
	return q
}

// key is the name of the session's place: upstream's, so that processes on either
// package stand in one line.
func (q queue) key() string { return q.prefix + strconv.FormatInt(int64(q.session.id), 16) }

// deletionOf deletes the key, which is usually that of the session's place.
func (q queue) deletionOf(key string) []v3.Op {
	if q.deletion != nil && string(q.deletion[0].KeyBytes()) == key {
		return q.deletion[:]
	}
	return []v3.Op{v3.OpDelete(key)}
}

func (q queue) lease() *lease {
	if q.session.lease == nil {
		panic("concurrency: a session that NewSession did not return")
	}
	return q.session.lease
}

func (q queue) client() *v3.Client { return q.lease().client }

func need(ctx context.Context) {
	if ctx == nil {
		panic("concurrency: nil context")
	}
}

// view is what was seen of the line at one revision.
type view struct {
	mine   ticket
	ahead  ticket // directly ahead of mine; none when the turn has come
	header *pb.ResponseHeader
}

// acquire joins the line and waits for the turn; one that is not patient is
// [ErrLocked] instead of waiting. The view that it returns is the proof that the
// turn has come. An acquisition that fails leaves the line, unless other handles
// of the session stand there with the same ticket or were given the turn with it.
//
// Its other errors: rpctypes.ErrLeaseNotFound when the lease was gone before,
// [ErrSessionExpired] when the ticket or the lease is lost under way, ctx's own, and
// permanent ones of etcd, bare.
func (q queue) acquire(ctx context.Context, join joinTxn, patient bool) (view, error) {
	need(ctx)
	l, key := q.lease(), join.key
	switch err := l.loss(); err {
	case nil:
	case ErrSessionExpired:
		return view{}, rpctypes.ErrLeaseNotFound // what etcd would say
	default:
		return view{}, err
	}
	l.enter(key, patient)
	v, err := q.await(ctx, join, patient)
	l.exit(key, patient)
	if err == nil {
		err = l.loss()
	}
	if err != nil {
		if err != ErrSessionExpired { // else there is nothing to withdraw
			q.withdraw(v.mine)
		}
		return view{}, err
	}
	return v, nil
}

// await joins the line and waits until the turn is given to the ticket drawn, see
// [lease.grant]. Its view has that ticket after an error too.
func (q queue) await(ctx context.Context, join joinTxn, patient bool) (v view, err error) {
	for l := q.lease(); ; {
		v, err = q.join(ctx, join, patient)
		if err == nil && v.ahead != (ticket{}) {
			v, err = q.wait(ctx, v)
		}
		switch {
		case err == nil && l.grant(v.mine):
			return v, nil
		case err == nil || err == ErrSessionExpired && l.loss() == nil && l.condemned(v.mine):
			// Another handle has deleted this very ticket, or begun to: draw a new one.
		default:
			return v, err
		}
	}
}

// joinTxn is the transaction by which a session joins a line: it puts its key and
// reads back who is ahead, or reads back the head of the line. Repeating it is
// harmless: the repetition finds its own key.
type joinTxn struct {
	lease     v3.LeaseID
	key       string
	unless    []v3.Cmp // a single one, as If wants it
	then, els []v3.Op
	value     string
	replaces  bool // a key that is found is to have the value
}

// joinTxn puts the session's key if it does not exist.
func (q queue) joinTxn(value string) joinTxn {
	key := q.key()
	return joinTxn{
		lease:  q.session.id,
		key:    key,
		value:  value,
		unless: []v3.Cmp{v3.Compare(v3.CreateRevision(key), "=", 0)},
		then:   []v3.Op{v3.OpPut(key, value, v3.WithLease(q.session.id)), v3.OpGet(q.prefix, newestTwo...)},
		els:    []v3.Op{v3.OpGet(q.prefix, oldest...)},
	}
}

// alone makes a join put the session's key only if nobody stands in line, the session
// itself included.
func (q queue) alone(j joinTxn) joinTxn {
	j.unless = []v3.Cmp{v3.Compare(v3.CreateRevision(q.prefix), "=", 0).WithPrefix()}
	return j
}

// replacing makes a join that finds the session's key read it, so that it can be given the
// value.
func (j joinTxn) replacing() joinTxn {
	j.replaces = true
	j.els = []v3.Op{v3.OpGet(j.key), j.els[0]}
	return j
}

// newestTwo selects the newest two keys of a line. Restricted to those no newer than
// a ticket, they are that ticket and the one directly ahead.
var newestTwo = []v3.OpOption{
	v3.WithPrefix(), v3.WithKeysOnly(), v3.WithSort(v3.SortByCreateRevision, v3.SortDescend), v3.WithLimit(2),
}

// oldest selects the head of a line.
var oldest = append(v3.WithFirstCreate(), v3.WithKeysOnly())

// join carries out the transaction and shows the ticket drawn or found, and one that
// is ahead of it. Unless it is patient, it is [ErrLocked] if one is. When it fails
// and nobody knows whether it was carried out, the view holds a ticket without a
// revision.
func (q queue) join(ctx context.Context, txn joinTxn, patient bool) (v view, err error) {
	for {
		var found *mvccpb.KeyValue
		if v, found, err = q.joinOnce(ctx, txn); err != nil {
			return v, err
		}
		switch {
		case v.mine == ticket{} && !patient:
			return v, ErrLocked
		case v.mine == ticket{}:
			// The session stands in line, with a ticket older than this call.
			if v.mine, err = q.find(ctx, txn.key); err != nil {
				return view{mine: ticket{key: txn.key}}, err
			}
			if v.mine == (ticket{}) {
				continue // it has just gone
			}
		}
		if !q.lease().condemned(v.mine) {
			if found != nil {
				v, err = q.setValue(ctx, v, found, txn.value)
			}
			return v, err
		}
		// The key found is being deleted, by a call that has no answer yet. Make sure
		// of it, and draw a new ticket.
		if _, err := q.remove(ctx, v.mine); err != nil && err != ErrSessionExpired {
			return view{}, err
		}
	}
}

// joinOnce sends the transaction until it is answered. One that replaces the value of the
// session's key returns that key, if it has found it.
func (q queue) joinOnce(ctx context.Context, txn joinTxn) (v view, found *mvccpb.KeyValue, err error) {
	var resp *v3.TxnResponse
	unknown := false
	l := q.lease()
	err = l.retry(ctx, l.lost, func(ctx context.Context) (err error) {
		resp, err = l.client.Txn(ctx).If(txn.unless...).Then(txn.then...).Else(txn.els...).Commit()
		if err != nil && (ctx.Err() != nil || !definite(err)) { // called off, or not answered
			unknown = true
			q.doubt(txn.key)
		}
		return err
	})
	switch {
	case err != nil && unknown:
		return view{mine: ticket{key: txn.key}}, nil, err
	case err != nil:
		return view{}, nil, err
	}
	v, found = txn.joined(resp)
	return v, found, nil
}

// setValue gives the session's key the value. It writes over what it has read and nothing
// else, so that a write that arrives late overwrites nothing that was written meanwhile, by a
// proclamation for one.
func (q queue) setValue(ctx context.Context, v view, found *mvccpb.KeyValue, value string) (view, error) {
	for l := q.lease(); string(found.Value) != value; {
		var resp *v3.TxnResponse
		err := l.retry(ctx, l.lost, func(ctx context.Context) (err error) {
			resp, err = l.client.Txn(ctx).
				If(v3.Compare(v3.ModRevision(v.mine.key), "=", found.ModRevision)).
				Then(v3.OpPut(v.mine.key, value, v3.WithLease(q.session.id))).
				Else(v3.OpGet(v.mine.key)).Commit()
			return err
		})
		if err != nil {
			return v, err
		}
		v.header = resp.Header // at which the ticket stood, too
		if resp.Succeeded {
			break
		}
		kvs := resp.Responses[0].GetResponseRange().Kvs
		if !v.mine.firstOf(kvs) {
			return v, ErrSessionExpired
		}
		found = kvs[0]
	}
	return v, nil
}

// joined reads the answer to a join. A key just put is the newest in line. Otherwise
// the session's own ticket is known only if it is the head, or was asked for.
func (j joinTxn) joined(resp *v3.TxnResponse) (v view, found *mvccpb.KeyValue) {
	v.header = resp.Header
	line := resp.Responses[len(resp.Responses)-1].GetResponseRange().Kvs
	if resp.Succeeded {
		v.mine = ticket{j.key, line[0].CreateRevision}
		if len(line) > 1 {
			v.ahead = ticketOf(line[1])
		}
		return v, nil
	}
	if j.replaces {
		found = resp.Responses[0].GetResponseRange().Kvs[0]
		v.mine = ticketOf(found)
	}
	if head := ticketOf(line[0]); head.key == j.key {
		v.mine = head
	} else {
		v.ahead = head
	}
	return v, found
}

// look shows, with one linearizable read, who stands directly ahead of mine. It is
// [ErrSessionExpired] if mine does not stand in line any more. A serializable read would do
// where an event has told of a revision, but the server tells of it a moment before it
// shows it (End in server/storage/mvcc/watchable_store_txn.go).
func (q queue) look(ctx context.Context, mine ticket) (view, error) {
	resp, err := q.get(ctx, q.lease().lost, q.prefix, append(slices.Clip(newestTwo), v3.WithMaxCreateRev(mine.rev))...)
	if err != nil {
		return view{mine: mine}, err
	}
	v := view{mine: mine, header: resp.Header}
	if !mine.firstOf(resp.Kvs) {
		return v, ErrSessionExpired
	}
	if len(resp.Kvs) > 1 {
		v.ahead = ticketOf(resp.Kvs[1])
	}
	return v, nil
}

// ownWatchDelay is how long a wait lasts before it watches its own key as well.
// Quick hand-overs are spared that watch; a lost key is heard of this much later.
const ownWatchDelay = 100 * time.Millisecond

// wait returns the first view that shows nobody ahead. It ends earlier for three
// reasons only: the ticket is gone, which is [ErrSessionExpired]; ctx, the client or the lease
// has ended, see [lease.over]; a look met a permanent error. Whatever else happens, it looks
// again.
//
// It watches two keys for their deletion. The one ahead is watched from now on,
// because the server serves a watch that starts in the past only every 100 ms
// (server/storage/mvcc/watchable_store.go). A deletion between the last look and
// the watch's beginning would be missed, so that a beginning newer than the last
// look calls for another look. The own key is watched from the revision after a
// look that has shown it, which leaves no gap; there, 100 ms don't matter. Silence
// proves nothing, since a connection may be dead without anybody's knowing: after a TTL
// without a break both watches are taken for broken.
func (q queue) wait(ctx context.Context, v view) (_ view, err error) {
	l, silence := q.lease(), time.NewTimer(ownWatchDelay)
	var ahead, own *watcher
	defer func() {
		own.stop()
		if err == nil {
			l.keepSpare(ahead, v.header.Revision)
		} else {
			ahead.stop()
		}
	}()
	for breaks := 0; v.ahead != (ticket{}); {
		if ahead == nil || ahead.key != v.ahead.key {
			ahead.stop()
			ahead = q.watchAhead(ctx, v)
		}
		var news v3.WatchResponse
		select {
		case news = <-ahead.heard():
		case news = <-own.heard():
		case <-silence.C:
			if own == nil {
				own = watch(ctx, q.client(), v.mine.key, v3.WithFilterPut(), v3.WithRev(v.header.Revision+1))
				silence.Reset(l.timeToLive())
				continue
			}
			news.Canceled = true
		case <-ctx.Done():
		case <-l.lost.Done():
		case <-l.client.Ctx().Done():
		}
		switch {
		case l.over(ctx, l.lost) != nil: // the look tells the reason
		case news.Canceled:
			ahead.stop()
			own.stop()
			ahead, own = nil, nil
			silence.Reset(ownWatchDelay)
			pause(ctx, l.lost, breaks)
			breaks++
		case news.Header.GetRevision() <= v.header.Revision:
			breaks = 0
			continue // nothing that the last look has not shown
		}
		if v, err = q.look(ctx, v.mine); err != nil {
			return v, err
		}
	}
	return v, nil
}

// watchAhead watches the key from now on, or goes on with the spare watch. It may become the
// spare one itself, and doesn't end with ctx.
func (q queue) watchAhead(ctx context.Context, v view) *watcher {
	if w := q.lease().takeSpare(v.ahead.key, v.header.Revision); w != nil {
		return w
	}
	return watch(context.WithoutCancel(ctx), q.client(), v.ahead.key, v3.WithFilterPut(), v3.WithCreatedNotify())
}

// spareFor is for how long a watch that nobody needs is kept, at least.
const spareFor = time.Second

// keepSpare keeps a watch that has done its work for the next wait behind the same key:
// where a lock goes round, all stand behind the same key each time. What such a watch has
// told was known at rev, the revision of the last look: to a view that is not older, nothing
// happens that it won't tell. It saves the servers and the client the beginning and the
// end of a watch, which cost as much as a call. A session keeps one, the latest, and no
// longer than it lives itself.
func (l *lease) keepSpare(w *watcher, rev int64) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		w.stop()
		return
	}
	older := l.spare
	l.spare, l.spareRev, l.spareUsed = w, rev, true
	if !l.spareKept {
		l.spareKept = true
		l.work.Go(l.dropSpare)
	}
	l.mu.Unlock()
	older.stop()
}

// takeSpare returns the spare watch if it is one of the key that will tell all that happens
// after rev.
func (l *lease) takeSpare(key string, rev int64) (w *watcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.spare != nil && l.spare.key == key && l.spareRev <= rev {
		w, l.spare = l.spare, nil
	}
	return w
}

// dropSpare ends the spare watch when none was kept for a while.
func (l *lease) dropSpare() {
	for used := true; used; {
		sleep(l.ctx, forever, spareFor)
		l.mu.Lock()
		used, l.spareUsed = l.spareUsed && l.ctx.Err() == nil, false
		l.spareKept = used
		w := l.spare
		if !used {
			l.spare = nil
		}
		l.mu.Unlock()
		if !used {
			w.stop()
		}
	}
}

// remove deletes the ticket, and never a later one of the same name. The caller has
// condemned it. Like every call of the queue it is repeated until it is answered; a
// repetition that finds the ticket gone has done its work, a first call that does is
// [ErrSessionExpired].
func (q queue) remove(ctx context.Context, t ticket) (header *pb.ResponseHeader, err error) {
	l, deletion := q.lease(), q.deletionOf(t.key)
	calls, stood := 0, false
	err = l.retry(ctx, l.lost, func(ctx context.Context) error {
		calls++
		resp, err := l.client.Txn(ctx).If(t.stands()).Then(deletion...).Commit()
		if err == nil {
			header, stood = resp.Header, resp.Succeeded
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	l.forget(t)
	if !stood && calls == 1 {
		err = ErrSessionExpired
	}
	return header, err
}

// leave gives the turn back. It is [ErrSessionExpired] when that was lost before: the
// ticket was gone, or the lease is known to be lost, which leaves no header. After any
// other error the ticket may or may not stand, this session will not use it again, and
// leave may be repeated.
func (q queue) leave(ctx context.Context, t ticket) (header *pb.ResponseHeader, err error) {
	need(ctx)
	q.lease().condemn(t)
	return q.remove(ctx, t)
}

// withdrawal is how long a call that has failed waits for its own clean-up, so that a
// caller who gives up usually leaves no key behind when the call returns.
const withdrawal = 500 * time.Millisecond

// withdraw takes the ticket of a failed acquisition out of the line. The work has
// a context of its own: the caller's has usually ended. It is not disturbed by,
// and does not disturb, other acquisitions of the session (see [place]).
func (q queue) withdraw(t ticket) {
	if t == (ticket{}) {
		return
	}
	l := q.lease()
	awaitCleanUp(l.background(func(ctx context.Context) {
		if t.rev == 0 {
			bound, cancel := context.WithTimeout(ctx, withdrawal) // sweep has more time
			defer cancel()
			found, err := q.find(bound, t.key)
			if err != nil {
				q.doubt(t.key)
			}
			t = found
		}
		if q.removeUnused(ctx, t); l.awaited(t) {
			q.doubt(t.key) // whom it is left to may fail without ever having seen it
		}
	}))
}

// removeUnused removes a ticket if no handle of the session waits with it or was given
// the turn with it.
func (q queue) removeUnused(ctx context.Context, t ticket) {
	if t.rev != 0 && q.lease().condemnUnused(t) {
		_, _ = q.remove(ctx, t) // the first error has been told
	}
}

// doubt notes that a join had no answer. A server that had not read it yet, or could not
// commit it yet, may carry it out much later, even when a repetition has been answered
// and the lock been released again. So the key is looked for, and removed unless it is in
// use, from time to time until it was seen after the TTL had passed.
func (q queue) doubt(key string) {
	l := q.lease()
	sweeping := false
	l.edit(key, func(p *place) {
		sweeping = !p.doubted.IsZero()
		p.doubted = time.Now()
	})
	if sweeping {
		return
	}
	done := l.background(func(ctx context.Context) { q.sweep(ctx, key) })
	select {
	case <-done: // at once if the session was closed: another one of the lease may sweep
		l.edit(key, func(p *place) { p.doubted = time.Time{} })
	default:
	}
}

func (q queue) sweep(ctx context.Context, key string) {
	l := q.lease()
	for n, over := 0, false; !over; n++ {
		sleep(ctx, l.lost, jitter(min(l.timeToLive(), 50*time.Millisecond<<min(n, 6))))
		begun := time.Now()
		t, err := q.find(ctx, key)
		if err == nil {
			q.removeUnused(ctx, t)
		}
		l.edit(key, func(p *place) {
			if over = err != nil || begun.Sub(p.doubted) >= l.timeToLive(); over {
				p.doubted = time.Time{}
			}
		})
	}
}

func awaitCleanUp(done <-chan struct{}) {
	timer := time.NewTimer(withdrawal)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// find returns the ticket that stands under the key, or none.
func (q queue) find(ctx context.Context, key string) (ticket, error) {
	resp, err := q.get(ctx, q.lease().lost, key, v3.WithKeysOnly())
	if err != nil || len(resp.Kvs) == 0 {
		return ticket{}, err
	}
	return ticketOf(resp.Kvs[0]), nil
}

// get is a linearizable read.
func (q queue) get(ctx, until context.Context, key string, opts ...v3.OpOption) (resp *v3.GetResponse, err error) {
	err = q.lease().retry(ctx, until, func(ctx context.Context) (err error) {
		resp, err = q.client().Get(ctx, key, opts...)
		return err
	})
	return resp, err
}

// place is what all handles of one lease know together of their place in one line. It
// settles who deletes the key that they share:
//
//   - The turn, once given, is given back by Unlock or Resign only: an acquisition
//     that fails leaves a granted ticket alone.
//   - A ticket for which others of the session still wait stays; the last of them
//     to fail withdraws it.
//   - A deletion marks its ticket before it is sent, and nobody is given the turn
//     with a marked ticket, however late the deletion arrives.
//
// Whoever decides does so under the mutex of the places, so that no two decisions cross.
type place struct {
	waiting int   // acquisitions under way that may come to wait with the ticket
	trying  int   // acquisitions under way that will not wait
	granted int64 // create revision of the newest ticket that was given the turn
	doomed  int64 // create revision of the newest ticket whose deletion was decided
	removed int64 // create revision of the newest ticket whose deletion was answered

	doubted time.Time // when a join was last not answered; zero: a sweep found it safe
}

// places are those of one lease on one client.
type places struct {
	shared *shared // lives as long as its places do: else the lease would get others

	mu sync.Mutex        // guards of; never held across a call
	of map[string]*place // by key
}

// edit changes a place. A place is forgotten when nothing rests on it: a ticket
// read before its deletion was answered may still be in the hands of an
// acquisition under way.
func (l *lease) edit(key string, change func(p *place)) {
	l.places.mu.Lock()
	defer l.places.mu.Unlock()
	p := l.places.of[key]
	if p == nil {
		p = &place{}
		l.places.of[key] = p
	}
	change(p)
	if p.waiting+p.trying == 0 && p.granted == 0 && p.doomed <= p.removed && p.doubted.IsZero() {
		delete(l.places.of, key)
	}
}

func (l *lease) enter(key string, patient bool) { l.count(key, patient, +1) }
func (l *lease) exit(key string, patient bool)  { l.count(key, patient, -1) }

func (l *lease) count(key string, patient bool, n int) {
	l.edit(key, func(p *place) {
		if patient {
			p.waiting += n
		} else {
			p.trying += n
		}
	})
}

// grant notes that t was given the turn, unless its deletion was decided.
func (l *lease) grant(t ticket) (granted bool) {
	l.edit(t.key, func(p *place) {
		if granted = t.rev > p.doomed; granted {
			p.granted = max(p.granted, t.rev)
		}
	})
	return granted
}

// condemned reports whether the deletion of t was decided.
func (l *lease) condemned(t ticket) (condemned bool) {
	l.edit(t.key, func(p *place) { condemned = t.rev <= p.doomed })
	return condemned
}

func (l *lease) condemn(t ticket) {
	l.edit(t.key, func(p *place) { p.doomed = max(p.doomed, t.rev) })
}

// condemnUnused decides the deletion of a ticket that nobody waits with and that
// was not given the turn.
func (l *lease) condemnUnused(t ticket) (condemned bool) {
	l.edit(t.key, func(p *place) {
		if condemned = p.waiting == 0 && t.rev > p.granted; condemned {
			p.doomed = max(p.doomed, t.rev)
		}
	})
	return condemned
}

// awaited reports whether t was left to others that wait, or are about to.
func (l *lease) awaited(t ticket) (awaited bool) {
	l.edit(t.key, func(p *place) { awaited = p.waiting > 0 && t.rev > max(p.granted, p.doomed) })
	return awaited
}

// forget notes that t is deleted.
func (l *lease) forget(t ticket) {
	l.edit(t.key, func(p *place) {
		p.removed = max(p.removed, t.rev)
		if p.granted <= t.rev {
			p.granted = 0
		}
	})
}
