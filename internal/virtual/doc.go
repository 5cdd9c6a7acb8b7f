// Package virtual runs programs against a real etcd server in virtual time.
//
// [Run] opens a bubble of testing/synctest: time stands still while anybody in it
// has work to do, and jumps to the next timer when all wait. So an hour of leases, pauses and
// late answers takes seconds. The server is etcd's own, with raft, log, store, leases
// and watches; the clients are client/v3's own. Only what lies between them is made here: a
// [Network] for each client, with faults that have names and rates. No port is opened.
//
// # Determinism
//
// Every decision of a network comes from the seed. No two messages arrive at one instant,
// so the seed also decides their order. What the seed can't decide: which ready
// case a select takes, the order of a map, and what goroutines that are awake at one instant
// do first. One processor (GOMAXPROCS=1) without preemption (GODEBUG=asyncpreemptoff=1)
// leaves little of that.
//
// # Rules inside a bubble
//
// Channels, timers and contexts that are waited for have to be made inside. Every goroutine
// has to end before the function given to [Run] returns, but for those of the server, the
// clients and the networks, which Run ends.
package virtual
