package compat

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// The isolation levels by their numbers, which are the same in both packages.
const (
	serializableSnapshot = iota
	serializable
	repeatableReads
	readCommitted
)

var transactionRows = []row{
	{"T1", "Get(a, b) answers with a and protects both", []part{
		{name: "b cached", run: getCached, upstream: "answered with b"},
		{name: "b written", run: getWritten, upstream: "answered with b"},
		{name: "a protected", run: getProtects, upstream: "committed over a change of a"},
	}},
	{"T2", "one attempt sees one revision, also on a retry", []part{
		{name: "retry", run: retryMixes, upstream: "mixed revisions"},
		{name: "Rev first", run: revFirst},
	}},
	{"T3", "no spurious failure on a healthy cluster of three", []part{
		{run: threeEndpoints, wire: true, members: 3, upstream: "future revision"},
	}},
	{"T4", "a compaction during an attempt is retried", []part{
		{run: compactedAttempt, members: 1, upstream: "compacted"},
	}},
	{"T5", "panic, Goexit and recover in the function behave as anywhere", []part{
		{name: "panic", run: panics, child: true, upstream: "the process died"},
		{name: "Goexit", run: exits, upstream: "hangs"},
		{name: "recover", run: recovers, upstream: "committed"},
	}},
	{"T6", "reads beyond the server's limit work; a commit beyond it fails with the numbers, unsent", []part{
		{name: "300 prefetched", run: prefetchMany, upstream: "too many operations"},
		{name: "129 written", run: writeMany, upstream: "was sent"},
	}},
	{"T7", "the abort context is looked at before every attempt, and during a pause", []part{
		{name: "before", run: abortBefore, upstream: "the function ran"},
		{name: "conflicts", run: abortConflicts},
	}},
	{"T8", "writes are sent in the order in which their keys were first written", []part{
		{run: writeOrder, upstream: "order"},
	}},
	{"T9", "a lost commit answer is an error that says that the outcome is unknown", []part{
		{run: lostCommit, upstream: "does not say"},
	}},
	{"T10", "a concurrent delete of a key read and then written is a conflict", []part{
		{run: deleteBetween},
	}},
}

// transact runs a transaction of the case's own client at the default level.
func (e *env) transact(f func(stm) error) error {
	_, err := e.newSTM(e.plain, f, stmOptions{})
	return err
}

// key is a key of the case's own.
func (e *env) key(name string) string { return e.name + "-" + name }

func getCached(e *env) error {
	a, b := e.key("a"), e.key("b")
	e.put(a, "of a")
	e.put(b, "of b")
	got := ""
	e.must(e.transact(func(s stm) error {
		s.Get(b)
		got = s.Get(a, b)
		return nil
	}))
	if got != "of a" {
		return errors.New("answered with b")
	}
	return nil
}

func getWritten(e *env) error {
	a, b := e.key("a"), e.key("b")
	e.put(a, "of a")
	got := ""
	e.must(e.transact(func(s stm) error {
		s.Put(b, "new b")
		got = s.Get(a, b)
		return nil
	}))
	if got != "of a" {
		return errors.New("answered with b")
	}
	return nil
}

// A change of a, read by Get(a, b) with b cached, must be a conflict.
func getProtects(e *env) error {
	for level := serializableSnapshot; level <= repeatableReads; level++ {
		a, b := e.key("a"), e.key("b")
		runs := 0
		_, err := e.newSTM(e.plain, func(s stm) error {
			runs++
			s.Get(b)
			s.Get(a, b)
			if runs == 1 {
				e.put(a, "changed")
			}
			s.Put(e.key("c"), "")
			return nil
		}, stmOptions{isolation: level})
		e.must(err)
		if runs != 2 {
			return fmt.Errorf("level %d: committed over a change of a", level)
		}
	}
	return nil
}

// both writes x and y together.
func (e *env) both(value string) {
	e.Helper()
	_, err := e.plain.Txn(e.Context()).Then(
		clientv3.OpPut(e.key("x"), value), clientv3.OpPut(e.key("y"), value)).Commit()
	e.must(err)
}

// The first attempt conflicts on x. In the second, x and y are written together
// before it reads y afresh, and x from what the conflict's answer brought.
func retryMixes(e *env) error {
	for _, level := range []int{serializableSnapshot, serializable} {
		e.both("1")
		runs, mixed := 0, ""
		_, err := e.newSTM(e.plain, func(s stm) error {
			runs++
			switch runs {
			case 1:
				s.Get(e.key("x"))
				e.both("2")
			case 2:
				e.both("3")
				if y, x := s.Get(e.key("y")), s.Get(e.key("x")); x != y {
					mixed = x + " and " + y
				}
			}
			s.Put(e.key("z"), "")
			return nil
		}, stmOptions{isolation: level})
		e.must(err)
		if mixed != "" {
			return fmt.Errorf("level %d: mixed revisions: %s", level, mixed)
		}
	}
	return nil
}

