package concurrency

import (
	"context"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	v3 "go.etcd.io/etcd/client/v3"
)

var policy = func() (p struct {
	null, noline, nopause, herd bool
	alpha, from, cap, pow       float64
}) {
	p.alpha, p.from, p.cap, p.pow = 1, 2, 64, 2
	for _, f := range strings.Split(os.Getenv("POLICY"), ",") {
		k, v, _ := strings.Cut(f, "=")
		x, _ := strconv.ParseFloat(v, 64)
		switch k {
		case "null":
			p.null = true
		case "noline":
			p.noline = true
		case "nopause":
			p.nopause = true
		case "herd":
			p.herd = true
		case "alpha":
			p.alpha = x
		case "from":
			p.from = x
		case "cap":
			p.cap = x
		case "pow":
			p.pow = x
		}
	}
	return
}()

// contention is what the transactions of one client know of each other.
type contention struct {
	mu    sync.Mutex            // guards the fields below, and all lines and contenders
	lines weakMap[string, line] // by the key over which transactions have conflicted
	least time.Duration         // that a commit has taken of late
	last  uint64                // the number of the newest contender
}

// line is the transactions of one client that conflict over one key. One of them commits
// at a time.
type line struct {
	busy    bool         // a commit is under way
	waiting []*contender // the oldest transaction first
	news    any          // what the last answer to a commit said
	took    time.Duration
	timer   *time.Timer
}

// contender is one transaction.
type contender struct {
	*contention

	number  uint64 // the older, the smaller
	line    *line  // nil: no conflict so far
	turn    chan struct{}
	began   time.Time // the commit
	inside  bool
	returns bool
	losses  int
	pause   time.Duration
}

func newContender(client *v3.Client) *contender {
	c := &contender{contention: &sharedOf(client).contention}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last++
	c.number = c.last
	return c
}

// enter waits for the turn.
func (c *contender) enter(ctx context.Context, keys []string) (news any) {
	if policy.null {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.returns = false
	c.began = time.Now()
	c.line = nil
	for _, key := range keys {
		if l := c.lines.of[key].Value(); l != nil {
			c.line = l
			break
		}
	}
	l := c.line
	if l == nil || policy.noline {
		c.line = nil
		return nil
	}
	if l.busy {
		i, _ := slices.BinarySearchFunc(l.waiting, c, func(a, b *contender) int { return int(a.number) - int(b.number) })
		l.waiting = slices.Insert(l.waiting, i, c)
		c.turn = make(chan struct{})
		c.mu.Unlock()
		select {
		case <-c.turn:
			c.mu.Lock()
		case <-ctx.Done():
			c.mu.Lock()
			if i := slices.Index(l.waiting, c); i >= 0 {
				l.waiting = slices.Delete(l.waiting, i, i+1)
				return nil
			}
		}
	}
	l.busy, c.inside = true, true
	if l.timer != nil {
		l.timer.Stop()
	}
	c.began = time.Now()
	return l.news
}

func (c *contender) leave() {
	if policy.null {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.inside {
		return
	}
	c.inside = false
	c.line.busy = false
	if c.returns && !policy.herd {
		l := c.line
		if len(l.waiting) > 0 {
			l.timer = time.AfterFunc(l.took, func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				l.next()
			})
		}
		return
	}
	c.line.next()
}

func (l *line) next() {
	if l.busy || len(l.waiting) == 0 {
		return
	}
	w := l.waiting[0]
	l.waiting = slices.Delete(l.waiting, 0, 1)
	l.busy = true
	close(w.turn)
}

func (c *contender) outdated() { c.returns = true }

func (c *contender) answered() (took time.Duration) {
	took = time.Since(c.began)
	if c.inside {
		c.line.took = took
	}
	if c.least == 0 || took < c.least {
		c.least = took
	} else {
		c.least += (took - c.least) / 64
	}
	return took
}

func (c *contender) won(news func() any) {
	if policy.null {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answered()
	if c.inside {
		c.line.news = news()
	}
}

func (c *contender) lost(keys []string, news any) {
	if policy.null {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	took := c.answered()
	c.losses++
	if c.inside {
		c.line.news = news
	} else if len(keys) > 0 {
		c.line = c.lines.get(keys[0], func() *line { return &line{} })
	}
	c.pause = 0
	q := float64(took) / float64(c.least)
	if !policy.nopause && q > 1 && float64(c.losses) >= policy.from {
		e := float64(took - c.least)
		p := e
		if policy.pow > 1 {
			p = e * (q - 1)
		}
		c.pause = time.Duration(rand.Float64() * min(policy.alpha*p, policy.cap*float64(c.least)))
	}
	c.returns = c.pause == 0
}

// rest makes way for other clients' transactions.
func (c *contender) rest(ctx context.Context) bool {
	if c.pause == 0 {
		return false
	}
	sleep(ctx, forever, c.pause)
	c.pause = 0
	return true
}
