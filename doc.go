// Package concurrency provides distributed locks, leader elections and software
// transactional memory on etcd. It is a drop-in replacement for
// go.etcd.io/etcd/client/v3/concurrency. It has the API of that package and uses the same
// keys in etcd. Old and new processes can therefore share a lock.
//
// A session is a lease in etcd that is kept alive. A lock, or a candidacy, is a key that is
// bound to that lease. The oldest key under a name owns, and all others wait in line.
//
//	session, err := concurrency.NewSession(client, concurrency.WithTTL(10))
//	if err != nil {
//		return err // after 10 s, if no server answers
//	}
//	defer session.Close()
//
//	mutex := concurrency.NewMutex(session, "report")
//	err = mutex.Do(ctx, func(ctx context.Context) error {
//		// ctx ends when the lock is lost. The guard refuses the write then.
//		resp, err := client.Txn(ctx).
//			If(mutex.IsOwner()).
//			Then(clientv3.OpPut("/report/latest", "42")).
//			Commit()
//		if err == nil && !resp.Succeeded {
//			err = errors.New("the lock was lost")
//		}
//		return err
//	})
//
// # What is promised
//
// Two things are assumed. etcd's transactions, revisions and leases do what they are
// documented to do. The clocks of this process and of the servers run at the same rate.
//
// Session. [Session.Done] closes before any other client can be given what the lease
// guards. The deadline is the time at which the last answered renewal was sent, plus the
// TTL. The server cannot have started its own count earlier. The deadline is kept by a
// timer of this process and depends on no call. [Session.Ctx] ends before Done closes,
// and its cause tells why.
//
// Mutex. A participant is a key under the name, bound to the lease of its session. The
// create revision of the key is its ticket. etcd gives create revisions in the order of
// commits and never twice, so nobody can come in ahead of a ticket that exists. If one
// read shows a session's ticket and no older one, that session owns the lock until the
// ticket is deleted. [Mutex.Lock] returns nil only after such a proof. It returns
// [ErrSessionExpired] as soon as its ticket is gone. The order is first come, first
// served. Every deletion names the ticket that it deletes, so a late or repeated deletion
// cannot hit another ticket.
//
// Election. An election is the same line with values. All that is said of locks holds for
// candidates and the leader. [Election.Observe] delivers only those who led, in the order
// of revisions, and always catches up with the present leader.
//
// STM. [SerializableSnapshot] and [Serializable] are strictly serializable as far as keys
// that were read are concerned. All reads of an attempt are of one revision. The first
// read is linearizable. The commit requires that no key that was read has changed since.
// A blind write is a write to a key that was not read. It does not conflict with a
// concurrent deletion at any level, because both orders of the two are serial. A commit
// is sent once.
//
// Ranges. A transaction that reads a range by [STM] conflicts, at every level that checks
// reads, with a key that comes to lie in that range, changes or goes. So there are no phantoms.
// A program that lists keys first and then reads them one by one has no such promise. A range
// is of one revision, also if it takes several calls.
//
// # What is not promised
//
// No lock service can promise the following. A program that needs it has to do its part.
//
//   - A lock does not stop its former holder. A process may be paused between the moment
//     at which it learns that it holds the lock and the moment at which its write arrives.
//     The pause, by a scheduler, a garbage collector or a hypervisor, may be longer than any
//     TTL. Only the store that is written to can refuse the write; see the next section.
//   - The end of a session is known in time only where clocks run at the same rate. The
//     deadline counts by the monotonic clock of this process, the lease by the clocks of
//     the servers. A machine that was suspended notices late.
//   - An etcd server that answers is believed. A server that renewed leases without
//     knowing that it was deposed could let two own (etcd #15247). Version 3.7.3 asks the
//     other members first (ensureLeadership in server/etcdserver/server.go).
//   - Behind etcd's gRPC proxy a session may end late. The proxy renews the lease by itself
//     and answers with the next answer to a renewal of its own. It may have sent that
//     renewal before the session asked. The deadline is then late by at most the time which
//     that answer took from the server to the proxy. Give [WithSafetyMargin] that time, if it
//     is known, but less than TTL/2 - 750 ms, because the proxy answers only
//     every third of the TTL. Where answers may take longer, guard the writes.
//   - A session is one participant. Two handles of one session and one name share the
//     lock or the candidacy, and each is given it while the other has it. [LocalMutex] and
//     [NewLocker] exclude the goroutines that share them.
//   - A lease belongs to one process at a time. Two processes that keep one lease alive,
//     by [WithLease], are one participant without knowing of each other. The one may clean
//     up, after a call without an answer, what the other holds.
//   - A name owns its keys. A lock and an election of one name share the line. Any foreign
//     key under name + "/" counts as a participant. Therefore the keys of "a/b" stand in
//     the line of "a". Readers of "a" lie under "a/~r/", and permits under "a/~p/". The names
//     "a/~r", "a/~p" and all below them are in no way reserved. Whoever takes the Mutex "a/~r"
//     counts in the line of "a" as a reader, so readers of "a" come in beside it. The Mutex
//     waits for each reader of "a", because the readers' keys lie under its name.
//
// # Acting on ownership
//
// [Mutex.Ctx] and [Election.Ctx] end with the ownership. They end at once when the server
// reports that the key was deleted, and at the deadline of the session when nothing can
// be heard. The deadline comes before any rival can be let in. A deletion by somebody
// else reaches the former owner and the next owner at the same time. So work that stops
// with its context stops in time, with one exception. A process may be paused after its
// last look at the context, for longer than what is left of its lease. It goes on for a
// moment as if nothing had happened.
//
// No timeout protects data from that. A token does, because the store compares it when
// the write arrives:
//
//   - For data in etcd, make [Mutex.IsOwner] or [Election.IsLeader] a condition of the
//     transaction, or give it to [WithGuard]. Look at the Succeeded field of the answer.
//   - For data elsewhere, send [Mutex.Rev] or [Election.Rev] along. The number rises with
//     every change of the owner. The store has to remember the greatest number that it has
//     seen, and to refuse a smaller one.
//
// [Mutex.Do], [Election.Lead] and [RunLeader] run a function while the ownership lasts, and
// release only after the function has returned. A release under a function that still
// runs would let two in.
//
// The TTL of a session is how long the others wait for a session that died. It is also
// how long a fault may last without costing the ownership. Renewals are sent every third
// of the session's life, which is the TTL less the margin. A TTL of 10 s lets sessions survive an election among the servers; a TTL of 2 s
// often does not. [WithSafetyMargin] ends the session that much earlier than the lease.
// The margin should cover the sum of what clocks may drift apart within a TTL, the
// longest pause that is to be harmless, and what the work needs to stop. The rest, TTL
// less margin, should be long enough for a few renewals.
//
// # Who holds a lock
//
// [Inspect] reads the line of a name at one revision. It tells who owns, who waits for how
// many, and which keys are nobody's place. A session that was opened with [WithIdentity] says
// who it is. [WithLeases] tells which holder has missed a renewal. `make lines` prints all that,
// and tells which sessions wait for each other in a circle.
//
// # Failure
//
// Waiting calls ride out what passes: lost connections, elections among the servers,
// members without a quorum, compactions, lost answers. They end with the caller's context
// within a second, even if no server can be reached. A call without an answer may have
// left a key behind. A clean-up in the background removes it, whatever errors it meets, for
// as long as the lease lives. A member that was stopped may carry out such a call much
// later. So the clean-up looks again as long as the lease lives, but ever more rarely. A
// key stands at most about as long as its call was late. No key outlives its lease.
//
// [Session.Ctx] is the check that tells when to open a new session. If a call returns
// [ErrSessionExpired] or rpctypes.ErrLeaseNotFound because the lease is gone, Session.Ctx
// has ended before the call returns. If Session.Ctx has not ended, only the key was
// deleted, and the session can lock again.
//
// [Election.Proclaim] and a commit that writes are never repeated, because a repetition
// might overwrite what others wrote in between. etcd's client repeats calls
// below this package. It does so when a server, or a gateway before it, answers with the
// status Canceled or DeadlineExceeded while the caller's context lives (client/v3
// retry_interceptor.go).
//
// A server may keep silent on a connection that stands. A call of a lock or an election
// that has no answer after a third of the TTL is sent twice more beside the first. The
// first answer counts. A watch that has told nothing for two thirds of the TTL is replaced,
// and a read shows what it has not told. So a member that is silent hides a deletion for a
// TTL and one and a half round trips at most. Transactions, Proclaim and Leader wait for as
// long as their context lets them.
//
// Errors that upstream returns bare are returned bare and can be compared with ==: the
// sentinels, the errors of contexts, and those of rpctypes. A program that calls a
// function in a way that cannot be meant gets a panic whose text begins with
// "concurrency: ".
//
// The causes of contexts say more than that a session has expired: [ErrDeadline],
// [ErrLeaseGone], [ErrKeyDeleted], [ErrClientClosed]. Compare them with errors.Is.
//
// # Seeing what happens
//
// The package logs nothing. A program that wants to see what its locks, elections and
// transactions do gives them a [Trace]. The Trace is told who waits behind which key, and what was
// acquired or lost, and why. It is told which calls and renewals are repeated. The examples have
// an adapter for log/slog, metrics for Prometheus, and liveness probes. OPERATIONS.md has alerts.
//
// # Goroutines
//
// Every exported method may be called from any goroutine, except those of an [STM]. They
// belong to the goroutine of their function. Mutexes are never held across a call.
// [Session.Close] waits for all that runs for the session. Observe and Leaders leave
// nothing running when their channel closes or their loop ends.
//
// # Waiting in transactions
//
// Retry of an [STM] is the condition variable of transactions. The function calls it when there
// is nothing to do. [NewSTM] then waits until something that was read has changed, and runs the
// function again. A barrier, a queue and a semaphore are a few lines with it; see the examples.
//
// The wait costs one watch for each key and each range that was read, and no polling. It rides
// out what a waiting lock rides out. It ends with the abort context. A member that is silent on
// a connection that stands delays the wake-up by a minute at most. A guard is not watched. So
// give the context of the ownership to [WithAbortContext].
//
//	_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
//		head := stm.RangeN("queue/", clientv3.GetPrefixRangeEnd("queue/"), 1)
//		if len(head) == 0 {
//			stm.Retry() // until somebody puts an item
//		}
//		item = head[0].Value
//		stm.Del(string(head[0].Key))
//		return nil
//	}, concurrency.WithAbortContext(ctx))
//
// # Long transactions among short ones
//
// A transaction whose function takes longer than others need for a commit over the same keys
// may conflict each time. No option of one client can mend that, because the servers know no
// transactions, and the other clients need not heed it. A lock can, if all look at it. The short
// transactions read the range of the lock's line, and call Retry while somebody stands there.
// The long one takes the lock when it has conflicted as often as [WithMaxAttempts] allows. From
// then on nobody commits beside it. The example of WithMaxAttempts shows both.
//
// # Transactions within transactions
//
// A transaction that runs in the function of another is independent. It does not see what the
// outer one writes, it is committed when its own NewSTM returns, and it stays committed if the
// outer one fails. It runs again with every attempt of the outer one. It does not wait for the
// outer one. If it writes what the outer one has read, the outer one conflicts.
//
// # Panics and side effects in transactions
//
// The function given to [NewSTM] runs on the goroutine of the caller, possibly many times.
// A panic in the function, or runtime.Goexit, passes through NewSTM and commits nothing. A
// failed read leaves the function by a panic of NewSTM's own. A function that recovers
// this panic cannot turn the attempt into a commit. What the function does other than
// through its STM is not undone when it is run again.
//
// # Differences from upstream
//
// COMPAT.md lists what a program can see when it changes its import path. `make compat`
// runs each of the faults in that list on both packages.
package concurrency
