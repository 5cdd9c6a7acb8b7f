package compat

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
	"example.com/etcd/concurrency/internal/library"
	"example.com/etcd/concurrency/internal/virtual"
)

var sessionRows = []row{
	{"S1", "Done closes before any other client can be given what the lease guarded", []part{
		{name: "cut off", run: cutOff, wire: true, bubble: true, upstream: "told late"},
		{name: "far away", run: cutOffFarAway, wire: true, bubble: true, upstream: "told late"},
		{name: "behind etcd's proxy", run: cutOffBehindProxy, wire: true, upstream: "told late"},
	}},
	{"S2", "the deadline runs from the Grant until the first renewal", []part{
		{run: stallAfterGrant, wire: true, bubble: true, upstream: "Done is open"},
	}},
	{"S3", "Ctx ends with the cause of the end, and before Done closes", []part{
		{name: "lost", run: causeLost, upstream: "the cause is context canceled"},
		{name: "expired", run: causeExpired, wire: true, bubble: true, upstream: "the cause is context canceled"},
		{name: "closed", run: causeClosed},
		{name: "orphaned", run: causeOrphaned},
	}},
	{"S4", "NewSession is bounded, gives back the lease of a failure, refuses a lease that does not exist", []part{
		{name: "no such lease", run: noSuchLease, upstream: "returned <nil>"},
		{name: "no answer", run: noAnswer, wire: true, upstream: "blocked"},
		{name: "context", run: noAnswerContext, wire: true},
		{name: "gives back", run: givesBack, upstream: "the lease is left"},
		{name: "client closed", run: clientClosed},
	}},
	{"S5", "Close twice is nil; it is bounded by the remaining life of the lease", []part{
		{name: "twice", run: closeTwice, upstream: "requested lease not found"},
		{name: "bounded", run: closeBounded, wire: true, upstream: "blocked"},
	}},
	{"S6", "nothing is left running after Close", []part{
		{run: nothingLeft, child: true, both: true},
	}},
	{"S7", "wrapped clients work: namespace, and the server's in-process client", []part{
		{run: wrappedClients, plain: true},
	}},
	{"S8", "an orphaned session still locks and elects", []part{
		{run: orphanLocks, queue: true},
	}},
	{"S9", "a session lives where upstream's does", []part{
		{name: "far away", run: farAway, wire: true, bubble: true},
		{name: "TTL 1 s behind etcd's proxy", run: behindProxy, wire: true},
		{name: "many", run: manySessions, wire: true, bubble: true},
	}},
	{"S10", "renewals that are refused are repeated at most four times a second", []part{
		{name: "Unavailable", run: refusing(codes.Unavailable), embedded: true, plain: true},
		{name: "Internal", run: refusing(codes.Internal), embedded: true, plain: true},
		{name: "ResourceExhausted", run: refusing(codes.ResourceExhausted), embedded: true, plain: true},
	}},
	{"S11", "the first look at a context after a pause beyond the deadline says that it has ended", []part{
		{run: pausedBeyondDeadline, wire: true, upstream: "contexts live after the pause"},
	}},
	{"S12", "WithLease(-1) is a session that has ended, without an error; Leader and Observe work on it", []part{
		{run: noPossibleLease},
	}},
}

// trials is how often a case whose fault strikes by chance is tried: the number in
// TRIALS, or the default.
func trials(byDefault int) int {
	n, err := strconv.Atoi(os.Getenv("TRIALS"))
	if err != nil || n <= 0 {
		return byDefault
	}
	return n
}

// cutOff cuts holders off at random phases of their renewal. A third of upstream's
// at least are told too late: in 48 trials none would be with a probability of 1e-8.
func cutOff(e *env) error {
	return e.cutOff(48, func() trial { return e.inTime(0) })
}

