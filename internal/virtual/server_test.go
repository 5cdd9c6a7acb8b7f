package virtual_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/etcd/concurrency/internal/virtual"
)

func TestLeasesAreGrantedAsAskedFor(t *testing.T) {
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		t := b.T()
		client, _ := b.Client("a")
		ctx := context.Background()
		for ttl := int64(1); ttl <= 4; ttl++ {
			resp, err := client.Grant(ctx, ttl)
			require.NoError(t, err)
			require.Equal(t, ttl, resp.TTL)
			key := fmt.Sprint("k", ttl)
			_, err = client.Put(ctx, key, "", clientv3.WithLease(resp.ID))
			require.NoError(t, err)
			begin := time.Now()
			for range client.Watch(ctx, key, clientv3.WithFilterPut()) {
				break
			}
			life := time.Since(begin)
			require.Greater(t, life, time.Duration(ttl)*time.Second-10*time.Millisecond)
			require.Less(t, life, time.Duration(ttl+1)*time.Second, "found within etcd's half second")
		}
	})
}

// A stopped server answers nobody; a started one has what it had, and watches go on.
func TestServerStopsAndStarts(t *testing.T) {
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		t := b.T()
		client, _ := b.Client("a")
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		lease, err := client.Grant(ctx, 60)
		require.NoError(t, err)
		_, err = client.Put(ctx, "k", "before", clientv3.WithLease(lease.ID))
		require.NoError(t, err)
		watch := client.Watch(ctx, "k", clientv3.WithCreatedNotify())
		require.True(t, (<-watch).Created)
		for range 3 {
			b.Server().Stop()
			b.Server().Stop()
			require.False(t, b.Server().Running())
			require.Nil(t, b.Server().Etcd())
			_, err = client.Get(ctx, "k")
			require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
			begin := b.Now()
			require.NoError(t, b.Server().Start())
			require.Equal(t, 2*time.Second, b.Now()-begin, "each start takes the same time")
			require.NoError(t, b.Server().Start())
		}
		resp, err := client.Get(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, "before", string(resp.Kvs[0].Value))
		require.Equal(t, int64(lease.ID), resp.Kvs[0].Lease)
		_, err = client.Put(ctx, "k", "after")
		require.NoError(t, err)
		// client/v3 resumes such a watch at the revision at which it began: what was put
		// there may come once more.
		wait, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		for last := ""; last != "after"; {
			select {
			case resp := <-watch:
				last = string(resp.Events[len(resp.Events)-1].Kv.Value)
			case <-wait.Done():
				require.Equal(t, "after", last)
			}
		}
	})
}

// A call that the server carries out when it stops ends, and so does the stop.
func TestStopBreaksWhatIsUnderWay(t *testing.T) {
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		t := b.T()
		client, n := b.Client("a")
		ctx := context.Background()
		lease, err := client.Grant(ctx, 10)
		require.NoError(t, err)
		alive, err := client.KeepAlive(ctx, lease.ID)
		require.NoError(t, err)
		require.NotNil(t, <-alive)
		n.SetRoundTrip(virtual.RoundTrip{Min: time.Second, Max: time.Second})
		done := make(chan error)
		go func() {
			_, err := client.Put(ctx, "k", "v")
			done <- err
		}()
		b.Sleep(600 * time.Millisecond) // the answer is under way
		b.Server().Stop()
		require.NoError(t, <-done, "it had been sent")
		go func() {
			_, err := client.Put(ctx, "k", "v")
			done <- err
		}()
		require.Equal(t, codes.Unavailable, status.Code(<-done))
		_, ok := <-alive
		require.False(t, ok, "upstream's KeepAlive gives up when no answer comes")
	})
}

func TestNoSpace(t *testing.T) {
	virtual.Run(t, virtual.Options{Quota: 4 << 20}, func(b *virtual.Bubble) {
		t := b.T()
		client, _ := b.Client("a")
		ctx := context.Background()
		var err error
		for i := 0; err == nil && i < 100; i++ {
			_, err = client.Put(ctx, fmt.Sprint("k", i), strings.Repeat("x", 1<<20))
			b.Sleep(5 * time.Second) // what isn't committed doesn't count
		}
		require.Equal(t, rpctypes.ErrNoSpace, err)
		b.Server().Stop()
		b.Server().SetQuota(1 << 30)
		require.NoError(t, b.Server().Start())
		_, err = client.Put(ctx, "k", "")
		require.Equal(t, rpctypes.ErrNoSpace, err, "until the alarm is taken back")
		_, err = client.AlarmDisarm(ctx, &clientv3.AlarmMember{
			MemberID: uint64(b.Server().Etcd().MemberID()), Alarm: etcdserverpb.AlarmType_NOSPACE,
		})
		require.NoError(t, err)
		_, err = client.Put(ctx, "k", "")
		require.NoError(t, err)
	})
}

// What is open when the function returns, Run ends.
func TestRunEndsWhatIsOpen(t *testing.T) {
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		ctx := context.Background()
		for _, name := range []string{"a", "b"} {
			client, n := b.Client(name)
			n.Set("request-late", 1)
			go client.Put(ctx, "k", "")
			client.Watch(ctx, "k")
			client.KeepAlive(ctx, 4711)
		}
	})
}
