package concurrency

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// This file decides who makes way for whom when transactions conflict. No correctness rests
// on it, because the servers decide about every commit.
//
//	what happens                           what the transaction does
//	------------------------------------   -------------------------------------------------
//	another of this client is committing   It waits for that answer, which may tell it that
//	over a key that has a contest          its values are old. Then it runs again at once,
//	                                       without a proposal in vain. Of those that wait, the
//	                                       oldest goes first. If no answer comes, it commits beside.
//	its commit conflicts                   It runs again at once, on the values of the answer.
//	                                       Its key has a contest from now on, see [contest].
//	the first conflict, while servers      It makes way: it pauses, once, for as long as some
//	are busy and this client often loses   commits take, and then reads anew.
//
// Nobody waits for a function that runs for longer than a commit takes. So nobody waits for the
// transaction around it.

// contention is what the transactions of one client know of each other and of those of
// other clients.
type contention struct {
	mu       sync.Mutex               // guards the fields below, all contests and contenders; never held across a wait
	contests weakMap[string, contest] // by the key over which transactions have conflicted
	last     uint64                   // the number of the newest contender
	least    time.Duration            // the shortest time that a read has taken, which rises slowly
	slowness float64                  // of the latest reads, in units of the least
	courtesy float64                  // for how many commits a transaction makes way
}

// A read waits for the servers' processors but not for their disks. So a read that takes
// longer than the least shows that servers are busy. In that case alone proposals in vain
// keep others from committing: while only the way or the disk is long, a server takes many
// proposals at once. The figures are in PERFORMANCE.md.
const (
	busy      = 1.25    // times the least that the latest reads take
	recent    = 4       // reads that count as the latest
	forgotten = 256     // reads after which the least has forgotten a better way
	fair      = 4       // conflicts of one transaction that are no reason for more courtesy
	tardy     = 8       // times what the last commit took, after which nobody waits for a commit
	milder    = 1. / 10 // of the courtesy is given up by a commit after fewer conflicts, or while servers are not busy
)

// contest is the transactions of one client that conflict over one key. One commits at a
// time. A contest exists while one of its transactions runs.
type contest struct {
	taken   bool          // a commit is under way
	waiting []*contender  // to commit, the oldest first
	news    any           // what the last answer said
	took    time.Duration // how long the last commit took
	turns   int           // commits that have begun
}

// contender is one transaction, as contention sees it.
type contender struct {
	*contention

	number uint64        // smaller for older transactions
	called chan struct{} // closed when it may commit

	// Only the transaction's own goroutine touches what follows.
	contest *contest      // that it is in; nil: none
	inside  bool          // it may commit, and nobody else in the contest
	returns bool          // it leaves to run again at once
	began   time.Time     // when its commit began
	losses  int           // how many of its commits have conflicted
	pause   time.Duration // before the next attempt
}

// newContender makes a transaction known, the youngest of all.
func (all *contention) newContender() *contender {
	all.mu.Lock()
	defer all.mu.Unlock()
	all.last++
	return &contender{contention: all, number: all.last}
}

// enter is called before a commit over the keys. If there is a contest over one of them, it
// waits until the transaction may commit. It returns what the last answer in that contest said,
// or nil if there was none. It also returns when ctx ends, or when the commit of another takes too
// long. Then the transaction has no turn, and commits beside the contest. The caller leaves after the
// commit. A contender is in one contest at most, so contenders never wait for each other in a circle.
// While a contender that returns is expected, whoever comes first commits, a newcomer too.
func (c *contender) enter(ctx context.Context, keys []string) (news any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer func() { c.began = time.Now() }()
	c.contest, c.returns = nil, false
	for _, key := range keys {
		if c.contest = c.contests.of[key].Value(); c.contest != nil {
			break
		}
	}
	if c.contest == nil || c.contest.taken && !c.wait(ctx) {
		return nil
	}
	c.contest.taken, c.inside = true, true
	c.contest.turns++
	return c.contest.news
}

