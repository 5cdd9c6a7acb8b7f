package concurrency_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
	"example.com/etcd/concurrency/internal/virtual"
)

// links is a client with two links to one server. The first carries all that was begun
// before silence is called.
type links struct {
	client  *clientv3.Client
	outside *clientv3.Client
	first   *fault.Proxy
	both    []string
}

func newLinks(tb testing.TB) *links {
	tb.Helper()
	first, c := proxied(tb, server(tb))
	second, err := fault.NewProxy(server(tb).Endpoint(0))
	require.NoError(tb, err)
	tb.Cleanup(second.Close)
	tb.Cleanup(first.Resume) // before it is closed, so that what is stuck ends
	return &links{c, client(tb), first, []string{first.Endpoint(), second.Endpoint()}}
}

// silence silences the first link, which stands, and lets the second answer.
func (l *links) silence(tb testing.TB) {
	tb.Helper()
	l.client.SetEndpoints(l.both...)
	l.first.Stall()
	etcdtest.Eventually(tb, func() bool {
		ctx, cancel := context.WithTimeout(tb.Context(), 100*time.Millisecond)
		defer cancel()
		_, err := l.client.Get(ctx, "key")
		return err == nil
	}, "the second link is open")
}

// far is the TTL of those on a link that falls silent, and heard how long the member may hold
// anything up: a TTL and a second. The rest is for a busy machine.
const (
	far   = 4
	heard = far*time.Second + time.Second + 2*time.Second
)

// hears fails the test if the channel is not closed while a silent member may hold it up.
func hears(tb testing.TB, done <-chan struct{}, msg string) {
	tb.Helper()
	select {
	case <-done:
	case <-time.After(heard):
		require.FailNow(tb, msg)
	}
}

// A member that falls silent, its connection standing, holds nothing up for longer than a
// TTL and a second. The contract's table has Lock, Campaign and Observe.
func TestSilentMember(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		t.Run("and Ctx", func(t *testing.T) {
			t.Parallel()
			l, name := newLinks(t), prefix(t)
			f := counted(t, l.client)
			h := kind(session(t, l.client, concurrency.WithTTL(far)), name)
			require.NoError(t, h.take(t.Context()))
			ctx := h.Ctx()
			etcdtest.Eventually(t, func() bool { return f.Count(fault.Watch) == 1 }, "the watch")
			l.silence(t)
			_, err := l.outside.Delete(t.Context(), h.Key())
			require.NoError(t, err)
			hears(t, ctx.Done(), "the ownership lives beside a rival's")
			require.ErrorIs(t, context.Cause(ctx), concurrency.ErrSessionExpired)
		})
		t.Run("and Do", func(t *testing.T) {
			t.Parallel()
			l, name := newLinks(t), prefix(t)
			f := counted(t, l.client)
			h := kind(session(t, l.client, concurrency.WithTTL(far)), name)
			err := h.during(t.Context(), func(ctx context.Context) error {
				etcdtest.Eventually(t, func() bool { return f.Count(fault.Watch) == 1 }, "the watch")
				l.silence(t)
				_, err := l.outside.Delete(t.Context(), h.Key())
				require.NoError(t, err)
				hears(t, ctx.Done(), "the work goes on beside a rival's")
				return nil
			})
			require.Equal(t, concurrency.ErrKeyDeleted, err)
		})
	})
}

