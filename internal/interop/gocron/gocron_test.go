package gocron

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-co-op/gocron/v2"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
)

// TestAdaptersAreThoseOfTheExamples compares the text that stands in both.
func TestAdaptersAreThoseOfTheExamples(t *testing.T) {
	here, err := os.ReadFile("adapters.go")
	require.NoError(t, err)
	for _, adapter := range []struct{ file, from, to string }{
		{"example_gocronelector_test.go", "// jobElector lets", "\n// gocron asks before"},
		{"example_gocronlocker_test.go", "// jobLocks let", "\n// gocron takes a lock"},
	} {
		example, err := os.ReadFile("../../../" + adapter.file)
		require.NoError(t, err)
		_, text, begins := strings.Cut(string(example), adapter.from)
		text, _, ends := strings.Cut(text, adapter.to)
		require.True(t, begins && ends, "the adapter is not found in %s", adapter.file)
		require.Contains(t, string(here), adapter.from+text)
	}
}

// scheduler is one that runs until the test ends.
func scheduler(t *testing.T, opts ...gocron.SchedulerOption) gocron.Scheduler {
	t.Helper()
	s, err := gocron.NewScheduler(opts...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Shutdown()) })
	s.Start()
	return s
}

// got waits for what comes on the channel.
func got[T any](t *testing.T, ch <-chan T) (v T) {
	t.Helper()
	call := etcdtest.Go(func() error { v = <-ch; return nil })
	require.NoError(t, call.Wait(t))
	return v
}

// A job that runs on one scheduler does not run on another, which does not wait. Later it does.
func TestLocker(t *testing.T) {
	client := etcdtest.New(t).Client(t)
	begins, end, refused := make(chan int), make(chan struct{}), make(chan error)
	run := func(i int) func() {
		session, err := concurrency.NewSession(client, concurrency.WithTTL(10))
		require.NoError(t, err)
		t.Cleanup(func() { session.Close() })
		s := scheduler(t, gocron.WithDistributedLocker(jobLocks{session}))
		return func() {
			_, err := s.NewJob(
				gocron.OneTimeJob(gocron.OneTimeJobStartImmediately()),
				gocron.NewTask(func() { begins <- i; <-end }),
				gocron.WithName("report"),
				gocron.WithEventListeners(gocron.AfterLockError(func(_ uuid.UUID, _ string, err error) { refused <- err })),
			)
			require.NoError(t, err)
		}
	}
	first, second := run(1), run(2)
	first()
	require.Equal(t, 1, got(t, begins))
	etcdtest.WaitKeys(t, client, "jobs/report/", 1)
	second()
	require.Equal(t, concurrency.ErrLocked, got(t, refused))
	close(end)
	etcdtest.WaitKeys(t, client, "jobs/report/", 0)
	second()
	require.Equal(t, 2, got(t, begins))
	etcdtest.WaitKeys(t, client, "jobs/report/", 0)
}

// asked tells what gocron is told when it asks who leads.
type asked struct {
	*jobElector
	answers chan error
}

func (a asked) IsLeader(ctx context.Context) error {
	err := a.jobElector.IsLeader(ctx)
	select {
	case a.answers <- err:
	case <-ctx.Done():
	}
	return err
}

// Jobs run on the scheduler that leads, and on no other.
func TestElector(t *testing.T) {
	client := etcdtest.New(t).Client(t)
	elector := asked{&jobElector{}, make(chan error)}
	s := scheduler(t, gocron.WithDistributedElector(elector))
	ran := make(chan struct{}, 1)
	_, err := s.NewJob(gocron.DurationJob(time.Millisecond), gocron.NewTask(func() {
		select {
		case ran <- struct{}{}:
		default:
		}
	}))
	require.NoError(t, err)
	require.Equal(t, errNotLeading, got(t, elector.answers))
	require.Equal(t, errNotLeading, got(t, elector.answers), "the job was due before, and was not run")
	require.Empty(t, ran)

	ctx, cancel := context.WithCancel(t.Context())
	ended := etcdtest.Go(func() error { return elector.run(ctx, client, "host-1") })
	for got(t, elector.answers) != nil {
		etcdtest.Keys(t, client, "jobs-leader/")
	}
	got(t, ran)
	cancel()
	require.Equal(t, context.Canceled, ended.Wait(t))
	etcdtest.WaitKeys(t, client, "jobs-leader/", 0)
}