// wait reports whether the contender may commit. The caller holds the lock, which is free
// while this waits.
func (c *contender) wait(ctx context.Context) bool {
	q := c.contest
	i, _ := slices.BinarySearchFunc(q.waiting, c.number, func(w *contender, number uint64) int {
		return int(w.number) - int(number)
	})
	q.waiting, c.called = slices.Insert(q.waiting, i, c), make(chan struct{})
	for {
		turns, late := q.turns, time.NewTimer(q.late())
		c.mu.Unlock()
		select {
		case <-c.called:
		case <-late.C:
		case <-ctx.Done():
		}
		late.Stop()
		c.mu.Lock()
		// A contender that may commit is in the line no more, even if ctx has ended too.
		if i = slices.Index(q.waiting, c); i < 0 {
			return true
		}
		// The commit under way may have gone to a member that is silent. This one goes to another.
		if ctx.Err() != nil || q.turns == turns {
			q.waiting = slices.Delete(q.waiting, i, i+1)
			return false
		}
	}
}

// late is the time after which a commit counts as one without an answer: several times what the last
// one took. A look is sent again after a time, too, and nobody waits for a commit for longer than that.
func (q *contest) late() time.Duration {
	return min(max(longestPause, tardy*q.took), againAfter(patience))
}

// leave lets the oldest that waits commit. If the contender runs its function again and
// will commit at once, the others would only run theirs in vain. So the others wait for the
// time of a commit. If the contender has not come back by then, its function is slow, and
// the next one commits.
func (c *contender) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.inside {
		// It was in no contest, or ctx ended first. So it has nothing to give on.
		return
	}
	q := c.contest
	q.taken, c.inside = false, false
	switch {
	case !c.returns:
		q.next()
	case len(q.waiting) > 0:
		// Nobody stops the timer. If somebody commits when it fires, next does nothing.
		time.AfterFunc(q.took, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			q.next()
		})
	}
}

// next lets the oldest that waits commit, unless somebody commits. The caller holds the
// lock.
func (q *contest) next() {
	if q.taken || len(q.waiting) == 0 {
		return
	}
	q.taken = true
	close(q.waiting[0].called)
	q.waiting = slices.Delete(q.waiting, 0, 1)
}

// read is told how long a read took.
func (c *contender) read(took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.least == 0 || took < c.least {
		// Where time is virtual, a read may take none. The division below needs more than zero.
		c.least = max(took, 1)
	}
	// The least rises slowly, so that it fits a connection that has become slower for good.
	c.least += (took - c.least) / forgotten
	c.slowness += (float64(took)/float64(c.least) - c.slowness) / recent
}

// answered notes the answer to the commit for those who come next. The caller holds the
// lock.
func (c *contender) answered(news func() any) (took time.Duration) {
	took = time.Since(c.began)
	// A transaction that commits beside the contest tells it nothing.
	if c.inside {
		c.contest.news, c.contest.took = news(), took
	}
	return took
}

// won is told of a commit, and what it leaves. A transaction that has conflicted often
// makes the later ones of this client more courteous.
func (c *contender) won(news func() any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answered(news)
	// Courtesy belongs to the client. A transaction learns it too late for itself, because it
	// pauses after its first conflict only.
	if c.losses > fair && c.slowness > busy {
		c.courtesy += max(1, float64(c.losses-fair)/2)
	} else {
		c.courtesy -= c.courtesy * milder
	}
}

// lost is told of a conflict over keys, and what its answer says.
func (c *contender) lost(keys []string, news any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	took := c.answered(func() any { return news })
	if !c.inside && len(keys) > 0 {
		// Contests begin here. Without a conflict, nobody waits for anybody.
		c.contest = c.contests.get(keys[0], func() *contest { return &contest{} })
	}
	// Only the first conflict makes it pause. Transactions that have waited longer go before
	// those that have just begun.
	c.losses++
	if c.losses == 1 && c.courtesy >= 0.5 && c.slowness > busy {
		c.pause = time.Duration(c.courtesy * float64(took) * (0.5 + rand.Float64()))
	}
	c.returns = c.pause == 0
}

// makeWay makes way for others, if that is due, and reports whether it did.
func (c *contender) makeWay(ctx context.Context) bool {
	pause := c.pause
	if c.pause = 0; pause > 0 {
		sleep(ctx, forever, pause)
	}
	return pause > 0
}
