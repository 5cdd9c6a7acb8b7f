package concurrency_test

import (
	"context"
	"sync"
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

func TestCtxOfNothingHeld(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		l := newLine(t)
		h := kind(l.session, l.name)
		has := func(when string) {
			require.Error(t, h.Ctx().Err(), when)
			require.Equal(t, h.released, context.Cause(h.Ctx()), when)
			require.Empty(t, h.Key(), when)
			require.Zero(t, h.Rev(), when)
		}
		has("before the first time")
		require.NoError(t, h.take(t.Context()))
		require.NoError(t, h.Ctx().Err())
		require.NoError(t, h.giveBack(t.Context()))
		has("after it was given back")
		rival := kind(session(t, l.outside), l.name)
		require.NoError(t, rival.take(t.Context()))
		call := etcdtest.Go(func() error { return h.take(t.Context()) })
		l.stand(t, 2)
		has("while it waits")
		require.NoError(t, rival.giveBack(t.Context()))
		require.NoError(t, call.Wait(t))
		require.NoError(t, h.Ctx().Err())
	})
}

func TestCtxLasts(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		t.Run("while it is owned, one for all who ask", func(t *testing.T) {
			t.Parallel()
			l, h := taken(t, kind)
			ctx := h.Ctx()
			require.NoError(t, ctx.Err())
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() { assert.Same(t, ctx, h.Ctx()) })
			}
			wg.Wait()
			require.NoError(t, h.take(t.Context()), "taken again by the same handle")
			require.Same(t, ctx, h.Ctx())
			l.watched(t, 1)
			require.NoError(t, ctx.Err())
		})
		t.Run("who takes it again has a new one", func(t *testing.T) {
			t.Parallel()
			_, h := taken(t, kind)
			first := h.Ctx()
			require.NoError(t, h.giveBack(t.Context()))
			require.NoError(t, h.take(t.Context()))
			second := h.Ctx()
			require.NotSame(t, first, second)
			require.Error(t, first.Err())
			require.NoError(t, second.Err())
		})
		t.Run("who doesn't ask doesn't pay", func(t *testing.T) {
			t.Parallel()
			l := lineOn(t, etcdtest.New(t)) // where nobody else writes, and calls for a look
			h := kind(l.session, l.name)
			require.NoError(t, h.take(t.Context()))
			require.Equal(t, "Txn 1", l.calls())
			h.Ctx()
			l.watched(t, 1)
			require.Equal(t, "Txn 1, Watch 1", l.calls())
			h.Ctx()
			require.NoError(t, h.giveBack(t.Context()))
			require.Equal(t, "Txn 2, Watch 1", l.calls())
		})
		t.Run("the watch ends with it", func(t *testing.T) {
			t.Parallel()
			c := client(t)
			spy := &watchSpy{Watcher: c.Watcher}
			c.Watcher = spy
			h := kind(session(t, c), prefix(t))
			require.NoError(t, h.take(t.Context()))
			h.Ctx()
			etcdtest.Eventually(t, func() bool { return len(spy.all()) == 1 }, "a watch")
			require.NoError(t, spy.all()[0].Err())
			require.NoError(t, h.giveBack(t.Context()))
			ended(t, spy.all()[0].Done(), "the end of the watch")
		})
	})
}

func TestCtxEnds(t *testing.T) {
	type loss struct {
		how   string
		lose  func(t *testing.T, l *line, h holder)
		cause error // nil: that of a release
	}
	losses := []loss{
		{"by the release", func(t *testing.T, l *line, h holder) {
			require.NoError(t, h.giveBack(t.Context()))
		}, nil},
		{"when anybody deletes the key", func(t *testing.T, l *line, h holder) {
			l.delete(t, h.Key())
		}, concurrency.ErrKeyDeleted},
		{"when another handle of the session gives it back", func(t *testing.T, l *line, h holder) {
			twin := l.handle()
			require.NoError(t, twin.Lock(t.Context()))
			require.NoError(t, twin.Unlock(t.Context()))
		}, concurrency.ErrKeyDeleted},
		{"when the lease is revoked, long before the next renewal", func(t *testing.T, l *line, h holder) {
			revoke(t, l.outside, l.session)
		}, concurrency.ErrSessionExpired},
		{"when the session is closed", func(t *testing.T, l *line, h holder) {
			require.NoError(t, l.session.Close())
		}, context.Canceled},
		{"when the session is orphaned", func(t *testing.T, l *line, h holder) {
			revokedAtEnd(t, l.outside, l.session.Lease())
			l.session.Orphan()
		}, context.Canceled},
		{"when the client is closed", func(t *testing.T, l *line, h holder) {
			revokedAtEnd(t, l.outside, l.session.Lease())
			l.client.Close()
		}, concurrency.ErrClientClosed},
	}
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		for _, loss := range losses {
			t.Run(loss.how, func(t *testing.T) {
				t.Parallel()
				l, h := taken(t, kind)
				ctx := h.Ctx()
				loss.lose(t, l, h)
				want := loss.cause
				if want == nil {
					want = h.released
				}
				if got := cause(t, ctx); want == concurrency.ErrSessionExpired {
					require.ErrorIs(t, got, want, "the watch tells of the key, or a renewal of the lease")
				} else {
					require.Equal(t, want, got)
				}
			})
		}
	})
}

