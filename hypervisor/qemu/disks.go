package qemu

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/atomicfile"
	"vch/internal/atonce"
	"vch/internal/ext4"
	"vch/internal/fault"
	"vch/internal/sparsefile"
	"vch/internal/vmdkfile"
	"vch/portlayer"
)

// Disks implements portlayer.Disks on directories of this host.
type Disks struct {
	ext4    ext4.Maker
	swept   *sync.Map // of directories: what an earlier process left there of directories that it was making or removing is gone
	tried   *sync.Map // of directories that took a file, their inode
	errands *errands  // nil: all is done at once
}

// FindDisks finds the programs that make file systems. NotFound says what to install.
func FindDisks() (d Disks, err error) {
	d = directories()
	d.ext4, err = ext4.Find()
	return d, err
}

// directories are Disks that make no file systems.
func directories() Disks { return Disks{swept: &sync.Map{}, tried: &sync.Map{}} }

// tombPrefix begins the names of directories that are being removed.
const tombPrefix = ".removed-"

// Create is portlayer.Disks.Create.
func (d Disks) Create(ctx context.Context, path portlayer.DiskPath, spec portlayer.DiskSpec) (err error) {
	size, uuid, err := checked(spec)
	if err != nil {
		return err
	}
	file, extent := string(path), vmdkfile.Extent(string(path))
	if _, err := os.Lstat(file); err == nil {
		return fault.New(fault.Conflict, "disk %s exists already", file)
	}
	defer func() {
		if err != nil {
			err = noRoom(err, filepath.Dir(file))
		}
	}()
	if err := d.format(ctx, extent, size, string(spec.Label[:16]), uuid, guest.VolumeDir); err != nil {
		return err
	}
	if err := atomicfile.Write(file, []byte(vmdkfile.Descriptor(filepath.Base(extent), int64(size))), 0o600); err != nil {
		return errors.Join(err, os.Remove(extent))
	}
	return nil
}

// Born is portlayer.Disks.Born: a file system is made with its name.
func (d Disks) Born() []portlayer.Label { return nil }

// checked is the size and the UUID that spec asks for.
func checked(spec portlayer.DiskSpec) (size portlayer.Bytes, uuid string, err error) {
	size = (spec.Size + vmdkfile.Sector - 1) / vmdkfile.Sector * vmdkfile.Sector
	if size < portlayer.MinDisk || size > vmdkfile.MaxDisk {
		return 0, "", fault.New(fault.Invalid, "a disk of %d bytes cannot be made: the least is %d MiB, the most %d TiB", spec.Size, portlayer.MinDisk/portlayer.MiB, int64(vmdkfile.MaxDisk>>40))
	}
	uuid, err = labelUUID(spec.Label)
	return size, uuid, err
}

// CreateDir is portlayer.Disks.CreateDir.
func (d Disks) CreateDir(ctx context.Context, dir portlayer.DiskPath, spec portlayer.DirSpec) error {
	size, uuid, err := checked(spec.Disk)
	if err != nil {
		return err
	}
	done, err := d.createAtOnce(string(dir), spec, size, uuid)
	if errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Conflict, "%s exists already", dir)
	}
	if done {
		return nil
	}
	extent := vmdkfile.Extent(spec.Name)
	err = d.makeDir(string(dir), func(in *atomicfile.Dir) error {
		f, err := in.Create(extent)
		if err != nil {
			return err
		}
		if err := d.formatFile(ctx, f, ext4.Shape{Size: int64(size), Dir: guest.VolumeDir}, string(spec.Disk.Label[:16]), uuid); err != nil {
			return err
		}
		return errors.Join(in.Write(spec.Name, []byte(vmdkfile.Descriptor(extent, int64(size)))), in.Write(spec.File, spec.Data))
	})
	return noRoom(kindOf(err), filepath.Dir(string(dir)))
}

// makeDir is atomicfile.MakeDir in a directory where nothing is left of earlier ones.
func (d Disks) makeDir(dir string, fill func(*atomicfile.Dir) error) error {
	d.sweep(filepath.Dir(dir))
	err := atomicfile.MakeDir(dir, fill)
	if errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Conflict, "%s exists already", dir)
	}
	return err
}

