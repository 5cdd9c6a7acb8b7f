package concurrency

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	v3 "go.etcd.io/etcd/client/v3"
)

var hot = []string{"hot"}

// contend runs a test in virtual time, with a client of its own.
func contend(t *testing.T, test func(t *testing.T, c *v3.Client)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		test(t, v3.NewCtxClient(ctx))
	})
}

// pass lets virtual time pass.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// clash is a contender that has met with a conflict over the key.
func clash(client *v3.Client) *contender {
	c := sharedOf(client).contention.newContender()
	c.lost(hot, nil)
	return c
}

// entry is an enter beside the test.
type entry struct {
	*contender
	news any
	done atomic.Bool // news can be read
}

func (c *contender) goEnter(ctx context.Context) *entry {
	e := &entry{contender: c}
	go func() {
		e.news = c.enter(ctx, hot)
		e.done.Store(true)
	}()
	synctest.Wait()
	return e
}

func said(news string) func() any { return func() any { return news } }

func TestTheOldestCommitsNext(t *testing.T) {
	contend(t, func(t *testing.T, client *v3.Client) {
		first, second, third := clash(client), clash(client), clash(client)
		require.Nil(t, first.enter(t.Context(), hot))
		late, early := third.goEnter(t.Context()), second.goEnter(t.Context())
		require.False(t, early.done.Load() || late.done.Load())
		first.won(said("of the first"))
		first.leave()
		synctest.Wait()
		require.True(t, early.done.Load(), "it is older, though it came later")
		require.Equal(t, "of the first", early.news)
		require.False(t, late.done.Load())
		early.lost(hot, "of another client")
		early.contender.returns = false
		early.leave()
		synctest.Wait()
		require.Equal(t, "of another client", late.news)
		late.leave()
		late.leave() // without a turn
		require.Equal(t, "of another client", sharedOf(client).contention.newContender().enter(t.Context(), []string{"cold", "hot"}))
		runtime.KeepAlive(late)
	})
}

// Who runs its function again has the time of a commit for that.
func TestASlowFunctionIsPassed(t *testing.T) {
	const commit = 40 * time.Millisecond
	for name, again := range map[string]func(c *contender){
		"its values are old": func(c *contender) { c.returns = true },
		"it has conflicted":  func(c *contender) { pass(commit); c.lost(hot, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			for _, function := range []time.Duration{commit / 2, 100 * commit} {
				contend(t, func(t *testing.T, client *v3.Client) {
					first, second, third := clash(client), clash(client), clash(client)
					first.enter(t.Context(), hot)
					a, b := second.goEnter(t.Context()), third.goEnter(t.Context())
					pass(commit)
					first.won(said("news"))
					first.leave()
					synctest.Wait()
					again(a.contender)
					a.leave()
					begin := time.Now()
					if function < commit {
						pass(function)
						require.False(t, b.done.Load())
						a.enter(t.Context(), hot)
						pass(10 * commit)
						require.False(t, b.done.Load(), "it commits")
						a.leave()
						synctest.Wait()
						require.True(t, b.done.Load())
						return
					}
					for !b.done.Load() {
						pass(time.Millisecond)
					}
					require.LessOrEqual(t, time.Since(begin), commit+time.Millisecond)
					b.leave()
				})
			}
		})
	}
}

func TestAWaitForTheTurnEndsWithItsContext(t *testing.T) {
	contend(t, func(t *testing.T, client *v3.Client) {
		first, second, third := clash(client), clash(client), clash(client)
		first.enter(t.Context(), hot)
		ctx, cancel := context.WithCancel(t.Context())
		gone, next := second.goEnter(ctx), third.goEnter(t.Context())
		cancel()
		synctest.Wait()
		require.True(t, gone.done.Load())
		require.False(t, gone.inside, "it has no turn")
		gone.leave()
		synctest.Wait()
		require.False(t, next.done.Load())
		first.leave()
		synctest.Wait()
		require.True(t, next.done.Load())
	})
}

func TestALongWaitAmongCommitsThatAreAnswered(t *testing.T) {
	contend(t, func(t *testing.T, client *v3.Client) {
		committing := clash(client)
		var waiting []*entry
		committing.enter(t.Context(), hot)
		for range 5 {
			waiting = append(waiting, clash(client).goEnter(t.Context()))
		}
		for _, next := range waiting {
			pass(longestPause / 2)
			require.False(t, next.done.Load())
			committing.leave()
			synctest.Wait()
			require.True(t, next.done.Load())
			require.True(t, next.inside)
			committing = next.contender
		}
		committing.leave()
	})
}

