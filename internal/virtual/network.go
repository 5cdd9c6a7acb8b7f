package virtual

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Kind is a kind of call, as etcd's API names it.
type Kind string

// The kinds of calls that matter here. Others, such as "Status", are named likewise.
const (
	Range      Kind = "Range"
	Put        Kind = "Put"
	Delete     Kind = "DeleteRange"
	Txn        Kind = "Txn"
	Compact    Kind = "Compact"
	Grant      Kind = "LeaseGrant"
	Revoke     Kind = "LeaseRevoke"
	TimeToLive Kind = "LeaseTimeToLive"
	KeepAlive  Kind = "LeaseKeepAlive" // a stream
	Watch      Kind = "Watch"          // a stream, of all watches that share their metadata
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
	What   What
	Detail string // name of the fault, or the error that the caller got
}

// What is what happened.
type What string

// What happens to a call. A stream is sent when it begins, arrives with its first message and is
// answered when it ends.
const (
	Sent     What = "sent"
	Arrived  What = "arrived" // the server begins to carry it out
	Answered What = "answered"
	Hit      What = "hit"   // by a fault
	Asked    What = "asked" // a renewal was sent on a stream; the detail is the lease
	Told     What = "told"  // its answer has arrived
)

// String is one line of a trace.
func (e Event) String() string {
	return strings.TrimRight(fmt.Sprintf("%14.9f %s %d %s %s %s",
		e.At.Seconds(), e.Client, e.Call, e.Kind, e.What, e.Detail), " ")
}

// RoundTrip is how long a message and its answer take, without faults. Each way takes half.
type RoundTrip struct {
	Min, Max time.Duration // equal for a steady round trip; else each message draws its own
}

// links is how many connections a client has.
const links = 2

// largest is the size in bytes of the largest request that client/v3 sends.
const largest = 2 << 20

// Network lies between one client and the server. It is the connection of the client: every
// call and every message of a stream passes it. Its methods may be called from any goroutine
// of the bubble.
type Network struct {
	name   string
	bubble *Bubble
	client *clientv3.Client // written before the first call, and never after

	mu      sync.Mutex // guards the fields below; never held across a wait
	rng     *rand.Rand
	rates   []float64 // by row of the table
	hits    []int     // likewise
	scope   Scope
	first   int // which link was taken first; from then on they are taken in turn, as gRPC does
	trip    RoundTrip
	calls   map[Kind]int
	total   int              // calls of all kinds
	stalled time.Time        // until when nothing gets through
	silent  [links]time.Time // likewise, for each link
	refusal refusal          // that all calls meet for a while
	open    []*stream        // those that haven't ended, in the order of their opening
	pending []*pending       // calls without an answer, likewise
}

// refusal is an error that calls are refused with for a while.
type refusal struct {
	err   error
	until time.Time
}

func newNetwork(b *Bubble, name string) *Network {
	n := &Network{name: name, bubble: b, rng: b.Rand("network " + name)}
	n.rates, n.hits = make([]float64, len(table)), make([]int, len(table))
	n.calls, n.first = make(map[Kind]int), n.rng.IntN(links)
	return n
}

// Set gives a fault a rate: the part of the calls, or of the messages of streams, that it
// applies to. Zero lifts it. Set panics if no fault has that name.
func (n *Network) Set(fault string, rate float64) {
	i := slices.IndexFunc(table, func(f Fault) bool { return f.Name == fault })
	if i < 0 {
		panic("virtual: no fault is called " + fault)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rates[i] = rate
}

// SetRoundTrip changes how long messages take from now on.
func (n *Network) SetRoundTrip(r RoundTrip) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.trip = r
}

// SetScope chooses the calls that meet faults. Round trips are no fault: they apply to all
// calls. What has begun, such as a stall, goes on for all.
func (n *Network) SetScope(s Scope) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.scope = s
}

