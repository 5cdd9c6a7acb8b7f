package concurrency_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
)

// gocronElector is the interface by which the schedulers of github.com/go-co-op/gocron/v2 agree
// on who runs all jobs, from distributed.go there. A program that imports gocron uses gocron's.
type gocronElector interface {
	// IsLeader returns nil if this scheduler runs the jobs, and an error otherwise.
	IsLeader(ctx context.Context) error
}

// jobElector lets one scheduler run all jobs.
type jobElector struct {
	leading atomic.Pointer[context.Context] // nil: it does not lead
}

var errNotLeading = errors.New("another scheduler leads")

func (e *jobElector) IsLeader(context.Context) error {
	if ctx := e.leading.Load(); ctx == nil || (*ctx).Err() != nil {
		return errNotLeading
	}
	return nil
}

// run campaigns until ctx ends.
func (e *jobElector) run(ctx context.Context, client *clientv3.Client, name string) error {
	return concurrency.RunLeader(ctx, client, "jobs-leader", name, func(ctx context.Context, _ *concurrency.Election) error {
		e.leading.Store(&ctx)
		defer e.leading.Store(nil)
		<-ctx.Done()
		return ctx.Err()
	}, concurrency.WithTTL(10))
}

// gocron asks before each run whether this scheduler leads: gocron.WithDistributedElector(elector).
func ExampleRunLeader_gocron() {
	client, stop := connect()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())

	elector := &jobElector{}
	var asked gocronElector = elector
	fmt.Println(asked.IsLeader(ctx))
	ended := make(chan error)
	go func() { ended <- elector.run(ctx, client, "host-1") }()
	for asked.IsLeader(ctx) != nil { // gocron asks when a job is due
		_, err := client.Get(ctx, "jobs-leader/", clientv3.WithPrefix())
		check(err)
	}
	fmt.Println("leads")
	cancel()
	fmt.Println(<-ended)
	fmt.Println(asked.IsLeader(ctx))

	// Output:
	// another scheduler leads
	// leads
	// context canceled
	// another scheduler leads
}
