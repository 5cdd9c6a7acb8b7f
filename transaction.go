package concurrency

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	v3 "go.etcd.io/etcd/client/v3"
)

// NewSTM runs apply as a transaction. The reads of apply through the [STM] are isolated
// from other transactions. Its writes take effect together when it has returned nil. When
// the commit conflicts, apply is run again, on newer values, until it commits. So apply may
// run many times, and should have no effects but those through its STM. It runs on the
// caller's goroutine, where a panic in it, or runtime.Goexit, does what it does anywhere.
// Nothing is committed then.
//
// The response is that of the commit. The responses to the writes stand in the order in
// which their keys were first written. A transaction that only read needs no commit, except
// at [RepeatableReads] and with [WithGuard]. Its response is a successful one with the
// header of its reads.
//
// Errors, with which nothing is committed unless said otherwise:
//   - what apply returned, as it is;
//   - the error of the abort context, as it is, unless the context ended during the commit;
//   - context.Canceled if the client was closed before;
//   - [ErrGuardFailed];
//   - rpctypes.ErrTooManyOps, as it is, if the commit is over the servers' limit of
//     operations, which [WithMaxTxnOps] can tell beforehand, with the numbers;
//   - rpctypes.ErrRequestTooLarge, as it is, if the commit is over the servers' limit of
//     bytes, and the client's own error if it is over the client's;
//   - any other error of etcd's, as it is;
//   - one that wraps [ErrConflict] and names the keys, see [WithMaxAttempts];
//   - one that says so if the function calls Retry at [ReadCommitted];
//   - one that names the range, and wraps gRPC's, if one of its keys does not fit into an answer;
//   - one that wraps rpctypes.ErrTooManyOps and has the numbers, see [WithMaxTxnOps];
//   - one that wraps [ErrCommitUnknown] and the cause if the commit was not answered. It
//     also wraps the error of the abort context if that has ended. Such a commit may have
//     been carried out. It is not repeated. An answer that is larger than the client's
//     MaxCallRecvMsgSize is none.
//
// If the abort context has a deadline, a server's DeadlineExceeded is told as the end of that context.
//
// Reads, and commits that write nothing, ride out a lost connection or leader for as long
// as a Get of the client does. A transaction costs one call for each method that fetches,
// more for a long range, and one for the commit. A wait by Retry costs one watch for each key
// and range that was read, and a call for each look. NewSTM panics if c, apply or an option is nil.
func NewSTM(c *v3.Client, apply func(STM) error, so ...STMOption) (*v3.TxnResponse, error) {
	if c == nil {
		panic("concurrency: NewSTM: nil client")
	}
	if apply == nil {
		panic("concurrency: NewSTM: nil function")
	}
	o := stmOptions{ctx: cmp.Or(c.Ctx(), forever), patience: patience} // a client made by hand has none
	configure("NewSTM", &o, so)
	defer o.trace.wait()
	next := carried{part: cmp.Or(o.maxOps, defaultPart), chunk: defaultChunk, contender: sharedOf(c).contention.newContender()}
	for {
		a := &attempt{client: c, options: o, level: levels[o.isolation], carried: next}
		if err := a.ended(); err != nil {
			return nil, err
		}
		err := a.run(apply)
		var resp *v3.TxnResponse
		if err == nil {
			resp, err = a.commit()
		}
		switch err = a.account(err); err {
		case errConflict:
			next = a.makeWay()
		case errRetry:
			if next, err = a.await(); err != nil {
				return nil, err
			}
		default:
			return resp, err
		}
	}
}

// NewSTMRepeatable runs a transaction at [RepeatableReads] that ctx can abort.
//
// Deprecated: Use [NewSTM] with [WithIsolation] and [WithAbortContext].
func NewSTMRepeatable(ctx context.Context, c *v3.Client, apply func(STM) error) (*v3.TxnResponse, error) {
	return NewSTM(c, apply, WithAbortContext(ctx), WithIsolation(RepeatableReads))
}

// NewSTMSerializable runs a transaction at [Serializable] that ctx can abort.
//
// Deprecated: Use [NewSTM] with [WithIsolation] and [WithAbortContext].
func NewSTMSerializable(ctx context.Context, c *v3.Client, apply func(STM) error) (*v3.TxnResponse, error) {
	return NewSTM(c, apply, WithAbortContext(ctx), WithIsolation(Serializable))
}

// NewSTMReadCommitted runs a transaction at [ReadCommitted] that ctx can abort.
//
// Deprecated: Use [NewSTM] with [WithIsolation] and [WithAbortContext].
func NewSTMReadCommitted(ctx context.Context, c *v3.Client, apply func(STM) error) (*v3.TxnResponse, error) {
	return NewSTM(c, apply, WithAbortContext(ctx), WithIsolation(ReadCommitted))
}

// account counts the attempt, which has ended with err, and tells the trace. It returns
// the error that is to be returned instead if that was the last attempt allowed.
func (a *attempt) account(err error) error {
	a.attempts++
	a.met.Number, a.met.Err = a.attempts, err
	a.met.Paused += a.paused
	looks, last := a.options.trace != nil && a.options.trace.Attempt != nil, false
	switch err {
	case errConflict:
		a.conflicts++
		last = a.conflicts == a.options.maxConflicts
		// To find the keys takes time. It is taken only if somebody is told.
		if a.met.Err = ErrConflict; looks || last {
			a.met.Keys = a.conflicting()
		}
	case errRetry:
		a.met.Err = ErrBlocked
	}
	if looks {
		a.options.trace.Attempt(a.met)
	}
	if last {
		return fmt.Errorf("%w: %d attempts, the last one over %s", ErrConflict, a.conflicts, list(a.met.Keys))
	}
	return err
}

// conflicting are the keys over which the attempt has conflicted, as far as the snapshot of the next
// attempt tells.
func (a *attempt) conflicting() (keys []string) {
	switch {
	case a.err == errConflict: // a read found its snapshot compacted
		return nil
	case a.header == nil:
		for _, s := range a.reads.spans {
			keys = append(keys, s.name())
		}
		keys = append(keys, slices.Collect(maps.Keys(a.reads.keys))...)
	default:
		keys = differences(&a.reads, &a.known)
	}
	if len(keys) == 0 { // what was read has not changed
		for _, w := range a.writes {
			keys = append(keys, w.key)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// list is the text of some names, of which many are only counted.
func list(names []string) string {
	const shown = 10
	text := strings.Join(names[:min(shown, len(names))], ", ")
	if more := len(names) - shown; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
