package virtual

import (
	crand "crypto/rand"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// spread is the time, in nanoseconds, over which messages of one instant are strewn.
const spread = int64(time.Millisecond / 10)

// Options says how a bubble is run. The zero value is a run of seed 0 without a trace.
type Options struct {
	// Seed decides everything that is random.
	Seed uint64
	// Trace is given every event of every network, in the order in which they happen.
	// It is called while a lock is held: it must not call anything of this package.
	Trace func(Event)
	// RealTime bounds the run in real time; zero means five minutes.
	RealTime time.Duration
	// Still bounds the real time for which virtual time may stand still; zero means one minute.
	Still time.Duration
	// Quota is the size of the store in bytes from which the server refuses to write with
	// NOSPACE; zero means etcd's default of 2 GiB. What was put counts after 5 s at most.
	Quota int64
}

// Bubble is a piece of virtual time with one server in it. Its methods may be called from any
// goroutine of the bubble.
type Bubble struct {
	t      *testing.T
	seed   uint64
	begin  time.Time
	server *Server
	trace  func(Event)
	over   atomic.Bool    // f has returned
	calls  sync.WaitGroup // what is under way in networks

	mu       sync.Mutex // guards the fields below; never held across a wait
	networks []*Network
	slowed   time.Time          // until when the server is slow
	instants map[int64]struct{} // at which something will arrive
	many     int                // how many instants there may be before those are dropped that have passed
}

// Run starts a server in a bubble, calls f in it, and ends everything that the bubble has:
// clients, networks, the server and its data. It returns when no goroutine of the bubble is left.
// If virtual time stands still, or real time runs out, it prints what every goroutine of
// the bubble waits for, and ends the process with status 1.
func Run(t *testing.T, o Options, f func(b *Bubble)) {
	t.Helper()
	w := newWatchdog(o)
	defer w.stop()
	defer seedRaft(o.Seed)()
	defer holdGarbage()()
	synctest.Test(t, func(t *testing.T) {
		b := &Bubble{
			t: t, seed: o.Seed, begin: time.Now(), trace: o.Trace,
			instants: make(map[int64]struct{}),
		}
		var err error
		if b.server, err = newServer(o.Quota); err != nil {
			t.Fatal(err)
		}
		defer b.close()
		stop := b.beat(w)
		defer stop()
		if err := b.server.Start(); err != nil {
			t.Fatal(err)
		}
		f(b)
	})
}

// randomness is what crypto/rand reads from: the system, or a source that a seed decides. It is
// there from the beginning and for good, because servers outside the bubbles read at any time.
var randomness = &reader{system: crand.Reader}

func init() { crand.Reader = randomness }

type reader struct {
	system io.Reader

	mu     sync.Mutex    // guards the field below
	seeded *rand.ChaCha8 // nil: the system
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seeded == nil {
		return r.system.Read(p)
	}
	return r.seeded.Read(p)
}

func (r *reader) from(seeded *rand.ChaCha8) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seeded = seeded
}

// seedRaft gives raft, which draws its election timeouts from the system's randomness,
// those of a seed, until restore is called.
func seedRaft(seed uint64) (restore func()) {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	randomness.from(rand.NewChaCha8(key))
	return func() { randomness.from(nil) }
}

// beat tells the watchdog each virtual second that time moves, and collects garbage, until stop
// is called. It does so at instants at which nobody else is awake.
func (b *Bubble) beat(w *watchdog) (stop func()) {
	done := make(chan struct{})
	b.calls.Go(func() {
		time.Sleep(aside)
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				if w.beats.Add(1)%int64(collected/time.Second) == 0 {
					runtime.GC()
				}
			case <-done:
				return
			}
		}
	})
	return func() { close(done) }
}

// close ends what the bubble has.
func (b *Bubble) close() {
	b.over.Store(true)
	for _, n := range b.all() {
		n.client.Close() // its error says that it is closed
	}
	if err := b.server.close(); err != nil {
		b.t.Error(err)
	}
	b.calls.Wait()
}

