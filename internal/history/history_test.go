package history_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/etcd/concurrency/internal/history"
)

// cases are histories of a few lines, with times of a few nanoseconds: what a check must let
// pass, and what it must find.
var cases = []struct {
	name    string
	found   string // the properties violated, and by whom
	history string
}{
	{"one after the other", "", `
{"hold":{"client":1,"package":"here","name":"a","token":5,"start":10,"end":20}}
{"hold":{"client":2,"package":"here","name":"a","token":7,"start":20,"end":30}}
{"life":{"name":"a","token":5,"deleted":8,"gone":21}}
{"life":{"name":"a","token":7}}`},
	{"two at once", "overlap here", `
{"hold":{"client":1,"package":"here","name":"a","token":5,"start":10,"end":21}}
{"hold":{"client":2,"package":"here","name":"a","token":7,"start":20,"end":30}}
{"life":{"name":"a","token":5,"deleted":8,"gone":22}}
{"life":{"name":"a","token":7}}`},
	{"two at once, on two names", "", `
{"hold":{"client":1,"package":"here","name":"a","token":5,"start":10,"end":21}}
{"hold":{"client":2,"package":"here","name":"b","token":7,"start":20,"end":30}}
{"life":{"name":"a","token":5,"deleted":8,"gone":22}}
{"life":{"name":"b","token":7}}`},
	{"two sessions of one participant at once", "overlap here", `
{"hold":{"client":1,"package":"here","name":"a","token":5,"start":10,"end":21}}
{"hold":{"client":1,"package":"here","name":"a","token":7,"start":20,"end":30}}
{"life":{"name":"a","token":5,"deleted":8,"gone":22}}
{"life":{"name":"a","token":7}}`},
	{"one ticket of one participant twice", "", `
{"hold":{"client":1,"package":"here","name":"a","token":5,"start":10,"end":21}}
{"hold":{"client":1,"package":"here","name":"a","token":5,"start":20,"end":30}}
{"life":{"name":"a","token":5}}`},
	{"two at once, one of them upstream", "overlap upstream", `
{"hold":{"client":1,"package":"here","name":"a","token":5,"start":10,"end":21}}
{"hold":{"client":2,"package":"upstream","name":"a","token":7,"start":20,"end":30}}
{"life":{"name":"a","token":5,"deleted":8,"gone":22}}
{"life":{"name":"a","token":7}}`},
	{"after its key was seen to go, in upstream's way", "overstay here, overlap upstream", `
{"hold":{"client":1,"package":"here","name":"a","token":5,"start":10,"end":23}}
{"hold":{"client":2,"package":"upstream","name":"a","token":7,"start":20,"end":30}}
{"life":{"name":"a","token":5,"deleted":8,"gone":19}}
{"life":{"name":"a","token":7}}`},
	{"two at once, since an operator deleted the key", "", `
{"hold":{"client":1,"package":"here","name":"a","token":5,"start":10,"end":21}}
{"loss":{"token":5,"at":18}}
{"hold":{"client":2,"package":"here","name":"a","token":7,"start":20,"end":30}}
{"life":{"name":"a","token":5,"deleted":8,"gone":19}}
{"life":{"name":"a","token":7}}`},
	{"two at once, since an operator revoked another lease", "overlap here", `
{"hold":{"client":1,"package":"here","name":"a","token":5,"lease":1,"start":10,"end":21}}
{"loss":{"lease":2,"at":18}}
{"hold":{"client":2,"package":"here","name":"a","token":7,"lease":2,"start":17,"end":30}}
{"life":{"name":"a","token":5,"deleted":8,"gone":22}}
{"life":{"name":"a","token":7}}`},
	{"past the deadline, by as much as a timer may be late", "", `
{"hold":{"client":1,"package":"here","name":"a","token":5,"start":10,"end":21,"deadline":19}}
{"hold":{"client":2,"package":"here","name":"a","token":7,"start":20,"end":30}}
{"life":{"name":"a","token":5,"deleted":8,"gone":19}}
{"life":{"name":"a","token":7}}`},
	{"past the deadline for long", "lateness here", `
{"hold":{"client":1,"package":"here","name":"a","token":5,"start":10,"end":300000000,"deadline":19}}
{"life":{"name":"a","token":5}}`},
	{"owning after the loss", "claim here", `
{"hold":{"client":1,"package":"here","name":"a","token":5,"rev":9,"start":20,"end":30}}
{"loss":{"token":5,"at":15}}
{"life":{"name":"a","token":5,"deleted":8,"gone":17}}`},
	{"a key that nobody wants, while its session is answered", "stray here", `
{"call":{"client":1,"package":"here","op":"Lock","name":"a","lease":7,"call":1,"return":90,"ended":80,"error":"context canceled"}}
{"life":{"name":"a","token":5,"lease":7,"created":10,"deleted":30,"gone":7000000000}}` + strings.Repeat(`
{"call":{"client":1,"package":"here","op":"TryLock","name":"b","lease":7,"call":5999999999,"return":6000000000}}`, 3)},
	{"a key that nobody wants, and no server answers", "", `
{"call":{"client":1,"package":"here","op":"Lock","name":"a","lease":7,"call":1,"return":90,"ended":80,"error":"context canceled"}}
{"life":{"name":"a","token":5,"lease":7,"created":10,"deleted":30,"gone":7000000000}}` + strings.Repeat(`
{"call":{"client":1,"package":"here","op":"TryLock","name":"b","lease":7,"call":5999999999,"return":6000000000,"ended":5999999999,"error":"context canceled"}}`, 3)},
	{"a key that is used", "", `
{"call":{"client":1,"package":"here","op":"Lock","name":"a","lease":7,"call":1,"return":90,"ended":80,"error":"context canceled"}}
{"life":{"name":"a","token":5,"lease":7,"created":10,"deleted":30,"gone":7000000000}}
{"call":{"client":1,"package":"here","op":"Lock","name":"a","lease":7,"call":100,"return":5000000000,"ended":4999999999,"error":"context canceled"}}` + strings.Repeat(`
{"call":{"client":1,"package":"here","op":"TryLock","name":"b","lease":7,"call":5999999999,"return":6000000000}}`, 3)},
	{"a deadline that nobody has granted", "deadline here", `
{"hold":{"client":1,"package":"here","name":"a","token":5,"start":10,"end":20,"deadline":31,"known":30}}
{"life":{"name":"a","token":5}}`},
	{"before the deadline", "overlap here", `
{"hold":{"client":1,"package":"here","name":"a","token":5,"start":10,"end":24,"deadline":25,"known":25}}
{"hold":{"client":2,"package":"here","name":"a","token":7,"start":20,"end":30}}
{"life":{"name":"a","token":5,"deleted":8,"gone":25}}
{"life":{"name":"a","token":7}}`},
	{"an older token after a newer one", "token here, claim here", `
{"hold":{"client":2,"package":"here","name":"a","token":7,"start":10,"end":20}}
{"hold":{"client":1,"package":"here","name":"a","token":5,"start":30,"end":40}}
{"life":{"name":"a","token":5}}
{"life":{"name":"a","token":7,"deleted":9,"gone":20}}`},
	{"held without a key", "claim here", `
{"hold":{"client":1,"package":"here","name":"a","token":6,"start":10,"end":20}}
{"life":{"name":"a","token":5}}`},
	{"held behind another", "claim here", `
{"hold":{"client":1,"package":"here","name":"a","token":7,"rev":8,"start":10,"end":20}}
{"life":{"name":"a","token":5,"deleted":9,"gone":12}}
{"life":{"name":"a","token":7}}`},
	{"held when the one ahead was gone", "", `
{"hold":{"client":1,"package":"here","name":"a","token":7,"rev":9,"start":13,"end":20}}
{"life":{"name":"a","token":5,"deleted":9,"gone":12}}
{"life":{"name":"a","token":7}}`},
	{"held after its deletion", "claim here", `
{"hold":{"client":1,"package":"here","name":"a","token":7,"rev":11,"start":13,"end":20}}
{"life":{"name":"a","token":7,"deleted":11,"gone":30}}`},
	{"still held when the key had gone", "overstay upstream", `
{"hold":{"client":1,"package":"upstream","name":"a","token":5,"start":10,"end":20}}
{"life":{"name":"a","token":5,"deleted":8,"gone":19}}`},
	{"guarded writes, tokens rising", "", `
{"write":{"client":2,"package":"here","name":"a","token":7,"rev":9,"at":12}}
{"write":{"client":1,"package":"here","name":"a","token":5,"rev":8,"at":10}}
{"write":{"client":1,"package":"here","name":"b","token":5,"rev":10,"at":13}}
{"write":{"client":2,"package":"here","name":"a","token":7,"rev":11,"at":14}}`},
	{"a guarded write of a former owner", "write here", `
{"write":{"client":1,"package":"here","name":"a","token":5,"rev":8,"at":10}}
{"write":{"client":2,"package":"here","name":"a","token":7,"rev":9,"at":12}}
{"write":{"client":1,"package":"here","name":"a","token":5,"rev":10,"at":13}}`},
	{"a guarded write of the head of the line", "", `
{"life":{"name":"a","token":5,"deleted":8,"gone":12}}
{"life":{"name":"a","token":7}}
{"write":{"client":1,"package":"here","name":"a","token":5,"rev":7,"at":10}}
{"write":{"client":2,"package":"here","name":"a","token":7,"rev":9,"at":12}}`},
	{"a guarded write of one who waits", "write upstream", `
{"life":{"name":"a","token":5,"deleted":8,"gone":12}}
{"life":{"name":"a","token":7}}
{"write":{"client":2,"package":"upstream","name":"a","token":7,"rev":7,"at":10}}`},
	{"a guarded write after the loss, nobody following", "write here", `
{"life":{"name":"a","token":5,"deleted":8,"gone":12}}
{"write":{"client":1,"package":"here","name":"a","token":5,"rev":9,"at":13}}`},

	{"goroutines that pass a token on", "", `
{"hold":{"client":1,"package":"here","name":"a","token":5,"passed":1,"start":10,"end":20}}
{"hold":{"client":1,"package":"here","name":"a","token":5,"passed":2,"start":20,"end":30}}
{"hold":{"client":1,"package":"here","name":"a","token":7,"passed":1,"start":40,"end":50}}
{"life":{"name":"a","token":5,"deleted":6,"gone":35}}
{"life":{"name":"a","token":7}}`},
	{"two goroutines at once", "overlap here", `
{"hold":{"client":1,"package":"here","name":"a","token":5,"passed":1,"start":10,"end":21}}
{"hold":{"client":1,"package":"here","name":"a","token":5,"passed":2,"start":20,"end":30}}
{"life":{"name":"a","token":5}}`},
	{"two goroutines with one pair of numbers", "token here", `
{"hold":{"client":1,"package":"here","name":"a","token":5,"passed":2,"start":10,"end":20}}
{"hold":{"client":1,"package":"here","name":"a","token":5,"passed":2,"start":20,"end":30}}
{"life":{"name":"a","token":5}}`},

	{"two permits of two", "", `
{"hold":{"client":1,"package":"here","name":"a","kind":"p","most":2,"token":5,"start":10,"end":30}}
{"hold":{"client":2,"package":"here","name":"a","kind":"p","most":2,"token":6,"start":20,"end":30}}
{"life":{"name":"a","kind":"p","token":5}}
{"life":{"name":"a","kind":"p","token":6}}`},
	{"three permits of two", "crowd here, claim here", `
{"hold":{"client":1,"package":"here","name":"a","kind":"p","most":2,"token":5,"start":10,"end":30}}
{"hold":{"client":2,"package":"here","name":"a","kind":"p","most":2,"token":6,"start":20,"end":30}}
{"hold":{"client":3,"package":"here","name":"a","kind":"p","most":2,"token":7,"rev":9,"start":25,"end":30}}
{"life":{"name":"a","kind":"p","token":5,"deleted":12,"gone":40}}
{"life":{"name":"a","kind":"p","token":6,"deleted":13,"gone":40}}
{"life":{"name":"a","kind":"p","token":7}}`},
	{"a writer beside a reader", "overlap here, claim here", `
{"hold":{"client":1,"package":"here","name":"a","kind":"r","token":5,"start":10,"end":30}}
{"hold":{"client":2,"package":"here","name":"a","token":6,"rev":7,"start":20,"end":30}}
{"life":{"name":"a","kind":"r","token":5,"deleted":9,"gone":40}}
{"life":{"name":"a","token":6}}`},

	{"two rounds of two, a dead one in between", "", `
{"life":{"name":"m","lease":1,"token":2,"deleted":6,"gone":20}}
{"life":{"name":"m","lease":2,"token":3,"deleted":7,"gone":21}}
{"round":{"name":"m","of":2,"last":3,"rev":4,"at":10}}
{"visit":{"client":1,"package":"here","name":"m","lease":1,"from":1,"in":5,"out":7,"at":22}}
{"visit":{"client":2,"package":"here","name":"m","lease":2,"from":1,"in":4,"out":8,"at":22}}
{"life":{"name":"m","lease":3,"token":8,"deleted":9,"gone":30}}
{"life":{"name":"m","lease":1,"token":10}}
{"life":{"name":"m","lease":2,"token":11}}
{"round":{"name":"m","of":2,"last":11,"rev":12,"at":40}}
{"visit":{"client":1,"package":"here","name":"m","lease":1,"from":9,"in":12,"at":50}}`},
	{"a round with one who is dead", "round here", `
{"life":{"name":"m","lease":1,"token":2,"deleted":4,"gone":20}}
{"life":{"name":"m","lease":2,"token":3}}
{"round":{"name":"m","of":2,"last":3,"rev":5,"at":10}}`},
	{"a round with one too many", "round here", `
{"life":{"name":"m","lease":1,"token":2}}
{"life":{"name":"m","lease":2,"token":3}}
{"round":{"name":"m","of":1,"last":3,"rev":5,"at":10}}`},
	{"a round before the one before has ended", "round here", `
{"life":{"name":"m","lease":1,"token":2}}
{"round":{"name":"m","of":1,"last":2,"rev":3,"at":10}}
{"life":{"name":"m","lease":2,"token":4}}
{"round":{"name":"m","of":1,"last":4,"rev":5,"at":20}}`},
	{"let in before the round began", "visit here", `
{"life":{"name":"m","lease":1,"token":2}}
{"visit":{"client":1,"package":"here","name":"m","lease":1,"from":1,"in":2,"at":10}}
{"round":{"name":"m","of":1,"last":2,"rev":3,"at":20}}`},
	{"let in by the round of a ticket that was gone", "visit here", `
{"life":{"name":"m","lease":1,"token":2,"deleted":4,"gone":10}}
{"round":{"name":"m","of":1,"last":2,"rev":3,"at":10}}
{"life":{"name":"m","lease":1,"token":6}}
{"visit":{"client":1,"package":"here","name":"m","lease":1,"from":5,"in":7,"at":20}}`},
	{"left before the others", "visit here", `
{"life":{"name":"m","lease":1,"token":2,"deleted":5,"gone":20}}
{"life":{"name":"m","lease":2,"token":3,"deleted":7,"gone":30}}
{"round":{"name":"m","of":2,"last":3,"rev":4,"at":10}}
{"visit":{"client":1,"package":"here","name":"m","lease":1,"from":1,"in":4,"out":6,"at":20}}`},
	{"past a barrier that was open at a time", "", `
{"life":{"name":"g","token":3,"deleted":6,"gone":20}}
{"life":{"name":"g","token":7}}
{"sighting":{"client":1,"package":"here","name":"g","token":0,"from":4,"to":8,"at":20}}`},
	{"past a barrier that was closed", "sighting here", `
{"life":{"name":"g","token":3,"deleted":6,"gone":20}}
{"sighting":{"client":1,"package":"here","name":"g","token":0,"from":4,"to":5,"at":20}}`},

	{"functions one after the other", "", `
{"term":{"client":1,"package":"here","name":"r","token":5,"start":10,"end":20}}
{"term":{"client":2,"package":"here","name":"r","token":7,"start":20,"end":30}}`},
	{"two functions at once", "overlap here", `
{"term":{"client":1,"package":"here","name":"r","token":5,"start":10,"end":21}}
{"term":{"client":2,"package":"here","name":"r","token":7,"start":20,"end":30}}`},
	{"two functions at once, since an operator deleted a key", "", `
{"term":{"client":1,"package":"here","name":"r","token":5,"start":10,"end":21}}
{"loss":{"token":5,"at":18}}
{"term":{"client":2,"package":"here","name":"r","token":7,"start":20,"end":30}}`},
	// A repetition of its join has put a key that it does not lead by.
	{"a function whose key was deleted before its join was answered", "", `
{"life":{"name":"r","token":5,"lease":3,"deleted":6,"gone":9}}
{"life":{"name":"r","token":7,"deleted":30,"gone":40}}
{"life":{"name":"r","token":11,"lease":3,"deleted":20,"gone":30}}
{"loss":{"token":5,"at":8}}
{"term":{"client":1,"package":"here","name":"r","token":7,"start":8,"end":40}}
{"term":{"client":2,"package":"here","name":"r","token":5,"lease":3,"start":20,"end":25}}`},
	{"a function that leads by a key behind another's", "overlap here", `
{"loss":{"token":5,"at":8}}
{"term":{"client":1,"package":"here","name":"r","token":7,"start":8,"end":40}}
{"term":{"client":2,"package":"here","name":"r","token":11,"lease":3,"start":20,"end":25}}`},

	{"a waiter that kept its place", "", `
{"call":{"client":1,"package":"here","op":"Lock","name":"a","lease":3,"call":10,"return":20}}
{"life":{"name":"a","token":5,"lease":3,"created":11,"deleted":8,"gone":30}}
{"hold":{"client":1,"package":"here","name":"a","token":5,"lease":3,"start":21,"end":25}}`},
	{"a waiter that lost its place", "order here", `
{"call":{"client":1,"package":"here","op":"Lock","name":"a","lease":3,"call":10,"return":20}}
{"life":{"name":"a","token":5,"lease":3,"created":11,"deleted":6,"gone":15}}
{"life":{"name":"a","token":7,"lease":3,"created":16}}
{"hold":{"client":1,"package":"here","name":"a","token":7,"lease":3,"start":21,"end":25}}`},
	{"a leadership that was not recorded, and the next one", "", `
{"call":{"client":1,"package":"here","op":"Campaign","name":"a","lease":3,"call":10,"return":20}}
{"call":{"client":1,"package":"here","op":"Proclaim","name":"a","lease":3,"call":20,"return":21,"error":"refused"}}
{"call":{"client":1,"package":"here","op":"Resign","name":"a","lease":3,"call":22,"return":24}}
{"life":{"name":"a","token":5,"lease":3,"created":11,"deleted":6,"gone":25}}
{"call":{"client":1,"package":"here","op":"Campaign","name":"a","lease":3,"call":30,"return":40}}
{"life":{"name":"a","token":7,"lease":3,"created":31}}
{"hold":{"client":1,"package":"here","name":"a","token":7,"lease":3,"start":41,"end":45}}`},
	{"a waiter whose key an operator deleted", "", `
{"call":{"client":1,"package":"here","op":"Lock","name":"a","lease":3,"call":10,"return":20}}
{"loss":{"token":5,"at":14}}
{"life":{"name":"a","token":5,"lease":3,"created":11,"deleted":6,"gone":15}}
{"life":{"name":"a","token":7,"lease":3,"created":16}}
{"hold":{"client":1,"package":"here","name":"a","token":7,"lease":3,"start":21,"end":25}}`},
	{"a waiter whose sibling has withdrawn", "", `
{"call":{"client":1,"package":"here","op":"Lock","name":"a","lease":3,"call":1,"return":9,"ended":8,"error":"context canceled"}}
{"call":{"client":1,"package":"here","op":"Lock","name":"a","lease":3,"call":10,"return":20}}
{"life":{"name":"a","token":5,"lease":3,"created":11,"deleted":6,"gone":15}}
{"life":{"name":"a","token":7,"lease":3,"created":16}}
{"hold":{"client":1,"package":"here","name":"a","token":7,"lease":3,"start":21,"end":25}}`},
	{"a waiter whose sibling unlocks", "", `
{"call":{"client":1,"package":"here","op":"Unlock","name":"a","lease":3,"call":9,"return":11}}
{"call":{"client":1,"package":"here","op":"Campaign","name":"a","lease":3,"call":10,"return":20}}
{"life":{"name":"a","token":5,"lease":3,"created":11,"deleted":6,"gone":15}}
{"life":{"name":"a","token":7,"lease":3,"created":16}}
{"hold":{"client":1,"package":"here","name":"a","token":7,"lease":3,"start":21,"end":25}}`},
	{"a lock taken twice, of which the news came late", "", `
{"call":{"client":1,"package":"here","op":"Lock","name":"a","lease":3,"call":1,"return":3}}
{"hold":{"client":1,"package":"here","name":"a","token":5,"lease":3,"start":4,"end":6}}
{"call":{"client":1,"package":"here","op":"Unlock","name":"a","lease":3,"call":6,"return":9}}
{"call":{"client":1,"package":"here","op":"Lock","name":"a","lease":3,"call":10,"return":20}}
{"life":{"name":"a","token":5,"lease":3,"created":11,"deleted":6,"gone":15}}
{"life":{"name":"a","token":7,"lease":3,"created":16}}
{"hold":{"client":1,"package":"here","name":"a","token":7,"lease":3,"start":21,"end":25}}`},

	{"leaders seen", "", `
{"life":{"name":"a","token":5,"deleted":8,"gone":12}}
{"life":{"name":"a","token":7}}
{"sighting":{"client":3,"package":"here","name":"a","token":5,"from":7,"to":7,"at":11}}
{"sighting":{"client":3,"package":"here","name":"a","token":7,"from":8,"to":8,"at":13}}
{"sighting":{"client":3,"package":"here","name":"a","token":0,"from":4,"to":4,"at":9}}`},
	{"a candidate seen as the leader", "sighting here", `
{"life":{"name":"a","token":5,"deleted":8,"gone":12}}
{"life":{"name":"a","token":7}}
{"sighting":{"client":3,"package":"here","name":"a","token":7,"from":7,"to":7,"at":11}}`},
	{"a former leader seen as the leader", "sighting here", `
{"life":{"name":"a","token":5,"deleted":8,"gone":12}}
{"life":{"name":"a","token":7}}
{"sighting":{"client":3,"package":"here","name":"a","token":5,"from":8,"to":8,"at":11}}`},
	{"a leader not seen", "sighting here", `
{"life":{"name":"a","token":5,"deleted":8,"gone":12}}
{"sighting":{"client":3,"package":"here","name":"a","token":0,"from":7,"to":7,"at":11}}`},
	{"a vacancy between two leaders", "", `
{"life":{"name":"a","token":5,"deleted":8,"gone":12}}
{"life":{"name":"a","token":9}}
{"sighting":{"client":3,"package":"here","name":"a","token":0,"from":7,"to":12,"at":11}}`},
	{"a vacancy where one leader followed the other", "sighting here", `
{"life":{"name":"a","token":5,"deleted":8,"gone":12}}
{"life":{"name":"a","token":7}}
{"sighting":{"client":3,"package":"here","name":"a","token":0,"from":7,"to":12,"at":11}}`},
	{"a vacancy in a line that nobody ever stood in", "", `
{"sighting":{"client":3,"package":"here","name":"a","token":0,"from":7,"to":12,"at":11}}`},
	{"revisions that go back", "observer here", `
{"life":{"name":"a","token":5}}
{"sighting":{"client":3,"package":"here","stream":1,"name":"a","token":5,"from":9,"to":9,"at":11}}
{"sighting":{"client":3,"package":"here","stream":1,"name":"a","token":5,"from":8,"to":8,"at":12}}`},
	{"revisions that go back in another call", "", `
{"life":{"name":"a","token":5}}
{"sighting":{"client":3,"package":"here","stream":1,"name":"a","token":5,"from":9,"to":9,"at":11}}
{"sighting":{"client":3,"package":"here","stream":2,"name":"a","token":5,"from":8,"to":8,"at":12}}`},
	{"a total", "", `{"total":{"client":1,"package":"here","sum":500,"want":500,"at":1}}`},
	{"another total", "total here", `{"total":{"client":1,"package":"here","sum":499,"want":500,"at":1}}`},
	{"a call that returned with its context", "", `
{"call":{"client":1,"package":"here","op":"Lock","call":1,"return":1000000000,"ended":900000000}}`},
	{"a call on a context that had ended", "", `
{"call":{"client":1,"package":"here","op":"Lock","call":9000000000,"return":9000000001,"ended":1}}`},
	{"a call that did not return with its context", "wait here", `
{"call":{"client":1,"package":"here","op":"Lock","call":1,"return":9000000000,"ended":900000000}}`},
	{"a call that took as long as it may", "", `
{"call":{"client":1,"package":"here","op":"NewSession","call":1,"return":2500000000,"due":2000000001}}`},
	{"a call that took longer than it may", "wait here", `
{"call":{"client":1,"package":"here","op":"Close","call":1,"return":9000000000,"due":2000000001}}`},
	{"errors of lost sessions", "", `
{"call":{"client":1,"package":"here","op":"TryLock","call":1,"return":2,"error":"mutex: Locked by another session"}}
{"call":{"client":1,"package":"here","op":"Do","call":1,"return":2,"error":"mutex: session is expired"}}
{"call":{"client":1,"package":"here","op":"Lead","call":1,"return":2,"error":"etcdserver: requested lease not found"}}
{"call":{"client":1,"package":"here","op":"Proclaim","call":1,"return":2,"error":"election: not leader"}}`},
	{"an error with the end of the context", "", `
{"call":{"client":1,"package":"here","op":"Unlock","call":1,"return":2,"ended":2,"error":"context deadline exceeded"}}`},
	{"an error without the end of the context", "error here", `
{"call":{"client":1,"package":"here","op":"Unlock","call":1,"return":2,"error":"context deadline exceeded"}}`},
	{"a Lock that did not wait", "error here", `
{"call":{"client":1,"package":"here","op":"Lock","call":1,"return":2,"error":"mutex: Locked by another session"}}`},
	{"an error of the package's own making", "error here", `
{"call":{"client":1,"package":"here","op":"read","call":1,"return":2,"ended":2,"error":"etcdserver: mvcc: required revision is a future revision"}}`},
	{"upstream's errors", "", `
{"call":{"client":1,"package":"upstream","op":"Lock","call":1,"return":2,"error":"etcdserver: mvcc: required revision has been compacted"}}`},

	{"transactions in a row", "", `
{"txn":{"client":1,"package":"here","reads":{"x":""},"writes":{"x":"1"},"call":1,"return":5}}
{"txn":{"client":2,"package":"here","reads":{"x":"1"},"writes":{"y":"2"},"call":6,"return":7}}
{"txn":{"client":3,"package":"here","reads":{"x":"1","y":""},"call":2,"return":9}}`},
	{"a stale read", "serializability here", `
{"txn":{"client":1,"package":"here","writes":{"x":"1"},"call":1,"return":5}}
{"txn":{"client":3,"package":"here","reads":{"x":""},"call":6,"return":9}}`},
	{"a stale read in another part", "", `
{"txn":{"client":1,"package":"here","part":"p","writes":{"x":"1"},"call":1,"return":5}}
{"txn":{"client":3,"package":"here","part":"q","reads":{"x":""},"call":6,"return":9}}`},
	{"a read of two revisions", "serializability here", `
{"txn":{"client":1,"package":"here","writes":{"x":"1","y":"1"},"call":1,"return":5}}
{"txn":{"client":2,"package":"here","writes":{"x":"2","y":"2"},"call":6,"return":9}}
{"txn":{"client":3,"package":"here","reads":{"x":"1","y":"2"},"call":1,"return":20}}`},
	{"a lost update", "serializability here", `
{"txn":{"client":1,"package":"here","reads":{"x":""},"writes":{"x":"1"},"call":1,"return":5}}
{"txn":{"client":2,"package":"here","reads":{"x":""},"writes":{"x":"2"},"call":2,"return":6}}`},
	{"write skew", "serializability here", `
{"txn":{"client":1,"package":"here","reads":{"x":"","y":""},"writes":{"x":"1"},"call":1,"return":5}}
{"txn":{"client":2,"package":"here","reads":{"x":"","y":""},"writes":{"y":"2"},"call":2,"return":6}}`},
	{"an append that was carried out twice", "serializability here", `
{"txn":{"client":1,"package":"here","reads":{"x":""},"writes":{"x":"1"},"call":1,"return":5}}
{"txn":{"client":2,"package":"here","reads":{"x":"1 1"},"call":6,"return":7}}`},
	{"a write of unknown outcome that is read later", "", `
{"txn":{"client":1,"package":"here","reads":{"x":""},"writes":{"x":"1"},"call":1,"return":5,"unknown":true}}
{"txn":{"client":2,"package":"here","reads":{"x":""},"call":6,"return":7}}
{"txn":{"client":2,"package":"here","reads":{"x":"1"},"call":8,"return":9}}`},
	{"a write of unknown outcome that is never read", "", `
{"txn":{"client":1,"package":"here","reads":{"x":""},"writes":{"x":"1"},"call":1,"return":5,"unknown":true}}
{"txn":{"client":2,"package":"here","reads":{"x":""},"writes":{"x":"2"},"call":6,"return":7}}
{"txn":{"client":2,"package":"here","reads":{"x":"2"},"call":8,"return":9}}`},
	{"a write of unknown outcome that is read and not read", "serializability here", `
{"txn":{"client":1,"package":"here","reads":{"x":""},"writes":{"x":"1"},"call":1,"return":5,"unknown":true}}
{"txn":{"client":2,"package":"here","reads":{"x":"1"},"call":6,"return":7}}
{"txn":{"client":2,"package":"here","reads":{"x":""},"call":8,"return":9}}`},
	{"unknown to the client, known to the servers", "serializability here", `
{"txn":{"client":1,"package":"here","writes":{"x":"1"},"call":1,"return":5,"unknown":true}}
{"commit":{"key":"x","value":"1","at":6}}
{"txn":{"client":2,"package":"here","reads":{"x":""},"call":7,"return":8}}`},
	{"a stale read that upstream claims", "serializability upstream", `
{"txn":{"client":1,"package":"here","writes":{"x":"1"},"call":1,"return":5}}
{"txn":{"client":3,"package":"upstream","reads":{"x":""},"call":6,"return":9}}`},
	{"an update of upstream's that this package has lost", "serializability here", `
{"txn":{"client":1,"package":"here","writes":{"x":"1"},"call":1,"return":2}}
{"txn":{"client":2,"package":"upstream","reads":{"x":"1"},"writes":{"x":"2"},"call":3,"return":4}}
{"txn":{"client":1,"package":"here","reads":{"x":"1"},"writes":{"x":"3"},"call":5,"return":6}}`},
	{"read committed", "", `
{"txn":{"client":1,"package":"here","level":"ReadCommitted","reads":{"x":""},"writes":{"x":"1"},"call":1,"return":5}}
{"txn":{"client":2,"package":"here","level":"ReadCommitted","reads":{"x":""},"writes":{"x":"2"},"call":6,"return":9}}
{"commit":{"key":"x","value":"1","at":3}}
{"commit":{"key":"x","value":"2","at":7}}`},
	{"a commit carried out twice", "doubled here", `
{"txn":{"client":1,"package":"here","writes":{"x":"1"},"call":1,"return":5}}
{"commit":{"key":"x","value":"1","at":3}}
{"commit":{"key":"x","value":"1","at":4}}`},
	{"a commit lost", "lost here", `
{"txn":{"client":1,"package":"here","writes":{"x":"1"},"call":1,"return":5}}
{"txn":{"client":1,"package":"here","writes":{"x":"2"},"call":6,"return":9}}
{"commit":{"key":"x","value":"2","at":8}}`},
	{"a read of what was never committed", "dirty here", `
{"txn":{"client":2,"package":"here","level":"ReadCommitted","reads":{"x":"1"},"call":6,"return":9}}
{"commit":{"key":"x","value":"2","at":7}}`},
	{"a deletion", "", `
{"txn":{"client":1,"package":"here","writes":{"x":"1"},"call":1,"return":2}}
{"txn":{"client":1,"package":"here","reads":{"x":"1"},"writes":{"x":"","y":"2"},"call":3,"return":4}}
{"txn":{"client":1,"package":"here","reads":{"x":"","y":"2"},"call":5,"return":6}}
{"commit":{"key":"x","value":"1","rev":7,"at":2}}
{"commit":{"key":"y","value":"2","rev":8,"at":4}}`},
	{"a deletion of unknown outcome", "", `
{"txn":{"client":1,"package":"here","writes":{"x":"1"},"call":1,"return":2}}
{"txn":{"client":1,"package":"here","writes":{"x":""},"call":3,"return":4,"unknown":true}}
{"txn":{"client":1,"package":"here","reads":{"x":"1"},"call":5,"return":6}}
{"txn":{"client":1,"package":"here","reads":{"x":""},"call":7,"return":8}}
{"commit":{"key":"x","value":"1","rev":7,"at":2}}`},
	{"a deletion that was not carried out", "serializability here", `
{"txn":{"client":1,"package":"here","writes":{"x":"1"},"call":1,"return":2}}
{"txn":{"client":1,"package":"here","writes":{"x":""},"call":3,"return":4}}
{"txn":{"client":1,"package":"here","reads":{"x":"1"},"call":5,"return":6}}
{"commit":{"key":"x","value":"1","rev":7,"at":2}}`},
	{"reads by revision", "", `
{"txn":{"client":1,"package":"here","writes":{"x":"1"},"call":1,"return":2}}
{"txn":{"client":1,"package":"here","reads":{"x":"1"},"revs":{"x":7,"y":0},"call":5,"return":6}}
{"commit":{"key":"x","value":"1","rev":7,"at":2}}`},
	{"a stale read by revision", "serializability here", `
{"txn":{"client":1,"package":"here","writes":{"x":"1"},"call":1,"return":2}}
{"txn":{"client":1,"package":"here","revs":{"x":0},"call":5,"return":6}}
{"commit":{"key":"x","value":"1","rev":7,"at":2}}`},
	{"a revision of which nobody knows", "dirty here", `
{"txn":{"client":1,"package":"here","revs":{"x":9},"call":5,"return":6}}
{"commit":{"key":"z","value":"1","rev":7,"at":9}}`},
	{"a revision that is not that of the value", "dirty here", `
{"txn":{"client":1,"package":"here","writes":{"x":"1"},"call":1,"return":2}}
{"txn":{"client":1,"package":"here","reads":{"x":"1"},"revs":{"x":0},"call":5,"return":6}}
{"commit":{"key":"x","value":"1","rev":7,"at":2}}`},
	{"unknown to the client, unknown to the servers", "serializability here, dirty here", `
{"txn":{"client":1,"package":"here","writes":{"x":"1"},"call":1,"return":5,"unknown":true}}
{"txn":{"client":2,"package":"here","reads":{"x":"1"},"call":7,"return":8}}
{"commit":{"key":"x","value":"2","at":9}}`},
}

