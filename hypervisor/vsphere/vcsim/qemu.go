package vcsim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"vch/internal/fault"
	"vch/internal/qmp"
)

// QEMU are machines that run, without hardware virtualisation. They end with the process that made them. What a guest finds:
//
//   - it is booted by a PC's BIOS from the CD-ROM drive, which is an AHCI controller's;
//   - /sys/bus/pci/slots/N/address, N the PCI slot number of a ParaVirtualSCSIController, as on ESX; disks by their unit numbers are its targets;
//   - vmxnet3 cards, on a network of their own each where the host is 10.0.2.2 (QEMU docs, "User Networking"), its loopback interface too;
//   - extraConfig's guestinfo.* as /sys/firmware/qemu_fw_cfg/by_name/opt/vch/KEY/raw, KEY with the guestinfo.: as it was when the machine was powered on.
type QEMU struct {
	Program string // default qemu-system-x86_64 of PATH
	Dir     string // for what machines need while they run; default Options.Dir
}

// fwPrefix stands before guestinfo keys; a name of fw_cfg has 55 characters at most (QEMU docs/specs/fw_cfg).
const fwPrefix = "opt/vch/"

const maxName = 55

// process is a QEMU that runs.
type process struct {
	dir  string // removed with it
	cmd  *exec.Cmd
	qmp  *qmp.Client
	wg   sync.WaitGroup // who reads its console
	done chan struct{}  // closed when it has ended and everybody has read to the end

	mu      sync.Mutex // guards below
	console []byte
	said    bytes.Buffer // on standard error
	stopped bool         // on purpose
}

// Close does nothing: machines have been stopped.
func (QEMU) Close() error { return nil }

// Start starts a QEMU and returns when its devices are there and its processor runs.
func (m QEMU) Start(ctx context.Context, machine Machine, off func()) (Running, error) {
	dir, err := os.MkdirTemp(m.Dir, "vcsim-")
	if err != nil {
		return nil, err
	}
	p, err := m.start(ctx, dir, machine, off)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return p, nil
}

func (m QEMU) start(ctx context.Context, dir string, machine Machine, off func()) (*process, error) {
	defer func() {
		if machine.Serial != nil {
			machine.Serial.Close()
		}
	}()
	args, err := arguments(dir, machine)
	if err != nil {
		return nil, err
	}
	program := m.Program
	if program == "" {
		program = "qemu-system-x86_64"
	}
	control, controlEnd, err := pair()
	if err != nil {
		return nil, err
	}
	defer controlEnd.Close()
	console, consoleEnd, err := pair()
	if err != nil {
		control.Close()
		return nil, err
	}
	defer consoleEnd.Close()
	p := &process{dir: dir, done: make(chan struct{}), qmp: qmp.Own(control)}
	p.cmd = exec.Command(program, args...)
	p.cmd.ExtraFiles = []*os.File{controlEnd, consoleEnd} // 3 and 4
	p.cmd.Stdout, p.cmd.Stderr = stderrOf{p}, stderrOf{p}
	p.cmd.Env = append(os.Environ(), "TMPDIR="+dir) // of what disks' guests write and is to be forgotten
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		p.qmp.Close()
		console.Close()
		return nil, err
	}
	serial := machine.Serial
	machine.Serial = nil // the listener closes it
	p.wg.Go(func() { p.listen(console, serial) })
	go p.await(console, off)
	if err := p.qmp.Negotiate(ctx); err != nil {
		err = errors.Join(err, p.Stop())
		p.mu.Lock()
		defer p.mu.Unlock()
		return nil, fault.New(fault.Internal, "QEMU does not start: %s (%w)", strings.TrimSpace(p.said.String()), err)
	}
	return p, nil
}

// await waits for the process's end and tells.
func (p *process) await(console net.Conn, off func()) {
	_ = p.cmd.Wait() // however it ended
	p.qmp.Close()
	console.Close()
	p.wg.Wait()
	_ = os.RemoveAll(p.dir)
	p.mu.Lock()
	stopped := p.stopped
	p.mu.Unlock()
	close(p.done)
	if !stopped {
		off()
	}
}

// stderrOf keeps what QEMU complains of.
type stderrOf struct{ p *process }

