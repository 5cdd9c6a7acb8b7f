package virtual_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/etcd/concurrency/internal/virtual"
)

// under runs f with a client under faults and one without. The former is bare: what a fault does
// is seen as it is, and not through what client/v3 makes of it.
func under(t *testing.T, f func(b *virtual.Bubble, client *clientv3.Client, n *virtual.Network, plain *clientv3.Client)) {
	t.Helper()
	virtual.Run(t, virtual.Options{Seed: 7}, func(b *virtual.Bubble) {
		client, n := b.BareClient("faulty")
		plain, _ := b.Client("plain")
		f(b, client, n, plain)
	})
}

// met is what a Put of 3 s meets: how long it took, after how long its key stood there, which is
// negative if it didn't within half a minute, and its error.
func met(t *testing.T, client, plain *clientv3.Client) (took, arrived time.Duration, err error) {
	t.Helper()
	_, err = plain.Delete(context.Background(), "k")
	require.NoError(t, err)
	there := make(chan time.Duration, 1)
	wctx, stop := context.WithTimeout(context.Background(), 30*time.Second)
	defer stop()
	watch := plain.Watch(wctx, "k", clientv3.WithCreatedNotify())
	<-watch
	begin := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	go func() {
		if _, ok := <-watch; ok {
			there <- time.Since(begin)
		}
		close(there)
	}()
	_, err = client.Put(ctx, "k", "")
	took, arrived = time.Since(begin), -1
	if d, ok := <-there; ok {
		arrived = d
	}
	return took, arrived, err
}

const soon = 10 * time.Millisecond

func silence(t *testing.T, err error, took time.Duration) {
	t.Helper()
	require.Equal(t, context.DeadlineExceeded, err)
	require.Equal(t, 3*time.Second, took)
}

func cut(t *testing.T, err error, took time.Duration) {
	t.Helper()
	require.EqualError(t, err, status.Error(codes.Unavailable, "error reading from server: EOF").Error())
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.Less(t, took, soon)
}

// checksOfCalls are what each fault does to a call with one answer.
var checksOfCalls = map[string]func(t *testing.T, err error, took, arrived time.Duration){
	"request-lost": func(t *testing.T, err error, took, arrived time.Duration) {
		silence(t, err, took)
		require.Negative(t, arrived)
	},
	"request-cut": func(t *testing.T, err error, took, arrived time.Duration) {
		cut(t, err, took)
		require.Negative(t, arrived)
	},
	"request-late": func(t *testing.T, err error, took, arrived time.Duration) {
		silence(t, err, took)
		require.Greater(t, arrived, 3*time.Second)
	},
	"request-stray": func(t *testing.T, err error, took, arrived time.Duration) {
		cut(t, err, took)
		require.Greater(t, arrived, time.Second)
	},
	"answer-lost": func(t *testing.T, err error, took, arrived time.Duration) {
		silence(t, err, took)
		require.Less(t, arrived, soon)
		require.Positive(t, arrived)
	},
	"answer-cut": func(t *testing.T, err error, took, arrived time.Duration) {
		cut(t, err, took)
		require.Positive(t, arrived)
	},
	"answer-late": func(t *testing.T, err error, took, arrived time.Duration) {
		silence(t, err, took)
		require.Less(t, arrived, soon)
		require.Positive(t, arrived)
	},
	"stall": func(t *testing.T, err error, took, arrived time.Duration) {
		silence(t, err, took)
		require.Greater(t, arrived, 3*time.Second)
	},
	"silent-link": func(t *testing.T, err error, took, arrived time.Duration) {
		require.Greater(t, arrived, soon)
		if arrived < 3*time.Second { // the silence was shorter
			require.NoError(t, err)
			return
		}
		silence(t, err, took)
	},
	"slow-server": func(t *testing.T, err error, took, arrived time.Duration) {
		require.NoError(t, err)
		require.Greater(t, took, soon)
		require.Less(t, took, 3*time.Second)
	},
	"refused-Aborted": func(t *testing.T, err error, took, arrived time.Duration) {
		require.Equal(t, codes.Aborted, status.Code(err))
		require.Less(t, took, soon)
		require.Negative(t, arrived)
	},
	"refused-NoLeader": func(t *testing.T, err error, took, arrived time.Duration) {
		require.Equal(t, rpctypes.ErrNoLeader, err)
		require.Negative(t, arrived)
	},
	"refused-DeadlineExceeded": func(t *testing.T, err error, took, arrived time.Duration) {
		require.Equal(t, codes.DeadlineExceeded, status.Code(err), "the context has not ended")
		require.Less(t, took, soon)
	},
}

