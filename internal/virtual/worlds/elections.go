package worlds

import (
	"context"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/history"
	"example.com/etcd/concurrency/internal/library"
)

func (w *worker) anyElection() string { return w.election(w.rnd.IntN(w.plan.Elections)) }

// leads is the comparison that holds while the election is led by rev.
func leads(key string, rev int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(key), "=", rev)
}

// with gives a new value to Campaign or Proclaim.
func (w *worker) with(f func(context.Context, string) error) func(context.Context) error {
	value := w.value()
	return func(ctx context.Context) error { return f(ctx, value) }
}

// elect campaigns and holds the leadership for a while. It reports whether it led.
func (w *worker) elect(ctx context.Context, name string, e library.Election) bool {
	s := w.stay
	if w.call(ctx, call{op: "Campaign", name: name, lease: s.lease, limit: w.patience()}, w.with(e.Campaign)) != nil {
		return false
	}
	h := w.owning(s, name, e.Rev(), leads(e.Key(), e.Rev()), e)
	if w.rnd.IntN(3) == 0 {
		_ = w.call(ctx, call{op: "Proclaim", name: name, lease: s.lease, limit: w.patience()}, w.with(e.Proclaim))
	}
	w.hold(ctx, h)
	return true
}

// candidates are goroutines that campaign with handles of their own and values of their own, on one
// session. They share the key, which has the value of the last. Whoever resigns takes it from the others.
func (w *worker) candidates(ctx context.Context) {
	s, name := w.stay, w.anyElection()
	w.beside(2, func(sibling *worker) {
		pause(ctx, sibling.think()/4)
		e := s.NewElection(name)
		c := call{op: "Campaign", name: name, lease: s.lease, limit: sibling.patience()}
		if sibling.call(ctx, c, sibling.with(e.Campaign)) != nil {
			return
		}
		h := sibling.owning(s, name, e.Rev(), leads(e.Key(), e.Rev()), e)
		h.by, h.stay = nil, nil // a sibling may have resigned
		sibling.hold(ctx, h.within(e.(library.Owned).Ctx(), s.ttl))
		c.op, c.limit = "Resign", sibling.patience()
		_ = sibling.call(ctx, c, e.Resign)
	})
}

// campaign leads an election for a while, proclaims and resigns.
func (w *worker) campaign(ctx context.Context) {
	name := w.anyElection()
	e := w.stay.NewElection(name)
	if !w.elect(ctx, name, e) {
		return
	}
	if w.rnd.IntN(5) == 0 { // the same handle again, with a new value
		w.elect(ctx, name, e)
	}
	w.resign(ctx, name, e)
}

func (w *worker) resign(ctx context.Context, name string, e library.Election) {
	err := w.release(ctx, call{op: "Resign", name: name, lease: w.stay.lease}, e.Resign)
	if err != nil && w.rnd.IntN(2) == 0 {
		w.shut()
	}
}

// lead leads by Election.Lead.
func (w *worker) lead(ctx context.Context) {
	s, name := w.stay, w.anyElection()
	e := s.NewElection(name)
	value := w.value()
	_ = w.call(ctx, call{op: "Lead", name: name, lease: s.lease, limit: w.patience()}, func(ctx context.Context) error {
		return e.(library.Leading).Lead(ctx, value, func(ctx context.Context) error {
			w.hold(ctx, w.owning(s, name, e.Rev(), leads(e.Key(), e.Rev()), e).within(ctx, s.ttl))
			return nil
		})
	})
}

// resume leads, leaves the leadership to nobody as a process does that is restarted, and takes
// it up again in a new session on the old lease. Only a proclamation shows that the leadership
// has lasted.
func (w *worker) resume(ctx context.Context) {
	name := w.anyElection()
	e := w.stay.NewElection(name)
	if !w.elect(ctx, name, e) {
		return
	}
	key, rev, old := e.Key(), e.Rev(), w.stay
	if key == "" { // the session has been lost in this moment, and there is nothing to resume
		w.resign(ctx, name, e)
		return
	}
	w.leave(old)
	old.Orphan()
	if !ended(w.calm) && w.rnd.IntN(2) == 0 { // less is left of the lease then than of a new one
		pause(ctx, between(w.rnd, 0, old.ttl))
	}
	if w.stay = w.open(ctx, library.SessionOptions{Lease: old.lease}); w.stay == nil {
		return
	}
	e = w.stay.ResumeElection(name+w.lib.Slash, key, rev)
	c := call{op: "Proclaim, resumed", name: name, lease: w.stay.lease, limit: w.patience()}
	if w.call(ctx, c, w.with(e.Proclaim)) == nil {
		w.hold(ctx, w.owning(w.stay, name, rev, leads(key, rev), e))
	}
	w.resign(ctx, name, e)
}

// leader asks who leads.
func (w *worker) leader(ctx context.Context) {
	name, before := w.anyElection(), w.audit.seen()
	e := w.stay.NewElection(name)
	_ = w.call(ctx, call{op: "Leader", name: name, limit: w.patience()}, func(ctx context.Context) error {
		resp, err := e.Leader(ctx)
		if err != nil {
			return err
		}
		w.rec.Add(history.Record{Sighting: &history.Sighting{
			Who: w.who, Name: name, Token: resp.Kvs[0].CreateRevision, From: before, To: resp.Header.Revision, At: w.rec.Now(),
		}})
		return nil
	})
}

