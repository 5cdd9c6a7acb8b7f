package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
)

// lineOf makes a line of its participants, the oldest first, each of which is a letter for its
// kind and a number for its session.
func lineOf(name, participants string) concurrency.Line {
	kinds := map[byte]concurrency.ParticipantKind{
		'x': concurrency.KindExclusive, 'r': concurrency.KindReader, 'p': concurrency.KindPermit,
		'f': concurrency.KindForeign,
	}
	line := concurrency.Line{Name: name}
	for i, p := range strings.Fields(participants) {
		line.Participants = append(line.Participants, concurrency.Participant{
			Key: name + "/" + p, Rev: int64(i + 1), Kind: kinds[p[0]], Lease: clientv3.LeaseID(p[1] - '0'),
		})
	}
	return line
}

// TestCycles shows which circles are found. Each line is that of a name: a, b and so on.
func TestCycles(t *testing.T) {
	for _, c := range []struct {
		what   string
		lines  []string
		cycles []string
	}{
		{"nobody waits", []string{"x1", "x2", ""}, nil},
		{"a queue is no circle", []string{"x1 x2 x3", "x1 x3"}, nil},
		{"two", []string{"x1 x2", "x2 x1"}, []string{"1: b for 2, a for 1"}},
		{"two, with others before, behind and beside", []string{"x1 x2 x3 x4", "x2 x1 x4", "x4 x5"}, []string{"1: b for 2, a for 1"}},
		{"three", []string{"x1 x2", "x2 x3", "x3 x1"}, []string{"1: c for 3, b for 2, a for 1"}},
		{"two circles", []string{"x1 x2", "x2 x1", "x3 x4", "x4 x3"}, []string{"1: b for 2, a for 1", "3: d for 4, c for 3"}},
		{"a reader that becomes a writer", []string{"r1 x1"}, []string{"1: a for 1"}},
		{"two readers that become writers", []string{"r1 r2 x1 x2"}, []string{"1: a for 1", "2: a for 1, a for 2"}},
		{"readers share", []string{"r1 r2", "x2 x1"}, nil},
		{"readers behind a writer that waits", []string{"r1 x2 r3", "x3 x1"}, []string{"1: b for 3, a for 2, a for 1"}},
		{"whether a permit waits is not known", []string{"p1 p2", "x2 x1"}, nil},
		{"a holder of a permit is waited for", []string{"p1 x2", "x2 x1"}, []string{"1: b for 2, a for 1"}},
		{"a permit waits for a writer", []string{"x1 p2", "x2 x1"}, []string{"1: b for 2, a for 1"}},
		{"a reader waits for a permit", []string{"p1 r2", "x2 x1"}, []string{"1: b for 2, a for 1"}},
		{"a foreign key waits for nobody, and nobody for its lease", []string{"f1 x2", "x2 x1", "x3 f4", "x4 x3"}, nil},
	} {
		var lines []concurrency.Line
		for i, participants := range c.lines {
			lines = append(lines, lineOf(string(rune('a'+i)), participants))
		}
		var got []string
		for _, text := range cyclesOf(lines) {
			text = strings.NewReplacer("which ", "", "waits in ", "").Replace(text)
			steps := strings.Split(strings.TrimSpace(text), "\n")
			for i := range steps {
				steps[i] = strings.TrimSpace(steps[i])
			}
			got = append(got, steps[0]+": "+strings.Join(steps[1:], ", "))
		}
		require.Equal(t, c.cycles, got, c.what)
	}
}

// TestACircleOfTwoMomentsIsNone shows that only those who were there at both looks count.
func TestACircleOfTwoMomentsIsNone(t *testing.T) {
	// Session 1 owned a when a was read, released it, and stood in line for b when b was read.
	lines := []concurrency.Line{lineOf("a", "x1 x2"), lineOf("b", "x2 x1")}
	require.Len(t, cyclesOf(lines), 1)
	require.Len(t, cyclesOf(standing(lines, lines)), 1)
	later := []concurrency.Line{lineOf("a", "x2"), lineOf("b", "x2 x1")}
	require.Empty(t, cyclesOf(standing(lines, later)))

	// Session 1 has put the key of the same name again: that is another ticket.
	again := []concurrency.Line{lineOf("a", "x2 x1"), lineOf("b", "x2 x1")}
	require.Empty(t, cyclesOf(standing(lines, again)))
	require.Len(t, lines[0].Participants, 2, "nothing is taken from the lines themselves")
}
