package vcsim

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"vch/internal/vmdkfile"
)

// PowerOnVMTask starts a machine, or has a suspended one go on.
func (m machine) PowerOnVMTask(ctx *simulator.Context, req *types.PowerOnVM_Task) soap.HasFault {
	ref := m.s.on(ctx, m.VirtualMachine, "PowerOnVM_Task", func(w *work, st *machineState) (types.AnyType, types.BaseMethodFault) {
		return nil, m.powerOn(w, st, req)
	})
	return &methods.PowerOnVM_TaskBody{Res: &types.PowerOnVM_TaskResponse{Returnval: ref}}
}

func (m machine) powerOn(w *work, st *machineState, req *types.PowerOnVM_Task) types.BaseMethodFault {
	switch state := m.power(w); {
	case state == types.VirtualMachinePowerStatePoweredOn:
		return &types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOn, ExistingState: state}
	case state == types.VirtualMachinePowerStateSuspended && st.running != nil:
		if err := st.running.Resume(w.done); err != nil {
			return machineFault(err.Error())
		}
	default:
		if f := m.start(w, st); f != nil {
			return f
		}
	}
	_, f := w.inner(m.Self, func() *types.ManagedObjectReference {
		if body, ok := m.VirtualMachine.PowerOnVMTask(w.ctx, req).(*methods.PowerOnVM_TaskBody); ok && body.Res != nil {
			return &body.Res.Returnval
		}
		return nil
	})
	if f != nil {
		m.s.end(m.Self.Value, st)
	}
	return f
}

func (m machine) power(w *work) (state types.VirtualMachinePowerState) {
	w.ctx.WithLock(m.VirtualMachine, func() { state = m.Runtime.PowerState })
	return state
}

// start opens the VM's files and starts its machine.
func (m machine) start(w *work, st *machineState) types.BaseMethodFault {
	if vmx, f := m.s.parse(m.Config.Files.VmPathName); f == nil && vmx.store.lost.Load() {
		return &types.InvalidState{} // a VM whose own files cannot be reached is inaccessible
	}
	d, f := m.describe(w)
	if f != nil {
		return f
	}
	vm := m.Self.Value
	take := func(p string, write bool) bool {
		if !m.s.locks.take(p, vm, write) {
			return false
		}
		m.s.mu.Lock()
		st.held[p] = true
		m.s.mu.Unlock()
		return true
	}
	if d.ISO != "" && !take(d.ISO, false) {
		m.s.end(vm, st)
		return lockFault(d.ISO)
	}
	for _, disk := range d.Disks {
		if !take(disk.File, !disk.Discard) {
			m.s.end(vm, st)
			return lockFault(m.s.shown(disk.File))
		}
	}
	for _, disk := range d.Disks {
		if damaged(disk.File) {
			m.s.end(vm, st)
			return damagedFault(m.s.shown(disk.File))
		}
	}
	if f := m.serial(w, &d); f != nil {
		m.s.end(vm, st)
		return f
	}
	ready := make(chan struct{}) // closed when running is known
	var running Running
	running, err := m.s.o.Machines.Start(w.done, d, func() { m.s.ended(m, st, ready, &running) })
	if err != nil {
		m.s.end(vm, st)
		return machineFault(err.Error())
	}
	m.s.mu.Lock()
	st.running, st.name = running, d.Name
	for _, disk := range d.Disks {
		st.disks[disk.Key] = disk
	}
	m.s.mu.Unlock()
	close(ready)
	return nil
}

