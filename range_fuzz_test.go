package concurrency_test

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"example.com/etcd/concurrency"
)

// This file is the part of FuzzSTM's model that knows of ranges. What is known of a store is a
// set of slots: one for each of the four keys, and one for what lies between it and the next.

const slots = 8

// slot is that of a key.
func slot(key string) int {
	i, _ := strconv.Atoi(key)
	return 2 * i
}

// keyAt is the key of a slot, false if it is one between keys.
func keyAt(slot int) (key string, ok bool) { return strconv.Itoa(slot / 2), slot%2 == 0 }

// ranges are what an attempt has read in ranges.
type ranges struct {
	read  [slots]bool
	shown [slots]bool     // those that were read and held a key then
	asked map[int]request // by the first slot
	known [slots]bool     // by the conflict's answer
}

// request is a range up to before a slot, of so many keys at most, any number if that is 0.
type request struct{ end, limit int }

// rangeStep does one thing with a range on both.
func (r *run) rangeStep(t *testing.T, stm concurrency.STM, s step) {
	begin, end := r.key(s.key), r.key(s.last())+"\x00"
	switch s.what {
	case get:
		r.requireShown(t, r.scan(s.key, s.last(), 0), stm.Range(begin, end))
	case rev:
		r.requireShown(t, r.scan(s.key, s.last(), 1), stm.RangeN(begin, end, 1))
	case getBoth:
		value, found := stm.Lookup(r.key(s.key))
		want := r.get(s.key)
		require.Equal(t, want, value)
		require.Equal(t, want != "", found)
	case put:
		gone := entryOf{key: s.key, last: s.last()}
		r.wrote = slices.DeleteFunc(r.wrote, func(w entryOf) bool {
			return gone.has(w.key) && gone.has(max(w.key, w.last))
		})
		r.wrote = append(r.wrote, gone)
		stm.DelRange(begin, end)
	case del:
		kv := stm.Entry(r.key(s.key))
		require.Equal(t, r.get(s.key), string(kv.GetValue()))
		if r.written(s.key) < 0 {
			require.Equal(t, r.reads[s.key].rev, kv.GetModRevision())
		} else {
			require.Zero(t, kv.GetModRevision())
		}
	}
}

func (r *run) requireShown(t *testing.T, want []entryOf, got []*mvccpb.KeyValue) {
	var shown []entryOf
	for _, kv := range got {
		shown = append(shown, entryOf{key: string(kv.Key[len(r.prefix):]), value: string(kv.Value)})
	}
	require.Equal(t, want, shown)
}

// nothing reports whether the attempt has read nothing.
func (r *run) nothing() bool { return len(r.reads) == 0 && !slices.Contains(r.ranges.read[:], true) }

// cleared reports whether the attempt has deleted a slot with a range.
func (r *run) cleared(at int) bool {
	return slices.ContainsFunc(r.wrote, func(w entryOf) bool {
		return w.last != "" && slot(w.key) <= at && at <= slot(w.last)
	})
}

// scan reads a range, slot by slot, and returns the first n keys that it shows.
func (r *run) scan(first, last string, n int) (found []entryOf) {
	from, end := slot(first), slot(last)+1 // the slot behind the last key is not in it
	need := r.need(first, last, n)
	r.ask(from, request{end, need})
	for p, have := from, 0; p < end && (n == 0 || have < need); {
		q := p
		switch {
		case r.cleared(p):
			p++
			continue
		case r.ranges.read[p]:
			q++
		case r.ranges.known[p]:
			for q < end && r.ranges.known[q] && !r.ranges.read[q] && !r.cleared(q) {
				q++
			}
			r.take(p, r.limited(r.pin, p, q, need-have, n))
			continue
		default:
			for q < end && !r.ranges.read[q] && !r.cleared(q) {
				q++
			}
			if r.pin == nil || !levels[r.tx.level].snapshot {
				r.pin, r.pinRev = maps.Clone(r.state), r.rev
			}
			*r.calls++
			r.take(p, r.limited(r.pin, p, q, need-have, n))
			continue
		}
		if r.ranges.shown[p] {
			have++
		}
		p = q
	}
	return r.visible(first, last, n)
}

