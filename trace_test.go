package concurrency_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
	"example.com/etcd/concurrency/internal/virtual"
)

// told is one call of a function of a Trace.
type told struct {
	what    string
	line    concurrency.LineEvent
	session concurrency.SessionEvent
	call    concurrency.CallEvent
}

// record keeps what a Trace is told. Each call first runs during, if there is one.
type record struct {
	during func(what string)

	mu  sync.Mutex // guards the field below
	all []told
}

func (r *record) note(e told) {
	if r.during != nil {
		r.during(e.what)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, e)
}

func (r *record) line(what string) func(concurrency.LineEvent) {
	return func(e concurrency.LineEvent) { r.note(told{what: what, line: e}) }
}

func (r *record) session(what string) func(concurrency.SessionEvent) {
	return func(e concurrency.SessionEvent) { r.note(told{what: what, session: e}) }
}

// trace has every function.
func (r *record) trace() *concurrency.Trace {
	return &concurrency.Trace{
		Joined: r.line("Joined"), Waiting: r.line("Waiting"), Acquired: r.line("Acquired"),
		GaveUp: r.line("GaveUp"), Released: r.line("Released"), Lost: r.line("Lost"),
		LeftBehind: r.line("LeftBehind"), CleanedUp: r.line("CleanedUp"),
		Renewed: r.session("Renewed"), RenewalFailed: r.session("RenewalFailed"), Ended: r.session("Ended"),
		Repeated: func(e concurrency.CallEvent) { r.note(told{what: "Repeated", call: e}) },
		Attempt:  func(concurrency.Attempt) { r.note(told{what: "Attempt"}) },
	}
}

func (r *record) option() concurrency.SessionOption { return concurrency.WithTrace(r.trace()) }

// of are those of one kind, in their order.
func (r *record) of(what string) (some []told) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.all {
		if e.what == what {
			some = append(some, e)
		}
	}
	return some
}

// names are the functions that were called, in order, without those of the renewals.
func (r *record) names() (names []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.all {
		if e.what != "Renewed" && e.what != "RenewalFailed" {
			names = append(names, e.what)
		}
	}
	return names
}

// one waits for the first of a kind.
func (r *record) one(tb testing.TB, what string) told {
	tb.Helper()
	etcdtest.Eventually(tb, func() bool { return len(r.of(what)) > 0 }, "%s is told", what)
	return r.of(what)[0]
}