func TestSilentMemberAndLeaders(t *testing.T) {
	t.Parallel()
	t.Run("RunLeader never runs beside a rival for longer", func(t *testing.T) {
		t.Parallel()
		l, name := newLinks(t), prefix(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		terms := make(chan context.Context)
		f := counted(t, l.client)
		call := etcdtest.Go(func() error {
			return concurrency.RunLeader(ctx, l.client, name, "value", func(ctx context.Context, _ *concurrency.Election) error {
				terms <- ctx
				<-ctx.Done()
				return ctx.Err()
			}, concurrency.WithTTL(far))
		})
		term := <-terms
		etcdtest.Eventually(t, func() bool { return f.Count(fault.Watch) == 1 }, "the watch")
		l.silence(t)
		key := etcdtest.WaitKeys(t, l.outside, name+"/", 1)[0].Key
		_, err := l.outside.Delete(t.Context(), string(key))
		require.NoError(t, err)
		hears(t, term.Done(), "the work goes on")
		cancel()
		require.Equal(t, context.Canceled, call.Wait(t))
	})
	t.Run("Leaders tells that nobody leads", func(t *testing.T) {
		t.Parallel()
		l := newLinks(t)
		b := newBallot(t, server(t))
		b.wins(t, b.election, "leader")
		e := concurrency.NewElection(session(t, l.client, concurrency.WithTTL(far)), b.name)
		first, seen, vacant := make(chan struct{}), make(chan struct{}), make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		call := etcdtest.Go(func() error {
			for leader, err := range e.Leaders(ctx) {
				switch {
				case err != nil:
					return err
				case leader.Value == "leader":
					close(first)
				case leader.Value == "proclaimed": // which the watch has told: it has begun
					close(seen)
				default:
					close(vacant)
				}
			}
			return nil
		})
		ended(t, first, "the leader")
		require.NoError(t, b.election.Proclaim(t.Context(), "proclaimed"))
		ended(t, seen, "its new value")
		l.silence(t)
		require.NoError(t, b.election.Resign(t.Context()))
		hears(t, vacant, "the leader of before is believed in")
		cancel()
		require.Equal(t, context.Canceled, call.Wait(t))
	})
}

// What a handle says of itself once its ownership is over and this process knows it.
func TestALostOwnershipIsToldByTheHandle(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		for how, lose := range map[string]func(t *testing.T, l *line, h holder){
			"its key was deleted, which Ctx has noticed": func(t *testing.T, l *line, h holder) {
				ctx := h.Ctx()
				l.delete(t, h.Key())
				require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
			},
			"another handle has given it back": func(t *testing.T, l *line, h holder) {
				twin := kind(l.session, l.name)
				require.NoError(t, twin.take(t.Context()))
				require.Equal(t, h.Key(), twin.Key())
				require.NoError(t, twin.giveBack(t.Context()))
			},
			"another handle has begun to give it back": func(t *testing.T, l *line, h holder) {
				twin := kind(l.session, l.name)
				require.NoError(t, twin.take(t.Context()))
				require.Equal(t, context.Canceled, twin.giveBack(cancelled()))
			},
			"another handle was given a later ticket": func(t *testing.T, l *line, h holder) {
				l.delete(t, h.Key())
				twin := kind(l.session, l.name)
				require.NoError(t, twin.take(t.Context()))
				require.NotEmpty(t, twin.Key())
				require.NoError(t, twin.giveBack(t.Context()))
			},
		} {
			t.Run(how, func(t *testing.T) {
				t.Parallel()
				l, h := taken(t, kind)
				guard := h.owns()
				lose(t, l, h)
				require.Empty(t, h.Key())
				require.Zero(t, h.Rev())
				require.NotEqual(t, guard, h.owns())
				resp, err := l.outside.Txn(t.Context()).If(h.owns()).Commit()
				require.NoError(t, err)
				require.False(t, resp.Succeeded)
				require.Error(t, h.Ctx().Err())
				runs := 0
				require.NoError(t, h.during(t.Context(), func(ctx context.Context) error {
					runs++
					require.NotEmpty(t, h.Key())
					return ctx.Err()
				}), "it acquires anew")
				require.Equal(t, 1, runs)
				require.NoError(t, h.take(t.Context()))
				require.NoError(t, h.giveBack(t.Context()))
			})
		}
		t.Run("the lease was revoked", func(t *testing.T) {
			t.Parallel()
			l, h := taken(t, kind)
			revoke(t, l.outside, l.session)
			ended(t, l.session.Done(), "the session")
			require.Empty(t, h.Key())
			require.Zero(t, h.Rev())
			require.Equal(t, rpctypes.ErrLeaseNotFound, h.during(t.Context(), none(t)), "and not ErrHeld")
			require.NoError(t, h.giveBack(t.Context()))
		})
	})
}

// A Do whose context has ended leaves its deletion to the clean-up. The call is lost, and the
// next Do deletes the ticket by itself: it and all that follow run.
func TestDoAfterAReleaseThatWasLost(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		l := newLine(t)
		h := kind(l.session, l.name)
		ctx, cancel := context.WithCancel(t.Context())
		var deletions [2]*fault.Gate // of the release and of the clean-up: lost for as long as the test runs
		require.Equal(t, context.Canceled, h.during(ctx, func(context.Context) error {
			for i := range deletions {
				deletions[i] = l.faults.Hold(fault.Txn, i+1)
			}
			cancel()
			return nil
		}))
		ended(t, deletions[1].Reached(), "the deletion")
		l.stand(t, 1)
		for range 3 {
			require.NoError(t, h.during(t.Context(), func(ctx context.Context) error { return ctx.Err() }))
		}
		l.stand(t, 0)
	})
}

