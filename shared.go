package concurrency

import (
	"sync"
	"weak"

	v3 "go.etcd.io/etcd/client/v3"
)

// shared is what the sessions and the transactions of one client have in common. It lives
// for as long as a session or a running transaction of the client refers to it.
type shared struct {
	renewals   renewals
	contention contention // of the transactions
	watches    watches

	mu    sync.Mutex                 // guards seats; never held across a call
	seats weakMap[v3.LeaseID, seats] // sessions on one lease have the same
}

// registry finds what a client shares. Its keys and values are weak. So it keeps alive neither
// a client nor what the client has left. Weak pointers to one client are equal, so they serve
// as keys.
var registry struct {
	mu sync.Mutex // guards of; never held across a call
	of weakMap[weak.Pointer[v3.Client], shared]
}

// sharedOf finds what the client shares, or begins it.
func sharedOf(client *v3.Client) *shared {
	registry.mu.Lock()
	defer registry.mu.Unlock()
	return registry.of.get(weak.Make(client), func() *shared {
		// What is shared keeps its client alive, and not the other way round.
		return &shared{renewals: renewals{client: client}}
	})
}

// seatsOf returns the seats of a lease. Sessions that were opened on one lease, such as
// the session of a resumed election and the orphaned one before it, share them. Otherwise
// one session would take a ticket of the other for its own leftover.
func (s *shared) seatsOf(id v3.LeaseID) *seats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seats.get(id, func() *seats { return &seats{keeps: s, of: map[string]*seat{}} })
}
