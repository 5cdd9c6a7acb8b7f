package concurrency_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// rule is one RunLeader beside the test: each term of its work is told by began, and ends
// when its context does, with what result says.
type rule struct {
	name    string
	client  *clientv3.Client
	outside *clientv3.Client
	cancel  context.CancelFunc
	began   chan context.Context
	result  atomic.Pointer[func(context.Context) error] // nil: ctx.Err() when ctx has ended
	running atomic.Int64
	call    *etcdtest.Call
}

func runs(tb testing.TB, c, outside *clientv3.Client, opts ...concurrency.LeaderOption) *rule {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &rule{
		name: prefix(tb), client: c, outside: outside, cancel: cancel, began: make(chan context.Context),
	}
	r.start(ctx, opts...)
	tb.Cleanup(func() {
		cancel()
		_ = r.call.Wait(tb)
	})
	return r
}

// leaderOptions are options of sessions, for RunLeader.
func leaderOptions(opts []concurrency.SessionOption) (all []concurrency.LeaderOption) {
	for _, opt := range opts {
		all = append(all, opt)
	}
	return all
}

func (r *rule) start(ctx context.Context, opts ...concurrency.LeaderOption) {
	r.call = etcdtest.Go(func() error {
		return concurrency.RunLeader(ctx, r.client, r.name, "value", func(inner context.Context, _ *concurrency.Election) error {
			if r.running.Add(1) != 1 {
				return errors.New("two at once")
			}
			defer r.running.Add(-1)
			select {
			case r.began <- inner:
			case <-ctx.Done():
			}
			if result := r.result.Load(); result != nil {
				return (*result)(inner)
			}
			<-inner.Done()
			return inner.Err()
		}, opts...)
	})
}

// term waits until the work runs, and gives its context.
func (r *rule) term(tb testing.TB) context.Context {
	tb.Helper()
	select {
	case ctx := <-r.began:
		return ctx
	case <-r.call.Done():
		require.FailNow(tb, "RunLeader has returned", "%v", r.call.Err())
	case <-time.After(30 * time.Second):
		require.FailNow(tb, "the work is not run")
	}
	return nil
}

// head waits until one key stands, and gives it and its lease.
func (r *rule) head(tb testing.TB) (key string, lease clientv3.LeaseID) {
	tb.Helper()
	kv := etcdtest.WaitKeys(tb, r.outside, r.name+"/", 1)[0]
	return string(kv.Key), clientv3.LeaseID(kv.Lease)
}

// gone checks that nothing is left of RunLeader.
func (r *rule) gone(tb testing.TB, lease clientv3.LeaseID) {
	tb.Helper()
	require.Empty(tb, etcdtest.Keys(tb, r.outside, r.name+"/"))
	require.False(tb, lives(tb, r.outside, lease))
}

func TestRunLeaderReturnsWhatWorkReturns(t *testing.T) {
	t.Parallel()
	for what, want := range map[string]error{"nil": nil, "work's error": errWork} {
		t.Run(what+", and leaves nothing", func(t *testing.T) {
			t.Parallel()
			name, c := prefix(t), client(t)
			var lease clientv3.LeaseID
			err := concurrency.RunLeader(t.Context(), c, name, "value", func(ctx context.Context, _ *concurrency.Election) error {
				kvs := etcdtest.Keys(t, c, name+"/")
				require.Len(t, kvs, 1)
				require.Equal(t, "value", string(kvs[0].Value))
				lease = clientv3.LeaseID(kvs[0].Lease)
				require.NoError(t, ctx.Err())
				return want
			})
			require.Equal(t, want, err)
			(&rule{name: name, outside: c}).gone(t, lease)
		})
	}
}

func TestRunLeaderStartsAgainAfterALoss(t *testing.T) {
	t.Parallel()
	for what, result := range map[string]func(context.Context) error{
		"nil":         func(ctx context.Context) error { <-ctx.Done(); return nil },
		"ctx.Err()":   func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		"the cause":   func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) },
		"the loss":    func(ctx context.Context) error { <-ctx.Done(); return concurrency.ErrSessionExpired },
		"one wrapped": func(ctx context.Context) error { <-ctx.Done(); return fmt.Errorf("stopped: %w", ctx.Err()) },
	} {
		t.Run("of which work returns "+what, func(t *testing.T) {
			t.Parallel()
			r := runs(t, client(t), client(t))
			r.result.Store(&result)
			var last clientv3.LeaseID
			for range 3 {
				ctx := r.term(t)
				key, lease := r.head(t)
				require.NotEqual(t, last, lease)
				if last != 0 {
					require.False(t, lives(t, r.outside, last), "the old session is closed")
				}
				_, err := r.outside.Delete(t.Context(), key)
				require.NoError(t, err)
				require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
				last = lease
			}
		})
	}
}

