// Package services has tests of etcd's own lock and election services, which every
// etcd server offers by gRPC and, through its gateway, by HTTP. They are made of the
// package concurrency of etcd's client module.
//
// By themselves the tests ask what the services do on upstream's package. With the
// modules that internal/interop/swap writes, etcd is built on this module instead, and
// the same tests have to pass: "make services".
package services

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	upstream "go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
)

// bound is when an answer that did not come is given up. It measures nothing.
const bound = 30 * time.Second

// name is the lock, and the election, that all contend for.
const name = "name"

var swapped = flag.Bool("swapped", false, "etcd has been built on this module")

func TestMain(m *testing.M) {
	flag.Parse()
	on := reflect.TypeFor[upstream.Session]()
	if *swapped != (on == reflect.TypeFor[concurrency.Session]()) {
		fmt.Fprintf(os.Stderr, "-swapped=%v, and etcd has been built on %s\n", *swapped, on.PkgPath())
		os.Exit(1)
	}
	// The services of another etcd are not those in question.
	if err := os.Unsetenv("ETCD_BINARY"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// An arena is an etcd with its services.
type arena struct {
	*testing.T
	client   *clientv3.Client
	lock     v3lockpb.LockClient
	election v3electionpb.ElectionClient
}

// overEach runs a test with the services called by gRPC, and by HTTP.
func overEach(t *testing.T, test func(a *arena)) {
	for _, how := range []string{"gRPC", "HTTP"} {
		t.Run(how, func(t *testing.T) {
			t.Cleanup(func() {
				etcdtest.Eventually(t, func() bool { return goroutines() == "" }, "nothing of this module is left")
			})
			cluster := etcdtest.New(t)
			client := cluster.Client(t)
			var conn grpc.ClientConnInterface = client.ActiveConnection()
			if how == "HTTP" {
				conn = gateway(cluster.Endpoint(0))
				t.Cleanup(http.DefaultClient.CloseIdleConnections)
			}
			test(&arena{
				T: t, client: client,
				lock: v3lockpb.NewLockClient(conn), election: v3electionpb.NewElectionClient(conn),
			})
		})
	}
}

// goroutines returns the stacks of this module's goroutines. etcd's services leave some of
// etcd's client, on either package: nobody closes the client with which they call the server.
func goroutines() (ours string) {
	stacks := make([]byte, 16<<20)
	for stack := range strings.SplitSeq(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
		if strings.Contains(stack, "example.com/etcd/concurrency.") {
			ours += stack + "\n\n"
		}
	}
	return ours
}

// context ends calls that are not answered.
func (a *arena) context() context.Context {
	ctx, cancel := context.WithTimeout(a.Context(), bound)
	a.Cleanup(cancel)
	return ctx
}

// lease has a lease granted that nobody keeps alive.
func (a *arena) lease(ttl int64) int64 {
	a.Helper()
	resp, err := a.client.Grant(a.context(), ttl)
	require.NoError(a, err)
	return int64(resp.ID)
}

func (a *arena) revoke(lease int64) {
	a.Helper()
	_, err := a.client.Revoke(a.context(), clientv3.LeaseID(lease))
	require.NoError(a, err)
}

// line waits until n keys stand in line and gives them, the oldest first.
func (a *arena) line(n int) []*mvccpb.KeyValue {
	a.Helper()
	return etcdtest.WaitKeys(a, a.client, name+"/", n)
}

// takes locks on the lease and returns the key.
func (a *arena) takes(lease int64) []byte {
	a.Helper()
	resp, err := a.lock.Lock(a.context(), &v3lockpb.LockRequest{Name: []byte(name), Lease: lease})
	require.NoError(a, err)
	return resp.Key
}

// waits calls Lock on the lease, as the n-th in line.
func (a *arena) waits(ctx context.Context, lease int64, n int) *etcdtest.Call {
	a.Helper()
	call := etcdtest.Go(func() error {
		_, err := a.lock.Lock(ctx, &v3lockpb.LockRequest{Name: []byte(name), Lease: lease})
		return err
	})
	a.line(n)
	require.True(a, call.Running())
	return call
}

func (a *arena) unlock(key []byte) {
	a.Helper()
	_, err := a.lock.Unlock(a.context(), &v3lockpb.UnlockRequest{Key: key})
	require.NoError(a, err)
}

func TestLock(t *testing.T) {
	overEach(t, func(a *arena) {
		lease := a.lease(60)
		resp, err := a.lock.Lock(a.context(), &v3lockpb.LockRequest{Name: []byte(name), Lease: lease})
		require.NoError(a, err)
		held := a.line(1)[0]
		require.Equal(a, fmt.Sprintf("%s/%x", name, lease), string(held.Key))
		require.Equal(a, lease, held.Lease)
		require.Equal(a, string(held.Key), string(resp.Key))
		require.Equal(a, held.CreateRevision, resp.Header.Revision)

		require.Equal(a, resp.Key, a.takes(lease), "who has the lock has it at once")
		require.Equal(a, held, a.line(1)[0])
		a.unlock(resp.Key)
		a.line(0)
	})
}

func TestLockWithoutALease(t *testing.T) {
	overEach(t, func(a *arena) {
		key := a.takes(0)
		require.NotZero(a, a.line(1)[0].Lease)
		a.unlock(key)
		a.line(0)
	})
}

func TestLockWaitsForUnlock(t *testing.T) {
	overEach(t, func(a *arena) {
		held := a.takes(a.lease(60))
		second := a.waits(a.context(), a.lease(60), 2)
		third := a.waits(a.context(), a.lease(60), 3)

		a.unlock(held)
		require.NoError(a, second.Wait(a))
		line := a.line(2)
		require.True(a, third.Running())
		a.unlock(line[0].Key)
		require.NoError(a, third.Wait(a))
		require.Equal(a, line[1:], a.line(1))
	})
}

func TestLockOnALeaseThatRunsOut(t *testing.T) {
	overEach(t, func(a *arena) {
		held := a.takes(a.lease(2))
		call := a.waits(a.context(), a.lease(60), 2)
		require.NoError(a, call.Wait(a))
		require.NotEqual(a, held, a.line(1)[0].Key)
	})
}

func TestLockOnALeaseThatDoesNotExist(t *testing.T) {
	overEach(t, func(a *arena) {
		_, err := a.lock.Lock(a.context(), &v3lockpb.LockRequest{Name: []byte(name), Lease: 12345})
		require.ErrorContains(a, err, "requested lease not found")
		a.line(0)
	})
}

func TestLockOfAWaiterWhoseLeaseIsRevoked(t *testing.T) {
	overEach(t, func(a *arena) {
		held, lease := a.takes(a.lease(60)), a.lease(60)
		call := a.waits(a.context(), lease, 2)
		a.revoke(lease)
		if *swapped { // upstream's hears of it when the holder leaves
			require.ErrorContains(a, call.Wait(a), "session is expired")
		}
		require.Equal(a, held, a.line(1)[0].Key)
		a.unlock(held)
		require.ErrorContains(a, call.Wait(a), "session is expired")
		a.line(0)
	})
}

func TestLockThatIsGivenUp(t *testing.T) {
	overEach(t, func(a *arena) {
		held := a.takes(a.lease(60))
		ctx, cancel := context.WithCancel(a.context())
		given := a.waits(ctx, a.lease(60), 2)
		next := a.waits(a.context(), a.lease(60), 3)
		cancel()
		require.Error(a, given.Wait(a))
		line := a.line(2)
		require.Equal(a, held, line[0].Key)
		require.True(a, next.Running())
		a.unlock(held)
		require.NoError(a, next.Wait(a))
		require.Equal(a, line[1:], a.line(1))
	})
}

// campaigns calls Campaign on the lease, as the n-th in line. The leader's key is there when
// the call has returned nil.
func (a *arena) campaigns(lease int64, value string, n int) (*etcdtest.Call, *v3electionpb.LeaderKey) {
	a.Helper()
	leader := &v3electionpb.LeaderKey{}
	call := etcdtest.Go(func() error {
		resp, err := a.election.Campaign(a.context(), &v3electionpb.CampaignRequest{
			Name: []byte(name), Lease: lease, Value: []byte(value),
		})
		if err == nil {
			leader.Name, leader.Key, leader.Rev, leader.Lease = resp.Leader.Name, resp.Leader.Key, resp.Leader.Rev, resp.Leader.Lease
		}
		return err
	})
	a.line(n)
	return call, leader
}

// wins campaigns where nobody else does.
func (a *arena) wins(lease int64, value string) *v3electionpb.LeaderKey {
	a.Helper()
	call, leader := a.campaigns(lease, value, 1)
	require.NoError(a, call.Wait(a))
	return leader
}

// leads sees that Leader tells of this value and key.
func (a *arena) leads(key *v3electionpb.LeaderKey, value string) {
	a.Helper()
	resp, err := a.election.Leader(a.context(), &v3electionpb.LeaderRequest{Name: []byte(name)})
	require.NoError(a, err)
	require.Equal(a, value, string(resp.Kv.Value))
	require.Equal(a, string(key.Key), string(resp.Kv.Key))
	require.Equal(a, key.Rev, resp.Kv.CreateRevision)
}

func (a *arena) proclaim(leader *v3electionpb.LeaderKey, value string) error {
	_, err := a.election.Proclaim(a.context(), &v3electionpb.ProclaimRequest{Leader: leader, Value: []byte(value)})
	return err
}

func (a *arena) resign(leader *v3electionpb.LeaderKey) {
	a.Helper()
	_, err := a.election.Resign(a.context(), &v3electionpb.ResignRequest{Leader: leader})
	require.NoError(a, err)
}

func TestLeaderWhereNobodyLeads(t *testing.T) {
	overEach(t, func(a *arena) {
		_, err := a.election.Leader(a.context(), &v3electionpb.LeaderRequest{Name: []byte(name)})
		require.ErrorContains(a, err, "election: no leader")
	})
}

func TestElection(t *testing.T) {
	overEach(t, func(a *arena) {
		lease := a.lease(60)
		first := a.wins(lease, "first")
		head := a.line(1)[0]
		require.Equal(a, name, string(first.Name))
		require.Equal(a, string(head.Key), string(first.Key))
		require.Equal(a, head.CreateRevision, first.Rev)
		require.Equal(a, lease, first.Lease)
		a.leads(first, "first")

		call, second := a.campaigns(a.lease(60), "second", 2)
		require.True(a, call.Running())
		require.NoError(a, a.proclaim(first, "first, anew"))
		a.leads(first, "first, anew")

		a.resign(first)
		require.NoError(a, call.Wait(a))
		a.leads(second, "second")
		require.ErrorContains(a, a.proclaim(first, "first, too late"), "election: not leader")
		a.leads(second, "second")
		a.resign(second)
		a.line(0)
	})
}

func TestElectionOfALeaderWhoseLeaseEnds(t *testing.T) {
	overEach(t, func(a *arena) {
		revoked, expires := a.lease(60), a.lease(2)
		first := a.wins(revoked, "revoked")
		a.leads(first, "revoked")
		call, second := a.campaigns(expires, "expires", 2)
		a.revoke(revoked)
		require.NoError(a, call.Wait(a))
		require.Equal(a, expires, second.Lease)
		// The second candidate may have to go before the third has come.
		third := etcdtest.Go(func() error {
			_, err := a.election.Campaign(a.context(), &v3electionpb.CampaignRequest{
				Name: []byte(name), Lease: a.lease(60), Value: []byte("third"),
			})
			return err
		})
		require.NoError(a, third.Wait(a))
		require.Equal(a, "third", string(a.line(1)[0].Value))
	})
}

func TestObserve(t *testing.T) {
	overEach(t, func(a *arena) {
		ctx, cancel := context.WithCancel(a.context())
		defer cancel()
		observed, err := a.election.Observe(ctx, &v3electionpb.LeaderRequest{Name: []byte(name)})
		require.NoError(a, err)
		sees := func(value string, leader *v3electionpb.LeaderKey) {
			a.Helper()
			resp, err := observed.Recv()
			require.NoError(a, err)
			require.Equal(a, value, string(resp.Kv.Value))
			require.Equal(a, string(leader.Key), string(resp.Kv.Key))
		}
		first := a.wins(a.lease(60), "first")
		sees("first", first)
		require.NoError(a, a.proclaim(first, "first, anew"))
		sees("first, anew", first)

		call, second := a.campaigns(a.lease(60), "second", 2)
		a.resign(first)
		require.NoError(a, call.Wait(a))
		sees("second", second)
		cancel()
		_, err = observed.Recv()
		require.Error(a, err)
	})
}
