package worlds

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/history"
)

// What is asked of a call when it has returned. Only this package is asked.

// acquiring are the operations that return when the session owns.
var acquiring = []string{
	"Lock", "TryLock", "Campaign", "RLock", "TryRLock", "Acquire", "TryAcquire", "Lock of all", "TryLock all",
	"LocalMutex.Lock", "LocalMutex.TryLock",
}

// single are the operations that cost one call.
var single = []string{"Unlock", "Resign", "Proclaim", "Proclaim, resumed", "RUnlock", "Release", "Unlock of all", "NewSession", "Close"}

// once are those of them whose call is not sent again beside the first.
var once = []string{"Proclaim", "Proclaim, resumed", "NewSession"}

// repeated are those whose commits change nothing if they come twice, so that none of them is unknown.
var repeated = []string{"Enter", "Leave", "Barrier.Wait"}

// askCall asks for what is promised of a call, of which lost is when its session was lost, 0: it lives.
func (w *worker) askCall(c call, r history.Call, lost time.Duration, err error) {
	if e := new(rpctypes.EtcdError); errors.As(err, e) && e.Code() == codes.InvalidArgument {
		w.violate("request", "%v: etcd refuses what %s of %q has sent: %v", w.who, c.op, c.name, err)
	}
	if !w.here() {
		return
	}
	if slices.Contains(acquiring, c.op) && lost != 0 {
		w.askEnd(c, r, lost, err)
	}
	if errors.Is(err, concurrency.ErrCommitUnknown) && slices.Contains(repeated, c.op) {
		w.violate("error", "%v: %s of %q, which may be repeated, says %q", w.who, c.op, c.name, err)
	}
	switch {
	case slices.Contains(single, c.op):
		w.askCost(c, r)
	case strings.HasPrefix(c.op, "Try"):
		w.askTry(c, r)
	}
	w.askTold(c, r, err)
}

// askEnd asks of a call to acquire whether the loss of its session has ended it. Nobody has to be asked
// for that. A call that has failed may clean up for a moment.
func (w *worker) askEnd(c call, r history.Call, lost time.Duration, err error) {
	if late := r.Return - lost; late > time.Second {
		w.violate("wait", "%v: %s of %q returned %v after the loss of its session", w.who, c.op, c.name, late)
	}
	if err == nil && r.Return > lost {
		w.violate("handle", "%v: %s of %q succeeded %v after the loss of its session", w.who, c.op, c.name, r.Return-lost)
	}
}

// askCost asks whether an operation that costs one call took a round trip. If one of two links was
// silent, the call was sent again after a third of the TTL, unless it is made once.
func (w *worker) askCost(c call, r history.Call) {
	w.untroubledIn(span{r.Call, r.Return}, func(trip, silent time.Duration) {
		bound := trip + idleSync
		if silent > 0 {
			bound += silent/3 + trip
		}
		switch {
		case c.op == "NewSession" && r.Error != "": // a margin left it less than a round trip to live
			return
		case c.op == "NewSession": // if the grant took long, renewals too, a third of a life apart
			bound += w.longest()
		}
		if took := r.Return - r.Call; took > bound && (silent == 0 || !slices.Contains(once, c.op)) {
			w.violateAt("cost", r.Return, "%v: %s of %q, which costs one call, took %v, without a fault and with round trips of up to %v",
				w.who, c.op, c.name, took, trip)
		}
	})
}

// askTry asks whether an attempt to acquire has waited. It may find a key of its session that is being
// deleted, and help with that.
func (w *worker) askTry(c call, r history.Call) {
	w.untroubledIn(span{r.Call, r.Return}, func(trip, silent time.Duration) {
		if took := r.Return - r.Call; took > 4*idleTrips*trip+idleSync+silent+time.Second {
			w.violateAt("cost", r.Return, "%v: %s of %q took %v, without a fault and with round trips of up to %v",
				w.who, c.op, c.name, took, trip)
		}
	})
}

// untroubledIn has something asked when all is known that befell a client, if that was nothing in a
// span. See untroubled.
func (s *station) untroubledIn(during span, ask func(trip, silent time.Duration)) {
	s.world.mu.Lock()
	defer s.world.mu.Unlock()
	s.asks = append(s.asks, func() {
		if trip, silent, ok := s.untroubled(during); ok {
			ask(trip, silent)
		}
	})
}

// askTold asks about an error that tells of a loss while Session.Ctx lives.
func (w *worker) askTold(c call, r history.Call, err error) {
	if s := w.stay; s == nil || c.lease != s.lease || s.Ctx().Err() != nil {
		return
	}
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		w.violate("told", "%v: %s of %q says %q while Session.Ctx lives", w.who, c.op, c.name, err)
	}
	if !errors.Is(err, w.lib.ErrSessionExpired) {
		return
	}
	// The lease was asked for after the key was missed, and the answer was not under way for longer
	// than a round trip. A call whose context has ended does not wait for it.
	if gone := w.revocationOf(int64(c.lease)).done; gone != 0 && r.Ended == 0 {
		w.untroubledIn(span{gone, r.Return}, func(trip, silent time.Duration) {
			if silent == 0 && r.Return-gone > trip {
				w.violateAt("told", r.Return, "%v: %s of %q says %q while Session.Ctx lives, %v after the lease was revoked",
					w.who, c.op, c.name, err, r.Return-gone)
			}
		})
	}
	if !slices.ContainsFunc(w.plan.Strangers, func(s stranger) bool { return s.takes }) {
		w.violate("told", "%v: %s of %q says %q while the session lives, and nobody takes keys", w.who, c.op, c.name, err)
	}
}

// askReleased asks about the context of an ownership that lasted until its release began. nil is none.
func (w *worker) askReleased(op, name string, ctx context.Context) {
	switch {
	case !w.here() || ctx == nil:
	case ctx.Err() == nil:
		w.violate("handle", "%v: the context of %q lives after %s", w.who, name, op)
	case errors.Is(context.Cause(ctx), w.lib.ErrSessionExpired):
		w.violate("told", "%v: the context of %q that %s has ended tells of a loss: %v", w.who, name, op, context.Cause(ctx))
	}
}