func TestRunLeaderReturnsAnErrorThatIsNotAboutTheLoss(t *testing.T) {
	t.Parallel()
	r := runs(t, client(t), client(t))
	result := func(ctx context.Context) error { <-ctx.Done(); return errWork }
	r.result.Store(&result)
	r.term(t)
	key, lease := r.head(t)
	_, err := r.outside.Delete(t.Context(), key)
	require.NoError(t, err)
	require.Equal(t, errWork, r.call.Wait(t))
	r.gone(t, lease)
}

// Nothing is lost here.
func TestRunLeaderReturnsTheEndOfAContextOfWorksOwn(t *testing.T) {
	t.Parallel()
	r := runs(t, client(t), client(t))
	result := func(context.Context) error { return context.Canceled }
	r.result.Store(&result)
	r.term(t)
	require.Equal(t, context.Canceled, r.call.Wait(t))
}

func TestRunLeaderStartsAgainAfterARevocation(t *testing.T) {
	t.Parallel()
	r := runs(t, client(t), client(t))
	ctx := r.term(t)
	_, lease := r.head(t)
	_, err := r.outside.Revoke(t.Context(), lease)
	require.NoError(t, err)
	require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
	require.NoError(t, r.term(t).Err())
	_, second := r.head(t)
	require.NotEqual(t, lease, second)
}

// No server could be reached meanwhile.
func TestRunLeaderStartsAgainAfterItsSessionExpired(t *testing.T) {
	t.Parallel()
	p, c := proxied(t, server(t))
	r := runs(t, c, client(t), concurrency.WithTTL(2))
	ctx := r.term(t)
	_, lease := r.head(t)
	p.Stall()
	require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
	p.Resume()
	require.NoError(t, r.term(t).Err())
	_, second := r.head(t)
	require.NotEqual(t, lease, second)
}

func TestRunLeaderStartsAgainAfterItsCandidacyWasLost(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	holder := l.held(t)
	r := &rule{name: l.name, client: l.client, outside: l.outside, began: make(chan context.Context)}
	ctx, cancel := context.WithCancel(t.Context())
	r.start(ctx)
	l.stand(t, 2)
	l.delete(t, string(etcdtest.Keys(t, l.outside, l.name+"/")[1].Key))
	l.stand(t, 2)
	require.Zero(t, r.running.Load())
	require.NoError(t, holder.Unlock(t.Context()))
	r.term(t)
	cancel()
	require.Equal(t, context.Canceled, r.call.Wait(t))
}

func TestRunLeaderStartsAgainAfterTheServerDoes(t *testing.T) {
	t.Parallel()
	own := etcdtest.New(t)
	r := runs(t, own.Client(t), own.Client(t), concurrency.WithTTL(1))
	for range 2 {
		ctx := r.term(t)
		own.Stop(0)
		require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
		require.NoError(t, own.Restart(0))
	}
	require.NoError(t, r.term(t).Err())
	r.cancel()
	require.Equal(t, context.Canceled, r.call.Wait(t))
}

func TestRunLeaderWhoseContextEndsReturnsWhenWorkHasAndTheNextIsIn(t *testing.T) {
	t.Parallel()
	r := runs(t, client(t), client(t))
	stopping, stopped := make(chan struct{}), make(chan struct{})
	result := func(ctx context.Context) error {
		<-ctx.Done()
		close(stopping)
		<-stopped
		return nil
	}
	r.result.Store(&result)
	r.term(t)
	_, lease := r.head(t)
	next := concurrency.NewElection(session(t, r.outside), r.name)
	campaign := etcdtest.Go(func() error { return next.Campaign(t.Context(), "next") })
	etcdtest.WaitKeys(t, r.outside, r.name+"/", 2)
	r.cancel()
	ended(t, stopping, "the work is told")
	require.True(t, r.call.Running())
	require.True(t, campaign.Running())
	etcdtest.WaitKeys(t, r.outside, r.name+"/", 2)
	close(stopped)
	require.Equal(t, context.Canceled, r.call.Wait(t))
	require.NoError(t, campaign.Wait(t))
	require.False(t, lives(t, r.outside, lease))
}

