package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"example.com/etcd/concurrency/internal/bench/report"
	"example.com/etcd/concurrency/internal/fault"
)

const (
	// patience bounds one run. No healthy one comes near it.
	patience = 5 * time.Minute
	// settled is how long a line stands before it is drained. Every watch has begun by then.
	settled = time.Second
	// arrivals is how many contenders may connect at the same time.
	arrivals = 32
)

// workload is something that all libraries do.
type workload struct {
	contenders int
	line       bool // all but one wait behind that one, and each has one turn
	rtt        time.Duration
	goals      map[string]float64 // for the ratio of the time here to that of a library
}

func (w workload) String() string {
	name := fmt.Sprintf("hand-over among %d", w.contenders)
	if w.line {
		name = fmt.Sprintf("line of %d", w.contenders-1)
	}
	if w.rtt > 0 {
		name += ", round trip " + w.rtt.String()
	}
	return name
}

// plan is the workloads that the flags ask for, with the goals set for them.
func (o options) plan() (all []workload) {
	near := map[int]map[string]float64{2: {"upstream": 0.01, "ZooKeeper": 0.95}, 8: {"ZooKeeper": 1}}
	far := map[string]float64{"upstream": 0.16, "ZooKeeper": 0.6}
	for _, rtt := range o.rtts {
		for _, n := range o.crowds {
			w := workload{contenders: n, rtt: rtt}
			switch {
			case rtt == 0:
				w.goals = near[n]
			case rtt == 5*time.Millisecond && (n == 2 || n == 16):
				w.goals = far
			}
			all = append(all, w)
		}
		all = append(all, workload{contenders: o.line + 1, line: true, rtt: rtt})
	}
	return slices.DeleteFunc(all, func(w workload) bool { return !o.workloads.MatchString(w.String()) })
}

// figures are what the runs of one library came to, in nanoseconds.
type figures struct {
	times []float64 // from one owner to the next
	waits []float64 // the longest of each run, from the call until its turn
}

// row is what came out for one workload.
type row struct {
	workload
	libraries []library
	figures   []figures // of the libraries
}

// measure does all workloads with all libraries.
func (o options) measure(ctx context.Context, f *fleet) (rows []row, err error) {
	l := lab{fleet: f, libraries: o.chosen()}
	if _, err := l.compare(ctx, workload{contenders: 8}, 0, o.warm); err != nil {
		return nil, err
	}
	for _, w := range o.plan() {
		r, err := l.compare(ctx, w, o.rounds, o.window)
		if err != nil {
			return nil, err
		}
		rows = append(rows, r)
		fmt.Fprintln(os.Stderr, r)
	}
	return rows, nil
}

// String is for the eyes of those who wait.
func (r row) String() string {
	parts := make([]string, len(r.libraries))
	for i, l := range r.libraries {
		parts[i] = l.name + " " + report.Duration(report.Median(r.figures[i].times))
	}
	return r.workload.String() + ": " + strings.Join(parts, ", ")
}

// lab is where workloads are measured.
type lab struct {
	*fleet
	libraries []library
	locks     int // that had a name so far
}

// compare does a workload in rounds, after a run of each library that does not count.
func (l *lab) compare(ctx context.Context, w workload, rounds int, window time.Duration) (row, error) {
	r := row{workload: w, libraries: l.libraries, figures: make([]figures, len(l.libraries))}
	addresses, closeProxies, err := l.addresses(w.rtt)
	defer closeProxies()
	if err != nil {
		return r, err
	}
	beds := make([]*bed, len(l.libraries))
	for i, lib := range l.libraries {
		l.locks++
		beds[i] = &bed{name: fmt.Sprintf("peers-%04d", l.locks), standing: l.servers[lib.kind].standing}
		defer beds[i].close()
		err := beds[i].fill(ctx, w.contenders, addresses[lib.kind], lib)
		if err == nil {
			_, err = beds[i].do(ctx, w, window)
		}
		if err != nil {
			return r, fmt.Errorf("%v, %s: %w", w, lib.name, err)
		}
	}
	for round := range rounds {
		for i := range beds {
			i = (i + round) % len(beds) // each is the first in its turn
			runtime.GC()                // none pays for the garbage of another
			s, err := beds[i].do(ctx, w, window)
			if err != nil {
				return r, fmt.Errorf("%v, %s: %w", w, l.libraries[i].name, err)
			}
			f := &r.figures[i]
			f.times, f.waits = append(f.times, float64(s.each)), append(f.waits, float64(s.longest))
		}
	}
	return r, nil
}

// addresses are those of the servers, or of proxies before them that delay what passes.
func (l *lab) addresses(rtt time.Duration) (map[kind]string, func(), error) {
	var proxies []*fault.Proxy
	closeAll := func() {
		for _, p := range proxies {
			p.Close()
		}
	}
	found := map[kind]string{}
	for k, s := range l.servers {
		found[k] = s.address
		if rtt == 0 {
			continue
		}
		p, err := fault.NewProxy(s.address)
		if err != nil {
			return nil, closeAll, err
		}
		p.Delay(rtt / 2)
		proxies = append(proxies, p)
		found[k] = strings.TrimPrefix(p.Endpoint(), "http://")
	}
	return found, closeAll, nil
}

