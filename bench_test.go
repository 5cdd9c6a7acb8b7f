package concurrency_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	upstream "go.etcd.io/etcd/client/v3/concurrency"

	"example.com/etcd/concurrency"
)

// The benchmarks run the same operation with this package and with upstream's, under
// names that benchstat compares: go tool benchstat -col /pkg. The embedded server
// allocates in this process too; with ETCD_BINARY the figures are the client's alone.

// operation makes what one iteration does, on a client of its own.
type operation func(b *testing.B, client *clientv3.Client, name string) func(context.Context) error

func compare(b *testing.B, ours, theirs operation) {
	for _, pkg := range []struct {
		name string
		make operation
	}{{"upstream", theirs}, {"ours", ours}} {
		b.Run("pkg="+pkg.name, func(b *testing.B) {
			do := pkg.make(b, client(b), prefix(b))
			require.NoError(b, do(b.Context())) // the connection stands
			b.ReportAllocs()
			for b.Loop() {
				if err := do(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func upstreamSession(b *testing.B, client *clientv3.Client) *upstream.Session {
	b.Helper()
	s, err := upstream.NewSession(client)
	require.NoError(b, err)
	b.Cleanup(func() { s.Close() })
	return s
}

// cycle is both in turn.
func cycle(take, give func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := take(ctx); err != nil {
			return err
		}
		return give(ctx)
	}
}

// A free lock is taken and released.
func BenchmarkLock(b *testing.B) {
	compare(b, func(b *testing.B, client *clientv3.Client, name string) func(context.Context) error {
		m := concurrency.NewMutex(session(b, client), name)
		return cycle(m.Lock, m.Unlock)
	}, func(b *testing.B, client *clientv3.Client, name string) func(context.Context) error {
		m := upstream.NewMutex(upstreamSession(b, client), name)
		return cycle(m.Lock, m.Unlock)
	})
}

// A free lock is taken and released, by a session with no trace, with a nil one, with one that has
// no functions, and with one that has all.
func BenchmarkLockTraced(b *testing.B) {
	all := &concurrency.Trace{
		Joined: func(concurrency.LineEvent) {}, Waiting: func(concurrency.LineEvent) {},
		Acquired: func(concurrency.LineEvent) {}, GaveUp: func(concurrency.LineEvent) {},
		Released: func(concurrency.LineEvent) {}, Lost: func(concurrency.LineEvent) {},
		LeftBehind: func(concurrency.LineEvent) {}, CleanedUp: func(concurrency.LineEvent) {},
		Renewed: func(concurrency.SessionEvent) {}, RenewalFailed: func(concurrency.SessionEvent) {},
		Ended: func(concurrency.SessionEvent) {}, Repeated: func(concurrency.CallEvent) {},
	}
	for _, trace := range []struct {
		name string
		opts []concurrency.SessionOption
	}{
		{"none", nil},
		{"nil", []concurrency.SessionOption{concurrency.WithTrace(nil)}},
		{"empty", []concurrency.SessionOption{concurrency.WithTrace(&concurrency.Trace{})}},
		{"all", []concurrency.SessionOption{concurrency.WithTrace(all)}},
	} {
		b.Run("trace="+trace.name, func(b *testing.B) {
			m := concurrency.NewMutex(session(b, client(b), trace.opts...), prefix(b))
			do := cycle(m.Lock, m.Unlock)
			require.NoError(b, do(b.Context()))
			b.ReportAllocs()
			for b.Loop() {
				if err := do(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// The only candidate is elected and resigns.
func BenchmarkCampaign(b *testing.B) {
	compare(b, func(b *testing.B, client *clientv3.Client, name string) func(context.Context) error {
		e := concurrency.NewElection(session(b, client), name)
		return cycle(func(ctx context.Context) error { return e.Campaign(ctx, "value") }, e.Resign)
	}, func(b *testing.B, client *clientv3.Client, name string) func(context.Context) error {
		e := upstream.NewElection(upstreamSession(b, client), name)
		return cycle(func(ctx context.Context) error { return e.Campaign(ctx, "value") }, e.Resign)
	})
}

// A transaction reads a key and writes it, and nobody else does.
func BenchmarkSTM(b *testing.B) {
	compare(b, func(b *testing.B, client *clientv3.Client, name string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := concurrency.NewSTM(client, func(s concurrency.STM) error {
				s.Put(name, s.Get(name))
				return nil
			}, concurrency.WithAbortContext(ctx))
			return err
		}
	}, func(b *testing.B, client *clientv3.Client, name string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := upstream.NewSTM(client, func(s upstream.STM) error {
				s.Put(name, s.Get(name))
				return nil
			}, upstream.WithAbortContext(ctx))
			return err
		}
	})
}
