// Package fault puts named faults between a program and a real etcd server.
//
// [Wrap] stands between the program and its client: it counts the calls, and
// loses the answer of one, refuses it, or holds it before or after the server
// has carried it out. It breaks a watch, or compacts the store between a read and
// the watch that follows it. Each fault names a kind of call and which one of them
// it means, so that a test forces one interleaving instead of hoping for it.
//
// [Proxy] stands on the wire: it stalls, cuts, refuses and delays connections. [Links] has
// one for each caller of a server, and parts the members of a cluster from each other.
//
// The calls that no fault stops are carried out by the server, and errors have
// the types and the texts that a real client gives. The one answer that is made
// up is that of [Faults.FutureRevision]; a member that really lags takes three
// members, one of them isolated.
package fault
