package worlds

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/etcd/concurrency/internal/library"
)

// In a thousand plans everything that there is stands in some, and nothing that upstream's
// package can't do in any of upstream's.
func TestPlans(t *testing.T) {
	for _, lib := range []library.Library{library.Here, library.Upstream} {
		seen, clear := map[string]bool{}, 0
		for seed := range uint64(1000) {
			p := NewPlan(seed, Options{Library: lib})
			require.NotEmpty(t, p.Kinds)
			for _, k := range p.Kinds {
				seen[k.Name] = true
				require.False(t, k.Here && lib.Name == library.Upstream.Name, k.Name)
			}
			for _, r := range p.Residents {
				seen[r.Name] = true
				require.False(t, r.Here && lib.Name == library.Upstream.Name, r.Name)
			}
			for _, name := range p.Faults {
				seen[name] = true
			}
			if len(p.Faults)+len(p.Blows) == 0 && !p.Mild {
				clear++
				for _, s := range p.Strangers {
					require.False(t, s.disturbs, s.name)
				}
			}
			require.Contains(t, p.String(), p.Work)
		}
		for _, k := range Kinds {
			assert.Equal(t, !k.Here || lib.Name == library.Here.Name, seen[k.Name], k.Name)
		}
		for _, r := range Residents {
			assert.Equal(t, !r.Here || lib.Name == library.Here.Name, seen[r.Name], r.Name)
		}
		assert.InDelta(t, 230, clear, 40, "worlds without faults: a sixth, and those of some sets")
		assert.True(t, seen["request-late"] && seen["refused-PermissionDenied"])
	}
}

func TestASeedIsOnePlan(t *testing.T) {
	o := Options{Library: library.Here}
	assert.Equal(t, NewPlan(7, o).String(), NewPlan(7, o).String())
	assert.NotEqual(t, NewPlan(7, o).String(), NewPlan(8, o).String())
	o.Work, o.Length = "transactions", time.Minute
	p := NewPlan(7, o)
	assert.Equal(t, time.Minute, p.Length)
	for _, k := range p.Kinds {
		assert.True(t, strings.HasPrefix(k.Name, "transaction/"), k.Name)
	}
}

func TestDrawKind(t *testing.T) {
	rnd, drawn := rand.New(rand.NewPCG(1, 1)), map[string]int{}
	for range 4000 {
		drawn[drawKind(rnd, []Kind{{Name: "often", Weight: 3}, {Name: "seldom", Weight: 1}, {Name: "never"}}).Name]++
	}
	assert.InDelta(t, 3000, drawn["often"], 200)
	assert.Zero(t, drawn["never"])
}

func TestWeather(t *testing.T) {
	w := &weather{trips: []tripped{{}}}
	w.disturb(span{10, 20}, true)
	w.disturb(span{30, 40}, false)
	w.trips = append(w.trips, tripped{50, 5}, tripped{60, 0})

	assert.True(t, w.fair(span{21, 49}, 0), "other calls are hit, renewals are not")
	assert.False(t, w.fair(span{15, 49}, 0))
	assert.False(t, w.fair(span{5, 15}, 0))
	assert.False(t, w.fair(span{21, 55}, 4), "too long a round trip")
	assert.False(t, w.fair(span{55, 70}, 4), "which began before")
	assert.True(t, w.fair(span{21, 55}, 5))
	assert.True(t, w.fair(span{61, 99}, 0))

	assert.EqualValues(t, 10, w.clearest(span{20, 40}), "other calls are hit")
	assert.EqualValues(t, 39, w.clearest(span{41, 80}), "round trips are no harm")
	w.hush(span{80, 90})
	assert.True(t, w.fair(span{61, 99}, 0), "the other link is there")
	assert.True(t, w.undisturbed(span{61, 99}))
	assert.EqualValues(t, 38, w.clearest(span{61, 99}))
	assert.EqualValues(t, 19, w.calmest(span{61, 99}, 5))
	assert.True(t, w.hushed(span{61, 99}))
	assert.False(t, w.hushed(span{61, 79}))
	w.silences = nil

	assert.EqualValues(t, 20, w.calmest(span{10, 35}, 5))
	assert.EqualValues(t, 60, w.calmest(span{0, 100}, 5), "from 40 on")
	assert.EqualValues(t, 35, w.calmest(span{0, 100}, 4), "from 65 on, when what was under way has arrived")
	assert.Zero(t, w.calmest(span{32, 35}, 5))
}

// A hasty world has one lock, calls that take a while, and no worker but one on each client.
func TestAHastyPlan(t *testing.T) {
	for _, lib := range []library.Library{library.Here, library.Upstream} {
		o := Options{Library: lib, Work: "haste"}
		require.NoError(t, Playable(o))
		for seed := range uint64(100) {
			p := NewPlan(seed, o)
			require.True(t, p.Hasty)
			require.NotEmpty(t, p.Kinds)
			require.NotEmpty(t, p.Trips)
			require.Equal(t, 1, p.Locks)
			require.Equal(t, 1, p.Workers)
			for _, trip := range p.Trips {
				require.GreaterOrEqual(t, trip.max, 10, trip.name)
			}
		}
	}
}

// A mild world has room for a renewal that is made again, and strangers who disturb nobody.
func TestAMildPlan(t *testing.T) {
	o := Options{Library: library.Here, Work: "mild"}
	for seed := range uint64(100) {
		p := NewPlan(seed, o)
		require.True(t, p.Mild)
		require.True(t, p.refusals())
		require.Empty(t, p.Faults)
		require.Empty(t, p.Blows)
		require.NotEmpty(t, p.Trips)
		require.GreaterOrEqual(t, p.TTLs[0], 3)
		for _, trip := range p.Trips {
			require.LessOrEqual(t, trip.max, 10, trip.name)
		}
	}
}

// A dense world is played only if it is asked for. It has the work of ranges, and no faults.
func TestADensePlan(t *testing.T) {
	o := Options{Library: library.Here}
	for seed := range uint64(100) {
		require.False(t, NewPlan(seed, o).Dense)
	}
	o.Work = "dense ranges"
	require.NoError(t, Playable(o))
	seen := map[string]bool{}
	for seed := range uint64(100) {
		p := NewPlan(seed, o)
		require.True(t, p.Dense)
		require.Empty(t, p.Faults)
		require.Empty(t, p.Blows)
		require.LessOrEqual(t, p.Think, 10*time.Millisecond)
		for _, k := range p.Kinds {
			seen[k.Name] = true
		}
	}
	for _, k := range Kinds {
		assert.Equal(t, ranged(k.Name), seen[k.Name], k.Name)
	}
}
