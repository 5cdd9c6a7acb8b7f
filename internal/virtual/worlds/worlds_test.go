package worlds_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/etcd/concurrency/internal/library"
	"example.com/etcd/concurrency/internal/virtual/worlds"
)

// The binary of the tests is also the program that plays worlds, since a bubble needs a test.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "play" {
		os.Exit(worlds.Command(os.Args[2:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// TestWorld plays the world that Command asks for, or a short one.
func TestWorld(t *testing.T) {
	seed, o, evidence, ok := worlds.Given()
	if !ok {
		seed, o = 1, worlds.Options{Library: library.Here, Work: "any", Length: time.Minute}
	}
	t.Log(worlds.NewPlan(seed, o))
	r := worlds.Play(t, seed, o)
	if len(r.Violations) > 0 && evidence != "" {
		require.NoError(t, r.Keep(evidence))
	}
	if ok {
		require.NoError(t, r.Tell(os.Stdout))
		return
	}
	assert.NotEmpty(t, r.Operations)
	assert.NotEmpty(t, r.Faults)
	assert.Greater(t, r.Virtual, o.Length)
	assert.Empty(t, r.Violations)
}

// What the checks can see they see in upstream's package.
func TestUpstreamIsFound(t *testing.T) {
	total := worlds.NewReport()
	for seed := uint64(100); seed < 103; seed++ {
		r := worlds.Play(t, seed, worlds.Options{Library: library.Upstream, Work: "locks", Length: 2 * time.Minute})
		if len(r.Violations) > 0 {
			dir := t.TempDir()
			require.NoError(t, r.Keep(dir))
			for _, name := range []string{"report.txt", "history.jsonl", "trace.jsonl"} {
				assert.FileExists(t, filepath.Join(r.Violations[0].Evidence, name))
			}
		}
		total.Add(r)
	}
	assert.NotZero(t, total.Kinds["overstay"]+total.Kinds["overlap"]+total.Kinds["wait"], total.Kinds)
	var page strings.Builder
	total.Print(&page)
	assert.Contains(t, page.String(), "| Lock |")
	assert.Contains(t, page.String(), "seed 100, at ")
}

func TestCommandRefuses(t *testing.T) {
	for flags, complaint := range map[string]string{
		"-hours many":                 `HOURS is "many"`,
		"-hours -1":                   `HOURS is "-1"`,
		"-hours 0":                    `HOURS is "0"`,
		"-hours NaN":                  `HOURS is "NaN"`,
		"-seed x7":                    `SEED is "x7"`,
		"-seed -7":                    `SEED is "-7"`,
		"-upstream yes":               `UPSTREAM is "yes"`,
		"-upstream 1 -world contexts": "upstream's package can't play",
		"-world sea":                  `no world is named "sea"`,
		"more":                        `"more" is no flag`,
	} {
		var out, errs strings.Builder
		assert.Equal(t, 2, worlds.Command(strings.Fields(flags), &out, &errs), flags)
		assert.Contains(t, errs.String(), complaint)
		assert.Empty(t, out.String())
	}
}
