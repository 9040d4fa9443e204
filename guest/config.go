package guest

import (
	"strconv"
	"strings"
	"time"
)

// ExecutorConfig is all that a container VM must do, once: mounts, files, one process. The port layer writes it,
// the tether reads it. Nothing in it names a host path.
type ExecutorConfig struct {
	ID       string          `json:"id"`                 // the container's id; "" is refused
	AtStart  bool            `json:"at_start,omitempty"` // this is the Rest; the machine carries the rest of it
	Hostname string          `json:"hostname"`           // sethostname(2); at most 64 bytes
	Domain   string          `json:"domain,omitempty"`
	Root     Root            `json:"root"`
	Seats    map[string]Seat `json:"seats,omitempty"`  // of the disks that are in one, by the serial that Sources name them by
	Mounts   []MountSpec     `json:"mounts,omitempty"` // in any order: the tether mounts parents before what lies below them
	Files    []File          `json:"files,omitempty"`  // written over the image's: /etc/hosts, /etc/hostname, /etc/resolv.conf
	Network  Network         `json:"network,omitzero"`
	Sysctls  []Sysctl        `json:"sysctls,omitempty"`
	ShmSize  int64           `json:"shm_size"` // bytes of /dev/shm; 0 means 64 MiB; Docker HostConfig.ShmSize
	Limits
	Process *Process `json:"process"`         // nil: mount, copy up, unmount, report exit 0 (a utility VM that populates a volume)
	Serve   bool     `json:"serve,omitempty"` // with a nil Process: mount, copy up, and be Running for Archives until Shutdown. No tmpfs of Mounts is mounted: what went there would be lost
	// Rehearsal: the process is not a container's. When it has exited, Reset makes the machine wait for a config again.
	Rehearsal bool      `json:"rehearsal,omitempty"`
	Clock     time.Time `json:"clock"`   // the host's time when it sent this; the guest sets its clock from it
	Entropy   []byte    `json:"entropy"` // 32 to 512 random bytes, mixed into the guest's pool, from which it takes new keys before anything else runs
}

// Seat is where a disk is whose serial the guest does not see: a place which the machine had before, larger than any disk and with a serial of its own, or, with a Slot, an
// address on a SCSI controller.
type Seat struct {
	Serial   string `json:"serial,omitempty"`    // of the place
	Size     int64  `json:"size,omitempty"`      // bytes of the disk; 0: as large as it looks
	Slot     int    `json:"slot,omitempty"`      // number of the controller's PCI slot (/sys/bus/pci/slots); 0: Serial says where
	Unit     int    `json:"unit,omitempty"`      // SCSI target on that controller
	ReadOnly bool   `json:"read_only,omitempty"` // with Slot: the disk can be written, but what is would be lost; the guest has its kernel refuse it
}

// Root says which disks make the container's root: an overlay (overlayfs.rst) of a writable disk on the image's.
type Root struct {
	Image    string `json:"image"`               // Source of the image's disk, read-only; "" with Serve: there is none, and nothing in the root but mounts
	Writable string `json:"writable"`            // Source of the container's own disk; "" with a nil Process: the image alone, read-only
	ReadOnly bool   `json:"read_only,omitempty"` // docker run --read-only: the merged root is mounted read-only
	// Ephemeral: the writable disk is deleted when the process has exited, and nothing on it has to reach its medium.
	Ephemeral bool `json:"ephemeral,omitempty"`
}

// A Source names what is mounted, independent of device names:
//
//	disk://SERIAL    the disk whose serial the hypervisor set so (portlayer.Disk.Serial), for root disks
//	label://LABEL    the volume whose label is LABEL, 32 hex digits: the disk with serial LABEL whose ext4
//	                 UUID is LABEL as 16 bytes and whose ext4 label is LABEL[:16]
//	nfs://SERVER/P   the directory P of an NFS server, by the storage link; SERVER is for messages, and Options say where and how
//	share://N        the Nth directory or file that the machine shares with its host, from 0: N in the root of the virtio-fs with the tag ShareTag
//	tmpfs:           a new tmpfs
type Source = string

// ShareTag names the virtio-fs that has all that the machine shares with its host.
const ShareTag = "vch"

// sharePrefix begins the Source of a share.
const sharePrefix = "share://"

// Share is the Source of the nth share.
func Share(n int) Source { return sharePrefix + strconv.Itoa(n) }

// ShareOf says which share a Source is.
func ShareOf(s Source) (n int, ok bool) {
	text, ok := strings.CutPrefix(s, sharePrefix)
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(text)
	return n, err == nil && n >= 0
}

// VolumeDir is the directory inside a volume's file system that is the volume's content, so that lost+found is never in a user's way.
const VolumeDir = "data"

// MountSpec is one mount below the container's root.
type MountSpec struct {
	Source   Source   `json:"source"`
	Target   string   `json:"target"`            // absolute, cleaned path in the container; symlinks in it are resolved inside the root, never outside
	Subpath  string   `json:"subpath,omitempty"` // of a volume: the directory or file in it to mount, relative and inside it; links in it are followed, but not out of the volume. "": all
	ReadOnly bool     `json:"read_only,omitempty"`
	Copy     bool     `json:"copy,omitempty"`    // copy the image's directory at Target into the source if that is empty, with owner, mode, times, xattrs, links
	Options  []string `json:"options,omitempty"` // of the file system, as in mount(8): size=…, mode=…, noexec
	Name     string   `json:"name,omitempty"`    // the volume's name, for messages only
	// Patience is how long an nfs:// source may take to be mounted, in nanoseconds; 0: 10 s.
	Patience time.Duration `json:"patience,omitempty"`
	// Was is what the file system of a label:// source may have for its UUID instead, 32 hex digits each: it came from another volume, or its volume had another
	// name. Mounted writable, it gets the label's.
	Was    []string `json:"was,omitempty"`
	Seat   *Seat    `json:"seat,omitempty"`   // with Mount: where the disk has come to, if the guest does not see its serial
	Absent string   `json:"absent,omitempty"` // with Serve: the volume is in another machine, and this says in which, for messages; Source is ""
}

