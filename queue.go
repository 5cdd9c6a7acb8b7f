package concurrency

import (
	"context"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	v3 "go.etcd.io/etcd/client/v3"
)

// acquire joins the line and waits for the turn. A read at the revision of the header has
// proven the grant that it returns. An acquisition that fails leaves the line, unless other
// handles of the session stand there with the same ticket or were granted it.
//
// Its errors are
//
//   - rpctypes.ErrLeaseNotFound when the lease was gone before;
//   - [ErrSessionExpired] when the ticket or the lease is lost under way;
//   - [ErrLocked] for a join that does not wait;
//   - ctx's own;
//   - permanent ones of etcd, bare.
//
// When an error says that the lease is gone, the session has ended.
func (q queue) acquire(ctx context.Context, join joinTxn) (*grant, *pb.ResponseHeader, error) {
	need(ctx)
	l := q.lease()
	l.use()
	defer l.unuse()
	switch err := l.loss(); err {
	case nil:
	case ErrSessionExpired:
		return nil, nil, rpctypes.ErrLeaseNotFound // what etcd would say
	default:
		return nil, nil, err
	}
	q.enter(join)
	// From here on a key may stand in etcd. Whatever happens, exit comes after enter and
	// takes care of the key.
	g, v, err := q.stand(ctx, join)
	if err == nil {
		err = l.loss()
	}
	if err == ErrSessionExpired {
		v.mine = ticket{} // it is gone
	}
	if cleaned := q.exit(join, v.mine, err); err != nil {
		select {
		case <-cleaned:
		case <-time.After(cleanUpWait):
		}
	}
	if err == ErrSessionExpired {
		err = q.askForLease(ctx)
	}
	if err != nil {
		return nil, nil, err
	}
	return g, v.header, nil
}

// stand joins the line and waits until the ticket drawn is granted. Its view has that
// ticket after an error too.
func (q queue) stand(ctx context.Context, join joinTxn) (g *grant, v view, err error) {
	for {
		if v, err = q.join(ctx, join); err == nil {
			q.tellJoined(v)
		}
		if err == nil && v.ahead != (ticket{}) {
			v, err = q.wait(ctx, v)
		}
		doomed := false
		q.lease().seats.at(join.key, func(s *seat) {
			if doomed = v.mine.rev <= s.doomed; err == nil {
				g = s.grant(v.mine)
				q.tellGranted(g)
			}
		})
		switch {
		case err == nil && g != nil:
			return g, v, nil
		case err == nil || err == ErrSessionExpired && q.lease().loss() == nil && doomed:
			// Another handle has deleted this very ticket, or begun to: draw a new one.
		default:
			return nil, v, err
		}
	}
}

