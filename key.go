package concurrency

import (
	"cmp"
	"math"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	v3 "go.etcd.io/etcd/client/v3"
)

// ticket is one life of a key. The same name deleted and put again is another ticket. The
// zero ticket is none.
//
// Create revisions are the numbers on the tickets. etcd gives them in the order of commits
// and never twice. The smallest one under a prefix is the head and owns what the prefix
// names. Nobody can ever come in ahead of a ticket that exists. So if one read shows a
// ticket and nobody ahead of it, that ticket owns until it is deleted.
type ticket struct {
	key string
	rev int64 // create revision; 0 for a ticket that has to be looked for
}

// stands is true in a transaction only while the ticket exists.
func (t ticket) stands() v3.Cmp { return v3.Compare(v3.CreateRevision(t.key), "=", t.rev) }

// ticketOf is the life of a key that was read.
func ticketOf(kv *mvccpb.KeyValue) ticket { return ticket{string(kv.Key), kv.CreateRevision} }

// firstOf reports whether the first of the keys that were read is the ticket's, in this life.
func (t ticket) firstOf(kvs []*mvccpb.KeyValue) bool { return len(kvs) > 0 && ticketOf(kvs[0]) == t }

// among reports whether the ticket is among the keys that were read.
func (t ticket) among(kvs []*mvccpb.KeyValue) bool {
	return slices.ContainsFunc(kvs, func(kv *mvccpb.KeyValue) bool { return ticketOf(kv) == t })
}

// rule decides when the turn of a ticket has come. All tickets ahead must be of the rule's
// kind, and fewer than most. Any other ticket, a stranger's too, excludes those behind it.
//
// The zero rule is the exclusive one. No ticket is of its kind, so nobody may be ahead.
type rule struct {
	kind    string // the part of the line where the kind has its keys; "" for none
	most    int    // how many of the kind may own at once; 0 for any number
	several bool   // the ticket stands in several lines, and owns in all of them at once
}

// readers is the rule of those who own beside each other. The keys of a kind come after all
// names of leases, which are hexadecimal.
var readers = rule{kind: "~r/"}

// permits is the rule of those who own beside each other, n at once. The bound keeps what is
// computed from it from overflowing. No server has room for so many keys.
func permits(n int) rule { return rule{kind: "~p/", most: min(n, math.MaxInt32/2)} }

// blocks reports whether the turn of a ticket has not come, from those that are known ahead of
// it in the line under the prefix.
func (r rule) blocks(prefix string, ahead []ticket) bool {
	return r.most > 0 && len(ahead) >= r.most || slices.ContainsFunc(ahead, func(t ticket) bool {
		return r.kind == "" || !strings.HasPrefix(t.key, prefix+r.kind)
	})
}

const (
	// nearby is how many tickets a waiter knows at most that keep its turn from coming. A waiter that
	// knows all such tickets follows the line, and is told of each release. So each release is told
	// to as many waiters at most, however long the line is.
	nearby = 16
	// approach is how many tickets are still ahead of a waiter from far back when it begins to
	// follow the line. In a long line each release is thus told to few.
	approach = 3
)

// reach is how many tickets may be ahead of a waiter that follows the line. One watch of one line
// can't prove that several lines are free at once. Nor can it tell a reader of the writers ahead
// alone, beside its own key. So these two kinds of waiters follow no line. They look when the ticket
// directly ahead is gone.
func (r rule) reach() int {
	if r.several || !r.shows() {
		return 0
	}
	return max(r.most, 1) - 1 + nearby
}

// deciding is what has to be read of the line under the prefix to know who blocks a ticket.
// ownKeys is how many keys of the ticket itself stand in that line.
func (r rule) deciding(prefix string, ownKeys int) []part {
	end, newest := v3.GetPrefixRangeEnd(prefix), r.reach()+1
	if r.shows() {
		return []part{{prefix, end, ownKeys + newest}}
	}
	// Any number of the kind may be ahead. Only the tickets around them count.
	kind := prefix + r.kind
	return []part{{prefix, kind, newest}, {v3.GetPrefixRangeEnd(kind), end, newest}}
}

// shows reports whether what is read to know who blocks a ticket shows the ticket itself.
func (r rule) shows() bool { return r.kind == "" || r.most > 0 }

