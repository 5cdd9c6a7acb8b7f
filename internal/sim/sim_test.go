package sim

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	upstream "go.etcd.io/etcd/client/v3/concurrency"

	"example.com/etcd/concurrency"
)

type world struct {
	noise float64
	base  time.Duration // of a call, of which others take no notice
	rtt   time.Duration
	write time.Duration // server's time for a proposal
	read  time.Duration
	sync  time.Duration // of a batch of proposals; 0: one by one
}

type kv struct {
	mod, ver int64
	val      string
}

type call struct {
	write bool
	do    func()
	done  chan struct{}
}

type store struct {
	world
	rng     *rand.Rand
	rev     int64
	of      map[string]kv
	cpu     chan call // in turn
	log     chan call // proposals
	entries int
}

func (s *store) jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * math.Exp(0.35*s.rng.NormFloat64()-0.06))
}

// The log collects what comes while it syncs. Then all goes to the processor.
func (s *store) run(ctx context.Context) {
	var mu sync.Mutex
	for range 2 {
		go func() {
			for {
				select {
				case c := <-s.cpu:
					d := s.read
					if c.write {
						d = s.write
					}
					mu.Lock()
					d = s.jitter(d)
					mu.Unlock()
					time.Sleep(d)
					mu.Lock()
					c.do()
					mu.Unlock()
					close(c.done)
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	lrng := rand.New(rand.NewPCG(7, 7))
	for {
		select {
		case c := <-s.log:
			batch := []call{c}
			for len(s.log) > 0 {
				batch = append(batch, <-s.log)
			}
			time.Sleep(time.Duration(float64(s.sync) * math.Exp(0.35*lrng.NormFloat64()-0.06)))
			for _, c := range batch {
				s.cpu <- c
			}
		case <-ctx.Done():
			return
		}
	}
}

func (s *store) call(write bool, do func()) {
	half := (s.rtt + s.base) / 2
	time.Sleep(half + time.Duration(rand.ExpFloat64()*s.noise))
	c := call{write, do, make(chan struct{})}
	if write {
		c.do = func() { s.entries++; do() }
	}
	if write && s.sync > 0 {
		s.log <- c
	} else {
		s.cpu <- c
	}
	<-c.done
	time.Sleep(half + time.Duration(rand.ExpFloat64()*s.noise))
}

func (s *store) get(key string) *pb.RangeResponse {
	r := &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: s.rev}}
	if v, ok := s.of[key]; ok {
		r.Kvs = []*mvccpb.KeyValue{{Key: []byte(key), Value: []byte(v.val), ModRevision: v.mod, Version: v.ver}}
	}
	return r
}

func (s *store) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	var r *pb.RangeResponse
	s.call(false, func() { r = s.get(key) })
	return (*clientv3.GetResponse)(r), nil
}
func (s *store) Put(context.Context, string, string, ...clientv3.OpOption) (*clientv3.PutResponse, error) {
	panic("put")
}
func (s *store) Delete(context.Context, string, ...clientv3.OpOption) (*clientv3.DeleteResponse, error) {
	panic("delete")
}
func (s *store) Compact(context.Context, int64, ...clientv3.CompactOption) (*clientv3.CompactResponse, error) {
	panic("")
}
func (s *store) Do(context.Context, clientv3.Op) (clientv3.OpResponse, error) { panic("") }
func (s *store) GetStream(context.Context, string, ...clientv3.OpOption) (clientv3.GetStreamChan, error) {
	panic("")
}
func (s *store) Txn(context.Context) clientv3.Txn { return &txn{s: s} }

type txn struct {
	s         *store
	cmps      []clientv3.Cmp
	then, els []clientv3.Op
}

func (t *txn) If(c ...clientv3.Cmp) clientv3.Txn  { t.cmps = c; return t }
func (t *txn) Then(o ...clientv3.Op) clientv3.Txn { t.then = o; return t }
func (t *txn) Else(o ...clientv3.Op) clientv3.Txn { t.els = o; return t }
func (t *txn) Commit() (*clientv3.TxnResponse, error) {
	write := slices.ContainsFunc(t.then, func(o clientv3.Op) bool { return !o.IsGet() })
	r := &clientv3.TxnResponse{Succeeded: true}
	t.s.call(write, func() {
		for _, c := range t.cmps {
			p := c.GetCompare()
			mod := t.s.of[string(p.Key)].mod
			if p.Result == pb.Compare_EQUAL && mod != p.GetModRevision() || p.Result == pb.Compare_LESS && mod >= p.GetModRevision() {
				r.Succeeded = false
			}
		}
		ops := t.then
		if !r.Succeeded {
			ops = t.els
		} else if write {
			t.s.rev++
		}
		for _, o := range ops {
			if o.IsGet() {
				r.Responses = append(r.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: t.s.get(string(o.KeyBytes()))}})
				continue
			}
			t.s.of[string(o.KeyBytes())] = kv{t.s.rev, t.s.of[string(o.KeyBytes())].ver + 1, string(o.ValueBytes())}
			r.Responses = append(r.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{}}})
		}
		r.Header = &pb.ResponseHeader{Revision: t.s.rev}
	})
	return r, nil
}

