package virtual_test

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"example.com/etcd/concurrency/internal/virtual"
)

// stuck are runs that don't end by themselves, and what is said of them.
var stuck = map[string]struct {
	run  func(b *virtual.Bubble)
	says []string
}{
	"outside": { // waits for what only somebody outside the bubble could bring about
		func(*virtual.Bubble) { <-outside },
		[]string{"virtual time has stood still for 2s", "[chan receive, synctest bubble", "virtual_test.init.func1"},
	},
	"endless": { // goes on for ever
		func(b *virtual.Bubble) {
			for {
				b.Sleep(time.Hour)
			}
		},
		[]string{"the run has taken more than 5s", "etcdserver.(*EtcdServer).run"},
	},
	"blocked": { // all wait for each other: that the runtime sees by itself
		func(b *virtual.Bubble) { b.Server().Stop(); select {} },
		[]string{"seed 4711", "the run has taken more than 5s", "[select (no cases)"},
	},
}

var outside = make(chan struct{})

// A run that gets stuck prints what every goroutine of the bubble waits for, and fails. The
// process that does so is another one.
func TestStuck(t *testing.T) {
	if name := os.Getenv("STUCK"); name != "" {
		virtual.Run(t, virtual.Options{Seed: 4711, Still: 2 * time.Second, RealTime: 5 * time.Second}, stuck[name].run)
		return
	}
	for name, want := range stuck {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestStuck$")
			cmd.Env = append(os.Environ(), "STUCK="+name)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			require.ErrorAs(t, err, &exit)
			require.Equal(t, 1, exit.ExitCode())
			for _, text := range want.says {
				require.Contains(t, string(out), text)
			}
		})
	}
}
