package concurrency

import (
	"testing"

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
