package portlayer

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"vch/guest"
)

// ContainerSpec is what a container was asked to be. It does not change after create, but for the name.
type ContainerSpec struct {
	Name     string // [a-zA-Z0-9][a-zA-Z0-9_.-]+; "" at create: one is made
	Image    string // the reference or id that the user gave
	Hostname string // "" : the first 12 digits of the id
	Domain   string

	Process     guest.Process // Args is never empty: entrypoint and command, merged with the image's by the door
	StopSignal  int           // signal(7) number; 0: SIGTERM
	StopTimeout *int          // seconds; nil: 10; -1: for ever
	StdinOnce   bool          // close the process's stdin when the first attached client leaves
	AutoRemove  bool          // remove it, with its anonymous volumes, when it exits; not with a Restart
	Restart     RestartPolicy

	Mounts   []Mount // explicit ones and those of the image's VOLUMEs, targets unique, sorted by target
	ReadOnly bool    // the root file system
	ShmSize  Bytes   // 0: 64 MiB
	Memory   Bytes   // limit of the container's processes; 0: the VCH's --memory. The machine gets MachineOverhead more
	CPUs     int64   // billionths of a processor; 0: the VCH's --cpus. The machine gets as many whole processors as this needs
	PidsMax  int64   // 0: no limit

	Networks   []Endpoint // none: it has its loopback only
	Ports      []Port
	ExtraHosts []string // "name:address" lines for /etc/hosts; the address host-gateway is the gateway of its first network, which stands for the host's loopback then
	DNS        []string // whom to ask for names that are no container's; none: whom the host asks
	DNSSearch  []string
	DNSOptions []string
	Sysctls    map[string]string

	Health *Healthcheck // nil: nobody asks

	Labels map[string]string
	LogMax LogLimit

	// Door is what the door that made the container wants back when it shows it. The port layer keeps it and never reads it.
	Door json.RawMessage
}

// RestartPolicy says when a container that has exited is started again; the zero value never.
type RestartPolicy struct {
	When RestartWhen
	Most int // RestartOnFailure: how often since its user started it; 0: no limit
}

// RestartWhen is a restart policy's name.
type RestartWhen string

// The restart policies. What its user has stopped is not started again before vch itself is, and by RestartUnlessStopped not then.
const (
	RestartNever         RestartWhen = ""
	RestartAlways        RestartWhen = "always"
	RestartUnlessStopped RestartWhen = "unless-stopped"
	RestartOnFailure     RestartWhen = "on-failure" // an exit code other than 0; not when vch starts
)

// LogLimit bounds a container's log; the zero value does not.
type LogLimit struct {
	Size  Bytes // of one file, before it is rotated; 0: never
	Files int   // kept, the current one included; 0 or 1: one
	None  bool  // nothing is kept, and Logs is Unsupported; with no Size and Files
}

// Phase is a container's state.
//
//	created ──start──▶ running ──exit, stop, kill──▶ exited ──start──▶ running …
//	   │                  └──exit──▶ restarting ──after a while──▶ running …
//	   │               running ──pause──▶ paused ──unpause──▶ running
//	   └────────────remove───────▶ (gone) ◀──remove── exited
type Phase string

// The phases. A start that fails leaves the phase that was, with State.Error set and, as in Docker, an exit code of 127, 126 or 128.
const (
	Created    Phase = "created"
	Running    Phase = "running"
	Paused     Phase = "paused"     // it runs, and its machine stands still
	Restarting Phase = "restarting" // it has exited, and its Restart policy has it started again
	Exited     Phase = "exited"
	Removing   Phase = "removing"
	Dead       Phase = "dead" // could not be removed whole; State.Error says why
)

// State is what has become of a container.
type State struct {
	Phase      Phase
	Restarts   int         // by the Restart policy, since its user started it
	ByHand     bool        // its user ended it last; told only where the Restart policy asks
	Links      []Link      // while it runs
	Ports      []Published // likewise
	Reaches    []Reach     // likewise
	Pid        int         // of the machine's process on this host; 0 when not running or on another host
	ExitCode   int
	OOMKilled  bool
	Error      string // why the last start failed, or why the machine ended without a report
	StartedAt  time.Time
	FinishedAt time.Time
	Health     *Health        // as of the last probe; nil without Healthcheck. After a restart of vch it is Starting
	Timings    []guest.Timing // of the last start, host phases (define, boot) and guest phases in order
}

