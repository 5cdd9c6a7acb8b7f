package concurrency

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	v3 "go.etcd.io/etcd/client/v3"
)

// The way of a ticket has one function for each step: join draws it, wait follows it to the head,
// obtain has it granted, leave deletes it. participate is around these steps, and leaves no key behind
// whose acquisition has failed.

// acquire joins the line and waits for the turn. A read or a watch has proven the grant that it
// returns, at the revision of the header. An acquisition that fails leaves the line, unless other
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
func (q queue) acquire(ctx context.Context, txn joinTxn) (*grant, *pb.ResponseHeader, error) {
	var g *grant
	v, err := q.participate(ctx, txn, func() (v view, err error) {
		g, v, err = q.obtain(ctx, txn)
		return v, err
	})
	if err != nil {
		return nil, nil, err
	}
	return g, v.header, nil
}

// participate is what all have in common who join a line and wait there, as obtain does. The view of
// obtain has its ticket after an error too. If participate fails, it takes care of that ticket.
// For its errors see [queue.acquire].
func (q queue) participate(ctx context.Context, txn joinTxn, obtain func() (view, error)) (view, error) {
	need(ctx)
	q.lease().use()
	defer q.lease().unuse()
	if err := q.lossBefore(); err != nil {
		return view{}, err
	}
	v, err := q.within(txn, obtain)
	if err == ErrSessionExpired {
		err = q.askForLease(ctx)
	}
	return v, err
}

// within runs obtain between enter and exit. In between a key may come to stand in etcd. Whatever
// happens, exit takes care of the key.
func (q queue) within(txn joinTxn, obtain func() (view, error)) (v view, err error) {
	q.enter(txn)
	// A function of the trace may panic, or the client. Then nothing is known of the key, and exit
	// is told the same as of a call that was given up.
	v.mine, err = ticket{key: txn.key}, context.Canceled
	defer func() { q.exit(txn, v.mine, err) }()
	if v, err = obtain(); err == nil {
		// The turn may have come when the lease was already lost. The clock has the last word.
		err = q.lease().loss()
	}
	if err == ErrSessionExpired && q.also == nil {
		v.mine = ticket{} // it is gone, or goes with the lease; of several keys some may be left
	}
	return v, err
}

