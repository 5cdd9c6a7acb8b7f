package main

import (
	"context"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/history"
)

// headed is a Mutex or an Election.
type headed interface {
	Header() *pb.ResponseHeader
}

// value is one that nobody has campaigned with.
func (w *worker) value() string {
	w.number++
	return fmt.Sprintf("%s-%d-%d", w.who.Package, w.who.Client, w.number)
}

// owner is the comparison that holds while the election is led by rev.
func owner(key string, rev int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(key), "=", rev)
}

// campaign leads an election for a while, proclaims and resigns.
func (w *worker) campaign(ctx context.Context) {
	name := pick(w.rnd, elections)
	e := w.session.election(name)
	if w.call(ctx, "Campaign", name, w.patience(), w.with(e.Campaign)) != nil {
		return
	}
	h := w.claim(name, e.Rev(), e)
	alive := w.alive(e)
	if w.rnd.IntN(3) == 0 {
		_ = w.call(ctx, "Proclaim", name, w.patience(), w.with(e.Proclaim))
	}
	w.hold(ctx, h, alive, owner(e.Key(), e.Rev()))
	w.resign(ctx, name, e)
}

// with gives a new value to Campaign or Proclaim.
func (w *worker) with(f func(context.Context, string) error) func(context.Context) error {
	value := w.value()
	return func(ctx context.Context) error { return f(ctx, value) }
}

func (w *worker) resign(ctx context.Context, name string, e election) {
	err := w.call(ctx, "Resign", name, w.patience(), e.Resign)
	if err != nil && w.rnd.IntN(2) == 0 {
		w.shut()
	}
}

// lead leads by Election.Lead, where there is one.
func (w *worker) lead(ctx context.Context) {
	name := pick(w.rnd, elections)
	e := w.session.election(name)
	l, ok := e.(leader)
	if !ok {
		w.campaign(ctx)
		return
	}
	_ = w.call(ctx, "Lead", name, w.patience(), func(ctx context.Context) error {
		return l.Lead(ctx, w.value(), func(ctx context.Context) error {
			h := w.claim(name, e.Rev(), e)
			w.hold(ctx, h, func() bool { return ctx.Err() == nil }, owner(e.Key(), e.Rev()))
			return nil
		})
	})
}

// resume leads, leaves the leadership to nobody as a process does that is restarted, and
// takes it up again in a new session on the old lease. Only a proclamation shows that the
// leadership has lasted.
func (w *worker) resume(ctx context.Context) {
	name := pick(w.rnd, elections)
	e := w.session.election(name)
	if w.call(ctx, "Campaign", name, w.patience(), w.with(e.Campaign)) != nil {
		return
	}
	key, rev := e.Key(), e.Rev()
	w.hold(ctx, w.claim(name, rev, e), w.alive(e), owner(key, rev))
	w.session.orphan()
	if !w.adopt(ctx, w.session.lease) {
		return
	}
	e = w.session.resume(name, key, rev)
	if w.call(ctx, "Proclaim, resumed", name, w.patience(), w.with(e.Proclaim)) == nil {
		w.hold(ctx, w.claim(name, rev, e), w.alive(e), owner(key, rev))
	}
	w.resign(ctx, name, e)
}

// runLeader leads by RunLeader, call after call.
func (w *worker) runLeader(ctx context.Context, name string) {
	for pause(ctx, between(w.rnd, 0, 100*time.Millisecond)) {
		value := w.value()
		limit := between(w.rnd, 2*time.Second, 10*time.Second)
		_ = w.call(ctx, "RunLeader", name, limit, func(ctx context.Context) error {
			running := make(chan struct{}, 1)
			return concurrency.RunLeader(ctx, w.client, name, value, func(ctx context.Context) error {
				select {
				case running <- struct{}{}:
				default:
					w.violate("run", w.who.Package, "%v: RunLeader runs two functions", w.who)
				}
				defer func() { <-running }()
				w.led.Add(1)
				w.holdRun(ctx, name, value)
				return nil
			}, concurrency.WithTTL(ttl), concurrency.WithSafetyMargin(runMargin))
		})
	}
}

// holdRun holds what RunLeader has acquired. Which ticket that is only the servers tell: the
// head of the line with the value of this call. The session's deadline is unknown, which
// is what the margin is for.
func (w *worker) holdRun(ctx context.Context, name, value string) {
	bound, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	resp, err := w.client.Get(bound, name+"/", clientv3.WithFirstCreate()...)
	if err != nil || len(resp.Kvs) == 0 || string(resp.Kvs[0].Value) != value {
		pause(ctx, w.duration())
		return
	}
	kv := resp.Kvs[0]
	h := &history.Hold{Who: w.who, Name: name, Token: kv.CreateRevision, Lease: kv.Lease}
	hidden := *w // whose session is not the worker's
	hidden.session = session{}
	hidden.hold(ctx, h, func() bool { return ctx.Err() == nil }, owner(string(kv.Key), kv.CreateRevision))
}

// follow observes an election by Observe and Leaders in turn, until ctx ends; by each of
// them until it is broken off or, when calm is closed, for good. Its session is for the
// handle alone: observing needs none that lives.
func (w *worker) follow(ctx context.Context, name string, last *latest, calm <-chan struct{}) {
	for n := 0; pause(ctx, between(w.rnd, 0, 50*time.Millisecond)); n++ {
		if !w.reopen(ctx) {
			continue
		}
		bound, cancel := context.WithCancel(ctx)
		over := time.AfterFunc(between(w.rnd, time.Second, 10*time.Second), func() {
			if !ended(calm) {
				cancel()
			}
		})
		e := w.session.election(name)
		if l, ok := e.(*concurrency.Election); ok && n%2 == 1 {
			w.leaders(bound, name, l, last)
		} else {
			for resp := range e.Observe(bound) {
				w.sight(name, resp, last)
			}
		}
		over.Stop()
		cancel()
	}
	w.shut()
}

func (w *worker) leaders(ctx context.Context, name string, e *concurrency.Election, last *latest) {
	for l, err := range e.Leaders(ctx) {
		if err != nil {
			return
		}
		last.set(l.Value)
		s := history.Sighting{Who: w.who, Name: name, Token: l.Rev, From: l.Revision, To: l.Revision, At: w.rec.Now()}
		if l == (concurrency.Leader{}) {
			continue // it carries no revision at which to look
		}
		w.rec.Add(history.Record{Sighting: &s})
	}
}

// sight records what Observe has told. Upstream's header is of a later revision than the
// event that it belongs to.
func (w *worker) sight(name string, resp *clientv3.GetResponse, last *latest) {
	kv := resp.Kvs[0]
	last.set(string(kv.Value))
	s := history.Sighting{
		Who: w.who, Name: name, Token: kv.CreateRevision,
		From: resp.Header.Revision, To: resp.Header.Revision, At: w.rec.Now(),
	}
	if w.who.Package == history.Upstream {
		s.From = kv.ModRevision
	}
	w.rec.Add(history.Record{Sighting: &s})
}
