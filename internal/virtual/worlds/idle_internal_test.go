package worlds

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/etcd/concurrency/internal/history"
	"example.com/etcd/concurrency/internal/library"
)

// A waiter whose turn came when the one before it went has four round trips and a quarter of a
// second, and a round trip for each other worker of its client.
func TestIdle(t *testing.T) {
	const line, lease = "line/lock-0", 9
	workers := 1
	idle := func(returned time.Duration, disturbed ...span) []history.Violation {
		air := &weather{trips: []tripped{{0, time.Second}}}
		for _, s := range disturbed {
			air.disturb(s, true)
		}
		w := &world{lib: library.Here, plan: Plan{Workers: workers}}
		w.stations = []*station{{world: w, weather: air}}
		return w.idle(history.History{
			{Life: &history.Life{Name: line, Token: 7, Lease: lease, Created: 120 * time.Second}},
			{Life: &history.Life{Name: line, Token: 5, Created: 110 * time.Second, Deleted: 8, Gone: 200 * time.Second}},
			{Life: &history.Life{Name: line, Token: 6, Created: 111 * time.Second, Deleted: 9, Gone: 130 * time.Second}},
			{Call: &history.Call{Op: "Lock", Name: line, Lease: lease, Call: 119 * time.Second, Return: returned}},
			{Hold: &history.Hold{Name: line, Token: 7, Lease: lease, Start: returned}},
		})
	}
	assert.Empty(t, idle(204250*time.Millisecond))
	found := idle(204251 * time.Millisecond)
	require.Len(t, found, 1)
	assert.Contains(t, found[0].Text, "whose turn came at 3m20s, returned 4.251s later")
	assert.Empty(t, idle(220*time.Second, span{120 * time.Second, 126 * time.Second}), "a watch may be silent for long")
	assert.NotEmpty(t, idle(220*time.Second, span{120 * time.Second, 124 * time.Second}))
	workers = 3
	assert.Empty(t, idle(206250*time.Millisecond))
	assert.NotEmpty(t, idle(206251*time.Millisecond))

	// Nobody has a turn behind a key that stands.
	line0 := turnsOf(history.History{
		{Life: &history.Life{Name: line, Token: 5, Created: 1}}, {Life: &history.Life{Name: line, Token: 6, Created: 2}},
	})[line]
	_, ok := line0.of(history.Hold{Token: 6})
	assert.False(t, ok)
	at, ok := line0.of(history.Hold{Token: 5})
	assert.True(t, ok)
	assert.EqualValues(t, 1, at)
}

// Those of a kind hold beside each other, behind all others.
func TestTurnsOfKinds(t *testing.T) {
	const line = "line"
	life := func(token int64, kind string, gone time.Duration) history.Record {
		return history.Record{Life: &history.Life{Name: line, Token: token, Kind: kind, Deleted: 100, Gone: gone}}
	}
	all := turnsOf(history.History{life(2, "p", 50), life(3, "", 20), life(4, "p", 40), life(5, "p", 60), life(6, "p", 70)})[line]
	for most, turn := range map[int]time.Duration{0: 20, 1: 60, 2: 50, 3: 40, 4: 20} {
		at, ok := all.of(history.Hold{Token: 6, Kind: "p", Most: most})
		assert.True(t, ok)
		assert.Equal(t, turn, at, "%d at once", most)
	}
	at, ok := all.of(history.Hold{Token: 6})
	assert.True(t, ok)
	assert.EqualValues(t, 60, at, "one that excludes waits for all")
}
