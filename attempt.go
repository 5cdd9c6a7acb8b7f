package concurrency

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	v3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// snapshot is what is known of the store at one revision.
type snapshot struct {
	header *pb.ResponseHeader          // nil: nothing was read yet
	known  map[string]*mvccpb.KeyValue // nil values stand for keys that did not exist
}

// attempt is one run of the function. Reads fill its read set, Put and Del its write set.
type attempt struct {
	client  *v3.Client
	options stmOptions
	level   level

	carried

	reads   map[string]*mvccpb.KeyValue // nil values stand for keys that did not exist
	writes  []*write                    // in the order in which their keys were first written
	written map[string]*write           // the same, by key

	err  error       // the first failure, after which nothing is read or committed
	over atomic.Bool // the function has returned
}

// carried is what an attempt hands on to the one that follows it.
type carried struct {
	// The first read pins the snapshot, of levels that have one, by its header. An
	// attempt that follows a conflict starts with the snapshot of the conflict's
	// answer: its values and its revision, so that they agree with fresh reads.
	snapshot

	part      int  // how many keys are read in one call
	rested    bool // the transaction has made way after the conflict
	contender *contender
}

type write struct {
	key, value string
	op         v3.Op
	plain      bool // without options
}

// errConflict ends an attempt that is to be followed by another.
var errConflict = errors.New("conflict")

// abort is the panic by which a failed read leaves the function.
type abort struct{}

// run runs the function. It returns nil if the attempt can be committed.
func (a *attempt) run(apply func(STM) error) (err error) {
	a.reads, a.written = map[string]*mvccpb.KeyValue{}, map[string]*write{}
	defer func() {
		a.over.Store(true)
		if a.err == nil {
			return // a panic of the function's passes through untouched
		}
		err = a.err
		if r := recover(); r != nil && r != (abort{}) {
			panic(r)
		}
	}()
	if a.rested {
		a.refresh()
	}
	a.fetch(a.options.prefetch)
	return apply(a)
}

// Get adds the keys to the read set and returns the value of the first. If the attempt
// itself has written that key, the value is the one that was written.
func (a *attempt) Get(keys ...string) string {
	a.check()
	if len(keys) == 0 {
		return ""
	}
	w := a.written[keys[0]]
	if w == nil || len(keys) > 1 {
		a.fetch(keys)
	}
	if w != nil {
		return w.value
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
	a.write(&write{key, val, v3.OpPut(key, val, opts...), len(opts) == 0})
}

// Del adds a deletion to the write set, in place of a write of the same key.
func (a *attempt) Del(key string) { a.write(&write{key: key, op: v3.OpDelete(key)}) }

func (a *attempt) write(w *write) {
	a.check()
	if before := a.written[w.key]; before != nil {
		*before = *w
		return
	}
	a.written[w.key] = w
	a.writes = append(a.writes, w)
}

// check keeps a function from going on with an attempt that has ended.
func (a *attempt) check() {
	if a.over.Load() {
		panic("concurrency: an STM was used after its function had returned")
	}
	if a.err != nil {
		panic(abort{})
	}
}

// fail ends the attempt and its function.
func (a *attempt) fail(err error) {
	a.err = a.blame(err)
	panic(abort{})
}

// ended returns the error of the abort context, or of the client's end. Nothing is sent
// after either. A client that was put together by hand has no context.
func (a *attempt) ended() error {
	if err := a.options.ctx.Err(); err != nil {
		return err
	}
	if ctx := a.client.Ctx(); ctx != nil {
		return ctx.Err()
	}
	return nil
}

// blame returns the error of what has ended a call. That is err, unless err is a
// consequence of the abort context's end. A server that is told a deadline may notice it
// first.
func (a *attempt) blame(err error) error {
	if cause := a.ended(); cause != nil {
		return cause
	}
	if _, bounded := a.options.ctx.Deadline(); bounded && status.Code(err) == codes.DeadlineExceeded {
		return context.DeadlineExceeded
	}
	return err
}

// defaultPart is etcd's default for the servers' limit on the operations of a transaction.
const defaultPart = 128

// fetch adds the keys to the read set. It takes them from the snapshot of the last conflict
// if that has them, and from the servers otherwise.
func (a *attempt) fetch(keys []string) {
	var missing []string
	for _, key := range keys {
		if _, ok := a.reads[key]; ok {
			continue
		}
		kv, ok := a.known[key]
		if a.reads[key] = kv; !ok {
			missing = append(missing, key)
		}
	}
	a.load(missing, a.reads)
}

// load reads the keys with as few calls as the servers' limit allows. If the limit is
// lower than assumed, a server refuses, and smaller parts are tried.
func (a *attempt) load(keys []string, into map[string]*mvccpb.KeyValue) {
	for len(keys) > 0 {
		part := keys[:min(a.part, len(keys))]
		begin := time.Now()
		header, kvs, err := a.read(part)
		a.contender.read(time.Since(begin))
		if errors.Is(err, rpctypes.ErrTooManyOps) && len(part) > 1 {
			a.part = len(part) / 2
			continue
		}
		if err != nil {
			a.fail(err)
		}
		for i, key := range part {
			into[key] = kvs[i]
		}
		if a.header == nil || !a.level.snapshot {
			a.header = header
		}
		keys = keys[len(part):]
	}
}

// refresh replaces what the conflict's answer said, which has grown old in a pause. It
// costs one call for all keys.
func (a *attempt) refresh() {
	keys := slices.Sorted(maps.Keys(a.known))
	a.snapshot = snapshot{known: map[string]*mvccpb.KeyValue{}}
	a.load(keys, a.known)
}

// read reads at the pinned revision, if there is one, from whichever member is asked. Such
// a read is serializable. A member that has not come so far refuses it ("future revision").
// Then a linearizable read at the same revision makes the member catch up. What is not
// pinned is read linearizably. A pinned revision that was compacted away is of no more use,
// and counts as a conflict.
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

// get reads the keys in one call.
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
	resp, err := a.patiently(keys[0], a.client.Txn(a.options.ctx).Then(gets...).Commit)
	if err != nil {
		return nil, nil, err
	}
	return resp.Header, values(resp.Responses), nil
}

// rounds bounds how often a transaction that changes nothing is tried while Gets succeed.
const rounds = 10

// patiently makes a call that changes nothing, and repeats it while its fault passes. The
// client repeats a Get by itself, but no transaction. So a Get of a key of the call comes
// first each time. It rides out the fault for as long as the client is configured to.
func (a *attempt) patiently(key string, call func() (*v3.TxnResponse, error)) (*v3.TxnResponse, error) {
	for n := 1; ; n++ {
		resp, err := call()
		if err == nil || n == rounds || !transient(err) || a.ended() != nil {
			return resp, err
		}
		if _, err := a.client.Get(a.options.ctx, key); err != nil {
			return nil, err
		}
		pause(a.options.ctx, forever, n)
	}
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