func TestTraceOfALock(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		t.Run("that is free", func(t *testing.T) {
			t.Parallel()
			r := &record{}
			l, h := taken(t, kind, r.option())
			key, token, lease := h.Key(), h.Rev(), l.session.Lease()
			require.NoError(t, h.giveBack(t.Context()))
			require.Equal(t, []string{"Joined", "Acquired", "Released"}, r.names())
			require.Equal(t, concurrency.LineEvent{
				Name: l.name, Lease: lease, Key: key, Token: token, Position: 1,
			}, r.of("Joined")[0].line)
			acquired, released := r.of("Acquired")[0].line, r.of("Released")[0].line
			require.Positive(t, acquired.Waited)
			require.Positive(t, released.Held)
			acquired.Waited, released.Held = 0, 0
			require.Equal(t, concurrency.LineEvent{Name: l.name, Lease: lease, Key: key, Token: token}, acquired)
			require.Equal(t, acquired, released)
		})
		t.Run("for which it waits, behind one and then another", func(t *testing.T) {
			t.Parallel()
			r := &record{}
			l := newLine(t, r.option())
			first, second := kind(session(t, l.outside), l.name), kind(session(t, l.outside), l.name)
			require.NoError(t, first.take(t.Context()))
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			middle := etcdtest.Go(func() error { return second.take(ctx) })
			l.stand(t, 2)
			h := kind(l.session, l.name)
			call := etcdtest.Go(func() error { return h.take(t.Context()) })
			waiting := r.one(t, "Waiting").line
			joined := r.of("Joined")[0].line
			require.Equal(t, 3, joined.Position)
			require.Equal(t, etcdtest.Keys(t, l.outside, l.name+"/")[1].Key, []byte(joined.Ahead))
			require.Equal(t, joined.Ahead, waiting.Ahead)
			require.Equal(t, joined.Token, waiting.Token)
			leave()
			require.Error(t, middle.Wait(t))
			etcdtest.Eventually(t, func() bool { return len(r.of("Waiting")) == 2 }, "behind the other")
			require.Equal(t, first.Key(), r.of("Waiting")[1].line.Ahead)
			require.NoError(t, first.giveBack(t.Context()))
			require.NoError(t, call.Wait(t))
			require.Equal(t, []string{"Joined", "Waiting", "Waiting", "Acquired"}, r.names())
		})
		t.Run("that is given up", func(t *testing.T) {
			t.Parallel()
			r := &record{}
			l := newLine(t, r.option())
			l.held(t)
			ctx, cancel := context.WithCancel(t.Context())
			h := kind(l.session, l.name)
			call := etcdtest.Go(func() error { return h.take(ctx) })
			r.one(t, "Waiting")
			cancel()
			require.Equal(t, context.Canceled, call.Wait(t))
			require.Equal(t, []string{"Joined", "Waiting", "GaveUp"}, r.names())
			e := r.of("GaveUp")[0].line
			require.Equal(t, context.Canceled, e.Err)
			require.Positive(t, e.Waited)
			require.Equal(t, r.of("Joined")[0].line.Key, e.Key)
		})
	})
}

func TestTraceOfALockThatIsTried(t *testing.T) {
	t.Parallel()
	r := &record{}
	l := newLine(t, r.option())
	holder := l.held(t)
	require.Equal(t, concurrency.ErrLocked, l.mutex.TryLock(t.Context()))
	require.Equal(t, []string{"GaveUp"}, r.names())
	require.Equal(t, concurrency.ErrLocked, r.of("GaveUp")[0].line.Err)
	require.NoError(t, holder.Unlock(t.Context()))
	require.NoError(t, l.mutex.TryLock(t.Context()))
	require.Equal(t, []string{"GaveUp", "Joined", "Acquired"}, r.names())
}

func TestTraceOfASharedOwnership(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		r := &record{}
		l, h := taken(t, kind, r.option())
		twin := kind(l.session, l.name)
		require.NoError(t, twin.take(t.Context()))
		require.NoError(t, twin.giveBack(t.Context()))
		require.NoError(t, h.giveBack(t.Context()))
		require.Equal(t, []string{"Joined", "Acquired", "Joined", "Released"}, r.names())
	})
}

