package concurrency

import (
	"context"
	"iter"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	v3 "go.etcd.io/etcd/client/v3"
)

var resigned = ended(ErrElectionNotLeader)

// Election is a session's candidacy under a name. Candidates lead in the order in
// which they came; the leader's value is seen by all.
//
// All methods may be called from any goroutine.
type Election struct{ ownership }

// NewElection returns a handle of the election that pfx names. Its keys lie under
// pfx + "/", where no other keys may lie; an empty pfx stands for "/". It makes no
// call. NewElection panics if s is nil.
func NewElection(s *Session, pfx string) *Election {
	return &Election{ownership{queue: newQueue(s, pfx), released: resigned}}
}

// ResumeElection returns a handle that leads already, by the key and create
// revision that [Election.Key] and [Election.Rev] gave before, for instance to a
// process that has been restarted and kept its lease with [WithLease]. Whether
// they still lead shows with the next [Election.Proclaim]; an empty key or a
// revision of zero makes a handle that does not lead. pfx is the name that was
// given to [NewElection]; the prefix of all keys, which is the name with its "/" added
// and what upstream's package wants, is understood too. It makes no call. ResumeElection
// panics if s is nil.
func ResumeElection(s *Session, pfx string, leaderKey string, leaderRev int64) *Election {
	e := NewElection(s, pfx)
	if !strings.HasPrefix(leaderKey, e.queue.prefix) && strings.HasSuffix(pfx, "/") {
		e.queue.prefix = pfx
	}
	if leaderKey != "" && leaderRev != 0 {
		e.held = ticket{leaderKey, leaderRev}
		e.queue.lease().grant(e.held)
	}
	return e
}

// Campaign makes the session a candidate with the value val and waits until it
// leads. A session that leads or waits already keeps its place and has val as its
// value from now on.
//
// It blocks, and fails, as [Mutex.Lock] does, and with the same errors. A Campaign
// that fails withdraws the candidacy, except that a leader stays leader. When it
// returns nil the session led at the revision of [Election.Header].
//
// It costs one call without a rival; a wait costs what that of a lock does; a new value for
// a session that stands in line already, one more.
func (e *Election) Campaign(ctx context.Context, val string) error {
	_, err := e.campaign(ctx, val)
	return err
}

func (e *Election) campaign(ctx context.Context, val string) (ticket, error) {
	return e.acquire(ctx, e.queue.joinTxn(val).replacing(), true)
}

// Proclaim gives the leader's key a new value, in one call. It returns
// [ErrElectionNotLeader] if this handle does not lead; once the leadership was lost,
// every time. Other errors are ctx's and etcd's. It is not repeated: after an
// error without an answer the value may be either.
func (e *Election) Proclaim(ctx context.Context, val string) error {
	need(ctx)
	led := e.ticket()
	if led == (ticket{}) {
		return ErrElectionNotLeader
	}
	put := v3.OpPut(led.key, val, v3.WithLease(e.queue.session.id))
	resp, err := e.queue.client().Txn(ctx).If(led.stands()).Then(put).Commit()
	switch {
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return err
	case !resp.Succeeded:
		e.drop(led)
		return ErrElectionNotLeader
	}
	e.note(resp.Header)
	return nil
}

// Resign gives up the leadership, so that the next candidate leads. It is nil if
// this handle does not lead, or not any more.
//
// It costs one call, repeated over transient faults until ctx ends, which is then
// its error; others are etcd's. After an error the key may or may not be deleted yet: when
// ctx has ended the deletion goes on in the background. Resign can be repeated.
func (e *Election) Resign(ctx context.Context) error {
	led := e.ticket()
	if led == (ticket{}) {
		return nil
	}
	header, err := e.giveBack(ctx, led)
	if header != nil {
		e.note(header)
	}
	if err == ErrSessionExpired {
		return nil
	}
	return err
}

