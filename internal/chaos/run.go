package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/history"
)

const (
	ttl        = 2 // seconds that every session's lease lives
	lifetime   = ttl * time.Second
	runMargin  = lifetime / 4
	retryPause = 20 * time.Millisecond
	// settling bounds every wait for what is promised to come soon. It is far above
	// what a busy machine needs.
	settling = 30 * time.Second
)

// All keys of a run lie under root.
const (
	root         = "chaos/"
	lineArea     = "line/"
	dataArea     = "data/"     // written under the guard of an ownership
	registerArea = "register/" // read and written by transactions
	accountArea  = "account/"  // the total of which is constant
	endKey       = root + "end"
)

var (
	locks     = []string{root + lineArea + "lock-0", root + lineArea + "lock-1", root + lineArea + "lock-2"}
	elections = []string{root + lineArea + "election-0", root + lineArea + "election-1"}
	// runElection is led by RunLeader alone.
	runElection = root + lineArea + "run-0"
)

// guardedFormat is the value of a guarded write: token, client and package.
const guardedFormat = "%d %d %s"

func guardedKey(name string) string { return root + dataArea + strings.TrimPrefix(name, root) }

// crew is the number of clients in this process. A third of them run upstream's package.
const crew = 6

// run is one round: a cluster, its clients, and what they recorded.
type run struct {
	options
	rec      *history.Recorder
	cluster  *etcdtest.Cluster
	admin    *clientv3.Client // on connections that no fault reaches
	audit    *auditor
	stations []*station
	child    *process
	dir      string // of the evidence

	led atomic.Int64 // functions that RunLeader has run

	mu         sync.Mutex // guards the fields below
	end        time.Duration
	violations []history.Violation
}

// violate notes a promise that was not kept and that no history tells of.
func (r *run) violate(property, pkg, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.violations = append(r.violations, history.Violation{
		Property: property, Package: pkg, At: r.rec.Now(), Text: fmt.Sprintf(format, args...),
	})
}

// stopped is when the clients were told to stop.
func (r *run) stopped() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.end
}

func (r *run) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.end = r.rec.Now()
}

// here is the package whose promises this run is about.
func (r *run) here() string {
	if r.upstream {
		return history.Upstream
	}
	return history.Here
}

// round torments one cluster for a while and reports what came of it. Its error is about
// the harness. The evidence stays only if there is a violation of the package in question.
func round(ctx context.Context, seed uint64, length time.Duration, o options) (*report, error) {
	r := &run{options: o, rec: history.NewRecorder(), end: 1<<63 - 1}
	r.seed = seed
	if err := r.open(); err != nil {
		r.close()
		return nil, err
	}
	err := r.live(ctx, length)
	r.close()
	if err != nil {
		return nil, err
	}
	r.leftGoroutines()
	rep := r.judge(length)
	if len(rep.own) > 0 {
		return rep, rep.keep(r.dir)
	}
	return rep, os.RemoveAll(r.dir)
}

// open starts the servers and the clients.
func (r *run) open() (err error) {
	if r.evidence != "" {
		if err := os.MkdirAll(r.evidence, 0o755); err != nil {
			return err
		}
	}
	if r.dir, err = os.MkdirTemp(r.evidence, fmt.Sprintf("chaos-%d-", r.seed)); err != nil {
		return err
	}
	if r.cluster, err = etcdtest.Start(etcdtest.Members(3), etcdtest.Config(r.logged)); err != nil {
		return err
	}
	if r.admin, err = r.cluster.NewClient(); err != nil {
		return err
	}
	for i := range accounts {
		if _, err := r.admin.Put(context.Background(), account(i), fmt.Sprint(balance)); err != nil {
			return err
		}
	}
	r.audit = newAuditor(r.admin, r.rec)
	for i := range crew {
		lib := here
		if r.upstream || i%3 == 2 {
			lib = theirs
		}
		s, err := newStation(i, lib, r.cluster)
		if err != nil {
			return err
		}
		r.stations = append(r.stations, s)
	}
	r.child, err = startChild(childSpec{
		Client: crew, Package: r.here(), Seed: r.seed, Endpoints: r.cluster.Endpoints(),
	})
	return err
}

