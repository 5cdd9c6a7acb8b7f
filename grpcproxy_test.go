package concurrency_test

import (
	"context"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// sightings are the times at which renewals came past, by their leases.
type sightings struct {
	mu sync.Mutex // guards of
	of map[clientv3.LeaseID][]time.Time
}

func (s *sightings) saw(msg any) {
	req, ok := msg.(*pb.LeaseKeepAliveRequest)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = map[clientv3.LeaseID][]time.Time{}
	}
	id := clientv3.LeaseID(req.ID)
	s.of[id] = append(s.of[id], time.Now())
}

// last is when the last renewal of the lease came past, and how many did.
func (s *sightings) last(id clientv3.LeaseID) (at time.Time, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n = len(s.of[id]); n > 0 {
		at = s.of[id][n-1]
	}
	return at, n
}

// seenStream tells of what passes through a stream: what a client sends, or a server
// receives.
type seenStream struct {
	grpc.ClientStream
	saw func(any)
}

func (s *seenStream) SendMsg(msg any) error {
	s.saw(msg)
	return s.ClientStream.SendMsg(msg)
}

type servedStream struct {
	grpc.ServerStream
	saw func(any)
}

func (s *servedStream) RecvMsg(msg any) error {
	err := s.ServerStream.RecvMsg(msg)
	if err == nil {
		s.saw(msg)
	}
	return err
}

// sent sees what a client sends.
func (s *sightings) sent() grpc.DialOption {
	return grpc.WithChainStreamInterceptor(func(
		ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string,
		open grpc.Streamer, opts ...grpc.CallOption,
	) (grpc.ClientStream, error) {
		stream, err := open(ctx, desc, conn, method, opts...)
		if err != nil {
			return nil, err
		}
		return &seenStream{stream, s.saw}, nil
	})
}

// received sees what a server receives.
func (s *sightings) received() grpc.ServerOption {
	return grpc.ChainStreamInterceptor(func(
		srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler,
	) error {
		return handle(srv, &servedStream{stream, s.saw})
	})
}

// distant is a session whose client reaches the server through etcd's gRPC proxy, and the
// holder of a lock for which a rival waits beside the proxy. Two links lie between proxy
// and server, one after the other, so that each direction can be held by itself.
type distant struct {
	answers, requests *fault.Proxy
	session           *concurrency.Session
	rival             *etcdtest.Call
	ended             *etcdtest.Call // returns when the session has ended
	rivalIn, end      time.Time      // when they did; to be read after they have returned
	sent              *sightings
	received          *sightings
}

// origin is a server that tells when it receives renewals.
type origin struct {
	cluster  *etcdtest.Cluster
	received sightings
}

func newOrigin(t *testing.T) *origin {
	f := &origin{}
	f.cluster = etcdtest.New(t, etcdtest.Config(func(_ int, cfg *embed.Config) {
		cfg.GRPCAdditionalServerOptions = append(cfg.GRPCAdditionalServerOptions, f.received.received())
	}))
	return f
}

func link(t *testing.T, to string) *fault.Proxy {
	t.Helper()
	p, err := fault.NewProxy(to)
	require.NoError(t, err)
	t.Cleanup(p.Close)
	return p
}

// open opens a session through a proxy of its own.
func (f *origin) open(t *testing.T, opts ...concurrency.SessionOption) *distant {
	t.Helper()
	p := &distant{sent: &sightings{}, received: &f.received}
	p.requests = link(t, f.cluster.Endpoint(0))
	p.answers = link(t, p.requests.Endpoint())
	config := etcdtest.ClientConfig(etcdtest.GRPCProxy(t, p.answers.Endpoint()))
	config.DialOptions = append(config.DialOptions, p.sent.sent())
	client, err := clientv3.New(config)
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	p.session, err = concurrency.NewSession(client, opts...)
	require.NoError(t, err)
	p.ended = etcdtest.Go(func() error {
		<-p.session.Done()
		p.end = time.Now()
		return nil
	})
	return p
}

