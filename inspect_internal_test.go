package concurrency

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"
	v3 "go.etcd.io/etcd/client/v3"
)

// TestKindOf shows which keys are whose, by their names and their leases.
func TestKindOf(t *testing.T) {
	for _, c := range []struct {
		name  string
		lease v3.LeaseID
		kind  ParticipantKind
	}{
		{"1f", 0x1f, KindExclusive},
		{"7fffffffffffffff", 0x7fffffffffffffff, KindExclusive},
		{"1f/0", 0x1f, KindExclusive}, // one of several locks that are taken together
		{"1f/9a3c", 0x1f, KindExclusive},
		{"~p/1f/0", 0x1f, KindPermit},
		{"~p/1f/9a3c", 0x1f, KindPermit},
		{"~r/1f/0", 0x1f, KindReader},
		{"~r/1f/9a3c", 0x1f, KindReader},

		{"1f", 0, KindForeign}, // overwritten without its lease
		{"~p/1f/0", 0, KindForeign},
		{"~r/1f/0", 0, KindForeign},
		{"0", 0, KindForeign},
		{"~r/0/0", 0, KindForeign},
		{"1f", 0x2f, KindForeign},
		{"~p/1f/0", 0x2f, KindForeign},
		{"~r/1f/0", 0x2f, KindForeign},
		{"1F", 0x1f, KindForeign},
		{"01f", 0x1f, KindForeign},
		{"", 0x1f, KindForeign},
		{"config", 0x1f, KindForeign},
		{"b/1f", 0x1f, KindForeign}, // of the lock a/b, in the line of a
		{"b/~r/1f/0", 0x1f, KindForeign},
		{"1f/", 0x1f, KindForeign},
		{"1f/0/0", 0x1f, KindForeign},
		{"1f/0", 0x2f, KindForeign},
		{"1f/0", 0, KindForeign},
		{"1fa", 0x1f, KindForeign},
		{"~r/1f", 0x1f, KindForeign}, // of the lock a/~r
		{"~r/1f/", 0x1f, KindForeign},
		{"~r/1f/0/0", 0x1f, KindForeign},
		{"~p/1fa/0", 0x1f, KindForeign},
		{"~w/1f/0", 0x1f, KindForeign},
	} {
		require.Equal(t, c.kind, kindOf(c.name, c.lease), "%q on lease %x", c.name, c.lease)
	}
}

// TestNobodyIsAheadInOneTransaction shows keys that one transaction has put, whose order is not
// said. The others wait for all of them.
func TestNobodyIsAheadInOneTransaction(t *testing.T) {
	kvs := []*mvccpb.KeyValue{
		{Key: []byte("a/1f/7"), CreateRevision: 5, Lease: 0x1f},
		{Key: []byte("a/b/1f/7"), CreateRevision: 5, Lease: 0x1f},
		{Key: []byte("a/2f"), CreateRevision: 6, Lease: 0x2f},
		{Key: []byte("a/~r/2f/7"), CreateRevision: 7, Lease: 0x2f},
	}
	for _, swapped := range []bool{false, true} {
		if swapped {
			kvs[0], kvs[1] = kvs[1], kvs[0]
		}
		ahead, owners := map[string]int{}, []string(nil)
		for _, p := range participants("a/", kvs) {
			ahead[p.Key] = p.Ahead
			if p.Owns {
				owners = append(owners, p.Key)
			}
		}
		require.Equal(t, map[string]int{"a/1f/7": 0, "a/b/1f/7": 0, "a/2f": 2, "a/~r/2f/7": 3}, ahead)
		require.Equal(t, []string{"a/1f/7"}, owners)
	}
}

// TestParticipants shows who owns, and how many others a participant has to reckon with.
func TestParticipants(t *testing.T) {
	// Each key is a name under the prefix. Those with a number have that lease.
	const writer, reader, reader2, permit, permit2 = "1f", "~r/1f/0", "~r/2f/7", "~p/1f/0", "~p/2f/7"
	leases := map[string]int64{writer: 0x1f, "2f": 0x2f, reader: 0x1f, reader2: 0x2f, permit: 0x1f, permit2: 0x2f}
	type seen struct {
		kind  ParticipantKind
		ahead int
		owns  bool
	}
	for _, c := range []struct {
		what string
		keys []string
		seen []seen
	}{
		{"nobody", nil, []seen{}},
		{"locks", []string{writer, "2f"}, []seen{{KindExclusive, 0, true}, {KindExclusive, 1, false}}},
		{
			"readers before a writer own, one behind the writer waits for the writer alone",
			[]string{reader, reader2, writer, "~r/1f/1"},
			[]seen{{KindReader, 0, true}, {KindReader, 0, true}, {KindExclusive, 2, false}, {KindForeign, 3, false}},
		},
		{
			"a reader behind a writer",
			[]string{reader, "2f", reader2},
			[]seen{{KindReader, 0, true}, {KindExclusive, 1, false}, {KindReader, 1, false}},
		},
		{
			"only the first permit is known to own",
			[]string{permit, permit2},
			[]seen{{KindPermit, 0, true}, {KindPermit, 1, false}},
		},
		{
			"a reader waits for permits, and a permit counts readers",
			[]string{permit, reader, permit2},
			[]seen{{KindPermit, 0, true}, {KindReader, 1, false}, {KindPermit, 2, false}},
		},
		{
			"a foreign key is nobody's, and all wait for it",
			[]string{"config", writer, reader},
			[]seen{{KindForeign, 0, false}, {KindExclusive, 1, false}, {KindReader, 2, false}},
		},
		{
			"a foreign key counts for readers, wherever it stands in the order of names",
			[]string{"zone", "~q", reader, writer},
			[]seen{{KindForeign, 0, false}, {KindForeign, 1, false}, {KindReader, 2, false}, {KindExclusive, 3, false}},
		},
		{
			"a foreign key among those of readers does not count for readers",
			[]string{"~r/notes", reader, writer},
			[]seen{{KindForeign, 0, false}, {KindReader, 0, true}, {KindExclusive, 2, false}},
		},
	} {
		var kvs []*mvccpb.KeyValue
		for i, key := range c.keys {
			kvs = append(kvs, &mvccpb.KeyValue{Key: []byte("lock/" + key), CreateRevision: int64(i + 2), Lease: leases[key]})
		}
		got := []seen{}
		for _, p := range participants("lock/", kvs) {
			got = append(got, seen{p.Kind, p.Ahead, p.Owns})
		}
		require.Equal(t, c.seen, got, c.what)
	}
}
