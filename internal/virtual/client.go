package virtual

import (
	"context"
	"time"
	_ "unsafe" // for go:linkname

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// valCtxCh is the channel on which the context of a watch stream of client/v3 is never done.
// It is made when that package is initialized, outside every bubble, and whoever waits for such
// a channel keeps time from moving. A nil channel is never ready either.
//
//go:linkname valCtxCh go.etcd.io/etcd/client/v3.valCtxCh
var valCtxCh chan struct{}

func init() { valCtxCh = nil }

// dialTimeout is that of internal/etcdtest. Upstream's keep-alive takes it, and a second, for the
// life of a lease until the first answer.
const dialTimeout = 5 * time.Second

// newClient is a client as client/v3 makes it, with all that client/v3 puts around a connection,
// such as its repeating of reads. The connection is gRPC's too, but never dials: what is
// between it and a server is n.
func newClient(n *Network) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints:   []string{"http://127.0.0.1:2379"},
		DialTimeout: dialTimeout,
		Logger:      zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithChainUnaryInterceptor(func(
				ctx context.Context, method string, req, reply any,
				_ *grpc.ClientConn, _ grpc.UnaryInvoker, _ ...grpc.CallOption,
			) error {
				return n.Invoke(ctx, method, req, reply)
			}),
			grpc.WithChainStreamInterceptor(func(
				ctx context.Context, desc *grpc.StreamDesc, _ *grpc.ClientConn, method string,
				_ grpc.Streamer, _ ...grpc.CallOption,
			) (grpc.ClientStream, error) {
				return n.NewStream(ctx, desc, method)
			}),
		},
	})
}

// newBareClient is a client as the server's v3client makes it: without a connection, and
// without what client/v3 puts around one.
func newBareClient(n *Network) *clientv3.Client {
	c := clientv3.NewCtxClient(context.Background(), clientv3.WithZapLogger(zap.NewNop()))
	c.KV = clientv3.NewKVFromKVClient(etcdserverpb.NewKVClient(n), c)
	c.Lease = clientv3.NewLeaseFromLeaseClient(etcdserverpb.NewLeaseClient(n), c, time.Second)
	c.Watcher = clientv3.NewWatchFromWatchClient(etcdserverpb.NewWatchClient(n), c)
	c.Cluster = clientv3.NewClusterFromClusterClient(etcdserverpb.NewClusterClient(n), c)
	c.Auth = clientv3.NewAuthFromAuthClient(etcdserverpb.NewAuthClient(n), c)
	c.Maintenance = clientv3.NewMaintenanceFromMaintenanceClient(etcdserverpb.NewMaintenanceClient(n), c)
	return c
}
