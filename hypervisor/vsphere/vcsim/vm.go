package vcsim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// folder is a folder in which VMs come to be with disks that are real.
type folder struct {
	*simulator.Folder
	s *Sim
}

// machine is a VM whose power is real.
type machine struct {
	*simulator.VirtualMachine
	s *Sim
}

// Lock does nothing: the simulator is not to hold the VM's own lock while a method of this type is called, which takes others first. It locks only what
// has no such methods (Registry.AcquireLock).
func (machine) Lock() {}

// Unlock does nothing.
func (machine) Unlock() {}

// machineState is what the rig knows of a VM beside the inventory. It is changed by who holds Sim.busy for the VM, under Sim.mu.
type machineState struct {
	name    string
	task    string // that works on it now
	running Running
	held    map[string]bool // files that are open
	disks   map[int32]Disk  // those that the machine has
}

func (s *Sim) state(vm string) *machineState {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.machines[vm]
	if m == nil {
		m = &machineState{held: map[string]bool{}, disks: map[int32]Disk{}}
		s.machines[vm] = m
	}
	return m
}

// on has do work on the VM. As on a vCenter, a VM has one task at a time: another fails with TaskInProgress.
func (s *Sim) on(ctx *simulator.Context, vm *simulator.VirtualMachine, method string, do func(*work, *machineState) (types.AnyType, types.BaseMethodFault)) types.ManagedObjectReference {
	return s.run(ctx, machine{vm, s}, method, func(w *work) (types.AnyType, types.BaseMethodFault) {
		st := s.state(vm.Self.Value)
		s.mu.Lock()
		other := st.task
		if other == "" {
			st.task = w.task.Self.Value
		}
		s.mu.Unlock()
		if other != "" {
			return nil, &types.TaskInProgress{Task: types.ManagedObjectReference{Type: "Task", Value: other}}
		}
		defer func() {
			s.mu.Lock()
			st.task = ""
			s.mu.Unlock()
		}()
		unlock, err := s.busy.Lock(w.done, vm.Self.Value) // of a machine that has just ended by itself
		if err != nil {
			return nil, &types.RequestCanceled{}
		}
		defer unlock()
		if w.ctx.Map.Get(vm.Self) == nil {
			s.mu.Lock()
			delete(s.machines, vm.Self.Value)
			s.mu.Unlock()
			return nil, &types.ManagedObjectNotFound{Obj: vm.Self}
		}
		unread := false
		w.ctx.WithLock(vm, func() { unread = vm.Config == nil })
		if unread { // its files cannot be reached
			return nil, &types.InvalidState{}
		}
		return do(w, st)
	})
}

// CreateVMTask makes a VM with its files, or nothing.
func (m folder) CreateVMTask(ctx *simulator.Context, req *types.CreateVM_Task) soap.HasFault {
	ref := m.s.run(ctx, m, "CreateVM_Task", func(w *work) (types.AnyType, types.BaseMethodFault) { return m.create(w, req) })
	return &methods.CreateVM_TaskBody{Res: &types.CreateVM_TaskResponse{Returnval: ref}}
}