func TestCtxSeesADeletionBetweenLookAndWatch(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		l, h := taken(t, kind)
		held := l.faults.Hold(fault.Watch, 1)
		ctx := h.Ctx()
		ended(t, held.Reached(), "the watch is about to begin")
		l.delete(t, h.Key())
		require.NoError(t, ctx.Err())
		held.Open()
		require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
	})
}

func TestCtxRidesOutWatchesThatBreak(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		l, h := taken(t, kind)
		l.faults.BrokenWatch(1, rpctypes.ErrCompacted)
		l.faults.BrokenWatch(2, nil)
		later := l.faults.BreakWatch(3, rpctypes.ErrNoLeader)
		ctx := h.Ctx()
		ended(t, later.Reached(), "the third")
		later.Open()
		l.watched(t, 4)
		require.NoError(t, ctx.Err())
		l.delete(t, h.Key())
		require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
	})
}

// The same key put again is another ticket.
func TestCtxEndsThoughItsKeyIsPutAgain(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		l, h := taken(t, kind)
		broken := l.faults.BreakWatch(1, nil)
		held := l.faults.Hold(fault.Watch, 2)
		ctx := h.Ctx()
		ended(t, broken.Reached(), "the watch")
		look := l.faults.Hold(fault.Get, 1)
		broken.Open()
		ended(t, look.Reached(), "it looks again")
		l.delete(t, h.Key())
		_, err := l.outside.Put(t.Context(), h.Key(), "", clientv3.WithLease(l.session.Lease()))
		require.NoError(t, err)
		look.Open()
		require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
		held.Open()
	})
}

func TestCtxRidesOutFaultsOfTheFirstLook(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		l, h := taken(t, kind)
		l.faults.Refuse(fault.Get, 2, codes.Unavailable, "away")
		ctx := h.Ctx()
		l.watched(t, 1)
		require.NoError(t, ctx.Err())
	})
}

func TestCtxRidesOutACutWithACompaction(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		own := etcdtest.New(t) // others on the shared server read what was
		for _, deleted := range []bool{false, true} {
			p, l := farLine(t, own)
			h := kind(l.session, l.name)
			require.NoError(t, h.take(t.Context()))
			ctx := h.Ctx()
			l.watched(t, 1)
			p.Refuse()
			p.Cut()
			if deleted {
				l.delete(t, h.Key())
			}
			compacted(t, l.outside, l.name+"-noise", 20)
			p.Accept()
			if !deleted {
				// What the watch hears next is the deletion, and nothing before.
				require.NoError(t, concurrency.NewMutex(l.session, l.name+"-other").Lock(t.Context()))
				require.NoError(t, ctx.Err())
				l.delete(t, h.Key())
			}
			require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
			require.NoError(t, l.session.Ctx().Err())
		}
	})
}

func TestCtxRidesOutACompactionBetweenLookAndWatch(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		own := etcdtest.New(t) // compaction is everybody's
		for _, deleted := range []bool{false, true} {
			l := &line{name: prefix(t), client: own.Client(t), outside: own.Client(t)}
			l.faults = counted(t, l.client)
			l.session = session(t, l.client)
			h := kind(l.session, l.name)
			require.NoError(t, h.take(t.Context()))
			if deleted {
				l.faults.Before(fault.Watch, 1, func() { l.delete(t, h.Key()) })
			}
			l.faults.CompactBeforeWatch(1, l.name+"-noise")
			ctx := h.Ctx()
			if !deleted {
				l.watched(t, 1)
				require.NoError(t, ctx.Err())
				l.delete(t, h.Key())
			}
			require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
			require.NoError(t, l.session.Ctx().Err())
		}
	})
}

// Others may ask for them on the same client.
func TestCtxRidesOutReportsOfProgress(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		l, h := taken(t, kind)
		ctx := h.Ctx()
		l.watched(t, 1)
		// A watch of our own on the same stream hears of the progress too.
		bound, cancel := context.WithCancel(clientv3.WithRequireLeader(t.Context()))
		defer cancel()
		mine := l.client.Watch(bound, l.name+"-mine", clientv3.WithCreatedNotify())
		require.True(t, (<-mine).Created)
		// A server whose watches are not all up to date does not answer. A report goes to
		// all watches of the stream, a second one after the first.
		reports := 0
		etcdtest.Eventually(t, func() bool {
			require.NoError(t, l.client.RequestProgress(bound))
			select {
			case report := <-mine:
				require.True(t, report.IsProgressNotify())
				reports++
			default:
			}
			return reports == 2
		}, "reports of progress")
		require.NoError(t, ctx.Err())
		l.delete(t, h.Key())
		require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
	})
}

