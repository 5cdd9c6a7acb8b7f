package concurrency_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
)

// Each process says who it is. Whoever wonders who holds a lock is told then.
func ExampleWithIdentity() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	session, err := concurrency.NewSession(client, concurrency.WithIdentity("host-1, process 42"))
	check(err)
	defer session.Close()
	check(concurrency.NewMutex(session, "my-lock").Lock(ctx))

	line, err := concurrency.Inspect(ctx, client, "my-lock")
	check(err)
	fmt.Println("held by", line.Participants[0].Value)

	// Output:
	// held by host-1, process 42
}

// Who holds a lock, and who waits for it.
func ExampleInspect() {
	client, stop := connect()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())

	var sessions []*concurrency.Session
	for _, host := range []string{"host-1", "host-2"} {
		s, err := concurrency.NewSession(client, concurrency.WithIdentity(host))
		check(err)
		defer s.Close()
		sessions = append(sessions, s)
	}
	check(concurrency.NewMutex(sessions[0], "my-lock").Lock(ctx))
	waiting := make(chan error)
	go func() { waiting <- concurrency.NewMutex(sessions[1], "my-lock").Lock(ctx) }()

	for standing := 0; standing < 2; { // until both stand in line
		line, err := concurrency.Inspect(ctx, client, "my-lock")
		check(err)
		if standing = len(line.Participants); standing == 2 {
			for _, p := range line.Participants {
				fmt.Printf("%s: owns %v, %d ahead\n", p.Value, p.Owns, p.Ahead)
			}
		}
	}
	cancel()
	fmt.Println(<-waiting)

	// Output:
	// host-1: owns true, 0 ahead
	// host-2: owns false, 1 ahead
	// context canceled
}

// What is left of the life of each lease tells whether its holder still renews it.
func ExampleWithLeases() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	session, err := concurrency.NewSession(client, concurrency.WithTTL(30))
	check(err)
	defer session.Close()
	check(concurrency.NewMutex(session, "my-lock").Lock(ctx))

	line, err := concurrency.Inspect(ctx, client, "my-lock", concurrency.WithLeases())
	check(err)
	for _, p := range line.Participants {
		// It renews every 10 s. Left is rounded down.
		fmt.Println("renewed:", p.TTL, p.Left+time.Second > p.TTL/2)
	}

	// Output:
	// renewed: 30s true
}

// Nobody holds the lock, and yet nobody gets it: something else lies under its name.
func ExampleParticipantKind() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	_, err := client.Put(ctx, "report/latest", "42") // under the name of the lock "report"
	check(err)
	line, err := concurrency.Inspect(ctx, client, "report")
	check(err)
	for _, p := range line.Participants {
		if p.Kind == concurrency.KindForeign {
			fmt.Println(p.Key, "is in the way")
		}
	}

	// Output:
	// report/latest is in the way
}

// An operator takes a lock from a holder that hangs. The deletion names the ticket, so that it
// can't hit whoever came next. The holder's context ends, and its guarded writes are refused.
func ExampleParticipant() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	session, err := concurrency.NewSession(client, concurrency.WithIdentity("host-1"))
	check(err)
	defer session.Close()
	mutex := concurrency.NewMutex(session, "my-lock")
	check(mutex.Lock(ctx))
	owned := mutex.Ctx()

	line, err := concurrency.Inspect(ctx, client, "my-lock")
	check(err)
	holder := line.Participants[0]
	resp, err := client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(holder.Key), "=", holder.Rev)).
		Then(clientv3.OpDelete(holder.Key)).
		Commit()
	check(err)
	fmt.Printf("taken from %s: %v\n", holder.Value, resp.Succeeded)
	<-owned.Done()
	fmt.Println("lost:", errors.Is(context.Cause(owned), concurrency.ErrSessionExpired))

	// Output:
	// taken from host-1: true
	// lost: true
}

// How long the line of a lock is, for a metric.
func ExampleLine() {
	client, stop := connect()
	defer stop()

	line, err := concurrency.Inspect(context.Background(), client, "my-lock")
	check(err)
	fmt.Println(line.Name, len(line.Participants), line.Revision > 0)

	// Output:
	// my-lock 0 true
}
