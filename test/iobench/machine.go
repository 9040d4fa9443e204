package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"vch/test/measure"
)

// tuning is how QEMU is told to do a disk's I/O, by hand.
type tuning struct {
	name     string
	direct   bool   // cache.direct: past the host's page cache (O_DIRECT); QAPI BlockdevCacheOptions
	aio      string // QAPI BlockdevAioOptions
	blk      bool   // virtio-blk instead of virtio-scsi
	iothread bool   // a thread of its own, beside the main loop's
	cpus     int    // 0: as vch's machine
	queues   int    // 0: QEMU's choice, one a processor
	sandbox  bool   // -sandbox, as vch has it
}

// chosen is the tuning that vch has: hypervisor/qemu/args.go, drive.objects.
const chosen = "scsi, page cache, threads"

// jailed is the same in the sandbox that vch has.
const jailed = chosen + ", sandbox"

// tunings are what is compared. io_uring on the page cache and native past it are what each is said to be best at; native needs the latter.
func tunings() []tuning {
	return []tuning{
		{name: chosen, aio: "threads"},
		{name: jailed, aio: "threads", sandbox: true},
		{name: "scsi, page cache, io_uring", aio: "io_uring"},
		{name: "scsi, page cache, threads, iothread", aio: "threads", iothread: true},
		{name: "scsi, direct, threads", direct: true, aio: "threads"},
		{name: "scsi, direct, native", direct: true, aio: "native"},
		{name: "scsi, direct, io_uring", direct: true, aio: "io_uring"},
		{name: "scsi, direct, native, iothread", direct: true, aio: "native", iothread: true},
		{name: "blk, page cache, threads", aio: "threads", blk: true},
		{name: "blk, page cache, threads, iothread", aio: "threads", blk: true, iothread: true},
		{name: "blk, direct, native", direct: true, aio: "native", blk: true},
		{name: "scsi, page cache, threads; 2 processors, 1 queue", aio: "threads", cpus: 2, queues: 1},
		{name: "scsi, page cache, threads; 2 processors, 2 queues", aio: "threads", cpus: 2, queues: 2},
	}
}

// arguments is QEMU's command line.
func (t tuning) arguments(like measure.Machine, initrd, extent, kernelLine string) []string {
	onOff := map[bool]string{true: "on", false: "off"}
	args := append(like.Arguments(initrd, kernelLine),
		"-blockdev", fmt.Sprintf("driver=file,node-name=file,filename=%s,discard=unmap,cache.direct=%s,aio=%s", extent, onOff[t.direct], t.aio),
		"-blockdev", fmt.Sprintf("driver=raw,node-name=disk,file=file,discard=unmap,cache.direct=%s", onOff[t.direct]))
	if t.cpus > 1 {
		args = set(args, "-smp", fmt.Sprint(t.cpus))
		if like.Accel == "tcg" { // as vch does it: hypervisor/qemu/args.go, accelerator
			args = set(args, "-accel", "tcg,thread=single")
		}
	}
	if t.sandbox {
		args = append(args, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	}
	thread, queues := "", ""
	if t.iothread {
		args = append(args, "-object", "iothread,id=io")
		thread = ",iothread=io"
	}
	if t.queues > 0 {
		queues = fmt.Sprintf(",num_queues=%d", t.queues)
	}
	if t.blk {
		return append(args, "-device", "virtio-blk-pci,drive=disk"+thread)
	}
	return append(args, "-device", "virtio-scsi-pci,id=scsi0"+thread+queues, "-device", "scsi-hd,bus=scsi0.0,drive=disk")
}

// set gives args another value after the word key.
func set(args []string, key, value string) []string {
	for i := range args[:len(args)-1] {
		if args[i] == key {
			args[i+1] = value
		}
	}
	return args
}

// machine is a QEMU run by hand.
type machine struct{ *measure.Console }

// boot starts a machine with dir for its files, and returns when its disk is mounted.
func boot(ctx context.Context, dir string, t tuning, like measure.Machine, load, extent string) (m machine, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return m, err
	}
	initrd := filepath.Join(dir, "initramfs")
	if err := like.Initramfs(initrd, load, nil, "virtio_pci", "virtio_scsi", "virtio_blk", "sd_mod", "ext4"); err != nil {
		return m, err
	}
	m.Console, err = measure.Begin(ctx, exec.Command(like.QEMU, t.arguments(like, initrd, extent, commandLine(like.Accel))...))
	return m, err
}

func (m machine) do(ctx context.Context, kind, file string, blocks int) (time.Duration, error) {
	said, err := m.Ask(ctx, kind, file, blocks)
	if err != nil {
		return 0, err
	}
	return taken(said)
}

// commandLine is the guest kernel's, with the clock's rate where it is emulated, which would have to be found out (kernel-parameters.txt).
func commandLine(accel string) string {
	line := "console=ttyS0 quiet loglevel=3 reboot=t panic=-1 cryptomgr.notests rcupdate.rcu_expedited=1 random.trust_cpu=on audit=0 nowatchdog scsi_mod.scan=sync"
	var mhz float64
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !strings.HasPrefix(accel, "tcg") {
		return line
	}
	for _, l := range strings.Split(string(text), "\n") {
		if key, value, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(key) == "cpu MHz" {
			if _, err := fmt.Sscan(value, &mhz); err == nil {
				return line + fmt.Sprintf(" tsc=reliable no_timer_check tsc_early_khz=%d lpj=%d", int(mhz*1000), int(mhz*1e6)/250) // CONFIG_HZ of Debian's kernels
			}
		}
	}
	return line
}
