package concurrency

import (
	"context"
	"math/rand/v2"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/stretchr/testify/require"
	v3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/etcdtest"
)

// What is sent is decided without a client: the same session and name always give
// the same transaction.
func TestJoinTransaction(t *testing.T) {
	q := newQueue(&Session{id: 0xcafe}, "name")
	require.Equal(t, "name/cafe", q.key())
	require.Equal(t, q.joinTxn("v"), q.joinTxn("v"))

	join := q.joinTxn("v")
	require.Equal(t, []v3.Cmp{v3.Compare(v3.CreateRevision("name/cafe"), "=", 0)}, join.absent)
	put, read := join.then[0], join.then[1]
	require.True(t, put.IsPut())
	require.Equal(t, "name/cafe", string(put.KeyBytes()))
	require.Equal(t, "v", string(put.ValueBytes()))
	require.True(t, read.IsGet())
	require.False(t, read.IsSerializable())
	own := join.els[0]
	require.True(t, own.IsGet(), "a join that finds the key writes nothing")
	require.Equal(t, "name/cafe", string(own.KeyBytes()))
	require.Empty(t, own.RangeBytes())
	for _, op := range append(join.els[1:], read) {
		require.True(t, op.IsGet(), "a join that finds the key writes nothing")
		require.True(t, op.IsKeysOnly())
		require.Equal(t, "name/", string(op.KeyBytes()))
		require.Equal(t, v3.GetPrefixRangeEnd("name/"), string(op.RangeBytes()))
	}

	try := join.ifAlone(0)
	require.Equal(t, []v3.Cmp{v3.Compare(v3.CreateRevision("name/"), "<", int64(1)).WithPrefix()}, try.absent)
	require.Equal(t, join.then, try.then)
	require.Equal(t, join.els, try.els)
}

// Whatever the handles of a session do with their seat, in any order:
//
//  1. nobody is granted a ticket whose deletion was decided;
//  2. a ticket that a handle waits with, or was granted, is not deleted as unwanted;
//  3. a grant is over exactly when its ticket is doomed, seen to be gone, or outlived by a
//     newer one that was granted, and all handles that were granted the ticket hear of it;
//  4. what an acquisition that failed may have left is looked for, once no handle waits,
//     until it was seen after the doubt: by one clean-up at a time;
//  5. when all have gone, nothing of the seat is left.
//
// The model is one key of etcd: its ticket, and whether it stands.
func TestSeat(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 500 {
		m := &seatModel{tb: t, seats: &seats{of: map[string]*seat{}}, rev: 1, dead: map[int64]bool{}, doomed: map[int64]bool{}}
		for range 80 {
			m.step(random)
		}
		m.end()
	}
}

// seatModel is a seat beside what must be true of it.
type seatModel struct {
	tb    testing.TB
	seats *seats

	rev          int64 // of the ticket that stands, or stood last
	dead, doomed map[int64]bool
	grants       []*grant
	waiting      int
	releasing    int64     // the ticket of the release under way; 0: none is
	left         time.Time // the latest doubt; zero: none
	cleaners     []<-chan struct{}
	now          time.Time
}

func (m *seatModel) at(f func(s *seat)) { m.seats.at("name/1", f) }

func (m *seatModel) ticket() ticket { return ticket{"name/1", m.rev} }

// granted reports whether some handle owns by the ticket that stands.
func (m *seatModel) granted() bool {
	for _, g := range m.grants {
		if g.ticket == m.ticket() && g.over.Err() == nil {
			return true
		}
	}
	return false
}

