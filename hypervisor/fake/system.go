package fake

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
	"vch/tether"
)

// system is the simulated operating system of one running machine: a tether.System.
type system struct {
	disks    []portlayer.Disk
	servers  *servers
	powerOff func()
	born     time.Time

	mu     sync.Mutex // guards below
	dead   bool       // the machine is off: nothing starts any more
	mounts []mount    // deepest targets first; the root is the last
	open   []*content
	absent []string   // targets of mounts that are in another machine
	procs  []*process // running, in the order of their start
	pid    int        // of the last process

	storage bool // the machine has its storage link

	limits guest.Limits
	still  chan struct{} // closed at the end of a pause; nil: there is none
	clock  time.Time     // that was set last

	interfaces []guest.Interface
	ask        func(ctx context.Context, query []byte) ([]byte, error) // nil: nobody
}

// mount is a file system where a path finds it.
type mount struct {
	target   string
	source   guest.Source // of a volume; "" for the root and a tmpfs
	content  *content
	part     string // of the content: a directory or a file; "" is all of it
	readOnly bool
}

func newSystem(disks []portlayer.Disk, servers *servers, powerOff func()) *system {
	const first = 100 // where a real machine's processes begin, more or less
	return &system{disks: disks, servers: servers, powerOff: powerOff, pid: first, born: time.Now()}
}

// servers are the directories that machines reach by their storage links, made when they are mounted first.
type servers struct {
	mu   sync.Mutex // guards below
	have map[guest.Source]*content
}

func (s *servers) content(source guest.Source) *content {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.have == nil {
		s.have = map[guest.Source]*content{}
	}
	if s.have[source] == nil {
		s.have[source] = newMemory()
	}
	return s.have[source]
}

// Prepare is tether.System.Prepare. The texts of what can go wrong are those of the real tether. An image is opaque, so that there is nothing to copy.
func (s *system) Prepare(_ context.Context, cfg guest.ExecutorConfig) ([]guest.Timing, error) {
	began := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return nil, errOff
	}
	if err := s.mountAll(cfg); err != nil {
		return nil, errors.Join(err, s.unmountAll())
	}
	return []guest.Timing{{Name: "mount", Took: time.Since(began)}, {Name: "copy"}}, nil
}

var errOff = fault.New(fault.Unavailable, "the machine is off")

// mountAll mounts what cfg names. The caller holds mu.
func (s *system) mountAll(cfg guest.ExecutorConfig) error {
	s.storage = s.storage || cfg.Network.Storage != nil
	root := newMemory()
	if cfg.Root.Writable != "" {
		c, _, err := s.mountDisk(cfg.Root.Writable, "the container's own disk")
		if err != nil {
			return err
		}
		root = c
	}
	volumes := map[guest.Source]*content{}
	for _, m := range cfg.Mounts {
		if m.Target == "/" {
			return fault.New(fault.Invalid, "mount target %s is the root of the container", m.Target)
		}
		if m.Absent != "" {
			s.absent = append(s.absent, m.Target)
			continue
		}
		if m.Source == "tmpfs:" && cfg.Serve {
			continue
		}
		if m.Source == "tmpfs:" {
			s.mounts = append(s.mounts, mount{m.Target, "", newMemory(), "", m.ReadOnly})
			continue
		}
		if err := s.mountVolume(m, cfg.Mounts, volumes); err != nil {
			return err
		}
	}
	s.sortMounts()
	s.mounts = append(s.mounts, mount{"/", "", root, "", cfg.Root.ReadOnly})
	s.limits = cfg.Limits
	return nil
}

// sortMounts puts the deepest targets first; the root stays the last. The caller holds mu.
func (s *system) sortMounts() {
	slices.SortStableFunc(s.mounts, func(a, b mount) int { return len(b.target) - len(a.target) })
}

// mountVolume mounts m, one of all, whose volume's content is in volumes if it is open. The caller holds mu.
func (s *system) mountVolume(m guest.MountSpec, all []guest.MountSpec, volumes map[guest.Source]*content) error {
	label, ok := strings.CutPrefix(m.Source, "label://")
	if strings.HasPrefix(m.Source, "nfs://") {
		if !s.storage {
			return fault.New(fault.Internal, "%s cannot be mounted: the machine has no storage link", mountName(m))
		}
		volumes[m.Source], ok = s.servers.content(m.Source), true
	}
	if !ok {
		return fault.New(fault.Unsupported, "mount source %q is not known to this tether", m.Source)
	}
	c := volumes[m.Source]
	if c == nil {
		var readOnly bool
		var err error
		if c, readOnly, err = s.mountDisk("disk://"+label, mountName(m)); err != nil {
			return err
		}
		if string(c.label) != label && !slices.Contains(m.Was, string(c.label)) {
			return fault.New(fault.Conflict, "%s: its disk holds the file system %s, not %s", mountName(m), c.label, label)
		}
		if readOnly && slices.ContainsFunc(all, func(o guest.MountSpec) bool { return o.Source == m.Source && !o.ReadOnly }) {
			return fault.New(fault.Internal, "the file system of %s cannot be mounted: read-only file system", mountName(m))
		}
		if !readOnly {
			if err := c.rename(portlayer.Label(label)); err != nil {
				return err
			}
		}
		volumes[m.Source] = c
	}
	if m.Subpath != "" && !c.has(m.Subpath) {
		return fault.New(fault.NotFound, "cannot access path %s of %s: no such file or directory; make it there first, with a container that mounts the whole volume", m.Subpath, mountName(m))
	}
	s.mounts = append(s.mounts, mount{m.Target, m.Source, c, m.Subpath, m.ReadOnly})
	return nil
}

