package concurrency

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	v3 "go.etcd.io/etcd/client/v3"
)

var histories = flag.Int("histories", 5_000, "random histories of a line that TestAView plays")

// A view that a watch follows says what a read of the same revision would say, whatever happens
// in the line: tickets come, leave together or alone, and come back under the same name; the
// watch begins late or early, lags, breaks, and is told of the same things again.
func TestAView(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	turns, losses := 0, 0
	for range *histories {
		h := &lineHistory{tb: t, Rand: random, stands: map[string]int64{}}
		if random.IntN(3) == 0 {
			h.rule = permits(1 + random.IntN(4))
		}
		switch h.play() {
		case "turn":
			turns++
		case "gone":
			losses++
		}
	}
	require.Greater(t, turns, *histories/10)
	require.Greater(t, losses, *histories/10)
}

// lineHistory is a line in a store, and one waiter with a watch of it.
type lineHistory struct {
	tb testing.TB
	*rand.Rand
	rule      rule
	rev       int64
	stands    map[string]int64 // create revision by key
	deletions []lineDeletion   // all that there were, in their order

	view view
	told int64 // the watch has told all up to this revision
}

type lineDeletion struct {
	ticket
	rev int64 // at which it was deleted
}

// play goes on until the waiter knows its end.
func (h *lineHistory) play() string {
	mine := "line/" + h.rule.kind + "mine"
	names := h.IntN(2 * nearby)
	name := func() string {
		n := h.IntN(names + 1)
		if n%7 == 0 {
			return fmt.Sprintf("line/%d", n) // of another kind
		}
		return fmt.Sprintf("line/%s%d", h.rule.kind, n)
	}
	for range names + h.IntN(4) {
		h.put(name())
	}
	h.put(mine)
	for range h.IntN(4) {
		h.put(name())
	}
	me := ticket{mine, h.stands[mine]}
	if !h.look(me) || h.view.turn() {
		return ""
	}
	created := h.watch()
	for {
		switch h.IntN(8) {
		case 0:
			h.put(name())
		case 1:
			h.rev++ // something elsewhere
		case 2, 3:
			h.remove(name())
		case 4:
			h.remove(name(), name(), name())
		case 5:
			if h.IntN(names+2) == 0 {
				h.remove(mine, name())
			}
		case 6:
			h.put(mine) // which is another ticket if mine is gone
		default:
			if h.IntN(10) == 0 {
				created = h.watch() // it broke
			}
			news, near := h.news(created), h.view.near
			created = false
			gone, stale := h.view.hear(news)
			if gone {
				require.NotEqual(h.tb, me.rev, h.standing(h.told)[mine])
				return "gone"
			}
			if stale && !h.look(me) {
				return "gone"
			}
			if h.view.turn() {
				h.owns(me)
				return "turn"
			}
			if !stale && near {
				h.agrees(me)
			}
			if !near && h.view.near { // from two keys to the whole line
				created = h.watch()
			}
		}
	}
}

func (h *lineHistory) put(key string) {
	if h.rev++; h.stands[key] == 0 {
		h.stands[key] = h.rev
	}
}

func (h *lineHistory) remove(keys ...string) {
	h.rev++
	for _, key := range keys {
		if created := h.stands[key]; created != 0 {
			delete(h.stands, key)
			h.deletions = append(h.deletions, lineDeletion{ticket{key, created}, h.rev})
		}
	}
}

// look reads the line. It reports whether mine stands.
func (h *lineHistory) look(me ticket) (stands bool) {
	var kvs []*mvccpb.KeyValue
	for key, created := range h.stands {
		if created <= me.rev {
			kvs = append(kvs, &mvccpb.KeyValue{Key: []byte(key), CreateRevision: created})
		}
	}
	slices.SortFunc(kvs, func(a, b *mvccpb.KeyValue) int { return int(b.CreateRevision - a.CreateRevision) })
	parts := h.rule.deciding("line/", 1)
	kvs = kvs[:min(len(kvs), parts[0].newest)]
	h.view = view{rule: h.rule, prefix: "line/", mine: me, header: &pb.ResponseHeader{Revision: h.rev}}
	if stands = me.among(kvs); stands {
		h.view.takeIn(parts, [][]*mvccpb.KeyValue{kvs})
	}
	return stands
}

// watch begins a watch with the present of a member that may lag. A kept one has begun at any
// time before.
func (h *lineHistory) watch() (created bool) {
	h.told = h.rev - min(h.rev, int64(h.IntN(4)))
	return true
}

// news are what the watch tells next: that it has begun, or some more of what happened.
func (h *lineHistory) news(created bool) v3.WatchResponse {
	if created {
		switch h.IntN(10) {
		case 0:
			return v3.WatchResponse{Canceled: true}
		case 1: // kept from before: what it said when it began was for another wait
			h.told = min(h.told, h.view.header.Revision)
		default:
			return v3.WatchResponse{Header: &pb.ResponseHeader{Revision: h.told}, Created: true}
		}
	}
	until := h.told + int64(h.IntN(int(h.rev-h.told)+1))
	news := v3.WatchResponse{Header: &pb.ResponseHeader{Revision: until}}
	for _, d := range h.deletions {
		// Farther back two keys are watched.
		watched := h.view.near || d.key == h.view.mine.key || d.key == h.view.awaited().key
		if h.told < d.rev && d.rev <= until && watched {
			news.Events = append(news.Events, &v3.Event{
				Type: v3.EventTypeDelete, Kv: &mvccpb.KeyValue{Key: []byte(d.key), ModRevision: d.rev},
			})
		}
	}
	h.told = until
	return news
}

// standing are those who stood at a revision.
func (h *lineHistory) standing(rev int64) map[string]int64 {
	stood := map[string]int64{}
	for key, created := range h.stands {
		if created <= rev {
			stood[key] = created
		}
	}
	for _, d := range h.deletions {
		if d.ticket.rev <= rev && rev < d.rev {
			stood[d.key] = d.ticket.rev
		}
	}
	return stood
}

// owns checks that the ticket owned at the revision of the view.
func (h *lineHistory) owns(me ticket) {
	stood := h.standing(h.view.header.Revision)
	require.Equal(h.tb, me.rev, stood[me.key])
	room := max(h.rule.most, 1) - 1
	for key, created := range stood {
		if created < me.rev {
			require.True(h.tb, h.rule.kind != "" && strings.HasPrefix(key, "line/"+h.rule.kind), "%s is ahead", key)
			room--
		}
	}
	require.GreaterOrEqual(h.tb, room, 0, "so many are ahead")
}

// agrees checks that the view has those who are ahead at the revision up to which the watch has
// told.
func (h *lineHistory) agrees(me ticket) {
	if h.told < h.view.header.Revision {
		return // the view was read later
	}
	var ahead []ticket
	for key, created := range h.standing(h.told) {
		if created < me.rev {
			ahead = append(ahead, ticket{key, created})
		}
	}
	require.ElementsMatch(h.tb, ahead, h.view.ahead)
}