// cutOffFarAway has round trips of 10, 30 and 50 % of the TTL.
func cutOffFarAway(e *env) error {
	return e.cutOff(48, func() trial {
		const ttl = 4 // there is little time between the late answers
		trips := []int{10, 30, 50}
		t := e.inTime(ttl * time.Second * time.Duration(trips[rand.IntN(len(trips))]) / 100)
		t.ttl = ttl
		return t
	})
}

func cutOffBehindProxy(e *env) error {
	endpoint := etcdtest.GRPCProxy(e, e.cluster.Endpoint(0))
	n := 24
	if !ours(e.lib) {
		n = 32 // of which none would be late with a probability of 2e-6
	}
	return e.cutOff(n, func() trial { return e.behind(endpoint) })
}

func (e *env) cutOff(n int, prepare func() trial) error {
	n = trials(n)
	rival := e.session(e.client(), library.SessionOptions{})
	var late atomic.Int32
	var trouble error
	var once sync.Once
	const abreast = 16
	turns := make(chan struct{}, abreast)
	var wg sync.WaitGroup
	for i := range n {
		t := prepare()
		t.name, t.how, t.rival = fmt.Sprintf("%s/%d", e.name, i), i%3, rival
		if n >= 100 && i%2 == 1 {
			t.ttl = 5
		}
		wg.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			told, err := t.run(e)
			switch {
			case err != nil:
				once.Do(func() { trouble = err })
			case !told:
				late.Add(1)
			}
		})
	}
	wg.Wait()
	e.must(trouble)
	e.note = fmt.Sprintf("%d of %d", late.Load(), n)
	if late.Load() > 0 {
		return errors.New("told late")
	}
	return nil
}

// trial is one holder that is cut off, and how.
type trial struct {
	name   string
	ttl    int
	how    int
	client *clientv3.Client
	// connected is called when the client has connected, and before there is a session.
	connected func()
	cuts      [3]func() // each cuts the holder off in another way
	rival     library.Session
}

// behind is a trial in real time. Nothing gets through any more, or no answer, or the
// connection breaks and no other can be made.
func (e *env) behind(endpoint string) trial {
	p := e.proxyOf(endpoint)
	return trial{
		ttl: 2, client: e.client(p.Endpoint()), connected: func() {},
		cuts: [3]func(){p.Stall, p.StallDown, func() { p.Refuse(); p.Cut() }},
	}
}

// inTime is a trial in virtual time, so far away. Nothing gets through any more, or the
// connection breaks first, or it breaks and everything is refused from then on.
func (e *env) inTime(trip time.Duration) trial {
	c, n := e.remote()
	return trial{
		ttl: 2, client: c, connected: func() {
			n.SetRoundTrip(virtual.RoundTrip{Min: trip, Max: trip})
			e.bubble.Sleep(rand.N(time.Second)) // the server looks for expired leases at fixed times
		},
		cuts: [3]func(){
			func() { n.Stall(time.Hour) },
			func() { n.Cut(); n.Stall(time.Hour) },
			func() { n.Set("refused-Unavailable", 1); n.Cut() },
		},
	}
}

// hold opens a session that holds the lock. On a machine that is kept from running for
// the length of a TTL a session may end before the case begins; then another is opened.
func (t trial) hold(e *env) (library.Session, error) {
	for {
		holder, err := e.lib.Open(t.client, library.SessionOptions{TTL: t.ttl})
		if err == nil {
			err = holder.NewMutex(t.name).Lock(e.Context())
		}
		if errors.Is(err, e.lib.ErrSessionExpired) || errors.Is(err, context.DeadlineExceeded) {
			e.Logf("%s: over before it was cut off: %v", t.name, err)
			continue
		}
		return holder, err
	}
}

