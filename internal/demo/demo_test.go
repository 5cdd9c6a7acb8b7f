package main

import (
	"bytes"
	"context"
	"flag"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
)

// promises are the checks of a whole run, in the order of the report.
var promises = []string{
	"no count was lost",
	"never two inside",
	"tokens rose with each hold",
	"led in order of candidacy",
	"each leader was observed",
	"the deposed heard of it",
	"no money came or went",
	"every transfer counted once",
	"nothing left behind",
}

// An audience keeps what a demo prints, and does something the first time that
// a text appears in a line.
type audience struct {
	bytes.Buffer
	text string
	do   func()
}

func (a *audience) Write(p []byte) (int, error) {
	if a.do != nil && strings.Contains(string(p), a.text) {
		a.do()
		a.do = nil
	}
	return a.Buffer.Write(p)
}

// prefix is the folder of the run.
func (a *audience) prefix() string {
	_, after, _ := strings.Cut(a.String(), "all keys under ")
	prefix, _, _ := strings.Cut(after, "\n")
	return prefix
}

// verdicts are the checks in the report, "ok" or "FAILED" by promise.
func (a *audience) verdicts() map[string]string {
	verdicts := make(map[string]string)
	for line := range strings.Lines(a.String()) {
		for _, promise := range promises {
			if verdict, _, found := strings.Cut(line, promise); found {
				verdicts[promise] = strings.TrimSpace(verdict)
			}
		}
	}
	return verdicts
}

// failing gives the verdicts of a run that breaks some promises and no other.
func failing(broken ...string) map[string]string {
	verdicts := make(map[string]string)
	for _, promise := range promises {
		verdicts[promise] = "ok"
	}
	for _, promise := range broken {
		verdicts[promise] = "FAILED"
	}
	return verdicts
}

// cluster starts an etcd for run to find.
func cluster(t *testing.T) *clientv3.Client {
	c := etcdtest.New(t)
	t.Setenv("ENDPOINTS", strings.Join(c.Endpoints(), ","))
	return c.Client(t)
}

func TestRunKeepsEveryPromise(t *testing.T) {
	client := cluster(t)
	for _, key := range []string{"demo", "demo-", "demo.", "other"} {
		_, err := client.Put(t.Context(), key, "not ours")
		require.NoError(t, err)
	}
	out := &audience{}
	require.NoError(t, run(t.Context(), out, nil, newMutex), "%s", out)
	assert.Equal(t, failing(), out.verdicts())
	assert.NotContains(t, out.String(), "Acquired", "an event for -v")
	assert.NotContains(t, out.String(), "\x1b", "colour outside a terminal")
	etcdtest.WaitKeys(t, client, "", 4)
	etcdtest.WaitLeases(t, client, 0)
}

// noLock lets everybody in.
type noLock struct{}

func (noLock) Lock(context.Context) error   { return nil }
func (noLock) Unlock(context.Context) error { return nil }
func (noLock) Rev() int64                   { return 0 }

func TestBrokenLockIsFound(t *testing.T) {
	client := cluster(t)
	out := &audience{}
	broken := func(*concurrency.Session, string) lock { return noLock{} }
	err := run(t.Context(), out, nil, broken)
	require.EqualError(t, err, "3 of 9 checks failed", "%s", out)
	assert.Equal(t, failing("no count was lost", "never two inside", "tokens rose with each hold"),
		out.verdicts())
	etcdtest.WaitKeys(t, client, "", 0)
	etcdtest.WaitLeases(t, client, 0)
}

func TestMeddlingIsFound(t *testing.T) {
	client := cluster(t)
	out := &audience{text: "Attempt"}
	out.do = func() {
		for _, key := range []string{"account/1", "line/lock/1"} {
			_, err := client.Put(t.Context(), out.prefix()+key, "1000000")
			assert.NoError(t, err)
		}
	}
	err := run(t.Context(), out, []string{"-v"}, newMutex)
	require.EqualError(t, err, "3 of 9 checks failed", "%s", out)
	assert.Equal(t, failing("no money came or went", "every transfer counted once", "nothing left behind"),
		out.verdicts())
	for text, times := range map[string]int{
		"Acquired {Name:line/lock ":     workers * turns,
		"Released {Name:line/lock ":     workers * turns,
		"Acquired {Name:line/election ": candidates,
		"Lost {Name:line/election ":     candidates,
		" Ended {":                      workers + candidates + tellers,
		" counts to ":                   workers,
		" sees candidate ":              candidates,
		" has moved money ":             tellers,
	} {
		assert.Equal(t, times, strings.Count(out.String(), text), text)
	}
	assert.Greater(t, strings.Count(out.String(), " Attempt {"), tellers*transfers)
	etcdtest.WaitKeys(t, client, "", 0)
}

func TestInterruptedRunLeavesNothing(t *testing.T) {
	client := cluster(t)
	for _, text := range []string{"all keys under", "Acquired", "revokes", "moved"} {
		t.Run(text, func(t *testing.T) {
			ctx, interrupt := context.WithCancel(t.Context())
			defer interrupt()
			out := &audience{text: text, do: interrupt}
			err := run(ctx, out, []string{"-v"}, newMutex)
			require.ErrorIs(t, err, context.Canceled, "%s", out)
			assert.Equal(t, "ok", out.verdicts()["nothing left behind"])
			assert.NotContains(t, out.String(), "FAILED")
			etcdtest.WaitKeys(t, client, "", 0)
			etcdtest.WaitLeases(t, client, 0)
		})
	}
}

func TestRunStartsAnEtcdOfItsOwn(t *testing.T) {
	t.Setenv("ENDPOINTS", "")
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	out := &audience{text: "Acquired", do: interrupt}
	err := run(ctx, out, []string{"-v"}, newMutex)
	require.ErrorIs(t, err, context.Canceled, "%s", out)
	assert.Equal(t, "ok", out.verdicts()["nothing left behind"])
}

func TestClusterThatIsGoneIsNotTidy(t *testing.T) {
	c := etcdtest.New(t)
	t.Setenv("ENDPOINTS", c.Endpoint(0))
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	out := &audience{text: "Acquired"}
	out.do = func() {
		c.Stop(0)
		interrupt()
	}
	err := run(ctx, out, []string{"-v"}, newMutex)
	require.ErrorIs(t, err, context.Canceled, "%s", out)
	assert.Equal(t, "FAILED", out.verdicts()["nothing left behind"])
	assert.Contains(t, out.String(), "not known: ")
}

func TestUnreachableClusterIsNamed(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and never answers
	require.NoError(t, err)
	defer listener.Close()
	t.Setenv("ENDPOINTS", listener.Addr().String())
	out := &audience{}
	err = run(t.Context(), out, nil, newMutex)
	require.ErrorContains(t, err, "no etcd answers at "+listener.Addr().String())
	assert.Empty(t, out.String())
}

func TestUsage(t *testing.T) {
	for arg, want := range map[string]error{"-h": flag.ErrHelp, "-x": nil} {
		out := &audience{}
		err := run(t.Context(), out, []string{arg}, newMutex)
		require.Error(t, err)
		if want != nil {
			require.ErrorIs(t, err, want)
		}
		assert.Contains(t, out.String(), "ENDPOINTS")
	}
}
