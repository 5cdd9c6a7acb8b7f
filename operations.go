package concurrency

import (
	"fmt"
	"maps"
	"math"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	v3 "go.etcd.io/etcd/client/v3"
)

// run runs the function. It returns nil if the attempt can be committed. A failed read leaves
// the function by the panic of [attempt.fail], which ends in run. So all that is read before
// the function runs is read in run, too.
//
// The function runs on the goroutine of NewSTM's caller, so runtime.Goexit strands nobody.
func (a *attempt) run(apply func(STM) error) (err error) {
	a.reads, a.written = newFacts(), map[string]*write{}
	defer func() {
		// This is reached after a panic and after Goexit, too. The STM is of no use then.
		a.over.Store(true)
		if a.err == nil {
			return // a panic of the function's passes through untouched
		}
		err = a.err // a function that has recovered the panic of fail may have returned nil
		// A function that meets a failed read may panic by itself. Its own panic goes on.
		if r := recover(); r != nil && r != (abort{}) {
			panic(r)
		}
	}()
	if a.madeWay {
		a.refresh()
	}
	// What is read here fails as the function's own reads do.
	a.prefetch()
	return apply(a)
}

// Get adds the keys to the read set and returns the value of the first. If the attempt
// itself has written that key, the value is the one that was written.
func (a *attempt) Get(keys ...string) string {
	a.check()
	if len(keys) == 0 {
		return ""
	}
	w := a.own(keys[0])
	// Several keys all join the read set, those that the attempt has written included.
	var read *mvccpb.KeyValue
	if w == nil || len(keys) > 1 {
		read = a.fetch(keys...)
	}
	if w != nil {
		return w.value
	}
	return string(read.GetValue())
}

// Rev adds the key to the read set and returns its revision in the store.
func (a *attempt) Rev(key string) int64 {
	a.check()
	// The attempt's own writes don't count here, because they have no revision yet.
	return a.fetch(key).GetModRevision()
}

// Lookup returns the value of a key. It adds the key to the read set, unless the attempt has
// written it.
func (a *attempt) Lookup(key string) (value string, found bool) {
	kv := a.Entry(key)
	return string(kv.GetValue()), kv != nil
}

// Entry returns all that is stored with a key. It adds the key to the read set, unless the
// attempt has written it.
func (a *attempt) Entry(key string) *mvccpb.KeyValue {
	a.check()
	if w := a.own(key); w != nil {
		return w.entry()
	}
	// The caller is given the read set's own entry. The commit compares with its mod revision.
	return a.fetch(key)
}

// Range adds the range to the read set and returns its keys.
func (a *attempt) Range(begin, end string) []*mvccpb.KeyValue {
	iv := intervalOf("Range", begin, end)
	a.check()
	return a.scan(iv, 0, 0)
}

// RangeN adds the range to the read set, up to the last key that it returns.
func (a *attempt) RangeN(begin, end string, n int) []*mvccpb.KeyValue {
	iv := intervalOf("RangeN", begin, end)
	// 0 would ask for all keys, see [attempt.scan], and no program means that by RangeN.
	if n <= 0 {
		panic(fmt.Sprintf("concurrency: RangeN: %d is no number of keys", n))
	}
	a.check()
	return a.scan(iv, min(n, math.MaxInt/2), 0) // scan adds to it, and must not overflow
}

// Put adds a write to the write set, in place of one of the same key.
func (a *attempt) Put(key, val string, opts ...v3.OpOption) {
	a.write(&write{key: key, value: val, op: v3.OpPut(key, val, opts...), plain: len(opts) == 0})
}

// Del adds a deletion to the write set, in place of a write of the same key.
func (a *attempt) Del(key string) { a.write(&write{key: key, op: v3.OpDelete(key)}) }

// write takes the place of an earlier write to the same key. It finds that write by the map, so
// that thousands of writes cost linear time.
func (a *attempt) write(w *write) {
	a.check()
	if before := a.written[w.key]; before != nil {
		// The write keeps its place in the order. By it a program matches the responses.
		*before = *w
		return
	}
	a.written[w.key] = w
	a.writes = append(a.writes, w)
}

// DelRange adds the deletion of a range to the write set. Writes to its keys are dropped.
func (a *attempt) DelRange(begin, end string) {
	iv := intervalOf("DelRange", begin, end)
	a.check()
	// The last write of a key counts. Single writes that come later stay beside the range, and
	// the commit leaves them out of it. An earlier deletion of a range is dropped only if the
	// new range covers it. Where two deletions overlap, both are sent. The servers allow that
	// (checkIntervals in server/etcdserver/api/v3rpc/key.go).
	gone := func(w *write) bool {
		return iv.has(w.key) && (w.end == "" || earlier(w.end, iv.end) == w.end)
	}
	a.writes = slices.DeleteFunc(a.writes, gone)
	a.cleared = slices.DeleteFunc(a.cleared, gone)
	maps.DeleteFunc(a.written, func(_ string, w *write) bool { return gone(w) })
	// The operations are made by ops, at the commit. By then all single writes are known.
	w := &write{key: iv.begin, end: iv.end}
	a.writes, a.cleared = append(a.writes, w), append(a.cleared, w)
}
