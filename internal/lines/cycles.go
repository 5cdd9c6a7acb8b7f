package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
)

// waits tells for which sessions each session waits, and in which line. Sessions go by their
// leases.
type waits map[clientv3.LeaseID]map[clientv3.LeaseID]string

// waitsOf finds for whom each participant waits directly. An exclusive key that waits itself
// stands for all who are ahead of it. Nobody but the semaphore's users knows for how many
// permits a permit waits, so it is taken to wait for none. A foreign key has no session. Keys
// of one revision were put by one transaction, and don't wait for each other.
func waitsOf(lines []concurrency.Line) waits {
	w := waits{}
	for _, line := range lines {
		for i, p := range line.Participants {
			for _, ahead := range slices.Backward(line.Participants[:i]) {
				if ahead.Rev == p.Rev || !blocks(ahead, p) {
					continue
				}
				if w[p.Lease] == nil {
					w[p.Lease] = map[clientv3.LeaseID]string{}
				}
				w[p.Lease][ahead.Lease] = line.Name
				if ahead.Kind == concurrency.KindExclusive {
					break
				}
			}
		}
	}
	return w
}

// blocks reports whether p waits for the one that is ahead, for certain.
func blocks(ahead, p concurrency.Participant) bool {
	switch p.Kind {
	case concurrency.KindForeign:
		return false
	case concurrency.KindExclusive:
		return ahead.Kind != concurrency.KindForeign
	}
	return ahead.Kind != concurrency.KindForeign && ahead.Kind != p.Kind
}

// standing leaves in the lines those that were seen again later. All of them stood in line at
// one moment: between the last look of the first round and the first look of the second one.
// So what they wait for then is true of one moment, though each look has its own revision.
func standing(lines, later []concurrency.Line) []concurrency.Line {
	type ticket struct {
		key string
		rev int64
	}
	seen := map[ticket]bool{}
	for _, line := range later {
		for _, p := range line.Participants {
			seen[ticket{p.Key, p.Rev}] = true
		}
	}
	lines = slices.Clone(lines)
	for i := range lines {
		lines[i].Participants = slices.DeleteFunc(slices.Clone(lines[i].Participants),
			func(p concurrency.Participant) bool { return !seen[ticket{p.Key, p.Rev}] })
	}
	return lines
}

// cyclesOf describes circles of sessions that wait for each other, until each such session was
// told of.
func cyclesOf(lines []concurrency.Line) (all []string) {
	w := waitsOf(lines)
	w.prune()
	told := map[clientv3.LeaseID]bool{}
	for _, start := range slices.Sorted(maps.Keys(w)) {
		if told[start] {
			continue
		}
		var text strings.Builder
		for i, lease := range w.cycle(start) {
			told[lease.id] = true
			then := "which waits"
			if i == 0 {
				fmt.Fprintf(&text, "  %s\n", who(lines, lease.id))
				then = "waits"
			}
			fmt.Fprintf(&text, "    %s in %s for %s\n", then, lease.in, who(lines, lease.next))
		}
		if text.Len() > 0 {
			all = append(all, text.String())
		}
	}
	return all
}

// prune leaves out, again and again, who waits for nobody and for whom nobody waits.
func (w waits) prune() {
	for pruned := true; pruned; {
		pruned = false
		awaited := map[clientv3.LeaseID]bool{}
		for id, ahead := range w {
			maps.DeleteFunc(ahead, func(id clientv3.LeaseID, _ string) bool { return w[id] == nil })
			if len(ahead) == 0 {
				delete(w, id)
				pruned = true
			}
			for id := range ahead {
				awaited[id] = true
			}
		}
		maps.DeleteFunc(w, func(id clientv3.LeaseID, _ map[clientv3.LeaseID]string) bool {
			pruned = pruned || !awaited[id]
			return !awaited[id]
		})
	}
}

// link is one session of a circle, and for whom it waits in which line.
type link struct {
	id, next clientv3.LeaseID
	in       string
}

// cycle is a shortest way along the waits from a session back to itself, or none.
func (w waits) cycle(start clientv3.LeaseID) (way []link) {
	from := map[clientv3.LeaseID]clientv3.LeaseID{}
	for queue := []clientv3.LeaseID{start}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		for _, next := range slices.Sorted(maps.Keys(w[at])) {
			if _, seen := from[next]; !seen {
				from[next] = at
				queue = append(queue, next)
			}
		}
	}
	for next := start; len(way) == 0 || next != start; {
		id, found := from[next]
		if !found {
			return nil
		}
		way = append(way, link{id, next, w[id][next]})
		next = id
	}
	slices.Reverse(way)
	return way
}

// who is a session as the table shows it.
func who(lines []concurrency.Line, id clientv3.LeaseID) string {
	text := fmt.Sprintf("%x", int64(id))
	for _, line := range lines {
		for _, p := range line.Participants {
			if p.Lease == id && p.Value != "" && p.Kind != concurrency.KindForeign {
				return text + " (" + valueOf(line, p) + ")"
			}
		}
	}
	return text
}
