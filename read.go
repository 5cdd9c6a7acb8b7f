package concurrency

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	v3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// This file reads keys and ranges, from the snapshot or from the servers. range.go decides
// which parts of a range are read.
//
//	level             what is read           how
//	---------------   --------------------   ---------------------------------------------
//	with a snapshot   what pins it           linearizable, at the latest revision
//	                  what comes after       at that revision, by whichever member is asked
//	without           keys and ranges        linearizable, each call at the latest revision
//	                  the rest of a range    at the revision of its first part

// defaultPart is etcd's default for the servers' limit on the operations of a transaction.
// Servers may have a lower limit. Then the parts become smaller with the first refusal.
const defaultPart = 128

// defaultChunk is how many keys of a range are read in one call. The servers count all keys of
// a range for each call, so that small parts of a long range cost the square of its length. With
// values of 1 KiB, the answer is about 4 MiB, which is gRPC's own limit. etcd's client takes more,
// unless MaxCallRecvMsgSize is set (client/v3 options.go). A larger answer is asked for again in
// smaller parts, see [attempt.smaller].
const defaultChunk = 4096

// fetch adds the keys to the read set, and returns the first of them. It takes them from the snapshot
// with which the attempt began, if that has them, and from the servers otherwise.
func (a *attempt) fetch(keys ...string) *mvccpb.KeyValue {
	a.load(a.missing(keys), 0, &a.reads)
	kv, _ := a.reads.get(keys[0])
	return kv
}

// missing takes what the snapshot knows of the keys, and returns what has to be read.
func (a *attempt) missing(keys []string) (wants []want) {
	for _, key := range keys {
		if _, known := a.reads.get(key); known {
			continue
		}
		kv, known := a.known.get(key)
		// A key that is to be read is noted, too. So a key that is given twice is read once.
		if a.reads.keys[key] = kv; !known {
			wants = append(wants, want{interval: interval{begin: key}})
		}
	}
	return wants
}

// load reads with as few calls as the limits allow: at the snapshot if the level has one,
// otherwise at a revision, and at the latest if that is 0. If a limit is lower than assumed,
// smaller parts are tried.
func (a *attempt) load(wants []want, at int64, into *facts) {
	for len(wants) > 0 {
		part := wants[:min(a.part, len(wants))]
		// The first part pins the revision of all that follow.
		if a.level.snapshot {
			at = a.header.GetRevision()
		}
		begin := time.Now()
		header, answers, err := a.read(part, at)
		a.timeRead(part, time.Since(begin))
		if err != nil {
			// The error stays, or has outlasted the repetitions of get. A smaller part may mend it.
			if !a.smaller(part, err) {
				a.fail(err)
			}
			continue
		}
		for i, w := range part {
			into.learn(w, cmp.Or(at, header.Revision), answers[i])
		}
		// Without a snapshot, the header of the newest read counts. A transaction that only reads
		// returns that header. It must not be older than what was read. The last read may be older:
		// the rest of a range comes from any member, and is read at the revision of its first part.
		if a.header == nil || !a.level.snapshot && header.Revision > a.header.Revision {
			a.header = header
		}
		wants = wants[len(part):]
	}
}

// timeRead notes what a read took. That of a range tells nothing about the servers, because
// ranges differ in length.
func (a *attempt) timeRead(part []want, took time.Duration) {
	a.met.Reading += took
	if !slices.ContainsFunc(part, func(w want) bool { return w.end != "" }) {
		a.contender.read(took)
	}
}

// smaller makes the parts smaller in which all further attempts read, if that can mend err.
func (a *attempt) smaller(part []want, err error) bool {
	// gRPC says this for the client's limit and for the server's. The code alone is also that
	// of rpctypes.ErrTooManyRequests.
	tooLarge := status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "larger than max")
	switch {
	case !tooLarge && !errors.Is(err, rpctypes.ErrTooManyOps):
		return false
	case len(part) > 1:
		a.part = len(part) / 2
	case tooLarge && part[0].end != "":
		size := part[0].most(a.chunk)
		if size == 1 {
			a.fail(fmt.Errorf("concurrency: a single key of the range from %q to %q does not fit into an answer: %w",
				part[0].begin, part[0].end, err))
		}
		a.chunk = size / 2
	default:
		return false
	}
	return true
}