// join carries out the transaction. Its view has the ticket that was drawn or found, and a
// ticket ahead of that if there is one. join returns [ErrLocked] if the transaction must be
// alone and there is one. After an error the view has the ticket if one stands, without a
// revision if that is not known.
func (q queue) join(ctx context.Context, txn joinTxn) (v view, err error) {
	for {
		var found *mvccpb.KeyValue
		if v, found, err = q.joinOnce(ctx, txn); err != nil {
			return v, err
		}
		switch {
		case v.mine == ticket{} && txn.alone:
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
		doomed := false
		q.lease().seats.at(txn.key, func(s *seat) { doomed = v.mine.rev <= s.doomed })
		if !doomed {
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

// joinOnce sends the transaction until it is answered. A transaction that replaces the
// value of the session's key also returns that key, if it has found it.
func (q queue) joinOnce(ctx context.Context, txn joinTxn) (v view, found *mvccpb.KeyValue, err error) {
	l := q.lease()
	resp, err := ask(ctx, l, func(ctx context.Context) (*v3.TxnResponse, error) {
		resp, err := l.client.Txn(ctx).If(txn.unless...).Then(txn.then...).Else(txn.els...).Commit()
		if err != nil && !definite(err) { // called off, or not answered
			// A server may carry out a call much later that it had not read yet, or could
			// not commit yet. By then another call may have been answered and the lock have
			// been released again.
			look := func() { q.lookLater(txn.key) }
			l.seats.at(txn.key, func(s *seat) { s.miss(time.Now(), l.timeToLive(), look) })
		}
		return resp, err
	})
	if err != nil {
		return view{}, nil, err
	}
	v, found = txn.joined(resp)
	return v, found, nil
}

// setValue gives the session's key the value. It writes over what it has read and nothing
// else. A write that arrives late therefore overwrites nothing that was written meanwhile,
// for instance by a proclamation.
func (q queue) setValue(ctx context.Context, v view, found *mvccpb.KeyValue, value string) (view, error) {
	for l := q.lease(); string(found.Value) != value; {
		resp, err := ask(ctx, l, func(ctx context.Context) (*v3.TxnResponse, error) {
			return l.client.Txn(ctx).
				If(v3.Compare(v3.ModRevision(v.mine.key), "=", found.ModRevision)).
				Then(v3.OpPut(v.mine.key, value, v3.WithLease(q.session.id))).
				Else(v3.OpGet(v.mine.key)).Commit()
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
		// Somebody else has given the key another value. It is overwritten in the next
		// round.
		found = kvs[0]
	}
	return v, nil
}

// look shows, with one linearizable read, who stands directly ahead of mine. It returns
// [ErrSessionExpired] if mine does not stand in line any more.
//
// A serializable read at the revision of an event would not do. The server tells of a
// revision a moment before it shows that revision (End in
// server/storage/mvcc/watchable_store_txn.go).
func (q queue) look(ctx context.Context, mine ticket) (view, error) {
	resp, err := q.get(ctx, q.prefix, append(slices.Clip(newestTwo), v3.WithMaxCreateRev(mine.rev))...)
	if err != nil {
		return view{mine: mine}, err
	}
	v, stands := mine.seen(resp)
	if !stands {
		return v, ErrSessionExpired
	}
	return v, nil
}

// ownWatchDelay is how long a wait lasts before it watches its own key as well. Quick
// hand-overs are spared that watch. A lost key is heard of this much later.
const ownWatchDelay = 100 * time.Millisecond

// wait returns the first view that shows nobody ahead. It ends earlier for three reasons
// only:
//
//   - the ticket is gone, and wait returns [ErrSessionExpired];
//   - ctx, the client or the lease has ended;
//   - a look met a permanent error.
//
// Whatever else happens, it looks again. It watches two keys for their deletion.
//
// The key ahead is watched from now on, because the server serves a watch that starts in
// the past only every 100 ms (server/storage/mvcc/watchable_store.go). A deletion between
// the last look and the beginning of the watch would be missed. So a beginning that is
// newer than the last look calls for another look.
//
// The own key is watched from the revision after a look that has shown it. That leaves no
// gap. The 100 ms don't matter there.
func (q queue) wait(ctx context.Context, v view) (_ view, err error) {
	l, delay := q.lease(), time.NewTimer(ownWatchDelay)
	defer delay.Stop()
	var ahead, own *watcher
	defer func() {
		own.stop()
		// A session that has ended keeps none: etcd's own services open one for each call.
		if err == nil && l.ctx.Err() == nil {
			l.kept.keep(ahead, v.header.Revision)
		} else {
			ahead.stop()
		}
	}()
	for v.ahead != (ticket{}) {
		if ahead == nil || ahead.key != v.ahead.key {
			ahead.stop()
			ahead = q.watchAhead(ctx, v)
			q.tellWaiting(v)
		}
		var news v3.WatchResponse
		select {
		case news = <-ahead.heard():
		case news = <-own.heard():
		case <-delay.C:
			own = l.watch(ctx, v.mine.key, v.header.Revision+1, v3.WithFilterPut())
			continue
		case <-ctx.Done():
			return v, ctx.Err()
		case <-l.lost.Done():
			return v, l.loss()
		}
		// News at or before the revision of the last look tell nothing new.
		if missed(news, v.header.Revision) {
			if v, err = q.look(ctx, v.mine); err != nil {
				return v, err
			}
		}
	}
	return v, nil
}

// watchAhead watches the key ahead from now on, or goes on with the kept watch. The watch
// may be kept itself, and so does not end with ctx.
func (q queue) watchAhead(ctx context.Context, v view) *watcher {
	l := q.lease()
	if w := l.kept.take(v.ahead.key, v.header.Revision); w != nil {
		return w
	}
	return l.watch(context.WithoutCancel(ctx), v.ahead.key, 0, v3.WithFilterPut())
}

// leave gives the ownership back. It deletes the ticket, which nobody is granted again. It
// returns [ErrSessionExpired] when the ownership was lost before. Then the ticket was gone, or
// the lease is known to be lost, which leaves no header. After any other error the clean-up
// goes on to delete the ticket, because everybody behind it waits.
func (q queue) leave(ctx context.Context, t ticket) (*pb.ResponseHeader, error) {
	need(ctx)
	l := q.lease()
	l.use()
	defer l.unuse()
	l.seats.at(t.key, func(s *seat) { s.doom(t) })
	header, err := q.remove(ctx, t)
	dirty := false
	l.seats.at(t.key, func(s *seat) {
		if s.lose(t.rev); err != nil && err != ErrSessionExpired {
			s.doubt(time.Now())
			dirty = true
		}
	})
	if dirty {
		q.clean(t)
	}
	return header, err
}
