package worlds

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"example.com/etcd/concurrency/internal/history"
)

// auditor records every change of every key, without a gap, in the instant in which it
// happens. It stands on the server itself, where no network lies between.
type auditor struct {
	rec  *history.Recorder
	late func() time.Duration // how long before this instant the request was sent that arrived in it

	stream mvcc.WatchStream // nil while the server is down
	read   chan struct{}    // closed when all that the stream told was recorded

	mu    sync.Mutex               // guards the fields below
	rev   int64                    // of the last change that was recorded
	lives map[string]*history.Life // by key
	gone  map[int64]time.Duration  // when a ticket's end came
	lates map[int64]time.Duration  // by ticket: see late
	lost  error
}

func newAuditor(rec *history.Recorder, late func() time.Duration) *auditor {
	return &auditor{
		rec: rec, late: late, lives: map[string]*history.Life{}, gone: map[int64]time.Duration{},
		lates: map[int64]time.Duration{},
	}
}

// attach lets the auditor follow a server that has just started.
func (a *auditor) attach(etcd *etcdserver.EtcdServer) {
	a.stream, a.read = etcd.Watchable().NewWatchStream(), make(chan struct{})
	from := a.seen() + 1
	if from == 1 {
		from = etcd.KV().Rev() + 1 // from now on: nobody has written yet
	}
	if _, err := a.stream.Watch(context.Background(), 0, []byte{0}, []byte{}, from); err != nil {
		a.lost = err
	}
	go func() {
		defer close(a.read)
		for resp := range a.stream.Chan() {
			a.note(resp)
		}
	}()
}

// detach ends what attach began.
func (a *auditor) detach() {
	if a.stream != nil {
		a.stream.Close()
		<-a.read
		a.stream = nil
	}
}

// finish records who still stands in line.
func (a *auditor) finish() {
	a.detach()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(a.lives)) {
		a.rec.Add(history.Record{Life: a.lives[key]})
	}
}

// seen is the revision up to which nothing is missing.
func (a *auditor) seen() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.rev
}

// goneAt is when the news came that a ticket is gone.
func (a *auditor) goneAt(token int64) (time.Duration, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at, ok := a.gone[token]
	return at, ok
}

// lateness is how long the request was under way that put a ticket.
func (a *auditor) lateness(token int64) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lates[token]
}

// stander is the life of a key that stands.
type stander struct {
	history.Life
	key string
}

// line is who stands in the lines, in the order of arrival.
func (a *auditor) line() (lives []stander) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, life := range a.lives {
		lives = append(lives, stander{*life, key})
	}
	slices.SortFunc(lives, func(a, b stander) int {
		return cmp.Or(cmp.Compare(a.Token, b.Token), strings.Compare(a.key, b.key))
	})
	return lives
}

func (a *auditor) note(resp mvcc.WatchResponse) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if resp.CompactRevision > 0 {
		a.lost = fmt.Errorf("the auditor missed what was compacted before revision %d", resp.CompactRevision)
	}
	for _, ev := range resp.Events {
		a.change(ev)
		a.rev = ev.Kv.ModRevision
	}
}

func (a *auditor) change(ev *mvccpb.Event) {
	key, now := string(ev.Kv.Key), a.rec.Now()
	area, rest, _ := strings.Cut(key, "/")
	switch area + "/" {
	case dataArea:
		w := history.Write{Name: rest, Rev: ev.Kv.ModRevision, At: now}
		if _, err := fmt.Sscanf(string(ev.Kv.Value), guardedFormat, &w.Token, &w.Client, &w.Package); err != nil {
			a.lost = fmt.Errorf("%q: %w", ev.Kv.Value, err)
		}
		a.rec.Add(history.Record{Write: &w})
	case registerArea:
		a.rec.Add(history.Record{Commit: &history.Commit{
			Key: key, Value: string(ev.Kv.Value), Rev: ev.Kv.ModRevision, At: now,
		}})
	case meetArea:
		if name, ok := strings.CutSuffix(key, "/ready"); ok {
			a.begin(name, now, ev)
			return
		}
		a.changeLine(key, now, ev)
	case lineArea:
		a.changeLine(key, now, ev)
	}
}

// begin records that a round of a double barrier begins.
func (a *auditor) begin(name string, now time.Duration, ev *mvccpb.Event) {
	r := history.Round{Name: name, Of: participants(name), Rev: ev.Kv.ModRevision, At: now}
	var err error
	if r.Last, err = strconv.ParseInt(string(ev.Kv.Value), 10, 64); err != nil {
		a.lost = err
	}
	a.rec.Add(history.Record{Round: &r})
}

func (a *auditor) changeLine(key string, now time.Duration, ev *mvccpb.Event) {
	life := a.lives[key]
	switch {
	case ev.Type == mvccpb.Event_DELETE && life != nil:
		life.Deleted, life.Gone = ev.Kv.ModRevision, now
		a.gone[life.Token] = now
		a.rec.Add(history.Record{Life: life})
		delete(a.lives, key)
	case ev.Type == mvccpb.Event_PUT && ev.Kv.CreateRevision == ev.Kv.ModRevision:
		a.lates[ev.Kv.CreateRevision] = a.late()
		life := history.LifeOf(key, 2)
		life.Token, life.Lease, life.Created = ev.Kv.CreateRevision, ev.Kv.Lease, now
		life.Value = string(ev.Kv.Value)
		a.lives[key] = &life
	}
}
