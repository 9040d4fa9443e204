package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/atomicfile"
	"vch/internal/ext4"
	"vch/internal/fault"
	"vch/internal/vmdkfile"
	"vch/portlayer"
)

// definitionFile is a machine's definition: while it is there, the machine is.
const definitionFile = "machine.json"

// definition is what definitionFile holds.
type definition struct {
	Memory portlayer.Bytes  `json:"memory"`
	CPUs   int              `json:"cpus"`
	Disks  []portlayer.Disk `json:"disks"`
	New    portlayer.Bytes  `json:"new"` // what the own disks took of the host when they were made

	Shares []portlayer.Share `json:"shares,omitempty"`

	NextLUN int `json:"next_lun,omitempty"` // where the next disk that is plugged into the running machine looks for a unit first
}

// machine implements portlayer.Machine.
type machine struct {
	h  *Hypervisor
	id portlayer.ContainerID
}

// ID is portlayer.Machine.ID.
func (m *machine) ID() portlayer.ContainerID { return m.id }

func (m *machine) dir() string { return m.h.dir(m.id) }

// maxDisks is what one virtio-scsi target addresses here, well below its 256 logical units (virtio 1.1, 5.6).
const maxDisks = 200

// apply gives the disks that changes leave of disks.
func apply(disks []portlayer.Disk, changes []portlayer.DeviceChange) ([]portlayer.Disk, error) {
	out, err := portlayer.ApplyChanges(disks, changes)
	if err == nil && len(out) > maxDisks {
		return nil, fault.New(fault.Invalid, "a machine has at most %d disks, and this one would have %d", maxDisks, len(out))
	}
	return out, err
}

// Define is portlayer.Hypervisor.Define.
func (h *Hypervisor) Define(ctx context.Context, spec portlayer.MachineSpec) (portlayer.Machine, error) {
	if !idRule.MatchString(string(spec.ID)) || len(spec.ID) > 128 {
		return nil, fault.New(fault.Invalid, "%q cannot be a machine's id", spec.ID)
	}
	if err := possible(spec.Memory, spec.CPUs); err != nil {
		return nil, err
	}
	disks, err := apply(nil, spec.Devices)
	if err != nil {
		return nil, err
	}
	l := h.lock(spec.ID)
	defer l.Unlock()
	m := &machine{h: h, id: spec.ID}
	if m.process() != nil {
		return nil, fault.New(fault.Conflict, "machine %s is on", spec.ID)
	}
	was, err := m.definition()
	known := err == nil
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	def := definition{Memory: spec.Memory, CPUs: spec.CPUs, Disks: disks, Shares: spec.Shares}
	if known {
		err = m.define(ctx, def, was)
	} else {
		err = m.defineNew(ctx, def)
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}

// possible says whether there can be a machine with so much.
func possible(memory portlayer.Bytes, cpus int) error {
	if cpus < 1 || memory < 16*portlayer.MiB {
		return fault.New(fault.Invalid, "a machine has at least one processor and 16 MiB of memory")
	}
	return nil
}

// defineNew makes the directory of a machine that is not there, with its own disks and its definition.
func (m *machine) defineNew(ctx context.Context, def definition) error {
	if err := m.h.disks.RemoveDir(ctx, portlayer.DiskPath(m.dir())); err != nil { // of an undefined machine, whose files did not all go
		return err
	}
	err := m.h.disks.makeDir(m.dir(), func(in *atomicfile.Dir) error {
		for _, d := range def.Disks {
			if d.File != "" {
				continue
			}
			f, err := in.Create(filepath.Base(m.ownDisk(d)))
			if err != nil {
				return err
			}
			if err := m.h.disks.formatFile(ctx, f, ext4.Shape{Size: int64(d.Size)}, "", ""); err != nil {
				return err
			}
			if err := atomicfile.BeginSync(f); err != nil { // only now is it known what it takes
				return err
			}
			taken, err := allocated(f.Name())
			if err != nil {
				return err
			}
			def.New += taken
		}
		text, err := json.Marshal(def)
		if err != nil {
			return err
		}
		return in.Write(definitionFile, text)
	})
	return noRoom(kindOf(err), filepath.Dir(m.dir()))
}

// define makes the own disks that def has and was has not, writes it, and deletes the own disks that are no more.
func (m *machine) define(ctx context.Context, def, was definition) error {
	for _, d := range def.Disks {
		if d.File != "" {
			continue
		}
		file := m.ownDisk(d)
		if _, err := os.Stat(file); err == nil && owns(was, d.Serial) {
			def.New = was.New
			continue // its content stays
		}
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) { // an interrupted Define's
			return kindOf(err)
		}
		if err := m.h.disks.format(ctx, file, d.Size, "", "", ""); err != nil {
			return noRoom(err, m.dir())
		}
		taken, err := allocated(file)
		if err != nil {
			return err
		}
		def.New += taken
	}
	if !reflect.DeepEqual(def, was) { // a start defines what is there already
		if err := m.write(def); err != nil {
			return err
		}
	}
	for _, d := range was.Disks {
		if d.File == "" && !owns(def, d.Serial) {
			if err := os.Remove(m.ownDisk(d)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return kindOf(err)
			}
		}
	}
	return nil
}