// serial opens the file of the first serial port. One that is there makes ESX ask whether to replace it, and the VM waits in the middle of its start, unless
// its configuration has the answer.
func (m machine) serial(w *work, d *Machine) (f types.BaseMethodFault) {
	name, answer := "", ""
	w.ctx.WithLock(m.VirtualMachine, func() {
		for _, device := range m.Config.Hardware.Device {
			if _, ok := device.(*types.VirtualSerialPort); ok && name == "" {
				if b, ok := device.GetVirtualDevice().Backing.(*types.VirtualSerialPortFileBackingInfo); ok {
					name = b.FileName
				}
			}
		}
		for _, o := range m.Config.ExtraConfig {
			if o := o.GetOptionValue(); o.Key == "answer.msg.serial.file.open" {
				answer, _ = o.Value.(string)
			}
		}
	})
	if name == "" {
		return nil
	}
	p, f := m.s.resolve(name)
	if f != nil {
		return f
	}
	flags := os.O_WRONLY | os.O_CREATE | os.O_APPEND
	switch strings.ToLower(answer) {
	case "append":
	case "replace":
		flags |= os.O_TRUNC
	default:
		flags |= os.O_EXCL
	}
	file, err := os.OpenFile(p.local, flags, 0o600)
	if errors.Is(err, fs.ErrExist) {
		f := &types.GenericVmConfigFault{Reason: "msg.serial.file.open"}
		f.FaultMessage = []types.LocalizableMessage{{Key: "msg.serial.file.open", Message: "Serial port output file '" + p.String() +
			"' already exists: a real VM asks whether to replace it or append to it and waits, unless answer.msg.serial.file.open says so"}}
		return f
	}
	if err != nil {
		return fileFault(p, err)
	}
	d.Serial = file
	return nil
}

// ended is called when a machine has ended by itself: its guest has powered it off, or its process died.
func (s *Sim) ended(m machine, st *machineState, ready chan struct{}, running *Running) {
	if !s.enter() {
		return
	}
	go func() {
		defer s.wg.Done()
		select {
		case <-ready:
		case <-s.ctx.Done():
			return
		}
		unlock, err := s.busy.Lock(s.ctx, m.Self.Value)
		if err != nil {
			return
		}
		defer unlock()
		s.mu.Lock()
		same := st.running == *running
		s.mu.Unlock()
		if !same {
			return // somebody has powered it off meanwhile
		}
		console := (*running).Console()
		s.o.Log.Info("a machine has ended by itself", "vm", st.name, "console", string(console[max(0, len(console)-500):]))
		s.end(m.Self.Value, st)
		ctx := s.context()
		off := types.VirtualMachinePowerStatePoweredOff
		var event types.VmEvent
		ctx.WithLock(m.VirtualMachine, func() {
			clean := true
			m.Runtime.CleanPowerOff = &clean // Update cannot
			ctx.Update(m.VirtualMachine, []types.PropertyChange{
				{Name: "runtime.powerState", Val: off},
				{Name: "summary.runtime.powerState", Val: off},
				{Name: "summary.runtime.bootTime", Val: nil},
			})
			event = m.event(ctx)
		})
		events := ctx.Map.EventManager()
		ctx.WithLock(events, func() {
			events.PostEvent(ctx, &types.PostEvent{EventToPost: &types.VmPoweredOffEvent{VmEvent: event}})
		})
	}()
}

// event is what an event says of where it was; the VM's lock is held.
func (m machine) event(ctx *simulator.Context) types.VmEvent {
	e := types.VmEvent{Event: types.Event{Vm: &types.VmEventArgument{EntityEventArgument: types.EntityEventArgument{Name: m.Name}, Vm: m.Self},
		Datacenter: &types.DatacenterEventArgument{EntityEventArgument: types.EntityEventArgument{Name: Datacenter}, Datacenter: m.s.dc}}}
	if h, ok := ctx.Map.Get(*m.Runtime.Host).(*simulator.HostSystem); ok {
		e.Host = &types.HostEventArgument{EntityEventArgument: types.EntityEventArgument{Name: h.Name}, Host: h.Self}
	}
	return e
}

// shown is the descriptor of a disk whose extent is at a local path, as ESX names files: /vmfs/volumes/STORE/PATH.
func (s *Sim) shown(extent string) string {
	rel, err := filepath.Rel(s.o.Dir, extent)
	if err != nil {
		rel = extent
	}
	return "/vmfs/volumes/" + strings.TrimSuffix(rel, "-flat.vmdk") + ".vmdk"
}

