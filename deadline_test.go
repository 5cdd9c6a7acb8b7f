package concurrency_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

func TestSessionDeadline(t *testing.T) {
	t.Parallel()
	t.Run("the sending of the last answered renewal, plus the TTL", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		before := time.Now()
		s := session(t, c, concurrency.WithTTL(2))
		first := s.Deadline()
		require.WithinRange(t, first, before.Add(2*time.Second), time.Now().Add(2*time.Second))
		answer := f.HoldAnswer(fault.KeepAliveOnce, 1)
		ended(t, answer.Reached(), "renewed")
		require.Equal(t, first, s.Deadline(), "without an answer")
		sent := time.Now()
		answer.Open()
		etcdtest.Eventually(t, func() bool { return s.Deadline().After(first) }, "with the answer")
		require.True(t, s.Deadline().Before(sent.Add(2*time.Second)))
	})
	t.Run("at which the session ends unless a renewal is answered before", func(t *testing.T) {
		t.Parallel()
		p, c := proxied(t, server(t))
		s := session(t, c, concurrency.WithTTL(1))
		p.Stall()
		ended(t, s.Done(), "the session")
		require.False(t, time.Now().Before(s.Deadline()))
	})
}

func TestFirstDeadline(t *testing.T) {
	t.Parallel()
	c := client(t)
	f := counted(t, c)
	var answered time.Time
	f.After(fault.Grant, 1, func(error) { answered = time.Now() })
	s := session(t, c)
	require.False(t, s.Deadline().After(answered.Add(s.TTL())), "the lease counts from earlier")
}

func TestWithSafetyMargin(t *testing.T) {
	t.Parallel()
	t.Run("gives up this much before the lease could end", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		f.Refuse(fault.KeepAliveOnce, 1000, codes.Unavailable, "away")
		before := time.Now()
		s := session(t, c, concurrency.WithTTL(30), concurrency.WithSafetyMargin(29*time.Second))
		require.WithinRange(t, s.Deadline(), before.Add(time.Second), time.Now().Add(time.Second))
		ended(t, s.Done(), "the session")
		require.False(t, time.Now().Before(s.Deadline()))
		require.Equal(t, concurrency.ErrDeadline, context.Cause(s.Ctx()))
		require.True(t, lives(t, c, s.Lease()))
	})
	t.Run("that of a lease brought along", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		id := granted(t, c, 3)
		f := counted(t, c)
		s := session(t, c, concurrency.WithLease(id), concurrency.WithSafetyMargin(2*time.Second))
		etcdtest.Eventually(t, func() bool { return f.Count(fault.KeepAliveOnce) > 3 }, "renewals")
		require.NoError(t, s.Ctx().Err())
	})
	t.Run("negative, or not shorter than the TTL, is an error", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		for _, opts := range [][]concurrency.SessionOption{
			{concurrency.WithSafetyMargin(-1)},
			{concurrency.WithSafetyMargin(5 * time.Second), concurrency.WithTTL(5)},
			{concurrency.WithSafetyMargin(5 * time.Second), concurrency.WithLease(granted(t, c, 5))},
			{concurrency.WithSafetyMargin(-1), concurrency.WithLease(granted(t, c, 5))},
		} {
			s, err := concurrency.NewSession(c, opts...)
			require.ErrorContains(t, err, "concurrency: a safety margin of ")
			require.Nil(t, s)
		}
	})
}

