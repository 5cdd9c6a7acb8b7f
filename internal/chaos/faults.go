package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/fault"
	"example.com/etcd/concurrency/internal/history"
)

// hand is one of those who do harm, each one thing at a time; together they mix it.
type hand struct {
	*run
	rnd *rand.Rand
}

// harm is one fault. It does it, lets it last, and undoes it before it returns, also when
// ctx ends meanwhile. It returns what it was done to.
type harm struct {
	what string
	do   func(h hand, ctx context.Context) (on string, err error)
}

// pair is what one pair of hands does.
type pair struct {
	harms []harm
	rest  time.Duration // at most, between two of them
}

// hands are the faults of the members, those of the connections, and those of operators
// and processes. The quicker ones have more than one pair of hands.
var hands = []pair{
	{membersHarms, 2 * time.Second},
	{linkHarms, 500 * time.Millisecond},
	{linkHarms, 500 * time.Millisecond},
	{handHarms, time.Second},
}

// chosen are the hands with those harms only whose names match.
func chosen(names *regexp.Regexp) []pair {
	var all []pair
	for _, p := range hands {
		p.harms = slices.DeleteFunc(slices.Clone(p.harms), func(h harm) bool {
			return names != nil && !names.MatchString(h.what)
		})
		all = append(all, p)
	}
	return all
}

// torture lets all hands go on for a while.
func (r *run) torture(ctx context.Context, length time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	var wg sync.WaitGroup
	for i, own := range chosen(r.faults) {
		if len(own.harms) == 0 {
			continue
		}
		h := hand{r, r.rand(400 + uint64(i))}
		wg.Go(func() {
			for pause(ctx, between(h.rnd, own.rest/10, own.rest)) {
				h.harm(ctx, pick(h.rnd, own.harms))
			}
		})
	}
	wg.Wait()
}

func (h hand) harm(ctx context.Context, what harm) {
	f := history.Fault{What: what.what, From: h.rec.Now()}
	on, err := what.do(h, ctx)
	f.On, f.To = on, h.rec.Now()
	if err != nil {
		f.Error = err.Error()
	}
	h.rec.Add(history.Record{Fault: &f})
}

// last lets a fault last: mostly for less than the TTL, sometimes for longer.
func (h hand) last(ctx context.Context) {
	if h.rnd.IntN(3) == 0 {
		pause(ctx, between(h.rnd, lifetime, 2*lifetime))
		return
	}
	pause(ctx, between(h.rnd, 20*time.Millisecond, lifetime))
}

const members = 3

var membersHarms = []harm{
	{"kill a member", func(h hand, ctx context.Context) (string, error) {
		return h.crash(ctx, h.rnd.IntN(members))
	}},
	{"kill the leader", func(h hand, ctx context.Context) (string, error) {
		return h.crash(ctx, max(0, h.cluster.Leader()))
	}},
	{"kill two of three", func(h hand, ctx context.Context) (string, error) {
		return h.crash(ctx, h.rnd.Perm(members)[:2]...)
	}},
	{"isolate a member", func(h hand, ctx context.Context) (string, error) {
		return h.part(ctx, h.rnd.IntN(members), h.cluster.Isolate)
	}},
	{"isolate the leader", func(h hand, ctx context.Context) (string, error) {
		return h.part(ctx, max(0, h.cluster.Leader()), h.cluster.Isolate)
	}},
	{"keep back what a member tells the others", func(h hand, ctx context.Context) (string, error) {
		return h.part(ctx, h.rnd.IntN(members), h.cluster.Mute)
	}},
	{"keep back what the leader tells the others", func(h hand, ctx context.Context) (string, error) {
		return h.part(ctx, max(0, h.cluster.Leader()), h.cluster.Mute)
	}},
	{"cut two members off from each other", func(h hand, ctx context.Context) (string, error) {
		return h.between(ctx, 1, (*fault.Proxy).Sever)
	}},
	{"break the connections of members", func(h hand, ctx context.Context) (string, error) {
		return h.between(ctx, members, (*fault.Proxy).Cut)
	}},
	{"slow the connections of members", func(h hand, ctx context.Context) (string, error) {
		return h.between(ctx, members, func(p *fault.Proxy) { p.Delay(50 * time.Millisecond) })
	}},
	{"move the leader", func(h hand, _ context.Context) (string, error) {
		to := h.rnd.IntN(members)
		return member(to), h.cluster.MoveLeader(to)
	}},
	{"restart one after the other", func(h hand, ctx context.Context) (string, error) {
		for i := range members {
			if err := h.cluster.Restart(i); err != nil {
				return member(i), err
			}
			pause(ctx, between(h.rnd, 0, 200*time.Millisecond))
		}
		return "all members", nil
	}},
	{"compact", func(h hand, _ context.Context) (string, error) {
		rev := h.audit.seen() // nothing that the auditor still needs
		_, err := h.admin.Compact(h.soon(), rev)
		return fmt.Sprint("revision ", rev), err
	}},
	{"defragment", func(h hand, _ context.Context) (string, error) {
		i := h.rnd.IntN(members)
		_, err := h.admin.Defragment(h.soon(), h.cluster.Endpoint(i))
		return member(i), err
	}},
}

func member(i int) string { return fmt.Sprint("member ", i) }

// soon bounds a call that may find no server.
func (h hand) soon() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), lifetime)
	time.AfterFunc(lifetime, cancel)
	return ctx
}

// crash stops members and starts them again.
func (h hand) crash(ctx context.Context, which ...int) (on string, err error) {
	for _, i := range which {
		h.cluster.Stop(i)
		on += member(i) + " "
	}
	h.last(ctx)
	for _, i := range which {
		if failure := h.cluster.Restart(i); failure != nil {
			err = failure
		}
	}
	return strings.TrimSpace(on), err
}