func owns(def definition, serial string) bool {
	for _, d := range def.Disks {
		if d.Serial == serial && d.File == "" {
			return true
		}
	}
	return false
}

// ownDisk is the file of a disk that the machine made for itself: raw, nobody else reads it.
func (m *machine) ownDisk(d portlayer.Disk) string { return filepath.Join(m.dir(), d.Serial+".img") }

func (m *machine) definition() (def definition, err error) {
	text, err := readSmall(filepath.Join(m.dir(), definitionFile))
	if errors.Is(err, os.ErrNotExist) {
		return def, fault.New(fault.NotFound, "no machine %q", m.id)
	}
	if err != nil {
		return def, kindOf(err)
	}
	if err := json.Unmarshal(text, &def); err != nil {
		return def, fault.New(fault.Conflict, "the definition of machine %s is damaged: %w", m.id, err)
	}
	return def, nil
}

// Size is portlayer.Machine.Size.
func (m *machine) Size(context.Context) (portlayer.Bytes, int, error) {
	def, err := m.definition()
	return def.Memory, def.CPUs, err
}

// Disks is portlayer.Machine.Disks.
func (m *machine) Disks(context.Context) ([]portlayer.Disk, error) {
	def, err := m.definition()
	return def.Disks, err
}

// Reconfigure is portlayer.Machine.Reconfigure.
func (m *machine) Reconfigure(ctx context.Context, changes []portlayer.DeviceChange) error {
	l := m.h.lock(m.id)
	defer l.Unlock()
	was, err := m.definition()
	if err != nil {
		return err
	}
	def := was
	if def.Disks, err = apply(was.Disks, changes); err != nil {
		return err
	}
	p := m.process()
	if p == nil {
		return m.define(ctx, def, was)
	}
	if err := unchangeable(changes); err != nil {
		return err
	}
	return m.replug(ctx, p, def, was)
}

// PowerOn is portlayer.Machine.PowerOn.
func (m *machine) PowerOn(ctx context.Context) error {
	l := m.h.lock(m.id)
	defer l.Unlock()
	def, err := m.definition()
	if err != nil {
		return err
	}
	if m.process() != nil {
		return nil
	}
	s := m.h.shape(def)
	s.name, s.shares = processName(string(m.id)), def.Shares
	seats := takeSeats(def.Disks)
	for _, d := range def.Disks {
		v, err := m.drive(d)
		if err != nil {
			return err
		}
		v.seat = seats[d.Serial]
		s.drives = append(s.drives, v)
	}
	p, err := m.come(ctx, s)
	if err != nil {
		return err
	}
	m.h.mu.Lock()
	m.h.running[m.id] = p
	m.h.mu.Unlock()
	return nil
}

// shape is the machine of a definition, without its disks.
func (h *Hypervisor) shape(def definition) shape {
	s := shape{accel: h.info.Accel, qemu: h.info.Version, memory: class(def.Memory), cpus: def.CPUs, append: h.cmdline}
	s.key = h.key(s)
	return s
}

// come makes the machine run: as a fork from the pool, as a new fork, or, where there is no template, by a boot.
func (m *machine) come(ctx context.Context, s shape) (*process, error) {
	run := filepath.Join(m.dir(), runDir)
	if err := os.RemoveAll(run); err != nil { // of the last time
		return nil, kindOf(err)
	}
	if m.h.shelf != nil && len(s.shares) == 0 { // a fork's memory is its own view of the template's, and virtiofsd has to see it
		done := m.h.pool.begin()
		defer done()
		m.h.pool.expect(s)
		for _, fork := range []func(context.Context, string, shape) (*process, error){m.h.pooled, m.h.forked} {
			p, err := fork(ctx, run, s)
			if p != nil || err != nil {
				return p, err
			}
			if err := os.RemoveAll(run); err != nil {
				return nil, kindOf(err)
			}
		}
	}
	if err := os.Mkdir(run, 0o700); err != nil {
		return nil, noRoom(kindOf(err), m.dir())
	}
	p, q, err := m.h.launch(ctx, run, s, nil)
	if err != nil {
		return nil, err
	}
	q.Close()
	return p, nil
}

