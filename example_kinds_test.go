package concurrency_test

import (
	"context"
	"fmt"
	"sync"

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
