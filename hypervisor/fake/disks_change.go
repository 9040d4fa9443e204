package fake

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"vch/internal/atomicfile"
	"vch/internal/fault"
	"vch/internal/sparsefile"
	"vch/portlayer"
)

// Copy is portlayer.Disks.Copy.
func (Disks) Copy(ctx context.Context, from, to portlayer.DiskPath, progress portlayer.Progressed) error {
	source, _, size, err := sizedExtent(from)
	if err != nil {
		return err
	}
	return fault.Wrap("copy disk", string(from), place(to, size, func(extent string) error {
		return sparsefile.Copy(ctx, source, extent, func(done, total int64) {
			if progress != nil {
				progress(portlayer.Bytes(done), portlayer.Bytes(total))
			}
		})
	}))
}

// Open is portlayer.Disks.Open.
func (d Disks) Open(ctx context.Context, path portlayer.DiskPath) (io.ReadCloser, portlayer.DiskInfo, error) {
	info, err := d.Stat(ctx, path)
	if err != nil {
		return nil, info, err
	}
	f, err := os.Open(extentPath(string(path)))
	if err != nil {
		return nil, info, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(f, int64(info.Size)), f}, info, nil
}

// CreateFrom is portlayer.Disks.CreateFrom.
func (Disks) CreateFrom(ctx context.Context, path portlayer.DiskPath, size portlayer.Bytes, r io.Reader) error {
	if size <= 0 || size != roundUp(size) {
		return fault.New(fault.Invalid, "a disk cannot have %d bytes", size)
	}
	err := place(path, size, func(extent string) error { return sparsefile.Write(ctx, extent, int64(size), r) })
	if errors.Is(err, sparsefile.ErrLength) {
		return fault.New(fault.Invalid, "fill disk %s: %w", path, err)
	}
	return err
}

// Grow is portlayer.Disks.Grow.
func (Disks) Grow(ctx context.Context, path portlayer.DiskPath, size portlayer.Bytes) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	extent, _, have, err := sizedExtent(path)
	if err != nil {
		return err
	}
	if size = roundUp(size); size < have {
		return fault.New(fault.Invalid, "disk %s has %d bytes, and cannot have %d", path, have, size)
	}
	if err := os.Truncate(extent, int64(size)); err != nil {
		return err
	}
	return atomicfile.Write(string(path), describe(string(path), size), 0o600)
}

// Link is portlayer.Disks.Link.
func (Disks) Link(ctx context.Context, from, to portlayer.DiskPath) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	source, _, size, err := sizedExtent(from)
	if err != nil {
		return err
	}
	return fault.Wrap("link disk", string(from), place(to, size, func(extent string) error { return os.Link(source, extent) }))
}

// MoveDir is portlayer.Disks.MoveDir.
func (Disks) MoveDir(ctx context.Context, from, to portlayer.DiskPath) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := os.Lstat(string(to)); err == nil {
		return fault.New(fault.Conflict, "%s exists", to)
	}
	err := os.Rename(string(from), string(to))
	if errors.Is(err, fs.ErrNotExist) {
		return fault.As(fault.NotFound, err)
	}
	if err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(string(to)))
}
