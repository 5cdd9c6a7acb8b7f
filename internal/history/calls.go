package history

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// CheckCalls finds calls that went on long after their context had ended, or after they had
// to return by themselves.
func CheckCalls(h History) []Violation { return CheckCallsWithin(h, overdue) }

// CheckCallsWithin is CheckCalls where a call may be late by a bound.
func CheckCallsWithin(h History, overdue time.Duration) (found []Violation) {
	for _, c := range all(h, func(r Record) *Call { return r.Call }) {
		due, what := c.Due, "the longest that it may take"
		if c.Ended > 0 {
			due, what = max(c.Ended, c.Call), "the end of its context"
		}
		if late := c.Return - due; due > 0 && late > overdue {
			found = append(found, Violation{"wait", c.Package, due, fmt.Sprintf(
				"%v: %s of %q returned %v after %s", c.Who, c.Op, c.Name, late, what)})
		}
	}
	return found
}

// What the package's sentinels, and etcd's, say.
const (
	locked         = "mutex: Locked by another session"
	sessionExpired = "mutex: session is expired"
	leaseNotFound  = "etcdserver: requested lease not found"

	// The causes of a loss, which a function returns whose context ended with it.
	deadline   = sessionExpired + ": no renewal was answered before the deadline"
	leaseGone  = sessionExpired + ": the server does not have the lease any more"
	keyDeleted = sessionExpired + ": the key was deleted"
)

// legitimate are the errors with which a call may end whose context lives. Whatever else
// befalls it passes, and is to be ridden out. The calls that are not listed promise less.
var legitimate = map[string][]string{
	"Lock":      {sessionExpired, leaseNotFound},
	"TryLock":   {locked, sessionExpired, leaseNotFound},
	"Campaign":  {sessionExpired, leaseNotFound},
	"Do":        {sessionExpired, leaseNotFound, deadline, leaseGone, keyDeleted},
	"Lead":      {sessionExpired, leaseNotFound, deadline, leaseGone, keyDeleted},
	"Unlock":    {},
	"Resign":    {},
	"RunLeader": {},

	"LocalMutex.Lock":    {sessionExpired, leaseNotFound},
	"LocalMutex.TryLock": {locked, sessionExpired, leaseNotFound},
	"LocalMutex.Unlock":  {},
	"Barrier.Wait":       {},
	"Enter":              {sessionExpired, leaseNotFound},
	"Leave":              {sessionExpired, leaseNotFound},

	"RLock":         {sessionExpired, leaseNotFound},
	"Acquire":       {sessionExpired, leaseNotFound},
	"Lock of all":   {sessionExpired, leaseNotFound},
	"TryRLock":      {locked, sessionExpired, leaseNotFound},
	"TryAcquire":    {locked, sessionExpired, leaseNotFound},
	"TryLock all":   {locked, sessionExpired, leaseNotFound},
	"RUnlock":       {},
	"Release":       {},
	"Unlock of all": {},
}

// CheckErrors finds errors that this package must not return: of calls that ride faults
// out, other than of a lost session, while their contexts live; and of any call, those about
// revisions, which are nobody's business but the package's.
func CheckErrors(h History) (found []Violation) {
	for _, c := range all(h, func(r Record) *Call { return r.Call }) {
		if c.Package != Here || c.Error == "" || c.Given {
			continue
		}
		may, judged := legitimate[c.Op]
		wrong := judged && c.Ended == 0 && !slices.Contains(may, c.Error)
		for _, internal := range []string{"future revision", "compacted"} {
			wrong = wrong || strings.Contains(c.Error, internal)
		}
		if wrong {
			found = append(found, Violation{"error", c.Package, c.Return, fmt.Sprintf(
				"%v: %s of %q failed after %v: %s", c.Who, c.Op, c.Name, c.Return-c.Call, c.Error)})
		}
	}
	return found
}

// placeOf is a session's place in a line.
type placeOf struct {
	name  string
	lease int64
}

// CheckOrder finds waiters that lost their place: a Lock or Campaign that succeeded with
// another ticket than it had drawn before, which nobody took from it. It judges only those
// calls that were alone on their place, with no failed one before, which may have left a
// ticket to clean away.
func CheckOrder(h History) (found []Violation) {
	losses, calls := lossesOf(h), map[placeOf][]Call{}
	for _, c := range all(h, func(r Record) *Call { return r.Call }) {
		if c.Package == Here && c.Lease != 0 && c.Name != "" {
			at := placeOf{c.Name, c.Lease}
			calls[at] = append(calls[at], c)
		}
	}
	holds := map[placeOf][]Hold{}
	for _, hold := range all(h, func(r Record) *Hold { return r.Hold }) {
		at := placeOf{hold.Name, hold.Lease}
		holds[at] = append(holds[at], hold)
	}
	for _, life := range all(h, func(r Record) *Life { return r.Life }) {
		at := placeOf{life.Name, life.Lease}
		lost := losses.cap(life.Gone, life.Token, life.Lease) < life.Gone
		served := slices.ContainsFunc(holds[at], func(h Hold) bool { return h.Token == life.Token })
		if life.Deleted == 0 || lost || served || life.Kind+life.Number != "" {
			continue
		}
		for _, c := range calls[at] {
			if !waited(c, life, calls[at]) {
				continue
			}
			if token := heldAfter(c, calls[at], holds[at]); token > life.Token {
				found = append(found, Violation{"order", c.Package, life.Gone, fmt.Sprintf(
					"%v: %s of %q lost its place with token %d and came to own with %d",
					c.Who, c.Op, c.Name, life.Token, token)})
			}
		}
	}
	slices.SortStableFunc(found, func(a, b Violation) int { return cmp.Compare(a.At, b.At) })
	return found
}

