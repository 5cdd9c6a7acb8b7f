package concurrency_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
)

// A transaction is guarded by the lock. Once somebody else owns it, the former owner,
// who does not know yet, can't commit.
func ExampleWithGuard() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	s1, err := concurrency.NewSession(client)
	check(err)
	defer s1.Close()
	s2, err := concurrency.NewSession(client)
	check(err)
	defer s2.Close()
	former := concurrency.NewMutex(s1, "my-lock")
	owner := concurrency.NewMutex(s2, "my-lock")

	write := func(m *concurrency.Mutex, value string) {
		_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
			stm.Put("my-data", stm.Get("my-data")+value)
			return nil
		}, concurrency.WithGuard(m.IsOwner()))
		if errors.Is(err, concurrency.ErrGuardFailed) {
			fmt.Println(value + ": not the owner")
			return
		}
		check(err)
		fmt.Println(value + ": written")
	}

	check(former.Lock(ctx))
	write(former, "first")
	_, err = client.Delete(ctx, former.Key()) // by an operator, say, while former is paused
	check(err)
	check(owner.Lock(ctx))
	write(owner, "second")
	write(former, "third")

	data, err := client.Get(ctx, "my-data")
	check(err)
	fmt.Println(string(data.Kvs[0].Value))

	// Output:
	// first: written
	// second: written
	// third: not the owner
	// firstsecond
}

// errStale is what a fenced store answers to a former owner.
var errStale = errors.New("a greater token has been seen")

// fencedStore is a store outside etcd. It remembers the greatest token that it has
// seen, and refuses writes under a smaller one.
type fencedStore struct {
	mu    sync.Mutex // guards the fields below
	token int64
	value string
}

func (f *fencedStore) Write(token int64, value string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if token < f.token {
		return errStale
	}
	f.token, f.value = token, value
	return nil
}

// A store outside etcd is protected by the token that each owner sends along: however
// late the write of a former owner arrives, it is refused.
func ExampleMutex_Rev() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	s1, err := concurrency.NewSession(client)
	check(err)
	defer s1.Close()
	s2, err := concurrency.NewSession(client)
	check(err)
	defer s2.Close()
	former := concurrency.NewMutex(s1, "my-lock")
	owner := concurrency.NewMutex(s2, "my-lock")
	var store fencedStore

	check(former.Lock(ctx))
	token := former.Rev() // and here the process is paused, for longer than its lease
	_, err = client.Revoke(ctx, s1.Lease())
	check(err)

	check(owner.Lock(ctx))
	fmt.Println(owner.Rev() > token, store.Write(owner.Rev(), "new"))
	fmt.Println("late write:", store.Write(token, "old"))
	fmt.Println(store.value)

	// Output:
	// true <nil>
	// late write: a greater token has been seen
	// new
}

// Work that must not be half done when the lock is lost begins a step only if there is
// time for it. The margin is what a step that takes longer than it should, or a clock that
// is slow, has left before anybody else can own.
func ExampleWithSafetyMargin() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	s, err := concurrency.NewSession(client,
		concurrency.WithTTL(60), concurrency.WithSafetyMargin(20*time.Second))
	check(err)
	defer s.Close()
	m := concurrency.NewMutex(s, "my-lock")
	check(m.Lock(ctx))
	fmt.Println("the lease lives for", s.TTL())

	// Renewals move the deadline on. This is what is left if none is answered from now on.
	left := time.Until(s.Deadline())
	fmt.Println("the session for", left.Round(20*time.Second))
	for _, step := range []time.Duration{10 * time.Second, 50 * time.Second} {
		fmt.Printf("a step of %v: %v\n", step, step < left)
	}

	_, err = concurrency.NewSession(client,
		concurrency.WithTTL(10), concurrency.WithSafetyMargin(10*time.Second))
	fmt.Println(err)

	// Output:
	// the lease lives for 1m0s
	// the session for 40s
	// a step of 10s: true
	// a step of 50s: false
	// concurrency: a safety margin of 10s does not lie within the TTL of 10s
}