// latest is what an observer was told last.
type latest struct {
	name string
	how  string

	mu    sync.Mutex // guards value
	value string
}

func (l *latest) set(value string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.value = value
}

func (l *latest) get() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.value
}

// observe follows an election by Observe.
func (w *worker) observe(ctx context.Context) {
	w.follow(ctx, "Observe", func(ctx context.Context, stream int64, e library.Election, last *latest) error {
		for resp := range e.Observe(ctx) {
			kv := resp.Kvs[0]
			last.set(string(kv.Value))
			s := history.Sighting{
				Who: w.who, Stream: stream, Name: last.name, Token: kv.CreateRevision,
				From: resp.Header.Revision, To: resp.Header.Revision, At: w.rec.Now(),
			}
			if !w.here() { // its header is of a later revision than the event
				s.From = kv.ModRevision
			}
			w.rec.Add(history.Record{Sighting: &s})
		}
		return nil
	})
}

// leaders follows an election by Leaders. A vacancy carries no revision: it lies between the
// last one that was known before and the present one.
func (w *worker) leaders(ctx context.Context) {
	w.follow(ctx, "Leaders", func(ctx context.Context, stream int64, e library.Election, last *latest) error {
		known := w.audit.seen()
		for l, err := range e.(library.Following).Leaders(ctx) {
			if err != nil {
				return err
			}
			last.set(l.Value)
			s := history.Sighting{
				Who: w.who, Stream: stream, Name: last.name, Token: l.Rev, From: l.Revision, To: l.Revision, At: w.rec.Now(),
			}
			if l == (concurrency.Leader{}) {
				s.From, s.To = known, w.rev()
			} else {
				known = max(known, l.Revision)
			}
			w.rec.Add(history.Record{Sighting: &s})
		}
		return nil
	})
}

// follow observes an election until ctx ends: for a while at a time, and for good when the
// faults are over. Its session is for the handle alone: observing needs none that lives.
func (w *worker) follow(
	ctx context.Context, how string, read func(context.Context, int64, library.Election, *latest) error,
) {
	name := w.anyElection()
	last := &latest{name: name, how: how}
	w.watched(last)
	for pause(ctx, between(w.rnd, 0, time.Second)) {
		if !w.reopen(ctx) {
			continue
		}
		bound, cancel := context.WithCancel(ctx)
		over := time.AfterFunc(between(w.rnd, time.Second, 2*time.Minute), func() {
			if !ended(w.calm) {
				cancel()
			}
		})
		stream, since := w.streams.Add(1), w.rec.Now()
		err := read(bound, stream, w.stay.NewElection(name), last)
		mayEnd := w.given(err) || err == nil && w.plan.refusals() // Observe doesn't tell why it ends
		if w.here() && bound.Err() == nil && w.client.Ctx().Err() == nil && !mayEnd {
			w.violate("observer", "%v: %s of %q ended by itself: %v", w.who, how, name, err)
		}
		over.Stop()
		cancel()
		w.followedBy(followed{w.station, name, how, stream, span{since, w.rec.Now()}})
	}
	w.shut()
}

func (w *world) followedBy(f followed) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.followed = append(w.followed, f)
}

func (s *station) watched(l *latest) {
	s.pendingMu.Lock()
	defer s.pendingMu.Unlock()
	s.latests = append(s.latests, l)
}

// runLeader leads by RunLeader, call after call. The pauses are short, because after the faults
// somebody has to lead soon.
func (w *worker) runLeader(ctx context.Context) {
	for pause(ctx, min(w.think(), 5*time.Second)) {
		value, ttl := w.value(), pick(w.rnd, w.plan.TTLs)
		opts := []concurrency.LeaderOption{concurrency.WithTTL(ttl)}
		if w.plan.Margins {
			opts = append(opts, concurrency.WithSafetyMargin(time.Duration(ttl)*time.Second/4))
		}
		limit := between(w.rnd, 2*time.Second, time.Minute)
		over := false // when the function returned last
		err := w.call(ctx, call{op: "RunLeader", name: runElection, limit: limit}, func(ctx context.Context) error {
			running := make(chan struct{}, 1)
			return concurrency.RunLeader(ctx, w.client, runElection, value, func(ctx context.Context, e *concurrency.Election) error {
				select {
				case running <- struct{}{}:
				default:
					w.violate("run", "%v: RunLeader runs two functions", w.who)
				}
				defer func() { <-running }()
				w.led.Add(1)
				w.run(ctx, e, time.Duration(ttl)*time.Second)
				over = ctx.Err() != nil
				return nil
			}, opts...)
		})
		if err == nil && over {
			w.violate("run", "%v: RunLeader returned nil, though its function did not lead any more", w.who)
		}
	}
}

// run holds what RunLeader has acquired, as the election says that it gives to its function. If
// the election says that it does not lead any more, the context has ended.
func (w *worker) run(ctx context.Context, e *concurrency.Election, ttl time.Duration) {
	h := holding{
		Hold:  history.Hold{Who: w.who, Name: runElection, Token: e.Rev(), Lease: int64(e.Session().Lease())},
		owner: e.IsLeader(),
	}
	switch {
	case h.Token != 0:
		w.hold(ctx, h.within(ctx, ttl))
	case ctx.Err() == nil:
		w.violate("handle", "%v: the election of RunLeader does not lead, and the context lives", w.who)
	}
}
