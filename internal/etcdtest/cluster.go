package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"example.com/etcd/concurrency/internal/fault"
)

// errNotEmbedded is returned by what only servers inside the process can do.
var errNotEmbedded = errors.New("etcdtest: only for embedded servers")

// errNoProxies is returned where members are to be parted and nothing lies between them.
var errNoProxies = errors.New("etcdtest: only for embedded servers with PeerProxies")

// patience is how long a member that is asked again and again may take to
// answer once.
const patience = time.Second

// settings is what the options of one cluster add up to.
type settings struct {
	members int
	fsync   bool
	proxies bool
	config  func(i int, cfg *embed.Config)
}

// Option changes how a cluster is started.
type Option func(*settings)

// Members sets the number of members. One is the default; three make a quorum
// that survives the loss of one.
func Members(n int) Option {
	return func(s *settings) { s.members = n }
}

// Fsync chooses whether the servers wait for the disk. They don't by default:
// a test asks what a server answers, not what a power cut leaves. A binary
// that knows no such setting waits always.
func Fsync(on bool) Option {
	return func(s *settings) { s.fsync = on }
}

// PeerProxies puts a proxy on the connections from each embedded member to each other, so
// that they can be parted: see [Cluster.Link]. A binary is run without.
func PeerProxies() Option {
	return func(s *settings) { s.proxies = true }
}

// Config lets f change the configuration of every embedded member i, each time
// before it starts. It makes Start fail where a binary is to be run.
func Config(f func(i int, cfg *embed.Config)) Option {
	return func(s *settings) { s.config = f }
}

// Cluster is a running etcd of one or more members. Its methods may be called
// from any goroutine; those that change a member must not be called for the
// same member at the same time.
type Cluster struct {
	settings
	binary  string // path of the etcd to run, "" when embedded
	dir     string
	members []*member
}

// member is one place in the cluster. Name, addresses and folder outlive the
// server that runs there.
type member struct {
	name, dir    string
	client, peer string       // URLs at which it is reached
	listen       string       // URL at which it listens for its peers
	links        *fault.Links // to it, from its peers; nil without proxies
	id           uint64       // as etcd calls it, written before Start returns and never after

	mu      sync.Mutex // guards running
	running server     // nil while stopped
}

// server is one life of a member.
type server interface {
	// stop ends it at once, without waiting for its clients to go, and
	// returns when its ports and its data are free.
	stop()
}

// Start starts a cluster and returns when it has a leader and every member
// answers. Nothing is left behind when it fails.
func Start(opts ...Option) (*Cluster, error) {
	s := settings{members: 1}
	for _, opt := range opts {
		opt(&s)
	}
	c := &Cluster{settings: s, binary: os.Getenv("ETCD_BINARY")}
	if !c.Embedded() && s.config != nil {
		return nil, fmt.Errorf("Config: %w", errNotEmbedded)
	}
	// A port that was free a moment ago may be taken now, so a start that
	// fails for that reason, and for no other, begins again with new ports.
	for {
		err := c.start()
		if err == nil {
			return c, nil
		}
		c.Close()
		if !errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("etcdtest: start: %w", err)
		}
	}
}