// run reports whether the holder was told before its rival got the lock. A holder that lost the
// lock before it was cut off, on a machine that stood still, has to be told in time as well; the
// case then begins anew.
func (t trial) run(e *env) (told bool, err error) {
	if err := connect(e, t.client); err != nil {
		return false, err
	}
	t.connected()
	for {
		holder, err := t.hold(e)
		if err != nil {
			return false, err
		}
		theirs := t.rival.NewMutex(t.name)
		call := etcdtest.Go(func() error { return theirs.Lock(e.Context()) })
		early := returned(call, rand.N(time.Duration(t.ttl)*time.Second))
		if !early {
			t.cuts[t.how]()
		}
		if err := ends(call, time.Minute, nil); err != nil {
			return false, fmt.Errorf("the rival's Lock: %w", err)
		}
		select {
		case <-holder.Done():
		default:
			return false, nil
		}
		if !early {
			return true, nil
		}
		e.Logf("%s: lost before it was cut off", t.name)
		if err := theirs.Unlock(e.Context()); err != nil {
			return false, err
		}
	}
}

func stallAfterGrant(e *env) error {
	const ttl = 2
	client, network := e.remote()
	fault.Wrap(client).After(fault.Grant, 1, func(error) { network.Stall(time.Hour) })
	s := e.session(client, library.SessionOptions{TTL: ttl})
	granted := time.Now()
	if !closes(s.Done(), ttl*time.Second) {
		return fmt.Errorf("Done is open %v after the grant of %d s", time.Since(granted).Round(time.Millisecond), ttl)
	}
	return nil
}

// told is nil when the session ends within d with the cause want.
func told(s library.Session, d time.Duration, want error) error {
	if !closes(s.Done(), d) {
		return fmt.Errorf("Done is open after %v", d)
	}
	if s.Ctx().Err() == nil {
		return errors.New("Done is closed, Ctx lives")
	}
	if cause := context.Cause(s.Ctx()); !errors.Is(cause, want) {
		return fmt.Errorf("the cause is %v, not %v", cause, want)
	}
	return nil
}

func causeLost(e *env) error {
	p := e.party(partyOptions{ttl: 2})
	p.revoke()
	<-p.session.Ctx().Done()
	return told(p.session, ample, e.lib.ErrSessionExpired)
}

func causeExpired(e *env) error {
	p := e.party(partyOptions{ttl: 2, proxy: true})
	p.stall()
	<-p.session.Ctx().Done()
	return told(p.session, ample, e.lib.ErrSessionExpired)
}

func causeClosed(e *env) error {
	s := e.party(partyOptions{}).session
	e.must(s.Close())
	return told(s, soon, context.Canceled)
}

func causeOrphaned(e *env) error {
	s := e.party(partyOptions{}).session
	s.Orphan()
	if err := told(s, soon, context.Canceled); err != nil {
		return err
	}
	resp, err := e.plain.TimeToLive(e.Context(), s.Lease())
	if err != nil || resp.TTL <= 0 {
		return fmt.Errorf("the lease does not live: %v, %w", resp, err)
	}
	return nil
}

func noSuchLease(e *env) error {
	_, err := e.lib.Open(e.client(), library.SessionOptions{Lease: 4711})
	if err == nil || err == library.ErrNoSession {
		return fmt.Errorf("returned %v", err)
	}
	return nil
}

// silent is a client of a server that lets it connect and never answers.
func (e *env) silent() *clientv3.Client {
	proxy := e.proxy()
	proxy.Stall()
	return e.client(proxy.Endpoint())
}

func noAnswer(e *env) error {
	const ttl = 2
	client := e.silent()
	call := etcdtest.Go(func() error {
		_, err := e.lib.Open(client, library.SessionOptions{TTL: ttl})
		return err
	})
	if !returned(call, ttl*time.Second+soon) {
		return errors.New("blocked")
	}
	if call.Err() == nil {
		return errors.New("a session without an answer")
	}
	return nil
}

func noAnswerContext(e *env) error {
	ctx, cancel := context.WithTimeout(e.Context(), dwell)
	defer cancel()
	client := e.silent()
	call := etcdtest.Go(func() error {
		_, err := e.lib.Open(client, library.SessionOptions{Ctx: ctx})
		return err
	})
	return ends(call, dwell+soon, context.DeadlineExceeded)
}

