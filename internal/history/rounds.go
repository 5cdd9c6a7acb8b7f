package history

import (
	"cmp"
	"fmt"
	"slices"
)

// rounds are those of each name, in order.
func rounds(h History) map[string][]Round {
	names := map[string][]Round{}
	for _, r := range all(h, func(r Record) *Round { return r.Round }) {
		names[r.Name] = append(names[r.Name], r)
	}
	for _, list := range names {
		slices.SortFunc(list, func(a, b Round) int { return cmp.Compare(a.Rev, b.Rev) })
	}
	return names
}

// CheckRounds finds rounds of a double barrier that began with more or fewer participants than
// it is for, the dead not counted, or while somebody of the round before was inside.
func CheckRounds(h History) (found []Violation) {
	names := lines(h)
	byName(rounds(h), func(name string, list []Round) {
		before := int64(0)
		for _, r := range list {
			inside, left := 0, 0
			for _, life := range names[name].all() {
				switch {
				case life.Token > r.Last || !life.stood(r.Rev):
				case life.Token > before:
					inside++
				default:
					left++
				}
			}
			if inside != r.Of || left > 0 {
				found = append(found, Violation{"round", Here, r.At, fmt.Sprintf(
					"a round of %q began at revision %d with %d of %d inside, and %d of the round before",
					name, r.Rev, inside, r.Of, left)})
			}
			before = r.Last
		}
	})
	return found
}

// CheckVisits finds participants that were let in without a round that had begun with them, and
// those whose Leave returned while somebody of their round was inside.
func CheckVisits(h History) (found []Violation) {
	names, began := lines(h), rounds(h)
	for _, v := range all(h, func(r Record) *Visit { return r.Visit }) {
		r, ok := roundOf(v, names[v.Name], began[v.Name])
		if !ok {
			found = append(found, Violation{"visit", v.Package, v.At, fmt.Sprintf(
				"%v was let into %q by revision %d, without a round that had begun with it", v.Who, v.Name, v.In)})
			continue
		}
		for _, life := range names[v.Name].all() {
			if v.Out > 0 && life.Token <= r.Last && life.stood(v.Out) {
				found = append(found, Violation{"visit", v.Package, v.At, fmt.Sprintf(
					"%v left %q by revision %d, when token %d of its round, which ends with %d, was inside",
					v.Who, v.Name, v.Out, life.Token, r.Last)})
			}
		}
	}
	return found
}

// roundOf is the latest round that had begun with the participant before it was let in, and that
// had not ended for it before it came.
func roundOf(v Visit, l *line, list []Round) (found Round, ok bool) {
	for _, life := range l.all() {
		if life.Lease != v.Lease || life.Deleted != 0 && life.Deleted <= v.From {
			continue
		}
		for _, r := range list {
			if r.Rev <= v.In && life.Token <= r.Last && life.stood(r.Rev) {
				found, ok = r, true
				break // the first is the round of this ticket
			}
		}
	}
	return found, ok
}
