package concurrency

import (
	"cmp"
	"fmt"
	"iter"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	v3 "go.etcd.io/etcd/client/v3"
)

// This file is what is known of a store, without a client or a context. The facts tell a key
// that did not exist from a key of which nothing is known:
//
//	keys    a: its entry, b: nil      b was read, and did not exist
//	spans   [q/, q5) at 9: q/1        all of it was read, so q/2 did not exist
//	                                  nothing is known of c and q7
//
// The read set of an attempt is made of facts, and so is a snapshot. A read set keeps what it
// learns first. So a function never sees two states of a key.

// unbounded is the end of the interval that reaches to the end of all keys, as in etcd.
const unbounded = "\x00"

// interval is the keys from begin on and before end. Its begin is "" where it has the first of
// all keys. An interval whose end is "" has no key.
type interval struct{ begin, end string }

// first is the first key that can lie in the interval. The servers refuse the empty key, and no
// key lies before "\x00".
func (iv interval) first() string { return cmp.Or(iv.begin, "\x00") }

// has compares as etcd does, byte by byte.
func (iv interval) has(key string) bool {
	return iv.begin <= key && (iv.end == unbounded || key < iv.end)
}

// earlier returns the end that comes first. The end of all keys is the last of all ends,
// although its text is small.
func earlier(a, b string) string {
	if a == unbounded || b != unbounded && b < a {
		return b
	}
	return a
}

// after returns the key that follows directly.
func after(key string) string { return key + "\x00" }

// name is how the interval is told to users: a key if end is "".
func (iv interval) name() string {
	if iv.end == "" {
		return iv.begin
	}
	return fmt.Sprintf("[%s, %s)", iv.begin, iv.end)
}

// want is what is asked of a server: a key if end is "", otherwise the first keys of an
// interval.
type want struct {
	interval
	limit int // of the keys of an interval; 0: as many as fit into a part
}

// most is how many keys are asked for in one call, if a part has chunk keys. The answer to an
// interval thus may end before the interval does.
func (w want) most(chunk int) int {
	if w.limit == 0 {
		return chunk
	}
	return min(w.limit, chunk)
}

// get is the call that asks for it.
func (w want) get(chunk int, opts ...v3.OpOption) (key string, all []v3.OpOption) {
	if w.end == "" {
		return w.begin, opts
	}
	return w.first(), append([]v3.OpOption{v3.WithRange(w.end), v3.WithLimit(int64(w.most(chunk)))}, opts...)
}

func (w want) op(chunk int, opts ...v3.OpOption) v3.Op {
	key, opts := w.get(chunk, opts...)
	return v3.OpGet(key, opts...)
}

// span is all keys of an interval, as they were at one revision. Without keys it says that none
// exists there.
type span struct {
	interval
	rev int64
	kvs []*mvccpb.KeyValue // in order
}

// cut returns the part of the span that lies in an interval. The part shares the slice of the
// whole, so [facts.add] clips it before anything is appended.
func (s span) cut(iv interval) span {
	s.begin, s.end = max(s.begin, iv.begin), earlier(s.end, iv.end)
	s.kvs = s.kvs[position(s.kvs, s.begin):]
	if s.end != unbounded {
		s.kvs = s.kvs[:position(s.kvs, s.end)]
	}
	return s
}

// head returns the part of the span that has its first n keys, which is all if n is 0. Behind
// the last of these keys nothing is known then, and nothing is checked.
func (s span) head(n int) span {
	if n > 0 && n < len(s.kvs) {
		s.kvs = s.kvs[:n]
		s.end = after(string(s.kvs[n-1].Key))
	}
	return s
}

// position is that of the first key that is not before key.
func position(kvs []*mvccpb.KeyValue, key string) int {
	i, _ := slices.BinarySearchFunc(kvs, key, func(kv *mvccpb.KeyValue, key string) int {
		return cmp.Compare(string(kv.Key), key)
	})
	return i
}

// facts are what is known of a store: some keys, and all keys of some intervals. A key may be
// in keys and in a span. At levels without a snapshot the two may differ.
type facts struct {
	keys  map[string]*mvccpb.KeyValue // nil values stand for keys that did not exist
	spans []span                      // in order; no two overlap
}

func newFacts() facts { return facts{keys: map[string]*mvccpb.KeyValue{}} }

// empty reports whether nothing is known. A range without keys is known, because a key may come
// to lie in it.
func (f *facts) empty() bool { return len(f.keys)+len(f.spans) == 0 }

// get returns what is known of a key, which is nil if it did not exist.
func (f *facts) get(key string) (kv *mvccpb.KeyValue, known bool) {
	// keys come first, because a key that was read alone stays as it was when a range shows
	// another value. The comparisons of the commit go by keys as well, see seen.
	if kv, known = f.keys[key]; known {
		return kv, true
	}
	s := f.spanAt(key)
	if s == nil {
		return nil, false
	}
	if i := position(s.kvs, key); i < len(s.kvs) && string(s.kvs[i].Key) == key {
		kv = s.kvs[i]
	}
	return kv, true
}

// spanAt returns the span that has the key, nil if none has.
func (f *facts) spanAt(key string) *span {
	if i := f.spanFrom(key); i < len(f.spans) && f.spans[i].has(key) {
		return &f.spans[i]
	}
	return nil
}