// need is how many keys of the store have to be known for n to be left.
func (r *run) need(first, last string, n int) int {
	if n == 0 {
		return 0
	}
	in := entryOf{key: first, last: last}
	for _, w := range r.wrote {
		if w.last == "" && w.value == "" && in.has(w.key) {
			n++
		}
	}
	if !levels[r.tx.level].snapshot {
		for key, e := range r.reads {
			if r.single[key] && in.has(key) && e.rev == 0 {
				n++
			}
		}
	}
	return n
}

// limited is the end of the slots from p to before q that hold no more than limit keys.
func (r *run) limited(state map[string]entry, p, q, limit, n int) int {
	count := 0
	for i := p; i < q; i++ {
		if key, ok := keyAt(i); ok && state[key].rev != 0 {
			if count++; n > 0 && count > limit {
				return r.afterKey(state, p, limit)
			}
		}
	}
	return q
}

// afterKey is the slot behind the n-th key from p on.
func (r *run) afterKey(state map[string]entry, p, n int) int {
	for i := p; ; i++ {
		if key, ok := keyAt(i); ok && state[key].rev != 0 {
			if n--; n == 0 {
				return i + 1
			}
		}
	}
}

// take reads the slots from p to before q at the pin.
func (r *run) take(p, q int) {
	for i := p; i < q; i++ {
		r.ranges.read[i] = true
		key, ok := keyAt(i)
		if !ok {
			continue
		}
		r.ranges.shown[i] = r.pin[key].rev != 0
		if _, read := r.reads[key]; !read {
			r.reads[key] = r.pin[key]
		}
	}
}

// visible are the first n keys of a range with the attempt's own writes.
func (r *run) visible(first, last string, n int) (found []entryOf) {
	for i := slot(first); i <= slot(last) && (n == 0 || len(found) < n); i += 2 {
		key, _ := keyAt(i)
		value := r.reads[key].value
		if w := r.written(key); w >= 0 {
			value = r.wrote[w].value
		}
		if value != "" {
			found = append(found, entryOf{key: key, value: value})
		}
	}
	return found
}

func (r *run) ask(from int, q request) {
	if r.ranges.asked == nil {
		r.ranges.asked = map[int]request{}
	}
	if before, ok := r.ranges.asked[from]; ok {
		q.end = max(q.end, before.end)
		if q.limit == 0 || before.limit == 0 {
			q.limit = 0
		} else {
			q.limit = max(q.limit, before.limit)
		}
	}
	r.ranges.asked[from] = q
}

// carry leaves to the next attempt what a conflict's answer says of the ranges that were asked for.
func (g *ranges) carry(state map[string]entry) {
	var known [slots]bool
	for from, q := range g.asked {
		r := run{}
		for i := from; i < r.limited(state, from, q.end, q.limit, q.limit); i++ {
			known[i] = true
		}
	}
	g.known = known
}

// spelled are the writes as they are sent: a range without the keys that are written by themselves.
func (r *run) spelled() (writes []entryOf) {
	for _, w := range r.wrote {
		if w.last == "" {
			writes = append(writes, w)
			continue
		}
		parts := 1
		for _, single := range r.wrote {
			if single.last != "" || !w.has(single.key) {
				continue
			}
			if parts++; single.key == w.key {
				parts-- // nothing lies before it
			}
			if single.key == w.last {
				parts-- // nothing lies behind it
			}
		}
		for range parts {
			writes = append(writes, entryOf{key: w.key})
		}
	}
	return writes
}

// effects are the writes key by key.
func (r *run) effects() (writes []entryOf) {
	for i := range slots / 2 {
		key := fmt.Sprint(i)
		if w := r.written(key); w >= 0 {
			writes = append(writes, entryOf{key: key, value: r.wrote[w].value})
		}
	}
	return writes
}
