package concurrency_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"strconv"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
)

// connect starts an etcd server and connects to it. A program that has a server
// connects with clientv3.New(clientv3.Config{Endpoints: ...}).
func connect() (client *clientv3.Client, stop func()) {
	server, err := etcdtest.Start()
	check(err)
	client, err = server.NewClient()
	check(err)
	return client, func() {
		client.Close()
		server.Close()
	}
}

func check(err error) {
	if err != nil {
		log.Panic(err)
	}
}

// Two sessions take a lock in turn.
func ExampleMutex_Lock() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	s1, err := concurrency.NewSession(client)
	check(err)
	defer s1.Close()
	s2, err := concurrency.NewSession(client)
	check(err)
	defer s2.Close()
	m1 := concurrency.NewMutex(s1, "my-lock")
	m2 := concurrency.NewMutex(s2, "my-lock")

	check(m1.Lock(ctx))
	fmt.Println("acquired lock for s1")

	locked := make(chan error)
	go func() { locked <- m2.Lock(ctx) }() // waits for s1

	check(m1.Unlock(ctx))
	fmt.Println("released lock for s1")

	check(<-locked)
	fmt.Println("acquired lock for s2")
	check(m2.Unlock(ctx))

	// Output:
	// acquired lock for s1
	// released lock for s1
	// acquired lock for s2
}

// A lock is taken only if that needs no waiting.
func ExampleMutex_TryLock() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	s1, err := concurrency.NewSession(client)
	check(err)
	defer s1.Close()
	s2, err := concurrency.NewSession(client)
	check(err)
	defer s2.Close()
	m1 := concurrency.NewMutex(s1, "my-lock")
	m2 := concurrency.NewMutex(s2, "my-lock")

	check(m1.Lock(ctx))
	if err := m2.TryLock(ctx); errors.Is(err, concurrency.ErrLocked) {
		fmt.Println("s1 holds the lock")
	}
	check(m1.Unlock(ctx))
	check(m2.TryLock(ctx))
	fmt.Println("s2 holds the lock")
	check(m2.Unlock(ctx))

	// Output:
	// s1 holds the lock
	// s2 holds the lock
}

// A write is guarded by the lock: once the lock is lost, etcd refuses it, however
// late the loser learns of the loss.
func ExampleMutex_IsOwner() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	s, err := concurrency.NewSession(client)
	check(err)
	defer s.Close()
	m := concurrency.NewMutex(s, "my-lock")
	check(m.Lock(ctx))

	write := func(value string) {
		resp, err := client.Txn(ctx).
			If(m.IsOwner()).
			Then(clientv3.OpPut("my-data", value)).
			Commit()
		check(err)
		fmt.Printf("%s written: %v\n", value, resp.Succeeded)
	}
	write("first")
	_, err = client.Revoke(ctx, s.Lease()) // as if it had expired
	check(err)
	write("second")

	// Output:
	// first written: true
	// second written: false
}

// Two candidates lead in the order in which they campaign.
func ExampleElection_Campaign() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	s1, err := concurrency.NewSession(client)
	check(err)
	defer s1.Close()
	s2, err := concurrency.NewSession(client)
	check(err)
	defer s2.Close()
	e1 := concurrency.NewElection(s1, "my-election")
	e2 := concurrency.NewElection(s2, "my-election")

	check(e2.Campaign(ctx, "e2"))
	elected := make(chan error)
	go func() { elected <- e1.Campaign(ctx, "e1") }() // waits for e2

	leader, err := e1.Leader(ctx)
	check(err)
	fmt.Println("completed first election with", string(leader.Kvs[0].Value))
	check(e2.Resign(ctx))

	check(<-elected)
	leader, err = e2.Leader(ctx)
	check(err)
	fmt.Println("completed second election with", string(leader.Kvs[0].Value))
	check(e1.Resign(ctx))

	// Output:
	// completed first election with e2
	// completed second election with e1
}

// A process that is restarted goes on leading, if it is back before its lease expires
// and has kept three things: its lease, its key and the key's create revision.
func ExampleResumeElection() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	before, err := concurrency.NewSession(client)
	check(err)
	e := concurrency.NewElection(before, "my-election")
	check(e.Campaign(ctx, "before the restart"))
	lease, key, rev := before.Lease(), e.Key(), e.Rev()
	before.Orphan() // ends without giving up the lease

	after, err := concurrency.NewSession(client, concurrency.WithLease(lease))
	check(err)
	defer after.Close()
	e = concurrency.ResumeElection(after, "my-election", key, rev)
	err = e.Proclaim(ctx, "after the restart")
	if errors.Is(err, concurrency.ErrElectionNotLeader) {
		err = e.Campaign(ctx, "after the restart") // too late: stand in line again
	}
	check(err)
	leader, err := e.Leader(ctx)
	check(err)
	fmt.Println(string(leader.Kvs[0].Value))

	// Output:
	// after the restart
}

// A process that is restarted goes on holding a lock, if it is back before its lease expires
// and has kept three things: its lease, its key and the key's create revision.
func ExampleResumeMutex() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	before, err := concurrency.NewSession(client)
	check(err)
	m := concurrency.NewMutex(before, "my-lock")
	check(m.Lock(ctx))
	lease, key, rev := before.Lease(), m.Key(), m.Rev()
	before.Orphan() // ends without giving up the lease

	after, err := concurrency.NewSession(client, concurrency.WithLease(lease))
	check(err)
	defer after.Close()
	m = concurrency.ResumeMutex(after, "my-lock", key, rev)
	check(m.Lock(ctx)) // one call; it would wait if the lock had been lost meanwhile
	fmt.Println("held all the time:", m.Rev() == rev)
	check(m.Unlock(ctx))

	// Output:
	// held all the time: true
}

// Ten goroutines move money between five accounts, whose sum stays the same.
func ExampleNewSTM() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	account := func(i int) string { return fmt.Sprintf("accounts/%d", i%5) }
	for i := range 5 {
		_, err := client.Put(ctx, account(i), "100")
		check(err)
	}

	exchange := func(from, to string) error {
		_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
			a, _ := strconv.Atoi(stm.Get(from))
			b, _ := strconv.Atoi(stm.Get(to))
			amount := a / 2
			stm.Put(from, strconv.Itoa(a-amount))
			stm.Put(to, strconv.Itoa(b+amount))
			return nil
		}, concurrency.WithPrefetch(from, to))
		return err
	}
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() { check(exchange(account(i), account(i+1+i%4))) })
	}
	wg.Wait()

	accounts, err := client.Get(ctx, "accounts/", clientv3.WithPrefix())
	check(err)
	sum := 0
	for _, kv := range accounts.Kvs {
		balance, _ := strconv.Atoi(string(kv.Value))
		sum += balance
	}
	fmt.Println("account sum is", sum)

	// Output:
	// account sum is 500
}
