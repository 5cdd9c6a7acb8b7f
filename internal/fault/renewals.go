package fault

import (
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Renewals stands before the keep-alive streams of a server inside the process: it counts
// them, and refuses them. The zero Renewals refuses none. Its methods may be called from any
// goroutine.
type Renewals struct {
	mu                   sync.Mutex // guards the fields below
	streams, open, asked int
	refusal              error
}

// Option puts it into the server, by the GRPCAdditionalServerOptions of its configuration.
func (r *Renewals) Option() grpc.ServerOption {
	return grpc.ChainStreamInterceptor(func(
		srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler,
	) error {
		if info.FullMethod != "/etcdserverpb.Lease/LeaseKeepAlive" {
			return handler(srv, stream)
		}
		if err := r.begin(); err != nil {
			return err
		}
		defer r.end()
		return handler(srv, &renewing{stream, r})
	})
}

func (r *Renewals) begin() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.streams++
	if r.refusal == nil {
		r.open++
	}
	return r.refusal
}

func (r *Renewals) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open--
}

// Refuse ends each stream with the code that is opened from now on, or asks for a renewal.
// OK lets them in again.
func (r *Renewals) Refuse(code codes.Code) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refusal = status.Error(code, "renewals are refused")
}

// Streams is how many streams were opened, refused ones included.
func (r *Renewals) Streams() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.streams
}

// Open is how many streams are open.
func (r *Renewals) Open() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.open
}

// Asked is how many renewals the server has read.
func (r *Renewals) Asked() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

// renewing counts the renewals of one stream.
type renewing struct {
	grpc.ServerStream
	renewals *Renewals
}

// RecvMsg reads a renewal.
func (s *renewing) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	s.renewals.mu.Lock()
	defer s.renewals.mu.Unlock()
	s.renewals.asked++
	return s.renewals.refusal
}
