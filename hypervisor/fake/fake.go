// Package fake is a hypervisor without machines: each machine is a goroutine that runs the tether's core over a simulated operating system. It is for tests of
// the rooms above, and passes the same suite (hypervisor/hypertest) as the real ones.
//
// What is real: the disks' files (a flat VMDK's descriptor and sparse extent, at the paths given), the definitions, the guest channel with the whole of its
// protocol, the tether's state machine. What is simulated: the file system in a disk, which is a list of files in JSON, and the processes, which
// know a few commands (command.go). The guest has its commands built in, so an image's disk is opaque and may be missing.
//
// Machines live in a World. A daemon's restart is played by a second New with the same Dir and World: running machines are found again. A New with another
// World plays the host's restart: definitions and disks are there, and every machine is off.
package fake

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"vch/internal/fault"
	"vch/portlayer"
)

// Options is what a Hypervisor needs.
type Options struct {
	Dir   string // where definitions and own disks are kept; made if missing
	World *World // what survives a Close; nil: a new one
}

// World holds running machines, by the directory of the hypervisor that they belong to, and which disks they have open.
type World struct {
	mu    sync.Mutex // guards below
	sites map[string]*site
	open  map[string]*holders // by the descriptor's absolute path

	servers servers
}

// NewWorld makes a world in which nothing runs.
func NewWorld() *World {
	return &World{sites: map[string]*site{}, open: map[string]*holders{}}
}

// site is one hypervisor's machines.
type site struct {
	world *World
	dir   string // of the machines' directories

	mu    sync.Mutex // guards below
	slots map[portlayer.ContainerID]*slot
}

// slot is what a world knows of one machine beyond its files.
type slot struct {
	turn chan struct{} // holds one value while somebody changes the machine

	mu  sync.Mutex // guards below
	run *running   // nil when off
	end string     // what the last run said at its end
}

// Hypervisor implements portlayer.Hypervisor.
type Hypervisor struct {
	site   *site
	ctx    context.Context // ends with Close: connections made through this value go with it
	cancel context.CancelFunc
}

// New opens the hypervisor at o.Dir.
func New(o Options) (*Hypervisor, error) {
	if o.Dir == "" {
		return nil, fault.New(fault.Invalid, "the fake hypervisor needs a directory")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, "machines"), 0o700); err != nil {
		return nil, fault.New(fault.Denied, "cannot make the fake hypervisor's directory: %w", err)
	}
	w := o.World
	if w == nil {
		w = NewWorld()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.sites[dir]
	if s == nil {
		s = &site{world: w, dir: filepath.Join(dir, "machines"), slots: map[portlayer.ContainerID]*slot{}}
		w.sites[dir] = s
	}
	h := &Hypervisor{site: s}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h, nil
}

// Close is portlayer.Hypervisor.Close: machines go on.
func (h *Hypervisor) Close() error {
	h.cancel()
	return nil
}

// Info is portlayer.Hypervisor.Info.
func (h *Hypervisor) Info(context.Context) (portlayer.HypervisorInfo, error) {
	return portlayer.HypervisorInfo{Name: "fake", Version: "1", Kernel: "simulated", Detail: "machines are goroutines of this process"}, nil
}

// Disks is portlayer.Hypervisor.Disks.
func (h *Hypervisor) Disks() portlayer.Disks { return Disks{} }

// Machine is portlayer.Hypervisor.Machine.
func (h *Hypervisor) Machine(_ context.Context, id portlayer.ContainerID) (portlayer.Machine, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	if _, err := h.site.load(id); err != nil {
		return nil, err
	}
	return &Machine{h: h, id: id, slot: h.site.slot(id)}, nil
}

// Expect is portlayer.Hypervisor.Expect: a machine here is made at once.
func (h *Hypervisor) Expect(portlayer.MachineSpec) {}

// List is portlayer.Hypervisor.List.
func (h *Hypervisor) List(context.Context) ([]portlayer.ContainerID, error) {
	entries, err := os.ReadDir(h.site.dir) // sorted
	if err != nil {
		return nil, err
	}
	ids := []portlayer.ContainerID{}
	for _, e := range entries {
		id := portlayer.ContainerID(e.Name())
		if _, err := os.Stat(h.site.definition(id)); err == nil {
			ids = append(ids, id)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return ids, nil
}

// slot finds or makes the slot of a machine.
func (s *site) slot(id portlayer.ContainerID) *slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	sl := s.slots[id]
	if sl == nil {
		sl = &slot{turn: make(chan struct{}, 1)}
		s.slots[id] = sl
	}
	return sl
}

// take waits for the right to change the machine; the caller gives it back.
func (sl *slot) take(ctx context.Context) (back func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case sl.turn <- struct{}{}:
		return func() { <-sl.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// running gives the machine's run, nil when it is off.
func (sl *slot) running() *running {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	return sl.run
}

// holders are the machines that have a disk open: one writer, or readers.
type holders struct {
	writer  portlayer.ContainerID
	readers map[portlayer.ContainerID]int
}

// acquire opens all disks for a machine, or none.
func (w *World) acquire(id portlayer.ContainerID, disks []portlayer.Disk) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, d := range disks {
		key := diskKey(d.File)
		o := w.open[key]
		if o == nil {
			o = &holders{readers: map[portlayer.ContainerID]int{}}
			w.open[key] = o
		}
		var err error
		switch {
		case o.writer != "":
			err = fault.New(fault.InUse, "disk %s is in use: machine %s has it open for writing", d.File, o.writer)
		case !d.ReadOnly && len(o.readers) > 0:
			err = fault.New(fault.InUse, "disk %s is in use: %d machines have it open for reading", d.File, len(o.readers))
		case d.ReadOnly:
			o.readers[id]++
		default:
			o.writer = id
		}
		if err != nil {
			w.letGo(id, disks[:i])
			return err
		}
	}
	return nil
}

// release closes what acquire opened.
func (w *World) release(id portlayer.ContainerID, disks []portlayer.Disk) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.letGo(id, disks)
}

// letGo is release for a caller that holds mu.
func (w *World) letGo(id portlayer.ContainerID, disks []portlayer.Disk) {
	for _, d := range disks {
		key := diskKey(d.File)
		o := w.open[key]
		if d.ReadOnly {
			if o.readers[id]--; o.readers[id] == 0 {
				delete(o.readers, id)
			}
		} else {
			o.writer = ""
		}
		if o.writer == "" && len(o.readers) == 0 {
			delete(w.open, key)
		}
	}
}

// diskKey is a disk's path in one spelling.
func diskKey(p portlayer.DiskPath) string {
	if abs, err := filepath.Abs(string(p)); err == nil {
		return abs
	}
	return string(p)
}
