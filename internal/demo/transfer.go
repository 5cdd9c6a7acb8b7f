package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync/atomic"

	"example.com/etcd/concurrency"
)

const (
	tellers   = 10
	transfers = 40 // of each teller
	accounts  = 8
	opening   = 100 // what is in each account at first
)

// A bank keeps each account in a key of its own.
type bank struct {
	*demo
	book     [accounts]atomic.Int64 // what must be in the accounts, kept in memory
	attempts atomic.Int64           // of all transfers together
	open     atomic.Int64           // tellers still at work
}

// transfers lets tellers move money while an auditor adds it up.
func (d *demo) transfers(ctx context.Context) error {
	d.heading("Transfers", "%d tellers move money between %d accounts, %d times each, in transactions. An auditor\n"+
		"adds up all accounts meanwhile: money that was between two of them would be missing.", tellers, accounts, transfers)
	b := &bank{demo: d}
	b.open.Store(tellers)
	for i := range b.book {
		b.book[i].Store(opening)
		if _, err := d.client.Put(ctx, b.account(i), strconv.Itoa(opening)); err != nil {
			return err
		}
	}
	began := d.now()
	err := together(ctx, tellers+1, func(ctx context.Context, i int) error {
		if i == tellers {
			return b.audit(ctx)
		}
		defer b.open.Add(-1)
		for range transfers {
			if err := b.transfer(ctx, i+1); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("transfers: %w", err)
	}
	d.event("tellers", "did %d transfers in %s, with %.1f attempts each because of conflicts",
		tellers*transfers, ms(d.now()-began), float64(b.attempts.Load())/(tellers*transfers))

	balances, err := b.balances(ctx)
	off := 0
	for i, have := range balances {
		if int64(have) != b.book[i].Load() {
			off++
		}
	}
	d.event("accounts", "%d", balances)
	d.check("every transfer counted once", err == nil && off == 0,
		"%d transfers, and %d of %d balances not as booked", tellers*transfers, off, accounts)
	return err
}

func (b *bank) account(i int) string { return fmt.Sprintf("%saccount/%d", b.prefix, i+1) }

// transfer moves a random sum, or as much as there is.
func (b *bank) transfer(ctx context.Context, teller int) error {
	pair := rand.Perm(accounts)
	from, to, sum := pair[0], pair[1], 1+rand.IntN(20)
	who := fmt.Sprintf("teller %d", teller)
	var moved int // by the last attempt, the one that counts
	_, err := concurrency.NewSTM(b.client, func(stm concurrency.STM) error {
		b.attempts.Add(1)
		giver, taker := b.balance(stm, from), b.balance(stm, to)
		moved = min(sum, giver)
		stm.Put(b.account(from), strconv.Itoa(giver-moved))
		stm.Put(b.account(to), strconv.Itoa(taker+moved))
		return nil
	}, concurrency.WithAbortContext(ctx), concurrency.WithSTMTrace(b.trace(who)))
	if err != nil {
		return err
	}
	b.book[from].Add(int64(-moved))
	b.book[to].Add(int64(moved))
	b.detail(who, "moved %d from account %d to account %d", moved, from+1, to+1)
	return nil
}

// audit adds up all accounts until the last teller has gone, and once more.
func (b *bank) audit(ctx context.Context) error {
	reads, right := 0, 0
	for working := true; working; reads++ {
		working = b.open.Load() > 0
		balances, err := b.balances(ctx)
		if err != nil {
			return err
		}
		sum := 0
		for _, have := range balances {
			sum += have
		}
		if sum == accounts*opening {
			right++
		}
		b.detail("auditor", "finds %d in all", sum)
	}
	b.check("no money came or went", right == reads, "%d in %d of %d reads", accounts*opening, right, reads)
	return nil
}

// balances reads all accounts in one transaction.
func (b *bank) balances(ctx context.Context) ([]int, error) {
	balances := make([]int, accounts)
	_, err := concurrency.NewSTM(b.client, func(stm concurrency.STM) error {
		for i := range balances {
			balances[i] = b.balance(stm, i)
		}
		return nil
	}, concurrency.WithAbortContext(ctx))
	return balances, err
}

// balance is what a transaction finds in an account. What is no number is no
// money either, and will be missing from the sum.
func (b *bank) balance(stm concurrency.STM, i int) int {
	balance, _ := strconv.Atoi(stm.Get(b.account(i)))
	return balance
}
