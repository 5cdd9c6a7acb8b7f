package concurrency_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// FuzzSTM runs random transactions on a real server and on a model of the store, with
// writes from outside in the middle of their attempts. These hold:
//
//  1. At levels with a snapshot, all that an attempt reads is the state of the store at
//     one moment: that of its first read or, if a conflict came directly before, that
//     of the conflict. At the other levels each key is as it was when it was read first.
//  2. Get, Lookup, Entry and a range give what was written of a key that was. Rev never does.
//  3. An attempt conflicts exactly when its level says so: a key that it read has
//     changed, or one in a range that it read has come, changed or gone, or a key that it only wrote, at SerializableSnapshot. No attempt is run
//     for nothing, and none is missing.
//  4. After a commit the store holds exactly what it held before and what was written,
//     all of it at the revision of the response.
//  5. The response has one answer for each key written, in the order in which they were
//     first written, and a read-only transaction the revision of its first read, or of
//     its last at the level that has no snapshot and checks nothing.
//  6. A function that returns an error is given it back, and nothing is written.
//  7. It costs one call for each Get or Rev that meets a key that is not known, and one
//     for each commit. A range costs one for each part that is not known. A conflict's answer makes all keys known that were read before it.
//     If a pause follows, these keys are read anew, by one call more.
//
// The input is a program, see [program]. Whatever the bytes, it means something. The
// server is the process's own, so that its revisions are known in advance.
func FuzzSTM(f *testing.F) {
	cluster := etcdtest.New(f)
	client, outside := cluster.Client(f), cluster.Client(f)
	faults := counted(f, client)
	var runs atomic.Int64
	f.Fuzz(func(t *testing.T, input []byte) {
		m := &model{
			prefix: fmt.Sprintf("%d/", runs.Add(1)), state: map[string]entry{},
			client: client, outside: outside, faults: faults,
		}
		m.begin(t)
		for p := program(input[:min(len(input), 300)]); len(p) > 0; {
			m.transaction(t, p.next())
			m.compare(t)
		}
	})
}

// program is the bytes of one input, from which transactions are taken:
//
//	header  bits 0-1: level, 2: prefetch key 0 and 1, 3: return an error,
//	        4-7: in how many attempts the outside interferes
//	length  of the steps to come, modulo 8
//	step    bits 0-2: what, 3-4: key, 5-6: another key, 7: of a range, from the one key to
//	        the other, or to the same if that comes before
//
// Bytes that are missing are zero.
type program []byte

func (p *program) byte() (b byte) {
	if len(*p) > 0 {
		b, *p = (*p)[0], (*p)[1:]
	}
	return b
}

// transaction is what one call of NewSTM is to do.
type transaction struct {
	level      int // index in levels
	prefetch   []string
	fails      bool
	interferes int // attempts
	steps      []step
}

type step struct {
	what       what
	ranged     bool
	key, other string
}

// last is the last key of the range.
func (s step) last() string { return max(s.key, s.other) }

// what a step does. Those from interferePut on are done from outside.
type what byte

const (
	get what = iota
	rev
	getBoth
	put
	del
	interferePut
	interfereDel
	interfereBoth // puts both keys, in one revision
)

func (p *program) next() transaction {
	header := p.byte()
	tx := transaction{level: int(header & 3), fails: header&8 != 0, interferes: int(header >> 4)}
	if header&4 != 0 {
		tx.prefetch = []string{"0", "1"}
	}
	for range p.byte() % 8 {
		b := p.byte()
		tx.steps = append(tx.steps, step{what(b & 7), b&128 != 0, fmt.Sprint(b >> 3 & 3), fmt.Sprint(b >> 5 & 3)})
	}
	return tx
}

// entry is a key in the model. The zero entry is a key that does not exist.
type entry struct {
	value string
	rev   int64 // of the last modification
}

// model is the part of the store under prefix, and the revision of all of it.
type model struct {
	prefix          string
	state           map[string]entry
	rev             int64
	writes          int // makes every value another
	client, outside *clientv3.Client
	faults          *fault.Faults
}

// begin learns the revision at which the program starts.
func (m *model) begin(t *testing.T) {
	resp, err := m.outside.Get(context.Background(), m.prefix)
	require.NoError(t, err)
	m.rev = resp.Header.Revision
}

// key is the key's name in the store.
func (m *model) key(k string) string { return m.prefix + k }

