package worlds

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"example.com/etcd/concurrency/internal/library"
	"example.com/etcd/concurrency/internal/virtual"
)

// crew is the number of clients at work.
const crew = 6

// Plan is what a world is made of. The seed chooses all of it, but for what Options fix.
type Plan struct {
	Seed      uint64
	Work      string        // the name of the set of kinds
	Length    time.Duration // of the faults
	TTLs      []int         // seconds; a session takes one of them
	Workers   int           // of each client
	Locks     int
	Elections int
	Registers int
	Think     time.Duration // the longest pause of a worker between two things, usually
	Kinds     []Kind
	Residents []Resident
	Faults    []string // of internal/virtual
	Blows     []blow
	Strangers []stranger
	Peace     time.Duration // the longest pause of strangers
	Lull      time.Duration // the longest pause of faults; 0: drawn each time
	Holds     int           // one hold of so many may be long
	Trips     []trip
	Margins   bool
	Meeting   int // of how many participants a double barrier is
	Dense     bool
	Hasty     bool
	Busy      bool // nobody waits to see what was left behind
	Mild      bool
	Foreign   bool // programs have put a Lease of their own in the place of their clients'
}

// Options are what a plan does not leave to the seed.
type Options struct {
	Library library.Library
	Work    string        // "": the seed chooses
	Length  time.Duration // 0: the seed chooses
}

// upstream reports whether the package under test is upstream's.
func (o Options) upstream() bool { return o.Library.Name == library.Upstream.Name }

// Set is a set of kinds of work, which the seed chooses or WORLD names.
type Set struct {
	Name   string
	Weight int // 0: it is played only when WORLD names it
	Kinds  func(k string) bool
	Shape  func(p *Plan, rnd *rand.Rand, o Options) // what the plans of the set have in common, nil: nothing
}

// Sets are all of them. "any" draws from all kinds.
var Sets = []Set{
	{Name: "any", Weight: 4, Kinds: everything},
	{Name: "locks", Weight: 3, Kinds: under("lock")},
	{Name: "kinds", Weight: 3, Kinds: func(k string) bool { return under("kinds")(k) || under("lock")(k) }},
	{Name: "barriers", Weight: 2, Kinds: under("barrier"), Shape: (*Plan).gather},
	{Name: "elections", Weight: 2, Kinds: under("election")},
	{Name: "contexts", Weight: 2, Kinds: under("context")},
	{Name: "transactions", Weight: 2, Kinds: under("transaction")},
	{Name: "ranges", Weight: 2, Kinds: ranged},
	{Name: "dense ranges", Kinds: ranged, Shape: (*Plan).densify},
	{Name: "haste", Weight: 1, Kinds: hasty, Shape: (*Plan).hurry},
	{Name: "mild", Weight: 1, Kinds: everything, Shape: (*Plan).soften},
	{Name: "calm", Weight: 1, Kinds: everything, Shape: (*Plan).calmDown},
	{Name: "crowd", Weight: 1, Kinds: crowding, Shape: (*Plan).crowd},
	{Name: "streams", Weight: 1, Kinds: waiting, Shape: (*Plan).killStreams},
}

// everything selects all kinds.
func everything(string) bool { return true }

// ranged selects what transactions over ranges meet.
func ranged(k string) bool { return under("range")(k) || under("transaction")(k) }

// under selects the kinds of a group.
func under(group string) func(string) bool {
	return func(k string) bool { return strings.HasPrefix(k, group+"/") }
}

// Playable says why the options have no world, or nil.
func Playable(o Options) error {
	i := slices.IndexFunc(Sets, func(s Set) bool { return s.Name == o.Work })
	switch {
	case o.Work == "":
		return nil
	case i < 0:
		var names []string
		for _, s := range Sets {
			names = append(names, s.Name)
		}
		return fmt.Errorf("no world is named %q; there are %s", o.Work, strings.Join(names, ", "))
	case len(kindsOf(o, Sets[i])) == 0:
		return fmt.Errorf("upstream's package can't play the world %q, whose work only this package has", o.Work)
	}
	return nil
}

// kindsOf are the kinds of a set that the library can do.
func kindsOf(o Options, s Set) (found []Kind) {
	for _, k := range Kinds {
		if s.Kinds(k.Name) && !(k.Here && o.upstream()) {
			found = append(found, k)
		}
	}
	return found
}

