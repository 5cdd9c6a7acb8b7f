package worlds

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/history"
	"example.com/etcd/concurrency/internal/library"
	"example.com/etcd/concurrency/internal/virtual"
)

// The areas of keys of a world.
const (
	lineArea     = "line/"
	meetArea     = "meet/"     // double barriers, whose keys are no line of locks
	dataArea     = "data/"     // written under the guard of an ownership
	registerArea = "register/" // read and written by transactions
	endKey       = "end"
)

// world is one run.
type world struct {
	*virtual.Bubble
	plan     Plan
	lib      library.Library
	rec      *history.Recorder
	operator *clientv3.Client // whose network has no faults
	audit    *auditor
	stations []*station
	calm     chan struct{} // closed when the faults are over
	rest     chan struct{} // closed when nothing new is to be begun

	led     atomic.Int64 // functions that RunLeader has run
	met     atomic.Int64 // participants that have left a double barrier
	streams atomic.Int64 // calls of Observe and Leaders
	steps   atomic.Int64 // calls that the functions of transactions have made

	mu         sync.Mutex           // guards the fields below
	revoked    map[int64]revocation // by strangers
	violations []history.Violation
	asks       []func() // when all is known that befell the clients
	endings    []ending
	followed   []followed
	denied     map[[2]string]string    // writes by key and value, and why they were not committed
	shared     map[int64]time.Duration // by token, since when there is the handle that passes it on

	// Written by trace, which the networks call one at a time.
	events   []virtual.Event          // the newest ones
	renewals map[second]int           // calls, by second
	sent     map[callOf]time.Duration // of transactions that have not arrived
	newest   atomic.Pointer[arrival]  // the auditor reads it
}

// Play plays the world of a seed and reports what came of it.
func Play(t *testing.T, seed uint64, o Options) *Report {
	w := &world{
		plan: NewPlan(seed, o), lib: o.Library,
		revoked: map[int64]revocation{}, shared: map[int64]time.Duration{}, denied: map[[2]string]string{}, sent: map[callOf]time.Duration{}, renewals: map[second]int{},
	}
	var lasted time.Duration
	bounds := virtual.Options{Seed: seed, Trace: w.trace, RealTime: 20 * time.Minute}
	if w.plan.Dense { // a virtual second of it can take a minute of a busy machine
		bounds.Still = bounds.RealTime
	}
	virtual.Run(t, bounds, func(b *virtual.Bubble) {
		w.Bubble = b
		w.live()
		lasted = b.Now()
	})
	return w.judge(lasted)
}

// live is what happens in the bubble: work under faults, work without, and the end.
func (w *world) live() {
	w.calm, w.rest = make(chan struct{}), make(chan struct{}) // in the bubble
	w.rec = history.NewRecorderSince(time.Now().Add(-w.Now()))
	w.operator, _ = w.Client("operator")
	w.audit = newAuditor(w.rec, w.lateness)
	w.audit.attach(w.Server().Etcd())
	defer w.audit.finish()
	if w.plan.Dense {
		ctx, cancel := context.WithCancel(context.Background())
		var flusher sync.WaitGroup
		flusher.Go(func() { w.flush(ctx) })
		defer flusher.Wait()
		defer cancel()
	}
	for i := range crew {
		w.stations = append(w.stations, w.newStation(i))
	}
	w.torment()
	w.heal()
	w.end()
	for _, s := range w.stations {
		s.client.Close()
	}
}

// torment lets all work while the weather changes and strangers interfere.
func (w *world) torment() {
	for _, s := range w.stations {
		s.start()
	}
	ctx, cancel := context.WithTimeout(context.Background(), w.plan.Length)
	defer cancel()
	var harm sync.WaitGroup
	for _, s := range w.stations {
		harm.Go(func() { s.torment(ctx, w.Rand("weather of "+s.name)) })
	}
	if len(w.plan.Strangers) > 0 {
		harm.Go(func() { w.interfere(ctx, w.Rand("strangers")) })
	}
	harm.Wait()
}

// heal ends all faults.
func (w *world) heal() {
	for _, s := range w.stations {
		s.clear()
	}
	close(w.calm)
}

// violate notes a promise that was not kept and that no history tells of.
func (w *world) violate(property, format string, args ...any) {
	w.violateAt(property, w.rec.Now(), format, args...)
}

func (w *world) violateAt(property string, at time.Duration, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.violations = append(w.violations, w.violation(property, at, format, args...))
}

func (w *world) violation(property string, at time.Duration, format string, args ...any) history.Violation {
	return history.Violation{Property: property, Package: w.lib.Name, At: at, Text: fmt.Sprintf(format, args...)}
}

func (w *world) lose(e ending) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.endings = append(w.endings, e)
}

func (w *world) lock(i int) string     { return fmt.Sprintf("%slock-%d", lineArea, i) }
func (w *world) election(i int) string { return fmt.Sprintf("%selection-%d", lineArea, i) }

// runElection is led by RunLeader alone.
const runElection = lineArea + "run"

// names are all that can be locked or led.
func (w *world) names() (names []string) {
	for i := range w.plan.Locks {
		names = append(names, w.lock(i))
	}
	for i := range w.plan.Elections {
		names = append(names, w.election(i))
	}
	return append(names, runElection)
}

// rev is the revision of the store, or one that it had.
func (w *world) rev() int64 {
	if etcd := w.Server().Etcd(); etcd != nil {
		return etcd.KV().Rev()
	}
	return w.audit.seen()
}

func guardedKey(name string) string { return dataArea + name }

// guardedFormat is the value of a guarded write: token, client and package.
const guardedFormat = "%d %d %s"

// pause waits and reports whether ctx still lives.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

func ended(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// station is a client of the world, and all who work with it.
type station struct {
	*world
	*weather
	index  int
	name   string
	who    history.Who
	client *clientv3.Client

	workers, residents sync.WaitGroup
	stop               context.CancelFunc
	leads              bool // runs RunLeader

	pendingMu sync.Mutex      // guards the fields below
	pending   map[*stint]bool // what its workers are doing
	latests   []*latest       // what its observers were told last
}

func (w *world) newStation(i int) *station {
	s := &station{
		world: w, index: i, name: fmt.Sprintf("client-%d", i), who: history.Who{Client: i, Package: w.lib.Name},
		pending: map[*stint]bool{},
	}
	var net *virtual.Network
	s.client, net = w.Client(s.name)
	if w.plan.Foreign {
		s.client.Lease = foreign{s.client.Lease}
	}
	s.weather = &weather{net: net, trips: []tripped{{}}}
	return s
}

// foreign is a Lease that a program has put in the place of its client's. The package then has no
// stream of its own, and renews by calls.
type foreign struct{ clientv3.Lease }

// rand is a source of randomness for one of the station's.
func (s *station) rand(who string, n int) *rand.Rand {
	return s.Rand(fmt.Sprintf("%s of %s, %d", who, s.name, n))
}

// start begins the work.
func (s *station) start() {
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	for i := range s.plan.Workers {
		w := &worker{station: s, rnd: s.rand("worker", i), index: i}
		s.workers.Go(func() { w.work(ctx) })
	}
	for i, r := range s.plan.Residents {
		w := &worker{station: s, rnd: s.rand(r.Name, i), index: 100 + i}
		if r.Few && w.rnd.IntN(2) == 0 {
			continue
		}
		s.leads = s.leads || r.Leads
		s.residents.Go(func() { r.Do(w, ctx) })
	}
}
