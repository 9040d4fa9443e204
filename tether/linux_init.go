package tether

import (
	"errors"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"vch/guest"
)

// initFor is what the stage becomes for a process with Init: PID 1 of the container, which starts the process as its child, hands signals on, reaps whoever is left
// to it, and returns the exit code that it ends with, which is its child's. The kernel gives a PID 1 no signal that it has no handler for
// (pid_namespaces(7)), so that a program that handles none cannot be stopped unless it is somebody's child.
func initFor(path string, p guest.Process, env []string) (code int, err error) {
	ended := make(chan os.Signal, 1) // one is enough: all that have ended are reaped
	signal.Notify(ended, unix.SIGCHLD)
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	sys := &syscall.SysProcAttr{Setpgid: true}
	if p.TTY {
		sys.Foreground, sys.Ctty = true, 0
		signal.Ignore(unix.SIGTTIN, unix.SIGTTOU) // this process is in the background of its terminal from now on
	}
	// The calling thread's user, groups and capabilities are the child's: fork(2) copies the thread that calls it.
	child, err := syscall.ForkExec(path, p.Args, &syscall.ProcAttr{Env: env, Files: []uintptr{0, 1, 2}, Sys: sys})
	if err != nil {
		return 0, execFault(p.Args[0], err)
	}
	_ = unix.Close(stageSock) // as exec would have: the process runs
	for fd := range 3 {
		_ = unix.Close(fd) // its streams end with it and its children
	}
	for {
		select {
		case <-ended:
			if code, done := reap(child); done {
				return code, nil
			}
		case s := <-signals:
			if n, ok := s.(syscall.Signal); ok && n != unix.SIGCHLD && n != unix.SIGURG { // SIGURG is Go's own, to preempt goroutines
				_ = unix.Kill(child, n)
			}
		}
	}
}

// reap reaps all that have ended. done says that child is among them, and code how it ended; what is left then ends with the container's PID namespace.
func reap(child int) (code int, done bool) {
	for {
		var st unix.WaitStatus
		pid, err := unix.Wait4(-1, &st, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || pid == 0:
			return 0, false
		case pid == child && st.Signaled():
			return 128 + int(st.Signal()), true
		case pid == child:
			return st.ExitStatus(), true
		}
	}
}
