package qemu

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/fault"
	"vch/internal/qmp"
)

// The files of a machine's directory beside its definition and its own disks.
const (
	qmpSocket     = "qmp.sock"
	channelSocket = "channel.sock"
	consoleSocket = "console.sock"
	cardSocket    = "card.sock"
	wordsFile     = "qemu.log" // what QEMU itself says
)

// process is a QEMU that runs in a directory of its own: a child of this process, or one that an earlier daemon started.
type process struct {
	pid   int
	pidfd int
	child *os.Process   // nil for one found again
	ended chan struct{} // closed when the process is gone

	shares *shareHost // nil: it shares nothing

	seats map[string]guest.Seat // that disks came into when it began, by serial; set before the process is known

	mu      sync.Mutex // guards below
	dir     string     // where its sockets are, and its words
	channel net.Conn   // the last one given out
	card    net.Conn   // likewise
	console tail
}

// launch starts QEMU in dir with a machine of the shape s and returns when that is made: executing, or, if it is a fork, waiting for its state. The process is
// talked to through q, which is the caller's to close. After an error nothing runs. memory is the template's, of a shape that has one.
func (h *Hypervisor) launch(ctx context.Context, dir string, s shape, memory *os.File) (p *process, q *qmp.Client, err error) {
	var files []*os.File // nil where QEMU gets none
	defer func() {
		for _, f := range files {
			if f != nil && f != memory {
				f.Close()
			}
		}
	}()
	for _, name := range []string{qmpSocket, channelSocket, consoleSocket, cardSocket} { // in the order of the descriptors in args.go
		f, err := listen(dir, name)
		if err != nil {
			return nil, nil, err
		}
		files = append(files, f)
	}
	for _, boot := range []*os.File{h.boot.kernel, h.boot.initrd} {
		if s.life == forkedOf {
			files = append(files, nil)
			continue
		}
		f, err := again(boot)
		if err != nil {
			return nil, nil, kindOf(err)
		}
		files = append(files, f)
	}
	files = append(files, memory)
	var shares *shareHost
	if len(s.shares) > 0 {
		if shares, err = h.serveShares(dir, s.shares); err != nil {
			return nil, nil, err
		}
		defer func() {
			if err == nil {
				return
			}
			if said := shares.said(dir); said != "" {
				err = fault.New(fault.Invalid, "%s", said)
			}
			shares.end()
		}()
		files = append(files, shares.conn)
	} else {
		files = append(files, nil)
	}
	for _, d := range s.drives {
		f, err := os.OpenFile(d.file, d.flag(), 0)
		if err != nil {
			return nil, nil, kindOf(err)
		}
		files = append(files, f)
	}
	home, err := os.Open(dir)
	if err != nil {
		return nil, nil, kindOf(err)
	}
	defer home.Close()
	words, err := os.OpenFile(filepath.Join(dir, wordsFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, kindOf(err)
	}
	defer words.Close()
	cmd := exec.Command(h.qemu, arguments(s)...)
	// Where it works is how a later daemon finds it. By descriptor: its user may not come there by the path.
	cmd.Dir = fmt.Sprintf("/proc/self/fd/%d", home.Fd())
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	cmd.Stdout, cmd.Stderr = words, words
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // it outlives this daemon, and the daemon's terminal
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = nobody(s.name)
		if st, err := os.Stat(kvmDevice); err == nil && s.accel == "kvm" {
			if sys, ok := st.Sys().(*syscall.Stat_t); ok {
				cmd.SysProcAttr.Credential.Groups = []uint32{sys.Gid} // whom the host lets use KVM
			}
		}
		if err := home.Chmod(0o711); err != nil { // it works there, and can neither list nor write
			return nil, nil, kindOf(err)
		}
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, fault.New(fault.Unavailable, "cannot run %s: %w", h.qemu, err)
	}
	p, err = h.watch(dir, cmd.Process.Pid, cmd.Process)
	if err != nil {
		return nil, nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	if q, err = p.awaitMachine(ctx); err != nil {
		h.end(p)
		return nil, nil, err
	}
	if shares != nil {
		p.shares = shares
		h.wg.Go(func() { h.guard(p) })
	}
	return p, q, nil
}

// guard ends a machine whose virtiofsd has ended: whoever touches what it shares would wait for ever.
func (h *Hypervisor) guard(p *process) {
	select {
	case <-p.ended:
	case <-h.closing:
	case <-p.shares.ended:
		select {
		case <-p.ended: // with its QEMU, as it should
		case <-time.After(shareGrace):
			h.o.Log.Error("what serves a machine's shared directories has ended, and the machine with it", "dir", p.home(), "said", p.shares.said(p.home()))
			p.kill()
		}
	}
}

// shareGrace is how long a virtiofsd may be gone before its QEMU, which it ends with.
const shareGrace = 5 * time.Second

// end kills a process that nobody knows of, and waits for its end.
func (h *Hypervisor) end(p *process) {
	p.kill()
	select {
	case <-p.ended:
	case <-h.closing:
	}
}

// nobody is a user that a machine has for itself: in no password file, owner of nothing, so that a guest that breaks into its QEMU finds itself with what is
// open there and no more, and cannot touch another machine's. The range is one that nothing assigns (systemd, "Users, Groups, UIDs and GIDs on systemd Systems").
func nobody(name string) *syscall.Credential {
	const first, mask = 0x70000000, 0x0fffffff
	sum := sha256.Sum256([]byte(name))
	id := first + binary.LittleEndian.Uint32(sum[:])&mask
	return &syscall.Credential{Uid: id, Gid: id}
}

// awaitMachine returns when QMP answers, which it does once every device is made.
func (p *process) awaitMachine(ctx context.Context) (*qmp.Client, error) {
	conn, err := dial(ctx, p.home(), qmpSocket)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	type answer struct {
		q   *qmp.Client
		err error
	}
	answered := make(chan answer, 1)
	go func() {
		q, err := qmp.Connect(ctx, conn)
		answered <- answer{q, err}
	}()
	var a answer
	select {
	case a = <-answered:
	case <-p.ended:
		conn.Close()
		if a = <-answered; a.err == nil {
			a.q.Close()
		}
		return nil, refusal("QEMU would not start", p.words())
	}
	if a.err != nil && ctx.Err() == nil {
		<-p.ended // it closed its control socket: it is ending
		return nil, refusal("QEMU would not start", p.words())
	}
	if a.err != nil {
		return nil, ctx.Err()
	}
	return a.q, nil
}

// home is the directory in which the process is.
func (p *process) home() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dir
}

