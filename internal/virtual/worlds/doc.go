// Package worlds lets clients lock, elect and transact at random in virtual time, under faults,
// and checks what they did.
//
// A world is a server, six clients with a network each, and a seed. The seed chooses what the
// clients do (a few rows of the table [Kinds]), what befalls them (a few rows of the tables of
// faults, blows and strangers), their TTLs and their round trips. Most worlds lack most
// things: what is rare beside all the rest is common in some of them. After some minutes the
// faults end, and all that is promised for quiet times must come true.
//
// # Properties
//
// Time is exact: there is one clock, and it stands still while anybody works. So the bounds below
// have no allowance for a busy machine. What history records is checked by internal/history:
// overlap, crowd, token, claim, round, visit, order, overstay, write, sighting, observer, stray, error, wait,
// serializability, lost, doubled, dirty. What is checked here, as it happens:
//
//	session   a session was lost that every renewal of a third of its life would have kept, or
//	          while one of two links was silent, or after a refusal that passed (mild.go)
//	wait      an acquisition went on after the loss of its session
//	cost      an operation that costs one call took longer than a round trip; an attempt waited
//	denied    a write was committed, although the error of its transaction says that it was not
//	starved   a transaction has not committed, though nothing was in the way
//	margin    a session with a margin was lost later than the margin before the end of its lease
//	told      a loss by a stranger was told later than a TTL and a second after it, or without
//	          a fault later than a few round trips; an error says that the session is over, and
//	          Session.Ctx lives; a context, or an error, tells of a loss that was none
//	request   etcd refuses a request that it takes for senseless
//	handle    a handle whose ownership was lost says that it holds; a call acquires after the loss
//	          of its session; a context outlives its release
//	run       RunLeader runs two functions of one call; NewLocker lets two goroutines in
//	served    goroutines passed a lock on for longer than they may while another session waited
//	idle      nobody was given a turn that had come, though nothing was in the way
//	stale     an observer had not told of a leader who led since a while, or that nobody did, though
//	          nothing was in the way
//	liveness  a name could not be locked, nobody led, or nobody got through a double barrier, after
//	          the faults
//	waiter    a call did not return after the faults, though all who stood before it left
//	hang      work went on after the end of its context
//	leftover  keys, leases, watchers or goroutines were left after the sessions
//	latest    an observer did not hear of the last leader
//
// # To add a kind of work
//
// Write a file with a function of a worker, and give it a row in [Kinds] (kinds.go). What is asked
// of any call when it returns is in promises.go. Work that
// goes on for the whole life of a world is a row in [Residents]. What it records are records of
// internal/history; a check of a new kind of record belongs there.
package worlds
