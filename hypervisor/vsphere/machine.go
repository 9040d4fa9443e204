package vsphere

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"vch/guest"
	"vch/internal/fault"
	"vch/internal/pause"
	"vch/portlayer"
)

// Keys of the extra configuration that say what the guest was told.
const (
	tokenKey = "vch.token"  // hash of the token in the contact
	meetKey  = "vch.meet"   // hash of what else the contact says
	carryKey = "vch.config" // hash of the config that the machine carries
)

// Machine implements portlayer.Machine.
type Machine struct {
	h   *Hypervisor
	id  portlayer.ContainerID
	ref types.ManagedObjectReference
}

// ID is portlayer.Machine.ID.
func (m *Machine) ID() portlayer.ContainerID { return m.id }

// state is what is known of the machine. NotFound if it is gone.
func (m *Machine) state() (*vmState, error) {
	vm := m.h.watch.get(m.ref)
	if vm == nil {
		return nil, fault.New(fault.NotFound, "no machine %s", m.id)
	}
	if vm.connect != types.VirtualMachineConnectionStateConnected && vm.connect != "" {
		return vm, unreadable(vm)
	}
	return vm, nil
}

// unreadable is the error of a machine of which vCenter can tell nothing.
func unreadable(vm *vmState) error {
	return fault.New(fault.Unavailable, "machine %s is %s: vCenter cannot reach its host or its files", vm.name, cmp.Or(string(vm.connect), "not to be read"))
}

// Define is portlayer.Hypervisor.Define.
func (h *Hypervisor) Define(ctx context.Context, spec portlayer.MachineSpec) (portlayer.Machine, error) {
	m, err := h.define(ctx, spec)
	if err != nil {
		return nil, fault.Wrap("define machine", string(spec.ID), err)
	}
	return m, nil
}

func (h *Hypervisor) define(ctx context.Context, spec portlayer.MachineSpec) (*Machine, error) {
	if err := checkID(spec.ID); err != nil {
		return nil, err
	}
	if len(spec.Shares) > 0 {
		return nil, fault.New(fault.Unsupported, "a machine on vSphere shares no directory of a host: use a volume")
	}
	if spec.Memory <= 0 || spec.CPUs < 1 {
		return nil, fault.New(fault.Invalid, "a machine needs memory and at least one processor; %d bytes and %d were asked for", spec.Memory, spec.CPUs)
	}
	disks, err := portlayer.ApplyChanges(nil, spec.Devices)
	if err != nil {
		return nil, err
	}
	back, err := h.turns.Lock(ctx, spec.ID)
	if err != nil {
		return nil, err
	}
	defer back()
	if err := h.watch.classify(ctx); err != nil {
		return nil, err
	}
	vm := h.watch.find(spec.ID)
	if hidden := h.watch.unread(spec.ID); hidden != nil {
		return nil, unreadable(hidden)
	}
	boot, err := h.bootDisc(ctx)
	if err != nil {
		return nil, err
	}
	wanted := func(old definition) (definition, error) {
		def, err := old.with(disks)
		def.ID, def.VCH, def.Memory, def.CPUs, def.Boot = spec.ID, h.o.VCH, spec.Memory, spec.CPUs, boot.String()
		return def, err
	}
	var old definition
	if vm != nil {
		old = vm.def
	}
	def, err := wanted(old)
	if err != nil {
		return nil, err
	}
	if vm == nil {
		return h.create(ctx, spec, def)
	}
	m := &Machine{h, spec.ID, vm.ref}
	if vm, err = m.state(); err != nil {
		return nil, err
	}
	if vm.on() {
		return nil, fault.New(fault.Conflict, "the machine is on")
	}
	var probe types.VirtualMachineConfigSpec
	carried, err := carry(&probe, vm.extra, spec.Config)
	if err != nil {
		return nil, err
	}
	if def.same(vm.def) && !carried {
		return m, nil
	}
	return m, m.change(ctx, func(vm *vmState, change *types.VirtualMachineConfigSpec) (definition, error) {
		def, err := wanted(vm.def)
		if err != nil {
			return def, err
		}
		def.changeFrom(vm.def, vm.devices, change)
		if _, err := carry(change, vm.extra, spec.Config); err != nil {
			return def, err
		}
		return def, m.invite(change, vm)
	})
}

