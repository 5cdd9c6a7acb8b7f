package compat

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
	"example.com/etcd/concurrency/internal/library"
)

var electionRows = []row{
	{"E1", "Campaign proves its own candidacy: never two leaders", []part{
		{run: twoLeaders, queue: true, form: candidacy, upstream: "returned <nil>"},
	}},
	{"E2", "a failed Campaign withdraws its candidacy, whatever failed", []part{
		{name: "lost answer", run: lostJoin, queue: true, form: candidacy, upstream: "the key stays"},
		{name: "compaction", run: compactedCampaign, wire: true, members: 1, form: candidacy, upstream: "the key stays"},
		{name: "unreachable", run: unreachable, queue: true, form: candidacy, wire: true, upstream: "blocked"},
	}},
	{"E3", "L1, L5, L6, L7, L12 and L15 hold for Campaign", []part{
		{name: "L1", run: revokedWaiter, queue: true, form: candidacy, upstream: "still waiting"},
		{name: "L5", run: unreachable, queue: true, wire: true, form: candidacy, upstream: "blocked"},
		{name: "L6", run: compactedWait, queue: true, wire: true, members: 1, form: candidacy, upstream: "compacted"},
		{name: "L6, before a watch", run: compactedBeforeWatch, queue: true, members: 1, form: candidacy, upstream: "compacted"},
		{name: "L7", run: quorumLost, queue: true, members: 3, form: candidacy, upstream: "still waiting"},
		{name: "L12", run: headerAfterWait, queue: true, form: candidacy, upstream: "older than the release"},
		{name: "L15", run: refusedJoin, queue: true, form: candidacy, upstream: "ended by"},
	}},
	{"E4", "a failed Resign or Unlock can be repeated", []part{
		{name: "Resign", run: releaseAgain, queue: true, form: candidacy, upstream: "the key stays"},
		{name: "Unlock", run: releaseAgain, queue: true, form: lock},
	}},
	{"E5", "Proclaim of who does not lead is ErrElectionNotLeader, every time", []part{
		{name: "deposed", run: proclaimDeposed, form: candidacy, upstream: "key is not provided"},
		{name: "waiting", run: proclaimWaiting, form: candidacy, child: true, upstream: "returned <nil>"},
	}},
	{"E6", "ResumeElection looks at the same keys as the election that it resumes", []part{
		{name: "name", run: resumeByName, form: candidacy, upstream: "another election"},
		{name: "stored prefix", run: resumeByPrefix, form: candidacy},
	}},
	{"E7", "Observe tells leaders only, survives faults, and skips stale values", []part{
		{name: "compaction", run: observeCompaction, form: candidacy, wire: true, members: 1, upstream: "closed"},
		{name: "compaction before a watch", run: observeBeforeWatch, form: candidacy, members: 1, upstream: "closed"},
		{name: "slow reader", run: observeSlowly, form: candidacy, upstream: "values were kept"},
		{name: "leaders", run: observeLeaders, form: candidacy},
		{name: "end", run: observeEnds, form: candidacy},
	}},
	{"E8", "Key and Rev are empty unless elected", []part{
		{run: keyWhileWaiting, form: candidacy, child: true, upstream: "while waiting"},
	}},
	{"E9", "who owns and whose repeated Campaign or Lock fails on its context still owns", []part{
		{name: "Campaign", run: acquireAgain, queue: true, alone: true, form: candidacy, upstream: "not the owner"},
		{name: "Lock", run: acquireAgain, queue: true, alone: true, form: lock},
	}},
}

// A leads, B waits and loses its lease, C campaigns, A resigns.
func twoLeaders(e *env) error {
	a, b, c := e.party(partyOptions{}), e.party(partyOptions{}), e.party(partyOptions{})
	e.must(a.acquire(e.Context()))
	dead := b.queue(e.Context(), 2)
	b.revoke()
	alive := c.queue(e.Context(), 2)
	e.must(a.release(e.Context()))
	if err := ends(alive, ample, nil); err != nil {
		return fmt.Errorf("C: %w", err)
	}
	return ends(dead, soon, e.lib.ErrSessionExpired)
}