// File is a small file that the tether writes below the root and bind-mounts nowhere.
type File struct {
	Path    string `json:"path"`
	Content []byte `json:"content"`
	Mode    uint32 `json:"mode"` // permission bits
}

// Sysctl is one kernel parameter: Key "net.ipv4.ip_forward", as sysctl(8) spells it.
type Sysctl struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Process is a process in the container: the container's own or one that exec starts.
type Process struct {
	Args         []string `json:"args"`             // Args[0] is looked up in Env's PATH inside the root
	Env          []string `json:"env"`              // KEY=VALUE; the tether adds PATH, HOME, HOSTNAME and, with TTY, TERM where absent, as Docker does
	Cwd          string   `json:"cwd"`              // "" means /; made (root, 0755) where missing for the container's own process
	User         string   `json:"user"`             // "", "name", "uid", "name:group", "uid:gid": looked up in the image's /etc/passwd and /etc/group
	Groups       []string `json:"groups,omitempty"` // additional groups, names or numbers
	TTY          bool     `json:"tty,omitempty"`
	Rows         uint16   `json:"rows,omitempty"`  // 0: 24
	Cols         uint16   `json:"cols,omitempty"`  // 0: 80
	Stdin        bool     `json:"stdin,omitempty"` // keep stdin open; otherwise it is /dev/null
	Rlimits      []Rlimit `json:"rlimits,omitempty"`
	Capabilities []string `json:"capabilities"` // "CAP_CHOWN"…: the bounding, permitted, effective and inheritable sets
	NoNewPrivs   bool     `json:"no_new_privs,omitempty"`
	Init         bool     `json:"init,omitempty"` // PID 1 is an init that starts the process, forwards signals and reaps; otherwise the process itself is. The container's own process only
	OOMScoreAdj  int      `json:"oom_score_adj,omitempty"`
}

// Rlimit is one of setrlimit(2): Type "nofile", "nproc", … without RLIMIT_, lower case.
type Rlimit struct {
	Type string `json:"type"`
	Soft uint64 `json:"soft"`
	Hard uint64 `json:"hard"`
}

// Phase is where the container's own process is.
type Phase string

// The phases, in their only order.
const (
	Waiting  Phase = "waiting"  // no executor config yet
	Starting Phase = "starting" // mounting
	Running  Phase = "running"
	Exited   Phase = "exited" // the process ended, its output is complete, every file system is on its disk, clean, and unmounted or read-only
	Failed   Phase = "failed" // it was never started: Status.Error says why
)

// Status is what the tether knows.
type Status struct {
	Phase    Phase     `json:"phase"`
	Pid      int       `json:"pid,omitempty"` // in the guest
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
	Exit     Exit      `json:"exit"`
	Error    *Fault    `json:"error,omitempty"`
	Unclean  []Source  `json:"unclean,omitempty"` // after a Configure or Mount that failed: volumes that cannot be mounted read-only before a writer's journal is replayed
	Frames   uint64    `json:"frames"`            // number of the last output frame so far
	Timings  []Timing  `json:"timings,omitempty"` // what the start spent its time on, in order
	Rooms    []Room    `json:"rooms,omitempty"`   // Exited: how full the volumes were left
}

// Exit is how a process ended.
type Exit struct {
	Code   int  `json:"code"`             // 128+Signal where a signal ended it, as a shell and Docker show it
	Signal int  `json:"signal,omitempty"` // signal(7); 0: it exited by itself
	OOM    bool `json:"oom,omitempty"`    // the kernel killed a process of the container for want of memory
}

// Timing is one step of the start inside the guest. Names: "boot" (kernel to the tether's first line), "tether"
// (to waiting for the config), "mount", "copy", "process".
type Timing struct {
	Name string        `json:"name"`
	Took time.Duration `json:"took"` // nanoseconds by the guest's monotonic clock
}

// Stream tells a process's outputs apart. A TTY has only Stdout.
type Stream uint8

// The streams, numbered as in Docker's stdcopy header.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

// Frame is one piece of output. Frames of the container's own process are numbered from 1 without gaps over both streams,
// so that a host that was away asks for those after the last that it kept, and none is lost or doubled.
type Frame struct {
	Number uint64
	Stream Stream
	Data   []byte // 1 to MaxFrame bytes
}

// MaxFrame bounds Frame.Data, in bytes.
const MaxFrame = 32 << 10

// ProcessInfo is a row of top.
type ProcessInfo struct {
	PID   int           `json:"pid"` // as the container sees it
	PPID  int           `json:"ppid"`
	UID   string        `json:"uid"` // name from the image's /etc/passwd, or the number
	CPU   time.Duration `json:"cpu"` // user and system time
	Start time.Time     `json:"start"`
	TTY   string        `json:"tty"` // "?" for none
	Args  string        `json:"args"`
}

// Fault is a fault.Error on the wire: its kind and its text.
type Fault struct {
	Kind string `json:"kind"` // fault.Kind.String
	Text string `json:"text"`
}
