package concurrency

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	v3 "go.etcd.io/etcd/client/v3"
)

// This file has Retry, which waits until something that was read has changed. An example is the
// watch of an attempt that has read at revision 9:
//
//	an event of 8, from a member that lags   the read has shown it
//	the watch begins at 9                    nothing has happened between
//	the watch begins at 12                   10 to 12 are not told, so a look is made
//	the look finds no change up to 14        the wait goes on
//	an event of 15                           the wait ends
//
// A watch from revision 10 on would need no look. But the servers serve a watch that starts in
// the past only every 100 ms (server/storage/mvcc/watchable_store.go). The revision may also be
// compacted away.

var (
	// errRetry ends an attempt that is to be followed by another when something has changed.
	errRetry = errors.New("retry")

	errRetryUnchecked = errors.New(
		"concurrency: Retry waits for a change of what was read, of which ReadCommitted takes no notice")
)

// Retry ends the attempt and its function. The writes are dropped, because an attempt with an
// error commits nothing.
func (a *attempt) Retry() {
	a.check()
	// A look goes by the comparisons of a commit. This level has none.
	if !a.level.checkReads {
		a.fail(errRetryUnchecked)
	}
	if a.reads.empty() {
		panic("concurrency: Retry: the attempt has read nothing whose change could end the wait")
	}
	a.fail(errRetry)
}

// blocked is a wait for a change of what an attempt has read. The attempt has ended. Its read
// set does not change any more.
type blocked struct {
	*attempt
	watched []want
	cmps    []v3.Cmp
	rev     int64 // up to which nothing has changed
}

// await waits until something that the attempt has read has changed. It returns what the next
// attempt starts with. It returns an error when the abort context or the client ends. So it
// does if a look meets a fault that stays.
func (a *attempt) await() (next carried, err error) {
	begin := time.Now()
	a.snapshot, err = a.change()
	// What the watch has told is new, and is not to be read again.
	a.madeWay, a.paused = false, time.Since(begin)
	return a.carried, err
}

// change watches all that was read, from now on. A watch that began later than the last look,
// or breaks, calls for another look. That asks whether a commit of the reads would conflict.
//
// It returns the snapshot that the watch has told, which saves the next attempt its reads. The
// snapshot is empty if there are several watches.
func (a *attempt) change() (snapshot, error) {
	ctx, cancel := context.WithCancel(a.options.ctx)
	defer cancel()
	// The end of the client ends the wait, too. A client made by hand has no context.
	defer context.AfterFunc(cmp.Or(a.client.Ctx(), forever), cancel)()
	// The attempt is over, and its writes with it. A commit would conflict over keys that are only
	// written, too. Here a change of such a key would wake the function in vain, and again each time.
	a.writes = nil
	b := &blocked{attempt: a, watched: a.wantsToWatch(), cmps: a.checks(), rev: a.since()}
	heard, stop := b.listen(ctx)
	defer stop()
	for {
		select {
		case news := <-heard:
			if next, changed, err := b.hear(ctx, news); changed || err != nil {
				return next, err
			}
		case <-ctx.Done():
			return snapshot{}, a.ended()
		}
	}
}

// wantsToWatch are what is to be watched: the ranges that were read, and the keys beside them. Each
// has a watch of its own. One watch from the first of them to the last would tell of other keys
// as well. Permissions that are given by ranges may refuse it.
func (a *attempt) wantsToWatch() (wants []want) {
	for _, s := range a.reads.spans {
		wants = append(wants, want{interval: s.interval})
	}
	return append(wants, a.besideRanges()...)
}

// since is a revision at which all was as it was read. Without a snapshot there may be none.
// Then only a look can tell. So the first watch that begins calls for a look.
func (a *attempt) since() int64 {
	if !a.level.snapshot {
		return 0
	}
	return a.header.Revision
}

