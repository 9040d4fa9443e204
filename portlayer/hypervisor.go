package portlayer

import (
	"context"
	"io"
	"net"
	"time"

	"vch/guest"
)

// MachineSpec is a machine as it is to be defined.
type MachineSpec struct {
	ID      ContainerID
	Memory  Bytes // of the machine, all told
	CPUs    int   // whole processors, at least 1
	Devices []DeviceChange
	Shares  []Share // Unsupported where machines cannot have any
	Name    string  // for people who look at the hypervisor's machines; "": the ID
	// Config is what its guest must do, as far as it is known; without an ID, nothing is. Where Machine.Carries, the guest gets what is Carried of it from the definition.
	Config guest.ExecutorConfig
}

// PowerState is whether a machine runs.
type PowerState string

// The power states.
const (
	PoweredOff PowerState = "off"
	PoweredOn  PowerState = "on"
)

// HypervisorInfo is what a hypervisor says of itself.
type HypervisorInfo struct {
	Name    string // "qemu", "fake"
	Version string
	Accel   string // "kvm", "tcg"; "" where it has no meaning
	Kernel  string // the guests' kernel release
	Detail  string // a sentence for the administrator, e.g. why not kvm
	Starts  string // another: how machines start now; "" where there is one way only
	CPUs    int    // processors of the hosts that machines run on, all together; 0: they run on this host
	Memory  Bytes  // of these hosts; 0: likewise
}

// Hypervisor makes machines. Definitions and power survive the process that uses it: after a restart, Machine finds
// every machine again, running ones included.
type Hypervisor interface {
	Info(ctx context.Context) (HypervisorInfo, error)
	// Define ensures that a machine spec.ID exists as spec says, powered off, and that its own disks are made. Again with the same ID it changes the
	// definition of a machine that is off (its own disk keeps its content) and is a Conflict for one that is on. A disk that is missing is NotFound here or when it is powered on. After an
	// error a machine that was not there before is not there.
	Define(ctx context.Context, spec MachineSpec) (Machine, error)
	// Machine finds a defined machine: NotFound if there is none.
	Machine(ctx context.Context, id ContainerID) (Machine, error)
	// Expect says that machines like spec are going to be wanted, its ID and Devices aside: they may be made ready for. It does not wait, and nothing that is
	// defined comes of it.
	Expect(spec MachineSpec)
	// List gives the ids of all defined machines, sorted.
	List(ctx context.Context) ([]ContainerID, error)
	Disks() Disks
	// Close lets go of everything without ending a machine.
	Close() error
}

