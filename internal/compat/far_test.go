package compat

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
	"example.com/etcd/concurrency/internal/library"
)

// Rows about servers that are slow, silent, or refuse.

// slowKV is the KV of a server that carries each transaction out at once and answers late.
type slowKV struct {
	clientv3.KV

	late time.Duration
}

func (k slowKV) Txn(ctx context.Context) clientv3.Txn {
	return slowTxn{k.KV.Txn(context.WithoutCancel(ctx)), ctx, k.late}
}

type slowTxn struct {
	clientv3.Txn

	ctx  context.Context
	late time.Duration
}

func (t slowTxn) If(cmps ...clientv3.Cmp) clientv3.Txn { t.Txn = t.Txn.If(cmps...); return t }
func (t slowTxn) Then(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Then(ops...); return t }
func (t slowTxn) Else(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Else(ops...); return t }

func (t slowTxn) Commit() (*clientv3.TxnResponse, error) {
	due := time.NewTimer(t.late)
	defer due.Stop()
	resp, err := t.Txn.Commit()
	select {
	case <-due.C:
		return resp, err
	case <-t.ctx.Done():
		return nil, t.ctx.Err()
	}
}

// Each transaction is answered after 55 % of the TTL.
func slowServer(e *env) error {
	const ttl = 4
	c := e.client()
	c.KV = slowKV{c.KV, ttl * time.Second * 55 / 100}
	p := e.party(partyOptions{ttl: ttl, client: c})
	p.faults.Reset()
	if err := ends(p.start(e.Context()), ample, nil); err != nil {
		return fmt.Errorf("acquiring: %w", err)
	}
	if n := p.faults.Count(fault.Txn); n > 3 {
		return fmt.Errorf("%d joins", n)
	}
	if !p.owns() {
		return errors.New("it does not own")
	}
	if err := ends(etcdtest.Go(func() error { return p.release(e.Context()) }), ample, nil); err != nil {
		return fmt.Errorf("giving back: %w", err)
	}
	return e.leaves(p.place(), ample)
}

// refusals are what a server or a proxy may say no with, for a moment.
var refusals = []codes.Code{
	codes.ResourceExhausted, codes.Unknown, codes.PermissionDenied, codes.Unauthenticated, codes.Aborted,
}

// refuse refuses the next call of the kinds by which the packages clean up.
func (p *party) refuse(code codes.Code) {
	for _, kind := range []fault.Kind{fault.Get, fault.Txn, fault.Delete, fault.Do} {
		p.faults.Refuse(kind, 1, code, "no, for a moment")
	}
}

// eachRefusal runs a case of a clean-up with each code.
func eachRefusal(e *env, refused func(code codes.Code) error) error {
	for _, code := range refusals {
		if err := refused(code); err != nil {
			return fmt.Errorf("%v: %w", code, err)
		}
	}
	return nil
}

func refusedWithdrawal(e *env) error {
	holder := e.party(partyOptions{})
	e.must(holder.acquire(e.Context()))
	return eachRefusal(e, func(code codes.Code) error {
		p := e.party(partyOptions{})
		ctx, cancel := context.WithCancel(e.Context())
		defer cancel()
		call := p.queue(ctx, 2)
		p.refuse(code)
		cancel()
		<-call.Done()
		return e.leaves(p.place(), ample)
	})
}

func refusedLookAfterALostJoin(e *env) error {
	holder := e.party(partyOptions{})
	e.must(holder.acquire(e.Context()))
	return eachRefusal(e, func(code codes.Code) error {
		p := e.party(partyOptions{})
		ctx, cancel := context.WithCancel(e.Context())
		defer cancel()
		join := p.faults.HoldAnswer(fault.Txn, 1)
		call := p.start(ctx)
		<-join.Reached()
		e.waitLine(2)
		p.faults.Refuse(fault.Txn, 1, code, "no, for a moment")
		p.faults.Refuse(fault.Get, 1, code, "no, for a moment")
		p.faults.Refuse(fault.Delete, 1, code, "no, for a moment")
		cancel()
		<-call.Done()
		return e.leaves(p.place(), ample)
	})
}

// A release that is refused once is what Do meets when its work has returned. Upstream has no
// Do; there a program gives up what Unlock could not release.
func refusedRelease(e *env) error {
	return eachRefusal(e, func(code codes.Code) error {
		p := e.party(partyOptions{})
		m := p.session.NewMutex(e.name)
		if d, ok := m.(library.Doer); ok {
			_ = d.Do(e.Context(), func(context.Context) error {
				p.refuse(code)
				return nil
			})
		} else {
			e.must(m.Lock(e.Context()))
			p.refuse(code)
			_ = m.Unlock(e.Context())
		}
		return e.leaves(p.place(), ample)
	})
}

// The role by which the user may use the line is away when the wait is given up, and comes
// back.
func roleComesBack(e *env) error {
	e.name = "guest/" + e.name
	holder := e.party(partyOptions{})
	e.must(holder.acquire(e.Context()))
	p := e.party(partyOptions{client: e.inNamespace(e.login("guest", e.cluster.Endpoints()...))})
	ctx, cancel := context.WithCancel(e.Context())
	defer cancel()
	call := p.queue(ctx, 2)
	root := e.login("root", e.cluster.Endpoints()...)
	calls := func() int {
		return p.faults.Count(fault.Get) + p.faults.Count(fault.Txn) + p.faults.Count(fault.Delete)
	}
	before := calls() // without the role, upstream's wait may end and clean up before it is cancelled
	_, err := root.UserRevokeRole(e.Context(), "guest", "guest")
	e.must(err)
	cancel()
	<-call.Done()
	etcdtest.Eventually(e, func() bool { return calls() > before }, "the clean-up is refused")
	_, err = root.UserGrantRole(e.Context(), "guest", "guest")
	e.must(err)
	return e.leaves(p.place(), ample)
}