// spanFrom is the index of the first span that ends after the key. It is found by halving, so
// that a transaction may read many ranges. The comparison is never 0, so the search ends at the
// first span for which it is 1.
func (f *facts) spanFrom(key string) int {
	i, _ := slices.BinarySearchFunc(f.spans, key, func(s span, key string) int {
		if s.end != unbounded && s.end <= key {
			return -1
		}
		return 1
	})
	return i
}

// seen are all keys that are known one by one, and those that were shown in spans. A key may
// come twice. The single keys come last, so that a map ends with their values. The absent keys
// of a span are not among them.
func (f *facts) seen() iter.Seq2[string, *mvccpb.KeyValue] {
	return func(yield func(string, *mvccpb.KeyValue) bool) {
		for _, s := range f.spans {
			for _, kv := range s.kvs {
				if !yield(string(kv.Key), kv) {
					return
				}
			}
		}
		for key, kv := range f.keys {
			if !yield(key, kv) {
				return
			}
		}
	}
}

// learn takes in the answer to a want. What was known of a range before stays as it was.
func (f *facts) learn(w want, rev int64, resp *pb.RangeResponse) {
	if w.end == "" {
		f.keys[w.begin] = only(resp.Kvs)
		return
	}
	// If there are more keys than were asked for, nothing is known of what lies behind the last.
	s := span{w.interval, rev, resp.Kvs}
	if n := len(resp.Kvs); resp.More && n > 0 {
		s.end = after(string(resp.Kvs[n-1].Key))
	}
	// The revision is noted, because the commit compares the whole interval with it.
	f.insert(s)
}

// insert adds those parts of a span that are not known yet. The gaps between known spans are
// filled:
//
//	known      [b, d)  [f, g)
//	inserted   [a, h)
//	added      [a, b)  [d, f)  [g, h)
func (f *facts) insert(s span) {
	// begin goes from one end of a known span, or of a gap between two, to the next.
	for begin := s.begin; ; {
		i := f.spanFrom(begin)
		if i < len(f.spans) && f.spans[i].has(begin) {
			begin = f.spans[i].end
		} else {
			gap := interval{begin, s.end}
			if i < len(f.spans) {
				gap.end = earlier(gap.end, f.spans[i].begin)
			}
			f.add(i, s.cut(gap))
			begin = gap.end
		}
		if begin == unbounded || s.end != unbounded && s.end <= begin {
			return
		}
	}
}

// set changes what is known of a key. Nothing becomes known that was not before.
//
// A span is changed in place. So its slice must belong to these facts alone. [blocked.told]
// brings a snapshot up to date by it.
func (f *facts) set(key string, kv *mvccpb.KeyValue) {
	if _, known := f.keys[key]; known {
		f.keys[key] = kv
	}
	s := f.spanAt(key)
	if s == nil {
		return
	}
	i := position(s.kvs, key)
	old := i < len(s.kvs) && string(s.kvs[i].Key) == key
	switch {
	case kv == nil && old:
		s.kvs = slices.Delete(s.kvs, i, i+1)
	case kv != nil && old:
		s.kvs[i] = kv
	case kv != nil:
		s.kvs = slices.Insert(s.kvs, i, kv)
	}
}

// add puts a span at a place. It becomes a part of the one before it if both are of one
// revision and nothing lies between. The parts of a long range thus cost the commit one
// comparison. A part that lies before a known span stays apart, which costs a comparison more
// and changes nothing.
func (f *facts) add(i int, s span) {
	if i > 0 && f.spans[i-1].end == s.begin && f.spans[i-1].rev == s.rev {
		before := &f.spans[i-1]
		before.kvs, before.end = append(before.kvs, s.kvs...), s.end
		return
	}
	s.kvs = slices.Clip(s.kvs) // a later part is appended to a copy
	f.spans = slices.Insert(f.spans, i, s)
}

// only returns the key that was asked for alone, nil if it did not exist.
func only(kvs []*mvccpb.KeyValue) *mvccpb.KeyValue {
	if len(kvs) == 0 {
		return nil
	}
	return kvs[0]
}

// intervalOf returns the interval that a caller has named. A begin of "\x00" is "", because no
// key lies between. It panics if the interval has no key, because a program can't mean that.
func intervalOf(method, begin, end string) interval {
	if end != unbounded && end <= begin {
		panic(fmt.Sprintf("concurrency: %s: the begin %q is not below the end %q", method, begin, end))
	}
	if begin == "\x00" {
		begin = ""
	}
	return interval{begin, end}
}

// differences are the keys that two sets of facts show to be different. Keys may come twice. A
// new key of a range stands in the newer facts alone, and a deleted key in the older. So both
// are gone through. A key of which either knows nothing is no difference. A missing key differs
// from each entry, because its mod revision counts as 0.
func differences(x, y *facts) (keys []string) {
	for _, views := range [][2]*facts{{x, y}, {y, x}} {
		for key, kv := range views[0].seen() {
			other, known := views[1].get(key)
			if known && other.GetModRevision() != kv.GetModRevision() {
				keys = append(keys, key)
			}
		}
	}
	return keys
}
