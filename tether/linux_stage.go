package tether

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/fault"
)

// stageArg is the argument that makes this binary a stage instead of PID 1.
const stageArg = "stage"

// mainArg follows it for the stage of the container's own process.
const mainArg = "main"

// stageSock is the stage's end of its socket.
const stageSock = 3

// stageOrder is what a stage is told.
type stageOrder struct {
	Process guest.Process `json:"process"`
	Main    bool          `json:"main"` // the container's own
}

// Stage is a process between fork and exec: it waits for its order, takes on the limits, the root, the user and the capabilities of a process of
// the container, and becomes it. It is started before it is needed, so that its own start is not waited for. It returns the exit code of its process: where
// it was not needed, where something went wrong, after telling, and where it was the init of another.
func Stage() (code int) {
	runtime.LockOSThread() // credentials are a thread's; the thread that calls exec decides
	learnOrders()
	if len(os.Args) > 2 && os.Args[2] == mainArg {
		if err := mountOwn(); err != nil {
			console("%v", err)
			return 1
		}
	}
	files, order, err := receiveOrder()
	if err == errNotNeeded {
		return 0
	}
	if err == nil {
		code, err = become(order, files)
	}
	if err == nil {
		return code
	}
	f := guest.Fault{Kind: fault.KindOf(err).String(), Text: err.Error()}
	body, _ := json.Marshal(f)
	_, _ = unix.Write(stageSock, body)
	return 1
}

// learnOrders has the decoder look at what an order is made of now, while nobody waits.
func learnOrders() {
	body, err := json.Marshal(stageOrder{Process: guest.Process{Args: []string{""}, Env: []string{""}, Groups: []string{""}, Rlimits: []guest.Rlimit{{}}, Capabilities: []string{""}}})
	if err == nil {
		err = json.NewDecoder(bytes.NewReader(body)).Decode(new(stageOrder))
	}
	if err != nil {
		console("an order cannot be read: %v", err)
	}
}

// errNotNeeded is receiveOrder's where the tether hung up without an order.
var errNotNeeded = errors.New("stage: not needed")

func receiveOrder() (files []int, order stageOrder, err error) {
	oob := make([]byte, unix.CmsgSpace(4*4))
	n, oobn, _, _, err := unix.Recvmsg(stageSock, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	for errors.Is(err, unix.EINTR) {
		n, oobn, _, _, err = unix.Recvmsg(stageSock, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil {
		return nil, order, err
	}
	if n == 0 {
		return nil, order, errNotNeeded
	}
	unix.CloseOnExec(stageSock)
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, order, err
	}
	if len(messages) != 1 {
		return nil, order, errors.New("stage: no files came with the order")
	}
	if files, err = unix.ParseUnixRights(&messages[0]); err != nil {
		return nil, order, err
	}
	if len(files) != 4 {
		return nil, order, fmt.Errorf("stage: %d files came with the order, not 4", len(files))
	}
	mem := os.NewFile(uintptr(files[3]), "order")
	defer mem.Close()
	err = json.NewDecoder(io.NewSectionReader(mem, 0, 1<<30)).Decode(&order)
	return files[:3], order, err
}

// become does everything in the order that the kernel's rules ask for: mounts and limits while privileged, then root, then user, then exec.
// With an init it returns the exit code of the process.
func become(order stageOrder, files []int) (code int, err error) {
	p := order.Process
	for to, from := range files {
		if err := unix.Dup3(from, to, 0); err != nil {
			return 0, err
		}
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", fmt.Appendf(nil, "%d", p.OOMScoreAdj), 0); err != nil {
		return 0, fault.New(fault.Invalid, "cannot set the OOM score to %d: %w", p.OOMScoreAdj, err)
	}
	if err := setRlimits(p.Rlimits); err != nil {
		return 0, err
	}
	if p.TTY {
		if err := unix.IoctlSetInt(0, unix.TIOCSCTTY, 0); err != nil {
			return 0, fmt.Errorf("cannot take the terminal: %w", err)
		}
	}
	if err := unix.Chdir(rootDir); err != nil {
		return 0, err
	}
	if err := unix.Chroot("."); err != nil {
		return 0, err
	}
	u, err := lookUp(p)
	if err != nil {
		return 0, err
	}
	for fd := range 3 {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && (st.Mode&unix.S_IFMT == unix.S_IFIFO || p.TTY) {
			_ = unix.Fchown(fd, u.Uid, -1) // so that the user may open /dev/stdout again
		}
	}
	cwd := p.Cwd
	if cwd == "" {
		cwd = "/"
	}
	if order.Main {
		if err := os.MkdirAll(cwd, 0o755); err != nil && !errors.Is(err, unix.EROFS) {
			return 0, fault.New(fault.Invalid, "cannot make working directory %s: %w", cwd, errors.Unwrap(err))
		}
	}
	if err := dropCapabilities(p.Capabilities); err != nil {
		return 0, err
	}
	if err := setUser(u); err != nil {
		return 0, err
	}
	if err := unix.Chdir(cwd); err != nil { // as the user: it may not be allowed to go there
		return 0, fault.New(fault.Denied, "cannot change to working directory %s: %w", cwd, err)
	}
	if p.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return 0, err
		}
	}
	env := environment(p, u.Home)
	path, err := lookPath(p.Args[0], env)
	if err != nil {
		return 0, err
	}
	unix.Umask(0o022)
	if p.Init && order.Main {
		return initFor(path, p, env)
	}
	err = syscall.Exec(path, p.Args, env)
	return 0, execFault(p.Args[0], err)
}

