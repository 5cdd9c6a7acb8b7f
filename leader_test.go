package concurrency_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"strconv"
	"strings"
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

var errWork = errors.New("the work has failed")

// soon gives the error of a call that returns within a second, or fails the test: a busy
// machine is given a few more.
func soon(tb testing.TB, call *etcdtest.Call) error {
	tb.Helper()
	select {
	case <-call.Done():
	case <-time.After(4 * time.Second):
		require.FailNow(tb, "it should have returned")
	}
	return call.Err()
}

// none is work that must not be run.
func none(tb testing.TB) func(context.Context) error {
	return func(context.Context) error {
		tb.Error("work was run")
		return nil
	}
}

// unled is none for RunLeader.
func unled(tb testing.TB) func(context.Context, *concurrency.Election) error {
	return func(ctx context.Context, _ *concurrency.Election) error { return none(tb)(ctx) }
}

func TestDo(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		t.Run("runs the work while it is held", func(t *testing.T) {
			t.Parallel()
			type key struct{}
			l := newLine(t)
			h := kind(l.session, l.name)
			outer := context.WithValue(t.Context(), key{}, "of the caller")
			runs := 0
			require.NoError(t, h.during(outer, func(ctx context.Context) error {
				runs++
				require.NoError(t, ctx.Err())
				require.Equal(t, "of the caller", ctx.Value(key{}))
				require.NoError(t, h.Ctx().Err())
				kvs := etcdtest.Keys(t, l.outside, l.name+"/")
				require.Len(t, kvs, 1)
				require.Equal(t, kvs[0].CreateRevision, h.Rev())
				return nil
			}))
			require.Equal(t, 1, runs)
			require.Empty(t, etcdtest.Keys(t, l.outside, l.name+"/"))
			require.Empty(t, h.Key())
			require.Error(t, h.Ctx().Err())
		})
		t.Run("after its turn has come, again and again", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			var running, runs atomic.Int64
			var wg sync.WaitGroup
			for range 4 {
				h := kind(session(t, l.outside), l.name)
				wg.Go(func() {
					for range 5 {
						assert.NoError(t, h.during(t.Context(), func(context.Context) error {
							assert.Equal(t, int64(1), running.Add(1))
							runs.Add(1)
							running.Add(-1)
							return nil
						}))
					}
				})
			}
			wg.Wait()
			require.Equal(t, int64(20), runs.Load())
			l.stand(t, 0)
		})
		t.Run("the work's context ends before the deletion is sent", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			h := kind(l.session, l.name)
			var inner context.Context
			var sent *fault.Gate
			call := etcdtest.Go(func() error {
				return h.during(t.Context(), func(ctx context.Context) error {
					inner, sent = ctx, l.faults.Hold(fault.Txn, 1)
					return nil
				})
			})
			etcdtest.Eventually(t, func() bool { return l.faults.Count(fault.Txn) == 2 }, "the deletion")
			ended(t, sent.Reached(), "the deletion is about to be sent")
			l.stand(t, 1)
			// Done comes first, because Err looks at the ownership and closes it.
			told := false
			select {
			case <-inner.Done():
				told = true
			default:
			}
			err := inner.Err()
			sent.Open()
			require.NoError(t, call.Wait(t))
			require.True(t, told, "a goroutine that the work has left behind waits for the end")
			require.Error(t, err, "a goroutine that the work has left behind believes that it is held")
		})
		t.Run("never released under the work, whatever ends its context", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			h := kind(l.session, l.name)
			bound, cancel := context.WithCancel(t.Context())
			working, stopping, stopped := make(chan struct{}), make(chan struct{}), make(chan struct{})
			call := etcdtest.Go(func() error {
				return h.during(bound, func(ctx context.Context) error {
					close(working)
					<-ctx.Done()
					close(stopping)
					<-stopped
					return nil
				})
			})
			ended(t, working, "the work runs") // its key stands a moment earlier
			l.stand(t, 1)
			rival := kind(session(t, l.outside), l.name)
			next := etcdtest.Go(func() error { return rival.take(t.Context()) })
			l.stand(t, 2)
			cancel()
			ended(t, stopping, "the work is told")
			require.True(t, next.Running())
			l.stand(t, 2)
			close(stopped)
			require.NoError(t, call.Wait(t))
			require.NoError(t, next.Wait(t))
			l.stand(t, 1)
		})
	})
}

