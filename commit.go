package concurrency

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	v3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// compiled is the transaction that an attempt comes to.
type compiled struct {
	cmps      []v3.Cmp
	then, els []v3.Op
	keys      []string // those whose values els reads back, after the guards' result
}

// compile is a pure function of the level, the read set and the write set. It gives the
// same transaction for the same ones:
//
//   - the guards come first;
//   - comparisons and reads stand in the order of their keys;
//   - writes stand in the order in which their keys were first written.
//
// The Else branch compares the guards by themselves, which tells them from a conflict.
func (a *attempt) compile() compiled {
	c := compiled{cmps: slices.Clone(a.options.guards)}
	if len(a.options.guards) > 0 {
		c.els = []v3.Op{v3.OpTxn(a.options.guards, nil, nil)}
	}
	want := map[string]v3.Cmp{}
	if a.level.checkWrites && len(a.reads) > 0 {
		for _, w := range a.writes {
			want[w.key] = v3.Compare(v3.ModRevision(w.key), "<", a.header.Revision+1)
		}
	}
	if a.level.checkReads {
		for key, kv := range a.reads {
			want[key] = v3.Compare(v3.ModRevision(key), "=", kv.GetModRevision())
		}
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		c.cmps = append(c.cmps, want[key])
	}
	for _, w := range a.writes {
		c.then = append(c.then, w.op)
	}
	if a.level.snapshot {
		c.keys = slices.Sorted(maps.Keys(a.reads))
		for _, key := range c.keys {
			c.els = append(c.els, v3.OpGet(key))
		}
	}
	if len(c.then)+len(c.els) == 0 {
		c.els = append(c.els, linearizable(c.cmps))
	}
	return c
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
	news, _ := a.contender.enter(a.options.ctx, a.contested()).(snapshot)
	defer a.contender.leave()
	if a.outdated(news) {
		if a.snapshot = (snapshot{}); a.level.snapshot {
			a.snapshot = news
		}
		a.contender.outdated()
		return nil, errConflict
	}
	if err := a.ended(); err != nil {
		return nil, err
	}
	resp, err := a.send(c)
	switch {
	case err != nil:
		return nil, err
	case resp.Succeeded:
		a.contender.won(func() any { return a.left(resp) })
		return resp, nil
	}
	return nil, a.conflict(resp, c.keys)
}

// committedByReads reports whether there is nothing to send. If all reads are of one
// revision, the first read was linearizable. The transaction then stands at that revision
// in the order of all. If reads are not checked, the last read is as good as a commit.
func (a *attempt) committedByReads() bool {
	return len(a.writes) == 0 && len(a.reads) > 0 && len(a.options.guards) == 0 &&
		(a.level.snapshot || !a.level.checkReads)
}

// withinLimit compares the transaction with the limit that the caller has set. The servers
// count what is nested on top of the longest list around it. Here the guards in the Else
// branch are nested (checkTxnRequest in server/etcdserver/api/v3rpc/key.go).
func (a *attempt) withinLimit(c compiled) error {
	guards, limit := len(a.options.guards), a.options.maxOps
	if limit == 0 || max(len(c.cmps), len(c.then), len(c.els))+guards <= limit {
		return nil
	}
	return fmt.Errorf("concurrency: a commit of %d writes, %d checked keys and %d guards is over the limit of %d: %w",
		len(c.then), len(c.cmps)-guards, guards, limit, rpctypes.ErrTooManyOps)
}

// send sends the transaction once, or patiently if it writes nothing.
func (a *attempt) send(c compiled) (*v3.TxnResponse, error) {
	txn := a.client.Txn(a.options.ctx).If(c.cmps...).Then(c.then...).Else(c.els...)
	if len(a.writes) == 0 && len(c.cmps) > 0 {
		resp, err := a.patiently(string(c.cmps[0].KeyBytes()), txn.Commit)
		if err != nil {
			err = a.blame(err)
		}
		return resp, err
	}
	resp, err := txn.Commit()
	if err == nil || definite(err) || unsent(err) {
		return resp, err
	}
	switch cause := a.blame(err); {
	case len(a.writes) == 0:
		return nil, cause
	case errors.Is(err, cause):
		return nil, fmt.Errorf("%w: %w", ErrCommitUnknown, err)
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

// contested are the keys over which transactions contend: those that are read, checked and
// written. A transaction that only reads a key makes no other conflict.
func (a *attempt) contested() (keys []string) {
	if !a.level.checkReads {
		return nil
	}
	for _, w := range a.writes {
		if _, read := a.reads[w.key]; read {
			keys = append(keys, w.key)
		}
	}
	return keys
}

// outdated reports whether the news say that a key that was read has changed since.
func (a *attempt) outdated(news snapshot) bool {
	if news.header == nil || len(a.reads) == 0 || news.header.Revision <= a.header.Revision {
		return false
	}
	for key, kv := range a.reads {
		if last, ok := news.known[key]; ok && last.GetModRevision() != kv.GetModRevision() {
			return true
		}
	}
	return false
}

// left is the state in which the attempt leaves the keys that it touched. resp is the
// answer to its commit. What the attempt read was unchanged. What it wrote has the commit's
// revision. The options of a Put may make that another value than was given.
func (a *attempt) left(resp *v3.TxnResponse) snapshot {
	known := maps.Clone(a.reads)
	for _, w := range a.writes {
		switch {
		case w.op.IsDelete():
			known[w.key] = nil
		case w.plain:
			known[w.key] = &mvccpb.KeyValue{
				Key: []byte(w.key), Value: []byte(w.value), ModRevision: resp.Header.Revision,
			}
		default:
			delete(known, w.key)
		}
	}
	return snapshot{resp.Header, known}
}

// conflict takes from the answer of a commit that failed what the next attempt starts with.
func (a *attempt) conflict(resp *v3.TxnResponse, keys []string) error {
	answers := resp.Responses
	if len(a.options.guards) > 0 {
		if !answers[0].GetResponseTxn().Succeeded {
			return ErrGuardFailed
		}
		answers = answers[1:]
	}
	a.snapshot = snapshot{}
	if !a.level.snapshot { // its answer has no values
		a.contender.lost(a.contested(), nil)
		return errConflict
	}
	a.snapshot = snapshot{resp.Header, map[string]*mvccpb.KeyValue{}}
	for i, kv := range values(answers) {
		a.known[keys[i]] = kv
	}
	changed := slices.DeleteFunc(a.contested(), func(key string) bool {
		return a.known[key].GetModRevision() == a.reads[key].GetModRevision()
	})
	a.contender.lost(changed, a.snapshot)
	return errConflict
}