// mountOwn has the stage of the container's own process mount what shows the namespaces of who mounts it, at systemDir. It waits until it is in its cgroup.
func mountOwn() error {
	var word [1]byte
	if _, err := unix.Read(stageSock, word[:]); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return err
	}
	const safe = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV
	if err := unix.Mount("proc", filepath.Join(systemDir, "proc"), "proc", safe, ""); err != nil {
		return fmt.Errorf("cannot mount /proc: %w", err)
	}
	if err := unix.Mount("cgroup2", filepath.Join(systemDir, "sys/fs/cgroup"), "cgroup2", safe, ""); err != nil {
		return fmt.Errorf("cannot mount /sys/fs/cgroup: %w", err)
	}
	_, err := unix.Write(stageSock, word[:])
	return err
}

// rlimits are the resources of setrlimit(2) by their names without RLIMIT_.
var rlimits = map[string]int{
	"as": unix.RLIMIT_AS, "core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA, "fsize": unix.RLIMIT_FSIZE,
	"locks": unix.RLIMIT_LOCKS, "memlock": unix.RLIMIT_MEMLOCK, "msgqueue": unix.RLIMIT_MSGQUEUE, "nice": unix.RLIMIT_NICE,
	"nofile": unix.RLIMIT_NOFILE, "nproc": unix.RLIMIT_NPROC, "rss": unix.RLIMIT_RSS, "rtprio": unix.RLIMIT_RTPRIO,
	"rttime": unix.RLIMIT_RTTIME, "sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
}

func setRlimits(list []guest.Rlimit) error {
	// Docker's engine runs its containers with these two.
	all := append([]guest.Rlimit{{Type: "nofile", Soft: 1 << 20, Hard: 1 << 20}, {Type: "nproc", Soft: unix.RLIM_INFINITY, Hard: unix.RLIM_INFINITY}}, list...)
	for _, r := range all {
		which, ok := rlimits[r.Type]
		if !ok {
			return fault.New(fault.Invalid, "invalid ulimit type: %s", r.Type)
		}
		// prlimit(2), not Go's Setrlimit: that one would be undone for nofile at exec.
		if err := unix.Prlimit(0, which, &unix.Rlimit{Cur: r.Soft, Max: r.Hard}, nil); err != nil {
			return fault.New(fault.Invalid, "cannot set ulimit %s to %d:%d: %w", r.Type, r.Soft, r.Hard, err)
		}
		if which == unix.RLIMIT_NOFILE {
			_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: r.Soft, Max: r.Hard}) // tells Go's exec to leave it
		}
	}
	return nil
}

