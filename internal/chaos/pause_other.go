//go:build !unix

package main

import (
	"errors"
	"fmt"
)

// pause fails where the system has no signal that stops a process.
func (p *process) pause() error {
	return fmt.Errorf("a process can't be paused on this system: %w", errors.ErrUnsupported)
}

func (p *process) resume() error { return nil }
