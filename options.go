package concurrency

import (
	"context"
	"fmt"
	"time"

	v3 "go.etcd.io/etcd/client/v3"
)

// STMOption configures [NewSTM].
type STMOption func(*stmOptions)

type stmOptions struct {
	isolation Isolation
	ctx       context.Context
	prefetch  []string
	guards    []v3.Cmp
	maxOps    int // 0: the caller knows none

	prefetchRanges []interval
	trace          *tracing
	maxConflicts   int           // 0: any number
	patience       time.Duration // for how long a blocked attempt may miss a change
}

// withPatience sets for how long a blocked transaction may miss a change.
func withPatience(d time.Duration) STMOption { return func(o *stmOptions) { o.patience = d } }

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

// WithPrefetchRange adds the keys from begin on and before end to the read set of every
// attempt before its function runs, as [STM.Range] does. They are fetched together with
// those of the other prefetch options, as far as they fit into one call.
func WithPrefetchRange(begin, end string) STMOption {
	iv := intervalOf("WithPrefetchRange", begin, end)
	return func(o *stmOptions) { o.prefetchRanges = append(o.prefetchRanges, iv) }
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

// WithMaxAttempts makes NewSTM return an error that wraps [ErrConflict] and names the keys
// when n attempts have conflicted. Those that ended with Retry don't count. Nothing is
// committed then.
func WithMaxAttempts(n int) STMOption {
	if n <= 0 {
		panic(fmt.Sprintf("concurrency: WithMaxAttempts: %d is no number of attempts", n))
	}
	return func(o *stmOptions) { o.maxConflicts = n }
}

// WithSTMTrace has the functions Attempt and Repeated of t called, and no others. A nil t is no
// trace.
func WithSTMTrace(t *Trace) STMOption {
	return func(o *stmOptions) { o.trace = tracingOf(t, v3.NoLease) }
}
