package worlds

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/history"
	"example.com/etcd/concurrency/internal/library"
)

// levels are in the order of both packages' constants.
var levels = []string{"SerializableSnapshot", "Serializable", "RepeatableReads", history.ReadCommitted}

const (
	// snapshots is how many of them have one snapshot, which every attempt has to see.
	snapshots = 2
	// checked is how many of them check at the commit what was read.
	checked = 3
)

func (w *worker) register() string {
	return fmt.Sprintf("%s%d", registerArea, w.rnd.IntN(w.plan.Registers))
}

// ahead is the keys to read ahead, now and then. Upstream's package answers a Get of a key that
// was read ahead together with others with the value of one of these (T1).
func (w *worker) ahead(keys ...string) []string {
	if w.rnd.IntN(3) == 0 {
		return keys
	}
	return nil
}

// appendTo adds to a list, having read it.
func (w *worker) appendTo(ctx context.Context) {
	key, value := w.register(), w.value()
	w.transact(ctx, "append", w.rnd.IntN(checked), func(s *tracked) {
		s.Put(key, last(s.Get(key))+" "+value)
	}, w.ahead(key)...)
}

// last is the newest part of a list.
func last(list string) string {
	for i := len(list) - 1; i >= 0; i-- {
		if list[i] == ' ' {
			return list[i+1:]
		}
	}
	return list
}

// update reads some registers and writes others, without a regard for what they were.
func (w *worker) update(ctx context.Context) {
	value, from, to, also := w.value(), w.register(), w.register(), w.register()
	how, more := w.rnd.IntN(4), w.rnd.IntN(2) == 0
	w.transact(ctx, "update", w.rnd.IntN(checked), func(s *tracked) {
		switch how {
		case 0:
			s.Rev(from)
		case 1, 2:
			s.Get(from)
		}
		s.Put(to, value)
		if more {
			s.Get(also)
		}
	})
}

// remove deletes one register and writes another, whose value tells whether both was done.
func (w *worker) remove(ctx context.Context) {
	value, gone, to := w.value(), w.register(), w.register()
	how := w.rnd.IntN(3)
	w.transact(ctx, "remove", w.rnd.IntN(checked), func(s *tracked) {
		switch how {
		case 0:
			s.Rev(gone)
		case 1:
			s.GetBoth(gone, to)
		}
		s.Del(gone)
		if to != gone {
			s.Put(to, value)
		}
	}, w.ahead(gone, to)...)
}

// read only reads.
func (w *worker) read(ctx context.Context) {
	keys := []string{w.register(), w.register(), w.register()}
	many := w.rnd.IntN(2) == 0
	w.transact(ctx, "read", w.rnd.IntN(checked), func(s *tracked) {
		if many {
			s.GetBoth(keys[0], keys[1])
			s.Rev(keys[2])
			return
		}
		for _, key := range keys {
			s.Get(key)
		}
	}, w.ahead(keys[1:]...)...)
}

// weak reads and writes at ReadCommitted.
func (w *worker) weak(ctx context.Context) {
	value, from, to := w.value(), w.register(), w.register()
	w.transact(ctx, "weak", checked, func(s *tracked) {
		s.Get(from)
		s.Put(to, value)
	})
}

// transact runs f as a transaction. What each attempt at a level with a snapshot has read is
// a transaction of its own, committed or not.
func (w *worker) transact(ctx context.Context, op string, level int, f func(s *tracked), prefetch ...string) {
	limit := between(w.rnd, 100*time.Millisecond, 20*time.Second)
	w.transactAs(ctx, call{op: op, limit: limit}, level, f, prefetch...)
}

// transactAs is transact as a call with bounds of its own.
func (w *worker) transactAs(ctx context.Context, c call, level int, f func(s *tracked), prefetch ...string) {
	begun := w.rec.Now()
	note := func(s *tracked, writes map[string]string, unknown bool, rev int64) {
		w.rec.Add(history.Record{Txn: &history.Txn{
			Who: w.who, Level: levels[level], Call: begun, Return: w.rec.Now(),
			Reads: s.reads, Revs: s.revs, Writes: writes, Unknown: unknown, Rev: rev,
		}})
	}
	var attempt *tracked
	abandon := func() {
		if attempt != nil && level < snapshots && len(attempt.reads)+len(attempt.revs) > 0 {
			note(attempt, nil, false, 0)
		}
	}
	guards, owner := w.guards()
	var resp *clientv3.TxnResponse
	since := w.rec.Now()
	err := w.call(ctx, c, func(ctx context.Context) (err error) {
		resp, err = w.lib.Transact(w.client, func(s library.STM) error {
			abandon()
			attempt = track(s, &w.steps, func(format string, args ...any) { w.violate("attempt", w.who.String()+": "+format, args...) })
			f(attempt)
			return nil
		}, library.TxnOptions{Ctx: ctx, Level: level, Prefetch: prefetch, Guards: guards})
		return err
	})
	switch {
	case attempt == nil: // it has not come to that
	case err == nil:
		rev := int64(0)
		if len(attempt.writes) > 0 {
			rev = resp.Header.Revision
		}
		note(attempt, attempt.writes, false, rev)
		w.askGuard(owner, rev)
	case w.lib.Unknown(err) && len(attempt.writes) > 0:
		note(attempt, maps.Clone(attempt.writes), true, 0)
		abandon()
	default:
		w.deny(attempt.writes, err)
		w.askStarved(c, levels[level], span{since, w.rec.Now()}, err)
		abandon()
	}
}

