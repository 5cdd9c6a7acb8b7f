package concurrency

import (
	"context"
	"errors"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	v3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// snapshot is what is known of the store at one revision.
type snapshot struct {
	header *pb.ResponseHeader // nil: nothing was read yet
	known  facts
}

// attempt is one run of the function. Reads fill its read set, Put and Del its write
// set; compile turns both into a transaction.
type attempt struct {
	client  *v3.Client
	options stmOptions
	level   level

	carried

	reads   facts
	asked   map[string]want   // the ranges that were asked for, by their begin
	writes  []*write          // in the order in which their keys were first written
	written map[string]*write // those of single keys, by key
	cleared []*write          // those of ranges

	met  Attempt     // for the observer
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
	chunk     int  // how many keys of a range are
	rested    bool // the transaction has made way after the conflict
	tally          // of the attempts before
	contender *contender
}

// write is a write to one key, or the deletion of a range.
type write struct {
	key, value string
	op         v3.Op
	plain      bool   // without options
	end        string // of the range; "" for one key
}

func (w *write) interval() interval { return interval{w.key, w.end} }

func (w *write) deletes() bool { return w.end != "" || w.op.IsDelete() }

// entry is the key as the attempt has written it, nil if it is deleted.
func (w *write) entry() *mvccpb.KeyValue {
	if w.deletes() {
		return nil
	}
	return &mvccpb.KeyValue{Key: []byte(w.key), Value: []byte(w.value)}
}

// errConflict ends an attempt that is to be followed by another.
var errConflict = errors.New("conflict")

// abort is the panic by which a failed read leaves the function.
type abort struct{}

func (a *attempt) run(apply func(STM) error) (resp *v3.TxnResponse, err error) {
	a.reads, a.written, a.asked = newFacts(), map[string]*write{}, map[string]want{}
	defer func() {
		a.over.Store(true)
		if a.err == nil {
			return // a panic of the function's passes through untouched
		}
		resp, err = nil, a.err
		if r := recover(); r != nil && r != (abort{}) {
			panic(r)
		}
	}()
	if a.rested {
		a.refresh()
	}
	a.prefetch()
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
	w := a.own(keys[0])
	if w == nil || len(keys) > 1 {
		a.fetch(keys)
	}
	if w != nil {
		return w.value
	}
	kv, _ := a.reads.get(keys[0])
	return string(kv.GetValue())
}

// own returns the attempt's write of the key, nil if it has not written it.
func (a *attempt) own(key string) *write {
	if w := a.written[key]; w != nil {
		return w
	}
	for _, w := range a.cleared {
		if w.interval().has(key) {
			return w
		}
	}
	return nil
}

// Lookup adds the key to the read set, unless the attempt has written it, and returns its value.
func (a *attempt) Lookup(key string) (value string, found bool) {
	kv := a.Entry(key)
	return string(kv.GetValue()), kv != nil
}

// Entry adds the key to the read set, unless the attempt has written it, and returns all of it.
func (a *attempt) Entry(key string) *mvccpb.KeyValue {
	a.check()
	if w := a.own(key); w != nil {
		return w.entry()
	}
	a.fetch([]string{key})
	kv, _ := a.reads.get(key)
	return kv
}

// Rev adds the key to the read set and returns its revision in the store.
func (a *attempt) Rev(key string) int64 {
	a.check()
	a.fetch([]string{key})
	kv, _ := a.reads.get(key)
	return kv.GetModRevision()
}

// Put adds a write to the write set, in place of one of the same key.
func (a *attempt) Put(key, val string, opts ...v3.OpOption) {
	a.write(&write{key: key, value: val, op: v3.OpPut(key, val, opts...), plain: len(opts) == 0})
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

// ended returns the error of the abort context, or of the client's end: nothing is sent
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

// blame returns the error of what has ended a call: err, unless that is a consequence of
// the abort context's end. A server that is told a deadline may notice it first.
func (a *attempt) blame(err error) error {
	if cause := a.ended(); cause != nil {
		return cause
	}
	if _, bounded := a.options.ctx.Deadline(); bounded && status.Code(err) == codes.DeadlineExceeded {
		return context.DeadlineExceeded
	}
	return err
}
