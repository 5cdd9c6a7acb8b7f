package concurrency

import (
	"math/rand/v2"
	"runtime"
	"testing"
	"weak"

	"github.com/stretchr/testify/require"
	v3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/etcdtest"
)

// What is sent is decided without a client: the same session and name always give
// the same transaction.
func TestJoinTransaction(t *testing.T) {
	q := newQueue(&Session{id: 0xcafe}, "name")
	require.Equal(t, "name/cafe", q.key())
	require.Equal(t, q.joinTxn("v"), q.joinTxn("v"))

	join := q.joinTxn("v")
	require.Equal(t, []v3.Cmp{v3.Compare(v3.CreateRevision("name/cafe"), "=", 0)}, join.unless)
	put, read := join.then[0], join.then[1]
	require.True(t, put.IsPut())
	require.Equal(t, "name/cafe", string(put.KeyBytes()))
	require.Equal(t, "v", string(put.ValueBytes()))
	require.True(t, read.IsGet())
	require.False(t, read.IsSerializable())
	for _, op := range append(join.els, read) {
		require.True(t, op.IsGet(), "a join that finds the key writes nothing")
		require.True(t, op.IsKeysOnly())
		require.Equal(t, "name/", string(op.KeyBytes()))
		require.Equal(t, v3.GetPrefixRangeEnd("name/"), string(op.RangeBytes()))
	}

	try := q.alone(join)
	require.Equal(t, []v3.Cmp{v3.Compare(v3.CreateRevision("name/"), "=", 0).WithPrefix()}, try.unless)
	require.Equal(t, join.then, try.then)
	require.Equal(t, join.els, try.els)
}

// Whatever the handles of a session do with their place in a line, in any order:
//
//  1. nobody is given the turn with a ticket whose deletion was decided;
//  2. a ticket that somebody waits with, or was given the turn with, is not deleted
//     as unused;
//  3. when all have gone, nothing of the place is left.
func TestPlace(t *testing.T) {
	const key = "name/1"
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		l := &lease{places: &places{of: map[string]*place{}}}
		rev, condemned, granted := int64(1), map[ticket]bool{}, map[ticket]bool{}
		waiting := 0
		for range 50 {
			now := ticket{key, rev}
			switch random.IntN(6) {
			case 0:
				l.enter(key, true)
				waiting++
			case 1:
				if waiting > 0 {
					l.exit(key, true)
					waiting--
				}
			case 2:
				if waiting > 0 && l.grant(now) {
					require.False(t, condemned[now], "1: %v", now)
					granted[now] = true
				}
			case 3: // an acquisition that failed
				if l.condemnUnused(now) {
					require.Zero(t, waiting, "2: %v", now)
					require.False(t, granted[now] && !condemned[now], "2: %v", now)
					condemned[now] = true
				}
			case 4: // Unlock
				if granted[now] {
					l.condemn(now)
					condemned[now] = true
				}
			case 5: // the deletion is answered, and the session joins again
				if condemned[now] {
					require.True(t, l.condemned(now))
					l.forget(now)
					rev++
				}
			}
		}
		for range waiting {
			l.exit(key, true)
		}
		last := ticket{key, rev}
		l.condemn(last)
		l.forget(last)
		require.Empty(t, l.places.of, "3")
	}
}

func TestPlaceOfThoseWhoDontWait(t *testing.T) {
	l := &lease{places: &places{of: map[string]*place{}}}
	l.enter("name/1", false)
	require.True(t, l.condemnUnused(ticket{"name/1", 5}), "who tries waits with nothing")
	require.False(t, l.grant(ticket{"name/1", 5}))
	l.forget(ticket{"name/1", 5})
	require.Len(t, l.places.of, 1, "a late grant must still be refused")
	l.exit("name/1", false)
	require.Empty(t, l.places.of)
}

// Sessions on one lease and one client share what they know, until none is left.
func TestPlacesOfALease(t *testing.T) {
	client := &v3.Client{}
	p := sharedOf(client).placesOf(1)
	runtime.GC()
	require.Same(t, p, sharedOf(client).placesOf(1), "they are still in use")
	require.NotSame(t, p, sharedOf(client).placesOf(2))
	require.NotSame(t, p, sharedOf(&v3.Client{}).placesOf(1))
	runtime.KeepAlive(p)
	etcdtest.Eventually(t, func() bool {
		runtime.GC()
		registry.mu.Lock()
		defer registry.mu.Unlock()
		return registry.of.of[weak.Make(client)].Value() == nil
	}, "they are forgotten")
	runtime.KeepAlive(client)
}

// What nobody refers to any more is swept out when the map grows.
func TestWeakMapSweepsItself(t *testing.T) {
	var m weakMap[int, [64]byte]
	kept := m.get(-1, func() *[64]byte { return new([64]byte) })
	for n := range 10_000 {
		if m.get(n, func() *[64]byte { return new([64]byte) }); n%100 == 0 {
			runtime.GC()
		}
		require.Less(t, len(m.of), 1000)
	}
	require.Same(t, kept, m.get(-1, nil))
}