// lockFault is what a vCenter says of a disk that another machine has open; the keys are those that VIC looked for, the order as seen in its logs.
func lockFault(file string) types.BaseMethodFault {
	f := &types.GenericVmConfigFault{Reason: "Failed to lock the file"}
	f.FaultMessage = append([]types.LocalizableMessage{{Key: "msg.fileio.lock", Message: "Failed to lock the file"}}, noBackEnd(file)...)
	return f
}

func noBackEnd(file string) []types.LocalizableMessage {
	return []types.LocalizableMessage{
		{Key: "msg.disk.noBackEnd", Arg: []types.KeyAnyValue{{Key: "1", Value: file}}, Message: "Cannot open the disk '" + file + "' or one of the snapshot disks it depends on. "},
		{Key: "msg.moduletable.powerOnFailed", Arg: []types.KeyAnyValue{{Key: "1", Value: "Disk"}}, Message: "Module 'Disk' power on failed. "},
	}
}

// missingFault is what a vCenter says of a disk that is not there.
func missingFault(p place) types.BaseMethodFault {
	file := "/vmfs/volumes/" + p.store.name + "/" + p.rel
	f := &types.FileNotFound{FileFault: types.FileFault{File: p.String()}}
	f.FaultMessage = append([]types.LocalizableMessage{{Key: "msg.disk.fileNotFound", Arg: []types.KeyAnyValue{{Key: "1", Value: file}},
		Message: "VMware ESX cannot find the virtual disk \"" + file + "\". Verify the path is valid and try again. "}}, noBackEnd(file)...)
	return f
}

// damaged says whether a disk's extent is shorter than its descriptor says.
func damaged(extent string) bool {
	text, err := os.ReadFile(strings.TrimSuffix(extent, "-flat.vmdk") + ".vmdk")
	if err != nil {
		return false
	}
	_, size, err := vmdkfile.Parse(string(text))
	st, serr := os.Stat(extent)
	return err == nil && serr == nil && st.Size() < size
}

// damagedFault is what a vCenter says of such a disk, as far as it is known here.
func damagedFault(file string) types.BaseMethodFault {
	f := &types.GenericVmConfigFault{Reason: "The specified virtual disk needs repair"}
	f.FaultMessage = append([]types.LocalizableMessage{{Key: "msg.disklib.NEEDSREPAIR", Message: "The specified virtual disk needs repair"}}, noBackEnd(file)...)
	return f
}

// machineFault is that of a machine that would not do something.
func machineFault(why string) types.BaseMethodFault {
	f := &types.GenericVmConfigFault{Reason: why}
	f.FaultMessage = []types.LocalizableMessage{{Key: "vch.rig", Message: why}}
	return f
}

// slots are the PCI slot numbers that ESX gives SCSI adapters, by their bus numbers.
var slots = [4]int32{160, 192, 224, 256}

// describe says what the VM's machine has to be, and gives adapters that have no PCI slot number one.
func (m machine) describe(w *work) (d Machine, f types.BaseMethodFault) {
	w.ctx.WithLock(m.VirtualMachine, func() {
		d, f = m.describeLocked(w)
	})
	return d, f
}

