package portlayer

import (
	"context"
	"io"
	"strconv"
	"time"

	"vch/guest"
)

// Volume is a volume as its store describes it.
type Volume struct {
	Name     VolumeName
	Store    StoreName
	Driver   string // qemu-vmdk, qemu-nfs, vsphere-vmdk, vsphere-nfs
	Label    Label
	Source   guest.Source      // what a guest that has it mounted knows it by
	Shared   bool              // any number of machines may have it writable at once
	Capacity Bytes             // 0: the store has no limit of its own
	Throttle Throttle          // on all its machines
	Options  map[string]string // as asked for at creation; nil for none
	Labels   map[string]string // nil for none
	Created  time.Time
	Maker    string // the handle (container id) whose commit made it; "" for one made by itself
	VCH      string // the id of the VCH that made it; "": it is not known
	// Was is what the volume was called before, as the copy of another or under another name: its file system may still have one of these for its UUID.
	Was []Label

	// Qualified says that this VCH's users call it NAME@STORE, because they did or because the plain name means another. Stores leave it false.
	Qualified bool
}

// ID is the volume's identity.
func (v Volume) ID() VolumeID { return VolumeID{Name: v.Name, Store: v.Store} }

// Ref is the volume as users of this VCH call it: NAME, or NAME@STORE.
func (v Volume) Ref() string {
	if v.Qualified {
		return v.ID().String()
	}
	return string(v.Name)
}

// VolumeSpec asks for a volume.
type VolumeSpec struct {
	Name     VolumeName
	Capacity Bytes // 0: the store's default
	Throttle Throttle
	Options  map[string]string
	Labels   map[string]string
	Maker    string
	VCH      string
	From     *VolumeSource // what its content is copied from; nil: it is empty
	Packed   io.Reader     // what Pack has written: its content is that; nil: it is empty. It is read to its end
	Created  time.Time     // zero: now
	Progress Progressed    // of the copying; nil: nobody asks
}

// VolumeSource is what a copy of a volume is made from. Nobody writes to it meanwhile.
type VolumeSource struct {
	Disk     DiskPath
	Capacity Bytes
	Labels   []Label // what its file system may have for its UUID
}

// Snapshot is a volume as it was at a moment.
type Snapshot struct {
	Name      string
	Created   time.Time
	Capacity  Bytes
	Allocated Bytes // what it takes of its medium, blocks that it shares included
}

// ProtectLabel keeps a volume from being removed: with the value "", or one that is true (strconv.ParseBool).
const ProtectLabel = "vch.protect"

// Protected reports whether the volume's labels keep it from being removed.
func (v Volume) Protected() bool {
	value, ok := v.Labels[ProtectLabel]
	on, err := strconv.ParseBool(value)
	return ok && (value == "" || err == nil && on)
}

// VolumeUsage is what a volume takes of its store.
type VolumeUsage struct {
	Capacity  Bytes
	Allocated Bytes // on its medium; -1: it is not known
}

// StoreStatus is how a store is.
type StoreStatus struct {
	Degraded string // why the store cannot be used now; "" when it can
	Total    Bytes  // of the file system behind it
	Free     Bytes
}

// StoreInfo is a store as a door shows it.
type StoreInfo struct {
	Name     StoreName
	Driver   string
	Location string // as the administrator gave it, or so that it can be given
	Status   StoreStatus
}