// changeTries is how often a change is worked out anew that somebody else's has overtaken.
const changeTries = 3

// change reads the machine, has how say what to change, and changes that, if nobody else has changed it meanwhile: otherwise from the beginning.
func (m *Machine) change(ctx context.Context, how func(vm *vmState, spec *types.VirtualMachineConfigSpec) (definition, error)) error {
	for n := 1; ; n++ {
		read, err := m.h.watch.detail(ctx, m.ref)
		if err != nil {
			return err
		}
		vm := read[m.ref]
		if vm != nil && !vm.known {
			return unreadable(vm)
		}
		if vm == nil || vm.id != m.id {
			return fault.New(fault.NotFound, "no machine %s", m.id)
		}
		var spec types.VirtualMachineConfigSpec
		def, err := how(vm, &spec)
		if err != nil {
			return err
		}
		if len(spec.DeviceChange) == 0 && len(spec.ExtraConfig) == 0 && spec.MemoryMB == 0 && spec.NumCPUs == 0 {
			return nil
		}
		err = m.apply(ctx, vm, spec, def)
		if !fault.Is(err, fault.Conflict) || n == changeTries {
			return err
		}
	}
}

// carry puts a config into a machine's definition, or takes it out. It reports whether that is a change.
func carry(spec *types.VirtualMachineConfigSpec, have map[string]string, cfg guest.ExecutorConfig) (changed bool, err error) {
	text, hash := "", ""
	if cfg.ID != "" {
		if text, err = cfg.Carried().Pack(); err != nil {
			return false, err
		}
		hash = digest(text)
	}
	if have[carryKey] == hash {
		return false, nil
	}
	pieces := 0
	for ; len(text) > 0 || pieces == 0; pieces++ {
		n := min(len(text), configPiece)
		setExtra(spec, guest.ConfigKey(pieces), text[:n])
		text = text[n:]
	}
	setExtra(spec, guest.ConfigKey(pieces), "") // what a longer one had there
	setExtra(spec, carryKey, hash)
	return true, nil
}

// configPiece is how much of a config one entry holds, in bytes: a guest reads an entry in one message of at most 64 KiB (open-vm-tools, GUESTMSG_MAX_IN_SIZE).
const configPiece = 32 << 10

// invited says whether the machine's next guest finds in its definition where to call, and is let in.
func (m *Machine) invited(vm *vmState) (bool, error) {
	meet, err := m.meet()
	return err == nil && vm.extra[meetKey] == meet && m.h.endpoint.invited(m.id, vm.extra[tokenKey]), err
}

// contact is what a guest is to call with, all but what is of one boot only.
func (m *Machine) contact() guest.Contact {
	return guest.Contact{Address: m.h.o.Advertise, Host: guest.Fingerprint(m.h.endpoint.identity.Certificate[0]), Machine: string(m.id), Management: m.h.o.Management}
}

// meet is the contact's hash.
func (m *Machine) meet() (string, error) {
	text, err := json.Marshal(m.contact())
	return digest(string(text)), err
}

// invite puts a new contact into a machine's definition unless the one there is good.
func (m *Machine) invite(spec *types.VirtualMachineConfigSpec, vm *vmState) error {
	if vm != nil {
		if good, err := m.invited(vm); good || err != nil {
			return err
		}
	}
	meet, err := m.meet()
	if err != nil {
		return err
	}
	contact := m.contact()
	if contact.Token, err = m.h.endpoint.invite(m.id); err != nil {
		return err
	}
	contact.Entropy = make([]byte, 64)
	rand.Read(contact.Entropy) // never fails (crypto/rand)
	text, err := json.Marshal(contact)
	if err != nil {
		return err
	}
	setExtra(spec, guest.ContactKey, string(text))
	setExtra(spec, tokenKey, digest(contact.Token))
	setExtra(spec, meetKey, meet)
	return nil
}

// shortOf is what of a container's ID is in its machine's name.
func shortOf(id portlayer.ContainerID) string { return string(id[:min(len(id), 12)]) }