func TestDoErrors(t *testing.T) {
	type outcome struct {
		how    string
		work   func(t *testing.T, l *line, h holder) func(context.Context) error
		single error   // nil: several, or none
		all    []error // of which each is reached by errors.Is
	}
	lose := func(t *testing.T, l *line, h holder, ctx context.Context) {
		l.delete(t, h.Key())
		require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
	}
	refuse := func(l *line) {
		l.faults.Refuse(fault.Txn, 1, codes.PermissionDenied, "etcdserver: permission denied")
	}
	outcomes := []outcome{
		{"the work's own, as it is", func(t *testing.T, l *line, h holder) func(context.Context) error {
			return func(context.Context) error { return errWork }
		}, errWork, nil},
		{"the loss, as it is", func(t *testing.T, l *line, h holder) func(context.Context) error {
			return func(ctx context.Context) error { lose(t, l, h, ctx); return nil }
		}, concurrency.ErrKeyDeleted, nil},
		{"the loss that the work tells, once", func(t *testing.T, l *line, h holder) func(context.Context) error {
			return func(ctx context.Context) error { lose(t, l, h, ctx); return context.Cause(ctx) }
		}, concurrency.ErrKeyDeleted, nil},
		{"the loss that the work tells in fewer words, once", func(t *testing.T, l *line, h holder) func(context.Context) error {
			return func(ctx context.Context) error { lose(t, l, h, ctx); return concurrency.ErrSessionExpired }
		}, concurrency.ErrKeyDeleted, nil},
		{"the release's, as it is", func(t *testing.T, l *line, h holder) func(context.Context) error {
			return func(context.Context) error { refuse(l); return nil }
		}, rpctypes.ErrPermissionDenied, nil},
		{"the work's and the loss", func(t *testing.T, l *line, h holder) func(context.Context) error {
			return func(ctx context.Context) error { lose(t, l, h, ctx); return errWork }
		}, nil, []error{errWork, concurrency.ErrSessionExpired}},
		{"the context's and the loss", func(t *testing.T, l *line, h holder) func(context.Context) error {
			return func(ctx context.Context) error { lose(t, l, h, ctx); return ctx.Err() }
		}, nil, []error{context.Canceled, concurrency.ErrSessionExpired}},
		{"the work's and the release's", func(t *testing.T, l *line, h holder) func(context.Context) error {
			return func(ctx context.Context) error { refuse(l); return errWork }
		}, nil, []error{errWork, rpctypes.ErrPermissionDenied}},
		{"all three", func(t *testing.T, l *line, h holder) func(context.Context) error {
			return func(ctx context.Context) error { lose(t, l, h, ctx); refuse(l); return errWork }
		}, nil, []error{errWork, concurrency.ErrSessionExpired, rpctypes.ErrPermissionDenied}},
	}
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		for _, o := range outcomes {
			t.Run(o.how, func(t *testing.T) {
				t.Parallel()
				l := newLine(t)
				h := kind(l.session, l.name)
				err := h.during(t.Context(), o.work(t, l, h))
				if o.single != nil {
					require.Equal(t, o.single, err)
				}
				for _, one := range o.all {
					require.ErrorIs(t, err, one)
				}
			})
		}
		t.Run("a release that failed can be repeated", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			h := kind(l.session, l.name)
			require.Equal(t, rpctypes.ErrPermissionDenied, h.during(t.Context(), func(context.Context) error {
				refuse(l)
				l.faults.Hold(fault.Txn, 2) // that of the clean-up
				return nil
			}))
			l.stand(t, 1)
			require.NoError(t, h.giveBack(t.Context()))
			l.stand(t, 0)
			require.NoError(t, h.during(t.Context(), func(context.Context) error { return nil }))
		})
		t.Run("that of the acquisition, with which the work was not run", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			h := kind(l.session, l.name)
			require.Equal(t, context.Canceled, h.during(cancelled(), none(t)))
			l.faults.Refuse(fault.Txn, 1, codes.PermissionDenied, "etcdserver: permission denied")
			require.Equal(t, rpctypes.ErrPermissionDenied, h.during(t.Context(), none(t)))
			l.stand(t, 0)
			revoke(t, l.outside, l.session)
			require.Equal(t, rpctypes.ErrLeaseNotFound, h.during(t.Context(), none(t)))
		})
		t.Run("that of the context which ends a wait", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			l.held(t)
			bound, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			require.Equal(t, context.DeadlineExceeded, kind(l.session, l.name).during(bound, none(t)))
			l.stand(t, 1)
		})
	})
}

