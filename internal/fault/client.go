package fault

import (
	"context"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// kv is a KV under faults.
type kv struct {
	clientv3.KV // Compact and GetStream pass through

	f *Faults
}

func (k *kv) Get(
	ctx context.Context, key string, opts ...clientv3.OpOption,
) (*clientv3.GetResponse, error) {
	rules := k.f.begin(Get, clientv3.OpGet(key, opts...))
	return run(ctx, rules, func() (*clientv3.GetResponse, error) {
		return k.KV.Get(ctx, key, opts...)
	})
}

func (k *kv) Put(
	ctx context.Context, key, value string, opts ...clientv3.OpOption,
) (*clientv3.PutResponse, error) {
	return run(ctx, k.f.begin(Put), func() (*clientv3.PutResponse, error) {
		return k.KV.Put(ctx, key, value, opts...)
	})
}

func (k *kv) Delete(
	ctx context.Context, key string, opts ...clientv3.OpOption,
) (*clientv3.DeleteResponse, error) {
	return run(ctx, k.f.begin(Delete), func() (*clientv3.DeleteResponse, error) {
		return k.KV.Delete(ctx, key, opts...)
	})
}

func (k *kv) Do(ctx context.Context, op clientv3.Op) (clientv3.OpResponse, error) {
	ops := []clientv3.Op{op}
	if op.IsTxn() {
		_, success, failure := op.Txn()
		ops = append(success[:len(success):len(success)], failure...)
	}
	return run(ctx, k.f.begin(Do, ops...), func() (clientv3.OpResponse, error) {
		return k.KV.Do(ctx, op)
	})
}

func (k *kv) Txn(ctx context.Context) clientv3.Txn {
	return &txn{txn: k.KV.Txn(ctx), ctx: ctx, f: k.f}
}

// txn is a transaction under faults. It is a call when it is committed, not
// before.
type txn struct {
	ctx context.Context
	f   *Faults

	mu  sync.Mutex // guards the fields below; a Txn may be built from any goroutine
	txn clientv3.Txn
	ops []clientv3.Op
}

func (t *txn) If(cmps ...clientv3.Cmp) clientv3.Txn {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.txn = t.txn.If(cmps...)
	return t
}

func (t *txn) Then(ops ...clientv3.Op) clientv3.Txn {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.txn, t.ops = t.txn.Then(ops...), append(t.ops, ops...)
	return t
}

func (t *txn) Else(ops ...clientv3.Op) clientv3.Txn {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.txn, t.ops = t.txn.Else(ops...), append(t.ops, ops...)
	return t
}

func (t *txn) Commit() (*clientv3.TxnResponse, error) {
	t.mu.Lock()
	txn, ops := t.txn, t.ops
	t.mu.Unlock()
	return run(t.ctx, t.f.begin(Txn, ops...), txn.Commit)
}

// lease is a Lease under faults.
type lease struct {
	clientv3.Lease // Leases and Close pass through

	f *Faults
}

func (l *lease) Grant(ctx context.Context, ttl int64) (*clientv3.LeaseGrantResponse, error) {
	return run(ctx, l.f.begin(Grant), func() (*clientv3.LeaseGrantResponse, error) {
		return l.Lease.Grant(ctx, ttl)
	})
}

func (l *lease) Revoke(
	ctx context.Context, id clientv3.LeaseID,
) (*clientv3.LeaseRevokeResponse, error) {
	return run(ctx, l.f.begin(Revoke), func() (*clientv3.LeaseRevokeResponse, error) {
		return l.Lease.Revoke(ctx, id)
	})
}

func (l *lease) TimeToLive(
	ctx context.Context, id clientv3.LeaseID, opts ...clientv3.LeaseOption,
) (*clientv3.LeaseTimeToLiveResponse, error) {
	return run(ctx, l.f.begin(TimeToLive), func() (*clientv3.LeaseTimeToLiveResponse, error) {
		return l.Lease.TimeToLive(ctx, id, opts...)
	})
}

func (l *lease) KeepAliveOnce(
	ctx context.Context, id clientv3.LeaseID,
) (*clientv3.LeaseKeepAliveResponse, error) {
	return run(ctx, l.f.begin(KeepAliveOnce), func() (*clientv3.LeaseKeepAliveResponse, error) {
		return l.Lease.KeepAliveOnce(ctx, id)
	})
}

func (l *lease) KeepAlive(
	ctx context.Context, id clientv3.LeaseID,
) (<-chan *clientv3.LeaseKeepAliveResponse, error) {
	return run(ctx, l.f.begin(KeepAlive), func() (<-chan *clientv3.LeaseKeepAliveResponse, error) {
		return l.Lease.KeepAlive(ctx, id)
	})
}
