package concurrency_test

import (
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"example.com/etcd/concurrency"
)

func TestScratchRTT(t *testing.T) {
	pct, _ := strconv.Atoi(os.Getenv("PCT"))
	p, c := proxied(t, server(t))
	_, err := c.Get(t.Context(), "x")
	require.NoError(t, err)
	p.Delay(time.Duration(pct) * 20 * time.Millisecond)
	start := time.Now()
	s, err := concurrency.NewSession(c, concurrency.WithTTL(4))
	require.NoError(t, err)
	t.Log("opened after", time.Since(start), "left", time.Until(s.Deadline()))
	select {
	case <-s.Done():
		t.Fatal("lost after", time.Since(start))
	case <-time.After(20 * time.Second):
	}
	p.Delay(0)
}
