package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-zookeeper/zk"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/etcdtest"
)

// kind is one of the servers.
type kind string

const (
	etcd        kind = "etcd"
	zooKeeper   kind = "ZooKeeper"
	redisServer kind = "Redis"
)

// server is one that runs.
type server struct {
	version string
	address string
	// standing is how many stand in the line of a lock; nil where there are no lines.
	standing func(ctx context.Context, name string) (int, error)
	close    func() // ends the connection by which it is asked
}

// fleet is all the servers that are needed.
type fleet struct {
	dir      string // of their data and their logs
	children []*child
	servers  map[kind]*server
}

var errMissing = errors.New("a server is missing")

// missing tells which programs are not there, and which package of Debian has them.
func (o options) missing() error {
	var lacks []string
	if o.needs(redisServer) {
		if _, err := exec.LookPath("redis-server"); err != nil {
			lacks = append(lacks, "no redis-server on PATH (Debian: redis-server)")
		}
	}
	if o.needs(zooKeeper) {
		if _, err := exec.LookPath("java"); err != nil {
			lacks = append(lacks, "no java on PATH (Debian: default-jre-headless)")
		}
		jar, _, _ := strings.Cut(o.jars, string(filepath.ListSeparator))
		if _, err := os.Stat(jar); err != nil {
			lacks = append(lacks, "no ZooKeeper at "+jar+" (Debian: zookeeper; elsewhere see -zookeeper)")
		}
	}
	if len(lacks) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", errMissing, strings.Join(lacks, "; "))
}

// chosen are the libraries to be measured.
func (o options) chosen() []library {
	return slices.DeleteFunc(slices.Clone(libraries), func(l library) bool {
		return l.name != here && !o.libraries.MatchString(l.name)
	})
}

func (o options) needs(k kind) bool {
	return slices.ContainsFunc(o.chosen(), func(l library) bool { return l.kind == k })
}

// start starts the servers that are needed. The caller closes them, also when that failed.
func start(ctx context.Context, o options) (*fleet, error) {
	f := &fleet{servers: map[kind]*server{}}
	if err := o.missing(); err != nil {
		return f, err
	}
	dir, err := os.MkdirTemp(o.data, "peers-")
	if err != nil {
		return f, err
	}
	f.dir = dir
	for k, start := range map[kind]func(context.Context, options) (*server, error){
		etcd: f.startEtcd, zooKeeper: f.startZooKeeper, redisServer: f.startRedis,
	} {
		if !o.needs(k) {
			continue
		}
		if f.servers[k], err = start(ctx, o); err != nil {
			return f, fmt.Errorf("%s: %w", k, err)
		}
	}
	return f, nil
}

// close ends the servers and removes their data.
func (f *fleet) close() {
	for _, s := range f.servers {
		if s != nil && s.close != nil {
			s.close()
		}
	}
	for _, c := range f.children {
		c.kill()
	}
	if f.dir != "" {
		os.RemoveAll(f.dir)
	}
}

// child is the process of a server.
type child struct {
	cmd  *exec.Cmd
	log  string        // path of what it writes
	done chan struct{} // closed when it has ended
}

