package concurrency

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	v3 "go.etcd.io/etcd/client/v3"
)

// The timer of a process that was paused is late, and an answer that it finds when it goes on
// comes too late.
func TestLossIsFinal(t *testing.T) {
	l := &lease{client: v3.NewCtxClient(t.Context()), deadline: time.Now().Add(-time.Second)}
	l.ctx, l.end = context.WithCancelCause(t.Context())
	l.lost, l.setLost = context.WithCancel(t.Context())
	l.expiry = time.NewTimer(time.Hour)
	require.Equal(t, ErrSessionExpired, l.loss())
	require.Equal(t, ErrSessionExpired, context.Cause(l.ctx))
	l.extend(time.Now(), time.Hour)
	require.Equal(t, ErrSessionExpired, l.loss())
}