// part parts a member from its peers for a while.
func (h hand) part(ctx context.Context, i int, how func(int) error) (string, error) {
	if err := how(i); err != nil {
		return member(i), err
	}
	h.last(ctx)
	return member(i), h.cluster.Rejoin(i)
}

// between does harm to what connects some pairs of members, both ways.
func (h hand) between(ctx context.Context, pairs int, do func(*fault.Proxy)) (on string, err error) {
	var links []*fault.Proxy
	for _, third := range h.rnd.Perm(members)[:pairs] {
		i, j := (third+1)%members, (third+2)%members
		links = append(links, h.cluster.Link(i, j), h.cluster.Link(j, i))
		on += fmt.Sprintf("members %d and %d ", i, j)
	}
	for _, link := range links {
		do(link)
	}
	h.last(ctx)
	for _, link := range links {
		link.Heal()
	}
	return strings.TrimSpace(on), nil
}

var linkHarms = []harm{
	{"cut clients off from all members", links(all, (*fault.Proxy).Sever)},
	{"cut clients off from some members", links(some, (*fault.Proxy).Sever)},
	{"break connections", links(some, (*fault.Proxy).Cut)},
	{"keep back what clients send", links(all, (*fault.Proxy).StallUp)},
	{"keep back what members answer", links(all, (*fault.Proxy).StallDown)},
	{"stall some connections", links(some, (*fault.Proxy).Stall)},
	{"slow connections", links(all, func(p *fault.Proxy) { p.Delay(20 * time.Millisecond) })},
	{"very slow connections", links(some, func(p *fault.Proxy) { p.Delay(300 * time.Millisecond) })},
	{"lose answers", func(h hand, _ context.Context) (string, error) {
		s := pick(h.rnd, h.stations)
		for range 1 + h.rnd.IntN(3) {
			kind := pick(h.rnd, []fault.Kind{fault.Txn, fault.Txn, fault.Txn, fault.Put, fault.Delete, fault.Grant, fault.Revoke})
			s.faults.LoseAnswers(kind, 1+h.rnd.IntN(2))
		}
		return s.who.String(), nil
	}},
}

func all(*rand.Rand) bool      { return true }
func some(rnd *rand.Rand) bool { return rnd.IntN(2) == 0 }

// links does harm to the connections of one client or more, to those members that which
// chooses.
func links(which func(*rand.Rand) bool, do func(*fault.Proxy)) func(h hand, ctx context.Context) (string, error) {
	return func(h hand, ctx context.Context) (string, error) {
		hit := h.rnd.Perm(len(h.stations))[:1+h.rnd.IntN(len(h.stations)/2)]
		slices.Sort(hit)
		for _, i := range hit {
			for _, p := range h.stations[i].proxies {
				if which(h.rnd) {
					do(p)
				}
			}
		}
		h.last(ctx)
		for _, i := range hit {
			h.stations[i].heal()
		}
		return fmt.Sprint("clients ", hit), nil
	}
}

var handHarms = []harm{
	{"revoke a lease", func(h hand, ctx context.Context) (string, error) {
		kv, err := h.participant()
		if err != nil || kv == nil || kv.Lease == 0 {
			return "", err
		}
		h.rec.Add(history.Record{Loss: &history.Loss{Lease: kv.Lease, At: h.rec.Now()}})
		return string(kv.Key), h.answered(ctx, func(ctx context.Context) error {
			_, err := h.admin.Revoke(ctx, clientv3.LeaseID(kv.Lease))
			if errors.Is(err, rpctypes.ErrLeaseNotFound) {
				return nil // by an attempt before, or by itself
			}
			return err
		})
	}},
	{"delete a participant's key", func(h hand, ctx context.Context) (string, error) {
		kv, err := h.participant()
		if err != nil || kv == nil {
			return "", err
		}
		h.rec.Add(history.Record{Loss: &history.Loss{Token: kv.CreateRevision, At: h.rec.Now()}})
		return string(kv.Key), h.answered(ctx, func(ctx context.Context) error {
			_, err := h.admin.Txn(ctx).
				If(clientv3.Compare(clientv3.CreateRevision(string(kv.Key)), "=", kv.CreateRevision)).
				Then(clientv3.OpDelete(string(kv.Key))).Commit()
			return err
		})
	}},
	{"pause a process", func(h hand, ctx context.Context) (string, error) {
		value := valueOf(history.Who{Client: paused, Package: h.here()})
		soon := h.rec.Now() + lifetime // to stop one that leads shows the most
		for h.rec.Now() < soon && !h.audit.leads(value) && pause(ctx, 3*time.Millisecond) {
		}
		if err := h.child.pause(); err != nil {
			return "", err
		}
		pause(ctx, between(h.rnd, lifetime/2, 2*lifetime))
		return fmt.Sprint("client ", paused), h.child.resume()
	}},
}

// answered repeats a call until it is answered, or the end of the faults is past and the
// cluster should be whole. The loss was noted before it, and nothing that rests on what is
// lost can be held against anybody any more: so it has to come about.
func (h hand) answered(ctx context.Context, call func(context.Context) error) error {
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(settling, cancel) })()
	for {
		err := call(h.soon())
		if err == nil || !pause(late, retryPause) {
			return err
		}
	}
}

// participant picks one of those who stand in some line.
func (h hand) participant() (*mvccpb.KeyValue, error) {
	resp, err := h.admin.Get(h.soon(), root+lineArea, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil || len(resp.Kvs) == 0 {
		return nil, err
	}
	return pick(h.rnd, resp.Kvs), nil
}