func mountName(m guest.MountSpec) string {
	if m.Name != "" {
		return "volume " + m.Name
	}
	return m.Source
}

// mountDisk opens the file system of the disk with a serial. The caller holds mu.
func (s *system) mountDisk(source guest.Source, what string) (c *content, readOnly bool, err error) {
	serial, ok := strings.CutPrefix(source, "disk://")
	if !ok {
		return nil, false, fault.New(fault.Invalid, "%s: %q is not a disk", what, source)
	}
	at := slices.IndexFunc(s.disks, func(d portlayer.Disk) bool { return d.Serial == serial })
	if at < 0 {
		return nil, false, fault.New(fault.NotFound, "the disk of %s (serial %s) did not appear in the machine", what, serial)
	}
	if c, err = mountExtent(s.disks[at]); err != nil {
		return nil, false, fault.New(fault.Conflict, "%s: %w", what, err)
	}
	s.open = append(s.open, c)
	return c, s.disks[at].ReadOnly, nil
}

// unmountAll lets go of every file system. The caller holds mu.
func (s *system) unmountAll() error {
	var errs []error
	for _, c := range s.open {
		errs = append(errs, c.unmount())
	}
	s.mounts, s.open, s.absent = nil, nil, nil
	return errors.Join(errs...)
}

// find gives the mount that a path of the container is below, and the rest of the path.
func (s *system) find(p string) (mount, string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.mounts {
		if rest, ok := strings.CutPrefix(p+"/", strings.TrimSuffix(m.target, "/")+"/"); ok {
			return m, strings.Trim(path.Join(m.part, rest), "/"), true
		}
	}
	return mount{}, "", false
}

// Start is tether.System.Start.
func (s *system) Start(p guest.Process, main bool) (tether.Proc, error) {
	if len(p.Args) == 0 || p.Args[0] == "" {
		return nil, fault.New(fault.Invalid, "the command is empty")
	}
	if !known(p.Args[0]) {
		if strings.Contains(p.Args[0], "/") {
			return nil, fault.New(fault.NotFound, "exec: %q: stat %s: no such file or directory", p.Args[0], p.Args[0])
		}
		return nil, fault.New(fault.NotFound, "exec: %q: executable file not found in $PATH", p.Args[0])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return nil, errOff
	}
	s.pid++
	proc := newProcess(s, p, s.pid, main)
	s.procs = append(s.procs, proc)
	go proc.run() // until its end, for which Release and die wait
	return proc, nil
}

// ended forgets a process.
func (s *system) ended(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.procs = slices.DeleteFunc(s.procs, func(o *process) bool { return o == p })
}

// killAll ends every process and waits for them.
func (s *system) killAll() {
	s.mu.Lock()
	procs := slices.Clone(s.procs)
	s.mu.Unlock()
	for _, p := range procs {
		p.kill(sigKill)
		<-p.gone
	}
}

// Release is tether.System.Release.
func (s *system) Release() error {
	s.killAll()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unmountAll()
}

// Renew is tether.System.Renew: nothing is left of a container that was released.
func (s *system) Renew() error { return nil }

// die is what pulling the plug does: every process ends, and none starts any more.
func (s *system) die() {
	s.mu.Lock()
	s.dead = true
	s.mu.Unlock()
	s.killAll()
}

// Top is tether.System.Top.
func (s *system) Top() ([]guest.ProcessInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]guest.ProcessInfo, len(s.procs))
	for i, p := range s.procs {
		list[i] = p.info()
	}
	return list, nil
}

// fakeProcess is what every simulated process uses: memory in bytes, and all the time that it has had.
const fakeProcess = 1 << 20

// Stats is tether.System.Stats.
func (s *system) Stats() (guest.Stats, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	used := time.Since(s.born)
	st := guest.Stats{
		Read: time.Now(), Pids: int64(len(s.procs)), PidsMax: s.limits.PidsMax,
		CPU:        guest.CPUStats{Total: used, User: used, Machine: used, Online: 1},
		Memory:     guest.MemoryStats{Usage: int64(len(s.procs)) * fakeProcess, Limit: s.limits.Memory, Detail: map[string]uint64{"inactive_file": 0}},
		Interfaces: map[string]guest.InterfaceStats{},
	}
	for _, i := range s.interfaces {
		st.Interfaces[i.Name] = guest.InterfaceStats{}
	}
	return st, nil
}

// SetLimits is tether.System.SetLimits.
func (s *system) SetLimits(l guest.Limits) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if used := int64(len(s.procs)) * fakeProcess; l.Memory > 0 && used > l.Memory {
		return fault.New(fault.Invalid, "its processes use %d bytes of memory, and cannot do with %d", used, l.Memory)
	}
	s.limits = l
	return nil
}

// SetStill is tether.System.SetStill. Simulated processes do nothing that could be seen to stand still.
func (s *system) SetStill(bool) error { return nil }

// PowerOff is tether.System.PowerOff.
func (s *system) PowerOff() error {
	s.powerOff()
	return nil
}

// absolute gives a path of the container, seen from a working directory.
func absolute(cwd, p string) string {
	if path.IsAbs(p) {
		return path.Clean(p)
	}
	return path.Join("/", cwd, p)
}