// The context of a lock ends with it, whatever took it away.
func ExampleMutex_Ctx() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	s, err := concurrency.NewSession(client)
	check(err)
	defer s.Close()
	m := concurrency.NewMutex(s, "my-lock")

	check(m.Lock(ctx))
	owned := m.Ctx()
	_, err = client.Delete(ctx, m.Key())
	check(err)
	<-owned.Done()
	fmt.Println(context.Cause(owned))

	check(m.Lock(ctx))
	owned = m.Ctx()
	check(m.Unlock(ctx))
	<-owned.Done()
	fmt.Println(context.Cause(owned))

	// Output:
	// mutex: session is expired: the key was deleted
	// mutex: lock has already been released
}

// Work is run under a lock, and hears when the lock is lost.
func ExampleMutex_Do() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	s, err := concurrency.NewSession(client)
	check(err)
	defer s.Close()
	m := concurrency.NewMutex(s, "my-lock")

	err = m.Do(ctx, func(held context.Context) error {
		fmt.Println("held:", held.Err() == nil)
		return nil
	})
	fmt.Println("done:", err)

	failed := errors.New("half done")
	err = m.Do(ctx, func(held context.Context) error {
		_, err := client.Delete(ctx, m.Key()) // by an operator, say
		check(err)
		<-held.Done() // work that takes long looks at it
		return failed
	})
	fmt.Println("failed:", errors.Is(err, failed), "lost:", errors.Is(err, concurrency.ErrSessionExpired))

	// Output:
	// held: true
	// done: <nil>
	// failed: true lost: true
}

// The goroutines of a process share one handle. They pass the lock on without a call, and each
// has a token of its own.
func ExampleLocalMutex() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	s, err := concurrency.NewSession(client)
	check(err)
	defer s.Close()
	m := concurrency.NewLocalMutex(s, "my-lock")

	type token struct{ rev, seq int64 }
	var newest token // guarded by m
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			check(m.Do(ctx, func(ctx context.Context) error {
				mine := token{m.Rev(), m.Seq()}
				if mine.rev < newest.rev || mine.rev == newest.rev && mine.seq <= newest.seq {
					return errStale
				}
				newest = mine
				return nil
			}))
		})
	}
	all.Wait()
	fmt.Println("each token was greater than the one before")
	fmt.Println("held:", m.Rev() != 0)

	// Output:
	// each token was greater than the one before
	// held: false
}

// A leader's work goes on until it is done or the leadership is lost.
func ExampleElection_Lead() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	s, err := concurrency.NewSession(client)
	check(err)
	defer s.Close()
	e := concurrency.NewElection(s, "my-election")

	err = e.Lead(ctx, "host-1", func(ctx context.Context) error {
		leader, err := e.Leader(ctx)
		check(err)
		fmt.Printf("%s leads\n", leader.Kvs[0].Value)
		return nil
	})
	fmt.Println(err)
	_, err = e.Leader(ctx)
	fmt.Println(err)

	// Output:
	// host-1 leads
	// <nil>
	// election: no leader
}

// A service runs on one of its processes: that which leads. When it loses the
// leadership it stops, and leads again when its turn has come.
func ExampleRunLeader() {
	client, stop := connect()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())

	terms := 0
	err := concurrency.RunLeader(ctx, client, "my-service", "host-1", func(leading context.Context, e *concurrency.Election) error {
		terms++
		fmt.Println("term", terms)
		if terms == 1 {
			_, err := client.Delete(ctx, e.Key()) // by an operator, say
			check(err)
		} else {
			cancel() // the process is to stop
		}
		<-leading.Done()
		fmt.Println("stopped")
		return leading.Err()
	}, concurrency.WithTTL(10))
	fmt.Println(err)

	// Output:
	// term 1
	// stopped
	// term 2
	// stopped
	// context canceled
}

