package library

import (
	"errors"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// ErrNoSession stands for a constructor that returned neither a session nor an error.
var ErrNoSession = errors.New("neither a session nor an error")

// ErrNotThere is returned where upstream's package has no such option.
var ErrNotThere = errors.New("upstream's package has no such option")

// Upstream is upstream's package.
var Upstream = Library{
	Name: "upstream", Slash: "/", Open: openUpstream, Transact: transactUpstream,
	ErrLocked: concurrency.ErrLocked, ErrSessionExpired: concurrency.ErrSessionExpired,
	ErrLockReleased: concurrency.ErrLockReleased, ErrElectionNotLeader: concurrency.ErrElectionNotLeader,
	ErrElectionNoLeader: concurrency.ErrElectionNoLeader,
}

// upstream is a session of upstream's package.
type upstream struct{ *concurrency.Session }

// BareUpstream is a session of upstream's package, for its recipes.
type BareUpstream interface{ Bare() *concurrency.Session }

// Bare is the session of upstream's package.
func (s upstream) Bare() *concurrency.Session { return s.Session }

func (s upstream) NewMutex(prefix string) Mutex { return concurrency.NewMutex(s.Session, prefix) }

func (s upstream) NewLocker(prefix string) sync.Locker {
	return concurrency.NewLocker(s.Session, prefix)
}

func (s upstream) NewElection(prefix string) Election {
	return concurrency.NewElection(s.Session, prefix)
}

func (s upstream) ResumeElection(prefix, key string, rev int64) Election {
	return concurrency.ResumeElection(s.Session, prefix, key, rev)
}

func openUpstream(c *clientv3.Client, o SessionOptions) (Session, error) {
	if o.Margin != 0 {
		return nil, ErrNotThere
	}
	var opts []concurrency.SessionOption
	if o.TTL != 0 {
		opts = append(opts, concurrency.WithTTL(o.TTL))
	}
	if o.Lease != 0 {
		opts = append(opts, concurrency.WithLease(o.Lease))
	}
	if o.Ctx != nil {
		opts = append(opts, concurrency.WithContext(o.Ctx))
	}
	s, err := concurrency.NewSession(c, opts...)
	return opened(upstream{s}, s == nil, err)
}

func transactUpstream(c *clientv3.Client, f func(STM) error, o TxnOptions) (*clientv3.TxnResponse, error) {
	if o.Guards != nil || o.MaxOps != 0 {
		return nil, ErrNotThere
	}
	opts := []concurrency.STMOption{concurrency.WithIsolation(concurrency.Isolation(o.Level))}
	if o.Ctx != nil {
		opts = append(opts, concurrency.WithAbortContext(o.Ctx))
	}
	if o.Prefetch != nil {
		opts = append(opts, concurrency.WithPrefetch(o.Prefetch...))
	}
	return concurrency.NewSTM(c, func(s concurrency.STM) error { return f(s) }, opts...)
}

// opened keeps a nil pointer from becoming a session.
func opened(s Session, none bool, err error) (Session, error) {
	switch {
	case err != nil:
		return nil, err
	case none:
		return nil, ErrNoSession
	}
	return s, nil
}