func TestRunLeaderUntilItsDeadline(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	err := concurrency.RunLeader(ctx, client(t), prefix(t), "value", func(ctx context.Context, _ *concurrency.Election) error {
		<-ctx.Done()
		return ctx.Err()
	})
	require.Equal(t, context.DeadlineExceeded, err)
}

func TestRunLeaderWhoseContextEndsReturnsWorksOwnErrorFirst(t *testing.T) {
	t.Parallel()
	r := runs(t, client(t), client(t))
	result := func(ctx context.Context) error { <-ctx.Done(); return errWork }
	r.result.Store(&result)
	r.term(t)
	r.cancel()
	require.Equal(t, errWork, r.call.Wait(t))
}

func TestRunLeaderThatCampaignsEndsWithItsContext(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.held(t)
	ctx, cancel := context.WithCancel(t.Context())
	call := etcdtest.Go(func() error {
		return concurrency.RunLeader(ctx, l.client, l.name, "value", unled(t))
	})
	l.stand(t, 2)
	lease := etcdtest.Keys(t, l.outside, l.name+"/")[1].Lease
	cancel()
	require.Equal(t, context.Canceled, call.Wait(t))
	l.stand(t, 1)
	require.False(t, lives(t, l.outside, clientv3.LeaseID(lease)))
}

func TestRunLeaderWithAnEndedContextLeavesNoLease(t *testing.T) {
	t.Parallel()
	own := etcdtest.New(t)
	c := own.Client(t)
	for range 50 {
		require.Equal(t, context.Canceled, concurrency.RunLeader(cancelled(), c, prefix(t), "value", unled(t)))
	}
	etcdtest.WaitLeases(t, c, 0)
}

func TestRunLeaderWhoseContextEndsWhileItOpensTheSessionLeavesNoLease(t *testing.T) {
	t.Parallel()
	own := etcdtest.New(t)
	c := own.Client(t)
	f := counted(t, c)
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		f.After(fault.Grant, 1, func(error) { cancel() })
		require.Equal(t, context.Canceled, concurrency.RunLeader(ctx, c, prefix(t), "value", unled(t)))
	}
	etcdtest.WaitLeases(t, c, 0)
}

// callersContext are options of RunLeader with and without a context of the caller's.
var callersContext = map[string][]concurrency.LeaderOption{
	"by itself":                    nil,
	"with a context of the caller": {concurrency.WithContext(context.Background())},
}

func TestRunLeaderThatOpensEndsWithinASecondThoughNoServerAnswers(t *testing.T) {
	t.Parallel()
	for how, opts := range callersContext {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			_, c := stalled(t)
			f := counted(t, c)
			ctx, cancel := context.WithCancel(t.Context())
			call := etcdtest.Go(func() error {
				return concurrency.RunLeader(ctx, c, prefix(t), "value", unled(t), opts...)
			})
			etcdtest.Eventually(t, func() bool { return f.Count(fault.Grant) > 0 }, "it asks for a lease")
			cancel()
			require.Equal(t, context.Canceled, soon(t, call))
		})
	}
}

func TestRunLeaderThatLeadsEndsWithinASecondThoughNoServerAnswers(t *testing.T) {
	t.Parallel()
	for how, opts := range callersContext {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			p, c := proxied(t, server(t))
			r := runs(t, c, client(t), append(opts, concurrency.WithTTL(20))...)
			r.term(t)
			_, lease := r.head(t)
			revokedAtEnd(t, r.outside, lease)
			p.Stall()
			r.cancel()
			require.Equal(t, context.Canceled, soon(t, r.call))
		})
	}
}

func TestRunLeaderEndsWithItsClient(t *testing.T) {
	t.Parallel()
	r := runs(t, client(t), client(t))
	inner := r.term(t)
	_, lease := r.head(t)
	revokedAtEnd(t, r.outside, lease)
	r.client.Close()
	require.Equal(t, concurrency.ErrClientClosed, cause(t, inner))
	require.Equal(t, context.Canceled, r.call.Wait(t))
	require.Equal(t, context.Canceled, concurrency.RunLeader(t.Context(), r.client, r.name, "value", unled(t)))
}

