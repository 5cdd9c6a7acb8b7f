package worlds

import (
	"context"
	"math/rand/v2"
)

// Kind is a kind of work of a worker.
type Kind struct {
	Name    string // "group/name"
	Weight  int
	Here    bool // upstream's package can't do it
	Session bool // it needs an open session
	Do      func(w *worker, ctx context.Context)
}

// Kinds are all of them. What the package learns to do joins here.
var Kinds = []Kind{
	{Name: "lock/lock", Weight: 8, Session: true, Do: (*worker).lockAndUnlock},
	{Name: "lock/try", Weight: 4, Session: true, Do: (*worker).tryAndUnlock},
	{Name: "lock/siblings", Weight: 3, Session: true, Do: (*worker).siblings},
	{Name: "lock/locker", Weight: 2, Here: true, Session: true, Do: (*worker).locker},
	{Name: "lock/orphan", Weight: 1, Session: true, Do: (*worker).orphaned},
	{Name: "kinds/write", Weight: 5, Here: true, Session: true, Do: (*worker).write},
	{Name: "kinds/read", Weight: 8, Here: true, Session: true, Do: (*worker).readShared},
	{Name: "kinds/permit", Weight: 8, Here: true, Session: true, Do: (*worker).permit},
	{Name: "kinds/several", Weight: 6, Here: true, Session: true, Do: (*worker).several},
	{Name: "kinds/neighbour", Weight: 3, Here: true, Do: (*worker).neighbour},
	{Name: "kinds/local", Weight: 6, Here: true, Session: true, Do: (*worker).local},
	{Name: "barrier/hold", Weight: 4, Here: true, Session: true, Do: (*worker).holdBarrier},
	{Name: "barrier/wait", Weight: 6, Here: true, Do: (*worker).awaitBarrier},
	{Name: "context/do", Weight: 6, Here: true, Session: true, Do: (*worker).do},
	{Name: "context/same handle", Weight: 3, Here: true, Session: true, Do: (*worker).doAgain},
	{Name: "context/lead", Weight: 4, Here: true, Session: true, Do: (*worker).lead},
	{Name: "election/campaign", Weight: 6, Session: true, Do: (*worker).campaign},
	{Name: "election/siblings", Weight: 2, Here: true, Session: true, Do: (*worker).candidates},
	{Name: "election/resume", Weight: 2, Session: true, Do: (*worker).resume},
	{Name: "election/leader", Weight: 1, Session: true, Do: (*worker).leader},
	{Name: "transaction/append", Weight: 6, Do: (*worker).appendTo},
	{Name: "transaction/update", Weight: 4, Do: (*worker).update},
	{Name: "transaction/remove", Weight: 3, Do: (*worker).remove},
	{Name: "transaction/read", Weight: 4, Do: (*worker).read},
	{Name: "transaction/weak", Weight: 1, Do: (*worker).weak},
	{Name: "range/read", Weight: 4, Here: true, Do: (*worker).readRange},
	{Name: "range/update", Weight: 6, Here: true, Do: (*worker).updateRange},
	{Name: "range/first", Weight: 3, Here: true, Do: (*worker).first},
	{Name: "range/remove", Weight: 3, Here: true, Do: (*worker).removeRange},
	{Name: "range/weak", Weight: 1, Here: true, Do: (*worker).weakRange},
	{Name: "range/wait", Weight: 3, Here: true, Do: (*worker).awaitChange},
}

// Resident is work that goes on for as long as the world does.
type Resident struct {
	Name  string // "group/name"
	Here  bool   // upstream's package can't do it
	Few   bool   // not every client does it
	Leads bool   // it leads again and again, by RunLeader
	Do    func(w *worker, ctx context.Context)
}

// Residents are all of them.
var Residents = []Resident{
	{Name: "election/observe", Few: true, Do: (*worker).observe},
	{Name: "election/leaders", Here: true, Few: true, Do: (*worker).leaders},
	{Name: "barrier/meet", Here: true, Do: (*worker).meet},
	{Name: "context/run leader", Here: true, Few: true, Leads: true, Do: (*worker).runLeader},
}

func residentsOf(o Options, s Set) (found []Resident) {
	for _, r := range Residents {
		if s.Kinds(r.Name) && !(r.Here && o.upstream()) {
			found = append(found, r)
		}
	}
	return found
}

// drawKind draws by weight.
func drawKind(rnd *rand.Rand, kinds []Kind) Kind {
	sum := 0
	for _, k := range kinds {
		sum += k.Weight
	}
	n := rnd.IntN(sum)
	for _, k := range kinds {
		if n -= k.Weight; n < 0 {
			return k
		}
	}
	panic("no kind drawn")
}