// VolumeStore keeps volumes. A store describes itself: opened by another VCH it shows the same volumes.
//
// A store whose medium cannot be reached is degraded: Status says so, every other call fails at once with Unavailable and the reason, and
// the store recovers by itself when the medium is back.
type VolumeStore interface {
	Name() StoreName
	Driver() string
	Location() string
	Status(ctx context.Context) StoreStatus
	// Ensure finds the volume spec.Name or makes it, formatted, empty and durable. made is true only for the one call that made it, however many
	// ask at once. An existing volume is returned as it is. After an error nothing is left of a volume that was not there before.
	// Invalid: a name or a size that the store cannot hold, or one that is less than what it is copied from.
	Ensure(ctx context.Context, spec VolumeSpec) (vol Volume, made bool, err error)
	// Get is NotFound ("no such volume") for one that is not there. A volume whose files are damaged (a truncated extent, an unreadable
	// volume.json) is Conflict with the damage named: it is never taken for missing and never made anew over what is left.
	Get(ctx context.Context, name VolumeName) (Volume, error)
	// List gives all volumes sorted by name, damaged ones left out and reported together in err beside the good ones.
	List(ctx context.Context) ([]Volume, error)
	// Remove deletes a volume and what it holds. NotFound if it is not there. Interrupted, a second Remove finishes it; until then it is not listed.
	Remove(ctx context.Context, name VolumeName) error
	Usage(ctx context.Context, name VolumeName) (VolumeUsage, error)
	// Source is what a copy of a volume is made from, or one of its snapshot unless that is "".
	Source(ctx context.Context, name VolumeName, snapshot string) (VolumeSource, error)
	// Pack writes a volume, or one of its snapshot unless that is "", in the form in which the store's medium keeps it: VolumeSpec.Packed of this store or another of its kind. Nobody
	// writes to it meanwhile.
	Pack(ctx context.Context, name VolumeName, snapshot string, w io.Writer) error
	// Grow gives a volume capacity, rounded up as by Ensure. The file system in it does not grow by that. Invalid for less than it has.
	Grow(ctx context.Context, name VolumeName, capacity Bytes) (Volume, error)
	// Rename gives a volume another name, with all that it has, its snapshots included. Its label is that of the new name. Conflict if that is taken. Interrupted, the volume
	// has one of the two names.
	Rename(ctx context.Context, from, to VolumeName) (Volume, error)
	// Snapshot keeps a volume as it is now, under a name. Nobody writes to it meanwhile. Conflict if the volume has one of that name; Invalid for a name that is not [a-zA-Z0-9][a-zA-Z0-9_.-]*.
	// After an error, or interrupted, there is none.
	Snapshot(ctx context.Context, name VolumeName, snapshot string, progress Progressed) (Snapshot, error)
	// Snapshots lists a volume's snapshots, oldest first.
	Snapshots(ctx context.Context, name VolumeName) ([]Snapshot, error)
	// RemoveSnapshot is NotFound for one that is not there.
	RemoveSnapshot(ctx context.Context, name VolumeName, snapshot string) error
	// SetLabels replaces a volume's labels, durably; all else stays.
	SetLabels(ctx context.Context, name VolumeName, labels map[string]string) (Volume, error)
	// Join puts vol into the draft h, to be mounted at m.Target with m's options, when h is committed.
	// It changes h and nothing else: no disk is attached and no file is touched before Commit.
	// Joining the same volume again at another target adds a mount and no second disk; it is then read-only only if every join of it is.
	Join(ctx context.Context, h *Handle, vol Volume, m Mount) error
}

// DirectoryStore is a VolumeStore whose volumes are directories. They have no capacity and no throttle: VolumeSpec's are not looked at. They are no copies and no packs, and have no
// snapshots: Ensure with From or Packed, Source, Pack, Grow and Snapshot are Unsupported for them. They have options of their own.
type DirectoryStore interface {
	VolumeStore
	// CheckOptions refuses what a volume cannot have by its name: Invalid, Unsupported, or Denied where the store's administrator has not allowed it. own has what is no option of every
	// store's volumes.
	CheckOptions(own map[string]string) error
	// Settings is how a volume is kept and mounted, with all that holds, as sorted NAME=VALUE.
	Settings(vol Volume) []string
	// Adopt makes a directory of the store's medium, given by its path there, the volume spec.Name, with what is in it, where it is. Conflict if that is there, or if the directory is in
	// another's, or has one in it; NotFound if there is no such directory.
	Adopt(ctx context.Context, spec VolumeSpec, dir string) (Volume, error)
}

