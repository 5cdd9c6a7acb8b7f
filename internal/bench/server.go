package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// setting is what a cluster is like.
type setting struct {
	members int
	fsync   bool
	rtt     time.Duration // added between clients and servers
}

// addresses are what the serving process tells the measuring one.
type addresses struct {
	Near []string // of the members
	Far  []string // of the proxies in front of them; the same without a delay
}

// serve is the program as the child that runs the servers: what the measuring process
// allocates, and the time it uses, is the client's alone. It ends when its input does,
// hence with its parent.
func serve(s setting, in io.Reader, out io.Writer) error {
	signal.Ignore(os.Interrupt) // meant for the parent
	cluster, err := etcdtest.Start(etcdtest.Members(s.members), etcdtest.Fsync(s.fsync))
	if err != nil {
		return err
	}
	defer cluster.Close()
	a := addresses{Near: cluster.Endpoints(), Far: cluster.Endpoints()}
	for i := range a.Far {
		if s.rtt == 0 {
			break
		}
		proxy, err := fault.NewProxy(a.Near[i])
		if err != nil {
			return err
		}
		defer proxy.Close()
		proxy.Delay(s.rtt / 2)
		a.Far[i] = proxy.Endpoint()
	}
	if err := json.NewEncoder(out).Encode(a); err != nil {
		return err
	}
	return profileOnDemand(in, out)
}

// profileOnDemand profiles this process into the file that a line of in names, until the next
// line, and so on. Each is acknowledged by a line.
func profileOnDemand(in io.Reader, out io.Writer) error {
	var stop func() error
	for lines := bufio.NewScanner(in); lines.Scan(); {
		var err error
		if stop == nil {
			stop, err = startProfile(lines.Text())
		} else {
			err, stop = stop(), nil
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(out)
	}
	return nil
}

// toggleProfile begins or ends a profile of the servers' process.
func (c *cluster) toggleProfile(file string) error {
	if _, err := fmt.Fprintln(c.stdin, file); err != nil {
		return err
	}
	_, err := c.stdout.ReadBytes('\n')
	return err
}

// cluster is the child, and the connection on which it is asked about itself.
type cluster struct {
	setting
	addresses
	plain   *clientv3.Client // without the delay, and never counted
	version string

	disturbances atomic.Uint64 // puts that keep the store busy, so far

	stdin  io.WriteCloser
	stdout *bufio.Reader
	cmd    *exec.Cmd
}

// launch starts the child and returns when its members answer.
func launch(ctx context.Context, s setting) (*cluster, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &cluster{setting: s, cmd: exec.Command(self, "-serve",
		"-members="+strconv.Itoa(s.members), "-fsync="+strconv.FormatBool(s.fsync), "-rtt="+s.rtt.String())}
	c.cmd.Stderr = os.Stderr
	stdin, err := c.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	c.stdin = stdin
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	c.stdout = bufio.NewReader(stdout)
	if err := c.connect(ctx); err != nil {
		c.close()
		return nil, fmt.Errorf("the serving process: %w", err)
	}
	return c, nil
}

func (c *cluster) connect(ctx context.Context) error {
	line, err := c.stdout.ReadBytes('\n')
	if err != nil {
		return err
	}
	if err := json.Unmarshal(line, &c.addresses); err != nil {
		return err
	}
	if c.plain, err = etcdtest.NewClient(c.Near...); err != nil {
		return err
	}
	status, err := c.plain.Status(ctx, c.Near[0])
	if err != nil {
		return err
	}
	c.version = status.Version
	return nil
}

// close ends the child, which removes its data.
func (c *cluster) close() {
	if c.plain != nil {
		c.plain.Close()
	}
	c.stdin.Close()
	_ = c.cmd.Wait() // it was told to end; how it did is no result
}

// applied is how many raft entries the members have applied, or the first of them, but
// for those of disturb.
func (c *cluster) applied(ctx context.Context) (uint64, error) {
	var last uint64
	for _, endpoint := range c.Near {
		status, err := c.plain.Status(ctx, endpoint)
		if err != nil {
			return 0, err
		}
		last = max(last, status.RaftAppliedIndex)
	}
	return last - c.disturbances.Load(), nil
}

// answers finds how many renewals a server has answered. What it received would count
// the end of a stream too.
var answers = regexp.MustCompile(`grpc_server_msg_sent_total\{[^}]*"LeaseKeepAlive"[^}]*\} (\d+)\n`)

// renewals is how many renewals of leases the servers have answered.
func (c *cluster) renewals() (total int, err error) {
	for _, endpoint := range c.Near {
		resp, err := http.Get(endpoint + "/metrics")
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return 0, err
		}
		found := answers.FindSubmatch(body)
		if found == nil {
			return 0, errors.New("the servers don't count renewals")
		}
		n, err := strconv.Atoi(string(found[1]))
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// disturb keeps the store busy until the function that it returns is called.
func (c *cluster) disturb(ctx context.Context) (calm func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		ticker := time.NewTicker(time.Second / rate)
		defer ticker.Stop()
		for ctx.Err() == nil {
			select {
			case <-ticker.C:
				// What was begun is finished, so that none escapes the count.
				if _, err := c.plain.Put(context.WithoutCancel(ctx), "elsewhere", ""); err == nil {
					c.disturbances.Add(1)
				}
			case <-ctx.Done():
			}
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}
