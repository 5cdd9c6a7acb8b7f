package concurrency

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// keepAlive renews the lease a third of its life after the last answered renewal was
// sent, and soon again after one that failed, until the session ends.
func (l *lease) keepAlive(sent time.Time, atOnce bool) {
	defer close(l.stopped)
	for failures := 0; ; {
		if failures > 0 {
			pause(l.ctx, forever, failures)
		} else if !atOnce {
			third := l.life() / 3
			sleep(l.ctx, forever, time.Until(sent.Add(third-third/10+jitter(third/10))))
		}
		if l.ctx.Err() != nil {
			return
		}
		attempt := time.Now()
		ttl, err := l.renew(l.ctx)
		switch {
		case err == nil:
			sent, failures, atOnce = attempt, 0, false
			l.extend(sent, ttl)
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			l.gone()
			return
		default:
			// Whatever it is, it may pass before the deadline, and the deadline is
			// what ends the session.
			failures++
		}
	}
}

// renew is one renewal; it is given a quarter of the lease's life to be answered, so that
// there is time for others on another connection.
//
// KeepAliveOnce repeats itself without a pause for as long as no server can be
// reached (client/v3 lease.go). So it is called only when the connection is not
// known to be broken, and is called off when it breaks.
func (l *lease) renew(ctx context.Context) (time.Duration, error) {
	if l.disconnected() {
		return 0, errDisconnected
	}
	ctx, cancel := context.WithTimeout(ctx, l.life()/4)
	defer cancel()
	var look func()
	look = func() {
		if l.disconnected() {
			cancel()
		} else if ctx.Err() == nil {
			time.AfterFunc(100*time.Millisecond, look)
		}
	}
	first := time.AfterFunc(100*time.Millisecond, look)
	defer first.Stop()
	resp, err := l.client.KeepAliveOnce(ctx, l.id)
	if err != nil {
		return 0, err
	}
	return seconds(resp.TTL), nil
}

// disconnected reports whether the last attempts to connect to every server have
// failed: gRPC stays in this state until one succeeds. The server's in-process
// client has no connection.
func (l *lease) disconnected() bool {
	conn := l.client.ActiveConnection()
	return conn != nil && conn.GetState().String() == "TRANSIENT_FAILURE"
}
