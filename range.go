package concurrency

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	v3 "go.etcd.io/etcd/client/v3"
)

// intervalOf returns the interval that a caller has named. A begin of "\x00" is "", because
// no key lies between.
func intervalOf(method, begin, end string) interval {
	if end != unbounded && end <= begin {
		panic(fmt.Sprintf("concurrency: %s: the begin %q is not below the end %q", method, begin, end))
	}
	if begin == "\x00" {
		begin = ""
	}
	return interval{begin, end}
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
	if n <= 0 {
		panic(fmt.Sprintf("concurrency: RangeN: %d is no number of keys", n))
	}
	a.check()
	return a.scan(iv, n, 0)
}

// scan reads the interval piece by piece, up to the n-th key that is left when the attempt's
// own writes are laid over it, or to its end if n is 0. At a level without a snapshot, what
// has to be read is read at one revision, the latest if at is 0.
func (a *attempt) scan(iv interval, n int, at int64) (found []*mvccpb.KeyValue) {
	need := n
	if n > 0 {
		for key, w := range a.written {
			if w.deletes() && iv.has(key) {
				need++ // it may be one of those that are read
			}
		}
	}
	if n > 0 && !a.level.snapshot {
		for key, kv := range a.reads.keys {
			if kv == nil && iv.has(key) {
				need++ // it may have come since
			}
		}
	}
	a.ask(want{iv, need})
	for rest := iv; ; {
		s := a.piece(rest, max(0, need-len(found)), &at)
		found = append(found, s.kvs...)
		if s.end == iv.end || n > 0 && len(found) >= need {
			return a.overlay(found, interval{iv.begin, s.end}, n)
		}
		rest.begin = s.end
	}
}

// piece returns what lies at the beginning of an interval, at most so many keys, and all if
// most is 0. It is taken from where it is known: the attempt's own deletions, its read set,
// the snapshot, the servers, which sets at.
func (a *attempt) piece(rest interval, most int, at *int64) span {
	gap := rest
	for _, w := range a.cleared {
		if w.interval().has(rest.begin) {
			return span{interval: interval{rest.begin, earlier(rest.end, w.end)}}
		}
		if w.key > rest.begin {
			gap.end = earlier(gap.end, w.key)
		}
	}
	if s := a.reads.spanAt(rest.begin); s != nil {
		return s.cut(gap).head(most)
	}
	if i := a.reads.spanFrom(rest.begin); i < len(a.reads.spans) {
		gap.end = earlier(gap.end, a.reads.spans[i].begin)
	}
	if s := a.known.spanAt(rest.begin); s != nil {
		a.reads.insert(s.cut(gap).head(most))
		return a.reads.spanAt(rest.begin).cut(gap)
	}
	a.load([]want{{gap, most}}, *at, &a.reads)
	s := a.reads.spanAt(rest.begin)
	*at = s.rev
	return s.cut(gap)
}

// overlay lays the attempt's own writes over what was found in an interval, and returns the
// first n keys, all if n is 0. At a level without a snapshot, a key that was read before
// stays what it was.
func (a *attempt) overlay(found []*mvccpb.KeyValue, iv interval, n int) []*mvccpb.KeyValue {
	over := map[string]*mvccpb.KeyValue{} // nil values stand for keys that are gone
	if !a.level.snapshot {
		for key, kv := range a.reads.keys {
			if iv.has(key) && a.own(key) == nil {
				over[key] = kv
			}
		}
	}
	for key, w := range a.written {
		if iv.has(key) {
			over[key] = w.entry()
		}
	}
	if len(over) > 0 {
		found = slices.DeleteFunc(found, func(kv *mvccpb.KeyValue) bool {
			_, ok := over[string(kv.Key)]
			return ok
		})
		for _, kv := range over {
			if kv != nil {
				found = append(found, kv)
			}
		}
		slices.SortFunc(found, func(x, y *mvccpb.KeyValue) int {
			return strings.Compare(string(x.Key), string(y.Key))
		})
	}
	if n > 0 && len(found) > n {
		found = found[:n]
	}
	return found
}

// ask notes a range, for the commit to read back if it conflicts. Of those with one begin the
// longest counts.
func (a *attempt) ask(w want) {
	if before, ok := a.asked[w.begin]; ok {
		if earlier(w.end, before.end) == w.end {
			w.end = before.end
		}
		if w.limit != 0 {
			w.limit = max(w.limit, before.limit)
		}
		if before.limit == 0 {
			w.limit = 0
		}
	}
	a.asked[w.begin] = w
}

// DelRange adds the deletion of a range to the write set, in place of all writes to its keys.
func (a *attempt) DelRange(begin, end string) {
	iv := intervalOf("DelRange", begin, end)
	a.check()
	gone := func(w *write) bool {
		return iv.has(w.key) && (w.end == "" || earlier(w.end, iv.end) == w.end)
	}
	a.writes = slices.DeleteFunc(a.writes, gone)
	a.cleared = slices.DeleteFunc(a.cleared, gone)
	maps.DeleteFunc(a.written, func(_ string, w *write) bool { return gone(w) })
	w := &write{key: iv.begin, end: iv.end}
	a.writes, a.cleared = append(a.writes, w), append(a.cleared, w)
}

// ops are the operations of a write. A server refuses to put a key that the same transaction
// deletes with a range. So the deletion leaves out the keys that are written by themselves.
func (a *attempt) ops(w *write) (ops []v3.Op) {
	if w.end == "" {
		return []v3.Op{w.op}
	}
	var apart []string
	for key := range a.written {
		if w.interval().has(key) {
			apart = append(apart, key)
		}
	}
	begin := w.interval().first()
	for _, key := range slices.Sorted(slices.Values(apart)) {
		if begin < key {
			ops = append(ops, v3.OpDelete(begin, v3.WithRange(key)))
		}
		begin = after(key)
	}
	if w.end == unbounded || begin < w.end {
		ops = append(ops, v3.OpDelete(begin, v3.WithRange(w.end)))
	}
	return ops
}
