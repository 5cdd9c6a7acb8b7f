package worlds

import (
	"context"
	"fmt"
	"strings"
	"time"

	"example.com/etcd/concurrency/internal/library"
)

// A range of registers is recorded as a read of each register in it, those that do not exist
// included. So a phantom is a register that was read as "" and exists: the checks of
// internal/history find it as they find any other value that was not there.

// bounds are two registers, the first of a range and the one after it.
func (w *worker) bounds() (from, to int) {
	from = w.rnd.IntN(w.plan.Registers)
	return from, from + 1 + w.rnd.IntN(w.plan.Registers-from)
}

func registerAt(i int) string { return fmt.Sprintf("%s%d", registerArea, i) }

// Range reads the registers from one on and before another.
func (s *tracked) Range(from, to int) (values []string) {
	s.steps.Add(1)
	kvs := s.STM.(library.Ranged).Range(registerAt(from), registerAt(to))
	return s.shown(from, to, len(kvs)+1, func(i int) (key, value string) {
		return string(kvs[i].Key), string(kvs[i].Value)
	}, len(kvs))
}

// First reads the first n registers that exist.
func (s *tracked) First(from, to, n int) (values []string) {
	s.steps.Add(1)
	kvs := s.STM.(library.Ranged).RangeN(registerAt(from), registerAt(to), n)
	return s.shown(from, to, n, func(i int) (key, value string) {
		return string(kvs[i].Key), string(kvs[i].Value)
	}, len(kvs))
}

// shown notes what a range has shown: those registers that it has not shown do not exist, up to
// the last one if it was asked for no more than limit.
func (s *tracked) shown(from, to, limit int, at func(i int) (key, value string), found int) (values []string) {
	next := 0
	for i := from; i < to && (next < limit); i++ {
		value := ""
		if next < found {
			if key, v := at(next); key == registerAt(i) {
				value = v
				next++
				values = append(values, v)
			}
		}
		s.note(registerAt(i), value)
	}
	if next < found {
		s.wrong("a range of %d registers from %d on has shown %d of %d keys in order", to-from, from, next, found)
	}
	return values
}

// note is told what a register was said to be. An attempt has to be told the same each time.
func (s *tracked) note(key, value string) {
	if own, ok := s.writes[key]; ok {
		if own != value {
			s.wrong("%s was written as %q and read as %q", key, own, value)
		}
		return
	}
	if before, ok := s.reads[key]; ok && before != value {
		s.wrong("%s was read as %q and then as %q", key, before, value)
	}
	s.reads[key] = value
}

// DelRange deletes the registers from one on and before another.
func (s *tracked) DelRange(from, to int) {
	s.steps.Add(1)
	s.STM.(library.Ranged).DelRange(registerAt(from), registerAt(to))
	for i := from; i < to; i++ {
		s.writes[registerAt(i)] = ""
	}
}

// Lookup reads one register.
func (s *tracked) Lookup(key string) string {
	s.steps.Add(1)
	value, found := s.STM.(library.Ranged).Lookup(key)
	if found != (value != "") {
		s.wrong("%s has the value %q and exists: %v", key, value, found)
	}
	s.note(key, value)
	return value
}

// readRange only reads.
func (w *worker) readRange(ctx context.Context) {
	from, to := w.bounds()
	key, first := w.register(), w.rnd.IntN(2) == 0
	w.transact(ctx, "read range", w.rnd.IntN(checked), func(s *tracked) {
		if first {
			s.Lookup(key)
		}
		s.Range(from, to)
		s.Lookup(key)
		s.Range(0, w.plan.Registers)
	})
}

// updateRange writes a register that depends on how many of a range exist.
func (w *worker) updateRange(ctx context.Context) {
	from, to := w.bounds()
	value, gone, key, also := w.value(), w.register(), w.register(), w.rnd.IntN(2) == 0
	w.transact(ctx, "update range", w.rnd.IntN(checked), func(s *tracked) {
		n := len(s.Range(from, to))
		if also && n > 1 {
			s.Del(gone)
		}
		s.Put(key, value)
		if also {
			s.Range(from, to)
		}
	})
}

// first takes the first register away and puts another, as a queue does.
func (w *worker) first(ctx context.Context) {
	value, key, n := w.value(), w.register(), 1+w.rnd.IntN(2)
	w.transact(ctx, "first", w.rnd.IntN(checked), func(s *tracked) {
		for range s.First(0, w.plan.Registers, n) {
			for i := range w.plan.Registers {
				if s.reads[registerAt(i)] != "" && s.writes[registerAt(i)] == "" {
					s.Del(registerAt(i))
					break
				}
			}
		}
		s.Put(key, value)
		s.First(0, w.plan.Registers, 1)
	})
}

// removeRange deletes a range and writes a register.
func (w *worker) removeRange(ctx context.Context) {
	from, to := w.bounds()
	value, key, how := w.value(), w.register(), w.rnd.IntN(4)
	w.transact(ctx, "remove range", w.rnd.IntN(checked), func(s *tracked) {
		switch how {
		case 0:
			s.Lookup(key)
		case 1:
			s.Range(from, to)
		case 2:
			s.Put(registerAt(from), "is dropped")
		}
		s.DelRange(from, to)
		s.Put(key, value)
		if how == 3 {
			s.Range(0, w.plan.Registers)
		}
	})
}

// weakRange reads and deletes at ReadCommitted.
func (w *worker) weakRange(ctx context.Context) {
	from, to := w.bounds()
	value, key := w.value(), w.register()
	w.transact(ctx, "weak range", checked, func(s *tracked) {
		s.Range(from, to)
		s.DelRange(from, to)
		s.Put(key, value)
	})
}

// patience is the longest that a blocked transaction may take, from the call that changes what
// it waits for: a watch whose stream has died is silent for 40 s, and a look may take 20 s.
const patience = 75 * time.Second

// awaitChange waits until a register of a range, or another one that it has read, is no longer
// what it was, and changes one meanwhile. When the faults are over the wait has no limit: it must
// end.
func (w *worker) awaitChange(ctx context.Context) {
	from, to := w.bounds()
	another, several := w.register(), w.rnd.IntN(2) == 0
	key, delay := registerAt(from+w.rnd.IntN(to-from)), between(w.rnd, 0, 3*time.Second)
	calm, c := ended(w.calm), call{op: "wait", limit: 15 * time.Second}
	if calm {
		c = call{op: "wait", due: patience}
	}
	values := []string{w.value(), w.value(), w.value(), w.value(), w.value(), w.value(), w.value(), w.value()}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, value := range values {
			if !pause(ctx, delay) {
				return
			}
			bound, cancel := context.WithTimeout(ctx, 5*time.Second)
			_, err := w.client.Put(bound, key, value)
			cancel()
			if err == nil && !calm {
				return
			}
		}
	}()
	before, begun := "", false
	w.transactAs(ctx, c, w.rnd.IntN(checked), func(s *tracked) {
		now := strings.Join(s.Range(from, to), " ")
		if several {
			now += " " + s.Lookup(another)
		}
		switch {
		case !begun:
			before, begun = now, true
			s.STM.(library.Ranged).Retry()
		case now == before:
			s.STM.(library.Ranged).Retry()
		}
	})
	cancel()
	<-done
}
