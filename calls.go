package concurrency

import (
	"reflect"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	v3 "go.etcd.io/etcd/client/v3"
)

// etcd's client repeats reads, and calls for leases, by itself: every 25 ms, a hundred times,
// while servers refuse (retry.go and options.go in client/v3). It keeps the refusals to itself
// for that long. [repeat] would take the servers for silent, and send ever more calls beside. So
// the calls that repeat makes are sent once each, past the client's own repetitions.

// keysOnce reads keys, in calls that are sent once. What a program has put in the place of the
// client's KV stays in use.
func keysOnce(client *v3.Client) v3.KV {
	if client.ActiveConnection() == nil || reflect.TypeOf(client.KV) != clientsKV {
		return client.KV
	}
	return v3.NewKVFromKVClient(pb.NewKVClient(client.ActiveConnection()), client)
}

// leasesOnce asks for leases, in calls that are sent once.
func leasesOnce(client *v3.Client) v3.Lease {
	if !ownLease(client) {
		return client.Lease
	}
	return v3.NewLeaseFromLeaseClient(pb.NewLeaseClient(client.ActiveConnection()), client, 0)
}

// ownLease reports whether the client can be asked past its Lease, and for a stream of renewals.
// It has to have a connection. Its Lease has to be the client's own, and not one that a program
// has put there.
func ownLease(client *v3.Client) bool {
	return client.ActiveConnection() != nil && reflect.TypeOf(client.Lease) == clientsLease
}

var (
	clientsKV    = reflect.TypeOf(v3.NewKVFromKVClient(nil, nil))
	clientsLease = reflect.TypeOf(v3.NewLeaseFromLeaseClient(nil, nil, 0))
)
