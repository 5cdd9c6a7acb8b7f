package virtual

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// stream is a call whose messages go both ways, each way in order. It begins at the server
// when its first message arrives.
type stream struct {
	n      *Network
	ctx    context.Context // the caller's
	method string
	kind   Kind
	call   int
	link   int

	up, down lane

	begun bool // something was sent; guarded by the network's mu
	dead  bool // nothing arrives any more, either way; guarded by the network's mu

	once  sync.Once
	ended chan struct{} // closed when the stream is over for the caller
	err   error         // what the caller is told then; written before ended is closed

	serverCtx context.Context // ends when the server knows that the stream is over
	hangUp    context.CancelFunc
}

// lane is one direction of a stream. It has one receiver.
type lane struct {
	mu    sync.Mutex // guards the fields below; never held across a wait
	queue []message
	last  time.Time     // when the newest message is due
	wake  chan struct{} // has room for one, and is filled with each message
}

// message is a message under way, or the end of its direction.
type message struct {
	due time.Time
	msg proto.Message
	end error // nil for a message
}

// push sends a message behind those that are under way.
func (l *lane) push(m message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !m.due.After(l.last) {
		m.due = l.last.Add(1)
	}
	l.last = m.due
	l.queue = append(l.queue, m)
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// next takes the oldest message if it has arrived. Else it says when to look again, which is
// never if nothing comes by itself.
//
// It asks held without the mutex, because held takes that of the network, under which messages
// are pushed. The lane has one receiver, so the oldest message stays the oldest meanwhile.
func (l *lane) next(held func() (until time.Time, ok bool)) (m message, ok bool, again time.Time) {
	if due, waits := l.oldest(); !waits || time.Until(due) > 0 {
		return message{}, false, due
	}
	until, ok := held()
	l.mu.Lock()
	defer l.mu.Unlock()
	if ok {
		l.queue[0].due = until
		return message{}, false, until
	}
	m = l.queue[0]
	l.queue = slices.Delete(l.queue, 0, 1)
	return m, true, time.Time{}
}

// oldest says when the oldest message is due, if there is any.
func (l *lane) oldest() (due time.Time, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		return time.Time{}, false
	}
	return l.queue[0].due, true
}

// receive waits for the next message of a lane, until the stream is over for the receiver.
func (s *stream) receive(l *lane, over <-chan struct{}) (message, bool) {
	for {
		m, ok, again := l.next(s.held)
		if ok {
			return m, true
		}
		var timer <-chan time.Time
		if !again.IsZero() {
			timer = time.After(time.Until(again))
		}
		select {
		case <-timer:
		case <-l.wake:
		case <-over:
			return message{}, false
		}
	}
}

// held says whether a message that would arrive now does not, and until when that is so. The
// zero time stands for ever.
func (s *stream) held() (until time.Time, ok bool) {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	if s.dead {
		return time.Time{}, true
	}
	return s.n.held(s.link)
}

// NewStream implements grpc.ClientConnInterface.
func (n *Network) NewStream(
	ctx context.Context, _ *grpc.StreamDesc, method string, _ ...grpc.CallOption,
) (grpc.ClientStream, error) {
	if err := n.over(ctx); err != nil {
		return nil, err
	}
	s := &stream{n: n, ctx: ctx, method: method, kind: kindOf(method), ended: make(chan struct{})}
	s.up.wake, s.down.wake = make(chan struct{}, 1), make(chan struct{}, 1)
	s.serverCtx, s.hangUp = context.WithCancel(incoming(context.Background(), ctx))
	n.mu.Lock()
	s.call, s.link = n.begin(s.kind)
	n.open = append(n.open, s)
	n.mu.Unlock()
	n.bubble.calls.Go(s.carry)
	n.bubble.calls.Go(s.watch)
	return clientStream{s}, nil
}

// carry begins the stream at the server and serves it there.
func (s *stream) carry() {
	first, ok := s.receive(&s.up, s.ended)
	if !ok {
		return
	}
	life := s.n.bubble.server.enter()
	if life == nil {
		s.finish(errDown)
		return
	}
	defer life.calls.Done()
	defer context.AfterFunc(life.ctx, s.hangUp)()
	s.n.record(s.call, s.kind, Arrived, "")
	s.finish(life.serve(s.method, &serverStream{s, &first}))
}

// watch ends the stream for a caller that is gone, and tells the server that it is over.
func (s *stream) watch() {
	select {
	case <-s.ended:
	case <-s.ctx.Done():
	case <-s.n.client.Ctx().Done():
	}
	s.end(s.n.over(s.ctx))
	s.n.travel(s.link, s.n.after(0))
	s.hangUp()
}

