package main

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
)

const (
	lockName = "lock"
	workers  = 8
	turns    = 50 // of each worker
)

// A lock is what leaves a worker alone with the counter. Tests pass one that
// doesn't.
type lock interface {
	Lock(ctx context.Context) error
	Unlock(ctx context.Context) error
	Header() *pb.ResponseHeader
}

func newMutex(s *concurrency.Session, name string) lock { return concurrency.NewMutex(s, name) }

// A hold is one turn of one worker, by the clock of this process.
type hold struct {
	worker          int
	asked, from, to time.Duration
	token           int64 // the revision at which etcd showed the lock to be the worker's
}

// locks lets workers count, and looks at what they did.
func (d *demo) locks(ctx context.Context) error {
	d.heading("Locks", "%d workers in sessions of their own add one to a counter, each %d times, by a Get,\n"+
		"a pause and a Put. Only the lock keeps them from overwriting each other's count.", workers, turns)
	sessions, err := d.join(workers, "worker")
	if err != nil {
		return err
	}
	var mu sync.Mutex // guards holds
	var holds []hold
	err = together(ctx, workers, func(ctx context.Context, i int) error {
		l := d.newLock(sessions[i], d.prefix+lockName)
		for range turns {
			h := hold{worker: i + 1, asked: d.now()}
			if err := d.turn(ctx, sessions[i].Client(), l, &h); err != nil {
				return err // a lock that is still held goes with the session
			}
			mu.Lock()
			holds = append(holds, h)
			mu.Unlock()
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("locks: %w", err)
	}
	slices.SortFunc(holds, func(a, b hold) int { return cmp.Compare(a.from, b.from) })
	d.show(holds)

	counted, err := d.counter(ctx, d.client)
	d.check("no count was lost", err == nil && counted == len(holds),
		"%d turns, and the counter is %d", len(holds), counted)
	crowded, stale := 0, 0
	for i, next := range holds[1:] {
		if next.from < holds[i].to {
			crowded++
		}
		if next.token <= holds[i].token {
			stale++
		}
	}
	d.check("never two inside", crowded == 0, "%d of %d holds began within another", crowded, len(holds))
	d.check("tokens rose with each hold", stale == 0, "from %d to %d, and %d times not",
		holds[0].token, holds[len(holds)-1].token, stale)
	return err
}

// turn takes the lock, counts once and releases it.
func (d *demo) turn(ctx context.Context, client *clientv3.Client, l lock, h *hold) error {
	who := fmt.Sprintf("worker %d", h.worker)
	if err := l.Lock(ctx); err != nil {
		return err
	}
	h.from, h.token = d.now(), l.Header().GetRevision()
	n, err := d.counter(ctx, client)
	if err != nil {
		return err
	}
	time.Sleep(time.Duration(200+rand.IntN(300)) * time.Microsecond)
	if _, err := client.Put(ctx, d.prefix+"counter", strconv.Itoa(n+1)); err != nil {
		return err
	}
	h.to = d.now()
	d.detail(who, "counted to %d, held from %s to %s", n+1, ms(h.from), ms(h.to))
	return l.Unlock(ctx)
}

// counter reads what the workers have counted.
func (d *demo) counter(ctx context.Context, client *clientv3.Client) (int, error) {
	resp, err := client.Get(ctx, d.prefix+"counter")
	if err != nil || len(resp.Kvs) == 0 {
		return 0, err
	}
	return strconv.Atoi(string(resp.Kvs[0].Value))
}

// show prints a row for each worker, with a picture of three rounds.
func (d *demo) show(holds []hold) {
	const width = 48
	rounds := holds[len(holds)/2:][:3*workers]
	from, to := rounds[0].from, rounds[len(rounds)-1].to
	d.printf("  worker  turns  first from    last to  longest wait  three rounds, from %s to %s\n",
		ms(from), ms(to))
	for worker := 1; worker <= workers; worker++ {
		var mine []hold
		var longest time.Duration
		picture := []rune(strings.Repeat("·", width))
		for _, h := range holds {
			if h.worker != worker {
				continue
			}
			mine, longest = append(mine, h), max(longest, h.from-h.asked)
			for i := range picture {
				cell := from + (to-from)*time.Duration(i)/width
				if h.from < cell+(to-from)/width && h.to > cell {
					picture[i] = '█'
				}
			}
		}
		d.printf("%8d  %5d  %10s %10s  %12s  %s\n", worker, len(mine), ms(mine[0].from),
			ms(mine[len(mine)-1].to), ms(longest), string(picture))
	}
}