func (m folder) create(w *work, req *types.CreateVM_Task) (result types.AnyType, f types.BaseMethodFault) {
	s, spec := m.s, &req.Config
	if spec.Name == "" {
		return nil, &types.InvalidName{}
	}
	if spec.Files == nil {
		return nil, &types.InvalidVmConfig{Property: "configSpec.files.vmPathName"}
	}
	unlock, err := s.busy.Lock(w.done, m.Self.Value)
	if err != nil {
		return nil, &types.RequestCanceled{}
	}
	defer unlock()
	if old := s.child(w.ctx, m.Folder, spec.Name); old != nil {
		return nil, &types.DuplicateName{Name: spec.Name, Object: *old}
	}
	vmx, f := s.resolve(spec.Files.VmPathName)
	if f != nil {
		return nil, f
	}
	home, f := s.home(&vmx, spec.Name)
	if f != nil {
		return nil, f
	}
	spec.Files.VmPathName = vmx.String()
	var undo []func()
	defer func() {
		if f == nil {
			return
		}
		for _, u := range slices.Backward(undo) {
			u()
		}
	}()
	undo = append(undo, func() { s.removeFiles(vmx, spec.Name, home) })
	undoDisks, f := s.prepare(spec, vmx, nil)
	undo = append(undo, undoDisks)
	if f != nil {
		return nil, f
	}
	result, f = w.inner(m.Self, func() *types.ManagedObjectReference {
		if body, ok := m.Folder.CreateVMTask(w.ctx, req).(*methods.CreateVM_TaskBody); ok && body.Res != nil {
			return &body.Res.Returnval
		}
		return nil
	})
	if ref, ok := result.(types.ManagedObjectReference); ok {
		st := s.state(ref.Value)
		s.mu.Lock()
		st.name = spec.Name
		s.mu.Unlock()
	}
	return result, f
}

// child is the folder's VM of a name.
func (s *Sim) child(ctx *simulator.Context, f *simulator.Folder, name string) (ref *types.ManagedObjectReference) {
	var children []types.ManagedObjectReference
	ctx.WithLock(f, func() { children = slices.Clone(f.ChildEntity) })
	if e := ctx.Map.FindByName(name, children); e != nil {
		r := e.Reference()
		return &r
	}
	return nil
}

// home makes the directory of a VM whose files are to be at vmx, or in a directory of the VM's name there. made says that it was not there.
func (s *Sim) home(vmx *place, name string) (made bool, f types.BaseMethodFault) {
	s.names.Lock()
	defer s.names.Unlock()
	if path.Ext(vmx.rel) == ".vmx" {
		dir := vmx.sibling("")
		if _, err := os.Lstat(vmx.local); err == nil {
			return false, fileFault(*vmx, fs.ErrExist)
		}
		err := os.Mkdir(dir.local, 0o755)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return false, fileFault(dir, err)
		}
		return err == nil, nil
	}
	base := vmx.rel
	if base == "" {
		base = name
	}
	for i := 0; ; i++ {
		rel := base
		if i > 0 {
			rel = fmt.Sprintf("%s_%d", base, i)
		}
		dir := place{vmx.store, rel, filepath.Join(vmx.store.dir, rel)}
		err := os.Mkdir(dir.local, 0o755)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return false, fileFault(dir, err)
		}
		*vmx = place{vmx.store, rel + "/" + name + ".vmx", filepath.Join(dir.local, name+".vmx")}
		return true, nil
	}
}

// removeFiles deletes what a VM has beside its disks, and its directory if nothing is left there.
func (s *Sim) removeFiles(vmx place, name string, home bool) {
	for _, each := range []place{vmx, vmx.sibling(name + ".nvram"), vmx.sibling("vmware.log")} {
		if err := os.Remove(each.local); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.o.Log.Warn("a file of a VM is left", "file", each.String(), "error", err)
		}
	}
	if home {
		_ = os.Remove(filepath.Dir(vmx.local)) // not if it holds something
	}
}

