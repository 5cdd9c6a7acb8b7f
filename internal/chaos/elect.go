package main

import (
	"context"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/history"
	"example.com/etcd/concurrency/internal/library"
)

// headed is a Mutex or an Election.
type headed interface {
	Header() *pb.ResponseHeader
}

// value is one that nobody has campaigned with.
func (w *worker) value() string {
	w.number++
	return fmt.Sprint(valueOf(w.who), w.number)
}

// valueOf is how all values of a client begin.
func valueOf(who history.Who) string { return fmt.Sprintf("%s-%d-", who.Package, who.Client) }

// owner is the comparison that holds while the election is led by rev.
func owner(key string, rev int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(key), "=", rev)
}

// campaign leads an election for a while, proclaims and resigns.
func (w *worker) campaign(ctx context.Context) {
	name := pick(w.rnd, elections)
	e := w.session.NewElection(name)
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

func (w *worker) resign(ctx context.Context, name string, e library.Election) {
	err := w.call(ctx, "Resign", name, w.patience(), e.Resign)
	if err != nil && w.rnd.IntN(2) == 0 {
		w.shut()
	}
}

// lead leads by Election.Lead, where there is one.
func (w *worker) lead(ctx context.Context) {
	name := pick(w.rnd, elections)
	e := w.session.NewElection(name)
	l, ok := e.(library.Leading)
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
	e := w.session.NewElection(name)
	if w.call(ctx, "Campaign", name, w.patience(), w.with(e.Campaign)) != nil {
		return
	}
	key, rev := e.Key(), e.Rev()
	w.hold(ctx, w.claim(name, rev, e), w.alive(e), owner(key, rev))
	w.session.Orphan()
	if !w.adopt(ctx, w.session.Lease()) {
		return
	}
	e = w.session.ResumeElection(name+w.lib.Slash, key, rev)
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
			return concurrency.RunLeader(ctx, w.client, name, value, func(ctx context.Context, led *concurrency.Election) error {
				select {
				case running <- struct{}{}:
				default:
					w.violate("run", w.who.Package, "%v: RunLeader runs two functions", w.who)
				}
				defer func() { <-running }()
				w.led.Add(1)
				w.holdRun(ctx, name, led)
				return nil
			}, concurrency.WithTTL(ttl), concurrency.WithSafetyMargin(runMargin))
		})
	}
}

// holdRun holds what RunLeader has acquired, as the election says that it leads. The session's
// deadline is unknown, which is what the margin is for.
func (w *worker) holdRun(ctx context.Context, name string, led *concurrency.Election) {
	t := &history.Term{Who: w.who, Name: name, Token: led.Rev(), Lease: int64(led.Session().Lease())}
	alive := func() bool {
		now := w.rec.Now()
		if ctx.Err() != nil {
			return false
		}
		if t.Start == 0 {
			t.Start = now
		}
		t.End = now
		return true
	}
	// Whoever is told no token has lost the leadership already, and its context has ended.
	if t.Token == 0 || !alive() {
		return
	}
	defer func() { w.rec.Add(history.Record{Term: t}) }()
	h := &history.Hold{Who: w.who, Name: name, Token: t.Token, Lease: t.Lease, Rev: led.Header().Revision}
	hidden := *w // whose session is not the worker's
	hidden.session = nil
	hidden.hold(ctx, h, alive, led.IsLeader())
}

// follow observes an election by Observe and Leaders in turn, until ctx ends; by each of
// them until it is broken off or, when the faults are over, for good. Its session is for the
// handle alone: observing needs none that lives.
func (w *worker) follow(ctx context.Context, name string, last *latest) {
	for n := 0; pause(ctx, between(w.rnd, 0, 50*time.Millisecond)); n++ {
		if !w.reopen(ctx) {
			continue
		}
		bound, cancel := context.WithCancel(ctx)
		over := time.AfterFunc(between(w.rnd, time.Second, 10*time.Second), func() {
			if !ended(w.calm) {
				cancel()
			}
		})
		stream := w.streams.Add(1)
		e := w.session.NewElection(name)
		var err error // why it ended, where that is told
		if l, ok := e.(library.Following); ok && n%2 == 1 {
			err = w.leaders(bound, stream, name, l, last)
		} else {
			for resp := range e.Observe(bound) {
				w.sight(stream, name, resp, last)
			}
		}
		if w.who.Package == history.Here && bound.Err() == nil && w.client.Ctx().Err() == nil {
			w.violate("observer", w.who.Package, "%v: an observation of %q ended by itself: %v", w.who, name, err)
		}
		over.Stop()
		cancel()
	}
	w.shut()
}

// leaders follows by Leaders. A vacancy carries no revision: it lies between the last one
// that was known before and one that is asked for afterwards.
func (w *worker) leaders(
	ctx context.Context, stream int64, name string, e library.Following, last *latest,
) error {
	known := w.audit.seen()
	for l, err := range e.Leaders(ctx) {
		if err != nil {
			return err
		}
		last.set(l.Value)
		s := history.Sighting{
			Who: w.who, Stream: stream, Name: name, Token: l.Rev, From: l.Revision, To: l.Revision, At: w.rec.Now(),
		}
		if l == (concurrency.Leader{}) {
			bound, cancel := context.WithTimeout(ctx, time.Second)
			resp, err := w.admin.Get(bound, endKey)
			cancel()
			if err != nil {
				continue
			}
			s.From, s.To = known, resp.Header.Revision
		} else {
			known = max(known, l.Revision)
		}
		w.rec.Add(history.Record{Sighting: &s})
	}
	return nil
}

// sight records what Observe has told. Upstream's header is of a later revision than the
// event that it belongs to.
func (w *worker) sight(stream int64, name string, resp *clientv3.GetResponse, last *latest) {
	kv := resp.Kvs[0]
	last.set(string(kv.Value))
	s := history.Sighting{
		Who: w.who, Stream: stream, Name: name, Token: kv.CreateRevision,
		From: resp.Header.Revision, To: resp.Header.Revision, At: w.rec.Now(),
	}
	if w.who.Package == history.Upstream {
		s.From = kv.ModRevision
	}
	w.rec.Add(history.Record{Sighting: &s})
}