// obtain joins the line and waits until the ticket drawn is granted. Its view has that
// ticket after an error too.
func (q queue) obtain(ctx context.Context, txn joinTxn) (g *grant, v view, err error) {
	for {
		if v, err = q.join(ctx, txn); err == nil {
			q.tellJoined(v)
		}
		if err == nil && !v.turn() {
			v, err = q.wait(ctx, v)
		}
		doomed := false
		q.lease().seats.at(txn.key, func(s *seat) {
			// The question and the grant are one step under the mutex of the seats. No sibling can decide
			// the deletion in between.
			if doomed = v.mine.rev <= s.doomed; err == nil {
				if g = s.grant(v.mine); g != nil {
					g.claimed = false // the view has proven it
				}
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

// join carries out the transaction. Its view has the ticket that was drawn or found, and those
// ahead. join returns [ErrLocked] if the transaction must be alone and somebody is in the way.
// A join that was not answered leaves the view empty, because the seat has noted it. After any
// other error the view has the ticket that stands.
func (q queue) join(ctx context.Context, txn joinTxn) (v view, err error) {
	for {
		var found *mvccpb.KeyValue
		switch v, found, err = q.joinOnce(ctx, txn); {
		case err != nil:
			return v, err
		case v.mine != ticket{}:
		case v.rule.blocks(v.prefix, v.ahead):
			return view{}, ErrLocked
		default:
			// Others stand there and leave room. The room is still there if nobody joins before the next
			// transaction.
			txn = txn.ifAlone(v.header.Revision)
			continue
		}
		doomed := false
		q.lease().seats.at(txn.key, func(s *seat) { doomed = v.mine.rev <= s.doomed })
		if !doomed && found != nil {
			v, doomed, err = q.recognize(ctx, txn, v, found)
		}
		if !doomed {
			return v, err
		}
		// The key found is being deleted, by a call that has no answer yet. Make sure
		// of it, and draw a new ticket.
		if _, err := q.remove(ctx, v.mine); err != nil && err != ErrSessionExpired {
			return v, err
		}
	}
}

// recognize goes on with a ticket of the session's that a join has found. It looks who is ahead,
// and gives the key the value of the join. It dooms a ticket that does not stand in all its
// lines, or is gone.
func (q queue) recognize(
	ctx context.Context, txn joinTxn, v view, found *mvccpb.KeyValue,
) (_ view, doomed bool, err error) {
	if !v.near { // and it is not the head
		v, err = q.look(ctx, v.mine)
	}
	switch {
	case err == ErrSessionExpired:
		// Of several lines some may have a key left. Whoever was granted the ticket has lost it, so the
		// clean-up may delete the rest.
		q.lease().seats.at(txn.key, func(s *seat) {
			s.doom(v.mine)
			s.forget(v.mine.rev)
		})
		return v, true, nil
	case err == nil && txn.alone && !v.turn():
		return view{}, false, ErrLocked
	case err == nil && txn.replaces:
		v, err = q.setValue(ctx, v, found, txn.value)
	}
	return v, false, err
}

// joinOnce sends the transaction until it is answered. It also returns the key of the place if
// it has found one.
func (q queue) joinOnce(ctx context.Context, txn joinTxn) (v view, found *mvccpb.KeyValue, err error) {
	l := q.lease()
	resp, err := ask(ctx, l, func(ctx context.Context) (*v3.TxnResponse, error) {
		resp, err := l.client.Txn(ctx).If(txn.absent...).Then(txn.then...).Else(txn.els...).Commit()
		if err != nil && !definite(err) { // called off, or not answered
			// A server may carry out a call much later that it had not read yet, or could
			// not commit yet. By then another call may have been answered and the lock have
			// been released again.
			look := func() { q.lookLater(txn.key) }
			l.seats.at(txn.key, func(s *seat) { s.miss(time.Now(), l.patience(), look) })
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
		if v.turn() {
			v.header = resp.Header // at which the ticket owned, too; of those ahead it tells nothing
		}
		// The key has the value now, although found still has the old one.
		if resp.Succeeded {
			break
		}
		kvs := resp.Responses[0].GetResponseRange().Kvs
		// The key is gone, or another ticket has its name.
		if !v.mine.firstOf(kvs) {
			return v, ErrSessionExpired
		}
		// Somebody else has given the key another value. It is overwritten in the next
		// round.
		found = kvs[0]
	}
	return v, nil
}

// look shows, with one linearizable read, who stands ahead of mine. It returns
// [ErrSessionExpired] if mine does not stand any more, in any of its lines.
//
// A serializable read at the revision of an event would not do. The server tells of a
// revision a moment before it shows that revision (End in
// server/storage/mvcc/watchable_store_txn.go).
func (q queue) look(ctx context.Context, mine ticket) (view, error) {
	v, parts := view{rule: q.rule, prefix: q.prefix, mine: mine}, q.deciding(q.keys(mine.key))
	asked := len(parts)
	if !q.rule.shows() {
		parts = append(parts, q.ownParts(mine.key)...)
	}
	read, header, err := q.read(ctx, parts, mine.rev)
	if err != nil {
		return v, err
	}
	if v.header = header; !q.among(mine, read) {
		return v, ErrSessionExpired
	}
	v.takeIn(parts, read[:asked])
	return v, nil
}

// wait returns the first view in which the turn has come. It ends earlier for three reasons
// only:
//
//   - the ticket is gone, and wait returns [ErrSessionExpired];
//   - ctx, the client or the lease has ended;
//   - a look met a permanent error.
//
// Whatever else happens, it looks again.
//
// Near the head it follows the line by one watch, which proves the turn. See [view.hear].
// Otherwise it watches its own keys, and the ticket whose end may bring it near. When that one
// goes, it looks. It may be near then, and one watch of the line takes the place of the other
// two. If it is not, it watches the next such ticket.
func (q queue) wait(ctx context.Context, v view) (_ view, err error) {
	l := q.lease()
	var line, own, far *watcher
	// Each kept watch is told of each release. So a session that began its wait far back keeps none.
	short := v.near
	defer func() {
		own.stop()
		far.stop()
		if err == nil && short {
			q.keep(line, v.header.Revision)
		} else {
			line.stop()
		}
	}()
	for told := (ticket{}); !v.turn(); {
		told = q.tellWaiting(v, told)
		switch {
		case v.follows() && line == nil:
			own.stop()
			far.stop()
			line, _ = q.watchLine(v.header.Revision)
			own, far = nil, nil
		case !v.follows() && (far == nil || far.key != v.awaited().key):
			if own == nil {
				own = q.watchOwn(ctx, v.mine, v.header.Revision)
			}
			far.stop()
			far = l.watch(ctx, v.awaited().key, 0, v3.WithFilterPut())
		}
		var news v3.WatchResponse
		select {
		case news = <-line.heard():
		case news = <-own.heard():
		case news = <-far.heard():
		case <-ctx.Done():
			return v, ctx.Err()
		case <-l.lost.Done():
			return v, l.loss()
		}
		switch gone, stale := v.hear(news); {
		case gone:
			return v, ErrSessionExpired
		// An orphaned session has no deadline. Its lease may have ended before a late watch tells.
		case stale, v.turn() && l.ctx.Err() != nil:
			if v, err = q.look(ctx, v.mine); err != nil {
				return v, err
			}
		}
	}
	return v, nil
}

// watchLine watches the deletions in the line from now on, or goes on with the kept watch, and
// reports which. Its user knows the line up to the revision rev. The watch may be kept, and so
// does not end with the caller's context.
//
// It begins with the present, because the server serves a watch that starts in the past only
// every 100 ms (server/storage/mvcc/watchable_store.go).
func (q queue) watchLine(rev int64) (w *watcher, kept bool) {
	l := q.lease()
	if w = l.kept.take(q.prefix, rev); w != nil {
		return w, true
	}
	return l.watch(l.client.Ctx(), q.prefix, 0, v3.WithPrefix(), v3.WithFilterPut()), false
}

// keep keeps a watch of the line for the session's next use of it. Its user knows the line up
// to the revision rev. A session that has ended keeps none, because etcd's own services open and
// orphan a session for each call.
func (q queue) keep(w *watcher, rev int64) {
	if l := q.lease(); w != nil && l.ctx.Err() == nil {
		l.kept.keep(w, rev)
	} else {
		w.stop()
	}
}

// watchOwn watches the keys of a ticket for their deletion, from the revision after rev, at
// which they stood. That leaves no gap. The 100 ms don't matter here.
func (q queue) watchOwn(ctx context.Context, t ticket, rev int64) *watcher {
	l, keys := q.lease(), q.keys(t.key)
	w := l.watch(ctx, t.key, rev+1, v3.WithFilterPut())
	for _, key := range keys[1:] {
		w.beside = append(w.beside,
			l.watches.watchInto(ctx, w.news, l.client, l.patience(), key, rev+1, v3.WithFilterPut()))
	}
	return w
}

// leave gives the ownership back. It deletes the ticket, which nobody is granted again. It
// returns [ErrSessionExpired] when the ownership was lost before. Then the ticket was gone, or
// the lease is known to be lost, which leaves no header. After any other error the clean-up
// goes on to delete the ticket, because everybody behind it waits.
func (q queue) leave(ctx context.Context, t ticket) (*pb.ResponseHeader, error) {
	l := q.lease()
	l.use()
	defer l.unuse()
	// The decision comes before the call: from here on no sibling is granted the ticket.
	l.seats.at(t.key, func(s *seat) { s.doom(t) })
	header, err := q.remove(ctx, t)
	failed := err != nil && err != ErrSessionExpired
	// The grant leaves the seat in any case. The handle has a reference of its own, by which it can
	// repeat the release.
	l.seats.at(t.key, func(s *seat) {
		if s.forget(t.rev); failed {
			s.doubt(time.Now())
		}
	})
	if failed {
		q.clean(t)
	}
	return header, err
}
