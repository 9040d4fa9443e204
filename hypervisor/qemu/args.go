package qemu

import (
	"encoding/json"
	"fmt"
	"os"
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
	fdKernel
	fdInitrd
	fdDisks // and on, one a drive
)

// drive is a disk as QEMU gets it.
type drive struct {
	serial   string
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
	name   string // shown by ps
	accel  string // "kvm", "tcg"
	qemu   string // version
	memory portlayer.Bytes
	cpus   int
	boot   bootFiles
	append string
	drives []drive
}

// arguments is QEMU's command line, without the program. What a container VM does not use is off: quicker to boot, and less to attack.
func arguments(s shape) []string {
	cpu := "max" // all that TCG can: today's distributions are built for more than qemu64
	if s.accel == "kvm" {
		cpu = "host"
	}
	args := []string{
		"-name", s.name,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-M", "q35,usb=off,vmport=off,hpet=off,sata=off,smbus=off",
		"-accel", accelerator(s), "-cpu", cpu,
		"-m", strconv.FormatInt(int64((s.memory+portlayer.MiB-1)/portlayer.MiB), 10) + "M",
		"-smp", strconv.Itoa(s.cpus),
		"-kernel", fmt.Sprintf("/proc/self/fd/%d", fdKernel), "-initrd", fmt.Sprintf("/proc/self/fd/%d", fdInitrd), "-append", s.append,
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", fdQMP), "-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d,server=on,wait=off", fdConsole), "-serial", "chardev:console",
		"-chardev", fmt.Sprintf("socket,id=channel,fd=%d,server=on,wait=off", fdChannel),
		"-device", "virtio-serial-pci", "-device", "virtserialport,chardev=channel,name=" + guest.PortName,
		"-device", "virtio-scsi-pci,id=scsi0",
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
