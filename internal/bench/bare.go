package main

import (
	"context"
	"errors"
	"strconv"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// What is compared with here is no library: nothing is checked, repeated or cleaned up, and
// any fault breaks it. It shows what etcd and its client cost by themselves.

// bare is the least that a free lock can cost: its two writes.
var bare = bareLibrary(func(k bareKey) mutex { return k })

// bareLine is the least that a lock with a line can cost, with the calls of a hand-over.
var bareLine = bareLibrary(func(k bareKey) mutex { return &barePlace{bareKey: k} })

type bareKey struct {
	client *clientv3.Client
	prefix string
	key    string
	lease  clientv3.LeaseID
}

func bareLibrary(newMutex func(bareKey) mutex) library {
	return library{
		name: "bare",
		session: func(c *clientv3.Client, ttl int) (session, error) {
			s, err := theirs.session(c, ttl)
			s.mutex = func(name string) mutex {
				prefix := name + "/"
				return newMutex(bareKey{c, prefix, prefix + strconv.FormatInt(int64(s.lease), 16), s.lease})
			}
			s.election = func(name string) election { return bareCandidate{s.mutex(name)} }
			s.permit = s.mutex
			return s, err
		},
	}
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
type bareCandidate struct{ mutex }

func (b bareCandidate) Campaign(ctx context.Context, _ string) error { return b.Lock(ctx) }
func (b bareCandidate) Resign(ctx context.Context) error             { return b.Unlock(ctx) }

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
