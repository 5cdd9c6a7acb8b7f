package concurrency

import (
	"context"
	"errors"
	"fmt"
	"time"

	v3 "go.etcd.io/etcd/client/v3"
)

var (
	// ErrLocked is returned by [Mutex.TryLock] when another session holds the lock or
	// stands in line for it.
	ErrLocked = errors.New("mutex: Locked by another session")

	// ErrSessionExpired is returned by [Mutex.Lock], [Mutex.TryLock], [Election.Campaign] and
	// their like when their key in etcd is gone. The lease was lost or revoked, or
	// somebody deleted the key. It is returned bare. The causes of contexts say which of these
	// it was, and wrap it: [ErrDeadline], [ErrLeaseGone], [ErrKeyDeleted]. If [Session.Ctx]
	// lives when a call returns it, only the key is gone, and the session can be used further.
	ErrSessionExpired = errors.New("mutex: session is expired")

	// ErrDeadline is the cause of [Session.Ctx] when no renewal was answered in time. The lease
	// may live on for a moment. It wraps [ErrSessionExpired].
	ErrDeadline = fmt.Errorf("%w: no renewal was answered before the deadline", ErrSessionExpired)

	// ErrLeaseGone is the cause of [Session.Ctx] when a server has said that the lease is gone.
	// The lease was revoked, or ran out unnoticed. It wraps [ErrSessionExpired].
	ErrLeaseGone = fmt.Errorf("%w: the server does not have the lease any more", ErrSessionExpired)

	// ErrKeyDeleted is the cause of [Mutex.Ctx] and [Election.Ctx] when the key is gone. Somebody
	// deleted the key, or another handle of the session released it, or it went with its lease.
	// In the last case Session.Ctx ends as well, as soon as a server has said so. It wraps
	// [ErrSessionExpired].
	ErrKeyDeleted = fmt.Errorf("%w: the key was deleted", ErrSessionExpired)

	// ErrClientClosed is the cause of [Session.Ctx] when the client was closed, which is no loss.
	// It wraps [context.Canceled].
	ErrClientClosed = fmt.Errorf("%w: the client was closed", context.Canceled)

	// ErrNoAnswer is given to the functions of a [Trace] when a call or a renewal was not answered
	// in time and is sent again. No call returns it.
	ErrNoAnswer = errors.New("concurrency: no answer yet")

	// ErrLockReleased is returned by [Mutex.Unlock], and by what releases the other locks, when the
	// handle holds no lock. It is the cause of [Mutex.Ctx] after a release.
	ErrLockReleased = errors.New("mutex: lock has already been released")

	// ErrHeld is returned by [Mutex.Do] and [Election.Lead], and by their like. Either this handle
	// already holds the lock or the leadership, or another Do or Lead of it is under way.
	ErrHeld = errors.New("concurrency: already held by this handle")

	// ErrElectionNotLeader is returned by [Election.Proclaim] when this handle does not
	// lead, or not any more.
	ErrElectionNotLeader = errors.New("election: not leader")

	// ErrElectionNoLeader is returned by [Election.Leader] when nobody leads.
	ErrElectionNoLeader = errors.New("election: no leader")

	// ErrCommitUnknown is wrapped by the error of [NewSTM] when the commit was not
	// answered. The commit may have been carried out, now or a little later, or not at all.
	ErrCommitUnknown = errors.New("concurrency: the outcome of the commit is unknown")

	// ErrGuardFailed is returned by [NewSTM] when a comparison given with [WithGuard] was
	// false at the commit. Nothing was committed.
	ErrGuardFailed = errors.New("concurrency: a guard of the transaction does not hold")

	// ErrConflict is wrapped by the error of [NewSTM] when as many attempts have conflicted as
	// [WithMaxAttempts] allows: nothing was committed. In [Attempt.Err] it says that another
	// attempt follows.
	ErrConflict = errors.New("concurrency: the transaction conflicts with others")

	// ErrBlocked is in [Attempt.Err] when the attempt has ended with Retry. NewSTM does not
	// return it.
	ErrBlocked = errors.New("concurrency: the transaction waits for a change")
)

// noAnswer says for what NewSession has waited in vain, and from whom.
func noAnswer(client *v3.Client, waited time.Duration, what string, cause error) error {
	state := "without a connection"
	if conn := client.ActiveConnection(); conn != nil {
		state = fmt.Sprintf("connection %v", conn.GetState())
	}
	return fmt.Errorf("concurrency: NewSession: no server of %v (%s) did %s within %v: %w",
		client.Endpoints(), state, what, waited, cause)
}

func marginError(margin, ttl time.Duration) error {
	return fmt.Errorf("concurrency: a safety margin of %v does not lie within the TTL of %v", margin, ttl)
}

// tellsLoss reports whether err says nothing else than the cause of a loss does.
func tellsLoss(err, cause error) bool {
	return errors.Is(err, cause) || errors.Is(err, ErrSessionExpired) && errors.Is(cause, ErrSessionExpired)
}

// need panics if the caller has given no context.
func need(ctx context.Context) {
	if ctx == nil {
		panic("concurrency: nil context")
	}
}

// configure applies the options that a program has given to the function of that name.
func configure[O any, F ~func(*O)](name string, o *O, options []F) {
	for _, option := range options {
		if option == nil {
			panic("concurrency: " + name + ": nil option")
		}
		option(o)
	}
}
