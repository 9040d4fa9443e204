package tether

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/fault"
)

// cgroupDir is the cgroup of the container's processes, by the machine's own cgroup2 mount.
const cgroupDir = "/sys/fs/cgroup/container"

// defaultShm is the size of /dev/shm where the config does not say: Docker's 64 MiB.
const defaultShm = 64 << 20

// Linux is the System of a real machine. Only Boot makes one.
type Linux struct {
	uevents *uevents
	reaper  *reaper
	stage   *stageChild // started early, for the container's own process; nil once used

	id      string                // of the config
	seats   map[string]guest.Seat // where disks are, by serial; one that was unmounted may have left
	mounted []string              // in order
	written []string              // of these, the file systems on disks that can be written
	// plug guards mounted, written, volumes, shown and targets: archives look at them while a Mount or Unmount changes them, and volumes are opened at once. Who
	// changes the mounts otherwise is one goroutine, and reads without it.
	plug    sync.RWMutex
	volumes map[guest.Source]volume
	binds   map[string]bind // volumes' mounts in the container's root, by their specs' targets

	forgotten map[string]scsiPlace // disks that Unmount had the kernel drop, by label
	mounts    []guest.MountSpec    // of the config
	shown     []string             // paths of the container where something was mounted for it that its archives show, in order
	targets   map[string]string    // Targets of mounts to the paths of the container that they led to
	made      []string             // paths of the container that files of the host are mounted at
	absent    map[string]string    // paths of the container where mounts are absent to their Targets

	loadLater func() error // loads the kernel modules that only some mounts need, once

	card  *card
	still stillness

	mu   sync.Mutex // guards below
	main *linuxProc
}

type volume struct {
	content  string
	readOnly bool
	remote   bool // it is on a server (linux_nfs.go), and others may have it
}

// Prepare is System.Prepare.
func (l *Linux) Prepare(ctx context.Context, cfg guest.ExecutorConfig) ([]guest.Timing, error) {
	began := time.Now()
	if err := identify(cfg); err != nil {
		return nil, err
	}
	if err := setSysctls(cfg.Sysctls); err != nil {
		return nil, err
	}
	if err := limitCgroup(cfg.Limits); err != nil {
		return nil, err
	}
	l.id, l.seats = cfg.ID, maps.Clone(cfg.Seats)
	copied, err := l.mountAll(ctx, cfg)
	return []guest.Timing{{Name: "mount", Took: time.Since(began) - copied}, {Name: "copy", Took: copied}}, err
}

// SetClock is System.SetClock.
func (l *Linux) SetClock(now time.Time) error { return setClock(now) }

func setClock(now time.Time) error {
	ts := unix.NsecToTimespec(now.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("cannot set the clock: %w", err)
	}
	return nil
}

// identify makes this machine itself before anything runs in it.
func identify(cfg guest.ExecutorConfig) error {
	if err := addEntropy(cfg.Entropy); err != nil {
		return fmt.Errorf("cannot seed the random numbers: %w", err)
	}
	if !cfg.Clock.IsZero() {
		if err := setClock(cfg.Clock); err != nil {
			return err
		}
	}
	if err := unix.Sethostname([]byte(cfg.Hostname)); err != nil {
		return fault.New(fault.Invalid, "cannot set host name %q: %w", cfg.Hostname, err)
	}
	if err := unix.Setdomainname([]byte(cfg.Domain)); err != nil {
		return fault.New(fault.Invalid, "cannot set domain name %q: %w", cfg.Domain, err)
	}
	return nil
}

// addEntropy mixes b into the kernel's pool, credits it, and has new keys made of it at once (random(4) RNDADDENTROPY, RNDRESEEDCRNG): the keys that a machine
// has from its template are those of all its siblings, and would be used for up to a minute more (drivers/char/random.c, CRNG_RESEED_INTERVAL).
func addEntropy(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	const rndAddEntropy, rndReseedCRNG = 0x40085203, 0x5207
	arg := make([]byte, 8+len(b))
	binary.NativeEndian.PutUint32(arg, uint32(len(b)*8))
	binary.NativeEndian.PutUint32(arg[4:], uint32(len(b)))
	copy(arg[8:], b)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), rndAddEntropy, uintptr(unsafe.Pointer(&arg[0]))); errno != 0 {
		return errno
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), rndReseedCRNG, 0); errno != 0 {
		return errno
	}
	return nil
}