// move gives the process's directory another name, which the process goes with. to must not be there.
func (p *process) move(to string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := os.Rename(p.dir, to); err != nil {
		return kindOf(err)
	}
	p.dir = to
	return nil
}

// refusal gives what QEMU said when it would not do something its kind. what says that, where the words alone do not.
func refusal(what, words string) error {
	kind := fault.Internal
	switch {
	case strings.Contains(words, `Failed to get "write" lock`), strings.Contains(words, `Failed to get shared "write" lock`), strings.Contains(words, `Failed to get "consistent read" lock`),
		strings.Contains(words, `Failed to lock byte`):
		return fault.New(fault.InUse, "another machine holds one of its disks (%s)", words)
	case strings.Contains(words, "annot set up guest memory"), strings.Contains(words, "Cannot allocate memory"):
		return fault.New(fault.Unavailable, "the host has not enough memory for it (%s)", words)
	case strings.Contains(words, "No such file or directory"):
		kind = fault.NotFound
	case strings.Contains(words, "Permission denied"):
		kind = fault.Denied
	}
	if words == "" {
		words = "it gave no reason"
	}
	return fault.New(kind, "%s: %s", what, words)
}

// words is what QEMU said, without its name before each line.
func (p *process) words() string { return words(p.home()) }

func words(dir string) string {
	data, err := readSmall(filepath.Join(dir, wordsFile))
	if err != nil {
		return ""
	}
	var lines []string
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		name, rest, ok := strings.Cut(line, ": ")
		if ok && strings.Contains(name, "qemu-system") {
			line = rest
		}
		if line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}

// watch makes the process known and waits for its end.
func (h *Hypervisor) watch(dir string, pid int, child *os.Process) (*process, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	p := &process{dir: dir, pid: pid, pidfd: pidfd, child: child, ended: make(chan struct{})}
	h.wg.Go(func() { p.await(h.closing) })
	h.wg.Go(func() { p.readConsole(h.closing) })
	return p, nil
}

// await waits for the process's end, or for closing.
func (p *process) await(closing <-chan struct{}) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		wake = -1
	}
	stop := make(chan struct{})
	var stopper sync.WaitGroup
	stopper.Go(func() {
		select {
		case <-closing:
			_, _ = unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		case <-stop:
		}
	})
	for {
		fds := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); errors.Is(err, syscall.EINTR) {
			continue
		}
		if fds[0].Revents != 0 {
			if p.child != nil {
				_, _ = p.child.Wait()
			}
			close(p.ended)
		}
		break
	}
	close(stop)
	stopper.Wait()
	_ = unix.Close(wake)
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = unix.Close(p.pidfd)
	p.pidfd = -1
}

// kill ends the process; what its guest has written is in the host's page cache, and stays.
func (p *process) kill() { p.signal(unix.SIGKILL) }

