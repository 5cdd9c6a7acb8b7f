package compat

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"

	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
	"example.com/etcd/concurrency/internal/library"
	"example.com/etcd/concurrency/internal/virtual"
)

const (
	// soon is the second that the contract gives a call to obey its context and a
	// waiter to hear of the loss of its key.
	soon = time.Second
	// ample is for what healthy code does at once: where it has not happened by
	// then, it does not happen.
	ample = 10 * time.Second
	// handed is for what healthy code does once a cluster has another leader: a request
	// that the old one has taken with it is given up by the server after six seconds.
	handed = 30 * time.Second
	// dwell is how long a call that is about to return too early is given to do so,
	// where no state tells that it would have.
	dwell = 300 * time.Millisecond
)

// path is the way on which the clients of a case reach the server.
type path string

const (
	direct     path = "direct"
	inProcess  path = "in-process"
	namespaced path = "namespace"
)

// form is the primitive that stands in line, for cases about the queue.
type form string

const (
	lock      form = "lock"
	candidacy form = "candidacy"
)

// variant is how one run of a case is set up.
type variant struct {
	path path
	form form
	// pair gives every participant two handles of its session, which do the same
	// things at the same time.
	pair bool
}

func (v variant) String() string {
	name := string(v.path) + " " + string(v.form)
	if v.pair {
		name += " pair"
	}
	return name
}

// env is what one run of a case works with.
type env struct {
	*testing.T
	variant
	lib     library.Library
	cluster *etcdtest.Cluster // nil in virtual time
	bubble  *virtual.Bubble   // nil in real time
	clients int               // that were made in the bubble
	auth    bool
	// plain is a client of its own, without faults, on the same path.
	plain *clientv3.Client
	// name is the name of the lock or the election, and begins all keys of the run.
	name string
	// note goes into the table beside the result.
	note string
	// early is how long a call is given to return too early: ample where the row foretells it.
	early time.Duration
}

// ours tells the packages apart, where they differ in what a case may see.
func ours(lib library.Library) bool { return lib.Name == library.Here.Name }

func newEnv(t *testing.T, lib library.Library, v variant, p *part) *env {
	e := &env{T: t, variant: v, lib: lib, name: fmt.Sprintf("compat-%x", rand.Uint64()), early: dwell}
	if !ours(lib) && p.upstream != "" {
		e.early = ample
	}
	switch {
	case p.auth:
		e.auth = true
		e.cluster = secret.borrow(t)
	case p.members == 1:
		e.cluster = single.borrow(t)
	case p.members == 3:
		e.cluster = triple.borrow(t)
	default:
		e.cluster = shared()
	}
	e.plain = e.client()
	return e
}

// client is a new client on the path of the run.
func (e *env) client(endpoints ...string) *clientv3.Client {
	if e.bubble != nil {
		c, _ := e.remote()
		return c
	}
	if len(endpoints) == 0 {
		endpoints = e.cluster.Endpoints()
	}
	var c *clientv3.Client
	switch {
	case e.path == inProcess:
		c = e.cluster.InProcess(e)
	case e.auth:
		c = e.login("root", endpoints...)
	default:
		c = etcdtest.Dial(e, endpoints...)
	}
	return e.inNamespace(c)
}

// remote is a client in virtual time, and the network before it.
func (e *env) remote() (*clientv3.Client, *virtual.Network) {
	e.clients++
	c, n := e.bubble.Client(strconv.Itoa(e.clients))
	return e.inNamespace(c), n
}

// away is a client in virtual time whose every round trip takes as long.
func (e *env) away(rtt time.Duration) *clientv3.Client {
	c, n := e.remote()
	n.SetRoundTrip(virtual.RoundTrip{Min: rtt, Max: rtt})
	return c
}

// inNamespace puts the client into the namespace, where the run has one.
func (e *env) inNamespace(c *clientv3.Client) *clientv3.Client {
	if e.path == namespaced {
		const ns = "tenant/"
		c.KV = namespace.NewKV(c.KV, ns)
		c.Watcher = namespace.NewWatcher(c.Watcher, ns)
		c.Lease = namespace.NewLease(c.Lease, ns)
	}
	return c
}