func (m *seatModel) step(random *rand.Rand) {
	m.now = m.now.Add(time.Second)
	switch random.IntN(8) {
	case 0: // an acquisition begins
		m.at(func(s *seat) { s.users++; s.waiting++ })
		m.waiting++
	case 1: // its turn comes
		if m.waiting > 0 && !m.dead[m.rev] {
			m.grant()
		}
	case 2: // it ends, having failed or not
		if m.waiting > 0 {
			m.exit(random.IntN(2) == 0)
		}
	case 3: // a release
		if m.granted() && m.releasing == 0 {
			m.at(func(s *seat) { s.doom(m.ticket()) })
			m.doomed[m.rev], m.releasing = true, m.rev
		}
	case 4: // its deletion is answered, or fails
		if m.releasing > 0 {
			m.released(random.IntN(2) == 0)
		}
	case 5: // the key is deleted by a stranger, and a handle notices
		m.dead[m.rev] = true
		m.at(func(s *seat) { s.forget(m.rev) })
		for _, g := range m.grants {
			require.True(m.tb, g.over.Err() != nil, "3")
		}
	case 6: // the session draws another ticket
		if m.dead[m.rev] && m.waiting > 0 {
			m.rev++
		}
	case 7:
		m.clean(random)
	}
	for _, g := range m.grants {
		over := m.dead[g.rev] || m.doomed[g.rev]
		if g.over.Err() != nil {
			require.True(m.tb, over || g.rev < m.rev, "3: %v", g.ticket)
		} else {
			require.False(m.tb, m.doomed[g.rev], "3: %v", g.ticket)
		}
	}
}

func (m *seatModel) grant() {
	m.at(func(s *seat) {
		g := s.grant(m.ticket())
		require.Equal(m.tb, g == nil, m.doomed[m.rev], "1")
		if g != nil {
			require.Equal(m.tb, m.ticket(), g.ticket)
			require.False(m.tb, g.over.Err() != nil)
			m.grants = append(m.grants, g)
		}
	})
}

func (m *seatModel) released(failed bool) {
	m.at(func(s *seat) {
		if s.forget(m.releasing); failed {
			s.doubt(m.now)
		}
	})
	if failed {
		m.left = maxTime(m.left, m.now)
		m.cleaners = append(m.cleaners, make(chan struct{}))
	} else {
		m.dead[m.releasing] = true
	}
	m.releasing = 0
}

func maxTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func (m *seatModel) exit(failed bool) {
	m.at(func(s *seat) {
		s.users--
		s.waiting--
		if failed {
			m.left = m.now.Add(5 * time.Second)
			s.doubt(m.left)
		}
	})
	if m.waiting--; m.waiting == 0 && !m.left.IsZero() {
		m.cleaners = append(m.cleaners, make(chan struct{}))
	}
}

// clean is one round of one of the clean-ups under way.
func (m *seatModel) clean(random *rand.Rand) {
	if len(m.cleaners) == 0 {
		return
	}
	i := random.IntN(len(m.cleaners))
	wanted := m.waiting > 0 || m.granted()
	if !m.dead[m.rev] {
		m.at(func(s *seat) {
			if s.doomUnwanted(m.ticket()) {
				require.False(m.tb, wanted && !m.doomed[m.rev], "2")
				require.NotEqual(m.tb, m.rev, m.releasing, "2: the release deletes it")
				m.doomed[m.rev], m.dead[m.rev] = true, true
			}
		})
	}
	m.at(func(s *seat) {
		again := s.cleanAgain(m.cleaners[i], m.now, nil)
		sure := !m.now.Before(m.left)
		switch {
		case m.waiting > 0:
			require.False(m.tb, again, "4: the last of those who wait cleans")
		case sure:
			require.False(m.tb, again, "4")
			m.left = time.Time{}
		case !again:
			require.NotNil(m.tb, s.cleaner, "4: another one looks")
		}
		if !again {
			s.endCleaning(m.cleaners[i])
			m.cleaners = append(m.cleaners[:i], m.cleaners[i+1:]...)
		}
	})
}

func (m *seatModel) end() {
	for m.waiting > 0 {
		m.exit(true)
	}
	if m.releasing > 0 {
		m.released(true)
	}
	m.now = m.now.Add(time.Minute)
	for len(m.cleaners) > 0 {
		m.clean(rand.New(rand.NewPCG(0, 0)))
	}
	m.at(func(s *seat) { s.forget(m.rev) })
	require.Empty(m.tb, m.seats.of, "5")
}

