package history

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// Resolve finds out what became of the transactions of unknown outcome: one whose value the
// servers told of was committed, by then; one whose value they did not tell of never was.
// One that only deletes stays unknown. It also finds the values that were read by their
// revisions. The commits must be complete, and the history at its end. A transaction that
// was not committed leaves the history: what an attempt has read is noted by itself.
func Resolve(h History) History {
	at, values := map[[2]string]time.Duration{}, valuesOf(h)
	for _, c := range all(h, func(r Record) *Commit { return r.Commit }) {
		at[[2]string{c.Key, c.Value}] = c.At
	}
	var resolved History
	for _, r := range h {
		if r.Txn != nil {
			t := *r.Txn
			if t.Unknown && !settle(&t, at) {
				continue
			}
			t.Reads = maps.Clone(t.Reads)
			for key, rev := range t.Revs {
				if _, ok := t.Reads[key]; !ok {
					if t.Reads == nil {
						t.Reads = map[string]string{}
					}
					t.Reads[key] = values[keyRev{key, rev}]
				}
			}
			r.Txn = &t
		}
		resolved = append(resolved, r)
	}
	return resolved
}

// settle decides about a transaction of unknown outcome by the values of which the servers
// told, and is false if it was not committed.
func settle(t *Txn, at map[[2]string]time.Duration) (stays bool) {
	stays = true
	for key, value := range t.Writes {
		if value == "" {
			continue
		}
		if news, ok := at[[2]string{key, value}]; ok {
			t.Unknown, t.Return = false, max(news, t.Call)
			return true
		}
		stays = false
	}
	return stays
}

// keyRev is a version of a key.
type keyRev struct {
	key string
	rev int64
}

func valuesOf(h History) map[keyRev]string {
	values := map[keyRev]string{}
	for _, c := range all(h, func(r Record) *Commit { return r.Commit }) {
		values[keyRev{c.Key, c.Rev}] = c.Value
	}
	return values
}

// Txns is what CheckTxns found out, and what it takes to draw it.
type Txns struct {
	Violations []Violation
	info       porcupine.LinearizationInfo
}

// ReadCommitted is the level at which transactions are not serializable: CheckCommits is all
// that they are asked for.
const ReadCommitted = "ReadCommitted"

// CheckTxns looks for an order of all transactions in which each reads what those before it
// have written, and none comes before one that had returned when it was called: strict
// serializability. One of unknown outcome may stand anywhere after its call, or nowhere. It
// gives up after the limit, which is a violation too: nothing was shown.
//
// What upstream's transactions have written are facts, what they say they have read are
// claims. If there is no order even without the claims, this package is to blame.
func CheckTxns(h History, limit time.Duration) Txns {
	var txns, facts []Txn
	for _, t := range all(h, func(r Record) *Txn { return r.Txn }) {
		if t.Level == ReadCommitted {
			continue
		}
		txns = append(txns, t)
		if t.Package == Upstream {
			t.Reads = nil
		}
		facts = append(facts, t)
	}
	found := order(facts, Here, limit)
	if len(found.Violations) == 0 {
		found = order(txns, Upstream, limit)
	}
	return found
}

func order(txns []Txn, blamed string, limit time.Duration) Txns {
	var ops []porcupine.Operation
	for i, t := range txns {
		op := porcupine.Operation{
			// Each has a line of its own: an unknown outcome overlaps what its client did next.
			ClientId: i, Input: t, Call: int64(t.Call), Return: int64(t.Return),
		}
		if t.Unknown {
			op.Return = math.MaxInt64
		}
		ops = append(ops, op)
	}
	result, info := porcupine.CheckOperationsVerbose(registers, ops, limit)
	found := Txns{info: info}
	switch result {
	case porcupine.Illegal:
		at, text := culprit(ops)
		found.Violations = []Violation{{"serializability", blamed, at, text}}
	case porcupine.Unknown:
		found.Violations = []Violation{{"undecided", "harness", 0, fmt.Sprintf(
			"no answer about the order of %d transactions within %v", len(ops), limit)}}
	}
	return found
}

