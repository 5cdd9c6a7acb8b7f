package concurrency_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
)

// withSession runs work with a session, and again with a new one when the session was lost. The
// context of work ends with ctx and with the session. withSession waits for work to return
// before it opens the next session. It returns
//
//   - what work returned, unless work has failed on a session that was lost;
//   - ctx's error, when ctx has ended.
//
// Errors of NewSession go to told, and do not end it. If no server answers, the end of ctx is
// noticed after the TTL at the latest.
func withSession(
	ctx context.Context, client *clientv3.Client, told func(error),
	work func(context.Context, *concurrency.Session) error, opts ...concurrency.SessionOption,
) error {
	pause := 100 * time.Millisecond // which doubles, up to a time that is short for a person
	for {
		session, err := concurrency.NewSession(client, opts...)
		if err == nil {
			bound, cancel := context.WithCancelCause(session.Ctx())
			detach := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
			err = work(bound, session)
			detach()
			cancel(nil)
			lost := session.Ctx().Err() != nil
			session.Close() // what it can't revoke expires by itself
			if err == nil || !lost {
				return err
			}
			pause = 100 * time.Millisecond
		}
		if told(err); ctx.Err() != nil {
			return ctx.Err()
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, 5*time.Second)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// A session that is opened again when it is lost. The function withSession can be copied.
func ExampleSession_reopened() {
	client, stop := connect()
	defer stop()

	round := 0
	work := func(ctx context.Context, session *concurrency.Session) error {
		if round++; round == 1 {
			_, err := client.Revoke(ctx, session.Lease()) // as if it had expired
			check(err)
		}
		return concurrency.NewMutex(session, "my-lock").Do(ctx, func(context.Context) error {
			fmt.Println("locked in round", round)
			return nil
		})
	}
	told := func(err error) { fmt.Println("lost:", errors.Is(err, rpctypes.ErrLeaseNotFound)) }
	fmt.Println(withSession(context.Background(), client, told, work, concurrency.WithTTL(10)))

	// Output:
	// lost: true
	// locked in round 2
	// <nil>
}