func TestSeatOfThoseWhoDontWait(t *testing.T) {
	s := &seats{of: map[string]*seat{}}
	late := ticket{"name/1", 5}
	s.at("name/1", func(s *seat) {
		s.users++
		require.True(t, s.doomUnwanted(late), "who tries waits with nothing")
		require.Nil(t, s.grant(late))
	})
	require.Len(t, s.of, 1, "a late grant must still be refused")
	s.at("name/1", func(s *seat) {
		require.Nil(t, s.grant(late))
		s.users--
	})
	require.Empty(t, s.of)
}

func TestSeatOfOneCleaner(t *testing.T) {
	now := time.Now()
	s, one, two := &seat{unsure: now.Add(time.Hour)}, make(chan struct{}), make(chan struct{})
	require.True(t, s.cleanAgain(one, now, nil))
	require.False(t, s.cleanAgain(two, now, nil), "one looks for all")
	require.True(t, s.cleanAgain(one, now.Add(2*time.Hour), context.Canceled), "it has not seen the key")
	s.endCleaning(two)
	require.False(t, s.cleanAgain(two, now, nil))
	s.endCleaning(one)
	require.True(t, s.cleanAgain(two, now, nil))
	require.False(t, s.cleanAgain(two, now.Add(2*time.Hour), nil), "it is sure")
	require.True(t, s.unsure.IsZero())
}

// A clean-up that is done leaves its place at once, and not only when its goroutine ends.
func TestSeatOfACleanerThatIsDone(t *testing.T) {
	now := time.Now()
	s, one, two := &seat{unsure: now}, make(chan struct{}), make(chan struct{})
	require.True(t, s.cleanAgain(one, now.Add(-time.Second), nil))
	require.False(t, s.cleanAgain(one, now, nil), "it is sure")
	s.doubt(now.Add(time.Hour))
	require.True(t, s.cleanAgain(two, now, context.Canceled), "nobody else looks")
}

func TestSeatWhoseLeaseHasEndedLooksNoMore(t *testing.T) {
	s := &seat{}
	s.miss(time.Now(), time.Hour, func() {})
	s.later.Stop()
	s.lookNoMore()          // one look has asked for the lease
	s.lookLater(time.Now()) // another one asked before
	require.Nil(t, s.later)
}

func TestSeatLooksEverMoreRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, began := &seats{of: map[string]*seat{}}, time.Now()
		var looks []time.Duration // the mutex of the seats guards these two
		ended := false
		look := func() {
			s.at("name/1", func(s *seat) {
				looks = append(looks, time.Since(began)/time.Second)
				if ended {
					s.lookNoMore()
					return
				}
				s.lookLater(time.Now())
				require.True(t, s.dirty())
				s.cleanAgain(nil, time.Now(), nil)
			})
		}
		at := func(second time.Duration, f func(s *seat)) {
			<-time.After(time.Until(began.Add(second * time.Second)))
			s.at("name/1", f)
		}
		at(0, func(s *seat) { s.miss(time.Now(), 5*time.Second, look) })
		at(45, func(s *seat) {
			require.Equal(t, []time.Duration{5, 10, 20, 40}, looks)
			s.miss(time.Now(), 5*time.Second, look)
		})
		at(56, func(*seat) {
			require.Equal(t, []time.Duration{5, 10, 20, 40, 50, 55}, looks, "for the latest one")
			ended = true
		})
		at(1000, func(*seat) { require.Len(t, looks, 7) })
		require.Empty(t, s.of, "nothing is left of a session that has ended")
	})
}

// A ticket that a newer one of the same key has outlived is gone.
func TestSeatGrantsNoOlderTicket(t *testing.T) {
	s := &seat{}
	first := s.grant(ticket{"name/1", 5})
	require.Same(t, first, s.grant(ticket{"name/1", 5}), "all handles share a grant")
	second := s.grant(ticket{"name/1", 7})
	require.True(t, first.over.Err() != nil)
	require.False(t, second.over.Err() != nil)
	require.Nil(t, s.grant(ticket{"name/1", 5}))
}