// loopbackUp sets IFF_UP on lo (netdevice(7)).
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return err
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

func setSysctls(list []guest.Sysctl) error {
	for _, s := range list {
		path := filepath.Join("/proc/sys", filepath.Clean("/"+strings.ReplaceAll(s.Key, ".", "/")))
		if err := os.WriteFile(path, []byte(s.Value), 0); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return fault.New(fault.Invalid, "sysctl %q does not exist in the guest's kernel", s.Key)
			}
			return fault.New(fault.Invalid, "sysctl %q cannot be set to %q: %w", s.Key, s.Value, errors.Unwrap(err))
		}
	}
	return nil
}

// limitCgroup sets the container's limits; a new cgroup has none.
func limitCgroup(l guest.Limits) error {
	for _, f := range cgroupLimits(l) {
		if strings.HasPrefix(f.value, "max") {
			continue
		}
		if err := f.set(); err != nil {
			return err
		}
	}
	return nil
}

// oomKilled says whether the kernel killed a process of the container for want of memory.
func oomKilled() bool {
	data, err := os.ReadFile(filepath.Join(cgroupDir, "memory.events"))
	if err != nil {
		return false
	}
	for _, line := range strings.Split(string(data), "\n") {
		if n, ok := strings.CutPrefix(line, "oom_kill "); ok && n != "0" {
			return true
		}
	}
	return false
}

// devices are the container's device nodes, as every runtime makes them (OCI runtime-spec config-linux.md, "Default Devices").
var devices = []struct {
	name         string
	major, minor uint32
}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}}

var deviceLinks = map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx", "core": "/proc/kcore"}

// systemDir is where /dev, /sys and their like are until they go into a container's root. They are made before a container is known.
const systemDir = "/run/vch/system"

// prepareSystem makes what every container has: /dev, /sys and their like, and where the host's files go. /proc and /sys/fs/cgroup are the stage's to mount: they
// belong to its namespaces.
func (l *Linux) prepareSystem() error {
	in := func(p string) string { return filepath.Join(systemDir, p) }
	if err := os.MkdirAll(in("/proc"), 0o755); err != nil {
		return err
	}
	const safe = unix.MS_NOSUID | unix.MS_NOEXEC
	for _, m := range []struct {
		fstype, at string
		flags      uintptr
		data       string
	}{
		{"sysfs", in("/sys"), safe | unix.MS_NODEV, ""},
		{"tmpfs", in("/dev"), unix.MS_NOSUID | unix.MS_STRICTATIME, "mode=755,size=65536k"},
		{"devpts", in("/dev/pts"), safe, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		{"tmpfs", in("/dev/shm"), safe | unix.MS_NODEV, shmOptions(defaultShm)},
		{"mqueue", in("/dev/mqueue"), safe | unix.MS_NODEV, ""},
		{"tmpfs", filesDir, unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "mode=755,size=4m"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fstype, m.at, m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("cannot mount %s: %w", m.at, err)
		}
	}
	for _, d := range devices {
		path := in("/dev/" + d.name)
		if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return fmt.Errorf("cannot make /dev/%s: %w", d.name, err)
		}
		if err := os.Chmod(path, 0o666); err != nil { // umask
			return err
		}
	}
	for name, to := range deviceLinks {
		if err := os.Symlink(to, in("/dev/"+name)); err != nil {
			return err
		}
	}
	return nil
}

func shmOptions(size int64) string { return fmt.Sprintf("mode=1777,size=%d", size) }