// An error that says that the session is over comes after its end; one that does not, because
// the key alone is gone, leaves the session alone.
func TestTheSessionHasEndedWhenAnErrorSaysSo(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		t.Run("from Do", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			h := kind(l.session, l.name)
			require.ErrorIs(t, h.during(t.Context(), func(ctx context.Context) error {
				revoke(t, l.outside, l.session)
				return cause(t, ctx)
			}), concurrency.ErrSessionExpired)
			require.Error(t, l.session.Ctx().Err())
		})
		t.Run("from Do that is told by the release", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			l.faults.Hold(fault.Watch, 1)
			require.Equal(t, concurrency.ErrSessionExpired, kind(l.session, l.name).during(t.Context(), func(context.Context) error {
				revoke(t, l.outside, l.session)
				return nil
			}))
			require.Error(t, l.session.Ctx().Err())
		})
		t.Run("by Ctx, a little later", func(t *testing.T) {
			t.Parallel()
			l, h := taken(t, kind)
			ctx := h.Ctx()
			revoke(t, l.outside, l.session)
			require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
			ended(t, l.session.Done(), "long before the next renewal")
		})
		t.Run("not when the lease can't be asked for in time", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			l.held(t)
			h := kind(l.session, l.name)
			bound, cancel := context.WithCancel(t.Context())
			call := etcdtest.Go(func() error { return h.take(bound) })
			l.stand(t, 2)
			l.watched(t, 1)
			asked := l.faults.Hold(fault.TimeToLive, 1)
			revoke(t, l.outside, l.session)
			ended(t, asked.Reached(), "the question for the lease")
			cancel()
			require.Equal(t, context.Canceled, call.Wait(t))
		})
	})
	t.Run("from Proclaim", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "value")
		b.faults.Refuse(fault.Txn, 1, codes.NotFound, "etcdserver: requested lease not found")
		require.Equal(t, rpctypes.ErrLeaseNotFound, b.election.Proclaim(t.Context(), "new"))
		require.Error(t, b.session.Ctx().Err())
	})
}

// A clean-up leaves a release alone: one that finds its ticket gone would take it for lost.
func TestCleanUpLeavesAReleaseAlone(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.faults.LoseAnswer(fault.Txn, 1, nil) // so that the key is looked for, for a TTL
	require.NoError(t, l.mutex.Do(t.Context(), func(context.Context) error {
		deletion := l.faults.Hold(fault.Txn, 1)
		looks := l.faults.Count(fault.Get)
		go func() {
			<-deletion.Reached()
			etcdtest.Eventually(t, func() bool { return l.faults.Count(fault.Get) > looks+2 }, "three looks")
			deletion.Open()
		}()
		return nil
	}))
	l.stand(t, 0)
}

// Who is refused for long calls no more often at the end than at the beginning. The limit is what
// client/v3 makes of one read that is refused: it tries again every 25 ms, and a tenth less
// (options.go).
func TestWhoIsRefusedForLongCallsNoMoreOften(t *testing.T) {
	const minutes, most = 10, 60 * 1000 * 11 / 250
	sent := map[time.Duration]int{}
	refused := false
	virtual.Run(t, virtual.Options{Trace: func(e virtual.Event) {
		if refused && e.What == virtual.Sent {
			sent[e.At/time.Minute]++
		}
	}}, func(b *virtual.Bubble) {
		_, c, n := remote(b)
		ctx, cancel := context.WithTimeout(context.Background(), minutes*time.Minute)
		defer cancel()
		n.Set("refused-Unavailable", 1)
		refused = true
		for leader, err := range concurrency.LeadersOf(ctx, c, "election") {
			require.Equal(b.T(), context.DeadlineExceeded, err, leader)
		}
	})
	require.GreaterOrEqual(t, len(sent), minutes)
	for minute, n := range sent {
		require.LessOrEqual(t, n, most, "in minute %d", minute)
	}
}
