package virtual

import (
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Longest is how long what a fault began may last: a stall, a silence, or a message under way.
const Longest = 20 * time.Second

// refusing is how long the server may go on to refuse.
const refusing = time.Minute

// slowest is what a slow server may take longer for one call.
const slowest = 2 * time.Second

// on is what a fault can apply to.
type on int

const (
	unary     on = 1 << iota // a call with one answer
	opening                  // the first message of a stream
	sending                  // a message of a stream to the server
	receiving                // a message of a stream to the client
)

// passage is what the faults decide about a message.
type passage struct {
	kind   Kind
	call   int
	on     on
	link   int
	stream *stream // nil if unary

	up, down time.Duration // what the ways take longer
	lost     bool          // the request never arrives
	mute     bool          // the answer never comes
	refused  error         // the server's answer, instead of carrying the call out
	instead  error         // what comes in the place of the answer
	told     error         // what the caller is told while the request is under way
}

// delay makes the request late. If several faults do, the latest counts, because none of them
// promises more than its time.
func (p *passage) delay(d time.Duration) { p.up = max(p.up, d) }

// Fault is a row of the table of faults: what may happen to a call, or to a message of a
// stream.
type Fault struct {
	Name  string
	About string // one sentence: what happens

	on    on
	apply func(n *Network, p *passage) // called with the network's mu held
}

// Table lists all faults. A stream is a reliable one: it never loses a message and goes on, it
// falls silent or breaks.
func Table() []Fault { return slices.Clone(table) }

// table is in the order in which faults are drawn, and applied to one message.
var table = slices.Concat([]Fault{
	{
		"request-lost", "A request never arrives, and the caller hears nothing.",
		unary, func(_ *Network, p *passage) { p.lost = true },
	},
	{
		"request-cut", "A request never arrives, and the caller is told that the connection broke.",
		unary, func(_ *Network, p *passage) { p.lost, p.told = true, errCut },
	},
	{
		"request-late", "A request arrives up to 20 s late, and the caller hears nothing before.",
		unary, func(n *Network, p *passage) { p.delay(n.upTo(0, Longest)) },
	},
	{
		"request-stray", "The caller is told that the connection broke, and the request arrives up to 20 s later.",
		unary, func(n *Network, p *passage) { p.told = errCut; p.delay(n.upTo(0, Longest)) },
	},
	{
		"answer-lost", "A call is carried out, and the caller hears nothing.",
		unary, func(_ *Network, p *passage) { p.mute = true },
	},
	{
		"answer-cut", "A call is carried out, and the caller is told that the connection broke.",
		unary, func(_ *Network, p *passage) { p.instead = errCut },
	},
	{
		"answer-late", "A call is carried out, and its answer comes up to 20 s late.",
		unary, func(n *Network, p *passage) { p.down += n.upTo(0, Longest) },
	},
	{
		"stall", "Nothing gets through for up to 20 s; then everything does, in order.",
		unary | sending, func(n *Network, _ *passage) { n.stalled = time.Now().Add(n.upTo(0, Longest)) },
	},
	{
		"silent-link", "The link of the call is silent for up to 20 s and then delivers.",
		unary | sending, func(n *Network, p *passage) { n.silence(p.link, n.upTo(0, Longest), false) },
	},
	{
		"dying-link", "The link of the call is silent for up to 20 s and then breaks.",
		unary | sending, func(n *Network, p *passage) { n.silence(p.link, n.upTo(0, Longest), true) },
	},
	{
		"slow-server", "The server takes up to 2 s longer for each call of every client, for up to 20 s.",
		unary | sending, func(n *Network, _ *passage) { n.bubble.slow(n.upTo(0, Longest)) },
	},
	{
		"refusing", "Calls are refused with one code for up to a minute.",
		unary | opening, func(n *Network, p *passage) {
			err := refusals[n.rng.IntN(len(refusals))].err
			n.refusal = refusal{err, time.Now().Add(n.upTo(0, refusing))}
			p.refused = err
		},
	},
	{
		"stream-cut", "The stream breaks within 20 s.",
		sending, func(n *Network, p *passage) {
			time.AfterFunc(n.upTo(0, Longest), func() { p.stream.end(errCut) })
		},
	},
	{
		"stream-dead", "The stream falls silent within 20 s, for good, and nobody is told.",
		sending, func(n *Network, p *passage) { time.AfterFunc(n.upTo(0, Longest), p.stream.die) },
	},
	{
		"message-late", "A message of a stream comes up to 20 s late, and those behind it wait.",
		sending | receiving, func(n *Network, p *passage) { p.up += n.upTo(0, Longest) },
	},
}, refusedRows())

// refusals are what a server, or what stands before it, says no with.
var refusals = []struct {
	name string
	err  error
}{
	{"Canceled", status.Error(codes.Canceled, "context canceled")},
	{"Unknown", status.Error(codes.Unknown, "made up: unknown")},
	{"InvalidArgument", status.Error(codes.InvalidArgument, "made up: invalid argument")},
	{"DeadlineExceeded", status.Error(codes.DeadlineExceeded, "context deadline exceeded")},
	{"NotFound", status.Error(codes.NotFound, "made up: not found")},
	{"AlreadyExists", status.Error(codes.AlreadyExists, "made up: already exists")},
	{"PermissionDenied", rpctypes.ErrGRPCPermissionDenied},
	{"ResourceExhausted", status.Error(codes.ResourceExhausted, "made up: resource exhausted")},
	{"FailedPrecondition", status.Error(codes.FailedPrecondition, "made up: failed precondition")},
	{"Aborted", status.Error(codes.Aborted, "made up: aborted")},
	{"OutOfRange", status.Error(codes.OutOfRange, "made up: out of range")},
	{"Unimplemented", status.Error(codes.Unimplemented, "made up: unimplemented")},
	{"Internal", status.Error(codes.Internal, "made up: internal")},
	{"Unavailable", errDown},
	{"DataLoss", status.Error(codes.DataLoss, "made up: data loss")},
	{"Unauthenticated", rpctypes.ErrGRPCInvalidAuthToken},
	{"NoLeader", rpctypes.ErrGRPCNoLeader},
	{"LeaderChanged", rpctypes.ErrGRPCLeaderChanged},
	{"Timeout", rpctypes.ErrGRPCTimeout},
	{"TimeoutDueToLeaderFail", rpctypes.ErrGRPCTimeoutDueToLeaderFail},
	{"TooManyRequests", rpctypes.ErrGRPCRequestTooManyRequests},
	{"Stopped", rpctypes.ErrGRPCStopped},
	{"NoSpace", rpctypes.ErrGRPCNoSpace},
}

// refusedRows is a fault for each refusal.
func refusedRows() []Fault {
	var rows []Fault
	for _, r := range refusals {
		rows = append(rows, Fault{
			"refused-" + r.name, "A call is refused with " + r.name + ".",
			unary | opening, func(_ *Network, p *passage) { p.refused = r.err },
		})
	}
	return rows
}

// silence makes a link silent. If it is to die, it is cut when the silence ends. The caller
// holds mu.
func (n *Network) silence(link int, d time.Duration, dies bool) {
	n.silent[link] = time.Now().Add(d)
	if !dies {
		return
	}
	time.AfterFunc(d, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.cut(link)
	})
}