// Calm lifts all faults and sets the round trip to nothing. What is under way stays as it was
// decided: what is held or late arrives within [Longest], and a stream that died without a word
// stays dead.
func (n *Network) Calm() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.rates)
	n.trip, n.scope = RoundTrip{}, Everything
	n.stalled, n.silent, n.refusal = time.Time{}, [links]time.Time{}, refusal{}
}

// Cut breaks all streams and the calls under way, as a lost connection does.
func (n *Network) Cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for link := range links {
		n.cut(link)
	}
}

// cut breaks what stands on a link. The caller holds mu.
func (n *Network) cut(link int) {
	for _, s := range slices.Clone(n.open) { // fail takes them out
		if s.link == link {
			s.fail(errCut)
		}
	}
	for _, p := range n.pending {
		if p.link == link {
			p.answer(nil, errCut)
		}
	}
}

// Stall holds everything that is sent in either direction from now on for d, then delivers it in
// order.
func (n *Network) Stall(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stalled = time.Now().Add(d)
}

// Silence makes one of the client's two links silent for d: the streams that stand on it say
// nothing, calls on it get no answer. Every second call and stream takes the other link. When
// the silence ends, what it held is delivered.
func (n *Network) Silence(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.silent[n.rng.IntN(links)] = time.Now().Add(d)
}

// begin counts a call, chooses its link and lets the faults decide about it. The caller holds mu.
func (n *Network) begin(kind Kind) (number, link int) {
	n.total++
	n.calls[kind]++
	n.record(n.total, kind, Sent, "")
	return n.total, (n.first + n.total) % links
}

// decide draws which faults apply to a message. The caller holds mu.
func (n *Network) decide(p *passage) {
	switch {
	case n.scope == RenewalsOnly && p.kind != KeepAlive:
		return
	case n.scope == AllButRenewals && p.kind == KeepAlive:
		return
	}
	if time.Now().Before(n.refusal.until) && p.on&(unary|opening) != 0 {
		p.refused = n.refusal.err
	}
	for i, f := range table {
		if n.rates[i] == 0 || f.on&p.on == 0 || n.rng.Float64() >= n.rates[i] {
			continue
		}
		n.hits[i]++
		n.record(p.call, p.kind, Hit, f.Name)
		f.apply(n, p)
	}
}

// way is how long a message takes one way. The caller holds mu.
func (n *Network) way() time.Duration {
	return n.upTo(n.trip.Min, n.trip.Max) / 2
}

// upTo draws a duration. The caller holds mu.
func (n *Network) upTo(low, high time.Duration) time.Duration {
	if high <= low {
		return low
	}
	return low + time.Duration(n.rng.Int64N(int64(high-low)))
}

// held says whether a link delivers nothing now, and until when that is so. The caller holds mu.
func (n *Network) held(link int) (time.Time, bool) {
	until := n.stalled
	if n.silent[link].After(until) {
		until = n.silent[link]
	}
	if !until.After(time.Now()) {
		return time.Time{}, false
	}
	return n.bubble.instant(until, n.rng.Int64N(spread)), true
}

// travel waits until a message that is due then has arrived.
func (n *Network) travel(link int, due time.Time) {
	for held := true; held; {
		time.Sleep(time.Until(due))
		n.mu.Lock()
		due, held = n.held(link)
		n.mu.Unlock()
	}
}

// record tells what happened. The order of the trace is that of the calls of record.
func (n *Network) record(call int, kind Kind, what What, detail string) {
	n.bubble.record(Event{
		At: n.bubble.Now(), Client: n.name, Call: call, Kind: kind, What: what, Detail: detail,
	})
}

// pending is a call that waits for its answer.
type pending struct {
	link int
	done chan struct{} // closed when there is an answer

	once sync.Once
	resp proto.Message // written before done is closed
	err  error         // likewise
}

// answer is what the caller gets, if nothing was before.
func (p *pending) answer(resp proto.Message, err error) {
	p.once.Do(func() {
		p.resp, p.err = resp, err
		close(p.done)
	})
}