func TestDoLoss(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		t.Run("that only the release shows", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			h := kind(l.session, l.name)
			l.faults.Hold(fault.Watch, 1)
			require.Equal(t, concurrency.ErrSessionExpired, h.during(t.Context(), func(ctx context.Context) error {
				l.delete(t, h.Key())
				return nil
			}))
		})
		t.Run("leaves the rival's key alone", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			h, rival := kind(l.session, l.name), kind(session(t, l.outside), l.name)
			err := h.during(t.Context(), func(ctx context.Context) error {
				l.delete(t, h.Key())
				require.NoError(t, rival.take(t.Context()))
				<-ctx.Done()
				return nil
			})
			require.Equal(t, concurrency.ErrKeyDeleted, err)
			l.stand(t, 1)
			require.NoError(t, rival.Ctx().Err())
		})
		t.Run("by the deadline of an unreachable server", func(t *testing.T) {
			t.Parallel()
			p, l := farLine(t, server(t), concurrency.WithTTL(2))
			h := kind(l.session, l.name)
			err := h.during(t.Context(), func(ctx context.Context) error {
				p.Stall()
				require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
				return nil
			})
			require.Equal(t, concurrency.ErrDeadline, err)
			require.Empty(t, h.Key())
			require.Equal(t, rpctypes.ErrLeaseNotFound, h.during(t.Context(), none(t)))
		})
		t.Run("by the closing of the session in the work", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			err := kind(l.session, l.name).during(t.Context(), func(ctx context.Context) error {
				require.NoError(t, l.session.Close())
				require.Equal(t, context.Canceled, cause(t, ctx))
				return nil
			})
			require.Equal(t, context.Canceled, err)
			l.stand(t, 0)
		})
		t.Run("by a release in the work", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			h := kind(l.session, l.name)
			err := h.during(t.Context(), func(ctx context.Context) error {
				require.NoError(t, h.giveBack(context.Background()))
				require.Equal(t, h.released, cause(t, ctx))
				return nil
			})
			require.Equal(t, h.released, err)
			l.stand(t, 0)
		})
	})
}

func TestDoBadInput(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		t.Run("held already", func(t *testing.T) {
			t.Parallel()
			_, h := taken(t, kind)
			require.Equal(t, concurrency.ErrHeld, h.during(t.Context(), none(t)))
			require.NoError(t, h.Ctx().Err(), "it is held as before")
			require.NoError(t, h.giveBack(t.Context()))
			require.NoError(t, h.during(t.Context(), func(context.Context) error { return nil }))
		})
		t.Run("another is under way", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			h, holder := kind(l.session, l.name), l.held(t)
			call := etcdtest.Go(func() error {
				return h.during(t.Context(), func(ctx context.Context) error {
					return h.during(ctx, none(t))
				})
			})
			l.stand(t, 2)
			require.Equal(t, concurrency.ErrHeld, h.during(t.Context(), none(t)), "while it waits")
			require.NoError(t, holder.Unlock(t.Context()))
			require.Equal(t, concurrency.ErrHeld, call.Wait(t), "while it runs")
			require.NoError(t, h.during(t.Context(), func(context.Context) error { return nil }))
		})
		t.Run("panics if work is nil", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			h := kind(l.session, l.name)
			requireOurPanic(t, func() { h.during(t.Context(), nil) })
			l.stand(t, 0)
			require.NoError(t, h.during(t.Context(), func(context.Context) error { return nil }))
		})
		t.Run("a panic of the work's passes through after the release", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			h := kind(l.session, l.name)
			func() {
				defer func() {
					require.Same(t, errWork, recover())
					require.Empty(t, etcdtest.Keys(t, l.outside, l.name+"/"))
				}()
				h.during(t.Context(), func(context.Context) error { panic(errWork) })
			}()
			require.NoError(t, h.during(t.Context(), func(context.Context) error { return nil }))
		})
		t.Run("and so does runtime.Goexit", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			h := kind(l.session, l.name)
			call := etcdtest.Go(func() error {
				defer func() { assert.Empty(t, etcdtest.Keys(t, l.outside, l.name+"/")) }()
				return h.during(t.Context(), func(context.Context) error {
					runtime.Goexit()
					return nil
				})
			})
			require.Error(t, call.Wait(t), "it did not return")
			require.NoError(t, h.during(t.Context(), func(context.Context) error { return nil }))
		})
	})
}