// A Campaign that fails because of a compaction leaves nothing; one that does not
// fail has kept its place.
func compactedCampaign(e *env) error {
	holder, waiter := e.party(partyOptions{}), e.party(partyOptions{proxy: true})
	e.must(holder.acquire(e.Context()))
	call := waiter.queue(e.Context(), 2)
	watches, gets := waiter.faults.Count(fault.Watch), waiter.faults.Count(fault.Get)
	waiter.proxy.Refuse()
	waiter.proxy.Cut()
	e.bury()
	waiter.proxy.Accept()
	etcdtest.Eventually(e, func() bool {
		return !call.Running() || waiter.noticed(watches, gets)
	}, "the waiter watches or looks again")
	if call.Running() {
		e.must(holder.release(e.Context()))
		return ends(call, ample, nil)
	}
	return e.leaves(waiter.place(), soon)
}

// election is a new handle for a new party.
func (e *env) election() (library.Election, *party) {
	e.Helper()
	p := e.party(partyOptions{})
	return p.session.NewElection(e.name), p
}

func releaseAgain(e *env) error {
	p := e.party(partyOptions{})
	e.must(p.acquire(e.Context()))
	ctx, cancel := context.WithCancel(e.Context())
	cancel()
	if err := p.release(ctx); err != context.Canceled {
		return fmt.Errorf("a release that was given up returned %w", err)
	}
	if err := p.release(e.Context()); err != nil {
		return err
	}
	return e.leaves(p.place(), soon)
}

func proclaimDeposed(e *env) error {
	el, p := e.election()
	e.must(el.Campaign(e.Context(), "a"))
	_, err := e.plain.Delete(e.Context(), p.place())
	e.must(err)
	for range 3 {
		if err := el.Proclaim(e.Context(), "b"); err != e.lib.ErrElectionNotLeader {
			return fmt.Errorf("returned %w", err)
		}
	}
	if len(e.line()) > 0 {
		return errors.New("wrote")
	}
	return nil
}

func proclaimWaiting(e *env) error {
	leader, _ := e.election()
	e.must(leader.Campaign(e.Context(), "a"))
	el, _ := e.election()
	call := etcdtest.Go(func() error { return el.Campaign(e.Context(), "b") })
	e.waitLine(2)
	// The key stands in line a moment before its owner has the answer.
	for range 50 {
		if err := el.Proclaim(e.Context(), "c"); err != e.lib.ErrElectionNotLeader {
			return fmt.Errorf("returned %v", err)
		}
		if returned(call, 10*time.Millisecond) {
			return errors.New("did not wait")
		}
	}
	e.must(leader.Resign(e.Context()))
	return ends(call, ample, nil)
}

// resumed is an election with a leader, beside an older one whose name begins with
// its own; and the same resumed with suffix added to its name.
func resumed(e *env, suffix string) error {
	p := e.party(partyOptions{})
	other := e.party(partyOptions{}).session.NewElection(e.name + "-2")
	e.must(other.Campaign(e.Context(), "other"))
	first := p.session.NewElection(e.name)
	e.must(first.Campaign(e.Context(), "a"))
	again := p.session.ResumeElection(e.name+suffix, first.Key(), first.Rev())
	resp, err := again.Leader(e.Context())
	if err != nil {
		return err
	}
	if got := string(resp.Kvs[0].Value); got != "a" {
		return fmt.Errorf("saw the leader of another election, %q", got)
	}
	if err := again.Proclaim(e.Context(), "b"); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(e.Context())
	defer cancel()
	if got := value(<-again.Observe(ctx)); got != "b" {
		return fmt.Errorf("observed another election, %q", got)
	}
	rival := e.party(partyOptions{})
	call := rival.queue(e.Context(), 2)
	if err := again.Resign(e.Context()); err != nil {
		return err
	}
	if err := ends(call, ample, nil); err != nil {
		return fmt.Errorf("who waits for the resumed leader: %w", err)
	}
	last := etcdtest.Go(func() error { return again.Campaign(e.Context(), "c") })
	e.waitLine(2)
	e.must(rival.release(e.Context()))
	return ends(last, ample, nil)
}