// Invoke implements grpc.ClientConnInterface: it makes a call that has one answer.
func (n *Network) Invoke(
	ctx context.Context, name string, req, reply any, _ ...grpc.CallOption,
) error {
	if err := n.over(ctx); err != nil {
		return err
	}
	if size := proto.Size(req.(proto.Message)); size > largest {
		return status.Errorf(codes.ResourceExhausted,
			"trying to send message larger than max (%d vs. %d)", size, largest)
	}
	p := &pending{done: make(chan struct{})}
	n.mu.Lock()
	pass := &passage{kind: kindOf(name), on: unary}
	pass.call, pass.link = n.begin(pass.kind)
	p.link = pass.link
	n.decide(pass)
	there, back := n.way()+pass.up, n.way()+pass.down
	due := n.bubble.instant(time.Now().Add(there), n.rng.Int64N(spread))
	n.pending = append(n.pending, p)
	n.mu.Unlock()
	// The request goes its way on its own: it may outlive its caller.
	message := proto.Clone(req.(proto.Message))
	n.bubble.calls.Go(func() { n.carry(ctx, name, message, pass, p, due, back) })
	if pass.told != nil {
		n.bubble.calls.Go(func() {
			n.travel(p.link, n.after(back))
			p.answer(nil, pass.told)
		})
	}
	err := n.await(ctx, p)
	n.mu.Lock()
	n.pending = slices.DeleteFunc(n.pending, func(other *pending) bool { return other == p })
	n.record(pass.call, pass.kind, Answered, text(err))
	n.mu.Unlock()
	if err == nil {
		proto.Merge(reply.(proto.Message), p.resp)
	}
	return err
}

// await waits for an answer until the caller has given up.
func (n *Network) await(ctx context.Context, p *pending) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
	case <-n.client.Ctx().Done():
	}
	select {
	case <-p.done: // at the same instant: an answer that is there counts
		return p.err
	default:
		return n.over(ctx)
	}
}

// after is an instant for a message that is sent now and takes d.
func (n *Network) after(d time.Duration) time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.bubble.instant(time.Now().Add(d), n.rng.Int64N(spread))
}

// carry brings a request to the server, has it carried out, and brings the answer back, as far
// as the faults let it.
func (n *Network) carry(
	ctx context.Context, name string, req proto.Message, pass *passage, p *pending,
	due time.Time, back time.Duration,
) {
	n.travel(p.link, due)
	if pass.lost || n.bubble.ending() {
		return
	}
	var resp proto.Message
	err := pass.refused
	if err == nil {
		resp, err = n.deliver(ctx, name, req, pass)
	}
	if pass.mute {
		return
	}
	n.travel(p.link, n.after(back))
	if pass.instead != nil {
		resp, err = nil, pass.instead
	}
	p.answer(resp, err)
}

// deliver has a request carried out by the server.
func (n *Network) deliver(
	ctx context.Context, name string, req proto.Message, pass *passage,
) (proto.Message, error) {
	life := n.bubble.server.enter()
	if life == nil {
		return nil, errDown
	}
	defer life.calls.Done()
	if d := n.bubble.slowness(n); d > 0 {
		n.travel(pass.link, n.after(d))
	}
	n.record(pass.call, pass.kind, Arrived, "")
	return life.call(incoming(life.ctx, ctx), name, req)
}

// incoming is the context of a call at the server: it ends with the server, and has what the
// caller's context sends along.
func incoming(life, caller context.Context) context.Context {
	if md, ok := metadata.FromOutgoingContext(caller); ok {
		return metadata.NewIncomingContext(life, md)
	}
	return life
}

// over is the error of a call whose caller doesn't wait for it any more.
func (n *Network) over(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	if n.client.Ctx().Err() != nil {
		return status.Error(codes.Canceled, "grpc: the client connection is closing")
	}
	return nil
}

// kindOf is the kind of a method, such as Txn of /etcdserverpb.KV/Txn.
func kindOf(method string) Kind { return Kind(method[strings.LastIndexByte(method, '/')+1:]) }

// text is what a trace says of an error.
func text(err error) string {
	if err == nil {
		return "ok"
	}
	return status.Code(err).String() + ": " + status.Convert(err).Message()
}