func (m machine) describeLocked(w *work) (Machine, types.BaseMethodFault) {
	d := Machine{ID: m.Self.Value, Name: m.Name, MemoryMB: int(m.Config.Hardware.MemoryMB), CPUs: int(m.Config.Hardware.NumCPU), GuestInfo: map[string]string{}}
	for _, o := range m.Config.ExtraConfig {
		o := o.GetOptionValue()
		if text, ok := o.Value.(string); ok && strings.HasPrefix(o.Key, "guestinfo.") {
			d.GuestInfo[o.Key] = text
		}
	}
	adapters := m.adapters(w)
	d.Adapters = slices.Sorted(maps.Values(adapters))
	for _, device := range m.Config.Hardware.Device {
		base := device.GetVirtualDevice()
		switch x := device.(type) {
		case *types.VirtualCdrom:
			b, ok := base.Backing.(*types.VirtualCdromIsoBackingInfo)
			if !ok || base.Connectable != nil && !base.Connectable.StartConnected {
				continue
			}
			p, f := m.s.resolve(b.FileName)
			if f != nil {
				return d, f
			}
			if _, err := os.Stat(p.local); err != nil {
				return d, fileFault(p, err)
			}
			d.ISO = p.local
		case *types.VirtualDisk:
			disk, f := m.disk(x, adapters)
			if f != nil {
				return d, f
			}
			d.Disks = append(d.Disks, disk)
		case types.BaseVirtualEthernetCard:
			card := Card{MAC: x.GetVirtualEthernetCard().MacAddress}
			if b, ok := base.Backing.(*types.VirtualEthernetCardNetworkBackingInfo); ok {
				card.Network = b.DeviceName
			}
			if slot, ok := base.SlotInfo.(*types.VirtualDevicePciBusSlotInfo); ok {
				card.Slot = int(slot.PciSlotNumber)
			}
			d.Cards = append(d.Cards, card)
		}
	}
	return d, nil
}

// disk is a disk of the VM's, whose files are there.
func (m machine) disk(x *types.VirtualDisk, adapters map[int32]int) (Disk, types.BaseMethodFault) {
	p, f := m.s.parse(diskFile(x))
	if f != nil {
		return Disk{}, f
	}
	if p.store.lost.Load() {
		return Disk{}, &types.CannotAccessFile{FileFault: types.FileFault{File: p.String()}}
	}
	on, f := m.s.disk(p)
	if _, missing := f.(*types.FileNotFound); missing {
		return Disk{}, missingFault(p)
	}
	if f != nil {
		return Disk{}, f
	}
	d := Disk{Key: x.Key, Adapter: adapters[x.ControllerKey], File: on.extent.local, Size: on.size}
	if x.UnitNumber != nil {
		d.Unit = int(*x.UnitNumber)
	}
	if b, ok := x.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok {
		d.Discard = b.DiskMode == string(types.VirtualDiskModeIndependent_nonpersistent)
	}
	return d, nil
}

// adapters are the PCI slot numbers of the SCSI adapters, by their keys. One that has none gets the one of its bus, as ESX does when a VM is first
// powered on. The VM's lock is held.
func (m machine) adapters(w *work) map[int32]int {
	all := map[int32]int{}
	changed := false
	devices := slices.Clone(m.Config.Hardware.Device)
	for i, device := range devices {
		c, ok := device.(types.BaseVirtualSCSIController)
		if !ok {
			continue
		}
		base := device.GetVirtualDevice()
		slot, ok := base.SlotInfo.(*types.VirtualDevicePciBusSlotInfo)
		if !ok || slot.PciSlotNumber <= 0 {
			slot = &types.VirtualDevicePciBusSlotInfo{PciSlotNumber: slots[c.GetVirtualSCSIController().BusNumber&3]}
			base.SlotInfo = slot
			devices[i] = device
			changed = true
		}
		all[base.Key] = int(slot.PciSlotNumber)
	}
	if changed {
		w.ctx.Update(m.VirtualMachine, []types.PropertyChange{{Name: "config.hardware.device", Val: devices}})
	}
	return all
}

