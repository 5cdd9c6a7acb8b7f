package concurrency

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// sent notes when the calls of a test were sent, and how many of them are under way.
type sent struct {
	mu      sync.Mutex
	began   time.Time
	at      []time.Duration
	running int
}

// call returns the number of the call, from one on, and what is to be called at its end.
func (s *sent) call() (n int, end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = append(s.at, time.Since(s.began))
	s.running++
	return len(s.at), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.running--
	}
}

// A third of the patience, then intervals that double up to the patience, two calls each time. Each
// interval is up to a tenth shorter at random. The first call is not called off: its answer is as good.
func TestACallIsRepeatedBesideTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sent{began: time.Now()}
		answer, err := repeat(t.Context(), forever, 6*time.Second, nil, func(ctx context.Context) (int, error) {
			n, end := s.call()
			defer end()
			if n == 1 {
				sleep(ctx, forever, 20*time.Second) // before the fifth pair at the earliest
				return n, ctx.Err()
			}
			<-ctx.Done()
			return n, ctx.Err()
		})
		require.NoError(t, err)
		require.Equal(t, 1, answer)
		require.Len(t, s.at, 9)
		require.Zero(t, s.at[0])
		for i, interval := range []time.Duration{2 * time.Second, 4 * time.Second, 6 * time.Second, 6 * time.Second} {
			before, one, two := s.at[2*i], s.at[2*i+1], s.at[2*i+2]
			require.Equal(t, one, two, "two calls")
			require.LessOrEqual(t, one-before, interval)
			require.GreaterOrEqual(t, one-before, interval*9/10)
		}
	})
}

// Calls that begin together and are silent are not repeated in the same instant, because no calls of
// another are to come between the two of one.
func TestCallsThatBeganTogetherAreRepeatedApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sent{began: time.Now()}
		var calls sync.WaitGroup
		for range 20 {
			calls.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				_, err := repeat(ctx, forever, 6*time.Second, nil, func(ctx context.Context) (int, error) {
					n, end := s.call()
					defer end()
					<-ctx.Done()
					return n, ctx.Err()
				})
				require.ErrorIs(t, err, context.DeadlineExceeded)
			})
		}
		calls.Wait()
		require.Len(t, s.at, 3*20)
		for pair := range slices.Chunk(s.at[20:], 2) {
			require.Equal(t, pair[0], pair[1])
		}
		require.Len(t, slices.Compact(s.at[20:]), 20)
	})
}

// A call that comes back with a fault is repeated, and nothing is sent beside it before all are silent.
func TestNothingIsSentBesideACallThatComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sent{began: time.Now()}
		_, err := repeat(t.Context(), forever, 6*time.Second, nil, func(ctx context.Context) (int, error) {
			n, end := s.call()
			defer end()
			switch spent := time.Since(s.began); {
			case spent < time.Hour:
				return n, rpctypes.ErrNoLeader
			case spent < time.Hour+time.Second:
				<-ctx.Done()
			default:
				sleep(ctx, forever, time.Millisecond) // until the other one was sent, too
			}
			return n, ctx.Err()
		})
		require.NoError(t, err)
		require.Less(t, len(s.at), int(time.Hour/(longestPause/2))+20)
		last := s.at[len(s.at)-3:]
		require.Less(t, last[0]-time.Hour, longestPause)
		require.Equal(t, last[1], last[2], "two are sent")
		require.Equal(t, 2*time.Second, last[1]-last[0], "a third of the patience later")
	})
}

func TestTheFirstAnswerCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sent{began: time.Now()}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		answer, err := repeat(ctx, forever, 6*time.Second, nil, func(ctx context.Context) (int, error) {
			n, end := s.call()
			defer end()
			switch n {
			case 2:
				sleep(ctx, forever, time.Second)
			case 3: // an answer that comes after the first
				<-ctx.Done()
				sleep(forever, forever, time.Second)
			default:
				<-ctx.Done()
				return n, ctx.Err()
			}
			return n, nil
		})
		require.NoError(t, err)
		require.Equal(t, 2, answer)
		require.Equal(t, s.at[1]+2*time.Second, time.Since(s.began), "when the last of them has returned")
		require.Zero(t, s.running)
		require.Len(t, s.at, 3)
	})
}

func TestACallThatIsOfNoUse(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 {
		_, err := repeat(t.Context(), ended, time.Hour, nil, func(context.Context) (int, error) {
			t.Error("it was sent")
			return 0, nil
		})
		require.Equal(t, context.Canceled, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err := repeat(ctx, forever, time.Hour, nil, func(context.Context) (int, error) {
		cancel()
		return 0, errors.New("called off")
	})
	require.Equal(t, context.Canceled, err, "and not what the call says")
}

// The session that a call ends with lives on, and so would what waits for its end, or for the
// time at which the call would have been repeated.
func TestACallThatWasAnsweredLeavesNothing(t *testing.T) {
	until, cancel := context.WithCancel(t.Context())
	defer cancel()
	const n = 10_000
	calls := func() int64 {
		for range n {
			_, err := repeat(t.Context(), until, time.Hour, nil, func(context.Context) (int, error) { return 0, nil })
			require.NoError(t, err)
		}
		runtime.GC()
		runtime.GC() // what the first one has freed from pools
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := calls()
	require.Less(t, (calls()-before)/n, int64(50), "bytes for each")
}

func TestWhatPasses(t *testing.T) {
	for _, err := range []error{
		rpctypes.ErrNoLeader, rpctypes.ErrTimeoutDueToLeaderFail, rpctypes.ErrTooManyRequests,
		context.DeadlineExceeded, context.Canceled, status.Error(codes.Internal, "a stream was reset"),
		status.Error(codes.Unavailable, "connection refused"), status.Error(codes.Unknown, "raft proposal dropped"),
	} {
		require.True(t, transient(err), err)
	}
	for _, err := range []error{
		rpctypes.ErrPermissionDenied, rpctypes.ErrLeaseNotFound, rpctypes.ErrNoSpace,
		status.Error(codes.Unknown, "something else"), errors.New("not etcd's"),
	} {
		require.False(t, transient(err), err)
	}
}
