// Package history records what participants of locks, elections and transactions did and
// when, and checks what was recorded. Times are those of one monotonic clock, counted from
// the beginning of the run.
//
// A check must never accuse falsely, so that every record is an understatement: a hold
// lasts from a moment at which the participant had it to the last moment at which it
// looked and still believed so; a call lasts from before it was made to after it returned;
// a key was gone at the latest when the news of it came.
package history

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// The packages under test.
const (
	Here     = "here"
	Upstream = "upstream"
)

// Who is a participant.
type Who struct {
	Client  int    `json:"client"`
	Package string `json:"package"`
}

// String names the participant in a report.
func (w Who) String() string { return fmt.Sprintf("client %d (%s)", w.Client, w.Package) }

// Hold is the time for which a participant believed that it held a lock or led.
type Hold struct {
	Who
	Name     string        `json:"name"`
	Kind     string        `json:"kind,omitempty"`     // those of one kind may hold at once; "": it excludes all
	Most     int           `json:"most,omitempty"`     // how many of the kind, 0: any number
	Token    int64         `json:"token"`              // create revision of its key
	Passed   int64         `json:"passed,omitempty"`   // which of the goroutines that passed the token on, from 1; 0: it is not passed on
	Lease    int64         `json:"lease,omitempty"`    // of its session
	Rev      int64         `json:"rev,omitempty"`      // at which it was proven, 0: not told
	Start    time.Duration `json:"start"`              // it had it
	End      time.Duration `json:"end"`                // the last time at which it believed so
	Deadline time.Duration `json:"deadline,omitempty"` // of its session by then, 0: not told
	Known    time.Duration `json:"known,omitempty"`    // until when its client knew then that the lease lives, 0: not told
}

// Life is one life of a key in a line, as the servers told it.
type Life struct {
	Name    string        `json:"name"`
	Kind    string        `json:"kind,omitempty"`   // see Hold
	Number  string        `json:"number,omitempty"` // of a place that a session has beside its first, "": that one
	Token   int64         `json:"token"`
	Lease   int64         `json:"lease,omitempty"`
	Value   string        `json:"value,omitempty"`   // with which it was put first
	Created time.Duration `json:"created,omitempty"` // when the news of the creation came
	Deleted int64         `json:"deleted,omitempty"` // the revision, 0: it stands
	Gone    time.Duration `json:"gone,omitempty"`    // when the news of the deletion came
}

// LifeOf is what the name of a key tells: what is locked there, which is the first n parts of
// the name; the kind of the ticket, if it has one; the lease; and the number of the place, if it
// has one.
func LifeOf(key string, n int) (life Life) {
	parts := strings.Split(key, "/")
	life.Name = strings.Join(parts[:n], "/")
	parts = parts[n:]
	if kind, ok := strings.CutPrefix(parts[0], "~"); ok {
		life.Kind, parts = kind, parts[1:]
	}
	if len(parts) > 1 {
		life.Number = parts[1]
	}
	return life
}

// Round is the beginning of a round of a double barrier, as the servers told it. Whose ticket is
// not newer than the last is inside.
type Round struct {
	Name string        `json:"name"`
	Of   int           `json:"of"` // participants
	Last int64         `json:"last"`
	Rev  int64         `json:"rev"`
	At   time.Duration `json:"at"`
}

// Visit is a participant's part in a round of a double barrier, by revisions that the store had.
type Visit struct {
	Who
	Name  string        `json:"name"`
	Lease int64         `json:"lease"`         // of its session
	From  int64         `json:"from"`          // before it called Enter
	In    int64         `json:"in"`            // when Enter had returned
	Out   int64         `json:"out,omitempty"` // when Leave had returned, 0: it failed
	At    time.Duration `json:"at"`            // the end
}

// Term is the life of the context of a function that RunLeader ran, by the ticket of its election.
type Term struct {
	Who
	Name  string        `json:"name"`
	Token int64         `json:"token"`
	Lease int64         `json:"lease,omitempty"`
	Start time.Duration `json:"start"`
	End   time.Duration `json:"end"` // the last time at which the context lived
}

// Loss is a key deleted, or a lease revoked, by somebody who does not own it. The holder
// can't know in time: its hold ends when the order was given.
type Loss struct {
	Token int64         `json:"token,omitempty"`
	Lease int64         `json:"lease,omitempty"`
	At    time.Duration `json:"at"`
}

// Write is a write that was carried out under the guard of a token.
type Write struct {
	Who
	Name  string        `json:"name"`
	Token int64         `json:"token"`
	Rev   int64         `json:"rev"`
	At    time.Duration `json:"at"`
}

// Sighting is a leader that an observer was told of: it led at some revision from From
// to To.
type Sighting struct {
	Who
	Stream int64         `json:"stream,omitempty"` // the call that told of it, 0: not told
	Name   string        `json:"name"`
	Token  int64         `json:"token"` // 0: nobody led
	From   int64         `json:"from"`
	To     int64         `json:"to"`
	At     time.Duration `json:"at"`
}

