package fake

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"vch/internal/atomicfile"
	"vch/internal/fault"
	"vch/portlayer"
)

var labelRule = regexp.MustCompile(`^[0-9a-f]{32}$`)

// Disks implements portlayer.Disks with files of this host. A DiskPath is a path.
type Disks struct{}

// Create is portlayer.Disks.Create.
func (Disks) Create(ctx context.Context, path portlayer.DiskPath, spec portlayer.DiskSpec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !labelRule.MatchString(string(spec.Label)) {
		return fault.New(fault.Invalid, "cannot make disk %s: label %q is not 32 hex digits", path, spec.Label)
	}
	return fault.Wrap("make disk", string(path), createDisk(path, spec.Size, spec.Label))
}

// createDisk makes a disk with an empty simulated file system.
func createDisk(path portlayer.DiskPath, size portlayer.Bytes, label portlayer.Label) error {
	if size = roundUp(size); size < portlayer.MinDisk {
		return fault.New(fault.Invalid, "a disk has at least %d bytes; %d were asked for", portlayer.MinDisk, size)
	}
	return place(path, size, func(extent string) error {
		f, err := os.OpenFile(extent, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		err = f.Truncate(int64(size))
		if err == nil {
			err = format(f, label)
		}
		if err == nil {
			err = f.Sync()
		}
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(extent))
		}
		return err
	})
}

func roundUp(n portlayer.Bytes) portlayer.Bytes { return (n + sector - 1) / sector * sector }

// place makes the extent of a new disk by fill, then the descriptor. Its error leaves nothing; fill, too, leaves nothing after its own.
func place(path portlayer.DiskPath, size portlayer.Bytes, fill func(extent string) error) error {
	if filepath.Ext(string(path)) != ".vmdk" {
		return fault.New(fault.Invalid, "a disk's name ends in .vmdk")
	}
	if _, err := os.Lstat(string(path)); err == nil {
		return fault.New(fault.Conflict, "it exists already")
	}
	extent := extentPath(string(path))
	switch err := fill(extent); {
	case errors.Is(err, fs.ErrExist):
		return fault.New(fault.Conflict, "its extent exists already")
	case errors.Is(err, fs.ErrNotExist):
		return fault.As(fault.NotFound, err)
	case err != nil:
		return err
	}
	if err := atomicfile.Write(string(path), describe(string(path), size), 0o600); err != nil {
		return errors.Join(err, os.Remove(extent))
	}
	return nil
}

// Stat is portlayer.Disks.Stat.
func (Disks) Stat(ctx context.Context, path portlayer.DiskPath) (portlayer.DiskInfo, error) {
	if err := ctx.Err(); err != nil {
		return portlayer.DiskInfo{}, err
	}
	_, fi, size, err := sizedExtent(path)
	if err != nil {
		return portlayer.DiskInfo{}, err
	}
	info := portlayer.DiskInfo{Size: size, Modified: fi.ModTime()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		info.Allocated = portlayer.Bytes(st.Blocks * 512) // stat(2): always units of 512
	}
	return info, nil
}

// Look is portlayer.Disks.Look. It cannot tell.
func (Disks) Look(_ context.Context, _ portlayer.DiskPath, disks []string, _ string) []portlayer.Look {
	return make([]portlayer.Look, len(disks))
}

// Delete is portlayer.Disks.Delete.
func (Disks) Delete(ctx context.Context, path portlayer.DiskPath) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	file, extent := string(path), extentPath(string(path))
	if of, ok := strings.CutSuffix(file, "-flat.vmdk"); ok {
		if _, err := os.Lstat(of + ".vmdk"); err == nil {
			return fault.New(fault.Conflict, "%s is the extent of disk %s.vmdk", file, of)
		}
	}
	remove := []string{file, extent}
	if _, _, err := openExtent(portlayer.DiskPath(extent)); err == nil { // a disk itself
		remove = remove[:1]
	}
	removed := false
	for _, p := range remove {
		err := os.Remove(p)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fault.Wrap("delete disk", string(path), err)
		}
		removed = removed || err == nil
	}
	if !removed {
		return nil
	}
	return fault.Wrap("delete disk", string(path), atomicfile.SyncDir(filepath.Dir(string(path))))
}

// Import is portlayer.Disks.Import.
func (Disks) Import(ctx context.Context, local string, path portlayer.DiskPath) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return fault.Wrap("import disk", string(path), importDisk(local, path))
}

func importDisk(local string, path portlayer.DiskPath) error {
	fi, err := os.Stat(local)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.As(fault.NotFound, err)
	}
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() || fi.Size() == 0 {
		return fault.New(fault.Invalid, "%s is not a disk image", local)
	}
	size := roundUp(portlayer.Bytes(fi.Size()))
	err = place(path, size, func(extent string) error {
		in, err := os.Open(local)
		if err != nil {
			return err
		}
		defer in.Close()
		out, err := os.OpenFile(extent, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, in)
		if err == nil {
			err = out.Truncate(int64(size))
		}
		if err == nil {
			err = out.Sync()
		}
		if err = errors.Join(err, out.Close()); err != nil {
			err = errors.Join(err, os.Remove(extent))
		}
		return err
	})
	if err != nil {
		return err
	}
	return os.Remove(local)
}