// logged lets a member log into the folder of the evidence.
func (r *run) logged(i int, cfg *embed.Config) {
	zc := zap.NewProductionConfig()
	zc.OutputPaths = []string{filepath.Join(r.dir, fmt.Sprintf("member-%d.log", i))}
	zc.ErrorOutputPaths = zc.OutputPaths
	zc.Sampling = nil
	if logger, err := zc.Build(); err == nil {
		cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger)
	}
}

// close ends what open has started.
func (r *run) close() {
	if r.child != nil {
		r.child.kill()
	}
	for _, s := range r.stations {
		s.close()
	}
	if r.admin != nil {
		r.admin.Close()
	}
	if r.cluster != nil {
		r.cluster.Close()
	}
}

// live is what happens between open and close: work and faults, then work alone, then the
// promises about the end.
func (r *run) live(ctx context.Context, length time.Duration) error {
	auditing, stopAudit := context.WithCancel(context.Background())
	var auditors sync.WaitGroup
	auditors.Go(func() { r.audit.run(auditing) })
	defer auditors.Wait()
	defer stopAudit()

	working, stopWork := context.WithCancel(context.Background())
	watching, stopWatch := context.WithCancel(context.Background())
	var workers, watchers sync.WaitGroup
	calm := make(chan struct{})
	latests := r.staff(working, watching, calm, &workers, &watchers)

	r.torture(ctx, length)
	close(calm)
	err := r.healed()
	if err == nil {
		r.leadsAgain()
	}
	r.stop()
	stopWork()
	r.child.finish()
	r.await(&workers, "work")
	if err == nil {
		r.everyNameIsFree()
		r.observersKnow(latests)
	}
	stopWatch()
	r.await(&watchers, "observers")
	if err != nil {
		return err
	}
	return r.nothingIsLeft()
}

// staff starts the work.
func (r *run) staff(
	working, watching context.Context, calm <-chan struct{}, workers, watchers *sync.WaitGroup,
) (latests map[string][]*latest) {
	latests = map[string][]*latest{}
	for i, s := range r.stations {
		for n := range uint64(2) { // with a session each
			w := &worker{run: r, station: s, rnd: r.rand(10*n + uint64(i))}
			workers.Go(func() { w.work(working) })
		}
		t := &transactor{run: r, station: s, rnd: r.rand(100 + uint64(i))}
		workers.Go(func() { t.work(working) })
		if s.lib.name == history.Here {
			l := &worker{run: r, station: s, rnd: r.rand(200 + uint64(i))}
			workers.Go(func() { l.runLeader(working, runElection) })
		}
		name := elections[i%len(elections)]
		o := &worker{run: r, station: s, rnd: r.rand(300 + uint64(i))}
		last := &latest{who: s.who}
		latests[name] = append(latests[name], last)
		watchers.Go(func() { o.follow(watching, name, last, calm) })
	}
	return latests
}

// rand is a source of its own for each participant, so that the order of one's work does
// not depend on the others.
func (r *run) rand(participant uint64) *rand.Rand { return rand.New(rand.NewPCG(r.seed, participant)) }

// await waits for those who were told to stop. Every wait ends: one that doesn't is a
// violation, and the stacks tell where it hangs.
func (r *run) await(wg *sync.WaitGroup, what string) {
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(settling):
		text := stacks()
		_ = os.WriteFile(filepath.Join(r.dir, "stacks.txt"), []byte(text), 0o644)
		r.violate("hang", r.here(), "%s went on for %v after the end of every context; see stacks.txt", what, settling)
	}
}

func stacks() string {
	text := make([]byte, 16<<20)
	return string(text[:runtime.Stack(text, true)])
}

// latest is what an observer was told last.
type latest struct {
	who history.Who
	mu  sync.Mutex // guards value
	// value is that of the leader's key, "" when nobody led.
	value string
}

func (l *latest) set(value string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.value = value
}

func (l *latest) get() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.value
}

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

func between(rnd *rand.Rand, from, to time.Duration) time.Duration {
	return from + time.Duration(rnd.Int64N(int64(to-from)))
}

func pick[T any](rnd *rand.Rand, list []T) T { return list[rnd.IntN(len(list))] }

func ended(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}
