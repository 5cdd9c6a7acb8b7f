package main

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/history"
)

// auditor records every change under root, from the first revision on and without a gap, as
// the servers tell it on a connection that no fault reaches. Compactions must leave it what
// it has not read.
type auditor struct {
	client *clientv3.Client
	rec    *history.Recorder

	mu      sync.Mutex // guards the fields below
	rev     int64      // of the last change that was recorded
	lives   map[string]*history.Life
	changed chan struct{} // closed with the next change
	err     error
}

func newAuditor(client *clientv3.Client, rec *history.Recorder) *auditor {
	return &auditor{
		client: client, rec: rec, lives: map[string]*history.Life{}, changed: make(chan struct{}),
	}
}

// run records until ctx ends.
func (a *auditor) run(ctx context.Context) {
	for ctx.Err() == nil {
		bound, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
		for resp := range a.client.Watch(bound, root, clientv3.WithPrefix(), clientv3.WithRev(a.seen()+1)) {
			a.note(resp)
			if resp.Canceled {
				break
			}
		}
		cancel()
		pause(ctx, retryPause)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, life := range a.lives {
		a.rec.Add(history.Record{Life: life})
	}
}

// seen is the revision up to which nothing is missing.
func (a *auditor) seen() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.rev
}

// until waits until a revision was recorded.
func (a *auditor) until(ctx context.Context, rev int64) error {
	for {
		a.mu.Lock()
		seen, changed, err := a.rev, a.changed, a.err
		a.mu.Unlock()
		switch {
		case err != nil:
			return err
		case seen >= rev:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("the auditor is at revision %d, not at %d: %w", seen, rev, ctx.Err())
		}
	}
}

// leads reports whether a key with a value that begins like this is the first in its line.
func (a *auditor) leads(value string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	first := map[string]*history.Life{}
	for _, life := range a.lives {
		if f := first[life.Name]; f == nil || life.Token < f.Token {
			first[life.Name] = life
		}
	}
	for _, life := range first {
		if strings.HasPrefix(life.Value, value) {
			return true
		}
	}
	return false
}

func (a *auditor) note(resp clientv3.WatchResponse) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if resp.CompactRevision > 0 {
		a.err = fmt.Errorf("the auditor missed what was compacted before revision %d", resp.CompactRevision)
	}
	for _, ev := range resp.Events {
		a.change(ev)
		a.rev = ev.Kv.ModRevision
	}
	if len(resp.Events) > 0 || a.err != nil {
		close(a.changed)
		a.changed = make(chan struct{})
	}
}

func (a *auditor) change(ev *clientv3.Event) {
	key, now := string(ev.Kv.Key), a.rec.Now()
	area, rest, _ := strings.Cut(strings.TrimPrefix(key, root), "/")
	switch {
	case area+"/" == dataArea && ev.Type == mvccpb.Event_PUT:
		w := history.Write{Name: root + rest, Rev: ev.Kv.ModRevision, At: now}
		if _, err := fmt.Sscanf(string(ev.Kv.Value), guardedFormat, &w.Token, &w.Client, &w.Package); err != nil {
			a.err = fmt.Errorf("%q: %w", ev.Kv.Value, err)
		}
		a.rec.Add(history.Record{Write: &w})
	case area+"/" == registerArea: // the value of a deletion is ""
		a.rec.Add(history.Record{Commit: &history.Commit{
			Key: key, Value: string(ev.Kv.Value), Rev: ev.Kv.ModRevision, At: now,
		}})
	case area+"/" != lineArea: // accounts, and the end
	case ev.Type == mvccpb.Event_DELETE:
		if life := a.lives[key]; life != nil {
			life.Deleted, life.Gone = ev.Kv.ModRevision, now
			a.rec.Add(history.Record{Life: life})
			delete(a.lives, key)
		}
	case ev.IsCreate():
		life := history.LifeOf(key, lineDepth)
		life.Token, life.Lease, life.Created = ev.Kv.CreateRevision, ev.Kv.Lease, now
		life.Value = string(ev.Kv.Value)
		a.lives[key] = &life
	}
}
