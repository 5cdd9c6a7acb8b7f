package concurrency

import (
	"cmp"
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
	kind string // the part of the line where the kind has its keys; "" for none
	most int    // how many of the kind may own at once; 0 for any number
}

// readers is the rule of those who own beside each other. The keys of a kind come after all
// names of leases, which are hexadecimal.
var readers = rule{kind: "~r/"}

// permits is the rule of those who own beside each other, n at once.
func permits(n int) rule { return rule{kind: "~p/", most: n} }

// blocking returns the tickets that keep the turn of a ticket from coming. While all of them
// stand, it has not come. If there are none, it has. ahead are the tickets ahead of it in the
// line under the prefix, the newest first.
func (r rule) blocking(prefix string, ahead []ticket) []ticket {
	for i, t := range ahead {
		if r.kind == "" || !strings.HasPrefix(t.key, prefix+r.kind) {
			return ahead[i : i+1] // a ticket that excludes is enough, whoever else is ahead
		}
		if i+1 == r.most {
			return ahead[:r.most]
		}
	}
	return nil
}

// deciding is what has to be read of the line under the prefix to know what blocks a ticket.
// own keys of the ticket stand in that line.
func (r rule) deciding(prefix string, own int) []part {
	end := v3.GetPrefixRangeEnd(prefix)
	if r.shows() {
		return []part{{prefix, end, own + max(r.most, 1)}}
	}
	// Any number of the kind may be ahead. Only the newest ticket around them counts.
	kind := prefix + r.kind
	return []part{{prefix, kind, 1}, {v3.GetPrefixRangeEnd(kind), end, 1}}
}

// shows reports whether what is read to know what blocks a ticket shows the ticket itself.
func (r rule) shows() bool { return r.kind == "" || r.most > 0 }

// seen tells what blocks a ticket, from the keys that were read of the line under the prefix.
func (r rule) seen(prefix string, mine ticket, kvs []*mvccpb.KeyValue) []ticket {
	var ahead []ticket
	for _, kv := range kvs {
		if t := ticketOf(kv); t.rev < mine.rev {
			ahead = append(ahead, t)
		}
	}
	slices.SortStableFunc(ahead, func(a, b ticket) int { return cmp.Compare(b.rev, a.rev) })
	return r.blocking(prefix, ahead)
}

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

// keysOf collects what operations of a transaction have read.
func keysOf(answers []*pb.ResponseOp) (kvs []*mvccpb.KeyValue) {
	for _, answer := range answers {
		kvs = append(kvs, answer.GetResponseRange().GetKvs()...)
	}
	return kvs
}

// view is what was seen of the lines at one revision.
type view struct {
	mine     ticket
	blocking []ticket // see [rule.blocking]
	header   *pb.ResponseHeader
}

// concerned reports whether the news of a watch call for a look. They don't if they tell only
// of tickets that block nothing.
func (v view) concerned(news v3.WatchResponse) bool {
	return len(news.Events) == 0 || slices.ContainsFunc(news.Events, func(e *v3.Event) bool {
		return slices.ContainsFunc(v.blocking, func(t ticket) bool { return t.key == string(e.Kv.Key) })
	})
}

// joinTxn is the transaction by which a session joins its lines. It puts the session's keys
// and reads back who is ahead. If it may not put the keys, it reads back the head of the line,
// or the keys that are there. Repeating it is harmless, because the repetition finds its own
// keys.
type joinTxn struct {
	leaseID   v3.LeaseID
	key       string   // the first of own, by which the seat is known
	own       []string // a key in each line
	prefix    string
	rule      rule
	deciding  []part
	unless    []v3.Cmp // a single one for a single key, as If wants it
	then, els []v3.Op
	asks      int // how many of els ask for own keys
	value     string
	alone     bool // the keys are put only if nobody stands in line who excludes, and nobody waits
	replaces  bool // a key that is found is to have the value
}

// newJoin puts the session's keys in its lines, if none of them exists.
func newJoin(own []string, prefix, value string, id v3.LeaseID, r rule, deciding []part) joinTxn {
	j := joinTxn{leaseID: id, key: own[0], own: own, prefix: prefix, rule: r, deciding: deciding, value: value}
	for _, key := range own {
		j.unless = append(j.unless, v3.Compare(v3.CreateRevision(key), "=", 0))
		j.then = append(j.then, v3.OpPut(key, value, v3.WithLease(id)))
		j.els = append(j.els, v3.OpGet(key, v3.WithKeysOnly()))
	}
	j.then = append(j.then, reads(deciding, 0)...)
	j.asks = len(own)
	// Upstream's keys: the session may own with a key of before, and then it is the head.
	if r == (rule{}) && len(own) == 1 {
		j.els, j.asks = []v3.Op{v3.OpGet(prefix, oldest...)}, 0
	}
	return j
}

// ifAlone makes a join put its keys only if all that stand in line, the session itself
// included, stood there at the revision. They must leave the room. 0 wants nobody there.
func (j joinTxn) ifAlone(at int64) joinTxn {
	if !j.alone && j.asks > 0 {
		j.els = append(slices.Clip(j.els), reads(j.deciding, 0)...)
	}
	absent := j.unless[:0:0]
	if !j.rule.shows() {
		absent = append(absent, v3.Compare(v3.CreateRevision(j.key), "=", 0))
	}
	for _, p := range j.deciding {
		absent = append(absent, p.older(at))
	}
	j.alone, j.unless = true, absent
	return j
}

// replacing makes a join that finds the session's key read it, so that it can be given the
// value.
func (j joinTxn) replacing() joinTxn {
	j.replaces = true
	j.els, j.asks = []v3.Op{v3.OpGet(j.key), j.els[0]}, 1
	return j
}

// oldest selects the head of a line.
var oldest = append(v3.WithFirstCreate(), v3.WithKeysOnly())

// joined reads the answer to a join. Keys that were just put are the newest in line.
// Otherwise the session's own ticket is known only if it is the head, or was asked for. What
// blocks a ticket that was asked for is not known.
func (j joinTxn) joined(resp *v3.TxnResponse) (v view, found *mvccpb.KeyValue) {
	v.header = resp.Header
	if resp.Succeeded {
		v.mine = ticket{j.key, resp.Header.Revision}
		v.blocking = j.rule.seen(j.prefix, v.mine, keysOf(resp.Responses))
		return v, nil
	}
	if asked := keysOf(resp.Responses[:j.asks]); len(asked) > 0 {
		found = asked[0]
		v.mine = ticket{j.key, found.CreateRevision}
	}
	var others []ticket
	for _, kv := range keysOf(resp.Responses[j.asks:]) {
		if t := ticketOf(kv); t.key == j.key {
			v.mine = t
		} else {
			others = append(others, t)
		}
	}
	v.blocking = j.rule.blocking(j.prefix, others)
	return v, found
}
