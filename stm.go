package concurrency

import (
	"go.etcd.io/etcd/api/v3/mvccpb"
	v3 "go.etcd.io/etcd/client/v3"
)

// STM is one attempt at a transaction, as its function sees it. It belongs to the goroutine
// that runs the function. Other goroutines must not use it, not even while the function
// waits for them. It is of no use after the function has returned. Its methods panic then,
// on whatever goroutine.
//
// When a read fails, its method does not return. It ends the function by a panic that
// [NewSTM] recovers. A function that recovers the panic itself changes nothing, because its
// attempt is not committed.
type STM interface {
	// Get returns the value of the first key, or "" if the key does not exist. It adds all
	// keys to the read set. A key that this attempt has written has the value that was
	// written. Such a key is not read if it is the only one. Keys that are not in the read
	// set yet are fetched in one call. If they are more than 128, or than the limit of
	// [WithMaxTxnOps], they are fetched in several.
	Get(key ...string) string
	// Put adds a write to the write set. The last write of a key counts.
	Put(key, val string, opts ...v3.OpOption)
	// Rev returns the revision at which the key was last modified in the store, or 0 if it
	// does not exist. It adds the key to the read set.
	Rev(key string) int64
	// Del adds the deletion of a key to the write set.
	Del(key string)

	// Lookup returns the value of a key and whether it exists, and adds the key to the
	// read set. A key that this attempt has written is as it was written, and is not read.
	Lookup(key string) (value string, found bool)
	// Entry is as Lookup and returns all that is stored with the key, nil if it does not
	// exist. The revisions, the version and the lease of a key that this attempt has put
	// are 0, because the store has not given them yet. The caller must not change it.
	Entry(key string) *mvccpb.KeyValue
	// Range returns the keys from begin on and before end, in their order, each as Entry
	// does, and adds the range to the read set. So a key that comes to lie in the range
	// conflicts as well as one that changes or goes. clientv3.GetPrefixRangeEnd gives the
	// end of a prefix, and "\x00" is the end of all keys. The caller owns the slice, but
	// not what it points to.
	//
	// What of the range was not read before is fetched in one call for 4096 keys, or for as
	// many as fit into an answer. The commit of a transaction that writes checks each range
	// and each key that was seen in it; all of them count against the servers' limit of
	// operations. So it can read about 100 keys in ranges, unless the limit was raised. A
	// transaction that only reads can read any number, except at [RepeatableReads].
	Range(begin, end string) []*mvccpb.KeyValue
	// RangeN returns the first n keys of a range, or all if they are fewer. It adds no more
	// to the read set than that part of the range, as it stands in the store. Keys that this
	// attempt has put make it no shorter, and keys that it has deleted make it longer.
	RangeN(begin, end string, n int) []*mvccpb.KeyValue
	// DelRange adds the deletion of all keys from begin on and before end to the write set,
	// in place of what was written to them. They are those that exist at the commit, and are
	// not read. A key that is put afterwards stays. The range is then deleted in parts, each
	// of which has a response of its own. It conflicts as Del does, at
	// [SerializableSnapshot] with every key of the range that was put since the snapshot.
	DelRange(begin, end string)
	// Retry ends the attempt because there is nothing to do. [NewSTM] waits until a key or a
	// range that was read has changed, and runs the function again. The attempt's writes are
	// dropped. Retry does not return. It panics if nothing was read, because nothing could
	// end the wait then. At [ReadCommitted] it makes NewSTM return an error.
	Retry()

	// commit keeps the interface to this package's own implementation.
	commit() (*v3.TxnResponse, error)
}

// Isolation says what an attempt may see and what makes it conflict.
type Isolation int

const (
	// SerializableSnapshot is strict serializability. All reads are of one revision, and
	// the commit conflicts with every later change of a key that was read. Once the attempt
	// has read anything, it also conflicts with later changes of a key that it only writes,
	// but not with the deletion of that key. It is the default.
	SerializableSnapshot Isolation = iota
	// Serializable is the same, except that keys only written don't conflict.
	Serializable
	// RepeatableReads reads each key once, at revisions of their own. It conflicts with later
	// changes of a key that was read. Its reads are linearizable. A function that ends with an
	// error for what it has read therefore does not do so for an old value. After a conflict all
	// is read anew, call by call. Where others write within that time again and again, it does
	// not commit. The levels above read from the answer to the commit that conflicted.
	RepeatableReads
	// ReadCommitted reads each key once, and conflicts with nothing.
	ReadCommitted
)

// level is what an isolation level consists of.
type level struct {
	snapshot    bool // all reads are of one revision
	checkReads  bool // keys read must be unchanged at the commit
	checkWrites bool // keys only written must be unchanged since the snapshot
}

var levels = [...]level{
	SerializableSnapshot: {snapshot: true, checkReads: true, checkWrites: true},
	Serializable:         {snapshot: true, checkReads: true},
	RepeatableReads:      {checkReads: true},
	ReadCommitted:        {},
}