// part is a part of a line, of which the newest tickets are read.
type part struct {
	from, end string // the end is not in it; "" for the one key
	newest    int    // how many
}

// upTo selects the tickets that are no newer than rev, the newest first. 0 is no bound.
func (p part) upTo(rev int64) []v3.OpOption {
	if p.end == "" {
		return []v3.OpOption{v3.WithKeysOnly()}
	}
	return []v3.OpOption{
		v3.WithRange(p.end), v3.WithKeysOnly(), v3.WithMaxCreateRev(rev), v3.WithLimit(int64(p.newest)),
		v3.WithSort(v3.SortByCreateRevision, v3.SortDescend),
	}
}

// older is true in a transaction if no ticket stands there that is newer than rev.
func (p part) older(rev int64) v3.Cmp {
	return v3.Compare(v3.CreateRevision(p.from), "<", rev+1).WithRange(p.end)
}

// reads are the operations that read the parts.
func reads(parts []part, rev int64) (ops []v3.Op) {
	for _, p := range parts {
		ops = append(ops, v3.OpGet(p.from, p.upTo(rev)...))
	}
	return ops
}

// keysOf is what the operations of a transaction have read, each for itself.
func keysOf(answers []*pb.ResponseOp) (read [][]*mvccpb.KeyValue) {
	for _, answer := range answers {
		read = append(read, answer.GetResponseRange().GetKvs())
	}
	return read
}

// view is what is known of a ticket and those ahead at one revision: what a call has shown, and
// what one watch of the line has told since.
type view struct {
	rule   rule
	prefix string
	mine   ticket
	ahead  []ticket           // tickets ahead of mine, the newest first; the oldest of many are left out
	near   bool               // ahead has all that count
	header *pb.ResponseHeader // of that revision
}

// takeIn takes in what was read of the parts. A part that was filled may have left some out.
func (v *view) takeIn(parts []part, read [][]*mvccpb.KeyValue) {
	v.near = true
	for i, kvs := range read {
		v.near = v.near && len(kvs) < parts[i].newest
		for _, kv := range kvs {
			if t := ticketOf(kv); t.rev < v.mine.rev {
				v.ahead = append(v.ahead, t)
			}
		}
	}
	slices.SortStableFunc(v.ahead, func(a, b ticket) int { return cmp.Compare(b.rev, a.rev) })
}

// follows reports whether the waiter follows the line. A waiter for one of several permits always
// does. Those ahead of it go in any order, so the end of no single ticket brings it near.
func (v *view) follows() bool { return v.near || v.rule.most > 1 }

// turn reports whether mine owns.
func (v *view) turn() bool { return v.near && !v.rule.blocks(v.prefix, v.ahead) }

// next is the ticket directly ahead, or none.
func (v *view) next() (t ticket) {
	if len(v.ahead) > 0 {
		t = v.ahead[0]
	}
	return t
}

// awaited is the ticket whose end brings mine near, or may give it the turn.
func (v *view) awaited() ticket { return v.ahead[min(v.rule.reach(), approach, len(v.ahead)-1)] }

// hear takes in what a watch of the line's deletions has told. It reports whether mine is
// gone, and whether the view is stale, so that a look is needed.
//
// A view that leaves some tickets out needs a look only when those that it has leave room.
//
// A view that has all who count needs no look to know that the turn has come. etcd promises
// that a watch tells all events since its beginning, in their order, and the events of one
// revision together (etcd's documentation, KV API guarantees, Watch APIs). Nobody can come in
// ahead. When the watch has told of as many deletions ahead as the rule wants, and of none of
// mine, the turn has come. Mine owned at the revision of the last of these events.
//
// There is no gap between the view and the watch in any of these cases:
//
//   - The watch began after the view's revision. Its first news say so, and call for a look.
//   - The watch broke, or what it was to tell was compacted. It says so, and that calls for a
//     look.
//   - The watch began before, on a member that lags or for another wait. What it tells of the
//     view's revision and earlier ones is in the view.
//   - A key ahead was deleted and put again. The first deletion after the view's revision is
//     the end of the ticket that the view has. The new ticket stands behind mine.
func (v *view) hear(news v3.WatchResponse) (gone, stale bool) {
	if news.Canceled || news.Created || !v.follows() {
		return false, missed(news, v.header.Revision)
	}
	rev := v.header.Revision
	for _, ev := range news.Events {
		if ev.Kv.ModRevision <= rev {
			continue
		}
		key := string(ev.Kv.Key)
		gone = gone || key == v.mine.key
		v.ahead = slices.DeleteFunc(v.ahead, func(t ticket) bool { return t.key == key })
		v.header = headerAt(news.Header, ev.Kv.ModRevision)
	}
	// Those that are known ahead leave room. Only a look shows whether there are others.
	return gone, !v.near && !v.rule.blocks(v.prefix, v.ahead)
}