func (m *model) names(ks []string) []string {
	names := make([]string, len(ks))
	for i, k := range ks {
		names[i] = m.key(k)
	}
	return names
}

func (m *model) value() string {
	m.writes++
	return fmt.Sprintf("value %d", m.writes)
}

// apply carries out writes, of which empty values are deletions, in one revision.
func (m *model) apply(writes []entryOf) {
	changed := slices.ContainsFunc(writes, func(w entryOf) bool {
		return w.value != "" || m.state[w.key] != entry{}
	})
	if changed {
		m.rev++
	}
	for _, w := range writes {
		if w.value == "" {
			delete(m.state, w.key)
		} else {
			m.state[w.key] = entry{w.value, m.rev}
		}
	}
}

// entryOf is a write: a key and its new value, "" for none.
type entryOf struct {
	key, value string
	last       string // of a range that is deleted; "" for one key
}

// has reports whether the write is one of a key.
func (w entryOf) has(key string) bool { return w.key <= key && key <= max(w.key, w.last) }

// compare checks that the store is what the model says (property 4).
func (m *model) compare(t *testing.T) {
	t.Helper()
	resp, err := m.outside.Get(context.Background(), m.prefix, clientv3.WithPrefix())
	require.NoError(t, err)
	got := map[string]entry{}
	for _, kv := range resp.Kvs {
		got[string(kv.Key[len(m.prefix):])] = entry{string(kv.Value), kv.ModRevision}
	}
	require.Equal(t, m.state, got)
	require.Equal(t, m.rev, resp.Header.Revision)
}

// run is one attempt, as the model has it. What it knows of a snapshot is carried into
// the next attempt.
type run struct {
	*model
	tx    transaction
	reads map[string]entry
	wrote []entryOf // in the order of the first writing

	pin    map[string]entry // the snapshot; nil: nothing was read yet
	pinRev int64
	known  map[string]entry // what the conflict's answer held
	calls  *int

	ranges ranges
	single map[string]bool // keys that were read by themselves
}

// transaction runs one on the store and on the model, step by step.
func (m *model) transaction(t *testing.T, tx transaction) {
	calls, attempts := 0, 0
	var r *run
	m.faults.Reset()
	resp, err := concurrency.NewSTM(m.client, func(stm concurrency.STM) error {
		if attempts++; attempts > 1 {
			r.conflict(t)
		}
		last := r
		r = &run{model: m, tx: tx, reads: map[string]entry{}, single: map[string]bool{}, calls: &calls}
		if last != nil {
			r.pin, r.pinRev, r.known = last.pin, last.pinRev, last.known
			r.ranges.known = last.ranges.known
		}
		r.fetch(tx.prefetch)
		for _, s := range tx.steps {
			r.step(t, stm, s, attempts <= tx.interferes)
		}
		if tx.fails {
			return errOwn
		}
		return nil
	}, concurrency.WithIsolation(levels[tx.level].level), concurrency.WithPrefetch(m.names(tx.prefetch)...))
	if tx.fails {
		require.Same(t, errOwn, err)
		require.Nil(t, resp)
		require.Equal(t, 1, attempts)
	} else {
		require.NoError(t, err)
		r.commit(t, resp)
	}
	require.GreaterOrEqual(t, m.faults.KV(), calls, "calls: %v", m.faults)
	require.LessOrEqual(t, m.faults.KV(), calls+attempts-1, "calls: %v", m.faults)
}

// step does one thing on both.
func (r *run) step(t *testing.T, stm concurrency.STM, s step, interfere bool) {
	if s.ranged && s.what < interferePut {
		r.rangeStep(t, stm, s)
		return
	}
	switch s.what {
	case get:
		require.Equal(t, r.get(s.key), stm.Get(r.key(s.key)))
	case rev:
		r.fetch([]string{s.key})
		require.Equal(t, r.reads[s.key].rev, stm.Rev(r.key(s.key)))
	case getBoth:
		require.Equal(t, r.get(s.key, s.other), stm.Get(r.key(s.key), r.key(s.other)))
	case put:
		value := r.value()
		r.write(entryOf{key: s.key, value: value})
		stm.Put(r.key(s.key), value)
	case del:
		r.write(entryOf{key: s.key})
		stm.Del(r.key(s.key))
	default:
		if interfere {
			r.interfere(t, s)
		}
	}
}

