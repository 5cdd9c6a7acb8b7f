package concurrency

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	v3 "go.etcd.io/etcd/client/v3"
)

// This file names the keys of a participant, and has its calls that read, delete and ask. What the
// answers mean is decided in key.go. Who may join, own and delete is decided in seat.go. queue.go puts
// the calls in their order.

// queue is the line under a prefix as one participant stands in it. A participant may stand
// in several lines, and then wants to own in all of them at once. A session has one place in
// the lines, whichever handles use it, unless the place has a number. See [seat].
// A queue is a value: its methods change nothing in it. What changes lies in the seats of the lease.
type queue struct {
	session *Session
	prefix  string
	also    *further // nil: no further lines
	rule    rule
	number  string // tells the places of a session apart; "" for the one that its handles share
}

// further are the further lines of a participant, by their prefixes. They lie behind a pointer,
// so that a Mutex stays comparable, as upstream's is.
type further struct{ prefixes []string }

func (f *further) all() []string {
	if f == nil {
		return nil
	}
	return f.prefixes
}

// newQueue adds one "/" to the name, as upstream's package does.
func newQueue(s *Session, name string) queue {
	if s == nil {
		panic("concurrency: nil session")
	}
	return queue{session: s, prefix: name + "/"}
}

// numbered is a place of its own in the line, which follows the rule. Its number is drawn at
// random, because other processes may have used the lease before.
func (q queue) numbered(r rule) queue {
	q.rule = r
	q.number = "/" + strconv.FormatUint(rand.Uint64(), 16)
	return q
}

// key is the name of the place. Upstream's package has the same name for the place that the
// handles of a session share, so that processes on either package stand in one line.
func (q queue) key() string {
	return q.prefix + q.rule.kind + strconv.FormatInt(int64(q.session.id), 16) + q.number
}

// made panics for the queue of a zero value.
func (q queue) made() {
	if q.session == nil {
		// Without this, the program would meet a nil pointer deep in the package.
		panic("concurrency: a lock or an election that its constructor did not return")
	}
}

// keys are those of the place in all its lines. key is the first of them.
func (q queue) keys(key string) []string {
	all := []string{key}
	// What follows the prefix is the same in all lines, so one key names the place in each of them.
	for _, prefix := range q.also.all() {
		all = append(all, prefix+strings.TrimPrefix(key, q.prefix))
	}
	return all
}

// tickets are those that stand for t. One transaction puts them, so they have one number.
func (q queue) tickets(t ticket) (all []ticket) {
	for _, key := range q.keys(t.key) {
		all = append(all, ticket{key, t.rev})
	}
	return all
}

// deciding is what has to be read to know what blocks the place.
func (q queue) deciding(own []string) (parts []part) {
	for _, prefix := range append([]string{q.prefix}, q.also.all()...) {
		// The line of a name has the keys of the names within it, too.
		within := 0
		for _, key := range own {
			if strings.HasPrefix(key, prefix) {
				within++
			}
		}
		// So many of the newest keys may be the participant's own. They must not take the room of those
		// that stand ahead.
		parts = append(parts, q.rule.deciding(prefix, within)...)
	}
	return parts
}

// joinTxn is the transaction by which the participant joins its lines.
func (q queue) joinTxn(value string) joinTxn {
	q.made()
	// The parts take the own keys into account, because the transaction puts them before it reads.
	own := q.keys(q.key())
	return newJoin(own, q.prefix, value, q.session.id, q.rule, q.deciding(own))
}

// never is a comparison that is false. No create revision is negative. The server refuses a
// comparison without a key.
func (q queue) never() v3.Cmp {
	q.made()
	// It stands for the guard of a handle that owns nothing. Whoever uses it gets a refusal of the
	// write, and not an error.
	return v3.Compare(v3.CreateRevision(q.key()), "<", 0)
}

// lockTxn is the transaction by which a lock joins its lines. Its keys tell whose they are.
func (q queue) lockTxn() joinTxn {
	q.made()
	return q.joinTxn(q.session.identity)
}

// lease is where the state of the session lies. A session that NewSession did not return
// has none.
func (q queue) lease() *lease {
	q.made()
	if q.session.lease == nil {
		// Such a session has an ID at most. Constructors take it, because they make no call.
		panic("concurrency: a session that NewSession did not return")
	}
	return q.session.lease
}

// lossBefore is [lease.loss] for who has not begun yet. It says of a lost lease what etcd would say.
func (q queue) lossBefore() error {
	err := q.lease().loss()
	// The caller has not joined yet, so no key of it can be gone.
	if err == ErrSessionExpired {
		err = rpctypes.ErrLeaseNotFound
	}
	return err
}

// ask makes a call that is of no use without the lease, see [repeat]. It ends without an
// answer when ctx, the client or the lease has ended. It then returns ctx's error or the
// error of [lease.loss]. If the answer is that the lease is gone, the session has ended.
func ask[R any](ctx context.Context, l *lease, call func(context.Context) (R, error)) (R, error) {
	// The patience is the TTL. A call that reaches a member later than that is of no use.
	answer, err := repeat(ctx, l.lost, l.patience(), l.trace, call)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		err = ctx.Err()
	// The loss is told, and not the error that the call has met because of it.
	case l.loss() != nil:
		err = l.loss()
	// The server has answered a put or a question about the lease.
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		l.heardGone()
	}
	return answer, err
}

