package concurrency

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
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

// WithObserver has f called after every attempt, on the goroutine of the function. It is not
// called after an attempt that ended with a panic or runtime.Goexit.
func WithObserver(f func(Attempt)) STMOption {
	if f == nil {
		panic("concurrency: WithObserver: nil function")
	}
	return func(o *stmOptions) { o.observer = f }
}

// WithMaxAttempts makes NewSTM return an error that wraps [ErrConflict] and names the keys
// when n attempts have conflicted. Those that ended with Retry don't count. Nothing is
// committed then.
func WithMaxAttempts(n int) STMOption {
	if n <= 0 {
		panic(fmt.Sprintf("concurrency: WithMaxAttempts: %d is no number of attempts", n))
	}
	return func(o *stmOptions) { o.maxConflicts = n }
}

// tally is what is counted over all attempts of a transaction.
type tally struct {
	attempts, conflicts int
	paused              time.Duration // before the next attempt
}

// account counts the attempt, which has ended with err, and tells the observer. It returns
// the error that is to be returned instead if that was the last attempt allowed.
func (a *attempt) account(err error) error {
	a.attempts++
	if err == errConflict {
		a.conflicts++
	}
	last := err == errConflict && a.conflicts == a.options.maxConflicts
	if a.options.observer == nil && !last {
		return err
	}
	var keys []string
	if err == errConflict {
		keys = a.conflicting()
	}
	if a.options.observer != nil {
		a.met.Number, a.met.Err, a.met.Keys = a.attempts, err, keys
		a.met.Paused += a.paused
		switch err {
		case errConflict:
			a.met.Err = ErrConflict
		case errRetry:
			a.met.Err = ErrBlocked
		}
		a.options.observer(a.met)
	}
	if last {
		return fmt.Errorf("%w: %d attempts, the last one over %s", ErrConflict, a.conflicts, list(keys))
	}
	return err
}

// conflicting are the keys over which the attempt has conflicted, as far as the snapshot of
// the next one tells.
func (a *attempt) conflicting() (keys []string) {
	switch {
	case errors.Is(a.err, errConflict): // a read found its snapshot compacted
		return nil
	case a.header == nil:
		for _, s := range a.reads.spans {
			keys = append(keys, s.name())
		}
		keys = append(keys, slices.Collect(maps.Keys(a.reads.keys))...)
	default:
		keys = differences(&a.reads, &a.known)
	}
	if len(keys) == 0 { // what was read has not changed
		for _, w := range a.writes {
			keys = append(keys, w.key)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// list is the text of some names, of which many are only counted.
func list(names []string) string {
	const shown = 10
	text := strings.Join(names[:min(shown, len(names))], ", ")
	if more := len(names) - shown; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