// Container is one container as it is now: a copy that does not change.
type Container struct {
	ID      ContainerID
	Version uint64 // counts commits; a stale one fails a Commit
	Created time.Time
	Image   ImageID
	Spec    ContainerSpec
	State   State
	Execs   []string // ids of execs that have not been forgotten
	LogPath string
}

// Mount is one mount point that a container was asked to have.
type Mount struct {
	Kind      MountKind
	Volume    VolumeName        // Kind VolumeMount; in a spec for Create "" asks for an anonymous one, afterwards it is always the name
	Anonymous bool              // Volume was made because no name was given, for this container or for the one whose mounts it took over; a recorded fact
	Store     StoreName         // in a spec for Create "": where Volume is found, or the default store for a new one; afterwards the store that has it
	Qualified bool              // the volume was asked for as NAME@STORE
	Driver    string            // as asked for; "" or "local": the store decides
	Shared    bool              // in a spec for Create false; afterwards whether any number of machines may have Volume writable at once
	Options   map[string]string // for a volume that has to be made
	Labels    map[string]string // for a volume that has to be made
	Source    string            // Kind BindMount: absolute and clean; links in it are followed
	Make      bool              // Kind BindMount: a Source that is not there is made, a directory, when the container starts
	Bind      BindOptions       // Kind BindMount
	Target    string            // absolute and clean
	Subpath   string            // Kind VolumeMount: the directory or file of Volume to mount, relative, inside it, there at start; "": all
	ReadOnly  bool
	NoCopy    bool     // do not copy the image's content into an empty volume
	Tmpfs     []string // Kind TmpfsMount: options as in mount(8)
	Mode      string   // the list that the user wrote after the target; shown, not interpreted here
	Origin    MountOrigin
	From      ContainerID // Origin FromContainer: the container that had the mount first, whose image fills a volume that was never written
}

// BindOptions are what Share has of the same names.
type BindOptions struct {
	NonRecursive, WritableBelow, Follow bool
}

// ID is the identity of the mount's volume.
func (m Mount) ID() VolumeID { return VolumeID{Name: m.Volume, Store: m.Store} }

// VolumeRef is the mount's volume as it was asked for: NAME or NAME@STORE.
func (m Mount) VolumeRef() string {
	if m.Qualified {
		return m.ID().String()
	}
	return string(m.Volume)
}

// MountKind is what is mounted.
type MountKind string

// The kinds.
const (
	VolumeMount MountKind = "volume"
	BindMount   MountKind = "bind" // a directory or file of the VCH's host
	TmpfsMount  MountKind = "tmpfs"
)

// MountOrigin is how a mount was asked for; a door shows its own mounts back by it.
type MountOrigin string

// The origins. The words are the port layer's, not Docker's.
const (
	FromImage MountOrigin = "image" // a VOLUME of the image, or a bare target
	FromSpec  MountOrigin = "spec"  // text: source:target:mode
	FromMount MountOrigin = "mount" // a structured mount
	FromTmpfs MountOrigin = "tmpfs"
	// FromContainer is another container's mount taken over: Volume is there already, and is not made if it is not.
	FromContainer MountOrigin = "container"
)