// sweep removes what an earlier process left in parent of directories that it was making or removing. To find that, a directory is read once only: among 10,000 volumes it
// takes longer than a removal. What cannot go now is the next process's.
func (d Disks) sweep(parent string) {
	if _, swept := d.swept.LoadOrStore(parent, true); swept {
		return
	}
	tombs, _ := filepath.Glob(filepath.Join(parent, tombPrefix+"*"))
	errs := []error{atomicfile.Sweep(parent)}
	for _, t := range tombs {
		errs = append(errs, os.RemoveAll(t))
	}
	if errors.Join(errs...) != nil {
		d.swept.Delete(parent) // something may be left
	}
}

// labelUUID is a label as mkfs.ext4 -U takes it.
func labelUUID(l portlayer.Label) (string, error) {
	if raw, err := hex.DecodeString(string(l)); err != nil || len(raw) != 16 {
		return "", fault.New(fault.Invalid, "a label is 32 hex digits, not %q", l)
	}
	return fmt.Sprintf("%s-%s-%s-%s-%s", l[:8], l[8:12], l[12:16], l[16:20], l[20:]), nil
}

// format makes a sparse file holding an empty ext4, with the directory dir in it unless that is "". It is durable on return; after an error the file is not
// there. Conflict if it was before.
func (d Disks) format(ctx context.Context, file string, size portlayer.Bytes, label, uuid, dir string) (err error) {
	return d.make(ctx, file, size, label, uuid, dir, (*os.File).Sync)
}

// pour is format without the durability.
func (d Disks) pour(ctx context.Context, file string, size portlayer.Bytes, label, uuid, dir string) error {
	return d.make(ctx, file, size, label, uuid, dir, func(*os.File) error { return nil })
}

func (d Disks) make(ctx context.Context, file string, size portlayer.Bytes, label, uuid, dir string, sync func(*os.File) error) (err error) {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Conflict, "disk file %s exists already", file)
	}
	if err != nil {
		return kindOf(err)
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			err = errors.Join(err, os.Remove(file))
		}
	}()
	if err := d.formatFile(ctx, f, ext4.Shape{Size: int64(size), Dir: dir}, label, uuid); err != nil {
		return err
	}
	return kindOf(sync(f))
}

// formatFile writes an empty ext4 into f, a new file, and does not sync it.
func (d Disks) formatFile(ctx context.Context, f *os.File, shape ext4.Shape, label, uuid string) error {
	return kindOf(d.ext4.Format(ctx, f, shape, label, uuid))
}

// noRoom says so when the medium of dir is (all but) full, which programs report in their own words or not at all.
func noRoom(err error, dir string) error {
	const little = 1 << 20
	if err == nil || fault.Is(err, fault.Conflict) || fault.Is(err, fault.Invalid) {
		return err
	}
	var st unix.Statfs_t
	full := errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
	if serr := unix.Statfs(dir, &st); serr == nil {
		free := int64(st.Bavail) * st.Bsize
		if full || free < little {
			return fault.New(fault.Unavailable, "no space left in %s (%d KiB free): make room there, or use another volume store: %w", dir, free/1024, err)
		}
	}
	return err
}

// kindOf gives errors of the host's file system their kinds.
func kindOf(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fault.As(fault.NotFound, err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return fault.As(fault.Denied, err)
	case errors.Is(err, syscall.ENOTDIR):
		return fault.As(fault.Invalid, err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EIO), errors.Is(err, syscall.ESTALE):
		return fault.As(fault.Unavailable, err)
	}
	return err
}

// Stat is portlayer.Disks.Stat.
func (d Disks) Stat(_ context.Context, path portlayer.DiskPath) (portlayer.DiskInfo, error) {
	_, info, err := locate(string(path))
	return info, err
}

