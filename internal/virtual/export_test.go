package virtual

import (
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver"
)

// Outside makes a client and a network as those of a bubble are, on a server that runs in
// real time. Closing it ends both, and leaves the server.
func Outside(etcd *etcdserver.EtcdServer) (client *clientv3.Client, n *Network, closing func()) {
	l := newLife(etcd)
	b := &Bubble{begin: time.Now(), server: &Server{life: l}, instants: make(map[int64]struct{})}
	client, n = b.Client("outside")
	return client, n, func() {
		client.Close()
		l.cancel()
		b.calls.Wait()
		l.calls.Wait()
	}
}
