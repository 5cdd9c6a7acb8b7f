package concurrency

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	v3 "go.etcd.io/etcd/client/v3"
)

// STM is one attempt at a transaction, as its function sees it. It belongs to the
// goroutine that runs the function, and is of no use after the function has
// returned: its methods panic then.
//
// When a read fails, Get and Rev don't return: they end the function by a panic
// that [NewSTM] recovers. A function that recovers it itself changes nothing: its
// attempt is not committed.
type STM interface {
	// Get returns the value of the first key, "" if it does not exist, and adds all
	// keys to the read set. A key that this attempt has written has the value that
	// was written; alone, it is not read. Keys that are not in the read set yet are
	// fetched in one call, which the client repeats if it is for a single key.
	Get(key ...string) string
	// Put adds a write to the write set. The last write of a key counts.
	Put(key, val string, opts ...v3.OpOption)
	// Rev returns the revision of the last modification of a key as it is in the
	// store, 0 if it does not exist, and adds the key to the read set.
	Rev(key string) int64
	// Del adds the deletion of a key to the write set.
	Del(key string)

	// commit keeps the interface to this package's own implementation.
	commit() (*v3.TxnResponse, error)
}

// Isolation says what an attempt may see and what makes it conflict.
type Isolation int

const (
	// SerializableSnapshot is strict serializability: all reads are of one revision,
	// and the commit conflicts with every later change of a key read. Once the
	// attempt has read anything, it also conflicts with later changes of a key that
	// it only writes; not with its deletion. It is the default.
	SerializableSnapshot Isolation = iota
	// Serializable is the same, except that keys only written don't conflict.
	Serializable
	// RepeatableReads reads each key once, at revisions of their own, and conflicts
	// with later changes of a key read.
	RepeatableReads
	// ReadCommitted reads each key once, and conflicts with nothing.
	ReadCommitted
)

// level is what an isolation level consists of.
type level struct {
	snapshot    bool // all reads are of one revision
	checkReads  bool // keys read must be unchanged at the commit
	checkWrites bool // keys only written must be unchanged since the snapshot
}

var levels = [...]level{
	SerializableSnapshot: {snapshot: true, checkReads: true, checkWrites: true},
	Serializable:         {snapshot: true, checkReads: true},
	RepeatableReads:      {checkReads: true},
	ReadCommitted:        {},
}

// STMOption configures [NewSTM].
type STMOption func(*stmOptions)

type stmOptions struct {
	isolation Isolation
	ctx       context.Context
	prefetch  []string
	guards    []v3.Cmp
	maxOps    int
}

// WithIsolation sets the isolation level; [SerializableSnapshot] is the default.
func WithIsolation(lvl Isolation) STMOption {
	if lvl < 0 || int(lvl) >= len(levels) {
		panic(fmt.Sprintf("concurrency: unknown isolation level %d", int(lvl)))
	}
	return func(o *stmOptions) { o.isolation = lvl }
}

// WithAbortContext sets the context that ends the transaction; the client's is the
// default. It is looked at before every attempt and during pauses, and bounds every
// call.
func WithAbortContext(ctx context.Context) STMOption {
	if ctx == nil {
		panic("concurrency: WithAbortContext: nil context")
	}
	return func(o *stmOptions) { o.ctx = ctx }
}

// WithPrefetch adds keys to the read set of every attempt before its function runs.
// They are fetched together, which saves a call for each.
func WithPrefetch(keys ...string) STMOption {
	return func(o *stmOptions) { o.prefetch = append(o.prefetch, keys...) }
}

// WithGuard makes the transaction commit only if all comparisons are true at its commit,
// and return [ErrGuardFailed], without another attempt, if one is not. With
// [Mutex.IsOwner] or [Election.IsLeader] a former owner can't commit. A transaction that
// only reads is committed by a call too, then.
func WithGuard(cmps ...v3.Cmp) STMOption {
	if len(cmps) == 0 {
		panic("concurrency: WithGuard: nothing to compare")
	}
	return func(o *stmOptions) { o.guards = append(o.guards, cmps...) }
}

// defaultMaxOps is the server's default for --max-txn-ops.
const defaultMaxOps = 128