// PowerOffVMTask ends a machine as pulling the plug does.
func (m machine) PowerOffVMTask(ctx *simulator.Context, req *types.PowerOffVM_Task) soap.HasFault {
	ref := m.s.on(ctx, m.VirtualMachine, "PowerOffVM_Task", func(w *work, st *machineState) (types.AnyType, types.BaseMethodFault) {
		if state := m.power(w); state == types.VirtualMachinePowerStatePoweredOff {
			return nil, &types.InvalidPowerState{RequestedState: state, ExistingState: state}
		}
		m.s.end(m.Self.Value, st)
		return w.inner(m.Self, func() *types.ManagedObjectReference {
			if body, ok := m.VirtualMachine.PowerOffVMTask(w.ctx, req).(*methods.PowerOffVM_TaskBody); ok && body.Res != nil {
				return &body.Res.Returnval
			}
			return nil
		})
	})
	return &methods.PowerOffVM_TaskBody{Res: &types.PowerOffVM_TaskResponse{Returnval: ref}}
}

// SuspendVMTask has a machine stand still. It keeps its memory and its files: a real one is written to a file, and lets go of them.
func (m machine) SuspendVMTask(ctx *simulator.Context, req *types.SuspendVM_Task) soap.HasFault {
	ref := m.s.on(ctx, m.VirtualMachine, "SuspendVM_Task", func(w *work, st *machineState) (types.AnyType, types.BaseMethodFault) {
		if state := m.power(w); state != types.VirtualMachinePowerStatePoweredOn || st.running == nil {
			return nil, &types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOn, ExistingState: state}
		}
		if err := st.running.Suspend(w.done); err != nil {
			return nil, machineFault(err.Error())
		}
		return w.inner(m.Self, func() *types.ManagedObjectReference {
			if body, ok := m.VirtualMachine.SuspendVMTask(w.ctx, req).(*methods.SuspendVM_TaskBody); ok && body.Res != nil {
				return &body.Res.Returnval
			}
			return nil
		})
	})
	return &methods.SuspendVM_TaskBody{Res: &types.SuspendVM_TaskResponse{Returnval: ref}}
}

// ResetVMTask ends the machine and starts it again.
func (m machine) ResetVMTask(ctx *simulator.Context, _ *types.ResetVM_Task) soap.HasFault {
	ref := m.s.on(ctx, m.VirtualMachine, "ResetVM_Task", func(w *work, st *machineState) (types.AnyType, types.BaseMethodFault) {
		if state := m.power(w); state != types.VirtualMachinePowerStatePoweredOn {
			return nil, &types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOn, ExistingState: state}
		}
		m.s.end(m.Self.Value, st)
		return nil, m.start(w, st)
	})
	return &methods.ResetVM_TaskBody{Res: &types.ResetVM_TaskResponse{Returnval: ref}}
}

// ShutdownGuest asks VMware Tools, of which there are none.
func (m machine) ShutdownGuest(*simulator.Context, *types.ShutdownGuest) soap.HasFault {
	return &methods.ShutdownGuestBody{Fault_: simulator.Fault("", &types.ToolsUnavailable{})}
}

// ReconfigVMTask changes a VM, all or nothing; one that is on gets and loses disks.
func (m machine) ReconfigVMTask(ctx *simulator.Context, req *types.ReconfigVM_Task) soap.HasFault {
	ref := m.s.on(ctx, m.VirtualMachine, "ReconfigVM_Task", func(w *work, st *machineState) (types.AnyType, types.BaseMethodFault) {
		return nil, m.reconfigure(w, st, req)
	})
	return &methods.ReconfigVM_TaskBody{Res: &types.ReconfigVM_TaskResponse{Returnval: ref}}
}