// The context ends when the lease has been granted.
func givesBack(e *env) error {
	client := e.client()
	ctx, cancel := context.WithCancel(e.Context())
	defer cancel()
	var id clientv3.LeaseID
	client.Lease = granted{client.Lease, func(got clientv3.LeaseID) { id = got; cancel() }}
	s, err := e.lib.Open(client, library.SessionOptions{Ctx: ctx})
	if err == nil {
		// A session whose context ended while it was opened. Its Close can't revoke.
		_ = s.Close()
	}
	resp, err := e.plain.TimeToLive(e.Context(), id)
	e.must(err)
	if resp.TTL > 0 {
		return fmt.Errorf("the lease is left with %d s", resp.TTL)
	}
	return nil
}

// granted tells of every lease that is granted, before its client knows it.
type granted struct {
	clientv3.Lease

	tell func(clientv3.LeaseID)
}

func (g granted) Grant(ctx context.Context, ttl int64) (*clientv3.LeaseGrantResponse, error) {
	resp, err := g.Lease.Grant(ctx, ttl)
	if err == nil {
		g.tell(resp.ID)
	}
	return resp, err
}

func clientClosed(e *env) error {
	client, err := etcdtest.NewClient(e.cluster.Endpoints()...)
	e.must(err)
	e.must(client.Close())
	call := etcdtest.Go(func() error {
		_, err := e.lib.Open(client, library.SessionOptions{})
		return err
	})
	return ends(call, soon, context.Canceled)
}

func closeTwice(e *env) error {
	s := e.party(partyOptions{}).session
	return cmp.Or(s.Close(), s.Close())
}

func closeBounded(e *env) error {
	const ttl = 2
	proxy := e.proxy()
	client := e.client(proxy.Endpoint())
	lease, err := e.plain.Grant(e.Context(), ttl)
	e.must(err)
	s := e.session(client, library.SessionOptions{Lease: lease.ID})
	proxy.Stall()
	call := etcdtest.Go(s.Close)
	if !returned(call, ttl*time.Second+soon) {
		return errors.New("blocked")
	}
	return nil
}

// nothingLeft uses everything, gives up some of it, and looks for what is left.
// Alone in its process, because it looks at all goroutines.
func nothingLeft(e *env) error {
	client := e.client()
	before := goleak.IgnoreCurrent()
	s := e.session(client, library.SessionOptions{})
	holder := e.session(client, library.SessionOptions{})
	e.must(holder.NewMutex(e.name).Lock(e.Context()))
	ctx, cancel := context.WithCancel(e.Context())
	observed := s.NewElection(e.name + "-e").Observe(ctx)
	m := s.NewMutex(e.name)
	waiting := etcdtest.Go(func() error { return m.Lock(ctx) })
	campaign := s.NewElection(e.name + "-e")
	e.must(campaign.Campaign(ctx, "a"))
	next(observed, ample)
	e.waitLine(2)
	cancel()
	e.must(ends(waiting, soon, context.Canceled))
	e.must(s.Close())
	e.must(holder.Close())
	err := goleak.Find(before)
	if err != nil && !strings.Contains(err.Error(), "/concurrency.") {
		return nil // the client's and the server's own
	}
	return err
}

func wrappedClients(e *env) error {
	for _, path := range []path{namespaced, inProcess} {
		if path == inProcess && !e.cluster.Embedded() {
			continue
		}
		one := *e
		one.path, one.name = path, e.name+string(path)
		one.plain = one.client()
		if err := errors.Join(everything(&one)...); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if path == namespaced && one.value("v") != "a1" {
			return errors.New("the key is not in the namespace")
		}
	}
	return nil
}

// everything is a round through the package.
func everything(e *env) (errs []error) {
	e.form = lock
	errs = append(errs, unlockLost(e))
	e.name += "-e"
	e.form = candidacy
	errs = append(errs, middleLeaves(e))
	_, err := e.lib.Transact(e.plain, func(s library.STM) error {
		s.Put("v", "a"+strconv.Itoa(1+len(s.Get(e.name))))
		return nil
	}, library.TxnOptions{})
	return append(errs, err)
}

