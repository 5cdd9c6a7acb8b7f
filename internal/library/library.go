// Package library shows this package and upstream's behind one set of interfaces, to
// programs that run the same work on both. What only this package has is found by asking a
// value for it: [Ranged], [Owned], [Doer], [Leading], [Following], [Timed]. [Bare] and
// [BareUpstream] are a session without its interface, for what is made of it elsewhere.
package library

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
)

// Library is one of the two packages.
type Library struct {
	Name  string // internal/history has the same
	Slash string // what ResumeElection wants at the end of a name

	Open func(c *clientv3.Client, o SessionOptions) (Session, error)
	// Transact runs f as a transaction.
	Transact func(c *clientv3.Client, f func(STM) error, o TxnOptions) (*clientv3.TxnResponse, error)

	ErrLocked, ErrSessionExpired, ErrLockReleased error
	ErrElectionNotLeader, ErrElectionNoLeader     error
	// ErrCommitUnknown is nil where no error tells that the outcome is unknown.
	ErrCommitUnknown error
}

// Unknown says whether a transaction that failed may have been committed: any that failed,
// unless the package tells.
func (l Library) Unknown(err error) bool {
	return err != nil && (l.ErrCommitUnknown == nil || errors.Is(err, l.ErrCommitUnknown))
}

// SessionOptions are the options of NewSession; zero values are not passed on.
type SessionOptions struct {
	TTL    int // seconds
	Lease  clientv3.LeaseID
	Ctx    context.Context
	Margin time.Duration // this package's alone
}

// TxnOptions are the options of NewSTM; zero values are not passed on. Level counts as both
// packages do, from SerializableSnapshot on.
type TxnOptions struct {
	Level    int
	Ctx      context.Context
	Prefetch []string
	Guards   []clientv3.Cmp // this package's alone
	MaxOps   int            // likewise
}

// Session is an open session, and the constructors of what is made on it.
type Session interface {
	Client() *clientv3.Client
	Lease() clientv3.LeaseID
	Ctx() context.Context
	Done() <-chan struct{}
	Orphan()
	Close() error

	NewMutex(prefix string) Mutex
	NewLocker(prefix string) sync.Locker
	NewElection(prefix string) Election
	// ResumeElection passes the prefix on as it is, see [Library.Slash].
	ResumeElection(prefix, key string, rev int64) Election
}

// Mutex is a handle of a lock.
type Mutex interface {
	Lock(ctx context.Context) error
	TryLock(ctx context.Context) error
	Unlock(ctx context.Context) error
	IsOwner() clientv3.Cmp
	Key() string
	Header() *pb.ResponseHeader
}

// Election is a handle of an election.
type Election interface {
	Campaign(ctx context.Context, value string) error
	Proclaim(ctx context.Context, value string) error
	Resign(ctx context.Context) error
	Leader(ctx context.Context) (*clientv3.GetResponse, error)
	Observe(ctx context.Context) <-chan *clientv3.GetResponse
	Key() string
	Rev() int64
	Header() *pb.ResponseHeader
}

// STM is an attempt at a transaction.
type STM interface {
	Get(key ...string) string
	Put(key, value string, opts ...clientv3.OpOption)
	Rev(key string) int64
	Del(key string)
}

// Ranged is an attempt that reads and deletes ranges, and waits for a change.
type Ranged interface {
	Range(begin, end string) []*mvccpb.KeyValue
	RangeN(begin, end string, n int) []*mvccpb.KeyValue
	DelRange(begin, end string)
	Lookup(key string) (value string, found bool)
	Retry()
}

// Owned is a handle with a context of its ownership.
type Owned interface{ Ctx() context.Context }

// Doer is a lock that runs a function while it is held.
type Doer interface {
	Do(ctx context.Context, work func(context.Context) error) error
}

// Leading is an election that runs a function while the session leads.
type Leading interface {
	Lead(ctx context.Context, value string, work func(context.Context) error) error
}

// Following is an election that tells vacancies and why it ends.
type Following interface {
	Leaders(ctx context.Context) iter.Seq2[concurrency.Leader, error]
}

// Timed is a session that tells when it will end unless it is renewed.
type Timed interface{ Deadline() time.Time }

// Bare is a session of this package.
type Bare interface{ Bare() *concurrency.Session }
