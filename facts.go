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

// This file is what is known of a store, without a client or a context.

// unbounded is the end of the interval that reaches to the end of all keys, as in etcd.
const unbounded = "\x00"

// interval is the keys from begin on and before end. Its begin is "" where it has the first
// of all keys.
type interval struct{ begin, end string }

// first is the first key that can lie in the interval.
func (iv interval) first() string { return cmp.Or(iv.begin, "\x00") }

func (iv interval) has(key string) bool {
	return iv.begin <= key && (iv.end == unbounded || key < iv.end)
}

// earlier returns the end that comes first.
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

// most is how many keys are asked for in one call, if a part has chunk keys.
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

// span is all keys of an interval, as they were at one revision.
type span struct {
	interval
	rev int64
	kvs []*mvccpb.KeyValue // in order
}

// cut returns the part of the span that lies in an interval.
func (s span) cut(iv interval) span {
	s.begin, s.end = max(s.begin, iv.begin), earlier(s.end, iv.end)
	s.kvs = s.kvs[position(s.kvs, s.begin):]
	if s.end != unbounded {
		s.kvs = s.kvs[:position(s.kvs, s.end)]
	}
	return s
}

// head returns the part of the span that has its first n keys, which is all if n is 0.
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

// facts are what is known of a store: some keys, and all keys of some intervals.
type facts struct {
	keys  map[string]*mvccpb.KeyValue // nil values stand for keys that did not exist
	spans []span                      // in order; no two overlap
}

func newFacts() facts { return facts{keys: map[string]*mvccpb.KeyValue{}} }

func (f *facts) empty() bool { return len(f.keys)+len(f.spans) == 0 }

// get returns what is known of a key, which is nil if it did not exist.
func (f *facts) get(key string) (kv *mvccpb.KeyValue, known bool) {
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
// that a transaction may read many ranges.
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
// come twice.
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
	f.insert(s)
}

// insert adds those parts of a span that are not known yet.
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
// A span is changed in place. So its slice must belong to these facts alone.
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
// revision and nothing lies between.
func (f *facts) add(i int, s span) {
	if i > 0 && f.spans[i-1].end == s.begin && f.spans[i-1].rev == s.rev {
		before := &f.spans[i-1]
		before.kvs, before.end = append(before.kvs, s.kvs...), s.end
		return
	}
	s.kvs = slices.Clip(s.kvs) // a later part is appended to a copy
	f.spans = slices.Insert(f.spans, i, s)
}

func only(kvs []*mvccpb.KeyValue) *mvccpb.KeyValue {
	if len(kvs) == 0 {
		return nil
	}
	return kvs[0]
}

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

// differences are the keys that two sets of facts show to be different. Keys may come twice.
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