func TestDoWithAnUnreachableServer(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		for _, when := range []string{"while the work runs", "after it has returned"} {
			t.Run("returns within a second of the context's end, "+when, func(t *testing.T) {
				t.Parallel()
				p, l := farLine(t, server(t))
				h := kind(l.session, l.name)
				bound, cancel := context.WithCancel(t.Context())
				returned := make(chan struct{})
				call := etcdtest.Go(func() error {
					return h.during(bound, func(ctx context.Context) error {
						p.Stall()
						if when == "while the work runs" {
							cancel()
						}
						close(returned)
						return nil
					})
				})
				ended(t, returned, "the work")
				cancel()
				require.Equal(t, context.Canceled, soon(t, call))
				l.stand(t, 1)
				p.Resume()
				l.stand(t, 0)
				require.NoError(t, l.session.Ctx().Err(), "the key is gone, not the lease")
				etcdtest.Eventually(t, func() bool { return h.Key() == "" }, "the release is answered")
				require.NoError(t, h.during(t.Context(), func(context.Context) error { return nil }))
			})
		}
		t.Run("repeats the release over faults that pass otherwise", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			h := kind(l.session, l.name)
			require.NoError(t, h.during(t.Context(), func(ctx context.Context) error {
				l.faults.Refuse(fault.Txn, 2, codes.Unavailable, "etcdserver: leader changed")
				l.faults.LoseAnswer(fault.Txn, 3, nil)
				l.faults.Reset()
				return nil
			}))
			require.Equal(t, 4, l.faults.Count(fault.Txn))
			l.stand(t, 0)
		})
	})
}

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

