package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/library"
)

// byHand stands for calls without a library.
var byHand = library.Library{Name: "bare"}

// ranged are the workloads of what only this package has, beside the same by hand.
func ranged() []workload {
	w := func(name string, ops, workers int, goal float64, l *limits, hire func(*bed, int) (work, error)) workload {
		return workload{name: name, ops: ops, workers: workers, goal: goal, limits: l, hire: hire, base: &byHand}
	}
	alternating := w("hand-over by Retry between 2, beside bare calls", 40, 2, 1.5, nil, alternates)
	alternating.byTurns = true
	return []workload{
		w("range of 1000 keys, beside bare calls", 30, 1, 1.1, &limits{calls: 1}, sums(1000)),
		w("range of 100000 keys, beside bare calls", 1, 1, 1.2, nil, sums(100000)),
		w("range of 50 keys read and written, beside bare calls", 30, 1, 0, &limits{calls: 2, raft: 1}, rewrites(50)),
		alternating,
	}
}

// fill puts n keys and returns their range.
func (b *bed) fill(n int) (begin, end string, err error) {
	const part = 128
	for i := 0; i < n && err == nil; i += part {
		var puts []clientv3.Op
		for j := i; j < min(i+part, n); j++ {
			puts = append(puts, clientv3.OpPut(fmt.Sprintf("%s/%06d", b.prefix, j), "100"))
		}
		_, err = b.plain.Txn(b.ctx).Then(puts...).Commit()
	}
	return b.prefix + "/", clientv3.GetPrefixRangeEnd(b.prefix + "/"), err
}

var errMissing = errors.New("not all keys were read")

// page is as many keys as this package reads in one call.
const page = 4096

// sums reads n keys.
func sums(n int) func(b *bed, worker int) (work, error) {
	return func(b *bed, worker int) (work, error) {
		begin, end, err := b.fill(n)
		client := b.client(worker)
		if b.Transact == nil {
			return func(ctx context.Context) error {
				var kvs []string
				rev := int64(0)
				for from := begin; ; {
					resp, err := client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(page), clientv3.WithRev(rev))
					if err != nil {
						return err
					}
					for _, kv := range resp.Kvs {
						kvs = append(kvs, string(kv.Value))
					}
					if rev = resp.Header.Revision; !resp.More {
						break
					}
					from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
				}
				if len(kvs) != n {
					return errMissing
				}
				return nil
			}, err
		}
		return b.transaction(worker, library.TxnOptions{}, func(s library.STM) error {
			var kvs []string
			for _, kv := range s.(library.Ranged).Range(begin, end) {
				kvs = append(kvs, string(kv.Value))
			}
			if len(kvs) != n {
				return errMissing
			}
			return nil
		}), err
	}
}

// rewrites adds one to n numbers.
func rewrites(n int) func(b *bed, worker int) (work, error) {
	return func(b *bed, worker int) (work, error) {
		begin, end, err := b.fill(n)
		client := b.client(worker)
		if b.Transact == nil {
			return func(ctx context.Context) error {
				resp, err := client.Get(ctx, begin, clientv3.WithRange(end))
				if err != nil {
					return err
				}
				var puts []clientv3.Op
				for _, kv := range resp.Kvs {
					puts = append(puts, clientv3.OpPut(string(kv.Key), more(string(kv.Value))))
				}
				unchanged := clientv3.Compare(clientv3.ModRevision(begin), "<", resp.Header.Revision+1).WithRange(end)
				_, err = client.Txn(ctx).If(unchanged).Then(puts...).Commit()
				return err
			}, err
		}
		return b.transaction(worker, library.TxnOptions{}, func(s library.STM) error {
			for _, kv := range s.(library.Ranged).Range(begin, end) {
				s.Put(string(kv.Key), more(string(kv.Value)))
			}
			return nil
		}), err
	}
}

func more(value string) string {
	n, _ := strconv.Atoi(value)
	return strconv.Itoa(n + 1)
}

// alternates adds one to a number, each of two workers when it is its turn.
func alternates(b *bed, worker int) (work, error) {
	key, client := b.prefix, b.client(worker)
	mine := func(value string) bool {
		n, _ := strconv.Atoi(value)
		return n%2 == worker
	}
	if b.Transact != nil {
		return b.transaction(worker, library.TxnOptions{}, func(s library.STM) error {
			value := s.Get(key)
			if !mine(value) {
				s.(library.Ranged).Retry()
			}
			s.Put(key, more(value))
			return nil
		}), nil
	}
	return func(ctx context.Context) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		resp, err := client.Get(ctx, key)
		if err != nil {
			return err
		}
		value, rev := "", int64(0)
		if len(resp.Kvs) > 0 {
			value, rev = string(resp.Kvs[0].Value), resp.Kvs[0].ModRevision
		}
		if !mine(value) { // the watch begins with the present: it may have to look again
			for news := range client.Watch(ctx, key, clientv3.WithCreatedNotify()) {
				if news.Created && news.Header.Revision > resp.Header.Revision {
					if resp, err = client.Get(ctx, key); err != nil {
						return err
					}
					value, rev = string(resp.Kvs[0].Value), resp.Kvs[0].ModRevision
				}
				for _, ev := range news.Events {
					value, rev = string(ev.Kv.Value), ev.Kv.ModRevision
				}
				if mine(value) {
					break
				}
			}
		}
		_, err = client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", rev)).
			Then(clientv3.OpPut(key, more(value))).Commit()
		return err
	}, nil
}