// deny notes that the error of a transaction says that these writes were not committed.
func (w *worker) deny(writes map[string]string, err error) {
	w.world.mu.Lock()
	defer w.world.mu.Unlock()
	own := fmt.Sprintf("%d.%d-", w.who.Client, w.index) // nobody else writes such a value
	for key, value := range writes {
		if strings.Contains(value, own) {
			w.denied[[2]string{key, value}] = fmt.Sprintf("%v: %v", w.who, err)
		}
	}
}

// carriedOut finds writes that were committed, although the error of their transaction denies it.
func (w *world) carriedOut(h history.History) (found []history.Violation) {
	for _, r := range h {
		if c := r.Commit; c != nil {
			if text, ok := w.denied[[2]string{c.Key, c.Value}]; ok {
				found = append(found, w.violation("denied", c.At, "%s=%q was committed, though its transaction failed with %s", c.Key, c.Value, text))
			}
		}
	}
	return found
}

// askStarved asks about a transaction that has ended without a commit when its context did. Nothing
// makes its reads again over another link than the silent one. At RepeatableReads each attempt reads
// anew, one call after the other. Others may write within that time again and again.
func (w *worker) askStarved(c call, level string, during span, err error) {
	compacted := slices.ContainsFunc(w.plan.Strangers, func(s stranger) bool { return s.compacts })
	if !w.here() || compacted || c.op == "wait" || level == "RepeatableReads" || !errors.Is(err, context.DeadlineExceeded) {
		return
	}
	w.untroubledIn(during, func(trip, silent time.Duration) {
		if took := during.to - during.from; silent == 0 && took > 5*time.Second+30*trip {
			w.violateAt("starved", during.to, "%v: %s has not committed within %v, without a fault and with round trips of up to %v",
				w.who, c.op, took, trip)
		}
	})
}

// guards are, now and then, the guard of whoever is first in some line at the moment: a
// comparison that may have become false when it is asked. Some are false from the beginning.
func (w *worker) guards() (cmps []clientv3.Cmp, owner history.Life) {
	if !w.here() || w.rnd.IntN(8) != 0 {
		return nil, owner
	}
	first, key := map[string]bool{}, ""
	for _, life := range w.audit.line() {
		if !first[life.Name] {
			first[life.Name] = true
			owner, key = life.Life, life.key
		}
	}
	if owner.Token == 0 || w.rnd.IntN(4) == 0 {
		key, owner.Token = lineArea+"nobody", never
	}
	return []clientv3.Cmp{leads(key, owner.Token)}, owner
}

// never is the revision of an empty store, at which no key was created.
const never = 1

// askGuard notes a write under a guard, for which the history has a check.
func (w *worker) askGuard(owner history.Life, rev int64) {
	switch {
	case owner.Token == never:
		w.violate("write", "%v: a transaction was committed at revision %d under a guard that is false", w.who, rev)
	case owner.Token != 0 && rev != 0:
		w.rec.Add(history.Record{Write: &history.Write{
			Who: w.who, Name: owner.Name, Token: owner.Token, Rev: rev, At: w.rec.Now(),
		}})
	}
}

// tracked is an attempt and what it has read and written.
type tracked struct {
	library.STM
	reads, writes map[string]string
	revs          map[string]int64
	wrong         func(format string, args ...any)
	steps         *atomic.Int64
}

func track(s library.STM, steps *atomic.Int64, wrong func(format string, args ...any)) *tracked {
	return &tracked{
		STM: s, reads: map[string]string{}, writes: map[string]string{}, revs: map[string]int64{}, wrong: wrong,
		steps: steps,
	}
}

// Get reads one key. What the attempt wrote itself it is not told by the servers.
func (s *tracked) Get(key string) string {
	s.steps.Add(1)
	value := s.STM.Get(key)
	switch written, own := s.writes[key]; {
	case !own:
		s.reads[key] = value
	case value != written:
		s.wrong("%s was written as %q and read as %q", key, written, value)
	}
	return value
}

// GetBoth reads two keys in one call, which returns the value of the first; the other is asked
// for afterwards.
func (s *tracked) GetBoth(first, second string) {
	s.steps.Add(1)
	value := s.STM.Get(first, second)
	if _, own := s.writes[first]; !own {
		s.reads[first] = value
	}
	s.Get(second)
}

// Rev reads a revision, as the servers have it, whatever the attempt has written.
func (s *tracked) Rev(key string) int64 {
	s.steps.Add(1)
	rev := s.STM.Rev(key)
	s.revs[key] = rev
	return rev
}

// Del deletes, which is to write "".
func (s *tracked) Del(key string) {
	s.steps.Add(1)
	s.STM.Del(key)
	s.writes[key] = ""
}

// Put writes.
func (s *tracked) Put(key, value string) {
	s.steps.Add(1)
	s.STM.Put(key, value)
	s.writes[key] = value
}
