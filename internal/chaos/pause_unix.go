//go:build unix

package main

import "syscall"

// pause stops the process as a debugger, a hypervisor or a collector of garbage might.
func (p *process) pause() error { return p.cmd.Process.Signal(syscall.SIGSTOP) }

func (p *process) resume() error { return p.cmd.Process.Signal(syscall.SIGCONT) }
