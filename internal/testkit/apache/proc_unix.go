//go:build unix && !linux

package apache

import "syscall"

// attached is nothing here: a test process that is killed leaves its nodes.
func attached() *syscall.SysProcAttr { return nil }
