package concurrency

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	v3 "go.etcd.io/etcd/client/v3"
)

// at is a moment, in thirds of the life of a lease of 30 s.
func at(thirds float64) time.Time {
	return time.Unix(1e9, 0).Add(time.Duration(thirds * float64(10*time.Second)))
}

func kept(id v3.LeaseID) *renewal { return &renewal{id: id, interval: 10 * time.Second} }

// streamOf is a stream on which renewals were sent at these moments, and none answered.
func streamOf(k *renewal, thirds ...float64) *stream {
	s := &stream{opened: sends + 1, owed: map[v3.LeaseID][]sending{}, wake: make(chan struct{}, 1), cancel: func() {}}
	for _, t := range thirds {
		send(k, at(t), s)
	}
	return s
}

// sends counts the renewals of this file.
var sends int

// send puts one renewal into the queue of each stream.
func send(k *renewal, at time.Time, streams ...*stream) sending {
	sends++
	x := sending{k, at, sends}
	for _, s := range streams {
		s.add(x)
	}
	return x
}

func TestAnswersBelongToTheOldestRenewalOfTheirLease(t *testing.T) {
	one, two := kept(1), kept(2)
	s := streamOf(one, 0)
	send(two, at(0.5), s)
	send(one, at(1), s)
	send(one, at(1), s) // a clock may stand still
	answer := func(id v3.LeaseID, of *renewal, sent time.Time) {
		t.Helper()
		x, ok := s.answered(id)
		require.True(t, ok)
		require.Same(t, of, x.of)
		require.Equal(t, sent, x.at)
	}
	answer(1, one, at(0))
	answer(1, one, at(1))
	answer(2, two, at(0.5)) // etcd's proxy keeps the order for each lease only
	answer(1, one, at(1))
	_, ok := s.answered(1)
	require.False(t, ok, "what was not asked for")
	_, ok = s.answered(3)
	require.False(t, ok, "a lease that nobody keeps")
	require.Empty(t, s.owed)
}

func TestSessionsOnOneLeaseGetTheirOwnAnswers(t *testing.T) {
	former, resumed := kept(1), kept(1)
	s := streamOf(former, 0)
	send(resumed, at(0.1), s)
	x, _ := s.answered(1)
	require.Same(t, former, x.of)
	x, _ = s.answered(1)
	require.Same(t, resumed, x.of)
}

func TestALeaseThatIsNotKeptIsNotRenewed(t *testing.T) {
	one, two := kept(1), kept(2)
	s := streamOf(one, 0)
	send(two, at(0), s)
	again := kept(1)
	send(again, at(0.1), s)
	one.over = true
	require.EqualValues(t, 2, s.next())
	require.EqualValues(t, 1, s.next())
	require.EqualValues(t, v3.NoLease, s.next())
	x, ok := s.answered(1)
	require.True(t, ok)
	require.Same(t, again, x.of, "no answer is owed for what was not sent")
}

func TestWhenAnotherStreamIsOpened(t *testing.T) {
	k := kept(1)
	answering := func() *stream { return streamOf(k) }
	for _, c := range []struct {
		is      string
		streams []*stream
		now     float64
		open    bool
		instead int // -1: none
	}{
		{"none is open", nil, 0, true, -1},
		{"the only one has answered", []*stream{answering()}, 1, false, -1},
		{"the only one was asked a moment ago", []*stream{streamOf(k, 0.5)}, 1, false, -1},
		{"the only one has owed an answer for a third of the life", []*stream{streamOf(k, 0)}, 1, true, -1},
		{"the same, sent together with others a little earlier", []*stream{streamOf(k, 0)}, 0.9, true, -1},
		{"the second has answered", []*stream{streamOf(k, 0, 1), answering()}, 2, false, -1},
		{"the second is younger than that", []*stream{streamOf(k, 0, 1), streamOf(k, 1.5)}, 2, false, -1},
		{"both are silent", []*stream{streamOf(k, 0, 1), streamOf(k, 1)}, 2, true, -1},
		{"the first is slow, the second silent", []*stream{streamOf(k, 2), streamOf(k, 0, 1, 2)}, 3, false, -1},
		{"all six are silent", six(k, 0, 1, 1, 2, 2, 3), 4, true, 0},
		{"all six are slow", six(k, 2, 2, 2, 2, 2, 3), 4, false, -1},
	} {
		open, instead := another(c.streams, k, k.interval, at(c.now))
		require.Equal(t, c.open, open, c.is)
		if c.instead < 0 {
			require.Nil(t, instead, c.is)
		} else {
			require.Same(t, c.streams[c.instead], instead, c.is)
		}
	}
	require.False(t, first(another([]*stream{streamOf(kept(2), 0)}, k, k.interval, at(3))), "what it owes others does not matter")
	longer, all := kept(2), six(k, 0, 1, 1, 2, 2, 3)
	longer.interval *= 2
	send(longer, at(0), all...)
	require.False(t, first(another(all, k, k.interval, at(4))), "a lease that lives longer may have an answer in time")
	require.True(t, first(another(all, k, k.interval, at(6))), "the first is dead to both")
	send(kept(3), at(5.5), all...)
	require.True(t, first(another(all, k, k.interval, at(6))), "it is, to one that has just begun to wait, too")
	all = six(k, 0, 1, 1, 2, 2, 3)
	longer.over = true
	send(longer, at(0), all...)
	require.True(t, first(another(all, k, k.interval, at(4))), "nobody waits for the lease that lives longer")
}

