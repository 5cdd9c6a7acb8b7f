package main

import (
	"context"
	"sync"

	"example.com/etcd/concurrency/internal/history"
)

// shift is the work of one package's clients. It stops by itself, so that what hangs then
// is blamed on the right package.
type shift struct {
	pkg string

	working, watching   context.Context
	stopWork, stopWatch context.CancelFunc
	workers, watchers   sync.WaitGroup
	latests             map[string][]*latest // of the observers, by election
	sleepers            []*latest
}

func newShift(pkg string) *shift {
	s := &shift{pkg: pkg, latests: map[string][]*latest{}}
	s.working, s.stopWork = context.WithCancel(context.Background())
	s.watching, s.stopWatch = context.WithCancel(context.Background())
	return s
}

// staff starts the work: at each station two workers with a session each, two transactors,
// whose transactions meet in the client as well as in the servers, and an observer. This
// package's have two sleepers, too.
func (r *run) staff() (ours, theirs *shift) {
	ours, theirs = newShift(history.Here), newShift(history.Upstream)
	for i, station := range r.stations {
		shift := ours
		if station.lib.Name == history.Upstream {
			shift = theirs
		}
		for n := range uint64(2) {
			w := &worker{run: r, station: station, rnd: r.rand(10*n + uint64(i))}
			shift.workers.Go(func() { w.work(shift.working) })
			t := &transactor{run: r, station: station, index: int(n), rnd: r.rand(100 + 10*n + uint64(i))}
			shift.workers.Go(func() { t.work(shift.working) })
		}
		if shift == ours {
			l := &worker{run: r, station: station, rnd: r.rand(200 + uint64(i)), dawdles: true}
			shift.workers.Go(func() { l.runLeader(shift.working, runElection) })
			for n := range uint64(2) {
				s := &worker{run: r, station: station, rnd: r.rand(400 + 10*n + uint64(i))}
				last := &latest{who: station.who}
				shift.sleepers = append(shift.sleepers, last)
				shift.watchers.Go(func() { s.sleep(shift.watching, n == 0, last) })
			}
		}
		name := elections[i%len(elections)]
		o := &worker{run: r, station: station, rnd: r.rand(300 + uint64(i))}
		last := &latest{who: station.who}
		shift.latests[name] = append(shift.latests[name], last)
		shift.watchers.Go(func() { o.follow(shift.watching, name, last) })
	}
	return ours, theirs
}

// endWork tells the workers and transactors to stop, and waits for them.
func (r *run) endWork(s *shift) {
	r.stop(s.pkg)
	s.stopWork()
	r.await(&s.workers, s.pkg, "work")
}

// endWatch tells the observers to stop, and waits for them.
func (r *run) endWatch(s *shift) {
	s.stopWatch()
	r.await(&s.watchers, s.pkg, "observers")
}

// dismiss closes the clients.
func (r *run) dismiss(s *shift) {
	for _, station := range r.stations {
		if station.lib.Name == s.pkg {
			station.client.Close()
		}
	}
}

// latest is what an observer was told last.
type latest struct {
	who history.Who
	mu  sync.Mutex // guards value
	// value is that of the leader's key, "" when nobody led.
	value string
}

func (l *latest) set(value string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.value = value
}

func (l *latest) get() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.value
}