// Of two acquisitions of one handle, the one that was granted the older ticket may come last.
func TestAnOwnershipKeepsTheNewestGrant(t *testing.T) {
	o := &ownership{}
	older, newer := newGrant(ticket{"name/1", 5}), newGrant(ticket{"name/1", 7})
	o.take(newer, nil)
	o.take(older, nil)
	require.Same(t, newer, o.held)
	newer.setOver()
	o.take(older, nil)
	require.Same(t, older, o.held)
}

// The release of an old ticket, which may come late, takes nothing back.
func TestSeatRemembersTheNewestDeletion(t *testing.T) {
	s := &seat{}
	s.doom(ticket{"name/1", 7})
	s.doom(ticket{"name/1", 5})
	require.Nil(t, s.grant(ticket{"name/1", 6}))
	require.NotNil(t, s.grant(ticket{"name/1", 8}))
}

// Sessions on one lease and one client share what they know, until none is left.
func TestSeatsOfALease(t *testing.T) {
	client := &v3.Client{}
	p := sharedOf(client).seatsOf(1)
	runtime.GC()
	require.Same(t, p, sharedOf(client).seatsOf(1), "they are still in use")
	require.NotSame(t, p, sharedOf(client).seatsOf(2))
	require.NotSame(t, p, sharedOf(&v3.Client{}).seatsOf(1))
	runtime.KeepAlive(p)
	etcdtest.Eventually(t, func() bool {
		runtime.GC()
		registry.mu.Lock()
		defer registry.mu.Unlock()
		return registry.of.of[weak.Make(client)].Value() == nil
	}, "they are forgotten")
	runtime.KeepAlive(client)
}

// What nobody refers to any more is swept out when the map grows.
func TestWeakMapSweepsItself(t *testing.T) {
	var m weakMap[int, [64]byte]
	kept := m.get(-1, func() *[64]byte { return new([64]byte) })
	for n := range 10_000 {
		if m.get(n, func() *[64]byte { return new([64]byte) }); n%100 == 0 {
			runtime.GC()
		}
		require.Less(t, len(m.of), 1000)
	}
	require.Same(t, kept, m.get(-1, nil))
}

// A process that was stopped looks at a context before any timer or goroutine of its own has
// run. The first look says that the ownership is over: its deadline has passed, or another
// handle has released the ticket.
func TestOwnershipContextsLookAtTheClock(t *testing.T) {
	for how, end := range map[string]func(l *lease, g *grant){
		"the deadline": func(l *lease, _ *grant) {
			l.clock.mu.Lock()
			defer l.clock.mu.Unlock()
			l.clock.deadline = time.Now()
		},
		"the grant": func(_ *lease, g *grant) { g.setOver() },
	} {
		t.Run(how, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			l := &lease{client: v3.NewCtxClient(t.Context()), ends: ends{done: make(chan struct{}), end: cancel}}
			l.ctx = &punctual{ctx, l.expire}
			l.lost, l.setLost = context.WithCancelCause(t.Context())
			l.clock.deadline, l.clock.timer = time.Now().Add(time.Hour), time.NewTimer(time.Hour)
			l.closed = true // nothing watches
			o := &ownership{queue: newQueue(&Session{ctx: l.ctx, lease: l}, "name"), released: lockReleased}
			acquire := func() (*grant, error) {
				o.held = newGrant(ticket{"name/1", 1})
				return o.held, nil
			}
			l.seats = &seats{of: map[string]*seat{}}
			_ = o.during(t.Context(), acquire, func(work context.Context) error {
				owned := o.context()
				require.NoError(t, owned.Err())
				require.NoError(t, work.Err())
				end(l, o.held)
				require.Error(t, work.Err())
				require.ErrorIs(t, context.Cause(work), ErrSessionExpired)
				require.Error(t, owned.Err())
				require.ErrorIs(t, context.Cause(owned), ErrSessionExpired)
				l.setLost(nil) // so that the release makes no call
				return nil
			})
		})
	}
}