func TestTraceOfALoss(t *testing.T) {
	type loss struct {
		how   string
		lose  func(t *testing.T, l *line, h holder)
		cause error
		ends  error // of the session; nil: it lives
	}
	losses := []loss{
		{"somebody deletes the key, whose context is watched", func(t *testing.T, l *line, h holder) {
			ctx := h.Ctx()
			l.delete(t, h.Key())
			require.Equal(t, concurrency.ErrKeyDeleted, cause(t, ctx))
		}, concurrency.ErrKeyDeleted, nil},
		{"somebody deletes the key, which the release finds out", func(t *testing.T, l *line, h holder) {
			l.delete(t, h.Key())
			require.NoError(t, h.giveBack(t.Context()))
		}, concurrency.ErrKeyDeleted, nil},
		{"somebody revokes the lease, and the watch of the key tells first", func(t *testing.T, l *line, h holder) {
			ctx := h.Ctx()
			l.watched(t, 1)
			revoke(t, l.outside, l.session)
			require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
		}, concurrency.ErrLeaseGone, concurrency.ErrLeaseGone},
		{"the client is closed", func(t *testing.T, l *line, h holder) {
			revokedAtEnd(t, l.outside, l.session.Lease())
			l.client.Close()
		}, concurrency.ErrClientClosed, concurrency.ErrClientClosed},
		{"the session is closed", func(t *testing.T, l *line, h holder) {
			require.NoError(t, l.session.Close())
		}, context.Canceled, context.Canceled},
	}
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		for _, loss := range losses {
			t.Run(loss.how, func(t *testing.T) {
				t.Parallel()
				r := &record{}
				l, h := taken(t, kind, r.option())
				key, token := h.Key(), h.Rev()
				loss.lose(t, l, h)
				e := r.one(t, "Lost").line
				require.Equal(t, loss.cause, e.Err)
				require.Positive(t, e.Held)
				e.Held, e.Err = 0, nil
				require.Equal(t, concurrency.LineEvent{Name: l.name, Lease: l.session.Lease(), Key: key, Token: token}, e)
				if loss.ends != nil {
					require.Equal(t, loss.ends, r.one(t, "Ended").session.Err)
					require.Equal(t, l.session.Lease(), r.of("Ended")[0].session.Lease)
				} else {
					require.Empty(t, r.of("Ended"))
				}
				_ = h.giveBack(t.Context())
				_ = l.session.Close()
				require.Len(t, r.of("Lost"), 1)
				require.Len(t, r.of("Ended"), 1)
				require.Empty(t, r.of("Released"))
			})
		}
	})
}

func TestTraceOfALossThatALockFinds(t *testing.T) {
	t.Parallel()
	r, l := &record{}, newLine(t)
	s := session(t, l.client, r.option())
	m := concurrency.NewMutex(s, l.name)
	require.NoError(t, m.Lock(t.Context()))
	lost := m.Rev()
	l.delete(t, m.Key())
	require.NoError(t, m.Lock(t.Context()))
	e := r.one(t, "Lost")
	require.Equal(t, lost, e.line.Token)
	require.Equal(t, concurrency.ErrKeyDeleted, e.line.Err)
	require.NoError(t, m.Unlock(t.Context()))
	require.NoError(t, s.Close())
	require.Len(t, r.of("Acquired"), 2)
	require.Len(t, r.of("Released"), 1)
	require.Len(t, r.of("Lost"), 1)
}

// A sibling acquires anew before anybody has seen that the ticket is gone.
func TestTraceOfALossThatASiblingFinds(t *testing.T) {
	t.Parallel()
	r := &record{}
	l := newLine(t, r.option())
	require.NoError(t, l.mutex.Lock(t.Context()))
	lost := l.mutex.Rev()
	l.delete(t, l.mutex.Key())
	sibling := l.handle()
	require.NoError(t, sibling.Lock(t.Context()))
	e := r.one(t, "Lost").line
	require.Equal(t, lost, e.Token)
	require.Equal(t, concurrency.ErrKeyDeleted, e.Err)
	require.NoError(t, sibling.Unlock(t.Context()))
	require.NoError(t, l.session.Close())
	require.Len(t, r.of("Acquired"), 2)
	require.Len(t, r.of("Released"), 1)
	require.Len(t, r.of("Lost"), 1)
}

func TestTraceOfADeadline(t *testing.T) {
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		t, c, n := remote(b)
		r := &record{}
		s := session(t, c, concurrency.WithTTL(6), r.option())
		locks := []*concurrency.Mutex{concurrency.NewMutex(s, "a"), concurrency.NewMutex(s, "b")}
		for _, m := range locks {
			require.NoError(t, m.Lock(t.Context()))
		}
		n.Stall(time.Minute)
		ended(t, s.Done(), "the session")
		require.Equal(t, concurrency.ErrDeadline, context.Cause(s.Ctx()))
		etcdtest.Eventually(t, func() bool { return len(r.of("Lost")) == 2 }, "both are told")
		for _, e := range r.of("Lost") {
			require.Equal(t, concurrency.ErrDeadline, e.line.Err)
		}
		require.Len(t, r.of("Ended"), 1)
		require.Equal(t, concurrency.ErrDeadline, r.of("Ended")[0].session.Err)
		require.NotEmpty(t, r.of("RenewalFailed"))
		for _, e := range r.of("RenewalFailed") {
			require.Equal(t, concurrency.ErrNoAnswer, e.session.Err)
			require.Less(t, e.session.Left, 4*time.Second+time.Millisecond)
		}
	})
}