// mountSystem moves what prepareSystem has made into the container's root.
func (l *Linux) mountSystem(cfg guest.ExecutorConfig) error {
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if err := os.MkdirAll(filepath.Join(rootDir, dir), 0o755); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if err := unix.Mount(filepath.Join(systemDir, dir), filepath.Join(rootDir, dir), "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("cannot mount %s: %w", dir, err)
		}
	}
	if cfg.ShmSize == 0 || cfg.ShmSize == defaultShm {
		return nil
	}
	if err := unix.Mount("", filepath.Join(rootDir, "/dev/shm"), "", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NODEV, shmOptions(cfg.ShmSize)); err != nil {
		return fmt.Errorf("cannot make /dev/shm %d bytes large: %w", cfg.ShmSize, err)
	}
	return nil
}

// mountFiles puts the host's files over the image's, but not over a mount that the user asked for at the same path.
func (l *Linux) mountFiles(cfg guest.ExecutorConfig) error {
	for i, f := range cfg.Files {
		if slices.ContainsFunc(cfg.Mounts, func(m guest.MountSpec) bool { return m.Target == f.Path }) {
			continue
		}
		src := filepath.Join(filesDir, strconv.Itoa(i))
		if err := os.WriteFile(src, f.Content, fs.FileMode(f.Mode)); err != nil {
			return err
		}
		at, err := resolveIn(rootDir, f.Path)
		if err != nil {
			return err
		}
		if _, err := os.Lstat(at); errors.Is(err, fs.ErrNotExist) {
			err := os.MkdirAll(filepath.Dir(at), 0o755)
			if err == nil {
				err = os.WriteFile(at, nil, 0o644)
			}
			if errors.Is(err, unix.EROFS) {
				continue // below a read-only volume that has no such file
			}
			if err != nil {
				return err
			}
		}
		if err := l.mount(src, at, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("cannot mount %s: %w", f.Path, err)
		}
		inside := strings.TrimPrefix(at, rootDir)
		l.plug.Lock()
		l.shown, l.made = append(l.shown, inside), append(l.made, inside)
		l.plug.Unlock()
	}
	return nil
}

// Release is System.Release.
func (l *Linux) Release() error {
	l.mu.Lock()
	main := l.main
	l.mu.Unlock()
	if main != nil {
		_ = os.WriteFile(filepath.Join(cgroupDir, "cgroup.kill"), []byte("1"), 0)
		<-main.gone
	}
	remote := l.leaveServers()
	if err := l.settleAll(); err != nil {
		return errors.Join(remote, l.unmountAll())
	}
	return remote
}

// Renew is System.Renew.
func (l *Linux) Renew() error {
	if err := l.card.set(guest.Network{}, nil); err != nil {
		return fault.New(fault.Internal, "cannot take networks away: %w", err)
	}
	if err := l.unmountAll(); err != nil {
		return fault.New(fault.Internal, "cannot unmount: %w", err)
	}
	// What was not used is there still, and would be in the way.
	_ = unix.Unmount(filesDir, unix.MNT_DETACH)
	for _, dir := range []string{"proc", "sys", "dev"} {
		_ = unix.Unmount(filepath.Join(systemDir, dir), unix.MNT_DETACH)
	}
	if err := os.Remove(cgroupDir); err != nil { // and with it what it counted
		return fault.New(fault.Internal, "cannot renew the container's cgroup: %w", err)
	}
	l.mu.Lock()
	l.main = nil
	l.mu.Unlock()
	return l.setStage()
}

// PowerOff is System.PowerOff.
func (l *Linux) PowerOff() error {
	unix.Sync()
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// Top is System.Top: the processes of the container's own PID namespace.
func (l *Linux) Top() ([]guest.ProcessInfo, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	names := userNames(filepath.Join(rootDir, "etc/passwd"))
	boot := bootTime()
	var rows []row
	inner := map[int]int{} // machine's pid -> container's
	for _, d := range dirs {
		if _, err := strconv.Atoi(d.Name()); err != nil {
			continue
		}
		if r, ok := readRow("/proc/"+d.Name(), names, boot); ok {
			rows = append(rows, r)
			inner[r.pid] = r.info.PID
		}
	}
	list := make([]guest.ProcessInfo, len(rows))
	for i, r := range rows {
		list[i] = r.info
		list[i].PPID = inner[r.parent] // 0: outside
	}
	slices.SortFunc(list, func(a, b guest.ProcessInfo) int { return a.PID - b.PID })
	return list, nil
}
