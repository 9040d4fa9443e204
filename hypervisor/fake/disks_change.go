package fake

import (
	"context"
	"errors"
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