// WithMaxTxnOps tells the limit of the servers on the operations of a transaction
// (their flag --max-txn-ops), if it is not the default of 128. Larger read sets are
// fetched in parts; larger commits fail before they are sent.
func WithMaxTxnOps(n int) STMOption {
	if n <= 0 {
		panic(fmt.Sprintf("concurrency: WithMaxTxnOps: %d is not a limit", n))
	}
	return func(o *stmOptions) { o.maxOps = n }
}

// NewSTM runs apply as a transaction: its reads through the [STM] are isolated from
// other transactions and its writes take effect together, when it has returned nil.
// When the commit conflicts, apply is run again, on newer values, until it commits: at
// once at first, then after a few pauses of a quarter of a second at most, then at once.
// Transactions of one client that conflict take turns, for which a transaction waits 50 ms at
// most, once in vain at most. So apply may run many times, and should have no effects but
// those through its STM. It runs on the caller's goroutine, where a panic in it, or
// runtime.Goexit, does what it does anywhere, and nothing is committed.
//
// The response is that of the commit; the responses to the writes stand in the
// order in which their keys were first written. A transaction that only read, at
// [SerializableSnapshot] or [Serializable], needs no commit: its response is a
// successful one with the header of its first read.
//
// Errors, with which nothing is committed unless said otherwise:
//   - what apply returned, as it is;
//   - the error of the abort context, as it is, unless it ended during the commit;
//   - [ErrGuardFailed];
//   - etcd's, as they are; rpctypes.ErrTooManyOps, wrapped with the numbers, if the
//     commit has more writes or checked keys than the servers allow, see
//     [WithMaxTxnOps];
//   - one that wraps [ErrCommitUnknown] and the cause if the commit was not answered.
//     Such a commit is not repeated.
//
// It costs one call for each Get or Rev that fetches, and one for the commit. NewSTM
// panics if c or apply is nil.
func NewSTM(c *v3.Client, apply func(STM) error, so ...STMOption) (*v3.TxnResponse, error) {
	if c == nil {
		panic("concurrency: NewSTM: nil client")
	}
	if apply == nil {
		panic("concurrency: NewSTM: nil function")
	}
	o := stmOptions{ctx: c.Ctx(), maxOps: defaultMaxOps}
	for _, opt := range so {
		opt(&o)
	}
	a := &attempt{}
	defer func() { a.turn.release() }() // also when a panic passes
	for {
		if err := o.ctx.Err(); err != nil {
			return nil, err
		}
		start := time.Now()
		a = &attempt{client: c, options: o, level: levels[o.isolation], carried: a.carried}
		resp, err := a.run(apply)
		switch {
		case err == errOutdated:
		case err != errConflict:
			return resp, err
		case a.heat > pauseAfter && a.heat <= pauseUntil:
			// Those who conflicted would all propose again now, and all but one in vain.
			// What was seen grows old meanwhile, and is of no more use.
			sleep(o.ctx, forever, rand.N(min(pauseSpan*time.Since(start), pauseMost)+1))
			a.snapshot = snapshot{}
		}
	}
}

// A transaction that conflicts is run again at once at first, since most conflicts are of
// two. When one key has made it conflict some times in a row, it pauses, for a random part
// of pauseSpan times what its attempt took; and one that the same key has made conflict very
// often tries again at once, on the values of the conflict, by which it is ahead of all that
// begin. Earlier and longer pauses save the servers proposals, and cost those who pause: so
// it pauses earlier if nothing but such a key was written to the store of late, for then
// proposals in vain are the most that the servers have to do. PERFORMANCE.md has the figures.
const (
	heatEach, heatSole     = 2, 3  // what a conflict adds, see [attempt.warm]
	pauseAfter, pauseUntil = 5, 12 // pauses follow conflicts 3 to 6, or 2 to 4 if all are sole
	pauseSpan              = 16
	pauseMost              = 250 * time.Millisecond
)

// snapshot is what is known of the store at one revision.
type snapshot struct {
	header *pb.ResponseHeader          // nil: nothing was read yet
	known  map[string]*mvccpb.KeyValue // nil values stand for keys that did not exist
}

// attempt is one run of the function. Reads fill its read set, Put and Del its write
// set; compile turns both into a transaction.
type attempt struct {
	client  *v3.Client
	options stmOptions
	level   level

	carried

	reads  map[string]*mvccpb.KeyValue // nil values stand for keys that did not exist
	writes []write                     // in the order in which their keys were first written

	err  error // the first failure, after which nothing is read or committed
	over bool  // the function has returned
}

