package history

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Bounds on what a busy machine may make of a promise. They are far above what a healthy
// run needs, and far below what a broken promise costs.
const (
	// lateness is how long after its deadline a session's end may come. The deadline is
	// a timer, and a process that isn't run can't look at its timers.
	lateness = 250 * time.Millisecond
	// overdue is how long after the end of its context a call may return.
	overdue = 3 * time.Second
)

// Violation is a promise that was not kept.
type Violation struct {
	Property string // a word
	Package  string // whose fault it is
	At       time.Duration
	Text     string
}

// String is one line of a report.
func (v Violation) String() string {
	return fmt.Sprintf("%s, by %s, at %v: %s", v.Property, v.Package, v.At.Round(time.Microsecond), v.Text)
}

// Check finds the violations of all properties, in the order of time. Whether the
// transactions are serializable is asked of CheckTxns.
func Check(h History) []Violation {
	var found []Violation
	for _, check := range []func(History) []Violation{
		CheckOverlaps, CheckCrowds, CheckTokens, CheckRounds, CheckVisits, CheckClaims, CheckOverstays, CheckLateness, CheckTerms, CheckOrder,
		CheckStrays, CheckWrites, CheckSightings, CheckStreams, CheckTotals, CheckCalls, CheckErrors,
		CheckCommits,
	} {
		found = append(found, check(h)...)
	}
	slices.SortStableFunc(found, func(a, b Violation) int { return cmp.Compare(a.At, b.At) })
	return found
}

// all picks the records of one kind.
func all[T any](h History, field func(Record) *T) []T {
	var found []T
	for _, r := range h {
		if p := field(r); p != nil {
			found = append(found, *p)
		}
	}
	return found
}

// losses are when it was ordered that a ticket or a lease be lost.
type losses struct{ byToken, byLease map[int64]time.Duration }

func lossesOf(h History) losses {
	l := losses{map[int64]time.Duration{}, map[int64]time.Duration{}}
	note := func(m map[int64]time.Duration, id int64, at time.Duration) {
		if old, ok := m[id]; id != 0 && (!ok || at < old) {
			m[id] = at
		}
	}
	for _, loss := range all(h, func(r Record) *Loss { return r.Loss }) {
		note(l.byToken, loss.Token, loss.At)
		note(l.byLease, loss.Lease, loss.At)
	}
	return l
}

// cap is the end of what rests on a ticket and a lease, no later than the loss of either.
func (l losses) cap(end time.Duration, token, lease int64) time.Duration {
	if at, ok := l.byToken[token]; ok {
		end = min(end, at)
	}
	if at, ok := l.byLease[lease]; ok {
		end = min(end, at)
	}
	return end
}

// Holds are the holds as they can be held against somebody: up to the session's deadline,
// up to a loss that nobody told the holder of, and none that had ended when it began. They
// come by name, in the order of their beginning.
func (h History) Holds() map[string][]Hold {
	losses, names := lossesOf(h), map[string][]Hold{}
	for _, hold := range all(h, func(r Record) *Hold { return r.Hold }) {
		if hold.Deadline > 0 {
			hold.End = min(hold.End, hold.Deadline)
		}
		hold.End = losses.cap(hold.End, hold.Token, hold.Lease)
		if hold.End >= hold.Start {
			names[hold.Name] = append(names[hold.Name], hold)
		}
	}
	for _, holds := range names {
		slices.SortStableFunc(holds, func(a, b Hold) int { return cmp.Compare(a.Start, b.Start) })
	}
	return names
}

// byName gives the entries in the order of the names.
func byName[T any](m map[string][]T, f func(name string, list []T)) {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		f(name, m[name])
	}
}

// blame says whose fault it is that two exclude each other and didn't. If one of them is
// upstream's it is upstream's: what this package does wrong to others shows in
// CheckClaims and CheckOverstays, which look at one participant alone.
func blame(a, b Hold) string {
	if a.Package == Upstream || b.Package == Upstream {
		return Upstream
	}
	return a.Package
}

// beside reports whether two are of one kind, and so may hold at once.
func (h Hold) beside(other Hold) bool { return h.Kind != "" && h.Kind == other.Kind }

// again reports whether two are one hold of one participant, who may have it twice. Goroutines
// that pass a token on exclude each other.
func (h Hold) again(other Hold) bool {
	return h.Who == other.Who && h.Token == other.Token && (h.Passed == 0 || other.Passed == 0)
}

// after reports whether the token comes after the other's, or may be the same. That of a
// goroutine is a pair, which is never the same.
func (h Hold) after(other Hold) bool {
	if h.Token == other.Token && h.Passed != 0 && other.Passed != 0 {
		return h.Passed > other.Passed
	}
	return h.Token >= other.Token
}

// CheckCrowds finds more holders of a kind at once than may be.
func CheckCrowds(h History) (found []Violation) {
	byName(h.Holds(), func(name string, holds []Hold) {
		for i, a := range holds {
			tokens := map[int64]bool{a.Token: true}
			for _, b := range holds[:i] { // they began before
				if a.beside(b) && b.End > a.Start {
					tokens[b.Token] = true
				}
			}
			if a.Most > 0 && len(tokens) > a.Most {
				found = append(found, Violation{"crowd", a.Package, a.Start, fmt.Sprintf(
					"%v came to hold %q with token %d as one of %d, of %d at most", a.Who, name, a.Token, len(tokens), a.Most)})
			}
		}
	})
	return found
}