// holder opens a session, takes a lock and lets a rival wait.
func (f *origin) holder(t *testing.T, opts ...concurrency.SessionOption) *distant {
	t.Helper()
	p := f.open(t, opts...)
	name := prefix(t)
	require.NoError(t, concurrency.NewMutex(p.session, name).Lock(t.Context()))

	outside := f.cluster.Client(t)
	m := concurrency.NewMutex(session(t, outside), name)
	ctx := t.Context()
	p.rival = etcdtest.Go(func() error {
		err := m.Lock(ctx)
		p.rivalIn = time.Now()
		return err
	})
	etcdtest.WaitKeys(t, outside, name+"/", 2)
	return p
}

// renewed waits until n more renewals have come to the server and returns the time of the
// last of them.
func (d *distant) renewed(t *testing.T, n int) time.Time {
	t.Helper()
	_, before := d.received.last(d.session.Lease())
	var at time.Time
	etcdtest.Eventually(t, func() bool {
		var now int
		at, now = d.received.last(d.session.Lease())
		return now >= before+n
	}, "%d renewals", n)
	return at
}

// An answer of the proxy may be the answer to a renewal that the proxy had sent of itself,
// before it was asked. The deadline, which counts from the asking, is then late by what
// the answer took from the server to the proxy. See RELIABILITY.md, "etcd's gRPC proxy".
func TestDeadlineBehindAGRPCProxy(t *testing.T) {
	t.Parallel()
	if !server(t).Embedded() { // only those can be configured
		return
	}
	const ttl = 6 * time.Second
	f := newOrigin(t)
	t.Run("is late by what the answer took from the server to the proxy", func(t *testing.T) {
		t.Parallel()
		d := f.holder(t, concurrency.WithTTL(int(ttl/time.Second)))
		renewed, answered := d.lateAnswer(t, 500*time.Millisecond, ttl)
		late := d.session.Deadline().Sub(renewed.Add(ttl))
		require.Greater(t, late, 400*time.Millisecond)
		require.LessOrEqual(t, late, time.Since(renewed))
		_, overlap := d.verdict(t, ttl)
		t.Logf("the answer took %v: the deadline is late by %v, and the end was after the rival's coming by %v",
			round(answered.Sub(renewed)), round(late), round(overlap))
	})
	t.Run("is in time with a margin of as much", func(t *testing.T) {
		t.Parallel()
		const margin = 2 * time.Second
		d := f.holder(t, concurrency.WithTTL(int(ttl/time.Second)), concurrency.WithSafetyMargin(margin))
		d.lateAnswer(t, 500*time.Millisecond, margin)
		late, overlap := d.verdict(t, ttl)
		require.Negative(t, late)
		require.Negative(t, overlap)
	})
	// The proxy answers when it renews by itself: every third of the TTL, and not before.
	t.Run("passes with no fault where a margin leaves less than the proxy's answers take", func(t *testing.T) {
		t.Parallel()
		d := f.open(t, concurrency.WithTTL(int(ttl/time.Second)), concurrency.WithSafetyMargin(2*ttl/3))
		require.NoError(t, d.ended.Wait(t))
		require.ErrorIs(t, context.Cause(d.session.Ctx()), concurrency.ErrSessionExpired)
		require.True(t, lives(t, f.cluster.Client(t), d.session.Lease()))
	})
}

// lateAnswer holds back one answer from the server until the session has asked for it, more
// than least after the server has received the renewal, and less than most. No other renewal
// reaches the server afterwards. It returns when the server received the renewal, and when
// the answer was let through.
func (d *distant) lateAnswer(t *testing.T, least, most time.Duration) (renewed, answered time.Time) {
	t.Helper()
	const (
		arrival = 100 * time.Millisecond // of the request at the proxy: what is asked later is not answered
		reserve = 500 * time.Millisecond // within which an answer is sure to be in time
	)
	for asked := false; !asked; {
		d.renewed(t, 1)
		d.answers.StallDown()
		d.renewed(t, 1)
		d.requests.StallUp()
		// Whether the session asks before it ends depends on how its renewals and the
		// proxy's lie. It does for one of the next renewals, if not for this one.
		etcdtest.Eventually(t, func() bool {
			renewed, _ = d.received.last(d.session.Lease())
			at, _ := d.sent.last(d.session.Lease())
			asked = at.Sub(renewed) > least && time.Since(at) > arrival
			return asked || time.Until(d.session.Deadline()) < reserve || time.Since(renewed) > most-reserve
		}, "the session asks")
		before := d.session.Deadline()
		answered = time.Now()
		if !asked {
			d.requests.Resume()
		}
		d.answers.Resume()
		etcdtest.Eventually(t, func() bool { return d.session.Deadline().After(before) }, "an answer")
	}
	require.Less(t, answered.Sub(renewed), most)
	return renewed, answered
}

