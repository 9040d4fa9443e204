package vsphere

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/types"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// Keys of a machine's extra configuration. The guest reads those that begin with guestinfo.
const (
	ownPrefix     = "vch."
	definitionKey = "vch.machine" // definition, in JSON
)

// The limits of a machine on vSphere (Configuration Maximums): four paravirtual SCSI controllers with fifteen disks each; the seventh place is the controller's own.
const (
	maxControllers = 4
	unitsOf        = 16
	ownUnit        = 7
	maxDisks       = maxControllers * (unitsOf - 1)
)

// slotNumbers are the PCI slots of the controllers, and cardSlot that of the network card, as vCenter counts them: the guest finds a slot by its number
// (/sys/bus/pci/slots). They are those that vCenter gives itself, but said, so that they do not depend on its order.
var slotNumbers = [maxControllers]int32{160, 224, 256, 1184}

const cardSlot = 192

// definition is a machine as this package keeps it beside what vSphere does. A machine of the inventory is vch's if it has one.
type definition struct {
	ID     portlayer.ContainerID `json:"id"`
	VCH    string                `json:"vch"` // whose it is (Options.VCH)
	Memory portlayer.Bytes       `json:"memory"`
	CPUs   int                   `json:"cpus"`
	Disks  []place               `json:"disks"`
	Boot   string                `json:"boot"` // the disc that it boots from
	UUID   string                `json:"uuid"` // VirtualMachineConfigInfo.instanceUuid, as it was made
}

// place is a disk and where it is in its machine.
type place struct {
	portlayer.Disk
	Bus  int32 `json:"bus"`  // number of the controller
	Unit int32 `json:"unit"` // on it
}

func (d definition) disks() []portlayer.Disk {
	disks := make([]portlayer.Disk, len(d.Disks))
	for i, p := range d.Disks {
		disks[i] = p.Disk
	}
	return disks
}

// seats is where the guest finds the disks.
func (d definition) seats() map[string]guest.Seat {
	seats := map[string]guest.Seat{}
	for _, p := range d.Disks {
		seats[p.Serial] = guest.Seat{Slot: int(slotNumbers[p.Bus]), Unit: int(p.Unit), ReadOnly: p.ReadOnly}
	}
	return seats
}

// owns says whether the machine has the disk with that serial for itself.
func (d definition) owns(serial string) bool {
	return slices.ContainsFunc(d.Disks, func(p place) bool { return p.Serial == serial && p.File == "" })
}

// with is d with other disks: those that stay keep their places, and those that come get the first that are free.
func (d definition) with(disks []portlayer.Disk) (definition, error) {
	taken := map[[2]int32]bool{}
	kept := map[string]place{}
	for _, p := range d.Disks {
		if slices.Contains(disks, p.Disk) {
			taken[[2]int32{p.Bus, p.Unit}] = true
			kept[p.Serial] = p
		}
	}
	out := d
	out.Disks = nil
	for _, disk := range disks {
		if disk.Throttle.BPS != 0 {
			return d, fault.New(fault.Unsupported, "disk %s cannot be bounded in bytes a second on vSphere, which bounds requests a second alone: use the option iops", disk.Serial)
		}
		p, stays := kept[disk.Serial]
		if !stays {
			at, ok := firstFree(taken)
			if !ok {
				return d, fault.New(fault.Invalid, "a machine on vSphere has at most %d disks, on %d SCSI controllers with %d each, and this one would have %d", maxDisks, maxControllers, unitsOf-1, len(disks))
			}
			taken[at] = true
			p = place{disk, at[0], at[1]}
		}
		out.Disks = append(out.Disks, p)
	}
	return out, nil
}

func firstFree(taken map[[2]int32]bool) (at [2]int32, ok bool) {
	for bus := range int32(maxControllers) {
		for unit := range int32(unitsOf) {
			if at = [2]int32{bus, unit}; unit != ownUnit && !taken[at] {
				return at, true
			}
		}
	}
	return at, false
}

// The keys of devices (VirtualDevice.key). Those of controllers are as vCenter numbers them; new devices have negative ones, which it replaces.
const (
	pciKey        = 100
	firstSCSI     = 1000 // of the SCSI controller with bus number 0
	newController = -100 // less the bus number
	newDisk       = -1000
	ahciKey       = -200
	cdromKey      = -201
	cardKey       = -202
)

// lookout is what a machine is made with beside its definition.
type lookout struct {
	name       string // in the inventory
	annotation string
	store      string                             // datastore of its own files
	network    types.BaseVirtualDeviceBackingInfo // of its card
	extension  string                             // who manages it, "" : nobody is named
	extra      map[string]string                  // more of its extra configuration
}

