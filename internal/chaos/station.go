package main

import (
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
	"example.com/etcd/concurrency/internal/history"
)

// station is one client and what lies between it and the servers: a proxy for each member.
type station struct {
	who     history.Who
	lib     library
	client  *clientv3.Client
	faults  *fault.Faults
	proxies []*fault.Proxy
}

func newStation(i int, lib library, cluster *etcdtest.Cluster) (*station, error) {
	s := &station{who: history.Who{Client: i, Package: lib.name}, lib: lib}
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
	return s, nil
}

// heal undoes all faults of the connections.
func (s *station) heal() {
	s.faults.Clear()
	for _, p := range s.proxies {
		p.Accept()
		p.Resume()
		p.Delay(0)
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
