package qemu

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/atomicfile"
	"vch/internal/fault"
	"vch/internal/sparsefile"
	"vch/portlayer"
)

// Disks implements portlayer.Disks on directories of this host.
type Disks struct {
	mkfs, debugfs string // programs
	golden        *goldens
	swept         *sync.Map // of directories: what an earlier process left there of directories that it was removing is gone
}

// FindDisks finds the programs that make file systems. NotFound says what to install.
func FindDisks() (d Disks, err error) {
	d.golden, d.swept = &goldens{}, &sync.Map{}
	if d.mkfs, err = findTool("mkfs.ext4"); err == nil {
		d.debugfs, err = findTool("debugfs")
	}
	return d, err
}

// tombPrefix begins the names of directories that are being removed.
const tombPrefix = ".removed-"

// extentPath is where Create and Import put the extent of the disk at path.
func extentPath(path string) string { return strings.TrimSuffix(path, ".vmdk") + "-flat.vmdk" }

// Create is portlayer.Disks.Create.
func (d Disks) Create(ctx context.Context, path portlayer.DiskPath, spec portlayer.DiskSpec) (err error) {
	size := (spec.Size + sector - 1) / sector * sector
	if size < portlayer.MinDisk || size > maxDisk {
		return fault.New(fault.Invalid, "a disk of %d bytes cannot be made: the least is %d MiB, the most %d TiB", spec.Size, portlayer.MinDisk/portlayer.MiB, int64(maxDisk>>40))
	}
	uuid, err := labelUUID(spec.Label)
	if err != nil {
		return err
	}
	file, extent := string(path), extentPath(string(path))
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
	if err := atomicfile.Write(file, []byte(descriptor(filepath.Base(extent), size)), 0o600); err != nil {
		return errors.Join(err, os.Remove(extent))
	}
	return nil
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
	if err := f.Truncate(int64(size)); err != nil {
		return kindOf(err)
	}
	shape := fsShape{size, dir}
	if g, ok := d.golden.get(shape); ok {
		id, err := uuidBytes(uuid)
		if err != nil {
			return err
		}
		if err := g.pour(f, int64(size), label, id); err != nil {
			return kindOf(err)
		}
		return kindOf(sync(f))
	}
	// With its own seed for checksums a file system can get another UUID while it is mounted, as a copy does in its first machine.
	// The file is new and reads as zeros: nothing needs to be zeroed by mkfs now, nor by the guest's kernel later.
	args := []string{"-q", "-F", "-b", "4096", "-m", "0", "-O", "metadata_csum_seed", "-E", "root_owner=0:0,nodiscard,assume_storage_prezeroed=1"}
	if label != "" {
		args = append(args, "-L", label)
	}
	if uuid != "" {
		args = append(args, "-U", uuid)
	}
	if err := tool(ctx, d.mkfs, append(args, file)...); err != nil {
		return err
	}
	if dir != "" {
		if err := tool(ctx, d.debugfs, "-w", "-R", "mkdir "+dir, file); err != nil {
			return err
		}
	}
	g, err := learn(f, int64(size))
	if err != nil {
		return err
	}
	if len(g.pieces) > 0 {
		d.golden.put(shape, g)
	}
	return sync(f)
}

// tool runs a program of e2fsprogs; its words become the error. debugfs ends with 0 whatever happens, so that words other than its banner are a failure, too.
func tool(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	out, err := cmd.CombinedOutput()
	words := saying(out)
	name := filepath.Base(program)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fault.New(fault.Internal, "%s: %w: %s", name, err, words)
	case name == "debugfs" && words != "":
		return fault.New(fault.Internal, "debugfs: %s", words)
	}
	return nil
}

