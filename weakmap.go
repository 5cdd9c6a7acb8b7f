package concurrency

import "weak"

// weakMap has values for as long as somebody else refers to them. The caller guards it.
type weakMap[K comparable, V any] struct {
	of    map[K]weak.Pointer[V]
	limit int // of entries, at which those without a value are swept out
}

// get returns the value of the key, and makes it if nobody refers to one any more.
//
// There is no callback that removes a dead entry. The runtime would run it on a goroutine
// that outlives the program's own. The map sweeps itself whenever its size has doubled. An
// entry therefore costs a constant time.
//
// The caller has to keep the value. Otherwise the next collection takes it.
func (m *weakMap[K, V]) get(key K, fresh func() *V) *V {
	// A key without an entry has the zero pointer, whose value is nil.
	if v := m.of[key].Value(); v != nil {
		return v
	}
	if len(m.of) >= m.limit {
		for k, p := range m.of {
			if p.Value() == nil {
				delete(m.of, k)
			}
		}
		m.limit = 2*len(m.of) + 8
	}
	if m.of == nil {
		m.of = map[K]weak.Pointer[V]{}
	}
	v := fresh()
	m.of[key] = weak.Make(v)
	return v
}
