package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
)

// likeness is what the machine by hand takes over from vch's, to differ in the network and what is around it alone.
type likeness struct {
	qemu, kernel, modules   string // paths: QEMU, its kernel, the kernel's modules
	accel, cpu, memory, smp string // values of -accel, -cpu, -m, -smp
	line                    string // the kernel's command line
}

// arguments is QEMU's command line, with the user network as it is by default.
func (l likeness) arguments(initrd string) []string {
	return []string{"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-M", "q35,usb=off,vmport=off,hpet=off,sata=off,smbus=off",
		"-accel", l.accel, "-cpu", l.cpu, "-m", l.memory, "-smp", l.smp, "-kernel", l.kernel, "-initrd", initrd, "-append", l.line,
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console", "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="}
}

// mountOptions are those that vch's guests have by default; the host is 10.0.2.2 of QEMU's user network, the guest 10.0.2.15 (net/slirp.c).
func mountOptions(port int) string {
	return fmt.Sprintf("vers=4.2,addr=10.0.2.2,clientaddr=10.0.2.15,port=%d,proto=tcp,hard,sec=sys", port)
}

// machine starts the machine by hand, with dir for its files, and returns when it has the export mounted.
func machine(ctx context.Context, dir, load string, like likeness, server *served) (p place, err error) {
	p = place{name: byHand}
	if p.file, err = server.directory("hand"); err != nil {
		return p, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return p, err
	}
	initrd := filepath.Join(dir, "initramfs")
	if err := initramfs(initrd, like.modules, load, fmt.Sprintf("10.0.2.2:%s %s hand\n", server.Path, mountOptions(server.Port))); err != nil {
		return p, err
	}
	if p.talk, err = begin(ctx, exec.Command(like.qemu, like.arguments(initrd)...)); err != nil {
		return p, err
	}
	p.pids = map[string]int{"QEMU": p.talk.cmd.Process.Pid, "server": server.pid}
	return p, nil
}

// initramfs writes the first file system of the machine: ./load as /init, what it is to mount, and the modules that an NFS mount needs, in load order.
func initramfs(file, modules, load, mount string) error {
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
		cpio.StaticFile("init", string(program), 0o755), cpio.StaticFile("mount", mount, 0o600)}
	order := ""
	for _, m := range closure(string(dep), "virtio_pci", "virtio_net", "nfsv4") {
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
