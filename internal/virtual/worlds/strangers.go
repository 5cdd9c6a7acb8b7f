package worlds

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/history"
)

// stranger is somebody who does what no participant does, on a client of his own that has
// no faults. He undoes it before he returns, also when ctx ends meanwhile.
type stranger struct {
	name     string
	disturbs bool // calls that it has nothing to do with
	takes    bool // keys
	compacts bool // what transactions may be reading
	do       func(w *world, ctx context.Context, rnd *rand.Rand) (on string)
}

var strangers = []stranger{
	{name: "delete a key", takes: true, do: (*world).deleteKey},
	{name: "delete a line", takes: true, do: (*world).deleteLine},
	{name: "replace a key", takes: true, do: (*world).replaceKey},
	{name: "revoke a lease", takes: true, do: (*world).revokeLease},
	{name: "compact", compacts: true, do: (*world).compact},
	{name: "restart the server", disturbs: true, do: (*world).restart},
	{name: "run out of space", disturbs: true, do: (*world).fill},
}

// interfere lets strangers act until ctx ends.
func (w *world) interfere(ctx context.Context, rnd *rand.Rand) {
	for pause(ctx, between(rnd, 0, w.plan.Peace)) {
		s := pick(rnd, w.plan.Strangers)
		f := history.Fault{What: s.name, From: w.rec.Now()}
		f.On = s.do(w, ctx, rnd)
		f.To = w.rec.Now()
		w.rec.Add(history.Record{Fault: &f})
	}
}

func hex(lease int64) string { return strconv.FormatInt(lease, 16) }

// bounded bounds a call of the operator's, which the end of the faults must not cut short.
func bounded() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 10*time.Second)
}

// victim is somebody who stands in a line: the first of it, mostly.
func (w *world) victim(rnd *rand.Rand) (found stander) {
	line := w.audit.line()
	switch {
	case len(line) == 0:
	case rnd.IntN(3) == 0:
		found = pick(rnd, line)
	default:
		found = line[0]
	}
	return found
}

func (w *world) deleteKey(_ context.Context, rnd *rand.Rand) string {
	life := w.victim(rnd)
	if life.Token == 0 {
		return ""
	}
	w.snatch(life.key, life.Token)
	return life.key
}

// snatch deletes the key of a ticket, and reports whether it stood. Its owner can't know in time.
func (w *world) snatch(key string, token int64) bool {
	w.rec.Add(history.Record{Loss: &history.Loss{Token: token, At: w.rec.Now()}})
	ctx, cancel := bounded()
	defer cancel()
	resp, err := w.operator.Txn(ctx).If(leads(key, token)).Then(clientv3.OpDelete(key)).Commit()
	return err == nil && resp.Succeeded
}

// deleteLine deletes several keys of a line at one revision.
func (w *world) deleteLine(_ context.Context, rnd *rand.Rand) string {
	name := w.victim(rnd).Name
	var ops []clientv3.Op
	for _, life := range w.audit.line() {
		if life.Name == name && len(ops) < 100 && (len(ops) == 0 || rnd.IntN(2) == 0) {
			w.rec.Add(history.Record{Loss: &history.Loss{Token: life.Token, At: w.rec.Now()}})
			ops = append(ops, clientv3.OpTxn([]clientv3.Cmp{leads(life.key, life.Token)}, []clientv3.Op{clientv3.OpDelete(life.key)}, nil))
		}
	}
	ctx, cancel := bounded()
	defer cancel()
	if len(ops) > 0 {
		_, _ = w.operator.Txn(ctx).Then(ops...).Commit()
	}
	return name
}

// replaceKey puts the key of a line again, and takes it away after a while. It is another ticket then.
func (w *world) replaceKey(ctx context.Context, rnd *rand.Rand) string {
	life := w.victim(rnd)
	if life.Lease == 0 || !strings.HasPrefix(life.key, lineArea) {
		return ""
	}
	if !w.snatch(life.key, life.Token) {
		return life.key
	}
	bound, cancel := bounded()
	defer cancel()
	put, err := w.operator.Put(bound, life.key, life.Value, clientv3.WithLease(clientv3.LeaseID(life.Lease)))
	if err != nil { // the lease is gone meanwhile
		return life.key
	}
	pause(ctx, between(rnd, 0, 2*time.Second))
	w.snatch(life.key, put.Header.Revision)
	return life.key
}

func (w *world) revokeLease(_ context.Context, rnd *rand.Rand) string {
	life := w.victim(rnd)
	if life.Lease == 0 {
		return ""
	}
	w.rec.Add(history.Record{Loss: &history.Loss{Lease: life.Lease, At: w.rec.Now()}})
	w.noteRevoked(life.Lease, false)
	ctx, cancel := bounded()
	defer cancel()
	if _, err := w.operator.Revoke(ctx, clientv3.LeaseID(life.Lease)); err != nil {
		return fmt.Sprintf("%x: %v", life.Lease, err)
	}
	w.noteRevoked(life.Lease, true)
	return hex(life.Lease)
}

// revocation is when a stranger ordered that a lease be revoked, and when that was done; 0: never.
type revocation struct{ ordered, done time.Duration }

func (w *world) noteRevoked(lease int64, done bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.revoked[lease]
	if r.ordered = w.rec.Now(); done {
		r.done = r.ordered
	}
	w.revoked[lease] = r
}

func (w *world) revocationOf(lease int64) revocation {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.revoked[lease]
}

// compact leaves the auditor what it has not read.
func (w *world) compact(context.Context, *rand.Rand) string {
	ctx, cancel := bounded()
	defer cancel()
	rev := w.audit.seen()
	_, err := w.operator.Compact(ctx, rev)
	return fmt.Sprintf("revision %d: %v", rev, err)
}

func (w *world) restart(ctx context.Context, rnd *rand.Rand) string {
	from := w.rec.Now()
	w.audit.detach()
	w.Server().Stop()
	pause(ctx, between(rnd, 0, 2*w.stations[0].ttl()))
	if err := w.Server().Start(); err != nil {
		w.T().Fatalf("the server does not start again: %v", err)
	}
	w.audit.attach(w.Server().Etcd())
	for _, s := range w.stations {
		s.disturbAll(span{from, w.rec.Now()})
	}
	return "the server"
}

// fill raises the alarm of a store that is full, and disarms it after a while.
func (w *world) fill(ctx context.Context, rnd *rand.Rand) string {
	from := w.rec.Now()
	err := w.alarm(pb.AlarmRequest_ACTIVATE)
	pause(ctx, between(rnd, 0, 15*time.Second))
	for w.alarm(pb.AlarmRequest_DEACTIVATE) != nil {
		pause(context.Background(), time.Second)
	}
	for _, s := range w.stations {
		s.disturb(span{from, w.rec.Now()}, false)
	}
	return fmt.Sprint(err)
}

func (w *world) alarm(action pb.AlarmRequest_AlarmAction) error {
	etcd := w.Server().Etcd()
	if etcd == nil {
		return errStopped
	}
	ctx, cancel := bounded()
	defer cancel()
	_, err := etcd.Alarm(ctx, &pb.AlarmRequest{
		Action: action, Alarm: pb.AlarmType_NOSPACE, MemberID: uint64(etcd.MemberID()),
	})
	return err
}

var errStopped = fmt.Errorf("the server does not run")