func (w stderrOf) Write(b []byte) (int, error) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	if w.p.said.Len() < 64<<10 {
		w.p.said.Write(b)
	}
	return len(b), nil
}

// consoleSize is how much of a console is kept, in bytes.
const consoleSize = 256 << 10

func (p *process) listen(console io.Reader, serial *os.File) {
	if serial != nil {
		defer serial.Close()
	}
	buf := make([]byte, 4096)
	for {
		n, err := console.Read(buf)
		if serial != nil {
			_, _ = serial.Write(buf[:n]) // a full disk is no reason for a machine to stop
		}
		p.mu.Lock()
		p.console = append(p.console, buf[:n]...)
		if over := len(p.console) - consoleSize; over > 0 {
			p.console = append(p.console[:0], p.console[over:]...)
		}
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// pair is a socket that is connected to another, which is for a child.
func pair() (net.Conn, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn, theirs, nil
}

// arguments is QEMU's command line.
func arguments(dir string, m Machine) ([]string, error) {
	args := []string{
		"-name", "vcsim-" + m.ID,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-M", "q35,usb=off,vmport=off,hpet=off,smbus=off",
		// With its own hot-plug, ACPI would give the slots' names: with PCI Express's they are the numbers that the ports have.
		"-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
		"-cpu", "max,la57=off", "-m", strconv.Itoa(m.MemoryMB) + "M", "-smp", strconv.Itoa(max(m.CPUs, 1)),
		"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control",
		"-chardev", "socket,id=console,fd=4", "-serial", "chardev:console",
		"-boot", "menu=off,strict=on",
	}
	if m.CPUs > 1 {
		args = append(args, "-accel", "tcg,thread=single") // hypervisor/qemu says why
	} else {
		args = append(args, "-accel", "tcg")
	}
	if m.ISO != "" {
		args = append(args, "-blockdev", asJSON(map[string]any{"driver": "raw", "node-name": "cd", "read-only": true, "file": map[string]any{"driver": "file", "filename": m.ISO}}),
			"-device", "ide-cd,bus=ide.0,drive=cd,bootindex=0")
	}
	// A port is there for every adapter that may come, too: none can be made while the machine runs.
	ports := map[int]bool{}
	port := func(slot int) {
		if !ports[slot] {
			ports[slot] = true
			args = append(args, "-device", fmt.Sprintf("pcie-root-port,id=port%d,bus=pcie.0,chassis=%d,slot=%d", slot, len(ports), slot))
		}
	}
	for _, slot := range m.Adapters {
		port(slot)
		args = append(args, "-device", fmt.Sprintf("pvscsi,id=scsi%d,bus=port%d", slot, slot))
	}
	for i, c := range m.Cards {
		place := "pcie.0"
		if c.Slot > 0 && !ports[c.Slot] {
			port(c.Slot)
			place = fmt.Sprintf("port%d", c.Slot)
		}
		args = append(args, "-netdev", fmt.Sprintf("user,id=net%d,ipv6=off", i), "-device", fmt.Sprintf("vmxnet3,netdev=net%d,mac=%s,bus=%s,romfile=", i, c.MAC, place))
	}
	for _, slot := range spareSlots {
		port(slot)
	}
	for _, d := range m.Disks {
		if d.Discard {
			args = append(args, "-drive", d.drive())
		} else {
			args = append(args, "-blockdev", asJSON(d.block()))
		}
		args = append(args, "-device", asJSON(d.device()))
	}
	for i, key := range slices.Sorted(maps.Keys(m.GuestInfo)) {
		if len(fwPrefix+key) > maxName {
			return nil, fault.New(fault.Invalid, "the guestinfo key %s has more than %d characters", key, maxName-len(fwPrefix))
		}
		file := filepath.Join(dir, fmt.Sprintf("info%d", i))
		if err := os.WriteFile(file, []byte(m.GuestInfo[key]), 0o600); err != nil {
			return nil, err
		}
		args = append(args, "-fw_cfg", "name="+fwPrefix+key+",file="+comma(file))
	}
	return args, nil
}

// spareSlots are those that ESX gives adapters, and that vch asks for.
var spareSlots = []int{160, 192, 224, 256, 1184}

// comma is a text as it stands in an option (QEMU docs, "-drive": a comma is doubled).
func comma(s string) string { return strings.ReplaceAll(s, ",", ",,") }

func asJSON(v map[string]any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings, numbers and booleans always can be
	}
	return string(text)
}

func (d Disk) id() string   { return fmt.Sprintf("disk-%d-%d", d.Adapter, d.Unit) }
func (d Disk) node() string { return fmt.Sprintf("node-%d-%d", d.Adapter, d.Unit) }

func (d Disk) block() map[string]any {
	return map[string]any{"driver": "raw", "node-name": d.node(), "discard": "unmap", "file": map[string]any{"driver": "file", "filename": d.File, "discard": "unmap"}}
}

// drive is a disk with a layer above it that is gone with the machine.
func (d Disk) drive() string {
	return "if=none,id=" + d.node() + ",format=raw,snapshot=on,file=" + comma(d.File)
}

func (d Disk) device() map[string]any {
	return map[string]any{"driver": "scsi-hd", "id": d.id(), "bus": fmt.Sprintf("scsi%d.0", d.Adapter), "channel": 0, "scsi-id": d.Unit, "lun": 0, "drive": d.node(),
		"werror": "report", "rerror": "report"}
}

// Stop kills it.
func (p *process) Stop() error {
	p.mu.Lock()
	p.stopped = true
	p.mu.Unlock()
	select {
	case <-p.done:
		return nil
	default:
	}
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done
	return nil
}

// Fail kills it as if it had ended by itself.
func (p *process) Fail() {
	_ = p.cmd.Process.Kill() // ended already
	<-p.done
}

// Suspend has it stand still.
func (p *process) Suspend(ctx context.Context) error { return p.qmp.Call(ctx, "stop", nil, nil) }

// Resume has it go on.
func (p *process) Resume(ctx context.Context) error { return p.qmp.Call(ctx, "cont", nil, nil) }

// PlugAdapter adds an adapter, in one of the slots that were there from the beginning.
func (p *process) PlugAdapter(ctx context.Context, slot int) error {
	return p.qmp.Call(ctx, "device_add", map[string]any{"driver": "pvscsi", "id": fmt.Sprintf("scsi%d", slot), "bus": fmt.Sprintf("port%d", slot)}, nil)
}

// Plug adds a disk, on an adapter that it has.
func (p *process) Plug(ctx context.Context, d Disk) error {
	if d.Discard {
		var said string
		if err := p.qmp.Call(ctx, "human-monitor-command", map[string]any{"command-line": "drive_add 0 " + strconv.Quote(d.drive())}, &said); err != nil {
			return err
		}
		if said = strings.TrimSpace(said); said != "OK" {
			return errors.New(said)
		}
	} else if err := p.qmp.Call(ctx, "blockdev-add", d.block(), nil); err != nil {
		return err
	}
	if err := p.qmp.Call(ctx, "device_add", d.device(), nil); err != nil {
		return errors.Join(err, p.let(ctx, d))
	}
	return nil
}

// let lets go of a disk's file.
func (p *process) let(ctx context.Context, d Disk) error {
	if d.Discard { // it went with its device
		return nil
	}
	return p.qmp.Call(ctx, "blockdev-del", map[string]any{"node-name": d.node()}, nil)
}

// Unplug takes a disk away.
func (p *process) Unplug(ctx context.Context, d Disk) error {
	if err := p.qmp.Unplug(ctx, d.id()); err != nil {
		return err
	}
	return p.let(ctx, d)
}

// Resize tells it that a disk's file has become longer. The guest sees it when it looks (/sys/block/NAME/device/rescan), as on ESX.
func (p *process) Resize(ctx context.Context, d Disk) error {
	return p.qmp.Call(ctx, "block_resize", map[string]any{"node-name": d.node(), "size": d.Size}, nil)
}

// Console is the last that it said on its first serial port, and QEMU's complaints.
func (p *process) Console() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append(slices.Clone(p.console), p.said.Bytes()...)
}

// Pid is QEMU's.
func (p *process) Pid() int { return p.cmd.Process.Pid }