// tracedTTL and tracedTrip are those of the session whose renewals are traced.
const tracedTTL, tracedTrip = 6, 200 * time.Millisecond

// inTrace runs a test in virtual time, with a record for the Trace of its session.
func inTrace(t *testing.T, f func(t *testing.T, c *clientv3.Client, n *virtual.Network, r *record)) {
	t.Helper()
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		t, c, n := remote(b)
		n.SetRoundTrip(virtual.RoundTrip{Min: tracedTrip, Max: tracedTrip})
		f(t, c, n, &record{})
	})
}

// traced is a session whose renewals are recorded.
func (r *record) traced(t *testing.T, c *clientv3.Client) *concurrency.Session {
	t.Helper()
	return session(t, c, concurrency.WithTTL(tracedTTL), r.option())
}

// failed waits for the first renewal that failed, and says why it did.
func (r *record) failed(t *testing.T) error {
	t.Helper()
	etcdtest.Eventually(t, func() bool { return len(r.of("RenewalFailed")) > 0 }, "the failure is told")
	return r.of("RenewalFailed")[0].session.Err
}

func TestTraceOfRenewalsOnAStream(t *testing.T) {
	inTrace(t, func(t *testing.T, c *clientv3.Client, _ *virtual.Network, r *record) {
		s := r.traced(t, c)
		survives(t, s, 2)
		require.GreaterOrEqual(t, len(r.of("Renewed")), 5)
		require.LessOrEqual(t, len(r.of("Renewed")), 7)
		for _, e := range r.of("Renewed") {
			require.Equal(t, s.Lease(), e.session.Lease)
			require.InDelta(t, tracedTrip.Seconds(), e.session.RoundTrip.Seconds(), 0.01)
			require.InDelta(t, tracedTTL-tracedTrip.Seconds(), e.session.Left.Seconds(), 0.01)
			require.NoError(t, e.session.Err)
		}
		require.Empty(t, r.of("RenewalFailed"))
	})
}

func TestTraceOfRenewalsByCalls(t *testing.T) {
	inTrace(t, func(t *testing.T, c *clientv3.Client, _ *virtual.Network, r *record) {
		counted(t, c)
		s := r.traced(t, c)
		survives(t, s, 2)
		require.GreaterOrEqual(t, len(r.of("Renewed")), 5)
		require.Empty(t, r.of("RenewalFailed"))
	})
}

func TestTraceOfRenewalsWhoseCallIsRefused(t *testing.T) {
	inTrace(t, func(t *testing.T, c *clientv3.Client, _ *virtual.Network, r *record) {
		f := counted(t, c)
		s := r.traced(t, c)
		f.Refuse(fault.KeepAliveOnce, 1, codes.Unauthenticated, "who are you")
		require.ErrorContains(t, r.failed(t), "who are you")
		survives(t, s, 2)
		require.Len(t, r.of("RenewalFailed"), 1)
	})
}

func TestTraceOfRenewalsWhoseCallIsNotAnswered(t *testing.T) {
	inTrace(t, func(t *testing.T, c *clientv3.Client, _ *virtual.Network, r *record) {
		f := counted(t, c)
		s := r.traced(t, c)
		silent := f.Hold(fault.KeepAliveOnce, 1)
		require.Equal(t, concurrency.ErrNoAnswer, r.failed(t))
		survives(t, s, 1)
		require.Len(t, r.of("RenewalFailed"), 1)
		silent.Open()
	})
}

