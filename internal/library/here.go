package library

import (
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
)

// Here is this package.
var Here = Library{
	Name: "here", Open: openHere, Transact: transactHere,
	ErrLocked: concurrency.ErrLocked, ErrSessionExpired: concurrency.ErrSessionExpired,
	ErrLockReleased: concurrency.ErrLockReleased, ErrElectionNotLeader: concurrency.ErrElectionNotLeader,
	ErrElectionNoLeader: concurrency.ErrElectionNoLeader, ErrCommitUnknown: concurrency.ErrCommitUnknown,
}

// here is a session of this package.
type here struct{ *concurrency.Session }

// Bare is the session of this package, for what only this package has.
func (s here) Bare() *concurrency.Session { return s.Session }

func (s here) NewMutex(prefix string) Mutex { return concurrency.NewMutex(s.Session, prefix) }

func (s here) NewLocker(prefix string) sync.Locker { return concurrency.NewLocker(s.Session, prefix) }

func (s here) NewElection(prefix string) Election { return concurrency.NewElection(s.Session, prefix) }

func (s here) ResumeElection(prefix, key string, rev int64) Election {
	return concurrency.ResumeElection(s.Session, prefix, key, rev)
}

func openHere(c *clientv3.Client, o SessionOptions) (Session, error) {
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
	if o.Margin != 0 {
		opts = append(opts, concurrency.WithSafetyMargin(o.Margin))
	}
	s, err := concurrency.NewSession(c, opts...)
	return opened(here{s}, s == nil, err)
}

func transactHere(c *clientv3.Client, f func(STM) error, o TxnOptions) (*clientv3.TxnResponse, error) {
	opts := []concurrency.STMOption{concurrency.WithIsolation(concurrency.Isolation(o.Level))}
	if o.Ctx != nil {
		opts = append(opts, concurrency.WithAbortContext(o.Ctx))
	}
	if o.Prefetch != nil {
		opts = append(opts, concurrency.WithPrefetch(o.Prefetch...))
	}
	if o.Guards != nil {
		opts = append(opts, concurrency.WithGuard(o.Guards...))
	}
	if o.MaxOps != 0 {
		opts = append(opts, concurrency.WithMaxTxnOps(o.MaxOps))
	}
	return concurrency.NewSTM(c, func(s concurrency.STM) error { return f(s) }, opts...)
}
