package fault

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ErrLostAnswer is what a client reports when its connection broke after a
// write was sent: the server may or may not have carried it out.
var ErrLostAnswer = status.Error(codes.Unavailable, "error reading from server: EOF")

// Kind is a kind of call. The kinds of KV are those of its methods: a
// transaction given to Do is of the kind Do.
type Kind int

// The calls that are counted and can be given faults. The others, such as
// Compact, GetStream and Leases, pass through.
const (
	Get Kind = iota
	Put
	Delete
	Txn
	Do
	Grant
	Revoke
	TimeToLive
	KeepAliveOnce
	KeepAlive
	Watch

	kinds
)

var kindNames = [kinds]string{
	"Get", "Put", "Delete", "Txn", "Do",
	"Grant", "Revoke", "TimeToLive", "KeepAliveOnce", "KeepAlive", "Watch",
}

// String is the name of the method.
func (k Kind) String() string { return kindNames[k] }

// Faults counts the calls of one client and gives them faults. A fault means
// calls by number: 1 is the next call of that kind that begins, 2 the one after
// it. Faults that mean the same call all apply, in the order in which they were
// set. The methods may be called from any goroutine.
type Faults struct {
	client  *clientv3.Client
	kv      clientv3.KV
	lease   clientv3.Lease
	watcher clientv3.Watcher

	mu     sync.Mutex // guards the fields below; never held across a call
	seen   [kinds]int // calls since Wrap
	base   [kinds]int // seen at the last Reset
	rules  []*rule
	future int // reads still to be answered with a future revision
}

// rule is a fault on the calls first to last of a kind, numbered from Wrap on.
type rule struct {
	kind        Kind
	first, last int
	gate        *Gate // that the rule waits at, if any

	// before runs before the call is sent. Its error is reported instead.
	before func(ctx context.Context) error
	// after runs with the result of a call that was sent. Its error is
	// reported, and the answer dropped; nil leaves both as they are.
	after func(ctx context.Context, err error) error
	// channel stands between a watch and its reader.
	channel func(ctx context.Context, ch clientv3.WatchChan) clientv3.WatchChan
}

// Wrap puts faults between client and its users. It exchanges the client's KV,
// Lease and Watcher, so nobody else may use the client meanwhile.
func Wrap(client *clientv3.Client) *Faults {
	f := &Faults{client: client, kv: client.KV, lease: client.Lease, watcher: client.Watcher}
	client.KV = &kv{KV: f.kv, f: f}
	client.Lease = &lease{Lease: f.lease, f: f}
	client.Watcher = &watcher{Watcher: f.watcher, f: f}
	return f
}

// Unwrap lifts all faults and gives the client back what it had before Wrap.
// Nobody else may use the client meanwhile.
func (f *Faults) Unwrap() {
	f.Clear()
	f.client.KV, f.client.Lease, f.client.Watcher = f.kv, f.lease, f.watcher
}

// Count is how many calls of a kind were begun since Wrap or Reset, whatever
// became of them.
func (f *Faults) Count(kind Kind) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen[kind] - f.base[kind]
}

// KV is how many calls of all kinds of KV were begun since Wrap or Reset.
func (f *Faults) KV() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	total := 0
	for kind := Get; kind <= Do; kind++ {
		total += f.seen[kind] - f.base[kind]
	}
	return total
}

// String lists the counts that are not zero, such as "Txn 2, Watch 1".
func (f *Faults) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var parts []string
	for kind := range kinds {
		if n := f.seen[kind] - f.base[kind]; n != 0 {
			parts = append(parts, fmt.Sprintf("%v %d", kind, n))
		}
	}
	if parts == nil {
		return "no calls"
	}
	return strings.Join(parts, ", ")
}

// Reset begins to count from zero. Faults stay set.
func (f *Faults) Reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.base = f.seen
}

// Clear lifts all faults and lets held calls go on. Counts stay.
func (f *Faults) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.rules {
		if r.gate != nil {
			r.gate.Open()
		}
	}
	f.rules, f.future = nil, 0
}

// LoseAnswer lets the server carry out the nth call and reports err instead of
// its answer; nil stands for ErrLostAnswer. A call that fails by itself keeps
// its own error. A watch whose answer is lost runs on, unseen, until its
// context ends.
func (f *Faults) LoseAnswer(kind Kind, nth int, err error) {
	f.lose(kind, nth, 1, err)
}