// Leader returns the leader's key and value, in one call, as of the moment of the
// answer. It is [ErrElectionNoLeader] when nobody leads; other errors are ctx's and
// etcd's.
func (e *Election) Leader(ctx context.Context) (*v3.GetResponse, error) {
	need(ctx)
	resp, err := e.queue.client().Get(ctx, e.queue.prefix, v3.WithFirstCreate()...)
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

// Observe returns a channel of the leaders and their values, beginning with the
// present one, in the order of revisions. Each response holds one KeyValue, that
// of who led with this value at the revision of the header. A reader who is
// slower than the changes misses some, never who leads at last; that nobody leads is
// not told, other than by [Election.Leaders].
//
// The channel is closed when ctx ends, the client is closed, or the election can't
// be read for a permanent reason, such as a missing permission. Until then
// transient faults are ridden out.
func (e *Election) Observe(ctx context.Context) <-chan *v3.GetResponse {
	need(ctx)
	e.queue.lease()
	out := make(chan *v3.GetResponse)
	go func() {
		defer close(out)
		_ = e.observe(ctx, out, false) // what ended it, the channel can't tell
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

// Leaders returns an iterator over the changes of the leader and of its value, beginning
// with the present state, in the order of revisions. That nobody leads is a change too:
// the zero [Leader]. A loop that is slower than the changes misses some, never the
// latest.
//
// The last pair alone has an error, which says why there are no more: ctx's own,
// [context.Canceled] when the client was closed, or a permanent one of etcd. A loop that
// is left early leaves nothing running.
func (e *Election) Leaders(ctx context.Context) iter.Seq2[Leader, error] {
	need(ctx)
	return func(yield func(Leader, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		out, end := make(chan *v3.GetResponse), make(chan error, 1)
		go func() {
			defer close(out)
			end <- e.observe(ctx, out, true)
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

// Key returns the leader's key in etcd if this handle was elected, "" otherwise.
func (e *Election) Key() string { return e.ticket().key }

// Rev returns the create revision of the leader's key if this handle was elected, 0
// otherwise. It rises with every change of the leader.
func (e *Election) Rev() int64 { return e.ticket().rev }

// Header returns the header of the latest answer that proved or ended the
// leadership of this handle: to Campaign, Proclaim or Resign; nil before that.
func (e *Election) Header() *pb.ResponseHeader {
	_, header := e.state()
	return header
}

// IsLeader returns a comparison that is true in a transaction only while this handle
// leads, see [Mutex.IsOwner].
func (e *Election) IsLeader() v3.Cmp { return e.stands() }

// Ctx returns a context that ends with this handle's leadership, as [Mutex.Ctx] does
// with a lock: after Resign its cause is [ErrElectionNotLeader].
func (e *Election) Ctx() context.Context { return e.context() }

// Lead runs work while the session leads: it campaigns with value as
// [Election.Campaign] does, calls work with a context that ends with ctx and with the
// leadership, and resigns when work has returned. For its errors and panics see
// [Mutex.Do].
func (e *Election) Lead(ctx context.Context, value string, work func(context.Context) error) error {
	return e.during(ctx, func() (ticket, error) { return e.campaign(ctx, value) }, work)
}

func (e *Election) note(header *pb.ResponseHeader) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.header = header
}

// observer is what one Observe or Leaders knows of the election. Who leads is known from
// looks, each of one revision, and from puts on the leader's key, which leave the
// leader the leader.
type observer struct {
	vacancies bool // that nobody leads is to be told

	rev     int64           // of the last look
	leader  ticket          // none: nobody led at rev
	pending *v3.GetResponse // the latest that is not told; nil: none
	told    *v3.GetResponse // what was told last
}

// observe tells the leaders until ctx ends, the client ends or a look meets a permanent
// error, which it returns. While somebody leads it watches that key, otherwise the whole
// prefix; as in wait, a watch that began later than the last look calls for another.
func (e *Election) observe(ctx context.Context, out chan<- *v3.GetResponse, vacancies bool) error {
	bound, cancel := untilClosed(ctx, e.queue.client())
	defer cancel()
	var w *watcher
	var watched string // the leader's key, or "" for the prefix
	defer func() { w.stop() }()
	o := observer{vacancies: vacancies}
	for breaks, stale := 0, true; ; {
		if stale {
			if err := e.look(bound, &o); err != nil {
				return err
			}
			if w == nil || watched != o.leader.key {
				w.stop()
				watched = o.leader.key
				w = e.watch(bound, watched)
			}
			stale = false
		}
		var tell chan<- *v3.GetResponse
		if o.pending != nil {
			tell = out
		}
		select {
		case tell <- o.pending:
			o.told, o.pending = o.pending, nil
		case resp := <-w.heard():
			stale = o.hear(resp)
			if resp.Canceled {
				w.stop()
				w = nil
				pause(bound, forever, breaks)
				breaks++
			} else {
				breaks = 0
			}
		case <-bound.Done():
			stale = true // the look tells the reason
		}
	}
}

// watch watches, from now on, the leader's key, or for puts on any while there is
// none.
func (e *Election) watch(ctx context.Context, leader string) *watcher {
	client := e.queue.client()
	if leader != "" {
		return watch(ctx, client, leader, v3.WithCreatedNotify())
	}
	return watch(ctx, client, e.queue.prefix, v3.WithPrefix(), v3.WithFilterDelete(), v3.WithCreatedNotify())
}

// look finds out who leads, at one revision.
func (e *Election) look(ctx context.Context, o *observer) error {
	resp, err := e.queue.get(ctx, forever, e.queue.prefix, v3.WithFirstCreate()...)
	if err != nil {
		return err
	}
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

// hear takes in what a watch delivered and reports whether it takes another look to
// know who leads.
func (o *observer) hear(resp v3.WatchResponse) (stale bool) {
	if resp.Canceled || resp.Created {
		return resp.Canceled || resp.Header.Revision > o.rev
	}
	for _, ev := range resp.Events {
		switch {
		case ev.Kv.ModRevision <= o.rev: // the look has shown it, or what came after
		case o.leader == (ticket{}) || ev.Type == mvccpb.Event_DELETE || ticketOf(ev.Kv) != o.leader:
			o.pending = nil
			return true
		default:
			header := pb.ResponseHeader{
				ClusterId: resp.Header.ClusterId, MemberId: resp.Header.MemberId,
				Revision: ev.Kv.ModRevision, RaftTerm: resp.Header.RaftTerm,
			}
			o.offer(&v3.GetResponse{Header: &header, Kvs: []*mvccpb.KeyValue{ev.Kv}, Count: 1})
		}
	}
	return false
}