// Containers is what a door does with containers. ref is an id, a unique prefix of one, or a name (with or without a leading slash); an
// unknown one is NotFound ("no such container: REF"), an ambiguous prefix Invalid.
type Containers interface {
	// Create opens a handle, joins image and volumes, and commits it. It makes missing named volumes and the anonymous ones. Warnings are
	// sentences for the user. A name in use is a Conflict that names the holder. After an error nothing is left, but named volumes made before it.
	Create(ctx context.Context, spec ContainerSpec) (Container, []string, error)
	Get(ctx context.Context, ref string) (Container, error)
	// List gives every container, newest first.
	List(ctx context.Context) ([]Container, error)
	// Written is how many bytes of its store a container's own disk takes for what the container has written, its volumes not counted.
	Written(ctx context.Context, ref string) (Bytes, error)
	// Start powers the machine on and returns when the process runs. Already running: ErrNotModified. A failure says exactly why, and leaves
	// no machine running. A volume held by another running container is InUse and names it.
	Start(ctx context.Context, ref string) error
	// Stop signals (signal 0: the container's stop signal), waits timeout seconds (nil: the container's), kills, and returns when the machine is off.
	// Not running: ErrNotModified.
	Stop(ctx context.Context, ref string, signal int, timeout *int) error
	// Kill sends a signal to the process; SIGKILL (9) also ends a machine that does not answer. Not running: Conflict.
	Kill(ctx context.Context, ref string, signal int) error
	Restart(ctx context.Context, ref string, signal int, timeout *int) error
	// Pause has a running container's machine stand still; what needs its processes is a Conflict meanwhile. For who looks at its files, or lists its processes, the machine goes on without them. Stop, Kill with a signal that ends it, and Remove let it go on first.
	// Conflict if it is paused, or does not run.
	Pause(ctx context.Context, ref string) error
	// Unpause lets it go on, with its clock set. Conflict if it is not paused.
	Unpause(ctx context.Context, ref string) error
	// Remove deletes a container and its own disk; volumes says whether its anonymous volumes go too. Running without force: Conflict.
	Remove(ctx context.Context, ref string, force, volumes bool) error
	Rename(ctx context.Context, ref, name string) error
	// Wait returns when until holds. For UntilRemoved the container may be gone when it returns. started, if not nil, is called once the
	// wait has begun, so that no exit after that is missed.
	Wait(ctx context.Context, ref string, until WaitUntil, started func()) (State, error)
	// AttachVolume mounts one more volume in a container, which is Join on a handle of it, committed: at once in one that runs, whose processes see it when
	// the call returns, and at every start from then on. m names its volume; one that is not there is made, as by Create. It returns m as it is
	// recorded. The kinds: Invalid for a target that nothing can be mounted at, Conflict for one where, or in one that runs below which, something is mounted
	// already, and for a writable mount of a volume that a running container has read-only; InUse, naming the holder, as by Start. After an error the
	// container is as it was; a volume that was made stays.
	AttachVolume(ctx context.Context, ref string, m Mount) (Mount, error)
	// DetachVolume takes the volume away that is mounted at target, and returns its mount: at once in a container that runs, whose machine has
	// written everything out and no disk of it any more when the call returns, and for later starts. The volume stays. NotFound where no volume is mounted;
	// InUse, naming them, while processes use it or something is mounted below.
	DetachVolume(ctx context.Context, ref, target string) (Mount, error)
	// ConnectNetwork puts a container on one network more: at once, if it runs, and at its later starts. Denied if it is on it already.
	ConnectNetwork(ctx context.Context, ref string, e Endpoint) error
	// DisconnectNetwork takes it off one, by its name or id. NotFound if it is not on it.
	DisconnectNetwork(ctx context.Context, ref, network string) error
	// Logs calls emit for each entry, in order. With Follow it goes on until the container exits or ctx ends.
	Logs(ctx context.Context, ref string, o LogOptions, emit func(LogEntry) error) error
	// Attach joins s to the container's streams and returns when the process ended, the streams closed, or ctx ended. attached, if not nil, is called
	// once no output can be missed any more. It may be called before Start: it then waits for it.
	Attach(ctx context.Context, ref string, s AttachStreams, attached func()) error
	// Resize sets the TTY's size; before Start it is what the TTY will start with.
	Resize(ctx context.Context, ref string, rows, cols uint16) error
	// StatPath looks at a path of the container, running or not, with all that is mounted for it; a volume that another container holds is looked at there.
	// For one that does not run, its machine is booted and serves paths until it has had nothing to do for a while, or something else wants it or its volumes.
	// NotFound: it is not there. The end of path has the meaning of lstat(2); ".." in it is taken off before any link is followed.
	StatPath(ctx context.Context, ref, path string) (guest.PathStat, error)
	// CopyOut writes a tar of path: a directory with its name and what is below it ("." if path ends in "/."), or one file. begin is called once with what path
	// is, before anything is written, and says where to.
	CopyOut(ctx context.Context, ref, path string, begin func(guest.PathStat) (io.Writer, error)) error
	// CopyIn extracts a tar, not compressed, into the directory at path, links on the way followed. Denied: what is there is mounted read-only. InUse: it is in
	// a volume that another container has, which reads it only, or that is below path. ErrArchive: the archive could not be extracted to its end; what came
	// before stays, as it does with every other error after the first entry. archive may still be read when it returns: the caller closes what is behind it.
	CopyIn(ctx context.Context, ref, path string, archive io.Reader, o CopyOptions) error
	// ExportRoot writes a tar of the container's root file system, running or not, without what is mounted in it. Nothing was written where it returns an error before the first byte.
	ExportRoot(ctx context.Context, ref string, w io.Writer) error
	// Changes tells how the container's root file system differs from its image, as guest.Archives.Changes.
	Changes(ctx context.Context, ref string) ([]guest.Change, error)
	// MakeImage makes an image of the container's image and what its root file system has changed; what is mounted in it is not in that.
	MakeImage(ctx context.Context, ref string, o MakeImage) (Image, error)
	// Top lists the processes; not running: Conflict.
	Top(ctx context.Context, ref string) ([]guest.ProcessInfo, error)
	// Stats counts what the container uses; of one that is paused, what it had used before. Not running: Conflict.
	Stats(ctx context.Context, ref string) (guest.Stats, error)
	// Update changes limits and the restart policy: at once, in one that runs, and for its later starts. Unsupported: its machine cannot get that while it
	// runs; Invalid: its processes cannot do with it. After an error the container is as it was.
	Update(ctx context.Context, ref string, up ContainerUpdate) error

	// ExecCreate prepares a process to run in a running container; door is kept like ContainerSpec.Door. Not running: Conflict.
	ExecCreate(ctx context.Context, ref string, p guest.Process, door json.RawMessage) (string, error)
	// ExecStart runs it once and returns when it ended; a second time is a Conflict. started is called when the process runs. With detach it returns then.
	ExecStart(ctx context.Context, exec string, s AttachStreams, detach bool, started func()) error
	ExecGet(ctx context.Context, exec string) (Exec, error)
	ExecResize(ctx context.Context, exec string, rows, cols uint16) error
}