// Volumes is what a door does with volumes. A plain name that several stores know means the volume that this VCH made or used first; where that
// is not clear it is a Conflict that lists the candidates. NAME@STORE always means one, and nothing is asked of other stores.
type Volumes interface {
	// Create finds or makes a volume. name "" makes one with a random 64-hex name. driver "" or "local": the store decides.
	// A plain name that no store knows is made in the store of the options, or in the default store. Options it does not know are Invalid by name. Other options or another driver on an existing name are a Conflict that shows both.
	Create(ctx context.Context, req VolumeRequest) (Volume, error)
	Get(ctx context.Context, id VolumeID) (VolumeDetail, error)
	// List gives all volumes of all stores, sorted by name and store; warnings name degraded stores and damaged volumes.
	List(ctx context.Context) ([]VolumeDetail, []string, error)
	// Remove is InUse, naming every container, while any refers to it, and Conflict while it has snapshots.
	Remove(ctx context.Context, id VolumeID) error
	// Protect gives a volume the label ProtectLabel, or takes it away. A protected volume is not removed by anything: Remove is a Conflict that says so, Prune
	// and the removal of a container leave it.
	Protect(ctx context.Context, id VolumeID, on bool) (Volume, error)
	// Resize gives a volume more capacity (text as the option Capacity has it), and its file system with it, while a container that has it writable runs or while
	// none does. Invalid for less than it has; InUse while containers that run only read it.
	Resize(ctx context.Context, id VolumeID, capacity string) (Volume, error)
	// Rename gives a volume another name in its store. InUse, naming every container, while any refers to it.
	Rename(ctx context.Context, id VolumeID, to VolumeName) (Volume, error)
	// Adopt makes a directory of a store's medium the volume req.Name, by DirectoryStore.Adopt. Of req Name, Store, Options and Labels are looked at. Unsupported for a store whose volumes are
	// no directories.
	Adopt(ctx context.Context, req VolumeRequest, dir string) (Volume, error)
	// Move puts a volume into another store. InUse, naming every container, while any refers to it; Conflict while it has snapshots, which would not come with
	// it. Interrupted, it is in both, whole in the first.
	Move(ctx context.Context, id VolumeID, to StoreName, progress Progressed) (Volume, error)
	// Snapshot keeps a volume as it is at one moment; a container that writes to it meanwhile waits. name "" is the time.
	Snapshot(ctx context.Context, id VolumeID, name string, progress Progressed) (Snapshot, error)
	// Snapshots lists them, oldest first.
	Snapshots(ctx context.Context, id VolumeID) ([]Snapshot, error)
	RemoveSnapshot(ctx context.Context, id VolumeID, name string) error
	// Export writes a volume's content as a tar, with owners, modes, times, extended attributes and links. A container that writes to it meanwhile goes on.
	Export(ctx context.Context, id VolumeID, w io.Writer) error
	// Import makes a volume, which must not be there, of a tar. After an error there is none.
	Import(ctx context.Context, req VolumeRequest, r io.Reader) (Volume, error)
	// ExportDisk writes the disk of a volume itself, NAME or NAME@STORE, or of a snapshot, either with @SNAPSHOT. InUse while a container writes to the volume, though not to the snapshot.
	ExportDisk(ctx context.Context, ref string, w io.Writer) error
	// ImportDisk makes a volume, which must not be there, of what ExportDisk has written. After an error there is none.
	ImportDisk(ctx context.Context, req VolumeRequest, r io.Reader) (Volume, error)
	// Prune removes every volume without references for which pick says yes, but for protected ones and those with snapshots, and returns them with the bytes that they held.
	Prune(ctx context.Context, pick func(Volume) bool) ([]Volume, Bytes, error)
	// Locations says where each store is. It asks none, so that one which hangs keeps nobody.
	Locations() map[StoreName]string
	// Stores gives the stores with a driver, sorted by name; "" : all.
	Stores(ctx context.Context, driver string) []StoreInfo
	// Store gives one store, its driver with it: Invalid for one that is not there, listing those that are.
	Store(ctx context.Context, name StoreName) (StoreInfo, error)
}

