package concurrency

import (
	"time"
)

// Attempt is what one attempt at a transaction has met with.
type Attempt struct {
	// Number counts the attempts of one NewSTM from 1.
	Number int
	// Err is nil if the attempt was committed, [ErrConflict] if it conflicted, and
	// [ErrBlocked] if it ended with Retry. Another attempt follows these two. Any other error
	// is that of NewSTM.
	Err error
	// Keys are those that have changed since they were read, if the attempt conflicted. If
	// nothing tells which of them it was, as at [RepeatableReads], they are all that was
	// checked. The name of a range is "[begin, end)". There is none if the snapshot was
	// compacted away.
	Keys []string
	// Paused is the time before the attempt, and before its commit, in which the transaction
	// made way for others or was blocked. Reading and Committing are those of the calls. What
	// is left of the time of an attempt is that of its function.
	Paused, Reading, Committing time.Duration
}

// tally is what is counted over all attempts of a transaction.
type tally struct {
	attempts, conflicts int
	paused              time.Duration // before the next attempt
}