func TestSafetyMargin(t *testing.T) {
	t.Parallel()
	t.Run("ends the session this much before the lease could end", func(t *testing.T) {
		t.Parallel()
		c, outside := client(t), client(t)
		f := counted(t, c)
		f.Refuse(fault.KeepAliveOnce, 1000, codes.Unavailable, "away")
		before := time.Now()
		s := session(t, c, concurrency.WithTTL(6), concurrency.WithSafetyMargin(5*time.Second))
		opened := time.Now()
		require.WithinRange(t, s.Deadline(), before.Add(time.Second), opened.Add(time.Second))
		m := concurrency.NewMutex(s, prefix(t))
		require.NoError(t, m.Lock(t.Context()))
		require.ErrorIs(t, cause(t, m.Ctx()), concurrency.ErrSessionExpired)
		require.False(t, time.Now().Before(s.Deadline()))
		require.Less(t, time.Since(opened), 4*time.Second)
		ended(t, s.Done(), "the session")
		require.True(t, lives(t, outside, s.Lease()), "the lease has the margin left")
		require.NoError(t, s.Close())
		require.False(t, lives(t, outside, s.Lease()), "Close revokes it")
	})
	t.Run("leaves time for renewals", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		s := session(t, c, concurrency.WithTTL(5), concurrency.WithSafetyMargin(3*time.Second))
		etcdtest.Eventually(t, func() bool { return f.Count(fault.KeepAliveOnce) > 5 }, "renewals for longer than it would live by one")
		require.NoError(t, s.Ctx().Err())
		require.Equal(t, 5*time.Second, s.TTL())
	})
	t.Run("that is negative, or not shorter than the TTL, is an error", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		for _, opts := range [][]concurrency.SessionOption{
			{concurrency.WithSafetyMargin(-1)},
			{concurrency.WithTTL(2), concurrency.WithSafetyMargin(2 * time.Second)},
			{concurrency.WithTTL(2), concurrency.WithSafetyMargin(time.Hour)},
			{concurrency.WithSafetyMargin(time.Minute), concurrency.WithTTL(0)},
			{concurrency.WithLease(granted(t, c, 5)), concurrency.WithSafetyMargin(-time.Second)},
			{concurrency.WithLease(granted(t, c, 5)), concurrency.WithSafetyMargin(5 * time.Second)},
		} {
			f.Reset()
			s, err := concurrency.NewSession(c, opts...)
			require.Nil(t, s)
			require.ErrorContains(t, err, "concurrency: ")
			require.ErrorContains(t, err, "margin")
			require.Zero(t, f.Count(fault.Grant), "no lease is left")
			require.Zero(t, f.Count(fault.Revoke), "nor a lease of the caller's taken away")
		}
	})
}

func TestSafetyMarginAndWithLease(t *testing.T) {
	t.Parallel()
	t.Run("counts from what is left of the lease", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		id := granted(t, c, 30)
		f.Refuse(fault.KeepAliveOnce, 1000, codes.Unavailable, "away")
		s := session(t, c, concurrency.WithLease(id), concurrency.WithSafetyMargin(10*time.Second))
		require.Equal(t, 30*time.Second, s.TTL())
		// The server tells whole seconds, rounded down.
		require.WithinRange(t, s.Deadline(), time.Now().Add(10*time.Second), time.Now().Add(20*time.Second))
		s.Orphan()
	})
	t.Run("a lease with less left than the margin is renewed first", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		id := granted(t, c, 4)
		etcdtest.Eventually(t, func() bool {
			resp, err := c.TimeToLive(t.Context(), id)
			return err == nil && resp.TTL <= 2
		}, "little is left")
		s := session(t, c, concurrency.WithLease(id), concurrency.WithSafetyMargin(2*time.Second))
		require.NotZero(t, f.Count(fault.KeepAliveOnce))
		require.NoError(t, s.Ctx().Err())
		require.Greater(t, time.Until(s.Deadline()), time.Second/2)
		etcdtest.Eventually(t, func() bool { return f.Count(fault.KeepAliveOnce) > 5 }, "more renewals")
		require.NoError(t, s.Ctx().Err())
	})
	t.Run("or else NewSession fails, and leaves the lease", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		id := granted(t, c, 4)
		etcdtest.Eventually(t, func() bool {
			resp, err := c.TimeToLive(t.Context(), id)
			return err == nil && resp.TTL <= 3
		}, "little is left")
		f.Refuse(fault.KeepAliveOnce, 1000, codes.PermissionDenied, "etcdserver: permission denied")
		_, err := concurrency.NewSession(c, concurrency.WithLease(id), concurrency.WithSafetyMargin(3500*time.Millisecond))
		require.ErrorIs(t, err, rpctypes.ErrPermissionDenied)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Zero(t, f.Count(fault.Revoke))
	})
}

