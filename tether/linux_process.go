package tether

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/fault"
)

// reaper collects ended children: all of them, since this is PID 1.
type reaper struct {
	mu      sync.Mutex // guards below; held over a fork, so that no child ends unknown
	waiting map[int]chan unix.WaitStatus
}

// run reaps at every SIGCHLD.
func (r *reaper) run(sigchld <-chan os.Signal) {
	for range sigchld {
		for {
			r.mu.Lock()
			var ws unix.WaitStatus
			pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
			if err == nil && pid > 0 {
				if ch := r.waiting[pid]; ch != nil {
					ch <- ws
					delete(r.waiting, pid)
				}
			}
			r.mu.Unlock()
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
		}
	}
}

// fork starts a child whose status will come on the channel.
func (r *reaper) fork(argv []string, attr *syscall.ProcAttr) (int, <-chan unix.WaitStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(selfPath, argv, attr)
	if err != nil {
		return 0, nil, err
	}
	ch := make(chan unix.WaitStatus, 1)
	r.waiting[pid] = ch
	return pid, ch, nil
}

// selfPath is this binary: the initramfs's /init.
const selfPath = "/init"

// stageChild is a child that waits to be told what to become (stage.go).
type stageChild struct {
	pid    int
	status <-chan unix.WaitStatus
	sock   *os.File // SOCK_SEQPACKET: one message each way
}

// goSettings keeps Go's runtime from interrupting goroutines by signals, which costs more here than the waiting that it saves. The hypervisor says the same to PID 1.
const goSettings = "GODEBUG=asyncpreemptoff=1"

// newStage starts a stage: for the container's own process in a PID namespace of its own, else in namespace ns.
func (l *Linux) newStage(ns string) (*stageChild, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "stage"), os.NewFile(uintptr(fds[1]), "stage")
	defer theirs.Close()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	defer null.Close()
	attr := &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{goSettings},
		Files: []uintptr{null.Fd(), null.Fd(), 2, theirs.Fd()}, // stderr stays the console: a stage that panics is heard
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if ns == "" {
		attr.Sys.Cloneflags = unix.CLONE_NEWPID
	} else {
		// Children of a thread are born in the PID namespace that the thread was set to; the thread itself stays (setns(2)).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for _, step := range []string{ns, "/proc/self/ns/pid"} {
			f, err := os.Open(step)
			if err != nil {
				return nil, errors.Join(fault.New(fault.Conflict, "the container's process has ended"), ours.Close())
			}
			defer f.Close()
			if step == ns {
				if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWPID); err != nil {
					return nil, errors.Join(fault.New(fault.Conflict, "the container's process has ended: %w", err), ours.Close())
				}
			} else {
				back := int(f.Fd())
				defer func() { _ = unix.Setns(back, unix.CLONE_NEWPID) }()
			}
		}
	}
	argv := []string{selfPath, stageArg}
	if ns == "" {
		argv = append(argv, mainArg)
	}
	pid, status, err := l.reaper.fork(argv, attr)
	if err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	return &stageChild{pid: pid, status: status, sock: ours}, nil
}

// enter puts the stage into the container's cgroup.
func (s *stageChild) enter() error {
	if err := os.WriteFile(filepath.Join(cgroupDir, "cgroup.procs"), []byte(strconv.Itoa(s.pid)), 0); err != nil {
		return fmt.Errorf("cannot put the process into its cgroup: %w", err)
	}
	return nil
}

// setStage makes what every container needs before one is known: its system mounts, its cgroup, and in that the stage of its process.
func (l *Linux) setStage() (err error) {
	if err := l.prepareSystem(); err != nil {
		return err
	}
	if err := os.Mkdir(cgroupDir, 0o755); err != nil {
		return err
	}
	if l.stage, err = l.newStage(""); err != nil {
		return fmt.Errorf("cannot start the stage: %w", err)
	}
	if err := l.stage.enter(); err != nil {
		return err
	}
	return l.stage.await()
}

// await tells a stage that it is in its cgroup, and waits until it has mounted what is its to mount.
func (s *stageChild) await() error {
	word := []byte{1}
	_, err := unix.Write(int(s.sock.Fd()), word)
	n := 0
	if err == nil {
		n, err = unix.Read(int(s.sock.Fd()), word)
	}
	if err == nil && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("the stage does not come up: %w", err)
	}
	return nil
}

// drop ends a stage that is not needed.
func (s *stageChild) drop() {
	_ = unix.Kill(s.pid, unix.SIGKILL)
	s.sock.Close()
}

// linuxProc implements Proc.
type linuxProc struct {
	pid    int
	main   bool
	tty    *os.File // the terminal's master end; nil without
	stdin  io.WriteCloser
	stdout *os.File
	stderr *os.File

	gone chan struct{} // closed when it ended
	exit guest.Exit    // set before gone closes
}

