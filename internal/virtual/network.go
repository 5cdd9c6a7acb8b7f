package virtual

import "time"

// Kind is a kind of call, as etcd's API names it.
type Kind string

// The kinds of calls that matter here. Others, such as "Status", are named likewise.
const (
	Range     Kind = "Range"
	Put       Kind = "Put"
	Delete    Kind = "DeleteRange"
	Txn       Kind = "Txn"
	Compact   Kind = "Compact"
	Grant     Kind = "LeaseGrant"
	Revoke    Kind = "LeaseRevoke"
	KeepAlive Kind = "LeaseKeepAlive" // a stream
	Watch     Kind = "Watch"          // a stream
)

// Scope says which calls of a client meet faults.
type Scope int

// The scopes. Renewals are the calls of the kind KeepAlive.
const (
	Everything Scope = iota
	RenewalsOnly
	AllButRenewals
)

// Event is something that happened in a network.
type Event struct {
	At     time.Duration // virtual time since the bubble began
	Client string
	Call   int // number of the call at this client; a stream is one call
	Kind   Kind
	What   string // "sent", "arrived", "answered", or "fault"
	Detail string // name of the fault, or the error that the caller got
}

// RoundTrip is how long a message and its answer take, without faults. Each way takes half.
type RoundTrip struct {
	Min, Max time.Duration // equal for a steady round trip; else each message draws its own
}

// Network lies between one client and the server. Its methods may be called from any goroutine
// of the bubble.
type Network struct{}

// Fault is a row of the table of faults: what may happen to a call.
type Fault struct {
	Name  string
	About string // one sentence: what the caller meets
}

// Table lists all faults.
func Table() []Fault { panic("not yet") }

// Set gives a fault a rate: the part of the calls, or of the messages of streams, that it
// applies to. Zero lifts it. Set panics if no fault has that name.
func (n *Network) Set(fault string, rate float64) { panic("not yet") }

// SetRoundTrip changes how long messages take from now on.
func (n *Network) SetRoundTrip(r RoundTrip) { panic("not yet") }

// SetScope chooses the calls that meet faults. Round trips are no fault: they apply to all calls.
func (n *Network) SetScope(s Scope) { panic("not yet") }

// Calm lifts all faults and sets the round trip to nothing. Stalls and silences end; what they
// held is delivered now. Streams that died without a word stay dead, and requests
// that are late still arrive, within 20 s.
func (n *Network) Calm() { panic("not yet") }

// Cut breaks all streams and the calls under way, as a lost connection does.
func (n *Network) Cut() { panic("not yet") }

// Stall holds everything that is sent in either direction from now on for d, then delivers it in order.
func (n *Network) Stall(d time.Duration) { panic("not yet") }

// Silence makes one of the client's two links silent for d: the streams that stand on it say nothing,
// calls under way there get no answer. Later calls and streams take the other link.
func (n *Network) Silence(d time.Duration) { panic("not yet") }
