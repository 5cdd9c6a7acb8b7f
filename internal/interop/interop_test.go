//go:build unix

// Package interop has tests in which this module contends with etcdctl, which
// brings its own copy of upstream's locks and elections: both have to stand in
// the same lines.
//
// They run against the etcd named by ETCD_BINARY, with the etcdctl in the path,
// and only then.
package interop

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
	"example.com/etcd/concurrency/internal/etcdtest"
)

// bound is when an output that did not come is given up. It measures nothing.
const bound = 30 * time.Second

// name is what all contend for.
const name = "name"

func TestMain(m *testing.M) {
	if os.Getenv("ETCD_BINARY") == "" {
		fmt.Println("interop: nothing to do, because ETCD_BINARY names no etcd")
		return
	}
	os.Exit(m.Run())
}

// An arena is an etcd that this module and etcdctl share.
type arena struct {
	*testing.T
	cluster *etcdtest.Cluster
	client  *clientv3.Client
}

func newArena(t *testing.T) *arena {
	cluster := etcdtest.New(t)
	return &arena{T: t, cluster: cluster, client: cluster.Client(t)}
}

// session opens a session on a client of its own, until the test ends.
func (a *arena) session() *concurrency.Session {
	a.Helper()
	s, err := concurrency.NewSession(a.cluster.Client(a.T))
	require.NoError(a, err)
	a.Cleanup(func() { s.Close() })
	return s
}

// mutex is a lock of this module's, on a session of its own.
func (a *arena) mutex() *concurrency.Mutex {
	a.Helper()
	return concurrency.NewMutex(a.session(), name)
}

// election is a candidate of this module's, on a session of its own.
func (a *arena) election() *concurrency.Election {
	a.Helper()
	return concurrency.NewElection(a.session(), name)
}

// line waits until n keys stand in line and gives them, the oldest first.
func (a *arena) line(n int) []string {
	a.Helper()
	var keys []string
	for _, kv := range etcdtest.WaitKeys(a.T, a.client, name+"/", n) {
		keys = append(keys, string(kv.Key))
	}
	return keys
}

// oneWaits waits until two keys stand in line and somebody watches the store:
// the second has looked and found that it is not its turn.
func (a *arena) oneWaits() []string {
	a.Helper()
	line := a.line(2)
	etcdtest.Eventually(a.T, func() bool {
		n, err := a.cluster.Watchers()
		return err == nil && n > 0
	}, "nobody watches, and %v stand in line", line)
	return line
}

// A ctl is an etcdctl at work.
type ctl struct {
	*arena
	cmd    *exec.Cmd
	lines  chan string     // what it prints, closed when it has ended
	stderr strings.Builder // to be read after that
	err    error           // how it ended, as stderr
}

// start runs etcdctl, in a process group of its own together with whatever it
// runs, until the test ends.
func (a *arena) start(args ...string) *ctl {
	a.Helper()
	c := &ctl{arena: a, lines: make(chan string, 64)}
	endpoints := "--endpoints=" + strings.Join(a.cluster.Endpoints(), ",")
	c.cmd = exec.Command("etcdctl", append([]string{endpoints}, args...)...)
	c.cmd.Env = append(os.Environ(), "ETCDCTL_API=3")
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.cmd.Stderr = &c.stderr
	stdout, err := c.cmd.StdoutPipe()
	require.NoError(a, err)
	require.NoError(a, c.cmd.Start())
	go func() {
		for scanner := bufio.NewScanner(stdout); scanner.Scan(); {
			c.lines <- scanner.Text()
		}
		c.err = c.cmd.Wait()
		close(c.lines)
	}()
	a.Cleanup(func() {
		syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
		for range c.lines {
		}
	})
	return c
}

// next is the next line that it prints, and whether there was one before it
// ended.
func (c *ctl) next() (line string, ok bool) {
	c.Helper()
	timer := time.NewTimer(bound)
	defer timer.Stop()
	select {
	case line, ok = <-c.lines:
		return line, ok
	case <-timer.C:
		c.Fatalf("%v printed nothing for %v", c.cmd, bound)
		return "", false
	}
}

// prints sees that these lines come next.
func (c *ctl) prints(lines ...string) {
	c.Helper()
	for _, want := range lines {
		line, ok := c.next()
		if !ok {
			c.Fatalf("%v ended before it printed %q: %v, %s", c.cmd, want, c.err, &c.stderr)
		}
		require.Equal(c, want, line)
	}
}

