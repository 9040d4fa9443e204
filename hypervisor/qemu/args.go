package qemu

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"

	"vch/guest"
	"vch/portlayer"
)

// The file descriptors that QEMU inherits. Sockets listen already, so that nobody has to wait for them (QEMU docs, -chardev socket,fd=). Files are opened by
// this process, so that QEMU needs the right to none: it may run as a user who can open nothing.
const (
	fdQMP = 3 + iota
	fdChannel
	fdConsole
	fdCard
	fdKernel // closed in a fork
	fdInitrd // closed in a fork
	fdMemory // of a template and its forks; closed in others
	fdShare  // the other end of a virtio-fs; closed where nothing is shared
	fdDisks  // and on, one a drive
)

// drive is a disk as QEMU gets it.
type drive struct {
	serial   string
	seat     string // of a template's, where it comes into one; ""
	size     portlayer.Bytes
	lun      int    // SCSI logical unit, unique in the machine
	file     string // raw
	readOnly bool
	throttle portlayer.Throttle
}

// flag is how its file is opened (open(2)).
func (d drive) flag() int {
	if d.readOnly {
		return os.O_RDONLY
	}
	return os.O_RDWR
}

// diskID is what QEMU calls the device of the disk with a serial.
func diskID(serial string) string { return "disk-" + serial }

func (d drive) node() string  { return "disk" + strconv.Itoa(d.lun) }
func (d drive) group() string { return "throttle" + strconv.Itoa(d.lun) }

// A template has disks already, which its guest has looked at: a fork only has what is behind them exchanged, while a disk that is plugged has to be asked
// twenty things by the guest's kernel. They are called by their seats, and are larger than what comes into them: a file system does not mind.
const (
	imageSeat    = "seat-image" // read-only
	ownSeat      = "seat-own"
	volumeSeat   = "seat-volume"
	readableSeat = "seat-readable" // a volume's that is read-only

	seatSize  = 1 << 50              // bytes
	firstSeat = luns + rehearsalLUNs // units are beyond those of disks that are plugged
)

var seats = []string{imageSeat, ownSeat, volumeSeat, readableSeat}

func seatLUN(seat string) int { return firstSeat + slices.Index(seats, seat) }

// emptySeat is the node behind a seat that nothing has come into.
func emptySeat(seat string) string { return "empty-" + seat }

// seatObjects are a seat's.
func seatObjects(seat string) (block, device map[string]any) {
	readOnly := seat == imageSeat || seat == readableSeat
	block = map[string]any{"driver": "null-co", "node-name": emptySeat(seat), "size": int64(seatSize), "read-zeroes": true, "read-only": readOnly, "discard": "unmap"}
	_, _, device = drive{serial: seat, lun: seatLUN(seat)}.objects()
	device["drive"], device["id"] = emptySeat(seat), seat
	return block, device
}

// objects are what QEMU has to make for a disk whose descriptor it has in the set d.lun, in this order; throttle is nil for a disk without bounds.
func (d drive) objects() (throttle, block, device map[string]any) {
	block = map[string]any{"driver": "raw", "read-only": d.readOnly, "discard": "unmap",
		"file": map[string]any{"driver": "file", "filename": fmt.Sprintf("/dev/fdset/%d", d.lun), "read-only": d.readOnly, "discard": "unmap"}}
	if d.throttle != (portlayer.Throttle{}) { // docs/throttle.txt: a filter above the image; a bound of 0 is none
		throttle = map[string]any{"qom-type": "throttle-group", "id": d.group(),
			"limits": map[string]any{"iops-total": d.throttle.IOPS, "bps-total": int64(d.throttle.BPS)}}
		block = map[string]any{"driver": "throttle", "throttle-group": d.group(), "read-only": d.readOnly, "discard": "unmap", "file": block}
	}
	block["node-name"] = d.node()
	device = map[string]any{"driver": "scsi-hd", "id": diskID(d.serial), "bus": "scsi0.0", "channel": 0, "scsi-id": 0, "lun": d.lun, "drive": d.node(), "serial": d.serial,
		// A full host disk is an error of the one who writes; QEMU's default would stop the machine and wait for an administrator.
		"werror": "report", "rerror": "report"}
	return throttle, block, device
}

// shape is all that a command line is made of.
type shape struct {
	key    string // of its template
	name   string // shown by ps
	accel  string // "kvm", "tcg"
	qemu   string // version
	memory portlayer.Bytes
	cpus   int
	append string // the kernel's command line
	drives drives
	shares []portlayer.Share // of a machine that boots
	life   life
}

// life is how a machine comes to its memory.
type life int