func TestRunLeaderThatCampaignsEndsWithItsClient(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.held(t)
	call := etcdtest.Go(func() error {
		return concurrency.RunLeader(t.Context(), l.client, l.name, "value", unled(t))
	})
	l.stand(t, 2)
	revokedAtEnd(t, l.outside, clientv3.LeaseID(etcdtest.Keys(t, l.outside, l.name+"/")[1].Lease))
	revokedAtEnd(t, l.outside, l.session.Lease())
	l.client.Close()
	require.Equal(t, context.Canceled, call.Wait(t))
}

func TestRunLeaderReturnsErrorsOfTheCampaign(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	own := authServer(t)
	c := guest(t, own, "mine/")
	require.Equal(t, rpctypes.ErrPermissionDenied, concurrency.RunLeader(ctx, c, "theirs", "value", unled(t)))
	etcdtest.WaitLeases(t, rootOf(t, own), 0)
	require.Equal(t, errWork, concurrency.RunLeader(ctx, c, "mine", "value", func(context.Context, *concurrency.Election) error { return errWork }))
}

func TestRunLeaderReturnsErrorsOfTheSession(t *testing.T) {
	t.Parallel()
	err := concurrency.RunLeader(t.Context(), client(t), prefix(t), "value", unled(t), concurrency.WithLease(404))
	require.Equal(t, rpctypes.ErrLeaseNotFound, err)
}

func TestRunLeaderReturnsErrorsOfOptions(t *testing.T) {
	t.Parallel()
	err := concurrency.RunLeader(t.Context(), client(t), prefix(t), "value", unled(t), concurrency.WithSafetyMargin(-1))
	require.ErrorContains(t, err, "concurrency: ")
}

func TestRunLeaderWithAnEndedSessionContext(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	expired, cancel := context.WithDeadline(ctx, time.Now().Add(-time.Second))
	defer cancel()
	for want, bound := range map[error]context.Context{
		context.Canceled: cancelled(), context.DeadlineExceeded: expired,
	} {
		stop, cancel := context.WithCancel(ctx)
		defer cancel()
		call := etcdtest.Go(func() error {
			return concurrency.RunLeader(stop, client(t), prefix(t), "value", unled(t), concurrency.WithContext(bound))
		})
		select {
		case <-call.Done():
			require.Equal(t, want, call.Err())
		case <-time.After(5 * time.Second):
			assert.Fail(t, "it goes on for ever", "%v", want)
			cancel()
			_ = call.Wait(t)
		}
	}
}

func TestRunLeaderThatCampaignsEndsWithTheSessionContext(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLine(t)
	l.held(t)
	bound, end := context.WithCancel(ctx)
	call := etcdtest.Go(func() error {
		return concurrency.RunLeader(ctx, l.client, l.name, "value", unled(t),
			concurrency.WithContext(bound), concurrency.WithTTL(600)) // its lease lives on
	})
	l.stand(t, 2)
	revokedAtEnd(t, l.outside, clientv3.LeaseID(etcdtest.Keys(t, l.outside, l.name+"/")[1].Lease))
	end()
	require.Equal(t, context.Canceled, call.Wait(t))
}

func TestRunLeaderRidesOutTransientFaults(t *testing.T) {
	t.Parallel()
	c := client(t)
	f := counted(t, c)
	f.Refuse(fault.Grant, 3, codes.Unavailable, "etcdserver: leader changed")
	f.Refuse(fault.Txn, 3, codes.Unavailable, "etcdserver: request timed out")
	require.Equal(t, errWork, concurrency.RunLeader(t.Context(), c, prefix(t), "value", func(context.Context, *concurrency.Election) error { return errWork }))
	require.Equal(t, 4, f.Count(fault.Grant))
}

func TestRunLeaderOptionsAreTheSessions(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	name, c := prefix(t), client(t)
	work := func(want int64) func(context.Context, *concurrency.Election) error {
		return func(context.Context, *concurrency.Election) error {
			resp, err := c.TimeToLive(ctx, clientv3.LeaseID(etcdtest.Keys(t, c, name+"/")[0].Lease))
			require.NoError(t, err)
			require.Equal(t, want, resp.GrantedTTL)
			return nil
		}
	}
	require.NoError(t, concurrency.RunLeader(ctx, c, name, "value", work(60)))
	require.NoError(t, concurrency.RunLeader(ctx, c, name, "value", work(7), concurrency.WithTTL(7)))
	id := granted(t, c, 9)
	require.NoError(t, concurrency.RunLeader(ctx, c, name, "value", work(9), concurrency.WithLease(id)))
	require.False(t, lives(t, c, id), "closed with the session")
}

