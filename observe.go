package concurrency

import (
	"context"
	"iter"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	v3 "go.etcd.io/etcd/client/v3"
)

// This file tells who leads. An observer looks once, and then follows the line by one watch. An
// example, of three candidates:
//
//	what happens                what is known    what is told
//	-------------------------   --------------   -----------------------------------
//	20: the look                a, b; whole      a, as of 20
//	22: a proclaims a value     a, b             a, as of 22
//	25: c comes                 a, b, c          nothing, because a still leads
//	27: a is deleted            b, c             b, as of 27, without a call
//	29: b and c are deleted     nobody; whole    that nobody leads, if it is wanted
//
// Of a long line, only the oldest are known. If all of these are gone, another look is due.

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
	// The channel has no buffer, because a leader in a buffer grows old.
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
	return observer{client: l.client, prefix: e.queue.prefix, patience: l.patience(), trace: l.trace}
}

// leaderIn is who leads by what was read or told; the zero Leader if nobody does.
func leaderIn(resp *v3.GetResponse) Leader {
	if len(resp.Kvs) == 0 {
		return Leader{}
	}
	kv := resp.Kvs[0]
	return Leader{string(kv.Key), kv.CreateRevision, string(kv.Value), resp.Header.Revision}
}

// observer is what one Observe or Leaders knows of the election: the head of the line at one
// revision. A look shows it, and one watch of the whole line tells what becomes of it. So who
// follows a leader is known without a look, as in [view.hear].
type observer struct {
	client    *v3.Client
	prefix    string
	patience  time.Duration // within which a change is to be told
	vacancies bool          // that nobody leads is to be told
	trace     *tracing      // of the session; nil for none

	rev     int64              // up to which the line is known
	line    []*mvccpb.KeyValue // the oldest candidates, in their order
	whole   bool               // line has all candidates
	pending *v3.GetResponse    // the latest state that is not told; nil: none
	told    *v3.GetResponse    // what was told last
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
		// Each loop has an observer of its own, a copy of o. So each loop begins with the
		// present state.
		ctx, cancel := context.WithCancel(ctx)
		out, end := make(chan *v3.GetResponse), make(chan error, 1)
		go func(o observer) {
			// The error is in end before out is closed. A loop left early does not take it.
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
// error. It returns that error.
func (o *observer) observe(ctx context.Context, out chan<- *v3.GetResponse) error {
	bound, cancel := untilClosed(ctx, o.client)
	defer cancel()
	if err := o.look(bound); err != nil {
		return err
	}
	// The watch begins later than the look. Its first news say at which revision, see hear.
	w := sharedOf(o.client).watches.watch(bound, o.client, o.patience, o.prefix, 0, v3.WithPrefix())
	defer w.stop()
	for {
		// A send on a nil channel never happens. So nothing is told while nothing is pending.
		// While the reader is slow, a newer state takes the place of the pending one.
		var tell chan<- *v3.GetResponse
		if o.pending != nil {
			tell = out
		}
		stale := false
		select {
		case tell <- o.pending:
			o.told, o.pending = o.pending, nil
		case news := <-w.heard():
			stale = o.hear(news)
		case <-bound.Done():
			stale = true // the look tells the reason
		}
		if stale {
			if err := o.look(bound); err != nil {
				return err
			}
		}
	}
}

// look reads the head of the line, at one revision. It is linearizable. It reads one key more
// than is kept, because that key shows whether others follow. It reads the values, too, because
// the next leader is told without another look.
func (o *observer) look(ctx context.Context) error {
	resp, err := repeat(ctx, forever, o.patience, o.trace, func(ctx context.Context) (*v3.GetResponse, error) {
		return keysOnce(o.client).Get(ctx, o.prefix, v3.WithPrefix(),
			v3.WithSort(v3.SortByCreateRevision, v3.SortAscend), v3.WithLimit(nearby+1))
	})
	if err != nil {
		return err
	}
	o.line, o.whole = resp.Kvs, true
	o.shorten()
	o.offer(resp.Header)
	return nil
}

// shorten keeps the line as long as is useful, whoever comes.
func (o *observer) shorten() {
	if len(o.line) > nearby {
		o.line, o.whole = o.line[:nearby], false
	}
}

// offer makes the state at the revision of the header the next to be told, unless it is what
// was told last. What was to be told before is older, and is skipped.
func (o *observer) offer(header *pb.ResponseHeader) {
	// The mod revision tells one value from another, also when both are the same text.
	state := func(r *v3.GetResponse) ticket { // of the leader's key; none when nobody leads
		if len(r.Kvs) == 0 {
			return ticket{}
		}
		return ticket{string(r.Kvs[0].Key), r.Kvs[0].ModRevision}
	}
	o.rev = header.Revision
	// hear changes the line in place. What was told must stay as it was.
	now := &v3.GetResponse{Header: header, Kvs: slices.Clone(o.line[:min(len(o.line), 1)])}
	now.Count = int64(len(now.Kvs))
	switch o.pending = nil; {
	case now.Count == 0 && !o.vacancies:
	case o.told == nil || state(o.told) != state(now):
		o.pending = now
	}
}

// hear takes in what the watch told. It reports whether a look is needed to know who leads.
func (o *observer) hear(news v3.WatchResponse) (stale bool) {
	if news.Canceled || news.Created {
		return missed(news, o.rev)
	}
	last := o.rev
	for _, ev := range news.Events {
		if ev.Kv.ModRevision <= o.rev { // the look has shown it, or what came after
			continue
		}
		last = ev.Kv.ModRevision
		i := slices.IndexFunc(o.line, func(kv *mvccpb.KeyValue) bool { return string(kv.Key) == string(ev.Kv.Key) })
		switch {
		case i >= 0 && ev.Type == mvccpb.Event_DELETE:
			o.line = slices.Delete(o.line, i, i+1)
		case i >= 0:
			o.line[i] = ev.Kv // a new value
		// A new candidate stands last. In a line not known whole, others stand between.
		case ev.IsCreate() && o.whole:
			o.line = append(o.line, ev.Kv)
			o.shorten()
		}
	}
	switch {
	// Others may stand behind those that were known.
	case len(o.line) == 0 && !o.whole:
		o.pending = nil
		return true
	case last > o.rev:
		// The header of the watch may be newer than the event. States between two events of one
		// answer are skipped, as for a slow reader.
		o.offer(headerAt(news.Header, last))
	}
	return false
}
