package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/history"
)

// healed waits until the cluster is as it was before the faults.
func (r *run) healed() error {
	for _, s := range r.stations {
		s.heal()
	}
	ctx, cancel := context.WithTimeout(context.Background(), settling)
	defer cancel()
	for {
		if _, err := r.admin.Put(ctx, endKey, ""); err == nil {
			return nil
		} else if !pause(ctx, retryPause) {
			return fmt.Errorf("the cluster did not recover within %v: %w", settling, err)
		}
	}
}

// everyNameIsFree takes every lock and wins every election within twice the TTL, in turn
// with those who go on working, and sees RunLeader run its functions again meanwhile. What
// the dead left behind has expired by then. The same limit has been enough for RunLeader,
// which has to notice by itself that its session is lost.
func (r *run) everyNameIsFree() {
	limit := 2*lifetime + r.grace
	led := r.led.Load()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	s, err := concurrency.NewSession(r.prober, concurrency.WithTTL(int(settling/time.Second)))
	if err != nil {
		r.violate("liveness", history.Here, "NewSession: %v", err)
		return
	}
	defer s.Close()
	var wg sync.WaitGroup
	for _, name := range slices.Concat(locks, elections, []string{runElection}) {
		wg.Go(func() {
			m := concurrency.NewMutex(s, name)
			if err := m.Lock(ctx); err != nil {
				r.violate("liveness", r.here(), "%q could not be locked within %v after the faults: %v", name, limit, err)
			} else if err := m.Unlock(ctx); err != nil && ctx.Err() == nil {
				r.violate("liveness", history.Here, "Unlock of %q: %v", name, err)
			}
		})
	}
	for !r.upstream && r.led.Load() == led {
		if !pause(ctx, retryPause) {
			r.violate("liveness", history.Here, "no RunLeader of %q led within %v after the faults", runElection, limit)
			break
		}
	}
	wg.Wait()
}

// observersKnow makes one more leader for each election, of whom every observer must hear.
func (r *run) observersKnow(latests map[string][]*latest) {
	s, err := concurrency.NewSession(r.prober)
	if err != nil {
		r.violate("liveness", history.Here, "NewSession: %v", err)
		return
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(context.Background(), settling)
	defer cancel()
	for name, observers := range latests {
		value := "the last leader of " + name
		if err := concurrency.NewElection(s, name).Campaign(ctx, value); err != nil {
			r.violate("liveness", history.Here, "Campaign for %q: %v", name, err)
			continue
		}
		for _, o := range observers {
			for o.get() != value {
				if !pause(ctx, retryPause) {
					r.violate("observer", o.who.Package, "%v observes %q, was told %q last, and not %q",
						o.who, name, o.get(), value)
					break
				}
			}
		}
	}
}

// nothingIsLeft checks that sessions that have ended leave nothing, even while their clients
// live on: in etcd no key that stands in line, no lease, and no watcher; in this process no
// goroutine of the package's. It also has the total of the accounts read a last time.
func (r *run) nothingIsLeft() error {
	ctx, cancel := context.WithTimeout(context.Background(), settling)
	defer cancel()
	if err := r.total(ctx); err != nil {
		return err
	}
	end, err := r.admin.Put(ctx, endKey, "")
	if err != nil {
		return err
	}
	if err := r.audit.until(ctx, end.Header.Revision); err != nil {
		return err
	}
	var left leftovers
	for {
		now, err := r.left(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			return err
		case err == nil && now == (leftovers{}):
			r.leftGoroutines()
			return nil
		case err == nil:
			left = now
		}
		if !pause(ctx, 5*retryPause) {
			return r.leftToClients(left)
		}
	}
}

// leftToClients judges what is still left while the clients live. A watcher that goes with its
// client, and with no goroutine of the package's behind it, is the client's own: one that it
// gave up before the server had confirmed it is cancelled by the end of its stream only, and
// the stream doesn't end either (client/v3 watch.go, resuming).
func (r *run) leftToClients(left leftovers) error {
	r.leftGoroutines()
	for _, s := range r.stations {
		s.client.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), settling)
	defer cancel()
	pause(ctx, lifetime/2) // servers notice; leases that somebody keeps alive live on
	later, err := r.left(ctx)
	if err != nil {
		return err
	}
	if later != (leftovers{}) || left.keys > 0 || left.leases > 0 {
		r.violate("leftover", r.here(), "%v after the end there are still %v; with all clients closed, %v",
			settling, left, later)
	}
	return nil
}

// total reads the accounts as they are at the end.
func (r *run) total(ctx context.Context) error {
	resp, err := r.admin.Get(ctx, root+accountArea, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	var values []string
	for _, kv := range resp.Kvs {
		values = append(values, string(kv.Value))
	}
	r.noteTotal(history.Who{Client: operator, Package: r.here()}, values)
	return nil
}

// leftovers are what is left in etcd.
type leftovers struct{ keys, leases, watchers int }

// String names them in a report.
func (l leftovers) String() string {
	return fmt.Sprintf("%d keys, %d leases, %d watchers", l.keys, l.leases, l.watchers)
}

// left counts what is left. The auditor has a watcher, unless it is about to begin another.
func (r *run) left(ctx context.Context) (leftovers, error) {
	keys, err := r.admin.Get(ctx, root+lineArea, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return leftovers{}, err
	}
	leases, err := r.admin.Leases(ctx)
	if err != nil {
		return leftovers{}, err
	}
	watchers, err := r.cluster.Watchers()
	if err != nil {
		return leftovers{}, err
	}
	return leftovers{int(keys.Count), len(leases.Leases), max(watchers-1, 0)}, nil
}

// leftGoroutines looks for goroutines of the package when all sessions are closed.
func (r *run) leftGoroutines() {
	const frame = "example.com/etcd/concurrency."
	ctx, cancel := context.WithTimeout(context.Background(), settling)
	defer cancel()
	for {
		text := stacks()
		if !strings.Contains(text, frame) {
			return
		}
		if !pause(ctx, retryPause) {
			_ = os.WriteFile(filepath.Join(r.dir, "stacks.txt"), []byte(text), 0o644)
			r.violate("leftover", history.Here, "goroutines go on after the end of all sessions; see stacks.txt")
			return
		}
	}
}
