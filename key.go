package concurrency

import (
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

// view is what was seen of a line at one revision.
type view struct {
	mine   ticket
	ahead  ticket // directly ahead of mine; none when the turn has come
	place  int64  // of mine in the line, from 1 on; 0: nobody has counted
	header *pb.ResponseHeader
}

// joinTxn is the transaction by which a session joins a line. It puts the session's key and
// reads back who is ahead. If it may not put the key, it reads back the head of the line.
// Repeating it is harmless, because the repetition finds its own key.
type joinTxn struct {
	leaseID   v3.LeaseID
	key       string
	unless    []v3.Cmp // a single one, as If wants it
	then, els []v3.Op
	value     string
	alone     bool // the key is put only if nobody stands in line, and nobody waits
	replaces  bool // a key that is found is to have the value
}

// newJoin puts the session's key in the line under the prefix, if the key does not exist.
func newJoin(prefix, key, value string, id v3.LeaseID) joinTxn {
	return joinTxn{
		leaseID: id,
		key:     key,
		value:   value,
		unless:  []v3.Cmp{v3.Compare(v3.CreateRevision(key), "=", 0)},
		then:    []v3.Op{v3.OpPut(key, value, v3.WithLease(id)), v3.OpGet(prefix, newestTwo...)},
		els:     []v3.Op{v3.OpGet(prefix, oldest...)},
	}
}

// ifAlone makes a join of the line under the prefix put the session's key only if nobody
// stands in line, the session itself included.
func (j joinTxn) ifAlone(prefix string) joinTxn {
	j.alone = true
	j.unless = []v3.Cmp{v3.Compare(v3.CreateRevision(prefix), "=", 0).WithPrefix()}
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

// joined reads the answer to a join. A key that was just put is the newest in line.
// Otherwise the session's own ticket is known only if it is the head, or was asked for.
func (j joinTxn) joined(resp *v3.TxnResponse) (v view, found *mvccpb.KeyValue) {
	v.header = resp.Header
	// The read of the line comes last, in either branch.
	read := resp.Responses[len(resp.Responses)-1].GetResponseRange()
	line := read.Kvs
	if resp.Succeeded {
		// The answer counts the whole line, although it shows two keys of it at most.
		v.mine, v.place = ticket{j.key, line[0].CreateRevision}, read.Count
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

// seen reads the answer to a look at the newest two keys that are not newer than mine. It
// reports whether mine stands.
func (t ticket) seen(resp *v3.GetResponse) (v view, stands bool) {
	v = view{mine: t, header: resp.Header}
	if !t.firstOf(resp.Kvs) {
		return v, false
	}
	if len(resp.Kvs) > 1 {
		v.ahead = ticketOf(resp.Kvs[1])
	}
	return v, true
}