// carried is what an attempt hands on to the one that follows it.
type carried struct {
	// The first read pins the snapshot, of levels that have one, by its header. An
	// attempt that follows a conflict starts with the snapshot of the conflict's
	// answer: its values and its revision, so that they agree with fresh reads.
	snapshot

	turn   *turn // among the transactions of this client that conflict; nil: none
	waited bool  // for a turn, in vain: once is enough

	heat int      // grows with each conflict in a row over one key, see warm
	hot  []string // the keys of which that is true
}

type write struct {
	key, value string
	op         v3.Op
	plain      bool // without options
}

// errConflict ends an attempt that is to be followed by another.
var (
	errConflict = errors.New("conflict")
	errOutdated = errors.New("conflict known without asking")
)

// abort is the panic by which a failed read leaves the function.
type abort struct{}

func (a *attempt) run(apply func(STM) error) (resp *v3.TxnResponse, err error) {
	a.reads = map[string]*mvccpb.KeyValue{}
	defer func() {
		a.over = true
		if a.err == nil {
			return // a panic of the function's passes through untouched
		}
		resp, err = nil, a.err
		if r := recover(); r != nil && r != (abort{}) {
			panic(r)
		}
	}()
	a.fetch(a.options.prefetch)
	if err := apply(a); err != nil || a.err != nil {
		return nil, err
	}
	return a.commit()
}

// Get adds the keys to the read set and returns the value of the first, as written by the
// attempt itself if it was.
func (a *attempt) Get(keys ...string) string {
	a.check()
	if len(keys) == 0 {
		return ""
	}
	w := a.written(keys[0])
	if w < 0 || len(keys) > 1 {
		a.fetch(keys)
	}
	if w >= 0 {
		return a.writes[w].value
	}
	return string(a.reads[keys[0]].GetValue())
}

// Rev adds the key to the read set and returns its revision in the store.
func (a *attempt) Rev(key string) int64 {
	a.check()
	a.fetch([]string{key})
	return a.reads[key].GetModRevision()
}

// Put adds a write to the write set, in place of one of the same key.
func (a *attempt) Put(key, val string, opts ...v3.OpOption) {
	a.write(write{key, val, v3.OpPut(key, val, opts...), len(opts) == 0})
}

// Del adds a deletion to the write set, in place of a write of the same key.
func (a *attempt) Del(key string) { a.write(write{key: key, op: v3.OpDelete(key)}) }

func (a *attempt) write(w write) {
	a.check()
	if i := a.written(w.key); i >= 0 {
		a.writes[i] = w
	} else {
		a.writes = append(a.writes, w)
	}
}

// written returns the place of the key in the write set, or -1.
func (a *attempt) written(key string) int {
	return slices.IndexFunc(a.writes, func(w write) bool { return w.key == key })
}

// check keeps a function from going on with an attempt that has ended.
func (a *attempt) check() {
	if a.over {
		panic("concurrency: an STM was used after its function had returned")
	}
	if a.err != nil {
		panic(abort{})
	}
}

// fail ends the attempt and its function.
func (a *attempt) fail(err error) {
	if a.options.ctx.Err() != nil {
		err = a.options.ctx.Err()
	}
	a.err = err
	panic(abort{})
}

// fetch adds the keys to the read set: from the snapshot of the last conflict where
// that knows them, and otherwise with as few calls as the server's limit allows.
func (a *attempt) fetch(keys []string) {
	var missing []string
	for _, key := range keys {
		if _, ok := a.reads[key]; ok || slices.Contains(missing, key) {
			continue
		}
		if kv, ok := a.known[key]; ok {
			a.reads[key] = kv
			continue
		}
		missing = append(missing, key)
	}
	for part := range slices.Chunk(missing, a.options.maxOps) {
		header, kvs, err := a.read(part)
		if err != nil {
			a.fail(err)
		}
		for i, key := range part {
			a.reads[key] = kvs[i]
		}
		if a.header == nil || !a.level.snapshot {
			a.header = header
		}
	}
}

