// Package qemu makes machines of QEMU processes on this host: the embedded default hypervisor.
//
// A machine is a directory below Options.StateDir/machines: its definition, its own disk, its sockets, its logs. A running one is a QEMU process in a session of
// its own, so that it outlives this process; the next one finds it by its working directory. It is a fork of a template (template.go, shelf.go), if it can be one that was kept
// ready (pool.go); otherwise it boots Debian's kernel and an initramfs that is written here (initramfs.go). Disks are flat VMDKs, run as raw.
//
// The jail: under a daemon that is root, each machine's QEMU runs as a user of its own that owns nothing; under an ordinary user's daemon it runs as that user. It is
// given its disks and sockets open, with -sandbox denying privilege elevation, spawning and resource control, and has no network card. It has no cgroup of its
// own yet. Under TCG, which QEMU itself calls no security boundary, this jail is the boundary.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"vch/internal/fault"
	"vch/internal/guestkernel"
	"vch/portlayer"
)

// Options is what a Hypervisor needs. Empty fields but StateDir and Tether have defaults.
type Options struct {
	StateDir string
	QEMU     string // program; "" : qemu-system-x86_64 in PATH
	Kernel   string // "" : the newest /boot/vmlinuz-* whose modules are installed
	Modules  string // "" : /lib/modules/RELEASE
	Tether   []byte // the guest's /init
	Accel    string // "auto" (or ""), "kvm", "tcg"
	Cache    string // where kernel, initramfs and templates are kept, which processes may share; "": StateDir/cache
	Template bool   // machines are forks of templates, which share memory pages; otherwise every one boots
	Warm     int    // forks that are kept ready; 0: none
	Log      *slog.Logger
}

// Hypervisor implements portlayer.Hypervisor.
type Hypervisor struct {
	o       Options
	qemu    string
	info    portlayer.HypervisorInfo
	boot    bootFiles
	cmdline string // of the guests' kernel
	disks   Disks
	shelf   *shelf // nil: machines boot
	pool    *pool

	program, processor string // what QEMU's build and the host's processor are told by

	work    context.Context // of what goes on in the background
	endWork context.CancelFunc
	workers sync.WaitGroup

	closing chan struct{}  // closed by Close, after the workers have gone
	wg      sync.WaitGroup // watchers of processes

	mu      sync.Mutex                            // guards below
	running map[portlayer.ContainerID]*process    // also those that have ended, for their last words
	locks   map[portlayer.ContainerID]*sync.Mutex // one change of a machine at a time
}

// New finds what it needs on this host and opens it. Its errors say what to install.
func New(ctx context.Context, o Options) (*Hypervisor, error) {
	found, err := Find(ctx, o)
	if err != nil {
		return nil, err
	}
	return Open(ctx, o, found)
}

// Open writes the initramfs, decides on the accelerator and finds running machines again.
func Open(ctx context.Context, o Options, found Host) (*Hypervisor, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	h := &Hypervisor{o: o, closing: make(chan struct{}), running: map[portlayer.ContainerID]*process{}, locks: map[portlayer.ContainerID]*sync.Mutex{}}
	h.work, h.endWork = context.WithCancel(context.Background())
	h.qemu, h.disks = found.qemu, found.disks
	h.disks.errands = newErrands(h.work, h.disks.buildReady)
	h.workers.Go(func() { h.disks.errands.run(func(tomb string) { h.disks.swept.Delete(filepath.Dir(tomb)) }) })
	h.pool = newPool(h, o.Warm)
	kernel := found.kernel
	if err := os.MkdirAll(h.root(), 0o700); err != nil {
		return nil, fault.New(fault.Denied, "cannot make the state directory: %w", err)
	}
	var err error
	if h.program, err = programID(h.qemu); err != nil {
		return nil, err
	}
	if h.boot, err = prepareBoot(h.cache(), kernel, o.Tether); err != nil {
		return nil, err
	}
	h.cmdline = commandLine("kvm")
	h.info = portlayer.HypervisorInfo{Name: "qemu", Version: found.version, Kernel: kernel.Release}
	if h.info.Accel, h.info.Detail, err = h.decideAccel(ctx, o.Accel); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	h.cmdline, h.processor = commandLine(h.info.Accel), hostProcessor(h.info.Accel)
	running := processes(h.root())
	if err := h.sweep(ctx, running); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	for id, was := range running {
		p, err := h.watch(was.dir, was.pid, nil)
		if errors.Is(err, syscall.ESRCH) {
			continue // it ended just now
		}
		if err != nil {
			return nil, errors.Join(fault.Wrap("find machine again", id, err), h.Close())
		}
		h.running[portlayer.ContainerID(id)] = p
	}
	h.adoptSharers()
	if err := h.openPool(ctx); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// openPool clears what an earlier process left of its pool, and begins this one's.
func (h *Hypervisor) openPool(ctx context.Context) error {
	if err := h.clearPool(); err != nil {
		return err
	}
	if !h.o.Template {
		return nil
	}
	f := &shelf{h: h, dir: filepath.Join(h.cache(), templatesDir), known: map[string]*spot{}}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return kindOf(err)
	}
	if err := f.tidy(ctx, time.Now()); err != nil {
		return err
	}
	h.shelf = f
	if h.o.Warm > 0 {
		h.workers.Go(h.pool.run)
		h.workers.Go(h.pool.watchMemory)
	}
	return nil
}

