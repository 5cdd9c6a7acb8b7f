package concurrency_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"example.com/etcd/concurrency"
)

// A session that others wait 10 s for if it dies, that has 2 s to stop when it is lost, and
// that says who it is.
func ExampleNewSession() {
	client, stop := connect()
	defer stop()

	host, err := os.Hostname()
	check(err)
	session, err := concurrency.NewSession(client,
		concurrency.WithTTL(10),
		concurrency.WithSafetyMargin(2*time.Second),
		concurrency.WithIdentity(fmt.Sprintf("%s, process %d, since %s", host, os.Getpid(), time.Now())))
	check(err)
	fmt.Println(session.TTL(), time.Until(session.Deadline()) <= 8*time.Second)

	check(session.Close())
	<-session.Done()
	fmt.Println(context.Cause(session.Ctx()))

	// Output:
	// 10s true
	// context canceled
}

// A session ends with a context, whose cause tells why. Its lease is left to expire then, so
// that the locks stand for a moment longer than the work that has to stop. Who can't wait for
// that revokes the lease.
func ExampleWithContext() {
	client, stop := connect()
	defer stop()

	ctx, cancel := context.WithCancelCause(context.Background())
	session, err := concurrency.NewSession(client, concurrency.WithContext(ctx))
	check(err)
	cancel(errors.New("told to stop"))
	<-session.Done()
	fmt.Println(context.Cause(session.Ctx()))
	_, err = client.Revoke(context.Background(), session.Lease())
	check(err)

	// Output:
	// told to stop
}

// Goroutines share a Locker, which excludes them and all other processes.
func ExampleNewLocker() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	session, err := concurrency.NewSession(client)
	check(err)
	defer session.Close()
	locker := concurrency.NewLocker(session, "my-lock")

	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			locker.Lock()
			defer locker.Unlock()
			count := 0
			resp, err := client.Get(ctx, "count")
			check(err)
			if len(resp.Kvs) > 0 {
				fmt.Sscan(string(resp.Kvs[0].Value), &count)
			}
			_, err = client.Put(ctx, "count", fmt.Sprint(count+1))
			check(err)
		})
	}
	wg.Wait()
	resp, err := client.Get(ctx, "count")
	check(err)
	fmt.Printf("%s\n", resp.Kvs[0].Value)

	// Output:
	// 10
}

// Those who only want to know the leader observe the election. The channel tells the present
// leader first, and then each change, as far as its reader keeps up.
func ExampleElection_Observe() {
	client, stop := connect()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	session, err := concurrency.NewSession(client)
	check(err)
	defer session.Close()
	e := concurrency.NewElection(session, "my-election")
	check(e.Campaign(ctx, "host-1"))

	leaders := e.Observe(ctx)
	fmt.Printf("%s leads\n", (<-leaders).Kvs[0].Value)
	check(e.Proclaim(ctx, "host-1, ready"))
	fmt.Printf("%s leads\n", (<-leaders).Kvs[0].Value)
	cancel()
	_, more := <-leaders
	fmt.Println("more:", more)

	// Output:
	// host-1 leads
	// host-1, ready leads
	// more: false
}

// A new leader is told from a new value of the same leader by Rev.
func ExampleLeader() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	session, err := concurrency.NewSession(client)
	check(err)
	defer session.Close()
	e := concurrency.NewElection(session, "my-election")
	check(e.Campaign(ctx, "host-1"))

	steps := []func(){
		func() { check(e.Proclaim(ctx, "host-1, ready")) },
		func() {},
	}
	var before concurrency.Leader
	for leader, err := range e.Leaders(ctx) {
		check(err)
		fmt.Printf("%q, new: %v\n", leader.Value, leader.Rev != before.Rev)
		before = leader
		if steps[0](); len(steps) == 1 {
			break
		}
		steps = steps[1:]
	}

	// Output:
	// "host-1", new: true
	// "host-1, ready", new: false
}

// A transaction that has to be right only in what it writes, and not in what it leaves as it
// was, can take a lower level. ReadCommitted checks nothing at the commit.
func ExampleIsolation() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	for _, level := range []concurrency.Isolation{concurrency.SerializableSnapshot, concurrency.ReadCommitted} {
		attempts := 0
		_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
			attempts++
			seen := stm.Get("seen")
			if attempts == 1 {
				_, err := client.Put(ctx, "seen", "changed by another client")
				check(err)
			}
			stm.Put("copy", seen)
			return nil
		}, concurrency.WithIsolation(level))
		check(err)
		fmt.Println(attempts)
	}

	// Output:
	// 2
	// 1
}

// A trace is told what each attempt of a transaction has met with.
func ExampleAttempt() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	disturbed := false
	_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
		count := stm.Get("count")
		if !disturbed {
			disturbed = true
			_, err := client.Put(ctx, "count", "7") // another client is quicker
			check(err)
		}
		stm.Put("count", count+"1")
		return nil
	}, concurrency.WithSTMTrace(&concurrency.Trace{Attempt: func(a concurrency.Attempt) {
		fmt.Println(a.Number, a.Keys, errors.Is(a.Err, concurrency.ErrConflict))
	}}))
	check(err)

	// Output:
	// 1 [count] true
	// 2 [] false
}