// nameOf is a machine's name in the inventory, which has at most 80 bytes there.
func nameOf(spec portlayer.MachineSpec) string {
	const most = 60
	short := shortOf(spec.ID)
	if spec.Name == "" {
		return short
	}
	name := strings.Map(func(r rune) rune {
		if strings.ContainsRune(`%/\`, r) { // what names in the inventory escape
			return '-'
		}
		return r
	}, spec.Name)
	return name[:min(len(name), most)] + "-" + short
}

// create makes a machine that is not there.
func (h *Hypervisor) create(ctx context.Context, spec portlayer.MachineSpec, def definition) (*Machine, error) {
	m := &Machine{h: h, id: spec.ID}
	before := h.watch.present()
	def.UUID = uuid.NewString()
	look := lookout{name: nameOf(spec), store: h.o.Datastore, network: h.network, extension: h.o.Extension,
		annotation: "container " + string(spec.ID) + " of the virtual container host " + h.o.Name + "; vch makes it, changes it and removes it"}
	change := def.create(look)
	if _, err := carry(&change, nil, spec.Config); err != nil {
		return nil, err
	}
	if err := m.invite(&change, nil); err != nil {
		return nil, err
	}
	lost := false // an answer was
	for n := 1; ; n++ {
		info, err := h.watch.task(ctx, func(ctx context.Context, c *vim25.Client) (types.ManagedObjectReference, error) {
			res, err := methods.CreateVM_Task(ctx, c, &types.CreateVM_Task{This: h.folder, Config: change, Pool: h.pool})
			if err != nil {
				return types.ManagedObjectReference{}, err
			}
			return res.Returnval, nil
		}, nil)
		if err == nil {
			m.ref = info.Result.(types.ManagedObjectReference)
			break
		}
		// Where no answer came, or a name is taken after that, it may be there all the same.
		if lost = lost || unreached(err); lost {
			limit := madeLimit
			if !unreached(err) {
				limit = settleLimit
			}
			if vm := h.awaitMade(ctx, spec.ID, limit); vm != nil {
				m.ref = vm.ref
				break
			}
		}
		if isA(err, new(types.DuplicateName)) && !lost { // whose the name is, that was there before
			_ = h.endpoint.forget(m.id)
			return nil, translated(h.s.server.address(), err)
		}
		if !unreached(err) || n == callTries {
			return nil, h.unmade(ctx, m, before, m.why(ctx, translated(h.s.server.address(), err), def))
		}
		if err := pause.For(ctx, time.Duration(n)*backoff); err != nil {
			return nil, h.unmade(ctx, m, before, err)
		}
	}
	h.watch.put(m.ref, func(vm *vmState) {
		vm.known, vm.id, vm.def, vm.extra = true, def.ID, def, extraOf(change)
		if vm.name == "" { // the server's word has not come yet
			vm.name, vm.power, vm.connect = change.Name, types.VirtualMachinePowerStatePoweredOff, types.VirtualMachineConnectionStateConnected
		}
	})
	return m, nil
}

// unmade takes back what a create that failed has left, and gives its error. A machine that was there before is not what it has left.
func (h *Hypervisor) unmade(ctx context.Context, m *Machine, before map[types.ManagedObjectReference]bool, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelLimit)
	defer cancel()
	_ = h.watch.classify(ctx) // what is not known then is found by whoever looks for what is nobody's
	if vm := h.watch.find(m.id); vm != nil && !before[vm.ref] {
		m.ref = vm.ref
		_ = m.destroy(ctx)
	}
	_ = h.endpoint.forget(m.id)
	return err
}

// settleLimit is how long the server may take to tell of a change that it has made.
const settleLimit = time.Minute

// madeLimit is how long a machine may take to appear of whose making no answer came.
const madeLimit = 3 * time.Second

// awaitMade waits a while for a machine to appear of which nobody has heard.
func (h *Hypervisor) awaitMade(ctx context.Context, id portlayer.ContainerID, limit time.Duration) *vmState {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for h.watch.classify(ctx) == nil {
		if vm := h.watch.find(id); vm != nil {
			return vm
		}
		if h.watch.await(ctx, h.watch.anyUnknown) != nil || pause.For(ctx, backoff) != nil { // one that is unknown may stay so for long
			break
		}
	}
	return h.watch.find(id)
}

// extraOf is what of a specification's extra configuration the watcher would see.
func extraOf(spec types.VirtualMachineConfigSpec) map[string]string {
	extra := map[string]string{}
	for _, o := range spec.ExtraConfig {
		if v := o.GetOptionValue(); ours(v.Key) {
			extra[v.Key], _ = v.Value.(string)
		}
	}
	return extra
}

// apply reconfigures a machine as it was read, to def.
func (m *Machine) apply(ctx context.Context, vm *vmState, spec types.VirtualMachineConfigSpec, def definition) error {
	spec.ChangeVersion = vm.version
	err := m.h.disks.change(ctx, func(ctx context.Context, c *vim25.Client) (types.ManagedObjectReference, error) {
		res, err := methods.ReconfigVM_Task(ctx, c, &types.ReconfigVM_Task{This: m.ref, Spec: spec})
		if err != nil {
			return types.ManagedObjectReference{}, err
		}
		return res.Returnval, nil
	}, func(err error) bool { return isA(err, new(types.ConcurrentAccess)) && m.has(ctx, spec) })
	if err != nil { // it may have been done all the same: who wants to know reads it again
		m.h.watch.renew(m.ref, func(now *vmState) { now.known = false })
		return err
	}
	m.h.watch.renew(m.ref, func(now *vmState) {
		now.def = def
		now.extra = maps.Clone(now.extra)
		maps.Copy(now.extra, extraOf(spec))
	})
	return nil
}

// has says whether a machine has come to be what a reconfiguration was to make of it, of which no answer came: its definition is what was to be written.
func (m *Machine) has(ctx context.Context, spec types.VirtualMachineConfigSpec) bool {
	read, err := m.h.watch.detail(ctx, m.ref)
	if err != nil || read[m.ref] == nil {
		return false
	}
	for key, value := range extraOf(spec) {
		if read[m.ref].extra[key] != value {
			return false
		}
	}
	return true
}

// Size is portlayer.Machine.Size.
func (m *Machine) Size(context.Context) (portlayer.Bytes, int, error) {
	vm, err := m.state()
	if err != nil {
		return 0, 0, err
	}
	return vm.def.Memory, vm.def.CPUs, nil
}

// Disks is portlayer.Machine.Disks.
func (m *Machine) Disks(context.Context) ([]portlayer.Disk, error) {
	vm, err := m.state()
	if err != nil {
		return nil, err
	}
	return vm.def.disks(), nil
}

// Seats is portlayer.Machine.Seats.
func (m *Machine) Seats() map[string]guest.Seat {
	if vm := m.h.watch.get(m.ref); vm != nil {
		return vm.def.seats()
	}
	return nil
}

// Carries is portlayer.Machine.Carries.
func (m *Machine) Carries() bool {
	vm := m.h.watch.get(m.ref)
	return vm != nil && vm.extra[carryKey] != ""
}

// Reconfigure is portlayer.Machine.Reconfigure.
func (m *Machine) Reconfigure(ctx context.Context, changes []portlayer.DeviceChange) error {
	return fault.Wrap("reconfigure machine", string(m.id), m.reconfigure(ctx, changes))
}

func (m *Machine) reconfigure(ctx context.Context, changes []portlayer.DeviceChange) error {
	back, err := m.h.turns.Lock(ctx, m.id)
	if err != nil {
		return err
	}
	defer back()
	vm, err := m.state()
	if err != nil {
		return err
	}
	if len(changes) == 0 {
		return nil
	}
	on := vm.on()
	if _, err := portlayer.ApplyChanges(vm.def.disks(), changes); err != nil {
		return err
	}
	if on {
		if err := pluggable(vm.def, changes); err != nil {
			return err
		}
		for _, c := range changes { // a server may find out late, and says less
			if c.Op == portlayer.Add {
				if _, err := m.h.disks.Stat(ctx, c.Disk.File); err != nil {
					return err
				}
			}
		}
	}
	var wanted definition
	err = m.change(ctx, func(vm *vmState, spec *types.VirtualMachineConfigSpec) (definition, error) {
		disks, err := portlayer.ApplyChanges(vm.def.disks(), changes)
		if err != nil {
			return vm.def, err
		}
		if wanted, err = vm.def.with(disks); err != nil {
			return vm.def, err
		}
		wanted.changeFrom(vm.def, vm.devices, spec)
		return wanted, nil
	})
	return m.held(err, wanted)
}

// pluggable refuses what a machine that is on cannot do.
func pluggable(def definition, changes []portlayer.DeviceChange) error {
	seen := map[string]bool{}
	for _, c := range changes {
		switch {
		case seen[c.Disk.Serial]:
			return fault.New(fault.Unsupported, "disk %s is removed and added in one step, which a machine that is on cannot do", c.Disk.Serial)
		case c.Op == portlayer.Add && c.Disk.File == "", c.Op == portlayer.Remove && def.owns(c.Disk.Serial):
			return fault.New(fault.Unsupported, "disk %s is the machine's own: it comes and goes only while the machine is off", c.Disk.Serial)
		}
		seen[c.Disk.Serial] = true
	}
	return nil
}

// held names the machine of this VCH that has a disk open, in an error that says that one is.
func (m *Machine) held(err error, def definition) error {
	if !fault.Is(err, fault.InUse) {
		return err
	}
	for _, p := range def.Disks {
		path, perr := parsePath(p.File)
		if perr != nil || p.File == "" {
			continue
		}
		if vm := m.h.disks.holder(path); vm != nil && vm.ref != m.ref {
			return fault.New(fault.InUse, "machine %s has disk %s open: %w", vm.name, p.File, err)
		}
	}
	return err
}

// Grown is portlayer.Machine.Grown: Disks.Grow has told the machine.
func (m *Machine) Grown(_ context.Context, serial string) error {
	vm, err := m.state()
	if err != nil {
		return err
	}
	if vm.on() && !slices.ContainsFunc(vm.def.Disks, func(p place) bool { return p.Serial == serial }) {
		return fault.New(fault.NotFound, "the machine has no disk with serial %s", serial)
	}
	return nil
}

// power starts a task of a machine's power; one that finds the machine as it should be is done.
func (m *Machine) power(ctx context.Context, start func(ctx context.Context, c *vim25.Client) (types.ManagedObjectReference, error), reached func(*vmState) bool) error {
	for n := 1; ; n++ {
		_, err := m.h.watch.unhurried(ctx, start)
		switch {
		case err == nil, isA(err, new(types.InvalidPowerState)):
			ctx, cancel := context.WithTimeout(ctx, settleLimit)
			defer cancel()
			there := false
			err := m.h.watch.await(ctx, func() bool {
				vm := m.h.watch.vms[m.ref]
				there = vm != nil
				return !there || reached(vm)
			})
			if err == nil && !there {
				return fault.New(fault.NotFound, "no machine %s", m.id)
			}
			return err
		case isA(err, new(types.ManagedObjectNotFound)):
			return fault.New(fault.NotFound, "no machine %s", m.id)
		case !unreached(err) || n == callTries:
			return translated(m.h.s.server.address(), err)
		}
		if err := pause.For(ctx, time.Duration(n)*backoff); err != nil {
			return err
		}
	}
}

func (m *Machine) startTask(ctx context.Context, c *vim25.Client) (types.ManagedObjectReference, error) {
	res, err := methods.PowerOnVM_Task(ctx, c, &types.PowerOnVM_Task{This: m.ref})
	if err != nil {
		return types.ManagedObjectReference{}, err
	}
	return res.Returnval, nil
}

// PowerOn is portlayer.Machine.PowerOn.
func (m *Machine) PowerOn(ctx context.Context) error {
	return fault.Wrap("power on machine", string(m.id), m.powerOn(ctx))
}

func (m *Machine) powerOn(ctx context.Context) error {
	back, err := m.h.turns.Lock(ctx, m.id)
	if err != nil {
		return err
	}
	defer back()
	vm, err := m.state()
	if err != nil || vm.on() {
		return err
	}
	good, err := m.invited(vm)
	if err != nil {
		return err
	}
	if !good {
		if err := m.change(ctx, func(vm *vmState, spec *types.VirtualMachineConfigSpec) (definition, error) {
			return vm.def, m.invite(spec, vm)
		}); err != nil {
			return err
		}
	}
	defer m.h.starts(m.ref)()
	err = m.power(ctx, m.startTask, func(vm *vmState) bool { return vm.on() })
	return m.held(m.why(ctx, err, vm.def), vm.def)
}

// why is err, or what is wrong with a disk that vSphere says less of.
func (m *Machine) why(ctx context.Context, err error, def definition) error {
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Internal) || fault.Is(err, fault.Unavailable) || fault.Is(err, fault.Conflict) {
		if derr := m.whole(ctx, def); derr != nil {
			return derr
		}
	}
	return err
}

// whole looks for what is wrong with the disks that a machine did not make.
func (m *Machine) whole(ctx context.Context, def definition) error {
	for _, p := range def.Disks {
		if p.File == "" {
			continue
		}
		if _, err := m.h.disks.Stat(ctx, p.File); fault.Is(err, fault.NotFound) || fault.Is(err, fault.Conflict) {
			return err
		}
	}
	return nil
}

// PowerOff is portlayer.Machine.PowerOff.
func (m *Machine) PowerOff(ctx context.Context) error {
	back, err := m.h.turns.Lock(ctx, m.id)
	if err != nil {
		return fault.Wrap("power off machine", string(m.id), err)
	}
	defer back()
	return fault.Wrap("power off machine", string(m.id), m.off(ctx))
}

// off switches the machine off. The caller has the turn.
func (m *Machine) off(ctx context.Context) error {
	vm := m.h.watch.get(m.ref)
	if vm == nil || !vm.on() {
		return nil
	}
	err := m.power(ctx, func(ctx context.Context, c *vim25.Client) (types.ManagedObjectReference, error) {
		res, err := methods.PowerOffVM_Task(ctx, c, &types.PowerOffVM_Task{This: m.ref})
		if err != nil {
			return types.ManagedObjectReference{}, err
		}
		return res.Returnval, nil
	}, func(vm *vmState) bool { return !vm.on() })
	if fault.Is(err, fault.NotFound) { // somebody has removed it
		err = nil
	}
	if err == nil {
		m.h.endpoint.drop(m.id)
	}
	return err
}

// State is portlayer.Machine.State.
func (m *Machine) State(context.Context) (portlayer.PowerState, error) {
	vm, err := m.state()
	if err != nil {
		return "", err
	}
	if vm.on() {
		return portlayer.PoweredOn, nil
	}
	return portlayer.PoweredOff, nil
}

// Pause is portlayer.Machine.Pause: vSphere suspends the machine.
func (m *Machine) Pause(ctx context.Context) error {
	return fault.Wrap("pause machine", string(m.id), m.still(ctx, true))
}

// Resume is portlayer.Machine.Resume.
func (m *Machine) Resume(ctx context.Context) error {
	return fault.Wrap("resume machine", string(m.id), m.still(ctx, false))
}

func (m *Machine) still(ctx context.Context, still bool) error {
	back, err := m.h.turns.Lock(ctx, m.id)
	if err != nil {
		return err
	}
	defer back()
	vm, err := m.state()
	if err != nil {
		return err
	}
	suspended := vm.power == types.VirtualMachinePowerStateSuspended
	switch {
	case !vm.on():
		return fault.New(fault.Conflict, "the machine is off")
	case suspended == still:
		return nil
	case still:
		return m.power(ctx, func(ctx context.Context, c *vim25.Client) (types.ManagedObjectReference, error) {
			res, err := methods.SuspendVM_Task(ctx, c, &types.SuspendVM_Task{This: m.ref})
			if err != nil {
				return types.ManagedObjectReference{}, err
			}
			return res.Returnval, nil
		}, func(vm *vmState) bool { return vm.power == types.VirtualMachinePowerStateSuspended })
	}
	return m.power(ctx, m.startTask, func(vm *vmState) bool { return vm.power == types.VirtualMachinePowerStatePoweredOn })
}

// Channel is portlayer.Machine.Channel.
func (m *Machine) Channel(ctx context.Context) (net.Conn, error) {
	return m.connect(ctx, guest.ForChannel, fault.Conflict)
}

// Frames is portlayer.Machine.Frames.
func (m *Machine) Frames(ctx context.Context) (net.Conn, error) {
	return m.connect(ctx, guest.ForFrames, fault.Unavailable)
}

func (m *Machine) connect(ctx context.Context, purpose guest.Purpose, off fault.Kind) (net.Conn, error) {
	vm, err := m.state()
	if err != nil {
		return nil, err
	}
	if !vm.on() {
		return nil, fault.New(off, "machine %s is off", m.id)
	}
	return m.h.endpoint.take(ctx, m.id, purpose)
}

// WaitOff is portlayer.Machine.WaitOff.
func (m *Machine) WaitOff(ctx context.Context) error {
	err := m.h.watch.await(ctx, func() bool { vm := m.h.watch.vms[m.ref]; return vm == nil || !vm.on() })
	if err == nil {
		m.h.endpoint.drop(m.id)
	}
	return err
}

// Pid is portlayer.Machine.Pid: the machine is elsewhere.
func (m *Machine) Pid() int { return 0 }

// Diagnosis is portlayer.Machine.Diagnosis: where to look. What a console has said is a picture to vSphere.
func (m *Machine) Diagnosis() string {
	if vm := m.h.watch.get(m.ref); vm != nil {
		return "look at the console of machine " + vm.name + " in vCenter, and whether its network reaches " + m.h.o.Advertise
	}
	return ""
}

// Written is portlayer.Machine.Written.
func (m *Machine) Written(ctx context.Context) (portlayer.Bytes, error) {
	if _, err := m.state(); err != nil {
		return 0, err
	}
	read, err := m.h.watch.fetch(ctx, []types.ManagedObjectReference{m.ref}) // without the machine's turn: what is noted of it may be newer
	if err != nil || read[m.ref] == nil {
		return 0, err
	}
	vm := read[m.ref]
	var sum portlayer.Bytes
	for _, p := range vm.def.Disks {
		if p.File != "" {
			continue
		}
		dev := diskAt(vm.devices, p)
		if dev == nil {
			continue
		}
		info, err := m.h.disks.Stat(ctx, portlayer.DiskPath(fileOf(dev)))
		if err != nil {
			return 0, err
		}
		sum += info.Allocated
	}
	return sum, nil
}

// Undefine is portlayer.Machine.Undefine.
func (m *Machine) Undefine(ctx context.Context) error {
	return fault.Wrap("undefine machine", string(m.id), m.undefine(ctx))
}

func (m *Machine) undefine(ctx context.Context) error {
	back, err := m.h.turns.Lock(ctx, m.id)
	if err != nil {
		return err
	}
	defer back()
	if _, err := m.state(); fault.Is(err, fault.NotFound) {
		return m.h.endpoint.forget(m.id)
	} else if err != nil {
		return err
	}
	if err := m.off(ctx); err != nil {
		return err
	}
	return m.destroy(ctx)
}

// destroy takes all disks that are not the machine's own away from it, which keeps their files, and then removes it, which removes what is left.
func (m *Machine) destroy(ctx context.Context) error {
	err := m.change(ctx, func(vm *vmState, spec *types.VirtualMachineConfigSpec) (definition, error) {
		own := vm.def
		own.Disks = slices.DeleteFunc(slices.Clone(vm.def.Disks), func(p place) bool { return p.File != "" })
		// What somebody has attached by hand is not the machine's own either.
		for _, dev := range vm.devices {
			if disk, ok := dev.(*types.VirtualDisk); ok && !slices.ContainsFunc(own.Disks, func(p place) bool { return diskAt(vm.devices, p) == disk && vm.holds(disk) }) {
				spec.DeviceChange = append(spec.DeviceChange, &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationRemove, Device: disk})
			}
		}
		if len(spec.DeviceChange) > 0 {
			setExtra(spec, definitionKey, own.text())
		}
		return own, nil
	})
	if fault.Is(err, fault.NotFound) {
		return m.h.endpoint.forget(m.id)
	}
	if err != nil {
		return err
	}
	m.h.watch.leave(m.ref)
	err = m.h.disks.change(ctx, func(ctx context.Context, c *vim25.Client) (types.ManagedObjectReference, error) {
		res, err := methods.Destroy_Task(ctx, c, &types.Destroy_Task{This: m.ref})
		if err != nil {
			return types.ManagedObjectReference{}, err
		}
		return res.Returnval, nil
	}, func(err error) bool { return isA(err, new(types.ManagedObjectNotFound)) })
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	m.h.watch.drop(m.ref)
	return m.h.endpoint.forget(m.id)
}
