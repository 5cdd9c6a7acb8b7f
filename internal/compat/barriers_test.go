package compat

import (
	"context"
	"errors"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	recipe "go.etcd.io/etcd/client/v3/experimental/recipes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
	"example.com/etcd/concurrency/internal/library"
)

// barrierRows are run on the recipes of etcd's client, which stand on upstream's package, and on
// this package.
var barrierRows = []row{
	{"B1", "a compaction lets nobody pass a barrier", []part{
		{name: "Wait", run: compactedBarrier, plain: true, members: 1, upstream: "passed"},
		{name: "Enter", run: compactedEnter, plain: true, members: 1, upstream: "entered alone"},
	}},
	{"B2", "a wait at a barrier ends with its context", []part{
		{name: "Wait", run: barrierContext, plain: true, upstream: "still waiting"},
		{name: "Enter", run: enterContext, plain: true, upstream: "still waiting"},
	}},
	{"B3", "a participant of a double barrier whose session is gone hears of it", []part{
		{run: deadParticipant, plain: true, upstream: "still waiting"},
	}},
	{"B4", "who dies before all have come is not counted, who dies inside keeps nobody from leaving", []part{
		{run: theDead, plain: true},
	}},
}

// The recipes take no context.
type barrier interface {
	Hold(ctx context.Context) error
	Release(ctx context.Context) error
	Wait(ctx context.Context) error
}

type recipeBarrier struct{ *recipe.Barrier }

func (b recipeBarrier) Hold(context.Context) error    { return b.Barrier.Hold() }
func (b recipeBarrier) Release(context.Context) error { return b.Barrier.Release() }
func (b recipeBarrier) Wait(context.Context) error    { return b.Barrier.Wait() }

func (e *env) barrier(c *clientv3.Client) barrier {
	if ours(e.lib) {
		return concurrency.NewBarrier(c, e.name)
	}
	return recipeBarrier{recipe.NewBarrier(c, e.name)}
}

type doubleBarrier interface {
	Enter(ctx context.Context) error
	Leave(ctx context.Context) error
}

type recipeDoubleBarrier struct{ *recipe.DoubleBarrier }

func (b recipeDoubleBarrier) Enter(context.Context) error { return b.DoubleBarrier.Enter() }
func (b recipeDoubleBarrier) Leave(context.Context) error { return b.DoubleBarrier.Leave() }

func (e *env) doubleBarrier(s library.Session, n int) doubleBarrier {
	if ours(e.lib) {
		return concurrency.NewDoubleBarrier(s.(library.Bare).Bare(), e.name, n)
	}
	return recipeDoubleBarrier{recipe.NewDoubleBarrier(s.(library.BareUpstream).Bare(), e.name, n)}
}

// enters starts an Enter of a session of its own, and returns when its key stands.
func (e *env) enters(c *clientv3.Client, n, stand int) (library.Session, doubleBarrier, *etcdtest.Call) {
	s := e.session(c, library.SessionOptions{})
	b := e.doubleBarrier(s, n)
	call := etcdtest.Go(func() error { return b.Enter(e.Context()) })
	etcdtest.WaitKeys(e, e.plain, e.name+"/waiters/", stand)
	return s, b, call
}

// compactedWatch is a client whose first watch begins after a compaction.
func (e *env) compactedWatch() (*clientv3.Client, *fault.Faults) {
	c := e.client()
	f := fault.Wrap(c)
	f.CompactBeforeWatch(1, e.name+"-other")
	return c, f
}

// stays is for how long a call must not return. Upstream's, which is to be seen to return, has
// the time for it.
func (e *env) stays() time.Duration {
	if ours(e.lib) {
		return dwell
	}
	return ample
}

func compactedBarrier(e *env) error {
	c, f := e.compactedWatch()
	holder := e.barrier(e.client())
	e.must(holder.Hold(e.Context()))
	call := etcdtest.Go(func() error { return e.barrier(c).Wait(e.Context()) })
	etcdtest.Eventually(e, func() bool { return f.Count(fault.Watch) > 0 }, "the wait watches")
	if returned(call, e.stays()) {
		return errors.New("passed a barrier that is held")
	}
	e.must(holder.Release(e.Context()))
	return ends(call, ample, nil)
}

func compactedEnter(e *env) error {
	c, f := e.compactedWatch()
	_, _, one := e.enters(c, 2, 1)
	etcdtest.Eventually(e, func() bool { return f.Count(fault.Watch) > 0 }, "the wait watches")
	if returned(one, e.stays()) {
		return errors.New("entered alone")
	}
	_, _, two := e.enters(e.client(), 2, 2)
	return errors.Join(ends(one, ample, nil), ends(two, ample, nil))
}

func barrierContext(e *env) error {
	ctx, cancel := context.WithTimeout(e.Context(), 50*time.Millisecond)
	defer cancel()
	e.must(e.barrier(e.client()).Hold(e.Context()))
	return ends(etcdtest.Go(func() error { return e.barrier(e.client()).Wait(ctx) }), soon, context.DeadlineExceeded)
}

func enterContext(e *env) error {
	ctx, cancel := context.WithTimeout(e.Context(), 50*time.Millisecond)
	defer cancel()
	b := e.doubleBarrier(e.session(e.client(), library.SessionOptions{}), 2)
	return ends(etcdtest.Go(func() error { return b.Enter(ctx) }), soon, context.DeadlineExceeded)
}

func deadParticipant(e *env) error {
	s, _, call := e.enters(e.client(), 2, 1)
	_, err := e.plain.Revoke(e.Context(), s.Lease())
	e.must(err)
	return ends(call, soon, e.lib.ErrSessionExpired)
}

func theDead(e *env) error {
	before, _, _ := e.enters(e.client(), 2, 1)
	_, err := e.plain.Revoke(e.Context(), before.Lease())
	e.must(err)
	_, one, first := e.enters(e.client(), 2, 1)
	if returned(first, dwell) {
		return errors.New("the dead was counted")
	}
	inside, _, second := e.enters(e.client(), 2, 2)
	if err := errors.Join(ends(first, ample, nil), ends(second, ample, nil)); err != nil {
		return err
	}
	call := etcdtest.Go(func() error { return one.Leave(e.Context()) })
	if returned(call, dwell) {
		return errors.New("left before the other")
	}
	_, err = e.plain.Revoke(e.Context(), inside.Lease())
	e.must(err)
	return ends(call, ample, nil)
}
