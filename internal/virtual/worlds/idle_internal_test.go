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
// second.
func TestIdle(t *testing.T) {
	const line, lease = "line/lock-0", 9
	idle := func(returned time.Duration, disturbed ...span) []history.Violation {
		air := &weather{trips: []tripped{{0, time.Second}}}
		for _, s := range disturbed {
			air.disturb(s, true)
		}
		w := &world{lib: library.Here}
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

	// Nobody has a turn behind a key that stands.
	line0 := turnsOf(history.History{
		{Life: &history.Life{Name: line, Token: 5, Created: 1}}, {Life: &history.Life{Name: line, Token: 6, Created: 2}},
	})[line]
	_, ok := line0.of(6)
	assert.False(t, ok)
	at, ok := line0.of(5)
	assert.True(t, ok)
	assert.EqualValues(t, 1, at)
}