func (p *process) signal(s unix.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd >= 0 {
		_ = unix.PidfdSendSignal(p.pidfd, s, nil, 0)
	}
}

// connect gives a new connection to the guest channel.
func (p *process) connect(ctx context.Context) (net.Conn, error) {
	return p.again(ctx, &p.channel, channelSocket)
}

// frames gives a new connection to the network card.
func (p *process) frames(ctx context.Context) (net.Conn, error) {
	return p.again(ctx, &p.card, cardSocket)
}

// again dials one of the process's sockets and drops the connection before: QEMU serves one at a time.
func (p *process) again(ctx context.Context, last *net.Conn, name string) (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if *last != nil {
		(*last).Close()
		*last = nil
	}
	conn, err := dial(ctx, p.dir, name)
	if err != nil {
		return nil, err
	}
	*last = conn
	return conn, nil
}

// readConsole keeps the last of what the guest's console says. It is read, not filed: a guest could fill the host's disk.
func (p *process) readConsole(closing <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	conn, err := dial(ctx, p.home(), consoleSocket)
	if err != nil {
		return
	}
	defer conn.Close()
	done := make(chan struct{})
	var stopper sync.WaitGroup
	stopper.Go(func() {
		select {
		case <-closing:
		case <-p.ended:
		case <-done:
		}
		conn.Close()
	})
	defer stopper.Wait()
	defer close(done)
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		p.mu.Lock()
		p.console.add(buf[:n])
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// tail keeps the last bytes that it is given.
type tail struct{ kept []byte }

const tailSize = 8 << 10

func (t *tail) add(data []byte) {
	t.kept = append(t.kept, data...)
	if n := len(t.kept) - tailSize; n > 0 {
		t.kept = append(t.kept[:0], t.kept[n:]...)
	}
}

// lines gives the last n lines, as text that can be shown.
func (t *tail) lines(n int) []string {
	var out []string
	for _, line := range bytes.Split(t.kept, []byte("\n")) {
		text := strings.TrimSpace(strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f || r == '\ufffd' {
				return ' '
			}
			return r
		}, string(line)))
		if text != "" {
			out = append(out, text)
		}
	}
	return out[max(0, len(out)-n):]
}

// A unix socket's path has at most 107 bytes (unix(7)), and a state directory may be deep: sockets are reached through the directory's descriptor.
func inside(dir, name string, use func(path string) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return kindOf(err)
	}
	defer d.Close()
	return use(fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name))
}

// listen makes a socket that listens and gives its descriptor, for QEMU to inherit. One that is there already is replaced.
func listen(dir, name string) (f *os.File, err error) {
	if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, kindOf(err)
	}
	err = inside(dir, name, func(path string) error {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			return err
		}
		l.SetUnlinkOnClose(false)
		f, err = l.File()
		return errors.Join(err, l.Close())
	})
	return f, err
}

func dial(ctx context.Context, dir, name string) (conn net.Conn, err error) {
	err = inside(dir, name, func(path string) error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, "unix", path)
		return err
	})
	if err != nil && ctx.Err() == nil {
		err = fault.As(fault.Unavailable, fmt.Errorf("cannot reach the machine: %w", err))
	}
	return conn, err
}

// A machine's process runs in this directory of the machine's; that of an earlier vch in the machine's own.
const runDir = "run"

// found is a process that runs already.
type found struct {
	pid int
	dir string
}

// processes finds the QEMU processes that run in directories below root, by their working directories, which no crash can lose. They are told by the names of these
// directories.
func processes(root string) map[string]found {
	all := map[string]found{}
	root, err := filepath.EvalSymlinks(root)
	if err != nil {
		return all
	}
	for _, pid := range hostProcesses() {
		cwd := workingDir(pid)
		at := cwd
		if filepath.Base(at) == runDir && filepath.Dir(at) != root {
			at = filepath.Dir(at)
		}
		if filepath.Dir(at) != root {
			continue
		}
		if strings.Contains(argumentsOf(pid), "\x00-name\x00"+processName("")) {
			all[filepath.Base(at)] = found{pid, cwd}
		}
	}
	return all
}

// hostProcesses are the ids of all processes of this host.
func hostProcesses() (pids []int) {
	all, _ := os.ReadDir("/proc")
	for _, e := range all {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// workingDir is where a process runs; "" of one that has ended.
func workingDir(pid int) string {
	dir, _ := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "cwd"))
	return dir
}

// argumentsOf is a process's name and arguments, each with a zero after it; "" of one that has ended.
func argumentsOf(pid int) string {
	line, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	return string(line)
}

// processName is what QEMU's -name says for the machine id.
func processName(id string) string { return "vch-" + id }
