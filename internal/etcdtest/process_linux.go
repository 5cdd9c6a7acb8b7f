package etcdtest

import (
	"os/exec"
	"syscall"
)

// dieWithParent has the kernel kill the command when the test process ends,
// however that ends.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
