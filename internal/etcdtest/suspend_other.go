//go:build !unix

package etcdtest

import (
	"errors"
	"os"
)

// Suspend stops a process, on systems that have a signal for it.
func Suspend(*os.Process) error { return errors.ErrUnsupported }

// Resume lets it go on.
func Resume(*os.Process) error { return errors.ErrUnsupported }