func TestTraceOfRenewalsWhoseStreamBreaks(t *testing.T) {
	inTrace(t, func(t *testing.T, c *clientv3.Client, n *virtual.Network, r *record) {
		s := r.traced(t, c)
		r.one(t, "Renewed")
		n.Stall(3 * time.Second) // until the next renewal is under way
		<-time.After(2 * time.Second)
		n.Cut()
		require.Equal(t, codes.Unavailable, status.Code(r.failed(t)))
		survives(t, s, 1)
		require.Len(t, r.of("RenewalFailed"), 1)
	})
}

func TestTraceOfACallThatIsRepeated(t *testing.T) {
	t.Parallel()
	t.Run("after a fault", func(t *testing.T) {
		t.Parallel()
		r := &record{}
		l := newLine(t, r.option())
		l.faults.LoseAnswer(fault.Txn, 1, nil)
		require.NoError(t, l.mutex.Lock(t.Context()))
		e := r.one(t, "Repeated").call
		require.Equal(t, concurrency.CallEvent{Lease: l.session.Lease(), Err: fault.ErrLostAnswer}, e)
	})
	t.Run("of a transaction", func(t *testing.T) {
		t.Parallel()
		s, r := newSpace(t, server(t)), &record{}
		s.faults.Refuse(fault.Txn, 1, codes.Unavailable, "etcdserver: leader changed")
		_, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
			stm.Get(s.key("a"), s.key("b"))
			return nil
		}, concurrency.WithSTMTrace(r.trace()))
		require.NoError(t, err)
		require.ElementsMatch(t, []string{"Repeated", "Attempt"}, r.names())
	})
}

func TestTraceOfACallBesideTheFirst(t *testing.T) {
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		t, c, _ := remote(b)
		f, r := counted(t, c), &record{}
		s := session(t, c, concurrency.WithTTL(6), r.option())
		silent := f.Hold(fault.Txn, 1)
		begun := time.Now()
		m := concurrency.NewMutex(s, "name")
		require.NoError(t, m.Lock(t.Context()))
		require.InDelta(t, 1.9, time.Since(begun).Seconds(), 0.11, "up to a tenth less than a third of the TTL")
		require.Equal(t, concurrency.ErrNoAnswer, r.one(t, "Repeated").call.Err)
		silent.Open()
		require.NoError(t, m.Unlock(t.Context()))
		require.Len(t, r.of("Repeated"), 1)
	})
}

func TestTraceOfWhatIsLeftBehind(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		t.Run("by an acquisition", func(t *testing.T) {
			t.Parallel()
			r := &record{}
			l := newLine(t, r.option())
			l.held(t)
			ctx, cancel := context.WithCancel(t.Context())
			h := kind(l.session, l.name)
			call := etcdtest.Go(func() error { return h.take(ctx) })
			r.one(t, "Waiting")
			l.faults.Refuse(fault.Txn, 3, codes.ResourceExhausted, "slow down")
			cancel()
			require.Equal(t, context.Canceled, call.Wait(t))
			e := r.one(t, "LeftBehind").line
			require.ErrorContains(t, e.Err, "slow down")
			require.Equal(t, r.of("Joined")[0].line.Key, e.Key)
			l.stand(t, 1)
			require.Equal(t, e.Key, r.one(t, "CleanedUp").line.Key)
			require.Len(t, r.of("LeftBehind"), 1)
			require.Len(t, r.of("CleanedUp"), 1)
		})
		t.Run("by a release", func(t *testing.T) {
			t.Parallel()
			r := &record{}
			l, h := taken(t, kind, r.option())
			key := h.Key()
			l.faults.Refuse(fault.Txn, 3, codes.PermissionDenied, "etcdserver: permission denied")
			require.Equal(t, rpctypes.ErrPermissionDenied, h.giveBack(t.Context()))
			require.Equal(t, rpctypes.ErrPermissionDenied, r.of("Released")[0].line.Err)
			require.Equal(t, key, r.one(t, "LeftBehind").line.Key)
			l.stand(t, 0)
			require.Equal(t, key, r.one(t, "CleanedUp").line.Key)
			require.Empty(t, r.of("Lost"))
		})
	})
}