// The panic passes through after the resignation.
func TestRunLeaderAndAPanicOfWork(t *testing.T) {
	t.Parallel()
	name, c := prefix(t), client(t)
	var lease int64
	require.PanicsWithValue(t, errWork, func() {
		concurrency.RunLeader(t.Context(), c, name, "value", func(context.Context, *concurrency.Election) error {
			lease = etcdtest.Keys(t, c, name+"/")[0].Lease
			panic(errWork)
		})
	})
	(&rule{name: name, outside: c}).gone(t, clientv3.LeaseID(lease))
}

func TestRunLeaderPanics(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	requireOurPanic(t, func() { concurrency.RunLeader(ctx, nil, "name", "value", unled(t)) })
	requireOurPanic(t, func() { concurrency.RunLeader(ctx, client(t), "name", "value", nil) })
}

// Of two candidates that lose their servers, in turns and together, at any time at most
// one has a context that lives, and one leads again after every fault.
func TestRunLeaderNeverTwo(t *testing.T) {
	t.Parallel()
	name, outside := prefix(t), client(t)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	var mu sync.Mutex // guards leading
	var leading context.Context
	terms := make(chan int)
	var candidates []*etcdtest.Call
	var proxies []*fault.Proxy
	for i := range 2 {
		p, c := proxied(t, server(t))
		proxies = append(proxies, p)
		candidates = append(candidates, etcdtest.Go(func() error {
			return concurrency.RunLeader(ctx, c, name, "value", func(inner context.Context, _ *concurrency.Election) error {
				mu.Lock()
				if leading != nil {
					assert.Error(t, leading.Err(), "two contexts live")
				}
				leading = inner
				mu.Unlock()
				select {
				case terms <- i:
				case <-inner.Done():
				}
				<-inner.Done()
				return nil
			}, concurrency.WithTTL(1))
		}))
	}
	for round := range 4 {
		leader := <-terms
		etcdtest.WaitKeys(t, outside, name+"/", 2)
		mu.Lock()
		inner := leading
		mu.Unlock()
		switch round % 2 {
		case 0:
			proxies[leader].Stall()
		case 1:
			proxies[leader].Refuse()
			proxies[leader].Cut()
		}
		require.ErrorIs(t, cause(t, inner), concurrency.ErrSessionExpired)
		proxies[leader].Accept()
		proxies[leader].Resume()
	}
	<-terms
	cancel()
	for _, c := range candidates {
		require.Equal(t, context.Canceled, c.Wait(t))
	}
	etcdtest.WaitKeys(t, outside, name+"/", 0)
}

func TestRunLeaderAndAPartition(t *testing.T) {
	t.Parallel()
	eachIsland(t, func(t *testing.T, i *island) {
		r := runs(t, i.MemberClient(t, i.member), i.mainland, leaderOptions(i.options())...)
		ctx := r.term(t)
		rival := concurrency.NewElection(session(t, i.mainland), r.name)
		call := etcdtest.Go(func() error { return rival.Campaign(t.Context(), "rival") })
		etcdtest.WaitKeys(t, i.mainland, r.name+"/", 2)
		i.part(t)
		require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
		require.True(t, call.Running(), "a rival is in")
		require.NoError(t, call.Wait(t))
		i.rejoin(t)
		etcdtest.WaitKeys(t, i.mainland, r.name+"/", 2)
		require.Zero(t, r.running.Load(), "it waits for the rival")
		require.NoError(t, rival.Resign(t.Context()))
		require.NoError(t, r.term(t).Err(), "it leads again")
		r.cancel()
		require.Equal(t, context.Canceled, r.call.Wait(t))
		etcdtest.WaitKeys(t, i.mainland, r.name+"/", 0)
	})
}