// read reads at the pinned revision, if there is one, from whichever member is
// asked: serializable. A member that has not come so far refuses ("future
// revision"), and then the linearizable read at the same revision makes it catch up.
// What is not pinned is read linearizably. A pinned revision that was compacted away
// is of no more use, which is a conflict.
func (a *attempt) read(keys []string) (*pb.ResponseHeader, []*mvccpb.KeyValue, error) {
	if a.header == nil || !a.level.snapshot {
		return a.get(keys)
	}
	at := v3.WithRev(a.header.Revision)
	header, kvs, err := a.get(keys, at, v3.WithSerializable())
	if errors.Is(err, rpctypes.ErrFutureRev) {
		header, kvs, err = a.get(keys, at)
	}
	if errors.Is(err, rpctypes.ErrCompacted) {
		a.snapshot = snapshot{}
		err = errConflict
	}
	return header, kvs, err
}

// get reads the keys in one call. A single one is a plain Get, which the client
// repeats by itself when the connection fails.
func (a *attempt) get(keys []string, opts ...v3.OpOption) (*pb.ResponseHeader, []*mvccpb.KeyValue, error) {
	if len(keys) == 1 {
		resp, err := a.client.Get(a.options.ctx, keys[0], opts...)
		if err != nil {
			return nil, nil, err
		}
		return resp.Header, []*mvccpb.KeyValue{only(resp.Kvs)}, nil
	}
	gets := make([]v3.Op, len(keys))
	for i, key := range keys {
		gets[i] = v3.OpGet(key, opts...)
	}
	resp, err := a.client.Txn(a.options.ctx).Then(gets...).Commit()
	if err != nil {
		return nil, nil, err
	}
	return resp.Header, values(resp.Responses), nil
}

func values(answers []*pb.ResponseOp) []*mvccpb.KeyValue {
	kvs := make([]*mvccpb.KeyValue, len(answers))
	for i, r := range answers {
		kvs[i] = only(r.GetResponseRange().Kvs)
	}
	return kvs
}

func only(kvs []*mvccpb.KeyValue) *mvccpb.KeyValue {
	if len(kvs) == 0 {
		return nil
	}
	return kvs[0]
}

// compiled is the transaction that an attempt comes to.
type compiled struct {
	cmps      []v3.Cmp
	then, els []v3.Op
	keys      []string // those whose values els reads back, after the guards' result
}

// compile is a pure function of the level, the read set and the write set, and
// gives the same transaction for the same ones: compares and reads stand in the
// order of keys, after the guards, writes in that of their first writing. The Else
// branch compares the guards by themselves, which tells them from a conflict.
func (a *attempt) compile() compiled {
	c := compiled{cmps: slices.Clone(a.options.guards)}
	if len(a.options.guards) > 0 {
		c.els = []v3.Op{v3.OpTxn(a.options.guards, nil, nil)}
	}
	want := map[string]v3.Cmp{}
	if a.level.checkWrites && len(a.reads) > 0 {
		for _, w := range a.writes {
			want[w.key] = v3.Compare(v3.ModRevision(w.key), "<", a.header.Revision+1)
		}
	}
	if a.level.checkReads {
		for key, kv := range a.reads {
			want[key] = v3.Compare(v3.ModRevision(key), "=", kv.GetModRevision())
		}
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		c.cmps = append(c.cmps, want[key])
	}
	for _, w := range a.writes {
		c.then = append(c.then, w.op)
	}
	switch {
	case a.level.snapshot:
		c.keys = slices.Sorted(maps.Keys(a.reads))
		for _, key := range c.keys {
			c.els = append(c.els, v3.OpGet(key))
		}
	case len(c.cmps) > 0 && len(c.then)+len(c.els) == 0:
		// A transaction of compares alone is answered by any member, however far it lags
		// behind (IsTxnSerializable in server/etcdserver/txn/txn.go); one that might read
		// is not.
		c.els = append(c.els, v3.OpGet(string(c.cmps[0].KeyBytes())))
	}
	return c
}

