package concurrency_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
)

// under is the range of the keys under a prefix.
func under(prefix string) (begin, end string) { return prefix, clientv3.GetPrefixRangeEnd(prefix) }

// transact runs a transaction that has no error of its own.
func transact(client *clientv3.Client, apply func(stm concurrency.STM), opts ...concurrency.STMOption) error {
	_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error { apply(stm); return nil }, opts...)
	return err
}

// A barrier holds all up for as long as its key exists.
func ExampleSTM_barrier() {
	client, stop := connect()
	defer stop()

	wait := func() error {
		return transact(client, func(stm concurrency.STM) {
			if _, closed := stm.Lookup("barrier"); closed {
				stm.Retry()
			}
		})
	}
	check(transact(client, func(stm concurrency.STM) { stm.Put("barrier", "") }))
	passed := make(chan error)
	go func() { passed <- wait() }()
	fmt.Println("the barrier is opened")
	check(transact(client, func(stm concurrency.STM) { stm.Del("barrier") }))
	check(<-passed)
	fmt.Println("passed")

	// Output:
	// the barrier is opened
	// passed
}

// A double barrier lets its members begin together, and end together.
func ExampleSTM_doubleBarrier() {
	client, stop := connect()
	defer stop()
	const members = 3

	enter := func(who string) error {
		check(transact(client, func(stm concurrency.STM) { stm.Put("members/"+who, "") }))
		return transact(client, func(stm concurrency.STM) {
			if _, ready := stm.Lookup("ready"); !ready && len(stm.Range(under("members/"))) < members {
				stm.Retry()
			}
			stm.Put("ready", "") // those who come late find it, although others may have left
		})
	}
	leave := func(who string) error {
		check(transact(client, func(stm concurrency.STM) { stm.Del("members/" + who) }))
		return transact(client, func(stm concurrency.STM) {
			if len(stm.Range(under("members/"))) > 0 {
				stm.Retry()
			}
		})
	}
	var all sync.WaitGroup
	for i := range members {
		all.Go(func() {
			check(enter(strconv.Itoa(i)))
			check(leave(strconv.Itoa(i)))
		})
	}
	all.Wait()
	fmt.Println("all have entered and left")

	// Output: all have entered and left
}

// A queue gives each item to one of its consumers, the oldest first.
func ExampleSTM_queue() {
	client, stop := connect()
	defer stop()

	push := func(item string) error {
		return transact(client, func(stm concurrency.STM) {
			n, _ := strconv.Atoi(stm.Get("next"))
			stm.Put("next", strconv.Itoa(n+1))
			stm.Put(fmt.Sprintf("queue/%016d", n), item)
		})
	}
	pop := func() (item string, err error) {
		err = transact(client, func(stm concurrency.STM) {
			begin, end := under("queue/")
			head := stm.RangeN(begin, end, 1)
			if len(head) == 0 {
				stm.Retry()
			}
			item = string(head[0].Value)
			stm.Del(string(head[0].Key))
		})
		return item, err
	}
	var consumers sync.WaitGroup
	var mu sync.Mutex
	items := map[string]int{}
	for range 3 {
		consumers.Go(func() {
			for range 2 {
				item, err := pop()
				check(err)
				mu.Lock()
				items[item]++
				mu.Unlock()
			}
		})
	}
	for i := range 6 {
		check(push(strconv.Itoa(i)))
	}
	consumers.Wait()
	fmt.Println(items)

	// Output: map[0:1 1:1 2:1 3:1 4:1 5:1]
}