// LoseAnswers loses the answers of the next n calls with ErrLostAnswer.
func (f *Faults) LoseAnswers(kind Kind, n int) {
	f.lose(kind, 1, n, nil)
}

func (f *Faults) lose(kind Kind, nth, n int, lost error) {
	if lost == nil {
		lost = ErrLostAnswer
	}
	f.add(kind, nth, n, &rule{after: func(_ context.Context, err error) error {
		if err != nil {
			return nil
		}
		return lost
	}})
}

// Refuse fails the next n calls, unsent, with a gRPC status. If the text is one
// of etcd's own, the caller gets etcd's error for it, as from a real client.
func (f *Faults) Refuse(kind Kind, n int, code codes.Code, msg string) {
	f.add(kind, 1, n, &rule{before: func(context.Context) error {
		return status.Error(code, msg)
	}})
}

// Hold stops the nth call before it is sent, until the gate is opened or the
// call's context ends; then it is not sent.
func (f *Faults) Hold(kind Kind, nth int) *Gate {
	g := newGate()
	f.add(kind, nth, 1, &rule{gate: g, before: g.wait})
	return g
}

// HoldAnswer lets the server carry out the nth call and keeps its answer until
// the gate is opened. If the call's context ends first the answer is dropped.
func (f *Faults) HoldAnswer(kind Kind, nth int) *Gate {
	g := newGate()
	f.add(kind, nth, 1, &rule{gate: g, after: func(ctx context.Context, err error) error {
		return g.wait(ctx)
	}})
	return g
}

// Before runs hook on the caller's goroutine before the nth call is sent.
func (f *Faults) Before(kind Kind, nth int, hook func()) {
	f.add(kind, nth, 1, &rule{before: func(context.Context) error {
		hook()
		return nil
	}})
}

// After runs hook on the caller's goroutine when the nth call has its answer.
// The hook is given the call's own error.
func (f *Faults) After(kind Kind, nth int, hook func(err error)) {
	f.add(kind, nth, 1, &rule{after: func(_ context.Context, err error) error {
		hook(err)
		return nil
	}})
}

// FutureRevision answers the next n serializable reads at a pinned revision,
// by Get, Txn or Do, with ErrFutureRev as a lagging member does. They are not
// sent: it is the one fault here that is made up.
func (f *Faults) FutureRevision(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.future = n
}

// add sets a rule for n calls, of which the first is the nth from now.
func (f *Faults) add(kind Kind, nth, n int, r *rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r.kind, r.first = kind, f.seen[kind]+nth
	r.last = r.first + n - 1
	f.rules = append(f.rules, r)
}

// begin counts a call and gives the rules that apply to it. Rules that can't
// apply any more are dropped, but for those that a call may be waiting at.
func (f *Faults) begin(kind Kind, ops ...clientv3.Op) []*rule {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen[kind]++
	call := f.seen[kind]
	var apply []*rule
	f.rules = slices.DeleteFunc(f.rules, func(r *rule) bool {
		if r.kind != kind {
			return false
		}
		if r.first <= call && call <= r.last {
			apply = append(apply, r)
		}
		return r.last <= call && r.gate == nil
	})
	if f.future > 0 && pinned(ops) {
		f.future--
		apply = append(apply, &rule{before: func(context.Context) error {
			return rpctypes.ErrGRPCFutureRev
		}})
	}
	return apply
}

// pinned says whether all operations are reads that any member may answer from
// its own store, and one of them asks for a certain revision.
func pinned(ops []clientv3.Op) bool {
	rev := int64(0)
	for _, op := range ops {
		if !op.IsGet() || !op.IsSerializable() {
			return false
		}
		rev = max(rev, op.Rev())
	}
	return rev > 0
}

// run makes a call under the rules that apply to it.
func run[R any](ctx context.Context, rules []*rule, call func() (R, error)) (R, error) {
	var none R
	for _, r := range rules {
		if r.before == nil {
			continue
		}
		if err := r.before(ctx); err != nil {
			return none, clientv3.ContextError(ctx, err)
		}
	}
	resp, err := call()
	for _, r := range rules {
		if r.after == nil {
			continue
		}
		if lost := r.after(ctx, err); lost != nil {
			return none, clientv3.ContextError(ctx, lost)
		}
	}
	return resp, err
}
