package virtual_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/virtual"
)

func TestIdle(t *testing.T) {
	real := time.Now()
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		client, _ := b.Client("a")
		ctx := context.Background()
		begin := time.Now()
		_, err := client.Put(ctx, "k", "v")
		require.NoError(t, err)
		t.Log(time.Since(begin))
		wctx, cancel := context.WithCancel(ctx)
		ch := client.Watch(wctx, "k", clientv3.WithCreatedNotify())
		t.Log(<-ch)
		client.Put(ctx, "k", "v")
		t.Log(<-ch)
		cancel()
		<-ch
		t.Log(b.Now())
		time.Sleep(time.Hour)
	})
	t.Log(time.Since(real))
}
