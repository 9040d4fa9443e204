package portlayer

import (
	"net/netip"
	"regexp"
	"slices"

	"vch/guest"
	"vch/internal/fault"
)

// Handle is the draft of one container: its machine and its executor config. It is opened on a version of the container, edited (Join),
// and committed once. Nothing happens before Commit. A Handle belongs to one goroutine.
type Handle struct {
	Container ContainerID
	Version   uint64 // the version that it was opened on; 0 for a container that does not exist yet
	Spec      ContainerSpec
	Devices   []DeviceChange
	Shares    []Share // Config names them by their places here (guest.Share)
	Reaches   []Reach // what its machine has to reach
	Config    guest.ExecutorConfig
}

// Reach is a service outside that a machine reaches whatever its networks allow or forbid, as the server of a volume: by a link of its own, which its guest's kernel uses and no
// process of the container sees. Nothing else is reached by that.
type Reach struct {
	Address netip.AddrPort // where the guest finds it on the link: an address of no other meaning, the same for a service each time
	Service string         // what it is, for whoever connects to it (cmd joins the two)
}

// AddReach adds r to the draft, once.
func (h *Handle) AddReach(r Reach) {
	if !slices.Contains(h.Reaches, r) {
		h.Reaches = append(h.Reaches, r)
	}
}

// Share is a directory or a regular file of the hypervisor's host that a machine has, too.
type Share struct {
	Path          string // absolute and clean, without links
	Below         string // the directory that Path has to be in or is, likewise: nothing outside of it is reached, whatever has become of Path meanwhile
	ReadOnly      bool   // enforced on the host
	WritableBelow bool   // with ReadOnly: what is mounted below Path is not read-only for that
	NonRecursive  bool   // without what is mounted below Path
	Follow        bool   // what the host mounts below Path later is there, too
}

// Binds finds what BindMounts mount, on the hypervisor's host.
type Binds interface {
	// Share gives what a mount's Source is, its links followed. Denied where this VCH does not allow it; Invalid where it is not there, unless the mount says that it is to be made;
	// Unsupported for what is neither a directory nor a regular file.
	Share(m Mount) (Share, error)
	// Make makes the Source of a mount that says so, a directory, if it is not there.
	Make(m Mount) error
}

// DeviceChange is one change to a machine's devices.
type DeviceChange struct {
	Op   Op
	Disk Disk
}

// Op is what a DeviceChange does.
type Op string

// The operations.
const (
	Add    Op = "add"
	Remove Op = "remove" // by Disk.Serial; the file stays
)

// Disk is a disk of a machine.
type Disk struct {
	Serial   string   // names the disk in the guest, unique in the machine: 1 to 36 of [a-z0-9-]
	File     DiskPath // an existing disk; the machine never deletes it
	Size     Bytes    // with an empty File: the machine makes its own thin disk of this size, formatted ext4, at Define, and deletes it with itself
	ReadOnly bool     // enforced by the hypervisor
	Throttle Throttle // enforced by the hypervisor
}

// Throttle bounds how fast a disk is read and written, both together; the zero value does not.
type Throttle struct {
	IOPS int64 // requests a second; 0: as many as it can
	BPS  Bytes // bytes a second; 0: as many as it can
}

// MinDisk is the least size of a disk: what holds an empty ext4, with room to spare.
const MinDisk = 4 * MiB

var serialRule = regexp.MustCompile(`^[a-z0-9-]{1,36}$`)

// ApplyChanges gives the disks that changes leave of disks, which it does not touch. The kinds: Invalid for a serial, a size or an operation that cannot be, Conflict for
// a serial that is there already, NotFound for one that is not.
func ApplyChanges(disks []Disk, changes []DeviceChange) ([]Disk, error) {
	out := slices.Clone(disks)
	for _, c := range changes {
		i := slices.IndexFunc(out, func(d Disk) bool { return d.Serial == c.Disk.Serial })
		switch {
		case !serialRule.MatchString(c.Disk.Serial):
			return nil, fault.New(fault.Invalid, "disk serial %q is not 1 to 36 of a-z, 0-9 and dash", c.Disk.Serial)
		case c.Op == Add && i >= 0:
			return nil, fault.New(fault.Conflict, "the machine has a disk with serial %s already", c.Disk.Serial)
		case c.Op == Add && c.Disk.File == "" && c.Disk.Size < MinDisk:
			return nil, fault.New(fault.Invalid, "disk %s has neither a file nor a size of at least %d bytes", c.Disk.Serial, MinDisk)
		case c.Op == Add:
			out = append(out, c.Disk)
		case c.Op == Remove && i < 0:
			return nil, fault.New(fault.NotFound, "the machine has no disk with serial %s", c.Disk.Serial)
		case c.Op == Remove:
			out = slices.Delete(out, i, i+1)
		default:
			return nil, fault.New(fault.Invalid, "unknown device change %q", c.Op)
		}
	}
	return out, nil
}

// DiskPath names a disk file in the hypervisor's own way: a path on the host, or "[datastore] path".
type DiskPath string

// AddDisk adds d to the draft, or, when a disk with its serial is in it already, makes that one writable if d is. It reports whether it was added.
func (h *Handle) AddDisk(d Disk) bool {
	for i := range h.Devices {
		if have := &h.Devices[i]; have.Op == Add && have.Disk.Serial == d.Serial {
			have.Disk.ReadOnly = have.Disk.ReadOnly && d.ReadOnly
			return false
		}
	}
	h.Devices = append(h.Devices, DeviceChange{Op: Add, Disk: d})
	return true
}