// drive finds the file of a disk. The unit is the caller's to say.
func (m *machine) drive(d portlayer.Disk) (v drive, err error) {
	v = drive{serial: d.Serial, file: m.ownDisk(d), size: d.Size, readOnly: d.ReadOnly, throttle: d.Throttle}
	if d.File != "" {
		var info portlayer.DiskInfo
		v.file, info, err = locate(string(d.File))
		v.size = info.Size
	} else if _, serr := os.Stat(v.file); serr != nil {
		err = fault.As(fault.NotFound, serr)
	}
	return v, err
}

// process is the machine's running process, or nil.
func (m *machine) process() *process {
	p := m.last()
	if p == nil {
		return nil
	}
	select {
	case <-p.ended:
		return nil
	default:
		return p
	}
}

// last is the machine's running process, or the one that ran last.
func (m *machine) last() *process {
	m.h.mu.Lock()
	defer m.h.mu.Unlock()
	return m.h.running[m.id]
}

// Carries is portlayer.Machine.Carries: a config comes by the guest channel.
func (m *machine) Carries() bool { return false }

// Seats is portlayer.Machine.Seats.
func (m *machine) Seats() map[string]guest.Seat {
	if p := m.process(); p != nil {
		return p.seats
	}
	return nil
}

// PowerOff is portlayer.Machine.PowerOff.
func (m *machine) PowerOff(ctx context.Context) error {
	l := m.h.lock(m.id)
	defer l.Unlock()
	return m.powerOff(ctx)
}

func (m *machine) powerOff(ctx context.Context) error {
	p := m.process()
	if p == nil {
		return nil
	}
	p.kill()
	select {
	case <-p.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// State is portlayer.Machine.State.
func (m *machine) State(context.Context) (portlayer.PowerState, error) {
	if m.process() != nil {
		return portlayer.PoweredOn, nil
	}
	if _, err := m.definition(); err != nil {
		return portlayer.PoweredOff, err
	}
	return portlayer.PoweredOff, nil
}

// Channel is portlayer.Machine.Channel.
func (m *machine) Channel(ctx context.Context) (net.Conn, error) {
	p := m.process()
	if p == nil {
		return nil, fault.New(fault.Unavailable, "machine %s is off", m.id)
	}
	return p.connect(ctx)
}

// Frames is portlayer.Machine.Frames.
func (m *machine) Frames(ctx context.Context) (net.Conn, error) {
	p := m.process()
	if p == nil {
		return nil, fault.New(fault.Unavailable, "machine %s is off", m.id)
	}
	return p.frames(ctx)
}

// WaitOff is portlayer.Machine.WaitOff.
func (m *machine) WaitOff(ctx context.Context) error {
	p := m.process()
	if p == nil {
		return nil
	}
	select {
	case <-p.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-m.h.closing:
		return fault.New(fault.Unavailable, "the hypervisor was closed")
	}
}

// Pid is portlayer.Machine.Pid.
func (m *machine) Pid() int {
	if p := m.process(); p != nil {
		return p.pid
	}
	return 0
}

// diagnosisLines bounds how much of a guest's console an error shows.
const diagnosisLines = 6

// Diagnosis is portlayer.Machine.Diagnosis.
func (m *machine) Diagnosis() string {
	var parts []string
	if p := m.last(); p != nil {
		if said := p.words(); said != "" {
			parts = append(parts, "QEMU: "+said)
		}
		p.mu.Lock()
		lines := p.console.lines(diagnosisLines)
		p.mu.Unlock()
		if len(lines) > 0 {
			parts = append(parts, "console: "+strings.Join(lines, " | "))
		}
	}
	return strings.Join(parts, "; ")
}

// Written is portlayer.Machine.Written.
func (m *machine) Written(context.Context) (portlayer.Bytes, error) {
	def, err := m.definition()
	if err != nil {
		return 0, err
	}
	var now portlayer.Bytes
	for _, d := range def.Disks {
		if d.File == "" {
			taken, err := allocated(m.ownDisk(d))
			if err != nil {
				return 0, err
			}
			now += taken
		}
	}
	return max(0, now-def.New), nil
}

// allocated is what a file takes of its medium.
func allocated(file string) (portlayer.Bytes, error) {
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return 0, kindOf(err)
	}
	return portlayer.Bytes(st.Blocks * vmdkfile.Sector), nil
}

// Undefine is portlayer.Machine.Undefine.
func (m *machine) Undefine(ctx context.Context) error {
	l := m.h.lock(m.id)
	defer l.Unlock()
	if err := m.powerOff(ctx); err != nil {
		return err
	}
	if err := m.h.disks.RemoveDir(ctx, portlayer.DiskPath(m.dir())); err != nil {
		return err
	}
	m.h.mu.Lock()
	delete(m.h.running, m.id)
	m.h.mu.Unlock()
	return nil
}
