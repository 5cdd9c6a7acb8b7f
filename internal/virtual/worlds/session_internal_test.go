package worlds

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"example.com/etcd/concurrency/internal/library"
)

// A session that was lost though nothing hindered its renewals is told of. One on a lease that was taken
// over is excused until its first renewal was answered, if there was little time for that or some trouble.
func TestUnfounded(t *testing.T) {
	const life = 6 * time.Second
	mild := true
	lost := func(given bool, after time.Duration, trouble func(*weather)) bool {
		air := &weather{trips: []tripped{{0, 600 * time.Millisecond}}}
		trouble(air)
		w := &world{lib: library.Here, plan: Plan{Mild: mild}}
		opened := 100 * time.Second
		s := &stay{since: opened, life: life, ttl: life, given: given}
		w.endings = []ending{{&station{world: w, weather: air}, opened + after, s}}
		return len(w.unfounded()) > 0
	}
	none := func(*weather) {}
	refused := func(w *weather) { w.disturb(span{101 * time.Second, 102 * time.Second}, false) }
	silent := func(w *weather) { w.hush(span{101 * time.Second, 102 * time.Second}) }
	renewals := func(w *weather) { w.disturb(span{101 * time.Second, 102 * time.Second}, true) }

	assert.True(t, lost(false, life, none))
	assert.False(t, lost(false, life, renewals))
	assert.True(t, lost(false, life, refused), "of renewals nothing was refused for too long")
	assert.False(t, lost(true, 2*time.Second, none), "three round trips and a quarter of a second")
	assert.True(t, lost(true, 3*time.Second, none))
	assert.False(t, lost(true, 3*time.Second, refused), "too little was left")
	assert.False(t, lost(true, 3*time.Second, silent))
	assert.True(t, lost(true, life, refused), "a renewal was answered")
	mild = false
	assert.True(t, lost(true, 3*time.Second, refused), "no renewal was hindered")
}
