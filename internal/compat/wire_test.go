package compat

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/library"
)

// wire runs a test with both packages, each of them first once.
func wire(t *testing.T, test func(t *testing.T, first, second *env)) {
	t.Parallel()
	here, theirs := library.Here, library.Upstream
	for _, order := range [][2]library.Library{{here, theirs}, {theirs, here}} {
		t.Run(order[0].Name+" first", func(t *testing.T) {
			t.Parallel()
			first := newEnv(t, order[0], variant{path: direct}, &part{})
			second := *first
			second.lib = order[1]
			test(t, first, &second)
		})
	}
}

// as gives both packages the same primitive.
func as(f form, envs ...*env) {
	for _, e := range envs {
		e.form = f
	}
}

// Four in one line, the packages in turn: one at a time holds, in the order of their
// coming, under the same names of keys.
func TestWireOrder(t *testing.T) {
	for _, f := range []form{lock, candidacy} {
		t.Run(string(f), func(t *testing.T) {
			wire(t, func(t *testing.T, first, second *env) {
				as(f, first, second)
				var parties []*party
				var calls []*etcdtest.Call
				for i, e := range []*env{first, second, first, second} {
					p := e.party(partyOptions{})
					parties = append(parties, p)
					if i == 0 {
						require.NoError(t, p.acquire(t.Context()))
						calls = append(calls, etcdtest.Go(func() error { return nil }))
					} else {
						calls = append(calls, p.queue(t.Context(), i+1))
					}
				}
				for i, kv := range first.line() {
					require.Equal(t, parties[i].place(), string(kv.Key))
				}
				for i, p := range parties {
					require.NoError(t, calls[i].Wait(t))
					require.True(t, p.owns())
					require.Equal(t, p.place(), p.handles[0].Key())
					for _, later := range calls[i+1:] {
						require.True(t, later.Running(), "one at a time")
					}
					require.NoError(t, p.release(t.Context()))
				}
				require.Empty(t, first.line())
			})
		})
	}
}

// A waiter that gives up lets nobody past, whoever stands before and behind it.
func TestWireMiddleLeaves(t *testing.T) {
	for _, f := range []form{lock, candidacy} {
		t.Run(string(f), func(t *testing.T) {
			wire(t, func(t *testing.T, first, second *env) {
				as(f, first, second)
				holder, middle := first.party(partyOptions{}), second.party(partyOptions{})
				last := first.party(partyOptions{})
				require.NoError(t, holder.acquire(t.Context()))
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				gone := middle.queue(ctx, 2)
				call := last.queue(t.Context(), 3)
				cancel()
				require.Equal(t, context.Canceled, gone.Wait(t))
				first.waitLine(2)
				require.True(t, call.Running())
				require.NoError(t, holder.release(t.Context()))
				require.NoError(t, call.Wait(t))
			})
		})
	}
}

// A holder whose lease is revoked is followed by a waiter of the other package.
func TestWireLostHolder(t *testing.T) {
	for _, f := range []form{lock, candidacy} {
		t.Run(string(f), func(t *testing.T) {
			wire(t, func(t *testing.T, first, second *env) {
				as(f, first, second)
				holder, waiter := first.party(partyOptions{}), second.party(partyOptions{})
				require.NoError(t, holder.acquire(t.Context()))
				call := waiter.queue(t.Context(), 2)
				holder.revoke()
				require.NoError(t, call.Wait(t))
				require.True(t, waiter.owns())
			})
		})
	}
}

// A lock held by one package fails TryLock of the other.
func TestWireTryLock(t *testing.T) {
	wire(t, func(t *testing.T, first, second *env) {
		one := first.party(partyOptions{}).session.NewMutex(first.name)
		two := second.party(partyOptions{}).session.NewMutex(first.name)
		for range 2 {
			require.NoError(t, one.TryLock(t.Context()))
			require.Equal(t, second.lib.ErrLocked, two.TryLock(t.Context()))
			require.NoError(t, one.Unlock(t.Context()))
			require.NoError(t, two.TryLock(t.Context()))
			require.Equal(t, first.lib.ErrLocked, one.TryLock(t.Context()))
			require.NoError(t, two.Unlock(t.Context()))
		}
		require.Empty(t, first.line())
	})
}

