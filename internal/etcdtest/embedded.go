package etcdtest

import (
	"fmt"
	"net/url"
	"testing"

	"go.etcd.io/etcd/client/pkg/v3/types"
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
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	cfg.InitialCluster = c.initialCluster()
	cfg.TickMs, cfg.ElectionMs = c.timing()
	cfg.UnsafeNoFsync = !c.fsync
	cfg.BcryptCost = 4 // the least: passwords in tests guard nothing
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
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

func (e *embedded) cut(to uint64)  { e.etcd.Server.CutPeer(types.ID(to)) }
func (e *embedded) mend(to uint64) { e.etcd.Server.MendPeer(types.ID(to)) }

// embedded is the server of member i.
func (c *Cluster) embedded(i int) (*embedded, error) {
	m := c.members[i]
	m.mu.Lock()
	defer m.mu.Unlock()
	srv, ok := m.running.(*embedded)
	if !ok {
		return nil, fmt.Errorf("member %d: %w", i, errNotEmbedded)
	}
	return srv, nil
}

// InProcess is a client that calls member 0 directly, without a connection, as
// etcd's own services do. It takes embedded servers.
func (c *Cluster) InProcess(tb testing.TB) *clientv3.Client {
	tb.Helper()
	srv, err := c.embedded(0)
	if err != nil {
		tb.Fatal(err)
	}
	client := v3client.New(srv.etcd.Server)
	tb.Cleanup(func() { client.Close() })
	return client
}
