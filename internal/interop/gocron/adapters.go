// Package gocron has the adapters of the examples, as a program that imports gocron has them.
// Its tests run jobs under them. It is a module of its own, for gocron's sake.
package gocron

import (
	"context"
	"errors"
	"net/url"
	"sync/atomic"

	"github.com/go-co-op/gocron/v2"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
)

// The examples have interfaces of their own under these names.
type (
	gocronElector = gocron.Elector
	gocronLocker  = gocron.Locker
	gocronLock    = gocron.Lock
)

var (
	_ gocronElector = (*jobElector)(nil)
	_ gocronLocker  = jobLocks{}
)

// All below is the text of the examples, see TestAdaptersAreThoseOfTheExamples.

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

// jobLocks let each job run on one scheduler at a time. Who comes second does not wait, because
// a job that is late is a job that runs twice. Two runs of one job on one scheduler are not
// excluded, because they are one participant. gocron's singleton mode excludes them. A job that
// ends sooner than the clocks of the schedulers differ may run on the next one as well.
type jobLocks struct{ session *concurrency.Session }

func (l jobLocks) Lock(ctx context.Context, job string) (gocronLock, error) {
	// Without the escape, the job "a" would wait for the job "a/b".
	mutex := concurrency.NewMutex(l.session, "jobs/"+url.PathEscape(job))
	if err := mutex.TryLock(ctx); err != nil {
		return nil, err
	}
	return mutex, nil
}
