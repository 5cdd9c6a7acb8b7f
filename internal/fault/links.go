package fault

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// Links passes connections on to one server, those of each caller through a [Proxy] of
// their own: all callers know the server by one address, as the members of a cluster know a
// peer, and yet one can be cut off and another not. The connections are TLS, and a caller
// gives its own name as that of the server it wants: that stands in the clear in the first
// thing it sends. Nothing is decrypted.
type Links struct {
	listener net.Listener
	from     map[string]*Proxy
	ctx      context.Context // ends when it is closed
	cancel   context.CancelFunc
	wg       sync.WaitGroup
}

// NewLinks listens on a free loopback port and passes connections of the callers on to
// target, an address or a URL. It closes those of anybody else.
func NewLinks(target string, callers ...string) (*Links, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("links: %w", err)
	}
	l := &Links{listener: listener, from: make(map[string]*Proxy)}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	for _, name := range callers {
		l.from[name] = newProxy(target)
	}
	l.wg.Go(func() { accept(listener, func(conn net.Conn) { l.wg.Go(func() { l.pass(conn) }) }) })
	return l, nil
}

// Endpoint is the URL at which all callers reach the server.
func (l *Links) Endpoint() string { return "https://" + l.listener.Addr().String() }

// From is the proxy through which the connections of one caller go, nil for a stranger.
func (l *Links) From(caller string) *Proxy { return l.from[caller] }

// Close cuts all connections, frees the port and returns when all goroutines have ended.
// It may be called again.
func (l *Links) Close() {
	l.cancel()
	l.listener.Close()
	l.wg.Wait() // nothing is handed to a proxy any more
	for _, p := range l.from {
		p.Close()
	}
}

// pass hands a connection to the proxy of its caller.
func (l *Links) pass(client net.Conn) {
	stop := context.AfterFunc(l.ctx, func() { client.Close() }) // whoever keeps it waiting
	defer stop()
	name, conn := hello(client)
	if p := l.from[name]; p != nil {
		p.pass(conn)
		return
	}
	conn.Close()
}

// hello reads the name in a caller's ClientHello, "" if there is none. What it has read
// can be read again from the connection that it returns.
func hello(conn net.Conn) (string, net.Conn) {
	var name string
	var read bytes.Buffer
	enough := errors.New("the name is known")
	tls.Server(&spliced{conn, io.TeeReader(conn, &read), io.Discard}, &tls.Config{
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			name = info.ServerName
			return nil, enough
		},
	}).Handshake()
	return name, &spliced{conn, io.MultiReader(&read, conn), conn}
}

// spliced is a connection that reads and writes elsewhere.
type spliced struct {
	net.Conn
	in  io.Reader
	out io.Writer
}

// Read reads from elsewhere.
func (s *spliced) Read(p []byte) (int, error) { return s.in.Read(p) }

// Write writes to elsewhere.
func (s *spliced) Write(p []byte) (int, error) { return s.out.Write(p) }
