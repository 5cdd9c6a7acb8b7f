package fault_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// server is shared by all tests; each begins with an empty store.
var server *etcdtest.Cluster

func TestMain(m *testing.M) {
	var err error
	if server, err = etcdtest.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	server.Close()
	if err := goleak.Find(etcdtest.IgnoreServer()...); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// never is for calls that must not reach their bound.
const never = time.Minute

// wrapped is a client under faults, and one without.
func wrapped(t *testing.T) (client *clientv3.Client, f *fault.Faults, plain *clientv3.Client) {
	t.Helper()
	clean(t)
	client, plain = server.Client(t), server.Client(t)
	return client, fault.Wrap(client), plain
}

// await fails the test when ch is not closed.
func await(t *testing.T, ch <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(never):
		t.Fatalf("not within %v: %s", never, what)
	}
}

// clean empties the store.
func clean(t *testing.T) {
	t.Helper()
	_, err := server.Client(t).Delete(t.Context(), "", clientv3.WithPrefix())
	require.NoError(t, err)
}