// The lives.
const (
	booted   life = iota // it boots, in memory of its own
	pattern              // it boots to become a template: its memory is a file that others will map
	forkedOf             // it goes on where its template stopped: its memory is a private view of the template's
)

// size is the memory, as QEMU is told it.
func (s shape) size() string {
	return strconv.FormatInt(int64((s.memory+portlayer.MiB-1)/portlayer.MiB), 10) + "M"
}

// machine is -M's value.
func (s shape) machine() string {
	const parts = "q35,usb=off,vmport=off,hpet=off,sata=off,smbus=off"
	if s.life == booted && len(s.shares) == 0 {
		return parts
	}
	return parts + ",memory-backend=memory"
}

// processor is -cpu's value: all that TCG can, as today's distributions are built for more than qemu64, but for page tables of five levels, which it walks slowly.
func (s shape) processor() string {
	if s.accel == "kvm" {
		return "host"
	}
	return "max,la57=off"
}

// arguments is QEMU's command line, without the program. What a container VM does not use is off: quicker to boot, and less to attack.
func arguments(s shape) []string {
	args := []string{
		"-name", s.name,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-M", s.machine(),
		"-accel", accelerator(s), "-cpu", s.processor(),
		"-m", s.size(),
		"-smp", strconv.Itoa(s.cpus),
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", fdQMP), "-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d,server=on,wait=off", fdConsole), "-serial", "chardev:console",
		"-chardev", fmt.Sprintf("socket,id=channel,fd=%d,server=on,wait=off", fdChannel),
		"-device", "virtio-serial-pci,max_ports=2,ioeventfd=off", "-device", "virtserialport,id=port,chardev=channel,name=" + guest.PortName,
		"-device", "virtio-scsi-pci,id=scsi0",
		// QEMU docs, -netdev stream: it listens, so that a later daemon can come.
		"-netdev", fmt.Sprintf("stream,id=card,server=on,addr.type=fd,addr.str=%d", fdCard), "-device", "virtio-net-pci,id=card,netdev=card,mac=" + cardAddress + ",romfile=",
	}
	boot := []string{"-kernel", inherited(fdKernel), "-initrd", inherited(fdInitrd), "-append", s.append}
	memory := "memory-backend-file,id=memory,size=" + s.size() + ",mem-path=" + inherited(fdMemory) + ",share="
	switch s.life {
	case booted:
		// What the guest has freed goes back to the host. A fork's would be punched out of its template (QEMU 7.2 softmmu/physmem.c, ram_block_discard_range).
		args = append(append(args, boot...), "-device", "virtio-balloon-pci,free-page-reporting=on")
		if len(s.shares) > 0 { // virtiofsd reads and writes the guest's memory itself
			args = append(args, "-object", "memory-backend-memfd,id=memory,size="+s.size()+",share=on")
			args = append(args, shareArguments(fdShare)...)
		}
	case pattern:
		args = append(append(args, boot...), "-object", memory+"on")
	case forkedOf:
		args = append(args, "-object", memory+"off", "-incoming", "defer")
	}
	if s.life != booted {
		for _, seat := range seats {
			block, device := seatObjects(seat)
			args = append(args, "-blockdev", object(block), "-device", object(device))
		}
	}
	for i, d := range s.drives {
		d.lun = i
		throttle, block, device := d.objects()
		if throttle != nil {
			args = append(args, "-object", object(throttle))
		}
		args = append(args, "-add-fd", fmt.Sprintf("fd=%d,set=%d", fdDisks+i, i), "-blockdev", object(block), "-device", object(device))
	}
	return args
}

// cardAddress is the hardware address of every machine's card, which no frame has: what a container has for its address is its networks' to say.
const cardAddress = "52:54:00:00:00:01"

// inherited is the path of a descriptor that QEMU got from this process.
func inherited(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// accelerator is -accel's value. Before QEMU 8.1 TCG loses writes to code that another processor's thread translates just then (its commit deba78709ae8): a
// kernel that patches itself, as Linux does at every change of a static key, then runs into a breakpoint that is gone, for ever. There all processors of a
// machine take turns in one thread.
func accelerator(s shape) string {
	if s.accel == "tcg" && s.cpus > 1 && before(s.qemu, 8, 1) {
		return "tcg,thread=single"
	}
	return s.accel
}

// before says whether QEMU's version is older than major.minor, or unreadable.
func before(version string, major, minor int) bool {
	var x, y int
	if _, err := fmt.Sscanf(version, "%d.%d", &x, &y); err != nil {
		return true
	}
	return x < major || x == major && y < minor
}

func object(v map[string]any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings, numbers and booleans always can be
	}
	return string(text)
}
