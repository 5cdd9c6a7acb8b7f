package worlds

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/history"
)

// Barriers have the names of lines, each with a single place, so that a time at which one was
// open is a time at which nobody led.

const barrierPlace = "/held"

func (w *world) barrier(i int) string { return fmt.Sprintf("%sbarrier-%d", lineArea, i) }

// gather makes a plan in which barriers are used often. In a half of them no call is disturbed.
func (p *Plan) gather(rnd *rand.Rand, _ Options) {
	p.Strangers = few(rnd, strangers, 0.3)
	p.Peace = between(rnd, 500*time.Millisecond, 5*time.Second)
	p.Think = between(rnd, 100*time.Millisecond, time.Second)
	if rnd.IntN(2) == 0 {
		p.clearUp()
	}
}

// anyBarrier is a barrier, and its name as a line.
func (w *worker) anyBarrier() (b *concurrency.Barrier, name string) {
	name = w.barrier(w.rnd.IntN(w.plan.Locks))
	return concurrency.NewBarrier(w.client, name+barrierPlace), name
}

// holdBarrier holds a barrier for a while, for good or with its session. It may be closed when
// Hold fails, so that it is released whatever Hold says.
func (w *worker) holdBarrier(ctx context.Context) {
	b, name := w.anyBarrier()
	c := call{op: "Barrier.Hold", name: name, limit: w.patience()}
	hold := b.Hold
	if w.rnd.IntN(2) == 0 {
		c.op, hold = "Barrier.HoldWith", func(ctx context.Context) error { return b.HoldWith(ctx, bare(w.stay)) }
	}
	err := w.call(ctx, c, hold)
	w.askTold(call{op: c.op, name: name, lease: w.stay.lease}, history.Call{Return: w.rec.Now()}, err)
	_ = w.call(ctx, call{op: "keep", name: name}, func(ctx context.Context) error {
		pause(ctx, w.duration())
		return nil
	})
	for c.op = "Barrier.Release"; w.call(ctx, c, b.Release) != nil && pause(ctx, time.Second); {
		c.limit = w.patience()
	}
}

// awaitBarrier waits at a barrier. It was open at some revision meanwhile.
func (w *worker) awaitBarrier(ctx context.Context) {
	b, name := w.anyBarrier()
	from := w.audit.seen()
	c := call{op: "Barrier.Wait", name: name, limit: w.patience()}
	if ended(w.calm) { // whoever has it now holds it for as long as that, at the longest
		c.due = 3*w.longest() + patience
	}
	err := w.call(ctx, c, b.Wait)
	if to, ok := w.revNow(); ok && err == nil {
		w.rec.Add(history.Record{Sighting: &history.Sighting{
			Who: w.who, Name: name, From: from, To: to, At: w.rec.Now(),
		}})
	}
}

// revNow is the revision of the store, if the server runs.
func (w *world) revNow() (int64, bool) {
	etcd := w.Server().Etcd()
	if etcd == nil {
		return 0, false
	}
	return etcd.KV().Rev(), true
}

// openBarriers opens what a Hold without an answer has closed for good.
func (w *world) openBarriers() {
	ctx, cancel := bounded()
	defer cancel()
	for i := range w.plan.Locks {
		b := concurrency.NewBarrier(w.operator, w.barrier(i)+barrierPlace)
		if err := b.Release(ctx); err != nil {
			w.violate("liveness", "Release of %q: %v", w.barrier(i), err)
		}
	}
}

// meeting is the double barrier of the world. Its name tells for how many it is.
func (w *world) meeting() string { return meetArea + "of-" + strconv.Itoa(w.plan.Meeting) }

func participants(name string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(name, meetArea+"of-"))
	return n
}

// meet takes part in rounds of the double barrier. More may come than it is for.
func (w *worker) meet(ctx context.Context) {
	var s *stay
	var d *concurrency.DoubleBarrier
	for pause(ctx, between(w.rnd, 0, time.Second)) {
		if !w.reopen(ctx) {
			continue
		}
		if s != w.stay {
			s, d = w.stay, concurrency.NewDoubleBarrier(bare(w.stay), w.meeting(), w.plan.Meeting)
		}
		w.visit(ctx, s, d)
		if w.rnd.IntN(20) == 0 {
			w.shut()
		}
	}
	w.shut()
}

// visit takes part in a round.
func (w *worker) visit(ctx context.Context, s *stay, d *concurrency.DoubleBarrier) {
	name := w.meeting()
	v := history.Visit{Who: w.who, Name: name, Lease: int64(s.lease), From: w.audit.seen()}
	if w.call(ctx, call{op: "Enter", name: name, lease: s.lease, limit: w.patience()}, d.Enter) != nil {
		return
	}
	in, runs := w.revNow()
	if w.rnd.IntN(4) == 0 {
		// Another handle of the session comes in with the same ticket, or gives up. The participant stays.
		again := concurrency.NewDoubleBarrier(bare(s), name, w.plan.Meeting)
		c := call{op: "Enter", name: name, lease: s.lease, limit: between(w.rnd, time.Millisecond, w.station.ttl())}
		_ = w.call(ctx, c, again.Enter)
	}
	w.keep(ctx, s, name)
	for {
		err := w.call(ctx, call{op: "Leave", name: name, lease: s.lease, limit: w.patience()}, d.Leave)
		if err == nil {
			w.met.Add(1)
			v.Out, _ = w.revNow()
			break
		}
		if errors.Is(err, concurrency.ErrSessionExpired) || ended(s.Done()) || !pause(ctx, time.Second) {
			break
		}
	}
	if v.In, v.At = in, w.rec.Now(); runs {
		w.rec.Add(history.Record{Visit: &v})
	}
}

// participantsMeet sees a whole round of the double barrier, and the end of the one before.
func (w *world) participantsMeet(ctx context.Context) {
	for _, r := range w.plan.Residents {
		if r.Name != "barrier/meet" {
			continue
		}
		for met := w.met.Load() + 2*int64(w.plan.Meeting); w.met.Load() < met; {
			if !pause(ctx, 100*time.Millisecond) {
				w.violate("liveness", "no round of %q within %v after the faults; in line: %s",
					w.meeting(), w.settling(), w.standing(w.meeting()))
				return
			}
		}
	}
}
