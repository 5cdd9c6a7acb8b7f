package main

import (
	"path"

	"example.com/etcd/concurrency"
)

// trace prints what happens to a session, with -v.
func (d *demo) trace(who string) *concurrency.Trace {
	if !d.verbose {
		return nil
	}
	return &concurrency.Trace{
		Joined: func(e concurrency.LineEvent) {
			d.detail(who, "stands in line for the %s, at place %d (token %d)", path.Base(e.Name), e.Position, e.Token)
		},
		Waiting: func(e concurrency.LineEvent) {
			d.detail(who, "waits for the key %s", path.Base(e.Ahead))
		},
		Acquired: func(e concurrency.LineEvent) {
			d.detail(who, "acquired the %s (token %d), waited %s", path.Base(e.Name), e.Token, ms(e.Waited))
		},
		GaveUp: func(e concurrency.LineEvent) {
			d.detail(who, "gave the %s up after %s: %v", path.Base(e.Name), ms(e.Waited), e.Err)
		},
		Released: func(e concurrency.LineEvent) {
			d.detail(who, "released the %s, held it for %s", path.Base(e.Name), ms(e.Held))
		},
		Lost: func(e concurrency.LineEvent) {
			d.detail(who, "lost the %s, held it for %s: %v", path.Base(e.Name), ms(e.Held), e.Err)
		},
		LeftBehind: func(e concurrency.LineEvent) {
			d.detail(who, "may have left the key %s behind: %v", path.Base(e.Key), e.Err)
		},
		CleanedUp: func(e concurrency.LineEvent) {
			d.detail(who, "left nothing behind, the key %s is gone", path.Base(e.Key))
		},
		Renewed: func(e concurrency.SessionEvent) {
			d.detail(who, "renewed its lease in %s, %s left", ms(e.RoundTrip), ms(e.Left))
		},
		RenewalFailed: func(e concurrency.SessionEvent) {
			d.detail(who, "could not renew its lease, %s left: %v", ms(e.Left), e.Err)
		},
		Ended: func(e concurrency.SessionEvent) {
			d.detail(who, "has ended its session: %v", e.Err)
		},
		Repeated: func(e concurrency.CallEvent) {
			d.detail(who, "sends a call again: %v", e.Err)
		},
		Attempt: func(a concurrency.Attempt) {
			if a.Err != nil {
				d.detail(who, "attempt %d: %v, over %s", a.Number, a.Err, bases(a.Keys))
			}
		},
	}
}

// bases are the last parts of some keys.
func bases(keys []string) (last []string) {
	for _, key := range keys {
		last = append(last, path.Base(key))
	}
	return last
}
