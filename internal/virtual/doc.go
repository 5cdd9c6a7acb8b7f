// Package virtual runs programs against a real etcd server in virtual time.
//
// [Run] opens a bubble of testing/synctest: time stands still while anybody in it
// has work to do, and jumps to the next timer when all wait. So an hour of leases, pauses and
// late answers takes seconds. The server is etcd's own, with raft, log, store, leases
// and watches; the clients are client/v3's own, watchers and repeated calls included. Only what
// lies between them is made here: a [Network] for each client, with faults that have names and
// rates. No port is opened, and no connection is ever seen to fail: gRPC believes that it is idle.
//
// # Determinism
//
// Every decision of a network comes from the seed. No two messages arrive at one instant,
// so the seed also decides their order. Raft's election timeouts come from the seed too, and
// garbage is collected while nobody is awake.
//
// What the seed can't decide in a program that is built as usual: which ready case a select takes,
// the order of a map, what math/rand draws, and the order of timers and goroutines of one
// instant. A program that is built with the files of internal/virtual/overlay, and runs on one
// processor (GOMAXPROCS=1) without preemption (GODEBUG=asyncpreemptoff=1), repeats these as well:
// the same seed makes the same trace, in another process and on a busy machine too.
//
//	go run ./internal/virtual/overlay .build/overlay
//	go test -overlay .build/overlay/overlay.json ...
//
// # Rules inside a bubble
//
// Channels, timers and contexts that are waited for have to be made inside. Every goroutine
// has to end before the function given to [Run] returns, but for those of the server, the
// clients and the networks, which Run ends. Failures are told to [Bubble.T].
package virtual