func TestAWaitForACommitWithoutAnAnswerEnds(t *testing.T) {
	contend(t, func(t *testing.T, client *v3.Client) {
		for took, bound := range map[time.Duration]time.Duration{
			0: longestPause, time.Second: tardy * time.Second, time.Minute: patience / 3,
		} {
			silent, other := clash(client), clash(client)
			silent.enter(t.Context(), hot)
			silent.contest.took = took
			wait := other.goEnter(t.Context())
			pass(bound - 1)
			require.False(t, wait.done.Load())
			pass(1)
			require.True(t, wait.done.Load())
			require.False(t, wait.inside, "it commits beside")
			silent.leave()
		}
	})
}

func TestNobodyWaitsWithoutAConflict(t *testing.T) {
	contend(t, func(t *testing.T, client *v3.Client) {
		other := sharedOf(client).contention.newContender()
		other.enter(t.Context(), hot) // no line: not even this one's
		c := sharedOf(client).contention.newContender()
		require.Nil(t, c.enter(t.Context(), hot))
		require.False(t, c.inside)
		c.lost(hot, nil)
		require.NotNil(t, c.contest)
		other.lost(nil, nil)
		require.Nil(t, other.contest, "nothing that it writes")

		// Nor for a line that nobody is in any more.
		runtime.KeepAlive(c)
		c.contest = nil
		runtime.GC()
		runtime.GC()
		require.Nil(t, sharedOf(client).contention.newContender().contests.of["hot"].Value())
		runtime.KeepAlive(other)
	})
}

func TestCourtesy(t *testing.T) {
	const read, commit = time.Millisecond, 10 * time.Millisecond
	// meet has a transaction end after n conflicts, of which each took the time of a commit, and
	// gives the pauses after them.
	meet := func(t *testing.T, client *v3.Client, n int) (pauses []time.Duration) {
		c := sharedOf(client).contention.newContender()
		for range n {
			c.enter(t.Context(), hot)
			pass(commit)
			c.lost(hot, nil)
			c.leave()
			begin := time.Now()
			rested := c.makeWay(t.Context())
			pauses = append(pauses, time.Since(begin))
			require.Equal(t, rested, time.Since(begin) > 0)
		}
		c.enter(t.Context(), hot)
		c.won(said(""))
		c.leave()
		return pauses
	}
	none := func(n int) []time.Duration { return make([]time.Duration, n) }
	slow := func(c *contender) {
		for range 20 {
			c.read(3 * read)
		}
	}
	contend(t, func(t *testing.T, client *v3.Client) {
		keep := sharedOf(client).contention.newContender() // keeps what is learned
		keep.read(read)
		require.Equal(t, none(50), meet(t, client, 50), "the servers are not busy")
		require.Equal(t, none(50), meet(t, client, 50))
		slow(keep)
		require.Equal(t, none(fair), meet(t, client, fair))
		require.Equal(t, none(fair), meet(t, client, fair), "conflicts as they are fair")
		require.Equal(t, none(fair+20), meet(t, client, fair+20), "nothing was known")
		require.InDelta(t, 10, keep.courtesy, 1e-9)
		for range 20 {
			keep.courtesy = 10
			pauses := meet(t, client, 3)
			require.GreaterOrEqual(t, pauses[0], 5*commit)
			require.LessOrEqual(t, pauses[0], 15*commit)
			require.Equal(t, none(2), pauses[1:], "once")
			require.InDelta(t, 9, keep.courtesy, 1e-9, "milder after few conflicts")
		}
		meet(t, client, fair+1)
		require.InDelta(t, 10, keep.courtesy, 1e-9, "one commit more at least")
		for range 40 {
			meet(t, client, 0)
		}
		require.Equal(t, none(3), meet(t, client, 3))

		// A way that has become longer is not a busy server for ever.
		keep.courtesy = 10
		for range 4 * forgotten {
			keep.read(3 * read)
		}
		require.Equal(t, none(1), meet(t, client, 1))
		keep.read(read)
		require.Equal(t, read, keep.least.Round(read/100), "the least is learned at once")
	})
}

func TestAPauseEndsWithItsContext(t *testing.T) {
	contend(t, func(t *testing.T, client *v3.Client) {
		c := sharedOf(client).contention.newContender()
		c.pause = time.Hour
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		require.True(t, c.makeWay(ctx))
		require.Equal(t, time.Second, time.Since(begin))
		require.False(t, c.makeWay(t.Context()))
	})
}
