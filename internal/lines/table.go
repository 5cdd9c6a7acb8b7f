package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"example.com/etcd/concurrency"
)

// state is one of the two that a ticket passes through.
type state struct {
	key  string
	rev  int64
	owns bool
}

func stateOf(p concurrency.Participant) state { return state{p.Key, p.Rev, p.Owns} }

// note keeps the time at which each state was first seen, and forgets those that are over.
func (v *viewer) note(lines []concurrency.Line, now time.Time) {
	since := map[state]time.Time{}
	for _, line := range lines {
		for _, p := range line.Participants {
			s := stateOf(p)
			var known bool
			if since[s], known = v.since[s]; !known {
				since[s] = now
			}
		}
	}
	v.since = since
}

// worthShowing is what has to change for a line to be printed again. What is left of a lease
// changes all the time, and counts only when a renewal is missed or made again.
func worthShowing(lines []concurrency.Line) []concurrency.Line {
	lines = slices.Clone(lines)
	for i := range lines {
		lines[i].Revision, lines[i].Participants = 0, slices.Clone(lines[i].Participants)
		for j := range lines[i].Participants {
			p := &lines[i].Participants[j]
			if p.Left = 0; unrenewed(*p) {
				p.Left = 1
			}
		}
	}
	return lines
}

// unrenewed reports whether a session has missed a renewal for certain. It renews every third
// of the lease's life, and what is left is rounded down to a second.
func unrenewed(p concurrency.Participant) bool {
	return p.TTL > 0 && p.Left+time.Second < p.TTL/2
}

// table is a line as text.
func (v *viewer) table(line concurrency.Line, now time.Time) string {
	var out strings.Builder
	if v.follows {
		fmt.Fprintf(&out, "%s: ", clock(now))
	}
	fmt.Fprintf(&out, "%s at revision %d", line.Name, line.Revision)
	if len(line.Participants) == 0 {
		out.WriteString(": nobody\n")
		return out.String()
	}
	out.WriteString("\n")
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	columns := []string{"STATE", "KIND", "TOKEN", "LEASE", "LEFT", "SINCE", "VALUE"}
	row := func(cells []string) {
		if !v.follows {
			cells = slices.Delete(slices.Clone(cells), 5, 6)
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	row(columns)
	for _, p := range line.Participants {
		row([]string{
			standingOf(p), kindOf(p), strconv.FormatInt(p.Rev, 10), leaseOf(p), leftOf(p), v.sinceOf(p), valueOf(line, p),
		})
	}
	w.Flush()
	return out.String()
}

func standingOf(p concurrency.Participant) string {
	switch {
	case p.Owns:
		return "owns"
	case p.Kind == concurrency.KindForeign:
		return "in the way"
	}
	return fmt.Sprintf("%d ahead", p.Ahead)
}

func kindOf(p concurrency.Participant) string {
	if p.Kind == concurrency.KindExclusive {
		return "lock or candidate"
	}
	return string(p.Kind)
}

func leaseOf(p concurrency.Participant) string {
	if p.Lease == 0 {
		return "none"
	}
	return strconv.FormatInt(int64(p.Lease), 16)
}

func leftOf(p concurrency.Participant) string {
	switch {
	case p.Lease == 0:
		return "stays until deleted"
	case p.TTL == 0:
		return "gone by now"
	case unrenewed(p):
		return fmt.Sprintf("%v of %v, not renewed", p.Left, p.TTL)
	}
	return fmt.Sprintf("%v of %v", p.Left, p.TTL)
}

// sinceOf is when the participant was first seen in its state. What was so at the first look
// began before.
func (v *viewer) sinceOf(p concurrency.Participant) string {
	seen := v.since[stateOf(p)]
	if seen.Equal(v.first) {
		return "before " + clock(seen)
	}
	return clock(seen)
}

// valueOf is the value, or the name of a key whose owner is not known otherwise. What could
// confuse a terminal is quoted, and what is long is cut off.
func valueOf(line concurrency.Line, p concurrency.Participant) string {
	const most = 60
	value := p.Value
	if p.Kind == concurrency.KindForeign {
		value = strings.TrimPrefix(p.Key, line.Name) + " = " + value
	}
	if utf8.RuneCountInString(value) > most {
		value = string([]rune(value)[:most-1]) + "…"
	}
	if quoted := strconv.Quote(value); quoted != `"`+value+`"` {
		return quoted
	}
	return value
}

func clock(t time.Time) string { return t.Format(time.TimeOnly) }
