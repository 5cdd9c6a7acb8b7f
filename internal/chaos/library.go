package main

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	upstream "go.etcd.io/etcd/client/v3/concurrency"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/history"
)

// library is one of the two packages, as the clients see it.
type library struct {
	name     string
	open     func(c *clientv3.Client, ttl int, lease clientv3.LeaseID) (session, error)
	transact func(
		ctx context.Context, c *clientv3.Client, level int, f func(stm) error, prefetch ...string,
	) (*clientv3.TxnResponse, error)
	// unknown says whether a transaction that failed may have been committed.
	unknown func(err error) bool
}

// session is an open session and what can be made on it.
type session struct {
	lease    clientv3.LeaseID
	done     <-chan struct{}
	deadline func() time.Time // nil: not told
	mutex    func(name string) mutex
	election func(name string) election
	resume   func(name, key string, rev int64) election
	orphan   func()
	close    func() error
	bare     *concurrency.Session // nil: upstream's
}

type mutex interface {
	Lock(ctx context.Context) error
	TryLock(ctx context.Context) error
	Unlock(ctx context.Context) error
	IsOwner() clientv3.Cmp
	Header() *pb.ResponseHeader
}

type election interface {
	Campaign(ctx context.Context, value string) error
	Proclaim(ctx context.Context, value string) error
	Resign(ctx context.Context) error
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

// What only this package has.
type (
	owned interface{ Ctx() context.Context }
	doer  interface {
		Do(ctx context.Context, work func(context.Context) error) error
	}
	leader interface {
		Lead(ctx context.Context, value string, work func(context.Context) error) error
	}
)

var here = library{
	name: history.Here,
	open: func(c *clientv3.Client, ttl int, lease clientv3.LeaseID) (session, error) {
		s, err := concurrency.NewSession(c, concurrency.WithTTL(ttl), concurrency.WithLease(lease))
		if err != nil {
			return session{}, err
		}
		return session{
			lease: s.Lease(), done: s.Done(), deadline: s.Deadline, orphan: s.Orphan, close: s.Close, bare: s,
			mutex:    func(name string) mutex { return concurrency.NewMutex(s, name) },
			election: func(name string) election { return concurrency.NewElection(s, name) },
			resume: func(name, key string, rev int64) election {
				return concurrency.ResumeElection(s, name, key, rev)
			},
		}, nil
	},
	transact: func(
		ctx context.Context, c *clientv3.Client, level int, f func(stm) error, prefetch ...string,
	) (*clientv3.TxnResponse, error) {
		return concurrency.NewSTM(c, func(s concurrency.STM) error { return f(s) },
			concurrency.WithAbortContext(ctx), concurrency.WithIsolation(concurrency.Isolation(level)),
			concurrency.WithPrefetch(prefetch...))
	},
	unknown: isCommitUnknown,
}

var theirs = library{
	name: history.Upstream,
	open: func(c *clientv3.Client, ttl int, lease clientv3.LeaseID) (session, error) {
		s, err := upstream.NewSession(c, upstream.WithTTL(ttl), upstream.WithLease(lease))
		if err != nil {
			return session{}, err
		}
		return session{
			lease: s.Lease(), done: s.Done(), orphan: s.Orphan, close: s.Close,
			mutex:    func(name string) mutex { return upstream.NewMutex(s, name) },
			election: func(name string) election { return upstream.NewElection(s, name) },
			resume: func(name, key string, rev int64) election {
				return upstream.ResumeElection(s, name+"/", key, rev)
			},
		}, nil
	},
	transact: func(
		ctx context.Context, c *clientv3.Client, level int, f func(stm) error, prefetch ...string,
	) (*clientv3.TxnResponse, error) {
		return upstream.NewSTM(c, func(s upstream.STM) error { return f(s) },
			upstream.WithAbortContext(ctx), upstream.WithIsolation(upstream.Isolation(level)),
			upstream.WithPrefetch(prefetch...))
	},
	unknown: func(error) bool { return true },
}

// tokenOf reads the create revision out of the comparison that both packages give.
func tokenOf(owner clientv3.Cmp) int64 { return owner.GetCompare().GetCreateRevision() }
