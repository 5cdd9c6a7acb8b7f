package main

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/bsm/redislock"
	"github.com/go-redsync/redsync/v4"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/go-zookeeper/zk"
	"github.com/redis/go-redis/v9"
	clientv3 "go.etcd.io/etcd/client/v3"
	upstream "go.etcd.io/etcd/client/v3/concurrency"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
)

const (
	// ttl is for how long a session or a lock lives without its owner. It is long enough that
	// nothing is renewed in a run, by any library.
	ttl = time.Hour
	// pause is after how long those ask again who poll. It is far below the libraries' defaults:
	// the least that a timer keeps well, since what is compared is the time of a hand-over.
	pause = time.Millisecond
)

// here is the name of the library that the others are compared with.
const here = "here"

// library is one way to lock.
type library struct {
	name   string
	kind   kind   // of its server
	module string // of its client
	polls  bool   // has no queue: who waits asks again and again
	// join makes a contender for the lock of that name, with a connection and, if the server
	// knows such a thing, a session of its own.
	join func(ctx context.Context, address, name string) (*contender, error)
}

// contender is one who wants the lock.
type contender struct {
	lock, unlock func(ctx context.Context) error
	close        func()
}

// libraries are those that are compared.
var libraries = []library{
	{name: here, kind: etcd, module: "go.etcd.io/etcd/client/v3", join: joinHere},
	{name: "upstream", kind: etcd, module: "go.etcd.io/etcd/client/v3", join: joinUpstream},
	{name: "ZooKeeper", kind: zooKeeper, module: "github.com/go-zookeeper/zk", join: joinZooKeeper},
	{name: "redsync", kind: redisServer, module: "github.com/go-redsync/redsync/v4", polls: true, join: joinRedsync},
	{name: "redislock", kind: redisServer, module: "github.com/bsm/redislock", polls: true, join: joinRedislock},
}

func joinHere(_ context.Context, address, name string) (*contender, error) {
	client, err := etcdtest.NewClient(address)
	if err != nil {
		return nil, err
	}
	s, err := concurrency.NewSession(client, concurrency.WithTTL(int(ttl/time.Second)))
	if err != nil {
		client.Close()
		return nil, err
	}
	m := concurrency.NewMutex(s, name)
	return &contender{m.Lock, m.Unlock, closer(s, client)}, nil
}

func joinUpstream(_ context.Context, address, name string) (*contender, error) {
	client, err := etcdtest.NewClient(address)
	if err != nil {
		return nil, err
	}
	s, err := upstream.NewSession(client, upstream.WithTTL(int(ttl/time.Second)))
	if err != nil {
		client.Close()
		return nil, err
	}
	m := upstream.NewMutex(s, name)
	return &contender{m.Lock, m.Unlock, closer(s, client)}, nil
}

// closer closes a session of etcd and its client. Where that fails the servers are gone already.
func closer(session interface{ Close() error }, client *clientv3.Client) func() {
	return func() {
		_ = session.Close()
		client.Close()
	}
}

// quiet is for a client that writes a log.
type quiet struct{}

func (quiet) Printf(string, ...any) {}

// dialZooKeeper returns when the session stands.
func dialZooKeeper(ctx context.Context, address string) (*zk.Conn, error) {
	conn, events, err := zk.Connect([]string{address}, ttl, zk.WithLogger(quiet{}), zk.WithLogInfo(false))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		select {
		case event := <-events:
			if event.State == zk.StateHasSession {
				return conn, nil
			}
		case <-ctx.Done():
			conn.Close()
			return nil, fmt.Errorf("ZooKeeper at %s: %w", address, context.Cause(ctx))
		}
	}
}

// joinZooKeeper has locks that know no context: they end with their connection.
func joinZooKeeper(ctx context.Context, address, name string) (*contender, error) {
	conn, err := dialZooKeeper(ctx, address)
	if err != nil {
		return nil, err
	}
	l := zk.NewLock(conn, "/"+name, zk.WorldACL(zk.PermAll))
	return &contender{
		lock:   func(context.Context) error { return l.Lock() },
		unlock: func(context.Context) error { return l.Unlock() },
		close:  conn.Close,
	}, nil
}

// dialRedis returns when the server has answered.
func dialRedis(ctx context.Context, address string) (*redis.Client, error) {
	client := redis.NewClient(&redis.Options{Addr: address})
	if err := client.Ping(ctx).Err(); err != nil {
		client.Close()
		return nil, fmt.Errorf("Redis at %s: %w", address, err)
	}
	return client, nil
}

func joinRedsync(ctx context.Context, address, name string) (*contender, error) {
	client, err := dialRedis(ctx, address)
	if err != nil {
		return nil, err
	}
	m := redsync.New(goredis.NewPool(client)).NewMutex(name,
		redsync.WithExpiry(ttl), redsync.WithTries(math.MaxInt), redsync.WithRetryDelay(pause))
	return &contender{
		lock: m.LockContext,
		unlock: func(ctx context.Context) error {
			_, err := m.UnlockContext(ctx)
			return err
		},
		close: func() { client.Close() },
	}, nil
}

func joinRedislock(ctx context.Context, address, name string) (*contender, error) {
	client, err := dialRedis(ctx, address)
	if err != nil {
		return nil, err
	}
	locker := redislock.New(client)
	polling := &redislock.Options{RetryStrategy: redislock.LinearBackoff(pause)}
	var held *redislock.Lock
	return &contender{
		lock: func(ctx context.Context) (err error) {
			held, err = locker.Obtain(ctx, name, ttl, polling)
			return err
		},
		unlock: func(ctx context.Context) error { return held.Release(ctx) },
		close:  func() { client.Close() },
	}, nil
}
