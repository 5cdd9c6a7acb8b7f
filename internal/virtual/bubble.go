package virtual

import (
	"math/rand/v2"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Options says how a bubble is run. The zero value is a run of seed 0 without a trace.
type Options struct {
	// Seed decides everything that is random.
	Seed uint64
	// Trace is given every event of every network, in the order in which they happen.
	// It is called while a lock is held: it must not call anything of this package.
	Trace func(Event)
	// RealTime bounds the run in real time; zero means ten minutes.
	RealTime time.Duration
	// Still bounds the real time for which virtual time may stand still; zero means one minute.
	Still time.Duration
	// Quota is the size of the store in bytes from which the server refuses to write with
	// NOSPACE; zero means etcd's default of 2 GiB.
	Quota int64
}

// Bubble is a piece of virtual time with one server in it.
type Bubble struct{}

// Run starts a server in a bubble, calls f in it, and ends everything that the bubble has:
// clients, networks, the server and its data. It returns when no goroutine of the bubble is left.
// If virtual time stands still, or real time runs out, it prints what every goroutine of
// the bubble waits for, and ends the process with status 1.
func Run(t *testing.T, o Options, f func(b *Bubble)) { panic("not yet") }

// T is the test inside the bubble.
func (b *Bubble) T() *testing.T { panic("not yet") }

// Now is the virtual time since the bubble began.
func (b *Bubble) Now() time.Duration { panic("not yet") }

// Seed is the seed of the run.
func (b *Bubble) Seed() uint64 { panic("not yet") }

// Rand is a source of randomness for one purpose, which the seed and the name decide. Whoever
// draws from it does so alone, or holds a lock: then others can't change what it draws.
func (b *Bubble) Rand(name string) *rand.Rand { panic("not yet") }

// Server is the server of the bubble. It runs when f is called.
func (b *Bubble) Server() *Server { panic("not yet") }

// Client makes a client, and the network between it and the server, without faults. The
// name stands in the trace, and decides with the seed what the network draws: each client of a
// bubble has a name of its own. Run closes the client if nobody did.
func (b *Bubble) Client(name string) (*clientv3.Client, *Network) { panic("not yet") }

// Faults is how often each fault was applied, over all networks, by name.
func (b *Bubble) Faults() map[string]int { panic("not yet") }

// Calls is how many calls were sent, over all networks, by kind.
func (b *Bubble) Calls() map[Kind]int { panic("not yet") }
