//go:build !linux

package etcdtest

import "os/exec"

// DieWithParent does nothing where the kernel offers nothing: a test process
// that is killed leaves its servers behind.
func DieWithParent(*exec.Cmd) {}
