package concurrency

import (
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// prefetch reads all that the options ask for, together. The rest of a long range follows
// at the same revision.
func (a *attempt) prefetch() {
	wants := a.missing(a.options.prefetch)
	for _, iv := range a.options.prefetchRanges {
		if a.known.spanAt(iv.begin) == nil {
			wants = append(wants, want{interval: iv})
		}
	}
	a.load(wants, 0, &a.reads)
	for _, iv := range a.options.prefetchRanges {
		rev := int64(0)
		if s := a.reads.spanAt(iv.begin); s != nil {
			rev = s.rev
		}
		a.scan(iv, 0, rev)
	}
}

// scan reads the interval piece by piece and lays the attempt's own writes over it. It stops
// when n keys are left then, and at the end of the interval if n is 0.
//
// At a level without a snapshot, what has to be read is read at one revision. That is the
// latest if at is 0.
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
	// The pieces are the parts of a long range, too. A call returns no more than a part holds.
	// The piece then ends behind the last key of that part, and the next one begins there.
	for rest := iv; ; {
		s := a.piece(rest, max(0, need-len(found)), &at)
		found = append(found, s.kvs...)
		if s.end == iv.end || n > 0 && len(found) >= need {
			return a.overlay(found, interval{iv.begin, s.end}, n)
		}
		rest.begin = s.end
	}
}

// piece returns what lies at the beginning of an interval: at most so many keys, and all if
// most is 0. The attempt's own deletions, its read set and the snapshot are asked first. What
// none of them knows is read from the servers, which sets at.
func (a *attempt) piece(rest interval, most int, at *int64) span {
	gap := rest // it becomes smaller until nothing in it is known, or all of it is
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
	// The read set takes no more of the snapshot than is needed. What it takes is protected.
	if s := a.known.spanAt(rest.begin); s != nil {
		a.reads.insert(s.cut(gap).head(most))
		return a.reads.spanAt(rest.begin).cut(gap)
	}
	a.load([]want{{gap, most}}, *at, &a.reads)
	s := a.reads.spanAt(rest.begin)
	*at = s.rev
	return s.cut(gap)
}

// overlay lays the attempt's own writes over what was found in an interval. It returns the
// first n keys, or all if n is 0. At a level without a snapshot, a key that was read before
// stays what it was.
func (a *attempt) overlay(found []*mvccpb.KeyValue, iv interval, n int) []*mvccpb.KeyValue {
	// Few keys are usually laid over many. Those that were found are in order already, and
	// are sorted again only if there is anything to lay over them.
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

// ask notes a range. The commit reads it back if it conflicts. Of ranges with one begin the
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
	if a.asked == nil {
		a.asked = map[string]want{}
	}
	a.asked[w.begin] = w
}