// A queue of work has several consumers. A consumer claims the oldest item that nobody has
// claimed. The claim has the lease of the consumer's session. If the consumer dies, the claim goes
// with its lease, and another consumer has the item, in its old place.
func ExampleSTM_claims() {
	client, stop := connect()
	defer stop()

	// claim waits for an item that is free.
	claim := func(s *concurrency.Session) (item string, err error) {
		err = transact(client, func(stm concurrency.STM) {
			claimed := map[string]bool{}
			for _, kv := range stm.Range(under("claims/")) {
				claimed[strings.TrimPrefix(string(kv.Key), "claims/")] = true
			}
			for _, kv := range stm.Range(under("work/")) {
				if item = strings.TrimPrefix(string(kv.Key), "work/"); !claimed[item] {
					stm.Put("claims/"+item, "", clientv3.WithLease(s.Lease()))
					return
				}
			}
			stm.Retry()
		}, concurrency.WithAbortContext(s.Ctx()))
		return item, err
	}
	// done takes the item out, if the claim is still this consumer's.
	errLost := errors.New("another consumer has the item")
	done := func(s *concurrency.Session, item string) error {
		_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
			if kv := stm.Entry("claims/" + item); kv == nil || kv.Lease != int64(s.Lease()) {
				return errLost
			}
			stm.Del("claims/" + item)
			stm.Del("work/" + item)
			return nil
		})
		return err
	}

	for _, item := range []string{"1", "2"} {
		check(transact(client, func(stm concurrency.STM) { stm.Put("work/"+item, "") }))
	}
	dies, err := concurrency.NewSession(client)
	check(err)
	lives, err := concurrency.NewSession(client)
	check(err)
	defer lives.Close()

	first, err := claim(dies)
	check(err)
	second, err := claim(lives)
	check(err)
	fmt.Println("claimed:", first, second)
	check(done(lives, second))
	again := make(chan string)
	go func() { // waits, because nothing is free
		item, err := claim(lives)
		check(err)
		again <- item
	}()
	check(dies.Close()) // as if it had expired
	fmt.Println("claimed again:", <-again)
	fmt.Println("done by the dead:", done(dies, first))
	fmt.Println("done:", done(lives, first))

	// Output:
	// claimed: 1 2
	// claimed again: 1
	// done by the dead: another consumer has the item
	// done: <nil>
}

// A counting semaphore lets three in. A holder's key has the lease of its session, so that
// its place is free when it dies.
func ExampleSTM_semaphore() {
	client, stop := connect()
	defer stop()
	session, err := concurrency.NewSession(client)
	check(err)
	defer session.Close()

	acquire := func(who string) error {
		return transact(client, func(stm concurrency.STM) {
			if len(stm.Range(under("holders/"))) == 3 {
				stm.Retry()
			}
			stm.Put("holders/"+who, "", clientv3.WithLease(session.Lease()))
		}, concurrency.WithAbortContext(session.Ctx()))
	}
	release := func(who string) error {
		return transact(client, func(stm concurrency.STM) { stm.Del("holders/" + who) })
	}
	for _, who := range []string{"a", "b", "c"} {
		check(acquire(who))
	}
	acquired := make(chan error)
	go func() { acquired <- acquire("d") }()
	check(release("b"))
	check(<-acquired)
	check(transact(client, func(stm concurrency.STM) {
		for _, holder := range stm.Range(under("holders/")) {
			fmt.Println(string(holder.Key))
		}
	}))

	// Output:
	// holders/a
	// holders/c
	// holders/d
}

// A service waits until the configuration is one that it can use.
func ExampleSTM_configuration() {
	client, stop := connect()
	defer stop()

	var config struct{ Host string }
	configured := func() error {
		return transact(client, func(stm concurrency.STM) {
			config.Host = ""
			value, found := stm.Lookup("config")
			if !found || json.Unmarshal([]byte(value), &config) != nil || config.Host == "" {
				stm.Retry()
			}
		})
	}
	done := make(chan error)
	go func() { done <- configured() }()
	for _, value := range []string{`{"Host":`, `{"Host":""}`, `{"Host":"db.example.com"}`} {
		check(transact(client, func(stm concurrency.STM) { stm.Put("config", value) }))
	}
	check(<-done)
	fmt.Println(config.Host)

	// Output: db.example.com
}