// get is a linearizable read.
func (q queue) get(ctx context.Context, key string, opts ...v3.OpOption) (*v3.GetResponse, error) {
	l := q.lease()
	return ask(ctx, l, func(ctx context.Context) (*v3.GetResponse, error) {
		return keysOnce(l.client).Get(ctx, key, opts...)
	})
}

// read reads the parts at one revision, up to the tickets of the revision upTo. It is a
// linearizable read.
func (q queue) read(ctx context.Context, parts []part, upTo int64) ([][]*mvccpb.KeyValue, *pb.ResponseHeader, error) {
	if len(parts) == 1 {
		resp, err := q.get(ctx, parts[0].from, parts[0].upTo(upTo)...)
		if err != nil {
			return nil, nil, err
		}
		return [][]*mvccpb.KeyValue{resp.Kvs}, resp.Header, nil
	}
	l := q.lease()
	// Several parts are read in one transaction, so that all are of one revision.
	resp, err := ask(ctx, l, func(ctx context.Context) (*v3.TxnResponse, error) {
		return l.client.Txn(ctx).Then(reads(parts, upTo)...).Commit()
	})
	if err != nil {
		return nil, nil, err
	}
	return keysOf(resp.Responses), resp.Header, nil
}

// ownParts are the parts with the keys of the place, of which key is the first.
func (q queue) ownParts(key string) (parts []part) {
	for _, key := range q.keys(key) {
		parts = append(parts, part{from: key})
	}
	return parts
}

// among reports whether the ticket stands among the keys that were read, in all its lines.
func (q queue) among(t ticket, read [][]*mvccpb.KeyValue) bool {
	kvs := slices.Concat(read...)
	// A place in several lines stands only while all its keys do. A stranger may delete one of them.
	for _, t := range q.tickets(t) {
		if !t.among(kvs) {
			return false
		}
	}
	return true
}

// find returns the ticket that stands under the key, or none. It also finds a ticket that
// stands only in some of its lines.
func (q queue) find(ctx context.Context, key string) (ticket, error) {
	read, _, err := q.read(ctx, q.ownParts(key), 0)
	// The keys that one transaction has put have one number. So any of them tells the ticket.
	if kvs := slices.Concat(read...); err == nil && len(kvs) > 0 {
		return ticket{key, kvs[0].CreateRevision}, nil
	}
	return ticket{}, err
}

// remove deletes the ticket, and never a later one of the same name. The deletion was
// decided before. The ticket may be gone already. After a repeated call, an earlier call
// may have deleted it, and the work is done. After a single call, it was lost before, and
// remove returns [ErrSessionExpired].
func (q queue) remove(ctx context.Context, t ticket) (*pb.ResponseHeader, error) {
	l := q.lease()
	present, then, els := q.removal(t)
	// calls counts also those that were sent beside the first, because each may have
	// deleted the ticket.
	var calls atomic.Int64
	resp, err := ask(ctx, l, func(ctx context.Context) (*v3.TxnResponse, error) {
		calls.Add(1)
		return l.client.Txn(ctx).If(present...).Then(then...).Else(els...).Commit()
	})
	switch {
	case err != nil:
		return nil, err
	// Nothing else that was sent could have deleted the ticket, so it was gone before.
	case !resp.Succeeded && calls.Load() == 1:
		return resp.Header, ErrSessionExpired
	}
	return resp.Header, nil
}

// removal is the transaction that deletes the ticket. It succeeds if the ticket stood in all
// its lines. Otherwise it deletes what there is.
func (q queue) removal(t ticket) (present []v3.Cmp, then, els []v3.Op) {
	for _, t := range q.tickets(t) {
		present = append(present, t.stands())
		then = append(then, v3.OpDelete(t.key))
		// Of several keys some may be gone. Each of the others is deleted for itself, and is compared
		// with its own ticket again.
		if q.also != nil {
			els = append(els, v3.OpTxn([]v3.Cmp{t.stands()}, []v3.Op{v3.OpDelete(t.key)}, nil))
		}
	}
	return present, then, els
}

// askForLease finds out whether the lease lives, after its key was seen to be gone. If the
// lease is gone too, the session has ended when askForLease returns [ErrSessionExpired]. It
// returns ctx's error if ctx ends before the answer comes.
func (q queue) askForLease(ctx context.Context) error {
	l := q.lease()
	// The loss is known already, so no call is needed.
	if l.loss() != nil {
		return ErrSessionExpired
	}
	// The answer may also be ErrLeaseNotFound, of which ask takes care.
	resp, err := ask(ctx, l, func(ctx context.Context) (*v3.LeaseTimeToLiveResponse, error) {
		return leasesOnce(l.client).TimeToLive(ctx, l.id)
	})
	switch {
	case err == nil && resp.TTL < 0: // what the server says of a lease that it does not have
		l.heardGone()
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return ErrSessionExpired
}