// prepare makes the files that a spec wants made, and has the spec say that they are there: the simulator would make extents of no size. undo deletes
// them. has are the devices that the VM has.
func (s *Sim) prepare(spec *types.VirtualMachineConfigSpec, vmx place, has []types.BaseVirtualDevice) (undo func(), f types.BaseMethodFault) {
	var made []place
	undo = func() {
		for _, p := range made {
			if f := s.deleteDisk(p); f != nil {
				s.o.Log.Warn("a disk of a VM that could not be made is left", "disk", p.String(), "fault", textOf(f))
			}
		}
	}
	adapters := map[int32]bool{}
	note := func(d types.BaseVirtualDevice) {
		if _, ok := d.(types.BaseVirtualSCSIController); ok {
			adapters[d.GetVirtualDevice().Key] = true
		}
	}
	for _, d := range has {
		note(d)
	}
	for _, c := range spec.DeviceChange {
		if d := c.GetVirtualDeviceConfigSpec().Device; d != nil {
			note(d)
		}
	}
	for i, c := range spec.DeviceChange {
		c := c.GetVirtualDeviceConfigSpec()
		if c.Device == nil {
			return undo, &types.InvalidDeviceSpec{InvalidVmConfig: types.InvalidVmConfig{Property: "deviceChange.device"}, DeviceIndex: int32(i)}
		}
		if c.Operation != types.VirtualDeviceConfigSpecOperationAdd {
			continue
		}
		p, f := s.prepareDevice(c, vmx, adapters)
		if p != nil {
			made = append(made, *p)
		}
		if bad, ok := f.(*types.InvalidDeviceSpec); ok {
			bad.DeviceIndex = int32(i)
		}
		if f != nil {
			return undo, f
		}
	}
	return undo, nil
}

// prepareDevice looks at a device that is added; made is the disk that was made for it.
func (s *Sim) prepareDevice(c *types.VirtualDeviceConfigSpec, vmx place, adapters map[int32]bool) (made *place, f types.BaseMethodFault) {
	invalid := func(property string) types.BaseMethodFault {
		return &types.InvalidDeviceSpec{InvalidVmConfig: types.InvalidVmConfig{Property: property}}
	}
	base := c.Device.GetVirtualDevice()
	if card, ok := c.Device.(types.BaseVirtualEthernetCard); ok && card.GetVirtualEthernetCard().MacAddress == "" {
		card.GetVirtualEthernetCard().MacAddress = s.address() // the simulator's own are the same for one VM in four thousand
	}
	switch b := base.Backing.(type) {
	case *types.VirtualEthernetCardNetworkBackingInfo:
		var networks []types.ManagedObjectReference
		if dc, ok := s.model.Map().Get(s.dc).(*simulator.Datacenter); ok {
			networks = dc.Network
		}
		if s.model.Map().FindByName(b.DeviceName, networks) == nil {
			return nil, invalid("deviceChange.device.backing.deviceName")
		}
	case types.BaseVirtualDeviceFileBackingInfo:
		info := b.GetVirtualDeviceFileBackingInfo()
		if info.FileName == "" {
			info.FileName = place{store: vmx.store}.String()
		}
		p, f := s.resolve(info.FileName)
		if f != nil {
			return nil, f
		}
		if _, ok := c.Device.(*types.VirtualSerialPort); ok {
			if p.rel == "" {
				info.FileName = vmx.sibling("serial1.txt").String()
			}
			return nil, nil // it comes when the VM is powered on
		}
		d, isDisk := c.Device.(*types.VirtualDisk)
		if !isDisk {
			if _, err := os.Stat(p.local); err != nil {
				return nil, fileFault(p, err)
			}
			return nil, nil
		}
		if adapters[d.ControllerKey] && (d.UnitNumber == nil || *d.UnitNumber == 7 || *d.UnitNumber < 0) { // 7 is the adapter's own
			return nil, invalid("deviceChange.device.unitNumber")
		}
		switch c.FileOperation {
		case types.VirtualDeviceConfigSpecFileOperationCreate:
			size := max(d.CapacityInBytes, d.CapacityInKB<<10)
			if path.Ext(p.rel) != ".vmdk" {
				p = s.freeDisk(vmx)
			}
			if f := s.createDisk(p, size); f != nil {
				return nil, f
			}
			info.FileName, c.FileOperation = p.String(), ""
			d.CapacityInBytes, d.CapacityInKB = size, size>>10
			return &p, nil
		case "":
			on, f := s.disk(p)
			if f != nil {
				return nil, f
			}
			d.CapacityInBytes, d.CapacityInKB = on.size, on.size>>10
			info.FileName = p.String()
		default:
			return nil, &types.NotSupported{}
		}
	}
	return nil, nil
}

