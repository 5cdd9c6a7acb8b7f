package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/etcd/concurrency/internal/history"
	"example.com/etcd/concurrency/internal/library"
)

// The child is this program again, which is the test's binary here.
func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// Records name the packages as the stations do.
func TestNames(t *testing.T) {
	assert.Equal(t, history.Here, library.Here.Name)
	assert.Equal(t, history.Upstream, library.Upstream.Name)
}

func TestParse(t *testing.T) {
	o, err := parse(strings.Fields("-duration 5s -seed 7 -upstream -fail-fast -evidence here -faults ^kill"))
	require.NoError(t, err)
	assert.Equal(t, 5*time.Second, o.duration)
	assert.Equal(t, uint64(7), o.seed)
	assert.Equal(t, "here", o.evidence)
	assert.True(t, o.upstream && o.failFast)
	var names []string
	for _, p := range chosen(o.faults) {
		for _, h := range p.harms {
			names = append(names, h.what)
		}
	}
	assert.Equal(t, []string{"kill a member", "kill the leader", "kill two of three"}, names)

	o, err = parse(nil)
	require.NoError(t, err)
	assert.NotZero(t, o.seed)
	assert.Equal(t, hands[0].harms[0].what, chosen(o.faults)[0].harms[0].what)
}

func TestParseRefuses(t *testing.T) {
	for flags, complaint := range map[string]string{
		"-duration 5ms":   "too short",
		"more":            "no flag",
		"-faults (":       "missing closing",
		"-faults tsunami": "no fault has such a name",
	} {
		_, err := parse(strings.Fields(flags))
		assert.ErrorContains(t, err, complaint, flags)
	}
}

// A short round passes, and all who should take part in it do, the child included.
func TestTorment(t *testing.T) {
	var out strings.Builder
	err := torment(t.Context(), []string{"-duration", "5s", "-grace", "20s", "-evidence", t.TempDir()}, &out)
	require.NoError(t, err, out.String())
	assert.Contains(t, out.String(), "violations: 0 here")
	for _, row := range []string{"| here |", "| upstream |", "| here transfer |", "| here NewSession |", "| here sleep |"} {
		assert.Contains(t, out.String(), row)
	}
	assert.NotContains(t, out.String(), "that was paused made 0 calls")
}