// lookUp finds the process's user and groups in the image, which is the root by now.
func lookUp(p guest.Process) (*user.ExecUser, error) {
	u, err := user.GetExecUserPath(p.User, &user.ExecUser{Home: "/"}, "/etc/passwd", "/etc/group")
	if err != nil {
		return nil, fault.New(fault.Invalid, "%w", err)
	}
	if len(p.Groups) > 0 {
		more, err := user.GetAdditionalGroupsPath(p.Groups, "/etc/group")
		if err != nil {
			return nil, fault.New(fault.Invalid, "%w", err)
		}
		for _, g := range more {
			if !slices.Contains(u.Sgids, g) {
				u.Sgids = append(u.Sgids, g)
			}
		}
	}
	return u, nil
}

// setUser changes this thread's groups and user, which is all that exec looks at.
func setUser(u *user.ExecUser) error {
	groups := make([]uint32, len(u.Sgids)+1)
	for i, g := range u.Sgids {
		groups[i] = uint32(g)
	}
	groups = groups[:len(u.Sgids)]
	if err := setgroups(groups); err != nil {
		return fmt.Errorf("cannot set groups: %w", err)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(u.Gid), uintptr(u.Gid), uintptr(u.Gid)); errno != 0 {
		return fmt.Errorf("cannot set group %d: %w", u.Gid, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(u.Uid), uintptr(u.Uid), uintptr(u.Uid)); errno != 0 {
		return fmt.Errorf("cannot set user %d: %w", u.Uid, errno)
	}
	return nil
}

// environment adds what Docker adds where it is absent.
func environment(p guest.Process, home string) []string {
	env := slices.Clone(p.Env)
	hostname, _ := os.Hostname()
	add := [][2]string{{"PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, {"HOSTNAME", hostname}}
	if p.TTY {
		add = append(add, [2]string{"TERM", "xterm"})
	}
	add = append(add, [2]string{"HOME", home})
	for _, kv := range add {
		if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, kv[0]+"=") }) {
			env = append(env, kv[0]+"="+kv[1])
		}
	}
	return env
}

// lookPath finds an executable as the shell would, in the process's own PATH.
func lookPath(name string, env []string) (string, error) {
	if name == "" {
		return "", fault.New(fault.Invalid, "the command is empty")
	}
	if strings.Contains(name, "/") {
		return name, checkExecutable(name, name)
	}
	var path string
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	denied := false
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "."
		}
		at := filepath.Join(dir, name)
		err := checkExecutable(at, name)
		if err == nil {
			return at, nil
		}
		denied = denied || fault.Is(err, fault.Denied)
	}
	if denied {
		return "", execFault(name, unix.EACCES)
	}
	return "", fault.New(fault.NotFound, "exec: %q: executable file not found in $PATH", name)
}

func checkExecutable(at, name string) error {
	fi, err := os.Stat(at)
	if err != nil {
		return execFault(name, err)
	}
	if fi.IsDir() {
		return fault.New(fault.Denied, "exec: %q: is a directory", name)
	}
	return execFault(name, unix.Access(at, unix.X_OK))
}

// execFault words a failure as Docker's clients know it: they read exit codes 126 and 127 from these words.
func execFault(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return fault.New(fault.NotFound, "exec: %q: stat %s: no such file or directory", name, name)
	case errors.Is(err, fs.ErrPermission):
		return fault.New(fault.Denied, "exec: %q: permission denied", name)
	}
	return fault.New(fault.Invalid, "exec: %q: %w", name, err)
}