// Start is System.Start.
func (l *Linux) Start(p guest.Process, main bool) (_ Proc, err error) {
	l.mu.Lock()
	stage, runs := l.stage, l.main
	if main {
		l.stage = nil
	}
	l.mu.Unlock()
	if !main {
		if runs == nil {
			return nil, fault.New(fault.Conflict, "the container's process does not run")
		}
		if stage, err = l.newStage("/proc/" + strconv.Itoa(runs.pid) + "/ns/pid"); err != nil {
			return nil, err
		}
		if err := stage.enter(); err != nil {
			stage.drop()
			return nil, err
		}
	}
	lp := &linuxProc{pid: stage.pid, main: main, gone: make(chan struct{})}
	var theirs []*os.File // stdin, stdout, stderr of the process
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
		if err != nil {
			stage.drop()
			lp.close()
		}
	}()
	if theirs, err = lp.streams(p); err != nil {
		return nil, err
	}
	if err := stage.become(stageOrder{Process: p, Main: main}, theirs); err != nil {
		return nil, err
	}
	if main {
		l.mu.Lock()
		l.main = lp
		l.mu.Unlock()
	}
	go func() {
		ws := <-stage.status
		lp.exit = exitOf(ws)
		if main && lp.exit.Signal != 0 || lp.exit.Code == 137 {
			lp.exit.OOM = oomKilled()
		}
		close(lp.gone)
	}()
	return lp, nil
}

func exitOf(ws unix.WaitStatus) guest.Exit {
	if ws.Signaled() {
		return guest.Exit{Code: 128 + int(ws.Signal()), Signal: int(ws.Signal())}
	}
	return guest.Exit{Code: ws.ExitStatus()}
}

// become tells a stage what to be and returns when it is that, or why it could not.
func (s *stageChild) become(order stageOrder, files []*os.File) error {
	body, err := json.Marshal(order)
	if err != nil {
		return err
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	// A large environment does not fit one packet: it goes in a memfd beside the streams.
	memfd, err := unix.MemfdCreate("order", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	mem := os.NewFile(uintptr(memfd), "order")
	defer mem.Close()
	if _, err := mem.WriteAt(body, 0); err != nil {
		return err
	}
	if err := unix.Sendmsg(int(s.sock.Fd()), []byte{1}, unix.UnixRights(append(fds, memfd)...), nil, 0); err != nil {
		return fmt.Errorf("cannot reach the stage: %w", err)
	}
	answer := make([]byte, 64<<10)
	n, err := unix.Read(int(s.sock.Fd()), answer) // end of file: it has become the process
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Read(int(s.sock.Fd()), answer)
	}
	s.sock.Close()
	if err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	var f guest.Fault
	if err := json.Unmarshal(answer[:n], &f); err != nil {
		return err
	}
	return fault.New(fault.ParseKind(f.Kind), "%s", f.Text)
}

// streams makes the process's three files and this end's of them.
func (lp *linuxProc) streams(p guest.Process) (theirs []*os.File, err error) {
	if p.TTY {
		master, slave, err := openPTY(p.Rows, p.Cols)
		if err != nil {
			return nil, fmt.Errorf("cannot make a terminal: %w", err)
		}
		lp.tty, lp.stdout = master, master
		if p.Stdin {
			lp.stdin = ttyInput{master}
		}
		return []*os.File{slave, slave, slave}, nil
	}
	if p.Stdin {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		lp.stdin = w
		theirs = append(theirs, r)
	} else {
		null, err := os.OpenFile(filepath.Join(rootDir, "dev/null"), os.O_RDONLY, 0)
		if err != nil {
			return nil, err
		}
		theirs = append(theirs, null)
	}
	for _, ours := range []**os.File{&lp.stdout, &lp.stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return theirs, err
		}
		*ours = r
		theirs = append(theirs, w)
	}
	return theirs, nil
}

func (lp *linuxProc) close() {
	for _, f := range []*os.File{lp.stdout, lp.stderr} {
		if f != nil {
			f.Close()
		}
	}
	if lp.stdin != nil && lp.tty == nil {
		lp.stdin.Close()
	}
}

// ttyInput is a terminal as input. Its end is not an end-of-file: as in Docker, a terminal goes on.
type ttyInput struct{ *os.File }

func (ttyInput) Close() error { return nil }

// openPTY makes a terminal in the container's own devpts (pts(4)).
func openPTY(rows, cols uint16) (master, slave *os.File, err error) {
	dir := filepath.Join(rootDir, "dev/pts")
	master, err = os.OpenFile(filepath.Join(dir, "ptmx"), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			master.Close()
		}
	}()
	fd := int(master.Fd())
	if err := unix.SetNonblock(fd, false); err != nil {
		return nil, nil, err
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, err
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, nil, err
	}
	if rows == 0 {
		rows = 24
	}
	if cols == 0 {
		cols = 80
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		return nil, nil, err
	}
	slave, err = os.OpenFile(filepath.Join(dir, strconv.Itoa(n)), os.O_RDWR|unix.O_NOCTTY, 0)
	return master, slave, err
}

func (lp *linuxProc) Pid() int              { return lp.pid }
func (lp *linuxProc) Stdin() io.WriteCloser { return lp.stdin }

func (lp *linuxProc) Outputs() (stdout, stderr io.Reader) {
	if lp.stderr == nil {
		return lp.stdout, nil
	}
	return lp.stdout, lp.stderr
}

func (lp *linuxProc) Wait() guest.Exit {
	<-lp.gone
	return lp.exit
}

func (lp *linuxProc) Signal(n int) error {
	select {
	case <-lp.gone:
		return fault.New(fault.Conflict, "the process has ended")
	default:
	}
	if err := unix.Kill(lp.pid, unix.Signal(n)); err != nil {
		return fault.New(fault.Invalid, "cannot send signal %d: %w", n, err)
	}
	return nil
}

func (lp *linuxProc) Resize(rows, cols uint16) error {
	if lp.tty == nil {
		return fault.New(fault.Conflict, "the process has no terminal")
	}
	return unix.IoctlSetWinsize(int(lp.tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
}