// run starts a program whose temporary files, if it has any, go to the folder of the data.
func (f *fleet) run(name string, args ...string) (*child, error) {
	c := &child{cmd: exec.Command(name, args...), log: filepath.Join(f.dir, filepath.Base(name)+".log"), done: make(chan struct{})}
	log, err := os.Create(c.log)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has its own
	c.cmd.Dir, c.cmd.Stdout, c.cmd.Stderr = f.dir, log, log
	c.cmd.Env = append(os.Environ(), "TMPDIR="+f.dir)
	etcdtest.DieWithParent(c.cmd)
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the kernel takes the thread that started a process for its parent
		err := c.cmd.Start()
		started <- err
		if err == nil {
			_ = c.cmd.Wait() // how it ended is in its log
			close(c.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	f.children = append(f.children, c)
	return c, nil
}

func (c *child) kill() {
	_ = c.cmd.Process.Kill() // it may have ended
	<-c.done
}

// await asks the server until it answers.
func (c *child) await(ctx context.Context, ask func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-c.done:
			log, _ := os.ReadFile(c.log) // what there is of it
			return fmt.Errorf("ended: %s\n%s", c.cmd.ProcessState, log)
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// freePort is one that nobody listens on at the moment.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port), nil
}

// serve is the program as the child that runs etcd.
func serve(ctx context.Context, out io.Writer) error {
	cluster, err := etcdtest.Start()
	if err != nil {
		return err
	}
	defer cluster.Close()
	fmt.Fprintln(out, cluster.Endpoint(0))
	<-ctx.Done()
	return nil
}

// startEtcd starts this program as etcd, which tells its address in its log.
func (f *fleet) startEtcd(ctx context.Context, _ options) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c, err := f.run(self, "-serve")
	if err != nil {
		return nil, err
	}
	s, told := &server{}, regexp.MustCompile(`(?m)^http://(.*)\n`)
	var client *clientv3.Client
	err = c.await(ctx, func(ctx context.Context) error {
		log, err := os.ReadFile(c.log)
		if err != nil {
			return err
		}
		url := told.FindSubmatch(log)
		if url == nil {
			return errors.New("no address yet")
		}
		s.address = string(url[1])
		if client, err = etcdtest.NewClient(s.address); err != nil {
			return err
		}
		s.close = func() { client.Close() }
		status, err := client.Status(ctx, s.address)
		if err == nil {
			s.version = status.Version
		}
		return err
	})
	s.standing = func(ctx context.Context, name string) (int, error) {
		resp, err := client.Get(ctx, name+"/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return 0, err
		}
		return int(resp.Count), nil
	}
	return s, err
}

// zooKeeperConfig takes the port. The longest session is that of ttl, in milliseconds.
const zooKeeperConfig = `tickTime=2000
dataDir=data
clientPortAddress=127.0.0.1
clientPort=%s
maxClientCnxns=0
maxSessionTimeout=3600000
forceSync=no
admin.enableServer=false
4lw.commands.whitelist=envi
`

func (f *fleet) startZooKeeper(ctx context.Context, o options) (*server, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	config := filepath.Join(f.dir, "zoo.cfg")
	if err := os.WriteFile(config, fmt.Appendf(nil, zooKeeperConfig, port), 0o644); err != nil {
		return nil, err
	}
	c, err := f.run("java", "-cp", o.jars, "org.apache.zookeeper.server.quorum.QuorumPeerMain", config)
	if err != nil {
		return nil, err
	}
	s := &server{address: "127.0.0.1:" + port}
	if err := c.await(ctx, func(context.Context) (err error) {
		s.version, err = askZooKeeper(s.address)
		return err
	}); err != nil {
		return s, err
	}
	conn, err := dialZooKeeper(ctx, s.address)
	if err != nil {
		return s, err
	}
	s.close = conn.Close
	s.standing = func(ctx context.Context, name string) (int, error) {
		defer context.AfterFunc(ctx, conn.Close)() // the call knows no context
		places, _, err := conn.Children("/" + name)
		if errors.Is(err, zk.ErrNoNode) {
			return 0, nil
		}
		return len(places), err
	}
	return s, nil
}

var environment = regexp.MustCompile(`zookeeper\.version=([0-9.]+)(?s:.*)java\.version=(\S+)`)

// askZooKeeper is the version of the server and of its Java.
func askZooKeeper(address string) (string, error) {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil { // it may listen before it answers
		return "", err
	}
	if _, err := io.WriteString(conn, "envi"); err != nil {
		return "", err
	}
	text, err := io.ReadAll(conn)
	if err != nil {
		return "", err
	}
	found := environment.FindSubmatch(text)
	if found == nil {
		return "", fmt.Errorf("no version in %q", text)
	}
	return fmt.Sprintf("%s on Java %s", found[1], found[2]), nil
}

func (f *fleet) startRedis(ctx context.Context, _ options) (*server, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	c, err := f.run("redis-server", "--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no", "--dir", f.dir)
	if err != nil {
		return nil, err
	}
	s := &server{address: "127.0.0.1:" + port}
	told := regexp.MustCompile(`redis_version:(\S+)`)
	return s, c.await(ctx, func(ctx context.Context) error {
		client, err := dialRedis(ctx, s.address)
		if err != nil {
			return err
		}
		defer client.Close()
		info, err := client.Info(ctx, "server").Result()
		if found := told.FindStringSubmatch(info); found != nil {
			s.version = found[1]
		}
		return err
	})
}

// memory is the usual folder in memory, or the one for temporary files.
func memory() string {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		return "/dev/shm"
	}
	return os.TempDir()
}
