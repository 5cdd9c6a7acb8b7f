package concurrency

import (
	"context"
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
	if err == ErrSessionExpired && len(q.also) == 0 {
		v.mine = ticket{} // it is gone; of several keys some may be left
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
		v, err = q.join(ctx, join)
		if err == nil && len(v.blocking) > 0 {
			v, err = q.wait(ctx, v)
		}
		doomed := false
		q.lease().seats.at(join.key, func(s *seat) {
			if doomed = v.mine.rev <= s.doomed; err == nil {
				g = s.grant(v.mine)
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

// join carries out the transaction. Its view has the ticket that was drawn or found, and what
// blocks it. join returns [ErrLocked] if the transaction must be alone and something blocks it.
// After an error the view has the ticket if one stands, without a revision if that is not known.
func (q queue) join(ctx context.Context, txn joinTxn) (v view, err error) {
	for {
		var found *mvccpb.KeyValue
		if v, found, err = q.joinOnce(ctx, txn); err != nil {
			return v, err
		}
		switch {
		case v.mine != ticket{}:
		case txn.alone && len(v.blocking) > 0:
			return v, ErrLocked
		case txn.alone:
			// Others stand there and leave room. It is still there if nobody comes in between.
			txn = txn.ifAlone(v.header.Revision)
			continue
		default:
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
		if !doomed && found != nil {
			v, doomed, err = q.recognize(ctx, txn, v, found)
		}
		if !doomed {
			return v, err
		}
		// The key found is being deleted, by a call that has no answer yet. Make sure
		// of it, and draw a new ticket.
		if _, err := q.remove(ctx, v.mine); err != nil && err != ErrSessionExpired {
			return view{}, err
		}
	}
}

// recognize goes on with a ticket of the session's that a join has found. It gives the key the
// value of the join, or looks what blocks the ticket. It dooms a ticket that does not stand in
// all its lines.
func (q queue) recognize(
	ctx context.Context, txn joinTxn, v view, found *mvccpb.KeyValue,
) (_ view, doomed bool, err error) {
	if txn.replaces {
		v, err = q.setValue(ctx, v, found, txn.value)
		return v, false, err
	}
	v, err = q.look(ctx, v.mine)
	switch {
	case err == ErrSessionExpired:
		q.lease().seats.at(txn.key, func(s *seat) { s.doom(v.mine) })
		return v, true, nil
	case err == nil && txn.alone && len(v.blocking) > 0:
		return v, false, ErrLocked
	}
	return v, false, err
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

// look shows, with one linearizable read, what blocks mine. It returns [ErrSessionExpired] if
// mine does not stand any more, in any of its lines.
//
// A serializable read at the revision of an event would not do. The server tells of a
// revision a moment before it shows that revision (End in
// server/storage/mvcc/watchable_store_txn.go).
func (q queue) look(ctx context.Context, mine ticket) (view, error) {
	v, parts := view{mine: mine}, q.deciding(q.keys(mine.key))
	if !q.rule.shows() {
		parts = append(parts, q.own(mine.key)...)
	}
	kvs, header, err := q.read(ctx, parts, mine.rev)
	if err != nil {
		return v, err
	}
	v.header = header
	if !q.among(mine, kvs) {
		return v, ErrSessionExpired
	}
	v.blocking = q.rule.seen(q.prefix, mine, kvs)
	return v, nil
}

// ownWatchDelay is how long a wait lasts before it watches its own key as well. Quick
// hand-overs are spared that watch. A lost key is heard of this much later.
const ownWatchDelay = 100 * time.Millisecond

// wait returns the first view that shows that the turn has come. It ends earlier for three
// reasons only:
//
//   - the ticket is gone, and wait returns [ErrSessionExpired];
//   - ctx, the client or the lease has ended;
//   - a look met a permanent error.
//
// Whatever else happens, it looks again. It watches what blocks, and its own keys, for their
// deletion.
//
// What blocks is watched from now on, because the server serves a watch that starts in
// the past only every 100 ms (server/storage/mvcc/watchable_store.go). A deletion between
// the last look and the beginning of the watch would be missed. So a beginning that is
// newer than the last look calls for another look.
//
// Own keys are watched from the revision after a look that has shown them. That leaves no
// gap. The 100 ms don't matter there.
func (q queue) wait(ctx context.Context, v view) (_ view, err error) {
	l, delay := q.lease(), time.NewTimer(ownWatchDelay)
	defer delay.Stop()
	var ahead, own *watcher
	defer func() {
		own.stop()
		// A session that has ended keeps none: etcd's own services open one for each call.
		if err == nil && l.ctx.Err() == nil && q.rule.most < 2 {
			l.kept.keep(ahead, v.header.Revision)
		} else {
			ahead.stop()
		}
	}()
	for len(v.blocking) > 0 {
		if key, _ := q.watching(v); ahead == nil || ahead.key != key {
			ahead.stop()
			ahead = q.watchAhead(ctx, v)
		}
		var news v3.WatchResponse
		select {
		case news = <-ahead.heard():
			if !v.concerned(news) {
				continue
			}
		case news = <-own.heard():
		case <-delay.C:
			own = q.watchOwn(ctx, v.mine, v.header.Revision)
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

// watchAhead watches what blocks from now on, or goes on with the kept watch. The watch may be
// kept itself, and so does not end with ctx.
func (q queue) watchAhead(ctx context.Context, v view) *watcher {
	l := q.lease()
	key, opts := q.watching(v)
	// A watch of many keys is not kept, because it would tell of all who pass.
	if len(opts) == 0 {
		if w := l.kept.take(key, v.header.Revision); w != nil {
			return w
		}
	}
	return l.watch(context.WithoutCancel(ctx), key, 0, append(opts, v3.WithFilterPut())...)
}

// watching is what has to be watched to hear of the end of a ticket that blocks. Several of
// them are of the kind of the rule.
func (q queue) watching(v view) (key string, opts []v3.OpOption) {
	if len(v.blocking) == 1 {
		return v.blocking[0].key, nil
	}
	return q.prefix + q.rule.kind, []v3.OpOption{v3.WithPrefix()}
}

// watchOwn watches the keys of a ticket for their deletion, from the revision after rev, at
// which they stood.
func (q queue) watchOwn(ctx context.Context, t ticket, rev int64) *watcher {
	l, keys := q.lease(), q.keys(t.key)
	w := l.watch(ctx, t.key, rev+1, v3.WithFilterPut())
	for _, key := range keys[1:] {
		w.beside = append(w.beside,
			l.watches.watchInto(ctx, w.news, l.client, l.timeToLive(), key, rev+1, v3.WithFilterPut()))
	}
	return w
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