func (m machine) reconfigure(w *work, st *machineState, req *types.ReconfigVM_Task) (f types.BaseMethodFault) {
	spec := &req.Spec
	var vmx place
	var has []types.BaseVirtualDevice
	var adapters map[int32]int
	w.ctx.WithLock(m.VirtualMachine, func() {
		if spec.ChangeVersion != "" && spec.ChangeVersion != m.Config.ChangeVersion {
			f = &types.ConcurrentAccess{}
			return
		}
		if state := m.Runtime.PowerState; state == types.VirtualMachinePowerStateSuspended && len(spec.DeviceChange) > 0 {
			f = &types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOn, ExistingState: state}
			return
		}
		if vmx, f = m.s.resolve(m.Config.Files.VmPathName); f != nil {
			return
		}
		has = slices.Clone(m.Config.Hardware.Device)
		if st.running != nil {
			adapters = m.adapters(w)
		}
	})
	if f != nil {
		return f
	}
	undoDisks, f := m.s.prepare(spec, vmx, has)
	undo := []func(){undoDisks}
	defer func() {
		if f == nil {
			return
		}
		for _, u := range slices.Backward(undo) {
			u()
		}
	}()
	if f != nil {
		return f
	}
	var destroy []place
	for i, c := range spec.DeviceChange {
		c := c.GetVirtualDeviceConfigSpec()
		x, isDisk := c.Device.(*types.VirtualDisk)
		if !isDisk {
			if f = m.plugOther(w, st, c, adapters); f != nil {
				return f
			}
			continue
		}
		var old *types.VirtualDisk
		for _, d := range has {
			if d, ok := d.(*types.VirtualDisk); ok && d.Key == x.Key {
				old = d
			}
		}
		if c.Operation != types.VirtualDeviceConfigSpecOperationAdd && old == nil {
			return &types.InvalidDeviceSpec{InvalidVmConfig: types.InvalidVmConfig{Property: "deviceChange.device.key"}, DeviceIndex: int32(i)}
		}
		var u func()
		switch c.Operation {
		case types.VirtualDeviceConfigSpecOperationAdd:
			u, f = m.plug(w, st, x, adapters)
		case types.VirtualDeviceConfigSpecOperationEdit:
			f = m.grow(w, st, old, x)
		case types.VirtualDeviceConfigSpecOperationRemove:
			if c.FileOperation == types.VirtualDeviceConfigSpecFileOperationDestroy {
				p, bad := m.s.resolve(diskFile(old))
				if f = bad; f == nil {
					destroy = append(destroy, p)
				}
			}
			c.FileOperation, c.Device = "", old
			if f == nil {
				u, f = m.unplug(w, st, old)
			}
		}
		if u != nil {
			undo = append(undo, u)
		}
		if f != nil {
			return f
		}
	}
	if _, f = w.inner(m.Self, func() *types.ManagedObjectReference {
		if body, ok := m.VirtualMachine.ReconfigVMTask(w.ctx, req).(*methods.ReconfigVM_TaskBody); ok && body.Res != nil {
			return &body.Res.Returnval
		}
		return nil
	}); f != nil {
		return f
	}
	m.rekey(w, st)
	for _, p := range destroy {
		if bad := m.s.deleteDisk(p); bad != nil {
			return bad
		}
	}
	return nil
}

// plugOther gives a machine that is on what is no disk: SCSI adapters alone. It keeps one if the rest of what is asked for fails.
func (m machine) plugOther(w *work, st *machineState, c *types.VirtualDeviceConfigSpec, adapters map[int32]int) types.BaseMethodFault {
	if st.running == nil || c.Operation == types.VirtualDeviceConfigSpecOperationEdit {
		return nil
	}
	adapter, ok := c.Device.(types.BaseVirtualSCSIController)
	if !ok || c.Operation != types.VirtualDeviceConfigSpecOperationAdd {
		return &types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOff, ExistingState: types.VirtualMachinePowerStatePoweredOn}
	}
	base := c.Device.GetVirtualDevice()
	slot, ok := base.SlotInfo.(*types.VirtualDevicePciBusSlotInfo)
	if !ok || slot.PciSlotNumber <= 0 {
		slot = &types.VirtualDevicePciBusSlotInfo{PciSlotNumber: slots[adapter.GetVirtualSCSIController().BusNumber&3]}
		base.SlotInfo = slot
	}
	if err := st.running.PlugAdapter(w.done, int(slot.PciSlotNumber)); err != nil {
		return machineFault(err.Error())
	}
	adapters[base.Key] = int(slot.PciSlotNumber)
	return nil
}