func orphanLocks(e *env) error {
	holder, waiter := e.party(partyOptions{}), e.party(partyOptions{})
	holder.session.Orphan()
	waiter.session.Orphan()
	if err := holder.acquire(e.Context()); err != nil {
		return fmt.Errorf("without a wait: %w", err)
	}
	call := waiter.queue(e.Context(), 2)
	e.must(holder.release(e.Context()))
	if err := ends(call, ample, nil); err != nil {
		return fmt.Errorf("with a wait: %w", err)
	}
	return nil
}

// connect makes the first call of a client, by which it connects.
func connect(e *env, c *clientv3.Client) error {
	_, err := c.Get(e.Context(), e.name)
	return err
}

// lasts is nil if the session lives for so long.
func lasts(s library.Session, d time.Duration) error {
	began := time.Now()
	if closes(s.Done(), d) {
		return fmt.Errorf("the session ended after %v", time.Since(began).Round(time.Millisecond))
	}
	return nil
}

// farAway has sessions with round trips of 10 to 55 % of the TTL.
func farAway(e *env) error {
	const ttl = 6
	var calls []*etcdtest.Call
	for _, percent := range []int{10, 30, 50, 55} {
		client, network := e.remote()
		e.must(connect(e, client))
		trip := ttl * time.Second * time.Duration(percent) / 100
		network.SetRoundTrip(virtual.RoundTrip{Min: trip, Max: trip})
		calls = append(calls, etcdtest.Go(func() error {
			s, err := e.lib.Open(client, library.SessionOptions{TTL: ttl})
			if err == nil {
				err = lasts(s, 30*ttl*time.Second)
			}
			if err != nil {
				return fmt.Errorf("%d %%: %w", percent, err)
			}
			return nil
		}))
	}
	var failed []error
	for _, call := range calls {
		<-call.Done()
		failed = append(failed, call.Err())
	}
	return errors.Join(failed...)
}

// Upstream's sessions of one or two seconds end there once in a while, on a busy machine.
func behindProxy(e *env) error {
	ttl := 1
	if !ours(e.lib) {
		ttl = 4
	}
	client := e.client(etcdtest.GRPCProxy(e, e.cluster.Endpoint(0)))
	return lasts(e.session(client, library.SessionOptions{TTL: ttl}), 8*time.Second)
}