// This measures how late a session ends whose proxy is cut off from the server at a random
// moment. "make proxied" prints the table; TRIALS is the number of each kind.
func TestCutOffsBehindAGRPCProxy(t *testing.T) {
	t.Parallel()
	if !server(t).Embedded() { // only those can be configured
		return
	}
	const (
		ttl   = 5 * time.Second
		batch = 4 // of each kind at the same time, so that the machine can run them
	)
	trials := 2
	if n, err := strconv.Atoi(os.Getenv("TRIALS")); err == nil && n > 0 {
		trials = n
	}
	f := newOrigin(t)
	for _, kind := range []cutKind{
		{how: "both directions"},
		{how: "both directions, round trip of 200 ms", delay: 50 * time.Millisecond},
		{how: "answers for up to 1.5 s, then both", answers: ttl / 2},
		{how: "answers for up to 1.5 s, requests in the last second of it, then both", answers: ttl / 2, requests: time.Second},
	} {
		t.Run(kind.how, func(t *testing.T) {
			t.Parallel()
			var late, overlap []time.Duration
			for len(late) < trials {
				t.Run("together", func(t *testing.T) { // so that what they used is closed
					l, o := f.cutOffs(t, kind, ttl, min(batch, trials-len(late)))
					late, overlap = append(late, l...), append(overlap, o...)
				})
			}
			overlaps := 0
			for _, o := range overlap {
				if o > 0 {
					overlaps++
				}
			}
			t.Logf("| %s | %d | %v | %d | %v |",
				kind.how, len(late), round(slices.Max(late)), overlaps, round(slices.Max(overlap)))
			require.Less(t, slices.Max(late), ttl)
		})
	}
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// cutKind is a way in which a proxy loses its server: the answers stop at a random moment
// and come after a random time, and no request passes from a random moment in between.
type cutKind struct {
	how               string
	delay             time.Duration // of each of the two links, each way
	answers, requests time.Duration // for how long before the end at most
}

// cutOffs are n at the same time.
func (f *origin) cutOffs(t *testing.T, kind cutKind, ttl time.Duration, n int) (late, overlap []time.Duration) {
	t.Helper()
	calls, holders := make([]*etcdtest.Call, n), make([]*distant, n)
	for i := range n {
		d := f.holder(t, concurrency.WithTTL(int(ttl/time.Second)))
		d.answers.Delay(kind.delay)
		d.requests.Delay(kind.delay)
		calls[i], holders[i] = etcdtest.Go(func() error { return d.cut(kind, ttl) }), d
	}
	for i, call := range calls {
		require.NoError(t, call.Wait(t))
		l, o := holders[i].verdict(t, ttl)
		late, overlap = append(late, l), append(overlap, o)
	}
	return late, overlap
}

// cut lets some renewals pass and cuts the proxy off. Nothing is to be waited for here but
// the moments, which are drawn.
func (d *distant) cut(kind cutKind, ttl time.Duration) error {
	begin := ttl + rand.N(ttl/3)
	end := begin
	if kind.answers > 0 {
		end += rand.N(kind.answers)
	}
	lost := end
	if kind.requests > 0 {
		lost = max(begin, end-rand.N(kind.requests))
	}
	start := time.Now()
	at := func(moment time.Duration) { <-time.After(time.Until(start.Add(moment))) }
	at(begin)
	d.answers.StallDown()
	at(lost)
	d.requests.StallUp()
	at(end)
	if kind.answers > 0 {
		d.answers.Resume()
	}
	return d.rival.Err()
}

// verdict is how long after the time at which the lease may have expired the session's
// deadline is, and how long after the rival's coming its end. Both are negative where all
// is well.
func (d *distant) verdict(t *testing.T, ttl time.Duration) (late, overlap time.Duration) {
	t.Helper()
	require.NoError(t, d.ended.Wait(t))
	renewed, _ := d.received.last(d.session.Lease())
	late = d.session.Deadline().Sub(renewed.Add(ttl))
	require.NoError(t, d.rival.Wait(t))
	return late, d.end.Sub(d.rivalIn)
}
