package concurrency

import (
	"context"
	"fmt"

	v3 "go.etcd.io/etcd/client/v3"
)

// STM is one attempt at a transaction, as its function sees it. It belongs to the
// goroutine that runs the function: other goroutines must not use it, not even while
// the function waits for them. It is of no use after the function has returned: its
// methods panic then, on whatever goroutine.
//
// When a read fails, Get and Rev don't return: they end the function by a panic
// that [NewSTM] recovers. A function that recovers it itself changes nothing: its
// attempt is not committed.
type STM interface {
	// Get returns the value of the first key, "" if it does not exist, and adds all
	// keys to the read set. A key that this attempt has written has the value that
	// was written; alone, it is not read. Keys that are not in the read set yet are
	// fetched in one call, or in several if they are more than 128 or the limit of
	// [WithMaxTxnOps].
	Get(key ...string) string
	// Put adds a write to the write set. The last write of a key counts.
	Put(key, val string, opts ...v3.OpOption)
	// Rev returns the revision of the last modification of a key as it is in the
	// store, 0 if it does not exist, and adds the key to the read set.
	Rev(key string) int64
	// Del adds the deletion of a key to the write set.
	Del(key string)

	// commit keeps the interface to this package's own implementation.
	commit() (*v3.TxnResponse, error)
}

// Isolation says what an attempt may see and what makes it conflict.
type Isolation int

const (
	// SerializableSnapshot is strict serializability: all reads are of one revision,
	// and the commit conflicts with every later change of a key read. Once the
	// attempt has read anything, it also conflicts with later changes of a key that
	// it only writes; not with its deletion. It is the default.
	SerializableSnapshot Isolation = iota
	// Serializable is the same, except that keys only written don't conflict.
	Serializable
	// RepeatableReads reads each key once, at revisions of their own, and conflicts
	// with later changes of a key read. Its reads are linearizable, so that a function that
	// ends with an error for what it has read does not do so for an old value.
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

// WithIsolation sets the isolation level; [SerializableSnapshot] is the default.
func WithIsolation(lvl Isolation) STMOption {
	if lvl < 0 || int(lvl) >= len(levels) {
		panic(fmt.Sprintf("concurrency: unknown isolation level %d", int(lvl)))
	}
	return func(o *stmOptions) { o.isolation = lvl }
}

// WithAbortContext sets the context that ends the transaction; the client's is the
// default. It is looked at before every attempt and during pauses, and bounds every
// call.
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

// WithGuard makes the transaction commit only if all comparisons are true at its commit,
// and return [ErrGuardFailed], without another attempt, if one is not. With
// [Mutex.IsOwner] or [Election.IsLeader] a former owner can't commit. A transaction that
// only reads is committed by a call too, then.
func WithGuard(cmps ...v3.Cmp) STMOption {
	if len(cmps) == 0 {
		panic("concurrency: WithGuard: nothing to compare")
	}
	return func(o *stmOptions) { o.guards = append(o.guards, cmps...) }
}

// WithMaxTxnOps sets a limit on the operations of the commit: its writes, its checked
// keys, its guards. A commit over the limit fails with the numbers before it is sent.
// Keys are read in parts of at most n. Without the option only the servers' limit
// counts, their flag --max-txn-ops, 128 by default.
func WithMaxTxnOps(n int) STMOption {
	if n <= 0 {
		panic(fmt.Sprintf("concurrency: WithMaxTxnOps: %d is not a limit", n))
	}
	return func(o *stmOptions) { o.maxOps = n }
}