// ending says whether nothing counts any more.
func (b *Bubble) ending() bool { return b.over.Load() }

// T is the test inside the bubble.
func (b *Bubble) T() *testing.T { return b.t }

// Now is the virtual time since the bubble began.
func (b *Bubble) Now() time.Duration { return time.Since(b.begin) }

// Sleep lets virtual time pass. It costs no real time but that of what others do meanwhile.
func (b *Bubble) Sleep(d time.Duration) { time.Sleep(d) }

// Seed is the seed of the run.
func (b *Bubble) Seed() uint64 { return b.seed }

// Rand is a source of randomness for one purpose, which the seed and the name decide. Whoever
// draws from it does so alone, or holds a lock: then others can't change what it draws.
func (b *Bubble) Rand(name string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(name))
	return rand.New(rand.NewPCG(b.seed, h.Sum64()))
}

// Server is the server of the bubble. It runs when f is called.
func (b *Bubble) Server() *Server { return b.server }

// Client makes a client, and the network between it and the server, without faults. The
// name stands in the trace, and decides with the seed what the network draws: each client of a
// bubble has a name of its own. Run closes the client if nobody did.
func (b *Bubble) Client(name string) (*clientv3.Client, *Network) {
	n := newNetwork(b, name)
	client, err := newClient(n)
	if err != nil {
		panic(fmt.Sprintf("virtual: client %s: %v", name, err)) // of a configuration made here
	}
	return b.add(n, client)
}

// BareClient is Client for a client as etcd's own services have it: it has no connection, and
// no call is repeated by it. That costs less.
func (b *Bubble) BareClient(name string) (*clientv3.Client, *Network) {
	n := newNetwork(b, name)
	return b.add(n, newBareClient(n))
}

func (b *Bubble) add(n *Network, client *clientv3.Client) (*clientv3.Client, *Network) {
	n.client = client
	b.mu.Lock()
	defer b.mu.Unlock()
	b.networks = append(b.networks, n)
	return client, n
}

func (b *Bubble) all() []*Network {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.networks[:len(b.networks):len(b.networks)]
}

// Faults is how often each fault was applied, over all networks, by name.
func (b *Bubble) Faults() map[string]int {
	total := make(map[string]int)
	for _, n := range b.all() {
		n.mu.Lock()
		for i, f := range table {
			if n.hits[i] > 0 {
				total[f.Name] += n.hits[i]
			}
		}
		n.mu.Unlock()
	}
	return total
}

// Calls is how many calls were sent, over all networks, by kind.
func (b *Bubble) Calls() map[Kind]int {
	total := make(map[Kind]int)
	for _, n := range b.all() {
		n.mu.Lock()
		for kind, calls := range n.calls {
			total[kind] += calls
		}
		n.mu.Unlock()
	}
	return total
}

// instant is a moment at t or a little later at which nothing else arrives.
func (b *Bubble) instant(t time.Time, later int64) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	at := int64(t.Sub(b.begin)) + later
	for {
		if _, taken := b.instants[at]; !taken {
			break
		}
		at++
	}
	if len(b.instants) > b.many {
		b.forget()
		b.many = max(4096, 2*len(b.instants)) // else each one more would cost a look at all
	}
	b.instants[at] = struct{}{}
	return b.begin.Add(time.Duration(at))
}

// forget drops the instants that have passed. The caller holds mu.
func (b *Bubble) forget() {
	now := int64(b.Now())
	for at := range b.instants {
		if at < now {
			delete(b.instants, at)
		}
	}
}

// slow makes the server slow for d.
func (b *Bubble) slow(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.slowed = time.Now().Add(d)
}

// slowness is what a slow server takes longer for a call; n draws it.
func (b *Bubble) slowness(n *Network) time.Duration {
	b.mu.Lock()
	slow := time.Until(b.slowed) > 0
	b.mu.Unlock()
	if !slow {
		return 0
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.upTo(0, slowest)
}

// record passes an event on to the trace.
func (b *Bubble) record(e Event) {
	if b.trace == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.trace(e)
}