// NewPlan draws a plan.
func NewPlan(seed uint64, o Options) Plan {
	rnd := rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15))
	p := Plan{Seed: seed, Length: o.Length, Work: o.Work}
	if drawn := between(rnd, 3*time.Minute, 12*time.Minute); p.Length == 0 {
		p.Length = drawn
	}
	set := drawSet(rnd, o)
	p.Work = set.Name
	p.Kinds = some(rnd, kindsOf(o, set), 0.5)
	p.Residents = some(rnd, residentsOf(o, set), 0.5)
	p.TTLs = []int{1 + rnd.IntN(10)}
	if rnd.IntN(2) == 0 {
		p.TTLs = append(p.TTLs, 1+rnd.IntN(10))
	}
	p.Workers = 1 + rnd.IntN(3)
	p.Locks, p.Elections, p.Registers = 1+rnd.IntN(3), 1+rnd.IntN(2), 2+rnd.IntN(5)
	p.Think = between(rnd, 500*time.Millisecond, 4*time.Second)
	p.Faults = drawFaults(rnd)
	p.Blows = some(rnd, blows, 0.4)
	p.Strangers = few(rnd, strangers, 0.3)
	p.Trips = some(rnd, trips, 0.4)
	p.Margins = rnd.IntN(3) == 0 && !o.upstream()
	p.Meeting = 1 + rnd.IntN(crew)
	p.Foreign, p.Peace, p.Holds = rnd.IntN(8) == 0, 20*time.Second, 4
	switch {
	case set.Shape != nil:
		set.Shape(&p, rnd, o)
	case rnd.IntN(6) == 0:
		p.clearUp()
	}
	return p
}

// clearUp leaves nothing but round trips, and strangers who disturb no call. What is promised for
// times without faults is asked in such a world all along.
func (p *Plan) clearUp() {
	p.Faults, p.Blows = nil, nil
	p.Strangers = slices.DeleteFunc(p.Strangers, func(s stranger) bool { return s.disturbs })
}

// drawFaults draws a few. There are as many refusals as there are codes: they count as two.
func drawFaults(rnd *rand.Rand) (drawn []string) {
	harm, refusals := faultNames()
	drawn = few(rnd, harm, 0.2)
	if rnd.IntN(3) == 0 {
		drawn = append(drawn, pick(rnd, refusals), pick(rnd, refusals))
	}
	return drawn
}

// faultNames are those of internal/virtual: refusals with one code, and the others.
func faultNames() (harm, refusals []string) {
	for _, f := range virtual.Table() {
		if strings.HasPrefix(f.Name, "refused-") {
			refusals = append(refusals, f.Name)
		} else {
			harm = append(harm, f.Name)
		}
	}
	return harm, refusals
}

// refusals reports whether clients may be told errors that nobody is to ride out.
func (p Plan) refusals() bool {
	return p.Mild || slices.ContainsFunc(p.Faults, func(f string) bool {
		return f == "refusing" || strings.HasPrefix(f, "refused-")
	})
}

func drawSet(rnd *rand.Rand, o Options) Set {
	var open []Set
	for _, s := range Sets {
		if len(kindsOf(o, s)) == 0 || o.Work != "" && o.Work != s.Name {
			continue
		}
		if o.Work != "" {
			return s
		}
		for range s.Weight {
			open = append(open, s)
		}
	}
	return pick(rnd, open)
}

// some draws each with a probability, and at least one if there is any.
func some[T any](rnd *rand.Rand, all []T, p float64) []T {
	drawn := few(rnd, all, p)
	if len(drawn) == 0 && len(all) > 0 {
		drawn = []T{pick(rnd, all)}
	}
	return drawn
}

// few draws each with a probability, which may be none.
func few[T any](rnd *rand.Rand, all []T, p float64) (drawn []T) {
	for _, x := range all {
		if rnd.Float64() < p {
			drawn = append(drawn, x)
		}
	}
	return drawn
}

func between(rnd *rand.Rand, from, to time.Duration) time.Duration {
	return from + time.Duration(rnd.Int64N(int64(to-from)))
}

func pick[T any](rnd *rand.Rand, list []T) T { return list[rnd.IntN(len(list))] }

// String describes the plan in a line.
func (p Plan) String() string {
	var parts []string
	add := func(what string, names []string) {
		if len(names) > 0 {
			parts = append(parts, what+" "+strings.Join(names, ", "))
		}
	}
	add("work:", namesOf(p.Kinds, func(k Kind) string { return k.Name }))
	add("residents:", namesOf(p.Residents, func(r Resident) string { return r.Name }))
	add("faults:", p.Faults)
	add("blows:", namesOf(p.Blows, func(b blow) string { return b.name }))
	add("strangers:", namesOf(p.Strangers, func(s stranger) string { return s.name }))
	add("round trips:", namesOf(p.Trips, func(t trip) string { return t.name }))
	if p.Foreign {
		parts = append(parts, "clients with a Lease of the program's")
	}
	return fmt.Sprintf("world %s of %v, TTL %v, %d workers a client, %d locks, %d elections; %s",
		p.Work, p.Length.Round(time.Second), p.TTLs, p.Workers, p.Locks, p.Elections, strings.Join(parts, "; "))
}

func namesOf[T any](all []T, name func(T) string) (names []string) {
	for _, x := range all {
		names = append(names, name(x))
	}
	return names
}
