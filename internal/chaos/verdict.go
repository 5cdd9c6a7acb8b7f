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

// leadsAgain waits for RunLeader to run its function again now that the faults are over.
func (r *run) leadsAgain() {
	if r.upstream {
		return
	}
	before, since := r.led.Load(), r.rec.Now()
	for r.led.Load() == before {
		if r.rec.Now()-since > settling {
			r.violate("liveness", history.Here, "no RunLeader of %q led within %v after the last fault", runElection, settling)
			return
		}
		pause(context.Background(), retryPause)
	}
}

// everyNameIsFree takes every lock and wins every election within twice the TTL of the end
// of the work. What the dead left behind has expired by then.
func (r *run) everyNameIsFree() {
	limit := 2*lifetime + r.stopped() - r.rec.Now()
	ctx, cancel := context.WithTimeout(context.Background(), max(limit, lifetime))
	defer cancel()
	s, err := concurrency.NewSession(r.admin, concurrency.WithTTL(int(settling/time.Second)))
	if err != nil {
		r.violate("liveness", history.Here, "NewSession: %v", err)
		return
	}
	defer s.Close()
	var wg sync.WaitGroup
	for _, name := range slices.Concat(locks, elections, []string{runElection}) {
		wg.Go(func() {
			if err := concurrency.NewMutex(s, name).Lock(ctx); err != nil {
				r.violate("liveness", r.here(), "%q could not be locked within %v of the end of the work: %v", name, limit, err)
			}
		})
	}
	wg.Wait()
}

// observersKnow makes one more leader for each election, of whom every observer must hear.
func (r *run) observersKnow(latests map[string][]*latest) {
	s, err := concurrency.NewSession(r.admin)
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

// nothingIsLeft checks that sessions that have ended leave nothing in etcd: no key that
// stands in line, no lease, and no watcher.
func (r *run) nothingIsLeft() error {
	for _, s := range r.stations {
		s.client.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), settling)
	defer cancel()
	end, err := r.admin.Put(ctx, endKey, "")
	if err != nil {
		return err
	}
	if err := r.audit.until(ctx, end.Header.Revision); err != nil {
		return err
	}
	for {
		left, err := r.left(ctx)
		switch {
		case err != nil:
			return err
		case left == "":
			return nil
		case !pause(ctx, 5*retryPause):
			r.violate("leftover", r.here(), "%v after the end there are still %s", settling, left)
			return nil
		}
	}
}

// left says what is left in etcd. The auditor has a watcher.
func (r *run) left(ctx context.Context) (string, error) {
	keys, err := r.admin.Get(ctx, root+lineArea, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return "", err
	}
	leases, err := r.admin.Leases(ctx)
	if err != nil {
		return "", err
	}
	watchers, err := r.cluster.Watchers()
	if err != nil {
		return "", err
	}
	if keys.Count == 0 && len(leases.Leases) == 0 && watchers <= 1 {
		return "", nil
	}
	return fmt.Sprintf("%d keys, %d leases, %d watchers", keys.Count, len(leases.Leases), watchers-1), nil
}

// leftGoroutines looks for goroutines of the package when all clients are closed.
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
			r.violate("leftover", history.Here, "goroutines go on after the end of all clients; see stacks.txt")
			return
		}
	}
}
