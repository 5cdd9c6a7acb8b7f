package compat

import (
	"sync"
	"testing"

	"go.etcd.io/etcd/server/v3/embed"

	"example.com/etcd/concurrency/internal/etcdtest"
)

// shared is the server of all cases that leave it as it is.
var shared = sync.OnceValue(func() *etcdtest.Cluster {
	c, err := etcdtest.Start()
	if err != nil {
		panic(err)
	}
	return c
})

// pool lends clusters of one kind to the cases that stop members of theirs, compact, or change
// permissions. A cluster belongs to one case at a time. The next one finds all members
// running, and what others have left in the store.
type pool struct {
	start func(testing.TB) *etcdtest.Cluster
	lent  chan struct{} // has room for as many as may run

	mu   sync.Mutex // guards the field below; never held across a start
	free []*etcdtest.Cluster
}

// The pools are bounded, because a machine that runs many clusters has none that is in time.
var (
	single = newPool(3, func(tb testing.TB) *etcdtest.Cluster { return started(tb) })
	triple = newPool(6, func(tb testing.TB) *etcdtest.Cluster { return started(tb, etcdtest.Members(3)) })
	secret = newPool(4, func(tb testing.TB) *etcdtest.Cluster {
		c := started(tb, etcdtest.Config(func(_ int, cfg *embed.Config) {
			cfg.AuthTokenTTL, cfg.BcryptCost = tokenTTL, 4 // the least
		}))
		secure(tb, c)
		return c
	})
)

func newPool(n int, start func(testing.TB) *etcdtest.Cluster) *pool {
	return &pool{start: start, lent: make(chan struct{}, n)}
}

// started is a cluster that outlives the test.
func started(tb testing.TB, opts ...etcdtest.Option) *etcdtest.Cluster {
	tb.Helper()
	c, err := etcdtest.Start(opts...)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// borrow is a cluster for one case, until its test ends.
func (p *pool) borrow(tb testing.TB) *etcdtest.Cluster {
	tb.Helper()
	p.lent <- struct{}{}
	tb.Cleanup(func() { <-p.lent })
	c := p.take()
	if c == nil {
		c = p.start(tb)
	}
	tb.Cleanup(func() {
		if err := c.Mend(); err != nil {
			tb.Error(err)
		}
		if tb.Failed() { // nobody knows what the case has left
			c.Close()
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.free = append(p.free, c)
	})
	return c
}

func (p *pool) take() *etcdtest.Cluster {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) == 0 {
		return nil
	}
	c := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	return c
}

// place is the right to run a cluster of one's own beside those of the pool.
func (p *pool) place(tb testing.TB) {
	p.lent <- struct{}{}
	tb.Cleanup(func() { <-p.lent })
}

// closeClusters ends what no case will use any more.
func closeClusters() {
	for _, p := range []*pool{single, triple, secret} {
		for c := p.take(); c != nil; c = p.take() {
			c.Close()
		}
	}
	shared().Close()
}
