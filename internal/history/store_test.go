package history_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"example.com/etcd/concurrency/internal/history"
)

// The store of all cases: x is 1 from revision 2, 2 from 4, gone from 6; y is 1 from 3.
const changes = `
{"commit":{"key":"x","value":"1","rev":2,"at":2}}
{"commit":{"key":"y","value":"1","rev":3,"at":3}}
{"commit":{"key":"x","value":"2","rev":4,"at":4}}
{"commit":{"key":"x","value":"","rev":6,"at":6}}
`

var storeCases = []struct{ name, history, found string }{
	{"a transaction that read what stood before it", `
{"txn":{"client":1,"package":"here","reads":{"x":"1","y":"1"},"writes":{"x":"2"},"call":3,"return":5,"rev":4}}`, ""},
	{"an update that is lost", `
{"txn":{"client":1,"package":"here","reads":{"x":""},"writes":{"x":"2"},"call":1,"return":5,"rev":4}}`, "x was \"1\""},
	{"the revision of what it writes by its value", `
{"txn":{"client":1,"package":"upstream","reads":{"y":""},"writes":{"x":"2"},"call":1,"return":5}}`, "y was \"1\""},
	{"an answer with the revision of another", `
{"txn":{"client":1,"package":"here","writes":{"x":"2"},"call":3,"return":5,"rev":5}}`, "written at revision 4, not at 5"},
	{"one that read a revision", `
{"txn":{"client":1,"package":"here","revs":{"y":3},"writes":{"x":"2"},"call":3,"return":5,"rev":4}}`, ""},
	{"one that read another revision", `
{"txn":{"client":1,"package":"here","revs":{"y":0},"writes":{"x":"2"},"call":3,"return":5,"rev":4}}`, `y was "1"`},
	{"a deletion", `
{"txn":{"client":1,"package":"here","reads":{"x":"2"},"writes":{"x":""},"call":5,"return":7,"rev":6}}`, ""},
	{"a deletion of nothing, after another", `
{"txn":{"client":1,"package":"here","reads":{"x":""},"writes":{"x":""},"call":7,"return":8,"rev":6}}`, ""},
	{"a deletion that has not happened", `
{"txn":{"client":1,"package":"here","writes":{"x":""},"call":4,"return":6,"rev":5}}`, "was \"2\", not deleted"},
	{"reads of one revision", `
{"txn":{"client":1,"package":"here","reads":{"x":"1","y":"1"},"call":1,"return":8}}`, ""},
	{"reads of no one revision", `
{"txn":{"client":1,"package":"here","reads":{"x":"2","y":""},"call":1,"return":8}}`, "at no revision since 0"},
	{"a read that is older than its call", `
{"txn":{"client":1,"package":"here","reads":{"x":"1"},"call":5,"return":8}}`, "at no revision since 4"},
	{"a key that is missing before and after", `
{"txn":{"client":1,"package":"here","reads":{"x":"","y":"1"},"call":1,"return":8}}`, ""},
	{"reads of two revisions at a level that allows them", `
{"txn":{"client":1,"package":"here","level":"ReadCommitted","reads":{"x":"2","y":""},"call":1,"return":8}}`, ""},
	{"a read of what was over at any level", `
{"txn":{"client":1,"package":"here","level":"ReadCommitted","reads":{"x":"1"},"call":5,"return":8}}`, "at no revision since 4"},
	{"a deletion of which nobody knows", `
{"txn":{"client":1,"package":"here","reads":{"y":""},"writes":{"x":""},"call":5,"return":7,"unknown":true}}`, ""},
}

func TestCheckStore(t *testing.T) {
	for _, c := range storeCases {
		t.Run(c.name, func(t *testing.T) {
			found := history.CheckStore(history.Resolve(decode(t, changes+c.history)))
			if c.found == "" {
				assert.Empty(t, found)
			} else if assert.Len(t, found, 1) {
				assert.Equal(t, "serializability", found[0].Property)
				assert.Contains(t, found[0].Text, c.found)
			}
		})
	}
}
