package worlds

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/history"
	"example.com/etcd/concurrency/internal/library"
)

// worker is one participant, who does one thing after the other.
type worker struct {
	*station
	rnd    *rand.Rand
	index  int // among those of the station
	stay   *stay
	number int  // of the values that it has written
	failed bool // a call, in the piece of work that is under way
}

// stint is a call under way.
type stint struct {
	op, name string
	since    time.Duration
	due      time.Duration // until when it may take by itself, 0: not told
}

// work goes on until the world is to rest or ctx ends.
func (w *worker) work(ctx context.Context) {
	for pause(ctx, w.think()) && !ended(w.rest) {
		k := drawKind(w.rnd, w.plan.Kinds)
		if k.Session && !w.reopen(ctx) {
			pause(ctx, between(w.rnd, 0, 5*time.Second))
			continue
		}
		w.failed = false
		k.Do(w, ctx)
		switch n := w.rnd.IntN(20); {
		case n == 0:
			w.shut()
		case n == 1 || w.failed && n < 5: // what it has left behind shows
			pause(ctx, w.patient())
		}
	}
	w.shut()
}

// patient is longer than a session needs to clean up, see strays, and ends with the faults.
func (w *worker) patient() time.Duration {
	if ended(w.calm) || w.plan.Dense || w.plan.Busy {
		return 0
	}
	return between(w.rnd, 2*w.longest()+5*time.Second, 90*time.Second)
}

// think is a pause: short in a burst, and long now and then.
func (w *worker) think() time.Duration {
	switch w.rnd.IntN(10) {
	case 0:
		return between(w.rnd, 0, 10*w.plan.Think)
	case 1, 2, 3:
		return between(w.rnd, 0, w.plan.Think/20)
	}
	return between(w.rnd, 0, w.plan.Think)
}

// value is one that nobody else has.
func (w *worker) value() string {
	w.number++
	return fmt.Sprintf("%d.%d-%d", w.who.Client, w.index, w.number)
}

// here reports whether the package under test is this one.
func (w *world) here() bool { return w.lib.Name == library.Here.Name }

// call is what is known of a call before it is made.
type call struct {
	op, name string
	lease    clientv3.LeaseID
	limit    time.Duration // of its context; 0: it ends with the given one; less: it has ended before the call
	due      time.Duration // the longest that this package may take; 0: none
}

// call makes a call and records it.
func (w *worker) call(ctx context.Context, c call, f func(context.Context) error) error {
	r := history.Call{Who: w.who, Op: c.op, Name: c.name, Lease: int64(c.lease), Call: w.rec.Now()}
	if c.due > 0 && w.here() {
		r.Due = r.Call + c.due
	}
	if c.limit != 0 {
		bound, cancel := context.WithTimeout(ctx, c.limit)
		defer cancel()
		ctx = bound
	}
	over, lost := w.endOf(ctx), w.lossOf(c)
	doing := &stint{c.op, c.name, r.Call, r.Due}
	w.begin(doing)
	err := f(ctx)
	w.finish(doing)
	r.Return = w.rec.Now()
	r.Ended = over()
	if err != nil {
		w.failed = true
		r.Error = err.Error()
		r.Given = w.given(err)
	}
	w.rec.Add(history.Record{Call: &r})
	w.askCall(c, r, lost(), err)
	return err
}

// endOf notes when a context ends. What it returns tells the moment, 0: the context lives.
func (w *world) endOf(ctx context.Context) (told func() time.Duration) {
	var at time.Duration
	noted := make(chan struct{})
	detach := context.AfterFunc(ctx, func() {
		at = w.rec.Now()
		close(noted)
	})
	return func() time.Duration {
		switch {
		case !detach():
			<-noted
			return max(at, 1)
		case ctx.Err() != nil: // in this instant, before its function has run
			return w.rec.Now()
		}
		return 0
	}
}

// lossOf is endOf for the session of a call. A session that its owner leaves is not asked about.
func (w *worker) lossOf(c call) (told func() time.Duration) {
	s := w.stay
	if s == nil || c.lease == 0 || c.lease != s.lease {
		return func() time.Duration { return 0 }
	}
	over := w.endOf(s.Ctx())
	return func() time.Duration {
		at := over()
		if ended(s.left) {
			return 0
		}
		return at
	}
}

// given reports whether the error is one that the network or a stranger puts into the calls
// of clients, and that they are to be told.
func (w *world) given(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "made up: ") || slices.ContainsFunc([]error{
		rpctypes.ErrNoSpace, rpctypes.ErrPermissionDenied, rpctypes.ErrInvalidAuthToken,
	}, func(target error) bool { return errors.Is(err, target) }))
}

func (s *station) begin(d *stint) {
	s.pendingMu.Lock()
	defer s.pendingMu.Unlock()
	s.pending[d] = true
}

func (s *station) finish(d *stint) {
	s.pendingMu.Lock()
	defer s.pendingMu.Unlock()
	delete(s.pending, d)
}

// patience is a limit for a wait, often shorter than the wait. When the faults are over there
// is none.
func (w *worker) patience() time.Duration {
	switch {
	case ended(w.calm):
		return 0
	case w.plan.Hasty && w.rnd.IntN(4) != 0:
		return w.hastily()
	case w.rnd.IntN(3) == 0:
		return between(w.rnd, time.Millisecond, w.station.ttl()/2)
	}
	return between(w.rnd, time.Second, 4*w.station.ttl())
}

// impatience is the patience of a release. Some contexts have ended before it.
func (w *worker) impatience() time.Duration {
	if w.here() && !ended(w.calm) && w.rnd.IntN(8) == 0 {
		return -1
	}
	return w.patience()
}

// brief is the longest hold when the faults are over.
const brief = 50 * time.Millisecond

// duration is how long to hold: mostly short, sometimes long enough for a fault to end it.
func (w *worker) duration() time.Duration {
	if !ended(w.calm) && !w.plan.Hasty && w.rnd.IntN(w.plan.Holds) == 0 {
		return between(w.rnd, brief, 3*w.station.ttl())
	}
	return between(w.rnd, 0, brief)
}