// refresh replaces what the conflict's answer said, which has grown old in a pause. It
// costs one call for all keys.
func (a *attempt) refresh() {
	var wants []want
	for _, key := range slices.Sorted(maps.Keys(a.known.keys)) {
		wants = append(wants, want{interval: interval{begin: key}})
	}
	for _, s := range a.known.spans {
		wants = append(wants, want{interval: s.interval})
	}
	// Without a header the read is of the latest revision. It is no part of the read set yet,
	// because the function may ask for less this time.
	a.snapshot = snapshot{known: newFacts()}
	a.load(wants, 0, &a.known)
}

// read reads at a revision, if one is given, from whichever member is asked. Such a read is
// serializable. A member that has not come so far refuses it ("future revision"). Then a
// linearizable read at the same revision makes the member catch up. What is not pinned to a
// revision is read linearizably. A revision that was compacted away is of no more use, and
// counts as a conflict.
func (a *attempt) read(wants []want, at int64) (*pb.ResponseHeader, []*pb.RangeResponse, error) {
	if at == 0 {
		return a.get(wants)
	}
	pinned := v3.WithRev(at)
	header, answers, err := a.get(wants, pinned, v3.WithSerializable())
	if errors.Is(err, rpctypes.ErrFutureRev) {
		header, answers, err = a.get(wants, pinned)
	}
	if errors.Is(err, rpctypes.ErrCompacted) {
		// The next attempt reads at the latest revision.
		a.snapshot = snapshot{}
		err = errConflict
	}
	return header, answers, err
}

// get reads in one call. The answers stand in the order of the wants. A single want needs no
// transaction. The client repeats its Get by itself.
func (a *attempt) get(wants []want, opts ...v3.OpOption) (*pb.ResponseHeader, []*pb.RangeResponse, error) {
	if len(wants) == 1 {
		key, opts := wants[0].get(a.chunk, opts...)
		resp, err := a.client.Get(a.options.ctx, key, opts...)
		if err != nil {
			return nil, nil, err
		}
		return resp.Header, []*pb.RangeResponse{(*pb.RangeResponse)(resp)}, nil
	}
	gets := make([]v3.Op, len(wants))
	for i, w := range wants {
		gets[i] = w.op(a.chunk, opts...)
	}
	// A transaction of reads alone has no entry in the log of the servers.
	resp, err := a.patiently(string(gets[0].KeyBytes()), a.client.Txn(a.options.ctx).Then(gets...).Commit)
	if err != nil {
		return nil, nil, err
	}
	return resp.Header, ranges(resp.Responses), nil
}

// ranges are the answers to the reads of a transaction, in a fetch and after a conflict.
func ranges(answers []*pb.ResponseOp) []*pb.RangeResponse {
	all := make([]*pb.RangeResponse, len(answers))
	for i, r := range answers {
		all[i] = r.GetResponseRange()
	}
	return all
}

// rounds bounds how often a transaction that changes nothing is tried while Gets succeed.
// Without it, a fault that meets transactions alone would never end the attempt.
const rounds = 10

// patiently makes a call that changes nothing, and repeats it while its fault passes. The
// client repeats a Get by itself, but no transaction. So a Get of a key of the call comes
// first each time. It rides out the fault for as long as the client is configured to.
func (a *attempt) patiently(key string, call func() (*v3.TxnResponse, error)) (*v3.TxnResponse, error) {
	for n := 1; ; n++ {
		resp, err := call()
		if err == nil || n == rounds || !transient(err) || a.ended() != nil {
			return resp, err
		}
		if _, err := a.client.Get(a.options.ctx, key); err != nil {
			return nil, err
		}
		a.options.trace.repeated(err)
		pause(a.options.ctx, forever, n)
	}
}
