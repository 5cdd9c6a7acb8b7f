package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/history"
)

const (
	accounts = 8
	balance  = 100

	// registers of one part are used for an epoch, so that the order of a part's
	// transactions can be searched for.
	registers = 4
	epoch     = 10 * time.Second
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
		case n < 80:
			t.update(ctx)
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
	return fmt.Sprintf("%s%s%s/%d", root, registerArea, part, t.rnd.IntN(registers))
}

// value is one that nobody else writes.
func (t *transactor) value() string {
	t.number++
	return fmt.Sprintf("%d-%d", t.who.Client, t.number)
}

// appendTo adds to a list, having read it.
func (t *transactor) appendTo(ctx context.Context) {
	part, value := t.part(), t.value()
	key := t.register(part)
	t.transact(ctx, "append", part, t.rnd.IntN(snapshots+1), func(s *tracked) {
		s.Put(key, s.Get(key)+" "+value)
	})
}

// update reads some registers and writes others, without a regard for what they were.
func (t *transactor) update(ctx context.Context) {
	part, value := t.part(), t.value()
	from, to, also := t.register(part), t.register(part), t.register(part)
	t.transact(ctx, "update", part, t.rnd.IntN(snapshots+1), func(s *tracked) {
		if t.rnd.IntN(4) > 0 {
			s.Get(from)
		}
		s.Put(to, value)
		if t.rnd.IntN(2) == 0 {
			s.Get(also)
		}
	})
}

// read only reads.
func (t *transactor) read(ctx context.Context) {
	part := t.part()
	keys := []string{t.register(part), t.register(part), t.register(part)}
	t.transact(ctx, "read", part, t.rnd.IntN(snapshots+1), func(s *tracked) {
		for _, key := range keys {
			s.Get(key)
		}
	})
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
func (t *transactor) transact(ctx context.Context, op, part string, level int, f func(s *tracked)) {
	call := t.rec.Now()
	note := func(s *tracked, writes map[string]string, unknown bool) {
		t.rec.Add(history.Record{Txn: &history.Txn{
			Who: t.who, Part: part, Level: levels[level], Call: call, Return: t.rec.Now(),
			Reads: s.reads, Writes: writes, Unknown: unknown,
		}})
	}
	var attempt *tracked
	abandon := func() {
		if attempt != nil && level < snapshots && len(attempt.reads) > 0 {
			note(attempt, nil, false)
		}
	}
	err := t.try(ctx, op, part, level, func(s stm) error {
		abandon()
		attempt = track(s)
		f(attempt)
		return nil
	})
	switch {
	case attempt == nil: // it has not come to that
	case err == nil:
		note(attempt, attempt.writes, false)
	case t.lib.unknown(err) && len(attempt.writes) > 0:
		note(attempt, attempt.writes, true)
		abandon()
	default:
		abandon()
	}
}

// try makes the call.
func (t *transactor) try(ctx context.Context, op, part string, level int, f func(stm) error) error {
	limit := between(t.rnd, 100*time.Millisecond, 3*time.Second)
	w := worker{run: t.run, station: t.station}
	return w.call(ctx, op, part, limit, func(ctx context.Context) error {
		return t.lib.transact(ctx, t.client, level, f)
	})
}

// tracked is an attempt and what it has read and written.
type tracked struct {
	stm
	reads, writes map[string]string
}

func track(s stm) *tracked {
	return &tracked{stm: s, reads: map[string]string{}, writes: map[string]string{}}
}

// Get reads one key. What the attempt wrote itself it is not told by the servers.
func (s *tracked) Get(key string) string {
	value := s.stm.Get(key)
	if _, own := s.writes[key]; !own {
		s.reads[key] = value
	}
	return value
}

// Put writes.
func (s *tracked) Put(key, value string) {
	s.stm.Put(key, value)
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
	_ = t.try(ctx, "transfer", "", level, func(s stm) error {
		if all {
			t.total(s)
		}
		s.Put(account(from), plus(s.Get(account(from)), -amount))
		s.Put(account(to), plus(s.Get(account(to)), amount))
		return nil
	})
}

func plus(value string, amount int) string {
	n, _ := strconv.Atoi(value)
	return strconv.Itoa(n + amount)
}

// audited reads the total and writes nothing.
func (t *transactor) audited(ctx context.Context) {
	_ = t.try(ctx, "total", "", t.rnd.IntN(snapshots), func(s stm) error {
		t.total(s)
		return nil
	})
}

// total reads all accounts in one attempt, of which nobody knows yet whether it will be
// committed.
func (t *transactor) total(s stm) {
	sum := 0
	for i := range accounts {
		n, _ := strconv.Atoi(s.Get(account(i)))
		sum += n
	}
	t.rec.Add(history.Record{Total: &history.Total{
		Who: t.who, Sum: sum, Want: accounts * balance, At: t.rec.Now(),
	}})
}

func isCommitUnknown(err error) bool { return errors.Is(err, concurrency.ErrCommitUnknown) }
