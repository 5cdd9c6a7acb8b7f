package virtual

import "go.etcd.io/etcd/server/v3/etcdserver"

// Server is a real etcd server of one member without a listener. Its methods are called from
// inside the bubble; Start and Stop from one goroutine at a time.
type Server struct{}

// Start starts the server on the data that it had before. It returns when the server
// answers, after the same virtual time at every start. Starting a running server does nothing.
func (s *Server) Start() error { panic("not yet") }

// Stop ends the server: calls under way and streams break, later calls are refused. It returns
// when the data is free. Stopping a stopped server does nothing.
func (s *Server) Stop() { panic("not yet") }

// Running says whether the server runs.
func (s *Server) Running() bool { panic("not yet") }

// SetQuota changes the quota of the next start; see [Options].
func (s *Server) SetQuota(bytes int64) { panic("not yet") }

// Etcd is the server itself, for looks that no client can have; nil while it is stopped.
func (s *Server) Etcd() *etcdserver.EtcdServer { panic("not yet") }