// bed is what one library needs for one workload.
type bed struct {
	name       string // of the lock
	standing   func(ctx context.Context, name string) (int, error)
	contenders []*contender
}

// fill has n contenders connect.
func (b *bed) fill(ctx context.Context, n int, address string, lib library) error {
	if lib.polls {
		b.standing = nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("not connected within "+patience.String()))
	defer cancel()
	found, errs := make([]*contender, n), make([]error, n)
	var wg sync.WaitGroup
	room := make(chan struct{}, arrivals)
	for i := range n {
		wg.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			found[i], errs[i] = lib.join(ctx, address, b.name)
		})
	}
	wg.Wait()
	b.contenders = slices.DeleteFunc(found, func(c *contender) bool { return c == nil })
	return errors.Join(errs...)
}

func (b *bed) close() {
	var wg sync.WaitGroup
	for _, c := range b.contenders {
		wg.Go(c.close)
	}
	wg.Wait()
}

// do does the workload once. Locks that know no context end with their connections.
func (b *bed) do(ctx context.Context, w workload, window time.Duration) (sample, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("not done within "+patience.String()))
	defer cancel()
	defer context.AfterFunc(ctx, b.close)()
	if w.line {
		return b.drain(ctx)
	}
	return b.handOver(ctx, window)
}

// sample is what one run came to.
type sample struct {
	each    time.Duration // from one owner to the next
	longest time.Duration // from a call until its turn
}

// turns is kept by those who own the lock, one after the other.
type turns struct {
	mu          sync.Mutex // guards the fields below, because the lock that is measured tells Go nothing
	inside      bool       // somebody owns the lock
	owner       int        // the last one
	changes     int        // of the owner, before the end
	first, last time.Time  // of the first turn, and of the last change
	longest     time.Duration
}

// enter notes a turn. A turn at or after the end does not count, but for how long it took to come.
func (t *turns) enter(who int, asked, end time.Time) error {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.inside {
		return errors.New("two own the lock")
	}
	t.inside = true
	t.longest = max(t.longest, now.Sub(asked))
	if now.Before(end) {
		switch {
		case t.first.IsZero():
			t.first = now
		case who != t.owner:
			t.changes++
			t.last = now
		}
		t.owner = who
	}
	return nil
}

func (t *turns) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.inside = false
}

// sample is what the turns of a window came to. Where the owner never changed the figure is the
// window, which is too low.
func (t *turns) sample(window time.Duration) sample {
	each := window
	if t.changes > 0 {
		each = t.last.Sub(t.first) / time.Duration(t.changes)
	}
	return sample{each: each, longest: t.longest}
}

// handOver lets the lock go round for the window. Whoever has asked for it by then has a turn.
func (b *bed) handOver(ctx context.Context, window time.Duration) (sample, error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var t turns
	var wg sync.WaitGroup
	end := time.Now().Add(window)
	for i, c := range b.contenders {
		wg.Go(func() {
			for time.Now().Before(end) && ctx.Err() == nil {
				if err := c.turn(ctx, &t, i, end); err != nil {
					fail(err)
				}
			}
		})
	}
	wg.Wait()
	return t.sample(window), context.Cause(ctx)
}

// turn locks and unlocks once.
func (c *contender) turn(ctx context.Context, t *turns, who int, end time.Time) error {
	asked := time.Now()
	if err := c.lock(ctx); err != nil {
		return err
	}
	if err := t.enter(who, asked, end); err != nil {
		return err
	}
	t.leave()
	return c.unlock(ctx)
}

// drain has all wait behind the first contender, and takes the time from its release until the
// last one's turn has come.
func (b *bed) drain(ctx context.Context) (sample, error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	holder, waiters := b.contenders[0], b.contenders[1:]
	if err := holder.lock(ctx); err != nil {
		return sample{}, err
	}
	var t turns
	var wg sync.WaitGroup
	end := time.Now().Add(patience)
	for i, c := range waiters {
		wg.Go(func() {
			if err := c.turn(ctx, &t, i, end); err != nil {
				fail(err)
			}
		})
	}
	if err := b.stand(ctx); err != nil {
		fail(err)
	}
	released := time.Now()
	if err := holder.unlock(ctx); err != nil {
		fail(err)
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return sample{}, err
	}
	last := t.last
	if len(waiters) == 1 {
		last = t.first
	}
	each := last.Sub(released) / time.Duration(len(waiters))
	return sample{each: each, longest: last.Sub(released)}, nil
}

// stand waits until all stand in line, if there is a line, and for a while after that.
func (b *bed) stand(ctx context.Context) error {
	for wanted := len(b.contenders); b.standing != nil; {
		n, err := b.standing(ctx, b.name)
		if err != nil {
			return err
		}
		if n == wanted {
			break
		}
		if err := wait(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
	return wait(ctx, settled)
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