// Machine is one defined machine.
type Machine interface {
	ID() ContainerID
	// Disks gives the disks of the machine's definition: those that it has while it is on, and gets when it is powered on next.
	Disks(ctx context.Context) ([]Disk, error)
	// Size is the memory and the number of processors of the machine's definition: those that it has while it is on.
	Size(ctx context.Context) (memory Bytes, cpus int, err error)
	// Reconfigure changes the disks of a machine, on (hot-plug) or off, and with them its definition. All or nothing. A disk that is added comes up in the
	// guest some time after; one that is removed is gone when it returns, whatever the guest still does with it: have the guest unmount it first. The
	// kinds: those of ApplyChanges; for a disk that is added to a machine that is on, those of PowerOn; Unsupported for what a machine that is on
	// cannot do: disks of its own come and go only while it is off, and one serial is not removed and added in one call. A call that the end
	// of this process cut off is finished by the next, which may be one of no changes.
	Reconfigure(ctx context.Context, changes []DeviceChange) error
	// Grown tells a machine that is on that Disks.Grow has made the disk with a serial longer; off: nothing happens. The guest hears of it some time after. NotFound if the machine has no such disk.
	Grown(ctx context.Context, serial string) error
	// PowerOn starts the machine and returns when it executes. A second call on a running machine does nothing. The kinds: InUse when another
	// machine holds a disk, NotFound when a disk file is missing, Conflict when one is damaged (shorter than its descriptor says).
	PowerOn(ctx context.Context) error
	// Seats gives the places that disks of a machine came into when it was powered on, or, those with a Slot, are in now, by Disk.Serial: their guest looks for them there. Where there
	// are none it is nil.
	Seats() map[string]guest.Seat
	// Carries reports whether the machine's definition has brought its guest the config of MachineSpec: then the guest is told the Rest.
	Carries() bool
	// PowerOff ends the machine at once, as pulling the plug. Off already: nothing happens. When it returns the machine's disks are free.
	PowerOff(ctx context.Context) error
	State(ctx context.Context) (PowerState, error)
	// Pause has a machine that is on stand still, whatever its guest does, until Resume; its guest's clock stands still, too. Again, nothing happens. Conflict for one that is off.
	Pause(ctx context.Context) error
	// Resume lets it go on. One that goes on already does. Conflict for one that is off.
	Resume(ctx context.Context) error
	// Channel connects to the guest channel of a running machine. One connection at a time has meaning: a new one replaces the old. One that is not answered may have to be
	// replaced (guest.Dial).
	Channel(ctx context.Context) (net.Conn, error)
	// Frames connects to the network card of a running machine: Ethernet frames both ways, each after its length in four bytes, most significant first. One connection at a time
	// has meaning: a new one replaces the old. While there is none the card's frames are lost.
	Frames(ctx context.Context) (net.Conn, error)
	// WaitOff returns nil when the machine is off, for whatever reason.
	WaitOff(ctx context.Context) error
	// Pid is the process on this host that is the machine; 0 when off or elsewhere.
	Pid() int
	// Diagnosis is what the machine said at its end: the last lines of the guest's console and of the hypervisor's own errors, for an error text.
	Diagnosis() string
	// Written is how many bytes its own disks take on the medium beyond what they took when they were new.
	Written(ctx context.Context) (Bytes, error)
	// Undefine powers off and deletes the machine with its own disks, and no other file. Idempotent.
	Undefine(ctx context.Context) error
}

