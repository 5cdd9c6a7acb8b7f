//go:build unix

package etcdtest

import (
	"os"
	"syscall"
)

// Suspend stops a process where it stands, as the host of a virtual machine does, or a
// terminal. Its timers don't run.
func Suspend(p *os.Process) error { return p.Signal(syscall.SIGSTOP) }

// Resume lets it go on.
func Resume(p *os.Process) error { return p.Signal(syscall.SIGCONT) }