// Two bookings of one room must not overlap. A booking that comes to lie in the range makes the
// transaction conflict, although no key that it has read has changed.
func ExampleSTM_range() {
	client, stop := connect()
	defer stop()

	book := func(room string, from, to int) error {
		_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
			for _, booking := range stm.Range(under(room + "/")) {
				var begin, end int
				fmt.Sscanf(string(booking.Value), "%d %d", &begin, &end)
				if from < end && begin < to {
					return fmt.Errorf("taken from %d to %d", begin, end)
				}
			}
			stm.Put(fmt.Sprintf("%s/%02d", room, from), fmt.Sprintf("%d %d", from, to))
			return nil
		})
		return err
	}
	fmt.Println(book("blue", 9, 11))
	fmt.Println(book("blue", 10, 12))
	fmt.Println(book("blue", 11, 12))

	// Output:
	// <nil>
	// taken from 9 to 11
	// <nil>
}

// A long transaction among short ones conflicts each time. It takes a lock when it has lost
// often enough, and the short ones wait while somebody stands in that lock's line. To look costs
// them no call, if the line is read ahead, and they never conflict with each other over it.
func ExampleWithMaxAttempts_lock() {
	client, stop := connect()
	defer stop()
	session, err := concurrency.NewSession(client)
	check(err)
	defer session.Close()
	mutex := concurrency.NewMutex(session, "priority")

	short := func(key string) error {
		return transact(client, func(stm concurrency.STM) {
			if len(stm.Range(under("priority/"))) > 0 {
				stm.Retry()
			}
			n, _ := strconv.Atoi(stm.Get(key))
			stm.Put(key, strconv.Itoa(n+1))
		}, concurrency.WithPrefetch(key), concurrency.WithPrefetchRange(under("priority/")))
	}
	long := func(apply func(stm concurrency.STM)) error {
		err := transact(client, apply, concurrency.WithMaxAttempts(3))
		if !errors.Is(err, concurrency.ErrConflict) {
			return err
		}
		check(mutex.Lock(session.Ctx()))
		defer mutex.Unlock(session.Ctx())
		return transact(client, apply, concurrency.WithGuard(mutex.IsOwner()))
	}
	attempts := 0
	check(long(func(stm concurrency.STM) {
		sum := 0
		for _, kv := range stm.Range(under("counters/")) {
			n, _ := strconv.Atoi(string(kv.Value))
			sum += n
		}
		if attempts++; attempts <= 3 {
			check(short("counters/a")) // it comes first each time
		}
		stm.Put("sum", strconv.Itoa(sum))
	}))
	check(short("counters/a"))
	check(transact(client, func(stm concurrency.STM) { fmt.Println(stm.Get("sum"), stm.Get("counters/a")) }))

	// Output: 3 4
}

// Workers wait at a barrier until the data is there. The barrier is held by a session, so that it
// opens when the process dies that prepares the data.
func ExampleBarrier() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()
	session, err := concurrency.NewSession(client)
	check(err)
	defer session.Close()

	barrier := concurrency.NewBarrier(client, "preparing")
	check(barrier.HoldWith(ctx, session))
	passed := make(chan error)
	go func() { passed <- concurrency.NewBarrier(client, "preparing").Wait(ctx) }()
	fmt.Println("the data is there")
	check(barrier.Release(ctx))
	check(<-passed)
	fmt.Println("passed")

	// Output:
	// the data is there
	// passed
}

// Three workers begin each phase together, and end it together.
func ExampleDoubleBarrier() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()
	const workers, phases = 3, 2

	var begun, done atomic.Int64
	var all sync.WaitGroup
	for range workers {
		session, err := concurrency.NewSession(client) // of a process each, usually
		check(err)
		defer session.Close()
		barrier := concurrency.NewDoubleBarrier(session, "phase", workers)
		all.Go(func() {
			for range phases {
				check(barrier.Enter(ctx))
				begun.Add(1)
				check(barrier.Leave(ctx))
				done.Add(1)
			}
		})
	}
	all.Wait()
	fmt.Println(begun.Load(), done.Load())

	// Output: 6 6
}
