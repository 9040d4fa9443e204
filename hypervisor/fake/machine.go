package fake

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"vch/guest"
	"vch/internal/atomicfile"
	"vch/internal/fault"
	"vch/portlayer"
)

var idRule = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// definition is a machine's machine.json. A machine is there when this file is.
type definition struct {
	Memory portlayer.Bytes  `json:"memory"`
	CPUs   int              `json:"cpus"`
	Disks  []portlayer.Disk `json:"disks"` // own ones have a Size
}

// Machine implements portlayer.Machine.
type Machine struct {
	h    *Hypervisor
	id   portlayer.ContainerID
	slot *slot
}

func checkID(id portlayer.ContainerID) error {
	if !idRule.MatchString(string(id)) {
		return fault.New(fault.Invalid, "machine id %q has characters that are not letters, digits, dots, dashes or underscores", id)
	}
	return nil
}

func (s *site) machineDir(id portlayer.ContainerID) string { return filepath.Join(s.dir, string(id)) }

func (s *site) definition(id portlayer.ContainerID) string {
	return filepath.Join(s.machineDir(id), "machine.json")
}

// ownDisk is where a machine's own disk is.
func (s *site) ownDisk(id portlayer.ContainerID, serial string) portlayer.DiskPath {
	return portlayer.DiskPath(filepath.Join(s.machineDir(id), serial+".vmdk"))
}

// load reads a machine's definition.
func (s *site) load(id portlayer.ContainerID) (d definition, err error) {
	data, err := os.ReadFile(s.definition(id))
	if errors.Is(err, fs.ErrNotExist) {
		return d, fault.New(fault.NotFound, "no machine %s", id)
	}
	if err != nil {
		return d, err
	}
	if err := json.Unmarshal(data, &d); err != nil {
		return d, fault.New(fault.Conflict, "the definition of machine %s cannot be read: %w", id, err)
	}
	return d, nil
}

// store makes the own disks that d names and old does not, writes d, and deletes own disks that d does not name any more. After an error the definition is as
// before, unless only such a delete failed: what it left goes with the machine.
func (s *site) store(ctx context.Context, id portlayer.ContainerID, d, old definition) (err error) {
	var made []portlayer.DiskPath
	defer func() {
		if err != nil {
			for _, p := range made {
				err = errors.Join(err, Disks{}.Delete(context.WithoutCancel(ctx), p))
			}
		}
	}()
	for _, disk := range d.Disks {
		if disk.File != "" || old.owns(disk.Serial) {
			continue
		}
		p := s.ownDisk(id, disk.Serial)
		// What a define that was cut off left is nobody's.
		if err := (Disks{}).Delete(ctx, p); err != nil {
			return err
		}
		if err := createDisk(p, disk.Size, ""); err != nil {
			return err
		}
		made = append(made, p)
	}
	data, err := json.Marshal(d)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(s.definition(id), data, 0o600); err != nil {
		return err
	}
	made = nil
	for _, disk := range old.Disks {
		if disk.File == "" && !d.owns(disk.Serial) {
			if err := (Disks{}).Delete(ctx, s.ownDisk(id, disk.Serial)); err != nil {
				return err
			}
		}
	}
	return nil
}

// owns says whether the machine made the disk with this serial itself.
func (d definition) owns(serial string) bool {
	return slices.ContainsFunc(d.Disks, func(k portlayer.Disk) bool { return k.Serial == serial && k.File == "" })
}

// Define is portlayer.Hypervisor.Define.
func (h *Hypervisor) Define(ctx context.Context, spec portlayer.MachineSpec) (portlayer.Machine, error) {
	m, err := h.define(ctx, spec)
	if err != nil {
		return nil, fault.Wrap("define machine", string(spec.ID), err)
	}
	return m, nil
}

