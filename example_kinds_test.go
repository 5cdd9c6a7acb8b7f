package concurrency_test

import (
	"context"
	"fmt"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
)

// Readers hold the lock together. A plain Mutex of the same name is a writer.
func ExampleRWMutex() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	session, err := concurrency.NewSession(client)
	check(err)
	defer session.Close()
	other, err := concurrency.NewSession(client)
	check(err)
	defer other.Close()

	// A handle for each goroutine that reads.
	var inside, readers sync.WaitGroup
	inside.Add(2)
	for range 2 {
		readers.Go(func() {
			m := concurrency.NewRWMutex(session, "config")
			check(m.RDo(ctx, func(context.Context) error {
				inside.Done()
				inside.Wait() // until both read
				return nil
			}))
		})
	}
	readers.Wait()
	fmt.Println("both have read at once")

	writer := concurrency.NewMutex(other, "config")
	check(writer.Lock(ctx))
	reader := concurrency.NewRWMutex(session, "config")
	fmt.Println(reader.TryRLock(ctx) == concurrency.ErrLocked)
	check(writer.Unlock(ctx))
	check(reader.RLock(ctx))
	fmt.Println(reader.Rev() > 0)
	check(reader.RUnlock(ctx))

	// Output:
	// both have read at once
	// true
	// true
}

// Two of three are at work at once. The third one is let in when one of them has finished.
func ExampleSemaphore() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	session, err := concurrency.NewSession(client)
	check(err)
	defer session.Close()

	// A handle for each permit.
	a := concurrency.NewSemaphore(session, "downloads", 2)
	b := concurrency.NewSemaphore(session, "downloads", 2)
	c := concurrency.NewSemaphore(session, "downloads", 2)
	check(a.Acquire(ctx))
	check(b.Acquire(ctx))
	fmt.Println(c.TryAcquire(ctx) == concurrency.ErrLocked)
	check(a.Release(ctx))
	check(c.Do(ctx, func(context.Context) error {
		fmt.Println("at work")
		return nil
	}))
	check(b.Release(ctx))

	// Output:
	// true
	// at work
}

// A transfer needs both accounts, and nobody else's transfer in between. Transfers in both
// directions at once don't wait for each other in a circle.
func ExampleMultiMutex() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	session, err := concurrency.NewSession(client)
	check(err)
	defer session.Close()

	transfer := func(from, to string) error {
		both := concurrency.NewMultiMutex(session, "account/"+from, "account/"+to)
		return both.Do(ctx, func(ctx context.Context) error {
			// The write is refused if one of the locks was lost meanwhile.
			resp, err := client.Txn(ctx).
				If(both.IsOwner()...).
				Then(clientv3.OpPut("transfer/"+from+"/"+to, "done")).
				Commit()
			if err == nil && !resp.Succeeded {
				err = concurrency.ErrSessionExpired
			}
			return err
		})
	}
	var transfers sync.WaitGroup
	transfers.Go(func() { check(transfer("alice", "bob")) })
	transfers.Go(func() { check(transfer("bob", "alice")) })
	transfers.Wait()

	done, err := client.Get(ctx, "transfer/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	check(err)
	fmt.Println(done.Count)

	// Output: 2
}
