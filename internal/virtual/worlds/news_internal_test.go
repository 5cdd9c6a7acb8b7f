package worlds

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/etcd/concurrency/internal/history"
	"example.com/etcd/concurrency/internal/library"
)

// An observer has four round trips and a quarter of a second to tell of a leader that lasts.
func TestStale(t *testing.T) {
	const line, at = "line/election-0", 200 * time.Second
	stale := func(told time.Duration, token int64, lasts time.Duration, disturbed ...span) []history.Violation {
		air := &weather{trips: []tripped{{0, time.Second}}}
		for _, s := range disturbed {
			air.disturb(s, false)
		}
		w := &world{lib: library.Here, plan: Plan{Workers: 1}}
		s := &station{world: w, weather: air}
		w.followedBy(followed{s, line, "Observe", 3, span{100 * time.Second, 900 * time.Second}})
		return w.stale(history.History{
			{Life: &history.Life{Name: line, Token: 5, Created: 90 * time.Second, Deleted: 8, Gone: at}},
			{Life: &history.Life{Name: line, Token: 7, Created: 120 * time.Second, Deleted: 9, Gone: at + lasts}},
			{Sighting: &history.Sighting{Name: line, Stream: 3, Token: 5, At: 101 * time.Second}},
			{Sighting: &history.Sighting{Name: line, Stream: 3, Token: token, At: told}},
			{Sighting: &history.Sighting{Name: line, Stream: 4, Token: 7, At: at}},
		})
	}
	const bound = 4250 * time.Millisecond
	assert.Empty(t, stale(at+bound, 7, time.Minute))
	found := stale(at+bound+1, 7, time.Minute)
	require.Len(t, found, 1)
	assert.Contains(t, found[0].Text, "had not told of token 7, which led since 3m20s, 4.25s later")
	assert.NotEmpty(t, stale(at+1, 6, time.Minute), "of another one")
	assert.Empty(t, stale(at+bound+1, 7, bound), "one that is over by then need not be told")
	assert.Empty(t, stale(at+bound+1, 7, time.Minute, span{150 * time.Second, 151 * time.Second}))
}
