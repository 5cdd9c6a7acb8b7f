package virtual

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/config"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	// A server grants no lease shorter than one and a half election timeouts. These
	// two, in milliseconds and ticks, make that 999 ms, so a TTL of 1 s is granted as asked for.
	// Fewer ticks a second cost less, and raft takes no fewer than two for an election.
	tick          = 333
	electionTicks = 2

	// starting is how long a start takes. An election takes what etcd draws, at most
	// three ticks, so the rest is waited for.
	starting = 2 * time.Second

	// segment is the size of a file of the log, of which etcd keeps two. Its default,
	// 64 MB, is memory here.
	segment = 2 << 20

	// commits is the pause between the transactions of the backend; etcd's is 100 ms by default.
	// Nothing is lost by a longer one, because no server is killed here.
	commits = 5 * time.Second
)

// errDown is what a client reports whose server can't be reached.
var errDown = status.Error(codes.Unavailable, `connection error: desc = "transport: Error while `+
	`dialing: dial tcp 127.0.0.1:2379: connect: connection refused"`)

// errCut is what a client reports whose connection broke under a call.
var errCut = status.Error(codes.Unavailable, "error reading from server: EOF")

// Server is a real etcd server of one member without a listener. Its methods may be called from
// any goroutine of the bubble, but for Start and Stop: those from one at a time.
type Server struct {
	dir string

	mu    sync.Mutex // guards the fields below; never held across a call
	quota int64
	life  *life // nil while stopped
}

// life is what a server is between a start and a stop.
type life struct {
	etcd    *etcdserver.EtcdServer
	methods map[string]method // by their full names
	ctx     context.Context   // ends when the server stops
	cancel  context.CancelFunc
	calls   sync.WaitGroup // those that it carries out
}

// method is a method of a service, of which one of unary and stream is set.
type method struct {
	service any
	unary   grpc.MethodHandler
	stream  grpc.StreamHandler
}

// places counts the servers of the process, which tells their folders apart.
var places atomic.Int64

// newServer makes a place for a server, in memory where the system has a folder for that. The
// name of the folder is as long in every run, and not drawn: a name that is taken would
// cost one draw more.
func newServer(quota int64) (*Server, error) {
	parent := "/dev/shm"
	if info, err := os.Stat(parent); err != nil || !info.IsDir() {
		parent = os.TempDir()
	}
	dir := filepath.Join(parent, fmt.Sprintf("virtual-%010d-%06d", os.Getpid(), places.Add(1)))
	if err := os.RemoveAll(dir); err != nil { // of a process that was killed
		return nil, err
	}
	return &Server{dir: dir, quota: quota}, os.Mkdir(dir, 0o700)
}

// Start starts the server on the data that it had before. It returns when the server
// answers, after the same virtual time at every start. Starting a running server does nothing.
func (s *Server) Start() error {
	if s.Running() {
		return nil
	}
	begin := time.Now()
	s.mu.Lock()
	quota := s.quota
	s.mu.Unlock()
	cfg, err := s.config(quota)
	if err != nil {
		return err
	}
	etcd, err := etcdserver.NewServer(cfg)
	if err != nil {
		return fmt.Errorf("virtual: start the server: %w", err)
	}
	etcd.Start()
	select {
	case <-etcd.ReadyNotify():
	case <-etcd.StopNotify():
		return fmt.Errorf("virtual: the server stopped before it was ready")
	}
	time.Sleep(starting - time.Since(begin))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life = newLife(etcd)
	return nil
}

// newLife takes in the services that etcd registers with gRPC.
func newLife(etcd *etcdserver.EtcdServer) *life {
	l := &life{etcd: etcd, methods: make(map[string]method)}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	etcdserverpb.RegisterKVServer(l, v3rpc.NewQuotaKVServer(etcd))
	etcdserverpb.RegisterWatchServer(l, v3rpc.NewWatchServer(etcd))
	etcdserverpb.RegisterLeaseServer(l, v3rpc.NewQuotaLeaseServer(etcd))
	etcdserverpb.RegisterClusterServer(l, v3rpc.NewClusterServer(etcd))
	etcdserverpb.RegisterAuthServer(l, v3rpc.NewAuthServer(etcd))
	etcdserverpb.RegisterMaintenanceServer(l, v3rpc.NewMaintenanceServer(etcd, nil))
	return l
}

