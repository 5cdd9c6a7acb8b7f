package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"example.com/etcd/concurrency/internal/history"
	"example.com/etcd/concurrency/internal/library"
)

const (
	accounts = 8
	balance  = 100

	// registers of one part are used for an epoch, so that the order of a part's
	// transactions can be searched for.
	registers = 4
	epoch     = 5 * time.Second
)

func account(i int) string { return fmt.Sprintf("%s%s%d", root, accountArea, i) }

// levels are in the order of both packages' constants.
var levels = []string{"SerializableSnapshot", "Serializable", "RepeatableReads", history.ReadCommitted}

// snapshots is how many of them have one snapshot, which every attempt has to see.
const snapshots = 2

// transactor runs one transaction after the other.
type transactor struct {
	*run
	*station
	index  int // among those of the station
	rnd    *rand.Rand
	number int // of the values written
}

// work goes on until ctx ends.
func (t *transactor) work(ctx context.Context) {
	for pause(ctx, between(t.rnd, 0, 40*time.Millisecond)) {
		switch n := t.rnd.IntN(100); {
		case n < 35:
			t.transfer(ctx)
		case n < 45:
			t.audited(ctx)
		case n < 65:
			t.appendTo(ctx)
		case n < 72 && t.own():
			t.remove(ctx)
		case n < 80:
			t.update(ctx)
		case n < 86 && t.own():
			t.overRange(ctx)
		case n < 88 && t.own():
			t.wake(ctx)
		case n < 92:
			t.read(ctx)
		default:
			t.weak(ctx)
		}
	}
}

// part is where the registers of a transaction lie: some are used by both packages, some
// by this one alone.
func (t *transactor) part() string {
	users := "both"
	if t.who.Package == history.Here && t.rnd.IntN(2) == 0 {
		users = "here"
	}
	return fmt.Sprintf("%d-%s", t.rec.Now()/epoch, users)
}

func (t *transactor) register(part string) string {
	return registerAt(part, t.rnd.IntN(registers))
}

func registerAt(part string, i int) string {
	return fmt.Sprintf("%s%s%s/%d", root, registerArea, part, i)
}

// value is one that nobody else writes.
func (t *transactor) value() string {
	t.number++
	return fmt.Sprintf("%d.%d-%d", t.who.Client, t.index, t.number)
}

// own reports whether to use what has no counterpart in upstream's package, or is broken
// there: Rev, Del, reads of many keys at once, and those that are made ahead.
func (t *transactor) own() bool { return t.who.Package == history.Here }

// ahead is the keys to read ahead, now and then.
func (t *transactor) ahead(keys ...string) []string {
	if t.own() && t.rnd.IntN(3) == 0 {
		return keys
	}
	return nil
}

// appendTo adds to a list, having read it.
func (t *transactor) appendTo(ctx context.Context) {
	part, value := t.part(), t.value()
	key := t.register(part)
	t.transact(ctx, "append", part, t.rnd.IntN(snapshots+1), func(s *tracked) {
		s.Put(key, s.Get(key)+" "+value)
	}, t.ahead(key)...)
}

// update reads some registers and writes others, without a regard for what they were.
func (t *transactor) update(ctx context.Context) {
	part, value := t.part(), t.value()
	from, to, also := t.register(part), t.register(part), t.register(part)
	t.transact(ctx, "update", part, t.rnd.IntN(snapshots+1), func(s *tracked) {
		switch n := t.rnd.IntN(4); {
		case n == 0 && t.own():
			s.Rev(from)
		case n > 0:
			s.Get(from)
		}
		s.Put(to, value)
		if t.rnd.IntN(2) == 0 {
			s.Get(also)
		}
	})
}

