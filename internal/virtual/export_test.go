package virtual

import (
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver"
)

// Outside makes a client as those of a bubble are, with a connection or without, on a server that
// runs in real time. Closing it leaves the server.
func Outside(etcd *etcdserver.EtcdServer, bare bool) (client *clientv3.Client, closing func()) {
	l := newLife(etcd)
	b := &Bubble{begin: time.Now(), server: &Server{life: l}, instants: make(map[int64]struct{})}
	if client, _ = b.Client("outside"); bare {
		client.Close()
		client, _ = b.BareClient("outside")
	}
	return client, func() {
		client.Close()
		l.cancel()
		b.calls.Wait()
		l.calls.Wait()
	}
}
