//go:build !race

package compat

// raceEnabled says whether the race detector is there.
const raceEnabled = false