type stm interface {
	Get(key ...string) string
	Put(key, value string, opts ...clientv3.OpOption)
}

var libs = []func(c *clientv3.Client, f func(stm) error) error{
	func(c *clientv3.Client, f func(stm) error) error {
		_, err := upstream.NewSTM(c, func(s upstream.STM) error { return f(s) })
		return err
	},
	func(c *clientv3.Client, f func(stm) error) error {
		_, err := concurrency.NewSTM(c, func(s concurrency.STM) error { return f(s) })
		return err
	},
}

type result struct {
	rate, p50, p99, max, entries float64
	least, most, attempts        int
}

func run(t *testing.T, w world, workers, clients, apart int, lib func(c *clientv3.Client, f func(stm) error) error, n int, seed uint64) (res result) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := &store{world: w, rng: rand.New(rand.NewPCG(seed, 2)), of: map[string]kv{}, cpu: make(chan call, 1000), log: make(chan call, 1000)}
		go s.run(ctx)
		var cs []*clientv3.Client
		for range clients {
			c := clientv3.NewCtxClient(ctx)
			c.KV = s
			cs = append(cs, c)
		}
		var mu sync.Mutex
		var lat []float64
		done := make([]int, workers)
		begin := time.Now()
		span := time.Duration(n) * (w.rtt + w.base + w.write + w.sync)
		var wg sync.WaitGroup
		for i := range workers {
			wg.Go(func() {
				key := "k"
				if i >= workers-apart {
					key += strconv.Itoa(i)
				}
				time.Sleep(time.Duration(rand.Int64N(int64(w.rtt + w.base))))
				for time.Since(begin) < span {
					start, attempts := time.Now(), 0
					if err := lib(cs[i%clients], func(s stm) error {
						attempts++
						v, _ := strconv.Atoi(s.Get(key))
						s.Put(key, strconv.Itoa(v+1))
						return nil
					}); err != nil {
						t.Error(err)
					}
					mu.Lock()
					lat = append(lat, float64(time.Since(start)))
					res.attempts = max(res.attempts, attempts)
					mu.Unlock()
					done[i]++
				}
			})
		}
		wg.Wait()
		took := time.Since(begin)
		cancel()
		slices.Sort(lat)
		res.rate = float64(len(lat)) / took.Seconds()
		res.p50, res.p99, res.max = lat[len(lat)/2], lat[len(lat)*99/100], lat[len(lat)-1]
		res.entries = float64(s.entries) / float64(len(lat))
		hot := done[:workers-apart]
		res.least, res.most = slices.Min(hot), slices.Max(hot)
	})
	return res
}

func TestSim(t *testing.T) {
	ms := time.Millisecond
	local := world{base: ms * 6 / 100, write: ms * 17 / 100, read: ms * 15 / 100}
	worlds := map[string]world{
		"0":    local,
		"2":    {base: ms * 6 / 100, rtt: 2 * ms, write: ms * 17 / 100, read: ms * 15 / 100},
		"10":   {base: ms * 6 / 100, rtt: 10 * ms, write: ms * 17 / 100, read: ms * 15 / 100},
		"40":   {base: ms * 6 / 100, rtt: 40 * ms, write: ms * 17 / 100, read: ms * 15 / 100},
		"sync": {base: ms * 6 / 100, write: ms * 17 / 100, read: ms * 15 / 100, sync: 3 * ms},
	}
	n, _ := strconv.Atoi(os.Getenv("N"))
	if n == 0 {
		n = 3000
	}
	noise, _ := strconv.ParseFloat(os.Getenv("NOISE"), 64)
	who := strings.Split(os.Getenv("WHO"), ",")
	for _, name := range strings.Split(os.Getenv("WORLDS"), ",") {
		for _, x := range who {
			var workers, clients, apart int
			fmt.Sscanf(x, "%d/%d/%d", &workers, &clients, &apart)
			wd := worlds[name]
			wd.noise = noise * float64(wd.base)
			worlds[name] = wd
			var r [2]result
			for i, lib := range libs {
				r[i] = run(t, worlds[name], workers, clients, apart, lib, n, 1)
			}
			u, h := r[0], r[1]
			bad := ""
			if h.rate < 0.995*u.rate {
				bad += " RATE"
			}
			lim := 1.0
			if workers <= 4 {
				lim = 1.25
			}
			if h.p99 > lim*u.p99*1.005 {
				bad += " P99"
			}
			if h.max > u.max {
				bad += " MAX"
			}
			fmt.Printf("%-5s %-8s rate %.2f (%.0f)  p50 %.2f p99 %.2f  max %.2f (%.1f ms)  entries %.2f > %.2f  commits %d-%d > %d-%d attempts %d > %d %s\n",
				name, x, h.rate/u.rate, h.rate, h.p50/u.p50, h.p99/u.p99, h.max/u.max, h.max/1e6, u.entries, h.entries, u.least, u.most, h.least, h.most, u.attempts, h.attempts, bad)
		}
	}
}