func TestCtxEndsJustBeforeTheDeletionIsSent(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		l, h := taken(t, kind)
		ctx := h.Ctx()
		sent := l.faults.Hold(fault.Txn, 1)
		call := etcdtest.Go(func() error { return h.giveBack(t.Context()) })
		ended(t, sent.Reached(), "the deletion is about to be sent")
		require.Error(t, ctx.Err())
		require.Equal(t, h.released, context.Cause(ctx))
		l.stand(t, 1)
		sent.Open()
		require.NoError(t, call.Wait(t))
	})
}

func TestCtxHasEndedForWhoAsksDuringTheRelease(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		l, h := taken(t, kind)
		sent := l.faults.Hold(fault.Txn, 1)
		call := etcdtest.Go(func() error { return h.giveBack(t.Context()) })
		ended(t, sent.Reached(), "the deletion is about to be sent")
		require.Error(t, h.Ctx().Err())
		require.Equal(t, h.released, context.Cause(h.Ctx()))
		sent.Open()
		require.NoError(t, call.Wait(t))
		require.Zero(t, l.faults.Count(fault.Watch))
	})
}

func TestCtxStaysEndedWhenTheReleaseFailsUntilItIsTakenAgain(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		l, h := taken(t, kind)
		ctx := h.Ctx()
		rev := h.Rev()
		l.faults.Refuse(fault.Txn, 1, codes.PermissionDenied, "etcdserver: permission denied")
		l.faults.Hold(fault.Txn, 2) // that of the clean-up
		require.Equal(t, rpctypes.ErrPermissionDenied, h.giveBack(t.Context()))
		require.Equal(t, h.released, cause(t, ctx))
		require.Error(t, h.Ctx().Err())
		l.stand(t, 1)
		require.NoError(t, h.take(t.Context()))
		require.NoError(t, h.Ctx().Err())
		require.Greater(t, h.Rev(), rev, "another ticket")
	})
}

func TestCtxEndsWithAReleaseWhoseContextHasEndedBefore(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		_, h := taken(t, kind)
		ctx := h.Ctx()
		require.Equal(t, context.Canceled, h.giveBack(cancelled()))
		require.Equal(t, h.released, cause(t, ctx))
		require.NoError(t, h.take(t.Context()))
		require.NoError(t, h.Ctx().Err(), "it is held")
		require.NoError(t, h.giveBack(t.Context()))
	})
}

func TestCtxEndsWithAReleaseThoughTheServerCannotBeReached(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		p, l := farLine(t, server(t))
		h := kind(l.session, l.name)
		require.NoError(t, h.take(t.Context()))
		ctx := h.Ctx()
		p.Stall()
		bound, cancel := context.WithCancel(t.Context())
		call := etcdtest.Go(func() error { return h.giveBack(bound) })
		require.Equal(t, h.released, cause(t, ctx))
		cancel()
		require.Equal(t, context.Canceled, call.Wait(t))
		p.Resume()
		require.NoError(t, h.giveBack(t.Context()))
		l.stand(t, 0)
	})
}

// What a call proves about the key ends the context, if the watch has not yet.
func TestCtxEndsByWhatACallShows(t *testing.T) {
	t.Parallel()
	t.Run("Lock is given another ticket", func(t *testing.T) {
		t.Parallel()
		l, h := taken(t, lockOf)
		for range 20 { // what comes of another goroutine may come in time once
			l.faults.Hold(fault.Watch, 1)
			ctx, rev := h.Ctx(), h.Rev()
			l.delete(t, h.Key())
			require.NoError(t, h.take(t.Context()))
			select { // Err would look by itself
			case <-ctx.Done():
			default:
				require.Fail(t, "the context has not ended")
			}
			require.Greater(t, h.Rev(), rev)
			require.ErrorIs(t, context.Cause(ctx), concurrency.ErrSessionExpired)
			require.NoError(t, h.Ctx().Err())
		}
	})
	t.Run("TryLock finds another owner", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		require.NoError(t, l.mutex.Lock(t.Context()))
		l.faults.Hold(fault.Watch, 1)
		ctx := l.mutex.Ctx()
		l.delete(t, l.mutex.Key())
		l.held(t)
		require.Equal(t, concurrency.ErrLocked, l.mutex.TryLock(t.Context()))
		require.Error(t, ctx.Err())
		require.ErrorIs(t, context.Cause(ctx), concurrency.ErrSessionExpired)
		require.Equal(t, concurrency.ErrLockReleased, context.Cause(l.mutex.Ctx()))
	})
	t.Run("Proclaim finds that it does not lead", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "value")
		b.faults.Hold(fault.Watch, 1)
		ctx := b.election.Ctx()
		b.delete(t, b.election.Key())
		require.Equal(t, concurrency.ErrElectionNotLeader, b.election.Proclaim(t.Context(), "new"))
		require.Error(t, ctx.Err())
		require.ErrorIs(t, context.Cause(ctx), concurrency.ErrSessionExpired)
	})
	t.Run("not by what leaves the leader the leader", func(t *testing.T) {
		t.Parallel()
		b := newBallot(t, server(t))
		b.wins(t, b.election, "value")
		ctx := b.election.Ctx()
		require.NoError(t, b.election.Proclaim(t.Context(), "new"))
		b.wins(t, b.election, "newer")
		require.NoError(t, ctx.Err())
		require.Same(t, ctx, b.election.Ctx())
		twin := concurrency.ResumeElection(b.session, b.name, b.election.Key(), b.election.Rev())
		require.NoError(t, twin.Ctx().Err(), "resumed")
		b.delete(t, b.election.Key())
		require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
		require.ErrorIs(t, cause(t, twin.Ctx()), concurrency.ErrSessionExpired)
	})
}

