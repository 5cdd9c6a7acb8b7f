package etcdtest

import (
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// dialTimeout bounds what a client does before its first call.
const dialTimeout = 5 * time.Second

// ClientConfig is what all clients here are made of, for tests that change
// something in it. A lost connection is dialled again within half a second,
// where gRPC by itself would wait up to two minutes.
func ClientConfig(endpoints ...string) clientv3.Config {
	retry := backoff.Config{
		BaseDelay:  20 * time.Millisecond,
		Multiplier: 1.6,
		Jitter:     0.2,
		MaxDelay:   500 * time.Millisecond,
	}
	return clientv3.Config{
		Endpoints:   endpoints,
		DialTimeout: dialTimeout,
		Logger:      zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           retry,
			MinConnectTimeout: dialTimeout,
		})},
	}
}

// NewClient connects to endpoints. The caller closes the client.
func NewClient(endpoints ...string) (*clientv3.Client, error) {
	return clientv3.New(ClientConfig(endpoints...))
}

// Dial connects to endpoints, such as those of a proxy, until the test ends.
func Dial(tb testing.TB, endpoints ...string) *clientv3.Client {
	tb.Helper()
	client, err := NewClient(endpoints...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { client.Close() })
	return client
}

// NewClient connects to all members. The caller closes the client.
func (c *Cluster) NewClient() (*clientv3.Client, error) { return NewClient(c.Endpoints()...) }

// Client connects to all members until the test ends. Each call gives a client
// with connections of its own.
func (c *Cluster) Client(tb testing.TB) *clientv3.Client {
	tb.Helper()
	return Dial(tb, c.Endpoints()...)
}

// MemberClient connects to member i alone until the test ends.
func (c *Cluster) MemberClient(tb testing.TB, i int) *clientv3.Client {
	tb.Helper()
	return Dial(tb, c.Endpoint(i))
}

// Dial connects to endpoints, as the function Dial does.
func (c *Cluster) Dial(tb testing.TB, endpoints ...string) *clientv3.Client {
	tb.Helper()
	return Dial(tb, endpoints...)
}