// remove deletes one register and writes another, whose value tells whether both was done.
func (t *transactor) remove(ctx context.Context) {
	part, value := t.part(), t.value()
	gone, to := t.register(part), t.register(part)
	t.transact(ctx, "remove", part, t.rnd.IntN(snapshots+1), func(s *tracked) {
		switch t.rnd.IntN(3) {
		case 0:
			s.Rev(gone)
		case 1:
			s.GetBoth(gone, to)
		}
		s.Del(gone)
		s.Put(to, value)
	}, t.ahead(gone, to)...)
}

// overRange reads a range of registers and writes one of them, or deletes the range. A range is
// recorded as a read of every register in it, so that a phantom is one that was read as missing.
func (t *transactor) overRange(ctx context.Context) {
	part, value := t.part(), t.value()
	from := t.rnd.IntN(registers)
	to := from + 1 + t.rnd.IntN(registers-from)
	gone, key := t.rnd.IntN(3) == 0, t.register(part)
	t.transact(ctx, "range", part, t.rnd.IntN(snapshots+1), func(s *tracked) {
		s.Range(part, from, to)
		if gone {
			s.DelRange(part, from, to)
		}
		s.Put(key, value)
	})
}

// read only reads.
func (t *transactor) read(ctx context.Context) {
	part := t.part()
	keys := []string{t.register(part), t.register(part), t.register(part)}
	many := t.own() && t.rnd.IntN(2) == 0
	t.transact(ctx, "read", part, t.rnd.IntN(snapshots+1), func(s *tracked) {
		if many {
			s.GetBoth(keys[0], keys[1])
			s.Rev(keys[2])
			return
		}
		for _, key := range keys {
			s.Get(key)
		}
	}, t.ahead(keys[1:]...)...)
}

// weak reads and writes at ReadCommitted, in keys of its own.
func (t *transactor) weak(ctx context.Context) {
	part, value := "weak", t.value()
	from, to := t.register(part), t.register(part)
	t.transact(ctx, "weak", part, len(levels)-1, func(s *tracked) {
		s.Get(from)
		s.Put(to, value)
	})
}

// transact runs f as a transaction. What each attempt at a level with a snapshot has read
// is a transaction of its own, committed or not.
func (t *transactor) transact(
	ctx context.Context, op, part string, level int, f func(s *tracked), prefetch ...string,
) {
	call := t.rec.Now()
	note := func(s *tracked, writes map[string]string, unknown bool, rev int64) {
		t.rec.Add(history.Record{Txn: &history.Txn{
			Who: t.who, Part: part, Level: levels[level], Call: call, Return: t.rec.Now(),
			Reads: s.reads, Revs: s.revs, Writes: writes, Unknown: unknown, Rev: rev,
		}})
	}
	var attempt *tracked
	abandon := func() {
		if attempt != nil && level < snapshots && len(attempt.reads)+len(attempt.revs) > 0 {
			note(attempt, nil, false, 0)
		}
	}
	rev, err := t.try(ctx, op, part, level, func(s library.STM) error {
		abandon()
		attempt = track(s)
		f(attempt)
		return nil
	}, prefetch...)
	switch {
	case attempt == nil: // it has not come to that
	case err == nil:
		note(attempt, attempt.writes, false, rev)
	case t.lib.Unknown(err) && len(attempt.writes) > 0:
		note(attempt, attempt.writes, true, 0)
		abandon()
	default:
		abandon()
	}
}

// try makes the call, and returns the revision that its answer told.
func (t *transactor) try(
	ctx context.Context, op, part string, level int, f func(library.STM) error, prefetch ...string,
) (rev int64, err error) {
	limit := between(t.rnd, 100*time.Millisecond, 3*time.Second)
	w := worker{run: t.run, station: t.station}
	err = w.call(ctx, op, part, limit, func(ctx context.Context) error {
		resp, err := t.lib.Transact(t.client, f, library.TxnOptions{Ctx: ctx, Level: level, Prefetch: prefetch})
		if err == nil {
			rev = resp.Header.Revision
		}
		return err
	})
	return rev, err
}