// rekey learns the keys of disks that were plugged in before the simulator gave them one.
func (m machine) rekey(w *work, st *machineState) {
	byFile := map[string]int32{}
	w.ctx.WithLock(m.VirtualMachine, func() {
		for _, d := range m.Config.Hardware.Device {
			if file := diskFile(d); file != "" {
				byFile[m.s.Path(file)] = d.GetVirtualDevice().Key
			}
		}
	})
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	for key, d := range st.disks {
		if now, ok := byFile[strings.TrimSuffix(d.File, "-flat.vmdk")+".vmdk"]; ok && now != key {
			delete(st.disks, key)
			d.Key = now
			st.disks[now] = d
		}
	}
}

// plug gives a machine that is on a disk.
func (m machine) plug(w *work, st *machineState, x *types.VirtualDisk, adapters map[int32]int) (undo func(), f types.BaseMethodFault) {
	if st.running == nil {
		return nil, nil
	}
	d, f := m.disk(x, adapters)
	if f != nil {
		return nil, f
	}
	vm := m.Self.Value
	if !m.s.locks.take(d.File, vm, !d.Discard) {
		return nil, lockFault(m.s.shown(d.File))
	}
	if err := st.running.Plug(w.done, d); err != nil {
		m.s.locks.drop(d.File, vm)
		return nil, machineFault(err.Error())
	}
	m.s.mu.Lock()
	st.held[d.File], st.disks[d.Key] = true, d
	m.s.mu.Unlock()
	return func() {
		if err := st.running.Unplug(m.s.ctx, d); err != nil {
			m.s.o.Log.Warn("a disk that was plugged stays", "vm", st.name, "error", err)
			return
		}
		m.s.forget(vm, st, d)
	}, nil
}

// forget closes the file of a disk that a machine does not have any more.
func (s *Sim) forget(vm string, st *machineState, d Disk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.locks.drop(d.File, vm)
	delete(st.held, d.File)
	delete(st.disks, d.Key)
}

// unplug takes a disk from a machine that is on.
func (m machine) unplug(w *work, st *machineState, x *types.VirtualDisk) (undo func(), f types.BaseMethodFault) {
	m.s.mu.Lock()
	d, ok := st.disks[x.Key]
	m.s.mu.Unlock()
	if st.running == nil || !ok {
		return nil, nil
	}
	if err := st.running.Unplug(w.done, d); err != nil {
		return nil, machineFault(err.Error())
	}
	m.s.forget(m.Self.Value, st, d)
	return nil, nil
}

// grow makes a disk longer, if its capacity is edited to be more.
func (m machine) grow(w *work, st *machineState, old, x *types.VirtualDisk) types.BaseMethodFault {
	size := x.CapacityInBytes
	if size == 0 || size == old.CapacityInBytes {
		size = x.CapacityInKB << 10
	}
	p, f := m.s.resolve(diskFile(old))
	if f != nil {
		return f
	}
	on, f := m.s.disk(p)
	if f != nil {
		return f
	}
	if size == 0 || size == on.size {
		return nil
	}
	if size < on.size || size%vmdkfile.Sector != 0 {
		return &types.InvalidDeviceOperation{}
	}
	m.s.mu.Lock()
	d, running := st.disks[x.Key]
	m.s.mu.Unlock()
	if running && d.Discard {
		return &types.InvalidDeviceOperation{}
	}
	if !running {
		if !m.s.locks.take(on.extent.local, w.task.Self.Value, true) {
			return lockFault(m.s.shown(on.extent.local))
		}
		defer m.s.locks.drop(on.extent.local, w.task.Self.Value)
	}
	if f := m.s.extend(on, size); f != nil {
		return f
	}
	if !running {
		return nil
	}
	d.Size = size
	if err := st.running.Resize(w.done, d); err != nil {
		return machineFault(err.Error())
	}
	m.s.mu.Lock()
	st.disks[x.Key] = d
	m.s.mu.Unlock()
	return nil
}
