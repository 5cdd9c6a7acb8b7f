package concurrency

import "context"

// ends are what tells that a session has ended.
type ends struct {
	ctx  context.Context // ends with the session; its Err looks at the clock
	end  context.CancelCauseFunc
	done chan struct{} // closed after ctx has ended

	// lost ends when nothing can be done on the lease any more, and setLost ends it. It is not
	// the same as ctx, see [ending].
	lost    context.Context
	setLost context.CancelCauseFunc
}

// ending is one of the ways in which a session ends. In each of them Ctx ends, then Done
// closes, and nothing is renewed from then on. The first ending gives Ctx its cause. A later
// one may still end lost.
//
//	what happens             cause of Ctx       lost      Close after that
//	Orphan                   context.Canceled   lives on  revokes
//	WithContext's has ended  its cause          lives on  returns its error
//	Close                    context.Canceled   ends      revokes
//	the client is closed     ErrClientClosed    ends      returns context.Canceled
//	the deadline passes      ErrDeadline        ends      revokes what may still live
//	the server says: gone    ErrLeaseGone       ends      has nothing to do
//
// Where lost lives on, the lease lives on for its TTL, or for as long as somebody renews it,
// and so do calls, waits and clean-ups. Where lost ends, calls are called off, waits return the
// error of [lease.loss], and clean-ups stop because the keys go with the lease.
type ending struct {
	cause error
	lost  bool
	gone  bool // the server does not have the lease
}

var (
	orphaned     = ending{cause: context.Canceled}
	contextEnded = ending{} // Ctx has ended before, as a child of that context
	closed       = ending{cause: context.Canceled, lost: true}
	clientClosed = ending{cause: ErrClientClosed, lost: true}
	expired      = ending{cause: ErrDeadline, lost: true}
	toldGone     = ending{cause: ErrLeaseGone, lost: true, gone: true}
)