// New starts a cluster that is closed at the end of the test.
func New(tb testing.TB, opts ...Option) *Cluster {
	tb.Helper()
	c, err := Start(opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	return c
}

// Close stops all members and removes their data. Clients should be closed
// before; those that are not lose their connections.
func (c *Cluster) Close() {
	var wg sync.WaitGroup
	for i := range c.members {
		wg.Go(func() { c.Stop(i) })
	}
	wg.Wait()
	for _, m := range c.members {
		if m.links != nil {
			m.links.Close()
		}
	}
	os.RemoveAll(c.dir)
}

// Embedded says whether the servers run inside this process.
func (c *Cluster) Embedded() bool { return c.binary == "" }

// Endpoint is the client URL of member i. It stays the same over restarts.
func (c *Cluster) Endpoint(i int) string { return c.members[i].client }

// Endpoints are the client URLs of all members.
func (c *Cluster) Endpoints() []string {
	endpoints := make([]string, len(c.members))
	for i, m := range c.members {
		endpoints[i] = m.client
	}
	return endpoints
}

// Stop ends member i as a crash would: its clients lose their connections at
// once, and a leader leaves without naming a successor (MoveLeader before makes
// that orderly). Its data and its ports stay reserved for Restart. Stopping a
// stopped member does nothing.
func (c *Cluster) Stop(i int) {
	m := c.members[i]
	m.mu.Lock()
	srv := m.running
	m.running = nil
	m.mu.Unlock()
	if srv != nil {
		srv.stop()
	}
}

// Restart starts member i again, on its data and its ports. If that makes a
// majority it returns when the member answers and knows a leader. Without a
// majority a member can't, and Restart returns once it has started.
func (c *Cluster) Restart(i int) error {
	c.Stop(i)
	if err := c.launch(i); err != nil {
		return fmt.Errorf("etcdtest: restart member %d: %w", i, err)
	}
	if len(c.runningMembers()) <= len(c.members)/2 {
		return nil
	}
	return c.ready(i)
}

// Mend starts the members again that were stopped, and returns when all answer and know a
// leader.
func (c *Cluster) Mend() error {
	running := c.runningMembers()
	if len(running) == len(c.members) {
		return nil
	}
	for i := range c.members {
		if slices.Contains(running, i) {
			continue
		}
		if err := c.launch(i); err != nil {
			return fmt.Errorf("etcdtest: mend member %d: %w", i, err)
		}
	}
	for i := range c.members {
		if err := c.ready(i); err != nil {
			return fmt.Errorf("etcdtest: mend member %d: %w", i, err)
		}
	}
	return nil
}

// Link is the proxy on the connections that one member opens to another, nil without
// [PeerProxies]. Members ask and tell on connections that either has opened: what one
// says to the other goes up one link and down the other.
func (c *Cluster) Link(from, to int) *fault.Proxy {
	if c.members[to].links == nil {
		return nil
	}
	return c.members[to].links.From(c.members[from].name)
}

// Isolate parts member i from its peers, both ways, while its clients stay
// connected. A follower keeps answering serializable reads, from a store that
// falls behind; a leader soon finds that it leads nobody. It takes [PeerProxies].
func (c *Cluster) Isolate(i int) error {
	return c.eachLink(i, (*fault.Proxy).Sever, (*fault.Proxy).Sever)
}

// Mute keeps back what member i says to its peers; it still hears them. Rejoin delivers it,
// unless a connection broke meanwhile. It takes [PeerProxies].
func (c *Cluster) Mute(i int) error {
	return c.eachLink(i, (*fault.Proxy).StallUp, (*fault.Proxy).StallDown)
}

// Rejoin undoes all faults of the links of member i. It does not wait for the member to
// catch up.
func (c *Cluster) Rejoin(i int) error { return c.eachLink(i, (*fault.Proxy).Heal, (*fault.Proxy).Heal) }

// eachLink calls out for the links that member i opened, and in for those to it.
func (c *Cluster) eachLink(i int, out, in func(*fault.Proxy)) error {
	for j := range c.members {
		if j == i {
			continue
		}
		if c.Link(i, j) == nil {
			return errNoProxies
		}
		out(c.Link(i, j))
		in(c.Link(j, i))
	}
	return nil
}

// Leader is the index of the member that a majority takes for the leader. It
// waits until there is one, and returns -1 if none comes up.
func (c *Cluster) Leader() int {
	leader := -1
	poll(func() bool {
		leader = c.leaderNow()
		return leader >= 0
	})
	return leader
}

// leaderNow is the leader that a majority agrees on at the moment, or -1. It
// must be of that majority itself: the others don't know at once that it is
// gone.
func (c *Cluster) leaderNow() int {
	votes := make(map[uint64]int)
	leader := -1
	for _, i := range c.runningMembers() {
		status, err := c.status(i, patience)
		if err != nil {
			continue
		}
		votes[status.Leader]++
		if status.Leader == c.members[i].id {
			leader = i
		}
	}
	if leader < 0 || votes[c.members[leader].id] <= len(c.members)/2 {
		return -1
	}
	return leader
}

// MoveLeader makes member to the leader and returns when a majority agrees.
func (c *Cluster) MoveLeader(to int) error {
	from := c.Leader()
	if from == to {
		return nil
	}
	if from < 0 {
		return errors.New("etcdtest: move leader: there is none")
	}
	client, err := NewClient(c.Endpoint(from))
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	if _, err := client.MoveLeader(ctx, c.members[to].id); err != nil {
		return fmt.Errorf("etcdtest: move leader: %w", err)
	}
	if !poll(func() bool { return c.leaderNow() == to }) {
		return fmt.Errorf("etcdtest: member %d did not become the leader", to)
	}
	return nil
}

// CommittedIndex is the index of the last raft entry that member 0 knows to be committed.
// Differences of it count the proposals that work has cost: what was answered is among them,
// while the index of what is applied comes a moment after the answer (apply and raftNode.start
// in server/etcdserver). It is 0 when the member doesn't answer.
func (c *Cluster) CommittedIndex() uint64 {
	status, err := c.status(0, bound)
	if err != nil {
		return 0
	}
	return status.RaftIndex
}

// Watchers counts the watchers that the members serve. The members inside one
// process share one count, over all clusters there.
func (c *Cluster) Watchers() (int, error) {
	running := c.runningMembers()
	if c.Embedded() {
		running = running[:min(1, len(running))]
	}
	total := 0
	for _, i := range running {
		n, err := watchers(c.Endpoint(i))
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// WaitWatchers waits until the members serve n watchers, as counted by
// Watchers.
func (c *Cluster) WaitWatchers(tb testing.TB, n int) {
	tb.Helper()
	var got int
	var err error
	ok := poll(func() bool {
		got, err = c.Watchers()
		return err == nil && got == n
	})
	if !ok {
		tb.Fatalf("%d watchers expected, there are %d, error %v", n, got, err)
	}
}

// watchers reads the count of watchers from the metrics of one member.
func watchers(endpoint string) (int, error) {
	const name = "\netcd_debugging_mvcc_watcher_total "
	client := &http.Client{
		Timeout:   bound,
		Transport: &http.Transport{DisableKeepAlives: true}, // leaves no connection behind
	}
	resp, err := client.Get(endpoint + "/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	_, after, found := strings.Cut(string(body), name)
	if !found {
		return 0, fmt.Errorf("etcdtest: %s has no count of watchers", endpoint)
	}
	value, _, _ := strings.Cut(after, "\n")
	return strconv.Atoi(value)
}

// start makes places for all members and starts them.
func (c *Cluster) start() error {
	dir, err := os.MkdirTemp("", "etcdtest-")
	if err != nil {
		return err
	}
	c.dir, c.members = dir, nil
	urls, err := freeURLs(2 * c.settings.members)
	if err != nil {
		return err
	}
	for i := range c.settings.members {
		name := fmt.Sprintf("m%d", i)
		c.members = append(c.members, &member{
			name:   name,
			dir:    filepath.Join(dir, name),
			client: urls[2*i],
			peer:   urls[2*i+1],
			listen: urls[2*i+1],
		})
	}
	if c.proxies && c.Embedded() {
		if err := c.connect(); err != nil {
			return err
		}
	}
	for i := range c.members {
		if err := c.launch(i); err != nil {
			return err
		}
	}
	for i := range c.members {
		if err := c.ready(i); err != nil {
			return err
		}
	}
	return nil
}

// connect puts proxies between the members.
func (c *Cluster) connect() error {
	if err := c.writeCert(); err != nil {
		return err
	}
	var names []string
	for _, m := range c.members {
		names = append(names, m.name)
	}
	for _, m := range c.members {
		var err error
		if m.links, err = fault.NewLinks(m.listen, names...); err != nil {
			return err
		}
		m.listen, m.peer = strings.Replace(m.listen, "http:", "https:", 1), m.links.Endpoint()
	}
	return nil
}

// launch starts the server of member i.
func (c *Cluster) launch(i int) error {
	var srv server
	var err error
	if c.Embedded() {
		srv, err = c.launchEmbedded(i)
	} else {
		srv, err = c.launchProcess(i)
	}
	if err != nil {
		return err
	}
	m := c.members[i]
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running = srv
	return nil
}

// ready waits until member i answers and knows a leader.
func (c *Cluster) ready(i int) error {
	m := c.members[i]
	var err error
	ok := poll(func() bool {
		var status *clientv3.StatusResponse
		if status, err = c.status(i, patience); err != nil {
			return c.exited(i) != nil
		}
		if m.id == 0 {
			m.id = status.Header.MemberId
		}
		return status.Leader != 0
	})
	if exit := c.exited(i); exit != nil {
		return exit
	}
	if !ok {
		return fmt.Errorf("member %d is not ready: %w", i, err)
	}
	return nil
}

// exited is the reason for which the server of member i ended by itself.
func (c *Cluster) exited(i int) error {
	m := c.members[i]
	m.mu.Lock()
	defer m.mu.Unlock()
	if p, ok := m.running.(*process); ok {
		return p.exited()
	}
	return nil
}

// status asks member i, on a connection of its own, about itself.
func (c *Cluster) status(i int, timeout time.Duration) (*clientv3.StatusResponse, error) {
	if !slices.Contains(c.runningMembers(), i) {
		return nil, fmt.Errorf("member %d is stopped", i)
	}
	endpoint := c.Endpoint(i)
	client, err := NewClient(endpoint)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return client.Status(ctx, endpoint)
}

// runningMembers are the indexes of the members that were not stopped.
func (c *Cluster) runningMembers() []int {
	var running []int
	for i, m := range c.members {
		m.mu.Lock()
		if m.running != nil {
			running = append(running, i)
		}
		m.mu.Unlock()
	}
	return running
}

// initialCluster names all members and their peer URLs in etcd's form.
func (c *Cluster) initialCluster() string {
	var parts []string
	for _, m := range c.members {
		parts = append(parts, m.name+"="+m.peer)
	}
	return strings.Join(parts, ",")
}

// timing is the heartbeat and the election timeout in milliseconds. The least
// lease is one and a half election timeouts, so both give leases of one second.
// Alone, a member has nobody to lose a race against, and a short timeout makes
// a quick start. Three need to stay calm on a loaded machine.
func (c *Cluster) timing() (heartbeat, election uint) {
	if len(c.members) == 1 {
		return 10, 100
	}
	return 50, 650
}

// freeURLs finds n free loopback ports. It looks below the range that systems
// take outgoing ports from: there, a client that redials a stopped server could
// be given the server's own port, and would be connected to itself.
func freeURLs(n int) ([]string, error) {
	const low, high = 12000, 32000
	var urls []string
	for range 100 * n {
		port := low + rand.IntN(high-low)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			return nil, err
		}
		defer l.Close() // held until all are found: no port twice
		urls = append(urls, "http://"+l.Addr().String())
		if len(urls) == n {
			return urls, nil
		}
	}
	return nil, errors.New("no free ports")
}