func (e *env) must(err error) {
	e.Helper()
	if err != nil {
		e.Fatalf("not part of the case: %v", err)
	}
}

// session is a session that ends with its client.
func (e *env) session(c *clientv3.Client, o library.SessionOptions) library.Session {
	e.Helper()
	s, err := e.lib.Open(c, o)
	e.must(err)
	return s
}

// proxy is a proxy before the first member.
func (e *env) proxy() *fault.Proxy { return e.proxyOf(e.cluster.Endpoint(0)) }

func (e *env) proxyOf(endpoint string) *fault.Proxy {
	p, err := fault.NewProxy(endpoint)
	e.must(err)
	e.Cleanup(p.Close)
	return p
}

func (e *env) put(key, value string) int64 {
	e.Helper()
	resp, err := e.plain.Put(e.Context(), key, value)
	e.must(err)
	return resp.Header.Revision
}

func (e *env) value(key string) string {
	e.Helper()
	resp, err := e.plain.Get(e.Context(), key)
	e.must(err)
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}

// bury writes 20 revisions and compacts at the last.
func (e *env) bury() {
	e.Helper()
	var rev int64
	for i := range 20 {
		rev = e.put(e.name+"-other", strconv.Itoa(i))
	}
	_, err := e.plain.Compact(e.Context(), rev)
	e.must(err)
}

// line is who stands in line, the oldest first.
func (e *env) line() []*mvccpb.KeyValue { return etcdtest.Keys(e, e.plain, e.name+"/") }

// waitLine waits until n stand in line.
func (e *env) waitLine(n int) { etcdtest.WaitKeys(e, e.plain, e.name+"/", n) }

// leaves is nil when the key goes within d.
func (e *env) leaves(key string, d time.Duration) error {
	ctx, cancel := context.WithCancel(e.Context())
	defer cancel()
	resp, err := e.plain.Get(ctx, key)
	if err != nil || len(resp.Kvs) == 0 {
		return err
	}
	ch := e.plain.Watch(ctx, key, clientv3.WithRev(resp.Header.Revision+1))
	gone := etcdtest.Go(func() error {
		for resp := range ch {
			for _, ev := range resp.Events {
				if ev.Type == mvccpb.Event_DELETE {
					return nil
				}
			}
		}
		return errors.New("the watch ended")
	})
	if !returned(gone, d) {
		return errors.New("the key stays")
	}
	return gone.Err()
}

// beat is how often a process that waits looks whether it still waits.
const beat = 10 * time.Millisecond

// returned says whether the call returns within d, of which only that time counts in which
// this process runs. It counts beats of a ticker, which drops those that nobody takes in
// time: a machine that is busy for a while, or stands, takes nothing from d.
func returned(c *etcdtest.Call, d time.Duration) bool {
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	for left := d / beat; left > 0; left-- {
		select {
		case <-c.Done():
			return true
		case <-ticker.C:
		}
	}
	return !c.Running()
}

// ends is nil when the call returns want within d.
func ends(c *etcdtest.Call, d time.Duration, want error) error {
	switch {
	case !returned(c, d):
		return fmt.Errorf("still waiting after %v", d)
	case c.Err() != want:
		return fmt.Errorf("returned %v, not %v", c.Err(), want)
	}
	return nil
}

// closes says whether the channel is closed within d.
func closes(ch <-chan struct{}, d time.Duration) bool {
	return returned(etcdtest.Go(func() error { <-ch; return nil }), d)
}

// contender is a handle that stands in line.
type contender interface {
	acquire(ctx context.Context) error
	release(ctx context.Context) error
	Key() string
	Header() *pb.ResponseHeader
}

type lockHandle struct{ library.Mutex }

func (l lockHandle) acquire(ctx context.Context) error { return l.Lock(ctx) }
func (l lockHandle) release(ctx context.Context) error { return l.Unlock(ctx) }

type candidate struct {
	library.Election

	value string
}

func (c candidate) acquire(ctx context.Context) error { return c.Campaign(ctx, c.value) }
func (c candidate) release(ctx context.Context) error { return c.Resign(ctx) }