// create is the specification of a new machine.
func (d definition) create(l lookout) types.VirtualMachineConfigSpec {
	spec := types.VirtualMachineConfigSpec{
		Name:         l.name,
		InstanceUuid: d.UUID,
		Annotation:   l.annotation,
		GuestId:      string(types.VirtualMachineGuestOsIdentifierOther5xLinux64Guest),
		Firmware:     string(types.GuestOsDescriptorFirmwareTypeBios),
		Files:        &types.VirtualMachineFileInfo{VmPathName: "[" + l.store + "]"},
		BootOptions: &types.VirtualMachineBootOptions{
			BootOrder: []types.BaseVirtualMachineBootOptionsBootableDevice{&types.VirtualMachineBootOptionsBootableCdromDevice{}},
		},
	}
	if l.extension != "" {
		spec.ManagedBy = &types.ManagedByInfo{ExtensionKey: l.extension, Type: "container"}
	}
	slot := func(n int32) types.BaseVirtualDeviceBusSlotInfo {
		return &types.VirtualDevicePciBusSlotInfo{PciSlotNumber: n}
	}
	add := func(dev types.BaseVirtualDevice) {
		spec.DeviceChange = append(spec.DeviceChange, &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: dev})
	}
	add(&types.VirtualAHCIController{VirtualSATAController: types.VirtualSATAController{VirtualController: types.VirtualController{VirtualDevice: types.VirtualDevice{Key: ahciKey}}}})
	add(&types.VirtualCdrom{VirtualDevice: types.VirtualDevice{
		Key: cdromKey, ControllerKey: ahciKey, UnitNumber: types.NewInt32(0),
		Backing:     &types.VirtualCdromIsoBackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: d.Boot}},
		Connectable: &types.VirtualDeviceConnectInfo{StartConnected: true, Connected: true, AllowGuestControl: false},
	}})
	add(&types.VirtualVmxnet3{VirtualVmxnet: types.VirtualVmxnet{VirtualEthernetCard: types.VirtualEthernetCard{
		VirtualDevice: types.VirtualDevice{Key: cardKey, Backing: l.network, SlotInfo: slot(cardSlot), Connectable: &types.VirtualDeviceConnectInfo{StartConnected: true, Connected: true, AllowGuestControl: false}},
		AddressType:   string(types.VirtualEthernetCardMacTypeGenerated),
	}}})
	d.changeFrom(definition{}, nil, &spec)
	for key, value := range l.extra {
		setExtra(&spec, key, value)
	}
	setExtra(&spec, "monitor_control.restrict_backdoor", "TRUE") // no process of a container reads what the tether was told
	return spec
}

// changeFrom adds to spec what makes a machine with the definition old and the devices given one with d. It reports whether anything is.
func (d definition) changeFrom(old definition, devices []types.BaseVirtualDevice, spec *types.VirtualMachineConfigSpec) (changed bool) {
	if d.Memory != old.Memory {
		spec.MemoryMB, changed = megabytes(d.Memory), true
	}
	if d.CPUs != old.CPUs {
		spec.NumCPUs, changed = int32(d.CPUs), true
	}
	if d.Boot != old.Boot {
		for _, dev := range devices {
			if drive, ok := dev.(*types.VirtualCdrom); ok {
				other := *drive
				other.Backing = &types.VirtualCdromIsoBackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: d.Boot}}
				spec.DeviceChange = append(spec.DeviceChange, &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationEdit, Device: &other})
			}
		}
	}
	have := controllers(devices)
	for _, p := range old.Disks {
		if slices.Contains(d.Disks, p) {
			continue
		}
		changed = true
		if dev := diskAt(devices, p); dev != nil {
			change := &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationRemove, Device: dev}
			if p.File == "" { // its own: the file goes, too
				change.FileOperation = types.VirtualDeviceConfigSpecFileOperationDestroy
			}
			spec.DeviceChange = append(spec.DeviceChange, change)
		}
	}
	for i, p := range d.Disks {
		if slices.Contains(old.Disks, p) {
			continue
		}
		changed = true
		key, there := have[p.Bus]
		if !there {
			key = newController - p.Bus
			have[p.Bus] = key
			spec.DeviceChange = append(spec.DeviceChange, &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: controller(key, p.Bus)})
		}
		spec.DeviceChange = append(spec.DeviceChange, p.add(newDisk-int32(i), key))
	}
	if !d.same(old) {
		setExtra(spec, definitionKey, d.text())
		changed = true
	}
	return changed
}

// same says whether two definitions are of the same machine.
func (d definition) same(o definition) bool {
	return d.ID == o.ID && d.VCH == o.VCH && d.Memory == o.Memory && d.CPUs == o.CPUs && d.Boot == o.Boot && slices.Equal(d.Disks, o.Disks)
}

