package concurrency

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	v3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// This file sends what an attempt has come to, and takes in the answer. An example is an
// attempt at SerializableSnapshot and at revision 10. It has read the key a, and the range [q/,
// q0), which has the key q/1 alone. It puts the key b. It comes to this transaction:
//
//	If     the guards
//	       mod([q/, q0)) < 11    no key of the range was put since
//	       mod(a) = 3
//	       mod(b) < 11           a blind write; at the other levels it is not compared
//	       mod(q/1) = 7          it was not deleted either
//	Then   put b
//	Else   the guards by themselves
//	       get [q/, q0), get a   for the next attempt
//
// The servers alone decide about a commit. What happens in this process before it, see
// contention.go, saves proposals in vain.

// compiled is the transaction that an attempt comes to.
type compiled struct {
	cmps      []v3.Cmp
	then, els []v3.Op
	back      []want // what els reads back, after the guards' result
}

// compile changes nothing. What it gives depends on the options, the level, what was read, asked for
// and written, and the revision of the snapshot. The order is always the same:
//
//   - the guards come first;
//   - comparisons and reads of ranges come next, then those of keys, each in their order;
//   - writes stand in the order in which their keys were first written.
//
// The Else branch compares the guards by themselves, which tells them from a conflict.
func (a *attempt) compile() compiled {
	c := compiled{cmps: slices.Concat(a.options.guards, a.checks())}
	if len(a.options.guards) > 0 {
		c.els = []v3.Op{v3.OpTxn(a.options.guards, nil, nil)}
	}
	for _, w := range a.writes {
		c.then = append(c.then, a.ops(w)...)
	}
	// The other levels have no use for values of one revision. Their next attempt reads anew.
	if a.level.snapshot {
		// What is read back only saves calls. So it never makes the transaction larger. Ranges that lie in
		// a range that was read are read back each, and compared together.
		back, room := a.back(), max(len(c.cmps)-len(a.options.guards), len(c.then))
		c.back = back[:min(len(back), room)]
		for _, w := range c.back {
			c.els = append(c.els, w.op(a.chunk))
		}
	}
	// An attempt at RepeatableReads that only reads comes here, and an empty attempt.
	if len(c.then)+len(c.els) == 0 {
		c.els = append(c.els, linearizable(c.cmps))
	}
	return c
}

// checks are the comparisons by which the servers tell a conflict. A range has no phantoms if
// nothing in it is newer than the read, and if no key that was seen is gone. A comparison of a
// range knows nothing of keys that are gone. So there is one for each key, too.
func (a *attempt) checks() (cmps []v3.Cmp) {
	byKey := map[string]v3.Cmp{}
	if a.level.checkReads {
		for _, s := range a.reads.spans {
			cmps = append(cmps, unchanged(s.interval, s.rev))
		}
	}
	// An attempt that has read nothing conflicts with nothing, although the attempt before it
	// may have left a header.
	if a.level.checkWrites && !a.reads.empty() {
		for _, w := range a.writes {
			switch s := a.reads.spanAt(w.key); {
			case w.end != "":
				cmps = append(cmps, unchanged(w.interval(), a.header.Revision))
			case s == nil: // otherwise the range is checked
				byKey[w.key] = v3.Compare(v3.ModRevision(w.key), "<", a.header.Revision+1)
			}
		}
	}
	if a.level.checkReads {
		// A key that is read and written has a comparison from above, which this one replaces.
		// This one is false after a deletion, too, because etcd compares a missing key as
		// revision 0.
		for key, kv := range a.reads.seen() {
			byKey[key] = v3.Compare(v3.ModRevision(key), "=", kv.GetModRevision())
		}
	}
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		cmps = append(cmps, byKey[key])
	}
	return cmps
}

// unchanged is true if no key of the interval was written after the revision. It is true of an
// empty interval, too.
func unchanged(iv interval, rev int64) v3.Cmp {
	return v3.Compare(v3.ModRevision(iv.first()), "<", rev+1).WithRange(iv.end)
}

