package fault

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// Proxy passes TCP connections on to one server. Its methods may be called
// from any goroutine.
type Proxy struct {
	target   string
	listener net.Listener // nil for one of [Links]
	up, down *valve       // towards the server, and towards the clients
	wg       sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	conns   map[*conn]struct{}
	refuse  bool
	delay   time.Duration
	stopped bool
}

// NewProxy listens on a free loopback port and passes connections on to
// target, an address or a URL.
func NewProxy(target string) (*Proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	p := newProxy(target)
	p.listener = listener
	p.wg.Go(func() { accept(listener, p.pass) })
	return p, nil
}

func newProxy(target string) *Proxy {
	if _, address, ok := strings.Cut(target, "://"); ok {
		target = address
	}
	return &Proxy{
		target: target,
		up:     newValve(),
		down:   newValve(),
		conns:  make(map[*conn]struct{}),
	}
}

// Endpoint is the URL at which clients reach the server through the proxy.
func (p *Proxy) Endpoint() string { return "http://" + p.listener.Addr().String() }

// StallUp keeps back what clients send. Nothing is lost: Resume delivers it.
// What a goroutine is just writing may still pass, and connections stay open.
func (p *Proxy) StallUp() { p.up.shut() }

// StallDown keeps back what the server sends.
func (p *Proxy) StallDown() { p.down.shut() }

// Stall keeps back both directions.
func (p *Proxy) Stall() {
	p.StallUp()
	p.StallDown()
}

// Resume delivers what was kept back, in both directions.
func (p *Proxy) Resume() {
	p.up.open()
	p.down.open()
}

// Cut closes all connections. What was under way is lost. New connections are
// let in, unless they are refused.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.close()
	}
}

// Refuse closes new connections as soon as they come. Those that stand go on.
func (p *Proxy) Refuse() { p.setRefuse(true) }

// Accept lets new connections in again.
func (p *Proxy) Accept() { p.setRefuse(false) }

func (p *Proxy) setRefuse(refuse bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = refuse
}

// Sever closes all connections and lets no new ones in.
func (p *Proxy) Sever() {
	p.Refuse()
	p.Cut()
}

// Delay makes whatever is sent from now on arrive later by d, each way. It
// does not limit how much can be under way.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// Heal undoes all of it: connections are let in, nothing is kept back or delayed.
func (p *Proxy) Heal() {
	p.Accept()
	p.Resume()
	p.Delay(0)
}

// Close cuts all connections, frees the port and returns when all goroutines
// have ended. It may be called again.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.stopped = true
	p.mu.Unlock()
	if p.listener != nil {
		p.listener.Close()
	}
	p.Cut()
	p.wg.Wait()
}

// accept passes connections on until the listener is closed.
func accept(listener net.Listener, pass func(net.Conn)) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		pass(client)
	}
}

// pass connects a client to the server. The server is on the same machine, so
// dialling it does not keep the next client waiting.
func (p *Proxy) pass(client net.Conn) {
	p.mu.Lock()
	refuse := p.refuse || p.stopped
	p.mu.Unlock()
	if refuse {
		client.Close()
		return
	}
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		client.Close()
		return
	}
	c := &conn{client: client, server: server, done: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		c.close()
		return
	}
	p.conns[c] = struct{}{}
	p.wg.Go(func() {
		var both sync.WaitGroup
		both.Go(func() { p.pump(c, server, client, p.up) })
		both.Go(func() { p.pump(c, client, server, p.down) })
		both.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, c)
	})
}

// conn is a client's connection and the one to the server that goes with it.
type conn struct {
	client, server net.Conn
	done           chan struct{} // closed with both
	once           sync.Once
}

func (c *conn) close() {
	c.once.Do(func() {
		close(c.done)
		c.client.Close()
		c.server.Close()
	})
}

// chunk is what one read gave, and when it is due on the other side.
type chunk struct {
	data []byte
	due  time.Time
}

// underWay is how many chunks one direction of a connection holds.
const underWay = 4096

// pump passes on what src sends until src ends or the connection is closed.
// When src ends, what it sent before is delivered first.
func (p *Proxy) pump(c *conn, dst, src net.Conn, v *valve) {
	queue := make(chan chunk, underWay)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(queue)
		p.read(c, src, queue)
	})
	for next := range queue {
		if !wait(c.done, next.due) || !v.pass(c.done) {
			break
		}
		if _, err := dst.Write(next.data); err != nil {
			break
		}
	}
	c.close() // also ends the reader
	reader.Wait()
}

// read queues what src sends, each chunk with the time at which it is due.
func (p *Proxy) read(c *conn, src net.Conn, queue chan<- chunk) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			p.mu.Lock()
			due := time.Now().Add(p.delay)
			p.mu.Unlock()
			select {
			case queue <- chunk{append([]byte(nil), buf[:n]...), due}:
			case <-c.done:
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// wait returns at the time due, or false when done is closed before.
func wait(done <-chan struct{}, due time.Time) bool {
	left := time.Until(due)
	if left <= 0 {
		return true
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-done:
		return false
	}
}

// valve lets one direction pass or not.
type valve struct {
	mu   sync.Mutex    // guards gate
	gate chan struct{} // closed while the valve is open
}

func newValve() *valve {
	v := &valve{gate: make(chan struct{})}
	close(v.gate)
	return v
}

func (v *valve) open() {
	v.mu.Lock()
	defer v.mu.Unlock()
	select {
	case <-v.gate:
	default:
		close(v.gate)
	}
}

func (v *valve) shut() {
	v.mu.Lock()
	defer v.mu.Unlock()
	select {
	case <-v.gate:
		v.gate = make(chan struct{})
	default:
	}
}

// pass returns when the valve is open, or false when done is closed before.
func (v *valve) pass(done <-chan struct{}) bool {
	v.mu.Lock()
	gate := v.gate
	v.mu.Unlock()
	select {
	case <-done:
		return false
	case <-gate:
		return true
	}
}
