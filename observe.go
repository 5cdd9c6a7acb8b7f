package concurrency

import (
	"context"
	"iter"
	"time"

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
	o := e.observer()
	out := make(chan *v3.GetResponse)
	go func() {
		defer close(out)
		_ = o.observe(ctx, out) // what ended it, the channel can't tell
	}()
	return out
}

// Leader returns the leader's key and value, in one call, as of the moment of the answer.
// It returns [ErrElectionNoLeader] when nobody leads. Other errors are ctx's and etcd's.
// [LeaderOf] needs no session.
func (e *Election) Leader(ctx context.Context) (*v3.GetResponse, error) {
	need(ctx)
	return e.observer().ask(ctx)
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
	return e.observer().leaders(ctx)
}

// LeadersOf returns an iterator over the changes of the leader of the election that name names,
// as [Election.Leaders] does. Who only observes needs no session. If a member falls silent on a
// connection that stands, a change is told a minute late at most. LeadersOf makes no call itself,
// and panics if client is nil.
func LeadersOf(ctx context.Context, client *v3.Client, name string) iter.Seq2[Leader, error] {
	return observerOf(ctx, client, name).leaders(ctx)
}

// LeaderOf returns the leader of the election that name names, in one call, as of the moment of
// the answer. It needs no session. It returns [ErrElectionNoLeader] when nobody leads. Other
// errors are ctx's and etcd's. It panics if client is nil.
func LeaderOf(ctx context.Context, client *v3.Client, name string) (Leader, error) {
	resp, err := observerOf(ctx, client, name).ask(ctx)
	if err != nil {
		return Leader{}, err
	}
	return leaderIn(resp), nil
}

func observerOf(ctx context.Context, client *v3.Client, name string) observer {
	need(ctx)
	if client == nil {
		panic("concurrency: nil client")
	}
	return observer{client: client, prefix: name + "/", patience: patience}
}

func (e *Election) observer() observer {
	l := e.queue.lease()
	return observer{client: l.client, prefix: e.queue.prefix, patience: l.timeToLive()}
}

// leaderIn is who leads by what was read or told; the zero Leader if nobody does.
func leaderIn(resp *v3.GetResponse) Leader {
	if len(resp.Kvs) == 0 {
		return Leader{}
	}
	kv := resp.Kvs[0]
	return Leader{string(kv.Key), kv.CreateRevision, string(kv.Value), resp.Header.Revision}
}

// observer is what one Observe or Leaders knows of the election. A look shows who leads at
// one revision. A put on the leader's key leaves the leader the leader.
type observer struct {
	client    *v3.Client
	prefix    string
	patience  time.Duration // within which a change is to be told
	vacancies bool          // that nobody leads is to be told

	rev     int64           // of the last look
	leader  ticket          // none: nobody led at rev
	pending *v3.GetResponse // the latest that is not told; nil: none
	told    *v3.GetResponse // what was told last
}

// ask finds out who leads, with a single call.
func (o observer) ask(ctx context.Context) (*v3.GetResponse, error) {
	resp, err := o.client.Get(ctx, o.prefix, v3.WithFirstCreate()...)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, err
	case len(resp.Kvs) == 0:
		return nil, ErrElectionNoLeader
	}
	return resp, nil
}

// leaders iterates over what a copy of o tells, vacancies included.
func (o observer) leaders(ctx context.Context) iter.Seq2[Leader, error] {
	o.vacancies = true
	return func(yield func(Leader, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		out, end := make(chan *v3.GetResponse), make(chan error, 1)
		go func(o observer) {
			defer close(out)
			end <- o.observe(ctx, out)
		}(o)
		defer func() {
			cancel()
			for range out { // until observe has returned
			}
		}()
		for resp := range out {
			if !yield(leaderIn(resp), nil) {
				return
			}
		}
		yield(Leader{}, <-end)
	}
}

// observe tells the leaders until ctx ends, the client ends or a look meets a permanent
// error. It returns that error. While somebody leads it watches that key, otherwise the
// whole prefix. As in wait, a watch that began later than the last look calls for another
// look.
func (o *observer) observe(ctx context.Context, out chan<- *v3.GetResponse) error {
	bound, cancel := untilClosed(ctx, o.client)
	defer cancel()
	var w *watcher
	var watched string // the leader's key, or "" for the prefix
	defer func() { w.stop() }()
	for stale := true; ; {
		if stale {
			if err := o.look(bound); err != nil {
				return err
			}
			// Another leader has another key. The watch of the old key would tell nothing
			// of it.
			if w == nil || watched != o.leader.key {
				w.stop()
				watched = o.leader.key
				w = o.watch(bound, watched)
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
func (o *observer) watch(ctx context.Context, leader string) *watcher {
	if leader != "" {
		return watch(ctx, o.client, o.patience, leader, 0)
	}
	return watch(ctx, o.client, o.patience, o.prefix, 0, v3.WithPrefix(), v3.WithFilterDelete())
}

// look finds out who leads, at one revision.
func (o *observer) look(ctx context.Context) error {
	resp, err := repeat(ctx, forever, o.patience, func(ctx context.Context) (*v3.GetResponse, error) {
		return o.client.Get(ctx, o.prefix, v3.WithFirstCreate()...)
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