// back is what a conflict's answer is to say, for the next attempt: the keys that were read and
// the ranges that were asked for. The ranges are read as they were asked for, and not as they
// were found. The first n keys may be other keys by then. [attempt.conflict] takes the answers
// in this order.
func (a *attempt) back() (wants []want) {
	for _, begin := range slices.Sorted(maps.Keys(a.asked)) {
		wants = append(wants, a.asked[begin])
	}
	return append(wants, a.besideRanges()...)
}

// besideRanges are the keys that were read and lie in no range that was read, in order.
func (a *attempt) besideRanges() (wants []want) {
	for _, key := range slices.Sorted(maps.Keys(a.reads.keys)) {
		if a.reads.spanAt(key) == nil {
			wants = append(wants, want{interval: interval{begin: key}})
		}
	}
	return wants
}

// linearizable is what has to stand in the Else branch of a transaction without writes and
// reads. Without it any member answers, however far it lags behind (IsTxnSerializable in
// server/etcdserver/txn/txn.go). With a read in it the member catches up first. If there is
// no key to read, an empty transaction stands in its place and goes through the log.
func linearizable(cmps []v3.Cmp) v3.Op {
	if len(cmps) == 0 {
		return v3.OpTxn(nil, nil, nil)
	}
	return v3.OpGet(string(cmps[0].KeyBytes()))
}

// commit sends the transaction. If a comparison failed, it leaves the snapshot for the next
// attempt and returns errConflict.
func (a *attempt) commit() (*v3.TxnResponse, error) {
	if a.committedByReads() {
		return &v3.TxnResponse{Header: a.header, Succeeded: true}, nil
	}
	c := a.compile()
	if err := a.withinLimit(c); err != nil {
		return nil, err
	}
	// A contest may make the commit wait, which counts as a pause. The news are of type any,
	// because contention.go knows nothing of snapshots.
	begin := time.Now()
	news, _ := a.contender.enter(a.options.ctx, a.contested()).(snapshot)
	// A panic in the client's layers must not keep the others from committing.
	defer a.contender.leave()
	a.met.Paused += time.Since(begin)
	// The commit would be in vain, unless a key that was read as absent has come and gone again. The
	// news serve the next attempt as the answer to a conflict would.
	if a.outdated(news) {
		if a.snapshot = (snapshot{}); a.level.snapshot {
			a.snapshot = news
		}
		a.contender.returns = true
		return nil, errConflict
	}
	// A call that the client refuses, because the context has ended, would look like a commit
	// without an answer.
	if err := a.ended(); err != nil {
		return nil, err
	}
	begin = time.Now()
	resp, err := a.send(c)
	a.met.Committing = time.Since(begin)
	switch {
	case err != nil:
		return nil, err
	case resp.Succeeded:
		// stateAfter copies the read set. It is called only where others contend.
		a.contender.won(func() any { return a.stateAfter(resp) })
		return resp, nil
	}
	return nil, a.conflict(resp, c.back)
}

// committedByReads reports whether there is nothing to send. A snapshot was the latest state of the
// store at some moment since NewSTM began, whatever the snapshot came from. So the transaction stands
// at that revision in the order of all. If reads are not checked, the last read is as good as a
// commit. Whether guards hold can only be told by a call.
func (a *attempt) committedByReads() bool {
	return len(a.writes) == 0 && !a.reads.empty() && len(a.options.guards) == 0 &&
		(a.level.snapshot || !a.level.checkReads)
}