func TestChecks(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			h := decode(t, c.history)
			if strings.Contains(c.history, `"commit"`) {
				h = history.Resolve(h)
			}
			var found []string
			txns := history.CheckTxns(h, time.Minute)
			for _, v := range append(history.Check(h), txns.Violations...) {
				assert.NotEmpty(t, v.Text)
				found = append(found, v.Property+" "+v.Package)
			}
			assert.ElementsMatch(t, fields(c.found), found)
		})
	}
}

// Each check is made to fail by one of the cases, so that none can be without effect.
func TestEveryPropertyIsSeenViolated(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range cases {
		for _, v := range fields(c.found) {
			property, _, _ := strings.Cut(v, " ")
			seen[property] = true
		}
	}
	for _, property := range []string{
		"overlap", "token", "claim", "overstay", "lateness", "deadline", "write", "sighting", "total", "wait",
		"serializability", "stray", "doubled", "lost", "dirty", "order", "error", "observer",
		"crowd", "round", "visit",
	} {
		assert.True(t, seen[property], property)
	}
}

func TestUndecidedIsAViolation(t *testing.T) {
	h := decode(t, `{"txn":{"client":1,"package":"here","writes":{"x":"1"},"call":1,"return":5}}`)
	for range 200 { // all at once, in an order that only trying finds
		h = append(h, decode(t, `
{"txn":{"client":1,"package":"here","reads":{"x":"1"},"writes":{"x":"2"},"call":6,"return":50}}
{"txn":{"client":1,"package":"here","reads":{"x":"2"},"writes":{"x":"1"},"call":6,"return":50}}
{"txn":{"client":1,"package":"here","reads":{"x":"1"},"writes":{"y":"1"},"call":6,"return":50}}`)...)
	}
	h = append(h, decode(t, `{"txn":{"client":1,"package":"here","reads":{"x":"3"},"call":6,"return":50}}`)...)
	found := history.CheckTxns(h, time.Millisecond).Violations
	require.Len(t, found, 1)
	assert.Equal(t, "undecided", found[0].Property)
}

