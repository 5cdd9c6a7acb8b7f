package compat

import (
	"context"
	"errors"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	upstream "go.etcd.io/etcd/client/v3/concurrency"

	"example.com/etcd/concurrency"
)

// library is one of the two packages, as the cases see it. What their types have
// in common are the interfaces below; constructors and sentinels are fields.
type library struct {
	name string
	ours bool
	// watches is how many watches one handle has when it has settled down to wait.
	watches int

	newSession     func(c *clientv3.Client, o sessionOptions) (session, error)
	newMutex       func(s session, prefix string) mutex
	newLocker      func(s session, prefix string) sync.Locker
	newElection    func(s session, prefix string) election
	resumeElection func(s session, prefix, key string, rev int64) election
	newSTM         func(c *clientv3.Client, f func(stm) error, o stmOptions) (*clientv3.TxnResponse, error)

	errLocked, errExpired, errReleased error
	errNotLeader, errNoLeader          error
	errUnknown                         error // outcome of a commit; nil where there is none
}

type session interface {
	Client() *clientv3.Client
	Lease() clientv3.LeaseID
	Ctx() context.Context
	Done() <-chan struct{}
	Orphan()
	Close() error
}

type mutex interface {
	Lock(ctx context.Context) error
	TryLock(ctx context.Context) error
	Unlock(ctx context.Context) error
	IsOwner() clientv3.Cmp
	Key() string
	Header() *pb.ResponseHeader
}

type election interface {
	Campaign(ctx context.Context, value string) error
	Proclaim(ctx context.Context, value string) error
	Resign(ctx context.Context) error
	Leader(ctx context.Context) (*clientv3.GetResponse, error)
	Observe(ctx context.Context) <-chan *clientv3.GetResponse
	Key() string
	Rev() int64
	Header() *pb.ResponseHeader
}

type stm interface {
	Get(key ...string) string
	Put(key, value string, opts ...clientv3.OpOption)
	Rev(key string) int64
	Del(key string)
}

// sessionOptions are the options of NewSession; zero values are not passed on.
type sessionOptions struct {
	ttl   int
	lease clientv3.LeaseID
	ctx   context.Context
}

// stmOptions are the options of NewSTM; zero values are not passed on.
type stmOptions struct {
	isolation int
	ctx       context.Context
	prefetch  []string
	maxOps    int // upstream has no such option
}

// errNilSession stands for a constructor that returned neither a session nor an
// error.
var errNilSession = errors.New("neither a session nor an error")

var here = library{
	name: "here", ours: true, watches: 1,
	newSession: func(c *clientv3.Client, o sessionOptions) (session, error) {
		var opts []concurrency.SessionOption
		if o.ttl != 0 {
			opts = append(opts, concurrency.WithTTL(o.ttl))
		}
		if o.lease != 0 {
			opts = append(opts, concurrency.WithLease(o.lease))
		}
		if o.ctx != nil {
			opts = append(opts, concurrency.WithContext(o.ctx))
		}
		s, err := concurrency.NewSession(c, opts...)
		return opened(s, s == nil, err)
	},
	newMutex: func(s session, prefix string) mutex {
		return concurrency.NewMutex(s.(*concurrency.Session), prefix)
	},
	newLocker: func(s session, prefix string) sync.Locker {
		return concurrency.NewLocker(s.(*concurrency.Session), prefix)
	},
	newElection: func(s session, prefix string) election {
		return concurrency.NewElection(s.(*concurrency.Session), prefix)
	},
	resumeElection: func(s session, prefix, key string, rev int64) election {
		return concurrency.ResumeElection(s.(*concurrency.Session), prefix, key, rev)
	},
	newSTM: func(c *clientv3.Client, f func(stm) error, o stmOptions) (*clientv3.TxnResponse, error) {
		opts := []concurrency.STMOption{concurrency.WithIsolation(concurrency.Isolation(o.isolation))}
		if o.ctx != nil {
			opts = append(opts, concurrency.WithAbortContext(o.ctx))
		}
		if o.prefetch != nil {
			opts = append(opts, concurrency.WithPrefetch(o.prefetch...))
		}
		if o.maxOps != 0 {
			opts = append(opts, concurrency.WithMaxTxnOps(o.maxOps))
		}
		return concurrency.NewSTM(c, func(s concurrency.STM) error { return f(s) }, opts...)
	},
	errLocked: concurrency.ErrLocked, errExpired: concurrency.ErrSessionExpired,
	errReleased: concurrency.ErrLockReleased, errNotLeader: concurrency.ErrElectionNotLeader,
	errNoLeader: concurrency.ErrElectionNoLeader, errUnknown: concurrency.ErrCommitUnknown,
}

var theirs = library{
	name: "upstream", watches: 1,
	newSession: func(c *clientv3.Client, o sessionOptions) (session, error) {
		var opts []upstream.SessionOption
		if o.ttl != 0 {
			opts = append(opts, upstream.WithTTL(o.ttl))
		}
		if o.lease != 0 {
			opts = append(opts, upstream.WithLease(o.lease))
		}
		if o.ctx != nil {
			opts = append(opts, upstream.WithContext(o.ctx))
		}
		s, err := upstream.NewSession(c, opts...)
		return opened(s, s == nil, err)
	},
	newMutex: func(s session, prefix string) mutex {
		return upstream.NewMutex(s.(*upstream.Session), prefix)
	},
	newLocker: func(s session, prefix string) sync.Locker {
		return upstream.NewLocker(s.(*upstream.Session), prefix)
	},
	newElection: func(s session, prefix string) election {
		return upstream.NewElection(s.(*upstream.Session), prefix)
	},
	resumeElection: func(s session, prefix, key string, rev int64) election {
		return upstream.ResumeElection(s.(*upstream.Session), prefix, key, rev)
	},
	newSTM: func(c *clientv3.Client, f func(stm) error, o stmOptions) (*clientv3.TxnResponse, error) {
		opts := []upstream.STMOption{upstream.WithIsolation(upstream.Isolation(o.isolation))}
		if o.ctx != nil {
			opts = append(opts, upstream.WithAbortContext(o.ctx))
		}
		if o.prefetch != nil {
			opts = append(opts, upstream.WithPrefetch(o.prefetch...))
		}
		return upstream.NewSTM(c, func(s upstream.STM) error { return f(s) }, opts...)
	},
	errLocked: upstream.ErrLocked, errExpired: upstream.ErrSessionExpired,
	errReleased: upstream.ErrLockReleased, errNotLeader: upstream.ErrElectionNotLeader,
	errNoLeader: upstream.ErrElectionNoLeader,
}

// opened keeps a nil pointer from becoming a session that is not nil.
func opened(s session, none bool, err error) (session, error) {
	switch {
	case err != nil:
		return nil, err
	case none:
		return nil, errNilSession
	}
	return s, nil
}