// interfere writes from outside.
func (r *run) interfere(t *testing.T, s step) {
	writes := []entryOf{{key: s.key}}
	if s.what != interfereDel {
		writes[0].value = r.value()
	}
	if s.what == interfereBoth && s.other != s.key {
		writes = append(writes, entryOf{key: s.other, value: r.value()})
	}
	ops := make([]clientv3.Op, len(writes))
	for i, w := range writes {
		if w.value == "" {
			ops[i] = clientv3.OpDelete(r.key(w.key))
		} else {
			ops[i] = clientv3.OpPut(r.key(w.key), w.value)
		}
	}
	_, err := r.outside.Txn(context.Background()).Then(ops...).Commit()
	require.NoError(t, err)
	r.apply(writes)
}

func (r *run) get(keys ...string) string {
	w := r.written(keys[0])
	if w < 0 || len(keys) > 1 {
		r.fetch(keys)
	}
	if w >= 0 {
		return r.wrote[w].value
	}
	return r.reads[keys[0]].value
}

// written is the index of the write that counts for a key: its own, or that of a range.
func (r *run) written(key string) int {
	if i := slices.IndexFunc(r.wrote, func(w entryOf) bool { return w.key == key && w.last == "" }); i >= 0 {
		return i
	}
	return slices.IndexFunc(r.wrote, func(w entryOf) bool { return w.last != "" && w.has(key) })
}

func (r *run) write(w entryOf) {
	if i := r.written(w.key); i >= 0 && r.wrote[i].last == "" {
		r.wrote[i] = w
	} else {
		r.wrote = append(r.wrote, w)
	}
}

// fetch is where reads come from (properties 1 and 7).
func (r *run) fetch(keys []string) {
	call := false
	for _, key := range keys {
		if _, ok := r.reads[key]; ok {
			continue
		}
		r.single[key] = true
		if e, ok := r.known[key]; ok {
			r.reads[key] = e
			continue
		}
		if r.ranges.known[slot(key)] {
			r.reads[key] = r.pin[key]
			continue
		}
		if r.pin == nil || !levels[r.tx.level].snapshot {
			r.pin, r.pinRev = maps.Clone(r.state), r.rev
		}
		call = true
		r.reads[key] = r.state[key]
		if levels[r.tx.level].snapshot {
			r.reads[key] = r.pin[key]
		}
	}
	if call {
		*r.calls++
	}
}

// conflicts says whether the commit is refused (property 3).
func (r *run) conflicts() bool {
	for key, e := range r.reads {
		if levels[r.tx.level].checkReads && r.state[key].rev != e.rev {
			return true
		}
	}
	for _, w := range r.wrote {
		if r.nothing() || !levels[r.tx.level].checkBlind {
			continue
		}
		for key, e := range r.state {
			if _, read := r.reads[key]; w.has(key) && (!read || w.last != "") && e.rev > r.pinRev {
				return true
			}
		}
	}
	return false
}

// conflict checks that the attempt that has ended had to, and leaves what the next one
// starts with.
func (r *run) conflict(t *testing.T) {
	require.True(t, r.conflicts(), "another attempt for nothing")
	*r.calls++
	r.pin, r.known = nil, nil
	if levels[r.tx.level].snapshot {
		r.pin, r.pinRev, r.known = maps.Clone(r.state), r.rev, map[string]entry{}
		for key := range r.reads {
			if !r.ranges.read[slot(key)] {
				r.known[key] = r.state[key]
			}
		}
		r.ranges.carry(r.state)
	}
}

// commit checks the response and carries out the writes (properties 4 and 5).
func (r *run) commit(t *testing.T, resp *clientv3.TxnResponse) {
	require.True(t, resp.Succeeded)
	writes := r.spelled()
	require.Len(t, resp.Responses, len(writes))
	if l := levels[r.tx.level]; len(r.wrote) == 0 && !r.nothing() && (l.snapshot || !l.checkReads) {
		require.Equal(t, r.pinRev, resp.Header.Revision)
		return
	}
	require.False(t, r.conflicts(), "a conflict was missed")
	*r.calls++
	r.apply(r.effects())
	require.Equal(t, r.rev, resp.Header.Revision)
	for i, w := range writes {
		answer := resp.Responses[i]
		require.Equal(t, w.value == "", answer.GetResponseDeleteRange() != nil)
		require.Equal(t, w.value != "", answer.GetResponsePut() != nil)
	}
}
