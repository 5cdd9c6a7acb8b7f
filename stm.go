package concurrency

import (
	"context"
	"fmt"

	v3 "go.etcd.io/etcd/client/v3"
)

// STM is one attempt at a transaction, as its function sees it. It belongs to the goroutine
// that runs the function. Other goroutines must not use it, not even while the function
// waits for them. It is of no use after the function has returned. Its methods panic then,
// on whatever goroutine.
//
// When a read fails, Get and Rev don't return. They end the function by a panic that
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
	// error for what it has read therefore does not do so for an old value.
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

// STMOption configures [NewSTM].
type STMOption func(*stmOptions)

type stmOptions struct {
	isolation Isolation
	ctx       context.Context
	prefetch  []string
	guards    []v3.Cmp
	maxOps    int // 0: the caller knows none
}

// WithIsolation sets the isolation level. The default is [SerializableSnapshot].
func WithIsolation(lvl Isolation) STMOption {
	if lvl < 0 || int(lvl) >= len(levels) {
		panic(fmt.Sprintf("concurrency: unknown isolation level %d", int(lvl)))
	}
	return func(o *stmOptions) { o.isolation = lvl }
}

// WithAbortContext sets the context that ends the transaction. The default is the client's
// context. The transaction looks at it before every attempt and during pauses. It bounds
// every call.
func WithAbortContext(ctx context.Context) STMOption {
	if ctx == nil {
		panic("concurrency: WithAbortContext: nil context")
	}
	return func(o *stmOptions) { o.ctx = ctx }
}

// WithPrefetch adds keys to the read set of every attempt before its function runs.
// They are fetched together, which saves a call for each.
func WithPrefetch(keys ...string) STMOption {
	return func(o *stmOptions) { o.prefetch = append(o.prefetch, keys...) }
}

// WithGuard makes the transaction commit only if all comparisons are true at its commit. If
// one is not, NewSTM returns [ErrGuardFailed] without another attempt. With [Mutex.IsOwner]
// or [Election.IsLeader] a former owner can't commit. A transaction that only reads is then
// committed by a call too.
func WithGuard(cmps ...v3.Cmp) STMOption {
	if len(cmps) == 0 {
		panic("concurrency: WithGuard: nothing to compare")
	}
	return func(o *stmOptions) { o.guards = append(o.guards, cmps...) }
}

// WithMaxTxnOps sets a limit on the operations of the commit: its writes, its checked keys,
// its guards. A commit over the limit fails with the numbers before it is sent. Keys are
// read in parts of at most n. Without the option only the servers' limit counts, which is
// set by their flag --max-txn-ops and is 128 by default.
func WithMaxTxnOps(n int) STMOption {
	if n <= 0 {
		panic(fmt.Sprintf("concurrency: WithMaxTxnOps: %d is not a limit", n))
	}
	return func(o *stmOptions) { o.maxOps = n }
}
