package tether

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/ext4"
)

// seedsFile has the file systems that blank disks get (internal/ext4). The initramfs of a hypervisor that formats its machines' own disks does not have it.
const seedsFile = "/seeds"

// take notes where a disk is.
func (l *Linux) take(serial string, seat guest.Seat) {
	seats := maps.Clone(l.seats)
	if seats == nil {
		seats = map[string]guest.Seat{}
	}
	seats[serial] = seat
	l.seats = seats
}

// diskInSlot finds the disk at an address: target and unit 0 on the first channel of the SCSI controller in a PCI slot. "" if there is none.
func diskInSlot(seat guest.Seat) string {
	address, err := os.ReadFile(filepath.Join("/sys/bus/pci/slots", strconv.Itoa(seat.Slot), "address"))
	if err != nil {
		return ""
	}
	blocks, _ := filepath.Glob(fmt.Sprintf("/sys/bus/pci/devices/%s.*/host*/target*:0:%d/*:0:%d:0/block/*", strings.TrimSpace(string(address)), seat.Unit, seat.Unit))
	if len(blocks) != 1 {
		return ""
	}
	dev := "/dev/" + filepath.Base(blocks[0])
	if _, err := os.Stat(dev); err != nil {
		return ""
	}
	return dev
}

// shut has the kernel refuse writes to a disk whose seat says so (BLKROSET, block/ioctl.c).
func (l *Linux) shut(serial, dev string) error {
	if !l.seats[serial].ReadOnly {
		return nil
	}
	f, err := os.Open(dev)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, 1)
}

// format makes a file system on a disk of the machine's own that is blank. One that is not is left as it is.
func format(dev string) error {
	r, err := os.Open(seedsFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the hypervisor has done it
	}
	if err != nil {
		return err
	}
	defer r.Close()
	blank, err := isBlank(dev)
	if err != nil || !blank {
		return err
	}
	seeds, err := ext4.ReadSeeds(r)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := deviceSize(dev)
	if err != nil {
		return err
	}
	for _, s := range seeds {
		if s.Size <= size {
			return s.Pour(f)
		}
	}
	return fmt.Errorf("a disk of %d bytes is too small", size)
}

// isBlank says whether a disk begins with zeros where a file system would not. So does one whose formatting was broken off (ext4.Seed.Pour).
func isBlank(dev string) (bool, error) {
	f, err := os.Open(dev)
	if err != nil {
		return false, err
	}
	defer f.Close()
	head := make([]byte, ext4.Block)
	if _, err := f.ReadAt(head, 0); err != nil {
		return false, err
	}
	for len(head) > 0 {
		if binary.NativeEndian.Uint64(head) != 0 {
			return false, nil
		}
		head = head[8:]
	}
	return true, nil
}

// stretch makes the file system of the machine's own disk, which is mounted, as large as the disk.
func stretch(dev string) {
	s, err := readSuper(dev)
	if err != nil {
		return
	}
	if size, err := deviceSize(dev); err == nil && size/s.blockSize > s.blocks {
		if err := resizeTo(ownDir, size/s.blockSize); err != nil {
			console("the file system of the machine's own disk stays at %d blocks: %v", s.blocks, err)
		}
	}
}
