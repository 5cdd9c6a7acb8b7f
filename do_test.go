package concurrency_test

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

func TestDoRunsTheWorkWhileItIsHeld(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
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
}

func TestDoRunsTheWorkAfterItsTurnHasComeAgainAndAgain(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
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
}

func TestDoEndsTheWorksContextBeforeTheDeletionIsSent(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
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
}

func TestDoNeverReleasesUnderTheWorkWhateverEndsItsContext(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
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
}

// doOutcomes are the errors of Do, and the work that it returns them for.
var doOutcomes = []struct {
	how    string
	work   func(t *testing.T, l *line, h holder) func(context.Context) error
	single error   // nil: several, or none
	all    []error // of which each is reached by errors.Is
}{
	{"the work's own, as it is", func(t *testing.T, l *line, h holder) func(context.Context) error {
		return func(context.Context) error { return errWork }
	}, errWork, nil},
	{"the loss, as it is", func(t *testing.T, l *line, h holder) func(context.Context) error {
		return func(ctx context.Context) error { loseOwnership(t, l, h, ctx); return nil }
	}, concurrency.ErrKeyDeleted, nil},
	{"the loss that the work tells, once", func(t *testing.T, l *line, h holder) func(context.Context) error {
		return func(ctx context.Context) error { loseOwnership(t, l, h, ctx); return context.Cause(ctx) }
	}, concurrency.ErrKeyDeleted, nil},
	{"the loss that the work tells in fewer words, once", func(t *testing.T, l *line, h holder) func(context.Context) error {
		return func(ctx context.Context) error { loseOwnership(t, l, h, ctx); return concurrency.ErrSessionExpired }
	}, concurrency.ErrKeyDeleted, nil},
	{"the release's, as it is", func(t *testing.T, l *line, h holder) func(context.Context) error {
		return func(context.Context) error { refuseRelease(l); return nil }
	}, rpctypes.ErrPermissionDenied, nil},
	{"the work's and the loss", func(t *testing.T, l *line, h holder) func(context.Context) error {
		return func(ctx context.Context) error { loseOwnership(t, l, h, ctx); return errWork }
	}, nil, []error{errWork, concurrency.ErrSessionExpired}},
	{"the context's and the loss", func(t *testing.T, l *line, h holder) func(context.Context) error {
		return func(ctx context.Context) error { loseOwnership(t, l, h, ctx); return ctx.Err() }
	}, nil, []error{context.Canceled, concurrency.ErrSessionExpired}},
	{"the work's and the release's", func(t *testing.T, l *line, h holder) func(context.Context) error {
		return func(ctx context.Context) error { refuseRelease(l); return errWork }
	}, nil, []error{errWork, rpctypes.ErrPermissionDenied}},
	{"all three", func(t *testing.T, l *line, h holder) func(context.Context) error {
		return func(ctx context.Context) error { loseOwnership(t, l, h, ctx); refuseRelease(l); return errWork }
	}, nil, []error{errWork, concurrency.ErrSessionExpired, rpctypes.ErrPermissionDenied}},
}

// loseOwnership loses what h owns, and waits for the end of the work's context.
func loseOwnership(t *testing.T, l *line, h holder, ctx context.Context) {
	l.delete(t, h.Key())
	require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
}

// refuseRelease has the next release refused.
func refuseRelease(l *line) {
	l.faults.Refuse(fault.Txn, 1, codes.PermissionDenied, "etcdserver: permission denied")
}

func TestDoErrors(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		for _, o := range doOutcomes {
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
	})
}

func TestDoWhoseReleaseFailedCanBeRepeated(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		l := newLine(t)
		h := kind(l.session, l.name)
		require.Equal(t, rpctypes.ErrPermissionDenied, h.during(t.Context(), func(context.Context) error {
			refuseRelease(l)
			l.faults.Hold(fault.Txn, 2) // that of the clean-up
			return nil
		}))
		l.stand(t, 1)
		require.NoError(t, h.giveBack(t.Context()))
		l.stand(t, 0)
		require.NoError(t, h.during(t.Context(), func(context.Context) error { return nil }))
	})
}

// An acquisition that failed runs no work.
func TestDoReturnsTheErrorOfTheAcquisition(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		l := newLine(t)
		h := kind(l.session, l.name)
		require.Equal(t, context.Canceled, h.during(cancelled(), none(t)))
		l.faults.Refuse(fault.Txn, 1, codes.PermissionDenied, "etcdserver: permission denied")
		require.Equal(t, rpctypes.ErrPermissionDenied, h.during(t.Context(), none(t)))
		l.stand(t, 0)
		revoke(t, l.outside, l.session)
		require.Equal(t, rpctypes.ErrLeaseNotFound, h.during(t.Context(), none(t)))
	})
}

func TestDoReturnsTheErrorOfTheContextThatEndsAWait(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		l := newLine(t)
		l.held(t)
		bound, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		require.Equal(t, context.DeadlineExceeded, kind(l.session, l.name).during(bound, none(t)))
		l.stand(t, 1)
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

func TestDoAndAPartition(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		eachIsland(t, func(t *testing.T, i *island) {
			l := i.line(t)
			h, rival := kind(l.session, l.name), kind(session(t, l.outside), l.name)
			var call *etcdtest.Call
			err := h.during(t.Context(), func(ctx context.Context) error {
				call = etcdtest.Go(func() error { return rival.take(t.Context()) })
				l.stand(t, 2)
				i.part(t)
				require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
				require.True(t, call.Running(), "a rival is in")
				return errWork
			})
			require.ErrorIs(t, err, errWork)
			require.ErrorIs(t, err, concurrency.ErrSessionExpired)
			require.NoError(t, call.Wait(t))
			require.NoError(t, rival.Ctx().Err())
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

// The release of a Do whose context lives goes on for longer than a TTL: 14 repetitions
// pause for more than two seconds.
func TestDoReleasesForAsLongAsItsContextLives(t *testing.T) {
	t.Parallel()
	l := newLine(t, concurrency.WithTTL(2))
	require.NoError(t, l.mutex.Do(t.Context(), func(context.Context) error {
		l.faults.Refuse(fault.Txn, 14, codes.Unavailable, "etcdserver: no leader")
		return nil
	}))
	l.stand(t, 0)
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
