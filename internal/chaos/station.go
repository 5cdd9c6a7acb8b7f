package main

import (
	"context"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
	"example.com/etcd/concurrency/internal/history"
	"example.com/etcd/concurrency/internal/library"
)

// station is one client and what lies between it and the servers: a proxy for each member.
type station struct {
	who     history.Who
	lib     library.Library
	client  *clientv3.Client
	leases  *witness
	faults  *fault.Faults
	proxies []*fault.Proxy
}

func newStation(i int, lib library.Library, cluster *etcdtest.Cluster) (*station, error) {
	s := &station{who: history.Who{Client: i, Package: lib.Name}, lib: lib}
	var endpoints []string
	for _, endpoint := range cluster.Endpoints() {
		proxy, err := fault.NewProxy(endpoint)
		if err != nil {
			s.close()
			return nil, err
		}
		s.proxies = append(s.proxies, proxy)
		endpoints = append(endpoints, proxy.Endpoint())
	}
	client, err := etcdtest.NewClient(endpoints...)
	if err != nil {
		s.close()
		return nil, err
	}
	s.client, s.faults = client, fault.Wrap(client)
	s.leases = witnessOf(client)
	return s, nil
}

// heal undoes all faults of the connections.
func (s *station) heal() {
	s.faults.Clear()
	for _, p := range s.proxies {
		p.Heal()
	}
}

func (s *station) close() {
	if s.client != nil {
		s.client.Close()
	}
	for _, p := range s.proxies {
		p.Close()
	}
}

// witness sees what a client has heard of its leases, and knows until when they live: counted
// from when what was answered had been sent.
type witness struct {
	clientv3.Lease

	mu    sync.Mutex // guards the field below
	until map[clientv3.LeaseID]time.Time
}

func witnessOf(client *clientv3.Client) *witness {
	w := &witness{Lease: client.Lease, until: map[clientv3.LeaseID]time.Time{}}
	client.Lease = w
	return w
}

func (w *witness) note(id clientv3.LeaseID, sent time.Time, ttl int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if until := sent.Add(time.Duration(ttl) * time.Second); until.After(w.until[id]) {
		w.until[id] = until
	}
}

// end is until when a lease lives, as far as the client can know.
func (w *witness) end(id clientv3.LeaseID) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.until[id]
}

// Grant is noted.
func (w *witness) Grant(ctx context.Context, ttl int64) (*clientv3.LeaseGrantResponse, error) {
	sent := time.Now()
	resp, err := w.Lease.Grant(ctx, ttl)
	if err == nil {
		w.note(resp.ID, sent, resp.TTL)
	}
	return resp, err
}

// TimeToLive is noted.
func (w *witness) TimeToLive(
	ctx context.Context, id clientv3.LeaseID, opts ...clientv3.LeaseOption,
) (*clientv3.LeaseTimeToLiveResponse, error) {
	sent := time.Now()
	resp, err := w.Lease.TimeToLive(ctx, id, opts...)
	if err == nil {
		w.note(id, sent, resp.TTL)
	}
	return resp, err
}

// KeepAliveOnce is noted.
func (w *witness) KeepAliveOnce(ctx context.Context, id clientv3.LeaseID) (*clientv3.LeaseKeepAliveResponse, error) {
	sent := time.Now()
	resp, err := w.Lease.KeepAliveOnce(ctx, id)
	if err == nil {
		w.note(id, sent, resp.TTL)
	}
	return resp, err
}
