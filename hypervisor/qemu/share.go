package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// What a machine shares with the host it reaches by one virtio-fs device, whose other end is a virtiofsd: a process beside QEMU, which ends with it. What virtiofsd serves is
// a directory in a mount namespace of its own, with each share bound into it under its number, so that a file can be one, too, and what is read-only is that on the host.

const (
	shareSocket = "share.sock"
	shareWords  = "share.log" // what virtiofsd says
	shareDir    = "share"     // where shares are bound, in that namespace; empty in the host's
)

// virtiofsds are where Debian has QEMU's virtiofsd.
var virtiofsds = []string{"/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"}

// findVirtiofsd finds the program.
func findVirtiofsd() (string, error) {
	for _, path := range virtiofsds {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fault.New(fault.NotFound, "there is no virtiofsd in %s, which shares directories of the host with machines: install Debian's package qemu-system-common", strings.Join(virtiofsds, " or "))
}

// stageArg is what this program is started with to become a virtiofsd.
const stageArg = "vch-share"

// The descriptors of a stage, after its standard ones.
const (
	stageOrder = 3 + iota
	stageSocket
)

// order is what a stage is told.
type order struct {
	Program string
	Shares  []portlayer.Share
	User    bool // in a user namespace of its own
}

// shareHost is a virtiofsd that waits for its QEMU, or serves it.
type shareHost struct {
	conn  *os.File    // QEMU's end
	child *os.Process // nil: an earlier daemon started it
	ended chan struct{}
}

// serveShares starts a virtiofsd for shares. Its QEMU gets conn; it ends when that ends.
func (h *Hypervisor) serveShares(dir string, shares []portlayer.Share) (_ *shareHost, err error) {
	program, err := findVirtiofsd()
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(filepath.Join(dir, shareDir), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, kindOf(err)
	}
	socket, err := listen(dir, shareSocket)
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	told, err := memfd("vch-shares", 0)
	if err != nil {
		return nil, err
	}
	defer told.Close()
	text, err := json.Marshal(order{Program: program, Shares: shares, User: os.Geteuid() != 0})
	if err != nil {
		return nil, err
	}
	if _, err := told.WriteAt(text, 0); err != nil {
		return nil, err
	}
	words, err := os.OpenFile(filepath.Join(dir, shareWords), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, kindOf(err)
	}
	defer words.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{stageArg}
	cmd.Dir = dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	cmd.Stdout, cmd.Stderr = words, words
	cmd.ExtraFiles = []*os.File{told, socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWNS} // it outlives this daemon, as its QEMU
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	if err := cmd.Start(); err != nil {
		return nil, fault.New(fault.Unavailable, "cannot share directories of the host: %w", err)
	}
	s := &shareHost{child: cmd.Process, ended: make(chan struct{})}
	go func() { // ends with the process, at the latest when its QEMU ends
		_, _ = s.child.Wait()
		close(s.ended)
	}()
	defer func() {
		if err != nil {
			s.end()
		}
	}()
	err = inside(dir, shareSocket, func(path string) error {
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			return err
		}
		defer conn.Close()
		s.conn, err = conn.File()
		return err
	})
	return s, err
}

// end ends a virtiofsd whose QEMU does not come.
func (s *shareHost) end() {
	if s.conn != nil {
		_ = s.conn.Close()
	}
	_ = s.child.Kill() // it may have ended
	<-s.ended
}

// said is why a virtiofsd ended, in its own words; "" if it did not.
func (s *shareHost) said(dir string) string {
	select {
	case <-s.ended:
	default:
		return ""
	}
	text, err := readSmall(filepath.Join(dir, shareWords))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}

// IsShareStage says whether this program was started to become a virtiofsd: then ShareStage is all that its main calls.
func IsShareStage(args []string) bool { return len(args) == 1 && args[0] == stageArg }