// Workers of both packages around a counter that only the lock keeps right.
func TestWireExclusion(t *testing.T) {
	wire(t, func(t *testing.T, first, second *env) {
		const rounds = 15
		var inside, entries atomic.Int32
		counter := 0 // guarded by the lock alone; the race detector can't see that through etcd
		var mu sync.Mutex
		var wg sync.WaitGroup
		for _, e := range []*env{first, second, first, second} {
			m := e.party(partyOptions{}).session.NewMutex(first.name)
			wg.Go(func() {
				for range rounds {
					if err := m.Lock(t.Context()); err != nil {
						t.Errorf("%s: Lock: %v", e.lib.Name, err)
						return
					}
					if inside.Add(1) != 1 {
						t.Errorf("%s: not alone", e.lib.Name)
					}
					mu.Lock()
					read := counter
					mu.Unlock()
					entries.Add(1)
					mu.Lock()
					counter = read + 1
					mu.Unlock()
					inside.Add(-1)
					if err := m.Unlock(t.Context()); err != nil {
						t.Errorf("%s: Unlock: %v", e.lib.Name, err)
					}
				}
			})
		}
		wg.Wait()
		require.Equal(t, int(entries.Load()), counter)
	})
}

// The leader is of one package, who observes it and follows it of the other.
func TestWireObserve(t *testing.T) {
	wire(t, func(t *testing.T, first, second *env) {
		as(candidacy, first, second)
		leader, _ := first.election()
		follower, p := second.election()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		seen := [2]<-chan *clientv3.GetResponse{follower.Observe(ctx), leader.Observe(ctx)}
		tell := func(want string) {
			for i, ch := range seen {
				require.Equal(t, want, next(ch, ample), "observer %d", i)
			}
			resp, err := follower.Leader(t.Context())
			require.NoError(t, err)
			require.Equal(t, want, value(resp))
		}
		require.NoError(t, leader.Campaign(t.Context(), "a"))
		tell("a")
		for i := range 3 {
			v := fmt.Sprint("a", i)
			require.NoError(t, leader.Proclaim(t.Context(), v))
			tell(v)
		}
		call := p.queueCampaign(follower, 2)
		require.NoError(t, leader.Resign(t.Context()))
		require.NoError(t, call.Wait(t))
		tell("waits")
		require.NoError(t, follower.Proclaim(t.Context(), "b"))
		tell("b")
	})
}

// A leader of one package is resumed by a process on the other, with its lease.
func TestWireResume(t *testing.T) {
	wire(t, func(t *testing.T, first, second *env) {
		as(candidacy, first, second)
		before, p := first.election()
		require.NoError(t, before.Campaign(t.Context(), "a"))
		p.session.Orphan()
		session := second.session(second.client(), library.SessionOptions{Lease: p.session.Lease()})
		resumed := session.ResumeElection(first.name+second.lib.Slash, before.Key(), before.Rev())
		require.NoError(t, resumed.Proclaim(t.Context(), "b"))
		resp, err := before.Leader(t.Context())
		require.NoError(t, err)
		require.Equal(t, "b", value(resp))
		for _, e := range []*env{first, second} {
			require.NoError(t, resumed.Proclaim(t.Context(), "c"))
			waiter := e.party(partyOptions{})
			call := waiter.queue(t.Context(), 2)
			require.NoError(t, resumed.Resign(t.Context()))
			require.NoError(t, call.Wait(t))
			require.NoError(t, waiter.release(t.Context()))
			require.NoError(t, resumed.Campaign(t.Context(), "again"))
			require.Equal(t, before.Key(), resumed.Key())
		}
	})
}