// CheckOverlaps finds two that held at once and exclude each other. One participant may hold
// twice by one token.
func CheckOverlaps(h History) (found []Violation) {
	byName(h.Holds(), func(name string, holds []Hold) {
		for i, a := range holds {
			for _, b := range holds[i+1:] {
				if a.again(b) || a.beside(b) {
					continue
				}
				if over := min(a.End, b.End) - b.Start; over > 0 {
					found = append(found, Violation{"overlap", blame(a, b), b.Start, fmt.Sprintf(
						"%q was held for %v by both %v with %v and %v with %v",
						name, over, a.Who, a.token(), b.Who, b.token())})
				}
			}
		}
	})
	return found
}

// token names the token in a report.
func (h Hold) token() string {
	if h.Passed != 0 {
		return fmt.Sprintf("token %d, %d", h.Token, h.Passed)
	}
	return fmt.Sprintf("token %d", h.Token)
}

// CheckTokens finds a holder with a smaller token than one that had held before, and that it
// excludes. Goroutines that pass a token on have different pairs.
func CheckTokens(h History) (found []Violation) {
	byName(h.Holds(), func(name string, holds []Hold) {
		greatest := holds[0]
		for _, hold := range holds[1:] {
			if !hold.after(greatest) && !hold.beside(greatest) {
				found = append(found, Violation{"token", blame(greatest, hold), hold.Start, fmt.Sprintf(
					"%q was held by %v with %v after %v with %v",
					name, hold.Who, hold.token(), greatest.Who, greatest.token())})
			}
			if hold.after(greatest) {
				greatest = hold
			}
		}
	})
	return found
}

// line is the history of the keys under one name.
type line struct {
	lives   []Life // by token
	byToken map[int64]int
}

func lines(h History) map[string]*line {
	names := map[string]*line{}
	for _, life := range all(h, func(r Record) *Life { return r.Life }) {
		l := names[life.Name]
		if l == nil {
			l = &line{byToken: map[int64]int{}}
			names[life.Name] = l
		}
		l.lives = append(l.lives, life)
	}
	for _, l := range names {
		slices.SortFunc(l.lives, func(a, b Life) int { return cmp.Compare(a.Token, b.Token) })
		for i, life := range l.lives {
			l.byToken[life.Token] = i
		}
	}
	return names
}

// all are the lives, the oldest first.
func (l *line) all() []Life {
	if l == nil {
		return nil
	}
	return l.lives
}

func (l *line) life(token int64) (Life, bool) {
	if l == nil {
		return Life{}, false
	}
	i, ok := l.byToken[token]
	if !ok {
		return Life{}, false
	}
	return l.lives[i], true
}

func (life Life) stood(rev int64) bool {
	return life.Token <= rev && (life.Deleted == 0 || rev < life.Deleted)
}

// never is a revision that no store comes to.
const never = int64(1)<<62 - 1

// reign is the span of revisions, the last one excluded, at which it was the turn of the
// token: no older ticket stood but those of its kind, and of those fewer than most. The span is
// empty if that never was. A kind of "" is that of nobody else.
func (l *line) reign(token int64, kind string, most int) (from, to int64) {
	life, ok := l.life(token)
	if !ok {
		return 0, 0
	}
	end := func(life Life) int64 {
		if life.Deleted == 0 {
			return never
		}
		return life.Deleted
	}
	from, to = token, end(life)
	var beside []int64 // when those of the kind went
	for _, ahead := range l.lives[:l.byToken[token]] {
		if kind != "" && ahead.Kind == kind {
			beside = append(beside, end(ahead))
		} else {
			from = max(from, end(ahead))
		}
	}
	slices.Sort(beside)
	if n := len(beside) - most; most > 0 && n >= 0 {
		from = max(from, beside[n]) // n+1 of them had gone, and most-1 were left
	}
	return from, to
}

// head is the token that owned at a revision, 0 if nobody did.
func (l *line) head(rev int64) int64 {
	if l == nil {
		return 0
	}
	for _, life := range l.lives {
		if life.stood(rev) {
			return life.Token
		}
	}
	return 0
}

// CheckClaims finds holders that were not the head of the line: at the revision at which
// they say they were, or at any if they name none. It is asked of those, too, that were lost
// before they began.
func CheckClaims(h History) (found []Violation) {
	names := lines(h)
	for _, hold := range all(h, func(r Record) *Hold { return r.Hold }) {
		l := names[hold.Name]
		switch from, to := reignOf(l, hold.Token, hold.Kind, hold.Most); {
		case from >= to:
			found = append(found, Violation{"claim", hold.Package, hold.Start, fmt.Sprintf(
				"%v held %q with token %d, which was never the first in line", hold.Who, hold.Name, hold.Token)})
		case hold.Rev != 0 && (hold.Rev < from || hold.Rev >= to):
			found = append(found, Violation{"claim", hold.Package, hold.Start, fmt.Sprintf(
				"%v held %q with token %d as of revision %d, at which %d was the first in line",
				hold.Who, hold.Name, hold.Token, hold.Rev, l.head(hold.Rev))})
		}
	}
	return found
}