// VolumeRequest is what a door asks for.
type VolumeRequest struct {
	Name    VolumeName
	Store   StoreName // "": that of the options, or where the name is known, or the default store
	Driver  string
	Options map[string]string // "Capacity" (or "size"), "VolumeStore", "iops", "bps" and "from" (NAME[@STORE][@SNAPSHOT]), keys in any case
	Labels  map[string]string
}

// VolumeDetail is a volume with what only the service knows.
type VolumeDetail struct {
	Volume
	Refs     []ContainerID // containers that refer to it, sorted
	Attached []Attachment  // running containers that hold its disk
	Usage    VolumeUsage
	Status   StoreStatus // of its store; Get only
	Inside   *Inside     // nil: nobody has looked
	Settings []string    // DirectoryStore.Settings; Get only
}

// Inside is how full a volume's file system is, as the last machine said that had it.
type Inside struct {
	Total Bytes
	Free  Bytes
	Time  time.Time // when it said so
}

// Content is what the volume service needs of the container service: what only a machine does to a volume's file system.
type Content interface {
	// Freeze has running container c write nothing to vol until thaw, and all that it has written be on the disk. An error of thaw says that it was not so to the end.
	Freeze(ctx context.Context, c ContainerID, vol Volume) (thaw func() error, err error)
	// Grow makes the file system in vol as large as its disk. InUse while containers that run only read it.
	Grow(ctx context.Context, vol Volume) error
	// Export is that of Volumes, for a volume that is there.
	Export(ctx context.Context, vol Volume, w io.Writer) error
	// Import makes the volume id by make, whose Maker is maker, and fills it from a tar. After an error the caller removes what was made; cut off by the end of this
	// process, the next one does.
	Import(ctx context.Context, id VolumeID, maker string, make func() (Volume, error), r io.Reader) error
	// Inside is nil where no machine has said it.
	Inside(ctx context.Context, vol Volume) *Inside
}

// Attachment is a running container that holds a volume.
type Attachment struct {
	Container ContainerID
	ReadOnly  bool
}

// Binder is what the container service needs of the volume service beside Volumes. A container is named by its id; who is its name
// for messages.
type Binder interface {
	// Reserve finds or makes the volume that m asks for and records, atomically with it, that c refers to it: from then on Remove is InUse. It returns m with
	// Volume, Store and Driver filled in, and Anonymous set if m named none. made says that this call made the volume (its Maker is then c). A mount taken over (FromContainer) makes none: its
	// volume is there, or NotFound.
	// A store or driver in m that disagrees with an existing volume is a Conflict; no default store for a new volume is Invalid and says how to add one.
	Reserve(ctx context.Context, c ContainerID, m Mount) (reserved Mount, made bool, err error)
	// Refer records that c refers to the volume id, whose store is named, found again after a restart. It makes nothing; the volume may be missing.
	Refer(c ContainerID, id VolumeID)
	// Release forgets all references of c.
	Release(c ContainerID)
	// ReleaseVolume forgets that c refers to the volume id, whose store is named; its other references stay.
	ReleaseVolume(c ContainerID, id VolumeID)
	// Unmake removes the volume if no container refers to it and, when maker is not "", its Maker is maker. Missing or still in use: nothing happens.
	Unmake(ctx context.Context, id VolumeID, maker ContainerID) error
	// Join finds m's volume and calls its store's Join.
	Join(ctx context.Context, h *Handle, m Mount) error
	// Attach records that running container c, called who, holds the volumes of mounts, all or none. A volume has one writer or any number of readers:
	// otherwise InUse, naming the holder, its mode and what to do. The same container may hold a volume by several mounts.
	Attach(c ContainerID, who string, mounts []Mount) error
	// Detach forgets what c holds.
	Detach(c ContainerID)
	// DetachMounts forgets that c holds volumes by these of its mounts. Of a volume it holds what its other mounts need; without one, nothing.
	DetachMounts(c ContainerID, mounts []Mount)
}