func TestCtxThatMayNotWatch(t *testing.T) {
	t.Parallel()
	t.Run("ends with that error", func(t *testing.T) {
		t.Parallel()
		own := authServer(t)
		c := guest(t, own, "mine/")
		s := session(t, c)
		m := concurrency.NewMutex(s, "mine")
		require.NoError(t, m.Lock(t.Context()))
		root := rootOf(t, own)
		_, err := root.RoleRevokePermission(t.Context(), "guest", "mine/", clientv3.GetPrefixRangeEnd("mine/"))
		require.NoError(t, err)
		require.Equal(t, rpctypes.ErrPermissionDenied, cause(t, m.Ctx()))
	})
	t.Run("also when it comes later", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		require.NoError(t, l.mutex.Lock(t.Context()))
		watch := l.faults.BreakWatch(1, rpctypes.ErrPermissionDenied)
		ctx := l.mutex.Ctx()
		ended(t, watch.Reached(), "the watch")
		l.faults.Refuse(fault.Get, 1, codes.PermissionDenied, "etcdserver: permission denied")
		watch.Open()
		require.Equal(t, rpctypes.ErrPermissionDenied, cause(t, ctx))
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
			l, h := taken(t, kind, concurrency.WithTTL(6))
			revoke(t, l.outside, l.session)
			ended(t, l.session.Done(), "the session")
			require.Empty(t, h.Key())
			require.Zero(t, h.Rev())
			require.Equal(t, rpctypes.ErrLeaseNotFound, h.during(t.Context(), none(t)), "and not ErrHeld")
			require.NoError(t, h.giveBack(t.Context()))
		})
	})
}

// The member to which the holder is connected answers, but nothing that takes a quorum.
func TestLossByPartition(t *testing.T) {
	eachKind(t, func(t *testing.T, kind func(*concurrency.Session, string) holder) {
		eachIsland(t, func(t *testing.T, i *island) {
			l := i.line(t)
			h, rival := kind(l.session, l.name), kind(session(t, l.outside), l.name)
			require.NoError(t, h.take(t.Context()))
			ctx := h.Ctx()
			l.watched(t, 1)
			call := etcdtest.Go(func() error { return rival.take(t.Context()) })
			l.stand(t, 2)
			i.part(t)
			require.ErrorIs(t, cause(t, ctx), concurrency.ErrSessionExpired)
			require.True(t, call.Running(), "a rival is in")
			require.False(t, time.Now().Before(l.session.Deadline()), "too early")
			require.NoError(t, call.Wait(t))
			i.rejoin(t)
			require.NoError(t, h.giveBack(t.Context()))
			require.NoError(t, rival.Ctx().Err(), "what the former holder does is nothing to it")
			l.stand(t, 1)
		})
	})
}

func TestTheEndOfAClientRevivesNoOwnership(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	e := concurrency.NewElection(l.session, l.name+"-election")
	require.NoError(t, l.mutex.Lock(t.Context()))
	require.NoError(t, e.Campaign(t.Context(), "value"))
	require.NoError(t, l.session.Close())
	for _, end := range []func() error{func() error { return nil }, l.client.Close} {
		require.NoError(t, end())
		require.Empty(t, l.mutex.Key())
		require.Zero(t, l.mutex.Rev())
		require.Equal(t, concurrency.ErrElectionNotLeader, e.Proclaim(t.Context(), "value"))
	}
	require.Equal(t, context.Canceled, l.mutex.Do(t.Context(), none(t)))
}
