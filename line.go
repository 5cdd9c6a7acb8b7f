package concurrency

import (
	"context"
	"errors"
	"strconv"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	v3 "go.etcd.io/etcd/client/v3"
)

// queue is the line under a prefix as one session stands in it. A session has one place in
// a line, whichever handles use it. See [seat].
type queue struct {
	session *Session
	prefix  string
}

// newQueue adds one "/" to the name, as upstream's package does.
func newQueue(s *Session, name string) queue {
	if s == nil {
		panic("concurrency: nil session")
	}
	return queue{session: s, prefix: name + "/"}
}

// key is the name of the session's place. Upstream's package has the same name, so that
// processes on either package stand in one line.
func (q queue) key() string { return q.prefix + strconv.FormatInt(int64(q.session.id), 16) }

// made panics for the queue of a zero Mutex or Election.
func (q queue) made() {
	if q.session == nil {
		panic("concurrency: a Mutex or Election that its constructor did not return")
	}
}

// joinTxn is the transaction by which the session joins the line.
func (q queue) joinTxn(value string) joinTxn {
	q.made()
	return newJoin(q.prefix, q.key(), value, q.session.id)
}

// lease is where the state of the session lies. A session that NewSession did not return
// has none.
func (q queue) lease() *lease {
	q.made()
	if q.session.lease == nil {
		panic("concurrency: a session that NewSession did not return")
	}
	return q.session.lease
}

// need panics if the caller has given no context.
func need(ctx context.Context) {
	if ctx == nil {
		panic("concurrency: nil context")
	}
}

// ask makes a call that is of no use without the lease, see [repeat]. It ends without an
// answer when ctx, the client or the lease has ended. It then returns ctx's error or the
// error of [lease.loss]. If the answer is that the lease is gone, the session has ended.
func ask[R any](ctx context.Context, l *lease, call func(context.Context) (R, error)) (R, error) {
	answer, err := repeatTold(ctx, l.lost, l.timeToLive(), l.trace, call)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		err = ctx.Err()
	// The loss is told, and not the error that the call has met because of it.
	case l.loss() != nil:
		err = l.loss()
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		l.gone()
	}
	return answer, err
}

// get is a linearizable read.
func (q queue) get(ctx context.Context, key string, opts ...v3.OpOption) (*v3.GetResponse, error) {
	l := q.lease()
	return ask(ctx, l, func(ctx context.Context) (*v3.GetResponse, error) {
		return l.client.Get(ctx, key, opts...)
	})
}

// find returns the ticket that stands under the key, or none.
func (q queue) find(ctx context.Context, key string) (ticket, error) {
	resp, err := q.get(ctx, key, v3.WithKeysOnly())
	if err != nil || len(resp.Kvs) == 0 {
		return ticket{}, err
	}
	return ticketOf(resp.Kvs[0]), nil
}

// remove deletes the ticket, and never a later one of the same name. The deletion was
// decided before. The ticket may be gone already. After a repeated call, an earlier call
// may have deleted it, and the work is done. After a single call, it was lost before, and
// remove returns [ErrSessionExpired].
func (q queue) remove(ctx context.Context, t ticket) (*pb.ResponseHeader, error) {
	l := q.lease()
	// calls counts also those that were sent beside the first, because each may have
	// deleted the ticket.
	var calls atomic.Int64
	resp, err := ask(ctx, l, func(ctx context.Context) (*v3.TxnResponse, error) {
		calls.Add(1)
		return l.client.Txn(ctx).If(t.stands()).Then(v3.OpDelete(t.key)).Commit()
	})
	switch {
	case err != nil:
		return nil, err
	case !resp.Succeeded && calls.Load() == 1:
		return resp.Header, ErrSessionExpired
	}
	return resp.Header, nil
}

// askForLease finds out whether the lease lives, after its key was seen to be gone. If the
// lease is gone too, the session has ended when askForLease returns [ErrSessionExpired]. It
// returns ctx's error if ctx ends before the answer comes.
func (q queue) askForLease(ctx context.Context) error {
	l := q.lease()
	if l.loss() != nil {
		return ErrSessionExpired
	}
	// The answer may also be ErrLeaseNotFound, of which ask takes care.
	resp, err := ask(ctx, l, func(ctx context.Context) (*v3.LeaseTimeToLiveResponse, error) {
		return l.client.TimeToLive(ctx, l.id)
	})
	switch {
	case err == nil && resp.TTL < 0: // what the server says of a lease that it does not have
		l.gone()
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return ErrSessionExpired
}