func TestRunLeader(t *testing.T) {
	t.Parallel()
	for what, want := range map[string]error{"nil": nil, "work's error": errWork} {
		t.Run("returns "+what+" and leaves nothing", func(t *testing.T) {
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
	for what, result := range map[string]func(context.Context) error{
		"nil":         func(ctx context.Context) error { <-ctx.Done(); return nil },
		"ctx.Err()":   func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		"the cause":   func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) },
		"the loss":    func(ctx context.Context) error { <-ctx.Done(); return concurrency.ErrSessionExpired },
		"one wrapped": func(ctx context.Context) error { <-ctx.Done(); return fmt.Errorf("stopped: %w", ctx.Err()) },
	} {
		t.Run("starts again with a new session after a loss, of which work returns "+what, func(t *testing.T) {
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
	t.Run("but returns an error that is not about the loss", func(t *testing.T) {
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
	})
	t.Run("and one of a context of work's own, while nothing is lost", func(t *testing.T) {
		t.Parallel()
		r := runs(t, client(t), client(t))
		result := func(context.Context) error { return context.Canceled }
		r.result.Store(&result)
		r.term(t)
		require.Equal(t, context.Canceled, r.call.Wait(t))
	})
	t.Run("after the session was revoked", func(t *testing.T) {
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
	})
	t.Run("after the session expired while no server could be reached", func(t *testing.T) {
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
	})
	t.Run("after the candidacy was lost", func(t *testing.T) {
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
	})
	t.Run("after the server was stopped and started", func(t *testing.T) {
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
	})
}

func TestRunLeaderUntilItsContextEnds(t *testing.T) {
	t.Parallel()
	t.Run("work has returned, and the next is in", func(t *testing.T) {
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
	})
	t.Run("its deadline", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		err := concurrency.RunLeader(ctx, client(t), prefix(t), "value", func(ctx context.Context, _ *concurrency.Election) error {
			<-ctx.Done()
			return ctx.Err()
		})
		require.Equal(t, context.DeadlineExceeded, err)
	})
	t.Run("work's own error comes first", func(t *testing.T) {
		t.Parallel()
		r := runs(t, client(t), client(t))
		result := func(ctx context.Context) error { <-ctx.Done(); return errWork }
		r.result.Store(&result)
		r.term(t)
		r.cancel()
		require.Equal(t, errWork, r.call.Wait(t))
	})
	t.Run("while it campaigns", func(t *testing.T) {
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
	})
	t.Run("before it began: no lease is left", func(t *testing.T) {
		t.Parallel()
		own := etcdtest.New(t)
		c := own.Client(t)
		for range 50 {
			require.Equal(t, context.Canceled, concurrency.RunLeader(cancelled(), c, prefix(t), "value", unled(t)))
		}
		etcdtest.WaitLeases(t, c, 0)
	})
	t.Run("while it opens the session: no lease is left", func(t *testing.T) {
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
	})
	for how, opts := range map[string][]concurrency.LeaderOption{
		"":                               nil,
		", with a context of the caller": {concurrency.WithContext(context.Background())},
	} {
		t.Run("within a second if no server can be reached, when it opens"+how, func(t *testing.T) {
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
		t.Run("within a second if no server can be reached, when it leads"+how, func(t *testing.T) {
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

func TestRunLeaderReturns(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	t.Run("context.Canceled when the client is closed", func(t *testing.T) {
		t.Parallel()
		r := runs(t, client(t), client(t))
		inner := r.term(t)
		_, lease := r.head(t)
		revokedAtEnd(t, r.outside, lease)
		r.client.Close()
		require.Equal(t, concurrency.ErrClientClosed, cause(t, inner))
		require.Equal(t, context.Canceled, r.call.Wait(t))
		require.Equal(t, context.Canceled, concurrency.RunLeader(ctx, r.client, r.name, "value", unled(t)))
	})
	t.Run("context.Canceled when the client is closed while it campaigns", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.held(t)
		call := etcdtest.Go(func() error {
			return concurrency.RunLeader(ctx, l.client, l.name, "value", unled(t))
		})
		l.stand(t, 2)
		revokedAtEnd(t, l.outside, clientv3.LeaseID(etcdtest.Keys(t, l.outside, l.name+"/")[1].Lease))
		revokedAtEnd(t, l.outside, l.session.Lease())
		l.client.Close()
		require.Equal(t, context.Canceled, call.Wait(t))
	})
	t.Run("a permanent error of the campaign", func(t *testing.T) {
		t.Parallel()
		own := authServer(t)
		c := guest(t, own, "mine/")
		require.Equal(t, rpctypes.ErrPermissionDenied, concurrency.RunLeader(ctx, c, "theirs", "value", unled(t)))
		etcdtest.WaitLeases(t, rootOf(t, own), 0)
		require.Equal(t, errWork, concurrency.RunLeader(ctx, c, "mine", "value", func(context.Context, *concurrency.Election) error { return errWork }))
	})
	t.Run("a permanent error of the session", func(t *testing.T) {
		t.Parallel()
		err := concurrency.RunLeader(ctx, client(t), prefix(t), "value", unled(t), concurrency.WithLease(404))
		require.Equal(t, rpctypes.ErrLeaseNotFound, err)
	})
	t.Run("that of a bad option", func(t *testing.T) {
		t.Parallel()
		err := concurrency.RunLeader(ctx, client(t), prefix(t), "value", unled(t), concurrency.WithSafetyMargin(-1))
		require.ErrorContains(t, err, "concurrency: ")
	})
	t.Run("when the context of the caller's session has ended", func(t *testing.T) {
		t.Parallel()
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
	})
	t.Run("transient faults are ridden out", func(t *testing.T) {
		t.Parallel()
		c := client(t)
		f := counted(t, c)
		f.Refuse(fault.Grant, 3, codes.Unavailable, "etcdserver: leader changed")
		f.Refuse(fault.Txn, 3, codes.Unavailable, "etcdserver: request timed out")
		require.Equal(t, errWork, concurrency.RunLeader(ctx, c, prefix(t), "value", func(context.Context, *concurrency.Election) error { return errWork }))
		require.Equal(t, 4, f.Count(fault.Grant))
	})
	t.Run("the options are the session's", func(t *testing.T) {
		t.Parallel()
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
	})
	t.Run("a panic of work's passes through after the resignation", func(t *testing.T) {
		t.Parallel()
		name, c := prefix(t), client(t)
		var lease int64
		require.PanicsWithValue(t, errWork, func() {
			concurrency.RunLeader(ctx, c, name, "value", func(context.Context, *concurrency.Election) error {
				lease = etcdtest.Keys(t, c, name+"/")[0].Lease
				panic(errWork)
			})
		})
		(&rule{name: name, outside: c}).gone(t, clientv3.LeaseID(lease))
	})
	t.Run("panics if client or work is nil", func(t *testing.T) {
		t.Parallel()
		requireOurPanic(t, func() { concurrency.RunLeader(ctx, nil, "name", "value", unled(t)) })
		requireOurPanic(t, func() { concurrency.RunLeader(ctx, client(t), "name", "value", nil) })
	})
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

// leaders steps through a loop over Leaders by hand.
type leaders struct {
	b    *ballot
	next func() (concurrency.Leader, error, bool)
	rev  int64 // of the last Leader
}

func (b *ballot) leaders(tb testing.TB, ctx context.Context, e *concurrency.Election) *leaders {
	tb.Helper()
	next, stop := iter.Pull2(e.Leaders(ctx))
	tb.Cleanup(stop)
	return &leaders{b: b, next: next}
}

// tells checks that the next is this leader, and that it was so; nil: nobody.
func (l *leaders) tells(tb testing.TB, e *concurrency.Election, value string) {
	tb.Helper()
	got, err, ok := l.next()
	require.True(tb, ok)
	require.NoError(tb, err)
	if e == nil {
		require.Zero(tb, got)
		return
	}
	require.Equal(tb, e.Key(), got.Key)
	require.Equal(tb, e.Rev(), got.Rev)
	require.Equal(tb, value, got.Value)
	l.holds(tb, got)
}

// holds checks that the leader led at its revision, which is later than the last.
func (l *leaders) holds(tb testing.TB, got concurrency.Leader) {
	tb.Helper()
	require.Greater(tb, got.Revision, l.rev)
	l.rev = got.Revision
	kv := l.b.head(tb, got.Revision)
	require.Equal(tb, concurrency.Leader{
		Key: string(kv.Key), Rev: kv.CreateRevision, Value: string(kv.Value), Revision: got.Revision,
	}, got)
}

// ends checks that the next is the last, with the error alone.
func (l *leaders) ends(tb testing.TB, want error) {
	tb.Helper()
	got, err, ok := l.next()
	require.True(tb, ok)
	require.Equal(tb, want, err)
	require.Zero(tb, got)
	_, _, ok = l.next()
	require.False(tb, ok, "there are no more")
}

func TestLeaders(t *testing.T) {
	t.Parallel()
	own := etcdtest.New(t) // of which nothing is compacted: what was is looked up
	t.Run("every change, in order, beginning with the present", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, own)
		l := b.leaders(t, t.Context(), b.election)
		l.tells(t, nil, "")
		b.wins(t, b.election, "first")
		l.tells(t, b.election, "first")
		late := b.leaders(t, t.Context(), b.rival(t))
		late.tells(t, b.election, "first")
		require.NoError(t, b.election.Proclaim(t.Context(), "second"))
		l.tells(t, b.election, "second")
		late.tells(t, b.election, "second")
		rival := b.rival(t)
		call := b.waits(t, t.Context(), rival, "third", 2)
		require.NoError(t, b.election.Resign(t.Context()))
		require.NoError(t, call.Wait(t))
		l.tells(t, rival, "third")
		b.delete(t, rival.Key())
		l.tells(t, nil, "")
		b.wins(t, b.election, "fourth")
		l.tells(t, b.election, "fourth")
		revoke(t, b.outside, b.session)
		l.tells(t, nil, "")
	})
	t.Run("begins afresh with every loop", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, own)
		changes := b.election.Leaders(t.Context())
		for _, value := range []string{"one", "two"} {
			b.wins(t, b.election, value)
			for leader, err := range changes {
				require.NoError(t, err)
				require.Equal(t, value, leader.Value)
				break
			}
		}
	})
	t.Run("a slow loop misses some, never the latest", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, own)
		b.wins(t, b.election, "0")
		const changes = 50
		seen, last := 0, &leaders{b: b}
		for leader, err := range b.election.Leaders(t.Context()) {
			require.NoError(t, err)
			last.holds(t, leader)
			if seen == 0 {
				for i := range changes {
					require.NoError(t, b.election.Proclaim(t.Context(), strconv.Itoa(i+1)))
				}
			}
			if seen++; leader.Value == strconv.Itoa(changes) {
				break
			}
		}
		require.Less(t, seen, changes/2, "they were queued")
	})
	t.Run("also of a vacancy that it was too slow for", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, own)
		l := b.leaders(t, t.Context(), b.election)
		l.tells(t, nil, "")
		for range 5 {
			b.wins(t, b.election, "value")
			require.NoError(t, b.election.Resign(t.Context()))
		}
		b.wins(t, b.election, "last")
		for {
			got, err, ok := l.next()
			require.True(t, ok)
			require.NoError(t, err)
			if got.Value == "last" {
				break
			}
		}
	})
	t.Run("through cuts and compactions", func(t *testing.T) {
		t.Parallel()
		own := etcdtest.New(t)
		b := newBallot(t, own)
		p, c := proxied(t, own)
		l := b.leaders(t, t.Context(), concurrency.NewElection(session(t, c), b.name))
		l.tells(t, nil, "")
		for range 2 {
			p.Refuse()
			p.Cut()
			b.wins(t, b.election, "cut")
			compacted(t, b.outside, b.name+"-noise", 20)
			p.Accept()
			l.tells(t, b.election, "cut")
			p.Cut()
			require.NoError(t, b.election.Proclaim(t.Context(), "again"))
			l.tells(t, b.election, "again")
			p.Refuse()
			p.Cut()
			require.NoError(t, b.election.Resign(t.Context()))
			compacted(t, b.outside, b.name+"-noise", 20)
			p.Accept()
			l.tells(t, nil, "")
		}
	})
}

func TestLeadersEnd(t *testing.T) {
	t.Parallel()
	t.Run("with the context's error", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.leaders(t, cancelled(), b.election).ends(t, context.Canceled)
		ctx, cancel := context.WithCancel(t.Context())
		l := b.leaders(t, ctx, b.election)
		l.tells(t, nil, "")
		cancel()
		l.ends(t, context.Canceled)
	})
	t.Run("with that of a deadline", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		var last error
		for leader, err := range b.election.Leaders(ctx) {
			require.NoError(t, last, "the last alone has an error")
			require.Zero(t, leader)
			last = err
		}
		require.Equal(t, context.DeadlineExceeded, last)
	})
	t.Run("also if no server can be reached", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		p, c := proxied(t, server(t))
		s := session(t, c)
		t.Cleanup(p.Resume)
		ctx, cancel := context.WithCancel(t.Context())
		l := b.leaders(t, ctx, concurrency.NewElection(s, b.name))
		l.tells(t, nil, "")
		p.Stall()
		cancel()
		require.NoError(t, within(t, 3*time.Second, func() error { l.ends(t, context.Canceled); return nil }))
	})
	t.Run("with context.Canceled when the client is closed", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		revokedAtEnd(t, b.outside, b.session.Lease())
		l := b.leaders(t, t.Context(), b.election)
		l.tells(t, nil, "")
		b.client.Close()
		l.ends(t, context.Canceled)
	})
	t.Run("with a permanent error", func(t *testing.T) {
		t.Parallel()
		c := guest(t, authServer(t), "mine/")
		b := &ballot{name: "theirs", session: session(t, c)}
		b.leaders(t, t.Context(), b.handle()).ends(t, rpctypes.ErrPermissionDenied)
	})
	t.Run("not with the session", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		l := b.leaders(t, t.Context(), b.election)
		l.tells(t, nil, "")
		require.NoError(t, b.session.Close())
		rival := b.rival(t)
		b.wins(t, rival, "value")
		l.tells(t, rival, "value")
	})
}