func revFirst(e *env) error {
	e.both("1")
	runs, mixed := 0, false
	e.must(e.transact(func(s stm) error {
		runs++
		rev := s.Rev(e.key("x"))
		if runs == 1 {
			e.both("2")
		}
		mixed = mixed || s.Rev(e.key("y")) != rev
		return nil
	}))
	if mixed {
		return errors.New("mixed revisions")
	}
	return nil
}

// threeEndpoints runs transactions over all members, and upstream's until one has
// failed: about one of fifty does.
func threeEndpoints(e *env) error {
	var clients []*clientv3.Client
	for range 8 {
		clients = append(clients, e.client())
	}
	total, failed := 0, 0
	for round := 0; round == 0 || !e.ours && failed == 0 && round < 20; round++ {
		n := 4 * trials(80)
		future, err := transactAtOnce(e, clients, n)
		if err != nil {
			return err
		}
		total, failed = total+n, failed+future
	}
	e.note = fmt.Sprintf("%d of %d", failed, total)
	if failed > 0 {
		return errors.New("future revision")
	}
	return nil
}

// transactAtOnce shares n transactions out among the clients, each on keys of its
// own, and counts those that fail for a future revision. Every read goes to the
// member after that of the last.
func transactAtOnce(e *env, clients []*clientv3.Client, n int) (future int, err error) {
	var failed atomic.Int32
	errs := make([]error, len(clients))
	var wg sync.WaitGroup
	for w, client := range clients {
		wg.Go(func() {
			own := e.key(strconv.Itoa(w))
			for i := range n / len(clients) {
				_, err := e.newSTM(client, func(s stm) error {
					s.Get(own)
					for read := range 4 {
						s.Get(own + strconv.Itoa(read))
					}
					s.Put(own, strconv.Itoa(i))
					return nil
				}, stmOptions{})
				switch {
				case errors.Is(err, rpctypes.ErrFutureRev):
					failed.Add(1)
				case err != nil:
					errs[w] = err
				}
			}
		})
	}
	wg.Wait()
	return int(failed.Load()), errors.Join(errs...)
}

func compactedAttempt(e *env) error {
	e.both("1")
	runs := 0
	return e.transact(func(s stm) error {
		runs++
		x := s.Get(e.key("x"))
		if runs == 1 {
			e.both("2")
			e.bury()
		}
		if y := s.Get(e.key("y")); x != y {
			return fmt.Errorf("mixed revisions: %s and %s", x, y)
		}
		s.Put(e.key("z"), x)
		return nil
	})
}

func panics(e *env) (err error) {
	defer func() {
		if r := recover(); r != "own" {
			err = fmt.Errorf("recovered %v", r)
		}
		if e.value(e.key("a")) != "" {
			err = errors.New("committed")
		}
	}()
	return fmt.Errorf("returned %w", e.transact(func(s stm) error {
		s.Put(e.key("a"), "garbage")
		panic("own")
	}))
}

func exits(e *env) error {
	call := etcdtest.Go(func() error {
		return e.transact(func(s stm) error {
			s.Put(e.key("a"), "garbage")
			runtime.Goexit()
			return nil
		})
	})
	if !returned(call, soon) {
		return errors.New("hangs")
	}
	if e.value(e.key("a")) != "" {
		return errors.New("committed")
	}
	return nil
}

// A function that recovers a failed read goes on with what it takes for an answer.
func recovers(e *env) error {
	client := e.client()
	faults := fault.Wrap(client)
	denied := rpctypes.ErrorDesc(rpctypes.ErrGRPCPermissionDenied)
	_, err := e.newSTM(client, func(s stm) error {
		got := "nothing"
		func() {
			defer func() { _ = recover() }()
			faults.Refuse(fault.Txn, 1, codes.PermissionDenied, denied)
			faults.Refuse(fault.Get, 1, codes.PermissionDenied, denied)
			got = s.Get(e.key("a"))
		}()
		faults.Clear()
		s.Put(e.key("b"), got)
		return nil
	}, stmOptions{})
	if e.value(e.key("b")) != "" {
		return errors.New("committed")
	}
	if err != rpctypes.ErrPermissionDenied {
		return fmt.Errorf("returned %w", err)
	}
	return nil
}

func (e *env) keys(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = e.key(strconv.Itoa(i))
	}
	return keys
}

func prefetchMany(e *env) error {
	const n = 300
	keys := e.keys(n)
	e.put(keys[n-1], "last")
	got := ""
	_, err := e.newSTM(e.plain, func(s stm) error {
		got = s.Get(keys[n-1])
		return nil
	}, stmOptions{prefetch: keys})
	if err != nil {
		return err
	}
	if got != "last" {
		return fmt.Errorf("read %q", got)
	}
	return nil
}