// Txn is a transaction, or an attempt that read and was not committed. A key that does not
// exist has the value "", so that a deletion is a write of it.
type Txn struct {
	Who
	Part    string            `json:"part,omitempty"` // transactions of different parts share no keys
	Level   string            `json:"level,omitempty"`
	Reads   map[string]string `json:"reads,omitempty"`
	Revs    map[string]int64  `json:"revs,omitempty"` // reads of which only the revision was told
	Writes  map[string]string `json:"writes,omitempty"`
	Call    time.Duration     `json:"call"`
	Return  time.Duration     `json:"return"`
	Unknown bool              `json:"unknown,omitempty"` // nobody knows whether it was committed
	Rev     int64             `json:"rev,omitempty"`     // that its answer told, 0: not told
}

// Commit is a value that the servers told of. Values are never written twice. The value of
// a deletion is "", and it may be left untold unless [CheckStore] is to be asked.
type Commit struct {
	Key   string        `json:"key"`
	Value string        `json:"value"`
	Rev   int64         `json:"rev,omitempty"`
	At    time.Duration `json:"at"` // when the news came
}

// Total is a sum that has to be constant, as a transaction read it.
type Total struct {
	Who
	Sum  int           `json:"sum"`
	Want int           `json:"want"`
	At   time.Duration `json:"at"`
}

// Beside is the operation of a call that stands for another one, in a line that the other one
// does not name.
const Beside = "beside"

// Call is a call of the library, or one of the harness's about it.
type Call struct {
	Who
	Op     string        `json:"op"`
	Name   string        `json:"name,omitempty"`
	Lease  int64         `json:"lease,omitempty"` // of the session that it was made on
	Call   time.Duration `json:"call"`
	Return time.Duration `json:"return"`
	Ended  time.Duration `json:"ended,omitempty"` // when its context ended, 0: after the call
	Due    time.Duration `json:"due,omitempty"`   // when it had to return by itself, 0: never
	Error  string        `json:"error,omitempty"`
	Given  bool          `json:"given,omitempty"` // the error is one that the harness gives
}

// Fault is something that was done to the servers or to the connections.
type Fault struct {
	What  string        `json:"what"`
	On    string        `json:"on,omitempty"`
	From  time.Duration `json:"from"`
	To    time.Duration `json:"to"`
	Error string        `json:"error,omitempty"`
}

// Record is one line of evidence: exactly one field is set.
type Record struct {
	Hold     *Hold     `json:"hold,omitempty"`
	Term     *Term     `json:"term,omitempty"`
	Life     *Life     `json:"life,omitempty"`
	Round    *Round    `json:"round,omitempty"`
	Visit    *Visit    `json:"visit,omitempty"`
	Loss     *Loss     `json:"loss,omitempty"`
	Write    *Write    `json:"write,omitempty"`
	Sighting *Sighting `json:"sighting,omitempty"`
	Txn      *Txn      `json:"txn,omitempty"`
	Commit   *Commit   `json:"commit,omitempty"`
	Total    *Total    `json:"total,omitempty"`
	Call     *Call     `json:"call,omitempty"`
	Fault    *Fault    `json:"fault,omitempty"`
}

// History is what happened in one run, in no particular order.
type History []Record

// Encode writes the history as one JSON object a line.
func (h History) Encode(w io.Writer) error {
	out := bufio.NewWriter(w)
	enc := json.NewEncoder(out)
	for _, r := range h {
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	return out.Flush()
}

// Decode reads what Encode wrote. A field that it doesn't know is an error.
func Decode(r io.Reader) (History, error) {
	var h History
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	for {
		var record Record
		switch err := dec.Decode(&record); err {
		case nil:
			h = append(h, record)
		case io.EOF:
			return h, nil
		default:
			return nil, fmt.Errorf("record %d: %w", len(h)+1, err)
		}
	}
}

// Recorder takes a history. Its methods may be called from any goroutine.
type Recorder struct {
	start time.Time

	mu      sync.Mutex // guards the field below
	records History
}

// NewRecorder starts the clock.
func NewRecorder() *Recorder { return NewRecorderSince(time.Now()) }

// NewRecorderSince counts from a moment before.
func NewRecorderSince(start time.Time) *Recorder { return &Recorder{start: start} }

// Now is the time since the beginning.
func (r *Recorder) Now() time.Duration { return time.Since(r.start) }

// When is the time t by the recorder's clock.
func (r *Recorder) When(t time.Time) time.Duration { return t.Sub(r.start) }

// Add notes a record.
func (r *Recorder) Add(record Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records = append(r.records, record)
}

// History is what was recorded up to now.
func (r *Recorder) History() History {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.records[:len(r.records):len(r.records)]
}
