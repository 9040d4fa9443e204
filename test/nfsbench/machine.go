package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"vch/test/measure"
)

// mountOptions are those that vch's guests have by default; the host is 10.0.2.2 of QEMU's user network, the guest 10.0.2.15 (net/slirp.c).
func mountOptions(port int) string {
	return fmt.Sprintf("vers=4.2,addr=10.0.2.2,clientaddr=10.0.2.15,port=%d,proto=tcp,hard,sec=sys", port)
}

// machine starts the machine by hand, which differs in the network and what is around it alone, with dir for its files, and returns when it has the export mounted. line is its kernel's.
func machine(ctx context.Context, dir, load string, like measure.Machine, line string, server *served) (p place, err error) {
	p = place{name: byHand}
	if p.file, err = server.directory("hand"); err != nil {
		return p, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return p, err
	}
	initrd := filepath.Join(dir, "initramfs")
	mount := map[string]string{"mount": fmt.Sprintf("10.0.2.2:%s %s hand\n", server.Path, mountOptions(server.Port))}
	if err := like.Initramfs(initrd, load, mount, "virtio_pci", "virtio_net", "nfsv4"); err != nil {
		return p, err
	}
	args := append(like.Arguments(initrd, line), "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=") // the user network as it is by default
	if p.talk, err = begin(ctx, exec.Command(like.QEMU, args...)); err != nil {
		return p, err
	}
	p.pids = map[string]int{"QEMU": p.talk.PID(), "server": server.pid}
	return p, nil
}