// Expect is portlayer.Hypervisor.Expect.
func (h *Hypervisor) Expect(spec portlayer.MachineSpec) {
	if h.shelf == nil || possible(spec.Memory, spec.CPUs) != nil {
		return
	}
	s := h.shape(definition{Memory: spec.Memory, CPUs: spec.CPUs})
	h.shelf.want(s)
	h.pool.expect(s)
}

// templatesDir is in the cache.
const templatesDir = "templates"

var keyRule = regexp.MustCompile(`^[0-9a-f]{32}$`)

// cache is where kernel, initramfs and templates are kept.
func (h *Hypervisor) cache() string {
	if h.o.Cache != "" {
		return h.o.Cache
	}
	return filepath.Join(h.o.StateDir, "cache")
}

// sweep deletes what a Define or an Undefine that was cut off has left: directories without a definition, from which nothing was ever powered on or is any more.
func (h *Hypervisor) sweep(ctx context.Context, running map[string]found) error {
	h.disks.sweep(h.root()) // machines that were being made or removed
	entries, err := os.ReadDir(h.root())
	if err != nil {
		return kindOf(err)
	}
	for _, e := range entries {
		if _, err := os.Stat(filepath.Join(h.root(), e.Name(), definitionFile)); !errors.Is(err, os.ErrNotExist) || running[e.Name()].pid != 0 {
			continue
		}
		if err := h.disks.RemoveDir(ctx, portlayer.DiskPath(h.dir(portlayer.ContainerID(e.Name())))); err != nil {
			return fault.Wrap("delete what is left of machine", e.Name(), err)
		}
	}
	return nil
}

// Host is what was found on this host of what Open needs.
type Host struct {
	qemu, version string
	disks         Disks
	kernel        guestkernel.Kernel
}

// Find looks for what Open needs on this host, and changes nothing. Its errors say what to install.
func Find(ctx context.Context, o Options) (host Host, err error) {
	if len(o.Tether) == 0 {
		return host, fault.New(fault.Invalid, "this vch was built without its tether; build it with make build")
	}
	if host.qemu, err = findQEMU(o.QEMU); err != nil {
		return host, err
	}
	if host.disks, err = FindDisks(); err != nil {
		return host, err
	}
	if host.version, err = version(ctx, host.qemu); err != nil {
		return host, err
	}
	host.kernel, err = guestkernel.Find(o.Kernel, o.Modules, guestModules)
	return host, err
}

// Close is portlayer.Hypervisor.Close: machines go on.
func (h *Hypervisor) Close() error {
	h.endWork()
	h.workers.Wait()
	if h.shelf != nil {
		h.shelf.close()
	}
	close(h.closing)
	h.wg.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.running {
		p.mu.Lock()
		for _, conn := range []net.Conn{p.channel, p.card} {
			if conn != nil {
				conn.Close()
			}
		}
		p.mu.Unlock()
	}
	if h.boot.kernel == nil {
		return nil
	}
	return h.boot.close()
}

// Info is portlayer.Hypervisor.Info.
func (h *Hypervisor) Info(context.Context) (portlayer.HypervisorInfo, error) {
	info := h.info
	info.Starts = "every machine boots, for templates are off"
	if h.shelf != nil {
		info.Starts = fmt.Sprintf("forks of templates, %d in memory; %d of %d machines kept ready", h.shelf.count(), h.pool.count(), h.pool.size)
	}
	return info, nil
}

// Disks is portlayer.Hypervisor.Disks.
func (h *Hypervisor) Disks() portlayer.Disks { return h.disks }

func findQEMU(name string) (string, error) {
	if name == "" {
		name = "qemu-system-x86_64"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fault.New(fault.NotFound, "QEMU is missing (%s: %w); install it with make setup, or Debian's package qemu-system-x86", name, err)
	}
	return path, nil
}