// silent sees that it has printed nothing yet.
func (c *ctl) silent() {
	c.Helper()
	select {
	case line, ok := <-c.lines:
		c.Fatalf("%v printed %q, running %v, too early", c.cmd, line, ok)
	default:
	}
}

// signal sends it a signal.
func (c *ctl) signal(sig syscall.Signal) {
	c.Helper()
	require.NoError(c, c.cmd.Process.Signal(sig))
}

// ended waits for its end and says how it was.
func (c *ctl) ended() error {
	c.Helper()
	for {
		if _, ok := c.next(); !ok {
			return c.err
		}
	}
}

func TestMutexWaitsForEtcdctl(t *testing.T) {
	a := newArena(t)
	holder := a.start("lock", name)
	held := a.line(1)[0]
	holder.prints(held, "")

	m := a.mutex()
	require.ErrorIs(t, m.TryLock(t.Context()), concurrency.ErrLocked)
	call := etcdtest.Go(func() error { return m.Lock(t.Context()) })
	line := a.oneWaits()
	require.Equal(t, held, line[0])
	require.True(t, call.Running())

	holder.signal(syscall.SIGINT)
	require.NoError(t, call.Wait(t))
	require.NoError(t, holder.ended())
	assert.Equal(t, line[1:], a.line(1))
	assert.Equal(t, line[1], m.Key())
	require.NoError(t, m.Unlock(t.Context()))
	a.line(0)
}

func TestEtcdctlWaitsForMutex(t *testing.T) {
	a := newArena(t)
	m := a.mutex()
	require.NoError(t, m.Lock(t.Context()))
	waiter := a.start("lock", name)
	line := a.oneWaits()
	require.Equal(t, m.Key(), line[0])
	waiter.silent()

	require.NoError(t, m.Unlock(t.Context()))
	waiter.prints(line[1], "")
	require.ErrorIs(t, m.TryLock(t.Context()), concurrency.ErrLocked)
	waiter.signal(syscall.SIGTERM)
	require.NoError(t, waiter.ended())
	require.NoError(t, m.TryLock(t.Context()))
}

func TestLockIsServedInOrder(t *testing.T) {
	a := newArena(t)
	first, third := a.mutex(), a.mutex()
	require.NoError(t, first.Lock(t.Context()))
	second := a.start("lock", name)
	a.oneWaits()
	second.silent()
	call := etcdtest.Go(func() error { return third.Lock(t.Context()) })
	a.line(3)
	fourth := a.start("lock", name)
	line := a.line(4)

	require.NoError(t, first.Unlock(t.Context()))
	second.prints(line[1], "")
	require.True(t, call.Running())
	second.signal(syscall.SIGINT)
	require.NoError(t, call.Wait(t))
	require.Equal(t, line[2], third.Key())
	a.oneWaits()
	fourth.silent()
	require.NoError(t, third.Unlock(t.Context()))
	fourth.prints(line[3], "")
}

func TestMutexWaitsForCommandUnderLock(t *testing.T) {
	a := newArena(t)
	fifo := filepath.Join(t.TempDir(), "fifo")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	// The command runs until the other end of the fifo is closed.
	holder := a.start("lock", name, "--", "sh", "-c", `echo "$ETCD_LOCK_KEY"; cat "$0"`, fifo)
	held := a.line(1)[0]
	holder.prints(held)
	m := a.mutex()
	call := etcdtest.Go(func() error { return m.Lock(t.Context()) })
	a.oneWaits()

	end, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = io.WriteString(end, "done\n")
	require.NoError(t, err)
	holder.prints("done")
	require.True(t, call.Running())
	require.NoError(t, end.Close())
	require.NoError(t, call.Wait(t))
	require.NoError(t, holder.ended())
	assert.NotEqual(t, held, m.Key())
}

func TestMutexOutlivesKilledEtcdctl(t *testing.T) {
	a := newArena(t)
	holder := a.start("lock", "--ttl", "1", name)
	holder.prints(a.line(1)[0], "")
	m := a.mutex()
	call := etcdtest.Go(func() error { return m.Lock(t.Context()) })
	line := a.oneWaits()

	holder.signal(syscall.SIGKILL)
	require.Error(t, holder.ended())
	require.NoError(t, call.Wait(t))
	assert.Equal(t, line[1], m.Key())
}