func (h *Hypervisor) define(ctx context.Context, spec portlayer.MachineSpec) (_ *Machine, err error) {
	if err := checkID(spec.ID); err != nil {
		return nil, err
	}
	if len(spec.Shares) > 0 {
		return nil, fault.New(fault.Unsupported, "a simulated machine shares nothing with its host")
	}
	if spec.Memory <= 0 || spec.CPUs < 1 {
		return nil, fault.New(fault.Invalid, "a machine needs memory and at least one processor; %d bytes and %d were asked for", spec.Memory, spec.CPUs)
	}
	d := definition{Memory: spec.Memory, CPUs: spec.CPUs}
	if d.Disks, err = portlayer.ApplyChanges(nil, spec.Devices); err != nil {
		return nil, err
	}
	m := &Machine{h: h, id: spec.ID, slot: h.site.slot(spec.ID)}
	back, err := m.slot.take(ctx)
	if err != nil {
		return nil, err
	}
	defer back()
	if m.slot.running() != nil {
		return nil, fault.New(fault.Conflict, "the machine is on")
	}
	old, err := h.site.load(spec.ID)
	fresh := fault.Is(err, fault.NotFound)
	if err != nil && !fresh {
		return nil, err
	}
	dir := h.site.machineDir(spec.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := h.site.store(ctx, spec.ID, d, old); err != nil {
		if fresh {
			err = errors.Join(err, os.RemoveAll(dir))
		}
		return nil, err
	}
	return m, nil
}

// ID is portlayer.Machine.ID.
func (m *Machine) ID() portlayer.ContainerID { return m.id }

// Size is portlayer.Machine.Size.
func (m *Machine) Size(context.Context) (portlayer.Bytes, int, error) {
	d, err := m.h.site.load(m.id)
	return d.Memory, d.CPUs, err
}

// Disks is portlayer.Machine.Disks.
func (m *Machine) Disks(context.Context) ([]portlayer.Disk, error) {
	d, err := m.h.site.load(m.id)
	return d.Disks, err
}

// Reconfigure is portlayer.Machine.Reconfigure.
func (m *Machine) Reconfigure(ctx context.Context, changes []portlayer.DeviceChange) error {
	return fault.Wrap("reconfigure machine", string(m.id), m.reconfigure(ctx, changes))
}

func (m *Machine) reconfigure(ctx context.Context, changes []portlayer.DeviceChange) error {
	back, err := m.slot.take(ctx)
	if err != nil {
		return err
	}
	defer back()
	old, err := m.h.site.load(m.id)
	if err != nil {
		return err
	}
	d := old
	if d.Disks, err = portlayer.ApplyChanges(old.Disks, changes); err != nil {
		return err
	}
	if r := m.slot.running(); r != nil {
		return r.replug(ctx, old.Disks, changes, func() error { return m.h.site.store(ctx, m.id, d, old) })
	}
	return m.h.site.store(ctx, m.id, d, old)
}

// PowerOn is portlayer.Machine.PowerOn.
func (m *Machine) PowerOn(ctx context.Context) error {
	return fault.Wrap("power on machine", string(m.id), m.powerOn(ctx))
}

func (m *Machine) powerOn(ctx context.Context) error {
	back, err := m.slot.take(ctx)
	if err != nil {
		return err
	}
	defer back()
	if m.slot.running() != nil {
		return nil
	}
	d, err := m.h.site.load(m.id)
	if err != nil {
		return err
	}
	for i, disk := range d.Disks {
		if disk.File == "" {
			d.Disks[i].File = m.h.site.ownDisk(m.id, disk.Serial)
		}
		if _, err := (Disks{}).Stat(ctx, d.Disks[i].File); err != nil {
			return err
		}
	}
	if err := m.h.site.world.acquire(m.id, d.Disks); err != nil {
		return err
	}
	r := boot(m.h.site.world, m.id, m.slot, d)
	m.slot.mu.Lock()
	m.slot.run, m.slot.end = r, ""
	m.slot.mu.Unlock()
	go r.live() // until stop; whoever powers off waits for it
	return nil
}

// PowerOff is portlayer.Machine.PowerOff.
func (m *Machine) PowerOff(ctx context.Context) error {
	back, err := m.slot.take(ctx)
	if err != nil {
		return fault.Wrap("power off machine", string(m.id), err)
	}
	defer back()
	return fault.Wrap("power off machine", string(m.id), m.off(ctx))
}

// off ends the machine and waits for its end. The caller has the turn.
func (m *Machine) off(ctx context.Context) error {
	if r := m.slot.running(); r != nil {
		r.stop("switched off by the host")
	}
	return m.WaitOff(ctx)
}

// State is portlayer.Machine.State.
func (m *Machine) State(context.Context) (portlayer.PowerState, error) {
	if m.slot.running() != nil {
		return portlayer.PoweredOn, nil
	}
	if _, err := m.h.site.load(m.id); err != nil {
		return "", err
	}
	return portlayer.PoweredOff, nil
}

// Written is portlayer.Machine.Written: the lengths of the lists in its own disks.
func (m *Machine) Written(context.Context) (portlayer.Bytes, error) {
	d, err := m.h.site.load(m.id)
	if err != nil {
		return 0, err
	}
	var sum portlayer.Bytes
	for _, disk := range d.Disks {
		if disk.File == "" {
			n, err := listLength(extentPath(string(m.h.site.ownDisk(m.id, disk.Serial))))
			if err != nil {
				return 0, err
			}
			sum += n
		}
	}
	return sum, nil
}

// Channel is portlayer.Machine.Channel.
func (m *Machine) Channel(context.Context) (net.Conn, error) {
	r := m.slot.running()
	if r == nil {
		return nil, fault.New(fault.Conflict, "machine %s is off", m.id)
	}
	return r.connect(m.h.ctx)
}

// WaitOff is portlayer.Machine.WaitOff.
func (m *Machine) WaitOff(ctx context.Context) error {
	r := m.slot.running()
	if r == nil {
		return nil
	}
	select {
	case <-r.off:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Carries is portlayer.Machine.Carries: a config comes by the guest channel.
func (m *Machine) Carries() bool { return false }

// Seats is portlayer.Machine.Seats: there are none.
func (m *Machine) Seats() map[string]guest.Seat { return nil }

// Pid is portlayer.Machine.Pid: this process is the machine.
func (m *Machine) Pid() int {
	if m.slot.running() == nil {
		return 0
	}
	return os.Getpid()
}

// Diagnosis is portlayer.Machine.Diagnosis.
func (m *Machine) Diagnosis() string {
	m.slot.mu.Lock()
	defer m.slot.mu.Unlock()
	return m.slot.end
}

// Undefine is portlayer.Machine.Undefine.
func (m *Machine) Undefine(ctx context.Context) error {
	return fault.Wrap("undefine machine", string(m.id), m.undefine(ctx))
}

func (m *Machine) undefine(ctx context.Context) error {
	back, err := m.slot.take(ctx)
	if err != nil {
		return err
	}
	defer back()
	if err := m.off(ctx); err != nil {
		return err
	}
	return Disks{}.RemoveDir(ctx, portlayer.DiskPath(m.h.site.machineDir(m.id)))
}
