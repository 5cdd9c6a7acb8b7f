package concurrency

import (
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// This file puts a range together, piece by piece. Each piece begins where the one before ends,
// and comes from the first of these that knows its beginning:
//
//	a deletion of a range by the attempt    no key is left there, and none is read
//	the read set                            what was read stays as it was
//	the snapshot                            its part moves to the read set, and is checked
//	the servers                             up to the next part of the first two
//
// The attempt's own writes to single keys are laid over all that in the end.

// prefetch reads all that the options ask for, together. The rest of a long range follows
// at the same revision.
func (a *attempt) prefetch() {
	wants := a.missing(a.options.prefetch)
	for _, iv := range a.options.prefetchRanges {
		// What the snapshot knows is taken by scan below, without a call.
		if a.known.spanAt(iv.begin) == nil {
			wants = append(wants, want{interval: iv})
		}
	}
	a.load(wants, 0, &a.reads)
	for _, iv := range a.options.prefetchRanges {
		// At a level without a snapshot, scan would read the rest at the latest revision.
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
// What is known of the interval is not read again. So ranges that overlap cost no more than
// the one that covers them.
//
// At a level without a snapshot, what has to be read is read at one revision. That is the
// latest if at is 0.
//
// The caller owns the slice, but not its entries.
func (a *attempt) scan(iv interval, n int, at int64) (found []*mvccpb.KeyValue) {
	// need is how many keys have to be found, so that n are left of them in any case.
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
	// Where n is 0, need is 0, which asks for all keys of the piece.
	for rest := iv; ; {
		s := a.piece(rest, max(0, need-len(found)), &at)
		found = append(found, s.kvs...)
		if s.end == iv.end || n > 0 && len(found) >= need {
			// Nothing is known of what lies behind the last piece. A write there need not be
			// the next key.
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
			// Nothing of it joins the read set, because nothing of it is read.
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
	// What else the servers are asked for is of this revision, too, at every level.
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
			// A range that the attempt has deleted shows no key that was read before.
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
		// found was put together by scan, and is no slice of the read set.
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
// longest counts. A read of that range shows the others.
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