// text is how a definition is kept.
func (d definition) text() string {
	text, err := json.Marshal(d)
	if err != nil {
		panic(fmt.Sprintf("a definition cannot be written: %v", err)) // it is made of texts and numbers
	}
	return string(text)
}

// controller is the SCSI controller with a bus number.
func controller(key, bus int32) *types.ParaVirtualSCSIController {
	return &types.ParaVirtualSCSIController{VirtualSCSIController: types.VirtualSCSIController{
		SharedBus: types.VirtualSCSISharingNoSharing,
		VirtualController: types.VirtualController{
			BusNumber:     bus,
			VirtualDevice: types.VirtualDevice{Key: key, ControllerKey: pciKey, SlotInfo: &types.VirtualDevicePciBusSlotInfo{PciSlotNumber: slotNumbers[bus]}},
		},
	}}
}

// add is the change that brings a disk.
func (p place) add(key, controller int32) *types.VirtualDeviceConfigSpec {
	mode := types.VirtualDiskModeIndependent_persistent
	if p.ReadOnly { // what a guest writes goes into a file of its own, which is dropped with the machine's power
		mode = types.VirtualDiskModeIndependent_nonpersistent
	}
	backing := &types.VirtualDiskFlatVer2BackingInfo{DiskMode: string(mode), VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: string(p.File)}}
	disk := &types.VirtualDisk{VirtualDevice: types.VirtualDevice{Key: key, ControllerKey: controller, UnitNumber: types.NewInt32(p.Unit), Backing: backing}}
	change := &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: disk}
	if p.File == "" {
		backing.ThinProvisioned = types.NewBool(true)
		disk.CapacityInBytes = int64((p.Size + 1023) / 1024 * 1024)
		disk.CapacityInKB = disk.CapacityInBytes / 1024
		change.FileOperation = types.VirtualDeviceConfigSpecFileOperationCreate
	}
	if p.Throttle.IOPS > 0 {
		disk.StorageIOAllocation = &types.StorageIOAllocationInfo{Limit: types.NewInt64(p.Throttle.IOPS)}
	}
	return change
}

// controllers gives the keys of the SCSI controllers that are there, by bus number.
func controllers(devices []types.BaseVirtualDevice) map[int32]int32 {
	keys := map[int32]int32{}
	for _, dev := range devices {
		if c, ok := dev.(types.BaseVirtualSCSIController); ok {
			keys[c.GetVirtualSCSIController().BusNumber] = c.GetVirtualSCSIController().Key
		}
	}
	return keys
}

// diskAt finds the device of a disk, nil if it is not there.
func diskAt(devices []types.BaseVirtualDevice, p place) *types.VirtualDisk {
	key, ok := controllers(devices)[p.Bus]
	if !ok {
		return nil
	}
	for _, dev := range devices {
		if disk, is := dev.(*types.VirtualDisk); is && disk.ControllerKey == key && disk.UnitNumber != nil && *disk.UnitNumber == p.Unit {
			return disk
		}
	}
	return nil
}

// holds says whether a disk's file is in a directory that is the machine's: where its own file is, or one that is called after it, as where somebody has moved the disk to another
// datastore.
func (v *vmState) holds(disk *types.VirtualDisk) bool {
	file, err := parsePath(portlayer.DiskPath(fileOf(disk)))
	if err != nil {
		return false
	}
	own, err := parsePath(portlayer.DiskPath(v.vmx))
	return err == nil && file.dir() == own.dir() || v.id != "" && strings.Contains(file.dir().base(), shortOf(v.id))
}

// fileOf is a disk device's file.
func fileOf(dev *types.VirtualDisk) string {
	if b, ok := dev.Backing.(types.BaseVirtualDeviceFileBackingInfo); ok {
		return b.GetVirtualDeviceFileBackingInfo().FileName
	}
	return ""
}

// setExtra sets one entry of the extra configuration; "" takes it away.
func setExtra(spec *types.VirtualMachineConfigSpec, key, value string) {
	i, found := slices.BinarySearchFunc(spec.ExtraConfig, key, func(o types.BaseOptionValue, key string) int { return cmp.Compare(o.GetOptionValue().Key, key) })
	o := &types.OptionValue{Key: key, Value: value}
	if found {
		spec.ExtraConfig[i] = o
	} else {
		spec.ExtraConfig = slices.Insert(spec.ExtraConfig, i, types.BaseOptionValue(o))
	}
}

// megabytes is a machine's memory as vSphere takes it: a multiple of four (VirtualMachineConfigSpec.memoryMB).
func megabytes(b portlayer.Bytes) int64 {
	const unit = 4
	mb := (int64(b) + 1<<20 - 1) >> 20
	return (mb + unit - 1) / unit * unit
}