func resumeByName(e *env) error   { return resumed(e, "") }
func resumeByPrefix(e *env) error { return resumed(e, "/") }

// value is that of an observed leader, or why there is none.
func value(resp *clientv3.GetResponse) string {
	if resp == nil {
		return "(closed)"
	}
	return string(resp.Kvs[0].Value)
}

// next is the next observed value, within d.
func next(ch <-chan *clientv3.GetResponse, d time.Duration) string {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case resp := <-ch:
		return value(resp)
	case <-timer.C:
		return "(nothing)"
	}
}

func observeCompaction(e *env) error {
	el, _ := e.election()
	e.must(el.Campaign(e.Context(), "a"))
	watcher := e.party(partyOptions{proxy: true})
	ctx, cancel := context.WithCancel(e.Context())
	defer cancel()
	ch := watcher.session.NewElection(e.name).Observe(ctx)
	if got := next(ch, ample); got != "a" {
		return fmt.Errorf("observed %s", got)
	}
	etcdtest.Eventually(e, func() bool { return watcher.faults.Count(fault.Watch) > 0 }, "it watches")
	watcher.proxy.Refuse()
	watcher.proxy.Cut()
	e.must(el.Proclaim(e.Context(), "b"))
	e.bury()
	watcher.proxy.Accept()
	if got := next(ch, ample); got != "b" {
		return fmt.Errorf("observed %s", got)
	}
	e.must(el.Resign(e.Context()))
	second, _ := e.election()
	e.must(second.Campaign(e.Context(), "c"))
	if got := next(ch, ample); got != "c" {
		return fmt.Errorf("after the fault, observed %s", got)
	}
	return nil
}

func observeBeforeWatch(e *env) error {
	el, _ := e.election()
	e.must(el.Campaign(e.Context(), "a"))
	watcher := e.party(partyOptions{})
	watcher.faults.CompactBeforeWatch(1, e.name+"-other")
	ctx, cancel := context.WithCancel(e.Context())
	defer cancel()
	ch := watcher.session.NewElection(e.name).Observe(ctx)
	if got := next(ch, ample); got != "a" {
		return fmt.Errorf("observed %s", got)
	}
	e.must(el.Proclaim(e.Context(), "b"))
	if got := next(ch, ample); got != "b" {
		return fmt.Errorf("observed %s", got)
	}
	return nil
}

func observeSlowly(e *env) error {
	const n = 50
	el, _ := e.election()
	e.must(el.Campaign(e.Context(), "0"))
	ctx, cancel := context.WithCancel(e.Context())
	defer cancel()
	ch := el.Observe(ctx)
	if got := next(ch, ample); got != "0" {
		return fmt.Errorf("observed %s", got)
	}
	for i := range n {
		e.must(el.Proclaim(e.Context(), strconv.Itoa(i+1)))
	}
	read := 0
	for last := ""; last != strconv.Itoa(n); read++ {
		if last = next(ch, ample); last == "(nothing)" || last == "(closed)" {
			return fmt.Errorf("observed %s instead of the latest", last)
		}
	}
	if read > n/2 {
		return fmt.Errorf("%d stale values were kept", read-1)
	}
	return nil
}

// The values of candidates that wait are never told, not even when they change.
func observeLeaders(e *env) error {
	a, _ := e.election()
	ctx, cancel := context.WithCancel(e.Context())
	defer cancel()
	ch := a.Observe(ctx)
	e.must(a.Campaign(e.Context(), "a1"))
	b, waiter := e.election()
	call := etcdtest.Go(func() error { return b.Campaign(e.Context(), "b1") })
	e.waitLine(2)
	_, err := e.plain.Put(e.Context(), waiter.place(), "b2", clientv3.WithLease(waiter.session.Lease()))
	e.must(err)
	e.must(a.Proclaim(e.Context(), "a2"))
	seen := []string{}
	for !slices.Contains(seen, "a2") {
		seen = append(seen, next(ch, ample))
		if len(seen) > 2 {
			return fmt.Errorf("observed %q", seen)
		}
	}
	e.must(a.Resign(e.Context()))
	e.must(call.Wait(e))
	seen = append(seen, next(ch, ample))
	for i, want := range []string{"b2", "a2", "a1"} {
		if i < len(seen) && seen[len(seen)-1-i] != want {
			return fmt.Errorf("observed %q", seen)
		}
	}
	return nil
}

