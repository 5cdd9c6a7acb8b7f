package etcdtest

import (
	"context"
	"net"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/proxy/grpcproxy"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// GRPCProxy starts etcd's own gRPC proxy before the endpoints, until the test ends, and
// returns the URL at which clients reach it.
func GRPCProxy(tb testing.TB, endpoints ...string) string {
	tb.Helper()
	client, err := NewClient(endpoints...)
	if err != nil {
		tb.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	kv, kvDone := grpcproxy.NewKvProxy(client)
	watch, watchDone := grpcproxy.NewWatchProxy(ctx, zap.NewNop(), client)
	lease, leaseDone := grpcproxy.NewLeaseProxy(ctx, client)
	s := grpc.NewServer()
	pb.RegisterKVServer(s, kv)
	pb.RegisterWatchServer(s, watch)
	pb.RegisterLeaseServer(s, lease)
	served := Go(func() error { return s.Serve(listener) })
	tb.Cleanup(func() {
		s.Stop()
		<-served.Done()
		cancel()
		client.Close()
		<-watchDone
		<-leaseDone
		<-kvDone
	})
	return "http://" + listener.Addr().String()
}