// A function that never returns is the slowest of all.
func TestASlowTraceHoldsNothingUp(t *testing.T) {
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		t, c, n := remote(b)
		slow := make(chan struct{})
		r := &record{during: func(what string) {
			if what == "Renewed" {
				<-slow
			}
		}}
		s, other := session(t, c, concurrency.WithTTL(3), r.option()), session(t, c, concurrency.WithTTL(3))
		m := concurrency.NewMutex(s, "name")
		require.NoError(t, m.Lock(t.Context()))
		work := m.Ctx()
		survives(t, s, 100)
		survives(t, other, 1)
		_, err := c.Delete(t.Context(), m.Key())
		require.NoError(t, err)
		require.Equal(t, concurrency.ErrKeyDeleted, cause(t, work))
		require.NoError(t, m.Lock(t.Context()))
		n.Stall(time.Minute)
		began := time.Now()
		ended(t, s.Done(), "the session")
		require.LessOrEqual(t, time.Since(began), 3*time.Second)
		close(slow)
		etcdtest.Eventually(t, func() bool { return len(r.of("Ended")) == 1 && len(r.of("Lost")) == 2 },
			"an end and a loss are told, however many renewals came before")
		require.Len(t, r.of("Renewed"), 64, "and of the others as many as are kept")
	})
}

// Whatever a function asks of its session, of a lock, or of a context, it gets an answer.
func TestATraceMayAsk(t *testing.T) {
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		t, c, n := remote(b)
		var m *concurrency.Mutex
		var s *concurrency.Session
		r := &record{}
		f := counted(t, c)
		r.during = func(string) {
			_, _, _, _ = m.Key(), m.Rev(), m.Header(), m.IsOwner()
			_, _, _ = m.Ctx().Err(), s.Ctx().Err(), context.Cause(s.Ctx())
			_, _, _ = s.Deadline(), s.TTL(), s.Done()
		}
		s = session(t, c, concurrency.WithTTL(6), concurrency.WithTrace(r.trace()))
		m = concurrency.NewMutex(s, "name")
		require.NoError(t, m.Do(t.Context(), func(context.Context) error { return nil }))
		f.LoseAnswer(fault.Txn, 1, nil)
		f.Refuse(fault.KeepAliveOnce, 1, codes.Unavailable, "away")
		require.NoError(t, m.Lock(t.Context()))
		r.one(t, "RenewalFailed")
		r.one(t, "Renewed")
		f.Refuse(fault.Txn, 2, codes.PermissionDenied, "etcdserver: permission denied")
		require.Error(t, m.Unlock(t.Context()))
		r.one(t, "CleanedUp")
		require.NoError(t, m.Lock(t.Context()))
		n.Stall(time.Minute)
		ended(t, s.Done(), "the session")
		r.one(t, "Lost")
		require.Error(t, m.Do(t.Context(), none(t)))
		r.one(t, "GaveUp")
	})
}

func TestCloseWaitsForItsTrace(t *testing.T) {
	t.Parallel()
	slow, begun := make(chan struct{}), make(chan struct{})
	r := &record{during: func(what string) {
		if what == "Ended" {
			close(begun)
			<-slow
		}
	}}
	l := newLine(t, r.option())
	call := etcdtest.Go(l.session.Close)
	<-begun
	ended(t, l.session.Done(), "the session does not wait")
	etcdtest.Eventually(t, func() bool { return !lives(t, l.outside, l.session.Lease()) }, "nor does the revocation")
	require.True(t, call.Running())
	close(slow)
	require.NoError(t, call.Wait(t))
	require.Len(t, r.of("Ended"), 1)
}