// Each row of the table does what it says to a call with one answer.
func TestFaultsOfCalls(t *testing.T) {
	for fault, check := range checksOfCalls {
		t.Run(fault, func(t *testing.T) {
			under(t, func(b *virtual.Bubble, client *clientv3.Client, n *virtual.Network, plain *clientv3.Client) {
				t := b.T()
				n.Set(fault, 1)
				took, arrived, err := met(t, client, plain)
				check(t, err, took, arrived)
				require.Equal(t, map[string]int{fault: 1}, b.Faults())
				n.Calm()
				b.Sleep(virtual.Longest)
				took, arrived, err = met(t, client, plain)
				require.NoError(t, err)
				require.Less(t, took, soon)
				require.Positive(t, arrived)
			})
		})
	}
}

// A request that two faults make late arrives in the time that each of them promises.
func TestFaultsThatMakeACallLate(t *testing.T) {
	under(t, func(b *virtual.Bubble, client *clientv3.Client, n *virtual.Network, plain *clientv3.Client) {
		t := b.T()
		n.Set("request-late", 1)
		n.Set("request-stray", 1)
		for range 20 {
			_, arrived, err := met(t, client, plain)
			require.Equal(t, codes.Unavailable, status.Code(err))
			require.Positive(t, arrived)
			require.Less(t, arrived, virtual.Longest+time.Second)
		}
	})
}

// A stream falls silent, breaks, or is late; client/v3 opens another if it is told.
func TestFaultsOfStreams(t *testing.T) {
	for fault, late := range map[string]struct{ least, most time.Duration }{
		"":             {0, time.Second},
		"stream-dead":  {time.Hour, time.Hour},
		"stream-cut":   {0, time.Second}, // it is resumed before
		"message-late": {0, 2 * virtual.Longest},
	} {
		t.Run(fault, func(t *testing.T) {
			under(t, func(b *virtual.Bubble, client *clientv3.Client, n *virtual.Network, plain *clientv3.Client) {
				t := b.T()
				ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
				defer cancel()
				if fault != "" {
					n.Set(fault, 1)
				}
				watch := client.Watch(ctx, "k", clientv3.WithCreatedNotify())
				require.True(t, (<-watch).Created)
				if fault != "" && fault != "message-late" {
					n.Set(fault, 0) // of one stream
				}
				b.Sleep(virtual.Longest)
				_, err := plain.Put(ctx, "k", "")
				require.NoError(t, err)
				begin := time.Now()
				resp, ok := <-watch
				took := time.Since(begin)
				require.GreaterOrEqual(t, took+virtual.Longest+time.Minute, late.least)
				require.LessOrEqual(t, took, late.most)
				require.Equal(t, fault != "stream-dead", ok)
				require.NoError(t, resp.Err())
				if fault != "" {
					require.Contains(t, b.Faults(), fault)
				}
			})
		})
	}
}

// Every second call goes on over the other link while watches that stood on the silent one say
// nothing, and say it when the silence ends.
func TestSilentLink(t *testing.T) {
	under(t, func(b *virtual.Bubble, client *clientv3.Client, n *virtual.Network, plain *clientv3.Client) {
		t := b.T()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		watch := client.Watch(ctx, "k", clientv3.WithCreatedNotify())
		<-watch
		silent, heard := 0, 0
		for range 20 {
			n.Silence(10 * time.Second)
			begin := time.Now()
			answered := 0
			for range 10 {
				call, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
				if _, err := client.Put(call, "other", ""); err == nil {
					answered++
				}
				cancel()
			}
			require.Equal(t, 5, answered, "links are taken in turn")
			_, err := plain.Put(ctx, "k", "")
			require.NoError(t, err)
			<-watch
			if took := time.Since(begin); took < time.Second {
				heard++
			} else {
				silent++
				require.GreaterOrEqual(t, took, 10*time.Second)
			}
			b.Sleep(10 * time.Second)
		}
		require.Positive(t, silent)
		require.Positive(t, heard)
	})
}