func writeMany(e *env) error {
	client := e.client()
	faults := fault.Wrap(client)
	_, err := e.newSTM(client, func(s stm) error {
		for _, key := range e.keys(129) {
			s.Put(key, "")
		}
		return nil
	}, stmOptions{})
	switch {
	case err == nil:
		return errors.New("returned nil")
	case faults.Count(fault.Txn) > 0:
		return fmt.Errorf("was sent: %w", err)
	case !strings.Contains(err.Error(), "129") || !strings.Contains(err.Error(), "128"):
		return fmt.Errorf("without the numbers: %w", err)
	case !errors.Is(err, rpctypes.ErrTooManyOps):
		return fmt.Errorf("another error: %w", err)
	}
	return nil
}

func abortBefore(e *env) error {
	ctx, cancel := context.WithCancel(e.Context())
	cancel()
	ran := false
	_, err := e.newSTM(e.plain, func(stm) error { ran = true; return nil }, stmOptions{ctx: ctx})
	if ran {
		return errors.New("the function ran")
	}
	if err != context.Canceled {
		return fmt.Errorf("returned %w", err)
	}
	return nil
}

// A function that always conflicts ends with the context, within a second.
func abortConflicts(e *env) error {
	ctx, cancel := context.WithCancel(e.Context())
	defer cancel()
	var runs atomic.Int32
	call := etcdtest.Go(func() error {
		_, err := e.newSTM(e.plain, func(s stm) error {
			s.Get(e.key("a"))
			s.Put(e.key("a"), "")
			e.put(e.key("a"), strconv.Itoa(int(runs.Add(1))))
			return nil
		}, stmOptions{ctx: ctx})
		return err
	})
	etcdtest.Eventually(e, func() bool { return runs.Load() > 8 }, "it conflicts")
	cancel()
	switch err := ends(call, soon, context.Canceled); {
	case err == nil:
		return nil
	case e.errUnknown != nil && errors.Is(call.Err(), e.errUnknown) && errors.Is(call.Err(), context.Canceled):
		return nil // it ended during a commit
	default:
		return err
	}
}

func writeOrder(e *env) error {
	const n = 10
	keys := e.keys(n)
	for i, key := range keys {
		e.put(key, strconv.Itoa(i))
	}
	resp, err := e.newSTM(e.plain, func(s stm) error {
		for i := range n {
			s.Put(keys[n-1-i], "new", clientv3.WithPrevKV())
		}
		s.Put(keys[0], "again", clientv3.WithPrevKV())
		s.Put(keys[n-1], "again", clientv3.WithPrevKV())
		return nil
	}, stmOptions{})
	e.must(err)
	for i, r := range resp.Responses {
		if got := string(r.GetResponsePut().PrevKv.Value); got != strconv.Itoa(n-1-i) {
			return fmt.Errorf("order: write %d of %d has the answer to another", i+1, n)
		}
	}
	return nil
}

func lostCommit(e *env) error {
	client := e.client()
	faults := fault.Wrap(client)
	runs := 0
	_, err := e.newSTM(client, func(s stm) error {
		runs++
		faults.LoseAnswer(fault.Txn, 1, nil)
		s.Put(e.key("a"), strconv.Itoa(runs))
		return nil
	}, stmOptions{})
	if runs != 1 || err == nil {
		return fmt.Errorf("ran %d times: %w", runs, err)
	}
	if e.value(e.key("a")) != "1" {
		return errors.New("the case did not work: not committed")
	}
	if e.errUnknown == nil || !errors.Is(err, e.errUnknown) || !errors.Is(err, fault.ErrLostAnswer) {
		return fmt.Errorf("does not say that the outcome is unknown: %w", err)
	}
	return nil
}

// At every level that checks reads, a key that was read, and is deleted before it
// is written, conflicts. A key that was only written does not.
func deleteBetween(e *env) error {
	for level := serializableSnapshot; level <= readCommitted; level++ {
		for _, read := range []bool{true, false} {
			e.put(e.key("a"), "old")
			runs := 0
			_, err := e.newSTM(e.plain, func(s stm) error {
				runs++
				if read {
					s.Get(e.key("a"))
				}
				if runs == 1 {
					_, err := e.plain.Delete(e.Context(), e.key("a"))
					e.must(err)
				}
				s.Put(e.key("a"), "new")
				return nil
			}, stmOptions{isolation: level})
			e.must(err)
			if conflict := runs == 2; conflict != (read && level != readCommitted) {
				return fmt.Errorf("level %d, read %v: conflict %v", level, read, conflict)
			}
		}
	}
	return nil
}