// config is what embed makes of its defaults, but for the constants of this file.
func (s *Server) config(quota int64) (config.ServerConfig, error) {
	const name, address = "virtual", "http://127.0.0.1:2380"
	peer, err := url.Parse(address)
	if err != nil {
		return config.ServerConfig{}, err
	}
	d := embed.NewConfig()
	return config.ServerConfig{
		Name:                        name,
		ClientURLs:                  types.URLs(d.AdvertiseClientUrls),
		PeerURLs:                    types.URLs{*peer},
		DataDir:                     filepath.Join(s.dir, "data"),
		SnapshotCount:               d.SnapshotCount,
		SnapshotCatchUpEntries:      d.SnapshotCatchUpEntries,
		MaxSnapFiles:                d.MaxSnapFiles,
		MaxWALFiles:                 d.MaxWalFiles,
		InitialPeerURLsMap:          types.URLsMap{name: types.URLs{*peer}},
		InitialClusterToken:         d.InitialClusterToken,
		NewCluster:                  true,
		TickMs:                      tick,
		ElectionTicks:               electionTicks,
		InitialElectionTickAdvance:  d.InitialElectionTickAdvance,
		AutoCompactionMode:          d.AutoCompactionMode,
		QuotaBackendBytes:           quota,
		BackendBatchInterval:        commits,
		MaxTxnOps:                   d.MaxTxnOps,
		MaxRequestBytes:             d.MaxRequestBytes,
		MaxConcurrentStreams:        d.MaxConcurrentStreams,
		StrictReconfigCheck:         d.StrictReconfigCheck,
		AuthToken:                   d.AuthToken,
		BcryptCost:                  4, // the least: passwords here guard nothing
		TokenTTL:                    d.AuthTokenTTL,
		CompactHashCheckTime:        d.CompactHashCheckTime,
		PreVote:                     d.PreVote,
		Logger:                      zap.New(yielder{zapcore.NewNopCore()}),
		UnsafeNoFsync:               true,
		CompactionBatchLimit:        d.CompactionBatchLimit,
		CompactionSleepInterval:     d.CompactionSleepInterval,
		WatchProgressNotifyInterval: d.WatchProgressNotifyInterval,
		DowngradeCheckTime:          d.DowngradeCheckTime,
		WarningApplyDuration:        d.WarningApplyDuration,
		WarningUnaryRequestDuration: d.WarningUnaryRequestDuration,
		MaxLearners:                 d.MaxLearners,
		V2Deprecation:               d.V2DeprecationEffective(),
		ServerFeatureGate:           d.ServerFeatureGate,
		Metrics:                     d.Metrics,
	}, nil
}

// yielder is a log to which nothing is written. A server that starts again on a long log
// repeats its first proposal, and says so, without a pause until the log was applied: on one
// processor nobody else would come to run.
type yielder struct{ zapcore.Core }

// Enabled implements zapcore.Core.
func (yielder) Enabled(level zapcore.Level) bool { return level == zapcore.WarnLevel }

// Check implements zapcore.Core.
func (yielder) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if strings.HasPrefix(e.Message, "failed to publish") {
		runtime.Gosched()
	}
	return checked
}

func init() { wal.SegmentSizeBytes = segment }

// Stop ends the server: calls under way and streams break, later calls are refused. It returns
// when the data is free. Stopping a stopped server does nothing.
func (s *Server) Stop() {
	s.mu.Lock()
	l := s.life
	s.life = nil
	s.mu.Unlock()
	if l == nil {
		return
	}
	l.cancel()
	l.calls.Wait()
	l.etcd.HardStop()
}

// close stops the server and removes its data.
func (s *Server) close() error {
	s.Stop()
	return os.RemoveAll(s.dir)
}

// Running says whether the server runs.
func (s *Server) Running() bool { return s.Etcd() != nil }

// SetQuota changes the quota of the next start; see [Options].
func (s *Server) SetQuota(bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.quota = bytes
}

// Etcd is the server itself, for looks that no client can have; nil while it is stopped.
func (s *Server) Etcd() *etcdserver.EtcdServer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life == nil {
		return nil
	}
	return s.life.etcd
}

// enter gives the life that a call is carried out in, nil while the server is stopped. The
// caller calls calls.Done when the call is done.
func (s *Server) enter() *life {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life != nil {
		s.life.calls.Add(1)
	}
	return s.life
}

// RegisterService implements grpc.ServiceRegistrar.
func (l *life) RegisterService(desc *grpc.ServiceDesc, impl any) {
	for _, m := range desc.Methods {
		l.methods["/"+desc.ServiceName+"/"+m.MethodName] = method{service: impl, unary: m.Handler}
	}
	for _, m := range desc.Streams {
		l.methods["/"+desc.ServiceName+"/"+m.StreamName] = method{service: impl, stream: m.Handler}
	}
}

// call carries out a call that has one answer. The request is copied, as by a wire.
func (l *life) call(ctx context.Context, name string, req proto.Message) (proto.Message, error) {
	m, ok := l.methods[name]
	if !ok || m.unary == nil {
		return nil, unknown(name)
	}
	resp, err := m.unary(m.service, ctx, func(in any) error {
		proto.Merge(in.(proto.Message), req)
		return nil
	}, nil)
	if l.ctx.Err() != nil {
		return nil, errCut
	}
	if err != nil {
		return nil, wireError(err)
	}
	return resp.(proto.Message), nil
}

// serve carries out a stream until it ends.
func (l *life) serve(name string, stream grpc.ServerStream) error {
	m, ok := l.methods[name]
	if !ok || m.stream == nil {
		return unknown(name)
	}
	err := m.stream(m.service, stream)
	if l.ctx.Err() != nil {
		return errCut
	}
	return wireError(err)
}

func unknown(method string) error {
	return status.Errorf(codes.Unimplemented, "unknown method %s", method)
}

// wireError is a service's error as it comes over a wire.
func wireError(err error) error {
	if err == nil {
		return nil
	}
	s, ok := status.FromError(err)
	if !ok {
		s = status.FromContextError(err) // Unknown if it isn't a context's
	}
	return s.Err()
}
