package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// bound is when a state that did not come is given up. It measures
	// nothing: no healthy run comes near it.
	bound = 30 * time.Second
	// interval is how often a state is looked at.
	interval = 2 * time.Millisecond
)

// poll looks until cond holds, and says whether it did within the bound.
func poll(cond func() bool) bool {
	deadline := time.Now().Add(bound)
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for !cond() {
		if time.Now().After(deadline) {
			return false
		}
		<-ticker.C
	}
	return true
}

// Eventually waits until cond holds. The message says what was waited for.
func Eventually(tb testing.TB, cond func() bool, msg string, args ...any) {
	tb.Helper()
	if !poll(cond) {
		tb.Fatalf("not within %v: %s", bound, fmt.Sprintf(msg, args...))
	}
}

// Keys reads the keys under prefix, the oldest first by create revision.
func Keys(tb testing.TB, client *clientv3.Client, prefix string) []*mvccpb.KeyValue {
	tb.Helper()
	kvs, err := keys(client, prefix)
	if err != nil {
		tb.Fatalf("read the keys under %q: %v", prefix, err)
	}
	return kvs
}

// WaitKeys waits until exactly n keys stand under prefix and gives them as
// Keys does. It reads from whatever member the client is connected to, with a
// linearizable read; a read that fails is repeated.
func WaitKeys(tb testing.TB, client *clientv3.Client, prefix string, n int) []*mvccpb.KeyValue {
	tb.Helper()
	var kvs []*mvccpb.KeyValue
	var err error
	ok := poll(func() bool {
		kvs, err = keys(client, prefix)
		return err == nil && len(kvs) == n
	})
	if !ok {
		tb.Fatalf("%d keys expected under %q, last error %v, there are:%s", n, prefix, err, dump(kvs))
	}
	return kvs
}

// WaitGone waits until key does not exist.
func WaitGone(tb testing.TB, client *clientv3.Client, key string) {
	tb.Helper()
	var resp *clientv3.GetResponse
	var err error
	ok := poll(func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), bound)
		defer cancel()
		resp, err = client.Get(ctx, key)
		return err == nil && len(resp.Kvs) == 0
	})
	if !ok && err != nil {
		tb.Fatalf("%q expected to go, last error %v", key, err)
	}
	if !ok {
		tb.Fatalf("%q expected to go, there is:%s", key, dump(resp.Kvs))
	}
}

// WaitLeases waits until the store has exactly n leases.
func WaitLeases(tb testing.TB, client *clientv3.Client, n int) {
	tb.Helper()
	var resp *clientv3.LeaseLeasesResponse
	var err error
	ok := poll(func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), bound)
		defer cancel()
		resp, err = client.Leases(ctx)
		return err == nil && len(resp.Leases) == n
	})
	if !ok && err != nil {
		tb.Fatalf("%d leases expected, last error %v", n, err)
	}
	if !ok {
		tb.Fatalf("%d leases expected, there are %x", n, resp.Leases)
	}
}

// keys reads the keys under prefix in the order of their create revisions.
func keys(client *clientv3.Client, prefix string) ([]*mvccpb.KeyValue, error) {
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	resp, err := client.Get(ctx, prefix, clientv3.WithPrefix(),
		clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend))
	if err != nil {
		return nil, err
	}
	return resp.Kvs, nil
}

// dump lists keys, one a line, for the message of a failure.
func dump(kvs []*mvccpb.KeyValue) string {
	var b strings.Builder
	for _, kv := range kvs {
		fmt.Fprintf(&b, "\n\t%s = %q created %d modified %d lease %x",
			kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Lease)
	}
	if b.Len() == 0 {
		return " none"
	}
	return b.String()
}

// errExited is the result of a call that ended its goroutine instead of
// returning.
var errExited = errors.New("etcdtest: the call did not return")

// Call is a call that runs beside the test.
type Call struct {
	done chan struct{} // closed when the call has returned
	err  error         // written before done is closed
}

// Go starts f beside the test. The test must see to it that f returns.
func Go(f func() error) *Call {
	c := &Call{done: make(chan struct{}), err: errExited}
	go func() {
		defer close(c.done)
		c.err = f()
	}()
	return c
}

// Done is closed when the call has returned.
func (c *Call) Done() <-chan struct{} { return c.done }

// Running says whether the call has not yet returned.
func (c *Call) Running() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// Err is what the call returned, nil while it runs.
func (c *Call) Err() error {
	if c.Running() {
		return nil
	}
	return c.err
}

// Wait waits for the call to return and gives its error. The test fails when
// it doesn't return.
func (c *Call) Wait(tb testing.TB) error {
	tb.Helper()
	timer := time.NewTimer(bound)
	defer timer.Stop()
	select {
	case <-c.done:
		return c.err
	case <-timer.C:
		tb.Fatalf("the call is still blocked after %v", bound)
		return nil
	}
}

// Answers waits until a call of the client is answered. A call over a link that is silent is not, so
// each has a bound. The bound is twice the one before, because a busy machine answers late.
func Answers(tb testing.TB, c *clientv3.Client) {
	tb.Helper()
	limit := 50 * time.Millisecond
	Eventually(tb, func() bool {
		limit *= 2
		ctx, cancel := context.WithTimeout(tb.Context(), limit)
		defer cancel()
		_, err := c.Get(ctx, "key")
		return err == nil
	}, "a call of the client is answered")
}