func TestATraceIsCopied(t *testing.T) {
	t.Parallel()
	r := &record{}
	trace := r.trace()
	l := newLine(t, concurrency.WithTrace(trace))
	*trace = concurrency.Trace{}
	require.NoError(t, l.mutex.Lock(t.Context()))
	require.Equal(t, []string{"Joined", "Acquired"}, r.names())
}

// acquiring is a line whose trace is being told of its first acquisition. goOn returns when Lock has.
func acquiring(t *testing.T) (r *record, l *line, goOn func()) {
	first, gate := make(chan struct{}), make(chan struct{})
	var begun atomic.Bool
	r = &record{during: func(what string) {
		if what == "Acquired" && begun.CompareAndSwap(false, true) {
			close(first)
			<-gate
		}
	}}
	l = newLine(t, r.option())
	slow := etcdtest.Go(func() error { return l.mutex.Lock(t.Context()) })
	ended(t, first, "the first Acquired")
	return r, l, func() {
		close(gate)
		require.NoError(t, slow.Wait(t))
	}
}

func TestAnAcquiredThatTakesItsTimeHidesNoNewerOwnership(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, l, goOn := acquiring(t)
	// Other goroutines use the same handle meanwhile.
	require.NoError(t, l.mutex.Lock(ctx))
	require.NoError(t, l.mutex.Unlock(ctx))
	require.NoError(t, l.mutex.Lock(ctx))
	goOn()
	require.True(t, l.owns(t, l.mutex))
	require.NoError(t, l.mutex.Unlock(ctx))
	l.stand(t, 0)
}

func TestTraceOfAReleaseWhileAcquiredIsTold(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	r, l, goOn := acquiring(t)
	sibling := l.handle()
	require.NoError(t, sibling.Lock(ctx))
	require.NoError(t, sibling.Unlock(ctx))
	goOn()
	require.NoError(t, l.session.Close())
	require.Equal(t, []string{"Joined", "Joined", "Acquired", "Released", "Ended"}, r.names())
	require.NoError(t, r.of("Released")[0].line.Err)
}

func TestATraceThatPanicsLeavesNoKey(t *testing.T) {
	for _, what := range []string{"Joined", "Waiting"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			r := &record{during: func(told string) {
				if told == what {
					panic("made up")
				}
			}}
			l := newLine(t, r.option())
			l.held(t)
			require.PanicsWithValue(t, "made up", func() { _ = l.mutex.Lock(t.Context()) })
			l.stand(t, 1)
		})
	}
	t.Run("Acquired", func(t *testing.T) {
		t.Parallel()
		r := &record{during: func(told string) {
			if told == "Acquired" {
				panic("made up")
			}
		}}
		l := newLine(t, r.option())
		require.PanicsWithValue(t, "made up", func() { _ = l.mutex.Lock(t.Context()) })
		require.NoError(t, l.mutex.Unlock(t.Context()), "the handle knows what it holds")
		l.stand(t, 0)
	})
}

// The sessions of a client share a stream, which may break after one of them was closed.
func TestATraceIsToldNothingAfterClose(t *testing.T) {
	virtual.Run(t, virtual.Options{}, func(b *virtual.Bubble) {
		t, c, n := remote(b)
		session(t, c, concurrency.WithTTL(6))
		n.SetScope(virtual.RenewalsOnly)
		n.Set("message-late", 1)
		r := &record{}
		s, err := concurrency.NewSession(c, concurrency.WithTTL(6), r.option())
		require.NoError(t, err)
		b.Sleep(3 * time.Second) // a renewal is under way
		require.NoError(t, s.Close())
		require.Empty(t, r.of("RenewalFailed"))
		n.Cut()
		b.Sleep(time.Second)
		n.Calm()
		require.Empty(t, r.of("RenewalFailed"))
	})
}