// address is a MAC address of those that vCenter gives (VMware's OUI allocation, 00:50:56:80 to bf), another each time.
func (s *Sim) address() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cards++
	return fmt.Sprintf("00:50:56:%02x:%02x:%02x", 0x80+s.cards>>16&0x3f, s.cards>>8&0xff, s.cards&0xff)
}

// freeDisk is a name for a disk beside vmx that nothing has.
func (s *Sim) freeDisk(vmx place) place {
	name := strings.TrimSuffix(path.Base(vmx.rel), ".vmx")
	for i := 0; ; i++ {
		p := vmx.sibling(name + ".vmdk")
		if i > 0 {
			p = vmx.sibling(fmt.Sprintf("%s_%d.vmdk", name, i))
		}
		if _, err := os.Lstat(p.local); err != nil {
			return p
		}
	}
}

// DestroyTask deletes a VM with its disks, and what else is in its directory if that is the VM's.
func (m machine) DestroyTask(ctx *simulator.Context, req *types.Destroy_Task) soap.HasFault {
	ref := m.s.on(ctx, m.VirtualMachine, "Destroy_Task", func(w *work, st *machineState) (types.AnyType, types.BaseMethodFault) {
		return nil, m.destroy(w, st)
	})
	return &methods.Destroy_TaskBody{Res: &types.Destroy_TaskResponse{Returnval: ref}}
}

func (m machine) destroy(w *work, st *machineState) types.BaseMethodFault {
	var disks []place
	var vmx place
	var name string
	var f types.BaseMethodFault
	w.ctx.WithLock(m.VirtualMachine, func() {
		name = m.Name
		vmx, f = m.s.resolve(m.Config.Files.VmPathName)
		for _, d := range m.Config.Hardware.Device {
			file := diskFile(d)
			if file == "" || f != nil {
				continue
			}
			var p place
			if p, f = m.s.resolve(file); f == nil {
				disks = append(disks, p)
			}
		}
		if f == nil && m.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
			f = &types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOff, ExistingState: m.Runtime.PowerState}
		}
	})
	if f != nil {
		return f
	}
	m.s.end(m.Self.Value, st)
	for _, p := range disks {
		if f := m.s.unlocked(p); f != nil {
			return f
		}
	}
	if f := m.unregister(w.ctx); f != nil {
		return f
	}
	for _, p := range disks {
		if f := m.s.deleteDisk(p); f != nil {
			m.s.o.Log.Warn("a disk of a VM that was deleted is left", "disk", p.String(), "fault", textOf(f))
		}
	}
	m.s.removeFiles(vmx, name, true)
	return nil
}

// unregister takes the VM out of the inventory; its files stay.
func (m machine) unregister(ctx *simulator.Context) (f types.BaseMethodFault) {
	m.s.inner.Lock()
	defer m.s.inner.Unlock()
	ctx.WithLock(m.VirtualMachine, func() {
		if r := m.VirtualMachine.UnregisterVM(ctx, &types.UnregisterVM{This: m.Self}); r.Fault() != nil {
			f, _ = r.Fault().VimFault().(types.BaseMethodFault)
		}
	})
	if f == nil {
		m.s.mu.Lock()
		delete(m.s.machines, m.Self.Value)
		m.s.mu.Unlock()
	}
	return f
}

// UnregisterVM takes a VM out of the inventory, and with it the machine of one that is suspended.
func (m machine) UnregisterVM(ctx *simulator.Context, _ *types.UnregisterVM) soap.HasFault {
	unlock, err := m.s.busy.Lock(m.s.ctx, m.Self.Value)
	if err != nil {
		return &methods.UnregisterVMBody{Fault_: simulator.Fault("", &types.RequestCanceled{})}
	}
	defer unlock()
	c := *ctx
	state := types.VirtualMachinePowerState("")
	c.WithLock(m.VirtualMachine, func() { state = m.Runtime.PowerState })
	if state == types.VirtualMachinePowerStateSuspended {
		m.s.end(m.Self.Value, m.s.state(m.Self.Value))
	}
	if f := m.unregister(&c); f != nil {
		return &methods.UnregisterVMBody{Fault_: simulator.Fault(textOf(f), f)}
	}
	return &methods.UnregisterVMBody{Res: &types.UnregisterVMResponse{}}
}

