package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"example.com/etcd/concurrency"
)

const (
	workers, turns     = 8, 50                    // of each worker
	candidates, term   = 3, 50 * time.Millisecond // of each leader
	tellers, transfers = 10, 40                   // of each teller
	accounts, opening  = 8, 100                   // in each account at first
)

// A lock leaves a worker alone with the counter. Tests have one that doesn't.
type lock interface {
	Lock(ctx context.Context) error
	Unlock(ctx context.Context) error
	Rev() int64
}

func newMutex(s *concurrency.Session, name string) lock { return concurrency.NewMutex(s, name) }

// locks lets workers add to a counter. Each reads it, pauses, and writes it.
func (d *demo) locks(newLock func(*concurrency.Session, string) lock) {
	d.Printf("\nLocks: %d workers count, %d times each. Only a lock keeps their counter right.\n\n", workers, turns)
	var counter, crowded, token, stale atomic.Int64
	d.together("worker", workers, func(who string, s *concurrency.Session) {
		l := newLock(s, d.prefix+"line/lock")
		for range turns {
			d.must(l.Lock(d.ctx))
			if mine := l.Rev(); token.Swap(mine) >= mine {
				stale.Add(1)
			}
			n := counter.Load()
			time.Sleep(time.Duration(200+rand.IntN(300)) * time.Microsecond)
			if counter.Swap(n+1) != n {
				crowded.Add(1) // by somebody who has counted meanwhile
			}
			if (n+1)%turns == 0 {
				d.event(who, "counts to %d, with token %d", n+1, token.Load())
			}
			d.must(l.Unlock(d.ctx))
		}
	}, func() {})
	n, all := counter.Load(), int64(workers*turns)
	d.check("no count was lost", n == all, "%d turns, and the counter is %d", all, n)
	d.check("never two inside", crowded.Load() == 0, "%d of %d turns met another", crowded.Load(), all)
	d.check("tokens rose with each hold", stale.Load() == 0, "%d of %d did not", stale.Load(), all)
}

// election lets candidates succeed leaders that die. A leader proclaims itself at
// the end of its term. When the observer sees that, it revokes the leader's lease.
func (d *demo) election() {
	d.Printf("\nElection: %d candidates. Each leader dies, which is that its lease is revoked, and the next one leads.\n\n", candidates)
	name := d.prefix + "line/election"
	leads := make(chan *concurrency.Session, candidates) // of leaders that were not observed yet
	var seen []int64                                     // the tokens of those that were
	var heard atomic.Int64
	d.together("candidate", candidates, func(who string, s *concurrency.Session) {
		e := concurrency.NewElection(s, name)
		d.event(who, "campaigns")
		err := e.Lead(d.ctx, "", func(ctx context.Context) error {
			leads <- s
			d.event(who, "leads, with token %d", e.Rev())
			time.Sleep(term)
			proclaimed := time.Now()
			// The observer may revoke the lease before this answer is here.
			if err := e.Proclaim(ctx, who); err != nil && ctx.Err() == nil {
				return err
			}
			<-ctx.Done()
			d.event(who, "hears of its end: %v", context.Cause(ctx))
			if time.Since(proclaimed) <= ttl*time.Second {
				heard.Add(1)
			}
			return nil
		})
		if !errors.Is(err, concurrency.ErrSessionExpired) {
			d.must(err)
		}
	}, func() {
		for leader, err := range concurrency.LeadersOf(d.ctx, d.client, name) {
			d.must(err)
			if leader.Value == "" || len(leads) == 0 {
				continue // nobody leads, or not proclaimed yet, or told twice
			}
			d.event("observer", "sees %s lead, and revokes its lease", leader.Value)
			_, err := d.client.Revoke(d.ctx, (<-leads).Lease())
			d.must(err)
			if seen = append(seen, leader.Rev); len(seen) == candidates {
				break
			}
		}
	})
	d.check("led in order of candidacy", slices.IsSorted(seen), "with tokens %d", seen)
	d.check("each leader was observed", len(leads) == 0, "%d, and %d more", len(seen), len(leads))
	d.check("the deposed heard of it", heard.Load() == candidates, "%d of %d within %ds", heard.Load(), candidates, ttl)
}

// transfers lets tellers move money while an auditor adds it up, again and again
// until the last transfer is done, and once more.
func (d *demo) transfers() {
	d.Printf("\nTransfers: %d tellers move money between %d accounts, and an auditor adds it up.\n\n", tellers, accounts)
	var book [accounts]atomic.Int64 // what the transfers have changed
	var balances [accounts]int      // as the auditor found them
	var done atomic.Int64
	reads, right, off, all := 0, 0, 0, tellers*transfers
	d.together("teller", tellers, func(who string, _ *concurrency.Session) {
		for range transfers {
			pair, sum := rand.Perm(accounts), 1+rand.IntN(20)
			_, err := concurrency.NewSTM(d.client, func(stm concurrency.STM) error {
				stm.Put(d.account(pair[0]), strconv.Itoa(d.balance(stm, pair[0])-sum))
				stm.Put(d.account(pair[1]), strconv.Itoa(d.balance(stm, pair[1])+sum))
				return nil
			}, concurrency.WithAbortContext(d.ctx), concurrency.WithSTMTrace(d.trace(who)))
			d.must(err)
			book[pair[0]].Add(int64(-sum))
			book[pair[1]].Add(int64(sum))
			done.Add(1)
		}
		d.event(who, "has moved money %d times", transfers)
	}, func() {
		for working := true; working; reads++ {
			working = int(done.Load()) < all
			total := 0
			_, err := concurrency.NewSTM(d.client, func(stm concurrency.STM) error {
				total = 0
				for i := range balances {
					balances[i] = d.balance(stm, i)
					total += balances[i]
				}
				return nil
			}, concurrency.WithAbortContext(d.ctx), concurrency.WithSTMTrace(d.trace("auditor")))
			d.must(err)
			if total == accounts*opening {
				right++
			}
		}
		d.event("auditor", "has read %d times, and finds %d", reads, balances)
	})
	for i, have := range balances {
		if have != opening+int(book[i].Load()) {
			off++
		}
	}
	d.check("no money came or went", right == reads, "%d in %d of %d reads", accounts*opening, right, reads)
	d.check("every transfer counted once", off == 0, "%d transfers, and %d of %d balances not as booked", all, off, accounts)
}

func (d *demo) account(i int) string { return fmt.Sprintf("%saccount/%d", d.prefix, i+1) }

// balance is what is in an account. A new one holds the opening balance.
func (d *demo) balance(stm concurrency.STM, i int) int {
	balance, _ := strconv.Atoi(cmp.Or(stm.Get(d.account(i)), strconv.Itoa(opening)))
	return balance
}