// locate reads a descriptor and checks that the extent is as it says.
func locate(path string) (extent string, info portlayer.DiskInfo, err error) {
	text, err := readSmall(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", info, fault.New(fault.NotFound, "disk %s is missing", path)
	}
	if err != nil {
		return "", info, kindOf(err)
	}
	name, size, err := vmdkfile.Parse(string(text))
	if err != nil {
		return "", info, fault.Wrap("use disk", path, err)
	}
	extent = filepath.Join(filepath.Dir(path), name)
	st, err := os.Stat(extent)
	if errors.Is(err, fs.ErrNotExist) {
		return "", info, fault.New(fault.NotFound, "disk %s has lost its extent %s", path, name)
	}
	if err != nil {
		return "", info, kindOf(err)
	}
	if st.Size() < size {
		return "", info, fault.New(fault.Conflict, "disk %s is damaged: its extent %s has %d bytes, and its descriptor says %d; restore it from a backup", path, name, st.Size(), size)
	}
	info = portlayer.DiskInfo{Size: portlayer.Bytes(size), Modified: st.ModTime()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		info.Allocated = portlayer.Bytes(sys.Blocks * vmdkfile.Sector)
	}
	return extent, info, nil
}

// How old a change must be before the next is sure to look different: two in one tick of a file system's clock do not. The file systems of this host take the kernel's, which ticks at
// least every 10 ms (CONFIG_HZ, current_time in fs/inode.c); since Linux 6.13 a change after a look never has the time of the one before it (Documentation/filesystems/multigrain-ts.rst).
// Those of others, and inodes that have whole seconds only, may be as coarse as FAT's, 2 s.
const (
	tick       = 20 * time.Millisecond
	coarseTick = 2 * time.Second
)

// settled says whether a change at that time is old enough, on a file system of that kind (statfs(2)).
func settled(now time.Time, changed int64, kind func() int64) bool {
	age := time.Duration(now.UnixNano() - changed)
	if age >= coarseTick || changed%int64(time.Second) == 0 {
		return age >= coarseTick
	}
	switch kind() {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return age >= tick || fineTimes()
	}
	return false
}

// fineTimes reports whether this kernel is Linux 6.13 or later.
var fineTimes = sync.OnceValue(func() bool {
	var name unix.Utsname
	var major, minor int
	_ = unix.Uname(&name)
	n, _ := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor)
	return n == 2 && (major > 6 || major == 6 && minor >= 13)
})

// lookers is how many disks are looked at at once, by at least so many each: a look is a few microseconds, or the time of a network.
const (
	lookers  = 8
	fewLooks = 16
)

// Look is portlayer.Disks.Look: for each disk three calls of stat(2), from the directory on, for a path from the root takes longer than the file. They tell the change times of
// descriptor and small file, which no one can set back, and size and number of all three files.
func (d Disks) Look(_ context.Context, dir portlayer.DiskPath, disks []string, beside string) []portlayer.Look {
	looks := make([]portlayer.Look, len(disks))
	from, err := unix.Open(string(dir), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return looks
	}
	defer unix.Close(from)
	kind := sync.OnceValue(func() int64 { // few are so new that it matters
		var fsst unix.Statfs_t
		_ = unix.Fstatfs(from, &fsst) // an unknown kind is a coarse one
		return fsst.Type
	})
	now := time.Now()
	atonce.Do(len(disks), min(lookers, 1+len(disks)/fewLooks), func(i int) {
		var descriptor, extent, small unix.Stat_t
		file := disks[i]
		if unix.Fstatat(from, file, &descriptor, 0) != nil || unix.Fstatat(from, vmdkfile.Extent(file), &extent, 0) != nil ||
			unix.Fstatat(from, file[:strings.LastIndexByte(file, '/')+1]+beside, &small, 0) != nil {
			return
		}
		if !settled(now, descriptor.Ctim.Nano(), kind) || !settled(now, small.Ctim.Nano(), kind) {
			return
		}
		looks[i] = portlayer.Look{
			Mark: [9]uint64{
				descriptor.Dev,
				descriptor.Ino, uint64(descriptor.Ctim.Nano()), uint64(descriptor.Size),
				small.Ino, uint64(small.Ctim.Nano()), uint64(small.Size),
				extent.Ino, uint64(extent.Size),
			},
			Allocated: portlayer.Bytes(extent.Blocks * vmdkfile.Sector),
		}
	})
	return looks
}