// ContainerUpdate is what Update changes; nil stays.
type ContainerUpdate struct {
	Memory  *Bytes // 0: the VCH's --memory
	CPUs    *int64 // billionths of a processor; 0: the VCH's --cpus
	PidsMax *int64 // 0: no limit
	Restart *RestartPolicy
	Door    json.RawMessage // ContainerSpec.Door
}

// Apply puts the changes into spec.
func (up ContainerUpdate) Apply(spec *ContainerSpec) {
	if up.Memory != nil {
		spec.Memory = *up.Memory
	}
	if up.CPUs != nil {
		spec.CPUs = *up.CPUs
	}
	if up.PidsMax != nil {
		spec.PidsMax = *up.PidsMax
	}
	if up.Restart != nil {
		spec.Restart = *up.Restart
	}
	if up.Door != nil {
		spec.Door = up.Door
	}
}

// MakeImage is how Containers.MakeImage makes an image.
type MakeImage struct {
	Derived
	Still bool // the container's processes, if it runs, stand still while its files are read
}

// CopyOptions is how an archive is extracted.
type CopyOptions struct {
	NoOverwrite bool // a directory is not replaced by something else, nor the other way
	Owned       bool // everything is given to the user that the container's process runs as, if one is named; otherwise to whom the archive says
}

// WaitUntil is what Containers.Wait waits for.
type WaitUntil int

// Conditions.
const (
	UntilNotRunning WaitUntil = iota // returns at once if it is not running
	UntilNextExit
	UntilRemoved
)

// LogEntry is one piece of output as it came: a line with its newline, or a part of a long one.
type LogEntry struct {
	Time   time.Time
	Stream guest.Stream
	Data   []byte
}

// LogOptions chooses entries. The zero value is everything so far.
type LogOptions struct {
	Follow       bool
	Tail         int       // the last Tail lines; negative: all. (0 is none.)
	Since, Until time.Time // zero: no bound
	Stdout       bool
	Stderr       bool
}

// AttachStreams is a client's side of a process. Nil members are not attached.
type AttachStreams struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	// Replay sends what the log holds first, then what follows.
	Replay bool
	// Live says whether to stay for what comes; without it the call returns after Replay.
	Live bool
}

// Exec is a process that was added to a running container.
type Exec struct {
	ID        string // 64 hex digits
	Container ContainerID
	Process   guest.Process
	Running   bool
	Pid       int         // in the guest
	Exit      *guest.Exit // nil until it ended
	Door      json.RawMessage
}