// twoLinks is a client that has two links to one server, of which the first carries all
// that was begun before open is called.
type twoLinks struct {
	client *clientv3.Client
	first  *fault.Proxy
	both   []string
}

func (e *env) twoLinks() *twoLinks {
	first, second := e.proxy(), e.proxy()
	e.Cleanup(first.Resume) // before it is closed, so that what is stuck ends
	return &twoLinks{e.client(first.Endpoint()), first, []string{first.Endpoint(), second.Endpoint()}}
}

// silence opens the second link and silences the first, which stands.
func (l *twoLinks) silence(e *env) {
	l.client.SetEndpoints(l.both...)
	// Calls go over the links in turn. One that is answered when the first is silent went
	// over the second.
	l.first.Stall()
	etcdtest.Answers(e, l.client)
}

// silentTTL is that of those who are on a link that falls silent.
const silentTTL = 8

// heard is how long a change may be held up by a silent member: a TTL and a second. What a
// busy machine adds is not the member's doing.
const heard = silentTTL*time.Second + soon + 2*time.Second

func silentWait(e *env) error {
	links := e.twoLinks()
	holder, waiter := e.party(partyOptions{}), e.party(partyOptions{ttl: silentTTL, client: links.client})
	e.must(holder.acquire(e.Context()))
	call := waiter.queue(e.Context(), 2)
	links.silence(e)
	e.must(holder.release(e.Context()))
	return ends(call, heard, nil)
}

func silentObserver(e *env) error {
	links := e.twoLinks()
	leader, next := e.party(partyOptions{}), e.party(partyOptions{})
	e.must(leader.acquire(e.Context()))
	s := e.session(links.client, library.SessionOptions{TTL: silentTTL})
	leaders := s.NewElection(e.name).Observe(e.Context())
	first := <-leaders
	call := next.start(e.Context())
	e.waitLine(2)
	fresh := etcdtest.Go(func() error {
		for resp := range leaders {
			if string(resp.Kvs[0].Key) != string(first.Kvs[0].Key) {
				return nil
			}
		}
		return errors.New("the channel was closed")
	})
	links.silence(e)
	e.must(leader.release(e.Context()))
	e.must(call.Wait(e))
	return ends(fresh, heard, nil)
}

// lost says what a handle says of itself after its session has ended by the loss.
func saysLost(e *env) error {
	for how, lose := range map[string]func(p *party){
		"revoked": (*party).revoke,
		"expired": func(p *party) { p.stall() },
	} {
		p := e.party(partyOptions{ttl: 2, proxy: true})
		e.must(p.acquire(e.Context()))
		lose(p)
		if !closes(p.session.Done(), ample) {
			return fmt.Errorf("%s: the session lives", how)
		}
		for _, h := range p.handles {
			if key := h.Key(); key != "" {
				return fmt.Errorf("%s: the key is %q", how, key)
			}
		}
		p.resume()
		e.waitLine(0)
	}
	return nil
}

func saysLostLeadership(e *env) error {
	p := e.party(partyOptions{ttl: 6})
	election := p.session.NewElection(e.name)
	e.must(election.Campaign(e.Context(), "value"))
	p.revoke()
	if !closes(p.session.Done(), 30*time.Second) {
		return errors.New("the session lives")
	}
	if key, rev := election.Key(), election.Rev(); key != "" || rev != 0 {
		return errors.New("the key is " + strconv.Quote(key) + ", the revision " + strconv.FormatInt(rev, 10))
	}
	return nil
}

// toldEnds checks an error that an acquisition returned on a lease that was revoked. The
// session's TTL is so long that no renewal tells of the loss in time.
func (p *party) toldEnds(err error) error {
	if !errors.Is(err, p.lib.ErrSessionExpired) && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return fmt.Errorf("returned %w", err)
	}
	if p.session.Ctx().Err() == nil {
		return fmt.Errorf("Ctx lives, and Done stays open, after %w", err)
	}
	return nil
}

// settled waits for a second without a renewal. Upstream sends the first one at once, and would
// be told of the revocation by its answer.
func (p *party) settled() {
	left := int64(0)
	etcdtest.Eventually(p, func() bool {
		resp, err := p.plain.TimeToLive(p.Context(), p.session.Lease())
		p.must(err)
		left = max(left, resp.TTL)
		return ours(p.lib) || resp.TTL < left
	}, "a second without a renewal")
}

func endedWhenTold(e *env) error {
	p := e.party(partyOptions{ttl: 60})
	p.settled()
	p.revoke()
	return p.toldEnds(p.acquire(e.Context()))
}

func endedWhenTryIsTold(e *env) error {
	p := e.party(partyOptions{ttl: 60})
	p.settled()
	p.revoke()
	return p.toldEnds(p.session.NewMutex(e.name).TryLock(e.Context()))
}

func endedWhenAWaitIsTold(e *env) error {
	holder, p := e.party(partyOptions{}), e.party(partyOptions{ttl: 60})
	e.must(holder.acquire(e.Context()))
	call := p.queue(e.Context(), 2)
	p.revoke()
	e.must(holder.release(e.Context())) // upstream's waits for it
	if !returned(call, ample) {
		return errors.New("still waiting")
	}
	return p.toldEnds(call.Err())
}
