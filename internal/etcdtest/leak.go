package etcdtest

import "go.uber.org/goleak"

// IgnoreServer names the goroutines that closed embedded servers leave behind
// for a while: both ends of the connections between members, which nobody
// closes, until a read there times out after five seconds. One member alone
// leaves nothing.
func IgnoreServer() []goleak.Option {
	return []goleak.Option{
		// The dialling end: waits for a response, and for a request to send.
		goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"),
		goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"),
		// The listening end: waits for the read beside a request that has
		// ended, and that read itself.
		goleak.IgnoreAnyFunction("net/http.(*conn).serve"),
		goleak.IgnoreAnyFunction("net/http.(*connReader).backgroundRead"),
	}
}