// observing reports whether an observer, or any watch, is running in this process.
func observing() bool {
	stacks := make([]byte, 4<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	return strings.Contains(string(stacks), "concurrency.(*observer).observe(") ||
		strings.Contains(string(stacks), "concurrency.(*watches).watchInto.func")
}

// Not parallel, since it looks at all goroutines.
func TestLeadersLeavesNothingRunning(t *testing.T) {
	ends := func(when string) { // a goroutine has stopped a moment before it is gone
		t.Helper()
		etcdtest.Eventually(t, func() bool { return !observing() }, "%s", when)
	}
	b := newBallot(t, server(t))
	b.wins(t, b.election, "leader")
	for range b.election.Leaders(t.Context()) {
		etcdtest.Eventually(t, observing, "its goroutines")
		break
	}
	ends("after a loop that was left")
	require.PanicsWithValue(t, "stop", func() {
		for range b.election.Leaders(t.Context()) {
			panic("stop")
		}
	})
	ends("after a panic in the loop")
	for range b.election.Leaders(cancelled()) {
	}
	ends("after a loop that ended")
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
	call := etcdtest.Go(func() error {
		defer over.Store(true)
		return concurrency.RunLeader(ctx, l.outside, l.name, "mine", func(inner context.Context, e *concurrency.Election) error {
			assert.NoError(t, e.Proclaim(inner, "mine, ready"))
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
	cancel()
	require.Equal(t, context.Canceled, call.Wait(t))
	l.stand(t, 0)
}

// Who observes an election needs no session.
func TestLeadersOf(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := concurrency.LeaderOf(ctx, l.outside, l.name)
	require.Equal(t, concurrency.ErrElectionNoLeader, err)
	e := concurrency.NewElection(l.session, l.name)
	f := counted(t, l.outside)
	steps := []struct {
		value string
		then  func() error
	}{
		{"", func() error { return e.Campaign(ctx, "first") }},
		{"first", func() error { return e.Proclaim(ctx, "second") }},
		{"second", func() error { return e.Resign(ctx) }},
		{"", func() error { cancel(); return nil }},
	}
	for leader, err := range concurrency.LeadersOf(ctx, l.outside, l.name) {
		if len(steps) == 0 {
			require.Equal(t, context.Canceled, err)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, steps[0].value, leader.Value)
		require.Equal(t, e.Rev(), leader.Rev)
		require.NoError(t, steps[0].then())
		steps = steps[1:]
	}
	require.Empty(t, steps)
	require.Zero(t, f.Count(fault.Grant), "no lease is needed")
	_, err = concurrency.LeaderOf(ctx, l.outside, l.name)
	require.Equal(t, context.Canceled, err)
	f.Refuse(fault.Get, 1, codes.PermissionDenied, "etcdserver: permission denied")
	_, err = concurrency.LeaderOf(t.Context(), l.outside, l.name)
	require.Equal(t, rpctypes.ErrPermissionDenied, err)
	for _, err := range concurrency.LeadersOf(t.Context(), l.outside, l.name) {
		if err == nil {
			break // a loop that is left early leaves nothing running: goleak looks
		}
	}
}

func TestLeadersOfMisuse(t *testing.T) {
	t.Parallel()
	var missing context.Context
	c := client(t)
	for _, call := range []func(){
		func() { concurrency.LeadersOf(t.Context(), nil, "name") },
		func() { concurrency.LeadersOf(missing, c, "name") },
		func() { _, _ = concurrency.LeaderOf(t.Context(), nil, "name") },
		func() { _, _ = concurrency.LeaderOf(missing, c, "name") },
		func() { concurrency.WithLeaders(nil) },
		func() { _ = concurrency.RunLeader(t.Context(), c, "name", "value", unled(t), nil) },
		func() { (&concurrency.Election{}).Session() },
	} {
		requireOurPanic(t, call)
	}
}
