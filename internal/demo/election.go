package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
)

const (
	electionName = "election"
	candidates   = 3
)

// A race is one election, and what was seen of it.
type race struct {
	*demo
	name string
	seen chan struct{} // the observer has seen another leader

	mu       sync.Mutex // guards the fields below
	leaders  []string
	observed []string
	slowest  time.Duration // from the end of a lease until its session told
}

// election lets candidates succeed leaders that die.
func (d *demo) election(ctx context.Context) error {
	d.heading("Election", "%d candidates. The lease of each leader but the last is revoked, as if its process\n"+
		"had died: the next one leads at once, and the deposed one hears of it from its session.", candidates)
	sessions, err := d.join(candidates+1, "candidate")
	if err != nil {
		return err
	}
	r := &race{demo: d, name: d.prefix + electionName, seen: make(chan struct{})}
	var observer sync.WaitGroup
	defer observer.Wait()
	watching, stop := context.WithCancel(ctx)
	defer stop()
	observer.Go(func() { r.observe(watching, sessions[candidates]) })

	var order []string
	for i := range candidates {
		order = append(order, fmt.Sprintf("candidate %d", i+1))
	}
	err = together(ctx, candidates, func(ctx context.Context, i int) error {
		if err := r.line(ctx, i); err != nil {
			return err
		}
		return r.stand(ctx, order[i], sessions[i])
	})
	if err != nil {
		return fmt.Errorf("election: %w", err)
	}
	d.check("led in order of candidacy", slices.Equal(r.leaders, order),
		"%s", strings.Join(r.leaders, ", "))
	d.check("each leader was observed", slices.Equal(r.observed, r.leaders),
		"%s", strings.Join(r.observed, ", "))
	d.check("the deposed heard of it", r.slowest <= ttl*time.Second, "after %s at most", ms(r.slowest))
	return nil
}

// stand is the career of a candidate: it leads until the others stand in line
// and the observer has seen it. Then it dies, or resigns if it is the last.
func (r *race) stand(ctx context.Context, who string, s *concurrency.Session) error {
	e := concurrency.NewElection(s, r.name)
	r.event(who, "campaigns")
	if err := e.Campaign(ctx, who); err != nil {
		return err
	}
	r.event(who, "leads, with the key of revision %d", e.Rev())
	r.mu.Lock()
	r.leaders = append(r.leaders, who)
	others := candidates - len(r.leaders)
	r.mu.Unlock()
	if err := r.line(ctx, 1+others); err != nil {
		return err
	}
	if _, err := receive(ctx, r.seen); err != nil {
		return err
	}
	if others > 0 {
		return r.die(ctx, who, s)
	}
	r.event(who, "resigns")
	return e.Resign(ctx)
}

// die takes a leader's lease away, from outside, and waits for it to notice.
func (r *race) die(ctx context.Context, who string, s *concurrency.Session) error {
	r.event(who, "dies: its lease is revoked")
	died := r.now()
	if _, err := r.client.Revoke(ctx, s.Lease()); err != nil {
		return err
	}
	if _, err := receive(ctx, s.Done()); err != nil {
		return err
	}
	late := r.now() - died
	r.event(who, "hears that its session ended, %s later", ms(late))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slowest = max(r.slowest, late)
	return nil
}

// observe tells of each change of the leader until ctx ends.
func (r *race) observe(ctx context.Context, s *concurrency.Session) {
	var leader string
	for resp := range concurrency.NewElection(s, r.name).Observe(ctx) {
		name := string(resp.Kvs[0].Value)
		if name == leader {
			continue
		}
		leader = name
		r.event("observer", "sees %s lead", leader)
		r.mu.Lock()
		r.observed = append(r.observed, leader)
		r.mu.Unlock()
		select {
		case r.seen <- struct{}{}:
		case <-ctx.Done():
		}
	}
}

// line waits until n candidates stand in line.
func (r *race) line(ctx context.Context, n int) error {
	look := time.NewTicker(2 * time.Millisecond)
	defer look.Stop()
	for {
		resp, err := r.client.Get(ctx, r.name+"/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil || resp.Count == int64(n) {
			return err
		}
		<-look.C
	}
}

// receive is the next value of a channel, if it comes before ctx ends.
func receive[T any](ctx context.Context, from <-chan T) (value T, err error) {
	select {
	case value = <-from:
		return value, nil
	case <-ctx.Done():
		return value, context.Cause(ctx)
	}
}