func TestRoundTrip(t *testing.T) {
	under(t, func(b *virtual.Bubble, client *clientv3.Client, n *virtual.Network, _ *clientv3.Client) {
		t := b.T()
		ctx := context.Background()
		trip := func() time.Duration {
			begin := time.Now()
			_, err := client.Get(ctx, "k")
			require.NoError(t, err)
			return time.Since(begin)
		}
		n.SetRoundTrip(virtual.RoundTrip{Min: time.Second, Max: time.Second})
		for range 10 {
			require.InDelta(t, time.Second, trip(), float64(time.Millisecond))
		}
		lease, err := client.Grant(ctx, 10)
		require.NoError(t, err)
		begin := time.Now()
		_, err = client.KeepAliveOnce(ctx, lease.ID)
		require.NoError(t, err)
		require.InDelta(t, time.Second, time.Since(begin), float64(time.Millisecond), "streams too")
		n.SetRoundTrip(virtual.RoundTrip{Min: time.Second, Max: 2 * time.Second})
		least, most := trip(), trip()
		for range 100 {
			d := trip()
			least, most = min(least, d), max(most, d)
		}
		require.Greater(t, least, time.Second)
		require.Less(t, most, 2*time.Second+time.Millisecond)
		require.Greater(t, most-least, 500*time.Millisecond)
	})
}

func TestScope(t *testing.T) {
	under(t, func(b *virtual.Bubble, client *clientv3.Client, n *virtual.Network, _ *clientv3.Client) {
		t := b.T()
		ctx := context.Background()
		lease, err := client.Grant(ctx, 10)
		require.NoError(t, err)
		n.Set("refused-Aborted", 1)
		for scope, want := range map[virtual.Scope][2]bool{
			virtual.Everything: {true, true}, virtual.RenewalsOnly: {true, false}, virtual.AllButRenewals: {false, true},
		} {
			n.SetScope(scope)
			_, err := client.KeepAliveOnce(ctx, lease.ID)
			require.Equal(t, want[0], err != nil, "renewals, scope %d", scope)
			_, err = client.Get(ctx, "k")
			require.Equal(t, want[1], err != nil, "reads, scope %d", scope)
		}
	})
}

func TestCut(t *testing.T) {
	under(t, func(b *virtual.Bubble, client *clientv3.Client, n *virtual.Network, plain *clientv3.Client) {
		t := b.T()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		watch := client.Watch(ctx, "k", clientv3.WithCreatedNotify())
		<-watch
		n.Stall(10 * time.Second)
		done := make(chan error)
		go func() {
			_, err := client.Put(ctx, "k", "")
			done <- err
		}()
		b.Sleep(time.Second)
		n.Cut()
		require.Equal(t, codes.Unavailable, status.Code(<-done))
		require.Len(t, (<-watch).Events, 1, "the request was under way, and the watch is resumed")
	})
}

// The names are unique, each fault says what it does, and Set knows no other.
func TestTable(t *testing.T) {
	seen := make(map[string]bool)
	for _, f := range virtual.Table() {
		require.False(t, seen[f.Name], f.Name)
		seen[f.Name] = true
		require.NotEmpty(t, f.About)
	}
	under(t, func(_ *virtual.Bubble, _ *clientv3.Client, n *virtual.Network, _ *clientv3.Client) {
		require.Panics(t, func() { n.Set("no such", 1) })
	})
}

// One seed makes one run of what a single goroutine does; another seed makes another. The client
// is one that draws nothing itself.
func TestSeed(t *testing.T) {
	run := func(seed uint64) []virtual.Event {
		var trace []virtual.Event
		o := virtual.Options{Seed: seed, Trace: func(e virtual.Event) { trace = append(trace, e) }}
		virtual.Run(t, o, func(b *virtual.Bubble) {
			client, n := b.BareClient("a")
			n.SetRoundTrip(virtual.RoundTrip{Max: time.Second})
			weather(n, 0.01)
			for range 200 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				client.Put(ctx, "k", "")
				cancel()
			}
		})
		return trace
	}
	first := run(1)
	require.NotEmpty(t, first)
	require.Equal(t, first, run(1))
	require.NotEqual(t, first, run(2))
}