// party is a participant: a client, a session, and its handles.
type party struct {
	*env
	client  *clientv3.Client
	faults  *fault.Faults
	proxy   *fault.Proxy     // nil unless it was asked for, and in virtual time
	network *virtual.Network // likewise, and in real time
	session library.Session
	handles []contender
}

// partyOptions says what a participant needs.
type partyOptions struct {
	ttl    int
	proxy  bool
	client *clientv3.Client
}

func (e *env) party(o partyOptions) *party {
	e.Helper()
	p := &party{env: e, client: o.client}
	switch {
	case o.proxy && e.bubble != nil:
		p.client, p.network = e.remote()
	case o.proxy:
		p.proxy = e.proxy()
		p.client = e.client(p.proxy.Endpoint())
	case p.client == nil:
		p.client = e.client()
	}
	p.faults = fault.Wrap(p.client)
	p.session = e.session(p.client, library.SessionOptions{TTL: o.ttl})
	p.handles = []contender{p.handle()}
	if e.pair {
		p.handles = append(p.handles, p.handle())
	}
	return p
}

// stall keeps everything from getting through to the party and from it.
func (p *party) stall() {
	if p.network != nil {
		p.network.Stall(time.Hour)
		return
	}
	p.proxy.Stall()
}

// resume ends a stall.
func (p *party) resume() {
	if p.network != nil {
		p.network.Calm()
		return
	}
	p.proxy.Resume()
}

// handle is a new handle of the session.
func (p *party) handle() contender {
	if p.form == candidacy {
		return candidate{p.session.NewElection(p.name), p.place()}
	}
	return lockHandle{p.session.NewMutex(p.name)}
}

// place is the key by which the session stands in line.
func (p *party) place() string { return p.name + "/" + strconv.FormatInt(int64(p.session.Lease()), 16) }

// acquire lets all handles acquire at the same time. They have to agree.
func (p *party) acquire(ctx context.Context) error {
	var calls []*etcdtest.Call
	for _, h := range p.handles {
		calls = append(calls, etcdtest.Go(func() error { return h.acquire(ctx) }))
	}
	<-calls[0].Done()
	for _, c := range calls[1:] {
		if !returned(c, handed) || c.Err() != calls[0].Err() {
			return fmt.Errorf("two handles of a session: one %v, the other %v", calls[0].Err(), c.Err())
		}
	}
	return calls[0].Err()
}

// start lets the party acquire beside the case.
func (p *party) start(ctx context.Context) *etcdtest.Call {
	return etcdtest.Go(func() error { return p.acquire(ctx) })
}

// noticed reports whether the party, which waits, has noticed that something has happened: it
// watches again, or this package's has looked.
func (p *party) noticed(watches, gets int) bool {
	return p.faults.Count(fault.Watch) > watches || ours(p.lib) && p.faults.Count(fault.Get) > gets
}

// queue starts the party and returns when it stands in line as the nth and watches, once for
// each handle. A session of this package's that has waited before may have a watch left.
func (p *party) queue(ctx context.Context, n int) *etcdtest.Call {
	p.Helper()
	before := p.faults.Count(fault.Watch)
	call := p.start(ctx)
	p.waitLine(n)
	want := before + len(p.handles)
	if ours(p.lib) && before > 0 {
		want--
	}
	etcdtest.Eventually(p, func() bool {
		return !call.Running() || p.faults.Count(fault.Watch) >= want
	}, "%d watches", want)
	if !call.Running() {
		p.Fatalf("who was to wait in line returned %v", call.Err())
	}
	return call
}

// release lets all handles release, one after the other.
func (p *party) release(ctx context.Context) error {
	var first error
	for _, h := range p.handles {
		if err := h.release(ctx); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// revoke ends the lease of the party from outside.
func (p *party) revoke() {
	p.Helper()
	_, err := p.plain.Revoke(p.Context(), p.session.Lease())
	p.must(err)
}

// owns says whether the party's key is the oldest in line.
func (p *party) owns() bool {
	line := p.line()
	return len(line) > 0 && string(line[0].Key) == p.place()
}