// withinLimit compares the transaction with the limit that the caller has set. The servers
// count what is nested on top of the longest list around it. Here the guards in the Else branch
// are nested (checkTxnRequest in server/etcdserver/api/v3rpc/key.go). Without a limit of the
// caller's nothing is refused here, because this process does not know what the servers allow.
func (a *attempt) withinLimit(c compiled) error {
	guards, limit := len(a.options.guards), a.options.maxOps
	if limit == 0 || max(len(c.cmps), len(c.then), len(c.els))+guards <= limit {
		return nil
	}
	return fmt.Errorf("concurrency: a commit of %d writes, %d checked keys and ranges and %d guards is over the limit of %d that WithMaxTxnOps has set: %w",
		len(c.then), len(c.cmps)-guards, guards, limit, rpctypes.ErrTooManyOps)
}

// send sends the transaction once, or patiently if it writes nothing.
func (a *attempt) send(c compiled) (*v3.TxnResponse, error) {
	txn := a.client.Txn(a.options.ctx).If(c.cmps...).Then(c.then...).Else(c.els...)
	// What writes nothing may be repeated. An empty transaction has no key with which patiently
	// could try whether the fault has passed, so it is sent once.
	if len(a.writes) == 0 && len(c.cmps) > 0 {
		resp, err := a.patiently(string(c.cmps[0].KeyBytes()), txn.Commit)
		if err != nil {
			err = a.blame(err)
		}
		return resp, err
	}
	resp, err := txn.Commit()
	// After these errors it is certain that nothing was committed. They are told as they are.
	if err == nil || definite(err) || unsent(err) {
		return resp, err
	}
	switch cause := a.blame(err); {
	// Where nothing was written, no outcome is unknown.
	case len(a.writes) == 0:
		return nil, cause
	case errors.Is(err, cause):
		return nil, fmt.Errorf("%w: %w", ErrCommitUnknown, err)
	// err does not tell that the abort context has ended. The caller may look for either.
	default:
		return nil, fmt.Errorf("%w: %w: %w", ErrCommitUnknown, cause, err)
	}
}

// unsent reports whether the client itself has refused to send a call, because the call is
// larger than the client's limit. gRPC has the same code for an answer that is too large.
// The call may have been carried out then. Only the text tells the two apart. Any other
// text than expected makes the outcome unknown.
func unsent(err error) bool {
	s := status.Convert(err)
	return s.Code() == codes.ResourceExhausted && strings.Contains(s.Message(), "trying to send message larger than max")
}

// contested is what transactions contend over: keys that are read, checked and written, and
// ranges that are read and in which something is written. A range goes by its begin. A
// transaction that only reads makes no other conflict.
func (a *attempt) contested() (names []string) {
	if !a.level.checkReads {
		return nil
	}
	for _, w := range a.writes {
		if _, read := a.reads.keys[w.key]; read {
			names = append(names, w.key)
		}
		for _, s := range a.reads.spans {
			// Two intervals overlap where one of them has the begin of the other.
			if s.has(w.key) || w.end != "" && w.interval().has(s.begin) {
				names = append(names, s.begin)
			}
		}
	}
	return slices.Compact(names)
}

// moved reports whether what is contested has changed since, as far as the snapshot knows.
func (a *attempt) moved(name string) bool {
	if kv, read := a.reads.keys[name]; read {
		now, _ := a.known.get(name)
		return now.GetModRevision() != kv.GetModRevision()
	}
	mine, now := a.reads.spanAt(name), a.known.spanAt(name)
	if mine == nil || now == nil {
		// The answer does not tell. A contest in vain costs others a wait, and nothing else.
		return true
	}
	// A limit may have ended either of them earlier. Only what both show can be compared.
	both := interval{name, earlier(mine.end, now.end)}
	return !slices.EqualFunc(mine.cut(both).kvs, now.cut(both).kvs, func(x, y *mvccpb.KeyValue) bool {
		return string(x.Key) == string(y.Key) && x.ModRevision == y.ModRevision
	})
}

// outdated reports whether the news say that a key that was read has changed since.
func (a *attempt) outdated(news snapshot) bool {
	// News that are no newer than the own reads may tell of an older value, and change nothing.
	if news.header == nil || a.reads.empty() || news.header.Revision <= a.header.Revision {
		return false
	}
	return len(differences(&a.reads, &news.known)) > 0
}

