package tether

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/fault"
)

// ioctls of a file system (include/uapi/linux/fs.h, fs/ext4/ext4.h).
const (
	fiFreeze       = 0xc0045877 // FIFREEZE, _IOWR('X', 119, int)
	fiThaw         = 0xc0045878 // FITHAW, _IOWR('X', 120, int)
	ext4Resize     = 0x40086610 // EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64): to so many blocks
	fsSetLabel     = 0x41009432 // FS_IOC_SETFSLABEL, _IOW(0x94, 50, char[256])
	ext4SetUUID    = 0x4008662c // EXT4_IOC_SETFSUUID, _IOW('f', 44, struct fsuuid)
	superBlocksLo  = 0x4        // more of the superblock
	superLogSize   = 0x18
	superIncompat  = 0x60
	superBlocksHi  = 0x150
	superLen       = 1024
	incompat64     = 0x80 // EXT4_FEATURE_INCOMPAT_64BIT
	ext4LabelBytes = 16
)

// super is what the tether wants to know of an ext4 file system.
type super struct {
	uuid      [16]byte
	blockSize int64
	blocks    int64
}

func readSuper(dev string) (s super, err error) {
	f, err := os.Open(dev)
	if err != nil {
		return s, err
	}
	defer f.Close()
	raw := make([]byte, superLen)
	if _, err := f.ReadAt(raw, superOffset); err != nil {
		return s, fmt.Errorf("cannot read its superblock: %w", err)
	}
	le := binary.LittleEndian
	if le.Uint16(raw[superMagicAt:]) != superMagic {
		return s, errors.New("its disk holds no ext4 file system")
	}
	copy(s.uuid[:], raw[superUUIDAt:])
	s.blockSize = 1024 << min(le.Uint32(raw[superLogSize:]), 6) // 64 KiB is ext4's most
	s.blocks = int64(le.Uint32(raw[superBlocksLo:]))
	if le.Uint32(raw[superIncompat:])&incompat64 != 0 {
		s.blocks |= int64(le.Uint32(raw[superBlocksHi:])) << 32
	}
	return s, nil
}

// isCalled compares the file system in a disk with the label that it should have, or with one that it may still have. own is false for one of those.
func (s super) isCalled(label string, was []string) (own bool, err error) {
	want, err := hex.DecodeString(label)
	if err != nil || len(want) != len(s.uuid) {
		return false, fmt.Errorf("label %q is not 32 hex digits", label)
	}
	if bytes.Equal(s.uuid[:], want) {
		return true, nil
	}
	for _, w := range was {
		if hex.EncodeToString(s.uuid[:]) == w {
			return false, nil
		}
	}
	return false, fmt.Errorf("its disk holds the file system %x, not %s", s.uuid, label)
}

func deviceSize(dev string) (int64, error) {
	f, err := os.Open(dev)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, io.SeekEnd)
}

// settle makes a file system that was just mounted writable what its disk and its volume say: as large, and called so. What cannot be done now is no harm: it is
// tried again at the next mount, and Grow says why.
func (l *Linux) settle(at, dev string, s super, label string, own bool) {
	if size, err := l.diskSize(label, dev); err == nil && size/s.blockSize > s.blocks {
		if err := resizeTo(at, size/s.blockSize); err != nil {
			console("the file system of %s stays at %d blocks: %v", label, s.blocks, err)
		}
	}
	if !own {
		if err := rename(at, label); err != nil {
			console("the file system of %s keeps its old name: %v", label, err)
		}
	}
}

// console says something to whoever reads the machine's console.
func console(format string, args ...any) { fmt.Fprintf(os.Stderr, "tether: "+format+"\n", args...) }

func ioctl(at string, request uint, arg unsafe.Pointer) error {
	f, err := os.Open(at)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// resizeTo has the kernel grow the mounted ext4 at a directory to so many blocks.
func resizeTo(at string, blocks int64) error {
	n := uint64(blocks)
	return ioctl(at, ext4Resize, unsafe.Pointer(&n))
}

// rename gives a mounted ext4 the UUID and the name of its volume. A file system that was made without the feature metadata_csum_seed cannot get another UUID
// while it is mounted.
func rename(at, label string) error {
	uuid, err := hex.DecodeString(label)
	if err != nil {
		return err
	}
	arg := make([]byte, 8+len(uuid)) // struct fsuuid: length, flags, then the UUID
	binary.NativeEndian.PutUint32(arg, uint32(len(uuid)))
	copy(arg[8:], uuid)
	if err := ioctl(at, ext4SetUUID, unsafe.Pointer(&arg[0])); err != nil {
		return err
	}
	name := make([]byte, 256)
	copy(name, label[:ext4LabelBytes])
	return ioctl(at, fsSetLabel, unsafe.Pointer(&name[0]))
}

// writable finds a volume's mounted file system and its disk.
func (l *Linux) writable(source guest.Source) (at, dev string, err error) {
	v, ok := l.volumes[source]
	switch {
	case !ok:
		return "", "", fault.New(fault.Conflict, "%s is not mounted in this machine", source)
	case v.readOnly:
		return "", "", fault.New(fault.Conflict, "%s is mounted read-only", source)
	}
	label := strings.TrimPrefix(source, "label://")
	if dev = l.disk(label); dev == "" {
		return "", "", fault.New(fault.NotFound, "the disk of %s is gone", source)
	}
	return filepath.Join(volumesDir, label), dev, nil
}

// Freeze is System.Freeze.
func (l *Linux) Freeze(source guest.Source) (thaw func() error, err error) {
	at, _, err := l.writable(source)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(at)
	if err != nil {
		return nil, err
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fiFreeze, 0); errno != 0 {
		return nil, errors.Join(fault.New(fault.Internal, "cannot freeze %s: %w", source, errno), f.Close())
	}
	return func() error {
		defer f.Close()
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fiThaw, 0); errno != 0 {
			return fault.New(fault.Internal, "cannot thaw %s: %w", source, errno)
		}
		return nil
	}, nil
}

// growWait bounds the wait for a disk's new size: the hypervisor tells the kernel.
const growWait = 30 * time.Second

// Grow is System.Grow.
func (l *Linux) Grow(ctx context.Context, source guest.Source, size int64) error {
	at, dev, err := l.writable(source)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, growWait)
	defer cancel()
	rescan := filepath.Join("/sys/block", filepath.Base(dev), "device/rescan")
	for {
		news := l.uevents.news()
		have, err := deviceSize(dev)
		if err != nil {
			return err
		}
		if have >= size {
			break
		}
		_ = os.WriteFile(rescan, []byte("1"), 0) // the news may have come before anybody listened
		if have, err = deviceSize(dev); err == nil && have >= size {
			break
		}
		select {
		case <-news:
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "the disk of %s has %d bytes in the machine, and should have %d", source, have, size)
		}
	}
	s, err := readSuper(dev)
	if err != nil {
		return err
	}
	if err := resizeTo(at, size/s.blockSize); err != nil {
		return fault.New(fault.Unavailable, "the file system of %s cannot grow: %w", source, err)
	}
	return nil
}

// Rooms is System.Rooms.
func (l *Linux) Rooms() ([]guest.Room, error) {
	rooms := []guest.Room{}
	for source, v := range l.volumes {
		if v.remote { // its store knows, and its server may not answer
			continue
		}
		var st unix.Statfs_t
		if err := unix.Statfs(v.content, &st); err != nil {
			return nil, err
		}
		rooms = append(rooms, guest.Room{Source: source, Total: int64(st.Blocks) * st.Bsize, Free: int64(st.Bavail) * st.Bsize})
	}
	return rooms, nil
}