// listen watches all that was read. The news of several watches come in no order. Those of a single
// one need no goroutine in between, which would make every hand-over later. stop returns when
// no goroutine of theirs is left.
func (b *blocked) listen(ctx context.Context) (heard <-chan v3.WatchResponse, stop func()) {
	if len(b.watched) == 1 {
		w := b.watch(ctx, b.watched[0])
		return w.heard(), w.stop
	}
	ctx, cancel := context.WithCancel(ctx)
	all := make(chan v3.WatchResponse)
	var watches sync.WaitGroup
	for _, one := range b.watched {
		watches.Go(func() {
			w := b.watch(ctx, one)
			defer w.stop()
			for {
				select {
				case news := <-w.heard():
					select {
					case all <- news:
					case <-ctx.Done():
						return
					}
				case <-ctx.Done():
					return
				}
			}
		})
	}
	return all, func() {
		cancel()
		watches.Wait()
	}
}

// watch tells puts and deletions, because either is a change. It starts with the present.
func (b *blocked) watch(ctx context.Context, place want) *watcher {
	all := &sharedOf(b.client).watches
	if place.end == "" {
		return all.watch(ctx, b.client, b.options.patience, place.begin, 0)
	}
	return all.watch(ctx, b.client, b.options.patience, place.first(), 0, v3.WithRange(place.end))
}

// hear takes in the news of a watch, and reports whether something has changed.
func (b *blocked) hear(ctx context.Context, news v3.WatchResponse) (next snapshot, changed bool, err error) {
	// A watch tells only of what was read. So whatever it tells is a change, unless it happened
	// before the read: a watch on a member that lags begins in the past. The last event is the
	// newest, because a watch tells in the order of revisions.
	if len(news.Events) > 0 {
		last := news.Events[len(news.Events)-1].Kv.ModRevision
		if last <= b.rev {
			return snapshot{}, false, nil
		}
		return b.told(news, last), true, nil
	}
	// News without events say that the watch has begun or broken.
	if !missed(news, b.rev) {
		return snapshot{}, false, nil
	}
	changed, err = b.look(ctx)
	return snapshot{}, changed, err
}

// look asks whether anything has changed. If nothing has, it notes up to which revision.
//
// It asks after the watch has begun. What happens later than that revision is told by the
// watch, so that nothing lies between the two. Many comparisons are asked in parts, each at a
// later revision. The first of these revisions counts.
func (b *blocked) look(ctx context.Context) (changed bool, err error) {
	rev := int64(0)
	for cmps := b.cmps; len(cmps) > 0; {
		part := cmps[:min(b.part, len(cmps))]
		// A look writes nothing, so it may be repeated. A member that lags must not answer,
		// because it may not know of the change.
		resp, err := repeat(ctx, forever, b.options.patience, b.options.trace, func(ctx context.Context) (*v3.TxnResponse, error) {
			return b.client.Txn(ctx).If(part...).Else(linearizable(part)).Commit()
		})
		switch {
		case errors.Is(err, rpctypes.ErrTooManyOps) && len(part) > 1:
			// The servers allow fewer comparisons than was assumed, see [attempt.smaller].
			b.part = len(part) / 2
			continue
		case err != nil:
			return false, b.blame(err)
		case !resp.Succeeded:
			return true, nil
		}
		if rev == 0 || resp.Header.Revision < rev {
			rev = resp.Header.Revision
		}
		cmps = cmps[len(part):]
	}
	b.rev = max(b.rev, rev)
	return false, nil
}

// told is the snapshot of the revision of the news, if they come from the only watch. This
// watch has told all that happened since the last look, in order. Several watches have no order
// among them. What the others have not told yet may be older.
func (b *blocked) told(news v3.WatchResponse, last int64) snapshot {
	if len(b.watched) > 1 || !b.level.snapshot {
		return snapshot{}
	}
	known := newFacts()
	maps.Copy(known.keys, b.reads.keys)
	for _, s := range b.reads.spans {
		// set changes a span in place, and the read set is still looked at.
		s.rev, s.kvs = last, slices.Clone(s.kvs)
		known.spans = append(known.spans, s)
	}
	for _, ev := range news.Events {
		// What a member that lags tells late is in what was read.
		if ev.Kv.ModRevision <= b.rev {
			continue
		}
		kv := ev.Kv
		if ev.Type == mvccpb.Event_DELETE {
			kv = nil
		}
		known.set(string(ev.Kv.Key), kv)
	}
	return snapshot{headerAt(news.Header, last), known}
}
