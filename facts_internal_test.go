package concurrency

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Random spans of a store are inserted. These hold:
//
//  1. What is known is what a set of keys says that has been told the same.
//  2. The first that was told of a key counts, and keeps its revision.
//  3. Spans stand in order, none overlaps another, none is empty.
func TestFacts(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	name := func(i int) string { return string(rune('b' + i)) }
	const names = 12
	for range 2000 {
		f := newFacts()
		told := map[string]int64{} // the revision at which a key was told, also those in between
		for range rnd.IntN(8) {
			from, rev := rnd.IntN(names), int64(1+rnd.IntN(2))
			to := from + 1 + rnd.IntN(names-from)
			iv := interval{name(from), name(to)}
			if to == names {
				iv.end = unbounded
			}
			if from == 0 && rnd.IntN(2) == 0 {
				iv.begin = ""
			}
			var kvs []*mvccpb.KeyValue
			for i := from; i < to; i++ {
				if i%2 == 0 {
					kvs = append(kvs, &mvccpb.KeyValue{Key: []byte(name(i)), ModRevision: rev})
				}
			}
			f.insert(span{iv, rev, kvs})
			for _, key := range append([]string{"a", "~"}, letters(name, names)...) {
				if _, known := told[key]; !known && iv.has(key) {
					told[key] = rev
				}
			}
			checkSpans(t, &f)
		}
		for _, key := range append([]string{"a", "~"}, letters(name, names)...) {
			kv, known := f.get(key)
			rev, want := told[key]
			require.Equal(t, want, known, key)
			if known {
				require.Equal(t, rev, f.spanAt(key).rev, key)
			}
			exists := known && key != "a" && key != "~" && len(key) == 1 && (key[0]-'b')%2 == 0
			require.Equal(t, exists, kv != nil, key)
			if exists {
				require.Equal(t, rev, kv.ModRevision)
			}
		}
	}
}

// letters are the names, and one between each two.
func letters(name func(int) string, n int) (keys []string) {
	for i := range n {
		keys = append(keys, name(i), name(i)+"m")
	}
	return keys
}

func checkSpans(t *testing.T, f *facts) {
	for i, s := range f.spans {
		require.True(t, s.end == unbounded || s.begin < s.end)
		require.True(t, slices.IsSortedFunc(s.kvs, func(x, y *mvccpb.KeyValue) int {
			return slices.Compare(x.Key, y.Key)
		}))
		for _, kv := range s.kvs {
			require.True(t, s.has(string(kv.Key)))
		}
		if i > 0 {
			before := f.spans[i-1]
			require.NotEqual(t, unbounded, before.end)
			require.LessOrEqual(t, before.end, s.begin)
		}
	}
}
