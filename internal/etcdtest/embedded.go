package etcdtest

import (
	"net/url"
	"path/filepath"
	"testing"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// embedded is a member that runs inside the process.
type embedded struct {
	etcd *embed.Etcd
	grpc []*grpc.Server
}

// launchEmbedded starts member i inside the process.
func (c *Cluster) launchEmbedded(i int) (server, error) {
	m, srv := c.members[i], &embedded{}
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = m.name, m.dir
	client, err := url.Parse(m.client)
	if err != nil {
		return nil, err
	}
	peer, err := url.Parse(m.peer)
	if err != nil {
		return nil, err
	}
	listen, err := url.Parse(m.listen)
	if err != nil {
		return nil, err
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*listen}, []url.URL{*peer}
	cfg.InitialCluster = c.initialCluster()
	cfg.TickMs, cfg.ElectionMs = c.timing()
	cfg.UnsafeNoFsync = !c.fsync
	cfg.BcryptCost = 4 // the least: passwords in tests guard nothing
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	if m.links != nil {
		// A certificate that nobody checks, and a name by which the proxies know who calls.
		cfg.PeerTLSInfo, err = transport.SelfCert(zap.NewNop(), filepath.Join(c.dir, "cert"), nil, 1)
		if err != nil {
			return nil, err
		}
		cfg.PeerTLSInfo.ServerName = m.name
	}
	if c.config != nil {
		c.config(i, cfg)
	}
	register := cfg.ServiceRegister
	cfg.ServiceRegister = func(s *grpc.Server) {
		srv.grpc = append(srv.grpc, s)
		if register != nil {
			register(s)
		}
	}
	if srv.etcd, err = embed.StartEtcd(cfg); err != nil {
		return nil, err
	}
	return srv, nil
}

func (e *embedded) stop() {
	// Close by itself waits: for open watches to end, for a peer to take over
	// the leadership, and, in a member that never found a quorum, for ever.
	for _, s := range e.grpc {
		s.Stop()
	}
	e.etcd.Server.HardStop()
	e.etcd.Close()
}

// InProcess is a client that calls member 0 directly, without a connection, as
// etcd's own services do. It takes embedded servers.
func (c *Cluster) InProcess(tb testing.TB) *clientv3.Client {
	tb.Helper()
	m := c.members[0]
	m.mu.Lock()
	srv, ok := m.running.(*embedded)
	m.mu.Unlock()
	if !ok {
		tb.Fatal(errNotEmbedded)
	}
	client := v3client.New(srv.etcd.Server)
	tb.Cleanup(func() { client.Close() })
	return client
}