// tracked is an attempt and what it has read and written.
type tracked struct {
	library.STM
	reads, writes map[string]string
	revs          map[string]int64
}

func track(s library.STM) *tracked {
	return &tracked{STM: s, reads: map[string]string{}, writes: map[string]string{}, revs: map[string]int64{}}
}

// Get reads one key. What the attempt wrote itself it is not told by the servers.
func (s *tracked) Get(key string) string {
	value := s.STM.Get(key)
	if _, own := s.writes[key]; !own {
		s.reads[key] = value
	}
	return value
}

// GetBoth reads two keys in one call, which returns the value of the first; the other is
// asked for afterwards.
func (s *tracked) GetBoth(first, second string) {
	value := s.STM.Get(first, second)
	if _, own := s.writes[first]; !own {
		s.reads[first] = value
	}
	s.Get(second)
}

// Rev reads a revision, as the servers have it, whatever the attempt has written.
func (s *tracked) Rev(key string) int64 {
	rev := s.STM.Rev(key)
	s.revs[key] = rev
	return rev
}

// Range reads the registers of a part from one on and before another.
func (s *tracked) Range(part string, from, to int) {
	values := map[string]string{}
	for _, kv := range s.STM.(library.Ranged).Range(registerAt(part, from), registerAt(part, to)) {
		values[string(kv.Key)] = string(kv.Value)
	}
	for i := from; i < to; i++ {
		if _, own := s.writes[registerAt(part, i)]; !own {
			s.reads[registerAt(part, i)] = values[registerAt(part, i)]
		}
	}
}

// DelRange deletes the registers of a part from one on and before another.
func (s *tracked) DelRange(part string, from, to int) {
	s.STM.(library.Ranged).DelRange(registerAt(part, from), registerAt(part, to))
	for i := from; i < to; i++ {
		s.writes[registerAt(part, i)] = ""
	}
}

// Del deletes, which is to write "".
func (s *tracked) Del(key string) {
	s.STM.Del(key)
	s.writes[key] = ""
}

// Put writes.
func (s *tracked) Put(key, value string) {
	s.STM.Put(key, value)
	s.writes[key] = value
}

// transfer moves money between two accounts. It looks at the total first, now and then.
func (t *transactor) transfer(ctx context.Context) {
	level := t.rnd.IntN(snapshots + 1)
	from, to, amount := t.rnd.IntN(accounts), t.rnd.IntN(accounts), t.rnd.IntN(10)
	if from == to {
		return
	}
	all := level < snapshots && t.rnd.IntN(4) == 0
	_, _ = t.try(ctx, "transfer", "", level, func(s library.STM) error {
		if all {
			t.total(s)
		}
		s.Put(account(from), plus(s.Get(account(from)), -amount))
		s.Put(account(to), plus(s.Get(account(to)), amount))
		return nil
	}, t.ahead(account(from), account(to))...)
}

func plus(value string, amount int) string {
	n, _ := strconv.Atoi(value)
	return strconv.Itoa(n + amount)
}

// audited reads the total and writes nothing.
func (t *transactor) audited(ctx context.Context) {
	_, _ = t.try(ctx, "total", "", t.rnd.IntN(snapshots), func(s library.STM) error {
		t.total(s)
		return nil
	})
}

// total reads all accounts in one attempt, of which nobody knows yet whether it will be
// committed.
func (t *transactor) total(s library.STM) {
	var values []string
	for i := range accounts {
		values = append(values, s.Get(account(i)))
	}
	t.noteTotal(t.who, values)
}

// noteTotal records the sum of all accounts as somebody has read them.
func (r *run) noteTotal(who history.Who, values []string) {
	sum := 0
	for _, value := range values {
		n, _ := strconv.Atoi(value)
		sum += n
	}
	r.rec.Add(history.Record{Total: &history.Total{Who: who, Sum: sum, Want: accounts * balance, At: r.rec.Now()}})
}