// Disks makes, finds and deletes disks where the hypervisor's machines can reach them. A disk is a flat VMDK: a descriptor NAME.vmdk and an extent
// NAME-flat.vmdk; its DiskPath is the descriptor's. Small files (metadata) live beside them.
type Disks interface {
	// Create makes a thin disk holding an empty ext4 whose UUID and label come from spec.Label, or are one of Born's, with the directory guest.VolumeDir (root, 0755) in it, and as
	// large as the disk or less. It is durable on return. Conflict if the path exists; after an error nothing is left. The directory must exist.
	Create(ctx context.Context, path DiskPath, spec DiskSpec) error
	// Born is what the file system of a new disk may be called until a machine mounts it writable, which then gives it its own label and all of its disk; nil: it has that from the
	// beginning.
	Born() []Label
	// CreateDir makes the directory dir with a disk in it, as Create makes it, and a small file: whoever looks, and a process or machine that dies, finds all of that,
	// durable, or nothing. Conflict if something is at dir; after an error nothing is left. The directory above must exist.
	CreateDir(ctx context.Context, dir DiskPath, spec DirSpec) error
	// Stat is NotFound if the descriptor or the extent is missing, Conflict if the extent is shorter than the descriptor says or the descriptor cannot be read. One
	// that is longer was about to grow: the size is the descriptor's.
	Stat(ctx context.Context, path DiskPath) (DiskInfo, error)
	// Look looks at disks below dir, whose paths there are given, and at the small file called beside in the directory of each, and reads neither. Nobody has changed descriptor, size or
	// small file between two looks at a disk whose marks are the same and not zero. A zero mark cannot tell: something is missing, or was changed so lately that another change
	// could look the same. What a machine writes into a disk is no change. The answers are in the order of disks.
	Look(ctx context.Context, dir DiskPath, disks []string, beside string) []Look
	// Delete removes extent and descriptor; missing ones are no error. Of a disk without a descriptor that can be read it removes what has the name of its extent, unless that is a
	// disk itself or another's extent. Conflict if path is the extent of a disk.
	Delete(ctx context.Context, path DiskPath) error
	// Import moves the raw image at the local path into place as the disk path, wrapped as a flat VMDK. The local file is gone afterwards.
	Import(ctx context.Context, local string, path DiskPath) error
	// Copy makes the disk to as a copy of from: thin, sharing blocks with it where the medium can, durable on return. progress (nil: nobody asks) hears how many
	// of the bytes to copy are done. Conflict if to exists; after an error nothing is left of it.
	Copy(ctx context.Context, from, to DiskPath, progress Progressed) error
	// Open reads a disk's bytes: DiskInfo.Size of them.
	Open(ctx context.Context, path DiskPath) (io.ReadCloser, DiskInfo, error)
	// CreateFrom makes a disk of size bytes of what r gives, thin where that is zeros; durable on return. Invalid if r does not give size bytes and then its end; Conflict if
	// path exists; after an error nothing is left of it.
	CreateFrom(ctx context.Context, path DiskPath, size Bytes, r io.Reader) error
	// Grow makes a disk longer, durably; what is in it stays as it is. As long already: nothing happens. Invalid for a size that is less.
	Grow(ctx context.Context, path DiskPath, size Bytes) error
	// Link gives a disk a second path; Delete of one leaves the other. Conflict if to exists.
	Link(ctx context.Context, from, to DiskPath) error

	// Join is path elements put together in this hypervisor's way.
	Join(dir DiskPath, elem ...string) DiskPath
	MakeDir(ctx context.Context, dir DiskPath) error // with parents; existing: nothing happens
	// RemoveDir removes dir and all in it; missing: nothing happens. The name is gone, durably, before the content; of a few MiB, and where there is much room, that goes a moment later.
	RemoveDir(ctx context.Context, dir DiskPath) error
	// MoveDir gives a directory another path on the same medium, at once and durably. Conflict if something is at to; NotFound if from is missing.
	MoveDir(ctx context.Context, from, to DiskPath) error
	// List gives the names in dir, sorted; NotFound if dir is missing.
	List(ctx context.Context, dir DiskPath) ([]string, error)
	// WriteFile replaces a small file, atomically and durably. ReadFile is NotFound if it is missing.
	WriteFile(ctx context.Context, path DiskPath, data []byte) error
	ReadFile(ctx context.Context, path DiskPath) ([]byte, error)
	// Space is the size and the free room of the medium that holds dir. It also proves that dir can be written: Invalid for a file, Denied for one that
	// cannot be written, NotFound for one that is missing.
	Space(ctx context.Context, dir DiskPath) (total, free Bytes, err error)
}

// Progressed hears of a long piece of work: how many bytes are done, of how many. It does not wait.
type Progressed func(done, total Bytes)

// DiskSpec is a disk to be made.
type DiskSpec struct {
	Size  Bytes // rounded up to 512, or to 1024 where the hypervisor counts so; at least MinDisk, or Invalid
	Label Label
}

// DirSpec is a directory to be made with a disk in it.
type DirSpec struct {
	Disk DiskSpec
	Name string // of the disk's descriptor, NAME.vmdk
	File string // name of the small file
	Data []byte // what the small file holds
	// Again says that more like it may be asked for in the same place, so that something for these may be kept ready there, which no one sees who looks by this contract.
	// It is gone when the hypervisor is closed.
	Again bool
}

// Look is what Disks.Look saw of one disk. But for Mark, what is zero was not told.
type Look struct {
	Mark      [9]uint64 // to be compared only
	Allocated Bytes     // on the medium
	Size      Bytes     // of the disk, by its descriptor; its extent may be damaged
	Alone     bool      // no other disk is below the directory of this one
	Gone      bool      // there is no directory where that of this one should be
}

// DiskInfo is a disk as it is.
type DiskInfo struct {
	Size      Bytes
	Allocated Bytes // on the medium
	Modified  time.Time
}
