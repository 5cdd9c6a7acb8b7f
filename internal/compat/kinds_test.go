package compat

import (
	"context"
	"errors"
	"fmt"

	recipe "go.etcd.io/etcd/client/v3/experimental/recipes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
	"example.com/etcd/concurrency/internal/library"
)

// kindRows are about the kinds of locks that upstream's package has not, and its recipes have.
var kindRows = []row{
	{"K1", "a reader or writer whose session is lost while it waits is not let in", []part{
		{name: "reader", run: phantomReader, upstream: "let in without a key"},
		{name: "writer", run: phantomWriter, upstream: "let in without a key"},
	}},
	{"K2", "a wait of a reader or writer obeys its context, and leaves no key", []part{
		{name: "reader", run: readerGivesUp, upstream: "still waiting"},
		{name: "writer", run: writerGivesUp, upstream: "still waiting"},
	}},
	{"K3", "a compaction before the watch of a reader does not end its wait", []part{
		{run: compactedReader, members: 1},
	}},
	{"K4", "readers and a Mutex of the same name exclude each other", []part{
		{name: "reader behind", run: readerBehindMutex, upstream: "reads beside the Mutex"},
		{name: "Mutex behind", run: mutexBehindReaders},
	}},
}

// shareable is a read-write lock of a package or of its recipes.
type shareable interface {
	Lock(ctx context.Context) error
	Unlock(ctx context.Context) error
	RLock(ctx context.Context) error
	RUnlock(ctx context.Context) error
}

// fromRecipe is the recipes' lock, which takes no context.
type fromRecipe struct{ *recipe.RWMutex }

func (r fromRecipe) Lock(context.Context) error    { return r.RWMutex.Lock() }
func (r fromRecipe) Unlock(context.Context) error  { return r.RWMutex.Unlock() }
func (r fromRecipe) RLock(context.Context) error   { return r.RWMutex.RLock() }
func (r fromRecipe) RUnlock(context.Context) error { return r.RWMutex.RUnlock() }

// shared is a handle of the party's.
func (p *party) shared() shareable {
	switch s := p.session.(type) {
	case library.Bare:
		return concurrency.NewRWMutex(s.Bare(), p.name)
	case library.BareUpstream:
		return fromRecipe{recipe.NewRWMutex(s.Bare(), p.name)}
	}
	panic("a session of neither package")
}

// behindWriter is a party that waits behind a writer.
func (e *env) behindWriter(
	ctx context.Context, how func(shareable, context.Context) error,
) (writer shareable, waiter *party, call *etcdtest.Call) {
	holder, waiter := e.party(partyOptions{}), e.party(partyOptions{})
	writer = holder.shared()
	e.must(writer.Lock(ctx))
	m := waiter.shared()
	call = etcdtest.Go(func() error { return how(m, ctx) })
	e.waitLine(2)
	etcdtest.Eventually(e, func() bool { return waiter.faults.Count(fault.Watch) > 0 }, "it waits")
	return writer, waiter, call
}

func phantomReader(e *env) error { return phantom(e, shareable.RLock) }
func phantomWriter(e *env) error { return phantom(e, shareable.Lock) }

// The lease of a waiter is revoked. Then the turn would have come.
func phantom(e *env, how func(shareable, context.Context) error) error {
	writer, waiter, call := e.behindWriter(e.Context(), how)
	waiter.revoke()
	e.waitLine(1)
	if ours(e.lib) {
		return ends(call, soon, e.lib.ErrSessionExpired)
	}
	e.must(writer.Unlock(e.Context()))
	if !returned(call, ample) {
		return errors.New("still waiting")
	}
	if call.Err() == nil {
		return errors.New("let in without a key")
	}
	return nil
}

func readerGivesUp(e *env) error { return givesUp(e, shareable.RLock) }
func writerGivesUp(e *env) error { return givesUp(e, shareable.Lock) }

func givesUp(e *env, how func(shareable, context.Context) error) error {
	ctx, cancel := context.WithCancel(e.Context())
	defer cancel()
	writer, _, call := e.behindWriter(ctx, how)
	cancel()
	err := ends(call, soon, context.Canceled)
	if err == nil {
		e.waitLine(1)
		return nil
	}
	e.must(writer.Unlock(e.Context()))
	<-call.Done()
	return err
}

func compactedReader(e *env) error {
	holder, waiter := e.party(partyOptions{}), e.party(partyOptions{})
	writer, reader := holder.shared(), waiter.shared()
	e.must(writer.Lock(e.Context()))
	waiter.faults.CompactBeforeWatch(1, e.name+"-other")
	call := etcdtest.Go(func() error { return reader.RLock(e.Context()) })
	etcdtest.Eventually(e, func() bool {
		return !call.Running() || waiter.faults.Count(fault.Watch) > 1
	}, "the waiter watches again")
	if !call.Running() {
		return fmt.Errorf("the wait ended: %w", call.Err())
	}
	e.must(writer.Unlock(e.Context()))
	return ends(call, ample, nil)
}

func readerBehindMutex(e *env) error {
	holder, waiter := e.party(partyOptions{}), e.party(partyOptions{})
	m, reader := holder.session.NewMutex(e.name), waiter.shared()
	e.must(m.Lock(e.Context()))
	call := etcdtest.Go(func() error { return reader.RLock(e.Context()) })
	e.waitLine(2)
	if !ours(e.lib) && returned(call, ample) {
		return errors.New("reads beside the Mutex")
	}
	etcdtest.Eventually(e, func() bool {
		return !call.Running() || waiter.faults.Count(fault.Watch) > 1
	}, "it waits")
	if !call.Running() {
		return errors.New("reads beside the Mutex")
	}
	e.must(m.Unlock(e.Context()))
	return ends(call, ample, nil)
}

// The readers leave in the order in which they did not come.
func mutexBehindReaders(e *env) error {
	parties := []*party{e.party(partyOptions{}), e.party(partyOptions{}), e.party(partyOptions{})}
	a, b := parties[0].shared(), parties[1].shared()
	e.must(a.RLock(e.Context()))
	e.must(b.RLock(e.Context()))
	m := parties[2].session.NewMutex(e.name)
	call := etcdtest.Go(func() error { return m.Lock(e.Context()) })
	e.waitLine(3)
	etcdtest.Eventually(e, func() bool { return parties[2].faults.Count(fault.Watch) > 0 }, "it waits")
	watches := parties[2].faults.Count(fault.Watch)
	e.must(b.RUnlock(e.Context()))
	e.waitLine(2)
	// This package's goes on with the watch that it has.
	etcdtest.Eventually(e, func() bool {
		return ours(e.lib) || !call.Running() || parties[2].faults.Count(fault.Watch) > watches
	}, "it watches the other reader")
	if !call.Running() {
		return fmt.Errorf("locked beside a reader: %w", call.Err())
	}
	e.must(a.RUnlock(e.Context()))
	return ends(call, ample, nil)
}