// manySessions are opened some at a time, as programs do.
func manySessions(e *env) error {
	const ttl, n, abreast = 6, 500, 16
	client := e.client()
	all := make([]library.Session, n)
	var wg sync.WaitGroup
	for worker := range abreast {
		wg.Go(func() {
			for i := worker; i < n; i += abreast {
				all[i], _ = e.lib.Open(client, library.SessionOptions{TTL: ttl})
			}
		})
	}
	wg.Wait()
	e.must(lasts(e.session(client, library.SessionOptions{}), 2*ttl*time.Second))
	lost := 0
	for _, s := range all {
		if s == nil || closed(s.Done()) {
			lost++
		}
	}
	if lost > 0 {
		return fmt.Errorf("%d of %d are lost", lost, n)
	}
	return nil
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// refusing has a server that answers renewals with the code.
func refusing(code codes.Code) func(*env) error {
	return func(e *env) error {
		const n, window = 20, 5 * time.Second
		renewals := &fault.Renewals{}
		single.place(e)
		own := etcdtest.New(e, etcdtest.Config(func(_ int, cfg *embed.Config) {
			cfg.GRPCAdditionalServerOptions = append(cfg.GRPCAdditionalServerOptions, renewals.Option())
		}))
		client := own.Client(e)
		for range n {
			e.session(client, library.SessionOptions{TTL: 10})
		}
		renewals.Refuse(code)
		etcdtest.Eventually(e, func() bool { return renewals.Streams() > 1 }, "the first renewal is refused")
		before, began := renewals.Streams(), time.Now()
		closes(e.Context().Done(), window)
		asked := renewals.Streams() - before
		e.note = fmt.Sprintf("%d in %v", asked, window)
		if limit := 4 * n * time.Since(began).Seconds(); float64(asked) > limit {
			return fmt.Errorf("asked %d times in %v", asked, window)
		}
		return nil
	}
}

// The environment of a process that is paused: its server, and the library that it uses.
const (
	pausedServer  = "COMPAT_PAUSED"
	pausedLibrary = "COMPAT_PAUSED_LIBRARY"
)

// pausedBeyondDeadline stops a process for two TTLs. It counts, as the first thing that it
// does afterwards, the contexts of sessions that live.
func pausedBeyondDeadline(e *env) error {
	cmd := exec.CommandContext(e.Context(), os.Args[0], "-test.run=^TestPaused$")
	etcdtest.DieWithParent(cmd)
	// On one processor the count goes on where the pause began, before any timer runs.
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1",
		pausedServer+"="+e.cluster.Endpoint(0), pausedLibrary+"="+e.lib.Name)
	out, err := cmd.StdoutPipe()
	e.must(err)
	e.must(cmd.Start())
	defer cmd.Wait()
	defer cmd.Process.Kill()
	said := bufio.NewScanner(out)
	if !said.Scan() || said.Text() != "open" {
		return fmt.Errorf("the process said %q", said.Text())
	}
	e.must(etcdtest.Suspend(cmd.Process))
	closes(e.Context().Done(), 2*pausedTTL*time.Second)
	e.must(etcdtest.Resume(cmd.Process))
	for said.Scan() {
		if left, ok := strings.CutPrefix(said.Text(), "alive: "); ok {
			if left != "0" {
				return fmt.Errorf("%s of %d contexts live after the pause", left, pausedSessions)
			}
			return nil
		}
	}
	return errors.New("the process ended")
}

const pausedTTL, pausedSessions = 2, 64

// TestPaused is what the process does.
func TestPaused(t *testing.T) {
	endpoint := os.Getenv(pausedServer)
	if endpoint == "" {
		return
	}
	lib := library.Upstream
	if os.Getenv(pausedLibrary) == library.Here.Name {
		lib = library.Here
	}
	c := etcdtest.Dial(t, endpoint)
	var all []library.Session
	for range pausedSessions {
		s, err := lib.Open(c, library.SessionOptions{TTL: pausedTTL})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	// Looks at the clock all the time, so that nothing comes between the pause and the count.
	last := time.Now()
	fmt.Println("open")
	for {
		now := time.Now()
		if now.Sub(last) > pausedTTL*time.Second {
			break
		}
		last = now
	}
	alive := 0
	for _, s := range all {
		if s.Ctx().Err() == nil {
			alive++
		}
	}
	fmt.Printf("alive: %d\n", alive)
}

func noPossibleLease(e *env) error {
	s, err := e.lib.Open(e.client(), library.SessionOptions{Lease: -1})
	if err != nil {
		return err
	}
	if !closes(s.Done(), ample) || s.Ctx().Err() == nil {
		return errors.New("Done is open")
	}
	s.Orphan()
	observer := s.NewElection(e.name)
	if _, err := observer.Leader(e.Context()); err != e.lib.ErrElectionNoLeader {
		return fmt.Errorf("Leader returned %w", err)
	}
	leader := e.session(e.client(), library.SessionOptions{}).NewElection(e.name)
	e.must(leader.Campaign(e.Context(), "a"))
	if resp, err := observer.Leader(e.Context()); err != nil || string(resp.Kvs[0].Key) != leader.Key() {
		return fmt.Errorf("Leader returned %v, %w", resp, err)
	}
	ctx, cancel := context.WithCancel(e.Context())
	defer cancel()
	if seen := next(observer.Observe(ctx), ample); seen != "a" {
		return fmt.Errorf("observed %s", seen)
	}
	return nil
}
