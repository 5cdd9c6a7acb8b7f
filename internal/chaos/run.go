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
	"example.com/etcd/concurrency/internal/library"
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
	lineDepth    = 3           // parts of a name of a lock or an election
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

// The numbers of those who are none of the crew.
const (
	paused   = crew + iota // the child
	operator               // the admin
)

// run is one round: a cluster, its clients, and what they recorded.
type run struct {
	options
	rec      *history.Recorder
	cluster  *etcdtest.Cluster
	admin    *clientv3.Client // on connections that no fault reaches
	prober   *clientv3.Client // likewise, for the sessions that look what can still be done at the end
	audit    *auditor
	stations []*station
	child    *process
	dir      string // of the evidence

	calm    chan struct{} // closed when the faults are over and the cluster is whole; nil: never
	led     atomic.Int64  // functions that RunLeader has run
	streams atomic.Int64  // calls of Observe and Leaders

	mu         sync.Mutex // guards the fields below
	ends       map[string]time.Duration
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

// stopped is when the clients of a package were told to stop.
func (r *run) stopped(pkg string) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if end, ok := r.ends[pkg]; ok {
		return end
	}
	return 1<<63 - 1
}

func (r *run) stop(pkg string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ends[pkg] = r.rec.Now()
}

// here is the package whose promises this run is about.
func (r *run) here() string {
	if r.upstream {
		return history.Upstream
	}
	return history.Here
}

// round torments one cluster for a while and reports what came of it. Its error is about
// the harness, and names the folder of the evidence. That stays only for such an error, which
// may be the doing of a violation, and for a violation of the package in question.
func round(ctx context.Context, seed uint64, length time.Duration, o options) (*report, error) {
	r := &run{
		options: o, rec: history.NewRecorder(), calm: make(chan struct{}), ends: map[string]time.Duration{},
	}
	r.seed = seed
	if err := r.open(); err != nil {
		r.close()
		return nil, fmt.Errorf("%w (logs: %s)", err, r.dir)
	}
	err := r.live(ctx, length)
	r.close()
	rep := r.judge(length)
	if err == nil && len(rep.own) == 0 {
		return rep, os.RemoveAll(r.dir)
	}
	if kept := rep.keep(r.dir); err == nil {
		err = kept
	}
	if err != nil {
		return rep, fmt.Errorf("%w (evidence: %s)", err, r.dir)
	}
	return rep, nil
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
	if r.cluster, err = etcdtest.Start(etcdtest.Members(members), etcdtest.PeerProxies(), etcdtest.Config(r.logged)); err != nil {
		return err
	}
	if r.admin, err = r.cluster.NewClient(); err != nil {
		return err
	}
	// A watch of etcd's client that ends before the server has confirmed it stays with the
	// server until its stream ends (client/v3 watch.go, Created with nothing to resume). The
	// auditor's stream lasts, so that the probes have another.
	if r.prober, err = r.cluster.NewClient(); err != nil {
		return err
	}
	for i := range accounts {
		if _, err := r.admin.Put(context.Background(), account(i), fmt.Sprint(balance)); err != nil {
			return err
		}
	}
	r.audit = newAuditor(r.admin, r.rec)
	for i := range crew {
		lib := library.Here
		if r.upstream || i%3 == 2 {
			lib = library.Upstream
		}
		s, err := newStation(i, lib, r.cluster)
		if err != nil {
			return err
		}
		r.stations = append(r.stations, s)
	}
	r.child, err = startChild(childSpec{
		Client: paused, Package: r.here(), Seed: r.seed, Endpoints: r.cluster.Endpoints(),
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
	for _, c := range []*clientv3.Client{r.admin, r.prober} {
		if c != nil {
			c.Close()
		}
	}
	if r.cluster != nil {
		r.cluster.Close()
	}
}

// live is what happens between open and close: work and faults, then work alone, then the
// promises about the end. The cluster is told to be whole before anything is asked for.
func (r *run) live(ctx context.Context, length time.Duration) error {
	auditing, stopAudit := context.WithCancel(context.Background())
	var auditors sync.WaitGroup
	auditors.Go(func() { r.audit.run(auditing) })
	defer auditors.Wait()
	defer stopAudit()

	ours, theirs := r.staff()
	r.torture(ctx, length)
	err := r.healed()
	close(r.calm)
	r.child.finish()
	last := ours
	if r.upstream {
		last = theirs
		r.endWork(last)
	} else { // what upstream leaves to itself is none of ours
		r.endWork(theirs)
		r.endWatch(theirs)
		r.dismiss(theirs)
	}
	if err == nil {
		r.everyNameIsFree() // while our sessions live and work
	}
	if !r.upstream {
		r.endWork(ours)
	}
	if err == nil {
		r.observersKnow(last.latests)
		r.sleepersWake(ours.sleepers, length)
	}
	r.endWatch(last)
	if r.upstream { // whose sessions may leave watchers to their clients
		r.dismiss(last)
	}
	if err == nil {
		err = r.nothingIsLeft()
	}
	r.dismiss(last)
	return err
}

// rand is a source of its own for each participant, so that the order of one's work does
// not depend on the others.
func (r *run) rand(participant uint64) *rand.Rand { return rand.New(rand.NewPCG(r.seed, participant)) }

// await waits for those who were told to stop. Every wait ends: one that doesn't is a
// violation, and the stacks tell where it hangs.
func (r *run) await(wg *sync.WaitGroup, pkg, what string) {
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
		r.violate("hang", pkg, "%s went on for %v after the end of every context; see stacks.txt", what, settling)
	}
}

func stacks() string {
	text := make([]byte, 16<<20)
	return string(text[:runtime.Stack(text, true)])
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
