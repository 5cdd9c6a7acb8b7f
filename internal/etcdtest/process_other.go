//go:build !linux

package etcdtest

import "os/exec"

// dieWithParent does nothing where the kernel offers nothing: a test process
// that is killed leaves its servers behind.
func dieWithParent(*exec.Cmd) {}