// waited reports whether the life was that of the ticket of c, a call that succeeded, and of
// none of the others of its place. The news of a life come late, never early.
func waited(c Call, life Life, others []Call) bool {
	if c.Op != "Lock" && c.Op != "Campaign" || c.Error != "" || life.Created < c.Call || life.Gone < c.Call {
		return false
	}
	for _, o := range others {
		before := o.Return <= c.Call
		if after := o.Call >= c.Return; o != c && !after && (!before || o.Error != "") {
			return false
		}
	}
	return true
}

// heldAfter is the token that c acquired, 0 if the holder did not come to look at it: its hold
// would have begun before the next call of its place, but for proclamations.
func heldAfter(c Call, others []Call, holds []Hold) (token int64) {
	until := time.Duration(math.MaxInt64)
	for _, o := range others {
		if o.Call >= c.Return && !strings.HasPrefix(o.Op, "Proclaim") {
			until = min(until, o.Call)
		}
	}
	for _, hold := range holds {
		if c.Return <= hold.Start && hold.Start < until {
			token, until = hold.Token, hold.Start
		}
	}
	return token
}

// A key that nobody wants any more is cleaned away as soon as a server answers. Its session
// has been answered so often, and for so long, that there was time for that.
const (
	strayAnswers = 3
	strayFor     = 5 * time.Second
	// landing is how long after a call that was given up its join may still be carried out,
	// for its session to look after.
	landing = 2 * time.Second
)

// CheckStrays finds keys of this package's that stood in line for nobody, and blocked those
// behind them, while calls of their own session were answered.
func CheckStrays(h History) (found []Violation) {
	type span struct{ from, to time.Duration }
	used, answers, users := map[placeOf][]span{}, map[int64][]span{}, map[placeOf]Who{}
	for _, c := range all(h, func(r Record) *Call { return r.Call }) {
		if c.Package != Here || c.Lease == 0 {
			continue
		}
		at, s := placeOf{c.Name, c.Lease}, span{c.Call, c.Return}
		used[at], users[at] = append(used[at], s), c.Who
		if c.Name != "" && c.Op != Beside && (c.Error == "" || c.Error == locked) {
			answers[c.Lease] = append(answers[c.Lease], s)
		}
	}
	for _, hold := range all(h, func(r Record) *Hold { return r.Hold }) {
		at := placeOf{hold.Name, hold.Lease}
		used[at] = append(used[at], span{hold.Start, hold.End})
	}
	for _, life := range all(h, func(r Record) *Life { return r.Life }) {
		at := placeOf{life.Name, life.Lease}
		who, ours := users[at]
		if !ours || life.Deleted == 0 {
			continue
		}
		idle := time.Duration(0) // since when nobody has used it
		for _, s := range used[at] {
			if s.from < life.Gone {
				idle = max(idle, s.to)
			}
		}
		if life.Created > idle+landing {
			continue // nobody looks for it so late
		}
		idle = max(idle, life.Created)
		n, last := 0, idle
		for _, s := range answers[life.Lease] {
			if s.from >= idle && s.to <= life.Gone {
				n, last = n+1, max(last, s.to)
			}
		}
		if n >= strayAnswers && last-idle >= strayFor {
			found = append(found, Violation{"stray", Here, last, fmt.Sprintf(
				"token %d of %v stood in line of %q for %v after its last use, while %d calls of its session were answered",
				life.Token, who, life.Name, life.Gone-idle, n)})
		}
	}
	return found
}

// CheckTerms finds two functions of RunLeader, of different clients, that ran at once, whatever their
// tokens. A loss that nobody told the function of ends its term.
func CheckTerms(h History) (found []Violation) {
	losses, names := lossesOf(h), map[string][]Term{}
	for _, t := range all(h, func(r Record) *Term { return r.Term }) {
		t.End = losses.cap(t.End, t.Token, t.Lease)
		if t.End >= t.Start {
			names[t.Name] = append(names[t.Name], t)
		}
	}
	byName(names, func(name string, terms []Term) {
		slices.SortStableFunc(terms, func(a, b Term) int { return cmp.Compare(a.Start, b.Start) })
		for i, a := range terms {
			for _, b := range terms[i+1:] {
				if over := min(a.End, b.End) - b.Start; a.Who != b.Who && over > 0 {
					found = append(found, Violation{"overlap", b.Package, b.Start, fmt.Sprintf(
						"%q was led by RunLeader for %v by both %v and %v", name, over, a.Who, b.Who)})
				}
			}
		}
	})
	return found
}

// CheckStreams finds observers of this package that were told of a revision and then of an
// earlier one. Vacancies carry none.
func CheckStreams(h History) (found []Violation) {
	streams := map[int64][]Sighting{}
	for _, s := range all(h, func(r Record) *Sighting { return r.Sighting }) {
		if s.Stream != 0 && s.Token != 0 && s.Package == Here {
			streams[s.Stream] = append(streams[s.Stream], s)
		}
	}
	for _, told := range streams {
		slices.SortStableFunc(told, func(a, b Sighting) int { return cmp.Compare(a.At, b.At) })
		for i, s := range told[1:] {
			if before := told[i]; s.To < before.To {
				found = append(found, Violation{"observer", s.Package, s.At, fmt.Sprintf(
					"%v was told of %q at revision %d after it was told of revision %d", s.Who, s.Name, s.To, before.To)})
			}
		}
	}
	slices.SortStableFunc(found, func(a, b Violation) int { return cmp.Compare(a.At, b.At) })
	return found
}
