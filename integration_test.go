package concurrency_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// Most tests wait, for a lease or an answer, so that more of them can run at
	// once than there are processors. It can be overruled from outside.
	fuzzing := flag.Lookup("test.fuzz").Value.String() != "" // each worker has a server of its own
	if parallel := flag.Lookup("test.parallel"); !fuzzing && parallel.Value.String() == parallel.DefValue {
		parallel.Value.Set("8")
	}
	goleak.VerifyTestMain(suite{m}, etcdtest.IgnoreServer()...)
}

// suite runs the tests and stops the shared server before goleak looks.
type suite struct{ *testing.M }

func (s suite) Run() int {
	defer closeShared()
	code := s.M.Run()
	if left := leftovers(); len(left) > 0 {
		fmt.Fprintln(os.Stderr, "left behind:", strings.Join(left, ", "))
		return max(code, 1)
	}
	return code
}

// shared is the server that the tests of this package share. It is started by the
// first test that asks for it.
var shared struct {
	sync.Mutex
	cluster *etcdtest.Cluster
}

// server is the shared server, of one member. Tests that change it, or count all
// that happens to it, start one of their own with etcdtest.New.
func server(tb testing.TB) *etcdtest.Cluster {
	tb.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.cluster == nil {
		c, err := etcdtest.Start()
		require.NoError(tb, err)
		shared.cluster = c
	}
	return shared.cluster
}

func closeShared() {
	if shared.cluster != nil {
		shared.cluster.Close()
	}
}

// leftovers lists the keys that a lease holds on the shared server, each of which
// has the name of its test in it. What goes away in the background has some time.
func leftovers() (names []string) {
	if shared.cluster == nil {
		return nil
	}
	client, err := shared.cluster.NewClient()
	if err != nil {
		return []string{err.Error()}
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		names = nil
		resp, err := client.Get(ctx, "", clientv3.WithPrefix(), clientv3.WithKeysOnly())
		if err != nil {
			return []string{err.Error()}
		}
		for _, kv := range resp.Kvs {
			if kv.Lease != 0 {
				names = append(names, string(kv.Key))
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return names
		}
		if len(names) == 0 {
			return nil
		}
	}
}

// client is a client of the shared server, for this test alone.
func client(tb testing.TB) *clientv3.Client {
	tb.Helper()
	return server(tb).Client(tb)
}

// session is a session that is closed at the end of the test, unless the test has
// done so.
func session(
	tb testing.TB, client *clientv3.Client, opts ...concurrency.SessionOption,
) *concurrency.Session {
	tb.Helper()
	s, err := concurrency.NewSession(client, opts...)
	require.NoError(tb, err)
	tb.Cleanup(func() { s.Close() })
	return s
}

var prefixes atomic.Int64

// prefix is a name that no other test has, nor another run of this one.
func prefix(tb testing.TB) string {
	tb.Helper()
	name := strings.NewReplacer("/", ".", " ", "_").Replace(tb.Name())
	return fmt.Sprintf("%s-%d", name, prefixes.Add(1))
}

// counted puts faults, and counters of calls, between the test and its client. The
// test must be the only user of the client, and have no sessions on it yet.
func counted(tb testing.TB, client *clientv3.Client) *fault.Faults {
	tb.Helper()
	f := fault.Wrap(client)
	tb.Cleanup(f.Clear)
	return f
}

// ended fails the test if the channel is not closed in time.
func ended(tb testing.TB, done <-chan struct{}, msg string, args ...any) {
	tb.Helper()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		require.FailNow(tb, "not within 30 s: "+fmt.Sprintf(msg, args...))
	}
}