// ShareStage puts the shares together in the mount namespace that this process was born in, and becomes virtiofsd. It returns why it could not, which main prints, without more around
// it: the last line of what was printed is what the user reads.
func ShareStage() error {
	text, err := os.ReadFile(inherited(stageOrder))
	if err != nil {
		return err
	}
	var o order
	if err := json.Unmarshal(text, &o); err != nil {
		return err
	}
	// What the host mounts later comes here; nothing goes back.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("cannot have mounts of its own: %w", err)
	}
	if err := unix.Mount("share", shareDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755,size=1m"); err != nil {
		return fmt.Errorf("cannot mount the directory of shares: %w", err)
	}
	for i, s := range o.Shares {
		if err := bindShare(s, filepath.Join(shareDir, strconv.Itoa(i))); err != nil {
			return fmt.Errorf("cannot share %s: %w", s.Path, err)
		}
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, shareDir, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return err
	}
	_ = unix.Close(stageOrder)
	source, err := filepath.Abs(shareDir) // virtiofsd leaves this directory
	if err != nil {
		return err
	}
	if _, err := unix.FcntlInt(stageSocket, unix.F_SETFD, 0); err != nil { // it goes on to virtiofsd
		return err
	}
	args := []string{o.Program, "--fd=" + strconv.Itoa(stageSocket), "-o", "source=" + source, "-o", "sandbox=namespace", "-o", "announce_submounts", "-o", "log_level=warn",
		// What the host changes is seen at once: nothing that a guest knows of a name or a file's attributes is good for longer than one call.
		"-o", "cache=auto", "-o", "timeout=0", "-o", "xattr",
		"-o", "modcaps=-mknod"} // a guest makes no device files on the host
	if o.User {
		args = append(args, "--rlimit-nofile=0")
	}
	return fmt.Errorf("cannot run %s: %w", o.Program, unix.Exec(o.Program, args, os.Environ()))
}

// bindShare binds what s shares at the path at, which it makes.
func bindShare(s portlayer.Share, at string) error {
	root, err := unix.Open(s.Below, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", s.Below, err)
	}
	defer unix.Close(root)
	rel, err := filepath.Rel(s.Below, s.Path)
	if err != nil {
		return err
	}
	// Who may write in the directory may have put a link where there was none when it was looked at.
	fd, err := unix.Openat2(root, rel, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		err = os.Mkdir(at, 0o755)
	case unix.S_IFREG:
		err = os.WriteFile(at, nil, 0o644)
	default:
		return errors.New("it is neither a directory nor a regular file")
	}
	if err != nil {
		return err
	}
	deep := uint(unix.AT_RECURSIVE)
	if s.NonRecursive {
		deep = 0
	}
	tree, err := unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|deep)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if s.Follow {
		attr.Propagation = unix.MS_SLAVE
	}
	if s.ReadOnly {
		attr.Attr_set = unix.MOUNT_ATTR_RDONLY
	}
	if s.ReadOnly && s.WritableBelow {
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return err
		}
		attr.Attr_set = 0
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return err
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// shareArguments are QEMU's for the device, whose other end it has as a descriptor.
func shareArguments(fd int) []string {
	return []string{"-chardev", fmt.Sprintf("socket,id=share,fd=%d", fd), "-device", "vhost-user-fs-pci,chardev=share,tag=" + guest.ShareTag + ",queue-size=1024"}
}

// sharers finds the virtiofsds of machines below root, by the machines' names: the first process of each, which ends with the others.
func sharers(root string) map[string]int {
	found := map[string]int{}
	root, err := filepath.EvalSymlinks(root)
	if err != nil {
		return found
	}
	for _, pid := range hostProcesses() {
		words := strings.Split(argumentsOf(pid), "\x00")
		var dir string
		switch {
		case words[0] == stageArg:
			dir = workingDir(pid)
		case slices.Contains(virtiofsds, words[0]):
			for _, word := range words {
				if source, ok := strings.CutPrefix(word, "source="); ok {
					dir = source
				}
			}
		}
		if rest, ok := strings.CutPrefix(dir, root+"/"); ok {
			id, _, _ := strings.Cut(rest, "/")
			if first, there := found[id]; !there || pid < first {
				found[id] = pid
			}
		}
	}
	return found
}

// adoptSharers has the virtiofsds of machines that were found again guarded, and ends those whose machine does not run: of a daemon that was killed between the two.
func (h *Hypervisor) adoptSharers() {
	for id, pid := range sharers(h.root()) {
		p := h.running[portlayer.ContainerID(id)]
		if p == nil {
			_ = unix.Kill(pid, unix.SIGKILL)
			continue
		}
		pidfd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it ended just now, and its machine with it
		}
		server := &process{pid: pid, pidfd: pidfd, ended: make(chan struct{})}
		p.shares = &shareHost{ended: server.ended}
		h.wg.Go(func() { server.await(h.closing) })
		h.wg.Go(func() { h.guard(p) })
	}
}