// The work of RunLeader has the election that it leads: its token, its guard, its value and its
// session.
func TestRunLeaderGivesTheElection(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	ctx := t.Context()
	before := l.faults.Count(fault.Txn)
	require.NoError(t, concurrency.RunLeader(ctx, l.client, l.name, "value", func(inner context.Context, e *concurrency.Election) error {
		kvs := etcdtest.Keys(t, l.outside, l.name+"/")
		require.Len(t, kvs, 1)
		require.Equal(t, string(kvs[0].Key), e.Key())
		require.Equal(t, kvs[0].CreateRevision, e.Rev())
		require.EqualValues(t, kvs[0].Lease, e.Session().Lease())
		require.Equal(t, 7*time.Second, e.Session().TTL())
		require.NoError(t, e.Proclaim(inner, "another"))
		resp, err := l.outside.Txn(ctx).If(e.IsLeader()).Commit()
		require.NoError(t, err)
		require.True(t, resp.Succeeded)
		leader, err := concurrency.LeaderOf(ctx, l.outside, l.name)
		require.NoError(t, err)
		require.Equal(t, concurrency.Leader{Key: e.Key(), Rev: e.Rev(), Value: "another", Revision: leader.Revision}, leader)
		return nil
	}, concurrency.WithTTL(7)))
	require.Equal(t, before+3, l.faults.Count(fault.Txn), "the campaign, the proclamation and the resignation")
}

// Work that resigns has lost the leadership by its own will, and leads again.
func TestRunLeaderWhoseWorkResigns(t *testing.T) {
	t.Parallel()
	name, c := prefix(t), client(t)
	var tokens []int64
	require.NoError(t, concurrency.RunLeader(t.Context(), c, name, "value", func(ctx context.Context, e *concurrency.Election) error {
		if tokens = append(tokens, e.Rev()); len(tokens) == 2 {
			return nil
		}
		require.NoError(t, e.Resign(t.Context()))
		require.Equal(t, concurrency.ErrElectionNotLeader, cause(t, ctx))
		return nil
	}))
	require.Len(t, tokens, 2)
	require.Greater(t, tokens[1], tokens[0])
}

func TestRunLeaderReturnsAfterItHasTold(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	telling, told := make(chan struct{}), make(chan struct{})
	tell := concurrency.WithLeaders(func(leader concurrency.Leader) {
		if leader.Value == "mine" {
			close(telling)
			<-told
		}
	})
	call := etcdtest.Go(func() error {
		return concurrency.RunLeader(t.Context(), l.outside, l.name, "mine",
			func(context.Context, *concurrency.Election) error { <-telling; return nil }, tell)
	})
	ended(t, telling, "it is told")
	l.stand(t, 0) // it has resigned
	require.Never(t, func() bool { return !call.Running() }, 100*time.Millisecond, 10*time.Millisecond)
	close(told)
	require.NoError(t, call.Wait(t))
}

func TestRunLeaderTellsWhoLeads(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	rival := concurrency.NewElection(l.session, l.name)
	require.NoError(t, rival.Campaign(t.Context(), "rival"))
	told := make(chan string, 10)
	var over atomic.Bool
	tell := concurrency.WithLeaders(func(leader concurrency.Leader) {
		assert.False(t, over.Load(), "after RunLeader has returned")
		told <- leader.Value
	})
	hears := func(value string) {
		t.Helper()
		for {
			select {
			case got := <-told:
				if got == value {
					return
				}
				require.Empty(t, got, "between two leaders nobody may lead")
			case <-time.After(30 * time.Second):
				require.FailNow(t, "nothing is told")
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	proclaimed := make(chan struct{})
	call := etcdtest.Go(func() error {
		defer over.Store(true)
		return concurrency.RunLeader(ctx, l.outside, l.name, "mine", func(inner context.Context, e *concurrency.Election) error {
			assert.NoError(t, e.Proclaim(inner, "mine, ready"))
			close(proclaimed)
			<-inner.Done()
			return inner.Err()
		}, tell, concurrency.WithTTL(10))
	})
	hears("rival")
	l.stand(t, 2)
	require.NoError(t, rival.Resign(t.Context()))
	for got := ""; got != "mine, ready"; {
		select {
		case got = <-told:
			require.Contains(t, []string{"", "mine", "mine, ready"}, got)
		case <-time.After(30 * time.Second):
			require.FailNow(t, "nothing is told")
		}
	}
	ended(t, proclaimed, "it has proclaimed") // the value may be told before the answer has come
	cancel()
	require.Equal(t, context.Canceled, call.Wait(t))
	l.stand(t, 0)
}
