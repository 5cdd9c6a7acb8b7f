package concurrency

import (
	"context"
	"iter"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	v3 "go.etcd.io/etcd/client/v3"
)

// Observe returns a channel of the leaders and their values, beginning with the present
// one, in the order of revisions. Each response holds one KeyValue. Its key led with its
// value at the revision of the header. A reader who is slower than the changes misses some,
// but never the present leader. The channel does not tell that nobody leads.
// [Election.Leaders] does.
//
// The channel is closed when ctx ends, the client is closed, or the election can't be read
// for a permanent reason, such as a missing permission. Until then transient faults are
// ridden out.
func (e *Election) Observe(ctx context.Context) <-chan *v3.GetResponse {
	need(ctx)
	e.queue.lease()
	out := make(chan *v3.GetResponse)
	go func() {
		defer close(out)
		_ = e.observe(ctx, out, observer{}) // what ended it, the channel can't tell
	}()
	return out
}

// Leader is who leads an election, with which value. The zero Leader is nobody, at a
// revision between those of the leaders before and after it.
type Leader struct {
	Key      string // in etcd
	Rev      int64  // create revision of the key: rises with every change of the leader
	Value    string // as campaigned with or proclaimed
	Revision int64  // at which this was so
}

// Leaders returns an iterator over the changes of the leader and of its value. It begins
// with the present state and goes on in the order of revisions. That nobody leads is a
// change too, and is the zero [Leader]. A loop that is slower than the changes misses some,
// but never the latest.
//
// Only the last pair has an error, which says why there are no more. The error is ctx's
// own, [context.Canceled] when the client was closed, or a permanent one of etcd. A loop
// that is left early leaves nothing running.
func (e *Election) Leaders(ctx context.Context) iter.Seq2[Leader, error] {
	need(ctx)
	e.queue.lease()
	return func(yield func(Leader, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		out, end := make(chan *v3.GetResponse), make(chan error, 1)
		go func() {
			defer close(out)
			end <- e.observe(ctx, out, observer{vacancies: true})
		}()
		defer func() {
			cancel()
			for range out { // until observe has returned
			}
		}()
		for resp := range out {
			var l Leader
			if len(resp.Kvs) > 0 {
				kv := resp.Kvs[0]
				l = Leader{string(kv.Key), kv.CreateRevision, string(kv.Value), resp.Header.Revision}
			}
			if !yield(l, nil) {
				return
			}
		}
		yield(Leader{}, <-end)
	}
}

// observer is what one Observe or Leaders knows of the election. A look shows who leads at
// one revision. A put on the leader's key leaves the leader the leader.
type observer struct {
	vacancies bool // that nobody leads is to be told

	rev     int64           // of the last look
	leader  ticket          // none: nobody led at rev
	pending *v3.GetResponse // the latest that is not told; nil: none
	told    *v3.GetResponse // what was told last
}

// observe tells the leaders until ctx ends, the client ends or a look meets a permanent
// error. It returns that error. While somebody leads it watches that key, otherwise the
// whole prefix. As in wait, a watch that began later than the last look calls for another
// look.
func (e *Election) observe(ctx context.Context, out chan<- *v3.GetResponse, o observer) error {
	bound, cancel := untilClosed(ctx, e.queue.lease().client)
	defer cancel()
	var w *watcher
	var watched string // the leader's key, or "" for the prefix
	defer func() { w.stop() }()
	for stale := true; ; {
		if stale {
			if err := e.look(bound, &o); err != nil {
				return err
			}
			// Another leader has another key. The watch of the old key would tell nothing
			// of it.
			if w == nil || watched != o.leader.key {
				w.stop()
				watched = o.leader.key
				w = e.watch(bound, watched)
			}
			stale = false
		}
		// A send on a nil channel never happens. So nothing is told while nothing is
		// pending.
		var tell chan<- *v3.GetResponse
		if o.pending != nil {
			tell = out
		}
		select {
		case tell <- o.pending:
			o.told, o.pending = o.pending, nil
		case news := <-w.heard():
			stale = o.hear(news)
		case <-bound.Done():
			stale = true // the look tells the reason
		}
	}
}

// watch watches the leader's key from now on. While there is no leader, it watches for puts
// on any key.
func (e *Election) watch(ctx context.Context, leader string) *watcher {
	l := e.queue.lease()
	if leader != "" {
		return l.watch(ctx, leader, 0)
	}
	return l.watch(ctx, e.queue.prefix, 0, v3.WithPrefix(), v3.WithFilterDelete())
}

// look finds out who leads, at one revision.
func (e *Election) look(ctx context.Context, o *observer) error {
	l := e.queue.lease()
	resp, err := repeatTold(ctx, forever, l.timeToLive(), l.trace, func(ctx context.Context) (*v3.GetResponse, error) {
		return l.client.Get(ctx, e.queue.prefix, v3.WithFirstCreate()...)
	})
	if err != nil {
		return err
	}
	// What was to be told is older than this look, and is skipped.
	o.rev, o.leader, o.pending = resp.Header.Revision, ticket{}, nil
	if len(resp.Kvs) > 0 {
		o.leader = ticketOf(resp.Kvs[0])
	}
	if len(resp.Kvs) > 0 || o.vacancies {
		o.offer(resp)
	}
	return nil
}

// offer makes resp the next to be told, unless it is what was told last.
func (o *observer) offer(resp *v3.GetResponse) {
	// The mod revision tells one value from another, also when both are the same text.
	state := func(r *v3.GetResponse) ticket { // of the leader's key; none when nobody leads
		if len(r.Kvs) == 0 {
			return ticket{}
		}
		return ticket{string(r.Kvs[0].Key), r.Kvs[0].ModRevision}
	}
	if o.told == nil || state(o.told) != state(resp) {
		o.pending = resp
	}
}

// hear takes in what a watch delivered. It reports whether another look is needed to know
// who leads.
func (o *observer) hear(resp v3.WatchResponse) (stale bool) {
	if resp.Canceled || resp.Created {
		return missed(resp, o.rev)
	}
	// A put on the leader's key, in the same life, is a new value. All else calls for a
	// look.
	for _, ev := range resp.Events {
		switch {
		case ev.Kv.ModRevision <= o.rev: // the look has shown it, or what came after
		case o.leader == (ticket{}) || ev.Type == mvccpb.Event_DELETE || ticketOf(ev.Kv) != o.leader:
			// What was to be told is old now. The leader's key is gone, or another key came
			// while there was no leader.
			o.pending = nil
			return true
		default:
			// The header of the watch may be newer than the event. The value held at the
			// event's revision.
			header := pb.ResponseHeader{
				ClusterId: resp.Header.ClusterId, MemberId: resp.Header.MemberId,
				Revision: ev.Kv.ModRevision, RaftTerm: resp.Header.RaftTerm,
			}
			o.offer(&v3.GetResponse{Header: &header, Kvs: []*mvccpb.KeyValue{ev.Kv}, Count: 1})
		}
	}
	return false
}
