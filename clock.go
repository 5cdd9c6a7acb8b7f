package concurrency

import (
	"context"
	"sync"
	"time"
)

// A session owns until its deadline at the latest. The servers end the lease no earlier, because they
// count the TTL from a later moment than extend does. That takes clocks that run at about one rate.

// clock says until when a session may live: the margin before its lease could end.
type clock struct {
	ttl, margin time.Duration // ttl as granted

	mu       sync.Mutex // guards what follows
	deadline time.Time
	timer    *time.Timer // fires at the deadline; nil: the session is being opened
	stopped  bool        // the session has ended, and the deadline means nothing
}

// start has expire called at the deadline. The deadline may be moved meanwhile.
func (c *clock) start(expire func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.stopped {
		c.timer = time.AfterFunc(time.Until(c.deadline), expire)
	}
}

// extend moves the deadline to the TTL, less the margin, after the time at which the answered renewal
// was sent. The server can't have counted from an earlier moment. Once the session is open, a
// deadline that has passed stays, even if nobody has looked yet.
func (c *clock) extend(sent time.Time, ttl time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	deadline := sent.Add(ttl - c.margin)
	if c.stopped || !deadline.After(c.deadline) {
		return
	}
	if c.timer != nil {
		// Somebody may have been told already that the session has ended.
		if !time.Now().Before(c.deadline) {
			return
		}
		c.timer.Reset(time.Until(deadline))
	}
	c.deadline = deadline
}

// passed reports whether the deadline ends the session now. A session that is being opened,
// or has ended, has no deadline.
func (c *clock) passed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.timer != nil && !c.stopped && !time.Now().Before(c.deadline)
}

// stop forgets the deadline, because the session has ended.
func (c *clock) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	if c.timer != nil {
		c.timer.Stop()
	}
}

// until is the deadline.
func (c *clock) until() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.deadline
}

// left is what the lease itself may have left to live.
func (c *clock) left() time.Duration { return time.Until(c.until()) + c.margin }

// punctual is a context that does not rely on timers. A process may be stopped. When it
// goes on, it may look at a context before the timer has run that ends the context. So Err
// looks at the clock first, and ends the context if it is time. context.Cause looks too,
// because it asks Err. The look also closes the Done channel.
//
// The same does not hold for contexts that a program derives from it. Those end when the
// timer runs.
type punctual struct {
	context.Context
	endIfDue func()
}

// Err is nil while the context may live.
func (c *punctual) Err() error {
	if err := c.Context.Err(); err != nil {
		return err
	}
	c.endIfDue()
	return c.Context.Err()
}

// seconds is what etcd counts lives of leases in.
func seconds(n int64) time.Duration { return time.Duration(n) * time.Second }