// smallFile bounds descriptors and metadata, in bytes: a damaged one is not read into memory whole.
const smallFile = 1 << 20

func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, smallFile))
}

// Delete is portlayer.Disks.Delete. The extent goes first, under the name that its descriptor gives: what is left of an interrupted one is still deleted
// by the next.
func (d Disks) Delete(_ context.Context, path portlayer.DiskPath) error {
	file := string(path)
	dir := filepath.Dir(file)
	extent, err := described(file)
	if err != nil {
		return err
	}
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return kindOf(err)
	}
	if extent == "" { // what has its extent's name may be something else
		guess := vmdkfile.Extent(file)
		if own, err := described(guess); err != nil {
			return err
		} else if own == "" {
			extent = filepath.Base(guess)
		}
	}
	remove := []string{file}
	if extent != "" {
		remove = []string{filepath.Join(dir, extent), file}
	}
	for _, n := range names {
		other := filepath.Join(dir, n.Name())
		if n.Name() == filepath.Base(file) || !strings.HasSuffix(other, ".vmdk") {
			continue
		}
		switch named, err := described(other); {
		case err != nil:
			return err
		case named == "":
		case named == filepath.Base(file):
			return fault.New(fault.Conflict, "%s is the extent of disk %s: delete that", file, other)
		case named == extent:
			remove = []string{file}
		}
	}
	for _, f := range remove {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return kindOf(err)
		}
	}
	if err := atomicfile.SyncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return kindOf(err)
	}
	return nil
}

// described is the name of the extent that the descriptor at path gives; "" if there is none. An extent is larger than any descriptor, and its text is its guest's.
func described(path string) (extent string, err error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || err == nil && (!st.Mode().IsRegular() || st.Size() > smallFile) {
		return "", nil
	}
	if err != nil {
		return "", kindOf(err)
	}
	text, err := readSmall(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", kindOf(err)
	}
	extent, _, err = vmdkfile.Parse(string(text))
	if err != nil {
		return "", nil // something else
	}
	return extent, nil
}

// Import is portlayer.Disks.Import.
func (d Disks) Import(ctx context.Context, local string, path portlayer.DiskPath) (err error) {
	file, extent := string(path), vmdkfile.Extent(string(path))
	defer func() {
		if err != nil {
			err = noRoom(err, filepath.Dir(file))
		}
	}()
	for _, f := range []string{file, extent} {
		if _, err := os.Lstat(f); err == nil {
			return fault.New(fault.Conflict, "disk file %s exists already", f)
		}
	}
	st, err := os.Stat(local)
	if err != nil {
		return kindOf(err)
	}
	size := portlayer.Bytes((st.Size() + vmdkfile.Sector - 1) / vmdkfile.Sector * vmdkfile.Sector)
	if size == 0 {
		return fault.New(fault.Invalid, "%s is empty: not a disk", local)
	}
	if err := os.Truncate(local, int64(size)); err != nil {
		return kindOf(err)
	}
	if err := syncFile(local); err != nil {
		return err
	}
	err = os.Rename(local, extent)
	if errors.Is(err, syscall.EXDEV) {
		if err = sparsefile.Copy(ctx, local, extent, nil); err == nil {
			err = os.Remove(local)
		}
	}
	if err != nil {
		return kindOf(err)
	}
	if err := atomicfile.Write(file, []byte(vmdkfile.Descriptor(filepath.Base(extent), int64(size))), 0o600); err != nil {
		return errors.Join(kindOf(err), os.Remove(extent))
	}
	return nil
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Join is portlayer.Disks.Join.
func (d Disks) Join(dir portlayer.DiskPath, elem ...string) portlayer.DiskPath {
	return portlayer.DiskPath(filepath.Join(append([]string{string(dir)}, elem...)...))
}

// MakeDir is portlayer.Disks.MakeDir.
func (d Disks) MakeDir(_ context.Context, dir portlayer.DiskPath) error {
	if st, err := os.Stat(string(dir)); err == nil && st.IsDir() {
		return nil
	}
	if err := os.MkdirAll(string(dir), 0o700); err != nil {
		return noRoom(kindOf(err), filepath.Dir(string(dir)))
	}
	return kindOf(atomicfile.SyncDir(filepath.Dir(string(dir))))
}

// RemoveDir is portlayer.Disks.RemoveDir: a rename takes the name away, then the content goes. What an interrupted one left of the content goes with the next that is made or
// removed beside it (sweep).
func (d Disks) RemoveDir(_ context.Context, dir portlayer.DiskPath) error {
	parent := filepath.Dir(string(dir))
	d.sweep(parent)
	var suffix [8]byte
	rand.Read(suffix[:]) // never fails (crypto/rand)
	tomb := filepath.Join(parent, tombPrefix+hex.EncodeToString(suffix[:]))
	err := os.Rename(string(dir), tomb)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = atomicfile.SyncDir(parent)
	}
	if err == nil && (d.errands == nil || !d.errands.bury(tomb)) {
		err = os.RemoveAll(tomb)
	}
	if err != nil {
		d.swept.Delete(parent) // something may be left
	}
	return kindOf(err)
}