func reignOf(l *line, token int64, kind string, most int) (from, to int64) {
	if l == nil {
		return 0, 0
	}
	return l.reign(token, kind, most)
}

// CheckOverstays finds holders that believed in their hold after their key had gone, with
// nobody but their own lease to blame.
func CheckOverstays(h History) (found []Violation) {
	names := lines(h)
	byName(h.Holds(), func(name string, holds []Hold) {
		for _, hold := range holds {
			life, ok := names[name].life(hold.Token)
			if ok && life.Deleted != 0 && hold.End > life.Gone {
				found = append(found, Violation{"overstay", hold.Package, life.Gone, fmt.Sprintf(
					"%v held %q with token %d for %v after its key had gone",
					hold.Who, name, hold.Token, hold.End-life.Gone)})
			}
		}
	})
	return found
}

// CheckLateness finds sessions that ended after their own deadline, and deadlines later than
// what their clients had heard of the lease.
func CheckLateness(h History) (found []Violation) {
	for _, hold := range all(h, func(r Record) *Hold { return r.Hold }) {
		if late := hold.End - hold.Deadline; hold.Deadline > 0 && late > lateness {
			found = append(found, Violation{"lateness", hold.Package, hold.Deadline, fmt.Sprintf(
				"%v held %q with token %d for %v after its session's deadline",
				hold.Who, hold.Name, hold.Token, late)})
		}
		if late := hold.Deadline - hold.Known; hold.Known > 0 && late > 0 {
			found = append(found, Violation{"deadline", hold.Package, hold.End, fmt.Sprintf(
				"%v held %q with token %d by a deadline %v later than what it knew of its lease",
				hold.Who, hold.Name, hold.Token, late)})
		}
	}
	return found
}

// CheckWrites finds guarded writes that succeeded under a token that was not the head of
// its line, or one older than one that had written. Nothing is said of the head where the
// history tells of no line.
func CheckWrites(h History) (found []Violation) {
	tokens, names := lines(h), map[string][]Write{}
	for _, w := range all(h, func(r Record) *Write { return r.Write }) {
		names[w.Name] = append(names[w.Name], w)
	}
	byName(names, func(name string, writes []Write) {
		slices.SortFunc(writes, func(a, b Write) int { return cmp.Compare(a.Rev, b.Rev) })
		l, greatest := tokens[name], writes[0]
		for _, w := range writes {
			switch {
			case l != nil && l.head(w.Rev) != w.Token:
				found = append(found, Violation{"write", w.Package, w.At, fmt.Sprintf(
					"%v wrote under token %d of %q at revision %d, at which %d was the first in line",
					w.Who, w.Token, name, w.Rev, l.head(w.Rev))})
			case w.Token < greatest.Token:
				found = append(found, Violation{"write", w.Package, w.At, fmt.Sprintf(
					"%v wrote under token %d of %q at revision %d, after token %d had at %d",
					w.Who, w.Token, name, w.Rev, greatest.Token, greatest.Rev)})
			default:
				greatest = w
			}
		}
	})
	return found
}

// CheckSightings finds leaders that an observer was told of and that did not lead, and
// vacancies while all the time somebody led.
func CheckSightings(h History) (found []Violation) {
	names := lines(h)
	for _, s := range all(h, func(r Record) *Sighting { return r.Sighting }) {
		l := names[s.Name]
		if s.Token == 0 {
			if !l.vacant(s.From, s.To) {
				found = append(found, Violation{"sighting", s.Package, s.At, fmt.Sprintf(
					"%v was told that nobody led %q at some revision from %d to %d, at all of which somebody did",
					s.Who, s.Name, s.From, s.To)})
			}
			continue
		}
		from, to := reignOf(l, s.Token, "", 0)
		if from >= to || s.To < from || s.From >= to {
			found = append(found, Violation{"sighting", s.Package, s.At, fmt.Sprintf(
				"%v was told that token %d led %q at revisions %d to %d; it led from %d up to before %d",
				s.Who, s.Token, s.Name, s.From, s.To, from, to)})
		}
	}
	return found
}

// vacant reports whether nobody led at some revision from the one to the other.
func (l *line) vacant(from, to int64) bool {
	if l.head(from) == 0 {
		return true
	}
	for _, life := range l.lives { // a line becomes empty with a deletion
		if life.Deleted > from && life.Deleted <= to && l.head(life.Deleted) == 0 {
			return true
		}
	}
	return false
}

// CheckTotals finds reads of a sum that is not what it always is.
func CheckTotals(h History) (found []Violation) {
	for _, t := range all(h, func(r Record) *Total { return r.Total }) {
		if t.Sum != t.Want {
			found = append(found, Violation{"total", t.Package, t.At, fmt.Sprintf(
				"%v read a total of %d, which is %d", t.Who, t.Sum, t.Want)})
		}
	}
	return found
}
