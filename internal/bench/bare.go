package main

import (
	"context"
	"errors"
	"strconv"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/library"
)

// What is compared with here is no library: nothing is checked, repeated or cleaned up, and
// any fault breaks it. It shows what etcd and its client cost by themselves.

// bare is the least that a free lock can cost: its two writes.
var bare = bareLibrary(func(k bareKey) library.Mutex { return k })

// bareLine is the least that a lock with a line can cost, with the calls of a hand-over.
var bareLine = bareLibrary(func(k bareKey) library.Mutex { return &barePlace{bareKey: k} })

type bareKey struct {
	library.Mutex // nil: what is not used here panics

	client *clientv3.Client
	prefix string
	key    string
	lease  clientv3.LeaseID
}

func bareLibrary(newMutex func(bareKey) library.Mutex) library.Library {
	return library.Library{
		Name: "bare",
		Open: func(c *clientv3.Client, o library.SessionOptions) (library.Session, error) {
			s, err := library.Upstream.Open(c, o)
			return bareSession{s, newMutex}, err
		},
	}
}

// bareSession is upstream's, of which only the lease and the client are used.
type bareSession struct {
	library.Session

	newMutex func(bareKey) library.Mutex
}

func (s bareSession) NewMutex(name string) library.Mutex {
	lease, prefix := s.Lease(), name+"/"
	return s.newMutex(bareKey{
		client: s.Client(), prefix: prefix, key: prefix + strconv.FormatInt(int64(lease), 16), lease: lease,
	})
}

func (s bareSession) NewElection(name string) library.Election {
	return bareCandidate{lock: s.NewMutex(name)}
}

func (b bareKey) Lock(ctx context.Context) error {
	_, err := b.client.Put(ctx, b.key, "", clientv3.WithLease(b.lease))
	return err
}

func (b bareKey) TryLock(ctx context.Context) error { return b.Lock(ctx) }

func (b bareKey) Unlock(ctx context.Context) error {
	_, err := b.client.Delete(ctx, b.key)
	return err
}

// bareCandidate leads with the calls of a lock: a value makes none of them dearer.
type bareCandidate struct {
	library.Election // nil, likewise

	lock library.Mutex
}

func (b bareCandidate) Campaign(ctx context.Context, _ string) error { return b.lock.Lock(ctx) }
func (b bareCandidate) Resign(ctx context.Context) error             { return b.lock.Unlock(ctx) }

// barePlace keeps its watch from one wait to the next.
type barePlace struct {
	bareKey
	watched string
	events  clientv3.WatchChan
	unwatch context.CancelFunc
}

// newest selects the newest two keys of a line, of those no newer than rev.
func newest(rev int64) []clientv3.OpOption {
	return []clientv3.OpOption{
		clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(2),
		clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortDescend), clientv3.WithMaxCreateRev(rev),
	}
}

func (b *barePlace) Lock(ctx context.Context) error {
	resp, err := b.client.Txn(ctx).Then(
		clientv3.OpPut(b.key, "", clientv3.WithLease(b.lease)), clientv3.OpGet(b.prefix, newest(0)...),
	).Commit()
	if err != nil {
		return err
	}
	joined, seen := resp.Header.Revision, resp.Header.Revision
	line := resp.Responses[1].GetResponseRange().Kvs
	for len(line) > 1 {
		b.watch(string(line[1].Key))
		select {
		case news, intact := <-b.events:
			if !intact {
				return errors.New("a bare watch has ended")
			}
			if err := news.Err(); err != nil {
				return err
			}
			if news.Header.GetRevision() <= seen {
				continue
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		look, err := b.client.Get(ctx, b.prefix, newest(joined)...)
		if err != nil {
			return err
		}
		line, seen = look.Kvs, look.Header.Revision
	}
	return nil
}

func (b *barePlace) watch(key string) {
	if b.watched == key {
		return
	}
	if b.unwatch != nil {
		b.unwatch()
	}
	ctx, cancel := context.WithCancel(b.client.Ctx())
	b.watched, b.unwatch = key, cancel
	b.events = b.client.Watch(ctx, key, clientv3.WithFilterPut(), clientv3.WithCreatedNotify())
}