func observeEnds(e *env) error {
	el, _ := e.election()
	for _, led := range []bool{false, true} {
		if led {
			e.must(el.Campaign(e.Context(), "a"))
		}
		ctx, cancel := context.WithCancel(e.Context())
		ch := el.Observe(ctx)
		if led {
			next(ch, ample)
		}
		cancel()
		if got := next(ch, soon); got != "(closed)" {
			return fmt.Errorf("after the end of its context, observed %s", got)
		}
	}
	return nil
}

func keyWhileWaiting(e *env) error {
	leader, _ := e.election()
	e.must(leader.Campaign(e.Context(), "a"))
	el, p := e.election()
	call := p.queueCampaign(el, 2)
	if el.Key() != "" || el.Rev() != 0 {
		return fmt.Errorf("while waiting: Key is %q, Rev is %d", el.Key(), el.Rev())
	}
	e.must(leader.Resign(e.Context()))
	if err := ends(call, ample, nil); err != nil {
		return err
	}
	if el.Key() != p.place() || el.Rev() == 0 {
		return fmt.Errorf("elected: Key is %q, Rev is %d", el.Key(), el.Rev())
	}
	e.must(el.Resign(e.Context()))
	if el.Key() != "" || el.Rev() != 0 {
		return fmt.Errorf("resigned: Key is %q, Rev is %d", el.Key(), el.Rev())
	}
	return nil
}

// queueCampaign is queue with a handle of the case's own.
func (p *party) queueCampaign(el library.Election, n int) *etcdtest.Call {
	p.Helper()
	call := etcdtest.Go(func() error { return el.Campaign(p.Context(), "waits") })
	p.waitLine(n)
	etcdtest.Eventually(p, func() bool { return p.faults.Count(fault.Watch) > 0 }, "the candidate waits")
	return call
}

// The context ends in the middle of whatever calls a repeated acquisition makes: before
// the nth is sent, or before its answer comes.
func acquireAgain(e *env) error {
	for n := 1; n <= 2; n++ {
		for _, hold := range []func(*fault.Faults, fault.Kind, int) *fault.Gate{
			(*fault.Faults).Hold, (*fault.Faults).HoldAnswer,
		} {
			p := e.party(partyOptions{})
			if err := p.acquireAgain(func() *fault.Gate { return hold(p.faults, fault.Txn, n) }); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *party) acquireAgain(hold func() *fault.Gate) error {
	h := p.handle()
	p.must(h.acquire(p.Context()))
	again := h
	if c, ok := h.(candidate); ok {
		again = candidate{c.Election, "another value"}
	}
	ctx, cancel := context.WithCancel(p.Context())
	gate := hold()
	call := etcdtest.Go(func() error { return again.acquire(ctx) })
	select {
	case <-gate.Reached():
	case <-call.Done():
	}
	cancel()
	if !returned(call, soon) {
		return errors.New("the repeated acquisition is blocked")
	}
	p.faults.Clear()
	if h.Key() != p.place() || !p.owns() {
		return fmt.Errorf("not the owner any more: Key is %q", h.Key())
	}
	if c, ok := h.(candidate); ok {
		if err := c.Proclaim(p.Context(), "c"); err != nil {
			return fmt.Errorf("not the owner any more: %w", err)
		}
	}
	if err := h.release(p.Context()); err != nil {
		return fmt.Errorf("the release: %w", err)
	}
	return p.leaves(p.place(), soon)
}
