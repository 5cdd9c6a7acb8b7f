package concurrency

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	v3 "go.etcd.io/etcd/client/v3"
)

func TestTurnIsPassedOn(t *testing.T) {
	var client *v3.Client
	first, _ := takeTurn(t.Context(), client, []string{"passed on"}, true)
	second := joinTurn(client, []string{"passed on"}, false)
	require.Same(t, first, second)
	first.release()
	select {
	case second.slot <- struct{}{}:
	default:
		require.Fail(t, "the turn was kept")
	}
	second.release()
	require.Nil(t, joinTurn(client, []string{"passed on"}, false))
}

func TestReadersTakeNoTurns(t *testing.T) {
	a := &attempt{options: stmOptions{ctx: t.Context()}, writes: []write{{key: "written"}}}
	a.wantTurn([]string{"only read"}, true)
	require.Nil(t, a.turn)
	a.wantTurn([]string{"only read", "written"}, true)
	require.NotNil(t, a.turn)
	require.Equal(t, "written", a.turn.at.key)
	a.turn.release()
}

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
