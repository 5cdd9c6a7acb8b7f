package history

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sort"
	"time"
)

// CheckStore holds transactions against the store's own history, in which every change of
// every key that they use must have been told, deletions included. etcd commits in the order
// of revisions, so that there is no order to search for:
//
//   - What committed at a revision has read what stood at the one before.
//   - What wrote nothing has read what stood at one revision, the same for all its reads, and
//     not an older one than the store was known to have when it was called. At ReadCommitted
//     each read has a revision of its own.
//   - The writes of one transaction have one revision, the one that its answer told.
//
// The outcomes must be resolved, see [Resolve].
func CheckStore(h History) (found []Violation) {
	s := storeOf(h)
	for _, t := range all(h, func(r Record) *Txn { return r.Txn }) {
		if text := s.judge(t); text != "" {
			found = append(found, Violation{"serializability", t.Package, t.Return, fmt.Sprintf(
				"%v, %s, %s: %s", t.Who, t.Level, describe(t), text)})
		}
	}
	slices.SortStableFunc(found, func(a, b Violation) int { return cmp.Compare(a.At, b.At) })
	return found
}

// version is what a key has been since a revision; the value "" is none.
type version struct {
	rev   int64
	value string
}

// store is the history of all keys.
type store struct {
	keys    map[string][]version // by revision
	byValue map[[2]string]int64  // the revision of each value
	told    []Commit             // by the time of the news
}

func storeOf(h History) store {
	s := store{keys: map[string][]version{}, byValue: map[[2]string]int64{}}
	s.told = all(h, func(r Record) *Commit { return r.Commit })
	slices.SortFunc(s.told, func(a, b Commit) int { return cmp.Compare(a.Rev, b.Rev) })
	for _, c := range s.told {
		s.keys[c.Key] = append(s.keys[c.Key], version{c.Rev, c.Value})
		s.byValue[[2]string{c.Key, c.Value}] = c.Rev
	}
	slices.SortStableFunc(s.told, func(a, b Commit) int { return cmp.Compare(a.At, b.At) })
	return s
}

// at is what a key was at a revision, and the revision at which it was that no longer.
func (s store) at(key string, rev int64) (v version, until int64) {
	versions := s.keys[key]
	i := sort.Search(len(versions), func(i int) bool { return versions[i].rev > rev })
	if until = never; i < len(versions) {
		until = versions[i].rev
	}
	if i > 0 {
		v = versions[i-1]
	}
	return v, until
}

// known is a revision that the store had before the moment.
func (s store) known(at time.Duration) int64 {
	i := sort.Search(len(s.told), func(i int) bool { return s.told[i].At >= at })
	rev := int64(0)
	for ; i > 0 && rev == 0; i-- {
		rev = s.told[i-1].Rev
	}
	return rev
}

// judge says what is wrong with a transaction; "" is nothing.
func (s store) judge(t Txn) string {
	if len(t.Writes) == 0 {
		return s.judgeReads(t)
	}
	rev, text := s.commitOf(t)
	switch {
	case text != "":
		return text
	case rev == 0 || t.Level == ReadCommitted:
		return "" // who knows
	}
	text = s.judgeAt(t, rev-1)
	if text != "" && deletesOnly(t) && s.judgeAt(t, rev) == "" {
		return "" // it has deleted what did not exist, and has no revision of its own
	}
	return text
}

// judgeAt says what was not as it was read at a revision.
func (s store) judgeAt(t Txn, rev int64) string {
	for _, key := range slices.Sorted(maps.Keys(t.Reads)) {
		if v, _ := s.at(key, rev); v.value != t.Reads[key] {
			return fmt.Sprintf("at revision %d, before its commit, %s was %q", rev, key, v.value)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(t.Revs)) {
		if v, _ := s.at(key, rev); modified(v) != t.Revs[key] {
			return fmt.Sprintf("at revision %d, before its commit, %s was of revision %d, not %d",
				rev, key, modified(v), t.Revs[key])
		}
	}
	return ""
}

// deletesOnly reports whether a transaction writes no value.
func deletesOnly(t Txn) bool {
	for _, value := range t.Writes {
		if value != "" {
			return false
		}
	}
	return true
}

// modified is the revision that a reader is told: 0 of what does not exist.
func modified(v version) int64 {
	if v.value == "" {
		return 0
	}
	return v.rev
}

// commitOf is the revision at which a transaction was committed, 0 if nobody can tell.
func (s store) commitOf(t Txn) (rev int64, text string) {
	rev = t.Rev
	keys := slices.Sorted(maps.Keys(t.Writes))
	for _, key := range keys {
		value := t.Writes[key]
		if value == "" {
			continue
		}
		switch at := s.byValue[[2]string{key, value}]; {
		case at == 0: // see CheckCommits
		case rev == 0:
			rev = at
		case at != rev:
			return 0, fmt.Sprintf("%s was written at revision %d, not at %d", key, at, rev)
		}
	}
	for _, key := range keys {
		if v, _ := s.at(key, rev); rev != 0 && t.Writes[key] == "" && v.value != "" {
			return 0, fmt.Sprintf("committed at revision %d, at which %s was %q, not deleted", rev, key, v.value)
		}
	}
	return rev, ""
}

// judgeReads looks for the first revision at which all was so that was only read.
func (s store) judgeReads(t Txn) string {
	type read struct {
		key, what string
		fits      func(version) bool
	}
	var reads []read
	for _, key := range slices.Sorted(maps.Keys(t.Reads)) {
		value := t.Reads[key]
		reads = append(reads, read{key, fmt.Sprintf("%s=%q", key, value), func(v version) bool { return v.value == value }})
	}
	for _, key := range slices.Sorted(maps.Keys(t.Revs)) {
		rev := t.Revs[key]
		reads = append(reads, read{key, fmt.Sprintf("%s at %d", key, rev), func(v version) bool { return modified(v) == rev }})
	}
	oldest := s.known(t.Call)
	for rev, again := oldest, true; again; {
		again = false
		for _, r := range reads {
			if t.Level == ReadCommitted {
				rev = oldest
			}
			first := s.first(r.key, rev, r.fits)
			if first == never {
				return fmt.Sprintf("at no revision since %d was all that true; looked for %s last", oldest, r.what)
			}
			again = again || first > rev && t.Level != ReadCommitted
			rev = first
		}
	}
	return ""
}

// first is the first revision, from one on, at which a version of the key fits.
func (s store) first(key string, rev int64, fits func(version) bool) int64 {
	for rev != never {
		v, until := s.at(key, rev)
		if fits(v) {
			return rev
		}
		rev = until
	}
	return never
}
