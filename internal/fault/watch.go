package fault

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// watcher is a Watcher under faults.
type watcher struct {
	clientv3.Watcher // RequestProgress and Close pass through

	f *Faults
}

// Watch returns no error, so a fault that would is reported as a watch that is
// canceled; a context that ended closes the channel without a word.
func (w *watcher) Watch(
	ctx context.Context, key string, opts ...clientv3.OpOption,
) clientv3.WatchChan {
	rules := w.f.begin(Watch)
	ch, err := run(ctx, rules, func() (clientv3.WatchChan, error) {
		return w.Watcher.Watch(ctx, key, opts...), nil
	})
	if err != nil {
		if ctx.Err() != nil {
			err = nil
		}
		return canceled(err)
	}
	for _, r := range rules {
		if r.channel != nil {
			ch = r.channel(ctx, ch)
		}
	}
	return ch
}

// BrokenWatch lets the nth watch end at once: it delivers one response, which
// is canceled with err, and closes. The server serves the watch until its
// context ends. A nil err closes the channel without a response, as a closed
// client does.
//
// The response's Err gives etcd's own errors as they are, and any other text
// as a status of the code FailedPrecondition.
func (f *Faults) BrokenWatch(nth int, err error) {
	f.BreakWatch(nth, err).Open()
}

// BreakWatch is BrokenWatch for a watch that has begun: up to when the gate is
// opened it delivers what the server sends. The gate is reached when the watch
// has begun.
func (f *Faults) BreakWatch(nth int, err error) *Gate {
	g := newGate()
	f.add(Watch, nth, 1, &rule{gate: g, channel: func(
		ctx context.Context, ch clientv3.WatchChan,
	) clientv3.WatchChan {
		g.reach()
		out := make(chan clientv3.WatchResponse)
		go forward(ctx, g.open, ch, out, err)
		return out
	}})
	return g
}

// CompactBeforeWatch compacts the store at its latest revision just before the nth
// watch is sent: between a read and the watch that follows it. It puts key twice
// before that, so that a watch which is to go on from the revision after the read
// has always missed something, and is canceled with ErrCompacted. A watch that
// begins with the present has not. What keeps the fault from working is reported
// as the end of the watch. Everybody on the server is hit by a compaction.
func (f *Faults) CompactBeforeWatch(nth int, key string) {
	f.add(Watch, nth, 1, &rule{before: func(ctx context.Context) error {
		var last int64
		for range 2 {
			resp, err := f.kv.Put(ctx, key, "")
			if err != nil {
				return err
			}
			last = resp.Header.Revision
		}
		_, err := f.kv.Compact(ctx, last)
		if errors.Is(err, rpctypes.ErrCompacted) {
			return nil // by somebody else, at a later revision
		}
		return err
	}})
}

// forward delivers the responses of in to out until broken is closed; then it
// delivers err. It ends, and closes out, after that, when in is closed, or when
// ctx ends.
func forward(
	ctx context.Context, broken <-chan struct{},
	in clientv3.WatchChan, out chan<- clientv3.WatchResponse, err error,
) {
	defer close(out)
	for {
		select {
		case <-broken:
			for resp := range canceled(err) {
				deliver(ctx, nil, out, resp)
			}
			return
		default:
		}
		select {
		case <-broken:
		case resp, ok := <-in:
			if !ok {
				return
			}
			deliver(ctx, broken, out, resp)
		}
	}
}

// deliver sends resp unless the watch is broken, or its context ends, first.
func deliver(
	ctx context.Context, broken <-chan struct{},
	out chan<- clientv3.WatchResponse, resp clientv3.WatchResponse,
) {
	select {
	case out <- resp:
	case <-broken:
	case <-ctx.Done():
	}
}

// canceled is a watch that ended with err. The field that holds a client's own
// error can't be set from outside; what the server says about a cancellation
// can, and reads as the same error.
func canceled(err error) clientv3.WatchChan {
	ch := make(chan clientv3.WatchResponse, 1)
	defer close(ch)
	if err == nil {
		return ch
	}
	resp := clientv3.WatchResponse{Header: &etcdserverpb.ResponseHeader{}, Canceled: true}
	if errors.Is(err, rpctypes.ErrCompacted) {
		resp.CompactRevision = 1
	}
	resp.CancelReason = rpctypes.ErrorDesc(err)
	ch <- resp
	return ch
}
