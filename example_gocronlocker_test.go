package concurrency_test

import (
	"context"
	"fmt"
	"net/url"

	"example.com/etcd/concurrency"
)

// The interfaces by which the schedulers of github.com/go-co-op/gocron/v2 share their jobs, from
// distributed.go there. A program that imports gocron uses those of gocron.
type (
	gocronLocker interface {
		// Lock decides whether this scheduler runs the job now. After an error it does not.
		Lock(ctx context.Context, job string) (gocronLock, error)
	}
	gocronLock interface {
		Unlock(ctx context.Context) error
	}
)

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

// gocron takes a lock for each run of a job: gocron.WithDistributedLocker(jobLocks{session}).
func ExampleMutex_TryLock_gocron() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	var schedulers []gocronLocker
	for range 2 {
		session, err := concurrency.NewSession(client, concurrency.WithTTL(10))
		check(err)
		defer session.Close()
		schedulers = append(schedulers, jobLocks{session})
	}
	running, err := schedulers[0].Lock(ctx, "report")
	fmt.Println("first:", err)
	_, err = schedulers[1].Lock(ctx, "report")
	fmt.Println("second:", err)
	_, err = schedulers[1].Lock(ctx, "report/daily")
	fmt.Println("second, another job:", err)
	check(running.Unlock(ctx))
	_, err = schedulers[1].Lock(ctx, "report")
	fmt.Println("second, later:", err)

	// Output:
	// first: <nil>
	// second: mutex: Locked by another session
	// second, another job: <nil>
	// second, later: <nil>
}
