package virtual

import (
	"context"
	"time"
	_ "unsafe" // for go:linkname

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// valCtxCh is the channel on which the context of a watch stream of client/v3 is never done.
// It is made when that package is initialized, outside every bubble, and whoever waits for such
// a channel keeps time from moving. A nil channel is never ready either.
//
//go:linkname valCtxCh go.etcd.io/etcd/client/v3.valCtxCh
var valCtxCh chan struct{}

func init() { valCtxCh = nil }

// newClient is a client as client/v3 makes it, but for its connection, which is n, and what
// client/v3 puts around a connection: reads aren't repeated on errors.
func newClient(n *Network) *clientv3.Client {
	c := clientv3.NewCtxClient(context.Background(), clientv3.WithZapLogger(zap.NewNop()))
	c.KV = clientv3.NewKVFromKVClient(etcdserverpb.NewKVClient(n), c)
	c.Lease = clientv3.NewLeaseFromLeaseClient(etcdserverpb.NewLeaseClient(n), c, time.Second)
	c.Watcher = clientv3.NewWatchFromWatchClient(etcdserverpb.NewWatchClient(n), c)
	c.Cluster = clientv3.NewClusterFromClusterClient(etcdserverpb.NewClusterClient(n), c)
	c.Auth = clientv3.NewAuthFromAuthClient(etcdserverpb.NewAuthClient(n), c)
	c.Maintenance = clientv3.NewMaintenanceFromMaintenanceClient(etcdserverpb.NewMaintenanceClient(n), c)
	return c
}