func TestEtcdctlOutlivesRevokedSession(t *testing.T) {
	a := newArena(t)
	s := a.session()
	require.NoError(t, concurrency.NewMutex(s, name).Lock(t.Context()))
	waiter := a.start("lock", name)
	line := a.oneWaits()
	waiter.silent()

	_, err := a.client.Revoke(t.Context(), s.Lease())
	require.NoError(t, err)
	waiter.prints(line[1], "")
}

func TestWaiterThatLeavesLetsNobodyPast(t *testing.T) {
	for _, leaver := range []string{"etcdctl", "mutex"} {
		t.Run(leaver, func(t *testing.T) {
			a := newArena(t)
			holder := a.mutex()
			require.NoError(t, holder.Lock(t.Context()))
			if leaver == "etcdctl" {
				middle := a.start("lock", name)
				a.line(2)
				last := a.mutex()
				call := etcdtest.Go(func() error { return last.Lock(t.Context()) })
				line := a.line(3)
				middle.signal(syscall.SIGINT)
				require.Error(t, middle.ended())
				require.Equal(t, []string{line[0], line[2]}, a.oneWaits())
				require.True(t, call.Running())
				require.NoError(t, holder.Unlock(t.Context()))
				require.NoError(t, call.Wait(t))
				return
			}
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			middle := a.mutex()
			call := etcdtest.Go(func() error { return middle.Lock(ctx) })
			a.line(2)
			last := a.start("lock", name)
			line := a.line(3)
			leave()
			require.ErrorIs(t, call.Wait(t), context.Canceled)
			require.Equal(t, []string{line[0], line[2]}, a.oneWaits())
			last.silent()
			require.NoError(t, holder.Unlock(t.Context()))
			last.prints(line[2], "")
		})
	}
}

func TestElectionWaitsForEtcdctl(t *testing.T) {
	a := newArena(t)
	leader := a.start("elect", name, "theirs")
	leader.prints(a.line(1)[0], "theirs")

	e := a.election()
	resp, err := e.Leader(t.Context())
	require.NoError(t, err)
	require.Equal(t, "theirs", string(resp.Kvs[0].Value))
	call := etcdtest.Go(func() error { return e.Campaign(t.Context(), "ours") })
	line := a.oneWaits()
	require.True(t, call.Running())

	leader.signal(syscall.SIGINT)
	require.NoError(t, call.Wait(t))
	require.NoError(t, leader.ended())
	assert.Equal(t, line[1], e.Key())
	resp, err = e.Leader(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "ours", string(resp.Kvs[0].Value))
}

func TestEtcdctlWaitsForElection(t *testing.T) {
	a := newArena(t)
	e := a.election()
	require.NoError(t, e.Campaign(t.Context(), "ours"))
	candidate := a.start("elect", name, "theirs")
	line := a.oneWaits()
	require.Equal(t, e.Key(), line[0])
	candidate.silent()

	require.NoError(t, e.Resign(t.Context()))
	candidate.prints(line[1], "theirs")
}

func TestObserveSeesEtcdctl(t *testing.T) {
	a := newArena(t)
	values := a.election().Observe(t.Context())
	observed := func() string {
		t.Helper()
		timer := time.NewTimer(bound)
		defer timer.Stop()
		select {
		case resp, ok := <-values:
			require.True(t, ok, "Observe ended")
			return string(resp.Kvs[0].Value)
		case <-timer.C:
			t.Fatalf("Observe sent nothing for %v", bound)
			return ""
		}
	}
	leader := a.start("elect", name, "theirs")
	require.Equal(t, "theirs", observed())
	e := a.election()
	call := etcdtest.Go(func() error { return e.Campaign(t.Context(), "ours") })
	a.line(2)
	leader.signal(syscall.SIGINT)
	require.NoError(t, call.Wait(t))
	require.Equal(t, "ours", observed())

	next := a.start("elect", name, "theirs again")
	line := a.line(2)
	require.NoError(t, e.Resign(t.Context()))
	next.prints(line[1], "theirs again")
	require.Equal(t, "theirs again", observed())
}

func TestEtcdctlObservesElection(t *testing.T) {
	a := newArena(t)
	e := a.election()
	require.NoError(t, e.Campaign(t.Context(), "ours"))
	key := e.Key()
	observer := a.start("elect", "-l", name)
	observer.prints(key, "ours")
	require.NoError(t, e.Proclaim(t.Context(), "ours, anew"))
	observer.prints(key, "ours, anew")

	candidate := a.start("elect", name, "theirs")
	line := a.line(2)
	require.NoError(t, e.Resign(t.Context()))
	candidate.prints(line[1], "theirs")
	observer.prints(line[1], "theirs")
}
