package compat

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
	"example.com/etcd/concurrency/internal/library"
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
	{"T6", "reads beyond the server's limit work; a commit beyond WithMaxTxnOps fails with the numbers, unsent", []part{
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
	{"T11", "what the servers' limit allows is committed; what it refuses is ErrTooManyOps, bare", []part{
		{name: "raised", run: raisedLimit, embedded: true},
		{name: "refused", run: refusedByLimit},
	}},
	{"T12", "a commit that was not sent is not unknown; a deadline during one is told", []part{
		{name: "too large", run: tooLarge},
		{name: "closed", run: closedBefore, wire: true},
		{name: "deadline", run: deadlineInCommit},
	}},
	{"T13", "a header is never older than what was read, or than an answer before", []part{
		{name: "empty", run: emptyHeader, embedded: true, wire: true, upstream: "older than a put"},
		{name: "ReadCommitted", run: readOnlyHeader, embedded: true, wire: true, upstream: "older than its read"},
	}},
	{"T14", "reads of several keys ride out what a read of one does", []part{
		{name: "one", run: func(e *env) error { return readThroughCut(e, e.keys(1)) }, wire: true, upstream: "ended by"},
		{name: "two", run: func(e *env) error { return readThroughCut(e, e.keys(2)) }, wire: true, upstream: "ended by"},
	}},
	{"T15", "no transaction starves by the package's own doing", []part{
		{name: "4 goroutines, 40 ms", run: func(e *env) error { return starve(e, 4) }, wire: true, plain: true, bubble: true},
		{name: "8 goroutines, 40 ms", run: func(e *env) error { return starve(e, 8) }, wire: true, plain: true, bubble: true},
		{name: "slow beside quick", run: slowBesideQuick, wire: true, plain: true, bubble: true},
		{name: "nested", run: nested, plain: true},
	}},
	{"T16", "thousands of keys cost linear time", []part{
		{name: "puts", run: manyPuts, plain: true},
		{name: "500 read and written", run: manyUpdates, embedded: true, plain: true},
	}},
	{"T17", "a transaction over the keys of a prefix has no phantoms", []part{
		{run: bookTwice, upstream: "booked twice"},
	}},
}

// bookTwice enters two bookings of one room. Each must see the other. What has no ranges can but
// list the bookings, and then read what it has found.
func bookTwice(e *env) error {
	room := e.key("room") + "/"
	end := clientv3.GetPrefixRangeEnd(room)
	list := func(s library.STM) int {
		if r, ok := s.(library.Ranged); ok {
			return len(r.Range(room, end))
		}
		resp, err := e.plain.Get(context.Background(), room, clientv3.WithRange(end))
		e.must(err)
		for _, kv := range resp.Kvs {
			s.Get(string(kv.Key))
		}
		return len(resp.Kvs)
	}
	runs, bookings := 0, 0
	e.must(e.transact(func(s library.STM) error {
		found := list(s)
		if runs++; runs == 1 {
			e.put(room+"theirs", "")
		}
		if found == 0 {
			s.Put(room+"ours", "")
		}
		return nil
	}))
	e.must(e.transact(func(s library.STM) error { bookings = list(s); return nil }))
	if bookings != 1 {
		return errors.New("booked twice")
	}
	return nil
}

// transact runs a transaction of the case's own client at the default level.
func (e *env) transact(f func(library.STM) error) error {
	_, err := e.lib.Transact(e.plain, f, library.TxnOptions{})
	return err
}

// key is a key of the case's own.
func (e *env) key(name string) string { return e.name + "-" + name }

func getCached(e *env) error {
	a, b := e.key("a"), e.key("b")
	e.put(a, "of a")
	e.put(b, "of b")
	got := ""
	e.must(e.transact(func(s library.STM) error {
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
	e.must(e.transact(func(s library.STM) error {
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
		_, err := e.lib.Transact(e.plain, func(s library.STM) error {
			runs++
			s.Get(b)
			s.Get(a, b)
			if runs == 1 {
				e.put(a, "changed")
			}
			s.Put(e.key("c"), "")
			return nil
		}, library.TxnOptions{Level: level})
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
		_, err := e.lib.Transact(e.plain, func(s library.STM) error {
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
		}, library.TxnOptions{Level: level})
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
	e.must(e.transact(func(s library.STM) error {
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
	for round := 0; round == 0 || !ours(e.lib) && failed == 0 && round < 20; round++ {
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
				_, err := e.lib.Transact(client, func(s library.STM) error {
					s.Get(own)
					for read := range 4 {
						s.Get(own + strconv.Itoa(read))
					}
					s.Put(own, strconv.Itoa(i))
					return nil
				}, library.TxnOptions{})
				switch {
				case errors.Is(err, rpctypes.ErrFutureRev):
					failed.Add(1)
				case errors.Is(err, rpctypes.ErrLeaderChanged) && !ours(e.lib):
					// A busy machine, on which the cluster was not healthy for a moment.
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
	return e.transact(func(s library.STM) error {
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
	return fmt.Errorf("returned %w", e.transact(func(s library.STM) error {
		s.Put(e.key("a"), "garbage")
		panic("own")
	}))
}

func exits(e *env) error {
	call := etcdtest.Go(func() error {
		return e.transact(func(s library.STM) error {
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
	_, err := e.lib.Transact(client, func(s library.STM) error {
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
	}, library.TxnOptions{})
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
	_, err := e.lib.Transact(e.plain, func(s library.STM) error {
		got = s.Get(keys[n-1])
		return nil
	}, library.TxnOptions{Prefetch: keys})
	if err != nil {
		return err
	}
	if got != "last" {
		return fmt.Errorf("read %q", got)
	}
	return nil
}

// Upstream has no limit of its own, and sends what the server refuses.
func writeMany(e *env) error {
	o := library.TxnOptions{}
	if ours(e.lib) {
		o.MaxOps = 128
	}
	client := e.client()
	faults := fault.Wrap(client)
	_, err := e.lib.Transact(client, func(s library.STM) error {
		for _, key := range e.keys(129) {
			s.Put(key, "")
		}
		return nil
	}, o)
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
	_, err := e.lib.Transact(e.plain, func(library.STM) error { ran = true; return nil }, library.TxnOptions{Ctx: ctx})
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
		_, err := e.lib.Transact(e.plain, func(s library.STM) error {
			s.Get(e.key("a"))
			s.Put(e.key("a"), "")
			e.put(e.key("a"), strconv.Itoa(int(runs.Add(1))))
			return nil
		}, library.TxnOptions{Ctx: ctx})
		return err
	})
	etcdtest.Eventually(e, func() bool { return runs.Load() > 8 }, "it conflicts")
	cancel()
	switch err := ends(call, soon, context.Canceled); {
	case err == nil:
		return nil
	case e.unknown(call.Err()) && errors.Is(call.Err(), context.Canceled):
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
	resp, err := e.lib.Transact(e.plain, func(s library.STM) error {
		for i := range n {
			s.Put(keys[n-1-i], "new", clientv3.WithPrevKV())
		}
		s.Put(keys[0], "again", clientv3.WithPrevKV())
		s.Put(keys[n-1], "again", clientv3.WithPrevKV())
		return nil
	}, library.TxnOptions{})
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
	_, err := e.lib.Transact(client, func(s library.STM) error {
		runs++
		faults.LoseAnswer(fault.Txn, 1, nil)
		s.Put(e.key("a"), strconv.Itoa(runs))
		return nil
	}, library.TxnOptions{})
	if runs != 1 || err == nil {
		return fmt.Errorf("ran %d times: %w", runs, err)
	}
	if e.value(e.key("a")) != "1" {
		return errors.New("the case did not work: not committed")
	}
	if !e.unknown(err) || !errors.Is(err, fault.ErrLostAnswer) {
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
			_, err := e.lib.Transact(e.plain, func(s library.STM) error {
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
			}, library.TxnOptions{Level: level})
			e.must(err)
			if conflict := runs == 2; conflict != (read && level != readCommitted) {
				return fmt.Errorf("level %d, read %v: conflict %v", level, read, conflict)
			}
		}
	}
	return nil
}

// limited is a server with another limit of operations.
func limited(e *env, n uint) *clientv3.Client {
	single.place(e)
	c := etcdtest.New(e, etcdtest.Config(func(_ int, cfg *embed.Config) { cfg.MaxTxnOps = n }))
	if e.path == inProcess {
		return c.InProcess(e)
	}
	return e.client(c.Endpoints()...)
}

func raisedLimit(e *env) error {
	const n = 800
	client := limited(e, 4096)
	resp, err := e.lib.Transact(client, func(s library.STM) error {
		for _, key := range e.keys(n) {
			s.Put(key, "new")
		}
		return nil
	}, library.TxnOptions{})
	if err == nil && len(resp.Responses) != n {
		err = fmt.Errorf("%d answers", len(resp.Responses))
	}
	return err
}

func refusedByLimit(e *env) error {
	err := e.transact(func(s library.STM) error {
		for _, key := range e.keys(129) {
			s.Put(key, "")
		}
		return nil
	})
	if err != rpctypes.ErrTooManyOps {
		return fmt.Errorf("returned %w", err)
	}
	return nil
}

// unknown says whether the error claims that the outcome is unknown.
func (e *env) unknown(err error) bool {
	return e.lib.ErrCommitUnknown != nil && errors.Is(err, e.lib.ErrCommitUnknown)
}

func tooLarge(e *env) error {
	err := e.transact(func(s library.STM) error {
		s.Put(e.key("a"), strings.Repeat("v", 3<<20))
		return nil
	})
	switch {
	case err == nil:
		return errors.New("returned nil")
	case e.unknown(err):
		return fmt.Errorf("unknown: %w", err)
	}
	return nil
}

func closedBefore(e *env) error {
	client := e.client()
	e.must(client.Close())
	_, err := e.lib.Transact(client, func(s library.STM) error {
		s.Put(e.key("a"), "")
		return nil
	}, library.TxnOptions{Ctx: e.Context()})
	switch {
	case err == nil:
		return errors.New("returned nil")
	case e.unknown(err):
		return fmt.Errorf("unknown: %w", err)
	}
	return nil
}

// The commit has been carried out when the deadline passes, which has to be told.
func deadlineInCommit(e *env) error {
	client := e.client()
	gate := fault.Wrap(client).HoldAnswer(fault.Txn, 1)
	ctx, cancel := context.WithTimeout(e.Context(), dwell)
	defer cancel()
	_, err := e.lib.Transact(client, func(s library.STM) error {
		s.Put(e.key("a"), "")
		return nil
	}, library.TxnOptions{Ctx: ctx})
	gate.Open()
	switch {
	case !errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("returned %w", err)
	case ours(e.lib) && !e.unknown(err):
		return fmt.Errorf("does not say that the outcome is unknown: %w", err)
	}
	return nil
}

// lag is by how much a member is behind: less than an election takes.
const lag = 400 * time.Millisecond

// lagging is a cluster of three, and one of its members that hears of everything late.
func lagging(e *env) (c *etcdtest.Cluster, late int, mainland *clientv3.Client) {
	triple.place(e)
	c = etcdtest.New(e, etcdtest.Members(3), etcdtest.PeerProxies())
	late = (c.Leader() + 1) % 3
	for other := range 3 {
		if other != late {
			c.Link(other, late).Delay(lag)
			c.Link(late, other).Delay(lag)
		}
	}
	return c, late, e.client(c.Endpoint((late+1)%3), c.Endpoint((late+2)%3))
}

// looks is how often a header is looked at: on a busy machine a member may catch up in time.
const looks = 5

func emptyHeader(e *env) error {
	c, late, mainland := lagging(e)
	client := e.client(c.Endpoint(late))
	for range looks {
		_, err := client.Get(e.Context(), e.key("a"))
		e.must(err)
		put, err := mainland.Put(e.Context(), e.key("a"), "new")
		e.must(err)
		resp, err := e.lib.Transact(client, func(library.STM) error { return nil }, library.TxnOptions{})
		if err != nil {
			return err
		}
		if resp.Header.Revision < put.Header.Revision {
			return errors.New("older than a put that was answered")
		}
	}
	return nil
}

// The client reads from a member that is up to date, and then goes on with the other.
func readOnlyHeader(e *env) error {
	c, late, mainland := lagging(e)
	client, other := e.client(c.Endpoint((late+1)%3)), e.client(c.Endpoint(late))
	upToDate := client.KV
	for i := range looks {
		for _, c := range []*clientv3.Client{client, other} { // they are connected then
			_, err := c.Get(e.Context(), e.key("a"))
			e.must(err)
		}
		var put *clientv3.PutResponse
		resp, err := e.lib.Transact(client, func(s library.STM) (err error) {
			put, err = mainland.Put(e.Context(), e.key("a"), strconv.Itoa(i))
			e.must(err)
			// Upstream reads from whichever member is asked.
			for rev := int64(0); rev < put.Header.Revision; {
				resp, err := client.Get(e.Context(), e.key("a"))
				e.must(err)
				rev = resp.Header.Revision
			}
			if s.Get(e.key("a")) != strconv.Itoa(i) {
				return errors.New("the case did not work: an old value")
			}
			client.KV = other.KV
			return nil
		}, library.TxnOptions{Level: readCommitted})
		client.KV = upToDate
		if err != nil {
			return err
		}
		if resp.Header.Revision < put.Header.Revision {
			return errors.New("older than its read")
		}
	}
	return nil
}

// readThroughCut reads on a connection that is lost before the answer has come.
func readThroughCut(e *env, keys []string) error {
	e.put(keys[0], "value")
	p := e.proxy()
	client := e.client(p.Endpoint())
	_, err := client.Get(e.Context(), keys[0])
	e.must(err)
	p.StallDown()
	got := ""
	call := etcdtest.Go(func() error {
		_, err := e.lib.Transact(client, func(s library.STM) error {
			got = s.Get(keys...)
			return nil
		}, library.TxnOptions{})
		return err
	})
	if returned(call, dwell) {
		return errors.New("the case did not work: answered")
	}
	p.Cut()
	p.Resume()
	if err := call.Wait(e); err != nil {
		return fmt.Errorf("ended by %w", err)
	}
	if got != "value" {
		return fmt.Errorf("read %q", got)
	}
	return nil
}

// increment adds one to a number.
func (e *env) increment(s library.STM, key string) {
	n, _ := strconv.Atoi(s.Get(key))
	s.Put(key, strconv.Itoa(n+1))
}

// starve lets goroutines of one client increment one key, 40 ms from the server. Each gets
// its share of the commits, and none waits for many times what the others need together.
func starve(e *env, workers int) error {
	const span = 15 * time.Second
	client := e.away(40 * time.Millisecond)
	commits, slowest := make([]int, workers), make([]time.Duration, workers)
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for time.Since(begin) < span {
				start := time.Now()
				_, err := e.lib.Transact(client, func(s library.STM) error {
					e.increment(s, e.key("n"))
					return nil
				}, library.TxnOptions{})
				if err != nil {
					e.Error(err)
					return
				}
				slowest[i] = max(slowest[i], time.Since(start))
				commits[i]++
			}
		})
	}
	wg.Wait()
	least, most, longest := slices.Min(commits), slices.Max(commits), slices.Max(slowest)
	e.note = fmt.Sprintf("%d to %d commits, slowest %v", least, most, longest.Round(10*time.Millisecond))
	if 5*least < most || longest > span/2 {
		return fmt.Errorf("starved: %s", e.note)
	}
	return nil
}

// quick counts the increments of four goroutines while busy runs.
func (e *env) quick(busy func()) int {
	var total atomic.Int64
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := e.transact(func(s library.STM) error { e.increment(s, e.key("n")); return nil }); err != nil {
					e.Error(err)
					return
				}
				total.Add(1)
			}
		})
	}
	busy()
	close(done)
	wg.Wait()
	return int(total.Load())
}

// A function of 200 ms runs again and again, since the quick ones change what it reads. They
// hardly notice. They are 2 ms from the server, because a quick function that takes no time would
// run for ever in one moment of virtual time.
func slowBesideQuick(e *env) error {
	const span = 2 * time.Second
	e.plain = e.away(2 * time.Millisecond)
	alone := e.quick(func() { <-time.After(span) })
	beside := e.quick(func() {
		ctx, cancel := context.WithTimeout(e.Context(), span)
		defer cancel()
		_, err := e.lib.Transact(e.plain, func(s library.STM) error {
			e.increment(s, e.key("n"))
			<-time.After(200 * time.Millisecond)
			return nil
		}, library.TxnOptions{Ctx: ctx})
		if err == nil {
			<-ctx.Done()
		}
	})
	e.note = fmt.Sprintf("%d beside, %d alone", beside, alone)
	if 2*beside < alone {
		return fmt.Errorf("the quick ones are held up: %s", e.note)
	}
	return nil
}

// In its second attempt the outer transaction runs an inner one on the same key.
func nested(e *env) error {
	fastest := time.Hour
	for range 5 {
		runs := 0
		e.must(e.transact(func(s library.STM) error {
			e.increment(s, e.key("n"))
			switch runs++; runs {
			case 1:
				e.put(e.key("n"), "7")
			case 2:
				begin := time.Now()
				e.must(e.transact(func(inner library.STM) error { e.increment(inner, e.key("n")); return nil }))
				fastest = min(fastest, time.Since(begin))
			}
			return nil
		}))
	}
	e.note = fastest.Round(100 * time.Microsecond).String()
	if fastest > 25*time.Millisecond {
		return fmt.Errorf("paused by the outer one: %s", e.note)
	}
	return nil
}

// manyPuts compares the time of puts with that of making their operations.
func manyPuts(e *env) error {
	const n = 20000
	keys, errOwn := e.keys(n), errors.New("own")
	fastest := func(f func()) time.Duration {
		best := time.Hour
		for range 5 {
			begin := time.Now()
			f()
			best = min(best, time.Since(begin))
		}
		return best
	}
	puts := fastest(func() {
		err := e.transact(func(s library.STM) error {
			for _, key := range keys {
				s.Put(key, "")
			}
			return errOwn // what the server does is not the case
		})
		if err != errOwn {
			e.Fatal(err)
		}
	})
	bare := fastest(func() {
		ops := map[string]clientv3.Op{}
		for _, key := range keys {
			ops[key] = clientv3.OpPut(key, "")
		}
	})
	e.note = fmt.Sprintf("%.1f times as long as their operations", float64(puts)/float64(bare))
	if puts > 10*bare {
		return errors.New("puts take " + e.note)
	}
	return nil
}

func manyUpdates(e *env) error {
	const n = 500
	client := limited(e, 2*n)
	_, err := e.lib.Transact(client, func(s library.STM) error {
		for _, key := range e.keys(n) {
			s.Put(key, s.Get(key)+"+")
		}
		return nil
	}, library.TxnOptions{Prefetch: e.keys(n)})
	return err
}