// end stops a VM's machine, if it has one, and closes its files.
func (s *Sim) end(vm string, st *machineState) {
	s.mu.Lock()
	running := st.running
	s.mu.Unlock()
	if running != nil {
		if err := running.Stop(); err != nil {
			s.o.Log.Warn("a machine does not stop", "vm", st.name, "error", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if running != nil {
		s.consoles[st.name] = running.Console()
	}
	for p := range st.held {
		s.locks.drop(p, vm)
	}
	st.running = nil
	clear(st.held)
	clear(st.disks)
}

// diskFile is the datastore path of a disk's descriptor; "" of what is no disk.
func diskFile(d types.BaseVirtualDevice) string {
	if disk, ok := d.(*types.VirtualDisk); ok {
		if b, ok := disk.Backing.(types.BaseVirtualDeviceFileBackingInfo); ok {
			return b.GetVirtualDeviceFileBackingInfo().FileName
		}
	}
	return ""
}

// wrap is the object to call in place of the simulator's; nil for one that does what it should.
func (s *Sim) wrap(obj mo.Reference, method string) mo.Reference {
	switch obj := obj.(type) {
	case *simulator.FileManager:
		return &fileManager{obj, s}
	case *simulator.HostDatastoreBrowser:
		return &browser{obj, s}
	case *simulator.VirtualDiskManager:
		return &diskManager{obj, s}
	case *simulator.Folder:
		if method == "CreateVM_Task" {
			return &folder{obj, s}
		}
	case *simulator.VirtualMachine:
		if ownTasks[method] || method == "UnregisterVM" || method == "ShutdownGuest" {
			return &machine{obj, s}
		}
	case *simulator.Datastore:
		if method == "RefreshDatastore" {
			return &datastore{obj, s}
		}
	case *simulator.AuthorizationManager:
		if method == "HasPrivilegeOnEntities" {
			return &authorization{obj, s}
		}
	}
	return nil
}

// authorization says which privileges the user lacks.
type authorization struct {
	*simulator.AuthorizationManager
	s *Sim
}

// HasPrivilegeOnEntities grants all but Options.Lacks.
func (a *authorization) HasPrivilegeOnEntities(req *types.HasPrivilegeOnEntities) soap.HasFault {
	body := a.AuthorizationManager.HasPrivilegeOnEntities(req)
	if res, ok := body.(*methods.HasPrivilegeOnEntitiesBody); ok && res.Res != nil {
		for _, e := range res.Res.Returnval {
			for i, p := range e.PrivAvailability {
				e.PrivAvailability[i].IsGranted = !slices.Contains(a.s.o.Lacks, p.PrivId)
			}
		}
	}
	return body
}

// datastore is a datastore that has the space of its directory.
type datastore struct {
	*simulator.Datastore
	s *Sim
}

// Lock does nothing, as a machine's.
func (datastore) Lock() {}

// Unlock does nothing.
func (datastore) Unlock() {}

// RefreshDatastore looks at the space anew.
func (d datastore) RefreshDatastore(ctx *simulator.Context, _ *types.RefreshDatastore) soap.HasFault {
	if store := d.s.stores[d.Name]; store != nil {
		d.s.inner.Lock()
		store.refresh(ctx)
		d.s.inner.Unlock()
		if store.lost.Load() {
			return &methods.RefreshDatastoreBody{Fault_: simulator.Fault("", &types.HostConfigFault{})}
		}
	}
	return &methods.RefreshDatastoreBody{Res: &types.RefreshDatastoreResponse{}}
}
