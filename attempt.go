package concurrency

import (
	"cmp"
	"context"
	"errors"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	v3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// This file has the state of an attempt, and the ways in which an attempt ends early. An
// attempt works on three things:
//
//	known    what is known before the function runs; the commit checks none of it
//	reads    what the function has read; the commit checks it, if the level checks reads
//	writes   what the commit sends
//
// What is known is copied to the reads when the function asks for it. So an attempt never
// conflicts over a key that only the attempt before it has read.

// snapshot is what is known of the store at one revision. The zero snapshot knows nothing. Its
// maps are nil, so nothing may be learned into it.
type snapshot struct {
	header *pb.ResponseHeader // nil: nothing was read yet
	known  facts
}

// attempt is one run of the function. Reads fill its read set, Put and Del its write set.
type attempt struct {
	client  *v3.Client
	options stmOptions
	level   level

	carried

	reads   facts
	asked   map[string]want   // the ranges that were asked for, by their begin
	writes  []*write          // in the order in which their keys were first written
	written map[string]*write // the writes of single keys, by key
	cleared []*write          // the deletions of ranges

	met  Attempt     // for the trace
	err  error       // the first failure, after which nothing is read or committed
	over atomic.Bool // the function has returned
}

// carried is what an attempt hands on to the one that follows it.
type carried struct {
	// The first read pins the snapshot, of levels that have one, by its header. The next attempt starts
	// with a snapshot from a conflict's answer, from another transaction's answer, or from a watch. It
	// has the values and their revision, so that they agree with fresh reads.
	snapshot

	// The next two only shrink, when a call meets a limit. So later attempts begin small.
	part      int  // how many keys are read in one call
	chunk     int  // how many keys of a range are read in one call
	madeWay   bool // the transaction has made way after the conflict
	contender *contender

	// The next two are of all attempts before. One that ended with Retry counts among the attempts only.
	attempts, conflicts int
	paused              time.Duration // before the next attempt
}

// write is a write to one key, or the deletion of a range.
type write struct {
	key, value string
	op         v3.Op
	plain      bool   // without options
	end        string // of the range; "" for one key
}

func (w *write) interval() interval { return interval{w.key, w.end} }

func (w *write) deletes() bool { return w.end != "" || w.op.IsDelete() }

// entry is the key as the attempt has written it, nil if it is deleted.
func (w *write) entry() *mvccpb.KeyValue {
	if w.deletes() {
		return nil
	}
	return &mvccpb.KeyValue{Key: []byte(w.key), Value: []byte(w.value)}
}

// errConflict ends an attempt that is to be followed by another. Its commit has conflicted, or its
// values were known to be old before the commit, or the revision of its reads was compacted. NewSTM
// compares it by ==, so it is never wrapped.
var errConflict = errors.New("conflict")

// abort is the panic by which a failed read leaves the function.
type abort struct{}

// own returns the attempt's write of the key, nil if it has not written it.
func (a *attempt) own(key string) *write {
	// A single write is newer than the deletions of ranges around its key, because
	// [attempt.DelRange] drops the single writes in its range.
	if w := a.written[key]; w != nil {
		return w
	}
	for _, w := range a.cleared {
		if w.interval().has(key) {
			return w
		}
	}
	return nil
}

// check keeps a function from going on with an attempt that has ended.
func (a *attempt) check() {
	// A goroutine that the function left behind may come here at any time. So over is atomic.
	if a.over.Load() {
		panic("concurrency: an STM was used after its function had returned")
	}
	if a.err != nil {
		// The function has recovered the panic of fail, and has gone on.
		panic(abort{})
	}
}

// fail ends the attempt and its function. It does not return. The error is kept beside the
// panic, because a function that recovers the panic may then return nil.
func (a *attempt) fail(err error) {
	a.err = a.blame(err)
	panic(abort{})
}

// ended returns the error of the abort context, or of the client's end. Nothing is sent
// after either. A client that was put together by hand has no context.
func (a *attempt) ended() error {
	return cmp.Or(a.options.ctx.Err(), cmp.Or(a.client.Ctx(), forever).Err())
}

// blame returns the error of what has ended a call. That is err, unless err is a
// consequence of the abort context's end. A server that is told a deadline may notice it
// first.
func (a *attempt) blame(err error) error {
	if cause := a.ended(); cause != nil {
		return cause
	}
	if _, bounded := a.options.ctx.Deadline(); bounded && status.Code(err) == codes.DeadlineExceeded {
		return context.DeadlineExceeded
	}
	return err
}
