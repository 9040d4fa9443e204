package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/u-root/u-root/pkg/cpio"
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
func (t tuning) arguments(like likeness, initrd, extent, kernelLine string) []string {
	onOff := map[bool]string{true: "on", false: "off"}
	args := []string{"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-M", "q35,usb=off,vmport=off,hpet=off,sata=off,smbus=off",
		"-accel", like.accel, "-cpu", like.cpu, "-m", like.memory, "-smp", like.smp, "-kernel", like.kernel, "-initrd", initrd, "-append", kernelLine,
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-blockdev", fmt.Sprintf("driver=file,node-name=file,filename=%s,discard=unmap,cache.direct=%s,aio=%s", extent, onOff[t.direct], t.aio),
		"-blockdev", fmt.Sprintf("driver=raw,node-name=disk,file=file,discard=unmap,cache.direct=%s", onOff[t.direct])}
	if t.cpus > 1 {
		args = set(args, "-smp", fmt.Sprint(t.cpus))
		if like.accel == "tcg" { // as vch does it: hypervisor/qemu/args.go, accelerator
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

// machine is a QEMU run by hand. One piece of work at a time.
type machine struct {
	qemu  *exec.Cmd
	in    io.WriteCloser
	lines chan string // of its console; closed at its end
}

// boot starts a machine with dir for its files, and returns when its disk is mounted.
func boot(ctx context.Context, dir string, t tuning, like likeness, load, extent string) (*machine, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	initrd := filepath.Join(dir, "initramfs")
	if err := initramfs(initrd, like.modules, load); err != nil {
		return nil, err
	}
	m := &machine{lines: make(chan string, 16)}
	m.qemu = exec.Command(like.qemu, t.arguments(like, initrd, extent, commandLine(like.accel))...)
	// A session of its own, as vch's machines have: on a busy host the scheduler gives each session its part (sched(7), autogroup), and one that it shared with the
	// other machines, which are idle, would be quicker than vch's by nothing that vch does.
	m.qemu.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	m.qemu.Stderr = os.Stderr
	var err error
	if m.in, err = m.qemu.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := m.qemu.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := m.qemu.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(m.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			m.lines <- strings.TrimSpace(s.Text())
		}
	}()
	if _, err := m.until(ctx, "ready"); err != nil {
		m.end()
		return nil, err
	}
	return m, nil
}

// until reads the console up to a line that is word, and gives what it said before.
func (m *machine) until(ctx context.Context, word string) (said string, err error) {
	limit := time.After(wait)
	for {
		select {
		case line, ok := <-m.lines:
			switch {
			case !ok:
				return said, fmt.Errorf("the machine ended: %s", said)
			case strings.HasPrefix(line, "failed:"):
				return said, errors.New(line)
			case line == word:
				return said, nil
			}
			said += line + "\n"
		case <-limit:
			return said, fmt.Errorf("the machine does not answer: %s", said)
		case <-ctx.Done():
			return said, ctx.Err()
		}
	}
}

func (m *machine) do(ctx context.Context, kind, file string, blocks int) (time.Duration, error) {
	if _, err := fmt.Fprintf(m.in, "%s %s %d\n", kind, file, blocks); err != nil {
		return 0, err
	}
	said, err := m.until(ctx, "ready")
	if err != nil {
		return 0, err
	}
	return taken(said)
}

// end ends the machine; nobody wants what is on its disk.
func (m *machine) end() {
	_ = m.qemu.Process.Kill()
	for range m.lines { // what it still said, so that its reader ends
	}
	_ = m.qemu.Wait()
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

// initramfs writes the first file system of a machine: ./load as /init, and the modules that a disk needs, in load order.
func initramfs(file, modules, load string) error {
	dep, err := os.ReadFile(filepath.Join(modules, "modules.dep"))
	if err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	program, err := os.ReadFile(load)
	if err != nil {
		return err
	}
	records := []cpio.Record{cpio.Directory("dev", 0o755), cpio.CharDev("dev/console", 0o600, 5, 1), cpio.CharDev("dev/null", 0o666, 1, 3), cpio.Directory("modules", 0o755),
		cpio.StaticFile("init", string(program), 0o755)}
	order := ""
	for _, m := range closure(string(dep), "virtio_pci", "virtio_scsi", "virtio_blk", "sd_mod", "ext4") {
		data, err := os.ReadFile(filepath.Join(modules, m))
		if err != nil {
			return err
		}
		order += path.Base(m) + "\n"
		records = append(records, cpio.StaticFile("modules/"+path.Base(m), string(data), 0o600))
	}
	w := cpio.Newc.Writer(f)
	for _, r := range append(records, cpio.StaticFile("modules/order", order, 0o600)) {
		if err := w.WriteRecord(r); err != nil {
			return err
		}
	}
	return cpio.WriteTrailer(w)
}

// closure gives the files of modules and of what they need, that first, by the text of modules.dep (modules.dep(5)). One that is not there is in the kernel.
func closure(dep string, names ...string) (files []string) {
	seen := map[string]bool{}
	for _, name := range names {
		for _, line := range strings.Split(dep, "\n") {
			file, needs, ok := strings.Cut(line, ":")
			if !ok || path.Base(file) != name+".ko" {
				continue
			}
			all := append([]string{file}, strings.Fields(needs)...) // itself, then what it needs, the nearest first
			for i := len(all) - 1; i >= 0; i-- {
				if !seen[all[i]] {
					seen[all[i]] = true
					files = append(files, all[i])
				}
			}
		}
	}
	return files
}