var versionRule = regexp.MustCompile(`(?m)^QEMU emulator version (\S+)`)

func version(ctx context.Context, qemu string) (string, error) {
	out, err := exec.CommandContext(ctx, qemu, "--version").Output()
	if err != nil {
		return "", fault.New(fault.Unavailable, "cannot run %s: %w", qemu, err)
	}
	m := versionRule.FindSubmatch(out)
	if m == nil {
		return "", fault.New(fault.Invalid, "%s is not QEMU: it does not tell QEMU's version; leave --qemu out, or give a qemu-system-x86_64", qemu)
	}
	return string(m[1]), nil
}

// commandLine is the guests' kernel command line. The clock part keeps a guest from calibrating against an emulated timer, which can take a minute or
// never end on a busy host.
func commandLine(accel string) string {
	khz := tscKHz(readFile("/proc/cpuinfo"))
	clock := "tsc=reliable no_timer_check"
	if khz > 0 {
		const hz = 250 // CONFIG_HZ of Debian's kernels
		clock += fmt.Sprintf(" tsc_early_khz=%d lpj=%d", khz, khz*1000/hz)
	}
	line := "console=ttyS0 quiet loglevel=3 reboot=t panic=-1 " + clock +
		" cryptomgr.notests rcupdate.rcu_expedited=1 random.trust_cpu=on audit=0 nowatchdog scsi_mod.scan=sync psi=0 GODEBUG=asyncpreemptoff=1"
	if accel != "kvm" {
		// What keeps a processor from guessing wrong does nothing for one that is emulated, and takes time.
		line += " mitigations=off"
	}
	return line
}

func readFile(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(data)
}

var (
	mhzRule  = regexp.MustCompile(`(?m)^cpu MHz\s*:\s*([0-9.]+)`)
	nameRule = regexp.MustCompile(`(?m)^model name\s*:.*@ ([0-9.]+)GHz`)
)

// tscKHz reads the rate of the time stamp counter from /proc/cpuinfo, in kHz: in a virtual machine "cpu MHz" is it; on bare metal that is the clock of the moment, and
// the nominal clock in the model's name is closer. 0 if neither is there.
func tscKHz(cpuinfo string) int {
	var mhz, ghz float64
	if m := mhzRule.FindStringSubmatch(cpuinfo); m != nil {
		fmt.Sscan(m[1], &mhz)
	}
	if m := nameRule.FindStringSubmatch(cpuinfo); m != nil {
		fmt.Sscan(m[1], &ghz)
	}
	if strings.Contains(cpuinfo, " hypervisor ") && mhz > 0 || ghz == 0 {
		return int(mhz * 1000)
	}
	return int(ghz * 1e6)
}

// lock gives the mutex of one machine, held.
func (h *Hypervisor) lock(id portlayer.ContainerID) *sync.Mutex {
	h.mu.Lock()
	l := h.locks[id]
	if l == nil {
		l = &sync.Mutex{}
		h.locks[id] = l
	}
	h.mu.Unlock()
	l.Lock()
	return l
}

var idRule = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// root is where the machines' directories are.
func (h *Hypervisor) root() string { return filepath.Join(h.o.StateDir, "machines") }

func (h *Hypervisor) dir(id portlayer.ContainerID) string { return filepath.Join(h.root(), string(id)) }

// List is portlayer.Hypervisor.List.
func (h *Hypervisor) List(context.Context) ([]portlayer.ContainerID, error) {
	entries, err := os.ReadDir(h.root()) // sorted
	if err != nil {
		return nil, err
	}
	var ids []portlayer.ContainerID
	for _, e := range entries {
		if !idRule.MatchString(e.Name()) {
			continue // it is being made, or removed
		}
		if _, err := os.Stat(filepath.Join(h.root(), e.Name(), definitionFile)); err == nil {
			ids = append(ids, portlayer.ContainerID(e.Name()))
		}
	}
	return ids, nil
}

// Machine is portlayer.Hypervisor.Machine.
func (h *Hypervisor) Machine(_ context.Context, id portlayer.ContainerID) (portlayer.Machine, error) {
	if !idRule.MatchString(string(id)) {
		return nil, fault.New(fault.NotFound, "no machine %q", id)
	}
	if _, err := os.Stat(filepath.Join(h.dir(id), definitionFile)); errors.Is(err, os.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "no machine %q", id)
	} else if err != nil {
		return nil, err
	}
	return &machine{h: h, id: id}, nil
}
