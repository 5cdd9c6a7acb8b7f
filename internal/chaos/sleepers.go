package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"example.com/etcd/concurrency/internal/history"
	"example.com/etcd/concurrency/internal/library"
)

const (
	wakeArea = "wake/"
	// wakeKey has the last number. The keys behind places have it as well, in turn. So each new
	// number puts a key into that range, and takes one out.
	wakeKey = root + wakeArea + "wakeKey"
	places  = root + wakeArea + "at/"
	turns   = 3
	// wakeful is the longest that a sleeper may sleep after a change when the faults are over: a
	// watch that lost its member is silent for 40 s, and a look may take 20 s. The rest is for a
	// busy machine.
	wakeful = 90 * time.Second
	// wakes is how often all sleepers are awoken at the end. A sleeper begins its next wait
	// while the next change comes, so that each of them can fall into a gap.
	wakes = 20
)

// wake draws the next number, which wakes all sleepers.
func wake(s library.STM) int {
	n, _ := strconv.Atoi(s.Get(wakeKey))
	n++
	s.Put(wakeKey, strconv.Itoa(n))
	s.Put(fmt.Sprint(places, n%turns), strconv.Itoa(n))
	s.Del(fmt.Sprint(places, (n+1)%turns))
	return n
}

// wake is work of a transactor.
func (t *transactor) wake(ctx context.Context) {
	_, _ = t.try(ctx, "wake", "", t.rnd.IntN(snapshots+1), func(s library.STM) error {
		wake(s)
		return nil
	})
}

// number reads the last number: in the range of all places, or in one key beside another.
func number(s library.STM, inRange bool) (n int) {
	if !inRange {
		s.Get(fmt.Sprint(places, 0))
		n, _ = strconv.Atoi(s.Get(wakeKey))
		return n
	}
	for _, kv := range s.(library.Ranged).Range(places, places+"~") {
		at, _ := strconv.Atoi(string(kv.Value))
		n = max(n, at)
	}
	return n
}

// sleep waits by Retry for each new number, and tells of the one that it has seen last. Its
// transactions come one after the other, so that the numbers that they see never go back.
func (w *worker) sleep(ctx context.Context, inRange bool, last *latest) {
	for seen := 0; ctx.Err() == nil; {
		now, begun := 0, w.rec.Now()
		_, err := w.lib.Transact(w.client, func(s library.STM) error {
			if now = number(s, inRange); now == seen {
				s.(library.Ranged).Retry()
			}
			return nil
		}, library.TxnOptions{Ctx: ctx, Level: w.rnd.IntN(snapshots + 1)})
		switch {
		case err != nil:
			pause(ctx, retryPause)
			continue
		case now < seen:
			w.violate("sleeper", w.who.Package, "%v was awoken by %d after %d", w.who, now, seen)
		}
		w.rec.Add(history.Record{Call: &history.Call{Who: w.who, Op: "sleep", Call: begun, Return: w.rec.Now()}})
		seen = now
		last.set(strconv.Itoa(now))
	}
}

// sleepersWake draws numbers of which every sleeper must hear. A run that was shorter than a
// watch may be silent does not wait for those that have died in silence: it breaks them.
func (r *run) sleepersWake(sleepers []*latest, length time.Duration) {
	if length < wakeful {
		r.cutAll()
	}
	for range wakes {
		n := 0
		ctx, cancel := context.WithTimeout(context.Background(), wakeful)
		wakeAll := func(s library.STM) error { n = wake(s); return nil }
		if _, err := library.Here.Transact(r.prober, wakeAll, library.TxnOptions{Ctx: ctx}); err != nil {
			r.violate("liveness", history.Here, "a transaction after the faults: %v", err)
		}
		for _, s := range sleepers {
			for s.get() != strconv.Itoa(n) {
				if !pause(ctx, time.Millisecond) {
					r.violate("sleeper", s.who.Package, "%v sleeps on at %s, %v after %d", s.who, s.get(), wakeful, n)
					cancel()
					return
				}
			}
		}
		cancel()
	}
}

// cutAll breaks the connections of all clients.
func (r *run) cutAll() {
	for _, s := range r.stations {
		for _, p := range s.proxies {
			p.Cut()
		}
	}
}
