package concurrency

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	v3 "go.etcd.io/etcd/client/v3"
)

// turnWait bounds how long a transaction waits for those of the same client with which
// it conflicts. Then it goes on without a turn, and may conflict.
const turnWait = 50 * time.Millisecond

// turn lets the transactions of one client that read and write one key, and have conflicted
// on it, commit one after the other, instead of each spending a proposal of the servers'
// log on losing. It exists while somebody uses it. Nothing rests on it: the servers decide
// about every commit.
type turn struct {
	at    turnKey
	slot  chan struct{} // full while somebody has the turn
	users int           // who have the turn or wait for it; guarded by turns

	// last is the state that the latest commit in turn has left. Who has the turn may
	// use it, and need not find out from the servers.
	last snapshot
}

type turnKey struct {
	client *v3.Client
	key    string
}

var turns = struct {
	sync.Mutex
	at map[turnKey]*turn
}{at: map[turnKey]*turn{}}

// takeTurn waits for the turn at the first of the keys that has one; with create, that is
// the first key. It returns nil if there is none, and says so if the wait was in vain.
func takeTurn(ctx context.Context, client *v3.Client, keys []string, create bool) (t *turn, inVain bool) {
	t = joinTurn(client, keys, create)
	if t == nil {
		return nil, false
	}
	timer := time.NewTimer(turnWait)
	defer timer.Stop()
	select {
	case t.slot <- struct{}{}:
		return t, false
	case <-ctx.Done():
	case <-timer.C:
	}
	t.leave()
	return nil, true
}

func joinTurn(client *v3.Client, keys []string, create bool) *turn {
	turns.Lock()
	defer turns.Unlock()
	for _, key := range keys {
		at := turnKey{client, key}
		t := turns.at[at]
		if t == nil && create {
			t = &turn{at: at, slot: make(chan struct{}, 1)}
			turns.at[at] = t
		}
		if t != nil {
			t.users++
			return t
		}
	}
	return nil
}

func (t *turn) leave() {
	turns.Lock()
	defer turns.Unlock()
	if t.users--; t.users == 0 {
		delete(turns.at, t.at)
	}
}

// release passes the turn on. A nil turn is none.
func (t *turn) release() {
	if t != nil {
		<-t.slot
		t.leave()
	}
}

// wantTurn takes the turn, unless the attempt has one or its transaction has waited in vain
// before. Only keys that were read and written count: those who only read a key do not make
// each other conflict, and need no order.
func (a *attempt) wantTurn(keys []string, create bool) {
	if a.turn != nil || a.waited {
		return
	}
	keys = slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return a.written(key) < 0 })
	a.turn, a.waited = takeTurn(a.options.ctx, a.client, keys, create)
}

// newer returns what the turn knows, if that is newer than s.
func (t *turn) newer(s snapshot) snapshot {
	if t != nil && t.last.header != nil && t.last.header.Revision > s.header.Revision {
		return t.last
	}
	return s
}

// left is the state in which the attempt leaves the keys that it touched, if resp is the
// answer to its commit: what it read was unchanged, and what it wrote is of the commit's
// revision. The options of a Put may make that another value than was given.
func (a *attempt) left(resp *v3.TxnResponse) snapshot {
	known := maps.Clone(a.reads)
	for _, w := range a.writes {
		switch {
		case w.op.IsDelete():
			known[w.key] = nil
		case w.plain:
			known[w.key] = &mvccpb.KeyValue{Key: []byte(w.key), Value: []byte(w.value), ModRevision: resp.Header.Revision}
		default:
			delete(known, w.key)
		}
	}
	return snapshot{resp.Header, known}
}