// List is portlayer.Disks.List.
func (d Disks) List(_ context.Context, dir portlayer.DiskPath) ([]string, error) {
	f, err := os.Open(string(dir))
	if err != nil {
		return nil, kindOf(err)
	}
	defer f.Close()
	all, err := f.Readdirnames(-1)
	if err != nil {
		return nil, kindOf(err)
	}
	names := slices.DeleteFunc(all, func(name string) bool { return strings.HasPrefix(name, tombPrefix) || atomicfile.Unfinished(name) })
	sort.Strings(names)
	return names, nil
}

// WriteFile is portlayer.Disks.WriteFile.
func (d Disks) WriteFile(_ context.Context, path portlayer.DiskPath, data []byte) error {
	return noRoom(kindOf(atomicfile.Write(string(path), data, 0o600)), filepath.Dir(string(path)))
}

// ReadFile is portlayer.Disks.ReadFile.
func (d Disks) ReadFile(_ context.Context, path portlayer.DiskPath) ([]byte, error) {
	data, err := readSmall(string(path))
	return data, kindOf(err)
}

// Space is portlayer.Disks.Space.
func (d Disks) Space(_ context.Context, dir portlayer.DiskPath) (total, free portlayer.Bytes, err error) {
	var st unix.Stat_t
	if err := unix.Stat(string(dir), &st); err != nil {
		return 0, 0, kindOf(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return 0, 0, fault.New(fault.Invalid, "%s is not a directory", dir)
	}
	if err := d.takesFiles(string(dir), st); err != nil {
		return 0, 0, fault.New(fault.Denied, "%s cannot be written: %w", dir, err)
	}
	var fsst unix.Statfs_t
	if err := unix.Statfs(string(dir), &fsst); err != nil {
		return 0, 0, kindOf(err)
	}
	return portlayer.Bytes(int64(fsst.Blocks) * fsst.Bsize), portlayer.Bytes(int64(fsst.Bavail) * fsst.Bsize), nil
}

// inode is a file of this host.
type inode struct{ dev, ino uint64 }

// takesFiles finds out whether a directory can be written. That it takes files at all only a try tells, and it is tried once: a try is two changes of the directory, and every
// question about a volume begins here. Afterwards the kernel is asked, who answers for root, too: EROFS on a medium that went read-only, EPERM in a directory that was made
// immutable (access(2)).
func (d Disks) takesFiles(dir string, st unix.Stat_t) error {
	this := inode{st.Dev, st.Ino}
	if was, tried := d.tried.Load(dir); tried && was == this {
		return unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS)
	}
	probe, err := os.CreateTemp(dir, ".probe-*")
	if err == nil {
		err = errors.Join(probe.Close(), os.Remove(probe.Name()))
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) { // a full one can still be read
		return nil
	}
	if err == nil {
		d.tried.Store(dir, this)
	}
	return err
}