// saying is a tool's output as one line, without the version banner.
func saying(out []byte) string {
	var lines []string
	for _, line := range bytes.Split(out, []byte("\n")) {
		text := strings.TrimSpace(string(line))
		if text == "" || strings.HasPrefix(text, "debugfs 1.") || strings.HasPrefix(text, "mke2fs 1.") || strings.HasPrefix(text, "Filesystem too small for a journal") {
			continue
		}
		lines = append(lines, text)
	}
	return strings.Join(lines, "; ")
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
	name, size, err := parseDescriptor(string(text))
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
	if st.Size() < int64(size) {
		return "", info, fault.New(fault.Conflict, "disk %s is damaged: its extent %s has %d bytes, and its descriptor says %d; restore it from a backup", path, name, st.Size(), size)
	}
	info = portlayer.DiskInfo{Size: size, Modified: st.ModTime()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		info.Allocated = portlayer.Bytes(sys.Blocks * sector)
	}
	return extent, info, nil
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
	extent := extentPath(file)
	if text, err := readSmall(file); err == nil {
		if name, _, err := parseDescriptor(string(text)); err == nil {
			extent = filepath.Join(filepath.Dir(file), name)
		}
	}
	for _, f := range []string{extent, file} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return kindOf(err)
		}
	}
	if err := atomicfile.SyncDir(filepath.Dir(file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return kindOf(err)
	}
	return nil
}

// Import is portlayer.Disks.Import.
func (d Disks) Import(ctx context.Context, local string, path portlayer.DiskPath) (err error) {
	file, extent := string(path), extentPath(string(path))
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
	size := portlayer.Bytes((st.Size() + sector - 1) / sector * sector)
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
	if err := atomicfile.Write(file, []byte(descriptor(filepath.Base(extent), size)), 0o600); err != nil {
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

// RemoveDir is portlayer.Disks.RemoveDir: a rename takes the name away, then the content goes. What an interrupted one left of the content goes with the next
// removal beside it. To find that, a directory is read once only: among 10,000 volumes it takes longer than a removal.
func (d Disks) RemoveDir(_ context.Context, dir portlayer.DiskPath) error {
	parent := filepath.Dir(string(dir))
	var tombs []string
	if _, swept := d.swept.LoadOrStore(parent, true); !swept {
		tombs, _ = filepath.Glob(filepath.Join(parent, tombPrefix+"*"))
	}
	err := removeDir(string(dir), parent, tombs)
	if err != nil {
		d.swept.Delete(parent) // something may be left
	}
	return err
}

func removeDir(dir, parent string, tombs []string) error {
	var suffix [8]byte
	rand.Read(suffix[:])
	tomb := filepath.Join(parent, tombPrefix+hex.EncodeToString(suffix[:]))
	err := os.Rename(dir, tomb)
	switch {
	case err == nil:
		tombs = append(tombs, tomb)
		if err := atomicfile.SyncDir(parent); err != nil {
			return kindOf(err)
		}
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat(parent); err != nil {
			return nil
		}
	default:
		return kindOf(err)
	}
	for _, t := range tombs {
		if err := os.RemoveAll(t); err != nil {
			return kindOf(err)
		}
	}
	return nil
}

// List is portlayer.Disks.List.
func (d Disks) List(_ context.Context, dir portlayer.DiskPath) ([]string, error) {
	entries, err := os.ReadDir(string(dir))
	if err != nil {
		return nil, kindOf(err)
	}
	names := []string{}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tombPrefix) {
			names = append(names, e.Name())
		}
	}
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
	st, err := os.Stat(string(dir))
	if err != nil {
		return 0, 0, kindOf(err)
	}
	if !st.IsDir() {
		return 0, 0, fault.New(fault.Invalid, "%s is not a directory", dir)
	}
	// Only a try tells: permission bits mean nothing to root, nor on a read-only medium. A full one can still be read.
	probe, err := os.CreateTemp(string(dir), ".probe-*")
	if err == nil {
		err = errors.Join(probe.Close(), os.Remove(probe.Name()))
	}
	if err != nil && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return 0, 0, fault.New(fault.Denied, "%s cannot be written: %w", dir, err)
	}
	var fsst unix.Statfs_t
	if err := unix.Statfs(string(dir), &fsst); err != nil {
		return 0, 0, kindOf(err)
	}
	return portlayer.Bytes(int64(fsst.Blocks) * fsst.Bsize), portlayer.Bytes(int64(fsst.Bavail) * fsst.Bsize), nil
}