func TestTheCulpritIsNamed(t *testing.T) {
	h := decode(t, `
{"txn":{"client":1,"package":"here","writes":{"x":"1"},"call":1,"return":2}}
{"txn":{"client":2,"package":"here","writes":{"x":"2"},"call":3,"return":9}}
{"txn":{"client":3,"package":"here","reads":{"x":"2"},"call":4,"return":5}}
{"txn":{"client":4,"package":"here","reads":{"x":"1"},"call":6,"return":7}}
{"txn":{"client":5,"package":"here","reads":{"x":"2"},"call":10,"return":11}}`)
	txns := history.CheckTxns(h, time.Minute)
	require.Len(t, txns.Violations, 1)
	assert.Contains(t, txns.Violations[0].Text, "client 4")
	var page bytes.Buffer
	require.NoError(t, txns.Draw(&page))
	assert.Contains(t, page.String(), "<html")
}

func TestLifeOf(t *testing.T) {
	for key, life := range map[string]history.Life{
		"line/a/1f":             {Name: "line/a"},
		"line/a/1f/77":          {Name: "line/a", Number: "77"},
		"line/a/~r/1f/77":       {Name: "line/a", Kind: "r", Number: "77"},
		"line/a/~p/1f":          {Name: "line/a", Kind: "p"},
		"meet/of-2/waiters/1f2": {Name: "meet/of-2", Number: "1f2"},
	} {
		assert.Equal(t, life, history.LifeOf(key, 2), key)
	}
	assert.Equal(t, history.Life{Name: "chaos/line/a", Kind: "r", Number: "7"}, history.LifeOf("chaos/line/a/~r/1f/7", 3))
}

func TestRecorder(t *testing.T) {
	r := history.NewRecorder()
	before := r.Now()
	r.Add(history.Record{Fault: &history.Fault{What: "cut", From: before, To: r.Now()}})
	r.Add(history.Record{Txn: &history.Txn{Reads: map[string]string{"x": "1"}}})
	assert.LessOrEqual(t, before, r.When(time.Now()))
	var evidence bytes.Buffer
	require.NoError(t, r.History().Encode(&evidence))
	assert.Equal(t, 2, strings.Count(evidence.String(), "\n"))
	read, err := history.Decode(&evidence)
	require.NoError(t, err)
	assert.Equal(t, r.History(), read)
	_, err = history.Decode(strings.NewReader(`{"hold":{"tokn":1}}`))
	assert.ErrorContains(t, err, "record 1")
}

func decode(t *testing.T, text string) history.History {
	t.Helper()
	h, err := history.Decode(strings.NewReader(text))
	require.NoError(t, err)
	return h
}

func fields(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ", ")
}
