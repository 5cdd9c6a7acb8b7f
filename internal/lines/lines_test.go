package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, etcdtest.IgnoreServer()...) }

// cluster starts an etcd for run to find.
func cluster(t *testing.T) *clientv3.Client {
	c := etcdtest.New(t)
	t.Setenv("ENDPOINTS", strings.Join(c.Endpoints(), ","))
	return c.Client(t)
}

func session(t *testing.T, client *clientv3.Client, opts ...concurrency.SessionOption) *concurrency.Session {
	s, err := concurrency.NewSession(client, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// output is what run printed. It may be read while run goes on.
type output struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// rows are the lines of the output, with one space between the cells.
func rows(text string) []string {
	return strings.Split(strings.TrimSpace(regexp.MustCompile(` {2,}`).ReplaceAllString(text, " ")), "\n")
}

func TestATable(t *testing.T) {
	client := cluster(t)
	ctx := t.Context()
	s := session(t, client, concurrency.WithIdentity("host-1 42"))
	m := concurrency.NewMutex(s, "report")
	require.NoError(t, m.Lock(ctx))
	lease := fmt.Sprintf("%x", s.Lease())
	put := func(key, value string, opts ...clientv3.OpOption) int64 {
		resp, err := client.Put(ctx, key, value, opts...)
		require.NoError(t, err)
		return resp.Header.Revision
	}
	other := session(t, client)
	otherLease := fmt.Sprintf("%x", other.Lease())
	reader := put("report/~r/"+otherLease+"/7", "", clientv3.WithLease(other.Lease()))
	foreign := put("report/notes", "two\nlines")

	out := &output{}
	require.NoError(t, run(ctx, out, []string{"report", "free"}))
	require.Regexp(t, strings.Join([]string{
		fmt.Sprintf("^report at revision %d", foreign),
		"STATE KIND TOKEN LEASE LEFT VALUE",
		fmt.Sprintf(`owns lock or candidate %d %s \d+s of 1m0s host-1 42`, m.Rev(), lease),
		fmt.Sprintf(`1 ahead reader %d %s \d+s of 1m0s `, reader, otherLease),
		fmt.Sprintf(`in the way foreign %d none stays until deleted "/notes = two\\nlines"`, foreign),
		"",
		fmt.Sprintf("free at revision %d: nobody$", foreign),
	}, "\n"), strings.Join(rows(out.String()), "\n"))
}

func TestFollowing(t *testing.T) {
	client := cluster(t)
	first, second := session(t, client), session(t, client)
	holder, waiter := concurrency.NewMutex(first, "report"), concurrency.NewMutex(second, "report")
	require.NoError(t, holder.Lock(t.Context()))

	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	out := &output{}
	following := etcdtest.Go(func() error { return run(ctx, out, []string{"-f", "-every", "10ms", "report"}) })
	// tables waits until n tables were printed, and returns the last one.
	tables := func(n int) []string {
		t.Helper()
		var all []string
		etcdtest.Eventually(t, func() bool {
			text := out.String()
			all = regexp.MustCompile(`(?m)^\d\d:\d\d:\d\d: `).Split(text, -1)[1:]
			return len(all) >= n && strings.HasSuffix(text, "\n\n")
		}, "%d tables", n)
		require.Len(t, all, n, "a table is printed only when something has changed")
		return rows(all[n-1])
	}
	table := tables(1)
	require.Len(t, table, 3)
	require.Regexp(t, `^owns .*`+fmt.Sprint(holder.Rev())+`.* before \d\d:\d\d:\d\d`, table[2])

	waiting := etcdtest.Go(func() error { return waiter.Lock(t.Context()) })
	table = tables(2)
	require.Regexp(t, `^owns .* before \d\d:\d\d:\d\d`, table[2])
	require.Regexp(t, `^1 ahead `, table[3])
	require.NotContains(t, table[3], "before")

	require.NoError(t, holder.Unlock(t.Context()))
	require.NoError(t, waiting.Wait(t))
	table = tables(3)
	require.Len(t, table, 3)
	require.Regexp(t, `^owns .*`+fmt.Sprint(waiter.Rev()), table[2])
	require.NotContains(t, table[2], "before")

	require.NoError(t, waiter.Unlock(t.Context()))
	require.Regexp(t, `: nobody$`, tables(4)[0])
	interrupt()
	require.NoError(t, following.Wait(t), "the end of following is no error")
}

func TestFollowingGoesOnWhenEtcdIsBack(t *testing.T) {
	c := etcdtest.New(t)
	t.Setenv("ENDPOINTS", c.Endpoint(0))
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	out := &output{}
	following := etcdtest.Go(func() error {
		return run(ctx, out, []string{"-f", "-every", "10ms", "-timeout", "500ms", "report"})
	})
	printed := func(text string) {
		t.Helper()
		etcdtest.Eventually(t, func() bool { return strings.Contains(out.String(), text) }, "%q in %s", text, out)
	}
	printed(": nobody")
	c.Stop(0)
	printed("; looking again")
	require.NoError(t, c.Restart(0))
	s := session(t, c.Client(t), concurrency.WithIdentity("back"))
	require.NoError(t, concurrency.NewMutex(s, "report").Lock(t.Context()))
	printed("back")
	interrupt()
	require.NoError(t, following.Wait(t))
}

func TestACircleIsShown(t *testing.T) {
	client := cluster(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s1, s2 := session(t, client, concurrency.WithIdentity("host-1")), session(t, client)
	require.NoError(t, concurrency.NewMutex(s1, "a").Lock(ctx))
	require.NoError(t, concurrency.NewMutex(s2, "b").Lock(ctx))
	one := etcdtest.Go(func() error { return concurrency.NewMutex(s1, "b").Lock(ctx) })
	etcdtest.WaitKeys(t, client, "b/", 2)
	two := etcdtest.Go(func() error { return concurrency.NewMutex(s2, "a").Lock(ctx) })
	etcdtest.WaitKeys(t, client, "a/", 2)

	out := &output{}
	require.NoError(t, run(ctx, out, []string{"b"}))
	require.NotContains(t, out.String(), "circle", "one line alone shows none")
	require.NoError(t, run(ctx, out, []string{"a", "b"}))
	first, second := fmt.Sprintf("%x (host-1)", s1.Lease()), fmt.Sprintf("%x", s2.Lease())
	way := "  %s\n    waits in %s for %s\n    which waits in %s for %s\n\n"
	from1 := fmt.Sprintf(way, first, "b", second, "a", first)
	if s2.Lease() < s1.Lease() {
		from1 = fmt.Sprintf(way, second, "a", first, "b", second)
	}
	require.Contains(t, out.String(), "a circle, in which nobody goes on if each session is one task:\n"+from1)

	cancel()
	require.ErrorIs(t, one.Wait(t), context.Canceled)
	require.ErrorIs(t, two.Wait(t), context.Canceled)
}

func TestWhatIsLeft(t *testing.T) {
	const s = time.Second
	for text, p := range map[string]concurrency.Participant{
		"stays until deleted":    {},
		"gone by now":            {Lease: 1},
		"7s of 10s":              {Lease: 1, TTL: 10 * s, Left: 7 * s},
		"4s of 10s":              {Lease: 1, TTL: 10 * s, Left: 4 * s}, // it may be 4.9 s
		"3s of 10s, not renewed": {Lease: 1, TTL: 10 * s, Left: 3 * s},
		"0s of 1s":               {Lease: 1, TTL: s}, // rounded down, always
	} {
		require.Equal(t, text, leftOf(p))
	}
}

func TestValuesFitATable(t *testing.T) {
	line := concurrency.Line{Name: "a"}
	for value, want := range map[string]string{
		"host 1":                  "host 1",
		"\x1b[31m":                `"\x1b[31m"`,
		"tab\t":                   `"tab\t"`,
		"\xff":                    `"\xff"`,
		strings.Repeat("ä", 60):   strings.Repeat("ä", 60),
		strings.Repeat("ä", 5000): strings.Repeat("ä", 59) + "…",
	} {
		require.Equal(t, want, valueOf(line, concurrency.Participant{Value: value}))
	}
}

func TestNobodyAnswers(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and never answers
	require.NoError(t, err)
	defer listener.Close()
	t.Setenv("ENDPOINTS", listener.Addr().String())
	for _, args := range [][]string{{"a"}, {"-f", "a"}} {
		out := &output{}
		err = run(t.Context(), out, append([]string{"-timeout", "100ms"}, args...))
		require.EqualError(t, err, "no etcd answers at "+listener.Addr().String()+" within 100ms")
		require.Empty(t, out.String())
	}
}

func TestUsage(t *testing.T) {
	out := &output{}
	require.ErrorIs(t, run(t.Context(), out, []string{"-h"}), flag.ErrHelp)
	require.Equal(t, usage, out.String())
	for _, args := range [][]string{{}, {"-x", "a"}, {"-every", "0s", "a"}, {"-timeout", "-1s", "a"}} {
		require.Error(t, run(t.Context(), &output{}, args))
	}
	t.Setenv("ENDPOINTS", "")
	t.Setenv("ETCDCTL_CACERT", "/does/not/exist")
	require.Error(t, run(t.Context(), &output{}, []string{"a"}))
}
