package apache

import "syscall"

// attached makes the kernel kill the process when the thread that started it
// ends, however our process goes.
func attached() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
