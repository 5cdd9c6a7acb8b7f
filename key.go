package concurrency

import (
	"slices"

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

// view is what is known of a line at one revision: what a call has shown, and what one watch
// has told since.
type view struct {
	mine   ticket
	ahead  []ticket           // of mine, the newest first; not the oldest of them if there are many
	near   bool               // ahead has all who stand ahead
	header *pb.ResponseHeader // of that revision
}

// nearby is how many tickets ahead a waiter knows at most. A waiter who knows all of them
// follows the line, and is told of each release. So each release is told to as many waiters
// at most, however long the line is.
const nearby = 16

// stand takes in the tickets that stand ahead, the newest first. They were read with the limit
// of the line's reads.
func (v *view) stand(kvs []*mvccpb.KeyValue) {
	v.near = len(kvs) <= nearby
	for _, kv := range kvs[:min(len(kvs), nearby)] {
		v.ahead = append(v.ahead, ticketOf(kv))
	}
}

// turn reports whether mine owns.
func (v *view) turn() bool { return v.near && len(v.ahead) == 0 }

// farthest is the oldest ticket ahead that is known.
func (v *view) farthest() ticket { return v.ahead[len(v.ahead)-1] }

// hear takes in what a watch of the line's deletions has told. It reports whether mine is
// gone, and whether the view is stale, so that a look is needed.
//
// A view that has all who stand ahead needs no look to know that the turn has come. etcd
// promises that a watch tells all events since its beginning, in their order, and the events
// of one revision together (etcd's documentation, KV API guarantees, Watch APIs). Nobody can
// come in ahead. So when the watch has told that each ticket ahead was deleted, and has not
// told that mine was, mine owned at the revision of the last of these events.
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
	if news.Canceled || news.Created || !v.near {
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
	return gone, false
}

// joinTxn is the transaction by which a session joins a line. It puts the session's key and
// reads back who is ahead. If it may not put the key, it reads back the session's own ticket
// and the head of the line.
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
		then:    []v3.Op{v3.OpPut(key, value, v3.WithLease(id)), v3.OpGet(prefix, newest...)},
		els:     []v3.Op{v3.OpGet(key), v3.OpGet(prefix, oldest...)},
	}
}

// ifAlone makes a join of the line under the prefix put the session's key only if nobody
// stands in line, the session itself included.
func (j joinTxn) ifAlone(prefix string) joinTxn {
	j.alone = true
	j.unless = []v3.Cmp{v3.Compare(v3.CreateRevision(prefix), "=", 0).WithPrefix()}
	return j
}

// replacing makes a join that finds the session's key give it the value.
func (j joinTxn) replacing() joinTxn {
	j.replaces = true
	return j
}

// newest selects the newest keys of a line. Restricted to those no newer than a ticket, they
// are that ticket, those ahead as far as a waiter knows them, and one more if there are more.
var newest = []v3.OpOption{
	v3.WithPrefix(), v3.WithKeysOnly(), v3.WithSort(v3.SortByCreateRevision, v3.SortDescend),
	v3.WithLimit(1 + nearby + 1),
}

// oldest selects the head of a line.
var oldest = append(v3.WithFirstCreate(), v3.WithKeysOnly())

// joined reads the answer to a join. A key that was just put is the newest in line. If the
// session stood there before, only the head knows who is ahead: nobody. The key that was found
// is nil if there was none.
func (j joinTxn) joined(resp *v3.TxnResponse) (v view, found *mvccpb.KeyValue) {
	v.header = resp.Header
	// The read of the line comes last, in either branch.
	line := resp.Responses[len(resp.Responses)-1].GetResponseRange().Kvs
	if resp.Succeeded {
		v.mine = ticket{j.key, line[0].CreateRevision}
		v.stand(line[1:])
		return v, nil
	}
	if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
		found = kvs[0]
		v.mine = ticketOf(found)
		v.near = v.mine.firstOf(line)
	}
	return v, found
}

// seen reads the answer to a look at the newest keys that are not newer than mine. It reports
// whether mine stands.
func (t ticket) seen(resp *v3.GetResponse) (v view, stands bool) {
	v = view{mine: t, header: resp.Header}
	if !t.firstOf(resp.Kvs) {
		return v, false
	}
	v.stand(resp.Kvs[1:])
	return v, true
}