// commit returns errConflict, and leaves the snapshot for the next attempt, if a
// compare failed.
func (a *attempt) commit() (*v3.TxnResponse, error) {
	if len(a.writes) == 0 && len(a.reads) > 0 && a.level.snapshot && len(a.options.guards) == 0 {
		// All reads are of one revision, and the first was linearizable: that is
		// where this transaction stands in the order of all.
		return &v3.TxnResponse{Header: a.header, Succeeded: true}, nil
	}
	c, ctx := a.compile(), a.options.ctx
	// The server counts what is nested, the guards in the Else branch, on top of the
	// longest list around it (checkTxnRequest in server/etcdserver/api/v3rpc/key.go).
	guards := len(a.options.guards)
	if max(len(c.cmps), len(c.then), len(c.els))+guards > a.options.maxOps {
		return nil, fmt.Errorf("concurrency: a commit of %d writes, %d checked keys and %d guards is over the limit of %d: %w",
			len(c.then), len(c.cmps)-guards, guards, a.options.maxOps, rpctypes.ErrTooManyOps)
	}
	if a.level.snapshot {
		a.wantTurn(c.keys, false)
	}
	if a.outdated() {
		a.snapshot = a.turn.last
		return nil, errOutdated
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	resp, err := a.client.Txn(ctx).If(c.cmps...).Then(c.then...).Else(c.els...).Commit()
	switch {
	case err != nil && definite(err):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrCommitUnknown, err)
	case resp.Succeeded:
		if a.turn != nil {
			a.turn.last = a.left(resp)
		}
		return resp, nil
	}
	return nil, a.conflict(resp, c.keys)
}

// outdated reports whether the turn knows of a commit that has changed what was read.
func (a *attempt) outdated() bool {
	if len(a.reads) == 0 || a.turn.newer(a.snapshot).header == a.header {
		return false
	}
	for key, kv := range a.reads {
		if last, ok := a.turn.last.known[key]; ok && last.GetModRevision() != kv.GetModRevision() {
			return true
		}
	}
	return false
}

// conflict takes from the answer of a commit that failed what the next attempt starts
// with, and waits for the turn among those of this client that conflict likewise.
func (a *attempt) conflict(resp *v3.TxnResponse, keys []string) error {
	answers := resp.Responses
	if len(a.options.guards) > 0 {
		if !answers[0].GetResponseTxn().Succeeded {
			return ErrGuardFailed
		}
		answers = answers[1:]
	}
	a.snapshot = snapshot{}
	if !a.level.snapshot {
		a.warm(nil, false)
		return errConflict
	}
	a.header, a.known = resp.Header, map[string]*mvccpb.KeyValue{}
	var changed []string
	sole := false
	for i, kv := range values(answers) {
		key := keys[i]
		a.known[key] = kv
		if kv.GetModRevision() != a.reads[key].GetModRevision() {
			changed = append(changed, key)
			sole = sole || kv.GetModRevision() == resp.Header.Revision
		}
	}
	a.warm(changed, sole)
	a.wantTurn(changed, true)
	a.snapshot = a.turn.newer(a.snapshot)
	return errConflict
}

// warm counts the conflicts in a row that were over one key, as far as is known: a key that
// was only written is not read back. One is sole if no write to the store came after that of
// its key, which is as often as that key's part of all writes is large.
func (a *attempt) warm(changed []string, sole bool) {
	again := slices.DeleteFunc(slices.Clone(changed), func(key string) bool { return !slices.Contains(a.hot, key) })
	switch {
	case len(again) > 0:
		a.hot = again
	case len(changed) > 0:
		a.hot, a.heat = changed, 0
	}
	if sole {
		a.heat += heatSole
	} else {
		a.heat += heatEach
	}
}

// NewSTMRepeatable runs a transaction at [RepeatableReads] that ctx can abort.
//
// Deprecated: Use [NewSTM] with [WithIsolation] and [WithAbortContext].
func NewSTMRepeatable(ctx context.Context, c *v3.Client, apply func(STM) error) (*v3.TxnResponse, error) {
	return NewSTM(c, apply, WithAbortContext(ctx), WithIsolation(RepeatableReads))
}

// NewSTMSerializable runs a transaction at [Serializable] that ctx can abort.
//
// Deprecated: Use [NewSTM] with [WithIsolation] and [WithAbortContext].
func NewSTMSerializable(ctx context.Context, c *v3.Client, apply func(STM) error) (*v3.TxnResponse, error) {
	return NewSTM(c, apply, WithAbortContext(ctx), WithIsolation(Serializable))
}

// NewSTMReadCommitted runs a transaction at [ReadCommitted] that ctx can abort.
//
// Deprecated: Use [NewSTM] with [WithIsolation] and [WithAbortContext].
func NewSTMReadCommitted(ctx context.Context, c *v3.Client, apply func(STM) error) (*v3.TxnResponse, error) {
	return NewSTM(c, apply, WithAbortContext(ctx), WithIsolation(ReadCommitted))
}
