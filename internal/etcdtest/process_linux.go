package etcdtest

import (
	"os/exec"
	"syscall"
)

// DieWithParent has the kernel kill the command when the test process ends,
// however that ends. Signals from the terminal don't reach it: whoever started it stops
// it, when it has tidied up.
func DieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