func first(open bool, _ *stream) bool { return open }

// six are streams that owe an answer each since a time.
func six(k *renewal, since ...float64) (streams []*stream) {
	for _, at := range since {
		streams = append(streams, streamOf(k, at))
	}
	return streams
}

// While no member answers a lease, members are asked in quicker succession.
func TestStepsInSilence(t *testing.T) {
	k := kept(1)
	k.heard = at(0)
	require.Equal(t, k.interval, k.step(at(1)), "the renewal before this one was answered at once")
	require.Equal(t, k.interval/2, k.step(at(2)), "the renewal before this one was not answered")
	two := []*stream{streamOf(k, 0, 1), streamOf(k, 1)}
	require.False(t, first(another(two, k, k.interval, at(1.5))))
	require.True(t, first(another(two, k, k.interval/2, at(1.5))))
}

// In silence streams are opened in pairs. A client that reaches none of three members tries a
// fourth and a fifth while the lease lives.
func TestAnotherPairIsOpenedInSilence(t *testing.T) {
	k := kept(1)
	inUse, one, two := streamOf(k, 1), streamOf(k), streamOf(k)
	send(k, at(2), inUse, one, two)
	pair := []*stream{inUse, one, two}
	require.False(t, first(another(pair, k, k.interval/2, at(2.25))))
	require.True(t, first(another(pair, k, k.interval/2, at(2.5))), "five sixths of the life are over")
	one.opened--
	require.False(t, first(another(pair, k, k.interval/2, at(2.5))), "the third was opened after the second")
}

func TestTheSlowerStreamIsClosed(t *testing.T) {
	k, other := kept(1), kept(2)
	one := streamOf(k)
	early := send(k, at(1), one)
	alone := send(other, at(2), one) // at the same instant, but before the second was opened
	two := streamOf(k)
	two.opened = alone.nth + 1
	both := []*stream{one, two}
	x := send(k, at(2), both...)
	answers := func(s *stream, x sending) []*stream {
		t.Helper()
		s.remove(x)
		defer func() { s.owed[x.of.id] = append([]sending{x}, s.owed[x.of.id]...) }()
		return slower(both, s, x)
	}
	require.Empty(t, answers(one, early), "the first is slow, the second may be")
	require.Equal(t, []*stream{two}, answers(one, x), "the first is quicker again")
	require.Empty(t, answers(two, x), "two leases have only the first")
	k.proven = x.at
	require.Empty(t, answers(two, x), "one lease has only the first")
	send(other, at(3), both...)
	require.Empty(t, answers(two, x), "the lease was renewed on the second, but only the first owes an answer soon")
	other.proven = alone.at
	require.Equal(t, []*stream{one}, answers(two, x), "the second was quicker, and the first owes nothing that counts")
	one.remove(x)
	require.Empty(t, answers(two, x), "the first has answered before")
	require.Empty(t, slower(both, streamOf(k), x), "one that was closed")
}

func TestAStreamOwesNothingToASessionThatHasEnded(t *testing.T) {
	k, gone := kept(1), kept(2)
	one := streamOf(k, 0)
	send(gone, at(0), one)
	two := streamOf(k)
	x := send(k, at(1), one, two)
	two.remove(x)
	k.proven = x.at
	require.Empty(t, slower([]*stream{one, two}, two, x), "one lease has only the first")
	gone.over = true
	require.Equal(t, []*stream{one}, slower([]*stream{one, two}, two, x))
}

func TestAnAnswerClosesTheSlowerStream(t *testing.T) {
	k := kept(1)
	answered := time.Time{}
	k.answer = func(sent time.Time, _ time.Duration) { answered = sent }
	one, two := streamOf(k, 1), streamOf(k)
	two.opened = sends + 1
	send(k, at(2), one, two)
	r := &renewals{streams: []*stream{one, two}}
	r.answered(two, 1, time.Minute)
	require.Equal(t, at(2), answered)
	require.Equal(t, []*stream{two}, r.streams)
}

func TestARenewalIsSentWhetherTheOneBeforeWasAnsweredOrNot(t *testing.T) {
	k := kept(1)
	one, two := streamOf(k), streamOf(k)
	r := &renewals{streams: []*stream{one, two}, reopenAt: at(100)} // no other is opened
	for n := range 4 {
		k.heard = at(float64(n)) // of another renewal
		r.renew(k, at(float64(n)))
		require.Equal(t, at(float64(n+1)), k.due)
		require.Len(t, one.owed[1], n+1)
		require.Len(t, two.owed[1], n+1)
	}
}

