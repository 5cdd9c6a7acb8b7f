// Package etcdtest starts real etcd servers for tests, benchmarks and demos,
// and lets tests wait for states of the store instead of for times.
//
// # Servers
//
// [New] and [Start] run one or three members inside the process, on free
// loopback ports, with their data in a temporary folder. When the environment
// names an etcd binary in ETCD_BINARY, the same calls run that binary instead,
// one child process a member. Only embedded servers can be configured
// ([Config]), spoken to without a connection ([Cluster.InProcess]) or, with
// [PeerProxies] between them, parted from their peers ([Cluster.Isolate],
// [Cluster.Mute], [Cluster.Link]); ask [Cluster.Embedded] first.
//
// # Leases
//
// A server grants no lease shorter than one and a half election timeouts,
// rounded up to whole seconds. With etcd's default of one second that is two
// seconds. The members here have a shorter election timeout, so that leases of
// one second, and of any number of seconds above, are granted as asked for. A
// lease is found expired up to half a second late, and a new leader gives every
// lease its full life again; both are etcd's ways, whatever the settings.
//
// # Waiting
//
// [WaitKeys], [WaitGone], [WaitLeases], [Cluster.WaitWatchers] and
// [Eventually] return when the state is there and fail the test when it isn't
// after a bound that is far above any healthy duration. [Go] runs a call
// beside the test: it is blocked if it has not returned when the state that
// would release it is reached.
package etcdtest
