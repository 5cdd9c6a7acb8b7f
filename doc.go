// Package concurrency provides distributed locks, leader elections and software
// transactional memory on etcd, as a drop-in replacement for
// go.etcd.io/etcd/client/v3/concurrency: it has that package's API and stands in
// the same lines, so that processes on either can share a lock.
//
// # What is not promised
//
// No lock service can promise these, and a program that needs them has to do its
// part:
//
//   - A lock does not stop its former holder. Between the moment at which a process
//     learns that it holds a lock and the moment at which its write arrives
//     somewhere, it may be paused, by its scheduler, its garbage collector or its
//     hypervisor, for longer than any TTL. Only what is written to can refuse the
//     write: etcd does with [Mutex.IsOwner] as a condition of the transaction;
//     another store can with the create revision of the lock's key as a fencing
//     token, which rises with every change of the owner, refusing a smaller one than
//     it has seen.
//   - The end of a session, by [Session.Done], is known in time only where clocks run
//     at the same rate: the deadline counts by this process's monotonic clock, the
//     lease's by the servers'. A machine that was suspended notices late.
//   - An etcd server that answers is believed. One that renewed leases without knowing
//     that it was deposed (etcd #15247; v3.7.3 asks first, ensureLeadership in
//     server/etcdserver/server.go) could let two own.
//   - A session is one participant. Two handles of one session and one name share the
//     lock or the candidacy, and each is given it while the other has it. [NewLocker]
//     excludes the goroutines that share it.
//   - A lease belongs to one process at a time. Two that keep the same one alive, by
//     [WithLease], are one participant without knowing of each other: what one cleans up
//     after an unanswered call may be what the other holds.
//   - A name owns its keys. A lock and an election of one name share the line, any
//     foreign key under name + "/" counts as a participant, and so the keys of "a/b"
//     stand in the line of "a".
//
// # What is promised
//
// Given that etcd's transactions, revisions and leases do what they are documented
// to do, and that clocks run at the same rate:
//
// Session. [Session.Done] is closed before any other client can be given what the
// lease guards. The deadline is the sending of the last answered renewal plus the
// TTL: the server cannot have started its own count earlier. It is a timer of this
// process and depends on no call. [Session.Ctx] is cancelled before Done closes, and
// its cause tells why.
//
// Mutex. A participant is a key under the name, bound to its session's lease, and the
// key's create revision is its ticket. Create revisions are given in the order of
// commits and never twice, so nobody can come in ahead of a ticket that exists: who is
// seen, at one revision, with a ticket of its own and none ahead owns the lock until
// that ticket is deleted. [Mutex.Lock] returns nil upon such a sight only, and
// [ErrSessionExpired] as soon as its ticket is gone. Order is first come, first
// served. Every deletion names the ticket it deletes, so that no late or repeated one
// can hit another.
//
// Election. The same line with values: all of the above holds for candidates and the
// leader. [Election.Observe] delivers only who led, in the order of revisions, and
// ends up at the latest.
//
// STM. [SerializableSnapshot] and [Serializable] are strictly serializable as far as
// keys that were read go: all reads of an attempt are of one revision, the first of
// them was linearizable, and the commit requires that no key read has changed since.
// A blind write, to a key that was not read, doesn't conflict with a concurrent
// deletion at any level: both orders of the two are serial. A commit is sent once.
//
// # Acting on ownership
//
// [Mutex.Ctx] and [Election.Ctx] end with the ownership: at once when the server reports
// that the key was deleted, and by the session's deadline when nothing can be heard. The
// deadline comes before any rival can be let in; a deletion by somebody else reaches the
// former owner and the next one at the same time. So work that stops with its context has
// stopped in time, except for what it can't know about: a process that is paused, for
// longer than what is left of its lease, after it last looked at its context, goes on for
// a moment afterwards as if nothing had happened. No timeout protects data from that; a
// token does, because it is the store that compares, when the write arrives:
//
//   - writes to etcd: [Mutex.IsOwner] or [Election.IsLeader] as a condition, or
//     [WithGuard] in a transaction;
//   - writes elsewhere: [Mutex.Rev] or [Election.Rev] sent along, and a store that refuses
//     a smaller one than it has seen. It must remember the greatest.
//
// [Mutex.Do], [Election.Lead] and [RunLeader] run a function while the ownership lasts and
// release only after it has returned: who releases under a function that still runs lets
// two in.
//
// A session's TTL is how long the others wait for one that died, and how long a fault may
// last without costing the ownership: renewals are sent every third of it, so that a TTL
// well over the time that the servers need for an election, 10 s rather than 2 s, lets
// sessions survive one. [WithSafetyMargin] ends the session that much earlier than the
// lease. It should cover what clocks may drift apart within a TTL, the longest pause that
// is to be harmless, and the time that the work needs to stop; what remains, TTL less
// margin, should still be long enough for a few renewals.
//
// # Failure
//
// Waiting calls ride out what passes: lost connections, elections among the servers,
// members without a quorum, compactions, lost answers. They end with the caller's
// context within a second even if no server can be reached. What an unanswered call
// may have left behind is cleaned up in the background, for as long as the lease lives,
// which bounds everything: no key outlives it. [Election.Proclaim] and a commit that
// writes are never repeated, because a repetition might overwrite what others
// wrote in between. What etcd's client does below is not in this package's hand: it sends
// a call again when a server, or a gateway before it, answers with a status of Canceled or
// DeadlineExceeded while the caller's context lives (client/v3 retry_interceptor.go).
//
// A server that keeps silent on a connection that stands is passed over: no call of a lock
// or an election is waited for longer than half the TTL before it is sent again, and a wait
// that has heard nothing for a TTL looks for itself. Transactions, Proclaim and Leader wait
// for as long as their context lets them.
//
// Errors that upstream returns bare are returned bare and can be compared with ==: the
// sentinels, the context's errors, and those of rpctypes. A program that calls a method
// in a way that can't be meant gets a panic whose text begins with "concurrency: ". The
// package logs nothing.
//
// # Goroutines
//
// Every exported method may be called from any goroutine, except those of an [STM],
// which belong to the goroutine of their function. Mutexes are never held across a
// call. A session runs one goroutine for renewals and, after a failed acquisition, one
// for its clean-up, and one for each context that was asked for by [Mutex.Ctx] or
// [Election.Ctx]; [Session.Close] waits for them. A wait runs one for each key that it
// watches, Observe and Leaders two, and none is left when they return or their channel
// closes, but for one watch of the session, which is kept for a second or two after a wait
// that was successful, or until the session ends.
//
// # Panics and side effects in transactions
//
// The function given to [NewSTM] runs on the caller's goroutine, possibly many times.
// A panic in it, or runtime.Goexit, passes through NewSTM and commits nothing. A failed
// read leaves the function by a panic of NewSTM's own; a function that recovers it
// can't turn the attempt into a commit. What the function does other than through its
// STM is not undone when it is run again.
//
// # Differences from upstream
//
// What a program can see when it changes the import path; the identifiers are those of
// the table that `make compat` prints, which shows both packages on each.
//
//   - Observe skips values that a slow reader has not taken, instead of queueing them (E7).
//   - Lock and Campaign return [ErrSessionExpired] when their key is gone, at once
//     instead of when the one ahead leaves or never (L1, E1), and prove their own ticket
//     (L2, E1).
//   - TryLock writes nothing unless it succeeds (L3).
//   - Lost answers, lost connections, compactions and elections among the servers
//     don't end Lock, TryLock, Campaign, Unlock, Resign or Observe (L4, L6, L7, L15, L16,
//     E2, E3, E7).
//   - A call whose context has ended returns within a second (L5).
//   - Unlock and Resign delete the ticket that they were given, and no other; a failed
//     Resign can be repeated (L9, E4).
//   - IsOwner is a valid comparison, and Key and Rev are zero, while nothing is held
//     (L11, E8).
//   - Header is that of the answer that proved the ownership (L12).
//   - NewLocker excludes goroutines; its panics begin with "concurrency: " (L13).
//   - Everything may be called from any goroutine (L14).
//   - A leader whose repeated Campaign fails stays leader (E9); a candidate that
//     waits can't proclaim (E5); ResumeElection understands the name as given to
//     NewElection (E6).
//   - Done closes in time (S1, S2); Ctx ends before it, with a cause (S3); NewSession is
//     bounded and refuses a lease that does not exist (S4), for instance WithLease(-1);
//     Close may be called twice (S5).
//   - Get answers with its first key (T1). All reads of an attempt agree (T2), and
//     lagging members and compactions are no errors (T3, T4). The function runs on the
//     caller's goroutine (T5). Reads beyond the server's limit of operations work (T6).
//     The abort context is looked at before every attempt (T7). Writes keep their
//     order (T8). [ErrCommitUnknown] tells of a commit that was not answered, also when
//     the abort context ended during it (T9).
//   - Reads that are not pinned to a snapshot are linearizable, at every level.
//   - A transaction that only read sends no commit, except at [RepeatableReads], so its
//     response has no Responses and the header of its reads. A header is never older
//     than an answer that the client had before (T13).
//   - A commit that was not sent is not [ErrCommitUnknown] (T12). Reads of several keys
//     ride out what a Get does (T14). Goroutines of one client that conflict commit
//     one after the other, the oldest first (T15).
//   - [SessionOption] takes no logger.
package concurrency