// CheckCommits finds values that were committed twice, values of a transaction that was
// answered and that the servers don't know of, and reads of what was never committed. The
// commits must be complete. Of deletions it says nothing: which of them was whose the
// servers don't tell, and one that is lost or doubled is for the order to show.
func CheckCommits(h History) (found []Violation) {
	times, values := map[[2]string]int{}, valuesOf(h)
	for _, c := range all(h, func(r Record) *Commit { return r.Commit }) {
		times[[2]string{c.Key, c.Value}]++
	}
	if len(times) == 0 {
		return nil // of which the history tells nothing
	}
	for _, t := range all(h, func(r Record) *Txn { return r.Txn }) {
		accuse := func(what, key, value string) {
			found = append(found, Violation{what, t.Package, t.Return, fmt.Sprintf(
				"%v, %s: %s=%q: %d times committed", t.Who, describe(t), key, value, times[[2]string{key, value}])})
		}
		for key, value := range t.Writes {
			switch n := times[[2]string{key, value}]; {
			case value == "":
			case n > 1:
				accuse("doubled", key, value)
			case n == 0 && !t.Unknown:
				accuse("lost", key, value)
			}
		}
		for key, value := range t.Reads {
			if value != "" && times[[2]string{key, value}] == 0 && !t.Unknown {
				accuse("dirty", key, value)
			}
		}
		for key, rev := range t.Revs {
			value, ok := values[keyRev{key, rev}]
			if rev != 0 && !ok || value != t.Reads[key] {
				accuse("dirty", key, fmt.Sprint("revision ", rev))
			}
		}
	}
	return found
}

// Draw writes the orders that were found, and where they end, as an HTML page.
func (t Txns) Draw(w io.Writer) error { return porcupine.Visualize(registers, t.info, w) }

// culprit names the parts that have no order, and for each the transaction with whose return
// it becomes impossible: the history up to there has none, the one up to before has. It
// returns the time of the first of them as well.
func culprit(ops []porcupine.Operation) (at time.Duration, text string) {
	var texts []string
	for _, part := range byPart(ops) {
		if porcupine.CheckOperationsTimeout(registers, part, 10*time.Second) != porcupine.Illegal {
			continue
		}
		slices.SortFunc(part, func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
		low, high := 0, len(part)
		for low+1 < high {
			mid := (low + high) / 2
			if porcupine.CheckOperationsTimeout(registers, upTo(part, mid), 10*time.Second) == porcupine.Illegal {
				high = mid
			} else {
				low = mid
			}
		}
		t := part[high-1].Input.(Txn)
		if len(texts) == 0 || t.Return < at {
			at = t.Return
		}
		texts = append(texts, fmt.Sprintf("part %q has no serial order from %v on: %v: %s",
			t.Part, t.Return, t.Who, describe(t)))
	}
	return at, strings.Join(texts, "; ")
}

// upTo is the history at the moment at which the first n operations have returned: those
// that had been called by then may have taken effect or not.
func upTo(ops []porcupine.Operation, n int) []porcupine.Operation {
	now := ops[n-1].Return
	prefix := slices.Clone(ops[:n])
	for _, op := range ops[n:] {
		if t := op.Input.(Txn); op.Call <= now && len(t.Writes) > 0 {
			t.Unknown = true
			op.Input, op.Return = t, math.MaxInt64
			prefix = append(prefix, op)
		}
	}
	return prefix
}

// registers is a store of strings under transactions. A transaction of unknown outcome whose
// reads don't fit changes nothing: since it may stand at the very end of the history, that
// is how it stands nowhere.
var registers = porcupine.Model{
	Partition: byPart,
	Init:      func() any { return map[string]string{} },
	Step: func(state, input, _ any) (bool, any) {
		store, t := state.(map[string]string), input.(Txn)
		for key, value := range t.Reads {
			if store[key] != value {
				return t.Unknown, store
			}
		}
		if len(t.Writes) == 0 {
			return true, store
		}
		next := maps.Clone(store)
		maps.Copy(next, t.Writes)
		maps.DeleteFunc(next, func(_, value string) bool { return value == "" })
		return true, next
	},
	Equal: func(a, b any) bool { return maps.Equal(a.(map[string]string), b.(map[string]string)) },
	DescribeOperation: func(input, _ any) string {
		return describe(input.(Txn))
	},
	DescribeState: func(state any) string { return list(state.(map[string]string)) },
}

func byPart(ops []porcupine.Operation) [][]porcupine.Operation {
	parts := map[string][]porcupine.Operation{}
	for _, op := range ops {
		part := op.Input.(Txn).Part
		parts[part] = append(parts[part], op)
	}
	var all [][]porcupine.Operation
	for _, part := range slices.Sorted(maps.Keys(parts)) {
		all = append(all, parts[part])
	}
	return all
}

func describe(t Txn) string {
	text := fmt.Sprintf("read %s, wrote %s", list(t.Reads), list(t.Writes))
	if t.Unknown {
		text += ", outcome unknown"
	}
	return text
}

// list gives the entries in the order of their keys.
func list(m map[string]string) string {
	if len(m) == 0 {
		return "nothing"
	}
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%s=%q", key, m[key]))
	}
	return strings.Join(parts, " ")
}
