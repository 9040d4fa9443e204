package tether

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vch/guest"
)

// modulesDir holds the kernel modules of the initramfs, and "order" and "later", which name in load order, one a line, those for every machine and those that are loaded when they are
// needed (loadLater).
const modulesDir = "/modules"

// gcPercent lets the heap grow to 16 MiB before the first collection, which would come in the middle of a start; it lives on 2.
const gcPercent = 400

// Boot is PID 1: it makes the machine ready, waits on the guest channel and serves it for ever. It does not return; what it cannot mend it says on the
// console, where the host's Diagnosis finds it, and powers off.
func Boot() {
	defer func() {
		if r := recover(); r != nil {
			die(fmt.Errorf("panic: %v\n%s", r, debug.Stack()))
		}
	}()
	die(boot())
}

func die(err error) {
	fmt.Fprintf(os.Stderr, "tether: %v\n", err)
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

func boot() error {
	var booted unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &booted)
	for _, m := range []struct{ fstype, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/run"}, {"cgroup2", "/sys/fs/cgroup"}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fstype, m.at, m.fstype, unix.MS_NOSUID, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("cannot mount %s: %w", m.at, err)
		}
	}
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	debug.SetGCPercent(gcPercent)
	if err := os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+memory +cpu +pids +io"), 0); err != nil {
		return fmt.Errorf("cannot set up cgroups: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("cannot set up the loopback interface: %w", err)
	}
	l := &Linux{
		reaper:  &reaper{waiting: map[int]chan unix.WaitStatus{}},
		volumes: map[guest.Source]volume{}, binds: map[string]bind{}, forgotten: map[string]scsiPlace{},
		targets: map[string]string{}, absent: map[string]string{},
		loadLater: sync.OnceValue(func() error { return loadModules("later") }),
	}
	sigchld := make(chan os.Signal, 1)
	signal.Notify(sigchld, syscall.SIGCHLD)
	go l.reaper.run(sigchld)
	var err error
	if l.uevents, err = listenUevents(); err != nil {
		return fmt.Errorf("cannot listen to uevents: %w", err)
	}
	if err := loadModules("order"); err != nil {
		return err
	}
	contact, carried, err := findRemote(findGuestInfo())
	if err != nil {
		return fmt.Errorf("cannot read what the machine was told: %w", err)
	}
	var frames *tap
	if contact != nil {
		l.card, frames, err = tapCard()
	} else {
		l.card, err = findCard()
	}
	if err != nil {
		return fmt.Errorf("cannot take the network card: %w", err)
	}
	if err := l.setStage(); err != nil {
		return err
	}
	core := NewCore(l, []guest.Timing{{Name: "boot", Took: time.Duration(booted.Nano())}})
	if contact != nil {
		core.Carry(carried)
		r, err := newRemote(*contact, frames)
		if err != nil {
			return err
		}
		return r.serve(core)
	}
	return servePort(l.uevents, core)
}

// servePort serves the hosts that come by the machine's virtio-serial port, one after the other.
func servePort(u *uevents, core *Core) error {
	port, err := findPort(u)
	if err != nil {
		return err
	}
	host, err := openPort(port)
	if err != nil {
		return err
	}
	for {
		if err := host.await(); err != nil {
			return err
		}
		if err := host.serve(core); err != nil {
			fmt.Fprintf(os.Stderr, "tether: guest channel: %v\n", err)
		}
	}
}

// loadModules loads the initramfs's modules of a list. One that is there already is fine, and so is one that is for another machine than this.
func loadModules(list string) error {
	order, err := os.ReadFile(filepath.Join(modulesDir, list))
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(order)) {
		at := filepath.Join(modulesDir, name)
		f, err := os.Open(at)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("cannot load kernel module %s: %w", name, err)
		}
		if err := os.Remove(at); err != nil { // its memory is the container's now
			return err
		}
	}
	return nil
}

// portWait bounds the wait for the guest channel's device.
const portWait = time.Minute

// findPort waits for the virtio-serial port called guest.PortName and returns its device.
func findPort(u *uevents) (string, error) {
	deadline := time.After(portWait)
	for {
		news := u.news()
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, n := range names {
			data, err := os.ReadFile(n)
			if err == nil && strings.TrimSpace(string(data)) == guest.PortName {
				dev := "/dev/" + filepath.Base(filepath.Dir(n))
				if _, err := os.Stat(dev); err == nil {
					return dev, nil
				}
			}
		}
		select {
		case <-news:
		case <-deadline:
			return "", fmt.Errorf("no virtio-serial port %q appeared", guest.PortName)
		}
	}
}

// port is the guest channel's device, open for good: the kernel throws away what has come when the last descriptor is closed (drivers/char/virtio_console.c,
// port_fops_release), and that may be a host's hello.
type port struct {
	fd, epoll int
	name      string
}

func openPort(name string) (*port, error) {
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	// Edge-triggered: a port without a host is always readable, as hung up.
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(fd)}); err != nil {
		return nil, errors.Join(err, unix.Close(ep), unix.Close(fd))
	}
	return &port{fd: fd, epoll: ep, name: name}, nil
}

// await returns when a host is on the port. A host speaks first, so that there is an event to wait for.
func (p *port) await() error {
	events := make([]unix.EpollEvent, 1)
	for {
		poll := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, 0); err == nil && poll[0].Revents&unix.POLLHUP == 0 {
			return nil
		}
		if _, err := unix.EpollWait(p.epoll, events, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// serve serves one host.
func (p *port) serve(core *Core) error {
	fd, err := unix.FcntlInt(uintptr(p.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return guest.Serve(context.Background(), &portConn{os.NewFile(uintptr(fd), p.name)}, core)
}

// portConn is a port's file as the connection that it is.
type portConn struct{ *os.File }

func (portConn) LocalAddr() net.Addr  { return portAddr{} }
func (portConn) RemoteAddr() net.Addr { return portAddr{} }

type portAddr struct{}

func (portAddr) Network() string { return "virtio-serial" }
func (portAddr) String() string  { return guest.PortName }

// uevents tells that the kernel's devices have changed (kobject_uevent, netlink(7) NETLINK_KOBJECT_UEVENT).
type uevents struct {
	mu   sync.Mutex // guards below
	next chan struct{}
}

func listenUevents() (*uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	u := &uevents{next: make(chan struct{})}
	go func() {
		buf := make([]byte, 8192)
		for {
			if _, err := unix.Read(fd, buf); err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			u.mu.Lock()
			close(u.next)
			u.next = make(chan struct{})
			u.mu.Unlock()
		}
	}()
	return u, nil
}

// news returns a channel that is closed at the next change.
func (u *uevents) news() <-chan struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.next
}