// Who leads is told with every change, and that nobody does.
func ExampleElection_Leaders() {
	client, stop := connect()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	s, err := concurrency.NewSession(client)
	check(err)
	defer s.Close()
	e := concurrency.NewElection(s, "my-election")

	// Each step is what makes the next change.
	steps := []func(){
		func() { check(e.Campaign(ctx, "host-1")) },
		func() { check(e.Proclaim(ctx, "host-1, ready")) },
		func() { check(e.Resign(ctx)) },
		cancel,
	}
	for leader, err := range e.Leaders(ctx) {
		switch {
		case err != nil:
			fmt.Println("the end:", err)
			continue // there are no more
		case leader == concurrency.Leader{}:
			fmt.Println("nobody leads")
		default:
			fmt.Printf("%s leads\n", leader.Value)
		}
		steps[0]()
		steps = steps[1:]
	}

	// Output:
	// nobody leads
	// host-1 leads
	// host-1, ready leads
	// nobody leads
	// the end: context canceled
}

// The work of a leader proclaims that it is ready, and its writes are guarded by the leadership.
func ExampleRunLeader_election() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	lead := func(leading context.Context, e *concurrency.Election) error {
		check(e.Proclaim(leading, "host-1, ready"))
		resp, err := client.Txn(leading).
			If(e.IsLeader()).
			Then(clientv3.OpPut("my-data", "written by the leader")).
			Commit()
		if err == nil && !resp.Succeeded {
			err = concurrency.ErrElectionNotLeader
		}
		leader, _ := concurrency.LeaderOf(ctx, client, "my-service")
		fmt.Println(leader.Value)
		return err
	}
	check(concurrency.RunLeader(ctx, client, "my-service", "host-1", lead,
		concurrency.WithTTL(10),
		concurrency.WithLeaders(func(l concurrency.Leader) { log.Printf("%q leads", l.Value) })))

	// Output: host-1, ready
}

// A probe tells whether the process has to be restarted. It has to be if its work goes on
// although the leadership is over. How much of its lease a leader has left is worth a graph.
func ExampleRunLeader_probe() {
	client, stop := connect()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())

	type term struct {
		ctx     context.Context
		session *concurrency.Session
	}
	var leads atomic.Pointer[term] // nil: the work does not run
	// A renewal is sent every third of the life, so that two thirds are left if all is well.
	left := func() float64 {
		t := leads.Load()
		if t == nil {
			return 1
		}
		return float64(time.Until(t.session.Deadline())) / float64(t.session.TTL())
	}
	alive := func() bool {
		t := leads.Load()
		return t == nil || t.ctx.Err() == nil
	}
	err := concurrency.RunLeader(ctx, client, "my-service", "host-1", func(leading context.Context, e *concurrency.Election) error {
		leads.Store(&term{leading, e.Session()})
		defer leads.Store(nil)
		fmt.Println("alive:", alive(), "most of the lease is left:", left() > 0.5)
		cancel() // the process is to stop, and the work hangs
		<-leading.Done()
		fmt.Println("alive:", alive())
		return nil
	}, concurrency.WithTTL(60))
	fmt.Println(err)
	fmt.Println("alive:", alive())

	// Output:
	// alive: true most of the lease is left: true
	// alive: false
	// context canceled
	// alive: true
}

// A client that does not stand for election asks who leads, or follows the changes. It needs no
// session, and so no lease.
func ExampleLeadersOf() {
	client, stop := connect()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	go concurrency.RunLeader(ctx, client, "my-service", "host-1:8080", func(leading context.Context, _ *concurrency.Election) error {
		<-leading.Done()
		return nil
	})
	for leader, err := range concurrency.LeadersOf(ctx, client, "my-service") {
		check(err)
		if leader.Rev == 0 {
			continue // nobody leads yet
		}
		fmt.Println("requests go to", leader.Value)
		break
	}
	leader, err := concurrency.LeaderOf(ctx, client, "my-service")
	check(err)
	fmt.Println("and to", leader.Value)

	// Output:
	// requests go to host-1:8080
	// and to host-1:8080
}
