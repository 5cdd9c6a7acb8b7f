package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/bench/report"
	"example.com/etcd/concurrency/internal/library"
)

// simulation is a store in virtual time, for what no busy machine can measure: how
// transactions that conflict share a server. Two processors serve the calls in the order
// in which they come. The times are those that etcd takes on a machine of two cores.
type simulation struct {
	clientv3.KV // what is not used here panics

	rtt   time.Duration
	rng   *rand.Rand
	calls chan func() // that wait for a processor

	mu      sync.Mutex // guards the fields below
	rev     int64
	kvs     map[string]*mvccpb.KeyValue
	entries int // of the log
}

// What a call takes: on the way, at most and on average, and of a processor.
const (
	onTheWay = 60 * time.Microsecond
	chance   = 40 * time.Microsecond
	reading  = 150 * time.Microsecond
	writing  = 170 * time.Microsecond
)

func (s *simulation) draw(mean time.Duration, spread float64) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Duration(float64(mean) * math.Exp(spread*s.rng.NormFloat64()))
}

// serve is a processor.
func (s *simulation) serve(ctx context.Context) {
	for {
		select {
		case call := <-s.calls:
			call()
		case <-ctx.Done():
			return
		}
	}
}

// call makes the way to a processor, takes its time, and makes the way back.
func (s *simulation) call(takes time.Duration, do func()) {
	way := func() { <-time.After((s.rtt+onTheWay)/2 + s.draw(chance, 1)) }
	way()
	done := make(chan struct{})
	s.calls <- func() {
		<-time.After(s.draw(takes, 0.35))
		s.mu.Lock()
		defer s.mu.Unlock()
		do()
		close(done)
	}
	<-done
	way()
}

func (s *simulation) header() *pb.ResponseHeader { return &pb.ResponseHeader{Revision: s.rev} }

func (s *simulation) read(key string) *pb.RangeResponse {
	r := &pb.RangeResponse{Header: s.header()}
	if kv := s.kvs[key]; kv != nil {
		r.Kvs = []*mvccpb.KeyValue{kv}
	}
	return r
}

func (s *simulation) Get(_ context.Context, key string, _ ...clientv3.OpOption) (r *clientv3.GetResponse, err error) {
	s.call(reading, func() { r = (*clientv3.GetResponse)(s.read(key)) })
	return r, nil
}

func (s *simulation) Txn(context.Context) clientv3.Txn { return &simulated{simulation: s} }

// simulated is a transaction of modification revisions, reads and puts.
type simulated struct {
	*simulation

	cmps      []clientv3.Cmp
	then, els []clientv3.Op
}

func (t *simulated) If(cmps ...clientv3.Cmp) clientv3.Txn { t.cmps = cmps; return t }
func (t *simulated) Then(ops ...clientv3.Op) clientv3.Txn { t.then = ops; return t }
func (t *simulated) Else(ops ...clientv3.Op) clientv3.Txn { t.els = ops; return t }

func (t *simulated) holds(c clientv3.Cmp) bool {
	compare := c.GetCompare()
	rev := t.kvs[string(compare.Key)].GetModRevision()
	if compare.Result == pb.Compare_LESS {
		return rev < compare.GetModRevision()
	}
	return rev == compare.GetModRevision()
}

func (t *simulated) Commit() (*clientv3.TxnResponse, error) {
	r, takes := &clientv3.TxnResponse{}, reading
	writes := slices.ContainsFunc(t.then, clientv3.Op.IsPut)
	if writes {
		takes = writing
	}
	t.call(takes, func() {
		ops := t.els
		if r.Succeeded = !slices.ContainsFunc(t.cmps, func(c clientv3.Cmp) bool { return !t.holds(c) }); r.Succeeded {
			ops = t.then
		}
		if writes {
			t.entries++
		}
		if writes && r.Succeeded {
			t.rev++
		}
		for _, op := range ops {
			key := string(op.KeyBytes())
			if op.IsPut() {
				t.kvs[key] = &mvccpb.KeyValue{Key: op.KeyBytes(), Value: op.ValueBytes(), ModRevision: t.rev}
				r.Responses = append(r.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{}})
			} else {
				r.Responses = append(r.Responses, &pb.ResponseOp{
					Response: &pb.ResponseOp_ResponseRange{ResponseRange: t.read(key)},
				})
			}
		}
		r.Header = t.header()
	})
	return r, nil
}

// simulate runs a contest for the window of virtual time.
func simulate(t *testing.T, c contest, lib library.Library, rtt, window time.Duration) (o outcome) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s := &simulation{
			rtt: rtt, rng: rand.New(rand.NewPCG(1, 2)), calls: make(chan func(), 1000),
			kvs: map[string]*mvccpb.KeyValue{},
		}
		go s.serve(ctx)
		go s.serve(ctx)
		b := &bed{Library: lib, prefix: "key"}
		for range c.clients {
			client := clientv3.NewCtxClient(ctx)
			client.KV = s
			b.clients = append(b.clients, client)
		}
		done := make([]int, c.workers)
		var wg sync.WaitGroup
		for i := range c.workers {
			work, err := c.hire(b, i)
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				for begin := time.Now(); time.Since(begin) < window; done[i]++ {
					if err := work(ctx); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		total, shared := float64(len(b.slowness)), done[:c.workers-c.apart]
		o = outcome{
			rate: total / window.Seconds(), entries: float64(s.entries) / total,
			p99: report.Quantile(b.slowness, 0.99), max: slices.Max(b.slowness),
			least: slices.Min(shared), most: slices.Max(shared), attempts: b.attempts,
		}
	})
	return o
}

// In virtual time the figures that are set for contention hold, whatever else the machine is
// doing. What is left of chance is in the order of events of one instant.
func TestContentionInVirtualTime(t *testing.T) {
	for _, c := range contests {
		for _, rtt := range []time.Duration{0, 2 * time.Millisecond, 10 * time.Millisecond, 40 * time.Millisecond} {
			t.Run(fmt.Sprintf("%v, %v", c, rtt), func(t *testing.T) {
				t.Parallel()
				window := 500 * (rtt + 4*time.Millisecond)
				u, h := simulate(t, c, library.Upstream, rtt, window), simulate(t, c, library.Here, rtt, window)
				t.Logf("rate %.2f, p99 %.2f, slowest %.2f of upstream's; entries %.2f (%.2f), commits %d to %d (%d to %d), attempts %d (%d)",
					h.rate/u.rate, h.p99/u.p99, h.max/u.max, h.entries, u.entries, h.least, h.most, u.least, u.most, h.attempts, u.attempts)
				atMost := func(what string, got, limit float64) {
					if got > limit {
						t.Errorf("%s: %.2f, at most %.2f", what, got, limit)
					}
				}
				atMost("upstream's throughput", u.rate/h.rate, 1.1)
				if c.clients == 1 {
					atMost("p99", h.p99/u.p99, 1)
					atMost("the slowest", h.max/u.max, 1)
					atMost("entries", h.entries, 1.1)
					atMost("attempts", float64(h.attempts), 4)
					atMost("the most commits of a worker", float64(h.most), 1.1*float64(h.least)+1)
				} else {
					atMost("p99", h.p99/u.p99, 1.4)
					atMost("entries", h.entries, u.entries*1.02)
				}
			})
		}
	}
}