func TestCtxEndsWithTheDeadline(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		for _, asked := range []string{"before", "while"} {
			t.Run("when nothing can be heard, asked for "+asked, func(t *testing.T) {
				t.Parallel()
				p, l := farLine(t, server(t), concurrency.WithTTL(2))
				h := kind(l.session, l.name)
				require.NoError(t, h.take(t.Context()))
				rival := kind(session(t, l.outside), l.name)
				call := etcdtest.Go(func() error { return rival.take(t.Context()) })
				l.stand(t, 2)
				if asked == "before" {
					h.Ctx()
					l.watched(t, 1)
				}
				p.Stall()
				ctx := h.Ctx()
				require.NoError(t, ctx.Err())
				require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
				require.True(t, call.Running(), "a rival is in")
				require.False(t, time.Now().Before(l.session.Deadline()), "too early")
				require.NoError(t, call.Wait(t))
			})
		}
		t.Run("and with the cause of the context given to the session", func(t *testing.T) {
			t.Parallel()
			reason := errors.New("enough")
			bound, cancel := context.WithCancelCause(t.Context())
			l, h := taken(t, kind, concurrency.WithContext(bound))
			revokedAtEnd(t, l.outside, l.session.Lease())
			ctx := h.Ctx()
			cancel(reason)
			require.Equal(t, reason, cause(t, ctx))
		})
	})
}

// cutOff is a holder that is parted from the servers, and a rival that waits behind it.
// What the holder could know is looked at when the rival's acquisition returns. The witness
// is a bare timer for the same deadline: when even that has not fired by then, this process
// was not run, which no timeout survives.
type cutOff struct {
	proxy   *fault.Proxy
	session *concurrency.Session
	calls   []*etcdtest.Call

	known, isIn     time.Time // each written before its call has returned
	told, witnessed bool      // when the rival was in
}

// listening is how a holder hears of its end.
type listening struct {
	how string
	to  func(tb testing.TB, l *line, h holder) <-chan struct{}
}

var listenings = []listening{
	{"by the session alone", func(_ testing.TB, l *line, _ holder) <-chan struct{} {
		return l.session.Done()
	}},
	{"by Ctx, its own-key watch working", func(tb testing.TB, l *line, h holder) <-chan struct{} {
		ctx := h.Ctx()
		etcdtest.Eventually(tb, func() bool {
			return l.faults.Count(fault.Watch) >= 1 || ctx.Err() != nil
		}, "the watch, of %v", l.faults)
		return ctx.Done()
	}},
	{"by Ctx, its watch held back", func(tb testing.TB, l *line, h holder) <-chan struct{} {
		held := l.faults.Hold(fault.Watch, 1)
		ctx := h.Ctx()
		select {
		case <-held.Reached():
		case <-ctx.Done():
		}
		return ctx.Done()
	}},
}