// stateAfter is the state in which the attempt leaves the keys that it touched. resp is the answer to
// its commit. What the attempt read was unchanged. What it wrote has the commit's revision. A blind
// write leaves a key whose create revision is not known. A Put with options may leave another value
// than it was given.
func (a *attempt) stateAfter(resp *v3.TxnResponse) snapshot {
	known := newFacts()
	// Of ranges, only the keys that were seen in them are handed on. An attempt that reads the
	// range has to ask the servers.
	maps.Insert(known.keys, a.reads.seen())
	for _, w := range a.writes {
		old, read := known.keys[w.key]
		switch {
		case w.end != "":
			for key := range known.keys {
				// The deletion leaves out a key that is written by itself, see ops.
				if w.interval().has(key) && a.written[key] == nil {
					known.keys[key] = nil
				}
			}
		case w.deletes():
			known.keys[w.key] = nil
		// A key that lies in a range that was read, and was not seen there, did not exist. So
		// old is known, and nil.
		case w.plain && (read || a.reads.spanAt(w.key) != nil):
			known.keys[w.key] = succeeding(old, w, resp.Header.Revision)
		default:
			delete(known.keys, w.key)
		}
	}
	return snapshot{resp.Header, known}
}

// succeeding is what a Put without options makes of a key. The entry has no lease, because such
// a Put takes the lease off the key. A key that did not exist, whose old is nil, begins with
// version 1.
func succeeding(old *mvccpb.KeyValue, w *write, rev int64) *mvccpb.KeyValue {
	kv := w.entry()
	kv.ModRevision, kv.CreateRevision, kv.Version = rev, cmp.Or(old.GetCreateRevision(), rev), old.GetVersion()+1
	return kv
}

// makeWay makes way for others if that is due, and returns what the next attempt starts with.
// After a pause, the next attempt reads anew what the answer has said, see [attempt.refresh].
func (a *attempt) makeWay() carried {
	begin := time.Now()
	a.madeWay = a.contender.makeWay(a.options.ctx)
	a.paused = time.Since(begin)
	return a.carried
}

// conflict takes from the answer of a commit that failed what the next attempt starts with.
func (a *attempt) conflict(resp *v3.TxnResponse, back []want) error {
	answers := resp.Responses
	if len(a.options.guards) > 0 {
		// A former owner's guard stays false, so another attempt would be in vain. The first
		// answer is that of the guards by themselves.
		if !answers[0].GetResponseTxn().Succeeded {
			return ErrGuardFailed
		}
		answers = answers[1:]
	}
	a.snapshot = snapshot{}
	contested := a.contested()
	if a.level.snapshot { // otherwise the answer has no values
		a.snapshot = snapshot{resp.Header, newFacts()}
		for i, answer := range ranges(answers) {
			a.known.learn(back[i], resp.Header.Revision, answer)
		}
		// What has not changed needs no contest.
		contested = slices.DeleteFunc(contested, func(name string) bool { return !a.moved(name) })
	}
	a.contender.lost(contested, a.snapshot)
	return errConflict
}

// ops are the operations of a write. A server refuses to put a key that the same transaction
// deletes with a range. So the deletion leaves out the keys that are written by themselves. The
// deletion of [a, z) beside a Put of m is that of [a, m) and that of [m\x00, z).
func (a *attempt) ops(w *write) (ops []v3.Op) {
	if w.end == "" {
		return []v3.Op{w.op}
	}
	begin := w.interval().first()
	for _, key := range slices.Sorted(maps.Keys(a.written)) {
		if !w.interval().has(key) {
			continue
		}
		if begin < key {
			ops = append(ops, v3.OpDelete(begin, v3.WithRange(key)))
		}
		begin = after(key)
	}
	if w.end == unbounded || begin < w.end {
		ops = append(ops, v3.OpDelete(begin, v3.WithRange(w.end)))
	}
	return ops
}
