package etcdtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"
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
		// What it calls itself is what tells the proxies who calls.
		cfg.PeerTLSInfo = transport.TLSInfo{
			CertFile: c.certFile(), KeyFile: c.certFile(), InsecureSkipVerify: true, ServerName: m.name,
		}
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

// certFile has the key and the certificate of all members, which nobody checks.
func (c *Cluster) certFile() string { return filepath.Join(c.dir, "peers.pem") }

// writeCert makes a certificate of the kind that costs least: members that part and meet
// again shake hands often.
func (c *Cluster) writeCert() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().AddDate(1, 0, 0)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	both := append(
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})...,
	)
	return os.WriteFile(c.certFile(), both, 0o600)
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
	client := v3client.New(c.Server(tb))
	tb.Cleanup(func() { client.Close() })
	return client
}

// Server is the etcd server of member 0. It takes embedded servers.
func (c *Cluster) Server(tb testing.TB) *etcdserver.EtcdServer {
	tb.Helper()
	m := c.members[0]
	m.mu.Lock()
	srv, ok := m.running.(*embedded)
	m.mu.Unlock()
	if !ok {
		tb.Fatal(errNotEmbedded)
	}
	return srv.etcd.Server
}