// newCutOff has a holder that listens, and a rival in line behind it. Where a machine does
// not run this process for a TTL, a session may end before it holds anything: then another
// is opened.
func newCutOff(
	tb testing.TB, kind func(*concurrency.Session, string) holder, how listening,
	outside *clientv3.Client, ttl int,
) *cutOff {
	tb.Helper()
	p, c := proxied(tb, server(tb))
	l := &line{name: prefix(tb), client: c, outside: outside, faults: counted(tb, c)}
	var h holder
	etcdtest.Eventually(tb, func() (held bool) {
		s, err := concurrency.NewSession(c, concurrency.WithTTL(ttl))
		if err != nil {
			return false
		}
		tb.Cleanup(func() { s.Close() })
		l.session, h = s, kind(s, l.name)
		if err := h.take(context.Background()); err != nil {
			tb.Logf("ended before it was cut off: %v", err)
			s.Close()
			return false
		}
		return true
	}, "a holder")
	l.faults.Reset()
	s, end := l.session, how.to(tb, l, h)
	rival := kind(session(tb, outside), l.name)
	o := &cutOff{proxy: p, session: s}
	witness := make(chan struct{})
	var look func()
	look = func() {
		if left := time.Until(s.Deadline()); left > 0 { // it is moved on by every renewal
			time.AfterFunc(left, look)
		} else {
			close(witness)
		}
	}
	look()
	o.calls = append(o.calls, etcdtest.Go(func() error {
		<-end
		o.known = time.Now()
		return nil
	}), etcdtest.Go(func() error {
		err := rival.take(context.Background())
		o.told, o.witnessed = isClosed(end), isClosed(witness)
		o.isIn = time.Now()
		return err
	}))
	etcdtest.Eventually(tb, func() bool {
		return len(etcdtest.Keys(tb, outside, l.name+"/")) == 2 || !o.calls[1].Running()
	}, "the rival stands in line")
	return o
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// verdict is what became of a cut-off: lead is by how much the holder knew before the
// rival was in, at least.
type verdict struct {
	overlap, excused bool
	lead             time.Duration
}

func (o *cutOff) verdict(tb testing.TB) verdict {
	tb.Helper()
	for _, call := range o.calls {
		require.NoError(tb, call.Wait(tb))
	}
	o.proxy.Accept()
	o.proxy.Resume()
	deadline := o.session.Deadline()
	require.False(tb, o.isIn.Before(deadline), "a rival is in before the deadline")
	if !o.told {
		tb.Logf("the rival was in %v after the deadline, the holder knew after %v, the witness by then: %v",
			o.isIn.Sub(deadline), o.known.Sub(deadline), o.witnessed)
	}
	return verdict{!o.told && o.witnessed, !o.told && !o.witnessed, max(o.isIn.Sub(o.known), 0)}
}

// cut parts the holder at a random phase of its renewals, in one of three ways.
func (o *cutOff) cut() {
	ways := []func(){o.proxy.Stall, o.proxy.StallDown, o.proxy.Sever}
	time.AfterFunc(rand.N(o.session.TTL()/2), ways[rand.IntN(len(ways))])
}

// cutOffs are n at the same time, half of them with a TTL of 5 s if the run is long.
func cutOffs(
	t *testing.T, kind func(*concurrency.Session, string) holder, how listening,
	outside *clientv3.Client, n int, long bool,
) (verdicts []verdict) {
	t.Helper()
	t.Run("together", func(t *testing.T) { // so that what they used is closed
		var all []*cutOff
		for i := range n {
			ttl := 2
			if long && i%2 == 1 {
				ttl = 5
			}
			all = append(all, newCutOff(t, kind, how, outside, ttl))
		}
		for _, o := range all {
			o.cut()
		}
		for _, o := range all {
			verdicts = append(verdicts, o.verdict(t))
		}
	})
	require.Len(t, verdicts, n)
	return verdicts
}

// TRIALS sets the number of cut-offs of each kind; in a long run every other one has a
// TTL of 5 s instead of 2. Overlaps that the witness excuses prove nothing, neither way:
// a fiftieth of the trials may be lost to them, and one of a short run.
func TestCtxEndsBeforeARivalIsIn(t *testing.T) {
	const batch = 24 // at the same time, so that the machine can run them
	trials := 24
	if n, err := strconv.Atoi(os.Getenv("TRIALS")); err == nil && n > 0 {
		trials = n
	}
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		for _, how := range listenings {
			t.Run(how.how, func(t *testing.T) {
				t.Parallel()
				overlaps, excused, outside, least := 0, 0, client(t), time.Hour
				for done := 0; done < trials; done += batch {
					n := min(batch, trials-done)
					for _, v := range cutOffs(t, kind, how, outside, n, trials >= 100) {
						least = min(least, v.lead)
						switch {
						case v.overlap:
							overlaps++
						case v.excused:
							excused++
						}
					}
				}
				t.Logf("%s: %d cut-offs, %d overlaps, %d more excused by a process that was not run, the closest by %v",
					t.Name(), trials, overlaps, excused, least.Round(time.Millisecond))
				require.Zero(t, overlaps, "of %d", trials)
				require.LessOrEqual(t, excused, max(trials/50, 1), "too many are excused to prove anything")
			})
		}
	})
}