// finish sends the caller the end of the stream.
func (s *stream) finish(err error) {
	if err == nil {
		err = io.EOF
	}
	s.send(&s.down, message{end: err}, receiving)
}

// send puts a message on its way. What a refused one meets comes back instead.
func (s *stream) send(l *lane, m message, on on) {
	slow := s.n.bubble.slowness(s.n)
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	p := &passage{kind: s.kind, call: s.call, on: on, link: s.link, stream: s}
	if on == sending && !s.begun {
		s.begun = true
		p.on |= opening
	}
	s.n.decide(p)
	d := s.n.way() + p.up
	if on == receiving {
		d += slow
	}
	if p.refused != nil {
		l, m, d = &s.down, message{end: p.refused}, d+s.n.way()
	}
	m.due = s.n.bubble.instant(time.Now().Add(d), s.n.rng.Int64N(spread))
	if ask, ok := m.msg.(*etcdserverpb.LeaseKeepAliveRequest); ok {
		s.n.record(s.call, s.kind, Asked, fmt.Sprintf("%x", ask.ID))
	}
	l.push(m)
}

// end ends the stream for the caller, who is told err.
func (s *stream) end(err error) {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	s.fail(err)
}

// fail is end for those who hold the network's mu.
func (s *stream) fail(err error) {
	s.once.Do(func() {
		s.err = err
		close(s.ended)
		s.n.open = slices.DeleteFunc(s.n.open, func(other *stream) bool { return other == s })
		s.n.record(s.call, s.kind, Answered, text(err))
	})
}

// die makes the stream silent, both ways, for good.
func (s *stream) die() {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	s.dead = true
}

// clientStream is the caller's end.
type clientStream struct{ *stream }

// SendMsg implements grpc.ClientStream.
func (c clientStream) SendMsg(m any) error {
	select {
	case <-c.ended:
		return io.EOF // RecvMsg tells why
	default:
	}
	c.send(&c.up, message{msg: proto.Clone(m.(proto.Message))}, sending)
	return nil
}

// RecvMsg implements grpc.ClientStream.
func (c clientStream) RecvMsg(m any) error {
	got, ok := c.receive(&c.down, c.ended)
	if ok && got.end == nil {
		if answer, ok := got.msg.(*etcdserverpb.LeaseKeepAliveResponse); ok {
			c.n.record(c.call, c.kind, Told, fmt.Sprintf("%x, TTL %d", answer.ID, answer.TTL))
		}
		proto.Merge(m.(proto.Message), got.msg)
		return nil
	}
	c.end(got.end) // nothing happens if it has ended
	return c.err
}

// CloseSend implements grpc.ClientStream.
func (c clientStream) CloseSend() error {
	c.send(&c.up, message{end: io.EOF}, sending)
	return nil
}

// Context implements grpc.ClientStream.
func (c clientStream) Context() context.Context { return c.ctx }

// Header implements grpc.ClientStream. No service of etcd sends one.
func (c clientStream) Header() (metadata.MD, error) { return nil, nil }

// Trailer implements grpc.ClientStream. No service of etcd sends one.
func (c clientStream) Trailer() metadata.MD { return nil }

// serverStream is the server's end.
type serverStream struct {
	*stream
	first *message // nil once it was received
}

// SendMsg implements grpc.ServerStream.
func (s *serverStream) SendMsg(m any) error {
	if err := s.serverCtx.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	s.send(&s.down, message{msg: proto.Clone(m.(proto.Message))}, receiving)
	return nil
}

// RecvMsg implements grpc.ServerStream.
func (s *serverStream) RecvMsg(m any) error {
	got, ok := message{}, true
	if s.first != nil {
		got, s.first = *s.first, nil
	} else {
		got, ok = s.receive(&s.up, s.serverCtx.Done())
	}
	switch {
	case !ok:
		return status.FromContextError(s.serverCtx.Err()).Err()
	case got.end != nil:
		return got.end
	}
	proto.Merge(m.(proto.Message), got.msg)
	return nil
}

// Context implements grpc.ServerStream.
func (s *serverStream) Context() context.Context { return s.serverCtx }

// SetHeader implements grpc.ServerStream. No service of etcd calls it.
func (s *serverStream) SetHeader(metadata.MD) error { return nil }

// SendHeader implements grpc.ServerStream. No service of etcd calls it.
func (s *serverStream) SendHeader(metadata.MD) error { return nil }

// SetTrailer implements grpc.ServerStream. No service of etcd calls it.
func (s *serverStream) SetTrailer(metadata.MD) {}
