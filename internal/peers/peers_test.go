package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestMain lets the test's program be the child that runs etcd.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "-serve" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := serve(ctx, os.Stdout); err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"-rtt=0,1ms", "-contenders=3", "-line=5", "-rounds=2", "-window=1s", "-libraries=^redsync$"})
	require.NoError(t, err)
	var names []string
	for _, w := range o.plan() {
		names = append(names, w.String())
	}
	require.Equal(t, []string{
		"hand-over among 3", "line of 5", "hand-over among 3, round trip 1ms", "line of 5, round trip 1ms",
	}, names)
	require.Equal(t, []string{here, "redsync"}, []string{o.chosen()[0].name, o.chosen()[1].name})
	require.True(t, o.needs(redisServer))
	require.False(t, o.needs(zooKeeper))
	for _, wrong := range []string{"more", "-rtt=fast", "-rounds=0", "-window=0s", "-contenders=two", "-workloads=("} {
		_, err = parse([]string{wrong})
		require.Error(t, err, wrong)
	}
}

// Who lacks several servers is told of all, with the packages that have them.
func TestMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	o, err := parse([]string{"-zookeeper", filepath.Join(t.TempDir(), "none.jar")})
	require.NoError(t, err)
	err = o.missing()
	require.ErrorIs(t, err, errMissing)
	for _, said := range []string{"Debian: redis-server", "Debian: default-jre-headless", "Debian: zookeeper"} {
		require.ErrorContains(t, err, said)
	}
	o, err = parse([]string{"-libraries", "upstream"})
	require.NoError(t, err)
	require.NoError(t, o.missing(), "etcd is in this program")
}

// What counts are changes of the owner before the end.
func TestTurns(t *testing.T) {
	var u turns
	end := time.Now().Add(time.Hour)
	for _, who := range []int{1, 1, 0, 0, 0, 1} {
		require.NoError(t, u.enter(who, time.Now(), end))
		require.Error(t, u.enter(who, time.Now(), end), "two own the lock")
		u.leave()
	}
	require.Equal(t, 2, u.changes)
	require.Equal(t, u.last.Sub(u.first)/2, u.sample(time.Minute).each)
	before := u.last
	require.NoError(t, u.enter(0, time.Now().Add(-time.Hour), time.Now()))
	require.Equal(t, 2, u.changes, "at the end it counts no more")
	require.Equal(t, before, u.last)
	require.GreaterOrEqual(t, u.sample(0).longest, time.Hour, "but for how long it took")
	require.Equal(t, time.Minute, new(turns).sample(time.Minute).each, "without a change")
}

func TestTables(t *testing.T) {
	of := func(times ...float64) figures { return figures{times: times, waits: times} }
	w := workload{contenders: 2, goals: map[string]float64{"upstream": 0.2, "ZooKeeper": 1}}
	r := row{workload: w, libraries: libraries[:3], figures: []figures{of(30, 60), of(100, 200), of(30, 60)}}
	line := row{workload: workload{contenders: 6, line: true}, libraries: r.libraries, figures: r.figures}
	all := tables([]row{r, line})
	require.Len(t, all, 3)
	require.Equal(t, [][]string{
		{"hand-over among 2", "45ns", "150ns", "45ns"}, {"line of 5", "45ns", "150ns", "45ns"},
	}, all[0].Rows)
	require.Equal(t, []string{
		"hand-over among 2", "0.3 (0.3 to 0.3)", "1 (1 to 1)", "upstream 0.2 missed, ZooKeeper 1",
	}, all[1].Rows[0])
	require.Equal(t, "–", all[1].Rows[1][3])
	require.Len(t, all[2].Rows, 1, "a line has one turn each")
	for _, table := range all {
		for _, cells := range table.Rows {
			require.Len(t, cells, len(table.Head))
		}
	}
	r.rtt = 5 * time.Millisecond
	require.Equal(t, "peers-rtt,\"here, 5ms\",2,4.5e-05\n", strings.SplitAfter(string(encode([]row{r, line})), "\n")[0])
}

// The two libraries that need no server of Debian's, from the flags to the page.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	page, out := filepath.Join(dir, "page.md"), filepath.Join(dir, "out")
	require.NoError(t, os.WriteFile(page, []byte("<!-- peers: begin -->\n<!-- peers: end -->\n"), 0o644))
	var text strings.Builder
	require.NoError(t, run(t.Context(), []string{
		"-libraries=^upstream$", "-rounds=2", "-window=200ms", "-warm=1ms", "-rtt=0,1ms", "-contenders=2", "-line=3",
		"-data=" + dir, "-out=" + out, "-update=" + page,
	}, &text))
	for _, said := range []string{"without fsync", "go.etcd.io/etcd/client/v3", "line of 3, round trip 1ms"} {
		require.Contains(t, text.String(), said)
	}
	written, err := os.ReadFile(page)
	require.NoError(t, err)
	require.Contains(t, string(written), "| hand-over among 2 | ")
	require.Contains(t, string(written), "peers-rtt.svg)")
	points, err := os.ReadFile(filepath.Join(out, "peers.csv"))
	require.NoError(t, err)
	require.Equal(t, 4, strings.Count(string(points), "\n"))
	left, err := filepath.Glob(filepath.Join(dir, "peers-*"))
	require.NoError(t, err)
	require.Empty(t, left, "the servers' data")
}

// A run that is called off leaves no server behind.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("called off")
	cancel(cause)
	dir := t.TempDir()
	require.Error(t, run(ctx, []string{"-libraries=upstream", "-data=" + dir}, new(strings.Builder)))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}