// Join is portlayer.Disks.Join.
func (Disks) Join(dir portlayer.DiskPath, elem ...string) portlayer.DiskPath {
	return portlayer.DiskPath(filepath.Join(append([]string{string(dir)}, elem...)...))
}

// MakeDir is portlayer.Disks.MakeDir.
func (Disks) MakeDir(ctx context.Context, dir portlayer.DiskPath) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := os.MkdirAll(string(dir), 0o700)
	if errors.Is(err, unix.ENOTDIR) {
		return fault.New(fault.Invalid, "cannot make directory %s: a part of it is a file", dir)
	}
	if err != nil {
		return fault.New(fault.Denied, "cannot make directory %s: %w", dir, err)
	}
	return atomicfile.SyncDir(filepath.Dir(string(dir)))
}

// CreateDir is portlayer.Disks.CreateDir.
func (Disks) CreateDir(ctx context.Context, dir portlayer.DiskPath, spec portlayer.DirSpec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	size := roundUp(spec.Disk.Size)
	switch {
	case !labelRule.MatchString(string(spec.Disk.Label)):
		return fault.New(fault.Invalid, "cannot make disk %s: label %q is not 32 hex digits", dir, spec.Disk.Label)
	case size < portlayer.MinDisk:
		return fault.New(fault.Invalid, "a disk has at least %d bytes; %d were asked for", portlayer.MinDisk, size)
	}
	err := atomicfile.MakeDir(string(dir), func(in *atomicfile.Dir) error {
		f, err := in.Create(extentPath(spec.Name))
		if err == nil {
			err = f.Truncate(int64(size))
		}
		if err == nil {
			err = format(f, spec.Disk.Label)
		}
		if err != nil {
			return err
		}
		return errors.Join(in.Write(spec.Name, describe(spec.Name, size)), in.Write(spec.File, spec.Data))
	})
	switch {
	case errors.Is(err, fs.ErrExist):
		return fault.New(fault.Conflict, "%s exists already", dir)
	case errors.Is(err, fs.ErrNotExist):
		return fault.As(fault.NotFound, err)
	}
	return fault.Wrap("make disk", string(dir), err)
}

// RemoveDir is portlayer.Disks.RemoveDir.
func (Disks) RemoveDir(ctx context.Context, dir portlayer.DiskPath) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return fault.Wrap("remove directory", string(dir), removeDir(string(dir)))
}

// gravePrefix begins the names of directories that are being removed.
const gravePrefix = ".removed-"

func removeDir(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	parent := filepath.Dir(dir)
	grave, err := os.MkdirTemp(parent, gravePrefix+"*")
	if err != nil {
		return err
	}
	err = os.Rename(dir, filepath.Join(grave, filepath.Base(dir)))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // another call was quicker
	}
	if err == nil {
		err = atomicfile.SyncDir(parent)
	}
	return errors.Join(err, os.RemoveAll(grave))
}

// List is portlayer.Disks.List.
func (Disks) List(ctx context.Context, dir portlayer.DiskPath) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(string(dir)) // sorted
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "no directory %s", dir)
	}
	if err != nil {
		return nil, err
	}
	names := []string{}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), gravePrefix) && !atomicfile.Unfinished(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// WriteFile is portlayer.Disks.WriteFile.
func (Disks) WriteFile(ctx context.Context, path portlayer.DiskPath, data []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := atomicfile.Write(string(path), data, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.As(fault.NotFound, err)
	}
	return err
}

// ReadFile is portlayer.Disks.ReadFile.
func (Disks) ReadFile(ctx context.Context, path portlayer.DiskPath) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(string(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "no file %s", path)
	}
	return data, err
}

// Space is portlayer.Disks.Space.
func (Disks) Space(ctx context.Context, dir portlayer.DiskPath) (total, free portlayer.Bytes, err error) {
	if err := ctx.Err(); err != nil {
		return 0, 0, err
	}
	fi, err := os.Stat(string(dir))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, 0, fault.New(fault.NotFound, "no directory %s", dir)
	case errors.Is(err, unix.ENOTDIR), err == nil && !fi.IsDir():
		return 0, 0, fault.New(fault.Invalid, "%s is not a directory", dir)
	case err != nil:
		return 0, 0, fault.New(fault.Denied, "%s cannot be read: %w", dir, err)
	}
	probe, err := os.CreateTemp(string(dir), ".probe-*")
	if err == nil {
		err = errors.Join(probe.Close(), os.Remove(probe.Name()))
	}
	if err != nil && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) { // a full one can still be read
		return 0, 0, fault.New(fault.Denied, "%s cannot be written: %w", dir, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(string(dir), &st); err != nil {
		return 0, 0, err
	}
	return portlayer.Bytes(int64(st.Blocks) * st.Bsize), portlayer.Bytes(int64(st.Bavail) * st.Bsize), nil
}

// Born is portlayer.Disks.Born: a file system is made with its name.
func (Disks) Born() []portlayer.Label { return nil }