// joinTxn is the transaction by which a participant joins its lines. It puts its keys and reads
// back who is ahead. If it may not put the keys, it reads the participant's own keys instead, and the
// line where that is of use. Repeating it is harmless, because the repetition finds its own keys.
type joinTxn struct {
	leaseID   v3.LeaseID
	key       string   // the first of own, by which the seat is known
	own       []string // a key in each line
	prefix    string
	rule      rule
	deciding  []part
	absent    []v3.Cmp // a single one for a single key, as If wants it
	then, els []v3.Op
	value     string
	alone     bool // the keys are put only if nobody stands in line who excludes, and nobody waits
	replaces  bool // a key that is found is to have the value
}

// newJoin puts the participant's keys in its lines, if none of them exists.
func newJoin(own []string, prefix, value string, id v3.LeaseID, r rule, deciding []part) joinTxn {
	j := joinTxn{leaseID: id, key: own[0], own: own, prefix: prefix, rule: r, deciding: deciding, value: value}
	for _, key := range own {
		j.absent = append(j.absent, v3.Compare(v3.CreateRevision(key), "=", 0))
		j.then = append(j.then, v3.OpPut(key, value, v3.WithLease(id)))
		j.els = append(j.els, v3.OpGet(key))
	}
	j.then = append(j.then, reads(deciding, 0)...)
	if r == (rule{}) { // the session may own with a key of before, and then it is the head
		j.els = append(j.els, v3.OpGet(prefix, oldest...))
	}
	return j
}

// ifAlone makes a join put its keys only if nobody has come into its lines since the revision. The
// session's own keys count, too. Those who stood there must leave room. 0 wants nobody there.
func (j joinTxn) ifAlone(at int64) joinTxn {
	if !j.alone && j.rule != (rule{}) {
		j.els = append(slices.Clip(j.els), reads(j.deciding, 0)...)
	}
	var absent []v3.Cmp
	if !j.rule.shows() { // the parts of such a rule do not show the participant's own key
		absent = append(absent, v3.Compare(v3.CreateRevision(j.key), "=", 0))
	}
	for _, p := range j.deciding {
		absent = append(absent, p.older(at))
	}
	j.alone, j.absent = true, absent
	return j
}

// replacing makes a join that finds the session's key give it the value.
func (j joinTxn) replacing() joinTxn {
	j.replaces = true
	return j
}

// oldest selects the head of a line.
var oldest = append(v3.WithFirstCreate(), v3.WithKeysOnly())

// joined reads the answer to a join. Keys that were just put are the newest in line. If the
// participant stood there before, joined also returns the key that was found. Then nothing is known
// of the tickets ahead, unless mine is the head. If the participant was to be alone and does not
// stand there, all who do stand there count as ahead.
func (j joinTxn) joined(resp *v3.TxnResponse) (v view, found *mvccpb.KeyValue) {
	v = view{rule: j.rule, prefix: j.prefix, header: resp.Header}
	read := keysOf(resp.Responses)
	if resp.Succeeded {
		v.mine = ticket{j.key, resp.Header.Revision}
		v.takeIn(j.deciding, read[len(j.own):])
		return v, nil
	}
	if kvs := slices.Concat(read[:len(j.own)]...); len(kvs) > 0 {
		found = kvs[0]
		v.mine = ticket{j.key, found.CreateRevision}
	}
	switch others := read[len(j.own):]; {
	case found == nil:
		v.mine.rev = math.MaxInt64 // behind all others
		v.takeIn(j.deciding, others)
		v.mine = ticket{}
	case j.rule == (rule{}):
		v.near = v.mine.firstOf(others[0])
	}
	return v, found
}
