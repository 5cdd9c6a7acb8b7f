package concurrency

import (
	"context"
	"errors"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	v3 "go.etcd.io/etcd/client/v3"
)

// resigned is the term of all elections after a release.
var resigned = ended(ErrElectionNotLeader)

// Election is a session's candidacy under a name. Candidates lead in the order in which
// they came. All can see the leader's value.
//
// All methods may be called from any goroutine.
type Election struct{ ownership }

// NewElection returns a handle of the election that pfx names. The keys of the election lie
// under pfx + "/", where no other keys may lie. An empty pfx stands for "/". NewElection
// makes no call. It panics if s is nil.
func NewElection(s *Session, pfx string) *Election {
	return &Election{ownership{queue: newQueue(s, pfx), released: resigned}}
}

// ResumeElection returns a handle that leads already. leaderKey and leaderRev are the key
// and the create revision that [Election.Key] and [Election.Rev] gave before, for instance
// to a process that was restarted and kept its lease with [WithLease]. The next
// [Election.Proclaim] shows whether they still lead. With an empty key or a revision of
// zero the handle does not lead.
//
// pfx is the name that was given to [NewElection]. It may also be the prefix of all keys,
// which is the name with its "/" added, as upstream's package wants it. ResumeElection
// makes no call. It panics if s is nil.
func ResumeElection(s *Session, pfx string, leaderKey string, leaderRev int64) *Election {
	e := NewElection(s, pfx)
	if !strings.HasPrefix(leaderKey, e.queue.prefix) && strings.HasSuffix(pfx, "/") {
		e.queue.prefix = pfx
	}
	e.resume(leaderKey, leaderRev)
	return e
}

// Campaign makes the session a candidate with the value val and waits until it leads. A
// session that leads or waits already keeps its place and has val as its value from now on.
//
// It blocks and fails as [Mutex.Lock] does, with the same errors. A Campaign that fails
// withdraws the candidacy, except that a leader stays leader. When it returns nil, the
// session led at the revision of [Election.Header].
//
// It costs one call without a rival. A wait costs what a wait for a lock costs. A new value
// for a session that stands in line already costs one call more.
func (e *Election) Campaign(ctx context.Context, val string) error {
	_, err := e.campaign(ctx, val)
	return err
}

func (e *Election) campaign(ctx context.Context, val string) (*grant, error) {
	return e.acquire(ctx, e.queue.joinTxn(val).replacing())
}

// Proclaim gives the leader's key a new value, in one call. It returns
// [ErrElectionNotLeader] if this handle does not lead. After a loss it returns that every
// time. Other errors are ctx's and etcd's. Proclaim is not repeated. After an error without
// an answer the value may be either.
func (e *Election) Proclaim(ctx context.Context, val string) error {
	need(ctx)
	led, _ := e.state()
	if !e.owns(led) {
		return ErrElectionNotLeader
	}
	put := v3.OpPut(led.key, val, v3.WithLease(e.queue.session.id))
	resp, err := e.queue.lease().client.Txn(ctx).If(led.stands()).Then(put).Commit()
	switch {
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		e.queue.lease().heardGone()
		return err
	case err != nil:
		return err
	case !resp.Succeeded:
		e.lose(led)
		return ErrElectionNotLeader
	}
	e.note(led, resp.Header)
	return nil
}

// Resign gives up the leadership, so that the next candidate leads. It returns nil if this
// handle does not lead, or not any more.
//
// It costs one call, which is repeated over transient faults until ctx ends. Its errors are
// ctx's and etcd's. After an error this handle does not lead, and the key may or may not be
// deleted yet. The deletion goes on in the background until it is carried out or the lease
// is gone. Resign can be repeated.
func (e *Election) Resign(ctx context.Context) error {
	led, _ := e.state()
	if led == nil {
		return nil
	}
	header, err := e.release(ctx, led)
	if header != nil {
		e.note(led, header)
	}
	if err == ErrSessionExpired {
		return nil
	}
	return err
}

// Key returns the leader's key in etcd if this handle was elected, and "" otherwise.
func (e *Election) Key() string { return e.ticket().key }

// Rev returns the create revision of the leader's key if this handle was elected, and 0
// otherwise. The number rises with every change of the leader.
func (e *Election) Rev() int64 { return e.ticket().rev }

// Header returns the header of the latest answer that proved or ended the leadership of
// this handle. Campaign, Proclaim and Resign have such answers. Header is nil before the
// first.
func (e *Election) Header() *pb.ResponseHeader {
	_, header := e.state()
	return header
}

// IsLeader returns a comparison that is true in a transaction only while this handle leads.
// See [Mutex.IsOwner].
func (e *Election) IsLeader() v3.Cmp { return e.stands() }

// Ctx returns a context that ends with this handle's leadership, as [Mutex.Ctx] does with a
// lock. After Resign its cause is [ErrElectionNotLeader].
func (e *Election) Ctx() context.Context { return e.context() }

// Session returns the session whose candidacy this is. Its deadline and its TTL tell how long
// the leadership lasts if no server answers from now on.
func (e *Election) Session() *Session {
	e.queue.made()
	return e.queue.session
}

// Lead runs work while the session leads. It campaigns with value as [Election.Campaign]
// does. It calls work with a context that ends with ctx and with the leadership. It resigns
// after work has returned. For its errors and panics see [Mutex.Do].
func (e *Election) Lead(ctx context.Context, value string, work func(context.Context) error) error {
	return e.during(ctx, func() (*grant, error) { return e.campaign(ctx, value) }, work)
}

// note keeps the header of an answer about led, unless the handle leads by a newer ticket. The context
// of the leadership watches from the revision of that header on.
func (e *Election) note(led *grant, header *pb.ResponseHeader) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.held == nil || e.held == led {
		e.header = header
	}
}
