package worlds

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
)

// What must come true when the faults are over.
const (
	// late is how long a request may still travel whose caller has given up.
	late = 20 * time.Second
	// quiet is how long all go on working before anything is asked.
	quiet = late + 2*time.Second
)

// longest is the longest TTL of the world.
func (w *world) longest() time.Duration { return time.Duration(slices.Max(w.plan.TTLs)) * time.Second }

// settling is the time in which whoever is gone must be out of the way: what they have begun
// has been cleaned away, and leases have expired.
func (w *world) settling() time.Duration { return 2*w.longest() + 10*time.Second }

// end asks for all that is promised for times without faults.
func (w *world) end() {
	if !w.plan.Dense { // nothing is late then
		pause(context.Background(), quiet)
	}
	w.everyNameIsFree()
	close(w.rest)
	w.openBarriers()
	w.everybodyIsServed()
	w.observersKnow()
	for _, s := range w.stations {
		s.stop()
	}
	w.everybodyEnds()
	w.nothingIsLeft()
	if w.audit.lost != nil {
		w.T().Errorf("the auditor: %v", w.audit.lost)
	}
}

// waitFor waits for a WaitGroup, at most for a limit.
func waitFor(wg *sync.WaitGroup, limit time.Duration) bool {
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return true
	case <-time.After(limit):
		return false
	}
}

// everyNameIsFree takes every lock and wins every election in turn with those who go on
// working, and sees RunLeader run its functions again.
func (w *world) everyNameIsFree() {
	limit := w.settling()
	led := w.led.Load()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	s, err := concurrency.NewSession(w.operator)
	if err != nil {
		w.violate("liveness", "NewSession: %v", err)
		return
	}
	defer s.Close()
	var wg sync.WaitGroup
	for _, name := range w.names() {
		wg.Go(func() {
			m := concurrency.NewMutex(s, name)
			if err := m.Lock(ctx); err != nil {
				w.violate("liveness", "%q could not be locked within %v after the faults: %v; in line: %s",
					name, limit, err, w.standing(name))
			} else if err := m.Unlock(ctx); err != nil && ctx.Err() == nil {
				w.violate("liveness", "Unlock of %q: %v", name, err)
			}
		})
	}
	w.participantsMeet(ctx)
	runs := slices.ContainsFunc(w.stations, func(s *station) bool { return s.leads })
	for runs && w.led.Load() == led {
		if !pause(ctx, 100*time.Millisecond) {
			w.violate("liveness", "no RunLeader led within %v after the faults; in line: %s",
				limit, w.standing(runElection))
			break
		}
	}
	wg.Wait()
}

// standing describes a line.
func (w *world) standing(name string) string {
	var parts []string
	for _, life := range w.audit.line() {
		if life.Name == name {
			parts = append(parts, fmt.Sprintf("token %d of lease %x since %v", life.Token, life.Lease, life.Created))
		}
	}
	return strings.Join(parts, ", ")
}

// everybodyIsServed waits for the workers to end what they have begun. None of their calls has
// a limit any more, and every hold is brief.
func (w *world) everybodyIsServed() {
	limit := w.settling()
	deadline := w.rec.Now() + limit
	for _, s := range w.stations {
		if waitFor(&s.workers, max(deadline-w.rec.Now(), time.Millisecond)) {
			continue
		}
		for _, text := range s.stuck(w.rec.Now() - limit) {
			w.violate("waiter", "%v: %s", s.who, text)
		}
	}
}

// stuck describes the calls that began before a moment and go on.
func (s *station) stuck(before time.Duration) (texts []string) {
	s.pendingMu.Lock()
	defer s.pendingMu.Unlock()
	for d := range s.pending {
		if d.since <= before && d.due < s.rec.Now() && d.op != "RunLeader" {
			texts = append(texts, fmt.Sprintf("%s of %q goes on since %v; in line: %s",
				d.op, d.name, d.since, s.standing(d.name)))
		}
	}
	slices.Sort(texts)
	return texts
}

// observersKnow makes one more leader for each election, of whom every observer must hear.
func (w *world) observersKnow() {
	s, err := concurrency.NewSession(w.operator)
	if err != nil {
		w.violate("liveness", "NewSession: %v", err)
		return
	}
	defer s.Close()
	limit := w.longest() + 5*time.Second
	for i := range w.plan.Elections {
		name := w.election(i)
		value := "the last leader of " + name
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		if err := concurrency.NewElection(s, name).Campaign(ctx, value); err != nil {
			w.violate("liveness", "Campaign for %q: %v; in line: %s", name, err, w.standing(name))
		} else {
			w.hear(ctx, name, value)
		}
		cancel()
	}
}

// hear waits until every observer of a name has heard of a value.
func (w *world) hear(ctx context.Context, name, value string) {
	for _, s := range w.stations {
		for _, l := range s.latests {
			for l.name == name && l.get() != value {
				if !pause(ctx, 100*time.Millisecond) {
					w.violate("latest", "%v was told by %s of %q of %q last, not of %q",
						s.who, l.how, name, l.get(), value)
					break
				}
			}
		}
	}
}

// everybodyEnds waits for those who were told to stop.
func (w *world) everybodyEnds() {
	deadline := w.rec.Now() + w.settling()
	for _, s := range w.stations {
		for _, wg := range []*sync.WaitGroup{&s.workers, &s.residents} {
			if !waitFor(wg, max(deadline-w.rec.Now(), time.Millisecond)) {
				w.violate("hang", "%v: work goes on though every context has ended: %s",
					s.who, strings.Join(s.stuck(w.rec.Now()), "; "))
			}
		}
	}
}

// nothingIsLeft checks that sessions that have ended leave nothing, even while their clients
// live on: in etcd no key that stands in line, no lease, and no watcher; in this process no
// goroutine of the package's.
func (w *world) nothingIsLeft() {
	ctx, cancel := context.WithTimeout(context.Background(), w.settling())
	defer cancel()
	for {
		left := w.left(ctx)
		if left == "" {
			return
		}
		if !pause(ctx, time.Second) {
			w.violate("leftover", "%v after the end of all sessions there are still %s", w.settling(), left)
			return
		}
	}
}

// left describes what is left; "" is nothing.
func (w *world) left(ctx context.Context) string {
	var parts []string
	add := func(n int, what string) {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, what))
		}
	}
	keys, err := w.operator.Get(ctx, lineArea, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return err.Error()
	}
	add(int(keys.Count), "keys")
	keys, err = w.operator.Get(ctx, w.meeting()+"/waiters/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return err.Error()
	}
	add(int(keys.Count), "participants of a double barrier")
	leases, err := w.operator.Leases(ctx)
	if err != nil {
		return err.Error()
	}
	add(len(leases.Leases), "leases")
	if w.here() {
		add(goroutines(), "goroutines of the package")
	}
	return strings.Join(parts, ", ")
}

// goroutines counts those of the package in the root.
func goroutines() (n int) {
	text := make([]byte, 1<<20)
	for {
		size := runtime.Stack(text, true)
		if size < len(text) {
			text = text[:size]
			break
		}
		text = make([]byte, 2*len(text))
	}
	for g := range strings.SplitSeq(string(text), "\n\n") {
		if strings.Contains(g, "\nexample.com/etcd/concurrency.") {
			n++
		}
	}
	return n
}
