package fault_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"

	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

func newProxy(t *testing.T) *fault.Proxy {
	t.Helper()
	clean(t)
	proxy, err := fault.NewProxy(server.Endpoint(0))
	require.NoError(t, err)
	t.Cleanup(proxy.Close)
	return proxy
}

// through is a client that is connected through a proxy.
func through(t *testing.T) (*clientv3.Client, *fault.Proxy) {
	t.Helper()
	proxy := newProxy(t)
	client := etcdtest.Dial(t, proxy.Endpoint())
	_, err := client.Get(t.Context(), t.Name())
	require.NoError(t, err)
	return client, proxy
}

func put(ctx context.Context, client *clientv3.Client, key string) *etcdtest.Call {
	return etcdtest.Go(func() error {
		_, err := client.Put(ctx, key, "")
		return err
	})
}

func TestProxyStallDownKeepsTheAnswer(t *testing.T) {
	client, proxy := through(t)
	proxy.StallDown()
	proxy.StallDown()
	stalled := put(t.Context(), client, t.Name())
	etcdtest.WaitKeys(t, server.Client(t), t.Name(), 1)
	require.True(t, stalled.Running(), "the server has written, the client doesn't know")
	proxy.Resume()
	proxy.Resume()
	require.NoError(t, stalled.Wait(t))
}

func TestProxyStallUpKeepsTheRequest(t *testing.T) {
	client, proxy := through(t)
	plain := server.Client(t)
	for name, stall := range map[string]func(){"up": proxy.StallUp, "both": proxy.Stall} {
		key := t.Name() + name
		stall()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		require.Equal(t, context.DeadlineExceeded, put(ctx, client, key).Wait(t))
		cancel()
		stalled := put(t.Context(), client, key)
		require.Empty(t, etcdtest.Keys(t, plain, key))
		require.True(t, stalled.Running())
		proxy.Resume()
		require.NoError(t, stalled.Wait(t))
	}
}

// A watch lives on over a cut: the client connects again and misses nothing.
func TestProxyCut(t *testing.T) {
	client, proxy := through(t)
	plain := server.Client(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ch := client.Watch(ctx, t.Name(), clientv3.WithCreatedNotify())
	resp := <-ch
	require.True(t, resp.Created)
	proxy.Refuse()
	proxy.Cut()
	etcdtest.Eventually(t, func() bool {
		return client.ActiveConnection().GetState() != connectivity.Ready
	}, "the client is disconnected")
	_, err := plain.Put(ctx, t.Name(), "meanwhile")
	require.NoError(t, err)
	proxy.Accept()
	resp = <-ch
	require.Equal(t, "meanwhile", string(resp.Events[0].Kv.Value))
}

func TestProxyRefuse(t *testing.T) {
	_, proxy := through(t)
	proxy.Refuse()
	client := etcdtest.Dial(t, proxy.Endpoint())
	etcdtest.Eventually(t, func() bool {
		client.ActiveConnection().Connect()
		return client.ActiveConnection().GetState() == connectivity.TransientFailure
	}, "the client is refused")
	proxy.Accept()
	require.NoError(t, put(t.Context(), client, t.Name()).Wait(t))
}

func TestProxyDelay(t *testing.T) {
	const delay, calls = 50 * time.Millisecond, 100
	client, proxy := through(t)
	proxy.Delay(delay)
	start := time.Now()
	require.NoError(t, put(t.Context(), client, t.Name()).Wait(t))
	require.GreaterOrEqual(t, time.Since(start), 2*delay, "there and back")

	// One after the other these would take 100 round trips.
	start = time.Now()
	var wg sync.WaitGroup
	for i := range calls {
		wg.Go(func() {
			_, err := client.Put(t.Context(), fmt.Sprint(t.Name(), i), "")
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.Less(t, time.Since(start), calls*2*delay/2, "many can be under way")
}

func TestProxyClose(t *testing.T) {
	client, proxy := through(t)
	proxy.Stall()
	ctx, cancel := context.WithCancel(t.Context())
	stalled := put(ctx, client, t.Name())
	closed := etcdtest.Go(func() error {
		proxy.Close()
		proxy.Close()
		return nil
	})
	require.NoError(t, closed.Wait(t), "a stall doesn't keep it")
	cancel()
	require.Error(t, stalled.Wait(t))
	_, err := net.Dial("tcp", strings.TrimPrefix(proxy.Endpoint(), "http://"))
	require.Error(t, err, "the port is free")
}

// A proxy outlives its server: it closes what it can't pass on.
func TestProxyWithoutServer(t *testing.T) {
	proxy, err := fault.NewProxy("127.0.0.1:1")
	require.NoError(t, err)
	t.Cleanup(proxy.Close)
	conn, err := net.Dial("tcp", strings.TrimPrefix(proxy.Endpoint(), "http://"))
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(never)))
	_, err = conn.Read(make([]byte, 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, context.DeadlineExceeded)
}
