package main

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"
	upstream "go.etcd.io/etcd/client/v3/concurrency"

	"example.com/etcd/concurrency"
)

// library is one of the packages that are compared, as the workloads see it.
type library struct {
	name      string
	errLocked error
	session   func(c *clientv3.Client, ttl int) (session, error)
	transact  func(ctx context.Context, c *clientv3.Client, f func(stm) error, o transactOptions) error
}

// transactOptions are the options of a transaction. The levels have the same numbers in both.
type transactOptions struct {
	prefetch  []string
	isolation concurrency.Isolation
}

// session is an open session of a library and what can be made on it.
type session struct {
	lease    clientv3.LeaseID
	mutex    func(name string) mutex
	election func(name string) election
	close    func() error

	kinds // nil where the library has none
}

// kinds make other locks, see kinds.go.
type kinds struct {
	writer, reader func(name string) mutex
	permit         func(name string) mutex
	several        func(names []string) mutex
}

type mutex interface {
	Lock(ctx context.Context) error
	TryLock(ctx context.Context) error
	Unlock(ctx context.Context) error
}

type election interface {
	Campaign(ctx context.Context, value string) error
	Resign(ctx context.Context) error
}

type stm interface {
	Get(key ...string) string
	Put(key, value string, opts ...clientv3.OpOption)
}

var here = library{
	name:      "here",
	errLocked: concurrency.ErrLocked,
	session: opener(func(c *clientv3.Client, ttl int) (*concurrency.Session, error) {
		return concurrency.NewSession(c, concurrency.WithTTL(ttl))
	}, concurrency.NewMutex, concurrency.NewElection, ourKinds),
	transact: func(ctx context.Context, c *clientv3.Client, f func(stm) error, o transactOptions) error {
		_, err := concurrency.NewSTM(c, func(s concurrency.STM) error { return f(s) },
			concurrency.WithAbortContext(ctx), concurrency.WithPrefetch(o.prefetch...),
			concurrency.WithIsolation(o.isolation))
		return err
	},
}

var theirs = library{
	name:      "upstream",
	errLocked: upstream.ErrLocked,
	session: opener(func(c *clientv3.Client, ttl int) (*upstream.Session, error) {
		return upstream.NewSession(c, upstream.WithTTL(ttl))
	}, upstream.NewMutex, upstream.NewElection, theirKinds),
	transact: func(ctx context.Context, c *clientv3.Client, f func(stm) error, o transactOptions) error {
		_, err := upstream.NewSTM(c, func(s upstream.STM) error { return f(s) },
			upstream.WithAbortContext(ctx), upstream.WithPrefetch(o.prefetch...),
			upstream.WithIsolation(upstream.Isolation(o.isolation)))
		return err
	},
}

// opener makes the session of a library of its constructors.
func opener[S interface {
	Lease() clientv3.LeaseID
	Close() error
}, M mutex, E election](
	open func(c *clientv3.Client, ttl int) (S, error), newMutex func(S, string) M, newElection func(S, string) E,
	newKinds func(S) kinds,
) func(c *clientv3.Client, ttl int) (session, error) {
	return func(c *clientv3.Client, ttl int) (session, error) {
		s, err := open(c, ttl)
		if err != nil {
			return session{}, err
		}
		return session{
			lease:    s.Lease(),
			mutex:    func(name string) mutex { return newMutex(s, name) },
			election: func(name string) election { return newElection(s, name) },
			close:    s.Close,
			kinds:    newKinds(s),
		}, nil
	}
}
