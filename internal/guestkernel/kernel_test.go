package guestkernel

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pierrec/lz4/v4"

	"vch/internal/fault"
)

// need is what a machine of QEMU's does.
var need = Modules{
	Boot:  []Module{{"virtio_pci", "devices"}, {"virtio_console", "the guest channel"}, {"virtio_scsi", "disks"}, {"sd_mod", "disks"}, {"ext4", "file systems"}, {"overlay", "the root"}, {"virtio_net", "networks"}, {"8021q", "networks"}, {"virtiofs", ""}},
	Later: []Module{{"nfsv3", ""}, {"nfsv4", ""}},
}

func TestLoadOrder(t *testing.T) {
	const dep = "kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko\n" +
		"kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko\nkernel/drivers/virtio/virtio_ring.ko:\n" +
		"kernel/drivers/char/virtio_console.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko\n" +
		"kernel/drivers/scsi/virtio_scsi.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko\n" +
		"kernel/drivers/net/virtio_net.ko: kernel/net/core/failover.ko kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko\nkernel/net/core/failover.ko:\n" +
		"kernel/net/8021q/8021q.ko: kernel/net/802/garp.ko\nkernel/net/802/garp.ko:\n" +
		"kernel/drivers/scsi/sd_mod.ko:\nkernel/fs/overlayfs/overlay.ko:\n" +
		"kernel/fs/nfs/nfsv4.ko: kernel/fs/nfs/nfs.ko kernel/net/802/garp.ko\nkernel/fs/nfs/nfs.ko:\n"
	const builtin = "kernel/fs/ext4/ext4.ko\n"
	order, later, err := loadOrder(dep, builtin, need)
	if err != nil {
		t.Fatal(err)
	}
	place := map[string]int{}
	for i, f := range order {
		place[moduleName(f)] = i + 1
	}
	for _, pair := range [][2]string{{"virtio_ring", "virtio"}, {"virtio", "virtio_pci"}, {"virtio", "virtio_scsi"}, {"virtio", "virtio_console"}, {"failover", "virtio_net"}, {"garp", "8021q"}} {
		if place[pair[0]] == 0 || place[pair[0]] >= place[pair[1]] {
			t.Errorf("%s is not before %s in %v", pair[0], pair[1], order)
		}
	}
	if diff := cmp.Diff([]string{"kernel/fs/nfs/nfs.ko", "kernel/fs/nfs/nfsv4.ko"}, later); diff != "" { // without what is loaded before, and without nfsv3, which is not there
		t.Errorf("later (-want +got):\n%s", diff)
	}
	if place["ext4"] != 0 {
		t.Error("a built-in module is loaded")
	}
	_, _, err = loadOrder(strings.ReplaceAll(dep, "kernel/fs/overlayfs/overlay.ko:\n", ""), builtin, need)
	if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "overlay") {
		t.Errorf("without overlay: %v", err)
	}
	_, _, err = loadOrder(strings.ReplaceAll(dep, "overlay.ko", "overlay.ko.zst"), builtin, need)
	if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "overlay") {
		t.Errorf("compressed: %v", err)
	}
}

// bzImage makes a file as a kernel's build does, with the payload that compress makes of elf.
func bzImage(t *testing.T, elf []byte, claim uint32, cut int) []byte {
	t.Helper()
	var z bytes.Buffer
	w := lz4.NewWriter(&z)
	if err := w.Apply(lz4.LegacyOption(true)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(elf); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	payload := binary.LittleEndian.AppendUint32(z.Bytes()[:z.Len()-cut], claim)
	image := make([]byte, 2*setupSectorBytes)
	image[setupSectsAt] = 1
	binary.LittleEndian.PutUint32(image[headerMagicAt:], headerMagic)
	binary.LittleEndian.PutUint32(image[payloadLengthAt:], uint32(len(payload)))
	return append(image, payload...)
}

func TestVmlinux(t *testing.T) {
	elf := append([]byte(elfMagic), bytes.Repeat([]byte("kernel"), 10000)...)
	var out bytes.Buffer
	if err := Vmlinux(bzImage(t, elf, uint32(len(elf)), 0), &out); err != nil || !bytes.Equal(out.Bytes(), elf) {
		t.Errorf("%v, %d bytes", err, out.Len())
	}
	for name, image := range map[string][]byte{
		"too long a claim": bzImage(t, elf, uint32(len(elf)+1), 0),
		"no ELF":           bzImage(t, bytes.Repeat([]byte("x"), 1000), 1000, 0),
		"a huge claim":     bzImage(t, elf, 1<<31, 0),
		"short":            []byte("MZ"),
		"not a kernel":     make([]byte, 4096),
	} {
		if err := Vmlinux(image, io.Discard); !fault.Is(err, fault.Unsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
