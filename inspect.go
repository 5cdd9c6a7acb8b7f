package concurrency

import (
	"context"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	v3 "go.etcd.io/etcd/client/v3"
)

// Line is who stood in the line of a name at one revision of etcd.
type Line struct {
	Name         string
	Revision     int64
	Participants []Participant // the oldest first
}

// Participant is one key in a line. See [Inspect].
type Participant struct {
	Key   string
	Rev   int64 // create revision of the key: what Rev of its Mutex or Election returns
	Kind  ParticipantKind
	Value string     // the identity of its session, or the value of its candidacy
	Lease v3.LeaseID // which the key is bound to; 0: none, so that the key stays until it is deleted
	Ahead int        // how many older keys it has to reckon with; see ParticipantKind
	Owns  bool       // nobody is ahead, and the key is not foreign

	// The next two are told if [WithLeases] asks for them. Both are 0 if the key has no lease,
	// or if the lease was gone when its turn to be asked for had come.
	TTL  time.Duration // of the lease
	Left time.Duration // until the lease ends if nobody renews it, in whole seconds, rounded down
}

// ParticipantKind is what a key in a line stands for, as far as its name and its lease tell.
type ParticipantKind string

const (
	// KindExclusive is the key of a lock, of a writer, or of a candidate. It waits until no
	// other key is ahead. Nothing in a key tells a lock from a candidacy. A lock has the
	// identity of its session as its value, or no value. A candidate has the value of its
	// campaign, which may be empty too. If several locks are taken together, the session owns
	// none of them before it owns in the line of each.
	KindExclusive ParticipantKind = "exclusive"
	// KindReader is the key of a reader. It waits until only readers are ahead, and Ahead counts
	// the others.
	KindReader ParticipantKind = "reader"
	// KindPermit is the key of a permit of a semaphore. It waits until only permits are ahead,
	// and fewer than the semaphore has. No key tells how many it has. So Owns is true only for
	// the first. The others own if nobody else is among those ahead, and Ahead is less than
	// that number.
	KindPermit ParticipantKind = "permit"
	// KindForeign is a key that no participant keeps. Its name is none of the above, or it is
	// not bound to the lease in its name. Others wait for its deletion all the same. It may be
	// data under the name of a lock. It may be the key of a longer name, such as "a/b" under
	// "a". Or somebody has overwritten a participant's key without its lease.
	KindForeign ParticipantKind = "foreign"
)

// InspectOption configures [Inspect].
type InspectOption func(*inspection)

type inspection struct{ leases bool }

// WithLeases makes [Inspect] tell of each lease how long it lives and what is left of it. It
// costs one call for each lease in the line, one after the other.
//
// A session renews its lease every third of its life. If much less than two thirds is left,
// the holder has died or cannot reach the servers.
func WithLeases() InspectOption { return func(i *inspection) { i.leases = true } }

// Inspect returns the line of the lock or the election that name stands for, as it stood at
// one revision. It tells who owns, who waits, and in which order. It disturbs nobody, because
// it only reads. It needs no session.
//
// How long somebody has owned is not known to etcd, which keeps no times. A program that
// wants to show it can put the time into the identity; see [WithIdentity].
//
// It costs one call, which is not repeated. Its errors are ctx's, [context.Canceled] when the
// client is closed, and etcd's. Inspect panics if ctx, client or an option is nil.
func Inspect(ctx context.Context, client *v3.Client, name string, opts ...InspectOption) (Line, error) {
	need(ctx)
	if client == nil {
		panic("concurrency: Inspect: nil client")
	}
	var i inspection
	configure("Inspect", &i, opts)
	bound, cancel := untilClosed(ctx, client)
	defer cancel()
	line, err := i.inspect(bound, client, name)
	switch {
	case err == nil:
		return line, nil
	case ctx.Err() != nil:
		return Line{}, ctx.Err()
	case client.Ctx().Err() != nil:
		return Line{}, context.Canceled
	}
	return Line{}, err
}

func (i inspection) inspect(ctx context.Context, client *v3.Client, name string) (Line, error) {
	prefix := name + "/"
	resp, err := client.Get(ctx, prefix, v3.WithPrefix(), v3.WithSort(v3.SortByCreateRevision, v3.SortAscend))
	if err != nil {
		return Line{}, err
	}
	line := Line{name, resp.Header.Revision, participants(prefix, resp.Kvs)}
	if !i.leases {
		return line, nil
	}
	told := map[v3.LeaseID]*v3.LeaseTimeToLiveResponse{v3.NoLease: {}}
	for n := range line.Participants {
		p := &line.Participants[n]
		if told[p.Lease] == nil {
			if told[p.Lease], err = client.TimeToLive(ctx, p.Lease); err != nil {
				return Line{}, err
			}
		}
		// The server says -1 of a lease that it does not have.
		p.TTL, p.Left = seconds(told[p.Lease].GrantedTTL), seconds(max(0, told[p.Lease].TTL))
	}
	return line, nil
}

// partOf is the part of a line in which the keys of a kind lie, see [rule].
var partOf = map[ParticipantKind]string{
	KindExclusive: rule{}.kind, KindReader: readers.kind, KindPermit: permits(1).kind,
}

// participants tells what the keys of a line stand for. The oldest comes first.
func participants(prefix string, kvs []*mvccpb.KeyValue) []Participant {
	all := make([]Participant, len(kvs))
	excluding := 0                    // keys so far for which readers wait
	olderKeys, olderExcluding := 0, 0 // those before the revision that is looked at
	for i, kv := range kvs {
		// One transaction may have put several keys. None of them is ahead of another.
		if i > 0 && kv.CreateRevision > kvs[i-1].CreateRevision {
			olderKeys, olderExcluding = i, excluding
		}
		p := Participant{
			Key: string(kv.Key), Rev: kv.CreateRevision, Value: string(kv.Value), Lease: v3.LeaseID(kv.Lease),
			Ahead: olderKeys,
		}
		name := strings.TrimPrefix(p.Key, prefix)
		if p.Kind = kindOf(name, p.Lease); p.Kind == KindReader {
			p.Ahead = olderExcluding
		}
		// Readers go by the names alone.
		if !strings.HasPrefix(name, readers.kind) {
			excluding++
		}
		p.Owns = p.Ahead == 0 && p.Kind != KindForeign
		all[i] = p
	}
	return all
}

// kindOf tells what a key of a line stands for. A participant's key has the lease in its name.
func kindOf(name string, lease v3.LeaseID) ParticipantKind {
	id := strconv.FormatInt(int64(lease), 16)
	switch {
	case lease == v3.NoLease:
		return KindForeign
	case name == id:
		return KindExclusive
	}
	for kind, part := range partOf {
		// A session that has several keys of a kind in a line has a number in each.
		number, found := strings.CutPrefix(name, part+id+"/")
		if found && number != "" && !strings.Contains(number, "/") {
			return kind
		}
	}
	return KindForeign
}