// What will be due in a tenth of an interval is sent too. What may break the stream comes last.
func TestRenewalsAreSentTogether(t *testing.T) {
	for range 20 {
		now := time.Now()
		r := &renewals{reopenAt: now.Add(time.Hour), timer: time.AfterFunc(time.Hour, func() {}), kept: map[*renewal]struct{}{}}
		defer r.timer.Stop()
		s := streamOf(kept(1))
		r.streams = []*stream{s}
		for id, due := range []time.Duration{0, 0, 0, 900 * time.Millisecond, 5 * time.Second} {
			k := kept(v3.LeaseID(id + 1))
			k.due, k.suspect = now.Add(due), id == 1
			r.kept[k] = struct{}{}
		}
		r.send()
		require.Len(t, s.unsent, 4)
		require.EqualValues(t, 2, s.unsent[3].of.id)
		require.NotContains(t, s.owed, v3.LeaseID(5))
		require.WithinRange(t, r.wake, now, now.Add(5*time.Second))
	}
}

// A stream breaks while the renewals of two leases are not answered.
func TestWhatABrokenStreamOwedIsSentAgain(t *testing.T) {
	ks := []*renewal{kept(1), kept(2), kept(3), kept(4)}
	r := &renewals{timer: time.AfterFunc(time.Hour, func() {}), wake: time.Now().Add(time.Hour)}
	defer r.timer.Stop()
	s := streamOf(ks[0], 0)
	send(ks[1], at(0), s)
	send(ks[2], at(0), s)
	s.answered(1)
	beside := streamOf(ks[2], 0)
	r.streams = []*stream{s, beside}
	far := time.Now().Add(time.Hour)
	for _, k := range ks {
		k.due = far
	}
	before := time.Now()
	r.broke(s, context.Canceled)
	require.Equal(t, far, ks[0].due, "it was answered")
	require.WithinRange(t, ks[1].due, before, time.Now())
	require.Equal(t, far, ks[2].due, "another stream owes an answer")
	require.True(t, ks[1].suspect, "the first that was not answered")
	require.False(t, ks[2].suspect)
	require.WithinRange(t, r.wake, before, time.Now())
	require.Equal(t, []*stream{beside}, r.streams)
	require.False(t, r.reopenAt.Before(before.Add(refusalPause)))
	again := r.reopenAt
	r.broke(s, context.Canceled)
	require.Equal(t, again, r.reopenAt, "it breaks once")
}

// The timer had fired when the last lease left. Set again, it would keep the client alive.
func TestTheTimerIsNotSetForNobody(t *testing.T) {
	r := &renewals{}
	k := keeper{r, kept(1)}
	k.due = time.Now().Add(time.Hour)
	k.keep()
	k.leave()
	r.send()
	require.False(t, r.timer.Stop())
}

func TestPausesAfterFailuresGrow(t *testing.T) {
	for n, least := range map[int]time.Duration{
		1: 250 * time.Millisecond, 2: 375 * time.Millisecond, 3: 500 * time.Millisecond, 1000: 500 * time.Millisecond,
	} {
		for range 100 {
			d := afterFailures(n)
			require.GreaterOrEqual(t, d, least)
			require.LessOrEqual(t, d, least+least/8)
		}
	}
}

func TestACallThatRepeatsItselfIsCalledOff(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := &impatient{Context: ctx, cancel: cancel}
	for range mostAsked {
		require.NoError(t, c.Err())
	}
	require.Error(t, c.Err())
	child, stop := context.WithCancel(c)
	defer stop()
	require.Error(t, child.Err())
}

// The deadline is the latest of what all answers prove.
func TestTheDeadlineOfAClock(t *testing.T) {
	begun := time.Now()
	c := &clock{ttl: 30 * time.Second, margin: time.Second, deadline: begun.Add(29 * time.Second)}
	sent := func(s time.Duration) time.Time { return begun.Add(s * time.Second) }
	c.extend(sent(10), c.ttl)
	require.Equal(t, sent(39), c.until(), "from the sending, less the margin")
	c.extend(sent(5), c.ttl)
	require.Equal(t, sent(39), c.until(), "the answer to an older one comes later")
	c.extend(sent(20), 2*time.Second)
	require.Equal(t, sent(39), c.until(), "etcd's proxy may answer with what is left")
	c.extend(sent(20), c.ttl)
	require.Equal(t, sent(49), c.until())
	require.Equal(t, 30*time.Second, c.ttl, "that of the grant")
	c.stop()
	c.extend(sent(30), c.ttl)
	require.Equal(t, sent(49), c.until(), "the session has ended")
}
